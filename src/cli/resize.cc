// SPDX-License-Identifier: Apache-2.0
/// `byre resize`: a larger or a smaller disk.
#include "base/checked.h"
#include "block/filter.h"
#include "block/raw.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/new_disk.h"
#include "cli/options.h"
#include "cli/progress_line.h"

namespace byre {

namespace {

/// Space that a raw disk gets at once, so that the progress moves.
constexpr uint64_t kRawStep = 64 * MiB;

struct ResizeArgs : OpenArgs {
  std::string image;
  std::string size;
  std::optional<std::string> preallocation;
  bool shrink = false;
  bool progress = false;
  bool quiet = false;
};

/// What SIZE asks for: +N and -N count from the size there is.
struct Wanted {
  enum class From : uint8_t { nothing, size_up, size_down } from = From::nothing;
  uint64_t bytes = 0;

  Result<uint64_t> of(uint64_t size) const {
    const auto too_small = [] { return invalid("New image size must be positive"); };
    uint64_t total = bytes;
    if (from == From::size_up) total = checked_add(size, bytes).value_or(0);
    if (from == From::size_down) total = bytes < size ? size - bytes : 0;
    if (total == 0 || total > uint64_t{INT64_MAX}) return too_small();
    return total;
  }
};

Result<Wanted> parse_wanted(std::string_view text) {
  Wanted wanted;
  if (text.starts_with('+')) wanted.from = Wanted::From::size_up;
  if (text.starts_with('-')) wanted.from = Wanted::From::size_down;
  if (wanted.from != Wanted::From::nothing) text.remove_prefix(1);
  BYRE_TRY(bytes, parse_size_parameter(text, "size"));
  wanted.bytes = bytes;
  return wanted;
}

/// The new size, or why not.
Result<uint64_t> plan(const Disk& disk, const ResizeArgs& args, const Wanted& wanted,
                      Preallocation mode) {
  const uint64_t old_size = disk.size();
  BYRE_TRY(total, wanted.of(old_size));
  if (total <= old_size && mode != Preallocation::off) {
    return invalid("Preallocation can only be used for growing images");
  }
  if (!disk.image && mode == Preallocation::metadata) {
    return invalid("Unsupported preallocation mode 'metadata'");
  }
  if (total < old_size) {
    if (!args.shrink) {
      return invalid(
          "Use the --shrink option to perform a shrink operation.\n"
          "warning: Shrinking an image will delete all data beyond the shrunken image's end. "
          "Before performing such an operation, make sure there is no important data there.");
    }
  }
  if (disk.format == DiskFormat::qcow2 && total % kSectorSize != 0) {
    return invalid("The new size must be a multiple of 512");
  }
  return total;
}

/// What happens to the file that an image lies in is how far its new size is: bytes written,
/// allocated, and given back.
class Watched final : public Filter {
 public:
  using Changed = std::function<void(uint64_t)>;
  Watched(Child below, Changed changed) : Filter(std::move(below)), changed_(std::move(changed)) {}

  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    co_await below().write(offset, data, options);
    changed_(data.size());
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    co_await below().zero(offset, length, options);
    changed_(length);
  }
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override {
    co_await below().discard(offset, length, options);
    changed_(length);
  }
  Task<void> allocate(uint64_t offset, uint64_t length) override {
    co_await below().allocate(offset, length);
    changed_(length);
  }

 private:
  Changed changed_;
};

/// Tables are not counted beforehand, and the end is when all of it is durable: the last percent.
void advance(Progress& progress, uint64_t bytes) {
  const uint64_t total = progress.total();
  if (total != 0) progress.set(std::min(progress.done() + bytes, total - total / 100), total);
}

/// Bytes of tables that map `length` bytes of the disk.
uint64_t tables_for(const Geometry& geometry, uint64_t length) {
  return geometry.clusters_for(length) * geometry.l2_entry_size();
}

/// Bytes that the disk has between its new end and the old one.
Task<uint64_t> stored_behind(Device& device, uint64_t total) {
  uint64_t stored = 0;
  for (uint64_t at = total; at < device.size();) {
    const Extent extent = co_await device.status(at, device.size() - at);
    if (extent.data) stored += extent.length;
    at += std::max<uint64_t>(extent.length, 1);
  }
  co_return stored;
}

Task<uint64_t> expected(Disk& disk, uint64_t total, Preallocation mode) {
  const uint64_t old_size = disk.device->size();
  if (total < old_size) {
    if (!disk.image) co_return 0;
    // Where that is not known the work itself says why.
    const Result<uint64_t> stored = co_await stored_behind(*disk.device, total).result();
    co_return stored ? *stored : 0;
  }
  if (mode == Preallocation::off) co_return 0;
  const uint64_t tables =
      disk.image ? tables_for(disk.image->head().geometry, total - old_size) : 0;
  co_return tables + (mode == Preallocation::metadata ? 0 : total - old_size);
}

Task<void> resize_raw(Device& device, uint64_t total, Preallocation mode, Progress& progress) {
  const uint64_t old_size = device.size();
  co_await device.resize(total);
  if (total <= old_size || mode == Preallocation::off) co_return;
  Result<void> given;
  for (uint64_t at = old_size; given && at < total;) {
    const uint64_t step = std::min(total - at, kRawStep);
    if (mode == Preallocation::falloc) {
      given = co_await device.allocate(at, step).result();
    } else {
      given = co_await write_zeros(device, at, step).result();
    }
    advance(progress, step);
    at += step;
  }
  if (given) co_return;
  (void)co_await device.resize(old_size).result();
  co_await std::move(given);
}

Task<void> apply(Disk& disk, uint64_t total, Preallocation mode, Progress& progress) {
  progress.set_total(co_await expected(disk, total, mode));
  if (disk.image) {
    co_await disk.image->resize(total, mode);
  } else {
    co_await resize_raw(*disk.device, total, mode, progress);
  }
  co_await disk.device->flush(IoTag::flush);
  const uint64_t all = std::max<uint64_t>(progress.total(), 1);
  progress.set(all, all);
}

Task<int> resize(Session& session, ResizeArgs args) {
  Result<Wanted> wanted = parse_wanted(args.size);
  if (!wanted) co_return std::move(wanted).error();
  const Preallocation mode = *parse_preallocation(args.preallocation.value_or("off"));
  SystemGate opener(session.reactor(), session.policy(args.follow));
  Progress progress;
  const auto over_file = [&](Child file) -> Child {
    return std::make_unique<Watched>(std::move(file),
                                     [&](uint64_t bytes) { advance(progress, bytes); });
  };
  Disk disk = co_await open_named(session, opener, args.image, args, {.writable = true}, over_file);
  if (disk.guessed && disk.format == DiskFormat::raw) warn_of_guess(session, args.image);
  const Session::Interruptible guard(
      session, {.about = byre::quoted(args.image),
                .stop = [] {},
                .waiting_for = [&] { return cat("the new size of ", byre::quoted(args.image)); }});

  Result<uint64_t> total = plan(disk, args, *wanted, mode);
  const bool is_old = disk.image && disk.image->geometry().version < 3;
  if (total && session.compatibility_name() && is_old && !disk.image->snapshots().empty()) {
    // Also where the size stays, which changes nothing.
    total = invalid("Can't resize a v2 image which has snapshots");
  }
  Result<void> done;
  if (total) {
    ProgressLine line(session, args.progress && !args.quiet, ProgressLine::Unit::bytes);
    line.follow(progress);
    done = co_await apply(disk, *total, mode, progress).result();
    progress.on_change(nullptr);
    if (done) line.finish();
  }
  Result<void> closed = co_await disk.device.close().result();
  if (!total && !session.compatibility_name()) co_return std::move(total).error();
  if (!total) {
    // One message a line, as qemu-img has them.
    const std::string text = total.error().message();
    const size_t end = text.find('\n');
    session.error(text.substr(0, end));
    if (end != std::string::npos) session.error(text.substr(end + 1));
    co_return 1;
  }
  co_await std::move(done);
  co_await std::move(closed);
  if (!args.quiet) session.say("Image resized.\n");
  if (session.json()) {
    session.print(to_json({{"filename", args.image}, {"virtual-size", *total}}));
  }
  co_return 0;
}

Result<void> look_at_preallocation(std::string_view value) {
  if (parse_preallocation(std::string(value))) return {};
  return invalid("Invalid preallocation mode '", value, "'");
}

const Command<ResizeArgs> kDefinition({
    .name = "resize",
    .summary = "Change the size of a disk",
    .args = {operand("IMAGE", &ResizeArgs::image, "the image file"),
             operand("SIZE", &ResizeArgs::size,
                     "the new size, such as 64M; +SIZE and -SIZE change the one there is"),
             format_argument<ResizeArgs>(),
             looked_at(option("--preallocation", "MODE", &ResizeArgs::preallocation,
                              "for what is added: off (the default), metadata (qcow2 only), falloc "
                              "or full"),
                       look_at_preallocation),
             flag("--shrink", &ResizeArgs::shrink, "allow a smaller size; what is cut off is lost"),
             own(flag("-p, --progress", &ResizeArgs::progress, "show how far it is")),
             flag("-q, --quiet", &ResizeArgs::quiet, "print nothing but errors"),
             scan_arguments<ResizeArgs>(), follow_arguments<ResizeArgs>()},
    .too_few = "Expecting image file name and size",
    .too_many = "Extra argument(s) in command line",
    .last_word_is_operand = true,
    .run = resize,
});

}  // namespace

const AnyCommand& kResize = kDefinition;

}  // namespace byre
