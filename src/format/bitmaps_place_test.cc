// SPDX-License-Identifier: Apache-2.0
#include "format/bitmaps_place.h"

#include <gtest/gtest.h>

#include "format/extension.h"

namespace byre {
namespace {

const BitmapsExtension kOld{.count = 1, .directory_size = 32, .directory_offset = {0x50000}};
const BitmapsExtension kNew{.count = 2, .directory_size = 64, .directory_offset = {0x90000}};

void append(std::vector<std::byte>& bytes, uint32_t type, Bytes data) {
  const size_t at = bytes.size();
  bytes.resize(at + 8 + round_up(data.size(), 8));
  store_be(MutableBytes(bytes), at, type);
  store_be(MutableBytes(bytes), at + 4, static_cast<uint32_t>(data.size()));
  copy(MutableBytes(bytes).subspan(at + 8), data);
}

/// A first cluster as QEMU lays it out: backing format, feature names, bitmaps, unknown ones, the
/// backing file's name.
struct Layout {
  uint32_t cluster_bits = 16;
  std::string backing;
  size_t names = 8;
  bool bitmaps = true;
  size_t unknown = 0;  ///< Bytes of an unknown extension.
  bool unknown_first = false;

  std::vector<std::byte> bytes() const {
    Header header{.cluster_bits = cluster_bits,
                  .size = 1 * MiB,
                  .l1_entries = 32,
                  .l1_offset = {0x30000},
                  .refcount_table_offset = {0x10000},
                  .refcount_table_clusters = 1,
                  .autoclear = bitmaps ? kBitmaps : 0};
    std::vector<std::byte> area;
    const std::vector<std::byte> junk(unknown, std::byte{7});
    if (!backing.empty()) append(area, kBackingFormatExtension, bytes_of("qcow2"));
    if (unknown != 0 && unknown_first) append(area, 0x12345678, junk);
    if (names != 0) append(area, kFeatureNamesExtension, std::vector<std::byte>(names * 48));
    if (bitmaps) append(area, kBitmapsExtension, serialize(kOld));
    if (unknown != 0 && !unknown_first) append(area, 0x12345678, junk);
    append(area, kEndOfExtensions, {});
    std::vector<std::byte> first = *serialize_header(header, {});
    first.resize(kHeaderSizeV3);
    first.insert(first.end(), area.begin(), area.end());
    if (!backing.empty()) {
      store_be(MutableBytes(first), 8, uint64_t{first.size()});
      store_be(MutableBytes(first), 16, static_cast<uint32_t>(backing.size()));
      for (const char c : backing) first.push_back(static_cast<std::byte>(c));
    }
    EXPECT_LE(first.size(), size_t{1} << cluster_bits);
    first.resize(size_t{1} << cluster_bits);
    return first;
  }
};

struct Parsed {
  Extensions extensions;
  std::optional<std::string> backing;
};
Parsed parse(const std::vector<std::byte>& first) {
  const Result<Header> header = parse_header(first);
  EXPECT_TRUE(header) << header.error().message();
  const Result<Extensions> extensions = parse_extensions(first, *header);
  EXPECT_TRUE(extensions) << extensions.error().message();
  const Result<std::optional<std::string>> backing = parse_backing_file(first, *header);
  EXPECT_TRUE(backing);
  Parsed parsed{.extensions = *extensions, .backing = *backing};
  std::erase_if(parsed.extensions.unknown,
                [](const UnknownExtension& e) { return e.type == kUnusedExtension; });
  return parsed;
}

/// As the engine does it: a far one is doubled, then taken away; then it changes.
void put(std::vector<std::byte>& first, const std::optional<BitmapsExtension>& extension) {
  if (const auto far = far_bitmaps_extension(first, *parse_header(first))) {
    const std::vector<std::byte> before = first;
    ASSERT_TRUE(put_bitmaps_extension(first, *parse_header(first), kOld));
    ASSERT_TRUE(equal(Bytes(first).subspan(512), Bytes(before).subspan(512)));
    ASSERT_EQ(parse(first).extensions.bitmaps, kOld);  // Both say the same.
    copy(MutableBytes(first).subspan(*far),
         unused_extension_head(first, *parse_header(first), *far));
    ASSERT_EQ(parse(first).extensions.bitmaps, kOld);
  }
  const std::vector<std::byte> before = first;
  const Result<void> done = put_bitmaps_extension(first, *parse_header(first), extension);
  ASSERT_TRUE(done) << done.error().message();
  ASSERT_TRUE(equal(Bytes(first).subspan(512), Bytes(before).subspan(512)));
}

TEST(BitmapsPlace, EveryLayoutChangesInTheFirstSectorAndKeepsEverythingElse) {
  for (const uint32_t bits : {9u, 12u, 16u}) {
    for (const std::string& backing : {std::string(), std::string("base.qcow2")}) {
      for (const size_t names : {size_t{0}, size_t{2}, size_t{8}}) {
        for (const bool bitmaps : {false, true}) {
          for (const size_t unknown : {size_t{0}, size_t{20}}) {
            if (bits == 9 && (names == 8 || (names == 2 && unknown != 0))) continue;
            const Layout layout{.cluster_bits = bits,
                                .backing = backing,
                                .names = names,
                                .bitmaps = bitmaps,
                                .unknown = unknown,
                                .unknown_first = names == 2};
            SCOPED_TRACE(cat("bits ", bits, " backing ", backing, " names ", names, " bitmaps ",
                             bitmaps, " unknown ", unknown));
            std::vector<std::byte> first = layout.bytes();
            const Parsed before = parse(first);
            for (int round = 0; round < 3; ++round) {
              put(first, kNew);
              store_autoclear(first, kBitmaps);
              if (testing::Test::HasFatalFailure()) return;
              EXPECT_EQ(parse(first).extensions.bitmaps, kNew);
              EXPECT_EQ(far_bitmaps_extension(first, *parse_header(first)), std::nullopt);
              put(first, std::nullopt);
              EXPECT_EQ(parse(first).extensions.bitmaps, std::nullopt);
              EXPECT_EQ(parse(first).extensions.unknown, before.extensions.unknown);
              EXPECT_EQ(parse(first).backing, before.backing);
              EXPECT_EQ(parse(first).extensions.backing_format, before.extensions.backing_format);
              // At most one name gives way.
              EXPECT_GE(parse(first).extensions.feature_names.size() + 1, names);
            }
          }
        }
      }
    }
  }
}

TEST(BitmapsPlace, WithoutRoomNothingChanges) {
  const Layout layout{.backing = "base", .names = 0, .bitmaps = false, .unknown = 360};
  std::vector<std::byte> first = layout.bytes();
  const std::vector<std::byte> before = first;
  const Result<void> done = put_bitmaps_extension(first, *parse_header(first), kNew);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code(), Errc::no_space);
  EXPECT_EQ(first, before);
}

}  // namespace
}  // namespace byre
