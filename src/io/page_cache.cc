// SPDX-License-Identifier: Apache-2.0
#include "io/page_cache.h"

#include <fcntl.h>

namespace byre {

Task<void> drop_page_cache(File& file) {
  if (file.properties().open_again) co_return;  // It is not real.
  const int fd = file.properties().fd;
  auto work = [fd] { (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); };
  co_await file.reactor().offload(std::ref(work));
}

}  // namespace byre
