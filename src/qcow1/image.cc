// SPDX-License-Identifier: Apache-2.0
#include "qcow1/image.h"

#include <algorithm>
#include <functional>

#include "base/checked.h"
#include "format/codec.h"

namespace byre {
namespace {

constexpr size_t kTablesMax = 64;
/// The L1 table is read in parts of this size.
constexpr uint64_t kL1Part = 4096;

}  // namespace

Task<Qcow1Start> read_qcow1_start(Device& file) {
  std::vector<std::byte> bytes(std::min<uint64_t>(file.size(), kQcow1HeaderSize));
  co_await file.read(0, bytes, IoTag::header_read);
  Result<Qcow1Header> header = parse_qcow1_header(bytes);
  if (!header) co_return std::move(header).error().while_doing(quoted(file.name()));
  Qcow1Start start{.header = *header};
  if (!within(header->l1_offset.value, header->l1_entries() * 8, file.size())) {
    co_return corrupt(quoted(file.name()), ": the L1 table of ", header->l1_entries(),
                      " entries at ", header->l1_offset, " passes the end of the file at ",
                      hex(file.size()));
  }
  if (header->backing_file_offset != 0 && header->backing_file_size != 0) {
    if (!within(header->backing_file_offset, header->backing_file_size, file.size())) {
      co_return corrupt(quoted(file.name()), ": the name of the backing file at ",
                        hex(header->backing_file_offset), " passes the end of the file at ",
                        hex(file.size()));
    }
    std::vector<std::byte> name(header->backing_file_size);
    co_await file.read(header->backing_file_offset, name, IoTag::header_read);
    start.backing_file = std::string(text_of(name));
  }
  co_return start;
}

Task<std::unique_ptr<Qcow1Image>> Qcow1Image::open(Child file, Child backing) {
  Result<Qcow1Start> start = co_await read_qcow1_start(*file).result();
  if (start && start->header.encrypted)
    start = unsupported("the image is encrypted (AES), which byre cannot read");
  if (!start) {
    file.abandon();
    backing.abandon();
    co_return std::move(start).error();
  }
  co_return std::unique_ptr<Qcow1Image>(
      new Qcow1Image(std::move(file), std::move(backing), *std::move(start)));
}

Qcow1Image::Qcow1Image(Child file, Child backing, Qcow1Start start)
    : file_(std::move(file)),
      backing_(std::move(backing)),
      start_(std::move(start)),
      idle_(file_->reactor().ready()) {
  file_.belong_to(*this, Role::file);
  if (backing_) backing_.belong_to(*this, Role::backing);
}

Result<void> Qcow1Image::check(std::string_view what, uint64_t offset, uint64_t length) const {
  if (!within(offset, length, size())) return out_of_range(what, offset, length);
  return {};
}

/// The table at `at`, or a part of one; only whole tables of the file get here.
Task<Qcow1Image::Block> Qcow1Image::table(HostOffset at, uint64_t size) {
  if (const auto found = cached_at_.find(at.value);
      found != cached_at_.end() && found->second->block->size() == size) {
    cached_.splice(cached_.begin(), cached_, found->second);
    co_return found->second->block;
  }
  auto bytes = std::make_shared<std::vector<std::byte>>(size);
  co_await file_->read(at.value, *bytes, IoTag::l2_load);
  const Block block = std::move(bytes);
  if (const auto found = cached_at_.find(at.value); found != cached_at_.end()) {
    cached_.erase(found->second);
    cached_at_.erase(found);
  }
  cached_.push_front({.at = at.value, .block = block});
  cached_at_.emplace(at.value, cached_.begin());
  if (cached_.size() > kTablesMax) {
    cached_at_.erase(cached_.back().at);
    cached_.pop_back();
  }
  co_return block;
}

Task<uint64_t> Qcow1Image::l1_entry(uint64_t index) {
  const uint64_t part = round_down(index * 8, kL1Part);
  const uint64_t size = std::min(kL1Part, header().l1_entries() * 8 - part);
  const Block block = co_await table(header().l1_offset + part, size);
  co_return load_be<uint64_t>(*block, index * 8 - part);
}

/// What the disk is from `offset` on, within one L2 table.
Task<Qcow1Image::Run> Qcow1Image::run_at(uint64_t offset, uint64_t length) {
  const Qcow1Header& h = header();
  const uint64_t l1_index = offset / h.l2_covers();
  length = std::min(length, (l1_index + 1) * h.l2_covers() - offset);
  const Result<std::optional<HostOffset>> l2 = decode_qcow1_l1(co_await l1_entry(l1_index));
  if (!l2) co_return l2.error().copy().while_doing(quoted(name()));
  if (!*l2) co_return Run{.mapping = {}, .length = length};
  if (!within((*l2)->value, h.l2_size(), file_->size())) {
    co_return corrupt(quoted(name()), ": the L2 table at ", **l2, " passes the end of the file at ",
                      hex(file_->size()));
  }
  const Block entries = co_await table(**l2, h.l2_size());

  const uint64_t first = offset / h.cluster_size() % h.l2_entries();
  const uint64_t in_cluster = offset % h.cluster_size();
  Run run{.mapping = {}, .length = 0};
  for (uint64_t index = first; run.length < length; ++index) {
    Result<Qcow1Mapping> decoded = decode_qcow1_l2(load_be<uint64_t>(*entries, index * 8), h);
    if (!decoded) {
      if (index != first) break;  // The next call says it.
      co_return std::move(decoded).error().while_doing(
          cat(quoted(name()), ": cluster at ", hex(offset - in_cluster)));
    }
    if (index == first) {
      run = {.mapping = *decoded, .length = std::min(length, h.cluster_size() - in_cluster)};
      if (decoded->kind == Qcow1Mapping::Kind::compressed) break;
      if (decoded->kind == Qcow1Mapping::Kind::plain) run.mapping.at += in_cluster;
      continue;
    }
    // A cluster that begins behind the end of the file is an error of its own.
    const bool goes_on =
        decoded->kind == run.mapping.kind &&
        (decoded->kind == Qcow1Mapping::Kind::unallocated ||
         (decoded->at == run.mapping.at + run.length && decoded->at.value < file_->size()));
    if (!goes_on) break;
    run.length += std::min(length - run.length, h.cluster_size());
  }
  co_return run;
}

Task<void> Qcow1Image::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  const Running running(*this);
  co_await check("read", offset, data.size());
  while (!data.empty()) {
    const Run run = co_await run_at(offset, data.size());
    const MutableBytes part = data.first(run.length);
    switch (run.mapping.kind) {
      case Qcow1Mapping::Kind::unallocated:
        co_await read_backing(offset, part);
        break;
      case Qcow1Mapping::Kind::plain:
        co_await read_plain(run.mapping.at, part, options.tag);
        break;
      case Qcow1Mapping::Kind::compressed:
        co_await read_compressed(run.mapping, offset % header().cluster_size(), part);
        break;
    }
    offset += run.length;
    data = data.subspan(run.length);
  }
}

Task<void> Qcow1Image::read_plain(HostOffset at, MutableBytes data, IoTag tag) {
  const uint64_t end = file_->size();
  if (at.value >= end) {
    co_await fail(
        corrupt(quoted(name()), ": a cluster at ", at, ", and the file ends at ", hex(end)));
  }
  const uint64_t there = std::min<uint64_t>(end - at.value, data.size());
  co_await file_->read(at.value, data.first(there), tag);
  fill_zero(data.subspan(there));
}

Task<void> Qcow1Image::read_backing(uint64_t offset, MutableBytes data) {
  uint64_t there = 0;
  if (backing_ && offset < backing_->size()) {
    there = std::min<uint64_t>(backing_->size() - offset, data.size());
    co_await backing_->read(offset, data.first(there), IoTag::read_backing);
  }
  fill_zero(data.subspan(there));
}

Task<void> Qcow1Image::read_compressed(Qcow1Mapping mapping, uint64_t within_cluster,
                                       MutableBytes data) {
  if (data.size() == header().cluster_size()) {
    co_await decompress_stream(mapping, data);
    co_return;
  }
  Block cluster = decompressed_from_ == mapping ? decompressed_ : nullptr;
  if (!cluster) {
    auto bytes = std::make_shared<std::vector<std::byte>>(header().cluster_size());
    co_await decompress_stream(mapping, *bytes);
    cluster = std::move(bytes);
    decompressed_from_ = mapping;
    decompressed_ = cluster;
  }
  copy(data, Bytes(*cluster).subspan(within_cluster, data.size()));
}

Task<void> Qcow1Image::decompress_stream(Qcow1Mapping mapping, MutableBytes cluster) {
  if (!within(mapping.at.value, mapping.stream_size, file_->size())) {
    co_await fail(corrupt(quoted(name()), ": a compressed stream of ", mapping.stream_size,
                          " bytes at ", mapping.at, " passes the end of the file at ",
                          hex(file_->size())));
  }
  std::vector<std::byte> stream(mapping.stream_size);
  co_await file_->read(mapping.at.value, stream, IoTag::read_compressed);
  Result<void> result;
  const auto work = [&] { result = decompress(Compression::deflate, stream, cluster); };
  co_await reactor().offload(std::cref(work));
  co_await std::move(result).doing("compressed stream at ", mapping.at, " in ", quoted(name()));
}

Task<Extent> Qcow1Image::status(uint64_t offset, uint64_t length) {
  const Running running(*this);
  co_await check("status", offset, length);
  if (length == 0) co_return Extent{};
  const Run run = co_await run_at(offset, length);
  switch (run.mapping.kind) {
    case Qcow1Mapping::Kind::plain:
      co_return Extent{
          .length = run.length, .host_offset = run.mapping.at.value, .file = file_->name()};
    case Qcow1Mapping::Kind::compressed:
      co_return Extent{.length = run.length, .compressed = true};
    case Qcow1Mapping::Kind::unallocated:
      break;
  }
  if (!backing_ || offset >= backing_->size())
    co_return Extent{.length = run.length, .data = false, .zero = true, .allocated = false};
  Extent below = co_await backing_->status(offset, std::min(run.length, backing_->size() - offset));
  if (below.allocated || below.depth != 0) ++below.depth;
  below.allocated = false;
  co_return below;
}

Error Qcow1Image::read_only() const {
  return Error(Errc::read_only, cat(quoted(name()),
                                    " is an image of qcow version 1, which byre only reads: "
                                    "convert it to qcow2"));
}
Task<void> Qcow1Image::write(uint64_t, Bytes, WriteOptions) { co_await fail(read_only()); }
Task<void> Qcow1Image::zero(uint64_t, uint64_t, ZeroOptions) { co_await fail(read_only()); }
Task<void> Qcow1Image::discard(uint64_t, uint64_t, DiscardOptions) { co_await fail(read_only()); }
Task<void> Qcow1Image::allocate(uint64_t, uint64_t) { co_await fail(read_only()); }
Task<void> Qcow1Image::resize(uint64_t) { co_await fail(read_only()); }
Task<void> Qcow1Image::flush(IoTag) { co_return; }

Task<void> Qcow1Image::close() {
  while (running_ != 0) co_await idle_.wait();
  Result<void> file = co_await file_.close().result();
  co_await backing_.close();
  co_await std::move(file);
}

void Qcow1Image::abandon() {
  file_.abandon();
  backing_.abandon();
}

}  // namespace byre
