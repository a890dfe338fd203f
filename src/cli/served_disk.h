// SPDX-License-Identifier: Apache-2.0
/// The disk of a ServePlan: made if it is missing, opened, and put under the layers through which
/// clients see it.
///
/// Invariant: an error leaves no disk open, and what does not fit the plan is refused before
/// anything is written.
/// Not here: serving it (serve_plan.h).
#pragma once

#include <string>

#include "cli/serve_plan.h"
#include "daemon/bitmap_runs.h"

namespace byre {

/// Makes the image if there is none and that was asked for.
Task<void> make_if_missing(Session& session, FileOpener& opener, const ServePlan& plan);

/// As it is in its file; put_layers() comes next.
Task<Disk> open_served(Session& session, FileOpener& opener, const ServePlan& plan);

/// Over it a temporary overlay, if the plan says so; an error leaves nothing open.
Task<void> put_overlay(FileOpener& opener, const ServePlan& plan, Disk& disk);

/// What clients see of the disk, and how what they write gets there.
void put_layers(const ServePlan& plan, Disk& disk);

}  // namespace byre
