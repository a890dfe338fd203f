// SPDX-License-Identifier: Apache-2.0
/// What the clients of an incarnation do, and what the models expect of it.
#include <algorithm>
#include <bit>
#include <utility>

#include "qcow2/repair/check.h"
#include "run.h"

namespace byre {

std::vector<Oracle::Contents> Run::copy_since(uint64_t began) const {
  std::vector<Oracle::Contents> contents;
  for (const Window& window : windows_) {
    contents.push_back(oracle_.contents_since(began, window.offset, window.length));
  }
  return contents;
}

/// A snapshot that is there and not about to go.
std::optional<std::string> Run::choose(uint64_t which) const {
  std::vector<std::string> there;
  for (const auto& [name, copy] : copies_) {
    if (copy.certain && !copy.going && !copy.looked_at) there.push_back(name);
  }
  if (there.empty()) return std::nullopt;
  return there[which % there.size()];
}

/// Whatever goes on meanwhile: what the incarnation began with is found, and nothing else.
Task<Result<void>> Run::check(bool free_leaks, Process& process) {
  const CheckOptions options{.repair = free_leaks ? Repair::leaks : Repair::none,
                             .findings_max = UINT64_MAX};
  Result<CheckReport> report = co_await process.image->check_online(options).result();
  if (!report) {
    if (free_leaks) leaks_in_file_ = 0;  // Some may have gone.
    Result<void> failed = std::move(report).error();
    co_return failed;
  }
  // What the disk did not give is not known to be wrong, and what it leads to is not counted.
  const bool partly = report->check_errors != 0;
  uint64_t copied = 0;
  std::string first;
  for (const Finding& finding : report->findings) {
    if (finding.kind == FindingKind::copied && ++copied <= drift_) continue;
    if (finding.severity != Severity::note && first.empty()) first = finding.text;
  }
  const uint64_t leaks = report->leaks + report->leaks_fixed;
  const uint64_t planted = knobs_.aliased_host != 0 ? 2 : 0;  // Two owners, one reference.
  const uint64_t errors = report->corruptions - std::min(copied, drift_);
  // The file may have grown over those behind its end.
  if (errors > planted || (!partly && errors < planted) ||
      (!partly && (leaks < leaks_in_file_ || leaks > leaks_))) {
    fail_with("an online check found ", report->corruptions, " errors and ", leaks,
              " leaks; there were ", drift_ + planted, " and ", leaks_in_file_, " to ", leaks_,
              ": ", first);
  }
  leaks_ -= report->leaks_fixed;
  leaks_in_file_ -= std::min(leaks_in_file_, report->leaks_fixed);
  co_return Result<void>();
}

Task<Result<void>> Run::create_snapshot(Process& process) {
  const std::string name = cat("copy ", ++copies_made_);
  const uint64_t began = oracle_.begin_read();
  copies_[name] = {.began = began, .sizes = sizes_now(), .contents = {}};
  Result<void> done = co_await process.image->create_snapshot({.name = name}).result();
  Copy& copy = copies_.at(name);
  copy.sizes.merge(sizes_now());
  copy.contents = copy_since(began);
  copy.certain = done.has_value();
  oracle_.end_read(began);
  // Refused: nothing was changed.
  if (!done && done.error().code() == Errc::invalid) copies_.erase(name);
  if (!done) co_return done;
  // From here on it never changes: what a first look finds is what every later one must find (S1).
  copy.looked_at = true;
  std::vector<std::vector<std::byte>> data;
  const Result<void> read =
      co_await read_snapshot(process.reactor, process.opener, name, data).result();
  copy.looked_at = false;
  if (!read) co_return done;  // Another client's change moved the snapshot table under the look.
  for (size_t i = 0; i < windows_.size(); ++i) {
    const Result<void> right = Oracle::check_copy(windows_[i].offset, data[i], copy.contents[i]);
    if (!right) fail_with("snapshot ", quoted(name), ": ", right.error().message());
  }
  if (ok()) settle_copy(copy, data);
  co_return done;
}

Task<void> Run::read_snapshot(Reactor& reactor, FileOpener& opener, const std::string& name,
                              std::vector<std::vector<std::byte>>& data) {
  ImageOptions options = knobs_.image_options();
  options.writable = options.lock = false;
  options.snapshot = name;
  std::unique_ptr<Image> image = co_await Image::open(reactor, opener, "image", options);
  Result<void> read = co_await read_windows(*image, windows_, data).result();
  co_await image->close();
  co_await std::move(read);
}

void Run::settle_copy(Copy& copy, const std::vector<std::vector<std::byte>>& data) const {
  copy = {.certain = true, .going = copy.going, .sizes = copy.sizes, .contents = {}};
  for (size_t i = 0; i < windows_.size(); ++i) {
    Oracle::Contents& exact = copy.contents.emplace_back();
    for (uint64_t at = 0; at < data[i].size(); at += kSectorSize) {
      exact.push_back({*recognise(Bytes(data[i]).subspan(at, kSectorSize),
                                  (windows_[i].offset + at) / kSectorSize)});
    }
  }
}

Task<Result<void>> Run::apply_snapshot(uint64_t which, Process& process) {
  const std::optional<std::string> name = choose(which);
  if (!name) co_return Result<void>();
  const std::vector<Oracle::Contents> contents = copies_.at(*name).contents;
  const std::set<uint64_t> sizes = copies_.at(*name).sizes;
  sizes_wanted_.insert(sizes.begin(), sizes.end());
  std::vector<uint64_t> changes;
  for (size_t i = 0; i < windows_.size(); ++i) {
    changes.push_back(oracle_.begin_restore(windows_[i].offset, contents[i]));
  }
  const BitmapModel::Change recorded = bitmaps_.begin_change(0, knobs_.size);
  Result<void> done = co_await process.image->apply_snapshot({*name}).result();
  bitmaps_.end_change(recorded, done.has_value(), true);
  oracle_.set_time(process.reactor.now().ns);
  for (const uint64_t change : changes) oracle_.end_change(change, done.has_value(), true);
  if (done) {
    for (const uint64_t size : sizes) sizes_wanted_.erase(sizes_wanted_.find(size));
    size_ = process.image->size();
    if (!sizes.contains(size_))
      fail_with("snapshot ", quoted(*name), " was applied, and the disk has ", size_, " bytes");
  }
  co_return done;
}

Task<Result<void>> Run::delete_snapshot(uint64_t which, Process& process) {
  const std::optional<std::string> name = choose(which);
  if (!name) co_return Result<void>();
  copies_.at(*name).going = true;
  Result<void> done = co_await process.image->delete_snapshot({*name}).result();
  if (done) copies_.erase(*name);
  co_return done;
}

/// C5: those that must be there are, no others, and each holds what the disk held when it was made.
/// `settle`: what is found is the truth from now on.
Task<void> Run::look_at_snapshots(Reactor& reactor, FileOpener& opener,
                                  const std::vector<Snapshot>& list, bool settle) {
  std::set<std::string> found;
  for (const Snapshot& snapshot : list) {
    const auto known = copies_.find(snapshot.name);
    if (known == copies_.end() || !found.insert(snapshot.name).second) {
      co_await fail(corrupt("snapshot ", quoted(snapshot.name), " should not be there"));
    }
    Copy& copy = known->second;
    const std::vector<Oracle::Contents> contents =
        copy.contents.empty() ? copy_since(copy.began) : copy.contents;
    const uint64_t size = snapshot.disk_size.value_or(0);
    if (!copy.sizes.contains(size)) {
      co_await fail(corrupt("snapshot ", quoted(snapshot.name), " is of ", size, " bytes"));
    }
    if (settle) copy.sizes = {size};
    std::vector<std::vector<std::byte>> data;
    Result<void> right = co_await read_snapshot(reactor, opener, snapshot.name, data).result();
    for (size_t i = 0; right && i < windows_.size(); ++i) {
      right = Oracle::check_copy(windows_[i].offset, data[i], contents[i]);
    }
    co_await std::move(right).doing("snapshot ", quoted(snapshot.name));
    if (settle) {
      copy.going = false;
      settle_copy(copy, data);
    }
  }
  for (const auto& [name, copy] : copies_) {
    if (copy.certain && !copy.going && !found.contains(name)) {
      co_await fail(corrupt("snapshot ", quoted(name), " is gone"));
    }
  }
  if (settle) std::erase_if(copies_, [&](const auto& each) { return !found.contains(each.first); });
}

/// Is no sector of the range zeros?
bool Run::surely_holds_data(uint64_t offset, uint64_t length) {
  if (!knobs_.bitmaps || length == 0) return false;
  const uint64_t now = oracle_.begin_read();
  const Oracle::Contents contents = oracle_.contents_since(now, offset, length);
  oracle_.end_read(now);
  return std::none_of(contents.begin(), contents.end(), [](const std::vector<Token>& sector) {
    return std::find(sector.begin(), sector.end(), Token{0}) != sector.end();
  });
}

Task<Result<void>> Run::change_bitmap(const Step& step, Process& process) {
  Image& image = *process.image;
  if (step.kind == Step::Kind::add_bitmap) {
    if (bitmaps_.size() >= 3) co_return Result<void>();
    const std::string name = cat("bitmap ", ++bitmaps_made_);
    bitmaps_.begin_add(name, static_cast<uint32_t>(std::countr_zero(step.length)));
    Result<void> done =
        co_await image.add_bitmap({.name = name, .granularity = step.length}).result();
    bitmaps_.end_add(name, done.has_value(), oracle_.fresh_token());
    co_return done;
  }
  const std::string name = bitmaps_.choose(step.offset);
  if (name.empty()) co_return Result<void>();
  if (step.kind == Step::Kind::remove_bitmap) {
    bitmaps_.begin_remove(name);
    Result<void> done = co_await image.remove_bitmap(name).result();
    bitmaps_.end_remove(name, done.has_value());
    co_return done;
  }
  if (step.kind == Step::Kind::merge_bitmap) {
    const std::string other = bitmaps_.choose(step.length);
    BitmapModel::Merge merge = bitmaps_.begin_merge(name, other);
    Result<std::unique_ptr<DirtyBits>> bits = co_await image.read_bitmap(other).result();
    bitmaps_.read_for_merge(merge);
    Result<void> done;
    if (bits) {
      done = co_await image.merge_into_bitmap(name, **bits).result();
    } else {
      done = std::move(bits).error();
    }
    bitmaps_.end_merge(merge, done.has_value());
    co_return done;
  }
  const bool clears = step.kind == Step::Kind::clear_bitmap;
  const bool enable = !bitmaps_.enabled(name);
  bitmaps_.begin_edit(name, clears);
  Result<void> done;
  if (clears) {
    done = co_await image.clear_bitmap(name).result();
  } else {
    done = co_await image.enable_bitmap(name, enable).result();
  }
  bitmaps_.end_edit(name, done.has_value(), clears, enable, oracle_.fresh_token());
  co_return done;
}

/// What is cut off becomes zeros, as if it had been discarded.
std::vector<uint64_t> Run::begin_resize(uint64_t size) {
  std::vector<uint64_t> changes;
  for (const Window& window : windows_) {
    const uint64_t end = window.offset + window.length;
    const uint64_t start = std::max(window.offset, size);
    if (start < end) changes.push_back(oracle_.begin_change(start, end - start, 0));
  }
  return changes;
}

Task<Result<void>> Run::resize(uint64_t size, Preallocation mode, Process& process) {
  const std::vector<uint64_t> changes = begin_resize(size);
  const auto wanted = sizes_wanted_.insert(size);
  bitmaps_.all_may_change();
  // What a smaller disk loses is there until its size changes (C6); one at a time, as others could
  // have changed it in between.  An external data file has its end zeroed first (S3).
  ++resizes_;
  cut_off_.clear();
  if (resizes_ == 1 && size < size_ && knobs_.data_file == Knobs::DataFile::none) {
    cut_off_.insert(changes.begin(), changes.end());
    cut_to_ = size;
  }
  Result<void> done = co_await process.image->resize(size, mode).result();
  --resizes_;
  oracle_.set_time(process.reactor.now().ns);
  const bool nothing = !done && done.error().code() == Errc::no_space && !cut_off_.empty() &&
                       process.image->size() > size;
  cut_off_.clear();
  for (const uint64_t change : changes) {
    if (nothing) {
      oracle_.cancel_change(change);
    } else {
      oracle_.end_change(change, done.has_value(), true);
    }
  }
  if (done) {
    sizes_wanted_.erase(wanted);
    // Others may have changed it meanwhile.
    bitmaps_.resized(size_, size, process.image->size() == size && sizes_wanted_.empty());
    size_ = process.image->size();
  }
  co_return done;
}

/// Nothing that the disk or a snapshot holds may change, but for what a smaller disk loses.
Task<void> Run::amend(AmendOptions wanted, Process& process) {
  const SimReactor::Activity activity(process.reactor, "amend");
  const uint64_t size = wanted.size.value_or(size_);
  const std::vector<uint64_t> changes = size < size_ ? begin_resize(size) : std::vector<uint64_t>();
  sizes_wanted_.insert(size);
  amended_raw_ = wanted.data_file_raw == false;
  if (wanted.size) bitmaps_.all_may_change();
  Result<void> done = co_await process.image->amend(std::move(wanted)).result();
  oracle_.set_time(process.reactor.now().ns);
  const bool refused = !done && done.error().code() == Errc::invalid;
  for (const uint64_t change : changes) oracle_.end_change(change, done.has_value(), true);
  if (done) {
    bitmaps_.resized(size_, process.image->size(), true);
    size_ = process.image->size();
    sizes_wanted_.clear();
  }
  ++report_.requests;
  if (done || refused) co_return;
  ++report_.request_errors;
  if (options_.sink) options_.sink(cat("failed: amend: ", done.error().message()));
  if (!faulty_) fail_with("amend: ", done.error().message());
}

Task<void> Run::perform(const Step& step, Process& process) {
  Result<void> done;
  GuestRequest request(process.graph);
  Device* disk = process.image.get();
  if (step.is_request()) disk = co_await request.begin(*disk, step.own_entrance);
  switch (step.kind) {
    case Step::Kind::pause:
      co_await process.reactor.sleep(step.pause_ns);
      co_return;
    case Step::Kind::read: {
      std::vector<std::byte> data(step.length);
      const uint64_t read = oracle_.begin_read();
      done = co_await disk->read(step.offset, data, IoTag::read_guest).result();
      if (done) {
        Result<void> right = oracle_.end_read(read, step.offset, data);
        if (!right) fail_with(right.error().message());
      } else {
        oracle_.end_read(read);
      }
      break;
    }
    case Step::Kind::write: {
      const Token token = oracle_.fresh_token();
      std::vector<std::byte> data(step.length);
      fill_sectors(data, step.offset, token);
      const uint64_t change = oracle_.begin_change(step.offset, step.length, token);
      const BitmapModel::Change recorded = bitmaps_.begin_change(step.offset, step.length);
      done =
          co_await disk->write(step.offset, data, {.fua = step.fua, .compressed = step.compressed})
              .result();
      oracle_.set_time(process.reactor.now().ns);
      oracle_.end_change(change, done.has_value(), step.fua);
      // A FUA write is answered some time after it was made.
      bitmaps_.end_change(recorded, done.has_value(), step.fua);
      break;
    }
    case Step::Kind::zero: {
      const bool certain = surely_holds_data(step.offset, step.length);
      const BitmapModel::Change recorded = bitmaps_.begin_change(step.offset, step.length);
      const uint64_t change = oracle_.begin_change(step.offset, step.length, 0);
      done = co_await disk
                 ->zero(step.offset, step.length, {.may_unmap = step.may_unmap, .fua = step.fua})
                 .result();
      oracle_.set_time(process.reactor.now().ns);
      oracle_.end_change(change, done.has_value(), step.fua);
      bitmaps_.end_change(recorded, done.has_value() && certain, true);
      break;
    }
    case Step::Kind::discard: {
      // Whole clusters become zeros; the edges stay as they are.
      const uint64_t cluster = knobs_.cluster_size();
      const uint64_t start = round_up(step.offset, cluster);
      uint64_t end = round_down(step.offset + step.length, cluster);
      const bool at_end = step.offset + step.length == knobs_.size;
      // The end of the disk, perhaps, which moves.
      const bool may_be_end = knobs_.resizes && end != step.offset + step.length;
      if (at_end || may_be_end)
        end = std::min(round_up(step.offset + step.length, cluster), knobs_.size);
      const bool backed = knobs_.backing != Knobs::Backing::none;
      const bool certain =
          knobs_.discard == DiscardPolicy::unmap && (knobs_.version >= 3 || !backed) && !may_be_end;
      const uint64_t length = end > start ? end - start : 0;
      const bool changes = certain && length != 0 && surely_holds_data(start, length);
      const BitmapModel::Change recorded = bitmaps_.begin_change(start, length);
      const uint64_t change = oracle_.begin_change(start, length, 0, certain);
      done = co_await disk->discard(step.offset, step.length, {.fua = step.fua}).result();
      oracle_.set_time(process.reactor.now().ns);
      oracle_.end_change(change, done.has_value(), step.fua && certain);
      bitmaps_.end_change(recorded, done.has_value() && changes, true);
      break;
    }
    case Step::Kind::flush: {
      const uint64_t flush = oracle_.begin_flush();
      done = co_await disk->flush().result();
      if (done) oracle_.end_flush(flush);
      break;
    }
    case Step::Kind::resize:
      done = co_await resize(step.length, step.mode, process);
      break;
    case Step::Kind::create_snapshot:
      done = co_await create_snapshot(process);
      break;
    case Step::Kind::apply_snapshot:
      done = co_await apply_snapshot(step.offset, process);
      break;
    case Step::Kind::delete_snapshot:
      done = co_await delete_snapshot(step.offset, process);
      break;
    case Step::Kind::check:
      done = co_await check(step.may_unmap, process);
      break;
    case Step::Kind::add_bitmap:
    case Step::Kind::remove_bitmap:
    case Step::Kind::clear_bitmap:
    case Step::Kind::toggle_bitmap:
    case Step::Kind::merge_bitmap:
      done = co_await change_bitmap(step, process);
      break;
    case Step::Kind::drain:
    case Step::Kind::toggle_filter:
    case Step::Kind::replace_backing:
    case Step::Kind::toggle_snapshot:
    case Step::Kind::read_snapshot:
      done = co_await change_graph(step, process);
      break;
  }
  ++report_.requests;
  if (done) co_return;
  // Behind the end of a disk that has become smaller.
  if (knobs_.resizes && done.error().code() == Errc::invalid) co_return;
  // Refcounts that would not fit; a snapshot that another client has just deleted.
  if (step.is_of_snapshot() &&
      (done.error().code() == Errc::invalid || done.error().code() == Errc::not_found)) {
    co_return;
  }
  // Another client has just removed it; no room in the header, or a disk of 0 bytes.
  if (step.is_of_bitmap() &&
      (done.error().code() == Errc::invalid || done.error().code() == Errc::not_found ||
       done.error().code() == Errc::unsupported)) {
    co_return;
  }
  ++report_.request_errors;
  if (options_.sink) options_.sink(cat("failed: ", step.text(), ": ", done.error().message()));
  if (!faulty_) fail_with(step.text(), ": ", done.error().message());
}

}  // namespace byre
