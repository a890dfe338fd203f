// SPDX-License-Identifier: Apache-2.0
#include "format/snapshot.h"

#include <algorithm>

#include "base/checked.h"

namespace byre {

namespace {

/// Spec: Snapshot table entry, the part before extra data, id and name.
struct SnapshotDisk {
  be64 l1_offset;
  be32 l1_entries;
  be16 id_size;
  be16 name_size;
  be32 date_seconds;
  be32 date_nanoseconds;
  be64 vm_clock_nanoseconds;
  be32 vm_state_size;
  be32 extra_data_size;
};
static_assert(sizeof(SnapshotDisk) == 40 && alignof(SnapshotDisk) == 1);

/// Offsets in the extra data, and where each field ends.
constexpr size_t kVmStateSizeAt = 0;
constexpr size_t kDiskSizeAt = 8;
constexpr size_t kIcountAt = 16;
constexpr size_t kVmStateSizeEnd = 8;
constexpr size_t kDiskSizeEnd = 16;
constexpr size_t kIcountEnd = 24;

/// Without the padding; cannot overflow, each part has 32 bits at most.
uint64_t entry_size(const SnapshotDisk& disk) {
  return sizeof disk + uint64_t{disk.extra_data_size} + uint64_t{disk.id_size} +
         uint64_t{disk.name_size};
}

size_t extra_data_size(const Snapshot& snapshot) {
  BYRE_ASSERT(!snapshot.icount || snapshot.disk_size);
  size_t size = snapshot.extra_data.size();
  if (snapshot.vm_state_size > UINT32_MAX) size = std::max(size, kVmStateSizeEnd);
  if (snapshot.disk_size) size = std::max(size, kDiskSizeEnd);
  if (snapshot.icount) size = std::max(size, kIcountEnd);
  return size;
}

}  // namespace

Result<std::optional<uint64_t>> snapshot_table_size(Bytes prefix, uint32_t count) {
  if (count > kSnapshotsMax) return unsupported(count, " snapshots, at most ", kSnapshotsMax);
  uint64_t at = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (at > prefix.size()) return std::optional<uint64_t>();
    const auto* disk = view_as<SnapshotDisk>(prefix.subspan(at));
    if (!disk) return std::optional<uint64_t>();
    at += round_up(entry_size(*disk), 8);
    if (at > kSnapshotTableSizeMax)
      return unsupported("snapshot table of more than ", kSnapshotTableSizeMax, " bytes");
  }
  return std::optional(at);
}

Result<std::vector<Snapshot>> parse_snapshots(Bytes bytes, uint32_t count) {
  if (count > kSnapshotsMax) return unsupported(count, " snapshots, at most ", kSnapshotsMax);
  std::vector<Snapshot> snapshots;
  uint64_t at = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const Bytes rest = at < bytes.size() ? bytes.subspan(at) : Bytes();
    const auto* disk = view_as<SnapshotDisk>(rest);
    // The padding of the last entry may be missing.
    if (!disk || entry_size(*disk) > rest.size())
      return corrupt("snapshot table: ends in the middle of entry ", i, " of ", count);
    at += round_up(entry_size(*disk), 8);
    if (at > kSnapshotTableSizeMax)
      return unsupported("snapshot table of more than ", kSnapshotTableSizeMax, " bytes");

    const Bytes extra = rest.subspan(sizeof *disk, disk->extra_data_size);
    const Bytes id = rest.subspan(sizeof *disk + extra.size(), disk->id_size);
    const Bytes name = rest.subspan(sizeof *disk + extra.size() + id.size(), disk->name_size);

    Snapshot snapshot;
    snapshot.l1_offset = {disk->l1_offset};
    snapshot.l1_entries = disk->l1_entries;
    snapshot.id = text_of(id);
    snapshot.name = text_of(name);
    snapshot.date_seconds = disk->date_seconds;
    snapshot.date_nanoseconds = disk->date_nanoseconds;
    snapshot.vm_clock_nanoseconds = disk->vm_clock_nanoseconds;
    snapshot.vm_state_size = disk->vm_state_size;
    if (extra.size() >= kVmStateSizeEnd)
      snapshot.vm_state_size = load_be<uint64_t>(extra, kVmStateSizeAt);
    if (extra.size() >= kDiskSizeEnd) snapshot.disk_size = load_be<uint64_t>(extra, kDiskSizeAt);
    if (extra.size() >= kIcountEnd) snapshot.icount = load_be<uint64_t>(extra, kIcountAt);
    snapshot.extra_data.assign(extra.begin(), extra.end());
    snapshots.push_back(std::move(snapshot));
  }
  return snapshots;
}

Result<std::vector<std::byte>> serialize_snapshots(const std::vector<Snapshot>& snapshots) {
  if (snapshots.size() > kSnapshotsMax)
    return invalid(snapshots.size(), " snapshots, at most ", kSnapshotsMax);
  std::vector<std::byte> table;
  for (const Snapshot& snapshot : snapshots) {
    if (snapshot.id.size() > UINT16_MAX || snapshot.name.size() > UINT16_MAX)
      return invalid("snapshot name or id of more than 65535 bytes");
    const size_t extra_size = extra_data_size(snapshot);
    if (extra_size > kSnapshotTableSizeMax)
      return invalid("snapshot ", quoted(snapshot.name), ": too much extra data");
    const SnapshotDisk disk{.l1_offset = snapshot.l1_offset.value,
                            .l1_entries = snapshot.l1_entries,
                            .id_size = static_cast<uint16_t>(snapshot.id.size()),
                            .name_size = static_cast<uint16_t>(snapshot.name.size()),
                            .date_seconds = snapshot.date_seconds,
                            .date_nanoseconds = snapshot.date_nanoseconds,
                            .vm_clock_nanoseconds = snapshot.vm_clock_nanoseconds,
                            // Ignored when the extra data has the 64-bit field.
                            .vm_state_size = snapshot.vm_state_size <= UINT32_MAX
                                                 ? static_cast<uint32_t>(snapshot.vm_state_size)
                                                 : uint32_t{0},
                            .extra_data_size = static_cast<uint32_t>(extra_size)};

    const size_t start = table.size();
    const uint64_t end = start + round_up(entry_size(disk), 8);
    if (end > kSnapshotTableSizeMax)
      return invalid("snapshot table of more than ", kSnapshotTableSizeMax, " bytes");
    table.resize(end);
    MutableBytes entry = MutableBytes(table).subspan(start);
    copy(entry, bytes_of(disk));
    entry = entry.subspan(sizeof disk);
    copy(entry, snapshot.extra_data);
    if (extra_size >= kVmStateSizeEnd) store_be(entry, kVmStateSizeAt, snapshot.vm_state_size);
    if (snapshot.disk_size) store_be(entry, kDiskSizeAt, *snapshot.disk_size);
    if (snapshot.icount) store_be(entry, kIcountAt, *snapshot.icount);
    entry = entry.subspan(extra_size);
    copy(entry, bytes_of(std::string_view(snapshot.id)));
    copy(entry.subspan(snapshot.id.size()), bytes_of(std::string_view(snapshot.name)));
  }
  return table;
}

bool is_empty_entry(const Snapshot& snapshot) { return snapshot == Snapshot(); }

Result<void> check_l1_table(const Snapshot& snapshot, const Geometry& geometry) {
  if (!geometry.aligned(snapshot.l1_offset))
    return corrupt("L1 table at ", snapshot.l1_offset, " is not cluster aligned");
  if (snapshot.l1_entries > kL1EntriesMax)
    return unsupported("L1 table of ", snapshot.l1_entries, " entries, at most ", kL1EntriesMax);
  if (snapshot.l1_entries != 0 && snapshot.l1_offset.value == 0)
    return corrupt("L1 table in the first cluster");
  if (!within(snapshot.l1_offset.value, uint64_t{snapshot.l1_entries} * 8,
              uint64_t{1} << kHostOffsetBits))
    return corrupt("L1 table at ", snapshot.l1_offset, " is above 2^56");
  return {};
}

HostSpan hosts(const Snapshot& snapshot, const Geometry& geometry) {
  return {geometry.cluster_of(snapshot.l1_offset),
          geometry.clusters_for(uint64_t{snapshot.l1_entries} * 8)};
}

}  // namespace byre
