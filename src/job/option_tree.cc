// SPDX-License-Identifier: Apache-2.0
#include "job/option_tree.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/option_text.h"

namespace byre {

namespace {

Error too_long(uint64_t size) {
  return invalid("The options take ", size, " bytes, at most ", kTreeTextMax);
}
Error too_deep() { return invalid("The options have more than ", kTreeDepthMax, " levels"); }
Error too_many() { return invalid("There are more than ", kTreeOptionsMax, " options"); }
Error json_error(std::string_view why) {
  return invalid("Could not parse the JSON options: ", why);
}

Result<void> check_text(std::string_view text) {
  if (text.find('\0') == std::string_view::npos) return {};
  return invalid("An option has a zero byte");
}

/// Makes the place for `key` in `at`, which lies `depth` levels down, and what leads to it.
/// `is_group`: a group that is there already is as good.
Result<OptionTree*> place_for(OptionTree& at, uint32_t depth, std::string_view key, bool is_group) {
  if (Result<void> clean = check_text(key); !clean) return std::move(clean).error();
  OptionTree* place = &at;
  for (std::string_view rest = key;;) {
    if (++depth > kTreeDepthMax) return too_deep();
    const size_t dot = std::min(rest.find('.'), rest.size());
    const bool last = dot == rest.size();
    const std::string_view part = rest.substr(0, dot);
    if (part.empty()) return invalid("Invalid parameter '", key, "'");
    const auto [found, made] = place->children.try_emplace(std::string(part));
    if (!made && (!found->second.is_group() || (last && !is_group))) {
      return invalid("Option '", key, "' is given twice");
    }
    place = &found->second;
    if (last) return place;
    rest.remove_prefix(dot + 1);
  }
}

/// Builds the tree as the parser goes.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(OptionTree& root) : root_(root) {}
  Error take_error() { return std::move(error_); }
  bool failed() const { return bool(error_); }

  bool null() override { return add(OptionTree::Kind::null, ""); }
  bool boolean(bool value) override { return add(OptionTree::Kind::boolean, value ? "on" : "off"); }
  bool number_integer(number_integer_t value) override {
    return add(OptionTree::Kind::number, cat(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    return add(OptionTree::Kind::number, cat(value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return add(OptionTree::Kind::number, text);
  }
  bool string(string_t& value) override { return add(OptionTree::Kind::text, std::move(value)); }
  bool binary(binary_t&) override { return stop(json_error("binary data")); }
  bool start_object(std::size_t) override { return start(false); }
  bool end_object() override { return end(); }
  bool start_array(std::size_t) override { return start(true); }
  bool end_array() override { return end(); }
  bool key(string_t& value) override {
    key_ = std::move(value);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    return stop(json_error(cat("JSON parse error at byte ", position)));
  }

 private:
  struct Level {
    OptionTree* group;
    uint32_t depth;
    bool is_array;
    uint64_t next = 0;  ///< Index of the next element.
  };

  bool stop(Error error) {
    error_ = std::move(error);
    return false;
  }
  OptionTree* place(bool is_group) {
    if (++options_ > kTreeOptionsMax) {
      stop(too_many());
      return nullptr;
    }
    Level& level = levels_.back();
    const std::string key = level.is_array ? cat(level.next++) : std::exchange(key_, {});
    Result<OptionTree*> found = place_for(*level.group, level.depth, key, is_group);
    if (found) return *found;
    stop(std::move(found).error());
    return nullptr;
  }
  bool add(OptionTree::Kind kind, std::string value) {
    if (levels_.empty()) return stop(invalid("Invalid JSON object given"));
    if (Result<void> clean = check_text(value); !clean) return stop(std::move(clean).error());
    OptionTree* const option = place(false);
    if (!option) return false;
    option->kind = kind;
    option->value = std::move(value);
    return true;
  }
  bool start(bool is_array) {
    if (levels_.empty()) {
      if (is_array) return stop(invalid("Invalid JSON object given"));
      levels_.push_back({&root_, 0, false});
      return true;
    }
    const uint32_t depth =
        levels_.back().depth + 1 +
        static_cast<uint32_t>(levels_.back().is_array ? 0 : std::ranges::count(key_, '.'));
    OptionTree* const group = place(true);
    if (!group) return false;
    if (group->given) return stop(json_error("JSON parse error, duplicate key"));
    group->given = true;
    levels_.push_back({group, depth, is_array});
    return true;
  }
  bool end() {
    levels_.pop_back();
    return true;
  }

  OptionTree& root_;
  std::vector<Level> levels_;
  std::string key_;
  uint32_t options_ = 0;
  Error error_;
};

/// JSON has double quotes only.
std::string with_double_quotes(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  char inside = '\0';
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (inside != '\0' && c == '\\' && i + 1 < text.size()) {
      ++i;
      if (text[i] != '\'') out += c;  // \' is ' in either.
      out += text[i];
    } else if (inside == '\0' && (c == '"' || c == '\'')) {
      inside = c;
      out += '"';
    } else if (inside == c && c != '\0') {
      inside = '\0';
      out += '"';
    } else {
      if (inside == '\'' && c == '"') out += '\\';
      out += c;
    }
  }
  return out;
}

void flatten(const OptionTree& tree, const std::string& prefix,
             std::vector<std::pair<std::string, const OptionTree*>>& to) {
  for (const auto& [key, child] : tree.children) {
    if (child.is_group() && !child.children.empty()) {
      flatten(child, cat(prefix, key, "."), to);
    } else {
      to.emplace_back(prefix + key, &child);
    }
  }
}

}  // namespace

const OptionTree* OptionTree::find(std::string_view key) const {
  const auto found = children.find(key);
  return found == children.end() ? nullptr : &found->second;
}

OptionTree OptionTree::take(std::string_view key) {
  const auto found = children.find(key);
  BYRE_ASSERT(found != children.end());
  OptionTree taken = std::move(found->second);
  children.erase(found);
  return taken;
}

std::vector<std::pair<std::string, const OptionTree*>> OptionTree::flattened() const {
  std::vector<std::pair<std::string, const OptionTree*>> all;
  flatten(*this, "", all);
  return all;
}

Result<OptionTree> parse_json_options(std::string_view text) {
  if (text.size() > kTreeTextMax) return too_long(text.size());
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    return json_error("Expecting a JSON value");
  }
  OptionTree tree;
  Builder builder(tree);
  const std::string json = with_double_quotes(text);
  if (!nlohmann::json::sax_parse(json, &builder)) {
    return builder.failed() ? builder.take_error() : json_error("JSON parse error");
  }
  return tree;
}

Result<OptionTree> parse_option_list(std::string_view text) {
  if (text.size() > kTreeTextMax) return too_long(text.size());
  BYRE_TRY(pairs, split_options(text));
  if (pairs.size() > kTreeOptionsMax) return too_many();
  OptionTree tree;
  for (OptionPair& pair : pairs) {
    if (Result<void> added = add_option(tree, pair.key, std::move(pair.value)); !added) {
      return std::move(added).error();
    }
  }
  return tree;
}

Result<void> add_option(OptionTree& tree, std::string_view key, std::string value) {
  if (Result<void> clean = check_text(value); !clean) return clean;
  BYRE_TRY(option, place_for(tree, 0, key, false));
  option->kind = OptionTree::Kind::text;
  option->value = std::move(value);
  return {};
}

}  // namespace byre
