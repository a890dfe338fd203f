// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/lost_l1.h"

#include <algorithm>

#include "format/l1.h"
#include "qcow2/repair/loss.h"

namespace byre {
namespace {

Task<void> switch_l1(RepairState& state, HostOffset at, uint64_t entries) {
  store_l1(state.head.sector, at, static_cast<uint32_t>(entries));
  co_await state.file.write(0, state.head.sector, {.tag = IoTag::header_update});
  co_await state.file.flush(IoTag::commit_sync);
}

/// Step 1.
Task<void> count_what_is_there(RepairState& state, RepairLog& log) {
  const uint64_t entries = state.found.l1_tables.front().entries;
  co_await begin_writing(state);
  // To other readers these entries lead somewhere only from here on (O2).
  if (state.undercounted || state.refcounts_unsound) {
    co_await repair_image(state, Repair::refcounts, log);
  }
  co_await switch_l1(state, state.head.header.l1_offset, entries);
  log.add({.kind = RepairAction::Kind::give_up,
           .host_offset = state.head.header.l1_offset.value,
           .text = cat("give up ", state.head.header.l1_entries - entries,
                       " entries of the L1 table, which lie behind the end of the file")});
}

/// Step 3.
Task<std::string> write_anew(RepairState& state, RepairLog& log) {
  const Geometry& g = state.geometry();
  const Header& header = state.head.header;
  const uint64_t old_entries = header.l1_entries;
  const uint64_t entries = g.l1_entries_for(header.size);
  if (entries > kL1EntriesMax) {
    co_return cat("a disk of ", header.size, " bytes needs an L1 table of ", entries,
                  " entries, at most ", kL1EntriesMax);
  }
  const bool hides = state.head.backing_file.has_value();
  if (hides) {
    const uint64_t size = header.size - g.start_of(g.first_of_l1(old_entries)).value;
    std::string reason = why_no_zeros(state, {.tables = entries - old_entries,
                                              .holes = g.version < 3 ? g.clusters_for(size) : 0});
    if (!reason.empty()) co_return std::move(reason);
  }
  std::vector<std::byte> table(entries * 8);
  const MutableBytes left = MutableBytes(table).first(old_entries * 8);
  co_await state.read_padded(header.l1_offset.value, left, IoTag::l1_load);
  for (uint64_t i = old_entries; hides && i < entries; ++i) store_l1_entry(table, i, kCopied);
  co_await begin_writing(state);
  const auto placed = co_await place_table(state, log, table, IoTag::l1_grow);
  if (!placed) co_return cat("no room for an L1 table of ", entries, " entries");
  co_await switch_l1(state, *placed, entries);
  log.add({.kind = RepairAction::Kind::rewrite_table,
           .host_offset = header.l1_offset.value,
           .to = placed->value,
           .length = table.size(),
           .text = cat("write the L1 table anew, at ", *placed)});
  if (!hides) {
    const uint64_t offset = g.start_of(g.first_of_l1(old_entries)).value;
    log.lost.push_back({.offset = offset, .length = header.size - offset, .active = true});
  }
  co_return std::string();
}

}  // namespace

bool has_lost_l1(const RepairState& state) {
  const bool is_known = !state.found.l1_tables.empty() && state.found.l1_tables.front().active;
  return (state.found.l1_behind_end || state.found.l1_too_short) && is_known &&
         state.found.report.check_errors == 0 && !state.found.snapshots_lost;
}

Task<std::string> give_up_l1(RepairState& state, RepairLog& log) {
  if (!state.found.l1_behind_end) co_return co_await write_anew(state, log);
  co_await count_what_is_there(state, log);
  co_return std::string();
}

}  // namespace byre
