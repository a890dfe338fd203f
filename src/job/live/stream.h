// SPDX-License-Identifier: Apache-2.0
/// Stream: what an image in use shows of the disks below it, down to a base, becomes its own; then
/// the base lies directly below it, or nothing does.
///
///   1. A CopyOnRead filter enters above the image.
///   2. The image is filled cluster by cluster, each under the filter's lock: a guest's write that
///      came first wins (docs/engine.md, J2).  Where a disk between is shorter than the base, the
///      image gets zeros.
///   3. The image is flushed, and the base goes below it, by name too (Image::replace_backing()).
///      The filter leaves.
/// Invariant: guests read the same at each moment, a power loss included.  What was filled stays:
/// a stream that ended early goes on from there the next time.
/// Cost: a look at each cluster, and what is copied.  Memory: requests_max pieces.
/// Bitmaps do not record it: guests read what they did.
/// Not here: closing the disks that lay between: whoever else uses them keeps them open.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "block/copy_on_read.h"
#include "job/live/job.h"
#include "qcow2/image.h"

namespace byre {

struct StreamOptions {
  /// Layers below the image that go into it; empty: all of them, and nothing lies below then.
  std::optional<uint32_t> depth;
  /// What the header is to say of the base; needed with `depth`.
  std::optional<BackingName> base_name;
  unsigned requests_max = 4;
  std::string filter_name;  ///< Of the filter's node; empty: a made-up one.
  uint64_t request_size = 1 * MiB;
};

class Stream final : public JobWork {
 public:
  /// `image` leads to an Image that is open for writing.
  static Result<std::unique_ptr<Stream>> make(Child image, StreamOptions options);

  JobKind kind() const override { return JobKind::stream; }
  std::vector<Node*> nodes() const override;
  Task<void> run(Job& job) override;
  Task<void> prepare(Job& job) override;
  Task<void> commit(Job& job) override;
  Task<void> abort(Job& job) override;
  Task<void> clean(Job& job) override;

 private:
  Stream(Child image, StreamOptions options, const std::vector<Device*>& between, Device* base);
  CopyOnRead& filter() const { return static_cast<CopyOnRead&>(*filter_); }
  Image& image() const { return static_cast<Image&>(*image_); }
  Task<void> worker(Job& job);
  Task<void> fill(uint64_t at, uint64_t length);
  Task<void> leave_graph();

  const StreamOptions options_;
  std::vector<Child> between_;  ///< They stay there.
  Child image_;
  Child base_;  ///< Or none.
  Child filter_;
  bool entered_ = false;
  uint64_t next_ = 0;
  bool failed_ = false;
};

}  // namespace byre
