// SPDX-License-Identifier: Apache-2.0
/// The metadata context of a dirty bitmap: which bytes a backup has to copy.
///
/// Cost: one call of DirtyRuns::next_run() for each range that a client is told of.
/// Not here: bitmaps (qcow2/bitmap); whoever has one says where its runs are.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "export/nbd_handshake.h"

namespace byre::nbd {

/// Dirty bytes of a disk, as they are when somebody asks.
class DirtyRuns {
 public:
  virtual ~DirtyRuns() = default;
  /// The first run of dirty bytes at or behind `from`: offset and length, which is not 0.
  virtual std::optional<std::pair<uint64_t, uint64_t>> next_run(uint64_t from) const = 0;
};

/// "qemu:dirty-bitmap:NAME": flags 1 where `runs` has dirty bytes, else 0.
ExportContext dirty_bitmap_context(std::string_view name, std::shared_ptr<const DirtyRuns> runs);

}  // namespace byre::nbd
