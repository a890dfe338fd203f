// SPDX-License-Identifier: Apache-2.0
/// `byre amend`: changes what an image is; its contents stay.
#include <array>

#include "cli/commands.h"
#include "cli/json.h"
#include "cli/new_disk.h"
#include "cli/options.h"
#include "cli/progress_line.h"

namespace byre {

namespace {

struct AmendArgs : OpenArgs {
  std::vector<std::string> images;  ///< One.
  OptionList options;
  std::string cache = "writeback";
  bool progress = false;
  bool force = false;
  bool quiet = false;
};

constexpr std::array<std::string_view, 5> kOnlyForCreation = {
    "cluster_size", "compression_type", "extended_l2", "preallocation", "encryption"};

Result<std::optional<bool>> take_flag(OptionList& options, std::string_view name) {
  const auto text = options.take(name);
  if (!text) return std::optional<bool>();
  BYRE_TRY(flag, parse_bool_parameter(*text, name));
  return std::optional(flag);
}

/// The options, in qemu-img's words where they are wrong.
Result<AmendOptions> read_options(OptionList options) {
  AmendOptions amend;
  for (const auto& [name, value] : options.pairs) {
    const bool for_creation =
        std::find(kOnlyForCreation.begin(), kOnlyForCreation.end(), name) != kOnlyForCreation.end();
    if (for_creation || name.starts_with("encrypt.")) {
      const bool for_making = check_creation_options(DiskFormat::qcow2, options).has_value();
      return invalid("Invalid parameter '", name, "'",
                     for_making ? "\nThis option is only supported for image creation" : "");
    }
    // The first of them that is wrong is told.
    OptionList one;
    one.pairs.emplace_back(name, value);
    if (Result<void> right = check_creation_options(DiskFormat::qcow2, one); !right)
      return std::move(right).error();
  }
  if (const auto text = options.take("compat")) {
    if (*text == "0.10" || *text == "v2") {
      amend.version = 2;
    } else if (*text == "1.1" || *text == "v3") {
      amend.version = 3;
    } else {
      return invalid("Unknown compatibility level ", *text);
    }
  }
  if (const auto text = options.take("refcount_bits")) {
    const Result<uint64_t> bits = parse_number(*text, 0, 1024);
    if (!bits) return invalid("Parameter 'refcount_bits' expects a number");
    amend.refcount_bits = static_cast<uint32_t>(*bits);
  }
  if (const auto text = options.take("size")) {
    BYRE_TRY(size, parse_size_parameter(*text, "size"));
    amend.size = size;
  }
  amend.backing_file = options.take("backing_file");
  amend.backing_format = options.take("backing_fmt");
  amend.data_file = options.take("data_file");
  BYRE_TRY(lazy, take_flag(options, "lazy_refcounts"));
  amend.lazy_refcounts = lazy;
  BYRE_TRY(raw, take_flag(options, "data_file_raw"));
  amend.data_file_raw = raw;
  if (!options.pairs.empty()) return invalid("Invalid parameter '", options.pairs[0].first, "'");
  return amend;
}

/// qemu-img changes neither the backing file nor its format; both may be given as they are.
Result<void> check_as_qemu(const Image& image, const AmendOptions& wanted) {
  const ImageHeader& head = image.head();
  if (wanted.data_file && !head.geometry.data_file) {
    return invalid("data-file can only be set for images that use an external data file");
  }
  if (wanted.data_file_raw == true && (head.header.autoclear & kRawDataFile) == 0) {
    return invalid("data-file-raw cannot be set on existing images");
  }
  if (!wanted.backing_file && !wanted.backing_format) return {};
  const bool same = wanted.backing_file && wanted.backing_format &&
                    head.backing_file == wanted.backing_file &&
                    head.extensions.backing_format == wanted.backing_format;
  if (same) return {};
  return invalid("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.");
}

/// What changes or loses contents needs --force.
Result<void> check_force(const Image& image, const AmendOptions& wanted, bool force) {
  if (force) return {};
  const ImageHeader& head = image.head();
  const std::string backing = head.backing_file.value_or("");
  const std::string format = head.extensions.backing_format.value_or("");
  // An empty word takes away what there is, or is a slip where there is nothing.
  const auto changes = [](const std::optional<std::string>& to, const std::string& from) {
    return to && (to->empty() || *to != from);
  };
  const bool renames = changes(wanted.backing_file, backing);
  // A format that the image lacks changes nothing.
  const bool lacks_format = format.empty() && !backing.empty() && wanted.backing_format != "";
  const bool reformats = changes(wanted.backing_format, format) && !lacks_format;
  if (renames || reformats) {
    return invalid(
        "Cannot amend the backing file; with --force its name and format are changed, and what the "
        "disk reads from it is not looked at");
  }
  if (wanted.size && *wanted.size < image.size()) {
    return invalid(
        "The new size is smaller, and all data behind it would be lost; --force allows it");
  }
  return {};
}

/// What would read a qcow2 image as raw needs --force; nobody opens the file for anything else.
Task<void> check_raw_backing(Session& session, FileOpener& opener, const AmendArgs& args,
                             const ImageHeader& head, const AmendOptions& wanted) {
  if (wanted.backing_format != "raw" || session.compatibility_name()) co_return;
  constexpr FileOptions kLook{.lock = false};
  const bool is_new = wanted.backing_file.has_value();
  const std::string named = is_new ? *wanted.backing_file : head.backing_file.value_or("");
  const Result<std::string> path = plain_name(named);
  const Result<std::string> image = file_of(args.images[0], args);
  if (!path || path->empty() || !image) co_return;
  Result<std::unique_ptr<File>> file = is_new ? opener.open(resolve_name(*image, *path), kLook)
                                              : opener.open_named_by_image(*image, *path, kLook);
  co_await check_backing_is_raw(session, *path, std::move(file), args.force,
                                "-o backing_fmt=qcow2");
}

Task<void> apply(Session& session, FileOpener& opener, AmendArgs args, AmendOptions wanted,
                 std::optional<ProgressLine>& progress) {
  const CacheMode cache = co_await cache_mode(args.cache, "cache");
  ImageOptions options{.writable = true, .direct = is_direct(cache)};
  options.refuse_damaged = true;
  // Only what reads from it needs the backing file, and the new name may be what makes it whole.
  options.without_backing = !wanted.size && wanted.version != 2;
  if (wanted.data_file && !wanted.data_file->empty()) {
    const std::string path = co_await path_of(*wanted.data_file);
    const Result<std::string> image = file_of(args.images[0], args);
    if (!image) co_await fail(could_not_open(args.images[0], image.error().copy()));
    options.data_file = resolve_name(*image, path);
  }
  Disk disk = co_await open_named(session, opener, args.images[0], args, options);
  if (disk.guessed && disk.format == DiskFormat::raw) warn_of_guess(session, args.images[0]);
  Result<void> done;
  if (!disk.image) {
    done = unsupported("Format driver 'raw' does not support option amendment");
  } else {
    progress.emplace(session, args.progress && !args.quiet);
    done = session.compatibility_name() ? check_as_qemu(*disk.image, wanted)
                                        : check_force(*disk.image, wanted, args.force);
    if (done) {
      done = co_await check_raw_backing(session, opener, args, disk.image->head(), wanted).result();
    }
  }
  if (done) {
    Progress work;
    progress->follow(work);
    wanted.progress = &work;
    const Session::Interruptible guard(
        session, {.about = quoted(args.images[0]),
                  .stop = [] {},
                  .waiting_for = [&] { return cat("changes of ", quoted(args.images[0])); }});
    done = co_await disk.image->amend(std::move(wanted)).result();
  }
  Result<void> closed = co_await disk.device.close().result();
  co_await std::move(done);
  co_await std::move(closed);
}

/// What is wrong with the options is told when it is known that there is an image.
Task<AmendOptions> read_options_of(Session& session, FileOpener& opener, AmendArgs args) {
  Result<AmendOptions> wanted = read_options(args.options);
  if (wanted) co_return *std::move(wanted);
  const std::string& name = args.images[0];
  ImageOptions options{.writable = true, .without_backing = true};
  options.refuse_damaged = true;
  Disk disk = co_await open_named(session, opener, name, args, options);
  if (disk.guessed && disk.format == DiskFormat::raw) warn_of_guess(session, name);
  const bool is_image = disk.image != nullptr;
  co_await disk.device.close();
  if (!is_image) co_return unsupported("Format driver 'raw' does not support option amendment");
  co_return std::move(wanted).error();
}

Task<void> amend_image(Session& session, AmendArgs args, std::optional<ProgressLine>& progress) {
  if (args.images.size() != 1) co_await fail(invalid("Expecting one image file name"));
  co_await cache_mode(args.cache, "cache");
  SystemGate opener(session.reactor(), session.policy(args.follow));
  AmendOptions wanted = co_await read_options_of(session, opener, args);
  const std::string image = args.images[0];
  const std::string below = wanted.backing_file.value_or("");
  co_await apply(session, opener, std::move(args), std::move(wanted), progress);
  warn_of_policy(session, image, below);
}

Task<int> amend(Session& session, AmendArgs args) {
  const auto usage = [&](std::string text) {
    const Parsed parsed{
        .outcome = Parsed::Outcome::failed, .error = std::move(text), .usage = true};
    return finish_parse(session, kAmend, parsed);
  };
  if (args.options.empty()) co_return usage("Must specify options (-o)");
  if (args.options.help && args.format) {
    const Result<DiskFormat> format = parse_format(*args.format);
    if (!format) co_return invalid("Unknown file format '", *args.format, "'");
    if (*format == DiskFormat::raw) {
      co_return unsupported("Format driver 'raw' does not support option amendment");
    }
    session.print(amend_option_help());
    co_return 0;
  }
  if (args.options.help) {
    if (args.images.size() != 1) co_return invalid("Expecting one image file name");
    SystemGate opener(session.reactor(), session.policy(args.follow));
    Disk disk =
        co_await open_named(session, opener, args.images[0], args, {.without_backing = true});
    const bool is_image = disk.image != nullptr;
    co_await disk.device.close();
    if (!is_image) co_return unsupported("Format driver 'raw' does not support option amendment");
    session.print(amend_option_help());
    co_return 0;
  }
  const bool shows = args.progress && !args.quiet && session.compatibility_name();
  const std::string image = args.images.empty() ? "" : args.images[0];
  std::optional<ProgressLine> progress;
  Result<void> done = co_await amend_image(session, std::move(args), progress).result();
  if (!done && !progress && shows) session.print("\n");  // The end of a line that never began.
  co_await std::move(done);
  if (session.json()) session.print(to_json({{"filename", image}}));
  co_return 0;
}

/// How many there are is told after what is wrong with the options, as qemu-img does.
Argument images() {
  Argument argument = operands("IMAGE", &AmendArgs::images, "the image file");
  argument.optional = true;
  return argument;
}

const Command<AmendArgs> kDefinition({
    .name = "amend",
    .summary = "Change the format options of an image",
    .description =
        "The contents of the disk and of its snapshots stay. Interrupted at any moment, the image "
        "is "
        "what it was, or what it will be, or something between that holds the same; at worst some "
        "space is lost, which check -r leaks gives back.",
    .args =
        {images(),
         option("-o, --options", "OPTIONS", &AmendArgs::options,
                "what to change, as name=value,name=value; \"help\" lists them"),
         format_argument<AmendArgs>(),
         option("-t, --cache", "MODE", &AmendArgs::cache,
                "writeback (the default), none, writethrough, directsync or unsafe; what is "
                "changed is durable in any"),
         flag("-p, --progress", &AmendArgs::progress, "show progress"),
         flag(
             "--force", &AmendArgs::force,
             "allow another backing file (only its name is changed), one that begins like an image "
             "as raw, and a smaller size"),
         flag("-q, --quiet", &AmendArgs::quiet, "print nothing but errors"),
         scan_arguments<AmendArgs>(), follow_arguments<AmendArgs>()},
    .run = amend,
});

}  // namespace

const AnyCommand& kAmend = kDefinition;

}  // namespace byre
