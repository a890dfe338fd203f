# SPDX-License-Identifier: Apache-2.0
"""Persistent bitmaps: byre's and QEMU's tools take turns on the same images, and agree on every bit.

A model has, for each bitmap, the granules that were written since it was added or cleared.  After each step the
reference reads the bits; at the end QEMU gives them over NBD (qemu:dirty-bitmap).  What a killed byre leaves behind is
valid for QEMU, and a superset.
"""
import contextlib
import json
import os
import random
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tool_test  # noqa: E402
from harness import (BYRE, GIB, KIB, MIB, Case, byre_io, describe, img, main, only_byre, options_of, qemu_img,  # noqa: E402
                     qemu_io, qcow2ref, run, until)

SHAPES = [
    dict(),
    dict(cluster_size=512, refcount_bits=64),
    dict(cluster_size=4096, refcount_bits=8),
    dict(refcount_bits=1),
    dict(cluster_size=2 * MIB),
    dict(extended_l2="on"),
    dict(lazy_refcounts="on"),
    dict(compression_type="zstd", cluster_size=8 * KIB),
]


def dirty_by_qemu(case, image, name):
    """The dirty ranges that qemu-nbd exposes: (offset, end), one behind the other joined."""
    sock = case.path("map")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(sock)
    server = subprocess.Popen(["qemu-nbd", "-r", "-f", "qcow2", "-k", sock, "-B", name, image])

    def told():  # The socket is there a moment before qemu-nbd listens, and a probe would be its only client.
        done = run("nbdinfo", f"--map=qemu:dirty-bitmap:{name}", f"nbd+unix:///?socket={sock}", ok=(0, 1))
        refused = done.code == 1 and ("Connection refused" in done.text or "No such file" in done.text)
        return None if refused else done
    try:
        done = until(told, "qemu-nbd listens")
        assert done.code == 0, str(done)
        out = done.out.decode()
    finally:
        server.terminate()
        server.wait()
    return ranges_of(out)


def ranges_of(out):
    """The dirty ranges in what nbdinfo --map prints."""
    ranges = []
    for line in out.splitlines():
        offset, length, kind = (int(word) for word in line.split()[:3])
        if kind & 1:
            if ranges and ranges[-1][1] == offset:
                ranges[-1] = ranges[-1][0], offset + length
            else:
                ranges.append((offset, offset + length))
    return ranges


def flags_of(image):
    return {b["name"]: b["flags"] for b in describe(image)["format-specific"]["data"].get("bitmaps", [])}


class Turns(Case):
    def play(self, seed, shape, backing=False, steps=16):
        rng = random.Random(seed)
        image = self.path("disk.qcow2")
        size = 3 * MIB + 512 * rng.randrange(0, 100)
        words = options_of(**shape)
        if backing:
            qemu_img("create", "-q", "-f", "raw", self.path("base.raw"), "2M")
            words += ["-b", self.path("base.raw"), "-F", "raw"]
        qemu_img("create", "-q", "-f", "qcow2", *words, image, size)
        bitmaps, told, count = {}, [], 0  # name: [granularity, enabled, granules]
        for step in range(steps):
            by_qemu = rng.random() < 0.5
            tool = qemu_img if by_qemu else img
            follow = [] if by_qemu else ["--follow", "any"]
            what = rng.choice(["write", "write", "write", "zero", "add", "add", "remove", "clear", "disable", "enable",
                               "merge", "grow"])
            told.append(f"{what} by {'QEMU' if by_qemu else 'byre'}")
            name = rng.choice(sorted(bitmaps)) if bitmaps else None
            if what in ("write", "zero"):
                at = rng.randrange(0, size // 512) * 512
                length = min(size - at, rng.choice([512, 4096, 70 * KIB, 300 * KIB]))
                # Zeros over zeros change nothing: byre does not record them, QEMU does.
                text = f"write -P {rng.randrange(1, 256)} {at} {length}"
                if what == "zero":
                    (qemu_io if by_qemu else self.by_byre)(image, text, f"write -z {at} {length}")
                else:
                    (qemu_io if by_qemu else self.by_byre)(image, text)
                for granularity, enabled, granules in bitmaps.values():
                    if enabled:
                        granules.update(range(at // granularity, (at + length - 1) // granularity + 1))
            elif what == "add" and len(bitmaps) < 4:
                count += 1
                granularity = 1 << rng.randrange(9, 18)
                tool("bitmap", "--add", *follow, "-g", granularity, "-f", "qcow2", image, f"b {count}")
                bitmaps[f"b {count}"] = [granularity, True, set()]
            elif what == "grow":
                before, size = size, size + 512 * rng.randrange(1, 800)
                # QEMU 7.2 does not record what a resize adds.
                img("resize", "-q", "--follow", "any", "-f", "qcow2", image, size)
                for granularity, enabled, granules in bitmaps.values():
                    if enabled:
                        granules.update(range(before // granularity, (size - 1) // granularity + 1))
            elif name is None:
                continue
            elif what == "remove":
                tool("bitmap", "--remove", *follow, "-f", "qcow2", image, name)
                del bitmaps[name]
            elif what == "clear":
                tool("bitmap", "--clear", *follow, "-f", "qcow2", image, name)
                bitmaps[name][2] = set()
            elif what in ("enable", "disable"):
                tool("bitmap", f"--{what}", *follow, "-f", "qcow2", image, name)
                bitmaps[name][1] = what == "enable"
            elif what == "merge":
                source = rng.choice(sorted(bitmaps))
                tool("bitmap", "--merge", source, *follow, "-f", "qcow2", image, name)
                fine = bitmaps[source][0]
                for granule in list(bitmaps[source][2]):
                    start, end = granule * fine, min(size, (granule + 1) * fine)
                    bitmaps[name][2].update(range(start // bitmaps[name][0], (end - 1) // bitmaps[name][0] + 1))
            with self.subTest(seed=seed, shape=shape, told=told):
                self.assertEqual(flags_of(image), {n: ["auto"] if b[1] else [] for n, b in bitmaps.items()})
                for n, (granularity, _, granules) in bitmaps.items():
                    self.assertEqual(qcow2ref.Image(image).dirty(n), self.ranges(granularity, granules, size))
                qemu_img("check", "-q", "-f", "qcow2", image)
        self.assert_sound(image)
        for n, (granularity, _, granules) in bitmaps.items():
            self.assertEqual(dirty_by_qemu(self, image, n), self.ranges(granularity, granules, size), (seed, told))

    @staticmethod
    def by_byre(image, *commands):
        byre_io(image, *commands, options=("--follow", "any"))

    @staticmethod
    def ranges(granularity, granules, size):
        found = []
        for granule in sorted(granules):
            start, end = granule * granularity, min(size, (granule + 1) * granularity)
            if found and found[-1][1] == start:
                found[-1] = found[-1][0], end
            else:
                found.append((start, end))
        return found

    def test_every_shape(self):
        for seed, shape in enumerate(SHAPES):
            with self.subTest(shape=shape):
                os.makedirs(self.folder, exist_ok=True)
                self.play(seed + 100, shape)

    def test_an_overlay(self):
        """QEMU puts the extension behind the first sector: byre moves it, QEMU moves it back."""
        for seed in range(2):
            self.play(seed, dict(), backing=True)


@only_byre
class Served(Case):
    def test_what_is_copied_up_is_not_recorded(self):
        """Copy-on-read and streaming change nothing that the guest reads; a write to the same clusters does."""
        base = self.path("base.raw")
        with open(base, "wb") as file:
            file.write(b"\7" * MIB + bytes(MIB))
            file.truncate(4 * MIB)  # What a hole reads as is stored as zeros.
        for program in (qemu_io, byre_io):
            image = self.path("copies")
            qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image)
            qemu_img("bitmap", "--add", image, "b")
            program(image, "read -q -P 7 128k 100k", "read -q -P 0 1536k 64k", "read -q -P 0 2560k 100k",
                    options=("-C", "-f", "qcow2"))
            for at in (128 * KIB, 2560 * KIB):
                self.assertTrue(any(run["start"] <= at < run["start"] + run["length"] and run["depth"] == 0
                                    for run in json.loads(qemu_img("map", "--output=json", image).out)))
            self.assertEqual(dirty_by_qemu(self, image, "b"), [])
            self.assert_sound(image)
            program(image, "read -q -P 7 512k 4k", "write -q -P 8 130k 4k", options=("-C", "-f", "qcow2"))
            self.assertEqual(dirty_by_qemu(self, image, "b"), [(128 * KIB, 192 * KIB)])

    def test_clients_see_what_is_recorded(self):
        """qemu:dirty-bitmap over NBD: as QEMU serves it, and as it is now while it records."""
        image = self.path("disk.qcow2")
        img("create", "-f", "qcow2", image, 100 * MIB)
        img("bitmap", "--add", image, "daily")
        img("bitmap", "--add", "-g", 512, image, "fine")
        byre_io(image, "write 1M 64k", "write 50M 512")
        img("bitmap", "--disable", image, "fine")
        wanted = {name: dirty_by_qemu(self, image, name) for name in ("daily", "fine")}
        self.assertEqual(wanted["fine"], [(MIB, MIB + 64 * KIB), (50 * MIB, 50 * MIB + 512)])
        sock = self.path("nbd")
        server = subprocess.Popen([BYRE, "serve", image, "--socket", sock, "-B", "daily", "-B", "fine", "--quiet"],
                                  stdout=subprocess.DEVNULL)
        try:
            until(lambda: os.path.exists(sock), "byre listens")
            uri = f"nbd+unix:///?socket={sock}"
            for name, ranges in wanted.items():
                self.assertEqual(self.map(uri, name), ranges)
            run("qemu-io", "-f", "raw", "-c", "write 80M 64k", uri)
            self.assertEqual(self.map(uri, "daily"), wanted["daily"] + [(80 * MIB, 80 * MIB + 64 * KIB)])
            self.assertEqual(self.map(uri, "fine"), wanted["fine"])
            self.assertIn("qemu:dirty-bitmap:daily", run("nbdinfo", uri).out.decode())
        finally:
            server.terminate()
            server.wait()
        self.assertIn("not found", run(BYRE, "serve", image, "--socket", sock, "-B", "none", ok=(1,)).text)
        self.assert_sound(image)

    @staticmethod
    def map(uri, name):
        return ranges_of(run("nbdinfo", f"--map=qemu:dirty-bitmap:{name}", uri).out.decode())


@only_byre
class Crashes(Case):
    def test_a_killed_writer_leaves_a_bitmap_that_qemu_takes(self):
        image = self.path("disk.qcow2")
        img("create", "-f", "qcow2", image, 100 * GIB)
        img("bitmap", "--add", image, "daily")
        with self.assertRaises(AssertionError):
            byre_io(image, "write 1M 64k", "write 40G 64k", "flush", "sigraise 9")
        self.assertEqual(flags_of(image), {"daily": ["auto"]})
        left = dirty_by_qemu(self, image, "daily")
        self.assertEqual(left, [(0, 256 * MIB), (40 * GIB, 40 * GIB + 256 * MIB)])
        qemu_io(image, "write 80G 64k")
        self.assertEqual(dirty_by_qemu(self, image, "daily"), left + [(80 * GIB, 80 * GIB + 64 * KIB)])
        # What is in it is at most the backup of 256 MiB too many; cleared, it is exact again.
        img("bitmap", "--clear", image, "daily")
        byre_io(image, "write 1M 64k")
        self.assertEqual(dirty_by_qemu(self, image, "daily"), [(MIB, MIB + 64 * KIB)])
        qemu_img("check", "-q", image)

    def test_one_that_qemu_left_behind_is_inconsistent_and_removable(self):
        image = self.path("disk.qcow2")
        img("create", "-f", "qcow2", image, 10 * MIB)
        img("bitmap", "--add", image, "daily")
        with self.assertRaises(AssertionError):
            qemu_io(image, "write 1M 64k", "sigraise 9")
        self.assertEqual(flags_of(image), {"daily": ["in-use", "auto"]})
        byre_io(image, "write 2M 64k")
        img("resize", "-q", image, 20 * MIB)
        for action in ("--clear", "--enable", "--disable"):
            self.assertIn("is inconsistent", img("bitmap", action, image, "daily", ok=(1,)).text)
        img("bitmap", "--add", image, "next")
        self.assertIn("is inconsistent", img("bitmap", "--merge", "daily", image, "next", ok=(1,)).text)
        self.assertEqual(flags_of(image), {"daily": ["in-use", "auto"], "next": ["auto"]})
        img("bitmap", "--remove", image, "daily")
        self.assertEqual(flags_of(image), {"next": ["auto"]})
        self.assert_sound(image)

    def test_one_that_no_program_opens_is_removable(self):
        image = self.path("disk.qcow2")
        img("create", "-f", "qcow2", image, 10 * MIB)
        img("bitmap", "--add", image, "daily")
        img("bitmap", "--add", image, "other")
        with open(image, "r+b") as file:
            data = file.read()
            at = data.index(b"\x23\x85\x28\x75")
            directory = int.from_bytes(data[at + 24:at + 32], "big")
            file.seek(directory + 17)
            file.write(b"\x2f")
        qemu_img("info", image, ok=(1,))
        img("bitmap", "--clear", image, "daily", ok=(1,))
        img("bitmap", "--remove", image, "daily")
        self.assertEqual(flags_of(image), {"other": ["auto"]})
        self.assert_sound(image)

    def test_a_snapshot_applied_makes_everything_dirty(self):
        image = self.path("disk.qcow2")
        img("create", "-f", "qcow2", image, 10 * MIB)
        img("snapshot", "-c", "before", image)
        img("bitmap", "--add", image, "daily")
        img("bitmap", "--add", image, "still")
        img("bitmap", "--disable", image, "still")
        byre_io(image, "write 1M 64k")
        img("snapshot", "-c", "later", image)
        self.assertEqual(dirty_by_qemu(self, image, "daily"), [(MIB, MIB + 64 * KIB)])
        img("snapshot", "-a", "before", image)
        self.assertEqual(dirty_by_qemu(self, image, "daily"), [(0, 10 * MIB)])
        self.assertEqual(dirty_by_qemu(self, image, "still"), [])
        img("snapshot", "-d", "later", image)
        self.assert_sound(image)


class Words(tool_test.Case):
    """The same words to both tools."""

    @classmethod
    def prepare(cls, folder):
        tool_test.qemu("create", "-q", "-f", "qcow2", "a.qcow2", "10M", cwd=folder)
        tool_test.qemu("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "10M", cwd=folder)
        tool_test.qemu("create", "-q", "-f", "qcow2", "small.qcow2", "1M", cwd=folder)
        tool_test.qemu("create", "-q", "-f", "raw", "disk.raw", "10M", cwd=folder)
        tool_test.qemu("bitmap", "--add", "a.qcow2", "b0", cwd=folder)
        tool_test.qemu("bitmap", "--add", "small.qcow2", "x", cwd=folder)

    def test_wrong_words(self):
        for words in ("", "a.qcow2", "a.qcow2 b0", "--add a.qcow2", "--add a.qcow2 b0", "--remove a.qcow2 nob",
                      "--clear a.qcow2 nob", "--enable a.qcow2 nob", "--disable a.qcow2 nob", "--clear -g 64k a.qcow2 b0",
                      "--merge nob a.qcow2 b0", "--merge b0 -F qcow2 a.qcow2 b0", "--clear -b small.qcow2 a.qcow2 b0",
                      "--add a.qcow2 b3 extra", "--add --remove a.qcow2 b0", "--add nowhere.qcow2 b", "-Z a.qcow2 b",
                      "--merge x -b small.qcow2 -F qcow2 a.qcow2 b0", "--merge x -b small.qcow2 a.qcow2 b0",
                      "--merge x -b nowhere.qcow2 -F qcow2 a.qcow2 b0", "--merge", "--add -g 0x a.qcow2 b"):
            with self.subTest(words=words):
                self.same("bitmap", *words.split(), code=1)
        # byre's reasons are its own.
        for words in ("--add -g 100 a.qcow2 b", "--add -g 256 a.qcow2 b", "--add -g 3k a.qcow2 b", "--add -g 4G a.qcow2 b",
                      "--add -f raw a.qcow2 b", "--add old.qcow2 b", "--add disk.raw b",
                      "--add a.qcow2 " + "x" * 1024, "--image-opts --remove driver=qcow2 nob"):
            with self.subTest(words=words):
                self.same("bitmap", *words.split(), code=1, err=False)
        self.same("bitmap", "--add", "a.qcow2", "", code=1)
        # Which QEMU finds out by its own lock.
        for source in ("a.qcow2", "./a.qcow2"):
            result = self.same("bitmap", "--merge", "b0", "-b", source, "-F", "qcow2", "a.qcow2", "b0", code=1, err=False)
            self.assertIn("source and target are the same file", result.err)
        self.sound("a.qcow2")

    def test_each_does_what_qemu_img_does(self):
        for words in ("--add a.qcow2 b1", "--add --disable a.qcow2 b2", "--disable --enable a.qcow2 b2",
                      "--add -g 0 a.qcow2 b6", "--remove -g 0 a.qcow2 b6", "--add -g 512 a.qcow2 b3", "--add -g 2G a.qcow2 b4", "--add --granularity=128k a.qcow2 b5",
                      "--merge b0 a.qcow2 b3", "--merge b0 --merge b1 a.qcow2 b0", "--clear a.qcow2 b1",
                      "--remove --add a.qcow2 b1", "--add --clear --merge b0 a.qcow2 q", "-f qcow2 --add a.qcow2 b7",
                      "--remove a.qcow2 b7", "--add a.qcow2 " + "x" * 1023, "--add small.qcow2 y",
                      "--merge x -b small.qcow2 -F qcow2 small2.qcow2 y"):
            with self.subTest(words=words):
                for folder in (self.ours, self.theirs):
                    tool_test.must("cp", "small.qcow2", "small2.qcow2", cwd=folder)
                self.same("bitmap", *words.split(), code=0)
                self.sound("a.qcow2")
                for image in ("a.qcow2", "small.qcow2"):
                    ours, theirs = (self.listed(os.path.join(folder, image)) for folder in (self.ours, self.theirs))
                    self.assertEqual(ours, theirs)
        # info shows them as qemu-img does.
        self.assertEqual(tool_test.run("qemu-img", "info", "a.qcow2", cwd=self.ours).out.split("Format specific")[1].split("Child node")[0],
                         self.byre("info", "a.qcow2").out.split("Format specific")[1])

    def test_convert(self):
        tool_test.qemu("bitmap", "--add", "--disable", "-g", "512", "a.qcow2", "b1", cwd=self.ours)
        for image in ("a.qcow2",):
            tool_test.write(image, "write 1M 64k", "write 5M 1k", cwd=self.ours)
            tool_test.must("cp", image, self.theirs, cwd=self.ours)
        for words in ("-O qcow2 a.qcow2 t.qcow2", "-O qcow2 -o cluster_size=4k,lazy_refcounts=on a.qcow2 t.qcow2",
                      "-c -O qcow2 a.qcow2 t.qcow2", "-O qcow2 --skip-broken-bitmaps a.qcow2 t.qcow2"):
            with self.subTest(words=words):
                self.same("convert", "--bitmaps", *words.split(), code=0)
                self.sound("t.qcow2")
                ours, theirs = (os.path.join(folder, "t.qcow2") for folder in (self.ours, self.theirs))
                self.assertEqual(self.listed(ours), self.listed(theirs))
                for name, _, _ in self.listed(theirs):
                    self.assertEqual(qcow2ref.Image(ours).dirty(name), qcow2ref.Image(theirs).dirty(name))
        for words in ("--bitmaps -O raw a.qcow2 t.raw", "--bitmaps -O qcow2 -o compat=0.10 a.qcow2 old2.qcow2",
                      "--bitmaps -O qcow2 a.qcow2 a.qcow2 two.qcow2", "--bitmaps -l none -O qcow2 a.qcow2 t3.qcow2",
                      "--skip-broken-bitmaps -O qcow2 a.qcow2 t4.qcow2", "--bitmaps -O qcow2 old.qcow2 t5.qcow2",
                      "--bitmaps -f raw -O qcow2 disk.raw t6.qcow2"):
            with self.subTest(words=words):
                self.same("convert", *words.split(), code=1)
        # Into one that has them, or has another size: which is met first is not the same.
        for words in ("--bitmaps -n -O qcow2 a.qcow2 t.qcow2",):
            self.same("convert", *words.split(), code=1, err=False)

    def test_convert_of_one_that_was_not_saved(self):
        with self.assertRaises(AssertionError):
            qemu_io(f"{self.ours}/a.qcow2", "write 0 64k", "sigraise 9")
        tool_test.must("cp", "a.qcow2", self.theirs, cwd=self.ours)
        self.same("convert", "--bitmaps", "-O", "qcow2", "a.qcow2", "t.qcow2", code=1)
        self.same("convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", "a.qcow2", "t.qcow2", code=0)
        self.assertEqual(self.listed(f"{self.ours}/t.qcow2"), [])

    @staticmethod
    def listed(image):
        found = describe(image)["format-specific"]["data"].get("bitmaps", [])
        return sorted((b["name"], b["granularity"], tuple(b["flags"])) for b in found)


if __name__ == "__main__":
    main()
