// SPDX-License-Identifier: Apache-2.0
#include "job/rebase.h"

#include <algorithm>

#include "format/header_change.h"

namespace byre {

/// Where the old disk ends; 0 without one.
static uint64_t old_end(const std::vector<Device*>& old_layers) {
  return old_layers.size() > 1 ? old_layers[1]->size() : 0;
}

Rebase::Rebase(Image& overlay, Child& next, Progress& progress, RebaseOptions options)
    : overlay_(overlay),
      next_(next),
      progress_(progress),
      options_(options),
      unit_(options.compressed ? overlay.geometry().cluster_size()
                               : overlay.geometry().unit_size()),
      old_layers_(layers_of(overlay)),
      old_end_(old_end(old_layers_)),
      // A run that begins before the end of the old disk may go on behind it: stretches stay whole.
      piece_(std::max(
          options.zeros_as_data && old_end_ < overlay.size() ? kStretchMax : options.request_size,
          unit_)),
      // Zeroing leaves out what reads as zeros already, over the old disk, unless an entry can say
      // it: of a whole unit, in version 3.
      copy_(*this, overlay, progress,
            {.sparse_size = overlay.geometry().version >= 3 ? unit_ : 0,
             .zero_whole = true,
             .unit = unit_,
             .compressed = options.compressed,
             .fua = options.fua,
             .requests_max = options.requests_max,
             .request_size = piece_}) {
  if (!next_) return;
  new_layers_ = layers_of(*next_);
  meeting_ = find_meeting(old_layers_, new_layers_);
}

Task<void> Rebase::check_room(std::optional<BackingName> name) {
  if (name && overlay_.has_raw_data()) {
    co_await fail(
        invalid("the external data file of ", quoted(overlay_.name()),
                " holds the whole disk (data_file_raw), so there can be no backing file"));
  }
  std::vector<std::byte> first(overlay_.geometry().cluster_size());
  co_await overlay_.file().read(0, first, IoTag::header_read);
  const Header header = co_await parse_header(first);
  Extensions extensions = co_await parse_extensions(first, header);
  extensions.backing_format.reset();
  if (name) extensions.backing_format = name->format;
  (void)co_await change_header(first, header, extensions, name ? name->file : "");
}

Task<void> Rebase::run(std::optional<BackingName> name) {
  progress_.set_total(size());
  co_await copy_.run();
  co_await copy_.flush();  // O9
  if (progress_.stopped()) co_await fail(Error(Errc::cancelled, "interrupted"));
  co_await overlay_.replace_backing(next_, std::move(name));
}

std::string Rebase::names() const {
  std::string names = quoted(overlay_.name());
  if (next_) names += cat(" and ", quoted(next_->name()));
  return names;
}

Task<CopySource::Stretch> Rebase::look(uint64_t at) {
  const auto where = [&] { return cat("look at ", hex(at), " of ", names()); };
  Result<Extent> old = co_await overlay_.status(at, size() - at).result();
  if (!old) co_return std::move(old).error().while_doing(where());
  if (old->length == 0) co_return Error(Errc::io, cat("no status: ", where()));
  if (old->allocated) co_return Stretch{Kind::skip, old->length};
  if (options_.zeros_as_data) {
    co_await find_stretch(at).doing(where());
    // Runs may go on behind the end of the old disk.
    if (at < old_end_ && old_end_ < stretch_end_) co_return Stretch{Kind::data, stretch_end_ - at};
    old->length = std::min(old->length, stretch_end_ - at);
  }
  Result<Extent> now = co_await look_at_next(at, old->length).result();
  if (!now) co_return std::move(now).error().while_doing(where());
  if (now->length == 0) co_return Error(Errc::io, cat("no status: ", where()));
  const uint64_t length = std::min(old->length, now->length);
  const bool same = (old->zero && now->zero) || comes_from_shared(at, *old, *now);
  co_return Stretch{same ? Kind::skip : Kind::data, length};
}

/// How far the overlay has nothing of its own, in steps.
Task<void> Rebase::find_stretch(uint64_t at) {
  if (at < stretch_end_) co_return;
  const uint64_t table_end = overlay_.geometry().end_of_table(GuestOffset{at}).value;
  const uint64_t end = std::min({size(), at + kStretchMax, table_end});
  stretch_end_ = at;
  while (stretch_end_ < end) {
    const Extent found = co_await overlay_.status(stretch_end_, end - stretch_end_);
    if (found.allocated || found.length == 0) break;
    stretch_end_ += found.length;
  }
}

/// As Device::status(), of the new disk; zeros behind its end, and without one.
Task<Extent> Rebase::look_at_next(uint64_t at, uint64_t length) {
  if (!next_ || at >= next_->size()) {
    co_return Extent{.length = length, .data = false, .zero = true, .allocated = false};
  }
  co_return co_await next_->status(at, std::min(length, next_->size() - at));
}

/// Does what both show at `at` come from a disk that is in both chains?  Then its depth is at least
/// that of the disk where they meet; nothing above has it, or hides it by ending before.
bool Rebase::comes_from_shared(uint64_t at, const Extent& old, const Extent& now) const {
  if (!meeting_) return false;
  const auto from = [&](const Extent& extent, const std::vector<Device*>& layers, size_t meeting) {
    const size_t depth = extent.allocated ? 0 : extent.depth;
    const bool has_depth = extent.allocated || extent.depth > 0;
    return has_depth && depth >= meeting && at < layers[meeting]->size();
  };
  return from(old, old_layers_, meeting_->left) && from(now, new_layers_, meeting_->right);
}

/// By units: those of which `differs` says that the new disk shows something else.
template <class Differs>
CopySource::Parts Rebase::parts_where(uint64_t at, uint64_t length, const Differs& differs) const {
  Parts parts;
  for (uint64_t begin = 0; begin < length;) {
    const uint64_t end = std::min<uint64_t>(length, round_down(at + begin, unit_) + unit_ - at);
    if (differs(begin, end)) {
      if (parts.empty() || parts.back().end != begin) {
        parts.push_back({begin, begin, options_.zeros_as_data && at + begin < old_end_});
      }
      parts.back().end = end;
    }
    begin = end;
  }
  return parts;
}

Task<CopySource::Parts> Rebase::read(uint64_t at, MutableBytes data) {
  const auto reading = [&](const Device& from) {
    return cat("read ", data.size(), " bytes at ", hex(at), " of ", quoted(from.name()));
  };
  // What the overlay has nothing of is what the old disk shows.
  Result<void> read = co_await overlay_.read(at, data, IoTag::read_guest).result();
  if (!read) co_return std::move(read).error().while_doing(reading(overlay_));
  if (!next_ || at >= next_->size()) {
    co_return parts_where(at, data.size(), [&](uint64_t begin, uint64_t end) {
      return !is_zero(Bytes(data).subspan(begin, end - begin));
    });
  }
  Buffer buffer;
  if (!spare_.empty()) {
    buffer = std::move(spare_.back());
    spare_.pop_back();
  }
  if (buffer.size() < data.size()) buffer = Buffer(piece_);
  const MutableBytes now = buffer.bytes().first(data.size());
  read = co_await read_next(at, now).result();
  if (!read) co_return std::move(read).error().while_doing(reading(*next_));
  Parts parts = parts_where(at, data.size(), [&](uint64_t begin, uint64_t end) {
    return !equal(Bytes(data).subspan(begin, end - begin), Bytes(now).subspan(begin, end - begin));
  });
  spare_.push_back(std::move(buffer));
  co_return std::move(parts);
}

/// What the new disk shows.
Task<void> Rebase::read_next(uint64_t at, MutableBytes data) {
  uint64_t there = 0;
  if (next_ && at < next_->size()) {
    there = std::min<uint64_t>(data.size(), next_->size() - at);
    co_await next_->read(at, data.first(there), IoTag::read_backing);
  }
  fill_zero(data.subspan(there));
}

}  // namespace byre
