// SPDX-License-Identifier: Apache-2.0
/// TableCache: slices of L2 tables in memory.
///
/// A slice is 4 KiB of a table (a cluster, if that is smaller), so that a random reader of a large
/// disk does not load 64 KiB for each entry.  Slices hold committed entries only: eviction never
/// writes (docs/engine.md, M1).
/// A slice is used while its Ref lives; those are never evicted.  Whoever misses together shares
/// one read; when it fails, the one that read reports it and the others try for themselves.
/// forget() drops the slices of a table that is no longer one: a load that is under way then serves
/// its waiters and is not kept.
/// Invariant: slices hold committed entries only, and a slice that has a Ref is not evicted.
/// Cost: a hash lookup; memory fixed by `bytes` (two slices at least).
/// Not here: staged entries (stages.h), which slice holds an entry (map.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "block/device.h"
#include "coro/event.h"
#include "format/types.h"

namespace byre {

class TableCache {
  struct Slot;

 public:
  TableCache(ReadyQueue& ready, Device& file, uint64_t cluster_size, uint64_t bytes);
  ~TableCache();

  uint64_t slice_size() const { return slice_size_; }
  /// From here on no more than `bytes`; what is there stays.
  void limit(uint64_t bytes) { slots_max_ = std::max<uint64_t>(2, bytes / slice_size_); }

  class [[nodiscard]] Ref {
   public:
    Ref() = default;
    Ref(Ref&& other) noexcept : cache_(other.cache_), slot_(std::exchange(other.slot_, nullptr)) {}
    Ref& operator=(Ref&& other) noexcept {
      release();
      cache_ = other.cache_;
      slot_ = std::exchange(other.slot_, nullptr);
      return *this;
    }
    ~Ref() { release(); }
    Bytes bytes() const;
    /// For the commit, once what it wrote is on the disk.
    MutableBytes mutable_bytes();
    explicit operator bool() const { return slot_ != nullptr; }

   private:
    friend class TableCache;
    Ref(TableCache& cache, Slot& slot);
    void release();
    TableCache* cache_ = nullptr;
    Slot* slot_ = nullptr;
  };

  /// The slice at `at` (a multiple of slice_size()) if it is in memory.
  Ref find(HostOffset at);
  /// Loads it if it is not.
  Task<Ref> get(HostOffset at);
  /// The same; if it is not there, those behind it, up to `length` bytes in all, come with it in
  /// one read, up to the first that is there and to half of the cache.  The caller wants them next.
  Task<Ref> get(HostOffset at, uint64_t length);
  /// What is on the disk at `at`, read by somebody else: slices that are not here are added, while
  /// there is room without an eviction.  Nobody has changed the place since it was read.
  void put(HostOffset at, Bytes bytes);
  /// Drops what is kept of [at, at + length).
  void forget(HostOffset at, uint64_t length);
  void forget_all();
  uint64_t loads() const { return loads_; }

 private:
  struct Slot {
    explicit Slot(ReadyQueue& ready) : loaded(ready) {}
    HostOffset at;
    uint32_t refs = 0;
    bool indexed = false;  ///< In index_; a doomed slot is not.
    bool recent = false;   ///< Used since the hand of the clock passed.
    enum class State : uint8_t { empty, loading, ready, failed } state = State::empty;
    std::unique_ptr<std::byte[]> bytes;
    Event loaded;
  };
  Slot* free_slot();
  /// The slices at `at` and behind it, which begin to load; empty: no slot is free.
  std::vector<Ref> begin_load(HostOffset at, uint64_t length);
  Task<void> read_slices(HostOffset at, std::span<Ref> slices);
  void end_load(Slot& slot, bool loaded);

  ReadyQueue& ready_;
  Device& file_;
  uint64_t slice_size_;
  uint64_t slots_max_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::unordered_map<HostOffset, Slot*> index_;
  size_t hand_ = 0;
  uint64_t loads_ = 0;
  Event room_;  ///< A slot has lost its last Ref.
};

}  // namespace byre
