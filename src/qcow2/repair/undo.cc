// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/undo.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "qcow2/check/metadata_scan.h"
#include "qcow2/check/owners.h"
#include "qcow2/repair/check.h"

namespace byre {
namespace {

constexpr std::string_view kJournalMagic = "BYREUNDO";
constexpr std::string_view kRecordMagic = "RECORD\n\0";
constexpr uint32_t kVersion = 2;
/// A record's largest payload; a longer write becomes several.
constexpr uint64_t kRecordSectorsMax = 2048;
/// Shared data that have one hash.
constexpr uint64_t kWatchedLengthMax = MiB;
/// Places of an image that are named when they are not what they were.
constexpr size_t kChangedMax = 1024;
constexpr size_t kRangesNamed = 16;

/// Header: magic, version, reserved, image size, fingerprint; the hash of these behind them.
constexpr size_t kHeaderHashed = 32;
/// Record: magic, number, first sector, count, flags, hash of the payload, the number of ranges of
/// shared data, these (offset, length, hash); the hash of all that.
constexpr size_t kWatchedAt = 56;
constexpr size_t kWatchedSize = 24;
constexpr size_t kWatchedMax = 16;
constexpr size_t kRecordHashed = kWatchedAt + kWatchedMax * kWatchedSize;
static_assert(kRecordHashed + 8 <= kSectorSize);
constexpr uint64_t kHasOld = 1;

constexpr uint64_t kSeed = 0x6279'7265'756e'646f;

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e37'79b9'7f4a'7c15u;
  hash ^= hash >> 32;
  hash *= 0xd6e8'feb8'6659'fd93u;
  return hash ^ hash >> 29;
}

uint64_t hash_of(Bytes bytes, uint64_t hash = kSeed) {
  hash = mix(hash, bytes.size());
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8) hash = mix(hash, load_be<uint64_t>(bytes, at));
  for (; at < bytes.size(); ++at) hash = mix(hash, std::to_integer<uint64_t>(bytes[at]));
  return hash;
}

uint64_t sectors_for(uint64_t size) { return div_ceil(size, kSectorSize); }

/// Reads; what lies behind the end is zeros.
Task<void> read_padded(Device& file, uint64_t offset, MutableBytes data) {
  const uint64_t size = file.size();
  const uint64_t there = offset < size ? std::min<uint64_t>(size - offset, data.size()) : 0;
  if (there != 0) co_await file.read(offset, data.first(there), IoTag::none);
  fill_zero(data.subspan(there));
}

/// A device that can only be read.
class ReadOnly : public Device {
 public:
  explicit ReadOnly(Device& file) : file_(file) {}
  bool writable() const override { return false; }
  const std::string& name() const override { return file_.name(); }
  Reactor& reactor() override { return file_.reactor(); }
  Task<void> write(uint64_t, Bytes, WriteOptions) override { co_await refused(); }
  Task<void> zero(uint64_t, uint64_t, ZeroOptions) override { co_await refused(); }
  Task<void> discard(uint64_t, uint64_t, DiscardOptions) override { co_await refused(); }
  Task<void> flush(IoTag) override { co_return; }
  Task<Extent> status(uint64_t, uint64_t length) override { co_return Extent{.length = length}; }
  Task<void> close() override { co_return; }

 protected:
  Device& file_;

 private:
  Task<void> refused() const {
    co_await fail(Error(Errc::read_only, cat(quoted(file_.name()), " is only looked at")));
  }
};

/// Adds up the sectors that are read from it, in whatever order and pieces they come.
class Hashing final : public ReadOnly {
 public:
  explicit Hashing(Device& file) : ReadOnly(file) {}
  uint64_t size() const override { return file_.size(); }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    co_await file_.read(offset, data, options);
    // More is read than the first cluster and the snapshot table have, and that may be data.
    if (options.tag == IoTag::header_read && offset == 0) {
      const Result<uint32_t> bits = parse_cluster_bits(data);
      if (bits) data = data.first(std::min<uint64_t>(data.size(), uint64_t{1} << *bits));
    }
    uint64_t& into = options.tag == IoTag::snapshot_load ? snapshots : sum;
    for (uint64_t at = offset; at < offset + data.size();) {
      const uint64_t count = std::min(kSectorSize - at % kSectorSize, offset + data.size() - at);
      into += hash_of(data.subspan(at - offset, count), mix(kSeed, at));
      at += count;
    }
  }
  uint64_t sum = 0;
  uint64_t snapshots = 0;  ///< Of what was read where their table is.
};

/// The image as it was.
class Before final : public ReadOnly {
 public:
  Before(Device& file, const UndoJournal& journal) : ReadOnly(file), journal_(journal) {}
  uint64_t size() const override { return journal_.image_size(); }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions) override {
    if (offset > size() || data.size() > size() - offset) {
      co_await fail(out_of_range("read", offset, data.size()));
    }
    const uint64_t first = offset / kSectorSize;
    const uint64_t end = sectors_for(offset + data.size());
    std::vector<std::byte> sectors((end - first) * kSectorSize);
    co_await read_padded(file_, first * kSectorSize, sectors);
    co_await journal_.restore_into(first, sectors);
    copy(data, Bytes(sectors).subspan(offset - first * kSectorSize, data.size()));
  }

 private:
  const UndoJournal& journal_;
};

/// The guest ranges that read what lies at these places of `image`; empty when that cannot be told.
Task<std::string> guests_at(Device& image, std::vector<HostOffset> places) {
  const CheckOptions options{.findings_max = 0};
  const Result<ScanResult> scanned = co_await scan_metadata(image, options).result();
  if (!scanned) co_return std::string();
  const Geometry& geometry = scanned->geometry();
  std::vector<HostCluster> clusters;
  for (const HostOffset at : places) clusters.push_back(geometry.cluster_of(at));
  clusters.erase(std::unique(clusters.begin(), clusters.end()), clusters.end());
  Owners owners(image, *scanned, {});
  if (!co_await owners.find(clusters, Finding::kGuestsMax).result()) co_return std::string();
  std::set<uint64_t> guests;
  for (const HostCluster cluster : clusters) {
    for (const Owners::Reference& reference : owners.of(cluster).kept) {
      guests.insert(reference.guest.value);
    }
  }
  std::string words;
  size_t named = 0;
  for (auto at = guests.begin(); at != guests.end();) {
    const uint64_t first = *at;
    uint64_t end = first;
    while (at != guests.end() && *at == end) ++at, ++end;
    if (++named > kRangesNamed) {
      words += ", and more";
      break;
    }
    words += cat(words.empty() ? "guest offset " : ", ", geometry.start_of(GuestCluster{first}),
                 " (", (end - first) << geometry.cluster_bits, " bytes)");
  }
  co_return words;
}

Error not_a_journal(const Device& file, std::string_view why) {
  return corrupt(quoted(file.name()), " is no undo journal: ", why);
}

}  // namespace

Task<uint64_t> fingerprint_of(Device& file) {
  Hashing hashing(file);
  const CheckOptions options{.findings_max = 0};
  const ScanResult scanned =
      co_await scan_metadata(hashing, options).doing("check ", quoted(file.name()));
  uint64_t snapshots = hashing.snapshots;
  const Result<std::vector<std::byte>> table = serialize_snapshots(scanned.snapshots);
  if (!scanned.snapshots_lost && table) snapshots = hash_of(*table);
  co_return mix(mix(hashing.sum, snapshots), file.size());
}

// ---- The journal.

Task<UndoJournal> UndoJournal::begin(Device& image, Device& file) {
  UndoJournal journal(file);
  if (file.size() != 0)
    co_await fail(Error(Errc::exists, cat(quoted(file.name()), " is not empty")));
  journal.image_size_ = image.size();
  journal.fingerprint_ = co_await fingerprint_of(image);

  std::vector<std::byte> sector(kSectorSize);
  copy(sector, byre::bytes_of(kJournalMagic));
  store_be<uint32_t>(sector, 8, kVersion);
  store_be(sector, 16, journal.image_size_);
  store_be(sector, 24, journal.fingerprint_);
  store_be(sector, kHeaderHashed, hash_of(Bytes(sector).first(kHeaderHashed)));
  co_await file.write(0, sector, {.tag = IoTag::none});
  co_await file.flush(IoTag::commit_sync);
  journal.end_ = kSectorSize;
  co_return std::move(journal);
}

Task<UndoJournal> UndoJournal::load(Device& file) {
  UndoJournal journal(file);
  if (file.size() < kSectorSize) co_await fail(not_a_journal(file, "it is too short"));
  std::vector<std::byte> sector(kSectorSize);
  co_await file.read(0, sector, IoTag::none);
  if (!equal(Bytes(sector).first(kJournalMagic.size()), byre::bytes_of(kJournalMagic))) {
    co_await fail(not_a_journal(file, "it does not begin like one"));
  }
  if (const auto version = load_be<uint32_t>(sector, 8); version != kVersion) {
    co_await fail(unsupported(quoted(file.name()), " is an undo journal of version ", version,
                              "; this byre knows version ", kVersion));
  }
  if (load_be<uint64_t>(sector, kHeaderHashed) != hash_of(Bytes(sector).first(kHeaderHashed))) {
    co_await fail(not_a_journal(file, "its first sector is damaged"));
  }
  journal.image_size_ = load_be<uint64_t>(sector, 16);
  journal.fingerprint_ = load_be<uint64_t>(sector, 24);
  journal.end_ = kSectorSize;
  while (co_await journal.load_record()) {
  }
  co_await journal.refuse_if_more_follows();
  co_return std::move(journal);
}

/// The next record; false when there is none that is whole.
Task<bool> UndoJournal::load_record() {
  if (end_ + kSectorSize > file_->size()) co_return false;
  std::vector<std::byte> head(kSectorSize);
  co_await file_->read(end_, head, IoTag::none);
  if (!equal(Bytes(head).first(kRecordMagic.size()), byre::bytes_of(kRecordMagic)) ||
      load_be<uint64_t>(head, 8) != records_ ||
      load_be<uint64_t>(head, kRecordHashed) != hash_of(Bytes(head).first(kRecordHashed))) {
    co_return false;
  }
  const auto first = load_be<uint64_t>(head, 16);
  const auto count = load_be<uint64_t>(head, 24);
  const bool has_old = (load_be<uint64_t>(head, 32) & kHasOld) != 0;
  const auto watched = load_be<uint64_t>(head, 48);
  if (count > kRecordSectorsMax || first > UINT64_MAX / kSectorSize - count ||
      watched > kWatchedMax || (count == 0 && watched == 0)) {
    co_return false;
  }
  const uint64_t hashes_size = round_up(count * 8, kSectorSize);
  const uint64_t size = hashes_size + (has_old ? count * kSectorSize : 0);
  if (size > file_->size() - end_ - kSectorSize) co_return false;
  std::vector<std::byte> payload(size);
  co_await file_->read(end_ + kSectorSize, payload, IoTag::none);
  if (load_be<uint64_t>(head, 40) != hash_of(payload)) co_return false;

  const uint64_t old_at = has_old ? end_ + kSectorSize + hashes_size : 0;
  learn(first, count, old_at, payload, has_old ? Bytes(payload).subspan(hashes_size) : Bytes());
  for (uint64_t i = 0; i < watched; ++i) {
    const size_t at = kWatchedAt + i * kWatchedSize;
    const auto offset = load_be<uint64_t>(head, at);
    const auto length = load_be<uint64_t>(head, at + 8);
    if (length > kWatchedLengthMax || offset > UINT64_MAX - length) co_return false;
    watched_.try_emplace({offset, length}, load_be<uint64_t>(head, at + 16));
  }
  end_ += kSectorSize + size;
  ++records_;
  co_return true;
}

/// A torn record is the last thing in the file; whole ones behind it mean that it was whole, too.
Task<void> UndoJournal::refuse_if_more_follows() const {
  std::vector<std::byte> piece(MiB);
  for (uint64_t at = end_; at + kSectorSize <= file_->size();) {
    const uint64_t count = std::min<uint64_t>(piece.size(), file_->size() - at);
    co_await file_->read(at, MutableBytes(piece).first(count), IoTag::none);
    for (uint64_t i = 0; i + kSectorSize <= count; i += kSectorSize) {
      const Bytes head = Bytes(piece).subspan(i, kSectorSize);
      if (!equal(head.first(kRecordMagic.size()), byre::bytes_of(kRecordMagic))) continue;
      const bool whole =
          load_be<uint64_t>(head, kRecordHashed) == hash_of(head.first(kRecordHashed));
      if (whole && load_be<uint64_t>(head, 8) > records_) {
        co_await fail(corrupt("undo journal ", quoted(file_->name()), ": record ", records_, " at ",
                              hex(end_), " is damaged, and others follow"));
      }
    }
    at += round_down(count, kSectorSize);
  }
}

Task<void> UndoJournal::trim() {
  if (file_->size() != end_) co_await file_->resize(end_);
}

void UndoJournal::learn(uint64_t first, uint64_t count, uint64_t old_at, Bytes hashes,
                        Bytes before) {
  for (uint64_t i = 0; i < count; ++i) {
    const auto [at, is_new] = sectors_.try_emplace(first + i);
    Sector& sector = at->second;
    if (!before.empty()) {
      if (is_new) {
        sector.old_at = old_at + i * kSectorSize;
        bytes_kept_ += kSectorSize;
      }
      sector.hashes.insert(hash_of(before.subspan(i * kSectorSize, kSectorSize)));
    }
    sector.hashes.insert(load_be<uint64_t>(hashes, i * 8));
  }
}

Task<void> UndoJournal::add(uint64_t first, Bytes before, Bytes data) {
  BYRE_ASSERT(before.size() == data.size() && data.size() % kSectorSize == 0);
  const uint64_t count = data.size() / kSectorSize;
  BYRE_ASSERT(count != 0 && count <= kRecordSectorsMax);
  // Old contents once, and only of what there was.
  bool has_old = false;
  for (uint64_t i = 0; i < count; ++i) {
    has_old |= first + i < sectors_for(image_size_) && !sectors_.contains(first + i);
  }
  const uint64_t hashes_size = round_up(count * 8, kSectorSize);
  std::vector<std::byte> payload(hashes_size + (has_old ? data.size() : 0));
  for (uint64_t i = 0; i < count; ++i) {
    store_be(payload, i * 8, hash_of(data.subspan(i * kSectorSize, kSectorSize)));
  }
  if (has_old) copy(MutableBytes(payload).subspan(hashes_size), before);
  const uint64_t at = end_;
  co_await write_record(first, count, has_old, payload);
  const uint64_t old_at = has_old ? at + kSectorSize + hashes_size : 0;
  learn(first, count, old_at, payload, has_old ? Bytes(payload).subspan(hashes_size) : Bytes());
}

Task<void> UndoJournal::watch(uint64_t offset, Bytes data) {
  // A longer one is several.
  for (uint64_t done = 0; done < data.size();) {
    const Bytes piece = data.subspan(done, std::min(kWatchedLengthMax, data.size() - done));
    const Watched range{offset + done, piece.size(), hash_of(piece)};
    done += piece.size();
    if (!watched_.try_emplace({range.offset, range.length}, range.hash).second) continue;
    if (pending_.size() == kWatchedMax) co_await write_record(0, 0, false, {});
    pending_.push_back(range);
  }
}

/// Durable when it returns.
Task<void> UndoJournal::write_record(uint64_t first, uint64_t count, bool has_old, Bytes payload) {
  std::vector<std::byte> record(kSectorSize + payload.size());
  copy(MutableBytes(record).subspan(kSectorSize), payload);
  copy(record, byre::bytes_of(kRecordMagic));
  store_be(record, 8, records_);
  store_be(record, 16, first);
  store_be(record, 24, count);
  store_be(record, 32, has_old ? kHasOld : 0);
  store_be(record, 40, hash_of(payload));
  store_be<uint64_t>(record, 48, pending_.size());
  for (size_t i = 0; i < pending_.size(); ++i) {
    const size_t at = kWatchedAt + i * kWatchedSize;
    store_be(record, at, pending_[i].offset);
    store_be(record, at + 8, pending_[i].length);
    store_be(record, at + 16, pending_[i].hash);
  }
  store_be(record, kRecordHashed, hash_of(Bytes(record).first(kRecordHashed)));
  co_await file_->write(end_, record, {.tag = IoTag::none}).doing("undo journal");
  co_await file_->flush(IoTag::commit_sync).doing("undo journal");
  pending_.clear();
  end_ += record.size();
  ++records_;
}

Task<void> UndoJournal::restore_into(uint64_t first, MutableBytes data) const {
  const uint64_t end = first + data.size() / kSectorSize;
  for (auto at = sectors_.lower_bound(first); at != sectors_.end() && at->first < end; ++at) {
    if (at->second.old_at == 0) continue;
    const MutableBytes sector = data.subspan((at->first - first) * kSectorSize, kSectorSize);
    co_await file_->read(at->second.old_at, sector, IoTag::none);
  }
}

Task<void> UndoJournal::check(Device& image) const {
  const auto refused = [&](const auto&... parts) {
    return invalid("undo journal ", quoted(file_->name()), " does not fit ", quoted(image.name()),
                   ": ", parts..., "; nothing was changed");
  };
  if (image.size() < image_size_) {
    co_await fail(refused("the image has ", image.size(), " bytes, and had ", image_size_));
  }
  const auto shared = [&](const std::string& guests) {
    return refused(
        "data were written since that two things used before the repair, and would again: ", guests,
        "; what was written there would be lost, or be read in the other's place");
  };
  if (const auto changed = co_await changed_copies(image); !changed.empty()) {
    const std::string guests = co_await guests_at(image, changed);
    if (!guests.empty()) co_await fail(shared(guests));
    co_await fail(
        refused("the sector at ", changed.front(), " was written by somebody else since"));
  }
  Before before(image, *this);
  if (co_await fingerprint_of(before) != fingerprint_) {
    co_await fail(
        refused("its metadata are not those of the image that was repaired, or were "
                "changed since"));
  }
  if (const auto changed = co_await changed_sources(image); !changed.empty()) {
    const std::string guests = co_await guests_at(before, changed);
    co_await fail(shared(guests.empty() ? cat("host offset ", changed.front()) : guests));
  }
}

/// Sectors that a repair wrote and that are neither what they were nor what it made of them.
Task<std::vector<HostOffset>> UndoJournal::changed_copies(Device& image) const {
  std::vector<HostOffset> changed;
  std::vector<std::byte> sector(kSectorSize);
  for (const auto& [number, known] : sectors_) {
    // What was appended may not have got there.
    if (number >= sectors_for(image.size())) break;
    co_await read_padded(image, number * kSectorSize, sector);
    const bool appended = number >= sectors_for(image_size_);
    if (known.hashes.contains(hash_of(sector)) || (appended && is_zero(sector))) continue;
    changed.push_back({number * kSectorSize});
    if (changed.size() == kChangedMax) break;
  }
  co_return std::move(changed);
}

/// Is one of its sectors known by itself?
bool UndoJournal::knows_any(const Watched& range) const {
  const auto from = sectors_.lower_bound(range.offset / kSectorSize);
  return from != sectors_.end() && from->first < sectors_for(range.offset + range.length);
}

/// Shared data that are not what they were when they were copied.
Task<std::vector<HostOffset>> UndoJournal::changed_sources(Device& image) const {
  std::vector<HostOffset> changed;
  std::vector<std::byte> data;
  for (const auto& [range, hash] : watched_) {
    const auto [offset, length] = range;
    if (knows_any({offset, length, hash})) continue;
    data.resize(length);
    co_await read_padded(image, offset, data);
    if (hash_of(data) == hash) continue;
    changed.push_back({offset});
    if (changed.size() == kChangedMax) break;
  }
  co_return std::move(changed);
}

// ---- The device.

Task<void> UndoDevice::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  co_await file_.read(offset, data, options);
  if (options.tag == IoTag::copy_up_read) co_await journal_.watch(offset, data);
}

Task<void> UndoDevice::write(uint64_t offset, Bytes data, WriteOptions options) {
  // Records of old contents and of appended ones do not mix.
  const uint64_t had = sectors_for(journal_.image_size()) * kSectorSize;
  const auto piece_at = [&](uint64_t at, uint64_t left) {
    const uint64_t first = round_down(at, kSectorSize);
    uint64_t end = first + kRecordSectorsMax * kSectorSize;
    if (at < had) end = std::min(end, had);
    return std::min(left, end - at);
  };
  for (uint64_t done = 0; done < data.size();) {
    const uint64_t at = offset + done;
    const Bytes piece = data.subspan(done, piece_at(at, data.size() - done));
    const uint64_t first = at / kSectorSize;
    const uint64_t count = sectors_for(at + piece.size()) - first;
    std::vector<std::byte> before(count * kSectorSize);
    co_await read_padded(file_, first * kSectorSize, before);
    std::vector<std::byte> after = before;
    copy(MutableBytes(after).subspan(at - first * kSectorSize), piece);
    if (!equal(before, after) || at + piece.size() > file_.size()) {
      co_await journal_.add(first, before, after);
      co_await file_.write(at, piece, options);
    }
    done += piece.size();
  }
}

Task<void> UndoDevice::zero(uint64_t, uint64_t, ZeroOptions) {
  co_await fail(unsupported("a repair under an undo journal only writes"));
}

Task<void> UndoDevice::discard(uint64_t, uint64_t, DiscardOptions) {
  co_await fail(unsupported("a repair under an undo journal only writes"));
}

Task<void> UndoDevice::close() { co_return; }

// ---- Undo.

Task<void> undo_repair(Device& image, Device& journal_file) {
  const UndoJournal journal = co_await UndoJournal::load(journal_file);
  co_await journal.check(image);

  std::vector<std::byte> sectors;
  for (auto at = journal.sectors().begin(); at != journal.sectors().end();) {
    if (at->second.old_at == 0) {
      ++at;
      continue;
    }
    // Those that lie side by side, together.
    const uint64_t first = at->first;
    uint64_t end = first;
    for (; at != journal.sectors().end() && at->first == end && at->second.old_at != 0 &&
           end - first < kRecordSectorsMax;
         ++at) {
      ++end;
    }
    sectors.assign((end - first) * kSectorSize, std::byte{0});
    co_await journal.restore_into(first, sectors);
    const uint64_t offset = first * kSectorSize;
    const uint64_t size = std::min<uint64_t>(sectors.size(), journal.image_size() - offset);
    co_await image.write(offset, Bytes(sectors).first(size), {.tag = IoTag::none});
  }
  co_await image.flush(IoTag::commit_sync);
  if (image.size() > journal.image_size()) co_await image.resize(journal.image_size());
  co_await image.flush(IoTag::commit_sync);
}

}  // namespace byre
