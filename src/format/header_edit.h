// SPDX-License-Identifier: Apache-2.0
/// HeaderEdit: what one write of the file's first sector changes.  A field that is not set stays.
///
/// Everything named here lies in the first 512 bytes, so one write of that sector changes all of it
/// or nothing.  A RootEdit also moves what the disk and its snapshots are found by: whoever applies
/// one must have seen to it that nobody goes by the old tables (docs/engine.md, O6).
/// Not here: writing it (qcow2/core/header_state.h); what may change only as a whole
/// (header_change.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "format/bitmap.h"
#include "format/extension.h"
#include "format/header.h"

namespace byre {

/// The bitmaps extension and its autoclear bit.
struct BitmapsEdit {
  std::optional<BitmapsExtension> extension;  ///< None: there are no bitmaps any more.
  /// The first cluster, whole; its first sector is taken from the header that is edited.
  std::vector<std::byte> first_cluster;
};

struct HeaderEdit {
  /// A table's offset, and its size in the unit that its header field has.
  struct Table {
    HostOffset at;
    uint32_t count = 0;
  };
  std::optional<uint64_t> disk_size;    ///< In bytes.
  std::optional<Table> refcount_table;  ///< Size in clusters.
  std::optional<uint32_t> refcount_order;
  std::optional<bool> dirty;          ///< Version 2 has no such bit: nothing changes.
  std::optional<uint64_t> autoclear;  ///< Version 3.
  std::optional<BitmapsEdit> bitmaps;
};

/// The header as a whole, where its version, names or extensions change.
struct NewHeader {
  /// The sector that it was made from, which must be the one that it replaces.
  std::vector<std::byte> made_from;
  std::vector<std::byte> sector;
  Header header;
  Extensions extensions;
  std::optional<std::string> backing_file;
};

struct RootEdit {
  HeaderEdit fields;                                ///< `disk_size` may be smaller than it was.
  std::optional<HeaderEdit::Table> l1;              ///< Size in entries.
  std::optional<HeaderEdit::Table> snapshot_table;  ///< Size in snapshots.
  std::optional<NewHeader> whole;                   ///< Alone.
};

/// Changes `sector`, the first 512 bytes of the file, which `header` was parsed from.
/// Errc::no_space when the sector has no room for the bitmaps extension; then it is as before.
Result<void> edit_sector(MutableBytes sector, const Header& header, RootEdit& edit);

/// Changes what was parsed in the same way.  `sector` is the one that edit_sector() made.
/// Errc::corrupt when the extensions of edit.fields.bitmaps.first_cluster do not parse.
Result<void> edit_parsed(Header& header, Extensions& extensions, Bytes sector,
                         const RootEdit& edit);

}  // namespace byre
