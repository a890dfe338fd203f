// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/attribution.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "qcow2/check/owners.h"

namespace byre {
namespace {

/// Bits of a pointer that hold its offset.
constexpr uint32_t kOffsetBitFirst = 9;
constexpr uint32_t kOffsetBitEnd = 56;

bool is_orphan(const ScanResult& found, uint64_t offset) {
  const HostCluster cluster = found.geometry().cluster_of(HostOffset{offset});
  const auto after =
      std::upper_bound(found.orphans.begin(), found.orphans.end(), cluster,
                       [](HostCluster value, const HostSpan& span) { return value < span.first; });
  return after != found.orphans.begin() && cluster < std::prev(after)->end();
}

/// The one offset that differs from the entry in a bit and leads to a cluster that nobody uses any
/// more; 0 when there is none, or more than one.
uint64_t intended_offset(const ScanResult& found, uint64_t entry) {
  const uint64_t stray = entry & ~(kCopied | kCompressed | kOffsetMask | kReadsZero);
  if (stray != 0) {
    const uint64_t offset = entry & kOffsetMask;
    const bool one_bit = (stray & (stray - 1)) == 0;
    return one_bit && found.geometry().aligned({offset}) ? offset : 0;
  }
  uint64_t intended = 0;
  for (uint32_t bit = kOffsetBitFirst; bit < kOffsetBitEnd; ++bit) {
    const uint64_t offset = (entry & kOffsetMask) ^ uint64_t { 1 } << bit;
    if (!found.geometry().aligned({offset}) || !is_orphan(found, offset)) continue;
    if (intended != 0) return 0;
    intended = offset;
  }
  return intended;
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
void attribute_overlap(const ScanResult& found, const Owners& owners, Finding& finding) {
  if (finding.guests.empty()) return;
  const Geometry& geometry = found.geometry();
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

/// All that read through a cluster, and through the L2 table in it.
void attribute_cluster(const ScanResult& result, const Owners& owners, Finding& finding) {
  const Geometry& geometry = result.geometry();
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
    const L1Table& l1 = result.l1_tables[reference.table];
    Finding::Guest guest{.offset = geometry.start_of(geometry.first_of_l1(reference.index)).value,
                         .length = geometry.l1_span(),
                         .active = l1.active};
    if (!l1.active) guest.snapshots.push_back(l1.snapshot);
    finding.guests.push_back(std::move(guest));
  }
}

}  // namespace

Task<void> attribute(ScanContext& scan) {
  ScanResult& result = scan.result();
  const Geometry& geometry = scan.geometry();
  std::vector<HostCluster> wanted;
  uint64_t references_max = Finding::kGuestsMax;
  for (const Finding& finding : result.report.findings) {
    if (finding.kind == FindingKind::overlapping_streams) {
      wanted.push_back(geometry.cluster_of(HostOffset{finding.host_offset}));
      references_max = UINT64_MAX;  // One of many streams in the cluster.
    }
    if (is_about_cluster(finding))
      wanted.push_back(geometry.cluster_of(HostOffset{finding.host_offset}));
    if (finding.l2_table != 0) wanted.push_back(geometry.cluster_of(HostOffset{finding.l2_table}));
  }
  Owners owners(scan.file(), result,
                {.go_on = [&scan] { return scan.go_on(); },
                 .unreadable = [&scan](const Error& error) { scan.unreadable(error); }});
  if (!wanted.empty()) co_await owners.find(wanted, references_max);

  for (Finding& finding : result.report.findings) {
    if (is_bad_pointer(finding.kind) && finding.entry != 0) {
      finding.intended = intended_offset(result, finding.entry);
      if (finding.intended != 0) finding.cause = Cause::bit_flip;
    }
    if (!is_about_cluster(finding)) {
      if (finding.l2_table == 0) continue;
      const uint64_t table = geometry.cluster_of(HostOffset{finding.l2_table}).value;
      for (Finding::Guest& guest : finding.guests) owners.views_of(table, guest);
      if (finding.kind == FindingKind::overlapping_streams)
        attribute_overlap(result, owners, finding);
      continue;
    }
    attribute_cluster(result, owners, finding);
  }
}

}  // namespace byre
