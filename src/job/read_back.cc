// SPDX-License-Identifier: Apache-2.0
#include "job/read_back.h"

#include <algorithm>

#include "coro/scope.h"
#include "format/checksum.h"

namespace byre {

namespace {

/// Of zeros that are not known as such.
constexpr uint64_t kPiece = 1 * MiB;

Error mismatch(const Device& target, uint64_t at, uint64_t length, std::string_view found) {
  return Error(Errc::io, cat("verify: ", quoted(target.name()), " holds ", found, " at ", hex(at),
                             ", ", length, " bytes: not what was read from the source"));
}

}  // namespace

void ReadBack::note(uint64_t at, Bytes data) {
  BYRE_ASSERT(data.size() <= UINT32_MAX);
  if (data.empty()) return;
  ranges_.push_back({at, static_cast<uint32_t>(data.size()), crc32_of(data)});
  total_ += data.size();
}

void ReadBack::note_zeros(uint64_t at, uint64_t length) {
  if (length == 0) return;
  total_ += length;
  if (!zeros_.empty() && zeros_.back().at + zeros_.back().length == at) {
    zeros_.back().length += length;
  } else {
    zeros_.push_back({at, length});
  }
}

/// What the workers of one check() share.
struct ReadBack::Check {
  const ReadBack& notes;
  Device& target;
  Progress& progress;
  size_t next_range = 0;
  size_t next_zeros = 0;
  bool failed = false;
};

Task<void> ReadBack::check(Device& target, Progress& progress, unsigned requests_max) const {
  progress.set_total(total_);
  Check check{*this, target, progress};
  Scope workers(target.reactor().ready());
  for (unsigned i = 0; i < requests_max; ++i) workers.spawn(work(check));
  co_await workers.join();
  co_await progress.check("verification");
}

Task<void> ReadBack::work(Check& check) {
  Buffer buffer;
  while (!check.failed && !check.progress.stopped()) {
    Result<void> done;
    if (check.next_range < check.notes.ranges_.size()) {
      const Range range = check.notes.ranges_[check.next_range++];
      done = co_await check_range(check, range, buffer).result();
    } else if (check.next_zeros < check.notes.zeros_.size()) {
      const Zeros zeros = check.notes.zeros_[check.next_zeros++];
      done = co_await check_zeros(check, zeros, buffer).result();
    } else {
      co_return;
    }
    if (!done) check.failed = true;
    co_await std::move(done);
  }
}

Task<void> ReadBack::check_range(Check& check, Range range, Buffer& buffer) {
  if (buffer.size() < range.length) buffer = Buffer(range.length);
  const MutableBytes data = buffer.bytes().first(range.length);
  co_await check.target.read(range.at, data, IoTag::read_guest)
      .doing("verify ", quoted(check.target.name()), " at ", hex(range.at));
  if (crc32_of(data) != range.checksum)
    co_await fail(mismatch(check.target, range.at, range.length, "other bytes"));
  check.progress.advance(range.length);
}

Task<void> ReadBack::check_zeros(Check& check, Zeros zeros, Buffer& buffer) {
  while (zeros.length > 0 && !check.failed && !check.progress.stopped()) {
    const Extent extent = co_await check.target.status(zeros.at, zeros.length)
                              .doing("verify ", quoted(check.target.name()), " at ", hex(zeros.at));
    uint64_t length = std::min(extent.length, zeros.length);
    if (!extent.zero) {
      length = std::min(length, kPiece);
      if (buffer.size() < length) buffer = Buffer(kPiece);
      const MutableBytes data = buffer.bytes().first(length);
      co_await check.target.read(zeros.at, data, IoTag::read_guest)
          .doing("verify ", quoted(check.target.name()), " at ", hex(zeros.at));
      if (!is_zero(data))
        co_await fail(mismatch(check.target, zeros.at, length, "bytes that are not zero"));
    }
    check.progress.advance(length);
    zeros.at += length;
    zeros.length -= length;
  }
}

}  // namespace byre
