// SPDX-License-Identifier: Apache-2.0
/// The timers that a real reactor waits for: a binary heap of Ops by deadline.
///
/// An Op's place in the heap is its `tag`, so that a cancelled one is found at once.
/// Cost: O(log n) a change; memory is kept once grown.
#pragma once

#include <cstddef>
#include <vector>

#include "io/op.h"

namespace byre {

class TimerHeap {
 public:
  bool empty() const { return heap_.empty(); }
  size_t size() const { return heap_.size(); }
  /// The one that is due first.
  Op* first() const { return heap_.empty() ? nullptr : heap_[0]; }

  void add(Op& op) {
    heap_.push_back(&op);
    rise(heap_.size() - 1, op);
  }
  void remove(Op& op) {
    const size_t hole = op.tag;
    Op* last = heap_.back();
    heap_.pop_back();
    if (last == &op) return;
    if (last->deadline < op.deadline) {
      rise(hole, *last);
    } else {
      sink(hole, *last);
    }
  }

 private:
  void put(size_t index, Op& op) {
    heap_[index] = &op;
    op.tag = index;
  }
  void rise(size_t index, Op& op) {
    while (index > 0) {
      const size_t parent = (index - 1) / 2;
      if (heap_[parent]->deadline <= op.deadline) break;
      put(index, *heap_[parent]);
      index = parent;
    }
    put(index, op);
  }
  void sink(size_t index, Op& op) {
    for (;;) {
      size_t child = 2 * index + 1;
      if (child >= heap_.size()) break;
      if (child + 1 < heap_.size() && heap_[child + 1]->deadline < heap_[child]->deadline) ++child;
      if (op.deadline <= heap_[child]->deadline) break;
      put(index, *heap_[child]);
      index = child;
    }
    put(index, op);
  }

  std::vector<Op*> heap_;
};

}  // namespace byre
