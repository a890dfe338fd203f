// SPDX-License-Identifier: Apache-2.0
#include "job/device_settings.h"

#include <algorithm>
#include <limits>

#include "base/option_text.h"

namespace byre {

namespace {

/// Calls `each` with every word of `list`, which has spaces between them.
template <class Each>
void for_each_word(std::string_view list, Each each) {
  while (!list.empty()) {
    const size_t end = std::min(list.find(' '), list.size());
    each(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
}

/// 'x' as one of the words of `choices`.
Result<void> check_choice(std::string_view choices, std::string_view name, std::string_view text) {
  bool known = false;
  for_each_word(choices, [&](std::string_view word) { known |= word == text; });
  if (known) return {};
  std::string all;
  for_each_word(choices, [&](std::string_view word) { all += cat(all.empty() ? "" : ", ", word); });
  return invalid("Parameter '", name, "' does not accept value '", text, "' (", all, ")");
}

Result<bool> read_flag(const OptionTree& option, std::string_view name) {
  if (option.kind == OptionTree::Kind::number) {
    return invalid("Parameter '", name, "' expects 'on' or 'off'");
  }
  return parse_bool_parameter(option.value, name);
}

Result<void> check_node_name(std::string_view name) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  bool good = !name.empty() && name.size() < 32 && is_letter(name[0]);
  for (const char c : name) {
    good &= is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  }
  return good ? Result<void>() : invalid("Invalid node-name: '", name, "'");
}

Result<void> read_mode(DeviceNode& node, std::string_view name, const std::string& text) {
  if (name == "discard") {
    if (text == "unmap" || text == "on") node.discard = DiscardPolicy::unmap;
    if (text == "ignore" || text == "off") node.discard = DiscardPolicy::ignore;
    return node.discard ? Result<void>() : invalid("Invalid discard option");
  }
  if (text == "on") {
    node.detect_zeroes = DetectZeroesMode::on;
  } else if (text == "unmap") {
    node.detect_zeroes = DetectZeroesMode::unmap;
  } else if (text == "off") {
    node.detect_zeroes = DetectZeroesMode::off;
  } else {
    return invalid("invalid parameter value: ", text);
  }
  return {};
}

Result<void> apply_common(DeviceNode& node, const Setting& setting) {
  const bool* const on = std::get_if<bool>(&setting.value);
  if (setting.name == "node-name") {
    node.node_name = std::get<std::string>(setting.value);
    return check_node_name(node.node_name);
  }
  if (setting.name == "read-only") node.read_only = *on;
  if (setting.name == "auto-read-only") node.auto_read_only = *on;
  if (setting.name == "force-share") node.force_share = *on;
  if (setting.name == "cache.direct") node.direct = *on;
  return {};
}

}  // namespace

Result<std::vector<std::string>> read_words(const OptionTree& list, const OptionSpec& spec) {
  std::vector<std::string> words;
  for (size_t i = 0; i < list.children.size(); ++i) {
    const OptionTree* const word = list.find(cat(i));
    if (!word) {
      return invalid("Unused option '", list.flattened().back().first, "' for [", spec.name, "]");
    }
    const std::string name = cat(spec.name, ".", i);
    if (word->kind != OptionTree::Kind::text)
      return invalid("Parameter '", name, "' expects a word");
    if (Result<void> known = check_choice(spec.choices, name, word->value); !known) {
      return std::move(known).error();
    }
    words.push_back(word->value);
  }
  return words;
}

Result<std::vector<OptionRule>> read_rules(const OptionTree& list, std::string_view name) {
  std::vector<OptionRule> rules;
  for (size_t i = 0; i < list.children.size(); ++i) {
    const OptionTree* const group = list.find(cat(i));
    if (!group) {
      return invalid("Unused option '", list.flattened().back().first, "' for [", name, "]");
    }
    if (!group->is_group()) return invalid("Parameter '", name, ".", i, "' is no list of settings");
    OptionRule rule;
    for (const auto& [key, option] : group->flattened()) {
      if (option->is_group() || option->kind == OptionTree::Kind::null) {
        return invalid("Parameter '", name, ".", i, ".", key, "' has no value");
      }
      rule.emplace_back(key, option->value);
    }
    rules.push_back(std::move(rule));
  }
  return rules;
}

Result<Setting> read_setting(const OptionSpec& spec, const OptionTree& option) {
  if (option.kind == OptionTree::Kind::null) {
    return invalid("Parameter '", spec.name, "' has no value");
  }
  if (!spec.why.empty()) {
    if (spec.only.empty()) return unsupported(spec.name, " is not supported: ", spec.why);
    std::string_view given = option.value;
    if (spec.type == OptionType::boolean) {
      BYRE_TRY(on, read_flag(option, spec.name));
      given = on ? "on" : "off";
    }
    if (given != spec.only) {
      return unsupported(spec.name, "=", given, " is not supported, only ", spec.only, ": ",
                         spec.why);
    }
  }
  Setting setting{.name = spec.name, .value = option.value};
  switch (spec.type) {
    case OptionType::text:
      break;
    case OptionType::boolean: {
      BYRE_TRY(on, read_flag(option, spec.name));
      setting.value = on;
      break;
    }
    case OptionType::size: {
      if (option.kind == OptionTree::Kind::boolean) {
        return invalid("Parameter '", spec.name, "' expects a size");
      }
      BYRE_TRY(size, parse_size_parameter(option.value, spec.name));
      setting.value = size;
      break;
    }
    case OptionType::number: {
      const Result<uint64_t> number =
          parse_number(option.value, 0, std::numeric_limits<uint64_t>::max());
      if (!number) return invalid("Parameter '", spec.name, "' expects a number");
      setting.value = *number;
      break;
    }
    case OptionType::choice:
      if (Result<void> known = check_choice(spec.choices, spec.name, option.value); !known) {
        return std::move(known).error();
      }
      break;
    case OptionType::rules:
    case OptionType::words:
      BYRE_ASSERT(false);  // They are groups, and read_lists() reads them.
  }
  return setting;
}

Result<void> read_common_setting(DeviceNode& node, const OptionSpec& spec,
                                 const OptionTree& option) {
  if (option.is_group()) return invalid("Invalid parameter '", spec.name, "'");
  if (spec.name == "detect-zeroes" || spec.name == "discard") {
    return read_mode(node, spec.name, option.value);
  }
  BYRE_TRY(setting, read_setting(spec, option));
  return apply_common(node, setting);
}

}  // namespace byre
