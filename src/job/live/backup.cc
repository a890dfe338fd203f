// SPDX-License-Identifier: Apache-2.0
#include "job/live/backup.h"

#include <algorithm>
#include <utility>

#include "block/gives_up.h"
#include "block/snapshot_access.h"
#include "coro/scope.h"
#include "job/live/filter_use.h"

namespace byre {

namespace {

/// The snapshot that the device shows, maybe below filters; null: it is no snapshot.
const SnapshotAccess* snapshot_at(const Device& device) {
  for (const Device* at = &device; at;) {
    if (const auto* const snapshot = dynamic_cast<const SnapshotAccess*>(at)) return snapshot;
    const auto down = std::ranges::find(at->children(), Role::filtered, &Child::role);
    at = down == at->children().end() ? nullptr : (*down)->get();
  }
  return nullptr;
}

Result<void> check_discard_source(const Device& source, const BackupOptions& options) {
  if (!options.discard_source) return {};
  if (options.only_on_change) {
    return invalid("discard-source needs a backup that copies: with sync 'none' nothing is copied");
  }
  if (snapshot_at(source)) return {};
  return unsupported(
      "discard-source needs a snapshot-access node for its source: of ", quoted(source.name()),
      " guests may still need what was copied; discard it yourself when the backup has ended");
}

}  // namespace

Result<std::unique_ptr<Backup>> Backup::make(Child source, Child target, BackupOptions options) {
  if (&source.node() == &target.node()) return invalid("Source and target cannot be the same");
  if (Result<void> fits =
          CopyBeforeWrite::fits(*source, *target, {.cluster_size_min = options.cluster_size_min});
      !fits) {
    return std::move(fits).error();
  }
  if (Result<void> can = check_discard_source(*source, options); !can)
    return std::move(can).error();
  if (!target->writable()) {
    return Error(Errc::read_only,
                 cat("the target ", quoted(target->name()), " is read-only: open it for writing"));
  }
  if (options.compressed && !target->capabilities().compresses) {
    return unsupported("Compression is not supported for this target: ", quoted(target->name()));
  }
  if (options.verify && options.only_on_change) {
    return invalid(
        "a backup of only what changes (sync 'none') cannot be verified: it never has "
        "all of the disk");
  }
  return std::unique_ptr<Backup>(
      new Backup(std::move(source), std::move(target), std::move(options)));
}

Backup::Backup(Child source, Child target, BackupOptions options)
    : options_(std::move(options)), source_(std::move(source)), target_(std::move(target)) {}

Result<std::unique_ptr<BackupBitmap>> ImageBitmap::make(Image& image, std::string name,
                                                        BitmapSync sync) {
  const bool is_there = std::ranges::any_of(
      image.bitmaps(), [&](const auto& slot) { return slot->entry.name == name; });
  if (!is_there) return invalid("Bitmap '", name, "' could not be found");
  if (sync != BitmapSync::never && !image.writable()) {
    return Error(Errc::read_only, cat(quoted(image.name()),
                                      " is not open for writing: its bitmap cannot be changed"));
  }
  return std::unique_ptr<BackupBitmap>(new ImageBitmap(image, std::move(name)));
}

std::vector<Node*> Backup::nodes() const {
  std::vector<Node*> nodes;
  if (source_) nodes.push_back(&source_.node());
  if (target_) nodes.push_back(&target_.node());
  if (filter()) nodes.push_back(filter()->target().node());
  return nodes;
}

// --- The moment ----------------------------------------------------------------------------------

Task<void> Backup::take_moment(Job& job, const Drain* held) {
  if (filter_) co_return;
  source_ = source_.hold();  // It stays where it is.
  if (held) {
    co_await enter_graph(job, *held);
    co_return;
  }
  Drain drain(source_.node());
  co_await drain.begin();
  co_await enter_graph(job, drain);
}

Task<void> Backup::enter_graph(Job& job, const Drain& drain) {
  CopyBeforeWriteOptions options{.on_error = options_.on_cbw_error,
                                 .timeout_ns = options_.cbw_timeout_ns,
                                 .cluster_size_min = options_.cluster_size_min,
                                 .compressed = options_.compressed};
  options.on_break = [&job] { job.fail_soon(); };
  if (options_.bitmap) {
    wanted_ = co_await options_.bitmap->read();
    changed_ = std::make_unique<DirtyBits>(wanted_->size(), wanted_->granularity_bits(),
                                           wanted_->part_bytes());
    options.wanted = [this](uint64_t from) -> std::optional<CopyBeforeWriteOptions::Part> {
      const auto run = wanted_->next_run(from);
      if (!run) return std::nullopt;
      return CopyBeforeWriteOptions::Part{run->first, run->first + run->second};
    };
    options.on_change = [this](uint64_t offset, uint64_t length) {
      changed_->set_bytes(offset, length);
    };
  }
  if (options_.verify) {
    options.on_copy = [this](uint64_t at, uint64_t length, Bytes data) { note(at, length, data); };
  }
  auto filter = std::make_unique<CopyBeforeWrite>(source_.another(), std::move(target_), options);
  CopyBeforeWrite& entered = *filter;
  if (options_.verify) {
    sums_ = std::make_unique<CopySums>(entered.snapshot_size(), entered.cluster_size());
  }
  filter_ = std::move(filter);
  filter_.set_gate(&job.gate());
  name_filter(filter_, options_.filter_name);
  co_await entered.enter(drain, filter_);
  entered_ = true;
  co_await entered.claim();
}

// --- Copying -------------------------------------------------------------------------------------

Task<void> Backup::run(Job& job) {
  co_await take_moment(job, nullptr);
  // With `verify` once for the copy and once for what is read back.
  job.progress().set_total((wanted_ ? wanted_->dirty_bytes() : source_->size()) * (sums_ ? 2 : 1));
  if (options_.only_on_change) {
    while (!job.is_cancelled() && !filter()->broken()) co_await job.changed().wait();
    co_await fail(job.is_cancelled() ? job.cancelled_error() : filter()->broken().copy());
  }
  Scope workers(job.reactor().ready());
  for (unsigned i = 0; i < options_.requests_max; ++i) workers.spawn(worker(job));
  co_await workers.join();
  if (filter()->broken()) co_await fail(filter()->broken().copy());
  if (sums_) co_await check(job);
}

void Backup::note(uint64_t at, uint64_t length, Bytes data) {
  if (data.empty()) {
    sums_->note_zeros(at, length);
  } else {
    sums_->note(at, data);
  }
}

/// All is copied: the target does not change any more.
Task<void> Backup::check(Job& job) {
  CopyCheckOptions how{.requests_max = options_.requests_max,
                       .request_size = options_.request_size,
                       .guest_requests = [this] { return filter()->guest_requests(); },
                       .on_checked = [&job](uint64_t bytes) { job.progress().advance(bytes); }};
  sums_->wrote(sums_->all());
  CopyCheck check(*sums_, filter()->target(), source_->name(), std::move(how));
  co_await check.run(job);
  checked_ = true;
  job.progress().set(job.progress().total(), job.progress().total());
}

std::optional<uint64_t> Backup::verified() const {
  if (!options_.verify) return std::nullopt;
  return sums_ ? sums_->checked_bytes() : 0;
}

Task<void> Backup::worker(Job& job) {
  const uint64_t end = filter()->snapshot_size();
  const uint64_t step =
      round_up(std::max<uint64_t>(options_.request_size, 1), filter()->cluster_size());
  while (!failed_ && next_ < end) {
    const uint64_t at = filter()->next_missing(next_, end);
    const uint64_t stop = std::min(end, round_down(at, step) + step);
    next_ = std::max(next_, stop);
    while (at < stop) {
      CopyBeforeWrite::Kept kept;
      Instant began;
      {
        const Gate::Pass pass = co_await job.enter();
        began = job.reactor().now();
        if (options_.top_only) {
          Result<void> looked = co_await leave_out_what_shows(at, stop).result();
          if (!looked) kept.error = std::move(looked).error();
        }
        if (!kept.error) kept = co_await filter()->keep(at, stop - at);
        // Only now: the target has it.
        if (!kept.error && options_.discard_source) {
          Result<void> let_go = co_await let_source_go(at, stop).result();
          if (!let_go) kept.error = std::move(let_go).error();
        }
      }
      if (!kept.error) {
        co_await job.limit(stop - at);
        co_await job.give_way(began, filter()->guest_requests());
        break;
      }
      const JobSide side = kept.of_target ? JobSide::target : JobSide::source;
      if (!filter()->broken() && co_await job.retries(side, kept.error)) continue;
      failed_ = true;
      co_await fail(job.is_cancelled() ? job.cancelled_error() : std::move(kept.error));
    }
    job.progress().advance(stop - at);
  }
}

/// What the disk does not have itself is no part of the backup.
Task<void> Backup::leave_out_what_shows(uint64_t at, uint64_t end) {
  const uint64_t cluster = filter()->cluster_size();
  for (; at < end; at = std::min(end, round_down(at, cluster) + cluster)) {
    bool has_own = false;
    const uint64_t stop = std::min(end, round_down(at, cluster) + cluster);
    for (uint64_t part = at; part < stop && !has_own;) {
      const Extent extent = co_await source_->status(part, stop - part);
      has_own = extent.allocated;
      part += extent.length;
    }
    if (!has_own) filter()->leave_out(at, stop - at);
  }
}

/// What was copied of the range; what a bitmap left out stays.
Task<void> Backup::let_source_go(uint64_t at, uint64_t end) {
  if (!wanted_) co_return co_await filter()->below().discard(at, end - at, {});
  const uint64_t cluster = filter()->cluster_size();
  for (auto run = wanted_->next_run(at); run && run->first < end; run = wanted_->next_run(at)) {
    const uint64_t from = std::max(at, round_down(run->first, cluster));
    at = std::min(end, round_up(run->first + run->second, cluster));
    if (from < at) co_await filter()->below().discard(from, at - from, {});
  }
}

// --- The end -------------------------------------------------------------------------------------

Task<void> Backup::prepare(Job&) {
  co_await filter()->target().flush();
  drain_ = std::make_unique<Drain>(filter_.node());
  co_await drain_->begin();
  if (filter()->broken()) co_await fail(filter()->broken().copy());
}

/// In a drain: changed_ is complete.
Task<void> Backup::settle_bitmap(bool succeeded) {
  if (!options_.bitmap || options_.bitmap_sync == BitmapSync::never) co_return;
  if (!succeeded && options_.bitmap_sync != BitmapSync::always) co_return;
  if (!succeeded) {
    // What the target did not get, or what nobody knows of.
    const bool is_unsure = filter()->broken() || (sums_ && !checked_);
    const uint64_t end = filter()->snapshot_size();
    for (auto run = wanted_->next_run(0); run; run = wanted_->next_run(run->first + run->second)) {
      const uint64_t stop = std::min(end, run->first + run->second);
      const uint64_t cluster = filter()->cluster_size();
      for (uint64_t at = run->first; at < stop; at = round_down(at, cluster) + cluster) {
        const uint64_t missing = is_unsure ? at : filter()->next_missing(at, stop);
        if (missing >= stop) break;
        at = missing;
        changed_->set_bytes(at, std::min(stop, round_down(at, cluster) + cluster) - at);
      }
    }
  }
  co_await options_.bitmap->replace(*changed_);
}

Task<void> Backup::leave_graph(bool succeeded) {
  if (!std::exchange(entered_, false)) co_return;
  Result<void> settled;
  if (!succeeded && options_.bitmap && options_.bitmap_sync == BitmapSync::always) {
    settled = co_await filter()->target().flush().result();
    if (!drain_) {
      drain_ = std::make_unique<Drain>(filter_.node());
      co_await drain_->begin();
    }
  }
  // All jobs of the transaction have succeeded, or not.  When this fails the bitmap says more than
  // it need.
  if (settled) settled = co_await settle_bitmap(succeeded).result();
  drain_.reset();
  co_await filter()->end_snapshot(Error(Errc::denied, "the backup has ended"));
  co_await byre::leave_graph(filter_);
  co_await std::move(settled);
}

Task<void> Backup::commit(Job&) { co_await leave_graph(true); }
Task<void> Backup::abort(Job&) { co_await leave_graph(false); }

void Backup::interrupt() {
  if (!filter()) return;
  // First: guests whose writes wait for the target are to go on when that fails.
  filter()->break_snapshot(Error(Errc::cancelled, "the backup was cancelled"));
  give_up_requests(filter()->target());
}

Task<void> Backup::clean(Job&) {
  // Somebody may keep the filter: it has no job any more.
  if (filter()) filter()->break_snapshot(Error(Errc::denied, "the backup has ended"));
  for (Child* edge : {&filter_, &target_, &source_}) {
    if (!*edge) continue;
    (void)co_await edge->close().result();
    edge->reset();
  }
}

}  // namespace byre
