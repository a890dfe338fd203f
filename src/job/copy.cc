// SPDX-License-Identifier: Apache-2.0
#include "job/copy.h"

#include <algorithm>
#include <utility>

namespace byre {

namespace {

/// Zeroing goes in steps, so that progress moves and stop() is heard.
constexpr uint64_t kZeroStep = 1 * GiB;
/// So long a wait for the rate goes on after stop().
constexpr int64_t kWaitStep = 100 * kMillisecond;

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

Copy::Copy(CopySource& source, Device& target, Progress& progress, CopyOptions options)
    : source_(source),
      target_(target),
      progress_(progress),
      options_(options),
      unit_(options_.compressed ? target.preferred_size() : options_.unit),
      total_(source.size()),
      cursor_lock_(target.reactor().ready()),
      turn_(target.reactor().ready()),
      writers_(target.reactor().ready(), options_.requests_max) {
  BYRE_ASSERT(options_.requests_max > 0 && options_.request_size >= kSectorSize);
  BYRE_ASSERT(options_.request_size % unit_ == 0);
}

Task<void> Copy::run() {
  next_start_ = target_.reactor().now();
  Scope workers(target_.reactor().ready());
  for (unsigned i = 0; i < options_.requests_max; ++i) workers.spawn(work());
  co_await workers.join();
  if (progress_.stopped()) co_await fail(Error(Errc::cancelled, "interrupted"));
}

Task<void> Copy::flush() {
  const Counted counted(under_way_.flushes);
  co_await target_.flush(IoTag::flush);
}

std::string Copy::waiting_for() const {
  std::string text;
  const auto add = [&](unsigned count, std::string_view one, std::string_view many) {
    if (count == 0) return;
    text += cat(text.empty() ? "" : ", ", count, " ", count == 1 ? one : many);
  };
  const std::string names = source_.names();
  add(under_way_.reads, cat("read of ", names), cat("reads of ", names));
  add(under_way_.maps, cat("look at the map of ", names), "");
  const std::string target = quoted(target_.name());
  add(under_way_.writes, cat("write to ", target), cat("writes to ", target));
  add(under_way_.flushes, cat("flush of ", target), "");
  return text;
}

Task<void> Copy::work() {
  Buffer buffer;
  while (!failed_) {
    std::optional<Piece> piece;
    {
      const auto hold = co_await cursor_lock_.lock();
      if (failed_ || progress_.stopped()) break;
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
    progress_.advance(piece->length);
  }
}

/// The next piece of the source; none at its end.
Task<std::optional<Copy::Piece>> Copy::next() {
  if (position_ == total_) co_return std::optional<Piece>();
  if (stretch_.length == 0) {
    const Counted counted(under_way_.maps);
    Result<CopySource::Stretch> found = co_await source_.look(position_).result();
    if (!found) {
      source_failed_ = true;
      co_return std::move(found).error();
    }
    stretch_ = *found;
    BYRE_ASSERT(stretch_.length > 0);
    stretch_.length = std::min(stretch_.length, total_ - position_);
  }

  // Pieces end at multiples of their size, so that no cluster of the target is in two of them.
  Piece piece{.kind = stretch_.kind, .at = position_};
  const bool is_large = piece.kind == Kind::zero || piece.kind == Kind::skip;
  const uint64_t step = is_large ? kZeroStep : options_.request_size;
  piece.length = std::min(stretch_.length, round_down(position_, step) + step - position_);
  make_whole(piece);
  stretch_.length -= std::min(stretch_.length, piece.length);
  position_ += piece.length;
  piece.sequence = next_sequence_++;
  if (options_.rate != 0 && piece.kind != Kind::skip) co_await keep_rate(piece.length);
  co_return std::optional(piece);
}

/// Cuts the piece off at a multiple of the unit; what is left of one is read with what follows it.
void Copy::make_whole(Piece& piece) const {
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

/// Waits until a piece of `length` may begin.
Task<void> Copy::keep_rate(uint64_t length) {
  Reactor& reactor = target_.reactor();
  const Instant start = std::max(next_start_, reactor.now());
  const double seconds = static_cast<double>(length) / static_cast<double>(options_.rate);
  next_start_ = start + static_cast<int64_t>(std::min(seconds, 1e9) * 1e9);
  while (reactor.now() < start && !progress_.stopped()) {
    Op wait{.kind = Op::Kind::timer, .deadline = std::min(start, reactor.now() + kWaitStep)};
    co_await reactor.perform(wait);
  }
}

Task<void> Copy::copy(const Piece& piece, Buffer& buffer) {
  if (options_.on_host && piece.kind == Kind::data) {
    const Counted counted(under_way_.writes);
    wrote_ = true;
    if (co_await source_.copy_on_host(piece.at, piece.length)) {
      co_await in_turn(piece.sequence);
      end_turn(piece.sequence);
      co_return;
    }
  }
  const bool has_bytes = piece.kind == Kind::data || piece.kind == Kind::fill;
  if (has_bytes && buffer.size() == 0) buffer = Buffer(options_.request_size);
  const MutableBytes data = has_bytes ? buffer.bytes().first(piece.length) : MutableBytes();
  CopySource::Parts parts;
  if (piece.kind == Kind::fill) {
    fill_zero(data);
    parts.push_back({0, data.size()});
  }
  if (piece.kind == Kind::data) parts = co_await read(piece.at, data);
  co_await in_turn(piece.sequence);
  if (failed_) co_return;
  // All writes of the piece begin before those of later pieces.  The first ones end before the next
  // begin: while an image loads its first tables, those who wait for them could pass each other.
  Scope writes(target_.reactor().ready());
  if (piece.kind == Kind::zero) writes.spawn(zero(piece.at, piece.length));
  for (const CopySource::Part& part : parts) {
    const Bytes bytes = data.subspan(part.begin, part.end - part.begin);
    co_await begin_writes(piece.at + part.begin, bytes, part.as_data, writes);
  }
  if (has_bytes && std::exchange(first_write_, false)) co_await writes.join();
  end_turn(piece.sequence);
  co_await writes.join();
}

Task<CopySource::Parts> Copy::read(uint64_t at, MutableBytes data) {
  const Counted counted(under_way_.reads);
  Result<CopySource::Parts> parts = co_await source_.read(at, data).result();
  if (!parts) source_failed_ = true;
  co_return std::move(parts);
}

/// Begins to write `data`: the whole, or with a look for zeros what of it is not zero, its runs in
/// their order, side by side as far as there may be more requests.
Task<void> Copy::begin_writes(uint64_t at, Bytes data, bool as_data, Scope& writes) {
  const bool whole = as_data || options_.sparse_size == 0 || options_.on_host;
  const uint64_t unit = std::max(options_.sparse_size, unit_);
  uint64_t done = 0;
  while (done < data.size()) {
    // A run of units that are alike; units lie at multiples of their size in the target.
    bool zeros = false;
    uint64_t end = whole ? data.size() : done;
    while (end < data.size()) {
      const uint64_t stop = std::min<uint64_t>(data.size(), round_down(at + end, unit) + unit - at);
      const bool is_zeros =
          may_be_zeros(at + end, at + stop) && is_zero(data.subspan(end, stop - end));
      if (end == done) zeros = is_zeros;
      if (is_zeros != zeros) break;
      end = stop;
    }
    if (!zeros || !options_.target_reads_zero) {
      Semaphore::Hold permit = co_await writers_.acquire();
      const Bytes run = data.subspan(done, end - done);
      writes.spawn(write_run(at + done, run, zeros, std::move(permit)));
    }
    done = end;
  }
}

Task<void> Copy::write_run(uint64_t at, Bytes data, bool zeros, Semaphore::Hold) {
  if (failed_) co_return;
  if (zeros) {
    co_await zero(at, data.size());
  } else {
    co_await write(at, data);
  }
}

bool Copy::may_be_zeros(uint64_t begin, uint64_t end) const {
  if (!options_.zero_whole) return true;
  const bool last = end == total_ && options_.unit == options_.sparse_size;
  return begin % options_.sparse_size == 0 && (end % options_.sparse_size == 0 || last);
}

Task<void> Copy::write(uint64_t at, Bytes data) {
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

Task<void> Copy::zero(uint64_t at, uint64_t length) {
  while (length > 0 && !progress_.stopped()) {
    const uint64_t step = std::min(length, kZeroStep);
    const Counted counted(under_way_.writes);
    wrote_ = true;
    co_await target_.zero(at, step, {.may_unmap = true, .fua = options_.fua});
    at += step;
    length -= step;
  }
}

Task<void> Copy::in_turn(uint64_t sequence) {
  if (!options_.in_order) co_return;
  while (turn_sequence_ != sequence && !failed_) co_await turn_.wait();
}

void Copy::end_turn(uint64_t sequence) {
  if (!options_.in_order) return;
  turn_sequence_ = sequence + 1;
  turn_.notify();
}

}  // namespace byre
