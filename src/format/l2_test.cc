// SPDX-License-Identifier: Apache-2.0
#include "format/l2.h"

#include <gtest/gtest.h>

#include <set>

#include "base/prng.h"

namespace byre {
namespace {

const Geometry kStandard{};
const Geometry kV2{.version = 2};
const Geometry kExtended{.extended_l2 = true};
const Geometry kWithDataFile{.data_file = true};
const Geometry kExtendedWithDataFile{.extended_l2 = true, .data_file = true};
const Geometry kShapes[] = {kStandard, kV2, kExtended, kWithDataFile, kExtendedWithDataFile};

Mapping data(uint64_t cluster, bool copied = true, uint32_t allocated = 1) {
  return {.copied = copied, .allocated = allocated, .host = HostCluster{cluster}};
}

std::string error_of(L2Entry entry, const Geometry& geometry) {
  Result<Mapping> mapping = decode_l2(entry, geometry);
  return mapping ? "" : mapping.error().message();
}

/// What decode_l2() guarantees, checked without looking at how it does it.
void expect_sound(const Mapping& mapping, const Geometry& geometry) {
  EXPECT_EQ(mapping.allocated & mapping.zero, 0u);
  EXPECT_EQ((mapping.allocated | mapping.zero) & ~geometry.all_units(), 0u);
  if (mapping.compressed) {
    EXPECT_FALSE(geometry.data_file);
    EXPECT_TRUE(!mapping.host && !mapping.copied && mapping.allocated == 0 && mapping.zero == 0);
    EXPECT_GE(mapping.compressed_at.value, geometry.cluster_size());
    EXPECT_LT(mapping.compressed_at.value, uint64_t{1} << 56);
    EXPECT_GE(mapping.compressed_size, 1u);
    EXPECT_LE(mapping.compressed_size, geometry.compressed_size_max());
    EXPECT_EQ((mapping.compressed_at.value + mapping.compressed_size) % 512, 0u);
    return;
  }
  EXPECT_EQ(mapping.compressed_size, 0u);
  if (!mapping.host) {
    EXPECT_EQ(mapping.allocated, 0u);
    EXPECT_FALSE(mapping.copied);
  } else if (!geometry.data_file) {
    EXPECT_NE(mapping.host->value, 0u);
  } else {
    EXPECT_TRUE(mapping.copied);
  }
  if (!geometry.extended_l2 && mapping.host) {
    EXPECT_EQ(mapping.allocated | mapping.zero, 1u);
  }
}

TEST(DecodeL2, PlainData) {
  EXPECT_EQ(*decode_l2({kCopied | 0x50000}, kStandard), data(5));
  EXPECT_EQ(*decode_l2({0x50000}, kStandard), data(5, false));
  EXPECT_EQ(*decode_l2({0}, kStandard), Mapping{});
}

// Trap 28, trap 29: each reserved or unaligned bit by itself, and none of the others.
TEST(DecodeL2, ReservedBitsAreCorruption) {
  for (uint32_t bits = kClusterBitsMin; bits <= kClusterBitsMax; ++bits) {
    const Geometry geometry{.cluster_bits = bits};
    const uint64_t plain = kCopied | uint64_t{3} << 54;
    for (uint32_t bit = 0; bit < 64; ++bit) {
      if (bit == 62) continue;  // Compressed.
      const bool sound = bit == 0 || bit == 63 || (bit >= bits && bit < 56);
      EXPECT_EQ(error_of({plain ^ uint64_t{1} << bit}, geometry) == "", sound)
          << "cluster bits " << bits << ", bit " << bit;
    }
  }
}

// Trap 33: COPIED where it must never be changes nothing, and a checker can tell.
TEST(DecodeL2, StrayCopiedIsDropped) {
  EXPECT_EQ(*decode_l2({kCopied}, kStandard), Mapping{});
  EXPECT_EQ(*decode_l2({kCopied | kReadsZero}, kStandard), Mapping{.zero = 1});
  EXPECT_EQ(*decode_l2({kCopied | kCompressed | 0x50000}, kStandard),
            *decode_l2({kCompressed | 0x50000}, kStandard));
  for (const uint64_t stray : {kCopied, kCopied | kReadsZero, kCopied | kCompressed | 0x50000})
    EXPECT_TRUE(has_stray_copied({stray}, kStandard));
  for (const uint64_t fine : {kCopied | 0x50000, kCopied | kReadsZero | 0x50000, uint64_t{0}})
    EXPECT_FALSE(has_stray_copied({fine}, kStandard));
  EXPECT_FALSE(has_stray_copied({kCopied}, kWithDataFile));
  for (const Geometry& geometry : kShapes) {
    EXPECT_EQ(encode_l2(Mapping{}, geometry), L2Entry{});
    EXPECT_FALSE(has_stray_copied(encode_l2(Mapping{.copied = true}, geometry), geometry));
  }
}

// Trap 34.
TEST(DecodeL2, TheZeroFlagNeedsVersionThreeAndStandardEntries) {
  for (const uint64_t host : {uint64_t{0}, uint64_t{0x50000}, kCopied | 0x50000}) {
    EXPECT_EQ(error_of({host | kReadsZero}, kStandard), "");
    EXPECT_NE(error_of({host | kReadsZero}, kV2), "");
    EXPECT_NE(error_of({host | kReadsZero}, kExtended), "");
  }
}

// Trap 35, trap 36: a zero cluster is not unallocated, and keeps its preallocation.
TEST(DecodeL2, AZeroClusterKeepsItsPreallocation) {
  EXPECT_EQ(*decode_l2({kReadsZero}, kStandard), Mapping{.zero = 1});
  const Mapping kept{.copied = true, .zero = 1, .host = HostCluster{5}};
  EXPECT_EQ(*decode_l2({kCopied | 0x50000 | kReadsZero}, kStandard), kept);
  EXPECT_EQ(hosts(kept, kStandard), (HostSpan{{5}, 1}));
  EXPECT_EQ(hosts(Mapping{.zero = 1}, kStandard).count, 0u);
}

// Trap 37: offset 0 is a place in an external data file, told from nowhere by COPIED alone.
TEST(DecodeL2, OffsetZeroIsAPlaceInADataFile) {
  const Mapping first = data(0);
  EXPECT_EQ(*decode_l2({kCopied}, kWithDataFile), first);
  EXPECT_EQ(*decode_l2({0}, kWithDataFile), Mapping{});
  EXPECT_EQ(encode_l2(first, kWithDataFile), L2Entry{kCopied});
  EXPECT_EQ(*decode_l2({kCopied | kReadsZero}, kWithDataFile),
            (Mapping{.copied = true, .zero = 1, .host = HostCluster{0}}));
  EXPECT_EQ(*decode_l2({kReadsZero}, kWithDataFile), Mapping{.zero = 1});
  EXPECT_EQ(*decode_l2({kCopied, 0xff}, kExtendedWithDataFile), data(0, true, 0xff));
  EXPECT_NE(error_of({0, 0xff}, kExtendedWithDataFile), "");
  EXPECT_EQ(hosts(data(7), kWithDataFile).count, 0u);  // Not refcounted.
}

// Trap 37: data clusters of a data file are ours alone whatever the bit says, and lie at their own
// guest offset.
TEST(DecodeL2, HostsInADataFileAreOurs) {
  EXPECT_EQ(*decode_l2({0x50000}, kWithDataFile), data(5));
  EXPECT_EQ(encode_l2(data(5, false), kWithDataFile), L2Entry{kCopied | 0x50000});
  EXPECT_TRUE(at_own_offset(data(5), GuestCluster{5}));
  EXPECT_FALSE(at_own_offset(data(5), GuestCluster{6}));
  EXPECT_TRUE(at_own_offset(Mapping{.zero = 1}, GuestCluster{6}));
}

// Trap 38.
TEST(L2Table, ExtendedEntriesAreTwiceAsLong) {
  for (const Geometry& geometry : {kStandard, kExtended}) {
    std::vector<std::byte> table(geometry.cluster_size());
    const L2Entry entry{kCopied | 0x50000, geometry.extended_l2 ? 0x0102u : 0u};
    const size_t last = geometry.l2_entries() - 1;
    store_l2(table, last, entry, geometry);
    EXPECT_EQ(load_l2(table, last, geometry), entry);
    EXPECT_TRUE(is_zero(Bytes(table).first(table.size() - geometry.l2_entry_size())));
    EXPECT_EQ(table[table.size() - geometry.l2_entry_size()], std::byte{0x80});
  }
}

// Trap 39: each pair of bits of the bitmap, with and without a host.
TEST(DecodeL2, SubclustersAreNotZeroAndAllocatedAtOnce) {
  for (uint32_t a = 0; a < 64; ++a)
    for (uint32_t b = 0; b < 64; ++b)
      for (const uint64_t host : {uint64_t{0}, kCopied | 0x50000}) {
        const L2Entry entry{host, uint64_t{1} << a | uint64_t{1} << b};
        const bool both = a % 32 == b % 32 && a != b;
        const bool nowhere = host == 0 && (a < 32 || b < 32);
        ASSERT_EQ(error_of(entry, kExtended) == "", !both && !nowhere) << a << " " << b;
        if (both || nowhere) continue;
        const Mapping mapping = *decode_l2(entry, kExtended);
        expect_sound(mapping, kExtended);
        EXPECT_EQ(uint64_t{mapping.zero} << 32 | mapping.allocated, entry.bitmap);
        EXPECT_EQ(encode_l2(mapping, kExtended), entry);
      }
}

// Trap 39, trap 55.
TEST(DecodeL2, CompressedClustersHaveNoSubclustersAndNoDataFile) {
  const uint64_t compressed = kCompressed | 0x50123;
  EXPECT_EQ(error_of({compressed, 0}, kExtended), "");
  EXPECT_NE(error_of({compressed, 1}, kExtended), "");
  EXPECT_NE(error_of({compressed, uint64_t{1} << 63}, kExtended), "");
  EXPECT_NE(error_of({compressed}, kWithDataFile), "");
  EXPECT_FALSE(can_describe_compressed({0x50123}, 10, kWithDataFile));
}

// Trap 41: a host without any unit reads from the backing file.
TEST(DecodeL2, APreallocatedExtendedEntryFallsThrough) {
  const Mapping kept{.copied = true, .host = HostCluster{5}};
  EXPECT_EQ(*decode_l2({kCopied | 0x50000, 0}, kExtended), kept);
  EXPECT_EQ(encode_l2(kept, kExtended), (L2Entry{kCopied | 0x50000, 0}));
  EXPECT_EQ(hosts(kept, kExtended).count, 1u);
}

// Trap 44, trap 45, trap 47, trap 59: at each cluster size, streams at every interesting offset
// with every interesting length; the entry names exactly the sectors that the stream touches.
TEST(CompressedL2, DescribesTheSectorsAStreamTouches) {
  for (uint32_t bits = kClusterBitsMin; bits <= kClusterBitsMax; ++bits) {
    const Geometry geometry{.cluster_bits = bits};
    const uint64_t size = geometry.cluster_size();
    const uint64_t limit = geometry.compressed_offset_limit().value;
    std::set<uint64_t> offsets;
    for (const uint64_t near : {size, size + 512, 2 * size, 3 * size + size / 2, limit - size,
                                limit - 2 * size, limit / 2})
      for (uint64_t delta = 0; delta <= 4; ++delta) {
        offsets.insert(near + delta);
        offsets.insert(near - delta);
        offsets.insert(near + 511 + delta);
      }
    std::set<uint64_t> lengths;
    for (const uint64_t near : {uint64_t{4}, uint64_t{512}, uint64_t{1024}, size - 4, size,
                                size + 512, 2 * size - 512, 2 * size - 4})
      for (uint64_t delta = 0; delta <= 4; ++delta) {
        lengths.insert(near + delta);
        lengths.insert(near - delta);
      }

    for (const uint64_t at : offsets)
      for (const uint64_t length : lengths) {
        const uint64_t sectors = (at + length - 1) / 512 - at / 512 + 1;
        const bool fits = at >= size && at < limit && length > 0 && sectors <= 2 * size / 512;
        ASSERT_EQ(can_describe_compressed({at}, length, geometry), fits)
            << "cluster bits " << bits << ", at " << at << ", length " << length;
        if (!fits) continue;
        const L2Entry entry = encode_compressed({at}, length, geometry);
        const Result<Mapping> mapping = decode_l2(entry, geometry);
        ASSERT_TRUE(mapping) << mapping.error().message();
        expect_sound(*mapping, geometry);
        ASSERT_EQ(mapping->compressed_at.value, at);
        ASSERT_EQ(mapping->compressed_size, sectors * 512 - at % 512);
        ASSERT_EQ(encode_l2(*mapping, geometry), entry);
        ASSERT_EQ(*mapping, compressed_mapping({at}, length));

        const HostSpan span = hosts(*mapping, geometry);
        ASSERT_EQ(span.first.value, at / size);
        ASSERT_EQ(span.end().value, (at + length - 1) / size + 1);
        ASSERT_LE(span.count, 3u);
      }
  }
}

// Trap 44: the field widths by hand.
TEST(CompressedL2, FieldWidthsByHand) {
  const Geometry small{.cluster_bits = 9};  // x = 61, one bit of count.
  EXPECT_EQ(decode_l2({kCompressed | 0x600}, small)->compressed_size, 512u);
  EXPECT_EQ(decode_l2({kCompressed | uint64_t{1} << 61 | 0x600}, small)->compressed_size, 1024u);
  const Geometry usual{.cluster_bits = 16};  // x = 54.
  const Mapping mapping = *decode_l2({kCompressed | uint64_t{255} << 54 | 0x50001}, usual);
  EXPECT_EQ(mapping.compressed_at.value, 0x50001u);
  EXPECT_EQ(mapping.compressed_size, 2 * 65536u - 1);
  const Geometry large{.cluster_bits = 21};  // x = 49.
  EXPECT_EQ(decode_l2({kCompressed | uint64_t{1} << 49 | 0x200000}, large)->compressed_size, 1024u);
}

// Trap 46: every value of the count field is accepted, up to two clusters.
TEST(CompressedL2, EveryCountIsAccepted) {
  for (uint32_t bits = kClusterBitsMin; bits <= kClusterBitsMax; ++bits) {
    const Geometry geometry{.cluster_bits = bits};
    const uint64_t counts = uint64_t{1} << (62 - geometry.compressed_offset_bits());
    EXPECT_EQ(counts * 512, 2 * geometry.cluster_size());
    for (uint64_t n = 0; n < counts; ++n) {
      const Result<Mapping> mapping = decode_l2(
          {kCompressed | n << geometry.compressed_offset_bits() | geometry.cluster_size() * 3},
          geometry);
      ASSERT_TRUE(mapping);
      ASSERT_EQ(mapping->compressed_size, (n + 1) * 512);
    }
  }
}

// Trap 47: a stream that starts in the last sector of a cluster and is two clusters long touches
// three; one that ends exactly at the end of a cluster does not touch the next.
TEST(CompressedL2, HostsEndWhereTheLastSectorEnds) {
  for (uint32_t bits = 10; bits <= kClusterBitsMax; ++bits) {
    const Geometry geometry{.cluster_bits = bits};
    const uint64_t size = geometry.cluster_size();
    EXPECT_EQ(hosts(compressed_mapping({2 * size - 512}, 2 * size), geometry), (HostSpan{{1}, 3}));
    EXPECT_EQ(hosts(compressed_mapping({size}, size), geometry), (HostSpan{{1}, 1}));
    EXPECT_EQ(hosts(compressed_mapping({size + 1}, size - 1), geometry), (HostSpan{{1}, 1}));
    EXPECT_EQ(hosts(compressed_mapping({size + 1}, size), geometry), (HostSpan{{1}, 2}));
  }
}

// Trap 53: where the field is wider than 56 bits the upper ones must be zero.
TEST(CompressedL2, OffsetsAbove56BitsAreCorruption) {
  for (uint32_t bits = kClusterBitsMin; bits <= kClusterBitsMax; ++bits) {
    const Geometry geometry{.cluster_bits = bits};
    for (uint32_t bit = 56; bit < geometry.compressed_offset_bits(); ++bit)
      EXPECT_NE(error_of({kCompressed | uint64_t{1} << bit | geometry.cluster_size()}, geometry),
                "");
    const uint64_t limit = geometry.compressed_offset_limit().value;
    EXPECT_FALSE(can_describe_compressed({limit}, 1, geometry));
    EXPECT_TRUE(can_describe_compressed({limit - 1}, 1, geometry));
  }
}

// Trap 54: no stream is written into an encrypted image; what others have written there is read.
TEST(CompressedL2, NothingIsCompressedIntoAnEncryptedImage) {
  const Geometry encrypted{.encrypted = true};
  EXPECT_TRUE(can_describe_compressed({0x50000}, 100, kStandard));
  EXPECT_FALSE(can_describe_compressed({0x50000}, 100, encrypted));
  const L2Entry exposed{kCompressed | 0x50000};
  const Result<Mapping> mapping = decode_l2(exposed, encrypted);
  ASSERT_TRUE(mapping);
  EXPECT_EQ(encode_l2(*mapping, encrypted), exposed);
}

TEST(CompressedL2, NothingIsCompressedIntoTheHeader) {
  EXPECT_NE(error_of({kCompressed}, kStandard), "");
  EXPECT_NE(error_of({kCompressed | 0xffff}, kStandard), "");
  EXPECT_EQ(error_of({kCompressed | 0x10000}, kStandard), "");
}

// Any 128 bits are either refused or a sound mapping that comes back the same.
TEST(DecodeL2, WhateverIsAcceptedIsSoundAndComesBack) {
  Prng random(1);
  size_t accepted = 0;
  for (int i = 0; i < 200'000; ++i) {
    Geometry geometry = kShapes[random.below(std::size(kShapes))];
    geometry.cluster_bits = static_cast<uint32_t>(
        random.between(geometry.extended_l2 ? 14 : kClusterBitsMin, kClusterBitsMax));
    L2Entry entry{random.next() & random.next(), 0};
    if (!random.one_in(4)) entry.descriptor &= ~uint64_t{0} << geometry.cluster_bits | 1;
    if (!random.one_in(4)) entry.descriptor &= kCopied | kCompressed | kOffsetMask | 1;
    if (geometry.extended_l2) entry.bitmap = random.next() & random.next() & random.next();
    const Result<Mapping> mapping = decode_l2(entry, geometry);
    const Result<Mapping> slow = decode_l2_any(entry, geometry);
    ASSERT_EQ(bool(mapping), bool(slow));
    if (!mapping) continue;
    ++accepted;
    ASSERT_EQ(*mapping, *slow);
    expect_sound(*mapping, geometry);
    const L2Entry again = encode_l2(*mapping, geometry);
    ASSERT_EQ(*decode_l2(again, geometry), *mapping);
    ASSERT_EQ(again.descriptor & ~kCopied, entry.descriptor & ~kCopied);
    ASSERT_EQ(again.bitmap, entry.bitmap);
  }
  EXPECT_GT(accepted, 10'000u);
}

/// Does the second entry go on as the first, by what they decode to?
bool goes_on(L2Entry first, L2Entry second, const Geometry& geometry) {
  const Result<Mapping> one = decode_l2(first, geometry);
  const Result<Mapping> two = decode_l2(second, geometry);
  if (!one || !two || one->compressed) return false;
  Mapping expected = *one;
  if (expected.host) expected.host = *expected.host + 1;
  return *two == expected;
}

// Tables of runs with a fault here and there: what is counted goes on by its decoding as well.
TEST(CountAlike, CountsWhatDecodesAsTheNext) {
  Prng random(2);
  size_t long_runs = 0;
  for (int i = 0; i < 20'000; ++i) {
    Geometry geometry = kShapes[random.below(std::size(kShapes))];
    std::byte bytes[16 * 16];
    const size_t count = 16;
    L2Entry entry{random.below(200) << geometry.cluster_bits, 0};
    if (random.one_in(2)) entry.descriptor |= kCopied;
    if (random.one_in(4) && !geometry.extended_l2 && geometry.version > 2) entry.descriptor |= 1;
    if (random.one_in(8))
      entry.descriptor |= (kOffsetMask >> 3 << 3) - (3u << geometry.cluster_bits);
    if (geometry.extended_l2 && entry.descriptor != 0) entry.bitmap = random.next() & 0xffff;
    const bool has_host = (entry.descriptor & kOffsetMask) != 0;
    for (size_t n = 0; n < count; ++n) {
      if (random.one_in(20)) entry.descriptor ^= uint64_t{1} << random.below(64);
      if (random.one_in(40)) entry.bitmap ^= geometry.extended_l2 ? 1 : 0;
      store_l2(bytes, n, entry, geometry);
      if (has_host) entry.descriptor += geometry.cluster_size();
    }
    const Result<Mapping> first = decode_l2(load_l2(bytes, 0, geometry), geometry);
    if (!first || first->compressed) continue;
    const size_t found = count_alike(bytes, 0, count, *first, geometry);
    long_runs += found > 4;
    ASSERT_GE(found, 1u);
    for (size_t n = 1; n < found; ++n) {
      ASSERT_TRUE(goes_on(load_l2(bytes, n - 1, geometry), load_l2(bytes, n, geometry), geometry))
          << hex(load_l2(bytes, n, geometry).descriptor);
    }
    // It stops no earlier than where the entries, COPIED among them, do not go on.
    if (found == count) continue;
    const L2Entry last = load_l2(bytes, found - 1, geometry);
    const L2Entry next = load_l2(bytes, found, geometry);
    ASSERT_TRUE(!goes_on(last, next, geometry) || (last.descriptor ^ next.descriptor) >> 63 != 0);
  }
  EXPECT_GT(long_runs, 1000u);
}

TEST(CountAlike, NoSumCarriesIntoTheFlags) {
  const uint64_t last = kOffsetMask & ~uint64_t{0xffff};
  std::byte bytes[16];
  store_l2(bytes, 0, {last}, kStandard);
  store_l2(bytes, 1, {last + 0x10000}, kStandard);
  EXPECT_EQ(count_alike(bytes, 0, 2, *decode_l2({last}, kStandard), kStandard), 1u);
}

}  // namespace
}  // namespace byre
