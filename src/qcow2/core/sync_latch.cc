// SPDX-License-Identifier: Apache-2.0
#include "qcow2/core/sync_latch.h"

namespace byre {

void SyncLatch::latch(const Error& error, std::string_view what) {
  if (error_) return;
  error_ = Error(Errc::io,
                 cat(what, " (", error.message(),
                     "): what was written since the last flush may be lost; open the image again"),
                 error.sys_errno());
}

Task<void> SyncLatch::sync(IoTag tag) {
  if (error_) co_await fail(error_.copy());
  Result<void> synced = co_await file_.flush(tag).result();
  if (synced) co_return;
  latch(synced.error());
  co_await std::move(synced);
}

Task<void> SyncLatch::sync_data(IoTag tag) {
  if (error_) co_await fail(error_.copy());
  if (!data_) co_return;
  Result<void> synced = co_await data_->flush(tag).result();
  if (synced) co_return;
  latch(synced.error());
  co_await std::move(synced).doing("data file");
}

}  // namespace byre
