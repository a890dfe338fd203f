// SPDX-License-Identifier: Apache-2.0
/// Qcow1Image: an image of qcow version 1 as a disk, read only.
///
/// Nothing that the file says is believed before it is compared with the file's size: a table that
/// is not there, a cluster or a stream behind the end are errors that name the place, of the
/// request that meets them; the rest of the disk can be read.  A cluster that begins inside the
/// file and ends behind it reads as zeros there.
/// Memory: up to 4 MiB of tables and one decompressed cluster, whatever the size of the disk; the
/// L1 table is read in parts, as it is needed. Cost: one read for each run of clusters that follow
/// one another in the file; a stream is decompressed on a worker thread. Not here: writing (convert
/// it to qcow2), encryption (refused), who may open the backing file (io/file_opener.h); its name
/// is text, for whoever decides that.
#pragma once

#include <list>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "block/graph.h"
#include "coro/event.h"
#include "format/qcow1.h"

namespace byre {

/// What the start of a file says, so that its backing file can be opened first.
struct Qcow1Start {
  Qcow1Header header;
  std::optional<std::string> backing_file;
};
Task<Qcow1Start> read_qcow1_start(Device& file);

class Qcow1Image final : public Device {
 public:
  /// `backing` may be null: what is not allocated reads as zeros then, as it does behind the end of
  /// a shorter one.  Both devices are abandoned when this fails.
  static Task<std::unique_ptr<Qcow1Image>> open(Child file, Child backing);

  const Qcow1Header& header() const { return start_.header; }
  /// The name as the image has it, whether or not a backing device was given.
  const std::optional<std::string>& backing_file() const { return start_.backing_file; }

  uint64_t size() const override { return start_.header.size; }
  bool writable() const override { return false; }
  uint32_t preferred_size() const override {
    return static_cast<uint32_t>(start_.header.cluster_size());
  }
  const std::string& name() const override { return file_->name(); }
  Reactor& reactor() override { return file_->reactor(); }

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> flush(IoTag tag) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  Task<void> allocate(uint64_t offset, uint64_t length) override;
  Task<void> resize(uint64_t size) override;
  Task<void> close() override;
  void abandon() override;

 private:
  using Block = std::shared_ptr<const std::vector<std::byte>>;

  /// A part of the disk that is of one kind, and in one piece if it is plain.
  struct Run {
    Qcow1Mapping mapping;  ///< `at`: where the part begins, of a plain one.
    uint64_t length = 0;   ///< Of a compressed one up to the end of its cluster.
  };
  /// Counts a request that runs, for close().
  class Running {
   public:
    explicit Running(Qcow1Image& image) : image_(image) { ++image_.running_; }
    Running(const Running&) = delete;
    ~Running() {
      if (--image_.running_ == 0) image_.idle_.notify();
    }

   private:
    Qcow1Image& image_;
  };

  Qcow1Image(Child file, Child backing, Qcow1Start start);
  Result<void> check(std::string_view what, uint64_t offset, uint64_t length) const;
  Error read_only() const;
  Task<Block> table(HostOffset at, uint64_t size);
  Task<uint64_t> l1_entry(uint64_t index);
  Task<Run> run_at(uint64_t offset, uint64_t length);
  Task<void> read_plain(HostOffset at, MutableBytes data, IoTag tag);
  Task<void> read_backing(uint64_t offset, MutableBytes data);
  Task<void> read_compressed(Qcow1Mapping mapping, uint64_t within_cluster, MutableBytes data);
  Task<void> decompress_stream(Qcow1Mapping mapping, MutableBytes cluster);

  Child file_;
  Child backing_;
  const Qcow1Start start_;

  struct Cached {
    uint64_t at;
    Block block;
  };
  std::list<Cached> cached_;  ///< Tables, the latest used first.
  std::unordered_map<uint64_t, std::list<Cached>::iterator> cached_at_;
  Qcow1Mapping decompressed_from_;
  Block decompressed_;  ///< The cluster of that stream, when there is one.
  uint64_t running_ = 0;
  Event idle_;
};

}  // namespace byre
