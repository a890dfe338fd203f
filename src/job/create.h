// SPDX-License-Identifier: Apache-2.0
/// Creating a disk under a name: the file, what it must contain to be a disk, and that both survive
/// a power cut.
///
/// An external data file that is there is kept with its contents, which a raw one shows; one that
/// is not there is made.  What was made is removed when something fails.  An image is never its own
/// data file, under whatever name.
/// Order: the file, its contents, its sync, then the sync of its folder, so that a name that is
/// found after a power cut leads to a whole disk. Not here: which options are possible together
/// (qcow2/create.h).
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "io/gate.h"
#include "job/open.h"
#include "qcow2/create.h"

namespace byre {

struct CreateDiskOptions {
  DiskFormat format = DiskFormat::raw;
  CreateOptions image;   ///< `size` and `preallocation` are for raw disks, too.
  bool replace = false;  ///< What is there may be overwritten.
  /// The disk will be filled: contents of a data file that is there are lost, as far as `replace`
  /// allows.
  bool empty_data_file = false;
  bool no_copy_on_write = false;
  std::optional<uint64_t> extent_size_hint;
  /// Told which wishes the file system did not grant.
  std::function<void(const std::string&)> message;
  bool direct = false;
  bool sync = true;
};

/// Makes the disk.  Errc::exists when there is one and `replace` is not set.
Task<void> create_disk(Reactor& reactor, Gate& gate, std::string path, CreateDiskOptions options);

/// Makes the names in the folder of `path` durable.
Task<void> sync_folder(Reactor& reactor, std::string path);

}  // namespace byre
