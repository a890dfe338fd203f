// SPDX-License-Identifier: Apache-2.0
#include "daemon/bitmap_runs.h"

#include <cerrno>
#include <memory>
#include <optional>
#include <utility>

#include "export/nbd_dirty_context.h"
#include "qcow2/image.h"

namespace byre {

namespace {

/// A bitmap of an image: its bits as they are now while it records, else as they were.
class BitmapRuns final : public nbd::DirtyRuns {
 public:
  BitmapRuns(const Image& image, std::string name, std::unique_ptr<DirtyBits> bits)
      : image_(image), name_(std::move(name)), bits_(std::move(bits)) {}

  std::optional<std::pair<uint64_t, uint64_t>> next_run(uint64_t from) const override {
    const DirtyBits* now = bits_.get();
    for (const auto& slot : image_.bitmaps()) {
      if (slot->entry.name == name_ && slot->bits) now = slot->bits.get();
    }
    return now->next_run(from);
  }

 private:
  const Image& image_;
  std::string name_;
  std::unique_ptr<DirtyBits> bits_;
};

}  // namespace

Task<nbd::ExportContext> context_of(Image* image, std::string name) {
  Result<std::unique_ptr<DirtyBits>> loaded =
      Error(Errc::not_found, cat("Bitmap '", name, "' is not found"), ENOENT);
  if (image) {
    Result<std::unique_ptr<DirtyBits>> read = co_await image->read_bitmap(name).result();
    if (read || read.error().code() != Errc::not_found) loaded = std::move(read);
  }
  std::unique_ptr<DirtyBits> bits = co_await std::move(loaded);
  co_return nbd::dirty_bitmap_context(name,
                                      std::make_shared<BitmapRuns>(*image, name, std::move(bits)));
}

}  // namespace byre
