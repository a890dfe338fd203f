// SPDX-License-Identifier: Apache-2.0
/// `byre commit`: what an overlay has goes down into its backing disk.
#include "job/commit.h"

#include "cli/commands.h"
#include "cli/json.h"
#include "cli/options.h"
#include "cli/progress_line.h"
#include "job/chain.h"

namespace byre {

namespace {

struct CommitArgs : OpenArgs {
  std::string image;
  std::string cache = "writeback";
  std::optional<std::string> base;
  uint64_t rate = 0;
  bool drop = false;
  bool progress = false;
  bool quiet = false;
};

Result<uint64_t> parse_rate(std::string_view text) {
  const bool is_negative = text.starts_with('-');
  const Result<uint64_t> rate = parse_size(text.substr(is_negative ? 1 : 0));
  if (rate && !is_negative) return *rate;
  if (rate || rate.error().code() == Errc::no_space) {
    return invalid("Invalid rate limit specified. Must be between 0 and ", INT64_MAX, ".");
  }
  return invalid("Invalid rate limit specified: '", text, "'.");
}

/// Which disk of the chain the user means by -b: its depth; 0: none.  A name is taken as images
/// have it, beside the image; under the name byre also from the working directory.
Task<uint32_t> find_base(Session& session, FileOpener& opener, const CommitArgs& args) {
  const Result<std::string> path = file_of(args.image, args);
  const Result<std::string> base = path_of(*args.base);
  if (!path || !base) co_return 0;
  const bool is_strict = session.compatibility_name();
  if (is_strict && *base != *args.base) co_return 0;  // `file:NAME` is no name in an image.
  const Result<std::vector<ChainFile>> chain =
      co_await read_chain(opener, *path, DiskFormat::qcow2, uint64_t{session.chain_max()} + 1)
          .result();
  if (!chain) co_return 0;
  for (size_t i = 1; i < chain->size(); ++i) {
    const std::string& name = (*chain)[i].name;
    if ((!is_strict && same_file(name, *base)) ||
        same_file(name, resolve_name((*chain)[i - 1].name, *base))) {
      co_return static_cast<uint32_t>(i);
    }
  }
  co_return 0;
}

Error not_in_chain(const CommitArgs& args) {
  return Error(Errc::not_found,
               cat("Did not find '", *args.base, "' in the backing chain of '", args.image, "'"));
}

/// What keeps the disk that was opened from being committed.
Result<void> check_overlay(Session& session, const Disk& disk, const CommitArgs& args,
                           uint32_t depth) {
  if (disk.guessed && disk.format == DiskFormat::raw) warn_of_guess(session, args.image);
  if (args.base && depth == 0) return not_in_chain(args);
  if (!disk.image || !disk.image->backing()) return invalid("Image does not have a backing file");
  return {};
}

Task<void> copy_down(Session& session, const CommitArgs& args, Commit& job, Progress& progress,
                     ProgressLine& line) {
  progress.on_change([&](const Progress& now) { line.update(now.done(), now.total()); });
  const Session::Interruptible guard(
      session, {.about = cat(quoted(args.image), " or ", quoted(job.base().name())),
                .stop = [&] { progress.stop(); },
                .waiting_for = [&] { return job.waiting_for(); }});
  Result<void> done = co_await job.run().result();
  progress.on_change(nullptr);
  co_await std::move(done);
}

/// Who reads through a disk between, or through the base, sees other contents from now on.
void warn_of_others(Session& session, const Image& overlay, const Commit& job) {
  if (session.compatibility_name()) return;
  const std::string base = quoted(job.base().name());
  std::string names;
  for (const Device* device : job.between()) {
    names += cat(names.empty() ? "" : ", ", quoted(device->name()));
  }
  if (!names.empty()) {
    session.warn(cat(names, " between the two still has what it had over the old contents of ",
                     base, ": what else reads through it is no longer right"));
  }
  if (!overlay.snapshots().empty()) {
    session.warn(cat("where the snapshots of ", quoted(overlay.name()),
                     " have nothing of their own they show the new contents of ", base));
  }
}

struct Committed {
  std::string base;
  bool emptied = false;
};

Task<Committed> run(Session& session, const CommitArgs& args, Disk& disk, CommitOptions options) {
  ProgressLine line(session, args.progress && !args.quiet, ProgressLine::Unit::bytes);
  co_await check_overlay(session, disk, args, options.depth);
  Progress progress;
  const std::unique_ptr<Commit> job = co_await Commit::make(*disk.image, progress, options);
  co_await copy_down(session, args, *job, progress, line);
  line.finish();
  warn_of_others(session, *disk.image, *job);
  co_return Committed{job->base().name(), options.empty};
}

Task<int> commit(Session& session, CommitArgs args) {
  CommitOptions options{.rate = args.rate};
  const CacheMode cache = co_await cache_mode(args.cache, "cache");
  options.fua = is_write_through(cache);
  options.empty = !args.drop && !args.base;
  options.whole_clusters = session.compatibility_name();
  if (!is_direct(cache)) copy_through_page_cache(options);
  SystemGate opener(session.reactor(), session.policy(args.follow));
  if (args.base) options.depth = co_await find_base(session, opener, args);
  Disk disk = co_await open_named(
      session, opener, args.image, args,
      {.writable = true, .direct = is_direct(cache), .writable_below = options.depth});
  Result<Committed> done = co_await run(session, args, disk, options).result();
  Result<void> closed = co_await disk.device.close().result();
  const Committed committed = co_await std::move(done);
  co_await std::move(closed);
  if (!args.quiet) session.say("Image committed.\n");
  if (session.json()) {
    session.print(to_json(
        {{"filename", args.image}, {"base", committed.base}, {"emptied", committed.emptied}}));
  }
  co_return 0;
}

/// A wrong one is told where it stands.
Argument rate_option() {
  Argument argument = detail::named(Argument::Kind::option, "-r, --rate", "RATE",
                                    "at most so many bytes a second; 0: as fast as it goes");
  argument.store = [](void* args, std::string_view value) -> Result<void> {
    BYRE_TRY(rate, parse_rate(value));
    static_cast<CommitArgs*>(args)->rate = rate;
    return {};
  };
  return argument;
}

const Command<CommitArgs> kDefinition({
    .name = "commit",
    .summary = "Write what an overlay has down into its backing disk",
    .description =
        "The backing disk grows where it is smaller. When all of it is durable there, the overlay "
        "is "
        "emptied: it takes no space then, and reads the same from below. Interrupted at any "
        "moment, "
        "the overlay reads what it did; run it again. Other overlays of a disk that is written to "
        "show other contents afterwards: with -b so do the images between, which stay as they are. "
        "Bitmaps of the backing disk that record take note of what is written.",
    .args =
        {operand("IMAGE", &CommitArgs::image, "the overlay"), format_argument<CommitArgs>(),
         option("-t, --cache", "MODE", &CommitArgs::cache,
                "writeback (the default), none, writethrough, directsync or unsafe; all is durable "
                "at the end in any"),
         option("-b, --base", "FILE", &CommitArgs::base,
                "the disk of the backing chain to write into, instead of the next one; the overlay "
                "is not emptied then"),
         flag("-d, --drop", &CommitArgs::drop,
              "do not empty the overlay: it is not wanted any more"),
         rate_option(), flag("-p, --progress", &CommitArgs::progress, "show how far it is"),
         flag("-q, --quiet", &CommitArgs::quiet, "print nothing but errors"),
         scan_arguments<CommitArgs>(), follow_arguments<CommitArgs>()},
    .too_few = "Expecting one image file name",
    .too_many = "Expecting one image file name",
    .run = commit,
});

}  // namespace

const AnyCommand& kCommit = kDefinition;

}  // namespace byre
