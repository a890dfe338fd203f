// SPDX-License-Identifier: Apache-2.0
/// `byre measure`: how large a file a conversion will make.
#include "job/measure.h"

#include "cli/commands.h"
#include "cli/json.h"
#include "cli/new_disk.h"
#include "cli/options.h"
#include "cli/progress_line.h"

namespace byre {

namespace {

struct MeasureArgs : OpenArgs {
  std::vector<std::string> images;
  std::optional<uint64_t> size;
  std::optional<std::string> target_format;
  OptionList options;
  std::optional<std::string> snapshot;
  OutputFormat output = OutputFormat::human;
  bool read_data = false;
  bool compress = false;
  bool bound = false;
  bool progress = false;
};

Result<void> check_words(const Session& session, const MeasureArgs& args) {
  if (args.images.size() > 1) return invalid("At most one filename argument is allowed.");
  if (args.images.empty() && (args.image_opts || args.format || args.snapshot)) {
    return invalid("--image-opts, -f, and -l require a filename argument.");
  }
  if (args.images.empty() && !args.size) {
    return invalid("Either --size N or one filename must be specified.");
  }
  if (!args.images.empty() && args.size) {
    return invalid("--size N cannot be used together with a filename.");
  }
  if (session.compatibility_name() && (args.read_data || args.compress || args.bound)) {
    return invalid("--read-data, -c and --bound are options of byre measure, not of qemu-img's");
  }
  if (args.compress && !args.read_data) return invalid("-c needs --read-data: data decide");
  if (args.bound && args.read_data) return invalid("--bound and --read-data exclude each other");
  return {};
}

/// Values that are wrong, but said so only after what else is wrong with the disk and its shape.
struct WrongValues {
  std::optional<std::string> compat;
  std::optional<std::string> preallocation;
};

/// Takes them out of the options.
WrongValues take_wrong_values(const Session& session, OptionList& options) {
  WrongValues wrong;
  OptionList list = options;
  const auto level = list.take("compat");
  // Of QEMU only `create` and `amend` know the other names of the two.
  const bool is_alias = level == "v2" || level == "v3";
  if (level && level != "0.10" && level != "1.1" && (!is_alias || session.compatibility_name())) {
    wrong.compat = options.take("compat");
  }
  const auto mode = list.take("preallocation");
  if (mode && !parse_preallocation(*mode)) wrong.preallocation = options.take("preallocation");
  return wrong;
}

/// The options as far as they change the size; the rest need only be options.
Result<NewDisk> read_options(const Session& session, DiskFormat format, OptionList options,
                             WrongValues& wrong) {
  if (options.help) return invalid("Invalid parameter 'help'");
  if (session.compatibility_name()) {
    // None of these changes what is measured, and none is looked at.
    if (format == DiskFormat::raw) {
      (void)options.take("preallocation");
    } else {
      (void)options.take("compression_type");
      if (options.take("backing_file")) options.pairs.emplace_back("backing_file", "below");
    }
  }
  if (format == DiskFormat::qcow) {
    if (Result<void> right = check_creation_options(format, options); !right)
      return std::move(right).error();
    return unsupported("Block driver 'qcow' does not support size measurement");
  }
  if (format == DiskFormat::qcow2) wrong = take_wrong_values(session, options);
  BYRE_TRY(disk, read_new_disk(format, std::move(options)));
  if (Result<void> words = check_words(disk); !words) return std::move(words).error();
  return disk;
}

/// What is wrong with an image of that kind, as far as it can be measured.
Result<void> check_kind(const Session& session, const NewDisk& disk, const WrongValues& wrong) {
  const auto is_power_of_two = [](uint64_t value) { return value && !(value & (value - 1)); };
  if (!is_power_of_two(disk.cluster_size) || disk.cluster_size < 512 ||
      disk.cluster_size > 2 * MiB) {
    return invalid("Cluster size must be a power of two between 512 and 2048k");
  }
  if (disk.extended_l2 && disk.cluster_size < 16 * KiB) {
    return invalid(
        "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
  }
  if (wrong.compat) return invalid("Invalid compatibility level: '", *wrong.compat, "'");
  if (!is_power_of_two(disk.refcount_bits) || disk.refcount_bits > 64) {
    return invalid("Refcount width must be a power of two and may not exceed 64 bits");
  }
  if (disk.version2 && disk.refcount_bits != 16) {
    return invalid(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use "
        "compat=1.1 or greater)");
  }
  if (wrong.preallocation) return invalid("invalid parameter value: ", *wrong.preallocation);
  // qemu-img tells the size of what cannot be made.
  if (disk.extended_l2 && disk.version2 && !session.compatibility_name()) {
    return invalid(
        "Extended L2 entries are only supported with compatibility level 1.1 and above (use "
        "version=v3 or greater)");
  }
  return {};
}

Result<DiskFormat> target_format(const MeasureArgs& args) {
  const std::string name = args.target_format.value_or("raw");
  const Result<DiskFormat> format = parse_format(name);
  if (!format) return invalid("Unknown file format '", name, "'");
  return *format;
}

/// A snapshot is a disk of its own, opened by its name.
Task<void> open_snapshot(Session& session, FileOpener& opener, MeasureArgs args, Disk& disk) {
  const SnapshotChoice choice = co_await parse_snapshot(*args.snapshot);
  if (!disk.image) {
    co_await fail(
        Error(Errc::not_found,
              "Failed to load snapshot: Block format 'raw' used by device '' does not support "
              "temporarily loading internal snapshots"));
  }
  Result<std::string> word = choice.find(disk.image->snapshots());
  if (!word) {
    co_await fail(Error(Errc::not_found, cat("Failed to load snapshot: ", word.error().message())));
  }
  Child old = std::move(disk.device);
  co_await old.close();
  Result<Disk> opened =
      co_await open_named(session, opener, args.images[0], args, {.snapshot = *word}).result();
  if (!opened) {
    const std::string why = opened.error().message();
    co_await fail(Error(opened.error().code(), cat("Failed to load snapshot: ", why)));
  }
  disk = *std::move(opened);
}

struct Measured {
  FileSizes sizes;
  bool is_exact = false;  ///< `required` is the file that convert makes.
};

Task<Measured> measure_target(Session& session, FileOpener& opener, MeasureArgs args,
                              MeasureTarget target, const Disk* source, bool bitmaps) {
  ProgressLine line(session, args.progress, ProgressLine::Unit::bytes);
  Progress progress;
  progress.on_change([&](const Progress& now) { line.update(now.done(), now.total()); });
  Measured measured;
  if (session.compatibility_name() || args.bound) {
    measured.sizes = co_await bound_of(target, source, progress);
    co_return measured;
  }
  measured.sizes.fully_allocated = co_await full_size(target);
  const std::optional<ExactSize> exact = co_await exact_size(
      target, source, opener, session.reactor(),
      {.read_data = args.read_data, .compressed = args.compress, .bitmaps = bitmaps}, progress);
  if (exact) {
    measured.sizes.required = exact->file;
    if (bitmaps) measured.sizes.bitmaps = exact->bitmaps;
  } else {
    measured.sizes = co_await bound_of(target, source, progress);
  }
  const bool knows_data = args.read_data || !source || target.format == DiskFormat::raw;
  measured.is_exact = exact && knows_data;
  co_return measured;
}

/// `source` is left open.
Task<Measured> measure_disk(Session& session, FileOpener& opener, MeasureArgs args, NewDisk disk,
                            const WrongValues& wrong, std::optional<Disk>& source) {
  if (!args.images.empty()) {
    source = co_await open_named(session, opener, args.images[0], args, {});
  }
  disk.size = round_up(source ? source->size() : *args.size, kSectorSize);
  MeasureTarget target{.format = disk.format, .image = create_options(disk)};
  // Told after what is wrong with the snapshot; nothing is counted in clusters of no size.
  Result<void> kind;
  if (disk.format == DiskFormat::qcow2) kind = check_kind(session, disk, wrong);
  std::optional<uint64_t> bitmaps;
  if (source && kind) bitmaps = bitmaps_size(target, *source);
  if (args.snapshot) {
    co_await open_snapshot(session, opener, args, *source);
    target.image.size = source->size();
  }
  co_await std::move(kind);
  // A snapshot has no bitmaps: they are those of the disk as it is now.
  const bool exact_bitmaps = bitmaps && !args.snapshot;
  Measured measured = co_await measure_target(session, opener, std::move(args), target,
                                              source ? &*source : nullptr, exact_bitmaps);
  if (!measured.sizes.bitmaps) measured.sizes.bitmaps = bitmaps;
  co_return measured;
}

/// What qemu-img finds wrong with the source before it looks at the options of the target.
Task<void> look_at_source(Session& session, FileOpener& opener, MeasureArgs args) {
  Disk source = co_await open_named(session, opener, args.images[0], args, {});
  Result<void> done;
  if (args.snapshot) done = co_await open_snapshot(session, opener, args, source).result();
  if (source.device) co_await source.device.close();
  co_await std::move(done);
}

void show(Session& session, const MeasureArgs& args, const Measured& measured) {
  const FileSizes& sizes = measured.sizes;
  if (args.output == OutputFormat::json) {
    Json json = Json::object();
    if (sizes.bitmaps) json["bitmaps"] = *sizes.bitmaps;
    json["required"] = sizes.required;
    json["fully-allocated"] = sizes.fully_allocated;
    if (!session.compatibility_name()) json["exact"] = measured.is_exact;
    session.print(to_json(json));
    return;
  }
  session.print(cat("required size: ", sizes.required, "\n"));
  session.print(cat("fully allocated size: ", sizes.fully_allocated, "\n"));
  if (sizes.bitmaps) session.print(cat("bitmaps size: ", *sizes.bitmaps, "\n"));
}

Task<int> measure(Session& session, MeasureArgs args) {
  co_await check_words(session, args);
  const DiskFormat format = co_await target_format(args);
  if (args.options.help && !session.compatibility_name()) {
    session.print(option_help_without_file(format));
    co_return 0;
  }
  SystemGate opener(session.reactor(), session.policy(args.follow));
  WrongValues wrong;
  Result<NewDisk> disk = read_options(session, format, args.options, wrong);
  if (!disk) {
    const bool is_compat = session.compatibility_name();
    if (is_compat && !args.images.empty()) co_await look_at_source(session, opener, args);
    const int code = session.report(disk.error());
    const bool is_option = disk.error().code() != Errc::unsupported || format != DiskFormat::qcow;
    if (is_compat && is_option)
      session.error(cat("Invalid options for file format '", name_of(format), "'"));
    co_return code;
  }
  std::optional<Disk> source;
  Result<Measured> measured =
      co_await measure_disk(session, opener, args, *std::move(disk), wrong, source).result();
  if (source && source->device) {
    Result<void> closed = co_await source->device.close().result();
    if (measured) co_await std::move(closed);
  }
  if (!measured) co_return std::move(measured).error();
  show(session, args, *measured);
  co_return 0;
}

Argument optional_image() {
  Argument argument = operands("IMAGE", &MeasureArgs::images, "the disk to be converted");
  argument.optional = true;
  return argument;
}

const Command<MeasureArgs> kDefinition({
    .name = "measure",
    .summary = "Tell how large a file a conversion will make",
    .description =
        "\"Required\" is for what the disk holds, \"fully allocated\" for a disk that is full. "
        "Under the name byre the first is the size of the file that convert makes, if no data are "
        "zeros; with --read-data that is looked at. Under the name qemu-img it is a bound that "
        "convert does not exceed. \"Bitmaps\" is what convert --bitmaps adds.",
    .args = {optional_image(),
             size_option("--size", "SIZE", &MeasureArgs::size, "image size",
                         "instead of an image: an empty disk of so many bytes"),
             option("-f, --format", "FORMAT",
                    static_cast<std::optional<std::string> MeasureArgs::*>(&OpenArgs::format),
                    "of the image: raw or qcow2; without it the file's first bytes decide"),
             option("-O, --target-format", "FORMAT", &MeasureArgs::target_format,
                    "what it is converted to: raw (the default) or qcow2"),
             option("-o, --options", "OPTIONS", &MeasureArgs::options,
                    "options of that format, as for create and convert"),
             looked_at(option("-l, --snapshot", "SNAPSHOT", &MeasureArgs::snapshot,
                              "of this internal snapshot of the image: an id, a name, "
                              "snapshot.id=ID, snapshot.name=NAME, or the last two with a comma"),
                       look_at_snapshot),
             option("--output", "FORMAT", &MeasureArgs::output, "human (the default) or json"),
             flag("--read-data", &MeasureArgs::read_data,
                  "look for zeros in the data, as convert does: the size is exact (byre only)"),
             flag("-c, --compress", &MeasureArgs::compress,
                  "with --read-data: for convert -c (byre only)"),
             flag("--bound", &MeasureArgs::bound,
                  "the bound that qemu-img gives, from the map alone (byre only)"),
             flag("-p, --progress", &MeasureArgs::progress, "show how far it is (byre only)"),
             share_argument<MeasureArgs>(), follow_arguments<MeasureArgs>()},
    .run = measure,
});

}  // namespace

const AnyCommand& kMeasure = kDefinition;

}  // namespace byre
