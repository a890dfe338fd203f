// SPDX-License-Identifier: Apache-2.0
/// The input is a header of version 1, then entries.  What parses is within its bounds.
#include <cstdint>

#include "format/limits.h"
#include "format/qcow1.h"

using namespace byre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Bytes bytes = bytes_at(data, size);
  const Result<Qcow1Header> header = parse_qcow1_header(bytes);
  if (!header) return 0;
  BYRE_ASSERT(header->cluster_size() >= 512 && header->cluster_size() <= 64 * KiB);
  BYRE_ASSERT(header->l2_size() >= 512 && header->l2_size() <= 64 * KiB);
  BYRE_ASSERT(header->l1_entries() >= 1 && header->l1_entries() <= kQcow1L1EntriesMax);
  BYRE_ASSERT(header->l1_offset.value + header->l1_entries() * 8 <= kFileSizeMax);
  for (size_t at = kQcow1HeaderSize; at + 8 <= size; at += 8) {
    const uint64_t entry = load_be<uint64_t>(bytes, at);
    const Result<std::optional<HostOffset>> table = decode_qcow1_l1(entry);
    BYRE_ASSERT(!table || bool(*table) == (entry != 0));
    const Result<Qcow1Mapping> mapping = decode_qcow1_l2(entry, *header);
    if (!mapping) continue;
    const bool stream = mapping->kind == Qcow1Mapping::Kind::compressed;
    BYRE_ASSERT(stream == (mapping->stream_size != 0));
    BYRE_ASSERT(mapping->stream_size < header->cluster_size());
    BYRE_ASSERT(mapping->at.value <= kFileSizeMax);
  }
  return 0;
}
