// SPDX-License-Identifier: Apache-2.0
#include "job/convert.h"

#include <algorithm>
#include <utility>

namespace byre {

namespace {

/// Zeroing goes in steps, so that progress moves and stop() is heard.
constexpr uint64_t kZeroStep = 1 * GiB;

/// Counts something as under way for as long as it lives.
class Counted {
 public:
  explicit Counted(unsigned& count) : count_(count) { ++count_; }
  Counted(const Counted&) = delete;
  ~Counted() { --count_; }

 private:
  unsigned& count_;
};

}  // namespace

Convert::Convert(std::vector<Device*> sources, Device& target, ConvertOptions options)
    : target_(target),
      options_(std::move(options)),
      unit_(options_.compressed ? target.preferred_size() : 1),
      cursor_lock_(target.reactor().ready()),
      turn_(target.reactor().ready()) {
  BYRE_ASSERT(options_.requests_max > 0 && options_.request_size >= kSectorSize);
  BYRE_ASSERT(options_.request_size % unit_ == 0);
  for (Device* device : sources) {
    const uint64_t size = round_up(device->size(), kSectorSize);
    sources_.push_back({.device = device, .start = total_, .size = size});
    total_ += size;
  }
}

Task<void> Convert::run() {
  if (target_.size() < total_ && !target_.can_grow()) {
    co_await fail(Error(Errc::no_space, "output file is smaller than input file"));
  }
  {
    Scope workers(target_.reactor().ready());
    for (unsigned i = 0; i < options_.requests_max; ++i) workers.spawn(work());
    co_await workers.join();
  }
  if (!options_.target_reads_zero && target_.size() > total_) {
    co_await zero(total_, target_.size() - total_);
  }
  if (stopped_) co_await fail(Error(Errc::cancelled, "interrupted"));
  const Counted counted(under_way_.flushes);
  co_await target_.flush(IoTag::flush);
}

std::string Convert::waiting_for() const {
  std::string text;
  const auto add = [&](unsigned count, std::string_view one, std::string_view many) {
    if (count == 0) return;
    text += cat(text.empty() ? "" : ", ", count, " ", count == 1 ? one : many);
  };
  std::string names;
  for (const Source& source : sources_) {
    names += cat(names.empty() ? "" : " ", quoted(source.device->name()));
  }
  add(under_way_.reads, cat("read of ", names), cat("reads of ", names));
  add(under_way_.maps, cat("look at the map of ", names), "");
  const std::string target = quoted(target_.name());
  add(under_way_.writes, cat("write to ", target), cat("writes to ", target));
  add(under_way_.flushes, cat("flush of ", target), "");
  return text;
}

Task<void> Convert::work() {
  Buffer buffer;
  while (!failed_) {
    std::optional<Piece> piece;
    {
      const auto hold = co_await cursor_lock_.lock();
      if (failed_ || stopped_) break;
      Result<std::optional<Piece>> found = co_await next().result();
      if (!found) {
        failed_ = true;
        turn_.notify();
        co_await fail(std::move(found).error());
      }
      piece = *found;
    }
    if (!piece) break;
    Result<void> copied = co_await copy(*piece, buffer).result();
    if (!copied) {
      failed_ = true;
      turn_.notify();
      co_await fail(std::move(copied).error());
    }
    done_ += piece->length;
    if (options_.progress) options_.progress(done_, total_);
  }
}

/// The next piece of the sources; none at their end.
Task<std::optional<Convert::Piece>> Convert::next() {
  if (position_ == total_) co_return std::optional<Piece>();
  while (position_ >= sources_[source_].start + sources_[source_].size) ++source_;
  Source& source = sources_[source_];
  const uint64_t offset = position_ - source.start;
  if (extent_left_ == 0 && offset >= source.device->size()) {
    // The rest of the last sector.
    extent_ = {.length = source.size - offset, .data = false, .zero = true};
    extent_left_ = extent_.length;
    extent_kind_ = kind_of(extent_, position_);
  }
  if (extent_left_ == 0) {
    const Counted counted(under_way_.maps);
    uint64_t ahead = source.device->size() - offset;
    if (options_.target_has_backing && position_ < options_.target_backing_size) {
      ahead = std::min(ahead, options_.target_backing_size - position_);
    }
    Result<Extent> extent = co_await source.device->status(offset, ahead).result();
    if (!extent) {
      source_failed_ = true;
      co_return std::move(extent).error().while_doing(
          cat("look at ", hex(offset), " of ", quoted(source.device->name())));
    }
    extent_ = *std::move(extent);
    if (extent_.length == 0) {
      co_return Error(Errc::io,
                      cat("no status for ", hex(offset), " of ", quoted(source.device->name())));
    }
    extent_left_ = extent_.length;
    extent_kind_ = kind_of(extent_, position_);
  }

  // Pieces end at multiples of their size, so that no cluster of the target is in two of them.
  Piece piece{.kind = extent_kind_, .at = position_};
  const bool is_large = piece.kind == Kind::zero || piece.kind == Kind::skip;
  const uint64_t step = is_large ? kZeroStep : options_.request_size;
  piece.length = std::min(extent_left_, round_down(position_, step) + step - position_);
  // Rounding up to a sector, which only the last piece of a source can need.
  if (offset + piece.length == source.device->size()) piece.length = source.size - offset;
  make_whole(piece);
  extent_left_ -= std::min(extent_left_, piece.length);
  position_ += piece.length;
  piece.sequence = next_sequence_++;
  co_return std::optional(piece);
}

/// Cuts the piece off at a multiple of the unit; what is left of one is read with what follows it.
void Convert::make_whole(Piece& piece) const {
  const uint64_t end = piece.at + piece.length;
  if (end == total_ || end % unit_ == 0) return;
  const uint64_t whole = round_down(end, unit_);
  if (whole > piece.at) {
    piece.length = whole - piece.at;
  } else {
    piece.kind = Kind::data;
    piece.length = std::min(piece.at + unit_, total_) - piece.at;
  }
}

Convert::Kind Convert::kind_of(const Extent& extent, uint64_t at) const {
  const bool over_backing = options_.target_has_backing && at < options_.target_backing_size;
  const bool from_below = !extent.allocated || extent.depth > 0;
  if (over_backing && from_below) return Kind::skip;
  if (!extent.zero) return Kind::data;
  if (options_.sparse_size == 0) return Kind::fill;
  const bool reads_zero = options_.target_has_backing ? !over_backing : options_.target_reads_zero;
  return reads_zero ? Kind::skip : Kind::zero;
}

Task<void> Convert::copy(const Piece& piece, Buffer& buffer) {
  const bool has_bytes = piece.kind == Kind::data || piece.kind == Kind::fill;
  if (has_bytes && buffer.size() == 0) buffer = Buffer(options_.request_size);
  const MutableBytes data = has_bytes ? buffer.bytes().first(piece.length) : MutableBytes();
  if (piece.kind == Kind::fill) fill_zero(data);
  if (piece.kind == Kind::data) co_await read(piece.at, data);
  co_await in_turn(piece.sequence);
  if (failed_) co_return;
  // Begins at once, and so before the writes of later pieces.  The first one ends before the next
  // begins: while an image loads its first tables, those who wait for them could pass each other.
  Scope writing(target_.reactor().ready());
  if (has_bytes) writing.spawn(write_runs(piece.at, data));
  if (piece.kind == Kind::zero) writing.spawn(zero(piece.at, piece.length));
  if (has_bytes && std::exchange(first_write_, false)) co_await writing.join();
  end_turn(piece.sequence);
  co_await writing.join();
}

Task<void> Convert::read(uint64_t at, MutableBytes data) {
  const Counted counted(under_way_.reads);
  for (const Source& source : sources_) {
    const uint64_t from = std::max(at, source.start);
    const uint64_t to = std::min(at + data.size(), source.start + source.size);
    if (from >= to) continue;
    const MutableBytes part = data.subspan(from - at, to - from);
    const uint64_t offset = from - source.start;
    const uint64_t there = std::min<uint64_t>(part.size(), source.device->size() - offset);
    Result<void> read =
        co_await source.device->read(offset, part.first(there), IoTag::read_guest).result();
    if (!read) {
      source_failed_ = true;
      co_await fail(std::move(read).error().while_doing(
          cat("read ", there, " bytes at ", hex(offset), " of ", quoted(source.device->name()))));
    }
    fill_zero(part.subspan(there));
  }
}

/// Writes `data`, or what of it is not zero.
Task<void> Convert::write_runs(uint64_t at, Bytes data) {
  const uint64_t unit = std::max(options_.sparse_size, unit_);
  if (options_.sparse_size == 0) {
    co_await write(at, data);
    co_return;
  }
  uint64_t done = 0;
  while (done < data.size()) {
    // A run of units that are alike; units lie at multiples of their size in the target.
    bool zeros = false;
    uint64_t end = done;
    while (end < data.size()) {
      const uint64_t stop = std::min<uint64_t>(data.size(), round_down(at + end, unit) + unit - at);
      const bool is_zeros = is_zero(data.subspan(end, stop - end));
      if (end == done) zeros = is_zeros;
      if (is_zeros != zeros) break;
      end = stop;
    }
    if (!zeros) {
      co_await write(at + done, data.subspan(done, end - done));
    } else if (!options_.target_reads_zero) {
      co_await zero(at + done, end - done);
    }
    done = end;
  }
}

Task<void> Convert::write(uint64_t at, Bytes data) {
  const Counted counted(under_way_.writes);
  wrote_ = true;
  // Behind the end of the sources a cluster of a larger target may be left in part.
  const uint64_t end = at + data.size();
  const bool whole = end % unit_ == 0 || end == target_.size();
  co_await target_.write(at, data,
                         {.fua = options_.fua,
                          .compressed = options_.compressed && whole,
                          .compression_level = options_.compression_level});
}

Task<void> Convert::zero(uint64_t at, uint64_t length) {
  while (length > 0 && !stopped_) {
    const uint64_t step = std::min(length, kZeroStep);
    const Counted counted(under_way_.writes);
    wrote_ = true;
    co_await target_.zero(at, step, {.may_unmap = true, .fua = options_.fua});
    at += step;
    length -= step;
  }
}

Task<void> Convert::in_turn(uint64_t sequence) {
  if (!options_.in_order) co_return;
  while (turn_sequence_ != sequence && !failed_) co_await turn_.wait();
}

void Convert::end_turn(uint64_t sequence) {
  if (!options_.in_order) return;
  turn_sequence_ = sequence + 1;
  turn_.notify();
}

}  // namespace byre
