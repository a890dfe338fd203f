// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/references.h"

#include "base/checked.h"

namespace byre {

bool References::is_behind_end(uint64_t offset, uint64_t length) const {
  const std::optional<uint64_t> end = checked_add(offset, length);
  return !end || (*end > file_size && *end - file_size >= geometry.cluster_size());
}

}  // namespace byre
