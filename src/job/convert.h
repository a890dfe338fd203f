// SPDX-License-Identifier: Apache-2.0
/// Convert: copies the contents of one or more disks, one behind the other, into a target.
///
/// What reads as zeros is left out of a target that reads as zeros, and zeroed in any other.  What
/// the target has beyond the end of the sources is zeroed, too.  One flush at the end.
/// A failure or stop() ends it as soon as what is under way has ended.
/// Cost and memory: those of the loop (copy.h).
/// Not here: opening and creating (open.h, create.h), who may be target and source at once.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "io/file.h"
#include "job/copy.h"
#include "job/read_back.h"

namespace byre {

struct ConvertOptions {
  /// Runs of zero bytes of this length and alignment are not written; 0: everything is written, and
  /// what the source has no data for as well.
  uint64_t sparse_size = 4 * KiB;
  /// Whatever has not been written reads as zeros in the target.
  bool target_reads_zero = false;
  /// The target has a backing disk that already holds what the sources' own backing disks do, so
  /// only what the sources themselves have is copied.
  bool target_has_backing = false;
  /// Size of that backing disk: beyond it the target reads as zeros.
  uint64_t target_backing_size = 0;
  /// Written as compressed streams, in whole multiples of the target's preferred_size(): where one
  /// of those is not zeros throughout, all of it is data.
  bool compressed = false;
  int compression_level = 0;  ///< format/codec.h; 0: the default.
  bool in_order = true;
  bool fua = false;  ///< Every write is durable before it counts as done.
  /// Copy offloading: data are copied as they are, without a look for zeros, and by the kernel from
  /// file to file where both ends are known and it can.  A file that is null is not known.
  struct OnHost {
    /// By source: the file in which its data lie where Extent::host_offset says.
    std::vector<File*> sources;
    File* target = nullptr;  ///< The target is its bytes, and takes more at its end.
  };
  std::optional<OnHost> on_host = {};
  unsigned requests_max = 16;
  uint64_t request_size = 2 * MiB;
  /// Notes what the target has to hold; null: nobody asks.
  ReadBack* record = nullptr;
  /// Called after each piece, with bytes of the disk done and in all.
  std::function<void(uint64_t done, uint64_t total)> progress;
};

class Convert final : private CopySource {
 public:
  /// The devices outlive it.
  Convert(std::vector<Device*> sources, Device& target, ConvertOptions options);

  /// Bytes of the sources together, each rounded up to whole sectors: what the target must hold.
  uint64_t total() const { return total_; }
  uint64_t done() const { return progress_.done(); }
  /// Was it a source that made it fail?
  bool source_failed() const { return copy_->source_failed(); }
  /// Has anything been written to the target?
  bool wrote() const { return copy_->wrote(); }

  /// Errc::cancelled after stop().
  Task<void> run();
  /// Begins nothing more.
  void stop() { progress_.stop(); }
  /// What is under way, for a user who waits: "3 reads of 'a', 1 write to 'b'".
  std::string waiting_for() const { return copy_->waiting_for(); }

 private:
  struct Source {
    Device* device;
    uint64_t start;  ///< In the target.
    uint64_t size;   ///< Rounded up to whole sectors.
  };

  uint64_t size() const override { return total_; }
  Task<Stretch> look(uint64_t at) override;
  Task<Parts> read(uint64_t at, MutableBytes data) override;
  Task<bool> copy_on_host(uint64_t at, uint64_t length) override;
  void note(const Extent& extent, uint64_t at, uint64_t length);
  std::string names() const override;
  Kind kind_of(const Extent& extent, uint64_t at) const;

  std::vector<Source> sources_;
  Device& target_;
  const ConvertOptions options_;
  uint64_t total_ = 0;
  size_t source_ = 0;  ///< The one that look() has come to.
  Progress progress_;
  std::optional<Copy> copy_;
  bool host_copies_ = true;  ///< The kernel has not refused yet.
};

}  // namespace byre
