// SPDX-License-Identifier: Apache-2.0
#include "job/create.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "block/raw.h"
#include "io/descriptor.h"

namespace byre {

namespace {

bool is_block_device(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode);
}

/// A file that was made here, and is removed unless all goes well.
class Made {
 public:
  explicit Made(const File& file)
      : path_(file.properties().name),
        device_(file.properties().device),
        inode_(file.properties().inode) {}
  Made(const Made&) = delete;
  void keep() { kept_ = true; }
  ~Made() {
    struct stat status;
    if (kept_ || stat(path_.c_str(), &status) != 0) return;
    // Only the very same file (and never a block device).
    if (S_ISREG(status.st_mode) && status.st_dev == device_ && status.st_ino == inode_)
      unlink(path_.c_str());
  }

 private:
  std::string path_;
  uint64_t device_, inode_;
  bool kept_ = false;
};

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
  if (mode == Preallocation::falloc) co_await device.allocate(0, size);
  if (mode == Preallocation::full) co_await write_zeros(device, 0, size);
}

/// Makes the external data file, or the one that is there large enough.  The user named it, so it
/// may be anywhere.
Task<void> fill_data_file(Device& device, CreateDiskOptions options) {
  const CreateOptions& image = options.image;
  if (device.size() != 0 && options.empty_data_file && device.can_grow()) {
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
  if (options.sync) co_await device.flush(Mark::flush);
}

Task<std::unique_ptr<Made>> make_data_file(Gate& gate, std::string path,
                                           CreateDiskOptions options) {
  const std::string name = resolve_name(path, options.image.data_file);
  FileOptions how = file_options(options);
  how.create = true;
  Result<std::unique_ptr<File>> file = gate.open(name, how);
  std::unique_ptr<Made> made;
  if (file) {
    made = std::make_unique<Made>(**file);
    tell_of_wishes(**file, options);
  } else if (file.error().code() == Errc::exists) {
    how.create = false;
    file = gate.open(name, how);
  }
  if (!file) co_return std::move(file).error().while_doing("data file");
  // Only now both can be there; nothing was written yet.
  if (same_file(path, name)) {
    co_return invalid("data file ", quoted(options.image.data_file),
                      " is the image itself; it needs a file of its own");
  }
  RawDevice device(*std::move(file), {.growable = true});
  Result<void> filled = co_await fill_data_file(device, std::move(options)).result();
  Result<void> closed = co_await device.close().result();
  if (filled) filled = std::move(closed);
  if (!filled) co_return std::move(filled).error();
  co_return std::move(made);
}

Task<void> write_disk(Device& device, CreateDiskOptions options) {
  if (options.format == DiskFormat::qcow2) {
    co_await create_image(device, options.image);
  } else {
    if (device.can_grow()) {
      co_await device.resize(options.image.size);
    } else if (device.size() < options.image.size) {
      co_await fail(Error(Errc::no_space, cat(quoted(device.name()), " has ", device.size(),
                                              " bytes, the disk needs ", options.image.size)));
    }
    co_await give_blocks(device, options.image.size, options.image.preallocation);
  }
  if (options.sync) co_await device.flush(Mark::flush);
}

}  // namespace

Task<void> create_disk(Reactor& reactor, Gate& gate, std::string path, CreateDiskOptions options) {
  // Before the first file is touched.
  if (options.format == DiskFormat::qcow2) co_await check_create(options.image);
  std::unique_ptr<Made> data;
  if (!options.image.data_file.empty()) data = co_await make_data_file(gate, path, options);
  FileOptions how = file_options(options);
  // A block device is there already, and is never made.
  const bool over_device = options.replace && is_block_device(path);
  how.create = !over_device;
  how.replace = options.replace && !over_device;
  std::unique_ptr<File> file = co_await gate.open(path, how);
  Made made(*file);
  tell_of_wishes(*file, options);
  RawDevice device(std::move(file), {.growable = true});
  Result<void> written = co_await write_disk(device, options).result();
  Result<void> closed = co_await device.close().result();
  co_await std::move(written);
  co_await std::move(closed);
  made.keep();
  if (data) data->keep();
  if (options.sync) co_await sync_folder(reactor, path);
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
