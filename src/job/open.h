// SPDX-License-Identifier: Apache-2.0
/// Opening a disk that a user named: which format it has, and a Device over it.
///
/// The format is the one the user gave.  Without one, classify() looks at the start of the file,
/// and refuses what programs could disagree about: a qcow2 file that is a boot sector or a CD as
/// well, or a format that byre does not read.  What it then takes for raw is opened with a guard: a
/// write that would turn the start of the disk into the start of an image is refused, because the
/// next program to probe the file would believe it (rule 1 of safe by default). Names are paths.
/// `file:x` is x; other `protocol:` names and `json:` are refused.
/// Not here: names that say more (device_tree.h, open_tree.h), what an image names (its FileOpener
/// decides), creating (job/create.h).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "block/graph.h"
#include "io/file_opener.h"
#include "qcow2/image.h"

namespace byre {

enum class DiskFormat : uint8_t {
  raw,
  qcow2,
  qcow,  ///< Version 1; read only.
};
std::string_view name_of(DiskFormat format);
/// Errc::not_found for a name that is no format of byre's.
Result<DiskFormat> parse_format(std::string_view name);

/// How much of a file classify() wants to see: the volume descriptor of a CD is at 32 KiB.
inline constexpr uint64_t kClassifySize = 36 * KiB;

/// What a file that starts with `start` is.  Errc::unsupported when it is an image of another
/// format, Errc::denied when it can be taken for two things.
Result<DiskFormat> classify(Bytes start);

/// The format of `file`: the one `given`, which it must have, or what classify() says.
Task<DiskFormat> find_format(File& file, std::optional<DiskFormat> given);

/// The same of what an image lies in.
Task<DiskFormat> find_format(Device& file, std::optional<DiskFormat> given);

/// A raw disk whose format was guessed: nothing that is written may make the guess wrong.
Child guard_guess(Child raw);

/// The path that a user's name means.
Result<std::string> path_of(std::string_view name);

/// Do two paths lead to the same file or block device?  No, when one of them is not there.
bool same_file(const std::string& left, const std::string& right);

struct OpenDiskOptions {
  std::optional<DiskFormat> format;  ///< None: classify().
  /// Of these a raw disk takes `writable`, `direct`, `lock` and `share_lock`.
  ImageOptions image;
  bool growable = false;  ///< Raw: writes may pass the end.
  /// What an image's file is seen through, where somebody wants to watch it.
  std::function<Child(Child)> over_file = {};
};

struct Disk {
  Child device;
  DiskFormat format = DiskFormat::raw;
  bool guessed = false;          ///< classify() chose the format.
  Image* image = nullptr;        ///< `device` when it is an image, or the one below its filters.
  bool without_backing = false;  ///< Of an image whose backing file was left out.

  /// What a guest sees: a raw file's size rounded up to whole sectors; the rest reads as zeros.
  uint64_t size() const { return round_up(device->size(), kSectorSize); }
};

/// The image of qcow version 1 in `file`, with the backing file that it names, whose format its
/// first bytes decide: the image has no word for it.
Task<Child> open_qcow1(Child file, FileOpener& opener, ImageOptions options);

/// What the image that a disk is names as its backing file; none: no image, or it names none.
std::optional<std::string> backing_file_of(const Disk& disk);

/// The caller must close() the device.
Task<Disk> open_disk(FileOpener& opener, std::string name, OpenDiskOptions options);

/// Guests see whole sectors.
void make_whole(Disk& disk);

/// The same over a file that is open already.
Task<Disk> open_disk_over(std::unique_ptr<File> file, FileOpener& opener, OpenDiskOptions options);

}  // namespace byre
