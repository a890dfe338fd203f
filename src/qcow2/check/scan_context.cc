// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/scan_context.h"

namespace byre {
namespace {

/// What leaves a cluster with these two owners behind.
Cause cause_of_alias(Owner one, Owner other) {
  if (one == Owner::data && other == Owner::data) return Cause::reuse_race;
  const bool packed = one == Owner::compressed || other == Owner::compressed;
  const bool plain = one == Owner::data || other == Owner::data;
  return packed && plain ? Cause::stale_packing : Cause::unknown;
}

}  // namespace

void ScanContext::progress(double fraction) const {
  if (options_.progress) options_.progress->set_fraction(fraction);
}

TableReader::Pace ScanContext::pace_of(uint64_t count, double from, double to) const {
  return {
      .go_on = [this] { return go_on(); },
      .progress =
          [this, count, from, to](uint64_t done) {
            progress(from + (to - from) * static_cast<double>(done) / static_cast<double>(count));
          }};
}

Task<void> ScanContext::each_l2(VisitL2 visit, double share) {
  TableReader::Pace pace = pace_of(result_.l2_uses.size(), 0, share);
  if (share == 0) pace.progress = nullptr;
  co_await byre::each_l2(file_, result_, std::move(visit),
                         {.go_on = std::move(pace.go_on),
                          .unreadable = [this](const Error& error) { unreadable(error); },
                          .progress = std::move(pace.progress)});
}

bool ScanContext::count_range(uint64_t offset, uint64_t length, Owner owner, uint64_t identity,
                              uint64_t weight, std::string_view what, const FoundEntry* entry) {
  const auto on_second_owner = [&](HostCluster cluster, Owner other) {
    FindingPlace shared = place_of(cluster);
    shared.structure = what;
    if (entry) {
      shared.use = entry->use;
      shared.guest = entry->guest;
      shared.entry = entry->entry.descriptor;
    }
    shared.cause = cause_of_alias(other, owner);
    damage_beyond_qemu(1, shared, "host cluster at ", geometry().start_of(cluster), ": ", what,
                       " at ", hex(offset), " lies in ", name_of(other));
  };
  const References::Counted counted =
      result_.references.count(offset, length, owner, identity, weight, on_second_owner);
  if (counted != References::Counted::behind_end) return counted == References::Counted::whole;

  FindingPlace place =
      entry ? place_of(*entry, FindingKind::behind_end)
            : FindingPlace{.kind = FindingKind::behind_end, .at = offset, .length = length};
  place.structure = what;
  place.cause = Cause::truncated_file;
  if (entry) result_.lost_entries = true;
  damage(weight, place, what, " at host offset ", hex(offset), ": ", length,
         " bytes are not all there: the file ends before");
  return false;
}

FindingPlace ScanContext::place_of(HostCluster cluster) const {
  return {.kind = FindingKind::two_owners,
          .at = geometry().start_of(cluster).value,
          .length = geometry().cluster_size(),
          .repair = RepairKind::unshare};
}

FindingPlace ScanContext::place_of(const FoundEntry& entry, FindingKind kind) const {
  const uint64_t table = geometry().start_of(HostCluster{entry.use->cluster}).value;
  const uint64_t size = geometry().l2_entry_size();
  return {.kind = kind,
          .structure = "L2 entry",
          .at = table + geometry().l2_index(entry.guest) * size,
          .length = size,
          .use = entry.use,
          .guest = entry.guest,
          .entry = entry.entry.descriptor};
}

void ScanContext::store(Severity severity, const FindingPlace& place, std::string text) {
  Finding finding{.severity = severity,
                  .kind = place.kind,
                  .structure = std::string(place.structure),
                  .host_offset = place.at,
                  .host_length = place.length,
                  .cause = place.cause,
                  .repair = place.repair,
                  .text = std::move(text),
                  .entry = place.entry};
  if (place.use) finding.l2_table = geometry().start_of(HostCluster{place.use->cluster}).value;
  if (place.guest) {
    Finding::Guest guest{.offset = geometry().start_of(*place.guest).value,
                         .length = place.guest_clusters << geometry().cluster_bits};
    if (place.use) guest.active = place.use->active != 0;
    if (place.l1) {
      guest.active = place.l1->active;
      if (!guest.active) guest.snapshots.push_back(place.l1->snapshot);
    }
    finding.guests.push_back(std::move(guest));
    finding.guests_count = 1;
  }
  result_.report.findings.push_back(std::move(finding));
}

void ScanContext::unreadable(const Error& error) {
  result_.damaged = true;
  ++result_.report.check_errors;
  note(FindingKind::unreadable, error.message());
}

}  // namespace byre
