// SPDX-License-Identifier: Apache-2.0
/// The tree of objects that clients of QEMU know: /objects with what object-add made, /chardevs.
///
/// Objects have their type, and throttle groups their limits; what a secret holds is told to
/// nobody. Not here: objects themselves (job/objects.h); properties are not changed (object-del,
/// object-add).
#include <algorithm>
#include <utility>

#include "daemon/daemon.h"
#include "daemon/modules.h"

namespace byre::qmp {

namespace {

constexpr std::string_view kContainer = "container";

/// The parts of "/objects/x"; QEMU's partial paths ("objects") are taken for whole ones.
std::vector<std::string> parts_of(std::string_view path) {
  std::vector<std::string> parts;
  while (!path.empty()) {
    const size_t end = std::min(path.find('/'), path.size());
    if (end != 0) parts.emplace_back(path.substr(0, end));
    path.remove_prefix(std::min(end + 1, path.size()));
  }
  return parts;
}

struct Property {
  std::string name;
  std::string type;
  Json value;  ///< Null: of an object below.
};

/// "x-iops-total" and the others, and all of them together.
void add_limits(const ThrottleLimits& limits, std::vector<Property>& to) {
  Json all = Json::object();
  for (const auto& [name, number] : all_limits(limits)) {
    to.push_back({cat("x-", name), "int", number});
    all[name] = number;
  }
  to.push_back({"limits", "ThrottleLimits", std::move(all)});
}

/// What the object at this path has; Errc::not_found when there is none.
Result<std::vector<Property>> properties_at(Call& call, std::string_view path) {
  const std::vector<std::string> parts = parts_of(path);
  const Objects& objects = call.daemon().objects();
  const auto nothing = [&] {
    call.failure_class = "DeviceNotFound";
    return Error(Errc::not_found, cat("Device '", path, "' not found"));
  };
  std::vector<Property> all;
  const auto add_type = [&](std::string_view type) { all.push_back({"type", "string", type}); };
  if (parts.size() > 2) return nothing();
  if (parts.empty()) {
    add_type(kContainer);
    for (const char* below : {"objects", "chardevs"})
      all.push_back({below, cat("child<", kContainer, ">"), {}});
    return all;
  }
  const bool is_chardevs = parts[0] == "chardevs";
  if (!is_chardevs && parts[0] != "objects") return nothing();
  std::vector<std::pair<std::string, std::string>> listed =
      is_chardevs ? call.daemon().chardev_types() : objects.list();
  if (parts.size() == 1) {
    add_type(kContainer);
    for (auto& [id, type] : listed) all.push_back({id, cat("child<", type, ">"), {}});
    return all;
  }
  const auto found =
      std::ranges::find(listed, parts[1], &std::pair<std::string, std::string>::first);
  if (found == listed.end()) return nothing();
  add_type(found->second);
  if (const ThrottleLimits* const limits = objects.limits(parts[1]); limits && !is_chardevs)
    add_limits(*limits, all);
  return all;
}

struct Path {
  std::string path;
};
const Struct& definition_of(const Path*) {
  static const Struct kStruct({field("path", &Path::path, "\"/objects\", \"/objects/ID\"")});
  return kStruct;
}
const Type& list_of_properties() {
  static const Struct kProperty(
      {result_field<std::string>("name", "of the property"),
       result_field<std::string>("type", "child<...> is an object below")});
  static const Array kList(kProperty);
  return kList;
}
Task<Json> qom_list(Call& call, Path args) {
  const std::vector<Property> all = co_await properties_at(call, args.path);
  Json listed = Json::array();
  for (const Property& one : all) listed.push_back({{"name", one.name}, {"type", one.type}});
  co_return std::move(listed);
}
const Command<Path> kQomList({.name = "qom-list",
                              .help = "the objects there are, and what can be read of each",
                              .result = &list_of_properties(),
                              .run = qom_list});

struct PathAndProperty {
  std::string path;
  std::string property;
};
const Struct& definition_of(const PathAndProperty*) {
  static const Struct kStruct({field("path", &PathAndProperty::path, "of the object"),
                               field("property", &PathAndProperty::property, "as qom-list says")});
  return kStruct;
}
Task<Json> qom_get(Call& call, PathAndProperty args) {
  std::vector<Property> all = co_await properties_at(call, args.path);
  const auto found = std::ranges::find(all, args.property, &Property::name);
  if (found == all.end()) {
    co_return Error(Errc::not_found, cat("Property '", text_in(all.front().value), ".",
                                         args.property, "' not found"));
  }
  // An object below is told by its path.
  if (found->value.is_null()) {
    std::string path;
    for (const std::string& part : parts_of(args.path)) path += "/" + part;
    co_return Json(cat(path, "/", found->name));
  }
  co_return std::move(found->value);
}
const Command<PathAndProperty> kQomGet({.name = "qom-get",
                                        .help = "one property of an object",
                                        .result = &Type::any(),
                                        .run = qom_get});

// --- query-chardev -------------------------------------------------------------------------------

const Type& list_of_chardevs() {
  static const Struct kChardev(
      {result_field<std::string>("label", "its id"),
       result_field<std::string>("filename", "where its clients come from"),
       result_field<bool>("frontend-open", "a monitor uses it")});
  static const Array kList(kChardev);
  return kList;
}
Task<Json> query_chardev(Call& call, Nothing) { co_return call.daemon().describe_chardevs(); }
const Command<> kChardevs({.name = "query-chardev",
                           .help = "the chardevs of the command line",
                           .result = &list_of_chardevs(),
                           .run = query_chardev});

}  // namespace

void add_qom_commands(CommandSet& set) {
  set.add(kQomList);
  set.add(kQomGet);
  set.add(kChardevs);
}

}  // namespace byre::qmp
