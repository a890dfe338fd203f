// SPDX-License-Identifier: Apache-2.0
/// PointInTimeFilter: a Device over another, of which one moment can be kept: what chosen parts of
/// it held then can still be read, while it is written.
///
/// A View is such a moment.  While one lives, a write, a hole or a new end that touches a part
/// which the view wants waits until the old contents are in memory, once for each part.  Nothing
/// else ever waits, and nothing is copied when the view is made.
/// Invariant: View::read() gives the bytes of the moment at which it was made, whatever is written
/// meanwhile, for the parts that it wants; for others it gives what is there.  Who makes a view
/// sees to it that no write to a wanted part is under way.
/// A part that could not be kept (its read failed, or kept_max is reached) makes reads of it fail,
/// never the write.
/// Cost: without a view a branch, no frame; with one a question for each 4 KiB written.  Memory:
/// the wanted parts that were changed, kept_max at most.
/// Not here: who wants what (qcow2/ops/online_check.h).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "block/filter.h"
#include "coro/event.h"
#include "coro/gate.h"

namespace byre {

class PointInTimeFilter final : public Filter {
  struct Moment;

 public:
  using Filter::Filter;

  /// What the device held when this was made; one at a time.
  class View final : public Device {
   public:
    View(PointInTimeFilter& filter, uint64_t kept_max);
    ~View() override;
    /// From here on `wanted(from)` says what may still be read: the first such byte from `from` on,
    /// UINT64_MAX when there is none.  Until it is called nothing is kept: nobody may write.
    void keep(std::function<uint64_t(uint64_t from)> wanted);
    /// From here on each read takes a pass of `gate`.
    void read_through(Gate& gate) { gate_ = &gate; }
    uint64_t kept_bytes() const;

    uint64_t size() const override;
    bool writable() const override { return false; }
    const std::string& name() const override { return filter_.name(); }
    Reactor& reactor() override { return filter_.reactor(); }
    Task<void> read(uint64_t offset, MutableBytes data, ReadOptions options) override;
    Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override;
    Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override;
    Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override;
    Task<void> flush(IoTag tag) override;
    Task<Extent> status(uint64_t offset, uint64_t length) override;
    Task<void> close() override;

   private:
    PointInTimeFilter& filter_;
    Gate* gate_ = nullptr;
    std::shared_ptr<Moment> moment_;
  };

  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    if (!moment_) return below().write(offset, data, options);
    return write_keeping(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    if (!moment_) return below().zero(offset, length, options);
    return zero_keeping(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override {
    if (!moment_) return below().discard(offset, length, options);
    return discard_keeping(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> resize(uint64_t size) override {
    if (!moment_ || size >= below().size()) return below().resize(size);
    return shrink_keeping(size);
  }

 private:
  /// Parts are kept in pieces of this size.
  static constexpr uint64_t kPiece = 4096;
  struct Piece {
    explicit Piece(ReadyQueue& ready) : done(ready) {}
    std::vector<std::byte> bytes;
    bool lost = false;
    Event done;
  };
  struct Moment {
    uint64_t size = 0;
    uint64_t kept_max = 0;
    uint64_t kept = 0;
    std::function<uint64_t(uint64_t)> wanted;
    std::unordered_map<uint64_t, std::shared_ptr<Piece>> pieces;
  };
  Task<void> keep(uint64_t offset, uint64_t length);
  Task<void> fetch(std::shared_ptr<Moment> moment, uint64_t first,
                   std::vector<std::shared_ptr<Piece>> run);
  Task<void> write_keeping(uint64_t offset, Bytes data, WriteOptions options);
  Task<void> zero_keeping(uint64_t offset, uint64_t length, ZeroOptions options);
  Task<void> discard_keeping(uint64_t offset, uint64_t length, DiscardOptions options);
  Task<void> shrink_keeping(uint64_t size);

  std::shared_ptr<Moment> moment_;  ///< Of the view that lives, if one does.
};

}  // namespace byre
