// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/give_up.h"

#include "qcow2/guest/guest_disk.h"

namespace byre {

void GiveUp::table_alone(HostCluster at) {
  disk_.map->cache().forget(disk_.geometry().start_of(at), disk_.cluster_size());
  // Still metadata while a snapshot refers to it.
  if (disk_.allocator->refcount(at) <= 1) disk_.metadata.remove(at);
  disk_.allocator->release({at, 1});
}

Task<void> GiveUp::mapping(const Mapping& mapping) {
  const HostSpan span = hosts(mapping, disk_.geometry());
  if (span.count == 0) co_return;
  const Result<void> loaded = co_await disk_.load_refcounts_of(mapping).result();
  if (loaded) {
    disk_.allocator->release(span);
    ++released_;
  } else if (!first_) {
    first_ = loaded.error().copy();
  }
}

Task<void> GiveUp::table(HostCluster at) {
  const Geometry& g = disk_.geometry();
  const HostOffset offset = g.start_of(at);
  std::vector<std::byte> bytes(disk_.cluster_size());
  Result<void> read =
      co_await disk_.file->read(offset.value, bytes, IoTag::l1_shrink_load).result();
  if (read) read = co_await disk_.allocator->load({at, 1}).result();
  if (!read) {
    if (!first_) first_ = std::move(read).error().while_doing(cat("L2 table at ", offset));
    co_return;
  }
  for (uint64_t i = 0; i < g.l2_entries(); ++i) {
    const Result<Mapping> found = decode_l2(load_l2(bytes, i, g), g);
    if (found) co_await mapping(*found);
  }
  table_alone(at);
  if (released_ < disk_.options.staged_max) co_return;  // Bounds what is in limbo.
  co_await disk_.committer->flush(IoTag::commit_sync);
  released_ = 0;
}

Task<void> GiveUp::end() {
  if (first_) co_await fail(std::move(first_));
}

}  // namespace byre
