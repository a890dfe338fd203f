# SPDX-License-Identifier: Apache-2.0
"""Disks whose making is killed, interrupted, or fails: nothing that is left looks like a disk.

What is left of a file that was there before keeps its inode and its links, and says what it is.
"""
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, MIB, Case, img, main, only_byre, options_of, qemu_img, run, until  # noqa: E402

NEVER_FINISHED = "never finished"
SIZE = 64 * MIB


@only_byre
class Unfinished(Case):
    def setUp(self):
        super().setUp()
        self.source, self.target = self.path("source"), self.path("target.qcow2")
        with open(self.source, "wb") as file:
            file.write(random.Random(1).randbytes(SIZE))
        self.names = {"byre": BYRE, "qemu-img": self.path("qemu-img")}
        os.symlink(BYRE, self.names["qemu-img"])

    def start(self, *words, name="byre"):
        return subprocess.Popen([self.names[name], *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE)

    def end(self, process, number, grown):
        """Once the target has grown; the exit code, or None if it ended before."""
        try:
            until(lambda: process.poll() is not None or self.length() >= grown, "the target", 20)
            process.send_signal(number)
            _, self.said = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode if process.returncode != 0 else None

    def length(self):
        return os.stat(self.target).st_size if os.path.exists(self.target) else 0

    def assert_no_image(self, path):
        # The kernel may hold a killed process's locks for a moment.
        until(lambda: "lock" not in qemu_img("info", path, ok=(0, 1)).text, "the locks", 20)
        self.assertIn(NEVER_FINISHED, qemu_img("info", path, ok=(1,)).text)
        for words in (["info"], ["check"], ["map"], ["convert", "-O", "raw"], ["info", "-f", "qcow2"]):
            target = [self.path("copy")] if words[0] == "convert" else []
            self.assertIn(NEVER_FINISHED, img(*words, path, *target, ok=(1, 2)).text)
        self.assertNotIn("No errors", qemu_img("check", "-f", "qcow2", path, ok=(1, 2)).text)

    def is_finished(self, words):
        """Did the kill come after the last write?  Then the disk is all there."""
        until(lambda: "lock" not in qemu_img("info", self.target, ok=(0, 1)).text, "the locks", 20)
        if qemu_img("info", self.target, ok=(0, 1)).code != 0:
            return False
        self.assertIn("No errors", qemu_img("check", self.target).text)
        if words[0] in ("convert", "dd"):
            self.assert_compares(self.source, self.target)
        return True

    def makes(self):
        """Command lines that make the target, and take a moment."""
        for name in self.names:
            for words in (["-O", "qcow2"], ["-O", "qcow2", "-c"], ["-O", "qcow2", "-t", "writeback"],
                          ["-O", "qcow2", "-o", "preallocation=falloc"]):
                yield name, ["convert", *words, "-f", "raw", self.source, self.target]
            yield name, ["dd", "-f", "raw", "-O", "qcow2", "bs=64k", f"if={self.source}", f"of={self.target}"]
            yield name, ["create", "-q", "-f", "qcow2", "-o", "preallocation=full", self.target, 8 * SIZE]

    def test_killed(self):
        draw = random.Random(2)
        killed = 0
        for name, words in self.makes():
            for _ in range(3):
                with self.subTest(name=name, words=words[:-2]):
                    # What a turn that fails leaves is no target of the next one.
                    if os.path.exists(self.target):
                        os.unlink(self.target)
                    code = self.end(self.start(*words, name=name), signal.SIGKILL, draw.randrange(1, SIZE))
                    if code is None or self.is_finished(words):
                        continue
                    killed += 1
                    self.assert_no_image(self.target)
                    # It is made again where that was asked for, and is a disk then.
                    img("convert", "-O", "qcow2", "-f", "raw", self.source, self.target, ok=(1,))
                    img("convert", "--force", "-O", "qcow2", "-f", "raw", self.source, self.target)
                    self.assert_compares(self.source, self.target)
        self.assertGreater(killed, 10)

    def test_killed_raw_files_are_too_short(self):
        killed = 0
        for turn in range(6):
            words = ["convert", "-f", "raw", "-O", "raw", self.source, self.target]
            if self.end(self.start(*words), signal.SIGKILL, turn * SIZE // 16 + 1) is not None:
                if self.length() == SIZE:  # The kill came after the last byte: then it is all there.
                    self.assert_compares(self.source, self.target, "raw")
                else:
                    killed += 1
                    self.assertLess(self.length(), SIZE)
            os.unlink(self.target)
        self.assertGreater(killed, 0)

    def test_interrupted(self):
        ended = 0
        for name, words in self.makes():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                with self.subTest(name=name, words=words[:-2], number=number):
                    code = self.end(self.start(*words, name=name), number, 1)
                    if code is not None:
                        ended += 1
                        self.assertEqual(code, 128 + number, self.said)
                        self.assertIn(f"{name}: interrupted".encode(), self.said)
                        self.assertFalse(os.path.exists(self.target))
                    else:
                        os.unlink(self.target)
        self.assertGreater(ended, 10)

    def test_interrupted_over_what_was_there(self):
        ended = 0
        for form in ("qcow2", "raw"):
            for link in (os.link, os.symlink):
                with self.subTest(form=form, link=link.__name__):
                    there = self.path("there")
                    with open(there, "wb") as file:
                        file.write(b"old" * 1000)
                    inode = os.stat(there).st_ino
                    link(there, self.target)
                    process = self.start("convert", "--force", "-f", "raw", "-O", form, self.source, self.target)
                    code = self.end(process, signal.SIGTERM, 5000)
                    self.assertEqual(os.stat(there).st_ino, inode)
                    self.assertEqual(os.path.islink(self.target), link is os.symlink)
                    if code is not None:
                        ended += 1
                        self.assertEqual(code, 143)
                        self.assertIn(b"what it held is gone", self.said)
                        if form == "raw":
                            self.assertEqual(os.stat(there).st_size, 0)
                        else:
                            self.assert_no_image(there)
                    os.unlink(self.target)
                    os.unlink(there)
        self.assertGreater(ended, 2)

    def test_interrupted_with_a_data_file(self):
        data = self.path("data")
        for there in (False, True):
            for raw in ("off", "on"):
                if there:
                    with open(data, "wb") as file:
                        file.write(b"old" * 1000)
                process = self.start("convert", "--force", "-f", "raw", "-O", "qcow2",
                                     *options_of(data_file=data, data_file_raw=raw), self.source, self.target)
                code = self.end(process, signal.SIGINT, 1)
                if code is None:
                    os.unlink(self.target)
                    os.unlink(data)
                    continue
                self.assertEqual(code, 130)
                self.assertFalse(os.path.exists(self.target))
                self.assertEqual(os.path.exists(data), there)
                if there:
                    self.assertEqual(os.stat(data).st_size, 0)
                    self.assertIn(b"data' is left empty: what it held is gone", self.said)
                    os.unlink(data)

    def test_interrupted_in_what_is_there(self):
        """-n: the target stays an image; what it holds is said."""
        for form in ("qcow2", "raw"):
            img("create", "-q", "-f", form, self.target, SIZE)
            process = self.start("convert", "-n", "-f", "raw", "-O", form, self.source, self.target)
            time.sleep(0.02)
            code = self.end(process, signal.SIGINT, 0)
            self.assertIn(code, (None, -signal.SIGINT, 130))  # It may have come before anything was begun.
            if code == 130:
                self.assertIn(b"is left with a part of the copy over what it held", self.said)
            if form == "qcow2":
                self.assert_sound(self.target)
            os.unlink(self.target)

    def test_failed(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))
        for name in self.names:
            for form in ("qcow2", "raw"):
                words = ["convert", "-f", "raw", "-O", form, self.source, self.target]
                run(self.names[name], *words, ok=(1,), preexec_fn=limit)
                self.assertFalse(os.path.exists(self.target))
        run(BYRE, "create", "-q", "-f", "qcow2", *options_of(preallocation="full"), self.target, SIZE, ok=(1,),
            preexec_fn=limit)
        self.assertFalse(os.path.exists(self.target))
        shutil.copy(self.source, self.target)
        inode = os.stat(self.target).st_ino
        done = run(BYRE, "convert", "--force", "-f", "raw", "-O", "qcow2", self.source, self.target, ok=(1,), preexec_fn=limit)
        self.assertIn("is left without a disk", done.text)
        self.assertEqual(os.stat(self.target).st_ino, inode)
        self.assert_no_image(self.target)

    def test_a_source_that_fails_leaves_no_target(self):
        image = self.path("image.qcow2")
        qemu_img("convert", "-f", "raw", "-O", "qcow2", self.source, image)
        os.truncate(image, SIZE // 2)
        for form in ("qcow2", "raw"):
            img("convert", "-f", "qcow2", "-O", form, image, self.target, ok=(1,))
            self.assertFalse(os.path.exists(self.target))

    def test_block_devices(self):
        with open(self.path("disk"), "wb") as file:
            file.truncate(2 * SIZE)
        made = run("losetup", "-f", "--show", self.path("disk"), ok=None)
        if made.code != 0:
            self.skipTest("no loop devices here")
        self.target = made.out.decode().strip()
        self.addCleanup(run, "losetup", "-d", self.target)
        for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
            qemu_img("convert", "-f", "raw", "-O", "qcow2", self.source, self.target)
            qemu_img("check", "-f", "qcow2", self.target)
            process = self.start("convert", "--force", "-f", "raw", "-O", "qcow2", self.source, self.target)

            def begun():
                with open(self.path("disk"), "rb") as file:
                    return NEVER_FINISHED.encode() in file.read(512)
            until(begun, "the first sector", 20)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
            self.assertEqual(process.returncode, code, said)
            if number == signal.SIGTERM:
                self.assertIn(b"is left without a disk", said)
            self.assert_no_image(self.target)
        img("convert", "--force", "-f", "raw", "-O", "qcow2", self.source, self.target)
        self.assert_compares(self.source, self.target)


if __name__ == "__main__":
    main()
