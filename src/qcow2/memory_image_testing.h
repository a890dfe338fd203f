// SPDX-License-Identifier: Apache-2.0
/// MemoryImageTest: images in memory, made, opened and written by short calls that expect to work;
/// CoroutineTest: a test that is one coroutine.
///
/// Not here: images made by QEMU, and damage (repair/check_testing.h).
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "block/memory.h"
#include "qcow2/image.h"
#include "qcow2/image_testing.h"
#include "qcow2/ops/create.h"
#include "qcow2/repair/check.h"

namespace byre {

/// Fails when a check of the image in `memory` finds damage, or a leak that may not be.
inline Task<void> expect_sound(Device& memory, bool may_leak = false) {
  const CheckReport report = co_await check_image(memory, {});
  if (report.corruptions != 0 || (report.leaks != 0 && !may_leak)) {
    co_await fail(corrupt("check: ", report.corruptions, " corruptions, ", report.leaks,
                          " leaks: ", report.findings.empty() ? "" : report.findings[0].text));
  }
}

class MemoryImageTest : public testing::Test {
 protected:
  void create(CreateOptions options = {.size = 1 * MiB}) {
    const Result<void> made = reactor_->run(create_image(memory_, options));
    ASSERT_TRUE(made) << made.error().message();
  }
  Result<std::unique_ptr<Image>> try_open(ImageOptions options = {.writable = true}) {
    return reactor_->run(Image::open_over(std::make_unique<ScriptedDisk>(memory_, script_), opener_,
                                          std::move(options)));
  }
  void write(Image& image, uint64_t at, uint64_t length, int value) {
    const std::vector<std::byte> data(length, static_cast<std::byte>(value));
    const Result<void> done = reactor_->run(image.write(at, data, {}));
    ASSERT_TRUE(done) << done.error().message();
  }
  /// The one value that all bytes of the range have, or -1; -2 when they cannot be read.
  int value_at(Image& image, uint64_t at, uint64_t length) {
    std::vector<std::byte> data(length);
    if (!reactor_->run(image.read(at, data, IoTag::none))) return -2;
    for (const std::byte b : data) {
      if (b != data[0]) return -1;
    }
    return std::to_integer<int>(data[0]);
  }
  void close(Image& image) {
    const Result<void> closed = reactor_->run(image.close());
    EXPECT_TRUE(closed) << closed.error().message();
  }
  // Fields of the image, by place.
  uint64_t word(uint64_t at) {
    std::byte bytes[8];
    memory_.peek(at, bytes);
    return load_be<uint64_t>(bytes);
  }
  void set_word(uint64_t at, uint64_t value) {
    std::byte bytes[8];
    store_be(bytes, 0, value);
    memory_.poke(at, bytes);
  }
  /// Of a cluster that the first refcount block counts, with 16 bits.
  void set_refcount16(uint64_t cluster, uint16_t count) {
    std::byte bytes[2];
    store_be(bytes, 0, count);
    memory_.poke(word(word(48)) + cluster * 2, bytes);
  }
  void expect_sound() {
    const Result<void> sound = reactor_->run(byre::expect_sound(memory_));
    EXPECT_TRUE(sound) << sound.error().message();
  }

  std::unique_ptr<Reactor> reactor_ = *make_reactor(ReactorKind::posix);
  MemoryDevice memory_{*reactor_};
  /// Old bytes stay where a host cluster was given back, so that whoever reads them shows it.
  DiskScript script_{.discards = false};
  ClosedGate opener_;
};

/// Runs a test's coroutine, which has everything it needs in its frame, on a reactor of its own.
class CoroutineTest : public testing::Test {
 protected:
  template <class Make>
  void run(Make make, const std::string& what = "") {
    Result<std::unique_ptr<Reactor>> reactor = make_reactor();
    ASSERT_TRUE(reactor);
    const Result<void> result = (*reactor)->run(make(**reactor));
    EXPECT_TRUE(result) << what << ": " << result.error().message();
  }
};

}  // namespace byre
