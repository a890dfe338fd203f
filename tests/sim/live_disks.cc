// SPDX-License-Identifier: Apache-2.0
#include "base/bytes.h"
#include "live_run.h"

namespace byre::live {

void LiveRun::make_disks() {
  const uint64_t below = kind_ == LiveJob::commit         ? prng_.between(1, 2)
                         : kind_ == LiveJob::commit_below ? prng_.between(2, 3)
                         : kind_ == LiveJob::stream       ? prng_.between(1, 3)
                                                          : prng_.below(2);
  std::string name;
  for (uint64_t i = 0; ok() && i <= below; ++i) {
    LiveDisk disk{.name = cat("d", i), .below = name};
    disk.raw = i == 0 && prng_.one_in(4) && (kind_ != LiveJob::backup || below != 0);
    // Those below may be shorter than the disk of the guests, or longer.
    uint64_t size = size_;
    if (i != below && prng_.one_in(3)) size = prng_.between(8, size_ / kSectorSize) * kSectorSize;
    make(disk, size);
    name = disk.name;
    disks_of_chain_.push_back(disk);
  }
  top_ = disks_of_chain_.back();
  depth_ = static_cast<uint32_t>(below == 0 ? 0 : prng_.between(1, below));
  if (kind_ == LiveJob::commit_below) depth_ = static_cast<uint32_t>(prng_.between(1, below - 1));
  if (kind_ == LiveJob::mirror || kind_ == LiveJob::backup) {
    target_ = {.name = "target", .raw = prng_.one_in(3)};
    if (!top_.below.empty() && prng_.one_in(2)) {
      top_only_ = true;
      target_.raw = false;
      target_.below = top_.below;
    }
    if (kind_ == LiveJob::backup && late_prng_.one_in(3)) {
      target_is_over_top_ = true;
      top_only_ = target_.raw = false;
      target_.below = top_.name;
    }
    make(target_, size_);
  } else if (kind_ == LiveJob::commit) {
    target_ = disks_of_chain_[below - depth_];
  }
  if (!ok()) return;
  set_initial();
  if (ok() && kind_ == LiveJob::backup && version_of_top_ == 3 && prng_.one_in(2)) add_bitmap();
  if (ok() && kind_ == LiveJob::stream && version_of_top_ == 3 && extra_prng_.one_in(2))
    add_bitmap();
  lets_go_ =
      kind_ == LiveJob::backup && !target_is_over_top_ && saved_.empty() && extra_prng_.one_in(2);
  if (lets_go_) {
    disks_["moment"].set_size(size_);
    text_ += "the backup lets its source go, ";
  }
}

void LiveRun::make(const LiveDisk& disk, uint64_t size) {
  CreateOptions options;
  options.size = size;
  options.cluster_size = uint64_t{512} << prng_.below(6);
  options.version = prng_.one_in(4) ? 2 : 3;
  if (disk.name != "target") version_of_top_ = options.version;
  if (options.version == 3 && prng_.one_in(5)) {
    options.extended_l2 = true;
    options.cluster_size = 16 * KiB;
  }
  if (options.version == 3) options.refcount_bits = 1u << prng_.between(1, 6);
  options.lazy_refcounts = options.version == 3 && prng_.one_in(6);
  options.backing_file = disk.below;
  if (!disk.below.empty()) options.backing_format = is_raw(disk.below) ? "raw" : "qcow2";
  text_ += cat(disk.name, disk.raw ? " (raw" : cat(" (version ", options.version), ", clusters of ",
               options.cluster_size, ", ", hex(size), " bytes)",
               disk.below.empty() ? "" : cat(" over ", disk.below), ", ");
  SimReactor reactor(prng_.next());
  SimGate opener(reactor, disks_);
  if (disk.raw) {
    disks_[disk.name].set_size(size);
  } else if (Result<void> done = reactor.finish(create(opener, disk.name, options)); !done) {
    return fail_with("not created: ", done.error().message());
  }
  if (prng_.one_in(3)) {
    SimDisk::Options& how = disks_.find(disk.name)->second.options();
    how.can_punch = how.can_zero_range = false;
  }
  if (disk.name != "target") {
    const Result<void> filled = reactor.finish(fill(reactor, opener, disk));
    if (!filled) fail_with(disk.name, " cannot be written: ", filled.error().message());
  }
  for (auto& [name, each] : disks_) each.power_cut(CutChoice::all());
}

Task<void> LiveRun::create(FileOpener& opener, std::string name, CreateOptions options) {
  RawDevice file(co_await opener.open(name, {.writable = true, .create = true}),
                 RawOptions{.growable = true});
  Result<void> done = co_await create_image(file, options).result();
  Result<void> closed = co_await file.close().result();
  co_await std::move(done);
  co_await std::move(closed);
}

Task<Child> LiveRun::open(Reactor& reactor, FileOpener& opener, LiveDisk wanted, bool writable,
                          uint32_t depth) {
  if (wanted.raw) {
    Child raw =
        std::make_unique<RawDevice>(co_await opener.open(wanted.name, {.writable = writable}),
                                    RawOptions{.growable = writable});
    co_return std::move(raw);
  }
  Child image = co_await Image::open(reactor, opener, wanted.name,
                                     {.writable = writable,
                                      .writable_below = depth,
                                      .table_cache_size = 4 * KiB,
                                      .growth_step = 64 * KiB});
  co_return std::move(image);
}

/// Over the disk that is open, if it lies over that.
Task<Child> LiveRun::open_target(Process& process) {
  if (!target_is_over_top_) {
    co_return co_await open(process.reactor, process.opener, target_, true);
  }
  Child file = std::make_unique<RawDevice>(
      co_await process.opener.open(target_.name, {.writable = true}), RawOptions{.growable = true});
  Child image = co_await Image::open_over(
      std::move(file), process.opener,
      {.writable = true, .table_cache_size = 4 * KiB, .growth_step = 64 * KiB},
      Child::to(*process.entrance->edge()));
  co_return std::move(image);
}

Task<void> LiveRun::fill(Reactor& reactor, FileOpener& opener, LiveDisk made) {
  Child disk = co_await open(reactor, opener, made, true);
  Result<void> done;
  for (uint64_t i = prng_.between(1, 8); done && i != 0; --i) {
    const uint64_t at = prng_.below(disk->size() / kSectorSize) * kSectorSize;
    const uint64_t length = std::min(prng_.between(1, 60) * kSectorSize, disk->size() - at);
    if (prng_.one_in(4)) {
      done = co_await disk->zero(at, length, {.may_unmap = prng_.one_in(2)}).result();
    } else {
      Contents bytes(length);
      fill_sectors(bytes, at, oracle_.fresh_token());
      done = co_await disk->write(at, bytes).result();
    }
  }
  Result<void> closed = co_await disk.close().result();
  co_await std::move(done);
  co_await std::move(closed);
}

void LiveRun::damage(const LiveDisk& base) {
  SimDisk& disk = disks_.find(base.name)->second;
  const auto cluster_bits = load_be<uint32_t>(disk.read(20, 4));
  const auto table = load_be<uint64_t>(disk.read(48, 8));
  const auto block = load_be<uint64_t>(disk.read(table, 8));
  disk.put(block, Contents(uint64_t{1} << cluster_bits));
  damaged_ = base.name;
  note("its refcounts are zeros");
}

Result<Contents> LiveRun::contents(SimDisks& disks, const LiveDisk& disk) {
  SimReactor reactor(1);
  SimGate opener(reactor, disks);
  return reactor.finish(read_whole(reactor, opener, disk));
}

Task<Contents> LiveRun::read_whole(Reactor& reactor, FileOpener& opener, LiveDisk wanted) {
  Child disk = co_await open(reactor, opener, wanted, false);
  Contents bytes(disk->size());
  Result<void> read = co_await disk->read(0, bytes, IoTag::read_guest).result();
  (void)co_await disk.close().result();
  co_await std::move(read);
  co_return std::move(bytes);
}

void LiveRun::set_initial() {
  const Result<Contents> bytes = contents(disks_, top_);
  if (!bytes) return fail_with("the starting disk: ", bytes.error().message());
  for (uint64_t at = 0; at < size_; at += kSectorSize) {
    const Result<Token> token = recognise(Bytes(*bytes).subspan(at, kSectorSize), at / kSectorSize);
    if (!token) return fail_with("the starting disk: ", token.error().message());
    oracle_.set_initial(at / kSectorSize, *token);
  }
}

void LiveRun::add_bitmap() {
  SimReactor reactor(prng_.next());
  SimGate opener(reactor, disks_);
  const Result<void> added = reactor.finish(add_bitmap(reactor, opener));
  if (!added) return fail_with("no bitmap: ", added.error().message());
  for (auto& [name, each] : disks_) each.power_cut(CutChoice::all());
  const Result<Contents> bytes = contents(disks_, top_);
  if (!bytes) return fail_with("the starting disk: ", bytes.error().message());
  saved_.push_back(*bytes);
}

Task<void> LiveRun::add_bitmap(Reactor& reactor, FileOpener& opener) {
  const std::unique_ptr<Image> image =
      co_await Image::open(reactor, opener, top_.name, {.writable = true});
  Result<void> added =
      co_await image->add_bitmap({.name = "b", .granularity = uint64_t{512} << prng_.below(6)})
          .result();
  Result<void> closed = co_await image->close().result();
  co_await std::move(added);
  co_await std::move(closed);
}

}  // namespace byre::live
