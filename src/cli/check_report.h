// SPDX-License-Identifier: Apache-2.0
/// What a check found, in qemu-img's words and in its JSON; `check`, `io` and `serve` share them.
/// Not here: the findings one by one (findings.h).
#pragma once

#include <string>

#include "cli/json.h"
#include "qcow2/check/report.h"

namespace byre {

/// The lines at the end of a check.
std::string check_text(const CheckReport& report);
/// The same in sentences, under the name byre; `errors` is how many damages were told.
std::string check_sentences(const CheckReport& report, uint64_t errors);
/// The keys in qemu-img's order; those that are zero are left out, as it does.
Json json_of_check(const CheckReport& report, const std::string& name);

}  // namespace byre
