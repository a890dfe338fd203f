// SPDX-License-Identifier: Apache-2.0
/// MetricsPage: what a server measures, in Prometheus' text format (version 0.0.4).
///
/// prometheus-cpp writes the text; the names follow its conventions: base units, `_total` for what
/// only grows.  Everything is read when the page is asked for: nothing is counted twice.
///
/// | name | labels | what |
/// |---|---|---|
/// | byre_build_info | version | 1 |
/// | byre_export_connections | export, state: open, waiting | clients now |
/// | byre_export_connections_total | export, result: accepted, failed | clients so far |
/// | byre_export_requests_running | export | now |
/// | byre_export_requests_total | export, operation: read, write, flush, other | so far |
/// | byre_export_requests_failed_total | export | answered with an error |
/// | byre_export_bytes_total | export, operation: read, write, zero, trim | so far |
/// | byre_image_commits_total, byre_image_commit_failures_total | image | of metadata |
/// | byre_image_writes_total | image, kind: in_place, allocating | runs of clusters |
/// | byre_image_clusters_total | image, event: allocated, freed, compressed, decompressed | |
/// | byre_image_table_loads_total | image | L2 tables read |
/// | byre_image_references_known | image | 1: all references were counted (docs/engine.md, V) |
/// | byre_image_scan_seconds | image | how long counting took |
/// | byre_image_damage | image, kind: undercounted_clusters, wrong_copied_flags, lost_ranges, |
/// |                   | ranges_in_doubt, lost_in_snapshots, beyond_healing, leaked_clusters; as |
/// |                   | the count found it when the image was opened |
///
/// Not here: who asks (metrics_server.h).
#pragma once

#include <string>

#include "export/nbd_session.h"

namespace byre {

class Image;

struct Measured {
  std::string version;      ///< byre's.
  std::string export_name;  ///< Empty is the default export's.
  const nbd::Statistics* server = nullptr;
  std::string image_name;
  const Image* image = nullptr;  ///< Null: a disk that is no image.
};

std::string metrics_page(const Measured& measured);

}  // namespace byre
