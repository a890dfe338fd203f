// SPDX-License-Identifier: Apache-2.0
#include "qcow2/ops/create.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "format/extension.h"
#include "format/header.h"
#include "format/l2.h"
#include "format/refcount.h"

namespace byre {
namespace {

/// Where things lie in the new image: one behind the other, the header first.
struct Layout {
  HostSpan refcount_table;
  HostSpan refcount_blocks;
  HostSpan l1;
  HostSpan l2;            ///< One table for each entry of the L1 table, or none.
  HostSpan data;          ///< A cluster for each of the disk, or none.
  uint64_t clusters = 0;  ///< All of them.
};

/// Refcount blocks count themselves and the table that points to them: begin with the least and add
/// until both are large enough for what they count.  Adding never makes the need smaller, so the
/// first fixpoint is the smallest.
Result<Layout> lay_out(const Geometry& geometry, const CreateOptions& options) {
  const uint64_t l1_entries = geometry.l1_entries_for(options.size);
  const uint64_t l1 = geometry.clusters_for(l1_entries * 8);
  const uint64_t l2 = options.wants_tables() ? l1_entries : 0;
  const bool owns_data = options.preallocation != Preallocation::off && !geometry.data_file;
  const uint64_t data = owns_data ? geometry.clusters_for(options.size) : 0;
  uint64_t blocks = 1;
  uint64_t table = 1;
  for (;;) {
    const uint64_t clusters = 1 + table + blocks + l1 + l2 + data;
    const uint64_t blocks_needed = div_ceil(clusters, geometry.refcount_block_entries());
    const uint64_t table_needed = geometry.clusters_for(blocks * 8);
    if (blocks_needed <= blocks && table_needed <= table) break;
    blocks = std::max(blocks, blocks_needed);
    table = std::max(table, table_needed);
  }
  Layout layout;
  layout.refcount_table = {{1}, table};
  layout.refcount_blocks = {layout.refcount_table.end(), blocks};
  layout.l1 = {layout.refcount_blocks.end(), l1};
  layout.l2 = {layout.l1.end(), l2};
  layout.data = {layout.l2.end(), data};
  layout.clusters = layout.data.end().value;
  if (layout.data.end() > geometry.host_cluster_limit()) {
    return invalid("a disk of ", options.size, " bytes cannot be preallocated with clusters of ",
                   geometry.cluster_size(), " bytes: use larger clusters");
  }
  BYRE_ASSERT(table * geometry.cluster_size() <= kRefcountTableSizeMax);
  return layout;
}

Result<Geometry> geometry_for(const CreateOptions& options) {
  if (!std::has_single_bit(options.cluster_size) ||
      options.cluster_size < uint64_t{1} << kClusterBitsMin ||
      options.cluster_size > uint64_t{1} << kClusterBitsMax) {
    return invalid("clusters of ", options.cluster_size,
                   " bytes: must be a power of two from 512 bytes to 2 MiB");
  }
  if (!std::has_single_bit(options.refcount_bits) ||
      options.refcount_bits > 1u << kRefcountOrderMax) {
    return invalid("refcounts of ", options.refcount_bits,
                   " bits: must be a power of two from 1 to 64");
  }
  const Geometry geometry{
      .version = options.version,
      .cluster_bits = static_cast<uint32_t>(std::countr_zero(options.cluster_size)),
      .refcount_order = static_cast<uint32_t>(std::countr_zero(options.refcount_bits)),
      .extended_l2 = options.extended_l2,
      .data_file = !options.data_file.empty()};
  if (Result<void> sound = geometry.check(); !sound) return std::move(sound).error();
  return geometry;
}

/// What is possible by itself but not together.
Result<void> check_combination(const CreateOptions& options) {
  const bool backed = !options.backing_file.empty();
  if (options.version < 3 && options.lazy_refcounts) {
    return invalid("lazy refcounts need version 3");
  }
  if (options.version < 3 && options.compression != Compression::deflate) {
    return invalid("version 2 knows no compression but deflate");
  }
  if (options.data_file_raw && options.data_file.empty()) {
    return invalid("a raw data file was asked for, but no data file");
  }
  if (options.data_file_raw && backed) {
    return invalid("a raw data file holds the whole disk, so there can be no backing file");
  }
  if (options.preallocation != Preallocation::off && backed && !options.extended_l2) {
    return invalid(
        "preallocated clusters hide a backing file, unless the image has extended L2 entries");
  }
  if (backed && options.backing_format.empty()) {
    return invalid(
        "the backing file's format must be named: guessing it from its contents lets a "
        "guest choose it");
  }
  if (!backed && !options.backing_format.empty()) {
    return invalid("a backing format was given, but no backing file");
  }
  if (options.backing_format.size() > kBackingFormatSizeMax) {
    return invalid("backing format ", quoted(options.backing_format), " is longer than ",
                   kBackingFormatSizeMax, " bytes");
  }
  for (const std::string* name :
       {&options.backing_file, &options.backing_format, &options.data_file}) {
    if (name->find('\0') != std::string::npos) {
      return invalid("the name ", quoted(*name), " contains NUL");
    }
  }
  return {};
}

Result<void> check_size(uint64_t size, const Geometry& geometry) {
  if (size % kSectorSize != 0) {
    return invalid("a disk of ", size, " bytes ends inside a sector: use ",
                   round_down(size, kSectorSize), " or ", kSectorSize, " more");
  }
  if (geometry.l1_entries_for(size) > kL1EntriesMax) {
    return invalid("a disk of ", size, " bytes needs larger clusters: with ",
                   geometry.cluster_size(), " bytes the most is ", geometry.size_max());
  }
  return {};
}

Result<std::vector<std::byte>> header_for(const CreateOptions& options, const Geometry& geometry,
                                          const Layout& layout) {
  Header header;
  header.version = geometry.version;
  header.cluster_bits = geometry.cluster_bits;
  header.size = options.size;
  header.l1_entries = static_cast<uint32_t>(geometry.l1_entries_for(options.size));
  // QEMU, too, leaves the offset of a table without entries at 0.
  if (layout.l1.count != 0) header.l1_offset = geometry.start_of(layout.l1.first);
  header.refcount_table_offset = geometry.start_of(layout.refcount_table.first);
  header.refcount_table_clusters = static_cast<uint32_t>(layout.refcount_table.count);
  header.refcount_order = geometry.refcount_order;
  header.compression = options.compression;
  if (geometry.data_file) header.incompatible |= kDataFile;
  if (geometry.extended_l2) header.incompatible |= kExtendedL2;
  if (options.compression != Compression::deflate) header.incompatible |= kCompressionType;
  if (options.lazy_refcounts) header.compatible |= kLazyRefcounts;
  if (options.data_file_raw) header.autoclear |= kRawDataFile;

  Extensions extensions;
  if (!options.backing_format.empty()) extensions.backing_format = options.backing_format;
  if (geometry.data_file) extensions.data_file_name = options.data_file;
  if (geometry.version >= 3) extensions.feature_names = default_feature_names();
  Result<std::vector<std::byte>> bytes = serialize_header(header, extensions, options.backing_file);
  if (!bytes && bytes.error().code() == Errc::no_space) {
    return invalid("the file names are too long for clusters of ", geometry.cluster_size(),
                   " bytes: ", bytes.error().message());
  }
  return bytes;
}

/// All that is decided before the first byte is written.
struct Plan {
  Geometry geometry;
  Layout layout;
  std::vector<std::byte> header;
};

Result<Plan> plan(const CreateOptions& options) {
  BYRE_TRY(geometry, geometry_for(options));
  if (Result<void> sound = check_combination(options); !sound) return std::move(sound).error();
  if (Result<void> sound = check_size(options.size, geometry); !sound) {
    return std::move(sound).error();
  }
  BYRE_TRY(layout, lay_out(geometry, options));
  BYRE_TRY(header, header_for(options, geometry, layout));
  return Plan{geometry, layout, std::move(header)};
}

/// The blocks lie side by side, so they are one array of counts; what is behind the last count is
/// zeros and not part of it.
std::vector<std::byte> refcounts_of(const Layout& layout, const Geometry& geometry) {
  std::vector<std::byte> counts(
      round_up(div_ceil(layout.clusters << geometry.refcount_order, 8), kSectorSize));
  for (uint64_t cluster = 0; cluster < layout.clusters; ++cluster) {
    set_refcount(counts, cluster, geometry.refcount_order, 1);
  }
  return counts;
}

std::vector<std::byte> refcount_table_of(const Layout& layout, const Geometry& geometry) {
  std::vector<std::byte> table(layout.refcount_blocks.count * 8);
  for (uint64_t i = 0; i < layout.refcount_blocks.count; ++i) {
    const HostCluster block = layout.refcount_blocks.first + i;
    store_refcount_table_entry(table, i, encode_refcount_table_entry(block, geometry));
  }
  return table;
}

/// The file as long as the image.  `blocks`: all of it has blocks on the host, tables included, so
/// that no later write needs any.
Task<void> make_room(Device& file, uint64_t size, bool blocks) {
  const bool zeros = file.new_space_is_zero() && file.size() == 0;
  // While the file is short: what lies below its end gets no blocks where the host has no
  // fallocate.
  if (blocks && file.can_grow()) co_await allocate_blocks(file, 0, size);
  if (file.size() < size) {
    if (!file.can_grow()) {
      co_await fail(Error(Errc::no_space,
                          cat("an empty image takes ", size, " bytes, there are ", file.size())));
    }
    co_await file.resize(size);
  }
  if (!zeros) co_await file.zero(0, size);
}

/// What the cluster is when it has been preallocated.  Subclusters stay unallocated, so that what
/// is below shows (trap 41); a raw data file holds all of the disk.
Mapping preallocated(HostCluster host, const Geometry& geometry, const CreateOptions& options) {
  const bool is_data = !geometry.extended_l2 || options.data_file_raw;
  return {.copied = true, .allocated = is_data ? geometry.all_units() : 0, .host = host};
}

Task<void> write_tables(Device& file, const Layout& layout, const Geometry& geometry,
                        const CreateOptions& options) {
  if (layout.l2.count == 0) co_return;
  std::vector<std::byte> l1(layout.l2.count * 8);
  const uint64_t clusters = geometry.clusters_for(options.size);
  std::vector<std::byte> table(geometry.cluster_size());
  uint64_t guest = 0;
  for (uint64_t i = 0; i < layout.l2.count; ++i) {
    const HostCluster at = layout.l2.first + i;
    store_l1_entry(l1, i, encode_l1({at, true}, geometry));
    fill_zero(table);
    for (uint64_t entry = 0; entry < geometry.l2_entries() && guest < clusters; ++entry, ++guest) {
      const HostCluster host = geometry.data_file ? HostCluster{guest} : layout.data.first + guest;
      store_l2(table, entry, encode_l2(preallocated(host, geometry, options), geometry), geometry);
    }
    co_await file.write(geometry.start_of(at).value, table, {.tag = IoTag::l2_allocate});
  }
  co_await file.write(geometry.start_of(layout.l1.first).value, l1, {.tag = IoTag::l1_update});
}

Task<void> write_image(Device& file, const Plan& plan, const CreateOptions& options) {
  const Geometry& geometry = plan.geometry;
  const Layout& layout = plan.layout;
  const bool full = options.preallocation == Preallocation::full;
  co_await make_room(file, layout.clusters << geometry.cluster_bits,
                     full || options.preallocation == Preallocation::falloc);
  if (full) {
    co_await write_zeros(file, geometry.start_of(layout.data.first).value,
                         layout.data.count << geometry.cluster_bits);
  }
  co_await write_tables(file, layout, geometry, options);

  const std::vector<std::byte> counts = refcounts_of(layout, geometry);
  co_await file.write(geometry.start_of(layout.refcount_blocks.first).value, counts,
                      {.tag = IoTag::refcount_allocate});
  const std::vector<std::byte> table = refcount_table_of(layout, geometry);
  co_await file.write(geometry.start_of(layout.refcount_table.first).value, table,
                      {.tag = IoTag::refcount_table_grow});
  // Last: what is only half written is no image.
  co_await file.write(0, plan.header, {.tag = IoTag::header_update});
}

}  // namespace

Result<Geometry> check_create(const CreateOptions& options) {
  BYRE_TRY(planned, plan(options));
  return planned.geometry;
}

Task<void> create_image(Device& file, const CreateOptions& options) {
  const Plan planned = co_await plan(options);
  co_await write_image(file, planned, options).doing("create ", quoted(file.name()));
}

}  // namespace byre
