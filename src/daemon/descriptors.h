// SPDX-License-Identifier: Apache-2.0
/// Descriptors: what a monitor's client has passed, by names (getfd) and in sets (add-fd).
///
/// Names belong to one monitor and last as long as its client; sets belong to the process, and
/// files can be opened from them as /dev/fdset/N. Invariant: a descriptor is closed when it leaves;
/// at most kNamesMax and kSetMax are kept. Not here: how they come (io/channel.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemon/qmp_json.h"
#include "io/descriptor.h"
#include "io/file_opener.h"

namespace byre::qmp {

inline constexpr size_t kNamesMax = 256;
inline constexpr size_t kSetMax = 256;

class DescriptorSets {
 public:
  struct Added {
    uint32_t set;
    int number;
  };
  /// Without `set`: a new one.
  Result<Added> add(Descriptor fd, std::optional<uint32_t> set, std::string opaque);
  /// Without `number`: the whole set.
  Result<void> remove(uint32_t set, std::optional<int> number);
  Json describe() const;
  /// Another descriptor for what is in the set, opened as `writable` says.
  Result<Descriptor> open(uint32_t set, bool writable) const;

 private:
  struct Entry {
    Descriptor fd;
    std::string opaque;
  };
  std::map<uint32_t, std::vector<Entry>> sets_;
};

class Descriptors {
 public:
  void arrived(std::vector<Descriptor> passed);
  /// The oldest that came and has no name.
  std::optional<Descriptor> take_unnamed();
  /// Gives it a name; who had it before is closed.
  Result<void> name(std::string name);
  Result<void> close(std::string_view name);
  /// The one of that name, or, where it is a number, that of the process itself; it leaves.
  Result<Descriptor> take(const std::string& name, bool numbers_allowed);

 private:
  std::vector<Descriptor> unnamed_;
  std::map<std::string, Descriptor, std::less<>> named_;
};

/// Opens /dev/fdset/N from the sets, and all else as `below` does.
class FdsetOpener final : public FileOpener {
 public:
  FdsetOpener(Reactor& reactor, FileOpener& below, const DescriptorSets& sets)
      : reactor_(reactor), below_(below), sets_(sets) {}
  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions options) override;
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view image, std::string_view name,
                                                    FileOptions options) override {
    return below_.open_named_by_image(image, name, options);
  }
  Result<void> allows_devices(std::string_view image, std::string_view name) const override {
    return below_.allows_devices(image, name);
  }

 private:
  Reactor& reactor_;
  FileOpener& below_;
  const DescriptorSets& sets_;
};

}  // namespace byre::qmp
