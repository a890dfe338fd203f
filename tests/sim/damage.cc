// SPDX-License-Identifier: Apache-2.0
#include "damage.h"

#include <algorithm>

#include "format/l1.h"
#include "format/l2.h"
#include "format/refcount.h"

namespace byre {

namespace {

class Damage {
 public:
  Damage(Knobs& knobs, uint64_t seed, SimDisk& disk, Oracle& oracle)
      : knobs_(knobs), g_(knobs.geometry()), prng_(seed), disk_(disk), oracle_(oracle) {
    l1_at_ = word(40);
    l1_entries_ = word(32) & UINT32_MAX;
    table_at_ = word(48);
    find_owned();
  }

  void plant() {
    // First what takes new clusters, which are counted.
    if (knobs_.damage_aliases && prng_.one_in(2)) alias_clusters();
    const bool twins = knobs_.damage_aliases && l1_entries_ > 1 && prng_.one_in(3);
    if (twins) alias_tables();
    if (!twins && !knobs_.resizes && prng_.one_in(3)) lead_behind_end();
    const uint64_t way = prng_.below(8);
    // A new block behind the end would lie behind what leads there, too (V3).
    if (way == 0 && knobs_.lost_guest == 0) {
      drop_block();
    } else if (way < 7) {
      const bool all = prng_.one_in(4);
      for (const uint64_t cluster : owned_) {
        if (all || prng_.one_in(6)) set_count(cluster, 0);
      }
    }
    if (g_.refcount_order > 0 && prng_.one_in(3)) {
      const uint64_t cluster = owned_[prng_.below(owned_.size())];
      if (count(cluster) == 1) set_count(cluster, 2);
    }
  }

 private:
  uint64_t word(uint64_t at) const { return load_be<uint64_t>(disk_.read(at, 8)); }
  void set_word(uint64_t at, uint64_t value) {
    std::byte bytes[8];
    store_be(bytes, 0, value);
    disk_.put(at, bytes);
  }
  uint64_t cluster_size() const { return g_.cluster_size(); }

  void find_owned() {
    owned_.push_back(0);
    for (uint64_t at = 0; at < l1_entries_ * 8; at += cluster_size())
      owned_.push_back((l1_at_ + at) / cluster_size());
    const uint64_t entries = (word(56) >> 32) * cluster_size() / 8;
    for (uint64_t at = 0; at < entries * 8; at += cluster_size())
      owned_.push_back((table_at_ + at) / cluster_size());
    for (uint64_t i = 0; i < entries; ++i) {
      if (const uint64_t block = word(table_at_ + i * 8); block != 0)
        owned_.push_back(block / cluster_size());
    }
    find_owned_by(l1_at_, l1_entries_);
    // Of snapshots and bitmaps the clusters are those that have a refcount.
    for (uint64_t at = 0; at < disk_.size(); at += cluster_size()) {
      if (count(at / cluster_size()) != 0) owned_.push_back(at / cluster_size());
    }
    std::sort(owned_.begin(), owned_.end());
    owned_.erase(std::unique(owned_.begin(), owned_.end()), owned_.end());
  }

  void find_owned_by(uint64_t l1_at, uint64_t entries) {
    for (uint64_t i = 0; i < entries; ++i) {
      const uint64_t table = word(l1_at + i * 8) & kOffsetMask;
      if (table == 0) continue;
      owned_.push_back(table / cluster_size());
      const std::vector<std::byte> bytes = disk_.read(table, cluster_size());
      for (uint64_t e = 0; e < g_.l2_entries(); ++e) {
        const Result<Mapping> mapping = decode_l2(load_l2(bytes, e, g_), g_);
        if (!mapping) continue;
        const HostSpan span = hosts(*mapping, g_);
        for (uint64_t n = 0; n < span.count; ++n) owned_.push_back(span.first.value + n);
      }
    }
  }

  uint64_t block_of(uint64_t cluster) const {
    return word(table_at_ + g_.refcount_table_index({cluster}) * 8);
  }
  uint64_t count(uint64_t cluster) const {
    const uint64_t block = block_of(cluster);
    if (block == 0) return 0;
    return get_refcount(disk_.read(block, cluster_size()), g_.refcount_block_index({cluster}),
                        g_.refcount_order);
  }
  void set_count(uint64_t cluster, uint64_t value) {
    const uint64_t block = block_of(cluster);
    if (block == 0) return;
    std::vector<std::byte> bytes = disk_.read(block, cluster_size());
    set_refcount(bytes, g_.refcount_block_index({cluster}), g_.refcount_order, value);
    disk_.put(block, bytes);
  }
  void drop_block() {
    const uint64_t cluster = owned_[prng_.below(owned_.size())];
    if (block_of(cluster) != 0) set_word(table_at_ + g_.refcount_table_index({cluster}) * 8, 0);
  }

  /// A cluster of zeros behind the others, counted once; 0 when no block counts there.
  uint64_t append() {
    const uint64_t at = round_up(disk_.size(), cluster_size());
    const uint64_t entries = (word(56) >> 32) * cluster_size() / 8;
    if (g_.refcount_table_index({at / cluster_size()}) >= entries) return 0;
    if (block_of(at / cluster_size()) == 0 || count(at / cluster_size()) != 0) return 0;
    disk_.put(at, std::vector<std::byte>(cluster_size()));
    disk_.set_size(at + cluster_size());
    set_count(at / cluster_size(), 1);
    owned_.push_back(at / cluster_size());
    return at;
  }

  /// Some cluster of the windows, whole inside the disk.
  std::optional<GuestCluster> draw_guest() {
    const Window& window = knobs_.windows[prng_.below(knobs_.windows.size())];
    const uint64_t first = div_ceil(window.offset, cluster_size());
    const uint64_t end = std::min(window.offset + window.length, knobs_.size) / cluster_size();
    if (first >= end) return std::nullopt;
    return GuestCluster{prng_.between(first, end - 1)};
  }
  uint64_t entry_at(GuestCluster guest) const {
    const uint64_t table = word(l1_at_ + g_.l1_index(guest) * 8) & kOffsetMask;
    return table == 0 ? 0 : table + g_.l2_index(guest) * g_.l2_entry_size();
  }
  void set_entry(uint64_t at, uint64_t host) {
    set_word(at, host | kCopied);
    if (g_.extended_l2) set_word(at + 8, UINT32_MAX);
  }
  void holds_zeros(GuestCluster guest) {
    for (uint64_t at = 0; at < cluster_size(); at += kSectorSize)
      oracle_.set_initial((g_.start_of(guest).value + at) / kSectorSize, 0);
  }

  /// Two guest clusters on one host cluster, each of which believes that it is alone.
  void alias_clusters() {
    const std::optional<GuestCluster> one = draw_guest();
    const std::optional<GuestCluster> other = draw_guest();
    if (!one || !other || *one == *other || entry_at(*one) == 0 || entry_at(*other) == 0) return;
    const uint64_t host = append();
    if (host == 0) return;
    for (const GuestCluster guest : {*one, *other}) {
      set_entry(entry_at(guest), host);  // What it had is a leak from here on.
      holds_zeros(guest);
    }
  }

  /// Two L1 entries on one table, in which whatever clients use is a cluster of zeros.
  void alias_tables() {
    const uint64_t table = append();
    if (table == 0) return;
    std::vector<GuestCluster> used;
    for (const Window& window : knobs_.windows) {
      const uint64_t end = std::min(window.offset + window.length, knobs_.size);
      for (uint64_t at = round_down(window.offset, cluster_size()); at < end; at += cluster_size())
        used.push_back(g_.cluster_of(GuestOffset{at}));
    }
    for (const GuestCluster guest : used) {
      const uint64_t entry = table + g_.l2_index(guest) * g_.l2_entry_size();
      if (g_.l1_index(guest) > 1) continue;
      if (word(entry) == 0) {
        const uint64_t host = append();
        if (host == 0) return;
        set_entry(entry, host);
      }
    }
    for (const GuestCluster guest : used) {
      if (g_.l1_index(guest) <= 1) holds_zeros(guest);
    }
    for (const uint64_t index : {uint64_t{0}, uint64_t{1}})
      set_word(l1_at_ + index * 8, table | kCopied);
  }

  void lead_behind_end() {
    const uint64_t guest =
        div_ceil(knobs_.windows[0].offset + knobs_.windows[0].length, cluster_size());
    const uint64_t next = knobs_.windows.size() > 1 ? knobs_.windows[1].offset : knobs_.size;
    if ((guest + 1) * cluster_size() > next) return;
    const uint64_t at = entry_at({guest});
    if (at == 0 || word(at) != 0) return;
    // A direct write to the last I/O block makes the file as long as that block.
    const uint64_t end = round_up(disk_.size(), std::max<uint64_t>(cluster_size(), 4096));
    const uint64_t host = end + prng_.below(6) * cluster_size();
    // Elsewhere it cannot be counted before the file grows, and no snapshot is made of it.
    const uint64_t entries = (word(56) >> 32) * cluster_size() / 8;
    if (g_.refcount_table_index({host / cluster_size()}) >= entries) return;
    if (block_of(host / cluster_size()) == 0) return;
    set_entry(at, host);
    knobs_.lost_guest = guest * cluster_size();
  }

  Knobs& knobs_;
  const Geometry g_;
  Prng prng_;
  SimDisk& disk_;
  Oracle& oracle_;
  uint64_t l1_at_ = 0;
  uint64_t l1_entries_ = 0;
  uint64_t table_at_ = 0;
  std::vector<uint64_t> owned_;  ///< Host clusters that something refers to.
};

}  // namespace

void damage_disk(Knobs& knobs, uint64_t seed, SimDisk& disk, Oracle& oracle) {
  Damage(knobs, seed, disk, oracle).plant();
}

}  // namespace byre
