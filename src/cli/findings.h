// SPDX-License-Identifier: Apache-2.0
/// Findings of a check as JSON and as lines for people; `check`, `repair` and `dump` share them.
#pragma once

#include <string>
#include <vector>

#include "cli/json.h"
#include "cli/session.h"
#include "qcow2/check/finding.h"

namespace byre {

/// A list of objects; keys that say nothing are left out.
Json json_of_findings(const std::vector<Finding>& findings);
/// One line each; with the guest ranges that each touches, as far as they are known.
std::string lines_of_findings(const std::vector<Finding>& findings, bool with_guests = false);
/// One finding for each damage: without those that only say again, of the same host cluster, what
/// another one says.
std::vector<Finding> one_for_each_damage(const std::vector<Finding>& findings);
/// Those, to stderr.
void show_findings(Session& session, const std::vector<Finding>& findings);

}  // namespace byre
