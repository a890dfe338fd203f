// SPDX-License-Identifier: Apache-2.0
#include "job/device_tree.h"

#include <algorithm>

#include "job/device_settings.h"
#include "nbd/nbd_uri.h"

namespace byre {

namespace {

Error no_such_node(std::string_view name) {
  return invalid("Cannot find device='", name, "' nor node-name='", name, "'");
}

/// Reads trees; knows the nodes of earlier ones.
class TreeParser {
 public:
  explicit TreeParser(const OptionTree& file) : file_(file) {}

  /// `otherwise`: the driver of a node that names none; null: its first bytes decide.
  Result<DeviceTree> read(OptionTree options, const Driver* otherwise, uint32_t depth = 0) {
    if (depth > kTreeDepthMax) return too_deep();
    auto node = std::make_shared<DeviceNode>();
    node->driver = otherwise;
    node->is_implied = true;
    if (options.find("driver")) {
      const OptionTree driver = options.take("driver");
      if (driver.kind != OptionTree::Kind::text) {
        return invalid("Must specify either driver or file");
      }
      BYRE_TRY(found, find_driver(driver.value));
      node->driver = found;
      node->is_implied = false;
    }
    if (Result<void> common = read_common(*node, options); !common) {
      return std::move(common).error();
    }
    if (node->driver) {
      if (Result<void> own = read_own(*node, std::move(options), depth); !own) {
        return std::move(own).error();
      }
    } else {
      static constexpr ChildSpec kFile{.role = "file", .access = ChildAccess::storage};
      if (Result<void> file = read_child(*node, options, kFile, depth); !file) {
        return std::move(file).error();
      }
      node->undecided = std::move(options);
    }
    if (Result<void> named = remember(node); !named) return std::move(named).error();
    return node;
  }

  static bool is_list(const OptionSpec& spec) {
    return spec.type == OptionType::rules || spec.type == OptionType::words;
  }
  /// Takes those that are lists out of `options`.
  static Result<void> read_lists(DeviceNode& node, OptionTree& options) {
    for (const OptionSpec& spec : node.driver->options) {
      if (!is_list(spec) || !options.find(spec.name)) continue;
      const OptionTree list = options.take(spec.name);
      if (!list.is_group()) return no_such_option(*node.driver, spec.name);
      if (spec.type == OptionType::words) {
        BYRE_TRY(words, read_words(list, spec));
        node.settings.push_back({.name = spec.name, .value = std::move(words)});
      } else {
        BYRE_TRY(rules, read_rules(list, spec.name));
        node.settings.push_back({.name = spec.name, .value = std::move(rules)});
      }
    }
    return {};
  }

  /// The options and children that are the driver's.
  Result<void> read_own(DeviceNode& node, OptionTree options, uint32_t depth) {
    for (const ChildSpec& spec : node.driver->children) {
      if (node.children.contains(spec.role)) continue;
      if (Result<void> child = read_child(node, options, spec, depth); !child) return child;
    }
    if (&*node.driver == &kFileDriver && !options.find("filename") && file_.find("filename")) {
      options.children.emplace("filename", *file_.find("filename"));
    }
    if (Result<void> lists = read_lists(node, options); !lists) return lists;
    for (const auto& [key, option] : options.flattened()) {
      const OptionSpec* const spec = node.driver->find_option(key);
      if (!spec || is_list(*spec) || option->is_group()) {
        return no_such_option(*node.driver, key);
      }
      BYRE_TRY(setting, read_setting(*spec, *option));
      node.settings.push_back(std::move(setting));
    }
    return node.driver->check ? node.driver->check(node) : Result<void>();
  }

  /// Every node of earlier trees that has a name.
  std::map<std::string, DeviceTree, std::less<>>& names() { return names_; }

  /// The nodes of the tree that was read last can be referred to from here on.
  void end_tree() {
    for (auto& [name, node] : fresh_) names_.emplace(name, node);
    fresh_.clear();
  }

 private:
  static Error too_deep() {
    return invalid("The devices have more than ", kTreeDepthMax, " levels");
  }

  Result<void> remember(const DeviceTree& node) {
    if (node->node_name.empty()) return {};
    if (names_.contains(node->node_name) || !fresh_.emplace(node->node_name, node).second) {
      return invalid("Duplicate nodes with node-name='", node->node_name, "'");
    }
    return {};
  }

  Result<void> read_common(DeviceNode& node, OptionTree& options) {
    OptionTree cache;
    if (const OptionTree* given = options.find("cache"); given && given->is_group()) {
      cache = options.take("cache");
      for (const auto& [key, option] : cache.flattened()) {
        if (key != "direct" && key != "no-flush") {
          return invalid("Invalid parameter 'cache.", key, "'");
        }
        options.children.emplace(cat("cache.", key), *option);
      }
    }
    for (const OptionSpec& spec : common_options()) {
      if (!options.find(spec.name)) continue;
      const OptionTree option = options.take(spec.name);
      if (Result<void> read = read_common_setting(node, spec, option); !read) return read;
    }
    return {};
  }
  Result<void> read_child(DeviceNode& node, OptionTree& options, const ChildSpec& spec,
                          uint32_t depth) {
    const std::string_view key =
        !options.find(spec.role) && !spec.alias.empty() && options.find(spec.alias) ? spec.alias
                                                                                    : spec.role;
    if (!options.find(key)) return read_default_child(node, spec, depth);
    OptionTree option = options.take(key);
    const bool is_null = option.kind == OptionTree::Kind::null ||
                         (option.kind == OptionTree::Kind::text && option.value.empty());
    if (is_null && spec.may_be_null) {
      node.children.emplace(spec.role, nullptr);
      return {};
    }
    if (is_null) return no_child(spec);
    if (option.kind == OptionTree::Kind::text) {
      const auto found = names_.find(option.value);
      if (found == names_.end()) return no_such_node(option.value);
      return adopt(node, spec, found->second, depth);
    }
    if (!option.is_group()) {
      return invalid("Parameter '", key, "' expects a device, or the node-name of one");
    }
    // A storage is a file unless it says otherwise; a disk below may be of any format.
    const bool is_disk = spec.access == ChildAccess::below;
    if (is_disk && !option.find("driver") && !option.find("file")) {
      return invalid("Must specify either driver or file");
    }
    const Driver* const otherwise = is_disk ? nullptr : &kFileDriver;
    BYRE_TRY(child, read(std::move(option), otherwise, depth + 1));
    return adopt(node, spec, std::move(child), depth);
  }
  Result<void> read_default_child(DeviceNode& node, const ChildSpec& spec, uint32_t depth) {
    if (!spec.required) return {};
    if (file_.children.empty()) return no_child(spec);
    BYRE_TRY(child, read(file_, &kFileDriver, depth + 1));
    return adopt(node, spec, std::move(child), depth);
  }
  static Error no_child(const ChildSpec& spec) {
    return invalid("A block device must be specified for \"", spec.role, "\"");
  }
  static Result<void> adopt(DeviceNode& node, const ChildSpec& spec, DeviceTree child,
                            uint32_t depth) {
    if (depth + child->height > kTreeDepthMax) return too_deep();
    ++child->parents;
    node.height = std::max(node.height, child->height + 1);
    node.children.emplace(spec.role, std::move(child));
    return {};
  }

  const OptionTree& file_;
  std::map<std::string, DeviceTree, std::less<>> names_;
  std::map<std::string, DeviceTree, std::less<>> fresh_;  ///< Of the tree that is being read.
};

bool has_brace(std::string_view text) { return text.starts_with('{'); }

Result<OptionTree> options_of_protocol(std::string_view name, uint32_t depth);

Result<OptionTree> options_of_blkdebug(std::string_view rest, uint32_t depth) {
  const size_t colon = rest.find(':');
  if (colon == std::string_view::npos) {
    return invalid("blkdebug requires both config file and image path");
  }
  OptionTree tree;
  if (Result<void> added = add_option(tree, "driver", "blkdebug"); !added) {
    return std::move(added).error();
  }
  if (colon > 0) {
    Result<void> added = add_option(tree, "config", std::string(rest.substr(0, colon)));
    if (!added) return std::move(added).error();
  }
  BYRE_TRY(image, options_of_protocol(rest.substr(colon + 1), depth + 1));
  tree.children.emplace("image", std::move(image));
  return tree;
}

Result<OptionTree> options_of_nbd(std::string_view name) {
  BYRE_TRY(uri, nbd::parse_uri(name));
  std::vector<std::pair<std::string_view, std::string>> options = {{"driver", "nbd"}};
  if (uri.socket) {
    options.emplace_back("path", *uri.socket);
  } else {
    options.emplace_back("host", uri.host);
    options.emplace_back("port", cat(uri.port));
  }
  if (!uri.export_name.empty()) options.emplace_back("export", uri.export_name);
  OptionTree tree;
  for (const auto& [key, value] : options) {
    if (Result<void> added = add_option(tree, key, value); !added) return std::move(added).error();
  }
  return tree;
}

/// The options of the node that a path or the name of a protocol means.
Result<OptionTree> options_of_protocol(std::string_view name, uint32_t depth) {
  constexpr uint32_t kNamesMax = 8;  // One in the other: blkdebug::blkdebug::x
  if (name.starts_with("blkdebug:")) {
    if (depth > kNamesMax) return invalid("the name has more than ", kNamesMax, " levels");
    return options_of_blkdebug(name.substr(9), depth);
  }
  if (nbd::looks_like_uri(name)) return options_of_nbd(name);
  OptionTree tree;
  for (const std::string_view driver : {"null-co", "null-aio"}) {
    if (!name.starts_with(cat(driver, ":"))) continue;
    if (name != cat(driver, "://")) {
      return invalid("The only allowed filename for this driver is '", driver, "://'");
    }
    if (Result<void> added = add_option(tree, "driver", std::string(driver)); !added) {
      return std::move(added).error();
    }
    return tree;
  }
  BYRE_TRY(path, path_of(name));
  if (Result<void> added = add_option(tree, "filename", path); !added) {
    return std::move(added).error();
  }
  return tree;
}

/// Marks all that can be reached.
void mark_used(const DeviceNode& node, std::map<const DeviceNode*, bool>& used) {
  if (std::exchange(used[&node], true)) return;
  for (const auto& [role, child] : node.children) {
    if (child) mark_used(*child, used);
  }
}

}  // namespace

Result<void> DeviceNode::decide(const Driver& format) {
  BYRE_ASSERT(!driver);
  driver = &format;
  was_decided = true;
  const OptionTree nothing;
  return TreeParser(nothing).read_own(*this, std::exchange(undecided, {}), 0);
}

std::string DeviceNode::plain_file() const {
  const DeviceNode* at = this;
  if (at->driver != &kFileDriver) {
    if (!settings.empty() && driver == &kRawDriver) return {};
    at = child("file");
  }
  if (!at || !at->driver || !at->driver->is_protocol || !at->driver->find_option("filename")) {
    return {};
  }
  return at->text("filename").value_or("");
}

bool names_a_tree(std::string_view name) {
  for (const std::string_view prefix : {"json:", "blkdebug:", "null-co:", "null-aio:"}) {
    if (name.starts_with(prefix)) return true;
  }
  return nbd::looks_like_uri(name);
}

Result<OptionTree> options_of_name(std::string_view name) {
  if (name.starts_with("json:")) return parse_json_options(name.substr(5));
  BYRE_TRY(protocol, options_of_protocol(name, 0));
  OptionTree tree;  // Over it lies a format, which its first bytes tell.
  tree.children.emplace("file", std::move(protocol));
  return tree;
}

Result<DeviceTree> parse_device_tree(OptionTree options, const OptionTree& file) {
  const bool known = options.find("driver") || options.find("file") || !file.children.empty();
  if (!known) return invalid("Must specify either driver or file");
  TreeParser parser(file);
  return parser.read(std::move(options), nullptr);
}

Result<DeviceTree> parse_image_opts(std::string_view text) {
  if (text.empty()) return invalid("Must specify either driver or file");
  BYRE_TRY(options, parse_option_list(text));
  const bool is_word = text.find_first_of("=,") == std::string_view::npos;
  if (is_word) return no_such_node(text);
  return parse_device_tree(std::move(options));
}

Result<DeviceTree> parse_device_name(std::string_view name,
                                     const std::optional<std::string>& format,
                                     std::string_view text) {
  OptionTree options;
  if (!text.empty()) {
    BYRE_TRY(parsed, parse_option_list(text));
    options = std::move(parsed);
  }
  OptionTree file;
  if (!name.empty()) {
    BYRE_TRY(named, options_of_name(name));
    if (name.starts_with("json:")) {
      for (auto& [key, option] : named.children) {
        if (!options.children.emplace(key, std::move(option)).second) {
          return invalid("Option '", key, "' is given twice");
        }
      }
    } else {
      OptionTree below = named.take("file");
      if (below.find("driver")) {
        if (options.find("file")) return invalid("Option 'file' is given twice");
        options.children.emplace("file", std::move(below));
      } else {
        file = std::move(below);
      }
    }
  }
  if (format) {
    const OptionTree* const said = options.find("driver");
    if (said && said->value != *format) {
      return invalid("-f says ", *format, ", and ", quoted(text.empty() ? name : text), " says ",
                     said->value);
    }
    if (!said) {
      if (Result<void> added = add_option(options, "driver", *format); !added) {
        return std::move(added).error();
      }
    }
  }
  return parse_device_tree(std::move(options), file);
}

Result<DeviceTree> parse_device_list(std::span<const std::string> texts, std::string_view root) {
  uint64_t bytes = 0;
  for (const std::string& text : texts) bytes += text.size();
  if (bytes > kTreeTextMax) {
    return invalid("The options take ", bytes, " bytes, at most ", kTreeTextMax);
  }
  const OptionTree nothing;
  TreeParser parser(nothing);
  std::vector<DeviceTree> trees;
  for (const std::string& text : texts) {
    Result<OptionTree> options =
        has_brace(text) ? parse_json_options(text) : parse_option_list(text);
    if (!options) return std::move(options).error();
    if (!options->find("driver")) return invalid("Parameter 'driver' is missing");
    if (!options->find("node-name")) {
      return invalid("'node-name' must be specified for the root node");
    }
    BYRE_TRY(tree, parser.read(*std::move(options), nullptr));
    trees.push_back(std::move(tree));
    parser.end_tree();
  }
  const auto found = parser.names().find(root);
  if (found == parser.names().end()) return no_such_node(root);
  std::map<const DeviceNode*, bool> used;
  mark_used(*found->second, used);
  for (const DeviceTree& tree : trees) {
    if (!used.contains(tree.get())) {
      return invalid("node-name='", tree->node_name, "' is used by nobody");
    }
  }
  return found->second;
}

Result<DeviceTree> parse_named_tree(OptionTree options, const OpenNodes& known) {
  const OptionTree nothing;
  TreeParser parser(nothing);
  if (!options.find("driver")) return invalid("Parameter 'driver' is missing");
  if (!options.find("node-name")) {
    return invalid("'node-name' must be specified for the root node");
  }
  parser.names() = known;
  return parser.read(std::move(options), nullptr);
}

// --- For people ----------------------------------------------------------------------------------

namespace {

std::string_view type_text(OptionType type) {
  switch (type) {
    case OptionType::text:
      return "text";
    case OptionType::boolean:
      return "on or off";
    case OptionType::size:
      return "size";
    case OptionType::number:
      return "number";
    case OptionType::choice:
      return "one of";
    case OptionType::rules:
      return "list";
    case OptionType::words:
      return "list of";
  }
  return "";
}

std::string describe(const OptionSpec& spec) {
  std::string line = cat("  ", spec.name, "=<", type_text(spec.type));
  if (!spec.choices.empty()) line += cat(" ", spec.choices);
  line += cat("> - ", spec.help);
  if (!spec.fallback.empty()) line += cat(" (default: ", spec.fallback, ")");
  if (!spec.only.empty()) line += cat("; only ", spec.only, ": ", spec.why);
  if (spec.only.empty() && !spec.why.empty()) line += cat("; not supported: ", spec.why);
  return line + "\n";
}

}  // namespace

std::string describe_drivers() {
  std::string out = "Drivers:\n";
  for (const Driver* driver : all_drivers())
    out += cat("  ", driver->name, " - ", driver->summary, "\n");
  out += "Options of every driver:\n";
  for (const OptionSpec& spec : common_options()) out += describe(spec);
  return out;
}

std::string describe_driver(const Driver& driver) {
  std::string out = cat(driver.name, " - ", driver.summary, "\n");
  if (!driver.children.empty()) out += "Devices below it:\n";
  for (const ChildSpec& child : driver.children) {
    out +=
        cat("  ", child.role, " - ", child.help, child.required ? "" : " (may be left out)", "\n");
  }
  if (!driver.options.empty()) out += "Options:\n";
  for (const OptionSpec& spec : driver.options) out += describe(spec);
  return out;
}

}  // namespace byre
