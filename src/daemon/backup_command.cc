// SPDX-License-Identifier: Apache-2.0
/// blockdev-backup: a command, and an action of transactions: all backups of one are of one moment.
#include <utility>

#include "daemon/addresses.h"
#include "daemon/job_arguments.h"
#include "daemon/jobs.h"
#include "daemon/modules.h"
#include "job/layers.h"
#include "job/live/backup.h"

namespace byre::qmp {

namespace {

enum class BitmapModeWord : uint8_t { on_success, never, always };
const Enumeration& definition_of(const BitmapModeWord*) {
  static const Enumeration kModes({"on-success", "never", "always"});
  return kModes;
}
BitmapSync bitmap_sync_of(BitmapModeWord word) {
  return word == BitmapModeWord::on_success ? BitmapSync::on_success
         : word == BitmapModeWord::never    ? BitmapSync::never
                                            : BitmapSync::always;
}

enum class CbwErrorWord : uint8_t { break_guest_write, break_snapshot };
const Enumeration& definition_of(const CbwErrorWord*) {
  static const Enumeration kWords({"break-guest-write", "break-snapshot"});
  return kWords;
}

struct BackupArgs : JobArgs {
  std::string device;
  std::string target;
  SyncWord sync = SyncWord::full;
  std::optional<std::string> bitmap;
  std::optional<BitmapModeWord> bitmap_mode;
  bool compress = false;
  bool discard_source = false;
  OnErrorWord on_source_error = OnErrorWord::report;
  OnErrorWord on_target_error = OnErrorWord::report;
  // As QEMU has it; OwnBackupArgs has other defaults.
  CbwErrorWord on_cbw_error = CbwErrorWord::break_guest_write;
  uint32_t cbw_timeout = 0;
  bool verify = false;
};
std::vector<Field> backup_fields() {
  return with_job_fields(
      {field("device", &BackupArgs::device, "what is backed up, as it is now"),
       field("target", &BackupArgs::target, "the node that gets it"),
       field("sync", &BackupArgs::sync,
             "full: all; top: only the top image; bitmap and incremental: what a bitmap has; none: "
             "only what guests are about to change"),
       field("bitmap", &BackupArgs::bitmap, "of the source"),
       field("bitmap-mode", &BackupArgs::bitmap_mode,
             "when the bitmap keeps only what was changed since: on-success, always, never"),
       with_default("compress", &BackupArgs::compress, "into compressed clusters"),
       with_default("on-source-error", &BackupArgs::on_source_error, "when a read fails"),
       with_default("on-target-error", &BackupArgs::on_target_error, "when a write fails"),
       with_default("discard-source", &BackupArgs::discard_source,
                    "of a snapshot-access node: what was copied is discarded in the target of the "
                    "copy-before-write node below"),
       refused_field("x-perf", "requests are tuned by byre itself")});
}
const Struct& definition_of(const BackupArgs*) {
  static const Struct kStruct(backup_fields());
  return kStruct;
}
/// With what QEMU does not have: a backup that cannot go on never fails a guest's request.
struct OwnBackupArgs : BackupArgs {
  static constexpr uint32_t kTimeout = 30;
  OwnBackupArgs() {
    on_cbw_error = CbwErrorWord::break_snapshot;
    cbw_timeout = kTimeout;
  }
};
const Struct& definition_of(const OwnBackupArgs*) {
  static const Struct kStruct = [] {
    std::vector<Field> fields = backup_fields();
    fields.push_back(
        with_default("x-byre-on-cbw-error", &BackupArgs::on_cbw_error,
                     "when what a guest is about to change cannot be copied: break-snapshot (the "
                     "default): the backup fails; break-guest-write: the guest's request"));
    fields.push_back(with_default("x-byre-cbw-timeout", &BackupArgs::cbw_timeout,
                                  "seconds that such a copy may take: 30 without it; 0: any time"));
    fields.push_back(with_default("x-byre-verify", &BackupArgs::verify, kVerifyHelp));
    return Struct(std::move(fields));
  }();
  return kStruct;
}

/// A bitmap of a node, in its image or in memory.
class NodeBitmap final : public BackupBitmap {
 public:
  NodeBitmap(NamedNode& node, std::string name) : node_(node), name_(std::move(name)) {}
  BYRE_CORO_WRAPPER Task<std::unique_ptr<DirtyBits>> read() override {
    return bits_of(node_, name_);
  }
  Task<void> replace(const DirtyBits& bits) override {
    const BitmapFacts facts = co_await look_at_bitmap(node_, name_);
    if (facts.persistent) {
      co_await node_.image()->replace_bits_of_bitmap(name_, bits);
      co_return;
    }
    for (const auto& loose : node_.bitmaps.loose) {
      if (loose->name != name_) continue;
      loose->bits.fill(false);
      loose->bits.merge(bits);
    }
  }

 private:
  NamedNode& node_;
  const std::string name_;
};

/// What a backup is to be, from its arguments.
Result<BackupOptions> backup_options(NamedNode& source, const BackupArgs& args) {
  BackupOptions options{.only_on_change = args.sync == SyncWord::none,
                        .on_cbw_error = args.on_cbw_error == CbwErrorWord::break_snapshot
                                            ? CbwError::break_snapshot
                                            : CbwError::break_guest_write,
                        .cbw_timeout_ns = args.cbw_timeout * kSecond,
                        .compressed = args.compress,
                        .verify = args.verify,
                        .discard_source = args.discard_source};
  const bool has_base = layers_of(source.entry()).size() > 1;
  options.top_only = args.sync == SyncWord::top && has_base;
  const bool by_bitmap = args.sync == SyncWord::incremental || args.sync == SyncWord::bitmap;
  const std::string_view word = args.sync == SyncWord::bitmap ? "bitmap" : "incremental";
  if (!by_bitmap && !args.bitmap) {
    if (args.bitmap_mode) return invalid("Cannot specify bitmap sync mode without a bitmap");
    return options;
  }
  if (!args.bitmap) {
    return invalid("must provide a valid bitmap name for '", word, "' sync mode");
  }
  if (!by_bitmap) {
    return unsupported("a bitmap goes with the sync modes 'bitmap' and 'incremental' only");
  }
  if (args.sync == SyncWord::bitmap && !args.bitmap_mode) {
    return invalid("Bitmap sync mode must be given when using a bitmap: bitmap-mode");
  }
  options.bitmap_sync = bitmap_sync_of(args.bitmap_mode.value_or(BitmapModeWord::on_success));
  if (args.sync == SyncWord::incremental && options.bitmap_sync != BitmapSync::on_success) {
    return invalid("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
  }
  if (!look_at_bitmap(source, *args.bitmap)) {
    return invalid("Bitmap '", *args.bitmap, "' could not be found");
  }
  if (Result<void> free = check_bitmap_free(source, *args.bitmap); !free) {
    return std::move(free).error();
  }
  options.bitmap = std::make_shared<NodeBitmap>(source, *args.bitmap);
  return options;
}

/// A backup from its arguments to its start: its moment is act().
class StartingBackup final : public ActionRun {
 public:
  StartingBackup(Call& call, BackupArgs args) : call_(call), args_(std::move(args)) {}

  Task<void> act() override {
    NamedNode* const source = co_await node_of(call_, args_.device);
    NamedNode* const target = co_await node_of(call_, args_.target);
    co_await call_.daemon().nodes().prepare_to_write(*target);
    BackupOptions options = co_await backup_options(*source, args_);
    JobOptions job = co_await options_of(args_, args_.on_source_error, args_.on_target_error);
    options.filter_name = co_await new_filter_name_of(call_, args_);
    std::unique_ptr<Backup> work = co_await Backup::make(
        Child::to(source->entry()), Child::to(target->entry()), std::move(options));
    backup_ = work.get();
    DaemonJobs& jobs = call_.daemon().jobs();
    transaction_ = call_.jobs ? call_.jobs : jobs.list().begin_transaction();
    Job* const made = co_await jobs.add(std::move(work), std::move(job), transaction_, source,
                                        args_.bitmap.value_or(""));
    Result<void> taken = co_await backup_->take_moment(*made, nullptr).result();
    if (!taken) {
      co_await undo();
      co_await std::move(taken);
    }
  }
  Task<void> undo() override {
    if (transaction_) co_await call_.daemon().jobs().list().drop(*transaction_);
    transaction_.reset();
  }
  Task<void> finish() override {
    call_.daemon().jobs().list().start(*transaction_);
    co_return;
  }

 private:
  Call& call_;
  const BackupArgs args_;
  Backup* backup_ = nullptr;
  std::shared_ptr<JobTransaction> transaction_;
};

std::unique_ptr<ActionRun> starting_backup(Call& call, BackupArgs args) {
  return std::make_unique<StartingBackup>(call, std::move(args));
}
const Action<BackupArgs> kBackupAction("blockdev-backup", starting_backup);
std::unique_ptr<ActionRun> starting_own_backup(Call& call, OwnBackupArgs args) {
  return starting_backup(call, std::move(args));
}
const Action<OwnBackupArgs> kOwnBackupAction("blockdev-backup", starting_own_backup);

Task<Json> blockdev_backup(Call& call, BackupArgs args) {
  StartingBackup backup(call, std::move(args));
  co_await backup.act();
  co_await backup.finish();
  co_return Json();
}
constexpr std::string_view kBackupHelp = "copies a disk in use as it is at this moment";
const Command<BackupArgs> kBackup({.name = "blockdev-backup",
                                   .help = kBackupHelp,
                                   .run = blockdev_backup});
Task<Json> own_backup(Call& call, OwnBackupArgs args) {
  co_return co_await blockdev_backup(call, std::move(args));
}
const Command<OwnBackupArgs> kOwnBackup({.name = "blockdev-backup",
                                         .help = kBackupHelp,
                                         .run = own_backup});

}  // namespace

void add_backup_command(CommandSet& set) {
  if (set.has_own()) {
    set.add(kOwnBackup);
    set.add(kOwnBackupAction);
  } else {
    set.add(kBackup);
    set.add(kBackupAction);
  }
}

}  // namespace byre::qmp
