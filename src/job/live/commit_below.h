// SPDX-License-Identifier: Apache-2.0
/// CommitBelow: the commit of disks that lie below one in use: what `top` and those between it and
/// a base have goes into the base, and then the image above `top` lies over the base.
///
///   1. What the layers from `top` down have is copied, once: nobody writes to them.  The base
///      grows where it is smaller; where it is longer than `top`, it gets zeros as far as the image
///      above goes, which reads so.
///   2. The base is flushed.  Then the image above gets it for its backing disk, by name too
///      (Image::replace_backing()).
/// Invariant (docs/engine.md, J5): guests read the same at each moment, a power loss included: what
/// is changed in the base is hidden by the layers above it until the image above lies over it.
/// Other images over the base, or over what lay between, show other contents afterwards.
/// Cost: each byte above the base once.
/// Not here: the commit of the disk that guests write (mirror.h).
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "job/live/job.h"
#include "job/live/mirror_copy.h"
#include "qcow2/image.h"

namespace byre {

struct CommitBelowOptions {
  uint32_t depth = 1;     ///< Layers from the top, the first of them, down to the base.
  BackingName base_name;  ///< What the header of the image above is to say.
  MirrorFilterOptions filter;
  unsigned requests_max = 16;
  std::string filter_name;  ///< Of the filter's node; empty: a made-up one.
  /// How many requests guests have made: what is copied lies below the disk that they use, so the
  /// job does not see them.  Empty: it gives way to nobody.
  std::function<uint64_t()> guest_requests;
};

class CommitBelow final : public JobWork {
 public:
  /// `overlay` leads to the Image above the top, open for writing.
  static Result<std::unique_ptr<CommitBelow>> make(Child overlay, CommitBelowOptions options);

  JobKind kind() const override { return JobKind::commit; }
  std::vector<Node*> nodes() const override;
  Task<void> run(Job& job) override;
  Task<void> prepare(Job& job) override;
  Task<void> abort(Job& job) override;
  Task<void> clean(Job& job) override;

 private:
  CommitBelow(Child overlay, std::vector<Device*> layers, CommitBelowOptions options);
  Task<void> hide_what_is_longer(Job& job);
  void give_back_permissions();
  MirrorFilter& filter() const { return static_cast<MirrorFilter&>(*filter_); }

  CommitBelowOptions options_;
  std::vector<Device*> layers_;  ///< From the top to the base.
  std::vector<Child> held_;      ///< Keep them there.
  Child overlay_;
  Child base_;              ///< It stays open.
  Child filter_;            ///< Nothing but the job leads there.
  Child* shows_ = nullptr;  ///< The edge by which the base shows, while it lets others write;
  Permissions showed_;      ///< what it allowed before.
};

}  // namespace byre
