# SPDX-License-Identifier: Apache-2.0
"""convert --verify: a target that does not hold what was read is found, and does not stay."""
import os
import random
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, KIB, MIB, Case, main, only_byre, qemu_img, run, until  # noqa: E402


@only_byre
class Verify(Case):
    def setUp(self):
        super().setUp()
        self.source = self.path("source.raw")
        with open(self.source, "wb") as file:
            file.write(random.Random(1).randbytes(3 * MIB))
            file.seek(7 * MIB)
            file.write(b"text " * 200000)
            file.truncate(9 * MIB + 512)

    def test_sound_targets_pass(self):
        base = self.path("base.qcow2")
        run(BYRE, "convert", "-O", "qcow2", self.source, base)
        over = self.path("over.qcow2")
        run(BYRE, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", over)
        run(BYRE, "io", "-c", "write -P 3 1M 1M", "-c", "write -z 2M 64k", over)
        for number, words in enumerate((
                ("-O", "raw", self.source), ("-O", "qcow2", self.source), ("-c", "-O", "qcow2", self.source),
                ("-O", "qcow2", "-S", "0", self.source), ("-O", "qcow2", self.source, self.source),
                ("-O", "qcow2", "-o", "cluster_size=512", self.source), ("-O", "qcow2", "-t", "none", self.source),
                ("-O", "qcow2", "-t", "unsafe", self.source), ("-O", "raw", "-t", "none", self.source),
                ("-O", "qcow2", over), ("-O", "qcow2", "-B", base, "-F", "qcow2", over), ("-c", "-O", "qcow2", over),
                ("-O", "qcow2", "-o", f"data_file={self.path('data')}", self.source))):
            with self.subTest(words=words):
                target = self.path(f"target{number}")
                run(BYRE, "convert", "--verify", *words, target)
                if words[-2] != self.source:
                    qemu_img("compare", words[-1], target)

    def test_a_target_that_is_there_passes(self):
        for form in ("raw", "qcow2"):
            target = self.path("there." + form)
            run(BYRE, "create", "-f", form, target, "12M")
            run(BYRE, "io", "-f", form, "-c", "write -P 9 0 12M", target)
            run(BYRE, "convert", "--verify", "-n", "-O", form, self.source, target)

    def change_behind(self, form, place_of, *words):
        """Runs a slow conversion, and overwrites the start of the data in the target's file under way."""
        target = self.path("target." + form)
        with subprocess.Popen([BYRE, "convert", "--verify", "-r", "3M", *words, "-O", form, self.source, target],
                              stderr=subprocess.PIPE) as process:
            until(lambda: os.path.exists(target) and place_of(target) is not None, "the first data")
            with open(target, "r+b") as file:
                file.seek(place_of(target))
                file.write(b"other bytes" * 1000)
            _, errors = process.communicate(timeout=60)
        return target, process.returncode, errors.decode()

    def place_of_start(self, target):
        """Where the first bytes of the source lie in the file."""
        with open(self.source, "rb") as source, open(target, "rb") as file:
            place = file.read().find(source.read(4 * KIB))
        return None if place < 0 else place

    def test_a_file_that_is_changed_behind_is_found_and_removed(self):
        for form in ("raw", "qcow2"):
            target, code, errors = self.change_behind(form, self.place_of_start)
            self.assertEqual(code, 74, errors)
            self.assertIn("not what was read from the source", errors)
            self.assertIn(" at 0x0,", errors)
            self.assertFalse(os.path.exists(target))

    def test_a_target_that_was_there_stays(self):
        target = self.path("target.raw")
        run(BYRE, "create", "-f", "raw", target, "12M")
        _, code, errors = self.change_behind("raw", self.place_of_start, "-n")
        self.assertEqual(code, 74, errors)
        self.assertIn("not what was read from the source", errors)
        self.assertTrue(os.path.exists(target))


if __name__ == "__main__":
    main()
