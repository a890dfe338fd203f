// SPDX-License-Identifier: Apache-2.0
#include "sim/sim_disk.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/units.h"

namespace byre {

namespace {

constexpr uint64_t kBlock = SparseBytes::kBlock;

/// The first `length` bytes of what a write writes.
std::vector<std::byte> written_bytes(const Op& op, uint64_t length) {
  std::vector<std::byte> bytes(length);
  iovec one;
  gather(op.memory(one), 0, bytes);
  return bytes;
}

bool writes(Op::Kind kind) {
  return kind == Op::Kind::write || kind == Op::Kind::punch || kind == Op::Kind::zero_range ||
         kind == Op::Kind::allocate || kind == Op::Kind::truncate;
}

}  // namespace

CutChoice CutChoice::prefix(const std::vector<LogEntry>& log, size_t count) {
  CutChoice choice{.mode = Mode::chosen};
  for (size_t i = 0; i < count && i < log.size(); ++i) choice.entries.insert(log[i].number);
  return choice;
}

CutChoice CutChoice::only(const LogEntry& entry) {
  CutChoice choice{.mode = Mode::chosen};
  choice.entries.insert(entry.number);
  return choice;
}

CutChoice CutChoice::all_but(const std::vector<LogEntry>& log, const LogEntry& left_out) {
  CutChoice choice = prefix(log, log.size());
  choice.entries.erase(left_out.number);
  return choice;
}

CutChoice CutChoice::b_without_a(const std::vector<LogEntry>& log, size_t b, size_t a) {
  CutChoice choice = prefix(log, b + 1);
  choice.entries.erase(log[a].number);
  return choice;
}

class SimDisk::Descriptor final : public SimTarget {
 public:
  Descriptor(SimReactor& reactor, SimDisk& disk, bool writable, uint32_t block_size)
      : reactor_(reactor), disk_(disk), writable_(writable), block_size_(block_size) {}
  std::optional<unsigned> begin(uint64_t id, const Op& op) override {
    return disk_.begin(id, op, writable_, block_size_);
  }
  void land(uint64_t id, const Op& op, unsigned part) override { disk_.land(id, op, part); }
  int64_t finish(uint64_t id, const Op& op) override {
    const int64_t result = disk_.finish(id, op);
    if (!disk_.failure_.empty()) reactor_.fail(disk_.failure_);
    return result;
  }
  void abandon(uint64_t id) override { disk_.abandon(id); }

 private:
  SimReactor& reactor_;
  SimDisk& disk_;
  bool writable_;
  uint32_t block_size_;
};

SimDisk::SimDisk(Options options) : options_(std::move(options)), prng_(options_.seed) {
  size_ = durable_size_ = options_.size;
}

SimDisk::SimDisk(const SimDisk& other)
    : options_(other.options_),
      prng_(other.prng_),
      durable_(other.durable_),
      visible_(other.visible_),
      unsynced_(other.unsynced_),
      size_(other.size_),
      durable_size_(other.durable_size_),
      sizes_(other.sizes_),
      entries_(other.entries_),
      next_entry_(other.next_entry_),
      clock_(other.clock_),
      allocated_(other.allocated_),
      allocated_count_(other.allocated_count_) {
  // What the original's process has under way is, for the copy, as if that process had died.
  for (auto& [number, entry] : entries_) {
    if (entry.completed_at == 0) entry.completed_at = ++clock_;
  }
}

SimDisk& SimDisk::operator=(const SimDisk& other) {
  if (this != &other) *this = SimDisk(other);
  return *this;
}

int SimDisk::open(SimReactor& reactor, bool writable, uint32_t block_size) {
  return reactor.attach(std::make_shared<Descriptor>(reactor, *this, writable, block_size));
}

std::vector<std::byte> SimDisk::read(uint64_t offset, uint64_t length) const {
  std::vector<std::byte> data(length);
  visible_.read(offset, data);
  return data;
}

// --- Blocks -------------------------------------------------------------------------------------

uint64_t SimDisk::blocks_missing(uint64_t offset, uint64_t length) const {
  if (length == 0) return 0;
  uint64_t missing = 0;
  for (uint64_t b = offset / kBlock; b <= (offset + length - 1) / kBlock; ++b) {
    missing += !is_allocated(b);
  }
  return missing;
}

void SimDisk::allocate_blocks(uint64_t offset, uint64_t length) {
  if (length == 0) return;
  const uint64_t last = (offset + length - 1) / kBlock;
  if (last >= allocated_.size()) allocated_.resize(last + 1);
  for (uint64_t b = offset / kBlock; b <= last; ++b) {
    allocated_count_ += !allocated_[b];
    allocated_[b] = true;
  }
}

void SimDisk::free_blocks(uint64_t offset, uint64_t length) {
  const uint64_t end = std::min((offset + length) / kBlock, uint64_t{allocated_.size()});
  for (uint64_t b = div_ceil(offset, kBlock); b < end; ++b) {
    allocated_count_ -= allocated_[b];
    allocated_[b] = false;
  }
}

// --- The life of an operation -------------------------------------------------------------------

int64_t SimDisk::check(const Op& op, bool writable, uint32_t block_size) const {
  if (writes(op.kind) && !writable) return -EBADF;
  const bool transfer = op.kind == Op::Kind::read || op.kind == Op::Kind::write;
  // Nothing is demanded of memory: where the heap puts things is not the seed's choice.
  if (transfer && (op.offset % block_size || op.length % block_size)) return -EINVAL;
  if (!transfer && op.kind != Op::Kind::sync && op.kind != Op::Kind::truncate && op.length == 0) {
    return -EINVAL;
  }
  if (op.offset > INT64_MAX || op.length > INT64_MAX - op.offset) return -EINVAL;
  if (op.kind == Op::Kind::punch && !options_.can_punch) return -EOPNOTSUPP;
  if (op.kind == Op::Kind::zero_range && !options_.can_zero_range) return -EOPNOTSUPP;
  if (op.kind == Op::Kind::allocate && !options_.can_allocate) return -EOPNOTSUPP;
  if (options_.block_device) {
    if (op.kind == Op::Kind::truncate || op.kind == Op::Kind::allocate) return -EINVAL;
    if (op.kind == Op::Kind::write && op.length != 0 && op.offset >= size_) return -ENOSPC;
  }
  switch (op.kind) {
    case Op::Kind::read:
    case Op::Kind::write:
    case Op::Kind::sync:
    case Op::Kind::allocate:
    case Op::Kind::punch:
    case Op::Kind::zero_range:
    case Op::Kind::truncate:
      return 0;
    default:
      return -EOPNOTSUPP;
  }
}

void SimDisk::split(UnderWay& way, uint64_t offset, uint64_t length, uint64_t grain) {
  uint64_t count = 1;
  if (options_.torn && length > grain && prng_.one_in(4)) count = prng_.between(2, 4);
  uint64_t at = offset;
  const uint64_t end = offset + length;
  while (count > 1 && at < end) {
    const uint64_t next = round_down(prng_.between(at, end), grain);
    if (next > at && next < end) {
      way.parts.push_back({at, next - at, false});
      at = next;
    }
    --count;
  }
  way.parts.push_back({at, end - at, false});
}

std::optional<unsigned> SimDisk::begin(uint64_t id, const Op& op, bool writable,
                                       uint32_t block_size) {
  UnderWay way{.kind = op.kind,
               .dsync = op.dsync,
               .keep_size = op.keep_size,
               .began = ++clock_,
               .offset = op.offset};
  land_late(op.kind == Op::Kind::sync);
  way.result = check(op, writable, block_size);
  if (way.result == 0) {
    way.fault = options_.faults.next(op, prng_);
    if (way.fault.kind == Fault::Kind::interrupted) {
      way.result = -EINTR;
    } else {
      begin_transfer(way, op, block_size);
    }
  }
  const auto parts = static_cast<unsigned>(way.parts.size());
  under_way_.emplace(id, std::move(way));
  return parts;
}

void SimDisk::begin_transfer(UnderWay& way, const Op& op, uint32_t block_size) {
  const bool transfer = op.kind == Op::Kind::read || op.kind == Op::Kind::write;
  if (op.kind == Op::Kind::sync) return;
  uint64_t length = op.length;
  if (op.kind == Op::Kind::read) {
    length = op.offset >= size_ ? 0 : std::min(length, size_ - op.offset);
  }
  if (options_.block_device && op.kind != Op::Kind::truncate) {
    length = op.offset >= size_ ? 0 : std::min(length, size_ - op.offset);
  }

  const bool needs_blocks = op.kind == Op::Kind::write || op.kind == Op::Kind::allocate ||
                            op.kind == Op::Kind::zero_range;
  if (needs_blocks && !options_.block_device) {
    const uint64_t missing = blocks_missing(op.offset, length);
    if (missing != 0 && options_.faults.out_of_space()) {
      way.result = -ENOSPC;
      return;
    }
    const uint64_t free =
        options_.capacity / kBlock - std::min(options_.capacity / kBlock, allocated_count_);
    if (options_.capacity != 0 && missing > free) {
      // A write goes as far as there is room, in whole blocks.
      uint64_t fits = op.offset;
      uint64_t left = free;
      while (fits < op.offset + length) {
        if (!is_allocated(fits / kBlock) && left-- == 0) break;
        fits = round_down(fits, kBlock) + kBlock;
      }
      length = fits - op.offset;
      if (op.kind != Op::Kind::write || length == 0) {
        way.result = -ENOSPC;
        return;
      }
    }
  }

  if (way.fault.kind == Fault::Kind::cut_short && transfer && length > kSectorSize) {
    // At the end of a sector, as kernels do: the rest is another operation, which a cut may lose.
    const uint64_t end = op.offset + length;
    const uint64_t grain = std::max<uint64_t>(block_size, kSectorSize);
    const uint64_t stop = round_down(prng_.between(op.offset + 1, end - 1), grain);
    if (stop > op.offset) length = stop - op.offset;
  }
  way.result = transfer ? static_cast<int64_t>(length) : 0;
  if (way.fault.kind == Fault::Kind::error) {
    way.result = -way.fault.error;
    const bool late = way.fault.applied == Fault::Applied::late;
    const bool data = op.kind == Op::Kind::write && options_.may_land_late;
    if (late && !(data && options_.may_land_late(op))) return;
    if (way.fault.applied == Fault::Applied::no) return;
  }

  if (needs_blocks) allocate_blocks(op.offset, length);
  if (writes(op.kind)) {
    way.entry = next_entry_++;
    entries_.emplace(
        way.entry,
        Entry{
            .log = {.number = way.entry, .kind = op.kind, .offset = op.offset, .length = length}});
  }
  if (op.kind == Op::Kind::write) {
    way.data = std::make_shared<std::vector<std::byte>>(written_bytes(op, length));
  }
  if (op.kind == Op::Kind::truncate) {
    way.parts.push_back({op.offset, 0, false});
  } else if (length != 0) {
    split(way, op.offset, length, kSectorSize);
  }
  if (way.fault.kind == Fault::Kind::error && way.fault.applied == Fault::Applied::late) {
    late_.push_back(way);
    way.parts.clear();
    way.data = nullptr;
    way.entry = 0;
  }
  if (way.fault.kind == Fault::Kind::error && way.fault.applied == Fault::Applied::half) {
    const uint64_t half = prng_.below(way.parts.size() + 1);
    if (way.parts.size() > 1) {
      way.parts.resize(std::max<uint64_t>(half, 1));
    } else if (length > kSectorSize) {
      way.parts[0].length = round_down(prng_.between(kSectorSize, length - 1), kSectorSize);
    }
  }
}

/// Writes that failed land after all, one in a while; `all`: now, or never.
void SimDisk::land_late(bool all) {
  while (!late_.empty() && (all || prng_.one_in(4))) {
    const UnderWay way = std::move(late_.front());
    late_.erase(late_.begin());
    for (const Part& part : way.parts) {
      if (!all || prng_.one_in(2)) land_part(way, part);
    }
    entries_.at(way.entry).completed_at = ++clock_;
  }
}

void SimDisk::land(uint64_t id, const Op& op, unsigned part) {
  UnderWay& way = under_way_.at(id);
  Part& piece = way.parts[part];
  piece.landed = true;
  if (op.kind == Op::Kind::read) {
    const uint64_t skip = piece.offset - op.offset;
    if (op.pieces.empty()) {
      const MutableBytes out(static_cast<std::byte*>(op.buffer), op.length);
      visible_.read(piece.offset, out.subspan(skip, piece.length));
    } else {
      std::vector<std::byte> bytes(piece.length);
      visible_.read(piece.offset, bytes);
      scatter(bytes, op.pieces, skip);
    }
    return;
  }
  land_part(way, piece);
}

void SimDisk::set_visible_size(uint64_t entry, uint64_t size) {
  if (size == size_) return;
  size_ = size;
  sizes_.push_back({entry, size});
}

void SimDisk::add_versions(Versions& versions, const UnderWay& way, const Part& part) const {
  uint64_t end = part.offset + part.length;
  if (!way.data) end = std::min(end, std::max(visible_.end(), durable_.end()));
  uint64_t at = part.offset;
  while (at < end) {
    const uint64_t sector = at / kSectorSize;
    const uint64_t start = sector * kSectorSize;
    const uint64_t n = std::min(start + kSectorSize, end) - at;
    const bool whole = n == kSectorSize;
    const uint64_t block = start / kBlock;
    if (!way.data && !visible_.has_block(block) && !durable_.has_block(block)) {
      // Zeros over what always was zeros change nothing.
      const auto next = versions.lower_bound(sector);
      if (next == versions.end() || next->first * kSectorSize >= (block + 1) * kBlock) {
        at = (block + 1) * kBlock;
        continue;
      }
      if (next->first != sector) {
        at = next->first * kSectorSize;
        continue;
      }
    }
    Version version{.entry = way.entry, .data = nullptr, .at = 0};
    if (whole) {
      if (way.data) {
        version.data = way.data;
        version.at = at - way.offset;
      }
    } else {
      auto mixed = std::make_shared<std::vector<std::byte>>(kSectorSize);
      visible_.read(start, *mixed);
      const MutableBytes hit = MutableBytes(*mixed).subspan(at - start, n);
      if (way.data) {
        copy(hit, Bytes(*way.data).subspan(at - way.offset, n));
      } else {
        fill_zero(hit);
      }
      version.data = std::move(mixed);
    }
    versions[sector].push_back(std::move(version));
    at += n;
  }
}

void SimDisk::land_part(const UnderWay& way, const Part& part) {
  switch (way.kind) {
    case Op::Kind::write:
      add_versions(unsynced_, way, part);
      visible_.write(part.offset, Bytes(*way.data).subspan(part.offset - way.offset, part.length));
      set_visible_size(way.entry, std::max(size_, part.offset + part.length));
      break;
    case Op::Kind::punch:
    case Op::Kind::zero_range: {
      const uint64_t end = part.offset + part.length;
      if (way.kind == Op::Kind::zero_range && !way.keep_size) {
        set_visible_size(way.entry, std::max(size_, end));
      }
      Part inside = part;
      inside.length = part.offset >= size_ ? 0 : std::min(part.length, size_ - part.offset);
      add_versions(unsynced_, way, inside);
      visible_.zero(part.offset, part.length);
      if (way.kind == Op::Kind::punch) free_blocks(part.offset, part.length);
      break;
    }
    case Op::Kind::allocate:
      if (!way.keep_size) {
        set_visible_size(way.entry, std::max(size_, part.offset + part.length));
      }
      break;
    case Op::Kind::truncate:
      if (part.offset < size_) {
        const uint64_t end = round_up(size_, kSectorSize);
        const Part tail{part.offset, end - part.offset, true};
        add_versions(unsynced_, way, tail);
        visible_.zero(tail.offset, tail.length);
        free_blocks(round_up(part.offset, kBlock), uint64_t{allocated_.size()} * kBlock);
      }
      set_visible_size(way.entry, part.offset);
      break;
    default:
      break;
  }
}

int64_t SimDisk::finish(uint64_t id, const Op& op) {
  UnderWay way = std::move(under_way_.at(id));
  under_way_.erase(id);
  if (way.data && !equal(*way.data, written_bytes(op, way.data->size()))) {
    failure_ = cat("the buffer of a write of ", op.length, " bytes at ", hex(op.offset),
                   " changed while it was under way");
  }
  if (way.entry != 0) {
    Entry& entry = entries_.at(way.entry);
    entry.completed_at = ++clock_;
    entry.log.completed = true;
    if (way.dsync && way.result >= 0) dsync_done(way);
  }
  if (way.kind == Op::Kind::sync) {
    if (way.fault.kind == Fault::Kind::error) {
      way.result = -way.fault.error;
      sync_failed(way);
    } else if (way.result == 0) {
      sync_done(way.began);
    }
  }
  return way.result;
}

void SimDisk::abandon(uint64_t id) {
  const auto found = under_way_.find(id);
  if (found == under_way_.end()) return;
  // What landed is in the kernel's hands, and any later sync covers it.
  if (found->second.entry != 0) entries_.at(found->second.entry).completed_at = ++clock_;
  under_way_.erase(found);
}

// --- Durability ---------------------------------------------------------------------------------

bool SimDisk::completed_before(uint64_t entry, uint64_t when) const {
  const uint64_t at = entries_.at(entry).completed_at;
  return at != 0 && at < when;
}

void SimDisk::store(SparseBytes& bytes, uint64_t sector, const Version& version) const {
  if (version.data) {
    bytes.write(sector * kSectorSize, Bytes(*version.data).subspan(version.at, kSectorSize));
  } else {
    bytes.zero(sector * kSectorSize, kSectorSize);
  }
}

void SimDisk::sync_done(uint64_t began) {
  for (auto sector = unsynced_.begin(); sector != unsynced_.end();) {
    std::vector<Version>& versions = sector->second;
    size_t durable = versions.size();
    while (durable > 0 && !completed_before(versions[durable - 1].entry, began)) --durable;
    if (durable > 0) {
      store(durable_, sector->first, versions[durable - 1]);
      versions.erase(versions.begin(), versions.begin() + static_cast<ptrdiff_t>(durable));
    }
    sector = versions.empty() ? unsynced_.erase(sector) : std::next(sector);
  }
  size_t durable = sizes_.size();
  while (durable > 0 && !completed_before(sizes_[durable - 1].entry, began)) --durable;
  if (durable > 0) {
    durable_size_ = sizes_[durable - 1].size;
    sizes_.erase(sizes_.begin(), sizes_.begin() + static_cast<ptrdiff_t>(durable));
  }
  forget_entries();
}

void SimDisk::sync_failed(const UnderWay& way) {
  if (!way.fault.drops) return;
  ++syncs_lost_;
  for (auto sector = unsynced_.begin(); sector != unsynced_.end();) {
    std::vector<Version>& versions = sector->second;
    std::erase_if(versions, [&](const Version& version) {
      return completed_before(version.entry, way.began);
    });
    if (!versions.empty()) {
      ++sector;
      continue;
    }
    if (way.fault.evicts) {
      std::vector<std::byte> old(kSectorSize);
      durable_.read(sector->first * kSectorSize, old);
      visible_.write(sector->first * kSectorSize, old);
    }
    sector = unsynced_.erase(sector);
  }
  forget_entries();
}

void SimDisk::dsync_done(const UnderWay& way) {
  uint64_t end = 0;
  for (const Part& part : way.parts) {
    end = std::max(end, part.offset + part.length);
    for (uint64_t s = part.offset / kSectorSize; s * kSectorSize < part.offset + part.length; ++s) {
      const auto found = unsynced_.find(s);
      if (found == unsynced_.end()) continue;
      std::vector<Version>& versions = found->second;
      size_t durable = versions.size();
      while (durable > 0 && versions[durable - 1].entry != way.entry) --durable;
      if (durable == 0) continue;
      store(durable_, s, versions[durable - 1]);
      versions.erase(versions.begin(), versions.begin() + static_cast<ptrdiff_t>(durable));
      if (versions.empty()) unsynced_.erase(found);
    }
  }
  if (end > durable_size_) {
    durable_size_ = end;
    const auto larger = std::find_if(sizes_.begin(), sizes_.end(), [&](const SizeVersion& version) {
      return version.size > end;
    });
    sizes_.erase(sizes_.begin(), larger);
    if (sizes_.empty()) durable_size_ = size_;
  }
  forget_entries();
}

/// Entries that no version speaks of any more leave the log.
void SimDisk::forget_entries() {
  std::set<uint64_t> needed;
  for (const auto& [sector, versions] : unsynced_) {
    for (const Version& version : versions) needed.insert(version.entry);
  }
  for (const SizeVersion& version : sizes_) needed.insert(version.entry);
  for (const auto& [id, way] : under_way_) needed.insert(way.entry);
  for (const UnderWay& way : late_) needed.insert(way.entry);
  std::erase_if(entries_, [&](const auto& entry) { return !needed.contains(entry.first); });
}

std::vector<LogEntry> SimDisk::log() const {
  std::set<uint64_t> needed;
  for (const auto& [sector, versions] : unsynced_) {
    for (const Version& version : versions) needed.insert(version.entry);
  }
  for (const SizeVersion& version : sizes_) needed.insert(version.entry);
  for (const auto& [id, way] : under_way_) needed.insert(way.entry);
  for (const UnderWay& way : late_) needed.insert(way.entry);
  std::vector<LogEntry> log;
  for (const auto& [number, entry] : entries_) {
    if (needed.contains(number)) log.push_back(entry.log);
  }
  return log;
}

// --- Power losses
// ---------------------------------------------------------------------------------

SimDisk::Versions SimDisk::versions_for_cut() const {
  Versions versions = unsynced_;
  std::map<uint64_t, const UnderWay*> by_entry;
  for (const auto& [id, way] : under_way_) {
    if (way.entry != 0) by_entry.emplace(way.entry, &way);
  }
  for (const UnderWay& way : late_) by_entry.emplace(way.entry, &way);
  for (const auto& [entry, way] : by_entry) {
    for (const Part& part : way->parts) {
      if (part.landed) continue;
      if (way->kind == Op::Kind::truncate) {
        if (part.offset < size_) {
          const uint64_t end = round_up(size_, kSectorSize);
          add_versions(versions, *way, {part.offset, end - part.offset, false});
        }
      } else if (way->kind != Op::Kind::allocate) {
        add_versions(versions, *way, part);
      }
    }
  }
  return versions;
}

std::vector<SimDisk::UnsyncedSector> SimDisk::unsynced_sectors() const {
  std::vector<UnsyncedSector> sectors;
  for (const auto& [sector, versions] : versions_for_cut()) {
    sectors.push_back({sector, static_cast<uint32_t>(versions.size())});
  }
  return sectors;
}

uint64_t SimDisk::size_for_cut(const CutChoice& choice, Prng& prng) const {
  if (options_.block_device || choice.mode == CutChoice::Mode::none) return durable_size_;
  // The size as each entry, in order, would leave it.
  std::vector<uint64_t> sizes{durable_size_};
  for (const auto& [number, entry] : entries_) {
    if (choice.mode == CutChoice::Mode::chosen && !choice.entries.contains(number)) continue;
    const bool extends =
        entry.log.kind == Op::Kind::write ||
        std::any_of(sizes_.begin(), sizes_.end(),
                    [&, n = number](const SizeVersion& version) { return version.entry == n; });
    if (entry.log.kind == Op::Kind::truncate) {
      sizes.push_back(entry.log.offset);
    } else if (extends) {
      sizes.push_back(std::max(sizes.back(), entry.log.offset + entry.log.length));
    }
  }
  if (choice.mode == CutChoice::Mode::all || choice.mode == CutChoice::Mode::chosen ||
      choice.mode == CutChoice::Mode::versions) {
    return sizes.back();
  }
  if (prng.one_in(4)) {
    const auto [low, high] = std::minmax_element(sizes.begin(), sizes.end());
    return std::max(*low, round_down(prng.between(*low, *high), kSectorSize));
  }
  return sizes[prng.below(sizes.size())];
}

SimDisk SimDisk::cut(const CutChoice& choice) const {
  Prng prng(choice.seed);
  SimDisk after(Options{.seed = prng.next(),
                        .block_device = options_.block_device,
                        .can_punch = options_.can_punch,
                        .can_zero_range = options_.can_zero_range,
                        .can_allocate = options_.can_allocate,
                        .torn = options_.torn});
  after.durable_ = durable_;
  size_t index = 0;
  uint64_t block = UINT64_MAX;
  std::set<uint64_t> block_entries;
  const Versions all = versions_for_cut();
  for (auto sector = all.begin(); sector != all.end(); ++sector, ++index) {
    const std::vector<Version>& versions = sector->second;
    const Version* taken = nullptr;
    switch (choice.mode) {
      case CutChoice::Mode::none:
        break;
      case CutChoice::Mode::all:
        taken = &versions.back();
        break;
      case CutChoice::Mode::chosen:
        for (const Version& version : versions) {
          if (choice.entries.contains(version.entry)) taken = &version;
        }
        break;
      case CutChoice::Mode::versions:
        BYRE_ASSERT(index < choice.versions.size() && choice.versions[index] <= versions.size());
        if (choice.versions[index] > 0) taken = &versions[choice.versions[index] - 1];
        break;
      case CutChoice::Mode::random_512: {
        const uint64_t pick = prng.below(versions.size() + 1);
        if (pick > 0) taken = &versions[pick - 1];
        break;
      }
      case CutChoice::Mode::random_4096:
        // A block of 4096 bytes takes the entries of one moment, all together.
        if (sector->first * kSectorSize / kBlock != block) {
          block = sector->first * kSectorSize / kBlock;
          std::set<uint64_t> here;
          for (auto other = sector;
               other != all.end() && other->first * kSectorSize / kBlock == block; ++other) {
            for (const Version& version : other->second) here.insert(version.entry);
          }
          uint64_t keep = prng.below(here.size() + 1);
          block_entries.clear();
          for (const uint64_t entry : here) {
            if (keep-- == 0) break;
            block_entries.insert(entry);
          }
        }
        for (const Version& version : versions) {
          if (block_entries.contains(version.entry)) taken = &version;
        }
        break;
    }
    if (taken) store(after.durable_, sector->first, *taken);
  }
  after.size_ = after.durable_size_ = size_for_cut(choice, prng);
  // What lies beyond the end is not there, whatever landed in it.
  if (after.durable_.end() > after.size_) {
    after.durable_.zero(after.size_, after.durable_.end() - after.size_);
  }
  after.visible_ = after.durable_;
  after.allocated_ = allocated_;
  after.allocated_count_ = allocated_count_;
  return after;
}

void SimDisk::power_cut(const CutChoice& choice) {
  BYRE_ASSERT(under_way_.empty());
  SimDisk after = cut(choice);
  after.options_.capacity = options_.capacity;
  after.options_.may_land_late = options_.may_land_late;
  *this = std::move(after);
}

// --- Outside simulated time ---------------------------------------------------------------------

void SimDisk::put(uint64_t offset, Bytes data) {
  BYRE_ASSERT(unsynced_.empty());
  durable_.write(offset, data);
  visible_.write(offset, data);
  allocate_blocks(offset, data.size());
  set_size(std::max(size_, offset + data.size()));
}

void SimDisk::set_size(uint64_t size) {
  size_ = durable_size_ = size;
  options_.size = size;
}

Result<void> SimDisk::load(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno_error(errno, cat("open ", quoted(path)));
  std::vector<std::byte> buffer(MiB);
  uint64_t at = 0;
  ssize_t n = 0;
  while ((n = ::pread(fd, buffer.data(), buffer.size(), static_cast<off_t>(at))) > 0) {
    const Bytes got = Bytes(buffer).first(static_cast<size_t>(n));
    for (uint64_t done = 0; done < got.size(); done += kBlock) {
      const Bytes block = got.subspan(done, std::min<uint64_t>(kBlock, got.size() - done));
      if (!is_zero(block)) put(at + done, block);
    }
    at += got.size();
  }
  const int error = errno;
  ::close(fd);
  if (n < 0) return errno_error(error, cat("read ", quoted(path)));
  set_size(at);
  return {};
}

Result<void> SimDisk::dump(const std::string& path) const {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return errno_error(errno, cat("open ", quoted(path)));
  int error = ::ftruncate(fd, static_cast<off_t>(size_)) == 0 ? 0 : errno;
  std::vector<std::byte> buffer(kBlock);
  for (uint64_t at = 0; at < std::min(size_, visible_.end()) && error == 0; at += kBlock) {
    if (!visible_.has_block(at / kBlock)) continue;
    const MutableBytes data = MutableBytes(buffer).first(std::min(kBlock, size_ - at));
    visible_.read(at, data);
    const ssize_t n = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(at));
    if (n != static_cast<ssize_t>(data.size())) error = n < 0 ? errno : EIO;
  }
  ::close(fd);
  if (error != 0) return errno_error(error, cat("write ", quoted(path)));
  return {};
}

}  // namespace byre
