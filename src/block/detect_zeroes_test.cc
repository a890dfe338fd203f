// SPDX-License-Identifier: Apache-2.0
#include "block/detect_zeroes.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/units.h"
#include "io/reactor.h"

namespace byre {
namespace {

/// Remembers what it was asked.
class Listening final : public Device {
 public:
  Listening(Reactor& reactor, std::vector<std::string>& heard) : reactor_(reactor), heard_(heard) {}
  uint64_t size() const override { return MiB; }
  bool writable() const override { return true; }
  uint32_t alignment() const override { return 1; }
  uint32_t preferred_size() const override { return 65536; }
  const std::string& name() const override { return name_; }
  Reactor& reactor() override { return reactor_; }
  Task<void> read(uint64_t, MutableBytes, Mark) override { co_return; }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    heard_.push_back(cat("write ", offset, " ", data.size(), options.fua ? " fua" : ""));
    co_return;
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    heard_.push_back(cat("zero ", offset, " ", length, options.may_unmap ? " unmap" : "",
                         options.fua ? " fua" : ""));
    co_return;
  }
  Task<void> discard(uint64_t, uint64_t, DiscardOptions) override { co_return; }
  Task<void> flush(Mark) override { co_return; }
  Task<Extent> status(uint64_t, uint64_t length) override { co_return Extent{.length = length}; }
  Task<void> close() override { co_return; }

 private:
  Reactor& reactor_;
  std::vector<std::string>& heard_;
  std::string name_ = "listening";
};

TEST(DetectZeroes, AWriteOfZerosBecomesOneToZeroAndOthersStay) {
  auto made = make_reactor();
  ASSERT_TRUE(made);
  Reactor& reactor = **made;
  const std::vector<std::byte> zeros(70'000);
  std::vector<std::byte> last = zeros;
  last.back() = std::byte{1};
  const auto run = [&](DetectZeroesMode mode) {
    std::vector<std::string> heard;
    DetectZeroes device(std::make_unique<Listening>(reactor, heard), mode);
    EXPECT_TRUE(reactor.run(device.write(512, zeros, {})));
    EXPECT_TRUE(reactor.run(device.write(0, zeros, {.fua = true})));
    EXPECT_TRUE(reactor.run(device.write(0, last, {.fua = true})));
    EXPECT_TRUE(reactor.run(device.write(7, Bytes(zeros).first(0), {})));
    EXPECT_TRUE(reactor.run(device.write(0, zeros, {.compressed = true})));
    return heard;
  };
  const std::vector<std::string> rest = {"write 0 70000 fua", "write 7 0", "write 0 70000"};
  const auto with_rest = [&](std::vector<std::string> first) {
    first.insert(first.end(), rest.begin(), rest.end());
    return first;
  };
  EXPECT_EQ(run(DetectZeroesMode::off), with_rest({"write 512 70000", "write 0 70000 fua"}));
  EXPECT_EQ(run(DetectZeroesMode::on), with_rest({"zero 512 70000", "zero 0 70000 fua"}));
  EXPECT_EQ(run(DetectZeroesMode::unmap),
            with_rest({"zero 512 70000 unmap", "zero 0 70000 unmap fua"}));
}

}  // namespace
}  // namespace byre
