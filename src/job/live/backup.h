// SPDX-License-Identifier: Apache-2.0
/// Backup: a disk in use is copied as it was at one moment.
///
///   1. A CopyBeforeWrite filter enters above the source in a drain: that is the moment.  Which
///      parts are wanted (what a bitmap has, for an incremental one) is read in the same drain.
///   2. What guests are about to change is copied first; the rest cluster by cluster.  With
///      `only_on_change` the job copies nothing by itself, and ends when somebody cancels it: the
///      snapshot is there for others to read (snapshot_access.h).
///   3. With `verify` the target is flushed, read back, and compared with what it was given, while
///      guests go on.
///   4. The target is flushed.  Guests are drained; the bitmap becomes what they have changed since
///      the moment, in one durable step; the filter leaves.
/// Invariant (docs/engine.md, G6, J4): the target holds the wanted parts as they were at the
/// moment, durably, when the job ends well; a job whose snapshot broke fails, soon. Invariant:
/// until the job has ended well the bitmap in the image is a superset of what it had and what was
/// changed since, so a backup that fails or is cut off costs nothing but its target. Cost: each
/// cluster once; guests wait for copies of what they change (copy_before_write.h). Memory:
/// requests_max pieces; with a bitmap a bit for each of its granules that guests change; with
/// `verify` copy_sums.h.  Not here: images made for the target; reading it back (copy_check.h).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "block/copy_before_write.h"
#include "block/drain.h"
#include "job/live/copy_check.h"
#include "job/live/job.h"
#include "qcow2/image.h"

namespace byre {

/// When the bitmap becomes what was changed since the backup's moment.
enum class BitmapSync : uint8_t {
  on_success,
  always,  ///< After a failure it keeps what the target did not get, and what was changed since.
  never,
};

/// The bitmap of an incremental backup, wherever it is kept.
class BackupBitmap {
 public:
  virtual ~BackupBitmap() = default;
  virtual Task<std::unique_ptr<DirtyBits>> read() = 0;
  /// It becomes these bits in one step, durably where it is kept in an image.
  virtual Task<void> replace(const DirtyBits& bits) = 0;
};

/// One that an image keeps.
class ImageBitmap final : public BackupBitmap {
 public:
  /// Errc::invalid when there is none of this name, Errc::read_only when it could not be replaced.
  static Result<std::unique_ptr<BackupBitmap>> make(Image& image, std::string name,
                                                    BitmapSync sync);
  BYRE_CORO_WRAPPER Task<std::unique_ptr<DirtyBits>> read() override {
    return image_.read_bitmap(name_);
  }
  BYRE_CORO_WRAPPER Task<void> replace(const DirtyBits& bits) override {
    return image_.replace_bits_of_bitmap(name_, bits);
  }

 private:
  ImageBitmap(Image& image, std::string name) : image_(image), name_(std::move(name)) {}
  Image& image_;
  const std::string name_;
};

struct BackupOptions {
  bool only_on_change = false;
  /// Only what the disk itself has, not what shows of the one below: the target lies over that,
  /// too.
  bool top_only = false;
  /// Only what this bitmap has; null: all.
  std::shared_ptr<BackupBitmap> bitmap;
  BitmapSync bitmap_sync = BitmapSync::on_success;
  CbwError on_cbw_error = CbwError::break_snapshot;
  int64_t cbw_timeout_ns = 0;
  uint64_t cluster_size_min = 0;
  bool compressed = false;
  bool verify = false;  ///< Not with only_on_change.
  /// The source is a snapshot-access node: what the target has is let go there, so that what keeps
  /// the snapshot needs no more room than the part that was not copied yet.
  bool discard_source = false;
  unsigned requests_max = 8;
  std::string filter_name;  ///< Of the filter's node; empty: a made-up one.
  uint64_t request_size = 1 * MiB;
};

class Backup final : public JobWork {
 public:
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
  void interrupt() override;
  std::optional<uint64_t> verified() const override;

 private:
  Backup(Child source, Child target, BackupOptions options);
  Task<void> enter_graph(Job& job, const Drain& drain);
  Task<void> worker(Job& job);
  Task<void> check(Job& job);
  void note(uint64_t at, uint64_t length, Bytes data);
  Task<void> leave_out_what_shows(uint64_t at, uint64_t end);
  Task<void> let_source_go(uint64_t at, uint64_t end);
  Task<void> settle_bitmap(bool succeeded);
  Task<void> leave_graph(bool succeeded);

  const BackupOptions options_;
  Child source_;
  Child target_;  ///< Until the filter has it.
  Child filter_;
  std::unique_ptr<DirtyBits> wanted_;
  std::unique_ptr<DirtyBits> changed_;  ///< Since the moment.
  std::unique_ptr<Drain> drain_;        ///< From prepare() to the end.
  std::unique_ptr<CopySums> sums_;      ///< With `verify`.
  bool checked_ = false;                ///< All of it.
  bool entered_ = false;
  uint64_t next_ = 0;
  bool failed_ = false;
};

}  // namespace byre
