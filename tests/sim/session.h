// SPDX-License-Identifier: Apache-2.0
/// A history: what clients do to one image in several incarnations of a simulated machine, and how
/// each incarnation ends.  run_history() plays it and checks, against oracle.h and checker.h:
///  * every read, while it runs;
///  * at each sampled power loss: the bytes of the image (C1, C2); that the engine opens it, reads
///    what may be there (C3, C4), closes it sound; that a second cut during that changes nothing
///    (C7); that a data file that must stay valid as a raw image holds the same as the disk;
///  * after each incarnation the same for real, and after a clean close: no leak, nothing lost.
/// A History is a value: equal histories give equal trace hashes, and a shorter one can be made by
/// leaving steps out.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "knobs.h"
#include "qcow2/ops/amend.h"
#include "sim/fault_plan.h"
#include "sim/sim_gate.h"

namespace byre {

struct Step {
  enum class Kind : uint8_t {
    read,
    write,
    zero,
    discard,
    flush,
    pause,
    resize,
    create_snapshot,
    apply_snapshot,  ///< `offset` chooses among those there are, like the next one.
    delete_snapshot,
    check,          ///< While everything else goes on.
    add_bitmap,     ///< `length` is its granularity.
    remove_bitmap,  ///< `offset` chooses among those there are, like the next three.
    clear_bitmap,
    toggle_bitmap,    ///< Enables or disables it.
    merge_bitmap,     ///< `length` chooses the other one.
    drain,            ///< Nothing runs for `pause_ns`.
    toggle_filter,    ///< Puts a filter above the disk, or takes it away.
    replace_backing,  ///< By a copy of it.
    toggle_snapshot,  ///< Keeps the disk as it is now, or ends that; `may_unmap`: copies may fail.
    read_snapshot,    ///< What was kept.
  };
  Kind kind = Kind::read;
  uint64_t offset = 0;
  uint64_t length = 0;                      ///< Of a resize: the new size of the disk.
  Preallocation mode = Preallocation::off;  ///< Of a resize.
  bool fua = false;
  bool may_unmap = false;
  bool compressed = false;
  bool own_entrance = false;  ///< It enters the graph by itself.
  int64_t pause_ns = 0;
  /// Of a guest, or an operation on the image: it enters the graph.  A check does not: it takes
  /// long, and its reads can be held back.
  bool is_request() const { return kind != Kind::pause && kind != Kind::check && !is_of_graph(); }
  bool is_of_snapshot() const {
    return kind == Kind::create_snapshot || kind == Kind::apply_snapshot ||
           kind == Kind::delete_snapshot;
  }
  bool is_of_bitmap() const { return kind >= Kind::add_bitmap && kind <= Kind::merge_bitmap; }
  bool is_of_graph() const { return kind >= Kind::drain; }
  std::string text() const;
};

struct Incarnation {
  enum class End : uint8_t {
    close,      ///< All requests are answered, the image is closed.
    kill,       ///< The process dies, the machine incarnations on.
    power_cut,  ///< The power fails.
  };
  uint64_t seed = 0;
  std::vector<Step> warm_up;  ///< One after another, before the clients begin.
  std::vector<std::vector<Step>> clients;
  /// Made of the image when the clients have ended, before it is closed.
  std::optional<AmendOptions> amend = {};
  End end = End::close;
  uint64_t ends_after = UINT64_MAX;  ///< Not by close: after so many deliveries,
  int64_t ends_at_ns = INT64_MAX;    ///< or at this time.
  /// The errors in `faults` are such that writing goes on: a flush at the end succeeds.
  bool keeps_writing = false;
  FaultPlan faults;         ///< Of the image's disk and the data file's, once they are open.
  uint64_t room = 0;        ///< ENOSPC after so many more bytes of blocks; 0: never.
  uint64_t cut_one_in = 0;  ///< Checks a cut after one delivery in so many.
  uint64_t cuts_max = 0;
  bool every_cut = false;  ///< At each delivery: none, all, prefixes, single ones, pairs.
};

struct History {
  uint64_t seed = 0;
  Knobs knobs;
  std::vector<Incarnation> incarnations;
  std::string text() const;
};

struct RunOptions {
  /// Asked before each history is played; false: it is not.
  std::function<bool(const History&)> begun;
  std::function<void(std::string_view)> sink;  ///< Gets the trace.
  /// Orders what happens in the first incarnation while its clients run.
  Chooser* chooser = nullptr;
  bool resume_at_once = true;  ///< See SimReactor::Options.
  /// Judges disks at rest; gives what is wrong with them.
  std::function<std::string(const SimDisks&)> judge;
};

struct RunReport {
  std::string failure;  ///< Empty: all is well.
  SimDisks disks;       ///< At the failure, or at the end.
  uint64_t hash = 0;
  uint64_t requests = 0;
  uint64_t request_errors = 0;
  uint64_t deliveries = 0;
  uint64_t cuts = 0;
  uint64_t header_writes = 0;  ///< Of the first sector, in the incarnation that had most.
  FaultPlan faults;  ///< Of the first incarnation: its counts say how many operations of each kind
                     ///< it met.
};

RunReport run_history(const History& history, const RunOptions& options = {});

/// Random requests in the windows of `knobs`.
std::vector<Step> draw_steps(const Knobs& knobs, Prng& prng, size_t count);

}  // namespace byre
