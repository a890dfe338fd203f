// SPDX-License-Identifier: Apache-2.0
/// Commands that change what lies below what.
#include <algorithm>

#include "block/drain.h"
#include "daemon/daemon.h"
#include "daemon/modules.h"
#include "job/layers.h"

namespace byre::qmp {

namespace {

/// What the overlay's header says of the node, or else is to say.
Result<BackingName> name_in_header_of(const Image& overlay, const NamedNode& node) {
  const ImageHeader& head = overlay.head();
  BYRE_TRY(name, name_in_header(node.entry(), head.backing_file));
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

/// 1. No request is under way to the node.
/// 2. Who used the node uses the overlay.
/// 3. The overlay gets the node below it, which is written to its header; if that fails, step 2 is
///    taken back.
Task<void> put_below(NamedNode& node, NamedNode& overlay) {
  Image& image = *overlay.image();
  const std::optional<BackingName> name = co_await name_in_header_of(image, node);
  const std::vector<Child*> users = users_of(node);
  std::vector<Move> moves, back;
  for (Child* user : users) {
    moves.push_back({*user, *overlay.device().node()});
    back.push_back({*user, *node.entry().node()});
  }
  std::optional<Drain> drain;
  if (!users.empty()) {
    drain.emplace(users);
    co_await drain->begin();
    co_await check_moves(moves);
    repoint(*drain, moves);
  }
  Child below = Child::to(node.entry());
  Result<void> placed = co_await image.replace_backing(below, name).result();
  if (!placed && drain) repoint(*drain, back);
  co_await below.close();
  co_await std::move(placed);
}

Task<Json> blockdev_snapshot(Call& call, Snapshot args) {
  Nodes& nodes = call.daemon().nodes();
  NamedNode* const node = co_await nodes.need(args.node, args.node);
  NamedNode* const overlay = co_await nodes.need(args.overlay, args.overlay);
  for (const Child* user : users_of(*node)) {
    if (user->role() != Role::backing) continue;
    co_return Error(Errc::busy,
                    cat("Node '", args.node, "' is busy: node is used as backing hd of '",
                        user->owner()->node()->name(), "'"));
  }
  co_await check_overlay(*overlay);
  co_await node->check_free();
  co_await put_below(*node, *overlay);
  co_return Json();
}
const Command<Snapshot> kSnapshot({.name = "blockdev-snapshot",
                                   .help = "puts a node below an empty overlay, which its users "
                                           "use from then on",
                                   .run = blockdev_snapshot});

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
  BackingName name = co_await name_in_header(*image->backing(), args.file);
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
  set.add(kChangeBacking);
}

}  // namespace byre::qmp
