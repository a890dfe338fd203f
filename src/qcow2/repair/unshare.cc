// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/unshare.h"

#include <algorithm>
#include <map>
#include <set>

#include "format/l1.h"
#include "qcow2/check/l2_counter.h"
#include "qcow2/check/owners.h"
#include "qcow2/repair/table_change.h"

namespace byre {
namespace {

/// Bytes that are copied at once.
constexpr uint64_t kCopyPiece = MiB;
/// An image may become larger by this much, however small it is.
constexpr uint64_t kCopiesAlways = 64 * MiB;

class Separator {
 public:
  Separator(RepairState& state, RepairLog& log, bool copy_data)
      : state_(state),
        log_(log),
        copy_data_(copy_data),
        owners_(state.file, state.found, state.hooks()) {}

  Task<std::string> run() {
    std::vector<HostCluster> wanted = state_.references.counts.aliased();
    wanted.insert(wanted.end(), state_.found.overlapping.begin(), state_.found.overlapping.end());
    if (state_.found.overfull) add_overfull(wanted);
    std::sort(wanted.begin(), wanted.end());
    wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());
    co_await owners_.find(wanted, UINT64_MAX);
    plan_tables();
    // The entries of a table that is about to become two are the next pass's.
    if (moves_.empty()) {
      for (const HostCluster cluster : wanted) plan_cluster(cluster);
    }
    if (moves_.empty()) co_return std::string();
    Result<void> placed = co_await place().result();
    if (!placed) {
      const Errc code = placed.error().code();
      if (code != Errc::unsupported && code != Errc::no_space) {
        co_await fail(std::move(placed).error());
      }
      co_return placed.error().message();
    }
    co_await begin_writing(state_);
    for (const Move& move : moves_) co_await copy(move);
    co_await count();
    co_await state_.file.flush(IoTag::commit_sync);
    co_await link();
    co_await state_.file.flush(IoTag::commit_sync);
    tell();
    co_return std::string();
  }

 private:
  /// Something that gets a place of its own.
  struct Move {
    enum class What : uint8_t { table, data, stream } what = What::data;
    HostOffset from;
    uint64_t length = 0;
    uint64_t clusters = 1;                        ///< That it touches.
    HostOffset to;                                ///< Once it is placed.
    uint64_t weight = 0;                          ///< References that go with it,
    uint32_t active = 0;                          ///< those of the active disk among them.
    GuestCluster guest;                           ///< Of a table the first.
    std::vector<Owners::Reference> entries;       ///< L2 entries to change,
    std::vector<Owners::L1Reference> l1_entries;  ///< or L1 entries.
  };

  const Geometry& geometry() const { return state_.geometry(); }

  const L2Use& use_of(uint64_t table) const {
    const L2Use* use = state_.found.find_use(table);
    BYRE_ASSERT(use);
    return *use;
  }

  /// May this byte of metadata be written?  Not when its cluster has another owner, too.
  bool is_own(HostOffset at) const { return state_.is_own(geometry().cluster_of(at)); }

  uint64_t references_max() const { return refcount_max(geometry().refcount_order); }

  /// Clusters with more references than a refcount holds.
  void add_overfull(std::vector<HostCluster>& found) const {
    for (const uint64_t region : state_.references.counts.regions()) {
      for (uint64_t i = 0; i < ReferenceCounts::kRegion; ++i) {
        const HostCluster cluster{region * ReferenceCounts::kRegion + i};
        if (state_.references.counts.references(cluster) > references_max())
          found.push_back(cluster);
      }
    }
  }

  // What is to be done.

  void plan_tables() {
    for (const L2Use& use : state_.found.l2_uses) {
      if (use.shared) {
        plan_table(use);
      } else if (use.weight > references_max()) {
        plan_copies_of_table(use);
      }
    }
  }

  void add_l1_entry(Move& move, uint64_t table, const Owners::L1Reference& reference) const {
    move.what = Move::What::table;
    move.from = geometry().start_of(HostCluster{table});
    move.length = geometry().cluster_size();
    move.guest = geometry().first_of_l1(reference.index);
    ++move.weight;
    move.active += state_.found.l1_tables[reference.table].active;
    move.l1_entries.push_back(reference);
  }

  void plan_move(Move move) {
    const bool writable =
        std::all_of(move.l1_entries.begin(), move.l1_entries.end(),
                    [&](const auto& entry) { return is_own(entry.at); }) &&
        std::all_of(move.entries.begin(), move.entries.end(), [&](const auto& entry) {
          return is_own(geometry().start_of(HostCluster{entry.l2_table}));
        });
    if (writable) moves_.push_back(std::move(move));
  }

  /// As many L1 entries as a refcount holds keep it, the active one among them; the others get
  /// copies, for as many each.
  void plan_copies_of_table(const L2Use& use) {
    std::vector<Move> moves;
    uint64_t index = 0;
    for (const Owners::L1Reference& reference : owners_.of_table(use.cluster)) {
      const uint64_t copy = index++ / references_max();
      if (copy == 0) continue;
      moves.resize(copy);
      add_l1_entry(moves.back(), use.cluster, reference);
    }
    for (Move& move : moves) plan_move(std::move(move));
  }

  void plan_table(const L2Use& use) {
    std::map<uint64_t, Move> by_index;
    for (const Owners::L1Reference& reference : owners_.of_table(use.cluster)) {
      doubt({.offset = geometry().start_of(geometry().first_of_l1(reference.index)).value,
             .length = geometry().l1_span()},
            state_.found.l1_tables[reference.table]);
      add_l1_entry(by_index[reference.index], use.cluster, reference);
    }
    if (by_index.empty()) return;
    by_index.erase(by_index.begin());  // Who keeps it.
    for (auto& [index, move] : by_index) plan_move(std::move(move));
  }

  /// A pointer that is no cluster's offset: what it should be, nobody knows.
  bool is_astray(const Owners::Reference& reference) const {
    return !reference.compressed() &&
           !geometry().aligned(HostOffset{reference.entry.descriptor & kOffsetMask});
  }

  void plan_cluster(HostCluster cluster) {
    const Owners::References& references = owners_.of(cluster);
    // Such an entry stays as it is, and so does what it may mean.
    if (std::any_of(references.kept.begin(), references.kept.end(),
                    [&](const auto& reference) { return is_astray(reference); })) {
      return;
    }
    const auto* cell = state_.references.counts.find(cluster);
    if (!(cell && cell->aliased) && !state_.found.overlapping.contains(cluster)) {
      plan_overfull(cluster, references.kept);
      return;
    }
    uint64_t counted = 0;
    bool compressed = false;
    for (const Owners::Reference& reference : references.kept) {
      counted += use_of(reference.l2_table).weight;
      compressed |= reference.compressed();
      Finding::Guest guest{.offset = geometry().start_of(reference.guest).value,
                           .length = geometry().cluster_size()};
      owners_.views_of(reference.l2_table, guest);
      log_.in_doubt.push_back(std::move(guest));
    }
    const bool metadata = state_.references.counts.references(cluster) > counted;
    const bool overlapping = state_.found.overlapping.contains(cluster);
    std::optional<GuestCluster> keeps;
    std::map<std::pair<uint64_t, uint64_t>, Move> moves;  // By guest cluster and descriptor.
    for (const Owners::Reference& reference : references.kept) {
      if (reference.compressed()) {
        // A stream that touches several such clusters is met in each.
        if ((metadata || overlapping) && !is_moved(reference)) {
          const uint64_t stream = reference.entry.descriptor & ~kCopied;
          add_stream(moves[{reference.guest.value, stream}], reference);
        }
        continue;
      }
      if (!metadata && !compressed) {
        if (!keeps) keeps = reference.guest;
        if (*keeps == reference.guest) continue;
      }
      add_data(moves[{reference.guest.value, 0}], cluster, reference);
    }
    // A copy with more references than a refcount holds is the next pass's.
    for (auto& [key, move] : moves) plan_move(std::move(move));
  }

  /// As many references as a refcount holds stay; the others get copies, for as many each.
  void plan_overfull(HostCluster cluster, const std::vector<Owners::Reference>& references) {
    uint64_t staying = 0;
    std::map<std::pair<uint64_t, uint64_t>, std::vector<Move>> copies;  // As in plan_cluster().
    for (const Owners::Reference& reference : references) {
      const uint64_t weight = use_of(reference.l2_table).weight;
      if (weight > references_max()) return;  // The table's copies come first.
      const bool compressed = reference.compressed();
      if (compressed && is_moved(reference)) continue;
      if (weight <= references_max() - staying) {
        staying += weight;
        continue;
      }
      const uint64_t stream = compressed ? reference.entry.descriptor & ~kCopied : 0;
      std::vector<Move>& of_this = copies[{reference.guest.value, stream}];
      if (of_this.empty() || of_this.back().weight > references_max() - weight) {
        of_this.emplace_back();
      }
      if (!compressed) {
        add_data(of_this.back(), cluster, reference);
      } else if (!add_stream(of_this.back(), reference)) {
        return;
      }
    }
    for (auto& [key, of_this] : copies) {
      for (Move& move : of_this) plan_move(std::move(move));
    }
  }

  bool is_moved(const Owners::Reference& reference) const {
    return moved_streams_.contains({reference.l2_table, reference.guest.value});
  }

  void add_data(Move& move, HostCluster cluster, const Owners::Reference& reference) const {
    move.what = Move::What::data;
    move.from = geometry().start_of(cluster);
    move.length = geometry().cluster_size();
    add_entry(move, reference);
  }

  /// False: it is none.
  bool add_stream(Move& move, const Owners::Reference& reference) {
    const Result<Mapping> mapping = decode_l2(reference.entry, geometry());
    if (!mapping) return false;
    moved_streams_.insert({reference.l2_table, reference.guest.value});
    move.what = Move::What::stream;
    move.from = mapping->compressed_at;
    move.length = mapping->compressed_size;
    move.clusters = hosts(*mapping, geometry()).count;
    add_entry(move, reference);
    return true;
  }

  void add_entry(Move& move, const Owners::Reference& reference) const {
    const L2Use& use = use_of(reference.l2_table);
    move.guest = reference.guest;
    move.weight += use.weight;
    move.active += use.active;
    move.entries.push_back(reference);
  }

  void doubt(Finding::Guest guest, const L1Table& l1) {
    guest.active = l1.active;
    if (!l1.active) guest.snapshots.push_back(l1.snapshot);
    log_.in_doubt.push_back(std::move(guest));
  }

  // Doing it.

  Task<void> place() {
    uint64_t count = 0;
    for (const Move& move : moves_) count += move.clusters;
    const uint64_t bytes = count << geometry().cluster_bits;
    if (bytes > std::max(kCopiesAlways, state_.file_size())) {
      co_await fail(unsupported("to give each owner a copy would take ", bytes,
                                " bytes, more than the image has"));
    }
    const std::vector<HostSpan> room = co_await find_room(state_, count);
    auto span = room.begin();
    uint64_t used = 0;
    for (Move& move : moves_) {
      while (span != room.end() && span->count - used < move.clusters) {
        ++span;
        used = 0;
      }
      if (span == room.end()) {
        co_await fail(Error(Errc::no_space, cat("no room for ", count, " clusters of copies")));
      }
      move.to = geometry().start_of(span->first + used);
      move.to.value += geometry().offset_in_cluster(move.from);
      used += move.clusters;
      state_.references.clusters = std::max(state_.references.clusters,
                                            geometry().cluster_of(move.to).value + move.clusters);
      if (move.what == Move::What::stream &&
          !can_describe_compressed(move.to, move.length, geometry())) {
        co_await fail(unsupported("a compressed stream has no room below ",
                                  geometry().compressed_offset_limit()));
      }
    }
  }

  Task<void> copy(const Move& move) {
    if (move.what != Move::What::table && !copy_data_) {
      co_await fill_up(move);
      co_return;
    }
    std::vector<std::byte> piece;
    const IoTag tag = move.what == Move::What::table ? IoTag::l2_allocate : IoTag::copy_up_write;
    for (uint64_t done = 0; done < move.length;) {
      piece.resize(std::min(kCopyPiece, move.length - done));
      co_await state_.read_padded(move.from.value + done, piece, IoTag::copy_up_read);
      // The data of both are shared from now on.
      if (move.what == Move::What::table) clear_copied(piece);
      co_await state_.file.write(move.to.value + done, piece, {.tag = tag});
      done += piece.size();
    }
    if (move.what == Move::What::stream) co_await fill_up(move);
  }

  /// The file has whole clusters.
  Task<void> fill_up(const Move& move) {
    const uint64_t end = geometry().start_of(geometry().cluster_of(move.to) + move.clusters).value;
    const std::byte last[1] = {};
    if (end > state_.file.size()) {
      co_await state_.file.write(end - 1, last, {.tag = IoTag::copy_up_write});
    }
  }

  void clear_copied(MutableBytes table) const {
    for (uint64_t i = 0; i < geometry().l2_entries(); ++i) {
      L2Entry entry = load_l2(table, i, geometry());
      // The flag alone says that something is lost.
      if ((entry.descriptor & kCopied) == 0 || has_stray_copied(entry, geometry())) continue;
      entry.descriptor &= ~kCopied;
      store_l2(table, i, entry, geometry());
    }
  }

  /// The copies' refcounts, with all others that are too small.
  Task<void> count() {
    const bool anew = state_.refcounts_unsound;
    for (const Move& move : moves_) {
      const HostCluster first = geometry().cluster_of(move.to);
      const Owner owner = move.what == Move::What::table    ? Owner::l2
                          : move.what == Move::What::stream ? Owner::compressed
                                                            : Owner::data;
      const uint64_t identity =
          move.what == Move::What::table ? geometry().l1_index(move.guest) : move.guest.value;
      for (uint64_t i = 0; i < move.clusters; ++i) {
        state_.count_new(first + i, owner, identity, move.weight);
      }
      if (move.what != Move::What::table) continue;
      std::vector<std::byte> table(geometry().cluster_size());
      co_await state_.read_padded(move.to.value, table, IoTag::l2_load);
      count_table(move, table);
    }
    std::sort(state_.refcount_clusters.begin(), state_.refcount_clusters.end());
    // What is written anew is written as it is now.
    if (!anew) {
      for (const Move& move : moves_) forget_old_place(move);
    }
    state_.damaged = true;  // Nothing is freed yet.
    co_await repair_image(state_, Repair::refcounts, log_);
  }

  /// What the copy of a table refers to; what is wrong with it the scan has said of the original.
  void count_table(const Move& move, Bytes table) {
    const auto ignore = [](HostCluster, Owner) {};
    const GuestCluster first = geometry().first_of_l1(geometry().l1_index(move.guest));
    for (uint64_t i = 0; i < geometry().l2_entries(); ++i) {
      const L2Entry entry = load_l2(table, i, geometry());
      const uint64_t at = entry.descriptor & kOffsetMask;
      if (geometry().data_file) continue;
      if ((entry.descriptor & kCompressed) == 0) {
        if (at == 0) continue;
        state_.references.count(at, geometry().cluster_size(), Owner::data, (first + i).value,
                                move.weight, ignore);
      } else if (entry.bitmap == 0) {
        const CompressedRange range = compressed_range(entry.descriptor, geometry());
        state_.references.count(range.at, range.length, Owner::compressed, 0, move.weight, ignore);
      }
    }
  }

  /// What moves away needs no count where it was: if something else keeps refcounts from sinking
  /// again, it would stay too large.  Until the entries are changed that place is as it was before.
  void forget_old_place(const Move& move) {
    const HostCluster first = geometry().cluster_of(move.from);
    for (uint64_t i = 0; i < move.clusters; ++i) {
      // A place that refcount structures leave has no count but these.
      const auto& leaving = state_.refcount_clusters;
      if (std::binary_search(leaving.begin(), leaving.end(), first + i)) continue;
      const uint64_t counted = state_.references.counts.references(first + i);
      for (uint64_t n = std::min(counted, move.weight); n != 0; --n) {
        state_.references.counts.drop(first + i);
      }
    }
  }

  Task<void> link() {
    std::map<uint64_t, std::vector<std::pair<GuestCluster, L2Entry>>> by_table;
    for (const Move& move : moves_) {
      if (move.what == Move::What::table) {
        co_await link_table(move);
        continue;
      }
      for (const Owners::Reference& reference : move.entries) {
        by_table[reference.l2_table].push_back({reference.guest, new_entry(move, reference)});
      }
    }
    for (const auto& [cluster, changes] : by_table) {
      const HostOffset at = geometry().start_of(HostCluster{cluster});
      std::vector<std::byte> before(geometry().cluster_size());
      co_await state_.read_padded(at.value, before, IoTag::l2_load);
      std::vector<std::byte> after = before;
      for (const auto& [guest, entry] : changes) {
        store_l2(after, geometry().l2_index(guest), entry, geometry());
      }
      co_await write_changes(state_.file, at, before, after, IoTag::l2_update);
    }
  }

  L2Entry new_entry(const Move& move, const Owners::Reference& reference) const {
    if (move.what == Move::What::stream) {
      return encode_compressed(move.to, move.length, geometry());
    }
    L2Entry entry = reference.entry;
    entry.descriptor &= ~(kOffsetMask | kCopied);
    entry.descriptor |= move.to.value;
    if (move.weight == 1 && move.active == 1) entry.descriptor |= kCopied;
    return entry;
  }

  Task<void> link_table(const Move& move) {
    const bool copied = move.weight == 1 && move.active == 1;
    for (const Owners::L1Reference& reference : move.l1_entries) {
      std::vector<std::byte> entry(8);
      store_l1_entry(entry, 0, move.to.value | (copied ? kCopied : 0));
      co_await state_.file.write(reference.at.value, entry, {.tag = IoTag::l1_update});
    }
  }

  void tell() {
    for (const Move& move : moves_) {
      const std::string_view what = move.what == Move::What::table    ? "the L2 table"
                                    : move.what == Move::What::stream ? "the compressed data"
                                                                      : "the data";
      log_.add({.kind = RepairAction::Kind::copy,
                .host_offset = move.from.value,
                .to = move.to.value,
                .length = move.length,
                .guest_offset = geometry().start_of(move.guest).value,
                .text = cat("give guest offset ", geometry().start_of(move.guest), " a copy of ",
                            what, " at ", move.from, ", at ", move.to)});
    }
  }

  RepairState& state_;
  RepairLog& log_;
  const bool copy_data_;
  Owners owners_;
  std::vector<Move> moves_;
  std::set<std::pair<uint64_t, uint64_t>> moved_streams_;
};

}  // namespace

bool can_separate(const RepairState& state, Repair repair) {
  return repair == Repair::all && state.found.report.check_errors == 0 &&
         !state.found.snapshots_lost &&
         (state.references.counts.has_aliases() || !state.found.overlapping.empty() ||
          state.found.overfull);
}

Task<std::string> separate(RepairState& state, RepairLog& log, bool copy_data) {
  Separator separator(state, log, copy_data);
  co_return co_await separator.run();
}

}  // namespace byre
