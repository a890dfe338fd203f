// SPDX-License-Identifier: Apache-2.0
/// Backup: a disk in use is copied as it was at one moment.
///
///   1. A CopyBeforeWrite filter enters above the source in a drain: that is the moment.  Which
///      parts are wanted (what a bitmap has, for an incremental one) is read in the same drain.
///   2. What guests are about to change is copied first; the rest cluster by cluster.  With
///      `only_on_change` the job copies nothing by itself, and ends when somebody cancels it: the
///      snapshot is there for others to read (snapshot_access.h).
///   3. The target is flushed.  Guests are drained; the bitmap becomes what they have changed since
///      the moment, in one durable step; the filter leaves.
/// Invariant (docs/engine.md, G6, J4): the target holds the wanted parts as they were at the
/// moment, durably, when the job ends well; a job whose snapshot broke fails. Invariant: until the
/// job has ended well the bitmap in the image is a superset of what it had and what was changed
/// since, so a backup that fails or is cut off costs nothing but its target. Cost: each cluster
/// once; guests wait for copies of what they change (copy_before_write.h). Memory: requests_max
/// pieces; with a bitmap a bit for each of its granules that guests change. Not here: images made
/// for the target; checksums.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "block/copy_before_write.h"
#include "block/drain.h"
#include "job/live/job.h"
#include "qcow2/image.h"

namespace byre {

/// When the bitmap becomes what was changed since the backup's moment.
enum class BitmapSync : uint8_t {
  on_success,
  always,  ///< After a failure it keeps what the target did not get, and what was changed since.
  never,
};

struct BackupOptions {
  bool only_on_change = false;
  /// Only what the disk itself has, not what shows of the one below: the target lies over that,
  /// too.
  bool top_only = false;
  /// Only what this bitmap of the source has.
  std::optional<std::string> bitmap;
  BitmapSync bitmap_sync = BitmapSync::on_success;
  CbwError on_cbw_error = CbwError::break_snapshot;
  int64_t cbw_timeout_ns = 0;
  uint64_t cluster_size_min = 0;
  bool compressed = false;
  unsigned requests_max = 8;
  uint64_t request_size = 1 * MiB;
};

class Backup final : public JobWork {
 public:
  /// With a bitmap the source's node is that of an Image that is open for writing.
  static Result<std::unique_ptr<Backup>> make(Child source, Child target, BackupOptions options);

  /// The moment of the backup: the filter enters.  `held` is a drain of the source's node that
  /// others have begun, for several backups of one moment; null: its own.  run() does it otherwise.
  Task<void> take_moment(Job& job, const Drain* held);
  /// The filter; null before the moment, and at the end.
  CopyBeforeWrite* filter() const { return static_cast<CopyBeforeWrite*>(filter_.get()); }

  JobKind kind() const override { return JobKind::backup; }
  std::vector<Node*> nodes() const override;
  Task<void> run(Job& job) override;
  Task<void> prepare(Job& job) override;
  Task<void> commit(Job& job) override;
  Task<void> abort(Job& job) override;
  Task<void> clean(Job& job) override;

 private:
  Backup(Child source, Child target, BackupOptions options, Image* image);
  Task<void> enter_graph(Job& job, const Drain& drain);
  Task<void> worker(Job& job);
  Task<void> leave_out_what_shows(uint64_t at, uint64_t end);
  Task<void> settle_bitmap(bool succeeded);
  Task<void> leave_graph(bool succeeded);

  const BackupOptions options_;
  Child source_;
  Child target_;  ///< Until the filter has it.
  Child filter_;
  Image* const image_;  ///< Whose bitmap it is; or null.
  std::unique_ptr<DirtyBits> wanted_;
  std::unique_ptr<DirtyBits> changed_;  ///< Since the moment.
  std::unique_ptr<Drain> drain_;        ///< From prepare() to the end.
  bool entered_ = false;
  uint64_t next_ = 0;
  bool failed_ = false;
};

}  // namespace byre
