// SPDX-License-Identifier: Apache-2.0
/// Where the LUKS header lies: the "Full disk encryption header pointer" of the specification.
///
/// Invariant: a CryptoHeader that was parsed is cluster aligned, not in the first cluster, not
/// empty, and no longer than kCryptoHeaderSizeMax.
/// Not here: what LUKS says inside those clusters, and keys.
#pragma once

#include <array>

#include "base/bytes.h"
#include "base/error.h"
#include "format/types.h"

namespace byre {

inline constexpr size_t kCryptoHeaderPointerSize = 16;

struct CryptoHeader {
  HostOffset offset;
  uint64_t length = 0;  ///< Bytes written; the clusters it covers are more (hosts()).
  friend bool operator==(const CryptoHeader&, const CryptoHeader&) = default;
};

/// `data` is the extension's payload.
Result<CryptoHeader> parse_crypto_header(Bytes data, const Geometry& geometry);
std::array<std::byte, kCryptoHeaderPointerSize> serialize(const CryptoHeader& header);

/// Every host cluster that the LUKS header holds a reference on: its length rounded up.
HostSpan hosts(const CryptoHeader& header, const Geometry& geometry);

}  // namespace byre
