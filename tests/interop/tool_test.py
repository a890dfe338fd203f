# SPDX-License-Identifier: Apache-2.0
"""The same command lines through qemu-img and through byre under that name: output, exit codes, results.

Both run in folders of their own that start alike.  stdout and the exit code must be the same; stderr too, where a
test says so.  What differs on purpose is in docs/compatibility.md.
BYRE names the program; without it build/release/byre is taken.  The texts are those of qemu-img 10.0.
"""
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "support"))
import peers  # noqa: E402,F401  (puts the real programs in front of PATH)

BYRE = os.path.abspath(os.environ.get("BYRE", os.path.join(ROOT, "build", "release", "byre")))
QEMU_IMG = shutil.which("qemu-img")
QEMU_IO = shutil.which("qemu-io")
PATIENCE = 120


class Result:
    def __init__(self, words, code, out, err):
        self.words, self.code, self.out, self.err = words, code, out, err

    def __str__(self):
        return f"{' '.join(self.words)}\nexit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def run(*words, cwd=None):
    done = subprocess.run([str(w) for w in words], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=PATIENCE)
    return Result([str(w) for w in words], done.returncode, done.stdout.decode(errors="backslashreplace"),
                  done.stderr.decode(errors="backslashreplace"))


def must(*words, cwd=None):
    result = run(*words, cwd=cwd)
    if result.code != 0:
        raise AssertionError(str(result))
    return result.out


def qemu(*words, cwd):
    return must(QEMU_IMG, *words, cwd=cwd)


def write(image, *commands, cwd, fmt="qcow2"):
    flat = [word for command in commands for word in ("-c", command)]
    must(QEMU_IO, "-f", fmt, *flat, image, cwd=cwd)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class Case(unittest.TestCase):
    """Two folders with the same files: `theirs` for qemu-img, `ours` for byre."""

    @classmethod
    def setUpClass(cls):
        for program in (BYRE, QEMU_IMG, QEMU_IO):
            if not program or not os.path.exists(program):
                raise AssertionError(f"{program or 'qemu-img'}: not found; ./run test builds and installs it")
        cls.home = tempfile.mkdtemp(prefix="byre-tool-")
        cls.names = os.path.join(cls.home, "bin")
        os.mkdir(cls.names)
        for name in ("byre", "qemu-img"):
            os.symlink(BYRE, os.path.join(cls.names, name))
        cls.seed = os.path.join(cls.home, "seed")
        os.mkdir(cls.seed)
        cls.prepare(cls.seed)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.home)

    @classmethod
    def prepare(cls, folder):
        """Makes the files that both folders start with."""

    def setUp(self):
        work = tempfile.mkdtemp(dir=self.home)
        self.theirs, self.ours = os.path.join(work, "qemu"), os.path.join(work, "byre")
        # Holes and block counts are part of what is compared.
        for folder in (self.theirs, self.ours):
            must("cp", "-a", self.seed, folder)
        self.addCleanup(shutil.rmtree, work)

    def byre(self, *words):
        return run(os.path.join(self.names, "byre"), *words, cwd=self.ours)

    def both(self, *words):
        theirs = run(QEMU_IMG, *words, cwd=self.theirs)
        ours = run(os.path.join(self.names, "qemu-img"), *words, cwd=self.ours)
        return theirs, ours

    def same(self, *words, err=True, out=True, code=None):
        """Runs the words through both.  `err`: stderr is the same, too; else only whether there is any."""
        theirs, ours = self.both(*words)
        text = f"\n=== qemu-img\n{theirs}\n=== byre\n{ours}"
        self.assertEqual(theirs.code, ours.code, text)
        if code is not None:
            self.assertEqual(code, ours.code, text)
        if out:
            self.assertEqual(theirs.out, ours.out, text)
        if err:
            self.assertEqual(theirs.err, ours.err, text)
        else:
            self.assertEqual(bool(theirs.err), bool(ours.err), text)
        return ours

    def sound(self, image):
        """qemu-img finds nothing wrong with byre's image."""
        result = run(QEMU_IMG, "check", "-f", "qcow2", image, cwd=self.ours)
        self.assertEqual(result.code, 0, str(result))

    def same_disk(self, image, fmt="qcow2", other=None, other_fmt=None):
        """byre's image holds what qemu-img's does (or what `other`, in byre's folder, does)."""
        left = os.path.join(self.theirs, image) if other is None else other
        result = run(QEMU_IMG, "compare", "-f", other_fmt or fmt, "-F", fmt, left, os.path.join(self.ours, image),
                     cwd=self.ours)
        self.assertEqual(result.code, 0, str(result))


class Peer(unittest.TestCase):
    def test_the_peer_is_the_version_whose_texts_byre_speaks(self):
        self.assertIn("qemu-img version 10.0", must(QEMU_IMG, "--version"))


class Words(Case):
    """Command lines that are wrong, or that only ask."""

    @classmethod
    def prepare(cls, folder):
        qemu("create", "-q", "-f", "qcow2", "a.qcow2", "1M", cwd=folder)
        qemu("create", "-q", "-f", "raw", "a.raw", "1M", cwd=folder)

    def test_command_lines_that_do_not_parse(self):
        for words in (
            "", "nix", "-x", "info", "info a b", "info -x a", "info --output=xml a.raw", "info -f nix a.raw",
            "info --output", "info -f", "map", "map a b", "map --output=x a.raw", "map --start-offset=abc a.raw",
            "map --start-offset=-4 a.raw", "map --max-length=abc a.raw", "map -s 16E a.raw", "check", "check a b",
            "check -r bla a.qcow2", "check -T bla a.qcow2", "check -r leaks -U a.qcow2", "check -f qcow2 a.raw",
            "create", "create -z a", "create --bla", "create -f", "create -f nix x 1G", "create a 1G extra",
            "create -f qcow2 s.qcow2 abc", "create -f qcow2 s.qcow2 10Z", "create -f qcow2 s.qcow2 8E",
            "create -f qcow2 s.qcow2", "create -f qcow2 -o nix=1 s.qcow2 1G",
            "create -f raw -o cluster_size=4k s.raw 1G", "create -f qcow2 -o size=1M s.qcow2 2M",
            "create -f qcow2 -o ,size=1M s.qcow2", "create -f qcow2 -o size=1M, s.qcow2",
            "create -f qcow2 -o lazy_refcounts=abc s.qcow2 1M", "create -f qcow2 -o refcount_bits=abc s.qcow2 1M",
            "create -f raw -b a.raw -F raw s.raw", "create -f qcow2 -b s.qcow2 -F raw s.qcow2 1M",
            "create -f qcow2 -b nix -F qcow2 s.qcow2", "create -f qcow2 -u -b nix -F qcow2 s.qcow2",
            "resize", "resize a.qcow2", "resize a.qcow2 +1G b", "resize --bla a.qcow2 1G", "resize a.qcow2 abc",
            "resize +1G a.qcow2", "resize nix 1G", "resize a.qcow2 9E", "resize a.qcow2 -2G",
            "resize --preallocation=bla a.qcow2 1G", "resize a.qcow2 +1", "resize a.qcow2 512k",
            "resize -f raw a.raw 512k",
            "convert a.qcow2", "convert -O nix a.qcow2 b", "convert -O qcow2 nix b", "convert -m 0 a b",
            "convert -m 17 a b", "convert -S bla a b", "convert -S 1000 a b", "convert -t bla a.qcow2 b",
            "convert -T bla a.qcow2 b", "convert --target-is-zero a.qcow2 b", "convert -n -o size=1M a.qcow2 b",
            "convert -B a.qcow2 -O qcow2 a.qcow2 b", "convert -B a.qcow2 -F qcow2 -O raw a.qcow2 b",
            "convert -l nope a.qcow2 b", "convert -l nope -f raw a.qcow2 b", "convert -n -O raw a.qcow2 nix",
            "convert -f qcow2 a.raw b", "info nix", "map nix", "check nix", "check --output=json nix",
            "create -f qcow2 nix/x.qcow2 1M",
        ):
            with self.subTest(words=words):
                self.same(*words.split(), code=1)

    def test_the_first_wrong_word_is_told(self):
        """A value is looked at where it stands: in front of --help, of what is missing, and of the next wrong one."""
        values = {"bench": ("-i x", "-t x", "-d x"), "check": ("-r x",), "commit": ("-r BIG", "-r -1"), "resize": ("--preallocation=x",),
                  "convert": ("-m x", "-m 17", "-S 3", "-S 32M", "-r x"), "measure": ("--size=x",),
                  "snapshot": ("-l -c x", "-l -l", "-a x -d y")}
        for command, wrong in values.items():
            for words in wrong:
                for more in ("", " -h", " a.qcow2 b c d", " --object secret"):
                    with self.subTest(command=command, words=words + more):
                        self.same(command, *(words + more).split(), code=1)
        for words in ("create new 1Q more", "create -o help json:{} 1M", "create -f qcow2 -o help nix:x 1M",
                      "amend --image-opts -o data_file=x.bin y=3", "convert -C -c --skip-broken-bitmaps a.qcow2 b",
                      "convert --bitmaps -n -O qcow2 a.qcow2 nix", "convert --bitmaps -n -O raw a.qcow2 a.raw",
                      "amend -o lazy_refcounts=x,cluster_size=64k a.qcow2", "amend -o cluster_size=64k,lazy_refcounts=x a.qcow2",
                      "amend -o nix=1,cluster_size=64k a.qcow2", "amend -o size=x,refcount_bits=y a.qcow2",
                      "convert -n --target-image-opts -O raw a.raw b", "convert -n --target-image-opts -f raw -O raw nix b",
                      "convert -t x nix b", "convert -t x -T y nix b", "convert -t x --bitmaps a.raw b", "convert -t x -c a.raw b",
                      "convert -t x -o refcount_bits=8 a.raw b", "convert -t x -l 7 a.qcow2 b", "convert -t x a.raw b",
                      "measure -O qcow -o x=1 a.qcow2", "measure -O qcow -o size=x a.qcow2", "measure -O qcow a.qcow2",
                      "measure -O qcow -o x=1 nix", "measure -O qcow -l 1 a.qcow2"):
            with self.subTest(words=words):
                self.same(*words.split(), code=1)
        self.same("convert", "-O", "raw", "a.qcow2", "", code=1)

    def test_a_value_that_an_option_does_not_know_is_told_when_the_disk_is_made(self):
        for option in ("preallocation=x", "compat=x", "compression_type=x", "preallocation=x,compat=y,compression_type=z"):
            for words in (("create", "-f", "qcow2", "-o", option, "new", "1M"), ("create", "-f", "qcow2", "-o", option, "new"),
                          ("create", "-f", "qcow2", "-o", option, "-b", "nix", "-F", "raw", "new"),
                          ("convert", "-O", "qcow2", "-o", option, "a.qcow2", "new"), ("measure", "-O", "qcow2", "-o", option, "a.qcow2")):
                with self.subTest(words=words):
                    # What measure does not need it does not look at.
                    self.same(*words, code=0 if words[0] == "measure" and option == "compression_type=x" else 1)
        self.same("convert", "-c", "-O", "qcow2", "-o", "preallocation=x", "a.qcow2", "new", code=1)
        # Byre by itself announces nothing, and looks at all of them.
        for words in (("create", "-o", "compat=x", "new.qcow2", "1M"), ("measure", "-O", "qcow2", "-o", "compression_type=x", "a.qcow2")):
            self.assertEqual((self.byre(*words).code, self.byre(*words).out), (64, ""))

    def test_the_first_wrong_word_of_other_programs_is_told(self):
        lines = {"qemu-io": ("-i x -h", "-d x --version", "-t x -h", "-d x a b", "-k -i x"),
                 "qemu-nbd": ("-n -n nix", "-n --cache=x nix", "--cache=none --cache=x nix", "--aio=threads --aio=x nix", "--aio=x --aio=y nix",
                              "--detect-zeroes=unmap --discard=unmap nix", "--detect-zeroes=unmap --foo", "--detect-zeroes=unmap -V",
                              "--discard=unmap --discard=x nix", "-L nix", "-L --fork", "-L --fork -x a", "-L -A", "-L -l x", "-L -n",
                              "-L -D x", "-L --discard=unmap", "-L -d", "-L --tls-creds t --fork", "-p x -b 127.0.0.1 nix",
                              "-p x -b 127.0.0.1 -t nix", "-b 127.0.0.1 -p= nix", "--tls-creds t -c /dev/x --tls-hostname h nix",
                              "--object iothread,id=i nix", "--object iothread,id=i,poll-max-ns=3 nix", "--object iothread,id=i,x=3 nix",
                              "--object iothread nix", f"-x {'n' * 4097} nix", f"-D {'n' * 4097} nix")}
        for program, played in lines.items():
            name = os.path.join(self.names, program)
            if not os.path.exists(name):
                os.symlink(BYRE, name)
            for words in played:
                with self.subTest(program=program, words=words):
                    theirs, ours = run(shutil.which(program), *words.split(), cwd=self.theirs), run(name, *words.split(), cwd=self.ours)
                    self.assertEqual((theirs.code, theirs.out, theirs.err), (ours.code, ours.out, ours.err), str(ours))
                    self.assertEqual(ours.code, 1)

    def test_words_are_split_alike(self):
        for words in (
            "info --outp=json a.raw", "info --output json a.raw", "info a.raw --output=json", "info -fraw a.qcow2",
            "info -f raw -- a.qcow2", "info -Uf raw a.qcow2", "info --back a.qcow2", "check -qT none a.qcow2",
            "map -s0 -l 4k a.raw", "resize a.qcow2 --shrink +1M", "resize -q a.qcow2 +1M",
            "create -qf qcow2 b.qcow2 1M", "create -f qcow2 -o cluster_size=4k -o compat=0.10 b.qcow2 1M",
            "create b.raw -f raw 1M",
        ):
            with self.subTest(words=words):
                self.same(*words.split(), code=0)

    def test_sizes(self):
        for size in ("0", "1", "512", "1.5", "1.5k", ".5k", "1.k", "1kk", "1kB", "1KiB", "0x10", "010", " 1k", "1k ",
                     "+1k", "1e3", "1M", "1m", "16E", "1b", "1B", "", "k", "0.5", "0.0", "1.0", "inf", "nan",
                     "1,5k", "1.25M", "99999999999999999999", "0.00001k", "1.999999999k", "1s", "9223372036854775808"):
            with self.subTest(size=size):
                # Without a file system in the way: only the words of the two are compared.
                self.same("create", "-f", "qcow2", "-u", "--", "nix/x", size)

    def test_an_empty_value_is_a_value(self):
        for words in (
            "convert -l '' a.raw b", "convert -O raw -B '' a.raw b", "convert -O qcow2 -B '' a.raw b",
            "convert -O qcow2 -B '' -F '' a.raw b", "convert -O qcow2 -F '' a.raw b", "convert -O qcow2 -F raw a.raw b",
            "convert -O qcow2 -B a.raw -F '' a.raw b", "convert -O qcow2 -o backing_file= a.raw b",
            "convert -O qcow2 -o backing_fmt= a.raw b", "convert -O qcow2 -o data_file= a.raw b",
            "convert -O raw -F raw a.raw b",
            "convert -O raw -F '' a.raw b", "convert -c -O qcow2 -o data_file= a.raw b", "create -f raw -F raw x 1M",
            "create -f raw -F '' x 1M", "create -f raw -F nix x 1M", "convert -f '' a.raw b", "convert -O '' a.raw b",
            "create -f raw -b '' x 1M", "create -f qcow2 -b '' x 1M", "create -f qcow2 -b '' -F '' x 1M",
            "create -f qcow2 -b '' -F qcow2 x 1M", "create -f qcow2 -b '' x", "create -f qcow2 -u -b '' x 1M",
            "create -f qcow2 -o backing_file= x 1M", "create -f qcow2 -o backing_file=,backing_fmt=qcow2 x 1M",
            "create -f qcow2 -b a.qcow2 -F '' x", "create -f qcow2 -o data_file= x 1M",
            "create -f qcow2 -o data_file=,data_file_raw=on x 1M", "create -f '' x 1M", "amend -o data_file= a.qcow2",
            "amend -f '' -o size=2M a.qcow2", "info -f '' a.raw", "check -f '' a.qcow2", "map -f '' a.raw",
            "resize -f '' a.raw 2M", "bitmap -f '' --add a.qcow2 b",
        ):
            with self.subTest(words=words):
                self.same(*shlex.split(words), code=1)
                self.assertFalse(os.path.exists(f"{self.ours}/x"))
                self.assertFalse(os.path.exists(f"{self.ours}/b"))
        # Refused before "Formatting ..." is said.
        for words in ("create -f qcow2 -F '' x 1M", "create -f qcow2 -o backing_fmt= x 1M"):
            self.same(*shlex.split(words), out=False, code=1)
        # byre says more.
        for words in ("-o backing_fmt=", "-o backing_file=", "-o backing_file=,backing_fmt="):
            self.same("amend", *words.split(), "a.qcow2", err=False, code=1)
        # qemu-img dies of it.
        result = self.byre("convert", "-O", "qcow2", "-B", "", "-F", "qcow2", "a.raw", "b")
        self.assertEqual(result.code, 64, str(result))
        self.same("convert", "-n", "-O", "raw", "-B", "", "a.raw", "a.raw", err=False, code=1)
        for words in ("-B x a.qcow2 a.raw", "-F qcow2 a.qcow2 a.raw"):
            self.same("convert", "-n", "-O", "raw", *words.split(), code=0)
        self.same("convert", "-n", "-O", "qcow2", "-B", "", "-F", "", "a.raw", "a.qcow2", code=0)

    def test_unsupported_options_are_refused_by_name(self):
        for words, why in (("info --object tls-creds-x509,id=a,dir=. a.raw", "--object tls-creds-x509 is not supported"),
                           ("info --object iothread,id=a a.raw", "--object iothread is not supported")):
            with self.subTest(words=words):
                result = self.byre(*words.split())
                self.assertIn(result.code, (64, 69))
                self.assertIn(why, result.err)

    def test_every_command_has_help(self):
        listed = self.byre("--help").out
        names = re.findall(r"^  (\w+) +\S", listed, re.M)
        self.assertLessEqual({"create", "info", "check", "convert", "map", "resize", "serve"}, set(names))
        for name in names:
            with self.subTest(command=name):
                result = self.byre(name, "--help")
                self.assertEqual(result.code, 0)
                self.assertIn(f"usage: byre {name}", result.out)
                self.assertTrue(all(len(line) <= 80 for line in result.out.splitlines()), result.out)
                self.assertEqual(result.out, self.byre("help", name).out)

    def test_options_are_listed_without_files(self):
        for words in ("convert -O raw", "convert", "convert -O raw a.raw", "convert -O raw a.raw b", "create", "create x 1M more words"):
            self.same(*words.split(), "-o", "help", code=0)
        for words in ("convert -O qcow2", "convert -O qcow2 a.raw", "convert -O qcow2 a.raw b", "create -f qcow2",
                      "create -f qcow2 x 1M more words"):
            theirs, ours = self.both(*words.split(), "-o", "help")
            self.assertEqual((theirs.code, ours.code), (0, 0))
            kept = [line for line in theirs.out.splitlines(True) if not line.startswith("  encrypt")]
            self.assertEqual("".join(kept), ours.out)
        for words in ("convert -O nix", "convert -m 0", "convert -n", "convert -S 1000", "convert --target-is-zero",
                      "create -f nix", "create -f nix x", "amend -f nix", "amend -f nix x"):
            with self.subTest(words=words):
                self.same(*words.split(), "-o", "help", code=1)
        self.same("create", "-f", "nix", code=1)
        self.same("convert", code=1)


class Create(Case):
    @classmethod
    def prepare(cls, folder):
        qemu("create", "-q", "-f", "qcow2", "base.qcow2", "3M", cwd=folder)
        write("base.qcow2", "write -P 7 0 1M", cwd=folder)
        os.mkdir(os.path.join(folder, "sub"))
        with open(os.path.join(folder, "base.raw"), "wb") as file:
            file.write(b"x" * 1000001)

    def image_like_theirs(self, image, *words):
        self.same("create", "-f", "qcow2", *words, code=0)
        self.sound(image)
        theirs = must(QEMU_IMG, "info", "--output=json", image, cwd=self.theirs)
        ours = must(QEMU_IMG, "info", "--output=json", image, cwd=self.ours)
        drop = ("actual-size", "children")  # Where the file ends is its maker's.
        self.assertEqual({k: v for k, v in json.loads(theirs).items() if k not in drop},
                         {k: v for k, v in json.loads(ours).items() if k not in drop})
        self.same_disk(image)

    def test_options(self):
        for options in ((), ("-o", "compat=0.10"), ("-o", "compat=v3"), ("-o", "cluster_size=512"),
                        ("-o", "cluster_size=2M"), ("-o", "extended_l2=on"), ("-o", "lazy_refcounts=on"),
                        ("-o", "lazy_refcounts"), ("-o", "compression_type=zstd"), ("-o", "refcount_bits=1"),
                        ("-o", "refcount_bits=64,cluster_size=4k"), ("-o", "preallocation=off"),
                        ("-o", "cluster_size=16k,extended_l2=on,refcount_bits=8"), ("-o", "size=64M"), ("-q",)):
            with self.subTest(options=options):
                size = () if "size=64M" in options else ("64M",)
                self.image_like_theirs("x.qcow2", *options, "x.qcow2", *size)

    def test_sizes(self):
        for size in ("0", "1", "511", "513", "1001", "1T", "16T", "63.9P"):
            with self.subTest(size=size):
                words = ("-o", "cluster_size=2M") if size[-1] in "TP" else ()
                self.image_like_theirs("x.qcow2", *words, "x.qcow2", size)

    def test_options_that_do_not_go_together(self):
        for options in ("cluster_size=3000", "cluster_size=256", "cluster_size=4M", "refcount_bits=3",
                        "refcount_bits=128", "refcount_bits=0", "lazy_refcounts=on,compat=0.10",
                        "extended_l2=on,compat=0.10", "extended_l2=on,cluster_size=8k",
                        "compression_type=zstd,compat=0.10", "refcount_bits=8,compat=0.10", "data_file_raw=on",
                        "cluster_size=512,size=1T", "backing_fmt=raw"):
            with self.subTest(options=options):
                size = () if "size=1T" in options else ("64M",)
                self.same("create", "-f", "qcow2", "-o", options, "x.qcow2", *size, code=1)

    def test_flags_are_echoed_as_they_were_given(self):
        for options in ("lazy_refcounts=yes", "lazy_refcounts=true", "lazy_refcounts=n", "extended_l2=yes",
                        "extended_l2=off", "data_file_raw=off", "data_file_raw=no", "encryption=off",
                        "lazy_refcounts=on,lazy_refcounts=y", "nocow=off", "nolazy_refcounts", "noextended_l2",
                        "nodata_file_raw,noencryption", "nonocow", "nopreallocation", "lazy_refcounts,nolazy_refcounts"):
            with self.subTest(options=options):
                self.image_like_theirs("x.qcow2", "-o", options, "x.qcow2", "1M")
        self.same("create", "-f", "qcow2", "-o", "data_file=d.raw,data_file_raw=yes", "x.qcow2", "1M", code=0)
        for words in ("-f raw -o nonocow", "-f raw -o nocow=n"):
            self.same("create", *words.split(), "x.raw", "1M", code=0)
        for options in ("nofoo", "no", "nohelp", "nocow", "nolazy_refcounts=on", "norefcount_bits"):
            with self.subTest(options=options):
                self.same("create", "-f", "qcow2", "-o", options, "y.qcow2", "1M", code=1)
        qemu("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "a.qcow2", "1M", cwd=self.ours)
        self.assertEqual(self.byre("amend", "-o", "nolazy_refcounts", "a.qcow2").code, 0)
        self.assertIn("lazy refcounts: false", self.byre("info", "a.qcow2").out)
        self.same("convert", "-O", "qcow2", "-o", "nolazy_refcounts", "base.raw", "c.qcow2", code=0)

    def test_an_image_is_not_its_own_data_file(self):
        os.symlink("y.qcow2", f"{self.ours}/link")
        before = digest(f"{self.ours}/base.qcow2")
        os.link(f"{self.ours}/base.qcow2", f"{self.ours}/hard")
        img = os.path.join(self.names, "qemu-img")
        for data, image in (("y.qcow2", "y.qcow2"), ("link", "y.qcow2"), ("y.qcow2", "link"), ("./y.qcow2", "y.qcow2"),
                            ("base.qcow2", "base.qcow2"), ("hard", "base.qcow2"), ("base.qcow2", "hard")):
            for program in ((img, "create"), (BYRE, "create", "--force"), (img, "convert", "-O", "qcow2", "base.raw"),
                            (BYRE, "convert", "--force", "-O", "qcow2", "base.raw")):
                create = "create" in program
                words = ("-f", "qcow2") if create else ()
                with self.subTest(data=data, image=image, program=program):
                    result = run(*program, *words, "-o", f"data_file={data}", image, *(["2M"] if create else []),
                                 cwd=self.ours)
                    own = 66 if "link" == data else 64  # A link to nowhere, or an image that is its own data file.
                    self.assertEqual(result.code, 1 if program[0] == img else own, str(result))
                    if "link" != data:
                        self.assertIn("is the image itself", result.err)
                    self.assertFalse(os.path.exists(f"{self.ours}/y.qcow2"))
                    self.assertTrue(os.path.islink(f"{self.ours}/link"))
                    self.assertEqual(before, digest(f"{self.ours}/base.qcow2"))

    def test_overlays(self):
        self.image_like_theirs("o.qcow2", "-b", "base.qcow2", "-F", "qcow2", "o.qcow2")
        self.image_like_theirs("o.qcow2", "-b", "base.raw", "-F", "raw", "o.qcow2")
        self.image_like_theirs("o.qcow2", "-b", "base.qcow2", "-F", "qcow2", "o.qcow2", "5M")
        self.image_like_theirs("sub/o.qcow2", "-b", "../base.qcow2", "-F", "qcow2", "sub/o.qcow2")
        self.image_like_theirs("o.qcow2", "-o", "backing_file=base.qcow2,backing_fmt=qcow2", "o.qcow2")
        self.same("create", "-f", "qcow2", "-u", "-b", "nix", "-F", "qcow2", "o.qcow2", "1M", code=0)

    def test_a_backing_file_needs_its_format(self):
        theirs, ours = self.both("create", "-f", "qcow2", "-b", "base.qcow2", "o.qcow2")
        self.assertEqual((theirs.code, ours.code), (1, 1))
        self.assertIn("Backing file specified without backing format", ours.err)

    def test_raw(self):
        for size in ("0", "1", "1000", "1M", "10G"):
            with self.subTest(size=size):
                self.same("create", "-f", "raw", "x.raw", size, code=0)
                self.assertEqual(os.path.getsize(f"{self.theirs}/x.raw"), os.path.getsize(f"{self.ours}/x.raw"))
        self.same("create", "x.raw", "1M", code=0)
        for mode in ("off", "falloc", "full"):
            self.same("create", "-f", "raw", "-o", f"preallocation={mode}", "p.raw", "1M", code=0)
            theirs, ours = (os.stat(f"{folder}/p.raw").st_blocks for folder in (self.theirs, self.ours))
            self.assertEqual(theirs >= 2048, ours >= 2048)

    def test_names_that_need_care(self):
        self.same("create", "-f", "qcow2", "a b,c.qcow2", "1M", code=0)
        self.same("create", "-f", "qcow2", "-u", "-b", "a,,b", "-F", "raw", "o.qcow2", "1M", code=0)

    def test_a_data_file_keeps_what_it_holds(self):
        with open(f"{self.ours}/data.raw", "wb") as file:
            file.write(b"precious" * 1000)
        result = self.byre("create", "-f", "qcow2", "-o", "data_file=data.raw", "d.qcow2", "1M")
        self.assertEqual(result.code, 0, str(result))
        with open(f"{self.ours}/data.raw", "rb") as file:
            self.assertTrue(file.read().startswith(b"precious" * 1000))
        self.sound("d.qcow2")

    def test_a_data_file_is_made(self):
        self.same("create", "-f", "qcow2", "-o", "data_file=d.raw", "d.qcow2", "1M", code=0)
        self.same("create", "-f", "qcow2", "-o", "data_file=r.raw,data_file_raw=on", "r.qcow2", "1M", code=0)
        for image, data in (("d.qcow2", "d.raw"), ("r.qcow2", "r.raw")):
            self.sound(image)
            self.assertEqual(os.path.getsize(f"{self.ours}/{data}"), 1 << 20)
            self.same_disk(image)
        result = self.byre("create", "-f", "qcow2", "-o", "data_file=own.raw", "own.qcow2", "1M")
        self.assertEqual(result.code, 0, str(result))

    def test_block_devices(self):
        loop = shutil.which("losetup", path="/usr/sbin:/sbin:" + os.environ.get("PATH", ""))
        with open(f"{self.ours}/disk", "wb") as file:
            file.write(os.urandom(16 << 20))
        made = run(loop, "-f", "--show", "disk", cwd=self.ours) if loop else None
        if not made or made.code != 0:
            self.skipTest("no loop devices here")
        device = made.out.strip()
        try:
            for fmt, words in (("qcow2", ()), ("raw", ()), ("qcow2", ("-t", "none"))):
                result = run(os.path.join(self.names, "qemu-img"), "convert", *words, "-O", fmt, "base.qcow2", device,
                             cwd=self.ours)
                self.assertEqual(result.code, 0, str(result))
                result = run(QEMU_IMG, "compare", "-f", "qcow2", "-F", fmt, "base.qcow2", device, cwd=self.ours)
                self.assertEqual(result.code, 0, str(result))
            self.assertEqual(self.byre("create", "-f", "raw", device, "1M").code, 73, "not without --force")
            self.assertEqual(self.byre("create", "--force", "-f", "raw", device, "1G").code, 79, "too small")
        finally:
            run(loop, "-d", device)

    def test_byre_itself_overwrites_nothing_unless_told_to(self):
        before = digest(f"{self.ours}/base.qcow2")
        for words in (("create", "-f", "qcow2", "base.qcow2", "1M"), ("convert", "base.raw", "base.qcow2")):
            result = self.byre(*words)
            self.assertEqual(result.code, 73, str(result))
            self.assertIn("--force", result.err)
            self.assertEqual(result.out, "")
            self.assertEqual(before, digest(f"{self.ours}/base.qcow2"))
        result = self.byre("create", "--force", "-f", "qcow2", "base.qcow2", "1M")
        self.assertEqual(result.code, 0, str(result))
        self.assertNotEqual(before, digest(f"{self.ours}/base.qcow2"))

    def test_a_new_disk_and_its_folder_are_synced(self):
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        log = f"{self.ours}/trace"
        done = run("strace", "-f", "-o", log, "-e", "trace=openat,fsync,fdatasync,io_uring_enter",
                   BYRE, "create", "-f", "qcow2", "synced.qcow2", "1M", cwd=self.ours)
        self.assertEqual(done.code, 0, str(done))
        with open(log) as file:
            text = file.read()
        self.assertRegex(text, r'openat\(AT_FDCWD, "\.", O_RDONLY\|.*O_DIRECTORY')


class Info(Case):
    @classmethod
    def prepare(cls, folder):
        def create(name, *words):
            qemu("create", "-q", "-f", "qcow2", *words, name, "64M", cwd=folder)
        create("plain.qcow2")
        create("v2.qcow2", "-o", "compat=0.10")
        create("small.qcow2", "-o", "cluster_size=512")
        create("large.qcow2", "-o", "cluster_size=2M,lazy_refcounts=on")
        create("extended.qcow2", "-o", "extended_l2=on,refcount_bits=1")
        create("zstd.qcow2", "-o", "compression_type=zstd,refcount_bits=64")
        create("full.qcow2")
        write("full.qcow2", "write -P 1 0 128k", "write -P 2 1M 64k", "write -c -P 3 2M 64k", "write -z 3M 1M",
              cwd=folder)
        qemu("snapshot", "-c", "first", "full.qcow2", cwd=folder)
        qemu("snapshot", "-c", "the second one has a name that is too long", "full.qcow2", cwd=folder)
        qemu("bitmap", "--add", "full.qcow2", "b0", cwd=folder)
        qemu("bitmap", "--add", "--disable", "-g", "128k", "full.qcow2", "b1", cwd=folder)
        create("over.qcow2", "-b", "full.qcow2", "-F", "qcow2")
        os.mkdir(os.path.join(folder, "sub"))
        create("sub/over.qcow2", "-b", "../over.qcow2", "-F", "qcow2")
        create("lost.qcow2", "-u", "-b", "nix", "-F", "raw")
        create("strange.qcow2", "-u", "-b", 'json:{"driver":"raw","file":{"driver":"file","filename":"x"}}', "-F", "raw")
        create("external.qcow2", "-o", "data_file=external.raw")
        create("external_raw.qcow2", "-o", "data_file=external2.raw,data_file_raw=on")
        write("external.qcow2", "write 1M 1M", cwd=folder)
        secret = ("--object", "secret,id=s,data=x")
        create("aes.qcow2", *secret, "-o", "encrypt.format=aes,encrypt.key-secret=s")
        qemu("create", "-q", "-f", "raw", "odd.raw", "1000001", cwd=folder)
        with open(os.path.join(folder, "odd.raw"), "r+b") as file:
            file.write(b"x" * 5000)
        open(os.path.join(folder, "empty.raw"), "wb").close()
        create("utf8-\u00e9\u4e16\U0001f600.qcow2")
        shutil.copy(os.path.join(folder, "plain.qcow2"), os.path.join(folder, "dirty.qcow2"))
        with open(os.path.join(folder, "dirty.qcow2"), "r+b") as file:
            file.seek(79)
            file.write(b"\x03")  # Dirty and corrupt.

    IMAGES = ("plain.qcow2", "v2.qcow2", "small.qcow2", "large.qcow2", "extended.qcow2", "zstd.qcow2", "full.qcow2",
              "over.qcow2", "sub/over.qcow2", "lost.qcow2", "strange.qcow2", "external.qcow2", "external_raw.qcow2",
              "aes.qcow2", "odd.raw", "empty.raw", "utf8-\u00e9\u4e16\U0001f600.qcow2", "dirty.qcow2")

    def test_for_people(self):
        for image in self.IMAGES:
            with self.subTest(image=image):
                self.same("info", image, code=0)

    def test_json(self):
        for image in self.IMAGES:
            with self.subTest(image=image):
                self.same("info", "--output=json", image, code=0)

    def test_chains(self):
        for image in ("over.qcow2", "sub/over.qcow2", "plain.qcow2", "odd.raw"):
            with self.subTest(image=image):
                self.same("info", "--backing-chain", image, code=0)
                self.same("info", "--backing-chain", "--output=json", image, code=0)
        self.same("info", "--backing-chain", "lost.qcow2", code=1)

    def test_given_formats(self):
        self.same("info", "-f", "raw", "full.qcow2", code=0)
        self.same("info", "-f", "qcow2", "full.qcow2", code=0)
        self.same("info", "-f", "qcow2", "odd.raw", code=1)
        self.same("info", "-U", "full.qcow2", code=0)

    def test_sizes_for_people(self):
        for size in (512, 1024, 1536, 999936, 1000448, 1024000, 1047552, 1048576, 10 ** 9, 10 ** 12, 5 * 10 ** 15):
            with self.subTest(size=size):
                for folder in (self.theirs, self.ours):
                    with open(f"{folder}/x.raw", "wb") as file:
                        with contextlib.suppress(OSError):
                            file.truncate(size)
                self.same("info", "-f", "raw", "x.raw", code=0)

    def test_names_from_an_image_drive_no_terminal(self):
        for folder in (self.theirs, self.ours):
            with open(f"{folder}/over.qcow2", "r+b") as file:
                data = file.read(65536)
                file.seek(data.rindex(b"full.qcow2"))
                file.write(b"\x1b[2Jl\xff\x07\xc2\x9b2")
        result = run(os.path.join(self.names, "byre"), "info", "over.qcow2", cwd=self.ours)
        self.assertEqual(result.code, 0)
        self.assertIn(r"backing file: \x1b[2Jl\xff\x07\xc2\x9b2", result.out)
        result = run(os.path.join(self.names, "byre"), "info", "--output=json", "over.qcow2", cwd=self.ours)
        self.assertEqual(json.loads(result.out)["backing-filename"], "\x1b[2Jl\ufffd\x07\x9b2")

    def test_byre_itself_opens_nothing_outside_the_folder(self):
        result = self.byre("info", "--backing-chain", "sub/over.qcow2")
        self.assertEqual(result.code, 77)
        self.assertIn("it is not in or below the folder of the image", result.err)
        for words in (("info", "--backing-chain"), ("convert",), ("map",), ("check", "--verify-backing"), ("io",)):
            target = ("x.raw",) if words == ("convert",) else ()
            result = self.byre(*words, "sub/over.qcow2", *target)
            self.assertEqual(result.code, 1 if words[0] == "check" else 77)
            self.assertEqual(result.err.count("--follow any"), 1, str(result))
        result = self.byre("info", "--backing-chain", "--follow=any", "sub/over.qcow2")
        self.assertEqual(result.code, 0, str(result))


class Check(Case):
    @classmethod
    def prepare(cls, folder):
        qemu("create", "-q", "-f", "qcow2", "empty.qcow2", "64M", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "good.qcow2", "1M", cwd=folder)
        write("good.qcow2", "write 0 256k", "write -c 512k 64k", "write 960k 64k", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "small.qcow2", "10M", cwd=folder)
        write("small.qcow2", "write 0 100k", "write 5M 1k", "write -z 6M 1M", cwd=folder)
        qemu("snapshot", "-c", "s", "small.qcow2", cwd=folder)
        qemu("create", "-q", "-f", "raw", "disk.raw", "1M", cwd=folder)

        def damage(name, *changes):
            with open(os.path.join(folder, "good.qcow2"), "rb") as file:
                data = bytearray(file.read()) + bytes(5 << 16)
            table = int.from_bytes(data[48:56], "big")
            block = int.from_bytes(data[table:table + 8], "big")
            for cluster, count in changes:
                data[block + 2 * cluster:block + 2 * cluster + 2] = count.to_bytes(2, "big")
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)
        damage("leak.qcow2", (13, 1), (14, 3))
        damage("bad.qcow2", (6, 0))
        damage("both.qcow2", (6, 0), (14, 1))

    def test_reports(self):
        for image, code in (("empty.qcow2", 0), ("good.qcow2", 0), ("small.qcow2", 0), ("leak.qcow2", 3),
                            ("bad.qcow2", 2), ("both.qcow2", 2), ("disk.raw", 63)):
            for words in ((), ("--output=json",), ("-q",), ("-q", "--output=json"), ("-U",), ("-T", "none")):
                with self.subTest(image=image, words=words):
                    # What is found is said in byre's own words.
                    self.same("check", *words, image, err=image in ("empty.qcow2", "good.qcow2", "disk.raw"), code=code)

    def test_repairs(self):
        for image in ("leak.qcow2", "bad.qcow2", "both.qcow2"):
            for words in ((), ("--output=json",)):
                with self.subTest(image=image, words=words):
                    shutil.copy(f"{self.seed}/{image}", f"{self.ours}/{image}")
                    result = run(os.path.join(self.names, "qemu-img"), "check", "-r", "all", *words, image, cwd=self.ours)
                    self.assertEqual(result.code, 0, str(result))
                    if words:
                        self.assertGreater(sum(json.loads(result.out).get(k, 0)
                                               for k in ("leaks-fixed", "corruptions-fixed")), 0)
                    else:
                        self.assertIn("The following inconsistencies were found and repaired:", result.out)
                    self.sound(image)
                    self.same_disk(image, other=f"{self.seed}/good.qcow2")

    def test_leaks_alone_are_repaired_the_same_way(self):
        self.same("check", "-r", "leaks", "leak.qcow2", err=False, code=0)
        shutil.copy(f"{self.seed}/leak.qcow2", f"{self.ours}/leak.qcow2")
        shutil.copy(f"{self.seed}/leak.qcow2", f"{self.theirs}/leak.qcow2")
        self.same("check", "-r", "leaks", "--output=json", "leak.qcow2", err=False, code=0)


class Map(Case):
    @classmethod
    def prepare(cls, folder):
        for name, words in (("base", ()), ("v2", ("-o", "compat=0.10")), ("small", ("-o", "cluster_size=512")),
                            ("extended", ("-o", "extended_l2=on"))):
            qemu("create", "-q", "-f", "qcow2", *words, f"{name}.qcow2", "64M", cwd=folder)
            write(f"{name}.qcow2", "write -P 1 0 128k", "write -P 2 1M 6000", "write -P 3 63M 1M", cwd=folder)
        write("base.qcow2", "write -z 3M 1M", "write -z 8M 64k", "write -z 0 64k", cwd=folder)
        write("extended.qcow2", "write -z 8k 4k", "write -P 3 200k 2k", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "over.qcow2", cwd=folder)
        write("over.qcow2", "write -P 9 64k 64k", "write -z 1M 64k", "write -P 9 10M 64k", cwd=folder)
        os.mkdir(os.path.join(folder, "sub"))
        qemu("create", "-q", "-f", "qcow2", "-b", "../over.qcow2", "-F", "qcow2", "sub/top.qcow2", "128M", cwd=folder)
        write("sub/top.qcow2", "write -P 4 100M 128k", cwd=folder)
        for mode in ("metadata", "falloc"):
            qemu("create", "-q", "-f", "qcow2", "-o", f"preallocation={mode}", f"{mode}.qcow2", "8M", cwd=folder)
            write(f"{mode}.qcow2", "write -P 9 64k 64k", "write -P 9 1M 4k", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "packed.qcow2", "1M", cwd=folder)
        write("packed.qcow2", "write -c -P 3 0 64k", "write 128k 64k", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "external.qcow2", "1M", cwd=folder)
        write("external.qcow2", "write 128k 64k", cwd=folder)
        with open(os.path.join(folder, "disk.raw"), "wb") as file:
            file.write(b"x" * 5000)
            file.seek(1 << 20)
            file.write(b"y" * 4096)
            file.truncate(3000001)
        qemu("create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "over_raw.qcow2", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "longer.qcow2", "10M", cwd=folder)
        open(os.path.join(folder, "empty.raw"), "wb").close()
        qemu("create", "-q", "-f", "qcow2", "-u", "-b", "nix", "-F", "raw", "lost.qcow2", "1M", cwd=folder)

    def test_compressed_ranges_for_people(self):
        result = self.byre("map", "packed.qcow2")
        self.assertEqual(result.code, 0, str(result))
        rows = [line.split() for line in result.out.splitlines()]
        self.assertEqual(rows[1], ["0", "0x10000", "compressed", "packed.qcow2"])
        self.assertEqual((rows[2][0], rows[2][1], rows[2][3]), ("0x20000", "0x10000", "packed.qcow2"))
        self.assertEqual(len(rows), 3)

    IMAGES = ("base.qcow2", "v2.qcow2", "small.qcow2", "extended.qcow2", "over.qcow2", "sub/top.qcow2", "external.qcow2",
              "disk.raw", "over_raw.qcow2", "longer.qcow2", "empty.raw", "metadata.qcow2", "falloc.qcow2")

    def test_for_people(self):
        for image in self.IMAGES:
            with self.subTest(image=image):
                self.same("map", image, code=0)
        self.same("map", "packed.qcow2", code=1)
        self.same("map", "lost.qcow2", code=1)

    def test_json(self):
        for image in (*self.IMAGES, "packed.qcow2"):
            if image == "extended.qcow2":
                continue
            with self.subTest(image=image):
                self.same("map", "--output=json", image, code=0)

    def test_json_of_subclusters(self):
        # For a subcluster that reads from below qemu-img gives an offset where it would lie; byre gives none.
        def plain(text):
            entries = []
            for entry in json.loads(text):
                if not entry["present"]:
                    entry.pop("offset", None)
                last = entries[-1] if entries else None
                if last and not entry["present"] and all(last.get(k) == entry.get(k)
                                                         for k in ("present", "depth", "zero", "data", "offset")):
                    last["length"] += entry["length"]
                else:
                    entries.append(entry)
            return entries
        theirs, ours = self.both("map", "--output=json", "extended.qcow2")
        self.assertEqual(plain(theirs.out), plain(ours.out))

    def test_parts(self):
        for words in ("-s 100 -l 70000", "--start-offset=1M --max-length=2M", "--start-offset=1G", "-s 64M", "-l 0",
                      "-s 63.5M -l 1G"):
            for output in ("human", "json"):
                with self.subTest(words=words, output=output):
                    self.same("map", *words.split(), f"--output={output}", "over.qcow2", code=0)

    def test_given_format(self):
        self.same("map", "-f", "raw", "--output=json", "base.qcow2", code=0)
        self.same("map", "-U", "base.qcow2", code=0)


class Resize(Case):
    @classmethod
    def prepare(cls, folder):
        qemu("create", "-q", "-f", "qcow2", "a.qcow2", "64M", cwd=folder)
        write("a.qcow2", "write -P 1 63M 1M", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "small.qcow2", "1M", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2.qcow2", "1M", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "over.qcow2", "1M", cwd=folder)
        with open(os.path.join(folder, "disk.raw"), "wb") as file:
            file.write(b"x" * 10000)

    def test_growing(self):
        for image, size in (("a.qcow2", "128M"), ("a.qcow2", "+1k"), ("a.qcow2", "+0"), ("a.qcow2", "1T"),
                            ("small.qcow2", "+100M"), ("v2.qcow2", "1G"), ("over.qcow2", "+1M"), ("over.qcow2", "100M")):
            with self.subTest(image=image, size=size):
                self.same("resize", image, size, code=0)
                self.sound(image)
                self.same_disk(image)
        self.assertEqual(*(json.loads(must(QEMU_IMG, "info", "--output=json", "over.qcow2", cwd=folder))["virtual-size"]
                           for folder in (self.theirs, self.ours)))

    def test_raw(self):
        for words in (("-f", "raw", "disk.raw", "+1"), ("-f", "raw", "disk.raw", "1M"), ("disk.raw", "2M"),
                      ("-f", "raw", "disk.raw", "1M"), ("-f", "raw", "--shrink", "disk.raw", "1000"),
                      ("-f", "raw", "--shrink", "disk.raw", "-500"),
                      ("-f", "raw", "--preallocation=falloc", "disk.raw", "1M"),
                      ("-f", "raw", "--preallocation=off", "disk.raw", "2M")):
            with self.subTest(words=words):
                self.same("resize", *words)
                self.assertEqual(os.path.getsize(f"{self.theirs}/disk.raw"), os.path.getsize(f"{self.ours}/disk.raw"))

    def test_shrinking(self):
        for image, size in (("a.qcow2", "33M"), ("a.qcow2", "-512"), ("small.qcow2", "-1k"), ("v2.qcow2", "1M"),
                            ("over.qcow2", "-64k"), ("a.qcow2", "1M")):
            with self.subTest(image=image, size=size):
                self.same("resize", image, size)
                self.same_disk(image)
                self.same("resize", "--shrink", image, size, code=0)
                self.sound(image)
                self.same_disk(image)


class Convert(Case):
    @classmethod
    def prepare(cls, folder):
        qemu("create", "-q", "-f", "qcow2", "a.qcow2", "64M", cwd=folder)
        write("a.qcow2", "write -P 1 0 128k", "write -P 2 1M 6000", "write -c -P 3 2M 64k", "write -z 3M 1M",
              "write -P 4 63M 1M", "write -P 0 20M 1M", cwd=folder)
        qemu("snapshot", "-c", "one", "a.qcow2", cwd=folder)
        write("a.qcow2", "write -P 9 0 1M", cwd=folder)
        qemu("snapshot", "-c", "two", "a.qcow2", cwd=folder)
        write("a.qcow2", "discard 0 32M", "write -P 5 64k 3k", cwd=folder)
        qemu("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "over.qcow2", "80M", cwd=folder)
        write("over.qcow2", "write -P 6 10M 200k", "write -z 63M 100k", "write -P 6 79M 1M", cwd=folder)
        for name, words in (("extended", "extended_l2=on"), ("small", "cluster_size=512"), ("v2", "compat=0.10"),
                            ("large", "cluster_size=2M"), ("zstd", "compression_type=zstd")):
            qemu("convert", "-c", "-O", "qcow2", "-o", words, "a.qcow2", f"{name}.qcow2", cwd=folder)
        with open(os.path.join(folder, "odd.raw"), "wb") as file:
            file.write(b"x" * 5000)
            file.seek(1 << 20)
            file.write(b"y" * 4096)
            file.truncate(3000001)
            file.seek(3000000)
            file.write(b"z")
        open(os.path.join(folder, "empty.raw"), "wb").close()

    SOURCES = ("a.qcow2", "over.qcow2", "extended.qcow2", "small.qcow2", "v2.qcow2", "large.qcow2", "zstd.qcow2",
               "odd.raw", "empty.raw")

    def test_every_source_to_raw(self):
        for source in self.SOURCES:
            with self.subTest(source=source):
                self.same("convert", "-O", "raw", source, "out.raw", code=0)
                self.assertEqual(os.path.getsize(f"{self.theirs}/out.raw"), os.path.getsize(f"{self.ours}/out.raw"))
                self.assertEqual(digest(f"{self.theirs}/out.raw"), digest(f"{self.ours}/out.raw"))
                theirs, ours = (os.stat(f"{folder}/out.raw").st_blocks for folder in (self.theirs, self.ours))
                self.assertLessEqual(ours, theirs + 16, "as sparse as qemu-img's")

    def test_every_source_to_qcow2(self):
        for source in self.SOURCES:
            for options in ("", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compat=0.10"):
                with self.subTest(source=source, options=options):
                    words = ("-o", options) if options else ()
                    self.same("convert", "-O", "qcow2", *words, source, "out.qcow2", code=0)
                    self.sound("out.qcow2")
                    self.same_disk("out.qcow2")
                    theirs, ours = (os.path.getsize(f"{folder}/out.qcow2") for folder in (self.theirs, self.ours))
                    self.assertLessEqual(ours, theirs + (4 << 20))

    def test_an_image_is_laid_out_in_the_order_of_the_disk(self):
        with open(f"{self.ours}/big.raw", "wb") as file:
            file.write(os.urandom(40 << 20))
        result = self.byre("convert", "-f", "raw", "-O", "qcow2", "big.raw", "big.qcow2")
        self.assertEqual(result.code, 0, str(result))
        report = json.loads(must(QEMU_IMG, "check", "--output=json", "big.qcow2", cwd=self.ours))
        self.assertEqual(report.get("fragmented-clusters", 0), 0)
        self.same_disk("big.qcow2", other=f"{self.ours}/big.raw", other_fmt="raw")

    def test_snapshots(self):
        for snapshot in ("one", "1", "two", "snapshot.name=one", "snapshot.id=2"):
            with self.subTest(snapshot=snapshot):
                self.same("convert", "-l", snapshot, "-O", "qcow2", "a.qcow2", "out.qcow2", code=0)
                self.same_disk("out.qcow2")
        self.same("convert", "-l", "three", "-O", "qcow2", "a.qcow2", "out.qcow2", code=1)

    def test_several_sources(self):
        self.same("convert", "-O", "qcow2", "a.qcow2", "odd.raw", "over.qcow2", "out.qcow2", code=0)
        self.sound("out.qcow2")
        self.same_disk("out.qcow2")

    def test_onto_a_backing_file(self):
        self.same("convert", "-O", "qcow2", "-B", "a.qcow2", "-F", "qcow2", "over.qcow2", "out.qcow2", code=0)
        self.sound("out.qcow2")
        self.same_disk("out.qcow2")
        theirs, ours = (json.loads(must(QEMU_IMG, "map", "--output=json", "out.qcow2", cwd=folder))
                        for folder in (self.theirs, self.ours))
        keys = ("start", "length", "depth", "present", "zero", "data")
        self.assertEqual([[e[k] for k in keys] for e in theirs], [[e[k] for k in keys] for e in ours])
        # A source without a backing file is zeros where it has nothing: also over data.
        for source, fmt in (("small.qcow2", "qcow2"), ("odd.raw", "raw")):
            self.same("convert", "-O", "qcow2", "-B", "over.qcow2", "-F", "qcow2", "-f", fmt, source, "alone.qcow2", code=0)
            self.same_disk("alone.qcow2", other=f"{self.ours}/{source}", other_fmt=fmt)

    def test_into_what_is_there(self):
        for target, fmt in (("t.qcow2", "qcow2"), ("t.raw", "raw")):
            for folder in (self.theirs, self.ours):
                qemu("create", "-q", "-f", fmt, target, "80M", cwd=folder)
                write(target, "write -P 0x55 0 80M", cwd=folder, fmt=fmt)
            with self.subTest(target=target):
                self.same("convert", "-n", "-O", fmt, "over.qcow2", target, code=0)
                self.same_disk(target, fmt=fmt)
                # What the target has beyond the source is zeros, too (peer-defects, E25).
                result = self.byre("convert", "-n", "-O", fmt, "a.qcow2", target)
                self.assertEqual(result.code, 0, str(result))
                self.same_disk(target, fmt=fmt, other=f"{self.ours}/a.qcow2", other_fmt="qcow2")
        self.same("convert", "-n", "-O", "raw", "a.qcow2", "empty.raw", code=1)

    def test_sparse_sizes(self):
        for size in ("0", "512", "64k", "1M"):
            with self.subTest(size=size):
                self.same("convert", "-S", size, "-O", "raw", "a.qcow2", "out.raw", code=0)
                self.assertEqual(digest(f"{self.theirs}/out.raw"), digest(f"{self.ours}/out.raw"))
                theirs, ours = (os.stat(f"{folder}/out.raw").st_blocks for folder in (self.theirs, self.ours))
                self.assertEqual(theirs >= 131072, ours >= 131072)
        self.same("convert", "-S", "0", "-O", "qcow2", "a.qcow2", "out.qcow2", code=0)
        self.same_disk("out.qcow2")

    def test_a_rate_is_kept(self):
        """-r: so many bytes are read a second; what reads as zeros costs nothing."""
        write("a.qcow2", "write -P 9 1M 3M", cwd=self.ours)
        must("truncate", "-s", "1G", os.path.join(self.ours, "zeros.raw"))
        for words, least, most in (("-r 2M a.qcow2", 1, PATIENCE), ("-r 1k -f raw zeros.raw", 0, 20), ("-r 0 a.qcow2", 0, PATIENCE)):
            with self.subTest(words=words):
                began = time.monotonic()
                must(os.path.join(self.names, "qemu-img"), "convert", "-O", "raw", *words.split(), "rate.raw", cwd=self.ours)
                self.assertTrue(least <= time.monotonic() - began <= most)
                source = words.split()[-1]
                must(QEMU_IMG, "compare", "-F", "raw", source, "rate.raw", cwd=self.ours)

    def test_copies_are_left_to_the_kernel(self):
        """-C: the same contents, and data that are zeros stay data."""
        for source, fmt in (("a.qcow2", "qcow2"), ("over.qcow2", "qcow2"), ("small.qcow2", "qcow2"), ("extended.qcow2", "qcow2"),
                            ("odd.raw", "raw"), ("empty.raw", "raw")):
            for target in ("raw", "qcow2"):
                ways = ("-C", "-C -W -m 16", "-C -t none -T none", "-C -t writethrough", "-C -r 1G")
                for words in ways if target == "raw" and source in ("a.qcow2", "odd.raw") else ways[:1]:
                    with self.subTest(source=source, target=target, words=words):
                        self.same("convert", *words.split(), "-f", fmt, "-O", target, source, "out", code=0)
                        self.same_disk("out", fmt=target)
                        if target == "qcow2":
                            self.sound("out")
        self.same("convert", "-C", "-f", "raw", "-O", "raw", "odd.raw", "empty.raw", "odd.raw", "out", code=0)
        self.same_disk("out", fmt="raw")
        for words in ("-n", "-n --target-is-zero"):
            for folder in (self.theirs, self.ours):
                qemu("create", "-q", "-f", "raw", "there.raw", "64M", cwd=folder)
            self.same("convert", "-C", *words.split(), "-f", "qcow2", "-O", "raw", "a.qcow2", "there.raw", code=0)
            self.same_disk("there.raw", fmt="raw")
        self.same("convert", "-C", "-p", "-f", "qcow2", "-O", "raw", "a.qcow2", "out", out=False, code=0)
        self.same("convert", "-C", "-B", "a.qcow2", "-F", "qcow2", "-f", "qcow2", "-O", "qcow2", "over.qcow2", "out.qcow2", code=0)
        self.same_disk("out.qcow2")
        for words in ("-C -S 4k", "-C -S 0", "-C -c", "-c -C -S 4k", "-C --salvage", "-C --salvage -c", "-C -m 0 -c", "-C -S x",
                      "-C -S 3", "-C -l foo"):
            self.same("convert", *words.split(), "-f", "qcow2", "-O", "qcow2", "a.qcow2", "new", code=1)
        self.same("convert", "-C", "-c", "a.qcow2", code=1)
        self.same("convert", "-C", "-c", "-O", "bad", "a.qcow2", "new", code=1)

    def test_the_kernel_copies(self):
        """What passes through byre itself is what the kernel would not take, and nothing of these."""
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        for source, fmt in (("a.qcow2", "qcow2"), ("odd.raw", "raw")):
            log = f"{self.ours}/calls"
            run("strace", "-f", "-o", log, "-e", "trace=copy_file_range", f"{self.names}/byre", "convert", "-C", "-f", fmt, "-O",
                "raw", source, "kernel.raw", cwd=self.ours)
            with open(log) as file:
                copied = [int(count) for count in re.findall(r"copy_file_range\(.* = (\d+)$", file.read(), re.M)]
            if not copied:
                self.skipTest("there is no copy_file_range here")
            self.assertGreater(sum(copied), 1000)
            self.same_disk("kernel.raw", fmt="raw", other=f"{self.ours}/{source}", other_fmt=fmt)

    def test_ways_to_run(self):
        for words in ("-W", "-m 1", "-m 16 -W", "-t none -T none", "-t writethrough", "-t directsync", "-t writeback", "-U",
                      "-q", "-n --target-is-zero"):
            with self.subTest(words=words):
                if "-n" in words:
                    for folder in (self.theirs, self.ours):
                        qemu("create", "-q", "-f", "qcow2", "out.qcow2", "80M", cwd=folder)
                self.same("convert", *words.split(), "-O", "qcow2", "over.qcow2", "out.qcow2", code=0)
                self.sound("out.qcow2")
                self.same_disk("out.qcow2")

    def test_progress(self):
        theirs, ours = self.both("convert", "-p", "-O", "raw", "a.qcow2", "out.raw")
        for result in (theirs, ours):
            self.assertRegex(result.out, r"\A    \(0\.00/100%\)\r(    \(\d+\.\d\d/100%\)\r)*    \(100\.00/100%\)\r\n\Z")
        self.same("convert", "-pq", "-O", "raw", "a.qcow2", "out.raw", code=0)

    def test_progress_on_a_terminal_is_in_bytes(self):
        def said(program):
            primary, terminal = os.openpty()
            done = subprocess.run([program, "convert", "-p", "-f", "qcow2", "-O", "raw", "a.qcow2", "tty.raw"], cwd=self.ours,
                                  stdin=subprocess.DEVNULL, stdout=terminal, stderr=subprocess.PIPE, timeout=PATIENCE)
            os.close(terminal)
            text = b""
            with contextlib.suppress(OSError):
                while part := os.read(primary, 4096):
                    text += part
            os.close(primary)
            self.assertEqual(done.returncode, 0, done.stderr)
            os.unlink(f"{self.ours}/tty.raw")
            return text.decode()
        size = json.loads(must(QEMU_IMG, "info", "--output=json", "a.qcow2", cwd=self.ours))["virtual-size"] >> 20
        self.assertRegex(said(os.path.join(self.names, "byre")),
                         rf"\r\[=+\] 100 %, {size} MiB of {size} MiB, [\d.]+ [KMG]iB/s\x1b\[K\r?\n\Z")
        self.assertRegex(said(os.path.join(self.names, "qemu-img")), r"\(100\.00/100%\)")

    def test_targets_that_are_no_files(self):
        os.mkfifo(f"{self.ours}/fifo")
        os.mkdir(f"{self.ours}/folder")
        for target in ("fifo", "folder", "/dev/null", "nix/x.raw"):
            for words in (("convert", "--force", "-O", "raw", "a.qcow2", target),
                          ("convert", "-n", "-O", "raw", "a.qcow2", target), ("create", "--force", "-f", "raw", target, "1M")):
                with self.subTest(words=words):
                    result = self.byre(*words)
                    self.assertIn(result.code, (64, 66, 79), str(result))
                    self.assertRegex(result.err, "neither a regular file nor a block device|No such file|has 0 bytes|smaller than")
        self.assertEqual(sorted(os.listdir(f"{self.ours}/folder")), [])

    def test_a_source_is_no_target(self):
        before = digest(f"{self.ours}/a.qcow2")
        self.same("convert", "-O", "qcow2", "a.qcow2", "a.qcow2", err=False, code=1)
        os.link(f"{self.ours}/a.qcow2", f"{self.ours}/hard")
        for words in (("--force", "a.qcow2", "a.qcow2"), ("--force", "a.qcow2", "hard"), ("-n", "a.qcow2", "hard"),
                      ("--force", "file:a.qcow2", "./a.qcow2")):
            result = self.byre("convert", "-O", "qcow2", *words)
            self.assertEqual(result.code, 64, str(result))
            self.assertIn("source and target are the same file", result.err)
        result = self.byre("convert", "-O", "qcow2", "-o", "data_file=hard", "a.qcow2", "new.qcow2")
        self.assertIn("source and data file are the same file", result.err)
        self.assertFalse(os.path.exists(f"{self.ours}/new.qcow2"))
        self.assertEqual(before, digest(f"{self.ours}/a.qcow2"))

    def test_a_truncated_image_is_an_error(self):
        # QEMU reads what lies behind the end of the file as zeros (peer-defects, E20).
        os.truncate(f"{self.ours}/large.qcow2", os.path.getsize(f"{self.ours}/large.qcow2") - (2 << 20))
        os.truncate(f"{self.ours}/small.qcow2", os.path.getsize(f"{self.ours}/small.qcow2") // 2)
        result = self.byre("convert", "-O", "raw", "small.qcow2", "out.raw")
        self.assertNotEqual(result.code, 0, str(result))

    def test_a_failing_target_leaves_an_exit_code(self):
        result = run("bash", "-c", f"ulimit -f 2048; exec {self.names}/byre convert -O raw -S 0 a.qcow2 small.raw",
                     cwd=self.ours)
        self.assertEqual(result.code, 79, str(result))
        self.assertIn("File too large", result.err)


class Guessing(Case):
    """A format that was guessed is guessed strictly, and never made wrong by a guest."""

    def image(self, data, name="x"):
        with open(f"{self.ours}/{name}", "wb") as file:
            file.write(data + bytes(65536 - len(data)))
        return name

    def test_foreign_formats_are_not_taken_for_raw(self):
        for magic in (b"KDMV", b"COWD", b"vhdxfile", b"conectix", b"LUKS\xba\xbe", b"QED\0", b"QFI\xfb\0\0\0\0",
                      b"WithoutFreeSpace", bytes(0x40) + b"\x7f\x10\xda\xbe"):
            with self.subTest(magic=magic):
                result = self.byre("info", self.image(magic))
                self.assertEqual(result.code, 69, str(result))
                self.assertRegex(result.err, "not supported|which there is not")
                self.assertEqual(self.byre("info", "-f", "raw", "x").code, 0)

    def test_what_can_be_two_things_needs_its_format(self):
        qemu("create", "-q", "-f", "qcow2", "x", "1M", cwd=self.ours)
        with open(f"{self.ours}/x", "r+b") as file:
            file.seek(510)
            file.write(b"\x55\xaa")
        result = self.byre("info", "x")
        self.assertEqual(result.code, 77, str(result))
        self.assertIn("give its format", result.err)
        self.assertEqual(self.byre("info", "-f", "raw", "x").code, 0)

    def test_names_that_are_no_paths_are_refused(self):
        for name, code in (("json:{}", 64), ("rbd:localhost", 69), ("http://x/y", 69), ("fd:3", 69),
                           ("null-co://x", 64)):
            with self.subTest(name=name):
                result = self.byre("info", name)
                self.assertEqual(result.code, code, str(result))
                if code == 64:
                    continue
                self.assertRegex(result.err, "not supported|Unknown protocol")


class FormatOfANewDisk(Case):
    """Without -f or -O byre goes by the suffix, and QEMU makes raw disks."""

    @classmethod
    def prepare(cls, folder):
        qemu("create", "-q", "-f", "qcow2", "base.qcow2", "1M", cwd=folder)
        qemu("create", "-q", "-f", "raw", "a.raw", "1M", cwd=folder)
        write("base.qcow2", "write -P 3 0 64k", cwd=folder)

    def format_of(self, name):
        with open(f"{self.ours}/{name}", "rb") as file:
            return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"

    def test_the_suffix_decides(self):
        for name, fmt in (("x.qcow2", "qcow2"), ("x.QCOW2", "qcow2"), ("x.qcow", "qcow2"), ("x.raw", "raw"),
                          ("x.img", "raw"), ("x.iso", "raw"), ("x.bin", "raw"), ("x.dd", "raw"), ("a.b.qcow2", "qcow2"),
                          ("sub.qcow2/x.raw", "raw")):
            os.makedirs(f"{self.ours}/sub.qcow2", exist_ok=True)
            for words in (("create", name, "1M"), ("convert", "base.qcow2", name), ("convert", "a.raw", name)):
                with self.subTest(words=words):
                    result = self.byre(*words)
                    self.assertEqual(result.code, 0, str(result))
                    self.assertEqual(result.err, "")
                    self.assertEqual(self.format_of(name), fmt)
                    os.unlink(f"{self.ours}/{name}")

    def test_other_names_need_a_format(self):
        for name in ("disk", "x.vmdk", "x.qcow2.bak", ".qcow2", "sub.qcow2/disk", "x."):
            for words, option in ((("create", name, "1M"), "-f"), (("convert", "a.raw", name), "-O")):
                result = self.byre(*words)
                self.assertEqual(result.code, 64, str(result))
                self.assertIn(f"give {option} qcow2 or {option} raw", result.err)
                self.assertFalse(os.path.exists(f"{self.ours}/{name}"))
        for fmt in ("raw", "qcow2"):
            self.assertEqual(self.byre("create", "-f", fmt, "disk", "1M").code, 0)
            self.assertEqual(self.format_of("disk"), fmt)
            os.unlink(f"{self.ours}/disk")
        # What is given counts.
        self.assertEqual(self.byre("create", "-f", "raw", "x.qcow2", "1M").code, 0)
        self.assertEqual(self.format_of("x.qcow2"), "raw")

    def test_what_is_there_must_agree(self):
        os.rename(f"{self.ours}/base.qcow2", f"{self.ours}/there.raw")
        result = self.byre("convert", "-n", "a.raw", "there.raw")
        self.assertEqual(result.code, 64, str(result))
        self.assertIn("holds a qcow2 disk, and its name says raw; give -O", result.err)
        os.rename(f"{self.ours}/there.raw", f"{self.ours}/there")
        result = self.byre("convert", "-n", "a.raw", "there")
        self.assertEqual(result.code, 0, str(result))
        self.assertEqual(self.format_of("there"), "qcow2")
        self.same_disk("there", other=f"{self.ours}/a.raw", other_fmt="raw")
        self.assertEqual(self.byre("convert", "-n", "a.raw", "nix.raw").code, 66)

    def test_as_qemu_img_it_is_raw(self):
        for words in (("create", "x.qcow2", "1M"), ("convert", "a.raw", "y.qcow2")):
            self.same(*words, code=0)
        self.assertEqual(self.format_of("x.qcow2"), "raw")
        self.same("create", "x.raw", "1M", code=0)
        self.same("create", "x", "1M", code=0)

    def test_an_image_is_no_raw_backing_file(self):
        for words in (("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "raw", "o.qcow2"),
                      ("convert", "-O", "qcow2", "-B", "base.qcow2", "-F", "raw", "a.raw", "o.qcow2")):
            with self.subTest(words=words):
                result = self.byre(*words)
                self.assertEqual(result.code, 64, str(result))
                self.assertIn("begins like a qcow2 image", result.err)
                self.assertFalse(os.path.exists(f"{self.ours}/o.qcow2"))
                result = self.byre(words[0], "--force", *words[1:])
                self.assertEqual(result.code, 0, str(result))
                self.assertIn("warning: ", result.err)
                os.unlink(f"{self.ours}/o.qcow2")
        self.same("create", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "o.qcow2", code=0)

    def test_nor_is_it_one_where_nobody_opens_it(self):
        unopened = ("create", "-u", "-f", "qcow2", "-b", "base.qcow2", "-F", "raw", "u.qcow2", "1M")
        result = self.byre(*unopened)
        self.assertEqual(result.code, 64, str(result))
        self.assertIn("begins like a qcow2 image", result.err)
        self.assertIn("-F qcow2", result.err)
        self.same(*unopened, code=0)  # Under qemu-img's name -u looks at nothing.
        self.assertIn("warning: ", self.byre("create", "--force", *unopened[1:]).err)
        for name in ("absent", "nbd:localhost:1", "a.raw"):  # What cannot be opened is nobody's concern.
            with self.subTest(name):
                result = self.byre("create", "--force", "-u", "-f", "qcow2", "-b", name, "-F", "raw", "v.qcow2", "1M")
                self.assertEqual((result.code, result.err), (0, ""), str(result))
        for options in ("backing_fmt=raw", "backing_file=base.qcow2,backing_fmt=raw"):
            for named in ("base.qcow2",) if options == "backing_fmt=raw" else ("base.qcow2", "a.raw"):
                with self.subTest(options=options, named=named):
                    self.byre("create", "--force", "-u", "-f", "qcow2", "-b", named, "-F", "raw", "v.qcow2", "1M")
                    if named != "a.raw":
                        result = self.byre("amend", "-o", options, "v.qcow2")
                        self.assertEqual(result.code, 64, str(result))
                        self.assertIn("begins like a qcow2 image", result.err)
                        self.assertIn("-o backing_fmt=qcow2", result.err)
                    result = self.byre("amend", "--force", "-o", options, "v.qcow2")
                    self.assertEqual(result.code, 0, str(result))
                    self.assertIn("begins like a qcow2 image", result.err)
        self.byre("create", "--force", "-u", "-f", "qcow2", "-b", "absent", "-F", "raw", "v.qcow2", "1M")
        result = self.byre("amend", "-o", "backing_fmt=raw", "v.qcow2")
        self.assertEqual(result.code, 0, str(result))
        self.assertNotIn("begins like", result.err)
        theirs, ours = self.both("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "raw", "o.qcow2")
        self.assertEqual((theirs.code, theirs.out), (ours.code, ours.out))
        self.assertIn("warning: ", ours.err)

    def test_a_snapshot_has_a_name_that_tells(self):
        self.assertEqual(self.byre("snapshot", "-c", "one", "base.qcow2").code, 0)
        self.assertEqual(self.byre("snapshot", "-c", "two", "base.qcow2").code, 0)
        for words in (("-c", ""), ("-c", "one"), ("-c", "1"), ("-c", "2"), ("--rename", "one", "--to", "two"),
                      ("--rename", "one", "--to", ""), ("--rename", "one", "--to", "2")):
            with self.subTest(words=words):
                before = digest(f"{self.ours}/base.qcow2")
                result = self.byre("snapshot", *words, "base.qcow2")
                self.assertEqual(result.code, 64, str(result))
                self.assertRegex(result.err, "needs a name|is already the (name|id) of snapshot")
                self.assertEqual(before, digest(f"{self.ours}/base.qcow2"))
        # Its own id tells it from the others.
        self.assertEqual(self.byre("snapshot", "--rename", "one", "--to", "1", "base.qcow2").code, 0)
        result = run(os.path.join(self.names, "qemu-img"), "snapshot", "-c", "two", "base.qcow2", cwd=self.ours)
        self.assertEqual(result.code, 0, str(result))
        self.assertIn("warning: 'two' is already the name of snapshot 2", result.err)


class Serve(Case):
    """byre serve, and byre as qemu-nbd; what clients get from it is in nbd_test.py."""

    @classmethod
    def prepare(cls, folder):
        os.symlink(BYRE, os.path.join(cls.names, "qemu-nbd"))
        qemu("create", "-q", "-f", "qcow2", "a.qcow2", "64M", cwd=folder)
        write("a.qcow2", "write -P 5 0 1M", cwd=folder)
        qemu("snapshot", "-c", "five", "a.qcow2", cwd=folder)
        write("a.qcow2", "write -P 6 0 1M", cwd=folder)

    def uri(self, path="a.qcow2.sock", name=""):
        return f"nbd+unix:///{name}?socket={self.ours}/{path}"

    @contextlib.contextmanager
    def serving(self, *words, ends_by=signal.SIGTERM, before=(), **popen):
        """Gives what it said up to "ready"; afterwards it must have ended well and left the image sound."""
        server = subprocess.Popen([*before, f"{self.names}/byre", "serve", *words], cwd=self.ours, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, **popen)
        try:
            said = ""
            while not said.splitlines() or not said.splitlines()[-1].startswith("ready: "):
                line = server.stdout.readline()
                if not line:
                    raise AssertionError(f"ended before it was ready: {said}{server.communicate()[1]}")
                said += line
            yield said
            server.send_signal(ends_by)
            out, err = server.communicate(timeout=PATIENCE)
        finally:
            server.kill()
            server.communicate()
        self.assertEqual(server.returncode, 0, out + err)
        self.assertIn("ended:", out)
        self.sound("a.qcow2")

    def test_signals_end_it_in_order(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            with self.subTest(number=number), self.serving("a.qcow2", ends_by=number):
                must("qemu-io", "-f", "raw", "-c", "write -P 7 3M 100k", self.uri(), cwd=self.ours)
            self.assertFalse(os.path.exists(f"{self.ours}/a.qcow2.sock"))

    def test_says_how_to_attach_once_it_listens(self):
        with self.serving("a.qcow2", "--port", "0", "--export", "a b") as said:
            self.assertIn(self.uri(name="a%20b"), said)
            for tool in ("nbdcopy ", "qemu-system-x86_64 ", "nbd-client "):
                self.assertIn(tool, said)
            tcp = re.search(r"^nbd://127\.0\.0\.1:\d+/\S*", said, re.M).group()
            for uri in (self.uri(name="a%20b"), tcp):
                self.assertEqual(must("nbdinfo", "--size", uri).strip(), str(64 << 20))

    def test_makes_the_image_if_there_is_none(self):
        with self.serving("--create", "new.qcow2", "--size", "3M"):
            self.assertEqual(must("nbdinfo", "--size", self.uri("new.qcow2.sock")).strip(), str(3 << 20))
        self.sound("new.qcow2")
        with self.serving("--create", "new.qcow2", "--size", "3M"):
            pass
        self.assertIn("not 4194304", self.byre("serve", "--create", "new.qcow2", "--size", "4M").err)
        with self.serving("--create", "default.qcow2"):
            self.assertEqual(must("nbdinfo", "--size", self.uri("default.qcow2.sock")).strip(), str(10 << 30))
        self.assertEqual(self.byre("serve", "nix").code, 66)

    def test_what_may_not_be_written(self):
        before = digest(f"{self.ours}/a.qcow2")
        for words, value in (("-r", b"\6"), ("-l five", b"\5"), ("-l 1", b"\5")):
            with self.subTest(words=words), self.serving(*words.split(), "a.qcow2") as said:
                self.assertIn("read-only", said)
                must("nbdcopy", self.uri(), "copy.raw", cwd=self.ours)
                with open(f"{self.ours}/copy.raw", "rb") as file:
                    self.assertEqual(file.read(1), value)
                self.assertIn("is_read_only: true", must("nbdinfo", self.uri()))
        self.assertEqual(before, digest(f"{self.ours}/a.qcow2"))

    def test_an_image_has_one_writer(self):
        with self.serving("a.qcow2"):
            for words in (("serve", "a.qcow2"), ("resize", "a.qcow2", "+1M"), ("info", "a.qcow2")):
                result = self.byre(*words)
                self.assertEqual(result.code, 75, str(result))
                self.assertRegex(result.err, r"by byre \(pid \d+\)")
            self.assertEqual(self.byre("info", "-U", "a.qcow2").code, 0)

    def test_sockets_that_were_passed_in(self):
        path = f"{self.ours}/passed.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            passed = listener.fileno()

            activate = f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&{passed}'
            with self.serving("a.qcow2", before=("bash", "-c", activate, "-"), pass_fds=(passed,)) as said:
                self.assertIn(self.uri("passed.sock"), said)
                self.assertEqual(must("nbdinfo", "--size", self.uri("passed.sock")).strip(), str(64 << 20))
                self.assertFalse(os.path.exists(f"{self.ours}/a.qcow2.sock"))

    def test_qemu_nbd_goes_to_the_background_and_ends_with_its_last_client(self):
        nbd = os.path.join(self.names, "qemu-nbd")
        result = run(nbd, "--fork", "--pid-file", "pid", "-k", f"{self.ours}/s.sock", "-x", "e", "-f", "qcow2", "a.qcow2",
                     cwd=self.ours)
        self.assertEqual((result.code, result.out, result.err), (0, "", ""))
        with open(f"{self.ours}/pid") as file:
            pid = int(file.read())
        os.kill(pid, 0)
        self.assertEqual(must("nbdinfo", "--size", self.uri("s.sock", "e")).strip(), str(64 << 20))
        deadline = time.monotonic() + PATIENCE
        while os.path.exists(f"{self.ours}/pid"):
            self.assertLess(time.monotonic(), deadline, "still there")
            time.sleep(0.01)
        self.sound("a.qcow2")
        result = run(nbd, "--fork", "-k", f"{self.ours}/s.sock", "nix", cwd=self.ours)
        self.assertEqual(result.code, 1)
        self.assertIn("qemu-nbd: Failed to blk_new_open 'nix': Could not open 'nix'", result.err)

    def test_qemu_nbd_refuses_what_byre_has_not(self):
        nbd = os.path.join(self.names, "qemu-nbd")
        for words in ("-c /dev/nbd0", "-d", "-o x", "-s -l five", "-T x", "-B b", "-L", "--tls-creds x", "--object secret,id=a",
                      "--selinux-label x", "--image-opts", "--detect-zeroes=unmap", "--aio=fast", "--cache=fast",
                      "-p 1 -k x", "-e x", ""):
            with self.subTest(words=words):
                result = run(nbd, *words.split(), *(["a.qcow2"] if words else []), cwd=self.ours)
                self.assertEqual(result.code, 1, str(result))
                self.assertTrue(result.err.startswith("qemu-nbd: "), str(result))


if __name__ == "__main__":
    sys.exit(unittest.main())
