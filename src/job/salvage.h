// SPDX-License-Identifier: Apache-2.0
/// Salvage: a disk of which some parts cannot be read; they read as zeros, and are remembered.
///
/// A read that fails is tried again in smaller pieces: clusters, and where the world failed, not
/// the image, blocks of 4 KiB and sectors.  What still fails is lost.  What the map cannot say is
/// taken for data, so that it is read.
/// Ranges that follow each other and were lost in the same way are one.
/// Cost: without a failure a frame.  Memory: the ranges.
/// Not here: opening a damaged image (ImageOptions::salvage).
#pragma once

#include <vector>

#include "block/filter.h"

namespace byre {

class Salvage final : public Forwarder {
 public:
  struct Lost {
    uint64_t offset = 0;
    uint64_t length = 0;
    Errc code = Errc::io;
    std::string reason;  ///< Of its first piece.
  };

  explicit Salvage(Device& below) : Forwarder(below) {}

  /// In the order of the disk.
  std::vector<Lost> lost() const;

  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;

 private:
  Task<void> read_piecewise(uint64_t offset, MutableBytes data, IoTag tag, uint64_t step);
  void lose(uint64_t offset, uint64_t length, const Error& error);

  std::vector<Lost> lost_;
};

}  // namespace byre
