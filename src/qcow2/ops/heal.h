// SPDX-License-Identifier: Apache-2.0
/// Healing: an image that another program has damaged becomes safe to change, in use
/// (docs/engine.md, V).
///
/// A scan has counted all references (check/reference_scan.h), and nothing has changed since. Then,
/// while every guest cluster is held exclusively:
///   1. Entries whose cluster is not theirs alone lose COPIED, durably.
///   2. Refcounts that are below their references rise to them, by an ordinary commit.  Regions of
///      the file that no refcount block counts get one.
/// So what two guest ranges share is copied at the first write, and nothing in use is handed out.
/// Ranges that lead nowhere fail from here on, and what raising counts cannot make safe ends every
/// change of metadata with an error that says so.
///
/// Invariant: no refcount falls, no entry comes or goes, what every guest range reads stays as it
/// is; at each crash point no cluster is further below its references than before (O5, R3).
/// Cost: nothing for a sound image; else a read and a write for each sector with a wrong flag, and
/// a commit. Not here: what is not damage but costs space (unless options.free_leaks), repair as
/// such (repair/).
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "qcow2/check/damage.h"
#include "qcow2/check/reference_scan.h"
#include "qcow2/guest/guest_disk.h"

namespace byre {

/// What is known of an image's references since it was opened; outlives the engine's last task.
struct ImageHealth {
  bool known = false;  ///< The scan has ended.
  ImageDamage damage;  ///< As it was found; healed since, but for what stays lost or refused.
  uint64_t scan_ns = 0;
};

/// Acts on `damage` and decides disk.references.  Nobody has changed metadata since the image was
/// opened.  Fails never: a disk that cannot be written is a reason to refuse changes, too.
Task<void> heal(GuestDisk& disk, const ImageDamage& damage);

/// When a scan runs.
enum class ScanTime : uint8_t { while_opening, beside_requests };

/// Runs the rest of `scan`, heals, and tells disk.options.message what was found.  The roots were
/// read.  Fails only while the image is being opened, and only when more of the disk is lost than
/// can be kept in mind.
Task<void> scan_and_heal(GuestDisk& disk, std::unique_ptr<ReferenceScan> scan, ImageHealth& health,
                         ScanTime time);

/// The error of a command that does not change a damaged image; its sys_errno is EUCLEAN.
Error refuse_damaged(const ImageDamage& damage, const std::string& name, const Geometry& geometry);

}  // namespace byre
