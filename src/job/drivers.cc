// SPDX-License-Identifier: Apache-2.0
/// The drivers (driver.h says how to add one).
#include <algorithm>
#include <cstring>
#include <limits>

#include "block/null.h"
#include "block/raw.h"
#include "block/slice.h"
#include "io/buffer.h"
#include "job/chain.h"
#include "job/device_tree.h"
#include "job/driver.h"
#include "job/filter_drivers.h"
#include "job/open_tree.h"
#include "qcow1/image.h"

namespace byre {

namespace {

// --- file, host_device ---------------------------------------------------------------------------

Result<void> check_file(const DeviceNode& node) {
  if (node.text("filename").value_or("") != "") return {};
  return invalid("The '", node.driver->name, "' block driver requires a file name");
}

Task<OpenedNode> make_file(NodeParts& parts) {
  const DeviceNode& node = parts.node;
  const std::string name = node.text("filename").value_or("");
  const bool lock = parts.use.lock && node.text("locking") != "off";
  std::unique_ptr<File> file =
      co_await parts.files.open(name, {.writable = parts.use.writable,
                                       .direct = parts.use.direct,
                                       .lock = lock,
                                       .share_lock = parts.use.share_lock});
  const bool is_device = file->properties().block_device || name == "/dev/null";
  if (!node.is_implied && node.driver->name == "file" && is_device) {
    co_await fail(invalid("'file' driver requires '", name, "' to be a regular file"));
  }
  if (node.driver->name == "host_device" && !is_device) {
    co_await fail(invalid("'host_device' driver requires '", name,
                          "' to be either a character or block device"));
  }
  OpenedNode opened;
  opened.device =
      std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = parts.use.growable});
  co_return std::move(opened);
}

constexpr OptionSpec kFileOptions[] = {
    {.name = "filename", .help = "path of the file"},
    {.name = "locking",
     .type = OptionType::choice,
     .choices = "auto on off",
     .fallback = "auto",
     .help = "lock the file against other programs"},
    {.name = "aio",
     .type = OptionType::choice,
     .choices = "threads native io_uring",
     .help = "accepted; byre chooses by itself"},
    {.name = "aio-max-batch",
     .type = OptionType::number,
     .help = "accepted; byre chooses by itself"},
    {.name = "drop-cache",
     .type = OptionType::boolean,
     .only = "on",
     .why = "it is for live migration",
     .help = "forget cached pages when another program has written"},
    {.name = "pr-manager", .why = "there are no helpers for SCSI reservations", .help = "a helper"},
};
constexpr Driver kFileDefinition = {.name = "file",
                                    .summary = "A regular file",
                                    .is_protocol = true,
                                    .options = kFileOptions,
                                    .make = make_file,
                                    .check = check_file};
constexpr Driver kHostDevice = {.name = "host_device",
                                .summary = "A block device",
                                .is_protocol = true,
                                .options = kFileOptions,
                                .make = make_file,
                                .check = check_file};

// --- null-co, null-aio ---------------------------------------------------------------------------

/// As a node of QEMU's: read-only when it is opened so, and without `read_zeroes` nobody knows what
/// it holds.
class NullDisk final : public Filter {
 public:
  NullDisk(Reactor& reactor, NullOptions options, bool writable)
      : Filter(std::make_unique<NullDevice>(reactor, options)),
        is_zero_(options.read_zeroes),
        writable_(writable) {}
  bool writable() const override { return writable_; }
  Task<Extent> status(uint64_t offset, uint64_t length) override {
    Extent extent{.length = length, .data = false, .zero = is_zero_, .allocated = is_zero_};
    if (is_zero_) extent.host_offset = offset;
    co_return extent;
  }
  Task<void> resize(uint64_t) override {
    co_await fail(unsupported("Image format driver does not support resize"));
  }

 private:
  bool is_zero_;
  bool writable_;
};

Task<OpenedNode> make_null(NodeParts& parts) {
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  const uint64_t size = parts.node.number("size").value_or(1 * GiB);
  if (size > kMax) co_await fail(invalid("size ", size, " is larger than a disk can be"));
  if (!parts.options.reactor) co_await fail(unsupported("there are only files here"));
  const uint64_t latency = parts.node.number("latency-ns").value_or(0);
  if (latency > kMax / 2) co_await fail(invalid("latency-ns is invalid"));
  OpenedNode opened;
  opened.device = std::make_unique<NullDisk>(
      *parts.options.reactor,
      NullOptions{.size = size,
                  .latency_ns = static_cast<int64_t>(latency),
                  .read_zeroes = parts.node.flag("read-zeroes").value_or(false),
                  .fixed = true},
      parts.use.writable);
  co_return std::move(opened);
}

constexpr OptionSpec kNullOptions[] = {
    {.name = "size", .type = OptionType::size, .fallback = "1G", .help = "of the disk"},
    {.name = "latency-ns",
     .type = OptionType::number,
     .fallback = "0",
     .help = "nanoseconds until a request is answered"},
    {.name = "read-zeroes",
     .type = OptionType::boolean,
     .fallback = "off",
     .help = "say that it reads as zeros, which it does in any case"}};
constexpr Driver kNullCo = {.name = "null-co",
                            .summary = "A disk that forgets what is written",
                            .is_protocol = true,
                            .options = kNullOptions,
                            .make = make_null};
constexpr Driver kNullAio = {.name = "null-aio",
                             .summary = "The same",
                             .is_protocol = true,
                             .options = kNullOptions,
                             .make = make_null};

// --- raw -----------------------------------------------------------------------------------------

Task<OpenedNode> make_raw(NodeParts& parts) {
  const uint64_t all = parts.child("file").device->size();
  const uint32_t alignment = parts.child("file").device->alignment();
  const std::optional<uint64_t> wanted = parts.node.number("size");
  const uint64_t offset = parts.node.number("offset").value_or(0);
  if (wanted && *wanted % kSectorSize != 0) {
    co_await fail(invalid("Specified size is not multiple of ", kSectorSize));
  }
  if (offset > all) {
    co_await fail(invalid("Offset (", offset, ") cannot be greater than size of the containing ",
                          "file (", all, ")"));
  }
  const uint64_t size = wanted.value_or(all - offset);
  if (size > all - offset) {
    co_await fail(invalid("The sum of offset (", offset, ") and size (", size,
                          ") has to be smaller or equal to the  actual size of the containing ",
                          "file (", all, ")"));
  }
  if (offset % alignment != 0) {
    co_await fail(invalid("Offset (", offset, ") is no multiple of ", alignment));
  }
  OpenedNode opened = parts.take("file");
  if (parts.node.number("offset") || wanted) {
    opened.device = std::make_unique<Slice>(std::move(opened.device), offset, size);
  }
  opened.format = DiskFormat::raw;
  opened.image = nullptr;
  opened.guessed = false;
  co_return std::move(opened);
}

constexpr OptionSpec kRawOptions[] = {
    {.name = "offset",
     .type = OptionType::size,
     .fallback = "0",
     .help = "where in the file the disk begins",
     .changeable = true},
    {.name = "size",
     .type = OptionType::size,
     .help = "of the disk; without it all that follows in the file",
     .changeable = true}};
constexpr ChildSpec kOneFile[] = {{.role = "file", .help = "where the bytes are"}};
constexpr Driver kRawDefinition = {.name = "raw",
                                   .summary = "The bytes of a file, or a part of them",
                                   .options = kRawOptions,
                                   .children = kOneFile,
                                   .make = make_raw};

// --- qcow2 ---------------------------------------------------------------------------------------

/// Two slices: what a table cache needs.
constexpr uint64_t kTableCacheMin = 8 * KiB;

/// The size of the table cache, if one was given.
Result<std::optional<uint64_t>> cache_size_of(const DeviceNode& node) {
  const std::optional<uint64_t> all = node.number("cache-size");
  const std::optional<uint64_t> tables = node.number("l2-cache-size");
  for (const auto& [name, size] : {std::pair("cache-size", all), {"l2-cache-size", tables}}) {
    if (size && *size < kTableCacheMin) {
      return invalid(name, " must be ", kTableCacheMin, " at least, not ", *size);
    }
  }
  if (all && tables && *tables > *all) return invalid("l2-cache-size may not exceed cache-size");
  return tables ? tables : all;
}

Result<void> check_qcow2(const DeviceNode& node) {
  const Result<std::optional<uint64_t>> size = cache_size_of(node);
  return size ? Result<void>() : size.error().copy();
}

Task<OpenedNode> make_qcow2(NodeParts& parts) {
  const DeviceNode& node = parts.node;
  ImageOptions options = parts.options.image;
  if (!parts.use.top) {  // What the user wants of the disk is not meant for what lies inside.
    options.snapshot.clear();
    options.data_file.clear();
    options.without_backing = false;
    options.salvage = false;
    options.free_leaks = false;
    options.writable_below = 0;
  }
  options.writable = parts.use.writable;
  options.direct = parts.use.direct;
  options.lock = parts.use.lock;
  options.share_lock = parts.use.share_lock;
  options.discard = parts.use.discard;
  if (const auto on = node.flag("lazy-refcounts")) options.lazy_refcounts = *on;
  if (const auto on = node.flag("discard-no-unref")) options.discard_keeps = *on;
  if (node.flag("trust-refcounts").value_or(false)) options.scan = ImageOptions::Scan::never;
  (void)co_await find_format(*parts.child("file").device, DiskFormat::qcow2);
  const std::optional<uint64_t> cache_size = co_await cache_size_of(node);
  if (cache_size) options.table_cache_size = *cache_size;
  if (node.is_null("backing")) options.without_backing = true;
  follow_named_devices(options, parts.child("file").device->reactor());

  if (!options.without_backing && !parts.has("backing")) {
    co_await check_chain_memory(parts.files, *parts.child("file").device);
  }
  OpenedNode file = parts.take("file");
  OpenedNode backing = parts.has("backing") ? parts.take("backing") : OpenedNode();
  OpenedNode data = parts.has("data-file") ? parts.take("data-file") : OpenedNode();
  if (parts.use.top && parts.options.over_file) {
    file.device = parts.options.over_file(std::move(file.device));
  }
  std::unique_ptr<Image> image =
      co_await Image::open_over(std::move(file.device), parts.files, std::move(options),
                                std::move(backing.device), std::move(data.device));
  OpenedNode opened;
  opened.format = DiskFormat::qcow2;
  opened.image = image.get();
  opened.without_backing = node.is_null("backing") && image->head().backing_file.has_value();
  opened.device = std::move(image);
  co_return std::move(opened);
}

constexpr std::string_view kKeepBlocks = "use discard=ignore to keep blocks";
constexpr std::string_view kAllChecked = "every write of data is checked against all metadata";
constexpr OptionSpec kQcow2Options[] = {
    {.name = "lazy-refcounts",
     .type = OptionType::boolean,
     .help = "update refcounts late (default: as the image says)",
     .changeable = true},
    {.name = "discard-no-unref",
     .type = OptionType::boolean,
     .fallback = "off",
     .help = "clusters that are discarded keep their place",
     .changeable = true},
    {.name = "cache-size",
     .type = OptionType::size,
     .fallback = "32M",
     .help = "of all caches together",
     .changeable = true},
    {.name = "l2-cache-size",
     .type = OptionType::size,
     .fallback = "32M",
     .help = "of the cache of L2 tables",
     .changeable = true},
    {.name = "refcount-cache-size",
     .type = OptionType::size,
     .why = "refcounts are in memory, one byte for each cluster of the regions in use",
     .help = "of the cache of refcount blocks",
     .changeable = true},
    {.name = "l2-cache-entry-size",
     .type = OptionType::text,
     .only = "4096",
     .why = "L2 tables are cached in pieces of 4096 bytes",
     .help = "of the pieces of L2 tables",
     .changeable = true},
    {.name = "cache-clean-interval",
     .type = OptionType::text,
     .only = "0",
     .why = "the cache keeps what fits its size",
     .help = "seconds until unused tables are forgotten",
     .changeable = true},
    {.name = "pass-discard-request",
     .type = OptionType::boolean,
     .only = "on",
     .why = kKeepBlocks,
     .help = "discards of the guest become holes in the file",
     .changeable = true},
    {.name = "pass-discard-snapshot",
     .type = OptionType::boolean,
     .only = "on",
     .why = kKeepBlocks,
     .help = "what a deleted snapshot frees becomes holes",
     .changeable = true},
    {.name = "pass-discard-other",
     .type = OptionType::boolean,
     .only = "on",
     .why = kKeepBlocks,
     .help = "what is freed otherwise becomes holes",
     .changeable = true},
    {.name = "overlap-check",
     .only = "all",
     .why = kAllChecked,
     .help = "before a write of metadata",
     .changeable = true},
    {.name = "overlap-check.template",
     .only = "all",
     .why = kAllChecked,
     .help = "the same",
     .changeable = true},
    {.name = "trust-refcounts",
     .type = OptionType::boolean,
     .fallback = "off",
     .help = "do not count all references when it is opened for writing"},
    {.name = "encrypt.format", .why = "there is no encryption here yet", .help = "of its data"},
    {.name = "encrypt.key-secret", .why = "there is no encryption here yet", .help = "its key"},
};
constexpr ChildSpec kQcow2Children[] = {
    {.role = "file", .access = ChildAccess::storage, .help = "where the image is"},
    {.role = "backing",
     .access = ChildAccess::below,
     .required = false,
     .may_be_null = true,
     .help = "instead of the backing file that the image names; null: none"},
    {.role = "data-file",
     .access = ChildAccess::storage,
     .required = false,
     .help = "instead of the data file that the image names"}};
constexpr Driver kQcow2Definition = {.name = "qcow2",
                                     .summary = "A qcow2 image",
                                     .options = kQcow2Options,
                                     .children = kQcow2Children,
                                     .make = make_qcow2,
                                     .check = check_qcow2};

// --- blkdebug ------------------------------------------------------------------------------------

/// Those among the options.
Result<FaultRules> rules_of(const DeviceNode& node) {
  FaultRules rules;
  for (const std::string_view kind : {"inject-error", "set-state"}) {
    for (OptionRule& settings : node.rules(kind)) {
      Result<void> added =
          add_rule(rules, {.kind = std::string(kind), .settings = std::move(settings)});
      if (!added) return std::move(added).error();
    }
  }
  return rules;
}

Result<FaultLimits> limits_of(const DeviceNode& node) {
  FaultLimits limits;
  const uint64_t align = node.number("align").value_or(0);
  if (align > std::numeric_limits<uint32_t>::max())
    return invalid("Cannot meet constraints with align ", align);
  limits.align = static_cast<uint32_t>(align);
  limits.max_transfer = node.number("max-transfer").value_or(0);
  limits.opt_write_zero = node.number("opt-write-zero").value_or(0);
  limits.max_write_zero = node.number("max-write-zero").value_or(0);
  limits.opt_discard = node.number("opt-discard").value_or(0);
  limits.max_discard = node.number("max-discard").value_or(0);
  return limits;
}

constexpr std::string_view kPermissions = "consistent-read write write-unchanged resize";

Access access_of(const DeviceNode& node, std::string_view option) {
  Access access;
  for (const std::string& word : node.words(option)) {
    access.read |= word == "consistent-read";
    access.write |= word == "write";
    access.resize |= word == "resize";
  }
  return access;
}

/// What the filter does with its child beyond what passes through it, and lets others do.
Permissions permissions_of(const DeviceNode& node) {
  return {.uses = access_of(node, "take-child-perms"),
          .shares = Access::all().without(access_of(node, "unshare-child-perms"))};
}

Result<void> check_blkdebug(const DeviceNode& node) {
  for (const std::string_view option : {"take-child-perms", "unshare-child-perms"}) {
    const std::vector<std::string> words = node.words(option);
    if (std::ranges::find(words, "write-unchanged") == words.end()) continue;
    return unsupported(option, " has no write-unchanged: nobody asks for that here; use write");
  }
  const Result<FaultRules> rules = rules_of(node);
  if (!rules) return rules.error().copy();
  const Result<FaultLimits> limits = limits_of(node);
  if (!limits) return limits.error().copy();
  return check_limits(*limits, 1);
}

Task<FaultRules> load_rules(NodeParts& parts) {
  FaultRules rules;
  constexpr uint64_t kConfigMax = 1 * MiB;
  if (const std::string config = parts.node.text("config").value_or(""); !config.empty()) {
    Result<std::unique_ptr<File>> opened = parts.files.open(config, {.lock = false});
    if (!opened) {
      co_return Error(opened.error().code(), cat("Could not read blkdebug config file: ",
                                                 std::strerror(opened.error().sys_errno())));
    }
    const std::unique_ptr<File> file = *std::move(opened);
    if (file->size() > kConfigMax) co_return invalid("The blkdebug config file is too large");
    const Buffer text(file->size());
    co_await file->read(0, text.bytes());
    rules = co_await parse_fault_config(text_of(text.bytes()))
                .doing("Could not parse blkdebug config file");
  }
  const FaultRules more = co_await rules_of(parts.node);
  rules.inject_errors.insert(rules.inject_errors.end(), more.inject_errors.begin(),
                             more.inject_errors.end());
  rules.set_states.insert(rules.set_states.end(), more.set_states.begin(), more.set_states.end());
  co_return rules;
}

Task<OpenedNode> make_blkdebug(NodeParts& parts) {
  FaultRules rules = co_await load_rules(parts);
  const FaultLimits limits = co_await limits_of(parts.node);
  co_await check_limits(limits, parts.child("image").device->alignment());
  const Permissions permissions = permissions_of(parts.node);
  if (permissions.uses.write && !parts.child("image").device->writable())
    co_await fail(Error(Errc::read_only, "Block node is read-only"));
  co_await parts.child("image").device.set_permissions(permissions);
  OpenedNode opened = parts.take("image");
  auto filter = std::make_unique<FaultFilter>(std::move(opened.device), std::move(rules), limits);
  if (parts.options.on_fault_filter) parts.options.on_fault_filter(*filter);
  opened.device = std::move(filter);
  co_return std::move(opened);
}

constexpr OptionSpec kBlkdebugOptions[] = {
    {.name = "config", .help = "a file with rules"},
    {.name = "inject-error",
     .type = OptionType::rules,
     .help = "rules that fail requests: event, errno, sector, state, iotype, once, immediately"},
    {.name = "set-state",
     .type = OptionType::rules,
     .help = "rules that change the state: event, state, new_state"},
    {.name = "align", .type = OptionType::size, .help = "of requests; a power of two"},
    {.name = "max-transfer", .type = OptionType::size, .help = "larger reads and writes are split"},
    {.name = "opt-write-zero", .type = OptionType::size, .help = "the grid of zeroes"},
    {.name = "max-write-zero", .type = OptionType::size, .help = "larger zeroes are split"},
    {.name = "opt-discard", .type = OptionType::size, .help = "the grid of discards"},
    {.name = "max-discard", .type = OptionType::size, .help = "larger discards are split"},
    {.name = "take-child-perms",
     .type = OptionType::words,
     .choices = kPermissions,
     .help = "what it claims to do with the image beyond what passes through it"},
    {.name = "unshare-child-perms",
     .type = OptionType::words,
     .choices = kPermissions,
     .help = "what other devices over the image may not do"},
};
constexpr ChildSpec kBlkdebugChildren[] = {
    {.role = "image", .alias = "x-image", .help = "what the requests go to"}};
constexpr Driver kBlkdebug = {.name = "blkdebug",
                              .summary = "Fails, or holds back, chosen requests",
                              .is_protocol = true,
                              .is_filter = true,
                              .options = kBlkdebugOptions,
                              .children = kBlkdebugChildren,
                              .make = make_blkdebug,
                              .check = check_blkdebug};

// --- qcow ----------------------------------------------------------------------------------------

Task<OpenedNode> make_qcow(NodeParts& parts) {
  if (parts.use.writable)
    co_await fail(Error(Errc::read_only, "images of qcow version 1 can only be read"));
  OpenedNode file = parts.take("file");
  OpenedNode backing = parts.has("backing") ? parts.take("backing") : OpenedNode();
  OpenedNode opened;
  opened.format = DiskFormat::qcow;
  opened.without_backing = parts.node.is_null("backing");
  if (backing.device || opened.without_backing || parts.options.image.without_backing) {
    opened.device = co_await Qcow1Image::open(std::move(file.device), std::move(backing.device));
  } else {
    opened.device = co_await open_qcow1(std::move(file.device), parts.files, parts.options.image);
  }
  co_return std::move(opened);
}

constexpr ChildSpec kQcowChildren[] = {
    {.role = "file", .help = "where the image is"},
    {.role = "backing",
     .access = ChildAccess::below,
     .required = false,
     .may_be_null = true,
     .help = "instead of the backing file that the image names; null: none"}};
constexpr Driver kQcowDefinition = {.name = "qcow",
                                    .summary = "An image of qcow version 1, for reading",
                                    .children = kQcowChildren,
                                    .make = make_qcow};

// --- All -----------------------------------------------------------------------------------------

constexpr const Driver* kPlain[] = {&kBlkdebug,       &kFileDefinition,  &kHostDevice,
                                    &kNbdDriver,      &kNullAio,         &kNullCo,
                                    &kQcowDefinition, &kQcow2Definition, &kRawDefinition};

/// QEMU's, which byre does not have (yet).
constexpr std::string_view kNotYet[] = {
    "blkreplay",   "bochs",         "cloop",     "dmg",      "ftp",    "ftps",  "gluster",
    "http",        "host_cdrom",    "https",     "io_uring", "iscsi",  "luks",  "nfs",
    "nvme",        "nvme-io_uring", "parallels", "qed",      "quorum", "rbd",   "ssh",
    "replication", "vdi",           "vhdx",      "vmdk",     "vpc",    "vvfat",
};

constexpr OptionSpec kCommon[] = {
    {.name = "driver", .help = "what kind of device it is"},
    {.name = "node-name", .help = "by which other devices can refer to it"},
    {.name = "read-only",
     .type = OptionType::boolean,
     .help = "nothing is written",
     .changeable = true},
    {.name = "auto-read-only",
     .type = OptionType::boolean,
     .help = "nothing is written unless somebody writes",
     .changeable = true},
    {.name = "force-share",
     .type = OptionType::boolean,
     .fallback = "off",
     .help = "read although another process writes"},
    {.name = "discard",
     .type = OptionType::choice,
     .choices = "ignore unmap",
     .help = "what becomes of discards",
     .changeable = true},
    {.name = "detect-zeroes",
     .type = OptionType::choice,
     .choices = "off on unmap",
     .fallback = "off",
     .help = "a write of nothing but zeros becomes a request to zero",
     .changeable = true},
    {.name = "cache.direct",
     .type = OptionType::boolean,
     .help = "past the host's page cache",
     .changeable = true},
    {.name = "cache.no-flush",
     .type = OptionType::boolean,
     .only = "off",
     .why = "flushes are never dropped",
     .help = "ignore flushes",
     .changeable = true},
};

}  // namespace

const Driver& kFileDriver = kFileDefinition;
const Driver& kRawDriver = kRawDefinition;
const Driver& kQcow2Driver = kQcow2Definition;
const Driver& driver_of(DiskFormat format) {
  switch (format) {
    case DiskFormat::raw:
      return kRawDefinition;
    case DiskFormat::qcow2:
      return kQcow2Definition;
    case DiskFormat::qcow:
      return kQcowDefinition;
  }
  BYRE_ASSERT(false);
}

std::span<const Driver* const> all_drivers() {
  static const std::vector<const Driver*> all = [] {
    std::vector<const Driver*> list(std::begin(kPlain), std::end(kPlain));
    const std::span<const Driver* const> filters = filter_drivers();
    list.insert(list.end(), filters.begin(), filters.end());
    std::ranges::sort(list, {}, &Driver::name);
    return list;
  }();
  return all;
}
std::span<const OptionSpec> common_options() { return std::span(kCommon).subspan(1); }

Result<const Driver*> find_driver(std::string_view name) {
  for (const Driver* driver : all_drivers()) {
    if (driver->name == name) return driver;
  }
  if (std::ranges::find(kNotYet, name) != std::end(kNotYet)) {
    return unsupported("Driver '", name, "' is not supported (yet)");
  }
  return invalid("Unknown driver '", name, "'");
}

const OptionSpec* Driver::find_option(std::string_view option) const {
  const auto found = std::ranges::find(options, option, &OptionSpec::name);
  return found == options.end() ? nullptr : &*found;
}

Error no_such_option(const Driver& driver, std::string_view option) {
  if (driver.is_protocol) {
    return invalid("Block protocol '", driver.name, "' doesn't support the option '", option, "'");
  }
  return invalid("Block format '", driver.name, "' does not support the option '", option, "'");
}

}  // namespace byre
