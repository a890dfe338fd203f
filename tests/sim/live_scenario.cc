// SPDX-License-Identifier: Apache-2.0
/// Jobs on a disk that guests use, with power losses, deaths of the process, I/O errors and full
/// disks at any moment (docs/engine.md, J).
///
/// A chain of one to three disks is made, and for some jobs a target.  Guests read, write, zero,
/// discard and flush; every sector that they read is judged by the oracle, and so is every sector
/// of the disk after a cut.  Meanwhile somebody starts the job, pauses it, lets it go on, changes
/// its speed and mode, drains the graph, and cancels or completes it, at any moment.
/// A job that has switched leads the guests to the target: from then on that is the disk that
/// counts.  One that was cancelled or has failed leaves the disk that there was.  All images are
/// sound at each cut, each with its own choice of what is left.
#include <algorithm>
#include <memory>

#include "block/drain.h"
#include "block/entrance.h"
#include "block/raw.h"
#include "checker.h"
#include "job/layers.h"
#include "job/live/backup.h"
#include "job/live/commit_below.h"
#include "job/live/job_list.h"
#include "job/live/mirror.h"
#include "job/live/stream.h"
#include "oracle.h"
#include "qcow2/image.h"
#include "qcow2/ops/create.h"
#include "scenarios.h"

namespace byre {

namespace {

using Contents = std::vector<std::byte>;

enum class LiveJob : uint8_t { mirror, commit, stream, backup, commit_below };

struct LiveDisk {
  std::string name;
  std::string below;
  bool raw = false;
};

class LiveRun {
 public:
  LiveRun(uint64_t seed, LiveJob kind, Verdict& verdict)
      : seed_(seed),
        kind_(kind),
        prng_(seed * 64 + 40 + static_cast<uint64_t>(kind)),
        verdict_(verdict),
        size_(prng_.between(24, 320) * KiB / 2 / kSectorSize * kSectorSize),
        oracle_(size_) {}

  void run() {
    verdict_.histories = 1;
    make_disks();
    for (uint64_t lives = prng_.between(1, 3); ok() && lives != 0; --lives) live(lives == 1);
  }
  uint64_t hash() const { return hash_; }

 private:
  bool ok() const { return verdict_.failure.empty(); }
  template <class... Parts>
  void fail_with(const Parts&... parts) {
    if (!ok()) return;
    verdict_.failure = cat("seed ", seed_, ": ", parts..., "; ", text_, log_);
    verdict_.disks = disks_;
  }
  void note(std::string_view what) { log_ += cat(", ", what); }

  // --- The disks --------------------------------------------------------------------------------

  void make_disks() {
    const uint64_t below = kind_ == LiveJob::commit         ? prng_.between(1, 2)
                           : kind_ == LiveJob::commit_below ? prng_.between(2, 3)
                           : kind_ == LiveJob::stream       ? prng_.between(1, 3)
                                                            : prng_.below(2);
    std::string name;
    for (uint64_t i = 0; ok() && i <= below; ++i) {
      LiveDisk disk{.name = cat("d", i), .below = name};
      disk.raw = i == 0 && prng_.one_in(4) && (kind_ != LiveJob::backup || below != 0);
      // Those below may be shorter than the disk of the guests, or longer.
      uint64_t size = size_;
      if (i != below && prng_.one_in(3)) size = prng_.between(8, size_ / kSectorSize) * kSectorSize;
      make(disk, size);
      name = disk.name;
      disks_of_chain_.push_back(disk);
    }
    top_ = disks_of_chain_.back();
    depth_ = static_cast<uint32_t>(below == 0 ? 0 : prng_.between(1, below));
    if (kind_ == LiveJob::commit_below) depth_ = static_cast<uint32_t>(prng_.between(1, below - 1));
    if (kind_ == LiveJob::mirror || kind_ == LiveJob::backup) {
      target_ = {.name = "target", .raw = prng_.one_in(3)};
      if (!top_.below.empty() && prng_.one_in(2)) {
        top_only_ = true;
        target_.raw = false;
        target_.below = top_.below;
      }
      make(target_, size_);
    } else if (kind_ == LiveJob::commit) {
      target_ = disks_of_chain_[below - depth_];
    }
    if (!ok()) return;
    set_initial();
    if (ok() && kind_ == LiveJob::backup && version_of_top_ == 3 && prng_.one_in(2)) add_bitmap();
  }

  void make(const LiveDisk& disk, uint64_t size) {
    CreateOptions options;
    options.size = size;
    options.cluster_size = uint64_t{512} << prng_.below(6);
    options.version = prng_.one_in(4) ? 2 : 3;
    if (disk.name != "target") version_of_top_ = options.version;
    if (options.version == 3 && prng_.one_in(5)) {
      options.extended_l2 = true;
      options.cluster_size = 16 * KiB;
    }
    if (options.version == 3) options.refcount_bits = 1u << prng_.between(1, 6);
    options.lazy_refcounts = options.version == 3 && prng_.one_in(6);
    options.backing_file = disk.below;
    if (!disk.below.empty()) options.backing_format = is_raw(disk.below) ? "raw" : "qcow2";
    text_ += cat(disk.name, disk.raw ? " (raw" : cat(" (version ", options.version),
                 ", clusters of ", options.cluster_size, ", ", hex(size), " bytes)",
                 disk.below.empty() ? "" : cat(" over ", disk.below), ", ");
    SimReactor reactor(prng_.next());
    SimGate opener(reactor, disks_);
    if (disk.raw) {
      disks_[disk.name].set_size(size);
    } else if (Result<void> done = reactor.finish(create(opener, disk.name, options)); !done) {
      return fail_with("not created: ", done.error().message());
    }
    if (prng_.one_in(3)) {
      SimDisk::Options& how = disks_.find(disk.name)->second.options();
      how.can_punch = how.can_zero_range = false;
    }
    if (disk.name != "target") {
      const Result<void> filled = reactor.finish(fill(reactor, opener, disk));
      if (!filled) fail_with(disk.name, " cannot be written: ", filled.error().message());
    }
    for (auto& [name, each] : disks_) each.power_cut(CutChoice::all());
  }
  bool is_raw(const std::string& name) const {
    return std::ranges::any_of(disks_of_chain_,
                               [&](const LiveDisk& disk) { return disk.name == name && disk.raw; });
  }
  static Task<void> create(FileOpener& opener, std::string name, CreateOptions options) {
    RawDevice file(co_await opener.open(name, {.writable = true, .create = true}),
                   RawOptions{.growable = true});
    Result<void> done = co_await create_image(file, options).result();
    Result<void> closed = co_await file.close().result();
    co_await std::move(done);
    co_await std::move(closed);
  }
  /// `depth`: of a disk below that is written, too.
  static Task<Child> open(Reactor& reactor, FileOpener& opener, LiveDisk wanted, bool writable,
                          uint32_t depth = 0) {
    if (wanted.raw) {
      Child raw =
          std::make_unique<RawDevice>(co_await opener.open(wanted.name, {.writable = writable}),
                                      RawOptions{.growable = writable});
      co_return std::move(raw);
    }
    Child image = co_await Image::open(reactor, opener, wanted.name,
                                       {.writable = writable,
                                        .writable_below = depth,
                                        .table_cache_size = 4 * KiB,
                                        .growth_step = 64 * KiB});
    co_return std::move(image);
  }
  Task<void> fill(Reactor& reactor, FileOpener& opener, LiveDisk made) {
    Child disk = co_await open(reactor, opener, made, true);
    Result<void> done;
    for (uint64_t i = prng_.between(1, 8); done && i != 0; --i) {
      const uint64_t at = prng_.below(disk->size() / kSectorSize) * kSectorSize;
      const uint64_t length = std::min(prng_.between(1, 60) * kSectorSize, disk->size() - at);
      if (prng_.one_in(4)) {
        done = co_await disk->zero(at, length, {.may_unmap = prng_.one_in(2)}).result();
      } else {
        Contents bytes(length);
        fill_sectors(bytes, at, oracle_.fresh_token());
        done = co_await disk->write(at, bytes).result();
      }
    }
    Result<void> closed = co_await disk.close().result();
    co_await std::move(done);
    co_await std::move(closed);
  }

  Result<Contents> contents(SimDisks& disks, const LiveDisk& disk) {
    SimReactor reactor(1);
    SimGate opener(reactor, disks);
    return reactor.finish(read_whole(reactor, opener, disk));
  }
  static Task<Contents> read_whole(Reactor& reactor, FileOpener& opener, LiveDisk wanted) {
    Child disk = co_await open(reactor, opener, wanted, false);
    Contents bytes(disk->size());
    Result<void> read = co_await disk->read(0, bytes, IoTag::read_guest).result();
    (void)co_await disk.close().result();
    co_await std::move(read);
    co_return std::move(bytes);
  }
  /// What the guests find at first.
  void set_initial() {
    const Result<Contents> bytes = contents(disks_, top_);
    if (!bytes) return fail_with("the starting disk: ", bytes.error().message());
    for (uint64_t at = 0; at < size_; at += kSectorSize) {
      const Result<Token> token =
          recognise(Bytes(*bytes).subspan(at, kSectorSize), at / kSectorSize);
      if (!token) return fail_with("the starting disk: ", token.error().message());
      oracle_.set_initial(at / kSectorSize, *token);
    }
  }

  void add_bitmap() {
    SimReactor reactor(prng_.next());
    SimGate opener(reactor, disks_);
    const Result<void> added = reactor.finish(add_bitmap(reactor, opener));
    if (!added) return fail_with("no bitmap: ", added.error().message());
    for (auto& [name, each] : disks_) each.power_cut(CutChoice::all());
    const Result<Contents> bytes = contents(disks_, top_);
    if (!bytes) return fail_with("the starting disk: ", bytes.error().message());
    saved_.push_back(*bytes);
  }
  Task<void> add_bitmap(Reactor& reactor, FileOpener& opener) {
    const std::unique_ptr<Image> image =
        co_await Image::open(reactor, opener, top_.name, {.writable = true});
    Result<void> added =
        co_await image->add_bitmap({.name = "b", .granularity = uint64_t{512} << prng_.below(6)})
            .result();
    Result<void> closed = co_await image->close().result();
    co_await std::move(added);
    co_await std::move(closed);
  }

  // --- A process --------------------------------------------------------------------------------

  struct Process {
    SimReactor reactor;
    SimGate opener;
    Scope scope;
    JobList jobs;
    Event changed;
    std::unique_ptr<Entrance> entrance;
    Child target;  ///< Until the job has it.
    Child kept;    ///< Keeps it open.
    Device* switched_to = nullptr;
    uint64_t guests = 0;
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

  void plan_faults() {
    const uint64_t which = prng_.below(disks_.size());
    for (uint64_t i = 0; auto& [name, disk] : disks_) {
      if (i++ != which) continue;
      faulty_ = name;
      if (prng_.one_in(2)) {
        disk.options().faults = FaultPlan::draw(prng_);
      } else {
        disk.options().capacity = disk.allocated_bytes() + prng_.below(16) * 4096;
      }
      note(cat("errors of ", name));
    }
  }

  void live(bool last) {
    ++life_;
    log_ = cat("life ", life_);
    const auto process = std::make_shared<Process>(prng_.next(), disks_);
    SimReactor& reactor = process->reactor;
    faulty_.clear();
    const bool dies = prng_.one_in(3);
    const uint64_t dies_after = dies ? prng_.between(1, prng_.one_in(2) ? 300 : 3000) : UINT64_MAX;
    const uint64_t cut_one_in = prng_.between(4, 60);
    uint64_t deliveries = 0;
    uint64_t cuts = 0;
    uint64_t lost_before = syncs_lost();
    reactor.after_delivery = [&] {
      if (!ok()) return;
      ++verdict_.deliveries;
      ++deliveries;
      oracle_.set_time(reactor.now().ns);
      constexpr uint64_t kCutsMax = 24;
      if (cuts == kCutsMax || !prng_.one_in(cut_one_in) || !process->entrance) return;
      ++cuts;
      check_cut(current(*process));
      if (!ok()) reactor.fail(verdict_.failure);
    };
    process->scope.spawn(main(*process));
    while (ok() && !process->ended && deliveries < dies_after) {
      if (!reactor.advance()) fail_with("stands still: ", reactor.failure());
    }
    reactor.after_delivery = nullptr;
    hash_ = Prng(hash_ * 0x9e3779b97f4a7c15u + reactor.trace().hash()).next();
    end(process, syncs_lost() != lost_before, last);
  }

  uint64_t syncs_lost() const {
    uint64_t lost = 0;
    for (const auto& [name, disk] : disks_) lost += disk.syncs_lost();
    return lost;
  }

  /// What the next process uses.
  void go_on_with(const LiveDisk& disk) {
    if (kind_ == LiveJob::stream || kind_ == LiveJob::commit_below) return see_what_lies_below();
    if (disk.name == top_.name) return;
    const std::string name = disk.name;
    if (kind_ == LiveJob::commit) {
      while (disks_of_chain_.back().name != name) {
        disks_.erase(disks_.find(disks_of_chain_.back().name));
        disks_of_chain_.pop_back();
      }
      top_ = disks_of_chain_.back();
      depth_ = disks_of_chain_.size() > 1 ? 1 : 0;
      if (depth_ != 0) target_ = disks_of_chain_[disks_of_chain_.size() - 2];
      return;
    }
    // The disks change their parts; the old source has what a target may have.
    std::swap(top_, target_);
    disks_of_chain_.back() = top_;
    top_only_ = false;
  }

  /// A stream may have led the header elsewhere.
  void see_what_lies_below() {
    SimReactor reactor(3);
    SimGate opener(reactor, disks_);
    const Result<std::string> below = reactor.finish(backing_name(reactor, opener, top_.name));
    if (!below) return fail_with("after a stream: ", below.error().message());
    while (disks_of_chain_.size() > 1 &&
           disks_of_chain_[disks_of_chain_.size() - 2].name != *below) {
      disks_of_chain_.erase(disks_of_chain_.end() - 2);
    }
    top_.below = *below;
    disks_of_chain_.back() = top_;
    if (depth_ >= disks_of_chain_.size())
      depth_ = static_cast<uint32_t>(disks_of_chain_.size() - 1);
  }
  static Task<std::string> backing_name(Reactor& reactor, FileOpener& opener, std::string disk) {
    const std::unique_ptr<Image> image = co_await Image::open(reactor, opener, disk, {});
    std::string name = image->head().backing_file.value_or("");
    co_await image->close();
    co_return name;
  }

  void end(const std::shared_ptr<Process>& process, bool lost, bool last) {
    const bool clean = process->ended && process->result->has_value();
    if (process->ended && !clean && faulty_.empty() && ok()) {
      fail_with("the process failed: ", process->result->error().message());
    }
    const LiveDisk now = ended_with_.value_or(process->entrance ? current(*process) : top_);
    ended_with_.reset();
    if (!process->ended) process->reactor.kill_all();
    if (!clean || !ok()) SimReactor::bury(process);
    const bool power = !clean && (lost || prng_.one_in(2));
    Prng prng(prng_.next());
    for (auto& [name, disk] : disks_) {
      disk.settle();
      disk.options().faults.clear();
      disk.options().capacity = 0;
      if (clean) {
        disk.power_cut(CutChoice::all());
      } else if (power) {
        disk.power_cut(draw_choice(prng, disk));
      }
    }
    if (!ok()) return;
    go_on_with(now);
    oracle_.process_died();
    copy_began_.reset();
    // Nobody knows whether the backup had ended.
    if (backup_ && !saved_.empty() && !moment_.empty()) saved_.push_back(moment_);
    backup_ = nullptr;
    check_images(disks_, "at the end of a process");
    if (!ok()) return;
    const Result<Contents> bytes = contents(disks_, top_);
    if (!bytes)
      return fail_with("at the end of a process: ", top_.name, ": ", bytes.error().message());
    const Result<void> right = oracle_.observe(0, Bytes(*bytes).first(size_), power || clean);
    if (!right) fail_with("at the end of a process: ", top_.name, ": ", right.error().message());
    (void)last;
  }

  // --- Guests -----------------------------------------------------------------------------------

  Task<void> guest(Process& process, uint64_t seed) {
    Prng prng(seed);
    for (uint64_t i = prng.between(4, 40); ok() && i != 0; --i) {
      co_await request(process, prng);
      if (prng.one_in(3)) {
        co_await process.reactor.sleep(static_cast<int64_t>(prng.below(20)) * kMillisecond / 4);
      }
    }
    --process.guests;
    process.changed.notify();
  }

  Task<void> request(Process& process, Prng& prng) {
    const uint64_t window = prng.one_in(2) ? size_ : std::min<uint64_t>(size_, 64 * KiB);
    uint64_t at = prng.below(window / kSectorSize) * kSectorSize;
    uint64_t length = prng.between(1, prng.one_in(3) ? 64 : 8) * kSectorSize;
    if (prng.one_in(3)) {
      at = round_down(at, 4 * KiB);
      length = round_up(length, 4 * KiB);
    }
    length = std::min(length, size_ - at);
    ++verdict_.requests;
    const uint64_t what = prng.below(16);
    const bool unmap = prng.one_in(2);
    const bool fua = prng.one_in(8);
    const Entrance::Pass pass = co_await process.entrance->enter();
    Device& disk = *pass;
    Result<void> done;
    if (what < 6) {
      Contents bytes(length);
      const Token token = oracle_.fresh_token();
      fill_sectors(bytes, at, token);
      const uint64_t change = oracle_.begin_change(at, length, token);
      done = co_await disk.write(at, bytes, {.fua = fua}).result();
      oracle_.end_change(change, done.has_value(), fua);
    } else if (what < 9) {
      const uint64_t change = oracle_.begin_change(at, length, 0);
      done = co_await disk.zero(at, length, {.may_unmap = unmap, .fua = fua}).result();
      oracle_.end_change(change, done.has_value(), fua);
    } else if (what < 12) {
      const uint64_t change = oracle_.begin_change(at, length, 0, false);
      done = co_await disk.discard(at, length).result();
      oracle_.end_change(change, done.has_value(), false);
    } else if (what < 14) {
      const uint64_t flush = oracle_.begin_flush();
      done = co_await disk.flush().result();
      if (done) oracle_.end_flush(flush);
    } else {
      Contents bytes(length);
      const uint64_t read = oracle_.begin_read();
      done = co_await disk.read(at, bytes, IoTag::read_guest).result();
      if (done) {
        const Result<void> right = oracle_.end_read(read, at, bytes);
        if (!right) {
          fail_with("a guest reads ", disk.name(), " wrong: ", right.error().message());
          process.reactor.fail(verdict_.failure);
        }
      } else {
        oracle_.end_read(read);
      }
    }
    if (done) co_return;
    ++verdict_.request_errors;
    // The target's errors are no business of the guest, before the switch.
    const bool of_target =
        faulty_ == target_.name && (kind_ == LiveJob::mirror || kind_ == LiveJob::backup);
    if (faulty_.empty() || (of_target && !process.has_switched())) {
      fail_with("a guest's request failed: ", done.error().message());
      process.reactor.fail(verdict_.failure);
    }
  }

  // --- The job ----------------------------------------------------------------------------------

  OnError draw_on_error() { return static_cast<OnError>(prng_.below(4)); }

  JobOptions draw_job_options() {
    return {.id = "job",
            .auto_finalize = !prng_.one_in(3),
            .auto_dismiss = false,
            .speed = prng_.one_in(2) ? 512 * KiB << prng_.below(4) : 0,
            .on_source_error = draw_on_error(),
            .on_target_error = draw_on_error()};
  }

  Result<std::unique_ptr<JobWork>> make_mirror(Child source, Process& process) {
    MirrorOptions options;
    options.filter.mode = prng_.one_in(2) ? MirrorMode::background : MirrorMode::write_blocking;
    options.filter.granularity = uint64_t{512} << prng_.below(8);
    options.filter.request_size = std::max<uint64_t>(16 * KiB, options.filter.granularity);
    options.filter.unmap = prng_.one_in(2);
    options.converge = prng_.one_in(2) ? Converge::report : Converge::automatic;
    options.requests_max = static_cast<unsigned>(prng_.between(1, 4));
    if (kind_ == LiveJob::mirror) {
      top_only_ &= target_is_fresh_;
      options.filter.above = top_only_ ? 1 : 0;
      options.filter.target_is_zero = !top_only_ && target_is_fresh_ && prng_.one_in(2);
    }
    Result<std::unique_ptr<Mirror>> work =
        kind_ == LiveJob::commit
            ? Mirror::commit_into(std::move(source), depth_, std::move(options))
            : Mirror::make(std::move(source), std::move(process.target), std::move(options));
    if (!work) return std::move(work).error();
    mirror_ = work->get();
    return std::unique_ptr<JobWork>(*std::move(work));
  }

  Result<std::unique_ptr<JobWork>> make_stream(Child image) {
    StreamOptions options{.requests_max = static_cast<unsigned>(prng_.between(1, 4)),
                          .request_size = 4 * KiB << prng_.below(5)};
    const uint64_t below = disks_of_chain_.size() - 1;
    if (depth_ < below && depth_ != 0) {
      options.depth = depth_;
      const LiveDisk& base = disks_of_chain_[below - depth_ - 1];
      options.base_name = BackingName{base.name, base.raw ? "raw" : "qcow2"};
    }
    Result<std::unique_ptr<Stream>> work = Stream::make(std::move(image), std::move(options));
    if (!work) return std::move(work).error();
    return std::unique_ptr<JobWork>(*std::move(work));
  }

  Result<std::unique_ptr<JobWork>> make_commit_below(Child image) {
    const LiveDisk& base = disks_of_chain_[disks_of_chain_.size() - 2 - depth_];
    CommitBelowOptions options{.depth = depth_,
                               .base_name = {base.name, base.raw ? "raw" : "qcow2"},
                               .requests_max = static_cast<unsigned>(prng_.between(1, 4))};
    options.filter.granularity = uint64_t{512} << prng_.below(8);
    options.filter.request_size = std::max<uint64_t>(16 * KiB, options.filter.granularity);
    Result<std::unique_ptr<CommitBelow>> work =
        CommitBelow::make(std::move(image), std::move(options));
    if (!work) return std::move(work).error();
    return std::unique_ptr<JobWork>(*std::move(work));
  }

  Result<std::unique_ptr<JobWork>> make_backup(Child source, Process& process) {
    BackupOptions options{.on_cbw_error = CbwError::break_snapshot,
                          .cbw_timeout_ns = prng_.one_in(4) ? 2 * kMillisecond : 0,
                          .requests_max = static_cast<unsigned>(prng_.between(1, 4)),
                          .request_size = 4 * KiB << prng_.below(6)};
    options.top_only = top_only_ && saved_.empty();
    if (!saved_.empty()) {
      options.bitmap_sync = static_cast<BitmapSync>(prng_.below(3));
      Result<std::unique_ptr<BackupBitmap>> bitmap =
          ImageBitmap::make(static_cast<Image&>(*source), "b", options.bitmap_sync);
      if (!bitmap) return std::move(bitmap).error();
      options.bitmap = *std::move(bitmap);
    }
    options.compressed = !target_.raw && prng_.one_in(4);
    bitmap_sync_ = options.bitmap_sync;
    may_break_ = options.cbw_timeout_ns != 0;
    Result<std::unique_ptr<Backup>> work =
        Backup::make(std::move(source), std::move(process.target), std::move(options));
    if (!work) return std::move(work).error();
    backup_ = work->get();
    moment_.clear();
    return std::unique_ptr<JobWork>(*std::move(work));
  }

  Result<std::unique_ptr<JobWork>> make_work(Process& process, Child source) {
    if (kind_ == LiveJob::stream) return make_stream(std::move(source));
    if (kind_ == LiveJob::backup) return make_backup(std::move(source), process);
    if (kind_ == LiveJob::commit_below) return make_commit_below(std::move(source));
    return make_mirror(std::move(source), process);
  }

  /// The job, created; for a backup its moment has been taken, and what the disk held then.
  Task<Job*> start_job(Process& process) {
    Child source = Child::to(*process.entrance->edge().get());
    WriteLoans loans;
    if (base_is_lent_) {
      const uint32_t down = kind_ == LiveJob::commit ? depth_ : depth_ + 1;
      const Result<void> lent = co_await loans.take(*layers_of(*source).at(down)->node()).result();
      if (!lent) co_return lent.error().copy();
    }
    Result<std::unique_ptr<JobWork>> work = make_work(process, std::move(source));
    const auto transaction = process.jobs.begin_transaction();
    Result<Job*> job = work ? process.jobs.add(*std::move(work), draw_job_options(), transaction)
                            : Result<Job*>(std::move(work).error());
    if (!job) {
      (void)co_await loans.give_back().result();
      co_return std::move(job).error();
    }
    (*job)->work().loans = std::move(loans);
    if (kind_ == LiveJob::backup) {
      const Result<void> taken = co_await take_moment(process, **job).result();
      if (!taken) {
        co_await process.jobs.drop(*transaction);
        co_return taken.error().copy();
      }
    }
    process.jobs.start(*transaction);
    co_return std::move(job);
  }

  Task<void> take_moment(Process& process, Job& job) {
    Drain drain(process.entrance->edge().node());
    co_await drain.begin();
    Contents now(size_);
    co_await process.entrance->edge()->read(0, now, IoTag::read_guest);
    moment_ = std::move(now);
    if (!saved_.empty()) {
      auto& image = static_cast<Image&>(*process.entrance->edge());
      wanted_ = co_await image.read_bitmap("b");
      check_bitmap(*wanted_, moment_, "at the moment of a backup");
    }
    co_await backup_->take_moment(job, &drain);
  }

  /// Whatever has changed since one of the disks that were saved, the bitmap has.  `mixed`: parts
  /// of several may have been saved.
  void check_bitmap(const DirtyBits& bits, const Contents& now, std::string_view when,
                    bool mixed = false) {
    const auto is_covered = [&](uint64_t at, const Contents& saved) {
      return bits.get(bits.granule_of(at)) ||
             std::equal(&now[at], &now[at] + kSectorSize, &saved[at]);
    };
    std::vector<uint64_t> covered(saved_.size(), size_);  // Up to where.
    for (uint64_t at = 0; at < size_; at += kSectorSize) {
      bool by_any = false;
      for (size_t i = 0; i < saved_.size(); ++i) {
        const bool is_here = is_covered(at, saved_[i]);
        by_any |= is_here;
        if (!is_here && covered[i] == size_) covered[i] = at;
      }
      if (!by_any) return fail_with(when, ": the bitmap lacks ", hex(at));
    }
    if (!mixed && std::ranges::find(covered, size_) == covered.end()) {
      fail_with(when, ": the bitmap lacks ", hex(covered.front()));
    }
  }

  /// The job has ended well: the target has the wanted parts as they were.
  void check_backup() {
    SimDisks disks = disks_;
    for (auto& [name, disk] : disks) {
      disk.options().faults.clear();
      disk.power_cut(CutChoice::none());  // Success is durable.
    }
    const Result<Contents> bytes = contents(disks, target_);
    if (!bytes) return fail_with("the backup: ", bytes.error().message());
    for (uint64_t at = 0; at < size_; at += kSectorSize) {
      if (wanted_ && !wanted_->get(wanted_->granule_of(at))) continue;
      if (std::equal(&moment_[at], &moment_[at] + kSectorSize, &(*bytes)[at])) continue;
      return fail_with("the backup differs at ", hex(at));
    }
  }

  /// What users do to it, until it has ended.
  Task<void> control(Process& process) {
    co_await process.reactor.sleep(static_cast<int64_t>(prng_.below(8)) * kMillisecond);
    if (kind_ == LiveJob::mirror || kind_ == LiveJob::backup) {
      if (kind_ == LiveJob::backup && !target_is_fresh_) co_return;
      process.target = co_await open(process.reactor, process.opener, target_, true);
      if (kind_ == LiveJob::mirror) process.switched_to = process.target.get();
      if (kind_ == LiveJob::backup) process.kept = process.target.hold();
    } else if (kind_ == LiveJob::commit) {
      process.switched_to = layers_of(*process.entrance->edge())[depth_];
    }
    Job* job = co_await start_job(process);
    target_is_fresh_ = false;
    const bool is_to_end = prng_.one_in(2);  // By being left alone.
    for (uint64_t steps = 0; job->status() != JobStatus::concluded; ++steps) {
      if (!ok()) co_return;
      co_await process.reactor.sleep(static_cast<int64_t>(prng_.below(24)) * kMillisecond / 4 + 1);
      if (steps > 60) {  // Long enough: whatever holds it back ends.
        if (faulty_.empty()) {
          if (job->is_paused()) (void)job->resume();
          (void)job->set_speed(0);
          (void)job->complete();
          (void)job->finalize();
        } else {
          (void)job->cancel(true);
        }
        continue;
      }
      co_await meddle(process, *job, is_to_end);
    }
    note(cat("ended ", job->error() ? job->error().message() : "well"));
    const bool may_fail = !faulty_.empty() || (kind_ == LiveJob::backup && may_break_);
    if (job->error() && job->error().code() != Errc::cancelled && !may_fail) {
      fail_with("the job failed: ", job->error().message());
    }
    if (kind_ == LiveJob::backup) co_await end_backup(process, *job);
    const bool switched = process.has_switched();
    const bool switches = kind_ == LiveJob::mirror || kind_ == LiveJob::commit;
    if (!job->error() && switches && job->shall_switch() != switched) {
      fail_with("the job ended well, and ", switched ? "switched" : "did not switch");
    }
    if (job->error() && switched) fail_with("the job ended with an error, and switched");
    if (copy_began_ && !job->error() && !job->shall_switch()) check_copy(*copy_began_);
    if (copy_began_) oracle_.end_read(*copy_began_);
    copy_began_.reset();
    (void)job->dismiss();
    process.job_ended = true;
    process.changed.notify();
  }

  /// A copy that was left complete holds the disk as it was at some moment since `began`.
  void check_copy(uint64_t began) {
    SimDisks disks = disks_;
    for (auto& [name, disk] : disks) disk.options().faults.clear();
    const Result<Contents> bytes = contents(disks, target_);
    if (!bytes) return fail_with("the copy: ", bytes.error().message());
    const Result<void> right = oracle_.end_read(began, 0, Bytes(*bytes).first(size_));
    if (!right) fail_with("the copy: ", right.error().message());
    copy_began_.reset();
  }

  Task<void> end_backup(Process& process, const Job& job) {
    backup_ = nullptr;
    if (!job.error()) check_backup();
    if (saved_.empty() || bitmap_sync_ == BitmapSync::never) co_return;
    if (!job.error()) saved_ = {moment_};
    if (!job.error() || bitmap_sync_ == BitmapSync::on_success) co_return;
    // What the bitmap no longer has, the target has got.
    auto& image = static_cast<Image&>(*process.entrance->edge());
    const std::unique_ptr<DirtyBits> left = co_await image.read_bitmap("b");
    SimDisks disks = disks_;
    for (auto& [name, disk] : disks) {
      disk.options().faults.clear();
      disk.power_cut(CutChoice::none());
    }
    const Result<Contents> bytes = contents(disks, target_);
    if (!bytes) co_return fail_with("a part of a backup: ", bytes.error().message());
    for (uint64_t at = 0; at < size_; at += kSectorSize) {
      const uint64_t granule = left->granule_of(at);
      if (!wanted_->get(granule) || left->get(granule)) continue;
      if (!std::equal(&moment_[at], &moment_[at] + kSectorSize, &(*bytes)[at])) {
        co_return fail_with("neither bitmap nor target has ", hex(at));
      }
      for (Contents& saved : saved_)
        copy(MutableBytes(saved).subspan(at, kSectorSize), Bytes(moment_).subspan(at, kSectorSize));
    }
  }

  /// With no request under way, what is not dirty is alike (J3).
  Task<void> compare_with_target(const MirrorFilter& filter) {
    Contents source(size_);
    Contents target(size_);
    Result<void> read = co_await filter.below().read(0, source, IoTag::read_guest).result();
    if (read) read = co_await filter.target().read(0, target, IoTag::read_guest).result();
    if (!read) co_return;  // A disk with errors.
    const auto [at, other] = std::ranges::mismatch(source, target);
    if (at == source.end()) co_return;
    fail_with("nothing is dirty, and the target differs from ",
              hex(static_cast<uint64_t>(at - source.begin())), " on");
  }

  Task<void> meddle(Process& process, Job& job, bool is_to_end) {
    switch (prng_.below(14)) {
      case 0:
        (void)job.pause();
        break;
      case 1:
      case 2:
        if (job.is_paused()) (void)job.resume();
        break;
      case 3:
        (void)job.set_speed(prng_.one_in(2) ? 0 : prng_.between(1, 64) * 256 * KiB);
        break;
      case 4:
        if (mirror_ && job.status() < JobStatus::waiting) {
          (void)mirror_->set_mode(MirrorMode::write_blocking);
        }
        break;
      case 5: {
        Child hold = process.entrance->edge().hold();  // It may be a filter that goes.
        {
          Drain drain(hold.node());
          co_await drain.begin();
          co_await process.reactor.sleep(static_cast<int64_t>(prng_.below(4)) * kMillisecond);
          const MirrorFilter* filter = mirror_ ? mirror_->filter_in_use() : nullptr;
          // Its last copies are made while it holds a drain itself.
          const bool is_held = job.status() < JobStatus::waiting;
          if (filter && is_held && !filter->is_dirty()) co_await compare_with_target(*filter);
        }
        co_await hold.close();
        break;
      }
      case 6:
        if (!is_to_end && prng_.one_in(4)) (void)job.cancel(true);
        break;
      case 7:
        if (!is_to_end && job.status() == JobStatus::ready && prng_.one_in(2)) {
          if (!copy_began_) copy_began_ = oracle_.begin_read();
          (void)job.cancel(false);
        }
        if (!is_to_end && job.status() == JobStatus::pending) (void)job.cancel(true);
        break;
      default:
        (void)job.complete();
        (void)job.finalize();
        break;
    }
  }

  Task<void> use(Process& process) {
    const uint64_t below = disks_of_chain_.size() - 1;
    const bool is_possible = kind_ == LiveJob::mirror || kind_ == LiveJob::backup ||
                             below >= (kind_ == LiveJob::commit_below ? 2 : 1);
    uint32_t written = 0;
    if (kind_ == LiveJob::commit) written = depth_;
    if (kind_ == LiveJob::commit_below && is_possible) {
      depth_ = std::min(depth_, static_cast<uint32_t>(below - 1));
      written = depth_ + 1;
    }
    // It may be open for reading until the job begins.
    base_is_lent_ = written != 0 && prng_.one_in(2);
    if (base_is_lent_) {
      written = 0;
      note("the base is open for reading");
    }
    {
      Child disk = co_await open(process.reactor, process.opener, top_, true, written);
      process.entrance = std::make_unique<Entrance>(std::move(disk));
      co_await process.entrance->edge().set_permissions(
          {.uses = {.read = true, .write = true}, .shares = {.read = true, .write = true}});
    }
    if (prng_.one_in(3)) plan_faults();
    process.guests = prng_.between(1, 3);
    for (uint64_t i = process.guests; i != 0; --i)
      process.scope.spawn(guest(process, prng_.next()));
    Result<void> controlled;
    mirror_ = nullptr;
    if (is_possible) controlled = co_await control(process).result();
    while (process.guests != 0) co_await process.changed.wait();
    co_await std::move(controlled);
  }

  Task<void> main(Process& process) {
    Result<void> used = co_await use(process).result();
    Result<void> closed;
    if (process.entrance) {
      ended_with_ = current(process);
      closed = co_await process.entrance->edge().close().result();
    }
    if (process.target) (void)co_await process.target.close().result();
    if (process.kept) (void)co_await process.kept.close().result();
    co_await process.jobs.close();
    process.result.emplace(used ? std::move(closed) : std::move(used));
    process.ended = true;
  }

  // --- What must hold ---------------------------------------------------------------------------

  static CutChoice draw_choice(Prng& prng, const SimDisk& disk) {
    switch (prng.below(6)) {
      case 0:
        return CutChoice::none();
      case 1:
        return CutChoice::all();
      case 2: {
        const std::vector<LogEntry> log = disk.log();
        return CutChoice::prefix(log, prng.below(log.size() + 1));
      }
      default:
        return CutChoice::random(prng.next(), prng.one_in(4));
    }
  }

  void check_cut(const LiveDisk& counts) {
    ++verdict_.cuts;
    SimDisks cut;
    for (const auto& [name, disk] : disks_) cut.emplace(name, disk.cut(draw_choice(prng_, disk)));
    check_images(cut, "at a cut");
    if (!ok()) return;
    const Result<Contents> bytes = contents(cut, counts);
    if (!bytes) return fail_with("at a cut: ", counts.name, ": ", bytes.error().message());
    const Result<void> right = oracle_.check_after_cut(0, Bytes(*bytes).first(size_));
    if (!right) fail_with("at a cut: ", counts.name, ": ", right.error().message());
    if (ok() && !saved_.empty()) check_bitmap_at_cut(cut, *bytes);
    if (!ok()) verdict_.disks = cut;
  }

  /// The bitmap has what was changed since the last backup that ended well; perhaps the one that is
  /// just ending.
  void check_bitmap_at_cut(SimDisks& disks, const Contents& now) {
    SimReactor reactor(4);
    SimGate opener(reactor, disks);
    const Result<std::unique_ptr<DirtyBits>> bits = reactor.finish(read_bitmap(reactor, opener));
    if (!bits) return fail_with("at a cut: the bitmap: ", bits.error().message());
    const bool is_ending = backup_ && !moment_.empty();
    if (is_ending) saved_.push_back(moment_);
    check_bitmap(**bits, now, "at a cut", is_ending && bitmap_sync_ == BitmapSync::always);
    if (is_ending) saved_.pop_back();
  }
  Task<std::unique_ptr<DirtyBits>> read_bitmap(Reactor& reactor, FileOpener& opener) {
    const std::unique_ptr<Image> image = co_await Image::open(reactor, opener, top_.name, {});
    Result<std::unique_ptr<DirtyBits>> bits = co_await image->read_bitmap("b").result();
    (void)co_await image->close().result();
    co_return std::move(bits);
  }

  void check_images(SimDisks& disks, std::string_view when) {
    const auto check = [&](const LiveDisk& each) {
      if (each.raw || !ok()) return;
      const ImageVerdict verdict = check_bytes(disks.find(each.name)->second);
      if (verdict.sound()) return;
      fail_with(when, ": ", each.name, " is not sound: ", verdict.text());
      verdict_.disks = disks;
    };
    for (const LiveDisk& each : disks_of_chain_) check(each);
    if (kind_ == LiveJob::mirror || kind_ == LiveJob::backup) check(target_);
  }

  const uint64_t seed_;
  const LiveJob kind_;
  Prng prng_;
  Verdict& verdict_;
  const uint64_t size_;
  Oracle oracle_;
  SimDisks disks_;
  std::vector<LiveDisk> disks_of_chain_;  ///< The lowest first.
  LiveDisk top_;
  LiveDisk target_;
  bool top_only_ = false;
  bool target_is_fresh_ = true;
  uint32_t depth_ = 0;
  bool base_is_lent_ = false;  ///< It is opened for writing for each job.
  std::optional<LiveDisk> ended_with_;
  std::optional<uint64_t> copy_began_;  ///< When somebody asked for a copy without a switch.
  std::string faulty_;                  ///< The disk that has errors.
  std::string text_;
  std::string log_;
  uint64_t life_ = 0;
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

Verdict play(uint64_t seed, LiveJob kind) {
  Verdict verdict;
  LiveRun run(seed, kind, verdict);
  run.run();
  verdict.hash = run.hash();
  return verdict;
}

}  // namespace

Verdict play_live_mirror(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::mirror); }
Verdict play_live_commit(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::commit); }
Verdict play_live_stream(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::stream); }
Verdict play_live_backup(uint64_t seed, const RunOptions&) { return play(seed, LiveJob::backup); }
Verdict play_live_commit_below(uint64_t seed, const RunOptions&) {
  return play(seed, LiveJob::commit_below);
}

}  // namespace byre
