#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compressed writes: `convert -c` and `io write -c`, judged by qemu-img, by the reference reader, and by byre.

Every stream is made by byre (libdeflate, zstd) and read by the real qemu-img: trap 50 says that it can.
"""
import json
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import (BYRE, KIB, MIB, Case, byre_io, img, main, only_byre, options_of, qemu_img,  # noqa: E402
                     qemu_io, run)

CLUSTER_SIZES = [512, 4 * KIB, 64 * KIB, 2 * MIB]


def patchwork(draw, size):
    """Words, noise, single bytes and zeros, in lengths that fit nothing; far repeats, too."""
    words = [draw.randbytes(draw.randrange(2, 12)) for _ in range(40)]
    far = draw.randbytes(20 * KIB)
    data = bytearray()
    while len(data) < size:
        kind, length = draw.randrange(6), draw.randrange(1, 200 * KIB)
        if kind == 0:
            data += draw.randbytes(length)
        elif kind == 1:
            data += bytes(length)
        elif kind == 2:
            data += bytes([draw.randrange(256)]) * length
        elif kind == 3:
            data += far
        else:
            data += b"".join(draw.choices(words, k=length // 8))
    return bytes(data[:size])


@only_byre
class Compress(Case):
    def raw(self, size, seed=1, name="raw"):
        path = self.path(name)
        with open(path, "wb") as file:
            file.write(patchwork(random.Random(seed), size))
        return path

    def assert_holds(self, image, raw):
        self.assert_sound(image)
        self.assert_compares(raw, image)
        out = self.path("out.raw")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", image, out)
        self.assert_same(raw, out)
        img("convert", "--force", "-f", "qcow2", "-O", "raw", image, out)
        self.assert_same(raw, out)

    def test_convert_in_every_geometry(self):
        for kind in ("zlib", "zstd"):
            for cluster_size in CLUSTER_SIZES:
                for more in ({}, {"refcount_bits": 1}, {"refcount_bits": 2}, {"refcount_bits": 64},
                             {"extended_l2": "on"}, {"lazy_refcounts": "on"}):
                    if "extended_l2" in more and cluster_size < 16 * KIB:
                        continue
                    options = {"cluster_size": cluster_size, "compression_type": kind, **more}
                    with self.subTest(**options):
                        raw = self.raw((5 if cluster_size > MIB else 1) * MIB + 3 * 512, cluster_size)
                        image = self.path("image")
                        img("convert", "--force", "-c", "-f", "raw", "-O", "qcow2", *options_of(**options), raw, image)
                        found = json.loads(qemu_img("check", "--output=json", image).out)
                        self.assertGreater(found["compressed-clusters"], 0)
                        self.assert_holds(image, raw)

    def test_every_level_is_read_by_qemu(self):
        raw = self.raw(2 * MIB)
        sizes = {}
        for kind, most in (("zlib", 12), ("zstd", 19)):
            for level in range(1, most + 1):
                image = self.path(f"{kind}{level}")
                img("convert", "-c", "--compression-level", level, "-f", "raw", "-O", "qcow2",
                    *options_of(compression_type=kind), raw, image)
                self.assert_compares(raw, image)
                sizes[kind, level] = os.path.getsize(image)
            self.assertLessEqual(sizes[kind, most], sizes[kind, 1])

    def test_version_2(self):
        raw, image = self.raw(2 * MIB), self.path("image")
        img("convert", "-c", "-f", "raw", "-O", "qcow2", *options_of(compat="0.10"), raw, image)
        self.assert_holds(image, raw)

    def test_no_larger_than_qemus(self):
        raw = self.raw(16 * MIB)
        for kind in ("zlib", "zstd"):
            ours, theirs = self.path(f"ours-{kind}"), self.path(f"theirs-{kind}")
            words = ["-c", "-f", "raw", "-O", "qcow2", *options_of(compression_type=kind), raw]
            img("convert", *words, ours)
            qemu_img("convert", *words, theirs)
            self.assertLess(os.path.getsize(ours), os.path.getsize(theirs) * 1.03)

    def test_sources_in_pieces(self):
        """Holes and ends of sources that fit no cluster; -S 0; a target that exists and is larger; -W."""
        first, second = self.raw(MIB + 5 * 512, 3, "first"), self.raw(700 * KIB, 4, "second")
        with open(first, "r+b") as file:  # Holes in the file.
            file.seek(300 * KIB)
            file.write(bytes(200 * KIB))
        whole = self.path("whole")
        img("convert", "-f", "raw", "-O", "raw", first, second, whole)
        sparse = self.path("sparse.qcow2")
        img("convert", "-f", "raw", "-O", "qcow2", *options_of(cluster_size=4096), whole, sparse)
        for number, words in enumerate(([], ["-S", "0"], ["-W"], ["-m", "1"], ["-S", "64k"])):
            with self.subTest(words=words):
                image = self.path(f"image{number}")
                img("convert", "-c", *words, "-f", "raw", "-O", "qcow2", first, second, image)
                self.assert_holds(image, whole)
                again = self.path(f"again{number}")
                img("convert", "-c", *words, "-f", "qcow2", "-O", "qcow2", *options_of(cluster_size="128k"), sparse,
                    again)
                self.assert_holds(again, whole)
        large = self.path("large")
        qemu_img("create", "-q", "-f", "qcow2", large, 3 * MIB)
        qemu_io(large, "write -P 7 0 3M")
        img("convert", "-c", "-n", "-f", "raw", "-O", "qcow2", first, second, large)
        with open(whole, "r+b") as file:
            file.truncate(3 * MIB)
        self.assert_holds(large, whole)

    def test_over_a_backing_file(self):
        base, raw = self.raw(2 * MIB, 5, "base"), self.raw(2 * MIB, 5)
        with open(raw, "r+b") as file:
            file.seek(700 * KIB + 512)
            file.write(patchwork(random.Random(6), 300 * KIB))
        overlay, image = self.path("overlay"), self.path("image")
        qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
        qemu_img("convert", "-n", "-O", "qcow2", raw, overlay)
        img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-B", base, "-F", "raw", overlay, image)
        self.assert_compares(raw, image)
        self.assert_sound(image)

    def test_e26_written_over_anything(self):
        """By byre and by QEMU in turn: over streams, data and zeros; QEMU refuses what it cannot."""
        for kind in ("zlib", "zstd"):
            for cluster_size in (512, 64 * KIB):
                draw = random.Random(cluster_size)
                image, raw = self.path("image"), self.path("raw")
                size = 24 * cluster_size + 512
                qemu_img("create", "-q", "-f", "qcow2", *options_of(cluster_size=cluster_size, compression_type=kind),
                         image, size)
                model = bytearray(size)
                for _ in range(8):
                    for program in (byre_io, qemu_io):
                        commands = []
                        for _ in range(12):
                            number, value = draw.randrange(25), draw.randrange(1, 256)
                            offset = number * cluster_size
                            length = min(cluster_size * draw.randrange(1, 4), size - offset)
                            what = draw.randrange(4)
                            if what == 0 and program is byre_io:
                                commands.append(f"write -q -c -P {value} {offset} {length}")
                            elif what == 1:
                                value = 0
                                commands.append(f"write -q -z -u {offset} {length}")
                            elif what == 2:
                                length = 512
                                commands.append(f"write -q -P {value} {offset} {length}")
                            else:
                                commands.append(f"write -q -P {value} {offset} {length}")
                            model[offset:offset + length] = bytes([value]) * length
                        program(image, *commands)
                    with open(raw, "wb") as file:
                        file.write(model)
                    self.assert_holds(image, raw)
        self.assertEqual(byre_io(image, "write -c -P 1 0 64k", "write -c -P 2 0 64k").code, 0)

    def test_partial_clusters_and_other_formats_are_refused_as_by_qemu(self):
        image, raw = self.path("image"), self.path("plain")
        qemu_img("create", "-q", "-f", "qcow2", image, MIB + 512)
        qemu_img("create", "-q", "-f", "raw", raw, MIB)
        compatibility_name = self.path("qemu-io")
        os.symlink(BYRE, compatibility_name)
        for form, path, command in (("qcow2", image, "write -c 0 4k"), ("qcow2", image, "write -c 4k 64k"),
                                    ("qcow2", image, "write -c 100 64k"), ("qcow2", image, "write -c 0 100"),
                                    ("qcow2", image, "write -c -f 0 64k"), ("raw", raw, "write -c 0 64k")):
            with self.subTest(command=command):
                ours = run(compatibility_name, "-f", form, "-c", command, path, ok=None)
                theirs = run("qemu-io", "-f", form, "-c", command, path, ok=None)
                self.assertEqual((ours.code, ours.out, ours.err), (theirs.code, theirs.out, theirs.err))

    def test_convert_refuses_before_it_writes(self):
        raw = self.raw(MIB)
        for words in (["-c", "-O", "raw"], ["-c", "-O", "qcow2", "-o", "data_file=" + self.path("data")],
                      ["-c", "--compression-level", "13", "-O", "qcow2"],
                      ["-c", "--compression-level", "0", "-O", "qcow2"],
                      ["-c", "--compression-level", "20", "-O", "qcow2", "-o", "compression_type=zstd"],
                      ["--compression-level", "3", "-O", "qcow2"]):
            with self.subTest(words=words):
                done = img("convert", "-f", "raw", *words, raw, self.path("new"), ok=(1,))
                self.assertFalse(os.path.exists(self.path("new")), str(done))
                self.assertFalse(os.path.exists(self.path("data")))

    def test_small_files_stay_small_through_rewrites(self):
        """Streams that are written again and again reuse what they give up."""
        image = self.path("image")
        qemu_img("create", "-q", "-f", "qcow2", image, 4 * MIB)
        source = self.path("source")
        with open(source, "wb") as file:
            file.write(patchwork(random.Random(9), 4 * MIB))
        sizes = []
        for _ in range(6):
            byre_io(image, *[f"write -q -c -s {source} {at * 64}k 64k" for at in range(64)],
                    options=("-t", "writeback"))
            sizes.append(os.path.getsize(image))
        self.assertLessEqual(sizes[-1], sizes[1] + 512 * KIB, sizes)
        self.assert_sound(image)


if __name__ == "__main__":
    main()
