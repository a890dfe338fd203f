// SPDX-License-Identifier: Apache-2.0
#include "block/write_log.h"

#include <algorithm>

#include "base/checked.h"
#include "io/buffer.h"

namespace byre {
namespace {

/// What was asked for as a whole, so that an open that fails can give both devices up.
Result<void> check_options(const WriteLogOptions& options, const Device& log) {
  if (options.super_update_interval == 0)
    return invalid("blklogwrites: a log-super-update-interval of 0; the least is 1");
  if (options.append && options.sector_size) {
    return invalid(
        "blklogwrites: log-append takes the sector size from the log: leave log-sector-size out");
  }
  if (options.sector_size) {
    if (Result<void> sound = check_write_log_sector_size(*options.sector_size); !sound)
      return sound;
  }
  if (!log.writable())
    return Error(Errc::read_only, cat("blklogwrites: ", quoted(log.name()), " is read-only"));
  return {};
}

Task<WriteLogSuper> read_super(Device& log) {
  if (log.size() < kWriteLogSectorMin) {
    co_return corrupt("blklogwrites: ", quoted(log.name()), " has ", log.size(),
                      " bytes and is no log: start one without log-append");
  }
  const Buffer buffer(kWriteLogSectorMin);
  co_await log.read(0, buffer.bytes(), IoTag::none);
  co_return parse_write_log_super(buffer.bytes());
}

}  // namespace

WriteLog::WriteLog(Child below, Child log, uint32_t sector_size, uint64_t super_update_interval)
    : Filter(std::move(below)),
      log_(std::move(log)),
      sector_size_(sector_size),
      super_update_interval_(super_update_interval),
      locks_(reactor().ready()),
      super_mutex_(reactor().ready()),
      progress_(reactor().ready()) {
  log_.belong_to(*this, Role::other);
}

Task<std::unique_ptr<WriteLog>> WriteLog::open(Child below, Child log, WriteLogOptions options) {
  Result<void> sound = check_options(options, *log);
  WriteLogSuper super{.sector_size = options.sector_size.value_or(kWriteLogSectorMin)};
  if (sound && options.append) {
    Result<WriteLogSuper> there = co_await read_super(*log).result();
    if (there) {
      super = *there;
    } else {
      sound = std::move(there).error();
    }
  }
  if (sound && super.sector_size % log->alignment() != 0) {
    sound =
        invalid("blklogwrites: sectors of ", super.sector_size, " bytes on ", quoted(log->name()),
                ", which needs a multiple of ", log->alignment(), ": set log-sector-size");
  }
  if (!sound) {
    below.abandon();
    log.abandon();
    co_return std::move(sound).error();
  }

  std::unique_ptr<WriteLog> opened(new WriteLog(std::move(below), std::move(log), super.sector_size,
                                                options.super_update_interval));
  Result<void> ready;
  if (options.append) {
    ready = co_await opened->find_end(super.entries).result();
  } else {
    ready = co_await opened->write_super(true).result();
  }
  if (!ready) {
    opened->abandon();
    co_return std::move(ready).error();
  }
  co_return std::move(opened);
}

/// Walks the entries that are there.
Task<void> WriteLog::find_end(uint64_t entries) {
  const uint64_t end = log_->size() / sector_size_;
  const Buffer buffer(kWriteLogSectorMin);
  for (uint64_t n = 0; n < entries; ++n) {
    if (next_sector_ >= end) {
      co_await fail(corrupt("blklogwrites: ", quoted(log_->name()), " ends after ", n,
                            " entries, and its superblock counts ", entries));
    }
    co_await log_->read(next_sector_ * sector_size_, buffer.bytes(), IoTag::none);
    Result<WriteLogEntry> entry = parse_write_log_entry(buffer.bytes(), sector_size_);
    if (!entry) co_await std::move(entry).doing("entry ", n);
    if (!within(next_sector_ + 1, entry->data_sectors(), end)) {
      co_await fail(corrupt("blklogwrites: the data of entry ", n, " pass the end of ",
                            quoted(log_->name())));
    }
    next_sector_ += 1 + entry->data_sectors();
  }
  next_number_ = recorded_ = counted_ = entries;
}

Result<void> WriteLog::usable() const {
  if (!broken_) return {};
  return broken_.copy().while_doing(
      cat("nothing more is written since the log ", quoted(log_->name()), " has a gap"));
}

Result<void> WriteLog::check_range(std::string_view what, uint64_t offset, uint64_t length) const {
  if (within(offset, length, INT64_MAX - kWriteLogSectorMax)) return {};
  return out_of_range(what, offset, length);
}

/// The next place, with room for what `entry` says.
WriteLog::Slot WriteLog::take_slot(const WriteLogEntry& entry) {
  const Slot slot{.number = next_number_++, .sector = next_sector_};
  next_sector_ += 1 + entry.data_sectors();
  return slot;
}

RangeLock::Request WriteLog::lock(uint64_t offset, uint64_t length) {
  return {locks_, offset / sector_size_, div_ceil(offset + length, sector_size_),
          RangeLock::Mode::exclusive};
}

WriteLogEntry WriteLog::entry_for(uint64_t offset, uint64_t length, bool fua) const {
  const uint64_t first = offset / sector_size_;
  return {.sector = first,
          .sectors = div_ceil(offset + length, sector_size_) - first,
          .flags = fua ? WriteLogEntry::kFua : 0};
}

Task<void> WriteLog::write(uint64_t offset, Bytes data, WriteOptions options) {
  co_await usable();
  co_await check_range("write", offset, data.size());
  if (data.empty()) {
    co_await below().write(offset, data, options);
    co_return;
  }
  RangeLock::Request held = lock(offset, data.size());
  co_await held;
  co_await below().write(offset, data, options);
  const WriteLogEntry entry = entry_for(offset, data.size(), options.fua);
  co_await record_range(take_slot(entry), entry, offset, data.size(), data);
}

Task<void> WriteLog::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  co_await usable();
  co_await check_range("zero", offset, length);
  if (length == 0) co_return;
  RangeLock::Request held = lock(offset, length);
  co_await held;
  co_await below().zero(offset, length, options);
  const WriteLogEntry entry = entry_for(offset, length, options.fua);
  co_await record_range(take_slot(entry), entry, offset, length, {});
}

Task<void> WriteLog::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  co_await usable();
  co_await check_range("discard", offset, length);
  const uint64_t first = round_up(offset, sector_size_);
  const uint64_t end = round_down(offset + length, sector_size_);
  if (first >= end) co_return;
  RangeLock::Request held = lock(first, end - first);
  co_await held;
  co_await below().discard(first, end - first, options);
  WriteLogEntry entry = entry_for(first, end - first, options.fua);
  entry.flags |= WriteLogEntry::kDiscard;
  co_await record(take_slot(entry), entry, "");
}

Task<void> WriteLog::flush(IoTag tag) {
  co_await usable();
  const WriteLogEntry entry{.flags = WriteLogEntry::kFlush};
  const Slot slot = take_slot(entry);
  Result<void> flushed = co_await below().flush(tag).result();
  if (flushed) {
    co_await record(slot, entry, "");
    co_return;
  }
  constexpr std::string_view kText = "flush failed";
  co_await record(slot, {.flags = WriteLogEntry::kMark, .text_size = kText.size()}, kText);
  co_await std::move(flushed);
}

Task<void> WriteLog::mark(std::string text) {
  co_await usable();
  const size_t room = sector_size_ - kWriteLogEntrySize;
  if (text.size() > room) {
    co_await fail(invalid("blklogwrites: a mark of ", text.size(), " bytes; sectors of ",
                          sector_size_, " have room for ", room));
  }
  const WriteLogEntry entry{.flags = WriteLogEntry::kMark, .text_size = text.size()};
  co_await record(take_slot(entry), entry, text);
}

Task<void> WriteLog::resize(uint64_t size) {
  co_await usable();
  co_await check_range("resize", 0, size);
  const uint64_t first = std::min(size, below().size()) / sector_size_;
  RangeLock::Request held(locks_, first, UINT64_MAX, RangeLock::Mode::exclusive);
  co_await held;
  const uint64_t old = below().size();
  co_await below().resize(size);
  const uint64_t cut = round_up(size, sector_size_);
  if (cut < old) {
    WriteLogEntry entry = entry_for(cut, old - cut, false);
    entry.flags |= WriteLogEntry::kDiscard;
    co_await record(take_slot(entry), entry, "");
  }
  co_await mark(cat("resize ", size));
}

/// The entry of a change that has completed: its data, or zeros where `data` is empty.
Task<void> WriteLog::record_range(Slot slot, WriteLogEntry entry, uint64_t offset, uint64_t length,
                                  Bytes data) {
  Result<void> written = co_await write_data(slot, offset, length, data).result();
  if (written) written = co_await write_header(slot, entry, "").result();
  co_await finish_entry(slot, std::move(written), (entry.flags & WriteLogEntry::kFua) != 0);
}

Task<void> WriteLog::record(Slot slot, WriteLogEntry entry, std::string_view text) {
  Result<void> written = co_await write_header(slot, entry, text).result();
  constexpr uint64_t kDurable = WriteLogEntry::kFlush | WriteLogEntry::kFua;
  co_await finish_entry(slot, std::move(written), (entry.flags & kDurable) != 0);
}

Task<void> WriteLog::write_data(Slot slot, uint64_t offset, uint64_t length, Bytes data) {
  const uint64_t end = offset + length;
  const uint64_t first = round_down(offset, sector_size_);
  const uint64_t whole_first = round_up(offset, sector_size_);
  const uint64_t whole_end = round_down(end, sector_size_);
  const auto log_at = [&](uint64_t at) { return (slot.sector + 1) * sector_size_ + (at - first); };
  if (first < whole_first) co_await write_edge(log_at(first), first);
  if (whole_first < whole_end) {
    const uint64_t whole = whole_end - whole_first;
    if (data.empty()) {
      co_await log_->zero(log_at(whole_first), whole, {.may_unmap = true});
    } else {
      co_await log_->write(log_at(whole_first), data.subspan(whole_first - offset, whole),
                           {.tag = IoTag::none});
    }
  }
  if (whole_end < end && whole_end >= whole_first)
    co_await write_edge(log_at(whole_end), whole_end);
}

/// The log sector at `at` of the disk, as it is now, which its lock keeps.
Task<void> WriteLog::write_edge(uint64_t log_at, uint64_t at) {
  const Buffer buffer(sector_size_);
  const uint64_t size = below().size();
  const uint64_t there = at < size ? std::min<uint64_t>(size - at, sector_size_) : 0;
  if (there != 0) co_await below().read(at, buffer.bytes().first(there), IoTag::none);
  fill_zero(buffer.bytes().subspan(there));
  co_await log_->write(log_at, buffer.bytes(), {.tag = IoTag::none});
}

Task<void> WriteLog::write_header(Slot slot, const WriteLogEntry& entry, std::string_view text) {
  const Buffer buffer(sector_size_);
  serialize_write_log_entry(entry, text, buffer.bytes());
  co_await log_->write(slot.sector * sector_size_, buffer.bytes(), {.tag = IoTag::none});
}

/// After the entry was written, or not.
Task<void> WriteLog::finish_entry(Slot slot, Result<void> written, bool durable) {
  if (!written) {
    Error error = std::move(written).error().while_doing(cat("write log ", quoted(log_->name())));
    if (!broken_) broken_ = error.copy();
    progress_.notify();
    co_await fail(std::move(error));
  }
  out_of_order_.insert(slot.number);
  while (!out_of_order_.empty() && *out_of_order_.begin() == recorded_) {
    out_of_order_.erase(out_of_order_.begin());
    ++recorded_;
  }
  progress_.notify();
  if (durable) {
    while (recorded_ <= slot.number) {
      co_await usable();
      co_await progress_.wait();
    }
    co_await write_super(false);
  } else if (recorded_ >= counted_ + super_update_interval_ && !super_mutex_.locked()) {
    co_await write_super(false);
  }
}

/// Makes what the superblock will count durable, then counts it.
Task<void> WriteLog::write_super(bool always) {
  const uint64_t wanted = recorded_;
  const Mutex::Hold hold = co_await super_mutex_.lock();
  if (!always && counted_ >= wanted) co_return;  // Another one has done it meanwhile.
  const WriteLogSuper super{.entries = recorded_, .sector_size = sector_size_};
  const Buffer buffer(sector_size_);
  serialize_write_log_super(super, buffer.bytes());
  Result<void> written = co_await log_->flush(IoTag::none).result();
  if (written) {
    written = co_await log_->write(0, buffer.bytes(), {.fua = true, .tag = IoTag::none}).result();
  }
  if (!written) {
    Error error = std::move(written).error().while_doing(
        cat("write log ", quoted(log_->name()), ": superblock"));
    if (!broken_) broken_ = error.copy();
    progress_.notify();
    co_await fail(std::move(error));
  }
  counted_ = super.entries;
}

Task<void> WriteLog::close() {
  Result<void> closed = co_await Filter::close().result();
  // Of a log with a gap what lies before it counts.
  Result<void> counted = co_await write_super(false).result();
  Result<void> log_closed = co_await log_.close().result();
  co_await std::move(closed);
  co_await std::move(counted);
  co_await std::move(log_closed);
}

void WriteLog::abandon() {
  Filter::abandon();
  log_.abandon();
}

}  // namespace byre
