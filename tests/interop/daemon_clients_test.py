#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What real clients send to a storage daemon, in their order and with their arguments: Proxmox, ovirt-imageio, libvirt
(virtnbdbackup reads what it serves) and Incus.

Each sequence is played on QEMU's daemon and on byre's under QEMU's name.  Answers, events and what clients see must be
alike, while an NBD client writes, zeroes, discards and reads; the real qemu-img judges the images in the end.
"""
import contextlib
import json
import os
import random
import re
import signal
import socket
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import nbd  # noqa: E402
from harness import KIB, MIB, Case, Server, describe, main, qemu_img, readable, run, until  # noqa: E402
from jobs_test import SIZE, Client  # noqa: E402
from qmp import Daemon, Monitor, command  # noqa: E402

# What depends on the moment.
VOLATILE = ("current-progress", "total-progress", "offset", "len")
# Of a job that was cancelled QEMU says only this, byre which job it was.
CANCELLED = "Operation canceled"


def steady(value, folder):
    """An answer or event without its folder and its moment."""
    if isinstance(value, dict):
        return {key: steady(one, folder) for key, one in value.items() if key not in VOLATILE}
    if isinstance(value, (list, tuple)):
        return [steady(one, folder) for one in value]
    if isinstance(value, str):
        return re.sub("^the job '.*' was cancelled$", CANCELLED, value.replace(folder, "@"))
    return value


def node(name, **more):
    return {"node-name": name, **{key.replace("_", "-"): value for key, value in more.items()}}


def action(kind, /, **data):
    return {"type": kind, "data": {key.replace("_", "-"): value for key, value in data.items()}}


class Stage:
    """One daemon, its disks and the clients of a sequence; `heard` is what was seen of it."""

    def __init__(self, case, kind):
        self.case, self.kind = case, kind
        self.folder = os.path.join(case.folder, kind)
        os.makedirs(self.folder)
        self.heard = []
        self.daemon = self.monitor = self.client = None

    def path(self, name):
        return os.path.join(self.folder, name)

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.path('nbd')}"

    def start(self, *words, **more):
        self.daemon = Daemon(self.folder, self.kind, *words, **more)
        self.case.addCleanup(self.daemon.kill)
        self.monitor = self.daemon.monitor()

    # --- Images and machines ---------------------------------------------------------------------

    def create(self, name, below=None, *words):
        over = ("-b", self.path(f"{below}.qcow2"), "-F", "qcow2") if below else ()
        qemu_img("create", "-q", "-f", "qcow2", *words, *over, self.path(f"{name}.qcow2"), str(SIZE))

    def serve(self, device, name="disk"):
        """What the machine's own disk is on a daemon: a writable export."""
        self.do("block-export-add", type="nbd", id="machine", node_name=device, name=name, writable=True)

    def write(self, *commands, name="disk"):
        """The same on each daemon, unlike what a client does meanwhile."""
        flat = [word for one in commands for word in ("-c", one)]
        run("qemu-io", "-f", "raw", *flat, self.uri(name))

    def work(self, name="disk"):
        """A client that goes on to write, on what the disk has."""
        self.client = Client(self.uri(name))
        self.client.model[:] = self.read(name)
        self.case.addCleanup(self.client.stopped.set)
        self.client.start()
        self.settle()

    def settle(self, requests=60):
        wanted = self.client.requests + requests
        until(lambda: self.client.requests >= wanted or self.client.failure, "the client")

    @contextlib.contextmanager
    def moment(self):
        """Nothing of the client is under way meanwhile; gives what the disk has."""
        model = self.client.pause()
        try:
            yield model
        finally:
            self.client.resume()

    def read(self, name):
        run("nbdcopy", self.uri(name), self.path("read.raw"))
        with open(self.path("read.raw"), "rb") as file:
            return file.read()

    def map(self, name, context):
        """The parts of an export that a context marks, as nbdinfo tells them."""
        rows = json.loads(run("nbdinfo", "--json", f"--map={context}", self.uri(name)).out)
        return [(row["offset"], row["length"]) for row in rows if row["type"] & 1]

    # --- The monitor -----------------------------------------------------------------------------

    def hear(self, what, value):
        self.heard.append((what, steady(value, self.folder)))

    def ask(self, name, /, **arguments):
        request = command(name, **arguments)
        answer = self.monitor.ask(request)
        self.hear(json.dumps(steady(request, self.folder)), answer)
        return answer

    def do(self, name, /, **arguments):
        answer = self.ask(name, **arguments)
        self.case.assertIn("return", answer, (self.kind, name, arguments))
        return answer["return"]

    def transaction(self, *actions):
        self.do("transaction", actions=list(actions))

    def wait(self, name, **data):
        """For an event, and what comes before it.  QEMU's pauses, whenever the graph changes, are not told."""
        events = [(one["event"], one["data"]) for one in self.monitor.until_event(name, data)]
        told = []
        for event in events:
            if told and (told[-1][1].get("status"), event[1].get("status")) in (("paused", "running"), ("standby", "ready")):
                told.pop()
            else:
                told.append(event)
        self.hear("events", told)

    def concluded(self, job):
        """As libvirt ends a job: it waits for the event, looks for an error, and dismisses it."""
        self.wait("JOB_STATUS_CHANGE", status="concluded", id=job)
        info = [one for one in self.do("query-jobs") if one["id"] == job]
        self.do("job-dismiss", id=job)
        self.wait("JOB_STATUS_CHANGE", status="null", id=job)
        return info[0].get("error")

    def poll(self, job, seen, what):
        """As Proxmox and Incus do, again and again; gives what they find in the end."""
        def look():
            found = [one for one in self.monitor.do("query-block-jobs") if one["device"] == job]
            return found if seen(found[0] if found else None) else None
        found = until(look, f"{job}: {what}")
        self.hear(what, [{key: one.get(key) for key in ("device", "type", "status", "ready", "error", "io-status")} for one in found])

    def quit(self):
        self.do("quit")
        self.case.assertEqual(self.daemon.end(None), 0, self.kind)

    # --- What libvirt calls its nodes ------------------------------------------------------------

    def add(self, number, name, below=None, read_only=False, **more):
        """A file and an image over it, each a node of its own; `below` is the number of the backing."""
        storage = node(f"libvirt-{number}-storage", driver="file", filename=self.path(f"{name}.qcow2"), auto_read_only=True, discard="unmap")
        self.do("blockdev-add", **storage)
        self.do("blockdev-add", **node(f"libvirt-{number}-format", driver="qcow2", read_only=read_only, discard="unmap",
                                       file=f"libvirt-{number}-storage", backing=below and f"libvirt-{below}-format", **more))

    def drop(self, number):
        self.do("blockdev-del", node_name=f"libvirt-{number}-format")
        self.do("blockdev-del", node_name=f"libvirt-{number}-storage")

    def listen(self):
        self.do("nbd-server-start", addr={"type": "unix", "data": {"path": self.path("nbd")}})


class Played(Case):
    def on_both(self, scene):
        heard = {}
        for kind in ("qemu", "link"):
            with self.subTest(daemon=kind):
                stage = Stage(self, kind)
                scene(stage)
                heard[kind] = stage.heard
        self.assertEqual(len(heard), 2)
        for theirs, ours in zip(heard.get("qemu", ()), heard.get("link", ())):
            with self.subTest(what=str(theirs[0])[:200]):
                self.assertEqual(ours, theirs)
        self.assertEqual(len(heard.get("link", ())), len(heard.get("qemu", ())))

    def expect(self, stage, name, model):
        """The image is sound and holds what the client wrote."""
        image = stage.path(f"{name}.qcow2")
        self.assertIn("No errors were found", qemu_img("check", image).text)
        with open(stage.path("model.raw"), "wb") as file:
            file.write(model)
        qemu_img("compare", "-f", "raw", "-F", "qcow2", stage.path("model.raw"), image)

    def bitmaps(self, image):
        found = describe(image)["format-specific"]["data"].get("bitmaps", [])
        return sorted((one["name"], tuple(one["flags"])) for one in found)


class Proxmox(Played):
    DRIVE = {
        "driver": "throttle", "node-name": "drive-scsi0", "throttle-group": "throttle-drive-scsi0",
        "file": {"driver": "qcow2", "node-name": "f-scsi0", "discard": "unmap", "detect-zeroes": "unmap", "read-only": False,
                 "cache": {"direct": True, "no-flush": False},
                 "file": {"driver": "file", "node-name": "e-scsi0", "aio": "io_uring", "discard": "unmap", "detect-zeroes": "unmap",
                          "read-only": False, "cache": {"direct": True, "no-flush": False}}}}

    def drive(self, stage):
        drive = json.loads(json.dumps(self.DRIVE))
        drive["file"]["file"]["filename"] = stage.path("disk.qcow2")
        return drive

    def test_its_storage_daemon(self):
        """In the background, found by its socket and its pidfile."""
        def scene(stage):
            stage.create("disk")
            pid = stage.path("pid")
            starter = Daemon(stage.folder, stage.kind, "--daemonize", "--chardev", f"socket,id=qmp,path={stage.path('qmp')},server=on,wait=off",
                             "--monitor", "chardev=qmp,mode=control", "--pidfile", pid, monitor=False)
            self.assertEqual(starter.end(None), 0, stage.kind)
            with open(pid, encoding="ascii") as file:
                pidfd = os.pidfd_open(int(file.read()))
            try:
                stage.monitor = Monitor(stage.path("qmp"))
                self.addCleanup(stage.monitor.close)
                stage.do("qmp_capabilities")
                stage.do("object-add", qom_type="throttle-group", id="throttle-drive-scsi0", limits={})
                stage.do("blockdev-add", **self.drive(stage))
                stage.do("nbd-server-start", addr={"type": "unix", "data": {"path": stage.path("nbd")}})
                stage.do("block-export-add", type="nbd", id="drive-scsi0", node_name="drive-scsi0", name="disk", writable=True)
                stage.write("write -P 5 0 3M", "write -z 1M 64k", "flush")
                stage.work()
                model = stage.client.stop()
                self.assertTrue(stage.read("disk") == model)
                stage.do("block-export-del", id="drive-scsi0")
                stage.wait("BLOCK_EXPORT_DELETED", id="drive-scsi0")
                stage.do("query-block-exports")
                stage.do("quit")
                until(lambda: not os.path.exists(pid), "the end of the pidfile")
            finally:
                if not readable(pidfd, 10):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
            self.expect(stage, "disk", model)
        self.on_both(scene)

    def test_it_moves_a_disk(self):
        """A mirror that is polled, told to keep up with writes, and completed as soon as that can be."""
        def scene(stage):
            stage.create("disk")
            stage.create("target")
            stage.start()
            stage.do("object-add", qom_type="throttle-group", id="throttle-drive-scsi0", limits={})
            stage.do("blockdev-add", **self.drive(stage))
            stage.do("blockdev-add", **node("target", driver="qcow2", discard="unmap",
                                            file={"driver": "file", "filename": stage.path("target.qcow2")}))
            stage.listen()
            stage.serve("drive-scsi0")
            stage.write("write -P 5 0 4M")
            stage.work()
            stage.do("blockdev-mirror", job_id="mirror-scsi0", device="drive-scsi0", target="target", sync="full", auto_dismiss=False, speed=1)
            stage.ask("job-complete", id="mirror-scsi0")  # "cannot be completed": it asks again.
            stage.ask("block-job-complete", device="mirror-scsi0")
            stage.do("block-job-set-speed", device="mirror-scsi0", speed=0)
            stage.poll("mirror-scsi0", lambda job: job["ready"], "ready")
            stage.do("block-job-change", id="mirror-scsi0", type="mirror", copy_mode="write-blocking")
            stage.settle()
            stage.do("job-complete", id="mirror-scsi0")
            stage.poll("mirror-scsi0", lambda job: job["status"] == "concluded", "concluded")
            stage.do("job-dismiss", id="mirror-scsi0")
            stage.do("query-block-jobs")
            stage.do("blockdev-del", node_name="drive-scsi0")
            stage.do("object-del", id="throttle-drive-scsi0")
            stage.settle()
            model = stage.client.stop()
            stage.quit()
            self.expect(stage, "target", model)
        self.on_both(scene)

    def test_it_gives_a_move_up(self):
        def scene(stage):
            stage.create("disk")
            stage.create("target")
            stage.start()
            stage.add(1, "disk")
            stage.add(2, "target")
            stage.listen()
            stage.serve("libvirt-1-format")
            stage.write("write -P 5 0 4M")
            stage.work()
            for job, ready in (("early", False), ("late", True)):
                stage.do("blockdev-mirror", job_id=job, device="libvirt-1-format", target="libvirt-2-format", sync="full", auto_dismiss=False,
                         **({} if ready else {"speed": 65536}))
                if ready:
                    stage.poll(job, lambda job: job["ready"], "ready")
                stage.do("block-job-cancel", device=job, **({"force": True} if ready else {}))
                stage.poll(job, lambda job: job["status"] == "concluded", "concluded")
                stage.wait("JOB_STATUS_CHANGE", status="concluded", id=job)
                stage.do("job-dismiss", id=job)
            stage.settle()
            model = stage.client.stop()
            stage.quit()
            self.expect(stage, "disk", model)
        self.on_both(scene)


class Imageio(Played):
    def test_a_whole_pull_backup(self):
        """Full, then incremental by a bitmap of its own that is merged from the one that recorded."""
        def scene(stage):
            stage.create("disk")
            stage.start()
            stage.do("blockdev-add", **node("file0", driver="qcow2", discard="unmap", file={"driver": "file", "filename": stage.path("disk.qcow2")}))
            stage.listen()
            stage.serve("file0", "machine")
            stage.write("write -P 1 0 2M", "write -P 2 3M 300k", name="machine")
            stage.work("machine")
            full, recorded = self.pull(stage, 1)
            self.assertEqual(recorded, [])
            stage.settle()
            last = stage.client.stop()
            stage.write("write -P 7 1M 200k", "write -z 5M 64k", "discard 6M 128k", name="machine")
            model = stage.read("machine")
            stage.work("machine")
            changed, recorded = self.pull(stage, 2)
            # All that differs from the first backup is in the second.
            self.assertTrue(over(full, changed, recorded) == changed)
            self.assertNotEqual(last, full)
            stage.settle()
            model = stage.client.stop()
            stage.quit()
            self.expect(stage, "disk", model)
            self.assertEqual(self.bitmaps(stage.path("disk.qcow2")), [("check1", ("auto",)), ("check2", ("auto",))])
        self.on_both(scene)

    def pull(self, stage, number):
        """What an export gives of one moment, and what its bitmap marks; the disk is written meanwhile."""
        qemu_img("create", "-q", "-f", "qcow2", "-b", stage.path("disk.qcow2"), "-F", "qcow2", stage.path(f"scratch{number}.qcow2"))
        stage.do("blockdev-add", **node("scratch", driver="qcow2", file={"driver": "file", "filename": stage.path(f"scratch{number}.qcow2")},
                                        backing="file0"))
        earlier = f"check{number - 1}" if number > 1 else None
        if earlier:
            stage.do("block-dirty-bitmap-add", node="file0", name="backup", disabled=True)
            stage.do("block-dirty-bitmap-merge", node="file0", target="backup", bitmaps=[earlier])
        with stage.moment() as model:
            if earlier:  # Up to this moment, too.
                stage.do("block-dirty-bitmap-merge", node="file0", target="backup", bitmaps=[{"node": "file0", "name": earlier}])
            stage.transaction(
                *[action("block-dirty-bitmap-disable", node="file0", name=earlier)] * bool(earlier),
                action("block-dirty-bitmap-add", node="file0", name=f"check{number}", persistent=True),
                action("blockdev-backup", device="file0", job_id="backup", target="scratch", sync="none", auto_dismiss=False))
        stage.do("block-export-add", type="nbd", id="backup-export", node_name="scratch", name="backup", allocation_depth=True,
                 **({"bitmaps": ["backup"]} if earlier else {}))
        stage.settle()
        found = stage.read("backup")
        self.assertTrue(found == model, stage.kind)
        self.assertIn("qemu:allocation-depth", run("nbdinfo", stage.uri("backup")).text)
        recorded = stage.map("backup", "qemu:dirty-bitmap:backup") if earlier else []
        with raw_client(stage.uri("backup")):
            stage.do("block-export-del", id="backup-export", mode="hard")
            stage.wait("BLOCK_EXPORT_DELETED", id="backup-export")
        stage.do("block-job-cancel", device="backup")
        stage.concluded("backup")
        stage.do("blockdev-del", node_name="scratch")
        if earlier:
            stage.do("block-dirty-bitmap-remove", node="file0", name="backup")
            stage.do("block-dirty-bitmap-enable", node="file0", name=earlier)
        return found, recorded


class Libvirt(Played):
    def test_pull_backups(self):
        """virtnbdbackup reads them: the map of what has changed, and the data of that."""
        def scene(stage):
            stage.create("disk")
            stage.start()
            stage.add(1, "disk")
            stage.listen()
            stage.serve("libvirt-1-format")
            stage.write("write -P 1 0 2M", "write -P 2 3M 300k")
            stage.work()
            copy = self.pulled(stage, 2, None, "cp1")
            stage.client.stop()
            for number, since, checkpoint in ((3, "cp1", "cp2"), (4, "cp2", "cp3")):
                stage.write(f"write -P {number} {number}M 200k", "write -z 256k 64k", "discard 6M 128k")
                stage.work()
                copy = self.pulled(stage, number, since, checkpoint, copy)
                stage.client.stop()
            model = stage.read("disk")
            stage.do("nbd-server-stop")
            stage.quit()
            self.expect(stage, "disk", model)
            self.assertEqual(self.bitmaps(stage.path("disk.qcow2")), [("cp1", ()), ("cp2", ()), ("cp3", ("auto",))])
        self.on_both(scene)

    def test_a_map_tells_exactly_what_was_written(self):
        """Without a client that goes on, both daemons mark the same."""
        def scene(stage):
            stage.create("disk")
            stage.start()
            stage.add(1, "disk")
            stage.listen()
            stage.serve("libvirt-1-format")
            stage.write("write -P 1 0 4M")
            stage.transaction(action("block-dirty-bitmap-add", node="libvirt-1-format", name="cp1", persistent=True, disabled=False))
            stage.write("write -P 2 1M 4k", "write -P 3 1500k 200k", "write -z 3M 64k", "discard 3584k 64k", "write -P 4 7M 1M")
            self.begin(stage, 2, "cp1", "cp2")
            stage.write("write -P 5 5M 1M")  # After the moment.
            stage.hear("map", stage.map("vda", "qemu:dirty-bitmap:backup-vda"))
            stage.hear("allocation", run("nbdinfo", "--json", "--map", stage.uri("vda")).code)
            run("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 1M", "-c", "read -P 2 1M 4k", "-c", "read -P 0 5M 1M", stage.uri("vda"))
            self.end(stage, 2)
            stage.hear("nodes", sorted((one["name"], one["count"], one["recording"], one["persistent"])
                                       for one in self.bitmaps_of(stage, "libvirt-1-format")))
            stage.quit()
        self.on_both(scene)

    @staticmethod
    def bitmaps_of(stage, name):
        return next(one for one in stage.monitor.do("query-named-block-nodes", flat=True) if one["node-name"] == name)["dirty-bitmaps"]

    def begin(self, stage, number, since, checkpoint):
        """The scratch image over the disk in use, and all that belongs to one moment."""
        qemu_img("create", "-q", "-f", "qcow2", "-b", stage.path("disk.qcow2"), "-F", "qcow2", stage.path(f"scratch{number}.qcow2"))
        stage.add(number, f"scratch{number}", below=1)
        disk = "libvirt-1-format"
        stage.transaction(
            *([action("block-dirty-bitmap-add", node=disk, name="backup-vda", persistent=False, disabled=True),
               action("block-dirty-bitmap-merge", node=disk, target="backup-vda", bitmaps=[{"node": disk, "name": since}])] if since else []),
            action("block-dirty-bitmap-add", node=disk, name=checkpoint, persistent=True, disabled=False),
            *[action("block-dirty-bitmap-disable", node=disk, name=since)] * bool(since),
            action("blockdev-backup", device=disk, job_id=f"backup-vda-{disk}", target=f"libvirt-{number}-format", sync="none",
                   auto_finalize=True, auto_dismiss=False))
        stage.do("block-export-add", type="nbd", id="libvirt-nbd-vda", node_name=f"libvirt-{number}-format", writable=False, name="vda",
                 **({"bitmaps": [{"node": disk, "name": "backup-vda"}]} if since else {}))

    def end(self, stage, number):
        stage.do("block-export-del", id="libvirt-nbd-vda", mode="hard")
        stage.wait("BLOCK_EXPORT_DELETED", id="libvirt-nbd-vda")
        stage.do("block-job-cancel", device="backup-vda-libvirt-1-format", force=True)
        stage.concluded("backup-vda-libvirt-1-format")
        if any(one["name"] == "backup-vda" for one in self.bitmaps_of(stage, "libvirt-1-format")):
            stage.transaction(action("block-dirty-bitmap-remove", node="libvirt-1-format", name="backup-vda"))
        stage.drop(number)

    def pulled(self, stage, number, since, checkpoint, copy=None):
        """A copy of that moment, by what has changed since `copy`."""
        with stage.moment() as model:
            self.begin(stage, number, since, checkpoint)
        stage.settle()
        if since:
            recorded = stage.map("vda", "qemu:dirty-bitmap:backup-vda")
            self.assertTrue(recorded)
            found = over(copy, read_parts(stage.uri("vda"), recorded), recorded)
        else:
            found = stage.read("vda")
        self.assertTrue(found == model, (stage.kind, checkpoint))
        self.end(stage, number)
        stage.settle()
        return found

    def test_push_backups(self):
        """Full, then twice what has changed, each over the one before."""
        def scene(stage):
            stage.create("disk")
            stage.start()
            stage.add(1, "disk")
            stage.listen()
            stage.serve("libvirt-1-format")
            stage.write("write -P 1 0 2M", "write -P 2 3M 300k")
            stage.work()
            disk, last = "libvirt-1-format", None
            for number in (2, 3, 4):
                name = f"push{number}"
                stage.create(name, last and f"push{number - 1}")
                stage.add(number, name)
                since, job = f"cp{number - 1}", {"device": disk, "job_id": "backup-vda", "target": f"libvirt-{number}-format",
                                                 "auto_finalize": True, "auto_dismiss": False}
                with stage.moment() as model:
                    if last is None:
                        stage.transaction(action("block-dirty-bitmap-add", node=disk, name=f"cp{number}", persistent=True),
                                          action("blockdev-backup", sync="full", **job))
                    else:
                        stage.transaction(
                            action("block-dirty-bitmap-add", node=disk, name="backup-vda", persistent=False, disabled=True),
                            action("block-dirty-bitmap-merge", node=disk, target="backup-vda", bitmaps=[{"node": disk, "name": since}]),
                            action("block-dirty-bitmap-add", node=disk, name=f"cp{number}", persistent=True),
                            action("blockdev-backup", sync="incremental", bitmap="backup-vda", **job))
                self.assertIsNone(stage.concluded("backup-vda"))
                if last:
                    stage.transaction(action("block-dirty-bitmap-remove", node=disk, name="backup-vda"))
                stage.settle()
                stage.drop(number)
                self.expect(stage, name, model)
                last = model
            model = stage.client.stop()
            stage.quit()
            self.expect(stage, "disk", model)
        self.on_both(scene)

    def test_a_block_copy_with_its_checkpoints_and_its_pivot(self):
        def scene(stage):
            stage.create("disk")
            stage.create("copy")
            stage.start()
            stage.add(1, "disk")
            stage.listen()
            stage.serve("libvirt-1-format")
            stage.write("write -P 1 0 2M")
            stage.transaction(action("block-dirty-bitmap-add", node="libvirt-1-format", name="cp1", persistent=True))
            stage.write("write -P 3 3M 300k")
            stage.work()
            stage.add(2, "copy")
            job = "copy-vda-libvirt-1-format"
            stage.do("blockdev-mirror", job_id=job, device="libvirt-1-format", target="libvirt-2-format", sync="full", granularity=65536,
                     copy_mode="write-blocking", auto_finalize=True, auto_dismiss=False)
            stage.wait("BLOCK_JOB_READY", device=job)
            stage.settle()
            with stage.moment():  # What the source's checkpoints have goes along.
                stage.transaction(
                    action("block-dirty-bitmap-add", node="libvirt-2-format", name="cp1", persistent=True, disabled=False),
                    action("block-dirty-bitmap-merge", node="libvirt-2-format", target="cp1", bitmaps=[{"node": "libvirt-1-format", "name": "cp1"}]))
            stage.do("job-complete", id=job)
            self.assertIsNone(stage.concluded(job))
            stage.drop(1)
            stage.settle()
            model = stage.client.stop()
            stage.quit()
            self.expect(stage, "copy", model)
            self.assertEqual(self.bitmaps(stage.path("copy.qcow2")), [("cp1", ("auto",))])
        self.on_both(scene)

    def chain(self, stage):
        """base <- mid <- top, each with something of its own, and a client on the top."""
        for name, below, byte in (("base", None, 1), ("mid", "base", 2), ("top", "mid", 3)):
            stage.create(name, below)
            run("qemu-io", "-f", "qcow2", "-c", f"write -P {byte} {byte}M 2M", stage.path(f"{name}.qcow2"))
        stage.start()
        stage.add(1, "base")  # Writable: block-commit writes into it.
        stage.add(2, "mid", below=1)
        stage.add(3, "top", below=2)
        stage.listen()
        stage.serve("libvirt-3-format")
        stage.work()

    def backing(self, stage, name):
        return describe(stage.path(f"{name}.qcow2")).get("backing-filename")

    def test_a_block_commit_in_the_middle_of_a_chain(self):
        def scene(stage):
            self.chain(stage)
            job = "commit-vda-libvirt-2-format"
            stage.do("block-commit", device="libvirt-3-format", job_id=job, top_node="libvirt-2-format", base_node="libvirt-1-format",
                     backing_file=stage.path("base.qcow2"), backing_mask_protocol=True, auto_finalize=True, auto_dismiss=False)
            self.assertIsNone(stage.concluded(job))
            stage.drop(2)
            stage.settle()
            model = stage.client.stop()
            stage.quit()
            self.assertEqual(self.backing(stage, "top"), stage.path("base.qcow2"))
            self.expect(stage, "top", model)
        self.on_both(scene)

    def test_an_active_block_commit(self):
        def scene(stage):
            self.chain(stage)
            job = "commit-vda-libvirt-3-format"
            stage.do("block-commit", device="libvirt-3-format", job_id=job, top_node="libvirt-3-format", base_node="libvirt-1-format",
                     auto_finalize=True, auto_dismiss=False)
            stage.wait("BLOCK_JOB_READY", device=job)
            stage.settle()
            stage.do("job-complete", id=job)
            self.assertIsNone(stage.concluded(job))
            stage.drop(3)
            stage.drop(2)
            stage.settle()
            model = stage.client.stop()
            stage.quit()
            self.expect(stage, "base", model)
        self.on_both(scene)

    def test_a_block_pull(self):
        for base in ("libvirt-1-format", None):
            with self.subTest(base=base):
                def scene(stage):
                    self.chain(stage)
                    job = "pull-vda-libvirt-3-format"
                    more = {"base_node": base, "backing_file": stage.path("base.qcow2"), "backing_mask_protocol": True} if base else {}
                    stage.do("block-stream", device="libvirt-3-format", job_id=job, speed=64 * MIB, auto_finalize=True, auto_dismiss=False, **more)
                    self.assertIsNone(stage.concluded(job))
                    stage.drop(2)
                    if not base:
                        stage.drop(1)
                    stage.settle()
                    model = stage.client.stop()
                    stage.quit()
                    self.assertEqual(self.backing(stage, "top"), stage.path("base.qcow2") if base else None)
                    self.expect(stage, "top", model)
                self.folder = self.path("some" if base else "none")
                self.on_both(scene)
                self.folder = os.path.dirname(self.folder)

    def test_checkpoints_are_made_and_deleted(self):
        """One that goes gives what it has recorded to the one before."""
        def scene(stage):
            stage.create("disk")
            stage.start()
            stage.add(1, "disk")
            stage.listen()
            stage.serve("libvirt-1-format")
            disk = "libvirt-1-format"
            for number in (1, 2, 3):
                stage.transaction(*[action("block-dirty-bitmap-disable", node=disk, name=f"cp{number - 1}")] * (number > 1),
                                  action("block-dirty-bitmap-add", node=disk, name=f"cp{number}", persistent=True, disabled=False))
                stage.write(f"write -P {number} {number}M 128k")
            stage.transaction(
                action("block-dirty-bitmap-merge", node=disk, target="cp1", bitmaps=[{"node": disk, "name": "cp2"}]),
                action("block-dirty-bitmap-remove", node=disk, name="cp2"))
            refused = stage.ask("transaction", actions=[
                action("block-dirty-bitmap-remove", node=disk, name="cp3"), action("block-dirty-bitmap-remove", node=disk, name="cp2")])
            self.assertIn("error", refused)
            stage.hear("bitmaps", sorted((one["name"], one["count"], one["recording"]) for one in self.bitmaps_of(stage, disk)))
            stage.do("block-export-del", id="machine")
            stage.quit()
            stage.hear("in the image", self.bitmaps(stage.path("disk.qcow2")))
            self.assertIn("No errors were found", qemu_img("check", stage.path("disk.qcow2")).text)
        self.on_both(scene)

    def test_fleecing_through_a_node_that_copies_before_writes(self):
        """A disk under copy-before-write, and the view of its moment: snapshot-access, with a bitmap."""
        def scene(stage):
            before = fleeced(stage)
            stage.write("write -P 9 512k 128k")
            stage.work()
            stage.settle(200)
            recorded = stage.map("vda", "qemu:dirty-bitmap:backup-vda")
            stage.hear("map", recorded)
            self.assertTrue(over(bytes(SIZE), read_parts(stage.uri("vda"), recorded), recorded) == before)
            stage.settle(100)
            self.assertTrue(stage.read("vda") == before)
            stage.do("block-export-del", id="libvirt-nbd-vda", mode="hard")
            stage.wait("BLOCK_EXPORT_DELETED", id="libvirt-nbd-vda")
            stage.do("blockdev-del", node_name="view")
            stage.settle()
            model = stage.client.stop()
            stage.do("block-export-del", id="machine", mode="hard")
            stage.wait("BLOCK_EXPORT_DELETED", id="machine")
            stage.do("blockdev-del", node_name="cbw")
            stage.drop(2)
            stage.quit()
            self.expect(stage, "disk", model)
        self.on_both(scene)

    def test_a_push_backup_of_the_moment_lets_go_what_it_has_copied(self):
        """discard-source: the image that keeps the moment needs no room for what the backup has already."""
        def scene(stage):
            before = fleeced(stage)
            stage.do("block-export-del", id="libvirt-nbd-vda", mode="hard")
            stage.wait("BLOCK_EXPORT_DELETED", id="libvirt-nbd-vda")
            stage.write("write -P 9 512k 128k", "write -P 9 7M 512k")
            stage.create("push")
            stage.add(3, "push")
            refused = stage.ask("blockdev-backup", job_id="b", device="nosuch", target="libvirt-3-format", sync="full", discard_source=True)
            stage.hear("no such node", refused)
            stage.work()
            stage.do("blockdev-backup", job_id="b", device="view", target="libvirt-3-format", sync="full", discard_source=True,
                     auto_dismiss=False)
            stage.poll("b", lambda job: job["status"] == "concluded", "concluded")
            stage.hear("how it ended", [job.get("error") for job in stage.do("query-jobs")])
            stage.do("job-dismiss", id="b")
            model = stage.client.stop()
            if stage.kind == "link":
                # All was let go: guests change it without a copy.
                taken = os.stat(stage.path("temp.qcow2")).st_blocks
                stage.write(f"write -P 3 0 {len(model)}")
                model = bytes([3]) * len(model)
                self.assertLessEqual(os.stat(stage.path("temp.qcow2")).st_blocks, taken)
            stage.do("blockdev-del", node_name="view")
            stage.do("block-export-del", id="machine", mode="hard")
            stage.wait("BLOCK_EXPORT_DELETED", id="machine")
            stage.do("blockdev-del", node_name="cbw")
            stage.drop(2)
            stage.drop(3)
            stage.quit()
            self.expect(stage, "disk", model)
            self.expect(stage, "push", before)
        self.on_both(scene)


class Incus(Played):
    def test_a_disk_moves_to_another_server_and_its_snapshot_is_committed(self):
        """The NBD socket is its own and is handed over; the copy is what the overlay has, written as the guest writes."""
        def scene(stage):
            for name, below in (("disk", None), ("overlay", "disk"), ("far", None)):
                stage.create(name, below)
            listener = socket.socket(socket.AF_UNIX)
            self.addCleanup(listener.close)
            listener.bind(stage.path("nbd"))
            listener.listen()
            far = Server(stage.path("far.qcow2"), stage.path("far.nbd"), name="far")
            self.addCleanup(far.kill)
            stage.start("--nbd-server", f"addr.type=fd,addr.str={listener.fileno()}", pass_fds=[listener.fileno()])
            stage.add(1, "disk")
            stage.serve("libvirt-1-format")
            stage.write("write -P 1 0 2M", "write -P 2 7M 1M")
            stage.work()
            stage.add(2, "overlay")
            with stage.moment() as model:
                stage.do("blockdev-snapshot", node="libvirt-1-format", overlay="libvirt-2-format")
            self.copy(model, stage, far.uri)
            stage.do("blockdev-add", **node("far", driver="nbd", server={"type": "unix", "path": stage.path("far.nbd")}, export="far"))
            stage.do("blockdev-mirror", job_id="migrate", device="libvirt-2-format", target="far", sync="top", copy_mode="write-blocking",
                     auto_dismiss=False)
            stage.poll("migrate", lambda job: job["ready"], "ready")
            stage.settle()
            with stage.moment() as model:
                stage.do("block-job-cancel", device="migrate")
                stage.poll("migrate", lambda job: job["status"] == "concluded", "concluded")
            stage.do("job-dismiss", id="migrate")
            stage.do("blockdev-del", node_name="far")
            far.stop()
            self.expect(stage, "far", model)
            stage.do("block-commit", job_id="commit", device="libvirt-2-format", top_node="libvirt-2-format", base_node="libvirt-1-format",
                     auto_dismiss=False)
            stage.poll("commit", lambda job: job["ready"], "ready")
            stage.settle()
            stage.do("job-complete", id="commit")
            stage.poll("commit", lambda job: job["status"] == "concluded", "concluded")
            stage.do("job-dismiss", id="commit")
            stage.drop(2)
            stage.settle()
            model = stage.client.stop()
            stage.quit()
            self.expect(stage, "disk", model)
        self.on_both(scene)

    @staticmethod
    def copy(model, stage, uri):
        with open(stage.path("base.raw"), "wb") as file:
            file.write(model)
        run("nbdcopy", stage.path("base.raw"), uri)

    def test_bitmaps_are_named_with_their_nodes_and_servers_by_abstract_names(self):
        def scene(stage):
            stage.create("disk")
            stage.start()
            stage.add(1, "disk")
            disk, name = "libvirt-1-format", f"byre-{stage.kind}-{os.getpid()}"
            for bitmap in ("one", "two"):
                stage.do("block-dirty-bitmap-add", node=disk, name=bitmap)
            started = stage.monitor.ask(command("nbd-server-start", addr={"type": "unix", "data": {"path": name, "abstract": True}}))
            self.assertIn("return", started)
            stage.do("block-export-add", type="nbd", id="e", node_name=disk, name="disk", writable=True,
                     bitmaps=[{"node": disk, "name": "one"}, {"node": disk, "name": "two"}])
            handle = nbd.NBD()
            handle.set_export_name("disk")
            for bitmap in ("one", "two"):
                handle.add_meta_context(f"qemu:dirty-bitmap:{bitmap}")
            client = socket.socket(socket.AF_UNIX)
            client.connect("\0" + name)
            handle.connect_socket(client.detach())
            stage.hear("contexts", [handle.can_meta_context(f"qemu:dirty-bitmap:{bitmap}") for bitmap in ("one", "two", "none")])
            handle.shutdown()
            stage.quit()
        self.on_both(scene)


class Endures(Played):
    """What has gone wrong with storage daemons under such clients."""

    def stage(self):
        return Stage(self, "link")

    def test_readers_of_one_snapshot_meet(self):
        """Many at once read the same ranges of the view of a moment, and ask what they are; the disk is written."""
        stage = self.stage()
        before = fleeced(stage)
        stage.work()
        draw = random.Random(1)
        with contextlib.ExitStack() as stack:
            handles = [stack.enter_context(raw_client(stage.uri("vda"), "base:allocation", "qemu:dirty-bitmap:backup-vda")) for _ in range(4)]
            for _ in range(20):
                look_at_once(handles, before, [(draw.randrange(56) * 128 * KIB, 256 * KIB) for _ in range(2)])
        model = stage.client.stop()
        self.assertTrue(model != before)
        stage.quit()
        self.expect(stage, "disk", model)

    def throttled(self, rate=64 * KIB):
        """A disk over a base, with more than a minute's worth of requests under way that its limits hold back."""
        stage = self.stage()
        stage.create("base")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 3 0 2M", stage.path("base.qcow2"))
        stage.create("disk", "base")
        stage.start()
        stage.add(1, "base")
        stage.add(2, "disk", below=1)
        stage.do("object-add", qom_type="throttle-group", id="slow", limits={"bps-total": rate})
        stage.do("blockdev-add", **node("throttled", driver="throttle", throttle_group="slow", file="libvirt-2-format"))
        stage.listen()
        stage.serve("throttled")
        handle = nbd.NBD()
        handle.connect_uri(stage.uri("disk"))
        for number in range(40):
            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"\x05" * 128 * KIB)), 2 * MIB + number * 128 * KIB)
        while handle.poll(100):  # Until there is nothing more to send or to hear.
            pass
        self.assertGreater(handle.aio_in_flight(), 20)
        return stage, handle

    def ends_at_once(self, stage, handle, end):
        """What holds requests back does not hold up an end (trap 14): all that was sent is answered or refused within two seconds, and
        what was answered is there."""
        offsets = [2 * MIB + number * 128 * KIB for number in range(40)]
        began = time.monotonic()
        end(stage)
        took = time.monotonic() - began
        self.assertLess(took, 2)
        answered = []
        with contextlib.suppress(nbd.Error):
            while handle.aio_in_flight() or handle.aio_peek_command_completed() > 0:
                cookie = handle.aio_peek_command_completed()
                if cookie > 0:
                    with contextlib.suppress(nbd.Error):
                        if handle.aio_command_completed(cookie):
                            answered.append(offsets[cookie - 1])
                elif handle.poll(2000) == 0:
                    break
        return answered

    def test_trap_14_throttling_does_not_hold_up_an_end(self):
        def gone(stage):
            stage.wait("BLOCK_EXPORT_DELETED", id="machine")

        def removed(stage):
            stage.do("block-export-del", id="machine", mode="hard")
            gone(stage)

        def stopped(stage):
            stage.do("nbd-server-stop")
            gone(stage)

        def held(stage):
            stage.transaction(action("block-dirty-bitmap-add", node="libvirt-2-format", name="b"))

        def cancelled(stage):
            """A job whose reads the limits hold back."""
            stage.create("copy")
            stage.add(3, "copy")
            stage.do("blockdev-backup", job_id="job", device="throttled", target="libvirt-3-format", sync="full", auto_dismiss=False)
            time.sleep(0.2)
            began = time.monotonic()
            stage.do("block-job-cancel", device="job")
            stage.concluded("job")
            self.assertLess(time.monotonic() - began, 1)

        def quit_by(how):
            def end(stage):
                how(stage)
                self.assertEqual(stage.daemon.end(None), 0)
            return end

        ends = {"removed": removed, "stopped": stopped, "held": held, "cancelled": cancelled,
                "quit": quit_by(lambda stage: stage.do("quit")), "term": quit_by(lambda stage: stage.daemon.process.send_signal(signal.SIGTERM))}
        for name, end in ends.items():
            with self.subTest(end=name):
                self.folder = self.path(name)
                os.makedirs(self.folder)
                stage, handle = self.throttled(4 * KIB)
                answered = self.ends_at_once(stage, handle, end)
                self.assertGreater(len(answered), 20)
                if stage.daemon.process.poll() is None:
                    stage.quit()
                image = stage.path("disk.qcow2")
                self.assertIn("No errors were found", qemu_img("check", image).text)
                run("qemu-io", "-f", "qcow2", "-r", *[word for at in answered for word in ("-c", f"read -P 5 {at} 128k")], image)
                self.folder = os.path.dirname(self.folder)

    def test_a_job_does_not_wait_for_a_throttled_disk(self):
        """It changes the graph below the limits."""
        stage, handle = self.throttled()
        began = time.monotonic()
        stage.do("block-stream", device="libvirt-2-format", job_id="stream", auto_dismiss=False)
        self.assertIsNone(stage.concluded("stream"))
        self.assertLess(time.monotonic() - began, 30)
        self.assertGreater(handle.aio_in_flight(), 0)
        stage.daemon.kill()
        qemu_img("check", "-r", "leaks", stage.path("disk.qcow2"), ok=(0, 3))
        run("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 3 0 2M", stage.path("disk.qcow2"))

    def test_requests_in_any_number_are_answered_and_rest_costs_nothing(self):
        stage = self.stage()
        stage.create("disk")
        stage.start()
        stage.add(1, "disk")
        stage.listen()
        stage.serve("libvirt-1-format")
        with raw_client(stage.uri("disk")) as handle:
            for count in (1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 1):
                byte = count % 251 + 1
                done = [handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([byte]) * 4096), number * 4096) for number in range(count)]
                await_all(handle, done)
                self.assertEqual(handle.pread(count * 4096, 0), bytes([byte]) * count * 4096)
            pid = stage.daemon.process.pid
            time.sleep(0.5)
            before = cost(pid)
            time.sleep(2)
            ticks, wakes = (now - then for now, then in zip(cost(pid), before))
        self.assertLessEqual(ticks, 2)
        self.assertLessEqual(wakes, 40)
        stage.quit()

    def test_zeroes_on_a_device_of_4k_blocks(self):
        """What is smaller than a block is zeroed by writing it."""
        stage = self.stage()
        with open(stage.path("device"), "wb") as file:
            file.truncate(SIZE)
        attached = run("losetup", "-f", "--show", "-b", "4096", "--direct-io=on", stage.path("device"), ok=None)
        if attached.code:
            self.skipTest(f"no loop device: {attached.text}")
        device = attached.out.decode().strip()
        self.addCleanup(run, "losetup", "-d", device)
        stage.start()
        stage.do("blockdev-add", **node("disk", driver="raw", discard="unmap", detect_zeroes="unmap", cache={"direct": True, "no-flush": False},
                                        file={"driver": "host_device", "filename": device, "discard": "unmap",
                                              "cache": {"direct": True, "no-flush": False}}))
        stage.listen()
        stage.serve("disk")
        model = bytearray(b"\x07" * SIZE)
        with raw_client(stage.uri("disk")) as handle:
            for at in range(0, SIZE, MIB):
                handle.pwrite(bytes(model[at:at + MIB]), at)
            step = handle.get_block_size(nbd.SIZE_MINIMUM) or 1
            for number, (at, length) in enumerate(((512, 512), (4096, 4096), (8192 + 512, 8192), (64 * KIB - 512, 1024), (MIB, MIB),
                                                   (2 * MIB + 3584, 64 * KIB), (3 * MIB, 512), (SIZE - 512, 512))):
                if at % step or length % step:
                    continue
                handle.zero(length, at, nbd.CMD_FLAG_NO_HOLE if number % 2 else 0)
                model[at:at + length] = bytes(length)
            handle.flush()
            for at in range(0, SIZE, MIB):
                self.assertTrue(handle.pread(MIB, at) == model[at:at + MIB], hex(at))
        stage.quit()
        with open(stage.path("device"), "rb") as file:
            self.assertTrue(file.read() == model)

    def test_each_error_that_stops_a_job_is_told(self):
        """However many follow each other: who waits for the event would wait for ever."""
        def scene(stage):
            stage.create("disk")
            stage.create("full")
            run("qemu-io", "-f", "qcow2", "-c", "write -P 3 0 64k", stage.path("disk.qcow2"))
            stage.start()
            stage.add(1, "disk")
            stage.add(2, "full")
            stage.do("blockdev-add", **node("bad", driver="blkdebug", image="libvirt-2-format",
                                            inject_error=[{"event": "none", "iotype": "write", "errno": 28}]))
            stage.do("blockdev-mirror", job_id="m", device="libvirt-1-format", target="bad", sync="full", on_target_error="stop",
                     auto_dismiss=False)
            for _ in range(20):
                errors = stage.monitor.until_event("BLOCK_JOB_ERROR", {"device": "m"})
                self.assertEqual((errors[-1]["data"]["action"], errors[-1]["data"]["operation"]), ("stop", "write"))
                # byre's may be ready already, so that it stands by.
                until(lambda: stage.monitor.do("query-jobs")[0]["status"] in ("paused", "standby"), "the pause")
                stage.hear("stopped", [(one["io-status"], one["paused"]) for one in stage.monitor.do("query-block-jobs")])
                stage.monitor.events.clear()
                stage.do("job-resume", id="m")
            stage.do("block-job-cancel", device="m", force=True)
            until(lambda: stage.monitor.do("query-jobs")[0]["status"] == "concluded", "the end")
            stage.do("job-dismiss", id="m")
            stage.quit()
        self.on_both(scene)


# --- Helpers --------------------------------------------------------------------------------------

def fleeced(stage):
    """A daemon with a disk under copy-before-write, exported, and beside it the view of the moment in which that began,
    with the bitmap of what was written before.  Gives what that moment had."""
    stage.create("disk")
    stage.create("temp")
    stage.start()
    stage.add(1, "disk")
    stage.do("block-dirty-bitmap-add", node="libvirt-1-format", name="backup-vda", persistent=False)
    stage.listen()
    stage.serve("libvirt-1-format")
    stage.write("write -P 1 0 2M", "write -z 1M 64k", "write -P 2 7M 1M")
    before = stage.read("disk")
    stage.do("block-export-del", id="machine")
    stage.wait("BLOCK_EXPORT_DELETED", id="machine")
    stage.do("block-dirty-bitmap-disable", node="libvirt-1-format", name="backup-vda")
    stage.add(2, "temp")
    stage.do("blockdev-add", **node("cbw", driver="copy-before-write", file="libvirt-1-format", target="libvirt-2-format",
                                    on_cbw_error="break-snapshot", cbw_timeout=45))
    stage.do("blockdev-add", **node("view", driver="snapshot-access", file="cbw"))
    stage.serve("cbw")
    stage.do("block-export-add", type="nbd", id="libvirt-nbd-vda", node_name="view", name="vda",
             bitmaps=[{"node": "libvirt-1-format", "name": "backup-vda"}])
    return before


def await_all(handle, cookies):
    """All of these requests succeed."""
    left = set(cookies)
    deadline = time.monotonic() + 60
    while left:
        if time.monotonic() > deadline:
            raise AssertionError(f"{len(left)} of {len(cookies)} requests are never answered")
        handle.poll(100)
        left = {cookie for cookie in left if not handle.aio_command_completed(cookie)}


def look_at_once(handles, model, ranges):
    """Each client reads all of these twice, and asks twice what they are; all of that is under way together."""
    extents, reads, asked = [], [], []
    for handle in handles:
        cookies = []
        for at, length in ranges * 2:
            buffer = nbd.Buffer(length)
            cookies.append(handle.aio_block_status(length, at, lambda context, offset, entries, error: extents.append(list(entries)) or 0))
            cookies.append(handle.aio_pread(buffer, at))
            reads.append((buffer, at, length))
        asked.append((handle, cookies))
    for handle, cookies in asked:
        await_all(handle, cookies)
    for buffer, at, length in reads:
        if buffer.to_bytearray() != model[at:at + length]:
            raise AssertionError(f"the snapshot differs at {at:#x}")
    if len(extents) != 2 * len(reads) or not all(extents):
        raise AssertionError(f"{len(extents)} answers about {len(reads)} ranges, each in two contexts")


def cost(pid):
    """Clock ticks on a processor, and how often its threads went to sleep."""
    ticks = wakes = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
        with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as file:
            wakes += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.M).group(1))
    return ticks, wakes


@contextlib.contextmanager
def raw_client(uri, *contexts):
    """A client that stays; the server may end its connection."""
    handle = nbd.NBD()
    for context in contexts:
        handle.add_meta_context(context)
    handle.connect_uri(uri)
    yield handle
    with contextlib.suppress(nbd.Error):
        handle.shutdown()


def read_parts(uri, parts):
    """A disk of which only these parts are read."""
    found = bytearray(SIZE)
    with raw_client(uri) as handle:
        for at, length in parts:
            for begin in range(at, at + length, MIB):
                size = min(MIB, at + length - begin)
                found[begin:begin + size] = handle.pread(size, begin)
    return found


def over(below, above, parts):
    """`below`, and of `above` these parts."""
    found = bytearray(below)
    for at, length in parts:
        found[at:at + length] = above[at:at + length]
    return found


if __name__ == "__main__":
    main()
