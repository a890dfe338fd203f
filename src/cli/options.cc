// SPDX-License-Identifier: Apache-2.0
#include "cli/options.h"

#include <cstring>

namespace byre {

Error could_not_open(std::string_view name, Error error) {
  std::string why = error.message();
  const std::string own = cat("open ", quoted(name), ": ");
  // The engine says what it opens, too: once is enough.
  while (why.starts_with(own)) why.erase(0, own.size());
  if (why == std::strerror(error.sys_errno())) why = cat("Could not open '", name, "': ", why);
  return Error(error.code(), cat("Could not open '", name, "': ", why), error.sys_errno(),
               error.where());
}

Task<Disk> open_named(Session& session, Gate& gate, std::string name, OpenArgs args,
                      ImageOptions options) {
  OpenDiskOptions open{.image = std::move(options)};
  open.image.share_lock = args.share;
  open.image.message = [&session](const std::string& text) { session.warn(text); };
  if (args.format) {
    Result<DiskFormat> format = parse_format(*args.format);
    if (!format) co_return could_not_open(name, std::move(format).error());
    open.format = *format;
  }
  if (args.share && open.image.writable) {
    co_return could_not_open(name,
                             invalid("force-share=on can only be used with read-only images"));
  }
  Result<Disk> disk = co_await open_disk(gate, name, std::move(open)).result();
  if (!disk) co_return could_not_open(name, std::move(disk).error());
  co_return std::move(disk);
}

Task<DiskFormat> format_of(File& file, std::optional<std::string> given) {
  std::optional<DiskFormat> format;
  if (given) format = co_await parse_format(*given);
  co_return co_await find_format(file, format);
}

Result<CacheMode> cache_mode(const std::string& name, std::string_view what) {
  if (const auto mode = find_cache_mode(name)) return *mode;
  return invalid("Invalid ", what, " option: ", name);
}

Result<std::string> snapshot_word(const std::string& text) {
  if (!text.starts_with("snapshot.")) return text;
  OptionList pairs;
  if (Result<void> parsed = parse_value(text, pairs); !parsed) return std::move(parsed).error();
  const auto id = pairs.take("snapshot.id");
  const auto name = pairs.take("snapshot.name");
  if (!pairs.pairs.empty() || (id && name) || (!id && !name)) {
    return invalid("Failed in parsing snapshot param '", text, "'");
  }
  return id ? *id : *name;
}

void warn_of_guess(Session& session, const std::string& name) {
  session.note(cat("WARNING: Image format was not specified for '", name,
                   "' and probing guessed raw.\n"
                   "         Automatically detecting the format is dangerous for raw images, write "
                   "operations on block 0 will be restricted.\n"
                   "         Specify the 'raw' format explicitly to remove the restrictions.\n"));
}

}  // namespace byre
