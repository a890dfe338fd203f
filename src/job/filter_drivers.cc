// SPDX-License-Identifier: Apache-2.0
/// Drivers of filters: what lies over a disk and changes how requests reach it.
#include "job/filter_drivers.h"

#include <algorithm>
#include <limits>

#include "block/compress.h"
#include "block/copy_before_write.h"
#include "block/copy_on_read.h"
#include "block/preallocate.h"
#include "block/snapshot_access.h"
#include "block/throttle.h"
#include "block/verify.h"
#include "block/write_log.h"
#include "job/device_tree.h"
#include "job/objects.h"
#include "job/open_tree.h"
#include "qcow2/image.h"

namespace byre {

namespace {

constexpr ChildSpec kOneFile[] = {{.role = "file", .help = "the disk below"}};

/// For the messages of permissions.
void set_name(const NodeParts& parts, OpenedNode& opened) {
  if (!parts.node.node_name.empty()) opened.device.node().set_name(parts.node.node_name);
}

/// Claims what a filter does with the devices beside the one that it filters.
Task<OpenedNode> claimed(NodeParts& parts, OpenedNode opened) {
  set_name(parts, opened);
  Result<void> allowed;
  for (Child* const edge : opened.device->children()) {
    const bool writes = edge->get()->writable();
    const Permissions own{.uses = {.read = true, .write = writes, .resize = writes},
                          .shares = {.read = true, .write = true, .resize = false}};
    if (allowed && edge->role() == Role::other) allowed = edge->set_permissions(own);
  }
  if (!allowed) {
    (void)co_await opened.device.close().result();
    co_return std::move(allowed).error();
  }
  co_return std::move(opened);
}

// --- compress ------------------------------------------------------------------------------------

Task<OpenedNode> make_compress(NodeParts& parts) {
  const Device& below = *parts.child("file").device;
  if (!below.capabilities().compresses) {
    const Driver* const driver = parts.node.child("file")->driver;
    co_await fail(invalid("Compression is not supported for underlying format: ",
                          driver ? driver->name : "raw"));
  }
  const uint64_t cluster = below.preferred_size();
  OpenedNode opened = parts.take("file");
  opened.device = std::make_unique<Compress>(std::move(opened.device), cluster);
  co_return std::move(opened);
}

// --- copy-on-read --------------------------------------------------------------------------------

Task<OpenedNode> make_copy_on_read(NodeParts& parts) {
  const Device& disk = *parts.child("file").device;
  co_await CopyOnRead::fits(disk);
  std::optional<uint32_t> bottom;
  if (const auto node = parts.node.text("bottom"))
    bottom = co_await CopyOnRead::depth_of(disk, *node);
  OpenedNode opened = parts.take("file");
  opened.device = co_await CopyOnRead::make(std::move(opened.device), bottom);
  co_return std::move(opened);
}

constexpr OptionSpec kCopyOnReadOptions[] = {
    {.name = "bottom",
     .help = "node-name of a disk below: what lies under that is read and not copied"}};

// --- copy-before-write, snapshot-access ----------------------------------------------------------

Result<void> check_copy_before_write(const DeviceNode& node) {
  if (node.number("cbw-timeout").value_or(0) > std::numeric_limits<uint32_t>::max())
    return invalid("Parameter 'cbw-timeout' expects uint32_t");
  const std::pair<std::string_view, std::string_view> bitmap[] = {{"bitmap.node", "bitmap.name"},
                                                                  {"bitmap.name", "bitmap.node"}};
  for (const auto& [given, wanted] : bitmap) {
    if (node.text(given) && !node.text(wanted))
      return invalid("Parameter '", wanted, "' is missing");
  }
  return {};
}

/// The bitmap, as it is now; null: none was named.
Task<std::shared_ptr<const DirtyBits>> bitmap_of(NodeParts& parts) {
  const std::optional<std::string> node = parts.node.text("bitmap.node");
  if (!node) co_return std::shared_ptr<const DirtyBits>();
  const std::string name = parts.node.text("bitmap.name").value_or("");
  Image* const image = parts.child("file").image;
  if (!image || image->node()->name() != *node) {
    co_return invalid("bitmap.node='", *node,
                      "' is not the node-name of the image that is below (file)");
  }
  Result<std::unique_ptr<DirtyBits>> bits = co_await image->read_bitmap(name).result();
  if (!bits && bits.error().code() == Errc::not_found)
    co_return invalid("Dirty bitmap '", name, "' not found");
  co_return std::shared_ptr<const DirtyBits>(co_await std::move(bits));
}

Task<OpenedNode> make_copy_before_write(NodeParts& parts) {
  CopyBeforeWriteOptions options{
      .timeout_ns = static_cast<int64_t>(parts.node.number("cbw-timeout").value_or(0)) * kSecond,
      .cluster_size_min = parts.node.number("min-cluster-size").value_or(0)};
  if (parts.node.text("on-cbw-error") == "break-snapshot")
    options.on_error = CbwError::break_snapshot;
  if (const auto bits = co_await bitmap_of(parts)) {
    options.wanted = [bits](uint64_t from) -> std::optional<CopyBeforeWriteOptions::Part> {
      const auto run = bits->next_run(from);
      if (!run) return std::nullopt;
      return CopyBeforeWriteOptions::Part{run->first, run->first + run->second};
    };
  }
  co_await CopyBeforeWrite::fits(*parts.child("file").device, *parts.child("target").device,
                                 options);
  OpenedNode opened = parts.take("file");
  OpenedNode target = parts.take("target");
  auto filter = std::make_unique<CopyBeforeWrite>(std::move(opened.device),
                                                  std::move(target.device), options);
  CopyBeforeWrite& copies = *filter;
  opened.device = std::move(filter);
  opened.image = nullptr;  // What changes it as a whole would go by the filter.
  set_name(parts, opened);
  Result<void> allowed = copies.claim();
  if (allowed) allowed = co_await copies.show_snapshot_in_target().result();
  if (!allowed) {
    (void)co_await opened.device.close().result();
    co_return std::move(allowed).error();
  }
  co_return std::move(opened);
}

constexpr OptionSpec kCopyBeforeWriteOptions[] = {
    {.name = "bitmap.node", .help = "node-name of the image below whose bitmap that is"},
    {.name = "bitmap.name", .help = "only what is dirty in it is kept; as it is when it is opened"},
    {.name = "on-cbw-error",
     .type = OptionType::choice,
     .choices = "break-guest-write break-snapshot",
     .fallback = "break-guest-write",
     .help = "what fails when old contents cannot be copied"},
    {.name = "cbw-timeout",
     .type = OptionType::number,
     .fallback = "0",
     .help = "seconds after which a copy counts as failed; 0: none"},
    {.name = "min-cluster-size",
     .type = OptionType::size,
     .help = "of what is copied at once, a power of two; never below 64K and the target's "
             "clusters"}};
constexpr ChildSpec kCopyBeforeWriteChildren[] = {
    {.role = "file", .help = "the disk below"},
    {.role = "target", .access = ChildAccess::storage, .help = "where old contents are copied"}};

Task<OpenedNode> make_snapshot_access(NodeParts& parts) {
  co_await SnapshotAccess::fits(*parts.child("file").device);
  OpenedNode below = parts.take("file");
  OpenedNode opened;
  opened.device = std::make_unique<SnapshotAccess>(std::move(below.device));
  co_return std::move(opened);
}

constexpr ChildSpec kSnapshotAccessChildren[] = {
    {.role = "file", .help = "a copy-before-write node"}};

// --- preallocate ---------------------------------------------------------------------------------

PreallocateOptions preallocate_options(const DeviceNode& node) {
  PreallocateOptions options;
  options.prealloc_align = node.number("prealloc-align").value_or(options.prealloc_align);
  options.prealloc_size = node.number("prealloc-size").value_or(options.prealloc_size);
  return options;
}
Result<void> check_preallocate_node(const DeviceNode& node) {
  return check_preallocate(preallocate_options(node));
}

Task<OpenedNode> make_preallocate(NodeParts& parts) {
  OpenedNode opened = parts.take("file");
  opened.device =
      std::make_unique<Preallocate>(std::move(opened.device), preallocate_options(parts.node));
  co_return std::move(opened);
}

constexpr OptionSpec kPreallocateOptions[] = {
    {.name = "prealloc-align",
     .type = OptionType::size,
     .fallback = "1M",
     .help = "the file ends at a multiple of this"},
    {.name = "prealloc-size",
     .type = OptionType::size,
     .fallback = "128M",
     .help = "how far it is extended behind a write that passes its end"}};
constexpr ChildSpec kGrowingFile[] = {
    {.role = "file", .access = ChildAccess::storage, .help = "the file that grows"}};

// --- blkverify -----------------------------------------------------------------------------------

Task<OpenedNode> make_blkverify(NodeParts& parts) {
  co_await Verify::fits(*parts.child("test").device, *parts.child("raw").device);
  OpenedNode opened = parts.take("test");
  OpenedNode reference = parts.take("raw");
  opened.device = co_await Verify::make(std::move(opened.device), std::move(reference.device));
  opened.image = nullptr;  // What changes one of the two alone would make them differ.
  co_return co_await claimed(parts, std::move(opened));
}

constexpr ChildSpec kBlkverifyChildren[] = {{.role = "test", .help = "the disk that is verified"},
                                            {.role = "raw", .help = "the disk that is right"}};

// --- blklogwrites --------------------------------------------------------------------------------

Result<void> check_blklogwrites(const DeviceNode& node) {
  const std::optional<uint64_t> size = node.number("log-sector-size");
  if (size && *size > std::numeric_limits<uint32_t>::max())
    return invalid("Invalid log sector size ", *size);
  if (size && node.flag("log-append").value_or(false))
    return invalid("log-append and log-sector-size are mutually exclusive");
  return {};
}

Task<OpenedNode> make_blklogwrites(NodeParts& parts) {
  WriteLogOptions options{.append = parts.node.flag("log-append").value_or(false)};
  if (const auto size = parts.node.number("log-sector-size"))
    options.sector_size = static_cast<uint32_t>(*size);
  if (const auto interval = parts.node.number("log-super-update-interval"))
    options.super_update_interval = *interval;
  OpenedNode opened = parts.take("file");
  OpenedNode log = parts.take("log");
  opened.device = co_await WriteLog::open(std::move(opened.device), std::move(log.device), options);
  co_return std::move(opened);
}

constexpr OptionSpec kBlklogwritesOptions[] = {
    {.name = "log-append",
     .type = OptionType::boolean,
     .fallback = "off",
     .help = "go on behind the entries that the log has"},
    {.name = "log-sector-size",
     .type = OptionType::size,
     .fallback = "512",
     .help = "of the log; a new one only"},
    {.name = "log-super-update-interval",
     .type = OptionType::number,
     .fallback = "4096",
     .help = "entries between two updates of the log's superblock"}};
constexpr ChildSpec kBlklogwritesChildren[] = {
    {.role = "file", .access = ChildAccess::storage, .help = "the disk"},
    {.role = "log", .access = ChildAccess::storage, .help = "where every change of it is logged"}};

// --- throttle ------------------------------------------------------------------------------------

constexpr std::string_view kLimits = "limits.";

ThrottleLimits limits_of(const DeviceNode& node) {
  ThrottleLimits limits;
  for (const Setting& setting : node.settings) {
    if (setting.name.starts_with(kLimits))
      *find_limit(limits, setting.name.substr(kLimits.size())) = std::get<uint64_t>(setting.value);
  }
  return limits;
}
Result<void> check_throttle(const DeviceNode& node) {
  return check_throttle_limits(limits_of(node));
}
bool has_limits(const DeviceNode& node) {
  return std::ranges::any_of(node.settings,
                             [](const Setting& one) { return one.name.starts_with(kLimits); });
}

/// The group that the node names: an object, or what a device of the same disks has defined.
Task<std::shared_ptr<ThrottleGroup>> group_called(NodeParts& parts, std::string name) {
  Reactor& reactor = parts.child("file").device->reactor();
  std::shared_ptr<ThrottleGroup> object;
  if (parts.options.objects) object = parts.options.objects->throttle_group(name, reactor);
  if (object && has_limits(parts.node))
    co_return invalid("throttle-group '", name, "' has its limits already, from --object");
  if (object) co_return std::move(object);
  std::shared_ptr<ThrottleGroup>& known = parts.groups[name];
  if (known && has_limits(parts.node)) {
    co_return invalid("throttle-group '", name, "' has its limits already, from another device");
  }
  if (!known && !has_limits(parts.node)) {
    co_return invalid("Throttle group '", name, "' does not exist: give it limits.*, or --object ",
                      "throttle-group,id=", name, ",...");
  }
  if (!known) known = std::make_shared<ThrottleGroup>(reactor, limits_of(parts.node));
  co_return known;
}

Task<OpenedNode> make_throttle(NodeParts& parts) {
  const std::optional<std::string> name = parts.node.text("throttle-group");
  std::shared_ptr<ThrottleGroup> group;
  if (name) {
    group = co_await group_called(parts, *name);
  } else {
    group = std::make_shared<ThrottleGroup>(parts.child("file").device->reactor(),
                                            limits_of(parts.node));
  }
  OpenedNode opened = parts.take("file");
  opened.device = std::make_unique<Throttle>(std::move(opened.device), std::move(group));
  co_return std::move(opened);
}

constexpr std::string_view kRate = "units a second, on average";
constexpr std::string_view kBurst = "units a second, in a burst";
constexpr std::string_view kLength = "seconds of such a burst";
constexpr OptionSpec kThrottleOptions[] = {
    {.name = "throttle-group", .help = "devices that name one share its limits"},
    {.name = "limits.bps-total", .type = OptionType::size, .help = kRate},
    {.name = "limits.bps-total-max", .type = OptionType::size, .help = kBurst},
    {.name = "limits.bps-total-max-length", .type = OptionType::number, .help = kLength},
    {.name = "limits.bps-read", .type = OptionType::size, .help = kRate},
    {.name = "limits.bps-read-max", .type = OptionType::size, .help = kBurst},
    {.name = "limits.bps-read-max-length", .type = OptionType::number, .help = kLength},
    {.name = "limits.bps-write", .type = OptionType::size, .help = kRate},
    {.name = "limits.bps-write-max", .type = OptionType::size, .help = kBurst},
    {.name = "limits.bps-write-max-length", .type = OptionType::number, .help = kLength},
    {.name = "limits.iops-total", .type = OptionType::size, .help = kRate},
    {.name = "limits.iops-total-max", .type = OptionType::size, .help = kBurst},
    {.name = "limits.iops-total-max-length", .type = OptionType::number, .help = kLength},
    {.name = "limits.iops-read", .type = OptionType::size, .help = kRate},
    {.name = "limits.iops-read-max", .type = OptionType::size, .help = kBurst},
    {.name = "limits.iops-read-max-length", .type = OptionType::number, .help = kLength},
    {.name = "limits.iops-write", .type = OptionType::size, .help = kRate},
    {.name = "limits.iops-write-max", .type = OptionType::size, .help = kBurst},
    {.name = "limits.iops-write-max-length", .type = OptionType::number, .help = kLength},
    {.name = "limits.iops-size",
     .type = OptionType::size,
     .help = "a request counts once for each so many bytes"}};

}  // namespace

constexpr Driver kCompressDefinition = {.name = "compress",
                                        .summary = "Writes whole clusters compressed",
                                        .is_filter = true,
                                        .children = kOneFile,
                                        .make = make_compress};
constexpr Driver kCopyOnReadDefinition = {.name = "copy-on-read",
                                          .summary = "Writes back what it reads from below",
                                          .is_filter = true,
                                          .options = kCopyOnReadOptions,
                                          .children = kOneFile,
                                          .make = make_copy_on_read};
constexpr Driver kCopyBeforeWriteDefinition = {
    .name = "copy-before-write",
    .summary = "Copies old contents to a target before they are overwritten",
    .is_filter = true,
    .options = kCopyBeforeWriteOptions,
    .children = kCopyBeforeWriteChildren,
    .make = make_copy_before_write,
    .check = check_copy_before_write};
constexpr Driver kSnapshotAccessDefinition = {
    .name = "snapshot-access",
    .summary = "The disk as it was when the copy-before-write node below was opened",
    .children = kSnapshotAccessChildren,
    .make = make_snapshot_access};
constexpr Driver kPreallocateDefinition = {.name = "preallocate",
                                           .summary = "A file that grows in large steps",
                                           .is_filter = true,
                                           .options = kPreallocateOptions,
                                           .children = kGrowingFile,
                                           .make = make_preallocate,
                                           .check = check_preallocate_node};
constexpr Driver kBlkverifyDefinition = {.name = "blkverify",
                                         .summary = "Compares a disk with its reference",
                                         .is_protocol = true,
                                         .is_filter = true,
                                         .children = kBlkverifyChildren,
                                         .make = make_blkverify};
constexpr Driver kBlklogwritesDefinition = {.name = "blklogwrites",
                                            .summary = "Logs every change, as dm-log-writes does",
                                            .is_filter = true,
                                            .options = kBlklogwritesOptions,
                                            .children = kBlklogwritesChildren,
                                            .make = make_blklogwrites,
                                            .check = check_blklogwrites};
constexpr Driver kThrottleDefinition = {.name = "throttle",
                                        .summary = "Keeps the rates of a disk, or of several",
                                        .is_filter = true,
                                        .options = kThrottleOptions,
                                        .children = kOneFile,
                                        .make = make_throttle,
                                        .check = check_throttle};

std::span<const Driver* const> filter_drivers() {
  static constexpr const Driver* kAll[] = {&kBlklogwritesDefinition,   &kBlkverifyDefinition,
                                           &kCompressDefinition,       &kCopyBeforeWriteDefinition,
                                           &kCopyOnReadDefinition,     &kPreallocateDefinition,
                                           &kSnapshotAccessDefinition, &kThrottleDefinition};
  return kAll;
}

}  // namespace byre
