// SPDX-License-Identifier: Apache-2.0
/// CRC-32 (as of zlib and Ethernet), made by libdeflate with the processor's instructions.
///
/// Against faults of memory, disks and programs, not against anybody who wants two to be alike.
/// Cost: about 10 GB/s.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace byre {

/// `before`: of what comes before `data`.
uint32_t crc32_of(Bytes data, uint32_t before = 0);

}  // namespace byre
