// SPDX-License-Identifier: Apache-2.0
/// Changes of the graph while guests use the disk, and what must hold meanwhile: after a drain
/// nothing runs, not even what the image does by itself; a filter sees each request from the moment
/// it is there; a backing file that was replaced is not read again.
#include "block/drain.h"
#include "block/raw.h"
#include "run.h"

namespace byre {

namespace {
/// What is in use there is something else from now on, durably.
void spoil(SimDisk& disk, uint64_t offset, uint64_t length) {
  constexpr uint64_t kBlock = 4096;
  for (uint64_t at = offset; at < offset + length; at += kBlock) {
    std::vector<std::byte> bytes = disk.read(at, std::min(kBlock, offset + length - at));
    if (is_zero(bytes)) continue;
    std::ranges::fill(bytes, std::byte{0xdb});
    disk.put(at, bytes);
  }
}
}  // namespace

/// How often any disk was asked for anything.
uint64_t Run::operations() const {
  uint64_t total = 0;
  for (const auto& [name, disk] : disks_) {
    for (const Op::Kind kind : {Op::Kind::read, Op::Kind::write, Op::Kind::sync, Op::Kind::punch,
                                Op::Kind::zero_range, Op::Kind::allocate})
      total += disk.operations(kind);
  }
  return total;
}

Task<Result<void>> Run::drain(int64_t ns, Process& process) {
  Drain drain(*process.image->node());
  co_await drain.begin();
  const auto look = [&](std::string_view when) {
    if (process.graph.inside != 0)
      fail_with(process.graph.inside, " requests run ", when, " a drain");
  };
  look("at the start of");
  // A change of the backing file does I/O in its own drain.
  const uint64_t replacements = process.graph.replacements;
  const bool alone = !process.graph.replacing;
  const uint64_t before = operations();
  co_await process.reactor.sleep(ns);
  look("at the end of");
  if (alone && replacements == process.graph.replacements && operations() != before)
    fail_with("the disks were asked for ", operations() - before, " things during a drain");
  co_return Result<void>();
}

Task<Result<void>> Run::toggle_filter(Process& process) {
  GraphUse& graph = process.graph;
  if (!graph.filter) {
    graph.filter = std::make_unique<Passage>(Child::to(*process.image));
    co_return co_await insert_above(*process.image->node(), graph.filter).result();
  }
  Result<void> done = co_await remove_filter(graph.filter).result();
  if (done && static_cast<Passage&>(*graph.filter).running != 0)
    fail_with("requests run through a filter that was removed");
  if (done) done = co_await graph.filter.close().result();
  graph.filter.reset();
  co_return done;
}

Task<Result<void>> Run::replace_backing(Process& process) {
  Image& image = *process.image;
  if (!image.backing()) co_return Result<void>();
  const std::string old_name = image.head().backing_file.value_or("");
  std::string name = cat("backing-", ++backings_made_);
  // Too long for the first sector, in which the other names are.
  if (backings_made_ % 2 != 0 && knobs_.cluster_bits > 9) name += std::string(420, '-');
  const auto old_disk = disks_.find(old_name);
  if (old_disk == disks_.end()) {
    fail_with("the header names ", quoted(old_name), ", which is not there");
    co_return Result<void>();
  }
  disks_.emplace(name, old_disk->second.cut(CutChoice::all()));
  Child next;
  const bool raw = knobs_.backing == Knobs::Backing::raw;
  if (raw) {
    next = std::make_unique<RawDevice>(co_await process.opener.open(name, {}));
  } else {
    ImageOptions options = knobs_.image_options();
    options.writable = false;
    next = co_await Image::open(process.reactor, process.opener, name, options);
  }
  Result<void> done =
      co_await image.replace_backing(next, BackingName{name, raw ? "raw" : "qcow2"}).result();
  const Result<void> closed = co_await next.close().result();
  next.reset();
  if (done) {
    // Durably: what is read there from now on is wrong.
    SimDisk& old = disks_.find(old_name)->second;
    if (!raw) spoil(old, 0, std::min<uint64_t>(old.size(), 16 * MiB));
    for (const Window& window : windows_) {
      if (raw && window.offset < old.size())
        spoil(old, window.offset, std::min(window.length, old.size() - window.offset));
    }
  }
  // A header of one sector has little room.
  if (!done && done.error().code() == Errc::no_space) co_return Result<void>();
  if (done && !closed) done = closed.error().copy();
  co_return done;
}

Task<Result<void>> Run::change_graph(const Step& step, Process& process) {
  if (!process.graph.entrance) co_return Result<void>();
  switch (step.kind) {
    case Step::Kind::drain:
      co_return co_await drain(step.pause_ns, process);
    case Step::Kind::toggle_filter: {
      // One at a time: what is above is what the last change left.
      if (std::exchange(process.graph.changing, true)) co_return Result<void>();
      Result<void> done = co_await toggle_filter(process);
      process.graph.changing = false;
      co_return done;
    }
    case Step::Kind::toggle_snapshot:
      co_return co_await toggle_snapshot(step.may_unmap, process);
    case Step::Kind::read_snapshot:
      co_return co_await read_snapshot_of_filter(step.offset, step.length, process);
    default: {
      if (std::exchange(process.graph.changing, true)) co_return Result<void>();
      ++process.graph.replacements;
      process.graph.replacing = true;
      Result<Result<void>> done = co_await replace_backing(process).result();
      process.graph.changing = process.graph.replacing = false;
      if (!done) co_return Result<void>(std::move(done).error());
      co_return *std::move(done);
    }
  }
}

}  // namespace byre
