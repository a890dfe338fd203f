// SPDX-License-Identifier: Apache-2.0
#include "cli/snapshot_list.h"

#include <fmt/core.h>

#include <ctime>

#include "base/error.h"
#include "cli/text.h"

namespace byre {

namespace {

std::string date_text(uint32_t seconds) {
  const time_t time = seconds;
  tm local{};
  if (!localtime_r(&time, &local)) return "";
  char text[64];
  const size_t length = strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
  return std::string(text, length);
}

/// Columns are counted in bytes, as scripts know them from qemu-img; fmt would count characters.
std::string padded(std::string text, size_t width) {
  if (text.size() < width) text.resize(width, ' ');
  return text;
}

}  // namespace

Json to_json_value(const Snapshot& snapshot) {
  constexpr uint64_t kSecondNs = 1'000'000'000;
  Json json = Json::object();
  if (snapshot.icount && *snapshot.icount != UINT64_MAX) json["icount"] = *snapshot.icount;
  json["vm-clock-nsec"] = snapshot.vm_clock_nanoseconds % kSecondNs;
  json["name"] = snapshot.name;
  json["date-sec"] = snapshot.date_seconds;
  json["date-nsec"] = snapshot.date_nanoseconds;
  json["vm-clock-sec"] = snapshot.vm_clock_nanoseconds / kSecondNs;
  json["id"] = snapshot.id;
  json["vm-state-size"] = snapshot.vm_state_size;
  return json;
}

std::string snapshot_list(const std::vector<Snapshot>& snapshots) {
  std::string out = "Snapshot list:\n";
  out += fmt::format("{:<7} {:<16} {:>8}{:>20}{:>16}{:>11}\n", "ID", "TAG", "VM_SIZE", "DATE",
                     "VM_CLOCK", "ICOUNT");
  for (const Snapshot& snapshot : snapshots) {
    const uint64_t ms = snapshot.vm_clock_nanoseconds / 1'000'000;
    const std::string clock = fmt::format("{:04}:{:02}:{:02}.{:03}", ms / 3'600'000,
                                          ms / 60'000 % 60, ms / 1000 % 60, ms % 1000);
    const bool counted = snapshot.icount && *snapshot.icount != UINT64_MAX;
    out +=
        fmt::format("{} {} {:>8}{:>20}{:>16}{:>11}\n", padded(printable(snapshot.id), 7),
                    padded(printable(snapshot.name), 16), size_text(snapshot.vm_state_size),
                    date_text(snapshot.date_seconds), clock, counted ? cat(*snapshot.icount) : "");
  }
  return out;
}

}  // namespace byre
