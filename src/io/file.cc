// SPDX-License-Identifier: Apache-2.0
#include "io/file.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <climits>
#include <limits>

#include "base/checked.h"
#include "base/units.h"
#include "io/buffer.h"
#include "io/descriptor.h"
#include "io/file_lock.h"

namespace byre {

namespace {

constexpr uint64_t kOffsetMax = std::numeric_limits<int64_t>::max();
/// The largest piece that goes through an aligned buffer at once.
constexpr uint64_t kBounceMax = 1 * MiB;
/// How often in a row a call may be interrupted or told to try again, a millisecond apart.
constexpr unsigned kRetriesMax = 1000;
/// So many extents of a file that nobody can write are found at a time, and known for so long.
constexpr size_t kExtentsAhead = 64;
constexpr int64_t kKnownFor = kSecond;
/// Block devices punch and zero in whole blocks of theirs, which are no larger than this.
constexpr uint64_t kDeviceBlockMax = 4096;

alignas(kBufferAlignment) std::byte zeros[256 * KiB];  // Never written.

bool is_transient(int64_t result) { return result == -EINTR || result == -EAGAIN; }

/// The file system or the kernel does not have that operation.
bool is_unsupported(int64_t result) {
  return result == -EOPNOTSUPP || result == -ENOSYS || result == -ENODEV;
}

/// /dev/null, which some use for a disk that holds nothing.
bool is_null_device(const struct stat& status) {
  return S_ISCHR(status.st_mode) && status.st_rdev == makedev(1, 3);
}

/// What O_DIRECT demands of `fd`, or 0 when that cannot be found out.
uint32_t direct_block_size(int fd, const struct stat& status) {
  struct statx extended;
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &extended) == 0 &&
      (extended.stx_mask & STATX_DIOALIGN) && extended.stx_dio_offset_align != 0) {
    return std::max({extended.stx_dio_offset_align, extended.stx_dio_mem_align, 512u});
  }
  int sector = 0;
  if (S_ISBLK(status.st_mode)) {
    return ioctl(fd, BLKSSZGET, &sector) == 0 ? static_cast<uint32_t>(sector) : 0;
  }
  // Linux before 6.1: try.  A read past the end succeeds at any alignment and proves nothing.
  const Buffer buffer(4096);
  if (status.st_size >= 4096) {
    for (const uint32_t size : {512u, 4096u}) {
      if (pread(fd, buffer.data(), size, 0) >= 0) return size;
      if (errno != EINVAL) return 0;
    }
  }
  return 4096;
}

}  // namespace

File::File(Reactor& reactor, Properties properties)
    : reactor_(reactor),
      properties_(std::move(properties)),
      blocks_(reactor.ready()),
      syncing_(reactor.ready()) {
  BYRE_ASSERT(std::has_single_bit(properties_.block_size) && properties_.block_size <= kBounceMax);
  BYRE_ASSERT(std::has_single_bit(properties_.memory_alignment));
}

File::~File() {
  BYRE_ASSERT(blocks_.empty() && syncing_.empty());
  if (properties_.locked) unlock_image(properties_.fd);
  if (properties_.fd >= 0) ::close(properties_.fd);
}

Result<std::unique_ptr<File>> File::open(Reactor& reactor, const std::string& path,
                                         FileOptions options) {
  const auto problem = [&](int number) { return errno_error(number, cat("open ", quoted(path))); };
  // Before it is opened: opening alone starts a watchdog, rewinds a tape, waits for a FIFO.
  struct stat status;
  const bool there = stat(path.c_str(), &status) == 0;
  if (there && !S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode) && !is_null_device(status)) {
    return invalid("open ", quoted(path), ": neither a regular file nor a block device");
  }
  int flags = (options.writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  if (options.create) flags |= O_CREAT;
  if (options.create && !options.replace) flags |= O_EXCL;
  // A block device that is mounted or part of a volume is not ours to write.
  if (there && S_ISBLK(status.st_mode) && options.writable && options.lock && !options.share_lock) {
    flags |= O_EXCL;
  }
  const int fd = ::open(path.c_str(), flags, 0600);
  if (fd < 0 && errno == EBUSY) {
    return Error(Errc::busy, cat("open ", quoted(path), ": it is mounted or in use by the system"),
                 EBUSY);
  }
  if (fd < 0) return problem(errno);
  Result<std::unique_ptr<File>> file = adopt(reactor, fd, path, options);
  if (!file && options.create && !options.replace) unlink(path.c_str());
  return file;
}

namespace {

/// Only an empty file takes these; what is wrong with them is no reason not to have the file.
std::string make_wishes(int fd, const FileOptions& options) {
  std::string refused;
  const auto failed = [&](std::string_view what) {
    refused += cat(refused.empty() ? "" : "; ", errno_error(errno, std::string(what)).message());
  };
  if (options.no_copy_on_write) {
    int flags = 0;
    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) != 0) {
      failed("turn off copy-on-write");
    } else {
      flags |= FS_NOCOW_FL;
      if (ioctl(fd, FS_IOC_SETFLAGS, &flags) != 0) failed("turn off copy-on-write");
    }
  }
  if (options.extent_size_hint) {
    fsxattr attributes{};
    bool set = ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0;
    if (set) {
      attributes.fsx_xflags &= ~uint32_t{FS_XFLAG_EXTSIZE};
      if (*options.extent_size_hint != 0) attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
      attributes.fsx_extsize = static_cast<uint32_t>(*options.extent_size_hint);
      set = ioctl(fd, FS_IOC_FSSETXATTR, &attributes) == 0;
    }
    if (!set) failed("set the extent size hint");
  }
  return refused;
}

}  // namespace

Result<std::unique_ptr<File>> File::adopt(Reactor& reactor, int fd, std::string name,
                                          FileOptions options) {
  Descriptor owned(fd);
  const auto problem = [&](std::string_view what) {
    return errno_error(errno, cat("open ", quoted(name), ": ", what));
  };
  struct stat status;
  if (fstat(fd, &status) != 0) return problem("fstat");
  const bool null_device = is_null_device(status);
  // Of a fixed size, both of them.
  const bool block_device = S_ISBLK(status.st_mode) || null_device;
  if (!block_device && !S_ISREG(status.st_mode)) {
    return invalid("open ", quoted(name), ": neither a regular file nor a block device");
  }
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return problem("fcntl");
  if (options.writable && (flags & O_ACCMODE) != O_RDWR) {
    return Error(Errc::read_only, cat("open ", quoted(name), ": is open for reading only"));
  }
  // O_NONBLOCK was for what turned out not to be a file; to io_uring it would mean "never wait".
  if (null_device) options.direct = options.lock = false;  // It is everybody's.
  flags = (flags & ~O_NONBLOCK) | (options.direct ? O_DIRECT : 0);
  if (fcntl(fd, F_SETFL, flags) != 0) {
    if (errno != EINVAL || !options.direct) return problem("fcntl");
    return unsupported("open ", quoted(name), ": its file system has no O_DIRECT");
  }

  if (options.lock) {
    Result<void> locked = lock_image(fd, name, options.writable, options.share_lock);
    if (!locked) return std::move(locked).error();
    if (fstat(fd, &status) != 0) return problem("fstat");  // The last writer may just have ended.
  }

  Properties properties{.name = std::move(name),
                        .fd = fd,
                        .size = null_device ? 0 : static_cast<uint64_t>(status.st_size),
                        .writable = options.writable,
                        .locked = options.lock,
                        .shared = options.share_lock,
                        .block_device = block_device,
                        .device = block_device ? status.st_rdev : status.st_dev,
                        .inode = block_device ? 0 : status.st_ino};
  if (block_device && !null_device && ioctl(fd, BLKGETSIZE64, &properties.size) != 0) {
    return errno_error(errno, cat("open ", quoted(properties.name), ": ask for its size"));
  }
  if (flags & O_DIRECT) {
    properties.block_size = properties.memory_alignment = direct_block_size(fd, status);
    if (!std::has_single_bit(properties.block_size) || properties.block_size > 64 * KiB) {
      return unsupported("open ", quoted(properties.name), ": cannot find out how O_DIRECT wants ",
                         "its blocks aligned");
    }
  }
  // Only now: until the locks were taken the old contents were somebody else's.
  if (options.create && options.replace && !block_device && properties.size > 0) {
    if (ftruncate(fd, 0) != 0) {
      return errno_error(errno, cat("open ", quoted(properties.name), ": truncate"));
    }
    properties.size = 0;
  }
  if (options.create && !block_device) properties.wish_refused = make_wishes(fd, options);
  owned.release();
  return std::make_unique<File>(reactor, std::move(properties));
}

// --- Reopening ---------------------------------------------------------------------------------

/// By the descriptor that there is, so that it is the same file whatever became of its name.
Result<int> File::open_again(bool writable) const {
  if (properties_.open_again) return properties_.open_again(writable);
  const int before = fcntl(properties_.fd, F_GETFL);
  int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | (before & O_DIRECT);
  if (properties_.block_device && writable && properties_.locked) flags |= O_EXCL;
  const std::string path = cat("/proc/self/fd/", properties_.fd);
  Descriptor fd(::open(path.c_str(), flags));
  if (!fd) {
    return errno_error(errno, cat("open ", quoted(properties_.name), " again for ",
                                  writable ? "writing" : "reading"));
  }
  if (properties_.locked) {
    Result<void> joined = join_image_lock(fd.get(), properties_.name, writable);
    if (!joined) return std::move(joined).error();
  }
  return fd.release();
}

Result<void> File::reopen(bool writable) {
  if (writable == properties_.writable) return {};
  BYRE_ASSERT(blocks_.empty() && syncing_.empty());
  if (writable && properties_.shared) {
    return Error(Errc::read_only,
                 cat(quoted(properties_.name), " is open with force-share: it can only be read"));
  }
  if (writable && latched_) {
    return Error(Errc::io,
                 cat(quoted(properties_.name),
                     ": a sync has failed; it can be written when it was closed and "
                     "opened again"),
                 EIO);
  }
  const bool locks = properties_.locked && !properties_.open_again;
  if (locks && writable) {
    Result<void> locked = change_image_lock(properties_.fd, properties_.name, true);
    if (!locked) return locked;
  }
  Result<int> fd = open_again(writable);
  if (!fd) {
    if (locks && writable) (void)change_image_lock(properties_.fd, properties_.name, false);
    return std::move(fd).error();
  }
  if (locks) unlock_image(properties_.fd);
  if (!properties_.open_again) ::close(properties_.fd);
  properties_.fd = *fd;
  properties_.writable = writable;
  ahead_ = {};
  return {};
}

// --- Errors ------------------------------------------------------------------------------------

Error File::refused() const {
  const std::string name = quoted(properties_.name);
  if (!properties_.writable && !latched_) {
    return Error(Errc::read_only, cat(name, " is open for reading only"), EBADF);
  }
  return Error(Errc::io,
               cat(name, ": an earlier sync failed, so what was written may be lost; ",
                   "nothing more is written until it is opened again"),
               EIO);
}

Error File::range_error(std::string_view what, uint64_t offset, uint64_t length) const {
  return failed(what, offset, length, -EFBIG);
}

Error File::failed(std::string_view what, uint64_t offset, uint64_t length, int64_t result) const {
  return errno_error(static_cast<int>(-result), cat(what, " ", length, " bytes at ", hex(offset),
                                                    " of ", quoted(properties_.name)));
}

/// After a failed sync nobody knows which of the pages written before are lost, and the kernel
/// tells only once: asking again would answer "fine".
Error File::latch(int64_t result) {
  latched_ = true;
  return errno_error(static_cast<int>(-result), cat("sync ", quoted(properties_.name)));
}

// --- Reads -------------------------------------------------------------------------------------

bool File::aligned(uint64_t offset, Bytes data) const {
  return ((offset | data.size()) & (properties_.block_size - 1)) == 0 &&
         (std::bit_cast<uintptr_t>(data.data()) & (properties_.memory_alignment - 1)) == 0;
}

Task<void> File::read(uint64_t offset, MutableBytes data) {
  if (data.empty()) co_return;
  if (!within(offset, data.size(), kOffsetMax)) {
    co_await fail(range_error("read", offset, data.size()));
  }
  if (!aligned(offset, data)) {
    co_await read_through_buffer(offset, data);
    co_return;
  }
  Op op{.kind = Op::Kind::read,
        .fd = properties_.fd,
        .offset = offset,
        .length = data.size(),
        .buffer = data.data()};
  if (static_cast<uint64_t>(co_await reactor_.perform(op)) == data.size()) co_return;
  const uint64_t got = co_await go_on(op);
  fill_zero(data.subspan(got));
}

/// Can the pieces be handed to the kernel as they are?
bool File::fits_one_call(uint64_t offset, IoVec pieces) const {
  if (pieces.size() > IOV_MAX) return false;
  return std::ranges::all_of(pieces,
                             [&](const iovec& piece) { return aligned(offset, memory_of(piece)); });
}

Task<void> File::read_pieces(uint64_t offset, IoVec pieces) {
  const uint64_t size = size_of(pieces);
  if (size == 0) co_return;
  if (!within(offset, size, kOffsetMax)) co_await fail(range_error("read", offset, size));
  if (!fits_one_call(offset, pieces)) {
    const Buffer buffer(size);
    co_await read(offset, buffer.bytes().first(size));
    scatter(buffer.bytes().first(size), pieces);
    co_return;
  }
  Op op{.kind = Op::Kind::read,
        .fd = properties_.fd,
        .offset = offset,
        .length = size,
        .pieces = pieces};
  const int64_t got = co_await reactor_.perform(op);
  if (static_cast<uint64_t>(got) == size) co_return;
  if (got < 0 && !is_transient(got)) co_await fail(failed("read", offset, size, got));
  // The rest, piece by piece: read() knows where files end.
  uint64_t done =
      round_down(static_cast<uint64_t>(std::max<int64_t>(got, 0)), properties_.block_size);
  for (const iovec& piece : pieces) {
    const uint64_t skip = std::min<uint64_t>(done, piece.iov_len);
    co_await read(offset + skip, memory_of(piece).subspan(skip));
    done -= skip;
    offset += piece.iov_len;
  }
}

/// Ends what one call began: `op` has its first result.  Gives the bytes that were moved, fewer
/// than asked for only where a read met the end of the file.
Task<uint64_t> File::go_on(Op& op) {
  const uint64_t offset = op.offset;
  const uint64_t length = op.length;
  auto* const buffer = static_cast<std::byte*>(op.buffer);
  const bool reads = op.kind == Op::Kind::read;
  uint64_t done = 0;
  unsigned retries = 0;
  for (;;) {
    const int64_t result = op.result;
    if (result == 0) {
      if (reads) co_return done;
      co_return failed("write", offset + done, length - done, -EIO);
    }
    if (result < 0 && !is_transient(result)) {
      co_return failed(reads ? "read" : "write", offset + done, length - done, result);
    }
    const uint64_t before = done;
    if (result > 0) done += static_cast<uint64_t>(result);
    if (done >= length) co_return length;
    if (const uint64_t rest = done % properties_.block_size; rest != 0) {
      if (reads) co_return done;  // O_DIRECT stops inside a block only where the file ends.
      done -= rest;
    }
    if (done > before) {
      retries = 0;
    } else if (++retries > kRetriesMax) {
      co_return failed(reads ? "read" : "write", offset + done, length - done,
                       result < 0 ? result : -EIO);
    } else if (result != -EINTR) {
      co_await reactor_.sleep(kMillisecond);
    }
    op.offset = offset + done;
    op.length = length - done;
    op.buffer = buffer + done;
    co_await reactor_.perform(op);
  }
}

Task<void> File::read_through_buffer(uint64_t offset, MutableBytes data) {
  const uint64_t block = properties_.block_size;
  const uint64_t end = offset + data.size();
  while (offset < end) {
    const uint64_t first = round_down(offset, block);
    const uint64_t stop = std::min(end, first + kBounceMax);
    const Buffer buffer(round_up(stop, block) - first);
    co_await read(first, buffer.bytes());
    copy(data, buffer.bytes().subspan(offset - first, stop - offset));
    data = data.subspan(stop - offset);
    offset = stop;
  }
}

// --- Writes ------------------------------------------------------------------------------------

void File::grow(uint64_t end) {
  if (end > properties_.size && !properties_.block_device) properties_.size = end;
}

Task<void> File::write(uint64_t offset, Bytes data, bool durable) {
  if (refuses_writes()) co_await fail(refused());
  if (data.empty()) co_return;
  if (!within(offset, data.size(), kOffsetMax)) {
    co_await fail(range_error("write", offset, data.size()));
  }
  if (durable || properties_.block_size > 1) {
    co_await (durable ? write_durable(offset, data) : write_blocks(offset, data, false));
    grow(offset + data.size());
    co_return;
  }
  // As write_plain(), which would be a second frame.
  Op op{.kind = Op::Kind::write,
        .fd = properties_.fd,
        .offset = offset,
        .length = data.size(),
        .buffer = const_cast<std::byte*>(data.data())};
  if (static_cast<uint64_t>(co_await reactor_.perform(op)) != data.size()) co_await go_on(op);
  grow(offset + data.size());
}

Task<void> File::write_plain(uint64_t offset, Bytes data, bool dsync) {
  Op op{.kind = Op::Kind::write,
        .dsync = dsync,
        .fd = properties_.fd,
        .offset = offset,
        .length = data.size(),
        .buffer = const_cast<std::byte*>(data.data())};
  if (static_cast<uint64_t>(co_await reactor_.perform(op)) != data.size()) co_await go_on(op);
}

/// With O_DIRECT.  Whole blocks may be written side by side; who writes a part of one reads it
/// first, and is alone with it until the whole is back.
Task<void> File::write_blocks(uint64_t offset, Bytes data, bool dsync) {
  const uint64_t block = properties_.block_size;
  const uint64_t end = offset + data.size();
  const bool whole = offset % block == 0 && end % block == 0;
  RangeLock::Request lock(blocks_, offset / block, div_ceil(end, block),
                          whole ? RangeLock::Mode::shared : RangeLock::Mode::exclusive);
  co_await lock;
  if (aligned(offset, data)) {
    co_await write_plain(offset, data, dsync);
    co_return;
  }
  while (offset < end) {
    const uint64_t first = round_down(offset, block);
    const uint64_t stop = std::min(end, first + kBounceMax);
    const uint64_t last = round_up(stop, block);
    const Buffer buffer(last - first);
    const MutableBytes all = buffer.bytes();
    if (first != offset) co_await read(first, all.first(block));
    if (last != stop && (first == offset || last - first > block)) {
      co_await read(last - block, all.last(block));
    }
    copy(all.subspan(offset - first), data.first(stop - offset));
    co_await write_plain(first, all, dsync);
    data = data.subspan(stop - offset);
    offset = stop;
  }
}

Task<void> File::write_pieces(uint64_t offset, IoVec pieces, bool durable) {
  if (refuses_writes()) co_await fail(refused());
  const uint64_t size = size_of(pieces);
  if (size == 0) co_return;
  if (!within(offset, size, kOffsetMax)) co_await fail(range_error("write", offset, size));
  if (durable || !fits_one_call(offset, pieces)) {
    const Buffer buffer(size);
    gather(pieces, 0, buffer.bytes().first(size));
    co_await write(offset, buffer.bytes().first(size), durable);
    co_return;
  }
  const uint64_t end = offset + size;
  const uint64_t block = properties_.block_size;
  RangeLock::Request lock(blocks_, offset / block, div_ceil(end, block), RangeLock::Mode::shared);
  if (block > 1) co_await lock;
  Op op{.kind = Op::Kind::write,
        .fd = properties_.fd,
        .offset = offset,
        .length = size,
        .pieces = pieces};
  const int64_t put = co_await reactor_.perform(op);
  if (static_cast<uint64_t>(put) != size) {
    if (put <= 0 && !is_transient(put)) {
      co_await fail(failed("write", offset, size, put == 0 ? -EIO : put));
    }
    uint64_t done = round_down(static_cast<uint64_t>(std::max<int64_t>(put, 0)), block);
    for (const iovec& piece : pieces) {
      const uint64_t skip = std::min<uint64_t>(done, piece.iov_len);
      if (skip < piece.iov_len) {
        co_await write_plain(offset + skip, memory_of(piece).subspan(skip), false);
      }
      done -= skip;
      offset += piece.iov_len;
    }
  }
  grow(end);
}

Task<void> File::put(uint64_t offset, Bytes data, bool dsync) {
  return properties_.block_size > 1 ? write_blocks(offset, data, dsync)
                                    : write_plain(offset, data, dsync);
}

Task<void> File::write_durable(uint64_t offset, Bytes data) {
  {
    // The kernel reports what went wrong in the background once to each descriptor, so a sync
    // beside this write could take the report away from it, or lose it to it.
    RangeLock::Request lock(syncing_, 0, 1, RangeLock::Mode::shared);
    co_await lock;
    if (refuses_writes()) co_await fail(refused());
    if (can_dsync_) {
      Result<void> written = co_await put(offset, data, true).result();
      if (written) {
        if (refuses_writes()) co_await fail(refused());
        co_return;
      }
      if (written.error().sys_errno() == EOPNOTSUPP) {
        can_dsync_ = false;
      } else {
        // The write or the sync in it?  If the write alone works, it was the sync.
        co_await put(offset, data, false);
        co_await fail(latch(-written.error().sys_errno()));
      }
    }
    co_await put(offset, data, false);
  }
  co_await sync();
}

Task<void> File::write_zeros(uint64_t offset, uint64_t length) {
  while (length > 0) {
    const uint64_t step = std::min<uint64_t>(length, sizeof zeros);
    co_await write(offset, Bytes(zeros, step));
    offset += step;
    length -= step;
  }
}

Task<void> File::sync() {
  const uint64_t begun_before = syncs_begun_;
  // One at a time: of two syncs side by side only one would be told of an error.
  RangeLock::Request lock(syncing_, 0, 1, RangeLock::Mode::exclusive);
  co_await lock;
  if (latched_) co_await fail(refused());
  if (syncs_begun_ > begun_before) co_return;  // Another's, begun after this call, covers it.
  ++syncs_begun_;
  Op op{.kind = Op::Kind::sync, .fd = properties_.fd};
  int64_t result = -EINTR;
  for (unsigned retries = 0; result == -EINTR && retries <= kRetriesMax; ++retries) {
    result = co_await reactor_.perform(op);
  }
  // /dev/null knows no sync, and needs none; nor does what nobody can write.
  if (result == -EINVAL && properties_.block_device && properties_.size == 0) co_return;
  if (!properties_.writable && (result == -EINVAL || result == -EROFS)) co_return;
  if (result < 0) co_await fail(latch(result));
}

// --- Space -------------------------------------------------------------------------------------

/// fallocate(2) of some kind, until it is no longer interrupted: 0 or -errno.
Task<int64_t> File::change_blocks(Op::Kind kind, bool keep_size, uint64_t offset, uint64_t length) {
  const uint64_t block = properties_.block_size;
  const bool whole = offset % block == 0 && length % block == 0;
  RangeLock::Request lock(blocks_, offset / block, div_ceil(offset + length, block),
                          whole ? RangeLock::Mode::shared : RangeLock::Mode::exclusive);
  // Buffered, the kernel orders it against writes by itself.
  if (block > 1) co_await lock;
  Op op{.kind = kind,
        .keep_size = keep_size,
        .fd = properties_.fd,
        .offset = offset,
        .length = length};
  for (unsigned retries = 0;; ++retries) {
    const int64_t result = co_await reactor_.perform(op);
    if (!is_transient(result) || retries == kRetriesMax) co_return result;
    co_await reactor_.sleep(kMillisecond);
  }
}

Task<void> File::punch(uint64_t offset, uint64_t length) {
  if (refuses_writes()) co_await fail(refused());
  if (length == 0) co_return;
  if (!within(offset, length, kOffsetMax)) co_await fail(range_error("punch", offset, length));
  uint64_t first = offset;
  uint64_t end = offset + length;
  if (properties_.can_punch && properties_.block_device) {
    first = round_up(offset, kDeviceBlockMax);
    end = round_down(end, kDeviceBlockMax);
  }
  if (!properties_.can_punch || first >= end) {
    co_await fail(failed("punch", offset, length, -EOPNOTSUPP));
  }
  const int64_t result = co_await change_blocks(Op::Kind::punch, true, first, end - first);
  if (is_unsupported(result)) properties_.can_punch = false;
  if (result < 0) {
    co_await fail(failed("punch", offset, length, is_unsupported(result) ? -EOPNOTSUPP : result));
  }
  co_await write_zeros(offset, first - offset);
  co_await write_zeros(end, offset + length - end);
}

Task<void> File::zero(uint64_t offset, uint64_t length, bool may_write) {
  if (refuses_writes()) co_await fail(refused());
  if (length == 0) co_return;
  if (!within(offset, length, kOffsetMax)) co_await fail(range_error("zero", offset, length));
  uint64_t first = offset;
  uint64_t end = offset + length;
  if (properties_.block_device) {
    first = round_up(offset, kDeviceBlockMax);
    end = round_down(end, kDeviceBlockMax);
  }
  if (properties_.can_zero && first < end) {
    const int64_t result = co_await change_blocks(Op::Kind::zero_range, false, first, end - first);
    if (result == 0) {
      grow(end);
      co_await write_zeros(offset, first - offset);
      co_await write_zeros(end, offset + length - end);
      co_return;
    }
    if (!is_unsupported(result)) co_await fail(failed("zero", offset, length, result));
    properties_.can_zero = false;
  }
  // tmpfs and NFS can make holes and fill them with blocks.
  if (properties_.can_punch && properties_.can_allocate && !properties_.block_device) {
    int64_t result = co_await change_blocks(Op::Kind::punch, true, offset, length);
    if (is_unsupported(result)) properties_.can_punch = false;
    if (result == 0) {
      result = co_await change_blocks(Op::Kind::allocate, false, offset, length);
      if (is_unsupported(result)) properties_.can_allocate = false;
      if (result == 0) grow(offset + length);
    }
    if (result == 0) co_return;
    if (!is_unsupported(result)) co_await fail(failed("zero", offset, length, result));
  }
  if (!may_write) co_await fail(failed("zero", offset, length, -EOPNOTSUPP));
  co_await write_zeros(offset, length);
}

Task<void> File::allocate(uint64_t offset, uint64_t length) {
  if (refuses_writes()) co_await fail(refused());
  if (length == 0) co_return;
  const uint64_t end = offset + length;
  if (!within(offset, length, kOffsetMax)) co_await fail(range_error("allocate", offset, length));
  if (properties_.block_device) {
    if (end > properties_.size) co_await fail(failed("allocate", offset, length, -ENOSPC));
    co_return;
  }
  if (properties_.can_allocate) {
    const int64_t result = co_await change_blocks(Op::Kind::allocate, false, offset, length);
    if (result == 0) {
      grow(end);
      co_return;
    }
    if (!is_unsupported(result)) co_await fail(failed("allocate", offset, length, result));
    properties_.can_allocate = false;
  }
  const uint64_t first = std::max(offset, properties_.size);
  if (first < end) co_await write_zeros(first, end - first);
}

Task<void> File::truncate(uint64_t size) {
  if (refuses_writes()) co_await fail(refused());
  if (properties_.block_device) {
    if (size == properties_.size) co_return;
    co_await fail(unsupported("resize ", quoted(properties_.name), ": it is a block device"));
  }
  if (size > kOffsetMax) co_await fail(range_error("truncate", size, 0));
  // A read-modify-write of the last block would bring back what is cut off.
  RangeLock::Request lock(blocks_, std::min(size, properties_.size) / properties_.block_size,
                          kOffsetMax + 1, RangeLock::Mode::exclusive);
  if (properties_.block_size > 1) co_await lock;
  Op op{.kind = Op::Kind::truncate, .fd = properties_.fd, .offset = size};
  int64_t result = -EINTR;
  for (unsigned retries = 0; result == -EINTR && retries <= kRetriesMax; ++retries) {
    result = co_await reactor_.perform(op);
  }
  if (result < 0) {
    co_await fail(errno_error(static_cast<int>(-result),
                              cat("truncate ", quoted(properties_.name), " to ", size)));
  }
  properties_.size = size;
}

std::optional<File::Extent> File::known_extent(uint64_t offset, uint64_t length) const {
  if (offset < ahead_.begin || ahead_.parts.empty() || offset >= ahead_.parts.back().end) return {};
  if (reactor_.now() >= ahead_.until) return {};
  const auto part = std::ranges::upper_bound(ahead_.parts, offset, {}, &Ahead::Part::end);
  return Extent{std::min(length, part->end - offset), part->data};
}

Task<File::Extent> File::extent(uint64_t offset, uint64_t length) {
  if (properties_.block_device || length == 0) co_return Extent{length, true};
  const bool is_still = !properties_.writable && properties_.locked && !properties_.shared;
  if (is_still) {
    if (const auto known = known_extent(offset, length)) co_return *known;
  }
  Ahead found{.begin = offset, .parts = {}, .until = reactor_.now() + kKnownFor};
  const size_t parts_max = is_still ? kExtentsAhead : 1;
  bool all_data = false;  // From the last part on, as far as is known.
  const auto seek = [&, fd = properties_.fd] {
    auto at = static_cast<off_t>(offset);
    while (found.parts.size() < parts_max) {
      const off_t data = lseek(fd, at, SEEK_DATA);
      if (data < 0) {
        all_data = errno != ENXIO;  // ENXIO: no data from here on.
        return;
      }
      if (data > at) found.parts.push_back({static_cast<uint64_t>(data), false});
      if (found.parts.size() == parts_max) return;
      const off_t hole = lseek(fd, data, SEEK_HOLE);
      if (hole <= data) {
        all_data = true;
        return;
      }
      found.parts.push_back({static_cast<uint64_t>(hole), true});
      at = hole;
    }
  };
  co_await reactor_.offload(seek);
  if (found.parts.empty()) co_return Extent{length, all_data};
  const Ahead::Part first = found.parts.front();
  if (is_still) ahead_ = std::move(found);
  co_return Extent{std::min(length, first.end - offset), first.data};
}

}  // namespace byre
