// SPDX-License-Identifier: Apache-2.0
#include "format/checksum.h"

#include <libdeflate.h>

namespace byre {

uint32_t crc32_of(Bytes data, uint32_t before) {
  return libdeflate_crc32(before, data.data(), data.size());
}

}  // namespace byre
