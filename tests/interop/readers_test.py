#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What byre calls sound, QEMU opens: images that break one rule of the format each.

Where the real qemu-img refuses to open an image, `byre check` does not call it sound: it refuses to open it as well, or
reports it; and what byre repairs QEMU opens again.
"""
import os
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, KIB, MIB, Case, main, only_byre, qemu_img, qemu_io, run  # noqa: E402

CLUSTER = 64 * KIB
BITMAPS, FORMAT, NAMES, DATA_FILE, CRYPTO = 0x23852875, 0xe2792aca, 0x6803f857, 0x44415441, 0x0537be77


class Image:
    def __init__(self, path):
        self.path = path

    def get(self, at, form):
        with open(self.path, "rb") as file:
            file.seek(at)
            values = struct.unpack(form, file.read(struct.calcsize(form)))
        return values[0]

    def put(self, at, form, *values):
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(struct.pack(form, *values))

    def extension(self, kind):
        """Where its head lies."""
        at = self.get(100, ">I") if self.get(4, ">I") == 3 else 72
        while self.get(at, ">I") != kind:
            assert self.get(at, ">I") != 0, hex(kind)
            at += 8 + -(-self.get(at + 4, ">I") // 8) * 8
        return at

    def put_extensions(self, *extensions):
        """In the place of the feature names."""
        at = self.get(100, ">I")
        for kind, body in extensions:
            self.put(at, f">II{-(-len(body) // 8) * 8}s", kind, len(body), body)
            at += 8 + -(-len(body) // 8) * 8
        self.put(at, ">QQ", 0, 0)

    @property
    def directory(self):
        return self.get(self.extension(BITMAPS) + 24, ">Q")

    @property
    def snapshots(self):
        return self.get(64, ">Q")

    def extra_data(self, size):
        """Of the first snapshot."""
        at = self.snapshots
        with open(self.path, "r+b") as file:
            file.seek(at)
            head = bytearray(file.read(40))
            old, = struct.unpack(">I", head[36:40])
            extra, rest = file.read(old), file.read(2000)
            head[36:40] = struct.pack(">I", size)
            file.seek(at)
            file.write(head + (extra + bytes(size))[:size] + rest)


def header(at, form, *values):
    return lambda image: image.put(at, form, *values)


def extensions(*those):
    return lambda image: image.put_extensions(*those)


def in_bitmap(at, form, *values):
    return lambda image: image.put(image.directory + at, form, *values)


def in_snapshot(at, form, *values):
    return lambda image: image.put(image.snapshots + at, form, *values)


# What the image has beside data, and each rule that is broken.
PLAIN = [
    ("version 1", header(4, ">I", 1)),
    ("version 4", header(4, ">I", 4)),
    ("cluster bits 8", header(20, ">I", 8)),
    ("cluster bits 22", header(20, ">I", 22)),
    ("header length 96", header(100, ">I", 96)),
    ("header length 108", header(100, ">I", 108)),
    ("header length 113", header(100, ">I", 113)),
    ("header length 65544", header(100, ">I", 65544)),
    ("unknown incompatible feature", header(72, ">Q", 1 << 40)),
    ("marked corrupt", header(72, ">Q", 2)),
    ("compression type without its bit", header(104, ">B", 1)),
    ("compression bit without a type", header(72, ">Q", 8)),
    ("unknown compression type", lambda i: (i.put(72, ">Q", 8), i.put(104, ">B", 7))),
    ("data file bit without a name", header(72, ">Q", 4)),
    ("raw data without a data file", header(88, ">Q", 2)),
    ("unknown autoclear feature", header(88, ">Q", 1 << 40)),
    ("unknown compatible feature", header(80, ">Q", 1 << 40)),
    ("refcount order 7", header(96, ">I", 7)),
    ("encryption method 3", header(32, ">I", 3)),
    ("encryption method LUKS without its header", header(32, ">I", 2)),
    ("backing name in the header", header(8, ">QI", 64, 4)),
    ("backing name behind the first cluster", header(8, ">QI", CLUSTER - 2, 4)),
    ("backing name beyond it", header(8, ">QI", 1 << 40, 4)),
    ("backing name of 1024 bytes", header(8, ">QI", 4096, 1024)),
    ("backing name of 0 bytes", header(8, ">QI", 4096, 0)),
    ("disk of 2^63 bytes", header(24, ">Q", 1 << 63)),
    ("disk larger than its L1 table", header(24, ">Q", 1 << 40)),
    ("disk of part of a sector", header(24, ">Q", 64 * MIB - 100)),
    ("no L1 table", header(36, ">I", 0)),
    ("L1 table of 2^23 entries", header(36, ">I", 1 << 23)),
    ("L1 table not aligned", lambda i: i.put(40, ">Q", i.get(40, ">Q") + 512)),
    ("L1 table beyond 2^63", header(40, ">Q", 1 << 63)),
    ("L1 table behind the end", header(40, ">Q", 1 << 40)),
    ("L1 table in the header", header(40, ">Q", 0)),
    ("no refcount table", header(56, ">I", 0)),
    ("refcount table too large", header(56, ">I", 129)),
    ("refcount table not aligned", lambda i: i.put(48, ">Q", i.get(48, ">Q") + 512)),
    ("refcount table behind the end", header(48, ">Q", 1 << 40)),
    ("refcount table beyond 2^63", header(48, ">Q", 1 << 63)),
    ("too many snapshots", header(60, ">IQ", 65537, 0x50000)),
    ("snapshots in the header", header(60, ">IQ", 1, 0)),
    ("snapshots not aligned", header(60, ">IQ", 1, 0x50200)),
    ("snapshots behind the end", header(60, ">IQ", 1, 1 << 40)),
    ("extension that passes the cluster", lambda i: i.put(i.extension(NAMES) + 4, ">I", 1 << 20)),
    ("extension that wraps", lambda i: i.put(i.extension(NAMES) + 4, ">I", 0xfffffffc)),
    ("backing format of 15 bytes", extensions((FORMAT, b"q" * 15))),
    ("backing format of 16 bytes", extensions((FORMAT, b"q" * 16))),
    ("backing format of 200 bytes", extensions((FORMAT, b"q" * 200))),
    ("backing format of no bytes", extensions((FORMAT, b""))),
    ("backing format with a NUL", extensions((FORMAT, b"raw\0x"))),
    ("backing format twice", extensions((FORMAT, b"raw"), (FORMAT, b"qcow2"))),
    ("feature names of an odd length", extensions((NAMES, bytes(50)))),
    ("data file name without its bit", extensions((DATA_FILE, b"data"))),
    ("encryption header without encryption", extensions((CRYPTO, bytes(16)))),
    ("encryption header of 8 bytes", extensions((CRYPTO, bytes(8)))),
    ("bitmaps extension without its bit", extensions((BITMAPS, struct.pack(">IIQQ", 1, 0, 32, 0x50000)))),
    ("bitmaps extension of 8 bytes without its bit", extensions((BITMAPS, bytes(8)))),
    ("bitmaps bit without extension", header(88, ">Q", 1)),
]
IN_BITMAP = [
    ("reserved flag 3", in_bitmap(12, ">I", 8)),
    ("reserved flag 31", in_bitmap(12, ">I", 1 << 31)),
    ("extra data compatible", in_bitmap(12, ">I", 4)),
    ("extra data compatible, auto", in_bitmap(12, ">I", 6)),
    ("in use", in_bitmap(12, ">I", 1)),
    ("in use, with another table size", lambda i: (in_bitmap(12, ">I", 1)(i), in_bitmap(8, ">I", 7)(i))),
    ("type 0", in_bitmap(16, ">B", 0)),
    ("type 2", in_bitmap(16, ">B", 2)),
    ("granularity 8", in_bitmap(17, ">B", 8)),
    ("granularity 9", in_bitmap(17, ">B", 9)),
    ("granularity 32", in_bitmap(17, ">B", 32)),
    ("granularity 64", in_bitmap(17, ">B", 64)),
    ("no name", in_bitmap(18, ">H", 0)),
    ("a longer name", in_bitmap(18, ">H", 8)),
    ("a name that passes the directory", in_bitmap(18, ">H", 100)),
    ("extra data", lambda i: (i.put(i.directory + 20, ">I", 4), i.put(i.directory + 18, ">H", 1))),
    ("extra data that pass the directory", in_bitmap(20, ">I", 1 << 20)),
    ("table of no entries", in_bitmap(8, ">I", 0)),
    ("table of two entries", in_bitmap(8, ">I", 2)),
    ("table of 2^28 entries", in_bitmap(8, ">I", 1 << 28)),
    ("table not aligned", lambda i: in_bitmap(0, ">Q", i.get(i.directory, ">Q") + 512)(i)),
    ("table at 0", in_bitmap(0, ">Q", 0)),
    ("table behind the end", in_bitmap(0, ">Q", 1 << 40)),
    ("table entry with reserved bits", lambda i: i.put(i.get(i.directory, ">Q"), ">Q", 2)),
    ("table entry not aligned", lambda i: i.put(i.get(i.directory, ">Q"), ">Q", 0x50200)),
    ("table entry behind the end", lambda i: i.put(i.get(i.directory, ">Q"), ">Q", 1 << 40)),
    ("a disk of no bytes", header(24, ">Q", 0)),
    ("a disk of another size", header(24, ">Q", 16 * MIB)),
    ("no bitmaps in the extension", lambda i: i.put(i.extension(BITMAPS) + 8, ">I", 0)),
    ("two in the extension", lambda i: i.put(i.extension(BITMAPS) + 8, ">I", 2)),
    ("65536 in the extension", lambda i: i.put(i.extension(BITMAPS) + 8, ">I", 65536)),
    ("reserved field of the extension", lambda i: i.put(i.extension(BITMAPS) + 12, ">I", 1)),
    ("directory of 0 bytes", lambda i: i.put(i.extension(BITMAPS) + 16, ">Q", 0)),
    ("directory of 8 bytes too many", lambda i: i.put(i.extension(BITMAPS) + 16, ">Q", 40)),
    ("directory too large", lambda i: i.put(i.extension(BITMAPS) + 16, ">Q", 1 << 40)),
    ("directory not aligned", lambda i: i.put(i.extension(BITMAPS) + 24, ">Q", i.directory + 512)),
    ("directory behind the end", lambda i: i.put(i.extension(BITMAPS) + 24, ">Q", 1 << 40)),
    ("extension of 32 bytes", lambda i: i.put(i.extension(BITMAPS) + 4, ">I", 32)),
    ("extension of 16 bytes", lambda i: i.put(i.extension(BITMAPS) + 4, ">I", 16)),
    ("bit that is clear", header(88, ">Q", 0)),
]
IN_SNAPSHOT = [
    ("L1 table not aligned", in_snapshot(0, ">Q", 0x30200)),
    ("L1 table behind the end", in_snapshot(0, ">Q", 1 << 40)),
    ("L1 table at 0", in_snapshot(0, ">Q", 0)),
    ("L1 table of no entries", in_snapshot(8, ">I", 0)),
    ("L1 table of 2^23 entries", in_snapshot(8, ">I", 1 << 23)),
    ("no id", in_snapshot(12, ">H", 0)),
    ("no name", in_snapshot(14, ">H", 0)),
    ("a name that passes the file", in_snapshot(14, ">H", 65535)),
    ("no extra data", lambda i: i.extra_data(0)),
    ("8 bytes of extra data", lambda i: i.extra_data(8)),
    ("1024 bytes of extra data", lambda i: i.extra_data(1024)),
    ("1032 bytes of extra data", lambda i: i.extra_data(1032)),
    ("extra data that pass the file", in_snapshot(36, ">I", 1 << 30)),
    ("disk of another size", in_snapshot(48, ">Q", 1 * MIB)),
    ("disk larger than its L1 table", in_snapshot(48, ">Q", 1 << 40)),
    ("VM state of 2^63 bytes", in_snapshot(40, ">Q", 1 << 63)),
    ("two in the header", header(60, ">I", 2)),
]


@only_byre
class Readers(Case):
    def build(self, kind):
        for name in os.listdir(self.folder):
            os.unlink(self.path(name))
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "64M")
        qemu_io(path, "write -q -P 5 0 64k")
        if kind == "bitmap":
            qemu_img("bitmap", "--add", "--disable", path, "b")
        if kind == "snapshot":
            qemu_img("snapshot", "-c", "s", path)
        return path

    def opens(self, path):
        """Does QEMU open it, to read and to write?"""
        copy = path + ".copy"
        run("cp", path, copy)

        def code(*words):  # Some of these end qemu-img 7.2 by a signal.
            return subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode

        size = Image(copy).get(24, ">Q")
        reads = code("qemu-io", "-r", "-f", "qcow2", "-c", "read -q 0 0", copy) == 0
        info = code("qemu-img", "info", "-f", "qcow2", copy) == 0
        check = code("qemu-img", "check", "-f", "qcow2", copy) in (0, 3)
        writes = size == 0 or code("qemu-io", "-f", "qcow2", "-c", "write -q 0 512", copy) == 0
        os.unlink(copy)
        return {"read": reads, "info": info, "check": check, "write": writes}

    def test_what_is_sound_opens(self):
        wrong = []
        for kind, rules in (("plain", PLAIN), ("bitmap", IN_BITMAP), ("snapshot", IN_SNAPSHOT)):
            for name, breaks in rules:
                if breaks is None:
                    continue
                path = self.build(kind)
                breaks(Image(path))
                theirs = self.opens(path)
                ours = run(BYRE, "check", "-f", "qcow2", path, ok=None)
                if name == "marked corrupt":  # To be read, and not to be written to; it is said.
                    self.assertIn("is marked corrupt", ours.text)
                elif ours.code == 0 and not all(theirs.values()):
                    wrong.append((kind, name, theirs))
                if ours.code in (2, 3):
                    done = run(BYRE, "repair", "--apply", "-f", "qcow2", path, ok=None)
                    if done.code in (0, 3):
                        again = self.opens(path)
                        if not all(again.values()):
                            wrong.append((kind, name, "after repair", again))
                    else:
                        self.assertIn("convert --salvage", done.text, (kind, name))
        for each in wrong:
            print(*each)
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    main()
