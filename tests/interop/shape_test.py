#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The size and shape of images, against the real qemu-img: disks that shrink and grow.

Each image is judged by qemu-img, by byre, and by tests/reference, which knows neither.
"""
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import KIB, MIB, Case, describe, img, main, only_byre, options_of, qemu_img, qemu_io  # noqa: E402

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

    def test_a_bitmap_refuses(self):
        image = self.path("image")
        qemu_img("create", "-q", "-f", "qcow2", image, 4 * MIB)
        qemu_img("bitmap", "--add", image, "changes")
        before = open(image, "rb").read()
        done = img("resize", "--shrink", image, 1 * MIB, ok=(1,))
        self.assertIn("bitmap", done.text)
        self.assertEqual(open(image, "rb").read(), before)


if __name__ == "__main__":
    main()
