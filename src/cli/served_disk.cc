// SPDX-License-Identifier: Apache-2.0
#include "cli/served_disk.h"

#include <sys/stat.h>

#include <memory>
#include <utility>

#include "block/filter.h"
#include "block/slice.h"
#include "cli/environment.h"
#include "cli/new_disk.h"
#include "job/temporary_overlay.h"

namespace byre {

namespace {

constexpr uint64_t kDefaultSize = 10 * GiB;

bool is_there(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0;
}

/// The word by which the engine knows the snapshot.
Task<std::string> find_served(Session& session, FileOpener& opener, const ServePlan& plan) {
  Disk disk =
      co_await open_named(session, opener, plan.image, plan.open, {.without_backing = true});
  Result<std::string> word = unsupported("A raw disk has no snapshots");
  if (disk.image) word = plan.snapshot->find(disk.image->snapshots());
  co_await disk.device.close();
  if (!word) co_return std::move(word).error().while_doing("Failed to load snapshot");
  co_return *std::move(word);
}

/// Before anything is written: do the layers that are to lie over the disk fit it?
Result<void> check_layers(const ServePlan& plan, const Disk& disk) {
  const uint64_t size = disk.device->size();
  if (plan.offset > size || (plan.offset == size && plan.offset != 0)) {
    return invalid("Offset (", plan.offset, ") has to be smaller than the image size (", size, ")");
  }
  if (plan.offset % disk.device->alignment() != 0) {
    return invalid("the offset ", plan.offset, " is no multiple of ", disk.device->alignment());
  }
  if (plan.offset != 0 && !plan.bitmaps.empty()) {
    return unsupported("a part of a disk is served without bitmaps");
  }
  // A client that zeroes or discards would mean "zeros", and the whole chain would show old data.
  if (disk.without_backing && disk.device->writable()) {
    return unsupported("an image is served without its backing file read-only only (-r)");
  }
  return {};
}

}  // namespace

Task<void> make_if_missing(Session& session, FileOpener& opener, const ServePlan& plan) {
  if (names_devices(plan.image, plan.open)) {
    if (plan.create) co_await fail(invalid("--create makes a file: name one"));
    co_return;
  }
  const std::string path = co_await path_of(plan.image);
  if (is_there(path)) co_return;
  if (!plan.create) co_return;  // Opening it says what is wrong.
  const DiskFormat format =
      plan.open.format ? co_await parse_format(*plan.open.format) : DiskFormat::qcow2;
  NewDisk disk = co_await read_new_disk(format, plan.create_options);
  if (!disk.size) disk.size = plan.size.value_or(kDefaultSize);
  if (plan.announce) session.say(formatting_line(plan.image, disk));
  co_await make_disk(session, opener, plan.image, disk, {});
}

Task<Disk> open_served(Session& session, FileOpener& opener, const ServePlan& plan) {
  std::string snapshot;
  if (plan.snapshot) snapshot = co_await find_served(session, opener, plan);
  const ImageOptions options{
      .writable = !plan.read_only && !plan.temporary && snapshot.empty(),
      .direct = is_direct(plan.cache),
      .discard = plan.discard,
      .snapshot = snapshot,
      .scan = plan.strict ? ImageOptions::Scan::at_open : ImageOptions::Scan::beside_requests,
      .refuse_damaged = plan.strict};
  Disk disk = co_await open_named(session, opener, plan.image, plan.open, options);
  if (plan.size && disk.size() != round_up(*plan.size, kSectorSize)) {
    const uint64_t there = disk.size();
    co_await disk.device.close();
    co_return invalid(quoted(plan.image), " is there, and its disk has ", there, " bytes, not ",
                      *plan.size, "; leave --size out, or resize it");
  }
  if (disk.guessed && disk.format == DiskFormat::raw && disk.device->writable()) {
    warn_of_guess(session, plan.image);
  }
  if (Result<void> can = check_layers(plan, disk); !can) {
    co_await disk.device.close();
    co_return std::move(can).error();
  }
  co_return std::move(disk);
}

Task<void> put_overlay(FileOpener& opener, const ServePlan& plan, Disk& disk) {
  if (!plan.temporary) co_return;
  Result<TemporaryOverlay> overlay = TemporaryOverlay::make(temporary_folder());
  if (!overlay) {
    (void)co_await disk.device.close().result();
    disk.device.reset();
    co_await fail(std::move(overlay).error());
  }
  co_await overlay->put_over(disk, opener, {.writable = !plan.read_only, .discard = plan.discard});
}

void put_layers(const ServePlan& plan, Disk& disk) {
  Child& device = disk.device;
  if (plan.offset != 0) {
    const uint64_t size = device->size() - plan.offset;
    device = std::make_unique<Slice>(std::move(device), plan.offset, size);
  }
  if (plan.detect_zeroes != DetectZeroesMode::off)
    device = std::make_unique<DetectZeroes>(std::move(device), plan.detect_zeroes);
  if (is_write_through(plan.cache)) device = std::make_unique<WriteThrough>(std::move(device));
}

}  // namespace byre
