// SPDX-License-Identifier: Apache-2.0
/// The settings of a device from its options: each by its type (job/driver.h).
/// Not here: which options there are, and children (device_tree.cc).
#pragma once

#include <string>
#include <vector>

#include "job/device_tree.h"

namespace byre {

Result<Setting> read_setting(const OptionSpec& spec, const OptionTree& option);
/// `list` as the words "0", "1" and so on.
Result<std::vector<std::string>> read_words(const OptionTree& list, const OptionSpec& spec);
/// `list` as the groups "0", "1" and so on.
Result<std::vector<OptionRule>> read_rules(const OptionTree& list, std::string_view name);
/// One that every node may be told (common_options()).
Result<void> read_common_setting(DeviceNode& node, const OptionSpec& spec,
                                 const OptionTree& option);

}  // namespace byre
