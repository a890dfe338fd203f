// SPDX-License-Identifier: Apache-2.0
/// How an image is opened, and what it counts while it is open.
/// Invariant: the counters of ImageStats never fall while the image is open.
/// Cost: none; both are plain values.
/// Not here: what acts on the options (open.cc, core/engine.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/units.h"
#include "block/graph.h"
#include "coro/ready_queue.h"

namespace byre {

class FileOpener;
struct ImageHeader;

enum class DiscardPolicy : uint8_t {
  ignore,  ///< Discards change nothing; freed host clusters keep their blocks.
  unmap,   ///< Discarded clusters are freed, and freed clusters become holes.
};

/// How many images may lie one below the other.
inline constexpr uint32_t kChainMax = 1024;

struct ImageOptions;

/// Opens the backing disks that images do not name as files but as devices (`json:{...}`, or an
/// address such as `nbd://`).
class NamedDevices {
 public:
  virtual ~NamedDevices() = default;
  /// Is the name of a backing disk one of those?
  virtual bool knows(std::string_view name) const = 0;
  /// For reading; `options` are those of the image at `image_name`, whose header is `head`.
  virtual Task<Child> open(FileOpener& opener, const ImageHeader& head, std::string image_name,
                           ImageOptions options) const = 0;
};

struct ImageOptions {
  bool writable = false;
  bool direct = false;      ///< O_DIRECT for this file and those below it.
  bool lock = true;         ///< QEMU's file locks.
  bool share_lock = false;  ///< Read although another process writes (-U).
  DiscardPolicy discard = DiscardPolicy::unmap;
  bool discard_keeps =
      false;  ///< Discarded clusters read as zeros and keep their place (version 3).
  std::optional<bool> lazy_refcounts;  ///< Instead of what the image says (version 3).
  std::string snapshot;                ///< Open this internal snapshot, by id or name; read-only.
  std::string data_file;               ///< Instead of the data file that the image names.
  /// Of the disks below, this one is opened for writing, too: 1 is the backing disk, 2 the one
  /// below that; 0: none.  Only what knows that this image shows the same meanwhile writes it.
  uint32_t writable_below = 0;
  bool without_backing = false;  ///< Only this layer: what is not allocated reads as zeros.
  /// Read-only: damage that does not hinder reading is passed over, and what of the L1 table cannot
  /// be read fails where it is needed.
  bool salvage = false;
  uint32_t chain_depth_max = kChainMax;
  /// L2 slices of all images of the chain together; two slices each at least.
  uint64_t table_cache_size = 32 * MiB;
  uint64_t staged_max = 64 * 1024;  ///< Entries staged before writers wait for a commit.
  int64_t commit_delay =
      kSecond;  ///< Staged work is committed after this many ns at the latest (M6).
  uint64_t host_size_max = UINT64_MAX;  ///< The file may not grow beyond this: ENOSPC.
  /// Requests take host clusters in the order in which they came, though they run side by side:
  /// what the image's file holds depends on them alone, with reuse_freed off and if no compressed
  /// cluster of theirs is written again.  For who fills an image in order.
  bool allocate_in_order = false;
  /// Off: what has been freed, at whatever moment, is used again only when the host is full.
  bool reuse_freed = true;
  uint64_t growth_step = 16 * MiB;  ///< The file's length is raised ahead by this much.
  /// When an image that is opened for writing has its references counted (docs/engine.md, V).
  enum class Scan : uint8_t {
    at_open,  ///< Before open() ends.
    /// Images with more tables than scanned_at_once: beside reads and writes in place; what
    /// changes metadata waits.
    beside_requests,
    never,  ///< The refcounts are believed: this process made the image, or the user says so.
  };
  Scan scan = Scan::at_open;
  /// So much of L2 tables and refcount blocks is read before open() ends whatever `scan` says: a
  /// disk of 128 GiB.
  uint64_t scanned_at_once = 16 * MiB;
  /// An image that is damaged is not opened for writing, and nothing in it was changed.
  bool refuse_damaged = false;
  /// Once the scan has found nothing wrong, clusters that nothing refers to are freed.
  bool free_leaks = false;
  /// Without it images may name only files.
  std::shared_ptr<const NamedDevices> named_devices;
  /// Told what the user should know: "image was not closed cleanly; refcounts were rebuilt".
  std::function<void(const std::string&)> message;
};

/// Counters since the image was opened.
struct ImageStats {
  uint64_t commits = 0;
  uint64_t commit_failures = 0;
  uint64_t writes_in_place = 0;  ///< Runs of clusters, not requests.
  uint64_t writes_allocating = 0;
  uint64_t clusters_compressed = 0;    ///< Written as streams.
  uint64_t clusters_decompressed = 0;  ///< Streams read.
  uint64_t clusters_allocated = 0;
  uint64_t clusters_freed = 0;
  uint64_t clusters_peak = 0;  ///< The most in use at once beyond what was when it was opened.
  uint64_t table_loads = 0;
};

}  // namespace byre
