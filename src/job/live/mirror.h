// SPDX-License-Identifier: Apache-2.0
/// Mirror: a disk in use is copied to another device and kept alike, until its users are led there;
/// and the commit of the disk that is written: into a disk below it.
///
///   1. A MirrorFilter enters above the source.  From here on it knows what the target lacks.
///   2. Dirty pieces are copied, in the order of the disk, round after round.  The job is ready
///   when
///      a round has left no more than what may be copied in step 3 while guests wait: so also where
///      they write faster than is copied.  It goes on copying what they change.
///   3. Somebody completes it: guests write to both devices from now on; what is dirty is copied.
///      Then they are drained: no request is under way.  The rest is copied, the target is flushed,
///      and all who used the source (or another node, `replaces`) are led to the target.  The gates
///      open.
/// Without a switch (a cancel of a job that is ready) step 3 ends with the flush: the target is the
/// source at that moment.
/// Invariant (docs/engine.md, J3, J5): at the switch the target durably holds what guests were told
/// is durable, and reads as the source does.  Until then the source is what it was, and the filter
/// is all that was put there; a job that fails takes it away.
/// With `verify` the target is read back: as soon as all is copied, and again when guests have
/// changed more than may be compared while they wait.  Step 3 compares what is left before it
/// drains them, and the rest behind the flush: a target that holds something else fails the job,
/// and nobody is led there.  While that goes on guests that write compare more than they write.
/// With `above` (a commit) what the layers above a base have goes into the base, which grows where
/// it is smaller: until the switch the overlays still hide all that was changed in it.
/// Copying that guests overtake: a round that begins with more than half of what the round before
/// began with gains too little; the job says so, and with Converge::automatic it lets guests write
/// to both devices from then on.
/// Cost: each piece once, and again for each time that it is changed in the background.  Memory:
/// requests_max * request_size; with `verify` twice that, and copy_sums.h.
/// Not here: which pieces are dirty (mirror_filter.h), images made for the target.
#pragma once

#include <memory>
#include <vector>

#include "block/drain.h"
#include "job/live/copy_check.h"
#include "job/live/job.h"
#include "job/live/mirror_copy.h"
#include "job/live/mirror_filter.h"

namespace byre {

enum class Converge : uint8_t { report, automatic };

struct MirrorOptions {
  MirrorFilterOptions filter;
  bool copies_nothing = false;  ///< Only what changes from now on.
  Converge converge = Converge::report;
  bool verify = false;  ///< Not with copies_nothing.
  /// The node whose users are led to the target; null: the source.
  Node* replaces = nullptr;
  /// What the source will be called in messages and events: the target is a disk below it.
  JobKind kind = JobKind::mirror;
  unsigned requests_max = 16;
  std::string filter_name;  ///< Of the filter's node; empty: a made-up one.
};

class Mirror final : public JobWork {
 public:
  /// Edges of nobody else.  Errc::invalid or Errc::read_only for devices that do not fit.
  static Result<std::unique_ptr<Mirror>> make(Child source, Child target, MirrorOptions options);
  /// The commit of the disk that is written: `depth` layers down.
  static Result<std::unique_ptr<Mirror>> commit_into(Child source, uint32_t depth,
                                                     MirrorOptions options);
  ~Mirror() override;

  MirrorMode mode() const { return filter().mode(); }
  /// background to write_blocking, also while it runs; the other way is refused.
  Result<void> set_mode(MirrorMode mode);
  /// While it is in the graph, else null.
  const MirrorFilter* filter_in_use() const { return entered_ ? &filter() : nullptr; }
  /// Did guests change more than could be copied?
  bool is_overtaken() const { return overtaken_; }
  /// Did it let guests write to both devices because of that?
  bool has_gone_blocking() const { return gone_blocking_; }
  /// Do both hold the same, and get the same?
  bool is_in_sync_actively() const {
    return filter_ && !filter().is_dirty() && mode() == MirrorMode::write_blocking;
  }

  JobKind kind() const override { return options_.kind; }
  std::vector<Node*> nodes() const override;
  Task<void> run(Job& job) override;
  Task<void> prepare(Job& job) override;
  Task<void> commit(Job& job) override;
  Task<void> abort(Job& job) override;
  Task<void> clean(Job& job) override;
  void interrupt() override;
  std::optional<uint64_t> verified() const override;
  bool ends_without_switch() override { return true; }

 private:
  Mirror(Child source, Child target, MirrorOptions options);
  MirrorFilter& filter() const { return static_cast<MirrorFilter&>(*filter_); }
  Result<void> claim();
  void give_back_permissions();
  Task<void> enter_graph(Job& job);
  Task<void> leave_graph();
  bool is_nearly_in_sync() const;
  uint64_t bytes_in_drain() const { return options_.requests_max * options_.filter.request_size; }
  bool shall_check() const;
  Task<void> check(Job& job);
  Task<void> check_before_drain(Job& job);
  void look_at_round(Job& job);
  std::vector<Move> switch_moves() const;
  bool switches(const Job& job) const { return job.shall_switch(); }

  MirrorOptions options_;
  Child source_;
  Child target_;  ///< Until the filter has it.
  Child filter_;
  Child replaced_;  ///< Keeps options_.replaces there; or none.
  /// Keep the disks between source and base there, for a commit: it counts on their order.
  std::vector<Child> between_;
  bool entered_ = false;
  std::unique_ptr<MirrorCopy> copy_;
  std::unique_ptr<CopyCheck> check_;  ///< With `verify`.
  bool checked_ = false;              ///< All of it, at some time.
  uint64_t verified_ = 0;             ///< When the filter has gone.
  std::unique_ptr<Drain> drain_;
  std::vector<Move> moves_;
  /// Edges whose permissions were changed, and what they were.
  struct Changed {
    Child* edge;
    Permissions before;
  };
  std::vector<Changed> changed_;
  uint64_t round_began_ = 0;  ///< Dirty bytes then; 0: no round yet.
  uint64_t rounds_ = 0;
  bool overtaken_ = false;
  bool gone_blocking_ = false;
};

}  // namespace byre
