// SPDX-License-Identifier: Apache-2.0
/// WriteLog: passes every request on and logs each change on a second device, in the format of
/// Linux's dm-log-writes (write_log_format.h); what QEMU calls blklogwrites.  A test replays the
/// log up to any entry and looks whether what is on the disk then is sound.
///
/// The order of the entries is one in which the changes took effect:
///   1. A change takes its whole log sectors exclusively while it runs below, and gets its place in
///      the log in the turn in which it completes.  So overlapping changes are logged in the order
///      in which they took effect, all others in the order in which they were complete.
///   2. A flush gets its place when it is issued: what completes while it runs comes behind it, and
///      the flush entry covers only what was complete before.  One that fails becomes a mark.
///   3. The superblock counts only entries before which there is no gap.  It is written every
///      `super_update_interval` entries, for each flush and each durable (FUA) change, and at
///      close; the entries are made durable first.
/// A request is answered when its entry is written, a flush when its entry is durable and counted.
///
/// Zeroing is logged as data that are zeros, not as a discard: its result is promised, and a replay
/// may leave discards out.  (The log gets them by zero(), so in a file they are a hole.)
/// A discard is cut to whole log sectors; its entry says DISCARD.  A request that covers a log
/// sector in part is logged as the whole sector, whose rest is read back.
/// A new size is a mark "resize N"; what is cut off is a discard before it.  allocate() is not
/// logged, as it changes no contents.
/// When the log cannot be written, every later change fails: an entry is missing, and what would
/// follow it would be replayed onto something that never was.  Reads go on.
///
/// Cost: each change twice, one after the other; no copy of its data.
/// Not here: reading a log (write_log_format.h).
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "block/filter.h"
#include "block/write_log_format.h"
#include "coro/event.h"
#include "coro/range_lock.h"
#include "coro/semaphore.h"

namespace byre {

struct WriteLogOptions {
  /// Goes on behind the entries that are there; the log says its sector size then.
  bool append = false;
  std::optional<uint32_t> sector_size;  ///< 512 when not given; none with `append`.
  uint64_t super_update_interval = 4096;
};

class WriteLog final : public Filter {
 public:
  /// Writes the superblock, or with `append` reads the log up to its end.  Both devices are
  /// abandoned when that fails.
  static Task<std::unique_ptr<WriteLog>> open(Child below, Child log, WriteLogOptions options);

  uint32_t sector_size() const { return sector_size_; }
  /// How many entries were written, without a gap.
  uint64_t entries() const { return recorded_; }
  /// An entry that says where a test was at this moment.
  Task<void> mark(std::string text);

  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> flush(IoTag tag) override;
  Task<void> resize(uint64_t size) override;
  Task<void> close() override;
  void abandon() override;

 private:
  /// A place in the log: number and first sector of an entry.
  struct Slot {
    uint64_t number;
    uint64_t sector;
  };

  WriteLog(Child below, Child log, uint32_t sector_size, uint64_t super_update_interval);
  Result<void> usable() const;
  Result<void> check_range(std::string_view what, uint64_t offset, uint64_t length) const;
  Task<void> find_end(uint64_t entries);
  Slot take_slot(const WriteLogEntry& entry);
  RangeLock::Request lock(uint64_t offset, uint64_t length);
  WriteLogEntry entry_for(uint64_t offset, uint64_t length, bool fua) const;
  Task<void> record_range(Slot slot, WriteLogEntry entry, uint64_t offset, uint64_t length,
                          Bytes data);
  Task<void> record(Slot slot, WriteLogEntry entry, std::string_view text);
  Task<void> write_data(Slot slot, uint64_t offset, uint64_t length, Bytes data);
  Task<void> write_edge(uint64_t log_at, uint64_t at);
  Task<void> write_header(Slot slot, const WriteLogEntry& entry, std::string_view text);
  Task<void> finish_entry(Slot slot, Result<void> written, bool durable);
  Task<void> write_super(bool always);

  Child log_;
  const uint32_t sector_size_;
  const uint64_t super_update_interval_;
  uint64_t next_number_ = 0;
  uint64_t next_sector_ = 1;
  uint64_t recorded_ = 0;            ///< Entries below this number are all written.
  std::set<uint64_t> out_of_order_;  ///< Written, with a gap before them.
  uint64_t counted_ = 0;             ///< What the superblock says.
  Error broken_;                     ///< Why the log ends at a gap.
  RangeLock locks_;                  ///< In log sectors.
  Mutex super_mutex_;
  Event progress_;  ///< recorded_ grew, or the log broke.
};

}  // namespace byre
