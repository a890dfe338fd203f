// SPDX-License-Identifier: Apache-2.0
/// `byre repair`: what would a repair do; do it; take it back.
#include <fmt/core.h>

#include "block/raw.h"
#include "cli/commands.h"
#include "cli/findings.h"
#include "cli/options.h"
#include "cli/progress_line.h"
#include "cli/text.h"
#include "job/create.h"
#include "qcow2/repair/recover.h"
#include "qcow2/repair/undo.h"

namespace byre {

namespace {

/// Exit codes.
constexpr int kRepaired = 0;  ///< Or there was nothing to do.
constexpr int kFailed = 1;    ///< Or refused.
constexpr int kToDo = 2;      ///< A plan that would change something.
constexpr int kOrphansLeft = 3;

constexpr uint64_t kRangesShown = 1000;

struct RepairArgs : OpenArgs {
  std::string image;
  OutputFormat output = OutputFormat::human;
  bool apply = false;
  std::optional<std::string> undo;
  std::optional<std::string> journal;
  std::optional<std::string> save_orphans;
  bool free_orphans = false;
  bool accept_loss = false;
  bool decode = false;
  bool progress = false;
  bool quiet = false;
};

Task<std::unique_ptr<RawDevice>> open_image(FileOpener& opener, RepairArgs args, bool writable) {
  const std::string path = co_await path_of(args.image);
  Result<std::unique_ptr<File>> file =
      opener.open(path, {.writable = writable, .share_lock = args.share && !writable});
  if (!file) co_await fail(could_not_open(args.image, std::move(file).error(), !writable));
  if (co_await format_of(**file, args.format) != DiskFormat::qcow2) {
    co_await fail(unsupported(byre::quoted(args.image), " is not a qcow2 image"));
  }
  co_return std::make_unique<RawDevice>(*std::move(file), RawOptions{.growable = true});
}

// ---- What is shown.

Json json_of(const RepairAction& action) {
  Json json = Json::object();
  json["kind"] = std::string(name_of(action.kind));
  if (action.host_offset != 0) json["host-offset"] = action.host_offset;
  if (action.to != 0) json["to"] = action.to;
  if (action.length != 0) json["length"] = action.length;
  if (action.clusters != 0) json["clusters"] = action.clusters;
  if (action.kind == RepairAction::Kind::copy) json["guest-offset"] = action.guest_offset;
  json["text"] = action.text;
  return json;
}

Json json_of(const Orphan& orphan) {
  Json json = Json::object();
  json["host-offset"] = orphan.at.value;
  json["length"] = orphan.length;
  json["looks"] = std::string(name_of(orphan.looks));
  std::string start;
  for (const std::byte byte : orphan.start) {
    start += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  }
  json["start"] = start;
  return json;
}

Json json_of(const Finding::Guest& guest) {
  Json json = Json::object();
  json["offset"] = guest.offset;
  json["length"] = guest.length;
  json["active"] = guest.active;
  json["snapshots"] = guest.snapshots;
  return json;
}

template <class Item>
Json list_of(const std::vector<Item>& items) {
  Json list = Json::array();
  for (const Item& item : items) list.push_back(json_of(item));
  return list;
}

Json json_of(const Recovery& recovery, const RepairArgs& args, bool applied) {
  Json json = Json::object();
  json["filename"] = args.image;
  json["format"] = "qcow2";
  json["needed"] = recovery.needed;
  json["accepted"] = recovery.refused.empty();
  if (!recovery.refused.empty()) json["refused"] = recovery.refused;
  json["applied"] = applied;
  json["corruptions"] = recovery.found.corruptions;
  json["leaks"] = recovery.found.leaks;
  json["corruptions-left"] = recovery.left.corruptions;
  json["leaks-left"] = recovery.left.leaks;
  json["findings"] = json_of_findings(recovery.found.findings);
  json["actions-count"] = recovery.log.actions_count;
  json["actions"] = list_of(recovery.log.actions);
  json["in-doubt"] = list_of(recovery.log.in_doubt);
  json["lost"] = list_of(recovery.log.lost);
  json["lost-things"] = recovery.log.lost_things;
  json["orphan-clusters"] = recovery.orphan_clusters;
  json["orphans"] = list_of(recovery.orphans);
  json["orphans-saved"] = recovery.orphans_saved;
  json["orphans-freed"] = recovery.orphans_freed;
  return json;
}

std::string seen_by(const Finding::Guest& guest) {
  std::string out = guest.active ? "the disk" : "";
  for (const std::string& name : guest.snapshots) {
    out += cat(out.empty() ? "" : ", ", "snapshot ", byre::quoted(name));
  }
  return out;
}

/// "\nHeading:\n", and a line each.
template <class Item, class Line>
std::string listing(std::string_view heading, const std::vector<Item>& items, Line line) {
  if (items.empty()) return "";
  std::string out = cat("\n", heading, ":\n");
  for (size_t i = 0; i < items.size(); ++i) {
    if (i == kRangesShown) {
      out += cat("  and ", items.size() - i, " more (--output=json lists them)\n");
      break;
    }
    out += cat("  ", line(items[i]), "\n");
  }
  return out;
}

std::string line_of(const Orphan& orphan) {
  std::string start;
  for (const std::byte byte : orphan.start) {
    start += fmt::format(" {:02x}", std::to_integer<unsigned>(byte));
  }
  return cat(orphan.at, ", ", orphan.length, " bytes: ", name_of(orphan.looks),
             orphan.looks == Orphan::Looks::zeros ? "" : cat(", starting with", start));
}

/// The marks in the header alone, which are nothing to be found in the tables.
std::string about_marks(uint64_t marks, bool applied) {
  if (marks == 0) return "";
  const bool both = marks == (kDirty | kCorrupt);
  return cat("\nThe image is marked as ",
             both              ? "dirty (it was not closed) and corrupt"
             : marks == kDirty ? "dirty: it was not closed"
                               : "corrupt: nobody is to write to it",
             applied ? ". The mark" : ". --apply takes the mark", both ? "s" : "",
             applied ? (both ? " were taken" : " was taken") : "", " away.\n");
}

uint64_t bytes_lost(const RepairLog& log) {
  uint64_t bytes = 0;
  for (const Finding::Guest& guest : log.lost) bytes += guest.length;
  return bytes;
}

/// What is given up.
std::string losses(const RepairLog& log, bool applied) {
  return listing(cat("Guest ranges that are lost; they ", applied ? "read" : "would read",
                     " as zeros (", bytes_lost(log), " bytes)"),
                 log.lost,
                 [](const Finding::Guest& guest) {
                   return cat("guest offset ", hex(guest.offset), ", ", guest.length,
                              " bytes, seen by ", seen_by(guest));
                 }) +
         listing(applied ? "Also lost" : "Also lost would be", log.lost_things,
                 [](const std::string& name) { return name; });
}

std::string human(const Recovery& recovery, uint64_t marks, bool applied) {
  const CheckReport& found = recovery.found;
  std::string out = cat(found.corruptions, found.corruptions == 1 ? " error and " : " errors and ",
                        found.leaks, found.leaks == 1 ? " leaked cluster" : " leaked clusters",
                        found.corruptions + found.leaks == 1 ? " was found.\n" : " were found.\n");
  if (!recovery.needed && !recovery.refused.empty()) return out + "None of it can be repaired.\n";
  if (!recovery.needed) {
    out += recovery.orphan_clusters == 0
               ? "There is nothing to repair.\n"
               : "There is nothing to repair but what was kept by an earlier repair.\n";
    return out + listing("Clusters that nothing uses", recovery.orphans, line_of);
  }
  if (recovery.refused.empty()) out += about_marks(marks, applied);
  const std::string_view what = applied ? "What was done" : "What a repair would do";
  if (recovery.refused.empty()) {
    out += listing(what, recovery.log.actions, [](const RepairAction& a) { return a.text; });
  }
  if (recovery.refused.empty()) out += losses(recovery.log, applied);
  out += listing("Guest ranges in doubt: check what they hold (file systems, databases)",
                 recovery.log.in_doubt, [](const Finding::Guest& guest) {
                   return cat(hex(guest.offset), ", ", guest.length, " bytes, seen by ",
                              seen_by(guest));
                 });
  out += listing("Clusters that nothing uses", recovery.orphans, line_of);
  return out;
}

/// What happens to orphans, in a sentence.
std::string fate_of_orphans(const Session& session, const Recovery& recovery,
                            const RepairArgs& args, bool applied) {
  if (recovery.orphan_clusters == 0) return "";
  if (recovery.orphans_freed) {
    const std::string saved =
        args.save_orphans ? cat(applied ? "saved to " : "would be saved to ",
                                byre::quoted(*args.save_orphans), " at the offsets they have, and ")
                          : "";
    return cat("\nThese clusters ", applied ? "were " : "", saved,
               applied ? "freed.\n" : "would be freed.\n");
  }
  const std::string command = cat(session.program(), " repair --apply ");
  return cat(
      "\nThese clusters stay, since they may be the only copy of something; no repair by byre "
      "frees them unasked.\nTo save and free them: ",
      command, "--save-orphans FILE ", byre::quoted(args.image),
      "\nTo free them without: ", command, "--free-orphans ", byre::quoted(args.image), "\n");
}

// ---- What is done.

struct Journal {
  std::unique_ptr<RawDevice> file;
  std::optional<UndoJournal> journal;
};

Task<void> go_on_with(Journal& opened, RawDevice& image) {
  opened.journal = co_await UndoJournal::load(*opened.file);
  co_await opened.journal->check(image);
}

/// A new journal, or the one of a repair that was cut off.
Task<Journal> open_journal(Session& session, FileOpener& opener, RawDevice& image,
                           std::string path) {
  Journal opened;
  Result<std::unique_ptr<File>> file = opener.open(path, {.writable = true, .create = true});
  const bool is_new = file.has_value();
  if (!file && file.error().code() == Errc::exists) file = opener.open(path, {.writable = true});
  if (!file) co_await fail(std::move(file).error().while_doing("undo journal"));
  opened.file = std::make_unique<RawDevice>(*std::move(file), RawOptions{.growable = true});
  // One that was made and never written is new, too.
  if (is_new || opened.file->size() == 0) {
    opened.journal = co_await UndoJournal::begin(image, *opened.file);
    co_await sync_folder(session.reactor(), path);
    co_return std::move(opened);
  }
  const Result<void> goes_on = co_await go_on_with(opened, image).result();
  if (!goes_on) {
    const Error& error = goes_on.error();
    co_return Error(
        error.code(),
        cat("continue the repair of undo journal ", byre::quoted(path), ": ", error.message(),
            "; if that repair is not going to be taken back, move the journal away or "
            "delete it, or name a new one with --journal"),
        error.sys_errno(), error.where());
  }
  co_await opened.journal->trim();
  co_return std::move(opened);
}

Task<Recovery> apply(Session& session, FileOpener& opener, RawDevice& image, RepairArgs args,
                     const Recovery& plan) {
  const std::string path = args.journal.value_or(args.image + ".undo");
  std::unique_ptr<RawDevice> orphans;
  RecoverOptions options{
      .free_orphans = args.free_orphans, .accept_loss = args.accept_loss, .decode = args.decode};
  if (args.save_orphans && plan.orphan_clusters != 0) {
    std::unique_ptr<File> file =
        co_await opener.open(*args.save_orphans, {.writable = true, .create = true});
    orphans = std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = true});
    options.save_orphans_to = orphans.get();
    co_await sync_folder(session.reactor(), *args.save_orphans);
  }
  Journal journal = co_await open_journal(session, opener, image, path);
  UndoDevice device(image, *journal.journal);
  Result<Recovery> done = co_await apply_recovery(device, options).result();
  Result<void> closed = co_await journal.file->close().result();
  if (orphans) {
    Result<void> saved = co_await orphans->close().result();
    if (done) co_await std::move(saved);
  }
  if (!done) {
    co_await fail(std::move(done).error().while_doing(
        cat("repair (run it again, or take it back with --undo ", byre::quoted(path), ")")));
  }
  co_await std::move(closed);
  if (!args.quiet && args.output == OutputFormat::human) {
    session.print(cat("To take it all back: ", session.program(), " repair --undo ",
                      byre::quoted(path), " ", byre::quoted(args.image), "\n"));
  }
  co_return *std::move(done);
}

/// The locks would say so, too, but not in words that help.
Result<void> check_journal(const RepairArgs& args, const std::string& journal) {
  BYRE_TRY(image, path_of(args.image));
  if (!same_file(image, journal)) return {};
  return invalid(byre::quoted(journal), " is the image itself, not an undo journal");
}

Task<int> undo(Session& session, RepairArgs args) {
  co_await check_journal(args, *args.undo);
  SystemGate opener(session.reactor(), OpenPolicy::nothing);
  std::unique_ptr<RawDevice> image = co_await open_image(opener, args, true);
  std::unique_ptr<File> file = co_await opener.open(*args.undo, {});
  RawDevice journal(std::move(file), {});
  Session::Interruptible guard(
      session,
      {.stop = [] {},
       .waiting_for =
           [&] { return cat("the repair of ", byre::quoted(args.image), " to be taken back"); }});
  Result<void> undone = co_await undo_repair(*image, journal).result();
  Result<void> closed = co_await image->close().result();
  co_await journal.close();
  co_await std::move(undone);
  co_await std::move(closed);
  if (!args.quiet && args.output == OutputFormat::human) {
    session.print(
        cat("The repair of ", byre::quoted(args.image),
            " was taken back: its tables, its length and all that the repair had written are "
            "what they were. Data that were written in place since stay as they are.\n"));
  } else if (args.output == OutputFormat::json) {
    Json json = Json::object();
    json["filename"] = args.image;
    json["undone"] = true;
    session.print(to_json(json));
  }
  co_return kRepaired;
}

/// After a refusal: what would be possible.
Task<std::string> way_on_from(const Session& session, RawDevice& image, RepairArgs args) {
  const std::string salvage = cat("convert --salvage -O qcow2 ", byre::quoted(args.image),
                                  " COPY takes what can be read to a new image");
  if (args.accept_loss) co_return cat(session.program(), " ", salvage);
  RecoverOptions options{.free_orphans = true, .accept_loss = true, .decode = args.decode};
  const Result<Recovery> with_loss = co_await plan_recovery(image, std::move(options)).result();
  if (!with_loss || !with_loss->refused.empty()) co_return cat(session.program(), " ", salvage);
  const uint64_t bytes = bytes_lost(with_loss->log);
  const uint64_t things = with_loss->log.lost_things.size();
  std::string lost = bytes != 0 ? cat(bytes, " bytes of it") : "";
  if (things != 0) {
    lost += cat(lost.empty() ? "" : " and ", things,
                things == 1 ? " snapshot or bitmap" : " snapshots or bitmaps");
  }
  co_return cat("it can be repaired if ", lost.empty() ? "nothing" : lost,
                " may be lost: ", session.program(), " repair --accept-loss ",
                byre::quoted(args.image), " lists what; ", session.program(), " ", salvage);
}

int show(Session& session, const Recovery& recovery, const RepairArgs& args, uint64_t marks,
         bool applied, const std::string& way_on) {
  if (args.output == OutputFormat::json) {
    session.print(to_json(json_of(recovery, args, applied)));
  } else if (!args.quiet) {
    show_findings(session, recovery.found.findings);
    session.print(printable_lines(human(recovery, marks, applied) +
                                  fate_of_orphans(session, recovery, args, applied)));
  }
  if (!recovery.refused.empty()) {
    session.error(printable(cat(byre::quoted(args.image), " cannot be repaired",
                                args.accept_loss ? "" : " without loss",
                                " and was not touched: ", recovery.refused)));
    session.note(printable_lines(cat(session.program(), ": ", way_on, "\n")));
    return kFailed;
  }
  if (!recovery.needed) return recovery.left.leaks != 0 ? kOrphansLeft : kRepaired;
  if (!applied) {
    if (args.output == OutputFormat::human && !args.quiet) {
      session.print("\nNothing was changed; --apply does it.\n");
    }
    return kToDo;
  }
  return recovery.left.leaks != 0 ? kOrphansLeft : kRepaired;
}

Result<void> check_args(const RepairArgs& args) {
  if (args.undo && (args.apply || args.journal || args.save_orphans || args.free_orphans ||
                    args.accept_loss || args.decode)) {
    return invalid("--undo goes with no other option of a repair");
  }
  if (args.journal && !args.apply) return invalid("--journal needs --apply");
  if (args.share && (args.apply || args.undo)) {
    return invalid("-U only goes with looking; an image that others write cannot be repaired");
  }
  return {};
}

Task<int> repair(Session& session, RepairArgs args) {
  co_await check_args(args);
  if (args.undo) co_return co_await undo(session, std::move(args));

  if (args.journal) co_await check_journal(args, *args.journal);
  SystemGate opener(session.reactor(), OpenPolicy::nothing);
  std::unique_ptr<RawDevice> image = co_await open_image(opener, args, args.apply);
  uint64_t marks = 0;
  if (const Result<ImageHeader> head = co_await load_image_header(*image, OpenFor::check).result();
      head) {
    marks = head->header.incompatible & (kDirty | kCorrupt);
  }
  const bool talks = args.output == OutputFormat::human && !args.quiet;
  Result<Recovery> recovery = Recovery{};
  {
    ProgressLine line(session, args.progress && talks);
    Progress progress;
    line.follow(progress);
    // A plan takes the fate of orphans as it will be.
    RecoverOptions options{.free_orphans = args.free_orphans || args.save_orphans.has_value(),
                           .accept_loss = args.accept_loss,
                           .decode = args.decode};
    options.progress = &progress;
    recovery = co_await plan_recovery(*image, std::move(options)).result();
  }
  const bool applies = args.apply && recovery && recovery->needed && recovery->refused.empty();
  if (applies) {
    // A repair that was begun is ended: a half-repaired image helps nobody.
    Session::Interruptible guard(
        session, {.stop = [] {},
                  .waiting_for = [&] { return cat("the repair of ", byre::quoted(args.image)); }});
    const Recovery plan = *std::move(recovery);
    recovery = co_await apply(session, opener, *image, args, plan).result();
  }
  std::string way_on;
  if (recovery && !recovery->refused.empty()) {
    way_on = co_await way_on_from(session, *image, args);
  }
  Result<void> closed = co_await image->close().result();
  if (!recovery) co_await fail(std::move(recovery).error());
  co_await std::move(closed);
  co_return show(session, *recovery, args, marks, applies, way_on);
}

const Command<RepairArgs> kDefinition({
    .name = "repair",
    .summary = "Show what a repair of an image would do, do it, or take it back",
    .description =
        "Without --apply nothing is changed. An image is repaired whole or not touched at all. "
        "What is overwritten goes to an undo journal first, which takes the repair back byte for "
        "byte as long as nobody else changed its tables, or data that two things shared. Exit "
        "codes: 0 repaired, or nothing to do; "
        "1 failed or refused; 2 there is something to do; 3 repaired, but clusters were left that "
        "may be the only copy of something.",
    .args =
        {operand("IMAGE", &RepairArgs::image, "the image file"), format_argument<RepairArgs>(),
         flag("--apply", &RepairArgs::apply, "do it"),
         option("--journal", "FILE", &RepairArgs::journal,
                "the undo journal to write, or to go on with; IMAGE.undo without it"),
         option("--undo", "FILE", &RepairArgs::undo,
                "take back the repair that wrote this journal"),
         option("--save-orphans", "FILE", &RepairArgs::save_orphans,
                "copy clusters that nothing uses to this new file, at the offsets that they "
                "have in the image, before they are freed"),
         flag("--free-orphans", &RepairArgs::free_orphans,
              "free such clusters even where damage was found and they may be the only copy of "
              "what was lost"),
         flag("--accept-loss", &RepairArgs::accept_loss,
              "give up what leads nowhere: the guest ranges, listed, read as zeros; snapshots and "
              "bitmaps that cannot be used go. Without --apply: list it"),
         flag("--decode", &RepairArgs::decode,
              "inflate every compressed cluster; one that does not inflate leads nowhere"),
         option("--output", "FORMAT", &RepairArgs::output, "human (the default) or json"),
         share_argument<RepairArgs>(),
         flag("-p, --progress", &RepairArgs::progress, "show how far it is"),
         flag("-q, --quiet", &RepairArgs::quiet, "print nothing but errors")},
    .too_few = "Expecting one image file name",
    .too_many = "Expecting one image file name",
    .run = repair,
});

}  // namespace

const AnyCommand& kRepair = kDefinition;

}  // namespace byre
