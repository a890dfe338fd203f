// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/online_check.h"

#include <algorithm>
#include <optional>
#include <unordered_set>
#include <vector>

#include "block/point_in_time.h"
#include "qcow2/check/attribution.h"
#include "qcow2/check/bitmap_check.h"
#include "qcow2/check/compressed_check.h"
#include "qcow2/check/metadata_scan.h"
#include "qcow2/check/snapshot_check.h"
#include "qcow2/core/quiesced.h"
#include "qcow2/guest/guest_disk.h"

namespace byre {

namespace {

/// Old metadata in memory.
constexpr uint64_t kKeptMax = 256 * MiB;

}  // namespace

/// A check under way.
struct OnlineCheck {
  explicit OnlineCheck(CheckOptions wanted_options) : options(std::move(wanted_options)) {}

  /// The moment is now.
  void begin(PointInTimeFilter& file) {
    view.emplace(file, kKeptMax);
    scan.emplace(*view, options);
  }
  /// What the scan may still read stays readable.
  void keep(const Geometry& geometry) {
    const std::vector<HostCluster> counted = scan->counted();
    wanted.insert(wanted.end(), counted.begin(), counted.end());
    std::sort(wanted.begin(), wanted.end());
    view->keep([this, &geometry](uint64_t from) {
      const auto found =
          std::lower_bound(wanted.begin(), wanted.end(), geometry.cluster_of(HostOffset{from}));
      if (found == wanted.end()) return UINT64_MAX;
      return std::max(from, geometry.start_of(*found).value);
    });
  }

  const CheckOptions options;
  std::optional<PointInTimeFilter::View> view;
  std::optional<MetadataScan> scan;
  std::vector<HostCluster> wanted;  ///< Ascending.
};

static Task<void> begin_online_check(GuestDisk& disk, OnlineCheck& check);
static Task<void> free_leaks(GuestDisk& disk, const ScanResult& found, CheckReport& report);

Result<void> check_online_options(const CheckOptions& options) {
  if (options.repair != Repair::none && options.repair != Repair::leaks) {
    return unsupported(
        "only leaks can be repaired while the image is in use; end that, then run check -r all");
  }
  if (options.decode) {
    return unsupported("compressed data cannot be verified while the image is in use");
  }
  return {};
}

/// Step 1 of online_check.h.  When it ends, writes go on, and the scan has the rest before it.
Task<void> begin_online_check(GuestDisk& disk, OnlineCheck& check) {
  const Gate::Pass pass = co_await disk.background.enter();
  // What is staged by now goes down while others go on, so that little is left for the pause.
  co_await disk.check_can_write();
  co_await disk.committer->flush(IoTag::commit_sync);
  Quiesced quiesced(disk);
  co_await quiesced.begin();
  co_await disk.check_can_write();
  co_await quiesced.settle();
  check.begin(*disk.file);
  co_await check.scan->begin();
  // If its table leads to it all the same, begin() has counted it.
  for (const HostCluster cluster : disk.bitmaps->candidates()) {
    check.scan->count_if_new(cluster);
  }
  const std::unordered_set<HostCluster> blocks = disk.allocator->refcount_blocks();
  check.wanted.assign(blocks.begin(), blocks.end());
  const HostSpan table = disk.allocator->durable_table_at();
  for (uint64_t i = 0; i < table.count; ++i) check.wanted.push_back(table.first + i);
  check.keep(disk.head.geometry);
  check.view->read_through(disk.background);
}

/// Step 3 of online_check.h.
Task<void> free_leaks(GuestDisk& disk, const ScanResult& found, CheckReport& report) {
  if (report.corruptions != 0 || report.check_errors != 0 || found.damaged) co_return;
  const Gate::Pass pass = co_await disk.background.enter();
  std::unordered_set<uint64_t> freed;
  report.orphans_kept = found.orphans_remembered;
  for (const HostSpan& span : found.orphans) {
    for (HostCluster cluster = span.first; cluster < span.end(); ++cluster) {
      if (disk.closing) break;
      if (found.kept.contains(cluster)) continue;  // R1.
      co_await disk.allocator->load({cluster, 1});
      // In one step from here.
      const uint64_t count = disk.allocator->refcount(cluster);
      if (count == 0 || disk.allocator->in_limbo(cluster) || disk.metadata.contains(cluster))
        continue;
      if (count > 1) disk.allocator->keep_one_reference(cluster);
      disk.allocator->release({cluster, 1});
      freed.insert(disk.geometry().start_of(cluster).value);
      if (freed.size() % std::max<uint64_t>(disk.options.staged_max, 1) == 0) {
        co_await disk.committer->flush(IoTag::commit_sync);  // Bounds what is in limbo.
      }
    }
  }
  if (freed.empty()) co_return;
  co_await disk.committer->flush(IoTag::commit_sync);
  disk.schedule_commit();
  report.leaks_fixed = freed.size();
  report.leaks -= freed.size();
  for (Finding& finding : report.findings) {
    if (finding.kind != FindingKind::refcount_too_large) continue;
    finding.repaired = freed.contains(finding.host_offset);
  }
}

Task<CheckReport> check_online(GuestDisk& disk, CheckOptions options) {
  const Request request(disk);
  co_await request.begin();
  co_await check_online_options(options);
  if (options.repair != Repair::none) co_await disk.check_can_write();
  Progress progress;
  progress.stop_when(
      [&disk, caller = options.progress] { return disk.closing || (caller && caller->stopped()); });
  if (options.progress) {
    progress.on_change(
        [caller = options.progress](const Progress& now) { caller->set(now.done(), now.total()); });
  }
  options.progress = &progress;
  const Mutex::Hold alone = co_await disk.check_mutex.lock();
  OnlineCheck check(options);
  if (disk.options.writable) {
    co_await begin_online_check(disk, check).doing("check ", quoted(disk.name()));
  } else {
    check.begin(*disk.file);
    co_await check.scan->begin();
  }
  co_await check.scan->end();
  ScanContext& context = check.scan->context();
  if (options.streams) co_await check_streams(context, false);
  if (options.bitmaps) co_await check_bitmaps(context);
  if (options.snapshots) co_await check_snapshots(context);
  if (options.attribute && !context.result().report.findings.empty()) co_await attribute(context);
  const ScanResult found = check.scan->take();
  CheckReport report = found.report;
  if (options.repair == Repair::leaks) co_await free_leaks(disk, found, report);
  co_return std::move(report);
}

}  // namespace byre
