// SPDX-License-Identifier: Apache-2.0
#include "cli/secrets.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>

#include "cli/values.h"

namespace byre {

namespace {

constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
constexpr std::string_view kBase64 =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// No secret is longer; more than that is some other file.
constexpr size_t kSecretMax = size_t{1} << 20;

/// The kinds that QEMU's tools know, of which byre has the first.
constexpr std::array<std::string_view, 8> kOtherKinds = {
    "secret_keyring", "throttle-group",  "tls-creds-x509", "tls-creds-psk",
    "tls-creds-anon", "authz-list-file", "authz-simple",   "iothread"};

bool is_identifier(std::string_view text) {
  const auto may_follow = [](char c) {
    return kLetters.contains(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  };
  return !text.empty() && kLetters.contains(text[0]) && std::ranges::all_of(text, may_follow);
}

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

Result<void> check_kind(std::string_view kind) {
  if (kind == "secret") return {};
  if (std::ranges::find(kOtherKinds, kind) == kOtherKinds.end()) {
    return invalid("Parameter 'qom-type' does not accept value '", kind, "'");
  }
  if (kind == "iothread") return invalid("invalid object type: iothread");
  return unsupported("objects of type ", kind, " are not supported; there are secrets only");
}

/// The contents, from data= or file=.
Result<std::string> contents(OptionList& options) {
  const std::optional<std::string> data = options.take("data");
  const std::optional<std::string> file = options.take("file");
  const std::string format = options.take("format").value_or("raw");
  if (format != "raw" && format != "base64") {
    return invalid("Parameter 'format' does not accept value '", format, "'");
  }
  for (const std::string_view name : {"keyid", "iv"}) {
    if (options.take(name)) {
      return unsupported("secrets that another secret encrypts (", name, ") are not supported");
    }
  }
  if (!options.pairs.empty()) {
    return invalid("Parameter '", options.pairs[0].first, "' is unexpected");
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

}  // namespace

Result<void> parse_value(std::string_view text, std::vector<Secret>& secrets) {
  if (text.starts_with('{')) {
    return unsupported("an object as JSON is not supported; write secret,id=ID,data=TEXT");
  }
  OptionList options;
  if (!text.empty()) {
    if (Result<void> parsed = parse_value(text, options); !parsed) return parsed;
  }
  std::optional<std::string> kind = options.take("qom-type");
  // The first word needs no name.
  if (!kind && !options.pairs.empty() && text.substr(0, text.find(',')).find('=') == text.npos) {
    kind = std::string(text.substr(0, text.find(',')));
    options.pairs.erase(options.pairs.begin());
  }
  if (!kind) return invalid("Parameter 'qom-type' is missing");
  if (Result<void> known = check_kind(*kind); !known) return known;
  const std::optional<std::string> id = options.take("id");
  if (!id) return invalid("Parameter 'id' is missing");
  if (!is_identifier(*id)) {
    return invalid(
        "Parameter 'id' expects an identifier\n"
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.");
  }
  BYRE_TRY(data, contents(options));
  if (std::ranges::find(secrets, *id, &Secret::id) != secrets.end()) {
    return invalid("attempt to add duplicate property '", *id, "' to object (type 'container')");
  }
  secrets.push_back({.id = *id, .data = std::move(data)});
  return {};
}

}  // namespace byre
