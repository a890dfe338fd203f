#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The races that corrupt images in other writers, played on byre one by one.

Each session is a script for `qemu-io`, played by byre under that name.  Requests are held at breakpoints
of the fault filter, so that nothing depends on timing.  Afterwards three judges look at the image: the real
`qemu-img check`, what the real `qemu-io` reads, and the reference checker of tests/reference.

The controls play the same scripts on the real qemu-io, to show that a session does what it is meant to; a
version that has been mended skips its control.

    BYRE=build/release/byre python3 tests/interop/sessions_test.py
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "reference"))
from qcow2ref import Image, check  # noqa: E402

BYRE = pathlib.Path(os.environ.get("BYRE", ROOT / "build" / "release" / "byre")).resolve()
QEMU_IO = shutil.which("qemu-io")
QEMU_IMG = shutil.which("qemu-img")
TIMEOUT = 120
KILLED = -9
KIB = 1024
MIB = 1024 * KIB


def run(*words):
    words = [str(word) for word in words]
    return subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=TIMEOUT)


class Session(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="byre-sessions-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.image = self.folder / "disk.qcow2"
        self.byre = self.folder / "qemu-io"
        self.byre.symlink_to(BYRE)

    def create(self, size="1M", *options):
        made = run(QEMU_IMG, "create", "-q", "-f", "qcow2", *options, self.image, size)
        self.assertEqual(made.returncode, 0, made.stdout)

    def play(self, program, commands, *options, file=None):
        """Plays `commands`, one a line, and gives the exit code and what was printed."""
        words = [program, *options]
        if "--image-opts" not in options:
            words += ["-f", "qcow2"]
        for command in commands.strip().splitlines():
            words += ["-c", command.strip()]
        done = run(*words, file or f"blkdebug::{self.image}")
        return done.returncode, done.stdout

    def on_byre(self, commands, *options, code=0, **more):
        got, output = self.play(self.byre, commands, *options, **more)
        self.assertEqual(got, code, output)
        return output

    def on_qemu(self, commands, *options, code=0, **more):
        got, output = self.play(QEMU_IO, commands, *options, **more)
        self.assertEqual(got, code, output)
        return output

    def assert_sound(self, leaks=False):
        """Leaks are sound only after a crash."""
        checked = run(QEMU_IMG, "check", "-f", "qcow2", self.image)
        self.assertIn(checked.returncode, (0, 3) if leaks else (0,), checked.stdout)
        found = check(str(self.image))
        self.assertEqual(found["errors"], [])
        if not leaks:
            self.assertEqual(found["leaks"], [])

    def assert_reads(self, offset, length, *patterns):
        """Each sector holds one of `patterns`, for the reference reader and for qemu-io."""
        data = Image(str(self.image)).read(offset, length)
        sectors = {data[at:at + 512] for at in range(0, length, 512)}
        allowed = {bytes([pattern]) * 512 for pattern in patterns}
        self.assertLessEqual(sectors, allowed, f"first bytes {data[:16].hex()} at {offset}")

        _, dump = self.play(QEMU_IO, f"read -v {offset} {length}", "-r", file=self.image)
        seen = {int(byte, 16) for line in re.findall(r"^[0-9a-f]{8}:  ((?:[0-9a-f]{2} )+)", dump, re.M)
                for byte in line.split()}
        self.assertLessEqual(seen, set(patterns), f"qemu-io at {offset}")

    # The sessions.  `discard` is aio_discard where byre lets it wait for the request that is held.

    def session_A(self, discard):
        return f"""
            write -P 1 0 64k
            break write_aio A
            aio_write -P 2 0 64k
            wait_break A
            {discard} 0 64k
            write -P 3 128k 64k
            resume A
            aio_flush
            read -P 3 128k 64k"""

    def test_R_A_in_place_write_against_discard_and_reuse(self):
        self.create()
        output = self.on_byre(self.session_A("aio_discard"))
        self.assertNotIn("verification failed", output)
        self.assert_sound()
        self.assert_reads(128 * KIB, 64 * KIB, 3)
        self.assert_reads(0, 64 * KIB, 2, 0)

    def test_R_A_with_zeroes_that_unmap(self):
        self.create()
        self.on_byre(self.session_A("aio_write -z -u"))
        self.assert_sound()
        self.assert_reads(128 * KIB, 64 * KIB, 3)
        self.assert_reads(0, 64 * KIB, 2, 0)

    def test_R_A_with_a_first_write(self):
        """The cluster is not allocated yet when the write is held."""
        self.create()
        self.on_byre(self.session_A("aio_discard").replace("write -P 1 0 64k", "length", 1))
        self.assert_sound()
        self.assert_reads(128 * KIB, 64 * KIB, 3)
        self.assert_reads(0, 64 * KIB, 2, 0)

    def test_control_A(self):
        self.create()
        code, output = self.play(QEMU_IO, self.session_A("discard"))
        if "verification failed" not in output:
            self.skipTest("this qemu-io does not show the defect")
        self.assertEqual(code, 1)

    def session_D(self):
        return """
            write -P 1 0 64k
            break read_aio A
            aio_read -v 0 512
            wait_break A
            discard 0 64k
            write -P 3 128k 64k
            resume A
            aio_flush"""

    def dumped(self, output):
        """The bytes that `-v` printed."""
        return {int(byte, 16) for line in re.findall(r"^[0-9a-f]{8}:  ((?:[0-9a-f]{2} )+)", output, re.M)
                for byte in line.split()}

    def test_R_D_read_against_discard_and_reuse(self):
        self.create()
        output = self.on_byre(self.session_D())
        self.assertEqual(self.dumped(output), {1})
        self.assert_sound()
        self.assert_reads(0, 64 * KIB, 0)
        self.assert_reads(128 * KIB, 64 * KIB, 3)

    def test_control_D(self):
        self.create()
        if self.dumped(self.on_qemu(self.session_D())) != {3}:
            self.skipTest("this qemu-io does not show the defect")

    def session_E(self):
        return """
            break read_compressed A
            aio_read -P 1 32k 4k
            wait_break A
            write -P 2 0 4k
            write -P 3 128k 64k
            resume A
            aio_flush"""

    def test_R_E_read_of_other_sectors_of_a_compressed_cluster(self):
        self.create()
        self.on_qemu("write -c -P 1 0 64k", file=self.image)
        output = self.on_byre(self.session_E())
        self.assertNotIn("failed", output)
        self.assert_sound()
        self.assert_reads(0, 4 * KIB, 2)
        self.assert_reads(4 * KIB, 60 * KIB, 1)
        self.assert_reads(128 * KIB, 64 * KIB, 3)

    def test_control_E(self):
        self.create()
        self.on_qemu("write -c -P 1 0 64k", file=self.image)
        if "readv failed: Input/output error" not in self.on_qemu(self.session_E()):
            self.skipTest("this qemu-io does not show the defect")

    def session_F(self, event):
        return f"""
            discard 0 64k
            break {event} A
            aio_write -P 2 512k 64k
            wait_break A
            sigraise 9"""

    def test_R_F_freed_cluster_is_not_reused_before_that_is_durable(self):
        # Held before the data, before the first sync of the commit, and before its pointers.
        for event in ("write_aio", "flush_to_disk", "l2_update"):
            with self.subTest(event=event):
                self.create()
                self.on_qemu("write -P 1 0 64k", file=self.image)
                self.on_byre(self.session_F(event), "-t", "writeback", code=KILLED)
                self.assert_sound(leaks=True)
                self.assert_reads(0, 64 * KIB, 1, 0)
                self.assert_reads(512 * KIB, 64 * KIB, 2, 0)

    def test_control_F(self):
        self.create()
        self.on_qemu("write -P 1 0 64k", file=self.image)
        self.on_qemu(self.session_F("l2_update"), "-t", "writeback", code=KILLED)
        code, _ = self.play(QEMU_IO, "read -P 2 0 64k", "-r", file=self.image)
        if code != 0:
            self.skipTest("this qemu-io does not show the defect")

    def session_G(self):
        return """
            write -P 3 0 4k
            break l2_update A
            aio_write -P 2 512k 64k
            wait_break A
            sigraise 9"""

    def test_R_G_durable_compressed_data_survive_a_rewrite(self):
        self.create()
        self.on_qemu("write -c -P 1 0 64k", file=self.image)
        self.on_byre(self.session_G(), "-t", "writeback", code=KILLED)
        self.assert_sound(leaks=True)
        self.assert_reads(4 * KIB, 60 * KIB, 1)
        self.assert_reads(0, 4 * KIB, 1, 3)

    def test_control_G(self):
        self.create()
        self.on_qemu("write -c -P 1 0 64k", file=self.image)
        self.on_qemu(self.session_G(), "-t", "writeback", code=KILLED)
        code, _ = self.play(QEMU_IO, "read -P 1 4k 60k", "-r", file=self.image)
        if code == 0:
            self.skipTest("this qemu-io does not show the defect")

    def session_H(self, discard):
        return f"""
            write -P 1 0 64k
            write -z 0 64k
            break write_aio A
            aio_write -P 2 0 64k
            wait_break A
            {discard} 0 64k
            resume A
            aio_flush
            write -P 3 128k 64k"""

    def test_R_H_allocating_write_against_discard(self):
        for discard in ("aio_discard", "aio_write -z -u", "aio_write -z"):
            with self.subTest(discard=discard):
                self.create()
                self.on_byre(self.session_H(discard))
                self.assert_sound()
                self.assert_reads(0, 64 * KIB, 2, 0)
                self.assert_reads(128 * KIB, 64 * KIB, 3)

    def test_R_H_with_subclusters(self):
        """A partly allocated cluster keeps its host cluster, too."""
        self.create("1M", "-o", "extended_l2=on")
        self.on_byre("""
            write -P 1 0 2k
            break write_aio A
            aio_write -P 2 4k 2k
            wait_break A
            aio_discard 0 64k
            resume A
            aio_flush
            write -P 3 128k 64k""")
        self.assert_sound()
        self.assert_reads(0, 2 * KIB, 0)
        self.assert_reads(4 * KIB, 2 * KIB, 2, 0)
        self.assert_reads(128 * KIB, 64 * KIB, 3)

    def test_control_H(self):
        self.create()
        code, output = self.play(QEMU_IO, self.session_H("discard").replace("aio_flush", "length"))
        checked = run(QEMU_IMG, "check", "-f", "qcow2", self.image)
        if code == 0 and checked.returncode == 0:
            self.skipTest("this qemu-io does not show the defect")
        self.assertIn("refcount=", checked.stdout, output)

    def image_opts(self, *rules):
        words = ["driver=qcow2", "file.driver=blkdebug", f"file.image.filename={self.image}"]
        for number, rule in enumerate(rules):
            words += [f"file.inject-error.{number}.{setting}" for setting in rule.split(",")]
        return ",".join(words)

    def session_J(self):
        return """
            write -P 1 0 64k
            write -P 2 512M 64k
            flush"""

    def test_R_J_failed_sync_after_a_pointer_was_written(self):
        self.create("2G")
        _, output = self.play(self.byre, self.session_J(), "--image-opts",
                              file=self.image_opts("event=l1_update,iotype=flush,once=on"))
        self.assertIn("write failed: Input/output error", output)
        # The process ends in order, but what the failed sync left is not known to be durable.
        self.assert_sound(leaks=True)
        self.assert_reads(0, 64 * KIB, 1, 0)
        self.assert_reads(512 * MIB, 64 * KIB, 2, 0)

    def test_R_J_for_every_sync_of_the_commit(self):
        for event in ("l2_alloc_write", "refblock_update", "l2_update", "flush_to_disk"):
            with self.subTest(event=event):
                self.create("2G")
                self.play(self.byre, self.session_J() + "\nwrite -P 3 64k 64k\nwrite -P 4 1G 64k", "--image-opts",
                          file=self.image_opts(f"event={event},iotype=flush,once=on"))
                self.assert_sound(leaks=True)
                self.assert_reads(0, 64 * KIB, 1, 0)
                self.assert_reads(64 * KIB, 64 * KIB, 3, 0)
                self.assert_reads(512 * MIB, 64 * KIB, 2, 0)
                self.assert_reads(1024 * MIB, 64 * KIB, 4, 0)

    def test_control_J(self):
        self.create("2G")
        self.play(QEMU_IO, self.session_J(), "--image-opts",
                  file=self.image_opts("event=l1_update,iotype=flush,once=on"))
        checked = run(QEMU_IMG, "check", "-f", "qcow2", self.image)
        if checked.returncode == 0:
            self.skipTest("this qemu-io does not show the defect")
        self.assertIn("refcount=1 reference=2", checked.stdout)


if __name__ == "__main__":
    unittest.main()
