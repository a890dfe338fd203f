# SPDX-License-Identifier: Apache-2.0
"""Programs that are started without some of the descriptors 0 to 2, as daemons, containers and cron do.

If a file that byre opens got one of these numbers, a message would overwrite the start of the disk.  Each command, under
each name and on both reactors, is played with each set of them closed; the disk must hold afterwards what it holds when
all three are open.
"""
import itertools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from confine import forbid_io_uring  # noqa: E402
from harness import BYRE, MIB, Case, img, main, only_byre, qemu_img, qemu_io, run, until  # noqa: E402

SETS = [closed for count in (1, 2, 3) for closed in itertools.combinations((0, 1, 2), count)]


def prepared(closed, threads):
    """For a new process, before it becomes the program."""
    def prepare():
        if threads:
            forbid_io_uring()
        for number in closed:
            os.close(number)
    return prepare


@only_byre
class ClosedDescriptors(Case):
    def setUp(self):
        super().setUp()
        self.raw = self.path("content")
        with open(self.raw, "wb") as file:
            file.write(b"D" * MIB + bytes(3 * MIB))
        self.source = self.path("source")
        qemu_img("convert", "-f", "raw", "-O", "qcow2", self.raw, self.source)
        qemu_img("snapshot", "-c", "old", self.source)
        qemu_img("bitmap", "--add", self.source, "seen")
        self.leaky = self.path("leaky")
        shutil.copy(self.source, self.leaky)
        with open(self.leaky, "r+b") as file:  # Counts clusters that nothing refers to.
            first = file.seek(0, os.SEEK_END) // 65536 + 1
            file.truncate((first + 4) * 65536)
            file.seek(48)
            file.seek(struct.unpack(">Q", file.read(8))[0])
            file.seek(struct.unpack(">Q", file.read(8))[0] + 2 * first)
            file.write(struct.pack(">4H", 1, 1, 1, 1))

    def played(self):
        for threads in (False, True):
            for closed in SETS:
                yield closed, threads

    def run_closed(self, closed, threads, program, *words, ok):
        return run(program, *words, executable=BYRE, ok=ok, preexec_fn=prepared(closed, threads))

    def test_no_command_writes_into_an_image(self):
        commands = [
            ("qemu-img", "info", "-f", "qcow2", "DISK"),
            ("qemu-img", "map", "-f", "qcow2", "DISK"),
            ("qemu-img", "snapshot", "-l", "DISK"),
            ("qemu-img", "amend", "-p", "-f", "qcow2", "-o", "refcount_bits=32", "DISK"),
            ("qemu-img", "amend", "-p", "-f", "qcow2", "-o", "refcount_bits=3", "DISK"),
            ("qemu-img", "resize", "-f", "qcow2", "DISK", "4M"),
            ("qemu-img", "resize", "-f", "qcow2", "DISK", "1M"),
            ("qemu-img", "check", "-p", "-f", "qcow2", "DISK"),
            ("qemu-img", "info", "--no-such-option", "DISK"),
            ("byre", "check", "DISK"),
            ("byre", "dump", "DISK"),
            ("byre", "snapshot", "-c", "new", "DISK"),
            ("byre", "bitmap", "--clear", "DISK", "seen"),
            ("byre", "repair", "DISK"),
            ("byre", "io", "-c", "read -v 0 512", "-c", "write -P 68 0 64k", "-c", "flush", "DISK"),
            ("qemu-io", "-f", "qcow2", "-c", "read -P 68 0 64k", "-c", "aio_write -P 68 4k 4k", "DISK"),
            ("qemu-io", "-f", "qcow2", "-c", "read -P 1 0 64k", "DISK"),
        ]
        for closed, threads in self.played():
            for program, *words in commands:
                disk = self.path("disk")
                shutil.copy(self.source, disk)
                words = [disk if word == "DISK" else word for word in words]
                with self.subTest(closed=closed, threads=threads, program=program, words=words):
                    self.run_closed(closed, threads, program, *words, ok=None)
                    self.assert_sound(disk)
                    self.assert_compares(self.raw, disk)

    def test_exit_codes_are_those_with_all_three_open(self):
        for closed, threads in self.played():
            with self.subTest(closed=closed, threads=threads):
                self.run_closed(closed, threads, "qemu-img", "check", "-f", "qcow2", self.source, ok=(0,))
                self.run_closed(closed, threads, "qemu-img", "check", "-f", "qcow2", self.leaky, ok=(3,))
                self.run_closed(closed, threads, "qemu-img", "check", "-f", "qcow2", self.path("none"), ok=(1,))
                self.run_closed(closed, threads, "qemu-img", "amend", "-p", "-f", "qcow2", "-o", "lazy_refcounts=on",
                                self.source, ok=(0,))

    def test_a_copy_holds_nothing_but_the_source(self):
        for closed, threads in self.played():
            with self.subTest(closed=closed, threads=threads):
                target, raw = self.path("target"), self.path("raw")
                self.run_closed(closed, threads, "qemu-img", "convert", "-p", "-O", "qcow2", self.source, target, ok=(0,))
                self.assert_sound(target)
                self.assert_compares(self.raw, target)
                self.run_closed(closed, threads, "qemu-img", "convert", "-p", "-O", "raw", self.source, raw, ok=(0,))
                self.assert_same(self.raw, raw)
                self.run_closed(closed, threads, "byre", "create", "--force", "-f", "qcow2", target, "4M", ok=(0,))
                self.assert_sound(target)

    def test_a_repair_and_its_journal_hold_no_message(self):
        for closed, threads in self.played():
            with self.subTest(closed=closed, threads=threads):
                disk = self.path("disk")
                shutil.copy(self.leaky, disk)
                self.run_closed(closed, threads, "byre", "repair", "--apply", disk, ok=(0,))
                self.assert_sound(disk)
                self.assert_compares(self.raw, disk)
                self.run_closed(closed, threads, "byre", "repair", "--undo", disk + ".undo", disk, ok=(0,))
                run("cmp", disk, self.leaky)

    def test_a_raw_disk_keeps_its_first_bytes(self):
        for closed, threads in self.played():
            with self.subTest(closed=closed, threads=threads):
                for commands in (["read -v 0 512"], ["read -P 1 0 512"], ["write -P 68 0 64k", "nonsense"]):
                    flat = [word for command in commands for word in ("-c", command)]
                    self.run_closed(closed, threads, "qemu-io", *flat, "-f", "raw", self.raw, ok=None)
                    with open(self.raw, "rb") as file:
                        self.assertEqual(file.read(), b"D" * MIB + bytes(3 * MIB))

    def serve(self, closed, threads, program, *words):
        """Serves, reads and writes, ends the server."""
        sock, pid_file = self.path("sock"), self.path("pid")
        for path in (sock, pid_file):
            if os.path.exists(path):
                os.unlink(path)
        words = [{"SOCK": sock, "PID": pid_file}.get(word, word) for word in words]
        process = subprocess.Popen([program, *words], executable=BYRE, preexec_fn=prepared(closed, threads),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        if "--fork" in words:
            self.assertEqual(process.wait(timeout=60), 0)
        until(lambda: os.path.exists(pid_file) and os.stat(pid_file).st_size and self.listens(sock), "the server")
        with open(pid_file) as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/comm") as file:
            self.assertEqual(file.read(), program + "\n")
        self.addCleanup(lambda: os.path.exists(f"/proc/{pid}") and os.kill(pid, signal.SIGKILL))
        qemu_io(f"nbd+unix:///?socket={sock}", "read -q -P 68 0 1M", "write -q -P 68 0 128k", "flush",
                options=("-f", "raw"))
        run("/usr/bin/nbdinfo", f"nbd+unix:///?socket={sock}")
        os.kill(pid, signal.SIGTERM)
        if "--fork" not in words:
            self.assertEqual(process.wait(timeout=60), 0)
        until(lambda: self.has_ended(pid), "the server's end")

    @staticmethod
    def listens(sock):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(sock) == 0

    @staticmethod
    def has_ended(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().split()[2] == "Z"
        except FileNotFoundError:
            return True

    def test_servers_serve_and_write_into_no_disk(self):
        for closed, threads in self.played():
            for form, content in (("raw", self.raw), ("qcow2", self.source)):
                for program, *words in (("qemu-nbd", "-t", "-e", "4", "-k", "SOCK", "--pid-file", "PID"),
                                        ("qemu-nbd", "-t", "-v", "--fork", "-k", "SOCK", "--pid-file", "PID"),
                                        ("byre", "serve", "--socket", "SOCK", "--pid-file", "PID")):
                    with self.subTest(closed=closed, threads=threads, program=program, words=words, form=form):
                        disk = self.path("disk")
                        shutil.copy(content, disk)
                        self.serve(closed, threads, program, *words, "-f", form, disk)
                        if form == "raw":
                            run("cmp", disk, self.raw)
                        else:
                            self.assert_sound(disk)
                            self.assert_compares(self.raw, disk)


if __name__ == "__main__":
    main()
