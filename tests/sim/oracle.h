// SPDX-License-Identifier: Apache-2.0
/// Oracle: for every 512-byte sector of a guest disk, which contents it may have.
///
/// Each change of a sector is a candidate: its token, when it was issued, when it was answered,
/// whether it surely happened.  Time is the order of these calls.
///  * A read that began at r may return candidate V unless a certain W exists that was issued after
///    V was answered, and answered before r.
///  * After a power loss V may be there unless a certain, durable W was issued after V was answered
///    (docs/engine.md, C3).  W is durable when it was answered before a flush began that succeeded,
///    or carried FUA.
///  * What failed, and a discard that promises nothing, is not certain: it never rules others out.
///    What failed may still happen, as if it were under way, until the next flush ends.
///
/// Token 0 is zeros.  Any other names one write; its bytes in a sector say sector and token and
/// have a checksum, so that another range's data, metadata or stale bytes are recognised for what
/// they are (C4).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "base/units.h"

namespace byre {

using Token = uint64_t;

/// The contents that `token` gives to guest sector `sector`.  Two in four compress well, one to
/// about half, one not at all.
void fill_sector(MutableBytes bytes, uint64_t sector, Token token);
/// The same for a run of sectors from `offset` on.
void fill_sectors(MutableBytes bytes, uint64_t offset, Token token);
/// Do these bytes begin like a sector that fill_sector() made?
bool is_stamped(Bytes bytes);
/// The token in `bytes`, if they are whole and belong to `sector`.
Result<Token> recognise(Bytes bytes, uint64_t sector);

class Oracle {
 public:
  explicit Oracle(uint64_t size) : size_(size) {}

  uint64_t size() const { return size_; }
  void set_size(uint64_t size) { size_ = size; }
  Token fresh_token() { return next_token_++; }
  /// What the starting image holds; durable.
  void set_initial(uint64_t sector, Token token) {
    cells_[sector] = {{.token = token, .certain = true, .durable = true}};
  }

  /// A write, zero or discard of whole sectors.
  uint64_t begin_change(uint64_t offset, uint64_t length, Token token, bool certain = true);
  void end_change(uint64_t change, bool succeeded, bool durable);
  /// It has done nothing, and never will.
  void cancel_change(uint64_t change);
  /// What each sector of a range could be.
  using Contents = std::vector<std::vector<Token>>;
  /// What a copy that was made between `began` and now may hold.
  Contents contents_since(uint64_t began, uint64_t offset, uint64_t length) const;
  /// The range becomes what a copy of it holds.
  uint64_t begin_restore(uint64_t offset, const Contents& contents);
  /// Are these bytes what the copy may hold?
  static Result<void> check_copy(uint64_t offset, Bytes data, const Contents& contents);
  uint64_t begin_flush() { return ++clock_; }
  void end_flush(uint64_t flush);
  uint64_t begin_read();
  /// Gives up the read; with `data`, checks what it returned.
  void end_read(uint64_t read);
  Result<void> end_read(uint64_t read, uint64_t offset, Bytes data);

  /// May a power loss at this moment leave `data`?  `not_yet`: changes under way that have surely
  /// not taken effect.
  Result<void> check_after_cut(uint64_t offset, Bytes data,
                               const std::set<uint64_t>& not_yet = {}) const;
  /// The process is gone; nothing is under way any more.
  void process_died();
  /// For the end of changes from here on: the time.
  void set_time(int64_t now_ns) { now_ns_ = now_ns; }
  /// What was answered before this time survives the death of the process, flushed or not
  /// (docs/engine.md, M6): the next observe() insists on it, unless it sees a power loss.
  void survives_kill_if_before(int64_t ns) { settled_ns_ = ns; }
  /// Checks what a new process found, and takes it for true from now on.  `durable`: after a power
  /// cut; otherwise a later power loss may still bring older contents back.
  Result<void> observe(uint64_t offset, Bytes data, bool durable);

  /// Sectors that were ever written or set.
  const std::set<uint64_t>& touched() const { return touched_; }

 private:
  static constexpr uint64_t kNever = UINT64_MAX;
  struct Candidate {
    Token token = 0;
    uint64_t issued = 0;
    uint64_t answered = 0;  ///< kNever while it is under way.
    bool certain = false;
    bool durable = false;
    uint64_t change = 0;
    int64_t answered_ns = 0;
  };
  using Cell = std::vector<Candidate>;
  struct Change {
    uint64_t first;
    uint64_t count;
    bool certain;
  };

  const Cell& cell(uint64_t sector) const;
  bool durable(const Candidate& c) const {
    return c.certain && (c.durable || c.answered < flushed_before_);
  }
  void answer(uint64_t change, const Change& made, bool certain, bool durable);
  bool readable(const Cell& cell, const Candidate& v, uint64_t read) const;
  bool survives_cut(const Cell& cell, const Candidate& v) const;
  bool survives_kill(const Cell& cell, const Candidate& v) const;
  void prune(Cell& cell) const;
  std::string describe(const Cell& cell,
                       const std::function<bool(const Candidate&)>& allowed) const;
  template <class Allowed>
  Result<void> check(uint64_t offset, Bytes data, const Allowed& allowed,
                     std::string_view when) const;

  uint64_t size_;
  Token next_token_ = 1;
  uint64_t clock_ = 1;
  int64_t now_ns_ = 0;
  int64_t settled_ns_ = INT64_MIN;
  uint64_t flushed_before_ = 0;
  std::multiset<uint64_t> reads_;
  std::map<uint64_t, Change> changes_;  ///< Under way.
  struct Failed {
    uint64_t change;
    uint64_t failed_at;
    Change made;
  };
  std::vector<Failed> failed_;                ///< Since the last flush.
  std::unordered_map<uint64_t, Cell> cells_;  ///< Never iterated.
  std::set<uint64_t> touched_;
};

}  // namespace byre
