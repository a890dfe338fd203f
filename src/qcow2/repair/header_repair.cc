// SPDX-License-Identifier: Apache-2.0
#include "qcow2/repair/header_repair.h"

#include "format/header_change.h"

namespace byre {

Task<void> change_head(RepairState& state, HeadEdit edit) {
  std::vector<std::byte> first(state.geometry().cluster_size());
  co_await state.read_padded(0, first, IoTag::header_read);
  copy(MutableBytes(first), state.head.sector);
  Header header = co_await parse_header(first, OpenFor::check);
  Extensions extensions = co_await parse_extensions(first, header);
  const std::string backing = (co_await parse_backing_file(first, header)).value_or("");
  edit(header, extensions);
  const HeaderChange change = co_await change_header(first, header, extensions, backing);
  if (equal(change.sector, state.head.sector)) co_return;
  if (!change.name.empty()) {
    co_await state.file.write(change.name_at, change.name, {.tag = IoTag::header_update});
    co_await state.file.flush(IoTag::commit_sync);
  }
  co_await state.file.write(0, change.sector, {.tag = IoTag::header_update});
  co_await state.file.flush(IoTag::commit_sync);
  state.head.sector = change.sector;
  state.head.header.backing_file_offset = backing_file_offset_of(change.sector);
  state.head.header.autoclear = header.autoclear;
  state.head.extensions = std::move(extensions);
}

}  // namespace byre
