// SPDX-License-Identifier: Apache-2.0
#include "cli/findings.h"

#include <set>

#include "cli/text.h"
#include "format/l1.h"

namespace byre {
namespace {

std::string_view name_of(Severity severity) {
  switch (severity) {
    case Severity::corruption:
      return "corruption";
    case Severity::leak:
      return "leak";
    case Severity::note:
      return "note";
  }
  return "unknown";
}

/// So many lines of one kind tell as much as a thousand.
constexpr uint64_t kAlikeShown = 20;
constexpr size_t kGuestsShown = 4;

bool are_alike(const Finding& one, const Finding& other) {
  return one.severity == other.severity && one.kind == other.kind &&
         one.structure == other.structure && one.repaired == other.repaired &&
         one.file == other.file;
}

Json json_of(const Finding::Guest& guest) {
  Json json = Json::object();
  json["offset"] = guest.offset;
  json["length"] = guest.length;
  json["active"] = guest.active;
  json["snapshots"] = guest.snapshots;
  return json;
}

Json json_of(const Finding& finding) {
  Json json = Json::object();
  json["severity"] = std::string(name_of(finding.severity));
  json["kind"] = std::string(byre::name_of(finding.kind));
  if (!finding.file.empty()) json["file"] = finding.file;
  if (!finding.structure.empty()) json["structure"] = finding.structure;
  if (finding.host_offset != 0 || finding.host_length != 0) {
    json["host-offset"] = finding.host_offset;
    json["host-length"] = finding.host_length;
  }
  if (finding.entry != 0) json["entry"] = finding.entry;
  if (finding.l2_table != 0) json["l2-table"] = finding.l2_table;
  if (finding.guests_count != 0) {
    json["guests-count"] = finding.guests_count;
    json["guests"] = Json::array();
    for (const Finding::Guest& guest : finding.guests) json["guests"].push_back(json_of(guest));
  }
  json["cause"] = std::string(byre::name_of(finding.cause));
  if (finding.intended != 0) json["intended-offset"] = finding.intended;
  json["repair"] = std::string(byre::name_of(finding.repair));
  json["repaired"] = finding.repaired;
  json["text"] = finding.text;
  return json;
}

}  // namespace

Json json_of_findings(const std::vector<Finding>& findings) {
  Json list = Json::array();
  for (const Finding& finding : findings) list.push_back(json_of(finding));
  return list;
}

/// " (guest offset 0x0, 65536 bytes, seen by the disk; ...)"
std::string guests_of(const Finding& finding) {
  std::string words;
  size_t named = 0;
  for (const Finding::Guest& guest : finding.guests) {
    if (++named > kGuestsShown) break;
    std::string seen = guest.active ? "the disk" : "";
    for (const std::string& name : guest.snapshots) {
      seen += cat(seen.empty() ? "" : ", ", "snapshot ", byre::quoted(name));
    }
    words += cat(words.empty() ? " (" : "; ", "guest offset ", hex(guest.offset), ", ",
                 guest.length, " bytes", seen.empty() ? "" : ", seen by ", seen);
  }
  if (finding.guests_count > kGuestsShown) {
    words += cat("; and ", finding.guests_count - kGuestsShown, " more");
  }
  return words.empty() ? words : words + ")";
}

std::string lines_of_findings(const std::vector<Finding>& findings, bool with_guests) {
  std::string lines;
  uint64_t alike = 0;
  for (size_t i = 0; i < findings.size(); ++i) {
    const Finding& finding = findings[i];
    alike = i != 0 && are_alike(findings[i - 1], finding) ? alike + 1 : 0;
    if (alike >= kAlikeShown) {
      const bool last = i + 1 == findings.size() || !are_alike(finding, findings[i + 1]);
      if (last) {
        lines += cat("      and ", alike + 1 - kAlikeShown,
                     " more like these (check --output=json --findings lists them)\n");
      }
      continue;
    }
    std::string_view kind = "";
    if (finding.severity == Severity::corruption) kind = "ERROR ";
    if (finding.severity == Severity::leak) kind = "Leaked ";
    if (finding.severity == Severity::note) kind = "NOTE ";
    lines += cat(kind, printable(finding.text), with_guests ? printable(guests_of(finding)) : "",
                 finding.repaired ? " (repaired)" : "", "\n");
  }
  return lines;
}

std::vector<Finding> one_for_each_damage(const std::vector<Finding>& findings) {
  std::set<uint64_t> used_twice;
  std::set<uint64_t> miscounted;
  for (const Finding& finding : findings) {
    const bool is_about_owners = finding.kind == FindingKind::two_owners ||
                                 finding.kind == FindingKind::shared_table ||
                                 finding.kind == FindingKind::refcount_block;
    if (is_about_owners) used_twice.insert(finding.host_offset);
    if (is_about_owners || finding.kind == FindingKind::refcount_too_small ||
        finding.kind == FindingKind::refcount_too_large) {
      miscounted.insert(finding.host_offset);
    }
  }
  std::vector<Finding> kept;
  for (const Finding& finding : findings) {
    if (finding.kind == FindingKind::refcount_too_small && used_twice.contains(finding.host_offset))
      continue;
    if (finding.kind == FindingKind::copied && miscounted.contains(finding.entry & kOffsetMask))
      continue;
    kept.push_back(finding);
  }
  return kept;
}

void show_findings(Session& session, const std::vector<Finding>& findings) {
  session.note(lines_of_findings(findings, !session.compatibility_name()));
}

}  // namespace byre
