// SPDX-License-Identifier: Apache-2.0
/// The NBD protocol as pure functions: fixed newstyle handshake, simple and structured replies.
///
/// Both directions are here, because a server, a client and their tests speak the same words:
///   * structs of big-endian integers are the messages as they lie on the wire;
///   * `make_*` and `append_*` write a message; those that append serve the handshake, where a
///     message has many parts and no hurry;
///   * `parse_*` read one that the other side chose: any bytes give a value or an Error.
/// The specification is doc/proto.md of the NetworkBlockDevice/nbd project; a comment quotes its
/// names (NBD_OPT_GO) where ours differ by more than case.
///
/// Not spoken: oldstyle negotiation, TLS, extended headers.
/// Invariant: what a parser returned refers to the bytes it was given, never beyond them.
/// Not here: who asks what when (nbd_handshake.h), sockets (nbd_session.h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/units.h"

namespace byre::nbd {

inline constexpr uint64_t kGreetingMagic = 0x4e42444d41474943;  // "NBDMAGIC"
inline constexpr uint64_t kOptionMagic = 0x49484156454f5054;    // "IHAVEOPT"
inline constexpr uint64_t kOldstyleMagic = 0x00420281861253;
inline constexpr uint64_t kOptionReplyMagic = 0x0003e889045565a9;
inline constexpr uint32_t kRequestMagic = 0x25609513;
inline constexpr uint32_t kSimpleReplyMagic = 0x67446698;
inline constexpr uint32_t kChunkMagic = 0x668e33ef;

/// No string of the protocol is longer (spec: "Conventions").
inline constexpr size_t kStringMax = 4096;
/// What a server must take in one READ or WRITE for clients that ask for no block size
/// (spec: "Block size constraints").
inline constexpr uint32_t kPayloadMax = 32 * MiB;

// Flags.  Handshake flags are the server's first word, client flags the answer to it.
inline constexpr uint16_t kHandshakeFixedNewstyle = 1 << 0;
inline constexpr uint16_t kHandshakeNoZeroes = 1 << 1;
inline constexpr uint32_t kClientFixedNewstyle = 1 << 0;
inline constexpr uint32_t kClientNoZeroes = 1 << 1;

/// Transmission flags: what an export can do.
inline constexpr uint16_t kHasFlags = 1 << 0;
inline constexpr uint16_t kReadOnly = 1 << 1;
inline constexpr uint16_t kSendFlush = 1 << 2;
inline constexpr uint16_t kSendFua = 1 << 3;
inline constexpr uint16_t kRotational = 1 << 4;
inline constexpr uint16_t kSendTrim = 1 << 5;
inline constexpr uint16_t kSendWriteZeroes = 1 << 6;
inline constexpr uint16_t kSendDf = 1 << 7;
inline constexpr uint16_t kCanMultiConn = 1 << 8;
inline constexpr uint16_t kSendCache = 1 << 10;
inline constexpr uint16_t kSendFastZero = 1 << 11;

/// Command flags: how one request is meant.
inline constexpr uint16_t kFua = 1 << 0;
inline constexpr uint16_t kNoHole = 1 << 1;
inline constexpr uint16_t kDf = 1 << 2;  ///< Do not fragment: one content chunk at most.
inline constexpr uint16_t kRequestOne = 1 << 3;
inline constexpr uint16_t kFastZero = 1 << 4;

inline constexpr uint16_t kChunkDone = 1 << 0;

/// Flags of a base:allocation extent.
inline constexpr uint32_t kStateHole = 1 << 0;
inline constexpr uint32_t kStateZero = 1 << 1;

enum class Option : uint32_t {
  export_name = 1,
  abort = 2,
  list = 3,
  peek_export = 4,  // Withdrawn.
  starttls = 5,
  info = 6,
  go = 7,
  structured_reply = 8,
  list_meta_context = 9,
  set_meta_context = 10,
  extended_headers = 11,
};

enum class OptionReply : uint32_t {
  ack = 1,
  server = 2,
  info = 3,
  meta_context = 4,
  unsupported = 0x80000001,
  policy = 0x80000002,
  invalid = 0x80000003,
  platform = 0x80000004,
  tls_required = 0x80000005,
  unknown = 0x80000006,
  shutdown = 0x80000007,
  block_size_required = 0x80000008,
  too_big = 0x80000009,
  extended_headers_required = 0x8000000a,
};
inline bool is_error(OptionReply type) { return (static_cast<uint32_t>(type) >> 31) != 0; }

enum class Info : uint16_t { export_ = 0, name = 1, description = 2, block_size = 3 };

enum class Command : uint16_t {
  read = 0,
  write = 1,
  disconnect = 2,
  flush = 3,
  trim = 4,
  cache = 5,
  write_zeroes = 6,
  block_status = 7,
};

enum class ChunkType : uint16_t {
  none = 0,
  offset_data = 1,
  offset_hole = 2,
  block_status = 5,
  error = 0x8001,
  error_offset = 0x8002,
};
inline bool is_error(ChunkType type) { return (static_cast<uint16_t>(type) >> 15) != 0; }

/// How a request ended: the protocol's own error numbers.
enum class Status : uint32_t {
  ok = 0,
  eperm = 1,
  eio = 5,
  enomem = 12,
  einval = 22,
  enospc = 28,
  eoverflow = 75,
  enotsup = 95,
  eshutdown = 108,
};
/// What a client is told of a device's error; never `ok`.
Status status_of(const Error& error);
/// Words for people; nothing in them comes from the server's files.
std::string_view describe(Status status);
/// The client's side: the error that a reply's number means.  Unknown numbers are EINVAL (spec:
/// "Error values").
Error error_of(uint32_t number, std::string_view message);

// ---- The messages as they lie on the wire -----------------------------------------------------

struct GreetingWire {
  be64 magic;
  be64 option_magic;
  be16 flags;
};
struct OptionWire {
  be64 magic;
  be32 option;
  be32 length;
};
struct OptionReplyWire {
  be64 magic;
  be32 option;
  be32 type;
  be32 length;
};
/// The answer to NBD_OPT_EXPORT_NAME; 124 zeros follow unless both sides said they need none.
struct ExportWire {
  be64 size;
  be16 flags;
};
inline constexpr size_t kExportZeroes = 124;

struct RequestWire {
  be32 magic;
  be16 flags;
  be16 command;
  be64 cookie;
  be64 offset;
  be32 length;
};
struct SimpleReplyWire {
  be32 magic;
  be32 error;
  be64 cookie;
};
struct ChunkWire {
  be32 magic;
  be16 flags;
  be16 type;
  be64 cookie;
  be32 length;
};
struct DataChunkWire {
  ChunkWire chunk;
  be64 offset;  // The data follows.
};
struct HoleChunkWire {
  ChunkWire chunk;
  be64 offset;
  be32 length;
};
struct ErrorChunkWire {
  ChunkWire chunk;
  be32 error;
  be16 message_length;  // The message follows, then the offset in an error_offset.
};
struct StatusChunkWire {
  ChunkWire chunk;
  be32 context;  // DescriptorWires follow.
};
struct DescriptorWire {
  be32 length;
  be32 flags;
};
static_assert(sizeof(GreetingWire) == 18 && sizeof(OptionWire) == 16);
static_assert(sizeof(OptionReplyWire) == 20 && sizeof(ExportWire) == 10);
static_assert(sizeof(RequestWire) == 28 && sizeof(SimpleReplyWire) == 16);
static_assert(sizeof(ChunkWire) == 20 && sizeof(DataChunkWire) == 28);
static_assert(sizeof(HoleChunkWire) == 32 && sizeof(ErrorChunkWire) == 26);
static_assert(sizeof(StatusChunkWire) == 24 && sizeof(DescriptorWire) == 8);

// ---- Handshake: what the client says ----------------------------------------------------------

using Text = std::vector<std::byte>;  ///< A message, or several, being composed.

struct OptionHeader {
  Option option;
  uint32_t length;
};

/// NBD_OPT_INFO and NBD_OPT_GO.
struct InfoRequest {
  std::string_view name;
  uint32_t wanted = 0;  ///< A bit for each Info asked for; types that we do not know are dropped.
  bool wants(Info info) const { return (wanted >> static_cast<uint16_t>(info) & 1) != 0; }
};
/// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
struct MetaRequest {
  std::string_view name;
  std::vector<std::string_view> queries;
};

void append_client_flags(Text& out, uint32_t flags);
void append_option(Text& out, Option option, Bytes payload = {});
void append_info_request(Text& out, Option option, std::string_view name,
                         std::span<const Info> wanted);
void append_meta_request(Text& out, Option option, std::string_view name,
                         std::span<const std::string_view> queries);

/// Four bytes; an Error when the client sets a flag that no server offers.
Result<uint32_t> parse_client_flags(Bytes bytes);
Result<OptionHeader> parse_option_header(Bytes bytes);
Result<InfoRequest> parse_info_request(Bytes payload);
Result<MetaRequest> parse_meta_request(Bytes payload);

// ---- Handshake: what the server says ----------------------------------------------------------

struct OptionReplyHeader {
  Option option;
  OptionReply type;
  uint32_t length;
};
struct ExportInfo {
  uint64_t size;
  uint16_t flags;
};
struct BlockSizeInfo {
  uint32_t minimum;
  uint32_t preferred;
  uint32_t maximum;
};
struct NameInfo {
  std::string_view name;
};
struct DescriptionInfo {
  std::string_view description;
};
struct UnknownInfo {};
using InfoReply = std::variant<UnknownInfo, ExportInfo, NameInfo, DescriptionInfo, BlockSizeInfo>;
struct ServerReply {
  std::string_view name;
  std::string_view description;
};
struct MetaContextReply {
  uint32_t id;
  std::string_view name;
};

void append_greeting(Text& out, uint16_t flags);
void append_reply(Text& out, Option option, OptionReply type, Bytes payload = {});
/// For errors: `message` is for people.
void append_reply(Text& out, Option option, OptionReply type, std::string_view message);
void append_server_reply(Text& out, std::string_view name, std::string_view description);
void append_info(Text& out, Option option, const ExportInfo& info);
void append_info(Text& out, Option option, const BlockSizeInfo& info);
void append_info(Text& out, Option option, const NameInfo& info);
void append_info(Text& out, Option option, const DescriptionInfo& info);
void append_meta_context(Text& out, Option option, const MetaContextReply& context);
/// The answer to NBD_OPT_EXPORT_NAME.
void append_export(Text& out, const ExportInfo& info, bool zeroes);

/// Gives the handshake flags.
Result<uint16_t> parse_greeting(Bytes bytes);
Result<OptionReplyHeader> parse_option_reply_header(Bytes bytes);
Result<InfoReply> parse_info_reply(Bytes payload);
Result<ServerReply> parse_server_reply(Bytes payload);
Result<MetaContextReply> parse_meta_context_reply(Bytes payload);
Result<ExportInfo> parse_export(Bytes bytes);

// ---- Transmission: what the client says -------------------------------------------------------

struct Request {
  uint16_t flags = 0;
  Command command = Command::read;
  uint64_t cookie = 0;
  uint64_t offset = 0;
  uint32_t length = 0;
  bool has(uint16_t flag) const { return (flags & flag) != 0; }
};
RequestWire make_request(const Request& request);
/// Fails only when this is no request at all; then nothing that follows can be understood.
Result<Request> parse_request(Bytes bytes);

/// What the two sides agreed on, as far as it decides which requests are sound.
struct Terms {
  uint64_t size = 0;
  uint16_t flags = 0;  ///< Transmission flags.
  bool structured = false;
  bool contexts = false;  ///< At least one metadata context was selected.
  uint32_t alignment = 1;
  uint32_t payload_max = kPayloadMax;
};
/// Whether a server may carry `request` out; otherwise the status to answer it with.
Status check(const Request& request, const Terms& terms);

// ---- Transmission: what the server says -------------------------------------------------------

SimpleReplyWire make_simple_reply(uint64_t cookie, Status status);
/// A chunk without payload that ends a reply: success.
ChunkWire make_done(uint64_t cookie);
DataChunkWire make_data_chunk(uint64_t cookie, uint64_t offset, uint32_t length, bool done);
HoleChunkWire make_hole_chunk(uint64_t cookie, uint64_t offset, uint32_t length, bool done);
/// The head of an error chunk; `message_length` bytes follow.  Ends the reply.
ErrorChunkWire make_error_chunk(uint64_t cookie, Status status, uint16_t message_length);
/// The same with an offset, which follows the message as a be64.
ErrorChunkWire make_error_offset_chunk(uint64_t cookie, Status status, uint16_t message_length);
StatusChunkWire make_status_chunk(uint64_t cookie, uint32_t context, uint32_t count, bool done);

struct SimpleReply {
  uint32_t error;
  uint64_t cookie;
};
struct ChunkHeader {
  uint16_t flags;
  ChunkType type;
  uint64_t cookie;
  uint32_t length;  ///< Of the payload.
  bool done() const { return (flags & kChunkDone) != 0; }
};
using ReplyHeader = std::variant<SimpleReply, ChunkHeader>;
/// Bytes of the reply header that starts with these four.
Result<size_t> reply_header_size(Bytes first);
Result<ReplyHeader> parse_reply_header(Bytes bytes);

struct NoneChunk {};
struct DataChunk {
  uint64_t offset;
  Bytes data;
};
struct HoleChunk {
  uint64_t offset;
  uint32_t length;
};
struct StatusChunk {
  uint32_t context;
  std::span<const DescriptorWire> descriptors;
};
struct ErrorChunk {
  uint32_t error;
  std::string_view message;
  std::optional<uint64_t> offset;
};
using Chunk = std::variant<NoneChunk, DataChunk, HoleChunk, StatusChunk, ErrorChunk>;
/// An error chunk of a type that we do not know is an ErrorChunk; any other unknown type fails.
Result<Chunk> parse_chunk(const ChunkHeader& header, Bytes payload);

}  // namespace byre::nbd
