// SPDX-License-Identifier: Apache-2.0
#include "knobs.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <set>

#include "checker.h"
#include "format/codec.h"
#include "format/extended_l2.h"
#include "format/extension.h"
#include "format/header.h"
#include "format/l2.h"
#include "format/refcount.h"

namespace byre {

namespace {

template <class T>
T pick(Prng& prng, std::initializer_list<T> choices) {
  return choices.begin()[prng.below(choices.size())];
}

/// Which token each sector of a disk holds.
using Contents = std::map<uint64_t, Token>;

Token token_at(const Contents& contents, uint64_t sector) {
  const auto found = contents.find(sector);
  return found == contents.end() ? 0 : found->second;
}

/// Writes one image, cluster by cluster, from the start of the file.
class Builder {
 public:
  /// `data`: the external data file, if the knobs say that there is one.
  Builder(const Knobs& knobs, uint64_t size, std::string backing, std::string backing_format,
          Prng& prng, Oracle& tokens, SimDisk* data = nullptr)
      : knobs_(knobs),
        g_(knobs.geometry()),
        size_(size),
        backing_(std::move(backing)),
        backing_format_(std::move(backing_format)),
        prng_(prng),
        tokens_(tokens),
        data_(data) {}

  /// Fills `disk`; `view` holds what is below and gets what the image makes of it.
  uint64_t build(SimDisk& disk, Contents& view) {
    disk_ = &disk;
    take_exactly(1);
    l1_.resize(std::max<uint64_t>(g_.l1_entries_for(size_), 1));
    l1_at_ = g_.start_of(take(g_.clusters_for(l1_.size() * 8)));
    next_ += knobs_.gap;
    uint64_t most = 64;
    for (const Window& window : knobs_.windows) most += 3 * (window.length / cluster() + 1);
    far_ = round_up(next_ + most, std::min<uint64_t>(g_.refcount_block_entries(), 4096));
    if (knobs_.contents != 0) {
      for (const Window& window : knobs_.windows) {
        const uint64_t end = std::min(window.offset + window.length, size_);
        for (uint64_t at = round_down(window.offset, cluster()); at < end; at += cluster()) {
          if (!prng_.one_in(knobs_.contents)) continue;
          fill(g_.cluster_of(GuestOffset{at}), view);
        }
      }
    }
    if (knobs_.aliases) plant_alias();
    for (const auto& [index, table] : tables_) disk.put(l1_[index] & kOffsetMask, table);
    std::vector<std::byte> l1(l1_.size() * 8);
    for (size_t i = 0; i < l1_.size(); ++i) store_l1_entry(l1, i, l1_[i]);
    disk.put(l1_at_.value, l1);
    const uint64_t leaks = refcounts();
    header();
    disk.set_size(std::max(disk.size(), next_used_ * cluster()));
    return leaks;
  }
  uint64_t aliased() const { return aliased_; }

 private:
  uint64_t cluster() const { return g_.cluster_size(); }

  HostCluster take(uint64_t count) {
    if (prng_.one_in(6)) next_ += prng_.between(1, 3);  // Holes for the allocator to find.
    const HostCluster first{next_};
    for (uint64_t i = 0; i < count; ++i) counts_[next_ + i] = 1;
    next_ += count;
    next_used_ = next_;
    return first;
  }

  MutableBytes table_for(GuestCluster guest) {
    const uint64_t index = g_.l1_index(guest);
    if (l1_[index] == 0) {
      HostCluster at{far_};
      if (knobs_.tables_apart) {
        counts_[far_++] = 1;
      } else {
        at = take(1);
      }
      l1_[index] = g_.start_of(at).value | kCopied;
      tables_[index].resize(cluster());
    }
    return tables_[index];
  }

  std::vector<std::byte> draw_data(GuestCluster guest, Contents& made, bool compressible) {
    std::vector<std::byte> data(cluster());
    const uint64_t start = g_.start_of(guest).value;
    Token token = 0;
    for (uint64_t at = 0; at < cluster() && start + at < size_; at += kSectorSize) {
      if (at == 0 || prng_.one_in(16)) {
        do token = tokens_.fresh_token();
        while (compressible && token % 4 == 3);
      }
      const uint64_t sector = (start + at) / kSectorSize;
      fill_sector(MutableBytes(data).subspan(at, kSectorSize), sector, token);
      made[sector] = token;
    }
    return data;
  }

  void fill(GuestCluster guest, Contents& view) {
    const bool zeros = knobs_.version >= 3;
    Contents made;
    Mapping mapping;
    const uint64_t kind = prng_.below(8);
    if (kind < 2 && knobs_.compressed && !data_) {
      mapping = compressed(guest, made);
    } else if (kind == 2 && zeros) {
      mapping.zero = g_.all_units();
    } else if (kind == 3 && zeros) {
      mapping.zero = g_.all_units();
      plain(guest, mapping, made);
    } else if (kind == 4 && g_.extended_l2) {
      for (uint32_t unit = 0; unit < 32; ++unit) {
        const uint64_t which = prng_.below(3);
        if (which == 0) mapping.allocated |= 1u << unit;
        if (which == 1) mapping.zero |= 1u << unit;
      }
      if (mapping.allocated != 0 || prng_.one_in(2)) plain(guest, mapping, made);
    } else {
      mapping.allocated = g_.all_units();
      plain(guest, mapping, made);
    }
    const uint64_t start = g_.start_of(guest).value;
    for (uint64_t at = 0; at < cluster() && start + at < size_; at += kSectorSize) {
      const uint64_t sector = (start + at) / kSectorSize;
      const auto unit = static_cast<uint32_t>(at / g_.unit_size());
      if (mapping.compressed || (mapping.allocated >> unit & 1)) {
        view[sector] = token_at(made, sector);
      } else if (mapping.zero >> unit & 1) {
        view.erase(sector);
      }
    }
    const MutableBytes table = table_for(guest);
    store_l2(table, g_.l2_index(guest), encode_l2(mapping, g_), g_);
  }

  void plain(GuestCluster guest, Mapping& mapping, Contents& made) {
    if (data_) {
      mapping.host = HostCluster{guest.value};
      mapping.copied = true;
      const std::vector<std::byte> bytes = draw_data(guest, made, false);
      const uint64_t start = g_.start_of(guest).value;
      // In a raw data file what reads as zeros is zeros.
      for (uint64_t at = 0; at < cluster(); at += kSectorSize) {
        const auto unit = static_cast<uint32_t>(at / g_.unit_size());
        const bool is_data = mapping.allocated >> unit & 1;
        if (!is_data && knobs_.data_file == Knobs::DataFile::raw) continue;
        if (start + at < size_) data_->put(start + at, Bytes(bytes).subspan(at, kSectorSize));
      }
      return;
    }
    const HostCluster host = take(1);
    mapping.host = host;
    mapping.copied = true;
    disk_->put(g_.start_of(host).value, draw_data(guest, made, false));
  }

  /// The damage that the race of writes and discards leaves; without COPIED nobody trusts it.
  void plant_alias() {
    std::vector<GuestCluster> places;
    for (uint64_t at = 0; at + cluster() <= size_ && places.size() < 2; at += cluster()) {
      const auto touches = [&](const Window& w) {
        return at < w.offset + w.length && w.offset < at + cluster();
      };
      if (std::none_of(knobs_.windows.begin(), knobs_.windows.end(), touches))
        places.push_back(g_.cluster_of(GuestOffset{at}));
    }
    if (places.size() < 2) return;
    const HostCluster host = take(1);
    disk_->put(g_.start_of(host).value, std::vector<std::byte>(cluster(), std::byte{0x5a}));
    const Mapping mapping{.allocated = g_.all_units(), .host = host};
    for (const GuestCluster guest : places) {
      const MutableBytes table = table_for(guest);
      store_l2(table, g_.l2_index(guest), encode_l2(mapping, g_), g_);
    }
    aliased_ = host.value;
  }

  Mapping compressed(GuestCluster guest, Contents& made) {
    const std::vector<std::byte> data = draw_data(guest, made, true);
    const Result<std::optional<std::vector<std::byte>>> stream = compress(knobs_.compression, data);
    Mapping mapping;
    if (!stream || !*stream) {
      const HostCluster host = take(1);
      disk_->put(g_.start_of(host).value, data);
      mapping.allocated = g_.all_units();
      mapping.host = host;
      mapping.copied = true;
      return mapping;
    }
    const uint64_t length = (*stream)->size();
    // Into the open cluster and the one behind it, unless that one is taken or the count is full.
    const uint64_t most = refcount_max(g_.refcount_order);
    const uint64_t first = pack_ / cluster();
    const bool fits = pack_ != 0 && pack_ % cluster() != 0 &&
                      pack_ % cluster() + length <= cluster() && counts_[first] < most;
    const bool crosses = !fits && pack_ != 0 && pack_ % cluster() != 0 && next_ == first + 1 &&
                         counts_[first] < most && can_describe_compressed({pack_}, length, g_);
    if (fits) {
      ++counts_[first];
    } else if (crosses) {
      ++counts_[first];
      counts_[next_++] = 1;
      next_used_ = next_;
    } else {
      pack_ = g_.start_of(take(1)).value;
    }
    const HostOffset at{pack_};
    disk_->put(at.value, **stream);
    mapping = compressed_mapping(at, length);
    pack_ += length;
    if (knobs_.refcount_order == 0) pack_ = 0;
    return mapping;
  }

  /// The refcount table and blocks, and the leaks that fill them; returns how many those are.
  uint64_t refcounts() {
    const uint64_t entries = g_.refcount_block_entries();
    uint64_t blocks = 1;
    uint64_t table = 1;
    for (;;) {
      const uint64_t total = std::max(next_ + blocks + table, knobs_.tables_apart ? far_ : 0);
      const uint64_t needed = div_ceil(total, entries);
      const uint64_t needed_table = div_ceil(needed * 8, cluster());
      if (needed <= blocks && needed_table <= table) break;
      blocks = std::max(blocks, needed);
      table = std::max(table, needed_table);
    }
    uint64_t leaks = 0;
    if (knobs_.clusters_free != UINT64_MAX) {
      // All that the blocks (or the whole table) count, but for a few at the end.
      if (prng_.one_in(2) && table * cluster() / 8 * entries <= 20'000) {
        blocks = table * cluster() / 8;
      }
      table_at_ = take_exactly(table);
      const HostCluster first_block = take_exactly(blocks);
      place_blocks(first_block, blocks);
      const uint64_t end = blocks * entries;
      std::vector<uint64_t> free;
      for (uint64_t c = 0; c < end; ++c) {
        if (!counts_.contains(c)) free.push_back(c);
      }
      for (uint64_t i = 0; i + std::min<uint64_t>(knobs_.clusters_free, free.size()) < free.size();
           ++i) {
        counts_[free[i]] = 1;
        ++leaks;
      }
    } else {
      table_at_ = take_exactly(table);
      place_blocks(take_exactly(blocks), blocks);
    }
    table_clusters_ = table;
    std::vector<std::byte> bytes(table * cluster());
    for (const auto& [index, at] : blocks_) {
      store_be(bytes, index * 8, g_.start_of(at).value);
      std::vector<std::byte> block(cluster());
      for (auto it = counts_.lower_bound(index * entries);
           it != counts_.end() && it->first < (index + 1) * entries; ++it) {
        set_refcount(block, it->first % entries, g_.refcount_order, it->second);
      }
      disk_->put(g_.start_of(at).value, block);
    }
    disk_->put(g_.start_of(table_at_).value, bytes);
    return leaks;
  }
  HostCluster take_exactly(uint64_t count) {
    const HostCluster first{next_};
    for (uint64_t i = 0; i < count; ++i) counts_[next_++] = 1;
    next_used_ = next_;
    return first;
  }
  void place_blocks(HostCluster first, uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) blocks_[i] = first + i;
  }

  void header() {
    Header header{.version = knobs_.version,
                  .cluster_bits = knobs_.cluster_bits,
                  .size = size_,
                  .l1_entries = static_cast<uint32_t>(l1_.size()),
                  .l1_offset = l1_at_,
                  .refcount_table_offset = g_.start_of(table_at_),
                  .refcount_table_clusters = static_cast<uint32_t>(table_clusters_),
                  .refcount_order = knobs_.refcount_order,
                  .compression = knobs_.compression};
    if (knobs_.lazy_refcounts) header.compatible |= kLazyRefcounts;
    if (knobs_.extended_l2) header.incompatible |= kExtendedL2;
    if (data_) header.incompatible |= kDataFile;
    if (data_ && knobs_.data_file == Knobs::DataFile::raw) header.autoclear |= kRawDataFile;
    if (knobs_.compression != Compression::deflate) header.incompatible |= kCompressionType;
    Extensions extensions;
    if (!backing_.empty()) extensions.backing_format = backing_format_;
    if (data_) extensions.data_file_name = "data";
    const Result<std::vector<std::byte>> bytes = serialize_header(header, extensions, backing_);
    BYRE_ASSERT(bytes);
    disk_->put(0, *bytes);
  }

  const Knobs& knobs_;
  Geometry g_;
  uint64_t size_;
  std::string backing_;
  std::string backing_format_;
  Prng& prng_;
  Oracle& tokens_;
  SimDisk* disk_ = nullptr;
  SimDisk* data_;
  uint64_t next_ = 0;
  uint64_t next_used_ = 0;
  uint64_t far_ = 0;
  uint64_t pack_ = 0;
  std::map<uint64_t, uint64_t> counts_;
  std::vector<uint64_t> l1_;
  HostOffset l1_at_;
  std::map<uint64_t, std::vector<std::byte>> tables_;
  HostCluster table_at_;
  uint64_t table_clusters_ = 0;
  std::map<uint64_t, HostCluster> blocks_;
  uint64_t aliased_ = 0;
};

}  // namespace

Geometry Knobs::geometry() const {
  return {.version = version,
          .cluster_bits = cluster_bits,
          .refcount_order = refcount_order,
          .extended_l2 = extended_l2,
          .data_file = data_file != DataFile::none};
}

Knobs Knobs::draw(Prng& prng) {
  Knobs k;
  const uint64_t bits = prng.below(20);
  k.cluster_bits = bits < 8 ? 9 : bits < 13 ? 12 : bits < 19 ? 16 : 21;
  k.version = prng.one_in(5) ? 2 : 3;
  if (k.version == 3) {
    k.refcount_order = static_cast<uint32_t>(prng.one_in(2) ? 4 : prng.below(7));
    if (k.cluster_bits >= 14) k.extended_l2 = prng.one_in(3);
    k.lazy_refcounts = prng.one_in(6);
    if (prng.one_in(4)) k.compression = Compression::zstd;
  }
  // Windows: at the start, across the boundary of two L2 tables, at the end of the disk.
  const Geometry g = k.geometry();
  const uint64_t c = k.cluster_size();
  const uint64_t clusters = k.cluster_bits == 21 ? prng.between(2, 4) : prng.between(4, 16);
  const bool boundary = prng.one_in(2);
  k.size =
      boundary ? g.l1_span() + prng.between(1, clusters) * c : clusters * c * prng.between(1, 4);
  if (prng.one_in(3))
    k.size -= prng.below(c / kSectorSize) * kSectorSize;  // Ends inside a cluster.
  const uint64_t share = std::max<uint64_t>(clusters / 2, 1) * c;
  k.windows.push_back({0, std::min(share, k.size)});
  if (boundary) {
    const uint64_t start = std::max(g.l1_span() - share / 2 / c * c, k.windows[0].length);
    k.windows.push_back({start, std::min(share, k.size - start)});
  } else if (k.size > share) {
    const uint64_t start = std::max(share, round_down(k.size - 1, c) - (clusters / 2 - 1) * c);
    if (start < k.size) k.windows.push_back({start, k.size - start});
  }
  if (prng.one_in(2)) {
    k.backing = prng.one_in(2) ? Backing::raw : Backing::qcow2;
    const uint64_t way = prng.below(3);
    k.backing_size = way == 0   ? k.size
                     : way == 1 ? k.size + prng.between(1, 4 * c / kSectorSize) * kSectorSize
                                : round_down(prng.between(1, k.size), kSectorSize);
    if (k.backing_size == 0) k.backing_size = kSectorSize;
    // Inside a window, so that the end is met.
    if (way == 2) {
      const Window& w = k.windows[prng.below(k.windows.size())];
      k.backing_size =
          w.offset + std::max(kSectorSize, round_down(prng.below(w.length), kSectorSize));
    }
  }
  k.contents = prng.one_in(3) ? 0 : prng.between(1, 4);
  if (prng.one_in(4) && g.refcount_block_entries() <= 20'000) {
    k.clusters_free = prng.one_in(2) ? 1 : prng.between(0, 12);
  }

  if (prng.one_in(3) && g.refcount_block_entries() <= 4096) {
    k.gap = prng.below(2 * g.refcount_block_entries());
  }

  k.tables_apart = prng.one_in(4);

  if (prng.one_in(2)) k.table_cache_size = 8 * KiB;
  if (prng.one_in(3)) k.staged_max = prng.between(1, 8);
  k.growth_step = pick<uint64_t>(prng, {1, 4096, 64 * KiB, 16 * MiB});
  k.commit_delay = pick<int64_t>(prng, {kMillisecond, 20 * kMillisecond, kSecond});
  if (prng.one_in(6)) k.discard = DiscardPolicy::ignore;

  k.block_size = pick<uint32_t>(prng, {1, 1, 512, 4096});
  k.torn = prng.one_in(2);
  k.can_punch = !prng.one_in(6);
  k.can_zero_range = !prng.one_in(6);
  if (prng.one_in(3)) k.delays.late_one_in = prng.between(5, 40);
  k.resizes = prng.one_in(4);
  if (k.version == 3 && prng.one_in(4)) {
    k.data_file = prng.one_in(2) ? DataFile::plain : DataFile::raw;
    if (k.data_file == DataFile::raw) k.backing = Backing::none;
  }
  Prng order = prng;  // Draws of its own, so that no seed of before means another history.
  k.in_order = order.one_in(8);
  k.reuse_freed = !order.one_in(8);
  return k;
}

Knobs Knobs::tiny(uint32_t cluster_bits) {
  Knobs k;
  k.cluster_bits = cluster_bits;
  k.size = 4 * k.cluster_size();
  k.windows = {{0, k.size}};
  k.contents = 1;
  k.growth_step = 4096;
  k.torn = false;
  return k;
}

ImageOptions Knobs::image_options() const {
  return {.writable = true,
          .direct = block_size > 1,
          .discard = discard,
          .table_cache_size = table_cache_size,
          .staged_max = staged_max,
          .commit_delay = commit_delay,
          .allocate_in_order = in_order,
          .reuse_freed = reuse_freed,
          .growth_step = growth_step,
          // An alias that is planted stays what it is.
          .scan = aliases ? ImageOptions::Scan::never : scan,
          .scanned_at_once = 0};
}

std::string Knobs::text() const {
  std::string text = fmt::format("v{} cluster {} refcount_bits {}{}{}{} size {:#x}", version,
                                 cluster_size(), 1u << refcount_order,
                                 extended_l2 ? " extended_l2" : "", lazy_refcounts ? " lazy" : "",
                                 compression == Compression::zstd ? " zstd" : "", size);
  for (const Window& w : windows) text += fmt::format(" window {:#x}+{:#x}", w.offset, w.length);
  if (backing != Backing::none) {
    text +=
        fmt::format(" backing {} {:#x}", backing == Backing::raw ? "raw" : "qcow2", backing_size);
  }
  if (data_file != DataFile::none)
    text += data_file == DataFile::raw ? " raw data file" : " data file";
  text += fmt::format(" contents 1/{}", contents);
  if (gap != 0) text += fmt::format(" gap {}", gap);
  if (tables_apart) text += " tables-apart";
  if (resizes) text += " resizes";
  if (snapshots) text += " snapshots";
  if (checks) text += " checks";
  if (aliases) text += " aliases";
  if (damaged) text += damage_aliases ? " damaged (aliases)" : " damaged";
  if (scan == ImageOptions::Scan::beside_requests) text += " scan-beside";
  if (bitmaps) text += " bitmaps";
  if (in_order) text += " in-order";
  if (!reuse_freed) text += " no-reuse";
  if (clusters_free != UINT64_MAX) text += fmt::format(" free {}", clusters_free);
  text += fmt::format(" cache {} staged_max {} growth {} commit {} ms block {}{}{}{}{}",
                      table_cache_size, staged_max, growth_step, commit_delay / kMillisecond,
                      block_size, torn ? " torn" : "", can_punch ? "" : " no-punch",
                      can_zero_range ? "" : " no-zero-range",
                      discard == DiscardPolicy::ignore ? " discard=ignore" : "");
  if (delays.late_one_in != 0) text += fmt::format(" late 1/{}", delays.late_one_in);
  if (delays.late_reads_only) text += " (reads)";
  return text;
}

void build_disks(Knobs& knobs, uint64_t seed, SimDisks& disks, Oracle& oracle) {
  Prng prng(seed);
  Contents view;
  const SimDisk::Options options{.seed = prng.next(),
                                 .can_punch = knobs.can_punch,
                                 .can_zero_range = knobs.can_zero_range,
                                 .torn = knobs.torn};
  disks.clear();
  if (knobs.backing == Knobs::Backing::raw) {
    SimDisk& disk = disks.emplace("backing", SimDisk(options)).first->second;
    for (const Window& window : knobs.windows) {
      const uint64_t end = std::min(window.offset + window.length, knobs.backing_size);
      for (uint64_t at = window.offset; at < end; at += kSectorSize) {
        if (prng.one_in(8)) continue;
        const Token token = oracle.fresh_token();
        std::vector<std::byte> sector(kSectorSize);
        fill_sector(sector, at / kSectorSize, token);
        disk.put(at, sector);
        view[at / kSectorSize] = token;
      }
    }
    disk.set_size(knobs.backing_size);
  } else if (knobs.backing == Knobs::Backing::qcow2) {
    Knobs below = knobs;
    below.contents = 1;
    below.clusters_free = UINT64_MAX;
    below.lazy_refcounts = below.aliases = false;
    below.data_file = Knobs::DataFile::none;
    SimDisk& disk = disks.emplace("backing", SimDisk(options)).first->second;
    Builder(below, knobs.backing_size, "", "", prng, oracle).build(disk, view);
  }
  SimDisk& disk = disks.emplace("image", SimDisk(options)).first->second;
  const bool backed = knobs.backing != Knobs::Backing::none;
  SimDisk* data = nullptr;
  if (knobs.data_file != Knobs::DataFile::none) {
    data = &disks.emplace("data", SimDisk(options)).first->second;
    if (knobs.data_file == Knobs::DataFile::plain) {
      // What lies where no entry leads belongs to nobody, and must never be seen.
      for (const Window& window : knobs.windows) {
        for (uint64_t at = window.offset; at < window.offset + window.length; at += kSectorSize) {
          std::vector<std::byte> stale(kSectorSize);
          fill_sector(stale, at / kSectorSize, oracle.fresh_token());
          data->put(at, stale);
        }
      }
    }
    data->set_size(knobs.size);
  }
  Builder builder(knobs, knobs.size, backed ? "backing" : "",
                  knobs.backing == Knobs::Backing::raw ? "raw" : "qcow2", prng, oracle, data);
  knobs.leaks = builder.build(disk, view);
  knobs.aliased_host = builder.aliased();
  if (data) data->set_size(knobs.size);
  for (const auto& [sector, token] : view) {
    if (sector < knobs.size / kSectorSize) oracle.set_initial(sector, token);
  }
}

}  // namespace byre
