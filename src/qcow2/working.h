// SPDX-License-Identifier: Apache-2.0
/// Image::Working: counts a request while it runs, so that close() can wait for all of them; those
/// that come after are refused.
#pragma once

#include "qcow2/image.h"

namespace byre {

class Image::Working {
 public:
  explicit Working(Image& image) : image_(image) { ++image_.working_; }
  Working(const Working&) = delete;
  ~Working() {
    if (--image_.working_ == 0 && image_.closing_) image_.idle_.notify();
  }
  /// Fails when the image is closing.
  Result<void> begin() const {
    if (image_.closing_)
      return Error(Errc::cancelled, cat(quoted(image_.name()), " is being closed"), ESHUTDOWN);
    return {};
  }

 private:
  Image& image_;
};

}  // namespace byre
