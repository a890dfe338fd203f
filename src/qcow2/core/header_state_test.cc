// SPDX-License-Identifier: Apache-2.0
/// The one writer of the header: changes are whole, one after another, and what fails is taken
/// back.
#include "qcow2/core/header_state.h"

#include <gtest/gtest.h>

#include "block/memory.h"
#include "coro/scope.h"
#include "format/header.h"
#include "qcow2/image_testing.h"

namespace byre {
namespace {

/// Writes take a turn, so that others come in between; the k-th and those after it may fail.
class Slow final : public Borrowed {
 public:
  using Borrowed::Borrowed;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    ++writes;
    const bool fails = writes >= fails_first && writes <= fails_last;
    for (int i = 0; i < 3; ++i) co_await reactor().ready().yield();
    // What fails may be there all the same.
    co_await below().write(offset, data, options);
    if (fails) co_await fail(Error(Errc::io, "it was to fail"));
  }
  uint64_t writes = 0;
  uint64_t fails_first = UINT64_MAX;
  uint64_t fails_last = 0;
};

class HeaderStateTest : public testing::Test {
 protected:
  void SetUp() override {
    Header header{.size = 1 * MiB,
                  .l1_entries = 1,
                  .l1_offset = HostOffset{0x30000},
                  .refcount_table_offset = HostOffset{0x10000},
                  .refcount_table_clusters = 1};
    const Result<std::vector<std::byte>> bytes = serialize_header(header, {});
    ASSERT_TRUE(bytes);
    memory_.poke(0, *bytes);
    Result<ImageHeader> head = reactor_->run(load_image_header(memory_));
    ASSERT_TRUE(head);
    head_ = *std::move(head);
  }
  /// Runs them together; gives how each ended.
  std::vector<Result<void>> together(std::vector<HeaderEdit> edits) {
    std::vector<Result<void>> results(edits.size());
    const auto one = [&](size_t i) -> Task<void> {
      results[i] = co_await state_.change(edits[i]).result();
    };
    const auto all = [&]() -> Task<void> {
      Scope scope(reactor_->ready());
      for (size_t i = 0; i < edits.size(); ++i) scope.spawn(one(i));
      co_await scope.join();
    };
    EXPECT_TRUE(reactor_->run(all()));
    return results;
  }
  Header on_disk() {
    Result<ImageHeader> head = reactor_->run(load_image_header(memory_));
    EXPECT_TRUE(head);
    return head ? head->header : Header();
  }

  std::unique_ptr<Reactor> reactor_ = *make_reactor(ReactorKind::posix);
  MemoryDevice memory_{*reactor_};
  Slow file_{memory_};
  ImageHeader head_;
  SyncLatch latch_{file_, nullptr};
  HeaderState state_{reactor_->ready(), file_, latch_, head_};
};

// A size that cannot be written is taken back while a commit sets the dirty bit and moves the
// refcount table: both stay.  Likewise for the other two.
class OneFails : public HeaderStateTest, public testing::WithParamInterface<uint64_t> {};

TEST_P(OneFails, AFailedChangeTakesBackItsOwnFieldsOnly) {
  const uint64_t failing = GetParam();
  const HeaderEdit::Table table{HostOffset{0x50000}, 1};
  file_.fails_first = file_.fails_last = failing;
  const auto results =
      together({{.dirty = true}, {.disk_size = 2 * MiB}, {.refcount_table = table}});
  const Header header = on_disk();
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(results[i].has_value(), i + 1 != failing);
  EXPECT_EQ(header.has(kDirty), failing != 1);
  EXPECT_EQ(header.size, failing == 2 ? 1 * MiB : 2 * MiB);
  EXPECT_EQ(header.refcount_table_offset == table.at, failing != 3);
  EXPECT_EQ(header, state_.head().header);
  EXPECT_FALSE(latch_);
}
// By number of the write; a change that fails writes twice.
INSTANTIATE_TEST_SUITE_P(EachInTurn, OneFails, testing::Values(1, 2, 3));

TEST_F(HeaderStateTest, WhatCannotBeTakenBackEndsAllWriting) {
  file_.fails_first = 1;
  file_.fails_last = 2;
  EXPECT_FALSE(together({{.disk_size = 2 * MiB}})[0]);
  EXPECT_TRUE(latch_);
  EXPECT_EQ(state_.head().header.size, 1 * MiB);
  EXPECT_FALSE(together({{.dirty = true}})[0]);
  EXPECT_EQ(file_.writes, 2u);
}

TEST_F(HeaderStateTest, AnEditThatChangesNothingWritesNothing) {
  EXPECT_TRUE(together({{.disk_size = 1 * MiB, .dirty = false}})[0]);
  EXPECT_EQ(file_.writes, 0u);
}

TEST_F(HeaderStateTest, TheDirtyBitStaysWhereSomethingCouldNotBePutRight) {
  EXPECT_TRUE(together({{.dirty = true}})[0]);
  state_.keep_dirty();
  EXPECT_TRUE(together({{.disk_size = 2 * MiB, .dirty = false}})[0]);
  EXPECT_TRUE(on_disk().has(kDirty));
  EXPECT_EQ(on_disk().size, 2 * MiB);
}

}  // namespace
}  // namespace byre
