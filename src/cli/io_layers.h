// SPDX-License-Identifier: Apache-2.0
/// IoLayer: option strings of `byre io` into what to open.
///
/// Invariant: only names and settings are checked, nothing is opened; each setting is either taken
/// or refused by its name.
/// Not here: opening (io_shell.cc), one disk for a whole command (image_spec.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "block/filter_fault.h"
#include "cli/io_commands.h"

namespace byre {

/// What to open, from the top layer down.
struct IoLayer {
  enum class Driver : uint8_t { file, raw, qcow2, blkdebug, probe } driver = Driver::probe;
  std::string file_name;     ///< Of a `file`.
  std::string fault_config;  ///< Of a `blkdebug`: a file with rules; may be empty.
  FaultRules faults;         ///< Of a `blkdebug`: those in its options.
  std::optional<DiscardPolicy> discard;
  std::optional<bool> read_only;
  std::optional<bool> direct;
  bool lock = true;
  bool without_backing = false;
  /// How an image is run, whatever it says itself; of `qcow2`, and of `probe` if that finds one.
  struct Runtime {
    std::optional<bool> lazy_refcounts;
    std::optional<uint64_t> table_cache_size;
    bool discard_keeps = false;
    bool trust_refcounts = false;
    std::string first;    ///< The first of these that was given: what a raw disk refuses.
    std::string unknown;  ///< What no format takes; refused once it is known which one it is.
  } runtime;
  std::unique_ptr<IoLayer> below;
};
/// What a disk of this format says to a setting that it does not have.
Error no_such_option(std::string_view format, std::string_view option);

/// The layers that `open` means; only names and settings are checked, nothing is opened.
Result<IoLayer> plan_io_layers(const IoOpen& open);

}  // namespace byre
