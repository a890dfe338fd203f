// SPDX-License-Identifier: Apache-2.0
/// Values as people write them on a command line: sizes, formats, cache modes, option lists.
///
/// Each parse_value() takes the whole text or fails with a sentence in qemu-img's words.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/option_text.h"
#include "io/file_opener.h"
#include "qcow2/image.h"

namespace byre {

enum class OutputFormat : uint8_t { human, json };

/// Where written data are when a write is answered, and whether reads and writes use the host's
/// page cache.
enum class CacheMode : uint8_t {
  writeback,     ///< In the page cache; durable after a flush.  The default.
  writethrough,  ///< On the disk, through the page cache.
  none,          ///< Past the page cache (O_DIRECT); durable after a flush.
  directsync,    ///< On the disk, past the page cache.
  unsafe,        ///< As writeback, and guest flushes are not needed.
};
std::optional<CacheMode> find_cache_mode(std::string_view text);
inline bool is_direct(CacheMode mode) {
  return mode == CacheMode::none || mode == CacheMode::directsync;
}
inline bool is_write_through(CacheMode mode) {
  return mode == CacheMode::writethrough || mode == CacheMode::directsync;
}

/// -o a=b,c=d as it was given, over all -o.
struct OptionList {
  std::vector<std::pair<std::string, std::string>> pairs;
  bool help = false;  ///< "help" or "?" was among them.
  bool empty() const { return pairs.empty() && !help; }
  /// The last value given for `name`, and takes every one out.
  std::optional<std::string> take(std::string_view name);
};

Result<void> parse_value(std::string_view text, std::string& value);
Result<void> parse_value(std::string_view text, std::optional<std::string>& value);
Result<void> parse_value(std::string_view text, std::vector<std::string>& value);
Result<void> parse_value(std::string_view text, OutputFormat& value);
Result<void> parse_value(std::string_view text, OptionList& value);
Result<void> parse_value(std::string_view text, std::optional<OpenPolicy>& value);
Result<void> parse_value(std::string_view text, std::optional<DiscardPolicy>& value);

}  // namespace byre
