// SPDX-License-Identifier: Apache-2.0
/// One byte of count, then a snapshot table.  What parses is written and read again the same, and
/// the table tells its own size.
#include <cstdint>

#include "format/snapshot.h"

using namespace byre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint32_t count = data[0];
  const Bytes table = bytes_at(data + 1, size - 1);
  const Result<std::optional<uint64_t>> table_size = snapshot_table_size(table, count);
  const Result<std::vector<Snapshot>> snapshots = parse_snapshots(table, count);
  if (!snapshots) return 0;
  BYRE_ASSERT(snapshots->size() == count);
  BYRE_ASSERT(table_size && *table_size && **table_size < table.size() + 8);
  for (const Snapshot& snapshot : *snapshots) {
    const Geometry geometry{.cluster_bits = 9};
    if (check_l1_table(snapshot, geometry))
      BYRE_ASSERT(hosts(snapshot, geometry).end().value <= uint64_t{1} << (kHostOffsetBits - 9));
  }

  const Result<std::vector<std::byte>> written = serialize_snapshots(*snapshots);
  BYRE_ASSERT(bool(written));
  BYRE_ASSERT(written->size() == **table_size);
  const Result<std::vector<Snapshot>> again = parse_snapshots(*written, count);
  BYRE_ASSERT(bool(again) && *again == *snapshots);
  return 0;
}
