// SPDX-License-Identifier: Apache-2.0
/// Options that several commands have, and opening an image by them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/session.h"
#include "job/objects.h"
#include "job/open.h"
#include "job/open_tree.h"
#include "qcow2/ops/snapshot.h"

namespace byre {

inline constexpr std::string_view kObjectHelp =
    "throttle-group,id=ID,... with limits such as limits.iops-total=100: devices refer to it by "
    "throttle-group=ID; or secret,id=ID,data=TEXT or file=PATH, and format=base64; may be repeated";
inline constexpr std::string_view kBlockdevHelp =
    "a device, driver=...,node-name=NAME or {...}; may be repeated, later ones refer to "
    "earlier "
    "ones by name, and the image is then called by the name of one";
inline constexpr std::string_view kPreciseSizeHelp =
    "bytes, or a number with the suffix k, M, G, T, P or E (powers of 1024)";

/// How an image that exists is opened.
struct OpenArgs {
  std::optional<std::string> format;
  std::optional<OpenPolicy> follow;
  bool share = false;
  bool has_share = true;  ///< The command has -U.
  bool trust_refcounts = false;
  bool free_leaks = false;
  bool image_opts = false;  ///< The name is a list of options.
  std::shared_ptr<Objects> objects = {};
  /// Devices; if there are some, the name is the node-name of one.
  std::vector<std::string> blockdevs = {};
};
Result<void> parse_value(std::string_view text, std::shared_ptr<Objects>& objects);

template <class Args>
Arguments format_argument() {
  return option("-f, --format", "FORMAT",
                static_cast<std::optional<std::string> Args::*>(&OpenArgs::format),
                "raw or qcow2; without it the file's first bytes decide");
}
template <class Args>
Arguments follow_arguments(std::string_view image_opts = "--image-opts") {
  return {
      own(option("--follow", "POLICY",
                 static_cast<std::optional<OpenPolicy> Args::*>(&OpenArgs::follow),
                 "which files the image may name as its backing or data file: nothing, "
                 "same-directory (the default), or any (the default under QEMU's names)")),
      option("--object", "OBJECT",
             static_cast<std::shared_ptr<Objects> Args::*>(&OpenArgs::objects), kObjectHelp),
      option("--blockdev", "DEVICE",
             static_cast<std::vector<std::string> Args::*>(&OpenArgs::blockdevs), kBlockdevHelp),
      flag(image_opts, static_cast<bool Args::*>(&OpenArgs::image_opts),
           "the name is no path but a list of options: driver=, file.filename= and so on "
           "(json:{...} says the same without it; `byre drivers` shows them)")};
}
/// For commands that write an image which is there (docs/engine.md, V).
template <class Args>
Arguments scan_arguments() {
  return own(
      {flag("--trust-refcounts", static_cast<bool Args::*>(&OpenArgs::trust_refcounts),
            "do not count all references first: refcounts that another program left wrong are "
            "believed, and data may be overwritten"),
       flag("--free-leaks", static_cast<bool Args::*>(&OpenArgs::free_leaks),
            "give back clusters that nothing refers to, if nothing is damaged")});
}
template <class Args>
Argument share_argument() {
  return flag("-U, --force-share", static_cast<bool Args::*>(&OpenArgs::share),
              "read although another process writes the image");
}

/// Does the user's name say more than a path?
inline bool names_devices(const std::string& name, const OpenArgs& args) {
  return args.image_opts || !args.blockdevs.empty() || names_a_tree(name);
}
/// --image-opts, --blockdev and -f exclude each other.
Result<void> check_format_option(const OpenArgs& args);
/// The devices that it means.
Result<DeviceTree> device_tree_of(const std::string& name, const OpenArgs& args);
/// The file that it means, for comparing it with others; an error where that is not known.
Result<std::string> file_of(const std::string& name, const OpenArgs& args);

/// Opens the image that the user called `name`; errors read "Could not open 'name': why".
/// `over_file`: OpenDiskOptions::over_file.
Task<Disk> open_named(Session& session, FileOpener& opener, std::string name, OpenArgs args,
                      ImageOptions options, std::function<Child(Child)> over_file = {});

/// Opens what the image lies in that the user called `name`.
Task<Storage> open_storage_named(Session& session, FileOpener& opener, std::string name,
                                 OpenArgs args, FileOptions options);

/// The format that the user gave, or that the file's first bytes show.
Task<DiskFormat> format_of(File& file, std::optional<std::string> given);

/// Where a file was not opened because of who named it, or because of how many there are: what to
/// do, to be put behind the message.
std::string_view advice_on_follow(const Error& error);

/// The image at `path` names a file: warns when the default policy will not open it.
void warn_of_policy(Session& session, const std::string& path, std::string_view name);

/// Where a file was not read because of a lock: that -U does.
std::string_view advice_on_lock(const Error& error);

/// Puts a failure to open `name` into qemu-img's words.  `can_share`: -U would read it.
Error could_not_open(std::string_view name, Error error, bool can_share = false);

/// The cache mode of that name; `what` is "cache" or "source cache".
Result<CacheMode> cache_mode(const std::string& name, std::string_view what);

/// An internal snapshot as -l names it.  An empty word is a word: it fits a snapshot without a
/// name.
struct SnapshotChoice {
  std::string text;  ///< As it was given.
  std::optional<std::string> word, id, name;

  bool fits(const Snapshot& snapshot) const;
  /// The word by which the engine, which looks among ids and names alike, finds just this one.
  /// Errc::not_found, or Errc::invalid when several are meant.
  Result<std::string> find(const std::vector<Snapshot>& snapshots) const;
};
/// "NAME_OR_ID", "snapshot.id=ID", "snapshot.name=NAME", or the last two with a comma.
Result<SnapshotChoice> parse_snapshot(const std::string& text);

/// For options that take one (looked_at()).
Result<void> look_at_snapshot(std::string_view value);

/// Raw was guessed for an image that is going to be written: says so, as qemu-img does.
void warn_of_guess(Session& session, const std::string& name);

}  // namespace byre
