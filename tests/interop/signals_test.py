# SPDX-License-Identifier: Apache-2.0
"""Signals: the harmless ones harm nothing, those that ask are answered, those that end do so in order, and what a parent
blocks or ignores does not change that."""
import contextlib
import functools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import nbd  # noqa: E402
from harness import (BYRE, MIB, QEMU, Case, main, only_byre, qemu_img, qemu_io, readable, run,  # noqa: E402
                     until, wait)

HARMLESS = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ,
            signal.SIGURG, signal.SIGCONT]
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
TIMES = re.compile(rb"[0-9.]+ sec \(.*")
PROGRESS = re.compile(rb"(    \(\d+\.\d\d/100%\)\n)+")


def waiting(*signals):
    """In a child: these are blocked, and wait for whoever unblocks them; both outlives the exec."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    for number in signals:
        os.kill(os.getpid(), number)


def blocked(*signals):
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def ignored(*signals):
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


class Signals(Case):
    def setUp(self):
        super().setUp()
        self.disk, self.raw = self.path("disk.qcow2"), self.path("raw")
        for name in ("qemu-img", "qemu-io", "qemu-nbd"):
            os.symlink(shutil.which(name) if QEMU else BYRE, self.path(name))
        qemu_img("create", "-q", "-f", "qcow2", self.disk, "16M")
        qemu_io(self.disk, "write -P 7 1M 1M")
        self.sock = self.path("nbd")

    def large_raw(self):
        with open(self.raw, "wb") as file:
            file.write(random.Random(1).randbytes(96 * MIB))

    def commands(self):
        """A command line of each kind, by name; each can be run again and again."""
        disk, out = self.disk, self.path("out")
        qemu = {
            "info": ["info", disk], "check": ["check", disk], "map": ["map", disk],
            "create": ["create", "-f", "qcow2", out, "1M"], "convert": ["convert", "-O", "raw", disk, out],
            "resize": ["resize", disk, "16M"], "amend": ["amend", "-o", "lazy_refcounts=off", disk],
            "snapshot": ["snapshot", "-l", disk], "bitmap": ["bitmap", "--disable", disk, "b"],
        }
        qemu_img("bitmap", "--add", disk, "b")
        lines = {f"qemu-img {name}": [self.path("qemu-img"), *words] for name, words in qemu.items()}
        lines["qemu-io"] = [self.path("qemu-io"), "-c", "read -P 7 1M 1M", disk]
        if not QEMU:
            for name, words in qemu.items():
                force = ["--force"] if name in ("create", "convert") else []
                lines[f"byre {name}"] = [BYRE, words[0], *force, *words[1:]]
            lines["byre io"] = [BYRE, "io", "-c", "read -P 7 1M 1M", disk]
            lines["byre dump"] = [BYRE, "dump", disk]
            lines["byre repair"] = [BYRE, "repair", disk]
        return lines

    def servers(self):
        disk = self.disk
        lines = {"qemu-nbd": [self.path("qemu-nbd"), "-t", "-f", "qcow2", "-k", self.sock, disk]}
        if not QEMU:
            lines["byre serve"] = [BYRE, "serve", "-f", "qcow2", "-k", self.sock, disk]
            lines["byre serve, raw"] = [BYRE, "serve", "-f", "raw", "-r", "-k", self.sock, disk]
        return lines

    @contextlib.contextmanager
    def serving(self, words, **popen):
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, **popen)
        try:
            until(lambda: self.read() or process.poll() is not None, "the server")
            self.assertIsNone(process.poll(), words)
            yield process
        finally:
            process.kill()
            process.wait()

    def read(self):
        handle = nbd.NBD()
        try:
            handle.connect_unix(self.sock)
        except nbd.Error:
            return None
        data = bytes(handle.pread(512, 0))
        handle.shutdown()
        return data

    def ends(self, process, number):
        process.send_signal(number)
        wait(process, 60)
        return process.returncode

    @only_byre  # qemu-img dies of most of them.
    def test_harmless_ones_harm_no_command(self):
        """They wait for it when it begins."""
        for name, words in self.commands().items():
            with self.subTest(name):
                want = run(*words)
                done = run(*words, preexec_fn=functools.partial(waiting, *HARMLESS))
                self.assertEqual(TIMES.sub(b"", done.out), TIMES.sub(b"", want.out))
                self.assertEqual(PROGRESS.sub(b"", done.err), want.err)

    def test_harmless_ones_harm_no_server(self):
        harmless = [number for number in HARMLESS if not QEMU or number not in (signal.SIGUSR2, signal.SIGXFSZ)]
        for name, words in self.servers().items():
            with self.subTest(name), self.serving(
                    words, preexec_fn=None if QEMU else functools.partial(waiting, *harmless)) as process:
                for number in harmless * 2:
                    process.send_signal(number)
                    self.assertTrue(self.read())
                self.assertEqual(self.ends(process, signal.SIGTERM), 0)

    def test_sigusr1_asks_for_progress(self):
        self.large_raw()
        words = [self.path("qemu-img"), "convert", "-c", "-f", "raw", "-O", "qcow2", self.raw, self.path("copy")]
        for options in ([], ["-p"]) if not QEMU else ([],):
            process = subprocess.Popen([*words[:2], *options, *words[2:]], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            time.sleep(0.1 if not QEMU else 0.5)  # Only so that it is under way.
            while process.poll() is None:
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.02)
            out, err = process.communicate()
            self.assertEqual(process.returncode, 0, err)
            if options:  # It is told all the time already.
                self.assertEqual(err, b"")
                self.assertIn(b"(100.00/100%)", out)
                continue
            self.assertEqual(out, b"")
            self.assertRegex(err, PROGRESS)
            told = [float(line.strip(b" ()\n").split(b"/")[0]) for line in err.splitlines()]
            self.assertEqual(told, sorted(told))
            self.assertGreater(len(told), 3)
            self.assertLess(told[0], 100)
        qemu_img("compare", "-f", "raw", "-F", "qcow2", self.raw, self.path("copy"))

    @only_byre
    def test_each_command_that_has_progress_tells_it(self):
        lines = self.commands()
        for name in ("qemu-img convert", "qemu-img check", "qemu-img amend", "byre convert", "byre check", "byre amend",
                     "byre repair", "qemu-img resize", "byre resize"):
            words = lines[name]
            if name.endswith("resize"):
                words = [*words[:2], "--preallocation=full", self.disk, "+32M"]
            if name.endswith("amend"):  # One that does something.
                level = "0.10" if name.startswith("qemu") else "1.1"
                words = [*words[:2], "-o", f"compat={level}", self.path("old")]
                qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=1.1", self.path("old"), "16M")
            with self.subTest(name):
                done = run(*words, preexec_fn=functools.partial(waiting, signal.SIGUSR1))
                self.assertRegex(done.err, PROGRESS)
                self.assertNotRegex(done.out, rb"/100%")

    @only_byre
    def test_each_kind_of_resize_tells_its_progress(self):
        raw, data = self.path("raw disk"), self.path("data")
        run(BYRE, "create", "-q", "-f", "raw", raw, "16M")
        with open(self.raw, "wb") as file:
            file.write(random.Random(2).randbytes(16 * MIB))
        for name, size, options in (("metadata", "+1G", ["--preallocation=metadata"]),
                                    ("falloc", "+64M", ["--preallocation=falloc"]),
                                    ("full", "+64M", ["--preallocation=full"]), ("smaller", "4M", ["--shrink"])):
            with self.subTest(name):
                qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", self.raw, self.disk)
                done = run(BYRE, "resize", "-p", *options, self.disk, size)
                told = [float(part) for part in re.findall(rb"\((\d+\.\d\d)/100%\)", done.out)]
                self.assertEqual(told, sorted(told))
                self.assertEqual((told[0], told[-1]), (0, 100))
                self.assertGreater(len(told), 3, done)
                qemu_img("check", "-q", self.disk)
        for mode in ("falloc", "full"):
            with self.subTest("raw", mode=mode):
                done = run(BYRE, "resize", "-f", "raw", "-p", f"--preallocation={mode}", raw, "+200M")
                self.assertGreater(done.out.count(b"/100%)"), 3)
                os.truncate(raw, MIB)
        with self.subTest("quiet"):
            done = run(BYRE, "resize", "-q", "-p", self.disk, "32M")
            self.assertEqual(done.out + done.err, b"")

    @only_byre
    def test_a_tester_at_its_prompt_goes_on(self):
        process = subprocess.Popen([self.path("qemu-io"), "-f", "qcow2", self.disk], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        process.stdin.write(b"length\n")
        process.stdin.flush()
        self.assertIn(b"16 MiB", process.stdout.readline())
        for _ in range(5):
            for number in HARMLESS:
                process.send_signal(number)
            time.sleep(0.01)
        out, _ = process.communicate(b"read -P 7 1M 1M\nquit\n", timeout=60)
        self.assertEqual(process.returncode, 0, out)
        self.assertIn(b"read 1048576/1048576", out)

    def test_a_server_ends_in_order(self):
        for name, words in self.servers().items():
            for number in ENDING:
                with self.subTest(f"{name}, {number}"), self.serving(words) as process:
                    self.assertEqual(self.ends(process, number), 0)

    @only_byre  # qemu-nbd answers each request in its time: that takes more than a minute here.
    def test_a_throttled_server_ends_at_once(self):
        """What limits hold back is answered unthrottled, and what was answered is in the image."""
        size, length = 8 * MIB, 128 * 1024
        for number in ENDING:
            with self.subTest(number):
                qemu_img("create", "-q", "-f", "qcow2", self.path("slow.qcow2"), str(size))
                sock = self.path("slow.sock")
                opts = f"driver=throttle,throttle-group=g,file.driver=qcow2,file.file.driver=file,file.file.filename={self.path('slow.qcow2')}"
                process = subprocess.Popen([BYRE, "serve", "--object", "throttle-group,id=g,limits.bps-total=65536", "--image-opts", opts, "-k", sock],
                                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                self.addCleanup(process.kill)
                self.addCleanup(process.stderr.close)
                until(lambda sock=sock: os.path.exists(sock), "the server")
                handle = nbd.NBD()
                until(lambda handle=handle, sock=sock: self.connects(handle, sock), "a connection")
                data = bytearray(b"\x05" * length)
                cookies = {handle.aio_pwrite(nbd.Buffer.from_bytearray(data), at): at for at in range(0, 40 * length, length)}
                while handle.poll(100):
                    pass
                self.assertGreater(handle.aio_in_flight(), 20)
                began = time.monotonic()
                process.send_signal(number)
                answered = []
                with contextlib.suppress(nbd.Error):
                    while handle.aio_in_flight() or handle.aio_peek_command_completed() > 0:
                        cookie = handle.aio_peek_command_completed()
                        if cookie > 0:
                            with contextlib.suppress(nbd.Error):
                                if handle.aio_command_completed(cookie):
                                    answered.append(cookies[cookie])
                        elif handle.poll(2000) == 0:
                            break
                self.assertEqual(process.wait(10), 0, process.stderr.read())
                self.assertLess(time.monotonic() - began, 3)
                self.assertGreater(len(answered), 8)  # At the limit it would be one or two.
                self.assertIn("No errors were found", qemu_img("check", self.path("slow.qcow2")).text)
                run("qemu-io", "-f", "qcow2", "-r", *[word for at in answered for word in ("-c", f"read -P 5 {at} {length}")], self.path("slow.qcow2"))

    @staticmethod
    def connects(handle, sock):
        try:
            handle.connect_unix(sock)
        except nbd.Error:
            return False
        return True

    def test_sigterm_ends_a_server_whose_parent_ignores_it(self):
        for name, words in self.servers().items():
            with self.subTest(name), self.serving(words, preexec_fn=functools.partial(ignored, *ENDING)) as process:
                if not QEMU:  # nohup, and a shell's background, mean it.
                    process.send_signal(signal.SIGHUP)
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.05)
                    self.assertTrue(self.read())
                self.assertEqual(self.ends(process, signal.SIGTERM), 0)

    @only_byre  # QEMU's programs cannot be ended then.
    def test_a_parent_that_blocks_signals_changes_nothing(self):
        every = functools.partial(blocked, *ENDING, *HARMLESS)
        for name, words in self.servers().items():
            for number in ENDING:
                with self.subTest(f"{name}, {number}"), self.serving(words, preexec_fn=every) as process:
                    self.assertEqual(self.ends(process, number), 0)
        self.large_raw()
        for number in ENDING:
            with self.subTest(number):
                process = subprocess.Popen(
                    [self.path("qemu-img"), "convert", "-c", "-f", "raw", "-O", "qcow2", self.raw, self.path("copy")],
                    stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=every)
                time.sleep(0.1)
                process.send_signal(signal.SIGUSR1)
                self.assertIn(self.ends(process, number), (128 + number, -number))

    def test_nohup_is_heeded(self):
        self.large_raw()
        process = subprocess.Popen(
            [self.path("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", self.raw, self.path("copy")],
            stdin=subprocess.DEVNULL, preexec_fn=functools.partial(ignored, signal.SIGHUP))
        for _ in range(5):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.01)
        self.assertEqual(process.wait(60), 0)
        qemu_img("compare", "-f", "raw", "-F", "qcow2", self.raw, self.path("copy"))

    def test_the_background_is_reached_whatever_the_parent_does_with_its_children(self):
        """SIGCHLD ignored: there is no child to wait for."""
        for number in ([], [signal.SIGCHLD]):
            pid_file = self.path("pid")
            words = [self.path("qemu-nbd"), "--fork", "--pid-file", pid_file, "-t", "-f", "qcow2", "-k", self.sock]
            run(*words, self.disk, preexec_fn=functools.partial(ignored, *number))
            with open(pid_file) as file:
                pid = int(file.read())
            pidfd = os.pidfd_open(pid)
            self.assertTrue(self.read())
            if not QEMU:
                for harmless in HARMLESS:
                    os.kill(pid, harmless)
            self.assertTrue(self.read())
            os.kill(pid, signal.SIGTERM)
            self.assertTrue(readable(pidfd, 60))
            os.close(pidfd)
            failed = run(*words, self.path("absent"), ok=None, preexec_fn=functools.partial(ignored, *number))
            self.assertEqual(failed.code, 1, failed)
            self.assertIn(b"absent", failed.err)


if __name__ == "__main__":
    main()
