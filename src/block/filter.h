// SPDX-License-Identifier: Apache-2.0
/// Devices over others.
///
/// Forwarder passes every request on to a device that is somebody else's; Filter to one of its own.
/// Who changes some requests derives from one of them and overrides those.
/// WriteThrough makes every change durable before it is answered.
/// Cost: a virtual call, no frame.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "block/device.h"

namespace byre {

class Forwarder : public Device {
 public:
  explicit Forwarder(Device& below) : below_(below) {}

  Device& below() { return below_; }

  uint64_t size() const override { return below_.size(); }
  bool writable() const override { return below_.writable(); }
  uint32_t alignment() const override { return below_.alignment(); }
  uint32_t preferred_size() const override { return below_.preferred_size(); }
  const std::string& name() const override { return below_.name(); }
  Reactor& reactor() override { return below_.reactor(); }
  BYRE_CORO_WRAPPER Task<void> read(uint64_t offset, MutableBytes data, IoTag tag) override {
    return below_.read(offset, data, tag);
  }
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    return below_.write(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    return below_.zero(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override {
    return below_.discard(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> flush(IoTag tag) override { return below_.flush(tag); }
  BYRE_CORO_WRAPPER Task<Extent> status(uint64_t offset, uint64_t length) override {
    return below_.status(offset, length);
  }
  BYRE_CORO_WRAPPER Task<void> allocate(uint64_t offset, uint64_t length) override {
    return below_.allocate(offset, length);
  }
  BYRE_CORO_WRAPPER Task<void> resize(uint64_t size) override { return below_.resize(size); }
  bool new_space_is_zero() const override { return below_.new_space_is_zero(); }
  bool can_grow() const override { return below_.can_grow(); }
  BYRE_CORO_WRAPPER Task<void> close() override { return below_.close(); }
  void abandon() override { below_.abandon(); }

 protected:
  Device& below_;
};

class Filter : public Forwarder {
 public:
  explicit Filter(std::unique_ptr<Device> below) : Forwarder(*below), owned_(std::move(below)) {}

 private:
  std::unique_ptr<Device> owned_;
};

class WriteThrough final : public Filter {
 public:
  using Filter::Filter;
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    options.fua = true;
    return below_.write(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    options.fua = true;
    return below_.zero(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override {
    options.fua = true;
    return below_.discard(offset, length, options);
  }
};

}  // namespace byre
