#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`byre daemon` beside QEMU's storage daemon: one script is played on both, and the answers are compared."""
import json
import os
import socket
import stat
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, MIB, Case, describe, main, qemu_img, run, until  # noqa: E402
from qmp import Daemon, Monitor, command  # noqa: E402
from rawnbd import Raw  # noqa: E402

# What differs and may: byre says more than QEMU behind the same words.
LONGER = (
    "Invalid JSON", "JSON parse error", "Permission conflict on node", "Could not open", "export 'e' still in use",
)


def normal(answer):
    """An answer without what depends on the moment, or on words that are known to differ."""
    if "error" in answer:
        desc = answer["error"]["desc"]
        for words in LONGER:
            if desc.startswith(words):
                desc = words
        return {**answer, "error": {**answer["error"], "desc": desc}}
    return answer


def unwrap(events):
    return [(event["event"], event["data"]) for event in events]


class Both(Case):
    """Two daemons with the same files."""

    def both(self, script, *words):
        """Plays `script` on each: a list of requests, or a function of the folder that gives one."""
        heard = {}
        for kind in ("qemu", "byre"):
            folder = os.path.join(self.folder, kind)
            os.makedirs(folder)
            self.prepare(folder)
            daemon = Daemon(folder, kind, *words)
            monitor = daemon.monitor(negotiate=False)
            answers = [normal(monitor.ask(request)) for request in script]
            heard[kind] = answers, unwrap(monitor.events)
            monitor.close()
            self.assertEqual(daemon.end(), 0, kind)
        for request, theirs, ours in zip(script, heard["qemu"][0], heard["byre"][0]):
            with self.subTest(request=request if isinstance(request, str) else json.dumps(request)[:200]):
                self.assertEqual(self.reduced(ours), self.reduced(theirs))
        self.assertEqual(heard["byre"][1], heard["qemu"][1])
        return heard["byre"][0]

    def prepare(self, folder):
        qemu_img("create", "-q", "-f", "qcow2", os.path.join(folder, "a.qcow2"), "8M")
        qemu_img("create", "-q", "-f", "qcow2", os.path.join(folder, "other.qcow2"), "4M")
        qemu_img("create", "-q", "-f", "raw", os.path.join(folder, "r.raw"), "1M")

    def reduced(self, answer):
        """Of results only what both have to say alike."""
        result = answer.get("return")
        if isinstance(result, list) and result and "drv" in result[0]:
            kept = ("node-name", "drv", "dirty-bitmaps", "encrypted", "detect_zeroes")
            rows = [{key: row[key] for key in kept if key in row} for row in result if not row["node-name"].startswith("#")]
            for row in rows:
                row.get("dirty-bitmaps", []).sort(key=lambda bitmap: bitmap["name"])
            return {"return": sorted(rows, key=lambda row: row["node-name"])}
        if isinstance(result, dict) and "edges" in result:
            names = {node["id"]: node["name"] for node in result["nodes"]}
            return {"return": sorted((names[e["parent"]], names[e["child"]], e["name"]) for e in result["edges"])}
        return answer


QMP = {"execute": "qmp_capabilities"}
ADD = "blockdev-add"


def bitmap(verb, name, node="q", **more):
    return command(f"block-dirty-bitmap-{verb}", {"node": node, "name": name, **more})


class Scripts(Both):
    def test_the_protocol_itself(self):
        self.both([
            command("query-version"), command("nosuch"), {**QMP, "id": 7}, QMP,
            {**command("nosuch"), "id": [1, {"a": None}]}, command("query-block", {"x": 1}),
            "[]", "1", '"x"', '{"a":1}', '{"execute":1}', '{"execute":"quit","foo":1}', '{"execute":"query-version","arguments":[]}',
            "{]", '{"execute" "x"}', "}", "nonsense", '{"execute":"query-block", "execute":"quit"}', "{'execute':'query-block'}",
            "{}", {**command("query-block"), "id": "x"},
        ])

    def test_arguments_that_are_wrong(self):
        def unix(**data):
            return command("nbd-server-start", {"addr": {"type": "unix", "data": data}})
        nbd = {"type": "nbd", "id": "e", "node-name": "n"}
        self.both([
            QMP, command("blockdev-del"), command("blockdev-del", node_name=1), command("blockdev-del", node_name=None),
            command("blockdev-del", {"node-name": "x", "y": 1}), command("blockdev-del", node_name="x"),
            unix(path=1), unix(path="x", z=2), command("nbd-server-start", {"addr": {"type": "foo", "data": {}}}),
            command("nbd-server-start", {"addr": {"type": 1, "data": {}}}), command("nbd-server-start", addr=3),
            command("nbd-server-start", addr={"type": "unix"}),
            command("block-export-add", {**nbd, "bitmaps": [1]}), command("block-export-add", {**nbd, "bitmaps": [{"node": 1, "name": "x"}]}),
            command("block-export-add", {**nbd, "writable": "yes"}), command("block-export-add", nbd),
            command("block_resize", node_name="n", size="x"), command("block_resize", node_name="n", size=1.5),
            command("block_resize", node_name="n", size=-1), command("block_resize", size=1), command("block_resize", device="q", size=1),
            command("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "n"}}, "max-connections": -1}),
            command("transaction", actions=[]), command("transaction", actions=[{"type": "nosuch", "data": {}}]),
            command("transaction", actions=[{"type": "abort", "data": {}}]), command("transaction", actions=[{"type": "abort"}]),
            command("object-del", id="s"), command("object-add", {"qom-type": "nosuch", "id": "s"}),
        ])

    def test_nodes(self):
        self.both([
            QMP, command(ADD, driver="file", node_name="f", filename="a.qcow2"), command(ADD, driver="qcow2", node_name="q", file="f"),
            command(ADD, driver="qcow2", node_name="q", file="f"), command(ADD, driver="qcow2", node_name="q2", file="nosuch"),
            command(ADD, driver="qcow2", node_name="q2"), command(ADD, driver="qcow2", file="f"), command(ADD, driver="nosuch", node_name="z"),
            command(ADD, node_name="z"), command(ADD, driver="file", node_name="z"),
            command(ADD, driver="file", node_name="z", filename="nosuch.raw"), command(ADD, driver="file", node_name="z", filename="r.raw", foo=1),
            command(ADD, driver="file", node_name="1z", filename="r.raw"),
            command(ADD, driver="file", node_name="z", filename="r.raw", read_only="yes"),
            command(ADD, driver="qcow2", node_name="z", file={"driver": "file", "filename": "r.raw", "node-name": "zz"}),
            command(ADD, driver="raw", node_name="z", file={"driver": "file", "filename": "r.raw", "node-name": "zz"}),
            command("query-named-block-nodes", flat=True), command("x-debug-query-block-graph"), command("query-block"),
            command("blockdev-del", node_name="f"), command("blockdev-del", node_name="zz"), command("blockdev-del", node_name="z"),
            command("query-named-block-nodes", flat=True),
            command("block_resize", node_name="q", size=16 * MIB), command("query-named-block-nodes"),
            command("blockdev-del", node_name="q"), command("blockdev-del", node_name="f"), command("query-named-block-nodes"),
        ])

    def test_exports(self):
        nbd = {"type": "nbd", "id": "e", "node-name": "q"}
        start = command("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "nbd.sock"}}})
        self.both([
            QMP, command(ADD, driver="qcow2", node_name="q", file={"driver": "file", "filename": "a.qcow2", "node-name": "f"}),
            command("block-export-add", nbd), command("nbd-server-stop"), start, start,
            command("block-export-add", nbd), command("block-export-add", nbd), command("block-export-add", {**nbd, "id": "1e"}),
            command("block-export-add", {**nbd, "id": "e2"}), command("block-export-add", {**nbd, "id": "e2", "name": "x", "bitmaps": ["no"]}),
            command("blockdev-del", node_name="q"), command("query-block-exports"), command("block-export-del", id="nosuch"),
            command("block_resize", node_name="q", size=16 * MIB),
            command("block-export-del", id="e"), command("query-block-exports"),
            bitmap("add", "b0"), bitmap("add", "d1", disabled=True),
            command("block-export-add", {**nbd, "name": "x", "bitmaps": ["b0"]}),
            command("block-export-add", {**nbd, "name": "x", "bitmaps": ["d1"], "writable": True}),
            bitmap("remove", "d1"), bitmap("clear", "d1"),
            command("nbd-server-add", device="q", name="y"), command("nbd-server-add", device="q", name="y"),
            command("nbd-server-remove", name="y"), command("nbd-server-remove", name="y"),
            command("nbd-server-stop"), command("query-block-exports"), command("blockdev-del", node_name="q"),
        ])

    def test_bitmaps(self):
        def merge(target, bitmaps):
            return command("block-dirty-bitmap-merge", node="q", target=target, bitmaps=bitmaps)

        def actions(*list_):
            return command("transaction", actions=[{"type": kind, "data": data} for kind, data in list_])
        add, clear, remove = (f"block-dirty-bitmap-{verb}" for verb in ("add", "clear", "remove"))
        nodes = command("query-named-block-nodes", flat=True)
        self.both([
            QMP, command(ADD, driver="file", node_name="f", filename="a.qcow2"), command(ADD, driver="qcow2", node_name="q", file="f"),
            bitmap("add", "b0"), bitmap("add", "b0"), bitmap("add", "b1", granularity=1000), bitmap("add", "b1", granularity=1), bitmap("add", ""),
            bitmap("add", "p1", persistent=True), bitmap("add", "d1", disabled=True, granularity=4096), bitmap("add", "x", node="nosuch"),
            bitmap("add", "x", node="f", persistent=True), bitmap("remove", "nosuch"), bitmap("clear", "nosuch"), bitmap("enable", "nosuch"),
            merge("d1", ["b0", {"node": "q", "name": "p1"}]), merge("d1", ["nosuch"]), merge("nosuch", ["b0"]), nodes,
            bitmap("disable", "b0"), bitmap("enable", "d1"), bitmap("disable", "p1"), nodes,
            actions((add, {"node": "q", "name": "t1"}), (add, {"node": "q", "name": "b0"})), nodes,
            actions((add, {"node": "q", "name": "t1"}), (clear, {"node": "q", "name": "p1"}), (remove, {"node": "q", "name": "b0"}),
                    ("abort", {})), nodes,
            actions((add, {"node": "q", "name": "t1", "persistent": True}), (remove, {"node": "q", "name": "b0"})), nodes,
            bitmap("remove", "t1"), bitmap("remove", "p1"), bitmap("remove", "d1"), nodes,
        ])

    def test_objects(self):
        self.both([
            QMP, command("object-add", {"qom-type": "secret", "id": "s", "data": "x"}), command("object-add", {"qom-type": "secret", "id": "s", "data": "x"}),
            command("object-del", id="s"), command("object-del", id="s"),
            command("object-add", {"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 100}}),
            command("object-add", {"qom-type": "iothread", "id": "io"}), command("object-del", id="io"), command("object-del", id="tg"),
        ])

    def test_chains(self):
        self.both([
            QMP, command(ADD, driver="qcow2", node_name="q", file={"driver": "file", "filename": "a.qcow2", "node-name": "f"}),
            command(ADD, driver="qcow2", node_name="o", file={"driver": "file", "filename": "other.qcow2"}, backing=None),
            command("blockdev-snapshot", node="nosuch", overlay="o"), command("blockdev-snapshot", node="q", overlay="f"),
            command("change-backing-file", device="q", image_node_name="q", backing_file="x"),
            *[command("transaction", actions=[{"type": "blockdev-snapshot", "data": {"node": "q", "overlay": "o"}}, wrong]) for wrong in (
                {"type": "abort", "data": {}}, {"type": "blockdev-snapshot", "data": {"node": "q", "overlay": "nosuch"}})],
            command("query-named-block-nodes", flat=True),
            command("transaction", actions=[{"type": "blockdev-snapshot", "data": {"node": "q", "overlay": "o"}}]),
            command("blockdev-snapshot", node="q", overlay="o"),
            command("blockdev-del", node_name="q"), command("query-named-block-nodes", flat=True),
            command("change-backing-file", device="o", image_node_name="o", backing_file="a.qcow2"),
            command("blockdev-del", node_name="o"), command("blockdev-del", node_name="q"),
        ])


    def test_snapshots_in_new_files(self):
        def sync(**more):
            return command("blockdev-snapshot-sync", **{"snapshot_file": "new.qcow2", "snapshot_node_name": "n", **more})

        def in_transaction(*more, **arguments):
            return command("transaction", actions=[{"type": "blockdev-snapshot-sync", "data": sync(**arguments)["arguments"]}, *more])
        there = {"snapshot_file": "other.qcow2", "mode": "existing"}
        self.both([
            QMP, command(ADD, driver="qcow2", node_name="q", file={"driver": "file", "filename": "a.qcow2"}),
            command("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}}), command("block-export-add", type="nbd", id="e", node_name="q"),
            sync(device="q"), sync(node_name="nosuch"), sync(), sync(node_name="q", format="nosuch"), sync(node_name="q", format="raw"),
            sync(node_name="q", snapshot_node_name="q"), sync(node_name="q", snapshot_node_name="1n"), sync(node_name="q", mode="foo"),
            sync(node_name="q", **{**there, "snapshot_file": "nosuch.qcow2"}), sync(node_name="q", snapshot_file="nosuch/new.qcow2"),
            in_transaction({"type": "abort", "data": {}}, node_name="q"), command("query-named-block-nodes", flat=True),
            sync(node_name="q"), sync(node_name="q", snapshot_node_name="m"),
            in_transaction(node_name="n", **{**there, "snapshot_node_name": "o"}), command("query-named-block-nodes", flat=True),
        ])
        for kind in ("qemu", "byre"):
            folder = os.path.join(self.folder, kind)
            self.assertEqual(describe(os.path.join(folder, "new.qcow2"))["full-backing-filename"], os.path.join(folder, "a.qcow2"))


class Byre(Case):
    def setUp(self):
        super().setUp()
        self.disk = os.path.join(self.folder, "a.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", self.disk, "8M")
        self.add = {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": self.disk}}

    def start(self, *words, kind="byre", **more):
        daemon = Daemon(self.folder, kind, *words, **more)
        self.addCleanup(daemon.kill)
        return daemon

    def test_the_greeting_is_what_libvirt_reads(self):
        daemon = self.start(kind="link")
        monitor = daemon.monitor(negotiate=False)
        version = monitor.greeting["QMP"]["version"]["qemu"]
        self.assertEqual((version["major"], version["minor"]), (10, 0))
        self.assertIsInstance(version["micro"], int)
        self.assertIsInstance(monitor.greeting["QMP"]["capabilities"], list)
        self.assertEqual(stat.S_IMODE(os.stat(daemon.socket).st_mode), 0o600)
        monitor.close()
        self.assertEqual(daemon.end(), 0)
        self.assertFalse(os.path.exists(daemon.socket))

    def test_the_schema_is_sound_and_says_what_commands_take(self):
        monitor = self.start().monitor()
        schema = monitor.do("query-qmp-schema")
        names = {entry["name"]: entry for entry in schema}
        self.assertEqual(len(names), len(schema))

        def refers(entry):
            yield from (entry[key] for key in ("arg-type", "ret-type", "element-type") if key in entry)
            yield from (member["type"] for member in entry.get("members", []) if "type" in member)
            yield from (variant["type"] for variant in entry.get("variants", []))
        for entry in schema:
            for other in refers(entry):
                self.assertIn(other, names, entry)
        commands = {entry["name"] for entry in schema if entry["meta-type"] == "command"}
        self.assertEqual(commands, {entry["name"] for entry in monitor.do("query-commands")})
        # libvirt asks so: blockdev-add/arg-type/+qcow2/file
        options = names[names["blockdev-add"]["arg-type"]]
        qcow2 = names[{variant["case"]: variant["type"] for variant in options["variants"]}["qcow2"]]
        self.assertIn("file", {member["name"] for member in qcow2["members"]})
        self.assertIn("node-name", {member["name"] for member in options["members"]})

    def test_two_monitors_and_a_client_that_hangs_up(self):
        second = os.path.join(self.folder, "second")
        daemon = self.start("--chardev", f"socket,id=two,path={second},server=on,wait=off", "--monitor", "chardev=two")
        one, two = daemon.monitor(), Monitor(second)
        two.do("qmp_capabilities")
        # Its answers never reach who comes next.
        for _ in range(20):
            two.send({"execute": "query-qmp-schema", "id": "not for you"})
            two.close()
            two = Monitor(second)
            self.assertEqual(two.ask({"execute": "qmp_capabilities", "id": "mine"}), {"return": {}, "id": "mine"})
            self.assertEqual(two.ask({"execute": "query-block", "id": 2}), {"return": [], "id": 2})
        one.do("nbd-server-start", addr={"type": "unix", "data": {"path": os.path.join(self.folder, "nbd")}})
        one.do("blockdev-add", self.add)
        one.do("block-export-add", type="nbd", id="e", node_name="q")
        one.do("block-export-del", id="e")
        self.assertEqual(two.event("BLOCK_EXPORT_DELETED")["data"], {"id": "e"})
        self.assertEqual(one.do("quit"), {})
        self.assertEqual(daemon.end(None), 0)

    def test_clients_come_in_by_every_kind_of_chardev(self):
        name = f"byre-test-{os.getpid()}"
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        back = socket.socket(socket.AF_UNIX)
        back.bind(self.path("back"))
        back.listen()
        chardevs = [f"socket,id=a,path={name},abstract=on,server=on,wait=off", f"socket,id=f,fd={listener.fileno()},server=on,wait=off",
                    f"socket,id=c,path={self.path('back')}"]
        words = [word for text in chardevs for word in ("--chardev", text, "--monitor", "chardev=" + text.split("id=")[1][0])]
        self.start(*words, monitor=False, pass_fds=[listener.fileno()])
        client = back.accept()[0]
        self.assertIn(b'"QMP"', client.recv(4096))
        for address in ("\0" + name, listener.getsockname()):
            monitor = Monitor(address)
            monitor.do("qmp_capabilities")
            self.assertEqual(monitor.do("query-block"), [])
            monitor.close()
        for one in (client, back, listener):
            one.close()

    def test_it_speaks_over_standard_input_and_output(self):
        script = "\n".join(json.dumps(request) for request in (QMP, command("query-block"), {**command("quit"), "id": 5}))
        done = run(BYRE, "daemon", "--chardev", "stdio,id=s", "--monitor", "chardev=s", data=script.encode())
        lines = [json.loads(line) for line in done.out.splitlines()]
        self.assertEqual(lines[1:], [{"return": {}}, {"return": []}, {"return": {}, "id": 5}])

    def test_wait_on_means_that_nothing_goes_on_before_a_client(self):
        path = self.path("first")
        daemon = self.start("--chardev", f"socket,id=w,path={path},server=on", "--monitor", "chardev=w", "--pidfile", self.path("pid"),
                            monitor=False)
        until(lambda: os.path.exists(path), "the socket")
        self.assertFalse(os.path.exists(self.path("pid")))
        monitor = Monitor(path)
        until(lambda: os.path.exists(self.path("pid")), "the start")
        monitor.close()
        daemon.end()
        self.assertFalse(os.path.exists(self.path("pid")))

    def test_descriptors_are_passed(self):
        monitor = self.start().monitor()
        path = os.path.join(self.folder, "handed")
        with socket.socket(socket.AF_UNIX) as listener:  # As Incus does it.
            listener.bind(path)
            listener.listen()
            self.assertEqual(monitor.ask(command("getfd", fdname="nbd"), [listener.fileno()]), {"return": {}})
            monitor.do("nbd-server-start", addr={"type": "fd", "data": {"str": "nbd"}})
        monitor.do("blockdev-add", self.add)
        monitor.do("block-export-add", type="nbd", id="e", node_name="q", name="disk")
        self.assertIn("8388608", run("nbdinfo", "--size", f"nbd+unix:///disk?socket={path}").text)
        with open(self.disk, "r+b") as file:
            added = monitor.ask(command("add-fd", fdset_id=7, opaque="x"), [file.fileno()])["return"]
        self.assertEqual(monitor.do("query-fdsets"), [{"fdset-id": 7, "fds": [{"fd": added["fd"], "opaque": "x"}]}])
        monitor.do("remove-fd", fdset_id=7)
        self.assertEqual(monitor.do("query-fdsets"), [])
        self.assertIn("No file descriptor", monitor.ask(command("getfd", fdname="x"))["error"]["desc"])

    def test_clients_write_and_bitmaps_tell(self):
        path = os.path.join(self.folder, "nbd")
        daemon = self.start("--blockdev", f"driver=file,node-name=f,filename={self.disk}", "--blockdev", json.dumps(
            {"driver": "qcow2", "node-name": "q", "file": "f"}), "--nbd-server", f"addr.type=unix,addr.path={path}",
            "--export", "nbd,id=e,node-name=q,writable=on,name=disk")
        monitor = daemon.monitor()
        for name, more in (("loose", {}), ("kept", {"persistent": True}), ("off", {"disabled": True})):
            monitor.do("block-dirty-bitmap-add", node="q", name=name, **more)
        uri = f"nbd+unix:///disk?socket={path}"
        run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 128k", uri)
        rows = {row["node-name"]: row for row in monitor.do("query-named-block-nodes", flat=True)}
        counts = {one["name"]: one["count"] for one in rows["q"]["dirty-bitmaps"]}
        self.assertEqual(counts, {"loose": 128 * 1024, "kept": 128 * 1024, "off": 0})
        monitor.do("transaction", actions=[
            {"type": "block-dirty-bitmap-merge", "data": {"node": "q", "target": "off", "bitmaps": ["loose"]}},
            {"type": "block-dirty-bitmap-clear", "data": {"node": "q", "name": "loose"}}])
        refused = monitor.ask(command("transaction", actions=[
            {"type": "block-dirty-bitmap-clear", "data": {"node": "q", "name": "kept"}},
            {"type": "block-dirty-bitmap-clear", "data": {"node": "q", "name": "off"}}, {"type": "abort", "data": {}}]))
        self.assertIn("Abort", refused["error"]["desc"])
        monitor.do("block-export-add", type="nbd", id="b", node_name="q", name="backup", bitmaps=["off", {"node": "q", "name": "kept"}],
                   writable=True, allocation_depth=True)
        for name in ("off", "kept"):
            text = run("nbdinfo", f"--map=qemu:dirty-bitmap:{name}", f"nbd+unix:///backup?socket={path}").text
            self.assertRegex(text, r"1048576\s+131072\s+1")
        self.assertIn("qemu:allocation-depth", run("nbdinfo", f"nbd+unix:///backup?socket={path}").text)
        self.assertEqual(monitor.do("human-monitor-command", command_line='qemu-io q "read -P 7 1M 128k"')[:4], "read")
        monitor.do("quit")
        self.assertEqual(daemon.end(None), 0)
        check = qemu_img("check", self.disk).text
        self.assertIn("No errors were found", check)
        bitmaps = json.loads(qemu_img("info", "--output=json", self.disk).out)["format-specific"]["data"]["bitmaps"]
        self.assertEqual([(one["name"], one["flags"]) for one in bitmaps], [("kept", ["auto"])])

    def test_an_export_of_the_command_line_writes_a_file_that_follows_its_use(self):
        raw, path = os.path.join(self.folder, "raw"), os.path.join(self.folder, "nbd")
        with open(raw, "wb") as file:
            file.truncate(MIB)
        daemon = self.start("--blockdev", f"driver=file,node-name=f,filename={raw},auto-read-only=on", "--nbd-server",
                            f"addr.type=unix,addr.path={path}", "--export", "nbd,id=e,node-name=f,writable=on,name=disk")
        monitor = daemon.monitor()
        run("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", f"nbd+unix:///disk?socket={path}")
        self.assertIn("lock", run("qemu-io", "-f", "raw", "-c", "write 0 512", raw, ok=(1,)).text)
        monitor.do("quit")
        self.assertEqual(daemon.end(None), 0)
        with open(raw, "rb") as file:
            self.assertEqual(file.read(65537), bytes([7]) * 65536 + bytes(1))

    def test_an_export_with_a_client_goes_when_it_is_told_to(self):
        path = os.path.join(self.folder, "nbd")
        daemon = self.start("--blockdev", json.dumps(self.add), "--nbd-server", f"addr.type=unix,addr.path={path}",
                            "--export", "nbd,id=e,node-name=q")
        monitor = daemon.monitor()
        client = Raw(path)
        client.go("q")
        self.assertRegex(monitor.ask(command("block-export-del", id="e"))["error"]["desc"], "^export 'e' still in use")
        monitor.do("block-export-del", id="e", mode="hard")
        monitor.event("BLOCK_EXPORT_DELETED")
        self.assertEqual(monitor.do("query-block-exports"), [])
        monitor.do("blockdev-del", node_name="q")
        client.close()

    def test_a_snapshot_under_a_writing_client(self):
        path = os.path.join(self.folder, "nbd")
        overlay = os.path.join(self.folder, "overlay.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", self.disk, "-F", "qcow2", overlay)
        daemon = self.start("--blockdev", json.dumps(self.add), "--nbd-server", f"addr.type=unix,addr.path={path}",
                            "--export", "nbd,id=e,node-name=q,writable=on,name=disk")
        monitor = daemon.monitor()
        uri = f"nbd+unix:///disk?socket={path}"
        run("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", uri)
        monitor.do("blockdev-add", driver="qcow2", node_name="o", file={"driver": "file", "filename": overlay}, backing=None)
        monitor.do("blockdev-snapshot", node="q", overlay="o")
        run("qemu-io", "-f", "raw", "-c", "write -P 2 0 64k", "-c", "read -P 1 64k 64k", uri)
        monitor.do("quit")
        self.assertEqual(daemon.end(None), 0)
        run("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 1 0 1M", self.disk)
        run("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 2 0 64k", "-c", "read -P 1 64k 960k", overlay)
        for image in (self.disk, overlay):
            self.assertIn("No errors were found", qemu_img("check", image).text)

    def test_snapshots_of_several_disks_or_of_none(self):
        """As libvirt makes them; one that fails takes the others back, whatever the headers said before."""
        path = os.path.join(self.folder, "nbd")
        disks = {name: os.path.join(self.folder, f"{name}.qcow2") for name in ("one", "two", "over-one", "over-two")}
        for name, file in disks.items():
            over = ("-b", disks["one"], "-F", "qcow2") if name == "over-one" else ()
            qemu_img("create", "-q", "-f", "qcow2", *over, file, "4M")
        daemon = self.start("--nbd-server", f"addr.type=unix,addr.path={path}")
        monitor = daemon.monitor()
        for name, file in disks.items():
            below = {"backing": None} if name.startswith("over") else {}
            monitor.do("blockdev-add", driver="qcow2", node_name=name, file={"driver": "file", "filename": file}, **below)
        for name in ("one", "two"):
            monitor.do("block-export-add", type="nbd", id=name, node_name=name, name=name, writable=True)
            run("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", f"nbd+unix:///{name}?socket={path}")

        def snapshots(*more):
            actions = [{"type": "blockdev-snapshot", "data": {"node": name, "overlay": f"over-{name}"}} for name in ("one", "two")]
            return monitor.ask(command("transaction", actions=[*actions, *more]))
        for _ in range(2):
            self.assertIn("error", snapshots({"type": "abort", "data": {}}))
            for name in ("one", "two"):
                run("qemu-io", "-f", "raw", "-c", "write -P 2 0 64k", f"nbd+unix:///{name}?socket={path}")
                told = json.loads(qemu_img("info", "-U", "--output=json", disks[f"over-{name}"]).out)
                self.assertEqual(told.get("backing-filename"), disks["one"] if name == "one" else None)
        self.assertEqual(snapshots(), {"return": {}})
        for name in ("one", "two"):
            run("qemu-io", "-f", "raw", "-c", "write -P 3 64k 64k", f"nbd+unix:///{name}?socket={path}")
        monitor.do("quit")
        self.assertEqual(daemon.end(None), 0)
        for name in ("one", "two"):
            run("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 2 0 64k", "-c", "read -P 1 64k 960k", disks[name])
            run("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 2 0 64k", "-c", "read -P 3 64k 64k", "-c", "read -P 1 128k 896k",
                disks[f"over-{name}"])
            self.assertEqual(describe(disks[f"over-{name}"]).get("backing-filename"), disks[name])
            for image in (disks[name], disks[f"over-{name}"]):
                self.assertIn("No errors were found", qemu_img("check", image).text)

    def test_it_goes_to_the_background_as_proxmox_starts_it(self):
        pid = os.path.join(self.folder, "pid")
        daemon = self.start("--chardev", f"socket,id=qmp,path={self.folder}/qmp,server=on,wait=off", "--monitor", "chardev=qmp,mode=control",
                            "--daemonize", "--pidfile", pid, kind="link", monitor=False)
        self.assertEqual(daemon.end(None), 0)
        monitor = Monitor(os.path.join(self.folder, "qmp"))
        monitor.do("qmp_capabilities")
        number = int(open(pid, encoding="ascii").read())
        os.kill(number, 0)
        monitor.do("quit")
        until(lambda: not os.path.exists(pid), "its end")

    def test_what_is_refused_ends_the_start(self):
        for words, why in (
                (["--blockdev", "driver=nosuch,node-name=x"], "does not accept value 'nosuch'"),
                (["--blockdev", "driver=rbd,node-name=x"], "Driver 'rbd' is not supported"),
                (["--monitor", "chardev=nosuch"], 'chardev "nosuch" not found'),
                (["--export", "nbd,id=e,node-name=q"], "Cannot find device='' nor node-name='q'"),
                (["--export", "fuse,id=e,node-name=q,mountpoint=x"], "'fuse' are not supported"),
                (["--nbd-server", "addr.type=inet,addr.host=0.0.0.0,addr.port=0"], "--allow-remote"),
                (["--nbd-server", "addr.type=unix,addr.path=n,tls-creds=t"], "no TLS"),
                (["--object", "tls-creds-x509,id=t"], "not supported"),
                (["--chardev", "socket,id=c,path=x,server=on,reconnect=3"], "not made anew")):
            with self.subTest(words=words):
                daemon = self.start(*words, monitor=False)
                self.assertNotEqual(daemon.process.wait(60), 0)
                self.assertIn(why, daemon.said())

    def test_a_hostile_client_ends_only_its_own_monitor(self):
        daemon = self.start()
        hostile = daemon.monitor()
        hostile.send("[" * 5000)
        self.assertIn("levels", hostile.answer()["error"]["desc"])
        with self.assertRaises((EOFError, ConnectionError)):
            hostile.line()
        monitor = daemon.monitor()
        self.assertEqual(monitor.do("query-block"), [])

    def test_sigterm_ends_it_in_order(self):
        path = os.path.join(self.folder, "nbd")
        daemon = self.start("--blockdev", json.dumps(self.add), "--nbd-server", f"addr.type=unix,addr.path={path}",
                            "--export", "nbd,id=e,node-name=q,writable=on")
        daemon.monitor()
        run("qemu-io", "-f", "raw", "-c", "write -P 3 0 1M", f"nbd+unix:///q?socket={path}")
        daemon.end()
        self.assertFalse(os.path.exists(path))
        self.assertIn("No errors were found", qemu_img("check", self.disk).text)
        run("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 3 0 1M", self.disk)


if __name__ == "__main__":
    main()
