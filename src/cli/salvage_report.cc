// SPDX-License-Identifier: Apache-2.0
#include "cli/salvage_report.h"

#include <algorithm>

#include "cli/json.h"

namespace byre {

namespace {
constexpr size_t kShown = 100;
}  // namespace

void report_lost(Session& session, const std::vector<LostRange>& lost, const std::string& target) {
  uint64_t bytes = 0;
  for (const LostRange& one : lost) bytes += one.range.length;
  if (session.json()) {
    Json list = Json::array();
    for (const auto& [source, range] : lost) {
      list.push_back({{"source", source},
                      {"offset", range.offset},
                      {"length", range.length},
                      {"reason", range.reason}});
    }
    session.print(to_json({{"lost", std::move(list)}, {"lost-bytes", bytes}}) + "\n");
    return;
  }
  if (lost.empty()) return;
  for (size_t i = 0; i < std::min(lost.size(), kShown); ++i) {
    const Salvage::Lost& range = lost[i].range;
    session.warn(cat("lost ", range.length, " bytes at ", hex(range.offset), " of ",
                     byre::quoted(lost[i].source), ": ", range.reason));
  }
  if (lost.size() > kShown) {
    session.warn(cat("and ", lost.size() - kShown, " more",
                     session.compatibility_name() ? "" : "; --output=json lists all"));
  }
  session.warn(cat(bytes, " bytes in ", lost.size(), lost.size() == 1 ? " range" : " ranges",
                   " could not be read, and are zeros in ", byre::quoted(target)));
}

}  // namespace byre
