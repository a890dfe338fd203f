// SPDX-License-Identifier: Apache-2.0
/// The format layer alone against the qemu-img at hand, both directions: an image put together from
/// these functions is checked and read by QEMU; an image that QEMU made is read, and each of its
/// refcounts accounted for, with these functions.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "base/prng.h"
#include "format/codec.h"
#include "format/extended_l2.h"
#include "format/extension.h"
#include "format/header.h"
#include "format/l1.h"
#include "format/l2.h"
#include "format/refcount.h"
#include "format/snapshot.h"

namespace byre {
namespace {

/// A folder that goes away, and commands that run in it.
class Interop : public testing::Test {
 protected:
  void SetUp() override {
    if (std::system("qemu-img --version >/dev/null 2>&1") != 0) {
      if (getenv("CI")) FAIL() << "qemu-img is missing";
      GTEST_SKIP() << "qemu-img is missing";
    }
    std::string pattern = std::filesystem::temp_directory_path() / "byre-format-XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  /// Runs it in the folder; its output is shown when it fails.
  int run(const std::string& command) {
    const int status =
        std::system(("cd '" + folder_.string() + "' && (" + command + ") >log 2>&1").c_str());
    if (status != 0) {
      const std::vector<std::byte> log = load("log");
      ADD_FAILURE() << command << "\n" << text_of(log);
    }
    return status;
  }
  std::vector<std::byte> load(const std::string& name) {
    std::ifstream in(folder_ / name, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), {});
    const Bytes all = bytes_of(std::string_view(bytes));
    return {all.begin(), all.end()};
  }
  void save(const std::string& name, Bytes bytes) {
    const std::string_view text = text_of(bytes);
    std::ofstream(folder_ / name, std::ios::binary)
        .write(text.data(), static_cast<std::streamsize>(text.size()));
  }

  std::filesystem::path folder_;
};

/// Clusters of the disk that differ in kind and compress a little.
std::vector<std::byte> some_bytes(size_t size, uint64_t seed) {
  Prng random(seed);
  std::vector<std::byte> bytes(size);
  const size_t fresh = std::min<size_t>(size, 20'000);
  for (size_t i = 0; i < fresh; ++i) bytes[i] = static_cast<std::byte>('a' + random.below(9));
  for (size_t at = fresh; at < size; at += fresh)
    copy(MutableBytes(bytes).subspan(at), Bytes(bytes).first(std::min(fresh, size - at)));
  return bytes;
}

/// Reads an image that is in memory, with nothing but the format layer.
class Reader {
 public:
  explicit Reader(Bytes file) : file_(file) {}

  /// The header and what hangs on it.
  void open() {
    Result<Header> header = parse_header(file_);
    ASSERT_TRUE(header) << header.error().message();
    header_ = *header;
    geometry_ = geometry_of(header_);
    Result<Extensions> extensions = parse_extensions(file_, header_);
    ASSERT_TRUE(extensions) << extensions.error().message();
    extensions_ = *extensions;
    ASSERT_TRUE(check_incompatible(header_, extensions_));
    if (header_.snapshot_count != 0) {
      const Bytes table = file_.subspan(header_.snapshots_offset.value);
      Result<std::vector<Snapshot>> snapshots = parse_snapshots(table, header_.snapshot_count);
      ASSERT_TRUE(snapshots) << snapshots.error().message();
      snapshots_ = *snapshots;
    }
  }

  /// The disk, by way of the active L1 table; `data` is where its clusters lie.
  std::vector<std::byte> disk(Bytes data) {
    std::vector<std::byte> out(round_up(header_.size, geometry_.cluster_size()));
    for (uint64_t n = 0; n < geometry_.clusters_for(header_.size); ++n)
      read(GuestCluster{n}, data,
           MutableBytes(out).subspan(n * geometry_.cluster_size(), geometry_.cluster_size()));
    out.resize(header_.size);
    return out;
  }
  std::vector<std::byte> disk() { return disk(file_); }

  /// Every refcount of the file is the number of references that are there.
  void expect_refcounts() {
    std::map<uint64_t, uint64_t> counts;
    const auto count = [&](HostSpan span) {
      for (uint64_t i = 0; i < span.count; ++i) ++counts[span.first.value + i];
    };
    const auto bytes_at_offset = [&](HostOffset at, uint64_t size) {
      count({geometry_.cluster_of(at), geometry_.clusters_for(size)});
    };
    count({{0}, 1});
    bytes_at_offset(header_.refcount_table_offset,
                    uint64_t{header_.refcount_table_clusters} << header_.cluster_bits);
    count_l1(header_.l1_offset, header_.l1_entries, counts, true);
    if (header_.snapshot_count != 0)
      bytes_at_offset(header_.snapshots_offset,
                      **snapshot_table_size(file_.subspan(header_.snapshots_offset.value),
                                            header_.snapshot_count));
    for (const Snapshot& snapshot : snapshots_) {
      ASSERT_TRUE(check_l1_table(snapshot, geometry_));
      count_l1(snapshot.l1_offset, snapshot.l1_entries, counts, false);
    }
    if (extensions_.crypto_header) count(hosts(*extensions_.crypto_header, geometry_));
    if (extensions_.bitmaps) {
      count(hosts(*extensions_.bitmaps, geometry_));
      for (const Bitmap& bitmap : bitmaps()) {
        count(hosts(bitmap, geometry_));
        for (uint32_t i = 0; i < bitmap.table_entries; ++i) {
          const auto entry = decode_bitmap_table_entry(
              load_be<uint64_t>(file_.subspan(bitmap.table_offset.value), i * 8), geometry_);
          ASSERT_TRUE(entry);
          if (entry->data) count({*entry->data, 1});
        }
      }
    }

    std::map<uint64_t, uint64_t> stored;
    const Bytes table = file_.subspan(header_.refcount_table_offset.value);
    const uint64_t entries =
        header_.refcount_table_clusters * geometry_.refcount_table_entries_per_cluster();
    for (uint64_t i = 0; i < entries; ++i) {
      const auto block =
          decode_refcount_table_entry(load_refcount_table_entry(table, i), geometry_);
      ASSERT_TRUE(block);
      if (!*block) continue;
      count({**block, 1});
      const Bytes bytes = cluster(**block);
      for (uint64_t j = 0; j < geometry_.refcount_block_entries(); ++j)
        if (const uint64_t refcount = get_refcount(bytes, j, geometry_.refcount_order))
          stored[geometry_.first_of_refcount_table(i).value + j] = refcount;
    }
    EXPECT_EQ(stored, counts);
  }

  std::vector<Bitmap> bitmaps() {
    if (!extensions_.bitmaps) return {};
    const Bytes directory = file_.subspan(extensions_.bitmaps->directory_offset.value,
                                          extensions_.bitmaps->directory_size);
    Result<std::vector<Bitmap>> bitmaps =
        parse_bitmap_directory(directory, extensions_.bitmaps->count, geometry_);
    EXPECT_TRUE(bitmaps) << bitmaps.error().message();
    return bitmaps ? *bitmaps : std::vector<Bitmap>();
  }

  const Header& header() const { return header_; }
  const Extensions& extensions() const { return extensions_; }
  const std::vector<Snapshot>& snapshots() const { return snapshots_; }
  const Geometry& geometry() const { return geometry_; }

 private:
  Bytes cluster(HostCluster host) const {
    return file_.subspan(geometry_.start_of(host).value, geometry_.cluster_size());
  }

  void read(GuestCluster guest, Bytes data, MutableBytes out) {
    const L1Entry l1 =
        *decode_l1(load_l1_entry(file_.subspan(header_.l1_offset.value), geometry_.l1_index(guest)),
                   geometry_);
    if (!l1.l2) return;
    const Result<Mapping> mapping =
        decode_l2(load_l2(cluster(*l1.l2), geometry_.l2_index(guest), geometry_), geometry_);
    ASSERT_TRUE(mapping) << mapping.error().message();
    if (mapping->compressed) {
      const uint64_t at = mapping->compressed_at.value;
      const Bytes stream = file_.subspan(at, std::min(mapping->compressed_size, file_.size() - at));
      Result<void> done = decompress(header_.compression, stream, out);
      ASSERT_TRUE(done) << done.error().message();
      return;
    }
    for (uint32_t unit = 0; unit < geometry_.units();) {
      const UnitRun run = unit_run(*mapping, unit, geometry_);
      const uint64_t from = unit * geometry_.unit_size();
      const uint64_t size = run.count * geometry_.unit_size();
      if (run.kind == UnitKind::data) {
        const uint64_t at = geometry_.start_of(*mapping->host).value + from;
        copy(out.subspan(from), data.subspan(at, std::min(size, data.size() - at)));
      }
      unit += run.count;
    }
  }

  void count_l1(HostOffset at, uint32_t entries, std::map<uint64_t, uint64_t>& counts,
                bool active) {
    for (uint64_t i = 0; i < geometry_.clusters_for(uint64_t{entries} * 8); ++i)
      ++counts[geometry_.cluster_of(at).value + i];
    for (uint32_t i = 0; i < entries; ++i) {
      const auto entry = decode_l1(load_l1_entry(file_.subspan(at.value), i), geometry_);
      ASSERT_TRUE(entry);
      if (!entry->l2) continue;
      ++counts[entry->l2->value];
      for (uint64_t j = 0; j < geometry_.l2_entries(); ++j) {
        const L2Entry raw = load_l2(cluster(*entry->l2), j, geometry_);
        const auto mapping = decode_l2(raw, geometry_);
        ASSERT_TRUE(mapping) << mapping.error().message();
        if (active) {
          EXPECT_FALSE(has_stray_copied(raw, geometry_));
        }
        const HostSpan span = hosts(*mapping, geometry_);
        for (uint64_t k = 0; k < span.count; ++k) ++counts[span.first.value + k];
      }
    }
  }

  Bytes file_;
  Header header_;
  Geometry geometry_;
  Extensions extensions_;
  std::vector<Snapshot> snapshots_;
};

struct Shape {
  uint32_t version = 3;
  uint32_t cluster_bits = 16;
  uint32_t refcount_order = 4;
  bool extended_l2 = false;
  Compression compression = Compression::deflate;
  bool snapshot_and_bitmap = false;
};

/// Puts an image together by hand: one L2 table, whose entries are of every kind in turn.
class Writer {
 public:
  explicit Writer(const Shape& shape) : shape_(shape) {
    header_.version = shape.version;
    header_.cluster_bits = shape.cluster_bits;
    header_.refcount_order = shape.refcount_order;
    header_.compression = shape.compression;
    if (shape.version == 2) header_.header_length = kHeaderSizeV2;
    if (shape.extended_l2) header_.incompatible |= kExtendedL2;
    if (shape.compression != Compression::deflate) header_.incompatible |= kCompressionType;
    geometry_ = geometry_of(header_);
    header_.size = 20 * geometry_.cluster_size() - 512;
    disk_.resize(20 * geometry_.cluster_size());

    take(1);  // The header.
    header_.refcount_table_offset = geometry_.start_of(take(1).first);
    header_.refcount_table_clusters = 1;
    refcount_block_ = take(1).first;
    header_.l1_offset = geometry_.start_of(take(1).first);
    header_.l1_entries = 1;
    l2_ = take(1).first;
    references_ = shape.snapshot_and_bitmap ? 2 : 1;
    for (uint64_t n = 0; n < 20; ++n) write_cluster(n);
    if (shape.snapshot_and_bitmap) {
      refcounts_[l2_.value] = 2;
      write_snapshot();
      write_bitmap();
    }
    finish();
  }

  Bytes file() const { return file_; }
  Bytes disk() const { return Bytes(disk_).first(header_.size); }

 private:
  HostSpan take(uint64_t clusters) {
    const HostSpan span{geometry_.cluster_of(HostOffset{file_.size()}), clusters};
    file_.resize(file_.size() + clusters * geometry_.cluster_size());
    for (uint64_t i = 0; i < clusters; ++i) refcounts_[span.first.value + i] = 1;
    return span;
  }
  MutableBytes at(HostCluster cluster) {
    return MutableBytes(file_).subspan(geometry_.start_of(cluster).value, geometry_.cluster_size());
  }

  void write_cluster(uint64_t n) {
    const uint64_t size = geometry_.cluster_size();
    const MutableBytes guest = MutableBytes(disk_).subspan(n * size, size);
    const uint64_t kind = n % 5;
    if (kind == 0) return;
    Mapping mapping;
    if (kind == 1) {
      copy(guest, some_bytes(size, n));
      mapping = compressed(**compress(shape_.compression, guest));
    } else if (kind == 2 && shape_.version > 2) {
      mapping.zero = geometry_.all_units();
    } else {
      mapping.host = take(1).first;
      mapping.copied = references_ == 1;
      refcounts_[mapping.host->value] = references_;
      copy(at(*mapping.host), some_bytes(size, n));
      mapping.allocated = geometry_.all_units();
      if (kind == 3 && shape_.version > 2) mapping.allocated &= 0xf00f00f0u;
      if (kind == 3 && shape_.version > 2) mapping.zero = geometry_.all_units() & ~0xffffu;
      mapping.zero &= ~mapping.allocated;
      if (kind == 3 && shape_.version > 2 && !shape_.extended_l2) mapping.zero = 1;
      for (uint32_t unit = 0; unit < geometry_.units(); ++unit) {
        if ((mapping.allocated >> unit & 1) == 0) continue;
        const uint64_t from = unit * geometry_.unit_size();
        copy(guest.subspan(from), Bytes(at(*mapping.host)).subspan(from, geometry_.unit_size()));
      }
    }
    store_l2(at(l2_), n, encode_l2(mapping, geometry_), geometry_);
  }

  /// Streams follow each other byte by byte where the refcounts can hold that.
  Mapping compressed(Bytes stream) {
    const bool pack = shape_.refcount_order >= 4;
    if (!pack || stream_end_ + stream.size() > file_.size() || stream_end_ == 0) {
      // Room for three clusters in a row, the last of which may stay free.
      const uint64_t first = file_.size();
      file_.resize(file_.size() + 2 * geometry_.cluster_size());
      stream_end_ = first;
    }
    const HostOffset to{stream_end_};
    copy(MutableBytes(file_).subspan(to.value), stream);
    stream_end_ += stream.size();
    const Mapping mapping = compressed_mapping(to, stream.size());
    EXPECT_EQ(encode_l2(mapping, geometry_), encode_compressed(to, stream.size(), geometry_));
    const HostSpan span = hosts(mapping, geometry_);
    for (uint64_t i = 0; i < span.count; ++i) refcounts_[span.first.value + i] += references_;
    return mapping;
  }

  void write_snapshot() {
    const HostCluster l1 = take(1).first;
    store_l1_entry(at(l1), 0, encode_l1({.l2 = l2_, .copied = false}, geometry_));
    Snapshot snapshot;
    snapshot.l1_offset = geometry_.start_of(l1);
    snapshot.l1_entries = 1;
    snapshot.id = "1";
    snapshot.name = "monday";
    snapshot.disk_size = header_.size;
    const auto table = serialize_snapshots({snapshot});
    ASSERT_TRUE(table);
    const HostCluster cluster = take(geometry_.clusters_for(table->size())).first;
    copy(MutableBytes(file_).subspan(geometry_.start_of(cluster).value), *table);
    header_.snapshots_offset = geometry_.start_of(cluster);
    header_.snapshot_count = 1;
  }

  void write_bitmap() {
    const HostCluster data = take(1).first;
    at(data)[0] = std::byte{5};
    const HostCluster table = take(1).first;
    Bitmap bitmap{.table_offset = geometry_.start_of(table),
                  .table_entries = 1,
                  .automatic = true,
                  .granularity_bits = 16,
                  .name = "backup"};
    ASSERT_TRUE(check_usable(bitmap, header_.size, geometry_));
    store_be(at(table), 0, encode_bitmap_table_entry({.data = data}, geometry_));
    const auto directory = serialize_bitmap_directory({bitmap});
    ASSERT_TRUE(directory);
    const HostCluster cluster = take(geometry_.clusters_for(directory->size())).first;
    copy(MutableBytes(file_).subspan(geometry_.start_of(cluster).value), *directory);
    extensions_.bitmaps = BitmapsExtension{1, directory->size(), geometry_.start_of(cluster)};
    header_.autoclear |= kBitmaps;
  }

  void finish() {
    if (shape_.version > 2) extensions_.feature_names = default_feature_names();
    const bool copied = references_ == 1;
    store_l1_entry(MutableBytes(file_).subspan(header_.l1_offset.value), 0,
                   encode_l1({.l2 = l2_, .copied = copied}, geometry_));
    store_refcount_table_entry(MutableBytes(file_).subspan(header_.refcount_table_offset.value), 0,
                               encode_refcount_table_entry(refcount_block_, geometry_));
    for (const auto& [cluster, refcount] : refcounts_) {
      ASSERT_LT(cluster, geometry_.refcount_block_entries());
      set_refcount(at(refcount_block_), cluster, geometry_.refcount_order, refcount);
    }
    const auto head = serialize_header(header_, extensions_);
    ASSERT_TRUE(head) << head.error().message();
    copy(file_, *head);
  }

  Shape shape_;
  Header header_;
  Extensions extensions_;
  Geometry geometry_;
  std::vector<std::byte> file_;
  std::vector<std::byte> disk_;
  HostCluster refcount_block_;
  HostCluster l2_;
  uint64_t stream_end_ = 0;
  uint64_t references_ = 1;
  std::map<uint64_t, uint64_t> refcounts_;
};

// Trap 50 among others: each real qemu-img reads what is compressed here.
TEST_F(Interop, QemuReadsWhatIsWrittenHere) {
  std::vector<Shape> shapes;
  for (const uint32_t bits : {9u, 12u, 16u, 21u}) {
    shapes.push_back({.cluster_bits = bits});
    shapes.push_back({.version = 2, .cluster_bits = bits});
    shapes.push_back({.cluster_bits = bits, .compression = Compression::zstd});
  }
  for (uint32_t order = 0; order <= 6; ++order)
    shapes.push_back({.cluster_bits = 10, .refcount_order = order});
  for (const uint32_t bits : {14u, 16u, 21u})
    shapes.push_back({.cluster_bits = bits, .extended_l2 = true});
  shapes.push_back({.snapshot_and_bitmap = true});
  shapes.push_back({.cluster_bits = 14, .extended_l2 = true, .snapshot_and_bitmap = true});

  for (const Shape& shape : shapes) {
    SCOPED_TRACE(cat("version ", shape.version, ", cluster bits ", shape.cluster_bits,
                     ", refcount order ", shape.refcount_order, ", extended ", shape.extended_l2,
                     ", snapshot ", shape.snapshot_and_bitmap));
    const Writer writer(shape);
    save("disk.qcow2", writer.file());
    ASSERT_EQ(run("qemu-img check disk.qcow2"), 0);
    ASSERT_EQ(run("qemu-img convert -O raw disk.qcow2 disk.raw"), 0);
    EXPECT_TRUE(equal(load("disk.raw"), writer.disk()));
    if (shape.snapshot_and_bitmap) {
      ASSERT_EQ(run("qemu-img snapshot -l disk.qcow2 | grep monday"), 0);
      ASSERT_EQ(run("qemu-img info disk.qcow2 | grep 'name: backup'"), 0);
      ASSERT_EQ(run("qemu-img bitmap --remove disk.qcow2 backup && "
                    "qemu-img snapshot -a monday disk.qcow2 && qemu-img check disk.qcow2"),
                0);
    }

    Reader reader(writer.file());
    reader.open();
    EXPECT_TRUE(equal(reader.disk(), writer.disk()));
    reader.expect_refcounts();
  }
}

// The same, from QEMU's hands: each option that changes the format.
TEST_F(Interop, WhatQemuWritesIsReadHere) {
  std::vector<std::byte> raw(3 * MiB + 512);
  for (uint64_t at = 0; at + 70000 < raw.size(); at += 200000)
    copy(MutableBytes(raw).subspan(at), some_bytes(70000, at));
  save("disk.raw", raw);
  for (const std::string_view options : {"",
                                         "-o compat=0.10",
                                         "-o cluster_size=512",
                                         "-o cluster_size=2M",
                                         "-o refcount_bits=1",
                                         "-o refcount_bits=2",
                                         "-o refcount_bits=64,cluster_size=4k",
                                         "-o extended_l2=on,cluster_size=16k",
                                         "-o extended_l2=on,cluster_size=128k",
                                         "-o preallocation=metadata",
                                         "-o preallocation=metadata,extended_l2=on",
                                         "-o lazy_refcounts=on",
                                         "-c",
                                         "-c -o compat=0.10",
                                         "-c -o cluster_size=512",
                                         "-c -o cluster_size=4k,refcount_bits=8",
                                         "-c -o cluster_size=2M",
                                         "-c -o compression_type=zstd",
                                         "-c -o compression_type=zstd,cluster_size=1k",
                                         "-c -o extended_l2=on"}) {
    SCOPED_TRACE(options);
    ASSERT_EQ(run(cat("qemu-img convert -O qcow2 ", options, " disk.raw disk.qcow2")), 0);
    const std::vector<std::byte> file = load("disk.qcow2");
    Reader reader(file);
    reader.open();
    EXPECT_TRUE(equal(reader.disk(), raw));
    reader.expect_refcounts();
    EXPECT_EQ(oddities(reader.header(), reader.extensions()).size(), 0u);

    // And written again, the first part is what QEMU wrote.
    const auto head = serialize_header(reader.header(), reader.extensions());
    ASSERT_TRUE(head);
    EXPECT_TRUE(equal(*head, Bytes(file).first(head->size())));
  }
}

TEST_F(Interop, QemusSnapshotsAndBitmapsAreReadHere) {
  ASSERT_EQ(run("qemu-img create -f qcow2 disk.qcow2 8M && "
                "qemu-io -c 'write -P 1 0 1M' disk.qcow2 && "
                "qemu-img snapshot -c first disk.qcow2 && "
                "qemu-io -c 'write -P 2 64k 1M' -c 'write -z 3M 1M' disk.qcow2 && "
                "qemu-img snapshot -c second disk.qcow2 && "
                "qemu-img bitmap --add -g 32k disk.qcow2 one && "
                "qemu-img bitmap --add --disable disk.qcow2 two && "
                "qemu-io -c 'write -P 3 5M 200k' disk.qcow2"),
            0);
  const std::vector<std::byte> file = load("disk.qcow2");
  Reader reader(file);
  reader.open();
  reader.expect_refcounts();
  ASSERT_EQ(reader.snapshots().size(), 2u);
  EXPECT_EQ(reader.snapshots()[1].name, "second");
  EXPECT_EQ(reader.snapshots()[1].disk_size, 8 * MiB);
  const std::vector<Bitmap> bitmaps = reader.bitmaps();
  ASSERT_EQ(bitmaps.size(), 2u);
  EXPECT_EQ(bitmaps[0].granularity(), 32 * KiB);
  EXPECT_TRUE(bitmaps[0].automatic);
  EXPECT_FALSE(bitmaps[1].automatic);
  for (const Bitmap& bitmap : bitmaps)
    EXPECT_TRUE(check_usable(bitmap, reader.header().size, reader.geometry()));

  const Bytes table = Bytes(file).subspan(reader.header().snapshots_offset.value);
  const auto again = serialize_snapshots(reader.snapshots());
  ASSERT_TRUE(again);
  EXPECT_TRUE(equal(*again, table.first(again->size())));
  const auto directory = serialize_bitmap_directory(bitmaps);
  ASSERT_TRUE(directory);
  EXPECT_TRUE(equal(
      *directory,
      Bytes(file).subspan(reader.extensions().bitmaps->directory_offset.value, directory->size())));
}

// Trap 26, trap 37.
TEST_F(Interop, QemusDataFilesAreReadHere) {
  for (const std::string_view raw : {"off", "on"}) {
    ASSERT_EQ(run(cat("rm -f disk.data && qemu-img create -f qcow2 -o "
                      "data_file=disk.data,data_file_raw=",
                      raw,
                      " disk.qcow2 4M && "
                      "qemu-io -c 'write -P 1 0 64k' -c 'write -P 2 1M 100k' -c 'write -z 2M 64k' "
                      "disk.qcow2 && qemu-img convert -O raw disk.qcow2 disk.raw")),
              0);
    const std::vector<std::byte> file = load("disk.qcow2");
    Reader reader(file);
    reader.open();
    EXPECT_EQ(reader.extensions().data_file_name, "disk.data");
    EXPECT_TRUE(equal(reader.disk(load("disk.data")), load("disk.raw")));
    reader.expect_refcounts();
  }
}

// Trap 16, trap 13: names and formats of backing files.
TEST_F(Interop, QemusBackingFilesAreReadHere) {
  const std::string name = std::string(100, 'b') + ".raw";
  for (const std::string_view options : {"cluster_size=64k", "cluster_size=2M", "compat=0.10"}) {
    ASSERT_EQ(run(cat("qemu-img create -f raw ", name, " 1M && qemu-img create -f qcow2 -F raw -b ",
                      name, " -o ", options, " disk.qcow2")),
              0);
    const std::vector<std::byte> file = load("disk.qcow2");
    Reader reader(file);
    reader.open();
    const auto backing = parse_backing_file(file, reader.header());
    ASSERT_TRUE(backing);
    EXPECT_EQ(*backing, name);
    EXPECT_EQ(reader.extensions().backing_format, "raw");
  }
}

// Trap 27: the clusters of the LUKS header are those of its length rounded up.
TEST_F(Interop, QemusLuksHeadersAreAccountedFor) {
  // Several times: where CPU time is counted coarsely QEMU cannot time its key derivation.
  ASSERT_EQ(run("for i in $(seq 40); do qemu-img create -f qcow2 --object secret,id=s,data=x -o "
                "encrypt.format=luks,encrypt.key-secret=s disk.qcow2 1M && exit 0; done; exit 1"),
            0);
  const std::vector<std::byte> file = load("disk.qcow2");
  Reader reader(file);
  reader.open();
  ASSERT_TRUE(reader.extensions().crypto_header);
  reader.expect_refcounts();
}

}  // namespace
}  // namespace byre
