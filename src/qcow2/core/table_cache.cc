// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/table_cache.h"

#include <algorithm>

namespace byre {

TableCache::TableCache(ReadyQueue& ready, Device& file, uint64_t cluster_size, uint64_t bytes)
    : ready_(ready),
      file_(file),
      slice_size_(std::min<uint64_t>(cluster_size, 4 * KiB)),
      slots_max_(std::max<uint64_t>(2, bytes / slice_size_)),
      room_(ready) {}

TableCache::~TableCache() = default;

TableCache::Ref::Ref(TableCache& cache, Slot& slot) : cache_(&cache), slot_(&slot) {
  ++slot.refs;
  slot.recent = true;
}

void TableCache::Ref::release() {
  if (!slot_) return;
  if (--slot_->refs == 0 && cache_->room_.has_waiters()) cache_->room_.notify();
  slot_ = nullptr;
}

Bytes TableCache::Ref::bytes() const { return {slot_->bytes.get(), cache_->slice_size_}; }
MutableBytes TableCache::Ref::mutable_bytes() { return {slot_->bytes.get(), cache_->slice_size_}; }

TableCache::Ref TableCache::find(HostOffset at) {
  const auto it = index_.find(at);
  if (it == index_.end() || it->second->state != Slot::State::ready) return {};
  return Ref(*this, *it->second);
}

TableCache::Slot* TableCache::free_slot() {
  if (slots_.size() < slots_max_) {
    slots_.push_back(std::make_unique<Slot>(ready_));
    slots_.back()->bytes = std::make_unique<std::byte[]>(slice_size_);
    return slots_.back().get();
  }
  // The clock: a slot that was used since the hand last passed gets one more round.
  for (size_t step = 0; step < 2 * slots_.size(); ++step) {
    Slot& slot = *slots_[hand_];
    hand_ = (hand_ + 1) % slots_.size();
    if (slot.refs != 0) continue;
    if (std::exchange(slot.recent, false)) continue;
    if (slot.indexed) index_.erase(slot.at);
    slot.indexed = false;
    return &slot;
  }
  return nullptr;
}

BYRE_CORO_WRAPPER Task<TableCache::Ref> TableCache::get(HostOffset at) {
  return get(at, slice_size_);
}

Task<TableCache::Ref> TableCache::get(HostOffset at, uint64_t length) {
  for (;;) {
    const auto it = index_.find(at);
    if (it != index_.end()) {
      Ref ref(*this, *it->second);  // Before the wait: a slot in use is not evicted.
      Slot& slot = *it->second;
      if (slot.state == Slot::State::loading) co_await slot.loaded.wait();
      if (slot.state == Slot::State::ready) co_return std::move(ref);
      continue;
    }
    std::vector<Ref> slices = begin_load(at, length);
    if (slices.empty()) {
      co_await room_.wait();
      continue;  // Another may have loaded it meanwhile.
    }
    ++loads_;
    Result<void> read = co_await read_slices(at, slices).result();
    // What fails further on is no fault of this slice.
    const bool is_alone = slices.size() == 1;
    for (size_t i = 1; i < slices.size(); ++i) end_load(*slices[i].slot_, read.has_value());
    slices.resize(1);
    if (!read && !is_alone) read = co_await read_slices(at, slices).result();
    end_load(*slices[0].slot_, read.has_value());
    if (!read) co_return std::move(read).error().while_doing(cat("L2 table slice at ", at));
    co_return std::move(slices[0]);
  }
}

std::vector<TableCache::Ref> TableCache::begin_load(HostOffset at, uint64_t length) {
  std::vector<Ref> slices;
  const uint64_t count = std::clamp<uint64_t>(length / slice_size_, 1, slots_max_ / 2);
  while (slices.size() < count) {
    const HostOffset next = at + slices.size() * slice_size_;
    Slot* slot = index_.contains(next) ? nullptr : free_slot();
    if (!slot) break;
    slot->at = next;
    slot->indexed = true;
    slot->state = Slot::State::loading;
    slot->loaded.reset();
    index_[next] = slot;
    slices.push_back(Ref(*this, *slot));
  }
  return slices;
}

Task<void> TableCache::read_slices(HostOffset at, std::span<Ref> slices) {
  if (slices.size() == 1) {
    co_await file_.read(at.value, slices[0].mutable_bytes(), IoTag::l2_load);
    co_return;
  }
  std::vector<iovec> pieces;
  for (Ref& slice : slices) pieces.push_back(piece_of(slice.bytes()));
  co_await file_.read_pieces(at.value, pieces, IoTag::l2_load);
}

void TableCache::end_load(Slot& slot, bool loaded) {
  slot.state = loaded ? Slot::State::ready : Slot::State::failed;
  if (!loaded && slot.indexed) {
    index_.erase(slot.at);
    slot.indexed = false;
  }
  slot.loaded.set();
}

void TableCache::put(HostOffset at, Bytes bytes) {
  for (uint64_t done = 0; done < bytes.size() && slots_.size() < slots_max_; done += slice_size_) {
    if (index_.contains(at + done)) continue;
    Slot& slot = *free_slot();
    slot.at = at + done;
    slot.indexed = true;
    slot.state = Slot::State::ready;
    copy(MutableBytes(slot.bytes.get(), slice_size_), bytes.subspan(done, slice_size_));
    index_[slot.at] = &slot;
  }
}

void TableCache::forget(HostOffset at, uint64_t length) {
  for (uint64_t done = 0; done < length; done += slice_size_) {
    const auto it = index_.find(at + done);
    if (it == index_.end()) continue;
    it->second->indexed = false;  // Its users keep their image; nobody finds it again.
    index_.erase(it);
  }
}

void TableCache::forget_all() {
  for (auto& [at, slot] : index_) slot->indexed = false;
  index_.clear();
}

}  // namespace byre
