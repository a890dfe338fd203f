# SPDX-License-Identifier: Apache-2.0
"""byre dd beside qemu-img dd: the same operands, and disks that hold the same."""
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


def read(folder, name):
    with open(os.path.join(folder, name), "rb") as file:
        return file.read()


class Dd(Case):
    @classmethod
    def prepare(cls, folder):
        draw = random.Random(3)
        cls.data = bytes(64 * KIB) + draw.randbytes(300 * KIB) + bytes(MIB) + draw.randbytes(100 * KIB + 512)
        for name, data in (("disk", cls.data), ("odd", draw.randbytes(5000)), ("empty", b"")):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)
        qemu("convert", "-O", "qcow2", "disk", "disk.qcow2", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "over.qcow2", "4M", cwd=folder)
        write("over.qcow2", "write -P 7 100k 3000", "write -P 8 3M 64k", cwd=folder)

    def copies(self, *words, fmt="raw", code=0, err=True):
        """Runs dd through both, and compares what they made."""
        for folder in (self.theirs, self.ours):
            if os.path.exists(os.path.join(folder, "out")):
                os.unlink(os.path.join(folder, "out"))
        self.same("dd", *words, code=code, err=err)
        there = [os.path.exists(os.path.join(folder, "out")) for folder in (self.theirs, self.ours)]
        self.assertEqual(there[0], there[1], words)
        if not there[0]:
            return
        if fmt == "raw":
            self.assertEqual(read(self.theirs, "out"), read(self.ours, "out"))
        else:
            self.same_disk("out")
            self.sound("out")
            sizes = [json.loads(qemu("info", "--output=json", "out", cwd=folder))["virtual-size"]
                     for folder in (self.theirs, self.ours)]
            self.assertEqual(*sizes)
            if sizes[0] == 0:
                return  # Nothing was left to copy.
            # All of it is data, zeros as well.
            self.assertEqual([all(part["present"] and part["data"] for part in json.loads(qemu("map", "--output=json", "out", cwd=folder)))
                              for folder in (self.theirs, self.ours)], [True, True])

    def test_operands(self):
        for words in (
            "if=disk of=out", "if=disk.qcow2 of=out", "if=over.qcow2 of=out", "if=odd of=out", "if=empty of=out",
            "if=disk of=out bs=1k count=3", "if=disk of=out bs=1k count=3 skip=2", "if=disk of=out bs=64k skip=3",
            "if=disk of=out bs=1000 count=1", "if=disk of=out bs=1000 count=333", "if=disk of=out bs=1000 skip=77",
            "if=disk of=out bs=1000 skip=77 count=200", "if=odd of=out bs=1000 skip=1", "if=odd of=out bs=7 skip=100 count=600",
            "if=disk of=out bs=1000 count=0", "of=out if=disk count=0", "if=disk of=out bs=2147483647",
            "if=disk of=out bs=1M skip=1", "if=odd of=out bs=1", "if=disk of=out count=0x10", "if=disk of=out count=010",
            "if=disk of=out bs=4k count=1 count=2", "if=odd if=disk of=out", "-U if=disk of=out", "-f raw if=disk.qcow2 of=out",
            "-f qcow2 if=disk.qcow2 of=out bs=3000 skip=40", "--image-opts if=driver=raw,file.filename=disk of=out",
            "--image-opts if=driver=qcow2,file.filename=over.qcow2 of=out bs=100 skip=1000",
            "if=disk of=out bs=1M skip=2000", "if=disk of=out bs=1k skip=2 count=1", "if=disk of=out bs=1k skip=2 count=2",
            "if=disk of=out bs=1G skip=8589934592", "if=disk of=out count=9223372036854775807",
        ):
            with self.subTest(words=words):
                self.copies(*words.split())

    def test_to_qcow2(self):
        for words in ("if=disk of=out", "if=over.qcow2 of=out", "if=over.qcow2 of=out bs=1000 skip=30 count=999",
                      "if=odd of=out", "if=disk of=out bs=300 count=1", "if=disk of=out bs=64k skip=900", "if=empty of=out",
                      "if=over.qcow2 of=out bs=65536 skip=40"):
            with self.subTest(words=words):
                self.copies("-O", "qcow2", *words.split(), fmt="qcow2")

    def test_wrong_operands(self):
        for words in (
            "", "if=disk", "of=out", "if=disk of=out bs=0", "if=disk of=out bs=abc", "if=disk of=out bs=-1",
            "if=disk of=out bs=2G", "if=disk of=out bs=9E", "if=disk of=out bs=", "if=disk of=out seek=1",
            "if=disk of=out bla", "if=disk of=out conv=x", "bs", "if", "if=disk of=out count=1.5",
            "if=disk of=out count=-1", "if=disk of=out count=1k", "if=disk of=out count=9E", "if=disk of=out count=",
            "if=disk of=out skip=-1", "if=disk of=out skip=abc", "if=disk of=out skip=7E",
            "if=disk of=out count=9223372036854775808", "if=nix of=out", "-f nix if=disk of=out", "-f qcow2 if=disk of=out",
            "-O nix if=disk of=out", "if=disk of=nix/out", "if=disk of=", "if=disk of=json:{}", "if=disk of=nix:out", "if=disk of=nix:out skip=9 bs=1M",
            "if=disk of=nix/out skip=9 bs=1M", "if=nix of=nix:out", "--image-opts -f raw if=disk of=out",
        ):
            with self.subTest(words=words):
                self.copies(*words.split(), code=1)
        for words in ("-x if=disk of=out", "-n if=disk of=out", "if= of=out"):
            with self.subTest(words=words):
                self.copies(*words.split(), code=1, err=False)
        for words in (("if=disk", "of=disk"), ("-f", "raw", "if=disk", "of=./disk", "bs=1k", "skip=3")):
            result = self.both("dd", *words)[1]
            self.assertEqual(result.code, 1, str(result))
            self.assertEqual(read(self.ours, "disk"), self.data)

    def test_an_output_that_exists(self):
        for folder in (self.theirs, self.ours):
            with open(os.path.join(folder, "old"), "wb") as file:
                file.write(b"o" * 3 * MIB)
        inode = os.stat(os.path.join(self.ours, "old")).st_ino
        self.same("dd", "if=disk", "of=old", "bs=64k", "count=2", code=0)
        self.assertEqual(read(self.theirs, "old"), read(self.ours, "old"))
        self.assertEqual(os.stat(os.path.join(self.ours, "old")).st_ino, inode)

    def test_under_its_own_name(self):
        before = read(self.ours, "odd")
        result = self.byre("dd", "-O", "raw", "if=disk", "of=odd")
        self.assertEqual(result.code, 73, str(result))
        self.assertEqual(read(self.ours, "odd"), before)
        self.assertEqual(self.byre("dd", "--force", "-O", "raw", "if=disk", "of=odd").code, 0)
        self.assertEqual(read(self.ours, "odd"), self.data)
        # The count is what is copied.
        self.assertEqual(self.byre("dd", "if=disk", "of=new.img", "bs=1k", "skip=64", "count=1k").code, 0)
        self.assertEqual(read(self.ours, "new.img"), self.data[64 * KIB:64 * KIB + MIB])
        self.assertEqual(self.byre("dd", "if=disk", "of=far.img", "bs=1M", "skip=100").code, 64)
        self.assertFalse(os.path.exists(os.path.join(self.ours, "far.img")))
        self.assertEqual(self.byre("dd", "if=disk", "of=name").code, 64)
        # Zeros take no blocks.
        self.assertEqual(self.byre("dd", "if=disk", "of=sparse.img").code, 0)
        status = os.stat(os.path.join(self.ours, "sparse.img"))
        self.assertEqual(status.st_size, len(self.data))
        self.assertLess(status.st_blocks * 512, len(self.data) - MIB + 64 * KIB)

    def test_what_fails_leaves_nothing(self):
        fault = {"driver": "raw", "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": "disk"},
                                           "inject-error": [{"event": "none", "iotype": "read", "errno": 5, "sector": 400}]}}
        for words in (["-O", "raw"], ["-O", "qcow2"]):
            result = self.byre("dd", *words, "if=json:" + json.dumps(fault), "of=broken")
            self.assertEqual(result.code, 74, str(result))
            self.assertFalse(os.path.exists(os.path.join(self.ours, "broken")))


del Case

if __name__ == "__main__":
    unittest.main(verbosity=2)
