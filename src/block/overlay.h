// SPDX-License-Identifier: Apache-2.0
/// OverlayDevice: a device as it would be after writes that nobody made.
///
/// Writes stay in memory, over a device that is only read; so a plan can be tried before it is
/// carried out.  It may grow like a file.
/// Memory: pages of 4 KiB where something was written.
/// Not here: keeping the writes for later; they are gone with it.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "block/device.h"

namespace byre {

class OverlayDevice final : public Device {
 public:
  explicit OverlayDevice(Device& below) : below_(below), size_(below.size()) {}

  uint64_t size() const override { return size_; }
  bool writable() const override { return true; }
  const std::string& name() const override { return below_.name(); }
  Reactor& reactor() override { return below_.reactor(); }
  bool can_grow() const override { return below_.can_grow(); }
  bool new_space_is_zero() const override { return below_.new_space_is_zero(); }

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  /// Changes nothing.
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<void> flush(IoTag tag) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  Task<void> resize(uint64_t size) override;
  Task<void> close() override;

  uint64_t bytes_written() const { return bytes_written_; }

 private:
  static constexpr uint64_t kPage = 4096;
  struct Page {
    std::byte bytes[kPage];
  };

  Task<void> read_below(uint64_t offset, MutableBytes data, IoTag tag);

  Device& below_;
  uint64_t size_;
  uint64_t bytes_written_ = 0;
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
};

}  // namespace byre
