// SPDX-License-Identifier: Apache-2.0
/// What `convert --salvage` tells of ranges that could not be read.
#pragma once

#include <string>
#include <vector>

#include "cli/session.h"
#include "job/salvage.h"

namespace byre {

struct LostRange {
  std::string source;
  Salvage::Lost range;
};

/// The first of them and a sum on stderr, or, with --output=json, all of them on stdout.
void report_lost(Session& session, const std::vector<LostRange>& lost, const std::string& target);

}  // namespace byre
