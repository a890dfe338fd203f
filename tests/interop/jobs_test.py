#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Jobs of `byre daemon`: their answers and events beside QEMU's storage daemon, and what becomes of a disk that a client
writes, zeroes and discards meanwhile.  The real qemu-img judges the images."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import MIB, Case, main, qemu_img, run, until  # noqa: E402
from qmp import Daemon, Monitor, command  # noqa: E402
import nbd  # noqa: E402

SIZE = 8 * MIB
BLOCK = 4096


def unwrap(events):
    return [(event["event"], event["data"]) for event in events]


def qcow2(name, path, backing=None):
    node = {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": path}}
    return {**node, "backing": backing} if backing else node


def chain_of_files(name, path, backing, files):
    """Two commands: the file as a node of its own with the options `files`, and a qcow2 node over it that is only read."""
    node = {"driver": "qcow2", "node-name": name, "file": f"{name}-file", "read-only": True}
    return ({"driver": "file", "node-name": f"{name}-file", "filename": path, **files}, {**node, "backing": backing} if backing else node)


class Beside(Case):
    """One script on each: requests, and names of events that are waited for."""

    def both(self, *script, files=None, progress=True):
        """With `files` the disks below the top are only read, over files that were added with these options.  Without
        `progress` that of jobs does not count: QEMU counts what the top of an active commit has, byre all of the disk."""
        heard = {}
        for kind in ("qemu", "byre"):
            folder = os.path.join(self.folder, kind)
            os.makedirs(folder)
            for name, below in (("base", None), ("mid", "base"), ("top", "mid"), ("target", None)):
                over = ("-b", os.path.join(folder, f"{below}.qcow2"), "-F", "qcow2") if below else ()
                qemu_img("create", "-q", "-f", "qcow2", *over, os.path.join(folder, f"{name}.qcow2"), "1M")
            daemon = Daemon(folder, kind)
            self.addCleanup(daemon.kill)
            monitor = daemon.monitor()
            for name, below in (("base", None), ("mid", "base"), ("top", "mid"), ("target", None)):
                if files is not None and name in ("base", "mid"):
                    for node in chain_of_files(name, os.path.join(folder, f"{name}.qcow2"), below, files):
                        monitor.do("blockdev-add", node)
                    continue
                monitor.do("blockdev-add", qcow2(name, os.path.join(folder, f"{name}.qcow2"), below))
            answers, events = [], []
            for step in script:
                if isinstance(step, tuple):
                    heard_now = self.without_pauses(unwrap(monitor.until_event(*step)))
                    for _, data in heard_now if not progress else ():
                        data.pop("len", None)
                        data.pop("offset", None)
                    events.append(heard_now)
                else:
                    answers.append((step, self.what_is_read_only(step, monitor.ask(step))))
            heard[kind] = answers, events
            monitor.do("quit")
            self.assertEqual(daemon.end(None), 0, kind)
        for (request, theirs), (_, ours) in zip(heard["qemu"][0], heard["byre"][0]):
            with self.subTest(request=json.dumps(request)):
                self.assertEqual(ours, theirs)
        self.assertEqual(heard["byre"][1], heard["qemu"][1])

    def test_what_cannot_be_asked(self):
        mirror = {"job-id": "j", "device": "top", "target": "target", "sync": "full"}
        self.both(
            command("job-pause", id="x"), command("job-dismiss", id="x"), command("block-job-pause", device="x"),
            command("block-job-cancel", device="x"), command("block-job-set-speed", device="x", speed=1),
            command("block-job-finalize", id="x"),
            command("blockdev-mirror", {**mirror, "device": "nosuch"}), command("blockdev-mirror", {**mirror, "target": "nosuch"}),
            command("blockdev-mirror", {**mirror, "target": "top"}), command("blockdev-mirror", {**mirror, "granularity": 1000}),
            command("blockdev-mirror", {**mirror, "granularity": 256}), command("blockdev-mirror", {**mirror, "sync": "incremental"}),
            command("blockdev-mirror", {**mirror, "job-id": "1j"}), command("blockdev-mirror", device="top", target="target", sync="full"),
            command("block-commit", {"job-id": "c", "device": "top", "base-node": "nosuch"}),
            command("block-commit", {"job-id": "c", "device": "top", "top-node": "base"}),
            command("block-commit", {"job-id": "c", "device": "top", "base-node": "top"}),
            command("block-stream", {"job-id": "s", "device": "top", "base-node": "base", "base": "x"}),
            command("block-stream", {"job-id": "s", "device": "top", "base-node": "nosuch"}),
            command("blockdev-backup", {"job-id": "b", "device": "top", "target": "target", "sync": "incremental"}),
            command("blockdev-backup", {"job-id": "b", "device": "top", "target": "target", "sync": "incremental", "bitmap": "x"}),
            command("blockdev-backup", {"job-id": "b", "device": "nosuch", "target": "target", "sync": "full"}),
            command("query-jobs"), command("query-block-jobs"))

    def test_a_second_job_on_the_same_chain(self):
        """A commit counts on all the disks down to its base."""
        self.both(
            command("block-commit", {"job-id": "c", "device": "top", "base-node": "base"}), ("BLOCK_JOB_READY", {}),
            command("block-stream", {"job-id": "s", "device": "mid"}),
            command("blockdev-backup", {"job-id": "b", "device": "mid", "target": "target", "sync": "full"}),
            command("job-complete", id="c"), ("BLOCK_JOB_COMPLETED", {}), command("query-jobs"), progress=False)

    def test_the_life_of_a_mirror(self):
        self.both(
            command("blockdev-mirror", {"job-id": "j", "device": "top", "target": "target", "sync": "full", "auto-finalize": False,
                                        "auto-dismiss": False}),
            ("BLOCK_JOB_READY", {}), command("query-jobs"), command("query-block-jobs"),
            command("block_resize", {"node-name": "top", "size": 2 * MIB}), command("blockdev-del", {"node-name": "top"}),
            command("job-finalize", id="j"), command("job-dismiss", id="j"), command("job-pause", id="j"),
            ("JOB_STATUS_CHANGE", {"status": "standby"}), command("job-pause", id="j"), command("job-complete", id="j"),
            command("block-job-cancel", device="j"), command("job-resume", id="j"), command("job-resume", id="j"),
            command("block-job-change", {"id": "j", "type": "mirror", "copy-mode": "background"}),
            command("job-complete", id="j"), ("BLOCK_JOB_PENDING", {}), command("job-complete", id="j"), command("job-finalize", id="j"),
            ("JOB_STATUS_CHANGE", {"status": "concluded"}), command("job-finalize", id="j"), command("job-dismiss", id="j"),
            ("JOB_STATUS_CHANGE", {"status": "null"}), command("query-jobs"))

    def test_how_other_jobs_end(self):
        concluded, gone = ("JOB_STATUS_CHANGE", {"status": "concluded"}), ("JOB_STATUS_CHANGE", {"status": "null"})
        self.both(
            command("block-commit", {"job-id": "c", "device": "top", "top-node": "mid", "base-node": "base", "auto-dismiss": False}),
            concluded, command("job-dismiss", id="c"), gone,
            command("block-stream", {"job-id": "s", "device": "top", "auto-dismiss": False}), concluded,
            command("job-dismiss", id="s"), gone,
            command("blockdev-backup", {"job-id": "n", "device": "top", "target": "target", "sync": "none", "auto-dismiss": False}),
            ("JOB_STATUS_CHANGE", {"status": "running"}),
            command("block-job-complete", device="n"), command("block-job-cancel", device="n"), concluded, command("job-dismiss", id="n"))

    def test_disks_that_are_only_read_are_written_as_long_as_a_commit_needs_it(self):
        look = command("query-named-block-nodes", flat=True)
        concluded = ("JOB_STATUS_CHANGE", {"status": "concluded"})
        folder = self.folder
        for number, files in enumerate(({"auto-read-only": True}, {})):
            with self.subTest(files=files):
                self.folder = os.path.join(folder, str(number))
                os.makedirs(self.folder)
                self.both(
                    look, command("block-commit", {"job-id": "m", "device": "top", "top-node": "mid", "base-node": "base",
                                                   "auto-finalize": False, "auto-dismiss": False}),
                    ("BLOCK_JOB_PENDING", {}), look, command("job-finalize", id="m"), concluded, look, command("job-dismiss", id="m"),
                    ("JOB_STATUS_CHANGE", {"status": "null"}),
                    command("block-commit", {"job-id": "x", "device": "top", "base-node": "base", "auto-dismiss": False}),
                    ("BLOCK_JOB_READY", {}), look, command("block-job-cancel", device="x", force=True), concluded, look,
                    command("job-dismiss", id="x"), ("JOB_STATUS_CHANGE", {"status": "null"}),
                    command("block-commit", {"job-id": "c", "device": "top", "auto-dismiss": False}),
                    ("BLOCK_JOB_READY", {}), look, command("job-complete", id="c"), concluded, look, files=files, progress=False)

    def test_files_that_nobody_may_write_stay_so(self):
        self.both(command("block-commit", {"job-id": "c", "device": "top"}), command("query-jobs"),
                  command("block-stream", {"job-id": "s", "device": "mid"}), command("query-jobs"),
                  command("query-named-block-nodes", flat=True), files={"read-only": True})

    def test_nodes_are_reopened(self):
        look = command("query-named-block-nodes", flat=True)

        def reopen(node, **more):
            return command("blockdev-reopen", options=[{"driver": "qcow2", "node-name": node, "file": f"{node}-file", **more}])
        self.both(
            look, reopen("base", **{"read-only": False}), look, reopen("base", **{"read-only": True}), look, reopen("base"), look,
            reopen("base", **{"read-only": True}), reopen("nosuch"), command("blockdev-reopen", options=[{"driver": "qcow2"}]),
            command("blockdev-reopen", options=[{"driver": "raw", "node-name": "base", "file": "base-file"}]),
            reopen("mid", backing="nosuch"), reopen("base", file="nosuch"), reopen("mid", backing="base", **{"read-only": False}), look,
            files={"auto-read-only": True})

    def test_options_of_nodes_that_nobody_uses_change(self):
        look = command("query-named-block-nodes", flat=True)

        def reopen(node, **more):
            return command("blockdev-reopen", options=[{"driver": "qcow2", "node-name": node, "file": f"{node}-file", **more}])

        def delete(node):
            return command("blockdev-del", {"node-name": node})
        other, over = chain_of_files("other", "target.qcow2", None, {"auto-read-only": True})
        self.both(
            delete("target"), command("blockdev-add", other), command("blockdev-add", over), delete("top"),
            reopen("mid", backing="other"), look, delete("base"), delete("other"), reopen("mid", backing=None), delete("other"),
            command("blockdev-add", over), reopen("mid", backing="other", **{"read-only": True}), delete("other"), look,
            reopen("mid", backing="other", cache={"direct": False, "no-flush": False}), look, reopen("mid", backing="other", discard="unmap"), look,
            reopen("mid", backing="other", **{"detect-zeroes": "on"}), reopen("mid", backing="other", cache={"direct": 1}), look,
            files={"auto-read-only": True})

    def test_a_node_that_is_written_stays_writable(self):
        look = command("query-named-block-nodes", flat=True)

        def reopen(**more):
            return command("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "own", "file": "own-file", **more}])
        self.both(
            command("blockdev-del", {"node-name": "target"}),
            command("blockdev-add", {"driver": "file", "node-name": "own-file", "filename": "target.qcow2", "auto-read-only": True}), look,
            command("blockdev-add", {"driver": "qcow2", "node-name": "own", "file": "own-file"}), look,
            command("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}}),
            command("block-export-add", {"type": "nbd", "id": "e", "node-name": "own", "writable": True}),
            reopen(**{"read-only": True}), look, command("block-export-del", id="e"), ("BLOCK_EXPORT_DELETED", {}),
            reopen(**{"read-only": True}), look,
            command("block-export-add", {"type": "nbd", "id": "e", "node-name": "own", "writable": True}),
            reopen(**{"read-only": False}), look, command("block-export-add", {"type": "nbd", "id": "e", "node-name": "own", "writable": True}),
            command("block-export-del", id="e"), ("BLOCK_EXPORT_DELETED", {}), command("nbd-server-stop"))

    def test_filters_have_names(self):
        mirror = {"job-id": "j", "device": "top", "target": "target", "sync": "full", "filter-node-name": "filter"}
        ended = ("JOB_STATUS_CHANGE", {"status": "null"})
        look, cancel = command("query-named-block-nodes", flat=True), command("block-job-cancel", device="j", force=True)
        self.both(
            command("blockdev-mirror", {**mirror, "filter-node-name": "base"}), command("blockdev-mirror", {**mirror, "filter-node-name": "1x"}),
            command("block-commit", {"job-id": "j", "device": "top", "filter-node-name": "mid"}),
            command("block-stream", {"job-id": "j", "device": "top", "filter-node-name": "target"}),
            command("blockdev-backup", {**mirror, "filter-node-name": "top"}),
            command("blockdev-mirror", mirror), ("BLOCK_JOB_READY", {}), look, command("blockdev-add", {"driver": "null-co", "node-name": "filter"}),
            command("block-stream", {"job-id": "s", "device": "mid", "filter-node-name": "filter"}), cancel, ended, look,
            command("blockdev-backup", {**mirror, "sync": "none"}), ("JOB_STATUS_CHANGE", {"status": "running"}), look, cancel, ended, look)

    def test_images_are_created(self):
        done, gone = ("JOB_STATUS_CHANGE", {"status": "concluded"}), ("JOB_STATUS_CHANGE", {"status": "null"})

        def create(**options):
            return command("blockdev-create", {"job-id": "j"}, options=options), done, command("query-jobs"), command("query-block-jobs"), \
                command("block-job-cancel", device="j"), command("job-dismiss", id="j"), gone
        image = {"driver": "qcow2", "file": "new", "size": 3 * MIB}
        self.both(
            *create(driver="file", filename="made.qcow2", size=0),
            command("blockdev-add", {"driver": "file", "node-name": "new", "filename": "made.qcow2"}),
            *create(**image, **{"cluster-size": 1000}), *create(**{**image, "file": "nosuch"}),
            *create(driver="file", filename="/nosuch/x", size=0),
            *create(**image, **{"backing-file": "base.qcow2", "backing-fmt": "qcow2", "cluster-size": 4096, "version": "v3",
                                "lazy-refcounts": True, "refcount-bits": 8, "preallocation": "off"}),
            command("blockdev-create", {"job-id": "j"}, options={"driver": "file", "size": 1}),
            command("blockdev-create", {"job-id": "j"}, options={"driver": "qcow2", "file": "new"}),
            command("blockdev-create", {"job-id": "j"}, options={**image, "nonsense": 1}))
        infos = []
        for kind in ("qemu", "byre"):
            info = json.loads(qemu_img("info", "--output=json", os.path.join(self.folder, kind, "made.qcow2")).out)
            infos.append({key: info[key] for key in ("virtual-size", "cluster-size", "backing-filename", "backing-filename-format", "format-specific")})
            self.assertIn("No errors", qemu_img("check", os.path.join(self.folder, kind, "made.qcow2")).text)
        self.assertEqual(infos[1], infos[0])

    @staticmethod
    def what_is_read_only(request, answer):
        """Of an answer about nodes no more than that."""
        if request["execute"] != "query-named-block-nodes":
            return answer
        return {node["node-name"]: node["ro"] for node in answer["return"] if not node["node-name"].startswith("#")}

    @staticmethod
    def without_pauses(events):
        """QEMU pauses a job for a moment when the graph changes, and says so."""
        quiet = []
        for event in events:
            before = quiet[-1][1].get("status") if quiet else None
            if (before, event[1].get("status")) in (("paused", "running"), ("standby", "ready")):
                quiet.pop()
            else:
                quiet.append(event)
        return quiet


class Client:
    """Writes, zeroes and discards blocks of a disk until it is stopped; knows what each must hold."""

    def __init__(self, uri, seed=1):
        self.uri = uri
        self.model = bytearray(SIZE)
        self.prng = random.Random(seed)
        self.stopped = threading.Event()
        self.failure = None
        self.requests = 0
        self.held = threading.Lock()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            handle = nbd.NBD()
            handle.connect_uri(self.uri)
            while not self.stopped.is_set():
                with self.held:
                    self.step(handle)
            handle.flush()
            handle.shutdown()
        except Exception as error:  # pylint: disable=broad-exception-caught
            self.failure = error

    def step(self, handle):
        self.requests += 1
        at = self.prng.randrange(SIZE // BLOCK) * BLOCK
        length = min(self.prng.randrange(1, 24) * BLOCK, SIZE - at)
        what = self.prng.randrange(10)
        if what < 5:
            data = bytes([self.prng.randrange(1, 256)]) * length
            handle.pwrite(data, at)
            self.model[at:at + length] = data
        elif what < 7:
            handle.zero(length, at, nbd.CMD_FLAG_NO_HOLE if what == 5 else 0)
            self.model[at:at + length] = bytes(length)
        elif what < 8:
            # What reads there afterwards is the disk's choice: it stays what it was just then.
            handle.trim(length, at)
            self.model[at:at + length] = handle.pread(length, at)
        elif what < 9:
            if handle.pread(length, at) != self.model[at:at + length]:
                raise AssertionError(f"the disk differs at {at:#x}")
        else:
            handle.flush()

    def start(self):
        self.thread.start()
        return self

    def pause(self):
        """Nothing of it is under way from here to resume()."""
        self.held.acquire()
        return bytes(self.model)

    def resume(self):
        self.held.release()

    def stop(self):
        self.stopped.set()
        self.thread.join()
        if self.failure:
            raise self.failure
        return bytes(self.model)


class Live(Case):
    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.folder, "byre", "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}")
        self.addCleanup(self.daemon.kill)
        self.monitor = self.daemon.monitor()

    def path(self, name):
        return os.path.join(self.folder, name)

    def add(self, name, below=None, options=(), **more):
        over = ("-b", self.path(f"{below}.qcow2"), "-F", "qcow2") if below else ()
        qemu_img("create", "-q", "-f", "qcow2", *options, *over, self.path(f"{name}.qcow2"), str(SIZE))
        self.monitor.do("blockdev-add", qcow2(name, self.path(f"{name}.qcow2"), below), **more)

    def serve(self, name):
        self.monitor.do("block-export-add", {"type": "nbd", "id": "disk", "node-name": name, "name": "disk", "writable": True})
        client = Client(f"nbd+unix:///disk?socket={self.path('nbd')}").start()
        self.addCleanup(client.stopped.set)
        return client

    def ended(self, job):
        def look():
            return next(one for one in self.monitor.do("query-jobs") if one["id"] == job)
        until(lambda: look()["status"] == "concluded", f"the end of {job}")
        info = look()
        self.monitor.do("job-dismiss", id=job)
        return info.get("error")

    def settle(self, client, requests):
        """So many requests more."""
        wanted = client.requests + requests
        while client.requests < wanted and not client.failure:
            threading.Event().wait(0.01)

    def finish(self, client, gives_up=False):
        """`gives_up`: what was written to some node is lost, and that is said."""
        model = client.stop()
        self.monitor.do("quit")
        code = self.daemon.end(None)
        with open(self.path("log"), encoding="utf-8") as log:
            said = log.read()
        self.assertEqual(code, 74 if gives_up else 0, said)
        self.assertEqual("did not answer" in said, gives_up)
        return model

    def expect(self, name, model, form=".qcow2"):
        self.assertIn("No errors were found", qemu_img("check", self.path(f"{name}{form}")).text)
        qemu_img("convert", "-O", "raw", self.path(f"{name}{form}"), self.path("found"))
        with open(self.path("found"), "rb") as file:
            found = file.read()
        self.assertEqual(len(found), len(model))
        self.assertTrue(found == model, f"{name} differs")

    def test_a_mirror_and_its_pivot(self):
        for mode, sync in (("background", "full"), ("write-blocking", "full"), ("background", "top")):
            with self.subTest(mode=mode, sync=sync):
                self.add("base")
                self.add("disk", "base")
                self.add("copy", "base" if sync == "top" else None)
                client = self.serve("disk")
                self.settle(client, 100)
                self.monitor.do("blockdev-mirror", {"job-id": "j", "device": "disk", "target": "copy", "sync": sync, "copy-mode": mode,
                                                    "auto-dismiss": False})
                self.monitor.event("BLOCK_JOB_READY")
                self.settle(client, 300)
                if mode == "background":
                    self.monitor.do("block-job-change", {"id": "j", "type": "mirror", "copy-mode": "write-blocking"})
                    self.settle(client, 100)
                self.monitor.do("job-complete", id="j")
                self.assertIsNone(self.ended("j"))
                self.settle(client, 100)
                self.monitor.do("blockdev-del", {"node-name": "disk"})  # Nobody uses it any more.
                self.settle(client, 100)
                self.expect("copy", self.finish(client))
            self.daemon.kill()
            for name in ("base", "disk", "copy"):
                os.unlink(self.path(f"{name}.qcow2"))
            self.setUp()

    def test_a_mirror_of_the_top_image_whose_backing_comes_later(self):
        """As of a shallow copy.  Clusters of the source, pieces and requests are smaller than the target's clusters."""
        qemu_img("create", "-q", "-f", "qcow2", self.path("base.qcow2"), str(SIZE))
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 5 0 {SIZE}", self.path("base.qcow2"))
        self.monitor.do("blockdev-add", {**qcow2("base", self.path("base.qcow2")), "read-only": True})
        self.add("disk", "base", options=("-o", "cluster_size=4k"))
        self.monitor.do("block-export-add", {"type": "nbd", "id": "disk", "node-name": "disk", "name": "disk", "writable": True})
        handle = nbd.NBD()
        handle.connect_uri(f"nbd+unix:///disk?socket={self.path('nbd')}")
        model = bytearray(b"\x05" * SIZE)

        def change(number):
            """A little of a cluster, on both sides of an edge, zeros, and zeros of a whole cluster."""
            for part, (at, length) in enumerate(((4096, 4096), (60 * 1024, 8192), (5 * 64 * 1024 + 512, 512), (8 * 64 * 1024 + 512, 7000))):
                at += number * MIB
                byte = part % 2 * (number + 10)
                if byte:
                    handle.pwrite(bytes([byte]) * length, at)
                else:
                    handle.zero(length, at)
                model[at:at + length] = bytes([byte]) * length
            at = number * MIB + 10 * 64 * 1024
            handle.zero(3 * 64 * 1024, at)
            model[at:at + 3 * 64 * 1024] = bytes(3 * 64 * 1024)
        change(0)
        for number, (mode, options, granularity) in enumerate((
                ("background", (), 4096), ("write-blocking", (), 4096), ("write-blocking", ("-o", "cluster_size=256k"), 0),
                ("background", ("-o", "extended_l2=on,cluster_size=128k"), 0))):
            with self.subTest(mode=mode, options=options):
                name = f"copy{number}"
                qemu_img("create", "-q", "-f", "qcow2", "-u", *options, "-b", self.path("base.qcow2"), "-F", "qcow2",
                         self.path(f"{name}.qcow2"), str(SIZE))
                self.monitor.do("blockdev-add", {**qcow2(name, self.path(f"{name}.qcow2")), "backing": None})
                self.monitor.do("blockdev-mirror", {"job-id": "j", "device": "disk", "target": name, "sync": "top", "copy-mode": mode,
                                                    "granularity": granularity, "auto-dismiss": False})
                self.monitor.event("BLOCK_JOB_READY")
                change(number + 1)
                self.monitor.do("block-job-cancel", device="j")
                self.assertIsNone(self.ended("j"))
                self.monitor.do("blockdev-del", {"node-name": name})
                self.expect(name, model)
        handle.shutdown()

    def test_a_mirror_that_is_left_as_a_copy(self):
        self.add("disk")
        self.add("copy")
        client = self.serve("disk")
        self.monitor.do("blockdev-mirror", {"job-id": "j", "device": "disk", "target": "copy", "sync": "full", "auto-dismiss": False})
        self.monitor.event("BLOCK_JOB_READY")
        self.settle(client, 200)
        model = client.pause()
        self.monitor.do("block-job-cancel", device="j")
        self.assertIsNone(self.ended("j"))
        client.resume()
        self.settle(client, 200)
        self.expect("disk", self.finish(client))
        self.expect("copy", model)

    def test_a_commit_of_the_disk_itself(self):
        self.add("base", options=("-o", "cluster_size=4k"))
        self.add("mid", "base")
        self.add("disk", "mid")
        client = self.serve("disk")
        self.settle(client, 200)
        self.monitor.do("block-commit", {"job-id": "c", "device": "disk", "base-node": "base", "auto-dismiss": False})
        self.monitor.event("BLOCK_JOB_READY")
        self.settle(client, 300)
        self.monitor.do("job-complete", id="c")
        self.assertIsNone(self.ended("c"))
        self.settle(client, 200)
        self.expect("base", self.finish(client))

    def test_a_commit_of_disks_below(self):
        for name, below in (("base", None), ("mid", "base"), ("high", "mid"), ("disk", "high")):
            self.add(name, below)
        client = self.serve("disk")
        self.settle(client, 100)
        self.monitor.do("block-commit", {"job-id": "c", "device": "disk", "top-node": "high", "base-node": "base", "auto-dismiss": False,
                                         "backing-file": self.path("base.qcow2")})
        self.assertIsNone(self.ended("c"))
        self.settle(client, 100)
        self.monitor.do("blockdev-del", {"node-name": "high"})
        self.expect("disk", self.finish(client))
        info = json.loads(qemu_img("info", "--output=json", self.path("disk.qcow2")).out)
        self.assertEqual(info["backing-filename"], self.path("base.qcow2"))

    def test_a_stream(self):
        for base in (None, "base"):
            with self.subTest(base=base):
                qemu_img("create", "-q", "-f", "qcow2", self.path("base.qcow2"), str(SIZE))
                run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 2M", self.path("base.qcow2"))
                qemu_img("create", "-q", "-f", "qcow2", "-b", self.path("base.qcow2"), "-F", "qcow2", self.path("mid.qcow2"))
                run("qemu-io", "-f", "qcow2", "-c", "write -P 8 2M 2M", self.path("mid.qcow2"))
                self.monitor.do("blockdev-add", qcow2("base", self.path("base.qcow2")), {"read-only": True})
                self.monitor.do("blockdev-add", qcow2("mid", self.path("mid.qcow2"), "base"), {"read-only": True})
                self.add("disk", "mid")
                self.monitor.do("block-export-add", {"type": "nbd", "id": "disk", "node-name": "disk", "writable": True})
                client = Client(f"nbd+unix:///disk?socket={self.path('nbd')}")
                client.model[1 * MIB:2 * MIB] = b"\x09" * MIB
                client.model[2 * MIB:4 * MIB] = b"\x08" * (2 * MIB)
                client.start()
                self.settle(client, 50)
                self.monitor.do("block-stream", {"job-id": "s", "device": "disk", "auto-dismiss": False, "speed": 32 * MIB,
                                                 **({"base-node": base} if base else {})})
                self.assertIsNone(self.ended("s"))
                self.settle(client, 100)
                self.monitor.do("blockdev-del", {"node-name": "mid"})
                self.expect("disk", self.finish(client))
                info = json.loads(qemu_img("info", "--output=json", self.path("disk.qcow2")).out)
                self.assertEqual(info.get("backing-filename"), self.path("base.qcow2") if base else None)
            self.daemon.kill()
            for name in ("base", "mid", "disk"):
                os.unlink(self.path(f"{name}.qcow2"))
            self.setUp()

    def test_backups_full_and_incremental(self):
        self.add("disk")
        self.add("full")
        self.monitor.do("block-dirty-bitmap-add", {"node": "disk", "name": "b", "persistent": True})
        client = self.serve("disk")
        self.settle(client, 200)
        model = client.pause()
        self.monitor.do("transaction", actions=[
            {"type": "block-dirty-bitmap-clear", "data": {"node": "disk", "name": "b"}},
            {"type": "blockdev-backup", "data": {"job-id": "f", "device": "disk", "target": "full", "sync": "full", "auto-dismiss": False}}])
        client.resume()
        self.assertIsNone(self.ended("f"))
        self.settle(client, 100)
        self.monitor.do("blockdev-del", {"node-name": "full"})
        self.expect("full", model)
        for number, compress in ((1, False), (2, True)):
            name, below = f"inc{number}", "full" if number == 1 else "inc1"
            qemu_img("create", "-q", "-f", "qcow2", "-b", self.path(f"{below}.qcow2"), "-F", "qcow2", self.path(f"{name}.qcow2"))
            self.monitor.do("blockdev-add", {**qcow2(name, self.path(f"{name}.qcow2")), "backing": None})
            model = client.pause()
            self.monitor.do("blockdev-backup", {"job-id": "i", "device": "disk", "target": name, "sync": "incremental", "bitmap": "b",
                                                "compress": compress, "auto-dismiss": False})
            client.resume()
            self.assertIsNone(self.ended("i"))
            self.settle(client, 100)
            self.monitor.do("blockdev-del", {"node-name": name})
            self.expect(name, model)
        # One that is cancelled costs nothing.
        qemu_img("create", "-q", "-f", "qcow2", "-b", self.path("inc2.qcow2"), "-F", "qcow2", self.path("inc3.qcow2"))
        self.monitor.do("blockdev-add", {**qcow2("inc3", self.path("inc3.qcow2")), "backing": None})
        self.monitor.do("blockdev-backup", {"job-id": "x", "device": "disk", "target": "inc3", "sync": "incremental", "bitmap": "b",
                                            "speed": 65536, "auto-dismiss": False})
        self.settle(client, 100)
        self.monitor.do("block-job-cancel", device="x")
        self.assertIsNotNone(self.ended("x"))
        model = client.pause()
        self.monitor.do("blockdev-backup", {"job-id": "y", "device": "disk", "target": "inc3", "sync": "incremental", "bitmap": "b",
                                            "auto-dismiss": False})
        client.resume()
        self.assertIsNone(self.ended("y"))
        self.monitor.do("blockdev-del", {"node-name": "inc3"})
        self.expect("inc3", model)
        self.expect("disk", self.finish(client))

    def test_zeros_of_an_incremental_backup_hide_what_lies_below_it(self):
        """Pieces of zeros that are smaller than a cluster of the target; a target whose backing comes later, also of version 2."""
        self.add("disk", options=("-o", "cluster_size=4k"))
        client = self.serve("disk")
        handle = nbd.NBD()
        client.stop()
        handle.connect_uri(client.uri)
        handle.pwrite(b"\x05" * MIB, 0)
        self.add("full")
        self.monitor.do("blockdev-backup", {"job-id": "f", "device": "disk", "target": "full", "sync": "full", "auto-dismiss": False})
        self.assertIsNone(self.ended("f"))
        self.monitor.do("blockdev-del", {"node-name": "full"})
        self.monitor.do("block-dirty-bitmap-add", {"node": "disk", "name": "b"})
        model = bytearray(handle.pread(SIZE, 0))
        # Each cluster of 64 KiB: zeros with and without space, side by side; and beside data.
        for at in range(0, MIB, 4096):
            kind = at // 4096 * 7 % 5 if at >= MIB // 2 else at // 4096 % 2
            if kind < 2:
                handle.zero(4096, at, nbd.CMD_FLAG_NO_HOLE if kind else 0)
                model[at:at + 4096] = bytes(4096)
        for name, options, backing in (("named", (), True), ("named2", ("-o", "compat=0.10"), True), ("later", (), False),
                                       ("large", ("-o", "cluster_size=256k"), False), ("sub", ("-o", "extended_l2=on"), True)):
            with self.subTest(target=name):
                over = ("-b", self.path("full.qcow2"), "-F", "qcow2") if backing else ()
                qemu_img("create", "-q", "-f", "qcow2", *options, *over, self.path(f"{name}.qcow2"), str(SIZE))
                self.monitor.do("blockdev-add", {**qcow2(name, self.path(f"{name}.qcow2")), "backing": None})
                self.monitor.do("blockdev-backup", {"job-id": "i", "device": "disk", "target": name, "sync": "bitmap", "bitmap": "b",
                                                    "bitmap-mode": "never", "auto-dismiss": False})
                self.assertIsNone(self.ended("i"))
                self.monitor.do("blockdev-del", {"node-name": name})
                if not backing:
                    qemu_img("rebase", "-u", "-b", self.path("full.qcow2"), "-F", "qcow2", self.path(f"{name}.qcow2"))
                self.expect(name, model)
        handle.shutdown()

    def test_disks_of_one_moment(self):
        for name in ("disk", "other", "disk-copy", "other-copy"):
            self.add(name)
        client = self.serve("disk")
        self.settle(client, 100)
        model = client.pause()
        data = {"sync": "full", "auto-dismiss": False}
        self.monitor.do("transaction", actions=[
            {"type": "blockdev-backup", "data": {**data, "job-id": "a", "device": "disk", "target": "disk-copy"}},
            {"type": "blockdev-backup", "data": {**data, "job-id": "b", "device": "other", "target": "other-copy"}}])
        client.resume()
        for job in ("a", "b"):
            self.assertIsNone(self.ended(job))
        # They end together: the one that is cancelled takes the other with it.
        self.monitor.do("transaction", properties={"completion-mode": "grouped"}, actions=[
            {"type": "blockdev-backup", "data": {**data, "job-id": "a", "device": "disk", "target": "disk-copy", "speed": 65536}},
            {"type": "blockdev-backup", "data": {**data, "job-id": "b", "device": "other", "target": "other-copy"}}])
        until(lambda: {one["id"]: one["status"] for one in self.monitor.do("query-jobs")}["b"] == "waiting", "b, which waits for a")
        self.monitor.do("job-cancel", id="a")
        for job in ("a", "b"):
            self.assertIsNotNone(self.ended(job))
        model = client.pause()
        self.monitor.do("transaction", properties={"completion-mode": "grouped"}, actions=[
            {"type": "blockdev-backup", "data": {**data, "job-id": "a", "device": "disk", "target": "disk-copy"}},
            {"type": "blockdev-backup", "data": {**data, "job-id": "b", "device": "other", "target": "other-copy"}}])
        client.resume()
        for job in ("a", "b"):
            self.assertIsNone(self.ended(job))
        refused = self.monitor.ask(command("transaction", actions=[
            {"type": "blockdev-backup", "data": {**data, "job-id": "a", "device": "disk", "target": "disk-copy"}},
            {"type": "blockdev-backup", "data": {**data, "job-id": "b", "device": "other", "target": "nosuch"}}]))
        self.assertIn("nosuch", refused["error"]["desc"])
        self.assertEqual(self.monitor.do("query-jobs"), [])
        self.settle(client, 100)
        self.expect("disk", self.finish(client))
        self.expect("disk-copy", model)

    def test_nobody_writes_past_a_job(self):
        self.add("disk")
        self.add("copy")
        self.monitor.do("blockdev-mirror", {"job-id": "j", "device": "disk", "target": "copy", "sync": "full"})
        self.monitor.event("BLOCK_JOB_READY")
        refused = self.monitor.ask(command("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "writable": True}))
        self.assertIn("Permission conflict on node 'disk'", refused["error"]["desc"])
        refused = self.monitor.ask(command("block-export-add", {"type": "nbd", "id": "e", "node-name": "copy", "writable": True}))
        self.assertIn("Permission conflict on node 'copy'", refused["error"]["desc"])
        self.add("other")
        self.add("another")
        self.add("third")
        self.monitor.do("blockdev-mirror", {"job-id": "r", "device": "other", "target": "another", "sync": "full", "replaces": "third"})
        refused = self.monitor.ask(command("blockdev-del", {"node-name": "third"}))
        self.assertIn("in use by block job: mirror", refused["error"]["desc"])
        for name in ("disk", "copy"):
            refused = self.monitor.ask(command("block_resize", {"node-name": name, "size": 2 * SIZE}))
            self.assertIn("in use by block job: mirror", refused["error"]["desc"])

    def read_only_chain(self, files=None):
        """base <- mid, which are only read, <- disk, which a client writes; what it shows to begin with."""
        model = bytearray(SIZE)
        for name, below, pattern, at in (("base", None, 9, 1), ("mid", "base", 8, 2)):
            over = ("-b", self.path(f"{below}.qcow2"), "-F", "qcow2") if below else ()
            qemu_img("create", "-q", "-f", "qcow2", *over, self.path(f"{name}.qcow2"), str(SIZE))
            run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {at}M 2M", self.path(f"{name}.qcow2"))
            model[at * MIB:(at + 2) * MIB] = bytes([pattern]) * (2 * MIB)
            for node in chain_of_files(name, self.path(f"{name}.qcow2"), below, files or {"auto-read-only": True}):
                self.monitor.do("blockdev-add", node)
        self.add("disk", "mid")
        return model

    def serve_from(self, model):
        self.monitor.do("block-export-add", {"type": "nbd", "id": "disk", "node-name": "disk", "name": "disk", "writable": True})
        client = Client(f"nbd+unix:///disk?socket={self.path('nbd')}")
        client.model[:] = model
        self.addCleanup(client.stopped.set)
        return client.start()

    def is_read_only(self, name):
        return {node["node-name"]: node["ro"] for node in self.monitor.do("query-named-block-nodes", flat=True)}[name]

    def test_commits_into_a_base_that_is_only_read(self):
        for top in ("mid", "disk"):
            with self.subTest(top=top):
                client = self.serve_from(self.read_only_chain())
                self.settle(client, 100)
                # Somebody else who reads it, too, lets nobody write.
                with open(self.path("base.qcow2"), "rb") as file:
                    before = file.read()
                reader = subprocess.Popen([shutil.which("qemu-nbd"), "-r", "-t", "-f", "qcow2", "-k", self.path("other"),
                                           self.path("base.qcow2")])
                until(lambda: os.path.exists(self.path("other")), "qemu-nbd")
                commit = {"job-id": "c", "device": "disk", "base-node": "base", "auto-dismiss": False,
                          **({"top-node": "mid"} if top == "mid" else {})}
                refused = self.monitor.ask(command("block-commit", commit))
                self.assertIn("is in use by qemu-nbd", refused["error"]["desc"])
                reader.kill()
                reader.wait()
                self.settle(client, 50)
                self.assertTrue(self.is_read_only("base"))
                with open(self.path("base.qcow2"), "rb") as file:
                    self.assertEqual(file.read(), before)
                # Nobody else writes while it is only read, nor while it is written.
                self.assertIn("lock", qemu_img("resize", self.path("base.qcow2"), "1G", ok=(1,)).text)
                self.monitor.do("block-commit", {**commit, "speed": 65536})
                self.assertFalse(self.is_read_only("base"))
                self.assertIn("lock", qemu_img("check", self.path("base.qcow2"), ok=(1,)).text)
                self.monitor.do("block-job-cancel", device="c", force=True)
                self.assertIsNotNone(self.ended("c"))
                self.assertTrue(self.is_read_only("base"))
                qemu_img("check", self.path("base.qcow2"))
                self.settle(client, 50)
                self.monitor.do("block-commit", commit)
                if top == "disk":
                    self.monitor.event("BLOCK_JOB_READY")
                    self.settle(client, 100)
                    self.monitor.do("job-complete", id="c")
                self.assertIsNone(self.ended("c"))
                self.assertEqual(self.is_read_only("base"), top == "mid")
                self.settle(client, 100)
                self.expect("base" if top == "disk" else "disk", self.finish(client))
            self.daemon.kill()
            for name in ("base", "mid", "disk"):
                os.unlink(self.path(f"{name}.qcow2"))
            self.setUp()

    def test_a_base_is_scanned_before_it_is_written(self):
        """The refcounts of the base say that its data are free: without a scan they would be overwritten."""
        model = self.read_only_chain()
        with open(self.path("base.qcow2"), "r+b") as file:
            header = file.read(64)
            file.seek(int.from_bytes(header[48:56], "big"))
            block = int.from_bytes(file.read(8), "big")
            # Behind the metadata that every new image has: what was written.
            file.seek(block + 2 * 5)
            file.write(bytes(2 * 32))
        client = self.serve_from(model)
        self.settle(client, 100)
        self.monitor.do("block-commit", {"job-id": "c", "device": "disk", "auto-dismiss": False})
        self.monitor.event("BLOCK_JOB_READY")
        self.monitor.do("job-complete", id="c")
        self.assertIsNone(self.ended("c"))
        self.settle(client, 50)
        self.expect("base", self.finish(client))

    def test_a_stream_into_a_disk_that_is_only_read(self):
        model = self.read_only_chain()
        self.monitor.do("block-stream", {"job-id": "s", "device": "mid", "auto-dismiss": False})
        self.assertIsNone(self.ended("s"))
        self.assertTrue(self.is_read_only("mid"))
        self.monitor.do("blockdev-del", {"node-name": "base"})
        client = self.serve_from(model)
        self.settle(client, 50)
        self.expect("disk", self.finish(client))
        self.expect("mid", model)

    def test_a_base_whose_changes_are_recorded(self):
        """A bitmap is no user of the disk; it has what the commit writes."""
        for files in ({"auto-read-only": True}, {"read-only": True}):
            with self.subTest(files=files):
                model = self.read_only_chain(files)
                self.monitor.do("block-dirty-bitmap-add", node="base", name="b", granularity=65536)
                client = self.serve_from(model)
                answer = self.monitor.ask(command("block-commit", {"job-id": "c", "device": "disk", "top-node": "mid", "base-node": "base",
                                                                   "auto-dismiss": False}))
                if "read-only" in files:
                    self.assertIn("Block node is read-only", answer["error"]["desc"])
                else:
                    self.assertIsNone(self.ended("c"))
                rows = {row["node-name"]: row for row in self.monitor.do("query-named-block-nodes", flat=True)}
                self.assertEqual(rows["base"]["dirty-bitmaps"][0]["count"], 0 if "read-only" in files else 2 * MIB)
                self.assertTrue(rows["base"]["ro"])
                self.expect("disk", self.finish(client))
            self.daemon.kill()
            for name in ("base", "mid", "disk"):
                os.unlink(self.path(f"{name}.qcow2"))
            self.setUp()

    def test_headers_name_the_image_below_filters(self):
        """A filter above the base is no raw disk: read as one, the image would show its own tables."""
        self.monitor.do("object-add", {"qom-type": "throttle-group", "id": "g"})
        qemu_img("create", "-q", "-f", "qcow2", self.path("base.qcow2"), str(SIZE))
        run("qemu-io", "-f", "qcow2", "-c", "write -P 5 1M 1M", self.path("base.qcow2"))
        self.monitor.do("blockdev-add", qcow2("base", self.path("base.qcow2")))
        self.monitor.do("blockdev-add", {"driver": "throttle", "node-name": "limited", "throttle-group": "g", "file": "base"})
        for name, below in (("mid", "limited"), ("disk", "mid")):
            qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "elsewhere", "-F", "qcow2", self.path(f"{name}.qcow2"), str(SIZE))
            self.monitor.do("blockdev-add", qcow2(name, self.path(f"{name}.qcow2"), below))
        client = self.serve_from(bytes(MIB) + bytes([5]) * MIB + bytes(SIZE - 2 * MIB))
        self.settle(client, 50)
        self.monitor.do("block-commit", {"job-id": "c", "device": "disk", "top-node": "mid", "base-node": "limited", "auto-dismiss": False})
        self.assertIsNone(self.ended("c"))
        self.settle(client, 50)
        for said in ("qcow2", None):
            info = json.loads(run("qemu-img", "info", "-U", "--output=json", self.path("disk.qcow2")).out)
            self.assertEqual(info["backing-filename-format"], "qcow2")
            self.assertEqual(os.path.basename(info["backing-filename"]), "base.qcow2")
            if said:  # The same with a header that says nothing yet.
                self.monitor.do("change-backing-file", {"device": "disk", "image-node-name": "disk", "backing-file": self.path("base.qcow2")})
        self.expect("disk", self.finish(client))

    def test_a_part_of_a_file_has_no_name(self):
        """An image that names the file would show other bytes."""
        self.raw("whole", SIZE + MIB)
        for name, below in (("mid", None), ("disk", "mid")):
            qemu_img("create", "-q", "-f", "qcow2", self.path(f"{name}.qcow2"), str(SIZE))
        self.monitor.do("blockdev-add", {"driver": "raw", "node-name": "part", "offset": MIB, "size": SIZE,
                                         "file": {"driver": "file", "filename": self.path("whole")}})
        self.monitor.do("blockdev-add", qcow2("disk", self.path("disk.qcow2"), None))
        refused = self.monitor.ask(command("blockdev-snapshot", {"node": "part", "overlay": "disk"}))
        self.assertIn("only a part of", refused["error"]["desc"])
        self.monitor.do("blockdev-add", qcow2("mid", self.path("mid.qcow2"), "part"))
        self.monitor.do("blockdev-snapshot", node="mid", overlay="disk")
        refused = self.monitor.ask(command("block-stream", {"job-id": "s", "device": "disk", "base-node": "part"}))
        self.assertIn("only a part of", refused["error"]["desc"])

    def create(self, **options):
        """The error of a blockdev-create, if any."""
        self.monitor.do("blockdev-create", {"job-id": "new"}, options=options)
        return self.ended("new")

    def test_a_file_that_was_passed_is_made_anew(self):
        with open(self.path("passed"), "w+b") as file:
            file.write(bytes([7]) * MIB)
            file.flush()
            number = self.monitor.ask(command("add-fd", {"fdset-id": 3}), descriptors=[file.fileno()])["return"]["fdset-id"]
            self.assertIsNone(self.create(driver="file", filename=f"/dev/fdset/{number}", size=2 * MIB))
        with open(self.path("passed"), "rb") as file:
            self.assertEqual(file.read(), bytes(2 * MIB))
        self.monitor.do("blockdev-add", {"driver": "file", "node-name": "passed", "filename": f"/dev/fdset/{number}"})
        self.assertIsNone(self.create(driver="qcow2", file="passed", size=SIZE))
        self.monitor.do("blockdev-del", {"node-name": "passed"})
        self.expect("passed", bytes(SIZE), form="")

    def test_a_node_that_is_used_is_not_made_anew(self):
        self.add("disk")
        client = self.serve("disk")
        self.settle(client, 50)
        self.monitor.do("blockdev-add", {"driver": "file", "node-name": "small", "filename": self.raw("small", MIB), "read-only": True})
        self.assertIn("is locked for writing by this process", self.create(driver="file", filename=self.path("disk.qcow2"), size=0))
        self.assertIn("read-only", self.create(driver="qcow2", file="small", size=SIZE))
        self.assertIn("Permission conflict on node 'disk'", self.create(driver="qcow2", file="disk", size=MIB))
        self.expect("disk", self.finish(client))

    def test_an_image_that_was_not_made_to_the_end_is_none(self):
        """What was in the file is gone, and nobody takes what is there for a disk."""
        with open(self.raw("small", 0), "r+b") as file:
            file.write(bytes([7]) * MIB)
        image = {"driver": "file", "filename": self.path("small")}
        self.monitor.do("blockdev-add", {"driver": "blkdebug", "node-name": "fails", "image": image, "inject-error": [
            {"event": "none", "iotype": "write", "sector": 256, "errno": 5}]})
        self.assertIn("Input/output error", self.create(driver="qcow2", file="fails", size=SIZE))
        self.monitor.do("quit")
        self.assertEqual(self.daemon.end(None), 0)
        self.assertIn("never finished", run("qemu-img", "info", "-f", "qcow2", self.path("small"), ok=(1,)).text)

    def raw(self, name, size):
        with open(self.path(name), "wb") as file:
            file.truncate(size)
        return self.path(name)

    def add_server(self, name):
        """Another server's disk as a node."""
        self.raw(f"{name}.raw", SIZE)
        server = subprocess.Popen([shutil.which("qemu-nbd"), "-t", "-f", "raw", "-k", self.path(f"{name}.socket"), self.path(f"{name}.raw")])
        until(lambda: os.path.exists(self.path(f"{name}.socket")), "qemu-nbd")
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.monitor.do("blockdev-add", {"driver": "nbd", "node-name": name, "server": {"type": "unix", "path": self.path(f"{name}.socket")}})
        return server

    def test_a_cancel_ends_although_the_target_has_stopped(self):
        self.add("disk")
        client = self.serve("disk")
        for name, start, begun in (
                ("mirror", {"copy-mode": "write-blocking", "sync": "full"}, "BLOCK_JOB_READY"), ("backup", {"sync": "none"}, None)):
            with self.subTest(job=name):
                server = self.add_server(name)
                self.monitor.do(f"blockdev-{name}", {"job-id": "j", "device": "disk", "target": name, "auto-dismiss": False, **start})
                if begun:
                    self.monitor.event(begun)
                self.settle(client, 20)
                server.send_signal(signal.SIGSTOP)
                until(lambda: self.hangs(client), "a write that waits for the server")
                began = time.monotonic()
                self.monitor.do("block-job-cancel", device="j", force=True)
                self.assertIsNotNone(self.ended("j"))
                self.assertLess(time.monotonic() - began, 20)
                self.settle(client, 50)
        self.expect("disk", self.finish(client, gives_up=True))

    def test_other_monitors_are_answered_while_a_command_waits_for_a_server(self):
        """A transaction and a bitmap wait for the requests of guests; a mirror's target has stopped, and they with it."""
        self.daemon.end(signal.SIGTERM)
        self.daemon = Daemon(self.folder, "byre", "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}",
                             "--chardev", f"socket,id=more,path={self.path('more')},server=on,wait=off", "--monitor", "chardev=more")
        self.addCleanup(self.daemon.kill)
        self.monitor = self.daemon.monitor()
        other = Monitor(self.path("more"))
        self.addCleanup(other.close)
        other.do("qmp_capabilities")
        self.add("disk")
        client = self.serve("disk")
        for held in (command("transaction", actions=[{"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "a"}}]),
                     command("block-dirty-bitmap-add", node="disk", name="b")):
            with self.subTest(held=held["execute"]):
                server = self.add_server("copy" + held["execute"])
                self.monitor.do("blockdev-mirror", {"job-id": "j", "device": "disk", "target": "copy" + held["execute"], "sync": "full",
                                                    "copy-mode": "write-blocking", "auto-dismiss": False})
                self.monitor.event("BLOCK_JOB_READY")
                self.settle(client, 20)
                server.send_signal(signal.SIGSTOP)
                until(lambda: self.hangs(client), "a write that waits for the server")
                self.monitor.send(held)
                began = time.monotonic()
                self.assertEqual([job["id"] for job in other.do("query-jobs")], ["j"])
                other.do("job-cancel", id="j")
                self.assertLess(time.monotonic() - began, 2)
                self.assertEqual(self.monitor.answer(), {"return": {}})  # The target is given up, and guests go on.
                self.assertIsNotNone(self.ended("j"))
                self.settle(client, 50)
        nodes = {node["node-name"]: node for node in other.do("query-named-block-nodes")}
        self.assertEqual(sorted(bitmap["name"] for bitmap in nodes["disk"]["dirty-bitmaps"]), ["a", "b"])
        self.expect("disk", self.finish(client, gives_up=True))

    @staticmethod
    def hangs(client):
        before = client.requests
        time.sleep(0.5)
        return client.requests == before

    def test_sigterm_ends_a_daemon_that_waits_for_a_server(self):
        for waits in ("command", "job"):
            with self.subTest(waits=waits):
                self.add("disk")
                server = self.add_server("copy")
                mirror = command("blockdev-mirror", {"job-id": "j", "device": "disk", "target": "copy", "sync": "full"})
                if waits == "job":
                    self.monitor.ask(mirror)
                    self.monitor.event("BLOCK_JOB_READY")
                server.send_signal(signal.SIGSTOP)
                if waits == "command":
                    self.monitor.send(mirror)  # It asks the target whether it is empty, and gets no answer.
                    time.sleep(0.5)
                began = time.monotonic()
                self.daemon.end(signal.SIGTERM)
                self.assertLess(time.monotonic() - began, 30)
                qemu_img("check", self.path("disk.qcow2"))
            os.unlink(self.path("disk.qcow2"))
            os.unlink(self.path("copy.socket"))
            self.setUp()

    def test_signals_during_jobs(self):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
            with self.subTest(signal=number):
                self.add("disk")
                self.add("copy")
                client = self.serve("disk")
                self.monitor.do("blockdev-mirror", {"job-id": "j", "device": "disk", "target": "copy", "sync": "full",
                                                    "copy-mode": "write-blocking"})
                self.settle(client, 200)
                model = client.pause()
                client.stopped.set()
                code = self.daemon.end(number)
                client.resume()
                client.thread.join()
                self.assertEqual(code, -9 if number == signal.SIGKILL else 0)
                for name in ("disk", "copy"):
                    qemu_img("check", "-r", "leaks", self.path(f"{name}.qcow2"), ok=(0, 3))
                if number != signal.SIGKILL:
                    self.expect("disk", model)
            self.daemon.kill()
            for name in ("disk", "copy"):
                os.unlink(self.path(f"{name}.qcow2"))
            self.setUp()


if __name__ == "__main__":
    main()
