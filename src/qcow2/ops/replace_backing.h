// SPDX-License-Identifier: Apache-2.0
/// Replacing the backing file of an image that is in use: the device below, and its name in the
/// header.
///
///   1. What cannot be done is refused: an image that is open read-only, a name or format without
///      room in the header, permissions on the new device, a circle.
///   2. No request runs above, and what was staged is committed (block/drain.h).
///   3. The new name goes to bytes of the first cluster that nothing refers to, durably.  Then one
///      write of the first sector refers to it (format/header_change.h).
///   4. The edge leads to the new device.
/// So at each crash point the header has the old name or the new one, whole.
/// Invariant: guests read the same before and after, as far as the two devices hold the same where
/// the image has nothing: that is the caller's promise, like that they stay so through a power
/// loss.  An error leaves header and device as they were, or ends all writing (M4).
/// Cost: two writes and two syncs; requests wait meanwhile.
/// Not here: opening the new device, closing the old one.
#pragma once

#include <optional>
#include <string>

#include "block/graph.h"

namespace byre {

class GuestDisk;

/// What a header says of a backing file.
struct BackingName {
  std::string file;    ///< As it is to stand in the header.
  std::string format;  ///< "qcow2", "raw".
};

/// `next` leads to the new device, or nowhere; `name` is empty just then.  Afterwards it leads to
/// the old one.
Task<void> replace_backing(GuestDisk& disk, Device& image, Child& next,
                           std::optional<BackingName> name);

}  // namespace byre
