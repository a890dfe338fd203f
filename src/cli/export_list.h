// SPDX-License-Identifier: Apache-2.0
/// The exports of an NBD server as `qemu-nbd --list` prints them.
#pragma once

#include <string>
#include <vector>

#include "remote/nbd_list.h"

namespace byre {

/// Names and descriptions are shown with control characters as \xNN.
std::string describe_exports(const std::vector<nbd::ListedExport>& exports);

}  // namespace byre
