// SPDX-License-Identifier: Apache-2.0
/// IoVec: the memory of one request, in pieces that need not lie side by side.
///
/// It views an array of its caller, as Bytes views bytes; both stay valid until the request ends.
/// The pieces follow each other on the disk in their order.  A piece may be empty.
/// Not here: what a device does with one (block/device.h).
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "base/bytes.h"

namespace byre {

using IoVec = std::span<const iovec>;

inline MutableBytes memory_of(const iovec& piece) {
  return {static_cast<std::byte*>(piece.iov_base), piece.iov_len};
}
/// Of memory that is only read from.
inline iovec piece_of(Bytes bytes) { return {const_cast<std::byte*>(bytes.data()), bytes.size()}; }

inline uint64_t size_of(IoVec pieces) {
  uint64_t size = 0;
  for (const iovec& piece : pieces) size += piece.iov_len;
  return size;
}

/// Bytes [from, from + to.size()) of the pieces; they have that many.
inline void gather(IoVec pieces, uint64_t from, MutableBytes to) {
  for (const iovec& piece : pieces) {
    if (to.empty()) return;
    if (from >= piece.iov_len) {
      from -= piece.iov_len;
      continue;
    }
    const uint64_t count = std::min<uint64_t>(piece.iov_len - from, to.size());
    copy(to, Bytes(memory_of(piece)).subspan(from, count));
    to = to.subspan(count);
    from = 0;
  }
}

/// Fills the pieces from their byte `at` on.
inline void scatter(Bytes data, IoVec pieces, uint64_t at = 0) {
  for (const iovec& piece : pieces) {
    if (data.empty()) return;
    if (at >= piece.iov_len) {
      at -= piece.iov_len;
      continue;
    }
    const uint64_t count = std::min<uint64_t>(piece.iov_len - at, data.size());
    copy(memory_of(piece).subspan(at), data.first(count));
    data = data.subspan(count);
    at = 0;
  }
}

}  // namespace byre
