// SPDX-License-Identifier: Apache-2.0
/// The commands there are, for the main program, its help, and whatever else lists them.
#pragma once

#include <span>
#include <string_view>

#include "cli/command.h"

namespace byre {

extern const AnyCommand& kAmend;
extern const AnyCommand& kBench;
extern const AnyCommand& kBitmap;
extern const AnyCommand& kCheck;
extern const AnyCommand& kCommit;
extern const AnyCommand& kCompare;
extern const AnyCommand& kConvert;
extern const AnyCommand& kCreate;
extern const AnyCommand& kCtl;
extern const AnyCommand& kDaemon;
extern const AnyCommand& kDd;
extern const AnyCommand& kDrivers;
extern const AnyCommand& kDump;
extern const AnyCommand& kInfo;
extern const AnyCommand& kIo;
extern const AnyCommand& kMap;
extern const AnyCommand& kMeasure;
extern const AnyCommand& kRebase;
extern const AnyCommand& kRepair;
extern const AnyCommand& kResize;
extern const AnyCommand& kServe;
extern const AnyCommand& kSnapshot;
/// `daemon` under the name qemu-storage-daemon.
extern const AnyCommand& kStorageDaemon;
/// `serve` with the options of qemu-nbd.
extern const AnyCommand& kQemuNbd;

/// Those of `byre NAME`, by name.
std::span<const AnyCommand* const> byre_commands();
/// Those of them that qemu-img has.
std::span<const AnyCommand* const> qemu_img_commands();
/// Null when there is none.
const AnyCommand* find_command(std::span<const AnyCommand* const> commands, std::string_view name);

/// The program: what main() does with its words, argv[0] first.
int run_program(const std::vector<std::string>& words);

}  // namespace byre
