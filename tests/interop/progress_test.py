# SPDX-License-Identifier: Apache-2.0
"""--progress=json: lines of JSON on standard error, of every command that has a progress; and the bar on a terminal."""
import json
import os
import pty
import random
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, MIB, Case, main, only_byre, run  # noqa: E402


@only_byre
class ProgressLines(Case):
    def setUp(self):
        super().setUp()
        self.source = self.path("source.raw")
        with open(self.source, "wb") as file:
            file.write(random.Random(1).randbytes(6 * MIB))
            file.truncate(8 * MIB)

    def image(self, name, *words):
        path = self.path(name)
        run(BYRE, "convert", "-O", "qcow2", *words, self.source, path)
        return path

    def lines_of(self, done):
        lines = [json.loads(line)["progress"] for line in done.err.decode().splitlines() if '"progress"' in line]
        self.assertGreaterEqual(len(lines), 2, done)
        for line in lines:
            self.assertEqual(sorted(line), ["description", "elapsed", "finished", "rate", "size", "transferred", "unit"])
            self.assertLessEqual(line["transferred"], line["size"])
        self.assertFalse(lines[0]["finished"])
        for before, after in zip(lines, lines[1:]):
            if before["description"] == after["description"]:
                self.assertLessEqual(before["elapsed"], after["elapsed"])
                self.assertLessEqual(before["transferred"], after["transferred"])
        return lines

    def over(self):
        base, over = self.image("base.qcow2"), self.path("over.qcow2")
        run(BYRE, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", over)
        run(BYRE, "io", "-c", "write -P 1 1M 2M", over)
        return base, over

    def test_every_command(self):
        base, over = self.over()
        commands = {
            "convert": ("convert", self.source, self.path("c.qcow2")),
            "dd": ("dd", f"if={self.source}", f"of={self.path('d.raw')}"),
            "measure": ("measure", "-O", "qcow2", base),
            "compare": ("compare", self.source, base),
            "check": ("check", base),
            "amend": ("amend", "-o", "compat=1.1,refcount_bits=64", base),
            "resize": ("resize", "--preallocation", "falloc", base, "+9M"),
            "rebase": ("rebase", "-b", "", over),
            "commit": ("commit", "-d", over),
            "bench": ("bench", "-c", "200", base),
            "repair": ("repair", base),
        }
        of_bytes = {"convert", "dd", "measure", "compare", "resize", "rebase", "commit"}
        for name, words in commands.items():
            with self.subTest(command=name):
                if name == "commit":
                    os.remove(over)
                    over = self.over_again(base)
                done = run(BYRE, words[0], "--progress=json", *words[1:])
                lines = self.lines_of(done)
                self.assertEqual({line["description"] for line in lines}, {name})
                self.assertEqual(lines[0]["unit"], "bytes" if name in of_bytes else "steps")
                self.assertTrue(lines[-1]["finished"], lines[-1])
                self.assertEqual(lines[-1]["transferred"], lines[-1]["size"])

    def over_again(self, base):
        over = self.path("over.qcow2")
        run(BYRE, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", over)
        run(BYRE, "io", "-c", "write -P 1 1M 2M", over)
        return over

    def test_a_long_run_has_lines_between(self):
        done = run(BYRE, "convert", "--progress", "json", "-r", "6M", self.source, self.path("slow.raw"))
        lines = self.lines_of(done)
        self.assertGreater(len(lines), 3)
        self.assertEqual(lines[-1]["size"], 8 * MIB)
        between = [line for line in lines if 0 < line["transferred"] < line["size"]]
        self.assertTrue(between and all(line["rate"] > 0 for line in between[1:]))
        self.assertEqual(done.out, b"")

    def test_verify_is_a_part_of_its_own(self):
        done = run(BYRE, "convert", "--verify", "--progress=json", self.source, self.path("v.qcow2"))
        lines = self.lines_of(done)
        self.assertEqual([line["description"] for line in lines if line["finished"]], ["convert", "verify"])

    def test_verify_reads_back_what_the_kernel_could_have_copied(self):
        sizes = []
        for words in ([], ["-C"]):
            done = run(BYRE, "convert", "--verify", *words, "--force", "--progress=json", "-O", "raw", self.source,
                       self.path("v.raw"))
            sizes += [line["size"] for line in self.lines_of(done) if line["finished"] and line["description"] == "verify"]
        self.assertEqual(len(sizes), 2)
        self.assertEqual(sizes[0], sizes[1])
        self.assertGreater(sizes[0], 0)

    def test_the_last_line_of_a_failure_says_so(self):
        done = run(BYRE, "convert", "--progress=json", "--output=json", "-n", "-O", "raw", self.source,
                   self.short_target(), ok=None)
        self.assertNotEqual(done.code, 0)
        lines = [json.loads(line) for line in done.err.decode().splitlines()]
        self.assertIn("error", lines[-1])
        progress = [line["progress"] for line in lines if "progress" in line]
        self.assertFalse(progress[-1]["finished"])

    def short_target(self):
        """A device that is full after 1 MiB."""
        path = self.path("short.raw")
        run(BYRE, "create", "-f", "raw", path, "12M")
        return ('json:{"driver": "raw", "file": {"driver": "blkdebug", "inject-error": [{"event": "none", "iotype": '
                '"write", "sector": 4096}], "image": {"driver": "file", "filename": "' + path + '"}}}')

    def test_words(self):
        for words in (("--progress=nix",), ("--progress=",)):
            done = run(BYRE, "convert", *words, self.source, self.path("x.raw"), ok=None)
            self.assertIn("Invalid progress format", done.text)
            self.assertFalse(os.path.exists(self.path("x.raw")))
        link = self.path("qemu-img")
        os.symlink(BYRE, link)
        done = run(link, "convert", "--progress=json", self.source, self.path("x.raw"), ok=None)
        self.assertIn("doesn't allow an argument", done.text)
        done = run(link, "convert", "-p", self.source, self.path("x.raw"))
        self.assertTrue(done.out.startswith(b"    (0.00/100%)\r"))
        self.assertTrue(done.out.endswith(b"    (100.00/100%)\r\n"))

    def test_a_bar_on_a_terminal(self):
        for words in (("convert", "-p", "-r", "6M", self.source, self.path("t.raw")),
                      ("resize", "-p", "--preallocation=falloc", self.image("r.qcow2"), "+8M")):
            ours, theirs = pty.openpty()
            with subprocess.Popen([BYRE, *words], stdout=theirs, stderr=subprocess.PIPE) as process:
                os.close(theirs)
                shown = b""
                while True:
                    try:
                        part = os.read(ours, 65536)
                    except OSError:
                        break
                    if not part:
                        break
                    shown += part
                self.assertEqual(process.wait(60), 0, process.stderr.read())
            os.close(ours)
            self.assertIn(b"[====================] 100 %", shown)
            if words[0] == "convert":
                self.assertIn(b"> ", shown)
                self.assertIn(b"/s", shown)
                self.assertIn(b" left", shown)


if __name__ == "__main__":
    main()
