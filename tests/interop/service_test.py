#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What systemd hears of `byre serve` and `byre daemon`, and the sockets that it passes: the test plays systemd."""
import glob
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, PATIENCE, ROOT, Case, main, only_byre, qemu_img, readable, run  # noqa: E402
from qmp import Monitor  # noqa: E402


class Listener:
    """NOTIFY_SOCKET."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)

    def message(self):
        if not readable(self.socket.fileno(), PATIENCE):
            raise AssertionError("no message came")
        return self.socket.recv(65536).decode()

    def until(self, line):
        """The messages up to the one that has this line, itself last."""
        seen = []
        while True:
            seen.append(self.message())
            if line in seen[-1].splitlines():
                return seen

    def close(self):
        self.socket.close()


@only_byre
class Notify(Case):
    def setUp(self):
        super().setUp()
        qemu_img("create", "-q", "-f", "qcow2", self.path("disk.qcow2"), "8M")

    def listen(self, name):
        """A path, or with @ a name of the abstract namespace."""
        listener = Listener("\0" + name[1:] if name.startswith("@") else name)
        self.addCleanup(listener.close)
        return listener

    def start(self, *words, **variables):
        process = subprocess.Popen([BYRE, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   env={**os.environ, **{name: str(value) for name, value in variables.items()}})
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def serve_words(self):
        return "serve", "--quiet", "-k", self.path("nbd"), self.path("disk.qcow2")

    def daemon_words(self):
        return ("daemon", "--chardev", f"socket,id=qmp,path={self.path('qmp')},server=on,wait=off", "--monitor", "chardev=qmp",
                "--blockdev", f"driver=qcow2,node-name=disk,file.driver=file,file.filename={self.path('disk.qcow2')}")

    def test_ready_and_stopping(self):
        for words, status in ((self.serve_words(), f"serving {self.path('disk.qcow2')}"), (self.daemon_words(), "1 nodes")):
            for name in (self.path("notify"), f"@byre-test-{os.getpid()}"):
                with self.subTest(words=words[0], name=name):
                    listener = self.listen(name)
                    process = self.start(*words, NOTIFY_SOCKET=name)
                    ready = listener.until("READY=1")
                    self.assertEqual(len(ready), 2)
                    self.assertRegex(ready[0], r"\ASTATUS=opening .*\n\Z")
                    self.assertRegex(ready[1], rf"(?m)^STATUS=.*{re.escape(status)}")
                    # It is ready indeed.
                    with socket.socket(socket.AF_UNIX) as client:
                        client.connect(self.path("nbd" if words[0] == "serve" else "qmp"))
                    process.send_signal(signal.SIGTERM)
                    stopping = listener.until("STOPPING=1")
                    self.assertEqual(len(stopping), 1, "no watchdog was asked for")
                    self.assertEqual(process.wait(PATIENCE), 0)
                    self.assertFalse(readable(listener.socket.fileno(), 0), "it is told once")
                    listener.close()
                    if os.path.exists(name):
                        os.unlink(name)

    def test_a_command_ends_it_as_well(self):
        listener = self.listen(self.path("notify"))
        process = self.start(*self.daemon_words(), NOTIFY_SOCKET=self.path("notify"))
        listener.until("READY=1")
        monitor = Monitor(self.path("qmp"))
        self.addCleanup(monitor.close)
        monitor.do("qmp_capabilities")
        monitor.do("quit")
        listener.until("STOPPING=1")
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_the_watchdog_is_fed_in_time(self):
        interval = 0.4
        for words in (self.serve_words(), self.daemon_words()):
            with self.subTest(words[0]):
                listener = self.listen(self.path("notify"))
                process = self.start(*words, NOTIFY_SOCKET=self.path("notify"), WATCHDOG_USEC=int(interval * 1e6))
                listener.until("READY=1")
                before = time.monotonic()
                for _ in range(6):
                    self.assertEqual(listener.message(), "WATCHDOG=1\n")
                self.assertLess(time.monotonic() - before, 6 * interval)
                # One that stands still is not vouched for.
                process.send_signal(signal.SIGSTOP)
                while readable(listener.socket.fileno(), 0):
                    listener.message()
                self.assertFalse(readable(listener.socket.fileno(), 2 * interval))
                process.send_signal(signal.SIGCONT)
                self.assertEqual(listener.message(), "WATCHDOG=1\n")
                process.send_signal(signal.SIGINT)
                listener.until("STOPPING=1")
                self.assertEqual(process.wait(PATIENCE), 0)
                os.unlink(self.path("notify"))

    def test_a_watchdog_of_another_process_is_not_ours(self):
        listener = self.listen(self.path("notify"))
        process = self.start(*self.serve_words(), NOTIFY_SOCKET=self.path("notify"), WATCHDOG_USEC=100_000, WATCHDOG_PID=1)
        listener.until("READY=1")
        self.assertFalse(readable(listener.socket.fileno(), 0.5))
        process.send_signal(signal.SIGTERM)
        self.assertEqual(listener.until("STOPPING=1")[:-1], [])
        self.assertEqual(process.wait(PATIENCE), 0)

    def test_what_fails_is_never_ready(self):
        listener = self.listen(self.path("notify"))
        for words in (("serve", self.path("nosuch")), (*self.daemon_words(), "--blockdev", "driver=qcow2,node-name=x,file=nosuch")):
            process = self.start(*words, NOTIFY_SOCKET=self.path("notify"))
            self.assertNotEqual(process.wait(PATIENCE), 0)
            while readable(listener.socket.fileno(), 0):
                self.assertNotIn("READY", listener.message())

    def test_a_manager_that_is_not_there_keeps_nobody_from_serving(self):
        for name in (self.path("nosuch"), "relative", "", "/" + "x" * 200):
            with self.subTest(name):
                process = self.start(*self.serve_words(), NOTIFY_SOCKET=name, WATCHDOG_USEC="soon")
                deadline = time.monotonic() + PATIENCE
                while not os.path.exists(self.path("nbd")) and time.monotonic() < deadline:
                    time.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                self.assertEqual(process.wait(PATIENCE), 0)


@only_byre
class Units(Case):
    """The unit files that are installed."""

    def units(self):
        found = sorted(glob.glob(os.path.join(ROOT, "packaging", "systemd", "byre-*")))
        self.assertEqual([os.path.basename(path) for path in found], ["byre-daemon@.service", "byre-daemon@.socket"])
        return found

    def read(self, name):
        with open(os.path.join(ROOT, "packaging", "systemd", name)) as file:
            return file.read().replace("@CMAKE_INSTALL_FULL_BINDIR@/byre", BYRE)

    def test_systemd_takes_them(self):
        program = shutil.which("systemd-analyze")
        self.assertTrue(program, "the package systemd has systemd-analyze")
        for path in self.units():
            with open(self.path(os.path.basename(path).replace("@", "@x")), "w") as file:
                file.write(self.read(os.path.basename(path)))
        os.rename(self.path("byre-daemon@x.service"), self.path("byre-daemon@.service"))
        os.rename(self.path("byre-daemon@x.socket"), self.path("byre-daemon@.socket"))
        for name in ("byre-daemon@vm1.service", "byre-daemon@vm1.socket"):
            done = run(program, "verify", "--man=no", "--recursive-errors=no", self.path(name), ok=None)
            about = [line for line in done.text.splitlines() if "byre" in line]
            self.assertEqual((done.code, about), (0, []), done)
        with open(self.path("byre-daemon@.service"), "a") as file:
            file.write("[Service]\nNonsense=yes\n")
        done = run(program, "verify", "--man=no", "--recursive-errors=no", self.path("byre-daemon@vm1.service"), ok=None)
        self.assertIn("Nonsense", done.text, "it looks at all")

    def test_the_command_line_of_the_service_does_what_it_says(self):
        """As systemd starts it: sockets passed, and the notify socket."""
        self.units()
        unit = self.read("byre-daemon@.service").replace("\\\n", " ")
        line = re.search(r"(?m)^ExecStart=(.*)$", unit).group(1)
        words = [word.replace("%S", self.folder).replace("%i", "vm1").replace("$BYRE_DAEMON_OPTIONS", "") for word in line.split()]
        root = os.path.join(self.folder, "byre", "vm1")
        os.makedirs(root)
        words = [word for word in words if word]
        self.assertEqual(words[0], BYRE)
        sockets = []
        for name in ("qmp", "nbd"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(self.path(name))
            os.chmod(self.path(name), 0o600)
            listener.listen()
            self.addCleanup(listener.close)
            sockets.append(listener)
        notify = Listener(self.path("notify"))
        self.addCleanup(notify.close)
        qmp, nbd = (listener.fileno() for listener in sockets)
        # 3 and 4, whatever numbers they have here.
        process = subprocess.Popen(["sh", "-c", f'exec 8<&{qmp} 9<&{nbd}; exec 3<&8 4<&9 8<&- 9<&-; LISTEN_PID=$$ LISTEN_FDS=2 exec "$@"', "sh",
                                    *words], pass_fds=[qmp, nbd], env={**os.environ, "NOTIFY_SOCKET": self.path("notify")})
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        notify.until("READY=1")
        qemu_img("create", "-q", "-f", "qcow2", os.path.join(root, "disk.qcow2"), "8M")
        done = run(BYRE, "ctl", "-s", self.path("qmp"), "qmp", '{"execute": "blockdev-add", "arguments": {"driver": "qcow2", '
                   f'"node-name": "disk", "file": {{"driver": "file", "filename": "{root}/disk.qcow2"}}}}}}')
        self.assertEqual(done.out, b"{}\n")
        run(BYRE, "ctl", "-s", self.path("qmp"), "export", "add", "disk", "--writable")
        run("qemu-io", "-f", "raw", "-c", "write -P 7 0 1M", f"nbd+unix:///disk?socket={self.path('nbd')}")
        process.send_signal(signal.SIGTERM)
        notify.until("STOPPING=1")
        self.assertEqual(process.wait(PATIENCE), 0)
        self.assertIn("No errors were found", qemu_img("check", os.path.join(root, "disk.qcow2")).text)
        for name in ("qmp", "nbd"):  # They are systemd's, and stay.
            self.assertTrue(stat.S_ISSOCK(os.stat(self.path(name)).st_mode))


if __name__ == "__main__":
    main()
