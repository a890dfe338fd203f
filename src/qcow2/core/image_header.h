// SPDX-License-Identifier: Apache-2.0
/// ImageHeader: the first cluster of an image, read and parsed: what open, check and info begin
/// with.
///
/// Invariant: an ImageHeader that was loaded has passed the parsers of the header and its
/// extensions.
/// Cost: two reads.
/// Not here: tables (open.cc), what may be opened by name (io/file_opener.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "block/device.h"
#include "format/extension.h"
#include "format/header.h"
#include "format/snapshot.h"

namespace byre {

struct ImageHeader {
  Header header;
  Extensions extensions;
  std::optional<std::string> backing_file;
  Geometry geometry;
  /// The first 512 bytes as they are in the file.
  std::vector<std::byte> sector;
};

/// Reads and parses; refuses incompatible features that are not known.
Task<ImageHeader> load_image_header(Device& file, OpenFor purpose = OpenFor::use);
/// The snapshot table; empty without snapshots.
Task<std::vector<Snapshot>> load_snapshots(Device& file, const ImageHeader& head);
/// `entries` big-endian words at `at` (an L1 or refcount table), in host order.  Bytes beyond the
/// end of the file are an error: a table must be there whole.
Task<std::vector<uint64_t>> load_table(Device& file, HostOffset at, uint64_t entries, IoTag tag);
/// A name that an image gives for another file, as a plain path: `file:` is dropped, other
/// protocols and json: are refused.
Result<std::string> plain_name(std::string_view name);
/// What an image says of the disk below it.
struct BackingFile {
  std::string name;
  bool is_image = false;  ///< qcow2; else raw.
};
/// Of an image that has one (head.backing_file).  A format that is missing or unknown is an error:
/// guessing it would let a guest choose what is opened.
Result<BackingFile> backing_of(const ImageHeader& head);
/// Is this the start of a qcow2 file?
bool looks_like_qcow2(Bytes start);

}  // namespace byre
