// SPDX-License-Identifier: Apache-2.0
/// The backing file of an image in use is replaced; the real qemu-img reads what the header says.
#include "qcow2/ops/replace_backing.h"

#include <gtest/gtest.h>

#include "block/entrance.h"
#include "block/raw.h"
#include "qcow2/repair/check_testing.h"

namespace byre {
namespace {

class ReplaceBacking : public CheckTest {
 protected:
  std::string path(const std::string& name) { return folder_ / name; }
  Child open(const std::string& name, bool writable) {
    auto image = reactor_->run(Image::open(*reactor_, opener_, path(name), {.writable = writable}));
    EXPECT_TRUE(image) << image.error().message();
    return image ? Child(*std::move(image)) : Child();
  }
  static Image& image(const Child& child) { return static_cast<Image&>(*child); }
  int value_at(Device& disk, uint64_t at) {
    std::byte byte{};
    const Result<void> read = reactor_->run(disk.read(at, {&byte, 1}, IoTag::none));
    EXPECT_TRUE(read) << read.error().message();
    return std::to_integer<int>(byte);
  }

  std::unique_ptr<Reactor> reactor_ = *make_reactor(ReactorKind::posix);
  SystemGate opener_{*reactor_, OpenPolicy::same_directory};
};

TEST_F(ReplaceBacking, TheOtherDiskShowsAndTheRealToolsAgree) {
  must("qemu-img create -q -f qcow2 one 1M && qemu-io -f qcow2 -c 'write -q -P 1 0 1M' one");
  must("qemu-img create -q -f qcow2 two 1M && qemu-io -f qcow2 -c 'write -q -P 2 0 1M' two");
  must(
      "qemu-img create -q -f qcow2 -b one -F qcow2 top && qemu-io -f qcow2 -c 'write -q -P 9 0 "
      "64k' top");
  Child top = open("top", true);
  for (const std::string& name : {std::string("two"), std::string("one"), std::string("two")}) {
    Child next = open(name, false);
    ASSERT_TRUE(reactor_->run(image(top).replace_backing(next, BackingName{name, "qcow2"})));
    EXPECT_TRUE(reactor_->run(next.close()));
    EXPECT_EQ(value_at(*top, 0), 9);
    EXPECT_EQ(value_at(*top, 128 * KiB), name == "two" ? 2 : 1);
  }
  // None at all, and one again.
  Child none;
  ASSERT_TRUE(reactor_->run(image(top).replace_backing(none, std::nullopt)));
  EXPECT_TRUE(reactor_->run(none.close()));
  EXPECT_EQ(value_at(*top, 128 * KiB), 0);
  Child next = open("two", false);
  ASSERT_TRUE(reactor_->run(image(top).replace_backing(next, BackingName{"two", "qcow2"})));
  EXPECT_FALSE(next);
  EXPECT_EQ(value_at(*top, 128 * KiB), 2);
  EXPECT_TRUE(reactor_->run(top.close()));
  top.reset();
  EXPECT_NE(run("qemu-img info top").second.find("backing file: two"), std::string::npos);
  must(
      "qemu-img check -q top && qemu-io -r -c 'read -q -P 2 128k 64k' -c 'read -q -P 9 0 64k' top");
}

TEST_F(ReplaceBacking, WhatCannotBeIsRefusedBeforeAnythingChanges) {
  must(
      "qemu-img create -q -f qcow2 one 1M && qemu-img create -q -f qcow2 -o cluster_size=512 "
      "-b one -F qcow2 top && cp top before");
  Child top = open("top", true);
  const auto refused = [&](Child next, const BackingName& name) {
    const Result<void> done = reactor_->run(image(top).replace_backing(next, name));
    EXPECT_FALSE(done) << name.file;
    EXPECT_TRUE(next);
    EXPECT_TRUE(reactor_->run(next.close()));
    return done ? Errc::io : done.error().code();
  };
  EXPECT_EQ(refused(open("one", false), {std::string(600, 'x'), "qcow2"}), Errc::no_space);
  EXPECT_EQ(refused(open("one", false), {"one", ""}), Errc::invalid);
  EXPECT_EQ(refused(top.another(), {"top", "qcow2"}), Errc::invalid);  // A circle.
  Child none;
  EXPECT_TRUE(reactor_->run(image(top).replace_backing(none, std::nullopt)));
  EXPECT_TRUE(reactor_->run(none.close()));
  none.reset();
  EXPECT_EQ(refused(top.another(), {"top", "qcow2"}), Errc::invalid);
  EXPECT_TRUE(reactor_->run(top.close()));
  top.reset();
  Child reader = open("before", false);
  Child next = open("one", false);
  EXPECT_FALSE(reactor_->run(image(reader).replace_backing(next, BackingName{"one", "qcow2"})));
  EXPECT_TRUE(reactor_->run(next.close()));
  EXPECT_TRUE(reactor_->run(reader.close()));
}

}  // namespace
}  // namespace byre
