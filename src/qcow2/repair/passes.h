// SPDX-License-Identifier: Apache-2.0
/// Repair passes: scan, repair one kind of thing, scan again, until nothing changes any more.
///
/// The order: flags that hide nothing; what has two owners; refcounts and COPIED.
/// Invariant: each pass leaves an image no worse than it was (repair.h, unshare.h), so that it can
/// be stopped anywhere.
/// Cost: a scan first, and at most one after each pass; 12 passes at most, 32 where losses are
/// accepted.
/// Not here: what the user sees of it (check.h, recover.h).
#pragma once

#include <memory>

#include "qcow2/repair/repair.h"

namespace byre {

struct RepairPasses {
  CheckReport first;                  ///< What was found.
  std::unique_ptr<RepairState> last;  ///< How it is now.
  RepairLog log;
  bool damaged = false;      ///< References were wrong or missing, at the beginning or on the way.
  bool sound = false;        ///< Now.
  std::string not_unshared;  ///< Why copies could not be made, if so,
  std::string not_given_up;  ///< or zeros for what leads nowhere.
};

/// `copy_data` false: for a plan (unshare.h).
Task<RepairPasses> repair_in_passes(Device& file, const CheckOptions& options, bool copy_data);

}  // namespace byre
