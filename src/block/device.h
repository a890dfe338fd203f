// SPDX-License-Identifier: Apache-2.0
/// Device: what every layer of a disk looks like, from a raw file up to a chain of images.
///
/// Bytes are addressed from 0 to size(); offsets and lengths need no alignment unless alignment()
/// says more than 1.  A caller keeps within size(): a device fails what passes its end with
/// Errc::invalid.  Requests may run side by side; overlapping writes that run together leave each
/// 512-byte sector old or new (docs/engine.md, L3).  A request that was answered is ordered before
/// every request that begins after it.
/// Buffers belong to the caller and stay valid until the task ends.
/// Not here: who may open what (io/file_opener.h), how requests come in (export/).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/io_vec.h"
#include "coro/task.h"
#include "io/reactor.h"

namespace byre {

/// What a request is for, as its sender says; devices only observe it (the fault filter's events
/// and statistics), none decides by it.
enum class IoTag : uint8_t {
  none,
  read_guest,       ///< Guest data from a data cluster.
  read_backing,     ///< From the backing device.
  read_compressed,  ///< A compressed stream.
  write_guest,      ///< Guest data, in place or into a fresh cluster.
  write_compressed,
  vm_state_read,  ///< As read_guest and write_guest, but behind the disk.
  vm_state_write,
  copy_up_read,  ///< Old contents around a partial write.
  copy_up_write,
  header_read,
  header_update,
  l1_load,
  l1_update,
  l1_grow,
  l1_shrink,       ///< The body of a shorter L1 table.
  l1_shrink_load,  ///< An L2 table that no longer counts, to free what it leads to.
  l2_load,
  l2_update,
  l2_allocate,    ///< The body of a new L2 table.
  refcount_load,  ///< A refcount block.
  refcount_update,
  refcount_allocate,  ///< A new refcount block.
  refcount_table_load,
  refcount_table_update,
  refcount_table_grow,
  snapshot_load,
  snapshot_update,
  bitmap_load,
  bitmap_update,
  flush,          ///< A sync that a guest's flush asked for.
  commit_sync,    ///< A sync between the steps of a commit.
  cluster_punch,  ///< A hole for a freed cluster.
  copy_on_read,   ///< What a copy-on-read filter writes back.
};
std::string_view name_of(IoTag tag);

struct ReadOptions {
  IoTag tag = IoTag::read_guest;

  ReadOptions() = default;
  ReadOptions(IoTag what_for) : tag(what_for) {}  // NOLINT(google-explicit-constructor)
};
struct WriteOptions {
  bool fua = false;  ///< Durable, with the mapping that leads to it, before it is answered.
  /// Whole clusters (or up to the end of the disk) become compressed streams, as far as they get
  /// smaller; a device that cannot refuses with Errc::unsupported.
  bool compressed = false;
  int compression_level = 0;  ///< format/codec.h; 0: the default.
  IoTag tag = IoTag::write_guest;
};
struct ZeroOptions {
  bool may_unmap = false;    ///< Blocks may be given back.
  bool no_fallback = false;  ///< Fail with Errc::unsupported rather than write zeros.
  bool fua = false;
  /// For what reads as zeros already, as long as nothing is put below: nothing need be stored.
  bool only_where_needed = false;
  IoTag tag = IoTag::write_guest;
};
struct DiscardOptions {
  bool fua = false;
};

/// What a range of a device is.
struct Extent {
  uint64_t length = 0;
  bool data = true;       ///< Bytes are stored here or below.
  bool zero = false;      ///< Reads as zeros.
  bool allocated = true;  ///< This layer says what it reads as; false: its backing does.
  bool compressed = false;
  uint32_t depth = 0;  ///< How many layers down the bytes are; 0 is this one.
  std::optional<uint64_t>
      host_offset;  ///< Where, in the file named by `file`, when it maps one to one.
  std::string_view file;
};

/// What a device can do beside reading and writing; the same as long as it is open.
struct Capabilities {
  bool compresses = false;  ///< WriteOptions::compressed.
  bool snapshots = false;   ///< It keeps internal snapshots.
  /// zero() need not write the zeros: with ZeroOptions::no_fallback it can succeed.
  bool zeroes_fast = false;
  /// WriteOptions::fua costs less than a flush() behind the write.
  bool fua = false;
  /// A discard of less, or of other offsets, gives nothing back; 0: no discard does.
  uint64_t discard_granularity = 0;
};

class Child;
class Gate;
class Node;

class Device {
 public:
  Device() = default;
  Device(const Device&) = delete;
  virtual ~Device() = default;

  virtual uint64_t size() const = 0;
  virtual bool writable() const = 0;
  /// Offsets and lengths must be multiples of this.
  virtual uint32_t alignment() const { return 1; }
  /// Requests of this size and alignment are cheapest (a cluster, for an image).
  virtual uint32_t preferred_size() const { return 4096; }
  virtual Capabilities capabilities() const { return {}; }
  /// For messages: what the user called it.
  virtual const std::string& name() const = 0;
  virtual Reactor& reactor() = 0;

  virtual Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options = {}) = 0;
  virtual Task<void> write(uint64_t offset, Bytes data, WriteOptions options = {}) = 0;
  /// The same with memory in pieces: one request.  A device that has no better way takes a buffer
  /// of its size, and copies.
  virtual Task<void> read_pieces(uint64_t offset, IoVec pieces, ReadOptions options = {});
  virtual Task<void> write_pieces(uint64_t offset, IoVec pieces, WriteOptions options = {});
  /// The range reads as zeros afterwards.
  virtual Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options = {}) = 0;
  /// The range's contents are no longer wanted; advisory, whole clusters only.
  virtual Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options = {}) = 0;
  /// Everything answered before this call is durable when it is answered.
  virtual Task<void> flush(IoTag tag = IoTag::flush) = 0;
  /// What the range starting at `offset` is; the extent ends inside `length`.  Adjacent extents may
  /// be alike.
  virtual Task<Extent> status(uint64_t offset, uint64_t length) = 0;
  /// Makes sure that space exists for the range; contents do not change (files only).
  virtual Task<void> allocate(uint64_t offset, uint64_t length);
  /// A new size; what is added reads as zeros.
  virtual Task<void> resize(uint64_t size);
  /// Does a range that was never written read as zeros here (a regular file)?
  virtual bool new_space_is_zero() const { return false; }
  /// Can it grow by writing past its end (a regular file)?
  virtual bool can_grow() const { return false; }
  /// Waits for what runs, makes everything durable, gives up locks.  No request may follow.
  virtual Task<void> close() = 0;
  /// Gives up without I/O: opening failed half way, or the simulated process died.
  virtual void abandon() {}

  // What the graph asks (graph.h, drain.h).
  /// Null while nothing leads to it.
  Node* node() const { return node_; }
  /// The edges down from here.
  std::span<Child* const> children() const { return children_; }
  /// What it has not yet done of itself, and would do later: now.  No request runs.
  virtual Task<void> settle() { co_return; }
  /// Where work enters that it does by itself, beside requests; null: it does none.
  virtual Gate* background_gate() { return nullptr; }

 protected:
  /// The error for a request that passes the end.
  Error out_of_range(std::string_view what, uint64_t offset, uint64_t length) const;
  /// The error for a compressed write where there are none.
  Error no_compression() const;

 private:
  friend class Child;
  friend class Node;
  Node* node_ = nullptr;
  std::vector<Child*> children_;
};

}  // namespace byre
