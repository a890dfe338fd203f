#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same command lines through the real qemu-io and through byre under that name.

Standard output, standard error and exit codes must be equal, but for times and speeds.  Where byre differs
on purpose, docs/compatibility.md says so and no case here does it.

    BYRE=build/release/byre python3 tests/interop/io_compat_test.py
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))
import peers  # noqa: E402,F401  (puts the real programs in front of PATH)

BYRE = pathlib.Path(os.environ.get("BYRE", ROOT / "build" / "release" / "byre")).resolve()
QEMU_IO = shutil.which("qemu-io")
QEMU_IMG = shutil.which("qemu-img")
TIMEOUT = 120


def without_times(text):
    text = re.sub(r"1 ops; .* \(.*/sec and .* ops/sec\)", "1 ops; TIME (SPEED)", text)
    text = re.sub(r"^(\d+,1),\d+:\d\d:\d\d\.\d\d,[\d.]+,[\d.]+$", r"\1,TIME,SPEED", text, flags=re.M)
    return re.sub(r"^(\w+) .* -- \w.*", r"\1 USAGE", text, flags=re.M)  # Byre's help has words of its own.


class Compare(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="byre-io-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        byre = self.folder / "bin" / "qemu-io"
        byre.parent.mkdir()
        byre.symlink_to(BYRE)
        self.programs = {"qemu": QEMU_IO, "byre": byre}

    def prepare(self, make):
        """A folder for each program, filled by `make`."""
        for name in self.programs:
            folder = self.folder / name
            if folder.exists():
                shutil.rmtree(folder)
            folder.mkdir()
            for words in make:
                subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    def outcome(self, name, words, stdin):
        done = subprocess.run([self.programs[name], *words], cwd=self.folder / name, input=stdin, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT)
        return {"code": done.returncode, "out": without_times(done.stdout).splitlines(),
                "err": without_times(done.stderr).splitlines()}

    def same(self, *words, stdin=""):
        with self.subTest(words=words, stdin=stdin):
            outcomes = [self.outcome(name, words, stdin) for name in ("qemu", "byre")]
            self.assertEqual(*outcomes)

    def each_same(self, *commands, file=("-f", "qcow2", "disk.qcow2")):
        """Each command by itself."""
        for command in commands:
            self.same(*file, "-c", command)

    def all_same(self, *commands, file=("-f", "qcow2", "disk.qcow2")):
        """One after another in one process."""
        words = list(file)
        for command in commands:
            words += ["-c", command]
        self.same(*words)

    QCOW2 = [QEMU_IMG, "create", "-q", "-f", "qcow2", "disk.qcow2", "1M"],
    RAW = [QEMU_IMG, "create", "-q", "-f", "raw", "disk.raw", "1M"],

    def test_requests(self):
        self.prepare(self.QCOW2)
        self.all_same("write -P 1 0 64k", "read -P 1 0 64k", "read -P 2 0 64k", "read -v 65500 100",
                      "write 1k 1K", "write 0x200 0x200", "write 0 1.5k", "write 0 0", "read 0 0", "discard 0 0",
                      "write -z 64k 64k", "write -z -u 0 4k", "write -zu 0 64k", "write -f 0 512", "discard 0 64k",
                      "discard 0 1", "flush", "writev 0 512 512", "readv 0 512 1k", "readv -v 1 20 3",
                      "w -P 0x41 5 1", "r -v 0 8", "read -v 0 300")

    def test_quiet_and_machine_readable(self):
        self.prepare(self.QCOW2)
        self.all_same("write -q -P 3 0 100", "read -q 0 512", "read -q -v 0 5", "read -C 0 512", "write -C 0 512",
                      "read -C -v 0 8", "discard -C 0 64k", "discard -q 0 64k", "readv -C 0 1 2", "writev -q 0 1 2")

    def test_background_requests(self):
        self.prepare(self.QCOW2)
        for command in ("aio_write 0 64k", "aio_write -P 7 0 64k", "aio_read 0 64k", "aio_read -P 7 0 64k",
                        "aio_read -P 8 0 64k", "aio_read -v 0 8 16", "aio_write -q 0 512", "aio_read -q -v 0 5",
                        "aio_write -z 0 64k", "aio_write -z -u 0 64k", "aio_write -f 0 512", "aio_read -C 0 5",
                        "aio_write 2M 512", "aio_read 2M 512", "aio_write -i 0 1", "aio_read -i 0 1"):
            self.all_same(command, "aio_flush")

    def test_patterns(self):
        self.prepare(self.QCOW2)
        self.all_same("write -P 0xff 0 512", "read -P 1 -s 10 -l 20 0 512", "read -P 0xff -s 10 -l 20 0 512",
                      "read -P 1 -s 512 0 512", "read -P 1 -s 0 -l 513 0 512", "read -P 1 -s 600 0 512",
                      "read -P 1 -l 10 -s 510 0 512", "read -s 0 0 512", "read -l 1 0 512", "read -P 010 0 512")
        for name in self.programs:
            (self.folder / name / "source").write_bytes(b"abc")
            (self.folder / name / "empty").touch()
        self.all_same("write -s source 0 512", "read -v 0 64", "write -s empty 0 512", "write -s nofile 0 512",
                      "write -s source -P 1 0 512", "write -s source -z 0 512")

    def test_lines_that_are_wrong(self):
        self.prepare(self.QCOW2)
        self.each_same("foo", "write 0", "write 0 64q", "write x 64", "write -P 256 0 512", "write 0 1 2",
                       "write -Z 0 512", "write -P", "write -z -P 1 0 512", "write -u 0 512", "write -n 0 512",
                       "write -b -z 0 512", "write -c -f 0 64k", "write 3G 64k", "write 0 3G", "write -1 512",
                       "write 0 -1", "discard -1 5", "discard 0 4G", "discard 2M 64k", "read 1M 512", "read 2M 64k",
                       "write 8E 1", "write 0 64kB", "read 16E 1", "read 9999999999999999999 1", "read 0.3 1",
                       "read 1e3 1", "read -P 0x 0 512", "read -P -1 0 512", "read -P 1k 0 512", "readv 0 3G",
                       "aio_write 0 3G", "writev 0 1G 1G", "writev 1 x", "aio_read x 1", "discard x 1",
                       "discard 0 2 3", "aio_write -z 0 1 2", "aio_write -u 0 1", "readv 0",
                       "read 0 -P", "read", "flush x", "map x", "length x", "sleep", "sleep x", "sleep -5",
                       "truncate", "truncate x", "truncate -x 5M", "truncate -m foo 5M", "alloc",
                       "alloc x", "alloc 0 x", "alloc -1", "sigraise", "sigraise x", "sigraise 999", "break x",
                       "resume", "wait_break", "remove_break", "help a b", "read -- 0 512", "read 0 512 -q",
                       "read +5 1", "")

    def test_what_is_allocated(self):
        self.prepare([*self.RAW, [QEMU_IO, "-f", "raw", "-c", "write 512k 64k", "disk.raw"],
                      [QEMU_IMG, "create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "disk.qcow2"]])
        self.all_same("map", "write 128k 4k", "write -z 256k 64k", "discard 384k 64k", "map", "alloc 0", "alloc 100",
                      "alloc 0 1M", "alloc 0 2M", "alloc 2M", "alloc 64k 128k", "alloc 256k 64k", "alloc 512k 64k",
                      "a 128k 1", "length", "l", "truncate 2M", "length", "map", "t 3M", "l")

    def test_info(self):
        for options in ("compat=1.1", "compat=0.10", "cluster_size=4k", "extended_l2=on", "refcount_bits=1"):
            self.prepare([[QEMU_IMG, "create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", "1G"]])
            self.same("-f", "qcow2", "-c", "info", "disk.qcow2")
        self.prepare(self.RAW)
        self.same("-f", "raw", "-c", "info", "-c", "length", "disk.raw")

    def test_raw(self):
        self.prepare(self.RAW)
        raw = ("-f", "raw", "disk.raw")
        self.all_same("length", "write -P 5 1000 3000", "read -P 5 1000 3000", "read -v 990 20", "read 1M 1",
                      "write -z 0 4k", "write -z -u 0 4k", "discard 0 4k", "alloc 0 1M", "map", "truncate 2M", "length",
                      "aio_write -P 6 1M 64k", "aio_flush", "read -P 6 1M 64k", file=raw)

    def test_raw_that_ends_inside_a_sector(self):
        self.prepare([["truncate", "-s", "1000000", "disk.raw"]])
        self.all_same("length", "read -v 999990 10", "read 1000000 448", "read 1000448 1", "map", "alloc 0 1M",
                      file=("-f", "raw", "disk.raw"))

    def test_read_only(self):
        self.prepare(self.QCOW2)
        read_only = ("-r", "-f", "qcow2", "disk.qcow2")
        self.each_same("write 0 512", "write -z 0 512", "discard 0 512", "truncate 4M", "aio_write 0 1", "writev 0 1",
                       "write", "write -x", "write x y", "flush", "read 0 512", "map", file=read_only)
        self.all_same("length", "write 0 1", file=("-U", "-r", "-f", "qcow2", "disk.qcow2"))
        self.same("-U", "-f", "qcow2", "-c", "length", "disk.qcow2")

    def test_opening_and_closing(self):
        self.prepare(self.QCOW2)
        self.same("-c", "length")
        self.same("-c", "open -r disk.qcow2", "-c", "length", "-c", "open disk.qcow2", "-c", "close", "-c", "length")
        self.same("-c", "open nofile", "-c", "quit", "-c", "length")
        self.same("-c", "open", "-c", "open -Z", "-c", "open a b", "-c", "open -t foo disk.qcow2",
                  "-c", "open -d foo disk.qcow2")
        self.same("-f", "qcow2", "nofile")
        self.same("-f", "foo", "disk.qcow2")
        self.same("-f", "", "-c", "length", "disk.qcow2")
        self.same("-t", "foo", "disk.qcow2")
        self.same("-d", "foo", "disk.qcow2")
        self.same("-i", "foo", "disk.qcow2")
        for words in (["-t", "none"], ["-n"], ["-t", "directsync"], ["-t", "writeback"], ["-t", "unsafe"],
                      ["-d", "ignore"], ["-i", "threads"], ["--cache=writethrough", "--discard", "unmap"]):
            self.same("-f", "qcow2", *words, "-c", "write -P 1 0 64k", "-c", "read -P 1 0 64k", "-c", "flush",
                      "disk.qcow2")

    def test_settings_that_are_unknown(self):
        self.prepare([*self.QCOW2, *self.RAW])
        for words in ("foo=bar disk.qcow2", "-r foo=bar disk.qcow2", "foo.bar=x disk.qcow2", "foo=bar disk.raw",
                      "-r foo=bar disk.raw", "driver=qcow2,foo=bar disk.qcow2", "driver=raw,foo=bar disk.raw",
                      "file.foo=bar disk.qcow2", "driver= disk.qcow2", "foo=bar nofile"):
            with self.subTest(words=words):
                first, *rest = words.split()
                options = f"{first} -o {rest.pop(0)}" if first == "-r" else f"-o {first}"
                self.same("-c", f"open {options} {rest[0]}", "-c", "length")
        for options in ("driver=qcow2,foo=bar,file.filename=disk.qcow2", "foo=bar,file.filename=disk.qcow2",
                        "driver=blkdebug,foo=bar,image.filename=disk.qcow2",
                        "driver=qcow2,file.driver=blkdebug,file.foo=bar,file.image.filename=disk.qcow2",
                        "driver=raw,file.driver=blkdebug,file.image.foo=x,file.image.filename=disk.raw"):
            self.same("--image-opts", options, "-c", "length")

    def test_stdin(self):
        self.prepare(self.QCOW2)
        for text in ("", "length\n", "length", "\n   \nlength  \n", "foo\nlength\n", "quit\nlength\n",
                     "read -P 1 0 512\nread 0 4k\n", "write 0 4k\nclose\nlength\nopen disk.qcow2\nlength\n"):
            self.same("-f", "qcow2", "disk.qcow2", stdin=text)
        self.same(stdin="length\nopen disk.qcow2\nlength\nq\n")

    def test_breakpoints(self):
        self.prepare(self.QCOW2)
        below = ("-f", "qcow2", "blkdebug::disk.qcow2")
        self.all_same("break write_aio A", "aio_write 0 512", "wait_break A", "sleep 10", "resume A", "aio_flush",
                      file=below)
        self.each_same("break foo A", "resume A", "remove_break A", "length", file=below)
        self.all_same("break write_aio A", "remove_break A", "resume A", "write 0 512", file=below)
        self.each_same("break write_aio A", "resume A", "remove_break A")
        self.all_same("break read_aio A", "aio_read -v 0 8", "wait_break A", "resume A", "aio_flush",
                      file=("--image-opts", "driver=qcow2,file.driver=blkdebug,file.image.filename=disk.qcow2"))
        self.all_same("break pwritev A", "aio_write 64k 512", "wait_break A", "resume A", "aio_flush", "map",
                      file=("--image-opts", "driver=blkdebug,image.driver=qcow2,image.file.filename=disk.qcow2"))

    def inject(self, number, **settings):
        return "".join(f",file.inject-error.{number}.{key}={value}" for key, value in settings.items())

    def test_injected_errors(self):
        base = "driver=qcow2,file.driver=blkdebug,file.image.filename=disk.qcow2"
        self.prepare([*self.QCOW2, [QEMU_IO, "-f", "qcow2", "-c", "write 0 128k", "disk.qcow2"]])
        for settings, commands in (
                ({"event": "write_aio", "errno": 28, "once": "on"}, ["write 0 512", "write 0 512"]),
                ({"event": "read_aio", "errno": 5, "once": "on"}, ["read 0 512", "read 0 512", "readv 0 512"]),
                ({"event": "read_aio", "iotype": "read"}, ["aio_read 0 512", "aio_flush", "read -q 64k 512"]),
                ({"event": "write_aio", "once": "on"}, ["aio_write 0 512", "aio_flush", "aio_write 0 512",
                                                        "aio_flush"]),
                ({"event": "read_aio", "sector": 999999}, ["read 0 512"]),
                ({"event": "l2_load", "once": "on"}, ["read 0 512", "read 0 512"]),
                ({"event": "vmstate_save", "once": "on"}, ["write 0 512", "write -b 0 512", "write -b 0 512"]),
                ({"event": "vmstate_load", "once": "on"}, ["read 0 512", "read -b 0 512", "read -b 0 512"]),
                ({"event": "none", "iotype": "write"}, ["write 0 512", "read 0 512"]),
                ({"event": "write_aio", "errno": 28, "immediately": "on", "once": "on"}, ["write 0 512"])):
            self.all_same(*commands, file=("-t", "writeback", "--image-opts", base + self.inject(0, **settings)))
        self.same("-c", "open -o file.driver=blkdebug,file.inject-error.0.event=write_aio,"
                  "file.inject-error.0.once=on disk.qcow2", "-c", "write 0 512", "-c", "write 0 512")

    def test_a_shrink_that_fails(self):
        """Of byre alone: QEMU changes the old table in place, and where it raises the event differs."""
        self.prepare([*self.QCOW2, [QEMU_IO, "-f", "qcow2", "-c", "write 0 1M", "disk.qcow2"]])
        base = "driver=qcow2,file.driver=blkdebug,file.image.filename=disk.qcow2"
        fault = self.inject(0, event="l1_shrink_write_table", once="on")
        done = self.outcome("byre", ["--image-opts", base + fault, "-c", "truncate 64k"], "")
        self.assertEqual((done["code"], "Input/output error" in done["err"][-1]), (1, True), done)
        self.assertEqual(self.outcome("byre", ["disk.qcow2", "-c", "length"], "")["out"], ["1 MiB"])
        self.assertEqual(subprocess.run([QEMU_IMG, "check", "-q", self.folder / "byre" / "disk.qcow2"]).returncode, 0)

    def test_fault_configuration_file(self):
        self.prepare([*self.QCOW2, [QEMU_IO, "-f", "qcow2", "-c", "write 0 128k", "disk.qcow2"]])
        for name in self.programs:
            (self.folder / name / "conf").write_text("""
# The second read after a write fails.
[set-state]
state = "1"
event = "write_aio"
new_state = "2"
[inject-error]
event = "read_aio"
state = "2"
errno = "5"
once = "on"
""")
        self.all_same("read 0 512", "write 0 512", "read 0 512", "read 0 512",
                      file=("-f", "qcow2", "blkdebug:conf:disk.qcow2"))
        self.same("-f", "qcow2", "-c", "length", "blkdebug:nofile:disk.qcow2")

    def test_image_opts(self):
        self.prepare([*self.QCOW2, *self.RAW])
        for text in ("driver=qcow2,file.filename=disk.qcow2", "driver=qcow2,file.driver=file,file.filename=disk.qcow2",
                     "file.filename=disk.qcow2", "driver=raw,file.filename=disk.raw",
                     "driver=raw,file.driver=file,file.filename=disk.raw", "driver=file,filename=disk.raw",
                     "driver=qcow2", "driver=foo,file.filename=x", "driver=qcow2,file=disk.qcow2"):
            self.same("--image-opts", text, "-c", "length")
        self.same("-f", "qcow2", "--image-opts", "driver=qcow2,file.filename=disk.qcow2")

    OVERLAY = [*QCOW2, [QEMU_IO, "-f", "qcow2", "-c", "write -P 1 0 128k", "disk.qcow2"],
               [QEMU_IMG, "create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "over.qcow2"]]

    def test_reopen(self):
        self.prepare(self.QCOW2)
        self.all_same("reopen", "write 0 512", "reopen -r", "write 0 512", "reopen -w", "write -P 3 0 512", "reopen -c none",
                      "read -P 3 0 512", "reopen -c writethrough", "reopen -o lazy-refcounts=on", "reopen -o discard=ignore",
                      "discard 0 64k", "read -P 3 0 512", "reopen -o discard=unmap", "discard 0 64k", "read -P 0 0 512")
        self.each_same("reopen -r -w", "reopen -w -r", "reopen -r -r", "reopen x", "reopen -x", "reopen -c", "reopen -c bad x",
                       "reopen -r -o read-only=on", "reopen -c none -o cache.direct=on", "reopen -o driver=raw",
                       "reopen -o driver=qcow2", "reopen -o nonsense=1", "reopen -o file.nonsense=1", "reopen -o node-name=x",
                       "reopen -o file.filename=disk.qcow2", "reopen -o file.filename=x", "reopen -o file.driver=raw",
                       "reopen -o file=x", "reopen -o force-share=on", "reopen -o cache.writeback=on", "reopen -o discard=x",
                       "reopen -o lazy-refcounts=x", "reopen -o detect-zeroes=x", "reopen -o l2-cache-size=x")
        self.same("-c", "reopen")
        self.all_same("reopen -w", "write 0 512", "reopen -o read-only=off", file=("-r", "-f", "qcow2", "disk.qcow2"))
        self.all_same("reopen -o read-only=off", "write 0 512", file=("-r", "-f", "qcow2", "disk.qcow2"))
        self.all_same("aio_write -P 7 0 64k", "reopen -r", "aio_flush", "read -P 7 0 64k", "write 0 1")
        self.prepare(self.RAW)
        self.all_same("reopen -o size=512", "length", "reopen -o offset=512,size=1k", "length", "reopen -o size=2M",
                      "reopen -o size=511", "length", "reopen -o lazy-refcounts=on", file=("-f", "raw", "disk.raw"))

    def talk(self, words, lines, until, **more):
        """Byre's qemu-io, which has answered up to `until`."""
        process = subprocess.Popen([self.programs["byre"], *words], cwd=self.folder / "byre", text=True, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
        self.addCleanup(process.kill)
        process.stdin.write("".join(line + "\n" for line in lines))
        process.stdin.flush()
        said = ""
        while until not in said:
            line = process.stdout.readline()
            self.assertTrue(line, said)
            said += line
        return process, said

    def test_reopen_goes_past_the_page_cache_and_back(self):
        """Of byre alone: the flags of its descriptor."""
        self.prepare(self.QCOW2)
        for first, then, direct in (([], "reopen -c none", True), ([], "reopen -o cache.direct=on", True),
                                    (["-n"], "reopen -c writeback", False), (["-n"], "reopen -r", True), ([], "reopen", False)):
            with self.subTest(first=first, then=then):
                process, _ = self.talk([*first, "-f", "qcow2", "disk.qcow2"], [then, "length"], "> 1 MiB")
                descriptors = pathlib.Path(f"/proc/{process.pid}/fd")
                flags = [int(re.search(r"flags:\s*(\d+)", (descriptors.parent / "fdinfo" / fd.name).read_text())[1], 8)
                         for fd in descriptors.iterdir() if os.readlink(fd).endswith("disk.qcow2")]
                process.communicate()
                self.assertEqual([bool(flag & os.O_DIRECT) for flag in flags], [direct])

    def test_a_temporary_overlay(self):
        for make, file in ((self.OVERLAY, ("-f", "qcow2", "over.qcow2")), (self.QCOW2, ("-f", "qcow2", "disk.qcow2")),
                           (self.RAW, ("-f", "raw", "disk.raw")), (self.RAW, ("disk.raw",)),
                           (self.OVERLAY, ("--image-opts", "driver=qcow2,file.filename=over.qcow2"))):
            self.prepare(make)
            before = {path.name: path.read_bytes() for path in (self.folder / "byre").iterdir()}
            for option in ("-s", "--snapshot"):
                self.all_same("write -P 9 64k 64k", "read -P 9 64k 64k", "write -z 0 4k", "map", "info", "alloc 0 1M", "flush",
                              "discard 64k 64k", "aio_write -P 8 0 64k", "aio_flush", "read -P 8 0 64k", "truncate 2M", "length",
                              file=(option, *file))
            self.all_same("write 0 64k", "map", file=("-s", "-r", *file))
            self.all_same("read 0 64k", "map", file=("-s", "-C", *file))
            self.all_same("write 0 64k", file=("-s", "-U", *file))
            self.all_same("read 0 64k", "map", file=("-sn", *file))
            self.assertEqual(before, {path.name: path.read_bytes() for path in (self.folder / "byre").iterdir()})
        self.prepare(self.OVERLAY)
        self.same("-c", "open -s over.qcow2", "-c", "write -P 2 0 64k", "-c", "map", "-c", "close", "-c", "open over.qcow2",
                  "-c", "read -P 1 0 64k")
        self.same("-s", "-f", "qcow2", "nothing.qcow2")

    def test_where_a_temporary_overlay_is(self):
        """Of byre alone: in $TMPDIR, without a name; reopen keeps it, and changes its options."""
        self.prepare(self.OVERLAY)
        folder = self.folder / "byre" / "tmp"
        folder.mkdir()
        words = ["-s", "-f", "qcow2", "over.qcow2"]
        process, said = self.talk(words, ["write -P 5 0 64k", "reopen -r", "read -P 5 0 64k", "reopen -w", "write -P 6 0 512",
                                          "read -P 6 0 512", "reopen -o lazy-refcounts=on", "read -P 6 0 512",
                                          "reopen -o discard=ignore", "reopen -o file.filename=x", "length"], "> 1 MiB",
                                  env={**os.environ, "TMPDIR": str(folder)})
        self.assertEqual(list(folder.iterdir()), [])
        opened = [os.readlink(fd) for fd in pathlib.Path(f"/proc/{process.pid}/fd").iterdir()]
        self.assertTrue([name for name in opened if name.startswith(str(folder)) and name.endswith("(deleted)")], opened)
        process.communicate()
        self.assertEqual(process.returncode, 1)  # Its file is another's.
        self.assertIn("Cannot change the option 'filename'", said)
        self.assertNotIn("failed", said)
        gone = subprocess.run([self.programs["byre"], *words, "-c", "length"], cwd=self.folder / "byre", text=True,
                              capture_output=True, env={**os.environ, "TMPDIR": str(folder / "nothing")})
        self.assertEqual(gone.returncode, 1)
        self.assertIn("TMPDIR", gone.stderr)

    def test_zones(self):
        self.prepare([*self.QCOW2, *self.RAW])
        lines = ("zone_report 0 1", "zone_report 0", "zone_report x 1", "zone_report 0 x", "zone_report 0 4294967296",
                 "zone_report 2M 1", "zrp 0 1", "zone_open 0 1", "zone_open 1M 512", "zone_open -r 1", "zone_open 0 9E",
                 "zone_close 0 1", "zone_finish 0 64k", "zone_reset 0 0", "zone_reset 4M 512", "zone_append 0 1",
                 "zone_append 0 512 512", "zone_append 2M 1 1", "zone_append 0 x 1", "zone_append 0 3G 1", "zap 0 1 1", "zo 0 1",
                 "zc 0 1", "zf 0 1", "zrs 0 1")
        for file in (("-f", "qcow2", "disk.qcow2"), ("-r", "-f", "qcow2", "disk.qcow2"), ("-f", "raw", "disk.raw")):
            self.each_same(*lines, file=file)
        self.same("-c", "zone_report 0 1")

    def test_registered_buffers(self):
        self.prepare(self.QCOW2)  # aio_read and aio_write with -r end QEMU 10.0 by an assertion.
        self.all_same("write -r -P 3 0 4k", "read -r -P 3 0 4k", "readv -r 0 512 512", "writev -r 0 512", "read -rv 0 16",
                      "write -rb 0 512", "read -rb 0 512", "write -rz 0 4k", "aio_write -rz 0 512", "aio_write -rz x 512",
                      "write -rz x 512", "write -rz 0", "write -rzP 3 0 512", "aio_write -rz 0 512 512")

    def test_every_command_has_the_help_of_qemu_io(self):
        """The same commands, and for each the same first words; of options at least those that QEMU has."""
        theirs, ours = ({match[1]: match[2] for match in re.finditer(
            r"(?m)^(\w+) (.*?) ?-- ", subprocess.run([program, "-c", "help"], capture_output=True, text=True).stdout)}
            for program in self.programs.values())
        self.assertEqual(set(ours) - set(theirs), {"check"})
        self.assertEqual(set(theirs) - set(ours), set())
        for name, synopsis in theirs.items():
            with self.subTest(command=name):
                said = subprocess.run([self.programs["byre"], "-c", f"help {name}"], capture_output=True, text=True).stdout
                self.assertTrue(said.startswith(f"{name} "), said)
                self.assertGreater(len(said.splitlines()), 2)
                for letter in re.findall(r"\w", "".join(re.findall(r"-(\w+)", synopsis))):
                    if letter != "a":  # In the line of QEMU's read, which refuses it.
                        self.assertIn(f"\n -{letter}, -- ", said)

    def test_signals(self):
        self.prepare(self.QCOW2)
        self.all_same("write -P 1 0 64k", "sigraise 9")
        self.all_same("sigraise 15")
        self.all_same("sigraise 0", "length")

    def test_what_one_writes_the_other_reads(self):
        self.prepare(self.QCOW2)
        for writer, reader in (("byre", "qemu"), ("qemu", "byre")):
            self.outcome(writer, ["-f", "qcow2", "-c", "write -P 9 100k 100k", "-c", "write -z 128k 4k",
                                  "-c", "aio_write -P 4 1000 5000", "-c", "aio_flush", "disk.qcow2"], "")
            shutil.copy(self.folder / writer / "disk.qcow2", self.folder / reader / "disk.qcow2")
            read = self.outcome(reader, ["-f", "qcow2", "-c", "read -P 9 100k 28k", "-c", "read -P 0 128k 4k",
                                         "-c", "read -P 9 132k 68k", "-c", "read -P 4 1000 5000", "disk.qcow2"], "")
            self.assertEqual(read["code"], 0, read)


if __name__ == "__main__":
    unittest.main()
