// SPDX-License-Identifier: Apache-2.0
/// Amending: what an image is, changed in place while its contents stay (amend_image(), amend.cc).
///
/// Whatever can be refused is refused before the first write.  Then, each line durable before the
/// next, and every state between them an image that opens and holds the same:
///   1. version 3, if that is wanted: one sector of the header.
///   2. the size (resize.h).
///   3. version 2 has no zero flag: each entry that has one, in the tables of the disk and of every
///      snapshot, once for each table (trap 105), leads to zeros instead: to its own cluster where
///      it has one that no other table has, else to nothing where nothing shows through, else to a
///      new cluster; contents and refcount of these are durable before.
///   4. refcounts of another width: the whole new table and its blocks in fresh clusters; then
///      width, offset and length of the table, in one sector of the header; then the old ones are
///      free.
///   5. the rest of the header, version 2 included: one sector.  A name of a backing file that does
///      not fit in there is written where nothing refers to before (format/header_change.h).
/// A cut leaves leaks at worst.
/// Invariant: nothing leads to a new table or cluster before that is durable.
/// Cost: 3 reads every L2 table; 4 reads all refcounts, one byte of memory for each host cluster.
/// Not here: words for people (cli/amend.cc).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "base/progress.h"
#include "coro/task.h"

namespace byre {

/// What is not given stays.
struct AmendOptions {
  std::optional<uint32_t> version;
  std::optional<uint32_t> refcount_bits;
  std::optional<bool> lazy_refcounts;
  std::optional<std::string> backing_file;  ///< Empty: none.  Contents are not compared.
  std::optional<std::string> backing_format;
  std::optional<std::string> data_file;  ///< Empty: whoever opens the image names it.
  std::optional<bool> data_file_raw;     ///< Can only be given up.
  std::optional<uint64_t> size;
  Progress* progress = nullptr;  ///< It cannot be stopped.  Null: nobody asks.
};

class GuestDisk;
/// Nobody else uses the image, and nothing but closing it follows.
Task<void> amend_image(GuestDisk& disk, AmendOptions options);

}  // namespace byre
