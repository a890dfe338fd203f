// SPDX-License-Identifier: Apache-2.0
/// Any bytes that a client may send, to a whole session in the simulator.
///
/// The first byte says how far the client keeps to the protocol before it sends the rest: not at
/// all, up to its flags, through a handshake with simple replies, or with structured replies and
/// contexts.  Whatever it sends, the session ends when the client leaves, holds nothing afterwards,
/// and what it said in structured replies can be parsed to the last byte.
#include <cstdint>
#include <string_view>
#include <vector>

#include "block/memory.h"
#include "export/nbd_session.h"
#include "sim/sim_reactor.h"
#include "sim/sim_socket.h"

namespace byre::nbd {
namespace {

/// Small, for speed; larger than the reads that ask for extents.
constexpr uint64_t kDiskSize = 320 * KiB;

enum class Start : uint8_t { nothing, flags, simple, structured };

Text prefix(Start start) {
  Text out;
  if (start == Start::nothing) return out;
  append_client_flags(out, kClientFixedNewstyle | kClientNoZeroes);
  if (start == Start::flags) return out;
  if (start == Start::structured) {
    append_option(out, Option::structured_reply);
    const std::string_view queries[] = {kAllocationContext, kDepthContext};
    append_meta_request(out, Option::set_meta_context, "disk", queries);
  }
  append_info_request(out, Option::go, "disk", {});
  return out;
}

Task<void> keep(Session& session, bool& ended) {
  const Result<void> result = co_await session.run().result();
  ended = true;
}

Task<void> talk(Socket& socket, Bytes bytes) {
  const Result<void> ignored = co_await socket.send_all(bytes).result();
}

Task<void> listen(Socket& socket, Text& heard) {
  std::vector<std::byte> into(4096);
  for (;;) {
    const Result<size_t> got = co_await socket.receive_some(into).result();
    if (!got || *got == 0) co_return;
    heard.insert(heard.end(), into.begin(), into.begin() + static_cast<ptrdiff_t>(*got));
  }
}

/// Everything after a structured handshake is whole messages that parse.
void check_replies(Bytes heard) {
  BYRE_ASSERT(parse_greeting(heard));
  heard = heard.subspan(sizeof(GreetingWire));
  for (int acks = 0; acks < 3;) {
    const auto header = parse_option_reply_header(heard);
    BYRE_ASSERT(header && !is_error(header->type));
    acks += header->type == OptionReply::ack;
    heard = heard.subspan(sizeof(OptionReplyWire) + header->length);
  }
  while (!heard.empty()) {
    const auto header = parse_reply_header(heard);
    BYRE_ASSERT(header);
    if (std::holds_alternative<SimpleReply>(*header)) {
      heard = heard.subspan(sizeof(SimpleReplyWire));
      continue;
    }
    const auto& chunk = std::get<ChunkHeader>(*header);
    heard = heard.subspan(sizeof(ChunkWire));
    BYRE_ASSERT(chunk.length <= heard.size() && parse_chunk(chunk, heard.first(chunk.length)));
    heard = heard.subspan(chunk.length);
  }
}

void run_until_idle(SimReactor& reactor) {
  SimReactor::Step made;
  do {
    made = reactor.step();
    BYRE_ASSERT(made != SimReactor::Step::limit);
  } while (made != SimReactor::Step::idle);
}

void fuzz(Start start, uint64_t seed, Bytes bytes) {
  SimReactor reactor(seed);
  MemoryDevice disk(reactor, kDiskSize);
  disk.fixed = true;
  disk.poke(64 * KiB, bytes_of(std::string_view("something that is not zero")));
  Exports exports;
  BYRE_ASSERT(exports.add({.name = "disk", .disk = Entrance::to(disk), .writable = true}, true));
  BYRE_ASSERT(
      exports.add({.name = "frozen", .description = "no writes", .disk = Entrance::to(disk)}));
  Statistics statistics;
  Semaphore memory(reactor.ready(), kPayloadMax);
  Session::Shared shared{exports, statistics, memory, {}};
  const SessionLimits limits{.handshake_timeout_ns = 0, .linger_timeout_ns = 0, .requests_max = 4};

  const auto [near, far] = SimSocket::make_pair(reactor, {.seed = seed});
  Session session(reactor, Socket(reactor, near), shared, limits, {});
  Socket socket(reactor, far);
  Text said = prefix(start);
  said.insert(said.end(), bytes.begin(), bytes.end());
  Text heard;
  Scope scope(reactor.ready());
  bool ended = false;
  scope.spawn(keep(session, ended));
  scope.spawn(talk(socket, said));
  scope.spawn(listen(socket, heard));
  run_until_idle(reactor);
  if (start == Start::structured) check_replies(heard);

  SimSocket::hang_up(reactor, far);
  run_until_idle(reactor);
  BYRE_ASSERT(ended);
  if (scope.running() != 0) SimSocket::hang_up(reactor, near);  // The session hung up in silence.
  run_until_idle(reactor);
  BYRE_ASSERT(scope.running() == 0);
  BYRE_ASSERT(memory.free() == memory.total() && statistics.requests_running == 0);
  BYRE_ASSERT(disk.size() == kDiskSize);
}

}  // namespace
}  // namespace byre::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > 65536) return 0;
  const auto start = static_cast<byre::nbd::Start>(data[0] & 3);
  byre::nbd::fuzz(start, data[0] >> 2, byre::bytes_at(data + 1, size - 1));
  return 0;
}
