// SPDX-License-Identifier: Apache-2.0
/// Creating a disk under a name: the file, what it must contain to be a disk, and that both survive
/// a power loss.
///
/// An external data file that is there is kept with its contents, which a raw one shows; one that
/// is not there is made.  An image is never its own data file, under whatever name.
///
/// Until it is finished the disk is none (job/unfinished.h): an image gets its first sector last, a
/// raw disk that will be filled its length.  So a process that is killed, or a power loss, leaves
/// an image that every program refuses, or a raw file that is too short (unless its end was written
/// first, or it was preallocated).  When something fails or is interrupted:
///   a file that was made here   is removed;
///   one that was there          keeps its name, its inode and its links, and is emptied; where an
///                               image was to be, its first sector says that it was not finished;
///   a block device              begins with that sector, or, raw, holds what was written so far.
/// Order: the contents, a sync, the first sector, a sync, then the sync of its folder.
/// Not here: which options are possible together (qcow2/ops/create.h), filling the disk
/// (convert.h).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/progress.h"
#include "block/raw.h"
#include "io/file_opener.h"
#include "job/open.h"
#include "job/unfinished.h"
#include "qcow2/ops/create.h"

namespace byre {

struct CreateDiskOptions {
  DiskFormat format = DiskFormat::raw;
  CreateOptions image;   ///< `size` and `preallocation` are for raw disks, too.
  bool replace = false;  ///< What is there may be overwritten.
  /// The disk will be filled before it is finished: contents of a data file that is there are lost,
  /// as far as `replace` allows.
  bool to_be_filled = false;
  bool no_copy_on_write = false;
  std::optional<uint64_t> extent_size_hint;
  /// Told which wishes the file system did not grant.
  std::function<void(const std::string&)> message;
  bool direct = false;
  /// It is durable when it is finished; else the kernel writes it when it likes.
  bool sync = true;
  /// Asked before each change whether to go on; null: nobody stops it.
  Progress* progress = nullptr;
};

/// A file that a disk is being made in.
class TargetFile {
 public:
  TargetFile(const File& file, bool existed);
  TargetFile(const TargetFile&) = delete;
  /// give_up(), unless keep() was called.
  ~TargetFile() { (void)give_up(); }
  void keep() { settled_ = true; }
  /// Where an image was to be, a file that is kept says that it was not finished.
  void set_image() { is_image_ = true; }
  /// Its old contents, if it had any, are gone.
  void set_overwritten() { overwritten_ = true; }
  /// Removes or empties it; returns what is left, as a sentence, or nothing.
  std::string give_up();

 private:
  bool is_still_there() const;

  std::string path_;  ///< Without links.
  std::string name_;
  uint64_t device_, inode_;
  bool block_device_;
  bool existed_;
  bool is_image_ = false;
  bool overwritten_ = false;
  bool settled_ = false;
};

/// A disk under a name, being made.
class NewDiskFile {
 public:
  NewDiskFile(Reactor& reactor, std::unique_ptr<File> file, bool existed,
              const CreateDiskOptions& options);
  NewDiskFile(const NewDiskFile&) = delete;

  /// To fill it through: an image is opened over one of these.  Lives as long as this.
  std::unique_ptr<Device> device() {
    return std::make_unique<Forwarder>(static_cast<Device&>(being_made_));
  }
  Device& being_made() { return being_made_; }
  /// The bytes of a raw disk, where they may be written beside device(); null: there are none, or a
  /// first sector is kept back.
  File* raw_file() { return raw_size_ ? &file_.file() : nullptr; }
  /// What was written so far is durable, though the disk is none yet.
  Task<void> sync() { co_await file_.flush(IoTag::flush); }
  /// Everything is written, and whoever used device() has closed it: the disk is one.
  Task<void> finish();
  /// It will not be finished: what is left of what was there, as sentences, or nothing.
  std::string give_up();

  TargetFile& target() { return target_; }
  void set_data(std::unique_ptr<TargetFile> data) { data_ = std::move(data); }

 private:
  Reactor& reactor_;
  RawDevice file_;
  BeingMade being_made_;
  TargetFile target_;
  std::unique_ptr<TargetFile> data_;
  const std::optional<uint64_t> raw_size_;
  const bool sync_;
};

/// Makes the disk, but for finish().  Errc::exists when there is one and `replace` is not set.
Task<std::unique_ptr<NewDiskFile>> begin_disk(Reactor& reactor, FileOpener& opener,
                                              std::string path, CreateDiskOptions options);

/// Makes the disk.
Task<void> create_disk(Reactor& reactor, FileOpener& opener, std::string path,
                       CreateDiskOptions options);

/// Makes the names in the folder of `path` durable.
Task<void> sync_folder(Reactor& reactor, std::string path);

}  // namespace byre
