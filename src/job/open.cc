// SPDX-License-Identifier: Apache-2.0
#include "job/open.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>

#include "block/filter.h"
#include "block/raw.h"
#include "block/whole_sectors.h"
#include "coro/semaphore.h"
#include "io/buffer.h"
#include "job/chain.h"
#include "job/open_tree.h"
#include "job/unfinished.h"
#include "qcow1/image.h"
#include "qcow2/core/image_header.h"

namespace byre {

namespace {

struct Magic {
  std::string_view format;
  size_t offset;
  std::string_view bytes;
};
using std::string_view_literals::operator""sv;

/// The first bytes of formats that other programs probe for, as their specifications give them.
constexpr std::array kForeign = {
    Magic{"vmdk", 0, "KDMV"sv},
    Magic{"vmdk", 0, "COWD"sv},
    Magic{"vmdk", 0, "# Disk DescriptorFile"sv},
    Magic{"vdi", 0x40, "\x7f\x10\xda\xbe"sv},
    Magic{"vhdx", 0, "vhdxfile"sv},
    Magic{"vpc", 0, "conectix"sv},
    Magic{"luks", 0, "LUKS\xba\xbe"sv},
    Magic{"qed", 0, "QED\0"sv},
    Magic{"parallels", 0, "WithoutFreeSpace"sv},
    Magic{"parallels", 0, "WithouFreSpacExt"sv},
    Magic{"bochs", 0, "Bochs Virtual HD Image"sv},
    Magic{"cloop", 0, "#!/bin/sh\n#V2.0 Format\n"sv},
};

bool has_at(Bytes start, size_t offset, std::string_view bytes) {
  return start.size() >= offset + bytes.size() &&
         equal(start.subspan(offset, bytes.size()), bytes_of(bytes));
}

/// A raw disk whose format was guessed: nothing may make the guess wrong.
class GuessedRaw final : public Filter {
 public:
  explicit GuessedRaw(Child raw) : Filter(std::move(raw)), first_sector_(reactor().ready()) {}

  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (offset >= kSectorSize) {
      co_await below().write(offset, data, options);
      co_return;
    }
    // One at a time, or two halves of a magic could pass each other.
    const auto hold = co_await first_sector_.lock();
    std::array<std::byte, kSectorSize> sector{};
    const uint64_t there = std::min(kSectorSize, size());
    co_await below().read(0, MutableBytes(sector).first(there), IoTag::none);
    copy(MutableBytes(sector).subspan(offset),
         data.first(std::min<uint64_t>(data.size(), kSectorSize - offset)));
    if (const Result<DiskFormat> format = classify(sector); !format || *format != DiskFormat::raw) {
      co_await fail(Error(
          Errc::denied, cat("write at ", hex(offset), " of ", quoted(name()),
                            ": it would make this disk look like an image, and its format was "
                            "only guessed to be raw; open it with the format given to allow it")));
    }
    co_await below().write(offset, data, options);
  }

 private:
  Mutex first_sector_;
};

}  // namespace

Child guard_guess(Child raw) { return std::make_unique<GuessedRaw>(std::move(raw)); }

void make_whole(Disk& disk) {
  if (disk.device->size() % kSectorSize == 0) return;
  disk.device = std::make_unique<WholeSectors>(std::move(disk.device));
}

std::string_view name_of(DiskFormat format) {
  switch (format) {
    case DiskFormat::raw:
      return "raw";
    case DiskFormat::qcow2:
      return "qcow2";
    case DiskFormat::qcow:
      return "qcow";
  }
  return "unknown";
}

Result<DiskFormat> parse_format(std::string_view name) {
  if (name == "raw") return DiskFormat::raw;
  if (name == "qcow2") return DiskFormat::qcow2;
  if (name == "qcow") return DiskFormat::qcow;
  return Error(Errc::not_found, cat("Unknown driver '", name, "'"));
}

Result<DiskFormat> classify(Bytes start) {
  for (const Magic& magic : kForeign) {
    if (!has_at(start, magic.offset, magic.bytes)) continue;
    return unsupported("It looks like a ", magic.format,
                       " image, which is not supported (give the format raw to use its bytes)");
  }
  if (!has_at(start, 0, "QFI\xfb"sv)) return DiskFormat::raw;
  const uint32_t version = start.size() >= 8 ? load_be<uint32_t>(start, 4) : 2;
  if (version == 0) {
    return unsupported(
        "It looks like a qcow image of version 0, which there is not (give the format ",
        "raw to use its bytes)");
  }
  const bool version_1 = version == 1;
  const bool boots = has_at(start, 510, "\x55\xaa"sv);
  const bool is_cd = has_at(start, 0x8001, "CD001"sv);
  if (boots || is_cd) {
    return Error(Errc::denied,
                 cat("It can be taken for a ", version_1 ? "qcow" : "qcow2", " image and for a ",
                     boots ? "disk with a boot sector" : "CD", "; give its format"));
  }
  return version_1 ? DiskFormat::qcow : DiskFormat::qcow2;
}

static Result<DiskFormat> format_by(Bytes start, std::optional<DiskFormat> given) {
  if (is_unfinished(start)) {
    return Error(Errc::unsupported,
                 "It was never finished: making it was interrupted; make it again");
  }
  if (!given) return classify(start);
  if (given == DiskFormat::qcow) {
    const bool fits = has_at(start, 0, "QFI\xfb\0\0\0\1"sv);
    if (!fits) return invalid("Image is not in qcow format");
    return *given;
  }
  if (!looks_like_qcow2(start)) return invalid("Image is not in qcow2 format");
  return *given;
}

Task<DiskFormat> find_format(File& file, std::optional<DiskFormat> given) {
  if (given == DiskFormat::raw) co_return DiskFormat::raw;
  const Buffer buffer(kClassifySize);
  co_await file.read(0, buffer.bytes());  // What lies behind the end reads as zeros.
  const uint64_t there = std::min<uint64_t>(kClassifySize, file.size());
  co_return co_await format_by(buffer.bytes().first(there), given);
}

Task<DiskFormat> find_format(Device& file, std::optional<DiskFormat> given) {
  if (given == DiskFormat::raw) co_return DiskFormat::raw;
  const Buffer buffer(kClassifySize);
  const uint64_t there = std::min<uint64_t>(kClassifySize, file.size());
  co_await file.read(0, buffer.bytes().first(there), IoTag::none);
  co_return co_await format_by(buffer.bytes().first(there), given);
}

Result<std::string> path_of(std::string_view name) {
  if (name.starts_with("file:")) {
    name.remove_prefix(5);
    if (name.empty()) return invalid("No path in 'file:'");
    return std::string(name);
  }
  if (name.empty()) return invalid("The 'file' block driver requires a file name");
  const size_t colon = name.substr(0, name.find('/')).find(':');
  if (colon == std::string_view::npos) return std::string(name);
  if (name.starts_with("json:")) return unsupported("Unknown protocol 'json'");
  return unsupported("Unknown protocol ", quoted(name.substr(0, colon)));
}

bool same_file(const std::string& left, const std::string& right) {
  struct stat a, b;
  if (stat(left.c_str(), &a) != 0 || stat(right.c_str(), &b) != 0) return false;
  if (S_ISBLK(a.st_mode) && S_ISBLK(b.st_mode)) return a.st_rdev == b.st_rdev;
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

Task<Child> open_qcow1(Child file, FileOpener& opener, ImageOptions options) {
  Result<Qcow1Start> start = co_await read_qcow1_start(*file).result();
  if (!start) {
    file.abandon();
    co_return std::move(start).error();
  }
  Child backing;
  if (start->backing_file && !options.without_backing) {
    const std::string name = *start->backing_file;
    if (options.chain_depth_max <= 1)
      co_return unsupported("the backing chain is longer than is allowed at ", quoted(name));
    --options.chain_depth_max;
    const std::string path = co_await path_of(name);
    Result<std::unique_ptr<File>> below = opener.open_named_by_image(
        file->name(), path,
        {.direct = options.direct, .lock = options.lock, .share_lock = options.share_lock});
    Result<Disk> disk =
        below ? co_await open_disk_over(*std::move(below), opener, {.image = std::move(options)})
                    .result()
              : Result<Disk>(std::move(below).error());
    if (!disk) {
      file.abandon();
      co_return std::move(disk).error().while_doing(cat("backing file ", quoted(name)));
    }
    backing = std::move(disk->device);
  }
  Child image = co_await Qcow1Image::open(std::move(file), std::move(backing));
  co_return std::move(image);
}

std::optional<std::string> backing_file_of(const Disk& disk) {
  if (disk.without_backing) return std::nullopt;
  if (disk.image) return disk.image->head().backing_file;
  const Device* device = disk.device.get();
  if (const auto* whole = dynamic_cast<const WholeSectors*>(device)) device = &whole->below();
  const auto* old = dynamic_cast<const Qcow1Image*>(device);
  return old ? old->backing_file() : std::nullopt;
}

Task<Disk> open_disk(FileOpener& opener, std::string name, OpenDiskOptions options) {
  const std::string path = co_await path_of(name);
  const FileOptions file_options{.writable = options.image.writable,
                                 .direct = options.image.direct,
                                 .lock = options.image.lock,
                                 .share_lock = options.image.share_lock};
  std::unique_ptr<File> file = co_await opener.open(path, file_options);
  co_return co_await open_disk_over(std::move(file), opener, std::move(options));
}

Task<Disk> open_disk_over(std::unique_ptr<File> file, FileOpener& opener, OpenDiskOptions options) {
  Disk disk;
  disk.guessed = !options.format;
  disk.format = co_await find_format(*file, options.format);
  if (disk.format == DiskFormat::qcow2) {
    Child raw = std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = true});
    if (!options.image.without_backing) co_await check_chain_memory(opener, *raw);
    follow_named_devices(options.image, raw->reactor());
    if (options.over_file) raw = options.over_file(std::move(raw));
    std::unique_ptr<Image> image =
        co_await Image::open_over(std::move(raw), opener, std::move(options.image));
    disk.image = image.get();
    disk.device = std::move(image);
    make_whole(disk);
    co_return disk;
  }
  if (!options.image.snapshot.empty()) {
    co_return unsupported("A ", name_of(disk.format), " disk has no snapshots");
  }
  if (disk.format == DiskFormat::qcow) {
    if (options.image.writable)
      co_return Error(Errc::read_only, "images of qcow version 1 can only be read");
    disk.device =
        co_await open_qcow1(std::make_unique<RawDevice>(std::move(file)), opener, options.image);
    make_whole(disk);
    co_return disk;
  }
  auto raw = std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = options.growable});
  if (disk.guessed && options.image.writable) {
    disk.device = guard_guess(std::move(raw));
  } else {
    disk.device = std::move(raw);
  }
  make_whole(disk);
  co_return disk;
}

}  // namespace byre
