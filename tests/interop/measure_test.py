# SPDX-License-Identifier: Apache-2.0
"""byre measure beside qemu-img measure, and both beside the files that byre convert makes."""
import itertools
import json
import os
import random
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import peers  # noqa: E402,F401  (QEMU 10.0 comes first in PATH)
from tool_test import Case, qemu, write  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20

# Kinds of target, as -o has them.
TARGETS = ("", "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64,cluster_size=4k",
           "extended_l2=on", "extended_l2=on,cluster_size=16k", "compat=0.10", "preallocation=metadata",
           "preallocation=falloc", "preallocation=full", "lazy_refcounts=on", "compression_type=zstd")


def raw(path, size, *pieces):
    with open(path, "wb") as file:
        for at, data in pieces:
            file.seek(at)
            file.write(data)
        file.truncate(size)


class Measure(Case):
    @classmethod
    def prepare(cls, folder):
        def at(name):
            return os.path.join(folder, name)
        draw = random.Random(7)
        raw(at("hole"), MIB)
        raw(at("odd"), 5000, (0, b"x" * 5000))
        raw(at("two"), MIB, (0, b"x" * 4096), (8192, b"x" * 4096))
        raw(at("across"), MIB, (60 * KIB, b"x" * 8192))
        raw(at("many"), 24 * MIB + 512, *((draw.randrange(24 * MIB // 4096) * 4096, draw.randbytes(draw.randrange(1, 90000)))
                                           for _ in range(60)))
        raw(at("full"), 9 * MIB, (0, draw.randbytes(9 * MIB)))
        raw(at("zeros"), 4 * MIB, (0, bytes(2 * MIB)), (2 * MIB, b"x" * MIB))
        qemu("convert", "-O", "qcow2", "many", "many.qcow2", cwd=folder)
        qemu("convert", "-c", "-O", "qcow2", "many", "packed.qcow2", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-b", "many", "-F", "raw", "over.qcow2", cwd=folder)
        write("over.qcow2", "write -P 9 20M 1M", "write -z 1M 3M", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "10M", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "maps.qcow2", "40M", cwd=folder)
        write("maps.qcow2", "write -P 1 0 1M", cwd=folder)
        for granularity, name in (("64k", "b0"), ("512", "bitmap1"), ("1M", "b" * 100)):
            qemu("bitmap", "--add", "-g", granularity, "-f", "qcow2", "maps.qcow2", name, cwd=folder)
        qemu("snapshot", "-c", "s1", "maps.qcow2", cwd=folder)
        for name, size in (("grid.qcow2", "24M"), ("sparse.qcow2", "1G")):
            qemu("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", name, size, cwd=folder)
            for number in range(7):
                qemu("bitmap", "--add", "-g", str(512 << number), "-f", "qcow2", name, f"b{number}", cwd=folder)
                write(name, f"write -P 5 {3 * number}M 300k", f"write -P 6 {2 * number}M 4k", cwd=folder)
            qemu("bitmap", "--clear", "-f", "qcow2", name, "b2", cwd=folder)
        write("maps.qcow2", "write -P 2 10M 5M", cwd=folder)

    SOURCES = ("hole", "odd", "two", "across", "many", "full", "zeros", "many.qcow2", "packed.qcow2", "over.qcow2",
               "old.qcow2", "maps.qcow2")

    def test_words(self):
        for words in (
            "hole", "--size 1M", "--size 0", "--size 513", "--size 1.5k", "--size 7E", "--output=json hole", "-U hole",
            "-U --size 1M", "-O raw odd", "-O raw -o preallocation=full many.qcow2",
            "-O raw -o preallocation=metadata many.qcow2", "-O raw -o preallocation=nix many.qcow2",
            "-O qcow2 -o backing_file=nix --size 1G", "-O qcow2 -o backing_file= --size 1G",
            "-O qcow2 -o backing_file=many,backing_fmt=raw over.qcow2", "-O qcow2 -o backing_file=x many",
            "-O qcow2 -o data_file=nix --size 1G", "-O qcow2 -o data_file_raw=on --size 1G",
            "-O qcow2 -o compression_type=nix --size 1M", "-O qcow2 -o size=4M many", "-O qcow2 -o size=4M --size 2M",
            "-O qcow2 -o extent_size_hint=1,nocow=on --size 1M", "-O qcow2 -l s1 maps.qcow2",
            "-O qcow2 -l snapshot.name=s1 maps.qcow2", "-O qcow2 -l 1 --output=json maps.qcow2",
            "-O qcow2 -o compat=0.10 maps.qcow2", "-O raw maps.qcow2", "-f raw -O qcow2 many.qcow2",
            "-O qcow2 -o cluster_size=4M -o cluster_size=4k --size 1M", "-O qcow2 -o refcount_bits=8 --size 1P",
            "--image-opts driver=qcow2,file.filename=many.qcow2 -O qcow2", "-O qcow2 -o cluster_size=512 maps.qcow2",
        ):
            with self.subTest(words=words):
                self.same("measure", *words.split(), code=0)

    def test_wrong_words(self):
        for words in (
            "", "a b", "--size 1M hole", "--size 9E", "-O nix --size 1M", "-O qcow2 -o cluster_size=3k --size 1G",
            "-O qcow2 -o nix=1 --size 1G", "-O raw -o nix=1 --size 1G", "-o cluster_size=4k --size 1M",
            "-O qcow2 -o help many", "-O qcow2 -o preallocation=nix many", "-O qcow2 -l nope maps.qcow2",
            "-O qcow2 -l nope many", "-l 1 --size 1M", "-f raw --size 1M", "--image-opts --size 1M",
            "-O qcow2 -o extended_l2=on,cluster_size=4k --size 1M", "-O qcow2 -o refcount_bits=3 --size 1M",
            "-O qcow2 -o refcount_bits=abc --size 1M", "-O qcow2 -o compat=0.10,refcount_bits=1 --size 1M",
            "-O qcow2 -o compat=nix --size 1M", "-O qcow2 -o lazy_refcounts=nix --size 1M", "nix", "-f nix many",
            "-f qcow2 many", "-O qcow2 --size 1E", "-O qcow2 --size 7E", "-O qcow --size 1M",
            "-O qcow2 -o cluster_size=512 --size 1T",
            # Without -O the options are those of raw.
            "-o backing_file=many --size 1M", "-o compression_type=zlib --size 1M", "-o compression_type=zstd many.qcow2",
            "-o backing_file=x,lazy_refcounts=on many.qcow2", "-O qcow2 -o cluster_size=0 many.qcow2",
            # Of several mistakes one is told, in an order of its own; v2 and v3 are no names here.
            "-O qcow2 -o compat=v2 --size 1M", "-O qcow2 -o compat=v3 many.qcow2", "-O qcow2 -o compat=v2,nix=3 --size 1M",
            "-O qcow2 -o preallocation=nix,compat=v3 --size 1M", "-O qcow2 -o preallocation=nix,cluster_size=3 --size 1M",
            "-O qcow2 -o preallocation=nix,lazy_refcounts=x --size 1M", "-O qcow2 -o preallocation=nix,refcount_bits=3 --size 1M",
            "-O qcow2 -o compat=nix,extended_l2=on,cluster_size=4k --size 1M", "-O qcow2 -o preallocation=nix -l nope maps.qcow2",
            "-O qcow2 -o preallocation=nix,compat=0.10,extended_l2=on --size 1M", "-O qcow2 -o preallocation=nix nix",
        ):
            with self.subTest(words=words):
                self.same("measure", *words.split(), code=1)
        for words in ("--size abc", "--size -1", "--output=x many", "-x many", "-q many"):
            with self.subTest(words=words):
                self.same("measure", *words.split(), err=False, code=1)

    def test_empty_disks(self):
        """The sum itself, over everything that goes into it."""
        sizes = (0, 512, MIB, 10 * MIB + 512, 1 << 30, 10 << 30, 123456789 * 512, 1 << 40, 5 << 50)
        for size, cluster, bits, extended in itertools.product(
                sizes, (512, 4096, 65536, 2 * MIB), (1, 16, 64), ("off", "on")):
            words = f"-O qcow2 --size {size} -o cluster_size={cluster},refcount_bits={bits},extended_l2={extended}"
            if random.Random(words).random() < 0.4:
                with self.subTest(words=words):
                    self.same("measure", *words.split())

    def test_sources_and_targets(self):
        for source, target in itertools.product(self.SOURCES, TARGETS):
            words = ["-O", "qcow2", *(["-o", target] if target else []), source]
            with self.subTest(words=words):
                self.same("measure", *words, code=0)

    def convert(self, source, target, *more):
        out = os.path.join(self.ours, "out")
        words = ["-O", "qcow2", *(["-o", target] if target else [])]
        result = self.byre("convert", "--force", "--follow", "any", *more, *words, source, "out")
        self.assertEqual(result.code, 0, str(result))
        self.sound("out")
        return os.path.getsize(out)

    def measured(self, *words):
        result = self.byre("measure", "--output=json", "--follow", "any", "-O", "qcow2", *words)
        self.assertEqual(result.code, 0, str(result))
        return json.loads(result.out)

    def test_what_convert_makes(self):
        for source, target in itertools.product(self.SOURCES, TARGETS):
            options = ["-o", target] if target else []
            with self.subTest(source=source, target=target):
                made = self.convert(source, target)
                exact = self.measured("--read-data", *options, source)
                self.assertTrue(exact["exact"])
                self.assertEqual(exact["required"], made)
                # By the map alone: the same, unless data are zeros.
                by_map = self.measured(*options, source)
                self.assertGreaterEqual(by_map["required"], made)
                if source in ("hole", "full", "odd"):
                    self.assertEqual(by_map["required"], made)
                bound = self.measured("--bound", *options, source)
                if target == "preallocation=metadata":
                    # The bound counts what has blocks, and the file is as long as the disk.
                    self.assertEqual(made, bound["fully-allocated"])
                elif target == "cluster_size=512" and source == "full":
                    # A refcount table that grows leaves a hole: not in the sum, and less than QEMU's own.
                    self.assertLess(made, bound["required"] + 4 * 512)
                    qemu("convert", "-O", "qcow2", "-o", target, source, "theirs", cwd=self.ours)
                    self.assertLessEqual(made, os.path.getsize(os.path.join(self.ours, "theirs")))
                else:
                    self.assertLessEqual(made, bound["required"])
                    self.assertLessEqual(by_map["required"], bound["required"])

    def test_what_convert_makes_of_compressed_clusters(self):
        for source in ("many", "zeros", "over.qcow2"):
            for target in ("", "cluster_size=4k", "compression_type=zstd"):
                with self.subTest(source=source, target=target):
                    options = ["-o", target] if target else []
                    made = self.convert(source, target, "-c")
                    told = self.measured("--read-data", "-c", *options, source)
                    self.assertTrue(told["exact"])
                    self.assertEqual(told["required"], made)

    def test_bitmaps(self):
        """What convert --bitmaps makes is the two figures together, and never more than the peer's two."""
        for source, target, words in itertools.product(
                ("maps.qcow2", "grid.qcow2", "sparse.qcow2", "many.qcow2"),
                ("", "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "extended_l2=on",
                 "refcount_bits=1,cluster_size=4k", "preallocation=metadata"), ((), ("-c",))):
            if words and "preallocation" in target or source == "sparse.qcow2" and "512" in target:
                continue
            with self.subTest(source=source, target=target, words=words):
                options = ["-o", target] if target else []
                made = self.convert(source, target, "--bitmaps", *words)
                told = self.measured("--read-data", *words, *options, source)
                self.assertTrue(told["exact"])
                self.assertEqual(told["required"] + told["bitmaps"], made)
                theirs = json.loads(qemu("measure", "--output=json", "-O", "qcow2", *options, source, cwd=self.ours))
                most = theirs["fully-allocated" if "preallocation" in target else "required"] + theirs["bitmaps"]
                # As above: the hole that a refcount table leaves when it grows.
                self.assertLessEqual(made, most + (4 * 512 if "512" in target else 0))

    def test_with_a_backing_file_only_the_top_is_counted(self):
        words = ["-B", "many", "-F", "raw"]
        made = self.convert("over.qcow2", "", *words)
        self.assertEqual(self.measured("-o", "backing_file=many,backing_fmt=raw", "over.qcow2", "--read-data")["required"],
                         made)

    def test_empty_disks_are_what_create_makes(self):
        for size, target in itertools.product(("0", "1M", "10G", "3T"), TARGETS):
            if size in ("10G", "3T") and ("preallocation" in target or "512" in target):
                continue
            with self.subTest(size=size, target=target):
                options = ["-o", target] if target else []
                out = os.path.join(self.ours, "new.qcow2")
                result = self.byre("create", "--force", "-f", "qcow2", *options, "new.qcow2", size)
                self.assertEqual(result.code, 0, str(result))
                self.assertEqual(self.measured("--size", size, *options)["required"], os.path.getsize(out))


del Case

if __name__ == "__main__":
    unittest.main(verbosity=2)
