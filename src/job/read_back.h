// SPDX-License-Identifier: Apache-2.0
/// ReadBack: does a target hold what was copied into it?
///
/// While a copy runs (ConvertOptions::record), each range that is read from the source is noted
/// with a checksum of what came, before it is written anywhere, and each range that has to read as
/// zeros as such.  Once the copy has been flushed, check() reads the target and compares.
/// Where the bytes come from then is up to the device: its owner opens it past the page cache.
/// Not noted, and so not compared, is what the copy leaves to the target's own backing disk.
/// Invariant: a target that check() accepts gave, at that moment, bytes with the checksums of all
/// that was noted.
/// Cost: reading the target once; 16 bytes for each piece of the copy, so 64 MiB for each TiB of
/// data in pieces of 256 KiB.
/// Not here: the copy (convert.h), opening the target again (cli/convert.cc).
#pragma once

#include <cstdint>
#include <vector>

#include "base/progress.h"
#include "block/device.h"
#include "io/buffer.h"

namespace byre {

class ReadBack {
 public:
  /// `data` was read for [at, at + data.size()) of the target.
  void note(uint64_t at, Bytes data);
  /// [at, at + length) has to read as zeros.
  void note_zeros(uint64_t at, uint64_t length);
  /// Bytes that check() compares.
  uint64_t total() const { return total_; }

  /// Errc::io, with the range, where `target` holds something else; Errc::cancelled after
  /// Progress::stop().  Up to `requests_max` reads at a time.
  Task<void> check(Device& target, Progress& progress, unsigned requests_max) const;

 private:
  struct Range {
    uint64_t at;
    uint32_t length;
    uint32_t checksum;
  };
  struct Zeros {
    uint64_t at;
    uint64_t length;
  };
  struct Check;
  static Task<void> work(Check& check);
  static Task<void> check_range(Check& check, Range range, Buffer& buffer);
  static Task<void> check_zeros(Check& check, Zeros zeros, Buffer& buffer);

  std::vector<Range> ranges_;
  std::vector<Zeros> zeros_;
  uint64_t total_ = 0;
};

}  // namespace byre
