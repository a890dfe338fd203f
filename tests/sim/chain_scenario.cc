// SPDX-License-Identifier: Apache-2.0
/// Chains of images that are committed and rebased, with power losses, deaths of the process, I/O
/// errors and full disks at any moment (docs/engine.md, O9).
///
/// A chain of two to four disks is made, each with contents of its own: qcow2 of every shape, at
/// the bottom raw as well; of different sizes.  What each shows is kept beside, byte by byte.  Then
/// a job runs on it in one process after another: stopped, killed, cut off by the power, met by
/// errors; in the end one that may finish.  At each cut all disks are cut together, each with
/// its own choice: the images are sound, and the top reads what it did.  Sometimes the job is run
/// again from there.  When it has finished, the base shows what the top does, and behind its end
/// what it had; the top is empty; or the header names the new backing disk, and the top reads the
/// same still.  A clean end leaves no leak.
#include <algorithm>
#include <memory>

#include "block/raw.h"
#include "checker.h"
#include "job/commit.h"
#include "job/rebase.h"
#include "oracle.h"
#include "qcow2/ops/create.h"
#include "qcow2/repair/check.h"
#include "scenarios.h"

namespace byre {

namespace {

using Contents = std::vector<std::byte>;

struct Layer {
  std::string name;
  std::string below;  ///< Empty: nothing.
  bool raw = false;
  bool has_data_file = false;
  std::string made_as;
  Contents shows;
  std::string_view format() const { return raw ? "raw" : "qcow2"; }
};

Task<Contents> read_all(Device& disk) {
  Contents bytes(disk.size());
  constexpr uint64_t kStep = 64 * KiB;
  for (uint64_t at = 0; at < bytes.size(); at += kStep) {
    const uint64_t length = std::min(kStep, bytes.size() - at);
    co_await disk.read(at, MutableBytes(bytes).subspan(at, length), IoTag::read_guest);
  }
  co_return std::move(bytes);
}

uint64_t first_difference(const Contents& left, const Contents& right) {
  const auto [at, other] = std::mismatch(left.begin(), left.end(), right.begin(), right.end());
  return static_cast<uint64_t>(at - left.begin());
}

class ChainRun {
 public:
  ChainRun(uint64_t seed, bool commits, Verdict& verdict)
      : seed_(seed), commits_(commits), prng_(seed * 64 + (commits ? 33 : 34)), verdict_(verdict) {}

  void run() {
    if (commits_) {
      make_chain("", prng_.between(2, 4), "l");
      top_ = layers_.back().name;
      depth_ = static_cast<uint32_t>(prng_.between(1, layers_.size() - 1));
      base_ = layers_[layers_.size() - 1 - depth_].name;
      empties_ = depth_ == 1 && !prng_.one_in(4);
    } else {
      make_chains_to_rebase();
    }
    verdict_.histories = 1;
    if (!ok()) return;
    top_shows_ = layer(top_).shows;
    base_showed_ = commits_ ? layer(base_).shows : Contents();
    for (uint64_t lives = prng_.below(4); ok() && !finished_ && lives != 0; --lives) live(false);
    if (ok() && !finished_) live(true);
    if (ok() && !finished_) fail("the job did not finish although nothing failed");
    if (ok()) check_end();
  }

  uint64_t hash() const { return hash_; }

 private:
  bool ok() const { return verdict_.failure.empty(); }
  void fail(std::string why) {
    if (!ok()) return;
    verdict_.failure = cat("seed ", seed_, ": ", why, "; ", text());
    verdict_.disks = disks_;
  }
  /// The chain, and what is done to it.
  std::string text() const {
    std::string text;
    for (const Layer& each : layers_) {
      text += cat(each.name, " (", each.made_as, ", ", hex(each.shows.size()), ")",
                  each.below.empty() ? "" : cat(" over ", each.below), ", ");
    }
    if (commits_) return cat(text, top_, " into ", base_, empties_ ? ", emptied" : "");
    return cat(text, top_, " onto ", next_.empty() ? "nothing" : next_,
               compressed_ ? ", compressed" : "");
  }
  Layer& layer(const std::string& name) { return *std::ranges::find(layers_, name, &Layer::name); }

  // --- The disks --------------------------------------------------------------------------------

  /// `count` disks, one over the other, the lowest over `below`.
  void make_chain(std::string below, uint64_t count, std::string_view names) {
    for (uint64_t i = 0; ok() && i < count; ++i) {
      Layer made{.name = cat(names, i), .below = below};
      made.raw = below.empty() && prng_.one_in(4) && i + 1 < count;
      make(made);
      below = made.name;
      layers_.push_back(std::move(made));
    }
  }

  /// The overlay over one chain, and another chain, which may begin at a disk that both have.
  void make_chains_to_rebase() {
    const bool rooted = prng_.one_in(2);
    if (rooted) make_chain("", prng_.between(1, 2), "root");
    const std::string root = rooted ? layers_.back().name : "";
    const uint64_t old_count = prng_.between(root.empty() ? 0 : 1, 2);
    make_chain(root, old_count, "old");
    const std::string old = layers_.empty() ? "" : layers_.back().name;
    const uint64_t new_count = prng_.below(3);
    make_chain(root, new_count, "new");
    next_ = new_count != 0 ? layers_.back().name : prng_.one_in(2) ? root : "";
    Layer top{.name = "top", .below = old};
    if (!ok()) return;
    make(top);
    top_ = top.name;
    layers_.push_back(std::move(top));
  }

  CreateOptions draw_options(const Layer& made) {
    CreateOptions options;
    options.size = prng_.between(32, 384) * KiB / 2;
    options.cluster_size = uint64_t{512} << prng_.below(5);
    options.version = prng_.one_in(4) ? 2 : 3;
    if (options.version == 3 && prng_.one_in(5)) {
      options.extended_l2 = true;
      options.cluster_size = 16 * KiB;
    }
    if (options.version == 3) options.refcount_bits = 1u << prng_.below(7);
    options.lazy_refcounts = options.version == 3 && prng_.one_in(6);
    options.backing_file = made.below;
    if (!made.below.empty()) options.backing_format = layer(made.below).format();
    if (options.version == 3 && prng_.one_in(8)) options.data_file = made.name + ".data";
    return options;
  }

  void make(Layer& made) {
    const CreateOptions options = draw_options(made);
    made.shows.resize(options.size);
    made.made_as = made.raw ? "raw"
                            : cat("version ", options.version, ", clusters of ",
                                  options.cluster_size, options.extended_l2 ? ", extended" : "",
                                  options.data_file.empty() ? "" : ", data file");
    if (!made.below.empty()) {
      const Contents& below = layer(made.below).shows;
      copy(MutableBytes(made.shows), Bytes(below).first(std::min(below.size(), made.shows.size())));
    }
    SimReactor reactor(prng_.next());
    SimGate opener(reactor, disks_);
    if (made.raw) {
      disks_[made.name].set_size(options.size);
    } else {
      made.has_data_file = !options.data_file.empty();
      if (made.has_data_file) disks_[options.data_file];
      if (Result<void> done = reactor.finish(create(opener, made.name, options)); !done) {
        return fail(cat("not created: ", done.error().message()));
      }
    }
    // Where nothing can be punched, what is used again holds old bytes.
    if (prng_.one_in(3)) {
      SimDisk::Options& how = disks_.find(made.name)->second.options();
      how.can_punch = how.can_zero_range = false;
    }
    const Result<void> written = reactor.finish(fill(reactor, opener, made));
    if (!written) fail(cat(made.name, " cannot be written: ", written.error().message()));
    for (auto& [name, disk] : disks_) disk.power_cut(CutChoice::all());
  }

  static Task<void> create(FileOpener& opener, std::string name, CreateOptions options) {
    RawDevice file(co_await opener.open(name, {.writable = true, .create = true}),
                   RawOptions{.growable = true});
    Result<void> done = co_await create_image(file, options).result();
    Result<void> closed = co_await file.close().result();
    co_await std::move(done);
    co_await std::move(closed);
  }

  Task<Child> open(Reactor& reactor, FileOpener& opener, const Layer& wanted, bool writable) {
    if (wanted.raw) {
      Child raw =
          std::make_unique<RawDevice>(co_await opener.open(wanted.name, {.writable = writable}),
                                      RawOptions{.growable = writable});
      co_return std::move(raw);
    }
    Child image = co_await Image::open(reactor, opener, wanted.name, {.writable = writable});
    co_return std::move(image);
  }

  Task<void> fill(Reactor& reactor, FileOpener& opener, Layer& made) {
    Child disk = co_await open(reactor, opener, made, true);
    // Version 2 does not grow with one.
    const bool snapshot = !made.raw && !made.has_data_file &&
                          static_cast<Image&>(*disk).geometry().version == 3 && prng_.one_in(4);
    Result<void> done;
    for (uint64_t i = prng_.between(1, 10); done && i != 0; --i) {
      done = co_await change(*disk, made).result();
      if (done && snapshot && i == 3) {
        done = co_await static_cast<Image&>(*disk).create_snapshot({.name = "s"}).result();
        if (!done && done.error().code() == Errc::invalid) done = {};  // Refcounts of one bit.
      }
    }
    Result<void> closed = co_await disk.close().result();
    co_await std::move(done);
    co_await std::move(closed);
  }

  /// A write, a stream or zeros.
  Task<void> change(Device& disk, Layer& made) {
    const uint64_t sectors = made.shows.size() / kSectorSize;
    const uint64_t cluster = disk.preferred_size();
    uint64_t at = prng_.below(sectors) * kSectorSize;
    uint64_t length = prng_.between(1, 40) * kSectorSize;
    if (prng_.one_in(2)) {
      at = round_down(at, cluster);
      length = round_up(length, cluster);
    }
    length = std::min(length, made.shows.size() - at);
    const MutableBytes range = MutableBytes(made.shows).subspan(at, length);
    if (prng_.one_in(4)) {
      fill_zero(range);
      co_await disk.zero(at, length, {.may_unmap = prng_.one_in(2)});
      co_return;
    }
    const bool as_data = prng_.one_in(6);  // Zeros that are written.
    if (as_data) {
      fill_zero(range);
    } else {
      fill_sectors(range, at, ++tokens_);
    }
    const bool ends_whole = (at + length) % cluster == 0 || at + length == made.shows.size();
    const bool streams = !made.raw && !made.has_data_file && at % cluster == 0 && ends_whole;
    const Contents bytes(range.begin(), range.end());
    co_await disk.write(at, bytes, {.compressed = streams && prng_.one_in(2)});
  }

  // --- The job ----------------------------------------------------------------------------------

  struct Process {
    SimReactor reactor;
    SimGate opener;
    Scope scope;
    Progress progress;
    std::unique_ptr<Image> top;
    Child next;
    std::unique_ptr<Commit> commit;
    std::unique_ptr<Rebase> rebase;
    std::optional<Result<void>> result;
    bool ended = false;
    Process(uint64_t seed, SimReactor::Delays delays, SimDisks& disks)
        : reactor({.seed = seed, .delays = delays}),
          opener(reactor, disks),
          scope(reactor.ready()) {}
  };

  ImageOptions options_of_top() const {
    return {.writable = true,
            .writable_below = commits_ ? depth_ : 0,
            .table_cache_size = 4 * KiB,
            .growth_step = 64 * KiB};
  }

  Task<void> job(Process& process) {
    process.top = co_await Image::open(process.reactor, process.opener, top_, options_of_top());
    const uint64_t piece = uint64_t{16 * KiB} << piece_;
    if (commits_) {
      process.commit = co_await Commit::make(
          *process.top, process.progress,
          {.depth = depth_, .empty = empties_, .requests_max = 4, .request_size = piece});
      co_await process.commit->run();
      co_return;
    }
    std::optional<BackingName> name;
    if (!next_.empty()) {
      process.next = co_await open(process.reactor, process.opener, layer(next_), false);
      name = BackingName{next_, std::string(layer(next_).format())};
    }
    process.rebase = std::make_unique<Rebase>(
        *process.top, process.next, process.progress,
        RebaseOptions{.compressed = compressed_, .requests_max = 4, .request_size = piece});
    co_await process.rebase->check_room(name);
    co_await process.rebase->run(name);
  }

  Task<void> main(Process& process) {
    process.result.emplace(co_await job(process).result());
    const bool done = process.result->has_value();
    if (done) finished_ = true;
    Result<void> closed;
    if (process.top) closed = co_await process.top->close().result();
    if (process.next) (void)co_await process.next.close().result();
    if (done && !closed) process.result.emplace(std::move(closed));
    process.ended = true;
  }

  void plan_faults() {
    const auto chosen = prng_.below(disks_.size());
    for (size_t i = 0; auto& [name, disk] : disks_) {
      if (i++ != chosen) continue;
      if (prng_.one_in(2)) {
        disk.options().faults = FaultPlan::draw(prng_);
      } else if (prng_.one_in(2)) {
        disk.options().capacity = disk.allocated_bytes() + prng_.below(16) * 4096;
      }
    }
  }

  /// One process.  `undisturbed`: the last one, which must finish.
  void live(bool undisturbed) {
    piece_ = prng_.below(3);
    compressed_ = !commits_ && !layer(top_).has_data_file && prng_.one_in(4);
    SimReactor::Delays delays;
    const auto process = std::make_shared<Process>(prng_.next(), delays, disks_);
    SimReactor& reactor = process->reactor;
    const uint64_t lost_before = syncs_lost();
    const bool faulty = !undisturbed && prng_.one_in(3);
    if (faulty) plan_faults();
    const bool dies = !undisturbed && !prng_.one_in(3);
    const uint64_t dies_after = dies ? prng_.between(1, prng_.one_in(2) ? 150 : 1500) : UINT64_MAX;
    const uint64_t stops_after =
        !undisturbed && prng_.one_in(4) ? prng_.between(1, 600) : UINT64_MAX;
    const uint64_t cut_one_in = prng_.between(3, 40);
    uint64_t deliveries = 0;
    uint64_t cuts = 0;
    reactor.after_delivery = [&] {
      if (!ok()) return;
      ++verdict_.deliveries;
      if (++deliveries == stops_after) process->progress.stop();
      constexpr uint64_t kCutsMax = 24;
      if (cuts == kCutsMax || !prng_.one_in(cut_one_in)) return;
      ++cuts;
      check_cut();
      if (!ok()) reactor.fail(verdict_.failure);
    };
    process->scope.spawn(main(*process));
    while (ok() && !process->ended && deliveries < dies_after) {
      if (!reactor.advance()) fail(cat("stands still: ", reactor.failure()));
    }
    reactor.after_delivery = nullptr;
    hash_ = Prng(hash_ * 0x9e3779b97f4a7c15u + reactor.trace().hash()).next();
    end(process, faulty || stops_after != UINT64_MAX, syncs_lost() != lost_before);
  }

  uint64_t syncs_lost() const {
    uint64_t lost = 0;
    for (const auto& [name, disk] : disks_) lost += disk.syncs_lost();
    return lost;
  }

  /// `lost`: a sync failed and dropped something: nobody can go on before the power has failed.
  void end(const std::shared_ptr<Process>& process, bool may_fail, bool lost) {
    if (process->ended && !*process->result && !may_fail) {
      fail(cat("the job failed: ", process->result->error().message()));
    }
    clean_ = process->ended && process->result->has_value();
    if (!process->ended) {
      process->reactor.kill_all();
      finished_ = false;  // What was made durable is seen by running it again.
    }
    if (!clean_) SimReactor::bury(process);
    const bool power = !clean_ && (prng_.one_in(2) || lost);
    const uint64_t choices = prng_.next();
    Prng prng(choices);
    for (auto& [name, disk] : disks_) {
      disk.settle();
      disk.options().faults.clear();
      disk.options().capacity = 0;
      if (clean_ && ok()) {
        disk.power_cut(CutChoice::none());  // Success is durable.
      } else if (power && ok()) {
        disk.power_cut(draw_choice(prng, disk));
      }
    }
    if (ok()) check_disks(disks_, "at the end of a process");
  }

  // --- What must hold ---------------------------------------------------------------------------

  void check_cut() {
    ++verdict_.cuts;
    SimDisks cut;
    for (const auto& [name, disk] : disks_) cut.emplace(name, disk.cut(draw_choice(prng_, disk)));
    check_disks(cut, "at a cut");
    if (ok() && prng_.one_in(6)) run_again(cut);
  }

  void check_disks(SimDisks& disks, std::string_view when) {
    for (const Layer& each : layers_) {
      if (each.raw) continue;
      const ImageVerdict verdict = check_bytes(disks.find(each.name)->second);
      if (verdict.sound()) continue;
      fail(cat(when, ": ", each.name, " is not sound: ", verdict.text()));
      verdict_.disks = disks;
      return;
    }
    expect(disks, layer(top_), top_shows_, when);
    if (!ok()) verdict_.disks = disks;
  }

  /// The disk reads so.
  void expect(SimDisks& disks, const Layer& wanted, const Contents& expected,
              std::string_view when) {
    SimReactor reactor(1);
    SimGate opener(reactor, disks);
    const Result<Contents> found = reactor.finish(read_layer(reactor, opener, wanted));
    if (!found) return fail(cat(when, ": ", wanted.name, ": ", found.error().message()));
    if (*found == expected) return;
    fail(cat(when, ": ", wanted.name, " of ", found->size(), " bytes (", expected.size(),
             ") reads otherwise from ", hex(first_difference(*found, expected)), " on"));
  }
  Task<Contents> read_layer(Reactor& reactor, FileOpener& opener, const Layer& wanted) {
    Child disk = co_await open(reactor, opener, wanted, false);
    Result<Contents> found = co_await read_all(*disk).result();
    (void)co_await disk.close().result();
    co_return std::move(found);
  }

  /// From a cut: the job runs to its end.
  void run_again(SimDisks& disks) {
    const bool finished = finished_;
    const auto process = std::make_shared<Process>(prng_.next(), SimReactor::Delays{}, disks);
    process->scope.spawn(main(*process));
    while (ok() && !process->ended) {
      if (!process->reactor.advance()) {
        fail(cat("again: stands still: ", process->reactor.failure()));
      }
    }
    finished_ = finished;
    if (!ok() || !*process->result) SimReactor::bury(process);
    // A rebase that was cut off behind its end finds its own backing disk below.
    if (ok() && !*process->result) {
      return fail(cat("again from a cut: ", process->result->error().message()));
    }
    if (ok()) check_disks(disks, "again from a cut");
    if (ok() && commits_) expect(disks, layer(base_), expected_base(), "again from a cut");
  }

  /// What the base shows when all is done: the overlay, and behind its end what it had.
  Contents expected_base() const {
    Contents shows = base_showed_;
    shows.resize(std::max(shows.size(), top_shows_.size()));
    copy(MutableBytes(shows), Bytes(top_shows_));
    return shows;
  }

  void check_end() {
    if (commits_) {
      expect(disks_, layer(base_), expected_base(), "at the end");
      if (ok() && empties_) check_empty();
    } else {
      check_name();
    }
    if (!ok()) return;
    // What earlier processes left is theirs.
    SimDisks copy = disks_;
    SimReactor reactor(2);
    SimGate opener(reactor, copy);
    const Result<CheckReport> freed = reactor.finish(free_leaks(opener));
    if (!freed) return fail(cat("freeing leaks: ", freed.error().message()));
    const ImageVerdict verdict = check_bytes(copy.find(top_)->second);
    if (!verdict.sound() || verdict.leaks != 0) {
      return fail(cat("leaks that nobody can free: ", verdict.text()));
    }
    expect(copy, layer(top_), top_shows_, "after its leaks were freed");
  }
  Task<CheckReport> free_leaks(FileOpener& opener) {
    RawDevice file(co_await opener.open(top_, {.writable = true}));
    Result<CheckReport> report = co_await check_image(file, {.repair = Repair::leaks}).result();
    Result<void> closed = co_await file.close().result();
    co_await std::move(closed);
    co_return std::move(report);
  }

  void check_empty() {
    SimReactor reactor(3);
    SimGate opener(reactor, disks_);
    const Result<bool> empty = reactor.finish(is_empty(reactor, opener));
    if (!empty) return fail(empty.error().message());
    if (!*empty) fail("the overlay still has something of its own");
  }
  Task<bool> is_empty(Reactor& reactor, FileOpener& opener) {
    const std::unique_ptr<Image> image = co_await Image::open(reactor, opener, top_, {});
    bool empty = true;
    for (uint64_t at = 0; at < image->size();) {
      const Extent extent = co_await image->status(at, image->size() - at);
      empty &= !extent.allocated;
      at += extent.length;
    }
    co_await image->close();
    co_return empty;
  }

  void check_name() {
    SimReactor reactor(4);
    SimGate opener(reactor, disks_);
    const Result<std::string> name = reactor.finish(backing_name(reactor, opener));
    if (!name) return fail(name.error().message());
    if (*name != next_)
      fail(cat("the header names ", quoted(*name), " instead of ", quoted(next_)));
  }
  Task<std::string> backing_name(Reactor& reactor, FileOpener& opener) {
    const std::unique_ptr<Image> image = co_await Image::open(reactor, opener, top_, {});
    std::string name = image->head().backing_file.value_or("");
    co_await image->close();
    co_return name;
  }

  const uint64_t seed_;
  const bool commits_;
  Prng prng_;
  Verdict& verdict_;
  SimDisks disks_;
  std::vector<Layer> layers_;
  std::string top_;
  std::string base_;  ///< Of a commit.
  std::string next_;  ///< Of a rebase: the new backing disk; empty: none.
  uint32_t depth_ = 1;
  bool empties_ = true;
  bool compressed_ = false;
  uint64_t piece_ = 0;
  Token tokens_ = 0;
  Contents top_shows_;
  Contents base_showed_;
  bool finished_ = false;
  bool clean_ = false;
  uint64_t hash_ = 0;
};

Verdict play(uint64_t seed, bool commits) {
  Verdict verdict;
  ChainRun run(seed, commits, verdict);
  run.run();
  verdict.hash = run.hash();
  return verdict;
}

}  // namespace

Verdict play_commit(uint64_t seed, const RunOptions&) { return play(seed, true); }
Verdict play_rebase(uint64_t seed, const RunOptions&) { return play(seed, false); }

}  // namespace byre
