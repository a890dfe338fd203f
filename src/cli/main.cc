// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "cli/commands.h"
#include "io/standard_descriptors.h"

int main(int argc, char** argv) {
  constexpr int kCannotSpeak = 71;  // EX_OSERR of sysexits.h.
  if (!byre::open_standard_descriptors()) return kCannotSpeak;
  return byre::run_program(std::vector<std::string>(argv, argv + argc));
}
