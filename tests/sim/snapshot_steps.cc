// SPDX-License-Identifier: Apache-2.0
/// The disk as it was at one moment, kept by a copy-before-write filter that enters above it in
/// use: whoever reads it gets that, whatever guests write meanwhile and whatever else comes and
/// goes above and below; when a copy fails, that or an error.
#include "block/drain.h"
#include "block/snapshot_access.h"
#include "run.h"

namespace byre {

Task<Result<void>> Run::toggle_snapshot(bool copies_fail, Process& process) {
  // One change of the graph at a time.
  if (std::exchange(process.graph.changing, true)) co_return Result<void>();
  Result<void> done = process.graph.snapshot ? co_await end_snapshot(process)
                                             : co_await begin_snapshot(copies_fail, process);
  process.graph.changing = false;
  co_return done;
}

Task<Result<void>> Run::begin_snapshot(bool copies_fail, Process& process) {
  Image& image = *process.image;
  GraphUse& graph = process.graph;
  Drain drain(*image.node());
  co_await drain.begin();
  auto use = std::make_shared<SnapshotUse>();
  // Reads in a drain of its own.
  ++graph.replacements;
  graph.replacing = true;
  Result<void> done;
  for (const Window& window : windows_) {
    std::vector<std::byte>& bytes = use->windows.emplace_back(window.length);
    if (done) done = co_await image.read(window.offset, bytes, IoTag::none).result();
  }
  graph.replacing = false;
  if (!done) co_return done;
  auto target = std::make_unique<SnapshotTarget>(process.reactor, image.size(), copies_fail);
  use->target = target.get();
  CopyBeforeWriteOptions options;
  if (copies_fail) options.on_error = CbwError::break_snapshot;
  use->filter = std::make_unique<CopyBeforeWrite>(Child::to(image), std::move(target), options);
  auto& filter = static_cast<CopyBeforeWrite&>(*use->filter);
  done = co_await insert_above(*image.node(), use->filter).result();
  if (done) done = filter.claim();
  if (!done) co_return done;
  use->entrance =
      std::make_unique<Entrance>(Child(std::make_unique<SnapshotAccess>(use->filter.another())));
  graph.snapshot = std::move(use);
  co_return done;
}

Task<Result<void>> Run::end_snapshot(Process& process) {
  // The last look at all of it.
  for (const Window& window : windows_) {
    Result<void> whole = co_await read_snapshot_of_filter(window.offset, window.length, process);
    if (!whole) co_return whole;
  }
  const std::shared_ptr<SnapshotUse> use = std::move(process.graph.snapshot);
  process.graph.snapshot.reset();
  while (use.use_count() > 1) co_await process.reactor.sleep(kMillisecond);
  Result<void> done = co_await use->entrance->edge().close().result();
  use->entrance.reset();
  if (done) done = co_await remove_filter(use->filter).result();
  if (done) done = co_await use->filter.close().result();
  co_return done;
}

Task<Result<void>> Run::read_snapshot_of_filter(uint64_t offset, uint64_t length,
                                                Process& process) {
  const std::shared_ptr<SnapshotUse> use = process.graph.snapshot;
  if (!use) co_return Result<void>();
  std::vector<std::byte> seen(length);
  Result<void> done;
  {
    const Entrance::Pass pass = co_await use->entrance->enter();
    ++process.graph.inside;
    done = co_await pass->read(offset, seen, IoTag::none).result();
    --process.graph.inside;
  }
  if (!done && use->target->failed) co_return Result<void>();
  if (!done) co_return done;
  for (size_t i = 0; i < windows_.size(); ++i) {
    const Window& window = windows_[i];
    if (offset < window.offset || offset + length > window.offset + window.length) continue;
    const Bytes kept = Bytes(use->windows[i]).subspan(offset - window.offset, length);
    const auto differ = std::ranges::mismatch(seen, kept);
    if (differ.in1 != seen.end()) {
      fail_with("what was kept differs at ",
                hex(offset + static_cast<uint64_t>(differ.in1 - seen.begin())));
    }
  }
  co_return Result<void>();
}

}  // namespace byre
