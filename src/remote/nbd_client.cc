// SPDX-License-Identifier: Apache-2.0
#include "remote/nbd_client.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "base/checked.h"
#include "coro/scope.h"
#include "coro/semaphore.h"
#include "remote/nbd_connection.h"
#include "remote/nbd_covered.h"

namespace byre::nbd {

namespace {

/// TRIM, WRITE_ZEROES and BLOCK_STATUS carry no payload, but 32 bits of length.
constexpr uint64_t kLengthMax = 1 * GiB;
/// Chunks that carry no data are read whole; none that we asked for needs more.
constexpr uint32_t kSmallChunkMax = 64 * KiB;
static_assert(kSmallChunkMax <= Intake::kCapacity);
constexpr uint64_t kZerosAtOnce = 2 * MiB;

// Between attempts to connect.
constexpr int64_t kPauseMin = 50 * kMillisecond;
constexpr int64_t kPauseMaxWhileWaiting = 1 * kSecond;
constexpr int64_t kPauseMax = 16 * kSecond;

Error broken(std::string_view what) { return invalid("NBD: the server ", what); }
Error hung_up() { return Error(Errc::io, "the server closed the connection", ECONNRESET); }

/// A request that waits for its reply; lives in the frame of whoever waits.
struct Call {
  Call(ReadyQueue& ready, Request asked) : request(asked), changed(ready) {}

  Request request;
  Bytes payload;      ///< Of a write.
  MutableBytes into;  ///< Of a read.
  Covered covered;    ///< What of `into` has come.
  std::optional<DescriptorWire> extent;
  Error error;
  bool ended = false;
  bool lost = false;  ///< It ended because the connection did.
  Event changed;

  void prepare(uint64_t cookie) {
    request.cookie = cookie;
    covered = Covered(into.size());
    extent.reset();
    error = Error();
    ended = lost = false;
  }
  void end() {
    ended = true;
    changed.notify();
  }
};

}  // namespace

class NbdClient::Core {
 public:
  Core(Reactor& r, ClientOptions o)
      : reactor(r),
        options(std::move(o)),
        name(options.server.text()),
        slots_(r.ready(), kRequestsMax),
        changed_(r.ready()),
        background_(r.ready()) {}

  /// The first connection.
  Task<void> open(std::shared_ptr<Core> self) {
    const Instant end = reactor.now() + options.open_timeout_ns;
    for (int64_t pause = kPauseMin;; pause = std::min(2 * pause, kPauseMaxWhileWaiting)) {
      Result<std::shared_ptr<Connection>> made = co_await attempt().result();
      if (made) {
        begin(self, *std::move(made));
        terms = link_->terms;
        break;
      }
      const int64_t left = end - reactor.now();
      if (left <= 0) co_await fail(std::move(made).error().while_doing(name));
      co_await reactor.sleep(std::min(pause, left));
    }
    background_.spawn(run(std::move(self)));
  }

  /// Sends a request and waits for its reply, over as many connections as that takes.
  Task<void> perform(Call& call) {
    const Semaphore::Hold slot = co_await slots_.acquire();
    std::optional<Instant> give_up;
    for (;;) {
      const std::shared_ptr<Connection> link = co_await connected();
      co_await send(*link, call);
      while (!call.ended) co_await call.changed.wait();
      if (!call.lost) break;
      if (!give_up) give_up = reactor.now() + options.reconnect_delay_ns;
      if (reactor.now() >= *give_up) co_await fail(lost_.copy());
    }
    if (call.error) co_await fail(std::move(call.error).while_doing(name));
  }

  /// Waits for what runs; says DISC to a server that is there.
  Task<void> close() {
    {
      const Semaphore::Hold all = co_await slots_.acquire(kRequestsMax);
    }
    closing_ = true;
    if (const std::shared_ptr<Connection> link = link_) {
      const RequestWire bye = make_request({.command = Command::disconnect});
      co_await link->outbox.put(bytes_of(bye));
      co_await link->outbox.drain();
    }
    stop();
    co_await background_.join();
  }
  /// Everything in the background ends soon.
  void stop() {
    closing_ = true;
    if (link_) link_->socket.shutdown();
    cancel_attempt();
    for (Op* timer : timers_) reactor.cancel(*timer);
    changed_.notify();
  }

  void give_up() {
    if (closing_ || broken_) return;
    broken_ = Error(Errc::io, cat(name, ": given up, as the server did not answer"), ETIMEDOUT);
    is_waiting_ = false;
    if (link_) link_->socket.shutdown();
    cancel_attempt();
    for (Op* timer : timers_) reactor.cancel(*timer);
    changed_.notify();
  }

  Reactor& reactor;
  const ClientOptions options;
  const std::string name;
  ExportTerms terms;
  bool is_dirty = false;  ///< Something was written since the last flush.
  uint64_t reconnects = 0;

 private:
  // --- Connections ---------------------------------------------------------------------------

  /// Connects and shakes hands.
  Task<std::shared_ptr<Connection>> attempt() {
    Scope watch(reactor.ready());
    Op timer{.kind = Op::Kind::timer, .deadline = reactor.now() + options.attempt_timeout_ns};
    bool timed_out = false, over = false;
    const auto hang_up = [](Core& core, Op& op, bool& late, const bool& done) -> Task<void> {
      co_await core.reactor.perform(op);
      if (done) co_return;
      late = true;
      core.cancel_attempt();
    };
    if (options.attempt_timeout_ns > 0) watch.spawn(hang_up(*this, timer, timed_out, over));
    ConnectAttempt connecting;
    connecting_ = &connecting;
    Result<std::shared_ptr<Connection>> made = co_await connect().result();
    connecting_ = nullptr;
    shaking_ = nullptr;
    over = true;
    if (watch.running() > 0) reactor.cancel(timer);
    co_await watch.join();
    if (!made && timed_out) {
      co_return Error(Errc::io, "the server does not answer", ETIMEDOUT);
    }
    co_return std::move(made);
  }
  Task<std::shared_ptr<Connection>> connect() {
    if (closing_) co_return Error(Errc::cancelled, "connect: stopped", ECANCELED);
    auto link = std::make_shared<Connection>(reactor, co_await open_socket());
    if (closing_) co_return Error(Errc::cancelled, "connect: stopped", ECANCELED);
    shaking_ = link.get();
    co_await link->attach(options.server.export_name);
    co_return link;
  }
  Task<Socket> open_socket() {
    if (options.connect) co_return options.connect();
    if (options.server.socket) {
      co_return co_await Socket::connect_unix(reactor, *options.server.socket, connecting_);
    }
    co_return co_await Socket::connect_tcp(reactor, options.server.host, options.server.port,
                                           connecting_);
  }
  void cancel_attempt() {
    if (connecting_) connecting_->cancel();
    if (shaking_) shaking_->socket.shutdown();
  }

  void begin(const std::shared_ptr<Core>& self, std::shared_ptr<Connection> link) {
    link_ = std::move(link);
    is_waiting_ = false;
    const auto send_out = [](std::shared_ptr<Core>, std::shared_ptr<Connection> to) -> Task<void> {
      co_await to->outbox.run();
    };
    background_.spawn(send_out(self, link_));
    changed_.notify();
  }

  /// One connection after the other, until close() or until there can be no more.
  static Task<void> run(std::shared_ptr<Core> core) {
    for (;;) {
      Result<void> received = co_await core->receive(*core->link_).result();
      core->disconnect(received ? hung_up() : std::move(received).error());
      if (!core->closing_ && !core->broken_) co_await core->reconnect(core);
      if (core->closing_ || core->broken_) co_return;
    }
  }

  void disconnect(Error why) {
    const std::shared_ptr<Connection> link = std::exchange(link_, nullptr);
    link->socket.shutdown();
    link->outbox.close();
    const bool broke_protocol = why.code() == Errc::invalid;
    lost_ = std::move(why).while_doing(name);
    // It would do so again.
    if (broke_protocol) broken_ = lost_.copy();
    is_waiting_ = !broken_ && options.reconnect_delay_ns > 0;
    for (const auto& [cookie, call] : std::exchange(calls_, {})) {
      call->lost = true;
      call->end();
    }
    changed_.notify();
  }

  Task<void> reconnect(std::shared_ptr<Core> self) {
    if (is_waiting_) background_.spawn(stop_waiting(self, ++losses_));
    int64_t pause = kPauseMin;
    while (!closing_ && !broken_) {
      Result<std::shared_ptr<Connection>> made = co_await attempt().result();
      if (closing_) break;
      if (made) {
        if (Result<void> same = check_same((*made)->terms); !same) {
          broken_ = std::move(same).error().while_doing(name);
          break;
        }
        ++reconnects;
        ++losses_;
        begin(self, *std::move(made));
        break;
      }
      co_await sleep(pause);
      pause = std::min(2 * pause, is_waiting_ ? kPauseMaxWhileWaiting : kPauseMax);
    }
    for (Op* timer : timers_) reactor.cancel(*timer);
    changed_.notify();
  }

  /// Requests that wait for a connection fail from then on.
  static Task<void> stop_waiting(std::shared_ptr<Core> core, uint64_t loss) {
    co_await core->sleep(core->options.reconnect_delay_ns);
    if (core->losses_ != loss) co_return;
    core->is_waiting_ = false;
    core->changed_.notify();
  }

  /// stop() ends it.
  Task<void> sleep(int64_t ns) {
    if (closing_) co_return;
    Op timer{.kind = Op::Kind::timer, .deadline = reactor.now() + ns};
    timers_.push_back(&timer);
    co_await reactor.perform(timer);
    std::erase(timers_, &timer);
  }

  /// Those above have built on what was there first.
  Result<void> check_same(const ExportTerms& now) const {
    if (now.size != terms.size) {
      return invalid("the export was ", terms.size, " bytes and came back with ", now.size);
    }
    const bool lost_right = options.writable && !terms.has(kReadOnly) && now.has(kReadOnly);
    constexpr uint16_t kOffers =
        kSendFlush | kSendFua | kSendTrim | kSendWriteZeroes | kSendFastZero;
    if (lost_right) return invalid("the export came back read-only");
    if ((terms.flags & ~now.flags & kOffers) != 0 || now.block_min > terms.block_min ||
        now.payload_max < terms.payload_max) {
      return invalid("the export came back and offers less than before");
    }
    return {};
  }

  Task<std::shared_ptr<Connection>> connected() {
    for (;;) {
      if (broken_) co_return broken_.copy();
      if (closing_) co_return Error(Errc::cancelled, cat(name, ": closed"), ECANCELED);
      if (link_) co_return link_;
      if (!is_waiting_) co_return lost_.copy();
      co_await changed_.wait();
    }
  }

  // --- Messages ------------------------------------------------------------------------------

  Task<void> send(Connection& link, Call& call) {
    call.prepare(++last_cookie_);
    calls_.emplace(call.request.cookie, &call);
    const RequestWire head = make_request(call.request);
    if (call.payload.size() <= Outbox::kCopyMax) {
      co_await link.outbox.put(bytes_of(head), call.payload);
    } else {
      co_await link.outbox.put_directly(bytes_of(head), call.payload);
    }
    if (link.outbox.failure()) link.socket.shutdown();  // Who receives hears of it.
  }

  /// Ends in order when the server does, between two messages.
  Task<void> receive(Connection& link) {
    Intake& intake = link.intake;
    while (co_await intake.need(sizeof(be32))) {
      const size_t size = co_await reply_header_size(intake.have());
      if (!co_await intake.need(size)) co_await fail(hung_up());
      const ReplyHeader header = co_await parse_reply_header(intake.have().first(size));
      intake.take(size);
      if (const auto* simple = std::get_if<SimpleReply>(&header)) {
        co_await take_reply(link, *simple);
      } else {
        co_await take_chunk(link, std::get<ChunkHeader>(header));
      }
    }
  }

  Result<Call*> find(uint64_t cookie) {
    const auto found = calls_.find(cookie);
    if (found == calls_.end()) return broken(cat("answers a request that was not made"));
    return found->second;
  }

  Task<void> take_reply(Connection& link, SimpleReply reply) {
    Call& call = *co_await find(reply.cookie);
    const bool is_read = call.request.command == Command::read;
    if (is_read && link.terms.structured) {
      co_await fail(broken("answers a read with a simple reply"));
    }
    if (reply.error != 0) {
      call.error = error_of(reply.error, {});
    } else if (is_read) {
      if (!co_await link.intake.read(call.into)) co_await fail(hung_up());
      call.covered.add(0, call.into.size());
    }
    co_await finish(link, call);
  }

  Task<void> take_chunk(Connection& link, ChunkHeader header) {
    if (!link.terms.structured) co_await fail(broken("sends chunks, which were not agreed on"));
    Call& call = *co_await find(header.cookie);
    if (header.type == ChunkType::offset_data) {
      co_await take_data(link, call, header.length);
    } else {
      if (header.length > kSmallChunkMax) {
        co_await fail(broken(cat("sends a chunk of ", header.length, " bytes")));
      }
      if (!co_await link.intake.need(header.length)) co_await fail(hung_up());
      const Chunk chunk = co_await parse_chunk(header, link.intake.have().first(header.length));
      co_await take_small(link, call, chunk);
      link.intake.take(header.length);
    }
    if (header.done()) co_await finish(link, call);
  }

  /// Straight into the memory of who reads.
  Task<void> take_data(Connection& link, Call& call, uint32_t length) {
    if (length <= sizeof(be64) || length - sizeof(be64) > call.into.size()) {
      co_await fail(broken(cat("sends a chunk of ", length, " bytes of data")));
    }
    if (!co_await link.intake.need(sizeof(be64))) co_await fail(hung_up());
    const uint64_t offset = load_be<uint64_t>(link.intake.have());
    link.intake.take(sizeof(be64));
    const uint64_t size = length - sizeof(be64);
    co_await cover(call, offset, size);
    const MutableBytes part = call.into.subspan(offset - call.request.offset, size);
    if (!co_await link.intake.read(part)) co_await fail(hung_up());
  }

  Result<void> take_small(Connection& link, Call& call, const Chunk& chunk) {
    if (const auto* hole = std::get_if<HoleChunk>(&chunk)) {
      if (Result<void> good = cover(call, hole->offset, hole->length); !good) return good;
      fill_zero(call.into.subspan(hole->offset - call.request.offset, hole->length));
    } else if (const auto* status = std::get_if<StatusChunk>(&chunk)) {
      const bool asked = call.request.command == Command::block_status && !call.extent &&
                         status->context == link.terms.allocation;
      if (!asked) return broken("sends a block status that was not asked for");
      call.extent = status->descriptors.front();
    } else if (const auto* error = std::get_if<ErrorChunk>(&chunk)) {
      if (!call.error) call.error = error_of(error->error, error->message);
    }
    return {};
  }

  static Result<void> cover(Call& call, uint64_t offset, uint64_t length) {
    const bool inside = call.request.command == Command::read && offset >= call.request.offset &&
                        within(offset - call.request.offset, length, call.into.size());
    if (!inside) return broken("sends data that were not asked for");
    if (!call.covered.add(offset - call.request.offset, length)) {
      return broken("sends data twice, or in too many pieces");
    }
    return {};
  }

  Result<void> finish(Connection& link, Call& call) {
    if (!call.error) {
      const bool is_read = call.request.command == Command::read;
      if (is_read && !call.covered.is_whole()) return broken("answers a read only in part");
      if (call.request.command == Command::block_status && !call.extent) {
        return broken("answers a question for block status with nothing");
      }
    }
    calls_.erase(call.request.cookie);
    // A server that is about to go wants us to come back later.
    const bool leaves = call.error && call.error.sys_errno() == ESHUTDOWN;
    if (leaves && options.reconnect_delay_ns > 0) {
      call.lost = true;
      link.socket.shutdown();
    }
    call.end();
    return {};
  }

  Semaphore slots_;
  std::shared_ptr<Connection> link_;  ///< Null: there is none.
  std::map<uint64_t, Call*> calls_;   ///< Sent over `link_` and not answered, by cookie.
  uint64_t last_cookie_ = 0;
  Error lost_;               ///< Why there is no connection.
  Error broken_;             ///< Why there never will be one.
  bool is_waiting_ = false;  ///< There is none, and requests wait for it.
  bool closing_ = false;
  uint64_t losses_ = 0;
  Event changed_;  ///< Of link_, broken_, is_waiting_, closing_.
  std::vector<Op*> timers_;
  ConnectAttempt* connecting_ = nullptr;
  Connection* shaking_ = nullptr;
  Scope background_;
};

// --- The device ----------------------------------------------------------------------------------

NbdClient::NbdClient(std::shared_ptr<Core> core) : core_(std::move(core)) {}
NbdClient::~NbdClient() { abandon(); }

Task<std::unique_ptr<NbdClient>> NbdClient::open(Reactor& reactor, ClientOptions options) {
  auto core = std::make_shared<Core>(reactor, std::move(options));
  co_await core->open(core);
  co_return std::unique_ptr<NbdClient>(new NbdClient(std::move(core)));
}

uint64_t NbdClient::size() const { return core_->terms.size; }
bool NbdClient::writable() const { return core_->options.writable && !core_->terms.has(kReadOnly); }
uint32_t NbdClient::alignment() const { return core_->terms.block_min; }
uint32_t NbdClient::preferred_size() const {
  return std::max(core_->terms.block_preferred, core_->terms.block_min);
}
Capabilities NbdClient::capabilities() const {
  return {.zeroes_fast = core_->terms.has(kSendFastZero),
          .fua = core_->terms.has(kSendFua),
          .discard_granularity = core_->terms.has(kSendTrim) ? core_->terms.block_min : 0};
}
const std::string& NbdClient::name() const { return core_->name; }
Reactor& NbdClient::reactor() { return core_->reactor; }
uint64_t NbdClient::reconnects() const { return core_->reconnects; }

Task<void> NbdClient::check(std::string_view what, uint64_t offset, uint64_t length,
                            bool changes) const {
  if (!within(offset, length, size())) co_await fail(out_of_range(what, offset, length));
  if (changes && !writable()) {
    co_await fail(Error(Errc::read_only, cat(what, ": ", name(), " is read-only"), EROFS));
  }
}

Task<void> NbdClient::read(uint64_t offset, MutableBytes data, ReadOptions) {
  co_await check("read", offset, data.size(), false);
  while (!data.empty()) {
    const size_t length = std::min<size_t>(data.size(), core_->terms.payload_max);
    Call call(
        core_->reactor.ready(),
        {.command = Command::read, .offset = offset, .length = static_cast<uint32_t>(length)});
    call.into = data.first(length);
    co_await core_->perform(call);
    offset += length;
    data = data.subspan(length);
  }
}

Task<void> NbdClient::write(uint64_t offset, Bytes data, WriteOptions options) {
  if (options.compressed) co_await fail(no_compression());
  co_await check("write", offset, data.size(), true);
  const bool fua = options.fua && core_->terms.has(kSendFua);
  while (!data.empty()) {
    const size_t length = std::min<size_t>(data.size(), core_->terms.payload_max);
    Call call(core_->reactor.ready(), {.flags = fua ? kFua : uint16_t{0},
                                       .command = Command::write,
                                       .offset = offset,
                                       .length = static_cast<uint32_t>(length)});
    call.payload = data.first(length);
    co_await core_->perform(call);
    offset += length;
    data = data.subspan(length);
  }
  co_await finish_change(options.fua, fua);
}

/// What is behind every change: FUA that the server does not know is a flush.
Task<void> NbdClient::finish_change(bool fua, bool was_sent) {
  if (!was_sent) core_->is_dirty = true;
  if (fua && !was_sent) co_await flush(IoTag::flush);
}

Task<void> NbdClient::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  co_await check("zero", offset, length, true);
  const ExportTerms& terms = core_->terms;
  if (options.no_fallback && (!terms.has(kSendWriteZeroes) || !terms.has(kSendFastZero))) {
    co_await fail(unsupported(name(), ": the server cannot zero faster than by writing"));
  }
  const bool fua = options.fua && terms.has(kSendFua) && terms.has(kSendWriteZeroes);
  while (length > 0) {
    const uint64_t here = std::min(length, kLengthMax);
    if (!terms.has(kSendWriteZeroes)) {
      co_await write_zeros(offset, here, false);
    } else {
      uint16_t flags = fua ? kFua : uint16_t{0};
      if (!options.may_unmap) flags |= kNoHole;
      if (options.no_fallback) flags |= kFastZero;
      Call call(core_->reactor.ready(), {.flags = flags,
                                         .command = Command::write_zeroes,
                                         .offset = offset,
                                         .length = static_cast<uint32_t>(here)});
      Result<void> zeroed = co_await core_->perform(call).result();
      const bool fall_back =
          !zeroed && zeroed.error().code() == Errc::unsupported && !options.no_fallback;
      if (!fall_back) {
        co_await std::move(zeroed);
      } else {
        co_await write_zeros(offset, here, fua);
      }
    }
    offset += here;
    length -= here;
  }
  co_await finish_change(options.fua, fua);
}

Task<void> NbdClient::write_zeros(uint64_t offset, uint64_t length, bool fua) {
  const uint64_t piece = std::min({length, kZerosAtOnce, uint64_t{core_->terms.payload_max}});
  const Buffer zeros(piece);
  fill_zero(zeros.bytes());
  while (length > 0) {
    const uint64_t here = std::min(length, piece);
    co_await write(offset, Bytes(zeros.bytes()).first(here), {.fua = fua});
    offset += here;
    length -= here;
  }
}

Task<void> NbdClient::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  co_await check("discard", offset, length, true);
  const ExportTerms& terms = core_->terms;
  if (!terms.has(kSendTrim)) co_return;
  const bool fua = options.fua && terms.has(kSendFua);
  while (length > 0) {
    const uint64_t here = std::min(length, kLengthMax);
    Call call(core_->reactor.ready(), {.flags = fua ? kFua : uint16_t{0},
                                       .command = Command::trim,
                                       .offset = offset,
                                       .length = static_cast<uint32_t>(here)});
    co_await core_->perform(call);
    offset += here;
    length -= here;
  }
  co_await finish_change(options.fua, fua);
}

Task<void> NbdClient::flush(IoTag) {
  if (!core_->terms.has(kSendFlush)) co_return;
  const bool was_dirty = std::exchange(core_->is_dirty, false);
  Call call(core_->reactor.ready(), {.command = Command::flush});
  Result<void> flushed = co_await core_->perform(call).result();
  if (flushed) co_return;
  core_->is_dirty |= was_dirty;
  co_await std::move(flushed);
}

Task<Extent> NbdClient::status(uint64_t offset, uint64_t length) {
  co_await check("status", offset, length, false);
  Extent extent{.length = length, .host_offset = offset, .file = name()};
  if (length == 0 || !core_->terms.allocation) co_return extent;
  const uint64_t asked = std::min(length, kLengthMax);
  Call call(core_->reactor.ready(), {.flags = kRequestOne,
                                     .command = Command::block_status,
                                     .offset = offset,
                                     .length = static_cast<uint32_t>(asked)});
  co_await core_->perform(call);
  const uint32_t flags = call.extent->flags;
  extent.length = std::min<uint64_t>(asked, call.extent->length);
  extent.zero = (flags & kStateZero) != 0;
  // A hole that does not read as zeros has contents that somebody may count on.
  extent.data = (flags & kStateHole) == 0 || !extent.zero;
  co_return extent;
}

Task<void> NbdClient::close() {
  if (std::exchange(closed_, true)) co_return;
  Result<void> flushed;
  if (core_->is_dirty) flushed = co_await flush(IoTag::flush).result();
  co_await core_->close();
  co_await std::move(flushed);
}

void NbdClient::give_up() { core_->give_up(); }
void NbdClient::abandon() {
  if (std::exchange(closed_, true)) return;
  core_->stop();
}

}  // namespace byre::nbd
