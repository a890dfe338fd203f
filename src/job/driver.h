// SPDX-License-Identifier: Apache-2.0
/// Driver: the one definition of a kind of device: its options, its children, and how it is made.
///
/// Parsing, refusing, `byre drivers` and opening all read it.  To add one:
///   1. Write a Driver in src/job/drivers.cc, or in a file of its own when it takes more than a
///   page:
///
///        Task<OpenedNode> make_preallocate(NodeParts& parts) {
///          OpenedNode file = parts.take("file");
///          const PreallocateOptions options{
///              .align = parts.node.number("prealloc-align").value_or(1 * MiB),
///              .size = parts.node.number("prealloc-size").value_or(128 * MiB)};
///          file.device = std::make_unique<Preallocate>(std::move(file.device), options);
///          co_return std::move(file);  // A filter: the image below it stays known.
///        }
///        constexpr OptionSpec kPreallocateOptions[] = {
///            {.name = "prealloc-align", .type = OptionType::size, .fallback = "1M", .help =
///            "..."},
///            {.name = "prealloc-size", .type = OptionType::size, .fallback = "128M", .help =
///            "..."}};
///        constexpr Driver kPreallocate = {.name = "preallocate", .summary = "...",
///                                         .is_filter = true, .options = kPreallocateOptions,
///                                         .children = kOneFile, .make = make_preallocate};
///
///   2. Add it to the list at the end of src/job/drivers.cc, and take its name out of kNotYet
///   there.
///   3. Add a case to device_tree_test.cc, and a row to docs/compatibility.md.
///
/// A driver without children makes its device from its settings and parts.files; one with several
/// (raw and test, file and log) takes each by its role.  ChildSpec::access says how a child is
/// opened, and what is common to all nodes (read-only, discard, detect-zeroes, cache.direct,
/// force-share) is done around make() for every driver.
/// Invariant: make() checks everything before it takes a child, or closes what it took; children
/// that it has left are closed when it fails.
/// Cost: a driver is constant data; a lookup goes through its few options.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string_view>

#include "block/graph.h"
#include "io/file_opener.h"
#include "job/open.h"

namespace byre {

class DeviceNode;
class ThrottleGroup;
struct OpenTreeOptions;

enum class OptionType : uint8_t {
  text,
  boolean,
  size,
  number,
  choice,
  rules,  ///< A list of groups: `inject-error.0.event=...`.
  words,  ///< A list of choices: `take-child-perms.0=write`.
};

struct OptionSpec {
  std::string_view name;  ///< May have dots: "cache.direct".
  OptionType type = OptionType::text;
  std::string_view choices = {};   ///< Of a choice or of words: "threads native".
  std::string_view fallback = {};  ///< What it is when it is not given; for people.
  std::string_view only = {};      ///< Another value is refused, because of `why`.
  std::string_view why = {};       ///< Without `only`: the option is refused at all.
  std::string_view help = {};
  bool changeable = false;  ///< Of a disk that is open (TreeChange).
};

/// How the child of a node is opened.
enum class ChildAccess : uint8_t {
  same,     ///< As the node itself.
  storage,  ///< As the node itself, and writes may pass its end.
  below,    ///< For reading: a backing disk.
};
struct ChildSpec {
  std::string_view role;
  std::string_view alias = {};
  ChildAccess access = ChildAccess::same;
  bool required = true;
  bool may_be_null = false;
  std::string_view help = {};
};

/// What a node is opened for, as those above it want it.
struct NodeUse {
  bool writable = false;
  bool growable = false;  ///< Writes may pass the end.
  bool direct = false;
  bool lock = true;
  bool share_lock = false;
  bool top = false;  ///< Only filters lie over it.
  DiscardPolicy discard = DiscardPolicy::unmap;
  bool operator==(const NodeUse&) const = default;
};

/// A device that a node has become.  What is not taken out of it is given up.
struct OpenedNode {
  Child device;
  DiskFormat format = DiskFormat::raw;
  Image* image = nullptr;        ///< The topmost image, if only filters lie over it.
  bool guessed = false;          ///< Its first bytes decided the format.
  bool without_backing = false;  ///< An image whose own backing file was left out.

  OpenedNode() = default;
  OpenedNode(OpenedNode&&) = default;
  OpenedNode& operator=(OpenedNode&&) = default;
  ~OpenedNode() { device.abandon(); }
};

/// What a driver makes its device from.
struct NodeParts {
  const DeviceNode& node;
  NodeUse use;
  FileOpener& files;
  const OpenTreeOptions& options;
  std::map<std::string_view, OpenedNode> children;  ///< By role.
  /// By name; of all nodes that are opened together.
  std::map<std::string, std::shared_ptr<ThrottleGroup>>& groups;

  bool has(std::string_view role) const { return children.contains(role); }
  /// Both: it is there.
  OpenedNode& child(std::string_view role);
  OpenedNode take(std::string_view role);
};

struct Driver {
  std::string_view name;
  std::string_view summary;
  bool is_protocol = false;  ///< For messages: a "block protocol" has no format below it.
  bool is_filter = false;    ///< What lies below it is the same disk.
  std::span<const OptionSpec> options = {};
  std::span<const ChildSpec> children = {};
  Task<OpenedNode> (*make)(NodeParts& parts) = nullptr;
  /// What can be wrong with settings that are each good; may be null.
  Result<void> (*check)(const DeviceNode& node) = nullptr;

  const OptionSpec* find_option(std::string_view option) const;
};

std::span<const Driver* const> all_drivers();
/// Options that every driver has.
std::span<const OptionSpec> common_options();
/// Errc::invalid for a name that nobody knows, Errc::unsupported for a driver of QEMU's that is not
/// here.
Result<const Driver*> find_driver(std::string_view name);
/// `driver` does not have `option`, in QEMU's words.
Error no_such_option(const Driver& driver, std::string_view option);

extern const Driver& kFileDriver;
extern const Driver& kRawDriver;
extern const Driver& kQcow2Driver;
const Driver& driver_of(DiskFormat format);
extern const Driver kNbdDriver;  // nbd_driver.cc

}  // namespace byre
