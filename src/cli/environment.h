// SPDX-License-Identifier: Apache-2.0
/// What environment variables set for every command.
///
///   BYRE_FOLLOW     the default of --follow, under every name of the program
///   BYRE_CHAIN_MAX  how many images may lie below one; 1024 without it
///   TMPDIR          where temporary overlays (-s) keep what is written; /var/tmp without it
///
/// Invariant: a value that makes no sense is an error, never ignored.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "io/file_opener.h"
#include "qcow2/image.h"

namespace byre {

struct Environment {
  std::optional<OpenPolicy> follow;
  uint32_t chain_max = kChainMax;
};

/// Where temporary files are made: TMPDIR, or /var/tmp, which has more room than /tmp.
std::string temporary_folder();

/// `get` gives the value of a variable, or null (getenv).
Result<Environment> read_environment(const std::function<const char*(const char*)>& get);

}  // namespace byre
