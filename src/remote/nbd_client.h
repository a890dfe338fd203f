// SPDX-License-Identifier: Apache-2.0
/// NbdClient: a disk that another NBD server exports, as a Device.
///
/// The client is byre's own, over io/socket.h, and shares the wire format with the server (nbd/).
/// libnbd would bring an event loop of its own, which had to be married to the Reactor, could not
/// be run in the simulator, and would be a second implementation of the same messages.
///
///   1. A request becomes messages of at most the server's largest payload; each has a cookie by
///      which its reply finds it.  They leave through one Outbox, many in flight (kRequestsMax).
///   2. One coroutine receives: replies come in any order, data go straight into the memory of the
///      request that waits for them.
///   3. When the connection is lost, everything in flight waits for a new one, up to
///      `reconnect_delay`, and is sent again; with a delay of 0 it fails at once.  Attempts go on
///      in the background until close().
///
/// Why a write may be sent again: nobody was told that it was done.  Whoever waits for it keeps
/// overlapping requests away, or takes each sector as old or new, and the first copy wrote the same
/// bytes or nothing.  Flushes are sent again for the same reason.  What no client can make good,
/// and why the delay is 0 unless somebody asks for it:
///   * a server that is alive when the connection breaks (a network that fails) may carry out the
///     first copy late, over what was written since: NBD has no way to fence it off;
///   * a server whose host crashed has lost what was answered and not flushed.
/// The export that comes back must have the same size and offer at least what it did; otherwise,
/// and when a server breaks the protocol, every further request fails.
///
/// Invariant: a message of the server is checked before it is believed: magic numbers, cookies,
/// lengths, and that the chunks of a read cover it once and whole.  Memory is bounded by the
/// requests in flight and one Intake.
/// Offers that a server does not make: WRITE_ZEROES becomes writes of zeros (unless no_fallback),
/// TRIM nothing, FLUSH nothing (such a server promises no more than answers), FUA a flush behind
/// the request, base:allocation "all is data".
/// A request must be aligned to alignment(), the server's smallest block (whole_blocks.h).
/// Not here: names (nbd/nbd_uri.h), the handshake (nbd_connection.h), TLS.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "block/device.h"
#include "block/gives_up.h"
#include "io/socket.h"
#include "nbd/nbd_uri.h"

namespace byre::nbd {

struct ClientOptions {
  Uri server;
  bool writable = false;
  int64_t reconnect_delay_ns = 0;  ///< How long requests wait for a new connection.
  int64_t open_timeout_ns = 0;     ///< How long open() goes on trying; 0: once.
  /// What connecting and the handshake may take together; 0: for ever.
  int64_t attempt_timeout_ns = 30 * kSecond;
  /// For tests: gives a connected socket instead of connecting to `server`.
  std::function<Result<Socket>()> connect = {};
};

class NbdClient final : public Device, public GivesUp {
 public:
  static constexpr uint64_t kRequestsMax = 64;  ///< In flight.

  /// Errors name the server.
  static Task<std::unique_ptr<NbdClient>> open(Reactor& reactor, ClientOptions options);
  ~NbdClient() override;

  uint64_t size() const override;
  bool writable() const override;
  uint32_t alignment() const override;
  uint32_t preferred_size() const override;
  Capabilities capabilities() const override;
  const std::string& name() const override;
  Reactor& reactor() override;

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> flush(IoTag tag) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  /// Flushes what was written, takes its leave of the server, and ends the connection.
  Task<void> close() override;
  void abandon() override;
  /// Hangs up, and connects no more.
  void give_up() override;

  /// How often it has connected anew.
  uint64_t reconnects() const;

 private:
  class Core;
  explicit NbdClient(std::shared_ptr<Core> core);
  Task<void> check(std::string_view what, uint64_t offset, uint64_t length, bool changes) const;
  Task<void> write_zeros(uint64_t offset, uint64_t length, bool fua);
  Task<void> finish_change(bool fua, bool was_sent);

  /// Outlives this while its coroutines end (abandon()).
  const std::shared_ptr<Core> core_;
  bool closed_ = false;
};

}  // namespace byre::nbd
