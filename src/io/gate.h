// SPDX-License-Identifier: Apache-2.0
/// Gate: what may be opened.  Images name other files (backing, data); nothing that an image names
/// is opened unless the gate that the caller chose lets it (rule 2 of safe by default).
///
/// The engine never opens a path itself: it asks its gate.  The simulator has a gate of its own
/// with disks by name.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "io/file.h"

namespace byre {

class Gate {
 public:
  virtual ~Gate() = default;
  /// Opens a file that the user named.
  virtual Result<std::unique_ptr<File>> open(std::string_view name, FileOptions options) = 0;
  /// Opens a file that the image at `image_name` names; a relative name is relative to the folder
  /// of `image_name`.  Errc::denied when policy forbids it.
  virtual Result<std::unique_ptr<File>> open_named_by_image(std::string_view image_name,
                                                            std::string_view name,
                                                            FileOptions options) = 0;
};

/// What a real gate lets images name.
enum class OpenPolicy : uint8_t {
  nothing,         ///< Refuse backing and data files.
  same_directory,  ///< Only files in or below the folder of the image that names them; no symlinks
                   ///< out.
  any_file,        ///< Any regular file or block device by path.
};

class SystemGate final : public Gate {
 public:
  SystemGate(Reactor& reactor, OpenPolicy policy) : reactor_(reactor), policy_(policy) {}
  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions options) override;
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view image_name,
                                                    std::string_view name,
                                                    FileOptions options) override;

 private:
  Reactor& reactor_;
  OpenPolicy policy_;
};

/// The path that `name`, as found in the image at `image_name`, means: relative names are relative
/// to the image's folder; `json:` and `protocol:` names are refused by the callers.
std::string resolve_name(std::string_view image_name, std::string_view name);

}  // namespace byre
