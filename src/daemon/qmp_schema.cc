// SPDX-License-Identifier: Apache-2.0
/// The list of commands, events and types that clients look through to learn what there is.
///
/// Types have numbers for names, but the plain ones their own: what they are called is nobody's
/// business, as in QEMU.  A type is listed once, and only when something leads to it.
#include <deque>
#include <map>
#include <set>

#include "daemon/qmp_command.h"

namespace byre::qmp {

namespace {

class Lister {
 public:
  Json list(const CommandSet& set) {
    for (const AnyCommand* command : set.commands()) {
      out_.push_back({{"name", command->name},
                      {"meta-type", "command"},
                      {"arg-type", name_of(*command->arguments)},
                      {"ret-type", name_of(command->result ? *command->result : nothing())}});
    }
    for (const EventDefinition* event : set.events()) {
      out_.push_back(
          {{"name", event->name}, {"meta-type", "event"}, {"arg-type", name_of(event->data)}});
    }
    while (!to_do_.empty()) {
      const auto [type, name] = to_do_.front();
      to_do_.pop_front();
      Json entry = describe(*type);
      entry["name"] = name;
      out_.push_back(std::move(entry));
    }
    return std::move(out_);
  }

 private:
  static const Type& nothing() { return definition_of(static_cast<const Nothing*>(nullptr)); }
  static std::string_view plain_name(Type::Kind kind) {
    switch (kind) {
      case Type::Kind::text:
        return "str";
      case Type::Kind::boolean:
        return "bool";
      case Type::Kind::integer:
        return "int";
      case Type::Kind::number:
        return "number";
      case Type::Kind::null:
        return "null";
      case Type::Kind::any:
        return "any";
      default:
        return {};
    }
  }
  std::string name_of(const Type& type) {
    const auto found = names_.find(&type);
    if (found != names_.end()) return found->second;
    std::string name(plain_name(type.kind));
    if (type.kind == Type::Kind::array) {
      name = cat("[", name_of(static_cast<const Array&>(type).element), "]");
    } else if (name.empty()) {
      name = cat(next_++);
    }
    names_.emplace(&type, name);
    // Two C++ types may mean one array or plain type.
    if (listed_.insert(name).second) to_do_.emplace_back(&type, name);
    return name;
  }

  Json describe(const Type& type) {
    switch (type.kind) {
      case Type::Kind::enumeration: {
        const auto& values = static_cast<const Enumeration&>(type).values;
        Json members = Json::array();
        for (const std::string& value : values) members.push_back({{"name", value}});
        return {{"meta-type", "enum"}, {"members", members}, {"values", values}};
      }
      case Type::Kind::array:
        return {{"meta-type", "array"},
                {"element-type", name_of(static_cast<const Array&>(type).element)}};
      case Type::Kind::alternate: {
        Json members = Json::array();
        for (const TypeFunction branch : static_cast<const Alternate&>(type).branches)
          members.push_back({{"type", name_of(branch())}});
        return {{"meta-type", "alternate"}, {"members", members}};
      }
      case Type::Kind::object:
        return describe_object(static_cast<const Struct&>(type));
      default:
        return {{"meta-type", "builtin"}, {"json-type", json_type(type.kind)}};
    }
  }
  static std::string_view json_type(Type::Kind kind) {
    switch (kind) {
      case Type::Kind::text:
        return "string";
      case Type::Kind::boolean:
        return "boolean";
      case Type::Kind::integer:
        return "int";
      case Type::Kind::number:
        return "number";
      case Type::Kind::null:
        return "null";
      default:
        return "value";
    }
  }
  Json members(const std::vector<Field>& fields) {
    Json all = Json::array();
    for (const Field& field : fields) {
      if (field.hidden) continue;
      Json member = {{"name", field.name}, {"type", name_of(field.type_of())}};
      if (field.optional) member["default"] = nullptr;
      all.push_back(std::move(member));
    }
    return all;
  }
  Json members_of(const std::string& name, const std::vector<Field>& fields) {
    return {{"name", name}, {"meta-type", "object"}, {"members", members(fields)}};
  }
  Json describe_object(const Struct& type) {
    Json object = {{"meta-type", "object"}, {"members", members(type.fields)}};
    if (type.tag.empty()) return object;
    object["tag"] = type.tag;
    Json variants = Json::array();
    for (const Variant& variant : type.variants) {
      std::string name = name_of(nothing());
      if (!variant.fields.empty()) {
        name = cat(next_++);
        out_.push_back(members_of(name, variant.fields));
      }
      variants.push_back({{"case", variant.value}, {"type", name}});
    }
    object["variants"] = std::move(variants);
    return object;
  }

  Json out_ = Json::array();
  std::map<const Type*, std::string> names_;
  std::set<std::string> listed_;
  std::deque<std::pair<const Type*, std::string>> to_do_;
  uint64_t next_ = 0;
};

}  // namespace

Json schema_of(const CommandSet& set) { return Lister().list(set); }

}  // namespace byre::qmp
