// SPDX-License-Identifier: Apache-2.0
#include "format/header_edit.h"

#include "base/assert.h"
#include "format/bitmaps_place.h"

namespace byre {

namespace {

uint64_t autoclear_of(const Header& header, const HeaderEdit& edit) {
  uint64_t features = edit.autoclear.value_or(header.autoclear);
  if (!edit.bitmaps) return features;
  features &= ~kBitmaps;
  return edit.bitmaps->extension ? features | kBitmaps : features;
}

uint64_t incompatible_of(const Header& header, const HeaderEdit& edit) {
  if (!edit.dirty) return header.incompatible;
  return *edit.dirty ? header.incompatible | kDirty : header.incompatible & ~kDirty;
}

}  // namespace

Result<void> edit_sector(MutableBytes sector, const Header& header, RootEdit& edit) {
  if (edit.whole) {
    BYRE_ASSERT(equal(sector, edit.whole->made_from));
    copy(sector, edit.whole->sector);
    return {};
  }
  HeaderEdit& fields = edit.fields;
  if (fields.bitmaps) {
    const MutableBytes cluster = fields.bitmaps->first_cluster;
    copy(cluster, sector);
    Result<void> put = put_bitmaps_extension(cluster, header, fields.bitmaps->extension);
    if (!put) return put;
    copy(sector, Bytes(cluster).first(sector.size()));
  }
  if (fields.disk_size) store_size(sector, *fields.disk_size);
  if (edit.l1) store_l1(sector, edit.l1->at, edit.l1->count);
  if (edit.snapshot_table)
    store_snapshots(sector, edit.snapshot_table->count, edit.snapshot_table->at);
  if (fields.refcount_table) {
    store_refcount_table(sector, fields.refcount_table->at, fields.refcount_table->count);
  }
  if (header.version < 3) return {};
  if (fields.refcount_order) store_refcount_order(sector, *fields.refcount_order);
  if (fields.dirty) store_incompatible(sector, incompatible_of(header, fields));
  if (fields.autoclear || fields.bitmaps) store_autoclear(sector, autoclear_of(header, fields));
  return {};
}

Result<void> edit_parsed(Header& header, Extensions& extensions, Bytes sector,
                         const RootEdit& edit) {
  if (edit.whole) {
    header = edit.whole->header;
    extensions = edit.whole->extensions;
    return {};
  }
  const HeaderEdit& fields = edit.fields;
  if (fields.bitmaps) {
    // The backing file's name may have moved for the extension.
    header.backing_file_offset = backing_file_offset_of(sector);
    Result<Extensions> parsed = parse_extensions(fields.bitmaps->first_cluster, header);
    if (!parsed) return std::move(parsed).error();
    extensions = *std::move(parsed);
  }
  if (fields.disk_size) header.size = *fields.disk_size;
  if (edit.l1) {
    header.l1_offset = edit.l1->at;
    header.l1_entries = edit.l1->count;
  }
  if (edit.snapshot_table) {
    header.snapshots_offset = edit.snapshot_table->at;
    header.snapshot_count = edit.snapshot_table->count;
  }
  if (fields.refcount_table) {
    header.refcount_table_offset = fields.refcount_table->at;
    header.refcount_table_clusters = fields.refcount_table->count;
  }
  if (header.version < 3) return {};
  if (fields.refcount_order) header.refcount_order = *fields.refcount_order;
  header.incompatible = incompatible_of(header, fields);
  header.autoclear = autoclear_of(header, fields);
  return {};
}

}  // namespace byre
