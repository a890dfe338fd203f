// SPDX-License-Identifier: Apache-2.0
/// A disk to be made, as -f, -o, -b, -F and a size describe it: for create, convert and serve.
///
/// The options are those of qemu-img.  They are read in three steps, because each program prints or
/// checks something in between: read_new_disk() takes the text apart, formatting_line() says what
/// will be made, and create_options() gives what job/create.h wants.
/// Not here: which options are possible together (qcow2/ops/create.h says so).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/progress.h"
#include "cli/session.h"
#include "cli/values.h"
#include "job/create.h"

namespace byre {

struct NewDisk {
  DiskFormat format = DiskFormat::raw;
  std::optional<uint64_t> size;
  /// Empty is not the same as not given: no file has such a name.
  std::optional<std::string> backing_file;
  std::optional<std::string> backing_format;
  std::optional<std::string> data_file;
  bool data_file_raw = false;
  uint64_t cluster_size = 64 * KiB;
  uint64_t refcount_bits = 16;
  bool version2 = false;
  bool extended_l2 = false;
  bool lazy_refcounts = false;
  Compression compression = Compression::deflate;
  Preallocation preallocation = Preallocation::off;
  std::optional<bool> no_copy_on_write;
  std::optional<uint64_t> extent_size_hint;

  /// Values that their option does not know, and its name in QEMU's schema: they are told when the
  /// disk is made, as by qemu-img (check_words()).
  std::vector<std::pair<std::string, std::string>> wrong_words;

  /// The words the user chose, for formatting_line().
  std::optional<std::string> compression_text;
  std::optional<std::string> compat_text;
  std::optional<std::string> preallocation_text;
  std::optional<std::string> encryption_text;
  std::optional<std::string> data_file_raw_text;
  std::optional<std::string> extended_l2_text;
  std::optional<std::string> lazy_refcounts_text;
  std::optional<std::string> no_copy_on_write_text;
};

/// Takes `options` apart.  Names that are no option of the format, and what byre cannot do, are
/// Is each option one that `format` has, with a value of its type?  The first that is not is told,
/// as qemu-img reads them.
Result<void> check_creation_options(DiskFormat format, const OptionList& options);

/// errors.
Result<NewDisk> read_new_disk(DiskFormat format, OptionList options);

/// Refuses wrong_words, by the first of them.
Result<void> check_words(const NewDisk& disk);

/// Refuses a backing file (or its format) where the disk's format has none, and an empty name.
Result<void> check_backing(const NewDisk& disk);

/// The format of a disk that is made under `name` when nobody gave one: what its suffix says; a
/// block device is raw.  Another suffix, or none, is an error that asks for `option`.  Under a QEMU
/// name it is raw, whatever the suffix, with a warning.
Result<DiskFormat> format_by_name(Session& session, const std::string& name,
                                  std::string_view option);

/// Is `file` a qcow2 image that somebody calls raw?  An error, or with `force` and under a QEMU
/// name a warning: a guest would see the image's tables as its disk.  Nothing when it could not be
/// opened.  `instead`: the option that names the right format.
Task<void> check_backing_is_raw(Session& session, std::string name,
                                Result<std::unique_ptr<File>> file, bool force,
                                std::string_view instead);
/// The same for a file that the user names, opened as `opener` allows.
Task<void> check_backing_is_raw(Session& session, FileOpener& opener, std::string name, bool force);

/// "Formatting 'x', fmt=qcow2 cluster_size=65536 ...": what qemu-img says before it makes a disk.
std::string formatting_line(const std::string& name, const NewDisk& disk);

/// What `-o help` prints.
std::string option_help(DiskFormat format);
/// Without those of the file below, as qemu-img has it when no file is named.
std::string option_help_without_file(DiskFormat format);
/// The same for `amend`.
std::string amend_option_help();

/// Needs disk.size.
CreateOptions create_options(const NewDisk& disk);

/// What a new disk without a name is told.
Error no_name();
Result<Preallocation> parse_preallocation(const std::string& text);

/// Fails if there is a file of that name.
Result<void> refuse_existing(std::string_view name);

/// Fails for a disk that make_disk() would refuse whatever is on the host.
Result<void> check_new_disk(const NewDisk& disk);

/// How it is made.
struct MakeOptions {
  bool replace = false;       ///< What is there may be overwritten.
  bool to_be_filled = false;  ///< What an external data file holds is not wanted.
  bool direct = false;
  bool sync = true;
  Progress* progress = nullptr;  ///< Null: nobody stops it.
};
/// Makes the disk, but for NewDiskFile::finish().
Task<std::unique_ptr<NewDiskFile>> begin_disk(Session& session, FileOpener& opener,
                                              std::string name, NewDisk disk, MakeOptions options);
/// Makes the disk.
Task<void> make_disk(Session& session, FileOpener& opener, std::string name, NewDisk disk,
                     MakeOptions options);

}  // namespace byre
