// SPDX-License-Identifier: Apache-2.0
/// Two bytes of geometry, then 16-byte entries.  A mapping that is accepted is sound, names hosts
/// that can be named, and comes back the same through its entry.
#include <cstdint>

#include "format/extended_l2.h"
#include "format/l2.h"

using namespace byre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  Geometry geometry{.version = (data[1] & 1) != 0 ? 2u : 3u,
                    .cluster_bits = 9u + data[0] % 13u,
                    .extended_l2 = (data[1] & 2) != 0,
                    .data_file = (data[1] & 4) != 0};
  if (!geometry.check()) return 0;

  const Bytes table = bytes_at(data + 2, size - 2);
  for (size_t at = 0; at + 16 <= table.size(); at += 16) {
    L2Entry entry = load_l2(table.subspan(at), 0, geometry);
    static_cast<void>(decode_l1(entry.descriptor, geometry));
    static_cast<void>(has_stray_copied(entry, geometry));
    const Result<Mapping> mapping = decode_l2(entry, geometry);
    const Result<Mapping> slow = decode_l2_any(entry, geometry);
    BYRE_ASSERT(bool(mapping) == bool(slow));
    if (!mapping) continue;
    BYRE_ASSERT(*mapping == *slow);
    BYRE_ASSERT((mapping->allocated & mapping->zero) == 0);
    BYRE_ASSERT(((mapping->allocated | mapping->zero) & ~geometry.all_units()) == 0);
    BYRE_ASSERT(mapping->allocated == 0 || mapping->host);

    const HostSpan span = hosts(*mapping, geometry);
    BYRE_ASSERT(span.count <= (mapping->compressed ? 3u : 1u));
    BYRE_ASSERT(span.count == 0 || span.first.value != 0);
    BYRE_ASSERT(span.first.value <= uint64_t{1} << (kHostOffsetBits - geometry.cluster_bits));
    for (uint32_t unit = 0; unit < geometry.units();) {
      const UnitRun run = unit_run(*mapping, unit, geometry);
      BYRE_ASSERT(run.count >= 1 && unit + run.count <= geometry.units());
      unit += run.count;
    }
    const L2Entry again = encode_l2(*mapping, geometry);
    BYRE_ASSERT((again.descriptor ^ entry.descriptor) << 1 == 0);
    BYRE_ASSERT(again.bitmap == entry.bitmap);
    BYRE_ASSERT(!has_stray_copied(again, geometry));
  }
  return 0;
}
