// SPDX-License-Identifier: Apache-2.0
#include "cli/export_list.h"

#include "cli/text.h"

namespace byre {

namespace {

std::string flag_names(uint16_t flags) {
  constexpr std::pair<uint16_t, std::string_view> kNames[] = {{nbd::kReadOnly, "readonly"},
                                                              {nbd::kSendFlush, "flush"},
                                                              {nbd::kSendFua, "fua"},
                                                              {nbd::kRotational, "rotational"},
                                                              {nbd::kSendTrim, "trim"},
                                                              {nbd::kSendWriteZeroes, "zeroes"},
                                                              {nbd::kSendDf, "df"},
                                                              {nbd::kCanMultiConn, "multi"},
                                                              {1 << 9, "resize"},
                                                              {nbd::kSendCache, "cache"},
                                                              {nbd::kSendFastZero, "fast-zero"},
                                                              {1 << 12, "block-status-payload"}};
  std::string names;
  for (const auto& [flag, name] : kNames) {
    if ((flags & flag) != 0) names += cat(" ", name);
  }
  return names;
}

}  // namespace

std::string describe_exports(const std::vector<nbd::ListedExport>& exports) {
  std::string out = cat("exports available: ", exports.size(), "\n");
  for (const nbd::ListedExport& one : exports) {
    out += cat(" export: '", printable(one.name), "'\n");
    if (!one.description.empty()) out += cat("  description: ", printable(one.description), "\n");
    if (one.info) {
      out += cat("  size:  ", one.info->size, "\n  flags: ", hex(one.info->flags), " (",
                 flag_names(one.info->flags), " )\n");
    }
    if (one.block_sizes) {
      out += cat("  min block: ", one.block_sizes->minimum,
                 "\n  opt block: ", one.block_sizes->preferred,
                 "\n  max block: ", one.block_sizes->maximum, "\n");
    }
    if (one.info) out += "  transaction size: 32-bit\n";  // Extended headers are not asked for.
    if (one.contexts.empty()) continue;
    out += cat("  available meta contexts: ", one.contexts.size(), "\n");
    for (const std::string& context : one.contexts) out += cat("   ", printable(context), "\n");
  }
  return out;
}

}  // namespace byre
