// SPDX-License-Identifier: Apache-2.0
/// A look at the persistent bitmaps themselves: does each table fit the disk, is every cluster of
/// bits there to be read, are the bits behind the disk's end zero, and may the bitmap be used?
/// And mending of their directory.
///
/// That their clusters are counted once, that tables and names are well formed, is the survey's
/// (survey.h), as is what a table entry that breaks the format costs.
/// Cost: reads every cluster of bitmap data: 4 MiB for each TiB at granularity 64 KiB.
/// Not here: whether the bits tell the truth, which nobody can know afterwards.
#pragma once

#include "qcow2/repair.h"

namespace byre {

/// Why a bitmap cannot be used.
enum class BitmapFault : uint8_t {
  none,
  in_use,   ///< Was not saved.
  unfit,    ///< Its table is for a disk of another size.
  invalid,  ///< A granularity, name or table that no reader takes, whatever the disk.
  foreign,  ///< Perhaps a newer writer's: a type or extra data that are not known.
};
BitmapFault fault_of(const Bitmap& bitmap, uint64_t size, const Geometry& geometry);
/// The same in words; empty when it can be used.
std::string why_not_usable(const Bitmap& bitmap, uint64_t size, const Geometry& geometry);

/// Adds findings to the survey's report.
Task<void> check_bitmaps(Survey& survey);
/// Takes bitmaps that are invalid out of the directory, and marks in_use what does not fit the disk
/// (of a table that is too long, what would lie behind the disk goes): nobody can use either.  The
/// directory is written anew, the header's sector switches to it (B4).  False: there is no room.
/// The survey is stale afterwards.
Task<bool> mend_bitmaps(Survey& survey, RepairLog& log);

}  // namespace byre
