// SPDX-License-Identifier: Apache-2.0
#include "cli/new_disk.h"

#include <fmt/core.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "block/raw.h"
#include "cli/options.h"
#include "io/buffer.h"
#include "qcow2/core/image_header.h"

namespace byre {

namespace {

struct OptionHelp {
  std::string_view name;
  std::string_view type;
  std::string_view help;
};
constexpr OptionHelp kExtentSizeHint{"extent_size_hint", "size",
                                     "Extent size hint for the image file, 0 to disable"};
constexpr OptionHelp kNoCow{"nocow", "bool (on/off)",
                            "Turn off copy-on-write (valid only on btrfs)"};
constexpr std::array kQcow2Options = {
    OptionHelp{"backing_file", "str", "File name of a base image"},
    OptionHelp{"backing_fmt", "str", "Image format of the base image"},
    OptionHelp{"cluster_size", "size", "qcow2 cluster size"},
    OptionHelp{"compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"},
    OptionHelp{"compression_type", "str", "Compression method used for image cluster compression"},
    OptionHelp{"data_file", "str", "File name of an external data file"},
    OptionHelp{"data_file_raw", "bool (on/off)",
               "The external data file must stay valid as a raw image"},
    OptionHelp{"extended_l2", "bool (on/off)", "Extended L2 tables"},
    kExtentSizeHint,
    OptionHelp{"lazy_refcounts", "bool (on/off)", "Postpone refcount updates"},
    kNoCow,
    OptionHelp{"preallocation", "str",
               "Preallocation mode (allowed values: off, metadata, falloc, full)"},
    OptionHelp{"refcount_bits", "num", "Width of a reference count entry in bits"},
    OptionHelp{"size", "size", "Virtual disk size"},
};
/// Of version 1, which is not made here: what is wrong with them is told all the same.
constexpr std::array kQcowOptions = {
    OptionHelp{"backing_file", "str", "File name of a base image"},
    OptionHelp{"backing_fmt", "str", "Format of the backing image"},
    kExtentSizeHint,
    kNoCow,
    OptionHelp{"size", "size", "Virtual disk size"},
};
constexpr std::array kRawOptions = {
    kExtentSizeHint,
    kNoCow,
    OptionHelp{"preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)"},
    OptionHelp{"size", "size", "Virtual disk size"},
};

constexpr std::string_view kCompatNeeded =
    " compatibility level 1.1 and above (use version=v3 or greater)";

/// `text`: how it was given.
Result<void> read_flag(OptionList& options, std::string_view name, bool& value,
                       std::optional<std::string>& text) {
  text = options.take(name);
  if (!text) return {};
  BYRE_TRY(flag, parse_bool_parameter(*text, name));
  value = flag;
  return {};
}

Result<void> read_qcow2(OptionList& options, NewDisk& disk) {
  for (const auto& [name, value] : options.pairs) {
    const bool is_encryption = name == "encryption" || name.starts_with("encrypt.");
    if (is_encryption && value != "off") return unsupported("encryption is not supported");
  }
  disk.encryption_text = options.take("encryption");
  disk.backing_file = options.take("backing_file");
  disk.backing_format = options.take("backing_fmt");
  disk.data_file = options.take("data_file");
  if (const auto text = options.take("cluster_size")) {
    BYRE_TRY(size, parse_size_parameter(*text, "cluster_size"));
    disk.cluster_size = size;
  }
  if (const auto text = options.take("refcount_bits")) {
    const Result<uint64_t> bits = parse_number(*text, 0, 1024);
    if (!bits) return invalid("Parameter 'refcount_bits' expects a number");
    disk.refcount_bits = *bits;
  }
  if (const auto text = options.take("compression_type")) {
    const bool is_zlib = *text == "zlib";
    if (!is_zlib && *text != "zstd") disk.wrong_words.emplace_back("compression-type", *text);
    disk.compression_text = *text;
    disk.compression = is_zlib ? Compression::deflate : Compression::zstd;
  }
  disk.compat_text = options.take("compat");
  if (const auto& text = disk.compat_text) {
    disk.version2 = *text == "0.10" || *text == "v2";
    if (!disk.version2 && *text != "1.1" && *text != "v3") {
      // QEMU looks at it first.
      disk.wrong_words.insert(disk.wrong_words.begin(), {"version", *text});
    }
  }
  Result<void> read =
      read_flag(options, "data_file_raw", disk.data_file_raw, disk.data_file_raw_text);
  if (read) read = read_flag(options, "extended_l2", disk.extended_l2, disk.extended_l2_text);
  if (read) {
    read = read_flag(options, "lazy_refcounts", disk.lazy_refcounts, disk.lazy_refcounts_text);
  }
  return read;
}

/// A comma in a value is doubled, as it was when it was given.
std::string escaped(std::string_view value) {
  std::string out;
  for (char c : value) {
    if (c == ',') out += c;
    out += c;
  }
  return out;
}

/// In qemu-img's words, and before the first byte is written.
Result<void> check(const NewDisk& disk) {
  const bool is_version = !disk.wrong_words.empty() && disk.wrong_words.front().first == "version";
  if (is_version) return check_words(disk);
  if (disk.backing_format && !parse_format(*disk.backing_format)) {
    return invalid("Parameter 'backing-fmt' does not accept value '", *disk.backing_format, "'");
  }
  if (Result<void> backing = check_backing(disk); !backing) return backing;
  if (disk.format == DiskFormat::raw) {
    if (disk.size > uint64_t{INT64_MAX}) return invalid("Image size must be less than 8 EiB!");
    const std::string mode = disk.preallocation_text.value_or("off");
    if (!parse_preallocation(mode)) return invalid("invalid parameter value: ", mode);
    if (mode == "metadata") return invalid("Unsupported preallocation mode: metadata");
    return {};
  }
  if (Result<void> words = check_words(disk); !words) return words;
  const auto is_power_of_two = [](uint64_t value) {
    return value != 0 && (value & (value - 1)) == 0;
  };
  if (!is_power_of_two(disk.cluster_size) || disk.cluster_size < 512 ||
      disk.cluster_size > 2 * MiB) {
    return invalid("Cluster size must be a power of two between 512 and 2048k");
  }
  if (!is_power_of_two(disk.refcount_bits) || disk.refcount_bits > 64) {
    return invalid("Refcount width must be a power of two and may not exceed 64 bits");
  }
  if (!disk.backing_file && disk.backing_format) {
    return invalid("Backing format cannot be used without backing file");
  }
  if (disk.version2 && disk.extended_l2) {
    return invalid("Extended L2 entries are only supported with", kCompatNeeded);
  }
  if (disk.extended_l2 && disk.cluster_size < 16 * KiB) {
    return invalid(
        "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
  }
  if (disk.version2 && disk.lazy_refcounts) {
    return invalid("Lazy refcounts only supported with", kCompatNeeded);
  }
  if (disk.version2 && disk.compression != Compression::deflate) {
    return invalid("Non-zlib compression type is only supported with", kCompatNeeded);
  }
  if (disk.version2 && disk.refcount_bits != 16) {
    return invalid(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above ",
        "(use version=v3 or greater)");
  }
  if (disk.preallocation != Preallocation::off && disk.backing_file && !disk.extended_l2) {
    return invalid(
        "Backing file and preallocation can only be used at the same time if extended_l2 is on");
  }
  if (disk.data_file == "") {
    return no_name();
  }
  if (disk.data_file_raw && !disk.data_file) return invalid("data-file-raw requires data-file");
  if (disk.data_file_raw && disk.backing_file)
    return invalid("Backing file and data-file-raw cannot be used at the same time");
  if (*disk.size > uint64_t{INT64_MAX}) return invalid("Image size must be less than 8 EiB!");
  const Geometry geometry{.cluster_bits = static_cast<uint32_t>(__builtin_ctzll(disk.cluster_size)),
                          .extended_l2 = disk.extended_l2};
  if (geometry.l1_entries_for(round_up(*disk.size, kSectorSize)) > kL1EntriesMax) {
    return invalid(
        "The image size is too large for file format 'qcow2' (try using a larger cluster size)");
  }
  return {};
}

}  // namespace

Error no_name() {
  return Error(Errc::not_found, "Could not create '': No such file or directory", ENOENT);
}

Result<Preallocation> parse_preallocation(const std::string& text) {
  if (text == "off") return Preallocation::off;
  if (text == "metadata") return Preallocation::metadata;
  if (text == "falloc") return Preallocation::falloc;
  if (text == "full") return Preallocation::full;
  return invalid("Parameter 'preallocation' does not accept value '", text, "'");
}

namespace {

Result<void> check_option(std::span<const OptionHelp> known, std::string_view name,
                          const std::string& value) {
  const auto found = std::ranges::find(known, name, &OptionHelp::name);
  if (found == known.end()) return invalid("Invalid parameter '", name, "'");
  if (found->type == "size") {
    const Result<uint64_t> size = parse_size_parameter(value, name);
    if (!size) return size.error().copy();
  } else if (found->type == "num") {
    if (!parse_number(value, 0, UINT64_MAX)) {
      return invalid("Parameter '", name, "' expects a number");
    }
  } else if (found->type.starts_with("bool")) {
    const Result<bool> flag = parse_bool_parameter(value, name);
    if (!flag) return flag.error().copy();
  }
  return {};
}

}  // namespace

Result<void> check_creation_options(DiskFormat format, const OptionList& options) {
  std::span<const OptionHelp> known = kRawOptions;
  if (format == DiskFormat::qcow2) known = kQcow2Options;
  if (format == DiskFormat::qcow) known = kQcowOptions;
  for (const auto& [name, value] : options.pairs) {
    const bool is_encryption = name == "encryption" || name.starts_with("encrypt.");
    if (format != DiskFormat::raw && is_encryption) continue;  // Told by its own words later.
    if (Result<void> right = check_option(known, name, value); !right) return right;
  }
  return {};
}

Result<NewDisk> read_new_disk(DiskFormat format, OptionList options) {
  if (format == DiskFormat::qcow)
    return unsupported("images of qcow version 1 can be read, not made; make one of format qcow2");
  if (Result<void> right = check_creation_options(format, options); !right) {
    return std::move(right).error();
  }
  NewDisk disk{.format = format};
  if (const auto text = options.take("size")) {
    BYRE_TRY(size, parse_size_parameter(*text, "size"));
    disk.size = size;
  }
  disk.preallocation_text = options.take("preallocation");
  if (const auto& text = disk.preallocation_text) {
    const Result<Preallocation> mode = parse_preallocation(*text);
    // Of a raw disk it is told with what else can be wrong with a file (check()).
    if (!mode && format != DiskFormat::raw) disk.wrong_words.emplace_back("preallocation", *text);
    if (mode) disk.preallocation = *mode;
  }
  bool no_copy_on_write = false;
  if (Result<void> read = read_flag(options, "nocow", no_copy_on_write, disk.no_copy_on_write_text);
      !read) {
    return std::move(read).error();
  }
  if (disk.no_copy_on_write_text) disk.no_copy_on_write = no_copy_on_write;
  if (const auto text = options.take("extent_size_hint")) {
    BYRE_TRY(hint, parse_size_parameter(*text, "extent_size_hint"));
    disk.extent_size_hint = hint;
  }
  if (format == DiskFormat::qcow2) {
    if (Result<void> read = read_qcow2(options, disk); !read) return std::move(read).error();
  }
  if (!options.pairs.empty()) return invalid("Invalid parameter '", options.pairs[0].first, "'");
  return disk;
}

Result<void> check_words(const NewDisk& disk) {
  if (disk.wrong_words.empty()) return {};
  const auto& [name, word] = disk.wrong_words.front();
  return invalid("Parameter '", name, "' does not accept value '", word, "'");
}

Result<void> check_backing(const NewDisk& disk) {
  const bool raw = disk.format == DiskFormat::raw;
  if (raw && disk.backing_file) {
    return invalid("Backing file not supported for file format 'raw'");
  }
  if (raw && disk.backing_format) {
    return invalid("Backing file format not supported for file format 'raw'");
  }
  if (disk.backing_file == "") return invalid("Expected backing file name, got empty string");
  return {};
}

namespace {
constexpr std::array<std::string_view, 3> kQcow2Suffixes = {"qcow2", "qcow", "qc2"};
constexpr std::array<std::string_view, 5> kRawSuffixes = {"raw", "img", "iso", "bin", "dd"};

/// What follows the last dot of the file's name, in small letters; empty when there is none.
std::string suffix_of(std::string_view name) {
  name = name.substr(name.rfind('/') + 1);
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos || dot == 0) return "";
  std::string suffix(name.substr(dot + 1));
  for (char& c : suffix) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return suffix;
}

template <class List>
bool contains(const List& list, std::string_view word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

bool is_block_device(const std::string& name) {
  const Result<std::string> path = path_of(name);
  struct stat status;
  return path && stat(path->c_str(), &status) == 0 && S_ISBLK(status.st_mode);
}
}  // namespace

Result<DiskFormat> format_by_name(Session& session, const std::string& name,
                                  std::string_view option) {
  const std::string suffix = suffix_of(name);
  const bool is_qcow2 = contains(kQcow2Suffixes, suffix);
  if (session.compatibility_name()) return DiskFormat::raw;
  if (is_qcow2) return DiskFormat::qcow2;
  if (contains(kRawSuffixes, suffix) || is_block_device(name)) return DiskFormat::raw;
  return invalid("which format should ", quoted(name), " have? Its name does not tell; give ",
                 option, " qcow2 or ", option, " raw");
}

Task<void> check_backing_is_raw(Session& session, FileOpener& opener, std::string name,
                                bool force) {
  const Result<std::string> path = path_of(name);
  if (!path) co_return;
  co_await check_backing_is_raw(session, name, opener.open(*path, {.lock = false}), force,
                                "-F qcow2");
}

Task<void> check_backing_is_raw(Session& session, std::string name,
                                Result<std::unique_ptr<File>> file, bool force,
                                std::string_view instead) {
  // Whether it is there, and may be opened, others say.
  if (!file) co_return;
  const Buffer buffer(kSectorSize);
  if (Result<void> read = co_await (*file)->read(0, buffer.bytes()).result(); !read) co_return;
  if (!looks_like_qcow2(buffer.bytes())) co_return;
  const std::string text = cat("the backing file ", quoted(name), " begins like a qcow2 image; as ",
                               "raw its tables would be the disk");
  if (!session.compatibility_name() && !force) {
    co_await fail(invalid(text, ". Give ", instead, ", or --force if it is meant"));
  }
  session.warn(text);
}

std::string formatting_line(const std::string& name, const NewDisk& disk) {
  std::string line = cat("Formatting '", name, "', fmt=", name_of(disk.format));
  if (disk.format == DiskFormat::raw) {
    line += cat(" size=", *disk.size);
    if (disk.no_copy_on_write_text) line += cat(" nocow=", *disk.no_copy_on_write_text);
    if (disk.preallocation_text) line += cat(" preallocation=", *disk.preallocation_text);
    if (disk.extent_size_hint) line += cat(" extent_size_hint=", *disk.extent_size_hint);
    return line + "\n";
  }
  if (disk.encryption_text) line += cat(" encryption=", *disk.encryption_text);
  line += cat(" cluster_size=", disk.cluster_size,
              " extended_l2=", disk.extended_l2_text.value_or("off"));
  if (disk.preallocation_text) line += cat(" preallocation=", *disk.preallocation_text);
  line += cat(" compression_type=", disk.compression_text.value_or("zlib"), " size=", *disk.size);
  if (disk.compat_text) line += cat(" compat=", escaped(*disk.compat_text));
  if (disk.backing_file) line += cat(" backing_file=", escaped(*disk.backing_file));
  if (disk.backing_format) line += cat(" backing_fmt=", escaped(*disk.backing_format));
  if (disk.data_file) line += cat(" data_file=", escaped(*disk.data_file));
  if (disk.data_file_raw_text) line += cat(" data_file_raw=", *disk.data_file_raw_text);
  line += cat(" lazy_refcounts=", disk.lazy_refcounts_text.value_or("off"),
              " refcount_bits=", disk.refcount_bits);
  if (disk.no_copy_on_write_text) line += cat(" nocow=", *disk.no_copy_on_write_text);
  if (disk.extent_size_hint) line += cat(" extent_size_hint=", *disk.extent_size_hint);
  return line + "\n";
}

namespace {
std::string row_of(const OptionHelp& option) {
  return fmt::format("  {:<22} - {}\n", cat(option.name, "=<", option.type, ">"), option.help);
}
}  // namespace

std::string option_help(DiskFormat format) {
  // QEMU lists what concerns the file below a format like the rest.
  std::string out = "Supported options:\n";
  if (format == DiskFormat::qcow2) {
    for (const OptionHelp& option : kQcow2Options) out += row_of(option);
  } else {
    for (const OptionHelp& option : kRawOptions) out += row_of(option);
  }
  return out;
}

std::string option_help_without_file(DiskFormat format) {
  std::string out = cat("Supported ", name_of(format), " options:\n");
  for (const OptionHelp& option : kQcow2Options) {
    const bool of_file = option.name == "nocow" || option.name == "extent_size_hint";
    if (format == DiskFormat::qcow2 ? !of_file : option.name == "size") out += row_of(option);
  }
  return out +
         "\nThe protocol level may support further options.\n"
         "Specify the target filename to include those options.\n";
}

std::string amend_option_help() {
  constexpr std::array<std::string_view, 8> kNames = {
      "backing_file",  "backing_fmt",    "compat",        "data_file",
      "data_file_raw", "lazy_refcounts", "refcount_bits", "size"};
  std::string out = "Amend options for 'qcow2':\n";
  for (const OptionHelp& option : kQcow2Options) {
    if (std::find(kNames.begin(), kNames.end(), option.name) != kNames.end()) out += row_of(option);
  }
  return out;
}

CreateOptions create_options(const NewDisk& disk) {
  CreateOptions options;
  options.size = round_up(*disk.size, kSectorSize);  // Guests see whole sectors.
  options.preallocation = disk.preallocation;
  if (disk.format == DiskFormat::raw) return options;
  options.version = disk.version2 ? 2 : 3;
  options.cluster_size = disk.cluster_size;
  options.refcount_bits = static_cast<uint32_t>(disk.refcount_bits);
  options.extended_l2 = disk.extended_l2;
  options.lazy_refcounts = disk.lazy_refcounts;
  options.compression = disk.compression;
  options.backing_file = disk.backing_file.value_or("");
  options.backing_format = disk.backing_format.value_or("");
  options.data_file = disk.data_file.value_or("");
  options.data_file_raw = disk.data_file_raw;
  return options;
}

namespace {
Error exists_already(std::string_view path) {
  return Error(Errc::exists, cat("'", path, "' exists already; --force overwrites it"), EEXIST);
}
}  // namespace

Result<void> refuse_existing(std::string_view name) {
  BYRE_TRY(path, path_of(name));
  struct stat status;
  if (lstat(path.c_str(), &status) == 0) return exists_already(path);
  return {};
}

Result<void> check_new_disk(const NewDisk& disk) {
  if (Result<void> checked = check(disk); !checked) return checked;
  if (disk.format != DiskFormat::qcow2) return {};
  Result<Geometry> geometry = check_create(create_options(disk));
  if (!geometry) return std::move(geometry).error();
  return {};
}

Task<std::unique_ptr<NewDiskFile>> begin_disk(Session& session, FileOpener& opener,
                                              std::string name, NewDisk disk, MakeOptions make) {
  co_await check(disk);
  if (name.empty()) {
    co_return no_name();
  }
  const std::string path = co_await path_of(name);
  const auto backing_file = disk.backing_file;
  const auto data_file = disk.data_file;
  CreateDiskOptions options{.format = disk.format,
                            .image = create_options(disk),
                            .replace = make.replace,
                            .to_be_filled = make.to_be_filled,
                            .no_copy_on_write = disk.no_copy_on_write.value_or(false),
                            .extent_size_hint = disk.extent_size_hint,
                            .message =
                                [&session](const std::string& text) {
                                  // qemu-img says nothing of that wish.
                                  const bool is_wish = text.contains("turn off copy-on-write");
                                  if (!is_wish || !session.compatibility_name()) session.warn(text);
                                },
                            .direct = make.direct,
                            .sync = make.sync,
                            .progress = make.progress};
  Result<std::unique_ptr<NewDiskFile>> made =
      co_await byre::begin_disk(session.reactor(), opener, path, std::move(options)).result();
  const std::string open_failed = cat("open ", quoted(path), ": ");
  const bool is_target = !made && made.error().message().starts_with(open_failed);
  if (is_target && made.error().code() == Errc::exists) co_return exists_already(path);
  if (is_target) {
    // As qemu-img says it.
    const std::string why = made.error().message().substr(open_failed.size());
    co_return Error(made.error().code(), cat("Could not create '", path, "': ", why),
                    made.error().sys_errno());
  }
  if (made && backing_file) warn_of_policy(session, path, *backing_file);
  if (made && data_file) warn_of_policy(session, path, *data_file);
  co_return co_await std::move(made);
}

Task<void> make_disk(Session& session, FileOpener& opener, std::string name, NewDisk disk,
                     MakeOptions options) {
  const std::unique_ptr<NewDiskFile> made =
      co_await begin_disk(session, opener, std::move(name), std::move(disk), std::move(options));
  co_await made->finish();
}

}  // namespace byre
