#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Disks named by their devices (json:{...}, --image-opts, open -o), through QEMU's tools and through byre under their names.

Standard output, standard error and exit codes must be equal; where byre differs on purpose, docs/compatibility.md
says so, and what it says is tested by itself.

    BYRE=build/release/byre python3 tests/interop/device_tree_test.py
"""
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))
import peers  # noqa: E402,F401  (puts the real programs in front of PATH)

BYRE = pathlib.Path(os.environ.get("BYRE", ROOT / "build" / "release" / "byre")).resolve()
REAL = {name: shutil.which(name) for name in ("qemu-img", "qemu-io")}
TIMEOUT = 120
MIB = 1 << 20
FILE = {"driver": "file", "filename": "disk.qcow2"}
QCOW2 = {"driver": "qcow2", "file": FILE}


def name(tree):
    return "json:" + json.dumps(tree)


def comparable(text):
    text = re.sub(r"1 ops; .* \(.*/sec and .* ops/sec\)", "1 ops; TIME (SPEED)", text)
    text = re.sub(r"^disk size: \S+ \S+$", "disk size: SIZE", text, flags=re.M)
    # QEMU explains suffixes behind the message.
    return re.sub(r"\nOptional suffix k, M.*\nand exabytes, respectively\.", "", text)


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="byre-tree-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.programs = {"qemu": REAL, "byre": {}}
        for program in REAL:
            link = self.folder / program
            link.symlink_to(BYRE)
            self.programs["byre"][program] = link
        for who in self.programs:
            (self.folder / who).mkdir()
            for words in (["create", "-q", "-f", "qcow2", "base.qcow2", "1M"],
                          ["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"],
                          ["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"],
                          ["create", "-q", "-f", "raw", "disk.raw", "1M"]):
                subprocess.run([REAL["qemu-img"], *words], cwd=self.folder / who, check=True)
            for at, image in ((1, "base.qcow2"), (2, "disk.qcow2")):
                subprocess.run([REAL["qemu-io"], "-f", "qcow2", "-c", f"write -P {at} 0 64k", image], check=True,
                               cwd=self.folder / who, stdout=subprocess.DEVNULL)

    def run_as(self, who, program, *words, stdin="", limit=None, env=None):
        def limited():
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return subprocess.run([self.programs[who][program], *words], cwd=self.folder / who, input=stdin, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=TIMEOUT,
                              preexec_fn=limited if limit else None, env={**os.environ, **(env or {})})

    def same(self, program, *words, code=None):
        with self.subTest(program=program, words=words):
            told = []
            for who in ("qemu", "byre"):
                done = self.run_as(who, program, *words)
                told.append({"code": done.returncode, "out": comparable(done.stdout).splitlines(),
                             "err": comparable(done.stderr).splitlines()})
            self.assertEqual(*told)
            if code is not None:
                self.assertEqual(told[0]["code"], code)

    def refused(self, why, program, *words, code=1):
        """By byre, where QEMU has no such limit."""
        with self.subTest(words=words):
            done = self.run_as("byre", program, *words)
            self.assertEqual(done.returncode, code, done)
            self.assertIn(why, done.stderr)


class Names(Case):
    def test_info_of_json_names(self):
        for tree in (QCOW2, {"file": FILE}, {"driver": "qcow2", "file.filename": "disk.qcow2"},
                     {"driver": "qcow2", "file": {"filename": "disk.qcow2", "locking": "off", "aio": "threads"}},
                     {**QCOW2, "backing": None, "lazy-refcounts": True, "cache": {"direct": False, "no-flush": False}},
                     {**QCOW2, "read-only": True, "force-share": True, "discard": "unmap", "detect-zeroes": "on"},
                     {"driver": "raw", "file": {"driver": "file", "filename": "disk.raw"}},
                     {"driver": "qcow2", "file.filename": "top.qcow2"}):
            self.same("qemu-img", "info", name(tree), code=0)
        self.same("qemu-img", "info", "json:{'driver':'qcow2','file':{'driver':'file','filename':'disk.qcow2'}}", code=0)

    def test_errors_have_the_same_words(self):
        for tree in ({"driver": "foo"}, {**QCOW2, "foo": 1}, {"driver": "qcow2", "file": {**FILE, "foo": 2}},
                     {"driver": "qcow2"}, {"driver": "qcow2", "file": "node"}, {"driver": "qcow2", "file": {"driver": "file"}},
                     {}, {"filename": "disk.raw"}, {"driver": ["a"]}, {**QCOW2, "lazy-refcounts": "maybe"},
                     {**QCOW2, "lazy-refcounts": 1}, {"driver": "raw", "offset": -1, "file": FILE},
                     {"driver": "raw", "offset": "many", "file": FILE}, {**QCOW2, "cache": {"direct": "x"}},
                     {**QCOW2, "discard": "x"}, {**QCOW2, "detect-zeroes": "x"},
                     {**QCOW2, "detect-zeroes": "unmap", "discard": "ignore"},
                     {**QCOW2, "cache": "x"}, {**QCOW2, "l2-cache-size": "2M", "cache-size": "1M"},
                     {"driver": "compress"}, {"driver": "compress", "file": {"driver": "null-co"}},
                     {"driver": "raw", "size": 3, "file": {"driver": "null-co", "size": 4096}},
                     {"driver": "raw", "offset": 8192, "file": {"driver": "null-co", "size": 4096}},
                     {"driver": "raw", "offset": 1024, "size": 4096, "file": {"driver": "null-co", "size": 4096}},
                     {"driver": "raw", "lazy-refcounts": True, "file": {"driver": "null-co"}},
                     {"lazy-refcounts": True, "file": {"driver": "null-co"}},
                     {"driver": "null-co", "node-name": "1x"}, {"driver": "null-co", "file": {"driver": "null-co"}},
                     {"driver": "raw", "node-name": "a", "file": {"driver": "null-co", "node-name": "a"}},
                     {"driver": "blkdebug"}, {"driver": "blkdebug", "image": {"driver": "null-co"}, "config": "/nonexist"},
                     {"driver": "blkdebug", "image": {"driver": "null-co"}, "inject-error": 5},
                     {"driver": "blkdebug", "image": {"driver": "null-co"}, "inject-error.1.event": "read_aio"},
                     {"driver": "host_device", "filename": "disk.raw"}, {"driver": "file", "filename": "/dev/null"},
                     {"driver": "raw", "file": {"driver": "null-co"}, "auto-read-only": "x"}):
            self.same("qemu-img", "info", name(tree), code=1)
        for text in ("json:", "json:[]"):
            self.same("qemu-img", "info", text, code=1)

    def test_image_opts(self):
        for text in ("driver=qcow2,file.filename=disk.qcow2", "file.filename=disk.qcow2",
                     "driver=qcow2,file.driver=file,file.filename=disk.qcow2"):
            self.same("qemu-img", "info", "--image-opts", text, code=0)
        for text in ("filename=disk.qcow2", "a", "", "driver=raw,file=disk.raw", "driver=qcow2,file.driver=file",
                     "driver=null-co,size=1M,foo=1", "driver=qcow2,file.filename=disk.qcow2,foo=1"):
            self.same("qemu-img", "info", "--image-opts", text, code=1)
        self.same("qemu-img", "info", "--image-opts", "-f", "qcow2", "driver=qcow2,file.filename=disk.qcow2", code=1)

    def test_each_command_takes_such_names(self):
        image, opts = name(QCOW2), "driver=qcow2,file.filename=disk.qcow2"
        for words in (["check", image], ["check", "--image-opts", opts],
                      ["check", "--image-opts", "driver=qcow2,file.driver=blkdebug,file.image.filename=disk.qcow2"],
                      ["map", image], ["map", "--output=json", "--image-opts", opts],
                      ["map", "--output=json", name({"driver": "raw", "offset": 512, "size": 1024,
                                                     "file": {"driver": "file", "filename": "disk.raw"}})],
                      ["map", "--output=json", name({"driver": "null-co", "size": MIB, "read-zeroes": True})],
                      ["snapshot", "-c", "one", image], ["snapshot", "-c", "two", "--image-opts", opts],
                      ["snapshot", "-d", "one", image],
                      ["resize", "--image-opts", opts, "2M"], ["resize", "-q", "--shrink", image, "1M"],
                      ["amend", "-o", "lazy_refcounts=on", "--image-opts", opts],
                      ["bitmap", "--add", "--image-opts", opts, "b0"], ["bitmap", "--remove", image, "b0"],
                      ["convert", "--image-opts", opts, "-O", "raw", "out.raw"],
                      ["convert", image, "-O", "qcow2", "out.qcow2"],
                      ["convert", "-n", "--target-image-opts", "disk.raw", "driver=raw,file.filename=out.raw"],
                      ["convert", "-n", "disk.raw", name({"driver": "raw", "file.filename": "out.raw"})]):
            self.same("qemu-img", *words, code=0)
        self.same("qemu-img", "check", "--image-opts", "driver=raw,file.filename=disk.raw", code=63)
        self.same("qemu-img", "convert", "--target-image-opts", "disk.raw", "driver=raw,file.filename=out.raw", code=1)
        for who in self.programs:
            subprocess.run([REAL["qemu-img"], "compare", "-f", "raw", "-F", "raw", "disk.raw", "out.raw"], check=True,
                           cwd=self.folder / who, stdout=subprocess.DEVNULL)
            subprocess.run([REAL["qemu-img"], "check", "-q", "disk.qcow2"], check=True, cwd=self.folder / who)
        # No device is made.
        self.refused("json", "qemu-img", "create", "-f", "qcow2", name({"driver": "file", "filename": "zz"}), "1M")
        self.refused("json", "qemu-img", "convert", "disk.raw", name({"driver": "raw", "file.filename": "zz"}))

    def test_requests_go_through_the_tree(self):
        top = {"driver": "qcow2", "file.filename": "top.qcow2"}
        for tree, commands in (
                (QCOW2, ["read -P 2 0 64k", "write -P 7 64k 64k", "read -P 7 64k 64k"]),
                (top, ["read -P 1 0 64k"]),
                ({**top, "backing": {"driver": "qcow2", "file.filename": "disk.qcow2"}},
                 ["read -P 2 0 64k", "write -P 9 512 512", "read -P 9 512 512", "read -P 2 0 512"]),
                ({**top, "backing": None}, ["read -P 0 8k 56k"]),
                ({"driver": "raw", "offset": "64k", "size": "64k", "file": {"driver": "file", "filename": "disk.raw"}},
                 ["length", "write -P 3 0 64k", "write 0 65k", "read -P 3 0 64k"]),
                ({"driver": "raw", "file": {"driver": "file", "filename": "disk.raw"}},
                 ["read -P 0 0 64k", "read -P 3 64k 64k"]),
                ({"driver": "compress", "file": QCOW2}, ["write -P 5 128k 64k", "read -P 5 128k 64k", "read -P 7 64k 64k"]),
                ({"driver": "blkdebug", "image": QCOW2, "inject-error": [{"event": "pwritev", "once": True}]},
                 ["write 0 512", "write -P 1 0 512"]),
                ({"driver": "null-co", "size": "1M", "read-zeroes": True},
                 ["length", "read -P 0 0 64k", "write 1M 512", "write 0 64k"])):
            words = [word for command in commands for word in ("-c", command)]
            self.same("qemu-io", *words, name(tree))
        for who in self.programs:
            subprocess.run([REAL["qemu-img"], "check", "-q", "disk.qcow2"], check=True, cwd=self.folder / who)
        for text in ("driver=null-co,size=1M,read-only=on", "driver=raw,file.driver=null-co,file.read-only=on",
                     "driver=raw,file.driver=null-co,force-share=on", "driver=qcow2,file.driver=qcow2",
                     "driver=qcow2,read-only=on,file.filename=disk.qcow2"):
            self.same("qemu-io", "-c", "length", "--image-opts", text, code=1)
        for text in ("driver=null-co,size=1M", "driver=raw,file.driver=null-co,file.size=1000"):
            self.same("qemu-io", "-c", "length", "--image-opts", text, code=0)
        self.same("qemu-io", "-c", "length", "null-co://", code=0)

    def test_zeros_are_detected_on_any_node(self):
        for tree in ({**QCOW2, "detect-zeroes": "on"}, {"driver": "raw", "detect-zeroes": "on", "file": QCOW2}):
            for who in self.programs:
                done = self.run_as(who, "qemu-io", "-c", "write -P 0 0 64k", name(tree))
                self.assertEqual(done.returncode, 0, done)
                told = subprocess.run([REAL["qemu-img"], "map", "--output=json", "disk.qcow2"], text=True, check=True,
                                      cwd=self.folder / who, stdout=subprocess.PIPE).stdout
                self.assertTrue(json.loads(told)[0]["zero"], told)


class NamedByImages(Case):
    def make(self, tree, image="over.qcow2"):
        for who in self.programs:
            subprocess.run([REAL["qemu-img"], "create", "-q", "-u", "-f", "qcow2", "-b", name(tree), "-F",
                            tree.get("driver", "qcow2"), image, "1M"], check=True, cwd=self.folder / who)

    def test_a_tree_is_opened_where_any_file_may_be(self):
        self.make(QCOW2)
        for words in (["info", "over.qcow2"], ["info", "--output=json", "over.qcow2"], ["check", "over.qcow2"]):
            done = [self.run_as(who, "qemu-img", *words) for who in ("qemu", "byre")]
            self.assertEqual(*(re.sub(r'"actual-size": \d+', "", comparable(one.stdout)) for one in done))
        for words in (["info", "--backing-chain", "over.qcow2"], ["map", "over.qcow2"], ["map", "--output=json", "over.qcow2"]):
            self.same("qemu-img", *words, code=0)
        self.same("qemu-io", "-f", "qcow2", "-c", "read -P 2 0 64k", "-c", "write -P 4 0 512", "-c", "read -P 2 512 512",
                  "over.qcow2", code=0)

    def test_other_policies_refuse_it_with_advice(self):
        self.make(QCOW2)
        for words in (["info", "--backing-chain"], ["map"]):
            for policy in ("same-directory", "nothing"):
                done = subprocess.run([BYRE, *words, "--follow", policy, "over.qcow2"], cwd=self.folder / "byre", text=True,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                self.assertEqual(done.returncode, 77, done)
                self.assertIn("--follow any", done.stderr)
        done = subprocess.run([BYRE, "info", "over.qcow2"], cwd=self.folder / "byre", text=True, stdout=subprocess.PIPE)
        self.assertEqual(done.returncode, 0)

    def test_an_image_names_readers_of_files_only(self):
        for tree in ({"driver": "blkdebug", "image": FILE}, {"driver": "null-co"}, {"driver": "compress", "file": QCOW2},
                     {"driver": "raw", "file": {"driver": "null-co"}}):
            self.make(tree)
            self.refused("may not be named by an image", "qemu-io", "-f", "qcow2", "-c", "read 0 512", "over.qcow2")

    def test_a_circle_ends(self):
        self.make({"driver": "qcow2", "file": {"driver": "file", "filename": "over.qcow2"}})
        self.refused("circle", "qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512", "over.qcow2")
        done = self.run_as("byre", "qemu-img", "map", "over.qcow2")
        self.assertEqual(done.returncode, 1, done)


class Differences(Case):
    """Rows of docs/compatibility.md."""

    def test_what_is_given_twice_is_an_error(self):
        self.refused("Option 'driver' is given twice", "qemu-img", "info", "--image-opts",
                     "driver=qcow2,file.filename=disk.qcow2,driver=raw")
        self.refused("-f says", "qemu-img", "info", "-f", "raw", name(QCOW2))

    def test_drivers_that_are_not_there(self):
        for driver in ("vmdk", "ssh", "quorum", "rbd"):
            self.refused(f"Driver '{driver}' is not supported", "qemu-img", "info", name({"driver": driver}))

    def test_settings_that_byre_has_not(self):
        for tree, why in (({**QCOW2, "overlap-check": "none"}, "overlap-check=none is not supported"),
                          ({**QCOW2, "refcount-cache-size": "1M"}, "refcount-cache-size is not supported"),
                          ({**QCOW2, "pass-discard-request": False}, "pass-discard-request=off is not supported"),
                          ({**QCOW2, "cache": {"no-flush": True}}, "cache.no-flush=on is not supported")):
            self.refused(why, "qemu-img", "info", name(tree))

    def test_what_byre_does_not_ask_for(self):
        for tree in ({**QCOW2, "detect-zeroes": "unmap"}, {"driver": "qcow2", "file": {**FILE, "aio": "native"}}):
            self.assertEqual(self.run_as("byre", "qemu-img", "info", name(tree)).returncode, 0, tree)
            self.assertEqual(self.run_as("qemu", "qemu-img", "info", name(tree)).returncode, 1, tree)
        told = self.run_as("byre", "qemu-img", "map", "--output=json", name({"driver": "null-co", "size": MIB})).stdout
        self.assertTrue(json.loads(told)[0]["zero"])

    def test_the_table_of_drivers_is_shown(self):
        told = subprocess.run([BYRE, "drivers", "qcow2"], text=True, check=True, stdout=subprocess.PIPE).stdout
        self.assertIn("l2-cache-size=<size>", told)
        told = json.loads(subprocess.run([BYRE, "drivers", "--output=json"], text=True, check=True,
                                         stdout=subprocess.PIPE).stdout)
        self.assertIn("qcow2", [driver["name"] for driver in told["drivers"]])
        for driver in told["drivers"]:
            done = subprocess.run([BYRE, "drivers", driver["name"]], text=True, stdout=subprocess.PIPE)
            self.assertEqual(done.returncode, 0)


class Hostile(Case):
    LIMIT = 256 * MIB

    def test_a_tree_of_a_thousand_levels(self):
        deep = '{"driver":"raw","file":' * 1000 + '{"driver":"null-co"}' + "}" * 1000
        for words in (["info", "json:" + deep], ["info", "json:" + "[" * 100000], ["info", 'json:{"a":' + "[" * 100000]):
            done = self.run_as("byre", "qemu-img", *words, limit=self.LIMIT)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, "more than 100 levels|Invalid JSON object")
        dots = "driver=raw,file" + ".file" * 1000 + ".driver=null-co"
        done = self.run_as("byre", "qemu-io", "-c", f"open -o {dots}", limit=self.LIMIT)
        self.assertIn("more than 100 levels", done.stderr)

    def test_an_image_names_a_deep_tree(self):
        short = '{"file":' * 125 + "1" + "}" * 125
        subprocess.run([REAL["qemu-img"], "create", "-q", "-u", "-f", "qcow2", "-b", "json:" + short[:1018], "-F", "qcow2",
                        "over.qcow2", "1M"], check=True, cwd=self.folder / "byre")
        done = self.run_as("byre", "qemu-io", "-f", "qcow2", "-c", "read 0 512", "over.qcow2", limit=self.LIMIT)
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "more than 100 levels|parse")

    def test_a_hundred_mebibytes_of_options(self):
        """More than a command line can hold: a line on stdin."""
        for tail in ("", "\nlength\nopen -o driver=null-co,size=1M\nlength\n"):
            done = self.run_as("byre", "qemu-io", stdin='open json:{"a":"' + "a" * (100 * MIB) + '"}' + tail,
                               limit=self.LIMIT)
            self.assertEqual(done.returncode, 1, done.stderr[:500])
            self.assertIn("too many bytes", done.stderr[:500])
        long = "open -o driver=null-co,node-name=" + "a" * (MIB + 100) + "\n"
        done = self.run_as("byre", "qemu-io", stdin=long, limit=self.LIMIT)
        self.assertIn("at most 1048576", done.stderr[-500:])


if __name__ == "__main__":
    unittest.main()
