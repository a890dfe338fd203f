// SPDX-License-Identifier: Apache-2.0
#include "remote/nbd_negotiation.h"

#include <cerrno>

namespace byre::nbd {

Error Negotiation::ended() {
  return Error(Errc::io, "the server hung up during the handshake", ECONNRESET);
}

Task<void> Negotiation::greet() {
  if (!co_await intake_.need(sizeof(GreetingWire))) co_await fail(ended());
  const uint16_t flags = co_await parse_greeting(intake_.have());
  intake_.take(sizeof(GreetingWire));
  if ((flags & kHandshakeFixedNewstyle) == 0) {
    co_await fail(unsupported("NBD: the server is too old: it does not speak fixed newstyle"));
  }
  has_export_zeroes_ = (flags & kHandshakeNoZeroes) == 0;
  Text out;
  append_client_flags(out, kClientFixedNewstyle | (has_export_zeroes_ ? 0 : kClientNoZeroes));
  co_await ask(std::move(out));
}

Task<OptionReply> Negotiation::next_reply() {
  if (!co_await intake_.need(sizeof(OptionReplyWire))) co_return ended();
  const OptionReplyHeader header = co_await parse_option_reply_header(intake_.have());
  intake_.take(sizeof(OptionReplyWire));
  if (header.length > Intake::kCapacity) {
    co_return invalid("NBD: a reply of ", header.length, " bytes in the handshake");
  }
  if (!co_await intake_.need(header.length)) co_return ended();
  const Bytes payload = intake_.have().first(header.length);
  payload_.assign(payload.begin(), payload.end());
  intake_.take(header.length);
  co_return header.type;
}

Task<OptionReply> Negotiation::final_reply() {
  for (;;) {
    const OptionReply type = co_await next_reply();
    if (type == OptionReply::ack || is_error(type)) co_return type;
  }
}

}  // namespace byre::nbd
