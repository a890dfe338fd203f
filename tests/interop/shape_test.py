#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The size and shape of images, against the real qemu-img: disks that shrink and grow.

Each image is judged by qemu-img, by byre, and by tests/reference, which knows neither.
"""
import json
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import (KIB, MIB, Case, byre_io, describe, img, main, only_byre, options_of, qcow2ref, qemu_img,  # noqa: E402
                     qemu_io, run)

# One of each kind of table.
SHAPES = [
    {},
    {"compat": "0.10"},
    {"cluster_size": 512},
    {"cluster_size": 512, "refcount_bits": 1},
    {"cluster_size": 4096, "refcount_bits": 64},
    {"cluster_size": "16k", "extended_l2": "on"},
    {"cluster_size": "2M", "extended_l2": "on"},
    {"lazy_refcounts": "on"},
    {"compression_type": "zstd", "refcount_bits": 8},
]


def label(options):
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults"


class Shape(Case):
    def make_raw(self, name, size, seed):
        draw = random.Random(seed)
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(b"".join(draw.randbytes(4 * KIB) if draw.randrange(3) else bytes(4 * KIB)
                                for _ in range(size // (4 * KIB))))
        return path

    def assert_holds(self, image, raw):
        """The disk is `raw`, and zeros behind it, for byre as for QEMU."""
        size = describe(image)["virtual-size"]
        with open(raw, "r+b") as file:
            file.truncate(size)
        self.assert_compares(raw, image)
        out = self.path("out.raw")
        img("convert", "--force", "-f", "qcow2", "-O", "raw", image, out)
        self.assert_same(raw, out)
        os.unlink(out)


@only_byre
class Sizes(Shape):
    """qemu-img resize, byre resize, by turns."""

    def resized(self, program, image, size, *words):
        program("resize", "-q", "-f", "qcow2", *words, image, size)

    def test_e2_nobody_shows_old_bytes_after_a_shrink(self):
        for options in SHAPES:
            for size in (98304, 512, 1 * MIB + 512, 3 * MIB - 512, 2 * MIB):
                with self.subTest(options=label(options), size=size):
                    raw, image = self.make_raw("raw", 4 * MIB, size), self.path("image")
                    qemu_img("create", "-q", "-f", "qcow2", *options_of(**options), image, 4 * MIB)
                    qemu_img("convert", "-n", "-O", "qcow2", raw, image)
                    self.resized(img, image, size, "--shrink")
                    self.assert_sound(image)
                    with open(raw, "r+b") as file:
                        file.truncate(size)
                    self.assert_holds(image, raw)
                    grower = qemu_img if size % 1024 else img  # Each in its turn shows zeros.
                    self.resized(grower, image, 5 * MIB)
                    self.assert_holds(image, raw)
                    self.assert_sound(image)

    def test_trap_119_growing_over_a_longer_backing_file_shows_zeros(self):
        base = self.make_raw("base", 4 * MIB, 1)
        for options in SHAPES:
            for size in (1 * MIB, 1 * MIB + 512):
                with self.subTest(options=label(options), size=size):
                    image, raw = self.path("image"), self.path("raw")
                    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", *options_of(**options), image,
                             3 * MIB)
                    qemu_io(image, "write -q -P 7 1000k 100k")
                    qemu_img("convert", "-O", "raw", image, raw)
                    self.resized(img, image, size, "--shrink")
                    with open(raw, "r+b") as file:
                        file.truncate(size)
                    self.resized(img, image, 5 * MIB)
                    self.assert_sound(image)
                    with open(raw, "r+b") as file:
                        file.truncate(5 * MIB)
                    self.assert_compares(raw, image)
                    out = self.path("out")
                    img("convert", "--force", "-f", "qcow2", "-O", "raw", image, out)
                    self.assert_same(raw, out)

    def test_snapshots_keep_what_the_disk_loses(self):
        for options in ({}, {"cluster_size": 512}, {"cluster_size": "16k", "extended_l2": "on"}):
            with self.subTest(options=label(options)):
                raw, image = self.make_raw("raw", 4 * MIB, 2), self.path("image")
                qemu_img("create", "-q", "-f", "qcow2", *options_of(**options), image, 4 * MIB)
                qemu_img("convert", "-n", "-O", "qcow2", raw, image)
                qemu_img("snapshot", "-c", "before", image)
                qemu_io(image, "write -q -P 9 1M 64k")
                self.resized(img, image, 1 * MIB + 32 * KIB, "--shrink")
                self.assert_sound(image)
                self.resized(img, image, 2 * MIB)
                self.assert_sound(image)
                qemu_io(image, "read -q -P 9 1M 32k", "read -q -P 0 1056k 992k")
                out = self.path("out")
                img("convert", "--force", "-l", "before", "-O", "raw", image, out)
                self.assert_same(raw, out)
                qemu_img("snapshot", "-d", "before", image)
                self.assert_sound(image)

    def test_compressed_clusters_at_the_end(self):
        packed = self.path("packed")
        qemu_img("convert", "-c", "-O", "qcow2", self.make_raw("raw", 4 * MIB, 3), packed)
        for size in (2 * MIB, 2 * MIB + 512):
            with self.subTest(size=size):
                raw = self.make_raw("raw", 4 * MIB, 3)
                image = self.path("image")
                with open(packed, "rb") as source, open(image, "wb") as target:
                    target.write(source.read())
                self.resized(img, image, size, "--shrink")
                self.assert_sound(image)
                with open(raw, "r+b") as file:
                    file.truncate(size)
                self.resized(qemu_img, image, 4 * MIB)
                self.assert_holds(image, raw)

    def test_the_file_gives_back_what_qemu_gives_back(self):
        for options in SHAPES:
            with self.subTest(options=label(options)):
                blocks = []
                for program, name in ((img, "ours"), (qemu_img, "theirs")):
                    image = self.path(name)
                    qemu_img("create", "-q", "-f", "qcow2", *options_of(**options), image, 16 * MIB)
                    qemu_io(image, "write -q -P 5 0 16M")
                    self.resized(program, image, 4 * MIB, "--shrink")
                    blocks.append(os.stat(image).st_blocks * 512)
                self.assertLessEqual(blocks[0], blocks[1] + 4 * MIB)  # Two clusters of 2 MiB.
                self.assertLess(blocks[0], 15 * MIB)

    def test_a_bitmap_follows_the_size(self):
        image = self.path("image")
        qemu_img("create", "-q", "-f", "qcow2", image, 4 * MIB)
        qemu_img("bitmap", "--add", image, "changes")
        qemu_io(image, "write 512k 64k", "write 3M 64k")
        img("resize", "-q", "--shrink", image, 1 * MIB)
        self.assert_sound(image)
        self.assertEqual(qcow2ref.Image(image).dirty("changes"), [(512 * KIB, 576 * KIB)])
        qemu_io(image, "write 0 64k")
        self.assertEqual(qcow2ref.Image(image).dirty("changes"), [(0, 64 * KIB), (512 * KIB, 576 * KIB)])


@only_byre
class Preallocation(Shape):
    """create and resize with preallocation, beside qemu-img."""

    SHAPES = [dict(cluster_size=size) for size in (512, 1024, 4096, "16k", "64k", "256k", "2M")] + [
        {"cluster_size": "16k", "extended_l2": "on"}, {"compat": "0.10"}, {"refcount_bits": 1}, {"refcount_bits": 64}]

    def map_of(self, program, image):
        """(offset in the disk, is it data, is there a place for it), neighbours that are alike as one."""
        entries = json.loads(program("map", "--output=json", "-f", "qcow2", image).out)
        runs = []
        for entry in entries:
            key = entry["data"], "offset" in entry
            if runs and runs[-1][1:] == key:
                continue
            runs.append((entry["start"], *key))
        return runs

    def test_create_makes_what_qemu_makes(self):
        for options in self.SHAPES:
            for mode in ("metadata", "falloc", "full"):
                with self.subTest(options=label(options), mode=mode):
                    size = 4 * MIB + 512
                    for program, name in ((img, "ours"), (qemu_img, "theirs")):
                        program("create", "-q", *(["--force"] if program is img else []), "-f", "qcow2",
                                *options_of(**options, preallocation=mode), self.path(name), size)
                    ours, theirs = self.path("ours"), self.path("theirs")
                    self.assert_sound(ours)
                    self.assertEqual(self.map_of(qemu_img, ours), self.map_of(qemu_img, theirs))
                    blocks = os.stat(ours).st_blocks * 512
                    if mode != "metadata":
                        self.assertGreaterEqual(blocks, size)
                    self.assertEqual(qemu_img("compare", "-f", "qcow2", "-F", "qcow2", ours, theirs).code, 0)
                    # Written in place: the tables stay as they are.
                    before = self.map_of(qemu_img, ours)
                    length = os.stat(ours).st_size
                    byre_io(ours, "write -q -P 7 1M 300k", "write -q -P 8 4M 512", "read -q -P 0 0 1M",
                            "read -q -P 7 1M 300k", "read -q -P 0 1324k 2772k", "read -q -P 8 4M 512")
                    qemu_io(ours, "read -q -P 7 1M 300k", "read -q -P 0 1324k 2772k", "read -q -P 8 4M 512")
                    if "extended_l2" not in options:
                        self.assertEqual(self.map_of(qemu_img, ours), before)
                    self.assertLessEqual(os.stat(ours).st_size, length + 2 * MIB)
                    self.assert_sound(ours)

    def test_resize(self):
        for options in self.SHAPES:
            for mode in ("metadata", "falloc", "full"):
                with self.subTest(options=label(options), mode=mode):
                    image = self.path("image")
                    qemu_img("create", "-q", "-f", "qcow2", *options_of(**options), image, 1 * MIB + 512)
                    qemu_io(image, "write -q -P 5 0 1M", "write -q -P 6 1M 512", "write -q -z -u 512k 256k")
                    before = os.stat(image).st_blocks * 512
                    img("resize", "-q", f"--preallocation={mode}", image, 5 * MIB)
                    self.assert_sound(image)
                    qemu_io(image, "read -q -P 5 0 512k", "read -q -P 0 512k 256k", "read -q -P 5 768k 256k",
                            "read -q -P 6 1M 512", f"read -q -P 0 {1 * MIB + 512} {4 * MIB - 512}")
                    if mode != "metadata":
                        self.assertGreaterEqual(os.stat(image).st_blocks * 512, before + 3 * MIB)
                    last = json.loads(qemu_img("map", "--output=json", image).out)[-1]
                    self.assertIn("offset", last)
                    byre_io(image, "write -q -P 9 4M 1M", "read -q -P 0 2M 2M")
                    self.assert_sound(image)

    def test_over_a_backing_file(self):
        base = self.make_raw("base", 3 * MIB, 1)
        image = self.path("image")
        refused = img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", "-o", "preallocation=metadata", image,
                      "4M", ok=(1,))
        self.assertIn("extended_l2", refused.text)
        self.assertFalse(os.path.exists(image))
        img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", "-o", "preallocation=falloc,extended_l2=on", image, "4M")
        self.assert_sound(image)
        self.assert_holds(image, base)  # Trap 41: what is preallocated shows what is below.
        os.unlink(image)
        for extended in ("on", "off"):
            base = self.make_raw("base", 3 * MIB, 1)
            raw = self.make_raw("raw", 3 * MIB, 1)
            qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", *options_of(extended_l2=extended), image, "1M")
            img("resize", "-q", "--preallocation=metadata", image, "4M")
            with open(raw, "r+b") as file:
                file.truncate(1 * MIB)
            self.assert_holds(image, raw)  # Trap 119.
            self.assert_sound(image)

    def test_raw(self):
        for mode in ("falloc", "full"):
            raw = self.path(mode)
            img("create", "-q", "-f", "raw", f"-opreallocation={mode},nocow=on,extent_size_hint=1M", raw, "4M")
            self.assertGreaterEqual(os.stat(raw).st_blocks * 512, 4 * MIB)
            img("resize", "-q", "-f", "raw", f"--preallocation={mode}", raw, "6M")
            self.assertGreaterEqual(os.stat(raw).st_blocks * 512, 6 * MIB)
        self.assertIn("Unsupported preallocation", img("create", "-f", "raw", "-opreallocation=metadata", self.path("x"), "1M",
                                                       ok=(1,)).text)

    def test_a_full_disk_is_met_before_anything_is_promised(self):
        folder = self.path("small")
        os.mkdir(folder)
        if run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder, ok=None).code != 0:
            self.skipTest("no tmpfs of our own here")
        try:
            image = os.path.join(folder, "image")
            for mode in ("falloc", "full"):
                done = img("create", "-q", "-f", "qcow2", f"-opreallocation={mode}", image, "32M", ok=(1,))
                self.assertIn("No space left", done.text)
                self.assertFalse(os.path.exists(image))
                img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, "1M")
                byre_io(image, "write -q -P 3 0 1M")
                done = img("resize", "-q", f"--preallocation={mode}", image, "32M", ok=(1,))
                self.assertIn("No space left", done.text)
                self.assertEqual(describe(image)["virtual-size"], 1 * MIB)
                self.assert_sound(image)
                self.assertLess(os.stat(image).st_blocks * 512, 3 * MIB)
                img("resize", "-q", f"--preallocation={mode}", image, "2M")
                qemu_io(image, "read -q -P 3 0 1M", "read -q -P 0 1M 1M")
                os.unlink(image)
        finally:
            run("umount", folder)


if __name__ == "__main__":
    main()
