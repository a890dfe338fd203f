// SPDX-License-Identifier: Apache-2.0
/// Connection: one connection to an export of another NBD server, ready for requests.
///
/// The handshake asks for structured replies and for the context base:allocation, then attaches
/// with NBD_OPT_GO; a server that does not know GO is attached to by NBD_OPT_EXPORT_NAME.  What the
/// server did not say has the defaults of the specification ("Block size constraints").
/// Invariant: `terms` are sound: block sizes are powers of two where they must be, the largest
/// payload is a multiple of the smallest block and at most kPayloadMax.
/// Cost: the Intake's buffer while it lives.
/// Not here: requests and their replies, connecting again (nbd_client.h), TLS.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "io/socket.h"
#include "nbd/nbd_stream.h"
#include "nbd/nbd_uri.h"
#include "nbd/nbd_wire.h"

namespace byre::nbd {

/// What a server offers.
struct ExportTerms {
  uint64_t size = 0;
  uint16_t flags = 0;  ///< Transmission flags.
  uint32_t block_min = 1;
  uint32_t block_preferred = 4096;
  uint32_t payload_max = kPayloadMax;
  bool structured = false;
  std::optional<uint32_t> allocation;  ///< The number of the context base:allocation.

  bool has(uint16_t flag) const { return (flags & flag) != 0; }
};

class Connection {
 public:
  Connection(Reactor& reactor, Socket connected)
      : socket(std::move(connected)), intake(socket), outbox(socket, reactor.ready()) {}
  Connection(const Connection&) = delete;

  /// Ends with an error that says what the server refused, or how it broke the protocol.
  Task<void> attach(std::string export_name);

  Socket socket;
  Intake intake;
  Outbox outbox;
  ExportTerms terms;
};

}  // namespace byre::nbd
