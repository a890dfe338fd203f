// SPDX-License-Identifier: Apache-2.0
#include "job/objects.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "base/option_text.h"
#include "job/secret.h"

namespace byre {

namespace {

struct LimitName {
  std::string_view name;
  ThrottleLimit ThrottleLimits::* limit;
};
constexpr LimitName kLimits[] = {
    {"bps-total", &ThrottleLimits::bps_total}, {"bps-read", &ThrottleLimits::bps_read},
    {"bps-write", &ThrottleLimits::bps_write}, {"iops-total", &ThrottleLimits::iops_total},
    {"iops-read", &ThrottleLimits::iops_read}, {"iops-write", &ThrottleLimits::iops_write}};

/// QEMU's, which byre does not have.
constexpr std::string_view kOthers[] = {
    "secret_keyring",    "tls-creds-anon", "tls-creds-psk",   "tls-creds-x509",
    "tls-cipher-suites", "authz-list",     "authz-list-file", "authz-pam",
    "authz-simple",      "iothread",       "main-loop",       "pr-manager-helper"};

constexpr std::string_view kOfIoThreads[] = {"poll-max-ns",   "poll-grow",       "poll-shrink",
                                             "aio-max-batch", "thread-pool-min", "thread-pool-max"};

/// The first word may be the type by itself.
Result<OptionTree> options_of(std::string_view text) {
  if (text.empty()) return OptionTree();
  if (text.starts_with('{')) return parse_json_options(text);
  const size_t end = text.find_first_of(",=");
  const bool is_word = end == std::string_view::npos || text[end] == ',';
  return parse_option_list(is_word ? cat("qom-type=", text) : std::string(text));
}

Result<std::string> take_text(OptionTree& options, std::string_view key) {
  if (!options.find(key)) return invalid("Parameter '", key, "' is missing");
  OptionTree option = options.take(key);
  if (option.kind != OptionTree::Kind::text)
    return invalid("Invalid parameter type for '", key, "', expected: string");
  return std::move(option.value);
}

bool is_identifier(std::string_view id) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !id.empty() && is_letter(id[0]) && std::ranges::all_of(id, [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

/// "limits.iops-total", or "x-iops-total" as older programs write it.
Result<ThrottleLimits> read_limits(const OptionTree& options) {
  ThrottleLimits limits;
  std::map<const uint64_t*, std::string> seen;
  for (const auto& [key, option] : options.flattened()) {
    if (key == "limits" && option->is_group()) continue;  // It is empty: nothing is limited.
    std::string_view name = key;
    uint64_t* number = nullptr;
    for (const std::string_view prefix : {"limits.", "x-"}) {
      if (name.starts_with(prefix)) number = find_limit(limits, name.substr(prefix.size()));
    }
    if (!number || option->is_group()) return invalid("Parameter '", key, "' is unexpected");
    const auto [other, fresh] = seen.emplace(number, key);
    if (!fresh) return invalid("'", key, "' and '", other->second, "' are the same limit");
    const bool is_number =
        option->kind == OptionTree::Kind::number || option->kind == OptionTree::Kind::text;
    const Result<uint64_t> value =
        parse_number(option->value, 0, std::numeric_limits<uint64_t>::max());
    if (!is_number || !value) return invalid("Parameter '", key, "' expects integer");
    *number = *value;
  }
  if (Result<void> sound = check_throttle_limits(limits); !sound) return std::move(sound).error();
  return limits;
}

/// How it polls and how many workers it has would be settings of a thread that there is not.
Result<void> check_io_thread(const OptionTree& options) {
  for (const auto& [key, option] : options.flattened()) {
    if (std::ranges::find(kOfIoThreads, key) == std::end(kOfIoThreads))
      return invalid("Parameter '", key, "' is unexpected");
    if (!parse_number(option->value, 0, INT64_MAX))
      return invalid("Parameter '", key, "' expects integer");
  }
  return {};
}

}  // namespace

uint64_t* find_limit(ThrottleLimits& limits, std::string_view name) {
  if (name == "iops-size") return &limits.iops_size;
  for (const LimitName& one : kLimits) {
    if (!name.starts_with(one.name)) continue;
    ThrottleLimit& limit = limits.*one.limit;
    const std::string_view rest = name.substr(one.name.size());
    if (rest.empty()) return &limit.average;
    if (rest == "-max") return &limit.max;
    if (rest == "-max-length") return &limit.max_length;
  }
  return nullptr;
}

std::vector<std::pair<std::string, uint64_t>> all_limits(const ThrottleLimits& limits) {
  std::vector<std::pair<std::string, uint64_t>> all;
  for (const LimitName& one : kLimits) {
    const ThrottleLimit& limit = limits.*one.limit;
    all.emplace_back(one.name, limit.average);
    all.emplace_back(cat(one.name, "-max"), limit.max);
    all.emplace_back(cat(one.name, "-max-length"), limit.max_length);
  }
  all.emplace_back("iops-size", limits.iops_size);
  return all;
}

Result<void> Objects::add(std::string_view text, IoThreads threads) {
  BYRE_TRY(options, options_of(text));
  BYRE_TRY(type, take_text(options, "qom-type"));
  const bool is_thread = type == "iothread" && threads == IoThreads::taken;
  if (!is_thread && std::ranges::find(kOthers, type) != std::end(kOthers)) {
    return unsupported("--object ", type,
                       " is not supported: there are no TLS credentials or threads here yet, only "
                       "secret and throttle-group");
  }
  if (!is_thread && type != "throttle-group" && type != "secret")
    return invalid("Parameter 'qom-type' does not accept value '", type, "'");
  BYRE_TRY(id, take_text(options, "id"));
  if (!is_identifier(id)) {
    return invalid(
        "Parameter 'id' expects an identifier\n"
        "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.");
  }
  const bool is_known = contains(id);
  const auto again = [&id] {
    return invalid("attempt to add duplicate property '", id, "' to object (type 'container')");
  };
  if (type == "secret") {
    BYRE_TRY(data, read_secret(std::move(options)));
    if (is_known) return again();
    secrets_.emplace(id, std::move(data));
    return {};
  }
  if (is_thread) {
    if (Result<void> sound = check_io_thread(options); !sound) return sound;
    if (is_known) return again();
    io_threads_.emplace(id);
    return {};
  }
  BYRE_TRY(limits, read_limits(options));
  if (is_known) return again();
  groups_.emplace(id, Group{.limits = limits, .group = nullptr});
  return {};
}

Result<void> Objects::remove(std::string_view id) {
  if (const auto thread = io_threads_.find(id); thread != io_threads_.end()) {
    io_threads_.erase(thread);
    return {};
  }
  if (const auto group = groups_.find(id); group != groups_.end()) {
    if (group->second.group.use_count() > 1) {
      return Error(Errc::busy, cat("object '", id, "' is in use, can not be deleted"));
    }
    groups_.erase(group);
    return {};
  }
  const auto secret = secrets_.find(id);
  if (secret == secrets_.end()) {
    return Error(Errc::not_found, cat("object '", id, "' not found"));
  }
  secrets_.erase(secret);
  return {};
}

std::vector<std::pair<std::string, std::string>> Objects::list() const {
  std::vector<std::pair<std::string, std::string>> all;
  for (const auto& [id, group] : groups_) all.emplace_back(id, "throttle-group");
  for (const auto& [id, secret] : secrets_) all.emplace_back(id, "secret");
  for (const std::string& id : io_threads_) all.emplace_back(id, "iothread");
  return all;
}

const ThrottleLimits* Objects::limits(std::string_view id) const {
  const auto found = groups_.find(id);
  return found == groups_.end() ? nullptr : &found->second.limits;
}

const std::string* Objects::secret(std::string_view id) const {
  const auto found = secrets_.find(id);
  return found == secrets_.end() ? nullptr : &found->second;
}

std::shared_ptr<ThrottleGroup> Objects::throttle_group(std::string_view id, Reactor& reactor) {
  const auto found = groups_.find(id);
  if (found == groups_.end()) return nullptr;
  std::shared_ptr<ThrottleGroup>& group = found->second.group;
  if (!group) group = std::make_shared<ThrottleGroup>(reactor, found->second.limits);
  return group;
}

}  // namespace byre
