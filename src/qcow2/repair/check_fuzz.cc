// SPDX-License-Identifier: Apache-2.0
/// Whole images, as hostile as they come: load_image_header(), check_image(), repair, and again.
///
/// The last byte says how long the file claims to be: 2 to the power of it, 30 at most; the bytes
/// before it are its start.  What must hold: a check changes nothing; a repair leaves exactly what
/// it reports; a second one finds nothing to do; no guest data that are not also a table change; a
/// recovery is whole or not at all, and can be undone.
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "block/memory.h"
#include "qcow2/core/image_header.h"
#include "qcow2/repair/check.h"
#include "qcow2/repair/recover.h"
#include "qcow2/repair/undo.h"

namespace byre {
namespace {

constexpr size_t kImageMax = 64 * KiB;
constexpr uint32_t kSizeBitsMax = 30;

Reactor& reactor() {
  static std::unique_ptr<Reactor> only = [] {
    Result<std::unique_ptr<Reactor>> made = make_reactor(ReactorKind::posix);
    if (!made) std::abort();
    return *std::move(made);
  }();
  return *only;
}

bool same(const CheckReport& a, const CheckReport& b) {
  return a.corruptions == b.corruptions && a.leaks == b.leaks && a.check_errors == b.check_errors;
}

/// What is accepted is made whole, what is refused is not touched, and undo restores every byte.
void recover_and_undo(Bytes bytes, uint64_t size) {
  MemoryDevice file(reactor(), bytes, "fuzz");
  if (size > file.size() && !reactor().run(file.resize(size))) std::abort();
  const uint64_t length = file.size();
  const std::vector<std::byte> start(bytes.begin(), bytes.end());
  std::vector<std::byte> now(bytes.size());
  const Result<Recovery> plan = reactor().run(plan_recovery(file, {.free_orphans = true}));
  BYRE_ASSERT(plan.has_value());
  file.peek(0, now);
  BYRE_ASSERT(now == start && file.size() == length);
  if (!plan->refused.empty() || !plan->needed) return;

  MemoryDevice kept(reactor(), 0, "journal");
  Result<UndoJournal> journal = reactor().run(UndoJournal::begin(file, kept));
  BYRE_ASSERT(journal.has_value());
  UndoDevice device(file, *journal);
  const Result<Recovery> done = reactor().run(apply_recovery(device, {.free_orphans = true}));
  BYRE_ASSERT(done.has_value() && done->refused.empty());
  BYRE_ASSERT(done->left.corruptions == 0 && done->left.leaks == 0);
  BYRE_ASSERT(reactor().run(undo_repair(file, kept)).has_value());
  file.peek(0, now);
  BYRE_ASSERT(now == start && file.size() == length);
}

void check_and_repair(Bytes bytes, uint64_t size) {
  MemoryDevice file(reactor(), bytes, "fuzz");
  if (size > file.size() && !reactor().run(file.resize(size))) std::abort();
  const std::vector<std::byte> start(bytes.begin(), bytes.end());

  const Result<CheckReport> found = reactor().run(check_image(file, {.findings_max = 100}));
  std::vector<std::byte> now(bytes.size());
  file.peek(0, now);
  BYRE_ASSERT(now == start);
  if (!found) return;
  BYRE_ASSERT(found->check_errors == 0);

  recover_and_undo(bytes, size);
  CheckOptions all{.repair = Repair::refcounts, .findings_max = 100};
  const Result<CheckReport> repaired = reactor().run(check_image(file, all));
  BYRE_ASSERT(repaired.has_value());
  const Result<CheckReport> left = reactor().run(check_image(file, {}));
  BYRE_ASSERT(left.has_value() && same(*left, *repaired));
  BYRE_ASSERT(left->corruptions <= found->corruptions);

  // Leaks that were kept because of damage that is repaired now may go at the next time, and
  // nothing else.
  const uint64_t size_then = file.size();
  const Result<CheckReport> again = reactor().run(check_image(file, all));
  BYRE_ASSERT(again.has_value() && again->corruptions <= left->corruptions);
  if (left->leaks != 0) return;
  BYRE_ASSERT(same(*again, *left));
  BYRE_ASSERT(file.size() == size_then);
}

}  // namespace
}  // namespace byre

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > byre::kImageMax) return 0;
  const uint32_t bits = data[size - 1] % (byre::kSizeBitsMax + 1);
  byre::check_and_repair(byre::bytes_at(data, size - 1), uint64_t{1} << bits);
  return 0;
}
