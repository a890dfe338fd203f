// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/replace_backing.h"

#include <algorithm>
#include <array>

#include "block/drain.h"
#include "format/header_change.h"
#include "qcow2/core/quiesced.h"
#include "qcow2/guest/guest_disk.h"

namespace byre {

namespace {

struct Planned {
  std::vector<std::byte> made_from;  ///< The first sector.
  Header header;
  Extensions extensions;
  HeaderChange change;
};

/// The header with another backing file, made from the one there is.
Task<Planned> plan_header(GuestDisk& disk, const std::optional<BackingName>& name) {
  std::vector<std::byte> first(disk.cluster_size());
  co_await disk.file->read(0, first, IoTag::header_read);
  copy(MutableBytes(first), disk.head.sector);
  Planned plan;
  plan.made_from = {first.begin(), first.begin() + kSectorSize};
  plan.header = co_await parse_header(first);
  plan.extensions = co_await parse_extensions(first, plan.header);
  plan.extensions.backing_format.reset();
  if (name && !name->format.empty()) plan.extensions.backing_format = name->format;
  Result<HeaderChange> change =
      change_header(first, plan.header, plan.extensions, name ? name->file : "");
  if (!change) {
    co_await fail(std::move(change).error().while_doing(
        cat("name another backing file in ", quoted(disk.name()))));
  }
  plan.change = *std::move(change);
  co_return plan;
}

Task<void> write_header(GuestDisk& disk, const Quiesced& quiesced, Planned plan,
                        const std::optional<BackingName>& name) {
  if (!plan.change.name.empty())
    co_await disk.header->write_past_sector(HostOffset{plan.change.name_at}, plan.change.name);
  RootEdit edit;
  edit.whole = NewHeader{.made_from = std::move(plan.made_from),
                         .sector = std::move(plan.change.sector),
                         .header = plan.header,
                         .extensions = plan.extensions,
                         .backing_file = {}};
  if (name) edit.whole->backing_file = name->file;
  co_await disk.header->change(quiesced, std::move(edit));
}

Result<void> check(const GuestDisk& disk, const Child& next,
                   const std::optional<BackingName>& name) {
  BYRE_ASSERT(!next || name.has_value());
  if (Result<void> can = disk.check_can_write(); !can) return can;
  if (next && disk.data && disk.has_raw_data()) {
    return invalid("the external data file of ", quoted(disk.name()),
                   " holds the whole disk (data_file_raw), so there can be no backing file");
  }
  if (name && (name->file.empty() || (next && name->format.empty()))) {
    return invalid("a backing file needs a name and a format in ", quoted(disk.name()));
  }
  if (name && name->file.size() > kBackingFileSizeMax) {
    return invalid("backing file name of ", name->file.size(), " bytes, at most ",
                   kBackingFileSizeMax);
  }
  return {};
}

/// Does a way down from `from` lead to `device`?
bool leads_to(const Device& from, const Device& device) {
  return &from == &device || std::ranges::any_of(from.children(), [&](const Child* edge) {
    return leads_to(**edge, device);
  });
}

/// The edge of the image, and what `next` leads to, change places.
void swap_edges(GuestDisk& disk, Device& image, const std::optional<Drain>& drain, Child& next) {
  Child old = disk.backing.another();
  if (disk.backing && next) {
    const std::array move = {Move{disk.backing, next.node()}};
    repoint(*drain, move);
  } else if (next) {
    disk.backing = std::move(next);
    disk.backing.belong_to(image, Role::backing);
  } else {
    disk.backing.reset();
  }
  next = std::move(old);
}

}  // namespace

Task<void> replace_backing(GuestDisk& disk, Device& image, Child& next,
                           std::optional<BackingName> name) {
  const Request request(disk);
  co_await request.begin();
  co_await check(disk, next, name);
  if (next && leads_to(*next, image)) {
    co_await fail(invalid("Making ", quoted(next->name()), " the backing file of ",
                          quoted(disk.name()), " would create a cycle"));
  }
  co_await disk.references.wait();
  (void)co_await plan_header(disk, name);  // Is there room?

  std::optional<Drain> drain;
  if (disk.backing) {
    drain.emplace(std::vector<Child*>{&disk.backing});
  } else if (image.node()) {  // Else nobody can ask it for anything.
    drain.emplace(*image.node());
  }
  if (drain) co_await drain->begin();
  co_await check(disk, next, name);
  if (!disk.epochs.idle()) {
    co_await fail(Error(Errc::busy, cat("a request to ", quoted(disk.name()),
                                        " is under way that nobody can hold back")));
  }
  if (next && disk.backing) {
    const std::array move = {Move{disk.backing, next.node()}};
    co_await check_moves(move);
  } else if (next) {
    co_await next.set_permissions(kShowsThrough);
  }
  Quiesced quiesced(disk);
  co_await quiesced.begin();
  co_await write_header(disk, quiesced, co_await plan_header(disk, name), name);
  swap_edges(disk, image, drain, next);
}

}  // namespace byre
