// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/unshare.h"

#include <algorithm>
#include <map>
#include <utility>

#include "format/l1.h"
#include "format/l2.h"
#include "qcow2/check/l2_counter.h"
#include "qcow2/repair/table_change.h"
#include "qcow2/repair/unshare_plan.h"

namespace byre {
namespace {

/// Bytes that are copied at once.
constexpr uint64_t kCopyPiece = MiB;
/// An image may become larger by this much, however small it is.
constexpr uint64_t kCopiesAlways = 64 * MiB;

/// Carries out a plan.
class Unsharing {
 public:
  Unsharing(RepairState& state, RepairLog& log, bool copy_data, std::vector<UnshareMove> moves)
      : state_(state), log_(log), copy_data_(copy_data), moves_(std::move(moves)) {}

  Task<std::string> run() {
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
    for (const UnshareMove& move : moves_) co_await copy(move);
    co_await count();
    co_await state_.file.flush(IoTag::commit_sync);
    co_await link();
    co_await state_.file.flush(IoTag::commit_sync);
    tell();
    co_return std::string();
  }

 private:
  const Geometry& geometry() const { return state_.geometry(); }

  Task<void> place() {
    uint64_t count = 0;
    for (const UnshareMove& move : moves_) count += move.clusters;
    const uint64_t bytes = count << geometry().cluster_bits;
    if (bytes > std::max(kCopiesAlways, state_.file_size())) {
      co_await fail(unsupported("to give each owner a copy would take ", bytes,
                                " bytes, more than the image has"));
    }
    const std::vector<HostSpan> room = co_await find_room(state_, count);
    auto span = room.begin();
    uint64_t used = 0;
    for (UnshareMove& move : moves_) {
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
      if (move.what == UnshareMove::What::stream &&
          !can_describe_compressed(move.to, move.length, geometry())) {
        co_await fail(unsupported("a compressed stream has no room below ",
                                  geometry().compressed_offset_limit()));
      }
    }
  }

  Task<void> copy(const UnshareMove& move) {
    if (move.what != UnshareMove::What::table && !copy_data_) {
      co_await fill_up(move);
      co_return;
    }
    std::vector<std::byte> piece;
    const IoTag tag =
        move.what == UnshareMove::What::table ? IoTag::l2_allocate : IoTag::copy_up_write;
    for (uint64_t done = 0; done < move.length;) {
      piece.resize(std::min(kCopyPiece, move.length - done));
      co_await state_.read_padded(move.from.value + done, piece, IoTag::copy_up_read);
      // The data of both are shared from now on.
      if (move.what == UnshareMove::What::table) clear_copied(piece);
      co_await state_.file.write(move.to.value + done, piece, {.tag = tag});
      done += piece.size();
    }
    if (move.what == UnshareMove::What::stream) co_await fill_up(move);
  }

  /// The file has whole clusters.
  Task<void> fill_up(const UnshareMove& move) {
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
    for (const UnshareMove& move : moves_) {
      const HostCluster first = geometry().cluster_of(move.to);
      const Owner owner = move.what == UnshareMove::What::table    ? Owner::l2
                          : move.what == UnshareMove::What::stream ? Owner::compressed
                                                                   : Owner::data;
      const uint64_t identity = move.what == UnshareMove::What::table
                                    ? geometry().l1_index(move.guest)
                                    : move.guest.value;
      for (uint64_t i = 0; i < move.clusters; ++i) {
        state_.count_new(first + i, owner, identity, move.weight);
      }
      if (move.what != UnshareMove::What::table) continue;
      std::vector<std::byte> table(geometry().cluster_size());
      co_await state_.read_padded(move.to.value, table, IoTag::l2_load);
      count_table(move, table);
    }
    std::sort(state_.refcount_clusters.begin(), state_.refcount_clusters.end());
    // What is written anew is written as it is now.
    if (!anew) {
      for (const UnshareMove& move : moves_) forget_old_place(move);
    }
    state_.damaged = true;  // Nothing is freed yet.
    co_await repair_image(state_, Repair::refcounts, log_);
  }

  /// What the copy of a table refers to; what is wrong with it the scan has said of the original.
  void count_table(const UnshareMove& move, Bytes table) {
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
  void forget_old_place(const UnshareMove& move) {
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
    for (const UnshareMove& move : moves_) {
      if (move.what == UnshareMove::What::table) {
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

  L2Entry new_entry(const UnshareMove& move, const Owners::Reference& reference) const {
    if (move.what == UnshareMove::What::stream) {
      return encode_compressed(move.to, move.length, geometry());
    }
    L2Entry entry = reference.entry;
    entry.descriptor &= ~(kOffsetMask | kCopied);
    entry.descriptor |= move.to.value;
    if (move.weight == 1 && move.active == 1) entry.descriptor |= kCopied;
    return entry;
  }

  Task<void> link_table(const UnshareMove& move) {
    const bool copied = move.weight == 1 && move.active == 1;
    for (const Owners::L1Reference& reference : move.l1_entries) {
      std::vector<std::byte> entry(8);
      store_l1_entry(entry, 0, move.to.value | (copied ? kCopied : 0));
      co_await state_.file.write(reference.at.value, entry, {.tag = IoTag::l1_update});
    }
  }

  void tell() {
    for (const UnshareMove& move : moves_) {
      const std::string_view what = move.what == UnshareMove::What::table    ? "the L2 table"
                                    : move.what == UnshareMove::What::stream ? "the compressed data"
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
  std::vector<UnshareMove> moves_;
};

}  // namespace

bool can_unshare(const RepairState& state, Repair repair) {
  return repair == Repair::all && state.found.report.check_errors == 0 &&
         !state.found.snapshots_lost &&
         (state.references.counts.has_aliases() || !state.found.overlapping.empty() ||
          state.found.overfull);
}

Task<std::string> unshare(RepairState& state, RepairLog& log, bool copy_data) {
  UnsharePlan plan(state, log);
  Unsharing unsharing(state, log, copy_data, co_await plan.make());
  co_return co_await unsharing.run();
}

}  // namespace byre
