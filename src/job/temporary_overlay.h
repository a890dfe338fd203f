// SPDX-License-Identifier: Apache-2.0
/// TemporaryOverlay: a disk that may be changed, and is as before when nobody has it open.
///
/// What is written goes to a qcow2 image in a file without a name (io/temporary_file.h) that lies
/// over the disk like any overlay.  The engine does it, and not OverlayDevice (block/overlay.h),
/// whose pages are memory: a machine that runs on such a disk may write more than there is; and its
/// map, VM state, size and zeros are those of an overlay.
/// Invariant: the disk below is only read.
/// Cost: that of an image, and space in the folder of the temporary file.
/// Not here: opening the disk below, which must not be opened for writing.
#pragma once

#include <string>
#include <utility>

#include "io/temporary_file.h"
#include "job/open.h"

namespace byre {

class TemporaryOverlay {
 public:
  static Result<TemporaryOverlay> make(std::string folder);
  /// `disk` becomes the overlay over what it was; an error closes it.  Again: over the same disk,
  /// after the overlay was closed, and what was written is there.  Of `options` counts how the
  /// overlay is used.
  Task<void> put_over(Disk& disk, FileOpener& opener, ImageOptions options);

 private:
  explicit TemporaryOverlay(TemporaryFile file) : file_(std::move(file)) {}
  Task<Child> open_over(Child& below, uint64_t size, FileOpener& opener, ImageOptions options);

  TemporaryFile file_;
  bool made_ = false;  ///< There is an image in it.
};

}  // namespace byre
