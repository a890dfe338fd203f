// SPDX-License-Identifier: Apache-2.0
/// What tests of images share: a opener that opens nothing, and disks that outlive the image on
/// them (block/borrowed_testing.h).
#pragma once

#include <memory>
#include <string>

#include "block/borrowed_testing.h"
#include "io/file_opener.h"

namespace byre {

/// For images that name nothing.
class ClosedGate final : public FileOpener {
 public:
  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions) override {
    return Error(Errc::denied, cat("open ", quoted(name)));
  }
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view, std::string_view name,
                                                    FileOptions) override {
    return Error(Errc::denied, cat("open ", quoted(name)));
  }
};

}  // namespace byre
