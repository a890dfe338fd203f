// SPDX-License-Identifier: Apache-2.0
/// `byre bitmap`: adds, removes, clears, enables, disables and merges the persistent bitmaps of an
/// image, in the order of the options.
#include <fmt/core.h>

#include "cli/commands.h"
#include "cli/json.h"
#include "cli/options.h"
#include "cli/text.h"

namespace byre {

namespace {

struct Action {
  enum class Kind : uint8_t { add, remove, clear, enable, disable, merge } kind;
  std::string source;  ///< Of a merge.
};

struct BitmapArgs : OpenArgs {
  std::vector<std::string> words;  ///< Image and bitmap.
  std::vector<Action> actions;
  std::optional<uint64_t> granularity;
  std::optional<std::string> source_file;
  std::optional<std::string> source_format;
  bool list = false;
};

std::string_view verb_of(Action::Kind kind) {
  switch (kind) {
    case Action::Kind::add:
      return "add";
    case Action::Kind::remove:
      return "remove";
    case Action::Kind::clear:
      return "clear";
    case Action::Kind::enable:
      return "enable";
    case Action::Kind::disable:
      return "disable";
    case Action::Kind::merge:
      return "merge";
  }
  return "";
}

/// Does the list of `image` have it, fit for use?  In qemu-img's words where not.
Result<void> look_up(const Image& image, const std::string& name) {
  for (const auto& slot : image.bitmaps()) {
    if (slot->entry.name != name) continue;
    if (slot->state == BitmapState::usable) return {};
    if (slot->state == BitmapState::foreign) return unsupported(slot->reason);
    return Error(Errc::invalid, cat("Bitmap '", name, "' is inconsistent and cannot be used\n",
                                    "Try --remove to delete this bitmap from disk"));
  }
  return Error(Errc::not_found, cat("Dirty bitmap '", name, "' not found"), ENOENT);
}

Task<void> merge(Image& image, std::string name, std::string source, Image* from) {
  co_await look_up(image, name);
  co_await look_up(from ? *from : image, source);
  const std::unique_ptr<DirtyBits> bits = co_await (from ? from : &image)->read_bitmap(source);
  co_await image.merge_into_bitmap(name, *bits);
}

Task<void> perform(Image& image, Action action, const BitmapArgs& args, Image* source) {
  const std::string& name = args.words[1];
  switch (action.kind) {
    case Action::Kind::add:
      co_await image.add_bitmap({.name = name, .granularity = args.granularity.value_or(0)});
      break;
    case Action::Kind::remove:
      co_await image.remove_bitmap(name);
      break;
    case Action::Kind::clear:
      co_await look_up(image, name);
      co_await image.clear_bitmap(name);
      break;
    case Action::Kind::enable:
    case Action::Kind::disable:
      co_await look_up(image, name);
      co_await image.enable_bitmap(name, action.kind == Action::Kind::enable);
      break;
    case Action::Kind::merge:
      co_await merge(image, name, action.source, source);
      break;
  }
}

Result<void> check(BitmapArgs& args) {
  if (args.granularity == uint64_t{0}) args.granularity.reset();  // As if it was not given.
  bool adds = false;
  bool merges = false;
  for (const Action& action : args.actions) {
    adds |= action.kind == Action::Kind::add;
    merges |= action.kind == Action::Kind::merge;
  }
  if (args.list && !args.actions.empty()) return invalid("--list goes with no action");
  if (args.list && args.words.size() != 1) return invalid("Expecting one image file name");
  if (args.actions.empty() && !args.list) {
    return invalid(
        "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge");
  }
  if (args.granularity && !adds) return invalid("granularity only supported with --add");
  if (args.source_format && !args.source_file) return invalid("-F only supported with -b");
  if (args.source_file && !merges) {
    return invalid("Merge bitmap source file only supported with --merge");
  }
  if (!args.list && args.words.size() != 2) {
    return invalid("Expecting filename and bitmap name");
  }
  return {};
}

/// The image is open for writing already, and would be in the way.
Result<void> check_source(const BitmapArgs& args) {
  const Result<std::string> image = file_of(args.words[0], args);
  const Result<std::string> source = file_of(*args.source_file, {});
  if (!image || !source || !same_file(*image, *source)) return {};
  return could_not_open(*args.source_file,
                        invalid("source and target are the same file; without -b, --merge takes "
                                "a bitmap of that"));
}

std::string_view state_of(const BitmapSlot& slot) {
  switch (slot.state) {
    case BitmapState::usable:
      return slot.entry.automatic ? "recording" : "disabled";
    case BitmapState::inconsistent:
      return "inconsistent";
    case BitmapState::foreign:
      break;
  }
  return "unknown to byre";
}

Json json_of(const BitmapSlot& slot) {
  Json flags = Json::array();
  if (slot.entry.in_use) flags.push_back("in-use");
  if (slot.entry.automatic) flags.push_back("auto");
  Json json = {{"name", slot.entry.name},
               {"granularity", slot.entry.granularity()},
               {"flags", flags},
               {"usable", slot.state == BitmapState::usable}};
  if (slot.state != BitmapState::usable) json["reason"] = slot.reason;
  return json;
}

Json json_of(const std::string& file, const BitmapList& list) {
  Json bitmaps = Json::array();
  for (const auto& slot : list) bitmaps.push_back(json_of(*slot));
  return {{"filename", file}, {"bitmaps", std::move(bitmaps)}};
}

std::string table_of(const BitmapList& list) {
  std::string out;
  for (const auto& slot : list) {
    out += fmt::format("{:<14} {:>10}  {}\n", state_of(*slot), size_text(slot->entry.granularity()),
                       printable(slot->entry.name));
  }
  if (out.empty()) return out;
  return fmt::format("{:<14} {:>10}  {}\n", "STATE", "BIT", "NAME") + out;
}

Task<int> list(Session& session, BitmapArgs args) {
  SystemGate opener(session.reactor(), session.policy(args.follow));
  const std::string& file = args.words[0];
  args.has_share = false;
  Disk disk = co_await open_named(session, opener, file, args, {.without_backing = true});
  BitmapList none;
  const BitmapList& bitmaps = disk.image ? disk.image->bitmaps() : none;
  session.print(session.json() ? to_json(json_of(file, bitmaps)) : table_of(bitmaps));
  co_await disk.device.close();
  co_return 0;
}

Task<int> bitmap(Session& session, BitmapArgs args) {
  if (args.actions.empty() && args.words.size() == 1 && !session.compatibility_name())
    args.list = true;
  co_await check(args);
  if (args.list) co_return co_await list(session, std::move(args));
  if (args.source_file) co_await check_source(args);
  SystemGate opener(session.reactor(), session.policy(args.follow));
  const std::string& file = args.words[0];
  // No guest data is read here, so what lies below may be in use.
  const ImageOptions options{.writable = true, .without_backing = true};
  Disk disk = co_await open_named(session, opener, file, args, options);
  if (disk.guessed && disk.format == DiskFormat::raw) warn_of_guess(session, file);
  const Session::Interruptible guard(
      session, {.about = byre::quoted(file),
                .stop = [] {},
                .waiting_for = [&] { return cat("the bitmaps of ", byre::quoted(file)); }});
  std::optional<Disk> source;
  Result<void> done;
  if (args.source_file) {
    const OpenArgs source_args{
        .format = args.source_format, .follow = args.follow, .has_share = false};
    Result<Disk> opened = co_await open_named(session, opener, *args.source_file, source_args,
                                              {.without_backing = true})
                              .result();
    if (opened) {
      source = *std::move(opened);
    } else {
      done = std::move(opened).error();
    }
  }
  for (const Action& action : args.actions) {
    if (!done) break;
    if (!disk.image) {
      done = unsupported("Can't store persistent bitmaps to ", byre::quoted(file),
                         ": Operation not supported");
    } else if (source && !source->image && action.kind == Action::Kind::merge) {
      done = Error(Errc::not_found, cat("Dirty bitmap '", action.source, "' not found"));
    } else {
      done = co_await perform(*disk.image, action, args, source ? source->image : nullptr).result();
    }
    if (!done) {
      done = Error(done.error().code(),
                   cat("Operation ", verb_of(action.kind), " on bitmap ", printable(args.words[1]),
                       " failed: ", done.error().message()),
                   done.error().sys_errno(), done.error().where());
    }
  }
  Json result;
  if (done && disk.image) result = json_of(file, disk.image->bitmaps());
  Result<void> closed = co_await disk.device.close().result();
  if (source) (void)co_await source->device.close().result();
  co_await std::move(done);
  co_await std::move(closed);
  if (session.json()) session.print(to_json(result));
  co_return 0;
}

Argument action(std::string_view names, Action::Kind kind, std::string_view help) {
  Argument argument = detail::named(Argument::Kind::flag, names, "", help);
  argument.store = [kind](void* args, std::string_view) -> Result<void> {
    static_cast<BitmapArgs*>(args)->actions.push_back({kind, {}});
    return {};
  };
  return argument;
}

Argument merge_action() {
  Argument argument = detail::named(Argument::Kind::option, "--merge", "SOURCE",
                                    "what is dirty in the bitmap SOURCE becomes dirty in BITMAP");
  argument.store = [](void* args, std::string_view value) -> Result<void> {
    static_cast<BitmapArgs*>(args)->actions.push_back({Action::Kind::merge, std::string(value)});
    return {};
  };
  return argument;
}

/// What is missing is said after the actions have been looked at, as qemu-img does.
Argument image_and_bitmap() {
  Argument argument =
      operands("IMAGE BITMAP", &BitmapArgs::words, "the image file, and the bitmap's name");
  argument.optional = true;
  return argument;
}

const Command<BitmapArgs> kDefinition({
    .name = "bitmap",
    .summary = "List and change the persistent bitmaps of an image",
    .description =
        "A bitmap records which parts of the disk were written since it was added or cleared: what "
        "an incremental backup has to copy. Several actions are performed in the order given. Each "
        "is durable, and killed at any moment leaves the bitmaps as they were or as they should "
        "be. "
        "Bitmaps stay valid, if coarser, when byre is killed or the power fails while they record.",
    .args = {image_and_bitmap(),
             own(flag("--list", &BitmapArgs::list,
                      "show them all (the default when only IMAGE is given)")),
             action("--add", Action::Kind::add, "make it, clean and recording"),
             action("--remove", Action::Kind::remove, "delete it"),
             action("--clear", Action::Kind::clear, "make it clean"),
             action("--enable", Action::Kind::enable, "let it record what is written from now on"),
             action("--disable", Action::Kind::disable, "keep it as it is"), merge_action(),
             size_option("-g, --granularity", "SIZE", &BitmapArgs::granularity, "granularity",
                         "with --add: bytes that one bit stands for, a power of two from 512 to "
                         "2G; the cluster size by default, but 4k to 64k"),
             option("-b, --source-file", "FILE", &BitmapArgs::source_file,
                    "with --merge: the image that has SOURCE"),
             option("-F, --source-format", "FORMAT", &BitmapArgs::source_format, "of that image"),
             format_argument<BitmapArgs>(), scan_arguments<BitmapArgs>(),
             follow_arguments<BitmapArgs>()},
    .run = bitmap,
});

}  // namespace

const AnyCommand& kBitmap = kDefinition;

}  // namespace byre
