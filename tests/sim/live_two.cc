// SPDX-License-Identifier: Apache-2.0
/// Two jobs on one chain of disks that guests use (docs/engine.md, J9).
///
/// A chain of four to six disks is made.  Guests read, write, zero, discard and flush the topmost.
/// A job begins somewhere in the chain, is held for a moment, and then a second one is asked for,
/// anywhere in the same chain.  Two that have no disk in common run beside each other; a second one
/// that wants a disk of the first is refused, nothing has changed then, and the first ends well.
/// Guests read what they wrote at each moment, also after a power loss; each backup that ended well
/// has what its disk held at its moment; all images are sound.
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

namespace byre::live {
namespace {

using Contents = std::vector<std::byte>;

enum class TwoKind : uint8_t { mirror, commit, commit_below, stream, backup };

/// A job, and the disks [first, last] of the chain that it counts on: what it does with others does
/// not change them.
struct Part {
  TwoKind kind;
  size_t first;  ///< The base of a commit; of a stream the lowest that goes.
  size_t last;
  std::string target = {};
  Contents moment = {};  ///< Of a backup.
  Job* job = nullptr;
  std::string id = {};
  bool is_to_be_cancelled = false;

  bool meets(const Part& other) const { return first <= other.last && other.first <= last; }
};

class TwoJobs {
 public:
  TwoJobs(uint64_t seed, Verdict& verdict)
      : seed_(seed),
        prng_(seed * 64 + 47),
        verdict_(verdict),
        size_(prng_.between(24, 128) * KiB / 2 / kSectorSize * kSectorSize),
        oracle_(size_) {}

  void run() {
    ++verdict_.histories;
    make_disks();
    if (ok()) live();
  }
  uint64_t hash() const { return hash_; }

 private:
  struct Process {
    SimReactor reactor;
    SimGate opener;
    Scope scope;
    JobList jobs;
    Event changed;
    std::unique_ptr<Entrance> entrance;
    Device* switched_to = nullptr;
    uint64_t guests = 0;
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

  bool ok() const { return verdict_.failure.empty(); }
  template <class... Parts>
  void fail_with(const Parts&... parts) {
    if (!ok()) return;
    verdict_.failure = cat("seed ", seed_, ": ", parts..., "; ", text_);
    verdict_.disks = disks_;
  }
  std::string name_of(size_t index) const { return cat("d", index); }
  const std::string& current(const Process& process) const {
    return process.has_switched() ? switched_name_ : top_name_;
  }

  // --- The disks --------------------------------------------------------------------------------

  static Task<void> create(FileOpener& opener, std::string name, CreateOptions options) {
    RawDevice file(co_await opener.open(name, {.writable = true, .create = true}),
                   RawOptions{.growable = true});
    Result<void> done = co_await create_image(file, options).result();
    Result<void> closed = co_await file.close().result();
    co_await std::move(done);
    co_await std::move(closed);
  }

  static Task<Child> open(Reactor& reactor, FileOpener& opener, std::string name, bool writable) {
    Child image = co_await Image::open(
        reactor, opener, name,
        {.writable = writable, .table_cache_size = 4 * KiB, .growth_step = 64 * KiB});
    co_return std::move(image);
  }

  void make(const std::string& name, const std::string& below) {
    CreateOptions options;
    options.size = size_;
    options.cluster_size = uint64_t{512} << prng_.below(6);
    options.version = prng_.one_in(4) ? 2 : 3;
    options.backing_file = below;
    if (!below.empty()) options.backing_format = "qcow2";
    SimReactor reactor(prng_.next());
    SimGate opener(reactor, disks_);
    Result<void> done = reactor.finish(create(opener, name, options));
    if (done && !name.starts_with("t")) done = reactor.finish(fill(reactor, opener, name));
    if (!done) fail_with(name, " could not be made: ", done.error().message());
    for (auto& [each, disk] : disks_) disk.power_cut(CutChoice::all());
  }

  Task<void> fill(Reactor& reactor, FileOpener& opener, std::string name) {
    Child disk = co_await open(reactor, opener, name, true);
    for (uint64_t i = prng_.between(1, 8); i != 0; --i) {
      const uint64_t at = prng_.below(size_ / kSectorSize) * kSectorSize;
      const uint64_t length = std::min(prng_.between(1, 40) * kSectorSize, size_ - at);
      Contents bytes(length);
      fill_sectors(bytes, at, oracle_.fresh_token());
      co_await disk->write(at, bytes);
    }
    co_await disk.close();
  }

  void make_disks() {
    count_ = prng_.between(4, 6);
    for (size_t i = 0; ok() && i < count_; ++i) make(name_of(i), i == 0 ? "" : name_of(i - 1));
    top_name_ = name_of(count_ - 1);
    if (!ok()) return;
    const Result<Contents> bytes = contents(disks_, top_name_);
    if (!bytes) return fail_with("the starting disk: ", bytes.error().message());
    for (uint64_t at = 0; at < size_; at += kSectorSize) {
      const Result<Token> token =
          recognise(Bytes(*bytes).subspan(at, kSectorSize), at / kSectorSize);
      if (!token) return fail_with("the starting disk: ", token.error().message());
      oracle_.set_initial(at / kSectorSize, *token);
    }
    first_ = draw_part("one");
    second_ = draw_part("two");
    text_ = cat(count_, " disks, ", describe(first_), ", then ", describe(second_));
  }

  Part draw_part(const std::string& id) {
    const size_t top = count_ - 1;
    const auto between = [this](size_t least, size_t most) {
      return static_cast<size_t>(prng_.between(least, most));
    };
    Part part{.kind = static_cast<TwoKind>(prng_.below(5)), .first = top, .last = top, .id = id};
    switch (part.kind) {
      case TwoKind::commit:
        part.first = between(0, top - 1);
        break;
      case TwoKind::commit_below:
        part.last = between(2, top);
        part.first = between(0, part.last - 2);
        break;
      case TwoKind::stream:
        part.last = between(1, top);
        part.first = between(0, part.last - 1);
        break;
      case TwoKind::backup:
        part.last = part.first = between(1, top);
        [[fallthrough]];
      case TwoKind::mirror:
        part.target = cat("t-", id);
        make(part.target, "");
        break;
    }
    part.is_to_be_cancelled = prng_.one_in(5);
    return part;
  }

  static std::string describe(const Part& part) {
    constexpr std::string_view kNames[] = {"mirror", "commit", "commit below", "stream", "backup"};
    return cat(kNames[static_cast<size_t>(part.kind)], " of ", part.last,
               part.first == part.last ? "" : cat(" to ", part.first));
  }

  static Task<Contents> read_whole(Reactor& reactor, FileOpener& opener, std::string name) {
    Child disk = co_await open(reactor, opener, name, false);
    Contents bytes(disk->size());
    Result<void> read = co_await disk->read(0, bytes, IoTag::read_guest).result();
    (void)co_await disk.close().result();
    co_await std::move(read);
    co_return std::move(bytes);
  }
  static Result<Contents> contents(SimDisks& disks, const std::string& name) {
    SimReactor reactor(1);
    SimGate opener(reactor, disks);
    return reactor.finish(read_whole(reactor, opener, name));
  }

  // --- Guests -----------------------------------------------------------------------------------

  Task<void> guest(Process& process, uint64_t seed) {
    Prng prng(seed);
    for (uint64_t i = prng.between(10, 60); ok() && i != 0; --i) {
      co_await request(process, prng);
      co_await process.reactor.sleep(static_cast<int64_t>(prng.below(3 * kMillisecond)));
    }
    --process.guests;
    process.changed.notify();
  }

  Task<void> request(Process& process, Prng& prng) {
    const uint64_t at = prng.below(size_ / kSectorSize) * kSectorSize;
    const uint64_t length = std::min(prng.between(1, 24) * kSectorSize, size_ - at);
    ++verdict_.requests;
    const uint64_t what = prng.below(12);
    const Entrance::Pass pass = co_await process.entrance->enter();
    Device& disk = *pass;
    Result<void> done;
    if (what < 6) {
      Contents bytes(length);
      const Token token = oracle_.fresh_token();
      fill_sectors(bytes, at, token);
      const uint64_t change = oracle_.begin_change(at, length, token);
      done = co_await disk.write(at, bytes).result();
      oracle_.end_change(change, done.has_value(), false);
    } else if (what < 9) {
      const bool certain = what < 8;
      const uint64_t change = oracle_.begin_change(at, length, 0, certain);
      done = certain ? co_await disk.zero(at, length, {.may_unmap = true}).result()
                     : co_await disk.discard(at, length).result();
      oracle_.end_change(change, done.has_value(), false);
    } else if (what < 10) {
      const uint64_t flush = oracle_.begin_flush();
      done = co_await disk.flush().result();
      if (done) oracle_.end_flush(flush);
    } else {
      Contents bytes(length);
      const uint64_t read = oracle_.begin_read();
      done = co_await disk.read(at, bytes, IoTag::read_guest).result();
      Result<void> right = done ? oracle_.end_read(read, at, bytes) : done.error().copy();
      if (!right) stop(process, "a guest reads wrong: ", right.error().message());
    }
    if (!done) stop(process, "a guest's request failed: ", done.error().message());
  }

  template <class... Words>
  void stop(Process& process, const Words&... words) {
    fail_with(words...);
    process.reactor.fail(verdict_.failure);
  }

  // --- The jobs ---------------------------------------------------------------------------------

  Result<std::unique_ptr<JobWork>> make_work(const Part& part, Child disk, Child target) {
    const auto depth = static_cast<uint32_t>(part.last - part.first);
    const auto as_work = [](auto made) -> Result<std::unique_ptr<JobWork>> {
      if (!made) return std::move(made).error();
      return std::unique_ptr<JobWork>(*std::move(made));
    };
    MirrorFilterOptions filter{.granularity = uint64_t{512} << prng_.below(6)};
    filter.request_size = std::max<uint64_t>(8 * KiB, filter.granularity);
    switch (part.kind) {
      case TwoKind::mirror:
        return as_work(Mirror::make(std::move(disk), std::move(target), {.filter = filter}));
      case TwoKind::commit:
        return as_work(Mirror::commit_into(std::move(disk), depth, {.filter = filter}));
      case TwoKind::commit_below:
        return as_work(CommitBelow::make(
            std::move(disk),
            {.depth = depth - 1, .base_name = {name_of(part.first), "qcow2"}, .filter = filter}));
      case TwoKind::stream: {
        StreamOptions options{.request_size = 8 * KiB};
        if (part.first != 0) {
          options.depth = depth;
          options.base_name = BackingName{name_of(part.first - 1), "qcow2"};
        }
        return as_work(Stream::make(std::move(disk), std::move(options)));
      }
      case TwoKind::backup:
        return as_work(
            Backup::make(std::move(disk), std::move(target),
                         {.on_cbw_error = CbwError::break_snapshot, .request_size = 8 * KiB}));
    }
    return invalid("no such job");
  }

  /// By index, as they are in the graph now; those that are gone are null.
  std::vector<Device*> chain(Process& process) const {
    std::vector<Device*> layers = layers_of(*process.entrance->edge());
    std::ranges::reverse(layers);
    return layers;
  }
  static Device& unfiltered(Device& layer) {
    Device* at = &layer;
    for (bool found = true; found;) {
      found = false;
      for (const Child* edge : at->children()) {
        if (edge->role() != Role::filtered) continue;
        at = edge->get();
        found = true;
        break;
      }
    }
    return *at;
  }

  Task<Job*> start(Process& process, Part& part) {
    const std::vector<Device*> layers = chain(process);
    Device* const disk =
        part.last == count_ - 1 ? process.entrance->edge().get() : layers[part.last];
    const bool writes_disk = part.kind == TwoKind::stream || part.kind == TwoKind::commit_below;
    const bool writes_base = part.kind == TwoKind::commit || part.kind == TwoKind::commit_below;
    WriteLoans loans;
    Result<void> lent;
    if (writes_disk) lent = co_await loans.take(*unfiltered(*disk).node()).result();
    if (writes_base && lent) {
      lent = co_await loans.take(*unfiltered(*layers[part.first]).node()).result();
    }
    if (!lent) {
      (void)co_await loans.give_back().result();
      co_return std::move(lent).error();
    }
    Child target;
    if (!part.target.empty()) {
      target = co_await open(process.reactor, process.opener, part.target, true);
    }
    Device* const target_device = target ? target.get() : nullptr;
    Child kept = target ? target.hold() : Child();
    Result<std::unique_ptr<JobWork>> work =
        make_work(part, Child::to(writes_disk ? unfiltered(*disk) : *disk), std::move(target));
    Backup* const backup =
        work && part.kind == TwoKind::backup ? static_cast<Backup*>(work->get()) : nullptr;
    JobOptions options{.id = part.id,
                       .auto_finalize = !prng_.one_in(3),
                       .auto_dismiss = false,
                       .speed = 512 * KiB << prng_.below(4)};
    const auto transaction = process.jobs.begin_transaction();
    Result<Job*> job = work ? process.jobs.add(*std::move(work), std::move(options), transaction)
                            : Result<Job*>(std::move(work).error());
    if (!job) {
      Result<void> given_back = co_await loans.give_back().result();
      if (!given_back) stop(process, "a loan was not given back: ", given_back.error().message());
      if (kept) (void)co_await kept.close().result();
      co_return std::move(job).error();
    }
    (*job)->work().loans = std::move(loans);
    if (backup) {
      Drain drain(disk->node() ? *disk->node() : process.entrance->edge().node());
      co_await drain.begin();
      part.moment.resize(size_);
      co_await disk->read(0, part.moment, IoTag::read_guest);
      co_await backup->take_moment(**job, &drain);
    }
    if (part.kind == TwoKind::mirror) {
      process.switched_to = target_device;
      switched_name_ = part.target;
    } else if (part.kind == TwoKind::commit) {
      process.switched_to = layers[part.first];
      switched_name_ = name_of(part.first);
    }
    if (kept) kept_.push_back(std::move(kept));
    process.jobs.start(*transaction);
    part.job = *job;
    co_return *job;
  }

  /// What a refusal leaves as it was, whatever the first job does to the graph meanwhile.
  static std::string describe(Process& process) {
    std::string text;
    for (Device* layer : layers_of(*process.entrance->edge())) {
      text += cat(layer->name(), layer->writable() ? " is written, " : " is read, ");
    }
    return text;
  }

  Task<void> start_second(Process& process) {
    Job& first = *first_.job;
    co_await process.reactor.sleep(static_cast<int64_t>(prng_.below(12 * kMillisecond)));
    (void)first.pause();
    while (first.is_busy()) co_await process.reactor.sleep(kMillisecond / 8);
    if (first.status() >= JobStatus::waiting) co_return;  // It is too late to meet it.
    const bool meets = first_.meets(second_);
    const std::string before = meets ? describe(process) : "";
    Result<Job*> second = co_await start(process, second_).result();
    if (meets && second) {
      stop(process, "the second job has begun, and wants disks of the first");
    } else if (meets && second.error().code() != Errc::busy) {
      stop(process, "the second job was refused by an error: ", second.error().message());
    } else if (meets) {
      const std::string after = describe(process);
      if (after != before) stop(process, "a refusal has changed ", before, "to ", after);
    } else if (!second) {
      stop(process, "the second job was refused: ", second.error().message());
    }
  }

  void lead_on(Part& part, uint64_t steps) {
    if (!part.job || part.job->status() == JobStatus::concluded) return;
    Job& job = *part.job;
    if (part.is_to_be_cancelled && steps > 6) (void)job.cancel(true);
    if (steps > 40) (void)job.set_speed(0);
    if (prng_.one_in(6) && steps < 40) {
      (void)job.pause();
      return;
    }
    if (job.is_paused()) (void)job.resume();
    if (prng_.one_in(3) || steps > 40) {
      (void)job.complete();
      (void)job.finalize();
    }
  }

  void check_end(Part& part) {
    if (!part.job) return;
    const Error& error = part.job->error();
    if (error && (error.code() != Errc::cancelled || !part.is_to_be_cancelled)) {
      return fail_with("the job ", part.id, " failed: ", error.message());
    }
    if (error || part.kind != TwoKind::backup) return;
    SimDisks disks = disks_;
    for (auto& [name, disk] : disks) disk.power_cut(CutChoice::none());  // Success is durable.
    const Result<Contents> bytes = contents(disks, part.target);
    if (!bytes) return fail_with("the backup: ", bytes.error().message());
    const auto differs = std::ranges::mismatch(part.moment, *bytes);
    if (differs.in1 == part.moment.end()) return;
    fail_with("the backup ", part.id, " differs at ",
              hex(static_cast<uint64_t>(differs.in1 - part.moment.begin())));
  }

  Task<void> use(Process& process) {
    {
      Child disk = co_await open(process.reactor, process.opener, top_name_, true);
      process.entrance = std::make_unique<Entrance>(std::move(disk));
      co_await process.entrance->edge().set_permissions(
          {.uses = {.read = true, .write = true}, .shares = {.read = true, .write = true}});
    }
    process.guests = prng_.between(1, 2);
    for (uint64_t i = process.guests; i != 0; --i) {
      process.scope.spawn(guest(process, prng_.next()));
    }
    (void)co_await start(process, first_);
    co_await start_second(process);
    const auto is_over = [](const Part& part) {
      return !part.job || part.job->status() == JobStatus::concluded;
    };
    for (uint64_t steps = 0; ok() && !(is_over(first_) && is_over(second_)); ++steps) {
      if (steps > 5000) co_return stop(process, "the jobs do not end");
      lead_on(first_, steps);
      lead_on(second_, steps);
      co_await process.reactor.sleep(static_cast<int64_t>(prng_.below(6 * kMillisecond)) + 1);
    }
    for (Part* part : {&first_, &second_}) {
      if (ok()) check_end(*part);
      if (part->job) (void)part->job->dismiss();
      part->job = nullptr;
    }
    while (process.guests != 0) co_await process.changed.wait();
  }

  Task<void> main(Process& process) {
    Result<void> used = co_await use(process).result();
    Result<void> closed;
    if (process.entrance) {
      ended_with_ = current(process);
      closed = co_await process.entrance->edge().close().result();
    }
    for (Child& target : kept_) (void)co_await target.close().result();
    kept_.clear();
    co_await process.jobs.close();
    process.result.emplace(used ? std::move(closed) : std::move(used));
    process.ended = true;
  }

  // --- What must hold ---------------------------------------------------------------------------

  void check(SimDisks& disks, const std::string& counts, std::string_view when, bool takes) {
    for (const auto& [name, disk] : disks) {
      const ImageVerdict verdict = check_bytes(disk);
      if (!verdict.sound()) {
        return fail_with(when, ": ", name, " is not sound: ", verdict.text());
      }
    }
    const Result<Contents> bytes = contents(disks, counts);
    if (!bytes) return fail_with(when, ": ", counts, ": ", bytes.error().message());
    const Result<void> right = takes ? oracle_.observe(0, Bytes(*bytes).first(size_), true)
                                     : oracle_.check_after_cut(0, Bytes(*bytes).first(size_));
    if (!right) fail_with(when, ": ", counts, ": ", right.error().message());
  }

  void check_cut(const std::string& counts) {
    ++verdict_.cuts;
    SimDisks cut;
    for (const auto& [name, disk] : disks_) cut.emplace(name, disk.cut(draw_choice(prng_, disk)));
    check(cut, counts, "at a cut", false);
  }

  void live() {
    const auto process = std::make_shared<Process>(prng_.next(), disks_);
    SimReactor& reactor = process->reactor;
    const uint64_t dies_after = prng_.one_in(4) ? prng_.between(1, 2000) : UINT64_MAX;
    const uint64_t cut_one_in = prng_.between(10, 80);
    uint64_t deliveries = 0;
    uint64_t cuts = 0;
    reactor.after_delivery = [&] {
      if (!ok()) return;
      ++verdict_.deliveries;
      ++deliveries;
      oracle_.set_time(reactor.now().ns);
      if (cuts == 24 || !prng_.one_in(cut_one_in) || !process->entrance) return;
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
    const bool clean = process->ended && process->result->has_value();
    if (process->ended && !clean && ok()) {
      fail_with("the process failed: ", process->result->error().message());
    }
    const std::string counts = !ended_with_.empty() ? ended_with_
                               : process->entrance  ? current(*process)
                                                    : top_name_;
    if (!process->ended) process->reactor.kill_all();
    if (!clean || !ok()) {
      for (Child& target : kept_) target.abandon();
      kept_.clear();
      SimReactor::bury(process);
    }
    if (!ok()) return;
    for (auto& [name, disk] : disks_) {
      disk.settle();
      disk.power_cut(clean ? CutChoice::all() : draw_choice(prng_, disk));
    }
    oracle_.process_died();
    check(disks_, counts, "at the end of the process", true);
  }

  const uint64_t seed_;
  Prng prng_;
  Verdict& verdict_;
  const uint64_t size_;
  Oracle oracle_;
  SimDisks disks_;
  size_t count_ = 0;
  std::string top_name_;
  std::string switched_name_;
  std::string ended_with_;
  Part first_{};
  Part second_{};
  std::vector<Child> kept_;  ///< Keep targets open.
  std::string text_;
  uint64_t hash_ = 0;
};

}  // namespace
}  // namespace byre::live

namespace byre {

Verdict play_live_two(uint64_t seed, const RunOptions&) {
  Verdict verdict;
  live::TwoJobs run(seed, verdict);
  run.run();
  verdict.hash = run.hash();
  return verdict;
}

}  // namespace byre
