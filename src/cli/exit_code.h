// SPDX-License-Identifier: Apache-2.0
/// The exit code of each class of failure.  Under the name byre they tell the classes apart, with
/// the numbers of sysexits.h where those fit; under QEMU's names any failure is 1.
/// Not here: results that are no failures (`check` and `repair` have codes of their own below 64).
#pragma once

#include <span>
#include <string_view>

#include "base/error.h"

namespace byre {

inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 64;

/// A damaged image was not changed (refuse_damaged() in qcow2/ops/heal.h).
inline constexpr int kExitDamaged = 76;

/// Of an error with that code.
int exit_code(Errc code);
/// Likewise, and kExitDamaged.
int exit_code(const Error& error);

struct ExitCode {
  int code;
  std::string_view meaning;
};
/// All of them, for --help, lowest first.
std::span<const ExitCode> exit_codes();

}  // namespace byre
