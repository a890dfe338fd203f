// SPDX-License-Identifier: Apache-2.0
/// The undo journal of a repair: what it overwrites is kept, durable, in a file beside the image.
///
/// UndoDevice lies between a repair and the file.  Before sectors are overwritten, a record goes to
/// the journal and is synced: what the sectors held (those that the image had when it began), and a
/// hash of what they will hold.  Then the write goes down.  So at every moment the image is what it
/// was, but for sectors that the journal knows, and undo_repair() puts these back, then the length.
///
/// The journal (all numbers big-endian, everything in whole sectors of 512 bytes):
///   header  "BYREUNDO", version 2, the image's length at the beginning, its fingerprint, a hash of
///           the header.
///   record  "RECORD", its number, offset in the image, count of sectors (which may be 0), whether
///           old contents follow, ranges of shared data with a hash of each, a hash of the record;
///           then a hash of each sector's new contents, then the old contents.
/// A record that is not whole at the end of the journal is one whose write never began.  One in the
/// middle is damage: the journal is refused.
///
/// Undo and a second repair both begin by asking whether image and journal belong together, before
/// a byte is written: each sector that the journal knows holds what it held then or what the repair
/// wrote, and the image, seen with the old sectors, has the fingerprint of the beginning.  The
/// fingerprint is a hash of everything a check reads, that is, of all metadata.  So a journal of
/// another image is refused, and so is one of an image that was written to since, unless that
/// touched nothing but data in place that only one thing used before the repair: an undo does not
/// touch these either.  Data that two things used, and their copies, must be what they were: taken
/// back, one would read what was written for the other.  So the journal has a hash of what the
/// repair read to copy it.
/// Invariant: stopped anywhere, a repair leaves an image and a journal that undo correctly; so does
/// an undo.
/// Cost: a sync of the journal for each write; one check for the fingerprint.
/// Not here: where the journal lies (cli/repair.cc).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "block/device.h"
#include "format/types.h"

namespace byre {

/// A hash of everything that a check of `file` reads.
Task<uint64_t> fingerprint_of(Device& file);

class UndoJournal {
 public:
  /// What the journal knows of a sector of the image.
  struct Sector {
    uint64_t old_at = 0;  ///< Where the journal has its old contents; 0: the image ended before it.
    std::set<uint64_t> hashes;  ///< Of what it may hold.
  };

  /// Begins a journal for `image` in the empty `file`; durable when this returns.
  static Task<UndoJournal> begin(Device& image, Device& file);
  /// Reads one; fails when it is none, or damaged.
  static Task<UndoJournal> load(Device& file);

  uint64_t image_size() const { return image_size_; }
  uint64_t fingerprint() const { return fingerprint_; }
  const std::map<uint64_t, Sector>& sectors() const { return sectors_; }
  uint64_t bytes_kept() const { return bytes_kept_; }

  /// Takes away what is left of a record that was cut off, before records are added.
  Task<void> trim();
  /// Does it belong to `image`, as it is?  Says why not.
  Task<void> check(Device& image) const;
  /// What `count` sectors from `first` on held; those it does not know are left as they are in
  /// `data`.
  Task<void> restore_into(uint64_t first, MutableBytes data) const;

  /// Remembers what shared data were, before they are copied; durable with the next add().
  Task<void> watch(uint64_t offset, Bytes data);
  /// Records that `data`, whole sectors, are going to be written at sector `first`; `before` is
  /// what they hold now.  Durable when this returns.
  Task<void> add(uint64_t first, Bytes before, Bytes data);

 private:
  explicit UndoJournal(Device& file) : file_(&file) {}
  /// Data that more than one thing used.
  struct Watched {
    uint64_t offset = 0;
    uint64_t length = 0;
    uint64_t hash = 0;
  };
  Task<bool> load_record();
  Task<void> write_record(uint64_t first, uint64_t count, bool has_old, Bytes payload);
  bool knows_any(const Watched& range) const;
  Task<std::vector<HostOffset>> changed_copies(Device& image) const;
  Task<std::vector<HostOffset>> changed_sources(Device& image) const;
  Task<void> refuse_if_more_follows() const;
  void learn(uint64_t first, uint64_t count, uint64_t old_at, Bytes hashes, Bytes before);

  Device* file_;
  uint64_t image_size_ = 0;
  uint64_t fingerprint_ = 0;
  uint64_t records_ = 0;
  uint64_t end_ = 0;  ///< Behind the last whole record.
  uint64_t bytes_kept_ = 0;
  std::map<uint64_t, Sector> sectors_;
  std::map<std::pair<uint64_t, uint64_t>, uint64_t> watched_;  ///< Offset, length: hash.
  std::vector<Watched> pending_;                               ///< For the next record.
};

/// The image's file as a repair sees it.  Writes may lengthen it; nothing else changes it.
class UndoDevice final : public Device {
 public:
  UndoDevice(Device& file, UndoJournal& journal) : file_(file), journal_(journal) {}

  uint64_t size() const override { return file_.size(); }
  bool writable() const override { return file_.writable(); }
  const std::string& name() const override { return file_.name(); }
  Reactor& reactor() override { return file_.reactor(); }
  /// What is read to be copied is shared data.
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  BYRE_CORO_WRAPPER Task<void> flush(IoTag tag) override { return file_.flush(tag); }
  BYRE_CORO_WRAPPER Task<Extent> status(uint64_t offset, uint64_t length) override {
    return file_.status(offset, length);
  }
  bool new_space_is_zero() const override { return file_.new_space_is_zero(); }
  bool can_grow() const override { return file_.can_grow(); }
  /// The file is its owner's to close.
  Task<void> close() override;

 private:
  Device& file_;
  UndoJournal& journal_;
};

/// Puts `image` back to what it was when the journal in `journal_file` was begun, byte for byte.
/// Checks first, and changes nothing when it refuses.  It can be run again, whether it was cut off
/// or not.
Task<void> undo_repair(Device& image, Device& journal_file);

}  // namespace byre
