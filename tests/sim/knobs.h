// SPDX-License-Identifier: Apache-2.0
/// What a simulated machine looks like, drawn from a seed: the image's geometry and contents, the
/// engine's bounds, the disk.  Rare paths are made ordinary: a table cache of two slices, one free
/// cluster left, a refcount table about to overflow.
///
/// Guests work in a few windows of the disk; the rest of it is never touched.
/// build_disks() writes the starting images by itself, from the format layer: no engine involved.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/prng.h"
#include "format/types.h"
#include "oracle.h"
#include "qcow2/image.h"
#include "sim/sim_gate.h"

namespace byre {

struct Window {
  uint64_t offset = 0;
  uint64_t length = 0;
};

struct Knobs {
  // The image.
  uint32_t version = 3;
  uint32_t cluster_bits = 16;
  uint32_t refcount_order = 4;
  bool extended_l2 = false;
  bool lazy_refcounts = false;
  Compression compression = Compression::deflate;
  uint64_t size = 0;
  std::vector<Window> windows;
  enum class Backing : uint8_t { none, raw, qcow2 } backing = Backing::none;
  uint64_t backing_size = 0;
  /// Guest data lie in a disk of their own; `raw`: it must stay valid as a raw image.
  enum class DataFile : uint8_t { none, plain, raw } data_file = DataFile::none;
  uint64_t contents = 0;   ///< One cluster in so many starts with contents; 0: an empty image.
  bool compressed = true;  ///< Some of the contents are compressed.
  /// Free clusters before the data, so that other refcount blocks count those than the header.
  uint64_t gap = 0;
  bool tables_apart = false;            ///< L2 tables lie far behind the data.
  uint64_t clusters_free = UINT64_MAX;  ///< Leaked clusters fill all but so many of the refcounts.
  uint64_t leaks = 0;                   ///< How many those are (build_disks() says).
  /// Two guest clusters outside the windows share a host cluster that has one reference.
  bool aliases = false;
  bool damaged = false;         ///< Other programs have damaged the image (damage.h).
  uint64_t damaged_before = 0;  ///< Which incarnation; a clean close comes before.
  bool damage_aliases = false;  ///< Ranges may share clusters, too.
  uint64_t lost_guest = 0;    ///< Offset of a cluster that leads nowhere (damage.h says); 0: none.
  uint64_t aliased_host = 0;  ///< Its number (build_disks() says); 0: there was no place.

  /// Guests change the size of the disk: it is never larger than `size`.
  bool resizes = false;
  /// Guests make, apply and delete snapshots.
  bool snapshots = false;
  /// Guests check the disk while they use it.
  bool checks = false;
  /// Guests add, clear, enable, disable and remove persistent bitmaps.
  bool bitmaps = false;

  /// Guests come in by an entrance of the graph, which is changed meanwhile (graph_steps.cc).
  bool graph = false;
  /// Guests keep the disk as it is at some moment, with a copy-before-write filter above it, and
  /// read that (snapshot_steps.cc).
  bool copy_before_write = false;

  // The engine.
  uint64_t table_cache_size = 32 * MiB;
  uint64_t staged_max = 64 * 1024;
  uint64_t growth_step = 16 * MiB;
  int64_t commit_delay = kSecond;
  DiscardPolicy discard = DiscardPolicy::unmap;

  bool in_order = false;
  bool reuse_freed = true;
  ImageOptions::Scan scan = ImageOptions::Scan::at_open;

  // The machine.
  uint32_t block_size = 1;
  bool torn = true;
  bool can_punch = true;
  bool can_zero_range = true;
  SimReactor::Delays delays;

  static Knobs draw(Prng& prng);
  /// A small image for exhaustive walks: four clusters in one window.
  static Knobs tiny(uint32_t cluster_bits);

  uint64_t cluster_size() const { return uint64_t{1} << cluster_bits; }
  Geometry geometry() const;
  ImageOptions image_options() const;
  std::string text() const;
};

/// Makes the disks "image" and, as the knobs say, "backing" and "data"; tells the oracle what they
/// hold.
void build_disks(Knobs& knobs, uint64_t seed, SimDisks& disks, Oracle& oracle);

}  // namespace byre
