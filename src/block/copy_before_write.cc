// SPDX-License-Identifier: Apache-2.0
#include "block/copy_before_write.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/units.h"
#include "block/drain.h"
#include "block/snapshot_below.h"
#include "io/buffer.h"

namespace byre {
namespace {

constexpr uint64_t kClusterMin = 64 * KiB;
/// Old contents are copied through a buffer of this size.
constexpr uint64_t kCopyMax = 1 * MiB;
/// A copy takes so much of the disk at a time: others that want some of it wait for that.
constexpr uint64_t kLockMax = 16 * MiB;

uint64_t cluster_size_for(const Device& file, const Device& target, uint64_t least) {
  const uint64_t largest = std::max<uint64_t>(
      {kClusterMin, least, target.preferred_size(), file.alignment(), target.alignment()});
  return std::bit_ceil(largest);
}

}  // namespace

// --- The filter ----------------------------------------------------------------------------------

Result<void> CopyBeforeWrite::fits(const Device& file, const Device& target,
                                   const CopyBeforeWriteOptions& options) {
  if (options.cluster_size_min != 0 && !std::has_single_bit(options.cluster_size_min))
    return invalid("min-cluster-size needs to be a power of 2");
  if (file.writable() && !target.writable())
    return Error(Errc::read_only, cat("copy-before-write: target ", quoted(target.name()),
                                      " is read-only: open it for writing"));
  if (target.size() < file.size()) {
    return invalid("copy-before-write: target ", quoted(target.name()), " has ", target.size(),
                   " bytes, and ", quoted(file.name()), " has ", file.size(),
                   ": make the target as large");
  }
  if (file.size() % target.alignment() != 0) {
    return invalid("copy-before-write: ", quoted(file.name()), " has ", file.size(),
                   " bytes, and target ", quoted(target.name()), " takes multiples of ",
                   target.alignment(), ": use a target that takes single bytes");
  }
  return {};
}

CopyBeforeWrite::CopyBeforeWrite(Child file, Child target, const CopyBeforeWriteOptions& options)
    : Filter(std::move(file)),
      target_(std::move(target)),
      size_(below().size()),
      cluster_(cluster_size_for(below(), *target_, options.cluster_size_min)),
      on_error_(options.on_error),
      timeout_ns_(options.timeout_ns),
      compressed_(options.compressed),
      on_change_(options.on_change),
      on_copy_(options.on_copy),
      on_break_(options.on_break),
      locks_(reactor().ready()),
      late_(reactor().ready()) {
  target_.belong_to(*this, Role::other);
  if (!options.wanted) return;
  const uint64_t all = div_ceil(size_, cluster_);
  uint64_t done = 0;
  for (uint64_t at = 0; done < all;) {
    const auto part = options.wanted(at);
    const uint64_t first = part ? std::clamp(part->offset / cluster_, done, all) : all;
    unwanted_.insert(done, first);
    kept_.insert(done, first);
    if (!part) break;
    done = std::clamp(div_ceil(part->end, cluster_), done, all);
    at = part->end;
  }
}

CopyBeforeWrite::~CopyBeforeWrite() {
  if (below_target_) below_target().forget_filter();
}

Result<void> CopyBeforeWrite::claim() {
  const bool writes = below().writable();
  for (Child* const edge : children()) {
    const bool is_target = edge == &target_;
    const Permissions own{.uses = {.read = true, .write = is_target && writes},
                          .shares = Access::reading()};
    if (Result<void> allowed = edge->set_permissions(own); !allowed) return allowed;
  }
  return {};
}

/// Those of the snapshot.
CopyBeforeWrite::Clusters CopyBeforeWrite::clusters_of(uint64_t offset, uint64_t length) const {
  if (offset >= size_ || length == 0) return {.first = 0, .end = 0};
  const uint64_t end = offset + std::min(length, size_ - offset);
  return {.first = offset / cluster_, .end = div_ceil(end, cluster_)};
}

/// Does nothing stand in the way of a change?
bool CopyBeforeWrite::is_kept(uint64_t offset, uint64_t length) const {
  if (broken_) return true;
  const Clusters clusters = clusters_of(offset, length);
  return kept_.next(false, clusters.first, clusters.end) == clusters.end;
}

/// Brings old contents into the target, before a change.
Task<void> CopyBeforeWrite::preserve(uint64_t offset, uint64_t length) {
  const Clusters clusters = clusters_of(offset, length);
  Result<void> kept = timeout_ns_ == 0 ? co_await copy(clusters).result()
                                       : co_await copy_in_time(clusters).result();
  if (kept || broken_) co_return;
  Error why = std::move(kept).error().while_doing("copy-before-write");
  if (on_error_ == CbwError::break_guest_write) co_await fail(std::move(why));
  // Before the change goes down: who reads the snapshot looks here when he has read.
  broken_ = std::move(why);
  if (on_break_) on_break_();
}

Task<void> CopyBeforeWrite::copy(Clusters clusters, bool* of_target) {
  const uint64_t step = std::max<uint64_t>(1, kLockMax / cluster_);
  for (uint64_t first = clusters.first; first < clusters.end;) {
    const uint64_t end = std::min(clusters.end, first + step);
    RangeLock::Request held(locks_, first, end, RangeLock::Mode::exclusive);
    co_await held;
    for (uint64_t at = kept_.next(false, first, end); at < end && !broken_;
         at = kept_.next(false, at, end)) {
      const Clusters run{.first = at, .end = kept_.next(true, at, end)};
      co_await copy_run(run, of_target);
      kept_.insert(run.first, run.end);
    }
    first = end;
  }
}

/// How long the zeros are that begin at `at` and are `length` bytes at least.  The target gets them
/// in one piece: zeros of a part of its cluster may leave that as it is, where nothing lies below
/// the target yet, and then show what is put there later.
Task<uint64_t> CopyBeforeWrite::zeros_from(uint64_t at, uint64_t length, uint64_t end) {
  while (at + length < end) {
    const Extent next = co_await below().status(at + length, end - at - length);
    if (!next.zero) break;
    length += next.length;
  }
  co_return length;
}

/// `of_target`, where asked for: was it the target that failed?
Task<void> CopyBeforeWrite::copy_run(Clusters run, bool* of_target) {
  bool unasked = false;
  bool& target_fails = of_target ? *of_target : unasked;
  const uint64_t end = std::min(run.end * cluster_, size_);
  for (uint64_t at = run.first * cluster_; at < end;) {
    target_fails = false;
    const Extent extent = co_await below().status(at, end - at);
    // Whole clusters: streams are made of them, and no part need be filled from below the target.
    uint64_t length = extent.length;
    if (extent.zero) length = co_await zeros_from(at, length, end);
    if (extent.zero && at + length < end) length = round_down(length, cluster_);
    if (extent.zero && length != 0) {
      co_await check_whole();
      if (on_copy_) on_copy_(at, length, {});
      target_fails = true;
      co_await target_->zero(at, length, {.may_unmap = true})
          .doing("write ", length, " zeros at ", hex(at), " of the target");
    } else {
      if (!compressed_) length = round_up(std::max<uint64_t>(extent.length, 1), cluster_);
      const uint64_t most = std::max(kCopyMax, cluster_);
      length = std::min(compressed_ ? most : length, std::min(most, end - at));
      const Buffer buffer(length);
      co_await below()
          .read(at, buffer.bytes(), IoTag::none)
          .doing("read ", length, " bytes at ", hex(at));
      co_await check_whole();
      if (on_copy_) on_copy_(at, length, buffer.bytes().first(length));
      target_fails = true;
      co_await target_->write(at, buffer.bytes(), {.compressed = compressed_})
          .doing("write ", length, " bytes at ", hex(at), " of the target");
    }
    bytes_copied_ += length;
    at += length;
  }
}

/// Guests do not wait for a copy any more that took too long: what it has read is not the moment's,
/// and who reads the target itself would take it for that.
Result<void> CopyBeforeWrite::check_whole() const {
  return broken_ ? Result<void>(broken_.copy()) : Result<void>();
}

Task<CopyBeforeWrite::Kept> CopyBeforeWrite::keep(uint64_t offset, uint64_t length) {
  Kept kept;
  Result<void> done = co_await copy(clusters_of(offset, length), &kept.of_target).result();
  if (broken_) {
    kept.error = broken_.copy();
    kept.of_target = true;
  } else if (!done) {
    kept.error = std::move(done).error();
  }
  co_return std::move(kept);
}

uint64_t CopyBeforeWrite::next_missing(uint64_t offset, uint64_t end) const {
  const Clusters clusters = clusters_of(offset, end - offset);
  const uint64_t next = kept_.next(false, clusters.first, clusters.end);
  return std::clamp(next * cluster_, offset, end);
}

void CopyBeforeWrite::leave_out(uint64_t offset, uint64_t length) {
  const Clusters clusters = clusters_of(offset, length);
  for (uint64_t at = clusters.first; at < clusters.end; ++at) {
    if (kept_.contains(at)) continue;
    kept_.insert(at, at + 1);
    unwanted_.insert(at, at + 1);
  }
}

Task<void> CopyBeforeWrite::let_go(uint64_t offset, uint64_t length) {
  if (!within(offset, length, size_)) co_await fail(out_of_range("discard", offset, length));
  const uint64_t first = div_ceil(offset, cluster_);
  const uint64_t stop = offset + length;
  const uint64_t end = stop == size_ ? div_ceil(size_, cluster_) : stop / cluster_;
  if (first >= end) co_return;
  lets_go_ = true;
  RangeLock::Request held(locks_, first, end, RangeLock::Mode::exclusive);
  co_await held;  // No copy of these is under way.
  for (uint64_t at = unwanted_.next(false, first, end); at < end;
       at = unwanted_.next(false, at, end)) {
    const uint64_t next = unwanted_.next(true, at, end);
    std::vector<Clusters> in_target;
    for (uint64_t from = kept_.next(true, at, next); from < next;
         from = kept_.next(true, in_target.back().end, next)) {
      in_target.push_back({.first = from, .end = kept_.next(false, from, next)});
    }
    // First: a reader looks here when it has read.
    unwanted_.insert(at, next);
    kept_.insert(at, next);
    for (const Clusters& run : in_target) {
      const uint64_t from = run.first * cluster_;
      co_await target_->discard(from, std::min(run.end * cluster_, size_) - from);
    }
    at = next;
  }
}

// --- Copies that have a time limit ---------------------------------------------------------------

struct CopyBeforeWrite::Attempt {
  std::optional<Result<void>> result;
  Op* timer = nullptr;  ///< While the request waits for both.
};

Task<void> CopyBeforeWrite::attempt(std::shared_ptr<Attempt> attempt, Clusters clusters) {
  attempt->result.emplace(co_await copy(clusters).result());
  if (attempt->timer) reactor().cancel(*attempt->timer);
}

/// Waits for the copy no longer than the timeout; it goes on by itself then, under its lock.
Task<void> CopyBeforeWrite::copy_in_time(Clusters clusters) {
  const auto one = std::make_shared<Attempt>();
  late_.spawn(attempt(one, clusters));
  if (!one->result) {
    Op timer{.kind = Op::Kind::timer, .deadline = reactor().now() + timeout_ns_};
    one->timer = &timer;
    co_await reactor().perform(timer);
    one->timer = nullptr;
  }
  if (!one->result) {
    co_await fail(Error(Errc::io,
                        cat("not done within ", timeout_ns_ / kSecond, " seconds (cbw-timeout)"),
                        ETIMEDOUT));
  }
  co_await *std::move(one->result);
}

Task<void> CopyBeforeWrite::settle() { co_await late_.join(); }

// --- The guest's changes -------------------------------------------------------------------------

Task<void> CopyBeforeWrite::write_after_copy(uint64_t offset, Bytes data, WriteOptions options) {
  co_await preserve(offset, data.size());
  co_await below().write(offset, data, options);
}

Task<void> CopyBeforeWrite::zero_after_copy(uint64_t offset, uint64_t length, ZeroOptions options) {
  co_await preserve(offset, length);
  co_await below().zero(offset, length, options);
}

Task<void> CopyBeforeWrite::discard_after_copy(uint64_t offset, uint64_t length,
                                               DiscardOptions options) {
  co_await preserve(offset, length);
  co_await below().discard(offset, length, options);
}

Task<void> CopyBeforeWrite::resize(uint64_t size) {
  if (size < size_) co_await preserve(size, size_ - size);
  co_await below().resize(size);
}

Task<void> CopyBeforeWrite::close() {
  (void)co_await late_.join().result();
  // Kept open: one of its edges may have to be led elsewhere.
  Child target = below_target_ ? target_.hold() : Child();
  Result<void> kept = co_await target_.close().result();
  if (target) {
    co_await show_disk_again();
    kept = co_await target.close().result();
  }
  co_await Filter::close();
  if (!kept) co_await fail(kept.error().copy());
}

void CopyBeforeWrite::abandon() {
  if (below_target_) below_target().forget_filter();
  showed_.abandon();
  below_target_.abandon();
  target_.abandon();
  Filter::abandon();
}

// --- A target over the disk ----------------------------------------------------------------------

SnapshotBelow& CopyBeforeWrite::below_target() const {
  return static_cast<SnapshotBelow&>(*below_target_);
}

std::optional<Move> CopyBeforeWrite::move_for_target() {
  shows_ = SnapshotBelow::edge_that_shows(*target_, below());
  if (!shows_) return std::nullopt;
  Device& shown = SnapshotBelow::stands_for(**shows_);  // An earlier snapshot may have ended there.
  if (&shown != &below()) showed_ = Child::to(shown).hold();
  Child snapshot = std::make_unique<SnapshotBelow>(Child::to(below()), *this);
  below_target_ = snapshot.hold();
  return Move{*shows_, below_target_.node()};
}

Task<void> CopyBeforeWrite::enter(const Drain& drain, Child& filter) {
  std::vector<Move> shown;
  std::optional<Drain> shown_drain;  // The target may show a disk that lies below a filter of ours.
  if (const std::optional<Move> one = move_for_target()) {
    shown.push_back(*one);
    shown_drain.emplace(std::vector<Child*>{shows_});
    co_await shown_drain->begin();
  }
  std::vector<Move> above;
  const auto stays = [&](const Child& edge) {
    if (&edge == shows_ || edge.role() == Role::name) return true;
    if (!edge.owner()) return false;
    // What an earlier snapshot has left in the target goes.
    const bool is_left = shows_ && edge.owner() == shows_->get() &&
                         &SnapshotBelow::stands_for(*edge.owner()) != edge.owner();
    return is_left || edge.owner() == this || edge.owner() == below_target_.get();
  };
  for (Child* edge : below().node()->parents()) {
    if (!stays(*edge)) above.push_back({*edge, filter.node()});
  }
  std::vector<Move> all = shown;
  for (const Move& move : above) all.push_back(move);
  co_await check_moves(all);
  if (shown_drain) repoint(*shown_drain, shown);
  repoint(drain, above);
}

Task<void> CopyBeforeWrite::show_snapshot_in_target() {
  const std::optional<Move> shown = move_for_target();
  if (!shown) co_return;
  const std::array moves = {*shown};
  Drain drain(std::vector<Child*>{shows_});
  co_await drain.begin();
  co_await check_moves(moves);
  repoint(drain, moves);
}

Task<void> CopyBeforeWrite::end_snapshot(Error why) {
  break_snapshot(std::move(why));
  if (below_target_) co_await below_target().end();
}

Task<void> CopyBeforeWrite::show_disk_again() {
  SnapshotBelow& snapshot = below_target();
  co_await snapshot.end();
  if (shows_->get() == &snapshot) {
    Drain drain(std::vector<Child*>{shows_});
    co_await drain.begin();
    const std::array moves = {Move{*shows_, showed_ ? showed_.node() : snapshot.disk().node()}};
    const bool is_read = shows_->effective().uses.any();
    if (!is_read && check_moves(moves)) repoint(drain, moves);
  }
  for (Child* edge : {&showed_, &below_target_}) {
    if (*edge) (void)co_await edge->close().result();
    edge->reset();
  }
}

// --- The snapshot --------------------------------------------------------------------------------

Result<void> CopyBeforeWrite::check_readable(uint64_t offset, uint64_t end) const {
  if (broken_) {
    return Error(Errc::denied,
                 cat("the snapshot of ", quoted(name()), " is broken: ", broken_.message()));
  }
  const Clusters clusters = clusters_of(offset, end - offset);
  const uint64_t missing = unwanted_.next(true, clusters.first, clusters.end);
  if (missing == clusters.end) return {};
  return Error(Errc::denied,
               cat(hex(std::max(offset, missing * cluster_)), " is no part of the snapshot of ",
                   quoted(name()), lets_go_ ? ": it was let go" : ": its bitmap left it out"));
}

/// Up to where, from `offset` on, clusters are in the target (`kept`) or not; `offset` itself where
/// the first one is otherwise.
uint64_t CopyBeforeWrite::end_of_run(bool kept, uint64_t offset, uint64_t end) const {
  const uint64_t next = kept_.next(!kept, offset / cluster_, div_ceil(end, cluster_));
  return std::clamp(next * cluster_, offset, end);
}

/// Reads what has one source; how much that was.
Task<uint64_t> CopyBeforeWrite::read_piece(uint64_t offset, MutableBytes data, IoTag tag) {
  const uint64_t end = offset + data.size();
  if (const uint64_t kept = end_of_run(true, offset, end); kept > offset) {
    co_await target_->read(offset, data.first(kept - offset), tag);
    co_return kept - offset;
  }
  const uint64_t missing = end_of_run(false, offset, end);
  Result<void> read = co_await below().read(offset, data.first(missing - offset), tag).result();
  // A change waits until its clusters are in the target: the others are what they were.
  const uint64_t same = end_of_run(false, offset, missing);
  if (!read && same == missing) co_await std::move(read);
  co_return read ? same - offset : 0;
}

Task<void> CopyBeforeWrite::read_snapshot(uint64_t offset, MutableBytes data, IoTag tag) {
  if (!within(offset, data.size(), size_)) co_await fail(out_of_range("read", offset, data.size()));
  const uint64_t end = offset + data.size();
  while (!data.empty()) {
    co_await check_readable(end - data.size(), end);
    const uint64_t done = co_await read_piece(end - data.size(), data, tag);
    data = data.subspan(done);
  }
  // A change that went on without its copy did so before it reached what was read here.
  co_await check_readable(offset, end);
}

Task<Extent> CopyBeforeWrite::snapshot_status(uint64_t offset, uint64_t length) {
  if (!within(offset, length, size_)) co_return out_of_range("status", offset, length);
  if (length == 0) co_return Extent();
  co_await check_readable(offset, offset + 1);
  // What the bitmap left out begins another extent.
  const Clusters all = clusters_of(offset, length);
  length = std::min(length, unwanted_.next(true, all.first, all.end) * cluster_ - offset);
  Extent extent;
  while (extent.length == 0) {
    if (const uint64_t kept = end_of_run(true, offset, offset + length); kept > offset) {
      extent = co_await target_->status(offset, kept - offset);
      break;
    }
    const uint64_t missing = end_of_run(false, offset, offset + length);
    Result<Extent> now = co_await below().status(offset, missing - offset).result();
    // As for a read.
    const uint64_t same = end_of_run(false, offset, missing);
    if (!now && same != missing) continue;
    extent = co_await std::move(now);
    extent.length = std::min(extent.length, same - offset);
  }
  co_await check_readable(offset, offset + 1);
  extent.host_offset.reset();
  extent.file = {};
  co_return extent;
}

}  // namespace byre
