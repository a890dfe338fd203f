// SPDX-License-Identifier: Apache-2.0
#include "block/graph.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "block/drain.h"
#include "block/entrance.h"
#include "block/filter.h"
#include "block/memory.h"
#include "coro/scope.h"

namespace byre {
namespace {

/// Counts writes, and holds them while `hold` is not set.
class Station final : public Filter {
 public:
  explicit Station(Child below) : Filter(std::move(below)), go(reactor().ready()) { go.set(); }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    ++writes;
    co_await go.wait();
    co_await below().write(offset, data, options);
  }
  Task<void> close() override {
    closed = true;
    co_await Filter::close();
  }
  Task<void> settle() override {
    if (++settled == 1 && settles_by) co_await settles_by->wait();
  }
  Gate* background_gate() override { return background; }

  int writes = 0;
  int settled = 0;
  bool closed = false;
  Event go;
  Gate* background = nullptr;
  Event* settles_by = nullptr;  ///< What the first settle() waits for.
};

class Graph : public testing::Test {
 protected:
  Graph() {
    Result<std::unique_ptr<Reactor>> made = make_reactor();
    if (!made) std::abort();
    reactor_ = *std::move(made);
  }
  std::unique_ptr<MemoryDevice> memory() { return std::make_unique<MemoryDevice>(*reactor_, 4096); }
  Station& station(const Child& child) { return static_cast<Station&>(*child); }
  Child make_station(Child below) { return std::make_unique<Station>(std::move(below)); }
  void run(Task<void> task) {
    const Result<void> done = reactor_->run(std::move(task));
    ASSERT_TRUE(done) << done.error().message();
  }
  static Task<void> write(Entrance& entrance, uint64_t at, int value) {
    const std::byte data[512] = {static_cast<std::byte>(value)};
    const Entrance::Pass pass = co_await entrance.enter();
    co_await pass->write(at, data);
  }
  ReadyQueue& ready() { return reactor_->ready(); }

  std::unique_ptr<Reactor> reactor_;
};

TEST_F(Graph, ClosingAnEdgeClosesTheDeviceWithTheLast) {
  Child one = make_station(memory());
  Child other = one.another();
  Child third = make_station(one.another());
  run(other.close());
  run(third.close());
  EXPECT_FALSE(station(one).closed);
  EXPECT_TRUE(station(third).closed);
  run(one.close());
  EXPECT_TRUE(station(one).closed);
}

TEST_F(Graph, WhatNothingLeadsToKeepsNothingOpen) {
  Child disk = make_station(memory());
  Forwarder over(*disk);
  run(disk.close());
  EXPECT_TRUE(station(disk).closed);
}

TEST_F(Graph, AFilterEntersAndLeavesAboveADiskInUse) {
  Entrance entrance(make_station(memory()));
  Child bottom = entrance.edge().hold();
  Child filter = make_station(bottom.another());
  run(write(entrance, 0, 1));
  EXPECT_EQ(station(filter).writes, 0);
  run(insert_above(bottom.node(), filter));
  run(write(entrance, 0, 2));
  EXPECT_EQ(station(filter).writes, 1);
  EXPECT_EQ(station(bottom).writes, 2);
  EXPECT_EQ(&entrance.device(), filter.get());
  run(remove_filter(filter));
  run(filter.close());
  filter.reset();
  run(write(entrance, 0, 3));
  EXPECT_EQ(station(bottom).writes, 3);
  EXPECT_FALSE(station(bottom).closed);
}

TEST_F(Graph, ADrainWaitsForWhatRunsAndHoldsBackWhatComes) {
  Child bottom = make_station(memory());
  Entrance first(make_station(bottom.another()));
  Entrance second(bottom.another());
  station(bottom).go.reset();
  Scope scope(ready());
  bool drained = false;
  Event end(ready());
  const auto drain_it = [&]() -> Task<void> {
    Drain drain(bottom.node());
    co_await drain.begin();
    drained = true;
    EXPECT_TRUE(drain.holds(second.edge()));
    EXPECT_TRUE(drain.holds(first.edge()));
    co_await end.wait();
  };
  const auto story = [&]() -> Task<void> {
    scope.spawn(write(first, 0, 1));
    scope.spawn(drain_it());
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_FALSE(drained);
    scope.spawn(write(first, 0, 2));
    scope.spawn(write(second, 512, 3));
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_EQ(station(bottom).writes, 1);
    station(bottom).go.set();
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_TRUE(drained);
    EXPECT_EQ(station(bottom).writes, 1);
    // An entrance that is made now leads to a drained node.
    Entrance third(bottom.another());
    scope.spawn(write(third, 1024, 4));
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_EQ(station(bottom).writes, 1);
    end.set();
    co_await scope.join();
    EXPECT_EQ(station(bottom).writes, 4);
  };
  run(story());
}

TEST_F(Graph, WhatIsPutAboveADrainedNodeIsDrainedToo) {
  Child bottom = make_station(memory());
  const auto story = [&]() -> Task<void> {
    auto drain = std::make_unique<Drain>(bottom.node());
    co_await drain->begin();
    Entrance entrance(make_station(make_station(bottom.another())));
    EXPECT_TRUE(drain->holds(entrance.edge()));
    Scope scope(ready());
    bool entered = false;
    const auto enter = [&]() -> Task<void> {
      const Entrance::Pass pass = co_await entrance.enter();
      entered = true;
    };
    scope.spawn(enter());
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_FALSE(entered);
    drain.reset();
    co_await scope.join();
    EXPECT_TRUE(entered);
  };
  run(story());
}

TEST_F(Graph, WorkOfDevicesThemselvesEndsAfterTheyHaveSettled) {
  Child bottom = make_station(memory());
  Gate background(ready());
  station(bottom).background = &background;
  Child top = make_station(bottom.another());
  const auto story = [&]() -> Task<void> {
    std::optional<Gate::Pass> pass(co_await background.enter());
    Scope scope(ready());
    bool drained = false;
    Child memory_edge = Child::to(station(bottom).below());
    Event end(ready());
    const auto drain_it = [&]() -> Task<void> {
      Drain drain(memory_edge.node());
      co_await drain.begin();
      drained = true;
      co_await end.wait();
    };
    scope.spawn(drain_it());
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_EQ(station(bottom).settled, 1);
    EXPECT_EQ(station(top).settled, 1);
    EXPECT_FALSE(drained);
    EXPECT_TRUE(background.is_closed());
    pass.reset();
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_TRUE(drained);
    end.set();
    co_await scope.join();
    EXPECT_FALSE(background.is_closed());
  };
  run(story());
}

TEST_F(Graph, ADrainDoesNotHoldUpWhatAnotherWaitsForToSettle) {
  Child bottom = make_station(memory());
  Gate background(ready());
  Event settled(ready());
  station(bottom).background = &background;
  station(bottom).settles_by = &settled;
  const auto story = [&]() -> Task<void> {
    Scope scope(ready());
    int drained = 0;
    const auto drain_it = [&]() -> Task<void> {
      Drain drain(bottom.node());
      co_await drain.begin();
      ++drained;
    };
    scope.spawn(drain_it());
    scope.spawn(drain_it());
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_EQ(drained, 0);
    EXPECT_FALSE(background.is_closed());
    const auto work = [&]() -> Task<void> {
      const Gate::Pass pass = co_await background.enter();
      settled.set();
    };
    scope.spawn(work());
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_EQ(drained, 2);
    settled.set();
    co_await scope.join();
  };
  run(story());
}

TEST_F(Graph, AnEdgeMayEndDuringADrain) {
  auto entrance = std::make_unique<Entrance>(make_station(memory()));
  Child bottom = entrance->edge().another();
  const auto story = [&]() -> Task<void> {
    Drain drain(bottom.node());
    co_await drain.begin();
    entrance.reset();
  };
  run(story());
  run(bottom.close());
}

TEST_F(Graph, TwoDrainsOverlap) {
  Entrance entrance(make_station(memory()));
  const auto story = [&]() -> Task<void> {
    auto first = std::make_unique<Drain>(entrance.edge().node());
    co_await first->begin();
    auto second = std::make_unique<Drain>(entrance.edge().node());
    co_await second->begin();
    Scope scope(ready());
    scope.spawn(write(entrance, 0, 1));
    first.reset();
    for (int i = 0; i < 10; ++i) co_await ready().yield();
    EXPECT_EQ(station(entrance.edge()).writes, 0);
    second.reset();
    co_await scope.join();
    EXPECT_EQ(station(entrance.edge()).writes, 1);
  };
  run(story());
}

TEST_F(Graph, PermissionsThatConflictAreRefusedOnTheFinalGraph) {
  Child disk = memory();
  disk.node().set_name("disk");
  Child reader = disk.another();
  ASSERT_TRUE(reader.set_permissions({.uses = Access::reading(), .shares = Access::reading()}));
  Child writer = disk.another();
  const Permissions writes{.uses = {.read = true, .write = true}};
  Result<void> refused = writer.set_permissions(writes);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::busy);
  EXPECT_TRUE(refused.error().message().starts_with("Permission conflict on node 'disk'"))
      << refused.error().message();
  EXPECT_EQ(writer.permissions(), Permissions{});

  // Through a filter it is the same.
  Child filter = make_station(disk.another());
  EXPECT_FALSE(filter.set_permissions(writes));
  // Somewhere else it is fine, and from there it may not come here.
  Child elsewhere = memory();
  Child wanders = elsewhere.another();
  ASSERT_TRUE(wanders.set_permissions(writes));
  const Move move[] = {{wanders, disk.node()}};
  EXPECT_FALSE(check_moves(move));
  const Move other[] = {{wanders, filter.node()}};
  EXPECT_FALSE(check_moves(other));
  // When the reader leaves in the same step, it may.
  const Move both[] = {{wanders, disk.node()}, {reader, elsewhere.node()}};
  EXPECT_TRUE(check_moves(both));
  EXPECT_EQ(wanders.get(), elsewhere.get());
}

/// A disk with another below it.
class Overlay final : public Filter {
 public:
  Overlay(Child disk, Child below) : Filter(std::move(disk)), below_(std::move(below)) {
    below_.belong_to(*this, Role::backing);
    shows(true);
  }
  void shows(bool counts_on_it) {
    const Permissions reads{.uses = Access::reading(), .shares = Access::reading()};
    ASSERT_TRUE(below_.set_permissions(counts_on_it ? reads : Permissions()));
  }

 private:
  Child below_;
};

TEST_F(Graph, ADiskThatNobodyReadsLetsOthersWriteBelowIt) {
  const Permissions writes{.uses = {.read = true, .write = true}};
  const Permissions reads{.uses = Access::reading()};
  Child base = memory();
  base.node().set_name("base");
  Child writer = base.another();
  Child overlay = std::make_unique<Overlay>(memory(), base.another());
  // Somebody has it open, and somebody else reads it: as soon as nobody does, all may write.
  Child name = overlay.hold();
  EXPECT_FALSE(writer.set_permissions(writes));
  Child filter = make_station(std::move(overlay));
  Child filter_name = filter.hold();
  EXPECT_FALSE(writer.set_permissions(writes));
  run(filter.close());
  filter.reset();
  EXPECT_TRUE(writer.set_permissions(writes));

  // The next to read it is refused as long as there is a writer, however far away it comes in.
  Child reader = filter_name.another();
  Result<void> refused = reader.set_permissions(reads);
  ASSERT_FALSE(refused);
  EXPECT_TRUE(refused.error().message().starts_with("Permission conflict on node 'base'"))
      << refused.error().message();
  ASSERT_TRUE(writer.set_permissions({}));
  EXPECT_TRUE(reader.set_permissions(reads));
  EXPECT_FALSE(writer.set_permissions(writes));
}

TEST_F(Graph, NobodyIsLedToADiskThatHasAWriterBelowIt) {
  Child base = memory();
  Child writer = base.another();
  Child overlay = std::make_unique<Overlay>(memory(), base.another());
  Child name = overlay.hold();
  run(overlay.close());
  overlay.reset();
  ASSERT_TRUE(writer.set_permissions({.uses = {.read = true, .write = true}}));
  Child elsewhere = memory();
  Child reader = elsewhere.another();
  ASSERT_TRUE(reader.set_permissions({.uses = Access::reading()}));
  const Move move[] = {{reader, name.node()}};
  const Result<void> refused = check_moves(move);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::busy);
  static_cast<Overlay&>(*name).shows(false);
  EXPECT_TRUE(check_moves(move));
}

TEST_F(Graph, ANodeTakesLittleMemory) { EXPECT_LE(sizeof(Node) + sizeof(Child), 256u); }

TEST_F(Graph, ACircleIsRefused) {
  Child bottom = make_station(memory());
  Child middle = make_station(bottom.another());
  Child top = make_station(middle.another());
  Child* down = bottom->children().front();
  for (Child* target : {&top, &middle, &bottom}) {
    const Move move[] = {{*down, target->node()}};
    const Result<void> refused = check_moves(move);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message().find("cycle"), std::string::npos);
  }
  Child fresh = memory();
  const Move move[] = {{*down, fresh.node()}};
  EXPECT_TRUE(check_moves(move));
}

}  // namespace
}  // namespace byre
