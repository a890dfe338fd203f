// SPDX-License-Identifier: Apache-2.0
/// TemporaryFile: a file without a name, which is gone with the last descriptor of it.
///
/// It is made without a name where the file system can do that, else its name goes at once; so
/// nobody else opens it, and it outlives no process, however that ends.
/// Invariant: each open() gives a File of its own over the same bytes.
/// Cost: a file; what is written there takes space in its folder until it is gone.
/// Not here: what is kept in it (job/temporary_overlay.h).
#pragma once

#include <memory>
#include <string>

#include "io/descriptor.h"
#include "io/file.h"

namespace byre {

class TemporaryFile {
 public:
  static Result<TemporaryFile> make(std::string folder);
  /// Without locks: there is nobody to keep out.
  Result<std::unique_ptr<File>> open(Reactor& reactor, bool writable) const;

 private:
  TemporaryFile(Descriptor file, std::string name)
      : file_(std::move(file)), name_(std::move(name)) {}

  Descriptor file_;
  std::string name_;  ///< For messages.
};

}  // namespace byre
