# SPDX-License-Identifier: Apache-2.0
"""Commit, mirror, backup and stream of a served disk that fio and a stamping writer write, zero, trim and read all the time.

Images begin as QEMU made them.  Jobs are driven over QMP and by `byre ctl`.  Guests check what they read; backups and copies are
compared with the instant that they are of; in the end the real qemu-img finds each image sound, and the disk holds to the byte
what its clients saw last.

BYRE_SECONDS says how long each of the tests goes on (4); BYRE_SEED what is drawn (1).  `./run nightly jobs_under_load`
has them follow each other in any order for an hour.
"""
import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, KIB, MIB, Case, main, only_byre, qemu_img, run, until  # noqa: E402
from load import LOAD_SIZE, STAMPED, Load  # noqa: E402
from qmp import Daemon  # noqa: E402
from stamps import Wrong  # noqa: E402

SECONDS = int(os.environ.get("BYRE_SECONDS", "4"))
KINDS = (("-o", "cluster_size=4k"), ("-o", "extended_l2=on,cluster_size=128k"), ("-o", "compat=0.10"), ("-o", "lazy_refcounts=on"),
         (), ("-o", "refcount_bits=1"))
# The end of the disk, where no guest writes: what QEMU put there is there in the end.
REST = LOAD_SIZE - 8 * MIB


class Disk(Case):
    """A daemon, a chain of images, the load on it, and what can happen to it."""

    def setUp(self):
        super().setUp()
        self.seed = int(os.environ.get("BYRE_SEED", "1"))
        self.draw = random.Random(self.seed)
        self.daemon = Daemon(self.folder, "byre", "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
                             "--chardev", f"socket,id=ctl,path={self.path('ctl')},server=on,wait=off", "--monitor", "chardev=ctl")
        self.addCleanup(self.daemon.kill)
        self.monitor = self.daemon.monitor()
        self.made = 0
        self.told = {}  # What was done, how often.

    # --- The disk ---------------------------------------------------------------------------------

    def file(self, name):
        return self.path(f"{name}.qcow2")

    def make(self, below=None, kind=None):
        """A new image, by QEMU, of some kind; its name.  What is below may be in use."""
        name = f"n{self.made}"
        self.made += 1
        over = ("-u", "-b", self.file(below), "-F", "qcow2") if below else ()
        qemu_img("create", "-q", "-f", "qcow2", *(self.draw.choice(KINDS) if kind is None else kind), *over, self.file(name), LOAD_SIZE)
        return name

    def add(self, name, **more):
        self.monitor.do("blockdev-add", {"driver": "qcow2", "node-name": name, "discard": "unmap",
                                         "file": {"driver": "file", "filename": self.file(name), "discard": "unmap"}, **more})
        return name

    def close(self, name):
        """Also from the disk: nobody uses it any more."""
        self.monitor.do("blockdev-del", {"node-name": name})

    def forget(self, *names):
        for name in names:
            os.unlink(self.file(name))

    def begin(self):
        """A chain of two, both with data, that is served; the load begins."""
        base = self.make()
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 1 0 {STAMPED + 8 * MIB}", "-c", f"write -z 0 {STAMPED}", "-c", f"write -P 2 {REST} 8M",
            self.file(base))
        top = self.make(base)
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 3 {STAMPED + 4 * MIB} 8M", "-c", f"write -P 4 {REST + MIB} 64k", self.file(top))
        self.add(base)
        self.add(top, backing=base)
        self.chain = [base, top]
        self.monitor.do("block-export-add", {"type": "nbd", "id": "disk", "node-name": top, "name": "disk", "writable": True})
        self.load = Load(self, f"nbd+unix:///disk?socket={self.path('nbd')}", self.seed).start()
        self.load.settle()

    @property
    def top(self):
        return self.chain[-1]

    def snapshot(self):
        overlay = self.add(self.make(self.top), backing=None)
        self.monitor.do("blockdev-snapshot", node=self.top, overlay=overlay)
        self.chain.append(overlay)
        self.load.settle(self.draw.choice((50, 400)))

    def ended(self, job, error=None):
        """The job comes to its end while guests go on."""
        def look():
            self.load.look()
            info = next(one for one in self.monitor.do("query-jobs") if one["id"] == job)
            return info if info["status"] == "concluded" else None
        info = until(look, f"the end of {job}")
        self.monitor.do("job-dismiss", id=job)
        self.monitor.events.clear()
        self.assertEqual(info.get("error"), error)

    def is_ready(self, job):
        def look():
            self.load.look()
            return next(one for one in self.monitor.do("query-jobs") if one["id"] == job)["status"] == "ready"
        until(look, f"{job} to be ready")

    def ctl(self, *words):
        return run(BYRE, "ctl", "--socket", self.path("ctl"), *words)

    def sound(self, name):
        """The image alone: what lies below it may be in use."""
        path = "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": self.file(name)}, "backing": None})
        self.assertIn("No errors were found", qemu_img("check", path).text)
        run(BYRE, "check", "-q", path)
        self.reference(self.file(name), decode=False)

    def finish(self):
        """What the clients saw last is what the images hold, and they are sound."""
        seen = self.load.stop()
        self.monitor.do("quit")
        self.assertEqual(self.daemon.end(None), 0, self.path("log"))
        for name in self.chain:
            self.sound(name)
        self.assert_compares(seen, self.file(self.top))
        with open(seen, "rb") as file:
            file.seek(REST)
            self.assertEqual(file.read(), b"\x02" * MIB + b"\x04" * 64 * KIB + b"\x02" * (7 * MIB - 64 * KIB))
        told = ", ".join(f"{count} {what}" for what, count in sorted(self.told.items()))
        print(f"\n{self._testMethodName}: {told}; {self.load.stamps.requests} stamped requests, "
              f"{sum(one.requests for one in self.load.fio)} of fio", file=sys.stderr)

    def count(self, what):
        self.told[what] = self.told.get(what, 0) + 1

    # --- What happens to it -----------------------------------------------------------------------

    def commit(self):
        """Below the disk, and of the disk itself with its pivot."""
        self.snapshot()
        self.snapshot()
        high, base = self.chain[-2], self.chain[0]
        self.monitor.do("block-commit", {"job-id": "c", "device": self.top, "top-node": high, "base-node": base, "auto-dismiss": False,
                                         "backing-file": self.file(base)})
        self.ended("c")
        gone, self.chain = self.chain[1:-1], [base, self.top]
        self.load.settle(50)
        for name in reversed(gone):
            self.close(name)
        self.forget(*gone)
        self.count("commits below the disk")
        if self.draw.random() < 0.5:
            self.ctl("commit", self.top, "--base", base, "--wait")
        else:
            self.monitor.do("block-commit", {"job-id": "c", "device": self.top, "base-node": base, "auto-dismiss": False})
            self.is_ready("c")
            self.load.settle(self.draw.choice((1, 200)))
            self.monitor.do("job-complete", id="c")
            self.ended("c")
        gone = self.chain.pop()
        self.load.settle(50)
        self.close(gone)
        self.sound(gone)  # It lost nothing: entries are left as they were.
        self.forget(gone)
        self.count("commits with pivot")

    def mirror(self):
        """To another image, in each way of copying; guests go with it."""
        way = self.draw.choice(("background", "write-blocking", "changed", "ctl", "top"))
        if way == "top" and len(self.chain) == 1:
            self.snapshot()
        kept, old = (self.chain[:-1], self.chain[-1:]) if way == "top" else ([], self.chain)
        if way == "ctl":
            target = f"j{self.made}-target"  # As the command calls it.
            self.made += 1
            self.ctl("mirror", self.top, self.file(target), "--job", target.removesuffix("-target"), "--wait", "--pivot")
        else:
            target = self.add(self.make(*kept[-1:]), **({"backing": kept[-1]} if kept else {}))
            self.monitor.do("blockdev-mirror", {
                "job-id": "m", "device": self.top, "target": target, "sync": "top" if kept else "full", "auto-dismiss": False,
                "copy-mode": "write-blocking" if way == "write-blocking" else "background"})
            self.is_ready("m")
            self.load.settle(self.draw.choice((1, 200)))
            if way == "changed":
                self.monitor.do("block-job-change", {"id": "m", "type": "mirror", "copy-mode": "write-blocking"})
                self.load.settle(100)
            self.monitor.do("job-complete", id="m")
            self.ended("m")
        self.chain = [*kept, target]
        self.load.settle(50)
        for name in reversed(old):
            self.close(name)
            self.sound(name)
        self.forget(*old)
        self.count(f"mirrors ({way})")

    def copy(self):
        """A mirror that is ended without a pivot is a copy of that instant."""
        target = self.add(self.make())
        self.monitor.do("blockdev-mirror", {"job-id": "m", "device": self.top, "target": target, "sync": "full", "auto-dismiss": False,
                                            "copy-mode": self.draw.choice(("background", "write-blocking"))})
        self.is_ready("m")
        self.load.settle(100)
        with self.load.moment() as moment:
            self.monitor.do("block-job-cancel", device="m")
            self.ended("m")
        self.close(target)
        self.is_of(moment, target)
        self.forget(target)
        self.count("mirrors left as copies")

    def is_of(self, moment, name):
        self.sound(name)
        qemu_img("convert", "-f", "qcow2", "-O", "raw", self.file(name), self.path("copy.raw"))
        with open(self.path("copy.raw"), "rb") as file:
            moment.check(lambda at, length: os.pread(file.fileno(), length, at))

    def backup(self):
        """Full, then two with what has changed, then all that guests see in the end; the chain of them has each instant."""
        self.monitor.do("block-dirty-bitmap-add", {"node": self.top, "name": "daily", "granularity": self.draw.choice((4096, 65536))})
        full = self.add(self.make())
        with self.load.moment() as moment:
            self.monitor.do("transaction", actions=[
                {"type": "block-dirty-bitmap-clear", "data": {"node": self.top, "name": "daily"}},
                {"type": "blockdev-backup", "data": {"job-id": "b", "device": self.top, "target": full, "sync": "full", "auto-dismiss": False}}])
        self.ended("b")
        self.close(full)
        self.is_of(moment, full)
        backups = [full]
        for turn in range(3):
            name = self.add(self.make(backups[-1], kind=() if turn == 1 else None), backing=None)
            if turn == 1:  # One that is given up leaves the bitmap with all that it needs.
                self.monitor.do("blockdev-backup", {"job-id": "b", "device": self.top, "target": name, "sync": "incremental", "bitmap": "daily",
                                                    "auto-dismiss": False, "speed": 64 * KIB})
                self.load.settle(100)
                self.monitor.do("block-job-cancel", device="b")
                self.ended("b", "the job 'b' was cancelled")
            with self.load.moment() as moment:
                self.monitor.do("blockdev-backup", {"job-id": "b", "device": self.top, "target": name, "sync": "incremental", "bitmap": "daily",
                                                    "auto-dismiss": False, "compress": turn == 1})
            self.ended("b")
            self.close(name)
            self.is_of(moment, name)
            backups.append(name)
            self.load.settle(50)
        self.monitor.do("block-dirty-bitmap-remove", {"node": self.top, "name": "daily"})
        self.forget(*backups)
        self.count("backups, each full and 3 incremental")

    def stream(self):
        """Into a disk below, and into the disk itself."""
        self.snapshot()
        self.snapshot()
        middle = self.chain[-2]
        self.monitor.do("block-stream", {"job-id": "s", "device": middle, "auto-dismiss": False})
        self.ended("s")
        self.count("streams below the disk")
        self.drop_below(middle)
        base = self.draw.choice((None, middle))
        if self.draw.random() < 0.5:
            self.snapshot()
        if base and len(self.chain) > 2:
            self.monitor.do("block-stream", {"job-id": "s", "device": self.top, "base-node": base, "auto-dismiss": False})
            self.ended("s")
            gone, self.chain = self.chain[1:-1], [middle, self.top]
            for name in reversed(gone):
                self.close(name)
            self.forget(*gone)
            self.count("streams down to a base")
        self.ctl("stream", self.top, "--wait")
        self.drop_below(self.top)
        self.count("streams")

    def drop_below(self, name):
        place = self.chain.index(name)
        gone, self.chain = self.chain[:place], self.chain[place:]
        for one in reversed(gone):
            self.close(one)
            self.sound(one)
        self.forget(*gone)

    def go_on(self, *happenings, seconds=SECONDS):
        self.begin()
        deadline = time.monotonic() + seconds
        while True:
            self.draw.choice(happenings)()
            if time.monotonic() > deadline:
                break
        self.finish()


@only_byre
class UnderLoad(Disk):
    def test_commits(self):
        self.go_on(self.commit)

    def test_mirrors(self):
        self.go_on(self.mirror, self.mirror, self.copy)

    def test_streams(self):
        self.go_on(self.stream)

    def test_backups(self):
        self.go_on(self.backup)

    def test_a_copy_that_is_of_no_instant_is_noticed(self):
        """A test of these tests: what is read while guests write is of all instants."""
        self.begin()
        with self.load.moment() as moment:
            self.load.settle(50)
            run("nbdcopy", "--connections=1", "--requests=1", "--request-size=4096", self.load.uri, self.path("copy.raw"))
        with open(self.path("copy.raw"), "rb") as file, self.assertRaisesRegex(Wrong, "of no instant"):
            moment.check(lambda at, length: os.pread(file.fileno(), length, at))
        self.finish()

    def test_a_backup_chain_has_all_that_was_seen(self):
        """Guests stop: then the whole disk, not the stamped part alone, can be compared."""
        self.begin()
        self.monitor.do("block-dirty-bitmap-add", {"node": self.top, "name": "daily", "persistent": True})
        below = None
        for turn in range(4):
            name = self.add(self.make(below, kind=()), **({"backing": None} if below else {}))
            if turn == 3:
                seen = self.load.stop()
            begin = {"job-id": "b", "device": self.top, "target": name, "auto-dismiss": False}
            if turn:
                self.monitor.do("blockdev-backup", {**begin, "sync": "incremental", "bitmap": "daily"})
            else:
                self.monitor.do("transaction", actions=[{"type": "block-dirty-bitmap-clear", "data": {"node": self.top, "name": "daily"}},
                                                        {"type": "blockdev-backup", "data": {**begin, "sync": "full"}}])
            self.ended("b")
            self.close(name)
            self.sound(name)
            below = name
            if turn < 3:
                self.load.settle(300)
        self.assert_compares(seen, self.file(name))
        bitmap = json.loads(self.ctl("bitmap", "list", self.top, "--output", "json").out)
        self.assertEqual([one["name"] for one in bitmap], ["daily"])
        self.finish()


if __name__ == "__main__":
    main()
