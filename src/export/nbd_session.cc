// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_session.h"

#include <algorithm>
#include <cerrno>
#include <vector>

namespace byre::nbd {

namespace {

/// Reads of this and more ask the device where data is; shorter ones are read whole.
constexpr uint32_t kExtentReadMin = 256 * KiB;
/// Zeros shorter than this are sent as data: a chunk of their own would cost more.
constexpr uint64_t kHoleMin = 32 * KiB;
/// Extents in one BLOCK_STATUS reply, of each context.
constexpr size_t kDescriptorsMax = 2048;
/// Questions to the device for one BLOCK_STATUS.
constexpr size_t kStatusCallsMax = 16384;

/// Payload memory that a request takes.
uint64_t memory_of(const Request& request) {
  const bool payload = request.command == Command::read || request.command == Command::write;
  return payload ? request.length : 0;
}

std::string_view name_of(Command command) {
  switch (command) {
    case Command::read:
      return "read";
    case Command::write:
      return "write";
    case Command::disconnect:
      return "disconnect";
    case Command::flush:
      return "flush";
    case Command::trim:
      return "trim";
    case Command::cache:
      return "cache";
    case Command::write_zeroes:
      return "write zeroes";
    case Command::block_status:
      return "block status";
  }
  return "unknown request";
}

/// A list of extents being written into a reply; neighbours that are alike become one.
class Descriptors {
 public:
  Descriptors(MutableBytes memory, size_t count_max) : memory_(memory), count_max_(count_max) {}

  /// False when the extent would be one too many.
  bool add(uint64_t length, uint32_t flags) {
    if (count_ != 0 && flags == flags_ && length <= UINT32_MAX - length_) {
      length_ += static_cast<uint32_t>(length);
      store();
      return true;
    }
    if (count_ == count_max_) return false;
    ++count_;
    length_ = static_cast<uint32_t>(length);
    flags_ = flags;
    store();
    return true;
  }
  uint32_t count() const { return count_; }
  Bytes bytes() const { return memory_.first(count_ * sizeof(DescriptorWire)); }

 private:
  void store() {
    const DescriptorWire wire{.length = length_, .flags = flags_};
    copy(memory_.subspan((count_ - 1) * sizeof wire), bytes_of(wire));
  }
  MutableBytes memory_;
  size_t count_max_;
  uint32_t count_ = 0;
  uint32_t length_ = 0;
  uint32_t flags_ = 0;
};

uint32_t allocation_flags(const Extent& extent) {
  return (extent.data ? 0 : kStateHole) | (extent.zero ? kStateZero : 0);
}

/// 0: no layer says what the range reads as; 1: the first does; and so on.
uint32_t depth_flags(const Extent& extent) {
  const bool nowhere = !extent.allocated && extent.depth == 0;
  return nowhere ? 0 : extent.depth + 1;
}

}  // namespace

Session::Session(Reactor& reactor, Socket socket, Shared& shared, SessionLimits limits,
                 Handshake::Policy policy)
    : reactor_(reactor),
      socket_(std::move(socket)),
      shared_(shared),
      limits_(limits),
      handshake_(shared.exports, policy),
      intake_(socket_),
      outbox_(socket_, reactor.ready()),
      slots_(reactor.ready(), std::max<uint64_t>(limits.requests_max, 1)),
      memory_(reactor.ready(), std::max<uint64_t>(limits.memory_max, kPayloadMax)),
      own_memory_(reactor.ready(), kOwnMemory),
      requests_(reactor.ready()),
      helpers_(reactor.ready()) {}

Task<void> Session::run() {
  helpers_.spawn(hang_up_at(handshake_timer_, limits_.handshake_timeout_ns));
  Result<void> result = co_await shake_hands().result();
  shaken_ = true;
  disarm(handshake_timer_);
  disarm(hurry_timer_);
  if (transmitting_) {
    helpers_.spawn(outbox_.run());
    result = co_await receive_requests().result();
    // A client that takes no replies must not keep its requests for ever.
    helpers_.spawn(hang_up_at(linger_timer_, limits_.linger_timeout_ns));
    Result<void> joined = co_await requests_.join().result();
    co_await outbox_.drain();
    outbox_.close();
  }
  ended_ = true;
  disarm(linger_timer_);
  const bool in_order = transmitting_ && result && !stopping_ && !timed_out_ && !outbox_.failure();
  if (!in_order || !leave_open_ || !leave_open_()) hang_up();
  Result<void> helped = co_await helpers_.join().result();
  if (timed_out_ && !transmitting_)
    co_await fail(Error(Errc::io, "the client did not finish the handshake in time"));
  // After stop() any end is a good one.
  if (!result && !stopping_) co_await fail(std::move(result).error());
}

void Session::stop() {
  if (stopping_ || ended_) return;
  stopping_ = true;
  if (!transmitting_) return hang_up();
  helpers_.spawn(hang_up_when_idle());
  helpers_.spawn(hang_up_at(linger_timer_, limits_.linger_timeout_ns));
}

void Session::hurry(int64_t ns) {
  if (shaken_ || stopping_) return;
  helpers_.spawn(hang_up_at(hurry_timer_, ns));
}

Task<void> Session::hang_up_when_idle() {
  Result<void> joined = co_await requests_.join().result();
  co_await outbox_.drain();
  hang_up();
}

Task<void> Session::hang_up_at(Op& timer, int64_t ns) {
  if (ns <= 0 || timer.pending) co_return;
  timer = {.kind = Op::Kind::timer, .deadline = reactor_.now() + ns};
  const int64_t result = co_await reactor_.perform(timer);
  if (result < 0) co_return;                           // Disarmed.
  if (shaken_ && &timer != &linger_timer_) co_return;  // Too late to be disarmed.
  timed_out_ = true;
  hang_up();
}

void Session::disarm(Op& timer) {
  if (timer.pending) reactor_.cancel(timer);
}

void Session::hang_up() { socket_.shutdown(); }

// ---- Handshake --------------------------------------------------------------------------------

Task<void> Session::shake_hands() {
  if (handshake_.chosen_export()) co_return begin_transmission();
  Text out;
  append_greeting(out, Handshake::kHandshakeFlags);
  // Whoever leaves here only looked whether somebody listens.
  const Result<void> greeted = co_await socket_.send_all(out).result();
  if (!greeted) co_return;
  const Result<bool> answered = co_await intake_.need(sizeof(be32)).result();
  if (!answered || !*answered) co_return;
  handshake_.client_flags(co_await parse_client_flags(intake_.have()));
  intake_.take(sizeof(be32));

  for (;;) {
    if (!co_await intake_.need(sizeof(OptionWire))) co_return;
    const OptionHeader header = co_await parse_option_header(intake_.have());
    intake_.take(sizeof(OptionWire));
    if (header.length > Handshake::kOptionLengthMax)
      co_await fail(invalid("NBD: an option of ", header.length, " bytes"));
    if (!co_await intake_.need(header.length)) co_return;

    out.clear();
    const Handshake::Next next =
        handshake_.option(header.option, intake_.have().first(header.length), out);
    intake_.take(header.length);
    // Many leave after ABORT, or a listing, without reading to the end.
    const Result<void> sent = co_await socket_.send_all(out).result();
    if (!sent || next == Handshake::Next::end) co_return;
    if (next == Handshake::Next::transmission) break;
  }
  begin_transmission();
}

void Session::begin_transmission() {
  if (stopping_) return;
  disk_ = handshake_.chosen().disk;
  counts_ = handshake_.chosen().counts;
  terms_ = handshake_.terms();
  contexts_ = handshake_.contexts();
  transmitting_ = true;
}

// ---- Requests ---------------------------------------------------------------------------------

Task<void> Session::receive_requests() {
  for (;;) {
    if (intake_.have().size() < sizeof(RequestWire)) {
      if (!co_await intake_.need(sizeof(RequestWire))) {
        if (intake_.have().empty()) co_return;  // As good as a DISC.
        co_await fail(Error(Errc::io, "the client hung up inside a request"));
      }
    }
    const Request request = co_await parse_request(intake_.have());
    intake_.take(sizeof(RequestWire));
    if (request.command == Command::disconnect) co_return;
    ++shared_.statistics.requests;

    Status status = check(request, terms_);
    Holds holds;
    if (status == Status::ok) {
      // Before the payload is received: at the bound, what is not wanted stays with the client.
      holds.slot = co_await slots_.acquire();
      if (const uint64_t size = memory_of(request)) {
        holds.memory = co_await memory_.acquire(size);
        holds.source = co_await memory_for(size).acquire(size);
      }
    }
    if (stopping_) status = Status::eshutdown;

    if (status != Status::ok) {
      holds = Holds();
      if (request.command == Command::write) {
        if (request.length > kDrainMax)
          co_await fail(invalid("NBD: a write of ", request.length, " bytes"));
        if (!co_await intake_.skip(request.length))
          co_await fail(Error(Errc::io, "the client hung up inside a write"));
      }
      co_await finish(request, status);
      continue;
    }
    Buffer payload;
    if (request.command == Command::write && request.length != 0) {
      payload = Buffer(request.length);
      if (!co_await intake_.read(payload.bytes()))
        co_await fail(Error(Errc::io, "the client hung up inside a write"));
    }
    requests_.spawn(serve(request, std::move(payload), std::move(holds)));
  }
}

/// Where `size` bytes are to come from: a session's own memory goes to small requests, at once or
/// when there is nothing else.
Semaphore& Session::memory_for(uint64_t size) {
  const bool small = size <= kOwnMemory;
  const bool own = own_memory_.free() >= size || shared_.memory.free() < size;
  return small && own ? own_memory_ : shared_.memory;
}

Task<void> Session::serve(Request request, Buffer payload, [[maybe_unused]] Holds holds) {
  Statistics& statistics = shared_.statistics;
  ++statistics.requests_running;
  const bool fua = request.has(kFua);
  switch (request.command) {
    case Command::read:
      co_await read(request);
      break;
    case Command::write: {
      Result<void> result;
      if (request.length != 0) {
        const Entrance::Pass disk = co_await disk_->enter();
        result = co_await disk->write(request.offset, payload.bytes(), {.fua = fua}).result();
      }
      if (result) {
        ++statistics.writes;
        statistics.bytes_written += request.length;
      }
      counts_->wrote(result.has_value(), request.offset, request.length);
      co_await finish(request, result);
      break;
    }
    case Command::flush: {
      Result<void> result = co_await (co_await disk_->enter())->flush().result();
      if (result) ++statistics.flushes;
      counts_->flushes.add(result.has_value(), 0);
      co_await finish(request, result);
      break;
    }
    case Command::trim: {
      Result<void> result;
      if (request.length != 0) {
        const Entrance::Pass disk = co_await disk_->enter();
        result = co_await disk->discard(request.offset, request.length, {.fua = fua}).result();
      }
      // A hint that could not be taken is no failure (spec: NBD_CMD_TRIM).
      if (!result && result.error().code() == Errc::unsupported) result = {};
      if (result) statistics.bytes_trimmed += request.length;
      counts_->trims.add(result.has_value(), request.length);
      co_await finish(request, result);
      break;
    }
    case Command::write_zeroes: {
      Result<void> result;
      const ZeroOptions options{
          .may_unmap = !request.has(kNoHole), .no_fallback = request.has(kFastZero), .fua = fua};
      if (request.length != 0) {
        const Entrance::Pass disk = co_await disk_->enter();
        result = co_await disk->zero(request.offset, request.length, options).result();
      }
      if (result) statistics.bytes_zeroed += request.length;
      counts_->wrote(result.has_value(), request.offset, request.length);
      co_await finish(request, result);
      break;
    }
    case Command::block_status:
      co_await block_status(request);
      break;
    case Command::cache:
    case Command::disconnect:
      co_await finish(request, Status::ok);
      break;
  }
  --statistics.requests_running;
}

Task<void> Session::read(const Request& request) {
  if (request.length == 0) {
    co_await finish(request, Status::ok);
  } else if (terms_.structured && !request.has(kDf) && request.length >= kExtentReadMin) {
    co_await read_extents(request);
  } else {
    co_await read_whole(request);
  }
}

Task<void> Session::read_whole(const Request& request) {
  const Buffer buffer(request.length);
  Entrance::Pass disk = co_await disk_->enter();
  Result<void> result = co_await disk->read(request.offset, buffer.bytes()).result();
  disk.release();
  counts_->reads.add(result.has_value(), request.length);
  if (!result) co_return co_await finish(request, result);
  ++shared_.statistics.reads;
  shared_.statistics.bytes_read += request.length;

  const Bytes data = buffer.bytes();
  const SimpleReplyWire simple = make_simple_reply(request.cookie, Status::ok);
  const DataChunkWire chunk = make_data_chunk(request.cookie, request.offset, request.length, true);
  Bytes head = bytes_of(simple);
  if (terms_.structured) {
    if (is_zero(data)) {
      const HoleChunkWire hole =
          make_hole_chunk(request.cookie, request.offset, request.length, true);
      co_return co_await outbox_.put(bytes_of(hole));
    }
    head = bytes_of(chunk);
  }
  if (data.size() > Outbox::kCopyMax) {
    co_await outbox_.put_directly(head, data);
  } else if (!outbox_.try_put(head, data)) {
    co_await outbox_.put(head, data);
  }
}

namespace {

struct Run {
  uint64_t offset;
  uint64_t length;
  bool hole;
};

/// What of the range is to be sent as holes: extents that read as zeros and are long enough.  A
/// device that cannot say is read.
Task<std::vector<Run>> find_runs(Entrance& disk, uint64_t offset, uint64_t length) {
  std::vector<Run> runs;
  const uint64_t end = offset + length;
  while (offset < end) {
    const Entrance::Pass device = co_await disk.enter();
    Result<Extent> extent = co_await device->status(offset, end - offset).result();
    const uint64_t found = extent ? std::min(extent->length, end - offset) : end - offset;
    BYRE_ASSERT(found != 0);
    const bool zero = extent && extent->zero;
    if (!runs.empty() && runs.back().hole == zero) {
      runs.back().length += found;
    } else {
      runs.push_back({offset, found, zero});
    }
    offset += found;
  }
  // Short holes join the data around them.
  std::vector<Run> joined;
  for (Run run : runs) {
    run.hole = run.hole && run.length >= kHoleMin;
    if (!joined.empty() && !joined.back().hole && !run.hole) {
      joined.back().length += run.length;
    } else {
      joined.push_back(run);
    }
  }
  co_return joined;
}

}  // namespace

Task<void> Session::read_extents(const Request& request) {
  const std::vector<Run> runs = co_await find_runs(*disk_, request.offset, request.length);
  for (const Run& run : runs) {
    const bool done = &run == &runs.back();
    const auto length = static_cast<uint32_t>(run.length);
    if (run.hole) {
      const HoleChunkWire hole = make_hole_chunk(request.cookie, run.offset, length, done);
      co_await outbox_.put(bytes_of(hole));
      continue;
    }
    const Buffer buffer(run.length);
    Entrance::Pass disk = co_await disk_->enter();
    Result<void> result = co_await disk->read(run.offset, buffer.bytes()).result();
    disk.release();
    if (!result) {
      counts_->reads.add(false, request.length);
      co_return co_await finish(request, result);
    }
    const DataChunkWire chunk = make_data_chunk(request.cookie, run.offset, length, done);
    co_await outbox_.put_directly(bytes_of(chunk), buffer.bytes());
  }
  counts_->reads.add(true, request.length);
  ++shared_.statistics.reads;
  shared_.statistics.bytes_read += request.length;
}

Task<void> Session::block_status(const Request& request) {
  const size_t count_max = request.has(kRequestOne) ? 1 : kDescriptorsMax;
  constexpr size_t kBytes = kDescriptorsMax * sizeof(DescriptorWire);
  const Buffer memory(2 * kBytes);
  Descriptors allocation(memory.bytes().first(kBytes), count_max);
  Descriptors depth(memory.bytes().subspan(kBytes), count_max);

  uint64_t at = request.offset;
  const uint64_t end = request.offset + request.length;
  for (size_t calls = 0; at < end && calls < kStatusCallsMax; ++calls) {
    Entrance::Pass disk = co_await disk_->enter();
    Result<Extent> extent = co_await disk->status(at, end - at).result();
    disk.release();
    if (!extent) {
      if (at != request.offset) break;  // What is known is an answer.
      const Result<void> failed = std::move(extent).error();
      co_return co_await finish(request, failed);
    }
    const uint64_t found = std::min(extent->length, end - at);
    BYRE_ASSERT(found != 0);
    const bool more = allocation.add(found, allocation_flags(*extent));
    if (!depth.add(found, depth_flags(*extent)) || !more) break;
    at += found;
  }
  const bool own = !contexts_.own.empty();
  if (contexts_.allocation) {
    const StatusChunkWire chunk = make_status_chunk(request.cookie, kAllocationContextId,
                                                    allocation.count(), !contexts_.depth && !own);
    co_await outbox_.put(bytes_of(chunk), allocation.bytes());
  }
  if (contexts_.depth) {
    const StatusChunkWire chunk =
        make_status_chunk(request.cookie, kDepthContextId, depth.count(), !own);
    co_await outbox_.put(bytes_of(chunk), depth.bytes());
  }
  for (const size_t index : contexts_.own) {
    const ExportContext& context = handshake_.chosen().contexts[index];
    Descriptors runs(memory.bytes().first(kBytes), count_max);
    for (uint64_t from = request.offset; from < end;) {
      const auto [length, flags] = context.describe(from);
      BYRE_ASSERT(length != 0);
      if (!runs.add(std::min(length, end - from), flags)) break;
      from += length;
    }
    const StatusChunkWire chunk =
        make_status_chunk(request.cookie, static_cast<uint32_t>(kOwnContextId + index),
                          runs.count(), index == contexts_.own.back());
    co_await outbox_.put(bytes_of(chunk), runs.bytes());
  }
}

// ---- Replies ----------------------------------------------------------------------------------

/// The whole reply of a request that gives no data, or the end of one that failed.
Task<void> Session::finish(const Request& request, Status status) {
  if (status != Status::ok) ++shared_.statistics.requests_failed;
  if (!terms_.structured || (status == Status::ok && request.command != Command::read)) {
    const SimpleReplyWire reply = make_simple_reply(request.cookie, status);
    if (!outbox_.try_put(bytes_of(reply))) co_await outbox_.put(bytes_of(reply));
  } else if (status == Status::ok) {
    const ChunkWire chunk = make_done(request.cookie);
    co_await outbox_.put(bytes_of(chunk));
  } else {
    const std::string_view message = describe(status);
    const ErrorChunkWire chunk =
        make_error_chunk(request.cookie, status, static_cast<uint16_t>(message.size()));
    co_await outbox_.put(bytes_of(chunk), bytes_of(message));
  }
}

Task<void> Session::finish(const Request& request, const Result<void>& result) {
  if (result) co_return co_await finish(request, Status::ok);
  report_failure(request, result.error());
  Status status = status_of(result.error());
  // Some answers mean something only to those who asked for them (spec: "Error values").
  if (status == Status::enotsup && !request.has(kFastZero)) status = Status::eio;
  if (status == Status::eoverflow && !request.has(kDf)) status = Status::eio;
  co_await finish(request, status);
}

void Session::report_failure(const Request& request, const Error& error) {
  const bool expected = request.has(kFastZero) && error.code() == Errc::unsupported;
  if (!shared_.report || expected) return;
  shared_.report(error.copy().while_doing(cat("NBD ", name_of(request.command), " of ",
                                              request.length, " bytes at ", hex(request.offset))));
}

}  // namespace byre::nbd
