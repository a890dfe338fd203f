// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/head_change.h"

#include "format/header_change.h"

namespace byre {

Task<void> change_head(Survey& survey, HeadEdit edit) {
  std::vector<std::byte> first(survey.geometry().cluster_size());
  co_await survey.read_padded(0, first, Mark::header_read);
  copy(MutableBytes(first), survey.head.sector);
  Header header = co_await parse_header(first, OpenFor::check);
  Extensions extensions = co_await parse_extensions(first, header);
  const std::string backing = (co_await parse_backing_file(first, header)).value_or("");
  edit(header, extensions);
  const HeaderChange change = co_await change_header(first, header, extensions, backing);
  if (equal(change.sector, survey.head.sector)) co_return;
  if (!change.name.empty()) {
    co_await survey.file.write(change.name_at, change.name, {.mark = Mark::header_update});
    co_await survey.file.flush(Mark::commit_sync);
  }
  co_await survey.file.write(0, change.sector, {.mark = Mark::header_update});
  co_await survey.file.flush(Mark::commit_sync);
  survey.head.sector = change.sector;
  survey.head.header.backing_file_offset = backing_file_offset_of(change.sector);
  survey.head.header.autoclear = header.autoclear;
  survey.head.extensions = std::move(extensions);
}

}  // namespace byre
