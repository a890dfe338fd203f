// SPDX-License-Identifier: Apache-2.0
#include "daemon/bitmaps.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "block/entrance.h"
#include "daemon/bitmap_runs.h"
#include "daemon/nodes.h"
#include "export/nbd_dirty_context.h"

namespace byre {

namespace {

constexpr uint64_t kPartBytes = 4096;
constexpr size_t kLooseMax = 1024;
constexpr size_t kNameMax = 1023;

Error not_found(const std::string& name) {
  return Error(Errc::not_found, cat("Dirty bitmap '", name, "' not found"));
}

std::shared_ptr<LooseBitmap> find_loose(const NamedNode& node, const std::string& name) {
  const LooseBitmaps& all = node.bitmaps.loose;
  const auto found = std::ranges::find_if(all, [&](const auto& one) { return one->name == name; });
  return found == all.end() ? nullptr : *found;
}

const BitmapSlot* find_stored(const NamedNode& node, const std::string& name) {
  const Image* const image = node.image();
  if (!image) return nullptr;
  for (const auto& slot : image->bitmaps()) {
    if (slot->entry.name == name) return slot.get();
  }
  return nullptr;
}

uint64_t default_granularity(const NamedNode& node) {
  const Image* const image = node.image();
  return image ? std::clamp<uint64_t>(image->geometry().cluster_size(), 4 * KiB, 64 * KiB)
               : 64 * KiB;
}

std::unique_ptr<DirtyBits> copy_of(const DirtyBits& bits) {
  auto copy = std::make_unique<DirtyBits>(bits.size(), bits.granularity_bits(), kPartBytes);
  copy->merge(bits);
  return copy;
}

/// Puts the filter over the node if something records, and takes it away if nothing does.
Task<void> watch(NamedNode& node) {
  NodeBitmaps& bitmaps = node.bitmaps;
  const bool wanted =
      bitmaps.threshold.offset != 0 ||
      std::ranges::any_of(bitmaps.loose, [](const auto& one) { return one->recording; });
  if (wanted && !bitmaps.recorder) {
    Device& below = node.device();
    Child filter(std::make_unique<BitmapRecorder>(Child::to(below), bitmaps));
    Result<void> inserted = co_await insert_above(*below.node(), filter).result();
    if (!inserted) {
      filter.abandon();
      co_await std::move(inserted);
    }
    bitmaps.recorder = filter.hold();  // It uses nothing by itself.
  } else if (!wanted && bitmaps.recorder) {
    co_await remove_filter(bitmaps.recorder);
    co_await bitmaps.recorder.close();
    bitmaps.recorder.reset();
  }
}

/// An operation on the image of a node is a request like others: the graph stays as it is.
template <class Work>
Task<void> on_image(NamedNode& node, Work work) {
  Entrance entrance(Child::to(node.entry()));
  const Entrance::Pass pass = co_await entrance.enter();
  co_await work(*node.image());
}

Result<void> check_writable(const NamedNode& node, const std::string& name) {
  if (node.image()->writable()) return {};
  return Error(Errc::read_only, cat("Bitmap '", name, "' is readonly and cannot be modified"));
}

Result<void> check_stored(const NamedNode& node, const std::string& name) {
  const BitmapSlot* const slot = find_stored(node, name);
  if (!slot) return not_found(name);
  if (slot->state != BitmapState::usable) {
    return invalid("Bitmap '", name, "' is inconsistent and cannot be used: ", slot->reason,
                   "; remove it with block-dirty-bitmap-remove");
  }
  return check_writable(node, name);
}

/// Loose bits as a client of NBD sees them: as they are when it asks.
class LooseRuns final : public nbd::DirtyRuns {
 public:
  explicit LooseRuns(std::shared_ptr<LooseBitmap> bitmap) : bitmap_(std::move(bitmap)) {}
  std::optional<std::pair<uint64_t, uint64_t>> next_run(uint64_t from) const override {
    return bitmap_->bits.next_run(from);
  }

 private:
  std::shared_ptr<LooseBitmap> bitmap_;
};

}  // namespace

void BitmapRecorder::record(uint64_t offset, uint64_t length) {
  for (const auto& bitmap : bitmaps_.loose) {
    if (bitmap->recording && length != 0) bitmap->bits.set_bytes(offset, length);
  }
}

void BitmapRecorder::pass(uint64_t end) {
  if (bitmaps_.threshold.offset == 0 || end <= bitmaps_.threshold.offset) return;
  std::exchange(bitmaps_.threshold, {}).passed(end);
}

Task<void> set_write_threshold(NamedNode& node, WriteThreshold wanted) {
  WriteThreshold before = std::exchange(node.bitmaps.threshold, std::move(wanted));
  Result<void> watched = co_await watch(node).result();
  if (watched) co_return;
  node.bitmaps.threshold = std::move(before);
  co_await std::move(watched);
}

Task<void> add_bitmap(NamedNode& node, NewNodeBitmap wanted, const DirtyBits* dirty) {
  if (wanted.name.empty()) co_await fail(invalid("Bitmap name cannot be empty"));
  if (wanted.name.size() > kNameMax) co_await fail(invalid("Bitmap name too long"));
  const uint64_t granularity = wanted.granularity.value_or(default_granularity(node));
  if (granularity < kSectorSize || !std::has_single_bit(granularity)) {
    co_await fail(invalid("Granularity must be power of 2 and at least 512"));
  }
  if (granularity > 2 * GiB) co_await fail(invalid("Granularity must be at most 2147483648"));
  if (find_loose(node, wanted.name) || find_stored(node, wanted.name)) {
    co_await fail(Error(Errc::exists, cat("Bitmap already exists: ", wanted.name)));
  }
  if (node.bitmaps.loose.size() >= kLooseMax) {
    co_await fail(invalid("There are ", kLooseMax, " bitmaps on node '", node.name, "' already"));
  }
  if (!wanted.persistent) {
    const auto bits = static_cast<uint32_t>(std::countr_zero(granularity));
    auto made = std::make_shared<LooseBitmap>(
        wanted.name, DirtyBits(node.device().size(), bits, kPartBytes), wanted.recording);
    if (dirty) made->bits.merge(*dirty);
    node.bitmaps.loose.push_back(std::move(made));
    Result<void> watched = co_await watch(node).result();
    if (!watched) {
      node.bitmaps.loose.pop_back();
      co_await std::move(watched);
    }
    co_return;
  }
  if (!node.image()) {
    co_await fail(
        unsupported("Can't store persistent bitmaps to ", node.name, ": Operation not supported"));
  }
  co_await check_writable(node, wanted.name);
  const NewBitmap stored{
      .name = wanted.name, .granularity = granularity, .enabled = wanted.recording, .dirty = dirty};
  const auto work = [&stored](Image& image) -> Task<void> { co_await image.add_bitmap(stored); };
  co_await on_image(node, work);
}

Task<void> remove_bitmap(NamedNode& node, std::string name) {
  co_await check_bitmap_free(node, name);
  if (const std::shared_ptr<LooseBitmap> loose = find_loose(node, name)) {
    std::erase(node.bitmaps.loose, loose);
    co_await watch(node);
    co_return;
  }
  if (!find_stored(node, name)) co_await fail(not_found(name));
  co_await check_writable(node, name);
  const auto work = [&name](Image& image) -> Task<void> { co_await image.remove_bitmap(name); };
  co_await on_image(node, work);
}

Task<void> clear_bitmap(NamedNode& node, std::string name) {
  co_await check_bitmap_free(node, name);
  if (const std::shared_ptr<LooseBitmap> loose = find_loose(node, name)) {
    loose->bits.fill(false);
    co_return;
  }
  co_await check_stored(node, name);
  const auto work = [&name](Image& image) -> Task<void> { co_await image.clear_bitmap(name); };
  co_await on_image(node, work);
}

Task<void> enable_bitmap(NamedNode& node, std::string name, bool recording) {
  co_await check_bitmap_free(node, name);
  if (const std::shared_ptr<LooseBitmap> loose = find_loose(node, name)) {
    loose->recording = recording;
    co_await watch(node);
    co_return;
  }
  co_await check_stored(node, name);
  const auto work = [&](Image& image) -> Task<void> {
    co_await image.enable_bitmap(name, recording);
  };
  co_await on_image(node, work);
}

Task<void> merge_bitmap(NamedNode& node, std::string name, const DirtyBits& from) {
  co_await check_bitmap_free(node, name);
  if (from.size() != node.device().size()) {
    co_await fail(invalid("Bitmaps are of different sizes (destination size is ",
                          node.device().size(), ", source size is ", from.size(),
                          ") and can't be merged"));
  }
  if (const std::shared_ptr<LooseBitmap> loose = find_loose(node, name)) {
    loose->bits.merge(from);
    co_return;
  }
  co_await check_stored(node, name);
  const auto work = [&](Image& image) -> Task<void> {
    co_await image.merge_into_bitmap(name, from);
  };
  co_await on_image(node, work);
}

Result<BitmapFacts> look_at_bitmap(NamedNode& node, const std::string& name) {
  if (const std::shared_ptr<LooseBitmap> loose = find_loose(node, name)) {
    return BitmapFacts{.persistent = false,
                       .recording = loose->recording,
                       .granularity_bits = loose->bits.granularity_bits()};
  }
  const BitmapSlot* const slot = find_stored(node, name);
  if (!slot) return not_found(name);
  return BitmapFacts{.persistent = true,
                     .recording = slot->tracks(),
                     .granularity_bits = slot->entry.granularity_bits};
}

Task<std::unique_ptr<DirtyBits>> bits_of(NamedNode& node, std::string name) {
  if (const std::shared_ptr<LooseBitmap> loose = find_loose(node, name)) {
    co_return copy_of(loose->bits);
  }
  if (!find_stored(node, name)) co_return not_found(name);
  std::unique_ptr<DirtyBits> bits = co_await node.image()->read_bitmap(name);
  co_return std::move(bits);
}

Result<void> check_bitmap_free(const NamedNode& node, const std::string& name) {
  const auto found = node.bitmaps.users.find(name);
  if (found == node.bitmaps.users.end()) return {};
  return Error(Errc::busy, cat("Bitmap '", name,
                               "' is currently in use by another operation and cannot be used"));
}

Task<qmp::Json> describe_bitmaps(NamedNode& node) {
  qmp::Json all = qmp::Json::array();
  const auto add = [&](const std::string& name, bool recording, bool persistent, uint32_t bits,
                       uint64_t count) {
    all.push_back({{"name", name},
                   {"recording", recording},
                   {"persistent", persistent},
                   {"busy", node.bitmaps.users.contains(name)},
                   {"granularity", uint64_t{1} << bits},
                   {"count", count}});
  };
  for (const auto& loose : node.bitmaps.loose) {
    add(loose->name, loose->recording, false, loose->bits.granularity_bits(),
        loose->bits.dirty_bytes());
  }
  if (!node.image()) co_return std::move(all);
  const BitmapList stored = node.image()->bitmaps();
  for (const auto& slot : stored) {
    const bool usable = slot->state == BitmapState::usable;
    uint64_t count = 0;
    if (slot->bits) {
      count = slot->bits->dirty_bytes();
    } else if (usable) {
      const Result<std::unique_ptr<DirtyBits>> read =
          co_await node.image()->read_bitmap(slot->entry.name).result();
      if (read) count = (*read)->dirty_bytes();
    }
    add(slot->entry.name, slot->tracks(), true, slot->entry.granularity_bits, count);
    if (!usable) all.back()["inconsistent"] = true;
  }
  co_return std::move(all);
}

Task<nbd::ExportContext> use_bitmap(NamedNode& node, std::string name) {
  nbd::ExportContext context;
  if (const std::shared_ptr<LooseBitmap> loose = find_loose(node, name)) {
    context = nbd::dirty_bitmap_context(name, std::make_shared<LooseRuns>(loose));
  } else {
    context = co_await context_of(node.image(), name);
  }
  ++node.bitmaps.users[name];
  co_return std::move(context);
}

void release_bitmap(NamedNode& node, const std::string& name) {
  const auto found = node.bitmaps.users.find(name);
  if (found != node.bitmaps.users.end() && --found->second == 0) node.bitmaps.users.erase(found);
}

void resize_loose(NamedNode& node, uint64_t size) {
  for (const auto& loose : node.bitmaps.loose) loose->bits = loose->bits.resized(size);
}

Task<void> drop_bitmaps(NamedNode& node) {
  for (const auto& loose : node.bitmaps.loose) loose->recording = false;
  node.bitmaps.threshold = {};
  co_await watch(node);
  node.bitmaps.loose.clear();
}

}  // namespace byre
