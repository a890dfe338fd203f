// SPDX-License-Identifier: Apache-2.0
#include "live_run.h"

namespace byre::live {

void LiveRun::plan_faults() {
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

/// Counts are those since here.
void LiveRun::plan_intrusion() {
  for (auto& [name, disk] : disks_) {
    FaultPlan& plan = disk.options().faults;
    plan.clear();
    if (name != intrusion_->disk) continue;
    faulty_ = name;
    if (intrusion_->kind == Intrusion::Kind::no_space) {
      plan.no_space(intrusion_->at);
    } else {
      plan.add({.kind = intrusion_->operation,
                .first = intrusion_->at,
                .last = intrusion_->at,
                .fault = {.kind = Fault::Kind::error,
                          .applied = static_cast<Fault::Applied>(cut_prng_.below(4)),
                          .drops = cut_prng_.one_in(2),
                          .evicts = cut_prng_.one_in(2)}});
    }
  }
}

bool LiveRun::intrude(Process& process) {
  Job& job = *process.job;
  switch (intrusion_->kind) {
    case Intrusion::Kind::pause:
      (void)job.pause();
      break;
    case Intrusion::Kind::cancel:
      (void)job.cancel(true);
      break;
    case Intrusion::Kind::finish_soon:
      if (job.is_ready() && !copy_began_) copy_began_ = oracle_.begin_read();
      (void)job.cancel(false);
      break;
    case Intrusion::Kind::complete:
      (void)job.complete();
      break;
    case Intrusion::Kind::drain:
      ++process.guests;
      process.scope.spawn(hold_still(process));
      break;
    case Intrusion::Kind::kill:
      return false;
    default:
      break;
  }
  return true;
}

Task<void> LiveRun::hold_still(Process& process) {
  Child hold = process.entrance->edge().hold();  // It may be a filter that goes.
  {
    Drain drain(hold.node());
    co_await drain.begin();
    co_await hold_still(process, drain, 3 * kMillisecond);
  }
  co_await hold.close();
  --process.guests;
  process.changed.notify();
}

uint64_t LiveRun::reads() const {
  // A commit writes to disks below the drained one, which do as they like with it.
  const bool writes_below = kind_ == LiveJob::commit || kind_ == LiveJob::commit_below;
  uint64_t sum = 0;
  for (const LiveDisk& disk : disks_of_chain_) {
    if (writes_below && disk.name != top_.name) continue;
    sum += disks_.find(disk.name)->second.options().faults.count(Op::Kind::read);
  }
  return sum;
}

Task<void> LiveRun::hold_still(Process& process, const Drain& /*begun*/, int64_t ns) {
  const uint64_t before = reads();
  const Job* const job = process.job;
  // Who reads the target is no business of a drain of the filter.
  const bool by_itself = !job || job->status() >= JobStatus::waiting || process.readers != 0;
  co_await process.reactor.sleep(ns);
  // The last copies of a job are made while it holds a drain itself.
  if (by_itself || process.job != job || job->status() >= JobStatus::waiting) co_return;
  if (const uint64_t asked = reads() - before; asked != 0) {
    fail_with("the disks were read ", asked, " times during a drain");
    process.reactor.fail(verdict_.failure);
  }
}

std::string LiveRun::intruded() const {
  if (!intrusion_) return "";
  const auto& [kind, at, disk, operation] = *intrusion_;
  return cat(", intrusion ", static_cast<int>(kind), " at ", at,
             disk.empty() ? "" : cat(" of ", disk, ", operation ", static_cast<int>(operation)));
}

void LiveRun::live(bool last) {
  ++life_;
  log_ = cat("life ", life_);
  const auto process = std::make_shared<Process>(prng_.next(), disks_);
  SimReactor& reactor = process->reactor;
  faulty_.clear();
  const bool dies = !intrusion_ && prng_.one_in(3);
  const uint64_t dies_after = dies ? prng_.between(1, prng_.one_in(2) ? 300 : 3000) : UINT64_MAX;
  const uint64_t cut_one_in = prng_.between(4, 60);
  uint64_t deliveries = 0;
  uint64_t cuts = 0;
  lost_before_ = syncs_lost();
  reactor.after_delivery = [&] {
    if (!ok()) return;
    ++verdict_.deliveries;
    ++deliveries;
    oracle_.set_time(reactor.now().ns);
    const uint64_t cuts_max = intrusion_ ? 3 : 24;
    if (cuts == cuts_max || !cut_prng().one_in(cut_one_in) || !process->entrance) return;
    ++cuts;
    check_cut(current(*process));
    if (!ok()) reactor.fail(verdict_.failure);
  };
  process->scope.spawn(main(*process));
  while (ok() && !process->ended && deliveries < dies_after) {
    if (!reactor.advance()) fail_with("stands still: ", reactor.failure());
    if (process->job && ++steps_of_job_ == (intrusion_ ? intrusion_->at : 0) && !intrude(*process))
      break;
  }
  reactor.after_delivery = nullptr;
  for (const auto& [name, disk] : disks_) operations_[name] = disk.options().faults;
  hash_ = Prng(hash_ * 0x9e3779b97f4a7c15u + reactor.trace().hash()).next();
  end(process, syncs_lost() != lost_before_, last);
}

uint64_t LiveRun::syncs_lost() const {
  uint64_t lost = 0;
  for (const auto& [name, disk] : disks_) lost += disk.syncs_lost();
  return lost;
}

void LiveRun::go_on_with(const LiveDisk& disk) {
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

void LiveRun::see_what_lies_below() {
  SimReactor reactor(3);
  SimGate opener(reactor, disks_);
  const Result<std::string> below = reactor.finish(backing_name(reactor, opener, top_.name));
  if (!below) return fail_with("after a stream: ", below.error().message());
  while (disks_of_chain_.size() > 1 && disks_of_chain_[disks_of_chain_.size() - 2].name != *below) {
    disks_of_chain_.erase(disks_of_chain_.end() - 2);
  }
  top_.below = *below;
  disks_of_chain_.back() = top_;
  if (depth_ >= disks_of_chain_.size()) depth_ = static_cast<uint32_t>(disks_of_chain_.size() - 1);
}

Task<std::string> LiveRun::backing_name(Reactor& reactor, FileOpener& opener, std::string disk) {
  const std::unique_ptr<Image> image = co_await Image::open(reactor, opener, disk, {});
  std::string name = image->head().backing_file.value_or("");
  co_await image->close();
  co_return name;
}

void LiveRun::end(const std::shared_ptr<Process>& process, bool lost, bool last) {
  const bool clean = process->ended && process->result->has_value();
  if (process->ended && !clean && faulty_.empty() && ok()) {
    fail_with("the process failed: ", process->result->error().message());
  }
  const LiveDisk now = ended_with_.value_or(process->entrance ? current(*process) : top_);
  ended_with_.reset();
  if (!process->ended) process->reactor.kill_all();
  if (!clean || !ok()) SimReactor::bury(process);
  const bool power = !clean && (lost || cut_prng().one_in(2));
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
  if (clean && faulty_.empty()) damaged_.clear();  // Else it may not have been healed.
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

Task<void> LiveRun::guest(Process& process, uint64_t seed) {
  Prng prng(seed);
  for (uint64_t i = prng.between(4, intrusion_ ? 12 : 40); ok() && i != 0; --i) {
    co_await request(process, prng);
    if (prng.one_in(3)) {
      co_await process.reactor.sleep(static_cast<int64_t>(prng.below(20)) * kMillisecond / 4);
    }
  }
  --process.guests;
  process.changed.notify();
}

Task<void> LiveRun::request(Process& process, Prng& prng) {
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
  for (uint64_t each = at; what < 12 && each < at + length; each += kSectorSize)
    asked_[each / kSectorSize] = true;
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
    // After a failed sync what was not durable may be gone from the page cache.
    const bool may_be_older = syncs_lost() != lost_before_;
    Result<void> right;
    if (done && !may_be_older) {
      right = oracle_.end_read(read, at, bytes);
    } else {
      oracle_.end_read(read);
      if (done) right = oracle_.check_after_cut(at, bytes);
    }
    if (!right) {
      fail_with("a guest reads ", disk.name(), " wrong: ", right.error().message());
      process.reactor.fail(verdict_.failure);
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

Task<void> LiveRun::read_target(Process& process, uint64_t seed) {
  Prng prng(seed);
  {
    Entrance entrance(process.kept.another());
    const Result<void> allowed = entrance.edge().set_permissions({.uses = Access::reading()});
    if (!allowed) fail_with("nobody may read the target: ", allowed.error().message());
    // Some leave before the job ends, some stay behind it.
    uint64_t left = prng.between(1, intrusion_ ? 8 : 30);
    const bool stays = prng.one_in(2);
    for (uint64_t late = 4; ok() && left != 0 && late != 0; stays ? left : --left) {
      if (process.job_ended) --late;
      const uint64_t at = prng.below(size_ / kSectorSize) * kSectorSize;
      const uint64_t length = std::min(prng.between(1, 100) * kSectorSize, size_ - at);
      Contents bytes(length);
      Result<void> done;
      {
        const Entrance::Pass pass = co_await entrance.enter();
        if (prng.one_in(4)) {
          const Result<Extent> extent = co_await pass->status(at, length).result();
          if (!extent) done = extent.error().copy();
        }
        if (done) done = co_await pass->read(at, bytes, IoTag::read_guest).result();
      }
      check_read_of_target(process, at, bytes, done);
      co_await process.reactor.sleep(static_cast<int64_t>(prng.below(24)) * kMillisecond / 4 + 1);
    }
    co_await entrance.edge().close();
  }
  --process.readers;
  --process.guests;
  process.changed.notify();
}

void LiveRun::check_read_of_target(const Process& process, uint64_t at, const Contents& bytes,
                                   const Result<void>& done) {
  // After a failed sync what was not durable may be gone from the page cache.
  if (syncs_lost() != lost_before_) return;
  if (done) {
    const auto differ = std::ranges::mismatch(bytes, Bytes(moment_).subspan(at, bytes.size()));
    if (differ.in1 == bytes.end()) return;
    fail_with("the target shows something else than the moment at ",
              hex(at + static_cast<uint64_t>(differ.in1 - bytes.begin())));
  } else {
    const bool runs =
        process.job && process.job->status() < JobStatus::waiting && !process.job->is_cancelled();
    if (!runs || may_break_ || wanted_ || !faulty_.empty()) return;
    fail_with("the target cannot be read: ", done.error().message());
  }
}

void LiveRun::check_cut(const LiveDisk& counts) {
  ++verdict_.cuts;
  SimDisks cut;
  for (const auto& [name, disk] : disks_)
    cut.emplace(name, disk.cut(draw_choice(cut_prng(), disk)));
  check_images(cut, "at a cut");
  if (!ok()) return;
  const Result<Contents> bytes = contents(cut, counts);
  if (!bytes) return fail_with("at a cut: ", counts.name, ": ", bytes.error().message());
  const Result<void> right = oracle_.check_after_cut(0, Bytes(*bytes).first(size_));
  if (!right) fail_with("at a cut: ", counts.name, ": ", right.error().message());
  if (ok() && !saved_.empty()) check_bitmap_at_cut(cut, *bytes);
  if (!ok()) verdict_.disks = cut;
}

void LiveRun::check_bitmap_at_cut(SimDisks& disks, const Contents& now) {
  SimReactor reactor(4);
  SimGate opener(reactor, disks);
  const Result<std::unique_ptr<DirtyBits>> bits = reactor.finish(read_bitmap(reactor, opener));
  if (!bits) return fail_with("at a cut: the bitmap: ", bits.error().message());
  const bool is_ending = backup_ && !moment_.empty();
  if (is_ending) saved_.push_back(moment_);
  check_bitmap(**bits, now, "at a cut", is_ending && bitmap_sync_ == BitmapSync::always);
  if (is_ending) saved_.pop_back();
}

Task<std::unique_ptr<DirtyBits>> LiveRun::read_bitmap(Reactor& reactor, FileOpener& opener) {
  const std::unique_ptr<Image> image = co_await Image::open(reactor, opener, top_.name, {});
  Result<std::unique_ptr<DirtyBits>> bits = co_await image->read_bitmap("b").result();
  (void)co_await image->close().result();
  co_return std::move(bits);
}

void LiveRun::check_images(SimDisks& disks, std::string_view when) {
  const auto check = [&](const LiveDisk& each) {
    if (each.raw || each.name == damaged_ || !ok()) return;
    const ImageVerdict verdict = check_bytes(disks.find(each.name)->second);
    if (verdict.sound()) return;
    fail_with(when, ": ", each.name, " is not sound: ", verdict.text());
    verdict_.disks = disks;
  };
  for (const LiveDisk& each : disks_of_chain_) check(each);
  if (kind_ == LiveJob::mirror || kind_ == LiveJob::backup) check(target_);
}

}  // namespace byre::live
