// SPDX-License-Identifier: Apache-2.0
/// Devices over others.
///
/// A Filter passes every request on to its child; who changes some requests derives from it and
/// overrides those.  A Forwarder is a filter over a device that is somebody else's, and lives
/// longer. WriteThrough makes every change durable before it is answered. Cost: a virtual call, no
/// frame.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "block/graph.h"

namespace byre {

class Filter : public Device {
 public:
  explicit Filter(Child below) : below_(std::move(below)) {
    below_.belong_to(*this, Role::filtered);
  }

  Device& below() const { return *below_; }

  uint64_t size() const override { return below_->size(); }
  bool writable() const override { return below_->writable(); }
  uint32_t alignment() const override { return below_->alignment(); }
  uint32_t preferred_size() const override { return below_->preferred_size(); }
  Capabilities capabilities() const override { return below_->capabilities(); }
  const std::string& name() const override { return below_->name(); }
  Reactor& reactor() override { return below_->reactor(); }
  BYRE_CORO_WRAPPER Task<void> read(uint64_t offset, MutableBytes data,
                                    ReadOptions options) override {
    return below_->read(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    return below_->write(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    return below_->zero(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override {
    return below_->discard(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> flush(IoTag tag) override { return below_->flush(tag); }
  BYRE_CORO_WRAPPER Task<Extent> status(uint64_t offset, uint64_t length) override {
    return below_->status(offset, length);
  }
  BYRE_CORO_WRAPPER Task<void> allocate(uint64_t offset, uint64_t length) override {
    return below_->allocate(offset, length);
  }
  BYRE_CORO_WRAPPER Task<void> resize(uint64_t size) override { return below_->resize(size); }
  bool new_space_is_zero() const override { return below_->new_space_is_zero(); }
  bool can_grow() const override { return below_->can_grow(); }
  BYRE_CORO_WRAPPER Task<void> close() override { return below_.close(); }
  void abandon() override { below_.abandon(); }

 private:
  Child below_;
};

class Forwarder : public Filter {
 public:
  explicit Forwarder(Device& below) : Filter(Child::to(below)) {}
};

class WriteThrough final : public Filter {
 public:
  using Filter::Filter;
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    options.fua = true;
    return below().write(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    options.fua = true;
    return below().zero(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override {
    options.fua = true;
    return below().discard(offset, length, options);
  }
};

}  // namespace byre
