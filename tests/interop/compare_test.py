# SPDX-License-Identifier: Apache-2.0
"""byre compare beside qemu-img compare: the same words, images and damages; output, offsets and exit codes."""
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

MIB = 1 << 20


def blkdebug(name, **fault):
    fault = {"event": "none", "errno": 5, **fault}
    return "json:" + json.dumps({"driver": "raw", "file": {
        "driver": "blkdebug", "inject-error": [fault], "image": {"driver": "file", "filename": name}}})


def put(path, *pieces, size=None):
    with open(path, "r+b" if os.path.exists(path) else "wb") as file:
        for at, data in pieces:
            file.seek(at)
            file.write(data)
        if size is not None:
            file.truncate(size)


class Words(Case):
    @classmethod
    def prepare(cls, folder):
        def at(name):
            return os.path.join(folder, name)
        put(at("a"), size=MIB)
        put(at("b"), size=MIB)
        put(at("z"), (0, bytes(65536)), size=MIB)
        put(at("big"), size=2 * MIB)
        put(at("far"), (1500001, b"\7"), size=2 * MIB)
        put(at("near"), (5000, b"x"), (1500001, b"\7"), size=2 * MIB)
        put(at("odd1"), (1000, b"y"))
        put(at("odd2"), (1000, b"y\0\0\0"))
        put(at("odd3"), (1000, b"y\0\0\0x"))
        put(at("full"), (0, b"\3" * 5 * MIB))
        put(at("late"), (0, b"\3" * 5 * MIB), (3 * MIB + 700, b"\4"))
        put(at("e"), size=0)
        qemu("create", "-q", "-f", "qcow2", "q.qcow2", "1M", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "q2.qcow2", "2M", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "x.qcow2", "1M", cwd=folder)
        write("x.qcow2", "write -P 3 300000 10", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-b", "x.qcow2", "-F", "qcow2", "over.qcow2", cwd=folder)
        qemu("convert", "-c", "-O", "qcow2", "x.qcow2", "packed.qcow2", cwd=folder)

    def test_words(self):
        for words in (
            "a b", "a a", "a big", "big a", "a far", "far a", "-s a big", "-s a z", "a z", "z a", "-s a q.qcow2",
            "a q.qcow2", "q.qcow2 a", "a x.qcow2", "x.qcow2 a", "-s a x.qcow2", "-q a x.qcow2", "-q a b", "-q -s a big",
            "a nix", "nix a", "-f qcow2 a b", "-F qcow2 a b", "-f nix a b", "-F nix a b", "-f raw -F raw a b",
            "-T none a b", "-T off a b", "-T unsafe a b", "-T writethrough a b", "-T directsync a b",
            "-T writeback a b", "-U a b", "-Us a b", "odd1 odd2", "odd1 odd3", "odd3 odd1", "-s odd1 odd2", "e a", "a e",
            "e e", "-s e e", "-s x.qcow2 over.qcow2", "-s over.qcow2 x.qcow2", "-s x.qcow2 packed.qcow2",
            "x.qcow2 packed.qcow2", "q2.qcow2 q.qcow2", "q2.qcow2 x.qcow2", "near a", "a near", "full full",
            "full late", "late full", "-s full late", "full a", "a full", "-f qcow2 -F raw x.qcow2 a",
            "--image-opts driver=raw,file.filename=a driver=raw,file.filename=b",
            "--image-opts driver=raw,file.filename=a driver=raw,file.filename=far", "-T bla a b",
            "--image-opts -f raw a b", "--strict a z", "--quiet a far", "--a-format raw --b-format raw a far",
            "--cache none a b", "--force-share a b", "far near",
        ):
            with self.subTest(words=words):
                self.same("compare", *words.split())

    def test_wrong_words(self):
        for words in ("", "a", "a b c", "-x a b", "-f", "--object", "--bla a b"):
            with self.subTest(words=words):
                self.same("compare", *words.split(), err=False, code=1)

    def test_progress(self):
        for words in ("a b", "a far", "a big", "full full", "full late", "e e", "full a", "a full", "a nix", "near far"):
            with self.subTest(words=words):
                self.same("compare", "-p", *words.split())
                self.same("compare", "-p", "-q", *words.split())

    def test_what_cannot_be_read(self):
        for other in ("full", "late", "a", "near"):
            for sector in (0, 20, 5000, 9000):
                bad = blkdebug("full", iotype="read", sector=sector)
                for pair in ((bad, other), (other, bad)):
                    with self.subTest(pair=pair):
                        self.same("compare", *pair)
        for words in ((), ("-s",)):
            bad = blkdebug("z", iotype="block-status")
            for pair in ((bad, "a"), ("a", bad)):
                with self.subTest(pair=pair, words=words):
                    self.same("compare", *words, *pair, code=3)

    def test_under_its_own_name(self):
        result = self.byre("compare", "--output=json", "a", "far")
        self.assertEqual(result.code, 1)
        told = json.loads(result.out)
        self.assertEqual(told["difference"], "content")
        self.assertEqual(told["offset"], 1500001 // 512 * 512)
        self.assertEqual(told["virtual-sizes"], [MIB, 2 * MIB])
        self.assertFalse(told["identical"])
        result = self.byre("compare", "--output=json", "a", "b")
        self.assertEqual((result.code, json.loads(result.out)["identical"]), (0, True))
        result = self.byre("compare", "--all", "--output=json", "near", "a")
        self.assertEqual(json.loads(result.out)["ranges"],
                         [{"start": 4608, "length": 512}, {"start": 1500001 // 512 * 512, "length": 512}])
        self.assertIn("differs: 512 bytes at 4608\n", self.byre("compare", "--all", "near", "a").out)
        # 1 says that they differ, and nothing else.
        for words in (("nix", "a"), ("-f", "nix", "a", "b"), ("a",), ("-T", "bla", "a", "b"),
                      (blkdebug("full", iotype="read"), "full")):
            with self.subTest(words=words):
                self.assertGreater(self.byre("compare", *words).code, 4)


class Shapes(Case):
    """All pairs of disks that hold the same or nearly the same, in every form."""

    NAMES = ("noise", "noise.qcow2", "hole", "hole.qcow2", "zero.qcow2", "kept.qcow2", "full.qcow2", "zeros", "over.qcow2",
             "overhole.qcow2", "overover.qcow2", "short.qcow2", "data.qcow2", "small.qcow2")

    @classmethod
    def prepare(cls, folder):
        def create(*words):
            qemu("create", "-q", "-f", "qcow2", *words, cwd=folder)
        put(os.path.join(folder, "noise"), (0, random.Random(1).randbytes(MIB)))
        put(os.path.join(folder, "zeros"), (0, bytes(MIB)))
        put(os.path.join(folder, "hole"), size=MIB)
        put(os.path.join(folder, "half"), size=MIB // 2)
        qemu("convert", "-O", "qcow2", "noise", "noise.qcow2", cwd=folder)
        for name in ("hole", "zero", "kept"):
            create(f"{name}.qcow2", "1M")
        write("zero.qcow2", "write -z 0 1M", cwd=folder)
        write("kept.qcow2", "write -P 1 0 1M", "write -z 0 1M", cwd=folder)
        create("-o", "preallocation=full", "full.qcow2", "1M")
        create("-b", "noise", "-F", "raw", "over.qcow2")
        create("-b", "hole", "-F", "raw", "overhole.qcow2")
        create("-b", "hole.qcow2", "-F", "qcow2", "overover.qcow2")
        create("-b", "half", "-F", "raw", "short.qcow2", "1M")
        create("-o", "data_file=data.raw", "data.qcow2", "1M")
        qemu("convert", "-n", "-O", "qcow2", "noise", "data.qcow2", cwd=folder)
        create("-o", "cluster_size=4k", "small.qcow2", "1M")
        write("small.qcow2", "write -P 1 0 8k", "write -P 2 128k 4k", "write -z 256k 64k", cwd=folder)

    def test_every_pair(self):
        for left, right in itertools.combinations_with_replacement(self.NAMES, 2):
            with self.subTest(left=left, right=right):
                self.same("compare", left, right)
                # Whether the clusters of full.qcow2 are holes is not asked (docs/compatibility.md).
                if "full.qcow2" not in (left, right):
                    self.same("compare", "-s", right, left)

    def test_seeds(self):
        """Two images with random changes, the second with some of the first's."""
        for seed in range(12):
            draw = random.Random(seed)
            options = draw.choice(("cluster_size=64k", "cluster_size=4k", "extended_l2=on", "compat=0.10"))
            size = 8 * MIB + 512 * draw.randrange(100)
            commands = []
            for _ in range(12):
                at = draw.randrange(0, 8 * MIB - 200000)
                length = draw.randrange(1, 200000)
                commands.append(f"write -P {draw.randrange(1, 4)} {at} {length}" if draw.random() < 0.7 else
                                f"write -z {at // 65536 * 65536} 65536")
            for folder in (self.theirs, self.ours):
                for name, some in (("l.qcow2", commands), ("r.qcow2", commands[:9 + 3 * (seed % 2)])):
                    qemu("create", "-q", "-f", "qcow2", "-o", options, name, str(size), cwd=folder)
                    write(name, *some, cwd=folder)
            for words in ("l.qcow2 r.qcow2", "-s l.qcow2 r.qcow2", "-s r.qcow2 l.qcow2"):
                with self.subTest(seed=seed, words=words):
                    self.same("compare", *words.split())


del Case

if __name__ == "__main__":
    unittest.main(verbosity=2)
