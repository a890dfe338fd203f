// SPDX-License-Identifier: Apache-2.0
/// Secrets: what `--object secret` keeps under an id (objects.h).
///
/// `data=TEXT` or `file=PATH`, either with format=base64.  What is wrong with one is told in the
/// words of QEMU's programs, and a file is read at once: one that is missing is an error although
/// nothing may refer to it.
/// Not here: encryption.  An option that would use a secret is refused by its own name.
#pragma once

#include <string>

#include "job/option_tree.h"

namespace byre {

/// The contents, as they are meant and not as base64.  `options` are those of the object without
/// its type and its id.
Result<std::string> read_secret(OptionTree options);

}  // namespace byre
