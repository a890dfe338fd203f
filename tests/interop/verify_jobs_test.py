#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`byre ctl mirror` and `backup --verify`: a copy whose file somebody else spoils fails its job, and nobody is led there; a sound one passes,
whatever guests do meanwhile."""
import json
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BYRE, MIB, main, qemu_img, run, until  # noqa: E402
from ctl_test import Ctl  # noqa: E402
from jobs_test import SIZE, qcow2  # noqa: E402
from own_jobs_test import BIG, FastWriter  # noqa: E402


def piece(number):
    """A mebibyte that is like no other."""
    return random.Random(number).randbytes(MIB)


class Spoilt(Ctl):
    def begin(self, kind):
        """A disk and a target, as nodes."""
        with open(self.path("disk.raw"), "wb") as file:
            for number in range(SIZE // MIB):
                file.write(piece(number))
        run(BYRE, "convert", "-O", "qcow2", self.path("disk.raw"), self.path("disk.qcow2"))
        target = self.path(f"target.{kind}")
        qemu_img("create", "-q", "-f", kind, target, str(SIZE))
        self.add(qcow2("disk", self.path("disk.qcow2")))
        self.add(qcow2("target", target) if kind == "qcow2" else {"driver": "raw", "node-name": "target",
                                                                  "file": {"driver": "file", "filename": target}})
        self.ctl("export", "add", "disk", "--id", "disk", "-x", "disk", "--writable")
        return target

    def add(self, node):
        self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": node}))

    def spoil(self, target, number):
        """When that mebibyte is copied, and another one, another process changes a byte of it in the file."""
        def place():
            with open(target, "rb") as file:
                return file.read().find(piece(number)[:512])
        until(lambda: place() >= 0, "a piece in the target")
        until(lambda: self.job()["offset"] >= (number + 2) * MIB, "another one")
        self.assertIn(self.job()["status"], ("running", "paused"))
        self.assertEqual(self.job()["x-byre-verified"], 0)
        run("dd", f"of={target}", "bs=1", f"seek={place() + 700}", "conv=notrunc", "status=none", data=bytes([piece(number)[700] ^ 1]))

    def job(self):
        return self.json("jobs")[0]

    def found(self, done, number):
        for part in ("verify: the target", "(node 'target')", "not what was read from", f" at {number * MIB:#x}, ", " bytes: ",
                     "do not use this copy", self.path("disk.qcow2")):
            self.assertIn(part, done.text)

    def guest_reads_the_source(self):
        """The disk is what it was, and guests write to it."""
        run("qemu-io", "-f", "raw", "-c", "write -P 9 1M 64k", "-c", "flush", f"nbd+unix:///disk?socket={self.path('nbd')}")
        self.ctl("qmp", '{"execute": "quit"}')
        self.assertEqual(self.daemon.end(None), 0, self.daemon.log)
        run("qemu-io", "-r", "-c", "read -P 9 1M 64k", self.path("disk.qcow2"))
        self.assertIn("No errors were found", qemu_img("check", self.path("disk.qcow2")).text)

    def again(self):
        self.daemon.kill()
        for name in ("qmp", "nbd", "disk.qcow2"):
            if os.path.exists(self.path(name)):
                os.unlink(self.path(name))
        self.setUp()

    def test_a_backup_that_is_spoilt_fails(self):
        for kind in ("raw", "qcow2"):
            with self.subTest(kind=kind):
                target = self.begin(kind)
                self.ctl("backup", "disk", "target", "--verify", "--job", "b", "--speed", "2M")
                self.spoil(target, 2)
                self.ctl("speed", "b", "100G")
                self.found(self.ctl("wait", "b", ok=(74,)), 2)
                self.guest_reads_the_source()
            self.again()

    def test_a_mirror_that_is_spoilt_leads_nobody_there(self):
        for kind, mode in (("raw", "background"), ("qcow2", "background"), ("qcow2", "write-blocking")):
            with self.subTest(kind=kind, mode=mode):
                target = self.begin(kind)
                self.ctl("mirror", "disk", "target", "--verify", "--job", "m", "--speed", "2M", "--copy-mode", mode)
                self.spoil(target, 2)
                self.ctl("speed", "m", "100G")
                until(lambda: self.job()["status"] == "concluded", "an end, also if it has been ready")
                self.found(self.ctl("wait", "m", ok=(74,)), 2)
                self.guest_reads_the_source()
            self.again()

    def test_also_behind_a_pause(self):
        target = self.begin("raw")
        self.ctl("backup", "disk", "target", "--verify", "--job", "b", "--speed", "1M")
        until(lambda: self.job()["offset"] >= 3 * MIB, "three mebibytes")
        self.ctl("pause", "b")
        until(lambda: self.job()["status"] == "paused", "a pause")
        self.spoil(target, 0)
        self.ctl("speed", "b", "100G")
        self.ctl("resume", "b")
        self.found(self.ctl("wait", "b", ok=(74,)), 0)

    def test_without_it_nobody_looks(self):
        target = self.begin("raw")
        self.ctl("backup", "disk", "target", "--wait")
        self.assertNotIn("x-byre-verified", json.dumps(self.json("jobs")))
        self.assertTrue(os.path.exists(target))


class Sound(Ctl):
    def test_backups_pass(self):
        self.chain()
        client = self.serve()
        for number, options in enumerate(((), ("--compress",), ("--sync", "top"))):
            held = client.pause()
            name = f"copy{number}.qcow2"
            self.ctl("backup", "top", self.path(name), "--job", "save", "--verify", *options)
            client.resume()
            self.settle(client, 200)
            self.assertIn("job 'save' is done, and its copy was verified", self.ctl("wait", "save").text)
            if "top" not in options:
                self.expect(name, held, backing=None)
        self.expect("top.qcow2", self.finish(client))
        self.expect(name, held, backing="mid.qcow2")

    def test_large_clusters_are_compressed_whole(self):
        """A cluster is more than a backup copies at a time otherwise."""
        self.chain()
        qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", self.path("large.qcow2"), str(SIZE))
        self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": qcow2("large", self.path("large.qcow2"))}))
        done = self.ctl("backup", "top", "large", "--compress", "--verify", "--wait")
        self.assertIn("is done, and its copy was verified", done.text)
        self.ctl("qmp", '{"execute": "quit"}')
        self.assertEqual(self.daemon.end(None), 0, self.daemon.log)
        self.assertIn("No errors were found", qemu_img("check", self.path("large.qcow2")).text)
        self.assertIn("Images are identical.", qemu_img("compare", self.path("top.qcow2"), self.path("large.qcow2")).text)

    def test_an_incremental_backup_passes(self):
        self.chain()
        self.ctl("bitmap", "add", "top", "daily", "--granularity", "64k")
        client = self.serve()
        first = client.pause()
        self.ctl("backup", "top", self.path("full.qcow2"), "--wait")
        self.expect("full.qcow2", first)
        client.resume()
        self.settle(client, 50)
        second = client.pause()
        self.ctl("backup", "top", self.path("more.qcow2"), "--bitmap", "daily", "--job", "more", "--verify")
        client.resume()
        self.assertIn("its copy was verified", self.ctl("wait", "more").text)
        self.finish(client)
        qemu_img("rebase", "-u", "-b", self.path("full.qcow2"), "-F", "qcow2", self.path("more.qcow2"))
        self.expect("more.qcow2", second)

    def test_mirrors_pass(self):
        for options in ((), ("--copy-mode", "write-blocking"), ("--sync", "top")):
            with self.subTest(options):
                self.chain()
                client = self.serve()
                self.ctl("mirror", "top", self.path("copy.qcow2"), "--verify", *options, "--wait")
                self.settle(client, 200)
                self.assertIn("x-byre-verified", self.json("jobs")[0])
                self.assertIn("verified", self.ctl("jobs").text)
                self.ctl("complete", "mirror-top")
                self.assertIn("is done, and its copy was verified", self.ctl("wait", "mirror-top").text)
                self.settle(client, 100)
                self.ctl("close", "top")
                self.settle(client, 100)
                self.expect("copy.qcow2", self.finish(client), backing="mid.qcow2" if "top" in options else None)
            self.daemon.kill()
            for name in ("base.qcow2", "mid.qcow2", "top.qcow2", "copy.qcow2", "qmp", "nbd"):
                if os.path.exists(self.path(name)):
                    os.unlink(self.path(name))
            self.setUp()

    def test_guests_that_write_all_the_time_are_led_there(self):
        """More is written during each round than may be compared while they wait: they help."""
        for options in ((), ("--copy-mode", "write-blocking")):
            with self.subTest(options):
                qemu_img("create", "-q", "-f", "qcow2", self.path("top.qcow2"), str(BIG))
                self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": qcow2("top", self.path("top.qcow2"))}))
                self.ctl("export", "add", "top", "--id", "disk", "-x", "disk", "--writable")
                writer = FastWriter(f"nbd+unix:///disk?socket={self.path('nbd')}").start()
                self.addCleanup(writer.stopped.set)
                until(lambda: writer.written >= BIG // MIB or writer.failure, "a disk that is full of data")
                done = self.ctl("mirror", "top", self.path("copy.qcow2"), "--verify", *options, "--converge", "auto", "--speed", "100G",
                                "--wait", "--pivot")
                self.assertIn("is done, and its copy was verified", done.text)
                before = writer.written
                until(lambda: writer.written > before + 20 or writer.failure, "guests that go on")
                self.expect("copy.qcow2", self.finish(writer), backing=None)
            self.daemon.kill()
            for name in ("top.qcow2", "copy.qcow2", "qmp", "nbd"):
                if os.path.exists(self.path(name)):
                    os.unlink(self.path(name))
            self.setUp()

    def test_where_it_cannot_hold_it_is_refused(self):
        self.chain()
        qemu_img("create", "-q", "-f", "qcow2", self.path("copy.qcow2"), str(SIZE))
        self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": qcow2("copy", self.path("copy.qcow2"))}))
        for kind in ("mirror", "backup"):
            self.refused(kind, "top", "copy", "--verify", "--sync", "none", code=64, says=("sync 'none'", "cannot be verified"))
        for kind in ("commit", "stream"):
            self.refused(kind, "top", "--verify", code=64, says="--verify")
        self.assertEqual(self.json("jobs"), [])


if __name__ == "__main__":
    main()
