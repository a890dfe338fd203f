// SPDX-License-Identifier: Apache-2.0
/// Undo journals, as hostile as they come: a small damaged image is repaired with a journal, then
/// the journal, and the image, are changed by what the fuzzer says, and the repair is undone.
///
/// An input is a list of changes of four bytes: where to (two bytes, of the journal or, with the
/// top bit, of the image), how (xor), and how many bytes; the first byte chooses the damage, the
/// second how much of the journal is left. What must hold: an undo is whole or not at all.  When it
/// says yes the image has the length and the metadata that it had; when it says no, it was not
/// touched.  A journal that is as it was always undoes; a second undo after the first finds nothing
/// to do.
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "block/memory.h"
#include "qcow2/ops/create.h"
#include "qcow2/repair/check.h"
#include "qcow2/repair/recover.h"
#include "qcow2/repair/undo.h"

namespace byre {
namespace {

constexpr uint64_t kCluster = 512;

Reactor& reactor() {
  static std::unique_ptr<Reactor> only = [] {
    Result<std::unique_ptr<Reactor>> made = make_reactor(ReactorKind::posix);
    if (!made) std::abort();
    return *std::move(made);
  }();
  return *only;
}

uint64_t get(const MemoryDevice& file, uint64_t at) {
  std::byte bytes[8];
  file.peek(at, bytes);
  return load_be<uint64_t>(bytes);
}
void put(MemoryDevice& file, uint64_t at, uint64_t value) {
  std::byte bytes[8];
  store_be(bytes, 0, value);
  file.poke(at, bytes);
}

/// An image of 16 clusters with three of data, and something wrong.
std::vector<std::byte> damaged_image(uint8_t kind) {
  MemoryDevice file(reactor());
  if (!reactor().run(create_image(file, {.size = 16 * kCluster, .cluster_size = kCluster}))) {
    std::abort();
  }
  const uint64_t l1 = get(file, 40);
  const uint64_t block = get(file, get(file, 48));
  const uint64_t l2 = round_up(file.size(), kCluster);
  constexpr uint64_t kCopiedBit = uint64_t{1} << 63;
  put(file, l1, l2 | kCopiedBit);
  const auto count = [&](uint64_t cluster, uint8_t refcount) {
    const std::byte bytes[2] = {std::byte{0}, std::byte{refcount}};
    file.poke(block + 2 * cluster, bytes);
  };
  count(l2 / kCluster, 1);
  for (uint64_t i = 1; i <= 3; ++i) {
    put(file, l2 + 8 * i, (l2 + i * kCluster) | kCopiedBit);
    file.poke(l2 + i * kCluster,
              std::vector<std::byte>(kCluster, std::byte{static_cast<uint8_t>(i)}));
    count(l2 / kCluster + i, 1);
  }
  const uint64_t last = l2 / kCluster + 3;
  if (kind & 1) count(last, 0);                                 // A refcount too small.
  if (kind & 2) count(last - 1, 7);                             // One too large.
  if (kind & 4) put(file, l2 + 8, (l2 + 2 * kCluster));         // Two owners, and an orphan.
  if (kind & 8) put(file, l2 + 8 * 3, l2 + 3 * kCluster);       // COPIED is missing.
  if (kind & 16) put(file, get(file, 48) + 8, kCluster * 999);  // A refcount block that is nowhere.
  return file.bytes();
}

void run(Bytes input) {
  const auto damage = std::to_integer<uint8_t>(input[0]);
  const std::vector<std::byte> start = damaged_image(damage);
  MemoryDevice image(reactor(), start, "image");
  MemoryDevice kept(reactor(), 0, "journal");
  Result<UndoJournal> journal = reactor().run(UndoJournal::begin(image, kept));
  BYRE_ASSERT(journal.has_value());
  {
    UndoDevice device(image, *journal);
    (void)reactor().run(apply_recovery(device, {.free_orphans = true}));
  }

  const std::vector<std::byte> whole = kept.bytes();
  bool journal_changed = false;
  bool image_changed = false;
  for (size_t at = 2; at + 4 <= input.size(); at += 4) {
    const auto where = load_be<uint16_t>(input, at);
    MemoryDevice& target = where & 0x8000 ? image : kept;
    const uint64_t offset = where & 0x7fff;
    const auto flip = input[at + 2];
    if (flip == std::byte{0} || offset >= target.size()) continue;
    const uint64_t length =
        std::min<uint64_t>(std::to_integer<uint64_t>(input[at + 3]) + 1, target.size() - offset);
    std::vector<std::byte> bytes(length);
    target.peek(offset, bytes);
    for (std::byte& byte : bytes) byte ^= flip;
    target.poke(offset, bytes);
    (where & 0x8000 ? image_changed : journal_changed) = true;
  }
  const auto part = std::to_integer<uint64_t>(input[1]);
  if (part != 0) {
    const uint64_t length = kept.size() * (256 - part) / 256;
    journal_changed |= length != kept.size();
    BYRE_ASSERT(reactor().run(kept.resize(length)).has_value());
  }

  const std::vector<std::byte> before = image.bytes();
  const Result<void> undone = reactor().run(undo_repair(image, kept));
  if (!undone) {
    BYRE_ASSERT(image.bytes() == before);
    BYRE_ASSERT(journal_changed || image_changed);
    return;
  }
  BYRE_ASSERT(image.size() == start.size());
  if (!image_changed) BYRE_ASSERT(image.bytes() == start);
  MemoryDevice then(reactor(), start, "then");
  const Result<uint64_t> wanted = reactor().run(fingerprint_of(then));
  const Result<uint64_t> found = reactor().run(fingerprint_of(image));
  BYRE_ASSERT(wanted.has_value() && found.has_value() && *wanted == *found);
  BYRE_ASSERT(reactor().run(undo_repair(image, kept)).has_value());
}

}  // namespace
}  // namespace byre

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2 || size > 4096) return 0;
  byre::run(byre::bytes_at(data, size));
  return 0;
}
