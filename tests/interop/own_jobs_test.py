#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What jobs do under byre's name, and not under qemu-storage-daemon's: copies that guests overtake say so, and converge when they are
told to; a backup whose target is full or slow fails, and the guest goes on."""
import json
import os
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BYRE, MIB, main, qemu_img, run, until  # noqa: E402
from ctl_test import Ctl  # noqa: E402
from jobs_test import SIZE, qcow2  # noqa: E402
import nbd  # noqa: E402

BIG = 48 * MIB  # A round that copies all of it leaves more than what is copied while guests wait.
SLOW = "24M"


class FastWriter:
    """Writes the disk from its begin to its end, again and again."""

    def __init__(self, uri):
        self.uri = uri
        self.written = 0  # MiB
        self.stopped = threading.Event()
        self.failure = None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            handle = nbd.NBD()
            handle.connect_uri(self.uri)
            while not self.stopped.is_set():
                handle.pwrite(bytes([self.byte(self.written)]) * MIB, self.written * MIB % BIG)
                self.written += 1
            handle.flush()
            handle.shutdown()
        except Exception as error:  # pylint: disable=broad-exception-caught
            self.failure = error

    @staticmethod
    def byte(piece):
        return piece // (BIG // MIB) % 255 + 1

    def start(self):
        self.thread.start()
        return self

    def stop(self):
        self.stopped.set()
        self.thread.join()
        if self.failure:
            raise self.failure
        pieces = BIG // MIB
        return b"".join(bytes([self.byte(max(range(at, self.written, pieces)))]) * MIB for at in range(pieces))


class Converging(Ctl):
    """Trap 16: a copy that never becomes ready, because guests write faster than it copies."""

    def begin(self, *names):
        below = None
        for name in names:
            over = ("-b", self.path(f"{below}.qcow2"), "-F", "qcow2") if below else ()
            qemu_img("create", "-q", "-f", "qcow2", *over, self.path(f"{name}.qcow2"), str(BIG))
            self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": qcow2(name, self.path(f"{name}.qcow2"), below)}))
            below = name
        self.ctl("export", "add", below, "--id", "disk", "-x", "disk", "--writable")
        writer = FastWriter(f"nbd+unix:///disk?socket={self.path('nbd')}").start()
        self.addCleanup(writer.stopped.set)
        until(lambda: writer.written >= BIG // MIB or writer.failure, "a disk that is full of data")
        return writer

    def job(self):
        return self.json("jobs")[0]

    def test_a_mirror_that_is_overtaken_says_so(self):
        writer = self.begin("top")
        self.ctl("mirror", "top", self.path("copy.qcow2"), "--speed", SLOW, "--job", "m")
        waiting = subprocess.Popen([BYRE, "ctl", "wait", "m", "-s", self.socket], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(waiting.stdout.close)
        self.addCleanup(waiting.stderr.close)
        self.assertIn(b"job 'm': guests write faster than it copies, so it may never be ready: 'byre ctl speed m'", waiting.stderr.readline())
        self.assertEqual(self.job()["status"], "running")
        self.assertNotIn("x-byre-went-write-blocking", self.job())
        # Each round of copying is looked at anew.
        until(lambda: self.job().get("x-byre-overtaken"), "a round that is overtaken")
        until(lambda: "guests write faster than it copies" in self.ctl("jobs").text, "the same for people")
        model = writer.stop()  # Now it can end.
        self.assertEqual(waiting.wait(60), 0)
        self.assertIn(b"is ready", waiting.stdout.read())
        self.ctl("complete", "m")
        self.ctl("wait", "m")
        self.finish_with("copy.qcow2", model)

    def test_a_mirror_that_is_to_converge_gets_ready(self):
        writer = self.begin("top")
        done = self.ctl("mirror", "top", self.path("copy.qcow2"), "--speed", SLOW, "--converge", "auto", "--job", "m", "--wait")
        self.assertIn("so they write to both disks now", done.text)
        self.assertIn("job 'm' is ready", done.text)
        job = self.job()
        self.assertEqual((job["status"], job["x-byre-went-write-blocking"]), ("ready", True))
        self.assertIn("guests write to both disks", self.ctl("jobs").text)
        before = writer.written
        until(lambda: writer.written > before + 20 or writer.failure, "guests that go on")
        self.ctl("complete", "m")
        self.ctl("wait", "m")
        until(lambda: writer.written > before + 40 or writer.failure, "guests that go on")
        self.finish_with("copy.qcow2", writer.stop())

    def test_so_does_a_commit(self):
        writer = self.begin("base", "top")
        done = self.ctl("commit", "top", "--speed", SLOW, "--converge", "auto", "--job", "c", "--wait")
        self.assertIn("so they write to both disks now", done.text)
        self.assertIn("job 'c' is done", done.text)
        self.finish_with("base.qcow2", writer.stop())

    def finish_with(self, name, model):
        self.ctl("qmp", '{"execute": "quit"}')
        self.assertEqual(self.daemon.end(None), 0, self.daemon.log)
        self.expect(name, model)

    def test_where_it_makes_no_sense(self):
        self.chain()
        self.refused("commit", "top", "--top", "mid", "--base", "base", "--converge", "auto", code=64,
                     says="is for the commit of the disk itself")
        self.refused("commit", "top", "--converge", "perhaps", code=64, says="perhaps")
        self.refused("mirror", "top", self.path("copy.qcow2"), "--converge", "perhaps", code=64, says="perhaps")
        self.assertFalse(os.path.exists(self.path("copy.qcow2")))
        self.assertEqual(self.json("jobs"), [])


class UnderQemusName(Ctl):
    kind = "link"

    def test_nothing_is_there_that_qemu_does_not_have(self):
        self.assertNotIn("x-byre", json.dumps(self.qmp("query-qmp-schema")))
        self.chain()
        for words in (("commit", "top", "--converge", "auto"), ("mirror", "top", self.path("copy.qcow2"), "--converge", "auto"),
                      ("backup", "top", self.path("copy.qcow2"), "--cbw-timeout", "3"),
                      ("backup", "top", self.path("copy.qcow2"), "--verify"), ("mirror", "top", self.path("copy.qcow2"), "--verify")):
            self.refused(*words, code=69, says=("x-byre-", "is unexpected: only a daemon that runs as `byre daemon`"))
            self.assertFalse(os.path.exists(self.path("copy.qcow2")))

    def test_a_full_target_fails_the_guest_as_with_qemu(self):
        self.assertEqual(Backups.spoil(self, FULL), 1)


class UnderItsOwnName(Ctl):
    def test_the_schema_has_it(self):
        schema = json.dumps(self.qmp("query-qmp-schema"))
        for name in ("x-byre-converge", "x-byre-completing", "x-byre-overtaken", "x-byre-on-cbw-error", "x-byre-cbw-timeout", "x-byre-verify", "x-byre-verified"):
            self.assertIn(name, schema)


FULL = {"driver": "blkdebug", "node-name": "target", "inject-error": [{"event": "none", "iotype": "write", "errno": 28, "sector": 4 * MIB // 512}]}


class Backups(Ctl):
    def spoil(self, target, *options):
        """Begins a backup `b` that copies the first MiB only, and a guest writes what the target does not take.  How many
        writes of the guest fail."""
        self.chain()
        qemu_img("create", "-q", "-f", "qcow2", self.path("copy.qcow2"), str(SIZE))
        below = qcow2("below", self.path("copy.qcow2"))
        self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": {**target, "image": below} if target["driver"] == "blkdebug" else target}))
        self.ctl("export", "add", "top", "--id", "disk", "-x", "disk", "--writable")
        run("qemu-io", "-f", "raw", "-c", "write -P 7 0 8M", f"nbd+unix:///disk?socket={self.path('nbd')}")
        self.ctl("backup", "top", "target", "--job", "b", "--speed", "16k", *options)
        done = run("qemu-io", "-f", "raw", "-c", "write -P 9 4M 64k", "-c", "write -P 9 6M 64k", "-c", "flush",
                   f"nbd+unix:///disk?socket={self.path('nbd')}", ok=None)
        return done.text.count("write failed")

    def ends(self, says, code):
        """The job has failed, long before its speed would let it go on."""
        begin = time.monotonic()
        done = self.ctl("wait", "b", ok=(code,))
        self.assertLess(time.monotonic() - begin, 30)
        self.assertIn(says, done.text)
        self.ctl("close", "target", ok=None)  # One that was given up says so.
        nodes = self.json("nodes")
        self.assertNotIn("target", [node["node-name"] for node in nodes])
        self.assertNotIn("copy-before-write", [node["drv"] for node in nodes])
        self.ctl("qmp", '{"execute": "quit"}')
        self.assertEqual(self.daemon.end(None), 0, self.daemon.log)
        self.assertIn("No errors were found", qemu_img("check", self.path("top.qcow2")).text)

    def test_a_full_target_fails_the_backup_at_once(self):
        self.assertEqual(self.spoil(FULL), 0)
        self.ends("No space left on device", 79)

    def test_also_one_that_only_keeps_what_is_overwritten(self):
        self.assertEqual(self.spoil(FULL, "--sync", "none"), 0)
        self.ends("No space left on device", 79)

    def test_the_guest_fails_where_that_is_asked_for(self):
        self.assertEqual(self.spoil(FULL, "--on-cbw-error", "break-guest-write"), 1)
        self.assertEqual(self.json("jobs")[0]["status"], "running")
        self.ctl("cancel", "b")

    def slow(self, seconds):
        """The target is another server's disk, whose answers to large writes take long."""
        image = self.path("slow.raw")
        with open(image, "wb") as file:
            file.truncate(SIZE)
        sock = self.path("slow")
        server = subprocess.Popen(["nbdkit", "-f", "-U", sock, "--filter=delay", "file", image, f"delay-write={seconds}", f"delay-zero={seconds}"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        until(lambda: os.path.exists(sock), "the slow server")
        return {"driver": "nbd", "node-name": "target", "server": {"type": "unix", "path": sock}}

    def test_a_slow_target_fails_the_backup_when_its_time_is_over(self):
        begin = time.monotonic()
        self.assertEqual(self.spoil(self.slow(12), "--cbw-timeout", "1"), 0)
        self.assertLess(time.monotonic() - begin, 10)  # The guest did not wait for the target.
        self.ends("not done within 1 seconds (cbw-timeout)", 74)

    def test_one_that_is_only_a_little_slow_does_not(self):
        self.assertEqual(self.spoil(self.slow(1)), 0)
        self.assertEqual(self.json("jobs")[0]["status"], "running")
        self.ctl("cancel", "b")
        self.ctl("wait", "b", ok=(1,))

    def test_the_time_is_thirty_seconds_unless_it_is_said(self):
        begin = time.monotonic()
        self.assertEqual(self.spoil(self.slow(60)), 0)
        self.assertGreater(time.monotonic() - begin, 25)
        self.assertLess(time.monotonic() - begin, 55)
        self.ends("not done within 30 seconds (cbw-timeout)", 74)


if __name__ == "__main__":
    main()
