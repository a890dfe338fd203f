// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/snapshot.h"

#include <algorithm>
#include <charconv>
#include <unordered_set>

#include "base/checked.h"
#include "qcow2/core/counted.h"
#include "qcow2/core/l2_patch.h"
#include "qcow2/core/quiesced.h"
#include "qcow2/guest/guest_disk.h"

namespace byre {

namespace {

/// L2 tables in the works at once.
constexpr size_t kWorkers = 8;
/// QEMU keeps names and ids in 256 and 128 bytes, terminated.
constexpr size_t kNameSizeMax = 255;

std::string describe(const SnapshotKey& key) {
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
      return invalid("more than one snapshot ", describe(key), ": ", quoted(first.name),
                     " with the id ", quoted(first.id), ", and ", quoted(snapshots[i].name),
                     " with the id ", quoted(snapshots[i].id));
    }
    found = i;
  }
  if (!found) return Error(Errc::not_found, cat("no snapshot ", describe(key)), ENOENT);
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

namespace {

/// One change of the snapshots, from its locks to its end.
class SnapshotChange {
 public:
  explicit SnapshotChange(GuestDisk& disk) : disk_(disk), request_(disk), quiesced_(disk) {}
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

  const Geometry& g() const { return disk_.head.geometry; }
  Allocator& allocator() { return *disk_.allocator; }
  Committer& committer() { return *disk_.committer; }
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
  HeaderEdit::Table place_of(const NewTable& table) const;
  void install_table(NewTable table, HostSpan old);
  Task<void> switch_to(NewTable& table, HeaderEdit fields = {});
  Task<void> mark_dirty();
  Task<void> lower(const RefcountChanges& references);
  Task<void> finish(Result<void> done);
  Task<void> give_up(HostSpan l1, const RefcountChanges& references);
  Task<void> undo_create(const Tree& tree, bool raised);

  GuestDisk& disk_;
  const Request request_;
  Quiesced quiesced_;
  std::unordered_set<HostCluster> blocks_;  ///< Refcount blocks.
};

}  // namespace

/// Takes the locks, in the order of resize(); then nothing is staged and limbo is empty, so that
/// the disk, and the refcounts in memory, agree.
Task<void> SnapshotChange::begin() {
  co_await request_.begin();
  co_await disk_.check_can_write();
  co_await quiesced_.begin();
  co_await disk_.check_can_write();
  if (g().data_file) {
    co_await fail(unsupported(
        "internal snapshots of an image with an external data file, where clusters cannot move"));
  }
  co_await quiesced_.settle();
  blocks_ = allocator().refcount_blocks();
}

HostSpan SnapshotChange::active_l1() const {
  return {g().cluster_of(disk_.head.header.l1_offset),
          g().clusters_for(disk_.map->l1().size() * 8)};
}

/// Where the table is now.
HostSpan SnapshotChange::table_of_snapshots() const {
  if (disk_.snapshots.empty()) return {};
  const Result<std::vector<std::byte>> bytes = serialize_snapshots(disk_.snapshots);
  BYRE_ASSERT(bytes);  // It was read, or written.
  return {g().cluster_of(disk_.head.header.snapshots_offset), g().clusters_for(bytes->size())};
}

// --- L1 and L2 tables ---------------------------------------------------------------------------

/// Calls visit(l1_index) for each index that `which` has, several at a time.
template <class Visit>
Task<void> SnapshotChange::each_table(const std::vector<bool>& which, const Visit& visit) {
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
  Scope scope(disk_.reactor.ready());
  for (size_t i = 0; i < kWorkers; ++i) scope.spawn(worker());
  co_await scope.join();
}

/// Every reference that `l1` leads to, checked: a damaged image is left alone, because a step that
/// goes by wrong references would destroy what still can be saved.
Task<void> SnapshotChange::count(const L1& l1, std::string_view owner, Tree& tree) {
  std::vector<bool> which(l1.size());
  std::unordered_set<HostCluster> seen;
  for (uint64_t i = 0; i < l1.size(); ++i) {
    const L1Entry entry = co_await decode_l1(l1[i], g()).doing(owner, ": L1 entry ", i);
    if (!entry.l2) continue;
    which[i] = true;
    if (disk_.metadata.in_run(*entry.l2) || blocks_.contains(*entry.l2)) {
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

Task<void> SnapshotChange::count_table(HostCluster table, uint64_t l1_index, Tree& tree) {
  co_await allocator().load({table, 1}).doing("L2 table");
  const L2Patch entries = co_await L2Patch::load(*disk_.file, g(), table);
  const HostOffset at = entries.at();
  tree.references.add(table);
  for (uint64_t i = 0; i < entries.entries(); ++i) {
    const L2Entry entry = entries.entry(i);
    if (entry.descriptor == 0) continue;
    const Result<Mapping> mapping = decode_l2(entry, g());
    if (!mapping) {
      co_await fail(corrupt("L2 table at ", at, ", entry ", i, ": ", mapping.error().message()));
    }
    if (entry.descriptor & kCopied) tree.copied[l1_index] = true;
    const HostSpan span = hosts(*mapping, g());
    if (span.count == 0) continue;
    if (const auto hit = disk_.metadata.find_in(span)) {
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
Task<void> SnapshotChange::set_flags(const L1& l1, const std::vector<bool>& which, Flags flags) {
  const auto visit = [&](uint64_t i) -> Task<void> {
    co_await set_table_flags(g().cluster_of(HostOffset{l1[i] & kOffsetMask}), flags);
  };
  co_await each_table(which, visit);
}

Task<void> SnapshotChange::set_table_flags(HostCluster table, Flags flags) {
  L2Patch patch = co_await L2Patch::load(*disk_.file, g(), table);
  const HostOffset at = patch.at();
  for (uint64_t i = 0; i < patch.entries(); ++i) {
    L2Entry entry = patch.entry(i);
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
    patch.set(i, entry);
  }
  co_await patch.write(*disk_.file);
}

Task<void> SnapshotChange::write_l1(HostCluster at, const L1& l1) {
  if (l1.empty()) co_return;
  std::vector<std::byte> bytes(l1.size() * 8);
  for (uint64_t i = 0; i < l1.size(); ++i) store_be(MutableBytes(bytes), i * 8, l1[i]);
  const HostOffset offset = g().start_of(at);
  co_await disk_.file->write(offset.value, bytes, {.tag = IoTag::l1_update})
      .doing("L1 table at ", offset);
}

// --- The header ---------------------------------------------------------------------------------

/// Writes `snapshots` where nothing points to yet; the next commit makes it durable.
Task<SnapshotChange::NewTable> SnapshotChange::put_table(std::vector<Snapshot> snapshots) {
  NewTable table{.at = {}, .snapshots = std::move(snapshots)};
  const std::vector<std::byte> bytes = co_await serialize_snapshots(table.snapshots);
  if (!bytes.empty()) {
    table.at = co_await allocator().reserve_run(g().clusters_for(bytes.size()));
    const HostOffset at = g().start_of(table.at.first());
    co_await disk_.file->write(at.value, bytes, {.tag = IoTag::snapshot_update})
        .doing("snapshot table at ", at);
  }
  // What is going to be given up.
  co_await allocator().load(table_of_snapshots()).doing("snapshot table");
  co_return std::move(table);
}

HeaderEdit::Table SnapshotChange::place_of(const NewTable& table) const {
  return {table.at ? g().start_of(table.at.first()) : HostOffset{0},
          static_cast<uint32_t>(table.snapshots.size())};
}

/// The header points to it, durably: the old one, which lay in `old`, is given up (O6).
void SnapshotChange::install_table(NewTable table, HostSpan old) {
  if (old.count != 0) {
    disk_.metadata.remove_run(old);
    allocator().release(old);
  }
  if (table.at) {
    disk_.metadata.add_run(table.at.span());
    table.at.keep();
  }
  disk_.snapshots = std::move(table.snapshots);
}

/// The header leads to `table`, and its other fields change as `fields` says; then the old table is
/// given up.
Task<void> SnapshotChange::switch_to(NewTable& table, HeaderEdit fields) {
  const HostSpan old = table_of_snapshots();
  RootEdit edit{.fields = std::move(fields)};
  edit.snapshot_table = place_of(table);
  co_await disk_.header->change(quiesced_, std::move(edit));
  install_table(std::move(table), old);
}

Task<void> SnapshotChange::mark_dirty() { co_await disk_.header->change({.dirty = true}); }

/// The last part: clears the dirty bit, unless something could not be put right.
Task<void> SnapshotChange::finish(Result<void> done) {
  if (done) done = co_await disk_.header->change({.dirty = false}).result();
  if (!done) disk_.header->keep_dirty();
  disk_.schedule_commit();
  co_await std::move(done);
}

/// Takes references away whose removal is durable and that nobody reads any more (O3, H3).
Task<void> SnapshotChange::lower(const RefcountChanges& references) {
  co_await allocator().punch_freed(references);
  allocator().lower(references);
  co_await committer().flush_all();
}

// --- Create -------------------------------------------------------------------------------------

Task<void> SnapshotChange::create(NewSnapshot wanted) {
  if (wanted.name.size() > kNameSizeMax) {
    co_await fail(
        invalid("a snapshot's name of ", wanted.name.size(), " bytes, at most ", kNameSizeMax));
  }
  const L1 old = disk_.map->l1();
  Tree tree(g());
  co_await count(old, "active disk", tree);
  co_await allocator().can_raise(tree.references);  // A5

  L1 shared = old;
  for (uint64_t& entry : shared) entry &= ~kCopied;
  Snapshot snapshot{.l1_entries = static_cast<uint32_t>(old.size()),
                    .id = next_snapshot_id(disk_.snapshots),
                    .name = std::move(wanted.name),
                    .date_seconds = wanted.date_seconds,
                    .date_nanoseconds = wanted.date_nanoseconds,
                    .vm_clock_nanoseconds = wanted.vm_clock_nanoseconds,
                    .vm_state_size = wanted.vm_state_size,
                    .disk_size = disk_.size,
                    .icount = wanted.icount,
                    .extra_data = {}};
  std::vector<Snapshot> snapshots = disk_.snapshots;
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
  if (done) done = co_await committer().sync(IoTag::commit_sync).result();
  if (done) {
    raised = true;
    allocator().raise(tree.references);
    done = co_await committer().flush_all().result();
  }
  if (done) done = co_await switch_to(table, {.dirty = false}).result();
  if (!done) {
    (void)co_await undo_create(tree, raised).result();
    co_await std::move(done);
  }
  if (copy_of_l1) {
    disk_.metadata.add_run(copy_of_l1.span());
    copy_of_l1.keep();
  }
  disk_.map->reset_l1(std::move(shared));
  disk_.schedule_commit();
}

/// In reverse: refcounts down, then COPIED where one reference is left, then the dirty bit.
Task<void> SnapshotChange::undo_create(const Tree& tree, bool raised) {
  if (raised) allocator().lower(tree.references);
  Result<void> done = co_await committer().flush_all().result();
  const L1& l1 = disk_.map->l1();
  if (done) done = co_await set_flags(l1, tree.copied, Flags::where_alone).result();
  if (done) done = co_await write_l1(active_l1().first, l1).result();
  if (done) done = co_await committer().sync(IoTag::commit_sync).result();
  co_await finish(std::move(done));
}

// --- Delete -------------------------------------------------------------------------------------

Task<void> SnapshotChange::remove(size_t index) {
  const Snapshot snapshot = disk_.snapshots[index];
  co_await check_l1_table(snapshot, g());
  const HostSpan l1_at = hosts(snapshot, g());
  const L1 l1 =
      co_await load_table(*disk_.file, snapshot.l1_offset, snapshot.l1_entries, IoTag::l1_load);
  Tree tree(g());
  co_await count(l1, "snapshot", tree);
  co_await allocator().load(l1_at).doing("L1 table of the snapshot");
  tree.references.add(l1_at);
  co_await allocator().can_lower(tree.references);

  std::vector<Snapshot> snapshots = disk_.snapshots;
  snapshots.erase(snapshots.begin() + static_cast<std::ptrdiff_t>(index));
  NewTable table = co_await put_table(std::move(snapshots));
  co_await committer().flush_all();
  co_await switch_to(table, {.dirty = true});

  // The snapshot is gone; what follows makes room and restores COPIED.
  disk_.metadata.remove_run(l1_at);
  Result<void> done = co_await lower(tree.references).result();
  if (done) {
    L1 active = disk_.map->l1();
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
    if (done) done = co_await committer().sync(IoTag::commit_sync).result();
    // Also after a failure: a flag that is not known to be set is no harm.
    disk_.map->reset_l1(done ? std::move(active) : disk_.map->l1());
  }
  co_await finish(std::move(done)).doing("the snapshot is deleted, but");
}

// --- Apply --------------------------------------------------------------------------------------

Task<void> SnapshotChange::apply(size_t index) {
  const Snapshot snapshot = disk_.snapshots[index];
  co_await check_l1_table(snapshot, g());
  const uint64_t size = snapshot.disk_size.value_or(disk_.size);
  if (size > g().size_max() || size > uint64_t{INT64_MAX}) {
    co_await fail(corrupt("its disk of ", size, " bytes is larger than clusters of ",
                          g().cluster_size(), " bytes allow"));
  }
  L1 fresh =
      co_await load_table(*disk_.file, snapshot.l1_offset, snapshot.l1_entries, IoTag::l1_load);
  fresh.resize(std::max<uint64_t>({fresh.size(), g().l1_entries_for(size), 1}));
  L1 old = disk_.map->l1();
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
  if (disk_.bitmaps->tracking() || (!disk_.bitmaps->empty() && size != disk_.size)) {
    bitmaps.emplace(co_await disk_.bitmaps->prepare(co_await disk_.bitmaps->list_all_dirty(size)));
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
    RootEdit edit{.fields = {.disk_size = size}};
    if (bitmaps) edit.fields.bitmaps = disk_.bitmaps->edit_for(*bitmaps);
    edit.l1 = {g().start_of(at.first()), static_cast<uint32_t>(fresh.size())};
    done = co_await disk_.header->change(quiesced_, std::move(edit)).result();
  }
  if (!done) {
    if (raised) allocator().lower(plus.references);
    Result<void> undone = co_await committer().flush_all().result();
    (void)co_await finish(std::move(undone)).result();
    co_await std::move(done);
  }

  if (bitmaps) disk_.bitmaps->keep(*std::move(bitmaps));
  for (const uint64_t entry : added) {
    if (points(entry)) disk_.metadata.add(g().cluster_of(HostOffset{entry & kOffsetMask}));
  }
  if (size < disk_.size) ++disk_.shrinks;
  disk_.size = size;
  disk_.metadata.add_run(at.span());
  at.keep();
  disk_.map->reset_l1(std::move(fresh));
  co_await give_up(old_at, minus.references).doing("the snapshot is applied, but");
}

/// What the disk was before: its L1 table, and the references from there.
Task<void> SnapshotChange::give_up(HostSpan l1, const RefcountChanges& references) {
  disk_.metadata.remove_run(l1);
  allocator().release(l1);
  // Reads that looked up what was there before end first (H3): the old L1 table leaves limbo after
  // them.
  Result<void> done = co_await committer().flush_all().result();
  if (done) {
    co_await allocator().drain_limbo();
    done = co_await lower(references).result();
  }
  co_await finish(std::move(done));
}

// --- Rename -------------------------------------------------------------------------------------

Task<void> SnapshotChange::rename(size_t index, std::string name) {
  if (name.size() > kNameSizeMax) {
    co_await fail(invalid("a snapshot's name of ", name.size(), " bytes, at most ", kNameSizeMax));
  }
  std::vector<Snapshot> snapshots = disk_.snapshots;
  snapshots[index].name = std::move(name);
  co_await replace(std::move(snapshots));
}

/// What version 3 wants of every entry: the disk's size then, which was the disk's size always.
Task<void> SnapshotChange::complete() {
  std::vector<Snapshot> snapshots = disk_.snapshots;
  bool all = true;
  for (Snapshot& snapshot : snapshots) {
    all &= snapshot.disk_size.has_value();
    if (!snapshot.disk_size) snapshot.disk_size = disk_.size;
  }
  if (all) co_return;
  co_await replace(std::move(snapshots));
}

/// The snapshot table becomes another, and nothing else does.
Task<void> SnapshotChange::replace(std::vector<Snapshot> snapshots) {
  NewTable table = co_await put_table(std::move(snapshots));
  co_await committer().flush_all();
  co_await switch_to(table);
  disk_.schedule_commit();
}

// --- Operations ---------------------------------------------------------------------------------

Task<void> complete_snapshots(GuestDisk& disk) {
  if (disk.snapshots.empty()) co_return;
  SnapshotChange change(disk);
  co_await change.begin();
  co_await change.complete();
}

Task<void> create_snapshot(GuestDisk& disk, NewSnapshot snapshot) {
  SnapshotChange change(disk);
  co_await change.begin();
  const std::string name = snapshot.name;
  co_await check_metadata_is_counted(*disk.file, disk.head, disk.snapshots, disk.map->l1(),
                                     *disk.allocator);
  co_await change.create(std::move(snapshot)).doing("create snapshot ", quoted(name));
}

Task<void> apply_snapshot(GuestDisk& disk, SnapshotKey which) {
  SnapshotChange change(disk);
  co_await change.begin();
  const size_t index = co_await find_snapshot(disk.snapshots, which);
  co_await check_metadata_is_counted(*disk.file, disk.head, disk.snapshots, disk.map->l1(),
                                     *disk.allocator);
  co_await change.apply(index).doing("apply snapshot ", quoted(which.word));
}

Task<void> delete_snapshot(GuestDisk& disk, SnapshotKey which) {
  SnapshotChange change(disk);
  co_await change.begin();
  const size_t index = co_await find_snapshot(disk.snapshots, which);
  co_await change.remove(index).doing("delete snapshot ", quoted(which.word));
}

Task<void> rename_snapshot(GuestDisk& disk, SnapshotKey which, std::string name) {
  SnapshotChange change(disk);
  co_await change.begin();
  const size_t index = co_await find_snapshot(disk.snapshots, which);
  co_await change.rename(index, std::move(name)).doing("rename snapshot ", quoted(which.word));
}

}  // namespace byre
