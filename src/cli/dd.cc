// SPDX-License-Identifier: Apache-2.0
/// `byre dd`: copies a part of a disk into a new one.
#include "job/dd.h"

#include <algorithm>
#include <cerrno>

#include "block/slice.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/new_disk.h"
#include "cli/options.h"
#include "cli/progress_line.h"
#include "cli/ranged.h"
#include "job/convert.h"

namespace byre {

namespace {

/// Pieces that stay in the processor's cache between reading and writing.
constexpr uint64_t kPiece = 256 * KiB;
constexpr unsigned kRequests = 8;

struct DdArgs : OpenArgs {
  std::vector<std::string> words;
  std::optional<std::string> target_format;
  bool force = false;
  bool progress = false;
};

struct Plan {
  std::string input;
  std::string output;
  BlockRange range;
  DiskFormat format = DiskFormat::raw;
};

/// A count of blocks; under the name byre with a suffix, as a size has it.
Result<uint64_t> blocks_of(const Session& session, std::string_view text, std::string_view what) {
  const ValueRange range{.what = what, .low = 0, .high = INT64_MAX};
  return session.compatibility_name() ? ranged_number(text, range) : ranged_size(text, range);
}

Result<Plan> read_words(const Session& session, const DdArgs& args) {
  Plan plan;
  bool has_input = false;
  bool has_output = false;
  plan.range.count_from_start = session.compatibility_name();
  for (const std::string& word : args.words) {
    const size_t sign = word.find('=');
    const std::string name = word.substr(0, sign);
    const std::string value = sign == std::string::npos ? "" : word.substr(sign + 1);
    if (sign != std::string::npos && name == "if") {
      plan.input = value;
      has_input = true;
    } else if (sign != std::string::npos && name == "of") {
      plan.output = value;
      has_output = true;
    } else if (sign != std::string::npos && name == "bs") {
      BYRE_TRY(size, ranged_size(value, {.what = "bs", .low = 1, .high = INT32_MAX}));
      plan.range.block_size = size;
    } else if (sign != std::string::npos && name == "count") {
      BYRE_TRY(count, blocks_of(session, value, "count"));
      plan.range.count = count;
    } else if (sign != std::string::npos && name == "skip") {
      BYRE_TRY(skip, blocks_of(session, value, "skip"));
      plan.range.skip = skip;
    } else {
      return invalid("unrecognized operand ", name);
    }
  }
  if (!has_input || !has_output) return invalid("Must specify both input and output files");
  return plan;
}

Result<DiskFormat> target_format(Session& session, const DdArgs& args, const Plan& plan) {
  if (!args.target_format) return format_by_name(session, plan.output, "-O");
  Result<DiskFormat> format = parse_format(*args.target_format);
  if (format) return format;
  if (session.compatibility_name()) return invalid("Unknown file format");
  return invalid("Unknown file format '", *args.target_format, "'");
}

Result<void> check_target(const DdArgs& args, const Plan& plan) {
  if (plan.output.empty()) {
    return Error(Errc::not_found, "Could not create '': No such file or directory", ENOENT);
  }
  const Result<std::string> path = path_of(plan.output);
  const Result<std::string> source = file_of(plan.input, args);
  if (!path || !source || !same_file(*source, *path)) return {};
  return invalid("input and output are the same file");
}

/// What ctrl-C ends.
struct Stop {
  Progress target;  ///< Of making the output.
  Convert* job = nullptr;
};

/// Fills the target, which is no disk before it is finished.
Task<void> fill(Session& session, FileOpener& opener, DdArgs args, const Plan& plan,
                NewDiskFile& made, Device& part, Stop& stop) {
  Child target = made.device();
  Image* image = nullptr;
  if (plan.format == DiskFormat::qcow2) {
    std::unique_ptr<Image> opened = co_await Image::open_over(std::move(target), opener,
                                                              {.writable = true,
                                                               .allocate_in_order = true,
                                                               .reuse_freed = false,
                                                               .scan = ImageOptions::Scan::never});
    image = opened.get();
    target = std::move(opened);
  }
  Result<void> done;
  {
    ProgressLine line(session, args.progress, ProgressLine::Unit::bytes);
    ConvertOptions options{// What qemu-img reads it writes, zeros as well.
                           .sparse_size = session.compatibility_name() ? 0 : 4 * KiB,
                           .target_reads_zero = image || target->new_space_is_zero(),
                           .requests_max = kRequests,
                           .request_size = std::max<uint64_t>(kPiece, target->preferred_size())};
    options.progress = [&](uint64_t now, uint64_t total) { line.update(now, total); };
    Convert job({&part}, *target, std::move(options));
    stop.job = &job;
    done = co_await job.run().result();
    stop.job = nullptr;
    if (done) line.finish();
  }
  Result<void> closed = co_await target->close().result();
  co_await std::move(done);
  co_await std::move(closed);
}

/// All of the target, or what was made goes away.
Task<void> make_target(Session& session, FileOpener& opener, DdArgs args, const Plan& plan,
                       Device& part, std::string_view warning) {
  Stop stop;
  const auto end = [&] {
    stop.target.stop();
    if (stop.job) stop.job->stop();
  };
  const Session::Interruptible guard(
      session, {.about = byre::quoted(plan.output), .stop = end, .waiting_for = [&] {
                  return stop.job ? stop.job->waiting_for() : "";
                }});
  NewDisk disk{.format = plan.format};
  disk.size = round_up(part.size(), kSectorSize);
  const std::string doing = cat(plan.output, ": error while creating output image");
  co_await check_target(args, plan).doing(doing);
  const std::unique_ptr<NewDiskFile> made =
      co_await begin_disk(session, opener, plan.output, disk,
                          {.replace = args.force || session.compatibility_name(),
                           .to_be_filled = true,
                           .progress = &stop.target})
          .doing(doing);
  if (!warning.empty()) session.error(warning);
  Result<void> done = co_await fill(session, opener, args, plan, *made, part, stop).result();
  if (done) done = co_await made->finish().result();
  if (done) co_return;
  const std::string left = made->give_up();
  if (!left.empty()) session.error(left);
  co_await std::move(done);
}

Task<int> copy_part(Session& session, FileOpener& opener, DdArgs args, const Plan& plan,
                    Disk& source) {
  // A name that is no file's is wrong by itself.
  if (!plan.output.empty()) (void)co_await path_of(plan.output);
  const DiskPart part = part_of(source.device->size(), plan.range);
  std::string warning;
  if (part.skips_all) {
    warning = cat(plan.input, ": cannot skip to specified offset");
    if (!session.compatibility_name()) co_return invalid(warning);
    // And the output is empty.
  }
  Slice slice(Child::to(*source.device), part.offset, part.length);
  co_await make_target(session, opener, std::move(args), plan, slice, warning);
  if (session.json()) {
    session.print(to_json({{"filename", plan.output},
                           {"format", name_of(plan.format)},
                           {"virtual-size", round_up(slice.size(), kSectorSize)}}));
  }
  co_return 0;
}

Task<int> dd(Session& session, DdArgs args) {
  Plan plan = co_await read_words(session, args);
  co_await check_format_option(args);
  plan.format = co_await target_format(session, args, plan);
  if (plan.format == DiskFormat::qcow) {
    co_await fail(unsupported("images of qcow version 1 can be read, not made"));
  }
  SystemGate opener(session.reactor(), session.policy(args.follow));
  Disk source = co_await open_named(session, opener, plan.input, args, {});
  Result<int> code = co_await copy_part(session, opener, args, plan, source).result();
  Result<void> closed = co_await source.device.close().result();
  if (!code) co_return std::move(code).error();
  co_await std::move(closed);
  co_return *code;
}

/// Their number is checked with their names.
Argument dd_words() {
  Argument argument = operands("OPERAND...", &DdArgs::words,
                               "if=FILE: the disk to read; of=FILE: the one to make; bs=SIZE: the "
                               "size of a block (512); count=N: copy so many blocks; skip=N: leave "
                               "out so many at the start");
  argument.optional = true;
  return argument;
}

const Command<DdArgs> kDefinition({
    .name = "dd",
    .summary = "Copy a part of a disk into a new one",
    .description =
        "As convert does it: what reads as zeros is not written, the result is durable, and what "
        "is not finished is removed. Under the name qemu-img zeros are written, too, the count "
        "includes the blocks that are skipped, and an output that exists is overwritten.",
    .args = {dd_words(),
             option("-f, --format", "FORMAT",
                    static_cast<std::optional<std::string> DdArgs::*>(&OpenArgs::format),
                    "of the disk to read: raw or qcow2; without it the first bytes decide"),
             option("-O, --output-format", "FORMAT", &DdArgs::target_format,
                    "of the new disk: raw or qcow2; without it the suffix decides (under the name "
                    "qemu-img: raw)"),
             flag("--force", &DdArgs::force, "overwrite a disk that exists"),
             flag("-p, --progress", &DdArgs::progress, "show how far it is"),
             share_argument<DdArgs>(), follow_arguments<DdArgs>()},
    .run = dd,
});

}  // namespace

const AnyCommand& kDd = kDefinition;

}  // namespace byre
