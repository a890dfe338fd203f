// SPDX-License-Identifier: Apache-2.0
#include "job/unfinished.h"

#include <algorithm>

#include "format/extension.h"
#include "format/header.h"

namespace byre {

namespace {
/// The last of the 64 incompatible features, and what it is called (46 bytes at most).
constexpr uint32_t kFeature = 63;
constexpr std::string_view kFeatureName = "this disk was never finished";
static_assert(kFeatureName.size() <= 46);
}  // namespace

std::vector<std::byte> unfinished_sector() {
  Header header;
  header.cluster_bits = kClusterBitsMin;  // So that readers look no further than this sector.
  header.refcount_table_offset = HostOffset{kSectorSize};
  header.refcount_table_clusters = 1;
  header.incompatible = uint64_t{1} << kFeature;
  Extensions extensions;
  extensions.feature_names = {{.kind = FeatureKind::incompatible,
                               .bit = static_cast<uint8_t>(kFeature),
                               .name = std::string(kFeatureName)}};
  Result<std::vector<std::byte>> bytes = serialize_header(header, extensions);
  BYRE_ASSERT(bytes && bytes->size() <= kSectorSize);
  bytes->resize(kSectorSize);
  return *std::move(bytes);
}

bool is_unfinished(Bytes start) {
  static const std::vector<std::byte> sector = unfinished_sector();
  return start.size() >= sector.size() && equal(start.first(sector.size()), sector);
}

BeingMade::BeingMade(Device& file, Options options)
    : Forwarder(file), options_(std::move(options)), begin_mutex_(file.reactor().ready()) {}

Result<void> BeingMade::check_stopped() const {
  if (options_.progress && options_.progress->stopped())
    return Error(Errc::cancelled, "interrupted");
  return {};
}

uint64_t BeingMade::in_start(uint64_t offset, uint64_t length) const {
  if (!options_.keep_start || offset >= kSectorSize) return 0;
  return std::min(length, kSectorSize - offset);
}

Task<void> BeingMade::begin_change() {
  co_await check_stopped();
  if (begun_) co_return;
  const Mutex::Hold hold = co_await begin_mutex_.lock();
  if (begun_) co_return;
  if (options_.keep_start) {
    const std::vector<std::byte> sector = unfinished_sector();
    co_await below().write(0, sector, {.tag = IoTag::header_update});
    if (options_.sync_start) co_await below().flush(IoTag::commit_sync);
  }
  begun_ = true;
}

Task<void> BeingMade::reveal(bool durable) {
  co_await check_stopped();
  if (durable) co_await below().flush(IoTag::flush);
  if (!options_.keep_start) co_return;
  co_await check_stopped();  // Syncing may have taken long.
  co_await below().write(0, start_, {.tag = IoTag::header_update});
  if (durable) co_await below().flush(IoTag::flush);
}

Task<void> BeingMade::read(uint64_t offset, MutableBytes data, ReadOptions options) {
  co_await below().read(offset, data, options);
  if (const uint64_t here = in_start(offset, data.size()); here != 0)
    copy(data, Bytes(start_).subspan(offset, here));
}

Task<void> BeingMade::write_start(uint64_t offset, Bytes data, WriteOptions options) {
  co_await begin_change();
  const uint64_t here = in_start(offset, data.size());
  if (here != 0) copy(MutableBytes(start_).subspan(offset), data.first(here));
  if (here < data.size()) co_await below().write(offset + here, data.subspan(here), options);
}

Task<void> BeingMade::zero_start(uint64_t offset, uint64_t length, ZeroOptions options) {
  co_await begin_change();
  const uint64_t here = in_start(offset, length);
  if (here != 0) fill_zero(MutableBytes(start_).subspan(offset, here));
  if (here < length) co_await below().zero(offset + here, length - here, options);
}

Task<void> BeingMade::discard(uint64_t offset, uint64_t length, DiscardOptions options) {
  co_await begin_change();
  const uint64_t here = in_start(offset, length);
  if (here < length) co_await below().discard(offset + here, length - here, options);
}

Task<void> BeingMade::flush(IoTag) { co_await check_stopped(); }

Task<void> BeingMade::allocate(uint64_t offset, uint64_t length) {
  co_await begin_change();
  co_await below().allocate(offset, length);
}

/// Before the sector is written: the first length of a file is what its maker goes by.
Task<void> BeingMade::resize(uint64_t size) {
  co_await check_stopped();
  co_await below().resize(size);
  if (size != 0) co_await begin_change();
}

}  // namespace byre
