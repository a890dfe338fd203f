// SPDX-License-Identifier: Apache-2.0
/// A list of Ops, linked through their own `next` and `previous`; oldest first.
#pragma once

#include "io/op.h"

namespace byre {

class OpList {
 public:
  bool empty() const { return !first_; }
  Op* first() const { return first_; }
  void add(Op& op) {
    op.next = nullptr;
    op.previous = last_;
    (last_ ? last_->next : first_) = &op;
    last_ = &op;
  }
  void remove(Op& op) {
    (op.previous ? op.previous->next : first_) = op.next;
    (op.next ? op.next->previous : last_) = op.previous;
    op.next = op.previous = nullptr;
  }
  /// The oldest, taken out; null when there is none.
  Op* take() {
    Op* op = first_;
    if (op) remove(*op);
    return op;
  }

 private:
  Op* first_ = nullptr;
  Op* last_ = nullptr;
};

}  // namespace byre
