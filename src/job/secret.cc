// SPDX-License-Identifier: Apache-2.0
#include "job/secret.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>

namespace byre {

namespace {

constexpr std::string_view kBase64 =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// No secret is longer; more than that is some other file.
constexpr size_t kSecretMax = size_t{1} << 20;

Result<std::string> decode_base64(std::string_view text) {
  const auto is_blank = [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; };
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  size_t padding = 0;
  for (const char c : text) {
    if (is_blank(c)) continue;
    const size_t value = kBase64.find(c);
    if (c == '=') {
      ++padding;
    } else if (value == std::string_view::npos || padding != 0) {
      return invalid("Base64 data contains invalid characters");
    } else {
      bits = bits << 6 | static_cast<uint32_t>(value);
      count += 6;
    }
    if (count < 8) continue;
    count -= 8;
    out += static_cast<char>(bits >> count & 0xff);
  }
  if (count == 6 || padding > 2) return invalid("Base64 data is not complete");
  return out;
}

Result<std::string> read_secret_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    const int problem = errno;
    return errno_error(problem, cat("Unable to read ", path, ": Failed to open file “", path, "”"));
  }
  std::string data;
  data.resize(kSecretMax + 1);
  file.read(data.data(), static_cast<std::streamsize>(data.size()));
  data.resize(static_cast<size_t>(file.gcount()));
  if (data.size() > kSecretMax) {
    return invalid("Unable to read ", path, ": it has more than ", kSecretMax, " bytes");
  }
  return data;
}

/// An option that may be missing.
Result<std::optional<std::string>> take_text(OptionTree& options, std::string_view key) {
  if (!options.find(key)) return std::optional<std::string>();
  OptionTree option = options.take(key);
  if (option.kind != OptionTree::Kind::text) {
    return invalid("Invalid parameter type for '", key, "', expected: string");
  }
  return std::optional(std::move(option.value));
}

}  // namespace

Result<std::string> read_secret(OptionTree options) {
  BYRE_TRY(data, take_text(options, "data"));
  BYRE_TRY(file, take_text(options, "file"));
  BYRE_TRY(given_format, take_text(options, "format"));
  const std::string format = given_format.value_or("raw");
  if (format != "raw" && format != "base64") {
    return invalid("Parameter 'format' does not accept value '", format, "'");
  }
  for (const std::string_view name : {"keyid", "iv"}) {
    if (options.find(name)) {
      return unsupported("secrets that another secret encrypts (", name, ") are not supported");
    }
  }
  if (!options.children.empty()) {
    return invalid("Parameter '", options.children.begin()->first, "' is unexpected");
  }
  if (data && file) return invalid("'file' and 'data' are mutually exclusive");
  if (!data && !file) return invalid("Either 'file' or 'data' must be provided");
  std::string text = data.value_or("");
  if (file) {
    BYRE_TRY(read, read_secret_file(*file));
    text = std::move(read);
  }
  if (format == "raw") return text;
  return decode_base64(text);
}

}  // namespace byre
