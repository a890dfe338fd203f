// SPDX-License-Identifier: Apache-2.0
/// How many files a process may have open.  Each image of a backing chain is one.
#pragma once

namespace byre {

/// For main(): raises the soft limit to the hard one.  Nothing here uses select(), for whose sake
/// the soft limit is low.
void raise_file_limit();

}  // namespace byre
