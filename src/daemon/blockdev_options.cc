// SPDX-License-Identifier: Apache-2.0
#include "daemon/blockdev_options.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>

#include "base/option_text.h"
#include "daemon/qmp_stream.h"
#include "job/driver.h"

namespace byre::qmp {

namespace {

const Type& all_options() { return definition_of(static_cast<const BlockdevOptions*>(nullptr)); }

const Type& device_below() {
  static const Alternate kType("BlockdevRef", {Type::text, all_options});
  return kType;
}
const Type& device_or_nothing() {
  static const Alternate kType("BlockdevRefOrNull", {Type::text, all_options, Type::null});
  return kType;
}
const Type& list_of_anything() {
  static const Array kType(Type::any());
  return kType;
}
const Type& list_of_texts() {
  static const Array kType(Type::text());
  return kType;
}

/// Made once, for as long as the process lives.
template <class T, class... Parts>
const T& keep(Parts&&... parts) {
  static std::deque<std::unique_ptr<const Type>> kept;
  auto made = std::make_unique<const T>(std::forward<Parts>(parts)...);
  const T& type = *made;
  kept.push_back(std::move(made));
  return type;
}

std::vector<std::string> words_of(std::string_view list) {
  std::vector<std::string> words;
  while (!list.empty()) {
    const size_t end = std::min(list.find(' '), list.size());
    words.emplace_back(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return words;
}

Field field_of(const OptionSpec& spec, std::string_view name) {
  // A file must be named; everything else has a default, or the driver says what is missing.
  Field made{.name = name,
             .help = spec.help,
             .optional = name != "filename",
             .hidden = !spec.why.empty() && spec.only.empty()};
  switch (spec.type) {
    case OptionType::text:
      made.type = Type::text;
      break;
    case OptionType::boolean:
      made.type = Type::boolean;
      break;
    case OptionType::size:
    case OptionType::number:
      made.type = Type::integer;
      break;
    case OptionType::choice:
      made.known = &keep<Enumeration>(words_of(spec.choices));
      break;
    case OptionType::rules:
      made.type = list_of_anything;
      break;
    case OptionType::words:
      made.type = list_of_texts;
      break;
  }
  return made;
}

/// Options whose names begin with the same word and a dot become a group of that name.
std::vector<Field> fields_of(std::span<const OptionSpec> specs) {
  std::vector<Field> fields;
  std::map<std::string_view, std::vector<Field>> groups;
  for (const OptionSpec& spec : specs) {
    const size_t dot = spec.name.find('.');
    if (dot == std::string_view::npos) {
      fields.push_back(field_of(spec, spec.name));
    } else {
      groups[spec.name.substr(0, dot)].push_back(field_of(spec, spec.name.substr(dot + 1)));
    }
  }
  for (auto& [name, members] : groups) {
    // Where the plain name is an option as well, either is taken.
    std::erase_if(fields, [&](const Field& other) { return other.name == name; });
    fields.push_back({.name = name,
                      .help = "a group of options",
                      .optional = true,
                      .known = &keep<Struct>(std::move(members))});
  }
  return fields;
}

std::vector<Field> fields_of(const Driver& driver) {
  std::vector<Field> fields = fields_of(driver.options);
  for (const ChildSpec& child : driver.children) {
    const auto add = [&](std::string_view name, bool required) {
      fields.push_back({.name = name,
                        .help = child.help,
                        .optional = !required,
                        .type = child.may_be_null ? device_or_nothing : device_below});
    };
    add(child.role, child.required && child.alias.empty());
    if (!child.alias.empty()) add(child.alias, false);
  }
  return fields;
}

const Struct& make_all() {
  std::vector<std::string> names;
  std::vector<Variant> variants;
  for (const Driver* driver : all_drivers()) {
    names.emplace_back(driver->name);
    variants.push_back({.value = std::string(driver->name), .fields = fields_of(*driver)});
  }
  std::vector<Field> common = {{.name = "driver",
                                .help = "what kind of device it is",
                                .known = &keep<Enumeration>(std::move(names))}};
  for (Field& one : fields_of(common_options())) common.push_back(std::move(one));
  return keep<Struct>(std::move(common), "driver", std::move(variants));
}

/// A driver of QEMU's that is not here is refused by its name, in the device at `options` and those
/// below it.
Result<void> check_drivers(const Json& options) {
  const auto driver = options.find("driver");
  if (driver != options.end() && driver->is_string()) {
    const Result<const Driver*> found = find_driver(text_in(*driver));
    if (!found && found.error().code() == Errc::unsupported) return found.error().copy();
  }
  for (const Json& value : options) {
    if (!value.is_object()) continue;
    if (Result<void> checked = check_drivers(value); !checked) return checked;
  }
  return {};
}

Json json_of_tree(const OptionTree& tree) {
  if (!tree.is_group()) return tree.value;
  Json group = Json::object();
  for (const auto& [key, child] : tree.children) group[key] = json_of_tree(child);
  return group;
}

OptionTree tree_of_value(const Json& value) {
  OptionTree tree;
  using Kind = OptionTree::Kind;
  if (value.is_object()) {
    tree.given = true;
    for (const auto& [key, member] : value.items())
      tree.children.emplace(key, tree_of_value(member));
    return tree;
  }
  if (value.is_array()) {
    tree.given = true;
    size_t index = 0;
    for (const Json& element : value) tree.children.emplace(cat(index++), tree_of_value(element));
    return tree;
  }
  tree.kind = value.is_string()    ? Kind::text
              : value.is_boolean() ? Kind::boolean
              : value.is_number()  ? Kind::number
                                   : Kind::null;
  if (value.is_string()) tree.value = text_in(value);
  if (value.is_boolean()) tree.value = value.get<bool>() ? "on" : "off";
  if (value.is_number()) tree.value = text_of_json(value);
  return tree;
}

/// A zero byte would end the name that the kernel sees.
bool has_zero_byte(const Json& value) {
  if (value.is_string()) return text_in(value).find('\0') != std::string::npos;
  if (!value.is_structured()) return false;
  return std::ranges::any_of(value, [](const Json& part) { return has_zero_byte(part); });
}

}  // namespace

const Struct& definition_of(const BlockdevOptions*) {
  static const Struct& all = make_all();
  return all;
}

Result<void> Described<BlockdevOptions>::read(const Json& value, const Place& place,
                                              BlockdevOptions& to) {
  if (Result<void> checked = check_blockdev(value, place); !checked) return checked;
  to.options = value;
  return {};
}

Result<void> check_blockdev(const Json& options, const Place& place) {
  if (options.is_object()) {
    if (Result<void> known = check_drivers(options); !known) return known;
  }
  return static_cast<const Struct&>(all_options()).check(options, place);
}

Result<OptionTree> tree_of_json(const Json& options) {
  if (has_zero_byte(options)) return invalid("An option has a zero byte");
  return tree_of_value(options);
}

Result<Words> read_words(std::string_view text, std::string_view implied) {
  if (text.starts_with('{')) {
    Stream stream;
    stream.feed(text);
    Message message = stream.next({});
    if (message.kind != Message::Kind::value) {
      return invalid(message.problem.empty() ? "JSON parse error, the value does not end"
                                             : message.problem);
    }
    return Words{.json = std::move(message.value), .from_words = false};
  }
  const size_t end = std::min(text.find_first_of(",="), text.size());
  const bool is_word = end == text.size() || text[end] == ',';
  std::string all(text);
  if (is_word && !implied.empty() && !text.empty()) all = cat(implied, "=", text);
  BYRE_TRY(tree, parse_option_list(all));
  return Words{.json = json_of_tree(tree)};
}

}  // namespace byre::qmp
