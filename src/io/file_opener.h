// SPDX-License-Identifier: Apache-2.0
/// FileOpener: what may be opened.  Images name other files (backing, data); nothing that an image
/// names is opened unless the opener that the caller chose lets it (rule 2 of safe by default).
///
/// The engine never opens a path itself: it asks its opener.  The simulator has a opener of its own
/// with disks by name.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "io/file.h"

namespace byre {

class FileOpener {
 public:
  virtual ~FileOpener() = default;
  /// Opens a file that the user named.
  virtual Result<std::unique_ptr<File>> open(std::string_view name, FileOptions options) = 0;
  /// Opens a file that the image at `image_name` names; a relative name is relative to the folder
  /// of `image_name`.  Errc::denied when policy forbids it.
  virtual Result<std::unique_ptr<File>> open_named_by_image(std::string_view image_name,
                                                            std::string_view name,
                                                            FileOptions options) = 0;
  /// May the image at `image_name` name devices (`json:{...}`) instead of a file?  Each file of
  /// theirs is opened by open_named_by_image() all the same.
  virtual Result<void> allows_devices(std::string_view image_name, std::string_view name) const;
};

/// What a real opener lets images name.
enum class OpenPolicy : uint8_t {
  nothing,  ///< Refuse backing and data files.
  /// Only regular files in or below the folder of the image that names them.  What counts is where
  /// a file lies, not how it is named: absolute names, `..` and symbolic links are followed first.
  same_directory,
  any_file,  ///< Any regular file or block device by path; devices by `json:{...}`.
};
/// As the option --follow spells it.
std::string_view name_of(OpenPolicy policy);

class SystemGate final : public FileOpener {
 public:
  SystemGate(Reactor& reactor, OpenPolicy policy) : reactor_(reactor), policy_(policy) {}
  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions options) override;
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view image_name,
                                                    std::string_view name,
                                                    FileOptions options) override;
  Result<void> allows_devices(std::string_view image_name, std::string_view name) const override;
  /// Would the image at `image_name` get the file that it calls `name`?  Errc::denied says why not;
  /// a file that is not there is Errc::not_found.  Opens nothing.
  Result<void> allows(std::string_view image_name, std::string_view name) const;

 private:
  Reactor& reactor_;
  OpenPolicy policy_;
};

/// The path that `name`, as found in the image at `image_name`, means: relative names are relative
/// to the image's folder.  Not for `json:` and `protocol:` names.
std::string resolve_name(std::string_view image_name, std::string_view name);

}  // namespace byre
