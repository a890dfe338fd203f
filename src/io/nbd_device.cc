// SPDX-License-Identifier: Apache-2.0
#include "io/nbd_device.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/major.h>
#include <linux/nbd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <memory>
#include <utility>

namespace byre {

namespace {

constexpr uint64_t kBlock = 512;

/// What sysfs says of the device in the file `name`; empty where there is none.
std::string attribute_of(int fd, std::string_view name) {
  struct stat about;
  if (fstat(fd, &about) != 0) return "";
  std::ifstream file(
      cat("/sys/dev/block/", major(about.st_rdev), ":", minor(about.st_rdev), "/", name));
  std::string text;
  std::getline(file, text);
  return text;
}

/// The thread whose NBD_DO_IT runs; the kernel shows it while anybody has the device open.
std::string server_of(int fd) { return attribute_of(fd, "pid"); }

bool is_there(const std::string& process) {
  return !process.empty() && access(cat("/proc/", process).c_str(), F_OK) == 0;
}

/// The sentence of errno_error(), and what to do.
Error with_advice(int number, std::string_view what, std::string_view advice) {
  const Error plain = errno_error(number, what);
  return Error(plain.code(), cat(plain.message(), " (", advice, ")"), number);
}

Error cannot_open(const std::string& path, int number) {
  if (number != ENOENT && number != ENXIO && number != ENODEV)
    return errno_error(number, cat("Failed to open ", path));
  return with_advice(number, cat("Failed to open ", path),
                     "if this kernel has NBD devices, `modprobe nbd` brings them; otherwise serve "
                     "on a socket, for nbd-client on a machine that has them");
}

Error in_use(const std::string& path, const std::string& process) {
  return Error(Errc::busy, cat("Failed to attach ", path, ": it is in use",
                               process.empty() ? "" : cat(" by process ", process),
                               "; take another NBD device, or free it with --disconnect"));
}

/// `step` was refused with `number`.
Error cannot(const std::string& path, std::string_view what_for, std::string_view step,
             int number) {
  const std::string what = cat("Failed to ", what_for, " ", path, ": ", step);
  if (number != EPERM && number != EACCES) return errno_error(number, what);
  return with_advice(number, what, "it takes CAP_SYS_ADMIN, which root has");
}

/// Blocks until the server has it all; 0 or an errno.
int write_back(int fd) {
  // The first syncs a mounted file system, too; the second hears of writes that failed.
  return ioctl(fd, BLKFLSBUF) != 0 || fsync(fd) != 0 ? errno : 0;
}

/// Opened, and known to be a whole NBD device.
Task<Descriptor> open_device(Reactor& reactor, const std::string& path) {
  int fd = -1;
  int failed = 0;
  // Who opens a device reads its partitions at times, which waits for its server.
  const OwnThread opening = co_await OwnThread::start(reactor, [&] {
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    failed = errno;
  });
  co_await opening.wait();
  if (fd < 0) co_return cannot_open(path, failed);
  Descriptor device(fd);
  struct stat about;
  if (fstat(fd, &about) != 0) co_return errno_error(errno, cat("Failed to open ", path));
  if (!S_ISBLK(about.st_mode) || major(about.st_rdev) != NBD_MAJOR)
    co_return invalid("Failed to open ", path, ": it is no NBD device, such as /dev/nbd0");
  if (!attribute_of(fd, "partition").empty())
    co_return invalid("Failed to open ", path, ": it is a partition; name the whole device");
  co_return device;
}

}  // namespace

NbdDevice::NbdDevice(Reactor& reactor, std::string path, Descriptor fd)
    : reactor_(&reactor), path_(std::move(path)), fd_(std::move(fd)) {}

Task<NbdDevice> NbdDevice::open(Reactor& reactor, std::string path) {
  Descriptor fd = co_await open_device(reactor, path);
  co_return NbdDevice(reactor, std::move(path), std::move(fd));
}

Task<void> NbdDevice::attach(int socket, Disk disk) {
  if (disk.size == 0) co_await fail(invalid("Failed to attach ", path_, ": the disk has 0 bytes"));
  if (const std::string process = server_of(fd_.get()); !process.empty())
    co_await fail(in_use(path_, process));
  co_await set_up(socket, disk);
  const int fd = fd_.get();
  serving_ = co_await OwnThread::start(*reactor_, [fd] {
    // The result is told by has_ended(): why it ended is known on the other end of the socket.
    ioctl(fd, NBD_DO_IT);
    ioctl(fd, NBD_CLEAR_QUE);
    ioctl(fd, NBD_CLEAR_SOCK);
  });
  attached_ = true;
  co_await started(disk.size);
  co_await read_partitions();
}

Task<void> NbdDevice::set_up(int socket, Disk disk) {
  const int fd = fd_.get();
  // Whoever set a device up and has it open still is its owner, with or without requests.
  if (ioctl(fd, NBD_SET_SOCK, static_cast<unsigned long>(socket)) != 0) {
    const int number = errno;
    // EINVAL: it was set up over netlink, as nbd-client does.
    if (number == EBUSY || number == EINVAL) co_await fail(in_use(path_, server_of(fd)));
    co_await fail(cannot(path_, "attach", "NBD_SET_SOCK", number));
  }
  const struct {
    const char* name;
    unsigned long request;
    unsigned long argument;
  } steps[] = {{"NBD_SET_BLKSIZE", NBD_SET_BLKSIZE, kBlock},
               {"NBD_SET_SIZE_BLOCKS", NBD_SET_SIZE_BLOCKS, disk.size / kBlock},
               {"NBD_SET_FLAGS", NBD_SET_FLAGS, disk.flags}};
  for (const auto& step : steps) {
    if (ioctl(fd, step.request, step.argument) == 0) continue;
    const int number = errno;
    ioctl(fd, NBD_CLEAR_SOCK);
    co_await fail(cannot(path_, "attach", step.name, number));
  }
}

Task<void> NbdDevice::started(uint64_t size) {
  for (;;) {
    uint64_t now = 0;
    // The size comes last, when requests can be made (reads before that would wait for ever).
    if (ioctl(fd_.get(), BLKGETSIZE64, &now) == 0 && now == size) co_return;
    if (serving_.has_ended()) {
      attached_ = false;
      co_await fail(Error(Errc::io, cat("Failed to attach ", path_, ": NBD_DO_IT has ended")));
    }
    co_await reactor_->sleep(kMillisecond);
  }
}

Task<void> NbdDevice::read_partitions() {
  const int fd = fd_.get();
  // Kernels whose nbd has no partitions (max_part=0) refuse it, and nothing is missing then.
  const OwnThread reading = co_await OwnThread::start(*reactor_, [fd] { ioctl(fd, BLKRRPART); });
  co_await reading.wait();
}

Task<void> NbdDevice::flush() {
  const int fd = fd_.get();
  int failed = 0;
  const OwnThread thread =
      co_await OwnThread::start(*reactor_, [&failed, fd] { failed = write_back(fd); });
  co_await thread.wait();
  if (failed != 0) co_await fail(errno_error(failed, cat("write back what ", path_, " holds")));
}

Task<void> NbdDevice::disconnect() {
  if (ioctl(fd_.get(), NBD_DISCONNECT) != 0)
    co_await fail(errno_error(errno, cat("Failed to disconnect ", path_)));
}

Task<void> NbdDevice::ended() {
  co_await serving_.wait();
  attached_ = false;
}

Task<void> NbdDevice::take_away(Reactor& reactor, std::string path, int64_t patience) {
  const Descriptor device = co_await open_device(reactor, path);
  const int fd = device.get();
  const std::string process = server_of(fd);
  const Instant deadline = reactor.now() + patience;
  const auto until = [&](const auto& done) -> Task<void> {
    while (!done() && reactor.now() < deadline) co_await reactor.sleep(kMillisecond);
  };
  int unwritten = 0;
  // Of a device without a server nothing can be asked, and disconnected is what it should be.
  const bool serves = !process.empty();
  const OwnThread flushing = co_await OwnThread::start(
      reactor, [&unwritten, fd, serves] { unwritten = serves ? write_back(fd) : 0; });
  co_await until([&] { return flushing.has_ended(); });
  const int failed = ioctl(fd, NBD_DISCONNECT) != 0 && serves ? errno : 0;
  if (failed == 0) co_await until([&] { return !is_there(process); });
  ioctl(fd, NBD_CLEAR_QUE);
  ioctl(fd, NBD_CLEAR_SOCK);  // What waits for a server that hangs fails now.
  co_await flushing.wait();
  if (failed != 0) co_await fail(cannot(path, "disconnect", "NBD_DISCONNECT", failed));
  if (unwritten != 0)
    co_await fail(
        errno_error(unwritten, cat("disconnected, but ", path, " held writes that are lost")));
}

}  // namespace byre
