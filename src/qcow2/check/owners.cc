// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/owners.h"

#include <algorithm>

#include "format/l1.h"

namespace byre {
namespace {

constexpr uint64_t kPiece = MiB;
/// Bits of a pointer that hold its offset.
constexpr uint32_t kOffsetBitFirst = 9;
constexpr uint32_t kOffsetBitEnd = 56;

bool is_orphan(const MetadataScan& scan, uint64_t offset) {
  const HostCluster cluster = scan.geometry().cluster_of(HostOffset{offset});
  const auto after =
      std::upper_bound(scan.orphans.begin(), scan.orphans.end(), cluster,
                       [](HostCluster value, const HostSpan& span) { return value < span.first; });
  return after != scan.orphans.begin() && cluster < std::prev(after)->end();
}

/// The one offset that differs from the entry in a bit and leads to a cluster that nobody uses any
/// more; 0 when there is none, or more than one.
uint64_t intended_offset(const MetadataScan& scan, uint64_t entry) {
  const uint64_t stray = entry & ~(kCopied | kCompressed | kOffsetMask | kReadsZero);
  if (stray != 0) {
    const uint64_t offset = entry & kOffsetMask;
    const bool one_bit = (stray & (stray - 1)) == 0;
    return one_bit && scan.geometry().aligned({offset}) ? offset : 0;
  }
  uint64_t found = 0;
  for (uint32_t bit = kOffsetBitFirst; bit < kOffsetBitEnd; ++bit) {
    const uint64_t offset = (entry & kOffsetMask) ^ uint64_t { 1 } << bit;
    if (!scan.geometry().aligned({offset}) || !is_orphan(scan, offset)) continue;
    if (found != 0) return 0;
    found = offset;
  }
  return found;
}

bool is_bad_pointer(FindingKind kind) {
  return kind == FindingKind::misaligned || kind == FindingKind::behind_end ||
         kind == FindingKind::reserved_bits;
}

bool is_about_cluster(const Finding& finding) {
  return finding.host_length != 0 &&
         (finding.kind == FindingKind::two_owners || finding.kind == FindingKind::shared_table ||
          finding.kind == FindingKind::refcount_too_small);
}

/// "the disk and snapshot 'a'"
std::string words_of(const Finding::Guest& guest) {
  std::string words = guest.active ? "the disk" : "";
  for (const std::string& name : guest.snapshots) {
    words += cat(words.empty() ? "" : " and ", "snapshot ", quoted(name));
  }
  return words;
}

void add_views(const Finding::Guest& of, Finding::Guest& to) {
  to.active |= of.active;
  for (const std::string& name : of.snapshots) {
    if (to.snapshots.size() >= Finding::kGuestsMax) return;
    if (std::find(to.snapshots.begin(), to.snapshots.end(), name) == to.snapshots.end()) {
      to.snapshots.push_back(name);
    }
  }
}

/// Whose the two streams are that the finding's words name by cluster and offset.
void attribute_crossed(const MetadataScan& scan, const Owners& owners, Finding& finding) {
  if (finding.guests.empty()) return;
  const Geometry& geometry = scan.geometry();
  Finding::Guest& own = finding.guests.front();
  Finding::Guest other;
  const HostCluster cluster = geometry.cluster_of(HostOffset{finding.host_offset});
  for (const Owners::Reference& reference : owners.of(cluster).kept) {
    if (!reference.compressed()) continue;
    const Result<Mapping> mapping = decode_l2(reference.entry, geometry);
    if (!mapping) continue;
    Finding::Guest seen{.offset = geometry.start_of(reference.guest).value,
                        .length = geometry.cluster_size()};
    owners.views_of(reference.l2_table, seen);
    const uint64_t at = mapping->compressed_at.value;
    if (at == finding.host_offset && mapping->compressed_size == finding.host_length &&
        seen.offset == own.offset) {
      add_views(seen, own);
    } else if ((at == finding.host_offset ||
                at + mapping->compressed_size > finding.host_offset + kSectorSize) &&
               finding.text.ends_with(
                   cat(" of guest offset ", geometry.start_of(reference.guest), " at ", hex(at)))) {
      other.offset = seen.offset;
      other.length = seen.length;
      add_views(seen, other);
    }
  }
  if (other.length == 0) return;
  finding.text +=
      cat("; the former are those of ", words_of(own), ", the latter those of ", words_of(other));
  finding.guests.push_back(std::move(other));
  finding.guests_count = finding.guests.size();
}

}  // namespace

Task<void> Owners::find(const std::vector<HostCluster>& clusters, uint64_t references_max) {
  for (const HostCluster cluster : clusters) references_[cluster.value];
  const MetadataScan::VisitL2 visit = [&](const MetadataScan::L2Use& use, MutableBytes table) {
    if (references_.contains(use.cluster)) tables_[use.cluster];
    look_at(use, table, references_max);
  };
  co_await scan_.each_l2(visit);
  if (tables_.empty()) co_return;
  for (size_t i = 0; i < scan_.l1_tables.size(); ++i) co_await look_at_l1(i);
}

void Owners::look_at(const MetadataScan::L2Use& use, Bytes table, uint64_t references_max) {
  const Geometry& geometry = scan_.geometry();
  const uint64_t entries = geometry.l2_entries();
  for (uint64_t i = 0; i < entries; ++i) {
    const L2Entry entry = load_l2(table, i, geometry);
    if (entry.descriptor == 0) continue;
    const Reference reference{
        .l2_table = use.cluster, .guest = geometry.first_of_l1(use.l1_index) + i, .entry = entry};
    if (!reference.compressed()) {
      const HostOffset at{entry.descriptor & kOffsetMask};
      if (at.value == 0 || geometry.data_file) continue;
      const uint64_t cluster = geometry.cluster_of(at).value;
      see(cluster, reference, references_max);
      // What is not aligned lies in two.
      if (!geometry.aligned(at)) see(cluster + 1, reference, references_max);
      continue;
    }
    const Result<Mapping> mapping = decode_l2(entry, geometry);
    if (!mapping) continue;
    const HostSpan touched = hosts(*mapping, geometry);
    for (uint64_t j = 0; j < touched.count; ++j) {
      see(touched.first.value + j, reference, references_max);
    }
  }
}

void Owners::see(uint64_t cluster, const Reference& reference, uint64_t references_max) {
  const auto found = references_.find(cluster);
  if (found == references_.end()) return;
  References& references = found->second;
  ++references.count;
  if (references.kept.size() >= references_max) return;
  references.kept.push_back(reference);
  tables_[reference.l2_table];
}

Task<void> Owners::look_at_l1(size_t index) {
  const MetadataScan::L1Table& l1 = scan_.l1_tables[index];
  std::vector<std::byte> piece;
  for (uint64_t done = 0; done < l1.entries;) {
    const uint64_t count = std::min(l1.entries - done, kPiece / 8);
    piece.resize(count * 8);
    co_await scan_.read_padded(l1.at.value + done * 8, piece, IoTag::l1_load);
    for (uint64_t i = 0; i < count; ++i) {
      const HostOffset at{load_l1_entry(piece, i) & kOffsetMask};
      if (at.value == 0 || !scan_.geometry().aligned(at)) continue;
      const auto found = tables_.find(scan_.geometry().cluster_of(at).value);
      if (found == tables_.end()) continue;
      found->second.push_back(
          {.at = {l1.at.value + (done + i) * 8}, .index = done + i, .table = index});
    }
    done += count;
  }
}

const Owners::References& Owners::of(HostCluster cluster) const {
  static const References kNone;
  const auto found = references_.find(cluster.value);
  return found == references_.end() ? kNone : found->second;
}

const std::vector<Owners::L1Reference>& Owners::of_table(uint64_t l2_table) const {
  static const std::vector<L1Reference> kNone;
  const auto found = tables_.find(l2_table);
  return found == tables_.end() ? kNone : found->second;
}

void Owners::views_of(uint64_t l2_table, Finding::Guest& guest) const {
  guest.active = false;
  guest.snapshots.clear();
  for (const L1Reference& reference : of_table(l2_table)) {
    const MetadataScan::L1Table& l1 = scan_.l1_tables[reference.table];
    if (l1.active) {
      guest.active = true;
    } else if (guest.snapshots.size() < Finding::kGuestsMax) {
      guest.snapshots.push_back(l1.snapshot);
    }
  }
}

Task<void> attribute(MetadataScan& scan) {
  const Geometry& geometry = scan.geometry();
  std::vector<HostCluster> wanted;
  uint64_t references_max = Finding::kGuestsMax;
  for (const Finding& finding : scan.report.findings) {
    if (finding.kind == FindingKind::overlapping_streams) {
      wanted.push_back(geometry.cluster_of(HostOffset{finding.host_offset}));
      references_max = UINT64_MAX;  // One of many streams in the cluster.
    }
    if (is_about_cluster(finding))
      wanted.push_back(geometry.cluster_of(HostOffset{finding.host_offset}));
    if (finding.l2_table != 0) wanted.push_back(geometry.cluster_of(HostOffset{finding.l2_table}));
  }
  Owners owners(scan);
  if (!wanted.empty()) co_await owners.find(wanted, references_max);

  for (Finding& finding : scan.report.findings) {
    if (is_bad_pointer(finding.kind) && finding.entry != 0) {
      finding.intended = intended_offset(scan, finding.entry);
      if (finding.intended != 0) finding.cause = Cause::bit_flip;
    }
    if (!is_about_cluster(finding)) {
      if (finding.l2_table == 0) continue;
      const uint64_t table = geometry.cluster_of(HostOffset{finding.l2_table}).value;
      for (Finding::Guest& guest : finding.guests) owners.views_of(table, guest);
      if (finding.kind == FindingKind::overlapping_streams)
        attribute_crossed(scan, owners, finding);
      continue;
    }
    const HostCluster cluster = geometry.cluster_of(HostOffset{finding.host_offset});
    finding.guests.clear();
    finding.guests_count = owners.of(cluster).count;
    for (const Owners::Reference& reference : owners.of(cluster).kept) {
      if (finding.guests.size() >= Finding::kGuestsMax) break;
      Finding::Guest guest{.offset = geometry.start_of(reference.guest).value,
                           .length = geometry.cluster_size()};
      owners.views_of(reference.l2_table, guest);
      finding.guests.push_back(std::move(guest));
    }
    // An L2 table stands for all that it maps.
    for (const Owners::L1Reference& reference : owners.of_table(cluster.value)) {
      ++finding.guests_count;
      if (finding.guests.size() >= Finding::kGuestsMax) continue;
      const MetadataScan::L1Table& l1 = scan.l1_tables[reference.table];
      Finding::Guest guest{.offset = geometry.start_of(geometry.first_of_l1(reference.index)).value,
                           .length = geometry.l1_span(),
                           .active = l1.active};
      if (!l1.active) guest.snapshots.push_back(l1.snapshot);
      finding.guests.push_back(std::move(guest));
    }
  }
}

}  // namespace byre
