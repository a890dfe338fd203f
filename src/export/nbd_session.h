// SPDX-License-Identifier: Apache-2.0
/// Session: one NBD connection, from its greeting to its end.
///
///   1. The handshake (nbd_handshake.h) has `handshake_timeout` to end in the transmission phase;
///      who agreed on everything before (Policy::agreed) has none.
///   2. One coroutine receives requests; each that is sound becomes a coroutine of its own, so they
///      run side by side and are answered as they end.  Requests and their memory are bounded: at
///      the bound the session stops receiving, and the client's socket fills up.
///   3. Replies leave through an Outbox (nbd_stream.h), many with one send.
///   4. The end: the client says so (DISC), hangs up, breaks the protocol, or stop() is called.
///      What was received whole is carried out and, while the client listens, answered; a request
///      that came in half never reaches the device.
///
/// A request that the terms do not allow is answered with an error and harms nothing; its payload
/// is thrown away unread up to kDrainMax, beyond that the connection ends.  An answer tells a
/// client nothing of the server but the protocol's error number and its name. READ: ranges that
/// read as zeros are sent as holes when structured replies are agreed and DF is not set; a DF read
/// of nothing but zeros is one hole.  CACHE is not offered, and succeeds without doing anything for
/// clients that ask nevertheless.  TRIM succeeds where the device cannot discard.  WRITE_ZEROES may
/// unmap unless NO_HOLE is set. A session never closes its device, nor counts on being the only one
/// that uses it. Cost: a small request takes two pooled frames, a pooled buffer and no allocation.
/// Not here: who listens, how many connections there are (nbd_server.h).
#pragma once

#include <cstdint>
#include <functional>

#include "block/device.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "export/nbd_handshake.h"
#include "nbd/nbd_stream.h"
#include "nbd/nbd_wire.h"

namespace byre::nbd {

/// What a server and its sessions have done, since they were made.
struct Statistics {
  uint64_t connections = 0;          ///< Of clients that were let in.
  uint64_t connections_open = 0;     ///< Now.
  uint64_t connections_waiting = 0;  ///< Now, for a place; the kernel may hold more.
  uint64_t connections_failed = 0;   ///< Ended by an error: broken protocol, timeout, lost peer.
  uint64_t requests = 0;
  uint64_t requests_running = 0;  ///< Now.
  uint64_t requests_failed = 0;   ///< Answered with an error.
  uint64_t reads = 0;
  uint64_t writes = 0;
  uint64_t flushes = 0;
  uint64_t bytes_read = 0;
  uint64_t bytes_written = 0;
  uint64_t bytes_zeroed = 0;   ///< By WRITE_ZEROES.
  uint64_t bytes_trimmed = 0;  ///< By TRIM.
};

/// What one client may take.  A timeout of 0 never ends.
struct SessionLimits {
  int64_t handshake_timeout_ns = 30 * kSecond;
  /// How long a client that is at its end may take to read its last replies.
  int64_t linger_timeout_ns = 10 * kSecond;
  uint64_t requests_max = 256;     ///< In flight.
  uint64_t memory_max = 64 * MiB;  ///< Payloads of these; never below kPayloadMax.
};

class Session {
 public:
  /// A write that is refused has its payload skipped up to this.
  static constexpr uint64_t kDrainMax = 2 * uint64_t{kPayloadMax};

  static constexpr uint64_t kOwnMemory = 1 * MiB;

  /// What the sessions of a server share; outlives them.
  struct Shared {
    const Exports& exports;
    Statistics& statistics;
    /// Payload memory of all clients, a total of at least kPayloadMax.  Each session has kOwnMemory
    /// beside it, so that clients that let large requests hang cannot starve small ones.
    Semaphore& memory;
    /// Hears of what a device or a client did wrong; may be empty.
    std::function<void(const Error&)> report;
  };

  Session(Reactor& reactor, Socket socket, Shared& shared, SessionLimits limits,
          Handshake::Policy policy);
  Session(const Session&) = delete;

  /// Serves the client until the connection is over.  Fails when that was not as it should be.
  Task<void> run();
  /// Ends soon: requests that run are answered, new ones get ESHUTDOWN.
  void stop();
  /// Others wait for this client's place: a handshake that is not over in `ns` from now is cut off.
  void hurry(int64_t ns);
  /// It got as far as the transmission phase.
  bool attached() const { return transmitting_; }
  /// Has it chosen this export?
  bool uses(const Export& target) const { return handshake_.chosen_export() == &target; }
  /// Asked when a client has taken its leave in order: should its connection stay open after run()?
  void leave_open_if(std::function<bool()> wanted) { leave_open_ = std::move(wanted); }
  /// After run(): the connection that stays open.
  Socket take_socket() { return std::move(socket_); }

 private:
  Task<void> shake_hands();
  void begin_transmission();
  Task<void> receive_requests();
  Semaphore& memory_for(uint64_t size);
  /// What a request holds while it runs.
  struct Holds {
    Semaphore::Hold slot, memory, source;
  };
  Task<void> serve(Request request, Buffer payload, Holds holds);
  Task<void> read(const Request& request);
  Task<void> read_whole(const Request& request);
  Task<void> read_extents(const Request& request);
  Task<void> block_status(const Request& request);
  Task<void> finish(const Request& request, Status status);
  Task<void> finish(const Request& request, const Result<void>& result);
  void report_failure(const Request& request, const Error& error);
  Task<void> hang_up_at(Op& timer, int64_t ns);
  Task<void> hang_up_when_idle();
  void disarm(Op& timer);
  void hang_up();

  Reactor& reactor_;
  Socket socket_;
  Shared& shared_;
  const SessionLimits limits_;
  Handshake handshake_;
  Intake intake_;
  Outbox outbox_;
  Semaphore slots_;
  Semaphore memory_;  ///< Bounds what this client takes of the shared and its own.
  Semaphore own_memory_;
  Scope requests_;
  Scope helpers_;
  Op handshake_timer_;
  Op hurry_timer_;
  Op linger_timer_;
  std::shared_ptr<Entrance> disk_;
  std::shared_ptr<ExportCounts> counts_;
  Terms terms_;
  Contexts contexts_;
  std::function<bool()> leave_open_;
  bool shaken_ = false;  ///< The handshake is over, however it ended.
  bool transmitting_ = false;
  bool timed_out_ = false;
  bool stopping_ = false;
  bool ended_ = false;
};

}  // namespace byre::nbd
