// SPDX-License-Identifier: Apache-2.0
#include "block/raw.h"

#include <gtest/gtest.h>

#include "base/units.h"
#include "io/io_testing.h"

namespace byre {
namespace {

class RawTest : public IoTest {
 protected:
  std::unique_ptr<RawDevice> make(bool growable,
                                  FileOptions options = {.writable = true, .create = true}) {
    return std::make_unique<RawDevice>(open("disk", options), RawOptions{.growable = growable});
  }
  std::vector<std::byte> read(Device& device, uint64_t offset, size_t size) {
    std::vector<std::byte> data(size, std::byte{0xee});
    run(device.read(offset, data));
    return data;
  }
};
ON_EVERY_REACTOR(RawTest);

TEST_P(RawTest, AGrowableOneGrowsAndAnyOtherKeepsItsSize) {
  {
    auto device = make(true);
    EXPECT_TRUE(device->can_grow());
    EXPECT_TRUE(device->new_space_is_zero());
    EXPECT_EQ(device->size(), 0u);
    run(device->write(1000, noise(500), {}));
    EXPECT_EQ(device->size(), 1500u);
    EXPECT_EQ(read(*device, 0, 1000), std::vector<std::byte>(1000));
    EXPECT_EQ(read(*device, 1000, 500), noise(500));
    EXPECT_EQ(error_of(device->write(~uint64_t{0} - 5, noise(10), {})).code(), Errc::invalid);
    run(device->close());
  }
  auto device = make(false, {.writable = true});
  EXPECT_FALSE(device->can_grow());
  std::vector<std::byte> data(10);
  EXPECT_EQ(error_of(device->write(1491, data, {})).code(), Errc::invalid);
  EXPECT_EQ(error_of(device->read(1491, data, IoTag::none)).code(), Errc::invalid);
  EXPECT_EQ(error_of(device->zero(1491, 10, {})).code(), Errc::invalid);
  EXPECT_EQ(error_of(device->discard(~uint64_t{0}, 10, {})).code(), Errc::invalid);
  EXPECT_EQ(device->size(), 1500u);
  run(device->resize(5000));
  EXPECT_EQ(device->size(), 5000u);
  EXPECT_EQ(read(*device, 1500, 3500), std::vector<std::byte>(3500));
}

TEST_P(RawTest, PiecesKeepWithinTheDisk) {
  auto device = make(true);
  std::vector<std::byte> data = noise(8192);
  const std::vector<iovec> pieces = {{data.data() + 4096, 4096}, {data.data(), 4096}};
  run(device->write_pieces(1000, pieces, {.fua = true}));
  EXPECT_EQ(device->size(), 9192u);
  const std::vector<std::byte> found = read(*device, 1000, 8192);
  EXPECT_TRUE(std::equal(found.begin(), found.begin() + 4096, data.begin() + 4096));
  EXPECT_TRUE(std::equal(found.begin() + 4096, found.end(), data.begin()));
  EXPECT_EQ(error_of(device->read_pieces(1001, pieces, {})).code(), Errc::invalid);
  EXPECT_EQ(error_of(device->write_pieces(0, pieces, {.compressed = true})).code(),
            Errc::unsupported);
  run(device->close());
}

TEST_P(RawTest, ZeroAndDiscardAndStatusAgree) {
  auto device = make(true);
  std::vector<std::byte> model = noise(4 * MiB);
  run(device->write(0, model, {}));
  run(device->zero(1 * MiB, 1 * MiB, {.may_unmap = true, .fua = true}));
  run(device->zero(100, 50, {}));
  run(device->discard(3 * MiB, 1 * MiB, {.fua = true}));
  std::fill_n(model.begin() + static_cast<ptrdiff_t>(1 * MiB), 1 * MiB, std::byte{0});
  std::fill_n(model.begin() + 100, 50, std::byte{0});
  std::fill_n(model.begin() + static_cast<ptrdiff_t>(3 * MiB), 1 * MiB, std::byte{0});
  EXPECT_TRUE(read(*device, 0, model.size()) == model);
  run(device->flush(IoTag::flush));

  // Whatever status says is zero is zero, and it gets to the end.
  for (uint64_t offset = 0; offset < model.size();) {
    const Extent extent = run(device->status(offset, model.size() - offset));
    ASSERT_GT(extent.length, 0u);
    EXPECT_EQ(extent.host_offset, offset);
    EXPECT_EQ(extent.file, device->name());
    if (extent.zero) {
      EXPECT_TRUE(is_zero(Bytes(model).subspan(offset, extent.length)));
    }
    offset += extent.length;
  }
  const Extent hole = run(device->status(1 * MiB, 1 * MiB));
  EXPECT_TRUE(hole.zero);
  EXPECT_FALSE(hole.data);
  EXPECT_EQ(hole.length, 1 * MiB);
}

TEST_P(RawTest, AReadOnlyOneIsReadOnly) {
  make(true);
  auto device = make(true, {});
  EXPECT_FALSE(device->writable());
  EXPECT_EQ(error_of(device->write(0, noise(10), {})).code(), Errc::read_only);
  run(device->flush(IoTag::flush));
  run(device->close());
}

}  // namespace
}  // namespace byre
