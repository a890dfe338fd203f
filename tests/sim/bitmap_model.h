// SPDX-License-Identifier: Apache-2.0
/// BitmapModel: what the persistent bitmaps of a simulated image must say and may say (C8).
///
/// For each bitmap, and each granule that a window touches:
///   must  a change of it was answered since the bitmap was added or cleared; no cut, no kill and
///         no fault may make it clean.
///   may   a change of it was asked for; after a clean close nothing else is dirty.
/// What was asked for and is found on the disk, answered or not, must be recorded as well: the disk
/// tells by its tokens (oracle.h).  While a change of the bitmap itself is under way, and for what
/// ran beside it, only `may` is known.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "checker.h"
#include "knobs.h"
#include "oracle.h"

namespace byre {

class BitmapModel {
 public:
  explicit BitmapModel(std::vector<Window> windows) : windows_(std::move(windows)) {}

  using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;  ///< Bytes: offset, end.

  // Changes of the disk.
  struct Change {
    uint64_t offset = 0;
    uint64_t length = 0;
    std::map<std::string, uint64_t> epochs;
  };
  Change begin_change(uint64_t offset, uint64_t length);
  /// `beside`: it may have taken effect before a change of a bitmap that ended meanwhile.
  void end_change(const Change& change, bool certain, bool beside);
  void all_may_change() { each_may(0, UINT64_MAX); }
  void resized(uint64_t before, uint64_t size, bool settled);

  // Changes of the bitmaps.
  void begin_add(const std::string& name, uint32_t granularity_bits);
  void end_add(const std::string& name, bool done, Token next);
  void begin_remove(const std::string& name) { bitmaps_.at(name).going = true; }
  void end_remove(const std::string& name, bool done);
  void begin_edit(const std::string& name, bool clears);
  void end_edit(const std::string& name, bool done, bool clears, bool enabled, Token next);
  /// What `from` says when it is read, between the first two calls, goes into `name`.
  struct Merge {
    std::string name;
    std::string from;
    uint64_t epoch = 0;
    uint64_t from_epoch = 0;
    Ranges must;
    Ranges may;
  };
  Merge begin_merge(const std::string& name, const std::string& from);
  void read_for_merge(Merge& merge);
  void end_merge(const Merge& merge, bool done);
  /// One that is there for sure and not about to go; empty: there is none.
  std::string choose(uint64_t which) const;
  bool enabled(const std::string& name) const { return bitmaps_.at(name).enabled; }
  bool known(const std::string& name) const { return bitmaps_.contains(name); }
  size_t size() const { return bitmaps_.size(); }

  /// What a cut, a kill or a close left, as the bytes of the image say it; `data` are the windows'
  /// bytes.  `exact`: nothing is dirty that was not written.
  Result<void> check(const std::vector<FoundBitmap>& found, uint64_t disk_size,
                     const std::vector<std::vector<std::byte>>* data, bool exact) const;
  /// What a new process finds is the truth from here on.
  void settle(const std::vector<FoundBitmap>& found, uint64_t disk_size, Token next);

 private:
  struct Bitmap {
    uint32_t granularity_bits = 16;
    bool enabled = true;
    bool certain = false;  ///< It is there, after any cut.
    bool going = false;    ///< It is being removed, or that failed.
    bool flag_certain = true;
    uint64_t editing = 0;  ///< Changes of it under way.
    uint64_t epoch = 0;    ///< Counts when those begin and end.
    Token since = 0;       ///< Tokens from this one on are recorded, where found.
    std::set<uint64_t> must;
    std::set<uint64_t> may;
  };
  template <class Visit>
  void each_granule(const Bitmap& bitmap, uint64_t offset, uint64_t end, const Visit& visit) const;
  void each_may(uint64_t offset, uint64_t end);
  static Ranges bytes_of(const Bitmap& bitmap, const std::set<uint64_t>& granules);
  void each_may_of(const std::string& name, const Ranges& ranges);

  std::vector<Window> windows_;
  std::map<std::string, Bitmap> bitmaps_;
};

}  // namespace byre
