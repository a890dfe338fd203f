// SPDX-License-Identifier: Apache-2.0
/// Op: one thing asked of the world: an I/O, a wait for time, a piece of CPU work.
///
/// An Op lives in the frame of the coroutine that awaits it and belongs to the reactor from
/// submit() until it completes.  It says what an io_uring SQE can say, and no more. A transfer may
/// be short and a call interrupted: the reactor reports what happened; File and Socket (file.h,
/// socket.h) finish the rest.
#pragma once

#include <sys/socket.h>

#include <coroutine>
#include <cstdint>

#include "base/io_vec.h"

namespace byre {

/// Nanoseconds on the reactor's clock, which never goes back; not the time of day.
struct Instant {
  int64_t ns = 0;
  friend auto operator<=>(const Instant&, const Instant&) = default;
  friend Instant operator+(Instant t, int64_t later) { return {t.ns + later}; }
  friend int64_t operator-(Instant a, Instant b) { return a.ns - b.ns; }
};
inline constexpr int64_t kMicrosecond = 1000;
inline constexpr int64_t kMillisecond = 1000 * kMicrosecond;
inline constexpr int64_t kSecond = 1000 * kMillisecond;

struct Op {
  enum class Kind : uint8_t {
    read,        ///< preadv of `length` bytes at offset from fd into the buffer or the pieces.
    write,       ///< pwritev; `dsync` makes it durable before it completes (RWF_DSYNC).
    sync,        ///< fdatasync of fd.
    allocate,    ///< fallocate(mode 0 | KEEP_SIZE as `keep_size`): blocks for [offset, length).
    punch,       ///< fallocate(PUNCH_HOLE | KEEP_SIZE).
    zero_range,  ///< fallocate(ZERO_RANGE, with `keep_size`): zeros, blocks kept.
    truncate,    ///< ftruncate to `offset`.
    accept,      ///< accept4 on fd (close-on-exec); result is the new descriptor.
    connect,     ///< connect fd to `address`.
    receive,     ///< recv into buffer; 0 at the end of the stream.
    send,        ///< sendmsg of buffer, with MSG_NOSIGNAL.
    poll,        ///< waits until fd is readable (POLLIN).
    timer,       ///< completes at `deadline` with result 0.
    offload,     ///< runs `work(argument)` on a worker thread.
  };

  Kind kind = Kind::read;
  bool dsync = false;
  bool keep_size = true;
  int fd = -1;
  uint64_t offset = 0;
  uint64_t length = 0;
  void* buffer = nullptr;  ///< Not written through for write and send.
  /// Of a read or write: instead of `buffer`; `length` is that of all of them, IOV_MAX at most.
  IoVec pieces;
  Instant deadline;
  const sockaddr* address = nullptr;
  socklen_t address_length = 0;
  void (*work)(void*) = nullptr;
  void* argument = nullptr;

  /// >= 0 as the system call gives it, or -errno.  Valid once complete.
  int64_t result = 0;
  /// Goes to the ready queue when the Op completes.
  std::coroutine_handle<> waiter;

  /// What a read or write transfers: the pieces, or the buffer as one, which `one` then holds.
  IoVec memory(iovec& one) const {
    if (!pieces.empty()) return pieces;
    one = {buffer, length};
    return {&one, 1};
  }

  // The reactor's own, while the Op is submitted.
  Op* next = nullptr;
  Op* previous = nullptr;
  uint64_t tag = 0;
  bool pending = false;
};

}  // namespace byre
