// SPDX-License-Identifier: Apache-2.0
/// QEMU's image locks: so that byre and QEMU's programs refuse to write to one image at a time.
///
/// A lock is one byte of the file, locked shared with an open file description lock (fcntl(2)).
/// Byte 100 + n says "I use permission n", byte 200 + n "nobody else may"; n is 0 for consistent
/// reads, 1 for writing, 3 for resizing.  An opener takes its bytes, then looks whether somebody
/// holds what contradicts them; so of two who come together one or both go away, never neither.
///
///                      uses        forbids     is refused when others
///   writer             100 101 103 201 203     use 101 103, forbid 200 201 203
///   writer, shared     100 101 103             forbid 200 201 203
///   reader             100         201 203     use 101 103, forbid 200
///   reader, shared     nothing
///
/// These are the sets of qemu-io, qemu-nbd and qemu-img for qcow2 images.  The locks go with the
/// open file description: the kernel may hold that for a moment after close(), as io_uring's
/// workers let go of it only behind the completion; so whoever closes unlocks first, and who is
/// started right after finds the image free.
#pragma once

#include <string_view>

#include "base/error.h"

namespace byre {

/// Takes the locks, or fails with Errc::busy and names who is in the way; Errc::unsupported where
/// the file system has no such locks.
Result<void> lock_image(int fd, std::string_view name, bool writable, bool shared);
/// What the holder of a reader's locks, not shared ones, has becomes what a writer has, or the
/// other way round.  At no moment does it hold less than a reader; a failure leaves all as it was.
Result<void> change_image_lock(int fd, std::string_view name, bool writable);
/// The locks that this process has by another descriptor of the file, taken by `fd` as well; they
/// are no longer looked for in others, so that `fd` can take the place of that descriptor.
Result<void> join_image_lock(int fd, std::string_view name, bool writable);
/// Gives them back.
void unlock_image(int fd);

}  // namespace byre
