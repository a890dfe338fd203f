// SPDX-License-Identifier: Apache-2.0
/// SimGate: simulated disks by name, for code that opens files through a FileOpener.
///
/// Images may name any other disk of the opener.  Locks are not simulated.  A disk is created by
/// open() with `create`, or put there by the test; it outlives the process that uses it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "io/file_opener.h"
#include "sim/sim_disk.h"

namespace byre {

/// The disks that simulated processes, one after another, find.
using SimDisks = std::map<std::string, SimDisk, std::less<>>;

class SimGate final : public FileOpener {
 public:
  struct Options {
    uint32_t block_size =
        1;                ///< What descriptors opened with `direct` demand of offset and length.
    bool direct = false;  ///< Open all of them so, asked for or not.
  };
  SimGate(SimReactor& reactor, SimDisks& disks, Options options)
      : reactor_(reactor), disks_(disks), options_(options) {}
  SimGate(SimReactor& reactor, SimDisks& disks) : SimGate(reactor, disks, Options{}) {}

  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions options) override {
    const auto found = disks_.find(name);
    if (found == disks_.end() && !options.create) {
      return Error(Errc::not_found, cat("no disk ", quoted(name)));
    }
    if (found != disks_.end() && options.create && !options.replace) {
      return Error(Errc::exists, cat("disk ", quoted(name), " is there"));
    }
    SimDisk& disk = found == disks_.end() ? disks_[std::string(name)] : found->second;
    if (found != disks_.end() && options.create) {
      SimDisk::Options fresh = disk.options();
      if (!fresh.block_device) fresh.size = 0;
      disk = SimDisk(fresh);
    }
    const uint32_t block_size = options.direct || options_.direct ? options_.block_size : 1;
    File::Properties properties{
        .name = std::string(name),
        .fd = disk.open(reactor_, options.writable, block_size),
        .size = disk.size(),
        .block_size = block_size,
        .writable = options.writable,
        .block_device = disk.options().block_device,
        .device = 1,
        .inode = inode_of(name),
        .open_again = [this, &disk, block_size](
                          bool writable) { return disk.open(reactor_, writable, block_size); },
    };
    return std::make_unique<File>(reactor_, std::move(properties));
  }
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view, std::string_view name,
                                                    FileOptions options) override {
    return open(name, options);
  }

 private:
  uint64_t inode_of(std::string_view name) const {
    uint64_t inode = 1;
    for (const auto& entry : disks_) {
      if (entry.first == name) return inode;
      ++inode;
    }
    return inode;
  }

  SimReactor& reactor_;
  SimDisks& disks_;
  Options options_;
};

}  // namespace byre
