// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "block/raw.h"
#include "format/refcount.h"
#include "qcow2/check.h"
#include "qcow2/image.h"

namespace byre {

namespace {

/// As load_table(), but what cannot be read becomes entries that are no entries, sector by sector.
Task<std::vector<uint64_t>> salvage_table(Device& file, HostOffset at, uint64_t entries) {
  Result<std::vector<uint64_t>> whole =
      co_await load_table(file, at, entries, Mark::l1_load).result();
  if (whole) co_return *std::move(whole);
  constexpr uint64_t kNoEntry = UINT64_MAX;
  constexpr uint64_t kStep = kSectorSize / 8;
  std::vector<uint64_t> table(entries, kNoEntry);
  for (uint64_t first = 0; first < entries; first += kStep) {
    const uint64_t count = std::min(kStep, entries - first);
    const Result<std::vector<uint64_t>> part =
        co_await load_table(file, at + first * 8, count, Mark::l1_load).result();
    if (part) std::copy(part->begin(), part->end(), table.begin() + static_cast<ptrdiff_t>(first));
  }
  co_return table;
}

}  // namespace

Image::Image(std::unique_ptr<Device> file, Head head, ImageOptions options)
    : file_(std::make_unique<Freezer>(std::move(file))),
      reactor_(file_->reactor()),
      head_(std::move(head)),
      options_(std::move(options)),
      locks_(reactor_.ready()),
      resize_mutex_(reactor_.ready()),
      check_mutex_(reactor_.ready()),
      size_lock_(reactor_.ready()),
      unpacked_(reactor_.ready(), head_.geometry),
      background_(reactor_.ready()),
      idle_(reactor_.ready()) {}

Image::~Image() { BYRE_ASSERT(closed_); }

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

struct Image::Layer {
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

Task<std::unique_ptr<Image>> Image::open(Reactor& reactor, Gate& gate, std::string name,
                                         ImageOptions options) {
  (void)reactor;
  std::unique_ptr<File> file = co_await gate.open(name, {.writable = options.writable,
                                                         .direct = options.direct,
                                                         .lock = options.lock,
                                                         .share_lock = options.share_lock});
  co_return co_await open_over(
      std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = options.writable}), gate,
      std::move(options));
}

Task<std::unique_ptr<Image>> Image::open_over(std::unique_ptr<Device> file, Gate& gate,
                                              ImageOptions options) {
  const FileId id = id_of(*file);
  const std::string name = file->name();
  Result<std::unique_ptr<Image>> image =
      co_await open_layer(std::move(file), gate, std::move(options), {.id = id}).result();
  if (!image) co_return std::move(image).error().while_doing(cat("open ", quoted(name)));
  (*image)->share_caches();
  co_return std::move(image);
}

Task<std::unique_ptr<Image>> Image::open_layer(std::unique_ptr<Device> file, Gate& gate,
                                               ImageOptions options, Layer self) {
  const std::string name = file->name();
  // Reading needs no refcounts.
  const OpenFor purpose = options.salvage ? OpenFor::repair : OpenFor::use;
  Result<Head> head = co_await load_head(*file, purpose).result();
  if (!head && self.depth > 0) co_return named_once(std::move(head).error(), "backing file", name);
  if (!head) co_return std::move(head).error();
  std::unique_ptr<Image> image(new Image(std::move(file), *std::move(head), std::move(options)));
  Result<void> loaded = co_await image->load(gate, self).result();
  if (!loaded) {
    image->abandon();
    co_return std::move(loaded).error();
  }
  co_return std::move(image);
}

void Image::share_caches() {
  std::vector<Image*> chain;
  for (Image* image = this; image; image = dynamic_cast<Image*>(image->backing_.get())) {
    chain.push_back(image);
  }
  if (chain.size() == 1) return;
  for (Image* image : chain) {
    image->map_->cache().limit(options_.table_cache_size / chain.size());
    image->unpacked_.limit(UnpackedCache::kBytesMax / chain.size());
  }
}

/// What keeps this image from being written, apart from its refcounts.
Result<void> Image::check_writable() const {
  const Header& header = head_.header;
  if (header.has(kCorrupt)) {
    return Error(
        Errc::read_only,
        "the image is marked corrupt; open it read-only to save its data, or run check -r all");
  }
  if (header.version < 3 && (options_.lazy_refcounts.value_or(false) || options_.discard_keeps)) {
    return unsupported(
        options_.discard_keeps ? "discards that keep their clusters" : "lazy refcounts",
        " need an image of version 3 (compat=1.1)");
  }
  return {};
}

Task<void> Image::load(Gate& gate, const Layer& self) {
  Result<void> loaded = co_await load_tables(gate).result();
  if (!loaded && self.depth > 0)
    co_await fail(named_once(std::move(loaded).error(), "backing file", name()));
  co_await std::move(loaded);
  if (head_.backing_file && !options_.without_backing) co_await open_backing(gate, self);
  if (options_.writable) {
    co_await begin_writing();
  } else if (options_.snapshot.empty() && self.depth == 0) {
    // Damaged ones are no reason not to read the disk.
    Result<BitmapList> bitmaps = co_await load_bitmap_list(*file_, head_).result();
    if (bitmaps) {
      bitmap_list_ = *std::move(bitmaps);
    } else if (options_.message) {
      options_.message(cat(file_->name(), ": ", bitmaps.error().message()));
    }
  }
}

Task<void> Image::load_tables(Gate& gate) {
  if (head_.header.crypt_method != CryptMethod::none)
    co_await fail(unsupported("the image is encrypted"));
  Result<std::vector<Snapshot>> snapshots = co_await load_snapshots(*file_, head_).result();
  if (snapshots) {
    snapshots_ = *std::move(snapshots);
  } else if (!options_.salvage || !options_.snapshot.empty()) {
    co_await std::move(snapshots).doing("snapshot table");
  } else if (options_.message) {
    options_.message(cat(file_->name(), ": ", snapshots.error().message()));
  }
  size_ = head_.header.size;
  HostOffset l1_at = head_.header.l1_offset;
  uint64_t l1_entries = head_.header.l1_entries;
  if (!options_.snapshot.empty()) {
    if (options_.writable)
      co_await fail(Error(Errc::read_only, "an internal snapshot can only be read"));
    const Snapshot& snapshot = snapshots_[co_await find_snapshot(snapshots_, {options_.snapshot})];
    co_await check_l1_table(snapshot, head_.geometry);
    l1_at = snapshot.l1_offset;
    l1_entries = snapshot.l1_entries;
    size_ = snapshot.disk_size.value_or(size_);
    if (head_.geometry.l1_entries_for(size_) > l1_entries) {
      co_await fail(corrupt("snapshot ", quoted(snapshot.name),
                            ": its L1 table is too small for its disk size"));
    }
  }
  if (options_.writable) {
    co_await check_writable();
    // What a process that was killed wrote may be in the page cache alone; from here on what is
    // read counts as durable (O4, O8).
    co_await file_->flush(Mark::none);
    if (head_.header.has(kDirty)) {
      const CheckReport report = co_await rebuild_refcounts(*file_).doing("rebuild refcounts");
      if (options_.message) {
        options_.message(cat(file_->name(),
                             ": the image was not closed cleanly; its refcounts were rebuilt (",
                             report.leaks_fixed + report.corruptions_fixed, " changed)"));
      }
      head_ = co_await load_head(*file_);
      l1_at = head_.header.l1_offset;
    }
  }
  std::vector<uint64_t> l1;
  if (options_.salvage) {
    l1 = co_await salvage_table(*file_, l1_at, l1_entries);
  } else {
    l1 = co_await load_table(*file_, l1_at, l1_entries, Mark::l1_load);
  }
  // VM state lies behind the disk; the map keeps only what the disk needs when it is not written.
  map_ = std::make_unique<Map>(reactor_.ready(), *file_, head_.geometry, stages_, metadata_,
                               options_.table_cache_size, std::move(l1));
  if (head_.header.has(kDataFile)) co_await open_data_file(gate).doing("data file");
}

Task<void> Image::open_backing(Gate& gate, const Layer& self) {
  const BackingFile below = co_await backing_of(head_);
  if (self.depth + 1 > options_.chain_depth_max) {
    co_await fail(
        unsupported("the backing chain is longer than ", options_.chain_depth_max, " images"));
  }
  const auto circle = [&] {
    return corrupt("backing file ", quoted(below.name), " of ", quoted(file_->name()),
                   ": the backing chain goes in a circle");
  };
  const FileOptions how{
      .direct = options_.direct, .lock = options_.lock, .share_lock = options_.share_lock};
  Result<std::unique_ptr<File>> file = gate.open_named_by_image(file_->name(), below.name, how);
  if (!file && file.error().code() == Errc::busy) {
    // Locked by ourselves, perhaps.
    FileOptions unlocked = how;
    unlocked.lock = false;
    const Result<std::unique_ptr<File>> peek =
        gate.open_named_by_image(file_->name(), below.name, unlocked);
    if (peek && self.has(id_of(**peek))) co_await fail(circle());
  }
  if (!file) co_await fail(named_once(std::move(file).error(), "backing file", below.name));
  const FileId id = id_of(**file);
  if (self.has(id)) co_await fail(circle());
  auto raw = std::make_unique<RawDevice>(*std::move(file));
  if (!below.is_image) {
    backing_ = std::move(raw);
    co_return;
  }
  ImageOptions options = options_;
  options.writable = false;
  options.snapshot.clear();
  options.data_file.clear();
  backing_ = co_await open_layer(std::move(raw), gate, std::move(options),
                                 {.above = &self, .depth = self.depth + 1, .id = id});
}

/// Metadata that no refcount protects would be handed out and overwritten (the refcount block that
/// nobody counted): such an image is not written.  Header, L1 and refcount table are checked here,
/// a refcount block when its region is loaded, an L2 table before it is first changed.
Task<void> Image::check_own_refcounts() {
  const Header& header = head_.header;
  const Geometry& g = head_.geometry;
  co_await allocator_->load({{0}, 1}).doing("header");
  co_await allocator_
      ->load({g.cluster_of(header.l1_offset), g.clusters_for(header.l1_entries * uint64_t{8})})
      .doing("L1 table");
  co_await allocator_
      ->load({g.cluster_of(header.refcount_table_offset), header.refcount_table_clusters})
      .doing("refcount table");
}

Task<void> Image::begin_writing() {
  const Header& header = head_.header;
  const Geometry& g = head_.geometry;
  const auto clash = [](std::string_view what, HostOffset at) {
    return corrupt(what, " at ", at, " overlaps other metadata; run check -r all");
  };
  metadata_.add(HostCluster{0});
  const HostSpan l1{g.cluster_of(header.l1_offset),
                    g.clusters_for(header.l1_entries * uint64_t{8})};
  if (!metadata_.add_run(l1)) co_await fail(clash("L1 table", header.l1_offset));
  const HostSpan table{g.cluster_of(header.refcount_table_offset), header.refcount_table_clusters};
  if (!metadata_.add_run(table))
    co_await fail(clash("refcount table", header.refcount_table_offset));
  for (const Snapshot& snapshot : snapshots_) {
    co_await check_l1_table(snapshot, g);
    // Deleting it would free what the other one needs (S1).
    if (!metadata_.add_run(hosts(snapshot, g))) {
      co_await fail(clash(cat("L1 table of snapshot ", quoted(snapshot.name)), snapshot.l1_offset));
    }
  }
  if (!snapshots_.empty()) {
    const std::vector<std::byte> snapshot_table = co_await serialize_snapshots(snapshots_);
    if (!metadata_.add_run(
            {g.cluster_of(header.snapshots_offset), g.clusters_for(snapshot_table.size())})) {
      co_await fail(clash("snapshot table", header.snapshots_offset));
    }
  }

  const uint64_t entries = header.refcount_table_clusters * g.refcount_table_entries_per_cluster();
  std::vector<uint64_t> refcounts =
      co_await load_table(*file_, header.refcount_table_offset, entries, Mark::refcount_table_load);
  for (uint64_t i = 0; i < refcounts.size(); ++i) {
    if (refcounts[i] == 0) continue;
    const std::optional<HostCluster> at =
        co_await decode_refcount_table_entry(refcounts[i], g).doing("refcount table entry ", i);
    if (at && !metadata_.add(*at)) co_await fail(clash("refcount block", g.start_of(*at)));
  }
  for (uint64_t i = 0; i < map_->l1().size(); ++i) {
    if (map_->l1()[i] == 0) continue;
    const L1Entry entry = co_await decode_l1(map_->l1()[i], g).doing("L1 entry ", i);
    if (entry.l2 && !metadata_.add(*entry.l2))
      co_await fail(clash("L2 table", g.start_of(*entry.l2)));
  }

  allocator_ = std::make_unique<Allocator>(
      reactor_.ready(), *file_, g, stages_, epochs_, metadata_,
      Allocator::Options{.punch = options_.discard == DiscardPolicy::unmap,
                         .host_size_max = options_.host_size_max,
                         .growth_step = options_.growth_step},
      std::move(refcounts), table);
  allocator_->set_spawner(
      [this](Task<void> task) { background_.spawn(in_background(std::move(task))); });
  sync_latch_ = std::make_unique<SyncLatch>(*file_, data_.get());
  header_state_ = std::make_unique<HeaderState>(reactor_.ready(), *file_, *sync_latch_, head_);
  committer_ = std::make_unique<Committer>(
      reactor_.ready(), *file_, data_ != nullptr, *sync_latch_, *header_state_, stages_, epochs_,
      *map_, *allocator_, metadata_,
      options_.lazy_refcounts.value_or((header.compatible & kLazyRefcounts) != 0));
  committer_->set_on_durable([this] { punch_what_is_durable(); });
  allocator_->set_on_free([this](HostCluster cluster) { unpacked_.forget(cluster); });
  packer_ = std::make_unique<Packer>(reactor_.ready(), g, *allocator_,
                                     static_cast<Packer::Writer&>(*this));
  epochs_.on_quiet([this] {
    if (closed_) return;
    allocator_->reclaim();
    staged();
  });
  // Space for what commits write in place (A1); a full disk is met again by whoever needs more.
  for (const HostSpan& run : {HostSpan{{0}, 1}, l1, table}) {
    if (run.count == 0) continue;
    const uint64_t length = run.count * cluster_size();
    (void)co_await file_->allocate(g.start_of(run.first).value, length).result();
  }
  length_at_open_ = file_->size();
  co_await check_own_refcounts();
  bitmaps_ = std::make_unique<Bitmaps>(reactor_.ready(), *file_, *header_state_, *allocator_,
                                       *committer_, metadata_);
  co_await bitmaps_->load(options_.message);

  // Features that only their own writers keep true are switched off before the first change.
  const uint64_t kept = header.autoclear & ((head_.extensions.bitmaps ? kBitmaps : 0) |
                                            (has_raw_data() ? kRawDataFile : 0));
  if (header.version >= 3) co_await header_state_->change({.autoclear = kept});
}

}  // namespace byre
