// SPDX-License-Identifier: Apache-2.0
#include "cli/image_spec.h"

#include <map>
#include <nlohmann/json.hpp>

#include "cli/values.h"

namespace byre {

namespace {

/// "file.driver" -> "qcow2"; no value is JSON's null.
using Keys = std::map<std::string, std::optional<std::string>>;

/// More layers than there are kinds of them.
constexpr int kDepthMax = 8;

Result<void> flatten(const nlohmann::json& from, const std::string& prefix, Keys& to,
                     int depth = 0) {
  if (depth > kDepthMax) return invalid("json: objects are nested too deeply");
  for (const auto& [key, value] : from.items()) {
    const std::string name = prefix + key;
    if (value.is_object()) {
      if (Result<void> inner = flatten(value, name + ".", to, depth + 1); !inner) return inner;
    } else if (value.is_null()) {
      to[name] = std::nullopt;
    } else if (value.is_string()) {
      to[name] = value.get<std::string>();
    } else if (value.is_number_unsigned()) {
      to[name] = cat(value.get<uint64_t>());
    } else if (value.is_boolean()) {
      to[name] = value.get<bool>() ? "on" : "off";
    } else {
      return invalid("json: '", name, "' is neither a name, a number nor an object");
    }
  }
  return {};
}

/// Takes what is known out of `keys`, layer by layer from the top; what is left is not known.
class Reader {
 public:
  explicit Reader(Keys& keys) : keys_(keys) {}

  Result<ImageSpec> read() {
    BYRE_TRY(top, take("driver"));
    std::string driver = top;
    if (driver == "compress") {
      spec_.compress = true;
      BYRE_TRY(below, go_down());
      driver = below;
    }
    const bool is_file = driver == "file" || driver == "host_device";
    if (is_file) {
      spec_.format = "raw";  // The bytes of the file themselves.
    } else if (!driver.empty() || !has("filename")) {
      if (Result<void> format = read_format(driver); !format) return std::move(format).error();
      BYRE_TRY(below, go_down());
      driver = below;
    }
    if (Result<void> file = read_file(driver); !file) return std::move(file).error();
    if (!keys_.empty()) {
      return unsupported("image option '", keys_.begin()->first,
                         "' is not supported; a file, its format (raw or qcow2), backing=null, "
                         "compress, and offset and size of a raw disk are");
    }
    return std::move(spec_);
  }

 private:
  /// The driver of the layer below; empty when it says none.
  Result<std::string> go_down() {
    prefix_ += "file.";
    return take("driver");
  }
  Result<std::string> take(const std::string& key) {
    const auto found = keys_.find(prefix_ + key);
    if (found == keys_.end()) return std::string();
    const std::optional<std::string> value = std::move(found->second);
    keys_.erase(found);
    if (!value || value->empty()) return invalid("image option '", prefix_, key, "' has no value");
    return *value;
  }
  bool has(const std::string& key) const { return keys_.contains(prefix_ + key); }

  /// Of the layer above the file.  Without a driver the file's first bytes decide.
  Result<void> read_format(const std::string& driver) {
    if (driver.empty()) return {};
    if (driver != "raw" && driver != "qcow2") {
      return unsupported("Unknown driver '", driver, "'; there are raw, qcow2, compress and file");
    }
    spec_.format = driver;
    if (driver == "raw") {
      for (const auto& [key, part] : {std::pair("offset", &spec_.offset), {"size", &spec_.size}}) {
        if (!has(key)) continue;
        BYRE_TRY(text, take(key));
        BYRE_TRY(bytes, parse_size(text));
        *part = bytes;
      }
      return {};
    }
    const auto backing = keys_.find(prefix_ + "backing");
    if (backing == keys_.end()) return {};
    if (backing->second && !backing->second->empty()) {
      return unsupported("image option '", backing->first, "' can only be null");
    }
    spec_.without_backing = true;
    keys_.erase(backing);
    return {};
  }

  Result<void> read_file(const std::string& driver) {
    if (driver == "raw") {
      return unsupported("an image inside a part of another file is not supported");
    }
    if (!driver.empty() && driver != "file" && driver != "host_device") {
      return unsupported("Unknown protocol driver '", driver, "'; there is file");
    }
    BYRE_TRY(path, take("filename"));
    if (path.empty()) return invalid("image option '", prefix_, "filename' is missing");
    if (path.find('\0') != std::string::npos) {
      return invalid("image option '", prefix_, "filename' has a zero byte");
    }
    // How the kernel is asked is byre's own choice, as with --aio.
    BYRE_TRY(aio, take("aio"));
    if (!aio.empty() && aio != "threads" && aio != "native" && aio != "io_uring") {
      return invalid("invalid aio mode '", aio, "'");
    }
    // Messages and the server's own output show it as it is, unless it would mean a protocol.
    const bool has_colon = path.substr(0, path.find('/')).find(':') != std::string::npos;
    spec_.file = has_colon ? cat("file:", path) : path;
    return {};
  }

  Keys& keys_;
  std::string prefix_;
  ImageSpec spec_;
};

}  // namespace

Result<ImageSpec> parse_json_name(std::string_view name) {
  if (!name.starts_with("json:")) return invalid("not a json: name");
  const nlohmann::json parsed =
      nlohmann::json::parse(name.substr(5), nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return invalid("Could not parse the JSON options");
  Keys keys;
  if (Result<void> flat = flatten(parsed, "", keys); !flat) return std::move(flat).error();
  return Reader(keys).read();
}

Result<ImageSpec> parse_image_opts(std::string_view text) {
  OptionList list;
  if (Result<void> parsed = parse_value(text, list); !parsed) return std::move(parsed).error();
  Keys keys;
  for (const auto& [key, value] : list.pairs) keys[key] = value;
  if (keys.empty()) return invalid("--image-opts: no options");
  return Reader(keys).read();
}

}  // namespace byre
