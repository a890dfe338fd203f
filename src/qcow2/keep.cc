// SPDX-License-Identifier: Apache-2.0
#include "qcow2/keep.h"

#include <algorithm>

#include "format/header_change.h"

namespace byre {
namespace {

bool is_list(const UnknownExtension& extension) { return extension.type == kKeptClustersExtension; }

}  // namespace

KeptClusters kept_clusters_of(const Extensions& extensions) {
  const auto found = std::find_if(extensions.unknown.begin(), extensions.unknown.end(), is_list);
  if (found == extensions.unknown.end()) return {};
  Result<KeptClusters> kept = KeptClusters::parse(found->data);
  return kept ? *std::move(kept) : KeptClusters::all();
}

Task<void> remember_kept(Survey& survey, const KeptClusters& kept) {
  std::vector<std::byte> first(survey.geometry().cluster_size());
  co_await survey.read_padded(0, first, Mark::header_read);
  copy(MutableBytes(first), survey.head.sector);
  const Header header = co_await parse_header(first, OpenFor::repair);
  Extensions extensions = co_await parse_extensions(first, header);
  std::erase_if(extensions.unknown, is_list);
  if (!kept.empty()) extensions.unknown.push_back({kKeptClustersExtension, kept.serialize()});
  const std::string backing = (co_await parse_backing_file(first, header)).value_or("");
  const HeaderChange change = co_await change_header(first, header, extensions, backing);
  if (!equal(change.sector, survey.head.sector)) {
    if (!change.name.empty()) {
      co_await survey.file.write(change.name_at, change.name, {.mark = Mark::header_update});
      co_await survey.file.flush(Mark::commit_sync);
    }
    co_await survey.file.write(0, change.sector, {.mark = Mark::header_update});
    co_await survey.file.flush(Mark::commit_sync);
    survey.head.sector = change.sector;
    survey.head.header.backing_file_offset = load_be<uint64_t>(change.sector, 8);
    survey.head.extensions = std::move(extensions);
  }
  survey.kept = kept;
}

Task<void> remember_orphans(Survey& survey) {
  for (size_t ranges_max = KeptClusters::kRangesMax;; ranges_max /= 2) {
    const auto kept = KeptClusters::covering(survey.orphans, ranges_max);
    Result<void> done = co_await remember_kept(survey, kept).result();
    if (done) co_return;
    if (done.error().code() != Errc::no_space || ranges_max == 1) co_await std::move(done);
  }
}

}  // namespace byre
