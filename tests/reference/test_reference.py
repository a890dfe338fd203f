# SPDX-License-Identifier: Apache-2.0
"""Tests of the reference reader and checker against the real qemu-img and qemu-io.

    python3 -m unittest test_reference      (in this directory)
"""
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import tempfile
import time
import unittest
import zlib

import qcow2ref
from qcow2read import COMPRESSED, COPIED, OFFSET, inflate_zlib, inflate_zstd
from qcow2ref import FormatError, Image, check, verdict

KIB, MIB = 1 << 10, 1 << 20


def run(*command, ok=(0,)):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if ok is not None and done.returncode not in ok:
        raise AssertionError(f"{' '.join(command)[:300]}: {done.returncode}: {done.stdout.decode()[:500]}")
    return done.returncode


def qemu_img(*arguments, ok=(0,)):
    return run("qemu-img", *arguments, ok=ok)


def qemu_io(path, *commands, options=()):
    flat = [word for command in commands for word in ("-c", command)]
    run("qemu-io", "-f", "qcow2", "-d", "unmap", *options, *flat, path, ok=(0, 1))


@unittest.skipUnless(shutil.which("qemu-img") and shutil.which("qemu-io"), "needs qemu-img and qemu-io")
class Case(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory(prefix="reference-")
        self.addCleanup(self.directory.cleanup)
        self.random = random.Random(self.id())

    def path(self, name):
        return os.path.join(self.directory.name, name)

    def create(self, name, size, **options):
        extra = []
        if "backing" in options:
            extra = ["-b", options.pop("backing"), "-F", options.pop("backing_format")]
        words = ",".join(f"{key}={value}" for key, value in options.items())
        qemu_img("create", "-q", "-f", "qcow2", *extra, *(["-o", words] if words else []), self.path(name), str(size))
        return self.path(name)

    def scribble(self, path, size, cluster, count=40, compressed=True):
        """A seeded mix of everything that changes the mapping.

        Compressed writes come last, in a process of their own and one to a guest cluster: qemu-img 7.2 goes on packing
        into a cluster that was freed, and used otherwise, since it packed into it last.
        """
        commands, packed, unit = [], {}, min(cluster, 64 * KIB)
        for _ in range(count):
            kind = self.random.choice(("write", "write", "sector", "zero", "unmap", "discard", "compressed"))
            offset = self.random.randrange(0, size, unit)
            length = min(size - offset, unit * self.random.randint(1, 3))
            pattern = self.random.randint(1, 255)
            if kind == "sector":
                offset = self.random.randrange(0, size - size % 512, 512)
                length = min(size - size % 512 - offset, 512 * self.random.randint(1, 20))
                commands.append(f"write -P {pattern} {offset} {length}")
            elif kind == "compressed" and compressed:
                offset -= offset % cluster
                packed[offset] = f"write -c -P {pattern} {offset} {min(cluster, size - offset)}"
            elif kind == "discard":
                commands.append(f"discard {offset} {length}")
            else:
                flags = {"zero": "-z", "unmap": "-z -u"}.get(kind, f"-P {pattern}")
                commands.append(f"write {flags} {offset} {length}")
        qemu_io(path, *commands)
        if packed:
            qemu_io(path, *packed.values())

    def source(self, name, size, holes=True):
        """A raw file with text-like, random and empty parts."""
        with open(self.path(name), "wb") as out:
            out.truncate(size)
            for at in range(0, size, 8 * KIB):
                length = min(8 * KIB, size - at)
                kind = self.random.randrange(4 if holes else 2)
                if kind == 0:
                    out.seek(at)
                    out.write(self.random.randbytes(length))
                elif kind == 1:
                    out.seek(at)
                    out.write(self.random.randbytes(length // 2).hex().encode())
        return self.path(name)

    def same_content(self, path, snapshot=None, size=None):
        """The image reads as qemu-img reads it."""
        expected, found = self.path("expected.raw"), self.path("found.raw")
        arguments = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
        qemu_img("convert", "-f", "qcow2", "-O", "raw", *arguments, path, expected)
        view = Image(path).view(snapshot)
        view.raw(found)
        with open(expected, "rb") as one, open(found, "rb") as two:
            want, have = one.read()[:size], two.read()
        self.assertEqual(len(have), len(want))
        if have != want:
            at = next(i for i, (a, b) in enumerate(zip(have, want)) if a != b)
            self.fail(f"{path}: contents differ from offset {at:#x} on")
        self.assertEqual(view.sum(), hashlib.sha256(want).hexdigest())
        for _ in range(5):
            offset = self.random.randint(0, len(want))
            length = self.random.randint(0, len(want) - offset)
            self.assertEqual(view.read(offset, length), want[offset:offset + length])
        return want

    def sound(self, path, expected=0):
        """Both checkers find the same: nothing at all, unless told otherwise."""
        result = check(path, decode=True)
        self.assertEqual(verdict(result, strict=True), expected, {**result, "path": path})
        self.assertEqual(qemu_img("check", "-f", "qcow2", path, ok=None), expected)
        return result

    def agree(self, path):
        self.sound(path)
        return self.same_content(path)


class Matrix(Case):
    def test_cluster_sizes(self):
        for bits in range(9, 22):
            for options in ({}, {"compat": "0.10"}, {"extended_l2": "on"}):
                if "extended_l2" in options and bits < 14:
                    continue
                with self.subTest(bits=bits, **options):
                    cluster, size = 1 << bits, min(6 * MIB, 200 << bits) + 512 * self.random.randrange(9)
                    path = self.create("a.qcow2", size, cluster_size=cluster, **options)
                    self.scribble(path, size, cluster, compressed=bits < 21)
                    self.agree(path)

    def test_refcount_widths(self):
        for order in range(7):
            for cluster in (512, 4096, 65536):
                with self.subTest(bits=1 << order, cluster=cluster):
                    size = 300 * 4096
                    path = self.create("a.qcow2", size, cluster_size=cluster, refcount_bits=1 << order)
                    self.scribble(path, size, cluster, 20)
                    self.agree(path)
                    if order > 1:
                        qemu_img("snapshot", "-c", "s", path)
                        self.scribble(path, size, cluster, 20)
                        self.agree(path)
                        self.same_content(path, "s")

    def test_compressed(self):
        source = self.source("source.raw", 3 * MIB + 1024)
        for cluster in (512, 4096, 65536, 2 * MIB):
            for options in ({"compression_type": "zlib"}, {"compression_type": "zstd"}, {"compat": "0.10"},
                            {"extended_l2": "on", "compression_type": "zstd"}):
                if "extended_l2" in options and cluster < 16384:
                    continue
                with self.subTest(cluster=cluster, **options):
                    path, words = self.path("a.qcow2"), [f"{key}={value}" for key, value in options.items()]
                    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o",
                             ",".join([f"cluster_size={cluster}", *words]), source, path)
                    want = self.agree(path)
                    with open(source, "rb") as file:
                        self.assertEqual(want, file.read())
                    qemu_img("snapshot", "-c", "s", path)
                    self.scribble(path, 3 * MIB, cluster, 20)
                    self.agree(path)
                    self.same_content(path, "s")

    def test_streams_cross_clusters_and_share_sectors(self):
        source = self.source("source.raw", MIB, holes=False)
        path = self.path("a.qcow2")
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", source, path)
        image = Image(path)
        pieces = [where for _, _, kind, where in image.pieces(image.active.l1, 0, MIB) if kind == 3]
        ranges = sorted(map(image.stream_range, pieces))
        self.assertTrue(any(start // 4096 != (start + length - 1) // 4096 for start, length in ranges))
        self.assertTrue(any(one[0] + one[1] > two[0] for one, two in zip(ranges, ranges[1:])))
        # Where the file ends within the last stream's last sector, the rest of the sector counts as zeros.
        start, length = ranges[-1]
        _, used, _ = image.inflate(next(e for e in pieces if image.stream_range(e) == (start, length)))
        last = max(e for _, e, kind, _ in image.pieces(image.active.l1, 0, MIB) if kind == 3)
        if start + length >= image.blob.size:
            os.truncate(path, start + used)
            self.assertEqual(check(path, decode=True)["errors"], [])
            with open(source, "rb") as file:
                self.assertEqual(Image(path).read(0, last), file.read(last))

    def test_backing(self):
        for base_size in (MIB + 512, 3 * MIB, 4 * MIB + 1536):
            for kind in ("qcow2", "raw"):
                for options in ({}, {"compat": "0.10"}, {"extended_l2": "on"}, {"cluster_size": 4096}):
                    with self.subTest(base=base_size, kind=kind, **options):
                        os.makedirs(self.path("sub"), exist_ok=True)
                        base = self.source("sub/base.raw", base_size)
                        if kind == "qcow2":
                            qemu_img("convert", "-f", "raw", "-O", "qcow2", base, self.path("sub/base.qcow2"))
                        # Names are relative to the directory of the overlay, not to the current one.
                        path = self.create("a.qcow2", 3 * MIB, backing=f"sub/base.{kind}",
                                           backing_format=kind, **options)
                        self.agree(path)
                        self.scribble(path, 3 * MIB, options.get("cluster_size", 65536), 20)
                        self.agree(path)

    def test_long_chain(self):
        self.source("base.raw", 2 * MIB)
        name, kind = "base.raw", "raw"
        for level in range(5):
            self.create(f"{level}.qcow2", (2 + level % 2) * MIB, backing=name, backing_format=kind)
            name, kind = f"{level}.qcow2", "qcow2"
            self.scribble(self.path(name), 2 * MIB, 65536, 8)
            self.agree(self.path(name))

    def test_backing_loop(self):
        self.create("a.qcow2", MIB)
        self.create("b.qcow2", MIB, backing="a.qcow2", backing_format="qcow2")
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", self.path("a.qcow2"), ok=None)
        with self.assertRaises(FormatError):
            Image(self.path("a.qcow2")).read(0, 512)

    def test_data_file(self):
        for raw in ("off", "on"):
            for extended in ("off", "on"):
                with self.subTest(raw=raw, extended=extended):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path("data"))
                    path = self.create("a.qcow2", 3 * MIB, data_file=self.path("data"), data_file_raw=raw,
                                       extended_l2=extended)
                    qemu_io(path, "write -P 9 0 64k", "write -z 64k 64k")
                    self.scribble(path, 3 * MIB, 65536, compressed=False)
                    want = self.agree(path)
                    if raw == "on":
                        qemu_io(path, "write -z 64k 64k")
                        with open(self.path("data"), "r+b") as file:
                            self.assertEqual(file.read()[2 * 65536:], want[2 * 65536:])
                            file.seek(65536 + 77)
                            file.write(b"x")
                        result = check(path, decode=True)
                        self.assertEqual([finding["kind"] for finding in result["errors"]], ["raw-data-differs"])

    def test_snapshots(self):
        for options in ({}, {"compat": "0.10"}, {"extended_l2": "on"}, {"cluster_size": 512}):
            with self.subTest(**options):
                cluster = options.get("cluster_size", 65536)
                path = self.create("a.qcow2", 2 * MIB, **options)
                sums = {}
                for name in ("one", "two", "three"):
                    self.scribble(path, 2 * MIB, cluster, 12)
                    qemu_img("snapshot", "-c", name, path)
                    sums[name] = Image(path).sum()
                self.scribble(path, 2 * MIB, cluster, 12)
                qemu_img("snapshot", "-d", "two", path)
                self.agree(path)
                for name in ("one", "three"):
                    self.same_content(path, name)
                    self.assertEqual(Image(path).sum(name), sums[name])
                qemu_img("snapshot", "-a", "one", path)
                self.agree(path)
                self.assertEqual(Image(path).sum(), sums["one"])
                with self.assertRaises(FormatError):
                    Image(path).read(0, 1, "two")

    def test_snapshot_of_other_size_and_vm_state(self):
        path = self.create("a.qcow2", MIB + 512, cluster_size=4096)
        qemu_io(path, "write -P 5 0 100k", "write -b -P 7 4096 9216")
        qemu_img("snapshot", "-c", "s", path)
        qemu_img("resize", "-q", path, "5M")
        qemu_io(path, "write -P 6 3M 100k")
        self.agree(path)
        self.same_content(path, "s", MIB + 512)  # qemu-img 7.2 converts as much as the active disk has
        state = Image(path).view("s").vm_state(0, 20000)
        self.assertEqual(state, bytes(4096) + b"\7" * 9216 + bytes(20000 - 13312))

    def test_preallocation(self):
        for mode in ("metadata", "falloc", "full"):
            for options in ({}, {"extended_l2": "on"}, {"compat": "0.10"}, {"cluster_size": 512}):
                with self.subTest(mode=mode, **options):
                    path = self.create("a.qcow2", MIB + 512, preallocation=mode, **options)
                    self.agree(path)
                    self.scribble(path, MIB, options.get("cluster_size", 65536), 20, compressed=False)
                    self.agree(path)

    def test_subclusters_reserved_over_a_backing_file(self):
        self.source("base.raw", 2 * MIB)
        path = self.create("a.qcow2", 3 * MIB, backing="base.raw", backing_format="raw", extended_l2="on",
                           preallocation="metadata")
        self.agree(path)
        self.scribble(path, 3 * MIB, 65536, compressed=False)
        self.agree(path)

    def test_bitmaps(self):
        path = self.create("a.qcow2", 40 * MIB + 512, cluster_size=512)
        for name, granularity in (("fine", 512), ("coarse", MIB), ("empty", 65536)):
            qemu_img("bitmap", "--add", "-g", str(granularity), path, name)
            if name == "empty":
                qemu_img("bitmap", "--disable", path, name)
        qemu_io(path, "write -P 1 1M 3k", "write 20M 1536", f"write {40 * MIB} 512", "discard 7M 512k")
        self.agree(path)
        image = Image(path)
        self.assertEqual([b["name"] for b in image.bitmaps], ["fine", "coarse", "empty"])
        ends = (40 * MIB, 40 * MIB + 512)
        self.assertEqual(image.dirty("fine"), [(MIB, MIB + 3072), (7 * MIB, 7 * MIB + 512 * KIB),
                                               (20 * MIB, 20 * MIB + 1536), ends])
        self.assertEqual(image.dirty("coarse"), [(MIB, 2 * MIB), (7 * MIB, 8 * MIB), (20 * MIB, 21 * MIB), ends])
        self.assertEqual(image.dirty("empty"), [])
        qemu_img("bitmap", "--remove", path, "coarse")
        self.sound(path)

    def test_lazy_refcounts(self):
        path = self.create("a.qcow2", 4 * MIB, lazy_refcounts="on")
        self.scribble(path, 4 * MIB, 65536)
        self.agree(path)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 3 0 1M", "-c", "flush", "-c", "abort", path, ok=None)
        result = check(path)
        self.assertTrue(result["dirty"])
        qemu_img("check", "-q", "-r", "all", path, ok=None)
        self.assertFalse(self.sound(path)["dirty"])

    def test_luks(self):
        secret = ["--object", "secret,id=s,data=abc"]
        path = self.path("a.qcow2")
        if qemu_img("create", "-q", *secret, "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,"
                    "encrypt.iter-time=100", path, "2M", ok=None):
            self.skipTest("no LUKS in this qemu-img")
        run("qemu-io", *secret, "--image-opts", "-c", "write 64k 200k",
            f"driver=qcow2,file.filename={path},encrypt.key-secret=s")
        self.assertEqual(verdict(check(path), strict=True), 0)
        self.assertEqual(Image(path).read(MIB, 512), bytes(512))
        with self.assertRaises(FormatError):
            Image(path).read(64 * KIB, 512)

    def test_resize(self):
        path = self.create("a.qcow2", 2 * MIB, cluster_size=512)
        self.scribble(path, 2 * MIB, 512, 60)
        for size in ("60M", "1M", "130k", "9M"):
            qemu_img("resize", "-q", "--shrink", path, size)
            self.agree(path)

    def test_speed_and_memory_follow_what_is_allocated(self):
        path = self.create("a.qcow2", 1 << 50)
        qemu_io(path, "write -P 1 1T 100M", "write -P 2 1000T 64k")
        start = time.process_time()
        self.sound(path)
        image = Image(path)
        self.assertEqual(image.read((1 << 40) + 100 * MIB - 1, 2), b"\1\0")
        self.assertEqual(len(list(image.active.block_sums(MIB))), 101)
        self.assertLess(time.process_time() - start, 5)


class Sources(Case):
    def test_buffers_and_objects(self):
        """An image may be a file, a buffer, or anything that can be read at an offset."""
        self.source("base.raw", MIB)
        path = self.create("a.qcow2", MIB, backing="base.raw", backing_format="raw")
        self.scribble(path, MIB, 65536, 6)
        want = self.agree(path)
        with open(path, "rb") as file, open(self.path("base.raw"), "rb") as base:
            raw, below = file.read(), base.read()

        class Disk:
            size = len(raw)

            @staticmethod
            def pread(offset, length):
                return raw[offset:offset + min(length, 1000)]  # short reads are allowed
        for source in (raw, bytearray(raw), Disk()):
            self.assertEqual(Image(source, backing=below).read(0, MIB), want)
            self.assertEqual(Image(source, base=self.directory.name).read(0, MIB), want)
            self.assertEqual(verdict(check(source), strict=True), 0)


class Streams(unittest.TestCase):
    """Streams that qemu-img does not make by itself."""

    def test_deflate(self):
        data = random.Random(1).randbytes(2000) + bytes(2096)
        for level in (0, 1, 9):
            packer = zlib.compressobj(level, zlib.DEFLATED, -15)
            raw = packer.compress(data) + packer.flush()
            self.assertEqual(inflate_zlib(raw + b"rest", 4096), (data, len(raw), True))
            self.assertLess(len(inflate_zlib(raw[:1000], 4096)[0]), 4096)
            self.assertFalse(inflate_zlib(raw, 4000)[2])
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        raw = packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)  # never says that it ends
        self.assertEqual(inflate_zlib(raw, 4096)[0], data)
        self.assertFalse(inflate_zlib(raw, 4096)[2])
        with self.assertRaises(FormatError):
            inflate_zlib(b"\xff" * 100, 4096)

    @unittest.skipUnless(shutil.which("zstd"), "needs zstd")
    def test_zstd(self):
        data = random.Random(2).randbytes(2000) + bytes(2096)

        def pack(piece):
            return subprocess.run(["zstd", "-qc", "--no-check"], input=piece, stdout=subprocess.PIPE, check=True).stdout
        raw = pack(data)
        self.assertEqual(inflate_zstd(raw + b"rest", 4096), (data, len(raw), True))
        frames = pack(data[:1000]) + pack(data[1000:])
        self.assertEqual(inflate_zstd(frames + b"rest", 4096), (data, len(frames), True))
        self.assertLess(len(inflate_zstd(raw[:1000], 4096)[0]), 4096)
        with self.assertRaises(FormatError):
            inflate_zstd(b"\xff" * 100, 4096)


class Editor:
    """An image in memory, to be damaged by hand."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.raw = bytearray(file.read())
        self.image = Image(bytes(self.raw))

    def get(self, at):
        return struct.unpack_from(">Q", self.raw, at)[0]

    def put(self, at, value):
        struct.pack_into(">Q", self.raw, at, value)

    def flip(self, at, bits):
        self.put(at, self.get(at) ^ bits)

    def l1(self, index=0, snapshot=None):
        if snapshot is None:
            return self.image.l1_table_offset + 8 * index
        return self.image.snapshots[snapshot]["l1_table_offset"] + 8 * index

    def l2(self, guest, snapshot=None):
        """Where the L2 entry of a guest cluster is."""
        index, inside = divmod(guest, self.image.l2_entries)
        return (self.get(self.l1(index, snapshot)) & OFFSET) + inside * (16 if self.image.extended_l2 else 8)

    def host(self, guest):
        return self.get(self.l2(guest)) & OFFSET

    def refcount(self, offset, value):
        """Sets a refcount of 16 bits."""
        index, inside = divmod(offset // self.image.cluster_size, self.image.cluster_size // 2)
        block = self.get(self.image.refcount_table_offset + 8 * index)
        struct.pack_into(">H", self.raw, block + 2 * inside, value)

    def field(self, at):
        return struct.unpack_from(">I", self.raw, at)[0]


class Damage(Case):
    def expect(self, editor, where, kind, qemu=None, decode=False):
        """The damage is found, and qemu-img check has the same opinion where it has one."""
        result = check(bytes(editor.raw), decode=decode)
        self.assertIn(kind, [finding["kind"] for finding in result[where]], result)
        if where != "errors":
            self.assertEqual(result["errors"], [])
        if qemu is not None:
            with open(self.path("damaged.qcow2"), "wb") as out:
                out.write(editor.raw)
            self.assertEqual(qemu_img("check", "-f", "qcow2", self.path("damaged.qcow2"), ok=None), qemu)
        return result

    def plain(self, **options):
        """Guest clusters 0 to 3 data, 4 zero with and 5 zero without a host cluster."""
        cluster = options.setdefault("cluster_size", 4096)
        name = "-".join(f"{key}{value}" for key, value in options.items())
        path = self.path(name)
        if not os.path.exists(path):
            self.create(name, 300 * cluster, **options)
            commands = [f"write -P 1 0 {5 * cluster}"]
            if options.get("compat") != "0.10":
                commands += [f"write -z {4 * cluster} {cluster}", f"write -z -u {5 * cluster} {cluster}"]
            qemu_io(path, *commands)
            self.sound(path)
        return Editor(path)

    def test_refcounts(self):
        places = {"header": lambda e: 0, "L1": lambda e: e.image.l1_table_offset,
                  "refcount table": lambda e: e.image.refcount_table_offset,
                  "refcount block, by itself": lambda e: e.get(e.image.refcount_table_offset),
                  "L2": lambda e: e.get(e.l1()) & OFFSET, "data": lambda e: e.host(2), "zero": lambda e: e.host(4)}
        for name, place in places.items():
            with self.subTest(name):
                editor = self.plain()
                offset = place(editor)
                editor.refcount(offset, 0)
                self.expect(editor, "errors", "refcount-low", 2)
                editor.refcount(offset, 2)
                if name in ("L2", "data", "zero"):
                    result = self.expect(editor, "errors", "copied-refcount", 2)
                    self.assertEqual([leak["kind"] for leak in result["leaks"]], ["refcount-high"])
                else:
                    self.expect(editor, "leaks", "refcount-high", 3)

    def test_leaks(self):
        editor = self.plain()
        end = -(-len(editor.raw) // 4096) * 4096
        editor.raw += bytes(end + 8192 - len(editor.raw))
        editor.refcount(end, 1)
        editor.refcount(end + 4096, 7)
        result = self.expect(editor, "leaks", "unreferenced", 3)
        self.assertEqual((result["leaks"][0]["offset"], result["leaks"][0]["clusters"]), (end, 2))
        self.assertEqual(verdict(result), 3)
        editor = self.plain()  # an entry that got lost
        editor.put(editor.l2(1), 0)
        self.expect(editor, "leaks", "unreferenced", 3)

    def test_missing_refcount_block(self):
        editor = self.plain()
        editor.put(editor.image.refcount_table_offset, 0)
        self.assertGreater(self.expect(editor, "errors", "refcount-low", 2)["counts"]["errors"], 8)

    def test_widths(self):
        for order in range(7):
            with self.subTest(bits=1 << order):
                bits, cluster = 1 << order, 4096
                editor = self.plain(refcount_bits=bits)
                at = editor.host(3) // cluster * bits  # bit address, least significant bits of a byte first
                block = editor.get(editor.image.refcount_table_offset)
                byte = block + (at // 8 if bits < 8 else at // 8 + bits // 8 - 1)
                editor.raw[byte] ^= 1 << at % 8 if bits < 8 else 1
                result = self.expect(editor, "errors", "refcount-low", 2)
                low = [f["offset"] for f in result["errors"] if f["kind"] == "refcount-low"]
                self.assertEqual(low, [editor.host(3)])

    def test_cross_links(self):
        editor = self.plain()
        editor.put(editor.l2(1), editor.get(editor.l2(0)))
        self.expect(editor, "errors", "two-owners", 2)
        editor = self.plain()  # the same with a refcount that fits
        editor.put(editor.l2(1), editor.get(editor.l2(0)) & ~COPIED)
        editor.put(editor.l2(0), editor.get(editor.l2(0)) & ~COPIED)
        editor.refcount(editor.host(0), 2)
        self.expect(editor, "errors", "two-owners")
        editor = self.plain()  # two parts of the L1 with one L2 table
        path = self.create("small", 80 * 512, cluster_size=512)
        qemu_io(path, f"write -P 1 0 {80 * 512}")
        editor = Editor(path)
        editor.put(editor.l1(1), editor.get(editor.l1(0)))
        self.expect(editor, "errors", "two-owners", 2)

    def test_pointers_into_metadata(self):
        for name in ("L1", "L2", "table", "block"):
            with self.subTest(name):
                editor = self.plain()
                offset = {"L1": editor.image.l1_table_offset, "L2": editor.get(editor.l1()) & OFFSET,
                          "table": editor.image.refcount_table_offset,
                          "block": editor.get(editor.image.refcount_table_offset)}[name]
                editor.put(editor.l2(1), offset | COPIED)
                self.expect(editor, "errors", "two-owners", 2)
        editor = self.plain()  # tables in each other
        editor.put(editor.image.refcount_table_offset, editor.image.l1_table_offset)
        self.expect(editor, "errors", "two-owners")
        editor = self.plain()
        editor.put(48, editor.image.l1_table_offset)
        self.expect(editor, "errors", "two-owners")
        editor = self.plain()
        struct.pack_into(">I", editor.raw, 56, 2)  # the refcount table runs into what follows it
        self.expect(editor, "errors", "two-owners")
        editor = self.plain()
        editor.put(editor.image.refcount_table_offset + 8, editor.get(editor.image.refcount_table_offset))
        self.expect(editor, "errors", "two-owners")

    def test_bad_pointers(self):
        far = 1 << 40
        places = {"L1 entry": lambda e: e.l1(), "L2 entry": lambda e: e.l2(2),
                  "refcount table entry": lambda e: e.image.refcount_table_offset, "L1 field": lambda e: 40,
                  "refcount table field": lambda e: 48}
        for name, place in places.items():
            with self.subTest(name):
                editor = self.plain()
                editor.flip(place(editor), 512)
                self.expect(editor, "errors", "misaligned")
                editor = self.plain()
                editor.put(place(editor), far)
                self.expect(editor, "errors", "beyond-eof")
        for where, bit in ((lambda e: e.l1(), 1), (lambda e: e.l1(), 1 << 60), (lambda e: e.l2(2), 2),
                           (lambda e: e.l2(2), 1 << 57), (lambda e: e.image.refcount_table_offset, 4)):
            editor = self.plain()
            editor.flip(where(editor), bit)
            self.expect(editor, "errors", "reserved-bits")
        editor = self.plain()
        del editor.raw[editor.host(3):]
        self.expect(editor, "errors", "beyond-eof")

    def test_copied(self):
        for place in (lambda e: e.l1(), lambda e: e.l2(2), lambda e: e.l2(4)):
            editor = self.plain()
            editor.flip(place(editor), COPIED)
            result = self.expect(editor, "copied_mismatch", "copied-clear", 2)
            self.assertEqual((verdict(result), verdict(result, strict=True)), (0, 2))
        editor = self.plain()
        editor.flip(editor.l2(5), COPIED)
        self.expect(editor, "errors", "copied-unallocated")
        qemu_img("snapshot", "-c", "s", self.path("cluster_size4096"))
        for place in (lambda e: e.l1(), lambda e: e.l2(2)):
            editor = self.plain()
            editor.flip(place(editor), COPIED)
            self.expect(editor, "errors", "copied-shared", 2)
        # A snapshot's own tables have no valid COPIED bits.
        qemu_io(self.path("cluster_size4096"), "write -P 7 0 512")
        editor = self.plain()
        editor.flip(editor.l1(snapshot=0), COPIED)
        editor.flip(editor.l2(2, 0), COPIED)
        self.assertEqual(verdict(check(bytes(editor.raw)), strict=True), 0)
        editor.put(editor.l1(snapshot=0), COPIED)  # but there is no sense in it without an offset
        self.expect(editor, "errors", "copied-unallocated", 2)

    def test_snapshots(self):
        path = self.path("cluster_size4096")
        self.plain()
        qemu_img("snapshot", "-c", "s", path)
        editor = self.plain()
        at = editor.image.snapshots_offset
        editor.flip(at, 512)
        self.expect(editor, "errors", "misaligned")
        editor = self.plain()
        editor.put(at, 1 << 40)
        self.expect(editor, "errors", "beyond-eof")
        editor = self.plain()
        editor.put(at, editor.image.l1_table_offset)
        self.expect(editor, "errors", "two-owners", 2)
        for value, kind in ((0, "l1-size"), (1 << 20, "beyond-eof")):
            editor = self.plain()
            struct.pack_into(">I", editor.raw, at + 8, value)
            self.expect(editor, "errors", kind)
        editor = self.plain()
        struct.pack_into(">I", editor.raw, at + 36, 1 << 30)
        self.expect(editor, "errors", "snapshot-table")
        # One host cluster at different places of the active disk and of a snapshot.
        qemu_io(path, "write -P 7 0 4k")
        editor = self.plain()
        editor.put(editor.l2(7), editor.get(editor.l2(0, 0)) & ~COPIED)
        editor.refcount(editor.get(editor.l2(7)) & OFFSET, 2)
        self.expect(editor, "errors", "two-owners")

    def test_zero_flag_and_subclusters(self):
        editor = self.plain(compat="0.10")
        editor.flip(editor.l2(2), 1)
        self.expect(editor, "errors", "zero-flag")  # qemu-img 7.2 finds no fault
        with self.assertRaises(FormatError):
            Image(bytes(editor.raw)).read(2 * 4096, 1)
        for entry, bitmap, kind in ((None, 1 << 32 | 1, "subclusters"), (0, 1, "subclusters"), (1, None, "zero-flag"),
                                    (COMPRESSED, 5, "subclusters"), (0, 1 << 40, None)):
            with self.subTest(entry=entry, bitmap=bitmap):
                editor = self.plain(extended_l2="on", cluster_size=16384)
                at = editor.l2(2)
                if entry == COMPRESSED:
                    editor.put(at, COMPRESSED | 0x90000)
                elif entry is not None:
                    editor.put(at, editor.get(at) | 1 if entry else 0)
                if bitmap is not None:
                    editor.put(at + 8, bitmap)
                if kind:
                    self.expect(editor, "errors", kind)
                else:
                    self.assertEqual(check(bytes(editor.raw))["errors"], [])

    def compressed(self, kind="zlib"):
        path = self.path("compressed-" + kind)
        if not os.path.exists(path):
            source = self.source("source.raw", 40 * 4096, holes=False)
            qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size=4096,compression_type={kind}",
                     source, path)
            self.sound(path)
        editor = Editor(path)
        entries = [guest for guest in range(40) if editor.get(editor.l2(guest)) & COMPRESSED]
        return editor, entries

    def test_compressed(self):
        editor, entries = self.compressed()
        shift = editor.image.compressed_shift
        second = sorted(entries, key=lambda guest: editor.image.stream_range(editor.get(editor.l2(guest)))[0])[1]
        for delta in (1, -1):  # the count of sectors is off by one
            wrong, _ = self.compressed()
            at = wrong.l2(second)
            sectors = (wrong.get(at) & COMPRESSED - 1) >> shift
            if sectors + delta >= 0:
                wrong.put(at, wrong.get(at) + (delta << shift))
                self.expect(wrong, "errors", "streams-overlap" if delta > 0 else "undecodable", decode=True)
        wrong, _ = self.compressed()
        wrong.flip(wrong.l2(second), COPIED)
        self.expect(wrong, "errors", "copied-compressed", 2)
        wrong, _ = self.compressed()
        wrong.put(wrong.l2(second), wrong.get(wrong.l2(entries[0])))
        self.expect(wrong, "errors", "two-owners")
        wrong, _ = self.compressed()
        wrong.put(wrong.l2(second), COMPRESSED | 600)
        self.expect(wrong, "errors", "two-owners", 2)  # in the header
        wrong, _ = self.compressed()
        wrong.put(wrong.l2(second), COMPRESSED | 1 << 50)
        self.expect(wrong, "errors", "beyond-eof")
        wrong, _ = self.compressed()
        wrong.flip(wrong.l2(second), 1 << 57)
        self.expect(wrong, "errors", "reserved-bits")
        # One reference per host cluster that a stream touches: the second of the two is forgotten.
        wrong, _ = self.compressed()
        for guest in entries:
            start, length = wrong.image.stream_range(wrong.get(wrong.l2(guest)))
            if start // 4096 != (start + length - 1) // 4096:
                host = (start + length - 1) // 4096 * 4096
                checker = qcow2ref.Checker(wrong.image, 0)
                checker.run(False)
                wrong.refcount(host, checker.refs[host // 4096] - 1)
                self.expect(wrong, "errors", "refcount-low", 2)
                break
        else:
            self.fail("no stream crosses into another cluster")
        for kind in ("zlib", "zstd"):
            wrong, found = self.compressed(kind)
            start, _ = wrong.image.stream_range(wrong.get(wrong.l2(found[3])))
            wrong.raw[start:start + 40] = b"\xff" * 40
            self.assertEqual(check(bytes(wrong.raw))["errors"], [])
            self.expect(wrong, "errors", "undecodable", 0, decode=True)
            with self.assertRaises(FormatError):
                Image(bytes(wrong.raw)).read(found[3] * 4096, 1)

    def test_bitmaps(self):
        path = self.create("bitmaps", 10 * MIB + 512, cluster_size=4096)
        qemu_img("bitmap", "--add", "-g", "512", path, "b")
        qemu_io(path, f"write {10 * MIB} 512")
        self.sound(path)
        data = dict(Image(path).extensions)[qcow2ref.qcow2read.EXT_BITMAPS]
        editor = Editor(path)
        extension = editor.raw.index(data)
        table = editor.image.bitmaps[0]["table_offset"]
        directory = editor.image.bitmaps_extension[3]
        used = next(at for at in range(table, table + 4096, 8) if editor.get(at))
        for damage, kind in ((lambda e: e.flip(used, 2), "reserved-bits"), (lambda e: e.flip(used, 1), "reserved-bits"),
                             (lambda e: e.flip(used, 512), "misaligned"),
                             (lambda e: e.put(used, 1 << 40), "beyond-eof"),
                             (lambda e: e.flip(directory, 512), "misaligned"),
                             (lambda e: e.flip(directory + 8, 1 << 32), "bitmap-size"),
                             (lambda e: e.flip(directory + 8, 1 << 20), "bitmaps"),
                             (lambda e: e.flip(extension, 1 << 32), "bitmaps"),
                             (lambda e: e.put(extension + 16, directory + 512), "misaligned"),
                             (lambda e: e.put(extension + 16, 1 << 40), "bitmaps"),
                             (lambda e: e.refcount(directory, 0), "refcount-low"),
                             (lambda e: e.refcount(table, 0), "refcount-low"),
                             (lambda e: e.refcount(e.get(used), 0), "refcount-low"),
                             (lambda e: e.put(used, table), "two-owners"),
                             (lambda e: e.raw.__setitem__((e.get(used) & OFFSET) + 4095, 128), "bitmap-tail")):
            editor = Editor(path)
            damage(editor)
            self.expect(editor, "errors", kind)
        editor = Editor(path)
        editor.flip(88, 1)  # the autoclear bit: the extension counts no more, its clusters are leaks
        self.expect(editor, "leaks", "unreferenced", 3)

    def test_data_file(self):
        path = self.create("a.qcow2", MIB, data_file=self.path("data"))
        qemu_io(path, "write 0 256k")
        self.sound(path)
        editor = Editor(path)
        editor.flip(editor.l2(2), 1 << 20)
        self.expect(editor, "errors", "data-file-offset")
        editor = Editor(path)
        editor.flip(editor.l2(2), COPIED)
        self.expect(editor, "copied_mismatch", "copied-clear")

    def test_headers(self):
        for at, value in ((0, b"x"), (4, b"\0\0\0\4"), (20, b"\0\0\0\x08"), (20, b"\0\0\0\x1e"), (72, b"\1"),
                          (96, b"\0\0\0\7"), (100, b"\0\0\0\x08"), (100, b"\0\1\0\0"), (79, b"\x10")):
            editor = self.plain()
            editor.raw[at:at + len(value)] = value
            self.expect(editor, "errors", "header")
        for length in (0, 3, 71, 103):
            self.assertEqual(verdict(check(bytes(self.plain().raw[:length]))), 2)
        for at, value, kind in ((79, b"\x08", "compression-type"), (104, b"\1", "compression-type"),
                                (38, b"\0\0", "l1-size"), (95, b"\1", "bitmaps"), (95, b"\2", "raw-data"),
                                (35, b"\2", "crypto"), (8, struct.pack(">QI", 4000, 200), "backing-name"),
                                (56, bytes(4), "refcount-table"), (112, b"Who?\xff", "extension")):
            editor = self.plain()
            editor.raw[at:at + len(value)] = value
            self.expect(editor, "errors", kind)

    def test_marks(self):
        editor = self.plain()
        editor.raw[79] = 3
        result = check(bytes(editor.raw))
        self.assertEqual((result["dirty"], result["corrupt"], verdict(result)), (True, True, 0))

    def test_garbage(self):
        """Random damage to the metadata never does more than raise FormatError, and what qemu-img finds is found."""
        paths = [self.create("one", 200 * 512, cluster_size=512), self.create("two", MIB, extended_l2="on",
                                                                              cluster_size=16384)]
        for path in paths:
            self.scribble(path, 200 * 512, Image(path).cluster_size, 30)
            qemu_img("bitmap", "--add", "-g", "512", path, "b")
            qemu_img("snapshot", "-c", "s", path)
            qemu_io(path, "write -P 1 0 20k")
            self.sound(path)
            with open(path, "rb") as file:
                sound = file.read()
            checker = qcow2ref.Checker(Image(sound), 0)
            checker.run(False)
            size = Image(sound).cluster_size
            tables = [cluster for cluster, owner in checker.owner.items() if isinstance(owner, tuple)]
            for turn in range(200):
                raw = bytearray(sound)
                for _ in range(self.random.choice((1, 1, 2, 10))):
                    at = self.random.choice(tables) * size + self.random.randrange(size)
                    at -= at % 8 if turn % 2 else 0
                    if at < len(raw):
                        raw[at] ^= 1 << self.random.randrange(8)
                result = check(bytes(raw), decode=True)
                with contextlib.suppress(FormatError):
                    image = Image(bytes(raw))
                    for snapshot in [None] + [entry["id"] for entry in image.snapshots]:
                        with contextlib.suppress(FormatError):
                            image.view(snapshot).chunks(0, 200 * 512)
                            image.read(0, min(image.size, 200 * 512), snapshot)
                if turn < 40:
                    with open(self.path("damaged.qcow2"), "wb") as out:
                        out.write(raw)
                    qemu = qemu_img("check", "-f", "qcow2", self.path("damaged.qcow2"), ok=None)
                    if qemu in (2, 3):
                        self.assertNotEqual(verdict(result, strict=True), 0, f"turn {turn}: {qemu}")


class CommandLine(Case):
    def call(self, *arguments):
        done = subprocess.run([os.path.join(os.path.dirname(os.path.abspath(__file__)), "qcow2ref.py"), *arguments],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return done.returncode, done.stdout

    def test_all(self):
        path = self.create("a.qcow2", MIB)
        qemu_img("bitmap", "--add", path, "b")
        qemu_io(path, "write -P 65 64k 64k")
        qemu_img("snapshot", "-c", "s", path)
        qemu_io(path, "write -P 66 64k 512")
        self.assertEqual(self.call("check", "--strict", "--decode", path)[0], 0)
        self.assertEqual(json.loads(self.call("check", "--json", path)[1])["errors"], [])
        self.assertEqual(self.call("read", path, "0x101fe", "3"), (0, b"BBA"))
        self.assertEqual(self.call("read", path, "0x101fe", "3", "--snapshot", "s"), (0, b"AAA"))
        self.assertEqual(self.call("read", path, "1048576", "1")[0], 1)
        image = Image(path)
        self.assertEqual(self.call("sum", path), (0, image.sum().encode() + b"\n"))
        lines = self.call("sum", path, "--snapshot", "s", "--block", "512")[1].decode().splitlines()
        digest = hashlib.sha256(b"A" * 512).hexdigest()
        self.assertEqual(lines, [f"{offset} {digest}" for offset in range(65536, 131072, 512)])
        self.assertEqual(self.call("raw", path, self.path("out"))[0], 0)
        with open(self.path("out"), "rb") as file:
            self.assertEqual(file.read(), image.read(0, MIB))
        info = json.loads(self.call("info", path)[1])
        self.assertEqual((info["size"], info["snapshots"][0]["name"], info["bitmaps"][0]["name"]), (MIB, "s", "b"))
        self.assertEqual(json.loads(self.call("bitmap", path, "b")[1]), [{"offset": 65536, "length": 65536}])
        with open(path, "r+b") as file:
            file.truncate(5 * 65536)
        self.assertEqual(self.call("check", path)[0], 2)
        self.assertEqual(self.call("info", "/dev/null")[0], 1)


if __name__ == "__main__":
    unittest.main()
