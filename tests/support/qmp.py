# SPDX-License-Identifier: Apache-2.0
"""A storage daemon, QEMU's or byre's, and a client of its monitor."""
import array
import json
import os
import shutil
import signal
import socket
import subprocess

from harness import BYRE, PATIENCE, until


def command(name, /, *args, **more):
    """`command("blockdev-del", node_name="x")`; members whose names are no words come as a dictionary."""
    arguments = {key.replace("_", "-"): value for key, value in more.items()}
    for arg in args:
        arguments.update(arg)
    return {"execute": name, **({"arguments": arguments} if arguments else {})}


class Monitor:
    """One client of a unix socket, or of (host, port).  Events that come beside answers are kept in `events`."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX if isinstance(path, str) else socket.AF_INET)
        self.socket.settimeout(PATIENCE)
        until(lambda: self._connect(path), f"a server on {path}")
        self.file = self.socket.makefile("rb")
        self.events = []
        self.greeting = self.line()

    def _connect(self, path):
        try:
            self.socket.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def line(self):
        text = self.file.readline()
        if not text:
            raise EOFError("the monitor has hung up")
        assert text.endswith(b"\r\n"), text  # libvirt cuts there
        return json.loads(text)

    def send(self, request, descriptors=()):
        text = (request if isinstance(request, str) else json.dumps(request)).encode() + b"\n"
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([text], ancillary)

    def answer(self):
        while True:
            line = self.line()
            if "event" not in line:
                return line
            self.events.append(line)

    def ask(self, request, descriptors=()):
        self.send(request, descriptors)
        return self.answer()

    def do(self, name, /, *args, **more):
        """The result of a command that succeeds."""
        got = self.ask(command(name, *args, **more))
        if "return" not in got:
            raise AssertionError(f"{name} {args} {more}: {got}")
        return got["return"]

    def event(self, name):
        """The next event of that name."""
        while True:
            for found in self.events:
                if found["event"] == name:
                    self.events.remove(found)
                    return found
            line = self.line()
            assert "event" in line, line
            self.events.append(line)

    def until_event(self, name, data):
        """All events up to the next of that name that has this data at least; they are taken."""
        seen = 0
        while True:
            for place in range(seen, len(self.events)):
                found = self.events[place]
                if found["event"] == name and data.items() <= found["data"].items():
                    taken, self.events = self.events[:place + 1], self.events[place + 1:]
                    return taken
            seen = len(self.events)
            line = self.line()
            assert "event" in line, line
            self.events.append(line)

    def close(self):
        self.file.close()
        self.socket.close()


class Daemon:
    """`kind`: "byre", "qemu" (the peer), or "link" (byre under QEMU's name)."""

    def __init__(self, folder, kind, *words, monitor=True, **popen):
        self.socket = os.path.join(folder, "qmp")
        self.monitors = []
        program = [BYRE, "daemon", "--follow", "any"]
        if kind == "qemu":
            program = [shutil.which("qemu-storage-daemon")]
        if kind == "link":
            link = os.path.join(folder, "qemu-storage-daemon")
            if not os.path.lexists(link):
                os.symlink(BYRE, link)
            program = [link]
        if monitor:
            words = ("--chardev", f"socket,id=qmp,path={self.socket},server=on,wait=off", "--monitor", "chardev=qmp", *words)
        self.log = open(os.path.join(folder, "log"), "wb+")
        self.process = subprocess.Popen([*program, *words], cwd=folder, stdout=self.log, stderr=self.log, **popen)

    def monitor(self, negotiate=True):
        made = Monitor(self.socket)
        self.monitors.append(made)
        if negotiate:
            made.do("qmp_capabilities")
        return made

    def end(self, number=signal.SIGTERM):
        """The exit code."""
        if self.process.poll() is None and number:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.log.close()
            self.hang_up()

    def kill(self):
        self.hang_up()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def hang_up(self):
        for monitor in self.monitors:
            monitor.close()
        self.monitors = []

    def said(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read().decode(errors="replace")
