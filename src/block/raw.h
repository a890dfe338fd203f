// SPDX-License-Identifier: Apache-2.0
/// RawDevice: the bytes of a file as a disk, one to one.
///
/// Writes may pass the end when the file can grow (`growable`: a target of a copy, or the file that
/// an image lies in); guests of a plain raw disk get an error there.
/// Cost: one frame on top of File's.
/// Not here: short transfers, alignment, failed syncs (io/file.h).
#pragma once

#include <algorithm>
#include <memory>

#include "block/device.h"
#include "block/reopen.h"
#include "io/file.h"

namespace byre {

struct RawOptions {
  bool growable = false;
};

/// What was asked of the device since it was opened.
struct RawCounts {
  uint64_t written_end = 0;  ///< The highest offset that was written or zeroed, its end.
  uint64_t discards = 0;     ///< That gave blocks back.
  uint64_t discards_failed = 0;
  uint64_t bytes_discarded = 0;
};

class RawDevice final : public Device, public Reopens {
 public:
  explicit RawDevice(std::unique_ptr<File> file, RawOptions options = {})
      : file_(std::move(file)), growable_(options.growable && !file_->properties().block_device) {}

  uint64_t size() const override { return file_->size(); }
  bool writable() const override { return file_->properties().writable; }
  uint32_t preferred_size() const override;
  Capabilities capabilities() const override;
  const std::string& name() const override { return file_->properties().name; }
  Reactor& reactor() override { return file_->reactor(); }

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> read_pieces(uint64_t offset, IoVec pieces, ReadOptions options) override;
  Task<void> write_pieces(uint64_t offset, IoVec pieces, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  BYRE_CORO_WRAPPER Task<void> flush(IoTag tag) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  BYRE_CORO_WRAPPER Task<void> allocate(uint64_t offset, uint64_t length) override;
  BYRE_CORO_WRAPPER Task<void> resize(uint64_t size) override;
  bool new_space_is_zero() const override { return !file_->properties().block_device; }
  bool can_grow() const override { return growable_; }
  Task<void> close() override;
  /// Who may write may grow it, as for the file of an image.
  Task<void> reopen(bool writable) override;

  File& file() { return *file_; }
  const RawCounts& counts() const { return counts_; }

 private:
  Result<void> check(std::string_view what, uint64_t offset, uint64_t length) const;
  void wrote(uint64_t end) { counts_.written_end = std::max(counts_.written_end, end); }

  std::unique_ptr<File> file_;
  bool growable_;
  RawCounts counts_;
};

}  // namespace byre
