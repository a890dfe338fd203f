// SPDX-License-Identifier: Apache-2.0
/// Header extensions and the backing file's name: the rest of the first cluster.
///
/// The area runs from header_length to the backing file's name or the end of the first cluster; a
/// terminator ends it early and may be missing.  Known extensions are parsed, the others kept byte
/// for byte in their order.  A known one that appears twice is refused unless both say the same:
/// tools differ in which of two they believe.
/// An extension that means nothing in this image (a data file name without its feature bit, unsound
/// bitmaps without theirs) counts as unknown: kept, never used.
/// Invariant: crypto_header is there if and only if the header says LUKS.
/// Not here: whether the files named are opened (io/file_opener.h decides).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "format/bitmap.h"
#include "format/header.h"
#include "format/luks.h"

namespace byre {

/// Spec: Header extensions.
inline constexpr uint32_t kEndOfExtensions = 0x00000000;
inline constexpr uint32_t kBackingFormatExtension = 0xe2792aca;
inline constexpr uint32_t kFeatureNamesExtension = 0x6803f857;
inline constexpr uint32_t kBitmapsExtension = 0x23852875;
inline constexpr uint32_t kCryptoHeaderExtension = 0x0537be77;
inline constexpr uint32_t kDataFileNameExtension = 0x44415441;

/// Which of the header's three masks a feature name belongs to.
enum class FeatureKind : uint8_t { incompatible = 0, compatible = 1, autoclear = 2 };

/// One row of the feature name table, as it was found: an unknown kind and a bit above 63 are
/// legal to meet and name nothing.
struct FeatureName {
  FeatureKind kind = FeatureKind::incompatible;
  uint8_t bit = 0;
  std::string name;  ///< Any bytes but NUL, 46 at most.
  friend bool operator==(const FeatureName&, const FeatureName&) = default;
};

struct UnknownExtension {
  uint32_t type = 0;
  std::vector<std::byte> data;
  friend bool operator==(const UnknownExtension&, const UnknownExtension&) = default;
};

struct Extensions {
  std::optional<std::string> backing_format;
  std::optional<std::string> data_file_name;  ///< Only with kDataFile; may be missing even then.
  std::optional<CryptoHeader> crypto_header;
  std::optional<BitmapsExtension> bitmaps;  ///< Consistent only if autoclear has kBitmaps.
  std::vector<FeatureName> feature_names;
  std::vector<UnknownExtension> unknown;
  friend bool operator==(const Extensions&, const Extensions&) = default;
};

/// `first_cluster` is the first cluster, or the whole file if that is shorter.  When the header has
/// incompatible features that byre does not know, only the feature names are read and nothing is
/// refused, so that check_incompatible() can say which they are.
Result<Extensions> parse_extensions(Bytes first_cluster, const Header& header);

/// The extension area with its terminator; each extension is padded to 8 bytes.
std::vector<std::byte> serialize(const Extensions& extensions);

/// The backing file's name; none when the image has no backing file or the name is empty.  Refuses
/// a name that is too long, leaves the first cluster, lies in the header, or contains NUL (where
/// other tools would end it).
Result<std::optional<std::string>> parse_backing_file(Bytes first_cluster, const Header& header);

/// The names of all features of version 3, as byre writes them into new images.
std::vector<FeatureName> default_feature_names();

/// What to call a feature in a message: from `names`, else from byre's own table, else "bit 7".
std::string feature_name(const std::vector<FeatureName>& names, FeatureKind kind, uint32_t bit);

}  // namespace byre
