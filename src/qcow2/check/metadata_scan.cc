// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/metadata_scan.h"

#include <optional>

#include "qcow2/check/attribution.h"
#include "qcow2/check/bitmap_check.h"
#include "qcow2/check/bitmap_scan.h"
#include "qcow2/check/compressed_check.h"
#include "qcow2/check/copied_flags.h"
#include "qcow2/check/header_check.h"
#include "qcow2/check/l1_scan.h"
#include "qcow2/check/l2_counter.h"
#include "qcow2/check/refcount_compare.h"
#include "qcow2/check/snapshot_check.h"
#include "qcow2/check/snapshot_scan.h"

namespace byre {

Task<void> MetadataScan::begin() {
  ScanResult& result = context_.result();
  References& references = result.references;
  references.file_size = context_.file().size();
  result.head = co_await load_image_header(context_.file(), OpenFor::check);
  result.kept = kept_clusters_of(result.head.extensions);
  const Geometry& geometry = result.geometry();
  references.geometry = geometry;
  references.clusters = geometry.clusters_for(references.file_size);
  result.report.total_clusters = geometry.clusters_for(result.head.header.size);
  check_header(context_);

  context_.count_range(0, geometry.cluster_size(), Owner::header, 0, 1, "header");
  L1Scan l1(context_);
  co_await l1.count_active();
  co_await scan_snapshots(context_, l1);
  if (const std::optional<CryptoHeader>& crypto = result.head.extensions.crypto_header) {
    context_.count_range(crypto->offset.value, crypto->length, Owner::other,
                         kEncryptionHeaderIdentity, 1, "encryption header");
  }
  co_await scan_bitmaps(context_);
  l1.count_l2_tables();
}

std::vector<HostCluster> MetadataScan::counted() const {
  const ReferenceCounts& counts = context_.result().references.counts;
  std::vector<HostCluster> counted;
  for (const uint64_t region : counts.regions()) {
    for (uint64_t i = 0; i < ReferenceCounts::kRegion; ++i) {
      const HostCluster cluster{region * ReferenceCounts::kRegion + i};
      if (counts.references(cluster) != 0) counted.push_back(cluster);
    }
  }
  return counted;
}

void MetadataScan::count_if_new(HostCluster cluster) {
  ReferenceCounts& counts = context_.result().references.counts;
  if (counts.references(cluster) == 0) counts.add(cluster, Owner::other, cluster.value);
}

Task<void> MetadataScan::end() {
  L2Counter counter(context_);
  const VisitL2 count = [&](const L2Use& use, MutableBytes table) { counter.count(use, table); };
  co_await context_.each_l2(count, kProgressOfCounting);
  co_await compare_refcounts(context_);
  if (context_.result().copied_mismatch) co_await report_copied_flags(context_);
  context_.progress(1);
}

Task<ScanResult> scan_metadata(Device& file, const CheckOptions& options) {
  MetadataScan scan(file, options);
  co_await scan.begin();
  co_await scan.end();
  ScanContext& context = scan.context();
  const ScanResult& result = context.result();
  // Streams that overlap can count more references than a refcount holds.
  const bool streams =
      options.streams || options.decode || (options.repair == Repair::all && result.overfull);
  if (streams) co_await check_streams(context, options.decode);
  if (options.bitmaps) co_await check_bitmaps(context);
  if (options.snapshots) co_await check_snapshots(context);
  const bool attributed = options.attribute && !result.report.findings.empty();
  if (attributed || !result.overlapping.empty()) co_await attribute(context);
  co_return scan.take();
}

}  // namespace byre
