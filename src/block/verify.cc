// SPDX-License-Identifier: Apache-2.0
#include "block/verify.h"

#include <algorithm>

#include "base/checked.h"
#include "base/units.h"
#include "coro/scope.h"
#include "io/buffer.h"

namespace byre {
namespace {

Task<void> keep_result(Task<void> task, Result<void>& result) {
  result = co_await std::move(task).result();
}

}  // namespace

Result<void> Verify::fits(const Device& test, const Device& reference) {
  if (test.size() != reference.size()) {
    return invalid("blkverify: ", quoted(test.name()), " has ", test.size(),
                   " bytes and its reference ", quoted(reference.name()), " has ", reference.size(),
                   ": resize one of them");
  }
  if (test.writable() != reference.writable()) {
    const Device& closed = test.writable() ? reference : test;
    return invalid("blkverify: only ", quoted(closed.name()),
                   " is read-only: open both the same way, or they would differ");
  }
  return {};
}

Result<std::unique_ptr<Verify>> Verify::make(Child test, Child reference) {
  if (Result<void> refused = fits(*test, *reference); !refused) {
    test.abandon();
    reference.abandon();
    return std::move(refused).error();
  }
  return std::unique_ptr<Verify>(new Verify(std::move(test), std::move(reference)));
}

Verify::Verify(Child test, Child reference)
    : Filter(std::move(test)), reference_(std::move(reference)), locks_(reactor().ready()) {
  reference_.belong_to(*this, Role::other);
}

uint32_t Verify::alignment() const {
  return std::max(below().alignment(), reference_->alignment());
}

bool Verify::new_space_is_zero() const {
  return below().new_space_is_zero() && reference_->new_space_is_zero();
}

Result<void> Verify::check(Where where) const {
  if (within(where.offset, where.length, size())) return {};
  return out_of_range(where.what, where.offset, where.length);
}

/// What the two results say together.
Result<void> Verify::agreed(Result<void> test, Result<void> reference, Where where) const {
  if (test.has_value() == reference.has_value()) return test;
  const Device& failed = test ? *reference_ : below();
  const Device& other = test ? below() : *reference_;
  Error error = std::move(test ? reference : test).error();
  return std::move(error).while_doing(
      cat("blkverify: ", where.what, " of ", where.length, " bytes at ", hex(where.offset),
          " failed on ", quoted(failed.name()), " and not on ", quoted(other.name())));
}

Task<void> Verify::both(Task<void> on_test, Task<void> on_reference, Where where) {
  Result<void> test;
  Result<void> reference;
  Scope scope(reactor().ready());
  scope.spawn(keep_result(std::move(on_reference), reference));
  test = co_await std::move(on_test).result();
  co_await scope.join();
  co_await agreed(std::move(test), std::move(reference), where);
}

Result<void> Verify::compare(Bytes test, Bytes reference, uint64_t offset) const {
  if (equal(test, reference)) return {};
  const auto [at, other] = std::mismatch(test.begin(), test.end(), reference.begin());
  return corrupt("blkverify: ", quoted(below().name()), " differs from its reference ",
                 quoted(reference_->name()), " at byte ",
                 hex(offset + static_cast<uint64_t>(at - test.begin())), ": ",
                 hex(std::to_integer<uint64_t>(*at)), ", not ",
                 hex(std::to_integer<uint64_t>(*other)));
}

Task<void> Verify::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  const Where where{.what = "read", .offset = offset, .length = data.size()};
  co_await check(where);
  if (data.empty()) co_return;
  RangeLock::Request lock(locks_, offset, offset + data.size(), RangeLock::Mode::shared);
  co_await lock;
  const Buffer buffer(data.size());
  co_await both(below().read(offset, data, options),
                reference_->read(offset, buffer.bytes(), options), where);
  co_await compare(data, buffer.bytes(), offset);
}

Task<void> Verify::write(uint64_t offset, Bytes data, WriteOptions options) {
  const Where where{.what = "write", .offset = offset, .length = data.size()};
  if (!can_grow()) co_await check(where);
  if (data.empty()) co_return;
  RangeLock::Request lock(locks_, offset, offset + data.size(), RangeLock::Mode::exclusive);
  co_await lock;
  WriteOptions plain = options;
  plain.compressed = false;
  if (!options.compressed) {
    co_await both(below().write(offset, data, options), reference_->write(offset, data, plain),
                  where);
    co_return;
  }
  // A device that does not compress has written nothing, and then nothing goes to the reference.
  Result<void> test = co_await below().write(offset, data, options).result();
  if (!test && test.error().code() == Errc::unsupported) co_await std::move(test);
  Result<void> reference = co_await reference_->write(offset, data, plain).result();
  co_await agreed(std::move(test), std::move(reference), where);
}

Task<void> Verify::zero(uint64_t offset, uint64_t length, ZeroOptions options) {
  const Where where{.what = "zero", .offset = offset, .length = length};
  co_await check(where);
  if (length == 0) co_return;
  RangeLock::Request lock(locks_, offset, offset + length, RangeLock::Mode::exclusive);
  co_await lock;
  ZeroOptions certain = options;
  certain.no_fallback = false;
  if (!options.no_fallback) {
    co_await both(below().zero(offset, length, options), reference_->zero(offset, length, certain),
                  where);
    co_return;
  }
  Result<void> test = co_await below().zero(offset, length, options).result();
  if (!test && test.error().code() == Errc::unsupported) co_await std::move(test);
  Result<void> reference = co_await reference_->zero(offset, length, certain).result();
  co_await agreed(std::move(test), std::move(reference), where);
}

Task<void> Verify::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  const Where where{.what = "discard", .offset = offset, .length = length};
  co_await check(where);
  if (length == 0) co_return;
  RangeLock::Request lock(locks_, offset, offset + length, RangeLock::Mode::exclusive);
  co_await lock;
  co_await both(below().discard(offset, length, {}), reference_->discard(offset, length, {}),
                where);
  const ZeroOptions known{.may_unmap = true, .fua = options.fua};
  co_await both(below().zero(offset, length, known), reference_->zero(offset, length, known),
                where);
}

Task<void> Verify::flush(IoTag tag) {
  co_await both(below().flush(tag), reference_->flush(tag),
                {.what = "flush", .offset = 0, .length = size()});
}

Task<Extent> Verify::status(uint64_t offset, uint64_t length) {
  co_await check({.what = "status", .offset = offset, .length = length});
  co_return Extent{.length = length};
}

Task<void> Verify::allocate(uint64_t offset, uint64_t length) {
  const Where where{.what = "allocate", .offset = offset, .length = length};
  co_await check(where);
  co_await both(below().allocate(offset, length), reference_->allocate(offset, length), where);
}

Task<void> Verify::resize(uint64_t size) {
  const uint64_t last = std::max(size, below().size());
  if (last == 0) co_return;
  RangeLock::Request lock(locks_, 0, last, RangeLock::Mode::exclusive);
  co_await lock;
  const uint64_t old = reference_->size();
  co_await reference_->resize(size);
  Result<void> test = co_await below().resize(size).result();
  if (test) co_return;
  Result<void> back = co_await reference_->resize(old).result();
  if (!back) {
    co_await std::move(back).doing("blkverify: ", quoted(reference_->name()),
                                   " cannot get its old size back after ", test.error().message());
  }
  co_await std::move(test);
}

Task<void> Verify::close() {
  Result<void> test = co_await Filter::close().result();
  Result<void> reference = co_await reference_.close().result();
  co_await std::move(test);
  co_await std::move(reference);
}

void Verify::abandon() {
  Filter::abandon();
  reference_.abandon();
}

}  // namespace byre
