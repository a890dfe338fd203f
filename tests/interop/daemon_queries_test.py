#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What clients ask a daemon about its nodes and objects, beside QEMU's storage daemon: statistics, thresholds, checksums, objects."""
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import KIB, MIB, Case, main, qemu_img  # noqa: E402
from qmp import Daemon, command  # noqa: E402


class Two(Case):
    """The same steps on a daemon of each kind."""

    def each(self):
        for kind in ("qemu", "byre"):
            folder = os.path.join(self.folder, kind)
            os.makedirs(folder)
            qemu_img("create", "-q", "-f", "qcow2", os.path.join(folder, "a.qcow2"), "8M")
            qemu_img("create", "-q", "-f", "raw", os.path.join(folder, "r.raw"), "1M")
            daemon = Daemon(folder, kind)
            self.addCleanup(daemon.kill)
            monitor = daemon.monitor()
            monitor.do("blockdev-add", driver="qcow2", node_name="q", file={"driver": "file", "filename": "a.qcow2", "node-name": "f"})
            monitor.do("blockdev-add", driver="raw", node_name="r", file={"driver": "file", "filename": "r.raw", "node-name": "rf"})
            monitor.do("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}})
            for node in ("q", "r"):
                monitor.do("block-export-add", type="nbd", id=node, node_name=node, writable=True)
            yield kind, monitor
            monitor.close()
            self.assertEqual(daemon.end(), 0, kind)

    def io(self, kind, node, *commands):
        words = [word for one in commands for word in ("-c", one)]
        url = f"nbd+unix:///{node}?socket={os.path.join(self.folder, kind, 'nbd')}"
        done = subprocess.run(["qemu-io", "-f", "raw", *words, url], capture_output=True, text=True, check=True)
        self.assertNotIn("failed", done.stdout)

    def same(self, heard):
        self.assertEqual(heard["byre"], heard["qemu"])
        return heard["byre"]


def answer(monitor, name, /, *args, **more):
    got = monitor.ask(command(name, *args, **more))
    return got.get("return", got.get("error"))


class Errors(Two):
    def test_who_is_told_of_an_error(self):
        """An export's client gets the error and monitors no event; a job's monitors get BLOCK_JOB_ERROR, never BLOCK_IO_ERROR."""
        heard = {}
        for kind, monitor in self.each():
            told = heard[kind] = []
            folder = os.path.join(self.folder, kind)
            qemu_img("create", "-q", "-f", "raw", os.path.join(folder, "bad.raw"), "1M")
            monitor.do("blockdev-add", driver="raw", node_name="bad", file={
                "driver": "blkdebug", "image": {"driver": "file", "filename": "bad.raw"},
                "inject-error": [{"event": "none", "iotype": iotype, "errno": 5} for iotype in ("read", "write")]})
            monitor.do("block-export-add", type="nbd", id="bad", node_name="bad", writable=True)
            monitor.events = []
            url = f"nbd+unix:///bad?socket={os.path.join(folder, 'nbd')}"
            for one in ("read 0 4k", "write 0 4k"):
                done = subprocess.run(["qemu-io", "-f", "raw", "-c", one, url], capture_output=True, text=True)
                told.append("Input/output error" in done.stdout + done.stderr)
            monitor.do("query-version")
            told.append(list(monitor.events))
            monitor.do("block-export-del", id="r", mode="hard")
            monitor.event("BLOCK_EXPORT_DELETED")
            monitor.do("blockdev-mirror", job_id="j", device="bad", target="r", sync="full")
            events = monitor.until_event("JOB_STATUS_CHANGE", {"id": "j", "status": "null"})
            # Each of its requests that fail is told; how many run at a time is the program's own business.
            told.append({tuple(sorted(event["data"].items())) for event in events if event["event"] == "BLOCK_JOB_ERROR"})
            told.append("BLOCK_IO_ERROR" in {event["event"] for event in events})
        error = (("action", "report"), ("device", "j"), ("operation", "read"))
        self.assertEqual(self.same(heard), [True, True, [], {error}, False])


class Thresholds(Two):
    def events(self, monitor):
        monitor.do("query-version")
        taken, monitor.events = monitor.events, []
        return [(event["event"], event["data"]) for event in taken]

    def test_a_write_behind_the_threshold_is_told_once(self):
        heard = {}
        for kind, monitor in self.each():
            told = heard[kind] = []

            def threshold(node):
                rows = monitor.do("query-named-block-nodes", flat=True)
                return [row["write_threshold"] for row in rows if row["node-name"] == node]

            def step(node, offset, *commands):
                monitor.do("block-set-write-threshold", node_name=node, write_threshold=offset)
                told.append(threshold(node))
                for one in commands:
                    self.io(kind, node, one)
                    told.append((self.events(monitor), threshold(node)))
            step("r", 64 * KIB, "write 0 64k", "discard 512k 64k", "write 512 64k", "write 128k 128k")
            step("r", 64 * KIB, "write -z 0 68k")
            step("r", 64 * KIB)
            step("r", 0, "write 64k 64k")
        heard = self.same(heard)
        passed = [entry[0] for entry in heard if isinstance(entry, tuple) and entry[0]]
        self.assertEqual(len(passed), 2)

    def test_the_file_of_an_image_has_one_too(self):
        """oVirt gives an image a larger volume when that is told."""
        for kind, monitor in self.each():
            monitor.do("block-set-write-threshold", node_name="f", write_threshold=MIB)
            self.io(kind, "q", "write -P 1 0 64k")
            self.assertEqual(self.events(monitor), [], kind)
            self.io(kind, "q", "write -P 2 64k 2M", "read -P 1 0 64k", "read -P 2 64k 2M")
            [(name, data)] = self.events(monitor)
            self.assertEqual((name, data["node-name"], data["write-threshold"]), ("BLOCK_WRITE_THRESHOLD", "f", MIB))
            self.assertGreater(data["amount-exceeded"], 0)

    def test_what_is_refused(self):
        heard = {}
        for kind, monitor in self.each():
            heard[kind] = [answer(monitor, "block-set-write-threshold", *args) for args in (
                ({"node-name": "nosuch", "write-threshold": 1},), ({"node-name": "q"},), ({"write-threshold": 1},))]
        self.same(heard)

    def test_a_node_with_a_threshold_goes(self):
        for kind, monitor in self.each():
            for node in ("f", "q"):
                monitor.do("block-set-write-threshold", node_name=node, write_threshold=5 * MIB)
            monitor.do("block-export-del", id="q")
            monitor.do("blockdev-del", node_name="q")


class Statistics(Two):
    def test_the_members_and_the_highest_offset_are_qemus(self):
        shapes = {}
        for kind, monitor in self.each():
            self.io(kind, "r", "write 0 64k", "write -z 128k 4k")
            rows = {row["node-name"]: row for row in monitor.do("query-blockstats", query_nodes=True)}
            shapes[kind] = {
                name: (sorted(row), sorted(row["stats"]), row["stats"]["wr_highest_offset"], sorted(row.get("driver-specific", {})),
                       row.get("parent", {}).get("node-name")) for name, row in rows.items()}
            self.assertEqual(monitor.do("query-blockstats"), [])
            self.assertEqual(monitor.do("query-blockstats", query_nodes=False), [])
        shapes = self.same(shapes)
        self.assertEqual(shapes["r"][2], 132 * KIB)

    def test_clients_requests_are_counted(self):
        """QEMU's daemon says 0 here: it counts only what the drives of a machine do."""
        for kind, monitor in self.each():
            if kind == "qemu":
                continue

            def stats():
                return {row["node-name"]: row for row in monitor.do("query-blockstats", query_nodes=True)}
            self.io(kind, "q", "write 1M 64k", "write -z 2M 128k", "read 1M 4k", "read 0 512", "flush", "discard 1M 64k")
            now = stats()["q"]["stats"]
            self.assertEqual((now["wr_operations"], now["wr_bytes"], now["wr_highest_offset"]), (2, 192 * KIB, 2 * MIB + 128 * KIB))
            self.assertEqual((now["rd_operations"], now["rd_bytes"]), (2, 4096 + 512))
            self.assertEqual((now["unmap_operations"], now["unmap_bytes"]), (1, 64 * KIB))
            self.assertGreater(now["flush_operations"], 0)
            self.assertEqual(now["failed_wr_operations"], 0)
            file = stats()["f"]
            self.assertGreater(file["stats"]["wr_highest_offset"], 64 * KIB)
            self.assertGreaterEqual(file["driver-specific"]["discard-bytes-ok"], 0)
            self.io(kind, "r", "write 0 64k", "discard 0 64k")
            discards = stats()["rf"]["driver-specific"]
            self.assertEqual((discards["discard-nb-ok"], discards["discard-bytes-ok"], discards["discard-nb-failed"]), (1, 64 * KIB, 0))


class Checksums(Two):
    def test_of_bits_are_qemus(self):
        heard = {}
        for kind, monitor in self.each():
            told = heard[kind] = []

            def look(node, name):
                told.append(answer(monitor, "x-debug-block-dirty-bitmap-sha256", node=node, name=name))
            bitmaps = [("r", "b512", 512), ("r", "b4k", 4096), ("r", "b64k", 65536), ("r", "b1M", MIB), ("q", "q512", 512), ("q", "q64k", 65536)]
            for node, name, granularity in bitmaps:
                monitor.do("block-dirty-bitmap-add", node=node, name=name, granularity=granularity)
                look(node, name)
            monitor.do("block-dirty-bitmap-add", node="q", name="kept", persistent=True)
            self.io(kind, "r", "write 0 64k", "write 128k 4k", "write 1023k 1k")
            self.io(kind, "q", "write 0 512", "write 3M 2M", "write 5000k 12k", "write 8191k 1k")
            for node, name, _ in [*bitmaps, ("q", "kept", 0)]:
                look(node, name)
            look("q", "nosuch")
            look("nosuch", "b")
        heard = self.same(heard)
        self.assertEqual(len({entry["sha256"] for entry in heard if "sha256" in entry}), 13 - 2)


class Objects(Two):
    def test_the_tree(self):
        heard = {}
        for kind, monitor in self.each():
            monitor.do("object-add", {"qom-type": "secret", "id": "s", "data": "x"})
            monitor.do("object-add", {"qom-type": "iothread", "id": "io"})
            monitor.do("object-add", {"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 100, "bps-read-max": 0}})
            told = heard[kind] = []
            for path in ("/objects", "objects", "/objects/tg", "/chardevs", "/nosuch", "/objects/nosuch", "/objects/s/x"):
                got = answer(monitor, "qom-list", path=path)
                told.append(sorted(got, key=lambda row: row["name"]) if isinstance(got, list) else got)
            for path, name in (("/objects/s", "type"), ("/objects/io", "type"), ("/objects/tg", "limits"), ("/objects/tg", "x-iops-total"),
                               ("/objects/tg", "nosuch"), ("/objects/nosuch", "type"), ("/objects", "tg"), ("/objects", "type")):
                told.append(answer(monitor, "qom-get", path=path, property=name))
            monitor.do("object-del", id="tg")
            told.append(answer(monitor, "qom-list", path="/objects/tg"))
            [chardev] = monitor.do("query-chardev")
            told.append({**chardev, "filename": chardev["filename"].replace(self.folder, "").replace(kind, "")})
        self.same(heard)

    def test_what_a_secret_holds_is_told_to_nobody(self):
        for kind, monitor in self.each():
            monitor.do("object-add", {"qom-type": "secret", "id": "s", "data": "deep"})
            if kind == "byre":
                self.assertEqual(answer(monitor, "qom-get", path="/objects/s", property="data")["desc"], "Property 'secret.data' not found")


if __name__ == "__main__":
    main()
