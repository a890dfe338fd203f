// SPDX-License-Identifier: Apache-2.0
#include "cli/io_layers.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <utility>

#include "cli/values.h"

namespace byre {

namespace {

/// Two slices: what a table cache needs.
constexpr uint64_t kTableCacheMin = 8 * KiB;

/// `a.b=1,a.c=2` as a tree.
struct OptionTree {
  std::optional<std::string> value;
  std::map<std::string, OptionTree, std::less<>> children;

  /// Takes a setting out.
  std::optional<std::string> take(std::string_view key) {
    const auto found = children.find(key);
    if (found == children.end() || !found->second.children.empty()) return std::nullopt;
    std::optional<std::string> taken = std::move(found->second.value);
    children.erase(found);
    return taken;
  }
  std::optional<OptionTree> take_tree(std::string_view key) {
    const auto found = children.find(key);
    if (found == children.end() || found->second.value) return std::nullopt;
    OptionTree taken = std::move(found->second);
    children.erase(found);
    return taken;
  }
  /// The whole name of some setting that is left.
  std::string first_left() const {
    const auto& [key, child] = *children.begin();
    return child.children.empty() ? key : cat(key, ".", child.first_left());
  }
};

Result<OptionTree> parse_option_tree(std::string_view text) {
  OptionList list;
  if (Result<void> result = parse_value(text, list); !result) return std::move(result).error();
  OptionTree tree;
  for (const auto& [key, value] : list.pairs) {
    OptionTree* at = &tree;
    for (std::string_view rest = key;;) {
      const size_t dot = std::min(rest.find('.'), rest.size());
      at = &at->children[std::string(rest.substr(0, dot))];
      if (dot == rest.size()) break;
      rest.remove_prefix(dot + 1);
    }
    at->value = value;
  }
  return tree;
}

std::string_view name_of(IoLayer::Driver driver) {
  switch (driver) {
    case IoLayer::Driver::file:
      return "file";
    case IoLayer::Driver::raw:
      return "raw";
    case IoLayer::Driver::qcow2:
      return "qcow2";
    case IoLayer::Driver::blkdebug:
      return "blkdebug";
    case IoLayer::Driver::probe:
      return "";
  }
  return "";
}

Result<IoLayer::Driver> find_driver(std::string_view name) {
  for (const auto driver : {IoLayer::Driver::file, IoLayer::Driver::raw, IoLayer::Driver::qcow2,
                            IoLayer::Driver::blkdebug}) {
    if (name_of(driver) == name) return driver;
  }
  return invalid("Unknown driver '", name, "'");
}

/// What every layer may be told.
Result<void> take_common(OptionTree& tree, IoLayer& layer) {
  if (const auto text = tree.take("read-only")) {
    BYRE_TRY(on, parse_bool_parameter(*text, "read-only"));
    layer.read_only = on;
  }
  if (const auto text = tree.take("discard")) {
    std::optional<DiscardPolicy> policy;
    if (Result<void> result = parse_value(*text, policy); !result) return result;
    layer.discard = policy;
  }
  if (auto cache = tree.take_tree("cache")) {
    if (const auto text = cache->take("direct")) {
      BYRE_TRY(on, parse_bool_parameter(*text, "cache.direct"));
      layer.direct = on;
    }
    if (const auto text = cache->take("no-flush")) {
      BYRE_TRY(on, parse_bool_parameter(*text, "cache.no-flush"));
      if (on) return unsupported("cache.no-flush=on is not supported: flushes are never dropped");
    }
    if (!cache->children.empty()) return invalid("no setting cache.", cache->first_left());
  }
  tree.take("node-name");
  return {};
}

/// Settings of QEMU's that byre has only one way for: that way may be named, no other.
struct OneWay {
  std::string_view key;
  std::string_view value;
  std::string_view why;
};
constexpr OneWay kOneWays[] = {
    {"l2-cache-entry-size", "4096", "L2 tables are cached in pieces of 4096 bytes"},
    {"cache-clean-interval", "0", "the cache keeps what fits its size"},
    {"pass-discard-request", "on", "use discard=ignore to keep blocks"},
    {"pass-discard-snapshot", "on", "use discard=ignore to keep blocks"},
    {"pass-discard-other", "on", "use discard=ignore to keep blocks"},
    {"overlap-check", "all", "every write of data is checked against all metadata"},
};

/// How an image is run.
Result<void> take_runtime(OptionTree& tree, IoLayer::Runtime& runtime) {
  const auto take = [&](std::string_view key) {
    std::optional<std::string> text = tree.take(key);
    if (text && runtime.first.empty()) runtime.first = key;
    return text;
  };
  if (const auto text = take("lazy-refcounts")) {
    BYRE_TRY(on, parse_bool_parameter(*text, "lazy-refcounts"));
    runtime.lazy_refcounts = on;
  }
  if (const auto text = take("discard-no-unref")) {
    BYRE_TRY(on, parse_bool_parameter(*text, "discard-no-unref"));
    runtime.discard_keeps = on;
  }
  if (const auto text = take("trust-refcounts")) {
    BYRE_TRY(on, parse_bool_parameter(*text, "trust-refcounts"));
    runtime.trust_refcounts = on;
  }
  std::optional<uint64_t> all;
  for (auto [key, size] :
       {std::pair("cache-size", &all), std::pair("l2-cache-size", &runtime.table_cache_size)}) {
    if (const auto text = take(key)) {
      BYRE_TRY(bytes, parse_size_parameter(*text, key));
      if (bytes < kTableCacheMin) {
        return invalid(key, " must be ", kTableCacheMin, " at least, not ", *text);
      }
      *size = bytes;
    }
  }
  if (all && runtime.table_cache_size && *runtime.table_cache_size > *all) {
    return invalid("l2-cache-size may not exceed cache-size");
  }
  if (!runtime.table_cache_size) runtime.table_cache_size = all;
  if (take("refcount-cache-size")) {
    return unsupported(
        "refcount-cache-size is not supported: refcounts are in memory, one byte for each cluster "
        "of the regions in use");
  }
  for (const OneWay& way : kOneWays) {
    const auto text = take(way.key);
    if (text && *text != way.value) {
      return unsupported(way.key, "=", *text, " is not supported, only ", way.value, ": ", way.why);
    }
  }
  return {};
}

/// inject-error.0.event=... and set-state.0.event=...
Result<void> take_faults(OptionTree& tree, IoLayer& layer) {
  if (const auto config = tree.take("config")) layer.fault_config = *config;
  for (const char* kind : {"inject-error", "set-state"}) {
    std::optional<OptionTree> list = tree.take_tree(kind);
    if (!list) continue;
    for (const auto& [number, settings] : list->children) {
      FaultSection section{.kind = kind, .settings = {}};
      for (const auto& [key, setting] : settings.children) {
        if (!setting.value) return invalid("no setting ", kind, ".", number, ".", key);
        section.settings.emplace_back(key, *setting.value);
      }
      if (Result<void> result = add_rule(layer.faults, section); !result) return result;
    }
  }
  return {};
}

Result<IoLayer> plan_layer(OptionTree tree, std::string_view path, IoLayer::Driver otherwise);

/// The layer below, under one of its names; `path` is its file when nothing else is said.
Result<void> take_below(OptionTree& tree, std::string_view path,
                        std::initializer_list<std::string_view> names, IoLayer& layer) {
  for (const std::string_view name : names) {
    if (const auto reference = tree.take(name)) {
      return invalid("Cannot find device='", *reference, "' nor node-name='", *reference, "'");
    }
    std::optional<OptionTree> child = tree.take_tree(name);
    if (!child) continue;
    BYRE_TRY(below, plan_layer(std::move(*child), path, IoLayer::Driver::file));
    layer.below = std::make_unique<IoLayer>(std::move(below));
    return {};
  }
  if (path.empty()) {
    return invalid("A block device must be specified for \"", *names.begin(), "\"");
  }
  layer.below = std::make_unique<IoLayer>(
      IoLayer{.driver = IoLayer::Driver::file, .file_name = std::string(path)});
  return {};
}

/// `otherwise`: the driver of a layer that does not name one.
Result<IoLayer> plan_layer(OptionTree tree, std::string_view path, IoLayer::Driver otherwise) {
  IoLayer layer{.driver = otherwise};
  if (const auto driver = tree.take("driver")) {
    BYRE_TRY(found, find_driver(*driver));
    layer.driver = found;
  }
  if (Result<void> result = take_common(tree, layer); !result) return std::move(result).error();
  switch (layer.driver) {
    case IoLayer::Driver::file: {
      const auto name = tree.take("filename");
      if (!name && path.empty()) return invalid("a file needs a filename");
      layer.file_name = name ? *name : std::string(path);
      if (const auto locking = tree.take("locking")) layer.lock = *locking != "off";
      tree.take("aio");
      break;
    }
    case IoLayer::Driver::blkdebug: {
      if (Result<void> result = take_faults(tree, layer); !result) {
        return std::move(result).error();
      }
      if (Result<void> result = take_below(tree, path, {"image", "x-image"}, layer); !result) {
        return std::move(result).error();
      }
      break;
    }
    case IoLayer::Driver::qcow2:
      if (const auto backing = tree.take("backing")) {
        if (!backing->empty()) return invalid("no device or node is called ", quoted(*backing));
        layer.without_backing = true;
      }
      [[fallthrough]];
    case IoLayer::Driver::probe:
      if (Result<void> result = take_runtime(tree, layer.runtime); !result) {
        return std::move(result).error();
      }
      [[fallthrough]];
    case IoLayer::Driver::raw: {
      if (Result<void> result = take_below(tree, path, {"file"}, layer); !result) {
        return std::move(result).error();
      }
      break;
    }
  }
  if (tree.children.empty()) return layer;
  const std::string unknown = tree.first_left();
  switch (layer.driver) {
    case IoLayer::Driver::probe:
      layer.runtime.unknown = unknown;
      return layer;
    case IoLayer::Driver::raw:
    case IoLayer::Driver::qcow2:
      return no_such_option(name_of(layer.driver), unknown);
    case IoLayer::Driver::file:
    case IoLayer::Driver::blkdebug:
      break;
  }
  return invalid("Block protocol '", name_of(layer.driver), "' doesn't support the option '",
                 unknown, "'");
}

}  // namespace

Error no_such_option(std::string_view format, std::string_view option) {
  return invalid("Block format '", format, "' does not support the option '", option, "'");
}

Result<IoLayer> plan_io_layers(const IoOpen& open) {
  OptionTree tree;
  std::string_view path = open.path;
  if (open.image_opts || !open.options.empty()) {
    BYRE_TRY(parsed, parse_option_tree(open.image_opts ? open.path : open.options));
    tree = std::move(parsed);
    if (open.image_opts) path = {};
    const bool has_driver = tree.children.contains("driver") || tree.children.contains("file");
    if (!has_driver && path.empty()) return invalid("Must specify either driver or file");
  }
  if (path.starts_with("json:")) return unsupported("json: names are not supported");
  if (path.starts_with("blkdebug:")) {
    path.remove_prefix(std::string_view("blkdebug:").size());
    const size_t colon = path.find(':');
    if (colon == std::string_view::npos) {
      return invalid("blkdebug requires both config and image path");
    }
    OptionTree& faults = tree.children["file"];
    faults.children["driver"].value = "blkdebug";
    if (colon > 0) faults.children["config"].value = std::string(path.substr(0, colon));
    path.remove_prefix(colon + 1);
  }
  if (open.format) tree.children["driver"].value = open.format;
  return plan_layer(std::move(tree), path, IoLayer::Driver::probe);
}

}  // namespace byre
