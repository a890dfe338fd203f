// SPDX-License-Identifier: Apache-2.0
/// TableReader: reads many tables of one cluster each, and has each visited once it is in memory.
///
/// The clusters are taken in the order of the caller, window by window.  Clusters that follow one
/// another in the file are read at once, the runs of a window side by side; while a worker visits
/// the tables of one window the next window is read.  Where a run cannot be read, its clusters are
/// read one by one, so that one bad place costs one table.
/// Invariant: each index gets exactly one call, visit() or failed(); those of visit() come in
/// order, as do those of failed(), which follow all visits of their window.  visit() runs on a
/// worker thread or in the caller's turn, and nothing but reads runs beside it; all other callbacks
/// run on the reactor.  What lies behind the end of the file is zeros, and costs no read.
/// Cost: two windows of memory; with clusters in ascending order, one read for each run of a MiB.
/// Not here: which tables there are, what they hold (metadata_scan.h), writing.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "block/device.h"
#include "format/types.h"

namespace byre {

class Semaphore;

/// Reads; what lies behind `file_size` is zeros.
Task<void> read_padded(Device& file, uint64_t file_size, uint64_t offset, MutableBytes data,
                       IoTag tag);

class TableReader {
 public:
  /// `file_size`: where the file ends for this reader, whatever it becomes meanwhile.
  TableReader(Device& file, const Geometry& geometry, uint64_t file_size)
      : file_(file), geometry_(geometry), file_size_(file_size) {}

  struct Wanted {
    uint64_t count = 0;
    /// The host cluster of table `index`; called once for each, in order.  A cluster behind the end
    /// of the file gives zeros.
    std::function<HostCluster(uint64_t index)> cluster;
    IoTag tag = IoTag::none;
  };
  using Visit = std::function<void(uint64_t index, MutableBytes table)>;
  using Failed = std::function<void(uint64_t index, const Error& error)>;
  /// Holds the reading back while there is more urgent work.
  class Throttle {
   public:
    virtual Task<void> before_window() = 0;

   protected:
    ~Throttle() = default;
  };
  /// How fast, and how far; what is empty is not called.
  struct Pace {
    /// Asked before each window is visited; an error ends the reading and is its result.
    std::function<Result<void>()> go_on = {};
    /// Called after each window with the number of tables that are done.
    std::function<void(uint64_t done)> progress = {};
    Throttle* throttle = nullptr;
    uint64_t reads_max = UINT64_MAX;  ///< Side by side.
  };
  Task<void> each(Wanted wanted, Visit visit, Failed failed, Pace pace);

  /// Tables that are in memory together, and what came of reading them.
  struct Window {
    std::vector<HostCluster> clusters;
    std::vector<std::byte> bytes;
    std::vector<Error> errors;  ///< One a cluster; null where it could be read.
    MutableBytes table(uint64_t i, const Geometry& geometry) {
      return MutableBytes(bytes).subspan(i * geometry.cluster_size(), geometry.cluster_size());
    }
  };
  /// How many clusters each() puts into one.
  uint64_t window_max() const;
  /// Reads window.clusters; what cannot be read is in window.errors.
  BYRE_CORO_WRAPPER Task<void> read(Window& window, IoTag tag) {
    return read_window(window, tag, nullptr);
  }

 private:
  struct Work;
  void visit(const Work& work, uint64_t first, Window& window) const;
  Task<void> read_next(Work& work, Window& window);
  Task<void> read_window(Window& window, IoTag tag, Semaphore* reads);
  Task<void> read_run(Window& window, uint64_t first, uint64_t end, IoTag tag, Semaphore* reads);

  Device& file_;
  const Geometry geometry_;
  const uint64_t file_size_;
};

}  // namespace byre
