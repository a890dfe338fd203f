// SPDX-License-Identifier: Apache-2.0
/// `byre check`: is an image consistent, and make it so.
#include "qcow2/repair/check.h"

#include "cli/check_report.h"
#include "cli/commands.h"
#include "cli/findings.h"
#include "cli/json.h"
#include "cli/options.h"
#include "cli/progress_line.h"
#include "cli/text.h"
#include "job/verify_chain.h"

namespace byre {

namespace {

/// Exit codes, as qemu-img has them.
constexpr int kNoErrors = 0;
constexpr int kCheckFailed = 1;
constexpr int kCorruptions = 2;
constexpr int kLeaksOnly = 3;
constexpr int kNotChecked = 63;

struct CheckArgs : OpenArgs {
  std::string image;
  OutputFormat output = OutputFormat::human;
  std::optional<std::string> repair;
  std::string cache = "writeback";
  bool findings = false;
  bool decode = false;
  bool bitmaps = false;
  bool snapshots = false;
  bool chain = false;
  bool progress = false;
  bool quiet = false;
};

/// Checks, and repairs if that is asked for; a repair is followed by another look, whose result
/// this is.
Task<CheckReport> check_and_repair(Session& session, FileOpener& opener, Device& file,
                                   CheckArgs args, Repair repair) {
  const bool talks = args.output == OutputFormat::human && !args.quiet;
  CheckReport report;
  {
    ProgressLine line(session, args.progress && talks);
    Progress progress;
    line.follow(progress);
    CheckOptions options{.repair = repair,
                         .progress = &progress,
                         .attribute = args.findings || (talks && !session.compatibility_name()),
                         .decode = args.decode,
                         .bitmaps = args.bitmaps,
                         .snapshots = args.snapshots};
    const CheckOptions below{.attribute = args.findings,
                             .decode = args.decode,
                             .bitmaps = args.bitmaps,
                             .snapshots = args.snapshots};
    report = co_await check_image(file, std::move(options));
    if (args.chain) co_await verify_chain(opener, args.share, file, below, report);
  }
  show_findings(session, session.compatibility_name() ? report.findings
                                                      : one_for_each_damage(report.findings));
  for (const Finding::Guest& guest : report.in_doubt) {
    std::string seen = guest.active ? "the disk" : "";
    for (const std::string& name : guest.snapshots) {
      seen += cat(seen.empty() ? "" : ", ", "snapshot ", byre::quoted(name));
    }
    session.note(cat("NOTE guest range at ", hex(guest.offset), ", ", guest.length,
                     " bytes, seen by ", seen, ": check what it holds\n"));
  }
  if (report.orphans_kept != 0) {
    const std::string way_on =
        report.corruptions != 0
            ? cat("byre repair ", byre::quoted(args.image), " shows what can be repaired")
            : cat("byre repair --apply --save-orphans FILE ", byre::quoted(args.image),
                  " saves and frees what was kept");
    session.note(cat("NOTE ", report.orphans_kept,
                     report.orphans_kept == 1 ? " leaked cluster was" : " leaked clusters were",
                     " kept, which may be the only copy of something; ", way_on, "\n"));
  }
  if (report.corruptions_fixed == 0 && report.leaks_fixed == 0) co_return report;
  co_await file.flush(IoTag::flush);
  if (talks && !session.compatibility_name()) {
    session.print(cat("Repaired: ", report.corruptions_fixed,
                      report.corruptions_fixed == 1 ? " error, " : " errors, ", report.leaks_fixed,
                      report.leaks_fixed == 1 ? " leaked cluster.\n" : " leaked clusters.\n"));
  } else if (talks) {
    session.print(cat("The following inconsistencies were found and repaired:\n\n    ",
                      report.leaks_fixed, " leaked clusters\n    ", report.corruptions_fixed,
                      " corruptions\n\nDouble checking the fixed image now...\n"));
  }
  co_return report;
}

/// With what to do next.
std::string sentences(const Session& session, const CheckReport& report, const CheckArgs& args) {
  uint64_t errors = 0;
  for (const Finding& finding : one_for_each_damage(report.findings)) {
    errors += finding.severity == Severity::corruption && !finding.repaired;
  }
  // Not all are kept with words.
  if (report.findings.size() >= CheckOptions().findings_max) errors = report.corruptions;
  std::string out = check_sentences(report, errors);
  const std::string command = cat("Next: ", session.program(), " ");
  const std::string image = byre::quoted(args.image);
  if (report.check_errors != 0) {
    out += cat(command, "convert --salvage -O qcow2 ", image,
               " COPY takes what can be read to a new image.\n");
  } else if (report.corruptions != 0) {
    out += cat(command, "repair ", image, " shows what can be repaired, and changes nothing.\n");
  } else if (report.leaks > report.orphans_kept) {
    out += cat(command, "check -r leaks ", image,
               report.leaks == 1 ? " frees it.\n" : " frees them.\n");
  } else if (report.leaks != 0) {
    out += cat(command, "repair --apply --save-orphans FILE ", image,
               " saves and frees what an earlier repair has kept.\n");
  }
  return out;
}

Task<int> check(Session& session, CheckArgs args) {
  Repair repair = Repair::none;
  if (args.repair) repair = *args.repair == "leaks" ? Repair::leaks : Repair::all;
  if (args.findings && args.output != OutputFormat::json) {
    Parsed failed{.outcome = Parsed::Outcome::failed,
                  .error = "--findings needs --output=json",
                  .usage = true};
    co_return finish_parse(session, kCheck, failed);
  }
  co_await check_format_option(args);
  const CacheMode cache = co_await cache_mode(args.cache, "source cache");
  if (args.share && repair != Repair::none) {
    co_return could_not_open(args.image,
                             invalid("force-share=on can only be used with read-only images"));
  }

  SystemGate opener(session.reactor(),
                    args.chain ? session.policy(args.follow) : OpenPolicy::nothing);
  const FileOptions options{
      .writable = repair != Repair::none, .direct = is_direct(cache), .share_lock = args.share};
  Result<Storage> opened =
      co_await open_storage_named(session, opener, args.image, args, options).result();
  if (!opened) {
    Error error = std::move(opened).error();
    if (error.code() == Errc::busy && !session.compatibility_name()) {
      error =
          Error(Errc::busy,
                cat(error.message(), "; `byre serve` checks what it serves when it gets SIGUSR1"),
                error.sys_errno());
    }
    co_return could_not_open(args.image, std::move(error), repair == Repair::none);
  }
  if (opened->format == DiskFormat::raw && repair != Repair::none && !args.format &&
      !names_devices(args.image, args)) {
    warn_of_guess(session, args.image);
  }
  if (opened->format != DiskFormat::qcow2) {
    co_await opened->device.close();
    session.error("This image format does not support checks");
    co_return kNotChecked;
  }
  Device& file = *opened->device;
  Result<ImageHeader> head =
      co_await load_image_header(file,
                                 session.compatibility_name() ? OpenFor::repair : OpenFor::check)
          .result();
  if (!head) co_return could_not_open(args.image, std::move(head).error());

  // A repair that was begun is ended: a half-repaired image helps nobody.
  std::optional<Session::Interruptible> guard;
  if (repair != Repair::none) {
    guard.emplace(
        session,
        Session::Interruption{
            .stop = [] {},
            .waiting_for = [&] { return cat("the repair of ", byre::quoted(args.image)); }});
  }
  Result<CheckReport> report =
      co_await check_and_repair(session, opener, file, args, repair).result();
  Result<void> closed = co_await file.close().result();
  guard.reset();
  if (!report) {
    session.error(cat("Check failed: ", report.error().message()));
    co_return kCheckFailed;
  }
  co_await std::move(closed);
  if (args.quiet) {
    // Not even JSON, as qemu-img has it.
  } else if (args.output == OutputFormat::json) {
    Json json = json_of_check(*report, args.image);
    if (args.findings) json["findings"] = json_of_findings(report->findings);
    session.print(to_json(json));
  } else {
    session.print(session.compatibility_name() ? check_text(*report)
                                               : sentences(session, *report, args));
  }
  if (report->check_errors != 0) {
    session.error("Check failed");
    co_return kCheckFailed;
  }
  if (report->corruptions != 0) co_return kCorruptions;
  co_return report->leaks != 0 ? kLeaksOnly : kNoErrors;
}

Result<void> look_at_repair(std::string_view value) {
  if (value == "leaks" || value == "all") return {};
  return invalid("--repair (-r) expects 'leaks' or 'all' not '", value, "'");
}

Argument repair_option() {
  Argument argument =
      looked_at(option("-r, --repair", "WHAT", &CheckArgs::repair,
                       "leaks: free clusters that nothing uses; all: repair errors, too"),
                look_at_repair);
  argument.misuse = true;
  return argument;
}

const Command<CheckArgs> kDefinition({
    .name = "check",
    .summary = "Check an image for errors, and repair it",
    .description = "Exit codes: 0 no errors, 1 the check failed, 2 errors were found, 3 leaked "
                   "clusters but no "
                   "errors, 63 the format has no checks. Backing and data files are not opened, "
                   "unless with --verify-backing.",
    .args =
        {operand("IMAGE", &CheckArgs::image, "the image file"), format_argument<CheckArgs>(),
         repair_option(),
         option("--output", "FORMAT", &CheckArgs::output, "human (the default) or json"),
         own({flag("--findings", &CheckArgs::findings,
                   "with --output=json: each finding as data, with the guest ranges and snapshots "
                   "that it touches, its likely cause, and what a repair does about it"),
              flag("--decode", &CheckArgs::decode,
                   "inflate every compressed cluster, and look whether their data overlap"),
              flag("--snapshots", &CheckArgs::snapshots,
                   "look at each snapshot: its id, whether its tables reach over its disk and VM "
                   "state"),
              flag(
                  "--bitmaps", &CheckArgs::bitmaps,
                  "read the persistent bitmaps: whether their tables fit the disk, and no bit lies "
                  "behind it"),
              flag("--verify-backing", &CheckArgs::chain,
                   "open the backing chain and data files, check each by itself, and whether they "
                   "fit"),
              flag("-p, --progress", &CheckArgs::progress, "show how far it is")}),
         follow_arguments<CheckArgs>(),
         option("-T, --cache, --source-cache", "CACHE", &CheckArgs::cache,
                "how the image is read: writeback (the default), none (past the page cache), "
                "writethrough, directsync or unsafe"),
         share_argument<CheckArgs>(),
         flag("-q, --quiet", &CheckArgs::quiet, "print nothing but errors")},
    .too_few = "Expecting one image file name",
    .too_many = "Expecting one image file name",
    .run = check,
});

}  // namespace

const AnyCommand& kCheck = kDefinition;

}  // namespace byre
