// SPDX-License-Identifier: Apache-2.0
#include "format/luks.h"

#include <gtest/gtest.h>

namespace byre {
namespace {

TEST(CryptoHeader, WhatWasWrittenIsRead) {
  const CryptoHeader header{{0x40000}, 2068480};
  const Result<CryptoHeader> read = parse_crypto_header(serialize(header), Geometry{});
  ASSERT_TRUE(read);
  EXPECT_EQ(*read, header);
}

// Trap 27: the clusters follow from the length, rounded up.
TEST(CryptoHeader, CoversItsLengthRoundedUp) {
  EXPECT_EQ(hosts(CryptoHeader{{0x40000}, 1}, Geometry{}), (HostSpan{{4}, 1}));
  EXPECT_EQ(hosts(CryptoHeader{{0x40000}, 0x10000}, Geometry{}), (HostSpan{{4}, 1}));
  EXPECT_EQ(hosts(CryptoHeader{{0x40000}, 0x10001}, Geometry{}), (HostSpan{{4}, 2}));
}

TEST(CryptoHeader, IsAlignedNotEmptyAndNotTooLarge) {
  for (const CryptoHeader& bad :
       {CryptoHeader{{0x40200}, 4096}, CryptoHeader{{0}, 4096}, CryptoHeader{{0x40000}, 0},
        CryptoHeader{{0x40000}, kCryptoHeaderSizeMax + 1},
        CryptoHeader{{0x7fff'ffff'ffff'0000}, 0x20000}, CryptoHeader{{UINT64_MAX << 16}, 1}})
    EXPECT_FALSE(parse_crypto_header(serialize(bad), Geometry{}));
  const auto bytes = serialize(CryptoHeader{{0x40000}, 1});
  EXPECT_FALSE(parse_crypto_header(Bytes(bytes).first(15), Geometry{}));
  std::vector<std::byte> longer(bytes.begin(), bytes.end());
  longer.resize(24);
  EXPECT_FALSE(parse_crypto_header(longer, Geometry{}));
}

}  // namespace
}  // namespace byre
