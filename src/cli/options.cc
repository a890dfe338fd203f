// SPDX-License-Identifier: Apache-2.0
#include "cli/options.h"

#include <algorithm>
#include <cstring>

#include "block/raw.h"

namespace byre {

std::string_view advice_on_follow(const Error& error) {
  const std::string& text = error.message();
  const auto has = [&](std::string_view part) { return text.find(part) != std::string::npos; };
  // A opener says "image 'x' names 'y', which the policy P does not allow: why".
  if (error.code() == Errc::denied && has(", which the policy ") && !has("--follow")) {
    return "; --follow any (or BYRE_FOLLOW=any) opens it";
  }
  if (error.code() == Errc::unsupported && has("the backing chain is longer than ") &&
      !has("BYRE_CHAIN_MAX")) {
    return "; BYRE_CHAIN_MAX sets how many are allowed";
  }
  return "";
}

void warn_of_policy(Session& session, const std::string& path, std::string_view name) {
  const Result<std::string> plain = plain_name(name);
  if (!plain || name.empty()) return;
  const SystemGate opener(session.reactor(), session.policy(std::nullopt));
  const Result<void> allowed = opener.allows(path, *plain);
  if (allowed || allowed.error().code() != Errc::denied) return;
  session.warn(cat(allowed.error().message(), advice_on_follow(allowed.error())));
}

std::string_view advice_on_lock(const Error& error) {
  const bool by_writer =
      error.code() == Errc::busy &&
      (error.message().find(" is locked for writing by ") != std::string::npos ||
       error.message().find(" is kept from being read by ") != std::string::npos);
  return by_writer ? ", or use -U to read it anyway" : "";
}

Error could_not_open(std::string_view name, Error error, bool can_share) {
  std::string why = error.message();
  // The engine says what it opens, too: once is enough.
  for (bool again = true; again;) {
    again = false;
    for (const std::string& own : {cat("open ", quoted(name), ": "), cat(quoted(name), ": ")}) {
      if (!why.starts_with(own)) continue;
      why.erase(0, own.size());
      again = true;
    }
  }
  const std::string cause = std::strerror(error.sys_errno());
  if (why == cause) why = cat("Could not open '", name, "': ", why);
  // Of a file that devices are made of.
  if (why.starts_with("open '") && why.ends_with(cat("': ", cause)) &&
      std::ranges::count(why, '\'') == 2) {
    why.replace(0, 4, "Could not open");
  }
  why += advice_on_follow(error);
  if (can_share) why += advice_on_lock(error);
  return Error(error.code(), cat("Could not open '", name, "': ", why), error.sys_errno(),
               error.where());
}

Result<void> parse_value(std::string_view text, std::shared_ptr<Objects>& objects) {
  if (!objects) objects = std::make_shared<Objects>();
  return objects->add(text);
}

Result<DeviceTree> device_tree_of(const std::string& name, const OpenArgs& args) {
  if (!args.blockdevs.empty()) return parse_device_list(args.blockdevs, name);
  return args.image_opts ? parse_image_opts(name) : parse_device_name(name, args.format);
}

Result<std::string> file_of(const std::string& name, const OpenArgs& args) {
  if (!names_devices(name, args)) return path_of(name);
  BYRE_TRY(tree, device_tree_of(name, args));
  const std::string file = tree->plain_file();
  if (file.empty()) return invalid(quoted(name), " is no single file");
  return file;
}

Result<void> check_format_option(const OpenArgs& args) {
  if (!args.blockdevs.empty() && (args.image_opts || args.format)) {
    return invalid("--blockdev and ", args.format ? "--format" : "--image-opts",
                   " are mutually exclusive: the image is called by its node-name");
  }
  if (!args.image_opts || !args.format) return {};
  return invalid("--image-opts and --format are mutually exclusive");
}

static Task<Disk> open_devices(Session& session, FileOpener& opener, std::string name,
                               OpenArgs args, OpenDiskOptions options) {
  DeviceTree tree = co_await device_tree_of(name, args);
  co_return co_await open_tree(opener, std::move(tree),
                               {.image = std::move(options.image),
                                .growable = options.growable,
                                .reactor = &session.reactor(),
                                .objects = args.objects,
                                .over_file = std::move(options.over_file)});
}

Task<Disk> open_named(Session& session, FileOpener& opener, std::string name, OpenArgs args,
                      ImageOptions options, std::function<Child(Child)> over_file) {
  OpenDiskOptions open{.image = std::move(options), .over_file = std::move(over_file)};
  const bool is_tree = names_devices(name, args);
  open.image.share_lock = args.share;
  open.image.chain_depth_max = session.chain_max();
  open.image.message = [&session](const std::string& text) { session.warn(text); };
  if (args.free_leaks && args.trust_refcounts) {
    co_return invalid(
        "--free-leaks needs the count of all references that --trust-refcounts leaves out");
  }
  if (args.free_leaks && !open.image.writable) {
    co_return invalid("--free-leaks is for images that are written");
  }
  if (args.trust_refcounts) open.image.scan = ImageOptions::Scan::never;
  open.image.free_leaks = args.free_leaks;
  co_await check_format_option(args);
  if (args.format && !is_tree) {
    Result<DiskFormat> format = parse_format(*args.format);
    if (!format) co_return could_not_open(name, std::move(format).error());
    open.format = *format;
  }
  if (args.share && open.image.writable) {
    co_return could_not_open(name,
                             invalid("force-share=on can only be used with read-only images"));
  }
  const bool open_writable = open.image.writable;
  Result<Disk> disk =
      is_tree ? co_await open_devices(session, opener, name, args, std::move(open)).result()
              : co_await open_disk(opener, name, std::move(open)).result();
  if (!disk) {
    const bool can_share = args.has_share && !open_writable;
    co_return could_not_open(name, std::move(disk).error(), can_share);
  }
  co_return std::move(disk);
}

Task<Storage> open_storage_named(Session& session, FileOpener& opener, std::string name,
                                 OpenArgs args, FileOptions options) {
  co_await check_format_option(args);
  if (names_devices(name, args)) {
    DeviceTree tree = co_await device_tree_of(name, args);
    co_return co_await open_storage(opener, std::move(tree),
                                    {.image = {.writable = options.writable,
                                               .direct = options.direct,
                                               .lock = options.lock,
                                               .share_lock = options.share_lock},
                                     .reactor = &session.reactor(),
                                     .objects = args.objects});
  }
  const std::string path = co_await path_of(name);
  std::unique_ptr<File> file = co_await opener.open(path, options);
  const DiskFormat format = co_await format_of(*file, args.format);
  Storage storage{.format = format, .driver = std::string(name_of(format))};
  storage.device = std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = true});
  co_return std::move(storage);
}

Task<DiskFormat> format_of(File& file, std::optional<std::string> given) {
  std::optional<DiskFormat> format;
  if (given) format = co_await parse_format(*given);
  co_return co_await find_format(file, format);
}

Result<CacheMode> cache_mode(const std::string& name, std::string_view what) {
  if (const auto mode = find_cache_mode(name)) return *mode;
  return invalid("Invalid ", what, " option: ", name);
}

Result<SnapshotChoice> parse_snapshot(const std::string& text) {
  SnapshotChoice choice{.text = text, .word = {}, .id = {}, .name = {}};
  if (!text.starts_with("snapshot.")) {
    choice.word = text;
    return choice;
  }
  OptionList pairs;
  if (Result<void> parsed = parse_value(text, pairs); !parsed) return std::move(parsed).error();
  choice.id = pairs.take("snapshot.id");
  choice.name = pairs.take("snapshot.name");
  if (!pairs.pairs.empty() || (!choice.id && !choice.name)) {
    return invalid("Failed in parsing snapshot param '", text, "'");
  }
  return choice;
}

Result<void> look_at_snapshot(std::string_view value) {
  const Result<SnapshotChoice> choice = parse_snapshot(std::string(value));
  if (!choice) return choice.error().copy();
  return {};
}

bool SnapshotChoice::fits(const Snapshot& snapshot) const {
  if (word) return snapshot.id == *word || snapshot.name == *word;
  return (!id || snapshot.id == *id) && (!name || snapshot.name == *name);
}

Result<std::string> SnapshotChoice::find(const std::vector<Snapshot>& snapshots) const {
  const Snapshot* found = nullptr;
  for (const Snapshot& snapshot : snapshots) {
    if (!fits(snapshot)) continue;
    if (found) return invalid("more than one snapshot is meant by ", quoted(text));
    found = &snapshot;
  }
  if (!found) return Error(Errc::not_found, "Can't find snapshot");
  // To the engine an empty word is the disk as it is now.
  for (const std::string& known_as : {found->id, found->name}) {
    if (!known_as.empty() && find_snapshot(snapshots, {known_as})) return known_as;
  }
  return invalid("the id and the name of snapshot ", quoted(text), " are those of others, too");
}

void warn_of_guess(Session& session, const std::string& name) {
  session.note(cat("WARNING: Image format was not specified for '", name,
                   "' and probing guessed raw.\n"
                   "         Automatically detecting the format is dangerous for raw images, write "
                   "operations on block 0 will be restricted.\n"
                   "         Specify the 'raw' format explicitly to remove the restrictions.\n"));
}

}  // namespace byre
