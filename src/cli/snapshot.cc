// SPDX-License-Identifier: Apache-2.0
/// `byre snapshot`: lists, creates, applies, deletes and renames the snapshots inside an image.
#include "qcow2/ops/snapshot.h"

#include "cli/commands.h"
#include "cli/json.h"
#include "cli/options.h"
#include "cli/snapshot_list.h"
#include "cli/text.h"
#include "io/wall_clock.h"

namespace byre {

namespace {

struct SnapshotArgs : OpenArgs {
  std::string image;
  std::vector<std::string> list;  ///< One word for each -l.
  std::vector<std::string> apply;
  std::vector<std::string> create;
  std::vector<std::string> remove;
  std::vector<std::string> rename;
  std::optional<std::string> to;
  bool quiet = false;  ///< qemu-img has it; nothing is printed anyway.

  size_t actions() const {
    return list.size() + apply.size() + create.size() + remove.size() + rename.size();
  }
};

/// "ID_OR_NAME", "snapshot.id=ID" or "snapshot.name=NAME".
SnapshotKey key_of(std::string_view word) {
  constexpr std::string_view kId = "snapshot.id=";
  constexpr std::string_view kName = "snapshot.name=";
  if (word.starts_with(kId)) return {std::string(word.substr(kId.size())), SnapshotKey::By::id};
  if (word.starts_with(kName))
    return {std::string(word.substr(kName.size())), SnapshotKey::By::name};
  return {std::string(word), SnapshotKey::By::id_or_name};
}

Task<void> load_table(Device& device, std::vector<Snapshot>& snapshots) {
  const ImageHeader head = co_await load_image_header(device);
  snapshots = co_await load_snapshots(device, head);
}

/// Reads the first cluster and the snapshot table, nothing else.
Task<std::vector<Snapshot>> load_list(Session& session, FileOpener& opener, SnapshotArgs args) {
  Storage storage =
      co_await open_storage_named(session, opener, args.image, args, {.share_lock = args.share});
  std::vector<Snapshot> snapshots;
  Result<void> done;
  if (storage.format == DiskFormat::qcow2) {
    done = co_await load_table(*storage.device, snapshots).result();
  }
  Result<void> closed = co_await storage.device.close().result();
  co_await std::move(done);
  co_await std::move(closed);
  co_return std::move(snapshots);
}

Json json_list(const std::vector<Snapshot>& snapshots) {
  Json list = Json::array();
  for (const Snapshot& snapshot : snapshots) {
    Json json = to_json_value(snapshot);
    if (snapshot.disk_size) json["virtual-size"] = *snapshot.disk_size;
    list.push_back(std::move(json));
  }
  return list;
}

Task<int> list(Session& session, SnapshotArgs args) {
  co_await check_format_option(args);
  SystemGate opener(session.reactor(), session.policy(args.follow));
  Result<std::vector<Snapshot>> snapshots = co_await load_list(session, opener, args).result();
  if (!snapshots) co_return could_not_open(args.image, std::move(snapshots).error(), true);
  if (session.json()) {
    session.print(to_json({{"filename", args.image}, {"snapshots", json_list(*snapshots)}}));
  } else if (!snapshots->empty()) {
    session.print(snapshot_list(*snapshots));
  }
  co_return 0;
}

/// What qemu-img says of a disk that has no snapshots: "Could not VERB snapshot 'x': WHY".
Error of_no_image(std::string_view verb, std::string_view word) {
  std::string_view why = "Block driver does not support snapshots";
  if (verb == "create") why = "Operation not supported";
  if (verb == "delete") why = "snapshot not found";
  return unsupported("Could not ", verb, " snapshot '", word, "': ", why);
}

/// What the words ask for, to be done to an open image.
struct Action {
  std::string_view verb;
  std::string word;
  std::string to = {};
  bool by_name_only = false;
};

/// A name must tell its snapshot from the others.
Result<void> check_name(const Image& image, const Action& action) {
  const bool renames = action.verb == "rename";
  if (!renames && action.verb != "create") return {};
  const std::string& name = renames ? action.to : action.word;
  if (name.empty()) return invalid("a snapshot needs a name");
  const Result<size_t> renamed =
      renames ? find_snapshot(image.snapshots(), key_of(action.word)) : Result<size_t>(SIZE_MAX);
  if (!renamed) return {};  // That there is none is said where it is looked for.
  for (size_t i = 0; i < image.snapshots().size(); ++i) {
    const Snapshot& other = image.snapshots()[i];
    if (i == *renamed || (other.name != name && other.id != name)) continue;
    return invalid("'", printable(name), "' is already the ", other.name == name ? "name" : "id",
                   " of snapshot ", printable(other.id), ", so it would not tell which is meant");
  }
  return {};
}

/// Which one is meant: qemu-img deletes by name only, whatever its manual says.
SnapshotKey key_of(const Action& action) {
  if (action.verb == "delete" && action.by_name_only) {
    return {action.word, SnapshotKey::By::name};
  }
  return key_of(action.word);
}

Task<void> perform(Image& image, Action action) {
  if (action.verb == "create") {
    const WallTime now = wall_time();
    // QEMU, too, keeps 32 bits of it.
    co_await image.create_snapshot({.name = action.word,
                                    .date_seconds = static_cast<uint32_t>(now.seconds),
                                    .date_nanoseconds = now.nanoseconds});
  } else if (action.verb == "apply") {
    co_await image.apply_snapshot(key_of(action.word));
  } else if (action.verb == "delete") {
    co_await image.delete_snapshot(key_of(action));
  } else {
    co_await image.rename_snapshot(key_of(action.word), action.to);
  }
}

/// The engine says what it was doing, too: once is enough.
Error in_words(const Action& action, Error error) {
  if (error.code() == Errc::not_found) {
    if (action.verb == "apply") {
      return Error(Errc::not_found, cat("Could not apply snapshot '", action.word,
                                        "': Failed to load snapshot: No such file or directory"));
    }
    return Error(Errc::not_found, cat("Could not ", action.verb, " snapshot '", action.word,
                                      "': snapshot not found"));
  }
  std::string why = error.message();
  const std::string own =
      cat(action.verb, " snapshot ", byre::quoted(key_of(action.word).word), ": ");
  if (why.starts_with(own)) why.erase(0, own.size());
  return Error(error.code(), cat("Could not ", action.verb, " snapshot '", action.word, "': ", why),
               error.sys_errno(), error.where());
}

Task<int> change(Session& session, SnapshotArgs args, Action action) {
  SystemGate opener(session.reactor(), session.policy(args.follow));
  // A snapshot is made of tables; no guest data is read.
  const ImageOptions options{.writable = true, .without_backing = true, .refuse_damaged = true};
  Disk disk = co_await open_named(session, opener, args.image, args, options);
  if (disk.guessed && disk.format == DiskFormat::raw) warn_of_guess(session, args.image);
  const Session::Interruptible guard(
      session, {.about = byre::quoted(args.image),
                .stop = [] {},
                .waiting_for = [&] { return cat("the snapshots of ", byre::quoted(args.image)); }});
  Result<void> done;
  if (disk.image) done = check_name(*disk.image, action);
  if (!done && session.compatibility_name()) {
    // Scripts that want no name get none without a word, as from qemu-img.
    if (action.verb == "rename" || !action.word.empty()) session.warn(done.error().message());
    done = {};
  }
  if (done && disk.image && !action.verb.empty()) {
    done = co_await perform(*disk.image, action).result();
  }
  if (!disk.image && !action.verb.empty()) done = of_no_image(action.verb, action.word);
  if (!done && disk.image) done = in_words(action, std::move(done).error());
  Json result = {{"filename", args.image}};
  if (disk.image) result["snapshots"] = json_list(disk.image->snapshots());
  Result<void> closed = co_await disk.device.close().result();
  co_await std::move(done);
  co_await std::move(closed);
  if (session.json()) session.print(to_json(result));
  co_return 0;
}

Task<int> snapshot(Session& session, SnapshotArgs args) {
  const auto wrong = [&](std::string text) {
    const Parsed parsed{
        .outcome = Parsed::Outcome::failed, .error = std::move(text), .usage = true};
    return finish_parse(session, kSnapshot, parsed);
  };
  if (args.to.has_value() != !args.rename.empty()) {
    co_return wrong("--rename SNAPSHOT and --to NAME go together");
  }
  if (!args.list.empty() && (args.trust_refcounts || args.free_leaks)) {
    co_return invalid("--trust-refcounts and --free-leaks are for changes of the snapshots");
  }
  if (!args.apply.empty()) co_return co_await change(session, args, {"apply", args.apply[0], ""});
  if (!args.create.empty())
    co_return co_await change(session, args, {"create", args.create[0], ""});
  if (!args.remove.empty())
    co_return co_await change(
        session, args,
        {.verb = "delete", .word = args.remove[0], .by_name_only = session.compatibility_name()});
  if (!args.rename.empty()) {
    co_return co_await change(session, args, {"rename", args.rename[0], *args.to});
  }
  co_return co_await list(session, args);
}

/// One action; a second one is told where it stands, under each name.
Argument action(Argument argument, std::vector<std::string> SnapshotArgs::* member) {
  argument.misuse = true;
  argument.store = [member](void* args, std::string_view value) -> Result<void> {
    SnapshotArgs& all = *static_cast<SnapshotArgs*>(args);
    (all.*member).emplace_back(value);
    if (all.actions() == 1) return {};
    return invalid("Cannot mix '-l', '-a', '-c', '-d'", all.rename.empty() ? "" : ", '--rename'");
  };
  return argument;
}

Argument action(std::string_view names, std::string_view metavar,
                std::vector<std::string> SnapshotArgs::* member, std::string_view help) {
  return action(option(names, metavar, member, help), member);
}

const Command<SnapshotArgs> kDefinition({
    .name = "snapshot",
    .summary = "List, create, apply, delete and rename the snapshots inside an image",
    .description =
        "SNAPSHOT is an id or a name; where a word could mean two, byre refuses and says which: "
        "snapshot.id=ID and snapshot.name=NAME choose. Applying one gives the disk up as it is "
        "now; "
        "create another one first to keep it. Killed at any moment, each of these leaves the image "
        "as it was or as it should be.",
    .args = {operand("IMAGE", &SnapshotArgs::image, "the image file"),
             action(detail::named(Argument::Kind::flag, "-l, --list", "",
                                  "list them (the default)"),
                    &SnapshotArgs::list),
             action("-c, --create", "NAME", &SnapshotArgs::create,
                    "keep the disk as it is now under this name"),
             action("-a, --apply", "SNAPSHOT", &SnapshotArgs::apply,
                    "make the disk what it was then, its size as well"),
             action("-d, --delete", "SNAPSHOT", &SnapshotArgs::remove, "give it up"),
             own({action("--rename", "SNAPSHOT", &SnapshotArgs::rename, "give it the name --to"),
                  option("--to", "NAME", &SnapshotArgs::to, "the new name, for --rename")}),
             format_argument<SnapshotArgs>(),
             flag("-q, --quiet", &SnapshotArgs::quiet, "print nothing but errors"),
             share_argument<SnapshotArgs>(), scan_arguments<SnapshotArgs>(),
             follow_arguments<SnapshotArgs>()},
    .too_few = "Expecting one image file name",
    .too_many = "Expecting one image file name",
    .run = snapshot,
});

}  // namespace

const AnyCommand& kSnapshot = kDefinition;

}  // namespace byre
