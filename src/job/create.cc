// SPDX-License-Identifier: Apache-2.0
#include "job/create.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "block/raw.h"
#include "io/descriptor.h"

namespace byre {

namespace {

bool is_block_device(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISBLK(status.st_mode);
}

/// Makes the external data file, or the one that is there large enough.  The user named it, so it
/// may be anywhere.
Task<void> make_data_file(Gate& gate, std::string path, CreateOptions image, bool sync) {
  const std::string name = resolve_name(path, image.data_file);
  Result<std::unique_ptr<File>> file = gate.open(name, {.writable = true, .create = true});
  if (!file && file.error().code() == Errc::exists) {
    file = gate.open(name, {.writable = true});
    if (file && image.data_file_raw && (*file)->size() > 0) {
      co_await fail(Error(Errc::exists,
                          cat("data file ", quoted(name), " has contents, which a new image that ",
                              "is to show a raw data file as it is would not show")));
    }
  }
  if (!file) co_await fail(std::move(file).error().while_doing("data file"));
  RawDevice device(*std::move(file), {.growable = true});
  Result<void> made;
  if (device.size() < image.size) made = co_await device.resize(image.size).result();
  if (made && sync) made = co_await device.flush(Mark::flush).result();
  Result<void> closed = co_await device.close().result();
  co_await std::move(made);
  co_await std::move(closed);
}

Task<void> write_disk(Device& device, CreateDiskOptions options) {
  if (options.format == DiskFormat::qcow2) {
    co_await create_image(device, options.image);
  } else if (device.can_grow()) {
    co_await device.resize(options.image.size);
  } else if (device.size() < options.image.size) {
    co_await fail(Error(Errc::no_space, cat(quoted(device.name()), " has ", device.size(),
                                            " bytes, the disk needs ", options.image.size)));
  }
  if (options.sync) co_await device.flush(Mark::flush);
}

}  // namespace

Task<void> create_disk(Reactor& reactor, Gate& gate, std::string path, CreateDiskOptions options) {
  // Before the first file is touched.
  if (options.format == DiskFormat::qcow2) co_await check_create(options.image);
  if (!options.image.data_file.empty()) {
    co_await make_data_file(gate, path, options.image, options.sync);
  }
  FileOptions how{.writable = true, .direct = options.direct};
  // A block device is there already, and is never made.
  const bool over_device = options.replace && is_block_device(path);
  how.create = !over_device;
  how.replace = options.replace && !over_device;
  std::unique_ptr<File> file = co_await gate.open(path, how);
  RawDevice device(std::move(file), {.growable = true});
  Result<void> written = co_await write_disk(device, options).result();
  Result<void> closed = co_await device.close().result();
  co_await std::move(written);
  co_await std::move(closed);
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
