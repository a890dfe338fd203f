// SPDX-License-Identifier: Apache-2.0
/// The log of Linux's dm-log-writes as pure functions: what was written to a device, in order
/// (Documentation/admin-guide/device-mapper/log-writes.rst of the kernel; QEMU's blklogwrites
/// writes it too).
///
/// All integers are little-endian; everything is counted in log sectors, whose size the superblock
/// says.  Sector 0 is the superblock: magic, version, number of entries, sector size.  An entry is
/// a sector that starts with its header (sector, count of sectors, flags, bytes of text), followed
/// by the data of as many sectors; a discard has none.  A mark carries its text in the sector of
/// its header, behind it. Invariant: what parse_write_log() accepts lies inside the log that it was
/// given, and serialize followed by parse gives the same again. Cost: parsing touches one sector an
/// entry; the data are not copied. Not here: writing a log (write_log.h).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/units.h"

namespace byre {

inline constexpr uint64_t kWriteLogMagic = 0x6a736677736872;
inline constexpr uint64_t kWriteLogVersion = 1;
inline constexpr uint32_t kWriteLogSectorMin = 512;
inline constexpr uint32_t kWriteLogSectorMax = 8 * MiB;
/// Bytes of a superblock and of the header of an entry.
inline constexpr size_t kWriteLogSuperSize = 28;
inline constexpr size_t kWriteLogEntrySize = 32;

struct WriteLogSuper {
  uint64_t entries = 0;
  uint32_t sector_size = 512;
  friend bool operator==(const WriteLogSuper&, const WriteLogSuper&) = default;
};

struct WriteLogEntry {
  static constexpr uint64_t kFlush = 1;    ///< What was complete before it is durable.
  static constexpr uint64_t kFua = 2;      ///< Its own data are durable.
  static constexpr uint64_t kDiscard = 4;  ///< The sectors are no longer wanted; no data follow.
  static constexpr uint64_t kMark = 8;     ///< A text for the reader; changes nothing.
  static constexpr uint64_t kMetadata = 16;
  static constexpr uint64_t kKnownFlags = 31;

  uint64_t sector = 0;
  uint64_t sectors = 0;
  uint64_t flags = 0;
  uint64_t text_size = 0;  ///< Of a mark; 0 for all others.

  bool is_discard() const { return (flags & kDiscard) != 0; }
  bool is_mark() const { return (flags & kMark) != 0; }
  /// Sectors of data behind the one with the header.
  uint64_t data_sectors() const { return is_discard() ? 0 : sectors; }
  friend bool operator==(const WriteLogEntry&, const WriteLogEntry&) = default;
};

/// A size of log sectors that byre writes: a power of two from 512 bytes to 8 MiB.
Result<void> check_write_log_sector_size(uint32_t sector_size);

/// Fills the start of `sector` and zeroes the rest.
void serialize_write_log_super(const WriteLogSuper& super, MutableBytes sector);
void serialize_write_log_entry(const WriteLogEntry& entry, std::string_view text,
                               MutableBytes sector);

/// `bytes` has at least the size of what is parsed.
Result<WriteLogSuper> parse_write_log_super(Bytes bytes);
Result<WriteLogEntry> parse_write_log_entry(Bytes bytes, uint32_t sector_size);

/// One entry with what belongs to it; both refer to the log.
struct WriteLogRecord {
  WriteLogEntry entry;
  Bytes data;             ///< `entry.data_sectors()` sectors.
  std::string_view text;  ///< Of a mark.
};
struct WriteLogRecords {
  WriteLogSuper super;
  std::vector<WriteLogRecord> records;
};
/// A whole log; every entry that the superblock counts must be there.
Result<WriteLogRecords> parse_write_log(Bytes log);

/// Does to `disk` what the entry says; it grows as far as needed, up to `size_max` bytes.  A
/// discarded range reads as zeros afterwards, as far as it is inside the disk.
Result<void> apply_write_log_record(const WriteLogRecord& record, uint32_t sector_size,
                                    std::vector<std::byte>& disk, uint64_t size_max);

}  // namespace byre
