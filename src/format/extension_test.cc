// SPDX-License-Identifier: Apache-2.0
#include "format/extension.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

/// The first cluster of an image whose extension area is put together by hand.
class Cluster {
 public:
  explicit Cluster(Header header = {}) : header_(std::move(header)), bytes_(0x10000) {
    at_ = header_.header_length;
  }
  Cluster& add(uint32_t type, Bytes data) {
    store_be<uint32_t>(bytes_, at_, type);
    store_be<uint32_t>(bytes_, at_ + 4, static_cast<uint32_t>(data.size()));
    copy(MutableBytes(bytes_).subspan(at_ + 8), data);
    at_ += 8 + round_up(data.size(), 8);
    return *this;
  }
  Cluster& add(uint32_t type, std::string_view text) { return add(type, bytes_of(text)); }
  size_t at() const { return at_; }
  MutableBytes bytes() { return bytes_; }
  Header& header() { return header_; }

  Result<Extensions> parse() { return parse_extensions(bytes_, header_); }
  std::string error() {
    Result<Extensions> extensions = parse();
    return extensions ? "" : extensions.error().message();
  }

 private:
  Header header_;
  std::vector<std::byte> bytes_;
  size_t at_;
};

Header with(uint64_t incompatible, uint64_t autoclear = 0) {
  Header header;
  header.incompatible = incompatible;
  header.autoclear = autoclear;
  return header;
}
Header encrypted(CryptMethod method) {
  Header header;
  header.crypt_method = method;
  return header;
}

std::vector<std::byte> feature_row(uint8_t kind, uint8_t bit, std::string_view name) {
  std::vector<std::byte> row(48);
  row[0] = std::byte{kind};
  row[1] = std::byte{bit};
  copy(MutableBytes(row).subspan(2), bytes_of(name));
  return row;
}
std::vector<std::byte> operator+(std::vector<std::byte> a, const std::vector<std::byte>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(Extensions, WhatWasWrittenIsRead) {
  Header header = with(kDataFile, kBitmaps);
  header.crypt_method = CryptMethod::luks;
  Extensions extensions;
  extensions.backing_format = "qcow2";
  extensions.data_file_name = "data.raw";
  extensions.crypto_header = CryptoHeader{{0x40000}, 592};
  extensions.bitmaps = BitmapsExtension{2, 100, {0x70000}};
  extensions.feature_names = default_feature_names();
  extensions.unknown = {{0x12345678, std::vector<std::byte>(13, std::byte{7})},
                        {0x12345678, {}},
                        {0xffffffff, std::vector<std::byte>(8, std::byte{1})}};
  const std::vector<std::byte> area = serialize(extensions);
  EXPECT_EQ(area.size() % 8, 0u);
  std::vector<std::byte> cluster(0x10000);
  copy(MutableBytes(cluster).subspan(header.header_length), area);
  const Result<Extensions> read = parse_extensions(cluster, header);
  ASSERT_TRUE(read) << read.error().message();
  EXPECT_EQ(*read, extensions);
}

// Trap 6: names may fill all 46 bytes, repeat, name impossible bits, and the table may be cut.
TEST(Extensions, FeatureNamesNeedNotBeTidy) {
  const std::string full(46, 'x');
  Cluster cluster(with(uint64_t{1} << 40 | uint64_t{1} << 41 | uint64_t{1} << 42));
  cluster.add(kFeatureNamesExtension, feature_row(0, 200, "beyond") + feature_row(9, 40, "kind") +
                                          feature_row(1, 40, "compatible") +
                                          feature_row(0, 41, full) + feature_row(0, 40, "first") +
                                          feature_row(0, 40, "second") +
                                          std::vector<std::byte>(30, std::byte{'?'}));
  const Result<Extensions> extensions = cluster.parse();
  ASSERT_TRUE(extensions);
  EXPECT_EQ(extensions->feature_names.size(), 6u);
  Result<void> refused = check_incompatible(cluster.header(), *extensions);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::unsupported);
  EXPECT_NE(refused.error().message().find("'first', '" + full + "', bit 42"), std::string::npos)
      << refused.error().message();
}

// Trap 6, trap 7: an unknown feature is named even when the rest of the area has changed its
// meaning.
TEST(Extensions, UnknownFeaturesAreNamedBeforeAnythingElseIsRefused) {
  Cluster cluster(with(uint64_t{1} << 5));
  cluster.add(kBitmapsExtension, "nonsense")
      .add(kFeatureNamesExtension, feature_row(0, 5, "time travel"))
      .add(kCryptoHeaderExtension, "x");
  store_be<uint32_t>(cluster.bytes(), cluster.at(), 0x1111);
  store_be<uint32_t>(cluster.bytes(), cluster.at() + 4, UINT32_MAX);
  const Result<Extensions> extensions = cluster.parse();
  ASSERT_TRUE(extensions) << extensions.error().message();
  Result<void> refused = check_incompatible(cluster.header(), *extensions);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message().find("'time travel'"), std::string::npos);
}

TEST(Extensions, KnownFeaturesAreNotRefused) {
  EXPECT_TRUE(check_incompatible(with(kIncompatibleKnown), {}));
  for (uint32_t bit = 5; bit < 64; ++bit)
    EXPECT_FALSE(check_incompatible(with(uint64_t{1} << bit), {})) << bit;
}

// Trap 12: the area ends at the backing file's name, at a terminator, or at the end of the cluster.
TEST(Extensions, TheAreaEndsInThreeWays) {
  Cluster cluster;
  cluster.add(0x1111, "one");
  const size_t second = cluster.at();
  cluster.add(0x2222, "two");
  EXPECT_EQ(cluster.parse()->unknown.size(), 2u);

  cluster.header().backing_file_offset = second;
  EXPECT_EQ(cluster.parse()->unknown.size(), 1u);
  cluster.header().backing_file_offset = second + 7;  // Not room enough for another.
  EXPECT_EQ(cluster.parse()->unknown.size(), 1u);
  cluster.header().backing_file_offset = 0;

  store_be<uint32_t>(cluster.bytes(), second, kEndOfExtensions);
  store_be<uint32_t>(cluster.bytes(), second + 4, UINT32_MAX);  // Its length means nothing.
  EXPECT_EQ(cluster.parse()->unknown.size(), 1u);

  Cluster full;
  full.add(0x1111, std::string(0x10000 - 112 - 8, 'f'));
  EXPECT_EQ(full.at(), 0x10000u);
  ASSERT_TRUE(full.parse());
  EXPECT_EQ(full.parse()->unknown[0].data.size(), 0x10000u - 120u);
}

// Trap 12: no sum of an offset and a length may wrap.
TEST(Extensions, LengthsAreComparedWithWhatIsLeft) {
  for (const uint32_t length : {0x10000u - 119, 0x10000u, 0x7fffffffu, 0xfffffff8u, UINT32_MAX}) {
    Cluster cluster;
    store_be<uint32_t>(cluster.bytes(), 112, 0x1111);
    store_be<uint32_t>(cluster.bytes(), 116, length);
    EXPECT_NE(cluster.error(), "") << length;
  }
}

// Trap 13: the last one's padding may be missing, and padding is not always zero.
TEST(Extensions, PaddingIsNeitherNeededNorRead) {
  Cluster cluster;
  cluster.add(kBackingFormatExtension, "raw");
  for (size_t i = 123; i < 128; ++i) cluster.bytes()[i] = std::byte{'!'};
  EXPECT_EQ(cluster.parse()->backing_format, "raw");
  cluster.add(0x1111, "behind the end");
  cluster.header().backing_file_offset = 123;
  EXPECT_EQ(cluster.parse()->backing_format, "raw");
  EXPECT_TRUE(cluster.parse()->unknown.empty());
  EXPECT_EQ(parse_extensions(cluster.bytes().first(123), cluster.header())->backing_format, "raw");
}

TEST(Extensions, AStringThatToolsWouldReadDifferentlyIsRefused) {
  EXPECT_NE(Cluster().add(kBackingFormatExtension, std::string_view("raw\0qcow2", 9)).error(), "");
  EXPECT_EQ(Cluster()
                .add(kBackingFormatExtension, std::string_view("raw\0\0", 5))
                .parse()
                ->backing_format,
            "raw");
  EXPECT_EQ(Cluster().add(kBackingFormatExtension, "").parse()->backing_format, std::nullopt);
}

// Trap 14: one that appears twice must say the same both times.
TEST(Extensions, TwoDifferentOnesOfAKindAreRefused) {
  const auto features_a = feature_row(0, 1, "a");
  const auto features_b = feature_row(0, 1, "b");
  EXPECT_EQ(
      Cluster().add(kBackingFormatExtension, "raw").add(kBackingFormatExtension, "raw").error(),
      "");
  EXPECT_NE(
      Cluster().add(kBackingFormatExtension, "raw").add(kBackingFormatExtension, "qcow2").error(),
      "");
  EXPECT_NE(Cluster(with(kDataFile))
                .add(kDataFileNameExtension, "a")
                .add(0x1111, "between")
                .add(kDataFileNameExtension, "b")
                .error(),
            "");
  EXPECT_NE(Cluster()
                .add(kFeatureNamesExtension, features_a)
                .add(kFeatureNamesExtension, features_b)
                .error(),
            "");
  EXPECT_EQ(Cluster().add(0x1111, "a").add(0x1111, "b").parse()->unknown.size(), 2u);
}

// Trap 15: version 2 has extensions, directly behind byte 72; its bitmaps are never consistent.
TEST(Extensions, VersionTwoHasThemToo) {
  Header header;
  header.version = 2;
  header.header_length = kHeaderSizeV2;
  const auto bitmaps = serialize(BitmapsExtension{1, 32, {0x40000}});
  Cluster cluster(header);
  cluster.add(kBackingFormatExtension, "qcow2").add(kBitmapsExtension, Bytes(bitmaps));
  const Result<Extensions> extensions = cluster.parse();
  ASSERT_TRUE(extensions);
  EXPECT_EQ(extensions->backing_format, "qcow2");
  EXPECT_TRUE(extensions->bitmaps);  // So that a checker can account for their clusters.
  EXPECT_FALSE(oddities(cluster.header(), *extensions).empty());
}

// Trap 115: bitmaps without their feature bit are kept, sound or not, and open the image.
TEST(Extensions, UnsoundBitmapsMatterOnlyWithTheirFeatureBit) {
  Cluster cluster(with(0, kBitmaps));
  cluster.add(kBitmapsExtension, std::string(24, 'x'));
  EXPECT_NE(cluster.error(), "");
  cluster.header().autoclear = 0;
  const Result<Extensions> extensions = cluster.parse();
  ASSERT_TRUE(extensions);
  EXPECT_FALSE(extensions->bitmaps);
  ASSERT_EQ(extensions->unknown.size(), 1u);
  EXPECT_EQ(extensions->unknown[0].type, kBitmapsExtension);
  EXPECT_EQ(oddities(cluster.header(), *extensions).size(), 1u);
}

// Trap 26.
TEST(Extensions, ADataFileNameCountsOnlyWithItsFeatureBit) {
  EXPECT_EQ(Cluster(with(kDataFile)).parse()->data_file_name, std::nullopt);
  EXPECT_EQ(Cluster(with(kDataFile)).add(kDataFileNameExtension, "d").parse()->data_file_name, "d");
  Cluster without;
  without.add(kDataFileNameExtension, "/etc/passwd");
  const Result<Extensions> extensions = without.parse();
  ASSERT_TRUE(extensions);
  EXPECT_EQ(extensions->data_file_name, std::nullopt);
  EXPECT_EQ(extensions->unknown.size(), 1u);
}

// Trap 27: LUKS must have the pointer, nothing else may.
TEST(Extensions, TheEncryptionHeaderPointerBelongsToLuks) {
  const auto pointer = serialize(CryptoHeader{{0x40000}, 4096});
  for (const CryptMethod method : {CryptMethod::none, CryptMethod::aes, CryptMethod::luks}) {
    const bool luks = method == CryptMethod::luks;
    EXPECT_EQ(Cluster(encrypted(method)).error() == "", !luks);
    EXPECT_EQ(Cluster(encrypted(method)).add(kCryptoHeaderExtension, Bytes(pointer)).error() == "",
              luks);
  }
}

// Trap 16: the name may lie anywhere in the first cluster, over the extensions, too.
TEST(BackingFile, IsReadFromWhereTheHeaderSays) {
  Cluster cluster;
  EXPECT_EQ(*parse_backing_file(cluster.bytes(), cluster.header()), std::nullopt);
  copy(cluster.bytes().subspan(0xfff0), bytes_of(std::string_view("base.qcow2xxxxxx")));
  cluster.header().backing_file_offset = 0xfff0;
  cluster.header().backing_file_size = 10;
  EXPECT_EQ(*parse_backing_file(cluster.bytes(), cluster.header()), "base.qcow2");
  cluster.header().backing_file_size = 16;
  EXPECT_TRUE(parse_backing_file(cluster.bytes(), cluster.header()));
  EXPECT_FALSE(parse_backing_file(cluster.bytes().first(0xfff8), cluster.header()));
  cluster.header().backing_file_size = 0;
  EXPECT_EQ(*parse_backing_file(cluster.bytes(), cluster.header()), std::nullopt);
  cluster.bytes()[0xfff4] = std::byte{0};
  cluster.header().backing_file_size = 10;
  EXPECT_FALSE(parse_backing_file(cluster.bytes(), cluster.header()));
}

TEST(Extensions, AnAreaThatTheFileEndsInFrontOfIsEmpty) {
  Cluster cluster;
  for (const size_t size : {size_t{0}, size_t{111}, size_t{112}, size_t{119}})
    EXPECT_EQ(*parse_extensions(cluster.bytes().first(size), cluster.header()), Extensions{});
}

// Every default name fits, names a known bit, and no two name the same.
TEST(FeatureNames, TheDefaultTableIsTidy) {
  uint64_t seen[3] = {};
  for (const FeatureName& name : default_feature_names()) {
    EXPECT_LE(name.name.size(), kFeatureNameSizeMax);
    seen[static_cast<size_t>(name.kind)] |= uint64_t{1} << name.bit;
  }
  EXPECT_EQ(seen[0], kIncompatibleKnown);
  EXPECT_EQ(seen[1], kLazyRefcounts);
  EXPECT_EQ(seen[2], kAutoclearKnown);
  EXPECT_EQ(feature_name({}, FeatureKind::incompatible, 1), "'corrupt bit'");
}

}  // namespace
}  // namespace byre
