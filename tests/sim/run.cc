// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <algorithm>
#include <utility>

#include "damage.h"
#include "qcow2/ops/heal.h"

namespace byre {

namespace {
constexpr uint64_t kReadAtOnce = 256 * KiB;
}

std::vector<Window> windows_of(const Knobs& knobs) {
  std::vector<Window> windows;
  for (Window window : knobs.windows) {
    if (window.offset >= knobs.size) continue;
    window.length = std::min(window.length, knobs.size - window.offset);
    windows.push_back(window);
  }
  return windows;
}

Task<void> read_windows(Device& image, const std::vector<Window>& windows,
                        std::vector<std::vector<std::byte>>& out) {
  for (const Window& window : windows) {
    std::vector<std::byte> data(window.length);
    const uint64_t there =
        window.offset < image.size() ? std::min(window.length, image.size() - window.offset) : 0;
    for (uint64_t at = 0; at < there; at += kReadAtOnce) {
      const uint64_t length = std::min(kReadAtOnce, there - at);
      co_await image.read(window.offset + at, MutableBytes(data).subspan(at, length),
                          IoTag::read_guest);
    }
    out.push_back(std::move(data));
  }
}

RunReport Run::run() {
  build_disks(knobs_, mix_seeds(history_.seed, 1), disks_, oracle_);
  const ImageVerdict start = verdict_of(disk());
  if ((!start.sound() || start.leaks != knobs_.leaks)) {
    fail_with("the starting image is wrong: ", start.text(), "; leaks wanted: ", knobs_.leaks);
  }
  // The header's sector; data only where a request writes no more than its own sectors to a cluster
  // that it does not own alone: otherwise what failed could overtake what was written again over
  // it.
  const bool late_data = knobs_.version == 2 && knobs_.block_size <= kSectorSize;
  disk().options().may_land_late = [late_data](const Op& op) {
    if (op.offset == 0 && op.length == kSectorSize) return true;
    return late_data && op.length >= kSectorSize && is_stamped(bytes_at(op.buffer, kSectorSize));
  };
  judge("the starting image");
  for (size_t i = 0; i < history_.incarnations.size() && ok(); ++i) {
    incarnation_ = i;
    if (knobs_.damaged && i == knobs_.damaged_before) plant_damage();
    live(history_.incarnations[i]);
  }
  if (ok()) {
    incarnation_ = history_.incarnations.size();
    live({.seed = mix_seeds(history_.seed, 2)});  // Sees what the last one left.
  }
  report_.hash = hash_;
  if (report_.disks.empty()) report_.disks = disks_;
  return std::move(report_);
}

void Run::cut_while_it_heals(SimReactor& reactor, const Incarnation& incarnation) {
  constexpr uint64_t kCutsMax = 6;
  reactor.after_delivery = [this, &reactor, cuts = uint64_t{0},
                            prng = Prng(mix_seeds(incarnation.seed, 6))]() mutable {
    if (!ok() || cuts == kCutsMax || !prng.one_in(4)) return;
    ++cuts;
    random_cut(prng);
    if (!ok()) reactor.fail(report_.failure);
  };
}

void Run::plant_damage() {
  damage_disk(knobs_, mix_seeds(history_.seed, 5), disk(), oracle_);
  const ImageVerdict damaged = verdict_of(disk());
  damaged_ = true;
  undercounted_ = damaged.undercounted;
  copied_shared_ = damaged.copied_shared;
}

void Run::live(const Incarnation& incarnation) {
  const auto process =
      std::make_shared<Process>(SimReactor::Options{.seed = incarnation.seed,
                                                    .delays = knobs_.delays,
                                                    .resume_at_once = options_.resume_at_once,
                                                    .steps_max = 20'000'000},
                                disks_, gate_options());
  SimReactor& reactor = process->reactor;
  reactor.trace().sink = options_.sink;

  if (damaged_) cut_while_it_heals(reactor, incarnation);
  Result<std::unique_ptr<Image>> opened =
      reactor.finish(Image::open(reactor, process->opener, "image", knobs_.image_options()));
  reactor.after_delivery = nullptr;
  if (!ok()) {
    if (opened) process->image = *std::move(opened);
  } else if (!opened) {
    fail_with("the image does not open: ", opened.error().message());
  } else {
    process->image = *std::move(opened);
    if (knobs_.graph) {  // The scan may run beside it.
      const Child edge = Child::to(*process->image);
      (void)reactor.finish(drain(20 * kMillisecond, *process));
    }
    if (ok()) first_look(*process);
  }
  if (ok()) {
    const ImageVerdict before = verdict_of(disk());
    drift_ = before.copied_mismatch;
    leaks_ = before.leaks;
    leaks_in_file_ = before.leaks_in_file;
    const uint64_t lost_before = syncs_lost();
    for (SimDisk* each : written()) {
      each->options().faults = incarnation.faults;
      if (incarnation.room != 0)
        each->options().capacity = each->allocated_bytes() + incarnation.room;
    }
    faulty_ = incarnation.faults.can_fail() || incarnation.room != 0;
    work(incarnation, *process);
    if (incarnation_ == 0) report_.faults = disk().options().faults;
    report_.header_writes =
        std::max(report_.header_writes, disk().options().faults.first_sector_writes());
    for (SimDisk* each : written()) {
      each->options().faults.clear();
      each->options().capacity = 0;
    }
    reactor.after_delivery = nullptr;
    hash_ = mix_seeds(hash_, reactor.trace().hash());
    end(incarnation, *process, before, syncs_lost() != lost_before);
  }
  if (!process->closed_well) SimReactor::bury(process);
}

std::vector<std::vector<std::byte>> Run::raw_windows(const SimDisks& disks, uint64_t size) const {
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

Task<void> Run::look_again_at_lost(Image& image) {
  if (!lost_fails_) co_return;
  std::vector<std::byte> sector(kSectorSize);
  const Result<void> read =
      co_await image.read(knobs_.lost_guest, sector, IoTag::read_guest).result();
  if (read) fail_with("the lost range at ", hex(knobs_.lost_guest), " reads as something now");
}

Result<void> Run::look_at_lost(SimReactor& reactor, Image& image) const {
  if (knobs_.lost_guest == 0 || knobs_.lost_guest + kSectorSize > image.size()) return {};
  std::vector<std::byte> sector(kSectorSize);
  const Result<void> read =
      reactor.finish(image.read(knobs_.lost_guest, sector, IoTag::read_guest));
  if (!read || is_zero(sector)) return {};
  return corrupt("the lost range at ", hex(knobs_.lost_guest), " shows something");
}

void Run::first_look(Process& process) {
  if (const Result<void> lost = look_at_lost(process.reactor, *process.image); !lost)
    return fail_with("on opening: ", lost.error().message());
  lost_fails_ =
      knobs_.scan == ImageOptions::Scan::at_open && process.image->health().damage.lost.size() == 1;
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
      look_at_snapshots(process.reactor, process.opener, process.image->snapshots(), true));
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

Result<void> Run::check_usable_bitmaps(const Image& image) {
  for (const auto& slot : image.bitmaps()) {
    if (slot->state != BitmapState::usable) return corrupt(slot->reason);
  }
  return {};
}

void Run::work(const Incarnation& incarnation, Process& process) {
  SimReactor& reactor = process.reactor;
  uint64_t deliveries = 0;
  uint64_t cuts = 0;
  Prng prng(mix_seeds(incarnation.seed, 3));
  reactor.after_delivery = [&] {
    ++deliveries;
    ++report_.deliveries;
    if (!ok()) return;
    if (incarnation.every_cut) {
      every_cut();
    } else if (incarnation.cut_one_in != 0 && cuts < incarnation.cuts_max &&
               prng.one_in(incarnation.cut_one_in)) {
      ++cuts;
      random_cut(prng);
    }
    if (!ok()) reactor.fail(report_.failure);
  };
  process.scope.spawn(main(incarnation, process));
  const bool dies = incarnation.end != Incarnation::End::close;
  const auto over = [&] {
    return dies &&
           (deliveries >= incarnation.ends_after || reactor.now().ns >= incarnation.ends_at_ns);
  };
  while (!process.ended && !over()) {
    if (reactor.advance()) continue;
    fail_with(reactor.failure());
    break;
  }
}

Task<void> Run::main(const Incarnation& incarnation, Process& process) {
  if (knobs_.graph) process.graph.entrance = std::make_unique<Entrance>(Child::to(*process.image));
  for (const Step& step : incarnation.warm_up) co_await perform(step, process);
  if (incarnation_ == 0 && options_.chooser) process.reactor.set_chooser(options_.chooser);
  process.clients = incarnation.clients.size();
  if (process.clients == 0) process.clients_done.set();
  for (size_t i = 0; i < incarnation.clients.size(); ++i) {
    process.scope.spawn(client(incarnation.clients[i], process, i));
  }
  co_await process.clients_done.wait();
  process.reactor.set_chooser(nullptr);
  if (incarnation.keeps_writing && ok()) {
    (void)co_await process.image->flush().result();  // May be the one that meets the error.
    const Result<void> flushed = co_await process.image->flush().result();
    if (!flushed) fail_with("one error ended all writing: ", flushed.error().message());
  }
  if (process.graph.filter) (void)co_await toggle_filter(process);
  if (process.graph.snapshot) (void)co_await end_snapshot(process);
  process.graph.entrance.reset();
  co_await look_again_at_lost(*process.image);
  if (incarnation.amend && ok()) co_await amend(*incarnation.amend, process);
  const SimReactor::Activity activity(process.reactor, "close");
  const uint64_t flush = oracle_.begin_flush();
  const Result<void> closed = co_await process.image->close().result();
  if (closed) oracle_.end_flush(flush);
  if (!closed && !faulty_) fail_with("close: ", closed.error().message());
  process.closed_well = closed.has_value();
  process.ended = true;
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

}  // namespace byre
