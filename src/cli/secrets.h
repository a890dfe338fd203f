// SPDX-License-Identifier: Apache-2.0
/// Secrets: what --object secret keeps under an id, for the options that name one.
///
/// `secret,id=ID,data=TEXT` or `secret,id=ID,file=PATH`, either with format=base64.  What is wrong
/// with one is told in the words of QEMU's programs, and a file is read at once: one that is
/// missing is an error although nothing may refer to it. Not here: encryption.  An option that
/// would use a secret is refused by its own name until there is any; other kinds of objects are
/// refused.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace byre {

struct Secret {
  std::string id;
  std::string data;  ///< As it is meant, not as base64.
};

/// Adds the secret that `text` describes.
Result<void> parse_value(std::string_view text, std::vector<Secret>& secrets);

}  // namespace byre
