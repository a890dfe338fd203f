// SPDX-License-Identifier: Apache-2.0
/// FaultFilter: a Device over another that fails, or holds back, chosen ones of the requests that
/// pass it; for tests of what lies above.
///
/// It knows rules and breakpoints, named as QEMU's blkdebug names them:
///   1. A request that comes raises events.  They follow from what it is (a write, a flush) and
///      from its IoTag (what it is for); raised_by() is the one table of them.  A write that is to
///      be durable is a write and then a flush.
///   2. An event counts through the rules that name it: set-state moves the state, inject-error
///      arms its rule.  Arming a rule disarms those that earlier events have armed.
///   3. The request is held at each breakpoint that waits for one of its events, until somebody
///      resumes it.  A breakpoint holds one request, once.
///   4. An armed rule whose kinds of request and sector fit fails the request; else it goes on to
///      the device below.  A rule stays armed, for later requests too, unless it is `once`.
/// The state starts as 1; a rule for state 0 holds in any.
///
/// With FaultLimits it also stands for a disk that takes less at once (blkdebug's align,
/// max-transfer and so on).  Requests are cut to the limits before rule 1, so each part raises its
/// events and may fail by itself; parts of one request go down one after the other.  A write that
/// does not fit `align` becomes a read, a change and a write of aligned blocks, which raises the
/// pwritev_rmw events; of a discard only whole blocks go on.  A block may end where the device
/// ends.
///
/// The filter only observes: what it does to a request is all that anybody below or above can see
/// of it.  It may lie under an image (faults of its file) or over one (faults of the disk).
/// Cost: none worth naming without rules and limits; linear in their number.
/// Not here: command lines that set breakpoints (cli/io.cc), faults by chance (sim/fault_plan.h).
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/units.h"
#include "block/filter.h"
#include "coro/event.h"
#include "coro/range_lock.h"

namespace byre {

/// A place in the life of an image.  All of blkdebug's names can be parsed; docs/compatibility.md
/// says which of them byre raises and when.
enum class FaultEvent : uint8_t {
  none,  ///< Raised once, when the filter is made.
  l1_update,
  l1_grow_alloc_table,
  l1_grow_write_table,
  l1_grow_activate_table,
  l2_load,
  l2_update,
  l2_update_compressed,
  l2_alloc_cow_read,
  l2_alloc_write,
  read_aio,
  read_backing_aio,
  read_compressed,
  write_aio,
  write_compressed,
  vmstate_load,
  vmstate_save,
  cow_read,
  cow_write,
  reftable_load,
  reftable_grow,
  reftable_update,
  refblock_load,
  refblock_update,
  refblock_update_part,
  refblock_alloc,
  refblock_alloc_hookup,
  refblock_alloc_write,
  refblock_alloc_write_blocks,
  refblock_alloc_write_table,
  refblock_alloc_switch_table,
  cluster_alloc,
  cluster_alloc_bytes,
  cluster_free,
  flush_to_os,
  flush_to_disk,
  pwritev_rmw_head,
  pwritev_rmw_after_head,
  pwritev_rmw_tail,
  pwritev_rmw_after_tail,
  pwritev,
  pwritev_zero,
  pwritev_done,
  empty_image_prepare,
  l1_shrink_write_table,
  l1_shrink_free_l2_clusters,
  cor_write,
  cluster_alloc_space,
};
inline constexpr size_t kFaultEvents = static_cast<size_t>(FaultEvent::cluster_alloc_space) + 1;

std::string_view name_of(FaultEvent event);
/// By name; older spellings with a dot (l1_grow.write_table) too.
std::optional<FaultEvent> find_fault_event(std::string_view name);

/// The kinds of request that rules tell apart.
enum class FaultIo : uint8_t { read, write, write_zeroes, discard, flush, block_status };

/// What a request raises before it goes on.
std::span<const FaultEvent> raised_by(IoTag tag);

struct InjectError {
  FaultEvent event = FaultEvent::none;
  uint64_t state = 0;              ///< Only in this state; 0: in any.
  int error = 5;                   ///< The errno to fail with: EIO unless said.
  std::optional<uint64_t> sector;  ///< Only requests that touch it.
  std::optional<FaultIo> io;       ///< Only this kind; else every kind but block_status.
  bool once = false;               ///< Gone when it has failed one request.
  bool immediately = false;        ///< Fail in the caller's turn, not later.
};
struct SetState {
  FaultEvent event = FaultEvent::none;
  uint64_t state = 0;  ///< Only in this state; 0: in any.
  uint64_t new_state = 1;
};
struct FaultRules {
  std::vector<InjectError> inject_errors;
  std::vector<SetState> set_states;
};

/// One rule as configuration files and options spell it.
struct FaultSection {
  std::string kind;  ///< "inject-error" or "set-state".
  std::vector<std::pair<std::string, std::string>> settings;
};
/// Adds what `section` says to `rules`.
Result<void> add_rule(FaultRules& rules, const FaultSection& section);
/// A configuration file of blkdebug's: [inject-error] and [set-state] sections with lines of
/// `key = "value"`, and comments that start with #.
Result<FaultRules> parse_fault_config(std::string_view text);

/// What the disk takes at once, in bytes; 0: no limit but those of the device below.
struct FaultLimits {
  uint32_t align = 0;           ///< Of each request; a power of two.
  uint64_t max_transfer = 0;    ///< Of a read or write; a multiple of align, like all that follow.
  uint64_t opt_write_zero = 0;  ///< What of a zero request lies outside its grid goes by itself.
  uint64_t max_write_zero = 0;  ///< A multiple of opt_write_zero.
  uint64_t opt_discard = 0;
  uint64_t max_discard = 0;  ///< A multiple of opt_discard.
};
/// Can these be, over a device with this alignment()?
Result<void> check_limits(const FaultLimits& limits, uint32_t alignment_below);

class FaultFilter final : public Filter {
 public:
  /// `limits` have passed check_limits().
  FaultFilter(Child below, FaultRules rules, FaultLimits limits = {});

  uint32_t alignment() const override { return align_; }

  /// The next request that raises `event` is held, under the name `tag`.
  void set_break(FaultEvent event, std::string tag);
  /// Waits until a request is held at `tag`; an error when no breakpoint of that name is set.
  Task<void> wait_break(std::string tag);
  /// Lets the oldest request that is held at `tag` go on; an error when there is none.
  Result<void> resume(std::string_view tag);
  /// Forgets the breakpoints of that name and lets go on what is held there; an error when there
  /// was neither.
  Result<void> remove_break(std::string_view tag);
  /// Forgets every breakpoint and lets everything go on.
  void release_all();
  bool holds(std::string_view tag) const;
  /// Told when a request is held (true) and when it may go on (false).
  std::function<void(const std::string& tag, bool held)> on_hold;

  uint64_t state() const { return state_; }

  /// What a filter knows beyond its rules; for another one with the same rules, which goes on from
  /// there.
  struct Memory {
    std::vector<std::pair<FaultEvent, std::string>> breaks;
    std::vector<size_t> armed;
    std::vector<bool> spent;
    uint64_t state = 1;
  };
  Memory memory() const;
  void recall(Memory memory);

  BYRE_CORO_WRAPPER Task<void> read(uint64_t offset, MutableBytes data,
                                    ReadOptions options) override {
    return limited_ ? read_limited(offset, data, options.tag)
                    : read_part(offset, data, options.tag);
  }
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    return limited_ ? write_limited(offset, data, options) : write_part(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    return limited_ ? zero_limited(offset, length, options) : zero_part(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override {
    return limited_ ? discard_limited(offset, length, options)
                    : discard_part(offset, length, options);
  }
  Task<void> flush(IoTag tag) override;
  Task<Extent> status(uint64_t offset, uint64_t length) override;
  Task<void> allocate(uint64_t offset, uint64_t length) override;
  Task<void> resize(uint64_t size) override;
  /// Lets everything go on first: what is held would keep the device below open for ever.
  Task<void> close() override;

 private:
  struct Request {
    FaultIo io;
    uint64_t offset;
    uint64_t length;
  };
  /// Touches no sector.
  static constexpr Request kFlush{.io = FaultIo::flush, .offset = 0, .length = 0};
  struct Break {
    FaultEvent event;
    std::string tag;
  };
  struct Held {
    Held(std::string name, ReadyQueue& ready) : tag(std::move(name)), go(ready) {}
    std::string tag;
    Event go;  ///< Set when the request may go on.
  };

  // One part of a request, within the limits.
  Task<void> read_part(uint64_t offset, MutableBytes data, IoTag tag);
  Task<void> write_part(uint64_t offset, Bytes data, WriteOptions options);
  Task<void> zero_part(uint64_t offset, uint64_t length, ZeroOptions options);
  Task<void> discard_part(uint64_t offset, uint64_t length, DiscardOptions options);
  // A request as it came.
  Task<void> read_limited(uint64_t offset, MutableBytes data, IoTag tag);
  Task<void> write_limited(uint64_t offset, Bytes data, WriteOptions options);
  Task<void> zero_limited(uint64_t offset, uint64_t length, ZeroOptions options);
  Task<void> discard_limited(uint64_t offset, uint64_t length, DiscardOptions options);
  // Of aligned blocks.
  Task<void> read_split(uint64_t offset, MutableBytes data, IoTag tag);
  Task<void> write_split(uint64_t offset, Bytes data, WriteOptions options);
  Task<void> write_unaligned(uint64_t offset, Bytes data, WriteOptions options);
  Task<void> read_for_update(uint64_t offset, MutableBytes block, FaultEvent before,
                             FaultEvent after);
  uint64_t block_end(uint64_t end) const;
  bool is_aligned(uint64_t offset, uint64_t length) const;
  RangeLock::Request lock(uint64_t offset, uint64_t length, RangeLock::Mode mode);

  Task<void> admit(Request request, IoTag tag, FaultEvent own);
  Task<void> reach(std::span<const FaultEvent> events);
  Task<void> end_write(bool fua);
  void count(FaultEvent event);
  void meet_breaks(FaultEvent event, std::vector<Held*>& met);
  const InjectError* take_armed(const Request& request);
  void let_go(Held& held);
  bool waits_for(std::string_view tag) const;

  const FaultRules rules_;
  const FaultLimits limits_;
  const uint32_t align_;
  const bool limited_;
  std::vector<size_t> armed_;  ///< Indices of inject_errors, in their order.
  std::vector<bool> spent_;    ///< By index: a `once` rule that has failed a request.
  uint64_t state_ = 1;
  std::vector<Break> breaks_;
  std::list<Held> held_;  ///< Each until its request has gone on: frames refer to them.
  RangeLock locks_;       ///< In blocks of align_: writes share, those of parts of blocks exclude.
  Event changed_;         ///< Something was held, or breakpoints went away.
};

}  // namespace byre
