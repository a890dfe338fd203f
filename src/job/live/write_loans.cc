// SPDX-License-Identifier: Apache-2.0
#include "job/live/write_loans.h"

#include <utility>

namespace byre {

Task<void> WriteLoans::take(Node& node, MayReopen may) {
  if (node.device().writable()) co_return;
  Reopened reopened = co_await set_writable(node, true, std::move(may));
  loans_.push_back({.node = &node, .reopened = std::move(reopened)});
}

void WriteLoans::keep(const Node& node) {
  for (Loan& loan : loans_) loan.kept |= loan.node == &node;
}

Task<void> WriteLoans::give_back() {
  Result<void> first;
  for (Loan& loan : std::exchange(loans_, {})) {
    Result<void> done;
    if (loan.kept) {
      co_await byre::keep(std::move(loan.reopened));
    } else {
      done = co_await set_back(std::move(loan.reopened), false).result();
    }
    if (!done && first) first = std::move(done);
  }
  co_await std::move(first);
}

}  // namespace byre
