// SPDX-License-Identifier: Apache-2.0
#include "qcow2/snapshot.h"

#include <algorithm>
#include <charconv>
#include <unordered_set>

#include "base/checked.h"
#include "qcow2/counted.h"
#include "qcow2/image.h"
#include "qcow2/working.h"

namespace byre {

namespace {

/// L2 tables in the works at once.
constexpr size_t kWorkers = 8;
/// QEMU keeps names and ids in 256 and 128 bytes, terminated.
constexpr size_t kNameSizeMax = 255;

std::string told(const SnapshotKey& key) {
  switch (key.by) {
    case SnapshotKey::By::id:
      return cat("with the id ", quoted(key.word));
    case SnapshotKey::By::name:
      return cat("with the name ", quoted(key.word));
    case SnapshotKey::By::id_or_name:
      break;
  }
  return cat("with the id or name ", quoted(key.word));
}

}  // namespace

Result<size_t> find_snapshot(const std::vector<Snapshot>& snapshots, const SnapshotKey& key) {
  std::optional<size_t> found;
  for (size_t i = 0; i < snapshots.size(); ++i) {
    const bool by_id = key.by != SnapshotKey::By::name && snapshots[i].id == key.word;
    const bool by_name = key.by != SnapshotKey::By::id && snapshots[i].name == key.word;
    if (!by_id && !by_name) continue;
    if (found) {
      const Snapshot& first = snapshots[*found];
      return invalid("more than one snapshot ", told(key), ": ", quoted(first.name),
                     " with the id ", quoted(first.id), ", and ", quoted(snapshots[i].name),
                     " with the id ", quoted(snapshots[i].id));
    }
    found = i;
  }
  if (!found) return Error(Errc::not_found, cat("no snapshot ", told(key)), ENOENT);
  return *found;
}

std::string next_snapshot_id(const std::vector<Snapshot>& snapshots) {
  uint64_t most = 0;
  for (const Snapshot& snapshot : snapshots) {
    uint64_t id = 0;
    const char* end = snapshot.id.data() + snapshot.id.size();
    const auto [stop, error] = std::from_chars(snapshot.id.data(), end, id);
    if (error == std::errc() && id < UINT64_MAX) most = std::max(most, id);
  }
  // A lookup by id or name must find one.
  const auto is_taken = [&](const std::string& word) {
    return std::any_of(snapshots.begin(), snapshots.end(), [&](const Snapshot& snapshot) {
      return snapshot.id == word || snapshot.name == word;
    });
  };
  std::string id = cat(++most);
  while (is_taken(id)) id = cat(++most);
  return id;
}

/// One change of the snapshots, from its locks to its end.
class Image::SnapshotChange {
 public:
  explicit SnapshotChange(Image& image)
      : image_(image),
        size_(image.size_lock_, 0, 1, RangeLock::Mode::exclusive),
        clusters_(image.locks_, 0, UINT64_MAX, RangeLock::Mode::exclusive) {}
  SnapshotChange(const SnapshotChange&) = delete;

  Task<void> begin();
  Task<void> create(NewSnapshot wanted);
  Task<void> apply(size_t index);
  Task<void> remove(size_t index);
  Task<void> rename(size_t index, std::string name);
  Task<void> complete();

 private:
  using L1 = std::vector<uint64_t>;
  /// What one L1 table leads to.
  struct Tree {
    explicit Tree(const Geometry& geometry) : references(geometry) {}
    RefcountChanges references;
    std::vector<bool> copied;  ///< By L1 index: the L2 table has entries with COPIED.
  };
  enum class Flags : uint8_t { clear, where_alone };
  /// A snapshot table that the header does not point to yet.
  struct NewTable {
    Reservation at;
    std::vector<Snapshot> snapshots;
  };

  const Geometry& g() const { return image_.head_.geometry; }
  Allocator& allocator() { return *image_.allocator_; }
  Committer& committer() { return *image_.committer_; }
  static bool points(uint64_t entry) { return (entry & kOffsetMask) != 0; }
  HostSpan active_l1() const;
  HostSpan table_of_snapshots() const;

  Task<void> count(const L1& l1, std::string_view owner, Tree& tree);
  Task<void> count_table(HostCluster table, uint64_t l1_index, Tree& tree);
  Task<void> set_flags(const L1& l1, const std::vector<bool>& which, Flags flags);
  Task<void> set_table_flags(HostCluster table, Flags flags);
  template <class Visit>
  Task<void> each_table(const std::vector<bool>& which, const Visit& visit);

  Task<void> write_l1(HostCluster at, const L1& l1);
  Task<NewTable> put_table(std::vector<Snapshot> snapshots);
  Task<void> replace(std::vector<Snapshot> snapshots);
  void enter_table(const NewTable& table);
  void keep_table(NewTable table);
  Task<void> mark_dirty();
  Task<void> lower(const RefcountChanges& references);
  Task<void> finish(Result<void> done);
  Task<void> undo_create(const Tree& tree, bool raised);

  Image& image_;
  Mutex::Hold resize_;
  RangeLock::Request size_;
  RangeLock::Request clusters_;
  std::unordered_set<HostCluster> blocks_;  ///< Refcount blocks.
};

/// Takes the locks, in the order of resize(); then nothing is staged and limbo is empty, so that
/// the disk, and the refcounts in memory, say the whole truth.
Task<void> Image::SnapshotChange::begin() {
  resize_ = co_await image_.resize_mutex_.lock();
  co_await size_;
  co_await clusters_;
  co_await image_.check_can_write();
  if (g().data_file) {
    co_await fail(unsupported(
        "internal snapshots of an image with an external data file, where clusters cannot move"));
  }
  co_await committer().flush_all();
  co_await allocator().drain_limbo();
  co_await committer().flush_all();
  blocks_ = allocator().refcount_blocks();
}

HostSpan Image::SnapshotChange::active_l1() const {
  return {g().cluster_of(image_.head_.header.l1_offset),
          g().clusters_for(image_.map_->l1().size() * 8)};
}

/// Where the table is now.
HostSpan Image::SnapshotChange::table_of_snapshots() const {
  if (image_.snapshots_.empty()) return {};
  const Result<std::vector<std::byte>> bytes = serialize_snapshots(image_.snapshots_);
  BYRE_ASSERT(bytes);  // It was read, or written.
  return {g().cluster_of(image_.head_.header.snapshots_offset), g().clusters_for(bytes->size())};
}

// --- L1 and L2 tables ---------------------------------------------------------------------------

/// Calls visit(l1_index) for each index that `which` has, several at a time.
template <class Visit>
Task<void> Image::SnapshotChange::each_table(const std::vector<bool>& which, const Visit& visit) {
  uint64_t next = 0;
  bool failed = false;
  const auto worker = [&]() -> Task<void> {
    while (!failed) {
      while (next < which.size() && !which[next]) ++next;
      if (next == which.size()) co_return;
      Result<void> done = co_await visit(next++).result();
      if (done) continue;
      failed = true;
      co_await std::move(done);
    }
  };
  Scope scope(image_.reactor_.ready());
  for (size_t i = 0; i < kWorkers; ++i) scope.spawn(worker());
  co_await scope.join();
}

/// Every reference that `l1` leads to, checked: a damaged image is left alone, because a step that
/// goes by wrong references would destroy what still can be saved.
Task<void> Image::SnapshotChange::count(const L1& l1, std::string_view owner, Tree& tree) {
  std::vector<bool> which(l1.size());
  std::unordered_set<HostCluster> seen;
  for (uint64_t i = 0; i < l1.size(); ++i) {
    const L1Entry entry = co_await decode_l1(l1[i], g()).doing(owner, ": L1 entry ", i);
    if (!entry.l2) continue;
    which[i] = true;
    if (image_.metadata_.in_run(*entry.l2) || blocks_.contains(*entry.l2)) {
      co_await fail(corrupt(owner, ": L1 entry ", i, ": ", g().start_of(*entry.l2),
                            " holds other metadata; run check -r all"));
    }
    if (!seen.insert(*entry.l2).second) {
      co_await fail(corrupt(owner, ": L1 entry ", i, ": a second entry for the L2 table at ",
                            g().start_of(*entry.l2), "; run check -r all"));
    }
  }
  tree.copied.resize(l1.size());
  const auto visit = [&](uint64_t i) -> Task<void> {
    co_await count_table(g().cluster_of(HostOffset{l1[i] & kOffsetMask}), i, tree);
  };
  co_await each_table(which, visit).doing(owner);
}

Task<void> Image::SnapshotChange::count_table(HostCluster table, uint64_t l1_index, Tree& tree) {
  co_await allocator().load({table, 1}).doing("L2 table");
  const HostOffset at = g().start_of(table);
  std::vector<std::byte> bytes(g().cluster_size());
  co_await image_.file_->read(at.value, bytes, Mark::l2_load).doing("L2 table at ", at);
  tree.references.add(table);
  for (uint64_t i = 0; i < g().l2_entries(); ++i) {
    const L2Entry entry = load_l2(bytes, i, g());
    if (entry.descriptor == 0) continue;
    const Result<Mapping> mapping = decode_l2(entry, g());
    if (!mapping) {
      co_await fail(corrupt("L2 table at ", at, ", entry ", i, ": ", mapping.error().message()));
    }
    if (entry.descriptor & kCopied) tree.copied[l1_index] = true;
    const HostSpan span = hosts(*mapping, g());
    if (span.count == 0) continue;
    if (const auto hit = image_.metadata_.find_in(span)) {
      co_await fail(corrupt("L2 table at ", at, ", entry ", i, ": ", g().start_of(*hit),
                            " holds metadata; run check -r all"));
    }
    bool counted = allocator().loaded(span);
    for (uint64_t c = 0; counted && c < span.count; ++c) {
      counted = allocator().refcount(span.first + c) != 0;
    }
    if (!counted) co_await allocator().load(span).doing("L2 table at ", at, ", entry ", i);
    tree.references.add(span);
  }
}

/// COPIED of the entries in the L2 tables `which`, on the disk.
Task<void> Image::SnapshotChange::set_flags(const L1& l1, const std::vector<bool>& which,
                                            Flags flags) {
  const auto visit = [&](uint64_t i) -> Task<void> {
    co_await set_table_flags(g().cluster_of(HostOffset{l1[i] & kOffsetMask}), flags);
  };
  co_await each_table(which, visit);
}

Task<void> Image::SnapshotChange::set_table_flags(HostCluster table, Flags flags) {
  const HostOffset at = g().start_of(table);
  std::vector<std::byte> bytes(g().cluster_size());
  co_await image_.file_->read(at.value, bytes, Mark::l2_load).doing("L2 table at ", at);
  uint64_t low = bytes.size();
  uint64_t high = 0;
  for (uint64_t i = 0; i < g().l2_entries(); ++i) {
    L2Entry entry = load_l2(bytes, i, g());
    if (entry.descriptor == 0) continue;
    bool copied = false;
    if (flags == Flags::where_alone) {
      const Mapping mapping = co_await decode_l2(entry, g());
      // Nobody has counted the clusters of this table: they may lie where nothing was looked at
      // yet.
      if (mapping.host) {
        if (!allocator().loaded({*mapping.host, 1})) {
          co_await allocator().load({*mapping.host, 1}).doing("L2 table at ", at, ", entry ", i);
        }
        copied = allocator().refcount(*mapping.host) == 1;
      }
    }
    if (copied == ((entry.descriptor & kCopied) != 0)) continue;
    entry.descriptor ^= kCopied;
    store_l2(bytes, i, entry, g());
    low = std::min(low, i * g().l2_entry_size());
    high = (i + 1) * g().l2_entry_size();
  }
  if (high == 0) co_return;
  low = round_down(low, kSectorSize);
  high = round_up(high, kSectorSize);
  co_await image_.file_
      ->write(at.value + low, Bytes(bytes).subspan(low, high - low), {.mark = Mark::l2_update})
      .doing("L2 table at ", at);
}

Task<void> Image::SnapshotChange::write_l1(HostCluster at, const L1& l1) {
  if (l1.empty()) co_return;
  std::vector<std::byte> bytes(l1.size() * 8);
  for (uint64_t i = 0; i < l1.size(); ++i) store_be(MutableBytes(bytes), i * 8, l1[i]);
  const HostOffset offset = g().start_of(at);
  co_await image_.file_->write(offset.value, bytes, {.mark = Mark::l1_update})
      .doing("L1 table at ", offset);
}

// --- The header ---------------------------------------------------------------------------------

/// Writes `snapshots` where nothing points to yet; the next commit makes it durable.
Task<Image::SnapshotChange::NewTable> Image::SnapshotChange::put_table(
    std::vector<Snapshot> snapshots) {
  NewTable table{.at = {}, .snapshots = std::move(snapshots)};
  const std::vector<std::byte> bytes = co_await serialize_snapshots(table.snapshots);
  if (!bytes.empty()) {
    table.at = co_await allocator().reserve_run(g().clusters_for(bytes.size()));
    const HostOffset at = g().start_of(table.at.first());
    co_await image_.file_->write(at.value, bytes, {.mark = Mark::snapshot_update})
        .doing("snapshot table at ", at);
  }
  // What is going to be given up.
  co_await allocator().load(table_of_snapshots()).doing("snapshot table");
  co_return std::move(table);
}

/// The header's next write points to `table`.
void Image::SnapshotChange::enter_table(const NewTable& table) {
  const HostOffset at = table.at ? g().start_of(table.at.first()) : HostOffset{0};
  store_snapshots(image_.head_.sector, static_cast<uint32_t>(table.snapshots.size()), at);
}

/// It does, durably: the old one is given up (O6).
void Image::SnapshotChange::keep_table(NewTable table) {
  const HostSpan old = table_of_snapshots();
  if (old.count != 0) {
    image_.metadata_.remove_run(old);
    allocator().release(old);
  }
  Header& header = image_.head_.header;
  header.snapshots_offset = HostOffset{0};
  if (table.at) {
    header.snapshots_offset = g().start_of(table.at.first());
    image_.metadata_.add_run(table.at.span());
    table.at.keep();
  }
  header.snapshot_count = static_cast<uint32_t>(table.snapshots.size());
  image_.snapshots_ = std::move(table.snapshots);
}

Task<void> Image::SnapshotChange::mark_dirty() {
  if (g().version >= 3 && !committer().dirty_durable()) co_await committer().set_dirty(true);
}

/// The last part: clears the dirty bit, unless something could not be put right.
Task<void> Image::SnapshotChange::finish(Result<void> done) {
  if (done && g().version >= 3) done = co_await committer().set_dirty(false).result();
  if (!done) committer().keep_dirty();
  image_.staged();
  co_await std::move(done);
}

/// Takes references away whose removal is durable and that nobody reads any more (O3, H3).
Task<void> Image::SnapshotChange::lower(const RefcountChanges& references) {
  co_await allocator().punch_freed(references);
  allocator().lower(references);
  co_await committer().flush_all();
}

// --- Create -------------------------------------------------------------------------------------

Task<void> Image::SnapshotChange::create(NewSnapshot wanted) {
  if (wanted.name.size() > kNameSizeMax) {
    co_await fail(
        invalid("a snapshot's name of ", wanted.name.size(), " bytes, at most ", kNameSizeMax));
  }
  const L1 old = image_.map_->l1();
  Tree tree(g());
  co_await count(old, "active disk", tree);
  co_await allocator().can_raise(tree.references);  // A5

  L1 shared = old;
  for (uint64_t& entry : shared) entry &= ~kCopied;
  Snapshot snapshot{.l1_entries = static_cast<uint32_t>(old.size()),
                    .id = next_snapshot_id(image_.snapshots_),
                    .name = std::move(wanted.name),
                    .date_seconds = wanted.date_seconds,
                    .date_nanoseconds = wanted.date_nanoseconds,
                    .vm_clock_nanoseconds = wanted.vm_clock_nanoseconds,
                    .vm_state_size = wanted.vm_state_size,
                    .disk_size = image_.size_,
                    .icount = wanted.icount,
                    .extra_data = {}};
  std::vector<Snapshot> snapshots = image_.snapshots_;
  snapshots.push_back(snapshot);
  (void)co_await serialize_snapshots(snapshots);  // Its bounds, before anything is written.
  Reservation copy_of_l1;
  if (!old.empty()) {
    copy_of_l1 = co_await allocator().reserve_run(g().clusters_for(old.size() * 8));
    snapshots.back().l1_offset = g().start_of(copy_of_l1.first());
    co_await write_l1(copy_of_l1.first(), shared);
  }
  NewTable table = co_await put_table(std::move(snapshots));

  co_await mark_dirty();
  bool raised = false;
  Result<void> done = co_await set_flags(old, tree.copied, Flags::clear).result();
  if (done) done = co_await write_l1(active_l1().first, shared).result();
  if (done) done = co_await committer().sync(Mark::commit_sync).result();
  if (done) {
    raised = true;
    allocator().raise(tree.references);
    done = co_await committer().flush_all().result();
  }
  if (done) {
    std::vector<std::byte> header = image_.head_.sector;
    enter_table(table);
    committer().put_dirty(false);
    done = co_await image_.switch_header(std::move(header)).result();
  }
  if (!done) {
    (void)co_await undo_create(tree, raised).result();
    co_await std::move(done);
  }
  keep_table(std::move(table));
  if (copy_of_l1) {
    image_.metadata_.add_run(copy_of_l1.span());
    copy_of_l1.keep();
  }
  image_.map_->reset_l1(std::move(shared));
  image_.staged();
}

/// In reverse: refcounts down, then COPIED where one reference is left, then the dirty bit.
Task<void> Image::SnapshotChange::undo_create(const Tree& tree, bool raised) {
  if (raised) allocator().lower(tree.references);
  Result<void> done = co_await committer().flush_all().result();
  const L1& l1 = image_.map_->l1();
  if (done) done = co_await set_flags(l1, tree.copied, Flags::where_alone).result();
  if (done) done = co_await write_l1(active_l1().first, l1).result();
  if (done) done = co_await committer().sync(Mark::commit_sync).result();
  co_await finish(std::move(done));
}

// --- Delete -------------------------------------------------------------------------------------

Task<void> Image::SnapshotChange::remove(size_t index) {
  const Snapshot snapshot = image_.snapshots_[index];
  co_await check_l1_table(snapshot, g());
  const HostSpan l1_at = hosts(snapshot, g());
  const L1 l1 =
      co_await load_table(*image_.file_, snapshot.l1_offset, snapshot.l1_entries, Mark::l1_load);
  Tree tree(g());
  co_await count(l1, "snapshot", tree);
  co_await allocator().load(l1_at).doing("L1 table of the snapshot");
  tree.references.add(l1_at);
  co_await allocator().can_lower(tree.references);

  std::vector<Snapshot> snapshots = image_.snapshots_;
  snapshots.erase(snapshots.begin() + static_cast<std::ptrdiff_t>(index));
  NewTable table = co_await put_table(std::move(snapshots));
  co_await committer().flush_all();
  std::vector<std::byte> header = image_.head_.sector;
  enter_table(table);
  committer().put_dirty(true);
  co_await image_.switch_header(std::move(header));

  // The snapshot is gone; what follows makes room and restores COPIED.
  keep_table(std::move(table));
  image_.metadata_.remove_run(l1_at);
  Result<void> done = co_await lower(tree.references).result();
  if (done) {
    L1 active = image_.map_->l1();
    // Of a table that is not alone a cluster may be all the same: what counts the table once more
    // may be a leak that a cut has left.
    std::vector<bool> both(active.size());
    for (uint64_t i = 0; i < std::min(active.size(), l1.size()); ++i) {
      if (!points(active[i]) || !points(l1[i])) continue;
      both[i] = true;
      const HostCluster at = g().cluster_of(HostOffset{active[i] & kOffsetMask});
      Result<void> loaded = co_await allocator().load({at, 1}).result();
      if (loaded && allocator().refcount(at) == 1) active[i] |= kCopied;
    }
    done = co_await set_flags(active, both, Flags::where_alone).result();
    if (done) done = co_await write_l1(active_l1().first, active).result();
    if (done) done = co_await committer().sync(Mark::commit_sync).result();
    // Also after a failure: a flag that is not known to be set is no harm.
    image_.map_->reset_l1(done ? std::move(active) : image_.map_->l1());
  }
  co_await finish(std::move(done)).doing("the snapshot is deleted, but");
}

// --- Apply --------------------------------------------------------------------------------------

Task<void> Image::SnapshotChange::apply(size_t index) {
  const Snapshot snapshot = image_.snapshots_[index];
  co_await check_l1_table(snapshot, g());
  const uint64_t size = snapshot.disk_size.value_or(image_.size_);
  if (size > g().size_max() || size > uint64_t{INT64_MAX}) {
    co_await fail(corrupt("its disk of ", size, " bytes is larger than clusters of ",
                          g().cluster_size(), " bytes allow"));
  }
  L1 fresh =
      co_await load_table(*image_.file_, snapshot.l1_offset, snapshot.l1_entries, Mark::l1_load);
  fresh.resize(std::max<uint64_t>({fresh.size(), g().l1_entries_for(size), 1}));
  L1 old = image_.map_->l1();
  L1 added = fresh;
  L1 removed = old;
  for (uint64_t i = 0; i < std::min(old.size(), fresh.size()); ++i) {
    // A table that both share stays as it is.
    if ((old[i] & kOffsetMask) == (fresh[i] & kOffsetMask)) added[i] = removed[i] = 0;
  }
  for (uint64_t& entry : fresh) entry &= ~kCopied;
  Tree plus(g());
  Tree minus(g());
  co_await count(added, "snapshot", plus);
  co_await count(removed, "active disk", minus);
  co_await allocator().can_raise(plus.references);  // A5
  co_await allocator().can_lower(minus.references);
  const HostSpan old_at = active_l1();
  co_await allocator().load(old_at).doing("L1 table");

  // The disk becomes another: whatever records its changes says that all of it has (trap 106).
  std::optional<Bitmaps::Change> bitmaps;
  if (image_.bitmaps_->tracking() || (!image_.bitmaps_->empty() && size != image_.size_)) {
    bitmaps.emplace(
        co_await image_.bitmaps_->prepare(co_await image_.bitmaps_->list_all_dirty(size)));
  }
  Reservation at = co_await allocator().reserve_run(g().clusters_for(fresh.size() * 8));
  co_await write_l1(at.first(), fresh);
  co_await mark_dirty();
  bool raised = false;
  // The snapshot's tables are about to be active ones, where COPIED counts.
  Result<void> done = co_await set_flags(added, plus.copied, Flags::clear).result();
  if (done) {
    raised = true;
    allocator().raise(plus.references);
    done = co_await committer().flush_all().result();
  }
  if (done) {
    std::vector<std::byte> header = image_.head_.sector;
    store_size(image_.head_.sector, size);
    if (bitmaps) image_.bitmaps_->enter(*bitmaps);
    store_l1(image_.head_.sector, g().start_of(at.first()), static_cast<uint32_t>(fresh.size()));
    done = co_await image_.switch_header(std::move(header)).result();
  }
  if (!done) {
    if (raised) allocator().lower(plus.references);
    Result<void> undone = co_await committer().flush_all().result();
    (void)co_await finish(std::move(undone)).result();
    co_await std::move(done);
  }

  // From here on the disk is the snapshot's.
  if (bitmaps) image_.bitmaps_->keep(*std::move(bitmaps));
  for (const uint64_t entry : added) {
    if (points(entry)) image_.metadata_.add(g().cluster_of(HostOffset{entry & kOffsetMask}));
  }
  if (size < image_.size_) ++image_.shrinks_;
  image_.head_.header.size = image_.size_ = size;
  image_.head_.header.l1_entries = static_cast<uint32_t>(fresh.size());
  image_.head_.header.l1_offset = g().start_of(at.first());
  image_.metadata_.remove_run(old_at);
  image_.metadata_.add_run(at.span());
  at.keep();
  allocator().release(old_at);
  image_.map_->reset_l1(std::move(fresh));
  // Reads that looked up what was there before end first (H3): the old L1 table leaves limbo after
  // them.
  done = co_await committer().flush_all().result();
  if (done) {
    co_await allocator().drain_limbo();
    done = co_await lower(minus.references).result();
  }
  co_await finish(std::move(done)).doing("the snapshot is applied, but");
}

// --- Rename -------------------------------------------------------------------------------------

Task<void> Image::SnapshotChange::rename(size_t index, std::string name) {
  if (name.size() > kNameSizeMax) {
    co_await fail(invalid("a snapshot's name of ", name.size(), " bytes, at most ", kNameSizeMax));
  }
  std::vector<Snapshot> snapshots = image_.snapshots_;
  snapshots[index].name = std::move(name);
  co_await replace(std::move(snapshots));
}

/// What version 3 wants of every entry: the disk's size then, which was the disk's size always.
Task<void> Image::SnapshotChange::complete() {
  std::vector<Snapshot> snapshots = image_.snapshots_;
  bool all = true;
  for (Snapshot& snapshot : snapshots) {
    all &= snapshot.disk_size.has_value();
    if (!snapshot.disk_size) snapshot.disk_size = image_.size_;
  }
  if (all) co_return;
  co_await replace(std::move(snapshots));
}

/// The snapshot table becomes another, and nothing else does.
Task<void> Image::SnapshotChange::replace(std::vector<Snapshot> snapshots) {
  NewTable table = co_await put_table(std::move(snapshots));
  co_await committer().flush_all();
  std::vector<std::byte> header = image_.head_.sector;
  enter_table(table);
  co_await image_.switch_header(std::move(header));
  keep_table(std::move(table));
  image_.staged();
}

// --- Image --------------------------------------------------------------------------------------

Task<void> Image::complete_snapshots() {
  if (snapshots_.empty()) co_return;
  SnapshotChange change(*this);
  co_await change.begin();
  co_await change.complete();
}

Task<void> Image::create_snapshot(NewSnapshot snapshot) {
  const Working working(*this);
  co_await working.begin();
  co_await check_can_write();
  SnapshotChange change(*this);
  co_await change.begin();
  const std::string name = snapshot.name;
  co_await check_metadata_is_counted(*file_, head_, snapshots_, map_->l1(), *allocator_);
  co_await change.create(std::move(snapshot)).doing("create snapshot ", quoted(name));
}

Task<void> Image::apply_snapshot(SnapshotKey which) {
  const Working working(*this);
  co_await working.begin();
  co_await check_can_write();
  SnapshotChange change(*this);
  co_await change.begin();
  const size_t index = co_await find_snapshot(snapshots_, which);
  co_await check_metadata_is_counted(*file_, head_, snapshots_, map_->l1(), *allocator_);
  co_await change.apply(index).doing("apply snapshot ", quoted(which.word));
}

Task<void> Image::delete_snapshot(SnapshotKey which) {
  const Working working(*this);
  co_await working.begin();
  co_await check_can_write();
  SnapshotChange change(*this);
  co_await change.begin();
  const size_t index = co_await find_snapshot(snapshots_, which);
  co_await change.remove(index).doing("delete snapshot ", quoted(which.word));
}

Task<void> Image::rename_snapshot(SnapshotKey which, std::string name) {
  const Working working(*this);
  co_await working.begin();
  co_await check_can_write();
  SnapshotChange change(*this);
  co_await change.begin();
  const size_t index = co_await find_snapshot(snapshots_, which);
  co_await change.rename(index, std::move(name)).doing("rename snapshot ", quoted(which.word));
}

}  // namespace byre
