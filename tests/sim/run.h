// SPDX-License-Identifier: Apache-2.0
/// Run: one history being played; what session.h promises is here.
///
/// It owns the disks, the oracle and the models, and for each incarnation a Process: the reactor
/// and the image on it, which are abandoned when it is killed.  run.cc is the course of an
/// incarnation, run_steps.cc what its clients do, run_cuts.cc its end and the power losses.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "bitmap_model.h"
#include "checker.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "graph_use.h"
#include "oracle.h"
#include "qcow2/image.h"
#include "session.h"

namespace byre {

inline uint64_t mix_seeds(uint64_t a, uint64_t b) {
  return Prng(a * 0x9e3779b97f4a7c15u + b).next();
}

/// The windows, cut off at the end of the disk.
std::vector<Window> windows_of(const Knobs& knobs);

/// Reads the windows of an image, piece by piece.  Behind the end of a disk that has become smaller
/// there are the zeros that it would show if it grew again.
Task<void> read_windows(Device& image, const std::vector<Window>& windows,
                        std::vector<std::vector<std::byte>>& out);

/// A snapshot as the model has it, by its name.
struct Copy {
  uint64_t began = 0;                      ///< While it is being made: when that began.
  bool certain = false;                    ///< It is there, after any cut.
  bool looked_at = false;                  ///< Nobody else's to apply or delete just now.
  bool going = false;                      ///< It is being deleted, or that failed: it may be gone.
  std::set<uint64_t> sizes;                ///< Which its disk may have.
  std::vector<Oracle::Contents> contents;  ///< Of each window, once it was made.
};

class Run {
 public:
  Run(const History& history, const RunOptions& options)
      : history_(history),
        options_(options),
        knobs_(history.knobs),
        windows_(windows_of(history.knobs)),
        oracle_(history.knobs.size),
        size_(history.knobs.size),
        bitmaps_(windows_) {}

  RunReport run();

 private:
  bool ok() const { return report_.failure.empty(); }

  template <class... Parts>
  void fail_with(const Parts&... parts) {
    if (!ok()) return;
    report_.failure = cat("incarnation ", incarnation_, ": ", parts...);
    report_.disks = disks_;
    if (options_.sink) options_.sink(report_.failure);
  }

  void judge(std::string_view when) {
    if (!options_.judge || !ok()) return;
    const std::string verdict = options_.judge(disks_);
    if (!verdict.empty()) fail_with(when, ": ", verdict);
  }

  // --- One incarnation
  // ---------------------------------------------------------------------------------

  /// What the process of one incarnation owns; abandoned when it is killed.
  struct Process {
    SimReactor reactor;
    SimGate opener;
    Scope scope;
    std::unique_ptr<Image> image;
    GraphUse graph;  ///< Where knobs.graph says so.
    Event clients_done;
    size_t clients = 0;
    bool ended = false;
    bool closed_well = false;
    Process(SimReactor::Options reactor_options, SimDisks& disks, SimGate::Options gate_options)
        : reactor(reactor_options),
          opener(reactor, disks, gate_options),
          scope(reactor.ready()),
          clients_done(reactor.ready()) {}
  };

  void plant_damage();
  /// Opening a damaged image changes it: power losses meanwhile.
  void cut_while_it_heals(SimReactor& reactor, const Incarnation& incarnation);
  void live(const Incarnation& incarnation);

  SimDisk& disk() { return disks_.find("image")->second; }
  ImageVerdict verdict_of(const SimDisk& disk) const {
    return check_bytes(disk, knobs_.aliased_host);
  }
  /// Sound; of a damaged image: not worse than it was (V).
  bool acceptable(const ImageVerdict& verdict) const {
    if (!damaged_) return verdict.sound();
    return verdict.undercounted <= undercounted_ && verdict.copied_shared <= copied_shared_;
  }
  SimDisk* data_disk() {
    return knobs_.data_file == Knobs::DataFile::none ? nullptr : &disks_.find("data")->second;
  }
  /// The disks that the engine writes to.
  std::vector<SimDisk*> written() {
    std::vector<SimDisk*> disks{&disk()};
    if (data_disk()) disks.push_back(data_disk());
    return disks;
  }
  uint64_t syncs_lost() {
    uint64_t lost = 0;
    for (const SimDisk* each : written()) lost += each->syncs_lost();
    return lost;
  }
  /// The windows as a raw data file has them; it may be longer than a disk that was cut off.
  std::vector<std::vector<std::byte>> raw_windows(const SimDisks& disks, uint64_t size) const;
  SimGate::Options gate_options() const {
    return {.block_size = knobs_.block_size, .direct = knobs_.block_size > 1};
  }

  /// Nothing but an error, or zeros, where an entry led behind the end of the file (V, C4).
  Result<void> look_at_lost(SimReactor& reactor, Image& image) const;
  /// At the end of the incarnation that met it as an error it still is one.
  Task<void> look_again_at_lost(Image& image);
  /// Reads everything there is, as the first thing in an incarnation.
  void first_look(Process& process);

  /// The engine agrees: none is lost.
  static Result<void> check_usable_bitmaps(const Image& image);

  void work(const Incarnation& incarnation, Process& process);

  /// C6: the size is the one that was answered last, or one that may have been set since.
  Result<void> check_size(uint64_t size) const {
    if (size == size_ || sizes_wanted_.contains(size)) return {};
    return corrupt("the disk has ", size, " bytes instead of ", size_);
  }

  Task<Result<void>> resize(uint64_t size, Preallocation mode, Process& process);
  std::vector<uint64_t> begin_resize(uint64_t size);
  Task<void> amend(AmendOptions wanted, Process& process);

  Task<Result<void>> check(bool free_leaks, Process& process);
  Task<Result<void>> create_snapshot(Process& process);
  Task<Result<void>> apply_snapshot(uint64_t which, Process& process);
  Task<Result<void>> delete_snapshot(uint64_t which, Process& process);
  std::vector<Oracle::Contents> copy_since(uint64_t began) const;
  /// That the disk may have at this moment.
  std::set<uint64_t> sizes_now() const {
    std::set<uint64_t> sizes(sizes_wanted_.begin(), sizes_wanted_.end());
    sizes.insert(size_);
    return sizes;
  }
  std::optional<std::string> choose(uint64_t which) const;
  Task<Result<void>> change_bitmap(const Step& step, Process& process);
  bool surely_holds_data(uint64_t offset, uint64_t length);
  Task<void> look_at_snapshots(Reactor& reactor, FileOpener& opener,
                               const std::vector<Snapshot>& list, bool settle);
  Task<void> read_snapshot(Reactor& reactor, FileOpener& opener, const std::string& name,
                           std::vector<std::vector<std::byte>>& data);
  void settle_copy(Copy& copy, const std::vector<std::vector<std::byte>>& data) const;

  // graph_steps.cc
  Task<Result<void>> change_graph(const Step& step, Process& process);
  Task<Result<void>> drain(int64_t ns, Process& process);
  Task<Result<void>> toggle_filter(Process& process);
  Task<Result<void>> replace_backing(Process& process);
  uint64_t operations() const;
  // snapshot_steps.cc
  Task<Result<void>> toggle_snapshot(bool copies_fail, Process& process);
  Task<Result<void>> begin_snapshot(bool copies_fail, Process& process);
  Task<Result<void>> end_snapshot(Process& process);
  Task<Result<void>> read_snapshot_of_filter(uint64_t offset, uint64_t length, Process& process);

  /// The whole program of one incarnation.
  Task<void> main(const Incarnation& incarnation, Process& process);

  Task<void> client(const std::vector<Step>& steps, Process& process, size_t number);
  Task<void> perform(const Step& step, Process& process);

  // --- Its end ----------------------------------------------------------------------------------

  void end(const Incarnation& incarnation, Process& process, const ImageVerdict& before, bool lost);
  void random_cut(Prng& prng);
  void every_cut();
  void check_cuts(const CutChoice& choice);
  /// `data`: what is left of the data file; without it, of `choice`'s kind.
  void check_cut(const CutChoice& choice, bool twice, std::optional<CutChoice> data = {});
  CutChoice draw_data_cut(Prng& prng);

  const History& history_;
  const RunOptions& options_;
  Knobs knobs_;
  std::vector<Window> windows_;
  SimDisks disks_;
  Oracle oracle_;
  RunReport report_;
  uint64_t hash_ = 0;
  size_t incarnation_ = 0;
  bool faulty_ = false;
  bool unclean_ = false;
  bool cut_ = false;
  uint64_t size_;  ///< Of the disk, as it was answered last.
  std::multiset<uint64_t> sizes_wanted_;
  uint64_t resizes_ = 0;        ///< Under way.
  std::set<uint64_t> cut_off_;  ///< The changes that the only one is,
  uint64_t cut_to_ = 0;         ///< once the disk has this size.
  uint64_t drift_ = 0;          ///< Missing COPIED flags at the start of the incarnation.
  uint64_t leaks_ = 0;          ///< Likewise.
  bool damaged_ = false;        ///< The image was damaged;
  uint64_t undercounted_ = 0;   ///< what it had then,
  uint64_t copied_shared_ = 0;  ///< and this.
  bool lost_fails_ = false;     ///< The range that leads nowhere failed when it was opened.
  uint64_t leaks_in_file_ = 0;
  std::map<std::string, Copy> copies_;
  uint64_t copies_made_ = 0;
  bool amended_raw_ = false;
  BitmapModel bitmaps_;
  uint64_t bitmaps_made_ = 0;
  uint64_t backings_made_ = 0;
  bool unclean_bitmaps_ = false;  ///< The last incarnation left them a superset.
};

}  // namespace byre
