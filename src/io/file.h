// SPDX-License-Identifier: Apache-2.0
/// File: the bytes of one regular file or block device, through a Reactor.
///
/// This is the one place where short transfers, EINTR, O_DIRECT alignment and a failed fsync end:
///  * read() and write() transfer all or fail.  Reads beyond the end give zeros.
///  * Buffered files take any offset and length.  With O_DIRECT a request that is not aligned to
///    block_size (or whose memory is not) goes through an aligned buffer; a write that is not
///    aligned to the block is a read-modify-write, serialised with every other write to that block
///    (docs/engine.md, L6).  The file may then end at the end of the block, with zeros.
///  * A failed sync latches: every later write and sync fails with EIO until the file is opened
///    again; reads go on (docs/engine.md, M4).
///  * EFBIG and ENOSPC come back as such; the file is not changed beyond the failed range.
/// Cost: one frame and one Op for an aligned request.
/// Not here: caching, formats, which files may be opened (file_opener.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "coro/range_lock.h"
#include "io/reactor.h"

namespace byre {

struct FileOptions {
  bool writable = false;
  bool direct = false;      ///< O_DIRECT: past the page cache.
  bool create = false;      ///< Make it; fails if it is there, unless `replace`.
  bool replace = false;     ///< With create: truncate what is there.
  bool lock = true;         ///< Take QEMU's byte-range locks (file_lock.h).
  bool share_lock = false;  ///< qemu-img's -U: do not insist that nobody else writes.
  // With create: wishes to the file system, which may not know them (Properties::wish_refused).
  bool no_copy_on_write = false;             ///< FS_NOCOW_FL: for btrfs.
  std::optional<uint64_t> extent_size_hint;  ///< Bytes; 0: none.  For XFS.
};

class File {
 public:
  /// What is known of an open file.
  struct Properties {
    std::string name;  ///< As the user or the opener named it; for messages.
    int fd = -1;
    uint64_t size = 0;  ///< Bytes; follows what this File writes and truncates.
    /// What O_DIRECT demands of offset and length, and of memory; 1 when buffered.
    uint32_t block_size = 1;
    uint32_t memory_alignment = 1;
    bool writable = false;
    bool locked = false;             ///< The image locks were taken, and go when it is closed.
    bool shared = false;             ///< Others may write to it: those locks are not whole.
    bool block_device = false;       ///< Fixed size; holes are not known to read as zeros.
    bool can_punch = true;           ///< fallocate(PUNCH_HOLE) is worth trying.
    bool can_zero = true;            ///< fallocate(ZERO_RANGE) is worth trying.
    bool can_allocate = true;        ///< fallocate() is worth trying.
    uint64_t device = 0, inode = 0;  ///< Identity, for loops in backing chains.
    std::string wish_refused;        ///< Which wish the file system did not grant, and why.
    /// Another descriptor of a file that is not real (the simulator's); null: it is real.
    std::function<int(bool writable)> open_again;
  };

  /// Opens a real file: O_CLOEXEC, O_NONBLOCK while it is not known to be a regular file or a block
  /// device; anything else is refused (docs/compatibility.md).  Takes the locks.
  static Result<std::unique_ptr<File>> open(Reactor& reactor, const std::string& path,
                                            FileOptions options);
  /// The same with a descriptor that somebody opened; it is closed if it is refused.
  static Result<std::unique_ptr<File>> adopt(Reactor& reactor, int fd, std::string name,
                                             FileOptions options);
  /// Over a descriptor that this File then owns, as it is (the simulator's).
  File(Reactor& reactor, Properties properties);
  ~File();
  File(const File&) = delete;

  /// Fills `data` from `offset`; what lies beyond the end reads as zeros.
  Task<void> read(uint64_t offset, MutableBytes data);
  /// `durable`: on stable storage when it completes (RWF_DSYNC, or write and sync).
  Task<void> write(uint64_t offset, Bytes data, bool durable = false);
  /// The same with memory in pieces: one request, as far as IOV_MAX allows.  Through a buffer where
  /// they are not aligned as O_DIRECT demands, and where the write is to be durable.
  Task<void> read_pieces(uint64_t offset, IoVec pieces);
  Task<void> write_pieces(uint64_t offset, IoVec pieces, bool durable = false);
  /// fdatasync that begins after this call; of a file that is only read, too: another process may
  /// have left something in its cache.
  Task<void> sync();
  /// Makes the range a hole that reads as zeros; Errc::unsupported where that cannot be promised.
  Task<void> punch(uint64_t offset, uint64_t length);
  /// Makes the range read as zeros and keeps blocks for it; writes zeros where it must, or fails
  /// with Errc::unsupported if it may not.
  Task<void> zero(uint64_t offset, uint64_t length, bool may_write = true);
  /// Makes sure that blocks exist for the range, extending the file if it ends inside.  Contents do
  /// not change.  Where fallocate is not supported: writes zeros beyond the end of the file, does
  /// nothing below it; so nobody else may write to the range meanwhile.
  Task<void> allocate(uint64_t offset, uint64_t length);
  Task<void> truncate(uint64_t size);
  /// The next extent: whether [offset, ...) is data or a hole, and for how long
  /// (SEEK_DATA/SEEK_HOLE through the worker pool; all data where that is not known).  Where nobody
  /// can write to the file, those that follow are found as well, and known for a second.
  struct Extent {
    uint64_t length;
    bool data;
  };
  Task<Extent> extent(uint64_t offset, uint64_t length);

  /// It can be written from here on, or only read: another descriptor of the same file takes the
  /// place of this one.  Who writes has a writer's locks before this ends; at each moment nobody
  /// else can.  No request runs.  A failure leaves it as it was.
  Result<void> reopen(bool writable);

  uint64_t size() const { return properties_.size; }
  const Properties& properties() const { return properties_; }
  Reactor& reactor() { return reactor_; }
  /// True once a sync has failed.
  bool latched() const { return latched_; }

 private:
  Error refused() const;
  Result<int> open_again(bool writable) const;
  Error range_error(std::string_view what, uint64_t offset, uint64_t length) const;
  Error failed(std::string_view what, uint64_t offset, uint64_t length, int64_t result) const;
  Error latch(int64_t result);
  bool refuses_writes() const { return latched_ || !properties_.writable; }
  bool aligned(uint64_t offset, Bytes data) const;
  bool fits_one_call(uint64_t offset, IoVec pieces) const;
  void grow(uint64_t end);

  Task<uint64_t> go_on(Op& op);
  Task<void> read_through_buffer(uint64_t offset, MutableBytes data);
  BYRE_CORO_WRAPPER Task<void> put(uint64_t offset, Bytes data, bool dsync);
  Task<void> write_plain(uint64_t offset, Bytes data, bool dsync);
  Task<void> write_blocks(uint64_t offset, Bytes data, bool dsync);
  Task<void> write_durable(uint64_t offset, Bytes data);
  Task<void> write_zeros(uint64_t offset, uint64_t length);
  std::optional<Extent> known_extent(uint64_t offset, uint64_t length) const;
  Task<int64_t> change_blocks(Op::Kind kind, bool keep_size, uint64_t offset, uint64_t length);

  Reactor& reactor_;
  Properties properties_;
  RangeLock blocks_;   ///< In units of block_size: unaligned writes hold theirs exclusively.
  RangeLock syncing_;  ///< One unit: syncs hold it exclusively, durable writes shared.
  /// Extents that were found together, one behind the other.
  struct Ahead {
    struct Part {
      uint64_t end;
      bool data;
    };
    uint64_t begin = 0;
    std::vector<Part> parts;
    Instant until;
  };
  Ahead ahead_;
  uint64_t syncs_begun_ = 0;
  bool can_dsync_ = true;
  bool latched_ = false;
};

}  // namespace byre
