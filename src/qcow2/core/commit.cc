// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/commit.h"

#include <algorithm>
#include <set>

#include "format/header.h"
#include "qcow2/core/l2_patch.h"

namespace byre {

namespace {
constexpr size_t kParallelWrites = 16;
/// With lazy refcounts: changes kept in memory before they are written after all.
constexpr size_t kPostponedMax = 256 * 1024;
}  // namespace

/// One write of a step; what it writes is composed when its turn comes.
struct Committer::Job {
  enum class Kind : uint8_t { block_sectors, table_sectors, new_l2, slice, l1_sector } kind;
  uint64_t index = 0;
  uint64_t first = 0;
  uint64_t count = 0;
  HostSpan table{};
  IoTag tag = IoTag::none;
};

struct Committer::Jobs {
  std::vector<Job> list;
  size_t next = 0;
  bool failed = false;
};

Committer::Committer(ReadyQueue& ready, Device& file, bool external_data, SyncLatch& latch,
                     HeaderState& header, Stages& stages, Epochs& epochs, Map& map,
                     Allocator& allocator, MetadataSet& metadata, bool lazy)
    : ready_(ready),
      file_(file),
      external_data_(external_data),
      latch_(latch),
      header_(header),
      geometry_(header.head().geometry),
      stages_(stages),
      epochs_(epochs),
      map_(map),
      allocator_(allocator),
      metadata_(metadata),
      lazy_(lazy),
      finished_(ready) {}

bool Committer::has_work(bool with_refcounts) const {
  if (stages_.committing) return true;
  const Generation& open = stages_.open;
  if (!open.entries.empty() || !open.l2_tables.empty()) return true;
  return with_refcounts && !open.empty();
}

Task<void> Committer::flush(IoTag tag) {
  const uint64_t ticket = ++wanted_;
  while (done_ < ticket) {
    if (running_) {
      co_await finished_.wait();
      continue;
    }
    running_ = true;
    const uint64_t upto = wanted_;  // Whatever completed before this line is covered.
    Result<void> result = co_await run(tag).result();
    running_ = false;
    if (result) {
      done_ = std::max(done_, upto);
    } else {
      ++failures_;
    }
    finished_.notify();
    co_await std::move(result);
  }
}

Task<void> Committer::flush_all() {
  ++write_all_;
  Result<void> result = co_await flush(IoTag::flush).result();
  --write_all_;
  co_await std::move(result);
}

Task<void> Committer::finish() {
  co_await flush_all();
  if (header_.dirty()) co_await header_.change({.dirty = false});  // O7
}

bool Committer::writes_refcounts() const {
  // A table that moves cannot wait: its old place is given up with this generation (O4).
  return !lazy_ || write_all_ != 0 || stages_.open.refcount_table ||
         stages_.open.refcounts.size() > kPostponedMax;
}

Task<void> Committer::run(IoTag tag) {
  if (latch_) co_await fail(latch_.error().copy());
  if (stages_.committing) {  // Its pointers could not be written; nothing else goes before it.
    co_await step_refcount_pointers();
    co_await step_cluster_pointers(tag);
    finish_generation();
  }
  bool with_refcounts = writes_refcounts();
  if (!has_work(with_refcounts)) {
    // Nothing is staged, but limbo may wait for this generation: a reservation that was dropped, a
    // table that was switched without a commit.
    const uint64_t number = stages_.open.number;
    if (!allocator_.limbo_empty()) ++stages_.open.number;
    co_await latch_.sync_data(tag);
    co_await sync(tag);
    if (stages_.open.number == number) co_return;
    stages_.durable_end = number + 1;
    epochs_.advance();
    allocator_.reclaim();
    co_return;
  }
  if (!with_refcounts && !header_.dirty()) {
    co_await header_.change({.dirty = true});  // O7
    with_refcounts = writes_refcounts();
  }
  stages_.rotate();
  if (!with_refcounts) postpone_refcounts();
  const Generation& generation = *stages_.committing;
  sorted_.assign(generation.entries.begin(), generation.entries.end());
  std::sort(sorted_.begin(), sorted_.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  Result<void> step = co_await step_unreferenced(tag).result();
  if (step && generation.refcount_table) step = co_await switch_refcount_table().result();
  if (!step) {  // No pointer has changed; or there will be no other commit.
    allocator_.refold(generation.number);
    stages_.fold();
    co_await std::move(step);
  }
  co_await step_refcount_pointers();
  co_await step_cluster_pointers(tag);
  finish_generation();
}

/// Lazy refcounts: the changes wait in the open generation until flush_all().
void Committer::postpone_refcounts() {
  Generation& from = *stages_.committing;
  Generation& to = stages_.open;
  to.refcounts.merge(from.refcounts);  // The open generation has just begun: nothing to add up.
  to.refcount_blocks.merge(from.refcount_blocks);
  from.refcounts.clear();
  from.refcount_blocks.clear();
}

/// Step 1 (O1, O2): everything that the pointers of steps 2 and 3 will lead to.
Task<void> Committer::step_unreferenced(IoTag tag) {
  const Generation& generation = *stages_.committing;
  co_await latch_.sync_data(tag);
  Jobs jobs;
  const uint64_t per_sector = kSectorSize * 8 / geometry_.refcount_bits();
  const uint64_t sectors_per_cluster = geometry_.cluster_size() / kSectorSize;
  std::set<std::pair<uint64_t, uint64_t>> sectors;
  for (const auto& [cluster, change] : generation.refcounts) {
    const uint64_t index = geometry_.refcount_table_index(cluster);
    if (generation.refcount_blocks.contains(index)) continue;
    sectors.emplace(index, geometry_.refcount_block_index(cluster) / per_sector);
  }
  for (const auto& [index, sector] : sectors) {
    if (!jobs.list.empty() && jobs.list.back().index == index &&
        jobs.list.back().first + jobs.list.back().count == sector) {
      ++jobs.list.back().count;
    } else {
      jobs.list.push_back({Job::Kind::block_sectors, index, sector, 1, {}, IoTag::refcount_update});
    }
  }
  for (const auto& [index, at] : generation.refcount_blocks) {
    jobs.list.push_back(
        {Job::Kind::block_sectors, index, 0, sectors_per_cluster, {}, IoTag::refcount_allocate});
  }
  if (generation.refcount_table) {
    const HostSpan table{generation.refcount_table->at, generation.refcount_table->clusters};
    const uint64_t count = table.count * sectors_per_cluster;
    constexpr uint64_t kStep = 2048;
    for (uint64_t first = 0; first < count; first += kStep) {
      jobs.list.push_back({Job::Kind::table_sectors, 0, first, std::min(kStep, count - first),
                           table, IoTag::refcount_table_grow});
    }
  }
  for (const auto& [index, table] : generation.l2_tables)
    jobs.list.push_back({Job::Kind::new_l2, index});
  const bool wrote = !jobs.list.empty();
  co_await perform(jobs);
  if (wrote || (generation.links_data && !external_data_)) {
    co_await sync(tag == IoTag::flush ? tag : IoTag::commit_sync);
  }
  stages_.committing->data_durable = true;
}

/// Step 2 with a new refcount table: the header leads to it, durably, or nothing has changed (O6).
Task<void> Committer::switch_refcount_table() {
  const NewRefcountTable table = *stages_.committing->refcount_table;
  co_await header_.change(
      {.refcount_table =
           HeaderEdit::Table{geometry_.start_of(table.at), static_cast<uint32_t>(table.clusters)}});
  allocator_.set_durable_table_at({table.at, table.clusters});
}

/// Step 2 otherwise: refcount table -> refcount blocks, before any pointer to what they count.
Task<void> Committer::step_refcount_pointers() {
  const Generation& generation = *stages_.committing;
  if (generation.refcount_table) co_return;  // It was written with its entries.
  if (generation.refcount_blocks.empty()) co_return;
  Jobs jobs;
  std::set<uint64_t> sectors;
  for (const auto& [index, at] : generation.refcount_blocks)
    sectors.insert(index * 8 / kSectorSize);
  for (const uint64_t sector : sectors) {
    jobs.list.push_back({Job::Kind::table_sectors, 0, sector, 1, allocator_.durable_table_at(),
                         IoTag::refcount_table_update});
  }
  co_await perform(jobs);
  co_await sync(IoTag::commit_sync);
}

/// Step 3: pointers to clusters whose contents and refcounts are durable.
Task<void> Committer::step_cluster_pointers(IoTag tag) {
  const Generation& generation = *stages_.committing;
  Jobs jobs;
  const uint64_t slice = map_.cache().slice_size();
  for (uint64_t i = 0; i < sorted_.size();) {
    const GuestCluster cluster = sorted_[i].first;
    const uint64_t l1_index = geometry_.l1_index(cluster);
    const bool in_new_table = generation.l2_tables.contains(l1_index);
    uint64_t end = i + 1;
    const uint64_t part = geometry_.l2_index(cluster) * geometry_.l2_entry_size() / slice;
    while (end < sorted_.size() && geometry_.l1_index(sorted_[end].first) == l1_index &&
           geometry_.l2_index(sorted_[end].first) * geometry_.l2_entry_size() / slice == part) {
      ++end;
    }
    // Entries of a new table went down with it in step 1.
    if (!in_new_table) jobs.list.push_back({Job::Kind::slice, 0, i, end - i});
    i = end;
  }
  std::set<uint64_t> sectors;
  for (const auto& [index, table] : generation.l2_tables) sectors.insert(index * 8 / kSectorSize);
  for (const uint64_t sector : sectors) jobs.list.push_back({Job::Kind::l1_sector, sector});
  if (jobs.list.empty()) co_return;
  co_await perform(jobs);
  co_await sync(tag == IoTag::flush ? tag : IoTag::commit_sync);
}

void Committer::finish_generation() {
  const Generation& generation = *stages_.committing;
  for (const auto& [index, table] : generation.l2_tables) {
    map_.set_l1(index, {table.at, true});
    if (!table.base) continue;
    map_.cache().forget(geometry_.start_of(*table.base), geometry_.cluster_size());
    // Still metadata while a snapshot refers to it.
    if (allocator_.refcount(*table.base) <= 1) metadata_.remove(*table.base);
  }
  sorted_.clear();
  stages_.committed();
  epochs_.advance();
  ++commits_;
  allocator_.reclaim();
  if (on_durable_) on_durable_();
}

/// Runs the jobs, some at a time; after a failure no more begin.
Task<void> Committer::perform(Jobs& jobs) {
  Scope scope(ready_);
  const size_t workers = std::min(kParallelWrites, jobs.list.size());
  for (size_t i = 0; i < workers; ++i) scope.spawn(worker(jobs));
  co_await scope.join();
}

Task<void> Committer::worker(Jobs& jobs) {
  while (!jobs.failed && jobs.next < jobs.list.size()) {
    const Job job = jobs.list[jobs.next++];
    Task<void> write;
    switch (job.kind) {
      case Job::Kind::block_sectors:
        write = write_block_sectors(job.index, job.first, job.count, job.tag);
        break;
      case Job::Kind::table_sectors:
        write = write_table_sectors(job.table, job.first, job.count, job.tag);
        break;
      case Job::Kind::new_l2:
        write = write_new_l2(job.index);
        break;
      case Job::Kind::slice: {
        const GuestCluster cluster = sorted_[job.first].first;
        const Result<L1Entry> table = decode_l1(map_.l1()[geometry_.l1_index(cluster)], geometry_);
        BYRE_ASSERT(table && table->l2 && table->copied);  // prepare() saw to it.
        write = write_slice(map_.slice_of(*table->l2, cluster), job.first, job.count);
        break;
      }
      case Job::Kind::l1_sector:
        write = write_l1_sector(job.index);
        break;
    }
    Result<void> result = co_await std::move(write).result();
    if (!result) {
      jobs.failed = true;
      co_await std::move(result);
    }
  }
}

Task<void> Committer::write_block_sectors(uint64_t index, uint64_t first, uint64_t count,
                                          IoTag tag) {
  std::vector<std::byte> bytes(count * kSectorSize);
  for (uint64_t i = 0; i < count; ++i) {
    allocator_.compose_block(index, first + i,
                             MutableBytes(bytes).subspan(i * kSectorSize, kSectorSize));
  }
  const HostOffset at = geometry_.start_of(allocator_.block_at(index)) + first * kSectorSize;
  co_await file_.write(at.value, bytes, {.tag = tag}).doing("refcount block at ", at);
}

Task<void> Committer::write_table_sectors(HostSpan table, uint64_t first, uint64_t count,
                                          IoTag tag) {
  std::vector<std::byte> bytes(count * kSectorSize);
  for (uint64_t i = 0; i < count; ++i) {
    allocator_.compose_table(first + i, MutableBytes(bytes).subspan(i * kSectorSize, kSectorSize));
  }
  const HostOffset at = geometry_.start_of(table.first) + first * kSectorSize;
  co_await file_.write(at.value, bytes, {.tag = tag}).doing("refcount table at ", at);
}

Task<void> Committer::write_new_l2(uint64_t l1_index) {
  const NewL2Table table = stages_.committing->l2_tables.at(l1_index);
  L2Patch fresh(geometry_, geometry_.start_of(table.at),
                std::vector<std::byte>(geometry_.cluster_size()));
  if (table.base) {
    fresh = co_await L2Patch::load(file_, geometry_, *table.base);
    if (allocator_.refcount(*table.base) > 1)
      co_await allocator_.clear_shared(fresh.mutable_bytes());
  }
  const auto begin =
      std::lower_bound(sorted_.begin(), sorted_.end(), geometry_.first_of_l1(l1_index),
                       [](const auto& pair, GuestCluster cluster) { return pair.first < cluster; });
  for (auto it = begin; it != sorted_.end() && geometry_.l1_index(it->first) == l1_index; ++it) {
    fresh.set(geometry_.l2_index(it->first), it->second);
  }
  co_await fresh.write_copy(file_, table.at);
}

Task<void> Committer::write_slice(HostOffset at, uint64_t first, uint64_t count) {
  // The slice stays in the cache until it is written, so that no load can bring an older image
  // back.
  TableCache::Ref slice = co_await map_.cache().get(at);
  L2Patch patch(geometry_, at, {slice.bytes().begin(), slice.bytes().end()});
  for (uint64_t i = first; i < first + count; ++i)
    patch.set(map_.index_in_slice(sorted_[i].first), sorted_[i].second);
  co_await patch.write(file_);
  copy(slice.mutable_bytes(), patch.bytes());
}

Task<void> Committer::write_l1_sector(uint64_t sector) {
  const std::vector<uint64_t>& l1 = map_.l1();
  const uint64_t per_sector = kSectorSize / 8;
  const uint64_t first = sector * per_sector;
  const uint64_t count = std::min<uint64_t>(per_sector, l1.size() - first);
  std::vector<std::byte> bytes(count * 8);
  for (uint64_t i = 0; i < count; ++i) {
    const auto fresh = stages_.committing->l2_tables.find(first + i);
    const bool is_new = fresh != stages_.committing->l2_tables.end();
    store_be(bytes, i * 8, is_new ? encode_l1({fresh->second.at, true}, geometry_) : l1[first + i]);
  }
  const uint64_t at = header_.head().header.l1_offset.value + first * 8;
  co_await file_.write(at, bytes, {.tag = IoTag::l1_update}).doing("L1 table at ", hex(at));
}

}  // namespace byre
