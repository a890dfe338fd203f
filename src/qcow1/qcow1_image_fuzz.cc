// SPDX-License-Identifier: Apache-2.0
/// The input is an image.  Whatever it says, opening, reading and asking for the status of its
/// first and last parts ends with an answer or an error.
#include <algorithm>
#include <cstdint>

#include "block/memory.h"
#include "qcow1/image.h"
#include "sim/sim_reactor.h"

using namespace byre;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  SimReactor reactor(1);
  const std::vector<std::byte> below(3000, std::byte{7});
  Result<std::unique_ptr<Qcow1Image>> opened =
      reactor.run(Qcow1Image::open(std::make_unique<MemoryDevice>(reactor, bytes_at(data, size)),
                                   std::make_unique<MemoryDevice>(reactor, below)));
  if (!opened) return 0;
  Qcow1Image& image = **opened;
  constexpr uint64_t kPart = 96 * KiB;
  const uint64_t length = std::min(image.size(), kPart);
  std::vector<std::byte> bytes(length);
  for (const uint64_t start : {uint64_t{0}, image.size() - length}) {
    static_cast<void>(reactor.run(image.read(start, bytes, IoTag::read_guest)));
    for (uint64_t at = start; at < start + length;) {
      const Result<Extent> extent = reactor.run(image.status(at, start + length - at));
      if (!extent) {
        at += image.header().cluster_size();
        continue;
      }
      BYRE_ASSERT(extent->length != 0 && extent->length <= start + length - at);
      const MutableBytes part = MutableBytes(bytes).first(extent->length);
      const Result<void> read = reactor.run(image.read(at, part, IoTag::read_guest));
      BYRE_ASSERT(!read || !extent->zero || is_zero(part));
      at += extent->length;
    }
  }
  BYRE_ASSERT(bool(reactor.run(image.close())));
  return 0;
}
