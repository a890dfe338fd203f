// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "base/units.h"
#include "coro/event.h"
#include "coro/semaphore.h"
#include "sim/sim_disk.h"
#include "sim/sim_gate.h"
#include "sim/sim_reactor.h"
#include "sim/sim_socket.h"

namespace byre {
namespace {

std::vector<std::byte> filled(size_t size, int value) {
  return std::vector<std::byte>(size, std::byte(static_cast<unsigned char>(value)));
}

int first_byte(const SimDisk& disk, uint64_t sector) {
  return std::to_integer<int>(disk.read(sector * kSectorSize, 1)[0]);
}

/// One process that talks to one disk by plain Ops.
struct World {
  SimReactor reactor;
  SimDisk disk;
  int fd;
  explicit World(uint64_t seed, SimDisk::Options options = {}, uint32_t block_size = 1)
      : reactor(seed), disk(options), fd(disk.open(reactor, true, block_size)) {}

  Op write_op(uint64_t sector, std::vector<std::byte>& data, bool dsync = false) const {
    return {.kind = Op::Kind::write,
            .dsync = dsync,
            .fd = fd,
            .offset = sector * kSectorSize,
            .length = data.size(),
            .buffer = data.data()};
  }
  int64_t perform(Op op) {
    int64_t result = 0;
    EXPECT_TRUE(reactor.finish(performed(reactor, op, result)).has_value()) << reactor.failure();
    return result;
  }
  int64_t write(uint64_t sector, int value, size_t sectors = 1, bool dsync = false) {
    std::vector<std::byte> data = filled(sectors * kSectorSize, value);
    return perform(write_op(sector, data, dsync));
  }
  int64_t read(uint64_t offset, std::vector<std::byte>& data) {
    return perform({.kind = Op::Kind::read,
                    .fd = fd,
                    .offset = offset,
                    .length = data.size(),
                    .buffer = data.data()});
  }
  int64_t sync() { return perform({.kind = Op::Kind::sync, .fd = fd}); }

  static Task<void> performed(Reactor& reactor, Op& op, int64_t& result) {
    result = co_await reactor.perform(op);
  }
};

// --- The reactor --------------------------------------------------------------------------------

Task<void> writer(World& world, uint64_t first, int count) {
  std::vector<std::byte> data = filled(4 * kSectorSize, static_cast<int>(first));
  for (int i = 0; i < count; ++i) {
    Op op = world.write_op(first + world.reactor.random() % 32, data);
    co_await world.reactor.perform(op);
    co_await world.reactor.sleep(static_cast<int64_t>(world.reactor.random() % 1000));
  }
}

uint64_t hash_of_a_run(uint64_t seed) {
  World world(seed, {.seed = seed});
  const auto all = [](World& w) -> Task<void> {
    Scope scope(w.reactor.ready());
    for (uint64_t i = 0; i < 4; ++i) scope.spawn(writer(w, i * 16, 8));
    co_await scope.join();
  };
  EXPECT_TRUE(world.reactor.finish(all(world)).has_value());
  return world.reactor.trace().hash();
}

TEST(SimReactor, TheSameSeedIsTheSameHistory) {
  EXPECT_EQ(hash_of_a_run(1), hash_of_a_run(1));
  EXPECT_NE(hash_of_a_run(1), hash_of_a_run(2));
}

TEST(SimReactor, SleepingCostsNothing) {
  SimReactor reactor(1);
  ASSERT_TRUE(reactor.finish(reactor.sleep(3600 * kSecond)).has_value());
  EXPECT_EQ(reactor.now().ns, 3600 * kSecond);
}

TEST(SimReactor, CompletionsComeInEveryOrder) {
  bool seen[2] = {};
  for (uint64_t seed = 0; seed < 64; ++seed) {
    World world(seed);
    std::vector<int> order;
    const auto one = [](World& w, uint64_t sector, std::vector<int>& out) -> Task<void> {
      std::vector<std::byte> data = filled(kSectorSize, 1);
      Op op = w.write_op(sector, data);
      co_await w.reactor.perform(op);
      out.push_back(static_cast<int>(sector));
    };
    Scope scope(world.reactor.ready());
    scope.spawn(one(world, 0, order));
    scope.spawn(one(world, 1, order));
    ASSERT_TRUE(world.reactor.run_until([&] { return scope.running() == 0; }));
    seen[order[0]] = true;
  }
  EXPECT_TRUE(seen[0] && seen[1]);
}

TEST(SimReactor, AProcessThatWaitsForEverIsReported) {
  SimReactor reactor(1);
  Event never(reactor.ready());
  const auto body = [](SimReactor& r, Event& event) -> Task<void> {
    const SimReactor::Activity activity(r, "client 7 reads");
    co_await event.wait();
  };
  const Result<void> result = reactor.finish(body(reactor, never));
  ASSERT_FALSE(result.has_value());
  EXPECT_NE(result.error().message().find("deadlock"), std::string::npos);
  EXPECT_NE(result.error().message().find("client 7 reads"), std::string::npos);
}

TEST(SimReactor, ARunawayProcessIsStopped) {
  SimReactor reactor({.seed = 1, .steps_max = 1000});
  const auto body = [](SimReactor& r) -> Task<void> {
    for (;;) co_await r.sleep(1);
  };
  const Result<void> result = reactor.finish(body(reactor));
  ASSERT_FALSE(result.has_value());
  EXPECT_NE(result.error().message().find("no end after 1000 steps"), std::string::npos);
}

TEST(SimReactor, OffloadedWorkRunsLater) {
  SimReactor reactor(1);
  int worked = 0;
  const auto body = [](SimReactor& r, int& out) -> Task<void> {
    const Instant before = r.now();
    const auto work = [&out] { out = 1; };
    co_await r.offload(work);
    if (r.now() > before) ++out;
  };
  ASSERT_TRUE(reactor.finish(body(reactor, worked)).has_value());
  EXPECT_EQ(worked, 2);
}

TEST(SimReactor, ACancelledTimerEndsAtOnce) {
  SimReactor reactor(1);
  Op op{.kind = Op::Kind::timer, .deadline = {kSecond}};
  int64_t result = 0;
  Scope scope(reactor.ready());
  scope.spawn(World::performed(reactor, op, result));
  reactor.cancel(op);
  ASSERT_TRUE(reactor.run_until([&] { return scope.running() == 0; }));
  EXPECT_EQ(result, -ECANCELED);
  EXPECT_LT(reactor.now().ns, kSecond);
}

TEST(SimReactor, HeldOpsCompleteAfterEverythingElse) {
  World world(5);
  std::vector<int> order;
  world.reactor.hold_if = [](const Op& op) { return op.offset == 0; };
  const auto one = [](World& w, uint64_t sector, std::vector<int>& out) -> Task<void> {
    std::vector<std::byte> data = filled(kSectorSize, 1);
    Op op = w.write_op(sector, data);
    co_await w.reactor.perform(op);
    out.push_back(static_cast<int>(sector));
  };
  Scope scope(world.reactor.ready());
  scope.spawn(one(world, 0, order));
  scope.spawn(one(world, 1, order));
  while (world.reactor.step() != SimReactor::Step::idle) {
  }
  EXPECT_EQ(order, std::vector<int>{1});
  EXPECT_EQ(world.reactor.held(), 1u);
  world.reactor.release_held();
  ASSERT_TRUE(world.reactor.run_until([&] { return scope.running() == 0; }));
  EXPECT_EQ(order, (std::vector<int>{1, 0}));
}

TEST(SimReactor, AKilledProcessLeavesNothingBehind) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    World world(seed);
    const auto mutex = std::make_shared<Mutex>(world.reactor.ready());
    const auto body = [](World& w, Mutex& m) -> Task<void> {
      const Mutex::Hold hold = co_await m.lock();
      co_await writer(w, 0, 100);
    };
    const auto scope = std::make_shared<Scope>(world.reactor.ready());
    for (int i = 0; i < 3; ++i) scope->spawn(body(world, *mutex));
    world.reactor.run_for(static_cast<int64_t>(seed) * 100 * kMicrosecond);
    world.reactor.kill_all();
    SimReactor::bury(scope);
    SimReactor::bury(mutex);
    world.reactor.new_life();
    EXPECT_EQ(world.reactor.step(), SimReactor::Step::idle);
    world.fd = world.disk.open(world.reactor, true);
    EXPECT_EQ(world.write(0, 9), 512);
    EXPECT_EQ(first_byte(world.disk, 0), 9);
  }
}

TEST(SimReactor, AnEnumeratorWalksEveryInterleaving) {
  // Two coroutines of two steps each, started together: 4! / (2! 2!) orders.
  Enumerator paths;
  std::vector<std::string> orders;
  do {
    SimReactor reactor({.chooser = &paths});
    std::string order;
    const auto body = [](SimReactor& r, std::string& out, char name) -> Task<void> {
      co_await r.ready().yield();
      out += name;
      co_await r.ready().yield();
      out += name;
    };
    Scope scope(reactor.ready());
    scope.spawn(body(reactor, order, 'a'));
    scope.spawn(body(reactor, order, 'b'));
    ASSERT_TRUE(reactor.run_until([&] { return scope.running() == 0; }));
    orders.push_back(order);
  } while (paths.next());
  std::sort(orders.begin(), orders.end());
  orders.erase(std::unique(orders.begin(), orders.end()), orders.end());
  EXPECT_EQ(orders.size(), 6u);
}

TEST(Enumerator, SpendsNoMoreThanItsPreemptions) {
  for (uint64_t budget = 0; budget < 4; ++budget) {
    Enumerator paths(budget);
    uint64_t walked = 0;
    do {
      uint64_t spent = 0;
      for (int i = 0; i < 5; ++i) spent += paths.choose(3) != 0;
      EXPECT_LE(spent, budget);
      ++walked;
    } while (paths.next());
    const uint64_t expected[] = {1, 1 + 5 * 2, 11 + 10 * 4, 51 + 10 * 8};
    EXPECT_EQ(walked, expected[budget]);
  }
}

// --- The disk -----------------------------------------------------------------------------------

TEST(SimDisk, ASyncedWriteSurvivesEveryCut) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    World world(seed, {.seed = seed});
    EXPECT_EQ(world.write(3, 1, 4), 2048);
    EXPECT_EQ(world.sync(), 0);
    EXPECT_TRUE(world.disk.log().empty());
    for (const CutChoice& choice : {CutChoice::none(), CutChoice::all(), CutChoice::random(seed),
                                    CutChoice::random(seed, true)}) {
      const SimDisk after = world.disk.cut(choice);
      EXPECT_EQ(after.size(), 7 * kSectorSize);
      for (uint64_t s = 3; s < 7; ++s) EXPECT_EQ(first_byte(after, s), 1);
    }
  }
}

TEST(SimDisk, AnUnsyncedWriteIsKeptLostOrTorn) {
  bool kept = false, lost = false, torn = false;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    World world(seed, {.seed = seed, .size = 64 * KiB});
    world.write(0, 1, 2);
    const SimDisk after = world.disk.cut(CutChoice::random(seed));
    const int a = first_byte(after, 0), b = first_byte(after, 1);
    kept |= a == 1 && b == 1;
    lost |= a == 0 && b == 0;
    torn |= a != b;
    const SimDisk whole = world.disk.cut(CutChoice::random(seed, true));
    EXPECT_EQ(first_byte(whole, 0), first_byte(whole, 1));
  }
  EXPECT_TRUE(kept && lost && torn);
}

TEST(SimDisk, ASyncCoversOnlyWhatCompletedBeforeItBegan) {
  // The write is issued before the sync and completes after it began: it may be lost.
  World world(1, {.size = 64 * KiB});
  std::vector<std::byte> data = filled(kSectorSize, 1);
  Op write = world.write_op(0, data);
  Op sync{.kind = Op::Kind::sync, .fd = world.fd};
  int64_t wrote = 0, synced = -1;
  world.reactor.hold_if = [](const Op& op) { return op.kind == Op::Kind::write; };
  Scope scope(world.reactor.ready());
  scope.spawn(World::performed(world.reactor, write, wrote));
  scope.spawn(World::performed(world.reactor, sync, synced));
  ASSERT_TRUE(world.reactor.run_until([&] { return synced == 0; }));
  world.reactor.release_held();
  ASSERT_TRUE(world.reactor.run_until([&] { return scope.running() == 0; }));
  EXPECT_EQ(wrote, 512);
  EXPECT_EQ(first_byte(world.disk, 0), 1);
  EXPECT_EQ(first_byte(world.disk.cut(CutChoice::none()), 0), 0);
  ASSERT_EQ(world.disk.log().size(), 1u);
  EXPECT_EQ(world.sync(), 0);
  EXPECT_EQ(first_byte(world.disk.cut(CutChoice::none()), 0), 1);
}

TEST(SimDisk, ADurableWriteCoversItselfOnly) {
  World world(1, {.size = 64 * KiB});
  world.write(0, 1);
  world.write(1, 2, 1, true);
  const SimDisk after = world.disk.cut(CutChoice::none());
  EXPECT_EQ(first_byte(after, 0), 0);
  EXPECT_EQ(first_byte(after, 1), 2);
}

TEST(SimDisk, ACutTakesWhatTheChoiceNames) {
  World world(1, {.size = 64 * KiB, .torn = false});
  world.write(0, 1);
  world.write(1, 2);
  world.write(0, 3);
  const std::vector<LogEntry> log = world.disk.log();
  ASSERT_EQ(log.size(), 3u);
  const auto state = [&](const CutChoice& choice) {
    const SimDisk after = world.disk.cut(choice);
    return std::pair(first_byte(after, 0), first_byte(after, 1));
  };
  EXPECT_EQ(state(CutChoice::prefix(log, 0)), std::pair(0, 0));
  EXPECT_EQ(state(CutChoice::prefix(log, 1)), std::pair(1, 0));
  EXPECT_EQ(state(CutChoice::prefix(log, 2)), std::pair(1, 2));
  EXPECT_EQ(state(CutChoice::prefix(log, 3)), std::pair(3, 2));
  EXPECT_EQ(state(CutChoice::only(log[1])), std::pair(0, 2));
  EXPECT_EQ(state(CutChoice::all_but(log, log[1])), std::pair(3, 0));
  EXPECT_EQ(state(CutChoice::b_without_a(log, 1, 0)), std::pair(0, 2));
  const auto sectors = world.disk.unsynced_sectors();
  ASSERT_EQ(sectors.size(), 2u);
  EXPECT_EQ(sectors[0].versions, 2u);
  EXPECT_EQ(state({.mode = CutChoice::Mode::versions, .versions = {1, 0}}), std::pair(1, 0));
  EXPECT_EQ(first_byte(world.disk, 0), 3);  // Undisturbed.
}

TEST(SimDisk, WhatIsUnderWayMayLandToo) {
  World world(1, {.size = 64 * KiB});
  std::vector<std::byte> data = filled(kSectorSize, 1);
  Op write = world.write_op(0, data);
  int64_t wrote = 0;
  Scope scope(world.reactor.ready());
  world.reactor.hold_if = [](const Op&) { return true; };
  scope.spawn(World::performed(world.reactor, write, wrote));
  EXPECT_EQ(first_byte(world.disk, 0), 0);
  EXPECT_EQ(first_byte(world.disk.cut(CutChoice::all()), 0), 1);
  EXPECT_EQ(first_byte(world.disk.cut(CutChoice::none()), 0), 0);
  ASSERT_EQ(world.disk.log().size(), 1u);
  EXPECT_FALSE(world.disk.log()[0].completed);
  world.reactor.kill_all();
  scope.forget();
}

TEST(SimDisk, TheSizeHasVersionsToo) {
  World world(1);
  world.write(0, 1, 8);
  world.sync();
  world.perform({.kind = Op::Kind::truncate, .fd = world.fd, .offset = 64 * KiB});
  EXPECT_EQ(world.disk.size(), 64 * KiB);
  EXPECT_EQ(world.disk.cut(CutChoice::none()).size(), 4 * KiB);
  EXPECT_EQ(world.disk.cut(CutChoice::all()).size(), 64 * KiB);
  world.sync();
  EXPECT_EQ(world.disk.cut(CutChoice::none()).size(), 64 * KiB);
  world.perform({.kind = Op::Kind::truncate, .fd = world.fd, .offset = 1000});
  world.perform({.kind = Op::Kind::truncate, .fd = world.fd, .offset = 4 * KiB});
  const std::vector<std::byte> tail = world.disk.read(1000, 3096);
  EXPECT_TRUE(is_zero(tail));
  EXPECT_EQ(std::to_integer<int>(world.disk.read(999, 1)[0]), 1);
  EXPECT_EQ(first_byte(world.disk.cut(CutChoice::none()), 7), 1);
}

TEST(SimDisk, PunchedBytesAreZeroOnceLandedAndDurableOnceSynced) {
  World world(1);
  world.write(0, 1, 16);
  world.sync();
  EXPECT_EQ(world.disk.allocated_bytes(), 8 * KiB);
  world.perform({.kind = Op::Kind::punch, .fd = world.fd, .offset = 512, .length = 7680});
  EXPECT_EQ(first_byte(world.disk, 0), 1);
  EXPECT_EQ(first_byte(world.disk, 1), 0);
  EXPECT_EQ(world.disk.allocated_bytes(), 4 * KiB);
  EXPECT_EQ(first_byte(world.disk.cut(CutChoice::none()), 1), 1);
  world.sync();
  EXPECT_EQ(first_byte(world.disk.cut(CutChoice::none()), 1), 0);
}

TEST(SimDisk, ScriptedFaultsHitTheOperationTheyName) {
  using Applied = Fault::Applied;
  for (const Applied applied : {Applied::no, Applied::half, Applied::all}) {
    SimDisk::Options options{.size = 64 * KiB, .torn = false};
    options.faults.add({.kind = Op::Kind::write,
                        .first = 2,
                        .last = 2,
                        .fault = {.kind = Fault::Kind::error, .applied = applied}});
    World world(1, options);
    EXPECT_EQ(world.write(0, 1, 4), 2048);
    EXPECT_EQ(world.write(4, 2, 4), -EIO);
    EXPECT_EQ(first_byte(world.disk, 4), applied == Applied::no ? 0 : 2);
    EXPECT_EQ(first_byte(world.disk, 7), applied == Applied::all ? 2 : 0);
    EXPECT_EQ(world.write(4, 3, 4), 2048);
  }
}

TEST(SimDisk, AFailedSyncLosesWhatItWasToWrite) {
  for (const bool evicts : {false, true}) {
    SimDisk::Options options{.size = 64 * KiB};
    options.faults.add({.kind = Op::Kind::sync,
                        .first = 1,
                        .last = 1,
                        .fault = {.kind = Fault::Kind::error, .drops = true, .evicts = evicts}});
    World world(1, options);
    world.write(0, 1);
    EXPECT_EQ(world.sync(), -EIO);
    EXPECT_EQ(world.sync(), 0);  // It "succeeds", and nothing was written.
    EXPECT_EQ(first_byte(world.disk, 0), evicts ? 0 : 1);
    EXPECT_EQ(first_byte(world.disk.cut(CutChoice::all()), 0), 0);
  }
}

TEST(SimDisk, ItRunsOutOfBlocks) {
  World world(1, {.size = 1 * MiB, .capacity = 16 * KiB});
  EXPECT_EQ(world.write(0, 1, 16), 8192);
  EXPECT_EQ(world.write(64, 2, 32), 8192);  // As far as there is room.
  EXPECT_EQ(world.write(128, 3), -ENOSPC);
  EXPECT_EQ(world.write(0, 4, 16), 8192);  // In place needs none.
  EXPECT_EQ(world.perform({.kind = Op::Kind::punch, .fd = world.fd, .offset = 0, .length = 4096}),
            0);
  EXPECT_EQ(world.write(128, 3), 512);
  EXPECT_EQ(
      world.perform({.kind = Op::Kind::allocate, .fd = world.fd, .offset = 512 * KiB, .length = 1}),
      -ENOSPC);
}

TEST(SimDisk, TheKthAllocationCanFail) {
  SimDisk::Options options{.size = 1 * MiB};
  options.faults.no_space(2, 1);
  World world(1, options);
  EXPECT_EQ(world.write(0, 1, 8), 4096);
  EXPECT_EQ(world.write(0, 2, 8), 4096);
  EXPECT_EQ(world.write(8, 1, 8), -ENOSPC);
  EXPECT_EQ(world.write(8, 1, 8), 4096);
}

TEST(SimDisk, TransfersAreShortAndInterruptedByTheSeed) {
  SimDisk::Options options{.seed = 3, .size = 1 * MiB};
  options.faults.rates = {.interrupted = 4, .cut_short = 4};
  World world(1, options);
  bool short_seen = false, interrupted_seen = false;
  for (int i = 0; i < 100; ++i) {
    const int64_t result = world.write(0, 1, 8);
    interrupted_seen |= result == -EINTR;
    short_seen |= result > 0 && result < 4096;
    ASSERT_TRUE(result == -EINTR || (result > 0 && result <= 4096));
  }
  EXPECT_TRUE(short_seen && interrupted_seen);
}

TEST(SimDisk, DirectDescriptorsDemandAlignment) {
  World world(1, {.size = 1 * MiB}, 4096);
  std::vector<std::byte> memory(4096);
  Op op{.kind = Op::Kind::write, .fd = world.fd, .length = 4096, .buffer = memory.data()};
  EXPECT_EQ(world.perform(op), 4096);
  op.offset = 512;
  EXPECT_EQ(world.perform(op), -EINVAL);
  op.offset = 0;
  op.length = 512;
  EXPECT_EQ(world.perform(op), -EINVAL);
}

TEST(SimDisk, ABufferThatChangesUnderItsWriteIsAFailure) {
  World world(1);
  std::vector<std::byte> data = filled(kSectorSize, 1);
  Op op = world.write_op(0, data);
  int64_t result = 0;
  Scope scope(world.reactor.ready());
  scope.spawn(World::performed(world.reactor, op, result));
  data[7] = std::byte{2};
  EXPECT_FALSE(world.reactor.run_until([&] { return scope.running() == 0; }));
  EXPECT_NE(world.reactor.failure().find("changed while it was under way"), std::string::npos);
  world.reactor.kill_all();
  scope.forget();
}

TEST(SimDisk, AReadOnlyDescriptorWritesNothing) {
  SimReactor reactor(1);
  SimDisk disk({.size = 4096});
  Op op{.kind = Op::Kind::truncate, .fd = disk.open(reactor, false), .offset = 0};
  int64_t result = 0;
  ASSERT_TRUE(reactor.finish(World::performed(reactor, op, result)).has_value());
  EXPECT_EQ(result, -EBADF);
}

TEST(SimDisk, GoesThroughARealFileUnchanged) {
  const std::string path =
      (std::filesystem::temp_directory_path() / cat("byre-sim-", ::getpid())).string();
  SimDisk disk;
  const std::vector<std::byte> data = filled(5000, 7);
  disk.put(100 * KiB, data);
  disk.set_size(1 * MiB + 3);
  ASSERT_TRUE(disk.dump(path).has_value());
  SimDisk back;
  ASSERT_TRUE(back.load(path).has_value());
  std::filesystem::remove(path);
  EXPECT_EQ(back.size(), disk.size());
  EXPECT_EQ(back.read(0, back.size()), disk.read(0, disk.size()));
  EXPECT_EQ(back.allocated_bytes(), disk.allocated_bytes());
}

// A stupid model in lockstep: every version of every sector, kept as such.
TEST(SimDisk, MatchesAPlainModel) {
  constexpr uint64_t kSectors = 24;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    Prng prng(seed);
    World world(seed, {.seed = seed, .size = kSectors * kSectorSize});
    std::vector<std::vector<int>> versions(kSectors, std::vector<int>{0});
    for (int step = 1; step < 60; ++step) {
      const uint64_t first = prng.below(kSectors);
      const uint64_t count = prng.between(1, kSectors - first);
      switch (prng.below(4)) {
        case 0:
          world.sync();
          for (auto& sector : versions) sector.erase(sector.begin(), sector.end() - 1);
          break;
        case 1:
          world.perform({.kind = Op::Kind::punch,
                         .fd = world.fd,
                         .offset = first * kSectorSize,
                         .length = count * kSectorSize});
          for (uint64_t s = first; s < first + count; ++s) versions[s].push_back(0);
          break;
        default:
          world.write(first, step, count);
          for (uint64_t s = first; s < first + count; ++s) versions[s].push_back(step);
          break;
      }
      const SimDisk after = world.disk.cut(CutChoice::random(prng.next(), prng.one_in(2)));
      const SimDisk none = world.disk.cut(CutChoice::none());
      const SimDisk all = world.disk.cut(CutChoice::all());
      for (uint64_t s = 0; s < kSectors; ++s) {
        const int value = first_byte(after, s);
        ASSERT_NE(std::find(versions[s].begin(), versions[s].end(), value), versions[s].end());
        ASSERT_EQ(first_byte(none, s), versions[s].front());
        ASSERT_EQ(first_byte(all, s), versions[s].back());
        ASSERT_EQ(first_byte(world.disk, s), versions[s].back());
      }
    }
  }
}

// --- The socket ---------------------------------------------------------------------------------

Task<void> send_all(SimReactor& reactor, int fd, std::vector<std::byte>& data) {
  for (size_t done = 0; done < data.size();) {
    Op op{.kind = Op::Kind::send,
          .fd = fd,
          .length = data.size() - done,
          .buffer = data.data() + done};
    const int64_t n = co_await reactor.perform(op);
    if (n < 0) co_await fail(errno_error(static_cast<int>(-n), "send"));
    done += static_cast<size_t>(n);
  }
}
Task<void> receive_all(SimReactor& reactor, int fd, std::vector<std::byte>& data, int64_t& last) {
  std::vector<std::byte> buffer(3000);
  for (;;) {
    Op op{.kind = Op::Kind::receive, .fd = fd, .length = buffer.size(), .buffer = buffer.data()};
    last = co_await reactor.perform(op);
    if (last <= 0) co_return;
    data.insert(data.end(), buffer.begin(), buffer.begin() + last);
  }
}

TEST(SimSocket, CarriesEveryByteInOrder) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SimReactor reactor(seed);
    const auto [left, right] = SimSocket::make_pair(reactor, {.seed = seed, .buffer_size = 5000});
    std::vector<std::byte> sent(100'000), received;
    for (size_t i = 0; i < sent.size(); ++i)
      sent[i] = std::byte(static_cast<uint8_t>(i * 7 + i / 256));
    int64_t last = -1;
    Scope scope(reactor.ready());
    scope.spawn(send_all(reactor, left, sent));
    scope.spawn(receive_all(reactor, right, received, last));
    ASSERT_TRUE(reactor.run_until([&] { return scope.running() == 1; })) << reactor.failure();
    SimSocket::hang_up(reactor, left);
    ASSERT_TRUE(reactor.run_until([&] { return scope.running() == 0; })) << reactor.failure();
    EXPECT_EQ(last, 0);
    EXPECT_EQ(received, sent);
  }
}

TEST(SimSocket, ABrokenConnectionWakesBothSides) {
  SimReactor reactor(1);
  const auto [left, right] = SimSocket::make_pair(reactor);
  std::vector<std::byte> received;
  int64_t last = 0;
  Scope scope(reactor.ready());
  scope.spawn(receive_all(reactor, right, received, last));
  SimSocket::break_off(reactor, left);
  ASSERT_TRUE(reactor.run_until([&] { return scope.running() == 0; }));
  EXPECT_EQ(last, -ECONNRESET);
}

// --- File over the simulated disk ---------------------------------------------------------------

Task<void> write_runs(File& file, uint64_t seed, uint64_t lane, std::vector<std::byte>& model) {
  // Lane n owns the bytes whose offset / 700 is n modulo 4, so that lanes share every block.
  Prng prng(seed * 4 + lane);
  for (int i = 0; i < 12; ++i) {
    const uint64_t at = (prng.below(10) * 4 + lane) * 700 + prng.below(100);
    const std::vector<std::byte> data =
        filled(prng.between(1, 600), static_cast<int>(prng.between(1, 255)));
    co_await file.write(at, data, prng.one_in(4));
    if (prng.one_in(6)) co_await file.sync();
    copy(MutableBytes(model).subspan(at, data.size()), data);
    std::vector<std::byte> back(data.size());
    co_await file.read(at, back);
    if (back != data) co_await fail(corrupt("read back other bytes at ", at));
  }
}

Task<void> write_lanes(File& file, uint64_t seed, std::vector<std::byte>& model) {
  Scope scope(file.reactor().ready());
  for (uint64_t lane = 0; lane < 4; ++lane) scope.spawn(write_runs(file, seed, lane, model));
  co_await scope.join();
  std::vector<std::byte> back(model.size());
  co_await file.read(0, back);
  if (back != model) co_await fail(corrupt("the file is not the model"));
  co_await file.sync();
}

TEST(SimFile, NeighboursInOneBlockDoNotHurtEachOther) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SimReactor reactor(seed);
    SimDisks disks;
    disks["disk"].options() = {.seed = seed};
    disks["disk"].options().faults.rates = FaultPlan::harmless();
    const uint32_t block_sizes[] = {1, 512, 4096};
    SimGate opener(reactor, disks, {.block_size = block_sizes[seed % 3], .direct = true});
    auto file = opener.open("disk", {.writable = true});
    ASSERT_TRUE(file.has_value());
    std::vector<std::byte> model(40 * 1024);
    const Result<void> result = reactor.finish(write_lanes(**file, seed, model));
    ASSERT_TRUE(result.has_value()) << "seed " << seed << ": " << result.error().message();
    const SimDisk after = disks["disk"].cut(CutChoice::none());
    ASSERT_EQ(after.read(0, model.size()), model) << "seed " << seed;
  }
}

TEST(SimFile, AFailedSyncLatchesUntilTheFileIsOpenedAgain) {
  SimReactor reactor(1);
  SimDisks disks;
  disks["disk"].options().faults.add({.kind = Op::Kind::sync});
  SimGate opener(reactor, disks);
  auto file = opener.open("disk", {.writable = true});
  ASSERT_TRUE(file.has_value());
  std::vector<std::byte> data = filled(100, 1);
  EXPECT_TRUE(reactor.finish((*file)->write(0, data)).has_value());
  EXPECT_FALSE(reactor.finish((*file)->sync()).has_value());
  EXPECT_FALSE(reactor.finish((*file)->write(0, data)).has_value());
  EXPECT_FALSE(reactor.finish((*file)->sync()).has_value());
  EXPECT_TRUE(reactor.finish((*file)->read(0, data)).has_value());
  file = opener.open("disk", {.writable = true});
  EXPECT_TRUE(reactor.finish((*file)->write(0, data)).has_value());
  EXPECT_TRUE(reactor.finish((*file)->sync()).has_value());
}

}  // namespace
}  // namespace byre
