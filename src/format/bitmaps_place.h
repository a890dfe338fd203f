// SPDX-License-Identifier: Apache-2.0
/// Where the bitmaps extension lies in the first cluster, and how it gets into the first sector.
///
/// In the first 512 bytes of the file it changes together with the autoclear bit, the disk's size
/// and the L1 table, in one sector write (docs/engine.md, B4).  Other tools put it behind the
/// feature names, often across the end of that sector or beyond it.  So byre moves it, once:
/// put_bitmaps_extension() finds room in the first sector and changes nothing outside of it; the
/// backing file's name may move for it.  Where there is no room, the first feature name gives its
/// place up: names are for messages only, and every reader has them built in. An extension that is
/// not the last cannot be cut out without moving what follows; it becomes an unknown one, which
/// readers skip. Not here: what the extension says (bitmap.h), parsing for use (extension.h).
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/error.h"
#include "format/bitmap.h"
#include "format/header.h"

namespace byre {

/// What byre calls the place of an extension that is no more; its bytes mean nothing.
inline constexpr uint32_t kUnusedExtension = 0x756e7573;

/// Offset of a bitmaps extension whose head is not in the first sector.
std::optional<uint64_t> far_bitmaps_extension(Bytes first_cluster, const Header& header);
/// The 8 bytes to write at `at`, the head of an extension, so that there is none.
std::array<std::byte, 8> unused_extension_head(Bytes first_cluster, const Header& header,
                                               uint64_t at);

/// Makes the first sector say `extension`, or that there is none; backing_file_offset in it may
/// change.  A copy of it beyond that sector
/// stays.  Errc::no_space when the sector has no room.
Result<void> put_bitmaps_extension(MutableBytes first_cluster, const Header& header,
                                   const std::optional<BitmapsExtension>& extension);

}  // namespace byre
