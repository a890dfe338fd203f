# SPDX-License-Identifier: Apache-2.0
"""Images from people who wish us ill: each is refused clearly or read safely.

Of every command on every image: it ends, by itself and with an exit code; it says why when it fails; its memory stays
within 64 MiB beside the cache; and a command that only reads leaves the file as it is, byte for byte.
"""
import contextlib
import hashlib
import json
import os
import random
import resource
import socket
import struct
import sys
import time
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import nbd  # noqa: E402
from forge import (COMPRESSED, COPIED, EXT_BITMAPS, EXT_CRYPTO, EXT_DATA_FILE, ZERO, Forged,  # noqa: E402
                   extension_bytes)
from harness import (BYRE, GIB, KIB, MIB, QEMU, TIB, Case, Died, byre_io, examine, img, main,  # noqa: E402
                     only_byre, qcow2ref, qemu_img, qemu_io, run)

MEMORY_MAX = (64 + 32) * MIB
# A command that takes this long hangs.
PATIENCE = 60
TEXT = (b"All work and no play makes Jack a dull boy. " * 2000)[:65536]


def small():
    """2 MiB, three clusters of data."""
    image = Forged(16, 2 * MIB)
    image.table = image.l2()
    for index in (0, 1, 9):
        image.data(image.table, index, TEXT)
    return image


def changed(**fields):
    def make():
        image = small()
        image.header(**fields)
        return image
    return make


def entry(index, value):
    """An L2 entry; `value` may be computed from the image."""
    def make():
        image = small()
        image.put(image.table + 8 * index, value(image) if callable(value) else value)
        return image
    return make


def l1_entry(value, **options):
    def make():
        image = small()
        image.put(image.l1, value(image) if callable(value) else value)
        return image
    return make


def reftable_entry(value, index=0):
    def make():
        image = small()
        image.put(image.reftable + 8 * index, value(image) if callable(value) else value)
        return image
    return make


def refblocks_in_a_ring():
    image = small()
    other = image.cluster()
    image.put(image.reftable, image.refblock, other, image.reftable, image.refblock)
    image.splice(other, struct.pack(">QQ", image.refblock, image.reftable))
    return image


def huge(bits, size, same_table=0):
    """A small file with a large disk; the first `same_table` L1 entries share one full L2 table."""
    image = Forged(bits, size)
    if same_table:
        table = image.l2()
        data = image.cluster()
        image.put(table, *[data | COPIED] * (image.cluster_size // 8))
        image.put(image.l1, *[table | COPIED] * same_table)
    return image


def extended(extension):
    image = small()
    image.splice(104, extension)
    return image


def snapshots(count, table):
    image = small()
    at = image.cluster()
    image.splice(at, table(image))
    image.header(nb_snapshots=count, snapshots_offset=at)
    return image


def snapshot_entry(l1, entries, extra=b"", name=b"one", identity=b"1", extra_size=None, name_size=None):
    raw = struct.pack(">QIHHIIQII", l1, entries, len(identity), len(name) if name_size is None else name_size, 0, 0, 0, 0,
                      len(extra) if extra_size is None else extra_size) + extra + identity + name
    return raw + bytes(-len(raw) % 8)


def bitmap_extension(count, size, offset):
    return extension_bytes(EXT_BITMAPS, struct.pack(">IIQQ", count, 0, size, offset))


def bitmaps(directory, count=1, size=None, offset=None):
    image = small()
    at = image.cluster()
    raw = directory(image)
    image.splice(at, raw)
    image.header(autoclear=1)
    image.splice(104, bitmap_extension(count, len(raw) if size is None else size, at if offset is None else offset))
    return image


def bitmap_entry(table, entries, flags=0, granularity=16, name=b"b"):
    raw = struct.pack(">QIIBBHI", table, entries, flags, 1, granularity, len(name), 0) + name
    return raw + bytes(-len(raw) % 8)


def compressed(offset, sectors, stream=None, kind=0):
    """An entry for a stream; x = 62 - (16 - 8) bits are the offset's."""
    def make():
        image = small()
        at = image.cluster() if offset is None else offset(image) if callable(offset) else offset
        if stream:
            image.splice(at, stream[:image.cluster_size])
        image.put(image.table + 8 * 3, COMPRESSED | sectors << 54 | at)
        if kind:
            image.header(incompatible=8, header_length=112)
            image.splice(104, bytes([kind]) + bytes(7))
        return image
    return make


def deflated(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


END = 1 << 40
IMAGES = {
    "L1 to itself": l1_entry(lambda i: i.l1 | COPIED),
    "L1 to the header": l1_entry(COPIED),
    "L1 to the refcount table": l1_entry(lambda i: i.reftable | COPIED),
    "L1 to the refcount block": l1_entry(lambda i: i.refblock | COPIED),
    "L1 to guest data": l1_entry(lambda i: (i.table + 65536) | COPIED),
    "L1 past the end": l1_entry(END | COPIED),
    "L1 far past the end": l1_entry(((1 << 56) - 65536) | COPIED),
    "L1 misaligned": l1_entry(lambda i: (i.table + 512) | COPIED),
    "L1 reserved bits": l1_entry(lambda i: i.table | COPIED | 1 << 56),
    "L1 all ones": l1_entry((1 << 64) - 1),
    "L2 to itself": entry(0, lambda i: i.table | COPIED),
    "L2 to the L1": entry(0, lambda i: i.l1 | COPIED),
    "L2 to the header": entry(0, COPIED),
    "L2 to the refcount block": entry(0, lambda i: i.refblock | COPIED),
    "L2 past the end": entry(0, END | COPIED),
    "L2 far past the end": entry(0, ((1 << 56) - 65536) | COPIED),
    "L2 to its neighbour's data": entry(0, lambda i: (i.table + 2 * 65536) | COPIED),
    "L2 misaligned": entry(0, lambda i: (i.table + 65536 + 1024) | COPIED),
    "L2 reserved bits": entry(0, lambda i: (i.table + 65536) | COPIED | 1 << 5),
    "L2 zero, past the end": entry(0, END | ZERO | COPIED),
    "L2 all ones": entry(0, (1 << 64) - 1),
    "L2 zero bit in version 2": lambda: old_with_zero(),
    "refcount table to itself": reftable_entry(lambda i: i.reftable),
    "refcount table to the header": reftable_entry(0, 0),
    "refcount table to the L1": reftable_entry(lambda i: i.l1),
    "refcount table past the end": reftable_entry(END),
    "refcount table misaligned": reftable_entry(lambda i: i.refblock + 512),
    "refcount table all ones": reftable_entry((1 << 64) - 1),
    "refcount table: one block twice": reftable_entry(lambda i: i.refblock, 1),
    "refcount blocks in a ring": refblocks_in_a_ring,
    "refcount table in the header": changed(refcount_table_offset=0),
    "refcount table at the end": changed(refcount_table_offset=END),
    "refcount table of 0 clusters": changed(refcount_table_clusters=0),
    "refcount table of 2^32 clusters": changed(refcount_table_clusters=0xFFFFFFFF),
    "refcount order 7": changed(refcount_order=7),
    "refcount order 255": changed(refcount_order=255),
    "refcount order 6": changed(refcount_order=6),
    "size 2^63": changed(size=1 << 63),
    "size 2^63 - 512": changed(size=(1 << 63) - 512),
    "size 2^64 - 1": changed(size=(1 << 64) - 1),
    "size with half a sector": changed(size=2 * MIB - 100),
    "size 0": changed(size=0),
    "L1 of 0 entries": changed(l1_size=0),
    "L1 of 2^32 entries": changed(l1_size=0xFFFFFFFF),
    "L1 of 4 Mi entries": changed(l1_size=4 * MIB),
    "L1 too small": changed(size=64 * GIB),
    "L1 in the header": changed(l1_table_offset=0),
    "L1 at the end": changed(l1_table_offset=END),
    "L1 at 2^64": changed(l1_table_offset=(1 << 64) - 65536),
    "L1 table misaligned": changed(l1_table_offset=3 * 65536 + 8),
    **{f"cluster bits {bits}": changed(cluster_bits=bits) for bits in (0, 8, 9, 21, 22, 31, 63, 64, 255, 1 << 31)},
    **{f"version {version}": changed(version=version) for version in (0, 1, 2, 4, 255)},
    **{f"header length {length}": changed(header_length=length) for length in (0, 8, 105, 65544, 0xFFFFFFF8)},
    "unknown feature": changed(incompatible=1 << 40),
    "all features": changed(incompatible=(1 << 64) - 1),
    "dirty": changed(incompatible=1),
    "marked corrupt": changed(incompatible=2),
    "extended L2 with plain tables": changed(incompatible=16),
    "compression type without its bit": lambda: with_type(0, 1),
    "unknown compression type": lambda: with_type(8, 77),
    "encrypted with nothing": changed(crypt_method=2),
    "encrypted with AES": changed(crypt_method=1),
    "encrypted with 99": changed(crypt_method=99),
    "crypto header at the end": lambda: crypto(END, 1 << 20),
    "crypto header of 2^60 bytes": lambda: crypto(65536, 1 << 60),
    "extension of 4 GiB": lambda: extended(struct.pack(">II", 0x12345678, 0xFFFFFFFF)),
    "extension over the end of the cluster": lambda: extended(struct.pack(">II", 0x12345678, 65536 - 112 + 8)),
    "eight thousand extensions": lambda: extended(struct.pack(">II", 0x12345678, 0) * 8100),
    "feature names without end": lambda: extended(extension_bytes(0x6803F857, b"\xff" * 48 * 1200)),
    "backing name of 4 GiB": changed(backing_file_offset=200, backing_file_size=0xFFFFFFFF),
    "backing name of 1024": changed(backing_file_offset=200, backing_file_size=1024),
    "backing name at 2^64": changed(backing_file_offset=(1 << 64) - 1, backing_file_size=5),
    "backing name in the header": changed(backing_file_offset=0, backing_file_size=5),
    "backing name past the cluster": changed(backing_file_offset=65530, backing_file_size=50),
    "2^32 snapshots": lambda: snapshots(0xFFFFFFFF, lambda i: b""),
    "65536 snapshots of nothing": lambda: snapshots(65536, lambda i: b""),
    "snapshots past the end": changed(nb_snapshots=3, snapshots_offset=END),
    "snapshots in the header": changed(nb_snapshots=3, snapshots_offset=0),
    "snapshots misaligned": changed(nb_snapshots=1, snapshots_offset=1000),
    "snapshot with the active L1": lambda: snapshots(1, lambda i: snapshot_entry(i.l1, 1)),
    "snapshot with an L1 past the end": lambda: snapshots(1, lambda i: snapshot_entry(END, 1)),
    "snapshot with an L1 of 2^32": lambda: snapshots(1, lambda i: snapshot_entry(i.l1, 0xFFFFFFFF)),
    "snapshot with extra data of 4 GiB": lambda: snapshots(1, lambda i: snapshot_entry(i.l1, 1, extra_size=0xFFFFFFFF)),
    "snapshot with a name of 64 KiB": lambda: snapshots(1, lambda i: snapshot_entry(i.l1, 1, name_size=0xFFFF)),
    "snapshot that colours the terminal": lambda: snapshots(
        1, lambda i: snapshot_entry(i.l1, 1, name=b"\x1b[31mred\n\0\xff\xfe")),
    "a thousand snapshots of one L1": lambda: snapshots(
        1000, lambda i: b"".join(snapshot_entry(i.l1, 1, identity=b"%d" % n) for n in range(1000))),
    "2^32 bitmaps": lambda: bitmaps(lambda i: b"", count=0xFFFFFFFF, size=65536),
    "bitmap directory of 2^60": lambda: bitmaps(lambda i: b"", size=1 << 60),
    "bitmap directory past the end": lambda: bitmaps(lambda i: b"", size=64, offset=END),
    "bitmap table in the header": lambda: bitmaps(lambda i: bitmap_entry(0, 1)),
    "bitmap table past the end": lambda: bitmaps(lambda i: bitmap_entry(END, 1)),
    "bitmap table of 2^32": lambda: bitmaps(lambda i: bitmap_entry(i.l1, 0xFFFFFFFF)),
    "bitmap table that is the L1": lambda: bitmaps(lambda i: bitmap_entry(i.l1, 1)),
    "bitmap of granularity 255": lambda: bitmaps(lambda i: bitmap_entry(i.l1, 1, granularity=255)),
    "stream in the header": compressed(0, 100),
    "stream past the end": compressed(END, 3),
    "stream over the end": compressed(lambda i: len(i.bytes) - 100, 255),
    "stream at 2^54": compressed((1 << 54) - 1, 255),
    "stream of garbage": compressed(None, 127, random.Random(1).randbytes(65536)),
    "stream that makes more than a cluster": compressed(None, 127, deflated(bytes(64 * MIB))),
    "stream that makes less": compressed(None, 20, deflated(bytes(100))),
    "stream in clusters that are free": compressed(lambda i: len(i.bytes) + 100, 255),
    "data without a refcount": lambda: without_refcount(lambda i: i.table + 65536),
    "L2 table without a refcount": lambda: without_refcount(lambda i: i.table),
    "L1 without a refcount": lambda: without_refcount(lambda i: i.l1),
    "header without a refcount": lambda: without_refcount(lambda i: 0),
    "refcount block without a refcount": lambda: without_refcount(lambda i: i.refblock),
    "everything without a refcount": lambda: without_refcount(lambda i: range(0, len(i.bytes), 65536)),
    "refcounts at their maximum": lambda: without_refcount(lambda i: range(0, len(i.bytes), 65536), 0xFFFF),
    "zstd stream of garbage": compressed(None, 127, b"\x28\xb5\x2f\xfd" + random.Random(2).randbytes(60000), 1),
    "zstd window of 2 GiB": compressed(None, 127, b"\x28\xb5\x2f\xfd\x00\xa8" + bytes(1000), 1),
    "petabytes, 64 KiB clusters": lambda: huge(16, 8 * TIB),
    "petabytes, 2 MiB clusters": lambda: huge(21, 4096 * TIB),
    "one table everywhere": lambda: huge(9, 32 * KIB * 64, 64),
}


def old_with_zero():
    image = Forged(16, 2 * MIB, version=2)
    image.table = image.l2()
    image.data(image.table, 0, TEXT)
    image.put(image.table + 8, ZERO)
    return image


def without_refcount(where, value=0):
    image = small()
    for offset in where(image) if isinstance(where(image), range) else [where(image)]:
        image.refcount(offset // 65536, value)
    return image


def with_type(incompatible, kind):
    image = small()
    image.header(incompatible=incompatible, header_length=112)
    image.splice(104, bytes([kind]) + bytes(7))
    return image


def crypto(offset, length):
    image = small()
    image.header(crypt_method=2)
    image.splice(104, extension_bytes(EXT_CRYPTO, struct.pack(">QQ", offset, length)))
    return image


def digest(path):
    """Of what is in the file; holes are not read."""
    total = hashlib.sha256()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        total.update(str(size).encode())
        at = 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            while at < end:
                piece = os.pread(file.fileno(), min(MIB, end - at), at)
                total.update(f"{at}".encode() + piece)
                at += len(piece)
    return total.digest()


def modest():
    """A command may fill neither memory nor disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * GIB, 8 * GIB))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Prober(Case):
    """Runs commands on an image that may be anything."""

    def probe(self, words, memory_max=MEMORY_MAX, **options):
        """The command ends as it should, whatever it finds."""
        done = run(*words, ok=None, patience=PATIENCE, preexec_fn=modest, **options)
        self.assertLess(done.code, 126, done)
        if not QEMU:
            self.assertLess(done.memory, memory_max, done)
            self.assertLess(done.out_size + done.err_size, 8 * MIB, "a small file makes it say far too much")
        if done.code and words[1] != "io":
            self.assertNotEqual(done.err_size, 0, done)
        for said in (done.out, done.err):
            if b"\x1b" in said:
                self.fail(f"a name drives the terminal: {done}")
        return done

    def read_only(self, path, serve=True, memory_max=MEMORY_MAX, quick=False):
        """Every command that only reads (`quick`: most of them).  Gives what each said."""
        before = digest(path)
        tool = [BYRE] if not QEMU else ["qemu-img"]
        io = [BYRE, "io"] if not QEMU else ["qemu-io"]
        out = self.path("out")
        done = {}
        for name, words in {
            "info": [*tool, "info", path],
            "info json": [*tool, "info", "--output=json", path],
            "chain": [*tool, "info", "--backing-chain", "-f", "qcow2", path],
            "check": [*tool, "check", "-f", "qcow2", path],
            "check json": [*tool, "check", "--output=json", "-f", "qcow2", path],
            "map": [*tool, "map", "-f", "qcow2", path],
            "map json": [*tool, "map", "--output=json", "-f", "qcow2", path],
            "convert": [*tool, "convert", "-f", "qcow2", "-O", "raw", path, out],
            "io": [*io, "-r", "-f", "qcow2", "-c", "read 0 64k", "-c", "read 64k 1M", "-c", "read 1024k 512", "-c", "map",
                   "-c", "length", "-c", "alloc 0 1M", path],
        }.items():
            if not (quick and name in ("info", "chain", "check", "map")):
                done[name] = self.probe(words, memory_max)
        if done["info json"].code == 0:
            json.loads(done["info json"].out)
        if serve:
            self.serve_read_only(path, memory_max)
        self.assertEqual(digest(path), before, "a command that only reads has written")
        return done

    def serve_read_only(self, path, memory_max):
        try:
            server = self.server(path, read_only=True)
        except Died:
            raise
        except AssertionError:
            return  # Refused, with an exit code.
        handle = nbd.NBD()
        handle.add_meta_context("base:allocation")
        handle.connect_uri(server.uri)
        size = handle.get_size()
        for offset, length in ((0, 65536), (65536, MIB), (size // 2, 4096), (size - 65536, 65536)):
            with contextlib.suppress(nbd.Error):  # An answer all the same.
                length = min(length, size)
                offset = max(0, min(offset, size - length))
                if length:
                    handle.pread(length, offset)
                    handle.block_status(min(size - offset, GIB), offset, lambda *_: 0)
        if not QEMU:
            self.assertLess(server.memory_peak(), memory_max)
        self.assertTrue(server.alive(), server.said())
        with contextlib.suppress(nbd.Error):
            handle.shutdown()
        server.stop()

    def writing(self, path):
        """Commands that write, each to a copy: they end, too."""
        tool = [BYRE] if not QEMU else ["qemu-img"]
        io = [BYRE, "io"] if not QEMU else ["qemu-io"]
        copy = self.path("copy")
        for words in ([*io, "-f", "qcow2", "-c", "write 0 64k", "-c", "write 1M 100k", "-c", "write -z 128k 256k",
                       "-c", "discard 0 1M", "-c", "flush", copy],
                      [*tool, "resize", "-f", "qcow2", copy, "+1M"],
                      [*tool, "check", "-q", "-f", "qcow2", "-r", "leaks", copy],
                      [*tool, "check", "-q", "-f", "qcow2", "-r", "all", copy]):
            run("cp", "--sparse=always", path, copy)
            done = self.probe(words)
        # The last one said that it had repaired everything.  (Of bitmaps it says only what it finds.)
        if done.code == 0 and not QEMU:
            left = [error for error in examine(copy, decode=False)["errors"] if "bitmap" not in error["text"]
                    and not error["kind"].startswith("bitmap")]
            self.assertEqual(left[:5], [], "after check -r all")

    def assert_converted_right(self, path, done):
        """What convert took for good, the reference reads the same."""
        if done["convert"].code != 0:
            return
        image = qcow2ref.Image(path)
        if image.size > 64 * MIB:
            return
        with open(self.path("out"), "rb") as file:
            for at in range(0, image.size, MIB):
                length = min(MIB, image.size - at)
                self.assertEqual(file.read(length), image.read(at, length), f"at {at}")


class Hostile(Prober):
    def test_forged_tables_and_fields(self):
        for name, make in IMAGES.items():
            with self.subTest(name):
                path = make().write(self.path("image"))
                done = self.read_only(path)
                self.writing(path)
                if not QEMU:
                    self.assert_converted_right(path, done)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path("out"))

    def test_the_sound_one_is_taken(self):
        """Otherwise the other tests prove nothing."""
        path = small().write(self.path("image"))
        done = self.read_only(path)
        for name, command in done.items():
            self.assertEqual(command.code, 0, (name, command))
        self.assert_converted_right(path, done)
        self.writing(path)

    def valid(self, name="valid"):
        """A real image with everything in it: data, compressed clusters, zeros, a snapshot, a bitmap."""
        path = self.path(name)
        raw = self.path("raw")
        with open(raw, "wb") as file:
            file.truncate(3 * MIB + 512)
            file.write(TEXT * 8)
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", raw, path)
        qemu_io(path, "write -P 3 100k 300k", "write -z 2M 64k")
        qemu_img("snapshot", "-c", "first", path)
        qemu_img("bitmap", "--add", path, "bits")
        qemu_io(path, "write -P 4 1M 100k")
        return path

    def test_cut_short_anywhere(self):
        valid = self.valid()
        path = self.path("cut")
        size = os.path.getsize(valid)
        lengths = [0, 1, 4, 8, 71, 72, 100, 103, 104, 111, 112, 200, 511, 512, 4095, 4096, 4097, 8192, 12288, 16384,
                   size // 3, size // 2, size - 4096, size - 1]
        for length in lengths:
            with self.subTest(length):
                with open(valid, "rb") as source, open(path, "wb") as cut:
                    cut.write(source.read(length))
                done = self.read_only(path, serve=length % 4096 == 0, quick=True)
                if 0 < length < 8192:
                    self.assertNotEqual(done["convert"].code, 0, done["convert"])
                self.writing(path)

    def test_random_bytes(self):
        path = self.path("image")
        for seed in range(8):
            draw = random.Random(seed)
            content = bytearray(draw.randbytes(draw.choice((100, 512, 70000, 300000))))
            if seed % 2:
                content[:8] = b"QFI\xfb\0\0\0" + bytes([2 + seed // 2 % 2])
            if seed % 4 == 3:
                content[20:24] = struct.pack(">I", 9 + seed)
            with open(path, "wb") as file:
                file.write(content)
            with self.subTest(seed):
                self.read_only(path)
                self.writing(path)

    def test_a_few_bytes_changed(self):
        """Of the metadata of a real image, again and again."""
        valid = self.valid()
        with open(valid, "rb") as file:
            sound = file.read()
        first = int(os.environ.get("BYRE_SEED", "1"))
        path = self.path("image")
        metadata = self.metadata(sound)
        for seed in range(first, first + 60):
            draw = random.Random(seed)
            content = bytearray(sound)
            for _ in range(draw.randint(1, 6)):
                base = draw.choice(metadata)
                at = base + draw.randrange(0, 112 if base == 0 else 4096) // 8 * 8
                kind = draw.randrange(4)
                if kind == 0:
                    content[at + draw.randrange(8)] ^= 1 << draw.randrange(8)
                elif kind == 1:
                    content[at:at + 8] = draw.randbytes(8)
                elif kind == 2:  # A plausible pointer.
                    content[at:at + 8] = struct.pack(">Q", draw.choice(metadata) | draw.choice((0, COPIED)))
                else:
                    content[at:at + 8] = draw.choice((bytes(8), b"\xff" * 8, b"\x7f" + b"\xff" * 7))
            with open(path, "wb") as file:
                file.write(content)
            with self.subTest(seed):
                self.read_only(path, serve=seed % 4 == 0, quick=True)
                self.writing(path)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path("out"))

    @staticmethod
    def metadata(raw):
        """Where an image of 4 KiB clusters has its metadata."""
        l1_size, l1, reftable = struct.unpack_from(">IQQ", raw, 36)
        snapshots, = struct.unpack_from(">Q", raw, 64)
        found = {0, l1, reftable, snapshots}
        found |= {pointer & 0x00FFFFFFFFFFFE00 for pointer in struct.unpack_from(f">{l1_size}Q", raw, l1)}
        found |= set(struct.unpack_from(">512Q", raw, reftable))
        return sorted(offset for offset in found if offset + 4096 <= len(raw))

    def test_a_small_file_that_claims_terabytes_of_host(self):
        """Memory follows what is there, not the length of the file."""
        path = self.path("image")
        qemu_img("create", "-q", "-f", "qcow2", "-o", "refcount_bits=64", path, "1G")
        qemu_io(path, "write 0 128k")
        os.truncate(path, 8 * TIB)
        done = self.read_only(path)
        if not QEMU:
            self.assertIn(done["check"].code, (0, 2, 3), done["check"])

    def test_every_table_is_one(self):
        """512 L1 entries share an L2 table whose 8192 entries share a cluster: what is there is read once, or refused."""
        path = huge(16, 256 * GIB, 512).write(self.path("image"))
        for words in (["info", path], ["check", "-f", "qcow2", path]):
            self.probe([BYRE if not QEMU else "qemu-img", *words])
        self.serve_read_only(path, MEMORY_MAX)


HUGE = {
    "L1 of 4 Mi entries, there": lambda: changed(l1_size=4 * MIB)(),
    "L1 of 2^32 entries": changed(l1_size=0xFFFFFFFF),
    "refcount table of 128 clusters, there": changed(refcount_table_clusters=128),
    "refcount table of 2^32 clusters": changed(refcount_table_clusters=0xFFFFFFFF),
    "2^32 snapshots": changed(nb_snapshots=0xFFFFFFFF, snapshots_offset=0x30000),
    "65536 snapshots of nothing": lambda: snapshots(65536, lambda i: b""),
    "snapshot with an L1 of 2^22": lambda: snapshots(1, lambda i: snapshot_entry(i.l1, 4 * MIB)),
    "snapshot with extra data of 2^32": lambda: snapshots(1, lambda i: snapshot_entry(i.l1, 1, extra_size=0xFFFFFFFF)),
    "bitmap directory of 64 MiB, there": lambda: bitmaps(lambda i: b"", count=65535, size=65535 * KIB),
    "2^32 bitmaps": lambda: bitmaps(lambda i: b"", count=0xFFFFFFFF, size=64 * MIB),
    "bitmap table of 2^27, there": lambda: bitmaps(lambda i: bitmap_entry(i.l1, 1 << 27)),
    "backing name of 2^32": changed(backing_file_offset=200, backing_file_size=0xFFFFFFFF),
    "header length of 2^32": changed(header_length=0xFFFFFFF8),
    "extension of 2^32": lambda: extended(struct.pack(">II", 0x12345678, 0xFFFFFFFF)),
    "eight thousand extensions": lambda: extended(struct.pack(">II", 0x12345678, 0) * 8100),
    "size of 2^63 - 512": changed(size=(1 << 63) - 512),
}
SMALL = 64 * MIB
SOON = 2


class Bounds(Prober):
    """Commands that only list end soon, in little memory, whatever a header claims, and though the file, sparse, is as long
    as it says."""

    @only_byre
    def test_listing_is_small_and_soon(self):
        for name, make in HUGE.items():
            for length in (None, 4 * GIB):
                path = make().write(self.path("image"))
                if length:
                    os.truncate(path, length)
                for words in (["dump", path], ["info", path], ["map", "-f", "qcow2", path], ["snapshot", "-l", path],
                              ["snapshot", "list", path], ["bitmap", "--list", path]):
                    with self.subTest(name, length=length, words=words[:-1]):
                        begun = time.monotonic()
                        # A bitmap directory of 64 MiB is what the format allows, and it is read whole.
                        self.probe([BYRE, *words], memory_max=MEMORY_MAX if "directory" in name else SMALL)
                        self.assertLess(time.monotonic() - begun, SOON)


class Names(Prober):
    """What an image names is opened only when that is allowed, and never what is no file."""

    def overlay(self, name, form="raw"):
        return Forged(16, 2 * MIB).backing(name, form).write(self.path("image"))

    def refused(self, path):
        done = self.read_only(path)
        self.assertNotEqual(done["convert"].code, 0, done["convert"])
        self.assertIn(done["info"].code, (0, 1) if QEMU else (0, 65))
        return done

    @only_byre
    def test_no_backing_but_a_file(self):
        os.mkfifo(self.path("fifo"))
        os.mkdir(self.path("folder"))
        os.symlink("/etc/hostname", self.path("link"))
        os.symlink("turn", self.path("turn"))
        address = self.path("listening")
        with socket.socket(socket.AF_UNIX) as listener, socket.socket() as tcp:
            listener.bind(address)
            listener.listen(5)
            tcp.bind(("127.0.0.1", 0))
            tcp.listen(5)
            port = tcp.getsockname()[1]
            for name in ("/dev/zero", "/dev/null", "/dev/random", "/dev/stdin", "/dev/fd/0", "/proc/self/mem",
                         "/proc/self/environ", "/etc/hostname", "../../../../../../etc/hostname", "link", "turn",
                         "fifo", "folder", "listening", ".", "absent", " ", "/", "a\0b", "x" * 900,
                         'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/hostname"}}',
                         f'json:{{"driver":"nbd","server":{{"type":"unix","path":"{address}"}}}}',
                         f"nbd:unix:{address}", f"nbd+unix:///?socket={address}", f"nbd://127.0.0.1:{port}/",
                         f"nbd:127.0.0.1:{port}", f"http://127.0.0.1:{port}/x", "fd:0", "fat:/etc",
                         "/dev/fdset/1", "\x1b[2J\x1b]0;gone\x07", "\n\nerror: none\n"):
                for form in ("raw", "qcow2"):
                    with self.subTest(name[:60], form=form):
                        self.refused(self.overlay(name, form))
            for door in (listener, tcp):
                door.setblocking(False)
                with self.assertRaises(BlockingIOError, msg="it called"):
                    door.accept()

    @only_byre
    def test_a_backing_format_is_not_guessed(self):
        raw = self.path("below")
        small().write(raw)
        for form in (None, "", "vmdk", "nbd", "host_device", "qcow2\0raw", "a" * 2000):
            with self.subTest(form):
                image = Forged(16, 2 * MIB).backing("below", form)
                self.refused(image.write(self.path("image")))

    @only_byre
    def test_a_data_file_elsewhere_is_not_touched(self):
        victim = os.path.join(self.path("elsewhere"), "victim")
        os.mkdir(os.path.dirname(victim))
        with open(victim, "wb") as file:
            file.write(b"precious" * 1000)
        os.mkdir(self.path("home"))
        path = os.path.join(self.path("home"), "image")
        for name in (victim, "../elsewhere/victim", "/dev/zero", "nbd://localhost/", "json:{}", ""):
            with self.subTest(name):
                image = Forged(16, 2 * MIB)
                image.header(incompatible=4)
                image.splice(104, extension_bytes(EXT_DATA_FILE, name.encode()))
                image.write(path)
                self.refused(path)
                self.probe([BYRE, "io", "-f", "qcow2", "-c", "write 0 64k", path])
                with self.assertRaises(AssertionError):
                    self.server(path).stop()
                with open(victim, "rb") as file:
                    self.assertEqual(file.read(), b"precious" * 1000)

    def chain(self, links):
        for number, (name, below) in enumerate(links):
            Forged(16, 2 * MIB).backing(below, "qcow2").write(self.path(name))
        return self.path(links[0][0])

    def test_chains_without_end(self):
        os.symlink("again", self.path("alias"))
        for links in ([("self", "self")], [("a", "b"), ("b", "a")], [("again", "alias")],
                      [(f"n{i}", f"n{(i + 1) % 50}") for i in range(50)], [("dot", "./././dot")]):
            with self.subTest(links[0]):
                self.refused(self.chain(links))
        with self.subTest("one file, two names"):
            path = self.chain([("first", "second")])
            os.link(path, self.path("second"))
            self.refused(path)

    def test_deep_chains(self):
        """Deep is fine; too deep is said."""
        for depth, fine in ((30, True), (400, False)):
            with self.subTest(depth):
                path = self.chain([(f"d{i}", f"d{i + 1}") for i in range(depth)])
                small().write(self.path(f"d{depth}"))
                done = self.read_only(path)
                if fine or not QEMU:
                    self.assertEqual(done["convert"].code == 0, fine, done["convert"])
                if fine:
                    with open(self.path("out"), "rb") as out:
                        self.assertEqual(out.read(65536), TEXT)

    @only_byre
    def test_l1_tables_of_a_chain_have_one_budget(self):
        """Each is as large as it may be; together they are refused before one is read, with what to do."""
        def layer(name, below):
            image = Forged(16, 2 * MIB, l1_entries=4 * MIB if name == "l35" else None)
            if below:
                image.backing(below, "qcow2")
            else:
                image.data(image.l2(), 0, TEXT)
            for cluster in range(4):  # Such an image can be written.
                image.refcount(cluster, 1)
            image.header(l1_size=4 * MIB)
            image.write(self.path(name))
            os.truncate(self.path(name), 64 * MIB)

        for number in range(40):
            layer(f"l{number}", f"l{number + 1}" if number < 39 else None)
        for start, fine in ((39, True), (36, True), (35, False), (0, False)):
            top, stop = self.path(f"l{start}"), self.path(f"l{start + 4}")
            for words in (["map", "-f", "qcow2", top], ["convert", "--force", "-O", "raw", top, self.path("out")],
                          ["io", "-r", "-f", "qcow2", "-c", "read 0 64k", top], ["info", "--backing-chain", top]):
                with self.subTest(words[0], start=start):
                    done = self.probe([BYRE, *words], memory_max=MEMORY_MAX + 128 * MIB if fine else SMALL)
                    if words[0] == "info":  # It looks at headers alone.
                        continue
                    self.assertEqual(done.code == 0, fine, done)
                    if not fine:
                        self.assertIn(f"backing file '{stop}': with its L1 table those of the chain take ", done.text)
                        self.assertIn(f"byre convert -O qcow2 '{stop}' COPY", done.text)
        # What it says works.
        run(BYRE, "convert", "-O", "qcow2", self.path("l36"), self.path("copy"))
        run(BYRE, "amend", "--force", "-o", f"backing_file={self.path('copy')},backing_fmt=qcow2", self.path("l35"))
        run(BYRE, "convert", "--force", "-O", "raw", self.path("l35"), self.path("out"))
        with open(self.path("out"), "rb") as out:
            self.assertEqual(out.read(65536), TEXT)

    @only_byre
    def test_a_file_that_is_two_things(self):
        """What programs could disagree about is opened only with its format given."""
        path = self.path("both")
        small().write(path)
        with open(path, "r+b") as file:
            file.seek(510)
            file.write(b"\x55\xaa")
        self.assertNotEqual(self.probe([BYRE, "convert", "-O", "raw", path, self.path("out")]).code, 0)
        img("convert", "-f", "qcow2", "-O", "raw", path, self.path("out"))
        # A disk that was taken for raw cannot be turned into an image by its guest.
        plain = self.path("plain")
        with open(plain, "wb") as file:
            file.truncate(MIB)
        with open(self.path("magic"), "wb") as file:
            file.write(bytes(small().bytes[:512]))
        byre_io(plain, f"write -s {self.path('magic')} 0 512", ok=(1,))
        with open(plain, "rb") as file:
            self.assertEqual(file.read(512), bytes(512))


if __name__ == "__main__":
    main()
