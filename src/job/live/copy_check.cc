// SPDX-License-Identifier: Apache-2.0
#include "job/live/copy_check.h"

#include <algorithm>
#include <utility>

#include "base/units.h"
#include "block/graph.h"
#include "block/raw.h"
#include "coro/scope.h"
#include "io/page_cache.h"

namespace byre {

namespace {

/// Of zeros that are not known as such.
constexpr uint64_t kZerosPiece = 1 * MiB;

/// Of the device and what its bytes lie in; not of its backing disk, which was not written.
Task<void> drop_caches(Device& device) {
  if (auto* const raw = dynamic_cast<RawDevice*>(&device)) co_await drop_page_cache(raw->file());
  for (const Child* edge : device.children()) {
    if (edge->role() != Role::backing) co_await drop_caches(**edge);
  }
}

}  // namespace

Error CopyCheck::mismatch(uint64_t at, uint64_t length, std::string_view found) const {
  const std::string node = target_.node() ? target_.node()->name() : "";
  return Error(Errc::io,
               cat("verify: the target ", quoted(target_.name()),
                   node.empty() ? "" : cat(" (node ", quoted(node), ")"), " holds ", found, " at ",
                   hex(at), ", ", length, " bytes: not what was read from ", quoted(source_),
                   "; do not use this copy: look after the target's storage, or copy to "
                   "another place"));
}

// --- Rounds --------------------------------------------------------------------------------------

/// From here on what is due is on the disk, and only there.
Task<void> CopyCheck::begin_round() {
  sums_.flushing();
  co_await target_.flush();
  co_await drop_caches(target_);
}

Task<void> CopyCheck::run(Job& job, std::function<bool()> enough) {
  failed_ = false;
  while (true) {
    Result<void> begun;
    {
      const Gate::Pass pass = co_await job.enter();
      begun = co_await begin_round().result();
    }
    if (begun) break;
    if (!co_await job.retries(JobSide::target, begun.error())) {
      co_await fail(job.is_cancelled() ? job.cancelled_error() : std::move(begun).error());
    }
  }
  Scope workers(job.reactor().ready());
  for (unsigned i = 0; i < options_.requests_max; ++i) workers.spawn(worker(job, enough));
  co_await workers.join();
  if (found_) co_await fail(found_.copy());
}

Task<void> CopyCheck::worker(Job& job, const std::function<bool()>& enough) {
  Buffer buffer;
  while (!failed_ && !found_ && !(enough && enough())) {
    Outcome outcome;
    Instant began;
    {
      const Gate::Pass pass = co_await job.enter();
      began = job.reactor().now();
      const auto taken = sums_.take(cursor_, options_.request_size);
      if (!taken) break;
      cursor_ = taken->end;
      outcome = co_await check(*taken, buffer);
    }
    if (outcome.error && !outcome.differs) {
      if (co_await job.retries(JobSide::target, outcome.error)) continue;
      failed_ = true;
      co_await fail(job.is_cancelled() ? job.cancelled_error() : std::move(outcome.error));
    }
    co_await job.limit(outcome.bytes);
    if (outcome.bytes != 0 && options_.guest_requests) {
      co_await job.give_way(began, options_.guest_requests());
    }
  }
}

Task<void> CopyCheck::run_alone() {
  co_await begin_round();
  Buffer buffer;
  for (auto taken = sums_.take(0, options_.request_size); taken && !found_;
       taken = sums_.take(0, options_.request_size)) {
    Outcome outcome = co_await check(*taken, buffer);
    if (outcome.error && !outcome.differs) co_await fail(std::move(outcome.error));
  }
  if (found_) co_await fail(found_.copy());
}

Task<void> CopyCheck::help(uint64_t pieces) {
  Buffer buffer;
  while (pieces != 0 && !found_) {
    const auto taken = sums_.take(cursor_, pieces * sums_.piece());
    if (!taken) break;
    pieces -= std::min(pieces, taken->end - taken->first);
    const Outcome outcome = co_await check(*taken, buffer);
    if (outcome.error) break;
  }
}

// --- Pieces --------------------------------------------------------------------------------------

/// What was taken is checked afterwards, or due again.
Task<CopyCheck::Outcome> CopyCheck::check(CopySums::Taken taken, Buffer& buffer) {
  std::optional<RangeLock::Request> held;
  if (options_.locks) {
    held.emplace(*options_.locks, taken.first, taken.end, RangeLock::Mode::shared);
    co_await *held;
  }
  Result<Outcome> done = co_await compare(taken, buffer).result();
  Outcome outcome = done ? *std::move(done) : Outcome{.error = std::move(done).error()};
  if (outcome.error) sums_.put_back(taken);
  if (outcome.differs && !found_) found_ = outcome.error.copy();
  co_return std::move(outcome);
}

/// With the lock: what nobody has written since it was taken.
Task<CopyCheck::Outcome> CopyCheck::compare(CopySums::Taken taken, Buffer& buffer) {
  Outcome all;
  for (CopySums::Pieces left = sums_.still(taken, taken.first); left.first < left.end;
       left = sums_.still(taken, left.end)) {
    Outcome one;
    if (taken.zeros) {
      one = co_await compare_zeros(left, buffer);
    } else {
      one = co_await compare_data(left, buffer);
    }
    all.bytes += one.bytes;
    if (one.error) {
      one.bytes = all.bytes;
      co_return std::move(one);
    }
    sums_.checked(left);
    if (options_.on_checked) {
      options_.on_checked(sums_.end_of(left.end - 1) - sums_.begin_of(left.first));
    }
  }
  co_return std::move(all);
}

Task<CopyCheck::Outcome> CopyCheck::compare_data(CopySums::Pieces pieces, Buffer& buffer) {
  Outcome outcome;
  const uint64_t begin = sums_.begin_of(pieces.first);
  outcome.bytes = sums_.end_of(pieces.end - 1) - begin;
  if (buffer.size() < outcome.bytes) buffer = Buffer(outcome.bytes);
  const MutableBytes data = buffer.bytes().first(outcome.bytes);
  co_await target_.read(begin, data, IoTag::read_guest)
      .doing("verify ", quoted(target_.name()), " at ", hex(begin));
  for (uint64_t piece = pieces.first; piece < pieces.end; ++piece) {
    const uint64_t at = sums_.begin_of(piece);
    const uint64_t length = sums_.end_of(piece) - at;
    if (sums_.is_right(piece, Bytes(data).subspan(at - begin, length))) continue;
    outcome.error = mismatch(at, length, "other bytes");
    outcome.differs = true;
    break;
  }
  co_return std::move(outcome);
}

Task<CopyCheck::Outcome> CopyCheck::compare_zeros(CopySums::Pieces pieces, Buffer& buffer) {
  Outcome outcome;
  const uint64_t end = sums_.end_of(pieces.end - 1);
  for (uint64_t at = sums_.begin_of(pieces.first); at < end;) {
    const Extent extent = co_await target_.status(at, end - at)
                              .doing("verify ", quoted(target_.name()), " at ", hex(at));
    uint64_t length = std::min(extent.length, end - at);
    if (!extent.zero) {
      length = std::min(length, kZerosPiece);
      if (buffer.size() < length) buffer = Buffer(kZerosPiece);
      const MutableBytes data = buffer.bytes().first(length);
      co_await target_.read(at, data, IoTag::read_guest)
          .doing("verify ", quoted(target_.name()), " at ", hex(at));
      outcome.bytes += length;
      if (!is_zero(data)) {
        outcome.error = mismatch(at, length, "bytes that are not zero");
        outcome.differs = true;
        break;
      }
    }
    at += length;
  }
  co_return std::move(outcome);
}

}  // namespace byre
