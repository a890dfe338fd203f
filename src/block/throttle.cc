// SPDX-License-Identifier: Apache-2.0
#include "block/throttle.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"

namespace byre {
namespace {

constexpr uint64_t kValueMax = 1'000'000'000'000'000;
/// The part of a second that a bucket holds where no burst says more.
constexpr double kSlack = 0.1;

Result<void> check_limit(std::string_view name, const ThrottleLimit& limit) {
  if (limit.average > kValueMax || limit.max > kValueMax)
    return invalid("throttle: ", name, " and ", name, "-max are at most ", kValueMax);
  if (limit.max != 0 && limit.average == 0) return invalid("throttle: ", name, "-max needs ", name);
  if (limit.max != 0 && limit.max < limit.average) {
    return invalid("throttle: ", name, "-max=", limit.max, " is less than ", name, "=",
                   limit.average);
  }
  if (limit.max_length == 0) return invalid("throttle: ", name, "-max-length cannot be 0");
  if (limit.max_length > 1 && limit.max == 0)
    return invalid("throttle: ", name, "-max-length needs ", name, "-max");
  const auto burst = checked_multiply(limit.max, limit.max_length);
  if (!burst || *burst > kValueMax) {
    return invalid("throttle: ", name, "-max-length=", limit.max_length, " is too long for ", name,
                   "-max=", limit.max);
  }
  return {};
}

}  // namespace

Result<void> check_throttle_limits(const ThrottleLimits& limits) {
  struct Named {
    std::string_view name;
    const ThrottleLimit& limit;
  };
  for (const Named& one :
       {Named{"bps-total", limits.bps_total}, Named{"bps-read", limits.bps_read},
        Named{"bps-write", limits.bps_write}, Named{"iops-total", limits.iops_total},
        Named{"iops-read", limits.iops_read}, Named{"iops-write", limits.iops_write}}) {
    if (Result<void> sound = check_limit(one.name, one.limit); !sound) return sound;
  }
  const auto both = [](const ThrottleLimit& total, const ThrottleLimit& read,
                       const ThrottleLimit& write) {
    return total.average != 0 && (read.average != 0 || write.average != 0);
  };
  if (both(limits.bps_total, limits.bps_read, limits.bps_write))
    return invalid("throttle: bps-total goes with neither bps-read nor bps-write");
  if (both(limits.iops_total, limits.iops_read, limits.iops_write))
    return invalid("throttle: iops-total goes with neither iops-read nor iops-write");
  const bool counts = limits.iops_total.average != 0 || limits.iops_read.average != 0 ||
                      limits.iops_write.average != 0;
  if (limits.iops_size != 0 && !counts)
    return invalid("throttle: iops-size needs iops-total, iops-read or iops-write");
  return {};
}

// Buckets.

void ThrottleGroup::Bucket::leak(double seconds) {
  level_ = std::max(0.0, level_ - static_cast<double>(limit_.average) * seconds);
  burst_level_ = std::max(0.0, burst_level_ - static_cast<double>(limit_.max) * seconds);
}

void ThrottleGroup::Bucket::add(double units) {
  if (limit_.average == 0) return;
  level_ += units;
  if (limit_.max_length > 1) burst_level_ += units;
}

int64_t ThrottleGroup::Bucket::wait_ns() const {
  if (limit_.average == 0) return 0;
  const auto until = [](double over, uint64_t rate) {
    if (over <= 0) return int64_t{0};
    // Far above any rate that is allowed, and far below what int64_t holds.
    constexpr double kLongest = 1e17;
    const double ns = std::ceil(over * static_cast<double>(kSecond) / static_cast<double>(rate));
    return static_cast<int64_t>(std::min(ns, kLongest));
  };
  const double average = static_cast<double>(limit_.average);
  const double max = static_cast<double>(limit_.max);
  const double capacity =
      limit_.max != 0 ? max * static_cast<double>(limit_.max_length) : average * kSlack;
  const int64_t wait = until(level_ - capacity, limit_.average);
  if (limit_.max_length <= 1) return wait;
  return std::max(wait, until(burst_level_ - max * kSlack, limit_.max));
}

// The group.

ThrottleGroup::ThrottleGroup(Reactor& reactor, const ThrottleLimits& limits) : reactor_(reactor) {
  set_limits(limits);
}

ThrottleGroup::~ThrottleGroup() { BYRE_ASSERT(members_.empty()); }

void ThrottleGroup::set_limits(const ThrottleLimits& limits) {
  BYRE_ASSERT(bool(check_throttle_limits(limits)));
  limits_ = limits;
  leaked_at_ = reactor_.now();
  bytes_ = {Bucket(limits.bps_total), Bucket(limits.bps_read), Bucket(limits.bps_write)};
  requests_ = {Bucket(limits.iops_total), Bucket(limits.iops_read), Bucket(limits.iops_write)};
  // The timekeepers look again.
  for (const Queues& queues : queues_) {
    if (queues.timekeeper) wake(*queues.timekeeper);
  }
}

void ThrottleGroup::leak() {
  const Instant now = reactor_.now();
  const double seconds = static_cast<double>(now - leaked_at_) / static_cast<double>(kSecond);
  leaked_at_ = now;
  for (Bucket& bucket : bytes_) bucket.leak(seconds);
  for (Bucket& bucket : requests_) bucket.leak(seconds);
}

int64_t ThrottleGroup::wait_ns(Direction direction) const {
  const size_t own = static_cast<size_t>(direction) + 1;
  return std::max({bytes_[0].wait_ns(), bytes_[own].wait_ns(), requests_[0].wait_ns(),
                   requests_[own].wait_ns()});
}

void ThrottleGroup::count(Direction direction, uint64_t bytes) {
  const size_t own = static_cast<size_t>(direction) + 1;
  const double size = static_cast<double>(bytes);
  const double requests =
      limits_.iops_size == 0 ? 1 : std::max(1.0, size / static_cast<double>(limits_.iops_size));
  for (const size_t index : {size_t{0}, own}) {
    bytes_[index].add(size);
    requests_[index].add(requests);
  }
}

/// The oldest request of the member whose turn it is.
ThrottleGroup::Waiter* ThrottleGroup::next_waiter(Direction direction) {
  const size_t way = static_cast<size_t>(direction);
  for (size_t i = 0; i < members_.size(); ++i) {
    const size_t index = (queues_[way].next_member + i) % members_.size();
    if (members_[index]->waiting_[way].empty()) continue;
    queues_[way].next_member = index;
    return members_[index]->waiting_[way].front();
  }
  return nullptr;
}

/// Admits what may go on, and sees to it that somebody waits for the time of the next one.
void ThrottleGroup::pump(Direction direction) {
  Queues& queues = queues_[static_cast<size_t>(direction)];
  leak();
  while (Waiter* waiter = next_waiter(direction)) {
    if (wait_ns(direction) > 0) {
      if (!queues.timekeeper) {
        queues.timekeeper = waiter;
        waiter->changed.notify();
      }
      return;
    }
    count(direction, waiter->bytes);
    queues.next_member = (queues.next_member + 1) % members_.size();
    let_go(*waiter);
  }
}

/// Takes it out of what waits.
void ThrottleGroup::leave(Waiter& waiter) {
  const size_t way = static_cast<size_t>(waiter.direction);
  std::erase(waiter.member.waiting_[way], &waiter);
  if (queues_[way].timekeeper == &waiter) queues_[way].timekeeper = nullptr;
}

void ThrottleGroup::let_go(Waiter& waiter) {
  leave(waiter);
  waiter.admitted = true;
  wake(waiter);
}

void ThrottleGroup::wake(Waiter& waiter) {
  if (waiter.timer) {
    reactor_.cancel(*waiter.timer);
  } else {
    waiter.changed.notify();
  }
}

ThrottleGroup::Waiter::~Waiter() {
  if (!admitted) group.leave(*this);
}

Task<void> ThrottleGroup::admit(Throttle& member, Direction direction, uint64_t bytes) {
  Queues& queues = queues_[static_cast<size_t>(direction)];
  Waiter waiter(*this, member, direction, bytes, reactor_.ready());
  member.waiting_[static_cast<size_t>(direction)].push_back(&waiter);
  pump(direction);
  while (!waiter.admitted) {
    if (queues.timekeeper != &waiter) {
      co_await waiter.changed.wait();
      continue;
    }
    leak();
    if (const int64_t ns = wait_ns(direction); ns > 0) {
      Op timer{.kind = Op::Kind::timer, .deadline = reactor_.now() + ns};
      waiter.timer = &timer;
      co_await reactor_.perform(timer);
      waiter.timer = nullptr;
      if (waiter.admitted) break;
    }
    // Whose turn it is may have changed.
    queues.timekeeper = nullptr;
    pump(direction);
  }
}

/// Everything of `member` goes on; those of others whose timekeeper was among it need another.
void ThrottleGroup::release(Throttle& member) {
  for (const Direction direction : {Direction::read, Direction::write}) {
    auto& waiting = member.waiting_[static_cast<size_t>(direction)];
    while (!waiting.empty()) let_go(*waiting.front());
    pump(direction);
  }
}

void ThrottleGroup::add_member(Throttle& member) { members_.push_back(&member); }

void ThrottleGroup::remove_member(Throttle& member) {
  BYRE_ASSERT(member.waiting() == 0);
  std::erase(members_, &member);
  for (Queues& queues : queues_) queues.next_member = 0;
}

// One disk of it.

Throttle::Throttle(Child below, std::shared_ptr<ThrottleGroup> group)
    : Filter(std::move(below)), group_(std::move(group)) {
  BYRE_ASSERT(&group_->reactor_ == &reactor());
  group_->add_member(*this);
}

Throttle::~Throttle() { group_->remove_member(*this); }

void Throttle::release() {
  if (released_++ == 0) group_->release(*this);
}

void Throttle::resume() {
  BYRE_ASSERT(released_ > 0);
  --released_;
}

Task<void> Throttle::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  if (released_ == 0) co_await group_->admit(*this, ThrottleGroup::Direction::read, data.size());
  co_await below().read(offset, data, options);
}

Task<void> Throttle::write(uint64_t offset, Bytes data, WriteOptions options) {
  if (released_ == 0) co_await group_->admit(*this, ThrottleGroup::Direction::write, data.size());
  co_await below().write(offset, data, options);
}

Task<void> Throttle::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  if (released_ == 0) co_await group_->admit(*this, ThrottleGroup::Direction::write, length);
  co_await below().zero(offset, length, options);
}

Task<void> Throttle::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  if (released_ == 0) co_await group_->admit(*this, ThrottleGroup::Direction::write, length);
  co_await below().discard(offset, length, options);
}

Task<void> Throttle::close() {
  release();
  co_await Filter::close();
}

}  // namespace byre
