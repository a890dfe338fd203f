// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/allocator.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"
#include "format/limits.h"
#include "format/refcount.h"
#include "io/buffer.h"

namespace byre {

Reservation::Reservation(Reservation&& other) noexcept
    : allocator_(std::exchange(other.allocator_, nullptr)),
      span_(std::exchange(other.span_, {})),
      times_(other.times_),
      all_zero_(other.all_zero_),
      zero_(std::move(other.zero_)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    drop();
    allocator_ = std::exchange(other.allocator_, nullptr);
    span_ = std::exchange(other.span_, {});
    times_ = other.times_;
    all_zero_ = other.all_zero_;
    zero_ = std::move(other.zero_);
  }
  return *this;
}

void Reservation::keep(uint64_t count) {
  BYRE_ASSERT(count <= span_.count);
  span_ = {span_.first + count, span_.count - count};
  if (!zero_.empty())
    zero_.erase(zero_.begin(), zero_.begin() + static_cast<std::ptrdiff_t>(count));
}

void Reservation::drop() {
  for (uint64_t i = 0; allocator_ && i < times_; ++i) allocator_->release(span_);
  allocator_ = nullptr;
  span_ = {};
}

Allocator::Allocator(ReadyQueue& ready, Device& file, const Geometry& geometry, Stages& stages,
                     Epochs& epochs, MetadataSet& metadata, Options options,
                     std::vector<uint64_t> table, HostSpan table_at)
    : file_(file),
      geometry_(geometry),
      stages_(stages),
      epochs_(epochs),
      metadata_(metadata),
      options_(options),
      table_(std::move(table)),
      table_at_(table_at),
      durable_table_at_(table_at),
      regions_(table_.size()),
      mutex_(ready),
      load_mutex_(ready),
      never_used_(geometry.clusters_for(file.size())),
      fresh_is_zero_(file.new_space_is_zero()),
      limbo_moved_(ready) {}

Allocator::~Allocator() = default;

Allocator::Region& Allocator::region_of(HostCluster cluster) const {
  const uint64_t index = geometry_.refcount_table_index(cluster);
  BYRE_ASSERT(index < regions_.size() && regions_[index]);
  return *regions_[index];
}

uint64_t Allocator::refcount(HostCluster cluster) const {
  const Region& region = region_of(cluster);
  const uint64_t within = geometry_.refcount_block_index(cluster);
  const uint8_t count = region.counts[within];
  return count == kMany ? region.many.at(within) : count;
}

void Allocator::set_count(HostCluster cluster, uint64_t count) {
  Region& region = region_of(cluster);
  const uint64_t within = geometry_.refcount_block_index(cluster);
  if (region.counts[within] == kMany) region.many.erase(within);
  region.counts[within] = static_cast<uint8_t>(std::min<uint64_t>(count, kMany));
  if (count >= kMany) region.many[within] = count;
}

void Allocator::change_count(HostCluster cluster, int64_t change) {
  const uint64_t count = refcount(cluster);
  BYRE_ASSERT(change >= 0 || count >= static_cast<uint64_t>(-change));
  set_count(cluster, count + static_cast<uint64_t>(change));
  stages_.open.refcounts[cluster] += change;
}

bool Allocator::loaded(HostSpan span) const {
  if (span.count == 0) return true;
  const uint64_t last = geometry_.refcount_table_index(span.first + (span.count - 1));
  for (uint64_t i = geometry_.refcount_table_index(span.first); i <= last; ++i) {
    if (i >= regions_.size() || !regions_[i]) return false;
  }
  return true;
}

Task<void> Allocator::load(HostSpan span) {
  for (uint64_t i = 0; i < span.count; ++i) {
    const HostCluster cluster = span.first + i;
    const uint64_t index = geometry_.refcount_table_index(cluster);
    if (index >= table_.size() || table_[index] == 0) {
      co_await fail(corrupt("host cluster at ", geometry_.start_of(cluster),
                            " is in use, but no refcount block counts it; run check -r all"));
    }
    if (!regions_[index]) co_await load_region(index);
    if (refcount(cluster) == 0) {
      co_await fail(corrupt("host cluster at ", geometry_.start_of(cluster),
                            " is in use, but its refcount is 0; run check -r all"));
    }
  }
}

Task<void> Allocator::load_all() {
  for (uint64_t index = 0; index < table_.size(); ++index) {
    if (table_[index] != 0 && !regions_[index]) co_await load_region(index);
  }
}

Task<void> Allocator::clear_shared(MutableBytes table) {
  if (geometry_.data_file) co_return;  // Where a cluster is, not whose (X).
  for (uint64_t i = 0; i < geometry_.l2_entries(); ++i) {
    L2Entry entry = load_l2(table, i, geometry_);
    if ((entry.descriptor & kCopied) == 0) continue;
    const Result<Mapping> mapping = decode_l2(entry, geometry_);
    bool shared = !mapping || !mapping->host;
    if (!shared && !loaded({*mapping->host, 1})) {
      const Result<void> counted = co_await load({*mapping->host, 1}).result();
      shared = !counted;
    }
    if (!shared) shared = refcount(*mapping->host) != 1;
    if (!shared) continue;
    entry.descriptor &= ~kCopied;
    store_l2(table, i, entry, geometry_);
  }
}

/// Reads the refcount block of region `index`.  Nothing is staged for a region that is not loaded,
/// so what the disk says is the truth.
Task<void> Allocator::load_region(uint64_t index, bool healing) {
  const Mutex::Hold hold = co_await load_mutex_.lock();
  if (regions_[index]) co_return;
  const Result<std::optional<HostCluster>> at =
      decode_refcount_table_entry(table_[index], geometry_);
  if (!at) co_await fail(corrupt("refcount table entry ", index, ": ", at.error().message()));
  BYRE_ASSERT(at->has_value());
  const HostOffset offset = geometry_.start_of(**at);
  if (!within(offset.value, geometry_.cluster_size(), file_.size())) {
    co_await fail(corrupt("refcount block ", index, " at ", offset,
                          " passes the end of the file; run check -r all"));
  }
  const Buffer buffer(geometry_.cluster_size());
  const MutableBytes block = buffer.bytes();
  co_await file_.read(offset.value, block, IoTag::refcount_load)
      .doing("refcount block ", index, " at ", offset);

  auto region = std::make_unique<Region>();
  region->counts.resize(geometry_.refcount_block_entries());
  for (uint64_t i = 0; i < region->counts.size(); ++i) {
    const uint64_t count = get_refcount(block, i, geometry_.refcount_order);
    region->counts[i] = static_cast<uint8_t>(std::min<uint64_t>(count, kMany));
    if (count >= kMany) region->many[i] = count;
  }
  regions_[index] = std::move(region);
  if (!healing && geometry_.refcount_table_index(**at) == index && refcount(**at) == 0) {
    regions_[index] = nullptr;
    co_await fail(
        corrupt("refcount block ", index, " at ", offset,
                " does not count itself: its cluster would be handed out; run check -r all"));
  }
  count_kept_out(index);
}

void Allocator::keep_out_of_use(HostCluster cluster) {
  kept_out_.insert(cluster);
  const uint64_t index = geometry_.refcount_table_index(cluster);
  if (index < regions_.size() && regions_[index]) count_kept_out(index);
}

bool Allocator::keeps_out(HostSpan span) const {
  const auto at = kept_out_.lower_bound(span.first);
  return at != kept_out_.end() && *at < span.end();
}

/// What leads there counts, though no table that anybody can read does.
void Allocator::count_kept_out(uint64_t index) {
  if (kept_out_.empty()) return;
  const HostCluster end = geometry_.first_of_refcount_table(index + 1);
  for (auto at = kept_out_.lower_bound(geometry_.first_of_refcount_table(index));
       at != kept_out_.end() && *at < end; ++at) {
    if (refcount(*at) != 0) continue;
    set_count(*at, 1);
    mark_for_commit(*at);
  }
}

/// A block that was created sparse may have no space on the host yet.
Task<void> Allocator::back_region(uint64_t index) {
  if (regions_[index]->backed) co_return;
  const HostOffset at = geometry_.start_of(block_at(index));
  co_await file_.allocate(at.value, geometry_.cluster_size())
      .doing("refcount block ", index, " at ", at);
  regions_[index]->backed = true;
}

/// M5: what no refcount protects is not handed out all the same.
Result<void> Allocator::check_no_metadata(HostSpan span) const {
  const auto owned = metadata_.find_in(span);
  if (!owned) return {};
  return corrupt("host cluster at ", geometry_.start_of(*owned),
                 " holds metadata, but its refcount is 0; run check -r all");
}

Result<void> Allocator::check_space(HostSpan span) const {
  const auto bytes = checked_multiply(span.end().value, geometry_.cluster_size());
  if (!bytes || span.end() > geometry_.host_cluster_limit()) {
    return Error(Errc::no_space, "the image has reached the largest size its format allows");
  }
  if (*bytes > options_.host_size_max) {
    return Error(Errc::no_space,
                 cat("the image may not grow beyond ", options_.host_size_max, " bytes"));
  }
  if (!file_.can_grow() && *bytes > file_.size()) {
    return Error(Errc::no_space, cat("the device ends at ", hex(file_.size())));
  }
  return {};
}

/// Makes sure that the file reaches to the end of `span`; metadata gets host blocks, so that a
/// commit does not meet ENOSPC (A1).
Task<void> Allocator::prepare_space(HostSpan span, Use use) {
  co_await check_space(span);
  const uint64_t start = geometry_.start_of(span.first).value;
  const uint64_t end = geometry_.start_of(span.end()).value;
  if (file_.can_grow() && end > file_.size()) {
    const uint64_t ahead = std::min(round_up(end, std::max<uint64_t>(options_.growth_step, 1)),
                                    options_.host_size_max);
    Result<void> raised = co_await file_.resize(ahead).result();
    if (!raised && ahead > end) raised = co_await file_.resize(end).result();
    co_await std::move(raised).doing("grow the image file");
  }
  if (use == Use::metadata)
    co_await file_.allocate(start, end - start).doing("allocate space for metadata");
}

/// H5.
void Allocator::lower_hint(HostCluster freed) {
  if (options_.reuse_freed) hint_ = std::min(hint_, freed.value);
}

void Allocator::reuse_freed() {
  if (std::exchange(options_.reuse_freed, true)) return;
  hint_ = 0;
}

Reservation Allocator::take(HostSpan span) {
  Reservation reservation(*this, span);
  Region* region = nullptr;
  bool all = true;
  bool any = false;
  std::vector<bool> zero(span.count);
  for (uint64_t i = 0; i < span.count; ++i) {
    const HostCluster cluster = span.first + i;
    region = &region_of(cluster);
    const uint64_t within = geometry_.refcount_block_index(cluster);
    BYRE_ASSERT(region->counts[within] == 0);  // H4
    bool reads_zero = fresh_is_zero_ && cluster.value >= never_used_;
    if (!region->zeroed.empty()) {
      reads_zero |= region->zeroed[within];
      region->zeroed[within] = false;
    }
    zero[i] = reads_zero;
    all &= reads_zero;
    any |= reads_zero;
    change_count(cluster, 1);
  }
  reservation.all_zero_ = all;
  if (!all && any) reservation.zero_ = std::move(zero);
  never_used_ = std::max(never_used_, span.end().value);
  end_of_use_ = std::max(end_of_use_, span.end().value);
  clusters_allocated_ += span.count;
  if (clusters_allocated_ > clusters_freed_)
    clusters_peak_ = std::max(clusters_peak_, clusters_allocated_ - clusters_freed_);
  return reservation;
}

void Allocator::register_block(uint64_t index, HostCluster at) {
  BYRE_ASSERT(table_[index] == 0 && !regions_[index]);
  table_[index] = geometry_.start_of(at).value;
  regions_[index] = std::make_unique<Region>();
  regions_[index]->counts.resize(geometry_.refcount_block_entries());
  stages_.open.refcount_blocks[index] = at;
  metadata_.add(at);
  count_kept_out(index);
}

/// Gives region `index` a refcount block: its own first cluster, which it therefore counts itself.
Task<void> Allocator::add_region(uint64_t index) {
  if (index >= table_.size()) {
    co_await grow_table(index, index + 1);
    co_return;
  }
  HostSpan block{geometry_.first_of_refcount_table(index), 1};
  while (keeps_out({block.first, 1})) ++block.first;
  co_await check_no_metadata(block);
  co_await prepare_space(block, Use::metadata);
  register_block(index, block.first);
  take(block).keep();
}

/// Plans a larger refcount table at the start of region `index`, the first without a block, and
/// behind it the blocks that count the table, themselves, and what is asked for.  Both numbers grow
/// until they fit each other (A1).
Task<void> Allocator::grow_table(uint64_t index, uint64_t entries_min) {
  index = std::max(index, static_cast<uint64_t>(table_.size()));
  const HostCluster start = geometry_.first_of_refcount_table(index);
  uint64_t table_clusters = 1;
  uint64_t blocks = 1;
  for (;;) {
    const HostCluster last = start + (table_clusters + blocks - 1);
    const uint64_t needed = std::max(geometry_.refcount_table_index(last) + 1, entries_min);
    if (needed > kRefcountTableEntriesMax) {
      co_await fail(Error(Errc::no_space, "the refcount table has reached its largest size"));
    }
    const uint64_t roomy = std::min(needed + needed / 2, kRefcountTableEntriesMax);
    const uint64_t clusters = div_ceil(roomy, geometry_.refcount_table_entries_per_cluster());
    const uint64_t wanted_blocks = geometry_.refcount_table_index(last) - index + 1;
    if (clusters <= table_clusters && wanted_blocks <= blocks) break;
    table_clusters = std::max(table_clusters, clusters);
    blocks = std::max(blocks, wanted_blocks);
  }
  if (keeps_out({start, table_clusters + blocks})) {
    co_await grow_table(index + 1, entries_min);
    co_return;
  }
  const HostSpan span{start, table_clusters + blocks};
  co_await check_no_metadata(span);
  // Of a damaged image the old table may have no refcount; then there is nothing to give up.
  const bool counted = (co_await load(table_at_).result()).has_value();
  co_await prepare_space(span, Use::metadata);

  table_.resize(table_clusters * geometry_.refcount_table_entries_per_cluster());
  regions_.resize(table_.size());
  for (uint64_t i = 0; i < blocks; ++i) register_block(index + i, start + (table_clusters + i));
  take(span).keep();
  if (counted) release(table_at_);
  metadata_.remove_run(table_at_);
  table_at_ = {start, table_clusters};
  metadata_.add_run(table_at_);
  stages_.open.refcount_table = NewRefcountTable{start, table_clusters};
}

Task<Reservation> Allocator::reserve(uint64_t count, Use use) {
  BYRE_ASSERT(count > 0);
  const Mutex::Hold hold = co_await mutex_.lock();
  for (;;) {
    const uint64_t index = geometry_.refcount_table_index({hint_});
    co_await check_space({{hint_}, 1});
    if (index >= table_.size() || table_[index] == 0) co_await add_region(index);
    if (!regions_[index]) co_await load_region(index);
    co_await back_region(index);
    const uint64_t from = hint_;  // It may have moved down meanwhile.
    if (geometry_.refcount_table_index({from}) != index) continue;

    const Region& region = *regions_[index];
    const uint64_t within = geometry_.refcount_block_index({from});
    const void* found =
        std::memchr(region.counts.data() + within, 0, region.counts.size() - within);
    if (!found) {
      hint_ = geometry_.first_of_refcount_table(index + 1).value;
      continue;
    }
    const auto free_at =
        static_cast<uint64_t>(static_cast<const uint8_t*>(found) - region.counts.data());
    uint64_t length = 1;
    while (length < count && free_at + length < region.counts.size() &&
           region.counts[free_at + length] == 0)
      ++length;
    HostSpan span{geometry_.first_of_refcount_table(index) + free_at, length};
    hint_ = span.first.value;
    co_await check_no_metadata(span);
    // A run that passes the end of the space is shortened to what fits.
    while (span.count > 1 && !check_space(span)) span.count /= 2;
    co_await prepare_space(span, use);
    if (hint_ < span.first.value) continue;  // Something below came free: first fit.
    hint_ = span.end().value;
    co_return take(span);
  }
}

Task<Reservation> Allocator::reserve_behind(HostCluster cluster) {
  const HostSpan wanted{cluster + 1, 1};
  const uint64_t index = geometry_.refcount_table_index(wanted.first);
  const auto is_free = [&] {
    return (options_.reuse_freed || wanted.first.value >= hint_) &&
           wanted.end().value <= end_of_use_ && loaded(wanted) && refcount(wanted.first) == 0;
  };
  if (is_free()) {
    const Mutex::Hold hold = co_await mutex_.lock();
    co_await back_region(index);
    if (is_free() && check_no_metadata(wanted)) {
      if (hint_ == wanted.first.value) ++hint_;
      co_return take(wanted);
    }
  }
  co_return co_await reserve(1, Use::data);
}

Reservation Allocator::share(HostCluster cluster, uint64_t times) {
  BYRE_ASSERT(refcount_max(geometry_.refcount_order) - refcount(cluster) >= times);  // A5
  change_count(cluster, static_cast<int64_t>(times));
  Reservation reservation(*this, {cluster, 1});
  reservation.times_ = times;
  return reservation;
}

void Allocator::keep_one_reference(HostCluster cluster) {
  BYRE_ASSERT(refcount(cluster) != 0 && !in_limbo(cluster));
  set_count(cluster, 1);
  mark_for_commit(cluster);
}

Task<Reservation> Allocator::reserve_run(uint64_t count) {
  if (count == 1) co_return co_await reserve(1, Use::metadata);
  const Mutex::Hold hold = co_await mutex_.lock();
  // Inside one region, or in the next one after its block.
  if (count < geometry_.refcount_block_entries()) {
    for (uint64_t index = geometry_.refcount_table_index({hint_});; ++index) {
      co_await check_space({geometry_.first_of_refcount_table(index), count});
      if (index >= table_.size() || table_[index] == 0) co_await add_region(index);
      if (!regions_[index]) co_await load_region(index);
      const std::vector<uint8_t>& counts = regions_[index]->counts;
      const auto found = std::search_n(counts.begin(), counts.end(),
                                       static_cast<std::ptrdiff_t>(count), uint8_t{0});
      if (found == counts.end()) continue;
      const HostSpan span{
          geometry_.first_of_refcount_table(index) + static_cast<uint64_t>(found - counts.begin()),
          count};
      co_await check_no_metadata(span);
      co_await prepare_space(span, Use::metadata);
      co_return take(span);
    }
  }
  // Across regions: the run at the start of a row of regions without blocks, its blocks behind it.
  uint64_t index = table_.size();
  while (index > 0 && table_[index - 1] == 0) --index;
  uint64_t blocks = 1;
  for (;;) {
    const HostCluster last = geometry_.first_of_refcount_table(index) + (count + blocks - 1);
    const uint64_t wanted = geometry_.refcount_table_index(last) - index + 1;
    if (wanted > blocks) {
      blocks = wanted;
      continue;
    }
    if (keeps_out({geometry_.first_of_refcount_table(index), count + blocks})) {
      ++index;
      blocks = 1;
      continue;
    }
    if (index + blocks <= table_.size()) break;
    // The table grows into the regions at `index` itself, so begin behind it.
    co_await grow_table(index, index + blocks + count / geometry_.refcount_block_entries() + 2);
    index = table_.size();
    while (index > 0 && table_[index - 1] == 0) --index;
    blocks = 1;
  }
  const HostCluster start = geometry_.first_of_refcount_table(index);
  const HostSpan span{start, count + blocks};
  co_await check_no_metadata(span);
  co_await prepare_space(span, Use::metadata);
  for (uint64_t i = 0; i < blocks; ++i) register_block(index + i, start + (count + i));
  take({start + count, blocks}).keep();
  co_return take({start, count});
}

void Allocator::release(HostSpan span) {
  if (span.count == 0) return;
  BYRE_ASSERT(loaded(span));
  HostSpan run{span.first, 0};
  const auto push = [&] {
    if (run.count != 0) limbo_.push_back({run, epochs_.current(), stages_.open.number});
  };
  for (uint64_t i = 0; i < span.count; ++i) {
    const HostCluster cluster = span.first + i;
    if (never_freed_.contains(cluster)) {
      push();
      run = {cluster + 1, 0};
      continue;
    }
    uint64_t& references = limbo_references_[cluster];
    if (references < refcount(cluster)) {
      ++references;
      ++run.count;
      if (references == refcount(cluster) && packing_ == cluster) packing_.reset();  // P1
      continue;
    }
    push();
    run = {cluster + 1, 0};
  }
  push();
}

void Allocator::refold(uint64_t number) {
  for (Limbo& entry : limbo_) {
    if (entry.generation == number) entry.generation = number + 1;
  }
}

void Allocator::drop_limbo_reference(HostCluster cluster) {
  const auto references = limbo_references_.find(cluster);
  if (references != limbo_references_.end() && --references->second == 0) {
    limbo_references_.erase(references);
  }
}

void Allocator::free_now(HostCluster cluster, bool zeroed) {
  drop_limbo_reference(cluster);
  change_count(cluster, -1);
  metadata_.remove(cluster);  // Of a table that several L1 entries led to, the last one has gone.
  Region& region = region_of(cluster);
  const uint64_t within = geometry_.refcount_block_index(cluster);
  if (zeroed && region.zeroed.empty()) region.zeroed.resize(region.counts.size());
  if (!region.zeroed.empty()) region.zeroed[within] = zeroed;
  lower_hint(cluster);
  ++clusters_freed_;
  if (on_free_) on_free_(cluster);
}

void Allocator::reclaim() {
  if (reclaiming_) return;
  reclaiming_ = true;
  std::vector<uint64_t> to_punch;
  bool moved = false;
  while (!limbo_.empty()) {
    const Limbo& oldest = limbo_.front();
    if (oldest.generation >= stages_.durable_end || !epochs_.quiet(oldest.epoch)) break;  // H3
    const HostSpan span = oldest.span;
    limbo_.pop_front();
    moved = true;
    for (uint64_t i = 0; i < span.count; ++i) {
      const HostCluster cluster = span.first + i;
      if (refcount(cluster) > 1) {
        drop_limbo_reference(cluster);
        change_count(cluster, -1);
      } else if (options_.punch) {
        to_punch.push_back(cluster.value);  // Its reference stands until the hole is made.
      } else {
        free_now(cluster, false);
      }
    }
  }
  if (!to_punch.empty()) {
    std::sort(to_punch.begin(), to_punch.end());
    std::vector<HostSpan> runs;
    for (const uint64_t cluster : to_punch) {
      if (!runs.empty() && runs.back().end().value == cluster) {
        ++runs.back().count;
      } else {
        runs.push_back({{cluster}, 1});
      }
    }
    ++punching_;
    spawn_(punch(std::move(runs)));
  }
  reclaiming_ = false;
  if (moved && limbo_moved_.has_waiters()) limbo_moved_.notify();
}

/// True if the run reads as zeros from here on.
Task<bool> Allocator::make_hole(HostSpan run) {
  if (!options_.punch) co_return false;
  const uint64_t offset = geometry_.start_of(run.first).value;
  const uint64_t length = run.count * geometry_.cluster_size();
  // zero(), not discard(): only that promises zeros for the next owner (A4).
  Result<void> punched =
      co_await file_.zero(offset, length, {.may_unmap = true, .no_fallback = true}).result();
  // Blocks that cannot be given back are no reason to fail: the cluster is free all the same.
  if (!punched && punched.error().code() == Errc::unsupported) options_.punch = false;
  co_return punched.has_value() && fresh_is_zero_;
}

/// Holes for clusters that nothing points to, on the disk or in flight; free only afterwards (D2).
Task<void> Allocator::punch(std::vector<HostSpan> runs) {
  for (const HostSpan& run : runs) {
    const bool zeroed = co_await make_hole(run);
    for (uint64_t i = 0; i < run.count; ++i) free_now(run.first + i, zeroed);
  }
  --punching_;
  limbo_moved_.notify();
}

std::unordered_set<HostCluster> Allocator::refcount_blocks() const {
  std::unordered_set<HostCluster> blocks;
  for (uint64_t i = 0; i < table_.size(); ++i) {
    if (table_[i] != 0) blocks.insert(block_at(i));
  }
  return blocks;
}

Result<void> Allocator::can_raise(const RefcountChanges& changes) const {
  const uint64_t most = refcount_max(geometry_.refcount_order);
  Result<void> result;
  changes.each([&](HostCluster cluster, uint64_t change) {
    const uint64_t count = refcount(cluster);
    if (count <= most && change <= most - count) return true;
    result = Error(Errc::invalid,
                   cat("host cluster at ", geometry_.start_of(cluster), " has ", count,
                       " references, and refcounts of ", geometry_.refcount_bits(), " bits end at ",
                       most, "; delete a snapshot, or use wider refcounts"),
                   EFBIG);
    return false;
  });
  return result;
}

Task<void> Allocator::raise_to(HostCluster cluster, uint64_t references) {
  const uint64_t index = geometry_.refcount_table_index(cluster);
  if (!regions_[index]) co_await load_region(index, true);
  const uint64_t most = refcount_max(geometry_.refcount_order);
  if (references > most) never_freed_.insert(cluster);
  if (refcount(cluster) >= std::min(references, most)) co_return;
  set_count(cluster, std::min(references, most));
  end_of_use_ = std::max(end_of_use_, cluster.value + 1);
  mark_for_commit(cluster);
}

Task<void> Allocator::make_region(uint64_t index, std::optional<HostCluster> at) {
  if (index >= table_.size()) {
    // At the start of a region of which the file has nothing yet: what it has may be in use.
    const HostCluster end{geometry_.clusters_for(file_.size())};
    const uint64_t last = geometry_.refcount_table_index(end);
    const bool untouched = geometry_.first_of_refcount_table(last) >= end;
    co_await grow_table(untouched ? last : last + 1, index + 1);
    if (table_[index] != 0) co_return;
  }
  if (!at) {
    hint_ = geometry_.clusters_for(file_.size());
    Reservation elsewhere = co_await reserve(1, Use::metadata);
    hint_ = 0;
    register_block(index, elsewhere.first());
    elsewhere.keep();
    co_return;
  }
  co_await prepare_space({*at, 1}, Use::metadata);
  register_block(index, *at);
  take({*at, 1}).keep();
}

Result<void> Allocator::can_lower(const RefcountChanges& changes) const {
  Result<void> result;
  changes.each([&](HostCluster cluster, uint64_t change) {
    if (refcount(cluster) >= change) return true;
    result = corrupt("host cluster at ", geometry_.start_of(cluster), " has refcount ",
                     refcount(cluster), ", but at least ", change, " references; run check -r all");
    return false;
  });
  return result;
}

/// The commit writes whole sectors, so one entry for each is enough.
void Allocator::mark_for_commit(HostCluster cluster) {
  const uint64_t per_sector = kSectorSize * 8 / geometry_.refcount_bits();
  stages_.open.refcounts.try_emplace({round_down(cluster.value, per_sector)}, 0);
}

void Allocator::raise(const RefcountChanges& changes) {
  changes.each([&](HostCluster cluster, uint64_t change) {
    set_count(cluster, refcount(cluster) + change);
    mark_for_commit(cluster);
    return true;
  });
}

void Allocator::lower(const RefcountChanges& changes) {
  changes.each([&](HostCluster cluster, uint64_t change) {
    const uint64_t count = refcount(cluster);
    BYRE_ASSERT(count >= change);
    set_count(cluster, count - change);
    mark_for_commit(cluster);
    if (count == change) {
      metadata_.remove(cluster);
      lower_hint(cluster);
      ++clusters_freed_;
      if (packing_ == cluster) packing_.reset();  // P1
      if (on_free_) on_free_(cluster);
    }
    return true;
  });
}

Task<void> Allocator::punch_freed(const RefcountChanges& changes) {
  std::vector<HostSpan> runs;
  if (!options_.punch) co_return;
  changes.each([&](HostCluster cluster, uint64_t change) {
    if (refcount(cluster) != change) return true;
    if (!runs.empty() && runs.back().end() == cluster) {
      ++runs.back().count;
    } else {
      runs.push_back({cluster, 1});
    }
    return true;
  });
  for (const HostSpan& run : runs) {
    const bool zeroed = co_await make_hole(run);
    for (uint64_t i = 0; zeroed && i < run.count; ++i) {
      Region& region = region_of(run.first + i);
      if (region.zeroed.empty()) region.zeroed.resize(region.counts.size());
      region.zeroed[geometry_.refcount_block_index(run.first + i)] = true;
    }
  }
}

Task<void> Allocator::drain_limbo() {
  const uint64_t durable = stages_.durable_end;
  while (punching_ != 0 || (!limbo_.empty() && limbo_.front().generation < durable)) {
    co_await limbo_moved_.wait();
  }
}

/// From the last region down to the first that has a cluster in use: most often one is looked at.
Task<uint64_t> Allocator::find_end_of_use() {
  for (uint64_t index = table_.size(); index-- > 0;) {
    if (table_[index] == 0) continue;
    if (!regions_[index]) co_await load_region(index);
    const std::vector<uint8_t>& counts = regions_[index]->counts;
    for (uint64_t within = counts.size(); within-- > 0;) {
      if (counts[within] != 0)
        co_return geometry_.first_of_refcount_table(index).value + within + 1;
    }
  }
  co_return 0;
}

Task<uint64_t> Allocator::truncate_file() {
  const Mutex::Hold hold = co_await mutex_.lock();  // Nobody takes clusters meanwhile.
  const uint64_t end = co_await find_end_of_use();
  end_of_use_ = end;
  const uint64_t length = end * geometry_.cluster_size();
  if (file_.can_grow() && length < file_.size()) co_await file_.resize(length);
  co_return file_.size();
}

void Allocator::compose_block(uint64_t index, uint64_t sector, MutableBytes out) const {
  const uint64_t per_sector = kSectorSize * 8 / geometry_.refcount_bits();
  const uint64_t first = sector * per_sector;
  const HostCluster start = geometry_.first_of_refcount_table(index);
  fill_zero(out);
  for (uint64_t i = 0; i < per_sector && first + i < geometry_.refcount_block_entries(); ++i) {
    uint64_t count = refcount(start + (first + i));
    if (!stages_.open.refcounts.empty()) {
      const auto later = stages_.open.refcounts.find(start + (first + i));
      if (later != stages_.open.refcounts.end()) count -= static_cast<uint64_t>(later->second);
    }
    if (count != 0) set_refcount(out, i, geometry_.refcount_order, count);
  }
}

void Allocator::compose_table(uint64_t sector, MutableBytes out) const {
  const uint64_t per_sector = kSectorSize / 8;
  fill_zero(out);
  for (uint64_t i = 0; i < per_sector; ++i) {
    const uint64_t index = sector * per_sector + i;
    if (index >= table_.size() || stages_.open.refcount_blocks.contains(index)) continue;
    store_be(out, i * 8, table_[index]);
  }
}

}  // namespace byre
