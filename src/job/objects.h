// SPDX-License-Identifier: Apache-2.0
/// Objects: what users define beside devices (--object), by an id to which devices refer.
///
/// There are throttle groups: `throttle-group,id=g,limits.iops-total=100`, or the same as JSON with
/// "qom-type".  All disks that a command opens with `driver=throttle,throttle-group=g` share one
/// group.  There are secrets (secret.h), which nothing uses yet.  And there are I/O threads, for
/// those who take them: one thread serves everything, so their name is all there is to them.
/// Invariant: each id is there once; limits have passed check_throttle_limits().
/// Not here: TLS credentials; groups that devices define themselves (open_tree.h).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "block/throttle.h"

namespace byre {

/// The number that options call `name`: "bps-total", "iops-read-max", "iops-size"; null: none.
uint64_t* find_limit(ThrottleLimits& limits, std::string_view name);
/// All of them, by these names.
std::vector<std::pair<std::string, uint64_t>> all_limits(const ThrottleLimits& limits);

class Objects {
 public:
  enum class IoThreads : uint8_t { refused, taken };
  /// What is wrong is said in QEMU's words, where it has some.
  Result<void> add(std::string_view text, IoThreads threads = IoThreads::refused);
  bool contains(std::string_view id) const {
    return groups_.contains(id) || secrets_.contains(id) || io_threads_.contains(id);
  }
  /// Ids and types.
  std::vector<std::pair<std::string, std::string>> list() const;
  /// Null: there is no such group.
  const ThrottleLimits* limits(std::string_view id) const;
  /// Errc::busy while a device uses it.
  Result<void> remove(std::string_view id);
  /// Null: there is no such group.
  std::shared_ptr<ThrottleGroup> throttle_group(std::string_view id, Reactor& reactor);
  /// Its contents; null: there is no such secret.
  const std::string* secret(std::string_view id) const;

 private:
  struct Group {
    ThrottleLimits limits;
    std::shared_ptr<ThrottleGroup> group;  ///< Once somebody has asked for it.
  };
  std::map<std::string, Group, std::less<>> groups_;
  std::map<std::string, std::string, std::less<>> secrets_;
  std::set<std::string, std::less<>> io_threads_;
};

}  // namespace byre
