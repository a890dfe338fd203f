// SPDX-License-Identifier: Apache-2.0
/// ThrottleGroup and Throttle: requests wait so that a rate is kept, alone or together with the
/// other disks of a group.
///
/// Each limit is a leaky bucket.  A request adds its bytes, or its count, and goes on at once as
/// long as the bucket is not over its capacity; else it waits until enough has leaked.  The bucket
/// leaks `average` units a second.
///   - Without `max` its capacity is a tenth of a second of `average`, so that a disk reaches its
///   rate
///     although requests come in clusters.
///   - With `max` it is max * max_length: after a rest a disk may do `max` a second for so many
///     seconds.  If these are more than one, a second bucket of a tenth of a second keeps the burst
///     itself to that rate.
/// A request larger than the capacity passes when the bucket is not over it, and those behind it
/// wait for the rest.  Reads and writes have buckets of their own, and `total` is for both; a zero
/// or discard request counts as a write of its length; a flush counts nothing.
///
/// Order: reads of one disk go on in the order in which they came, and so do writes.  Disks of one
/// group take turns, one request each.
/// A request that waits holds nothing, and release() lets all of them go on at once, uncounted:
/// drain, close and cancel never wait for a limit. Cost: a few additions a request; a timer for
/// reads and one for writes while something waits. Not here: names of groups and who finds them
/// (what opens disks knows them).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "block/drain.h"
#include "block/filter.h"
#include "coro/event.h"

namespace byre {

struct ThrottleLimit {
  uint64_t average = 0;     ///< Units a second; 0: no limit.
  uint64_t max = 0;         ///< Units a second in a burst; 0: none.
  uint64_t max_length = 1;  ///< Seconds of such a burst.
};
struct ThrottleLimits {
  ThrottleLimit bps_total;
  ThrottleLimit bps_read;
  ThrottleLimit bps_write;
  ThrottleLimit iops_total;
  ThrottleLimit iops_read;
  ThrottleLimit iops_write;
  /// A request counts once for each so many bytes (a part counts as a part, and none as less than
  /// one); 0: each request counts as one.
  uint64_t iops_size = 0;
};
/// Can these be?  The error names the limit as options do (bps-total, iops-read-max).
Result<void> check_throttle_limits(const ThrottleLimits& limits);

class Throttle;

/// Of disks of one reactor; lives until the last of them is gone.
class ThrottleGroup {
 public:
  /// `limits` have passed check_throttle_limits().
  ThrottleGroup(Reactor& reactor, const ThrottleLimits& limits);
  ThrottleGroup(const ThrottleGroup&) = delete;
  ~ThrottleGroup();

  const ThrottleLimits& limits() const { return limits_; }
  /// From now on, with empty buckets; also for what waits.
  void set_limits(const ThrottleLimits& limits);

 private:
  friend class Throttle;
  enum class Direction : uint8_t { read, write };

  class Bucket {
   public:
    Bucket() = default;
    explicit Bucket(const ThrottleLimit& limit) : limit_(limit) {}
    void leak(double seconds);
    void add(double units);
    /// Nanoseconds until it is no longer over its capacity.
    int64_t wait_ns() const;

   private:
    ThrottleLimit limit_;
    double level_ = 0;
    double burst_level_ = 0;  ///< Leaks at the rate of the burst.
  };

  /// A request on its way; lives in the frame of admit().
  struct Waiter {
    Waiter(ThrottleGroup& owner, Throttle& of, Direction way, uint64_t size, ReadyQueue& ready)
        : group(owner), member(of), direction(way), bytes(size), changed(ready) {}
    Waiter(const Waiter&) = delete;
    ~Waiter();
    ThrottleGroup& group;
    Throttle& member;
    const Direction direction;
    const uint64_t bytes;
    bool admitted = false;
    Op* timer = nullptr;  ///< While it waits for time.
    Event changed;        ///< It was admitted, or became the timekeeper.
  };

  /// What waits in one direction.  Of all, one is the timekeeper: the one that will be next, which
  /// waits for the buckets to leak.
  struct Queues {
    Waiter* timekeeper = nullptr;
    size_t next_member = 0;
  };

  Task<void> admit(Throttle& member, Direction direction, uint64_t bytes);
  void pump(Direction direction);
  Waiter* next_waiter(Direction direction);
  void leave(Waiter& waiter);
  void let_go(Waiter& waiter);
  void wake(Waiter& waiter);
  void release(Throttle& member);
  void leak();
  int64_t wait_ns(Direction direction) const;
  void count(Direction direction, uint64_t bytes);
  void add_member(Throttle& member);
  void remove_member(Throttle& member);

  Reactor& reactor_;
  ThrottleLimits limits_;
  Instant leaked_at_;
  // Index 0: total; 1 and 2: reads and writes.
  std::array<Bucket, 3> bytes_;
  std::array<Bucket, 3> requests_;
  std::vector<Throttle*> members_;
  std::array<Queues, 2> queues_;
};

class Throttle final : public Filter, public HoldsBack {
 public:
  Throttle(Child below, std::shared_ptr<ThrottleGroup> group);
  ~Throttle() override;

  /// Everything that waits goes on at once, and nothing waits until as many resume() have come.
  void release() override;
  void resume() override;
  /// How many requests wait.
  size_t waiting() const { return waiting_[0].size() + waiting_[1].size(); }
  ThrottleGroup& group() { return *group_; }

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  /// Releases for good.
  Task<void> close() override;

 private:
  friend class ThrottleGroup;
  std::shared_ptr<ThrottleGroup> group_;
  uint64_t released_ = 0;  ///< How often; 0: requests wait.
  /// By direction, the oldest first.
  std::array<std::vector<ThrottleGroup::Waiter*>, 2> waiting_;
};

}  // namespace byre
