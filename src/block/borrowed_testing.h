// SPDX-License-Identifier: Apache-2.0
/// Disks that outlive what a test puts on them, and remember or refuse what they were asked.
///
/// Invariant: closing a Borrowed closes nothing below.
/// Not here: faults drawn from a seed (sim/sim_disk.h), those that users order (filter_fault.h).
#pragma once

#include <cstdint>
#include <map>

#include "block/filter.h"

namespace byre {

class Borrowed : public Forwarder {
 public:
  using Forwarder::Forwarder;
  bool writable() const override { return true; }
  Task<void> close() override { co_return; }
  void abandon() override {}
};

/// What a ScriptedDisk does otherwise than the disk below, and what it has seen.  It belongs to the
/// test: an image may own and close the disk.
struct DiskScript {
  bool discards = true;  ///< Off: they succeed and do nothing.
  bool holes = true;     ///< Off: zero() is not supported.
  bool fail_flushes = false;
  uint64_t failing_write = 0;             ///< The number of the write that fails, from 1; 0: none.
  IoTag failing_writes_of = IoTag::none;  ///< All of these fail.
  uint64_t failing_zero = 0;              ///< The number of the zero() that fails, from 1.

  uint64_t writes = 0;
  std::map<IoTag, uint64_t> writes_of;
  uint64_t zeros = 0;
  uint64_t flushes = 0;
  bool written_before_flush = false;
};

class ScriptedDisk final : public Borrowed {
 public:
  ScriptedDisk(Device& below, DiskScript& script) : Borrowed(below), script_(script) {}
  Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    ++script_.writes;
    ++script_.writes_of[options.tag];
    script_.written_before_flush |= script_.flushes == 0;
    const bool fails_by_kind =
        options.tag != IoTag::none && options.tag == script_.failing_writes_of;
    if (script_.writes == script_.failing_write || fails_by_kind)
      co_await fail(Error(Errc::io, "it was to fail"));
    co_await below().write(offset, data, options);
  }
  Task<void> zero(uint64_t offset, uint64_t length, ZeroOptions options) override {
    ++script_.zeros;
    if (!script_.holes) co_await fail(unsupported("no holes here"));
    if (script_.zeros == script_.failing_zero) co_await fail(Error(Errc::io, "it was to fail"));
    co_await below().zero(offset, length, options);
  }
  Task<void> discard(uint64_t offset, uint64_t length, DiscardOptions options) override {
    if (script_.discards) co_await below().discard(offset, length, options);
  }
  Task<void> flush(IoTag tag) override {
    if (script_.fail_flushes) co_await fail(Error(Errc::io, "the disk is gone"));
    ++script_.flushes;
    co_await below().flush(tag);
  }

 private:
  DiskScript& script_;
};

}  // namespace byre
