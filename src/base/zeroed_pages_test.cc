// SPDX-License-Identifier: Apache-2.0
#include "base/zeroed_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/units.h"

namespace byre {
namespace {

TEST(ZeroedPages, AreZeroAndWritableToTheLastByte) {
  for (const size_t size : {size_t{1}, size_t{4096}, size_t{1 * MiB}, size_t{2 * MiB},
                            size_t{2 * MiB + 1}, size_t{8 * MiB}}) {
    ZeroedPages pages(size);
    ASSERT_GE(pages.size(), size);
    auto* const bytes = static_cast<uint8_t*>(pages.data());
    EXPECT_TRUE(std::all_of(bytes, bytes + pages.size(), [](uint8_t byte) { return byte == 0; }));
    std::fill(bytes, bytes + pages.size(), uint8_t{0xff});
    if (size >= 2 * MiB) EXPECT_EQ(std::bit_cast<uintptr_t>(bytes) % (2 * MiB), 0U);
  }
}

TEST(ZeroedPages, Move) {
  ZeroedPages first(4096);
  *static_cast<int*>(first.data()) = 7;
  ZeroedPages second(std::move(first));
  EXPECT_EQ(first.data(), nullptr);
  ZeroedPages third(8192);
  third = std::move(second);
  EXPECT_EQ(*static_cast<int*>(third.data()), 7);
}

}  // namespace
}  // namespace byre
