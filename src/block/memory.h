// SPDX-License-Identifier: Apache-2.0
/// MemoryDevice: a disk in memory, as sparse as a file.
///
/// It grows when it is written past its end, up to the largest file Linux has.  Every request ends
/// in the turn that began it, and nothing needs a flush to be there.
/// Memory: pages of 4 KiB, only where something but zeros was written.
/// Not here: faults and delays (the simulator's disks have them).
#pragma once

#include <array>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "block/device.h"

namespace byre {

class MemoryDevice final : public Device {
 public:
  explicit MemoryDevice(Reactor& reactor, uint64_t size = 0, std::string name = "memory")
      : reactor_(reactor), size_(size), name_(std::move(name)) {}
  /// Starts with these bytes.
  MemoryDevice(Reactor& reactor, Bytes bytes, std::string name = "memory");

  uint64_t size() const override { return size_; }
  bool writable() const override { return true; }
  Capabilities capabilities() const override { return {.zeroes_fast = true, .fua = true}; }
  const std::string& name() const override { return name_; }
  Reactor& reactor() override { return reactor_; }

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options = {}) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options = {}) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options = {}) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options = {}) override;
  Task<void> flush(IoTag tag = IoTag::flush) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  Task<void> resize(uint64_t size) override;
  bool new_space_is_zero() const override { return !fixed; }
  bool can_grow() const override { return !fixed; }
  Task<void> close() override;

  /// Like a block device: it cannot grow, and nobody knows what its unwritten space reads as.
  bool fixed = false;

  // The same without a coroutine, for tests that look or meddle from outside.
  void peek(uint64_t offset, MutableBytes data) const;
  void poke(uint64_t offset, Bytes data);
  /// Everything; for small devices.
  std::vector<std::byte> bytes() const;
  uint64_t pages() const { return pages_.size(); }

 private:
  static constexpr uint64_t kPage = 4096;
  using Page = std::array<std::byte, kPage>;

  Result<void> check_inside(std::string_view what, uint64_t offset, uint64_t length) const;
  Result<void> grow(std::string_view what, uint64_t offset, uint64_t length);
  void clear(uint64_t offset, uint64_t length);

  Reactor& reactor_;
  uint64_t size_;
  std::string name_;
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
};

}  // namespace byre
