// SPDX-License-Identifier: Apache-2.0
#include "cli/findings.h"

#include <nlohmann/json.hpp>

#include "cli/text.h"

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
  json["remedy"] = std::string(byre::name_of(finding.remedy));
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

std::string lines_of_findings(const std::vector<Finding>& findings) {
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
    lines += cat(kind, printable(finding.text), finding.repaired ? " (repaired)" : "", "\n");
  }
  return lines;
}

void show_findings(Session& session, const std::vector<Finding>& findings) {
  session.note(lines_of_findings(findings));
}

}  // namespace byre
