// SPDX-License-Identifier: Apache-2.0
/// GraphUse: how the guests of a simulated process reach their disk, where the graph above it
/// changes while they use it.
///
///   entrance - [Passage] - [CopyBeforeWrite] - [the image]
///                                  \- [SnapshotAccess] - another entrance
///
/// A Passage is a filter that counts.  Each request of a guest is a GuestRequest, which has a
/// pass of the entrance; where a scenario has no graph there is none.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "block/copy_before_write.h"
#include "block/entrance.h"
#include "block/filter.h"
#include "block/memory.h"
#include "coro/semaphore.h"

namespace byre {

/// Knows what runs through it.
class Passage final : public Filter {
 public:
  explicit Passage(Child below) : Filter(std::move(below)) {}
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    const Count count(*this);
    co_await below().read(offset, data, options);
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    const Count count(*this);
    co_await below().write(offset, data, options);
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    const Count count(*this);
    co_await below().zero(offset, length, options);
  }
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override {
    const Count count(*this);
    co_await below().discard(offset, length, options);
  }
  uint64_t running = 0;
  uint64_t passed = 0;

 private:
  struct Count {
    explicit Count(Passage& p) : passage(p) {
      ++passage.running;
      ++passage.passed;
    }
    Count(const Count&) = delete;
    ~Count() { --passage.running; }
    Passage& passage;
  };
};

/// Where a copy-before-write filter keeps old contents: takes its time, and may fail.
class SnapshotTarget final : public Filter {
 public:
  SnapshotTarget(Reactor& reactor, uint64_t size, bool fails)
      : Filter(std::make_unique<MemoryDevice>(reactor, size)), fails_(fails) {}
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    co_await wait();
    co_await below().read(offset, data, options);
    co_await wait();
  }
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    co_await wait();
    if (fails_ && reactor().random() % 12 == 0) {
      failed = true;
      co_await fail(Error(Errc::no_space, "the target is full"));
    }
    co_await below().write(offset, data, options);
    co_await wait();
  }
  bool failed = false;

 private:
  Task<void> wait() {
    co_await reactor().sleep(static_cast<int64_t>(reactor().random() % kMillisecond + 1));
  }
  const bool fails_;
};

/// What was kept, and how it is read.
struct SnapshotUse {
  Child filter;  ///< To the CopyBeforeWrite.
  std::unique_ptr<Entrance> entrance;
  SnapshotTarget* target = nullptr;
  std::vector<std::vector<std::byte>> windows;  ///< The disk at that moment.
};

struct GraphUse {
  std::unique_ptr<Entrance> entrance;
  std::shared_ptr<SnapshotUse> snapshot;  ///< While one is kept; readers share it.
  Child filter;                           ///< To the Passage, while there is one.
  bool changing = false;                  ///< What is above or below.
  bool replacing = false;                 ///< What is below.
  uint64_t replacements = 0;
  uint64_t inside = 0;  ///< Guests' requests that run.
};

/// One request of a guest.
class GuestRequest {
 public:
  explicit GuestRequest(GraphUse& graph) : graph_(graph) {}
  GuestRequest(const GuestRequest&) = delete;
  ~GuestRequest() {
    if (pass_) --graph_.inside;
  }
  /// The device that it goes to: that of the entrance, or the image where there is none.  `own`:
  /// by an entrance that nobody has used before.
  Task<Device*> begin(Device& image, bool own) {
    if (!graph_.entrance) co_return &image;
    if (own) own_.emplace(graph_.entrance->edge().another());
    pass_.emplace(co_await (own ? *own_ : *graph_.entrance).enter());
    ++graph_.inside;
    co_return &**pass_;
  }

 private:
  GraphUse& graph_;
  std::optional<Entrance> own_;
  std::optional<Entrance::Pass> pass_;
};

}  // namespace byre
