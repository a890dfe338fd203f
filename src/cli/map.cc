// SPDX-License-Identifier: Apache-2.0
/// `byre map`: where the bytes of a disk are, layer by layer.
///
/// Each layer of the backing chain is opened by itself and asked in turn, so that what no layer has
/// can be told from what a deeper layer has as zeros.
#include <fmt/core.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "block/raw.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/text.h"
#include "job/chain.h"
#include "job/holes.h"
#include "job/open_tree.h"

namespace byre {

namespace {

struct MapArgs : OpenArgs {
  std::string image;
  OutputFormat output = OutputFormat::human;
  std::optional<uint64_t> start;
  std::optional<uint64_t> length;
};

struct Entry {
  uint64_t start = 0;
  uint64_t length = 0;
  uint64_t depth = 0;
  bool present = false;  ///< Some layer says what it reads as.
  bool zero = false;
  bool data = false;
  bool compressed = false;
  std::optional<uint64_t> offset;
  std::string file;

  uint64_t end() const { return start + length; }
  bool continues(const Entry& next) const {
    return length != 0 && depth == next.depth && present == next.present && zero == next.zero &&
           data == next.data && compressed == next.compressed && file == next.file &&
           offset.has_value() == next.offset.has_value() &&
           (!offset || *offset + length == *next.offset);
  }
};

/// A walk from start to end needs few tables at a time, and there may be a thousand layers.
constexpr uint64_t kTableCache = 64 * KiB;

/// The layers of a disk, top first.  Closed by close_all(), whatever happened.
using Chain = std::vector<Disk>;

Task<Disk> open_below(Reactor& reactor, FileOpener& opener, const Disk& above, OpenArgs args) {
  const std::string named = *backing_file_of(above);
  // An image of the first qcow version has no word for it.
  std::optional<std::string> format;
  if (above.image) format = above.image->head().extensions.backing_format;
  const std::string upper = above.device->name();
  OpenDiskOptions options;
  options.image.share_lock = args.share;
  options.image.without_backing = true;
  options.image.table_cache_size = kTableCache;
  if (names_a_tree(named)) {
    co_return co_await open_tree_of_image(opener, upper, named, format, options.image, &reactor);
  }
  if (format) options.format = co_await parse_format(*format);
  const std::string path = co_await path_of(named);
  std::unique_ptr<File> file =
      co_await opener.open_named_by_image(upper, path, {.share_lock = args.share});
  co_return co_await open_disk_over(std::move(file), opener, std::move(options));
}

Task<void> open_chain(Session& session, FileOpener& opener, MapArgs args, Chain& chain) {
  chain.push_back(co_await open_named(session, opener, args.image, args,
                                      {.without_backing = true, .table_cache_size = kTableCache}));
  const Result<std::string> top = file_of(args.image, args);
  if (top && chain.back().image && chain.back().image->head().backing_file) {
    RawDevice file(co_await opener.open(*top, {.lock = false}));
    co_await check_chain_memory(opener, file).doing("Could not open '", args.image, "'");
  }
  std::set<std::pair<uint64_t, uint64_t>> seen;
  std::set<std::string> seen_devices;  // Names of layers that are no files.
  while (backing_file_of(chain.back())) {
    struct stat status{};
    const std::string name = chain.back().device->name();
    const std::string name_below = *backing_file_of(chain.back());
    const bool is_tree = names_a_tree(name_below);
    const bool is_again =
        (stat(name.c_str(), &status) == 0 && !seen.emplace(status.st_dev, status.st_ino).second) ||
        (is_tree && !seen_devices.insert(name_below).second);
    if (is_again) {
      co_await fail(corrupt("Could not open '", args.image, "': backing file ", quoted(name),
                            ": the backing chain goes in a circle"));
    }
    if (chain.size() > session.chain_max()) {
      co_await fail(unsupported("Could not open '", args.image,
                                "': its backing chain is longer than ", session.chain_max(),
                                " images; BYRE_CHAIN_MAX sets how many are allowed"));
    }
    if (chain.back().image && !is_tree) {
      co_await backing_of(chain.back().image->head()).doing("Could not open '", args.image, "'");
    }
    const std::string below =
        is_tree ? name_below : resolve_name(chain.back().device->name(), name_below);
    Result<Disk> disk = co_await open_below(session.reactor(), opener, chain.back(), args).result();
    if (!disk) {
      Error inner = could_not_open(below, std::move(disk).error(), true);
      std::string why = inner.message();
      const std::string twice = cat("Could not open '", below, "': ");
      if (why.starts_with(twice + twice)) why.erase(0, twice.size());
      co_await fail(
          Error(inner.code(),
                cat("Could not open '", args.image, "': Could not open backing file: ", why),
                inner.sys_errno()));
    }
    chain.push_back(*std::move(disk));
  }
}

/// Backwards: whoever was opened last is closed first.
Task<void> close_all(Chain& chain) {
  while (!chain.empty()) {
    co_await chain.back().device.close();
    chain.pop_back();
  }
}

/// What the disk is from `at` on, for at most `length`: the first layer that says.
Task<Entry> find_entry(Chain& chain, uint64_t at, uint64_t length) {
  Entry entry{.start = at, .length = length, .zero = true};
  for (size_t depth = 0; depth < chain.size(); ++depth) {
    Disk& layer = chain[depth];
    if (at >= layer.size()) break;  // Shorter than the one above it, which reads as zeros here.
    entry.depth = depth;
    const uint64_t there = std::min(entry.length, layer.device->size() - at);
    Extent extent = co_await layer.device->status(at, there);
    co_await look_for_holes(layer, extent);
    entry.length = extent.length;
    if (extent.allocated) {
      entry.present = true;
      entry.zero = extent.zero;
      entry.data = extent.data;
      entry.offset = extent.host_offset;
      if (extent.host_offset) entry.file = extent.file;
      entry.compressed = extent.compressed;
      if (extent.compressed) entry.file = layer.device->name();
      co_return entry;
    }
  }
  co_return entry;
}

/// As printf's %#x: no 0x in front of 0.
std::string address(uint64_t value) { return value == 0 ? "0" : hex(value); }

std::string json_line(const Entry& entry) {
  const auto word = [](bool value) { return value ? "true" : "false"; };
  std::string line = cat("{ \"start\": ", entry.start, ", \"length\": ", entry.length,
                         ", \"depth\": ", entry.depth, ", \"present\": ", word(entry.present),
                         ", \"zero\": ", word(entry.zero), ", \"data\": ", word(entry.data),
                         ", \"compressed\": ", word(entry.compressed));
  if (entry.offset) line += cat(", \"offset\": ", *entry.offset);
  return line + "}";
}

class Printer {
 public:
  Printer(Session& session, OutputFormat format) : session_(session), format_(format) {
    if (format_ == OutputFormat::json) {
      session_.print("[");
    } else {
      session_.print(
          fmt::format("{:<16}{:<16}{:<16}{}\n", "Offset", "Length", "Mapped to", "File"));
    }
  }
  /// Errc::unsupported for what qemu-img's table for people has no words for.
  Result<void> show(const Entry& entry) {
    if (format_ == OutputFormat::json) {
      session_.print((first_ ? "" : ",\n") + json_line(entry));
      first_ = false;
      return {};
    }
    if (entry.compressed && !session_.compatibility_name()) {
      session_.print(fmt::format("{:<16}{:<16}{:<16}{}\n", address(entry.start),
                                 address(entry.length), "compressed", printable(entry.file)));
      return {};
    }
    if (entry.data && !entry.offset) {
      return unsupported("File contains external, encrypted or compressed clusters.");
    }
    if (entry.data && !entry.zero) {
      session_.print(fmt::format("{:<16}{:<16}{:<16}{}\n", address(entry.start),
                                 address(entry.length), address(*entry.offset),
                                 printable(entry.file)));
    }
    return {};
  }
  void finish() {
    if (format_ == OutputFormat::json) session_.print("]\n");
  }

 private:
  Session& session_;
  OutputFormat format_;
  bool first_ = true;
};

Task<void> print_map(Session& session, Chain& chain, MapArgs args) {
  const uint64_t size = chain[0].size();
  uint64_t end = size;
  Entry current{.start = args.start.value_or(0)};
  if (args.length && *args.length < end - std::min(current.start, end)) {
    end = current.start + *args.length;
  }
  Printer printer(session, args.output);
  while (current.end() < end) {
    Entry next = co_await find_entry(chain, current.end(), end - current.end());
    if (current.continues(next)) {
      current.length += next.length;
      continue;
    }
    if (current.length > 0) co_await printer.show(current);
    current = std::move(next);
  }
  co_await printer.show(current);
  printer.finish();
}

Task<int> map(Session& session, MapArgs args) {
  SystemGate opener(session.reactor(), session.policy(args.follow));
  Chain chain;
  Result<void> done = co_await open_chain(session, opener, args, chain).result();
  if (done) done = co_await print_map(session, chain, args).result();
  Result<void> closed = co_await close_all(chain).result();
  co_await std::move(done);
  co_await std::move(closed);
  co_return 0;
}

const Command<MapArgs> kDefinition({
    .name = "map",
    .summary = "Show where the bytes of a disk are",
    .args = {operand("IMAGE", &MapArgs::image, "the image file"), format_argument<MapArgs>(),
             option("--output", "FORMAT", &MapArgs::output,
                    "human (the default): what is data and where it lies (\"compressed\": as a "
                    "stream); json: everything"),
             size_option("-s, --start-offset", "OFFSET", &MapArgs::start, "start offset",
                         "begin at this byte of the disk"),
             size_option("-l, --max-length", "LENGTH", &MapArgs::length, "max length",
                         "end after so many bytes"),
             share_argument<MapArgs>(), follow_arguments<MapArgs>()},
    .too_few = "Expecting one image file name",
    .too_many = "Expecting one image file name",
    .run = map,
});

}  // namespace

const AnyCommand& kMap = kDefinition;

}  // namespace byre
