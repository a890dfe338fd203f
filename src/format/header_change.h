// SPDX-License-Identifier: Apache-2.0
/// Changing a header that is in use, so that a power loss leaves the old one or the new one.
///
/// One sector is written at once or not at all; a header with its extensions and the name of a
/// backing file may be longer.  So everything that changes must be in the first sector:
///   - what lies behind it may stay when the new header has the same bytes there;
///   - the feature names, which are optional, are left out when they are in the way;
///   - the backing file's name may stay where it is; another one is written first, behind
///     everything that is in use, where nothing refers to it until the sector does; when there is
///     no room left, over names of before.
/// What cannot be done so is refused, with Errc::no_space.
/// Not here: fields that lie in one sector anyway (store_size() and its like, header.h).
#pragma once

#include <string_view>
#include <vector>

#include "format/extension.h"
#include "format/header.h"

namespace byre {

struct HeaderChange {
  /// To be written, and durable, before the sector; empty: nothing.
  std::vector<std::byte> name;
  uint64_t name_at = 0;
  std::vector<std::byte> sector;  ///< The new first sector of the file.
};

/// `first_cluster` is the image's first cluster as it is now, whole.
Result<HeaderChange> change_header(Bytes first_cluster, const Header& header,
                                   const Extensions& extensions, std::string_view backing_file);

}  // namespace byre
