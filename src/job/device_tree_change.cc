// SPDX-License-Identifier: Apache-2.0
/// TreeChange: other settings for the nodes of a tree.
#include <algorithm>

#include "job/device_settings.h"

namespace byre {

namespace {

Error cannot_change(std::string_view key) {
  return invalid("Cannot change the option '", key, "'");
}

bool is_list(const OptionSpec& spec) {
  return spec.type == OptionType::rules || spec.type == OptionType::words;
}

/// Is a common setting of `node` that cannot change what `option` says?
bool says_the_same(const DeviceNode& node, const OptionSpec& spec, const OptionTree& option) {
  DeviceNode told = node;
  if (!read_common_setting(told, spec, option)) return false;
  return told.node_name == node.node_name && told.force_share == node.force_share;
}

void put_setting(DeviceNode& node, Setting setting) {
  const auto found = std::ranges::find(node.settings, setting.name, &Setting::name);
  if (found == node.settings.end()) {
    node.settings.push_back(std::move(setting));
  } else {
    found->value = std::move(setting.value);
  }
}

}  // namespace

Result<TreeChange> TreeChange::make(const DeviceTree& tree, OptionTree options) {
  TreeChange change;
  if (Result<void> changed = change.change(tree, std::move(options)); !changed) {
    change.undo();
    return std::move(changed).error();
  }
  return change;
}

void TreeChange::undo() {
  while (!before_.empty()) {
    auto& [node, was] = before_.back();
    *node = std::move(was);
    before_.pop_back();
  }
}

Result<void> TreeChange::change(const DeviceTree& node, OptionTree options) {
  before_.emplace_back(node, *node);
  for (const ChildSpec& spec : node->driver->children) {
    const auto child = node->children.find(spec.role);
    const bool has_child = child != node->children.end() && child->second;
    const OptionTree* const wanted = options.find(spec.role);
    if (!wanted) continue;
    if (wanted->kind == OptionTree::Kind::text) {
      if (has_child && !wanted->value.empty() && wanted->value == child->second->node_name) {
        (void)options.take(spec.role);
        continue;
      }
      return invalid("Cannot find device='' nor node-name='", wanted->value, "'");
    }
    if (!wanted->is_group() || !has_child) continue;  // An option that cannot change, below.
    const DeviceTree below = child->second;
    if (Result<void> changed = change(below, options.take(spec.role)); !changed) return changed;
  }
  for (const auto& [key, option] : options.flattened()) {
    if (Result<void> changed = change_own(*node, key, *option); !changed) return changed;
  }
  return node->driver->check ? node->driver->check(*node) : Result<void>();
}

Result<void> TreeChange::change_own(DeviceNode& node, std::string_view key,
                                    const OptionTree& option) {
  if (key == "driver") {
    return option.value == node.driver->name ? Result<void>() : cannot_change(key);
  }
  const std::span<const OptionSpec> common = common_options();
  if (const auto spec = std::ranges::find(common, key, &OptionSpec::name); spec != common.end()) {
    if (spec->changeable) return read_common_setting(node, *spec, option);
    return says_the_same(node, *spec, option) ? Result<void>() : cannot_change(key);
  }
  const OptionSpec* const spec = node.driver->find_option(key);
  if (!spec || is_list(*spec) || option.is_group()) return cannot_change(key);
  Result<Setting> setting = read_setting(*spec, option);
  if (spec->changeable) {
    if (!setting) return std::move(setting).error();
    put_setting(node, *std::move(setting));
    return {};
  }
  const auto now = std::ranges::find(node.settings, key, &Setting::name);
  const bool same = setting && now != node.settings.end() && now->value == setting->value;
  return same ? Result<void>() : cannot_change(key);
}

}  // namespace byre
