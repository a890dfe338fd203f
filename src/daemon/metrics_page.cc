// SPDX-License-Identifier: Apache-2.0
#include "daemon/metrics_page.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>

#include <utility>
#include <vector>

#include "qcow2/image.h"
#include "qcow2/ops/heal.h"

namespace byre {

namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

/// Families of one subject, whose label stands on each of them.
class Page {
 public:
  explicit Page(ClientMetric::Label subject) : subject_(std::move(subject)) {}

  /// Values with the label `name`, or a single one without.
  using Values = std::vector<std::pair<std::string, double>>;
  void counter(std::string name, std::string help, const std::string& label, Values values) {
    add(std::move(name), std::move(help), MetricType::Counter, label, std::move(values));
  }
  void gauge(std::string name, std::string help, const std::string& label, Values values) {
    add(std::move(name), std::move(help), MetricType::Gauge, label, std::move(values));
  }
  std::vector<MetricFamily> take() { return std::move(families_); }

 private:
  void add(std::string name, std::string help, MetricType type, const std::string& label,
           Values values) {
    MetricFamily family{.name = std::move(name), .help = std::move(help), .type = type};
    for (auto& [what, value] : values) {
      ClientMetric metric;
      metric.label.push_back(subject_);
      if (!label.empty()) metric.label.push_back({label, what});
      metric.counter.value = metric.gauge.value = value;
      family.metric.push_back(std::move(metric));
    }
    families_.push_back(std::move(family));
  }

  const ClientMetric::Label subject_;
  std::vector<MetricFamily> families_;
};

double count(uint64_t value) { return static_cast<double>(value); }

std::vector<MetricFamily> of_build(const std::string& version) {
  Page page({"version", version});
  page.gauge("byre_build_info", "Which byre this is", "", {{"", 1}});
  return page.take();
}

std::vector<MetricFamily> of_export(const std::string& name, const nbd::Statistics& server) {
  Page page({"export", name});
  page.gauge(
      "byre_export_connections", "Clients now", "state",
      {{"open", count(server.connections_open)}, {"waiting", count(server.connections_waiting)}});
  page.counter(
      "byre_export_connections_total", "Clients that were let in", "result",
      {{"accepted", count(server.connections)}, {"failed", count(server.connections_failed)}});
  page.gauge("byre_export_requests_running", "Requests that run now", "",
             {{"", count(server.requests_running)}});
  page.counter("byre_export_requests_total", "Requests", "operation",
               {{"read", count(server.reads)},
                {"write", count(server.writes)},
                {"flush", count(server.flushes)},
                {"other", count(server.requests - server.reads - server.writes - server.flushes)}});
  page.counter("byre_export_requests_failed_total", "Requests that were answered with an error", "",
               {{"", count(server.requests_failed)}});
  page.counter("byre_export_bytes_total", "Bytes of the disk that requests were for", "operation",
               {{"read", count(server.bytes_read)},
                {"write", count(server.bytes_written)},
                {"zero", count(server.bytes_zeroed)},
                {"trim", count(server.bytes_trimmed)}});
  return page.take();
}

void add_health(Page& page, const ImageHealth& health) {
  page.gauge("byre_image_references_known", "1 once all references in the image have been counted",
             "", {{"", health.known ? 1.0 : 0.0}});
  if (!health.known) return;
  page.gauge("byre_image_scan_seconds", "How long counting the references took", "",
             {{"", count(health.scan_ns) / static_cast<double>(kSecond)}});
  const ImageDamage& damage = health.damage;
  page.gauge("byre_image_damage", "What the count found wrong when the image was opened", "kind",
             {{"undercounted_clusters", count(damage.undercounted.size())},
              {"wrong_copied_flags", count(damage.copied.size())},
              {"lost_ranges", count(damage.lost.size())},
              {"ranges_in_doubt", count(damage.in_doubt_count)},
              {"lost_in_snapshots", count(damage.lost_in_snapshots)},
              {"beyond_healing", count(damage.beyond_healing.size())},
              {"leaked_clusters", count(damage.leaked_clusters)}});
}

std::vector<MetricFamily> of_image(const std::string& name, const Image& image) {
  Page page({"image", name});
  const ImageStats stats = image.stats();
  page.counter("byre_image_commits_total", "Commits of metadata", "", {{"", count(stats.commits)}});
  page.counter("byre_image_commit_failures_total", "Commits of metadata that failed", "",
               {{"", count(stats.commit_failures)}});
  page.counter(
      "byre_image_writes_total", "Runs of clusters that guests wrote", "kind",
      {{"in_place", count(stats.writes_in_place)}, {"allocating", count(stats.writes_allocating)}});
  page.counter("byre_image_clusters_total", "What became of clusters", "event",
               {{"allocated", count(stats.clusters_allocated)},
                {"freed", count(stats.clusters_freed)},
                {"compressed", count(stats.clusters_compressed)},
                {"decompressed", count(stats.clusters_decompressed)}});
  page.counter("byre_image_table_loads_total", "L2 tables that were read", "",
               {{"", count(stats.table_loads)}});
  add_health(page, image.health());
  return page.take();
}

}  // namespace

std::string metrics_page(const Measured& measured) {
  std::vector<MetricFamily> families = of_build(measured.version);
  const auto append = [&](std::vector<MetricFamily> more) {
    for (MetricFamily& family : more) families.push_back(std::move(family));
  };
  if (measured.server) append(of_export(measured.export_name, *measured.server));
  if (measured.image) append(of_image(measured.image_name, *measured.image));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace byre
