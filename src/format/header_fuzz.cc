// SPDX-License-Identifier: Apache-2.0
/// The input is the start of a file.  A header that parses can be written and read again the same;
/// the whole first part, with extensions and backing file name, too.
#include <cstdint>

#include "format/extension.h"
#include "format/header.h"

using namespace byre;

namespace {

/// What serialize_header() decides anew.
Header normalized(Header header) {
  header.backing_file_offset = 0;
  header.backing_file_size = 0;
  header.header_length = 0;
  while (!header.unknown_fields.empty() && header.unknown_fields.back() == std::byte{0})
    header.unknown_fields.pop_back();
  return header;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Bytes bytes = bytes_at(data, size);
  const Result<Header> header = parse_header(bytes);
  const Result<Header> for_repair = parse_header(bytes, OpenFor::repair);
  BYRE_ASSERT(!header || for_repair);
  if (!header) return 0;
  const Geometry geometry = geometry_of(*header);
  BYRE_ASSERT(bool(geometry.check()));
  BYRE_ASSERT(header->l1_entries >= geometry.l1_entries_for(header->size));
  BYRE_ASSERT(bool(check_refcount_table(*header)));

  const Result<Extensions> extensions = parse_extensions(bytes, *header);
  if (!extensions) return 0;
  static_cast<void>(oddities(*header, *extensions));
  if (!check_incompatible(*header, *extensions)) return 0;
  const Result<std::optional<std::string>> backing_file = parse_backing_file(bytes, *header);
  if (!backing_file) return 0;

  const Result<std::vector<std::byte>> written =
      serialize_header(*header, *extensions, backing_file->value_or(""));
  if (!written) return 0;  // Padding and terminator may want more room than the original had.
  BYRE_ASSERT(written->size() <= geometry.cluster_size());
  const Result<Header> again = parse_header(*written);
  BYRE_ASSERT(bool(again));
  BYRE_ASSERT(normalized(*again) == normalized(*header));
  const Result<Extensions> extensions_again = parse_extensions(*written, *again);
  BYRE_ASSERT(bool(extensions_again));
  BYRE_ASSERT(extensions_again->unknown == extensions->unknown);
  const Result<std::optional<std::string>> name_again = parse_backing_file(*written, *again);
  BYRE_ASSERT(bool(name_again) && *name_again == *backing_file);
  return 0;
}
