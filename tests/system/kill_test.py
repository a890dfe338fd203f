# SPDX-License-Identifier: Apache-2.0
"""A server killed with SIGKILL, a hundred times under clients and twice under a guest.

After each time: the image has no errors, leaks no more than what the last requests touched (docs/engine.md, C2), and
none once they are repaired; every sector is its last flushed value or a later one (support/stamps.py).
"""
import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import nbd  # noqa: E402
from guest import Guest, judge  # noqa: E402
from harness import (GIB, KIB, MIB, QEMU, Case, Server, examine, img, leaked, main, options_of, qcow2ref,  # noqa: E402
                     qemu_img, run, until)
from stamps import SECTOR, History, Writer  # noqa: E402

SIZE = 24 * MIB
# fio writes behind the stamped part of the disk.
FIO = 16 * MIB

# Images of every kind; each is killed under five times.
KINDS = [
    {},
    {"cluster_size": 4096, "snapshot": True},
    {"extended_l2": "on", "lazy_refcounts": "on"},
    {"compat": "0.10"},
    {"cluster_size": 512, "refcount_bits": 64},
    {"backing": "qcow2"},
    {"cluster_size": "2M", "extended_l2": "on"},
    {"lazy_refcounts": "on"},
    {"cluster_size": "1M", "refcount_bits": 1},
    {"extended_l2": "on", "backing": "raw"},
]
KILLS_EACH = 5


class Life:
    """One image, and what must be on it."""

    def __init__(self, folder, seed, kind):
        self.folder, self.seed, self.kind = folder, seed, kind
        self.random = random.Random(seed)
        self.disk = os.path.join(folder, "disk.qcow2")
        self.history = History(SIZE // SECTOR, seed)
        options = {key: value for key, value in kind.items() if key not in ("snapshot", "backing")}
        self.cluster = {"1M": MIB, "2M": 2 * MIB}.get(kind.get("cluster_size"), kind.get("cluster_size", 64 * KIB))
        self.lazy = "lazy_refcounts" in kind
        below = []
        if "backing" in kind:
            self.make_backing(kind["backing"])
            below = ["-b", self.backing, "-F", kind["backing"]]
        img("create", "-q", "-f", "qcow2", *options_of(**options), *below, self.disk, SIZE + FIO)
        self.snapshot = None

    def make_backing(self, form):
        """A backing disk that is shorter, with stamps of its own: write 1."""
        raw = os.path.join(self.folder, "base.raw")
        op = self.history.begin("write", 0, self.history.sectors // 2)
        with open(raw, "wb") as file:
            file.write(self.history.payload(op))
        self.history.held = [[max(held)] for held in self.history.held]
        self.backing = raw
        if form == "qcow2":
            self.backing = os.path.join(self.folder, "base.qcow2")
            qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, self.backing)

    def serve(self):
        # The dead process's locks may outlive it for a moment: its requests end first.
        until(lambda: qemu_img("info", "-f", "qcow2", self.disk, ok=None).code == 0, "the lock on the image", 20)
        return Server(self.disk, os.path.join(self.folder, "nbd"))

    def kill_once(self, turn):
        leaks = leaked(examine(self.disk))
        server = self.serve()
        fio = None
        try:
            writer = Writer(self.history, server.uri, self.random.random(), connections=self.random.randint(1, 3),
                            depth=self.random.choice((1, 4, 16)))
            with_fio = turn % 2 == 1
            fio = self.start_fio(server) if with_fio else None
            if fio:
                # Until fio writes, too.
                writer.work(lambda: fio.poll() is not None or self.connections(server) > len(writer.handles))
                if fio.poll() is not None:
                    raise AssertionError(f"fio ended by itself: {server.said()}")
            goal = writer.done + self.random.randint(1, 600)
            writer.work(lambda: writer.done >= goal)
            server.process.kill()
            writer.finish()
            server.process.wait()
        finally:
            server.kill()
            if fio:
                fio.kill()
                fio.wait()
        # What the last generations touched, their tables included.
        touched = writer.recently_changed(self.cluster) + 64
        if with_fio:
            touched += 3 * FIO // self.cluster
        self.judge(leaks + touched, repair=turn % 3 == 0)

    def start_fio(self, server):
        return subprocess.Popen(
            # Without a process of its own, which would outlive the one that is killed.
            ["fio", "--thread", "--name=load", "--ioengine=nbd", f"--uri={server.uri}", f"--offset={SIZE}", f"--size={FIO}",
             "--rw=randwrite", "--bsrange=4k-128k", "--iodepth=8", "--time_based", "--runtime=600",
             f"--randseed={self.random.randrange(1 << 31)}", "--output=/dev/null"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd=self.folder)

    @staticmethod
    def connections(server):
        """Sockets that the server has open, without the one it listens on."""
        folder = f"/proc/{server.pid}/fd"
        count = 0
        for name in os.listdir(folder):
            try:
                count += os.readlink(os.path.join(folder, name)).startswith("socket:")
            except FileNotFoundError:
                pass
        return count - 1

    def judge(self, leaks_max, repair):
        report = examine(self.disk)
        dirty = report["dirty"]
        if dirty and not self.lazy and not self.snapshot:
            raise AssertionError("the image is dirty, though nothing asked for that")
        if not dirty:
            # While the dirty bit is set refcounts may be anything; opening for writing counts anew.
            if report["errors"] or report["corrupt"]:
                raise AssertionError(f"errors: {report['errors'][:5]}")
            leaks = leaked(report)
            if leaks > leaks_max:
                raise AssertionError(f"{leaks} leaks, expected {leaks_max} at most")
            own = json.loads(img("check", "-f", "qcow2", "--output=json", self.disk, ok=(0, 3)).out)
            # (qemu-img looks no further than the last cluster in use.)
            if not QEMU and own.get("leaks", 0) != leaks or own.get("corruptions", 0):
                raise AssertionError(f"check says {own}, the reference {report['counts']}, {leaks} clusters leak")
            qemu_img("check", "-q", "-f", "qcow2", self.disk, ok=(0, 3))
            if repair:
                img("check", "-q", "-f", "qcow2", "-r", "leaks", self.disk)
                after = examine(self.disk)
                if after["errors"] or after["counts"]["leaks"]:
                    raise AssertionError(f"after the repair: {after['counts']}")
                qemu_img("check", "-q", "-f", "qcow2", self.disk)
        with self.serve() as server:
            handle = nbd.NBD()
            handle.connect_uri(server.uri)
            self.history.check_all(lambda offset, length: handle.pread(length, offset))
            handle.shutdown()
        if self.kind.get("snapshot"):
            if self.snapshot is None:
                qemu_img("snapshot", "-c", "before", self.disk)
                self.snapshot = self.snapshot_sum()
            elif self.snapshot_sum() != self.snapshot:
                raise AssertionError("the snapshot has changed")

    def snapshot_sum(self):
        return qcow2ref.Image(self.disk).sum(snapshot="before")

    def end(self):
        """Served and ended in order once more: nothing leaks but what leaked before."""
        img("check", "-q", "-f", "qcow2", "-r", "leaks", self.disk, ok=(0,))
        with self.serve() as server:
            writer = Writer(self.history, server.uri, self.random.random())
            writer.work(lambda: writer.done >= 50)
            writer.finish()
            writer.close()
        qemu_img("check", "-q", "-f", "qcow2", self.disk)
        report = examine(self.disk)
        if report["errors"] or report["counts"]["leaks"] or report["dirty"]:
            raise AssertionError(f"after a clean end: {report['counts']}, dirty {report['dirty']}")


def live(folder, first_seed, kinds, failures):
    for index, kind in enumerate(kinds):
        seed = first_seed + index
        where = os.path.join(folder, f"{seed}")
        os.mkdir(where)
        turn = None
        try:
            life = Life(where, seed, kind)
            for turn in range(KILLS_EACH):
                life.kill_once(turn)
            life.end()
        except BaseException:
            failures.put(f"seed {seed}, {kind}, kill {turn}:\n{traceback.format_exc()}")


class Killed(Case):
    def test_under_clients(self):
        """Two at a time."""
        failures = multiprocessing.Queue()
        seed = int(os.environ.get("BYRE_SEED", "1"))
        workers = []
        for half in range(2):
            folder = self.path(f"half{half}")
            os.mkdir(folder)
            # Both halves see all kinds, in another order.
            kinds = KINDS[half * 5:] + KINDS[:half * 5]
            workers.append(multiprocessing.Process(target=live, args=(folder, seed + 1000 * half, kinds, failures)))
        for worker in workers:
            worker.start()
        said = []
        for worker in workers:
            while worker.is_alive():
                worker.join(0.2)
                while not failures.empty():
                    said.append(failures.get())
            self.assertEqual(worker.exitcode, 0)
        while not failures.empty():
            said.append(failures.get())
        self.assertEqual(len(said), 0, "\n".join(said))

    def test_under_a_guest(self):
        """Every file that the guest synced is there, and the guest notices nothing but a pause."""
        disk = self.path("disk.qcow2")
        img("create", "-q", "-f", "qcow2", disk, GIB)
        sock = self.path("nbd")
        server = self.server(disk, sock=sock)
        guest = Guest("synced", sock)
        self.addCleanup(guest.kill)
        lines = []
        for words in guest.lines():
            lines.append(words)
            if words[0] == "synced" and words[1] in ("9", "23"):
                server.process.kill()
                server.process.wait()
                until(lambda: qemu_img("info", disk, ok=None).code == 0, "the lock on the image", 20)
                self.reference(disk, leaks=2000)
                server = self.server(disk, sock=sock)
        sums = judge(self, lines, guest)
        server.stop()
        self.assertEqual(len(sums), 40)
        img("check", "-q", "-f", "qcow2", "-r", "leaks", disk)
        self.assert_sound(disk)
        raw = self.path("raw")
        img("convert", "-f", "qcow2", "-O", "raw", disk, raw)
        run("e2fsck", "-fn", raw)
        for file, expected in sums.items():
            out = self.path("out")
            run("debugfs", "-R", f"dump /{file} {out}", raw)
            with open(out, "rb") as content:
                self.assertEqual(hashlib.sha256(content.read()).hexdigest(), expected, file)


if __name__ == "__main__":
    main()
