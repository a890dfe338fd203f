// SPDX-License-Identifier: Apache-2.0
/// DeviceNode: a disk named by its devices, as QEMU's programs take it: `json:{...}` in the place
/// of a file name, --image-opts, `open -o`, and names of protocols such as `blkdebug:CONFIG:FILE`.
///
/// A node has a driver, settings of the driver's own options (job/driver.h), the settings that all
/// have, and a child for each role ("file", "backing").  Without a driver the first bytes of its
/// file decide; then what only its format can understand waits in `undecided` (decide()).
/// In a list of trees a child that is a text refers to a node of an earlier tree by its node-name;
/// a node may have several parents so.
/// Invariant: every option was taken by somebody or was an error that names it; at most
/// kTreeDepthMax nodes lie one below the other; nodes never form a circle.  Nothing is opened.
/// Cost: linear in the text.
/// Not here: text into options (option_tree.h), drivers (driver.h), opening (open_tree.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "block/detect_zeroes.h"
#include "block/graph.h"
#include "job/driver.h"
#include "job/option_tree.h"

namespace byre {

/// One group of a list of rules: keys and values.
using OptionRule = std::vector<std::pair<std::string, std::string>>;

struct Setting {
  std::string_view name;
  std::variant<bool, uint64_t, std::string, std::vector<OptionRule>, std::vector<std::string>>
      value;
};

class DeviceNode {
 public:
  const Driver* driver = nullptr;  ///< None: the first bytes of its file decide.
  bool is_implied = false;         ///< Nobody named the driver: a path, which may be a device's.
  bool was_decided = false;        ///< Its first bytes have decided, and it is opened again.
  std::string node_name;
  /// The node is open already, and this is it: what follows says nothing.
  std::shared_ptr<Node> open;

  // What every node may be told; none: as its parent has it.
  std::optional<bool> read_only;
  bool auto_read_only = false;
  bool force_share = false;
  std::optional<bool> direct;
  std::optional<DiscardPolicy> discard;
  DetectZeroesMode detect_zeroes = DetectZeroesMode::off;

  std::vector<Setting> settings;
  /// By role.  Null: there is to be none (`"backing": null`).
  std::map<std::string_view, std::shared_ptr<DeviceNode>> children;
  uint32_t parents = 0;
  uint32_t height = 1;   ///< Nodes from here down, one below the other.
  OptionTree undecided;  ///< Of a node without a driver.

  std::optional<bool> flag(std::string_view name) const { return get<bool>(name); }
  std::optional<uint64_t> number(std::string_view name) const { return get<uint64_t>(name); }
  std::optional<std::string> text(std::string_view name) const { return get<std::string>(name); }
  std::vector<OptionRule> rules(std::string_view name) const {
    return get<std::vector<OptionRule>>(name).value_or(std::vector<OptionRule>());
  }
  std::vector<std::string> words(std::string_view name) const {
    return get<std::vector<std::string>>(name).value_or(std::vector<std::string>());
  }
  DeviceNode* child(std::string_view role) const {
    const auto found = children.find(role);
    return found == children.end() ? nullptr : found->second.get();
  }
  bool is_null(std::string_view role) const {
    const auto found = children.find(role);
    return found != children.end() && !found->second;
  }
  /// The driver of a node that had none is this one; its other options are read.
  Result<void> decide(const Driver& format);
  /// The file at the bottom, as a name for people: of a format over a file the file's.  Empty where
  /// there is more to say.
  std::string plain_file() const;

 private:
  template <class T>
  std::optional<T> get(std::string_view name) const {
    for (const Setting& setting : settings) {
      if (setting.name == name) return std::get<T>(setting.value);
    }
    return std::nullopt;
  }
};
using DeviceTree = std::shared_ptr<DeviceNode>;

/// Is `name` more than a path: json:{...}, blkdebug:CONFIG:FILE, null-co://?
bool names_a_tree(std::string_view name);
/// What the user calls `name`: a path, or one of those.
Result<OptionTree> options_of_name(std::string_view name);

/// `file`: options of the node that is used when a node needs a file and nothing says which (a path
/// beside options); may be empty.
Result<DeviceTree> parse_device_tree(OptionTree options, const OptionTree& file = {});

/// The text of --image-opts.
Result<DeviceTree> parse_image_opts(std::string_view text);
/// A name, its format if the user gave one, and options beside it (`open -o`).
Result<DeviceTree> parse_device_name(std::string_view name,
                                     const std::optional<std::string>& format = std::nullopt,
                                     std::string_view options = {});

/// Several trees, each `driver=...,node-name=...` or `{...}`, as --blockdev has them: the one whose
/// node-name is `root`, with all that it refers to.  A node that nobody uses is an error.
Result<DeviceTree> parse_device_list(std::span<const std::string> texts, std::string_view root);

/// Other settings for a disk that is open, which is then opened again with them: how an image is
/// run, which part of a file a disk is.  What a disk is made of cannot be changed.
/// Invariant: an error changes nothing, and undo() makes the tree what it was.
class TreeChange {
 public:
  /// An option that is as `options` says already is taken.
  static Result<TreeChange> make(const DeviceTree& tree, OptionTree options);
  void undo();

 private:
  Result<void> change(const DeviceTree& node, OptionTree options);
  Result<void> change_own(DeviceNode& node, std::string_view key, const OptionTree& option);

  std::vector<std::pair<DeviceTree, DeviceNode>> before_;
};

/// Nodes that are open, by name: what a tree may refer to.
using OpenNodes = std::map<std::string, DeviceTree, std::less<>>;
/// One tree with a node-name, whose nodes may refer to `known` ones (DeviceNode::open).
Result<DeviceTree> parse_named_tree(OptionTree options, const OpenNodes& known);

/// For people: all drivers; the options of one.
std::string describe_drivers();
std::string describe_driver(const Driver& driver);

}  // namespace byre
