// SPDX-License-Identifier: Apache-2.0
/// WriteLoans: disks that were open for reading and are open for writing as long as a job needs it.
///
///     co_await work->loans.take(base.node(), may);   // before the job is made
///     ...                                            // Job gives them back behind clean()
/// Invariant: what was taken is given back once, however the job ends, or kept.
/// Cost: a drain each way, and a scan of an image that is to be written.
/// Not here: how a disk is reopened (block/reopen.h).
#pragma once

#include <vector>

#include "block/reopen.h"

namespace byre {

class WriteLoans {
 public:
  /// Nothing happens to a disk that can be written.
  Task<void> take(Node& node, MayReopen may = {});
  /// The disk stays writable: guests write it from here on.
  void keep(const Node& node);
  /// The first error; all are tried.  A disk that cannot go back stays writable.
  Task<void> give_back();

 private:
  struct Loan {
    const Node* node;
    Reopened reopened;
    bool kept = false;
  };
  std::vector<Loan> loans_;
};

}  // namespace byre
