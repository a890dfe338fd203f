// SPDX-License-Identifier: Apache-2.0
#include "job/live/mirror_filter.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/units.h"
#include "io/buffer.h"
#include "job/live/copy_check.h"

namespace byre {
namespace {

constexpr uint64_t kGranularityMin = 64 * KiB;
constexpr uint64_t kGranularityMax = 1 * MiB;
/// Zeros are taken in steps of this size.
constexpr uint64_t kZerosMax = 1 * GiB;

uint64_t granularity_for(const Device& source, const Device& target,
                         const MirrorFilterOptions& options) {
  if (options.backing_comes_later) {
    return std::bit_ceil(
        std::max<uint64_t>({options.granularity, kGranularityMin, target.preferred_size(),
                            source.alignment(), target.alignment()}));
  }
  if (options.granularity != 0) return options.granularity;
  const uint64_t natural =
      std::clamp<uint64_t>(target.preferred_size(), kGranularityMin, kGranularityMax);
  return std::bit_ceil(std::max<uint64_t>({natural, source.alignment(), target.alignment()}));
}

}  // namespace

Result<void> MirrorFilter::fits(const Device& source, const Device& target,
                                const MirrorFilterOptions& options) {
  const uint64_t granularity = options.granularity;
  const uint64_t alignment = std::max(source.alignment(), target.alignment());
  if (granularity != 0 && (!std::has_single_bit(granularity) || granularity < alignment)) {
    return invalid("the granularity must be a power of two, and ", alignment, " at least");
  }
  if (!target.writable()) {
    return Error(Errc::read_only,
                 cat("the target ", quoted(target.name()), " is read-only: open it for writing"));
  }
  if (target.size() < source.size()) {
    return invalid("the target ", quoted(target.name()), " has ", target.size(), " bytes, and ",
                   quoted(source.name()), " has ", source.size(), ": make the target as large");
  }
  if (source.size() % target.alignment() != 0) {
    return invalid(quoted(source.name()), " has ", source.size(), " bytes, and the target ",
                   quoted(target.name()), " takes multiples of ", target.alignment(),
                   ": use a target that takes single bytes");
  }
  return {};
}

MirrorFilter::MirrorFilter(Child source, Child target, MirrorFilterOptions options)
    : Filter(std::move(source)),
      target_(std::move(target)),
      options_(std::move(options)),
      granularity_(granularity_for(below(), *target_, options_)),
      pieces_(div_ceil(below().size(), granularity_)),
      mode_(options_.mode),
      locks_(reactor().ready()),
      cursor_(reactor().ready()) {
  target_.belong_to(*this, Role::other);
  dirty_.insert(0, pieces_);
  if (options_.sums) sums_ = std::make_unique<CopySums>(below().size(), granularity_);
}

// --- Pieces --------------------------------------------------------------------------------------

/// Those that a range touches.
MirrorFilter::Pieces MirrorFilter::around(uint64_t offset, uint64_t length) const {
  if (length == 0) return {};
  return {.first = std::min(offset / granularity_, pieces_),
          .end = std::min(div_ceil(offset + length, granularity_), pieces_)};
}

/// Those that it covers; the last one of the disk may be shorter.
MirrorFilter::Pieces MirrorFilter::within(uint64_t offset, uint64_t length) const {
  const uint64_t end = offset + length;
  const Pieces inner{.first = div_ceil(offset, granularity_),
                     .end = end >= below().size() ? pieces_ : end / granularity_};
  return inner.first < inner.end ? inner : Pieces{};
}

void MirrorFilter::mark(Pieces pieces) {
  if (pieces.first >= pieces.end) return;
  dirty_.insert(pieces.first, pieces.end);
  if (changed_) changed_->notify();
}

void MirrorFilter::mark(uint64_t offset, uint64_t length) { mark(around(offset, length)); }

// --- Copying -------------------------------------------------------------------------------------

/// Where the first layer ends behind `at`, or `end`.
uint64_t MirrorFilter::end_of_layers(uint64_t at, uint64_t end) const {
  for (const Device* layer : options_.between) {
    if (at < layer->size()) end = std::min(end, layer->size());
  }
  return end;
}

bool MirrorFilter::reads_from_base(uint64_t at, const Extent& extent) const {
  if (options_.above == 0) return false;
  const bool is_above = extent.allocated || (extent.depth > 0 && extent.depth < options_.above);
  const bool is_hidden = std::ranges::any_of(
      options_.between, [at](const Device* layer) { return at >= layer->size(); });
  return !is_above && !is_hidden;
}

/// Does the target read so, as long as it gets nothing there?
bool MirrorFilter::reads_so_at_first(uint64_t at, const Extent& extent) const {
  return reads_from_base(at, extent) || (options_.target_is_zero && extent.zero);
}

/// Does the target read so already, as it never got anything there?
bool MirrorFilter::may_skip(uint64_t at, const Extent& extent) const {
  const Pieces pieces = around(at, extent.length);
  if (given_.next(true, pieces.first, pieces.end) != pieces.end) return false;
  return reads_so_at_first(at, extent);
}

Task<Extent> MirrorFilter::look(uint64_t at, uint64_t end) {
  Extent extent = co_await below().status(at, end_of_layers(at, end) - at);
  if (extent.length == 0) {
    co_return Error(Errc::io, cat("no status for ", hex(at), " of ", quoted(name())));
  }
  co_return std::move(extent);
}

Task<std::optional<MirrorFilter::Pieces>> MirrorFilter::take(uint64_t from) {
  const auto held = co_await cursor_.lock();
  if (dirty_.empty()) co_return std::optional<Pieces>();
  uint64_t first = dirty_.next(true, from, pieces_);
  if (first >= pieces_) first = dirty_.next(true, 0, pieces_);
  const uint64_t step = std::max<uint64_t>(1, options_.request_size / granularity_);
  uint64_t most = std::min(first + step, pieces_);
  // Of what needs no buffer, more.  Who takes it looks again.
  const uint64_t ahead = std::min(below().size() - first * granularity_, kZerosMax);
  const Result<Extent> extent =
      co_await look(first * granularity_, first * granularity_ + ahead).result();
  if (extent && (extent->zero || reads_from_base(first * granularity_, *extent))) {
    most =
        std::max(most, std::min((first * granularity_ + extent->length) / granularity_, pieces_));
  }
  const Pieces taken{.first = first, .end = dirty_.next(false, first, most)};
  dirty_.erase(taken.first, taken.end);
  // A guest may have been faster: nothing is left of it.
  if (taken.first == taken.end) co_return std::optional(Pieces{first, first});
  co_return std::optional(taken);
}

Task<MirrorFilter::Copied> MirrorFilter::copy(Pieces pieces) {
  if (pieces.first == pieces.end) co_return Copied();
  RangeLock::Request held(locks_, pieces.first, pieces.end, RangeLock::Mode::exclusive);
  co_await held;
  Result<Copied> done = co_await copy_locked(pieces).result();
  Copied copied = done ? *std::move(done) : Copied{.error = std::move(done).error()};
  if (copied.error) mark(pieces);
  co_return std::move(copied);
}

/// A write of a part of the target's cluster fills the rest with what the target has below, which
/// may not be there yet; and a piece has one checksum.  So of a piece that gets anything the rest
/// is copied as well.
Task<void> MirrorFilter::choose_whole_pieces(uint64_t at, uint64_t end) {
  while (at < end) {
    const Extent extent = co_await look(at, end);
    if (!reads_so_at_first(at, extent)) {
      const Pieces given = around(at, extent.length);
      given_.insert(given.first, given.end);
    }
    at += extent.length;
  }
}

/// Makes the target read there what the disk does.
Task<MirrorFilter::Copied> MirrorFilter::copy_locked(Pieces pieces) {
  Copied copied;
  const uint64_t all = std::min(pieces.end * granularity_, below().size());
  if (gives_whole_pieces()) co_await choose_whole_pieces(pieces.first * granularity_, all);
  if (sums_) sums_->forget(pieces);
  CopySums::Noter noter(sums_.get());
  Buffer buffer;
  for (uint64_t at = pieces.first * granularity_; at < all;) {
    uint64_t end = all;
    if (gives_whole_pieces()) {
      const uint64_t piece = at / granularity_;
      const uint64_t given = given_.next(true, piece, pieces.end);
      if (given != piece) {
        end = std::min(given * granularity_, all);
        if (options_.target_is_zero) noter.zeros(at, end - at);
        at = end;
        continue;
      }
      end = std::min(given_.next(false, piece, pieces.end) * granularity_, all);
    }
    const Extent extent = co_await look(at, end);
    uint64_t length = extent.length;
    if (may_skip(at, extent)) {
      at += length;
      continue;
    }
    Result<void> written;
    if (!extent.zero) {
      const uint64_t most = std::max(options_.request_size, granularity_);
      length = std::min(length, most);
      if (buffer.size() == 0) buffer = Buffer(most);
      const MutableBytes data = buffer.bytes().first(length);
      co_await below()
          .read(at, data, IoTag::none)
          .doing("read ", length, " bytes at ", hex(at), " of ", quoted(name()));
      const Pieces given = around(at, length);
      given_.insert(given.first, given.end);
      noter.bytes(at, data);
      written = co_await target_->write(at, data, {}).result();
    } else {
      const Pieces given = around(at, length);
      given_.insert(given.first, given.end);
      noter.zeros(at, length);
      written = co_await target_->zero(at, length, {.may_unmap = options_.unmap}).result();
    }
    if (!written) {
      copied.side = JobSide::target;
      copied.error = std::move(written).error().while_doing(
          cat("write ", length, " bytes at ", hex(at), " of ", quoted(target_->name())));
      break;
    }
    copied.bytes += length;
    at += length;
  }
  if (sums_ && copied.error) sums_->forget(pieces);
  if (sums_ && !copied.error) sums_->wrote(pieces);
  co_return std::move(copied);
}

// --- The guest's changes -------------------------------------------------------------------------

Task<void> MirrorFilter::write(uint64_t offset, Bytes data, WriteOptions options) {
  ++guest_requests_;
  if (mode_ == MirrorMode::write_blocking && !data.empty()) {
    co_await write_both(offset, data, options);
    if (helped_) co_await help(offset, data.size());
    co_return;
  }
  Result<void> done = co_await below().write(offset, data, options).result();
  mark(offset, data.size());  // Also when it has failed: a part of it may be there.
  co_await std::move(done);
}

Task<void> MirrorFilter::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  ++guest_requests_;
  if (mode_ == MirrorMode::write_blocking && length != 0) {
    co_await zero_both(offset, length, options);
    if (helped_) co_await help(offset, length);
    co_return;
  }
  Result<void> done = co_await below().zero(offset, length, options).result();
  mark(offset, length);
  co_await std::move(done);
}

Task<void> MirrorFilter::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  ++guest_requests_;
  Result<void> done = co_await below().discard(offset, length, options).result();
  mark(offset, length);
  co_await std::move(done);
}

Task<void> MirrorFilter::write_both(uint64_t offset, Bytes data, WriteOptions options) {
  const Pieces pieces = around(offset, data.size());
  if (pieces.first >= pieces.end) {  // Behind the end: it fails below.
    co_await below().write(offset, data, options);
    co_return;
  }
  RangeLock::Request held(locks_, pieces.first, pieces.end, RangeLock::Mode::exclusive);
  co_await held;
  // What is dirty all over is copied later anyway.
  const bool is_copied_later = dirty_.next(false, pieces.first, pieces.end) == pieces.end;
  // Before it goes down: what makes them dirty meanwhile counts.
  const Pieces whole = within(offset, data.size());
  const bool is_whole = whole.first == pieces.first && whole.end == pieces.end;
  if (!is_copied_later && !is_whole && gives_whole_pieces()) {
    co_await write_and_copy(pieces, offset, data, options);
    co_return;
  }
  if (!is_copied_later) dirty_.erase(whole.first, whole.end);
  Result<void> done = co_await below().write(offset, data, options).result();
  if (done && is_copied_later) co_return;
  if (done) {
    given_.insert(pieces.first, pieces.end);
    if (sums_) sums_->note(offset, data);
    const Result<void> copied = co_await target_->write(offset, data, {}).result();
    if (copied && sums_) sums_->wrote(pieces);
    if (copied) co_return;
    if (sums_) sums_->forget(pieces);
  }
  mark(pieces);
  co_await std::move(done);
}

/// Behind a change of both devices, which has no lock any more.
Task<void> MirrorFilter::help(uint64_t offset, uint64_t length) {
  const Pieces pieces = around(offset, length);
  co_await helped_->help(2 * (pieces.end - pieces.first));
}

/// The target gets all of the pieces.
Task<void> MirrorFilter::write_and_copy(Pieces pieces, uint64_t offset, Bytes data,
                                        WriteOptions options) {
  Result<void> done = co_await below().write(offset, data, options).result();
  co_await finish_both(pieces, std::move(done));
}

Task<void> MirrorFilter::zero_both(uint64_t offset, uint64_t length, ZeroOptions options) {
  const Pieces pieces = around(offset, length);
  if (pieces.first >= pieces.end) {
    co_await below().zero(offset, length, options);
    co_return;
  }
  RangeLock::Request held(locks_, pieces.first, pieces.end, RangeLock::Mode::exclusive);
  co_await held;
  const bool is_copied_later = dirty_.next(false, pieces.first, pieces.end) == pieces.end;
  Result<void> done = co_await below().zero(offset, length, options).result();
  if (done && is_copied_later) co_return;
  co_await finish_both(pieces, std::move(done));
}

/// After a change below, with the lock on these pieces.
Task<void> MirrorFilter::finish_both(Pieces pieces, Result<void> done) {
  if (done) {
    dirty_.erase(pieces.first, pieces.end);
    const Result<Copied> copied = co_await copy_locked(pieces).result();
    if (copied && !copied->error) co_return;
  }
  mark(pieces);
  co_await std::move(done);
}

Task<void> MirrorFilter::resize(uint64_t) {
  co_await fail(Error(Errc::busy, cat("Node '", node() ? node()->name() : name(),
                                      "' is busy: block device is in use by block job: mirror")));
}

Task<void> MirrorFilter::close() {
  const Result<void> closed = co_await target_.close().result();
  co_await Filter::close();
  if (!closed) co_await fail(closed.error().copy());
}

void MirrorFilter::abandon() {
  target_.abandon();
  Filter::abandon();
}

}  // namespace byre
