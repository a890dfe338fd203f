// SPDX-License-Identifier: Apache-2.0
#include "job/live/filter_use.h"
#include "live_run.h"

namespace byre::live {

JobOptions LiveRun::draw_job_options() {
  return {.id = "job",
          .auto_finalize = !prng_.one_in(3),
          .auto_dismiss = false,
          .speed = prng_.one_in(2) ? 512 * KiB << prng_.below(4) : 0,
          .on_source_error = draw_on_error(),
          .on_target_error = draw_on_error()};
}

Result<std::unique_ptr<JobWork>> LiveRun::make_mirror(Child source, Process& process) {
  MirrorOptions options;
  options.filter.mode = prng_.one_in(2) ? MirrorMode::background : MirrorMode::write_blocking;
  options.filter.granularity = uint64_t{512} << prng_.below(8);
  options.filter.request_size = std::max<uint64_t>(16 * KiB, options.filter.granularity);
  options.filter.unmap = prng_.one_in(2);
  options.converge = prng_.one_in(2) ? Converge::report : Converge::automatic;
  options.requests_max = static_cast<unsigned>(prng_.between(1, 4));
  if (kind_ == LiveJob::mirror) {
    options.verify = verify_;
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

Result<std::unique_ptr<JobWork>> LiveRun::make_stream(Child image) {
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

Result<std::unique_ptr<JobWork>> LiveRun::make_commit_below(Child image) {
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

Result<std::unique_ptr<JobWork>> LiveRun::make_backup(Child source, Process& process) {
  BackupOptions options{.on_cbw_error = CbwError::break_snapshot,
                        .cbw_timeout_ns = prng_.one_in(4) ? 2 * kMillisecond : 0,
                        .requests_max = static_cast<unsigned>(prng_.between(1, 4)),
                        .request_size = 4 * KiB << prng_.below(6)};
  if (process.stuck) {  // Guests go on all the same, once the job was cancelled.
    options.on_cbw_error = CbwError::break_guest_write;
    options.cbw_timeout_ns = 0;
  }
  options.top_only = top_only_ && saved_.empty() && !lets_go_;
  options.discard_source = lets_go_;
  if (!saved_.empty()) {
    options.bitmap_sync = static_cast<BitmapSync>(prng_.below(3));
    Result<std::unique_ptr<BackupBitmap>> bitmap =
        ImageBitmap::make(static_cast<Image&>(*source), "b", options.bitmap_sync);
    if (!bitmap) return std::move(bitmap).error();
    options.bitmap = *std::move(bitmap);
  }
  options.compressed = !target_.raw && prng_.one_in(4);
  only_on_change_ = target_is_over_top_ && late_prng_.one_in(2);
  options.only_on_change = only_on_change_;
  options.verify = verify_ && !only_on_change_;
  bitmap_sync_ = options.bitmap_sync;
  may_break_ = options.cbw_timeout_ns != 0;
  Result<std::unique_ptr<Backup>> work =
      Backup::make(std::move(source), std::move(process.target), std::move(options));
  if (!work) return std::move(work).error();
  backup_ = work->get();
  if (!lets_go_) moment_.clear();
  return std::unique_ptr<JobWork>(*std::move(work));
}

Result<std::unique_ptr<JobWork>> LiveRun::make_work(Process& process, Child source) {
  if (kind_ == LiveJob::stream) return make_stream(std::move(source));
  if (kind_ == LiveJob::backup) return make_backup(std::move(source), process);
  if (kind_ == LiveJob::commit_below) return make_commit_below(std::move(source));
  return make_mirror(std::move(source), process);
}

Task<Job*> LiveRun::start_job(Process& process) {
  if (lets_go_) co_await enter_keeper(process);
  Child source = Child::to(lets_go_ ? *process.snapshot : *process.entrance->edge());
  WriteLoans loans;
  if (base_is_lent_) {
    const uint32_t down = kind_ == LiveJob::commit ? depth_ : depth_ + 1;
    process.lent = layers_of(*source).at(down);
    co_await loans.take(*process.lent->node());
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
  if (kind_ == LiveJob::backup && !lets_go_) {
    const Result<void> taken = co_await take_moment(process, **job).result();
    if (!taken) {
      co_await process.jobs.drop(*transaction);
      co_return taken.error().copy();
    }
  }
  process.jobs.start(*transaction);
  co_return std::move(job);
}

Task<void> LiveRun::take_moment(Process& process, Job& job) {
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

Task<void> LiveRun::enter_keeper(Process& process) {
  Child moment = std::make_unique<RawDevice>(
      co_await process.opener.open("moment", {.writable = true}), RawOptions{.growable = true});
  CopyBeforeWriteOptions options;
  options.on_error = CbwError::break_snapshot;
  Device& disk = *process.entrance->edge();
  process.keeper = std::make_unique<CopyBeforeWrite>(Child::to(disk), std::move(moment), options);
  auto& keeper = static_cast<CopyBeforeWrite&>(*process.keeper);
  Drain drain(*disk.node());
  co_await drain.begin();
  Contents now(size_);
  co_await disk.read(0, now, IoTag::read_guest);
  moment_ = std::move(now);
  co_await keeper.enter(drain, process.keeper);
  co_await keeper.claim();
  process.snapshot = Child(std::make_unique<SnapshotAccess>(process.keeper.another()));
}

Task<void> LiveRun::leave_keeper(Process& process) {
  if (process.snapshot) co_await process.snapshot.close();
  process.snapshot.reset();
  if (!process.keeper) co_return;
  co_await leave_graph(process.keeper);
  co_await process.keeper.close();
  process.keeper.reset();
}

Task<void> LiveRun::check_let_go(Process& process, const Job& job) {
  const auto& keeper = static_cast<const CopyBeforeWrite&>(*process.keeper);
  // After a failed sync what was not durable may be gone from the page cache.
  if (keeper.broken() || *process.lied || syncs_lost() != lost_before_) co_return;
  Contents target(size_);
  const Result<void> read = co_await process.kept->read(0, target, IoTag::read_guest).result();
  if (!read && faulty_.empty()) fail_with("the target: ", read.error().message());
  for (uint64_t at = 0; at < size_; at += keeper.cluster_size()) {
    Contents bytes(std::min(keeper.cluster_size(), size_ - at));
    Result<void> kept = co_await process.snapshot->read(at, bytes, IoTag::read_guest).result();
    const bool gone = !kept && kept.error().code() == Errc::denied;
    if (!gone && !job.error()) fail_with("the backup has ended and kept ", hex(at));
    if (gone ? !read : !kept) continue;  // A disk with errors.
    if (gone) copy(bytes, Bytes(target).subspan(at, bytes.size()));
    if (std::ranges::equal(bytes, Bytes(moment_).subspan(at, bytes.size()))) continue;
    fail_with(gone ? "let go, and the target lacks " : "not let go, and lost: ", hex(at));
  }
}

Task<void> LiveRun::check_recorded(Process& process) {
  auto* const image = dynamic_cast<Image*>(process.entrance->edge().get());
  // What a process that died leaves may say more than it need.
  if (kind_ != LiveJob::stream || saved_.empty() || life_ != 1 || !faulty_.empty() || !image)
    co_return;
  const std::unique_ptr<DirtyBits> bits = co_await image->read_bitmap("b");
  const uint64_t granule = uint64_t{1} << bits->granularity_bits();
  for (uint64_t at = 0; at < size_; at += granule) {
    if (!bits->get(bits->granule_of(at))) continue;
    bool asked = false;
    for (uint64_t each = at; each < std::min(size_, at + granule); each += kSectorSize)
      asked |= asked_[each / kSectorSize];
    if (!asked) co_return fail_with("the bitmap has ", hex(at), ", which no guest has changed");
  }
}

void LiveRun::check_bitmap(const DirtyBits& bits, const Contents& now, std::string_view when,
                           bool mixed) {
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

void LiveRun::check_backup() {
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

void LiveRun::draw_verify(Process& process) {
  verify_ = verify_prng_.one_in(3);
  if (!verify_) return;
  note("to be verified");
  if (intrusion_ || !faulty_.empty() || process.stuck || target_is_over_top_) return;
  if (!verify_prng_.one_in(3)) return;
  const auto may_lie = [&process] {
    return process.job && process.job->status() < JobStatus::waiting;
  };
  process.target = std::make_unique<Lying>(std::move(process.target), verify_prng_.next(), may_lie,
                                           process.lied);
}

Task<void> LiveRun::control(Process& process) {
  co_await process.reactor.sleep(static_cast<int64_t>(prng_.below(8)) * kMillisecond);
  if (kind_ == LiveJob::mirror || kind_ == LiveJob::backup) {
    if (kind_ == LiveJob::backup && !target_is_fresh_) co_return;
    process.target = co_await open_target(process);
    if (!intrusion_ && faulty_.empty() && late_prng_.one_in(8)) {
      auto stuck = std::make_unique<Stuck>(std::move(process.target), late_prng_.below(16));
      process.stuck = stuck.get();
      process.target = std::move(stuck);
      faulty_ = target_.name;
      note("the target stops to answer");
    }
    draw_verify(process);
    if (kind_ == LiveJob::mirror) process.switched_to = process.target.get();
    // One that stops to answer is set free when the job has ended.
    if (kind_ == LiveJob::backup || process.stuck) process.kept = process.target.hold();
  } else if (kind_ == LiveJob::commit) {
    process.switched_to = layers_of(*process.entrance->edge())[depth_];
  }
  Job* job = co_await start_job(process);
  process.job = job;
  target_is_fresh_ = false;
  if (target_is_over_top_) {
    for (uint64_t i = late_prng_.below(3); i != 0; --i) {
      ++process.guests;
      ++process.readers;
      process.scope.spawn(read_target(process, late_prng_.next()));
    }
  }
  const bool is_to_end = prng_.one_in(2);  // By being left alone.
  bool is_read = process.readers != 0;     // The target, when the job began to end.
  for (uint64_t steps = 0; job->status() != JobStatus::concluded; ++steps) {
    if (!ok()) co_return;
    if (job->status() < JobStatus::waiting && !job->is_cancelled()) is_read = process.readers != 0;
    co_await process.reactor.sleep(static_cast<int64_t>(prng_.below(24)) * kMillisecond / 4 + 1);
    if (steps > 20'000) {
      fail_with("the job does not end");
      process.reactor.fail(verdict_.failure);
      co_return;
    }
    if (steps > 60) {  // Long enough: whatever holds it back ends.
      if (faulty_.empty() && !only_on_change_) {
        if (job->is_paused()) (void)job->resume();
        (void)job->set_speed(0);
        (void)job->complete();
        (void)job->finalize();
      } else {
        (void)job->cancel(true);
      }
      continue;
    }
    if (intrusion_) {
      lead_on(*job, steps);
    } else {
      co_await meddle(process, *job, is_to_end);
    }
  }
  process.job = nullptr;
  if (process.stuck) process.stuck->set_free();
  note(cat("ended ", job->error() ? job->error().message() : "well"));
  const bool may_fail =
      *process.lied || !faulty_.empty() || (kind_ == LiveJob::backup && may_break_);
  if (*process.lied) note("its target lied");
  if (job->error() && job->error().code() != Errc::cancelled && !may_fail) {
    fail_with("the job failed: ", job->error().message());
  }
  if (kind_ == LiveJob::backup) co_await end_backup(process, *job);
  if (process.snapshot) {
    co_await check_let_go(process, *job);
    co_await leave_keeper(process);
  }
  if (target_is_over_top_ && !is_read) check_shown(process);
  const bool switched = process.has_switched();
  const bool switches = kind_ == LiveJob::mirror || kind_ == LiveJob::commit;
  if (!job->error() && switches && job->shall_switch() != switched) {
    fail_with("the job ended well, and ", switched ? "switched" : "did not switch");
  }
  if (job->error() && switched) fail_with("the job ended with an error, and switched");
  check_loan(process);
  if (copy_began_ && !job->error() && !job->shall_switch()) check_copy(*copy_began_);
  if (copy_began_) oracle_.end_read(*copy_began_);
  copy_began_.reset();
  (void)job->dismiss();
  process.job_ended = true;
  process.changed.notify();
}

void LiveRun::check_shown(const Process& process) {
  // Who drains the filter may still hold it.
  const bool is_held = intrusion_ && intrusion_->kind == Intrusion::Kind::drain;
  if (process.stuck || is_held) return;
  const Device* const below = static_cast<Image&>(*process.kept).backing();
  if (below != process.entrance->edge().get())
    fail_with("the backup has ended, nobody reads its target, and that does not show the disk");
}

void LiveRun::check_loan(const Process& process) {
  if (!process.lent || !faulty_.empty()) return;
  if (process.lent->writable() == process.has_switched()) return;
  fail_with("the job has ended, and its base is open for ",
            process.lent->writable() ? "writing" : "reading");
}

void LiveRun::check_copy(uint64_t began) {
  SimDisks disks = disks_;
  for (auto& [name, disk] : disks) disk.options().faults.clear();
  const Result<Contents> bytes = contents(disks, target_);
  if (!bytes) return fail_with("the copy: ", bytes.error().message());
  const Result<void> right = oracle_.end_read(began, 0, Bytes(*bytes).first(size_));
  if (!right) fail_with("the copy: ", right.error().message());
  copy_began_.reset();
}

Task<void> LiveRun::end_backup(Process& process, const Job& job) {
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

Task<void> LiveRun::compare_with_target(const MirrorFilter& filter) {
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

void LiveRun::lead_on(Job& job, uint64_t steps) {
  if (steps % 4 != 3) return;
  if (job.is_paused()) (void)job.resume();
  (void)job.complete();
  (void)job.finalize();
}

Task<void> LiveRun::meddle(Process& process, Job& job, bool is_to_end) {
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
      if (process.stuck) break;  // It would wait for a guest whose write has no answer.
      Child hold = process.entrance->edge().hold();  // It may be a filter that goes.
      {
        Drain drain(hold.node());
        co_await drain.begin();
        co_await hold_still(process, drain, static_cast<int64_t>(prng_.below(4)) * kMillisecond);
        const MirrorFilter* filter = mirror_ ? mirror_->filter_in_use() : nullptr;
        // Its last copies are made while it holds a drain itself.
        const bool is_held = job.status() < JobStatus::waiting;
        if (filter && is_held && !*process.lied && !filter->is_dirty())
          co_await compare_with_target(*filter);
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

Task<void> LiveRun::use(Process& process) {
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
  base_is_lent_ = written != 0 && late_prng_.one_in(2);
  if (base_is_lent_) {
    const LiveDisk& base = disks_of_chain_[below - written];
    written = 0;
    note("the base is open for reading");
    if (life_ == 1 && !base.raw && late_prng_.one_in(4)) damage(base);
  }
  {
    Child disk = co_await open(process.reactor, process.opener, top_, true, written);
    process.entrance = std::make_unique<Entrance>(std::move(disk));
    co_await process.entrance->edge().set_permissions(
        {.uses = {.read = true, .write = true}, .shares = {.read = true, .write = true}});
  }
  if (intrusion_) {
    plan_intrusion();
  } else if (prng_.one_in(3)) {
    plan_faults();
  }
  process.guests = prng_.between(1, 3);
  for (uint64_t i = process.guests; i != 0; --i) process.scope.spawn(guest(process, prng_.next()));
  Result<void> controlled;
  mirror_ = nullptr;
  if (is_possible) controlled = co_await control(process).result();
  while (process.guests != 0) co_await process.changed.wait();
  co_await std::move(controlled);
  co_await check_recorded(process);
}

Task<void> LiveRun::main(Process& process) {
  Result<void> used = co_await use(process).result();
  Result<void> closed;
  if (process.keeper) (void)co_await leave_keeper(process).result();
  if (process.entrance) {
    ended_with_ = current(process);
    closed = co_await process.entrance->edge().close().result();
  }
  if (process.target) (void)co_await process.target.close().result();
  if (process.kept) {
    Result<void> kept = co_await process.kept.close().result();
    if (target_is_over_top_ && closed) closed = std::move(kept);  // The disk is closed with it.
  }
  co_await process.jobs.close();
  process.result.emplace(used ? std::move(closed) : std::move(used));
  process.ended = true;
}

}  // namespace byre::live
