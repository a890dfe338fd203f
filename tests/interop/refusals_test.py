#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Changes that cannot be: refused in time, with the image as it was, on disks of any size and on damaged images.

Each of these once lost data, memory, or the image; the names say what must not happen.
"""
import hashlib
import os
import resource
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import (BYRE, KIB, MIB, Case, byre_io, describe, examine, img, main, only_byre, qemu_img,  # noqa: E402
                     qemu_io, run)

KNOWN_SMALL = 3 << 30  # Address space for a program that needs a few megabytes.


def peek(path, at, form):
    with open(path, "rb") as file:
        file.seek(at)
        return struct.unpack(form, file.read(struct.calcsize(form)))


def poke(path, at, form, *values):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, *values))


def extensions_of(path):
    """Where the contents of each header extension lie, by type."""
    at, = peek(path, 100, ">I")
    found = {}
    while True:
        kind, length = peek(path, at, ">II")
        if kind == 0:
            return found
        found[kind] = at + 8
        at += 8 + -(-length // 8) * 8


def digest(path, length):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(length)).hexdigest()


def little_memory():
    resource.setrlimit(resource.RLIMIT_AS, (KNOWN_SMALL, KNOWN_SMALL))


@only_byre
class Refusals(Case):
    def of_snapshot(self, image):
        """What snapshot s of `image` holds, as a raw file."""
        raw = image + ".raw"
        qemu_img("convert", "-f", "qcow2", "-l", "s", "-O", "raw", image, raw)
        return raw

    def image(self, *words, size="1M", fill=True):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", *words, path, size)
        if fill:
            qemu_io(path, f"write -q -P 0xaa 0 {size}")
        return path

    def refused(self, *words, saying=None, unchanged=None, **popen):
        """Exit code 1, with a message; the file `unchanged` is not, but that it may end with a whole cluster."""
        length = os.path.getsize(unchanged) if unchanged else 0
        before = digest(unchanged, length) if unchanged else None
        done = run(BYRE, *words, ok=(1,), **popen)
        if saying:
            self.assertIn(saying, done.text)
        if unchanged:
            self.assertEqual(digest(unchanged, length), before, done.text)

    def assert_clean(self, path):
        qemu_img("check", "-q", path)
        self.assertEqual(examine(path)["errors"], [])

    # --- Shrinking and growing --------------------------------------------------------------------

    def test_a_shrink_without_space_keeps_the_disk(self):
        path = self.image()
        length = os.path.getsize(path)

        def no_more_space():
            resource.setrlimit(resource.RLIMIT_FSIZE, (length, length))
            import signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        run(BYRE, "resize", "-f", "qcow2", "--shrink", path, "922112", ok=(1,), preexec_fn=no_more_space)
        self.assertEqual(describe(path)["virtual-size"], MIB)
        qemu_io(path, "read -q -P 0xaa 0 1M")
        self.assert_clean(path)

    def foreign_bitmap(self, path):
        """A bitmap of a type that byre does not know."""
        qemu_img("bitmap", "--add", "--disable", path, "b")
        directory, = peek(path, extensions_of(path)[0x23852875] + 16, ">Q")
        poke(path, directory + 16, ">B", 2)

    def test_a_shrink_that_a_bitmap_forbids_keeps_the_disk(self):
        path = self.image()
        self.foreign_bitmap(path)
        run(BYRE, "resize", "-f", "qcow2", "--shrink", path, "922112", ok=(1,))
        byre_io(path, "read -q -P 0xaa 0 1M", options=("-r", "-f", "qcow2"))

    def test_a_growth_that_a_bitmap_forbids_keeps_the_file(self):
        path = self.image()
        self.foreign_bitmap(path)
        length = os.path.getsize(path)
        run(BYRE, "resize", "-f", "qcow2", "--preallocation=full", path, "100M", ok=(1,))
        self.assertLessEqual(os.path.getsize(path), length)

    def test_version_2_with_snapshots_keeps_its_size(self):
        """Its snapshots could not be applied by others any more."""
        path = self.image("-o", "compat=0.10")
        qemu_img("snapshot", "-c", "s", path)
        for words in (("resize", "-f", "qcow2", path, "2M"), ("amend", "-f", "qcow2", "-o", "size=2M", path)):
            self.refused(*words, saying="Can't resize a v2 image which has snapshots", unchanged=path)

    def test_snapshots_of_another_size_stay_version_3(self):
        path = self.image()
        qemu_img("snapshot", "-c", "s", path)
        img("resize", "-f", "qcow2", path, "2M")
        self.refused("amend", "-f", "qcow2", "-o", "compat=0.10", path, saying="prevent downgrade", unchanged=path)

    def test_a_size_of_part_of_a_sector_is_none(self):
        path = self.image()
        self.refused("io", "-f", "qcow2", "-c", "truncate 1000000", path, saying="multiple of 512", unchanged=path)

    def test_bitmaps_that_would_not_fit_are_refused_before_there_is_memory_for_them(self):
        path = self.path("huge.qcow2")
        img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, "2E")
        self.refused("bitmap", "--add", "-f", "qcow2", path, "b", saying="larger", unchanged=path,
                     preexec_fn=little_memory)
        path = self.path("disk.qcow2")
        img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, "1G")
        img("bitmap", "--add", "-f", "qcow2", path, "b")
        self.refused("resize", "-f", "qcow2", path, "2E", saying="larger", preexec_fn=little_memory)
        self.assert_clean(path)

    # --- Amending ---------------------------------------------------------------------------------

    def test_a_backing_name_that_no_reader_takes(self):
        path = self.image()
        self.refused("amend", "--force", "-f", "qcow2", "-o", f"backing_file={'d/' * 600},backing_fmt=raw", path,
                     saying="at most 1023", unchanged=path)

    def test_two_headers_of_which_the_second_has_no_room(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-u", "-o", "compat=0.10,cluster_size=2k", "-b", "a" * 900, "-F", "raw",
                 path, "1M")
        self.refused("amend", "--force", "-f", "qcow2", "-o", f"compat=1.1,backing_file={'b' * 900},backing_fmt=raw",
                     path, saying="does not fit", unchanged=path)

    def test_refcounts_whose_new_table_grows_while_it_is_made(self):
        for options, size in (("cluster_size=4k", "1020M"), ("cluster_size=4k", "1021M"), ("cluster_size=512", "2000k")):
            with self.subTest(options=options, size=size):
                path = self.path("disk.qcow2")
                img("create", "-q", "-f", "qcow2", "-o", f"{options},preallocation=metadata", path, size)
                img("amend", "-f", "qcow2", "-o", "refcount_bits=64", path)
                self.assert_clean(path)
                os.unlink(path)

    def test_a_table_with_more_owners_than_its_refcount_says_is_not_shared_further(self):
        """Clusters of zeros for version 2 get as many references as their table has: here more than fit in one bit."""
        base = self.path("base.raw")
        with open(base, "wb") as file:
            file.write(b"\x05" * 8 * MIB)
        path = self.image("-o", "cluster_size=512,refcount_bits=1", "-b", base, "-F", "raw", size="1M", fill=False)
        qemu_io(path, "write -q -z 0 32k", "write -q -P 1 32k 64k")
        l1, = peek(path, 40, ">Q")
        poke(path, l1 + 8, ">Q", *peek(path, l1, ">Q"))
        self.refused("amend", "-f", "qcow2", "-o", "compat=0.10,refcount_bits=16", path, saying="byre repair")

    def test_snapshots_that_version_3_does_not_allow_are_completed(self):
        path = self.image("-o", "compat=0.10")
        qemu_img("snapshot", "-c", "s", path)
        table, = peek(path, 64, ">Q")
        extra, = peek(path, table + 36, ">I")
        with open(path, "r+b") as file:
            file.seek(table + 40)
            rest = file.read(512)
            file.seek(table + 36)
            file.write(struct.pack(">I", 0) + rest[extra:])
        qemu_io(path, "write -q -P 1 0 64k")
        img("amend", "-f", "qcow2", "-o", "compat=1.1", path)
        self.assert_clean(path)
        img("snapshot", "-a", "s", path)
        qemu_io(path, "read -q -P 0xaa 0 1M")
        self.assert_clean(path)

    # --- Damaged images ---------------------------------------------------------------------------

    def test_a_snapshot_whose_table_is_the_disks_is_not_deleted(self):
        path = self.image()
        qemu_img("snapshot", "-c", "s", path)
        qemu_io(path, "write -q -P 2 0 1M")
        table, = peek(path, 64, ">Q")
        poke(path, table, ">Q", *peek(path, 40, ">Q"))
        self.refused("snapshot", "-d", "s", path, saying="overlaps other metadata", unchanged=path)
        byre_io(path, "read -q -P 2 0 1M", options=("-r", "-f", "qcow2"))

    def test_a_leak_that_is_counted_often_costs_no_memory(self):
        path = self.image("-o", "refcount_bits=64")
        table, = peek(path, 48, ">Q")
        block, = peek(path, table, ">Q")
        length = os.path.getsize(path)
        poke(path, block + 8 * (length // (64 * KIB)), ">Q", 1 << 40)
        with open(path, "r+b") as file:
            file.truncate(length + 64 * KIB)
        run(BYRE, "io", "-f", "qcow2", "-c", "check -r leaks", path, preexec_fn=little_memory)
        self.assert_clean(path)

    def test_leaks_are_freed_with_the_flags_that_they_hid(self):
        """-r leaks puts COPIED right where nothing else is wrong, as qemu-img does."""
        for compat in ("0.10", "1.1"):
            for refcount in (1, 2):
                with self.subTest(compat=compat, refcount=refcount):
                    path = self.image("-o", f"compat={compat}")
                    l1, table = peek(path, 40, ">QQ")
                    l2 = peek(path, l1, ">Q")[0] & ((1 << 56) - 512)
                    entry, = peek(path, l2, ">Q")
                    poke(path, l2, ">Q", entry & ~(1 << 63))
                    block, = peek(path, table, ">Q")
                    poke(path, block + 2 * ((entry & ((1 << 56) - 512)) // (64 * KIB)), ">H", refcount)
                    theirs = self.path("theirs.qcow2")
                    run("cp", path, theirs)
                    qemu_img("check", "-q", "-r", "leaks", theirs)
                    img("check", "-q", "-r", "leaks", path)
                    self.assert_clean(path)
                    qemu_io(path, "read -q -P 0xaa 0 1M")
                    os.unlink(path)

    def unsound_extension(self, path, length, far):
        """The image gets a bitmaps extension of a wrong length, without the bit that makes it count."""
        names = extensions_of(path)[0x6803f857]
        size, = peek(path, names - 4, ">I")
        end = names + -(-size // 8) * 8
        if not far:
            end = names - 8  # In the place of the names.
        body = struct.pack(">II", 0x23852875, length) + bytes(-(-length // 8) * 8)
        body += struct.pack(">II", 0x11111111, 8) + b"kept\0\0\0\0" if far else b""
        with open(path, "r+b") as file:
            file.seek(end)
            file.write(body + bytes(8))

    def test_an_unsound_bitmaps_extension_is_put_right(self):
        for length, far in ((40, True), (16, False)):
            with self.subTest(length=length, far=far):
                path = self.image()
                self.unsound_extension(path, length, far)
                for name in ("one", "two"):
                    img("bitmap", "--add", "-f", "qcow2", path, name)
                found = describe(path)["format-specific"]["data"]["bitmaps"]
                self.assertEqual([bitmap["name"] for bitmap in found], ["one", "two"])
                self.assert_clean(path)
                os.unlink(path)

    def test_metadata_without_a_refcount_are_not_overwritten(self):
        """Nothing that only a snapshot, or a bitmap, leads to: it is counted first, or the image is not changed."""
        path = self.image("-o", "cluster_size=4k")
        qemu_img("snapshot", "-c", "s", path)
        qemu_io(path, "write -q -P 2 0 1M")  # Tables of its own.
        qemu_img("bitmap", "--add", "-g", "512", path, "b")
        qemu_io(path, "write -q -P 3 0 512")
        table, = peek(path, 64, ">Q")
        snapshot_l1, = peek(path, table, ">Q")
        offset = (1 << 56) - 512
        directory, = peek(path, extensions_of(path)[0x23852875] + 16, ">Q")
        bitmap_table, = peek(path, directory, ">Q")
        places = {"a snapshot's L2 table": peek(path, snapshot_l1, ">Q")[0] & offset, "its L1 table": snapshot_l1,
                  "the snapshot table": table, "the bitmap directory": directory, "its table": bitmap_table,
                  "its data": peek(path, bitmap_table, ">Q")[0] & offset}
        refcounts, = peek(path, 48, ">Q")
        block, = peek(path, refcounts, ">Q")
        places["a refcount block"] = block
        rebuilding = (("amend", "-f", "qcow2", "-o", "refcount_bits=32", path),
                      ("amend", "-f", "qcow2", "-o", "compat=1.1,lazy_refcounts=on", path), ("snapshot", "-c", "t", path))
        adding = (("resize", "-f", "qcow2", path, "64G"), ("bitmap", "--add", "-f", "qcow2", path, "c"))
        kept = self.path("kept")
        run("cp", path, kept)
        for name, at in places.items():
            self.assertNotEqual(at, 0, name)
            for command in rebuilding + adding:
                with self.subTest(place=name, command=command):
                    run("cp", kept, path)
                    poke(path, block + 2 * (at // 4096), ">H", 0)
                    if command in rebuilding:
                        self.refused(*command, unchanged=path, saying="byre repair")
                        continue
                    self.assertIn("byre repair", img(*command).text)
                    qemu_img("check", "-q", "-f", "qcow2", path)
                    qemu_io(path, "read -q -P 3 0 512", "read -q -P 2 512 1023k")
                    qemu_img("compare", "-q", "-f", "raw", "-F", "raw", self.of_snapshot(kept), self.of_snapshot(path))

    def test_a_refcount_table_full_of_garbage_costs_what_the_file_has(self):
        for options in ("cluster_size=64k", "cluster_size=2M", "cluster_size=512"):
            with self.subTest(options=options):
                path = self.path("garbage.qcow2")
                qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "64M")
                qemu_io(path, "write -q -P 5 0 64k")
                cluster = 1 << peek(path, 20, ">I")[0]
                entries = min(cluster // 8, 500)
                table, = peek(path, 48, ">Q")
                with open(path, "r+b") as file:
                    file.seek(table)
                    file.write(b"\x38" * 8 * entries)
                length = os.path.getsize(path)
                done = run(BYRE, "repair", "--apply", path, ok=(0, 3),
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (512 * MIB, 512 * MIB)))
                self.assertLess(os.path.getsize(path), 2 * length + 8 * cluster)
                self.assertLess(len(done.text.splitlines()), 80)
                self.assertIn("more like these", done.text)
                qemu_io(path, "read -q -P 5 0 64k")
                qemu_img("check", "-q", path, ok=(0, 3))
                os.unlink(path)
                os.unlink(path + ".undo")

    def test_no_memory_is_an_error_with_a_sentence(self):
        """Under any limit the process ends with exit code 1 and words, or does its work; no signal ends it."""
        path = self.image("-o", "cluster_size=2M", size="64G", fill=False)
        qemu_io(path, "write -q -P 5 0 64M")
        said = 0
        for limit in range(13, 400, 3):
            done = run(BYRE, "check", path, ok=None,
                       preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit * MIB, limit * MIB)))
            self.assertIn(done.code, (0, 1, 127), (limit, done.text))  # 127: not even the libraries could be loaded.
            if done.code == 1:
                self.assertIn("emory", done.text)
                said += "out of memory" in done.text
            if done.code == 0:
                break
        self.assertGreater(said, 0, "no limit met an allocation")

    # --- Zeros ------------------------------------------------------------------------------------

    def test_zeros_that_were_written_stay_over_a_backing_file_that_comes_later(self):
        base = self.path("base.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", base, "1M")
        qemu_io(base, "write -q -P 5 0 1M")
        for options in ((), ("-o", "extended_l2=on"), ("-o", "cluster_size=4k")):
            with self.subTest(options=options):
                path = self.image(*options, fill=False)
                byre_io(path, "write -q -z 0 64k", "write -q -z -u 128k 64k", "discard -q 256k 64k",
                        options=("-f", "qcow2"))
                with self.server(path) as server:
                    qemu_io(server.uri, "write -q -z 512k 512k", options=("-f", "raw"))
                qemu_img("rebase", "-u", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
                qemu_io(path, "read -q -P 0 0 64k", "read -q -P 0 128k 64k", "read -q -P 0 512k 64k",
                        "read -q -P 5 256k 64k")
                self.assert_clean(path)


if __name__ == "__main__":
    main()
