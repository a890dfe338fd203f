#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What keeps strangers and hostile clients from `byre daemon`: where it listens, who may connect, and how much it takes
from one client.  The limits of the text itself are also in src/daemon/qmp_stream_test.cc."""
import json
import os
import re
import shutil
import socket
import stat
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import nbd  # noqa: E402
from harness import BYRE, KIB, MIB, Case, main, only_byre, qemu_img, run, until  # noqa: E402
from qmp import Daemon, command  # noqa: E402

# All, and an address that no machine here has (RFC 5737): refused before anybody looks whether it can be had.
BEYOND = ("0.0.0.0", "::", "", "192.0.2.1")


def memory_of(process):
    with open(f"/proc/{process.pid}/status") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * KIB
    raise AssertionError("the daemon has gone")


@only_byre
class Limits(Case):
    def start(self, *words, **more):
        daemon = Daemon(self.folder, "byre", *words, **more)
        self.addCleanup(daemon.kill)
        return daemon

    # --- Where it listens ----------------------------------------------------------------------------

    def test_beyond_this_machine_only_when_that_is_said(self):
        for host in BEYOND:
            for words in (["--chardev", f"socket,id=c,host={host},port=0,server=on,wait=off", "--monitor", "chardev=c"],
                          ["--nbd-server", f"addr.type=inet,addr.host={host},addr.port=0"]):
                with self.subTest(host=host, option=words[0]):
                    done = run(BYRE, "daemon", *words, ok=None)
                    self.assertEqual(done.code, 77, done)
                    self.assertIn("start with --allow-remote", done.text)
        monitor = self.start().monitor()
        for host in BEYOND:
            answer = monitor.ask(command("nbd-server-start", addr={"type": "inet", "data": {"host": host, "port": "0"}}))
            self.assertIn("start with --allow-remote", answer["error"]["desc"], host)
        for host in ("127.0.0.1", "localhost", "::1"):
            with self.subTest(host):
                answer = monitor.ask(command("nbd-server-start", addr={"type": "inet", "data": {"host": host, "port": "0"}}))
                if host != "::1" or "return" in answer:  # Not every machine has that.
                    self.assertEqual(answer, {"return": {}})
                    monitor.do("nbd-server-stop")

    def test_the_flag_lets_it(self):
        """It is not connected to: what is asked is where it listens."""
        daemon = self.start("--allow-remote")
        monitor = daemon.monitor()
        monitor.do("nbd-server-start", addr={"type": "inet", "data": {"host": "0.0.0.0", "port": "0"}})
        with open(f"/proc/{daemon.process.pid}/net/tcp") as file:
            listening = [line.split()[1] for line in file if line.split()[3] == "0A"]
        self.assertTrue(any(place.startswith("00000000:") for place in listening), listening)
        monitor.do("nbd-server-stop")

    def test_sockets_are_their_owners_whatever_the_umask(self):
        daemon = self.start("--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}", umask=0)
        monitor = daemon.monitor()
        for name in ("qmp", "nbd"):
            self.assertEqual(stat.S_IMODE(os.stat(self.path(name)).st_mode), 0o600, name)
        monitor.do("nbd-server-stop")
        monitor.do("nbd-server-start", addr={"type": "unix", "data": {"path": self.path("other")}})
        self.assertEqual(stat.S_IMODE(os.stat(self.path("other")).st_mode), 0o600)

    # --- How much it takes ---------------------------------------------------------------------------

    def cut_off(self, monitor, says):
        """The client is told, and then there is an end."""
        self.assertIn(says, monitor.answer()["error"]["desc"])
        with self.assertRaises((EOFError, ConnectionError)):
            monitor.line()

    def test_a_command_that_is_too_long(self):
        daemon = self.start()
        monitor = daemon.monitor()
        fits = '{"execute": "nosuch", "arguments": {"x": "%s"}}' % ("x" * (MIB - 100))
        monitor.socket.sendall(fits.encode())
        self.assertEqual(monitor.answer()["error"]["class"], "CommandNotFound")
        before = memory_of(daemon.process)

        def pour():
            try:
                for _ in range(64):
                    monitor.socket.sendall(b'{"execute": "' + b"x" * MIB)
            except OSError:
                pass  # Nobody listens any more.
        pouring = threading.Thread(target=pour)
        pouring.start()
        self.cut_off(monitor, "more than 1048576 bytes")
        pouring.join()
        self.assertLess(memory_of(daemon.process) - before, 16 * MIB)
        self.assertEqual(daemon.monitor().do("query-block"), [])

    def test_levels_and_parts(self):
        daemon = self.start()

        def nested(depth):
            return '{"execute": "nosuch", "arguments": {"x": %s%s}}' % ("[" * depth, "]" * depth)
        monitor = daemon.monitor()
        self.assertEqual(monitor.ask(nested(98))["error"]["class"], "CommandNotFound")
        monitor.send(nested(99))
        self.cut_off(monitor, "more than 100 levels")
        monitor = daemon.monitor()
        parts = ", ".join(["0"] * 65535)
        monitor.socket.sendall(b'{"execute": "nosuch", "arguments": {"x": [%s]}}' % parts.encode())
        answer = monitor.answer()
        self.assertIn("more than 65536 values", answer["error"]["desc"])
        self.assertEqual(monitor.do("query-block"), [])  # One that is too large is refused, and no more.
        self.assertIn("duplicate", monitor.ask('{"execute": "a", "execute": "b"}')["error"]["desc"])

    def test_a_client_that_never_reads_holds_up_nobody(self):
        second = self.path("second")
        daemon = self.start("--chardev", f"socket,id=two,path={second},server=on,wait=off", "--monitor", "chardev=two")
        deaf = daemon.monitor()
        request = json.dumps(command("query-qmp-schema")).encode() + b"\n"
        deaf.socket.settimeout(1)
        sent = 0
        try:
            for _ in range(4096):
                sent += deaf.socket.send(request * 64)
        except TimeoutError:
            pass  # It is not listened to any more, either.
        self.assertLess(sent, 4096 * 64 * len(request))
        before = memory_of(daemon.process)
        from qmp import Monitor
        other = Monitor(second)
        self.addCleanup(other.close)
        other.do("qmp_capabilities")
        for _ in range(20):
            self.assertEqual(other.do("query-block"), [])
        self.assertLess(memory_of(daemon.process) - before, 8 * MIB)
        self.assertLess(memory_of(daemon.process), 128 * MIB)
        deaf.close()
        self.assertEqual(daemon.monitor().do("query-block"), [])

    def test_many_clients_wait_their_turn(self):
        daemon = self.start()
        first = daemon.monitor()
        waiting = []
        for _ in range(50):
            one = socket.socket(socket.AF_UNIX)
            self.addCleanup(one.close)
            one.setblocking(False)
            try:
                one.connect(daemon.socket)
            except BlockingIOError:
                break  # The queue of the kernel is full.
            waiting.append(one)
        self.assertTrue(waiting)
        self.assertEqual(first.do("query-block"), [])
        descriptors = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        self.assertLess(descriptors, 30)
        first.close()
        waiting[0].setblocking(True)
        waiting[0].settimeout(60)
        self.assertTrue(waiting[0].recv(4096).startswith(b'{"QMP"'))

    def test_descriptors_that_nobody_takes_are_closed(self):
        daemon = self.start()
        monitor = daemon.monitor()
        before = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
        with open("/dev/null", "rb") as file:
            for _ in range(100):
                monitor.ask(command("query-block"), [file.fileno()] * 16)
        until(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= before + 16, "descriptors to be closed")
        monitor.close()
        other = daemon.monitor()
        until(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= before, "descriptors to be closed")
        self.assertEqual(other.do("query-block"), [])


@only_byre
class AtRest(Case):
    """Many disks, exports and jobs of one daemon, and nobody who wants anything of them."""

    def image(self, name):
        """Copies of one, as far as their bytes go."""
        if not os.path.exists(self.path("empty.qcow2")):
            qemu_img("create", "-q", "-f", "qcow2", self.path("empty.qcow2"), str(64 * MIB))
        shutil.copyfile(self.path("empty.qcow2"), self.path(f"{name}.qcow2"))
        return {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": self.path(f"{name}.qcow2")}}

    def test_rest_costs_nothing_and_a_disk_not_much(self):
        nodes, exports, jobs = 200, 50, 20
        daemon = Daemon(self.folder, "byre", "--nbd-server", f"addr.type=unix,addr.path={self.path('nbd')}")
        self.addCleanup(daemon.kill)
        monitor = daemon.monitor()
        before = memory_of(daemon.process)
        for number in range(nodes):
            monitor.do("blockdev-add", self.image(f"n{number}"))
        for number in range(exports):
            monitor.do("block-export-add", {"type": "nbd", "id": f"e{number}", "node-name": f"n{number}", "writable": True})
        for number in range(jobs):
            monitor.do("blockdev-mirror", {"job-id": f"j{number}", "device": f"n{number}", "target": f"n{exports + number}", "sync": "full"})
            monitor.event("BLOCK_JOB_READY")
        self.assertLess(memory_of(daemon.process) - before, nodes * 256 * KIB)
        # Each disk that is written has its tables, and commits them within a second or so.
        clients = []
        for number in range(exports):
            clients.append(nbd.NBD())
            clients[-1].connect_uri(f"nbd+unix:///n{number}?socket={self.path('nbd')}")
            clients[-1].pwrite(bytes(range(256)) * 256, number * 64 * KIB)
        self.assertLess(memory_of(daemon.process) - before, nodes * 256 * KIB + exports * 512 * KIB)
        pid = daemon.process.pid
        until(lambda: self.wakes_in(pid, 1) <= 1, "rest")
        # The thread sleeps until somebody comes: neither a disk nor a job nor a client has a timer.
        self.assertLessEqual(self.wakes_in(pid, 5), 5)
        for number in range(exports):
            self.assertEqual(clients[number].pread(256, number * 64 * KIB), bytes(range(256)))
            clients[number].shutdown()
        for number in range(jobs):
            monitor.do("block-job-cancel", device=f"j{number}", force=True)
        monitor.do("quit")
        self.assertEqual(daemon.end(None), 0)

    @staticmethod
    def wakes_in(pid, seconds):
        """How often threads of the process go to sleep in that time."""
        def count():
            found = 0
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as file:
                    found += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.M).group(1))
            return found
        before = count()
        threading.Event().wait(seconds)
        return count() - before


if __name__ == "__main__":
    main()
