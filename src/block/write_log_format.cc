// SPDX-License-Identifier: Apache-2.0
#include "block/write_log_format.h"

#include <algorithm>
#include <bit>

#include "base/assert.h"
#include "base/checked.h"

namespace byre {
namespace {

template <class Int>
Int load_le(Bytes bytes, size_t at) {
  return std::byteswap(load_be<Int>(bytes, at));
}
template <class Int>
void store_le(MutableBytes bytes, size_t at, Int value) {
  store_be<Int>(bytes, at, std::byteswap(value));
}

}  // namespace

Result<void> check_write_log_sector_size(uint32_t sector_size) {
  if (std::has_single_bit(sector_size) && sector_size >= kWriteLogSectorMin &&
      sector_size <= kWriteLogSectorMax) {
    return {};
  }
  return invalid("blklogwrites: a log-sector-size of ", sector_size,
                 ": it must be a power of two from 512 to ", kWriteLogSectorMax);
}

void serialize_write_log_super(const WriteLogSuper& super, MutableBytes sector) {
  BYRE_ASSERT(sector.size() >= kWriteLogSuperSize);
  fill_zero(sector);
  store_le<uint64_t>(sector, 0, kWriteLogMagic);
  store_le<uint64_t>(sector, 8, kWriteLogVersion);
  store_le<uint64_t>(sector, 16, super.entries);
  store_le<uint32_t>(sector, 24, super.sector_size);
}

void serialize_write_log_entry(const WriteLogEntry& entry, std::string_view text,
                               MutableBytes sector) {
  BYRE_ASSERT(sector.size() >= kWriteLogEntrySize && entry.text_size == text.size() &&
              text.size() <= sector.size() - kWriteLogEntrySize);
  fill_zero(sector);
  store_le<uint64_t>(sector, 0, entry.sector);
  store_le<uint64_t>(sector, 8, entry.sectors);
  store_le<uint64_t>(sector, 16, entry.flags);
  store_le<uint64_t>(sector, 24, entry.text_size);
  copy(sector.subspan(kWriteLogEntrySize), bytes_of(text));
}

Result<WriteLogSuper> parse_write_log_super(Bytes bytes) {
  if (bytes.size() < kWriteLogSuperSize) {
    return corrupt("blklogwrites: ", bytes.size(), " bytes, and a superblock has ",
                   kWriteLogSuperSize);
  }
  if (load_le<uint64_t>(bytes, 0) != kWriteLogMagic)
    return corrupt("blklogwrites: it does not start with the magic number of a log");
  const uint64_t version = load_le<uint64_t>(bytes, 8);
  if (version != kWriteLogVersion)
    return unsupported("blklogwrites: version ", version, "; byre knows version 1");
  const WriteLogSuper super{.entries = load_le<uint64_t>(bytes, 16),
                            .sector_size = load_le<uint32_t>(bytes, 24)};
  if (!check_write_log_sector_size(super.sector_size))
    return corrupt("blklogwrites: sectors of ", super.sector_size, " bytes");
  return super;
}

Result<WriteLogEntry> parse_write_log_entry(Bytes bytes, uint32_t sector_size) {
  if (bytes.size() < kWriteLogEntrySize) {
    return corrupt("blklogwrites: ", bytes.size(), " bytes, and the header of an entry has ",
                   kWriteLogEntrySize);
  }
  const WriteLogEntry entry{.sector = load_le<uint64_t>(bytes, 0),
                            .sectors = load_le<uint64_t>(bytes, 8),
                            .flags = load_le<uint64_t>(bytes, 16),
                            .text_size = load_le<uint64_t>(bytes, 24)};
  if ((entry.flags & ~WriteLogEntry::kKnownFlags) != 0)
    return unsupported("blklogwrites: an entry has the unknown flags ", hex(entry.flags));
  const auto end = checked_add(entry.sector, entry.sectors);
  if (!end || *end > INT64_MAX / sector_size) {
    return corrupt("blklogwrites: an entry of ", entry.sectors, " sectors at sector ", entry.sector,
                   " passes the end of any disk");
  }
  const uint64_t text_max = entry.is_mark() ? sector_size - kWriteLogEntrySize : 0;
  if (entry.text_size > text_max) {
    return corrupt("blklogwrites: an entry has ", entry.text_size, " bytes of text, and room for ",
                   text_max);
  }
  return entry;
}

Result<WriteLogRecords> parse_write_log(Bytes log) {
  WriteLogRecords all;
  BYRE_TRY(super, parse_write_log_super(log));
  all.super = super;
  const uint64_t unit = super.sector_size;
  const uint64_t end = log.size() / unit;
  uint64_t at = 1;
  for (uint64_t n = 0; n < super.entries; ++n) {
    if (at >= end) {
      return corrupt("blklogwrites: it ends after ", n, " entries, and its superblock counts ",
                     super.entries);
    }
    const Bytes sector = log.subspan(at * unit, unit);
    BYRE_TRY(entry, parse_write_log_entry(sector, super.sector_size).doing("entry ", n));
    if (!within(at + 1, entry.data_sectors(), end))
      return corrupt("blklogwrites: the data of entry ", n, " pass the end of the log");
    all.records.push_back({.entry = entry,
                           .data = log.subspan((at + 1) * unit, entry.data_sectors() * unit),
                           .text = text_of(sector.subspan(kWriteLogEntrySize, entry.text_size))});
    at += 1 + entry.data_sectors();
  }
  return all;
}

Result<void> apply_write_log_record(const WriteLogRecord& record, uint32_t sector_size,
                                    std::vector<std::byte>& disk, uint64_t size_max) {
  const uint64_t at = record.entry.sector * sector_size;
  const uint64_t length = record.entry.sectors * sector_size;
  if (record.entry.is_discard()) {
    if (at >= disk.size()) return {};
    fill_zero(MutableBytes(disk).subspan(at, std::min(length, disk.size() - at)));
    return {};
  }
  if (length == 0) return {};
  if (!within(at, length, size_max))
    return invalid("blklogwrites: a write of ", length, " bytes at ", hex(at), " passes ",
                   size_max);
  if (disk.size() < at + length) disk.resize(at + length);
  copy(MutableBytes(disk).subspan(at, length), record.data);
  return {};
}

}  // namespace byre
