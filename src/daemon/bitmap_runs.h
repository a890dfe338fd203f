// SPDX-License-Identifier: Apache-2.0
/// The bits of an image's bitmap as clients of NBD see them: as they are now while it records, else
/// as they were when the context was made.
/// Cost: the bits in memory, for a bitmap that does not record.
/// Not here: the protocol (export/nbd_dirty_context.h).
#pragma once

#include <string>

#include "coro/task.h"
#include "export/nbd_handshake.h"

namespace byre {

class Image;

/// Errc::not_found, in QEMU's words, where there is none; `image` may be null.
Task<nbd::ExportContext> context_of(Image* image, std::string name);

}  // namespace byre
