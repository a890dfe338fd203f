#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The races that corrupt images in other writers, played on byre one by one.

Each session is a script for `qemu-io`, played by byre under that name.  Requests are held at breakpoints
of the fault filter, so that nothing depends on timing.  Afterwards three judges look at the image: the real
`qemu-img check`, what the real `qemu-io` reads, and the reference checker of tests/reference.

The controls play the same scripts on the real qemu-io, to show that a session does what it is meant to; a
version that has fixed it skips its control.

Last come such scripts by the dozen, drawn from seeds: requests of all kinds, held and let go at random, where
each guest cluster has bytes of its own, so that another's are recognised.

    BYRE=build/release/byre python3 tests/interop/sessions_test.py
    BYRE_SEEDS=1-1000 python3 tests/interop/sessions_test.py Session.test_random_scripts
"""
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "reference"))
sys.path.insert(0, str(ROOT / "tests" / "support"))
import peers  # noqa: E402  (puts the real programs in front of PATH)
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
        if done.returncode == KILLED:
            self.wait_for_locks()
        return done.returncode, done.stdout

    def wait_for_locks(self):
        """The kernel may end a killed process's I/O, and let go of its locks, after its parent heard of its death."""
        for _ in range(100):
            if "lock" not in run(QEMU_IMG, "info", self.image).stdout:
                return
            time.sleep(0.05)

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

    def through_compress(self):
        """qemu-io has no aio_write -c, but a filter that makes every write a compressed one."""
        return ("driver=compress,file.driver=qcow2,file.file.driver=blkdebug,"
                f"file.file.image.filename={self.image}")

    def session_B(self, write, reuse, discard):
        return f"""
            break write_compressed A
            {write} -P 1 0 64k
            wait_break A
            {discard} 0 64k
            {reuse} 128k 64k
            resume A
            aio_flush"""

    def test_R_B_compressed_write_against_discard_and_reuse(self):
        for reuse in ("write -P 3", "aio_write -c -P 3"):
            for discard in ("aio_discard", "aio_write -z -u"):
                with self.subTest(reuse=reuse, discard=discard):
                    self.create()
                    output = self.on_byre(self.session_B("aio_write -c", reuse, discard))
                    self.assertNotIn("failed", output)
                    self.assert_sound()
                    self.assert_reads(128 * KIB, 64 * KIB, 3)
                    self.assert_reads(0, 64 * KIB, 1, 0)

    def test_control_B(self):
        self.create()
        noise = self.folder / "noise"
        noise.write_bytes(random.Random(1).randbytes(64 * KIB))
        self.play(QEMU_IO, self.session_B("aio_write", f"write -s {noise}", "discard"), "--image-opts",
                  file=self.through_compress())
        if Image(str(self.image)).read(128 * KIB, 64 * KIB) == noise.read_bytes():
            self.skipTest("this qemu-io does not show the defect")

    def session_C(self):
        return """
            write -c -P 1 0 64k
            discard 0 64k
            write -P 3 128k 64k
            write -c -P 4 256k 64k
            read -P 3 128k 64k
            read -P 4 256k 64k"""

    def test_R_C_packing_cursor_and_its_cluster(self):
        for again in (self.session_C(), self.session_C().replace("write -P 3", "write -P 3 512k 64k\nwrite -P 3"),
                      self.session_C().replace("write -P 3", "flush\nflush\nwrite -P 3")):
            self.create()
            output = self.on_byre(again)
            self.assertNotIn("failed", output)
            self.assert_sound()
            self.assert_reads(0, 64 * KIB, 0)
            self.assert_reads(128 * KIB, 64 * KIB, 3)
            self.assert_reads(256 * KIB, 64 * KIB, 4)

    def test_control_C(self):
        self.create()
        _, output = self.play(QEMU_IO, self.session_C(), file=self.image)
        if "verification failed" not in output:
            self.skipTest("this qemu-io does not show the defect")

    def session_D(self):
        return """
            write -P 1 0 64k
            break read_aio A
            aio_read -v 0 512
            wait_break A
            discard 0 64k
            flush
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

    def test_R_E_with_streams_that_byre_made(self):
        """They share a host cluster, and the one that is read loses its reference meanwhile."""
        self.create()
        self.on_byre("write -c -P 1 0 64k\nwrite -c -P 5 512k 64k")
        output = self.on_byre(self.session_E().replace("write -P 2 0 4k", "write -c -P 2 0 64k\nwrite -P 4 512k 4k"))
        self.assertNotIn("failed", output)
        self.assert_sound()
        self.assert_reads(0, 64 * KIB, 2)
        self.assert_reads(128 * KIB, 64 * KIB, 3)
        self.assert_reads(512 * KIB, 4 * KIB, 4)
        self.assert_reads(516 * KIB, 60 * KIB, 5)

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

    def test_R_F_discard_during_a_commit(self):
        """A commit that began before the discard does not make its removal durable."""
        self.create()
        self.on_qemu("write -P 1 0 64k", file=self.image)
        self.on_byre("""
            break l2_update A
            aio_write -f -P 5 256k 64k
            wait_break A
            discard 0 64k
            resume A
            aio_flush
            break l2_update B
            aio_write -P 2 512k 64k
            wait_break B
            sigraise 9""", "-t", "writeback", code=KILLED)
        self.assert_sound(leaks=True)
        self.assert_reads(0, 64 * KIB, 1, 0)
        self.assert_reads(256 * KIB, 64 * KIB, 5)
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
        # A later QEMU lets the discard wait for the write that is held, and so would the command.
        discard = "discard" if peers.version() < (8,) else "aio_discard"
        code, output = self.play(QEMU_IO, self.session_H(discard).replace("aio_flush", "length"))
        checked = run(QEMU_IMG, "check", "-f", "qcow2", self.image)
        if code == 0 and checked.returncode == 0:
            self.skipTest("this qemu-io does not show the defect")
        self.assertIn("refcount=", checked.stdout, output)

    def test_R_I_no_pointer_is_durable_before_its_data(self):
        """The cluster held another range's bytes before; they must not show."""
        self.create()
        self.on_qemu("write -P 7 0 64k", file=self.image)
        self.on_byre("""
            write -z -u 0 64k
            flush
            flush
            break write_aio A
            aio_write -P 1 128k 64k
            wait_break A
            aio_write -f -P 5 256k 64k
            sleep 200
            sigraise 9""", "-t", "writeback", "-d", "ignore", code=KILLED)
        self.assert_sound(leaks=True)
        self.assert_reads(0, 64 * KIB, 0)
        self.assert_reads(128 * KIB, 64 * KIB, 1, 0)
        self.assert_reads(256 * KIB, 64 * KIB, 5, 0)

    def session_I(self, write):
        return f"""
            break write_compressed A
            {write} -P 1 0 64k
            wait_break A
            flush
            sigraise 9"""

    def test_R_I_no_stream_is_pointed_to_before_its_data(self):
        self.create()
        self.on_byre(self.session_I("aio_write -c"), "-t", "writeback", code=KILLED)
        self.assert_sound(leaks=True)
        self.assert_reads(0, 64 * KIB, 0)

    def test_R_I_over_older_data(self):
        for older in ("write -P 7", "write -c -P 7"):
            with self.subTest(older=older):
                self.create()
                self.on_qemu(f"{older} 0 64k", file=self.image)
                self.on_byre(self.session_I("aio_write -c"), "-t", "writeback", code=KILLED)
                self.assert_sound(leaks=True)
                self.assert_reads(0, 64 * KIB, 7)

    def test_control_I(self):
        self.create()
        self.play(QEMU_IO, self.session_I("aio_write"), "-t", "writeback", "--image-opts", file=self.through_compress())
        code, output = self.play(QEMU_IO, "read 0 64k", "-r", file=self.image)
        if code == 0:
            self.skipTest("this qemu-io does not show the defect")
        self.assertIn("Input/output error", output)

    def session_K(self):
        return """
            write -c -P 1 0 64k
            read -P 7 0 64k
            write -c -P 2 64k 64k"""

    def test_R_K_failed_write_of_a_stream(self):
        for older in ("write -P 7", "write -c -P 7"):
            with self.subTest(older=older):
                self.create()
                self.on_qemu(f"{older} 0 64k", file=self.image)
                code, output = self.play(self.byre, self.session_K(), "--image-opts",
                                         file=self.image_opts("event=write_compressed,iotype=write,once=on"))
                self.assertEqual(code, 1)
                self.assertEqual(output.count("write failed: Input/output error"), 1, output)
                self.assertNotIn("verification", output)
                self.assert_sound()
                self.assert_reads(0, 64 * KIB, 7)
                self.assert_reads(64 * KIB, 64 * KIB, 2)

    def test_control_K(self):
        self.create()
        self.play(QEMU_IO, self.session_K(), "--image-opts",
                  file=self.image_opts("event=write_compressed,iotype=write,once=on"))
        code, output = self.play(QEMU_IO, "read 0 64k", "-r", file=self.image)
        if code == 0:
            self.skipTest("this qemu-io does not show the defect")
        self.assertIn("Input/output error", output)

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

    CLUSTERS = 16
    EVENTS = ("write_compressed", "read_compressed", "write_aio", "cow_read", "cow_write", "read_aio", "l2_load",
              "l2_update", "l1_update", "l2_alloc_write", "refblock_update",
              "flush_to_disk", "cluster_free", "pwritev_zero", "pwritev_done")

    def own_bytes(self, cluster):
        return set(range(1 + 8 * cluster, 9 + 8 * cluster))

    def random_script(self, rng):
        """Commands that never wait, so that nothing they hold can stop the script."""
        lines, tags = [], []
        for number in range(rng.randrange(40, 200)):
            cluster = rng.randrange(self.CLUSTERS)
            first = rng.randrange(16)
            offset, length = cluster * 64 + 4 * first, 4 * rng.randint(1, 16 - first)
            if rng.random() < 0.4:
                offset, length = cluster * 64, 64
            what = rng.randrange(14)
            fua = rng.choice(("", "", "-f "))
            if what < 5:
                lines.append(f"aio_write -q {fua}-P {rng.choice(sorted(self.own_bytes(cluster)))} {offset}k {length}k")
            elif what == 5:
                lines.append(f"aio_write -q {fua}-z {rng.choice(('', '-u '))}{offset}k {length}k")
            elif what < 8:
                lines.append(f"aio_discard -q {offset}k {length}k")
            elif what == 8:
                lines.append(f"aio_read -v {offset}k 512")
            elif what == 9:
                tags.append(f"T{number}")
                lines.append(f"break {rng.choice(self.EVENTS)} {tags[-1]}")
            elif what == 10 and tags:
                lines.append(f"remove_break {tags.pop(rng.randrange(len(tags)))}")
            elif what > 11:
                lines.append(f"aio_write -q -c -P {rng.choice(sorted(self.own_bytes(cluster)))} {cluster * 64}k 64k")
            else:
                lines.append(f"sleep {rng.choice((0, 1, 5))}")
        if rng.random() < 0.5:
            return "\n".join(lines + ["sigraise 9", ""])
        return "\n".join(lines + [f"remove_break {tag}" for tag in tags] + ["aio_flush", ""])

    def play_random(self, seed):
        rng = random.Random(seed)
        self.create("1M", "-o", rng.choice(("cluster_size=64k", "cluster_size=4k", "extended_l2=on", "compat=0.10",
                                            "refcount_bits=1", "lazy_refcounts=on")))
        if rng.random() < 0.5:
            self.on_qemu("\n".join(f"write -c -P {min(self.own_bytes(cluster))} {cluster * 64}k 64k"
                                   for cluster in range(0, self.CLUSTERS, 2)), file=self.image)
        script = self.random_script(rng)
        done = subprocess.run([self.byre, "-f", "qcow2", "-t", rng.choice(("writeback", "writethrough")), "-d",
                               rng.choice(("unmap", "ignore")), f"blkdebug::{self.image}"], input=script, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT)
        if done.returncode == KILLED:
            self.wait_for_locks()
        self.assertIn(done.returncode, (0, 1, KILLED), done.stdout[-2000:])
        self.assertNotIn("failed", done.stdout)

        for offset, line in re.findall(r"^(?:qemu-io> )*([0-9a-f]{8}):  ((?:[0-9a-f]{2} )+)", done.stdout, re.M):
            cluster = int(offset, 16) // (64 * KIB)
            self.assertLessEqual({int(byte, 16) for byte in line.split()}, self.own_bytes(cluster) | {0}, "read")
        if done.returncode != KILLED or not self.is_dirty():
            self.assert_sound(leaks=done.returncode == KILLED)
        for cluster in range(self.CLUSTERS):
            data = Image(str(self.image)).read(cluster * 64 * KIB, 64 * KIB)
            self.assertLessEqual(set(data), self.own_bytes(cluster) | {0}, f"cluster {cluster}")
        # Whoever opens it next finds it sound, dirty or not.
        self.on_byre("read -q 0 1M\nwrite -q 0 4k", file=self.image)
        self.assert_sound(leaks=True)

    def is_dirty(self):
        return check(str(self.image))["dirty"]

    def test_random_scripts(self):
        first, _, last = os.environ.get("BYRE_SEEDS", "1-25").partition("-")
        for seed in range(int(first), int(last or first) + 1):
            with self.subTest(seed=seed):
                self.play_random(seed)


if __name__ == "__main__":
    unittest.main()
