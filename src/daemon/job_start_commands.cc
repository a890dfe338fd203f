// SPDX-License-Identifier: Apache-2.0
/// Commands that start jobs: blockdev-mirror, block-commit, block-stream, blockdev-backup; the last
/// is an action of transactions as well: all backups of one are of one moment.
#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "daemon/addresses.h"
#include "daemon/jobs.h"
#include "daemon/modules.h"
#include "job/layers.h"
#include "job/live/backup.h"
#include "job/live/commit_below.h"
#include "job/live/mirror.h"
#include "job/live/stream.h"

namespace byre::qmp {

namespace {

// --- What all of them take -----------------------------------------------------------------------

enum class OnErrorWord : uint8_t { report, ignore, enospc, stop, automatic };
const Enumeration& definition_of(const OnErrorWord*) {
  static const Enumeration kWords({"report", "ignore", "enospc", "stop", "auto"});
  return kWords;
}
/// "auto" is what a disk does by itself: reads report, writes stop when the disk is full.
OnError on_error_of(OnErrorWord word, JobSide side) {
  if (word != OnErrorWord::automatic) return static_cast<OnError>(word);
  return side == JobSide::source ? OnError::report : OnError::enospc;
}

enum class SyncWord : uint8_t { top, full, none, incremental, bitmap };
const Enumeration& definition_of(const SyncWord*) {
  static const Enumeration kWords({"top", "full", "none", "incremental", "bitmap"});
  return kWords;
}

struct JobArgs {
  std::optional<std::string> id;
  int64_t speed = 0;
  bool auto_finalize = true;
  bool auto_dismiss = true;
  std::optional<std::string> filter_name;
};

/// Fields of `Args`, which derives from JobArgs, and what is common to all jobs.
template <class Args>
std::vector<Field> with_job_fields(std::vector<Field> fields) {
  fields.push_back(field("job-id", &JobArgs::id, "its name"));
  fields.push_back(with_default("speed", &JobArgs::speed, "bytes a second; 0: no limit"));
  fields.push_back(with_default("auto-finalize", &JobArgs::auto_finalize,
                                "it ends by itself; else it waits for job-finalize"));
  fields.push_back(with_default("auto-dismiss", &JobArgs::auto_dismiss,
                                "it goes by itself; else its result stays until job-dismiss"));
  fields.push_back(field("filter-node-name", &JobArgs::filter_name, "of the job's own node"));
  return fields;
}

Result<JobOptions> options_of(const JobArgs& args, OnErrorWord source, OnErrorWord target) {
  if (args.speed < 0) return invalid("Parameter 'speed' expects a non-negative value");
  return JobOptions{.id = args.id.value_or(""),
                    .auto_finalize = args.auto_finalize,
                    .auto_dismiss = args.auto_dismiss,
                    .speed = static_cast<uint64_t>(args.speed),
                    .on_source_error = on_error_of(source, JobSide::source),
                    .on_target_error = on_error_of(target, JobSide::target)};
}

/// What the filter is to be called.
Result<std::string> filter_name_of(Call& call, const JobArgs& args) {
  if (!args.filter_name) return std::string();
  Result<void> free = call.daemon().nodes().check_new_name(*args.filter_name);
  if (!free) return std::move(free).error();
  return *args.filter_name;
}
/// Of filters that QEMU makes as blockdev-add does, and says so.
Result<std::string> new_filter_name_of(Call& call, const JobArgs& args) {
  Result<std::string> name = filter_name_of(call, args);
  if (!name) return std::move(name).error().while_doing("Could not create node");
  return name;
}

Result<NamedNode*> node_of(Call& call, const std::string& name) {
  return call.daemon().nodes().need(name, name);
}

/// A job of its own begins.
Task<Json> start(Call& call, std::unique_ptr<JobWork> work, JobOptions options) {
  DaemonJobs& jobs = call.daemon().jobs();
  const auto transaction = jobs.list().begin_transaction();
  (void)co_await jobs.add(std::move(work), std::move(options), transaction);
  jobs.list().start(*transaction);
  co_return Json();
}

/// Errc::busy when the disk, or what it is a filter over, is held by something.
Result<void> check_free(Call& call, Device& device) {
  for (Device* at = &device; at;) {
    const NamedNode* const named = at->node() ? call.daemon().nodes().named(*at->node()) : nullptr;
    if (named) {
      if (Result<void> free = named->check_free(); !free) return free;
    }
    const auto down = std::ranges::find(at->children(), Role::filtered, &Child::role);
    at = down == at->children().end() ? nullptr : (*down)->get();
  }
  return {};
}

using MakeWork = std::function<Result<std::unique_ptr<JobWork>>()>;

/// A job that writes `written`, which may be open for reading only: then they are opened for
/// writing first, until the job has ended.
Task<void> start_writing(Call& call, std::vector<Device*> written, JobOptions options,
                         MakeWork make, WriteLoans& loans) {
  Nodes& nodes = call.daemon().nodes();
  const auto may = [&nodes](const Node& below) { return nodes.may_reopen(below); };
  for (Device* device : written) {
    if (device->writable()) continue;
    co_await check_free(call, *device);
    co_await loans.take(*device->node(), may);
  }
  DaemonJobs& jobs = call.daemon().jobs();
  const auto transaction = jobs.list().begin_transaction();
  Job* const job = co_await jobs.add(co_await make(), std::move(options), transaction);
  job->work().loans = std::move(loans);
  jobs.list().start(*transaction);
}

Task<Json> start_writing(Call& call, std::vector<Device*> written, JobOptions options,
                         MakeWork make) {
  // Other jobs may end meanwhile, and take a disk out of the chain.
  Reopened held;
  for (Device* device : written) held.push_back(Child::to(*device).hold());
  WriteLoans loans;
  Result<void> started =
      co_await start_writing(call, std::move(written), std::move(options), std::move(make), loans)
          .result();
  if (!started) (void)co_await loans.give_back().result();
  co_await keep(std::move(held));
  co_await std::move(started);
  co_return Json();
}

/// The layer of `device`'s chain that is the node; nullopt: none is.
std::optional<size_t> depth_of(const std::vector<Device*>& layers, const NamedNode& node) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const Device* at = layers[i];
    // A filter above the layer is the layer, too.
    for (const Device* down = at; down;) {
      if (down == &node.device()) return i;
      const auto edge = std::ranges::find(down->children(), Role::filtered, &Child::role);
      down = edge == down->children().end() ? nullptr : (*edge)->get();
    }
  }
  return std::nullopt;
}

std::optional<size_t> depth_of_file(const std::vector<Device*>& layers, const std::string& file) {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i]->name() == file) return i;
  }
  return std::nullopt;
}

// --- blockdev-mirror -----------------------------------------------------------------------------

/// What becomes of a copy that guests overtake.
enum class ConvergeWord : uint8_t { report, automatic };
const Enumeration& definition_of(const ConvergeWord*) {
  static const Enumeration kWords({"report", "auto"});
  return kWords;
}
Converge converge_of(ConvergeWord word) {
  return word == ConvergeWord::automatic ? Converge::automatic : Converge::report;
}
constexpr std::string_view kConvergeHelp =
    "when guests write faster than it copies: report: tell; auto: let them write to both disks "
    "from then on";

enum class CopyModeWord : uint8_t { background, write_blocking };
const Enumeration& definition_of(const CopyModeWord*) {
  static const Enumeration kModes({"background", "write-blocking"});
  return kModes;
}

struct MirrorArgs : JobArgs {
  std::string device;
  std::string target;
  std::optional<std::string> replaces;
  SyncWord sync = SyncWord::full;
  std::optional<uint32_t> granularity;
  OnErrorWord on_source_error = OnErrorWord::report;
  OnErrorWord on_target_error = OnErrorWord::report;
  CopyModeWord copy_mode = CopyModeWord::background;
  std::optional<int64_t> buf_size;
  ConvergeWord converge = ConvergeWord::report;
};
std::vector<Field> mirror_fields() {
  return with_job_fields<MirrorArgs>(
      {field("device", &MirrorArgs::device, "what is mirrored"),
       field("target", &MirrorArgs::target, "the node that gets the copy"),
       field("replaces", &MirrorArgs::replaces, "the node whose users are led to the target"),
       field("sync", &MirrorArgs::sync, "full: all; top: only the top image; none: only changes"),
       field("granularity", &MirrorArgs::granularity, "of what is copied again, a power of two"),
       field("buf-size", &MirrorArgs::buf_size, "bytes under way at a time"),
       with_default("on-source-error", &MirrorArgs::on_source_error, "when a read fails"),
       with_default("on-target-error", &MirrorArgs::on_target_error, "when a write fails"),
       with_default("copy-mode", &MirrorArgs::copy_mode,
                    "write-blocking: guests write to both devices")});
}
const Struct& definition_of(const MirrorArgs*) {
  static const Struct kStruct(mirror_fields());
  return kStruct;
}
/// With what QEMU does not have.
struct OwnMirrorArgs : MirrorArgs {};
const Struct& definition_of(const OwnMirrorArgs*) {
  static const Struct kStruct = [] {
    std::vector<Field> fields = mirror_fields();
    fields.push_back(with_default("x-byre-converge", &MirrorArgs::converge, kConvergeHelp));
    return Struct(std::move(fields));
  }();
  return kStruct;
}

/// Does nothing of it lead anywhere?
Task<bool> reads_as_zeros(Device& device) {
  uint64_t at = 0;
  // An image may need several looks; one that takes more than these is copied onto as it is.
  for (int looks = 0; looks < 64 && at < device.size(); ++looks) {
    const Extent extent = co_await device.status(at, device.size() - at);
    if (!extent.zero || extent.length == 0) co_return false;
    at += extent.length;
  }
  co_return at >= device.size();
}

/// Does the target lack the disk that will lie below it?  One whose header names one; and one that
/// is to get only a part of the disk.  libvirt puts it there when the job is ready.
bool backing_comes_later(NamedNode& target, bool gets_a_part) {
  Image* const image = target.image();
  return image && layers_of(target.entry()).size() == 1 &&
         (gets_a_part || image->head().backing_file);
}

Task<Json> blockdev_mirror(Call& call, MirrorArgs args) {
  const NamedNode* const source = co_await node_of(call, args.device);
  NamedNode* const target = co_await node_of(call, args.target);
  co_await call.daemon().nodes().prepare_to_write(*target);
  if (args.sync == SyncWord::incremental || args.sync == SyncWord::bitmap) {
    co_return invalid("Sync mode '", args.sync == SyncWord::bitmap ? "bitmap" : "incremental",
                      "' not supported");
  }
  if (source == target) co_return invalid("Can't mirror node into itself");
  MirrorOptions options;
  if (args.granularity && *args.granularity != 0) {
    if (*args.granularity < 512 || *args.granularity > 64 * MiB) {
      co_return invalid("Parameter 'granularity' expects a value in range [512B, 64MB]");
    }
    if (!std::has_single_bit(*args.granularity)) {
      co_return invalid("Parameter 'granularity' expects a power of 2");
    }
    options.filter.granularity = *args.granularity;
  }
  if (args.buf_size && *args.buf_size < 0) co_return invalid("Invalid parameter 'buf-size'");
  if (args.buf_size && *args.buf_size != 0) {
    const auto room = static_cast<uint64_t>(*args.buf_size) / options.filter.request_size;
    options.requests_max = static_cast<unsigned>(std::clamp<uint64_t>(room, 1, 64));
  }
  const bool has_base = layers_of(source->entry()).size() > 1;
  options.filter.above = args.sync == SyncWord::top && has_base ? 1 : 0;
  options.filter.mode = args.copy_mode == CopyModeWord::background ? MirrorMode::background
                                                                   : MirrorMode::write_blocking;
  options.copies_nothing = args.sync == SyncWord::none;
  options.converge = converge_of(args.converge);
  options.filter.backing_comes_later =
      backing_comes_later(*target, options.filter.above != 0 || options.copies_nothing);
  options.filter.target_is_zero =
      !options.filter.backing_comes_later && co_await reads_as_zeros(target->device());
  if (args.replaces) {
    const NamedNode* const replaced = co_await node_of(call, *args.replaces);
    if (replaced != source) options.replaces = replaced->entry().node();
  }
  JobOptions job = co_await options_of(args, args.on_source_error, args.on_target_error);
  options.filter_name = co_await filter_name_of(call, args);
  std::unique_ptr<Mirror> work = co_await Mirror::make(
      Child::to(source->entry()), Child::to(target->entry()), std::move(options));
  co_return co_await start(call, std::move(work), std::move(job));
}
constexpr std::string_view kMirrorHelp =
    "copies a disk in use to another node, keeps both alike, and leads its users there in the end";
const Command<MirrorArgs> kMirror({.name = "blockdev-mirror",
                                   .help = kMirrorHelp,
                                   .run = blockdev_mirror});
Task<Json> own_mirror(Call& call, OwnMirrorArgs args) {
  co_return co_await blockdev_mirror(call, std::move(args));
}
const Command<OwnMirrorArgs> kOwnMirror({.name = "blockdev-mirror",
                                         .help = kMirrorHelp,
                                         .run = own_mirror});

// --- block-commit --------------------------------------------------------------------------------

struct CommitArgs : JobArgs {
  std::string device;
  std::optional<std::string> base_node, base, top_node, top, backing_file;
  bool backing_mask_protocol = false;
  OnErrorWord on_error = OnErrorWord::report;
  std::optional<ConvergeWord> converge;
};
std::vector<Field> commit_fields() {
  return with_job_fields<CommitArgs>(
      {field("device", &CommitArgs::device, "the disk in whose chain it happens"),
       field("base-node", &CommitArgs::base_node, "what is committed into; the lowest without it"),
       field("base", &CommitArgs::base, "the same by its file name"),
       field("top-node", &CommitArgs::top_node, "what is committed; the disk itself without it"),
       field("top", &CommitArgs::top, "the same by its file name"),
       field("backing-file", &CommitArgs::backing_file,
             "what the header of the image above is to say"),
       with_default("backing-mask-protocol", &CommitArgs::backing_mask_protocol,
                    "a base that is no image is called raw, which is always done"),
       with_default("on-error", &CommitArgs::on_error, "when a request fails")});
}
const Struct& definition_of(const CommitArgs*) {
  static const Struct kStruct(commit_fields());
  return kStruct;
}
/// With what QEMU does not have.
struct OwnCommitArgs : CommitArgs {};
const Struct& definition_of(const OwnCommitArgs*) {
  static const Struct kStruct = [] {
    std::vector<Field> fields = commit_fields();
    fields.push_back(field("x-byre-converge", &CommitArgs::converge, kConvergeHelp));
    return Struct(std::move(fields));
  }();
  return kStruct;
}

/// A layer by node or by file name; `otherwise` without either.
Result<size_t> layer_by(Call& call, const std::vector<Device*>& layers,
                        const std::optional<std::string>& node,
                        const std::optional<std::string>& file, std::string_view what,
                        size_t otherwise) {
  if (node && file) {
    return invalid("'", what, "-node' and '", what, "' are mutually exclusive");
  }
  if (node) {
    BYRE_TRY(found, call.daemon().nodes().need(*node, ""));
    const auto depth = depth_of(layers, *found);
    if (!depth) return invalid("'", *node, "' is not in this backing file chain");
    return *depth;
  }
  if (file) {
    const auto depth = depth_of_file(layers, *file);
    if (!depth) return invalid("Can't find '", *file, "' in the backing chain");
    return *depth;
  }
  return otherwise;
}

Task<Json> block_commit(Call& call, CommitArgs args) {
  const NamedNode* const device = co_await node_of(call, args.device);
  const std::vector<Device*> layers = layers_of(device->entry());
  const size_t top = co_await layer_by(call, layers, args.top_node, args.top, "top", 0);
  const size_t base =
      co_await layer_by(call, layers, args.base_node, args.base, "base", layers.size() - 1);
  if (top >= base) co_return invalid("cannot commit an image into itself");
  JobOptions job = co_await options_of(args, args.on_error, args.on_error);
  const std::string filter = co_await filter_name_of(call, args);
  if (top == 0) {
    if (args.backing_file) {
      co_return invalid("'backing-file' specified, but 'top' is the active layer");
    }
    const Converge converge = converge_of(args.converge.value_or(ConvergeWord::report));
    MakeWork make = [device, base, filter, converge]() -> Result<std::unique_ptr<JobWork>> {
      BYRE_TRY(work, Mirror::commit_into(Child::to(device->entry()), static_cast<uint32_t>(base),
                                         {.converge = converge, .filter_name = filter}));
      return std::unique_ptr<JobWork>(std::move(work));
    };
    co_return co_await start_writing(call, {layers[base]}, std::move(job), std::move(make));
  }
  if (args.converge) {
    co_return invalid(
        "'x-byre-converge' is for the commit of the disk itself: guests do not write to a 'top' "
        "that lies below it");
  }
  Device* overlay = layers[top - 1];
  while (!dynamic_cast<Image*>(overlay)) {
    const auto edge = std::ranges::find(overlay->children(), Role::filtered, &Child::role);
    if (edge == overlay->children().end()) co_return invalid("there is no image above the top");
    overlay = (*edge)->get();
  }
  const CommitBelowOptions options{
      .depth = static_cast<uint32_t>(base - top),
      .base_name = co_await name_in_header(*layers[base], overlay->name(), args.backing_file),
      .filter_name = filter};
  MakeWork make = [overlay, options]() -> Result<std::unique_ptr<JobWork>> {
    BYRE_TRY(work, CommitBelow::make(Child::to(*overlay), options));
    return std::unique_ptr<JobWork>(std::move(work));
  };
  co_return co_await start_writing(call, {overlay, layers[base]}, std::move(job), std::move(make));
}
constexpr std::string_view kCommitHelp =
    "moves what a disk, or images below it, have into one further below";
const Command<CommitArgs> kCommit({.name = "block-commit",
                                   .help = kCommitHelp,
                                   .run = block_commit});
Task<Json> own_commit(Call& call, OwnCommitArgs args) {
  co_return co_await block_commit(call, std::move(args));
}
const Command<OwnCommitArgs> kOwnCommit({.name = "block-commit",
                                         .help = kCommitHelp,
                                         .run = own_commit});

// --- block-stream --------------------------------------------------------------------------------

struct StreamArgs : JobArgs {
  std::string device;
  std::optional<std::string> base_node, base, bottom, backing_file;
  bool backing_mask_protocol = false;
  OnErrorWord on_error = OnErrorWord::report;
};
const Struct& definition_of(const StreamArgs*) {
  static const Struct kStruct(with_job_fields<StreamArgs>(
      {field("device", &StreamArgs::device, "the image that gets what lies below it"),
       field("base-node", &StreamArgs::base_node, "what stays below; nothing without it"),
       field("base", &StreamArgs::base, "the same by its file name"),
       field("bottom", &StreamArgs::bottom, "the lowest node that goes into the image"),
       field("backing-file", &StreamArgs::backing_file, "what the header is to say of the base"),
       with_default("backing-mask-protocol", &StreamArgs::backing_mask_protocol,
                    "a base that is no image is called raw, which is always done"),
       with_default("on-error", &StreamArgs::on_error, "when a request fails")}));
  return kStruct;
}

Task<Json> block_stream(Call& call, StreamArgs args) {
  const NamedNode* const device = co_await node_of(call, args.device);
  Image* const image = device->image();
  if (!image) co_return unsupported("Node '", args.device, "' is no image that could be filled");
  const std::vector<Device*> layers = layers_of(*image);
  if (args.base_node && args.base) {
    co_return invalid("'base' and 'base-node' cannot be specified at the same time");
  }
  size_t base = co_await layer_by(call, layers, args.base_node, args.base, "base", layers.size());
  if (args.bottom) {
    if (args.base_node || args.base) {
      co_return invalid("'bottom' and 'base' cannot be specified at the same time");
    }
    base = 1 + co_await layer_by(call, layers, args.bottom, std::nullopt, "bottom", 0);
  }
  if (base == 0) co_return invalid("Node '", args.device, "' cannot be its own base");
  StreamOptions options;
  if (base < layers.size()) {
    options.depth = static_cast<uint32_t>(base - 1);
    options.base_name = co_await name_in_header(*layers[base], image->name(), args.backing_file);
  } else if (args.backing_file) {
    co_return invalid("backing file specified, but streaming the entire chain");
  }
  JobOptions job = co_await options_of(args, args.on_error, args.on_error);
  options.filter_name = co_await new_filter_name_of(call, args);
  MakeWork make = [image, options]() -> Result<std::unique_ptr<JobWork>> {
    BYRE_TRY(work, byre::Stream::make(Child::to(*image), options));
    return std::unique_ptr<JobWork>(std::move(work));
  };
  co_return co_await start_writing(call, {image}, std::move(job), std::move(make));
}
const Command<StreamArgs> kStream({.name = "block-stream",
                                   .help = "fills an image in use with what shows of the disks "
                                           "below it, which it then no longer needs",
                                   .run = block_stream});

// --- blockdev-backup -----------------------------------------------------------------------------

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
  OnErrorWord on_source_error = OnErrorWord::report;
  OnErrorWord on_target_error = OnErrorWord::report;
  // As QEMU has it; OwnBackupArgs has other defaults.
  CbwErrorWord on_cbw_error = CbwErrorWord::break_guest_write;
  uint32_t cbw_timeout = 0;
};
std::vector<Field> backup_fields() {
  return with_job_fields<BackupArgs>(
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
       refused_field(
           "discard-source",
           "guests may still need what was copied; discard it yourself when the backup has ended"),
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
                        .compressed = args.compress};
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

void add_job_start_commands(CommandSet& set) {
  using Commands = std::initializer_list<const AnyCommand*>;
  const Commands commands = set.has_own()
                                ? Commands{&kOwnMirror, &kOwnCommit, &kStream, &kOwnBackup}
                                : Commands{&kMirror, &kCommit, &kStream, &kBackup};
  for (const AnyCommand* command : commands) set.add(*command);
  if (set.has_own()) {
    set.add(kOwnBackupAction);
  } else {
    set.add(kBackupAction);
  }
}

}  // namespace byre::qmp
