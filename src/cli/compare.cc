// SPDX-License-Identifier: Apache-2.0
/// `byre compare`: do two disks hold the same bytes?
#include "job/compare.h"

#include <algorithm>
#include <cstring>

#include "cli/commands.h"
#include "cli/exit_code.h"
#include "cli/json.h"
#include "cli/options.h"
#include "cli/progress_line.h"

namespace byre {

namespace {

/// 0: the same, 1: not, and these.  Under the name byre failures have the codes of their classes.
constexpr int kDifferentExit = 1;
constexpr int kOpenExit = 2;
constexpr int kMapExit = 3;
constexpr int kReadExit = 4;
/// The line of -p moves in steps of two percent, as qemu-img's does.
constexpr double kProgressStep = 2;

struct CompareArgs : OpenArgs {
  std::string left;
  std::string right;
  std::optional<std::string> right_format;
  std::string cache = "writeback";
  bool strict = false;
  bool all = false;
  bool progress = false;
  bool quiet = false;
};

/// A failure that has a code of its own under the name qemu-img, and never 1, which says that the
/// images differ.
int report_failure(Session& session, const Error& error, int code) {
  const int own = session.report(error);
  return session.compatibility_name() ? code : std::max(own, kOpenExit);
}

struct Pair {
  Disk left, right;

  Task<void> close() {
    for (Disk* disk : {&left, &right}) {
      if (!disk->device) continue;
      Child device = std::move(disk->device);
      co_await device.close();
    }
  }
};

Task<void> open_pair(Session& session, FileOpener& opener, CompareArgs args, Pair& pair) {
  co_await check_format_option(args);
  const CacheMode cache = co_await cache_mode(args.cache, "source cache");
  const ImageOptions options{.direct = is_direct(cache)};
  pair.left = co_await open_named(session, opener, args.left, args, options);
  // What is wrong with the first disk is said before what is wrong with the options of the second.
  OpenArgs right = args;
  right.format = args.right_format;
  co_await check_format_option(right);
  pair.right = co_await open_named(session, opener, args.right, right, options);
}

/// qemu-img gives the cause in the system's words.
Error as_told(const Session& session, const CompareArgs& args, const CompareFailure& failure,
              Error error) {
  const std::string& name = failure.side == 0 ? args.left : args.right;
  const bool short_form = session.compatibility_name();
  std::string text;
  if (failure.stage == CompareFailure::Stage::map) {
    text = cat("Sector allocation test failed for ", name);
    if (!short_form) text += cat(" at ", hex(failure.offset), ": ", error.message());
  } else {
    const bool has_cause = short_form && error.sys_errno() != 0;
    text = cat("Error while reading offset ", failure.offset, " of ", name, ": ",
               has_cause ? std::string(std::strerror(error.sys_errno())) : error.message());
  }
  return Error(error.code(), std::move(text), error.sys_errno());
}

std::string sentence(const CompareResult& result) {
  switch (result.difference) {
    case Difference::size:
      return "Strict mode: Image size mismatch!\n";
    case Difference::allocation:
      return cat("Strict mode: Offset ", result.offset, " block status mismatch!\n");
    case Difference::content:
      return cat("Content mismatch at offset ", result.offset, "!\n");
    case Difference::none:
      break;
  }
  return "Images are identical.\n";
}

std::string_view word_of(Difference difference) {
  switch (difference) {
    case Difference::size:
      return "size";
    case Difference::allocation:
      return "allocation";
    case Difference::content:
      return "content";
    case Difference::none:
      break;
  }
  return "none";
}

Json json_of(const CompareArgs& args, const Pair& pair, const CompareResult& result) {
  Json json = {{"identical", result.difference == Difference::none},
               {"difference", word_of(result.difference)},
               {"virtual-sizes", {pair.left.device->size(), pair.right.device->size()}}};
  if (result.difference != Difference::none) json["offset"] = result.offset;
  if (!args.all) return json;
  Json ranges = Json::array();
  for (const DifferentRange& range : result.ranges) {
    ranges.push_back({{"start", range.start}, {"length", range.length}});
  }
  json["ranges"] = std::move(ranges);
  return json;
}

void show(Session& session, const CompareArgs& args, const Pair& pair,
          const CompareResult& result) {
  if (session.json()) {
    session.print(to_json(json_of(args, pair, result)));
    return;
  }
  if (args.quiet) return;
  session.print(sentence(result));
  for (const DifferentRange& range : result.ranges) {
    session.print(cat("differs: ", range.length, " bytes at ", range.start, "\n"));
  }
}

Task<int> compare_disks(Session& session, CompareArgs args, Pair& pair) {
  ProgressLine line(session, args.progress && !args.quiet, ProgressLine::Unit::bytes,
                    kProgressStep);
  Progress progress;
  progress.on_change([&](const Progress& now) { line.update(now.done(), now.total()); });
  CompareOptions options{
      .strict = args.strict, .ends_count = session.compatibility_name(), .all = args.all};
  options.on_rest = [&] {
    if (!args.quiet) session.say("Warning: Image size mismatch!\n");
  };
  Compare job(*pair.left.device, *pair.right.device, std::move(options), progress);
  Result<CompareResult> result = co_await job.run().result();
  if (!result && job.failure()) {
    const int code = job.failure()->stage == CompareFailure::Stage::map ? kMapExit : kReadExit;
    co_return report_failure(
        session, as_told(session, args, *job.failure(), std::move(result).error()), code);
  }
  if (!result) co_return std::move(result).error();
  show(session, args, pair, *result);
  co_return result->difference == Difference::none ? 0 : kDifferentExit;
}

Task<int> compare(Session& session, CompareArgs args) {
  SystemGate opener(session.reactor(), session.policy(args.follow));
  Pair pair;
  Result<void> opened = co_await open_pair(session, opener, args, pair).result();
  if (!opened) {
    const int code = report_failure(session, opened.error(), kOpenExit);
    // Where the line of progress ends.
    if (args.progress && !args.quiet && session.compatibility_name()) session.print("\n");
    (void)co_await pair.close().result();
    co_return code;
  }
  Result<int> code = co_await compare_disks(session, std::move(args), pair).result();
  Result<void> closed = co_await pair.close().result();
  if (code && !closed) co_return report_failure(session, closed.error(), kReadExit);
  if (!code) co_return report_failure(session, code.error(), kReadExit);
  co_return *code;
}

const Command<CompareArgs> kDefinition({
    .name = "compare",
    .summary = "Tell whether two disks hold the same bytes",
    .description =
        "Where one disk is longer, the rest must read as zeros. The exit code is 0 when they are "
        "alike, 1 when they are not, and larger when that could not be told (under the name "
        "qemu-img 2: an image could not be opened; 3: its map could not be read; 4: its data).",
    .args = {operand("IMAGE1", &CompareArgs::left, "a disk"),
             operand("IMAGE2", &CompareArgs::right, "the other one"),
             option("-f, --a-format", "FORMAT",
                    static_cast<std::optional<std::string> CompareArgs::*>(&OpenArgs::format),
                    "of the first: raw or qcow2; without it the file's first bytes decide"),
             option("-F, --b-format", "FORMAT", &CompareArgs::right_format, "of the second"),
             option("-T, --cache", "CACHE", &CompareArgs::cache,
                    "how they are read: writeback (the default), or none: past the page cache"),
             flag("-s, --strict", &CompareArgs::strict,
                  "they must also have the same size, and the same ranges allocated"),
             flag("--all", &CompareArgs::all,
                  "do not stop at the first difference: list all ranges that differ"),
             flag("-p, --progress", &CompareArgs::progress, "show how far it is"),
             flag("-q, --quiet", &CompareArgs::quiet, "print nothing but errors"),
             share_argument<CompareArgs>(), follow_arguments<CompareArgs>()},
    .too_few = "Expecting two image file names",
    .too_many = "Expecting two image file names",
    .run = compare,
});

}  // namespace

const AnyCommand& kCompare = kDefinition;

}  // namespace byre
