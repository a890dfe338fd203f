// SPDX-License-Identifier: Apache-2.0
/// The files that a disk is made of, told from their headers alone.
///
/// No guest data is read and no lock is taken, so a disk that a machine runs on can be looked at:
/// `create -b` needs only its size.  The header's fields lie in one sector, which its writer
/// changes at once; a header that looks damaged is read again, since it may have been read in the
/// middle of a change. Cost: two or three reads for each file. Not here: opening a disk (open.h),
/// checking one (verify_chain.h).
#pragma once

#include <string>
#include <vector>

#include "io/file_opener.h"
#include "job/open.h"

namespace byre {

struct ChainFile {
  std::string name;
  DiskFormat format = DiskFormat::raw;
  uint64_t size = 0;  ///< Of the disk, in whole sectors.
};

/// The file at `path` and those below it, top first.  Whatever a reader of the disk would refuse
/// because of a header is an error: a file that is missing or may not be opened, a format that is
/// missing or unknown, encryption, a chain that goes in a circle or has more than `files_max`
/// files.  Errors about a file below begin with "backing file 'x': ".  Where an image names
/// devices (`json:{...}`) instead of a file, the list ends.
Task<std::vector<ChainFile>> read_chain(FileOpener& opener, std::string path, DiskFormat format,
                                        uint64_t files_max);

/// All L1 tables of a backing chain are in memory while it is open: together they may take as much.
inline constexpr uint64_t kChainL1SizeMax = 128 * MiB;
/// Do those of the image in `top` and of the images below it?  From the headers, before a table is
/// read; what keeps a file from being opened is not said here.
Task<void> check_chain_memory(FileOpener& opener, Device& top);

}  // namespace byre
