// SPDX-License-Identifier: Apache-2.0
#include "export/nbd_dirty_context.h"

namespace byre::nbd {

ExportContext dirty_bitmap_context(std::string_view name, std::shared_ptr<const DirtyRuns> runs) {
  const auto describe = [runs](uint64_t offset) -> std::pair<uint64_t, uint32_t> {
    const auto run = runs->next_run(offset);
    if (!run) return {UINT64_MAX - offset, 0};
    if (run->first > offset) return {run->first - offset, 0};
    return {run->second, 1};
  };
  return {.name = cat("qemu:dirty-bitmap:", name), .describe = describe};
}

}  // namespace byre::nbd
