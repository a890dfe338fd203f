// SPDX-License-Identifier: Apache-2.0
/// What tests of images share: a gate that opens nothing, and a disk that outlives the image on it.
/// Tests that count, fail or ignore requests derive from the latter.
#pragma once

#include <memory>
#include <string>

#include "block/filter.h"
#include "io/gate.h"

namespace byre {

/// For images that name nothing.
class ClosedGate final : public Gate {
 public:
  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions) override {
    return Error(Errc::denied, cat("open ", quoted(name)));
  }
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view, std::string_view name,
                                                    FileOptions) override {
    return Error(Errc::denied, cat("open ", quoted(name)));
  }
};

/// The disk below, borrowed: closing it closes nothing.
class Borrowed : public Forwarder {
 public:
  using Forwarder::Forwarder;
  bool writable() const override { return true; }
  Task<void> close() override { co_return; }
  void abandon() override {}
};

}  // namespace byre
