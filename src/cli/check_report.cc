// SPDX-License-Identifier: Apache-2.0
#include "cli/check_report.h"

#include <fmt/core.h>

#include "base/error.h"

namespace byre {
namespace {

double percent(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : 100 * static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

std::string check_text(const CheckReport& report) {
  std::string out;
  if (report.corruptions == 0 && report.leaks == 0 && report.check_errors == 0) {
    out += "No errors were found on the image.\n";
  }
  if (report.corruptions != 0) {
    out += cat("\n", report.corruptions,
               " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n");
  }
  if (report.leaks != 0) {
    out += cat("\n", report.leaks,
               " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n");
  }
  if (report.check_errors != 0) {
    out += cat("\n", report.check_errors, " internal errors have occurred during the check.\n");
  }
  if (report.total_clusters != 0 && report.allocated_clusters != 0) {
    out +=
        fmt::format("{}/{} = {:.2f}% allocated, {:.2f}% fragmented, {:.2f}% compressed clusters\n",
                    report.allocated_clusters, report.total_clusters,
                    percent(report.allocated_clusters, report.total_clusters),
                    percent(report.fragmented_clusters, report.allocated_clusters),
                    percent(report.compressed_clusters, report.allocated_clusters));
  }
  if (report.image_end_offset != 0) out += cat("Image end offset: ", report.image_end_offset, "\n");
  return out;
}

std::string check_sentences(const CheckReport& report, uint64_t errors) {
  std::string out;
  if (report.corruptions == 0 && report.leaks == 0 && report.check_errors == 0) {
    out += "No errors were found.\n";
  }
  if (report.corruptions != 0) {
    const uint64_t theirs = report.corruptions - report.corruptions_beyond_qemu;
    out += cat(errors, errors == 1 ? " error was" : " errors were", " found",
               errors != theirs ? cat(" (qemu-img would count ", theirs, ")") : "",
               ": the disk may read wrong data, and writing to it may do more harm.\n");
  }
  if (report.leaks != 0) {
    out += cat(report.leaks, report.leaks == 1 ? " leaked cluster was" : " leaked clusters were",
               " found: space in the file that nothing uses.\n");
  }
  if (report.check_errors != 0) {
    out += cat(report.check_errors, report.check_errors == 1 ? " place" : " places",
               " of the file could not be read.\n");
  }
  if (report.total_clusters != 0 && report.allocated_clusters != 0) {
    out += fmt::format(
        "{} of {} guest {} allocated ({:.2f}%), {:.2f}% of them fragmented, {:.2f}% compressed.\n",
        report.allocated_clusters, report.total_clusters,
        report.total_clusters == 1 ? "cluster is" : "clusters are",
        percent(report.allocated_clusters, report.total_clusters),
        percent(report.fragmented_clusters, report.allocated_clusters),
        percent(report.compressed_clusters, report.allocated_clusters));
  }
  if (report.image_end_offset != 0) {
    out += cat("The file is in use up to host offset ", hex(report.image_end_offset), ".\n");
  }
  return out;
}

Json json_of_check(const CheckReport& report, const std::string& name) {
  Json json = Json::object();
  const auto add = [&](const char* key, uint64_t value) {
    if (value != 0) json[key] = value;
  };
  add("image-end-offset", report.image_end_offset);
  add("compressed-clusters", report.compressed_clusters);
  add("total-clusters", report.total_clusters);
  add("corruptions", report.corruptions);
  add("corruptions-fixed", report.corruptions_fixed);
  json["check-errors"] = report.check_errors;
  add("leaks", report.leaks);
  add("leaks-fixed", report.leaks_fixed);
  add("allocated-clusters", report.allocated_clusters);
  json["filename"] = name;
  json["format"] = "qcow2";
  add("fragmented-clusters", report.fragmented_clusters);
  return json;
}

}  // namespace byre
