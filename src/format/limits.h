// SPDX-License-Identifier: Apache-2.0
/// Ceilings: no size from an image reaches an allocator before one of these has passed it.
///
/// Each names its source: the specification, or what QEMU accepts (so that a file which byre
/// writes opens there).  byre never needs more than these; it refuses what exceeds them.
#pragma once

#include <cstdint>

#include "base/units.h"

namespace byre {

/// "QFI\xfb" (spec: Header, magic).
inline constexpr uint32_t kMagic = 0x514649fb;

/// Bytes of a version 2 header, and of the smallest version 3 header (spec: Header).
inline constexpr uint32_t kHeaderSizeV2 = 72;
inline constexpr uint32_t kHeaderSizeV3Min = 104;
/// What byre writes: up to and with compression_type and its padding.
inline constexpr uint32_t kHeaderSizeV3 = 112;

/// Spec: Header, cluster_bits; the upper bound is QEMU's (2 MiB).
inline constexpr uint32_t kClusterBitsMin = 9;
inline constexpr uint32_t kClusterBitsMax = 21;
/// Spec: Header, cluster_bits: a subcluster is never smaller than 512 bytes.
inline constexpr uint32_t kClusterBitsMinExtendedL2 = 14;

/// Spec: Header, refcount_order.
inline constexpr uint32_t kRefcountOrderMax = 6;
/// Spec: Header, refcount_order: what version 2 always has.
inline constexpr uint32_t kRefcountOrderV2 = 4;

/// Bits of a host offset in L1, L2 and bitmap tables (spec: L1 table entry): 64 PiB.
inline constexpr uint32_t kHostOffsetBits = 56;

/// No file is longer: offsets are signed in every system call.
inline constexpr uint64_t kFileSizeMax = INT64_MAX;

/// QEMU's, named in the spec (Header, size): an L1 table of 4 Mi entries.
inline constexpr uint64_t kL1SizeMax = 32 * MiB;
inline constexpr uint64_t kL1EntriesMax = kL1SizeMax / 8;
/// QEMU's, named in the spec (Host cluster management).
inline constexpr uint64_t kRefcountTableSizeMax = 8 * MiB;
inline constexpr uint64_t kRefcountTableEntriesMax = kRefcountTableSizeMax / 8;

/// Spec: Header, backing_file_size.
inline constexpr uint32_t kBackingFileSizeMax = 1023;
/// QEMU reads a backing format of 15 bytes at most; create keeps to it.
inline constexpr uint32_t kBackingFormatSizeMax = 15;
/// Spec: Feature name table.
inline constexpr uint32_t kFeatureNameSizeMax = 46;

/// QEMU's: the count, and the size of the whole table.
inline constexpr uint32_t kSnapshotsMax = 65536;
inline constexpr uint64_t kSnapshotTableSizeMax = 64 * MiB;
/// QEMU reads no snapshot with more extra data; byre does, but writes none.
inline constexpr uint32_t kSnapshotExtraSizeMax = 1024;

/// QEMU's, named in the spec (Bitmaps extension).
inline constexpr uint32_t kBitmapsMax = 65535;
/// QEMU's: 1 KiB a bitmap.
inline constexpr uint64_t kBitmapDirectorySizeMax = uint64_t{kBitmapsMax} * 1024;
/// QEMU's, named in the spec (Bitmap directory).
inline constexpr uint32_t kBitmapNameSizeMax = 1023;
inline constexpr uint32_t kBitmapGranularityBitsMin = 9;
inline constexpr uint32_t kBitmapGranularityBitsMax = 31;
/// QEMU's: entries of one bitmap's table, and bytes of its data.
inline constexpr uint64_t kBitmapTableEntriesMax = 0x8000000;
inline constexpr uint64_t kBitmapDataSizeMax = 0x20000000;

/// byre's: a LUKS header with eight key slots of 512-bit keys and 4000 stripes is 2 MiB; QEMU's
/// detached header has no bound.
inline constexpr uint64_t kCryptoHeaderSizeMax = 64 * MiB;

}  // namespace byre
