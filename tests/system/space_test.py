# SPDX-License-Identifier: Apache-2.0
"""No space left in the middle of anything: that request fails, the image stays sound, and work goes on later."""
import contextlib
import errno
import os
import random
import resource
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import nbd  # noqa: E402
from harness import (GIB, KIB, MIB, QEMU, Case, Server, byre_io, examine, img, leaked, main, options_of,  # noqa: E402
                     qemu_img, qemu_io, run)

FULL = (errno.ENOSPC,)
# What the file system without space is mounted on, in each test's own folder.
SMALL = 12 * MIB


def in_own_namespace():
    """Runs this program again where it may mount a file system that nobody else sees."""
    if os.environ.get("BYRE_MAY_MOUNT"):
        return
    os.environ["BYRE_MAY_MOUNT"] = "1"
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    os.execvp("unshare", ["unshare", "--mount", *user, sys.executable, *sys.argv])


class Space(Case):
    def setUp(self):
        super().setUp()
        self.small = self.path("small")
        os.mkdir(self.small)
        run("mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", self.small)
        self.addCleanup(run, "umount", "-l", self.small)
        self.disk = os.path.join(self.small, "disk.qcow2")

    def connect(self, server):
        handle = nbd.NBD()
        handle.connect_uri(server.uri)

        def close():
            with contextlib.suppress(nbd.Error):
                handle.shutdown()
        self.addCleanup(close)
        return handle

    def ballast(self, size):
        """Takes space away; the file that holds it."""
        path = os.path.join(self.small, "ballast")
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        return path

    def fill(self, handle, draw, expected, flush_every=0):
        """Writes until there is no space; every write that was answered is in `expected`."""
        for count in range(1, 4000):
            offset = draw.randrange(0, 64 * MIB // 4096) * 4096
            data = draw.randbytes(draw.choice((4096, 16384, 65536)))
            data = data[:64 * MIB - offset]
            try:
                handle.pwrite(data, offset)
                expected[offset:offset + len(data)] = data
                if flush_every and count % flush_every == 0:
                    handle.flush()
            except nbd.Error as error:
                self.assertIn(error.errnum, FULL, error.string)
                # It is not known how much of the data was written.
                expected[offset:offset + len(data)] = handle.pread(len(data), offset)
                return offset, len(data)
        self.fail("the file system has no end")

    def test_while_it_is_served(self):
        for name, options in {"64 KiB clusters": {}, "4 KiB": {"cluster_size": 4096}, "512 bytes": {"cluster_size": 512},
                              "subclusters": {"extended_l2": "on"}, "lazy": {"lazy_refcounts": "on"},
                              "version 2": {"compat": "0.10"}}.items():
            # Images that QEMU made have holes where their tables are.
            for make in (img, qemu_img):
                with self.subTest(name, make=make.__name__):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.disk)
                    make("create", "-q", "-f", "qcow2", *options_of(**options), self.disk, 64 * MIB)
                    self.full_and_free(random.Random(name))

    def full_and_free(self, draw):
        expected = bytearray(64 * MIB)
        with self.server(self.disk) as server:
            handle = self.connect(server)
            self.fill(handle, draw, expected, flush_every=draw.choice((0, 7)))
            # Reads go on, and so do writes to what is there.
            self.assertTrue(handle.pread(16 * MIB, 0) == expected[:16 * MIB])
            there = next(at for at in range(0, 64 * MIB, 4096) if any(expected[at:at + 4096]))
            handle.pwrite(b"O" * 4096, there)
            expected[there:there + 4096] = b"O" * 4096
            # Again and again, until a flush, too, has said that it could or could not.
            for _ in range(20):
                with contextlib.suppress(nbd.Error):
                    handle.pwrite(draw.randbytes(65536), 60 * MIB)
                expected[60 * MIB:60 * MIB + 65536] = handle.pread(65536, 60 * MIB)
            with contextlib.suppress(nbd.Error):
                handle.flush()
            # A part of the disk is given back: there is space again.
            handle.trim(24 * MIB, 0)
            expected[:24 * MIB] = bytes(24 * MIB)
            handle.flush()
            for _ in range(10):
                data = draw.randbytes(65536)
                at = draw.randrange(0, 24 * MIB // 65536) * 65536
                handle.pwrite(data, at)
                expected[at:at + 65536] = data
            handle.flush()
            for at in range(0, 64 * MIB, 16 * MIB):
                self.assertTrue(handle.pread(16 * MIB, at) == expected[at:at + 16 * MIB], hex(at))
        self.assert_sound(self.disk)
        self.assert_reads(expected)

    def assert_reads(self, expected):
        """QEMU, too, reads that from the disk."""
        want, got = self.path("want"), self.path("got")
        with open(want, "wb") as file:
            file.write(expected)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", self.disk, got)
        self.assert_same(want, got)
        os.unlink(want)
        os.unlink(got)

    def test_space_comes_back_from_elsewhere(self):
        """At every possible moment: a little less is left in each turn."""
        draw = random.Random(4)
        for left in list(range(0, 600 * KIB, 28 * KIB)):
            with self.subTest(left):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.disk)
                img("create", "-q", "-f", "qcow2", "-o", "cluster_size=16k", self.disk, 64 * MIB)
                ballast = self.ballast(SMALL - 512 * KIB - left)
                expected = bytearray(64 * MIB)
                with self.server(self.disk) as server:
                    handle = self.connect(server)
                    self.fill(handle, draw, expected, flush_every=3)
                    with contextlib.suppress(nbd.Error):
                        handle.flush()
                    os.unlink(ballast)
                    for _ in range(8):
                        at, data = draw.randrange(0, 1000) * 65536, draw.randbytes(65536)
                        handle.pwrite(data, at)
                        expected[at:at + 65536] = data
                    handle.flush()
                self.assert_sound(self.disk)
                self.assert_reads(expected)

    def test_killed_when_full(self):
        draw = random.Random(6)
        img("create", "-q", "-f", "qcow2", self.disk, 64 * MIB)
        expected = bytearray(64 * MIB)
        server = self.server(self.disk)
        handle = self.connect(server)
        offset, length = self.fill(handle, draw, expected, flush_every=1)
        server.kill()
        report = examine(self.disk)
        self.assertEqual(report["errors"], [])
        self.assertLess(leaked(report), 100)
        with self.server(self.disk, read_only=True) as server:
            handle = self.connect(server)
            # The write that failed has not been flushed.
            expected[offset:offset + length] = handle.pread(length, offset)
            for at in range(0, 64 * MIB, 16 * MIB):
                self.assertTrue(handle.pread(16 * MIB, at) == expected[at:at + 16 * MIB], hex(at))

    def test_no_space_for_a_new_image(self):
        source = self.path("source")
        with open(source, "wb") as file:
            file.write(random.Random(1).randbytes(2 * SMALL))
        target = os.path.join(self.small, "target")
        for form in ("qcow2", "raw"):
            with self.subTest(form):
                done = img("convert", "-f", "raw", "-O", form, source, target, ok=(1,))
                self.assertRegex(done.text, "No space left|no space")
                self.assertFalse(os.path.exists(target))
        ballast = self.ballast(SMALL - 64 * KIB)
        done = img("create", "-q", "-f", "qcow2", target, "1G", ok=None)
        self.assertIn(done.code, (0, 1))
        os.unlink(ballast)
        # The space is enough for this one.
        with open(source, "r+b") as file:
            file.truncate(SMALL // 2)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        img("convert", "-f", "raw", "-O", "qcow2", source, target)
        self.assert_sound(target)
        self.assert_compares(source, target)

    def test_preallocated_disks_need_no_more_space(self):
        """falloc and full: once the file system is full the whole disk can be written, by byre and by QEMU."""
        size = 6 * MIB
        for mode in ("falloc", "full"):
            for options in ({}, {"cluster_size": 512}, {"cluster_size": "4k", "refcount_bits": 64}, {"extended_l2": "on"},
                            {"lazy_refcounts": "on"}, {"compat": "0.10"}, {"data_file": os.path.join(self.small, "data")},
                            {"form": "raw"}):
                for grows in (False, True):
                    for maker in (img, qemu_img) if grows else (img,):
                        with self.subTest(mode=mode, grows=grows, maker=maker.__name__, **options):
                            self.preallocated(mode, dict(options), grows, maker, size)

    def preallocated(self, mode, options, grows, maker, size):
        form = options.pop("form", "qcow2")
        files = [self.disk, *filter(None, [options.get("data_file")])]
        start = 64 * KIB if grows else 0
        if grows:
            maker("create", "-q", "-f", form, *options_of(**options), self.disk, start)
            img("resize", "-q", "-f", form, f"--preallocation={mode}", self.disk, size)
        else:
            img("create", "-q", "-f", form, *options_of(preallocation=mode, **options), self.disk, size)
            for file in files:
                there = os.stat(file)
                self.assertGreaterEqual(there.st_blocks * 512, there.st_size, "every block of the file")
        free = os.statvfs(self.small)
        ballast = self.ballast(free.f_bavail * free.f_bsize)
        draw = random.Random(size)
        for program, value in ((byre_io, 7), (qemu_io, 8)):
            writes = [f"write -q -P {value} {draw.randrange(start, size - 4096) // 512 * 512} 1k" for _ in range(50)]
            program(self.disk, *writes, f"write -q -P {value} {start} {size - start}", "flush",
                    f"read -q -P {value} {start} {size - start}", options=("-f", form, "-t", "writeback"))
        if form == "qcow2":
            self.assert_sound(self.disk)
        for file in [*files, ballast]:
            os.unlink(file)

    def test_no_space_for_qemu_io_commands(self):
        img("create", "-q", "-f", "qcow2", self.disk, 64 * MIB)
        done = byre_io(self.disk, "write -P 1 0 1M", "write -P 2 1M 32M", "read -P 1 0 1M", "write -z -u 0 512k", "flush",
                       ok=(0, 1))
        self.assertIn("No space left", done.text)
        self.assert_sound(self.disk)


class Limits(Case):
    """The process may not make files larger: an error like another, not the end of the process."""

    def test_a_limit_on_file_size(self):
        disk = self.path("disk.qcow2")
        img("create", "-q", "-f", "qcow2", disk, GIB)

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))
        draw = random.Random(2)
        expected = {}
        with self.server(disk, preexec_fn=limit) as server:
            handle = nbd.NBD()
            handle.connect_uri(server.uri)
            failures = 0
            for index in range(200):
                data = draw.randbytes(64 * KIB)
                try:
                    handle.pwrite(data, index * MIB)
                    expected[index * MIB] = data
                except nbd.Error as error:
                    # EFBIG has no number of its own in NBD.
                    self.assertIn(error.errnum, (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EINVAL), error.string)
                    failures += 1
                    self.assertTrue(bytes(handle.pread(64 * KIB, index * MIB)) == bytes(64 * KIB))
            self.assertGreater(failures, 100)
            self.assertGreater(len(expected), 10)
            handle.trim(8 * MIB, 0)
            handle.flush()
            for offset in [offset for offset in expected if offset < 8 * MIB]:
                del expected[offset]
            data = draw.randbytes(64 * KIB)
            handle.pwrite(data, 500 * MIB)
            expected[500 * MIB] = data
            handle.flush()
            handle.shutdown()
        self.assert_sound(disk)
        with self.server(disk, read_only=True) as server:
            handle = nbd.NBD()
            handle.connect_uri(server.uri)
            for offset, data in expected.items():
                self.assertEqual(bytes(handle.pread(64 * KIB, offset)), data, hex(offset))
            handle.shutdown()

    def test_commands_under_the_limit(self):
        source = self.path("source")
        with open(source, "wb") as file:
            file.write(random.Random(1).randbytes(8 * MIB))

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))
        for form in ("qcow2", "raw"):
            done = img("convert", "-f", "raw", "-O", form, source, self.path(f"target.{form}"), ok=(1,), preexec_fn=limit)
            self.assertIn("File too large", done.text)


if __name__ == "__main__":
    in_own_namespace()
    main()
