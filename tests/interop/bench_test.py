# SPDX-License-Identifier: Apache-2.0
"""byre bench beside qemu-img bench: words, errors, and what writes leave on the disk.  Times differ."""
import json
import os
import re
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import peers  # noqa: E402,F401  (QEMU 10.0 comes first in PATH)
from tool_test import Case, qemu, write  # noqa: E402

MIB = 1 << 20
TIME = re.compile(r"Run completed in \d+\.\d{3} seconds\.\n")


class Bench(Case):
    @classmethod
    def prepare(cls, folder):
        for name, size in (("a", MIB), ("odd", 5000), ("e", 0)):
            with open(os.path.join(folder, name), "wb") as file:
                file.truncate(size)
        qemu("create", "-q", "-f", "qcow2", "q.qcow2", "4M", cwd=folder)
        write("q.qcow2", "write -P 1 0 1M", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-b", "q.qcow2", "-F", "qcow2", "over.qcow2", cwd=folder)

    def same_but_time(self, *words, code=0):
        theirs, ours = self.both("bench", *words)
        text = f"\n=== qemu-img\n{theirs}\n=== byre\n{ours}"
        self.assertEqual(theirs.code, ours.code, text)
        self.assertEqual(ours.code, code, text)
        self.assertEqual(TIME.sub("TIME", theirs.out), TIME.sub("TIME", ours.out), text)
        self.assertEqual(theirs.err, ours.err, text)

    def test_reads(self):
        for words in (
            "-c 10 a", "-c 10 -q a", "-c 10 --pattern=7 a", "-d 3 -c 5 a", "-c 10 --no-drain a", "-c 10 -i threads a",
            "-c 10 -i io_uring a", "-c 10 -t none a", "-c 10 -t none -i native a", "-c 10 -n -t none a",
            "-c 3 -n -t directsync a", "-c 10 -o 4k a", "-c 3 -o 1000 a", "-c 10 -s 1M a", "-c 10 -s 1000 a",
            "-c 10 -S 0 a", "-c 10 -S 64k a", "-c 10 -S 1M a", "-c 10 -S 1000 a", "-U -c 10 a", "-c 0x10 a", "-c 010 a",
            "--image-opts driver=raw,file.filename=a -c 10", "-c 10 -o 1020k a", "-c 10 q.qcow2", "-c 600 -d 2 over.qcow2",
            "-c 5 -s 5120 odd", "-f raw -c 3 q.qcow2", "--count 7 --depth 2 --buffer-size 512 --offset 1k --step-size 2k a",
            "-c 9 -s 64k -S 100k -o 3M q.qcow2", "-c ' 5' a".replace("'", ""), "a",
        ):
            with self.subTest(words=words):
                self.same_but_time(*words.split())

    def test_wrong_words(self):
        for words in (
            "-c 10 -f raw -w --pattern=256 a", "--pattern=-1 -w -f raw a", "-c 0 a", "-c -1 a", "-c abc a", "-c 1k a",
            "-c 5000000000 a", "-c 2147483648 a", "-d 0 a", "-d abc a", "-d 5000000000 a", "-c 10 -f nix a",
            "-c 10 -f qcow2 a", "-c 10 --flush-interval=2 a", "-c 10 -w --flush-interval=2 -f raw a",
            "-w --flush-interval=-1 -f raw a", "-w --flush-interval=abc -f raw a", "-i native a", "-n a", "-i bla a",
            "-t bla a", "-o abc a", "-o -1 a", "-s 0 a", "-s 3G a", "-s 2G a", "-s abc a", "-S 3G a", "-S abc a",
            "-U -w -c 10 -f raw a", "--image-opts -f raw a", "nix", "--pattern=abc -w -f raw a", "-S -1 a",
        ):
            with self.subTest(words=words):
                self.same_but_time(*words.split(), code=1)
        for words in ("", "a b", "-x a", "-c"):
            with self.subTest(words=words):
                self.same("bench", *words.split(), err=False, code=1)

    def test_requests_past_the_end(self):
        for words in ("-c 10 -o 1M a", "-c 10 -o 2M a", "-c 10 -s 2M a", "-c 3 e", "-c 5 -d 2 -o 1044480 -S 3000 a",
                      "-c 4 -d 1 -s 5000 odd", "-c 4 -d 1 -s 8192 odd"):
            with self.subTest(words=words):
                self.same_but_time(*words.split(), code=1)

    def test_writes(self):
        """What is on the disk afterwards: also where the offset goes around its end, and in front of a failure."""
        for words, code in (("-c 9 -d 1 -S 600k", 0), ("-c 6 -d 4 -S 1500k", 0), ("-c 3 -S 600k -o 100k", 0),
                            ("-c 300 -d 1 -s 4000 -S 4000", 1), ("-c 5 -d 1 -S 6000 -o 1040000", 1), ("-c 20 -s 1000 -S 51200", 0),
                            ("-c 64 -d 4 --flush-interval=8 -s 16k", 0), ("-c 64 -d 4 --flush-interval=8 --no-drain -s 16k", 0),
                            ("-c 10 -d 4 --flush-interval=0", 0), ("-c 10 -t writethrough", 0), ("-c 10 -t unsafe", 0),
                            ("-c 10 -t none", 0), ("-c 10 -t directsync -d 2 --flush-interval=2", 0)):
            for fmt, name in (("raw", "a"), ("qcow2", "q.qcow2"), ("qcow2", "over.qcow2")):
                if code and fmt != "raw":
                    continue
                with self.subTest(words=words, name=name):
                    self.same_but_time("-w", "--pattern=9", "-f", fmt, *words.split(), name, code=code)
                    # What was under way beside the failure may have come to an end or not.
                    if not code or "-d 1" in words:
                        self.same_disk(name, fmt)
                    if fmt == "qcow2":
                        self.sound(name)
        self.same("bench", "-w", "-c", "3", "-o", "4k", "--pattern=1", "a", out=False, code=0)

    def test_under_its_own_name(self):
        result = self.byre("bench", "--output=json", "-c", "500", "-d", "8", "-s", "1k", "q.qcow2")
        told = json.loads(result.out)
        self.assertEqual((told["count"], told["size"], told["depth"], told["step"]), (500, 1024, 8, 1024))
        latency = told["latency-nanoseconds"]
        self.assertLessEqual(latency["least"], latency["50%"])
        self.assertLessEqual(latency["50%"], latency["99%"])
        self.assertLessEqual(latency["99.9%"], latency["most"])
        # The rates are those of the time that it took.
        self.assertAlmostEqual(told["requests-per-second"] * told["nanoseconds"] / 1e9, 500, delta=50)
        self.assertGreater(told["bytes-per-second"], told["requests-per-second"] * 1000)
        self.assertEqual(self.byre("bench", "-c", "10", "-o", "2M", "a").code, 74)
        text = self.byre("bench", "-c", "10", "a").out
        self.assertIn(" requests/s, ", text)
        self.assertIn("latency in microseconds: least ", text)
        many = self.byre("bench", "-d", "100000", "-s", "1M", "a")
        self.assertEqual(many.code, 64, str(many))
        told = json.loads(self.byre("bench", "--output=json", "-w", "-c", "12", "-d", "2", "--flush-interval=4", "-f", "raw",
                                    "a").out)
        self.assertEqual(told["flushes"], 3)


del Case

if __name__ == "__main__":
    unittest.main(verbosity=2)
