// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/loss.h"

#include <algorithm>
#include <map>
#include <set>

#include "format/l1.h"
#include "format/l2.h"
#include "qcow2/check/owners.h"
#include "qcow2/repair/table_change.h"

namespace byre {
namespace {

constexpr uint64_t kPiece = MiB;
/// An image may become larger by this much, however small it is.
constexpr uint64_t kZerosAlways = 64 * MiB;

/// An L2 entry that leads nowhere, to any reader, also in a copy of its table without COPIED: a
/// reserved bit.
constexpr uint64_t kNowhere = uint64_t{1} << 56;
/// Holes of this size at most, and clusters of zeros: each costs memory before it costs disk.
constexpr uint64_t kHolesMax = 64 * GiB;
constexpr uint64_t kZeroClustersMax = 1 << 20;

/// Does a scan complain of this entry by itself?
bool is_lost(const RepairState& state, GuestCluster guest, L2Entry entry) {
  const Geometry& g = state.geometry();
  const Result<Mapping> mapping = decode_l2(entry, g);
  if (!mapping) return true;
  if (mapping->compressed) {
    const uint64_t at = mapping->compressed_at.value;
    return g.data_file || state.references.is_behind_end(at, mapping->compressed_size) ||
           state.found.bad_streams.contains({at, mapping->compressed_size});
  }
  if (!mapping->host) return has_stray_copied(entry, g);
  if (g.data_file) return !at_own_offset(*mapping, guest);
  return state.references.is_behind_end(g.start_of(*mapping->host).value, g.cluster_size());
}

class GivingUp {
 public:
  GivingUp(RepairState& state, RepairLog& log) : state_(state), log_(log) {}

  Task<std::string> run(bool tables) {
    tables_ = tables;
    co_await collect_l1();
    // First what lies in something that was there before; that may be all that is wrong.
    if (tables && l1_.empty()) {
      others_too_ = true;
      co_await collect_l1();
    }
    co_await collect_l2();
    // A copy of such a table must have room, too.
    if (!shared_to_detach_.empty()) {
      co_await begin_writing(state_);
      co_await detach(shared_to_detach_, {});
      co_return std::string();
    }
    if (l1_.empty() && tables_to_change_.empty()) co_return std::string();
    const uint64_t count = needed_.tables + needed_.clusters + needed_.holes;
    // The file grows beyond no place that an entry leads to.
    if (count != 0 && state_.references.pointed_behind_end != UINT64_MAX) {
      co_await begin_writing(state_);
      co_await detach(tables_to_change_, l1_);
      co_return std::string();
    }
    if (std::string reason = why_no_zeros(state_, needed_); !reason.empty()) {
      co_return std::move(reason);
    }
    if (count != 0) {
      Result<void> placed = co_await place(count).result();
      if (!placed && placed.error().code() == Errc::no_space) co_return placed.error().message();
      co_await std::move(placed);
    }
    co_await begin_writing(state_);
    if (count != 0) co_await write_zeros();
    co_await change_l2(tables_to_change_,
                       [this](uint64_t table, uint64_t index, GuestCluster guest, L2Entry entry) {
                         return std::optional<L2Entry>(given_up(table, index, guest, entry));
                       });
    co_await change_l1();
    co_await state_.file.flush(IoTag::commit_sync);
    co_await tell();
    co_return std::string();
  }

 private:
  /// An entry of an L1 table that is given up.
  struct LostTable {
    size_t l1 = 0;  ///< Index in state.found.l1_tables.
    uint64_t index = 0;
    bool needs_table = false;
    uint64_t zeros = 0;       ///< Clusters that the table leads to (version 2).
    const HostCluster* to{};  ///< The table, and behind it those, in places_.
  };

  const Geometry& g() const { return state_.geometry(); }
  bool has_backing() const { return state_.head.backing_file.has_value(); }
  bool is_raw() const {
    return g().data_file && (state_.head.header.autoclear & kRawDataFile) != 0;
  }

  // What is given up.

  Task<void> collect_l1() {
    for (size_t i = 0; i < state_.found.l1_tables.size(); ++i) {
      const L1Table& l1 = state_.found.l1_tables[i];
      std::vector<std::byte> piece;
      for (uint64_t done = 0; done < l1.entries; done += piece.size() / 8) {
        piece.resize(std::min(l1.entries - done, kPiece / 8) * 8);
        co_await state_.read_padded(l1.at.value + done * 8, piece, IoTag::l1_load);
        for (uint64_t j = 0; j < piece.size() / 8; ++j) {
          if (is_lost_table(load_l1_entry(piece, j))) lose_table(i, done + j);
        }
      }
    }
  }

  bool is_lost_table(uint64_t entry) const {
    if (entry == 0) return false;
    if ((entry & ~(kCopied | kOffsetMask)) != 0) return true;
    const HostOffset at{entry & kOffsetMask};
    if (at.value == 0 || !g().aligned(at) || at.value >= state_.file_size()) return true;
    if (!tables_ || !state_.is_aliased(g().cluster_of(at))) return false;
    if (is_two_tables(g().cluster_of(at))) return false;
    return others_too_ || state_.references.counts.find(g().cluster_of(at))->owner() != Owner::l2;
  }
  /// Two L1 entries lead to it, which can be unshared.
  bool is_two_tables(HostCluster table) const {
    const L2Use* use = state_.found.find_use(table.value);
    return use && use->shared;
  }

  void lose_table(size_t l1, uint64_t index) {
    const HostCluster own =
        g().cluster_of(HostOffset{state_.found.l1_tables[l1].at.value + index * 8});
    if (!tables_ && state_.is_aliased(own)) return;
    // Nothing of a backing file shows behind the disk.
    const bool in_disk = index < g().l1_entries_for(state_.head.header.size);
    const bool needs_table = has_backing() && in_disk;
    uint64_t zeros = 0;
    if (needs_table && g().version < 3) {
      const uint64_t offset = g().start_of(g().first_of_l1(index)).value;
      zeros = g().clusters_for(std::min(g().l1_span(), state_.head.header.size - offset));
    }
    needed_.tables += needs_table;
    needed_.holes += zeros;
    l1_.push_back({.l1 = l1, .index = index, .needs_table = needs_table, .zeros = zeros});
  }

  /// Tables with lost entries, and what needs a cluster of zeros.  A table that something else uses
  /// as well waits until that is settled.
  Task<void> collect_l2() {
    const bool wants_clusters = g().version < 3 && has_backing();
    const VisitL2 visit = [&](const L2Use& use, MutableBytes table) {
      if (state_.is_aliased({use.cluster})) {
        if (is_to_be_detached(use, table)) shared_to_detach_.push_back(use.cluster);
        return;
      }
      bool any = false;
      for (uint64_t i = 0; i < g().l2_entries(); ++i) {
        const L2Entry entry = load_l2(table, i, g());
        const GuestCluster guest = g().first_of_l1(use.l1_index) + i;
        if (entry == L2Entry{} || !is_lost(state_, guest, entry)) continue;
        any = true;
        if (wants_clusters && zero_clusters_.size() <= kZeroClustersMax) {
          zero_clusters_[{use.cluster, i}] = {.weight = use.weight, .active = use.active};
        }
        if (!keeps_data(entry)) lose(use.cluster, g().start_of(guest).value, g().cluster_size());
      }
      if (any) tables_to_change_.push_back(use.cluster);
    };
    co_await each_l2(state_.file, state_.found, visit, state_.hooks());
    needed_.clusters = zero_clusters_.size();
  }

  /// Nothing is lost with it: it read as zeros, or the data file says what is there.
  bool keeps_data(L2Entry entry) const {
    if (is_raw()) return true;
    const uint64_t known = kCopied | kOffsetMask | (g().extended_l2 ? 0 : kReadsZero);
    if ((entry.descriptor & ~known) != 0) return false;
    if ((entry.descriptor & kCompressed) != 0) return false;
    if (g().extended_l2) return static_cast<uint32_t>(entry.bitmap) == 0;
    return g().version >= 3 && (entry.descriptor & kReadsZero) != 0;
  }

  void lose(uint64_t table, uint64_t offset, uint64_t length) {
    const uint64_t end = std::min(offset + length, state_.head.header.size);
    if (offset >= end) return;
    if (!ranges_.empty() && ranges_.back().table == table &&
        ranges_.back().offset + ranges_.back().length == offset) {
      ranges_.back().length += end - offset;
    } else {
      ranges_.push_back({table, offset, end - offset});
    }
  }

  // Doing it.

  /// Stores what `changed` makes of each lost entry; nothing: it stays.
  template <class Changed>
  Task<void> change_l2(const std::vector<uint64_t>& tables, const Changed& changed) {
    std::vector<std::byte> before(g().cluster_size());
    for (const uint64_t table : tables) {
      const HostOffset at = g().start_of(HostCluster{table});
      const GuestCluster first = g().first_of_l1(state_.found.find_use(table)->l1_index);
      co_await state_.read_padded(at.value, before, IoTag::l2_load);
      std::vector<std::byte> after = before;
      for (uint64_t i = 0; i < g().l2_entries(); ++i) {
        const L2Entry entry = load_l2(after, i, g());
        if (entry == L2Entry{} || !is_lost(state_, first + i, entry)) continue;
        const std::optional<L2Entry> now = changed(table, i, first + i, entry);
        if (now) store_l2(after, i, *now, g());
      }
      co_await write_changes(state_.file, at, before, after, IoTag::l2_update);
    }
  }

  /// With reserved bits it may lead anywhere, too.
  bool leads(L2Entry entry) const {
    const Result<Mapping> mapping = decode_l2(entry, g());
    const bool detached = entry.descriptor == kNowhere || entry.descriptor == kCopied;
    return !detached && (!mapping || mapping->compressed || mapping->host);
  }

  /// A table that only L1 entries share, with entries that keep the file from growing.
  bool is_to_be_detached(const L2Use& use, Bytes table) const {
    if (state_.references.pointed_behind_end == UINT64_MAX) return false;
    if (!use.shared || state_.references.counts.references({use.cluster}) != use.weight)
      return false;
    for (uint64_t i = 0; i < g().l2_entries(); ++i) {
      const L2Entry entry = load_l2(table, i, g());
      const GuestCluster guest = g().first_of_l1(use.l1_index) + i;
      if (entry != L2Entry{} && is_lost(state_, guest, entry) && leads(entry)) return true;
    }
    return false;
  }

  /// What leads behind the end leads nowhere, which is as bad.
  Task<void> detach(const std::vector<uint64_t>& tables, const std::vector<LostTable>& l1) {
    const auto nowhere_at_all = [&](uint64_t table, uint64_t index, GuestCluster guest,
                                    L2Entry entry) -> std::optional<L2Entry> {
      if (!leads(entry)) return std::nullopt;
      if (g().version >= 3 && keeps_data(entry)) return given_up(table, index, guest, entry);
      return L2Entry{.descriptor = kNowhere, .bitmap = entry.bitmap};
    };
    co_await change_l2(tables, nowhere_at_all);
    std::vector<std::byte> nowhere(8);
    store_l1_entry(nowhere, 0, kCopied);
    for (const LostTable& lost : l1) {
      co_await state_.file.write(state_.found.l1_tables[lost.l1].at.value + lost.index * 8, nowhere,
                                 {.tag = IoTag::l1_update});
    }
    co_await state_.file.flush(IoTag::commit_sync);
    log_.add({.kind = RepairAction::Kind::give_up,
              .text = "make entries that lead behind the end of the file lead nowhere"});
  }

  Task<void> place(uint64_t count) {
    const std::vector<HostSpan> room = co_await find_room(state_, count);
    for (const HostSpan& span : room) {
      for (uint64_t i = 0; i < span.count; ++i) places_.push_back(span.first + i);
    }
    if (places_.size() < count) {
      co_await fail(Error(Errc::no_space, cat("no room for ", count, " clusters of zeros")));
    }
    const HostCluster* next = places_.data();
    for (LostTable& lost : l1_) {
      if (!lost.needs_table) continue;
      lost.to = next;
      next += 1 + lost.zeros;
    }
    for (auto& [place, zeros] : zero_clusters_) zeros.to = *next++;
    for (const HostCluster cluster : places_) {
      state_.references.clusters = std::max(state_.references.clusters, cluster.value + 1);
    }
  }

  /// New tables and clusters of zeros, and their refcounts with all others that are too small.
  Task<void> write_zeros() {
    const uint64_t old_end = state_.file.size();
    const std::vector<std::byte> zero(g().cluster_size());
    for (const auto& [place, zeros] : zero_clusters_) {
      co_await state_.file.write(g().start_of(zeros.to).value, zero, {.tag = IoTag::copy_up_write});
      count(zeros.to, Owner::data, place.first ^ place.second << 32, zeros.weight);
    }
    for (const LostTable& lost : l1_) {
      if (lost.to) co_await write_table(lost, zero, old_end);
    }
    // Holes are there, too.
    const uint64_t end = g().start_of(places_.back() + 1).value;
    if (end > state_.file.size()) {
      co_await state_.file.write(end - 1, Bytes(zero).first(1), {.tag = IoTag::copy_up_write});
    }
    state_.damaged = true;  // Nothing is freed yet.
    co_await repair_image(state_, Repair::refcounts, log_);
    co_await state_.file.flush(IoTag::commit_sync);
  }

  Task<void> write_table(const LostTable& lost, Bytes zero, uint64_t old_end) {
    std::vector<std::byte> table(g().cluster_size());
    const uint64_t copied = state_.found.l1_tables[lost.l1].active ? kCopied : 0;
    for (uint64_t i = 0; i < lost.zeros; ++i) {
      const HostCluster to = lost.to[1 + i];
      const uint64_t at = g().start_of(to).value;
      if (at < old_end) co_await state_.file.write(at, zero, {.tag = IoTag::copy_up_write});
      count(to, Owner::data, (g().first_of_l1(lost.index) + i).value, 1);
      store_l2(table, i, {.descriptor = at | copied}, g());
    }
    for (uint64_t i = 0; g().version >= 3 && i < g().l2_entries(); ++i) {
      store_l2(table, i, zero_entry(), g());
    }
    co_await state_.file.write(g().start_of(*lost.to).value, table, {.tag = IoTag::l2_allocate});
    count(*lost.to, Owner::l2, lost.index, 1);
  }

  void count(HostCluster cluster, Owner owner, uint64_t identity, uint64_t weight) {
    state_.count_new(cluster, owner, identity, weight);
    state_.undercounted = true;
  }

  L2Entry zero_entry() const {
    if (g().extended_l2) return {.descriptor = 0, .bitmap = uint64_t{UINT32_MAX} << 32};
    return {.descriptor = kReadsZero};
  }

  L2Entry given_up(uint64_t table, uint64_t index, GuestCluster guest, L2Entry entry) const {
    if (is_raw()) {
      L2Entry own{.descriptor = g().start_of(guest).value | kCopied};
      if (g().extended_l2) own.bitmap = UINT32_MAX;
      return own;
    }
    if (g().extended_l2) {
      if ((entry.descriptor & kCompressed) != 0) return zero_entry();
      const uint64_t zero = (entry.bitmap >> 32) | (entry.bitmap & UINT32_MAX);
      return {.descriptor = 0, .bitmap = zero << 32};
    }
    if (g().version >= 3) return zero_entry();
    const auto zeros = zero_clusters_.find({table, index});
    if (zeros == zero_clusters_.end()) return {};
    const bool copied = zeros->second.weight == 1 && zeros->second.active == 1;
    return {.descriptor = g().start_of(zeros->second.to).value | (copied ? kCopied : 0)};
  }

  Task<void> change_l1() {
    for (const LostTable& lost : l1_) {
      const L1Table& l1 = state_.found.l1_tables[lost.l1];
      std::vector<std::byte> entry(8);
      const uint64_t copied = l1.active ? kCopied : 0;
      if (lost.to) store_l1_entry(entry, 0, g().start_of(*lost.to).value | copied);
      co_await state_.file.write(l1.at.value + lost.index * 8, entry, {.tag = IoTag::l1_update});
    }
  }

  Task<void> tell() {
    std::vector<HostCluster> wanted;
    for (const uint64_t table : tables_to_change_) wanted.push_back({table});
    Owners owners(state_.file, state_.found, state_.hooks());
    if (!wanted.empty()) co_await owners.find(wanted, 0);
    for (const Range& range : ranges_) {
      Finding::Guest guest{.offset = range.offset, .length = range.length};
      owners.views_of(range.table, guest);
      log_.lost.push_back(std::move(guest));
    }
    for (const LostTable& lost : l1_) {
      const L1Table& l1 = state_.found.l1_tables[lost.l1];
      const uint64_t offset = g().start_of(g().first_of_l1(lost.index)).value;
      const uint64_t size = state_.head.header.size;
      Finding::Guest guest{
          .offset = offset,
          .length = offset < size ? std::min(g().l1_span(), size - offset) : g().l1_span(),
          .active = l1.active};
      if (!l1.active) guest.snapshots.push_back(l1.snapshot);
      log_.lost.push_back(std::move(guest));
    }
    if (!tables_to_change_.empty()) {
      log_.add({.kind = RepairAction::Kind::give_up,
                .text = cat("give up the entries that lead nowhere in ", tables_to_change_.size(),
                            tables_to_change_.size() == 1 ? " L2 table" : " L2 tables")});
    }
    if (!l1_.empty()) {
      log_.add({.kind = RepairAction::Kind::give_up,
                .text = cat("give up ", l1_.size(),
                            l1_.size() == 1 ? " L1 entry that leads" : " L1 entries that lead",
                            " to no L2 table")});
    }
  }

  struct Zeros {
    uint64_t weight = 0;
    uint32_t active = 0;
    HostCluster to;
  };
  struct Range {
    uint64_t table = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
  };

  RepairState& state_;
  RepairLog& log_;
  bool tables_ = false;
  bool others_too_ = false;  ///< Also tables that something else lies in.
  std::vector<LostTable> l1_;
  std::vector<uint64_t> tables_to_change_;
  std::vector<uint64_t> shared_to_detach_;
  std::map<std::pair<uint64_t, uint64_t>, Zeros> zero_clusters_;  ///< By table and index.
  std::vector<Range> ranges_;
  ZerosNeeded needed_;
  std::vector<HostCluster> places_;  ///< For them.
};

}  // namespace

bool can_give_up_entries(const RepairState& state) {
  return state.found.lost_entries && state.found.report.check_errors == 0 &&
         !state.found.snapshots_lost;
}

std::string why_no_zeros(const RepairState& state, const ZerosNeeded& needed) {
  const uint32_t bits = state.geometry().cluster_bits;
  const bool grows = state.file.can_grow();
  const uint64_t holes = grows ? needed.holes : 0;
  const uint64_t written = needed.tables + needed.clusters + needed.holes - holes;
  if (needed.clusters + needed.holes <= kZeroClustersMax && holes <= kHolesMax >> bits &&
      written <= std::max(kZerosAlways, state.file_size()) >> bits) {
    return "";
  }
  const std::string_view why = state.geometry().version < 3
                                   ? "version 2 has no zero flag that hides a backing file, and "
                                   : "";
  return cat(why, "zeros for what would be lost would take ", written + holes,
             " clusters, more than are added to an image of this size");
}

Task<std::string> give_up_entries(RepairState& state, RepairLog& log, bool tables) {
  GivingUp giving_up(state, log);
  co_return co_await giving_up.run(tables);
}

}  // namespace byre
