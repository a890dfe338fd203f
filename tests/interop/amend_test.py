#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""byre amend, beside and against qemu-img amend: what an image is changes, what it holds does not.

qemu-img, byre and tests/reference judge each result; every snapshot is read back.
"""
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import (BYRE, KIB, MIB, Case, byre_io, describe, img, main, only_byre, options_of,  # noqa: E402
                     qcow2ref, qemu_img, qemu_io, run, until)

SIZE = 4 * MIB


class Amend(Case):
    def build(self, name, *, snapshots=2, backing=False, compressed=True, seed=1, **options):
        """An image with all kinds of clusters, shared and not."""
        image = self.path(name)
        for path in (image, self.path("packed")):
            if os.path.exists(path):
                os.unlink(path)
        draw = random.Random(seed)
        words = ["-b", self.base(), "-F", "raw"] if backing else []
        qemu_img("create", "-q", "-f", "qcow2", *words, *options_of(**options), image, SIZE)
        old = options.get("compat") == "0.10"
        for number in range(snapshots + 1):
            commands = []
            for _ in range(12):
                at, length = draw.randrange(0, 60) * 64 * KIB, draw.randrange(1, 5) * 32 * KIB
                kind = draw.randrange(4 if old else 8)
                if kind < 4:
                    commands.append(f"write -q -P {draw.randrange(1, 256)} {at} {length}")
                elif kind < 6:
                    commands.append(f"write -q -z -u {at} {length}")
                else:
                    commands.append(f"write -q -z {at} {length}")
            if compressed and "512" not in str(options.get("cluster_size", "")):
                unit = max(64 * KIB, 2 * MIB if options.get("cluster_size") == "2M" else 0)
                commands += [f"write -q -c -P {draw.randrange(1, 256)} {draw.randrange(0, SIZE // unit) * unit} {unit}"]
            byre_io(image, *commands, options=("-f", "qcow2", "-t", "writeback"))
            if number < snapshots:
                qemu_img("snapshot", "-c", f"s{number}", image)
        return image

    def base(self):
        path = self.path("base")
        if not os.path.exists(path):
            with open(path, "wb") as file:
                file.write(random.Random(9).randbytes(3 * MIB))
        return path

    def contents(self, image, size=None):
        """What the disk and each of its snapshots hold, as digests."""
        found = {}
        names = [snapshot["name"] for snapshot in describe(image).get("snapshots", [])]
        for name in [None] + names:
            out = self.path("contents")
            qemu_img("convert", *(["-l", f"snapshot.name={name}"] if name else []), "-O", "raw", image, out)
            if size and name is None:
                os.truncate(out, size)
            with open(out, "rb") as file:
                found[name] = hashlib.sha256(file.read()).hexdigest()
            os.unlink(out)
        return found

    def specific(self, image):
        return describe(image)["format-specific"]["data"]

    def amend(self, image, *words, ok=(0,), **options):
        return img("amend", *words, *options_of(**options), image, ok=ok)

    def assert_refused(self, image, words, why):
        with open(image, "rb") as file:
            before = file.read()
        done = img("amend", *words, image, ok=(1,))
        self.assertIn(why, done.text)
        with open(image, "rb") as file:
            self.assertEqual(file.read(), before, "a refusal writes nothing")


@only_byre
class Versions(Amend):
    def test_what_is_preallocated_stays_so(self):
        """A zero cluster with a cluster of its own becomes zeros in it, as with QEMU; one whose cluster a snapshot has as well does not."""
        theirs, ours = self.path("theirs"), self.path("ours")
        for backing in ([], ["-b", self.base(), "-F", "raw"]):
            for image in (theirs, ours):
                qemu_img("create", "-q", "-f", "qcow2", *backing, image, SIZE)
                qemu_io(image, "write -q -P 7 0 1M", "write -q -z 64k 128k", "write -q -z 300k 200k", "write -q -z -u 2M 64k")
            before = self.contents(ours)
            qemu_img("amend", "-o", "compat=0.10", theirs)
            self.amend(ours, compat="0.10")
            self.assert_sound(ours)
            self.assertEqual(self.contents(ours), before)
            maps = [[(run["start"], run["length"], run["depth"], run["present"]) for run in
                     json.loads(qemu_img("map", "--output=json", image).out)] for image in (theirs, ours)]
            self.assertEqual(*maps)
        for shared in (False, True):  # By a table, or by two tables.
            image = self.build("image", snapshots=0)
            qemu_io(image, "write -q -P 7 0 1M", "write -q -z 0 256k")
            qemu_img("snapshot", "-c", "one", image)
            if shared:
                qemu_io(image, "write -q -P 8 3M 64k")
            before = self.contents(image)
            self.amend(image, compat="0.10")
            self.assert_sound(image)
            self.assertEqual(self.contents(image), before)

    def test_down_and_up_again(self):
        for backing in (False, True):
            for number, options in enumerate(({}, {"cluster_size": 512}, {"cluster_size": 4096}, {"cluster_size": "2M"},
                                              {"lazy_refcounts": "on"})):
                with self.subTest(backing=backing, options=options):
                    image = self.build("image", backing=backing, seed=number, **options)
                    before = self.contents(image)
                    self.amend(image, compat="0.10")
                    self.assertEqual(self.specific(image)["compat"], "0.10")
                    self.assert_sound(image)
                    self.assertEqual(self.contents(image), before)
                    program = img if number % 2 else qemu_img
                    program("amend", "-o", "compat=1.1", image)
                    self.assertEqual(self.specific(image)["compat"], "1.1")
                    self.assert_sound(image)
                    self.assertEqual(self.contents(image), before)
                    qemu_io(image, "write -q -z 0 64k")
                    qemu_img("snapshot", "-d", "s0", image)
                    self.assert_sound(image)

    def test_e22_a_bitmap_is_never_lost_without_a_word(self):
        image = self.build("image")
        qemu_img("bitmap", "--add", image, "changes")
        self.assert_refused(image, ["-o", "compat=0.10"], "bitmap")
        qemu_img("bitmap", "--remove", image, "changes")
        self.amend(image, compat="0.10")
        self.assert_sound(image)

    def test_bitmaps_stay_with_whatever_else_changes(self):
        for options in ({}, {"cluster_size": 512}):
            with self.subTest(options=options):
                image = self.build("image", snapshots=0, **options)
                qemu_img("bitmap", "--add", image, "changes")
                byre_io(image, "write -q -P 1 1M 64k", options=("-f", "qcow2", "-t", "writeback"))
                for change in ({"refcount_bits": 64}, {"lazy_refcounts": "on"}, {"refcount_bits": 8, "size": "6M"},
                               {"refcount_bits": 16, "lazy_refcounts": "off"}):
                    self.amend(image, **change)
                    self.assert_sound(image)
                    dirty = qcow2ref.Image(image).dirty("changes")
                    self.assertEqual(dirty[0], (1 * MIB, 1 * MIB + 64 * KIB))
                byre_io(image, "write -q -P 1 2M 64k")
                self.assert_sound(image)
                self.assertEqual(qcow2ref.Image(image).dirty("changes")[:2],
                                 [(1 * MIB, 1 * MIB + 64 * KIB), (2 * MIB, 2 * MIB + 64 * KIB)])

    def test_trap_131_what_version_2_has_not(self):
        self.assert_refused(self.build("a", extended_l2="on", compressed=False), ["-o", "compat=0.10"], "extended L2")
        self.assert_refused(self.build("b", compression_type="zstd"), ["-o", "compat=0.10"], "compression")
        self.assert_refused(self.build("c", refcount_bits=8), ["-o", "compat=0.10"], "Refcount widths")
        image = self.path("d")
        img("create", "-q", "-f", "qcow2", "-o", f"data_file={self.path('data')}", image, "1M")
        self.assert_refused(image, ["-o", "compat=0.10"], "data file")

    def test_several_things_at_once(self):
        image = self.build("image", backing=True, refcount_bits=32)
        before = self.contents(image)
        self.amend(image, compat="0.10", refcount_bits=16)
        self.assert_sound(image)
        self.assertEqual(self.contents(image), before)
        self.amend(image, compat="1.1", refcount_bits=64, lazy_refcounts="on")
        self.assert_sound(image)
        self.assertEqual(self.contents(image), before)
        self.assertEqual((self.specific(image)["refcount-bits"], self.specific(image)["lazy-refcounts"]), (64, True))
        image = self.build("image", snapshots=0, compat="0.10")
        before = self.contents(image, 6 * MIB)
        self.amend(image, compat="1.1", refcount_bits=8, size="6M", lazy_refcounts="on")
        self.assert_sound(image)
        self.assertEqual(self.contents(image), before)


@only_byre
class Widths(Amend):
    def test_any_to_any(self):
        for cluster in (512, 4096, "64k", "2M"):
            with self.subTest(cluster=cluster):
                image = self.build("image", cluster_size=cluster, compressed=False)
                before = self.contents(image)
                for bits in (64, 8, 2, 4, 32, 16, 2, 64, 16):
                    self.amend(image, refcount_bits=bits)
                    self.assertEqual(self.specific(image)["refcount-bits"], bits)
                    self.assert_sound(image)
                    self.assertEqual(self.contents(image), before)
                byre_io(image, "write -q -P 3 1M 1M")
                qemu_io(image, "write -q -P 4 2M 1M", "read -q -P 3 1M 1M")
                self.assert_sound(image)

    def test_trap_74_what_does_not_fit_is_found_first(self):
        image = self.build("image", snapshots=3)
        self.assert_refused(image, ["-o", "refcount_bits=1"], "Cannot decrease refcount entry width")
        image = self.build("image", snapshots=0, compressed=False)
        before = self.contents(image)
        self.amend(image, refcount_bits=1)
        self.assert_sound(image)
        self.assertEqual(self.contents(image), before)
        self.amend(image, refcount_bits=64)
        self.assert_sound(image)


@only_byre
class Names(Amend):
    def test_lazy_refcounts(self):
        image = self.build("image")
        for value in ("on", "off", "on"):
            self.amend(image, lazy_refcounts=value)
            self.assertEqual(self.specific(image)["lazy-refcounts"], value == "on")
            byre_io(image, "write -q -P 1 0 64k", options=("-f", "qcow2", "-t", "writeback"))
            self.assert_sound(image)

    def test_backing_file(self):
        image = self.build("image", backing=True)
        before = self.contents(image)
        moved = self.path("b" * 200)
        os.rename(self.path("base"), moved)
        self.assert_refused(image, ["-o", f"backing_file={moved}"], "Cannot amend the backing file")
        self.amend(image, "--force", backing_file=moved)
        self.assertEqual(describe(image)["backing-filename"], moved)
        self.assertEqual(describe(image)["backing-filename-format"], "raw")
        self.assert_sound(image)
        self.assertEqual(self.contents(image), before)
        self.amend(image, compat="0.10")
        self.assertEqual(self.contents(image), before)
        self.amend(image, compat="1.1")
        self.assertEqual(self.contents(image), before)
        self.amend(image, "--force", backing_file="")
        self.assertNotIn("backing-filename", describe(image))
        self.assert_sound(image)

    def test_a_format_that_is_missing(self):
        image = self.build("image", backing=True)
        before = self.contents(image)
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", self.base(), image, ok=None)
        self.amend(image, backing_fmt="raw")
        self.assertEqual(describe(image)["backing-filename-format"], "raw")
        self.assertEqual(self.contents(image), before)

    def test_data_file(self):
        image, data, moved = self.path("image"), self.path("data"), self.path("moved")
        img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", image, "1M")
        byre_io(image, "write -q -P 7 0 1M")
        os.rename(data, moved)
        self.amend(image, data_file=moved)
        qemu_io(image, "read -q -P 7 0 1M")
        self.assertTrue(self.specific(image)["data-file-raw"])
        self.amend(image, data_file_raw="off")
        self.assertFalse(self.specific(image)["data-file-raw"])
        self.assert_refused(image, ["-o", "data_file_raw=on"], "data-file-raw cannot be set")
        self.amend(image, refcount_bits=64, size="2M")
        qemu_io(image, "read -q -P 7 0 1M", "read -q -P 0 1M 1M")
        self.assert_sound(image)

    def test_size(self):
        image = self.build("image", snapshots=0)
        before = self.contents(image, 8 * MIB)
        self.amend(image, size="8M")
        self.assertEqual(self.contents(image), before)
        self.assert_refused(image, ["-o", "size=1M"], "--force")
        self.amend(image, "--force", size="1M")
        self.assertEqual(describe(image)["virtual-size"], 1 * MIB)
        self.assert_sound(image)


@only_byre
class Words(Amend):
    """The same lines as qemu-img, under its name."""

    def setUp(self):
        super().setUp()
        self.ours = self.path("qemu-img")
        os.symlink(BYRE, self.ours)

    def test_the_same_words(self):
        for words in (["compat=0.10"], ["compat=1.1"], ["refcount_bits=8"], ["refcount_bits=3"], ["refcount_bits=8,compat=0.10"],
                      ["compat=0.9"], ["lazy_refcounts=on,compat=0.10"], ["bogus=1"], ["cluster_size=4k"], ["nocow=on"],
                      ["extended_l2=on"], ["preallocation=metadata"], ["data_file=x"], ["data_file_raw=on"],
                      ["lazy_refcounts=maybe"], ["size=1M"], ["size=8M"], ["data_file_raw=off"]):
            results = []
            for program in ("qemu-img", self.ours):
                image = self.build("image", snapshots=0)
                done = run(program, "amend", "-o", words[0], image, ok=(0, 1))
                results.append((done.code, done.out.decode(), done.err.decode()))
            with self.subTest(words=words):
                self.assertEqual(results[1][:2], results[0][:2])
                if "maybe" not in words[0]:
                    self.assertEqual(results[1][2], results[0][2])

    def test_usage_and_progress(self):
        image = self.build("image", snapshots=0)
        for words in ([image], ["-o", "help"], ["-f", "raw", "-o", "help"], ["-o", "size=1M", image, image],
                      ["-p", "-o", "refcount_bits=64", image], ["-o", "size=1M", self.path("none")]):
            with self.subTest(words=words):
                theirs = run("qemu-img", "amend", *words, ok=(0, 1))
                qemu_img("amend", "-o", "refcount_bits=16", image)
                ours = run(self.ours, "amend", *words, ok=(0, 1))
                qemu_img("amend", "-o", "refcount_bits=16", image)
                self.assertEqual(ours.code, theirs.code)
                if "-p" in words:
                    self.assertTrue(ours.out.startswith(b"    (0.00/100%)\r") and ours.out.endswith(b"    (100.00/100%)\r\n"))
                else:
                    self.assertEqual(ours.out, theirs.out)
                    self.assertEqual(ours.err.splitlines()[:1], theirs.err.splitlines()[:1])

    def test_help_has_the_options_of_qemu_but_encryption(self):
        for command in (["amend", "-f", "qcow2"], ["create", "-f", "qcow2"], ["create", "-f", "raw"], ["convert", "-O", "qcow2"]):
            with self.subTest(command=command):
                for names in (["x", "y"],) if command[0] == "convert" else (["x"], []):
                    theirs = run("qemu-img", *command, "-o", "help", *names, ok=None).out.decode()
                    ours = run(self.ours, *command, "-o", "help", *names, ok=None).out.decode()
                    theirs = [line for line in theirs.splitlines() if "encrypt" not in line]
                    self.assertEqual(ours.splitlines(), theirs)


@only_byre
class Killed(Amend):
    def test_killed_at_any_moment(self):
        """Whatever was done when it was killed: the image opens, holds the same, and has no corruption."""
        draw = random.Random(7)
        image = self.build("image", backing=True, cluster_size=512)
        before = self.contents(image)
        kept = self.path("kept")
        changes = [["-o", "refcount_bits=64"], ["-o", "compat=0.10"], ["-o", "refcount_bits=8,lazy_refcounts=on"]]
        began = time.monotonic()
        img("amend", "-o", "refcount_bits=32,compat=1.1", image)
        whole = time.monotonic() - began
        killed = 0
        for number in range(60):
            run("cp", "--sparse=always", image, kept)
            process = subprocess.Popen([BYRE, "amend", *changes[number % len(changes)][:1],
                                        changes[number % len(changes)][1] +
                                        (",refcount_bits=16" if "compat" in changes[number % len(changes)][1] else ""), kept])
            time.sleep(draw.uniform(0, 1.5 * whole))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() != 0
            # The locks of a killed process go a little later than it does.
            done = until(lambda: next((done for done in [qemu_img("check", "--output=json", "-f", "qcow2", kept, ok=(0, 1, 3))]
                                       if done.code != 1), None), "the lock")
            report = json.loads(done.out)
            self.assertEqual(report.get("corruptions", 0), 0)
            self.assertEqual(self.contents(kept), before)
            img("check", "-q", "-r", "leaks", kept, ok=(0,))
            self.assert_sound(kept)
        self.assertGreater(killed, 5)


if __name__ == "__main__":
    main()
