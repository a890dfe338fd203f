// SPDX-License-Identifier: Apache-2.0
/// WholeBlocks: takes requests of any offset and length over a device that wants whole blocks.
///
/// A read takes more than was asked for; a write of part of a block reads the block first.  Such
/// writes hold the blocks exclusively, whole ones hold them shared: no block is put back older than
/// it is.
/// A discard gives back the whole blocks inside; status() speaks of whole blocks and cuts.
/// The last block may pass the end of a disk whose size is no multiple: then the bytes behind the
/// last whole block can be neither read nor written, and size() leaves them out.
/// Cost: a copy for requests that are not whole, none for others.
#pragma once

#include "block/filter.h"
#include "coro/range_lock.h"

namespace byre::nbd {

class WholeBlocks final : public Filter {
 public:
  explicit WholeBlocks(Child below);

  uint64_t size() const override;
  uint32_t alignment() const override { return 1; }
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;

 private:
  /// A part of one block: reads it, changes it, writes it.
  template <class Change>
  Task<void> change_block(uint64_t offset, uint64_t length, WriteOptions options, Change change);
  Task<void> check(std::string_view what, uint64_t offset, uint64_t length) const;

  const uint64_t block_;
  RangeLock blocks_;
};

}  // namespace byre::nbd
