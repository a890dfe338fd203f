// SPDX-License-Identifier: Apache-2.0
/// The input is a log.  What parses lies inside it, is replayed within bounds, and comes back the
/// same through its header.
#include <cstdint>

#include "block/write_log_format.h"

using namespace byre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr uint64_t kDiskMax = 1 * MiB;
  const Bytes log = bytes_at(data, size);
  const Result<WriteLogRecords> parsed = parse_write_log(log);
  if (!parsed) return 0;
  const uint32_t unit = parsed->super.sector_size;
  uint64_t sectors = 1;
  std::vector<std::byte> disk;
  std::vector<std::byte> header(512);
  for (const WriteLogRecord& record : parsed->records) {
    BYRE_ASSERT(record.data.size() == record.entry.data_sectors() * unit);
    BYRE_ASSERT(record.text.size() == record.entry.text_size);
    sectors += 1 + record.entry.data_sectors();
    if (record.text.size() <= header.size() - kWriteLogEntrySize) {
      serialize_write_log_entry(record.entry, record.text, header);
      const Result<WriteLogEntry> again = parse_write_log_entry(header, unit);
      BYRE_ASSERT(bool(again) && *again == record.entry);
    }
    if (!apply_write_log_record(record, unit, disk, kDiskMax)) continue;
    BYRE_ASSERT(disk.size() <= kDiskMax);
  }
  BYRE_ASSERT(parsed->records.empty() || sectors * unit <= size);
  return 0;
}
