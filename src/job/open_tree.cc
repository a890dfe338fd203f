// SPDX-License-Identifier: Apache-2.0
#include "job/open_tree.h"

#include <unistd.h>

#include <algorithm>
#include <climits>

#include "block/detect_zeroes.h"
#include "block/filter.h"
#include "block/raw.h"
#include "qcow2/core/image_header.h"

namespace byre {

namespace {

/// discard=ignore: nothing gives blocks back.  An image does that itself, for its freed clusters.
class KeepBlocks final : public Filter {
 public:
  using Filter::Filter;
  Task<void> discard(uint64_t, uint64_t, DiscardOptions) override { co_return; }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    options.may_unmap = false;
    return below().zero(offset, length, options);
  }
};

constexpr ChildSpec kAnyFile{.role = "file", .access = ChildAccess::storage};

/// What two parents of a node want of it together.
NodeUse joined(const NodeUse& one, const NodeUse& two) {
  const bool ignore = one.discard == DiscardPolicy::ignore && two.discard == DiscardPolicy::ignore;
  return {.writable = one.writable || two.writable,
          .growable = one.growable || two.growable,
          .direct = one.direct || two.direct,
          .lock = one.lock || two.lock,
          .share_lock = one.share_lock && two.share_lock,
          .top = false,  // Nobody alone may change an image in it.
          .discard = ignore ? DiscardPolicy::ignore : DiscardPolicy::unmap};
}

/// Opens the nodes of one tree.
class TreeOpener {
 public:
  TreeOpener(FileOpener& files, const OpenTreeOptions& options)
      : files_(files), options_(options) {}

  Task<OpenedNode> open(DeviceNode& node, NodeUse use) {
    if (node.open) co_return co_await refer_to(node, use);
    if (node.parents < 2) co_return co_await open_alone(node, use);
    Shared& shared = shared_[&node];
    use = *shared.use;
    if (const std::shared_ptr<Node> there = shared.node.lock()) {
      OpenedNode reader;
      reader.format = shared.format;
      reader.device = Child::to(there->device());
      co_return std::move(reader);
    }
    OpenedNode opened = co_await open_alone(node, use);
    shared.node = opened.device.node().weak_from_this();
    shared.format = opened.format;
    // Who shares it sees no image in it: nobody alone may change that.
    opened.image = nullptr;
    co_return std::move(opened);
  }

  /// Before anything is opened: what all parents of each node that has several want of it.  It is
  /// walked again only where that has become more, so each node few times.
  void gather(const DeviceNode& node, NodeUse use) {
    if (node.open) return;
    if (node.parents > 1) {
      std::optional<NodeUse>& all = shared_[&node].use;
      const std::optional<NodeUse> before = all;
      all = joined(all.value_or(use), use);
      if (before == all) return;
      writes_shared_ |= all->writable;
      use = *all;
    }
    if (!apply(node, use)) return;  // Opening it will say why.
    const std::span<const ChildSpec> children =
        node.driver ? node.driver->children : std::span(&kAnyFile, 1);
    for (const ChildSpec& spec : children) {
      if (const DeviceNode* const child = node.child(spec.role))
        gather(*child, use_of_child(spec, use));
    }
  }
  /// The owner of the top claims what it does: each that uses a node beside a writer must allow it.
  Result<void> claim(OpenedNode& top, bool writable) const {
    if (!writes_shared_) return {};
    return top.device.set_permissions(
        {.uses = {.read = true, .write = writable, .resize = writable}, .shares = Access::all()});
  }

  Task<OpenedNode> open_child(DeviceNode& node, const ChildSpec& spec, NodeUse use) {
    co_return co_await open(*node.child(spec.role), use_of_child(spec, use));
  }

  /// What `node` says over what its parent wants.
  static Result<void> apply(const DeviceNode& node, NodeUse& use) {
    if (node.read_only == true && use.writable) {
      return Error(Errc::read_only, "Block node is read-only");
    }
    if (node.force_share) use.share_lock = true;
    if (use.share_lock && use.writable) {
      return invalid("force-share=on can only be used with read-only images");
    }
    if (node.direct) use.direct = *node.direct;
    if (node.discard) use.discard = *node.discard;
    if (node.detect_zeroes == DetectZeroesMode::unmap && use.discard != DiscardPolicy::unmap) {
      return invalid(
          "setting detect-zeroes to unmap is not allowed without setting discard operation to "
          "unmap");
    }
    return {};
  }

 private:
  static NodeUse use_of_child(const ChildSpec& spec, NodeUse use) {
    use.top = use.top && spec.access == ChildAccess::same;
    if (spec.access == ChildAccess::below) {
      use.writable = false;
      use.growable = false;
    }
    if (spec.access != ChildAccess::same) use.discard = DiscardPolicy::unmap;
    if (spec.access == ChildAccess::storage) use.growable = use.writable;
    return use;
  }

  /// Another edge to a node that is open.
  static Task<OpenedNode> refer_to(const DeviceNode& node, const NodeUse& use) {
    Device& device = node.open->device();
    if (use.writable && !device.writable()) {
      co_return Error(Errc::read_only, cat("Block node is read-only: ", node.open->name()));
    }
    OpenedNode opened;
    opened.device = Child::to(device);
    for (const DiskFormat format : {DiskFormat::qcow2, DiskFormat::qcow}) {
      if (node.driver == &driver_of(format)) opened.format = format;
    }
    co_return std::move(opened);
  }

  Task<OpenedNode> open_alone(DeviceNode& node, NodeUse use) {
    co_await apply(node, use);
    NodeParts parts{.node = node,
                    .use = use,
                    .files = files_,
                    .options = options_,
                    .children = {},
                    .groups = groups_};
    Result<OpenedNode> opened = co_await make(node, parts).result();
    if (!opened) {
      co_await close_children(parts);
      co_return std::move(opened).error();
    }
    // A raw disk that is all of its file is no device of its own otherwise.
    const bool passes =
        node.driver == &kRawDriver && !node.number("offset") && !node.number("size");
    if (options_.keep_nodes && passes) {
      opened->device = std::make_unique<Filter>(std::move(opened->device));
    }
    put_filters(node, *opened);
    if (options_.on_node) options_.on_node(node, opened->device.node());
    if (!node.node_name.empty()) opened->device.node().set_name(node.node_name);
    co_return std::move(opened);
  }

  Task<OpenedNode> make(DeviceNode& node, NodeParts& parts) {
    bool guessed = node.was_decided;
    if (!node.driver) {
      NodeUse use = parts.use;
      parts.children.emplace("file", co_await open_child(node, kAnyFile, use));
      const DiskFormat format = co_await find_format(*parts.child("file").device, std::nullopt);
      guessed = true;
      const bool is_raw = format == DiskFormat::raw && parts.use.top && parts.use.writable;
      if (is_raw && options_.on_guessed_raw) options_.on_guessed_raw();
      co_await node.decide(driver_of(format));
    }
    for (const ChildSpec& spec : node.driver->children) {
      if (parts.has(spec.role) || !node.child(spec.role)) continue;
      parts.children.emplace(spec.role, co_await open_child(node, spec, parts.use));
    }
    OpenedNode opened = co_await node.driver->make(parts);
    opened.guessed |= guessed;
    if (guessed && opened.format == DiskFormat::raw && parts.use.writable) {
      opened.device = guard_guess(std::move(opened.device));
    }
    co_return std::move(opened);
  }

  /// Those that the driver has not taken; what cannot be closed is given up.
  static Task<void> close_children(NodeParts& parts) {
    for (auto& [role, child] : parts.children) {
      if (!child.device) continue;
      const Result<void> closed = co_await child.device.close().result();
      if (closed) child.device.reset();
    }
  }

  static void put_filters(const DeviceNode& node, OpenedNode& opened) {
    const bool is_image = opened.image && opened.image == opened.device.get();
    if (node.discard == DiscardPolicy::ignore && !is_image) {
      opened.device = std::make_unique<KeepBlocks>(std::move(opened.device));
    }
    if (node.detect_zeroes != DetectZeroesMode::off) {
      opened.device = std::make_unique<DetectZeroes>(std::move(opened.device), node.detect_zeroes);
    }
  }

  FileOpener& files_;
  const OpenTreeOptions& options_;
  /// A node with several parents, once it is open.
  struct Shared {
    std::optional<NodeUse> use;  ///< Of all its parents.
    std::weak_ptr<Node> node;
    DiskFormat format = DiskFormat::raw;
  };
  std::map<const DeviceNode*, Shared> shared_;
  bool writes_shared_ = false;  ///< One of those is written.
  std::map<std::string, std::shared_ptr<ThrottleGroup>> groups_;
};

NodeUse use_of(const OpenTreeOptions& options) {
  return {.writable = options.image.writable,
          .growable = options.growable,
          .direct = options.image.direct,
          .lock = options.image.lock,
          .share_lock = options.image.share_lock,
          .top = true,
          .discard = options.image.discard};
}

/// What an image names is opened as that, whoever asks.
class OpenerForImage final : public FileOpener {
 public:
  OpenerForImage(FileOpener& opener, std::string image)
      : opener_(opener), image_(std::move(image)) {}
  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions options) override {
    return opener_.open_named_by_image(image_, absolute(name), options);
  }
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view image, std::string_view name,
                                                    FileOptions options) override {
    return opener_.open_named_by_image(image, name, options);
  }
  Result<void> allows_devices(std::string_view image, std::string_view name) const override {
    return opener_.allows_devices(image, name);
  }

 private:
  /// Names start at the working directory, not at the folder of the image.
  std::string absolute(std::string_view name) const {
    char folder[PATH_MAX];
    const bool is_here = image_.find('/') == std::string::npos;
    if (is_here || name.starts_with('/') || !getcwd(folder, sizeof folder)) {
      return std::string(name);
    }
    return cat(folder, "/", name);
  }

  FileOpener& opener_;
  std::string image_;
};

/// Drivers that do no more than read files, or another server's disk: an image names devices only
/// where the user lets it name any (FileOpener::allows_devices()).
Result<void> check_drivers_of_image(const DeviceNode& node) {
  constexpr std::string_view kReaders[] = {"qcow2", "raw", "file", "host_device", "nbd"};
  if (!node.driver) return invalid("Must specify the driver of each device");
  if (std::ranges::find(kReaders, node.driver->name) == std::end(kReaders)) {
    return Error(Errc::denied, cat("Driver '", node.driver->name,
                                   "' may not be named by an image; qcow2, raw, file, "
                                   "host_device and nbd may"));
  }
  for (const auto& [role, child] : node.children) {
    if (!child) continue;
    if (Result<void> known = check_drivers_of_image(*child); !known) return known;
  }
  return {};
}

/// Each begins a chain that may take as much memory as chain.h allows.
constexpr size_t kNamesMax = 8;

/// Knows the names that led here: one that comes again means a circle.
class DevicesOfImages final : public NamedDevices {
 public:
  explicit DevicesOfImages(Reactor& reactor, std::vector<std::string> above = {})
      : reactor_(reactor), above_(std::move(above)) {}

  bool knows(std::string_view name) const override { return names_a_tree(name); }

  Task<Child> open(FileOpener& opener, const ImageHeader& head, std::string image_name,
                   ImageOptions options) const override {
    const std::string name = *head.backing_file;
    std::vector<std::string> names = above_;
    if (std::ranges::find(names, name) != names.end()) {
      co_await fail(corrupt("the backing chain goes in a circle"));
    }
    if (names.size() == kNamesMax) {
      co_await fail(unsupported("the backing chain has more than ", kNamesMax, " json: names"));
    }
    names.push_back(name);
    options.named_devices = std::make_shared<DevicesOfImages>(reactor_, std::move(names));
    Disk disk =
        co_await open_tree_of_image(opener, std::move(image_name), name,
                                    head.extensions.backing_format, std::move(options), &reactor_);
    co_return std::move(disk.device);
  }

 private:
  Reactor& reactor_;
  const std::vector<std::string> above_;
};

}  // namespace

OpenedNode NodeParts::take(std::string_view role) {
  OpenedNode taken = std::move(child(role));
  children.erase(children.find(role));
  return taken;
}

OpenedNode& NodeParts::child(std::string_view role) {
  const auto found = children.find(role);
  BYRE_ASSERT(found != children.end());
  return found->second;
}

Task<Disk> open_tree(FileOpener& opener, DeviceTree tree, OpenTreeOptions options) {
  Disk disk = co_await open_node(opener, std::move(tree), std::move(options));
  make_whole(disk);
  co_return std::move(disk);
}

Task<Disk> open_node(FileOpener& opener, DeviceTree tree, OpenTreeOptions options) {
  TreeOpener nodes(opener, options);
  nodes.gather(*tree, use_of(options));
  OpenedNode opened = co_await nodes.open(*tree, use_of(options));
  if (Result<void> claimed = nodes.claim(opened, options.image.writable); !claimed) {
    (void)co_await opened.device.close().result();
    opened.device.reset();
    co_return std::move(claimed).error();
  }
  if (!options.image.snapshot.empty() && !opened.image) {
    co_await opened.device.close();
    opened.device.reset();
    co_return unsupported("A raw disk has no snapshots");
  }
  Disk disk{.device = std::move(opened.device),
            .format = opened.format,
            .guessed = opened.guessed,
            .image = opened.image,
            .without_backing = opened.without_backing};
  co_return std::move(disk);
}

Task<Storage> open_storage(FileOpener& opener, DeviceTree tree, OpenTreeOptions options) {
  TreeOpener nodes(opener, options);
  NodeUse use = use_of(options);
  nodes.gather(*tree, use);
  std::optional<DiskFormat> given;
  for (const DiskFormat format : {DiskFormat::qcow2, DiskFormat::qcow}) {
    if (tree->driver == &driver_of(format)) given = format;
  }
  const bool has_format = !tree->driver || given;
  if (!has_format) {
    OpenedNode opened = co_await nodes.open(*tree, use);
    co_return Storage{.device = std::move(opened.device),
                      .driver = std::string(tree->driver->name)};
  }
  co_await TreeOpener::apply(*tree, use);
  OpenedNode file = co_await nodes.open_child(*tree, kAnyFile, use);
  Result<DiskFormat> format = co_await find_format(*file.device, given).result();
  Result<void> decided;
  if (format && !tree->driver) {
    decided = tree->decide(driver_of(*format));
  }
  if (!format || !decided) {
    co_await file.device.close();
    file.device.reset();
    co_await std::move(decided);
    co_return std::move(format).error();
  }
  co_return Storage{
      .device = std::move(file.device), .format = *format, .driver = std::string(name_of(*format))};
}

Result<NamedTree> tree_of_image(FileOpener& opener, std::string_view image_name,
                                std::string_view name, const std::optional<std::string>& format) {
  if (Result<void> allowed = opener.allows_devices(image_name, name); !allowed) {
    return std::move(allowed).error();
  }
  BYRE_TRY(options, options_of_name(name));
  if (format && !options.find("driver")) {
    if (Result<void> added = add_option(options, "driver", *format); !added) {
      return std::move(added).error();
    }
  }
  BYRE_TRY(tree, parse_device_tree(std::move(options)));
  if (Result<void> known = check_drivers_of_image(*tree); !known) return std::move(known).error();
  return NamedTree{.tree = std::move(tree),
                   .opener = std::make_unique<OpenerForImage>(opener, std::string(image_name))};
}

Task<Disk> open_tree_of_image(FileOpener& opener, std::string image_name, std::string name,
                              std::optional<std::string> format, ImageOptions options,
                              Reactor* reactor) {
  NamedTree named = co_await tree_of_image(opener, image_name, name, format);
  const bool growable = options.writable;
  // Names that an image of the tree has are that image's.
  co_return co_await open_tree(
      *named.opener, std::move(named.tree),
      {.image = std::move(options), .growable = growable, .reactor = reactor});
}

void follow_named_devices(ImageOptions& options, Reactor& reactor) {
  if (options.named_devices) return;
  options.named_devices = std::make_shared<DevicesOfImages>(reactor);
}

}  // namespace byre
