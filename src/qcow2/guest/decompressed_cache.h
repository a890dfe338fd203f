// SPDX-License-Identifier: Apache-2.0
/// DecompressedCache: the last few compressed clusters that were read, decompressed, so that small
/// reads one behind the other decompress each cluster once.
///
/// An entry is named by where its stream lies: offset and size in the image's file.  Those bytes
/// change only after a host cluster that they touch was free: as long as anything refers to the
/// cluster, streams are only added behind others (compressed_packer.h).  So an entry is right until
/// the allocator says that one of its clusters is free (Allocator::set_on_free), and is dropped
/// then. Who asks for a stream holds a pin or a lock since before the lookup that named it (H1),
/// which keeps its clusters from being free: nobody can ask by an old name after the bytes have
/// changed, and nobody who still decompresses the old bytes can leave an entry behind. Those who
/// miss together wait for one of them; when that fails, the others try for themselves.
/// Invariant: an entry that is found holds what its stream, as it is in the file, decompresses to.
/// Cost: a walk over at most 64 entries.
/// Memory: kBytesMax, or two clusters if they are larger; less for an image in a long backing chain
/// (limit()).
/// Not here: decompressing (read.cc), where streams are put (compressed_packer.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "coro/event.h"
#include "coro/task.h"
#include "format/l2.h"
#include "qcow2/core/guards.h"

namespace byre {

class DecompressedCache {
 public:
  static constexpr uint64_t kBytesMax = 4 * MiB;
  using Cluster = std::shared_ptr<const std::vector<std::byte>>;

  /// Reads and decompresses a stream.
  class Source {
   public:
    virtual Task<void> decompress(HostAccess access, Mapping stream, MutableBytes cluster) = 0;

   protected:
    ~Source() = default;
  };
  DecompressedCache(ReadyQueue& ready, const Geometry& geometry);
  DecompressedCache(const DecompressedCache&) = delete;
  ~DecompressedCache();

  /// The cluster of `stream` if it is here; null otherwise.
  Cluster find(const Mapping& stream);
  /// Has `source` decompress it if it is not.
  Task<Cluster> get(HostAccess access, Mapping stream, Source& source);
  /// From here on no more than `bytes`; one cluster of 64 KiB or less is always kept.
  void limit(uint64_t bytes);
  /// `cluster` is free: its bytes will change.
  void forget(HostCluster cluster);

 private:
  struct Entry;
  std::shared_ptr<Entry> look_up(const Mapping& stream);

  ReadyQueue& ready_;
  const Geometry& geometry_;
  size_t entries_max_;
  std::vector<std::shared_ptr<Entry>> entries_;  ///< The one that was used last comes last.
};

}  // namespace byre
