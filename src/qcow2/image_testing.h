// SPDX-License-Identifier: Apache-2.0
/// What tests of images share: a gate that opens nothing, and a disk that outlives the image on it.
/// Tests that count, fail or ignore requests derive from the latter.
#pragma once

#include <memory>
#include <string>

#include "block/device.h"
#include "io/gate.h"

namespace byre {

/// For images that name nothing.
class ClosedGate final : public Gate {
 public:
  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions) override {
    return Error(Errc::denied, cat("open ", quoted(name)));
  }
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view, std::string_view name,
                                                    FileOptions) override {
    return Error(Errc::denied, cat("open ", quoted(name)));
  }
};

/// The disk below, borrowed: closing it closes nothing.
class Borrowed : public Device {
 public:
  explicit Borrowed(Device& below) : below_(below) {}
  uint64_t size() const override { return below_.size(); }
  bool writable() const override { return true; }
  const std::string& name() const override { return below_.name(); }
  Reactor& reactor() override { return below_.reactor(); }
  BYRE_CORO_WRAPPER Task<void> read(uint64_t o, MutableBytes d, Mark m) override {
    return below_.read(o, d, m);
  }
  BYRE_CORO_WRAPPER Task<void> write(uint64_t o, Bytes d, WriteOptions p) override {
    return below_.write(o, d, p);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t o, uint64_t l, ZeroOptions p) override {
    return below_.zero(o, l, p);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t o, uint64_t l, DiscardOptions p) override {
    return below_.discard(o, l, p);
  }
  BYRE_CORO_WRAPPER Task<void> flush(Mark m) override { return below_.flush(m); }
  BYRE_CORO_WRAPPER Task<Extent> status(uint64_t o, uint64_t l) override {
    return below_.status(o, l);
  }
  BYRE_CORO_WRAPPER Task<void> resize(uint64_t s) override { return below_.resize(s); }
  bool new_space_is_zero() const override { return below_.new_space_is_zero(); }
  bool can_grow() const override { return below_.can_grow(); }
  Task<void> close() override { co_return; }

 protected:
  Device& below_;
};

}  // namespace byre
