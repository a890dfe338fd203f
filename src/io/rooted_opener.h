// SPDX-License-Identifier: Apache-2.0
/// RootedOpener: opens only files that lie in or below one folder, whoever names them.
///
/// A name means what it always does (absolute, or from the current folder, or from the folder of
/// the image that has it), and is followed to its end: links, `..` and absolute names may be on the
/// way.  Where it ends must be beneath the root, or it is Errc::denied.  The file itself is opened
/// from the root's descriptor with RESOLVE_BENEATH, so a link that is changed meanwhile leads
/// nowhere else; the root is the folder that it was when this was made.
/// What an image may name is decided by its policy (file_opener.h) first.
/// Invariant: no file is opened, made, or looked into that is not beneath the root; a refusal says
/// the same of a file that is there and of one that is not.
/// Not here: files whose descriptors a client passes, which it could open itself; connections to
/// NBD servers.
#pragma once

#include <memory>
#include <string>

#include "io/descriptor.h"
#include "io/file_opener.h"

namespace byre {

class RootedOpener final : public FileOpener {
 public:
  static Result<std::unique_ptr<RootedOpener>> make(Reactor& reactor, const std::string& root,
                                                    OpenPolicy policy);
  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions options) override;
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view image_name,
                                                    std::string_view name,
                                                    FileOptions options) override;
  Result<void> allows_devices(std::string_view image_name, std::string_view name) const override;

  /// Where the file of that name lies, or would be made, without links; Errc::denied where that is
  /// not beneath the root.  For names that somebody else opens.
  Result<std::string> real_name(std::string_view name) const;
  const std::string& root() const { return root_; }

 private:
  RootedOpener(Reactor& reactor, Descriptor folder, std::string root, OpenPolicy policy)
      : reactor_(reactor),
        folder_(std::move(folder)),
        root_(std::move(root)),
        gate_(reactor, policy) {}
  Error denied(std::string_view name) const;
  Result<std::string> inside(std::string_view name) const;
  Result<std::unique_ptr<File>> open_inside(const std::string& path, std::string_view name,
                                            FileOptions options);

  Reactor& reactor_;
  Descriptor folder_;
  const std::string root_;  ///< Without links.
  SystemGate gate_;
};

}  // namespace byre
