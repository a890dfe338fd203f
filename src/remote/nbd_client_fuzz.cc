// SPDX-License-Identifier: Apache-2.0
/// A server's bytes against the client, in the simulator.  The first byte is 1 when a handshake
/// that is as it should be comes first.  Then come pieces, each behind its length in two bytes,
/// which are sent with pauses between them, so that the client asks what they answer.  Requests
/// end, with a value or an error, and a read that succeeds was filled by the server.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/assert.h"
#include "coro/scope.h"
#include "nbd/nbd_wire.h"
#include "remote/nbd_client.h"
#include "sim/sim_reactor.h"
#include "sim/sim_socket.h"

namespace byre::nbd {
namespace {

constexpr uint16_t kFlags = kHasFlags | kSendFlush | kSendTrim | kSendWriteZeroes;

Text good_handshake() {
  Text out;
  append_greeting(out, kHandshakeFixedNewstyle | kHandshakeNoZeroes);
  append_reply(out, Option::structured_reply, OptionReply::ack);
  append_meta_context(out, Option::set_meta_context, {.id = 1, .name = "base:allocation"});
  append_reply(out, Option::set_meta_context, OptionReply::ack);
  append_info(out, Option::go, ExportInfo{1 * MiB, kFlags});
  append_reply(out, Option::go, OptionReply::ack);
  return out;
}

Task<void> talk(SimReactor& reactor, int fd, bool shakes_hands, Bytes pieces) {
  Socket socket(reactor, fd);
  if (shakes_hands) (void)co_await socket.send_all(good_handshake()).result();
  while (pieces.size() > sizeof(be16)) {
    const size_t size = std::min<size_t>(load_be<uint16_t>(pieces), pieces.size() - sizeof(be16));
    co_await reactor.sleep(kSecond);
    const Result<void> sent = co_await socket.send_all(pieces.subspan(sizeof(be16), size)).result();
    if (!sent) break;
    pieces = pieces.subspan(sizeof(be16) + size);
  }
  SimSocket::hang_up(reactor, fd);
}

/// In the memory of a read; a server that sends it as well is not distinguished.
constexpr std::byte kUntouched{0xee};

Task<void> read(NbdClient& client, uint64_t offset, bool server_says_it) {
  std::vector<std::byte> data(4096, kUntouched);
  const Result<void> done = co_await client.read(offset, data, IoTag::none).result();
  if (!done || server_says_it) co_return;
  for (const std::byte byte : data) BYRE_ASSERT(byte != kUntouched);
}
Task<void> change(NbdClient& client, uint64_t offset) {
  const std::vector<std::byte> data(512);
  (void)co_await client.write(offset, data, {}).result();
  (void)co_await client.zero(offset, 4096, {}).result();
  (void)co_await client.discard(offset, 4096, {}).result();
}
Task<void> ask(NbdClient& client) {
  const Result<Extent> extent = co_await client.status(4096, 65536).result();
  BYRE_ASSERT(!extent || (extent->length > 0 && extent->length <= 65536));
}

Task<void> use(SimReactor& reactor, bool shakes_hands, Bytes pieces) {
  bool has_untouched = false;
  for (const std::byte byte : pieces) has_untouched |= byte == kUntouched;
  Scope scope(reactor.ready());
  int end = -1;
  ClientOptions options{.server = {.host = "fuzz", .port = 1, .export_name = "x"},
                        .writable = true,
                        .attempt_timeout_ns = 0};
  options.connect = [&]() -> Result<Socket> {
    if (end >= 0) return Error(Errc::io, "nobody listens");
    const auto [ours, theirs] = SimSocket::make_pair(reactor, {.seed = 1});
    end = ours;
    scope.spawn(talk(reactor, theirs, shakes_hands, pieces));
    return Socket(reactor, ours);
  };
  Result<std::unique_ptr<NbdClient>> client =
      co_await NbdClient::open(reactor, std::move(options)).result();
  if (client) {
    Scope requests(reactor.ready());
    requests.spawn(read(**client, 0, has_untouched));
    requests.spawn(read(**client, 65536, has_untouched));
    requests.spawn(ask(**client));
    requests.spawn(change(**client, 8192));
    co_await requests.join();
    (void)co_await (*client)->close().result();
  }
  SimSocket::hang_up(reactor, end);
  co_await scope.join();
}

}  // namespace
}  // namespace byre::nbd

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace byre;
  if (size == 0 || size > 64 * KiB) return 0;
  SimReactor reactor(1);
  (void)reactor.run(nbd::use(reactor, data[0] == 1, bytes_at(data + 1, size - 1)));
  return 0;
}
