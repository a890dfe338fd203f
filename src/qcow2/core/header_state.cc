// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/header_state.h"

#include "base/checked.h"
#include "qcow2/core/quiesced.h"

namespace byre {

Task<void> HeaderState::change(HeaderEdit edit) {
  BYRE_ASSERT(!edit.disk_size || *edit.disk_size >= head_.header.size);
  return apply({.fields = std::move(edit), .l1 = {}, .snapshot_table = {}, .whole = {}});
}

Task<void> HeaderState::change(const Quiesced& quiesced, RootEdit edit) {
  BYRE_ASSERT(quiesced.held());
  return apply(std::move(edit));
}

Task<void> HeaderState::apply(RootEdit edit) {
  const Mutex::Hold hold = co_await mutex_.lock();
  if (latch_) co_await fail(latch_.error().copy());
  if (keep_dirty_) keep_dirty(edit);
  ImageHeader next{.header = head_.header,
                   .extensions = head_.extensions,
                   .backing_file = head_.backing_file,
                   .geometry = head_.geometry,
                   .sector = head_.sector};
  co_await edit_sector(next.sector, next.header, edit);
  co_await edit_parsed(next.header, next.extensions, next.sector, edit);
  if (edit.whole) {
    next.backing_file = edit.whole->backing_file;
    next.geometry.version = next.header.version;
  }
  if (!equal(next.sector, head_.sector)) {
    Result<void> written = co_await file_.write(0, next.sector, {.tag = IoTag::header_update})
                               .doing("header")
                               .result();
    if (!written) co_await put_back(std::move(written).error());
    co_await latch_.sync(IoTag::commit_sync);
  }
  // In place: whoever keeps a reference to a part sees the new one.
  head_ = std::move(next);
}

void HeaderState::keep_dirty(RootEdit& edit) {
  if (edit.fields.dirty) edit.fields.dirty = true;
  if (!edit.whole || edit.whole->header.version < 3) return;
  edit.whole->header.incompatible |= kDirty;
  store_incompatible(edit.whole->sector, edit.whole->header.incompatible);
}

/// Fails with `why`.
Task<void> HeaderState::put_back(Error why) {
  Result<void> back = co_await latch_.sync(IoTag::commit_sync).result();
  if (back) back = co_await file_.write(0, head_.sector, {.tag = IoTag::header_update}).result();
  if (back) back = co_await latch_.sync(IoTag::commit_sync).result();
  if (!back) latch_.latch(why, "the header could not be written back");
  co_await fail(std::move(why));
}

Task<void> HeaderState::write_past_sector(HostOffset at, Bytes bytes) {
  BYRE_ASSERT(at.value >= kSectorSize &&
              within(at.value, bytes.size(), head_.geometry.cluster_size()));
  // Alone: with O_DIRECT the first sector may be in the same block of the file.
  const Mutex::Hold hold = co_await mutex_.lock();
  if (latch_) co_await fail(latch_.error().copy());
  Result<void> written =
      co_await file_.write(at.value, bytes, {.tag = IoTag::header_update}).doing("header").result();
  co_await latch_.sync(IoTag::commit_sync);  // What failed lands now or never.
  co_await std::move(written);
}

}  // namespace byre
