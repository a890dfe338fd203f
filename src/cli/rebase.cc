// SPDX-License-Identifier: Apache-2.0
/// `byre rebase`: another backing file, or none; the contents stay.
#include "job/rebase.h"

#include "cli/commands.h"
#include "cli/json.h"
#include "cli/new_disk.h"
#include "cli/options.h"
#include "cli/progress_line.h"
#include "job/chain.h"

namespace byre {

namespace {

struct RebaseArgs : OpenArgs {
  std::string image;
  std::optional<std::string> backing;
  std::optional<std::string> backing_format;
  std::string cache = "writeback";
  std::string backing_cache = "writeback";
  bool is_unsafe = false;
  bool compress = false;
  bool force = false;
  bool progress = false;
  bool quiet = false;

  /// What the header is to name; none: no backing file.
  std::optional<BackingName> name() const {
    if (!backing || backing->empty()) return std::nullopt;
    return BackingName{*backing, backing_format.value_or("")};
  }
};

Error not_changed(const Session& session, const RebaseArgs& args, const Error& why) {
  const std::string_view none = session.compatibility_name() ? "(null)" : "";
  const std::string_view name = args.backing ? std::string_view(*args.backing) : none;
  return Error(why.code(),
               cat("Could not change the backing file to '", name, "': ", why.message()),
               why.sys_errno());
}

Error not_opened(const RebaseArgs& args, const Error& why) {
  return Error(why.code(),
               cat("Could not open new backing file '", *args.backing, "': ", why.message()),
               why.sys_errno());
}

/// What can be wrong with the format before its file is opened.
Result<void> check_format(const RebaseArgs& args) {
  if (!args.backing_format) return {};
  const Result<DiskFormat> format = parse_format(*args.backing_format);
  if (!format) return invalid("Invalid format name: '", *args.backing_format, "'");
  if (*format != DiskFormat::qcow || !args.name()) return {};
  return unsupported(
      "an image of qcow version 1 cannot lie below another image; make a qcow2 image of it (byre "
      "convert -O qcow2 ",
      quoted(*args.backing), " COPY)");
}

/// The file that a plain name means, which is relative to the overlay's folder.
Result<std::string> backing_path(const RebaseArgs& args) {
  BYRE_TRY(path, path_of(*args.backing));
  const Result<std::string> overlay = file_of(args.image, args);
  return overlay ? resolve_name(*overlay, path) : path;
}

/// The format that the new backing file is opened as.  Guessed, it is never written.
Task<DiskFormat> format_below(FileOpener& opener, const RebaseArgs& args, std::string path) {
  if (args.backing_format) co_return co_await parse_format(*args.backing_format);
  const std::unique_ptr<File> file = co_await opener.open(path, {.lock = false});
  co_return co_await find_format(*file, std::nullopt);
}

/// Would the overlay lie below itself?
Task<void> check_circle(Session& session, FileOpener& opener, const RebaseArgs& args) {
  const Result<std::string> overlay = file_of(args.image, args);
  const Result<std::string> path = backing_path(args);
  if (!overlay || !path) co_return;
  const Result<DiskFormat> format = co_await format_below(opener, args, *path).result();
  if (!format) co_return;
  const Result<std::vector<ChainFile>> chain =
      co_await read_chain(opener, *path, *format, session.chain_max()).result();
  if (!chain) co_return;  // Whoever opens it says why.
  for (const ChainFile& file : *chain) {
    if (!same_file(file.name, *overlay)) continue;
    Error error = invalid("Making ", quoted(*args.backing), " the backing file of ",
                          quoted(args.image), " would create a cycle");
    if (session.compatibility_name()) error = not_opened(args, error);
    co_await fail(std::move(error));
  }
}

/// What is wrong with the image that was opened, or with the words, before the new backing file is
/// opened.
Task<void> check_overlay(Session& session, FileOpener& opener, const RebaseArgs& args,
                         const Disk& disk) {
  if (disk.guessed && disk.format == DiskFormat::raw) warn_of_guess(session, args.image);
  // With an external data file qemu-img writes data instead.
  const bool has_streams = disk.image && !disk.image->geometry().data_file;
  if (args.compress && !has_streams && !(disk.image && session.compatibility_name())) {
    co_await fail(invalid("Compression not supported for this file format"));
  }
  co_await check_format(args);
  if (!args.name()) co_return;
  if (!session.compatibility_name() || !args.is_unsafe) {
    co_await check_circle(session, opener, args);
  }
  if (args.name()->format != "raw" || session.compatibility_name()) co_return;
  const Result<std::string> path = backing_path(args);
  if (path) co_await check_backing_is_raw(session, opener, *path, args.force);
}

/// What keeps its header from naming the new one.
Result<void> check_name(const Session& session, const RebaseArgs& args, const Disk& disk) {
  const std::optional<BackingName> name = args.name();
  if (name && name->format.empty()) {
    return not_changed(session, args, invalid("backing format must be specified"));
  }
  if (!disk.image) return not_changed(session, args, unsupported("Operation not supported"));
  return {};
}

Task<void> change_name(const Session& session, const RebaseArgs& args, Image& image) {
  const std::optional<BackingName> name = args.name();
  AmendOptions options;
  options.backing_file = name ? name->file : "";
  options.backing_format = name ? name->format : "";
  Result<void> done = co_await image.amend(std::move(options)).result();
  if (!done) co_await fail(not_changed(session, args, done.error()));
}

/// The disk that is to be below; an edge that leads nowhere when there is to be none.
Task<Child> open_next(Session& session, FileOpener& opener, const RebaseArgs& args,
                      CacheMode cache) {
  if (!args.name()) co_return Child();
  std::string name = *args.backing;
  OpenArgs how{.format = args.backing_format, .follow = args.follow, .has_share = false};
  if (!names_devices(name, how)) name = co_await backing_path(args);
  Result<Disk> disk =
      co_await open_named(session, opener, name, how, {.direct = is_direct(cache)}).result();
  if (disk) co_return std::move(disk->device);
  std::string why = disk.error().message();
  const std::string again = cat("Could not open '", name, "': ");
  if (why.starts_with(again)) why.erase(0, again.size());
  co_return not_opened(args, Error(disk.error().code(), why, disk.error().sys_errno()));
}

Task<void> copy_up(Session& session, const RebaseArgs& args, Image& overlay, Child& next,
                   CacheMode cache, ProgressLine& line) {
  Progress progress;
  const bool has_streams = !overlay.geometry().data_file;
  RebaseOptions options{.compressed = args.compress && has_streams,
                        .zeros_as_data = session.compatibility_name(),
                        .fua = is_write_through(cache)};
  if (!options.compressed && !is_direct(cache)) copy_through_page_cache(options);
  Rebase job(overlay, next, progress, options);
  progress.on_change([&](const Progress& now) { line.update(now.done(), now.total()); });
  const Session::Interruptible guard(session, {.about = quoted(args.image),
                                               .stop = [&] { progress.stop(); },
                                               .waiting_for = [&] { return job.waiting_for(); }});
  if (Result<void> room = co_await job.check_room(args.name()).result(); !room) {
    co_await fail(not_changed(session, args, room.error()));
  }
  co_await job.run(args.name());
}

struct Caches {
  CacheMode image = CacheMode::writeback;
  CacheMode backing = CacheMode::writeback;
};

Result<Caches> read_caches(const RebaseArgs& args) {
  BYRE_TRY(image, cache_mode(args.cache, "cache"));
  BYRE_TRY(backing, cache_mode(args.backing_cache, "source cache"));
  return Caches{image, backing};
}

Task<void> change_contents(Session& session, FileOpener& opener, const RebaseArgs& args,
                           const Disk& disk, Caches caches, ProgressLine& line) {
  Child next = co_await open_next(session, opener, args, caches.backing);
  Result<void> done = check_name(session, args, disk);
  if (done) {
    done = co_await copy_up(session, args, *disk.image, next, caches.image, line).result();
  }
  Result<void> closed;
  if (next) closed = co_await next.close().result();  // By now the old one.
  co_await std::move(done);
  co_await std::move(closed);
}

Task<void> change(Session& session, FileOpener& opener, const RebaseArgs& args, const Disk& disk,
                  Caches caches, ProgressLine& line) {
  co_await check_overlay(session, opener, args, disk);
  if (!args.is_unsafe) {
    co_await change_contents(session, opener, args, disk, caches, line);
  } else {
    co_await check_name(session, args, disk);
    co_await change_name(session, args, *disk.image);
  }
  line.finish();
}

struct Rebased {
  bool has_snapshots = false;
};

Task<Rebased> change_image(Session& session, const RebaseArgs& args) {
  ProgressLine line(session, args.progress && !args.quiet, ProgressLine::Unit::bytes);
  const Caches caches = co_await read_caches(args);
  SystemGate opener(session.reactor(), session.policy(args.follow));
  OpenArgs how = args;
  how.share = false;  // Whoever writes it shares it with no other writer.
  Disk disk = co_await open_named(
      session, opener, args.image, how,
      {.writable = true, .direct = is_direct(caches.image), .without_backing = args.is_unsafe});
  Result<void> done = co_await change(session, opener, args, disk, caches, line).result();
  const bool has_snapshots = disk.image && !disk.image->snapshots().empty();
  Result<void> closed = co_await disk.device.close().result();
  co_await std::move(done);
  co_await std::move(closed);
  co_return Rebased{has_snapshots};
}

Task<int> rebase(Session& session, RebaseArgs args) {
  if (!args.backing && !args.is_unsafe) {
    co_return finish_parse(session, kRebase,
                           {.outcome = Parsed::Outcome::failed,
                            .error = "Must specify backing file (-b) or use unsafe mode (-u)",
                            .usage = true});
  }
  const bool has_snapshots = (co_await change_image(session, args)).has_snapshots;
  const std::optional<BackingName> name = args.name();
  if (has_snapshots && !session.compatibility_name()) {
    session.warn(cat("where the snapshots of ", quoted(args.image),
                     " have nothing of their own they show ",
                     name ? cat("what ", quoted(name->file), " has") : "zeros", " now"));
  }
  if (name && !session.compatibility_name()) warn_of_policy(session, args.image, name->file);
  if (session.json()) {
    session.print(name ? to_json({{"filename", args.image},
                                  {"backing-filename", name->file},
                                  {"backing-filename-format", name->format}})
                       : to_json({{"filename", args.image}}));
  }
  co_return 0;
}

const Command<RebaseArgs> kDefinition({
    .name = "rebase",
    .summary = "Give an overlay another backing file, or none; its contents stay",
    .description =
        "Where the old and the new backing file differ, what the old one shows is written into the "
        "overlay first; then its header names the new one. What both chains have from the same "
        "file "
        "is not read. Interrupted at any moment, the image reads what it did, over the old backing "
        "file or the new one. With -u only the name is changed: for a backing file that was moved, "
        "or that holds the same as the old one.",
    .args =
        {operand("IMAGE", &RebaseArgs::image, "the overlay"), format_argument<RebaseArgs>(),
         option("-b, --backing", "FILE", &RebaseArgs::backing,
                "the new backing file, as the image is to name it: a relative name starts at the "
                "image's folder; \"\": none, and the image gets all contents"),
         option("-F, --backing-format", "FORMAT", &RebaseArgs::backing_format,
                "raw or qcow2; it is never guessed"),
         option("-B", "FORMAT", &RebaseArgs::backing_format, "as -F"),
         flag("-u, --backing-unsafe", &RebaseArgs::is_unsafe,
              "change the name and copy nothing; without -b there is no backing file afterwards"),
         flag("-c, --compress", &RebaseArgs::compress, "write compressed clusters"),
         option("-t, --cache", "MODE", &RebaseArgs::cache,
                "how the image is written: writeback (the default), none, writethrough, directsync "
                "or unsafe; all is durable at the end in any"),
         option("-T, --backing-cache", "MODE", &RebaseArgs::backing_cache,
                "how the new backing file is read: writeback (the default), or none: past the page "
                "cache"),
         flag("-U, --force-share", static_cast<bool RebaseArgs::*>(&OpenArgs::share),
              "taken for qemu-img's sake: it shares no more, the image is written"),
         flag("--force", &RebaseArgs::force,
              "take a backing file as raw although it begins like an image"),
         flag("-p, --progress", &RebaseArgs::progress, "show how far it is"),
         flag("-q, --quiet", &RebaseArgs::quiet, "print nothing but errors"),
         scan_arguments<RebaseArgs>(), follow_arguments<RebaseArgs>()},
    .too_few = "Expecting one image file name",
    .too_many = "Expecting one image file name",
    .run = rebase,
});

}  // namespace

const AnyCommand& kRebase = kDefinition;

}  // namespace byre
