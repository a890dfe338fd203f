// SPDX-License-Identifier: Apache-2.0
/// What an image stands on: its backing chain and its external data file, verified.
///
/// Each file of the chain is opened as a reader of the disk would open it: by the name and the
/// format that the image above it gives, and only where the opener lets images name files.  Found
/// are names that lead nowhere, formats that are missing or not true, chains that go in a circle,
/// data files that end early; each qcow2 file of the chain is checked by itself.  Sizes that differ
/// are worth a note. Cost: a check of each file of the chain. Not here: the image itself
/// (qcow2/repair/check.h).
#pragma once

#include "block/device.h"
#include "io/file_opener.h"
#include "qcow2/check/report.h"

namespace byre {

/// Adds findings about what `file`, an image, stands on to `report`, and counts errors there.
/// `options` are those of the checks below, but for repairs; with `share_lock` files are read
/// although others write them.
Task<void> verify_chain(FileOpener& opener, bool share_lock, Device& file, CheckOptions options,
                        CheckReport& report);

}  // namespace byre
