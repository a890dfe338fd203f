// SPDX-License-Identifier: Apache-2.0
#include "format/header_change.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

struct Image {
  Header header;
  Extensions extensions;
  std::string name;
  std::vector<std::byte> cluster;
};

Image make(uint32_t cluster_bits, uint32_t version, std::string name, bool names) {
  Image image;
  image.header.version = version;
  image.header.cluster_bits = cluster_bits;
  image.header.size = 1 << 20;
  image.header.refcount_table_offset = HostOffset{uint64_t{1} << cluster_bits};
  image.header.refcount_table_clusters = 1;
  image.header.l1_offset = HostOffset{uint64_t{3} << cluster_bits};
  image.header.l1_entries = 64;
  image.name = std::move(name);
  if (!image.name.empty()) image.extensions.backing_format = "raw";
  if (names) image.extensions.feature_names = default_feature_names();
  const auto bytes = serialize_header(image.header, image.extensions, image.name);
  EXPECT_TRUE(bytes);
  image.cluster = *bytes;
  image.cluster.resize(size_t{1} << cluster_bits);
  return image;
}

/// The new header is found, and until the sector is written the old one is.
void expect_change(const Image& before, const Header& header, const Extensions& extensions,
                   const std::string& name) {
  const Result<HeaderChange> change = change_header(before.cluster, header, extensions, name);
  ASSERT_TRUE(change) << change.error().message();
  ASSERT_EQ(change->sector.size(), kSectorSize);
  std::vector<std::byte> now = before.cluster;
  copy(MutableBytes(now).subspan(change->name_at), change->name);
  {
    const Result<Header> old = parse_header(now);
    ASSERT_TRUE(old);
    EXPECT_EQ(old->version, before.header.version);
    const auto old_extensions = parse_extensions(now, *old);
    ASSERT_TRUE(old_extensions);
    EXPECT_EQ(*old_extensions, before.extensions);
    const auto old_name = parse_backing_file(now, *old);
    ASSERT_TRUE(old_name);
    EXPECT_EQ(old_name->value_or(""), before.name);
  }
  copy(MutableBytes(now), change->sector);
  const Result<Header> parsed = parse_header(now);
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(parsed->version, header.version);
  EXPECT_EQ(parsed->size, header.size);
  EXPECT_EQ(parsed->compatible, header.compatible);
  auto found = parse_extensions(now, *parsed);
  ASSERT_TRUE(found) << found.error().message();
  Extensions wanted = extensions;
  if (found->feature_names.empty()) wanted.feature_names.clear();
  EXPECT_EQ(*found, wanted);
  const auto found_name = parse_backing_file(now, *parsed);
  ASSERT_TRUE(found_name);
  EXPECT_EQ(found_name->value_or(""), name);
}

TEST(HeaderChange, EveryVersionNameAndClusterSize) {
  for (const uint32_t bits : {9u, 10u, 12u, 16u, 21u}) {
    for (const uint32_t version : {2u, 3u}) {
      for (const std::string& name : {std::string(), std::string("base"), std::string(900, 'n')}) {
        if (name.size() > 100 && bits < 12) continue;
        for (const bool names : {false, true}) {
          if (names && (version == 2 || bits < 10)) continue;
          const Image before = make(bits, version, name, names);
          Header header = before.header;
          header.version = 5 - version;
          header.header_length = kHeaderSizeV3;
          expect_change(before, header, before.extensions, name);
          if (version == 3) {
            header = before.header;
            header.compatible = kLazyRefcounts;
            expect_change(before, header, before.extensions, name);
          }
          for (const std::string& other :
               {std::string("another"), std::string(600, 'o'), std::string()}) {
            if (other.size() > 100 && bits < 12) continue;
            Extensions extensions = before.extensions;
            extensions.backing_format = "qcow2";
            if (other.empty()) extensions.backing_format.reset();
            expect_change(before, before.header, extensions, other);
          }
        }
      }
    }
  }
}

TEST(HeaderChange, FeatureNamesStayWhereTheyAreNotInTheWay) {
  const Image before = make(16, 3, "base", true);
  Header header = before.header;
  header.compatible = kLazyRefcounts;
  const Result<HeaderChange> change =
      change_header(before.cluster, header, before.extensions, "base");
  ASSERT_TRUE(change);
  EXPECT_TRUE(change->name.empty());
  std::vector<std::byte> now = before.cluster;
  copy(MutableBytes(now), change->sector);
  const Result<Header> parsed = parse_header(now);
  ASSERT_TRUE(parsed);
  const auto extensions = parse_extensions(now, *parsed);
  ASSERT_TRUE(extensions);
  EXPECT_EQ(extensions->feature_names, default_feature_names());
}

TEST(HeaderChange, ANameCanChangeForEver) {
  for (const uint32_t bits : {10u, 12u, 16u}) {
    Image image = make(bits, 3, "base", false);
    for (int i = 0; i < 3000; ++i) {
      const std::string name = cat("base-", i, ".qcow2");
      expect_change(image, image.header, image.extensions, name);
      const Result<HeaderChange> change =
          change_header(image.cluster, image.header, image.extensions, name);
      ASSERT_TRUE(change) << change.error().message();
      copy(MutableBytes(image.cluster).subspan(change->name_at), change->name);
      copy(MutableBytes(image.cluster), change->sector);
      image.name = name;
    }
  }
}

TEST(HeaderChange, WhatDoesNotFitIsRefused) {
  const Image small = make(9, 3, "base", false);
  EXPECT_FALSE(change_header(small.cluster, small.header, small.extensions, std::string(500, 'x')));
  Image large = make(12, 3, "", false);
  Extensions extensions = large.extensions;
  extensions.unknown.push_back({0x12345678, std::vector<std::byte>(1000, std::byte{1})});
  const auto refused = change_header(large.cluster, large.header, extensions, "");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::no_space);
}

}  // namespace
}  // namespace byre
