// SPDX-License-Identifier: Apache-2.0
/// The external data file: guest data that lie outside the image, each cluster at its own offset.
///
/// The place of a guest cluster is its own for ever (docs/engine.md, X), so nothing is allocated
/// and nothing waits in limbo: an exclusive lock on the cluster is enough to use its place again.
/// It may hold anything then, so whatever becomes data is filled in full (M3b).
///   write    in place, or exclusive: fill, then stage.  A commit syncs the data file first (O2).
///   discard  stages zeros.  When that is durable the place is punched, under an exclusive lock
///            and only if no entry leads there again.
/// A data file that must stay valid as a raw image holds what the disk holds: zeroes and discards
/// are zeros in it, and entries stay as they are.  Clusters without an entry (after QEMU's
/// discards) are zeros in it, too, and get one, durably, before they are written.  So the two never
/// differ, whatever was cut off or failed. Invariant: what is staged leads to the guest cluster's
/// own offset, and nowhere else. Cost: nothing is allocated; one lock covers 64 MiB at most for
/// zeroing, and 4096 clusters at most for punching. Not here: writes (write.h); compressed
/// clusters, snapshots and VM state, which cannot be with a data file.
#pragma once

#include "block/device.h"
#include "format/types.h"
#include "io/file_opener.h"

namespace byre {

class GuestDisk;

/// Opens the file that the options or the image name.
Task<void> open_data_file(GuestDisk& disk, FileOpener& opener);
/// Of a data file that must stay raw: zeros in it, and no entry changes.
Task<void> zero_raw_data(GuestDisk& disk, GuestOffset offset, uint64_t length, ZeroOptions options);
/// The cluster no longer uses its place (Engine::on_removed).
void note_removed(GuestDisk& disk, GuestCluster cluster);
/// A generation is durable: what it removed is punched, beside the requests.
void punch_what_is_durable(GuestDisk& disk);
/// Makes holes of all places that no entry leads to, at once.  No read knows one of them.
Task<void> punch_unused_places(GuestDisk& disk);
/// Before the disk grows.
Task<void> grow_data_file(GuestDisk& disk, uint64_t size);
/// After the disk has become smaller.
Task<void> cut_data_file(GuestDisk& disk);

}  // namespace byre
