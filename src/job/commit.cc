// SPDX-License-Identifier: Apache-2.0
#include "job/commit.h"

#include <algorithm>

#include "job/layers.h"

namespace byre {

namespace {

/// What qemu-img copies at a time.
uint64_t unit_of(const Device& base) {
  const auto* image = dynamic_cast<const Image*>(&base);
  return image ? std::max(image->geometry().cluster_size(), 4 * KiB) : 64 * KiB;
}

}  // namespace

Result<std::unique_ptr<Commit>> Commit::make(Image& overlay, Progress& progress,
                                             CommitOptions options) {
  BYRE_ASSERT(options.depth > 0);
  const std::vector<Device*> layers = layers_of(overlay);
  if (options.depth >= layers.size()) {
    return invalid("there are only ", layers.size() - 1, " disks below ", quoted(overlay.name()));
  }
  if (options.empty && options.depth != 1) {
    return invalid(quoted(overlay.name()), " can only be emptied over its own backing disk");
  }
  Device& base = *layers[options.depth];
  if (!base.writable()) {
    return Error(Errc::read_only,
                 cat(quoted(base.name()), ", the disk to commit into, is not open for writing"));
  }
  const auto first = layers.begin() + 1;
  std::vector<Device*> between(first, first + (options.depth - 1));
  return std::unique_ptr<Commit>(new Commit(overlay, std::move(between), base, progress, options));
}

Commit::Commit(Image& overlay, std::vector<Device*> between, Device& base, Progress& progress,
               CommitOptions options)
    : overlay_(overlay),
      between_(std::move(between)),
      base_(base),
      progress_(progress),
      options_(options),
      // Bytes that the overlay stores are stored in the base, also where they are zeros.
      copy_(*this, base, progress,
            {.sparse_size = 0,
             .unit = options.whole_clusters ? unit_of(base) : 1,
             .fua = options.fua,
             .requests_max = options.requests_max,
             .request_size = std::max(options.request_size, unit_of(base)),
             .rate = options.rate}) {}

Task<void> Commit::run() {
  progress_.set_total(size());
  if (base_.size() < size()) {
    co_await base_.resize(size()).doing("make ", quoted(base_.name()), " as large as ", names());
  }
  co_await copy_.run();
  co_await copy_.flush();  // O9
  if (!options_.empty) co_return;
  if (progress_.stopped()) co_await fail(Error(Errc::cancelled, "interrupted"));
  co_await overlay_.empty();
}

Task<CopySource::Stretch> Commit::look(uint64_t at) {
  Stretch stretch = co_await look_once(at);
  if (!options_.whole_clusters) co_return stretch;
  // What ends in the middle of a unit is data: not where nothing is to be copied on either side.
  while (stretch.kind == Kind::skip && (at + stretch.length) % unit_of(base_) != 0 &&
         at + stretch.length < size()) {
    const Stretch next = co_await look_once(at + stretch.length);
    if (next.kind != Kind::skip) break;
    stretch.length += next.length;
  }
  co_return stretch;
}

/// How far qemu-img's look at a map goes at once: no further than a table.
uint64_t Commit::limit(uint64_t at, uint64_t length, size_t depth) const {
  for (size_t i = 0; i <= depth; ++i) {
    const Device* layer = i == 0 ? &overlay_ : between_[i - 1];
    const auto* image = dynamic_cast<const Image*>(layer);
    if (!image) continue;
    length = std::min(length, image->geometry().end_of_table(GuestOffset{at}).value - at);
  }
  return length;
}

Task<CopySource::Stretch> Commit::look_once(uint64_t at) {
  uint64_t ahead = size() - at;
  bool hidden = false;  // An image between ends before here: nothing of the base shows.
  for (const Device* layer : between_) {
    if (at < layer->size()) {
      ahead = std::min(ahead, layer->size() - at);
    } else {
      hidden = true;
    }
  }
  Result<Extent> found = co_await overlay_.status(at, ahead).result();
  if (!found)
    co_return std::move(found).error().while_doing(cat("look at ", hex(at), " of ", names()));
  const Extent& extent = *found;
  if (extent.length == 0)
    co_return Error(Errc::io, cat("no status for ", hex(at), " of ", names()));
  const bool is_above = extent.allocated || (extent.depth > 0 && extent.depth < options_.depth);
  if (!is_above) co_return Stretch{hidden ? Kind::zero : Kind::skip, extent.length};
  const uint64_t length = options_.whole_clusters
                              ? limit(at, extent.length, extent.allocated ? 0 : extent.depth)
                              : extent.length;
  co_return Stretch{extent.zero ? Kind::zero : Kind::data, length};
}

Task<CopySource::Parts> Commit::read(uint64_t at, MutableBytes data) {
  Result<void> read = co_await overlay_.read(at, data, IoTag::read_guest).result();
  if (!read) {
    co_return std::move(read).error().while_doing(
        cat("read ", data.size(), " bytes at ", hex(at), " of ", names()));
  }
  co_return Parts{{0, data.size()}};
}

}  // namespace byre
