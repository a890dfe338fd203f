// SPDX-License-Identifier: Apache-2.0
/// `byre convert`: copies disks into a new one, of this format or that.
#include "job/convert.h"

#include <algorithm>
#include <bit>

#include "block/raw.h"
#include "block/throttle.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/new_disk.h"
#include "cli/options.h"
#include "cli/progress_line.h"
#include "cli/salvage_report.h"
#include "cli/text.h"
#include "format/codec.h"
#include "job/salvage.h"

namespace byre {

namespace {

/// The exit code of a --salvage that could not read everything; qemu-img's is 0.
constexpr int kLostExit = 4;
constexpr uint64_t kSparseSizeMax = 16 * MiB;
constexpr unsigned kRequestsMax = 16;
constexpr uint64_t kPieceMax = 2 * MiB;

struct ConvertArgs : OpenArgs {
  std::vector<std::string> images;  ///< Sources, then the target.
  std::optional<std::string> target_format;
  OptionList options;
  std::optional<std::string> backing;
  std::optional<std::string> backing_format;
  std::optional<std::string> snapshot;
  std::optional<uint64_t> sparse_size;
  std::optional<uint64_t> rate;
  std::optional<std::string> requests;
  std::optional<std::string> level;
  bool compress = false;
  std::optional<std::string> cache;
  std::string source_cache = "writeback";
  bool out_of_order = false;
  bool no_create = false;
  bool target_image_opts = false;
  bool target_is_zero = false;
  bool force = false;
  bool progress = false;
  bool quiet = false;
  bool bitmaps = false;
  bool skip_broken_bitmaps = false;
  bool salvage = false;
  bool offload = false;
  bool verify = false;
};

/// All that the words say, checked, before a file is opened.
struct Plan {
  std::vector<std::string> sources;
  std::string target;
  DiskFormat format = DiskFormat::raw;
  NewDisk disk;
  std::optional<SnapshotChoice> snapshot;
  CacheMode cache = CacheMode::writeback;
  CacheMode source_cache = CacheMode::writeback;
  uint64_t sparse_size = 4 * KiB;
  std::optional<unsigned> requests;
  int level = kDefaultLevel;
};

Result<void> plan_backing(const ConvertArgs& args, Plan& plan) {
  if (args.backing) plan.disk.backing_file = *args.backing;
  if (args.backing_format) plan.disk.backing_format = *args.backing_format;
  if (args.no_create) {
    // Both only say what the target has below it.
    const bool raw = plan.format == DiskFormat::raw;
    if (raw || plan.disk.backing_file == "") plan.disk.backing_file.reset();
    if (!plan.disk.backing_file) plan.disk.backing_format.reset();
  }
  if (plan.format == DiskFormat::raw) return check_backing(plan.disk);
  if (!plan.disk.backing_file) return {};  // A format alone is refused when the target is made.
  if (!plan.disk.backing_format && !args.no_create) {
    return invalid("Use of backing file requires explicit backing format");
  }
  if (plan.sources.size() > 1) {
    return invalid(
        "Having a backing file for the target makes no sense when concatenating multiple ",
        "input images");
  }
  return {};
}

constexpr std::string_view kCannotCompress = "Compression not supported for this file format";

Result<int> level_of(const std::string& text, Compression compression) {
  const int most = level_max(compression);
  const Result<uint64_t> level = parse_number(text, 1, static_cast<uint64_t>(most));
  if (!level) {
    return invalid("Invalid compression level '", text, "'; ",
                   compression == Compression::zstd ? "zstd" : "zlib", " has 1 to ", most);
  }
  return static_cast<int>(*level);
}

/// With -n the type of compression is the target's, and level_of() is asked later.
Result<void> plan_compression(const ConvertArgs& args, Plan& plan) {
  if (!args.compress) {
    if (args.level) return invalid("--compression-level requires use of -c flag");
    return {};
  }
  const bool is_new_raw = plan.format == DiskFormat::raw && !args.no_create;
  if (is_new_raw || (plan.disk.data_file && *plan.disk.data_file != "")) {
    return invalid(kCannotCompress);
  }
  if (plan.disk.preallocation_text.value_or("off") != "off") {
    return invalid("Compression and preallocation not supported at the same time");
  }
  if (args.level && !args.no_create) {
    BYRE_TRY(level, level_of(*args.level, plan.disk.compression));
    plan.level = level;
  }
  return {};
}

Argument sparse_size_option() {
  Argument argument = size_option(
      "-S, --sparse-size", "SIZE", &ConvertArgs::sparse_size, "buffer size for sparse output",
      "zeros shorter than this are written like data (4k is the default); with 0 everything is "
      "written and the target gets all its blocks");
  argument.store = [store = std::move(argument.store)](void* args,
                                                       std::string_view value) -> Result<void> {
    if (Result<void> stored = store(args, value); !stored) return stored;
    const uint64_t size = *static_cast<ConvertArgs*>(args)->sparse_size;
    if (size % kSectorSize == 0 && size <= kSparseSizeMax) return {};
    return invalid("Invalid buffer size for sparse output specified. Valid sizes are multiples of ",
                   kSectorSize, " up to ", kSparseSizeMax,
                   ". Select 0 to disable sparse detection (fully allocates output).");
  };
  return argument;
}

Result<void> look_at_requests(std::string_view value) {
  if (parse_number(value, 1, kRequestsMax)) return {};
  if (!parse_number(value, 0, UINT64_MAX)) {
    return invalid("Invalid number of coroutines specified: '", value, "'.");
  }
  return invalid("Invalid number of coroutines specified. Must be between 1 and ", kRequestsMax,
                 ".");
}

/// What can be wrong with the words before the images are looked at.
Result<void> check_words(const ConvertArgs& args, Plan& plan) {
  if (args.requests) {
    plan.requests = static_cast<unsigned>(*parse_number(*args.requests, 1, kRequestsMax));
  }
  if (args.sparse_size) plan.sparse_size = *args.sparse_size;
  if (args.skip_broken_bitmaps && !args.bitmaps) {
    return invalid("Use of --skip-broken-bitmaps requires --bitmaps");
  }
  if (args.offload && args.compress) {
    return invalid("Cannot enable copy offloading when -c is used");
  }
  if (args.offload && args.sparse_size) {
    return invalid("Cannot enable copy offloading when -S is used");
  }
  if (args.offload && args.salvage) {
    return invalid("Cannot use copy offloading in salvaging mode");
  }
  if (!args.blockdevs.empty() && args.images.size() > 2) {
    return invalid("--blockdev takes one source: name a single node, and the target");
  }
  if (args.target_image_opts && !args.no_create) {
    return invalid("--target-image-opts requires use of -n flag");
  }
  if (args.no_create && !args.options.empty()) {
    return invalid("-o has no effect when skipping image creation");
  }
  if ((args.trust_refcounts || args.free_leaks) && !args.no_create)
    return invalid("--trust-refcounts and --free-leaks are for a target that is there (-n)");
  if (args.target_is_zero && !args.no_create)
    return invalid("--target-is-zero requires use of -n flag");
  if (args.target_is_zero && args.backing) {
    return invalid("Cannot use --target-is-zero when the destination image has a backing file");
  }
  if (args.snapshot) {
    BYRE_TRY(snapshot, parse_snapshot(*args.snapshot));
    plan.snapshot = snapshot;
  }
  return {};
}

Result<void> read_images(const ConvertArgs& args, Plan& plan) {
  if (args.images.size() < 2) return invalid("Must specify image file name");
  plan.sources.assign(args.images.begin(), args.images.end() - 1);
  plan.target = args.images.back();
  BYRE_TRY(source_cache, cache_mode(args.source_cache, "source cache"));
  plan.source_cache = source_cache;
  if (plan.snapshot && plan.sources.size() > 1) {
    return invalid("No support for concatenating multiple snapshot");
  }
  return {};
}

Result<DiskFormat> target_format(Session& session, const ConvertArgs& args) {
  if (args.target_format) {
    const Result<DiskFormat> format = parse_format(*args.target_format);
    if (!format) return invalid("Unknown file format '", *args.target_format, "'");
    return *format;
  }
  // Only "-o help" asks without a target.
  if (args.images.size() < 2) return DiskFormat::raw;
  return format_by_name(session, args.images.back(), "-O");
}

OpenArgs target_args(const ConvertArgs& args) {
  return {.format = args.target_format,
          .follow = args.follow,
          .trust_refcounts = args.trust_refcounts,
          .free_leaks = args.free_leaks,
          .image_opts = args.target_image_opts,
          .objects = args.objects};
}

/// The format of the disk that the tree is: that below its filters.
Task<DiskFormat> format_of_devices(Session& session, FileOpener& opener, ConvertArgs args) {
  const std::string& name = args.images.back();
  Result<DeviceTree> tree = device_tree_of(name, target_args(args));
  if (!tree) co_return could_not_open(name, std::move(tree).error());
  const DeviceNode* node = tree->get();
  while (node->driver && node->driver->is_filter && !node->children.empty()) {
    const DeviceNode* const test = node->child("test");
    node = test ? test : node->children.begin()->second.get();
  }
  for (const DiskFormat format : {DiskFormat::qcow2, DiskFormat::qcow}) {
    if (node->driver == &driver_of(format)) co_return format;
  }
  if (node->driver) co_return DiskFormat::raw;
  Result<Storage> storage =
      co_await open_storage_named(session, opener, name, target_args(args), {.lock = false})
          .result();
  if (!storage) co_return could_not_open(name, std::move(storage).error());
  co_await storage->device.close();
  co_return storage->format;
}

/// -n: what is there must be what the name says.
Task<DiskFormat> format_there(Session& session, FileOpener& opener, ConvertArgs args) {
  const std::string& name = args.images.back();
  if (args.target_image_opts && args.target_format) {
    // qemu-img calls both by what they are for sources.
    if (session.compatibility_name()) co_await check_format_option(target_args(args));
    co_return invalid("--target-image-opts and -O are mutually exclusive");
  }
  if (names_devices(name, target_args(args))) {
    co_return co_await format_of_devices(session, opener, args);
  }
  Result<DiskFormat> named = target_format(session, args);
  if (args.target_format || session.compatibility_name()) co_return co_await std::move(named);
  const Result<std::string> path = path_of(name);
  Result<std::unique_ptr<File>> file = path ? opener.open(*path, {.lock = false})
                                            : Result<std::unique_ptr<File>>(path.error().copy());
  if (!file) co_return could_not_open(name, std::move(file).error());
  Result<DiskFormat> found = co_await find_format(**file, std::nullopt).result();
  if (!found) co_return could_not_open(name, std::move(found).error());
  if (!named || *named == *found) co_return *found;
  co_return invalid(quoted(name), " holds a ", name_of(*found), " disk, and its name says ",
                    name_of(*named), "; give -O");
}

Result<void> plan_target(const ConvertArgs& args, DiskFormat format, Plan& plan) {
  plan.format = format;
  BYRE_TRY(disk, read_new_disk(plan.format, args.options));
  plan.disk = disk;
  if (Result<void> backing = plan_backing(args, plan); !backing) return std::move(backing).error();
  return plan_compression(args, plan);
}

/// The disks of one run; close() closes what is open, target last.
struct Disks {
  std::vector<Disk> sources;
  std::vector<std::unique_ptr<Salvage>> salvaged;  ///< Over the sources, with --salvage.
  std::unique_ptr<NewDiskFile> made;               ///< The target's file, unless it was there (-n).
  std::optional<Disk> target;
  bool target_changed = false;  ///< A target that was there has been written to.
  std::optional<ProgressLine> progress;
  uint64_t copied = 0;  ///< Bytes of the sources.
  ReadBack record;      ///< With --verify: what the target has to hold.

  Task<void> close() {
    Result<void> first;
    for (Disk& source : sources) {
      Result<void> closed = co_await source.device.close().result();
      if (!closed && first) first = std::move(closed);
    }
    sources.clear();
    if (target) {
      Result<void> closed = co_await target->device.close().result();
      if (!closed && first) first = std::move(closed);
      target.reset();
    }
    co_await std::move(first);
  }
};

/// What ctrl-C ends, whatever is being done.
struct Stop {
  Progress target;  ///< Of making the target.
  Progress verify;
  Convert* job = nullptr;  ///< While it runs.

  void now() {
    target.stop();
    verify.stop();
    if (job) job->stop();
  }
};

constexpr std::string_view kSalvageHelps = "; --salvage copies what can be read";

Task<void> open_sources(Session& session, FileOpener& opener, ConvertArgs args, const Plan& plan,
                        Disks& disks) {
  for (const std::string& name : plan.sources) {
    ImageOptions options{.direct = is_direct(plan.source_cache), .salvage = args.salvage};
    Result<Disk> disk = co_await open_named(session, opener, name, args, options).result();
    if (!disk && disk.error().code() == Errc::corrupt && !args.salvage) {
      co_await fail(Error(Errc::corrupt, cat(disk.error().message(), kSalvageHelps)));
    }
    if (!disk) co_await fail(std::move(disk).error());
    disks.sources.push_back(*std::move(disk));
  }
}

/// A snapshot is a disk of its own: the image is opened again at it, so that what is wrong with the
/// image is told apart from a snapshot that is not there.
Task<void> go_to_snapshot(Session& session, FileOpener& opener, ConvertArgs args, const Plan& plan,
                          Disks& disks) {
  Disk& source = disks.sources[0];
  const auto failed = [](std::string_view why) {
    return Error(Errc::not_found, cat("Failed to load snapshot: ", why));
  };
  if (!source.image) {
    co_await fail(
        failed("Block format 'raw' used by device '' does not support temporarily loading internal "
               "snapshots"));
  }
  Result<std::string> word = plan.snapshot->find(source.image->snapshots());
  if (!word) co_await fail(failed(word.error().message()));
  co_await source.device.close();
  disks.sources.clear();
  ImageOptions options{
      .direct = is_direct(plan.source_cache), .snapshot = *word, .salvage = args.salvage};
  Result<Disk> opened =
      co_await open_named(session, opener, plan.sources[0], args, std::move(options)).result();
  if (!opened) {
    const std::string why = opened.error().message();
    co_await fail(Error(opened.error().code(), cat("Failed to load snapshot: ", why)));
  }
  disks.sources.push_back(*std::move(opened));
}

uint64_t total_size(const Disks& disks) {
  uint64_t total = 0;
  for (const Disk& source : disks.sources) total += source.size();
  return total;
}

bool is_source(const ConvertArgs& args, const Plan& plan, const std::string& path) {
  return std::any_of(plan.sources.begin(), plan.sources.end(), [&](const std::string& name) {
    const Result<std::string> source = file_of(name, args);
    return source && same_file(*source, path);
  });
}

/// The locks would keep sources from being written, too, but not in words that help.
Result<void> check_target(const ConvertArgs& args, const Plan& plan) {
  if (args.no_create && names_devices(plan.target, target_args(args))) {
    const Result<std::string> file = file_of(plan.target, target_args(args));
    if (!file || !is_source(args, plan, *file)) return {};
    return invalid("source and target are the same file");
  }
  BYRE_TRY(path, path_of(plan.target));
  if (is_source(args, plan, path)) return invalid("source and target are the same file");
  if (!plan.disk.data_file || plan.disk.data_file->empty()) return {};
  if (is_source(args, plan, resolve_name(path, *plan.disk.data_file))) {
    return invalid("source and data file are the same file");
  }
  return {};
}

/// Makes the target, which is no disk before it is finished.
Task<void> make_target(Session& session, FileOpener& opener, ConvertArgs args, Plan& plan,
                       Disks& disks, Stop& stop) {
  plan.disk.size = total_size(disks);
  const std::string doing = cat(plan.target, ": error while converting ", name_of(plan.format));
  if (plan.target.empty()) co_await fail(no_name().while_doing(doing));
  co_await check_target(args, plan).doing(doing);
  if (plan.disk.backing_file && plan.disk.backing_format == "raw") {
    const std::string below = resolve_name(plan.target, *plan.disk.backing_file);
    co_await check_backing_is_raw(session, opener, below, args.force);
  }
  disks.made = co_await begin_disk(session, opener, plan.target, plan.disk,
                                   {.replace = args.force || session.compatibility_name(),
                                    .to_be_filled = true,
                                    .direct = is_direct(plan.cache),
                                    .sync = plan.cache != CacheMode::unsafe,
                                    .progress = &stop.target})
                   .doing(doing);
  Disk target{.device = disks.made->device(), .format = plan.format};
  if (plan.format == DiskFormat::qcow2) {
    ImageOptions options{.writable = true,
                         .direct = is_direct(plan.cache),
                         .allocate_in_order = !args.out_of_order,
                         .reuse_freed = false,
                         .scan = ImageOptions::Scan::never};  // It was made here.
    options.message = [&session](const std::string& text) { session.warn(text); };
    Result<std::unique_ptr<Image>> image =
        co_await Image::open_over(std::move(target.device), opener, std::move(options)).result();
    if (!image) co_await fail(could_not_open(plan.target, std::move(image).error()));
    target.image = image->get();
    target.device = *std::move(image);
  }
  disks.target = std::move(target);
}

/// Opens the target that is there.
Task<void> open_there(Session& session, FileOpener& opener, ConvertArgs args, const Plan& plan,
                      Disks& disks) {
  if (Result<void> other = check_target(args, plan); !other) {
    co_await fail(could_not_open(plan.target, std::move(other).error()));
  }
  OpenArgs how = target_args(args);
  if (!names_devices(plan.target, how)) how.format = std::string(name_of(plan.format));
  ImageOptions options{
      .writable = true, .direct = is_direct(plan.cache), .allocate_in_order = !args.out_of_order};
  disks.target = co_await open_named(session, opener, plan.target, how, options);
}

/// Makes the target unless it is there, and opens it.
Task<void> open_target(Session& session, FileOpener& opener, ConvertArgs args, Plan& plan,
                       Disks& disks, Stop& stop) {
  if (args.no_create) {
    co_await open_there(session, opener, args, plan, disks);
  } else {
    co_await make_target(session, opener, args, plan, disks, stop);
  }
  if (!args.compress) co_return;
  if (!disks.target->image || disks.target->image->geometry().data_file) {
    co_await fail(invalid(kCannotCompress));
  }
  if (args.level) {
    plan.level = co_await level_of(*args.level, disks.target->image->head().header.compression);
  }
}

/// The file in which the data of a disk lie as its map says.
File* file_below(const Disk& disk) {
  Device* device = disk.device.get();
  if (disk.image && disk.image == device) {
    device = disk.image->geometry().data_file ? &disk.image->data_file() : &disk.image->file();
  }
  auto* const raw = dynamic_cast<RawDevice*>(device);
  return raw ? &raw->file() : nullptr;
}

/// What the kernel may copy.  Each write of a target that is written through is to be durable,
/// which its copies are not.
ConvertOptions::OnHost on_host(const Plan& plan, const Disks& disks) {
  ConvertOptions::OnHost host;
  for (const Disk& source : disks.sources) host.sources.push_back(file_below(source));
  if (is_write_through(plan.cache)) return host;
  if (disks.made) {
    host.target = disks.made->raw_file();
  } else if (!disks.target->image) {
    host.target = file_below(*disks.target);
  }
  return host;
}

ConvertOptions convert_options(const ConvertArgs& args, const Plan& plan, Disks& disks) {
  Disk& target = *disks.target;
  const bool backed = target.image && target.image->backing();
  ConvertOptions options;
  options.sparse_size = plan.sparse_size;
  // A raw data file shows what a block device held.
  const bool fresh_is_zero =
      target.image ? !target.image->has_raw_data() : target.device->new_space_is_zero();
  options.target_reads_zero =
      !backed && (args.target_is_zero || (!args.no_create && fresh_is_zero));
  // -B says that the target's backing disk holds what the source's does; where the source has none,
  // what it does not have is zeros.
  Image* const source = disks.sources[0].image;
  options.target_has_backing =
      backed && plan.disk.backing_file.has_value() && source && source->backing();
  if (backed) options.target_backing_size = round_up(target.image->backing()->size(), kSectorSize);
  options.compressed = args.compress;
  options.compression_level = plan.level;
  options.in_order = !args.out_of_order;
  options.fua = is_write_through(plan.cache);
  if (args.offload) {
    options.on_host = on_host(plan, disks);
    // What is to be verified is read as it is copied.
    if (args.verify) options.on_host->target = nullptr;
  }
  const bool cached = !args.compress && !is_direct(plan.cache) && !is_direct(plan.source_cache);
  options.requests_max = plan.requests.value_or(cached ? kRequestsCached : kRequestsMax);
  // No cluster of the target is in two pieces, and zeros are looked for in runs of sparse_size.
  options.request_size =
      cached ? std::clamp<uint64_t>(std::max<uint64_t>(target.device->preferred_size(),
                                                       std::bit_floor(plan.sparse_size)),
                                    kPieceCached, kPieceMax)
             : kPieceMax;
  return options;
}

Task<void> copy(ConvertArgs args, const Plan& plan, Disks& disks, Stop& stop) {
  ProgressLine& progress = *disks.progress;
  ConvertOptions options = convert_options(args, plan, disks);
  options.record = args.verify ? &disks.record : nullptr;
  options.progress = [&](uint64_t done, uint64_t total) { progress.update(done, total); };
  std::vector<Device*> sources;
  for (Disk& source : disks.sources) {
    if (args.salvage) disks.salvaged.push_back(std::make_unique<Salvage>(*source.device));
    sources.push_back(args.salvage ? disks.salvaged.back().get() : source.device.get());
  }
  Convert job(std::move(sources), *disks.target->device, std::move(options));
  stop.job = &job;
  disks.copied = job.total();
  Result<void> done = co_await job.run().result();
  disks.target_changed = job.wrote();
  if (!done && job.source_failed()) {
    done = Error(done.error().code(), cat(done.error().message(), kSalvageHelps),
                 done.error().sys_errno());
  }
  stop.job = nullptr;
  co_await std::move(done);
  progress.finish();
}

Error no_bitmaps_in(DiskFormat format) {
  return unsupported("Format driver '", name_of(format), "' does not support bitmaps");
}

/// Before the target is made: can they be copied?
Task<void> check_bitmaps(ConvertArgs args, const Plan& plan, Disks& disks) {
  if (plan.sources.size() > 1) {
    co_await fail(invalid("Copying bitmaps only possible with single source"));
  }
  Image* source = disks.sources[0].image;
  if (!source || source->geometry().version < 3) {
    co_await fail(unsupported("Source lacks bitmap support"));
  }
  for (const auto& slot : source->bitmaps()) {
    if (slot->state == BitmapState::usable || args.skip_broken_bitmaps) continue;
    co_await fail(invalid("Cannot copy inconsistent bitmap '", printable(slot->entry.name), "'\n",
                          "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete ",
                          "it"));
  }
  // A target that is there is asked when it is open.
  if (!args.no_create && (plan.format == DiskFormat::raw || plan.disk.version2)) {
    co_await fail(no_bitmaps_in(plan.format));
  }
}

/// The target's bitmaps record from here on what those of the source did; the copy itself is no
/// change.
Task<void> copy_bitmaps(Session& session, Disks& disks) {
  Image* target = disks.target->image;
  std::vector<std::unique_ptr<DirtyBits>> bits;
  std::vector<NewBitmap> bitmaps;
  for (const auto& slot : disks.sources[0].image->bitmaps()) {
    const std::string name = printable(slot->entry.name);
    if (slot->state != BitmapState::usable) {
      session.warn(cat("Skipping inconsistent bitmap '", name, "'"));
      continue;
    }
    for (const auto& there : target->bitmaps()) {
      if (there->entry.name != slot->entry.name) continue;
      co_await fail(invalid("Failed to create bitmap ", name, ": Bitmap already exists: ", name));
    }
    bits.push_back(co_await disks.sources[0].image->read_bitmap(slot->entry.name));
    bitmaps.push_back({.name = slot->entry.name,
                       .granularity = slot->entry.granularity(),
                       .enabled = slot->entry.automatic,
                       .dirty = bits.back().get()});
  }
  if (bitmaps.empty()) co_return;
  co_await target->add_bitmaps(std::move(bitmaps)).doing("Failed to populate bitmaps");
}

Task<void> fill_target(Session& session, FileOpener& opener, ConvertArgs args, Plan& plan,
                       Disks& disks, Stop& stop) {
  co_await open_target(session, opener, args, plan, disks, stop);
  const bool bitmaps = args.bitmaps;
  const Image* const image = disks.target->image;
  if (bitmaps && (!image || image->geometry().version < 3)) {
    co_await fail(no_bitmaps_in(disks.target->format));
  }
  co_await copy(std::move(args), plan, disks, stop);
  if (bitmaps) co_await copy_bitmaps(session, disks);
}

/// The file of a new disk, opened once more: the sector that the disk begins with is not in it
/// before the disk is finished.
class NotFinished final : public Filter {
 public:
  NotFinished(Child file, Device& being_made) : Filter(std::move(file)), start_(being_made) {}
  Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override {
    co_await below().read(offset, data, options);
    if (offset >= kSectorSize) co_return;
    const uint64_t here = std::min<uint64_t>(data.size(), kSectorSize - offset);
    co_await start_.read(offset, data.first(here), options);
  }

 private:
  Device& start_;
};

/// The new disk as it is in its file, which is opened once more.
Task<Disk> open_made_again(FileOpener& opener, const Plan& plan, NewDiskFile& made) {
  co_await made.sync();
  const uint64_t size = round_up(*plan.disk.size, kSectorSize);
  if (plan.format == DiskFormat::raw && made.being_made().can_grow())
    co_await made.being_made().resize(size);
  const std::string path = co_await path_of(plan.target);
  Disk disk{.device = std::make_unique<RawDevice>(
                co_await opener.open(path, {.direct = true, .lock = false})),
            .format = plan.format};
  if (plan.format == DiskFormat::raw) co_return std::move(disk);
  Child whole = std::make_unique<NotFinished>(std::move(disk.device), made.being_made());
  std::unique_ptr<Image> image =
      co_await Image::open_over(std::move(whole), opener, {.direct = true, .lock = false});
  disk.image = image.get();
  disk.device = std::move(image);
  co_return std::move(disk);
}

/// The target as it is on the disk: opened anew, past the page cache where its file system can.
Task<Disk> open_again(Session& session, FileOpener& opener, ConvertArgs args, const Plan& plan,
                      Disks& disks) {
  if (disks.made) co_return co_await open_made_again(opener, plan, *disks.made);
  OpenArgs how = target_args(args);
  how.trust_refcounts = how.free_leaks = false;  // They are about writing.
  if (!names_devices(plan.target, how)) how.format = std::string(name_of(plan.format));
  co_return co_await open_named(session, opener, plan.target, how, {.direct = true});
}

/// --verify: everything that was read from the sources, compared with what the target holds.
Task<void> verify_target(Session& session, FileOpener& opener, ConvertArgs args, const Plan& plan,
                         Disks& disks, Stop& stop) {
  disks.progress.emplace(session, args.progress && !args.quiet, ProgressLine::Unit::bytes, 1,
                         "verify");
  disks.progress->follow(stop.verify);
  Disk target = co_await open_again(session, opener, std::move(args), plan, disks).doing("verify");
  Result<void> same =
      co_await disks.record.check(*target.device, stop.verify, kRequestsCached).result();
  Result<void> closed = co_await target.device.close().result();
  co_await std::move(same);
  co_await std::move(closed);
  disks.progress->finish();
}

/// What is left of a target that was not finished, as a sentence; nothing when it is as it was.
std::string what_is_left(const Plan& plan, Disks& disks) {
  if (disks.made) return disks.made->give_up();
  if (!disks.target_changed) return "";
  return cat(quoted(plan.target), " is left with a part of the copy over what it held");
}

/// From the moment at which there may be a target: all of it, or what was made goes away.
Task<void> fill_and_finish(Session& session, FileOpener& opener, ConvertArgs args, Plan& plan,
                           Disks& disks) {
  Stop stop;
  std::string about = quoted(plan.target);
  for (const Disk& source : disks.sources) about += cat(" or ", quoted(source.device->name()));
  const Session::Interruptible guard(
      session, {.about = std::move(about),
                .stop = [&] { stop.now(); },
                .waiting_for = [&] { return stop.job ? stop.job->waiting_for() : ""; }});
  Result<void> done = co_await fill_target(session, opener, args, plan, disks, stop).result();
  // What is going to be removed need not be written.
  if (!done && disks.made) stop.target.stop();
  Result<void> closed = co_await disks.close().result();
  if (done) done = std::move(closed);
  if (done && args.verify) {
    done = co_await verify_target(session, opener, args, plan, disks, stop).result();
  }
  if (done && disks.made) done = co_await disks.made->finish().result();
  if (done) co_return;
  const std::string left = what_is_left(plan, disks);
  if (!left.empty()) session.error(left);
  co_await std::move(done);
}

/// -r: all sources together are read at this rate; what reads as zeros is not read.
void throttle_sources(Session& session, const ConvertArgs& args, Disks& disks) {
  if (args.rate.value_or(0) == 0) return;
  const ThrottleLimits limits{.bps_read = {.average = *args.rate}};
  const auto group = std::make_shared<ThrottleGroup>(session.reactor(), limits);
  for (Disk& source : disks.sources) {
    source.device = std::make_unique<Throttle>(std::move(source.device), group);
  }
}

Task<void> run(Session& session, FileOpener& opener, ConvertArgs args, Plan& plan, Disks& disks) {
  co_await open_sources(session, opener, args, plan, disks);
  if (plan.snapshot) co_await go_to_snapshot(session, opener, args, plan, disks);
  throttle_sources(session, args, disks);
  // As in qemu-img: what is wrong with the sources is told before what is wrong with the target.
  const DiskFormat format = args.no_create ? co_await format_there(session, opener, args)
                                           : co_await target_format(session, args);
  if (!args.no_create && plan.target.starts_with("json:")) co_await path_of(plan.target);
  co_await plan_target(args, format, plan);
  if (args.bitmaps) co_await check_bitmaps(args, plan, disks);
  if (args.cache) plan.cache = co_await cache_mode(*args.cache, "cache");
  co_await fill_and_finish(session, opener, std::move(args), plan, disks);
}

Task<int> convert(Session& session, ConvertArgs args) {
  Plan plan;
  co_await check_words(args, plan);
  if (args.options.help) {
    const DiskFormat format = co_await target_format(session, args);
    const bool named = args.images.size() >= 2;
    session.print(named ? option_help(format) : option_help_without_file(format));
    co_return 0;
  }
  co_await read_images(args, plan);
  SystemGate opener(session.reactor(), session.policy(args.follow));
  if (!args.cache && session.compatibility_name()) plan.cache = CacheMode::unsafe;
  Disks disks;
  disks.progress.emplace(session, args.progress && !args.quiet, ProgressLine::Unit::bytes);
  Result<void> done = co_await run(session, opener, args, plan, disks).result();
  Result<void> closed = co_await disks.close().result();
  if (!done && done.error().code() == Errc::cancelled) co_await std::move(done);
  if (!done) {
    co_return std::move(done).error();
  }
  co_await std::move(closed);
  std::vector<LostRange> lost;
  for (size_t i = 0; i < disks.salvaged.size(); ++i) {
    for (Salvage::Lost& range : disks.salvaged[i]->lost()) {
      lost.push_back({.source = plan.sources[i], .range = std::move(range)});
    }
  }
  if (args.salvage) {
    report_lost(session, lost, plan.target);
  } else if (session.json()) {
    session.print(to_json({{"filename", plan.target},
                           {"format", name_of(plan.format)},
                           {"virtual-size", disks.copied},
                           {"verified", args.verify}}));
  }
  co_return !lost.empty() && !session.compatibility_name() ? kLostExit : 0;
}

/// With -o help there need not be any.
Argument sources_and_target() {
  Argument argument =
      operands("SOURCE... TARGET", &ConvertArgs::images, "the disks to read, and the one to make");
  argument.optional = true;
  return argument;
}

const Command<ConvertArgs> kDefinition({
    .name = "convert",
    .summary = "Copy a disk into another, of the same format or not",
    .description =
        "What reads as zeros is not written. The target is durable when this returns, unless with "
        "-t unsafe. Several sources are put one behind the other. A target that exists is not "
        "overwritten, unless with --force; with -n it is what is written to, and what it has "
        "beyond the sources is zeroed. A new image is none before it is finished: when something "
        "fails, or is interrupted, it is removed.",
    .args =
        {sources_and_target(),
         option("-f, --source-format", "FORMAT",
                static_cast<std::optional<std::string> ConvertArgs::*>(&OpenArgs::format),
                "of the sources: raw or qcow2; without it their first bytes decide"),
         option("-O, --target-format, --output-format", "FORMAT", &ConvertArgs::target_format,
                "raw or qcow2; without it the suffix decides: .qcow2, .qcow; .raw, .img, .iso, "
                ".bin, .dd; a block device is raw; with -n what is there must agree (under the "
                "name qemu-img: raw)"),
         option("-o, --options", "OPTIONS", &ConvertArgs::options,
                "options of the target's format, as for create; \"help\" lists them"),
         option("-B, --backing", "FILE", &ConvertArgs::backing,
                "backing disk of the target; it must hold what the source's backing disk does, "
                "so that only the source's own data are copied"),
         option("-F, --backing-format", "FORMAT", &ConvertArgs::backing_format,
                "of the backing disk; it is never guessed"),
         looked_at(option("-l, --snapshot", "SNAPSHOT", &ConvertArgs::snapshot,
                          "read this internal snapshot: an id, a name, snapshot.id=ID, "
                          "snapshot.name=NAME, or the last two with a comma"),
                   look_at_snapshot),
         sparse_size_option(),
         looked_at(option("-m, --parallel", "COUNT", &ConvertArgs::requests,
                          "requests under way at a time, 1 to 16; 8 by default, and 16 past the "
                          "page cache or with -c"),
                   look_at_requests),
         flag("-c, --compress", &ConvertArgs::compress,
              "write compressed clusters, on all cores; what does not get smaller is written as it "
              "is (qcow2 only; -o compression_type=zlib or zstd)"),
         own(option("--compression-level", "LEVEL", &ConvertArgs::level,
                    "with -c: 1 (fast) to 12 for zlib, to 19 for zstd; 3 by default")),
         flag("-W, --out-of-order, --oob-writes", &ConvertArgs::out_of_order,
              "write what was read first, instead of in the order of the disk"),
         flag("-n, --no-create", &ConvertArgs::no_create, "write into a target that exists"),
         flag("--target-is-zero", &ConvertArgs::target_is_zero,
              "with -n: the target reads as zeros already"),
         option("-t, --target-cache, --output-cache", "CACHE", &ConvertArgs::cache,
                "how the target is written: writeback (the default): it is durable at the end; "
                "unsafe (the default under the name qemu-img): the kernel writes it when it likes; "
                "none: as writeback, past the page cache; writethrough, directsync: every write "
                "is durable"),
         option("-T, --source-cache", "CACHE", &ConvertArgs::source_cache,
                "how sources are read: writeback (the default), or none: past the page cache"),
         flag("-U, --force-share", static_cast<bool ConvertArgs::*>(&OpenArgs::share),
              "read sources although another process writes them"),
         own(flag(
             "--force", &ConvertArgs::force,
             "overwrite a target that exists (under the name qemu-img always); take a backing file "
             "as raw although it begins like an image")),
         flag("-p, --progress", &ConvertArgs::progress, "show how far it is"),
         flag("-q, --quiet", &ConvertArgs::quiet, "print nothing but errors"),
         flag("-C, --copy-range-offloading", &ConvertArgs::offload,
              "let the kernel copy from file to file where it can (raw targets), which shares "
              "blocks "
              "on some file systems; no zeros are looked for"),
         size_option("-r, --rate, --rate-limit", "RATE", &ConvertArgs::rate, "rate limit",
                     "read so many bytes a second at most; 0, the default, is no limit"),
         flag("--bitmaps", &ConvertArgs::bitmaps, "copy the persistent bitmaps as well"),
         flag("--skip-broken-bitmaps", &ConvertArgs::skip_broken_bitmaps,
              "with --bitmaps: leave out those that were not saved"),
         flag("--salvage", &ConvertArgs::salvage,
              "what cannot be read becomes zeros; each such range is told, and the exit code is 4 "
              "(under the name qemu-img 0)"),
         own(flag("--verify", &ConvertArgs::verify,
                  "when the copy is on the disk, read the target back, past the page cache where "
                  "the file system can, and compare it with checksums of what was read; a target "
                  "that differs is an error, and is removed if it was made here")),
         flag("--target-image-opts", &ConvertArgs::target_image_opts,
              "with -n: the target's name is a list of options"),
         scan_arguments<ConvertArgs>(),
         follow_arguments<ConvertArgs>("--image-opts, --source-image-opts")},
    .run = convert,
});

}  // namespace

const AnyCommand& kConvert = kDefinition;

}  // namespace byre
