// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/l2_counter.h"

namespace byre {

CompressedRange compressed_range(uint64_t descriptor, const Geometry& geometry) {
  const uint32_t offset_bits = geometry.compressed_offset_bits();
  const uint64_t field = descriptor & ~(kCopied | kCompressed);
  const uint64_t at = field & ((uint64_t{1} << offset_bits) - 1);
  return {.at = at, .length = ((field >> offset_bits) + 1) * kSectorSize - at % kSectorSize};
}

L2Counter::Plain::Plain(const ScanResult& result)
    : possible(!result.geometry().extended_l2 && !result.geometry().data_file &&
               result.file_size() >= result.geometry().cluster_size()),
      cluster_bits(result.geometry().cluster_bits),
      size(result.geometry().cluster_size()),
      never(~(kCopied | kOffsetMask) | (size - 1)),
      last(possible ? result.file_size() - size : 0) {}

void L2Counter::count(const L2Use& use, Bytes table) {
  Run run;
  const uint64_t entries = geometry().l2_entries();
  const uint64_t first = geometry().first_of_l1(use.l1_index).value;
  for (uint64_t i = 0; i < entries; ++i) {
    if (plain_.possible) {
      const auto descriptor = load_be<uint64_t>(table, i * 8);
      if (descriptor == 0 || count_plain(use, first + i, descriptor, run)) continue;
    }
    const L2Entry entry = load_l2(table, i, geometry());
    if (entry != L2Entry{}) count_entry({&use, GuestCluster{first + i}, entry}, run);
  }
}

/// False when it is something else; then nothing was counted.
bool L2Counter::count_plain(const L2Use& use, uint64_t guest, uint64_t descriptor, Run& run) {
  const uint64_t at = descriptor & kOffsetMask;
  if ((descriptor & plain_.never) != 0 || at == 0 || at > plain_.last) return false;
  ReferenceCounts::Cell* cell = result_.references.counts.add_first({at >> plain_.cluster_bits},
                                                                    Owner::data, guest, use.weight);
  if (!cell) return false;
  if (use.active == 0) return true;
  result_.report.allocated_clusters += use.active;
  if (run.next != 0 && run.next != at) result_.report.fragmented_clusters += use.active;
  run.next = at + plain_.size;
  cell->see_copied(descriptor != at);
  return true;
}

void L2Counter::count_entry(const FoundEntry& found, Run& run) {
  const uint64_t descriptor = found.entry.descriptor;
  if ((descriptor & kCompressed) != 0) return count_compressed(found);

  if ((descriptor & ~(kCopied | kOffsetMask | kReadsZero)) != 0) {
    scan_.lost(found.use->weight, scan_.place_of(found, FindingKind::reserved_bits),
               "guest offset ", geometry().start_of(found.guest), ": L2 entry ", hex(descriptor),
               ": reserved bits are set");
  }
  if ((descriptor & kReadsZero) != 0 && (geometry().version < 3 || geometry().extended_l2)) {
    scan_.lost_beyond_qemu(found.use->weight, scan_.place_of(found, FindingKind::stray_flag),
                           "guest offset ", geometry().start_of(found.guest), ": L2 entry ",
                           hex(descriptor), ": zero flag, which this kind of image does not have");
  }
  const HostOffset at{descriptor & kOffsetMask};
  const bool copied = (descriptor & kCopied) != 0;
  const bool has_host = at.value != 0 || (geometry().data_file && copied);
  check_subclusters(found, has_host);
  if (has_host) return count_host(found, at, run);
  if (copied) {
    scan_.lost_beyond_qemu(found.use->weight, scan_.place_of(found, FindingKind::stray_flag),
                           "guest offset ", geometry().start_of(found.guest), ": L2 entry ",
                           hex(descriptor), ": COPIED, but no host cluster");
  }
}

void L2Counter::check_subclusters(const FoundEntry& found, bool has_host) {
  const uint64_t allocated = found.entry.bitmap & UINT32_MAX;
  const uint64_t zero = found.entry.bitmap >> 32;
  if (allocated != 0 && !has_host) {
    scan_.lost(found.use->weight, scan_.place_of(found, FindingKind::subclusters), "guest offset ",
               geometry().start_of(found.guest), ": subclusters ", hex(found.entry.bitmap),
               " are allocated nowhere");
    return;
  }
  if ((allocated & zero) != 0) {
    scan_.lost(found.use->weight, scan_.place_of(found, FindingKind::subclusters), "guest offset ",
               geometry().start_of(found.guest), ": subclusters ", hex(found.entry.bitmap),
               " are allocated and zero at once");
  }
}

void L2Counter::count_compressed(const FoundEntry& found) {
  const uint64_t descriptor = found.entry.descriptor;
  if ((descriptor & kCopied) != 0) {
    result_.report.corruptions += found.use->weight;
    FindingPlace place = scan_.place_of(found, FindingKind::stray_flag);
    place.repair = RepairKind::fix_flag;
    scan_.add_finding(Severity::corruption, place, "guest offset ",
                      geometry().start_of(found.guest), ": L2 entry ", hex(descriptor),
                      ": COPIED on compressed data");
    result_.repairable_entries = true;
  }
  if (geometry().data_file) {
    return scan_.lost(found.use->weight, scan_.place_of(found, FindingKind::stray_flag),
                      "guest offset ", geometry().start_of(found.guest), ": L2 entry ",
                      hex(descriptor), ": compressed, in an external data file");
  }
  if (found.entry.bitmap != 0) {
    return scan_.lost(found.use->weight, scan_.place_of(found, FindingKind::subclusters),
                      "guest offset ", geometry().start_of(found.guest), ": L2 entry ",
                      hex(descriptor), ": compressed, with subclusters ", hex(found.entry.bitmap));
  }
  const CompressedRange range = compressed_range(descriptor, geometry());
  scan_.count_range(range.at, range.length, Owner::compressed, 0, found.use->weight,
                    "compressed data", &found);
  if (found.use->active != 0) {
    // They never follow one another cluster by cluster.
    result_.report.allocated_clusters += found.use->active;
    result_.report.compressed_clusters += found.use->active;
    result_.report.fragmented_clusters += found.use->active;
  }
}

void L2Counter::count_host(const FoundEntry& found, HostOffset at, Run& run) {
  if (!geometry().aligned(at)) {
    const bool reads_zero = (found.entry.descriptor & kReadsZero) != 0;
    const bool fixable = reads_zero && geometry().version >= 3 && !geometry().extended_l2;
    FindingPlace place = scan_.place_of(found, FindingKind::misaligned);
    if (fixable) place.repair = RepairKind::fix_flag;
    scan_.lost(found.use->weight, place, "guest offset ", geometry().start_of(found.guest),
               ": host cluster at ", at, " is not cluster aligned");
    result_.repairable_entries |= fixable;
  }
  if (found.use->active != 0) {
    result_.report.allocated_clusters += found.use->active;
    if (run.next != 0 && run.next != at.value)
      result_.report.fragmented_clusters += found.use->active;
    run.next = at.value + geometry().cluster_size();
  }

  const bool copied = (found.entry.descriptor & kCopied) != 0;
  if (geometry().data_file) {
    if (at.value != geometry().start_of(found.guest).value) {
      scan_.lost_beyond_qemu(found.use->weight, scan_.place_of(found, FindingKind::misplaced),
                             "guest offset ", geometry().start_of(found.guest), ": at ", at,
                             " of the data file, where another guest cluster belongs");
    }
    if (found.use->active != 0 && !copied) result_.copied_mismatch = true;
    return;
  }
  if (!scan_.count_range(at.value, geometry().cluster_size(), Owner::data, found.guest.value,
                         found.use->weight, "data", &found)) {
    if (found.use->active != 0) result_.behind_end[geometry().cluster_of(at)] = false;
    result_.copied_mismatch |= found.use->active != 0;
    return;
  }
  if (found.use->active != 0)
    result_.references.counts.find(geometry().cluster_of(at))->see_copied(copied);
}

}  // namespace byre
