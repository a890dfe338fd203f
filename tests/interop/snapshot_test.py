# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots: byre's and QEMU's tools take turns on the same images, of every shape, and agree on every byte.

Each step is done by one of the two, drawn; a copy of the disk as a raw file is kept for every snapshot.  After each
step the image is checked by qemu-img, by byre and by the reference, and at the end every snapshot is read by QEMU and
by byre.  The words of `snapshot` are compared with qemu-img's as in tool_test.py.
"""
import os
import random
import re
import shutil
import struct
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tool_test  # noqa: E402
from harness import (BYRE, KIB, MIB, Case, byre_io, describe, img, main, only_byre, options_of, qemu_img,  # noqa: E402
                     qemu_io, run)

SHAPES = [
    dict(),
    dict(compat="0.10"),
    dict(compat="0.10", cluster_size=512),
    dict(cluster_size=512, refcount_bits=64),
    dict(cluster_size=4096, refcount_bits=8),
    dict(refcount_bits=4),
    dict(cluster_size=2 * MIB),
    dict(extended_l2="on"),
    dict(extended_l2="on", cluster_size=16 * KIB, refcount_bits=32),
    dict(lazy_refcounts="on"),
    dict(compression_type="zstd", cluster_size=8 * KIB),
    dict(preallocation="metadata"),
]


class Turns(Case):
    """Random turns of both tools on one image."""

    def play(self, seed, shape, backing=False, steps=14):
        rng = random.Random(seed)
        image, raw = self.path("disk.qcow2"), self.path("disk.raw")
        size = 3 * MIB + 512 * rng.randrange(0, 100)
        words = options_of(**shape)
        if backing:
            base = self.path("base.raw")
            with open(base, "wb") as file:
                file.write(rng.randbytes(2 * MIB))
            words += ["-b", base, "-F", "raw"]
            shutil.copy(base, raw)
        else:
            open(raw, "wb").close()
        os.truncate(raw, size)
        qemu_img("create", "-q", "-f", "qcow2", *words, image, size)
        copies = {}
        told = []
        for step in range(steps):
            size = os.stat(raw).st_size
            what = rng.choice(["write", "write", "write", "compress", "discard", "create", "create", "apply", "delete",
                               "grow"])
            by_qemu = rng.random() < 0.4
            told.append(f"{what} by {'QEMU' if by_qemu else 'byre'}")
            tool = qemu_img if by_qemu else img
            follow = [] if by_qemu else ["--follow", "any"]
            if what in ("write", "discard", "compress"):
                at = rng.randrange(0, size // 512) * 512
                length = min(size - at, rng.choice([512, 4096, 70 * KIB, 300 * KIB]))
                if what == "compress":
                    cluster = shape.get("cluster_size", 64 * KIB)
                    at = min(at // cluster, size // cluster - 1) * cluster
                    if at < 0 or cluster > 64 * KIB or shape.get("preallocation"):
                        continue
                    byte = rng.randrange(1, 256)
                    # QEMU refuses where something is (E26), so that only some of these are done.
                    done = qemu_io(image, f"write -c -P {byte} {at} {cluster}", ok=(0, 1))
                    if done.code == 0:
                        qemu_io(raw, f"write -P {byte} {at} {cluster}", options=("-f", "raw"))
                    continue
                if what == "discard":
                    words = f"write -z {'-u ' if rng.random() < 0.5 else ''}{at} {length}"
                else:
                    words = f"write -P {rng.randrange(1, 256)} {at} {length}"
                if by_qemu:
                    qemu_io(image, words)
                else:
                    byre_io(image, words, options=("-f", "qcow2", "--follow", "any"))
                qemu_io(raw, words, options=("-f", "raw"))
            elif what == "create" and len(copies) < 5:
                tool("snapshot", *follow, "-c", f"at step {step}", image)
                self.keep(image, raw, copies)
            elif what == "apply" and copies:
                name = rng.choice(sorted(copies))
                tool("snapshot", *follow, "-a", name, image)
                shutil.copy(copies[name], raw)
            elif what == "delete" and copies:
                name = rng.choice(sorted(copies))
                tool("snapshot", *follow, "-d", name, image)
                os.unlink(copies.pop(name))
            elif what == "grow" and not backing and shape.get("compat") != "0.10":  # QEMU refuses.
                tool("resize", "-q", *(["-f", "qcow2"]), image, size + 512 * rng.randrange(1, 2000))
                os.truncate(raw, describe(image)["virtual-size"])
            self.assert_all(image, raw, copies, step + 1 == steps, told)

    def keep(self, image, raw, copies):
        entry = describe(image)["snapshots"][-1]
        copies[entry["name"]] = self.path(f"copy-{entry['id']}-{len(os.listdir(self.folder))}.raw")
        shutil.copy(raw, copies[entry["name"]])

    def assert_all(self, image, raw, copies, each, told):
        try:
            self.assert_sound(image)
            self.assertEqual(sorted(s["name"] for s in describe(image).get("snapshots", [])), sorted(copies))
            self.assert_compares(raw, image)
            if not each:
                return
            for name, copy in copies.items():
                for tool, follow in ((qemu_img, ()), (img, ("--follow", "any"))):
                    out = self.path("out.raw")
                    tool("convert", *follow, "-f", "qcow2", "-l", f"snapshot.name={name}", "-O", "raw", image, out)
                    if tool is qemu_img:  # It takes the size of the active disk for that of every snapshot.
                        os.truncate(out, os.stat(copy).st_size)
                    self.assertEqual(run("cmp", copy, out, ok=(0, 1)).code, 0, f"snapshot {name}")
                    os.unlink(out)
        except AssertionError as error:
            raise AssertionError(f"{'; '.join(told)}\n{error}") from error

    def test_each_shape(self):
        for number, shape in enumerate(SHAPES):
            with self.subTest(**shape):
                self.play(number, shape)
                self.renew()

    def test_over_a_backing_file(self):
        for number, shape in enumerate([dict(), dict(extended_l2="on"), dict(compat="0.10", cluster_size=4096)]):
            with self.subTest(**shape):
                self.play(100 + number, shape, backing=True)
                self.renew()

    def renew(self):
        for name in os.listdir(self.folder):
            os.unlink(self.path(name))


class Sizes(Case):
    def test_a_snapshot_of_another_size(self):
        for shape in (dict(), dict(cluster_size=512)):
            with self.subTest(**shape):
                image = self.path("disk.qcow2")
                qemu_img("create", "-q", "-f", "qcow2", *options_of(**shape), image, "1M")
                qemu_io(image, "write -P 1 0 1M")
                img("snapshot", "-c", "small", image)
                img("resize", "-q", image, "300M")
                qemu_io(image, "write -P 2 0 64k", "write -P 3 299M 1M")
                img("snapshot", "-c", "large", image)
                img("snapshot", "-a", "small", image)
                self.assertEqual(describe(image)["virtual-size"], MIB)
                self.assert_sound(image)
                qemu_io(image, "read -P 1 0 1M")
                img("snapshot", "-a", "large", image)
                self.assertEqual(describe(image)["virtual-size"], 300 * MIB)
                self.assert_sound(image)
                qemu_io(image, "read -P 2 0 64k", "read -P 1 64k 960k", "read -P 0 1M 298M", "read -P 3 299M 1M")
                os.unlink(image)

    def test_an_empty_disk(self):
        image = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", image, "0")
        for tool in (img, qemu_img):
            tool("snapshot", "-c", "nothing", image)
            self.assert_sound(image)
            tool("snapshot", "-a", "nothing", image)
            self.assert_sound(image)
            tool("snapshot", "-d", "nothing", image)
            self.assert_sound(image)


class Table(Case):
    """What the snapshot table keeps."""

    def table(self, image):
        with open(image, "rb") as file:
            data = file.read()
        count, at = struct.unpack(">IQ", data[60:72])
        entries = []
        for _ in range(count):
            id_size, name_size, extra = *struct.unpack(">HH", data[at + 12:at + 16]), *struct.unpack(
                ">I", data[at + 36:at + 40])
            end = at + 40 + extra + id_size + name_size
            entries.append(data[at:end])
            at = end + -end % 8
        return entries

    def test_unknown_extra_data_of_others_are_kept(self):
        image = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", image, "1M")
        qemu_img("snapshot", "-c", "one", image)
        with open(image, "r+b") as file:
            file.seek(64)
            at, = struct.unpack(">Q", file.read(8))
            file.seek(at)
            entry = bytearray(file.read(40 + 24 + 4))
            entry[36:40] = struct.pack(">I", 24 + 13)
            file.seek(at)
            file.write(entry[:64] + b"from tomorrow" + entry[64:] + bytes(8))
        first = self.table(image)
        self.assertIn(b"from tomorrow", first[0])
        img("snapshot", "-c", "two", image)
        self.assertEqual(self.table(image)[0], first[0])
        img("snapshot", "--rename", "two", "--to", "three", image)
        self.assertEqual(self.table(image)[0], first[0])
        img("snapshot", "-d", "three", image)
        self.assertEqual(self.table(image), first)

    def test_ids_and_entries_are_as_qemu_makes_them(self):
        ours, theirs = self.path("ours.qcow2"), self.path("theirs.qcow2")
        for image, tool in ((ours, img), (theirs, qemu_img)):
            for compat in ("1.1", "0.10"):
                qemu_img("create", "-q", "-f", "qcow2", "-o", f"compat={compat}", image, "1M")
                for name in ("a", "b", "c"):
                    tool("snapshot", "-c", name, image)
                tool("snapshot", "-d", "b", image)
                tool("snapshot", "-c", "d", image)

        def shape(entry):  # Without the place of the L1 table and the date.
            return entry[8:16] + entry[24:]
        self.assertEqual([shape(e) for e in self.table(ours)], [shape(e) for e in self.table(theirs)])

    def test_a_vm_state_is_kept(self):
        image = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", image, "1M")
        qemu_io(image, "write -P 1 0 1M", "write -b -P 7 0 128k")
        img("snapshot", "-c", "with state", image)
        qemu_io(image, "write -b -P 8 0 128k", "write -P 2 0 64k")
        self.assert_sound(image)
        img("snapshot", "-a", "with state", image)
        self.assert_sound(image)
        qemu_io(image, "read -b -P 7 0 128k", "read -P 1 0 1M")
        img("snapshot", "-d", "with state", image)
        self.assert_sound(image)
        qemu_io(image, "read -b -P 7 0 128k")


    def test_a_vm_state_is_read_and_written_by_both(self):
        for shape in (dict(), dict(cluster_size=512), dict(compat="0.10"), dict(extended_l2="on")):
            with self.subTest(**shape):
                image, base = self.path("disk.qcow2"), self.path("base.raw")
                with open(base, "wb") as file:
                    file.write(b"x" * 4 * MIB)  # Longer than the disk: no VM state shows through.
                qemu_img("create", "-q", "-f", "qcow2", *options_of(**shape), "-b", base, "-F", "raw", image, "1M")
                options = ("-f", "qcow2", "--follow", "any")
                byre_io(image, "write -b -P 5 512 200k", "read -b -P 5 512 200k", "read -b -P 0 0 512",
                        "read -b -P 0 900k 64k", "read -P 0x78 0 1M", options=options)
                self.assert_sound(image)
                qemu_io(image, "read -b -P 5 512 200k", "read -P 0x78 0 1M", "write -b -P 6 300k 100k")
                byre_io(image, "read -b -P 5 512 200k", "read -b -P 6 300k 100k", options=options)
                img("snapshot", "--follow", "any", "-c", "s", image)
                byre_io(image, "write -b -P 9 0 400k", options=options)
                self.assert_sound(image)
                img("snapshot", "--follow", "any", "-a", "s", image)
                self.assert_sound(image)
                qemu_io(image, "read -b -P 5 512 200k", "read -b -P 6 300k 100k", "read -P 0x78 0 1M")
                for name in ("disk.qcow2", "base.raw"):
                    os.unlink(self.path(name))

    def test_a_raw_disk_has_no_vm_state(self):
        raw = self.path("disk.raw")
        qemu_img("create", "-q", "-f", "raw", raw, "1M")
        for words in ("read -b 0 512", "write -b 0 512"):
            self.assertIn("Operation not supported", byre_io(raw, words, options=("-f", "raw"), ok=(0, 1)).text)


class PeerDefects(Case):
    @only_byre
    def test_e5_an_overflow_leaves_no_leaks(self):
        for bits, most in ((1, 0), (2, 2)):
            image = self.path("disk.qcow2")
            qemu_img("create", "-q", "-f", "qcow2", "-o", f"refcount_bits={bits}", image, "4M")
            for at in range(0, 64, 1):
                qemu_io(image, f"write {'-c ' if bits == 2 and at % 3 == 0 else ''}-P 5 {at * 64}k 64k", ok=(0, 1))
            done = 0
            for attempt in range(6):
                result = img("snapshot", "-c", f"s{attempt}", image, ok=(0, 1))
                done += result.code == 0
                self.assert_sound(image)
            self.assertLessEqual(done, most)
            self.assertIn("references", result.text)
            os.unlink(image)

    def test_e1_a_discard_leaves_a_snapshot_alone(self):
        image = self.path("disk.qcow2")
        img("create", "-q", "-f", "qcow2", image, "64M")
        byre_io(image, "write -P 0x11 0 1M")
        img("snapshot", "-c", "s", image)
        byre_io(image, "discard 0 1M", "flush", options=("-d", "unmap"))
        img("snapshot", "-a", "s", image)
        byre_io(image, "read -P 0x11 0 1M")
        self.assert_sound(image)


class Words(tool_test.Case):
    """The same words to both tools."""

    @classmethod
    def prepare(cls, folder):
        tool_test.qemu("create", "-q", "-f", "qcow2", "plain.qcow2", "1M", cwd=folder)
        tool_test.qemu("create", "-q", "-f", "raw", "disk.raw", "1M", cwd=folder)
        tool_test.qemu("create", "-q", "-f", "qcow2", "full.qcow2", "1M", cwd=folder)
        for name in ("first", "a name that is longer than its column", "1"):
            tool_test.qemu("snapshot", "-c", name, "full.qcow2", cwd=folder)

    def test_lists(self):
        for image in ("plain.qcow2", "full.qcow2", "disk.raw"):
            with self.subTest(image=image):
                self.same("snapshot", "-l", image, err=image != "disk.raw", code=0)
                self.same("snapshot", "-l", "-U", image, err=image != "disk.raw", code=0)
        self.same("snapshot", "full.qcow2", code=0)

    def test_wrong_words(self):
        for words in (("-l", "-c", "x", "full.qcow2"), ("-c", "x", "-d", "y", "full.qcow2"), ("-l", "-l", "full.qcow2"),
                      ("-a", "x", "-a", "y", "full.qcow2"), ("-c", "x"), ("-c", "x", "plain.qcow2", "full.qcow2"), (),
                      ("-d", "nothing", "full.qcow2"), ("-a", "nothing", "full.qcow2"), ("-c",), ("-Z", "plain.qcow2"),
                      ("-c", "x", "nowhere.qcow2"), ("-l", "nowhere.qcow2"), ("-U", "-c", "x", "plain.qcow2"),
                      ("-c", "x", "disk.raw"), ("-a", "x", "disk.raw"), ("-d", "x", "disk.raw")):
            with self.subTest(words=words):
                # qemu-img opens a raw disk twice to apply, and warns twice.
                self.same("snapshot", *words, err=words != ("-a", "x", "disk.raw"), code=1)
        for words in (("--image-opts", "-l", "driver=qcow2"), ("--object", "secret,id=a", "-l", "plain.qcow2")):
            self.assertEqual(self.byre("snapshot", *words).code, 64)

    def test_each_does_what_qemu_img_does(self):
        for words in (("-c", "new"), ("-q", "-c", "newer"), ("-d", "first"), ("-a", "new"), ("-c", ""), ("-d", "")):
            with self.subTest(words=words):
                self.same("snapshot", *words, "full.qcow2", code=0)
                self.sound("full.qcow2")
                ours, theirs = (self.names_and_ids(folder) for folder in (self.ours, self.theirs))
                self.assertEqual(ours, theirs)

    def names_and_ids(self, folder):
        return [(s["id"], s["name"]) for s in describe(os.path.join(folder, "full.qcow2"))["snapshots"]]

    def test_a_word_that_could_mean_two_is_refused(self):
        before = tool_test.digest(os.path.join(self.ours, "full.qcow2"))
        for words in (("-a", "1"), ("-d", "1"), ("--rename", "1", "--to", "x")):
            result = self.byre("snapshot", *words, "full.qcow2")
            self.assertEqual(result.code, 64, str(result))
            self.assertIn("more than one snapshot", result.err)
        self.assertEqual(tool_test.digest(os.path.join(self.ours, "full.qcow2")), before)
        self.assertEqual(self.byre("snapshot", "-d", "snapshot.id=1", "full.qcow2").code, 0)
        self.assertEqual([pair[0] for pair in self.names_and_ids(self.ours)], ["2", "3"])

    def test_convert_reads_the_snapshot_that_is_named(self):
        for folder in (self.ours, self.theirs):
            image = os.path.join(folder, "full.qcow2")
            qemu_io(image, "write -q -P 5 0 64k")
            tool_test.qemu("snapshot", "-c", "five", "full.qcow2", cwd=folder)
            qemu_io(image, "write -q -P 6 0 64k")
        read = 0
        for word in ("", "snapshot.name=", "snapshot.id=", "snapshot.id=,snapshot.name=five", "snapshot.id=4,snapshot.name=",
                     "five", "snapshot.name=five", "4", "snapshot.id=4", "snapshot.id=4,snapshot.name=five",
                     "snapshot.name=five,snapshot.id=4", "snapshot.id=4,snapshot.name=first", "snapshot.name=4",
                     "snapshot.id=five"):
            with self.subTest(word=word):
                for folder in (self.ours, self.theirs):
                    if os.path.exists(f"{folder}/out"):
                        os.unlink(f"{folder}/out")
                ours = self.same("convert", "-l", word, "-O", "raw", "full.qcow2", "out")
                self.assertEqual(ours.code == 0, os.path.exists(f"{self.ours}/out"))
                if ours.code == 0:
                    self.assertEqual(tool_test.digest(f"{self.ours}/out"), tool_test.digest(f"{self.theirs}/out"))
                    read += 1
        self.assertEqual(read, 6)
        for word in ("snapshot.foo=1", "snapshot.", "snapshot.id=4,foo=bar"):
            self.same("convert", "-l", word, "full.qcow2", "out", err=False, code=1)
        # An id can be chosen even though another has that name.
        self.same("convert", "-l", "snapshot.id=1", "full.qcow2", "out", code=0)
        self.assertEqual(self.byre("convert", "--force", "-O", "raw", "-l", "1", "full.qcow2", "out").code, 66)
        for word in ("", "nothing", "snapshot.id="):
            result = self.byre("serve", "-l", word, "full.qcow2")
            self.assertEqual(result.code, 66, str(result))
            self.assertIn("Can't find snapshot", result.err)

    def test_a_snapshot_without_a_name(self):
        for folder in (self.ours, self.theirs):
            tool_test.qemu("snapshot", "-c", "", "plain.qcow2", cwd=folder)
            qemu_io(os.path.join(folder, "plain.qcow2"), "write -q -P 6 0 64k")
        for word in ("", "snapshot.name=", "snapshot.id=1,snapshot.name="):
            with self.subTest(word=word):
                self.same("convert", "-l", word, "-O", "raw", "plain.qcow2", "out", code=0)
                self.assertEqual(tool_test.digest(f"{self.ours}/out"), tool_test.digest(f"{self.theirs}/out"))
        self.same("convert", "-l", "snapshot.id=", "-O", "raw", "plain.qcow2", "out", code=1)

    def test_columns_are_counted_in_bytes(self):
        for folder in (self.ours, self.theirs):
            for name in ("\u00fc\u00fc\u00fc", "\u4e16\u754c", "\u00fc" * 20, "\u00fc" * 8):
                tool_test.qemu("snapshot", "-c", name, "plain.qcow2", cwd=folder)
        theirs, ours = ([re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", line) for line in side.out.splitlines()]
                        for side in self.both("snapshot", "-l", "plain.qcow2"))
        self.assertEqual(ours, theirs)

    def test_rename(self):
        self.assertEqual(self.byre("snapshot", "--rename", "first", "--to", "last", "full.qcow2").code, 0)
        self.assertEqual(self.names_and_ids(self.ours)[0], ("1", "last"))
        self.sound("full.qcow2")
        for words in (("--rename", "last"), ("--to", "x"), ("--rename", "none", "--to", "x"),
                      ("--rename", "last", "--to", "n" * 256)):
            self.assertEqual(self.byre("snapshot", *words, "full.qcow2").code, 66 if "none" in words else 64)
        result = self.byre("snapshot", "--rename", "last", "--to", "x", "-c", "y", "full.qcow2")
        self.assertEqual(result.code, 64)
        self.assertIn("Cannot mix '-l', '-a', '-c', '-d', '--rename'", result.err)

    def test_what_a_name_holds_never_drives_the_terminal(self):
        self.assertEqual(self.byre("snapshot", "-c", "\x1b[31mred", "plain.qcow2").code, 0)
        self.assertIn(r"\x1b[31mred", self.byre("snapshot", "-l", "plain.qcow2").out)



if __name__ == "__main__":
    main()
