// SPDX-License-Identifier: Apache-2.0
#include "job/create.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "io/descriptor.h"

namespace byre {

namespace {

bool is_block_device(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode);
}

/// The path without links, where there is such a file.
std::string real_path(const std::string& path) {
  char* const found = realpath(path.c_str(), nullptr);
  const std::string real = found ? found : "";
  free(found);
  return real;
}

bool is_dangling(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) != 0 && lstat(path.c_str(), &status) == 0;
}

FileOptions file_options(const CreateDiskOptions& options) {
  return {.writable = true,
          .direct = options.direct,
          .no_copy_on_write = options.no_copy_on_write,
          .extent_size_hint = options.extent_size_hint};
}

void tell_of_wishes(const File& file, const CreateDiskOptions& options) {
  const std::string& refused = file.properties().wish_refused;
  if (!refused.empty() && options.message)
    options.message(cat(file.properties().name, ": ", refused));
}

/// Blocks, or zeros, for a disk that has none yet.
Task<void> give_blocks(Device& device, uint64_t size, Preallocation mode) {
  if (mode == Preallocation::falloc) co_await allocate_blocks(device, 0, size);
  if (mode == Preallocation::full) co_await write_zeros(device, 0, size);
}

/// Makes the external data file, or the one that is there large enough.  The user named it, so it
/// may be anywhere.
Task<void> fill_data_file(Device& device, CreateDiskOptions options) {
  const CreateOptions& image = options.image;
  if (device.size() != 0 && options.to_be_filled && device.can_grow()) {
    if (!options.replace) {
      co_await fail(
          Error(Errc::exists,
                cat("data file ", quoted(device.name()), " exists already; --force overwrites it"),
                EEXIST));
    }
    co_await device.resize(0);
  }
  const bool has_contents = device.size() != 0;
  if (has_contents && image.data_file_raw && device.can_grow() && device.size() > image.size) {
    co_await fail(invalid("data file ", quoted(device.name()), " has ", device.size(),
                          " bytes, and as a raw image it would be larger than the disk; give that "
                          "size"));
  }
  if (has_contents && !image.data_file_raw && image.preallocation != Preallocation::off) {
    co_await fail(invalid("data file ", quoted(device.name()),
                          " has contents, which preallocated clusters would show; use "
                          "data_file_raw=on, or no preallocation"));
  }
  if (device.size() < image.size) co_await device.resize(image.size);
  // What is there already is not overwritten.
  const Preallocation mode = has_contents && image.preallocation == Preallocation::full
                                 ? Preallocation::falloc
                                 : image.preallocation;
  co_await give_blocks(device, image.size, mode);
}

Task<std::unique_ptr<TargetFile>> make_data_file(FileOpener& opener, std::string path,
                                                 CreateDiskOptions options) {
  const std::string name = resolve_name(path, options.image.data_file);
  FileOptions how = file_options(options);
  how.create = true;
  bool existed = false;
  Result<std::unique_ptr<File>> file = opener.open(name, how);
  if (file) {
    tell_of_wishes(**file, options);
  } else if (file.error().code() == Errc::exists) {
    existed = true;
    how.create = false;
    file = opener.open(name, how);
  }
  if (!file) co_return std::move(file).error().while_doing("data file");
  auto target = std::make_unique<TargetFile>(**file, existed);
  // Only now both can be there; nothing was written yet.
  if (same_file(path, name)) {
    co_return invalid("data file ", quoted(options.image.data_file),
                      " is the image itself; it needs a file of its own");
  }
  RawDevice raw(*std::move(file), {.growable = true});
  BeingMade device(raw, {.progress = options.progress});
  const bool empties = existed && options.to_be_filled && options.replace && raw.size() != 0;
  if (empties && raw.can_grow()) target->set_overwritten();
  const bool sync = options.sync;
  Result<void> filled = co_await fill_data_file(device, std::move(options)).result();
  if (filled && sync) filled = co_await raw.flush(IoTag::flush).result();
  if (!filled) co_return std::move(filled).error();
  co_return std::move(target);
}

/// What makes the file a disk, but for what finish() adds.
Task<void> write_disk(Device& device, CreateDiskOptions options) {
  if (options.format == DiskFormat::qcow2) {
    co_await create_image(device, options.image);
    co_return;
  }
  const uint64_t size = options.image.size;
  if (!device.can_grow() && device.size() < size) {
    co_await fail(Error(Errc::no_space, cat(quoted(device.name()), " has ", device.size(),
                                            " bytes, the disk needs ", size)));
  }
  co_await give_blocks(device, size, options.image.preallocation);
}

struct Opened {
  std::unique_ptr<File> file;
  bool existed = false;
  bool had_contents = false;
};

/// The file that is there is opened only where it may be overwritten, and is empty then.
Task<Opened> open_target(FileOpener& opener, std::string path, CreateDiskOptions options) {
  FileOptions how = file_options(options);
  Opened opened;
  // A block device is there already, and is never made.
  if (options.replace && is_block_device(path)) {
    opened.existed = true;
    opened.file = co_await opener.open(path, how);
    co_return std::move(opened);
  }
  how.create = true;
  Result<std::unique_ptr<File>> file = opener.open(path, how);
  if (!file && file.error().code() == Errc::exists && options.replace) {
    struct stat status;
    opened.existed = !is_dangling(path);
    opened.had_contents = stat(path.c_str(), &status) == 0 && status.st_size != 0;
    how.replace = true;
    file = opener.open(path, how);
  }
  opened.file = co_await std::move(file);
  co_return std::move(opened);
}

}  // namespace

TargetFile::TargetFile(const File& file, bool existed)
    : path_(real_path(file.properties().name)),
      name_(file.properties().name),
      device_(file.properties().device),
      inode_(file.properties().inode),
      block_device_(file.properties().block_device),
      existed_(existed) {}

/// Only the very same file is ever touched.
bool TargetFile::is_still_there() const {
  struct stat status;
  if (path_.empty() || stat(path_.c_str(), &status) != 0) return false;
  if (block_device_) return S_ISBLK(status.st_mode) && status.st_rdev == device_;
  return S_ISREG(status.st_mode) && status.st_dev == device_ && status.st_ino == inode_;
}

std::string TargetFile::give_up() {
  if (std::exchange(settled_, true) || !is_still_there()) return "";
  if (!existed_) {
    unlink(path_.c_str());
    return "";
  }
  if (!overwritten_) return "";
  if (block_device_) {
    return is_image_ ? cat(quoted(name_), " is left without a disk: what it held is overwritten, ",
                           "and its first sector says that the new one was not finished")
                     : cat(quoted(name_), " is left with a part of the new disk over what it held");
  }
  const Descriptor file(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file || ftruncate(file.get(), 0) != 0) {
    return cat(quoted(name_), " is left unfinished: what it held is gone");
  }
  if (!is_image_) return cat(quoted(name_), " is left empty: what it held is gone");
  const std::vector<std::byte> sector = unfinished_sector();
  // A full file system may have no room even for this; then it is empty.
  if (pwrite(file.get(), sector.data(), sector.size(), 0) < 0) {
    return cat(quoted(name_), " is left empty: what it held is gone");
  }
  return cat(quoted(name_), " is left without a disk: what it held is gone, ",
             "and it says only that the new one was not finished");
}

NewDiskFile::NewDiskFile(Reactor& reactor, std::unique_ptr<File> file, bool existed,
                         const CreateDiskOptions& options)
    : reactor_(reactor),
      file_(std::move(file), {.growable = true}),
      being_made_(file_, {.keep_start = options.format == DiskFormat::qcow2,
                          .sync_start = !file_.can_grow() || (options.sync && options.to_be_filled),
                          .progress = options.progress}),
      target_(file_.file(), existed),
      raw_size_(options.format == DiskFormat::raw && file_.can_grow()
                    ? std::optional(options.image.size)
                    : std::nullopt),
      sync_(options.sync) {
  if (options.format == DiskFormat::qcow2) target_.set_image();
}

Task<void> NewDiskFile::finish() {
  // Past the page cache whole blocks are written: the end may lie behind that of the disk, too.
  if (raw_size_ && file_.size() != *raw_size_) co_await being_made_.resize(*raw_size_);
  co_await being_made_.reveal(sync_);
  target_.keep();
  if (data_) data_->keep();
  if (sync_) co_await sync_folder(reactor_, file_.name());
}

std::string NewDiskFile::give_up() {
  if (!file_.can_grow() && being_made_.changed()) target_.set_overwritten();
  std::string left = target_.give_up();
  const std::string data = data_ ? data_->give_up() : "";
  if (!left.empty() && !data.empty()) left += "; ";
  return left + data;
}

Task<std::unique_ptr<NewDiskFile>> begin_disk(Reactor& reactor, FileOpener& opener,
                                              std::string path, CreateDiskOptions options) {
  // Before the first file is touched.
  if (options.format == DiskFormat::qcow2) co_await check_create(options.image);
  std::unique_ptr<TargetFile> data;
  if (!options.image.data_file.empty()) data = co_await make_data_file(opener, path, options);
  Opened opened = co_await open_target(opener, path, options);
  tell_of_wishes(*opened.file, options);
  auto disk =
      std::make_unique<NewDiskFile>(reactor, std::move(opened.file), opened.existed, options);
  if (opened.had_contents) disk->target().set_overwritten();
  disk->set_data(std::move(data));
  const auto message = options.message;
  Result<void> written = co_await write_disk(disk->being_made(), std::move(options)).result();
  if (written) co_return std::move(disk);
  const std::string left = disk->give_up();
  if (!left.empty() && message) message(left);
  co_return std::move(written).error();
}

Task<void> create_disk(Reactor& reactor, FileOpener& opener, std::string path,
                       CreateDiskOptions options) {
  const std::unique_ptr<NewDiskFile> disk =
      co_await begin_disk(reactor, opener, path, std::move(options));
  co_await disk->finish();
}

Task<void> sync_folder(Reactor& reactor, std::string path) {
  const size_t slash = path.rfind('/');
  std::string folder = ".";
  if (slash != std::string::npos) folder = slash == 0 ? "/" : path.substr(0, slash);
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // A folder that may be written and searched but not read, or a disk that is no file in one (a
  // simulated one): there is nothing to sync through.
  if (!descriptor) {
    if (errno == EACCES || errno == ENOENT) co_return;
    co_await fail(errno_error(errno, cat("open ", quoted(folder))));
  }
  Op op{.kind = Op::Kind::sync, .fd = descriptor.get()};
  const int64_t result = co_await reactor.perform(op);
  // Some file systems have no sync for folders.
  if (result < 0 && result != -EINVAL) {
    co_await fail(errno_error(static_cast<int>(-result), cat("sync ", quoted(folder))));
  }
}

}  // namespace byre
