// SPDX-License-Identifier: Apache-2.0
/// Opening a disk that is named by its devices (device_tree.h).
///
/// Children are opened before their parents, each node once.  A node takes from its parent what it
/// does not say itself: whether it is written, cache.direct, force-share.
/// A node with several parents is opened for what they want together; what the permissions of their
/// edges (block/graph.h) do not allow is an error: two that write, one that writes below an image.
/// Invariant: an error leaves nothing open.
/// Cost: that of the devices; none for a node that only passes through (raw without a part).
/// Not here: what a driver is (driver.h), plain paths (open.h).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "block/filter_fault.h"
#include "job/device_tree.h"
#include "job/open.h"

namespace byre {

class Objects;

struct OpenTreeOptions {
  /// How the disk is used, and how its topmost image is opened.
  ImageOptions image;
  bool growable = false;  ///< Raw: writes may pass the end.
  /// For devices that are no file; without it those are refused.
  Reactor* reactor = nullptr;
  /// What devices may refer to; may be null.
  std::shared_ptr<Objects> objects = {};
  /// Told of each fault filter, from the bottom up.
  std::function<void(FaultFilter&)> on_fault_filter = {};
  /// Told, before anything else is found wrong, that raw was guessed for a disk to be written.
  std::function<void()> on_guessed_raw = {};
  std::function<Child(Child)> over_file = {};
  /// Each node is a node of the graph: also one that only passes through.
  bool keep_nodes = false;
  /// Told of each node once it is open, from the bottom up.
  std::function<void(const DeviceNode&, Node&)> on_node = {};
};

/// The caller must close() the device.
Task<Disk> open_tree(FileOpener& opener, DeviceTree tree, OpenTreeOptions options);

/// The same without what guests need over a disk (whole sectors): a node for others to use.
Task<Disk> open_node(FileOpener& opener, DeviceTree tree, OpenTreeOptions options);

/// What an image lies in: the device below the format at the top, or all of it where that is raw.
struct Storage {
  Child device;
  DiskFormat format = DiskFormat::raw;
  std::string driver = "raw";  ///< The name of the format, or of the device at the top.
};
/// Of `options.image` counts how the disk is used.
Task<Storage> open_storage(FileOpener& opener, DeviceTree tree, OpenTreeOptions options);

/// The devices that the image at `image_name` calls `name`, which is a `json:` name: only drivers
/// that read files, each file opened as one that the image names, and other servers' disks (nbd).
/// `reactor` is for those; null: they are refused.  A relative file name starts at
/// the working directory, as in QEMU.  `format`: of the image's own words, if the tree has none.
Task<Disk> open_tree_of_image(FileOpener& opener, std::string image_name, std::string name,
                              std::optional<std::string> format, ImageOptions options,
                              Reactor* reactor = nullptr);
/// The same, unopened: the tree, and the opener for it.
struct NamedTree {
  DeviceTree tree;
  std::unique_ptr<FileOpener> opener;
};
Result<NamedTree> tree_of_image(FileOpener& opener, std::string_view image_name,
                                std::string_view name, const std::optional<std::string>& format);

/// Makes `options` open the backing disks that images name so; `reactor` is for those that are no
/// file.
void follow_named_devices(ImageOptions& options, Reactor& reactor);

}  // namespace byre
