// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "block/raw.h"
#include "format/refcount.h"
#include "qcow2/guest/external_store.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/image.h"
#include "qcow2/ops/heal.h"
#include "qcow2/repair/check.h"

namespace byre {

namespace {

/// As load_table(), but what cannot be read becomes entries that are no entries, sector by sector.
Task<std::vector<uint64_t>> salvage_table(Device& file, HostOffset at, uint64_t entries) {
  Result<std::vector<uint64_t>> whole =
      co_await load_table(file, at, entries, IoTag::l1_load).result();
  if (whole) co_return *std::move(whole);
  constexpr uint64_t kNoEntry = UINT64_MAX;
  constexpr uint64_t kStep = kSectorSize / 8;
  std::vector<uint64_t> table(entries, kNoEntry);
  for (uint64_t first = 0; first < entries; first += kStep) {
    const uint64_t count = std::min(kStep, entries - first);
    const Result<std::vector<uint64_t>> part =
        co_await load_table(file, at + first * 8, count, IoTag::l1_load).result();
    if (part) std::copy(part->begin(), part->end(), table.begin() + static_cast<ptrdiff_t>(first));
  }
  co_return table;
}

}  // namespace

namespace {

/// Which file it is; 0, 0 when nothing is known of it.
struct FileId {
  uint64_t device = 0, inode = 0;
  bool operator==(const FileId&) const = default;
};
FileId id_of(const File& file) { return {file.properties().device, file.properties().inode}; }
FileId id_of(Device& device) {
  auto* raw = dynamic_cast<RawDevice*>(&device);
  return raw ? id_of(raw->file()) : FileId{};
}

/// "backing file 'x': why", also when the error names the file already.
Error named_once(Error error, std::string_view what, std::string_view name) {
  std::string why = error.message();
  for (const std::string& own : {cat("open ", quoted(name), ": "), cat(quoted(name), ": ")}) {
    if (why.starts_with(own)) why.erase(0, own.size());
  }
  return Error(error.code(), cat(what, " ", quoted(name), ": ", why), error.sys_errno(),
               error.where());
}

}  // namespace

namespace {

/// A file of the chain that is being opened, and those above it.
struct Layer {
  const Layer* above = nullptr;
  uint32_t depth = 0;
  FileId id = {};

  bool has(FileId other) const {
    if (other == FileId{}) return false;
    for (const Layer* layer = this; layer; layer = layer->above) {
      if (layer->id == other) return true;
    }
    return false;
  }
};

HostSpan l1_table(const GuestDisk& disk) {
  const Header& header = disk.head.header;
  return {disk.geometry().cluster_of(header.l1_offset),
          disk.geometry().clusters_for(header.l1_entries * uint64_t{8})};
}
HostSpan refcount_table(const GuestDisk& disk) {
  const Header& header = disk.head.header;
  return {disk.geometry().cluster_of(header.refcount_table_offset), header.refcount_table_clusters};
}

}  // namespace

/// What may make an Image.
struct Image::Opening {
  static Task<std::unique_ptr<Image>> open_layer(Child file, FileOpener& opener,
                                                 ImageOptions options, Layer self,
                                                 Child backing = {}, Child data_file = {});
  static Task<void> load(GuestDisk& disk, ImageHealth& health, FileOpener& opener,
                         const Layer& self);
  static Task<void> open_backing(GuestDisk& disk, FileOpener& opener, const Layer& self);
  static void share_caches(Image& top);
};

static Result<void> check_writable(const GuestDisk& disk);
static Task<void> load_tables(GuestDisk& disk, FileOpener& opener);
static Task<void> begin_writing(GuestDisk& disk, ImageHealth& health);

/// What keeps this image from being written, apart from its refcounts.
static Result<void> check_writable(const GuestDisk& disk) {
  const Header& header = disk.head.header;
  if (header.has(kCorrupt)) {
    return Error(
        Errc::read_only,
        "the image is marked corrupt; open it read-only to save its data, or run check -r all");
  }
  if (header.version >= 3) return {};
  if (disk.options.discard_keeps) {
    return unsupported("discards that keep their clusters need an image of version 3 (compat=1.1)");
  }
  if (disk.options.lazy_refcounts.value_or(false)) {
    return unsupported(
        "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
  }
  return {};
}

Task<void> Image::Opening::load(GuestDisk& disk, ImageHealth& health, FileOpener& opener,
                                const Layer& self) {
  Result<void> loaded = co_await load_tables(disk, opener).result();
  if (!loaded && self.depth > 0)
    co_await fail(named_once(std::move(loaded).error(), "backing file", disk.name()));
  co_await std::move(loaded);
  if (disk.head.backing_file && !disk.options.without_backing && !disk.backing)
    co_await open_backing(disk, opener, self);
  if (disk.options.writable) {
    co_await begin_writing(disk, health);
  } else if (disk.options.snapshot.empty() && self.depth == 0) {
    // Damaged ones are no reason not to read the disk.
    Result<BitmapList> bitmaps = co_await load_bitmap_list(*disk.file, disk.head).result();
    if (bitmaps) {
      disk.bitmap_list = *std::move(bitmaps);
    } else if (disk.options.message) {
      disk.options.message(cat(disk.file->name(), ": ", bitmaps.error().message()));
    }
  }
}

/// Refcounts and COPIED of an image that was not closed cleanly may be wrong, and are rebuilt;
/// other damage is a reason to refuse it before that.
static Task<void> refuse_what_rebuilding_hides(GuestDisk& disk) {
  ReferenceScan scan(*disk.file, disk.head, {});
  co_await scan.read_roots();
  ImageDamage damage = co_await scan.finish();
  damage.undercounted.clear();
  damage.copied.clear();
  damage.in_doubt.clear();
  damage.in_doubt_count = 0;
  damage.causes.clear();
  if (!damage.sound()) co_await fail(refuse_damaged(damage, disk.name(), disk.geometry()));
}

/// True when the header is another one now.
static Task<bool> prepare_writing(GuestDisk& disk) {
  // What a process that was killed wrote may be in the page cache alone; from here on what is
  // read counts as durable (O4, O8).
  co_await disk.file->flush(IoTag::none);
  if (!disk.head.header.has(kDirty)) co_return false;
  if (disk.options.refuse_damaged) co_await refuse_what_rebuilding_hides(disk);
  const CheckReport report = co_await rebuild_refcounts(*disk.file).doing("rebuild refcounts");
  if (disk.options.message) {
    disk.options.message(cat(disk.file->name(),
                             ": the image was not closed cleanly; its refcounts were rebuilt (",
                             report.leaks_fixed + report.corruptions_fixed, " changed)"));
  }
  disk.head = co_await load_image_header(*disk.file);
  co_return true;
}

static void make_map(GuestDisk& disk, std::vector<uint64_t> l1) {
  disk.map =
      std::make_unique<Map>(disk.reactor.ready(), *disk.file, disk.head.geometry, disk.stages,
                            disk.metadata, disk.options.table_cache_size, std::move(l1));
}

static Task<void> load_tables(GuestDisk& disk, FileOpener& opener) {
  if (disk.head.header.crypt_method != CryptMethod::none)
    co_await fail(unsupported("the image is encrypted"));
  Result<std::vector<Snapshot>> snapshots = co_await load_snapshots(*disk.file, disk.head).result();
  if (snapshots) {
    disk.snapshots = *std::move(snapshots);
  } else if (!disk.options.salvage || !disk.options.snapshot.empty()) {
    co_await std::move(snapshots).doing("snapshot table");
  } else if (disk.options.message) {
    disk.options.message(cat(disk.file->name(), ": ", snapshots.error().message()));
  }
  disk.size = disk.head.header.size;
  HostOffset l1_at = disk.head.header.l1_offset;
  uint64_t l1_entries = disk.head.header.l1_entries;
  if (!disk.options.snapshot.empty()) {
    if (disk.options.writable)
      co_await fail(Error(Errc::read_only, "an internal snapshot can only be read"));
    const Snapshot& snapshot =
        disk.snapshots[co_await find_snapshot(disk.snapshots, {disk.options.snapshot})];
    co_await check_l1_table(snapshot, disk.head.geometry);
    l1_at = snapshot.l1_offset;
    l1_entries = snapshot.l1_entries;
    disk.size = snapshot.disk_size.value_or(disk.size);
    if (disk.head.geometry.l1_entries_for(disk.size) > l1_entries) {
      co_await fail(corrupt("snapshot ", quoted(snapshot.name),
                            ": its L1 table is too small for its disk size"));
    }
  }
  if (disk.options.writable) {
    co_await check_writable(disk);
    if (co_await prepare_writing(disk)) l1_at = disk.head.header.l1_offset;
  }
  std::vector<uint64_t> l1;
  if (disk.options.salvage) {
    l1 = co_await salvage_table(*disk.file, l1_at, l1_entries);
  } else {
    l1 = co_await load_table(*disk.file, l1_at, l1_entries, IoTag::l1_load);
  }
  // VM state lies behind the disk; the map keeps only what the disk needs when it is not written.
  make_map(disk, std::move(l1));
  if (disk.head.header.has(kDataFile)) co_await open_data_file(disk, opener).doing("data file");
}

/// How the disk below an image is opened that was opened as `options` say.
static ImageOptions options_below(const ImageOptions& options) {
  ImageOptions below = options;
  below.writable = options.writable_below == 1;
  below.writable_below = options.writable_below == 0 ? 0 : options.writable_below - 1;
  below.snapshot.clear();
  below.data_file.clear();
  return below;
}

Task<void> Image::Opening::open_backing(GuestDisk& disk, FileOpener& opener, const Layer& self) {
  if (self.depth + 1 > disk.options.chain_depth_max) {
    co_await fail(
        unsupported("the backing chain is longer than ", disk.options.chain_depth_max, " images"));
  }
  if (disk.options.named_devices && disk.options.named_devices->knows(*disk.head.backing_file)) {
    ImageOptions options = options_below(disk.options);
    options.chain_depth_max -= self.depth + 1;
    disk.backing = co_await disk.options.named_devices
                       ->open(opener, disk.head, disk.file->name(), std::move(options))
                       .doing("backing file ", quoted(*disk.head.backing_file));
    co_return;
  }
  const BackingFile below = co_await backing_of(disk.head);
  const auto circle = [&] {
    return corrupt("backing file ", quoted(below.name), " of ", quoted(disk.file->name()),
                   ": the backing chain goes in a circle");
  };
  ImageOptions options = options_below(disk.options);
  const FileOptions how{.writable = options.writable,
                        .direct = disk.options.direct,
                        .lock = disk.options.lock,
                        .share_lock = disk.options.share_lock};
  Result<std::unique_ptr<File>> file =
      opener.open_named_by_image(disk.file->name(), below.name, how);
  if (!file && file.error().code() == Errc::busy) {
    // Locked by ourselves, perhaps.
    FileOptions unlocked = how;
    unlocked.lock = false;
    const Result<std::unique_ptr<File>> peek =
        opener.open_named_by_image(disk.file->name(), below.name, unlocked);
    if (peek && self.has(id_of(**peek))) co_await fail(circle());
  }
  if (!file) co_await fail(named_once(std::move(file).error(), "backing file", below.name));
  const FileId id = id_of(**file);
  if (self.has(id)) co_await fail(circle());
  auto raw =
      std::make_unique<RawDevice>(*std::move(file), RawOptions{.growable = options.writable});
  if (!below.is_image) {
    disk.backing = std::move(raw);
    co_return;
  }
  disk.backing = co_await open_layer(std::move(raw), opener, std::move(options),
                                     {.above = &self, .depth = self.depth + 1, .id = id});
}

/// Without a scan, metadata that no refcount protects would be handed out and overwritten (the
/// refcount block that nobody counted): such an image is not written.  Header, L1 and refcount
/// table are checked here, a refcount block when its region is loaded, an L2 table before it is
/// first changed.
static Task<void> check_own_refcounts(GuestDisk& disk) {
  co_await disk.allocator->load({{0}, 1}).doing("header");
  co_await disk.allocator->load(l1_table(disk)).doing("L1 table");
  co_await disk.allocator->load(refcount_table(disk)).doing("refcount table");
}

static Error overlaps(std::string_view what, HostOffset at) {
  return corrupt(what, " at ", at, " overlaps other metadata; run check -r all");
}

/// What the header leads to is metadata from here on.  Two things in one place are refused, unless
/// a scan is about to say what that means.
static Task<void> claim_roots(GuestDisk& disk) {
  const Header& header = disk.head.header;
  const Geometry& g = disk.geometry();
  const bool strict = disk.options.scan == ImageOptions::Scan::never;
  disk.metadata.add(HostCluster{0});
  if (!disk.metadata.add_run(l1_table(disk)) && strict) {
    co_await fail(overlaps("L1 table", header.l1_offset));
  }
  if (!disk.metadata.add_run(refcount_table(disk)) && strict) {
    co_await fail(overlaps("refcount table", header.refcount_table_offset));
  }
  for (const Snapshot& snapshot : disk.snapshots) {
    Result<void> sound = check_l1_table(snapshot, g);
    if (!sound && !strict) continue;
    co_await std::move(sound);
    // Deleting it would free what the other one needs (S1).
    if (!disk.metadata.add_run(hosts(snapshot, g)) && strict) {
      co_await fail(
          overlaps(cat("L1 table of snapshot ", quoted(snapshot.name)), snapshot.l1_offset));
    }
  }
  if (disk.snapshots.empty()) co_return;
  const std::vector<std::byte> table = co_await serialize_snapshots(disk.snapshots);
  if (!disk.metadata.add_run(
          {g.cluster_of(header.snapshots_offset), g.clusters_for(table.size())}) &&
      strict) {
    co_await fail(overlaps("snapshot table", header.snapshots_offset));
  }
}

/// Likewise refcount blocks and L2 tables.  Gives the refcount table.
static Task<std::vector<uint64_t>> claim_tables(GuestDisk& disk) {
  const Header& header = disk.head.header;
  const Geometry& g = disk.geometry();
  const bool strict = disk.options.scan == ImageOptions::Scan::never;
  const uint64_t entries = header.refcount_table_clusters * g.refcount_table_entries_per_cluster();
  std::vector<uint64_t> refcounts = co_await load_table(*disk.file, header.refcount_table_offset,
                                                        entries, IoTag::refcount_table_load);
  for (uint64_t i = 0; i < refcounts.size(); ++i) {
    if (refcounts[i] == 0) continue;
    Result<std::optional<HostCluster>> decoded =
        decode_refcount_table_entry(refcounts[i], g).doing("refcount table entry ", i);
    if (!decoded && !strict) continue;
    const std::optional<HostCluster> at = co_await std::move(decoded);
    if (at && !disk.metadata.add(*at) && strict)
      co_await fail(overlaps("refcount block", g.start_of(*at)));
  }
  for (uint64_t i = 0; i < disk.map->l1().size(); ++i) {
    if (disk.map->l1()[i] == 0) continue;
    Result<L1Entry> decoded = decode_l1(disk.map->l1()[i], g).doing("L1 entry ", i);
    if (!decoded && !strict) continue;
    const L1Entry entry = co_await std::move(decoded);
    if (entry.l2 && !disk.metadata.add(*entry.l2) && strict) {
      co_await fail(overlaps("L2 table", g.start_of(*entry.l2)));
    }
  }
  co_return std::move(refcounts);
}

/// The parts that only a writable image has.
static void make_writable(GuestDisk& disk, std::vector<uint64_t> refcounts) {
  const Geometry& g = disk.geometry();
  ReadyQueue& ready = disk.reactor.ready();
  disk.allocator = std::make_unique<Allocator>(
      ready, *disk.file, g, disk.stages, disk.epochs, disk.metadata,
      Allocator::Options{.punch = disk.options.discard == DiscardPolicy::unmap,
                         .host_size_max = disk.options.host_size_max,
                         .growth_step = disk.options.growth_step,
                         .reuse_freed = disk.options.reuse_freed},
      std::move(refcounts), refcount_table(disk));
  disk.allocator->set_spawner([&disk](Task<void> task) { disk.spawn(std::move(task)); });
  disk.latch = std::make_unique<SyncLatch>(*disk.file, disk.data.get());
  disk.header = std::make_unique<HeaderState>(ready, *disk.file, *disk.latch, disk.head);
  disk.committer = std::make_unique<Committer>(
      ready, *disk.file, static_cast<bool>(disk.data), *disk.latch, *disk.header, disk.stages,
      disk.epochs, *disk.map, *disk.allocator, disk.metadata,
      disk.options.lazy_refcounts.value_or((disk.head.header.compatible & kLazyRefcounts) != 0));
  disk.allocator->set_on_free([&disk](HostCluster cluster) { disk.decompressed.forget(cluster); });
  disk.packer = std::make_unique<CompressedPacker>(ready, g, *disk.allocator, disk.stream_writer());
  if (disk.data) {
    disk.on_removed = [&disk](GuestCluster cluster) { note_removed(disk, cluster); };
    disk.committer->set_on_durable([&disk] { punch_what_is_durable(disk); });
  }
  disk.epochs.on_quiet([&disk] {
    if (disk.closed()) return;
    disk.allocator->reclaim();
    disk.schedule_commit();
  });
}

/// Counts all references before anything changes, or begins to (V).  What is left to do beside
/// requests is given back.
static Task<std::unique_ptr<ReferenceScan>> scan_references(GuestDisk& disk, ImageHealth& health) {
  using Scan = ImageOptions::Scan;
  if (disk.options.scan == Scan::never) {
    co_await check_own_refcounts(disk);
    co_return std::unique_ptr<ReferenceScan>();
  }
  disk.references.close();
  // Bitmaps are loaded by refcounts that must be right.
  const bool beside = disk.options.scan == Scan::beside_requests && !disk.options.refuse_damaged &&
                      !disk.head.extensions.bitmaps;
  auto scan = std::make_unique<ReferenceScan>(
      *disk.file, disk.head,
      ReferenceScanOptions{.paced = beside,
                           .gate = beside ? &disk.background : nullptr,
                           .read_tables_max = disk.options.scan == Scan::beside_requests
                                                  ? disk.options.table_cache_size
                                                  : 0});
  scan->progress().stop_when([&disk] { return disk.closing; });
  co_await scan->read_roots();
  // What only snapshots lead to is no place for guest data either (M5).
  scan->each_table([&](HostCluster at) { (void)disk.metadata.add(at); });
  if (beside && scan->table_bytes() > disk.options.scanned_at_once) co_return std::move(scan);
  if (disk.options.refuse_damaged) {
    health.damage = co_await scan->finish();
    health.known = true;
    if (!health.damage.sound())
      co_await fail(refuse_damaged(health.damage, disk.name(), disk.geometry()));
    co_await heal(disk, health.damage);  // Only leaks are left, and go if that was asked for.
    co_return std::unique_ptr<ReferenceScan>();
  }
  co_await scan_and_heal(disk, std::move(scan), health, ScanTime::while_opening);
  co_return std::unique_ptr<ReferenceScan>();
}

static Task<void> begin_writing(GuestDisk& disk, ImageHealth& health) {
  const Header& header = disk.head.header;
  co_await claim_roots(disk);
  make_writable(disk, co_await claim_tables(disk));
  std::unique_ptr<ReferenceScan> scan = co_await scan_references(disk, health);
  // Space for what commits write in place (A1); a full disk is met again by whoever needs more.
  for (const HostSpan& run : {HostSpan{{0}, 1}, l1_table(disk), refcount_table(disk)}) {
    if (run.count == 0) continue;
    const uint64_t length = run.count * disk.cluster_size();
    (void)co_await disk.file->allocate(disk.geometry().start_of(run.first).value, length).result();
  }
  disk.length_at_open = disk.file->size();
  disk.bitmaps =
      std::make_unique<Bitmaps>(disk.reactor.ready(), *disk.file, *disk.header, *disk.allocator,
                                *disk.committer, disk.metadata, disk.references);
  co_await disk.bitmaps->load(disk.options.message);

  // Features that only their own writers keep true are switched off before the first change.
  const uint64_t kept = header.autoclear & ((disk.head.extensions.bitmaps ? kBitmaps : 0) |
                                            (disk.has_raw_data() ? kRawDataFile : 0));
  if (header.version >= 3) co_await disk.header->change({.autoclear = kept});
  if (scan)
    disk.spawn_long(scan_and_heal(disk, std::move(scan), health, ScanTime::beside_requests));
}

// --- Layers -------------------------------------------------------------------------------------

Task<std::unique_ptr<Image>> Image::Opening::open_layer(Child file, FileOpener& opener,
                                                        ImageOptions options, Layer self,
                                                        Child backing, Child data_file) {
  const std::string name = file->name();
  // Reading needs no refcounts.
  const OpenFor purpose = options.salvage ? OpenFor::repair : OpenFor::use;
  Result<ImageHeader> head = co_await load_image_header(*file, purpose).result();
  if (head && data_file && !head->header.has(kDataFile)) {
    head = invalid("'data-file' can only be set for images with an external data file");
  }
  if (!head) {
    for (Child* child : {&file, &backing, &data_file}) child->abandon();
  }
  if (!head && self.depth > 0) co_return named_once(std::move(head).error(), "backing file", name);
  if (!head) co_return std::move(head).error();
  auto disk = std::make_unique<GuestDisk>(std::move(file), *std::move(head), std::move(options));
  disk->backing = std::move(backing);
  disk->data = std::move(data_file);
  auto health = std::make_unique<ImageHealth>();
  Result<void> loaded = co_await load(*disk, *health, opener, self).result();
  if (!loaded) {
    disk->abandon();
    co_return std::move(loaded).error();
  }
  std::unique_ptr<Image> image(new Image(std::move(disk), std::move(health)));
  // With edges of its own: of the backing disk it claims nothing until somebody reads it (G4).
  if (Result<void> allowed = image->disk_->claim_devices(); !allowed) {
    image->abandon();
    co_return std::move(allowed).error();
  }
  co_return std::move(image);
}

/// Divides the memory for caches among this image and those below it.
void Image::Opening::share_caches(Image& top) {
  std::vector<GuestDisk*> chain;
  for (Image* image = &top; image; image = dynamic_cast<Image*>(image->backing())) {
    chain.push_back(image->disk_.get());
  }
  if (chain.size() == 1) return;
  const uint64_t share = top.disk_->options.table_cache_size / chain.size();
  for (GuestDisk* disk : chain) {
    disk->options.table_cache_size = share;  // Also of the map that a reopened image gets.
    disk->map->cache().limit(share);
    disk->decompressed.limit(DecompressedCache::kBytesMax / chain.size());
  }
}

Task<std::unique_ptr<Image>> Image::open(Reactor& reactor, FileOpener& opener, std::string name,
                                         ImageOptions options) {
  (void)reactor;
  std::unique_ptr<File> file = co_await opener.open(name, {.writable = options.writable,
                                                           .direct = options.direct,
                                                           .lock = options.lock,
                                                           .share_lock = options.share_lock});
  co_return co_await open_over(
      std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = options.writable}),
      opener, std::move(options));
}

Task<std::unique_ptr<Image>> Image::open_over(Child file, FileOpener& opener, ImageOptions options,
                                              Child backing, Child data_file) {
  const FileId id = id_of(*file);
  const std::string name = file->name();
  Result<std::unique_ptr<Image>> image =
      co_await Opening::open_layer(std::move(file), opener, std::move(options), {.id = id},
                                   std::move(backing), std::move(data_file))
          .result();
  if (!image) co_return std::move(image).error().while_doing(cat("open ", quoted(name)));
  Opening::share_caches(**image);
  co_return std::move(image);
}

// --- Reopening ----------------------------------------------------------------------------------

/// An image that is read has none of these.
static void end_writing(GuestDisk& disk) {
  disk.options.writable = false;
  disk.bitmaps.reset();
  disk.packer.reset();
  disk.committer.reset();
  disk.header.reset();
  disk.latch.reset();
  disk.allocator.reset();
  disk.on_removed = {};
  disk.epochs.on_quiet({});
  disk.metadata = MetadataSet();
  if (!disk.references.decided()) disk.references.open();
}

/// As when it is opened: nobody else could write it meanwhile, but what was read then is read anew.
static Task<void> begin_writing_again(GuestDisk& disk, ImageHealth& health) {
  if (!disk.options.snapshot.empty()) {
    co_await fail(Error(Errc::read_only, "an internal snapshot can only be read"));
  }
  if (disk.options.salvage) co_await fail(Error(Errc::read_only, "it was opened to be salvaged"));
  disk.head = co_await load_image_header(*disk.file);
  co_await check_writable(disk);
  disk.options.writable = true;
  disk.options.scan = ImageOptions::Scan::at_open;
  co_await disk.claim_devices();
  (void)co_await prepare_writing(disk);
  disk.snapshots = co_await load_snapshots(*disk.file, disk.head).doing("snapshot table");
  disk.size = disk.head.header.size;
  const Header& header = disk.head.header;
  make_map(disk,
           co_await load_table(*disk.file, header.l1_offset, header.l1_entries, IoTag::l1_load));
  if (disk.data) co_await disk.data->flush(IoTag::none);
  co_await begin_writing(disk, health);
}

Task<void> Image::end_own_work() { co_await disk_->end_own_work(); }

Task<void> Image::reopen(bool writable) {
  if (writable) {
    end_writing(*disk_);
    Result<void> begun = co_await begin_writing_again(*disk_, *health_).result();
    if (begun) co_return;
    end_writing(*disk_);
    (void)disk_->claim_devices();
    co_await std::move(begun).doing("open ", quoted(name()), " for writing");
  }
  const bool clean = !disk_->committer->has_work() &&
                     (disk_->references.refused() || disk_->allocator->limbo_empty());
  if (!clean) {
    co_await fail(Error(Errc::io, cat(quoted(name()),
                                      ": what was written could not be committed: "
                                      "it stays open for writing")));
  }
  if (!disk_->references.refused()) co_await disk_->bitmaps->store_exact();
  co_await disk_->commit_the_rest();
  disk_->options.writable = false;
  (void)disk_->claim_devices();
}

}  // namespace byre
