# SPDX-License-Identifier: Apache-2.0
"""Images that another program has open: who is refused, who is not, and what qemu-img 7.2 does.

A real qemu-io writes `live.qcow2`, whose backing file is `root.qcow2`; `over.qcow2` lies above it.  Every command is
played to qemu-img as well where it has it, and `LIKE` says where byre is meant to go further.
"""
import contextlib
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, PATIENCE, run, until  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402

# What needs guest data of an image that is being written, or writes it.
REFUSED = (
    ("info", "live.qcow2"),
    ("info", "--backing-chain", "over.qcow2"),
    ("map", "live.qcow2"),
    ("map", "over.qcow2"),
    ("check", "live.qcow2"),
    ("snapshot", "-l", "live.qcow2"),
    ("snapshot", "-c", "x", "live.qcow2"),
    ("snapshot", "-c", "x", "root.qcow2"),
    ("resize", "over.qcow2", "+1M"),
    ("resize", "root.qcow2", "+1M"),
    ("amend", "-o", "lazy_refcounts=on", "live.qcow2"),
    ("bitmap", "--add", "live.qcow2", "b"),
    ("convert", "-O", "raw", "live.qcow2", "out.raw"),
    ("convert", "-O", "raw", "over.qcow2", "out.raw"),
    ("create", "-q", "-f", "qcow2", "live.qcow2", "1M"),
)
# What does not, or says that it wants to read it anyway.
DONE = (
    ("create", "-q", "-f", "qcow2", "-b", "live.qcow2", "-F", "qcow2", "new.qcow2"),
    ("create", "-q", "-f", "qcow2", "-b", "live.qcow2", "-F", "qcow2", "new.qcow2", "1G"),
    ("create", "-q", "-f", "qcow2", "-b", "over.qcow2", "-F", "qcow2", "new.qcow2"),
    ("create", "-q", "-f", "qcow2", "-b", "root.qcow2", "-F", "qcow2", "new.qcow2"),
    ("info", "over.qcow2"),
    ("info", "root.qcow2"),
    ("info", "-U", "live.qcow2"),
    ("info", "-U", "--backing-chain", "over.qcow2"),
    ("map", "-U", "over.qcow2"),
    ("check", "-U", "live.qcow2"),
    ("snapshot", "-U", "-l", "live.qcow2"),
    ("convert", "-U", "-O", "raw", "over.qcow2", "out.raw"),
    ("bitmap", "--add", "over.qcow2", "b"),
)
# These open the overlay alone in byre; qemu-img opens what lies below as well, and is refused.
DONE_BY_BYRE = (
    ("check", "over.qcow2"),
    ("snapshot", "-l", "over.qcow2"),
    ("snapshot", "-c", "x", "over.qcow2"),
    ("amend", "-o", "lazy_refcounts=on", "over.qcow2"),
)


class InUse(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp(prefix="byre-in-use-")
        self.addCleanup(shutil.rmtree, self.home)
        self.names = os.path.join(self.home, "bin")
        os.mkdir(self.names)
        os.symlink(BYRE, os.path.join(self.names, "qemu-img"))
        self.holder = None
        self.addCleanup(self.release)

    def fresh(self, folder):
        """The three images, and a program that writes the middle one."""
        path = os.path.join(self.home, folder)
        shutil.rmtree(path, ignore_errors=True)
        os.mkdir(path)
        run("qemu-img", "create", "-q", "-f", "qcow2", "root.qcow2", "64M", cwd=path)
        for name, below in (("live", "root"), ("over", "live")):
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", f"{below}.qcow2", "-F", "qcow2", f"{name}.qcow2",
                cwd=path)
        self.hold("live.qcow2", path)
        return path

    def hold(self, image, path, *options):
        self.release()
        log = open(os.path.join(self.home, "holder.out"), "w+b")
        self.addCleanup(log.close)
        self.holder = subprocess.Popen(["qemu-io", *options, image], cwd=path, stdin=subprocess.PIPE, stdout=log)
        self.holder.stdin.write(b"read 0 512\n")
        self.holder.stdin.flush()
        until(lambda: b"read 512/512" in self.read(log), "qemu-io to open the image")

    @staticmethod
    def read(log):
        log.flush()
        with open(log.name, "rb") as file:
            return file.read()

    def release(self):
        if self.holder:
            self.holder.stdin.close()
            self.holder.wait(PATIENCE)
            self.holder = None

    def play(self, words, theirs, ours):
        for program, code in (("qemu-img", theirs), (os.path.join(self.names, "qemu-img"), ours)):
            with self.subTest(words=" ".join(words), program=program):
                path = self.fresh("work")
                before = {name: os.stat(os.path.join(path, name)).st_size for name in os.listdir(path)}
                done = run(program, *words, ok=None, cwd=path)
                self.assertEqual(done.code, code, str(done))
                if code == 0:
                    continue
                text = "is locked for writing by qemu-io" if program != "qemu-img" else "lock"
                if words[-2:] != ("x", "root.qcow2") and words[:2] != ("resize", "root.qcow2"):
                    self.assertIn(text, done.text)
                after = {name: os.stat(os.path.join(path, name)).st_size for name in before}
                self.assertEqual(before, after)

    def test_what_needs_the_data_is_refused(self):
        for words in REFUSED:
            self.play(words, 1, 1)

    def test_what_needs_none_is_done(self):
        for words in DONE:
            self.play(words, 0, 0)

    def test_what_opens_the_overlay_alone_is_done(self):
        for words in DONE_BY_BYRE:
            self.play(words, 1, 0)

    def test_the_new_overlay_is_sound_and_of_the_right_size(self):
        path = self.fresh("work")
        run(BYRE, "create", "-q", "-f", "qcow2", "-b", "live.qcow2", "-F", "qcow2", "new.qcow2", cwd=path)
        self.release()
        run("qemu-img", "check", "new.qcow2", cwd=path)
        self.assertIn("virtual size: 64 MiB", run("qemu-img", "info", "new.qcow2", cwd=path).text)

    def test_the_advice_names_an_option_that_the_command_has(self):
        path = self.fresh("work")
        for words in REFUSED:
            if "root.qcow2" in words:
                continue
            with self.subTest(words=" ".join(words)):
                force = ["--force"] if words[0] == "create" else []
                done = run(BYRE, words[0], *force, *words[1:], ok=None, cwd=path)
                self.assertNotEqual(done.code, 0, str(done))
                self.assertIn("close it first", done.text)
                self.assertIn(f"(pid {self.holder.pid})", done.text)
                if "-U" in done.text:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(path, "out.raw"))
                    run(BYRE, words[0], "-U", *words[1:], cwd=path)
        for words in (("info", "live.qcow2"), ("map", "over.qcow2"), ("check", "live.qcow2"),
                      ("snapshot", "-l", "live.qcow2"), ("dump", "live.qcow2"), ("repair", "live.qcow2"),
                      ("io", "-r", "-c", "read 0 1k", "over.qcow2"), ("convert", "-O", "raw", "over.qcow2", "out.raw")):
            with self.subTest(words=" ".join(words)):
                done = run(BYRE, *words, ok=None, cwd=path)
                self.assertIn("or use -U to read it anyway", done.text)
        for words in (("resize", "over.qcow2", "+1M"), ("bitmap", "--add", "live.qcow2", "b")):
            done = run(BYRE, *words, ok=None, cwd=path)
            self.assertNotIn("-U", done.text)

    def test_a_reader_keeps_nobody_from_making_an_overlay(self):
        path = self.fresh("work")
        self.hold("live.qcow2", path, "-r")
        run(BYRE, "create", "-q", "-f", "qcow2", "-b", "live.qcow2", "-F", "qcow2", "new.qcow2", cwd=path)
        run(BYRE, "map", "live.qcow2", cwd=path)


if __name__ == "__main__":
    unittest.main()
