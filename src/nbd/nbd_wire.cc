// SPDX-License-Identifier: Apache-2.0
#include "nbd/nbd_wire.h"

#include <cerrno>

#include "base/checked.h"

namespace byre::nbd {

namespace {

Error bad(std::string_view what) { return invalid("NBD: ", what); }

/// Takes big-endian integers and counted strings from the front of a payload.
class Cursor {
 public:
  explicit Cursor(Bytes bytes) : bytes_(bytes) {}
  size_t left() const { return bytes_.size(); }

  template <class Int>
  std::optional<Int> integer() {
    if (left() < sizeof(Int)) return std::nullopt;
    const Int value = load_be<Int>(bytes_);
    bytes_ = bytes_.subspan(sizeof(Int));
    return value;
  }
  std::optional<Bytes> bytes(size_t count) {
    if (left() < count) return std::nullopt;
    const Bytes taken = bytes_.first(count);
    bytes_ = bytes_.subspan(count);
    return taken;
  }
  /// 32 bits of length, then that many bytes.
  Result<std::string_view> text() {
    const std::optional<uint32_t> length = integer<uint32_t>();
    if (!length) return bad("a string without its length");
    const std::optional<Bytes> found = bytes(*length);
    if (!found) return bad("a string passes the end of its message");
    if (*length > kStringMax) return bad("a string of more than 4096 bytes");
    return text_of(*found);
  }
  Bytes rest() { return *bytes(left()); }

 private:
  Bytes bytes_;
};

void append(Text& out, Bytes bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }
template <class T>
void append_wire(Text& out, const T& message) {
  append(out, bytes_of(message));
}
void append_text(Text& out, std::string_view text) {
  append_wire(out, be32(static_cast<uint32_t>(text.size())));
  append(out, bytes_of(text));
}
void append_reply_header(Text& out, Option option, OptionReply type, size_t length) {
  append_wire(out, OptionReplyWire{.magic = kOptionReplyMagic,
                                   .option = static_cast<uint32_t>(option),
                                   .type = static_cast<uint32_t>(type),
                                   .length = static_cast<uint32_t>(length)});
}
void append_info_header(Text& out, Option option, Info info, size_t length) {
  append_reply_header(out, option, OptionReply::info, sizeof(be16) + length);
  append_wire(out, be16(static_cast<uint16_t>(info)));
}

ChunkWire make_chunk(uint64_t cookie, ChunkType type, uint32_t length, bool done) {
  return {.magic = kChunkMagic,
          .flags = done ? kChunkDone : uint16_t{0},
          .type = static_cast<uint16_t>(type),
          .cookie = cookie,
          .length = length};
}

}  // namespace

Status status_of(const Error& error) {
  switch (error.sys_errno()) {
    case EPERM:
    case EACCES:
    case EROFS:
      return Status::eperm;
    case ENOMEM:
      return Status::enomem;
    case EINVAL:
      return Status::einval;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return Status::enospc;
    case EOVERFLOW:
      return Status::eoverflow;
    case EOPNOTSUPP:  // On Linux the same number as ENOTSUP.
      return Status::enotsup;
    case ESHUTDOWN:
      return Status::eshutdown;
    default:
      return Status::eio;
  }
}

std::string_view describe(Status status) {
  switch (status) {
    case Status::ok:
      return "success";
    case Status::eperm:
      return "operation not permitted";
    case Status::eio:
      return "input/output error";
    case Status::enomem:
      return "out of memory";
    case Status::einval:
      return "invalid request";
    case Status::enospc:
      return "no space left on device";
    case Status::eoverflow:
      return "request too large";
    case Status::enotsup:
      return "operation not supported";
    case Status::eshutdown:
      return "server is shutting down";
  }
  return "unknown error";
}

Error error_of(uint32_t number, std::string_view message) {
  int errno_value = EINVAL;
  switch (static_cast<Status>(number)) {
    case Status::eperm:
      errno_value = EPERM;
      break;
    case Status::eio:
      errno_value = EIO;
      break;
    case Status::enomem:
      errno_value = ENOMEM;
      break;
    case Status::enospc:
      errno_value = ENOSPC;
      break;
    case Status::eoverflow:
      errno_value = EOVERFLOW;
      break;
    case Status::enotsup:
      errno_value = ENOTSUP;
      break;
    case Status::eshutdown:
      errno_value = ESHUTDOWN;
      break;
    case Status::ok:
    case Status::einval:
      break;
  }
  if (message.empty()) return errno_error(errno_value, "NBD server");
  return errno_error(errno_value, cat("NBD server: ", byre::quoted(message)));
}

// ---- Handshake: what the client says ----------------------------------------------------------

void append_client_flags(Text& out, uint32_t flags) { append_wire(out, be32(flags)); }

void append_option(Text& out, Option option, Bytes payload) {
  append_wire(out, OptionWire{.magic = kOptionMagic,
                              .option = static_cast<uint32_t>(option),
                              .length = static_cast<uint32_t>(payload.size())});
  append(out, payload);
}

void append_info_request(Text& out, Option option, std::string_view name,
                         std::span<const Info> wanted) {
  Text payload;
  append_text(payload, name);
  append_wire(payload, be16(static_cast<uint16_t>(wanted.size())));
  for (const Info info : wanted) append_wire(payload, be16(static_cast<uint16_t>(info)));
  append_option(out, option, payload);
}

void append_meta_request(Text& out, Option option, std::string_view name,
                         std::span<const std::string_view> queries) {
  Text payload;
  append_text(payload, name);
  append_wire(payload, be32(static_cast<uint32_t>(queries.size())));
  for (const std::string_view query : queries) append_text(payload, query);
  append_option(out, option, payload);
}

Result<uint32_t> parse_client_flags(Bytes bytes) {
  if (bytes.size() < sizeof(be32)) return bad("the client's flags are cut short");
  const auto flags = load_be<uint32_t>(bytes);
  if ((flags & ~(kClientFixedNewstyle | kClientNoZeroes)) != 0)
    return bad(cat("the client set unknown flags ", hex(flags)));
  return flags;
}

Result<OptionHeader> parse_option_header(Bytes bytes) {
  const auto* wire = view_as<OptionWire>(bytes);
  if (!wire) return bad("an option is cut short");
  if (wire->magic != kOptionMagic) return bad("an option does not start with IHAVEOPT");
  return OptionHeader{.option = static_cast<Option>(uint32_t{wire->option}),
                      .length = wire->length};
}

Result<InfoRequest> parse_info_request(Bytes payload) {
  Cursor cursor(payload);
  BYRE_TRY(name, cursor.text());
  InfoRequest request{.name = name};
  const std::optional<uint16_t> count = cursor.integer<uint16_t>();
  if (!count) return bad("the number of information requests is missing");
  if (cursor.left() != size_t{*count} * sizeof(be16))
    return bad(cat(*count, " information requests in ", cursor.left(), " bytes"));
  while (const std::optional<uint16_t> type = cursor.integer<uint16_t>()) {
    if (*type <= static_cast<uint16_t>(Info::block_size)) request.wanted |= 1u << *type;
  }
  return request;
}

Result<MetaRequest> parse_meta_request(Bytes payload) {
  Cursor cursor(payload);
  BYRE_TRY(name, cursor.text());
  MetaRequest request{.name = name, .queries = {}};
  const std::optional<uint32_t> count = cursor.integer<uint32_t>();
  if (!count) return bad("the number of queries is missing");
  // Each takes four bytes at least, so this bounds what is reserved by what was sent.
  if (*count > cursor.left() / sizeof(be32))
    return bad(cat(*count, " queries in ", cursor.left(), " bytes"));
  request.queries.reserve(*count);
  for (uint32_t i = 0; i < *count; ++i) {
    BYRE_TRY(query, cursor.text());
    request.queries.push_back(query);
  }
  if (cursor.left() != 0) return bad("bytes left after the last query");
  return request;
}

// ---- Handshake: what the server says ----------------------------------------------------------

void append_greeting(Text& out, uint16_t flags) {
  append_wire(out,
              GreetingWire{.magic = kGreetingMagic, .option_magic = kOptionMagic, .flags = flags});
}

void append_reply(Text& out, Option option, OptionReply type, Bytes payload) {
  append_reply_header(out, option, type, payload.size());
  append(out, payload);
}

void append_reply(Text& out, Option option, OptionReply type, std::string_view message) {
  append_reply(out, option, type, bytes_of(message.substr(0, kStringMax)));
}

void append_server_reply(Text& out, std::string_view name, std::string_view description) {
  append_reply_header(out, Option::list, OptionReply::server,
                      sizeof(be32) + name.size() + description.size());
  append_text(out, name);
  append(out, bytes_of(description));
}

void append_info(Text& out, Option option, const ExportInfo& info) {
  append_info_header(out, option, Info::export_, sizeof(ExportWire));
  append_wire(out, ExportWire{.size = info.size, .flags = info.flags});
}

void append_info(Text& out, Option option, const BlockSizeInfo& info) {
  append_info_header(out, option, Info::block_size, 3 * sizeof(be32));
  append_wire(out, be32(info.minimum));
  append_wire(out, be32(info.preferred));
  append_wire(out, be32(info.maximum));
}

void append_info(Text& out, Option option, const NameInfo& info) {
  append_info_header(out, option, Info::name, info.name.size());
  append(out, bytes_of(info.name));
}

void append_info(Text& out, Option option, const DescriptionInfo& info) {
  append_info_header(out, option, Info::description, info.description.size());
  append(out, bytes_of(info.description));
}

void append_meta_context(Text& out, Option option, const MetaContextReply& context) {
  append_reply_header(out, option, OptionReply::meta_context, sizeof(be32) + context.name.size());
  append_wire(out, be32(context.id));
  append(out, bytes_of(context.name));
}

void append_export(Text& out, const ExportInfo& info, bool zeroes) {
  append_wire(out, ExportWire{.size = info.size, .flags = info.flags});
  if (zeroes) out.resize(out.size() + kExportZeroes);
}

Result<uint16_t> parse_greeting(Bytes bytes) {
  const auto* wire = view_as<GreetingWire>(bytes);
  if (!wire) return bad("the greeting is cut short");
  if (wire->magic != kGreetingMagic) return bad("this is no NBD server");
  if (wire->option_magic == kOldstyleMagic)
    return unsupported("NBD: the server speaks the oldstyle protocol only");
  if (wire->option_magic != kOptionMagic) return bad("the greeting has the wrong magic number");
  return uint16_t{wire->flags};
}

Result<OptionReplyHeader> parse_option_reply_header(Bytes bytes) {
  const auto* wire = view_as<OptionReplyWire>(bytes);
  if (!wire) return bad("an option reply is cut short");
  if (wire->magic != kOptionReplyMagic) return bad("an option reply has the wrong magic number");
  return OptionReplyHeader{.option = static_cast<Option>(uint32_t{wire->option}),
                           .type = static_cast<OptionReply>(uint32_t{wire->type}),
                           .length = wire->length};
}

Result<InfoReply> parse_info_reply(Bytes payload) {
  Cursor cursor(payload);
  const std::optional<uint16_t> type = cursor.integer<uint16_t>();
  if (!type) return bad("an information reply without a type");
  switch (static_cast<Info>(*type)) {
    case Info::export_: {
      BYRE_TRY(info, parse_export(cursor.rest()));
      return InfoReply(info);
    }
    case Info::name: {
      const Bytes name = cursor.rest();
      if (name.size() > kStringMax) return bad("an export name of more than 4096 bytes");
      return InfoReply(NameInfo{text_of(name)});
    }
    case Info::description: {
      const Bytes description = cursor.rest();
      if (description.size() > kStringMax) return bad("a description of more than 4096 bytes");
      return InfoReply(DescriptionInfo{text_of(description)});
    }
    case Info::block_size: {
      if (cursor.left() != 3 * sizeof(be32)) return bad("block sizes of a wrong length");
      const uint32_t minimum = *cursor.integer<uint32_t>();
      const uint32_t preferred = *cursor.integer<uint32_t>();
      const uint32_t maximum = *cursor.integer<uint32_t>();
      const bool sound = std::has_single_bit(minimum) && minimum <= 64 * KiB &&
                         std::has_single_bit(preferred) && preferred >= minimum &&
                         (maximum == UINT32_MAX || maximum % minimum == 0) && maximum >= minimum;
      if (!sound)
        return bad(cat("block sizes ", minimum, ", ", preferred, ", ", maximum, " make no sense"));
      return InfoReply(BlockSizeInfo{minimum, preferred, maximum});
    }
  }
  return InfoReply(UnknownInfo{});
}

Result<ServerReply> parse_server_reply(Bytes payload) {
  Cursor cursor(payload);
  BYRE_TRY(name, cursor.text());
  if (cursor.left() > kStringMax) return bad("a description of more than 4096 bytes");
  return ServerReply{.name = name, .description = text_of(cursor.rest())};
}

Result<MetaContextReply> parse_meta_context_reply(Bytes payload) {
  Cursor cursor(payload);
  const std::optional<uint32_t> id = cursor.integer<uint32_t>();
  if (!id) return bad("a metadata context without its number");
  if (cursor.left() > kStringMax) return bad("a metadata context of more than 4096 bytes");
  return MetaContextReply{.id = *id, .name = text_of(cursor.rest())};
}

Result<ExportInfo> parse_export(Bytes bytes) {
  if (bytes.size() != sizeof(ExportWire)) return bad("export information of a wrong length");
  const auto* wire = view_as<ExportWire>(bytes);
  if ((wire->flags & kHasFlags) == 0) return bad("the export's flags lack HAS_FLAGS");
  return ExportInfo{.size = wire->size, .flags = wire->flags};
}

// ---- Transmission: what the client says -------------------------------------------------------

RequestWire make_request(const Request& request) {
  return {.magic = kRequestMagic,
          .flags = request.flags,
          .command = static_cast<uint16_t>(request.command),
          .cookie = request.cookie,
          .offset = request.offset,
          .length = request.length};
}

Result<Request> parse_request(Bytes bytes) {
  const auto* wire = view_as<RequestWire>(bytes);
  if (!wire) return bad("a request is cut short");
  if (wire->magic != kRequestMagic)
    return bad(cat("a request starts with ", hex(uint32_t{wire->magic})));
  return Request{.flags = wire->flags,
                 .command = static_cast<Command>(uint16_t{wire->command}),
                 .cookie = wire->cookie,
                 .offset = wire->offset,
                 .length = wire->length};
}

Status check(const Request& request, const Terms& terms) {
  uint16_t allowed = (terms.flags & kSendFua) != 0 ? kFua : uint16_t{0};
  bool writes = false;
  bool payload = false;
  Status beyond_end = Status::einval;
  switch (request.command) {
    case Command::read:
      if ((terms.flags & kSendDf) != 0) allowed |= kDf;
      payload = true;
      break;
    case Command::write:
      writes = payload = true;
      beyond_end = Status::enospc;
      break;
    case Command::disconnect:
      return Status::ok;  // There is no answer that could carry an error.
    case Command::flush:
      if (request.offset != 0 || request.length != 0) return Status::einval;
      break;
    case Command::trim:
      writes = true;
      break;
    case Command::cache:
      break;
    case Command::write_zeroes:
      writes = true;
      beyond_end = Status::enospc;
      allowed |= kNoHole;
      if ((terms.flags & kSendFastZero) != 0) allowed |= kFastZero;
      break;
    case Command::block_status:
      if (!terms.structured || !terms.contexts || request.length == 0) return Status::einval;
      allowed |= kRequestOne;
      break;
    default:
      return Status::einval;
  }
  if ((request.flags & ~allowed) != 0) return Status::einval;
  if (writes && (terms.flags & kReadOnly) != 0) return Status::eperm;
  if (!within(request.offset, request.length, terms.size)) return beyond_end;
  if (request.offset % terms.alignment != 0 || request.length % terms.alignment != 0)
    return Status::einval;
  if (payload && request.length > terms.payload_max)
    return request.has(kDf) ? Status::eoverflow : Status::einval;
  return Status::ok;
}

// ---- Transmission: what the server says -------------------------------------------------------

SimpleReplyWire make_simple_reply(uint64_t cookie, Status status) {
  return {.magic = kSimpleReplyMagic, .error = static_cast<uint32_t>(status), .cookie = cookie};
}

ChunkWire make_done(uint64_t cookie) { return make_chunk(cookie, ChunkType::none, 0, true); }

DataChunkWire make_data_chunk(uint64_t cookie, uint64_t offset, uint32_t length, bool done) {
  const auto payload = static_cast<uint32_t>(sizeof(be64) + length);
  return {.chunk = make_chunk(cookie, ChunkType::offset_data, payload, done), .offset = offset};
}

HoleChunkWire make_hole_chunk(uint64_t cookie, uint64_t offset, uint32_t length, bool done) {
  constexpr uint32_t kPayload = sizeof(HoleChunkWire) - sizeof(ChunkWire);
  return {.chunk = make_chunk(cookie, ChunkType::offset_hole, kPayload, done),
          .offset = offset,
          .length = length};
}

ErrorChunkWire make_error_chunk(uint64_t cookie, Status status, uint16_t message_length) {
  const auto payload =
      static_cast<uint32_t>(sizeof(ErrorChunkWire) - sizeof(ChunkWire) + message_length);
  return {.chunk = make_chunk(cookie, ChunkType::error, payload, true),
          .error = static_cast<uint32_t>(status),
          .message_length = message_length};
}

ErrorChunkWire make_error_offset_chunk(uint64_t cookie, Status status, uint16_t message_length) {
  const auto payload = static_cast<uint32_t>(sizeof(ErrorChunkWire) - sizeof(ChunkWire) +
                                             message_length + sizeof(be64));
  return {.chunk = make_chunk(cookie, ChunkType::error_offset, payload, true),
          .error = static_cast<uint32_t>(status),
          .message_length = message_length};
}

StatusChunkWire make_status_chunk(uint64_t cookie, uint32_t context, uint32_t count, bool done) {
  const auto payload = static_cast<uint32_t>(sizeof(be32) + count * sizeof(DescriptorWire));
  return {.chunk = make_chunk(cookie, ChunkType::block_status, payload, done), .context = context};
}

Result<size_t> reply_header_size(Bytes first) {
  if (first.size() < sizeof(be32)) return bad("a reply is cut short");
  const auto magic = load_be<uint32_t>(first);
  if (magic == kSimpleReplyMagic) return sizeof(SimpleReplyWire);
  if (magic == kChunkMagic) return sizeof(ChunkWire);
  return bad(cat("a reply starts with ", hex(magic)));
}

Result<ReplyHeader> parse_reply_header(Bytes bytes) {
  BYRE_TRY(size, reply_header_size(bytes));
  if (bytes.size() < size) return bad("a reply is cut short");
  if (size == sizeof(SimpleReplyWire)) {
    const auto* wire = view_as<SimpleReplyWire>(bytes);
    return ReplyHeader(SimpleReply{.error = wire->error, .cookie = wire->cookie});
  }
  const auto* wire = view_as<ChunkWire>(bytes);
  const ChunkHeader header{.flags = wire->flags,
                           .type = static_cast<ChunkType>(uint16_t{wire->type}),
                           .cookie = wire->cookie,
                           .length = wire->length};
  return ReplyHeader(header);
}

namespace {

Result<Chunk> parse_error_chunk(const ChunkHeader& header, Bytes payload) {
  Cursor cursor(payload);
  const std::optional<uint32_t> number = cursor.integer<uint32_t>();
  const std::optional<uint16_t> message_length = cursor.integer<uint16_t>();
  if (!number || !message_length) return bad("an error chunk is cut short");
  if (*number == 0) return bad("an error chunk says that there is no error");
  const std::optional<Bytes> message = cursor.bytes(*message_length);
  if (!message) return bad("an error chunk's message passes its end");
  ErrorChunk error{.error = *number, .message = text_of(*message), .offset = std::nullopt};
  if (header.type == ChunkType::error_offset) {
    error.offset = cursor.integer<uint64_t>();
    if (!error.offset) return bad("an error chunk's offset is missing");
  }
  return Chunk(error);  // What may follow belongs to types of the future.
}

}  // namespace

Result<Chunk> parse_chunk(const ChunkHeader& header, Bytes payload) {
  if (payload.size() != header.length) return bad("a chunk is cut short");
  if (is_error(header.type)) return parse_error_chunk(header, payload);
  Cursor cursor(payload);
  switch (header.type) {
    case ChunkType::none:
      if (header.length != 0 || !header.done()) return bad("an empty chunk that is not the last");
      return Chunk(NoneChunk{});
    case ChunkType::offset_data: {
      if (header.length <= sizeof(be64)) return bad("a data chunk without data");
      const uint64_t offset = *cursor.integer<uint64_t>();
      return Chunk(DataChunk{.offset = offset, .data = cursor.rest()});
    }
    case ChunkType::offset_hole: {
      if (header.length != sizeof(be64) + sizeof(be32)) return bad("a hole chunk of wrong length");
      const uint64_t offset = *cursor.integer<uint64_t>();
      const uint32_t length = *cursor.integer<uint32_t>();
      if (length == 0) return bad("a hole of no length");
      return Chunk(HoleChunk{.offset = offset, .length = length});
    }
    case ChunkType::block_status: {
      const std::optional<uint32_t> context = cursor.integer<uint32_t>();
      if (!context || cursor.left() == 0 || cursor.left() % sizeof(DescriptorWire) != 0)
        return bad("a block status chunk of wrong length");
      const size_t count = cursor.left() / sizeof(DescriptorWire);
      const std::span<const DescriptorWire> found(view_as<DescriptorWire>(cursor.rest()), count);
      for (const DescriptorWire& descriptor : found) {
        if (descriptor.length == 0) return bad("an extent of no length");
      }
      return Chunk(StatusChunk{.context = *context, .descriptors = found});
    }
    case ChunkType::error:
    case ChunkType::error_offset:
      break;
  }
  return bad(cat("a chunk of unknown type ", static_cast<uint16_t>(header.type)));
}

}  // namespace byre::nbd
