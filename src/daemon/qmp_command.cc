// SPDX-License-Identifier: Apache-2.0
#include "daemon/qmp_command.h"

#include <algorithm>

namespace byre::qmp {

const Struct& definition_of(const Nothing*) {
  static const Struct kStruct({});
  return kStruct;
}

const AnyCommand* CommandSet::find(std::string_view name) const {
  const auto found = std::ranges::find(commands_, name, &AnyCommand::name);
  return found == commands_.end() ? nullptr : *found;
}

const AnyAction* CommandSet::find_action(std::string_view name) const {
  const auto found = std::ranges::find(actions_, name, &AnyAction::name);
  return found == actions_.end() ? nullptr : *found;
}

std::string describe_commands(const CommandSet& set) {
  std::string out;
  for (const AnyCommand* command : set.commands()) {
    out += cat("  ", command->name, " - ", command->help, "\n");
    for (const Field& field : command->arguments->fields) {
      out += cat("      ", field.name, field.optional ? " (may be left out)" : "", " - ",
                 field.help, "\n");
    }
  }
  return out;
}

}  // namespace byre::qmp
