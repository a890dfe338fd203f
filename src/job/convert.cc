// SPDX-License-Identifier: Apache-2.0
#include "job/convert.h"

#include <algorithm>
#include <utility>

#include "io/copy_range.h"

namespace byre {

Convert::Convert(std::vector<Device*> sources, Device& target, ConvertOptions options)
    : target_(target), options_(std::move(options)) {
  for (Device* device : sources) {
    const uint64_t size = round_up(device->size(), kSectorSize);
    sources_.push_back({.device = device, .start = total_, .size = size});
    total_ += size;
  }
  if (options_.progress) {
    progress_.on_change([this](const Progress& progress) {
      if (progress.done() > 0) options_.progress(progress.done(), progress.total());
    });
  }
  progress_.set_total(total_);
  copy_.emplace(static_cast<CopySource&>(*this), target_, progress_,
                CopyOptions{.sparse_size = options_.sparse_size,
                            .on_host = options_.on_host.has_value(),
                            .target_reads_zero = options_.target_reads_zero,
                            .compressed = options_.compressed,
                            .compression_level = options_.compression_level,
                            .in_order = options_.in_order,
                            .fua = options_.fua,
                            .requests_max = options_.requests_max,
                            .request_size = options_.request_size});
}

Task<void> Convert::run() {
  if (target_.size() < total_ && !target_.can_grow()) {
    co_await fail(Error(Errc::no_space, "output file is smaller than input file"));
  }
  co_await copy_->run();
  if (!options_.target_reads_zero && target_.size() > total_) {
    co_await copy_->zero(total_, target_.size() - total_);
    if (progress_.stopped()) co_await fail(Error(Errc::cancelled, "interrupted"));
    if (options_.record) options_.record->note_zeros(total_, target_.size() - total_);
  }
  co_await copy_->flush();
}

std::string Convert::names() const {
  std::string names;
  for (const Source& source : sources_) {
    names += cat(names.empty() ? "" : " ", quoted(source.device->name()));
  }
  return names;
}

Task<CopySource::Stretch> Convert::look(uint64_t at) {
  while (at >= sources_[source_].start + sources_[source_].size) ++source_;
  const Source& source = sources_[source_];
  const uint64_t offset = at - source.start;
  const uint64_t there = source.device->size();
  if (offset >= there) {
    // The rest of the last sector.
    const Extent rest{.length = source.size - offset, .data = false, .zero = true};
    note(rest, at, rest.length);
    co_return Stretch{kind_of(rest, at), rest.length};
  }
  uint64_t ahead = there - offset;
  if (options_.target_has_backing && at < options_.target_backing_size) {
    ahead = std::min(ahead, options_.target_backing_size - at);
  }
  const auto where = [&] { return cat(hex(offset), " of ", quoted(source.device->name())); };
  Result<Extent> extent = co_await source.device->status(offset, ahead).result();
  if (!extent) co_return std::move(extent).error().while_doing(cat("look at ", where()));
  if (extent->length == 0) co_return Error(Errc::io, cat("no status for ", where()));
  uint64_t length = extent->length;
  // Rounded up to a sector, which only the last one of a source can need.
  if (offset + length == there) length = source.size - offset;
  note(*extent, at, length);
  co_return Stretch{kind_of(*extent, at), length};
}

/// What reads as zeros is not read; and what the target's backing disk has is not looked at.
void Convert::note(const Extent& extent, uint64_t at, uint64_t length) {
  const bool over_backing = options_.target_has_backing && at < options_.target_backing_size;
  const bool from_below = !extent.allocated || extent.depth > 0;
  if (options_.record && extent.zero && !(over_backing && from_below))
    options_.record->note_zeros(at, length);
}

CopySource::Kind Convert::kind_of(const Extent& extent, uint64_t at) const {
  const bool over_backing = options_.target_has_backing && at < options_.target_backing_size;
  const bool from_below = !extent.allocated || extent.depth > 0;
  if (over_backing && from_below) return Kind::skip;
  if (!extent.zero) return Kind::data;
  if (options_.sparse_size == 0) return Kind::fill;
  const bool reads_zero = options_.target_has_backing ? !over_backing : options_.target_reads_zero;
  return reads_zero ? Kind::skip : Kind::zero;
}

Task<CopySource::Parts> Convert::read(uint64_t at, MutableBytes data) {
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
      co_return std::move(read).error().while_doing(
          cat("read ", there, " bytes at ", hex(offset), " of ", quoted(source.device->name())));
    }
    fill_zero(part.subspan(there));
  }
  if (options_.record) options_.record->note(at, data);
  co_return Parts{{0, data.size()}};
}

/// A piece that is not whole within one source, or not all data of one file, is none for the
/// kernel.
Task<bool> Convert::copy_on_host(uint64_t at, uint64_t length) {
  File* const target = options_.on_host->target;
  if (!target || !host_copies_) co_return false;
  for (size_t i = 0; i < sources_.size(); ++i) {
    const Source& source = sources_[i];
    const bool inside = at >= source.start && at + length <= source.start + source.device->size();
    if (!inside) continue;
    File* const file = options_.on_host->sources[i];
    for (uint64_t done = 0; done < length && file && host_copies_;) {
      const uint64_t offset = at - source.start + done;
      const Extent extent = co_await source.device->status(offset, length - done);
      const bool plain = extent.data && !extent.zero && !extent.compressed && extent.depth == 0 &&
                         extent.host_offset.has_value();
      if (!plain) co_return false;
      const uint64_t step = std::min(extent.length, length - done);
      host_copies_ = co_await copy_range({*file, *extent.host_offset}, {*target, at + done}, step);
      done += step;
    }
    co_return file&& host_copies_;
  }
  co_return false;
}

}  // namespace byre
