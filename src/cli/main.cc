// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "cli/commands.h"

int main(int argc, char** argv) {
  return byre::run_program(std::vector<std::string>(argv, argv + argc));
}
