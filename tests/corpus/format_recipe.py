#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the first inputs of src/format's fuzzers into tests/corpus/*_fuzz, named for what they are.

Run it in any place; it replaces the files that it names and leaves the others alone.
"""
import os
import random
import struct
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
LUKS, DATA_FILE, BITMAPS, UNKNOWN_BIT, VERSION_2, NAMED = 1, 2, 4, 8, 16, 32


def put(fuzzer, name, data):
    folder = os.path.join(HERE, fuzzer)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def extension(kind, data):
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def bitmaps_extension(count, size, offset):
    return struct.pack(">IIQQ", count, 0, size, offset)


FORMAT = extension(0xE2792ACA, b"qcow2")
DATA_NAME = extension(0x44415441, b"data.raw")
CRYPTO = extension(0x0537BE77, struct.pack(">QQ", 0x40000, 2068480))
BITMAPS_EXT = extension(0x23852875, bitmaps_extension(2, 96, 0x70000))
UNKNOWN = extension(0x12345678, b"kept byte for byte")
END = extension(0, b"")


def feature(kind, bit, name):
    return struct.pack(">BB46s", kind, bit, name)


NAMES = extension(0x6803F857, feature(0, 0, b"dirty bit") + feature(0, 40, b"x" * 46)
                  + feature(9, 200, b"nothing"))


def header(version=3, cluster_bits=16, backing=b"", extensions=b"", length=112, incompatible=0,
           autoclear=0, crypt=0, compression=0, order=4, size=1 << 20, tail=b""):
    cluster = 1 << cluster_bits
    start = 72 if version == 2 else length
    name_at = start + len(extensions) if backing else 0
    span = cluster * (cluster // (16 if incompatible & 16 else 8))
    out = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, name_at, len(backing), cluster_bits,
                      size, crypt, -(-size // span), 3 * cluster, cluster, 1, 0, 0)
    if version == 3:
        out += struct.pack(">QQQII", incompatible, 0, autoclear, order, length)
        if length > 104:
            out += bytes([compression])
        out += tail
        out += bytes(start - len(out))
    return out + extensions + backing


put("header_fuzz", "v3", header())
put("header_fuzz", "v2", header(version=2))
put("header_fuzz", "v2_with_format_and_backing_file",
    header(version=2, extensions=FORMAT + END, backing=b"base.qcow2"))
put("header_fuzz", "v3_without_compression_type", header(length=104))
put("header_fuzz", "v3_longer_than_known", header(length=136, tail=bytes(range(1, 32))))
put("header_fuzz", "v3_length_not_a_multiple_of_8", header(length=117, tail=b"\1\2\3"))
put("header_fuzz", "zstd_and_extended_l2", header(incompatible=24, compression=1))
put("header_fuzz", "raw_data_file", header(incompatible=4, autoclear=2, extensions=DATA_NAME + END))
put("header_fuzz", "luks", header(crypt=2, extensions=CRYPTO + END))
put("header_fuzz", "small_clusters_full_of_names",
    header(cluster_bits=9, size=4096, extensions=FORMAT + NAMES + END, backing=b"b"))
put("header_fuzz", "large_clusters", header(cluster_bits=21, order=6, size=(1 << 40) + 5))
put("header_fuzz", "everything",
    header(incompatible=4, autoclear=3, crypt=2, backing=b"../base image.raw",
           extensions=FORMAT + DATA_NAME + CRYPTO + BITMAPS_EXT + NAMES + UNKNOWN + END))
put("header_fuzz", "unknown_feature", header(incompatible=1 << 40, extensions=NAMES + END))

put("extension_fuzz", "none", bytes([0]))
put("extension_fuzz", "format", bytes([0]) + FORMAT + END)
put("extension_fuzz", "all",
    bytes([LUKS | DATA_FILE | BITMAPS])
    + FORMAT + DATA_NAME + CRYPTO + BITMAPS_EXT + NAMES + UNKNOWN + UNKNOWN + END)
put("extension_fuzz", "without_their_bits", bytes([0]) + DATA_NAME + BITMAPS_EXT + NAMES)
put("extension_fuzz", "unsound_bitmaps", bytes([0]) + extension(0x23852875, b"not bitmaps") + END)
put("extension_fuzz", "twice_the_same", bytes([0]) + FORMAT + FORMAT)
put("extension_fuzz", "twice_different", bytes([0]) + FORMAT + extension(0xE2792ACA, b"raw"))
put("extension_fuzz", "unknown_feature",
    bytes([UNKNOWN_BIT]) + NAMES + struct.pack(">II", 7, 0xFFFFFFFF))
put("extension_fuzz", "v2", bytes([VERSION_2]) + FORMAT + BITMAPS_EXT)
put("extension_fuzz", "cut_by_the_backing_file", bytes([NAMED]) + FORMAT + UNKNOWN + NAMES)
put("extension_fuzz", "length_beyond_the_end", bytes([0]) + struct.pack(">II", 7, 0xFFFFFFF8))


def entries(*pairs):
    return b"".join(struct.pack(">QQ", *pair) for pair in pairs)


COPIED, COMPRESSED = 1 << 63, 1 << 62
put("l2_fuzz", "standard",
    bytes([7, 0]) + entries((0, 0), (COPIED | 0x50000, 0), (0x50001, 0), (1, 0), (COPIED, 0),
                            (COMPRESSED | 0x51234, 0), (COMPRESSED | 255 << 54 | 0x5FFFF, 0)))
put("l2_fuzz", "extended",
    bytes([7, 2]) + entries((COPIED | 0x50000, 0xFFFF), (COPIED | 0x50000, 0xFFFF0000 << 16),
                            (0, 1 << 40), (COPIED | 0x50000, 0), (0x50000, 1 << 32 | 1),
                            (COMPRESSED | 0x51234, 0)))
put("l2_fuzz", "data_file", bytes([7, 4]) + entries((COPIED, 0), (0x50000, 0), (COPIED | 1, 0)))
put("l2_fuzz", "v2", bytes([7, 1]) + entries((COPIED | 0x50000, 0), (1, 0)))
put("l2_fuzz", "small_clusters",
    bytes([0, 0]) + entries((COMPRESSED | 1 << 61 | 0x601, 0), (COPIED | 0x600, 0)))
put("l2_fuzz", "large_clusters",
    bytes([12, 0]) + entries((COMPRESSED | 0x1FFF << 49 | (1 << 49) - 1, 0), (COPIED | 1 << 55, 0)))

dice = random.Random(1)
for order in range(7):
    block = bytes(dice.choice((0, 0, 1, 0x10, 0xFF)) for _ in range(64))
    put("refcount_fuzz", f"order_{order}", bytes([order]) + struct.pack(">HH", 3, 60) + block)
put("refcount_fuzz", "all_used", bytes([4]) + struct.pack(">HH", 0, 32) + b"\0\1" * 32)
put("refcount_fuzz", "all_free", bytes([0]) + struct.pack(">HH", 1, 500) + bytes(64))
put("refcount_fuzz", "table_entries",
    bytes([7]) + bytes(4) + struct.pack(">QQQ", 0x20000, 1 << 62, 0x20001))


def snapshot(ident, name, extra=b"", vm_state=0):
    out = struct.pack(">QIHHIIQII", 0x50000, 1, len(ident), len(name), 1700000000, 5, 42, vm_state,
                      len(extra)) + extra + ident + name
    return out + bytes(-len(out) % 8)


EXTRA = struct.pack(">QQQ", 4096, 1 << 20, 0xFFFFFFFFFFFFFFFF)
put("snapshot_fuzz", "none", bytes([0]))
put("snapshot_fuzz", "one", bytes([1]) + snapshot(b"1", b"monday", EXTRA))
put("snapshot_fuzz", "old_without_extra_data", bytes([1]) + snapshot(b"1", b"old", vm_state=77))
put("snapshot_fuzz", "extra_data_cut_and_long",
    bytes([3]) + snapshot(b"1", b"", EXTRA[:12]) + snapshot(b"2", b"\0\n\xff", EXTRA[:16])
    + snapshot(b"", b"x", EXTRA + b"unknown"))
put("snapshot_fuzz", "padding_missing", bytes([1]) + snapshot(b"1", b"x", EXTRA).rstrip(b"\0"))
put("snapshot_fuzz", "too_large", bytes([1]) + struct.pack(">36xI", 0xFFFFFFFF))


def bitmap(name, flags=2, extra=b"", granularity=16, kind=1):
    out = struct.pack(">QIIBBHI", 0x80000, 1, flags, kind, granularity, len(name), len(extra))
    out += extra + name
    return out + bytes(-len(out) % 8)


def bitmap_input(*directory):
    body = b"".join(directory)
    return (bytes([7, 20, len(directory)])
            + bitmaps_extension(len(directory), len(body), 0x70000) + body)


put("bitmap_fuzz", "one", bitmap_input(bitmap(b"b0")))
put("bitmap_fuzz", "three",
    bitmap_input(bitmap(b"a"), bitmap(b"in use", 1), bitmap(b"\0\xff", 4, b"extra")))
put("bitmap_fuzz", "twice_the_same_name", bitmap_input(bitmap(b"a"), bitmap(b"a")))
put("bitmap_fuzz", "odd_kinds", bitmap_input(bitmap(b"x", 0, b"", 63, 200), bitmap(b"y", 8)))
put("bitmap_fuzz", "table_entry_all_ones", bytes([7, 0, 0]) + struct.pack(">QQQ", 0, 0, 1))


def deflate(data, final=True):
    maker = zlib.compressobj(6, zlib.DEFLATED, -12)
    return maker.compress(data) + maker.flush(zlib.Z_FINISH if final else zlib.Z_SYNC_FLUSH)


TEXT = (b"cluster table of the entry " * 40)[:512]


def zstd_raw(data):
    """One frame with one raw block, its content size of two bytes after 256."""
    size = struct.pack("<H", len(data) - 256) if len(data) >= 256 else struct.pack("<B", len(data))
    descriptor = 0x60 if len(data) >= 256 else 0x20
    block = struct.pack("<I", len(data) << 3 | 1)[:3]
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + size + block + data


put("codec_fuzz", "deflate", bytes([0]) + deflate(TEXT))
put("codec_fuzz", "deflate_with_junk", bytes([0]) + deflate(TEXT) + b"junk of the last sector")
put("codec_fuzz", "deflate_without_end", bytes([0]) + deflate(TEXT, final=False))
put("codec_fuzz", "deflate_of_more", bytes([0]) + deflate(TEXT * 3))
put("codec_fuzz", "deflate_of_less", bytes([2]) + deflate(TEXT))
put("codec_fuzz", "deflate_stored", bytes([0]) + b"\1\0\2\xff\xfd" + TEXT)
put("codec_fuzz", "zstd_raw_block", bytes([1]) + zstd_raw(TEXT))
put("codec_fuzz", "zstd_two_frames",
    bytes([1]) + zstd_raw(TEXT[:200]) + b"\x50\x2a\x4d\x18\1\0\0\0x" + zstd_raw(TEXT[200:]))
put("codec_fuzz", "zstd_run", bytes([1]) + bytes.fromhex("28b52ffd00a803100078"))
put("codec_fuzz", "zstd_of_less", bytes([3]) + zstd_raw(TEXT))


def qcow1(size=1 << 20, cluster_bits=12, l2_bits=9, crypt=0, version=1, l1_at=48, backing_at=0, backing_size=0):
    return struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", version, backing_at, backing_size, 0, size, cluster_bits, l2_bits, 0,
                       crypt, l1_at)


def qcow1_stream(at, size, cluster_bits=12):
    return 1 << 63 | size << (63 - cluster_bits) | at


QCOW1_ENTRIES = struct.pack(">6Q", 0, 48, 0x5200, 0x5201, qcow1_stream(0x1234567, 4095), qcow1_stream(0x1000, 0))
put("qcow1_fuzz", "entries", qcow1() + QCOW1_ENTRIES)
put("qcow1_fuzz", "smallest", qcow1(size=2, cluster_bits=9, l2_bits=6) + QCOW1_ENTRIES)
put("qcow1_fuzz", "largest", qcow1(size=((1 << 31) - 1) // 8 << 29, cluster_bits=16, l2_bits=13) + QCOW1_ENTRIES)
put("qcow1_fuzz", "too_large", qcow1(size=(1 << 64) - 1))
put("qcow1_fuzz", "encrypted", qcow1(crypt=1))
put("qcow1_fuzz", "backing", qcow1(backing_at=48, backing_size=5, l1_at=56) + b"a.raw\0\0\0")
put("qcow1_fuzz", "version_2", qcow1(version=2))


def qcow1_image(entries, size=65536, tail=b"", l1=(512,)):
    """Clusters of 512 bytes, one L2 table at 512, data from 1024 on."""
    head = (qcow1(size=size, cluster_bits=9, l2_bits=6) + struct.pack(f">{len(l1)}Q", *l1)).ljust(512, b"\0")
    return head + struct.pack(f">{len(entries)}Q", *entries).ljust(512, b"\0") + tail


packer = zlib.compressobj(9, zlib.DEFLATED, -12)
STREAM = packer.compress(b"c" * 512) + packer.flush()
TAIL = b"1" * 512 + b"2" * 512 + STREAM
SOUND = (0, 1024, 1536, qcow1_stream(2048, len(STREAM), 9), 0, 1024)
put("qcow1_image_fuzz", "sound", qcow1_image(SOUND, tail=TAIL))
put("qcow1_image_fuzz", "behind_the_end", qcow1_image((1 << 40, 4096, qcow1_stream(4000, 9, 9)), tail=TAIL, l1=(512, 1 << 50)))
put("qcow1_image_fuzz", "table_is_the_header", qcow1_image(SOUND, tail=TAIL, l1=(48, 512)))
put("qcow1_image_fuzz", "not_deflate", qcow1_image((qcow1_stream(1024, 400, 9),), tail=TAIL))
put("qcow1_image_fuzz", "cut_in_a_cluster", qcow1_image((1024, 1536), tail=TAIL[:700]))
put("qcow1_image_fuzz", "cut_in_the_header", qcow1_image(())[:40])
