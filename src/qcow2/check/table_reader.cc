// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/table_reader.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "coro/scope.h"
#include "coro/semaphore.h"

namespace byre {
namespace {

/// Bytes of tables, and tables, of a window.
constexpr uint64_t kWindow = 4 * MiB;
constexpr uint64_t kWindowTablesMax = 1024;
/// What lies side by side in the file is read at once, up to this size.
constexpr uint64_t kRunMax = MiB;
/// Less than this is not worth another thread.
constexpr uint64_t kVisitedInPlace = 256 * KiB;

}  // namespace

Task<void> read_padded(Device& file, uint64_t file_size, uint64_t offset, MutableBytes data,
                       IoTag tag) {
  const uint64_t there = offset < file_size ? std::min(file_size - offset, data.size()) : 0;
  if (there != 0) co_await file.read(offset, data.first(there), tag);
  fill_zero(data.subspan(there));
}

struct TableReader::Work {
  Wanted wanted;
  Visit visit;
  Failed failed;
  Pace pace;
  uint64_t filled = 0;  ///< Tables that are in a window, or were.
  Semaphore* reads = nullptr;
};

Task<void> TableReader::each(Wanted wanted, Visit visit_table, Failed failed, Pace pace) {
  Work work{std::move(wanted), std::move(visit_table), std::move(failed), std::move(pace)};
  Semaphore reads(file_.reactor().ready(), work.pace.reads_max);
  if (work.pace.reads_max != UINT64_MAX) work.reads = &reads;
  Window windows[2];
  co_await read_next(work, windows[0]);
  uint64_t done = 0;
  for (size_t at = 0; !windows[at].clusters.empty(); at = 1 - at) {
    if (work.pace.go_on) co_await work.pace.go_on();
    Window& now = windows[at];
    Scope scope(file_.reactor().ready());
    scope.spawn(read_next(work, windows[1 - at]));
    if (now.clusters.size() * geometry_.cluster_size() < kVisitedInPlace) {
      visit(work, done, now);
    } else {
      co_await file_.reactor().offload([&] { visit(work, done, now); });
    }
    for (uint64_t i = 0; i < now.clusters.size(); ++i) {
      if (now.errors[i]) work.failed(done + i, now.errors[i]);
    }
    done += now.clusters.size();
    if (work.pace.progress) work.pace.progress(done);
    co_await scope.join();
  }
}

void TableReader::visit(const Work& work, uint64_t first, Window& window) const {
  for (uint64_t i = 0; i < window.clusters.size(); ++i) {
    if (!window.errors[i]) work.visit(first + i, window.table(i, geometry_));
  }
}

/// The window is empty when there are no more.
Task<void> TableReader::read_next(Work& work, Window& window) {
  const uint64_t end = std::min(work.wanted.count, work.filled + window_max());
  window.clusters.clear();
  while (work.filled < end) window.clusters.push_back(work.wanted.cluster(work.filled++));
  if (window.clusters.empty()) co_return;
  if (work.pace.throttle) co_await work.pace.throttle->before_window();
  co_await read_window(window, work.wanted.tag, work.reads);
}

uint64_t TableReader::window_max() const {
  return std::clamp<uint64_t>(kWindow / geometry_.cluster_size(), 1, kWindowTablesMax);
}

Task<void> TableReader::read_window(Window& window, IoTag tag, Semaphore* reads) {
  const uint64_t size = geometry_.cluster_size();
  const uint64_t count = window.clusters.size();
  if (window.bytes.size() < count * size) window.bytes.resize(count * size);
  window.errors.clear();
  window.errors.resize(count);
  Scope runs(file_.reactor().ready());
  for (uint64_t first = 0; first < count;) {
    uint64_t end = first + 1;
    while (end < count && window.clusters[end] == window.clusters[end - 1] + 1 &&
           (end - first) * size < kRunMax) {
      ++end;
    }
    runs.spawn(read_run(window, first, end, tag, reads));
    first = end;
  }
  co_await runs.join();
}

/// Clusters that lie side by side; where that fails, each by itself.
Task<void> TableReader::read_run(Window& window, uint64_t first, uint64_t end, IoTag tag,
                                 Semaphore* reads) {
  Semaphore::Hold hold;
  if (reads) hold = co_await reads->acquire();
  const uint64_t size = geometry_.cluster_size();
  const uint64_t at = geometry_.start_of(window.clusters[first]).value;
  const MutableBytes bytes = MutableBytes(window.bytes).subspan(first * size, (end - first) * size);
  const Result<void> all = co_await read_padded(file_, file_size_, at, bytes, tag).result();
  if (all) co_return;
  for (uint64_t i = first; i < end; ++i) {
    const uint64_t own = geometry_.start_of(window.clusters[i]).value;
    Result<void> one =
        co_await read_padded(file_, file_size_, own, window.table(i, geometry_), tag).result();
    if (!one) window.errors[i] = std::move(one).error();
  }
}

}  // namespace byre
