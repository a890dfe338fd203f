// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/loss.h"

#include <algorithm>
#include <map>
#include <set>

#include "format/l1.h"
#include "qcow2/check/owners.h"

namespace byre {
namespace {

constexpr uint64_t kPiece = MiB;
/// An image may become larger by this much, however small it is.
constexpr uint64_t kZerosAlways = 64 * MiB;

/// Passes [offset, offset + length) the end of the file by a whole cluster or more?
bool is_behind_end(const Survey& survey, uint64_t offset, uint64_t length) {
  return offset > UINT64_MAX - length ||
         (offset + length > survey.file_size &&
          offset + length - survey.file_size >= survey.geometry().cluster_size());
}

/// Does a survey complain of this entry by itself?
bool is_lost(const Survey& survey, GuestCluster guest, L2Entry entry) {
  const Geometry& g = survey.geometry();
  const Result<Mapping> mapping = decode_l2(entry, g);
  if (!mapping) return true;
  if (mapping->compressed) {
    const uint64_t at = mapping->compressed_at.value;
    return g.data_file || is_behind_end(survey, at, mapping->compressed_size) ||
           survey.bad_streams.contains({at, mapping->compressed_size});
  }
  if (!mapping->host) return has_stray_copied(entry, g);
  if (g.data_file) return !at_own_offset(*mapping, guest);
  return is_behind_end(survey, g.start_of(*mapping->host).value, g.cluster_size());
}

class GivingUp {
 public:
  GivingUp(Survey& survey, RepairLog& log) : survey_(survey), log_(log) {}

  Task<std::string> run(bool tables) {
    tables_ = tables;
    co_await collect_l1();
    // First what lies in something that was there before; that may be all that is wrong.
    if (tables && l1_.empty()) {
      others_too_ = true;
      co_await collect_l1();
    }
    co_await collect_l2();
    if (!refused_.empty() || (l1_.empty() && tables_to_change_.empty())) co_return refused_;
    const uint64_t count = new_tables_ + zero_clusters_.size();
    // The file grows beyond no place that an entry leads to.
    if (count != 0 && survey_.pointed_behind_end != UINT64_MAX) {
      co_await begin_writing(survey_);
      co_await detach();
      co_return std::string();
    }
    if (count << g().cluster_bits > std::max(kZerosAlways, survey_.file_size)) {
      co_return cat("zeros for what would be lost would take ", count << g().cluster_bits,
                    " bytes, more than the image has");
    }
    if (count != 0) {
      Result<void> placed = co_await place(count).result();
      if (!placed && placed.error().code() == Errc::no_space) co_return placed.error().message();
      co_await std::move(placed);
    }
    co_await begin_writing(survey_);
    if (count != 0) co_await write_zeros();
    co_await change_l2();
    co_await change_l1();
    co_await survey_.file.flush(Mark::commit_sync);
    co_await tell();
    co_return std::string();
  }

 private:
  /// An entry of an L1 table that is given up.
  struct LostTable {
    size_t l1 = 0;  ///< Index in survey.l1_tables.
    uint64_t index = 0;
    bool needs_table = false;
    std::optional<HostCluster> to;
  };

  const Geometry& g() const { return survey_.geometry(); }
  bool has_backing() const { return survey_.head.backing_file.has_value(); }
  bool is_raw() const {
    return g().data_file && (survey_.head.header.autoclear & kRawDataFile) != 0;
  }
  bool is_shared_cluster(HostCluster cluster) const {
    const auto* cell = survey_.counts.find(cluster);
    return cell && cell->aliased;
  }

  // What is given up.

  Task<void> collect_l1() {
    for (size_t i = 0; i < survey_.l1_tables.size(); ++i) {
      const Survey::L1Table& l1 = survey_.l1_tables[i];
      std::vector<std::byte> piece;
      for (uint64_t done = 0; done < l1.entries; done += piece.size() / 8) {
        piece.resize(std::min(l1.entries - done, kPiece / 8) * 8);
        co_await survey_.read_padded(l1.at.value + done * 8, piece, Mark::l1_load);
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
    if (at.value == 0 || !g().aligned(at) || at.value >= survey_.file_size) return true;
    if (!tables_ || !is_shared_cluster(g().cluster_of(at))) return false;
    if (is_two_tables(g().cluster_of(at))) return false;
    return others_too_ || survey_.counts.find(g().cluster_of(at))->owner() != Owner::l2;
  }
  /// Two L1 entries lead to it, which can be separated.
  bool is_two_tables(HostCluster table) const {
    const auto& uses = survey_.l2_uses();
    const auto at = std::lower_bound(
        uses.begin(), uses.end(), table.value,
        [](const Survey::L2Use& use, uint64_t cluster) { return use.cluster < cluster; });
    return at != uses.end() && at->cluster == table.value && at->shared;
  }

  void lose_table(size_t l1, uint64_t index) {
    const HostCluster own = g().cluster_of(HostOffset{survey_.l1_tables[l1].at.value + index * 8});
    if (!tables_ && is_shared_cluster(own)) return;
    // Nothing of a backing file shows behind the disk.
    const bool in_disk = index < g().l1_entries_for(survey_.head.header.size);
    const bool needs_table = has_backing() && in_disk;
    if (needs_table && g().version < 3) {
      refused_ = cat("L1 entry ", index,
                     " leads nowhere, and in version 2 no table can hide the backing file for ",
                     g().l1_span(), " bytes");
    }
    new_tables_ += needs_table;
    l1_.push_back({.l1 = l1, .index = index, .needs_table = needs_table});
  }

  /// Tables with lost entries, and what needs a cluster of zeros.  A table that somebody else uses
  /// as well waits until that is settled.
  Task<void> collect_l2() {
    const bool wants_clusters = g().version < 3 && has_backing();
    const Survey::VisitL2 visit = [&](const Survey::L2Use& use, MutableBytes table) {
      if (is_shared_cluster({use.cluster})) return;
      bool any = false;
      for (uint64_t i = 0; i < g().l2_entries(); ++i) {
        const L2Entry entry = load_l2(table, i, g());
        const GuestCluster guest = g().first_of_l1(use.l1_index) + i;
        if (entry == L2Entry{} || !is_lost(survey_, guest, entry)) continue;
        any = true;
        if (wants_clusters && zero_clusters_.size() <= kZeroClustersMax) {
          zero_clusters_[{use.cluster, i}] = {.weight = use.weight, .active = use.active};
        }
        if (!keeps_data(entry)) lose(use.cluster, g().start_of(guest).value, g().cluster_size());
      }
      if (any) tables_to_change_.push_back(use.cluster);
    };
    co_await survey_.each_l2(visit, Mark::none);
    if (zero_clusters_.size() > kZeroClustersMax) refused_ = "too many entries lead nowhere";
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
    const uint64_t end = std::min(offset + length, survey_.head.header.size);
    if (offset >= end) return;
    if (!ranges_.empty() && ranges_.back().table == table &&
        ranges_.back().offset + ranges_.back().length == offset) {
      ranges_.back().length += end - offset;
    } else {
      ranges_.push_back({table, offset, end - offset});
    }
  }

  // Doing it.

  /// What leads behind the end leads nowhere, which is as bad.
  Task<void> detach() {
    std::vector<std::byte> before(g().cluster_size());
    for (const uint64_t table : tables_to_change_) {
      const HostOffset at = g().start_of(HostCluster{table});
      co_await survey_.read_padded(at.value, before, Mark::l2_load);
      std::vector<std::byte> after = before;
      for (uint64_t i = 0; i < g().l2_entries(); ++i) {
        const L2Entry entry = load_l2(after, i, g());
        const Result<Mapping> mapping = decode_l2(entry, g());
        // With reserved bits it may lead anywhere, too.
        const bool leads = !mapping || mapping->compressed || mapping->host;
        if (!leads || !is_lost(survey_, guest_of(table, i), entry)) continue;
        if (g().version >= 3 && keeps_data(entry)) continue;
        store_l2(after, i, {.descriptor = kCopied, .bitmap = entry.bitmap}, g());
      }
      co_await survey_.write_changes(at, before, after, Mark::l2_update);
    }
    std::vector<std::byte> nowhere(8);
    store_l1_entry(nowhere, 0, kCopied);
    for (const LostTable& lost : l1_) {
      co_await survey_.file.write(survey_.l1_tables[lost.l1].at.value + lost.index * 8, nowhere,
                                  {.mark = Mark::l1_update});
    }
    co_await survey_.file.flush(Mark::commit_sync);
    log_.add({.kind = RepairAction::Kind::give_up,
              .text = "make entries that lead behind the end of the file lead nowhere"});
  }

  GuestCluster guest_of(uint64_t table, uint64_t index) const {
    const auto& uses = survey_.l2_uses();
    const auto use = std::lower_bound(
        uses.begin(), uses.end(), table,
        [](const Survey::L2Use& each, uint64_t cluster) { return each.cluster < cluster; });
    return g().first_of_l1(use->l1_index) + index;
  }

  Task<void> place(uint64_t count) {
    const std::vector<HostSpan> room = co_await find_room(survey_, count);
    std::vector<HostCluster> places;
    for (const HostSpan& span : room) {
      for (uint64_t i = 0; i < span.count; ++i) places.push_back(span.first + i);
    }
    if (places.size() < count) {
      co_await fail(Error(Errc::no_space, cat("no room for ", count, " clusters of zeros")));
    }
    auto next = places.begin();
    for (LostTable& lost : l1_) {
      if (lost.needs_table) lost.to = *next++;
    }
    for (auto& [place, zeros] : zero_clusters_) zeros.to = *next++;
    for (const HostCluster cluster : places) {
      survey_.clusters = std::max(survey_.clusters, cluster.value + 1);
    }
  }

  /// New tables and clusters of zeros, and their refcounts with all others that are too small.
  Task<void> write_zeros() {
    std::vector<std::byte> bytes(g().cluster_size());
    for (const auto& [place, zeros] : zero_clusters_) {
      co_await survey_.file.write(g().start_of(zeros.to).value, bytes,
                                  {.mark = Mark::copy_up_write});
      count(zeros.to, Owner::data, place.first ^ place.second << 32, zeros.weight);
    }
    for (uint64_t i = 0; i < g().l2_entries(); ++i) store_l2(bytes, i, zero_entry(), g());
    for (const LostTable& lost : l1_) {
      if (!lost.to) continue;
      co_await survey_.file.write(g().start_of(*lost.to).value, bytes, {.mark = Mark::l2_allocate});
      count(*lost.to, Owner::l2, lost.index, 1);
    }
    survey_.damaged = true;  // Nothing is freed yet.
    co_await repair_image(survey_, Repair::refcounts, log_);
    co_await survey_.file.flush(Mark::commit_sync);
  }

  void count(HostCluster cluster, Owner owner, uint64_t identity, uint64_t weight) {
    survey_.counts.add(cluster, owner, identity, weight);
    survey_.undercounted = true;
    const uint64_t index = g().refcount_table_index(cluster);
    if (index >= survey_.blocks.size() || survey_.blocks[index] != Survey::Block::sound) {
      survey_.refcounts_unsound = true;
    }
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

  Task<void> change_l2() {
    std::vector<std::byte> before(g().cluster_size());
    for (const uint64_t table : tables_to_change_) {
      const HostOffset at = g().start_of(HostCluster{table});
      co_await survey_.read_padded(at.value, before, Mark::l2_load);
      std::vector<std::byte> after = before;
      for (uint64_t i = 0; i < g().l2_entries(); ++i) {
        const L2Entry entry = load_l2(after, i, g());
        const GuestCluster guest = guest_of(table, i);
        if (entry == L2Entry{} || !is_lost(survey_, guest, entry)) continue;
        store_l2(after, i, given_up(table, i, guest, entry), g());
      }
      co_await survey_.write_changes(at, before, after, Mark::l2_update);
    }
  }

  Task<void> change_l1() {
    for (const LostTable& lost : l1_) {
      const Survey::L1Table& l1 = survey_.l1_tables[lost.l1];
      std::vector<std::byte> entry(8);
      const uint64_t copied = l1.active ? kCopied : 0;
      if (lost.to) store_l1_entry(entry, 0, g().start_of(*lost.to).value | copied);
      co_await survey_.file.write(l1.at.value + lost.index * 8, entry, {.mark = Mark::l1_update});
    }
  }

  Task<void> tell() {
    std::vector<HostCluster> wanted;
    for (const uint64_t table : tables_to_change_) wanted.push_back({table});
    Owners owners(survey_);
    if (!wanted.empty()) co_await owners.find(wanted, 0);
    for (const Range& range : ranges_) {
      Finding::Guest guest{.offset = range.offset, .length = range.length};
      owners.views_of(range.table, guest);
      log_.lost.push_back(std::move(guest));
    }
    for (const LostTable& lost : l1_) {
      const Survey::L1Table& l1 = survey_.l1_tables[lost.l1];
      const uint64_t offset = g().start_of(g().first_of_l1(lost.index)).value;
      const uint64_t size = survey_.head.header.size;
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

  /// Each costs memory before it costs disk.
  static constexpr size_t kZeroClustersMax = 1 << 20;
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

  Survey& survey_;
  RepairLog& log_;
  bool tables_ = false;
  bool others_too_ = false;  ///< Also tables that something else lies in.
  std::vector<LostTable> l1_;
  std::vector<uint64_t> tables_to_change_;
  std::map<std::pair<uint64_t, uint64_t>, Zeros> zero_clusters_;  ///< By table and index.
  std::vector<Range> ranges_;
  uint64_t new_tables_ = 0;
  std::string refused_;
};

}  // namespace

bool can_give_up_entries(const Survey& survey) {
  return survey.lost_entries && survey.report.check_errors == 0 && !survey.snapshots_lost;
}

Task<std::string> give_up_entries(Survey& survey, RepairLog& log, bool tables) {
  GivingUp giving_up(survey, log);
  co_return co_await giving_up.run(tables);
}

}  // namespace byre
