// SPDX-License-Identifier: Apache-2.0
#include "checker.h"

#include <algorithm>
#include <map>

#include "base/units.h"

namespace byre {

namespace {

constexpr uint64_t kErrorsMax = 20;

class Checker {
 public:
  Checker(const SimDisk& disk, uint64_t aliased) : disk_(disk), aliased_(aliased) {}

  ImageVerdict run() {
    if (!header()) return std::move(verdict_);
    refcount_structures();
    claim(0, 1, "header");
    table(l1_offset_, l1_entries_, "L1 table", true);
    snapshots();
    bitmaps();
    compare();
    return std::move(verdict_);
  }

 private:
  struct Claim {
    uint64_t references = 0;
    std::string owner;
    bool shareable = false;  // By compressed streams, or by snapshots of the same guest cluster.
  };
  struct CopiedPointer {
    uint64_t cluster;
    bool copied;
    std::string what;
  };

  template <class... Parts>
  void error(const Parts&... parts) {
    if (verdict_.errors.size() < kErrorsMax) verdict_.errors.push_back(cat(parts...));
  }

  uint64_t word(uint64_t offset) const { return load_be<uint64_t>(disk_.read(offset, 8)); }
  uint32_t half(uint64_t offset) const { return load_be<uint32_t>(disk_.read(offset, 4)); }

  bool header() {
    if (disk_.size() < 72 || half(0) != 0x514649fb) {
      error("no qcow2 header");
      return false;
    }
    version_ = half(4);
    cluster_bits_ = half(20);
    guest_size_ = word(24);
    verdict_.size = guest_size_;
    l1_entries_ = half(36);
    l1_offset_ = word(40);
    table_offset_ = word(48);
    table_clusters_ = half(56);
    snapshot_count_ = half(60);
    snapshots_offset_ = word(64);
    uint64_t incompatible = 0;
    if (version_ == 3) {
      incompatible = word(72);
      autoclear_ = word(88);
      refcount_bits_ = 1u << half(96);
    }
    if ((version_ != 2 && version_ != 3) || cluster_bits_ < 9 || cluster_bits_ > 21 ||
        refcount_bits_ > 64) {
      error("version ", version_, ", cluster_bits ", cluster_bits_, ", refcount_bits ",
            refcount_bits_);
      return false;
    }
    verdict_.dirty = (incompatible & 1) != 0;
    if (incompatible & 2) error("the corrupt bit is set");
    external_ = (incompatible & 4) != 0;
    extended_ = (incompatible & 16) != 0;
    cluster_ = uint64_t{1} << cluster_bits_;
    entry_size_ = extended_ ? 16 : 8;
    if (guest_size_ > 0) {
      const uint64_t span = cluster_ * (cluster_ / entry_size_);
      if (l1_entries_ < div_ceil(guest_size_, span)) error("the L1 table is too small");
    }
    return true;
  }

  /// May `offset` be followed as a pointer to `length` bytes?
  bool pointer(uint64_t offset, uint64_t length, const std::string& what) {
    if (offset % cluster_ != 0) {
      error(what, " points to ", hex(offset), ", which is not aligned");
      return false;
    }
    if (offset == 0 || offset + length > round_up(disk_.size(), cluster_)) {
      error(what, " points to ", hex(offset), ", the file ends at ", hex(disk_.size()));
      return false;
    }
    return true;
  }

  void claim(uint64_t cluster, uint64_t references, const std::string& owner,
             bool shareable = false) {
    Claim& c = claims_[cluster];
    if (c.references == 0) {
      c.owner = owner;
      c.shareable = shareable;
    } else if (c.owner != owner && !(c.shareable && shareable) && cluster != aliased_) {
      error("host cluster ", hex(cluster * cluster_), " belongs to ", c.owner, " and to ", owner);
    }
    c.references += references;
  }

  void refcount_structures() {
    if (!pointer(table_offset_, table_clusters_ * cluster_, "header: refcount table")) return;
    if (table_offset_ + table_clusters_ * cluster_ > disk_.size()) {
      error("the refcount table passes the end of the file");
    }
    for (uint64_t i = 0; i < table_clusters_; ++i) {
      claim(table_offset_ / cluster_ + i, 1, "refcount table");
    }
    for (uint64_t i = 0; i < table_clusters_ * cluster_ / 8; ++i) {
      const uint64_t entry = word(table_offset_ + i * 8);
      if (entry == 0) continue;
      if (entry & 0x1ff) error("refcount table entry ", i, ": ", hex(entry));
      if (!pointer(entry, cluster_, cat("refcount table entry ", i))) continue;
      if (entry + cluster_ > disk_.size()) {
        error("refcount block ", i, " passes the end of the file");
      }
      claim(entry / cluster_, 1, cat("refcount block ", i));
      blocks_.emplace(i, disk_.read(entry, cluster_));
    }
  }

  uint64_t refcount(uint64_t cluster) const {
    const uint64_t entries = cluster_ * 8 / refcount_bits_;
    const auto block = blocks_.find(cluster / entries);
    if (block == blocks_.end()) return 0;
    return entry_of(block->second, cluster % entries);
  }
  uint64_t entry_of(const std::vector<std::byte>& block, uint64_t index) const {
    const uint64_t bit = index * refcount_bits_;
    if (refcount_bits_ < 8) {
      return std::to_integer<uint64_t>(block[bit / 8]) >> (bit % 8) & ((1u << refcount_bits_) - 1);
    }
    uint64_t value = 0;
    for (uint64_t i = 0; i < refcount_bits_ / 8; ++i) {
      value = value << 8 | std::to_integer<uint64_t>(block[bit / 8 + i]);
    }
    return value;
  }

  void table(uint64_t offset, uint64_t entries, const std::string& name, bool active) {
    if (entries == 0) return;
    if (!pointer(offset, entries * 8, name)) return;
    if (offset + entries * 8 > disk_.size()) error(name, " passes the end of the file");
    for (uint64_t c = 0; c < div_ceil(entries * 8, cluster_); ++c) {
      claim(offset / cluster_ + c, 1, name);
    }
    for (uint64_t i = 0; i < entries; ++i) {
      const uint64_t entry = word(offset + i * 8);
      if (entry == 0) continue;
      const std::string what = cat(name, " entry ", i);
      if (entry & 0x7f00'0000'0000'01ffu) error(what, ": reserved bits in ", hex(entry));
      const uint64_t l2 = entry & 0x00ff'ffff'ffff'fe00u;
      if (l2 == 0) {
        error(what, ": ", hex(entry), " without a table");
        continue;
      }
      if (!pointer(l2, cluster_, what)) continue;
      if (l2 + cluster_ > disk_.size()) error(what, ": the table passes the end of the file");
      claim(l2 / cluster_, 1, cat("L2 table ", i));
      if (active) copied_.push_back({l2 / cluster_, (entry >> 63) != 0, what});
      l2_table(l2, i, active);
    }
  }

  void l2_table(uint64_t offset, uint64_t index, bool active) {
    const std::vector<std::byte> bytes = disk_.read(offset, cluster_);
    const uint64_t entries = cluster_ / entry_size_;
    for (uint64_t i = 0; i < entries; ++i) {
      const uint64_t entry = load_be<uint64_t>(bytes, i * entry_size_);
      const uint64_t bitmap = extended_ ? load_be<uint64_t>(bytes, i * entry_size_ + 8) : 0;
      if (entry == 0 && (bitmap & 0xffff'ffff) == 0) continue;
      const uint64_t guest = index * entries + i;
      const std::string what = cat("guest cluster ", hex(guest));
      if (entry & uint64_t{1} << 62) {
        compressed(entry, bitmap, what);
        continue;
      }
      if (extended_ && (bitmap >> 32 & bitmap) != 0) error(what, ": bitmap ", hex(bitmap));
      if (entry & (0x3f00'0000'0000'01feu | (extended_ ? 1u : 0u))) {
        error(what, ": reserved bits in ", hex(entry));
      }
      const uint64_t host = entry & 0x00ff'ffff'ffff'fe00u;
      if (external_) {
        if (host != 0 && host != guest * cluster_)
          error(what, " is at ", hex(host), " in the data file");
        continue;
      }
      if (host == 0) {
        if (entry >> 63) error(what, ": COPIED without a host cluster");
        if (bitmap & 0xffff'ffff) error(what, ": subclusters without a host cluster");
        continue;
      }
      if (!pointer(host, 1, what)) continue;
      claim(host / cluster_, 1, what);
      if (active) copied_.push_back({host / cluster_, (entry >> 63) != 0, what});
    }
  }

  void compressed(uint64_t entry, uint64_t bitmap, const std::string& what) {
    if (external_) error(what, ": compressed in an image with a data file");
    if (entry >> 63) error(what, ": COPIED on a compressed cluster");
    if (bitmap != 0) error(what, ": compressed with bitmap ", hex(bitmap));
    const uint64_t bits = 62 - (cluster_bits_ - 8);
    const uint64_t at = entry & ((uint64_t{1} << bits) - 1);
    const uint64_t sectors = (entry & ((uint64_t{1} << 62) - 1)) >> bits;
    const uint64_t end = round_down(at, kSectorSize) + (sectors + 1) * kSectorSize;
    if (at < cluster_ || at >= disk_.size()) error(what, ": stream at ", hex(at));
    for (uint64_t c = at / cluster_; c <= (end - 1) / cluster_; ++c) {
      claim(c, 1, "compressed streams", true);
    }
  }

  void snapshots() {
    uint64_t at = snapshots_offset_;
    for (uint32_t i = 0; i < snapshot_count_; ++i) {
      if (at + 40 > disk_.size()) {
        error("the snapshot table passes the end of the file");
        return;
      }
      const uint64_t l1 = word(at);
      const uint32_t entries = half(at + 8);
      const uint64_t ids = half(at + 12);
      const uint64_t extra = half(at + 36);
      at = round_up(at + 40 + extra + (ids >> 16) + (ids & 0xffff), 8);
      snapshot_table(l1, entries, i);
    }
    if (snapshot_count_ == 0) return;
    for (uint64_t c = snapshots_offset_ / cluster_; c <= (at - 1) / cluster_; ++c) {
      claim(c, 1, "snapshot table");
    }
  }
  void snapshot_table(uint64_t l1, uint32_t entries, uint32_t index) {
    table(l1, entries, cat("snapshot ", index, " L1 table"), false);
  }

  /// The header extension; 0 without one that counts.  Two that say the same are one.
  uint64_t bitmaps_extension() {
    if (version_ != 3 || (autoclear_ & 1) == 0) return 0;
    const uint64_t name = word(8);
    const uint64_t end = name == 0 ? cluster_ : name;
    uint64_t found = 0;
    for (uint64_t at = half(100); at + 8 <= end && half(at) != 0;
         at += 8 + round_up(half(at + 4), 8)) {
      if (at + 8 + half(at + 4) > end) {
        error("header extension at ", hex(at), " is too long");
        return 0;
      }
      if (half(at) != 0x23852875) continue;
      if (half(at + 4) != 24 || half(at + 12) != 0) error("the bitmaps extension at ", hex(at));
      if (found != 0 && disk_.read(found, 24) != disk_.read(at + 8, 24))
        error("two bitmaps extensions, with different contents");
      found = at + 8;
    }
    if (found == 0) error("the bitmaps bit without an extension");
    return found;
  }

  void bitmaps() {
    const uint64_t extension = bitmaps_extension();
    if (extension == 0) return;
    const uint32_t count = half(extension);
    const uint64_t size = word(extension + 8);
    uint64_t at = word(extension + 16);
    if (count == 0 || !pointer(at, size, "bitmap directory")) return;
    const uint64_t end = at + size;
    for (uint64_t c = at / cluster_; c <= (end - 1) / cluster_; ++c)
      claim(c, 1, "bitmap directory");
    for (uint32_t i = 0; i < count; ++i) {
      if (at + 24 > end) {
        error("the bitmap directory ends too early");
        return;
      }
      const uint64_t kinds = half(at + 16);
      const uint64_t length = round_up(24 + half(at + 20) + (kinds & 0xffff), 8);
      if (at + length > end) {
        error("the bitmap directory ends too early");
        return;
      }
      bitmap(at, kinds);
      at += length;
    }
    if (at != end) error("the bitmap directory is longer than its entries");
  }

  void bitmap(uint64_t at, uint64_t kinds) {
    const uint64_t table = word(at);
    const uint64_t entries = half(at + 8);
    const uint32_t flags = half(at + 12);
    FoundBitmap found{.granularity_bits = static_cast<uint32_t>(kinds >> 16 & 0xff),
                      .in_use = (flags & 1) != 0,
                      .automatic = (flags & 2) != 0,
                      .cluster = cluster_};
    const std::vector<std::byte> name = disk_.read(at + 24, kinds & 0xffff);
    found.name = std::string(text_of(name));
    const std::string what = cat("bitmap ", found.name);
    if (kinds >> 24 != 1 || found.granularity_bits < 9 || found.granularity_bits > 31 ||
        flags > 3) {
      error(what, ": type, granularity or flags");
      return;
    }
    const uint64_t granules = div_ceil(guest_size_, uint64_t{1} << found.granularity_bits);
    found.valid = entries != 0 && entries == div_ceil(div_ceil(granules, 8), cluster_);
    if (!found.valid) error(what, ": a table of ", entries, " entries for ", granules, " granules");
    if (!pointer(table, entries * 8, what)) return;
    for (uint64_t c = table / cluster_; c <= (table + entries * 8 - 1) / cluster_; ++c)
      claim(c, 1, what + " table");
    for (uint64_t i = 0; i < entries; ++i) {
      const uint64_t entry = word(table + i * 8);
      const uint64_t host = entry & 0x00ff'ffff'ffff'fe00u;
      found.kinds.push_back(host != 0 ? 2 : static_cast<int>(entry & 1));
      found.data.emplace_back();
      if ((entry & ~host) > 1 || (host != 0 && (entry & 1) != 0)) error(what, ": ", hex(entry));
      if (host == 0) continue;
      if (!pointer(host, 1, what + " data")) continue;
      claim(host / cluster_, 1, cat(what, " data ", i));
      found.data.back() = disk_.read(host, cluster_);
    }
    if (found.valid && !found.data.back().empty()) {
      const uint64_t bits = granules - (entries - 1) * cluster_ * 8;
      const Bytes last = found.data.back();
      bool clean = is_zero(last.subspan(div_ceil(bits, 8)));
      for (uint64_t bit = bits; bit % 8 != 0; ++bit) clean &= !found.dirty(granules - bits + bit);
      if (!clean) error(what, ": bits behind the end of the disk");
    }
    verdict_.bitmaps.push_back(std::move(found));
  }

  void leak(uint64_t cluster) {
    ++verdict_.leaks;
    if (cluster * cluster_ < disk_.size()) ++verdict_.leaks_in_file;
  }

  void compare() {
    if (verdict_.dirty) return;
    verdict_.clusters = claims_.size();
    for (const auto& [cluster, claim] : claims_) {
      const uint64_t count = refcount(cluster);
      if (count < claim.references && cluster != aliased_) {
        ++verdict_.undercounted;
        error("host cluster ", hex(cluster * cluster_), " (", claim.owner, ") has refcount ", count,
              " and ", claim.references, " references");
      }
      if (count > claim.references) leak(cluster);
    }
    const uint64_t entries = cluster_ * 8 / refcount_bits_;
    for (const auto& [index, block] : blocks_) {
      for (uint64_t i = 0; i < entries; ++i) {
        const uint64_t cluster = index * entries + i;
        if (entry_of(block, i) != 0 && !claims_.contains(cluster)) leak(cluster);
      }
    }
    for (const CopiedPointer& pointer : copied_) {
      const uint64_t count = refcount(pointer.cluster);
      if (pointer.copied && pointer.cluster != aliased_ &&
          (count != 1 || claims_.at(pointer.cluster).references != 1)) {
        error(pointer.what, ": COPIED, but ", hex(pointer.cluster * cluster_), " has refcount ",
              count);
      }
      if (!pointer.copied && count == 1) ++verdict_.copied_mismatch;
      if (pointer.copied && count > 1) ++verdict_.copied_shared;
    }
  }

  const SimDisk& disk_;
  const uint64_t aliased_;
  ImageVerdict verdict_;
  uint32_t version_ = 0;
  uint32_t cluster_bits_ = 0;
  uint64_t cluster_ = 0;
  uint64_t guest_size_ = 0;
  uint64_t l1_offset_ = 0;
  uint64_t l1_entries_ = 0;
  uint64_t table_offset_ = 0;
  uint64_t table_clusters_ = 0;
  uint32_t snapshot_count_ = 0;
  uint64_t snapshots_offset_ = 0;
  uint32_t refcount_bits_ = 16;
  bool external_ = false;
  bool extended_ = false;
  uint64_t entry_size_ = 8;
  uint64_t autoclear_ = 0;
  std::map<uint64_t, Claim> claims_;
  std::map<uint64_t, std::vector<std::byte>> blocks_;
  std::vector<CopiedPointer> copied_;
};

}  // namespace

bool FoundBitmap::dirty(uint64_t granule) const {
  const uint64_t index = granule / 8 / cluster;
  if (index >= kinds.size()) return false;
  if (kinds[index] != 2) return kinds[index] == 1;
  if (data[index].empty()) return false;
  const std::byte byte = data[index][granule / 8 % cluster];
  return (std::to_integer<unsigned>(byte) >> (granule % 8) & 1) != 0;
}

std::string ImageVerdict::text() const {
  std::string text = cat(errors.size(), " errors, ", leaks, " leaks, ", copied_mismatch,
                         " COPIED missing", dirty ? ", dirty" : "");
  for (const std::string& error : errors) text += cat("\n  ", error);
  return text;
}

ImageVerdict check_bytes(const SimDisk& disk, uint64_t aliased) {
  return Checker(disk, aliased).run();
}

}  // namespace byre
