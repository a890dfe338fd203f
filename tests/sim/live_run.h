// SPDX-License-Identifier: Apache-2.0
/// Jobs on a disk that guests use, with power losses, deaths of the process, I/O errors and full
/// disks at any moment (docs/engine.md, J).
///
/// A chain of one to three disks is made, and for some jobs a target.  Guests read, write, zero,
/// discard and flush; every sector that they read is judged by the oracle, and so is every sector
/// of the disk after a cut.  Meanwhile somebody starts the job, pauses it, lets it go on, changes
/// its speed and mode, drains the graph, and cancels or completes it, at any moment.
/// A mirror or a backup may have to be verified; then its target may lie, and the job finds that,
/// or it was written anew. A backup may go into an image over the disk, which others read
/// meanwhile: they see the moment; or copy from a snapshot-access node, and let go there what the
/// target has.  A job that has switched leads the guests to the target: from
/// then on that is the disk that counts.  One that was cancelled or has failed leaves the disk that
/// there was.  All images are sound at each cut, each with its own choice of what is left.
#pragma once

#include <algorithm>
#include <map>
#include <memory>

#include "block/drain.h"
#include "block/entrance.h"
#include "block/raw.h"
#include "block/snapshot_access.h"
#include "checker.h"
#include "job/layers.h"
#include "job/live/backup.h"
#include "job/live/commit_below.h"
#include "job/live/job_list.h"
#include "job/live/mirror.h"
#include "job/live/stream.h"
#include "lying.h"
#include "oracle.h"
#include "qcow2/image.h"
#include "qcow2/ops/create.h"
#include "scenarios.h"
#include "stuck.h"

namespace byre::live {

using Contents = std::vector<std::byte>;

enum class LiveJob : uint8_t { mirror, commit, stream, backup, commit_below };

struct LiveDisk {
  std::string name;
  std::string below;
  bool raw = false;
};

/// What is done at one moment of a history in which nothing else goes wrong and nobody else
/// meddles.
struct Intrusion {
  enum class Kind : uint8_t {
    none,
    pause,
    cancel,
    finish_soon,  ///< A cancel without force: a mirror that is ready leaves its copy.
    complete,
    drain,
    kill,
    error,     ///< Of an operation on a disk.
    no_space,  ///< Of one that needs blocks, and all that follow.
  };
  Kind kind = Kind::none;
  /// How many steps of the simulation after the job began, each one coroutine that goes on or one
  /// operation that completes; of an error: which operation of its kind since guests began.
  uint64_t at = 0;
  std::string disk = {};
  Op::Kind operation = Op::Kind::write;
};

class LiveRun {
 public:
  /// With an intrusion: one process, and guests that do little on a small disk.
  LiveRun(uint64_t seed, LiveJob kind, Verdict& verdict, std::optional<Intrusion> intrusion = {})
      : seed_(seed),
        kind_(kind),
        prng_(seed * 64 + 40 + static_cast<uint64_t>(kind)),
        cut_prng_(seed),
        late_prng_(seed * 64 + 32 + static_cast<uint64_t>(kind)),
        verify_prng_(seed * 64 + 48 + static_cast<uint64_t>(kind)),
        extra_prng_(seed * 64 + 56 + static_cast<uint64_t>(kind)),
        verdict_(verdict),
        intrusion_(std::move(intrusion)),
        size_(prng_.between(24, intrusion_ ? 96 : 320) * KiB / 2 / kSectorSize * kSectorSize),
        oracle_(size_),
        asked_(size_ / kSectorSize) {}

  void run() {
    ++verdict_.histories;
    make_disks();
    for (uint64_t lives = intrusion_ ? 1 : prng_.between(1, 3); ok() && lives != 0; --lives)
      live(lives == 1);
  }
  uint64_t hash() const { return hash_; }
  /// Steps of the simulation while the job lived.
  uint64_t steps_of_job() const { return steps_of_job_; }
  /// By disk: the operations since guests began.
  const std::map<std::string, FaultPlan>& operations() const { return operations_; }

 private:
  bool ok() const { return verdict_.failure.empty(); }
  template <class... Parts>
  void fail_with(const Parts&... parts) {
    if (!ok()) return;
    verdict_.failure = cat("seed ", seed_, ": ", parts..., "; ", text_, log_, intruded());
    verdict_.disks = disks_;
  }
  std::string intruded() const;
  void note(std::string_view what) { log_ += cat(", ", what); }

  // --- The disks --------------------------------------------------------------------------------

  void make_disks();
  void make(const LiveDisk& disk, uint64_t size);
  bool is_raw(const std::string& name) const {
    return std::ranges::any_of(disks_of_chain_,
                               [&](const LiveDisk& disk) { return disk.name == name && disk.raw; });
  }
  static Task<void> create(FileOpener& opener, std::string name, CreateOptions options);
  /// `depth`: of a disk below that is written, too.
  static Task<Child> open(Reactor& reactor, FileOpener& opener, LiveDisk wanted, bool writable,
                          uint32_t depth = 0);
  struct Process;
  Task<Child> open_target(Process& process);
  /// Whether the job is to be verified, and with which target.
  void draw_verify(Process& process);
  Task<void> fill(Reactor& reactor, FileOpener& opener, LiveDisk made);
  Result<Contents> contents(SimDisks& disks, const LiveDisk& disk);
  static Task<Contents> read_whole(Reactor& reactor, FileOpener& opener, LiveDisk wanted);
  /// What the guests find at first.
  void set_initial();
  void add_bitmap();
  Task<void> add_bitmap(Reactor& reactor, FileOpener& opener);

  /// Another program has left the refcounts of the base at zero: who reads it does not mind.
  void damage(const LiveDisk& base);

  // --- A process --------------------------------------------------------------------------------

  struct Process {
    SimReactor reactor;
    SimGate opener;
    Scope scope;
    JobList jobs;
    Event changed;
    std::unique_ptr<Entrance> entrance;
    Child target;    ///< Until the job has it.
    Child kept;      ///< Keeps it open.
    Child keeper;    ///< To the filter that keeps the moment, where a backup copies from there.
    Child snapshot;  ///< What it keeps.
    Device* switched_to = nullptr;
    Device* lent = nullptr;  ///< Open for writing as long as the job needs it.
    Stuck* stuck = nullptr;  ///< The target, where it stops to answer.
    std::shared_ptr<bool> lied = std::make_shared<bool>(false);  ///< The target has.
    Job* job = nullptr;                                          ///< While it lives.
    uint64_t guests = 0;
    uint64_t readers = 0;  ///< Of the target, while the job runs.
    bool job_ended = false;
    bool ended = false;
    std::optional<Result<void>> result;
    Process(uint64_t seed, SimDisks& disks)
        : reactor({.seed = seed, .steps_max = 20'000'000}),
          opener(reactor, disks),
          scope(reactor.ready()),
          jobs(reactor),
          changed(reactor.ready()) {}
    bool has_switched() const { return switched_to && &entrance->device() == switched_to; }
  };

  /// The disk that counts.
  const LiveDisk& current(const Process& process) const {
    return process.has_switched() ? target_ : top_;
  }

  void plan_faults();
  void plan_intrusion();
  /// False: the process dies here.
  bool intrude(Process& process);
  /// The graph is drained for `ns`: nobody reads meanwhile, not even the job (J1).
  Task<void> hold_still(Process& process, const Drain& drain, int64_t ns);
  Task<void> hold_still(Process& process);
  /// How often the disks were read that a drain keeps still.  They may write by themselves: where a
  /// filter of the job is drained, what lies below is not.
  uint64_t reads() const;
  Prng& cut_prng() { return intrusion_ ? cut_prng_ : prng_; }
  void live(bool last);
  uint64_t syncs_lost() const;

  /// What the next process uses.
  void go_on_with(const LiveDisk& disk);

  /// A stream may have led the header elsewhere.
  void see_what_lies_below();
  static Task<std::string> backing_name(Reactor& reactor, FileOpener& opener, std::string disk);
  void end(const std::shared_ptr<Process>& process, bool lost, bool last);

  // --- Guests -----------------------------------------------------------------------------------

  Task<void> guest(Process& process, uint64_t seed);
  Task<void> request(Process& process, Prng& prng);
  /// Of a target over the disk: whoever reads it gets the moment, byte for byte, or an error.
  Task<void> read_target(Process& process, uint64_t seed);
  void check_read_of_target(const Process& process, uint64_t at, const Contents& bytes,
                            const Result<void>& done);

  // --- The job ----------------------------------------------------------------------------------

  OnError draw_on_error() { return static_cast<OnError>(prng_.below(4)); }

  JobOptions draw_job_options();
  Result<std::unique_ptr<JobWork>> make_mirror(Child source, Process& process);
  Result<std::unique_ptr<JobWork>> make_stream(Child image);
  Result<std::unique_ptr<JobWork>> make_commit_below(Child image);
  Result<std::unique_ptr<JobWork>> make_backup(Child source, Process& process);
  Result<std::unique_ptr<JobWork>> make_work(Process& process, Child source);

  /// The job, created; for a backup its moment has been taken, and what the disk held then.
  Task<Job*> start_job(Process& process);
  Task<void> take_moment(Process& process, Job& job);
  /// A filter enters that keeps the moment: the source of a backup that lets go what it has copied.
  Task<void> enter_keeper(Process& process);
  static Task<void> leave_keeper(Process& process);

  /// What the snapshot has no longer, the target has; all of it when the job has ended well.
  Task<void> check_let_go(Process& process, const Job& job);

  /// The bitmap has nothing that no guest asked for: a stream changes no bytes (B1).
  Task<void> check_recorded(Process& process);

  /// Whatever has changed since one of the disks that were saved, the bitmap has.  `mixed`: parts
  /// of several may have been saved.
  void check_bitmap(const DirtyBits& bits, const Contents& now, std::string_view when,
                    bool mixed = false);

  /// The job has ended well: the target has the wanted parts as they were.
  void check_backup();

  /// What users do to it, until it has ended.
  Task<void> control(Process& process);

  /// The target shows the disk itself again.
  void check_shown(const Process& process);

  /// What was opened for writing is so no longer, unless it is the guests' disk now.
  void check_loan(const Process& process);

  /// A copy that was left complete holds the disk as it was at some moment since `began`.
  void check_copy(uint64_t began);
  Task<void> end_backup(Process& process, const Job& job);

  /// With no request under way, what is not dirty is alike (J3).
  Task<void> compare_with_target(const MirrorFilter& filter);
  /// All that is asked of it is that it ends.
  static void lead_on(Job& job, uint64_t steps);
  Task<void> meddle(Process& process, Job& job, bool is_to_end);
  Task<void> use(Process& process);
  Task<void> main(Process& process);

  // --- What must hold ---------------------------------------------------------------------------

  void check_cut(const LiveDisk& counts);

  /// The bitmap has what was changed since the last backup that ended well; perhaps the one that is
  /// just ending.
  void check_bitmap_at_cut(SimDisks& disks, const Contents& now);
  Task<std::unique_ptr<DirtyBits>> read_bitmap(Reactor& reactor, FileOpener& opener);
  void check_images(SimDisks& disks, std::string_view when);

  const uint64_t seed_;
  const LiveJob kind_;
  Prng prng_;
  Prng cut_prng_;   ///< So that an intrusion meets the same history whatever is cut.
  Prng late_prng_;  ///< For choices that came later: the others stay what they were.
  Prng verify_prng_;
  Prng extra_prng_;  ///< The same again.
  Verdict& verdict_;
  const std::optional<Intrusion> intrusion_;
  const uint64_t size_;
  Oracle oracle_;
  std::vector<bool> asked_;  ///< By sector: guests asked for a change.
  SimDisks disks_;
  std::vector<LiveDisk> disks_of_chain_;  ///< The lowest first.
  LiveDisk top_;
  LiveDisk target_;
  bool top_only_ = false;
  bool target_is_over_top_ = false;
  bool only_on_change_ = false;
  bool verify_ = false;
  bool lets_go_ = false;  ///< The source of the backup is a snapshot.
  bool target_is_fresh_ = true;
  uint32_t depth_ = 0;
  bool base_is_lent_ = false;  ///< It is opened for writing for each job.
  std::optional<LiveDisk> ended_with_;
  std::optional<uint64_t> copy_began_;  ///< When somebody asked for a copy without a switch.
  std::string faulty_;                  ///< The disk that has errors.
  std::string damaged_;                 ///< The disk that is not sound until it has been written.
  std::string text_;
  std::string log_;
  uint64_t life_ = 0;
  uint64_t lost_before_ = 0;  ///< Syncs that had lost something when the process began.
  uint64_t steps_of_job_ = 0;
  std::map<std::string, FaultPlan> operations_;
  Mirror* mirror_ = nullptr;
  Backup* backup_ = nullptr;
  uint32_t version_of_top_ = 3;
  /// What the disk held when the bitmap began anew; several where nobody knows which one counts.
  std::vector<Contents> saved_;
  Contents moment_;  ///< Of the backup.
  std::unique_ptr<DirtyBits> wanted_;
  bool may_break_ = false;
  BitmapSync bitmap_sync_ = BitmapSync::never;
  uint64_t hash_ = 0;
};

}  // namespace byre::live
