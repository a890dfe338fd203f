// SPDX-License-Identifier: Apache-2.0
#include "job/temporary_overlay.h"

#include "block/raw.h"
#include "qcow2/ops/create.h"

namespace byre {

Result<TemporaryOverlay> TemporaryOverlay::make(std::string folder) {
  BYRE_TRY(file, TemporaryFile::make(std::move(folder)));
  return TemporaryOverlay(std::move(file));
}

Task<Child> TemporaryOverlay::open_over(Child& below, uint64_t size, FileOpener& opener,
                                        ImageOptions options) {
  Reactor& reactor = below->reactor();
  if (!made_) {
    std::unique_ptr<File> file = co_await file_.open(reactor, true);
    RawDevice empty(std::move(file), {.growable = true});
    co_await create_image(empty, {.size = size});
    co_await empty.close();
    made_ = true;
  }
  const bool writable = options.writable;
  std::unique_ptr<File> file = co_await file_.open(reactor, writable);
  Child storage = std::make_unique<RawDevice>(std::move(file), RawOptions{.growable = writable});
  co_return Child(
      co_await Image::open_over(std::move(storage), opener, std::move(options), std::move(below)));
}

Task<void> TemporaryOverlay::put_over(Disk& disk, FileOpener& opener, ImageOptions options) {
  options.direct = false;  // Of the file below; the temporary one is the page cache's.
  options.lock = false;
  options.share_lock = false;
  options.scan = ImageOptions::Scan::never;  // It was made here.
  const uint64_t size = disk.size();
  Result<Child> overlay =
      co_await open_over(disk.device, size, opener, std::move(options)).result();
  if (!overlay) {
    if (disk.device) {
      (void)co_await disk.device.close().result();
      disk.device.reset();
    }
    co_await fail(std::move(overlay).error().while_doing("temporary overlay"));
  }
  disk.device = *std::move(overlay);
  disk.image = static_cast<Image*>(disk.device.get());
  disk.format = DiskFormat::qcow2;
  disk.guessed = false;
  disk.without_backing = false;
}

}  // namespace byre
