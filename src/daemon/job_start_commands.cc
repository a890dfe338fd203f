// SPDX-License-Identifier: Apache-2.0
/// Commands that start jobs: blockdev-mirror, block-commit, block-stream; blockdev-backup is in
/// backup_command.cc.
#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "daemon/job_arguments.h"
#include "daemon/jobs.h"
#include "daemon/modules.h"
#include "job/layers.h"
#include "job/live/commit_below.h"
#include "job/live/mirror.h"
#include "job/live/stream.h"

namespace byre::qmp {

namespace {

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
  bool verify = false;
};
std::vector<Field> mirror_fields() {
  return with_job_fields(
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
    fields.push_back(with_default("x-byre-verify", &MirrorArgs::verify, kVerifyHelp));
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
  options.verify = args.verify;
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
  return with_job_fields(
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
      .filter_name = filter,
      .guest_requests = [exports = &call.daemon().exports()] { return exports->requests(); }};
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
  static const Struct kStruct(with_job_fields(
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

}  // namespace

void add_job_start_commands(CommandSet& set) {
  using Commands = std::initializer_list<const AnyCommand*>;
  const Commands commands = set.has_own() ? Commands{&kOwnMirror, &kOwnCommit, &kStream}
                                          : Commands{&kMirror, &kCommit, &kStream};
  for (const AnyCommand* command : commands) set.add(*command);
}

}  // namespace byre::qmp
