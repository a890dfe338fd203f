// SPDX-License-Identifier: Apache-2.0
/// The end of an incarnation, and the machine as it would come up after a power loss.
#include <algorithm>
#include <utility>

#include "format/codec.h"
#include "run.h"

namespace byre {

namespace {

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
                       IoTag::none);
  if (!is_zero(tail))
    co_await fail(corrupt("behind the end of the disk, at ", hex(size), ", is data"));
}

}  // namespace

/// What the incarnation leaves behind, judged; and, if its power failed, cut.
void Run::end(const Incarnation& incarnation, Process& process, const ImageVerdict& before,
              bool lost) {
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
  if (incarnation.end == Incarnation::End::power_cut || lost) {
    Prng prng(mix_seeds(incarnation.seed, 4));
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
  if (!acceptable(after)) return fail_with("afterwards the image is not sound: ", after.text());
  if (damaged_ && process.closed_well && !faulty_ && after.undercounted != 0 &&
      knobs_.scan == ImageOptions::Scan::at_open && knobs_.refcount_order > 1) {
    return fail_with("opened and closed, it is not healed: ", after.text());
  }
  if (process.closed_well && !unclean_ && !damaged_) {
    // It stays where a change of the snapshots could not be put right (S1).
    if (after.dirty && !(faulty_ && knobs_.snapshots))
      return fail_with("dirty after a clean close");
    if (!faulty_ && !before.dirty && after.leaks > before.leaks) {
      return fail_with("a clean close leaks: ", after.leaks, " clusters, ", before.leaks,
                       " before");
    }
    if (!faulty_ && !before.dirty && after.copied_mismatch > before.copied_mismatch) {
      return fail_with("COPIED is missing after a clean close: ", after.copied_mismatch,
                       " entries, ", before.copied_mismatch, " before");
    }
  }
  if (knobs_.bitmaps) {
    const bool exact = process.closed_well && !unclean_ && !faulty_;
    const Result<void> right = bitmaps_.check(after.bitmaps, after.size, nullptr, exact);
    if (!right) return fail_with("afterwards: ", right.error().message());
    if (!exact) unclean_bitmaps_ = true;
  }
  judge("at the end of the incarnation");
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

/// Every set of writes that docs/simulation.md ("The world") names, at one moment of a short
/// history.
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
    Prng prng(mix_seeds(history_.seed, report_.deliveries));
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
    fail_with("a power loss here (mode ", static_cast<int>(choice.mode), ", after ",
              report_.deliveries, " deliveries): ", parts...);
    report_.disks = as_cut;
  };

  std::vector<std::vector<std::byte>> first;
  for (int round = 0; round < (twice ? 2 : 1); ++round) {
    SimDisk& disk = disks.find("image")->second;
    const ImageVerdict before = verdict_of(disk);
    if (!acceptable(before)) return wrong("the image is not sound: ", before.text());
    // C2: version 3 has the dirty bit for that.
    // It may have been amended: whoever was version 2 in this incarnation may have got it then.
    const uint32_t version = std::min(load_be<uint32_t>(disk.read(4, 4)), knobs_.version);
    if (version >= 3 && !before.dirty && !damaged_ && before.copied_mismatch > drift_) {
      return wrong("COPIED is missing, and the image is not dirty: ", before.text());
    }
    const auto reactor =
        std::make_shared<SimReactor>(mix_seeds(report_.cuts, static_cast<uint64_t>(round)));
    SimGate opener(*reactor, disks, gate_options());
    SimDisks second;
    Prng prng(mix_seeds(history_.seed, report_.cuts));
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
        reactor->finish(Image::open(*reactor, opener, "image", knobs_.image_options()));
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
      sound = reactor->finish(look_at_snapshots(*reactor, opener, image->snapshots(), false));
    }
    if (sound) sound = check_usable_bitmaps(*image);
    if (sound) sound = look_at_lost(*reactor, *image);
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
      const Result<void> allowed = oracle_.check_after_cut(
          windows_[i].offset, found[i], size > cut_to_ ? cut_off_ : std::set<uint64_t>());
      if (!allowed) return wrong(allowed.error().message());
    }
    if (knobs_.data_file == Knobs::DataFile::raw && raw_windows(disks, size) != found) {
      return wrong("the raw data file differs from the disk");
    }
    const ImageVerdict after = verdict_of(disk);
    if (!acceptable(after))
      return wrong("opened and closed, the image is not sound: ", after.text());
    if (after.dirty) return wrong("opened and closed, the image is dirty");
    if (knobs_.bitmaps) {
      Result<void> kept = bitmaps_.check(after.bitmaps, after.size, &found, false);
      if (!kept) return wrong("opened and closed: ", kept.error().message());
    }
    if (!before.dirty && !damaged_ && after.leaks > before.leaks) {
      return wrong("opening and closing leaks ", after.leaks - before.leaks, " clusters");
    }
    if (second.empty()) break;
    first = std::move(found);
    disks = std::move(second);
  }
}

}  // namespace byre
