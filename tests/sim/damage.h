// SPDX-License-Identifier: Apache-2.0
/// Damage that other programs leave in an image, planted before its first incarnation
/// (docs/engine.md, V).
///
/// Refcounts that are too small (of data, tables, refcount blocks, the header), regions that no
/// refcount block counts, two guest ranges on one cluster, two L1 entries on one table, COPIED
/// where the refcount says more, an entry that leads behind the end of the file.  What guests read
/// stays known: ranges that share a cluster hold zeros, and no client goes where an entry leads
/// nowhere.
#pragma once

#include "knobs.h"

namespace byre {

/// Sets knobs.lost_guest.  With knobs.damage_aliases, two ranges may share a cluster.
void damage_disk(Knobs& knobs, uint64_t seed, SimDisk& disk, Oracle& oracle);

}  // namespace byre
