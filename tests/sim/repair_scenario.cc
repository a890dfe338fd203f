// SPDX-License-Identifier: Apache-2.0
/// Damaged images, repaired under an undo journal, with power losses at every step: of the repair
/// and of the undo (docs/engine.md, R1 to R5, R8 and R9).
///
/// A small image is made by hand, some entries are then led astray, and tables of snapshots and
/// bitmaps spoilt (R8); sometimes entries lead nowhere, and losses are accepted (R9).  At each cut:
/// no cluster has fewer counts than references that had not before; undo restores every byte; the
/// repair run again ends sound; undo restores every byte then, too.  In the end: what each guest
/// cluster reads is what it read before, and orphans are still there unless they were let go,
/// whoever repairs next, also from a cut.  When a guest writes in place before the undo, no other
/// one reads that after it.
#include <algorithm>
#include <memory>

#include "block/raw.h"
#include "checker.h"
#include "format/l2.h"
#include "format/refcount.h"
#include "qcow2/ops/create.h"
#include "qcow2/repair/check.h"
#include "qcow2/repair/recover.h"
#include "qcow2/repair/undo.h"
#include "scenarios.h"

namespace byre {

namespace {

using Content = std::vector<std::byte>;

uint64_t word(const Content& image, uint64_t at) {
  return at + 8 <= image.size() ? load_be<uint64_t>(image, at) : 0;
}

Content content_of(const SimDisk& disk) { return disk.read(0, disk.size()); }

std::unique_ptr<RawDevice> device_on(SimReactor& reactor, SimDisk& disk, const char* name) {
  return std::make_unique<RawDevice>(
      std::make_unique<File>(
          reactor,
          File::Properties{
              .name = name, .fd = disk.open(reactor, true), .size = disk.size(), .writable = true}),
      RawOptions{.growable = true});
}

class RepairRun {
 public:
  RepairRun(uint64_t seed, Verdict& verdict)
      : seed_(seed), prng_(seed * 64 + 21), verdict_(verdict) {}

  void run() {
    make_image();
    if (!verdict_.failure.empty()) return;
    for (uint64_t n = prng_.between(1, 3); n != 0; --n) lead_astray();
    lossy_ = prng_.one_in(4);
    if (lossy_) lead_nowhere();
    if (prng_.one_in(3)) spoil_snapshots();
    if (prng_.one_in(3)) spoil_bitmaps();
    disk_.put(0, image_);
    before_ = content_of(disk_);
    undercounted_ = undercounted(disk_);
    guests_ = guests_of(before_);

    const std::optional<Recovery> plan = plan_it();
    if (!plan) return;
    if (content_of(disk_) != before_) return fail("a plan wrote to the image");
    verdict_.histories = 1;
    if (!plan->refused.empty() || !plan->needed) return;
    for (const Finding::Guest& lost : plan->log.lost) {
      for (uint64_t at = lost.offset / cluster_; at < (lost.offset + lost.length) / cluster_;
           ++at) {
        if (at < guests_.size()) guests_[at].clear();
      }
    }
    keep_orphans(*plan);
    if (verdict_.failure.empty()) repair_with_cuts();
  }

 private:
  void fail(std::string why) {
    if (verdict_.failure.empty()) {
      verdict_.failure = cat("seed ", seed_, ": ", why);
      verdict_.disks["image"] = disk_;
      verdict_.disks["journal"] = kept_;
    }
  }

  // The image.

  void make_image() {
    const uint64_t size = prng_.one_in(2) ? 512 : 4096;
    cluster_ = size;
    SimDisk fresh;
    SimReactor reactor(seed_);
    const auto device = device_on(reactor, fresh, "image");
    const uint32_t bits = 1u << prng_.between(3, 6);
    const CreateOptions options{.size = 4 * MiB, .cluster_size = size, .refcount_bits = bits};
    if (!reactor.finish(create_image(*device, options))) return fail("not created");
    image_ = content_of(fresh);
    order_ = load_be<uint32_t>(image_, 96);
    l1_ = word(image_, 40);
    block_ = word(image_, word(image_, 48));
    entries_ = prng_.between(4, 20);
    const uint64_t l2 = append(std::byte{0});
    store_be(image_, l1_, l2 | kCopied);
    for (uint64_t i = 0; i < entries_; ++i) {
      const uint64_t at = append(std::byte{static_cast<uint8_t>(i + 1)});
      store_be(image_, l2 + 8 * i, at | kCopied);
    }
    l2_ = l2;
  }

  /// A new cluster, counted once.
  uint64_t append(std::byte filling) {
    const uint64_t at = round_up(image_.size(), cluster_);
    image_.resize(at + cluster_, filling);
    set_count(at, 1);
    return at;
  }
  void set_count(uint64_t at, uint64_t count) {
    const MutableBytes block = MutableBytes(image_).subspan(block_, cluster_);
    if (at / cluster_ < cluster_ * 8 >> order_) set_refcount(block, at / cluster_, order_, count);
  }

  uint64_t count_in(const Content& image, uint64_t cluster) const {
    const uint64_t block = word(image, word(image, 48));
    const bool counted = block != 0 && cluster < cluster_ * 8 >> order_;
    return counted ? get_refcount(Bytes(image).subspan(block, cluster_), cluster, order_) : 0;
  }

  void lead_astray() {
    const uint64_t one = prng_.below(entries_);
    const uint64_t other = prng_.below(entries_);
    switch (prng_.below(6)) {
      case 0:  // Two entries on one cluster: peer defect j.
      case 1:
        store_be(image_, l2_ + 8 * one, word(image_, l2_ + 8 * other));
        break;
      case 2:  // Two L1 entries on one table.
        store_be(image_, l1_ + 8, word(image_, l1_));
        break;
      case 3:  // Data in a table.
        store_be(image_, l2_ + 8 * one, (prng_.one_in(2) ? l2_ : block_) | kCopied);
        break;
      case 4:  // A count.
        set_count(word(image_, l2_ + 8 * one) & kOffsetMask, prng_.below(3));
        break;
      default:  // A leak.
        append(std::byte{0xee});
        break;
    }
  }

  /// An entry that no repair can follow.
  void lead_nowhere() {
    const uint64_t at = l2_ + 8 * prng_.below(entries_);
    switch (prng_.below(4)) {
      case 0:
        store_be(image_, at, word(image_, at) | uint64_t{1} << prng_.between(56, 61));
        break;
      case 1:
        store_be(image_, at,
                 kCopied | round_up(image_.size() + cluster_ * prng_.below(40), cluster_));
        break;
      case 2:  // The L1 table; what is spoilt afterwards may come to lie there.
        store_be(image_, 40, round_up(image_.size(), cluster_) + cluster_ * prng_.between(1, 40));
        break;
      default:
        store_be(image_, at, kCopied);
        break;
    }
  }

  /// A snapshot that does not say how large its disk is, and perhaps entries that are not there.
  void spoil_snapshots() {
    const uint64_t l1 = append(std::byte{0});
    const uint64_t table = append(std::byte{0});
    store_be(image_, table, l1);
    store_be(image_, table + 8, uint32_t{1});             // L1 entries.
    store_be(image_, table + 12, uint32_t{0x0001'0001});  // Lengths of id and name.
    image_[table + 40] = image_[table + 41] = std::byte{'1'};
    store_be(image_, 60, static_cast<uint32_t>(prng_.between(1, 3)));
    store_be(image_, 64, table);
    snapshots_ = table;
  }

  /// A bitmap with a granularity that no reader takes, or a table for another disk.
  void spoil_bitmaps() {
    uint64_t at = load_be<uint32_t>(image_, 100);
    while (load_be<uint32_t>(image_, at) != 0)
      at += 8 + round_up(load_be<uint32_t>(image_, at + 4), 8);
    if (at + 40 > kSectorSize) return;
    const uint64_t table = append(std::byte{0});
    const uint64_t directory = append(std::byte{0});
    directory_ = directory;
    const bool invalid = prng_.one_in(2);
    store_be(image_, directory, table);
    store_be(image_, directory + 8, uint32_t{invalid ? 1u : 7u});  // Entries.
    // Type, granularity, length of the name.
    store_be(image_, directory + 16, uint32_t{0x0100'0001} | (invalid ? 60u : 16u) << 16);
    image_[directory + 24] = std::byte{'b'};
    store_be(image_, at, uint32_t{0x23852875});
    store_be(image_, at + 4, uint32_t{24});
    store_be(image_, at + 8, uint32_t{1});
    store_be(image_, at + 16, uint64_t{32});
    store_be(image_, at + 24, directory);
    store_be(image_, 88, word(image_, 88) | 1);
  }

  /// What each guest cluster reads.
  std::vector<Content> guests_of(const Content& image) const {
    std::vector<Content> guests;
    for (uint64_t i = 0; i < 2 * entries_per_table(); ++i) {
      const uint64_t table = entry_of(image, word(image, 40), i / entries_per_table());
      const uint64_t at = entry_of(image, table, i % entries_per_table());
      Content data(cluster_);
      if (at != 0 && at + cluster_ <= image.size()) copy(data, Bytes(image).subspan(at, cluster_));
      guests.push_back(at == 0 ? Content() : std::move(data));
    }
    return guests;
  }
  uint64_t entries_per_table() const { return cluster_ / 8; }
  /// Where entry `index` of the table leads; 0 when there is no table.
  static uint64_t entry_of(const Content& image, uint64_t table, uint64_t index) {
    const uint64_t at = table + 8 * index;
    return table == 0 || at + 8 > image.size() ? 0 : word(image, at) & kOffsetMask;
  }

  static std::vector<std::string> undercounted(const SimDisk& disk) {
    std::vector<std::string> found;
    for (const std::string& error : check_bytes(disk).errors) {
      if (error.find("has refcount") != std::string::npos &&
          error.find("references") != std::string::npos) {
        found.push_back(error.substr(0, error.find(" (")));
      }
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  // What is done to it.

  std::optional<Recovery> plan_it() {
    SimReactor reactor(seed_);
    const auto image = device_on(reactor, disk_, "image");
    Result<Recovery> plan = reactor.finish(plan_recovery(*image, {.accept_loss = lossy_}));
    if (plan) return *std::move(plan);
    fail(plan.error().message());
    return std::nullopt;
  }

  void keep_orphans(const Recovery& plan) {
    SimDisk disk = disk_;
    SimReactor reactor(seed_);
    const bool something_lost = plan.found.corruptions_beyond_qemu != 0 || lossy_;
    std::vector<SimDisk> cuts;
    reactor.after_delivery = [&] {
      if (!something_lost || disk.log().empty() || cuts.size() >= 8 || !prng_.one_in(3)) return;
      cuts.push_back(
          disk.cut(prng_.one_in(2) ? CutChoice::all() : CutChoice::random(prng_.next())));
    };
    const auto image = device_on(reactor, disk, "image");
    const Result<Recovery> done = reactor.finish(recover(*image, {.accept_loss = lossy_}));
    if (!done) return fail(done.error().message());
    if (!something_lost) return;  // No owner lost anything.
    if (!kept_all(disk, "a repair")) return;
    // Whoever comes next, with no journal, here or where the first was cut off.
    cuts.push_back(disk);
    for (SimDisk& cut : cuts) {
      ++verdict_.cuts;
      for (const bool whole : {true, false, true}) {
        if (const Result<void> again = repair_again(cut, whole); !again) {
          return fail(cat("R1: repaired again: ", again.error().message()));
        }
        if (!kept_all(cut, whole ? "the next repair" : "the next check -r leaks")) return;
      }
    }
    if (done->orphans_freed || check_bytes(disk).leaks != done->orphan_clusters) {
      fail(
          cat("R1: of ", done->orphan_clusters, " orphans ", check_bytes(disk).leaks, " are left"));
    }
  }

  /// Looked up by hand: whatever had a count has one still.
  bool kept_all(const SimDisk& disk, std::string_view by) {
    const Content after = content_of(disk);
    for (uint64_t i = 0; i < before_.size() / cluster_; ++i) {
      const bool structure = i * cluster_ == block_ || i * cluster_ == word(before_, 48) ||
                             i * cluster_ == snapshots_ || i * cluster_ == directory_;
      if (!structure && count_in(before_, i) != 0 && count_in(after, i) == 0) {
        fail(cat("R1: the cluster at ", hex(i * cluster_), " was freed by ", by));
        return false;
      }
    }
    return true;
  }

  Result<void> repair_again(SimDisk& disk, bool whole) {
    SimReactor reactor(prng_.next());
    const auto image = device_on(reactor, disk, "image");
    if (whole) {
      const Result<Recovery> done = reactor.finish(recover(*image, {.accept_loss = lossy_}));
      return done ? Result<void>() : done.error().copy();
    }
    const Result<CheckReport> done = reactor.finish(check_image(*image, {.repair = Repair::leaks}));
    return done ? Result<void>() : done.error().copy();
  }

  static Task<Recovery> work(Device& image, Device& journal_file, bool accept_loss) {
    std::optional<UndoJournal> journal;
    if (journal_file.size() == 0) {
      journal = co_await UndoJournal::begin(image, journal_file);
    } else {
      journal = co_await UndoJournal::load(journal_file);
      co_await journal->check(image);
      co_await journal->trim();
    }
    UndoDevice device(image, *journal);
    co_return co_await recover(device, {.free_orphans = true, .accept_loss = accept_loss});
  }

  Result<Recovery> repair(SimDisk& disk, SimDisk& kept, std::function<void()> at_each_step = {}) {
    SimReactor reactor(prng_.next());
    reactor.after_delivery = std::move(at_each_step);
    const auto image = device_on(reactor, disk, "image");
    const auto journal = device_on(reactor, kept, "journal");
    return reactor.finish(work(*image, *journal, lossy_));
  }

  Result<void> undo(SimDisk& disk, SimDisk& kept, std::function<void()> at_each_step = {}) {
    SimReactor reactor(prng_.next());
    reactor.after_delivery = std::move(at_each_step);
    const auto image = device_on(reactor, disk, "image");
    const auto journal = device_on(reactor, kept, "journal");
    return reactor.finish(undo_repair(*image, *journal));
  }

  static bool is_journal(SimDisk kept) {
    SimReactor reactor(1);
    const auto file = device_on(reactor, kept, "journal");
    return reactor.finish(UndoJournal::load(*file)).has_value();
  }

  void repair_with_cuts() {
    const auto cut = [&] {
      if (!verdict_.failure.empty() || (disk_.log().empty() && kept_.log().empty())) return;
      if (!prng_.one_in(3)) return;
      const uint64_t draw = prng_.next();
      const bool extremes = prng_.one_in(2);
      at_cut(disk_.cut(extremes ? CutChoice::all() : CutChoice::random(draw)),
             kept_.cut(extremes ? CutChoice::none() : CutChoice::random(~draw)));
    };
    const Result<Recovery> done = repair(disk_, kept_, cut);
    if (!verdict_.failure.empty()) return;
    if (!done) return fail(done.error().message());
    check_repaired(disk_);
    if (const auto other = first_changed(disk_)) {
      return fail(cat("R2: guest cluster ", *other, " reads otherwise"));
    }

    undo_after_a_write();
    if (!verdict_.failure.empty()) return;
    std::vector<std::pair<SimDisk, SimDisk>> half_undone;
    const auto cut_undo = [&] {
      if (disk_.log().empty() || !prng_.one_in(2)) return;
      half_undone.emplace_back(disk_.cut(CutChoice::random(prng_.next())), kept_);
    };
    if (const Result<void> undone = undo(disk_, kept_, cut_undo); !undone) {
      return fail(undone.error().message());
    }
    if (content_of(disk_) != before_) return fail("R5: undo left something");
    for (auto& [disk, kept] : half_undone) {
      ++verdict_.cuts;
      const Result<void> again = undo(disk, kept);
      if (!again) return fail(cat("R5: undo after a cut: ", again.error().message()));
      if (content_of(disk) != before_) return fail("R5: an undo that was cut off left something");
    }
  }

  /// A guest overwrites one of its clusters in place, then the repair is taken back.
  void undo_after_a_write() {
    SimDisk disk = disk_;
    SimDisk kept = kept_;
    const Content now = content_of(disk);
    const std::vector<Content> original = guests_of(before_);
    const uint64_t guest = prng_.below(entries_);
    const uint64_t at = entry_of(now, entry_of(now, word(now, 40), 0), guest);
    if (at == 0 || at + cluster_ > now.size()) return;
    const Content written(cluster_, std::byte{0xaa});
    disk.put(at, written);
    const Content before_undo = content_of(disk);
    if (!undo(disk, kept)) {
      if (content_of(disk) != before_undo) fail("R5: an undo that was refused wrote");
      return;
    }
    const std::vector<Content> after = guests_of(content_of(disk));
    for (uint64_t i = 0; i < after.size(); ++i) {
      const bool same = i == guest ? after[i] == written : after[i] == original[i];
      // No reader follows reserved bits, though guests_of() does.
      if (is_unreadable(i)) continue;
      if (!same)
        return fail(
            cat("R5: after an undo guest cluster ", i, " reads what was written for ", guest));
    }
  }

  bool is_unreadable(uint64_t guest) const {
    const uint64_t table = entry_of(before_, word(before_, 40), guest / entries_per_table());
    const uint64_t at = table + 8 * (guest % entries_per_table());
    return table != 0 && at + 8 <= before_.size() && (word(before_, at) >> 56 & 0x3f) != 0;
  }

  void check_repaired(const SimDisk& disk) {
    const ImageVerdict verdict = check_bytes(disk);
    if (!verdict.sound() || verdict.leaks != 0)
      fail(cat("not sound after repair: ", verdict.text()));
  }

  std::optional<uint64_t> first_changed(const SimDisk& disk) const {
    const std::vector<Content> now = guests_of(content_of(disk));
    const auto [at, expected] = std::mismatch(now.begin(), now.end(), guests_.begin());
    if (at == now.end()) return std::nullopt;
    return static_cast<uint64_t>(at - now.begin());
  }

  void at_cut(SimDisk disk, SimDisk kept) {
    ++verdict_.cuts;
    for (const std::string& place : undercounted(disk)) {
      if (!std::binary_search(undercounted_.begin(), undercounted_.end(), place)) {
        return fail(cat("R3: at a cut: ", place, " has too few counts"));
      }
    }
    if (!is_journal(kept)) {
      if (content_of(disk) != before_) fail("R5: written to before there was a journal");
      return;
    }
    SimDisk disk_alone = disk;
    SimDisk kept_alone = kept;
    if (const Result<void> undone = undo(disk_alone, kept_alone); !undone) {
      return fail(cat("R5: undo at a cut: ", undone.error().message()));
    }
    if (content_of(disk_alone) != before_) return fail("R5: undo at a cut left something");
    if (const Result<Recovery> again = repair(disk, kept); !again) {
      return fail(cat("R3: repair after a cut: ", again.error().message()));
    }
    check_repaired(disk);
    if (const auto other = first_changed(disk)) {
      return fail(cat("R2: after a cut guest cluster ", *other, " reads otherwise"));
    }
    if (const Result<void> undone = undo(disk, kept); !undone || content_of(disk) != before_) {
      fail("R5: undo of a repair that was run again");
    }
  }

  const uint64_t seed_;
  Prng prng_;
  Verdict& verdict_;
  Content image_;
  uint64_t cluster_ = 0;
  uint32_t order_ = 0;
  uint64_t l1_ = 0;
  uint64_t l2_ = 0;
  uint64_t block_ = 0;
  uint64_t entries_ = 0;
  uint64_t snapshots_ = 0;
  uint64_t directory_ = 0;
  bool lossy_ = false;  ///< Losses are accepted.
  SimDisk disk_;
  SimDisk kept_;
  Content before_;
  std::vector<std::string> undercounted_;
  std::vector<Content> guests_;
};

}  // namespace

Verdict play_repair(uint64_t seed, const RunOptions&) {
  Verdict verdict;
  RepairRun run(seed, verdict);
  run.run();
  verdict.hash = Prng(seed ^ verdict.cuts).next();
  return verdict;
}

}  // namespace byre
