# SPDX-License-Identifier: Apache-2.0
"""What the tests in interop/ and system/ share: the program under test, a temporary folder, a served image.

BYRE names the program; without it build/release/byre is taken.  BYRE_PEER=qemu puts qemu-img, qemu-io and qemu-nbd in
its place: what is not marked @only_byre passes there as well, which tests the tests.
"""
import contextlib
import functools
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import peers  # noqa: F401  (puts the QEMU programs that byre is measured by in front of PATH)

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(TESTS)
sys.path.insert(0, os.path.join(TESTS, "reference"))
import qcow2ref  # noqa: E402  (found through the line above)

# mke2fs and its like, for users whose path lacks them.
os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
BYRE = os.path.abspath(os.environ.get("BYRE", os.path.join(ROOT, "build", "release", "byre")))
QEMU = os.environ.get("BYRE_PEER") == "qemu"
# No test waits this long unless something hangs.
PATIENCE = 120
OUTPUT_MAX = 16 * MIB

# A failure: QEMU's programs have one exit code for it, byre tells classes apart (src/cli/exit_code.h;
# errors_test.py has the code of each).
FAILURES = (1, 64, 65, 66, 69, 73, 74, 75, 76, 77, 79)

only_byre = unittest.skipIf(QEMU, "about byre alone")


class Died(AssertionError):
    """A program was ended by a signal, or did not end."""


class Done:
    """How a program ended.  Of what it wrote the first OUTPUT_MAX bytes are kept."""

    def __init__(self, words, code, out, err, memory):
        self.words, self.code, self.memory = words, code, memory
        self.out, self.out_size = self.read(out)
        self.err, self.err_size = self.read(err)

    @staticmethod
    def read(file):
        file.seek(0)
        return file.read(OUTPUT_MAX), os.fstat(file.fileno()).st_size

    @property
    def text(self):
        return (self.out + self.err).decode(errors="replace")

    def __str__(self):
        words = " ".join(map(str, self.words))
        return f"{words[:1000]}\nexit code {self.code}\n{self.text[-4000:]}"


def run(*words, ok=(0,), patience=PATIENCE, data=None, **popen):
    """Runs a program to its end.  `ok`: the exit codes that are right; None: all but death by a signal.  1 is any
    failure, whatever its class."""
    if ok is not None and 1 in ok and os.path.basename(str(words[0])) == "byre":
        ok = (*ok, *FAILURES)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source = subprocess.PIPE if data is not None else subprocess.DEVNULL
        process = subprocess.Popen(list(map(str, words)), stdin=source, stdout=out, stderr=err, **popen)
        killer = None
        try:
            if data is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(data)
                    process.stdin.close()
            code, usage = wait(process, patience)
        except subprocess.TimeoutExpired:
            killer = process
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        done = Done(words, process.returncode, out, err, 0 if killer else usage.ru_maxrss * KIB)
    if killer:
        raise Died(f"no end after {patience} s: {done}")
    if done.code < 0:
        raise Died(f"died of {signal.Signals(-done.code).name}: {done}")
    if ok is not None and done.code not in ok:
        raise AssertionError(str(done))
    return done


def wait(process, patience):
    """Like process.wait(), and gives what the process used as well."""
    pidfd = os.pidfd_open(process.pid)
    try:
        if not readable(pidfd, patience):
            raise subprocess.TimeoutExpired(process.args, patience)
    finally:
        os.close(pidfd)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage


def readable(fd, patience):
    import select
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0, patience) * 1000))


def until(condition, what, patience=PATIENCE):
    """Waits until condition() is true, and gives what it returned."""
    deadline = time.monotonic() + patience
    pause = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience} s for {what}")
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def img(*words, **options):
    """A command that byre shares with qemu-img."""
    return run(*([BYRE] if not QEMU else ["qemu-img"]), *words, **options)


def byre_io(path, *commands, options=(), **rest):
    """Commands of qemu-io, run by byre."""
    flat = [word for command in commands for word in ("-c", command)]
    return run(*([BYRE, "io"] if not QEMU else ["qemu-io"]), *options, *flat, path, **rest)


def qemu_img(*words, **options):
    return run("qemu-img", *words, **options)


def qemu_io(path, *commands, options=("-f", "qcow2"), **rest):
    flat = [word for command in commands for word in ("-c", command)]
    return run("qemu-io", *options, *flat, path, **rest)


def options_of(**options):
    """{"a": 1} as -o a=1, as qemu-img has it."""
    words = ",".join(f"{key}={value}" for key, value in options.items())
    return ["-o", words] if words else []


@functools.cache
def inputs(name):
    """A file made by tests/fetch.sh."""
    folder = os.environ.get("BYRE_TEST_INPUTS", os.path.join(ROOT, "build", "test-inputs"))
    run(os.path.join(TESTS, "fetch.sh"), folder, patience=600)
    return os.path.join(folder, name)


def memory_peak(pid):
    """The most memory that a running process has had, in bytes."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    raise AssertionError(f"process {pid} has no memory")


class Server:
    """An image served over NBD by a process of its own."""

    def __init__(self, image, sock, *, form="qcow2", read_only=False, name="", port=None, clients=None, options=(),
                 patience=PATIENCE, **popen):
        self.image, self.sock, self.name, self.port = image, sock, name, port
        self.told = False
        self.log = tempfile.TemporaryFile()
        words = self.words(image, form=form, read_only=read_only, name=name, clients=clients, options=options,
                           sock=sock, port=port)
        if sock:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(sock)
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, **popen)
        try:
            until(self.is_up, "the server", patience)
        except BaseException:
            self.kill()
            raise

    @staticmethod
    def words(image, *, form="qcow2", read_only=False, name="", clients=None, options=(), sock=None, port=None):
        """The command line."""
        if QEMU:
            words = ["qemu-nbd", "-t", "-e", str(clients or 16), "-f", form, "--discard=unmap", "-x", name]
            words += ["-r"] if read_only else []
            words += ["-k", sock] if sock else []
            words += ["-b", "127.0.0.1", "-p", str(port)] if port else []
        else:
            words = [BYRE, "serve", "-f", form, "-x", name]
            words += ["-r"] if read_only else []
            words += ["--max-connections", str(clients)] if clients else []
            words += ["-k", sock] if sock else []
            words += ["-p", str(port)] if port else []
        return words + list(options) + [image]

    def is_up(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}: {self.said()}")
        family, address = (socket.AF_UNIX, self.sock) if self.sock else (socket.AF_INET, ("127.0.0.1", self.port))
        with socket.socket(family) as probe:
            return probe.connect_ex(address) == 0

    @property
    def uri(self):
        if self.port:
            return f"nbd://127.0.0.1:{self.port}/{self.name}"
        return f"nbd+unix:///{self.name}?socket={self.sock}"

    @property
    def pid(self):
        return self.process.pid

    def said(self):
        """What it has written on its way."""
        if not self.log.closed:
            self.log.seek(0)
            self.text = self.log.read().decode(errors="replace")
        return self.text

    def memory_peak(self):
        return memory_peak(self.pid)

    def alive(self):
        return self.process.poll() is None

    def tell_to_end(self):
        """Once: a second signal would end byre at once."""
        if not self.told:
            self.told = True
            self.process.terminate()

    def stop(self, patience=PATIENCE):
        """Ends it in order, which must succeed."""
        self.tell_to_end()
        try:
            if self.process.returncode is None:
                wait(self.process, patience)
        except subprocess.TimeoutExpired:
            said = self.said()
            self.kill()
            raise Died(f"the server did not end: {said}") from None
        if self.process.returncode != 0:
            raise Died(f"the server ended with {self.process.returncode}: {self.said()}")
        self.kill()
        return self

    def kill(self):
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
        self.said()
        self.log.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.stop()
        else:
            with contextlib.suppress(Exception):
                print("server:", self.said()[-2000:], file=sys.stderr)
            self.kill()


class Case(unittest.TestCase):
    """A test with a folder of its own."""
    longMessage = True
    maxDiff = 2000

    def setUp(self):
        # Short, because the path of a socket is.
        self.folder = tempfile.mkdtemp(prefix="byre-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def server(self, image, **options):
        """A server, killed at the end of the test if it still runs."""
        options.setdefault("sock", None if options.get("port") else self.path("nbd"))
        server = Server(image, **options)
        self.addCleanup(server.kill)
        return server

    def reference(self, image, *, leaks=0, dirty=False, strict=False, decode=True):
        """The independent checker finds nothing wrong; gives its report."""
        report = examine(image, decode)
        self.assertEqual(report["errors"][:5], [], image)
        self.assertLessEqual(leaked(report), leaks, (image, report["leaks"][:5]))
        if not dirty:
            self.assertFalse(report["dirty"], f"{image} is dirty")
            self.assertEqual(report["copied_mismatch"][:5], [], image)
        self.assertFalse(report["corrupt"], f"{image} is marked corrupt")
        if strict:
            self.assertEqual(report["warnings"][:5], [], image)
        return report

    def assert_sound(self, image, **options):
        """qemu-img, the reference and byre find no fault and no leak."""
        qemu_img("check", "-q", "-f", "qcow2", image)
        self.reference(image, **options)
        img("check", "-q", "-f", "qcow2", image)

    def assert_same(self, left, right):
        """Two raw files hold the same bytes; zeros behind the end of one do not count."""
        def trimmed(path):
            return os.stat(path).st_size
        done = run("cmp", left, right, ok=(0, 1))
        if done.code:
            sizes = trimmed(left), trimmed(right)
            self.fail(f"{left} and {right} differ (sizes {sizes}): {done.text}")

    def assert_compares(self, raw, image, form="qcow2"):
        """QEMU reads the same from both."""
        qemu_img("compare", "-f", "raw", "-F", form, raw, image)


def describe(image):
    """qemu-img info as a dictionary."""
    return json.loads(qemu_img("info", "-f", "qcow2", "--output=json", image).out)


def examine(image, decode=True):
    """The report of the reference."""
    report = qcow2ref.check(image, decode=decode)
    gc.collect()  # It closes the files, which are space that somebody may wait for.
    return report


def leaked(report):
    """Host clusters that leak, of a report of the reference."""
    return sum(finding["clusters"] for finding in report["leaks"])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    unittest.main(verbosity=2)
