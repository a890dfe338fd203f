# SPDX-License-Identifier: Apache-2.0
"""What byre says and returns under its own name when something is wrong: exit codes by class, JSON, advice.

Under QEMU's names every one of these failures is 1, as there.
"""
import contextlib
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, PATIENCE, run, until  # noqa: E402

USE, CORRUPT, MISSING, UNSUPPORTED, EXISTS, FAILED, BUSY, DENIED, FULL = 64, 65, 66, 69, 73, 74, 75, 77, 79


class Case(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp(prefix="byre-errors-")
        self.addCleanup(shutil.rmtree, self.home)
        self.names = os.path.join(self.home, "bin")
        os.mkdir(self.names)
        for name in ("qemu-img", "qemu-io", "qemu-nbd"):
            os.symlink(BYRE, os.path.join(self.names, name))
        self.work = os.path.join(self.home, "work")
        os.mkdir(self.work)
        self.byre("create", "-q", "-f", "qcow2", "disk", "1M")

    def path(self, name):
        return os.path.join(self.work, name)

    def byre(self, *words, code=0, program=BYRE, **options):
        done = run(program, *words, ok=None, cwd=self.work, **options)
        self.assertEqual(done.code, code, str(done))
        return done


class ExitCodes(Case):
    def both(self, code, *words, **options):
        """byre tells the class; as JSON the same; under the name qemu-img it is 1."""
        done = self.byre(*words, code=code, **options)
        self.assertTrue(done.err, str(done))
        told = self.byre(*words, "--output=json", code=code, **options)
        self.assertEqual(told.out, b"", str(told))
        errors = [json.loads(line) for line in told.err.splitlines()]
        self.assertEqual([e["error"]["exit-code"] for e in errors if "error" in e], [code], str(told))
        self.assertTrue(all(e["error"]["message"] for e in errors if "error" in e))
        if words[0] not in ("dump", "repair"):
            self.byre(*words, code=1, program=os.path.join(self.names, "qemu-img"), **options)
        return errors[-1]["error"]["code"]

    def test_wrong_use(self):
        for words in (("info",), ("info", "--nothing", "disk"), ("resize", "disk", "x"), ("create", "-f", "qcow2", "n", "x"),
                      ("snapshot", "-c", "a", "-d", "b", "disk"), ("bitmap", "--add", "disk"),
                      ("convert", "-O", "nix", "disk", "out")):
            with self.subTest(words=words):
                self.assertEqual(self.both(USE, *words), "invalid")

    def test_corrupt(self):
        with open(self.path("disk"), "r+b") as file:
            file.seek(40)
            file.write(struct.pack(">Q", 512))
        for words in (("info", "disk"), ("map", "disk"), ("snapshot", "-c", "a", "disk")):
            self.assertEqual(self.both(CORRUPT, *words), "corrupt")

    def test_not_found(self):
        for words in (("info", "nix"), ("map", "nix"), ("check", "nix"), ("snapshot", "-l", "nix"), ("dump", "nix"),
                      ("resize", "nix", "+1M"), ("convert", "-O", "raw", "nix", "out"), ("repair", "nix"),
                      ("snapshot", "-d", "nix", "disk"), ("bitmap", "--clear", "disk", "nix"),
                      ("create", "-f", "qcow2", "-b", "nix", "-F", "qcow2", "new"),
                      ("create", "-f", "qcow2", "no/new", "1M")):
            with self.subTest(words=words):
                self.assertEqual(self.both(MISSING, *words), "not_found")

    def test_unsupported(self):
        with open(self.path("x.vmdk"), "wb") as file:
            file.write(b"KDMV".ljust(65536, b"\0"))
        for words in (("info", "x.vmdk"), ("info", "http://localhost/x"), ("convert", "-O", "raw", "x.vmdk", "out")):
            with self.subTest(words=words):
                self.assertEqual(self.both(UNSUPPORTED, *words), "unsupported")

    def test_exists(self):
        for words in (("create", "-f", "qcow2", "disk", "1M"), ("convert", "-O", "raw", "disk", "disk2")):
            shutil.copy(self.path("disk"), self.path("disk2"))
            done = self.byre(*words, code=EXISTS)
            self.assertIn("--force", done.text)

    def test_busy(self):
        with open(self.path("log"), "wb") as log:
            holder = subprocess.Popen([BYRE, "io", "disk"], cwd=self.work, stdin=subprocess.PIPE, stdout=log)
            self.addCleanup(holder.wait, PATIENCE)
            self.addCleanup(holder.stdin.close)
            holder.stdin.write(b"read 0 512\n")
            holder.stdin.flush()
            until(lambda: os.path.getsize(self.path("log")) > 0, "byre io to open the image")
            for words in (("info", "disk"), ("map", "disk"), ("check", "disk"), ("resize", "disk", "+1M"),
                          ("snapshot", "-c", "a", "disk"), ("bitmap", "--add", "disk", "b"), ("dump", "disk"),
                          ("amend", "-o", "lazy_refcounts=on", "disk"), ("convert", "-O", "raw", "disk", "out")):
                with self.subTest(words=words):
                    self.assertEqual(self.both(BUSY, *words), "busy")

    def test_denied(self):
        os.mkdir(self.path("sub"))
        self.byre("create", "-q", "-f", "qcow2", "-b", "../disk", "-F", "qcow2", "sub/over")
        done = self.byre("map", "sub/over", code=DENIED)
        for part in ("'../disk'", "same-directory", os.path.realpath(self.path("sub")), "--follow any"):
            self.assertIn(part, done.text)
        self.byre("map", "--follow", "any", "sub/over")
        self.byre("map", "sub/over", env=dict(os.environ, BYRE_FOLLOW="any"))
        self.byre("map", "--follow", "nothing", "sub/over", env=dict(os.environ, BYRE_FOLLOW="any"), code=DENIED)
        self.byre("map", "sub/over", program=os.path.join(self.names, "qemu-img"))
        self.byre("map", "sub/over", program=os.path.join(self.names, "qemu-img"), code=1,
                  env=dict(os.environ, BYRE_FOLLOW="nothing"))
        done = self.byre("map", "disk", env=dict(os.environ, BYRE_FOLLOW="all"), code=USE)
        self.assertIn("BYRE_FOLLOW='all'", done.text)

    def test_full(self):
        done = self.byre("create", "-f", "raw", "-o", "preallocation=falloc", "large", "64M", code=FULL,
                         preexec_fn=lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_FSIZE,
                                                                             (1 << 20, 1 << 20)))
        self.assertIn("File too large", done.text)

    def test_a_closed_or_full_stdout_is_a_failure(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([BYRE, "info", "disk"], cwd=self.work, stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, FULL)
        self.assertIn(b"write to stdout: No space left", done.stderr)
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([BYRE, "info", "disk"], cwd=self.work, stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        self.assertEqual(done.returncode, FAILED)
        self.assertIn(b"write to stdout: Broken pipe", done.stderr)

    def test_help_lists_them(self):
        text = self.byre("--help").text
        for code in (0, 1, USE, CORRUPT, MISSING, UNSUPPORTED, EXISTS, FAILED, BUSY, DENIED, FULL):
            self.assertRegex(text, rf"(?m)^    {code} +\S")


class Json(Case):
    def value(self, *words):
        done = self.byre(*words, "--output=json")
        self.assertEqual(done.err, b"", str(done))
        return json.loads(done.out)

    def test_every_command_prints_one_value(self):
        made = self.value("create", "-f", "qcow2", "new", "1000")
        self.assertEqual(made, {"filename": "new", "format": "qcow2", "virtual-size": 1024})
        self.assertEqual(self.value("resize", "new", "1M"), {"filename": "new", "virtual-size": 1 << 20})
        self.assertEqual(self.value("snapshot", "-l", "disk"), {"filename": "disk", "snapshots": []})
        taken = self.value("snapshot", "-c", "before", "disk")
        self.assertEqual([s["name"] for s in taken["snapshots"]], ["before"])
        self.assertEqual(taken["snapshots"][0]["virtual-size"], 1 << 20)
        self.assertEqual(self.value("snapshot", "disk"), taken)
        self.assertEqual(self.value("snapshot", "-d", "before", "disk")["snapshots"], [])
        self.assertEqual(self.value("bitmap", "disk"), {"filename": "disk", "bitmaps": []})
        self.value("bitmap", "--add", "-g", "4k", "disk", "b")
        listed = self.value("bitmap", "--list", "disk")
        self.assertEqual(listed["bitmaps"],
                         [{"name": "b", "granularity": 4096, "flags": ["auto"], "usable": True}])
        self.value("convert", "-p", "-O", "raw", "disk", "out.raw")
        self.value("amend", "-o", "lazy_refcounts=on", "disk")
        for words in (("info",), ("map",), ("check",), ("dump",), ("repair",)):
            self.value(*words, "disk")
        self.assertEqual(self.value("version")["like-qemu"], "10.0.0")

    def test_bitmaps_for_people(self):
        self.assertEqual(self.byre("bitmap", "disk").out, b"")
        self.byre("bitmap", "--add", "disk", "daily")
        self.byre("bitmap", "--add", "--disable", "disk", "old\x1b[2J")
        text = self.byre("bitmap", "disk").text
        self.assertRegex(text, r"(?m)^recording +64 KiB  daily$")
        self.assertRegex(text, r"(?m)^disabled +64 KiB  old\\x1b\[2J$")
        self.byre("bitmap", "disk", program=os.path.join(self.names, "qemu-img"), code=1)

    def test_warnings_are_objects_too(self):
        os.mkdir(self.path("sub"))
        done = self.byre("create", "-f", "qcow2", "-b", "../disk", "-F", "qcow2", "sub/over", "--output=json")
        self.assertIn("--follow any", json.loads(done.err)["warning"]["message"])
        self.assertEqual(json.loads(done.out)["filename"], "sub/over")

    def test_io_tells_of_each_command(self):
        """A line of JSON for each, with figures and errors as data; what ran in the background has lines of its own."""
        done = self.byre("io", "--output=json", "-c", "write -q -P 1 64k 64k", "-c", "read -P 1 64k 512", "-c", "alloc 0 256k",
                         "-c", "map", "-c", "length", "-c", "check", "-c", "discard 0 64k", "-c", "flush", "-c", " ",
                         "-c", "aio_write -P 2 0 64k", "-c", "aio_read -P 3 0 512", "-c", "aio_flush",
                         "-c", "read -v -P 2 0 16", "-c", "help length", "disk")
        lines = [json.loads(line) for line in done.out.splitlines()]
        self.assertEqual(done.err, b"")
        for line in lines:
            self.assertGreaterEqual(line.pop("elapsed-ns", 0), 0)
        told = {line["command"]: line for line in lines if "command" in line}
        self.assertEqual(len(told), 13)
        self.assertEqual(told["write -q -P 1 64k 64k"],
                         {"command": "write -q -P 1 64k 64k", "result": "ok", "offset": 65536, "bytes": 65536})
        self.assertEqual(told["read -P 1 64k 512"]["bytes"], 512)
        self.assertEqual({key: told["alloc 0 256k"][key] for key in ("offset", "length", "allocated")},
                         {"offset": 0, "length": 262144, "allocated": 65536})
        runs = told["map"]["map"]
        self.assertEqual(runs[:2], [{"offset": 0, "length": 65536, "allocated": False},
                                    {"offset": 65536, "length": 65536, "allocated": True}])
        self.assertEqual(sum(run["length"] for run in runs), told["length"]["length"])
        self.assertEqual(told["check"]["check"]["check-errors"], 0)
        self.assertEqual(told["flush"], {"command": "flush", "result": "ok"})
        self.assertIn("02 02 02 02", told["read -v -P 2 0 16"]["output"])
        self.assertIn("length", told["help length"]["output"])
        beside = {line["background"]: line for line in lines if "background" in line}
        self.assertEqual(beside["aio_write"], {"background": "aio_write", "result": "ok", "offset": 0, "bytes": 65536})
        self.assertEqual(beside["aio_read"]["result"], "failed")
        self.assertIn("Pattern verification failed at offset 0, 512 bytes", beside["aio_read"]["error"]["message"])

    def test_io_tells_what_failed(self):
        words = ["read 9G 512", "nonsense", "read 0", "read -P 7 0 512", "write -s none 0 512", "aio_read 9G 512", "aio_flush",
                 "truncate 1", "length"]
        done = self.byre("io", "--output=json", *[word for line in words for word in ("-c", line)], "disk", code=1)
        lines = [json.loads(line) for line in done.out.splitlines()]
        self.assertEqual(done.err, b"")
        self.assertEqual([line["command"] for line in lines if "command" in line], words)
        told = {line.get("command"): line for line in lines}
        failed = [line for line in words if told[line]["result"] == "failed"]
        self.assertEqual(failed, ["read 9G 512", "nonsense", "read 0", "read -P 7 0 512", "write -s none 0 512", "truncate 1"])
        self.assertEqual(told["read 9G 512"]["error"]["code"], "io")
        for line in failed:
            message = told[line]["error"]["message"]
            self.assertTrue(message and not message.endswith("\n") and not message.startswith("byre"), told[line])
        self.assertEqual(told[None]["background"], "readv")
        self.assertEqual(told[None]["error"]["code"], "io")
        # Lines from stdin, without a prompt.
        done = subprocess.run([BYRE, "io", "--output", "json", "disk"], input=b"length\n\nquit\nlength\n", cwd=self.work,
                              capture_output=True, timeout=60)
        self.assertEqual([json.loads(line)["command"] for line in done.stdout.splitlines()], ["length", "quit"])
        # What keeps it from beginning is told as everywhere.
        done = self.byre("io", "--output=json", "-c", "length", "none", code=66)
        self.assertEqual(json.loads(done.err)["error"]["exit-code"], 66)
        self.assertEqual(done.out, b"")

    def test_serve_tells_what_is_ready(self):
        sock = self.path("sock")
        server = subprocess.Popen([BYRE, "serve", "--output=json", "-r", "-k", sock, "-p", "0", "-x", "name", "--metrics", "0",
                                   self.path("disk")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(server.kill)
        ready = json.loads(server.stdout.readline())
        self.assertEqual((ready["filename"], ready["format"], ready["export"], ready["writable"], ready["pid"]),
                         (self.path("disk"), "qcow2", "name", False, server.pid))
        self.assertEqual(ready["virtual-size"], json.loads(self.byre("info", "--output=json", "disk").out)["virtual-size"])
        self.assertEqual(ready["uris"][0], f"nbd+unix:///name?socket={sock}")
        self.assertRegex(ready["uris"][1], r"^nbd://127.0.0.1:\d+/name$")
        self.assertRegex(ready["metrics"]["uri"], r"^http://127.0.0.1:\d+/metrics$")
        for uri in ready["uris"]:
            self.assertEqual(subprocess.run(["nbdinfo", "--size", uri], capture_output=True, check=True).stdout.strip(),
                             str(ready["virtual-size"]).encode())
        server.terminate()
        out, err = server.communicate(timeout=60)
        self.assertEqual((server.returncode, out), (0, b""))
        self.assertIn("ended: ", [json.loads(line)["note"]["message"] for line in err.splitlines()][-1])
        done = self.byre("serve", "--output=json", "-k", sock, "none", code=66)
        self.assertEqual((done.out, json.loads(done.err)["error"]["code"]), (b"", "not_found"))

    def test_under_qemus_names_it_is_no_option(self):
        self.byre("snapshot", "--output=json", "disk", program=os.path.join(self.names, "qemu-img"), code=1)
        self.byre("--output=json", "disk", program=os.path.join(self.names, "qemu-io"), code=1)
        self.byre("--output=json", "disk", program=os.path.join(self.names, "qemu-nbd"), code=1)

    def test_quiet_is_everywhere(self):
        self.byre("bitmap", "--add", "disk", "b")
        for words in (("info",), ("map",), ("check",), ("dump",), ("snapshot", "-l"), ("bitmap",), ("resize", "+1M"),
                      ("amend", "-o", "lazy_refcounts=on"), ("repair",)):
            order = ("resize", "disk", "+1M") if words[0] == "resize" else (*words, "disk")
            done = self.byre(*order, "-q")
            self.assertEqual(done.out, b"", str(done))


class Policy(Case):
    def setUp(self):
        super().setUp()
        os.mkdir(self.path("sub"))

    def follows(self, image, backing, code=0, below="disk"):
        self.byre("create", "-q", "--force", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", image, "1M")
        for words in (("map",), ("info", "--backing-chain"), ("io", "-r", "-c", "read 0 1k")):
            self.byre(*words, image, code=code)

    def test_where_a_file_lies_counts_and_not_how_it_is_named(self):
        for name in (self.path("disk"), "../work/disk", "./sub/../disk", os.path.join(self.work, "sub", "..", "disk")):
            with self.subTest(name=name):
                self.follows("over", name)
                self.follows(self.path("over"), name)
        os.symlink(self.work, os.path.join(self.home, "also"))
        self.follows("over", os.path.join(self.home, "also", "disk"))
        self.follows(os.path.join(self.home, "also", "over"), self.path("disk"))
        os.symlink(self.path("over"), os.path.join(self.home, "elsewhere"))
        self.byre("map", os.path.join(self.home, "elsewhere"))
        for name in ("/etc/passwd", "../outside", os.path.join(self.home, "outside"), "sub/../../outside"):
            with self.subTest(name=name):
                self.follows("over", name, code=DENIED)
        shutil.copy(self.path("disk"), os.path.join(self.home, "outside"))
        os.symlink("../outside", self.path("link"))
        for name in ("link", "../outside", os.path.join(self.home, "outside")):
            with self.subTest(name=name):
                self.follows("over", name, code=DENIED)

    def test_create_warns_of_what_the_default_refuses(self):
        for words, warned in ((("-b", "../disk", "-F", "qcow2", "sub/a"), True),
                              (("-b", self.path("disk"), "-F", "qcow2", "sub/b"), True),
                              (("-b", self.path("disk"), "-F", "qcow2", "c"), False),
                              (("-b", "disk", "-F", "qcow2", "d"), False),
                              (("-o", f"data_file={self.home}/e.data", "e", "1M"), True),
                              (("-o", "data_file=f.data", "f", "1M"), False)):
            with self.subTest(words=words):
                done = self.byre("create", "-q", "-f", "qcow2", *words)
                self.assertEqual(done.err.count(b"--follow any"), int(warned), str(done))
                image = next(word for word in words if os.path.basename(word) in "abcdef")
                self.byre("map", image, code=DENIED if warned else 0)
        words = ("create", "-q", "-f", "qcow2", "-b", "../disk", "-F", "qcow2", "sub/g")
        self.assertEqual(self.byre(*words, env=dict(os.environ, BYRE_FOLLOW="any")).err, b"")
        self.assertEqual(self.byre(*words, program=os.path.join(self.names, "qemu-img")).err, b"")
        done = self.byre("amend", "--force", "-o", f"backing_file={self.home}/x,backing_fmt=qcow2", "d")
        self.assertIn(b"--follow any", done.err)


class Advice(Case):
    def test_mistyped_words(self):
        for words, advice in ((("ifno", "disk"), "did you mean 'info'?"),
                              (("snap", "disk"), "did you mean 'snapshot'?"),
                              (("help", "chek"), "did you mean 'check'?"),
                              (("info", "--ouptut=json", "disk"), "did you mean '--output'?"),
                              (("convert", "--fo", "disk", "x"), "it could be --follow, --force, --force-share")):
            with self.subTest(words=words):
                text = self.byre(*words, code=USE).text
                for part in advice.split(", "):
                    self.assertIn(part, text)
                # There "--fo" is the beginning of one option only.
                self.assertNotIn("did you mean", self.byre(
                    *words, program=os.path.join(self.names, "qemu-img"), code=0 if "--fo" in words else 1).text)
        self.assertNotIn("did you mean", self.byre("xyzzy", code=USE).text)

    def test_help_and_version_are_commands(self):
        self.assertEqual(self.byre("help", "map").out, self.byre("map", "--help").out)
        self.assertEqual(self.byre("help").out, self.byre("--help").out)
        self.assertEqual(self.byre("version").out, self.byre("--version").out)

    def test_swapped_operands(self):
        for words, right in ((("create", "-f", "qcow2", "10M", "new"), "byre create -f qcow2 new 10M"),
                             (("resize", "10G", "disk"), "byre resize disk 10G"),
                             (("resize", "+1G", "disk"), "byre resize disk +1G")):
            done = self.byre(*words, code=USE)
            self.assertIn(f"comes before SIZE: {right}\n", done.text)
            self.byre(*right.split()[1:])
        self.assertFalse(os.path.exists(self.path("10M")))
        self.byre("create", "-f", "raw", "10M", "1M")  # An image may be called that.
        self.byre("resize", "-f", "raw", "10M", "2M")

    def test_nothing_is_said_to_be_done_before_it_can_be(self):
        for words in (("-o", "cluster_size=3", "new", "1M"), ("-o", "compat=0.10,lazy_refcounts=on", "new", "1M"),
                      ("-o", "refcount_bits=3", "new", "1M"), ("new", "1x"), ("disk", "1M"), ("new",),
                      ("-o", "data_file_raw=on", "new", "1M"), ("-b", "nix", "-F", "qcow2", "new")):
            with self.subTest(words=words):
                done = run(BYRE, "create", "-f", "qcow2", *words, ok=None, cwd=self.work)
                self.assertGreaterEqual(done.code, USE)
                self.assertEqual(done.out, b"", str(done))
                self.assertFalse(os.path.exists(self.path("new")))

    def test_a_name_that_promises_a_format_gets_it(self):
        self.assertEqual(self.byre("create", "x.qcow2", "1M").err, b"")
        self.assertIn(b"file format: qcow2", self.byre("info", "x.qcow2").out)
        for words in (("-f", "raw", "y.qcow2"), ("-f", "qcow2", "z.qcow2"), ("y.img",)):
            self.assertEqual(self.byre("create", *words, "1M").err, b"")

    def test_a_backing_format_that_is_missing_can_be_set(self):
        self.byre("create", "-q", "-f", "qcow2", "-b", "disk", "-F", "qcow2", "over")
        with open(self.path("over"), "r+b") as file:
            data = file.read(65536)
            at = data.index(struct.pack(">II", 0xe2792aca, 5))
            file.seek(at)
            file.write(struct.pack(">I", 0x0badcafe))  # It becomes an extension that nobody knows.
        for words in (("map",), ("info", "--backing-chain"), ("io", "-c", "read 0 1k"),
                      ("create", "-f", "qcow2", "-F", "qcow2", "new", "-b")):
            text = self.byre(*words, "over", code=USE).text
            self.assertIn("byre amend -o backing_fmt=FORMAT IMAGE", text)
        self.byre("amend", "-o", "backing_fmt=qcow2", "over")
        for words in (("map",), ("info", "--backing-chain"), ("io", "-c", "read 0 1k")):
            self.byre(*words, "over")

    def test_a_file_is_named_once(self):
        for words in (("info", "nix"), ("map", "nix"), ("convert", "-O", "raw", "nix", "out"), ("check", "nix"),
                      ("snapshot", "-l", "nix"), ("resize", "nix", "1M"), ("dump", "nix"), ("repair", "nix"),
                      ("bitmap", "--add", "nix", "b"), ("amend", "-o", "lazy_refcounts=on", "nix")):
            with self.subTest(words=words):
                done = run(BYRE, *words, ok=None, cwd=self.work)
                self.assertEqual(done.text.count("'nix'"), 1, done.text)
        for image in ("over", "top"):
            below = "nix" if image == "over" else "over"
            self.byre("create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", image, "1M")
        text = self.byre("io", "-r", "-c", "read 0 1k", "top", code=MISSING).text
        self.assertEqual(text.count("'nix'"), 1, text)

    def test_lines_fit_the_terminal(self):
        for columns in (60, 120):
            with self.subTest(columns=columns):
                leader, follower = pty.openpty()
                fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
                text = b""
                for words in (("help", "convert"), ("help",), ("info", "x" * 40, "y" * 40, "z" * 40)):
                    process = subprocess.Popen([BYRE, *words], cwd=self.work, stdin=follower, stdout=follower,
                                               stderr=follower)
                    while process.poll() is None or self.readable(leader):
                        if self.readable(leader):
                            text += os.read(leader, 65536)
                os.close(follower)
                os.close(leader)
                lines = text.decode().replace("\r", "").split("\n")
                longest = max(map(len, lines))
                self.assertLessEqual(longest, columns)
                self.assertGreater(longest, columns - 15)

    @staticmethod
    def readable(fd):
        import select
        return bool(select.select([fd], [], [], 0.05)[0])


class WhatCallersAsk(Case):
    """Programs that use QEMU's tools ask what they can do: by --version, --help and -o help."""

    def ask(self, name, *words, code=0):
        return self.byre(*words, program=os.path.join(self.names, name), code=code).out.decode()

    def test_versions(self):
        for name, pattern in (("qemu-img", r"^qemu-img version (\d+)\.(\d+)\.(\d+) \(.+\)$"),
                              ("qemu-io", r"^qemu-io version (\d+)\.(\d+)\.(\d+) \(.+\)$"),
                              ("qemu-nbd", r"^qemu-nbd (\d+)\.(\d+)\.(\d+) \(.+\)$")):
            for option in ("--version", "-V"):
                self.assertRegex(self.ask(name, option).splitlines()[0], pattern)
                if shutil.which(name):
                    theirs = run(name, option).out.decode().splitlines()[0]
                    self.assertRegex(theirs, pattern)
        self.assertRegex(self.byre("--version").text, r"^byre version \d+\.\d+\.\d+\n$")

    def test_what_qemu_img_can_do(self):
        text = self.ask("qemu-img", "--help")
        self.assertRegex(text, r"(?m)^Supported formats: (\S+ )*qcow2( |$)")
        self.assertRegex(text, r"(?m)^qemu-img version 10\.0\.0 ")
        lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
        self.assertEqual(set(lines), {"amend", "bench", "bitmap", "check", "commit", "compare", "convert", "create",
                                      "dd", "info", "map", "measure", "rebase", "resize", "snapshot"})
        for command, options in (("convert", ("-W", "-m", "-n", "--target-is-zero", "--bitmaps", "-c", "-S", "-l", "-C")),
                                 ("map", ("--start-offset", "--max-length", "--output")),
                                 ("info", ("--backing-chain", "--output", "-U")),
                                 ("bitmap", ("--add", "--remove", "--merge", "--granularity")),
                                 ("resize", ("--shrink", "--preallocation")), ("check", ("-r", "--output", "-U"))):
            for option in options:
                self.assertIn(option, lines[command], command)

    def test_what_qemu_nbd_can_do(self):
        text = self.ask("qemu-nbd", "--help")
        for option in ("--allocation-depth", "--bitmap", "--fork", "--pid-file", "--persistent", "--shared", "--cache",
                       "--aio", "--discard", "--detect-zeroes", "--export-name", "--read-only", "--load-snapshot",
                       "--connect", "--disconnect"):
            self.assertIn(option, text)

    def test_no_option_is_listed_that_is_refused(self):
        text = self.ask("qemu-img", "--help")
        for name, words in [("qemu-img", (command, "--help")) for command in ("convert", "info", "create", "check")] + \
                           [("qemu-nbd", ("--help",)), ("qemu-io", ("--help",))]:
            text = self.ask(name, *words)
            for option in ("--trace", "--tls-creds", "--selinux-label", "refused"):
                self.assertNotIn(option, text, (name, words))

    def test_create_options(self):
        text = self.ask("qemu-img", "create", "-f", "qcow2", "-o", "help", "x")
        for option in ("compat", "cluster_size", "backing_file", "backing_fmt", "preallocation", "lazy_refcounts",
                       "refcount_bits", "compression_type", "data_file", "data_file_raw", "extended_l2", "nocow"):
            self.assertRegex(text, rf"(?m)^  {option}=<")


if __name__ == "__main__":
    unittest.main()
