# SPDX-License-Identifier: Apache-2.0
"""Checks of a disk that is served and written: by a signal, by the clock, and in the tester, with the real clients' load."""
import json
import os
import re
import signal
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, Case, main, only_byre, qemu_img, qemu_io, run, until  # noqa: E402

CHECKED = re.compile(r"^checked \S+ in [0-9.]+ s: (\d+) errors?, (\d+) leaked clusters?$", re.M)


@only_byre
class Online(Case):
    def image(self, *options, size="256M"):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", *options, path, size)
        qemu_io(path, "write -q -P 1 0 8M", "write -q -c -P 2 8M 1M")
        return path

    def leak(self, path, count):
        """Refcounts for clusters that nothing uses, behind all others."""
        with open(path, "r+b") as file:
            data = file.read()
            table = struct.unpack_from(">Q", data, 48)[0]
            block = struct.unpack_from(">Q", data, table)[0]
            first = -(-len(data) // 65536)
            for cluster in range(first, first + count):
                file.seek(block + 2 * cluster)
                file.write(struct.pack(">H", 1))
            file.truncate((first + count) * 65536)

    def checks(self, server):
        return CHECKED.findall(server.said())

    def load(self, server, seconds):
        run("fio", "--name=w", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randwrite", "--bsrange=4k-128k", "--size=200M",
            "--iodepth=16", "--time_based", f"--runtime={seconds}", "--fsync=64")

    def test_a_signal_and_the_clock_check_a_disk_under_load(self):
        path = self.image("-o", "lazy_refcounts=on")
        with self.server(path, options=["--check-every", "1"]) as server:
            os.kill(server.pid, signal.SIGUSR1)
            self.load(server, 3)
            until(lambda: len(self.checks(server)) >= 3, "three checks")
            self.assertEqual(set(self.checks(server)), {("0", "0")}, server.said())
        qemu_img("check", "-q", path)

    def test_bitmaps_that_record_meanwhile_are_no_findings(self):
        path = self.image()
        for name, granularity in (("a", "64k"), ("b", "4k")):
            qemu_img("bitmap", "--add", "-g", granularity, path, name)
        with self.server(path, options=["--check-every", "1"]) as server:
            os.kill(server.pid, signal.SIGUSR1)
            self.load(server, 3)
            until(lambda: len(self.checks(server)) >= 3, "three checks")
            self.assertEqual(set(self.checks(server)), {("0", "0")}, server.said())
        qemu_img("check", "-q", path)
        run(BYRE, "check", "-q", "--bitmaps", path)

    def test_leaks_are_found_under_load(self):
        path = self.image()
        self.leak(path, 3)
        with self.server(path, options=["--check-every", "1"]) as server:
            self.load(server, 2)
            until(lambda: self.checks(server), "a check")
            self.assertEqual(set(self.checks(server)), {("0", "3")}, server.said())
        qemu_img("check", "-q", path, ok=(3,))

    def test_the_tester_checks_among_its_requests(self):
        path = self.image()
        self.leak(path, 2)
        writes = [word for at in range(16, 200, 8) for word in ("-c", f"aio_write -q -P {at} {at}M 4M")]
        done = run(BYRE, "io", *writes, "-c", "check -j", "-c", "aio_flush", path, ok=(1,))
        report = json.loads(done.out[done.out.index(b"{"):done.out.rindex(b"}") + 1])
        self.assertEqual((report["leaks"], report.get("corruptions", 0)), (2, 0))
        self.assertEqual({finding["kind"] for finding in report["findings"]}, {"refcount-too-large"})
        done = run(BYRE, "io", "-c", "aio_write -q -P 9 200M 30M", "-c", "check -r leaks", "-c", "aio_flush", path)
        self.assertIn("(repaired)", done.text)
        qemu_img("check", "-q", path)

    def test_a_raw_disk_has_no_checks(self):
        path = self.path("disk.raw")
        qemu_img("create", "-q", "-f", "raw", path, "1M")
        done = run(BYRE, "serve", "-f", "raw", "--check-every", "5", "-k", self.path("s"), path, ok=(1,))
        self.assertIn("raw, which has no checks", done.text)
        done = run(BYRE, "io", "-f", "raw", "-c", "check", path, ok=(1,))
        self.assertIn("does not support checks", done.text)

    def test_an_image_in_use_says_who_uses_it_and_what_to_do(self):
        path = self.image()
        with self.server(path):
            done = run(BYRE, "check", path, ok=(1,))
            self.assertIn("SIGUSR1", done.text)


if __name__ == "__main__":
    main()
