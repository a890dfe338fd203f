// SPDX-License-Identifier: Apache-2.0
/// Commands that change what lies below what.
#include <algorithm>

#include "block/drain.h"
#include "daemon/daemon.h"
#include "daemon/modules.h"
#include "job/create.h"
#include "job/layers.h"

namespace byre::qmp {

namespace {

/// What the overlay's header says of the node, or else is to say.
Result<BackingName> name_in_header_of(const Image& overlay, const NamedNode& node) {
  const ImageHeader& head = overlay.head();
  BYRE_TRY(name, name_in_header(node.entry(), overlay.name(), head.backing_file));
  if (head.backing_file && head.extensions.backing_format) {
    name.format = *head.extensions.backing_format;
  }
  return name;
}

/// The edges that use a node: all but names.
std::vector<Child*> users_of(const NamedNode& node) {
  std::vector<Child*> users;
  for (Child* edge : node.entry().node()->parents()) {
    if (edge->role() != Role::name) users.push_back(edge);
  }
  return users;
}

// --- blockdev-snapshot ---------------------------------------------------------------------------

struct Snapshot {
  std::string node;
  std::string overlay;
};
const Struct& definition_of(const Snapshot*) {
  static const Struct kStruct(
      {field("node", &Snapshot::node, "what stays as it is from here on"),
       field("overlay", &Snapshot::overlay, "an image without a backing disk, used by nobody")});
  return kStruct;
}

Result<void> check_overlay(const NamedNode& overlay) {
  if (Result<void> free = overlay.check_free(); !free) return free;
  if (!users_of(overlay).empty() || !overlay.is_owned()) {
    return Error(Errc::busy, "The overlay is already in use");
  }
  if (dynamic_cast<Image*>(&overlay.device()) == nullptr) {
    return unsupported("The overlay does not support backing images");
  }
  if (overlay.image()->backing()) return invalid("The overlay already has a backing image");
  if (!overlay.image()->writable()) return Error(Errc::read_only, "The overlay is read-only");
  return {};
}

/// May the node lie below an overlay?
Result<void> check_below(const NamedNode& node) {
  for (const Child* user : users_of(node)) {
    if (user->role() != Role::backing) continue;
    return Error(Errc::busy, cat("Node '", node.name, "' is busy: node is used as backing hd of '",
                                 user->owner()->node()->name(), "'"));
  }
  return node.check_free();
}

/// What put_below() has changed.
struct PutBelow {
  std::string node;
  std::string overlay;
  std::vector<Child*> users;  ///< Of the node, before.
  std::optional<BackingName> name_before;
};

/// The users of a node use another one from here on.
Task<void> lead_users(const std::vector<Child*>& users, Node& to, std::optional<Drain>& drain) {
  if (users.empty()) co_return;
  std::vector<Move> moves;
  for (Child* user : users) moves.push_back({*user, to});
  drain.emplace(users);
  co_await drain->begin();
  co_await check_moves(moves);
  repoint(*drain, moves);
}

/// 1. No request is under way to the node.
/// 2. Who used the node uses the overlay.
/// 3. The overlay gets the node below it, which is written to its header; if that fails, step 2 is
///    taken back.
Task<PutBelow> put_below(NamedNode& node, NamedNode& overlay) {
  Image& image = *overlay.image();
  PutBelow done{.node = node.name, .overlay = overlay.name, .users = users_of(node)};
  if (image.head().backing_file) {
    done.name_before = BackingName{*image.head().backing_file,
                                   image.head().extensions.backing_format.value_or("")};
  }
  const std::optional<BackingName> name = co_await name_in_header_of(image, node);
  std::optional<Drain> drain;
  co_await lead_users(done.users, *overlay.device().node(), drain);
  Child below = Child::to(node.entry());
  Result<void> placed = co_await image.replace_backing(below, name).result();
  if (!placed && drain) {
    std::vector<Move> back;
    for (Child* user : done.users) back.push_back({*user, *node.entry().node()});
    repoint(*drain, back);
  }
  co_await below.close();
  co_await std::move(placed);
  co_return std::move(done);
}

/// As if put_below() had not been; nothing has happened since.
Task<void> take_from_below(Nodes& nodes, const PutBelow& done) {
  NamedNode* const node = co_await nodes.need(done.node);
  NamedNode* const overlay = co_await nodes.need(done.overlay);
  std::optional<Drain> drain;
  co_await lead_users(done.users, *node->entry().node(), drain);
  Child none;
  Result<void> removed =
      co_await overlay->image()->replace_backing(none, done.name_before).result();
  if (none) (void)co_await none.close().result();
  co_await std::move(removed);
}

class Snapshotting final : public ActionRun {
 public:
  Snapshotting(Call& call, Snapshot args) : call_(call), args_(std::move(args)) {}

  Task<void> act() override {
    Nodes& nodes = call_.daemon().nodes();
    NamedNode* const node = co_await nodes.need(args_.node, args_.node);
    co_await check_below(*node);
    NamedNode* const overlay = co_await nodes.need(args_.overlay, args_.overlay);
    co_await check_overlay(*overlay);
    done_ = co_await put_below(*node, *overlay);
  }
  Task<void> undo() override { co_await take_from_below(call_.daemon().nodes(), done_); }

 private:
  Call& call_;
  const Snapshot args_;
  PutBelow done_;
};

std::unique_ptr<ActionRun> snapshotting(Call& call, Snapshot args) {
  return std::make_unique<Snapshotting>(call, std::move(args));
}
const Action<Snapshot> kSnapshotAction("blockdev-snapshot", snapshotting);

Task<Json> blockdev_snapshot(Call& call, Snapshot args) {
  Snapshotting snapshot(call, std::move(args));
  co_await snapshot.act();
  co_return Json();
}
const Command<Snapshot> kSnapshot({.name = "blockdev-snapshot",
                                   .help = "puts a node below an empty overlay, which its users "
                                           "use from then on",
                                   .run = blockdev_snapshot});

// --- blockdev-snapshot-sync ----------------------------------------------------------------------

enum class NewImageWord : uint8_t { existing, absolute_paths };
const Enumeration& definition_of(const NewImageWord*) {
  static const Enumeration kModes({"existing", "absolute-paths"});
  return kModes;
}

struct SnapshotSync {
  std::optional<std::string> device;
  std::optional<std::string> node;
  std::string file;
  std::optional<std::string> overlay;
  std::string format = "qcow2";
  NewImageWord mode = NewImageWord::absolute_paths;
};
const Struct& definition_of(const SnapshotSync*) {
  static const Struct kStruct(
      {field("device", &SnapshotSync::device, "of a machine: there is none here"),
       field("node-name", &SnapshotSync::node, "what stays as it is from here on"),
       field("snapshot-file", &SnapshotSync::file, "the file of the overlay"),
       field("snapshot-node-name", &SnapshotSync::overlay, "what the overlay is called"),
       with_default("format", &SnapshotSync::format, "of the overlay: qcow2"),
       with_default("mode", &SnapshotSync::mode,
                    "existing: the file is an empty image; absolute-paths: it is made")});
  return kStruct;
}

class MakingSnapshot final : public ActionRun {
 public:
  MakingSnapshot(Call& call, SnapshotSync args) : call_(call), args_(std::move(args)) {}

  Task<void> act() override {
    NamedNode* const node = co_await find();
    co_await check(*node);
    if (args_.mode == NewImageWord::absolute_paths) co_await make_file(*node);
    co_await nodes().add({{"driver", "qcow2"},
                          {"node-name", *args_.overlay},
                          {"file", {{"driver", "file"}, {"filename", args_.file}}},
                          {"backing", nullptr}});
    Result<PutBelow> done = co_await put().result();
    if (!done) co_await nodes().remove(*args_.overlay);
    done_ = co_await std::move(done);
  }
  Task<void> undo() override {
    co_await take_from_below(nodes(), done_);
    co_await nodes().remove(*args_.overlay);
  }

 private:
  Nodes& nodes() const { return call_.daemon().nodes(); }
  Result<NamedNode*> find() const {
    if (!args_.node) return no_such_node(args_.device.value_or(""), "");
    return nodes().need(*args_.node, args_.device.value_or(""));
  }
  Result<void> check(const NamedNode& node) const {
    if (Result<void> can = check_below(node); !can) return can;
    if (!find_driver(args_.format)) return invalid("Unknown file format '", args_.format, "'");
    if (args_.format != "qcow2") {
      return unsupported("Backing file not supported for file format '", args_.format, "'");
    }
    if (!args_.overlay) {
      return invalid("Parameter 'snapshot-node-name' is missing: the overlay needs a name here");
    }
    if (nodes().find(*args_.overlay)) return invalid("New overlay node-name already in use");
    return nodes().check_new_name(*args_.overlay);
  }
  Task<void> make_file(const NamedNode& node) const {
    const BackingName below = co_await name_in_header(node.entry(), args_.file, {});
    CreateDiskOptions options{.format = DiskFormat::qcow2, .replace = true};
    options.image.size = node.device().size();
    options.image.backing_file = below.file;
    options.image.backing_format = below.format;
    Result<void> made = co_await create_disk(call_.daemon().reactor(), call_.daemon().files(),
                                             args_.file, std::move(options))
                            .result();
    if (made) co_return;
    const int number = made.error().sys_errno();
    if (number == 0 || made.error().code() == Errc::denied) co_await std::move(made);
    co_await fail(errno_error(number, cat("Could not create '", args_.file, "'")));
  }
  Task<PutBelow> put() const {
    NamedNode* const node = co_await find();
    NamedNode* const overlay = co_await nodes().need(*args_.overlay);
    co_await check_overlay(*overlay);
    co_return co_await put_below(*node, *overlay);
  }

  Call& call_;
  const SnapshotSync args_;
  PutBelow done_;
};

std::unique_ptr<ActionRun> making_snapshot(Call& call, SnapshotSync args) {
  return std::make_unique<MakingSnapshot>(call, std::move(args));
}
const Action<SnapshotSync> kSnapshotSyncAction("blockdev-snapshot-sync", making_snapshot);

Task<Json> blockdev_snapshot_sync(Call& call, SnapshotSync args) {
  MakingSnapshot snapshot(call, std::move(args));
  co_await snapshot.act();
  co_return Json();
}
const Command<SnapshotSync> kSnapshotSync({.name = "blockdev-snapshot-sync",
                                           .help = "makes an overlay and does blockdev-snapshot",
                                           .run = blockdev_snapshot_sync});

// --- change-backing-file -------------------------------------------------------------------------

struct ChangeBacking {
  std::string device;
  std::string node;
  std::string file;
};
const Struct& definition_of(const ChangeBacking*) {
  static const Struct kStruct(
      {field("device", &ChangeBacking::device, "the disk in whose chain the image is"),
       field("image-node-name", &ChangeBacking::node, "the image"),
       field("backing-file", &ChangeBacking::file, "what its header is to say")});
  return kStruct;
}

/// Is `image` in the chain that begins at `top`?
bool is_in_chain(const NamedNode& top, const Image& image) {
  return std::ranges::any_of(layers_of(top.entry()),
                             [&](Device* layer) { return &without_filters(*layer) == &image; });
}

Task<Json> change_backing_file(Call& call, ChangeBacking args) {
  Nodes& nodes = call.daemon().nodes();
  NamedNode* const top = co_await nodes.need(args.device, args.device);
  NamedNode* const node = co_await nodes.need(args.node, "");
  Image* const image = node->image();
  if (!image || !image->backing()) {
    co_return invalid("not allowing backing file change on an image without a backing file");
  }
  if (!is_in_chain(*top, *image)) {
    co_return invalid("'", args.device, "' and image file are not in the same chain");
  }
  if (!image->writable()) {
    co_return Error(Errc::read_only, cat("Node '", args.node,
                                         "' is read-only; open it with "
                                         "read-only=false to change its header"));
  }
  co_await node->check_free();
  BackingName name = co_await name_in_header(*image->backing(), image->name(), args.file);
  if (const auto& said = image->head().extensions.backing_format) name.format = *said;
  // The same device again, under another name.
  Child same = Child::to(*image->backing());
  Result<void> changed = co_await image->replace_backing(same, std::move(name)).result();
  co_await same.close();
  co_await std::move(changed);
  co_return Json();
}
const Command<ChangeBacking> kChangeBacking({.name = "change-backing-file",
                                             .help = "changes what a header calls the disk below",
                                             .run = change_backing_file});

}  // namespace

void add_chain_commands(CommandSet& set) {
  set.add(kSnapshot);
  set.add(kSnapshotAction);
  set.add(kSnapshotSync);
  set.add(kSnapshotSyncAction);
  set.add(kChangeBacking);
}

}  // namespace byre::qmp
