// SPDX-License-Identifier: Apache-2.0
/// `byre drivers`: what devices a disk can be named by, and their options.
///
/// It prints the table that parses and opens them (job/driver.h).
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/options.h"

namespace byre {

namespace {

struct DriversArgs {
  std::optional<std::string> driver;
};

Json json_of(const OptionSpec& option) {
  Json json = {{"name", option.name}, {"help", option.help}};
  if (!option.choices.empty()) json["choices"] = option.choices;
  if (!option.fallback.empty()) json["default"] = option.fallback;
  if (!option.only.empty()) json["only"] = option.only;
  if (!option.why.empty()) json["why"] = option.why;
  return json;
}

Json json_of(std::span<const OptionSpec> options) {
  Json list = Json::array();
  for (const OptionSpec& option : options) list.push_back(json_of(option));
  return list;
}

Json json_of(const Driver& driver) {
  Json below = Json::array();
  for (const ChildSpec& child : driver.children) {
    below.push_back({{"role", child.role}, {"help", child.help}, {"required", child.required}});
  }
  return {{"name", driver.name},
          {"summary", driver.summary},
          {"devices-below", std::move(below)},
          {"options", json_of(driver.options)}};
}

Task<int> drivers(Session& session, DriversArgs args) {
  if (args.driver) {
    const Driver* const driver = co_await find_driver(*args.driver);
    session.print(session.json() ? to_json(json_of(*driver)) : describe_driver(*driver));
    co_return 0;
  }
  if (!session.json()) {
    session.print(describe_drivers());
    co_return 0;
  }
  Json list = Json::array();
  for (const Driver* driver : all_drivers()) list.push_back(json_of(*driver));
  session.print(to_json({{"drivers", std::move(list)}, {"common", json_of(common_options())}}));
  co_return 0;
}

const Command<DriversArgs> kDefinition({
    .name = "drivers",
    .summary = "Show the devices that a disk can be named by, and their options",
    .description =
        "With --image-opts, and as json:{...} without it, a disk is named by devices, one over the "
        "other: driver=qcow2,file.driver=file,file.filename=disk.qcow2.",
    .args = {optional_operand("DRIVER", &DriversArgs::driver, "show only this one")},
    .run = drivers,
});

}  // namespace

const AnyCommand& kDrivers = kDefinition;

}  // namespace byre
