// SPDX-License-Identifier: Apache-2.0
/// `byre create`: a new, empty disk.
#include <cstring>

#include "cli/commands.h"
#include "cli/json.h"
#include "cli/new_disk.h"
#include "cli/options.h"
#include "job/chain.h"
#include "job/open_tree.h"

namespace byre {

namespace {

struct CreateArgs {
  std::string image;
  bool named = false;  ///< There is a name for it, if an empty one.
  std::optional<std::string> size;
  std::optional<std::string> format;
  OptionList options;
  std::optional<std::string> backing;
  std::optional<std::string> backing_format;
  std::optional<OpenPolicy> follow;
  bool unsafe = false;
  bool force = false;
  bool quiet = false;
  std::shared_ptr<Objects> objects;
};

/// The size that the new disk takes from its backing disk, which may be in use: only headers are
/// read.  Those of the whole chain: one that cannot be opened is no use below a new disk.
Task<uint64_t> backing_size(Session& session, FileOpener& opener, std::string name,
                            std::string format) {
  const Result<DiskFormat> known = parse_format(format);
  if (!known) co_return invalid(known.error().message(), "\nCould not open backing image.");
  Result<std::vector<ChainFile>> chain =
      co_await read_chain(opener, name, *known, session.chain_max()).result();
  if (!chain) {
    Error error = could_not_open(name, std::move(chain).error());
    // Here qemu-img names the file once.
    std::string text = error.message();
    const std::string twice = cat("Could not open '", name, "': ");
    if (text.starts_with(twice + twice)) text.erase(0, twice.size());
    // And not at all where it is no such image.
    constexpr std::string_view kNoImage = "Image is not in qcow2 format";
    if (text == cat(twice, kNoImage)) text = kNoImage;
    co_return Error(error.code(), cat(text, "\nCould not open backing image."), error.sys_errno());
  }
  co_return chain->front().size;
}

/// The same of a backing disk that is no file: devices, or another server's disk.
Task<uint64_t> backing_devices_size(Session& session, FileOpener& opener, std::string image,
                                    std::string name, std::string format) {
  Result<Disk> disk =
      co_await open_tree_of_image(opener, image, name, format, {.lock = false}, &session.reactor())
          .result();
  if (!disk) {
    Error error = could_not_open(name, std::move(disk).error());
    co_return Error(error.code(), cat(error.message(), "\nCould not open backing image."),
                    error.sys_errno());
  }
  const uint64_t size = disk->size();
  co_await disk->device.close();
  co_return size;
}

/// Fails for a backing file without a format: qemu-img tells what it looks like.
Task<void> refuse_without_format(Session& session, CreateArgs args, std::string backing) {
  const std::string why = "Backing file specified without backing format";
  if (args.unsafe || !session.compatibility_name()) co_await fail(invalid(why));
  SystemGate opener(session.reactor(), session.policy(args.follow));
  const std::string path = co_await path_of(backing);
  const std::string name = resolve_name(args.image, path);
  Result<std::unique_ptr<File>> file = opener.open(name, {.lock = false});
  if (!file) {
    const std::string cause = std::strerror(file.error().sys_errno());
    co_await fail(Error(file.error().code(), cat("Could not open '", name, "': ", cause,
                                                 "\nCould not open backing image.")));
  }
  const Result<DiskFormat> format = co_await find_format(**file, std::nullopt).result();
  co_await fail(invalid(why, format ? cat("\nDetected format of ", name_of(*format), ".") : ""));
}

Task<void> make(Session& session, CreateArgs args, DiskFormat format) {
  if (!args.image.empty()) co_await path_of(args.image);
  NewDisk disk = co_await read_new_disk(format, args.options);
  if (args.size) {
    if (disk.size) co_await fail(invalid("The image size must be specified only once"));
    disk.size = *parse_size(*args.size);
  }
  if (args.backing) disk.backing_file = *args.backing;
  if (args.backing_format) disk.backing_format = *args.backing_format;
  co_await check_backing(disk);
  const bool backed = disk.backing_file.has_value();
  if (backed && args.image.empty()) {
    co_await fail(invalid("Cannot use relative backing file names for ''"));
  }
  if (backed && disk.backing_file == args.image) {
    co_await fail(
        invalid("Error: Trying to create an image with the same filename as the backing file"));
  }
  if (backed && !disk.backing_format) {
    co_await refuse_without_format(session, args, *disk.backing_file);
  }
  const bool opens_backing = backed && !args.unsafe;
  if (disk.backing_format && !opens_backing && !parse_format(*disk.backing_format)) {
    co_await fail(
        invalid("Parameter 'backing-fmt' does not accept value '", *disk.backing_format, "'"));
  }

  SystemGate opener(session.reactor(), session.policy(args.follow));
  // qemu-img -u does not look at the file.
  if (disk.backing_format == "raw" && (opens_backing || !session.compatibility_name())) {
    const Result<std::string> path = path_of(*disk.backing_file);
    const std::string name = path ? resolve_name(args.image, *path) : *disk.backing_file;
    if (path) co_await check_backing_is_raw(session, opener, name, args.force);
  }
  if (opens_backing && names_a_tree(*disk.backing_file)) {
    const uint64_t size = co_await backing_devices_size(session, opener, args.image,
                                                        *disk.backing_file, *disk.backing_format);
    if (!disk.size) disk.size = size;
  } else if (opens_backing) {
    const std::string path = co_await path_of(*disk.backing_file);
    const uint64_t size = co_await backing_size(session, opener, resolve_name(args.image, path),
                                                *disk.backing_format);
    if (!disk.size) disk.size = size;
  }
  if (!disk.size) co_await fail(invalid("Image creation needs a size parameter"));
  const bool replace = args.force || session.compatibility_name();
  // Nothing is announced that is not going to happen.
  if (!replace) co_await refuse_existing(args.image);
  if (!session.compatibility_name()) co_await check_new_disk(disk);
  if (!args.quiet) session.say(formatting_line(args.image, disk));
  const Json result = {{"filename", args.image},
                       {"format", name_of(format)},
                       {"virtual-size", round_up(*disk.size, kSectorSize)}};
  Progress progress;
  const Session::Interruptible guard(
      session,
      {.about = byre::quoted(args.image),
       .stop = [&] { progress.stop(); },
       .waiting_for = [&] { return cat("what was begun in ", byre::quoted(args.image)); }});
  co_await make_disk(session, opener, args.image, std::move(disk),
                     {.replace = replace, .progress = &progress});
  if (session.json()) session.print(to_json(result));
}

Task<int> create(Session& session, CreateArgs args) {
  if (!args.named && !args.options.help) {
    const Parsed failed{
        .outcome = Parsed::Outcome::failed, .error = "Expecting image file name", .usage = true};
    co_return finish_parse(session, kCreate, failed);
  }
  Result<DiskFormat> format = DiskFormat::raw;
  if (args.format) {
    format = parse_format(*args.format);
  } else if (args.named) {
    format = format_by_name(session, args.image, "-f");
    if (!format && !args.options.help) co_return std::move(format).error();
  }
  if (!format) {
    Error error(Errc::not_found, cat("Unknown file format '", args.format.value_or(""), "'"));
    if (args.options.help) co_return std::move(error);
    co_return std::move(error).while_doing(args.image);
  }
  if (args.options.help) {
    (void)co_await read_new_disk(*format, {});  // Is it a format that can be made?
    if (args.named && !args.image.empty()) co_await path_of(args.image);
    session.print(!args.named ? option_help_without_file(*format) : option_help(*format));
    co_return 0;
  }
  const std::string name = args.image;
  co_await make(session, std::move(args), *format).doing(name);
  co_return 0;
}

Argument image_operand() {
  Argument argument = optional_operand("IMAGE", &CreateArgs::image, "the file to make");
  argument.store = [](void* args, std::string_view value) -> Result<void> {
    static_cast<CreateArgs*>(args)->image = value;
    static_cast<CreateArgs*>(args)->named = true;
    return {};
  };
  return argument;
}

/// What is wrong with it is told before there are too many words, which -o help does not mind.
Argument size_operand() {
  Argument argument =
      optional_operand("SIZE", &CreateArgs::size,
                       "of the disk: bytes, or a number with the suffix k, M, G, T, P or E; "
                       "without it, the backing disk's");
  argument.store = [](void* args, std::string_view value) -> Result<void> {
    CreateArgs& create = *static_cast<CreateArgs*>(args);
    if (create.options.help) return {};
    if (create.size) return invalid("Unexpected argument: ", value);
    create.size = value;
    if (Result<uint64_t> size = parse_size_option(value, "image size"); !size)
      return std::move(size).error();
    return {};
  };
  argument.misuse = true;
  return argument;
}

const Command<CreateArgs> kDefinition({
    .name = "create",
    .summary = "Make a new, empty disk",
    .description =
        "The disk and the folder it lies in are on stable storage when this returns. A disk that "
        "exists is not overwritten, unless with --force.",
    .args =
        {image_operand(), size_operand(),
         option("-f, --format", "FORMAT", &CreateArgs::format,
                "raw or qcow2; without it the suffix decides: .qcow2, .qcow; .raw, .img, .iso, "
                ".bin, .dd; a block device is raw (under the name qemu-img: raw)"),
         option("-o, --options", "OPTIONS", &CreateArgs::options,
                "options of the format, as name=value,name=value; \"help\" lists them"),
         option("-b, --backing", "FILE", &CreateArgs::backing,
                "read what was not written from this disk; a relative name starts at the folder "
                "of IMAGE"),
         option("-F, --backing-format", "FORMAT", &CreateArgs::backing_format,
                "of the backing disk; it is never guessed"),
         own(option("--follow", "POLICY", &CreateArgs::follow,
                    "which files the backing disk may name in turn: nothing, same-directory (the "
                    "default), or any (the default under QEMU's names)")),
         flag("-u, --backing-unsafe", &CreateArgs::unsafe,
              "do not open the backing disk; SIZE is needed then"),
         own(flag(
             "--force", &CreateArgs::force,
             "overwrite what is there (under the name qemu-img always); take a backing file as raw "
             "although it begins like an image")),
         flag("-q, --quiet", &CreateArgs::quiet, "print nothing but errors"),
         option("--object", "OBJECT", &CreateArgs::objects, kObjectHelp)},
    .run = create,
});

}  // namespace

const AnyCommand& kCreate = kDefinition;

}  // namespace byre
