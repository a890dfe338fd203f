#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`byre ctl`: each of its commands on a daemon whose disk is being written, the real qemu-img as judge of the images;
and what it says where there is no daemon, no node, no job, or no QMP."""
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BYRE, MIB, Case, main, qemu_img, run, until  # noqa: E402
from jobs_test import SIZE, Client, qcow2  # noqa: E402
from qmp import Daemon  # noqa: E402


class Ctl(Case):
    """A daemon with a chain base <- mid <- top that qemu-img has made, and a client that writes to top."""
    kind = "byre"

    def setUp(self):
        super().setUp()
        self.daemon = Daemon(self.folder, self.kind, "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}")
        self.addCleanup(self.daemon.kill)
        self.socket = self.daemon.socket
        until(lambda: os.path.exists(self.socket), "the monitor")

    def ctl(self, *words, ok=(0,), **more):
        return run(BYRE, "ctl", "--socket", self.socket, *words, ok=ok, **more)

    def json(self, *words):
        return json.loads(self.ctl(*words, "--output", "json").out)

    def qmp(self, name, /, **arguments):
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        return json.loads(self.ctl("qmp", json.dumps({"execute": name, "arguments": arguments})).out)

    def chain(self):
        below = None
        for name in ("base", "mid", "top"):
            over = ("-b", self.path(f"{below}.qcow2"), "-F", "qcow2") if below else ()
            qemu_img("create", "-q", "-f", "qcow2", *over, self.path(f"{name}.qcow2"), str(SIZE))
            run("qemu-io", "-c", f"write -P {len(name)} {'1M' if below else '0'} 2M", self.path(f"{name}.qcow2"))
            below = name
        for name, below in (("base", None), ("mid", "base"), ("top", "mid")):
            self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": qcow2(name, self.path(f"{name}.qcow2"), below)}))

    def serve(self, node="top"):
        self.ctl("export", "add", node, "--id", "disk", "-x", "disk", "--writable")
        client = Writer(f"nbd+unix:///disk?socket={self.path('nbd')}").start()
        self.addCleanup(client.stopped.set)
        self.settle(client, 100)
        return client

    @staticmethod
    def settle(client, requests):
        wanted = client.requests + requests
        until(lambda: client.requests >= wanted or client.failure, "requests")

    def finish(self, client):
        model = client.stop()
        self.ctl("qmp", '{"execute": "quit"}')
        self.assertEqual(self.daemon.end(None), 0, self.daemon.log)
        return model

    def expect(self, name, model, backing=...):
        self.assertIn("No errors were found", qemu_img("check", self.path(name)).text)
        with open(self.path("model"), "wb") as file:
            file.write(model)
        self.assertIn("Images are identical.", qemu_img("compare", "-f", "raw", self.path("model"), self.path(name)).text)
        if backing is not ...:
            info = json.loads(qemu_img("info", "--output", "json", self.path(name)).out)
            self.assertEqual(info.get("backing-filename"), backing and self.path(backing))

    def refused(self, *words, code, says):
        done = self.ctl(*words, ok=None)
        self.assertEqual(done.code, code, done)
        for part in (says if isinstance(says, tuple) else (says,)):
            self.assertIn(part, done.text)
        self.assertEqual(done.out, b"", done)
        return done


class Writer(Client):
    """As the client of jobs_test, but the disk begins with what the chain has."""

    def run(self):
        self.begin()
        super().run()

    def begin(self):
        import nbd
        handle = nbd.NBD()
        handle.connect_uri(self.uri)
        self.model = bytearray(handle.pread(SIZE, 0))
        handle.shutdown()


class Jobs(Ctl):
    def test_a_commit_leads_the_users_to_the_base(self):
        self.chain()
        client = self.serve()
        done = self.ctl("commit", "top", "--wait", "--progress")
        self.assertIn("job 'commit-top' is done", done.text)
        self.assertIn("(100.00/100%)", done.text)
        self.assertEqual(self.json("jobs"), [])
        self.settle(client, 200)
        self.expect("base.qcow2", self.finish(client), backing=None)

    def test_a_commit_without_a_pivot(self):
        self.chain()
        client = self.serve()
        done = self.ctl("commit", "top", "--base", "mid", "--job", "down", "--wait", "--no-pivot")
        self.assertIn("job 'down' is ready: 'byre ctl complete down'", done.text)
        self.assertEqual([(job["id"], job["status"]) for job in self.json("jobs")], [("down", "ready")])
        self.settle(client, 100)
        self.ctl("complete", "down")
        self.assertIn("job 'down' is done", self.ctl("wait", "down").text)
        self.settle(client, 100)
        self.expect("mid.qcow2", self.finish(client), backing="base.qcow2")

    def test_a_commit_below_the_disk(self):
        self.chain()
        client = self.serve()
        self.ctl("commit", "top", "--top", "mid", "--base", "base", "--wait")
        self.settle(client, 100)
        self.expect("top.qcow2", self.finish(client), backing="base.qcow2")

    def test_a_stream(self):
        self.chain()
        client = self.serve()
        self.ctl("stream", "top", "--base", "base", "--wait")
        self.settle(client, 100)
        self.ctl("stream", "top", "--wait")
        self.settle(client, 100)
        self.expect("top.qcow2", self.finish(client), backing=None)

    def test_a_mirror_to_a_file_and_its_pivot(self):
        for options in ((), ("--copy-mode", "write-blocking"), ("--sync", "top")):
            with self.subTest(options):
                self.chain()
                client = self.serve()
                target = self.path("copy.qcow2")
                self.ctl("mirror", "top", target, *options, "--wait", "--pivot")
                self.settle(client, 100)
                self.ctl("close", "top")  # Nobody uses it any more.
                self.settle(client, 100)
                self.expect("copy.qcow2", self.finish(client), backing="mid.qcow2" if "top" in options else None)
            self.daemon.kill()
            for name in ("base.qcow2", "mid.qcow2", "top.qcow2", "copy.qcow2", "qmp"):
                if os.path.exists(self.path(name)):
                    os.unlink(self.path(name))
            self.setUp()

    def test_a_mirror_that_is_cancelled_when_it_is_ready_leaves_a_copy(self):
        self.chain()
        client = self.serve()
        self.assertIn("is ready", self.ctl("mirror", "top", self.path("copy.qcow2"), "--wait").text)
        held = client.pause()
        self.ctl("cancel", "mirror-top")
        self.ctl("wait", "mirror-top", ok=None)
        client.resume()
        self.settle(client, 100)
        self.ctl("close", "mirror-top-target")
        self.expect("copy.qcow2", held, backing=None)
        self.expect("top.qcow2", self.finish(client))

    def test_a_backup_of_one_moment(self):
        self.chain()
        client = self.serve()
        for number, options in enumerate(((), ("--compress",), ("--sync", "top"))):
            held = client.pause()
            name = f"copy{number}.qcow2"
            self.ctl("backup", "top", self.path(name), "--job", "save", *options)
            client.resume()
            self.settle(client, 200)
            self.assertIn("job 'save' is done", self.ctl("wait", "save").text)
            self.assertNotIn("save-target", self.ctl("nodes").text)
            if "top" not in options:
                self.expect(name, held, backing=None)
        self.expect("top.qcow2", self.finish(client))
        self.expect(name, held, backing="mid.qcow2")  # The daemon had that open.

    def test_an_incremental_backup(self):
        self.chain()
        self.ctl("bitmap", "add", "top", "daily", "--granularity", "64k")
        client = self.serve()
        first = client.pause()
        self.ctl("backup", "top", self.path("full.qcow2"), "--wait")
        self.expect("full.qcow2", first)
        self.ctl("bitmap", "clear", "top", "daily")
        client.resume()
        self.settle(client, 50)
        second = client.pause()
        self.ctl("backup", "top", self.path("more.qcow2"), "--bitmap", "daily", "--job", "more", "--wait")
        client.resume()
        qemu_img("rebase", "-u", "-b", self.path("full.qcow2"), "-F", "qcow2", self.path("more.qcow2"))
        self.expect("more.qcow2", second)
        self.assertLess(os.path.getsize(self.path("more.qcow2")), SIZE)
        self.expect("top.qcow2", self.finish(client))

    def test_a_target_that_is_a_node(self):
        self.chain()
        qemu_img("create", "-q", "-f", "qcow2", self.path("there.qcow2"), str(SIZE))
        self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": qcow2("there", self.path("there.qcow2"))}))
        client = self.serve()
        held = client.pause()
        self.ctl("backup", "top", "there", "--wait")
        client.resume()
        self.assertIn("there", self.ctl("nodes").text)
        self.ctl("close", "there")
        self.expect("there.qcow2", held)
        self.finish(client)


class Steering(Ctl):
    def begin_slowly(self, *more):
        """A backup that does not end by itself."""
        self.chain()
        return self.json("backup", "top", self.path("copy.qcow2"), "--speed", "64k", "--job", "slow", *more)

    def status(self):
        found = self.json("jobs")
        return found[0]["status"] if found else None

    def test_a_job_from_its_start_to_its_cancel(self):
        self.assertEqual(self.begin_slowly(), {"job": "slow", "target": "slow-target", "file": self.path("copy.qcow2")})
        self.assertEqual(self.status(), "running")
        self.ctl("pause", "slow")
        self.assertEqual(self.status(), "paused")
        self.refused("pause", "slow", code=64, says="already paused")
        self.ctl("resume", "slow")
        self.ctl("speed", "slow", "128k")
        self.assertEqual(self.json("jobs")[0]["speed"], 128 << 10)
        self.assertIn("128 KiB/s", self.ctl("jobs").text)
        self.refused("complete", "slow", code=64, says="complete")
        self.refused("backup", "top", "other.qcow2", "--job", "slow", code=64, says=("already in use", "byre ctl dismiss slow"))
        self.assertFalse(os.path.exists(self.path("other.qcow2")))
        self.ctl("cancel", "slow")
        done = self.ctl("wait", "slow", ok=None)
        self.assertEqual(done.code, 1, done)
        self.assertIn("job 'slow' was cancelled", done.text)
        self.assertIsNone(self.status())
        self.assertEqual({node["node-name"] for node in self.json("nodes") if not node["node-name"].startswith("#")}, {"base", "mid", "top"})

    def test_others_are_heard_while_somebody_waits(self):
        self.begin_slowly()
        waiting = subprocess.Popen([BYRE, "ctl", "wait", "slow", "-s", self.socket], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(10):
            self.ctl("pause", "slow")
            self.ctl("resume", "slow")
        self.ctl("speed", "slow", "0")
        out, _ = waiting.communicate(timeout=60)
        self.assertEqual(waiting.returncode, 0, out)
        self.assertIn(b"job 'slow' is done", out)

    def test_the_end_of_a_wait_is_not_the_end_of_the_job(self):
        self.begin_slowly()
        waiting = subprocess.Popen([BYRE, "ctl", "wait", "slow", "--socket", self.socket], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until(lambda: self.handles(waiting.pid, signal.SIGINT), "the wait to begin")
        waiting.send_signal(signal.SIGINT)
        out, _ = waiting.communicate(timeout=60)
        self.assertEqual(waiting.returncode, 130, out)
        self.assertIn(b"job 'slow' goes on: 'byre ctl wait slow'", out)
        self.assertEqual(self.status(), "running")

    @staticmethod
    def handles(pid, number):
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("SigBlk:"):
                    return int(line.split()[1], 16) >> (number - 1) & 1
        return False

    def test_a_daemon_that_goes_while_somebody_waits(self):
        self.begin_slowly()
        waiting = subprocess.Popen([BYRE, "ctl", "wait", "slow", "--socket", self.socket], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until(lambda: self.handles(waiting.pid, signal.SIGINT), "the wait to begin")
        self.daemon.kill()
        out, _ = waiting.communicate(timeout=60)
        self.assertIn(waiting.returncode, (66, 74), out)
        self.assertRegex(out, b"no daemon can be reached|has hung up")

    def add_full(self):
        """The node `full`, on which each write fails as on a full disk."""
        self.chain()
        qemu_img("create", "-q", "-f", "qcow2", self.path("below.qcow2"), str(SIZE))
        full = {"driver": "blkdebug", "node-name": "full", "image": qcow2("below", self.path("below.qcow2")),
                "inject-error": [{"event": "none", "iotype": "write", "errno": 28}]}
        self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": full}))

    def test_a_job_that_fails_fails_the_command(self):
        self.add_full()
        done = self.ctl("backup", "top", "full", "--job", "doomed", "--wait", ok=None)
        self.assertEqual(done.code, 79, done)
        self.assertIn("job 'doomed' has failed: ", done.text)
        self.assertIsNone(self.status())

    def test_a_job_that_is_held_says_why(self):
        self.add_full()
        self.ctl("backup", "top", "full", "--job", "held", "--on-target-error", "stop")
        waiting = subprocess.Popen([BYRE, "ctl", "wait", "held", "-s", self.socket], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.addCleanup(waiting.stderr.close)
        self.assertIn(b"job 'held' is paused because a disk is full: 'byre ctl resume held'", waiting.stderr.readline())
        self.refused("cancel", "held", code=64, says="paused")
        self.ctl("cancel", "held", "--force")
        self.assertEqual(waiting.wait(60), 1)
        self.assertIn(b"was cancelled", waiting.stderr.read())

    def test_a_job_that_nobody_keeps(self):
        """The wait keeps the monitor, or the job would be gone with its result."""
        self.daemon.kill()
        second = self.path("second")
        self.daemon = Daemon(self.folder, "byre", "--chardev", f"socket,id=two,path={second},server=on,wait=off", "--monitor", "chardev=two")
        self.addCleanup(self.daemon.kill)
        until(lambda: os.path.exists(second), "the monitors")
        self.chain()
        qemu_img("create", "-q", "-f", "qcow2", self.path("there.qcow2"), str(SIZE))
        self.ctl("qmp", json.dumps({"execute": "blockdev-add", "arguments": qcow2("there", self.path("there.qcow2"))}))
        for verb, words, code, says in (("block-job-set-speed", {"device": "theirs", "speed": 0}, 0, b"job 'theirs' is done"),
                                        ("job-cancel", {"id": "theirs"}, 1, b"job 'theirs' was cancelled")):
            begin = {"device": "top", "target": "there", "sync": "full", "job-id": "theirs", "speed": 65536}
            self.ctl("qmp", json.dumps({"execute": "blockdev-backup", "arguments": begin}))
            waiting = subprocess.Popen([BYRE, "ctl", "wait", "theirs", "-s", self.socket], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            until(lambda: self.handles(waiting.pid, signal.SIGINT), "the wait to begin")
            threading.Event().wait(0.3)
            run(BYRE, "ctl", "-s", second, "qmp", json.dumps({"execute": verb, "arguments": words}))
            out, _ = waiting.communicate(timeout=60)
            self.assertEqual(waiting.returncode, code, out)
            self.assertIn(says, out)


class Showing(Ctl):
    def test_tables(self):
        self.chain()
        self.ctl("bitmap", "add", "top", "daily")
        self.ctl("bitmap", "add", "mid", "loose", "--transient", "--disabled", "-g", "128k", ok=None)
        self.assertRegex(self.ctl("bitmap", "list", "top").out.decode(), r"(?m)^top +daily +64 KiB +0 B +recording +in the image$")
        self.ctl("export", "add", "top", "--id", "e1", "--name", "n", "--bitmap", "daily", "--writable")
        lines = self.ctl("nodes").out.decode().splitlines()
        self.assertEqual(lines[0].split(), ["NODE", "DRIVER", "SIZE", "ACCESS", "FILE"])
        top = next(line for line in lines if line.startswith("top "))
        self.assertEqual(top.split(), ["top", "qcow2", "8", "MiB", "write", self.path("top.qcow2")])
        self.assertEqual(self.ctl("exports").out.decode().splitlines()[1].split(), ["e1", "nbd", "top", "serving"])
        self.assertRegex(self.ctl("bitmap", "list", "top").out.decode(), r"(?m)^top +daily +64 KiB +0 B +busy +in the image$")
        self.assertEqual(self.json("bitmap", "list", "top")[0]["name"], "daily")
        self.assertEqual(self.json("exports")[0]["id"], "e1")
        self.assertEqual(self.ctl("jobs").out, b"")
        self.ctl("export", "remove", "e1")
        self.assertEqual(self.json("exports"), [])
        self.ctl("bitmap", "remove", "top", "daily")
        self.assertEqual(self.json("bitmap", "list", "top"), [])

    def test_where_the_daemon_is_named(self):
        for words in ((["nodes", "-s", self.socket]), (["-s", self.socket, "nodes"]), (["--output", "json", "nodes", f"--socket={self.socket}"])):
            run(BYRE, "ctl", *words)
        run(BYRE, "ctl", "nodes", env={**os.environ, "BYRE_SOCKET": self.socket})

    def test_raw_commands(self):
        self.assertEqual(self.qmp("query-version")["qemu"]["major"], 10)
        for text, says in (("[1]", "a request is an object"), ("{", "JSON parse error"), ('{"execute": 1}', "a request is an object"),
                           ('{"execute": "a", "x": 1}', "no member 'x'"), ('{"execute": "a", "arguments": 1}', "is an object")):
            self.refused("qmp", text, code=64, says=says)
        self.refused("qmp", '{"execute": "nosuch"}', code=69, says=("nosuch has not been found", "another program or version"))


class Refusals(Ctl):
    def test_what_is_not_there(self):
        self.chain()
        self.refused("commit", "nosuch", code=66, says=("nosuch", "byre ctl nodes"))
        self.refused("mirror", "nosuch", "x.qcow2", code=66, says="byre ctl nodes")
        self.refused("mirror", "top", "nosuch", code=66, says=("there is no node 'nosuch'", "./nosuch"))
        for verb in ("pause", "resume", "complete", "finalize"):
            self.refused(verb, "nosuch", code=66, says=("Job not found", "byre ctl jobs"))
        for verb in ("wait", "dismiss"):
            self.refused(verb, "nosuch", code=66, says=("there is no job 'nosuch'", "byre ctl jobs"))
        self.refused("cancel", "nosuch", code=66, says="byre ctl jobs")
        self.refused("export", "remove", "nosuch", code=64, says="byre ctl exports")
        self.refused("export", "add", "nosuch", code=66, says="byre ctl nodes")
        self.refused("bitmap", "list", "nosuch", code=66, says="byre ctl nodes")
        self.refused("bitmap", "remove", "top", "nosuch", code=64, says="nosuch")

    def test_a_file_that_is_there_is_not_overwritten(self):
        self.chain()
        with open(self.path("precious.qcow2"), "w") as file:
            file.write("precious")
        self.refused("backup", "top", self.path("precious.qcow2"), "--wait", code=73, says="precious.qcow2")
        with open(self.path("precious.qcow2")) as file:
            self.assertEqual(file.read(), "precious")
        # What a node has open is not, even so.
        for name in ("top", "base"):
            done = self.refused("backup", "top", self.path(f"{name}.qcow2"), "--force", code=75, says=f"{name}.qcow2")
            self.assertIn("lock", done.text)
        self.ctl("backup", "top", self.path("precious.qcow2"), "--force", "--wait")
        self.assertIn("No errors were found", qemu_img("check", self.path("precious.qcow2")).text)

    def test_a_job_that_cannot_begin_leaves_no_file(self):
        self.chain()
        self.refused("mirror", "top", self.path("a.qcow2"), "--copy-mode", "sideways", code=64, says="sideways")
        self.refused("backup", "top", self.path("a.qcow2"), "--bitmap", "nosuch", code=64, says="nosuch")
        self.refused("mirror", "top", self.path("a.qcow2"), "--sync", "none", code=69, says="needs the source below it")
        self.refused("mirror", "top", self.path("nosuch/a.qcow2"), code=66, says="nosuch")
        self.assertFalse(os.path.exists(self.path("a.qcow2")))
        self.assertNotIn("-target", self.ctl("nodes").text)

    def test_words_that_do_not_fit(self):
        for words, says in ((("commti", "top"), "did you mean 'commit'?"), (("bitmap",), "there are: bitmap list, bitmap add"),
                            ((), "Which command?"), (("commit",), "Expecting NODE"), (("nodes", "x"), "Unexpected argument: x"),
                            (("commit", "top", "--no-pivot"), "--no-pivot goes with --wait"),
                            (("mirror", "top", "x.qcow2", "--pivot"), "--pivot goes with --wait"),
                            (("stream", "top", "-p"), "--progress goes with --wait"),
                            (("pause", "x", "--speed", "1"), "unrecognized option '--speed'")):
            self.refused(*words, code=64, says=says)

    def test_an_export_without_a_server(self):
        self.chain()
        self.qmp("nbd-server-stop")
        self.refused("export", "add", "top", code=64, says="--nbd-server")


class Strange(Case):
    """What answers is no daemon, or none that behaves."""

    def refused(self, *words, code, says):
        done = run(BYRE, "ctl", *words, ok=None, env={key: value for key, value in os.environ.items() if key != "BYRE_SOCKET"})
        self.assertEqual(done.code, code, done)
        self.assertIn(says, done.text)

    def serve(self, *answers):
        """A server that sends each of these to a client, after a line from it each but the first."""
        path = self.path(f"strange{len(os.listdir(self.folder))}")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def talk():
            peer, _ = listener.accept()
            file = peer.makefile("rb")
            try:
                for number, answer in enumerate(answers):
                    if number:
                        file.readline()
                    for piece in answer if isinstance(answer, (list, tuple)) else [answer]:
                        peer.sendall(piece)
            except OSError:
                pass  # It has seen enough.
            peer.close()
            listener.close()
        thread = threading.Thread(target=talk)
        thread.start()
        self.addCleanup(thread.join)
        return path

    GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
    WELCOME = b'{"return": {}, "id": 1}\r\n'

    def test_no_daemon(self):
        self.refused("nodes", code=64, says="set BYRE_SOCKET")
        self.refused("nodes", "-s", self.path("nosuch"), code=66, says="start one: `byre daemon --chardev socket,id=qmp")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path("left"))
        self.refused("nodes", "-s", self.path("left"), code=74, says="start one")
        listener.close()
        with open(self.path("file"), "w"):
            self.refused("nodes", "-s", self.path("file"), code=74, says="no daemon can be reached")

    def test_another_protocol(self):
        self.refused("nodes", "-s", self.serve(b"220 mail.example ESMTP\r\n"), code=69, says="does not speak QMP: it began with '220 mail")
        self.refused("nodes", "-s", self.serve(b"NBDMAGICIHAVEOPT\0\3"), code=69, says="does not speak QMP")
        self.refused("nodes", "-s", self.serve(b'{"hello": "world"}\r\n'), code=69, says="no greeting")
        self.refused("nodes", "-s", self.serve(b'{"QMP": 1}\r\n'), code=69, says="no greeting")
        self.refused("nodes", "-s", self.serve(b'{"QMP" }\r\n'), code=69, says="does not speak QMP")

    def test_a_daemon_that_hangs_up(self):
        self.refused("nodes", "-s", self.serve(b""), code=74, says="has hung up")
        self.refused("nodes", "-s", self.serve(self.GREETING), code=74, says="")
        self.refused("nodes", "-s", self.serve(self.GREETING, self.WELCOME, b'{"return": ['), code=74, says="has hung up")

    def test_a_line_without_end_is_bounded(self):
        piece = b'"' + b"x" * MIB + b'",'
        path = self.serve(self.GREETING, self.WELCOME, [b'{"return": [', *[piece] * 80])
        done = run(BYRE, "ctl", "nodes", "-s", path, ok=None)
        self.assertEqual(done.code, 69, done)
        self.assertIn("more than 67108864 bytes", done.text)
        self.assertLess(done.memory, 512 * MIB)
        deep = self.serve(self.GREETING, self.WELCOME, b'{"return": ' + b"[" * 200)
        self.refused("nodes", "-s", deep, code=69, says="levels")

    def test_answers_that_make_no_sense(self):
        for answer, says in ((b'{"return": 1, "id": 2}\r\n', None), (b'{"return": [1, [], {"node-name": 2}], "id": 2}\r\n', None),
                             (b'{"id": 2}\r\n', "neither"), (b'[]\r\n', "no object"), (b'{"error": 1, "id": 2}\r\n', "no object"),
                             (b'{"error": {"class": 1}, "id": 2}\r\n', "not said why")):
            path = self.serve(self.GREETING, self.WELCOME, answer)
            done = run(BYRE, "ctl", "nodes", "-s", path, ok=None)
            self.assertIn(says or "", done.text)
            self.assertEqual(done.code == 0, says is None, done)

    def test_an_answer_to_another_question_is_no_answer(self):
        path = self.serve(self.GREETING, self.WELCOME, b'{"return": [{"node-name": "old"}], "id": 1}\r\n{"event": "X"}\r\n'
                          b'{"return": [{"node-name": "new"}], "id": 2}\r\n')
        text = run(BYRE, "ctl", "nodes", "-s", path).text
        self.assertIn("new", text)
        self.assertNotIn("old", text)

    def test_a_monitor_that_somebody_else_uses(self):
        daemon = Daemon(self.folder, "byre")
        self.addCleanup(daemon.kill)
        daemon.monitor()
        self.refused("nodes", "-s", daemon.socket, code=75, says="one client at a time")

    def test_a_socket_of_the_daemon_is_its_owners(self):
        daemon = Daemon(self.folder, "byre")
        self.addCleanup(daemon.kill)
        daemon.monitor()
        self.assertEqual(stat.S_IMODE(os.stat(daemon.socket).st_mode), 0o600)


class OnQemus(Ctl):
    """The same commands on QEMU's storage daemon."""
    kind = "qemu"

    def test_a_commit(self):
        self.chain()
        client = self.serve()
        self.ctl("commit", "top", "--base", "mid", "--wait")
        self.settle(client, 100)
        self.expect("mid.qcow2", self.finish(client))

    def test_a_backup(self):
        self.chain()
        self.assertIn("top", self.ctl("nodes").text)
        self.ctl("backup", "top", self.path("copy.qcow2"), "--wait")
        self.assertIn("Images are identical.", qemu_img("compare", "-U", self.path("top.qcow2"), self.path("copy.qcow2")).text)


if __name__ == "__main__":
    main()
