// SPDX-License-Identifier: Apache-2.0
/// Any bytes through every parser of the protocol; what was accepted is written again and must come
/// out as it went in.
#include <cstdint>
#include <cstdlib>

#include "base/assert.h"
#include "nbd/nbd_wire.h"

namespace byre::nbd {
namespace {

constexpr size_t kOptionPayload = sizeof(OptionWire);
constexpr size_t kReplyPayload = sizeof(OptionReplyWire);

void same(const Text& written, Bytes given) { BYRE_ASSERT(equal(written, given)); }

/// The payload of a message that append_* wrote with its header.
Bytes payload_of(const Text& message, size_t header) { return Bytes(message).subspan(header); }

void fuzz_client(Bytes bytes) {
  if (const auto flags = parse_client_flags(bytes)) {
    Text out;
    append_client_flags(out, *flags);
    same(out, bytes.first(4));
  }
  if (const auto header = parse_option_header(bytes)) {
    const Bytes rest = bytes.subspan(sizeof(OptionWire));
    if (header->length <= rest.size()) {
      Text out;
      append_option(out, header->option, rest.first(header->length));
      same(out, bytes.first(out.size()));
    }
  }
  if (const auto request = parse_info_request(bytes)) {
    std::vector<Info> wanted;
    for (const Info info : {Info::export_, Info::name, Info::description, Info::block_size}) {
      if (request->wants(info)) wanted.push_back(info);
    }
    Text out;
    append_info_request(out, Option::go, request->name, wanted);
    const auto again = parse_info_request(payload_of(out, kOptionPayload));
    BYRE_ASSERT(again && again->name == request->name && again->wanted == request->wanted);
  }
  if (const auto request = parse_meta_request(bytes)) {
    Text out;
    append_meta_request(out, Option::set_meta_context, request->name, request->queries);
    same(Text(payload_of(out, kOptionPayload).begin(), payload_of(out, kOptionPayload).end()),
         bytes);
  }
  if (const auto request = parse_request(bytes)) {
    BYRE_ASSERT(equal(bytes_of(make_request(*request)), bytes.first(sizeof(RequestWire))));
    for (const uint16_t flags : {uint16_t{0}, uint16_t{kHasFlags | kReadOnly},
                                 uint16_t{kSendFua | kSendDf | kSendFastZero}}) {
      Terms terms{.size = 1 << 20, .flags = flags};
      terms.structured = terms.contexts = (flags & kSendDf) != 0;
      const Status status = check(*request, terms);
      if (status == Status::ok && request->command != Command::disconnect)
        BYRE_ASSERT(request->offset <= terms.size &&
                    request->length <= terms.size - request->offset);
    }
  }
}

void fuzz_server(Bytes bytes) {
  if (const auto flags = parse_greeting(bytes)) {
    Text out;
    append_greeting(out, *flags);
    same(out, bytes.first(sizeof(GreetingWire)));
  }
  if (const auto header = parse_option_reply_header(bytes)) {
    const Bytes rest = bytes.subspan(sizeof(OptionReplyWire));
    if (header->length <= rest.size()) {
      Text out;
      append_reply(out, header->option, header->type, rest.first(header->length));
      same(out, bytes.first(out.size()));
    }
  }
  if (const auto info = parse_info_reply(bytes)) {
    Text out;
    std::visit(
        [&](const auto& known) {
          if constexpr (!std::is_same_v<std::remove_cvref_t<decltype(known)>, UnknownInfo>)
            append_info(out, Option::go, known);
        },
        *info);
    if (!out.empty()) BYRE_ASSERT(equal(payload_of(out, kReplyPayload), bytes));
  }
  if (const auto server = parse_server_reply(bytes)) {
    Text out;
    append_server_reply(out, server->name, server->description);
    BYRE_ASSERT(equal(payload_of(out, kReplyPayload), bytes));
  }
  if (const auto context = parse_meta_context_reply(bytes)) {
    Text out;
    append_meta_context(out, Option::list_meta_context, *context);
    BYRE_ASSERT(equal(payload_of(out, kReplyPayload), bytes));
  }
  if (const auto info = parse_export(bytes)) {
    Text out;
    append_export(out, *info, false);
    same(out, bytes);
  }
  const auto header = parse_reply_header(bytes);
  if (!header || !std::holds_alternative<ChunkHeader>(*header)) return;
  const auto& chunk = std::get<ChunkHeader>(*header);
  const Bytes rest = bytes.subspan(sizeof(ChunkWire));
  if (chunk.length > rest.size()) return;
  const auto body = parse_chunk(chunk, rest.first(chunk.length));
  if (!body) return;
  if (const auto* data = std::get_if<DataChunk>(&*body))
    BYRE_ASSERT(data->data.size() + sizeof(be64) == chunk.length);
  if (const auto* error = std::get_if<ErrorChunk>(&*body))
    BYRE_ASSERT(bool(error_of(error->error, error->message)));
  if (const auto* status = std::get_if<StatusChunk>(&*body)) {
    uint64_t sum = 0;
    for (const DescriptorWire& descriptor : status->descriptors) sum += descriptor.length;
    BYRE_ASSERT(sum > 0);
  }
}

}  // namespace
}  // namespace byre::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A copy of exactly this size, so that the sanitizer sees any read beyond it.
  const byre::Bytes given = byre::bytes_at(data, size);
  const byre::nbd::Text copy(given.begin(), given.end());
  byre::nbd::fuzz_client(copy);
  byre::nbd::fuzz_server(copy);
  return 0;
}
