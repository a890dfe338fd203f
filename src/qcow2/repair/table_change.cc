// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/table_change.h"

#include <algorithm>
#include <vector>

namespace byre {

Task<void> write_changes(Device& file, HostOffset at, Bytes before, Bytes after, IoTag tag) {
  const auto sector = [](Bytes bytes, uint64_t i) {
    return bytes.subspan(i * kSectorSize, std::min(kSectorSize, bytes.size() - i * kSectorSize));
  };
  uint64_t first = 0;
  uint64_t end = div_ceil(after.size(), kSectorSize);
  while (first < end && equal(sector(before, first), sector(after, first))) ++first;
  while (first < end && equal(sector(before, end - 1), sector(after, end - 1))) --end;
  if (first == end) co_return;
  const uint64_t from = first * kSectorSize;
  const uint64_t to = std::min<uint64_t>(end * kSectorSize, after.size());
  co_await file.write(at.value + from, after.subspan(from, to - from), {.tag = tag});
}

Task<void> change_each_l2(RepairState& state, VisitL2 visit) {
  const std::vector<L2Use>& uses = state.found.l2_uses;
  TableReader reader(state.file, state.geometry(), state.file_size());
  std::vector<std::byte> before(state.geometry().cluster_size());
  TableReader::Window window;
  for (uint64_t done = 0; done < uses.size();) {
    co_await state.options.go_on();
    window.clusters.clear();
    const uint64_t end = std::min<uint64_t>(uses.size(), done + reader.window_max());
    for (uint64_t i = done; i < end; ++i) window.clusters.push_back({uses[i].cluster});
    co_await reader.read(window, IoTag::l2_load);
    for (uint64_t i = 0; done < end; ++i, ++done) {
      if (window.errors[i]) {
        state.damaged = true;
        continue;
      }
      const MutableBytes table = window.table(i, state.geometry());
      copy(before, table);
      visit(uses[done], table);
      co_await write_changes(state.file, state.geometry().start_of(window.clusters[i]), before,
                             table, IoTag::l2_update);
    }
  }
}

}  // namespace byre
