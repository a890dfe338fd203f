// SPDX-License-Identifier: Apache-2.0
#include "nbd/nbd_stream.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"

namespace byre {

Task<bool> Intake::need(size_t count) {
  BYRE_ASSERT(count <= kCapacity);
  while (end_ - begin_ < count) {
    if (begin_ == end_) {
      begin_ = end_ = 0;
    } else if (kCapacity - begin_ < count) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    const size_t got = co_await socket_.receive_some(buffer_.bytes().subspan(end_));
    if (got == 0) co_return false;
    end_ += got;
  }
  co_return true;
}

Task<bool> Intake::read(MutableBytes out) {
  while (!out.empty()) {
    const size_t here = std::min(end_ - begin_, out.size());
    copy(out.first(here), have().first(here));
    take(here);
    out = out.subspan(here);
    if (out.empty()) break;
    if (out.size() < kDirectMin) {
      if (!co_await need(out.size())) co_return false;
    } else {
      const size_t got = co_await socket_.receive_some(out);
      if (got == 0) co_return false;
      out = out.subspan(got);
    }
  }
  co_return true;
}

Task<bool> Intake::skip(uint64_t count) {
  while (count > 0) {
    const uint64_t here = std::min<uint64_t>(end_ - begin_, count);
    take(here);
    count -= here;
    if (count == 0) break;
    if (!co_await need(1)) co_return false;
  }
  co_return true;
}

bool Outbox::try_put(Bytes head, Bytes body) {
  if (failure_) return true;
  const size_t size = head.size() + body.size();
  BYRE_ASSERT(size <= kCapacity);
  if (kCapacity - gathered_size_ < size) return false;
  if (gathered_size_ == 0) wake_.notify();
  append(head);
  append(body);
  return true;
}

Task<void> Outbox::put(Bytes head, Bytes body) {
  while (!try_put(head, body)) co_await room_.wait();
}

Task<void> Outbox::put_directly(Bytes head, Bytes body) {
  auto hold = co_await sending_.lock();
  while (kCapacity - gathered_size_ < head.size()) co_await send_gathered();
  append(head);
  co_await send_gathered();  // Replies that are ready go out with the head.
  co_await send(body);
}

Task<void> Outbox::drain() {
  auto hold = co_await sending_.lock();
  co_await send_gathered();
}

Task<void> Outbox::run() {
  for (;;) {
    while (gathered_size_ == 0 && !closed_) co_await wake_.wait();
    if (gathered_size_ == 0) co_return;
    auto hold = co_await sending_.lock();
    co_await send_gathered();
  }
}

void Outbox::append(Bytes bytes) {
  if (gathered_.size() == 0) gathered_ = Buffer(kCapacity);
  copy(gathered_.bytes().subspan(gathered_size_), bytes);
  gathered_size_ += bytes.size();
}

/// Others go on gathering into a fresh buffer meanwhile.
Task<void> Outbox::send_gathered() {
  if (gathered_size_ == 0) co_return;
  const Buffer full = std::move(gathered_);
  const size_t size = gathered_size_;
  gathered_ = Buffer();
  gathered_size_ = 0;
  room_.notify();
  co_await send(Bytes(full.bytes()).first(size));
}

Task<void> Outbox::send(Bytes bytes) {
  if (failure_) co_return;
  Result<void> sent = co_await socket_.send_all(bytes).result();
  if (sent || failure_) co_return;
  failure_ = std::move(sent).error();
  room_.notify();
}

}  // namespace byre
