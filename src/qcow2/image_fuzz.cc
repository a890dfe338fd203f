// SPDX-License-Identifier: Apache-2.0
/// A whole hostile image: opened for writing, read, written, discarded, closed.  Anything may fail;
/// nothing may crash, hang, or touch memory that is not ours.
#include "block/memory.h"
#include "qcow2/image.h"
#include "qcow2/image_testing.h"

namespace byre {
namespace {

Task<void> use(Child device, bool writable) {
  ClosedGate opener;
  std::unique_ptr<Image> image = co_await Image::open_over(std::move(device), opener,
                                                           {.writable = writable,
                                                            .without_backing = true,
                                                            .table_cache_size = 64 * KiB,
                                                            .host_size_max = 64 * MiB});
  std::vector<std::byte> data(96 * KiB, std::byte{0x77});
  const uint64_t size = image->size();
  const auto clipped = [&](uint64_t at) {
    return MutableBytes(data).first(std::min<uint64_t>(data.size(), size - at));
  };
  uint64_t at = 0;
  for (int i = 0; i < 12 && at < size; ++i) {
    (void)co_await image->read(at, clipped(at), IoTag::none).result();
    (void)co_await image->status(at, size - at).result();
    if (writable) {
      (void)co_await image
          ->write(at, Bytes(clipped(at)).first(std::min<size_t>(clipped(at).size(), 1000)), {})
          .result();
      (void)co_await image->zero(at, clipped(at).size(), {.may_unmap = i % 2 == 0}).result();
      if (i % 3 == 0) (void)co_await image->discard(at, clipped(at).size(), {}).result();
      if (i % 4 == 0) (void)co_await image->flush().result();
      (void)co_await image->write(at, clipped(at), {}).result();
    }
    at = i < 6 ? at + data.size() / 2 : at + size / 5;
  }
  Result<void> closed = co_await image->close().result();
  co_await std::move(closed);
}

}  // namespace
}  // namespace byre

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace byre;
  static const std::unique_ptr<Reactor> reactor = *make_reactor(ReactorKind::posix);
  for (const bool writable : {false, true}) {
    auto memory = std::make_unique<MemoryDevice>(*reactor, bytes_at(data, size));
    (void)reactor->run(use(std::move(memory), writable));
  }
  return 0;
}
