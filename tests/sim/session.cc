// SPDX-License-Identifier: Apache-2.0
#include "session.h"

#include <algorithm>
#include <bit>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "bitmap_model.h"
#include "checker.h"
#include "coro/scope.h"
#include "oracle.h"
#include "qcow2/check.h"
#include "qcow2/image.h"

namespace byre {

namespace {

constexpr uint64_t kReadAtOnce = 256 * KiB;

std::string_view name_of(Step::Kind kind) {
  switch (kind) {
    case Step::Kind::read:
      return "read";
    case Step::Kind::write:
      return "write";
    case Step::Kind::zero:
      return "zero";
    case Step::Kind::discard:
      return "discard";
    case Step::Kind::flush:
      return "flush";
    case Step::Kind::pause:
      return "pause";
    case Step::Kind::resize:
      return "resize";
    case Step::Kind::create_snapshot:
      return "snapshot";
    case Step::Kind::apply_snapshot:
      return "apply snapshot";
    case Step::Kind::delete_snapshot:
      return "delete snapshot";
    case Step::Kind::check:
      return "check";
    case Step::Kind::add_bitmap:
      return "add bitmap";
    case Step::Kind::remove_bitmap:
      return "remove bitmap";
    case Step::Kind::clear_bitmap:
      return "clear bitmap";
    case Step::Kind::toggle_bitmap:
      return "enable or disable bitmap";
    case Step::Kind::merge_bitmap:
      return "merge into bitmap";
  }
  return "unknown";
}

uint64_t mix(uint64_t a, uint64_t b) { return Prng(a * 0x9e3779b97f4a7c15u + b).next(); }

/// Reads the windows of an image, piece by piece.  Behind the end of a disk that has become smaller
/// there are the zeros that it would show if it grew again.
Task<void> read_windows(Device& image, const std::vector<Window>& windows,
                        std::vector<std::vector<std::byte>>& out) {
  for (const Window& window : windows) {
    std::vector<std::byte> data(window.length);
    const uint64_t there =
        window.offset < image.size() ? std::min(window.length, image.size() - window.offset) : 0;
    for (uint64_t at = 0; at < there; at += kReadAtOnce) {
      const uint64_t length = std::min(kReadAtOnce, there - at);
      co_await image.read(window.offset + at, MutableBytes(data).subspan(at, length),
                          Mark::read_guest);
    }
    out.push_back(std::move(data));
  }
}

/// What lies behind the end of the disk in its last unit must be zeros, or whoever makes the disk
/// grow shows old bytes (trap 120).
Task<void> check_tail(Image& image) {
  const uint64_t size = image.size();
  const uint64_t unit = image.geometry().unit_size();
  if (size % unit == 0) co_return;
  const Extent last = co_await image.status(size - kSectorSize, kSectorSize);
  if (!last.data || !last.host_offset || last.depth != 0) co_return;
  std::vector<std::byte> tail(round_up(size, unit) - size);
  const uint64_t at = *last.host_offset + kSectorSize;
  Device& device = image.data_file();
  if (at >= device.size()) co_return;
  co_await device.read(at, MutableBytes(tail).first(std::min(tail.size(), device.size() - at)),
                       Mark::none);
  if (!is_zero(tail))
    co_await fail(corrupt("behind the end of the disk, at ", hex(size), ", is data"));
}

/// The windows, cut off at the end of the disk.
std::vector<Window> windows_of(const Knobs& knobs) {
  std::vector<Window> windows;
  for (Window window : knobs.windows) {
    if (window.offset >= knobs.size) continue;
    window.length = std::min(window.length, knobs.size - window.offset);
    windows.push_back(window);
  }
  return windows;
}

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

  RunReport run() {
    build_disks(knobs_, mix(history_.seed, 1), disks_, oracle_);
    const ImageVerdict start = verdict_of(disk());
    if (!start.sound() || start.leaks != knobs_.leaks) {
      fail_with("the starting image is wrong: ", start.text(), "; leaks wanted: ", knobs_.leaks);
    }
    // Only data, and only where a request writes no more than its own sectors to a cluster that it
    // does not own alone: otherwise what failed could overtake what was written again over it.
    if (knobs_.version == 2 && knobs_.block_size <= kSectorSize) {
      disk().options().may_land_late = [](const Op& op) {
        return op.length >= kSectorSize && is_stamped(bytes_at(op.buffer, kSectorSize));
      };
    }
    judge("the starting image");
    for (size_t i = 0; i < history_.lives.size() && ok(); ++i) {
      life_ = i;
      live(history_.lives[i]);
    }
    if (ok()) {
      life_ = history_.lives.size();
      live({.seed = mix(history_.seed, 2)});  // Sees what the last one left.
    }
    report_.hash = hash_;
    if (report_.disks.empty()) report_.disks = disks_;
    return std::move(report_);
  }

 private:
  bool ok() const { return report_.failure.empty(); }

  template <class... Parts>
  void fail_with(const Parts&... parts) {
    if (!ok()) return;
    report_.failure = cat("life ", life_, ": ", parts...);
    report_.disks = disks_;
    if (options_.sink) options_.sink(report_.failure);
  }

  void judge(std::string_view when) {
    if (!options_.judge || !ok()) return;
    const std::string verdict = options_.judge(disks_);
    if (!verdict.empty()) fail_with(when, ": ", verdict);
  }

  // --- One life ---------------------------------------------------------------------------------

  /// What the process of one life owns; buried when it is killed.
  struct Process {
    SimReactor reactor;
    SimGate gate;
    Scope scope;
    std::unique_ptr<Image> image;
    Event clients_done;
    size_t clients = 0;
    bool ended = false;
    bool closed_well = false;
    Process(SimReactor::Options reactor_options, SimDisks& disks, SimGate::Options gate_options)
        : reactor(reactor_options),
          gate(reactor, disks, gate_options),
          scope(reactor.ready()),
          clients_done(reactor.ready()) {}
  };

  void live(const Life& life) {
    const auto process =
        std::make_shared<Process>(SimReactor::Options{.seed = life.seed,
                                                      .delays = knobs_.delays,
                                                      .resume_at_once = options_.resume_at_once,
                                                      .steps_max = 20'000'000},
                                  disks_, gate_options());
    SimReactor& reactor = process->reactor;
    reactor.trace().sink = options_.sink;

    Result<std::unique_ptr<Image>> opened =
        reactor.finish(Image::open(reactor, process->gate, "image", knobs_.image_options()));
    if (!opened) {
      fail_with("the image does not open: ", opened.error().message());
    } else {
      process->image = *std::move(opened);
      first_look(*process);
    }
    if (ok()) {
      const ImageVerdict before = verdict_of(disk());
      drift_ = before.copied_drift;
      leaks_ = before.leaks;
      leaks_in_file_ = before.leaks_in_file;
      const uint64_t lost_before = syncs_lost();
      for (SimDisk* each : written()) {
        each->options().faults = life.faults;
        if (life.room != 0) each->options().capacity = each->allocated_bytes() + life.room;
      }
      faulty_ = life.faults.can_fail() || life.room != 0;
      work(life, *process);
      if (life_ == 0) report_.faults = disk().options().faults;
      for (SimDisk* each : written()) {
        each->options().faults.clear();
        each->options().capacity = 0;
      }
      reactor.after_delivery = nullptr;
      hash_ = mix(hash_, reactor.trace().hash());
      end(life, *process, before, syncs_lost() != lost_before);
    }
    if (!process->closed_well) SimReactor::bury(process);
  }

  SimDisk& disk() { return disks_.find("image")->second; }
  ImageVerdict verdict_of(const SimDisk& disk) const {
    return check_bytes(disk, knobs_.aliased_host);
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
  std::vector<std::vector<std::byte>> raw_windows(const SimDisks& disks, uint64_t size) const {
    const SimDisk& data = disks.find("data")->second;
    std::vector<std::vector<std::byte>> found;
    for (const Window& window : windows_) {
      std::vector<std::byte>& bytes = found.emplace_back(data.read(window.offset, window.length));
      if (size < window.offset + window.length) {
        fill_zero(MutableBytes(bytes).subspan(std::max(size, window.offset) - window.offset));
      }
    }
    return found;
  }
  SimGate::Options gate_options() const {
    return {.block_size = knobs_.block_size, .direct = knobs_.block_size > 1};
  }

  /// Reads everything there is, as the first thing in a life.
  void first_look(Process& process) {
    if (Result<void> known = check_size(process.image->size()); !known) {
      return fail_with("on opening: ", known.error().message());
    }
    size_ = process.image->size();
    sizes_wanted_.clear();
    // What it was amended to, perhaps.
    knobs_.version = process.image->geometry().version;
    knobs_.refcount_order = process.image->geometry().refcount_order;
    if (!process.image->has_raw_data() && knobs_.data_file == Knobs::DataFile::raw) {
      if (!amended_raw_) return fail_with("on opening: the data file is no longer raw");
      knobs_.data_file = Knobs::DataFile::plain;
    }
    const Result<void> copies = process.reactor.finish(
        look_at_snapshots(process.reactor, process.gate, process.image->snapshots(), true));
    if (!copies) return fail_with("on opening: ", copies.error().message());
    std::vector<std::vector<std::byte>> found;
    const Result<void> read = process.reactor.finish(read_windows(*process.image, windows_, found));
    if (!read) return fail_with("the disk cannot be read: ", read.error().message());
    if (knobs_.data_file == Knobs::DataFile::raw && raw_windows(disks_, size_) != found) {
      return fail_with("on opening: the raw data file differs from the disk");
    }
    for (size_t i = 0; i < windows_.size(); ++i) {
      Result<void> result =
          unclean_ ? oracle_.observe(windows_[i].offset, found[i], cut_)
                   : oracle_.end_read(oracle_.begin_read(), windows_[i].offset, found[i]);
      if (!result) return fail_with("on opening: ", result.error().message());
    }
    if (knobs_.bitmaps) {
      const ImageVerdict verdict = verdict_of(disk());
      Result<void> right = bitmaps_.check(verdict.bitmaps, verdict.size, &found, !unclean_bitmaps_);
      unclean_bitmaps_ = false;
      if (right) right = check_usable_bitmaps(*process.image);
      if (!right) return fail_with("on opening: ", right.error().message());
      bitmaps_.settle(verdict.bitmaps, verdict.size, oracle_.fresh_token());
    }
    unclean_ = cut_ = false;
  }

  /// The engine agrees: none is lost.
  static Result<void> check_usable_bitmaps(const Image& image) {
    for (const auto& slot : image.bitmaps()) {
      if (slot->state != BitmapState::usable) return corrupt(slot->reason);
    }
    return {};
  }

  void work(const Life& life, Process& process) {
    SimReactor& reactor = process.reactor;
    uint64_t deliveries = 0;
    uint64_t cuts = 0;
    Prng prng(mix(life.seed, 3));
    reactor.after_delivery = [&] {
      ++deliveries;
      ++report_.deliveries;
      if (!ok()) return;
      if (life.every_cut) {
        every_cut();
      } else if (life.cut_one_in != 0 && cuts < life.cuts_max && prng.one_in(life.cut_one_in)) {
        ++cuts;
        random_cut(prng);
      }
      if (!ok()) reactor.fail(report_.failure);
    };
    process.scope.spawn(main(life, process));
    const bool dies = life.end != Life::End::close;
    const auto over = [&] {
      return dies && (deliveries >= life.ends_after || reactor.now().ns >= life.ends_at_ns);
    };
    while (!process.ended && !over()) {
      if (reactor.advance()) continue;
      fail_with(reactor.failure());
      break;
    }
  }

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
  Task<void> look_at_snapshots(Reactor& reactor, Gate& gate, const std::vector<Snapshot>& list,
                               bool settle);
  Task<void> read_snapshot(Reactor& reactor, Gate& gate, const std::string& name,
                           std::vector<std::vector<std::byte>>& data);
  void settle_copy(Copy& copy, const std::vector<std::vector<std::byte>>& data) const;

  /// The whole program of one life.
  Task<void> main(const Life& life, Process& process) {
    for (const Step& step : life.warm_up) co_await perform(step, process);
    if (life_ == 0 && options_.chooser) process.reactor.set_chooser(options_.chooser);
    process.clients = life.clients.size();
    if (process.clients == 0) process.clients_done.set();
    for (size_t i = 0; i < life.clients.size(); ++i) {
      process.scope.spawn(client(life.clients[i], process, i));
    }
    co_await process.clients_done.wait();
    process.reactor.set_chooser(nullptr);
    if (life.amend && ok()) co_await amend(*life.amend, process);
    const SimReactor::Activity activity(process.reactor, "close");
    const uint64_t flush = oracle_.begin_flush();
    const Result<void> closed = co_await process.image->close().result();
    if (closed) oracle_.end_flush(flush);
    if (!closed && !faulty_) fail_with("close: ", closed.error().message());
    process.closed_well = closed.has_value();
    process.ended = true;
  }

  Task<void> client(const std::vector<Step>& steps, Process& process, size_t number);
  Task<void> perform(const Step& step, Process& process);

  // --- Its end ----------------------------------------------------------------------------------

  void end(const Life& life, Process& process, const ImageVerdict& before, bool lost);
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
  size_t life_ = 0;
  bool faulty_ = false;
  bool unclean_ = false;
  bool cut_ = false;
  uint64_t size_;  ///< Of the disk, as it was answered last.
  std::multiset<uint64_t> sizes_wanted_;
  uint64_t drift_ = 0;  ///< Missing COPIED flags at the start of the life.
  uint64_t leaks_ = 0;  ///< Likewise.
  uint64_t leaks_in_file_ = 0;
  std::map<std::string, Copy> copies_;
  uint64_t copies_made_ = 0;
  bool amended_raw_ = false;
  BitmapModel bitmaps_;
  uint64_t bitmaps_made_ = 0;
  bool unclean_bitmaps_ = false;  ///< The last life left them a superset.
};

std::vector<Oracle::Contents> Run::copy_since(uint64_t began) const {
  std::vector<Oracle::Contents> contents;
  for (const Window& window : windows_) {
    contents.push_back(oracle_.contents_since(began, window.offset, window.length));
  }
  return contents;
}

/// A snapshot that is there and not about to go.
std::optional<std::string> Run::choose(uint64_t which) const {
  std::vector<std::string> there;
  for (const auto& [name, copy] : copies_) {
    if (copy.certain && !copy.going && !copy.looked_at) there.push_back(name);
  }
  if (there.empty()) return std::nullopt;
  return there[which % there.size()];
}

/// Whatever goes on meanwhile: what the life began with is found, and nothing else.
Task<Result<void>> Run::check(bool free_leaks, Process& process) {
  const CheckOptions options{.repair = free_leaks ? Repair::leaks : Repair::none,
                             .findings_max = UINT64_MAX};
  Result<CheckReport> report = co_await process.image->check_online(options).result();
  if (!report) {
    if (free_leaks) leaks_in_file_ = 0;  // Some may have gone.
    Result<void> failed = std::move(report).error();
    co_return failed;
  }
  // What the disk did not give is not known to be wrong, and what it leads to is not counted.
  const bool partly = report->check_errors != 0;
  uint64_t copied = 0;
  std::string first;
  for (const Finding& finding : report->findings) {
    if (finding.kind == FindingKind::copied && ++copied <= drift_) continue;
    if (finding.severity != Severity::note && first.empty()) first = finding.text;
  }
  const uint64_t leaks = report->leaks + report->leaks_fixed;
  const uint64_t planted = knobs_.aliased_host != 0 ? 2 : 0;  // Two owners, one reference.
  const uint64_t errors = report->corruptions - std::min(copied, drift_);
  // The file may have grown over those behind its end.
  if (errors > planted || (!partly && errors < planted) ||
      (!partly && (leaks < leaks_in_file_ || leaks > leaks_))) {
    fail_with("an online check found ", report->corruptions, " errors and ", leaks,
              " leaks; there were ", drift_ + planted, " and ", leaks_in_file_, " to ", leaks_, ": ",
              first);
  }
  leaks_ -= report->leaks_fixed;
  leaks_in_file_ -= std::min(leaks_in_file_, report->leaks_fixed);
  co_return Result<void>();
}

Task<Result<void>> Run::create_snapshot(Process& process) {
  const std::string name = cat("copy ", ++copies_made_);
  const uint64_t began = oracle_.begin_read();
  copies_[name] = {.began = began, .sizes = sizes_now(), .contents = {}};
  Result<void> done = co_await process.image->create_snapshot({.name = name}).result();
  Copy& copy = copies_.at(name);
  copy.sizes.merge(sizes_now());
  copy.contents = copy_since(began);
  copy.certain = done.has_value();
  oracle_.end_read(began);
  // Refused: nothing was changed.
  if (!done && done.error().code() == Errc::invalid) copies_.erase(name);
  if (!done) co_return done;
  // From here on it never changes: what a first look finds is what every later one must find (S1).
  copy.looked_at = true;
  std::vector<std::vector<std::byte>> data;
  const Result<void> read =
      co_await read_snapshot(process.reactor, process.gate, name, data).result();
  copy.looked_at = false;
  if (!read) co_return done;  // Another client's change moved the snapshot table under the look.
  for (size_t i = 0; i < windows_.size(); ++i) {
    const Result<void> right = Oracle::check_copy(windows_[i].offset, data[i], copy.contents[i]);
    if (!right) fail_with("snapshot ", quoted(name), ": ", right.error().message());
  }
  if (ok()) settle_copy(copy, data);
  co_return done;
}

Task<void> Run::read_snapshot(Reactor& reactor, Gate& gate, const std::string& name,
                              std::vector<std::vector<std::byte>>& data) {
  ImageOptions options = knobs_.image_options();
  options.writable = options.lock = false;
  options.snapshot = name;
  std::unique_ptr<Image> image = co_await Image::open(reactor, gate, "image", options);
  Result<void> read = co_await read_windows(*image, windows_, data).result();
  co_await image->close();
  co_await std::move(read);
}

void Run::settle_copy(Copy& copy, const std::vector<std::vector<std::byte>>& data) const {
  copy = {.certain = true, .going = copy.going, .sizes = copy.sizes, .contents = {}};
  for (size_t i = 0; i < windows_.size(); ++i) {
    Oracle::Contents& exact = copy.contents.emplace_back();
    for (uint64_t at = 0; at < data[i].size(); at += kSectorSize) {
      exact.push_back({*recognise(Bytes(data[i]).subspan(at, kSectorSize),
                                  (windows_[i].offset + at) / kSectorSize)});
    }
  }
}

Task<Result<void>> Run::apply_snapshot(uint64_t which, Process& process) {
  const std::optional<std::string> name = choose(which);
  if (!name) co_return Result<void>();
  const std::vector<Oracle::Contents> contents = copies_.at(*name).contents;
  const std::set<uint64_t> sizes = copies_.at(*name).sizes;
  sizes_wanted_.insert(sizes.begin(), sizes.end());
  std::vector<uint64_t> changes;
  for (size_t i = 0; i < windows_.size(); ++i) {
    changes.push_back(oracle_.begin_restore(windows_[i].offset, contents[i]));
  }
  const BitmapModel::Change recorded = bitmaps_.begin_change(0, knobs_.size);
  Result<void> done = co_await process.image->apply_snapshot({*name}).result();
  bitmaps_.end_change(recorded, done.has_value(), true);
  oracle_.set_time(process.reactor.now().ns);
  for (const uint64_t change : changes) oracle_.end_change(change, done.has_value(), true);
  if (done) {
    for (const uint64_t size : sizes) sizes_wanted_.erase(sizes_wanted_.find(size));
    size_ = process.image->size();
    if (!sizes.contains(size_))
      fail_with("snapshot ", quoted(*name), " was applied, and the disk has ", size_, " bytes");
  }
  co_return done;
}

Task<Result<void>> Run::delete_snapshot(uint64_t which, Process& process) {
  const std::optional<std::string> name = choose(which);
  if (!name) co_return Result<void>();
  copies_.at(*name).going = true;
  Result<void> done = co_await process.image->delete_snapshot({*name}).result();
  if (done) copies_.erase(*name);
  co_return done;
}

/// C5: those that must be there are, no others, and each holds what the disk held when it was made.
/// `settle`: what is found is the truth from now on.
Task<void> Run::look_at_snapshots(Reactor& reactor, Gate& gate, const std::vector<Snapshot>& list,
                                  bool settle) {
  std::set<std::string> found;
  for (const Snapshot& snapshot : list) {
    const auto known = copies_.find(snapshot.name);
    if (known == copies_.end() || !found.insert(snapshot.name).second) {
      co_await fail(corrupt("snapshot ", quoted(snapshot.name), " should not be there"));
    }
    Copy& copy = known->second;
    const std::vector<Oracle::Contents> contents =
        copy.contents.empty() ? copy_since(copy.began) : copy.contents;
    const uint64_t size = snapshot.disk_size.value_or(0);
    if (!copy.sizes.contains(size)) {
      co_await fail(corrupt("snapshot ", quoted(snapshot.name), " is of ", size, " bytes"));
    }
    if (settle) copy.sizes = {size};
    std::vector<std::vector<std::byte>> data;
    Result<void> right = co_await read_snapshot(reactor, gate, snapshot.name, data).result();
    for (size_t i = 0; right && i < windows_.size(); ++i) {
      right = Oracle::check_copy(windows_[i].offset, data[i], contents[i]);
    }
    co_await std::move(right).doing("snapshot ", quoted(snapshot.name));
    if (settle) {
      copy.going = false;
      settle_copy(copy, data);
    }
  }
  for (const auto& [name, copy] : copies_) {
    if (copy.certain && !copy.going && !found.contains(name)) {
      co_await fail(corrupt("snapshot ", quoted(name), " is gone"));
    }
  }
  if (settle) std::erase_if(copies_, [&](const auto& each) { return !found.contains(each.first); });
}

/// Is no sector of the range zeros?
bool Run::surely_holds_data(uint64_t offset, uint64_t length) {
  if (!knobs_.bitmaps || length == 0) return false;
  const uint64_t now = oracle_.begin_read();
  const Oracle::Contents contents = oracle_.contents_since(now, offset, length);
  oracle_.end_read(now);
  return std::none_of(contents.begin(), contents.end(), [](const std::vector<Token>& sector) {
    return std::find(sector.begin(), sector.end(), Token{0}) != sector.end();
  });
}

Task<Result<void>> Run::change_bitmap(const Step& step, Process& process) {
  Image& image = *process.image;
  if (step.kind == Step::Kind::add_bitmap) {
    if (bitmaps_.size() >= 3) co_return Result<void>();
    const std::string name = cat("bitmap ", ++bitmaps_made_);
    bitmaps_.begin_add(name, static_cast<uint32_t>(std::countr_zero(step.length)));
    Result<void> done =
        co_await image.add_bitmap({.name = name, .granularity = step.length}).result();
    bitmaps_.end_add(name, done.has_value(), oracle_.fresh_token());
    co_return done;
  }
  const std::string name = bitmaps_.choose(step.offset);
  if (name.empty()) co_return Result<void>();
  if (step.kind == Step::Kind::remove_bitmap) {
    bitmaps_.begin_remove(name);
    Result<void> done = co_await image.remove_bitmap(name).result();
    bitmaps_.end_remove(name, done.has_value());
    co_return done;
  }
  if (step.kind == Step::Kind::merge_bitmap) {
    const std::string other = bitmaps_.choose(step.length);
    BitmapModel::Merge merge = bitmaps_.begin_merge(name, other);
    Result<std::unique_ptr<DirtyBits>> bits = co_await image.read_bitmap(other).result();
    bitmaps_.read_for_merge(merge);
    Result<void> done;
    if (bits) {
      done = co_await image.merge_into_bitmap(name, **bits).result();
    } else {
      done = std::move(bits).error();
    }
    bitmaps_.end_merge(merge, done.has_value());
    co_return done;
  }
  const bool clears = step.kind == Step::Kind::clear_bitmap;
  const bool enable = !bitmaps_.enabled(name);
  bitmaps_.begin_edit(name, clears);
  Result<void> done;
  if (clears) {
    done = co_await image.clear_bitmap(name).result();
  } else {
    done = co_await image.enable_bitmap(name, enable).result();
  }
  bitmaps_.end_edit(name, done.has_value(), clears, enable, oracle_.fresh_token());
  co_return done;
}

/// What is cut off becomes zeros, as if it had been discarded.
std::vector<uint64_t> Run::begin_resize(uint64_t size) {
  std::vector<uint64_t> changes;
  for (const Window& window : windows_) {
    const uint64_t end = window.offset + window.length;
    const uint64_t start = std::max(window.offset, size);
    if (start < end) changes.push_back(oracle_.begin_change(start, end - start, 0));
  }
  return changes;
}

Task<Result<void>> Run::resize(uint64_t size, Preallocation mode, Process& process) {
  const std::vector<uint64_t> changes = begin_resize(size);
  const auto wanted = sizes_wanted_.insert(size);
  // The rest of the last cluster is zeroed first, while it still belongs to the disk.
  bitmaps_.all_may_change();
  Result<void> done = co_await process.image->resize(size, mode).result();
  oracle_.set_time(process.reactor.now().ns);
  for (const uint64_t change : changes) oracle_.end_change(change, done.has_value(), true);
  if (done) {
    sizes_wanted_.erase(wanted);
    // Others may have changed it meanwhile.
    bitmaps_.resized(size_, size, process.image->size() == size && sizes_wanted_.empty());
    size_ = process.image->size();
  }
  co_return done;
}

/// Nothing that the disk or a snapshot holds may change, but for what a smaller disk loses.
Task<void> Run::amend(AmendOptions wanted, Process& process) {
  const SimReactor::Activity activity(process.reactor, "amend");
  const uint64_t size = wanted.size.value_or(size_);
  const std::vector<uint64_t> changes = size < size_ ? begin_resize(size) : std::vector<uint64_t>();
  sizes_wanted_.insert(size);
  amended_raw_ = wanted.data_file_raw == false;
  if (wanted.size) bitmaps_.all_may_change();
  Result<void> done = co_await process.image->amend(std::move(wanted)).result();
  oracle_.set_time(process.reactor.now().ns);
  const bool refused = !done && done.error().code() == Errc::invalid;
  for (const uint64_t change : changes) oracle_.end_change(change, done.has_value(), true);
  if (done) {
    bitmaps_.resized(size_, process.image->size(), true);
    size_ = process.image->size();
    sizes_wanted_.clear();
  }
  ++report_.requests;
  if (done || refused) co_return;
  ++report_.request_errors;
  if (options_.sink) options_.sink(cat("failed: amend: ", done.error().message()));
  if (!faulty_) fail_with("amend: ", done.error().message());
}

Task<void> Run::client(const std::vector<Step>& steps, Process& process, size_t number) {
  co_await process.reactor.ready().yield();
  for (const Step& step : steps) {
    if (!ok()) break;
    const SimReactor::Activity activity(process.reactor, cat("client ", number, ": ", step.text()));
    if (options_.sink) options_.sink(cat("client ", number, ": ", step.text()));
    co_await perform(step, process);
  }
  if (--process.clients == 0) process.clients_done.set();
}

Task<void> Run::perform(const Step& step, Process& process) {
  Image& image = *process.image;
  Result<void> done;
  switch (step.kind) {
    case Step::Kind::pause:
      co_await process.reactor.sleep(step.pause_ns);
      co_return;
    case Step::Kind::read: {
      std::vector<std::byte> data(step.length);
      const uint64_t read = oracle_.begin_read();
      done = co_await image.read(step.offset, data, Mark::read_guest).result();
      if (done) {
        Result<void> right = oracle_.end_read(read, step.offset, data);
        if (!right) fail_with(right.error().message());
      } else {
        oracle_.end_read(read);
      }
      break;
    }
    case Step::Kind::write: {
      const Token token = oracle_.fresh_token();
      std::vector<std::byte> data(step.length);
      fill_sectors(data, step.offset, token);
      const uint64_t change = oracle_.begin_change(step.offset, step.length, token);
      const BitmapModel::Change recorded = bitmaps_.begin_change(step.offset, step.length);
      done =
          co_await image.write(step.offset, data, {.fua = step.fua, .compressed = step.compressed})
              .result();
      oracle_.set_time(process.reactor.now().ns);
      oracle_.end_change(change, done.has_value(), step.fua);
      // A FUA write is answered some time after it was made.
      bitmaps_.end_change(recorded, done.has_value(), step.fua);
      break;
    }
    case Step::Kind::zero: {
      const bool certain = surely_holds_data(step.offset, step.length);
      const BitmapModel::Change recorded = bitmaps_.begin_change(step.offset, step.length);
      const uint64_t change = oracle_.begin_change(step.offset, step.length, 0);
      done = co_await image
                 .zero(step.offset, step.length, {.may_unmap = step.may_unmap, .fua = step.fua})
                 .result();
      oracle_.set_time(process.reactor.now().ns);
      oracle_.end_change(change, done.has_value(), step.fua);
      bitmaps_.end_change(recorded, done.has_value() && certain, true);
      break;
    }
    case Step::Kind::discard: {
      // Whole clusters become zeros; the edges stay as they are.
      const uint64_t cluster = knobs_.cluster_size();
      const uint64_t start = round_up(step.offset, cluster);
      uint64_t end = round_down(step.offset + step.length, cluster);
      const bool at_end = step.offset + step.length == knobs_.size;
      // The end of the disk, perhaps, which moves.
      const bool may_be_end = knobs_.resizes && end != step.offset + step.length;
      if (at_end || may_be_end)
        end = std::min(round_up(step.offset + step.length, cluster), knobs_.size);
      const bool backed = knobs_.backing != Knobs::Backing::none;
      const bool certain =
          knobs_.discard == DiscardPolicy::unmap && (knobs_.version >= 3 || !backed) && !may_be_end;
      const uint64_t length = end > start ? end - start : 0;
      const bool changes = certain && length != 0 && surely_holds_data(start, length);
      const BitmapModel::Change recorded = bitmaps_.begin_change(start, length);
      const uint64_t change = oracle_.begin_change(start, length, 0, certain);
      done = co_await image.discard(step.offset, step.length, {.fua = step.fua}).result();
      oracle_.set_time(process.reactor.now().ns);
      oracle_.end_change(change, done.has_value(), step.fua && certain);
      bitmaps_.end_change(recorded, done.has_value() && changes, true);
      break;
    }
    case Step::Kind::flush: {
      const uint64_t flush = oracle_.begin_flush();
      done = co_await image.flush().result();
      if (done) oracle_.end_flush(flush);
      break;
    }
    case Step::Kind::resize:
      done = co_await resize(step.length, step.mode, process);
      break;
    case Step::Kind::create_snapshot:
      done = co_await create_snapshot(process);
      break;
    case Step::Kind::apply_snapshot:
      done = co_await apply_snapshot(step.offset, process);
      break;
    case Step::Kind::delete_snapshot:
      done = co_await delete_snapshot(step.offset, process);
      break;
    case Step::Kind::check:
      done = co_await check(step.may_unmap, process);
      break;
    case Step::Kind::add_bitmap:
    case Step::Kind::remove_bitmap:
    case Step::Kind::clear_bitmap:
    case Step::Kind::toggle_bitmap:
    case Step::Kind::merge_bitmap:
      done = co_await change_bitmap(step, process);
      break;
  }
  ++report_.requests;
  if (done) co_return;
  // Behind the end of a disk that has become smaller.
  if (knobs_.resizes && done.error().code() == Errc::invalid) co_return;
  // Refcounts that would not fit; a snapshot that another client has just deleted.
  if (step.is_of_snapshot() &&
      (done.error().code() == Errc::invalid || done.error().code() == Errc::not_found)) {
    co_return;
  }
  // Another client has just removed it; no room in the header, or a disk of 0 bytes.
  if (step.is_of_bitmap() &&
      (done.error().code() == Errc::invalid || done.error().code() == Errc::not_found ||
       done.error().code() == Errc::unsupported)) {
    co_return;
  }
  ++report_.request_errors;
  if (options_.sink) options_.sink(cat("failed: ", step.text(), ": ", done.error().message()));
  if (!faulty_) fail_with(step.text(), ": ", done.error().message());
}

/// What the life leaves behind, judged; and, if its power failed, cut.
void Run::end(const Life& life, Process& process, const ImageVerdict& before, bool lost) {
  if (!ok()) return;
  if (!process.closed_well) {
    process.reactor.kill_all();
    for (auto& [name, disk] : disks_) disk.settle();
    oracle_.process_died();
    unclean_ = true;
    // M6, with time for the commit itself; not where I/O is late or fails.
    constexpr int64_t kCommitTakes = 30 * kMillisecond;
    const bool prompt = !faulty_ && knobs_.delays.late_one_in == 0;
    oracle_.survives_kill_if_before(
        prompt ? process.reactor.now().ns - knobs_.commit_delay - kCommitTakes : INT64_MIN);
  }
  if (life.end == Life::End::power_cut || lost) {
    Prng prng(mix(life.seed, 4));
    const uint64_t way = prng.below(8);
    const CutChoice choice = way == 0   ? CutChoice::none()
                             : way == 1 ? CutChoice::all()
                                        : CutChoice::random(prng.next(), prng.one_in(3));
    for (auto& [name, disk] : disks_) {
      disk.power_cut(name == "data" ? draw_data_cut(prng) : choice);
    }
    unclean_ = cut_ = true;
  } else if (process.closed_well) {
    check_cut(CutChoice::none(), false);  // What was closed is durable.
  }
  const ImageVerdict after = verdict_of(disk());
  if (!after.sound()) return fail_with("afterwards the image is not sound: ", after.text());
  if (process.closed_well && !unclean_) {
    // It stays where a change of the snapshots could not be put right (S1).
    if (after.dirty && !(faulty_ && knobs_.snapshots))
      return fail_with("dirty after a clean close");
    if (!faulty_ && !before.dirty && after.leaks > before.leaks) {
      return fail_with("a clean close leaks: ", after.leaks, " clusters, ", before.leaks,
                       " before");
    }
    if (!faulty_ && !before.dirty && after.copied_drift > before.copied_drift) {
      return fail_with("COPIED is missing after a clean close: ", after.copied_drift, " entries, ",
                       before.copied_drift, " before");
    }
  }
  if (knobs_.bitmaps) {
    const bool exact = process.closed_well && !unclean_ && !faulty_;
    const Result<void> right = bitmaps_.check(after.bitmaps, after.size, nullptr, exact);
    if (!right) return fail_with("afterwards: ", right.error().message());
    if (!exact) unclean_bitmaps_ = true;
  }
  judge("at the end of the life");
}

/// Independent of what the image's disk keeps: the order between the two files is what counts.
CutChoice Run::draw_data_cut(Prng& prng) {
  const uint64_t way = prng.below(6);
  if (way < 2) return CutChoice::none();
  if (way == 2) return CutChoice::all();
  const std::vector<LogEntry> log = data_disk()->log();
  if (way == 3 && !log.empty()) return CutChoice::prefix(log, prng.below(log.size()));
  return CutChoice::random(prng.next(), prng.one_in(3));
}

void Run::random_cut(Prng& prng) {
  const uint64_t way = prng.below(10);
  const bool twice = prng.one_in(4);
  if (data_disk()) {
    const CutChoice data = draw_data_cut(prng);
    const std::vector<LogEntry> log = disk().log();
    const CutChoice choice = way < 2   ? CutChoice::none()
                             : way < 4 ? CutChoice::all()
                             : way < 6 && !log.empty()
                                 ? CutChoice::prefix(log, prng.below(log.size()))
                                 : CutChoice::random(prng.next(), prng.one_in(3));
    return check_cut(choice, twice, data);
  }
  if (way == 0) return check_cut(CutChoice::none(), twice);
  if (way == 1) return check_cut(CutChoice::all(), twice);
  const std::vector<LogEntry> log = disk().log();
  if (way < 6 || log.size() < 2) {
    return check_cut(CutChoice::random(prng.next(), prng.one_in(3)), twice);
  }
  const size_t b = prng.between(1, log.size() - 1);
  const size_t a = prng.below(b);
  switch (way) {
    case 6:
      return check_cut(CutChoice::prefix(log, b), twice);
    case 7:
      return check_cut(CutChoice::only(log[b]), twice);
    case 8:
      return check_cut(CutChoice::all_but(log, log[a]), twice);
    default:
      return check_cut(CutChoice::b_without_a(log, b, a), twice);
  }
}

/// Everything that engine.md, part 3, asks for at one moment of a short history.
void Run::every_cut() {
  constexpr uint64_t kStatesMax = 4096;
  const std::vector<LogEntry> log = disk().log();
  std::set<std::set<uint64_t>> seen;
  const auto check = [&](const CutChoice& choice) {
    if (ok() && seen.insert(choice.entries).second) check_cuts(choice);
  };
  if (data_disk()) {
    const std::vector<LogEntry> data = data_disk()->log();
    for (const LogEntry& entry : data) {
      for (const CutChoice& image : {CutChoice::none(), CutChoice::all()}) {
        if (ok()) check_cut(image, false, CutChoice::only(entry));
        if (ok()) check_cut(image, false, CutChoice::all_but(data, entry));
      }
    }
  }
  for (size_t i = 0; i <= log.size(); ++i) check(CutChoice::prefix(log, i));
  for (const LogEntry& entry : log) {
    check(CutChoice::only(entry));
    check(CutChoice::all_but(log, entry));
  }
  for (size_t b = 1; b < log.size(); ++b) {
    for (size_t a = 0; a < b; ++a) check(CutChoice::b_without_a(log, b, a));
  }
  // Every state of the sectors, if those are few.
  const std::vector<SimDisk::UnsyncedSector> sectors = disk().unsynced_sectors();
  uint64_t states = 1;
  for (const SimDisk::UnsyncedSector& sector : sectors) {
    states = std::min(states * (sector.versions + 1), kStatesMax + 1);
  }
  if (states > kStatesMax) {
    Prng prng(mix(history_.seed, report_.deliveries));
    for (int i = 0; i < 16 && ok(); ++i) {
      const CutChoice choice = CutChoice::random(prng.next(), i % 4 == 3);
      check_cut(choice, false, data_disk() ? std::optional(draw_data_cut(prng)) : std::nullopt);
    }
    return;
  }
  CutChoice choice{.mode = CutChoice::Mode::versions};
  choice.versions.resize(sectors.size());
  for (uint64_t state = 0; state < states && ok(); ++state) {
    uint64_t rest = state;
    for (size_t i = 0; i < sectors.size(); ++i) {
      choice.versions[i] = static_cast<uint32_t>(rest % (sectors[i].versions + 1));
      rest /= sectors[i].versions + 1;
    }
    check_cuts(choice);
  }
}

void Run::check_cuts(const CutChoice& choice) {
  if (!data_disk()) return check_cut(choice, false);
  check_cut(choice, false, CutChoice::none());
  if (ok()) check_cut(choice, false, CutChoice::all());
}

/// The machine as it would come up after a cut at this moment.
void Run::check_cut(const CutChoice& choice, bool twice, std::optional<CutChoice> data) {
  ++report_.cuts;
  SimDisks disks;
  for (const auto& [name, original] : disks_) {
    disks.emplace(name, original.cut(data && name == "data" ? *data : choice));
  }
  const SimDisks as_cut = disks;
  const auto wrong = [&](const auto&... parts) {
    fail_with("a power cut here (mode ", static_cast<int>(choice.mode), ", after ",
              report_.deliveries, " deliveries): ", parts...);
    report_.disks = as_cut;
  };

  std::vector<std::vector<std::byte>> first;
  for (int round = 0; round < (twice ? 2 : 1); ++round) {
    SimDisk& disk = disks.find("image")->second;
    const ImageVerdict before = verdict_of(disk);
    if (!before.sound()) return wrong("the image is not sound: ", before.text());
    // C2: version 3 has the dirty bit for that.
    // It may have been amended: whoever was version 2 in this life may have got it then.
    const uint32_t version = std::min(load_be<uint32_t>(disk.read(4, 4)), knobs_.version);
    if (version >= 3 && !before.dirty && before.copied_drift > drift_) {
      return wrong("COPIED is missing, and the image is not dirty: ", before.text());
    }
    const auto reactor =
        std::make_shared<SimReactor>(mix(report_.cuts, static_cast<uint64_t>(round)));
    SimGate gate(*reactor, disks, gate_options());
    SimDisks second;
    Prng prng(mix(history_.seed, report_.cuts));
    const uint64_t when = prng.between(1, 60);
    uint64_t deliveries = 0;
    if (twice && round == 0) {
      reactor->after_delivery = [&] {
        if (++deliveries != when) return;
        const CutChoice again = CutChoice::random(prng.next());
        for (const auto& [name, original] : disks) second.emplace(name, original.cut(again));
      };
    }
    const auto bury = [&] { SimReactor::bury(reactor); };
    Result<std::unique_ptr<Image>> opened =
        reactor->finish(Image::open(*reactor, gate, "image", knobs_.image_options()));
    if (!opened) {
      bury();
      return wrong("the image does not open: ", opened.error().message());
    }
    std::shared_ptr<Image> image = *std::move(opened);
    std::vector<std::vector<std::byte>> found;
    const Result<void> read = reactor->finish(read_windows(*image, windows_, found));
    if (!read) {
      bury();
      SimReactor::bury(image);
      return wrong("the disk cannot be read: ", read.error().message());
    }
    const uint64_t size = image->size();
    Result<void> sound = check_size(size);
    if (sound) sound = reactor->finish(check_tail(*image));
    if (sound && knobs_.snapshots) {
      sound = reactor->finish(look_at_snapshots(*reactor, gate, image->snapshots(), false));
    }
    if (sound) sound = check_usable_bitmaps(*image);
    const Result<void> closed = reactor->finish(image->close());
    if (!closed) {
      bury();
      SimReactor::bury(image);
      return wrong("the image does not close: ", closed.error().message());
    }
    if (!sound) return wrong(sound.error().message());
    if (knobs_.bitmaps) {
      Result<void> kept = bitmaps_.check(before.bitmaps, before.size, &found, false);
      if (!kept) return wrong(kept.error().message());
    }
    for (size_t i = 0; i < windows_.size(); ++i) {
      if (round == 1 && found[i] != first[i]) {
        return wrong("a second cut during recovery changed what the disk holds");
      }
      const Result<void> allowed = oracle_.check_after_cut(windows_[i].offset, found[i]);
      if (!allowed) return wrong(allowed.error().message());
    }
    if (knobs_.data_file == Knobs::DataFile::raw && raw_windows(disks, size) != found) {
      return wrong("the raw data file differs from the disk");
    }
    const ImageVerdict after = verdict_of(disk);
    if (!after.sound()) return wrong("opened and closed, the image is not sound: ", after.text());
    if (after.dirty) return wrong("opened and closed, the image is dirty");
    if (knobs_.bitmaps) {
      Result<void> kept = bitmaps_.check(after.bitmaps, after.size, &found, false);
      if (!kept) return wrong("opened and closed: ", kept.error().message());
    }
    if (!before.dirty && after.leaks > before.leaks) {
      return wrong("opening and closing leaks ", after.leaks - before.leaks, " clusters");
    }
    if (second.empty()) break;
    first = std::move(found);
    disks = std::move(second);
  }
}

}  // namespace

std::string Step::text() const {
  if (kind == Kind::flush) return "flush";
  if (kind == Kind::check) return cat("check", may_unmap ? ", frees leaks" : "");
  if (kind == Kind::resize) {
    return fmt::format(
        "resize {:#x}{}", length,
        mode == Preallocation::off ? "" : cat(" preallocation ", static_cast<int>(mode)));
  }
  if (is_of_snapshot()) return cat(name_of(kind), " ", offset);
  if (kind == Kind::add_bitmap) return cat(name_of(kind), " of granularity ", length);
  if (is_of_bitmap()) return cat(name_of(kind), " ", offset);
  if (kind == Kind::pause) return fmt::format("pause {} us", pause_ns / 1000);
  return fmt::format("{} {:#x}+{:#x}{}{}{}", name_of(kind), offset, length, fua ? " fua" : "",
                     may_unmap ? " may_unmap" : "", compressed ? " compressed" : "");
}

std::string History::text() const {
  std::string text = cat("seed ", seed, ": ", knobs.text(), "\n");
  for (size_t i = 0; i < lives.size(); ++i) {
    const Life& life = lives[i];
    const std::string_view end = life.end == Life::End::close  ? "close"
                                 : life.end == Life::End::kill ? "kill"
                                                               : "power cut";
    text += cat("life ", i, " (", end,
                life.end == Life::End::close ? "" : cat(" after ", life.ends_after),
                life.faults.can_fail() ? ", faults" : "", ")\n");
    for (const Step& step : life.warm_up) text += cat("  first: ", step.text(), "\n");
    if (life.amend) {
      const AmendOptions& a = *life.amend;
      text += "  amend:";
      if (a.version) text += cat(" version ", *a.version);
      if (a.refcount_bits) text += cat(" refcount_bits ", *a.refcount_bits);
      if (a.lazy_refcounts) text += cat(" lazy ", *a.lazy_refcounts ? "on" : "off");
      if (a.size) text += cat(" size ", hex(*a.size));
      if (a.backing_format) text += cat(" backing_fmt ", *a.backing_format);
      if (a.data_file_raw) text += " data_file_raw off";
      text += "\n";
    }
    for (size_t c = 0; c < life.clients.size(); ++c) {
      for (const Step& step : life.clients[c]) text += cat("  client ", c, ": ", step.text(), "\n");
    }
  }
  return text;
}

RunReport run_history(const History& history, const RunOptions& options) {
  if (options.begun && !options.begun(history)) return {.failure = "not played"};
  return Run(history, options).run();
}

std::vector<Step> draw_steps(const Knobs& knobs, Prng& prng, size_t count) {
  const std::vector<Window> windows = windows_of(knobs);
  std::vector<Step> steps;
  while (steps.size() < count) {
    Step step;
    if (knobs.resizes && prng.one_in(10)) {
      const Window& window = windows[prng.below(windows.size())];
      step.kind = Step::Kind::resize;
      step.length = knobs.size;
      if (!prng.one_in(3)) {
        step.length = window.offset + prng.between(1, window.length / kSectorSize) * kSectorSize;
        if (prng.one_in(2)) step.length = round_up(step.length, knobs.cluster_size());
        step.length = std::min(step.length, knobs.size);
      }
      // Not where a disk of 256 MiB would get all its clusters.
      if (knobs.size <= 64 * knobs.cluster_size() && prng.one_in(2)) {
        step.mode = static_cast<Preallocation>(prng.between(1, 3));
      }
      steps.push_back(step);
      continue;
    }
    if (knobs.checks && prng.one_in(6)) {
      step.kind = Step::Kind::check;
      step.may_unmap = prng.one_in(4);
      steps.push_back(step);
      continue;
    }
    if (knobs.bitmaps && prng.one_in(6)) {
      const uint64_t which = prng.below(6);
      step.kind = which < 2    ? Step::Kind::add_bitmap
                  : which < 4  ? Step::Kind::clear_bitmap
                  : which == 4 ? Step::Kind::toggle_bitmap
                               : Step::Kind::remove_bitmap;
      step.offset = prng.below(1000);
      if (which == 5 && step.offset % 2 != 0) step.kind = Step::Kind::merge_bitmap;
      step.length = uint64_t{512} << prng.below(9);
      steps.push_back(step);
      continue;
    }
    if (knobs.snapshots && prng.one_in(5)) {
      const uint64_t which = prng.below(4);
      step.kind = which < 2    ? Step::Kind::create_snapshot
                  : which == 2 ? Step::Kind::apply_snapshot
                               : Step::Kind::delete_snapshot;
      step.offset = prng.below(1000);
      steps.push_back(step);
      continue;
    }
    const uint64_t what = prng.below(16);
    if (what == 15) {
      step.kind = Step::Kind::pause;
      step.pause_ns = static_cast<int64_t>(prng.between(1, 40)) * kMillisecond / 4;
      steps.push_back(step);
      continue;
    }
    if (what >= 13) {
      step.kind = Step::Kind::flush;
      steps.push_back(step);
      continue;
    }
    step.kind = what < 6    ? Step::Kind::write
                : what < 8  ? Step::Kind::read
                : what < 11 ? Step::Kind::discard
                            : Step::Kind::zero;
    step.fua = prng.one_in(8);
    step.may_unmap = prng.one_in(2);
    const Window& window = windows[prng.below(windows.size())];
    const uint64_t cluster = knobs.cluster_size();
    const uint64_t end = window.offset + window.length;
    if (prng.one_in(2)) {  // Whole clusters.
      const uint64_t first = prng.below(div_ceil(window.length, cluster));
      step.offset =
          std::min(round_down(window.offset, cluster) + first * cluster, end - kSectorSize);
      step.offset = std::max(step.offset, window.offset);
      step.length = std::min(prng.between(1, 3) * cluster, end - step.offset);
    } else {
      step.offset = window.offset + prng.below(window.length / kSectorSize) * kSectorSize;
      const uint64_t longest = prng.one_in(2) ? cluster : 3 * cluster;
      step.length = prng.between(1, std::max<uint64_t>(longest / kSectorSize, 1)) * kSectorSize;
      step.length = std::min(step.length, end - step.offset);
    }
    // Streams are made of whole clusters.
    const bool ends_whole =
        (step.offset + step.length) % cluster == 0 || step.offset + step.length == knobs.size;
    const bool streams = knobs.data_file == Knobs::DataFile::none;
    step.compressed = step.kind == Step::Kind::write && streams && step.offset % cluster == 0 &&
                      ends_whole && prng.one_in(2);
    steps.push_back(step);
  }
  return steps;
}

}  // namespace byre
