// SPDX-License-Identifier: Apache-2.0
/// SparseBytes: a large array of bytes, mostly zero, whose copies share what they have in common.
///
/// A copy costs a pointer for each 256 KiB up to the last byte written; a write to shared memory
/// copies one block of 4 KiB.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/assert.h"
#include "base/bytes.h"

namespace byre {

class SparseBytes {
 public:
  static constexpr uint64_t kBlock = 4096;

  void read(uint64_t offset, MutableBytes data) const {
    each_block(offset, data.size(), [&](uint64_t at, uint64_t inside, uint64_t done, uint64_t n) {
      const Block* block = find(at);
      const MutableBytes out = data.subspan(done, n);
      if (block) {
        copy(out, Bytes(*block).subspan(inside, n));
      } else {
        fill_zero(out);
      }
    });
  }
  void write(uint64_t offset, Bytes data) {
    each_block(offset, data.size(), [&](uint64_t at, uint64_t inside, uint64_t done, uint64_t n) {
      copy(MutableBytes(own(at)).subspan(inside, n), data.subspan(done, n));
    });
  }
  void zero(uint64_t offset, uint64_t length) {
    const uint64_t end = std::min(offset + length, chunks_.size() * kChunkBytes);
    if (offset >= end) return;
    each_block(offset, end - offset, [&](uint64_t at, uint64_t inside, uint64_t, uint64_t n) {
      if (!find(at)) return;
      if (n == kBlock) {
        drop(at);
      } else {
        fill_zero(MutableBytes(own(at)).subspan(inside, n));
      }
    });
  }
  /// Bytes from here on were never written.
  uint64_t end() const { return chunks_.size() * kChunkBytes; }
  /// May the block with this index hold anything but zeros?
  bool has_block(uint64_t index) const { return find(index) != nullptr; }

 private:
  using Block = std::array<std::byte, kBlock>;
  static constexpr uint64_t kBlocks = 64;
  static constexpr uint64_t kChunkBytes = kBlocks * kBlock;
  using Chunk = std::array<std::shared_ptr<Block>, kBlocks>;

  template <class Visit>
  static void each_block(uint64_t offset, uint64_t length, Visit visit) {
    for (uint64_t done = 0; done < length;) {
      const uint64_t inside = (offset + done) % kBlock;
      const uint64_t n = std::min(kBlock - inside, length - done);
      visit((offset + done) / kBlock, inside, done, n);
      done += n;
    }
  }
  const Block* find(uint64_t index) const {
    const uint64_t chunk = index / kBlocks;
    if (chunk >= chunks_.size() || !chunks_[chunk]) return nullptr;
    return (*chunks_[chunk])[index % kBlocks].get();
  }
  Chunk& own_chunk(uint64_t index) {
    BYRE_ASSERT(index < (uint64_t{1} << 24));  // 4 TiB: nothing simulated is larger.
    if (index >= chunks_.size()) chunks_.resize(index + 1);
    std::shared_ptr<Chunk>& chunk = chunks_[index];
    if (!chunk) chunk = std::make_shared<Chunk>();
    if (chunk.use_count() > 1) chunk = std::make_shared<Chunk>(*chunk);
    return *chunk;
  }
  Block& own(uint64_t index) {
    std::shared_ptr<Block>& block = own_chunk(index / kBlocks)[index % kBlocks];
    if (!block) {
      block = std::make_shared<Block>();
    } else if (block.use_count() > 1) {
      block = std::make_shared<Block>(*block);
    }
    return *block;
  }
  void drop(uint64_t index) { own_chunk(index / kBlocks)[index % kBlocks].reset(); }

  std::vector<std::shared_ptr<Chunk>> chunks_;
};

}  // namespace byre
