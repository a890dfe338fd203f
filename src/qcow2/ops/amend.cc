// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/amend.h"

#include <algorithm>
#include <bit>
#include <set>
#include <unordered_map>

#include "base/checked.h"
#include "format/header_change.h"
#include "format/refcount.h"
#include "qcow2/core/counted.h"
#include "qcow2/core/l2_patch.h"
#include "qcow2/core/quiesced.h"
#include "qcow2/guest/guest_disk.h"
#include "qcow2/ops/resize.h"
#include "qcow2/ops/snapshot.h"

namespace byre {

namespace {
/// L2 tables that change together, between two syncs.
constexpr uint64_t kTableBytesAtOnce = 8 * MiB;
constexpr std::string_view kNeedsVersion3 =
    "compatibility level 1.1 and above (use compat=1.1 or greater)";
class Amendment {
 public:
  Amendment(GuestDisk& disk, AmendOptions options)
      : disk_(disk), options_(std::move(options)), quiesced_(disk) {}
  Amendment(const Amendment&) = delete;

  /// Refuses what cannot be; writes nothing.
  Task<void> plan();
  Task<void> run();

 private:
  /// The header as it will be.
  struct Wanted {
    Header header;
    Extensions extensions;
    std::string backing_file;
  };
  /// An L2 table with other entries, not written yet.
  struct NewTable {
    L2Patch patch;
    uint64_t owners = 0;  ///< L1 entries that lead to it.
    std::vector<HostSpan> removed;
  };

  /// Who leads to an L2 table.
  struct Place {
    uint64_t l1_index = 0;
    bool active = false;
    uint64_t owners = 0;
  };

  /// A refcount table of another width, and its blocks, in the order of the entries that need one.
  struct OtherWidth {
    Geometry geometry;
    Reservation table;
    std::vector<HostCluster> blocks;
    std::set<uint64_t> indices;
  };

  const Geometry& g() const { return disk_.head.geometry; }
  Allocator& allocator() { return *disk_.allocator; }
  Committer& committer() { return *disk_.committer; }
  uint32_t version() const { return options_.version.value_or(g().version); }
  uint32_t bits() const { return options_.refcount_bits.value_or(g().refcount_bits()); }
  bool downgrades() const { return version() < g().version; }

  Result<void> check() const;
  Result<void> check_downgrade() const;
  Result<void> check_names() const;
  Task<void> check_refcounts();
  Task<void> check_header();

  Task<std::vector<std::byte>> first_cluster();
  Task<Wanted> current(Bytes first);
  void upgrade(Wanted& wanted) const;
  void finish(Wanted& wanted) const;
  Task<void> put(const Quiesced& quiesced, Bytes first, const Wanted& wanted);

  Task<void> expand_zeros();
  Task<void> expand_table(HostCluster table, const Place& place);
  Task<void> write_tables();

  Task<void> change_width();
  Task<void> reserve(OtherWidth& other);
  Task<void> write_block(const OtherWidth& other, uint64_t number, uint64_t index,
                         const std::set<uint64_t>& freed);
  Task<void> give_up_old_refcounts(const OtherWidth& other);
  std::vector<std::byte> compose(uint64_t index, const Geometry& wide,
                                 const std::set<uint64_t>& freed) const;
  std::set<uint64_t> indices(const Geometry& wide) const;
  void progress(double fraction) const {
    if (options_.progress) options_.progress->set_fraction(fraction);
  }

  GuestDisk& disk_;
  AmendOptions options_;
  Quiesced quiesced_;
  std::vector<NewTable> tables_;
  std::vector<Reservation> fresh_;
};

}  // namespace

// --- What is refused -----------------------------------------------------------------------------

Result<void> Amendment::check() const {
  if (version() != 2 && version() != 3) return invalid("Unknown compatibility level");
  if (!std::has_single_bit(bits()) || bits() > 64) {
    return invalid("Refcount width must be a power of two and may not exceed 64 bits");
  }
  if (version() < 3 && bits() != 16) {
    return invalid("Refcount widths other than 16 bits require compatibility level 1.1 or above ",
                   "(use compat=1.1 or greater)");
  }
  if (version() < 3 && options_.lazy_refcounts.value_or(false)) {
    return invalid("Lazy refcounts only supported with ", kNeedsVersion3);
  }
  if (downgrades()) {
    if (Result<void> possible = check_downgrade(); !possible) return possible;
  }
  if (Result<void> names = check_names(); !names) return names;
  if (options_.size && *options_.size != disk_.size) {
    if (*options_.size % kSectorSize != 0) {
      return invalid("The new size must be a multiple of ", kSectorSize);
    }
    return check_resize(disk_, *options_.size);
  }
  return {};
}

Result<void> Amendment::check_downgrade() const {
  const ImageHeader& head = disk_.head;
  const auto has_bitmaps = [](const UnknownExtension& extension) {
    return extension.type == kBitmapsExtension;
  };
  if (g().data_file) return invalid("Cannot downgrade an image with a data file");
  if (g().extended_l2) return invalid("Cannot downgrade an image with extended L2 entries");
  if (head.header.compression != Compression::deflate) {
    return invalid("Cannot downgrade an image whose compression type is not zlib");
  }
  if (head.extensions.bitmaps ||
      std::any_of(head.extensions.unknown.begin(), head.extensions.unknown.end(), has_bitmaps)) {
    return invalid(
        "Cannot downgrade an image with persistent bitmaps, which would be lost; remove them "
        "first ",
        "(bitmap --remove IMAGE NAME)");
  }
  for (const Snapshot& snapshot : disk_.snapshots) {
    if (snapshot.disk_size.value_or(disk_.size) == options_.size.value_or(disk_.size)) continue;
    return invalid("Internal snapshots prevent downgrade of image: ", quoted(snapshot.name),
                   " is of another size than the disk");
  }
  return {};
}

Result<void> Amendment::check_names() const {
  const ImageHeader& head = disk_.head;
  if (options_.data_file && !g().data_file) {
    return invalid("data-file can only be set for images that use an external data file");
  }
  const bool raw = (head.header.autoclear & kRawDataFile) != 0;
  if (options_.data_file_raw.value_or(false) && !raw) {
    return invalid("data-file-raw cannot be set on existing images");
  }
  const std::string backing = options_.backing_file.value_or(head.backing_file.value_or(""));
  const std::string format =
      options_.backing_format.value_or(head.extensions.backing_format.value_or(""));
  const bool changes = options_.backing_file || options_.backing_format;
  if (changes && backing.empty() && options_.backing_format && !options_.backing_format->empty()) {
    return invalid("Backing format cannot be used without backing file");
  }
  if (changes && !backing.empty() && format.empty()) {
    return invalid("Backing file specified without backing format");
  }
  if (changes && !backing.empty() && raw && options_.data_file_raw.value_or(true)) {
    return invalid("Backing file and data-file-raw cannot be used at the same time");
  }
  if (format.size() > kBackingFormatSizeMax) {
    return invalid("backing format ", quoted(format), " is longer than ", kBackingFormatSizeMax,
                   " bytes");
  }
  if (backing.size() > kBackingFileSizeMax) {
    return invalid("backing file name of ", backing.size(), " bytes, at most ",
                   kBackingFileSizeMax);
  }
  for (const std::string& name : {backing, format, options_.data_file.value_or("")}) {
    if (name.find('\0') != std::string::npos)
      return invalid("the name ", quoted(name), " contains NUL");
  }
  return {};
}

/// Every refcount fits its new width (trap 74).
Task<void> Amendment::check_refcounts() {
  if (bits() == g().refcount_bits()) co_return;
  co_await allocator().load_all();
  const uint64_t most = refcount_max(static_cast<uint32_t>(std::countr_zero(bits())));
  Result<void> fits;
  allocator().each_count([&](HostCluster cluster, uint64_t count) {
    if (count <= most || !fits) return;
    fits = invalid("Cannot decrease refcount entry width to ", bits(), " bits: Cluster at offset ",
                   g().start_of(cluster), " has a refcount of ", count);
  });
  co_await std::move(fits);
}

/// Both headers that will be written have room.
Task<void> Amendment::check_header() {
  std::vector<std::byte> first = co_await first_cluster();
  Wanted wanted = co_await current(first);
  if (version() > g().version) {
    upgrade(wanted);
    const HeaderChange change =
        co_await change_header(first, wanted.header, wanted.extensions, wanted.backing_file);
    copy(MutableBytes(first), change.sector);
    copy(MutableBytes(first).subspan(change.name_at), change.name);
  }
  finish(wanted);
  co_await change_header(first, wanted.header, wanted.extensions, wanted.backing_file);
}

// --- The order of things -------------------------------------------------------------------------

Task<void> Amendment::plan() {
  co_await check();
  co_await check_metadata_is_counted(*disk_.file, disk_.head, disk_.snapshots, disk_.map->l1(),
                                     allocator());
  co_await check_refcounts();
  co_await check_header();
}

Task<void> Amendment::run() {
  if (version() > g().version) {
    co_await complete_snapshots(disk_);
    // Nothing commits from here on: the new header must not carry an old field along.
    Quiesced quiesced(disk_);
    co_await quiesced.begin();
    co_await quiesced.settle();
    const std::vector<std::byte> first = co_await first_cluster();
    Wanted wanted = co_await current(first);
    upgrade(wanted);
    co_await put(quiesced, first, wanted);
  }
  if (options_.size && *options_.size != disk_.size) {
    co_await resize_disk(disk_, *options_.size, Preallocation::off);
  }

  co_await quiesced_.begin();
  co_await quiesced_.settle();
  co_await disk_.bitmaps->store_exact();  // Which may allocate.
  co_await quiesced_.settle();
  if (downgrades()) {
    co_await expand_zeros().doing("write out zero clusters");
    co_await quiesced_.settle();
  }
  co_await committer().finish();
  progress(0.5);
  if (bits() != g().refcount_bits()) co_await change_width().doing("change the refcount width");
  const std::vector<std::byte> first = co_await first_cluster();
  Wanted wanted = co_await current(first);
  finish(wanted);
  co_await put(quiesced_, first, wanted);
  progress(1);
}

// --- The header ----------------------------------------------------------------------------------

Task<std::vector<std::byte>> Amendment::first_cluster() {
  std::vector<std::byte> bytes(g().cluster_size());
  co_await disk_.file->read(0, bytes, IoTag::header_read);
  copy(MutableBytes(bytes), disk_.head.sector);
  co_return bytes;
}

Task<Amendment::Wanted> Amendment::current(Bytes first) {
  Wanted wanted;
  wanted.header = co_await parse_header(first);
  wanted.extensions = co_await parse_extensions(first, wanted.header);
  wanted.backing_file = (co_await parse_backing_file(first, wanted.header)).value_or("");
  wanted.header.incompatible &= ~kDirty;  // Committer::finish() sees to it.
  co_return wanted;
}

void Amendment::upgrade(Wanted& wanted) const {
  wanted.header.version = 3;
  wanted.header.header_length = kHeaderSizeV3;
  wanted.header.refcount_order = 4;
  wanted.extensions.feature_names = default_feature_names();
}

void Amendment::finish(Wanted& wanted) const {
  Header& header = wanted.header;
  Extensions& extensions = wanted.extensions;
  if (options_.backing_file) wanted.backing_file = *options_.backing_file;
  if (options_.backing_format) extensions.backing_format = *options_.backing_format;
  if (wanted.backing_file.empty() || extensions.backing_format == "") {
    extensions.backing_format.reset();
  }
  if (options_.data_file) {
    extensions.data_file_name = *options_.data_file;
    if (options_.data_file->empty()) extensions.data_file_name.reset();
  }
  if (options_.data_file_raw == false) header.autoclear &= ~kRawDataFile;
  if (options_.lazy_refcounts) {
    header.compatible &= ~kLazyRefcounts;
    if (*options_.lazy_refcounts) header.compatible |= kLazyRefcounts;
  }
  if (version() == 3) return;
  header.version = 2;
  header.header_length = kHeaderSizeV2;
  header.incompatible = header.compatible = header.autoclear = 0;
  header.refcount_order = 4;
  header.unknown_fields.clear();
  extensions.feature_names.clear();
}

/// The name of the backing file, where nothing refers to it; then the sector that does.
Task<void> Amendment::put(const Quiesced& quiesced, Bytes first, const Wanted& wanted) {
  HeaderChange change =
      co_await change_header(first, wanted.header, wanted.extensions, wanted.backing_file);
  if (!change.name.empty()) {
    co_await disk_.header->write_past_sector(HostOffset{change.name_at}, change.name);
  }
  RootEdit edit;
  edit.whole = NewHeader{.made_from = {first.begin(), first.begin() + kSectorSize},
                         .sector = std::move(change.sector),
                         .header = wanted.header,
                         .extensions = wanted.extensions,
                         .backing_file = {}};
  if (!wanted.backing_file.empty()) edit.whole->backing_file = wanted.backing_file;
  co_await disk_.header->change(quiesced, std::move(edit));
}

// --- Zero clusters -------------------------------------------------------------------------------

/// Every L2 table once, whoever leads to it (trap 105): what its entries read as does not change.
Task<void> Amendment::expand_zeros() {
  std::unordered_map<HostCluster, Place> found;
  std::vector<HostCluster> order;
  const auto look = [&](const std::vector<uint64_t>& l1, bool active) -> Task<void> {
    for (uint64_t i = 0; i < l1.size(); ++i) {
      const L1Entry entry = co_await decode_l1(l1[i], g()).doing("L1 entry ", i);
      if (!entry.l2) continue;
      Place& place = found.try_emplace(*entry.l2, Place{i, active}).first->second;
      if (++place.owners == 1) order.push_back(*entry.l2);
    }
  };
  co_await look(disk_.map->l1(), true);
  for (const Snapshot& snapshot : disk_.snapshots) {
    const std::vector<uint64_t> l1 =
        co_await load_table(*disk_.file, snapshot.l1_offset, snapshot.l1_entries, IoTag::l1_load);
    co_await look(l1, false).doing("snapshot ", quoted(snapshot.name));
  }
  // New clusters get as many references as their table has, which the refcounts must allow (A5).
  for (const HostCluster table : order) {
    co_await allocator().load({table, 1}).doing("L2 table");
    const uint64_t owners = found.at(table).owners;
    const uint64_t refcount = allocator().refcount(table);
    if (owners <= refcount) continue;
    co_await fail(corrupt("L2 table at ", g().start_of(table), " has ", owners,
                          " references and a refcount of ", refcount, "; run check -r all"));
  }
  for (size_t i = 0; i < order.size(); ++i) {
    co_await expand_table(order[i], found.at(order[i]));
    if ((tables_.size() + 1) * g().cluster_size() > kTableBytesAtOnce) co_await write_tables();
    progress(0.5 * static_cast<double>(i) / static_cast<double>(order.size()));
  }
  co_await write_tables();
}

/// Finds the entries with a zero flag, and what they become; clusters of zeros are reserved, and
/// hold zeros, when this returns.
Task<void> Amendment::expand_table(HostCluster table, const Place& place) {
  co_await allocator().load({table, 1}).doing("L2 table");
  NewTable change{.patch = co_await L2Patch::load(*disk_.file, g(), table)};
  const HostOffset at = change.patch.at();
  change.owners = place.owners;  // Not the refcount, which a leak may have raised.
  const auto replace = [&](uint64_t index, const Mapping& mapping) {
    change.patch.set(index, encode_l2(mapping, g()));
  };
  std::vector<uint64_t> filled;  // Entries that need a cluster.
  for (uint64_t i = 0; i < g().l2_entries(); ++i) {
    const L2Entry entry = change.patch.entry(i);
    if (entry.descriptor == 0) continue;
    const Mapping mapping = co_await decode_l2(entry, g()).doing("L2 table at ", at, ", entry ", i);
    if (mapping.compressed || mapping.zero == 0) continue;
    if (mapping.host) {
      co_await disk_.load_refcounts_of(mapping);
      // Preallocated, by this table alone: it stays so.  Nobody reads it before the entry changes.
      if (allocator().refcount(*mapping.host) == place.owners) {
        co_await disk_.store.zero(quiesced_.clusters(), g().start_of(*mapping.host),
                                  g().cluster_size(), {.may_unmap = false});
        replace(
            i, {.copied = place.active && place.owners == 1, .allocated = 1, .host = mapping.host});
        continue;
      }
      change.removed.push_back(hosts(mapping, g()));
    }
    const uint64_t start = g().start_of(g().first_of_l1(place.l1_index) + i).value;
    const bool shows_below = disk_.backing && start < disk_.backing->size();
    if (shows_below) {
      filled.push_back(i);
    } else {
      replace(i, Mapping{});
    }
  }
  for (size_t done = 0; done < filled.size();) {
    Reservation fresh = co_await allocator().reserve(filled.size() - done, Allocator::Use::data);
    for (uint64_t i = 0; i < fresh.count(); ++i) {
      const HostCluster host = fresh.first() + i;
      if (!fresh.zero(i)) {
        co_await disk_.store.zero(fresh, g().start_of(host), g().cluster_size(),
                                  {.may_unmap = true});
      }
      if (change.owners > 1) fresh_.push_back(allocator().share(host, change.owners - 1));
      replace(filled[done + i],
              {.copied = place.active && change.owners == 1, .allocated = 1, .host = host});
    }
    done += fresh.count();
    fresh_.push_back(std::move(fresh));
  }
  if (change.patch.changed()) tables_.push_back(std::move(change));
}

/// What the new entries lead to is durable first (O1, O2), and what the old ones led to is given up
/// when they are gone for good (O3).
Task<void> Amendment::write_tables() {
  if (tables_.empty()) co_return;
  co_await committer().flush_all();
  co_await committer().sync(IoTag::commit_sync);
  // From here on entries may lead there.
  for (Reservation& fresh : fresh_) fresh.keep();
  fresh_.clear();
  const std::vector<NewTable> tables = std::move(tables_);
  tables_.clear();
  for (const NewTable& table : tables) {
    disk_.map->cache().forget(table.patch.at(), g().cluster_size());
    co_await table.patch.write(*disk_.file);
  }
  co_await committer().sync(IoTag::commit_sync);
  for (const NewTable& table : tables) {
    for (const HostSpan& span : table.removed) {
      for (uint64_t i = 0; i < table.owners; ++i) allocator().release(span);
    }
  }
}

// --- Refcounts of another width ------------------------------------------------------------------

/// The entries of the new refcount table that need a block.
std::set<uint64_t> Amendment::indices(const Geometry& wide) const {
  std::set<uint64_t> found;
  disk_.allocator->each_count([&](HostCluster cluster, uint64_t count) {
    if (count != 0) found.insert(found.end(), wide.refcount_table_index(cluster));
  });
  return found;
}

std::vector<std::byte> Amendment::compose(uint64_t index, const Geometry& wide,
                                          const std::set<uint64_t>& freed) const {
  std::vector<std::byte> block(wide.cluster_size());
  const HostCluster first = wide.first_of_refcount_table(index);
  for (uint64_t i = 0; i < wide.refcount_block_entries(); ++i) {
    const HostCluster cluster = first + i;
    if (!disk_.allocator->loaded({cluster, 1}) || freed.contains(cluster.value)) continue;
    const uint64_t count = disk_.allocator->refcount(cluster);
    if (count != 0) set_refcount(block, i, wide.refcount_order, count);
  }
  return block;
}

/// The new clusters count in both worlds, so that a cut before the switch leaves leaks at worst.
/// More clusters may need more blocks, until they do not.
Task<void> Amendment::reserve(OtherWidth& other) {
  const uint64_t per_cluster = other.geometry.refcount_table_entries_per_cluster();
  for (;;) {
    other.indices = indices(other.geometry);
    const uint64_t entries = *other.indices.rbegin() + 1;
    if (entries > kRefcountTableEntriesMax) {
      co_await fail(Error(Errc::no_space, "the refcount table would be too large"));
    }
    const uint64_t clusters = div_ceil(entries, per_cluster);
    if (other.table.count() < clusters) {
      other.table = co_await allocator().reserve_run(clusters);
      continue;
    }
    if (other.blocks.size() >= other.indices.size()) break;
    Reservation more = co_await allocator().reserve(other.indices.size() - other.blocks.size(),
                                                    Allocator::Use::metadata);
    for (uint64_t i = 0; i < more.count(); ++i) other.blocks.push_back(more.first() + i);
    fresh_.push_back(std::move(more));
  }
}

/// Block `number`, which is that of entry `index`; clusters that are `freed` count 0.
Task<void> Amendment::write_block(const OtherWidth& other, uint64_t number, uint64_t index,
                                  const std::set<uint64_t>& freed) {
  const HostOffset at = g().start_of(other.blocks[number]);
  const std::vector<std::byte> block = compose(index, other.geometry, freed);
  co_await disk_.file->write(at.value, block, {.tag = IoTag::refcount_allocate})
      .doing("refcount block at ", at);
}

/// After this the allocator knows what was; nothing may be allocated or freed any more.
Task<void> Amendment::change_width() {
  co_await allocator().load_all();
  OtherWidth other{.geometry = g(), .table = {}, .blocks = {}, .indices = {}};
  other.geometry.refcount_order = static_cast<uint32_t>(std::countr_zero(bits()));
  co_await reserve(other);
  // What a second try for the table has given back is free in both worlds.
  co_await quiesced_.settle();

  std::vector<std::byte> body(other.table.count() * g().cluster_size());
  uint64_t number = 0;
  for (const uint64_t index : other.indices) {
    co_await write_block(other, number, index, {});
    store_refcount_table_entry(body, index,
                               encode_refcount_table_entry(other.blocks[number], other.geometry));
    ++number;
    progress(0.5 + 0.4 * static_cast<double>(number) / static_cast<double>(other.indices.size()));
  }
  const HostOffset at = g().start_of(other.table.first());
  co_await disk_.file->write(at.value, body, {.tag = IoTag::refcount_table_grow})
      .doing("refcount table at ", at);
  co_await committer().sync(IoTag::commit_sync);

  // O6: width, offset and length are in one sector.
  const HeaderEdit::Table table{at, static_cast<uint32_t>(other.table.count())};
  co_await disk_.header->change(
      {.refcount_table = table, .refcount_order = other.geometry.refcount_order});
  other.table.keep();
  for (Reservation& fresh : fresh_) fresh.keep();
  fresh_.clear();
  co_await give_up_old_refcounts(other).doing("the refcounts have their new width, but");
}

/// What counted until now is given up, in the new blocks.
Task<void> Amendment::give_up_old_refcounts(const OtherWidth& other) {
  std::set<uint64_t> freed;
  for (const HostCluster block : allocator().refcount_blocks()) freed.insert(block.value);
  const HostSpan table = allocator().durable_table_at();
  for (uint64_t i = 0; i < table.count; ++i) freed.insert((table.first + i).value);
  uint64_t number = 0;
  for (const uint64_t index : other.indices) {
    const auto low = freed.lower_bound(other.geometry.first_of_refcount_table(index).value);
    const bool concerned =
        low != freed.end() && *low < other.geometry.first_of_refcount_table(index + 1).value;
    if (concerned) co_await write_block(other, number, index, freed);
    ++number;
  }
  co_await committer().sync(IoTag::commit_sync);
}

// --- Operations ---------------------------------------------------------------------------------

Task<void> amend_image(GuestDisk& disk, AmendOptions options) {
  const Request request(disk);
  co_await request.begin();
  co_await disk.check_can_write();
  if (disk.running != 1) {
    co_await fail(
        Error(Errc::busy, cat(quoted(disk.name()), " is in use; amend it when it is not")));
  }
  Amendment amendment(disk, std::move(options));
  co_await amendment.plan();
  Result<void> done = co_await amendment.run().result();
  // What is in memory may no longer be what the file is.
  disk.options.writable = false;
  co_await std::move(done);
}

}  // namespace byre
