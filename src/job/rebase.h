// SPDX-License-Identifier: Apache-2.0
/// Rebase: another backing disk, or none, below an overlay whose contents stay.
///
/// Offline: nobody else uses the overlay.
///   1. Where the overlay has nothing of its own and the two backing disks show other bytes, those
///      of the old one are written into the overlay, by clusters (or subclusters): those that are
///      zeros as zeros (in version 2 as data), the rest as data or compressed.
///   2. The overlay is flushed.
///   3. The header names the new disk, in one write (qcow2/ops/replace_backing.h).
/// A backing disk ends where it ends: behind it either shows zeros, whatever the other one has
/// there. What both chains have from a disk that is in both is the same and is not read (layers.h);
/// nor is what both have as zeros. Invariant (docs/engine.md, O9): what step 1 writes is what the
/// overlay shows already, so until the end of step 3 it shows the same through the old disk, and
/// from then on through the new one. A failure or a stop leaves the overlay with its old backing
/// disk and the same contents. Cost: what may differ is read twice, once from each.  Memory: twice
/// that of the loop (copy.h). Not here: changing the name alone (Image::amend()), opening the new
/// disk.
#pragma once

#include "job/copy.h"
#include "job/layers.h"
#include "qcow2/image.h"

namespace byre {

struct RebaseOptions {
  bool compressed = false;
  /// As qemu-img has it: what differs becomes data, zeros as well, but for runs that begin behind
  /// the end of the old disk: those become zeros.  A run ends with the stretch in which it lies, of
  /// kStretchMax at most, and inside one table.
  bool zeros_as_data = false;
  bool fua = false;  ///< Every write is durable before it counts as done.
  unsigned requests_max = 16;
  uint64_t request_size = 2 * MiB;
};

inline constexpr uint64_t kStretchMax = 2 * MiB;

class Rebase final : private CopySource {
 public:
  /// `next` leads to the new backing disk, which is open for reading, or nowhere: then there will
  /// be none.  All outlive it.
  Rebase(Image& overlay, Child& next, Progress& progress, RebaseOptions options);

  /// Can the header get that name?  Errc::no_space when there is no room.  Reads the header alone.
  Task<void> check_room(std::optional<BackingName> name);
  /// `name` is what the header will say; none just when `next` leads nowhere.  Afterwards `next`
  /// leads to the old disk.  Errc::cancelled after Progress::stop().
  Task<void> run(std::optional<BackingName> name);
  /// Did a disk that is read make it fail?
  bool source_failed() const { return copy_.source_failed(); }
  std::string waiting_for() const { return copy_.waiting_for(); }

 private:
  uint64_t size() const override { return overlay_.size(); }
  Task<Stretch> look(uint64_t at) override;
  Task<void> find_stretch(uint64_t at);
  Task<Extent> look_at_next(uint64_t at, uint64_t length);
  bool comes_from_shared(uint64_t at, const Extent& old, const Extent& now) const;
  Task<Parts> read(uint64_t at, MutableBytes data) override;
  template <class Differs>
  Parts parts_where(uint64_t at, uint64_t length, const Differs& differs) const;
  Task<void> read_next(uint64_t at, MutableBytes data);
  std::string names() const override;

  Image& overlay_;
  Child& next_;
  Progress& progress_;
  const RebaseOptions options_;
  const uint64_t unit_;  ///< What is compared, and copied where it differs.
  std::vector<Device*> old_layers_;
  std::vector<Device*> new_layers_;
  const uint64_t old_end_;  ///< Where the old disk ends.
  const uint64_t piece_;    ///< So much is read at a time.
  std::optional<Meeting> meeting_;
  uint64_t stretch_end_ = 0;   ///< Of what find_stretch() has come to.
  std::vector<Buffer> spare_;  ///< For what the new disk has.
  Copy copy_;
};

}  // namespace byre
