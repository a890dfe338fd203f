// SPDX-License-Identifier: Apache-2.0
/// Intake and Outbox: the two directions of a connection, with few system calls.
///
/// Intake reads ahead: many small requests come with one receive; a large payload goes straight
/// into the memory it is meant for.
/// Outbox gathers: replies that become ready while a send is under way go out together with the
/// next one; a large payload is sent from where it lies.  Messages are never mixed: each is in one
/// piece, and those of one coroutine keep their order.
///
/// Invariant: an Outbox that has failed takes everything and sends nothing, so that whoever
/// answers a client that is gone need not care.
/// Cost: an idle connection holds the intake's buffer and no other.
#pragma once

#include "base/bytes.h"
#include "base/error.h"
#include "coro/event.h"
#include "coro/semaphore.h"
#include "coro/task.h"
#include "io/buffer.h"
#include "io/socket.h"

namespace byre {

class Intake {
 public:
  static constexpr size_t kCapacity = 64 * 1024;

  explicit Intake(Socket& socket) : socket_(socket), buffer_(kCapacity) {}

  /// What has come and was not taken; stays in place until the next co_await.
  Bytes have() const { return Bytes(buffer_.bytes()).subspan(begin_, end_ - begin_); }
  void take(size_t count) { begin_ += count; }

  /// Receives until `count` bytes (at most kCapacity) are there; false when the stream ends first.
  Task<bool> need(size_t count);
  /// Fills `out`; false when the stream ends first.
  Task<bool> read(MutableBytes out);
  /// Throws `count` bytes away; false when the stream ends first.
  Task<bool> skip(uint64_t count);

 private:
  /// A payload that misses less than this comes through the buffer, with what follows it.
  static constexpr size_t kDirectMin = 16 * 1024;

  Socket& socket_;
  Buffer buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
};

class Outbox {
 public:
  /// Messages up to this are copied.
  static constexpr size_t kCopyMax = 32 * 1024;

  Outbox(Socket& socket, ReadyQueue& ready)
      : socket_(socket), sending_(ready), wake_(ready), room_(ready) {}

  /// Takes a message of at most kCapacity bytes by copying; waits only while there is no room.
  Task<void> put(Bytes head, Bytes body = {});
  /// The same without a coroutine, when there is room at once.
  bool try_put(Bytes head, Bytes body = {});
  /// Sends `head`, then `body` from where it lies; both are free again when this ends.
  Task<void> put_directly(Bytes head, Bytes body);
  /// Everything that was put before this has been handed to the kernel, or never will be.
  Task<void> drain();

  /// Sends what is put until close(); then what is left.
  Task<void> run();
  void close() {
    closed_ = true;
    wake_.notify();
  }
  /// Why nothing is sent any more, if so.
  const Error& failure() const { return failure_; }

  static constexpr size_t kCapacity = 128 * 1024;

 private:
  void append(Bytes bytes);
  Task<void> send_gathered();
  Task<void> send(Bytes bytes);

  Socket& socket_;
  Mutex sending_;
  Event wake_;  ///< Something was put into an empty buffer, or no more will be.
  Event room_;
  Buffer gathered_;
  size_t gathered_size_ = 0;
  bool closed_ = false;
  Error failure_;
};

}  // namespace byre
