// SPDX-License-Identifier: Apache-2.0
/// A server's bytes against the client, in the simulator: the whole conversation is the input, or,
/// behind a first byte of 1, what comes after a handshake that is as it should be.  Requests end,
/// with a value or an error; a read that succeeds was filled by the server.
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

Task<void> talk(SimReactor& reactor, int fd, Text said) {
  Socket socket(reactor, fd);
  (void)co_await socket.send_all(said).result();
  SimSocket::hang_up(reactor, fd);
}

Task<void> read(NbdClient& client, uint64_t offset) {
  std::vector<std::byte> data(4096, std::byte{0xee});
  (void)co_await client.read(offset, data, IoTag::none).result();
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

Task<void> use(SimReactor& reactor, Text said) {
  Scope scope(reactor.ready());
  int end = -1;
  ClientOptions options{.server = {.host = "fuzz", .port = 1, .export_name = "x"},
                        .writable = true,
                        .attempt_timeout_ns = 0};
  options.connect = [&]() -> Result<Socket> {
    if (end >= 0) return Error(Errc::io, "nobody listens");
    const auto [ours, theirs] = SimSocket::make_pair(reactor, {.seed = 1});
    end = ours;
    scope.spawn(talk(reactor, theirs, std::move(said)));
    return Socket(reactor, ours);
  };
  Result<std::unique_ptr<NbdClient>> client =
      co_await NbdClient::open(reactor, std::move(options)).result();
  if (client) {
    Scope requests(reactor.ready());
    requests.spawn(read(**client, 0));
    requests.spawn(read(**client, 65536));
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
  nbd::Text said = data[0] == 1 ? nbd::good_handshake() : nbd::Text();
  const Bytes rest = bytes_at(data + 1, size - 1);
  said.insert(said.end(), rest.begin(), rest.end());
  SimReactor reactor(1);
  (void)reactor.run(nbd::use(reactor, std::move(said)));
  return 0;
}
