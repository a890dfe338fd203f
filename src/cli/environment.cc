// SPDX-License-Identifier: Apache-2.0
#include "cli/environment.h"

#include <cstdlib>

#include "cli/values.h"

namespace byre {

namespace {
/// Each image of a chain is an open file.
constexpr uint64_t kChainLimit = 100'000;
}  // namespace

std::string temporary_folder() {
  const char* const folder = std::getenv("TMPDIR");
  return folder && *folder != 0 ? folder : "/var/tmp";
}

Result<Environment> read_environment(const std::function<const char*(const char*)>& get) {
  Environment environment;
  if (const char* text = get("BYRE_FOLLOW"); text && *text != 0) {
    Result<void> parsed = parse_value(text, environment.follow);
    if (!parsed) {
      return std::move(parsed).error().while_doing(
          cat("environment variable BYRE_FOLLOW=", quoted(text)));
    }
  }
  if (const char* text = get("BYRE_CHAIN_MAX"); text && *text != 0) {
    const Result<uint64_t> number = parse_number(text, 1, kChainLimit);
    if (!number) {
      return invalid("environment variable BYRE_CHAIN_MAX=", quoted(text),
                     ": must be a number from 1 to ", kChainLimit);
    }
    environment.chain_max = static_cast<uint32_t>(*number);
  }
  return environment;
}

}  // namespace byre
