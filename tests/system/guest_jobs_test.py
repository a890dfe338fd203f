# SPDX-License-Identifier: Apache-2.0
"""A real Linux works on a disk of `byre daemon`, with new file systems, dd, fstrim and checksums, while the disk is snapshotted,
committed, mirrored, streamed and backed up below it.

The guest compares what it has written all the time, past its cache.  Afterwards its files are looked for in the images, with the sums
that it has told: the disk has those of the end, a backup those that were there when it began.

BYRE_SECONDS says how long the guest works at least; `./run nightly guest_jobs` takes half an hour.
"""
import hashlib
import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from guest import Guest  # noqa: E402
from harness import BYRE, MIB, Case, main, only_byre, qemu_img, run, until  # noqa: E402
from qmp import Daemon  # noqa: E402

SECONDS = int(os.environ.get("BYRE_SECONDS", "0"))
SIZE = 192 * MIB
PATIENCE = 600


class Busy:
    """The guest, and what it has said so far."""

    def __init__(self, case, sock, name):
        self.case = case
        self.guest = Guest("busy", sock, name)
        case.addCleanup(self.guest.kill)
        self.round = -1
        self.sums = {}  # round: {file: sum}
        self.told = {}
        self.left = None
        self.failure = None
        self.over = False
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self):
        try:
            for words in self.guest.lines(patience=10 ** 6):
                if words[0] == "step" and words[1] != "rc=0":
                    raise AssertionError(f"{words}\n{self.guest.console()}")
                if words[0] == "sum":
                    self.told[words[2]] = words[1]
                elif words[0] == "round":
                    self.sums[int(words[1])], self.told = self.told, {}
                    self.round = int(words[1])
                elif words[0] == "left":
                    self.left = range(int(words[1]), int(words[2]) + 1)
                self.over = self.over or words[0] == "end"
        except BaseException as error:  # pylint: disable=broad-exception-caught
            self.failure = error

    def look(self):
        if self.failure:
            raise self.failure
        return True

    def after(self, rounds=1):
        """Waits for so many more rounds; gives the last of them."""
        wanted = self.round + rounds
        until(lambda: self.look() and self.round >= wanted, f"round {wanted}", PATIENCE)
        return self.round

    def lasting(self):
        """Waits for a round whose files stay for some time, and gives it: the next new file system is far away."""
        self.after()
        until(lambda: self.look() and self.round % 5 == 1, "a round that lasts", PATIENCE)
        return self.round

    def stop(self):
        """What is on the disk in the end: {file: sum}."""
        self.guest.say("stop")
        self.thread.join(PATIENCE)
        self.look()
        self.case.assertTrue(self.over, self.guest.console())
        return {file: digest for number in self.left for file, digest in self.sums[number].items()}


class GuestDisk(Case):
    def begin(self, *words):
        self.daemon = Daemon(self.folder, "byre", "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}", *words)
        self.addCleanup(self.daemon.kill)
        self.monitor = self.daemon.monitor()
        self.made = 0

    def make(self, below=None, *options):
        name = f"n{self.made}"
        self.made += 1
        over = ("-u", "-b", self.path(f"{below}.qcow2"), "-F", "qcow2") if below else ()
        qemu_img("create", "-q", "-f", "qcow2", *options, *over, self.path(f"{name}.qcow2"), SIZE)
        return name

    def add(self, name, **more):
        self.monitor.do("blockdev-add", {"driver": "qcow2", "node-name": name, "discard": "unmap",
                                         "file": {"driver": "file", "filename": self.path(f"{name}.qcow2"), "discard": "unmap"}, **more})
        return name

    def drop(self, *names):
        for name in names:
            self.monitor.do("blockdev-del", {"node-name": name})
            os.unlink(self.path(f"{name}.qcow2"))

    def serve(self, node, name="disk"):
        self.monitor.do("block-export-add", {"type": "nbd", "id": name, "node-name": node, "name": name, "writable": name == "disk"})

    def snapshot(self, node):
        overlay = self.add(self.make(node), backing=None)
        self.monitor.do("blockdev-snapshot", node=node, overlay=overlay)
        return overlay

    def ended(self, job):
        def look():
            self.guest.look()
            info = next(one for one in self.monitor.do("query-jobs") if one["id"] == job)
            return info if info["status"] == "concluded" else None
        info = until(look, f"the end of {job}", PATIENCE)
        self.monitor.do("job-dismiss", id=job)
        self.monitor.events.clear()
        self.assertIsNone(info.get("error"))

    def ready(self, job):
        until(lambda: self.guest.look() and self.monitor.do("query-jobs")[0]["status"] == "ready", f"{job} to be ready", PATIENCE)

    def has(self, raw, sums, *, replay):
        """A file system with these files.  `replay`: it is one in use, whose journal comes first."""
        if replay:
            run("e2fsck", "-fp", raw, ok=(0, 1))
        run("e2fsck", "-fn", raw)
        self.assertGreater(len(sums), 20)
        script = "".join(f"dump /{file} {self.path('out')}.{number}\n" for number, file in enumerate(sums))
        run("debugfs", "-f", "-", raw, data=script.encode())
        for number, (file, digest) in enumerate(sums.items()):
            path = f"{self.path('out')}.{number}"
            with open(path, "rb") as content:
                self.assertEqual(hashlib.sha256(content.read()).hexdigest(), digest, file)
            os.unlink(path)

    def image_has(self, name, sums, *, replay):
        for tool, image in ((["qemu-img"], self.path("qemu.raw")), ([BYRE], self.path("own.raw"))):
            run(*tool, "convert", "-f", "qcow2", "-O", "raw", self.path(f"{name}.qcow2"), image)
            self.has(image, sums, replay=replay)
            os.unlink(image)

    def end(self, *chain):
        sums = self.guest.stop()
        self.monitor.do("quit")
        self.assertEqual(self.daemon.end(None), 0)
        for name in chain:
            self.assert_sound(self.path(f"{name}.qcow2"))
        self.image_has(chain[-1], sums, replay=False)


@only_byre
class LinuxGuest(GuestDisk):
    def commit(self):
        """Two snapshots, of which the lower one is committed first, then the disk itself."""
        middle = self.snapshot(self.disk)
        self.guest.after()
        top = self.snapshot(middle)
        self.guest.after()
        self.monitor.do("block-commit", {"job-id": "c", "device": top, "top-node": middle, "base-node": self.disk, "auto-dismiss": False,
                                         "backing-file": self.path(f"{self.disk}.qcow2")})
        self.ended("c")
        self.drop(middle)
        self.monitor.do("block-commit", {"job-id": "c", "device": top, "auto-dismiss": False})
        self.ready("c")
        self.guest.after()
        self.monitor.do("job-complete", id="c")
        self.ended("c")
        self.guest.after()
        self.drop(top)

    def mirror(self):
        target = self.add(self.make(None, "-o", "cluster_size=16k"))
        self.monitor.do("blockdev-mirror", {"job-id": "m", "device": self.disk, "target": target, "sync": "full", "auto-dismiss": False})
        self.ready("m")
        self.guest.after()
        self.monitor.do("block-job-change", {"id": "m", "type": "mirror", "copy-mode": "write-blocking"})
        self.monitor.do("job-complete", id="m")
        self.ended("m")
        self.drop(self.disk)
        self.disk = target
        self.guest.after()

    def stream(self):
        top = self.snapshot(self.disk)
        self.guest.after()
        self.monitor.do("block-stream", {"job-id": "s", "device": top, "auto-dismiss": False})
        self.ended("s")
        self.drop(self.disk)
        self.disk = top
        self.guest.after()

    def backup(self):
        """One that is full, and one with what has changed since."""
        full = self.add(self.make())
        started = self.guest.lasting()
        begin = {"job-id": "b", "device": self.disk, "auto-dismiss": False}
        self.monitor.do("transaction", actions=[
            {"type": "block-dirty-bitmap-add", "data": {"node": self.disk, "name": "daily"}},
            {"type": "blockdev-backup", "data": {**begin, "target": full, "sync": "full"}}])
        self.ended("b")
        self.monitor.do("blockdev-del", {"node-name": full})
        self.assert_sound(self.path(f"{full}.qcow2"))
        self.image_has(full, self.guest.sums[started], replay=True)
        more = self.add(self.make(full), backing=None)
        started = self.guest.lasting()
        self.monitor.do("blockdev-backup", {**begin, "target": more, "sync": "incremental", "bitmap": "daily"})
        self.ended("b")
        self.monitor.do("block-dirty-bitmap-remove", {"node": self.disk, "name": "daily"})
        self.monitor.do("blockdev-del", {"node-name": more})
        self.assert_sound(self.path(f"{more}.qcow2"))
        self.image_has(more, self.guest.sums[started], replay=True)
        for name in (full, more):
            os.unlink(self.path(f"{name}.qcow2"))

    def test_jobs_below_a_guest(self):
        self.begin()
        base = self.make()
        self.disk = self.make(base)
        self.add(base)
        self.add(self.disk, backing=base)
        self.serve(self.disk)
        self.guest = Busy(self, self.path("nbd"), "disk")
        began = time.monotonic()
        self.guest.after()
        while True:
            self.backup()
            self.mirror()
            self.commit()
            self.stream()
            if time.monotonic() - began > SECONDS:
                break
        print(f"\n{self.guest.round + 1} rounds of the guest in {time.monotonic() - began:.0f} s", file=sys.stderr)
        self.end(self.disk)

    def test_a_backup_that_is_pulled_from_below_a_guest(self):
        """The instant is that in which the guest's disk was taken: what was on it before, read while the guest writes."""
        self.begin()
        disk = self.add(self.make())
        temp = self.add(self.make())
        self.serve(disk)
        self.guest = Busy(self, self.path("nbd"), "disk")
        self.guest.after(2)
        before = self.guest.stop()
        self.monitor.do("block-export-del", id="disk", mode="hard")
        self.monitor.event("BLOCK_EXPORT_DELETED")
        self.monitor.do("blockdev-add", {"driver": "copy-before-write", "node-name": "cbw", "file": disk, "target": temp,
                                         "on-cbw-error": "break-snapshot"})
        self.monitor.do("blockdev-add", {"driver": "snapshot-access", "node-name": "view", "file": "cbw"})
        self.serve("cbw")
        self.serve("view", "view")
        self.guest = Busy(self, self.path("nbd"), "disk")
        for turn in range(2):
            self.guest.after()
            run("nbdcopy", f"nbd+unix:///view?socket={self.path('nbd')}", self.path("pulled.raw"))
            self.guest.look()
            self.has(self.path("pulled.raw"), before, replay=False)
        self.monitor.do("block-export-del", id="view", mode="hard")
        self.monitor.event("BLOCK_EXPORT_DELETED")
        self.monitor.do("blockdev-del", {"node-name": "view"})
        self.guest.after()
        self.end(disk)


if __name__ == "__main__":
    main()
