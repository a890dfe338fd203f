// SPDX-License-Identifier: Apache-2.0
/// SimDisk: a file whose unsynced writes a power loss may lose, tear or reorder
/// (docs/simulation.md, "The world").
///
/// The file is an array of 512-byte sectors.  A sector has a durable content and a list of versions
/// since; programs read the newest that landed.  Each write, punch, zero-range and truncate is an
/// entry of the log; it lands at a point between submit and completion, perhaps in parts.
/// 1. A sync that succeeds makes durable, in each sector, the newest version whose entry had
///    *completed before the sync began*; never less, here also never more.
/// 2. A dsync write makes its own versions durable when it completes.
/// 3. The size has versions like a sector.
/// 4. At a power loss every sector independently takes any version from the durable one on, entries
///    still under way included.  CutChoice says which; cut() gives the disk as it would be, and
///    does not disturb the running one.
/// 5. The death of the process alone keeps all that landed; it stays unsynced.
///
/// Faults come from options().faults, ENOSPC also from `capacity`: blocks of 4 KiB that are written
/// or allocated count, holes do not.  O_DIRECT's rules are enforced on descriptors opened with a
/// block size.  A buffer that changes while its write is under way is a failure().
/// Cost: a copy or cut is a few KiB for each MiB used.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/prng.h"
#include "sim/fault_plan.h"
#include "sim/sim_reactor.h"
#include "sim/sparse_bytes.h"

namespace byre {

/// One operation whose effect may not be durable yet.
struct LogEntry {
  uint64_t number = 0;  ///< In order of issue.
  Op::Kind kind = Op::Kind::write;
  uint64_t offset = 0;
  uint64_t length = 0;
  bool completed = false;  ///< Answered; else under way, or cut off by the death of its process.
};

/// What a power loss leaves of the unsynced.
struct CutChoice {
  enum class Mode : uint8_t {
    none,      ///< Only what is durable.
    all,       ///< Everything that was issued.
    chosen,    ///< The log entries in `entries`.
    versions,  ///< For each of unsynced_sectors(), the version in `versions`; 0 is the durable one.
    random_512,   ///< Each sector by the coin of `seed`.
    random_4096,  ///< The same where the drive writes 4096 bytes atomically.
  };
  Mode mode = Mode::none;
  uint64_t seed = 0;
  std::set<uint64_t> entries = {};
  std::vector<uint32_t> versions = {};

  static CutChoice none() { return {}; }
  static CutChoice all() { return {.mode = Mode::all}; }
  static CutChoice random(uint64_t seed, bool sectors_of_4096 = false) {
    return {.mode = sectors_of_4096 ? Mode::random_4096 : Mode::random_512, .seed = seed};
  }
  /// The first `count` entries of `log`.
  static CutChoice prefix(const std::vector<LogEntry>& log, size_t count);
  static CutChoice only(const LogEntry& entry);
  static CutChoice all_but(const std::vector<LogEntry>& log, const LogEntry& left_out);
  /// Everything up to log[b] but log[a]: shows whether b depends on a.
  static CutChoice b_without_a(const std::vector<LogEntry>& log, size_t b, size_t a);
};

class SimDisk {
 public:
  struct Options {
    uint64_t seed = 0;
    uint64_t size = 0;
    /// Bytes of blocks that it can hold; 0: no limit.
    uint64_t capacity = 0;
    /// A block device: its size is fixed, it does not grow or shrink.
    bool block_device = false;
    bool can_punch = true;
    bool can_zero_range = true;
    bool can_allocate = true;
    /// Writes and reads land in parts now and then.
    bool torn = true;
    FaultPlan faults = {};
    /// Which writes may land after they failed (Fault::Applied::late).
    std::function<bool(const Op&)> may_land_late = nullptr;
  };

  explicit SimDisk(Options options);
  SimDisk() : SimDisk(Options{}) {}
  /// Copies the bytes and versions; what is under way belongs to the original only.
  SimDisk(const SimDisk& other);
  SimDisk& operator=(const SimDisk& other);
  SimDisk(SimDisk&&) = default;
  SimDisk& operator=(SimDisk&&) = default;

  Options& options() { return options_; }
  const Options& options() const { return options_; }

  /// A descriptor of `reactor`'s process.  The disk must outlive the process.  `block_size`: 1 for
  /// buffered, 512 or 4096 for O_DIRECT.
  int open(SimReactor& reactor, bool writable, uint32_t block_size = 1);

  uint64_t size() const { return size_; }
  /// What a program would read now; zeros beyond the end.
  void read(uint64_t offset, MutableBytes data) const { visible_.read(offset, data); }
  std::vector<std::byte> read(uint64_t offset, uint64_t length) const;
  uint64_t allocated_bytes() const { return allocated_count_ * SparseBytes::kBlock; }

  /// The log of what is not known to be durable, in order of issue.
  std::vector<LogEntry> log() const;
  struct UnsyncedSector {
    uint64_t sector;
    uint32_t versions;  ///< Beside the durable one.
  };
  std::vector<UnsyncedSector> unsynced_sectors() const;
  /// The disk after a power loss, with all of it durable and no faults to come.
  SimDisk cut(const CutChoice& choice) const;
  /// The power loss itself.  No process may have this disk open.
  void power_cut(const CutChoice& choice);

  /// What failed and may still land (Fault::Applied::late) does so now, or never.
  void settle() { land_late(true); }

  /// Puts bytes there, durably, outside simulated time; grows the file to hold them.
  void put(uint64_t offset, Bytes data);
  void set_size(uint64_t size);
  /// Reads a real file into an empty disk; writes this one to a real file, sparse.
  Result<void> load(const std::string& path);
  Result<void> dump(const std::string& path) const;

  /// Bytes issued to this disk by kind, and how often; for tests that count.
  uint64_t operations(Op::Kind kind) const { return options_.faults.count(kind); }
  /// Syncs that failed and lost something for good: only a power loss makes this disk honest again.
  uint64_t syncs_lost() const { return syncs_lost_; }
  /// A rule that the program broke; empty while there is none.
  const std::string& failure() const { return failure_; }

 private:
  class Descriptor;
  using Data = std::shared_ptr<const std::vector<std::byte>>;
  struct Version {
    uint64_t entry;
    Data data;  ///< Null: zeros.
    size_t at;  ///< Where in `data` the sector starts.
  };
  struct SizeVersion {
    uint64_t entry;
    uint64_t size;
  };
  struct Entry {
    LogEntry log;
    uint64_t completed_at = 0;
  };
  struct Part {
    uint64_t offset;
    uint64_t length;
    bool landed;
  };
  struct UnderWay {
    Op::Kind kind;
    bool dsync;
    bool keep_size;
    uint64_t entry = 0;  ///< 0: changes nothing.
    uint64_t began = 0;
    uint64_t offset = 0;
    Data data;
    std::vector<Part> parts;
    int64_t result = 0;
    Fault fault;
  };
  using Versions = std::map<uint64_t, std::vector<Version>>;

  std::optional<unsigned> begin(uint64_t id, const Op& op, bool writable, uint32_t block_size);
  void begin_transfer(UnderWay& way, const Op& op, uint32_t block_size);
  void land(uint64_t id, const Op& op, unsigned part);
  int64_t finish(uint64_t id, const Op& op);
  void abandon(uint64_t id);
  void land_late(bool all);

  int64_t check(const Op& op, bool writable, uint32_t block_size) const;
  uint64_t blocks_missing(uint64_t offset, uint64_t length) const;
  void allocate_blocks(uint64_t offset, uint64_t length);
  void free_blocks(uint64_t offset, uint64_t length);
  bool is_allocated(uint64_t block) const { return block < allocated_.size() && allocated_[block]; }
  void split(UnderWay& way, uint64_t offset, uint64_t length, uint64_t grain);
  void land_part(const UnderWay& way, const Part& part);
  void add_versions(Versions& versions, const UnderWay& way, const Part& part) const;
  void set_visible_size(uint64_t entry, uint64_t size);
  void sync_done(uint64_t began);
  void sync_failed(const UnderWay& way);
  void dsync_done(const UnderWay& way);
  void store(SparseBytes& bytes, uint64_t sector, const Version& version) const;
  void forget_entries();
  Versions versions_for_cut() const;
  uint64_t size_for_cut(const CutChoice& choice, Prng& prng) const;
  bool completed_before(uint64_t entry, uint64_t when) const;

  Options options_;
  Prng prng_;
  SparseBytes durable_;
  SparseBytes visible_;
  Versions unsynced_;
  uint64_t size_ = 0;
  uint64_t durable_size_ = 0;
  std::vector<SizeVersion> sizes_;
  std::map<uint64_t, Entry> entries_;
  uint64_t next_entry_ = 1;
  uint64_t clock_ = 1;
  std::vector<bool> allocated_;
  uint64_t allocated_count_ = 0;
  std::map<uint64_t, UnderWay> under_way_;
  std::vector<UnderWay> late_;  ///< Failed, and still to land.
  uint64_t syncs_lost_ = 0;
  std::string failure_;
};

}  // namespace byre
