// SPDX-License-Identifier: Apache-2.0
#include "cli/exit_code.h"

#include <array>
#include <cerrno>

namespace byre {

int exit_code(Errc code) {
  switch (code) {
    case Errc::invalid:
      return kExitUsage;
    case Errc::corrupt:
      return 65;
    case Errc::not_found:
      return 66;
    case Errc::unsupported:
      return 69;
    case Errc::exists:
      return 73;
    case Errc::io:
      return 74;
    case Errc::busy:
      return 75;
    case Errc::denied:
    case Errc::read_only:
      return 77;
    case Errc::no_space:
      return 79;
    case Errc::cancelled:
      break;
  }
  return kExitFailure;
}

int exit_code(const Error& error) {
  return error.sys_errno() == EUCLEAN ? kExitDamaged : exit_code(error.code());
}

std::span<const ExitCode> exit_codes() {
  static constexpr std::array kCodes = {
      ExitCode{0, "done"},
      ExitCode{kExitFailure, "any other failure"},
      ExitCode{kExitUsage, "wrong use: an option, a value, or a request that makes no sense"},
      ExitCode{65, "the image is corrupt"},
      ExitCode{66, "no such file, snapshot or bitmap"},
      ExitCode{69, "not supported"},
      ExitCode{73, "it exists already"},
      ExitCode{74, "the disk or the network failed"},
      ExitCode{75, "locked or in use by another program"},
      ExitCode{kExitDamaged, "the image is damaged, and this command does not change such images"},
      ExitCode{77, "forbidden, by permissions, a policy or a flag of the image"},
      ExitCode{79, "no space left"},
  };
  return kCodes;
}

}  // namespace byre
