// SPDX-License-Identifier: Apache-2.0
#include "format/extension.h"

#include <algorithm>

namespace byre {

namespace {

/// Spec: Header extensions.
struct ExtensionDisk {
  be32 type;
  be32 length;
};
static_assert(sizeof(ExtensionDisk) == 8);

/// Spec: Feature name table.
struct FeatureNameDisk {
  uint8_t kind;
  uint8_t bit;
  char name[kFeatureNameSizeMax];
};
static_assert(sizeof(FeatureNameDisk) == 48 && alignof(FeatureNameDisk) == 1);

std::string_view name_of_extension(uint32_t type) {
  switch (type) {
    case kBackingFormatExtension:
      return "backing format";
    case kFeatureNamesExtension:
      return "feature names";
    case kBitmapsExtension:
      return "bitmaps";
    case kCryptoHeaderExtension:
      return "encryption header pointer";
    case kDataFileNameExtension:
      return "data file name";
    default:
      return {};
  }
}

/// A string that another tool would read alike: NULs at its end do not count, since some end
/// their strings there; one in the middle is refused.
Result<std::string> parse_string(Bytes data) {
  std::string_view text = text_of(data);
  while (text.ends_with('\0')) text.remove_suffix(1);
  if (text.find('\0') != std::string_view::npos)
    return corrupt("NUL in the middle of ", quoted(text));
  return std::string(text);
}

std::vector<FeatureName> parse_feature_names(Bytes data) {
  std::vector<FeatureName> names;
  for (; data.size() >= sizeof(FeatureNameDisk); data = data.subspan(sizeof(FeatureNameDisk))) {
    const auto* disk = view_as<FeatureNameDisk>(data);
    const std::string_view name(disk->name, sizeof disk->name);
    names.push_back({.kind = static_cast<FeatureKind>(disk->kind),
                     .bit = disk->bit,
                     .name = std::string(name.substr(0, name.find('\0')))});
  }
  return names;
}

class ExtensionParser {
 public:
  ExtensionParser(Bytes first_cluster, const Header& header)
      : header_(header),
        geometry_(geometry_of(header)),
        names_only_((header.incompatible & ~kIncompatibleKnown) != 0) {
    uint64_t end = std::min<uint64_t>(first_cluster.size(), geometry_.cluster_size());
    if (header.backing_file_offset != 0) end = std::min(end, header.backing_file_offset);
    if (header.header_length < end) area_ = first_cluster.first(end).subspan(header.header_length);
  }

  Result<Extensions> parse() {
    while (const auto* disk = view_as<ExtensionDisk>(area_)) {
      const uint32_t type = disk->type;
      const uint64_t length = disk->length;
      if (type == kEndOfExtensions) break;
      area_ = area_.subspan(sizeof *disk);
      if (length > area_.size()) {
        if (names_only_) break;
        return corrupt("header extension ", hex(type), ": ", length, " bytes, only ", area_.size(),
                       " are left");
      }
      const Bytes data = area_.first(length);
      // The padding of the last one may be missing.
      area_ = area_.subspan(std::min<uint64_t>(area_.size(), round_up(length, 8)));

      if (names_only_) {
        if (type == kFeatureNamesExtension && found_.feature_names.empty())
          found_.feature_names = parse_feature_names(data);
        continue;
      }
      if (Result<void> taken = take(type, data); !taken)
        return std::move(taken).doing("header extension ", name_of_extension(type)).error();
    }
    if (!names_only_ && header_.crypt_method == CryptMethod::luks && !found_.crypto_header)
      return corrupt("LUKS encryption without the encryption header pointer");
    return std::move(found_);
  }

 private:
  struct Seen {
    uint32_t type;
    Bytes data;
  };

  Result<void> take(uint32_t type, Bytes data) {
    if (name_of_extension(type).empty()) {
      keep(type, data);
      return {};
    }
    for (const Seen& other : seen_) {
      if (other.type != type) continue;
      if (equal(other.data, data)) return {};
      return corrupt("appears twice, with different contents");
    }
    seen_.push_back({type, data});

    switch (type) {
      case kBackingFormatExtension:
        return take_string(data, found_.backing_format);
      case kFeatureNamesExtension:
        found_.feature_names = parse_feature_names(data);
        return {};
      case kBitmapsExtension:
        return take_bitmaps(data);
      case kCryptoHeaderExtension:
        return take_crypto_header(data);
      default:
        break;
    }
    if (!header_.has(kDataFile)) {
      keep(type, data);
      return {};
    }
    return take_string(data, found_.data_file_name);
  }

  static Result<void> take_string(Bytes data, std::optional<std::string>& into) {
    Result<std::string> text = parse_string(data);
    if (!text) return std::move(text).error();
    if (!text->empty()) into = *std::move(text);
    return {};
  }

  /// Without the feature bit the contents are not to be believed, so they cannot be wrong either.
  Result<void> take_bitmaps(Bytes data) {
    Result<BitmapsExtension> bitmaps = parse_bitmaps_extension(data, geometry_);
    if (bitmaps) {
      found_.bitmaps = *bitmaps;
      return {};
    }
    if ((header_.autoclear & kBitmaps) != 0) return std::move(bitmaps).error();
    keep(kBitmapsExtension, data);
    return {};
  }

  Result<void> take_crypto_header(Bytes data) {
    if (header_.crypt_method != CryptMethod::luks)
      return corrupt("present, but the image is not encrypted with LUKS");
    Result<CryptoHeader> header = parse_crypto_header(data, geometry_);
    if (!header) return std::move(header).error();
    found_.crypto_header = *header;
    return {};
  }

  void keep(uint32_t type, Bytes data) {
    found_.unknown.push_back({.type = type, .data = {data.begin(), data.end()}});
  }

  const Header& header_;
  Geometry geometry_;
  bool names_only_;
  Bytes area_;
  std::vector<Seen> seen_;
  Extensions found_;
};

void append(std::vector<std::byte>& area, uint32_t type, Bytes data) {
  const size_t start = area.size();
  area.resize(start + sizeof(ExtensionDisk) + round_up(data.size(), 8));
  const MutableBytes to = MutableBytes(area).subspan(start);
  copy(to, bytes_of(ExtensionDisk{.type = type, .length = static_cast<uint32_t>(data.size())}));
  copy(to.subspan(sizeof(ExtensionDisk)), data);
}

std::vector<std::byte> serialize_feature_names(const std::vector<FeatureName>& names) {
  std::vector<std::byte> data(names.size() * sizeof(FeatureNameDisk));
  MutableBytes rest = data;
  for (const FeatureName& feature : names) {
    FeatureNameDisk disk{
        .kind = static_cast<uint8_t>(feature.kind), .bit = feature.bit, .name = {}};
    feature.name.copy(disk.name, sizeof disk.name);
    copy(rest, bytes_of(disk));
    rest = rest.subspan(sizeof disk);
  }
  return data;
}

}  // namespace

Result<Extensions> parse_extensions(Bytes first_cluster, const Header& header) {
  return ExtensionParser(first_cluster, header).parse();
}

std::vector<std::byte> serialize(const Extensions& extensions) {
  std::vector<std::byte> area;
  if (extensions.backing_format)
    append(area, kBackingFormatExtension, bytes_of(std::string_view(*extensions.backing_format)));
  if (extensions.data_file_name)
    append(area, kDataFileNameExtension, bytes_of(std::string_view(*extensions.data_file_name)));
  if (extensions.crypto_header)
    append(area, kCryptoHeaderExtension, serialize(*extensions.crypto_header));
  if (extensions.bitmaps) append(area, kBitmapsExtension, serialize(*extensions.bitmaps));
  if (!extensions.feature_names.empty())
    append(area, kFeatureNamesExtension, serialize_feature_names(extensions.feature_names));
  for (const UnknownExtension& extension : extensions.unknown)
    append(area, extension.type, extension.data);
  append(area, kEndOfExtensions, {});
  return area;
}

Result<std::optional<std::string>> parse_backing_file(Bytes first_cluster, const Header& header) {
  if (header.backing_file_offset == 0) return std::optional<std::string>();
  const uint64_t offset = header.backing_file_offset;
  const uint64_t size = header.backing_file_size;
  if (offset > first_cluster.size() || size > first_cluster.size() - offset)
    return corrupt("backing file name at ", hex(offset), ": the file ends before it");
  Result<std::string> name =
      parse_string(first_cluster.subspan(offset, size)).doing("backing file name");
  if (!name) return std::move(name).error();
  if (name->empty()) return std::optional<std::string>();
  return std::optional(*std::move(name));
}

std::vector<FeatureName> default_feature_names() {
  using enum FeatureKind;
  return {
      {incompatible, 0, "dirty bit"},
      {incompatible, 1, "corrupt bit"},
      {incompatible, 2, "external data file"},
      {incompatible, 3, "compression type"},
      {incompatible, 4, "extended L2 entries"},
      {compatible, 0, "lazy refcounts"},
      {autoclear, 0, "bitmaps"},
      {autoclear, 1, "raw external data"},
  };
}

std::string feature_name(const std::vector<FeatureName>& names, FeatureKind kind, uint32_t bit) {
  const auto find = [&](const std::vector<FeatureName>& table) -> const FeatureName* {
    for (const FeatureName& name : table)
      if (name.kind == kind && name.bit == bit && !name.name.empty()) return &name;
    return nullptr;
  };
  if (const FeatureName* found = find(names)) return quoted(found->name);
  const std::vector<FeatureName> known = default_feature_names();
  if (const FeatureName* found = find(known)) return quoted(found->name);
  return cat("bit ", bit);
}

}  // namespace byre
