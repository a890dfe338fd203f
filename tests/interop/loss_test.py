#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""byre repair --accept-loss: whatever leads nowhere is given up, listed, and can be taken back.

Each kind of damage is forged into images that QEMU made; qemu-img, byre and the reference judge what comes of it.
"""
import json
import os
import random
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, KIB, MIB, Case, main, only_byre, qcow2ref, qemu_img, qemu_io, run  # noqa: E402

OFFSET = 0x00fffffffffffe00
COPIED = 1 << 63
COMPRESSED = 1 << 62
CLUSTER = 64 * KIB
SIZE = 1 << 30  # Two L2 tables.


class Image:
    """Words of an image, by what they are."""

    def __init__(self, path):
        self.path = path

    def word(self, at):
        with open(self.path, "rb") as file:
            file.seek(at)
            return struct.unpack(">Q", file.read(8))[0]

    def put(self, at, *values):
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(struct.pack(f">{len(values)}Q", *values))

    def put_bytes(self, at, data):
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(data)

    @property
    def end(self):
        return -(-os.path.getsize(self.path) // CLUSTER) * CLUSTER

    @property
    def l1(self):
        return self.word(40)

    @property
    def l2(self):
        return self.word(self.l1) & OFFSET

    @property
    def step(self):
        return 16 if self.word(72) & 16 and self.word(4) >> 32 == 3 else 8

    def entry(self, index):
        return self.l2 + index * self.step

    def snapshots(self):
        return self.word(64)

    def extension(self, kind):
        at = self.word(100) >> 32
        while True:
            head = self.word(at)
            if head >> 32 in (0, kind):
                return at
            at += 8 + -(-(head & 0xffffffff) // 8) * 8

    def bitmaps(self):
        """Where the directory is."""
        return self.word(self.extension(0x23852875) + 24)


# Name, what it does, the guest ranges that are lost, what else is.
FIRST = [(0, CLUSTER)]
L2_DAMAGE = [
    ("unaligned", lambda i: i.put(i.entry(0), i.word(i.entry(0)) + 512), FIRST),
    ("a reserved bit", lambda i: i.put(i.entry(0), i.word(i.entry(0)) | 1 << 58), FIRST),
    ("a reserved low bit", lambda i: i.put(i.entry(0), i.word(i.entry(0)) | 1 << 3), FIRST),
    ("far behind the end", lambda i: i.put(i.entry(0), COPIED | 1 << 45), FIRST),
    ("just behind the end", lambda i: i.put(i.entry(0), COPIED | i.end + CLUSTER), FIRST),
    ("compressed, behind the end", lambda i: i.put(i.entry(0), COMPRESSED | 1 << 40), FIRST),
    ("garbage", lambda i: i.put(i.entry(0), 0x1234567812345678), FIRST),
    ("COPIED alone", lambda i: i.put(i.entry(0), COPIED), FIRST),
    ("two of them", lambda i: (i.put(i.entry(0), i.word(i.entry(0)) + 512),
                               i.put(i.entry(2), i.word(i.entry(2)) + 512)), FIRST + [(2 * CLUSTER, CLUSTER)]),
    ("two side by side", lambda i: (i.put(i.entry(0), i.word(i.entry(0)) + 512),
                                    i.put(i.entry(1), i.word(i.entry(1)) + 512)), [(0, 2 * CLUSTER)]),
    ("unaligned, and two owners", lambda i: (i.put(i.entry(0), i.word(i.entry(0)) + 512),
                                             i.put(i.entry(1), i.word(i.entry(2)))), FIRST),
    ("the file ends before", lambda i: os.truncate(i.path, i.end - CLUSTER), None),
]
HALF = 512 * MIB
L1_DAMAGE = [
    ("unaligned L2 table", lambda i: i.put(i.l1, i.word(i.l1) + 512), [(0, HALF)]),
    ("L2 table behind the end", lambda i: i.put(i.l1, COPIED | 1 << 44), [(0, HALF)]),
    ("reserved bits in L1", lambda i: i.put(i.l1 + 8, i.word(i.l1 + 8) | 1 << 60), [(HALF, HALF)]),
    ("COPIED alone in L1", lambda i: i.put(i.l1 + 8, COPIED), [(HALF, HALF)]),
    ("L2 table in the L1 table", lambda i: i.put(i.l1, COPIED | i.l1), [(0, HALF)]),
]


@only_byre
class Loss(Case):
    def build(self, options="cluster_size=64k", backing=False):
        for name in os.listdir(self.folder):
            os.unlink(self.path(name))
        path = self.path("disk.qcow2")
        words = []
        if backing:
            base = self.path("base")
            with open(base, "wb") as file:
                file.write(b"\x77" * MIB)
                file.truncate(SIZE)
            words = ["-b", base, "-F", "raw"]
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, *words, path, str(SIZE))
        qemu_io(path, *(f"write -q -P {i + 1} {i * CLUSTER} {CLUSTER}" for i in range(4)),
                f"write -q -P 9 {HALF} {CLUSTER}")
        return path

    def content(self, path):
        with open(path, "rb") as file:
            return file.read()

    def give_up(self, path, lost, things=0):
        """Refused without the option, planned with it, done, sound for all, undone; gives the report."""
        before = self.content(path)
        refused = run(BYRE, "repair", "--apply", path, ok=(1,)).text
        self.assertIn("repair --accept-loss", refused)
        self.assertIn("convert --salvage", refused)
        self.assertEqual(self.content(path), before)
        plan = json.loads(run(BYRE, "repair", "--accept-loss", "--output=json", path, ok=(2,)).out)
        self.assertEqual(self.content(path), before, "a plan wrote")
        self.assertTrue(plan["accepted"], plan)
        done = json.loads(run(BYRE, "repair", "--apply", "--accept-loss", "--output=json", path, ok=(0, 3)).out)
        self.assertEqual(plan["lost"], done["lost"])
        self.assertEqual([each["text"] for each in plan["actions"]], [each["text"] for each in done["actions"]])
        if lost is not None:
            self.assertEqual([(each["offset"], each["length"]) for each in done["lost"] if each["active"]], lost)
        self.assertEqual(len(done["lost-things"]), things, done)
        self.sound_and_undone(path, before)
        os.unlink(path + ".undo")
        run(BYRE, "check", "-q", path, ok=(0, 3))
        return done

    def sound_and_undone(self, path, before):
        """Leaves it repaired.  Copies keep their holes."""
        kept = self.path("kept")
        run("cp", "--sparse=always", path, kept)
        self.sound(path)
        run("cp", "--sparse=always", kept, path)
        run(BYRE, "repair", "--undo", path + ".undo", path)
        self.assertEqual(self.content(path), before)
        os.rename(kept, path)

    def sound(self, path):
        qemu_img("check", "-q", path, ok=(0, 3))
        run(BYRE, "check", "-q", path, ok=(0, 3))
        self.assertEqual(qcow2ref.check(path)["errors"], [])
        run(BYRE, "check", "-q", "-r", "leaks", path, ok=(0, 3))
        run(BYRE, "repair", "--apply", "-q", "--free-orphans", "--journal", self.path("last"), path)
        os.unlink(self.path("last")) if os.path.exists(self.path("last")) else None
        with open(path, "r+b") as file:  # Where the file was cut off its clusters are counted still.
            file.truncate(max(os.path.getsize(path), 2 * MIB))
        qemu_img("check", "-q", "-r", "leaks", path)
        self.assert_sound(path)

    def reads(self, path, lost):
        for index in range(4):
            is_lost = any(at <= index * CLUSTER < at + length for at, length in lost)
            qemu_io(path, f"read -q -P {0 if is_lost else index + 1} {index * CLUSTER} {CLUSTER}")
        is_lost = any(at <= HALF < at + length for at, length in lost)
        qemu_io(path, f"read -q -P {0 if is_lost else 9} {HALF} {CLUSTER}")

    def test_l2_entries(self):
        for options in ("cluster_size=64k", "compat=0.10", "extended_l2=on", "refcount_bits=1"):
            for backing in (False, True):
                for name, damage, lost in L2_DAMAGE:
                    with self.subTest(name, options=options, backing=backing):
                        path = self.build(options, backing)
                        damage(Image(path))
                        done = self.give_up(path, lost)
                        lost = [(each["offset"], each["length"]) for each in done["lost"]]
                        if "two owners" not in name:
                            self.reads(path, lost)
                        os.unlink(path)

    def test_l1_entries(self):
        for options in ("cluster_size=64k", "compat=0.10", "extended_l2=on"):
            for backing in (False, True):
                for name, damage, lost in L1_DAMAGE:
                    with self.subTest(name, options=options, backing=backing):
                        path = self.build(options, backing)
                        damage(Image(path))
                        if options == "extended_l2=on":
                            lost = None
                        done = self.give_up(path, lost)
                        self.reads(path, [(each["offset"], each["length"]) for each in done["lost"]])
                        os.unlink(path)

    def test_a_table_in_refcount_structures_leaves_them(self):
        """They are written anew; of what is left in the table, what makes no sense is lost."""
        for options in ("cluster_size=64k", "compat=0.10", "extended_l2=on"):
            for place in (lambda i: i.word(48), lambda i: i.word(i.word(48))):
                with self.subTest(options=options):
                    path = self.build(options)
                    image = Image(path)
                    image.put(image.l1, COPIED | place(image))
                    run(BYRE, "repair", "--apply", "-q", "--accept-loss", path, ok=(0, 3))
                    self.sound(path)
                    qemu_io(path, f"read -q -P 9 {HALF} {CLUSTER}")

    def test_version_2_hides_a_table_with_holes(self):
        path = self.build("compat=0.10", backing=True)
        image = Image(path)
        image.put(image.l1, image.word(image.l1) + 512)
        self.give_up(path, [(0, HALF)])
        qemu_io(path, f"read -q -P 0 0 {MIB}", f"read -q -P 0 {HALF - MIB} {MIB}", f"read -q -P 9 {HALF} {CLUSTER}")
        self.assertLess(os.stat(path).st_blocks * 512, 4 * MIB)

    def test_what_version_2_cannot_hide_can_be_salvaged(self):
        """256 GiB of zeros for one L1 entry are too much."""
        path, base, copy = self.path("disk.qcow2"), self.path("base"), self.path("copy.qcow2")
        with open(base, "wb") as file:
            file.write(b"\x77" * 2 * MIB)
        qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10,cluster_size=2M", "-b", base, "-F", "raw", path, "600G")
        qemu_io(path, f"write -q -P 1 0 {CLUSTER}", f"write -q -P 2 550G {CLUSTER}")
        image = Image(path)
        image.put(image.l1, image.word(image.l1) + 512)
        before = self.content(path)
        for words in ((), ("--apply",)):
            done = run(BYRE, "repair", "--accept-loss", *words, path, ok=(1,)).text
            self.assertIn("version 2 has no zero flag that hides a backing file", done)
            self.assertIn(f"convert --salvage -O qcow2 '{path}' COPY", done)
        self.assertEqual(self.content(path), before)
        run(BYRE, "convert", "--salvage", "-O", "qcow2", path, copy, ok=(4,))
        qemu_io(copy, f"read -q -P 0 0 {4 * MIB}", f"read -q -P 2 550G {CLUSTER}")

    def test_an_l1_table_behind_the_end(self):
        for options in ("cluster_size=64k", "compat=0.10", "extended_l2=on"):
            for backing in (False, True):
                for name, place in (("far", lambda i: 1 << 44), ("just there", lambda i: i.end + CLUSTER)):
                    with self.subTest(name, options=options, backing=backing):
                        path = self.build(options, backing)
                        image = Image(path)
                        image.put(40, place(image))
                        self.give_up(path, [(0, SIZE)])
                        self.reads(path, [(0, SIZE)])
                        qemu_io(path, f"read -q -P 0 900M {MIB}")
                        os.unlink(path)

    def test_an_l1_table_of_which_the_file_has_a_part(self):
        """It was the last thing that the file got: it was moved when the disk grew."""
        for options in ("cluster_size=512", "cluster_size=512,compat=0.10"):
            for backing in (False, True):
                for lost_bytes in (6 * 512, 20 * 512 + 100):
                    with self.subTest(options=options, backing=backing, lost_bytes=lost_bytes):
                        path, base = self.path("disk.qcow2"), self.path("base")
                        with open(base, "wb") as file:
                            file.write(b"\x77" * 16 * MIB)
                        words = ["-b", base, "-F", "raw"] if backing else []
                        qemu_img("create", "-q", "-f", "qcow2", "-o", options, *words, path, "16M")
                        qemu_io(path, f"write -q -P 1 0 {CLUSTER}", f"write -q -P 2 15M {CLUSTER}")
                        qemu_img("resize", "-q", path, "64M")
                        image = Image(path)
                        l1_end = image.l1 + 2048 * 8
                        self.assertGreater(l1_end, os.path.getsize(path) - 100 * 512)
                        os.truncate(path, l1_end - lost_bytes)
                        first = (2048 - -(-lost_bytes // 8)) * 32 * KIB
                        self.give_up(path, [(first, 64 * MIB - first)])
                        qemu_io(path, f"read -q -P 1 0 {CLUSTER}", f"read -q -P 2 15M {CLUSTER}",
                                f"read -q -P 0 {first} {64 * MIB - first}",
                                f"read -q -P {0x77 if backing else 0} 8M 64k")
                        os.unlink(path)

    def test_more_references_than_a_refcount_holds(self):
        """Nothing is lost: what is too much gets copies."""
        for order, snapshots in ((0, 1), (0, 3), (1, 4), (1, 7)):
            for compressed in ("", "-c "):
                with self.subTest(order=order, snapshots=snapshots, compressed=compressed):
                    path = self.path("disk.qcow2")
                    qemu_img("create", "-q", "-f", "qcow2", path, str(SIZE))
                    qemu_io(path, *(f"write -q {compressed}-P {i + 1} {i * CLUSTER} {CLUSTER}" for i in range(4)),
                            f"write -q -P 9 {HALF} {CLUSTER}")
                    for number in range(snapshots):
                        qemu_img("snapshot", "-c", f"s{number}", path)
                    with open(path, "r+b") as file:
                        file.seek(96)
                        file.write(struct.pack(">I", order))
                    image = Image(path)
                    image.put_bytes(image.word(image.word(48)), bytes(CLUSTER))
                    before = self.content(path)
                    plan = run(BYRE, "repair", path, ok=(2,)).text
                    self.assertIn("a copy of", plan)
                    run(BYRE, "repair", "--apply", "-q", path, ok=(0, 3))
                    self.sound_and_undone(path, before)
                    self.reads(path, [])
                    for number in range(snapshots):
                        copy = self.path("copy")
                        qemu_img("convert", "-l", f"s{number}", "-O", "raw", path, copy)
                        with open(copy, "rb") as file:
                            self.assertEqual(file.read(4 * CLUSTER), b"".join(bytes([i + 1]) * CLUSTER for i in range(4)))
                    os.unlink(path)
                    os.unlink(path + ".undo")

    def test_a_zero_cluster_with_a_bad_host_loses_nothing(self):
        path = self.build("extended_l2=on")
        image = Image(path)
        image.put(image.entry(0), 1 << 45, 0xffffffff00000000)
        done = self.give_up(path, [])
        self.assertEqual(done["lost"], [])

    def test_subclusters_that_contradict_each_other(self):
        path = self.build("extended_l2=on", backing=True)
        image = Image(path)
        qemu_io(path, f"write -q -P 5 {8 * CLUSTER} 2k")
        self.assertEqual(image.word(image.entry(8) + 8), 1)
        image.put(image.entry(8) + 8, 1 << 32 | 1)
        self.give_up(path, [(8 * CLUSTER, CLUSTER)])
        qemu_io(path, f"read -q -P 0 {8 * CLUSTER} 2k", f"read -q -P 0x77 {8 * CLUSTER + 2 * KIB} 62k")

    def test_zero_flags_in_version_2(self):
        path = self.build("compat=0.10", backing=True)
        image = Image(path)
        image.put(image.entry(0), image.word(image.entry(0)) | 1)
        self.give_up(path, FIRST)
        self.reads(path, FIRST)

    def test_streams_that_do_not_inflate(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, str(SIZE))
        qemu_io(path, *(f"write -q -c -P {i + 1} {i * CLUSTER} {CLUSTER}" for i in range(4)))
        qemu_img("snapshot", "-c", "s", path)
        image = Image(path)
        at = image.word(image.entry(1)) & ((1 << 54) - 1)
        image.put_bytes(at, b"\xff" * 8)
        run(BYRE, "repair", path, ok=(0,))
        self.assertIn("accept-loss", run(BYRE, "repair", "--decode", path, ok=(1,)).text)
        done = json.loads(run(BYRE, "repair", "--decode", "--accept-loss", "--apply", "--output=json", path, ok=(0, 3)).out)
        self.assertEqual(done["lost"], [{"offset": CLUSTER, "length": CLUSTER, "active": True, "snapshots": ["s"]}])
        qemu_io(path, f"read -q -P 1 0 {CLUSTER}", f"read -q -P 0 {CLUSTER} {CLUSTER}", f"read -q -P 3 {2 * CLUSTER} {CLUSTER}")
        run(BYRE, "check", "-q", "--decode", path, ok=(0, 3))

    def test_snapshots_that_see_the_loss_are_named(self):
        for options in ("cluster_size=64k", "compat=0.10"):
            with self.subTest(options=options):
                path = self.build(options, backing=True)
                qemu_img("snapshot", "-c", "monday", path)
                image = Image(path)
                image.put(image.entry(0), (image.word(image.entry(0)) & ~COPIED) + 512)
                done = self.give_up(path, FIRST)
                self.assertEqual(done["lost"][0]["snapshots"], ["monday"])
                qemu_img("snapshot", "-a", "monday", path)
                self.reads(path, FIRST)
                qemu_img("snapshot", "-d", "monday", path)
                self.sound(path)
                os.unlink(path)

    def test_snapshots_whose_tables_are_nowhere(self):
        def unaligned(image, at):
            image.put(at, image.word(at) + 512)

        def behind_end(image, at):
            image.put(at, 1 << 44)

        def just_behind_end(image, at):
            image.put(at, image.end + CLUSTER)

        def the_disks(image, at):
            image.put(at, image.l1)

        for damage in (unaligned, behind_end, just_behind_end, the_disks):
            with self.subTest(damage=damage.__name__):
                path = self.build()
                for name in ("one", "two"):
                    qemu_img("snapshot", "-c", name, path)
                    qemu_io(path, f"write -q -P 1 0 {CLUSTER}")
                image = Image(path)
                damage(image, image.snapshots())
                self.give_up(path, [], things=1)
                left = json.loads(qemu_img("info", "--output=json", path).out)["snapshots"]
                self.assertEqual([each["name"] for each in left], ["two"])
                qemu_img("snapshot", "-a", "two", path)
                self.sound(path)
                os.unlink(path)

    def test_a_snapshot_table_that_cannot_be_read(self):
        path = self.build()
        qemu_img("snapshot", "-c", "one", path)
        image = Image(path)
        image.put(64, 1 << 44)
        self.give_up(path, [], things=1)
        self.reads(path, [])

    def test_extra_data_that_no_reader_takes(self):
        path = self.build()
        qemu_img("snapshot", "-c", "one", path)
        image = Image(path)
        at = image.snapshots()
        with open(path, "r+b") as file:
            file.seek(at)
            head = bytearray(file.read(40))
            size, = struct.unpack(">I", head[36:40])
            extra, rest = file.read(size), file.read(4)
            head[36:40] = struct.pack(">I", 2000)
            file.seek(at)
            file.write(head + extra + bytes(2000 - size) + rest)
        self.give_up(path, [])
        qemu_img("snapshot", "-a", "one", path)
        self.assert_sound(path)

    def test_bitmaps(self):
        def table_behind_end(image):
            image.put(image.bitmaps(), 1 << 44)

        def bad_entry(image):
            image.put(image.word(image.bitmaps()), 0x1003)

        def data_in_l1(image):
            image.put(image.word(image.bitmaps()), image.l1)

        def foreign(image):
            image.put_bytes(image.bitmaps() + 16, b"\2")

        def directory(image):
            image.put_bytes(image.bitmaps() + 18, b"\xff\xff")

        for damage, things, left in ((table_behind_end, 1, ["b"]), (bad_entry, 1, ["b"]), (data_in_l1, 1, ["b"]),
                                     (foreign, 1, ["b"]), (directory, 1, [])):
            with self.subTest(damage=damage.__name__):
                path = self.build()
                for name in ("a", "b"):
                    qemu_img("bitmap", "--add", path, name)
                qemu_io(path, f"write -q -P 1 0 {CLUSTER}")
                damage(Image(path))
                self.give_up(path, [], things=things)
                specific = json.loads(qemu_img("info", "--output=json", path).out)["format-specific"]["data"]
                self.assertEqual([each["name"] for each in specific.get("bitmaps", [])], left)
                self.reads(path, [])
                os.unlink(path)

    def test_external_data_files(self):
        for raw in ("on", "off"):
            with self.subTest(raw=raw):
                path = self.path("disk.qcow2")
                qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={self.path('data')},data_file_raw={raw}", path,
                         str(SIZE))
                qemu_io(path, *(f"write -q -P {i + 1} {i * CLUSTER} {CLUSTER}" for i in range(4)),
                        f"write -q -P 9 {HALF} {CLUSTER}")
                image = Image(path)
                image.put(image.entry(0), image.word(image.entry(0)) + 512)
                image.put(image.entry(1), image.word(image.entry(2)))
                lost = [] if raw == "on" else [(0, 2 * CLUSTER)]  # A raw file says itself what the disk is.
                self.give_up(path, lost)
                self.reads(path, lost)
                os.unlink(path)

    def test_whatever_a_seed_does_to_tables(self):
        """Words of L1 and L2 tables at random: sound with the losses that are listed, and nothing else reads otherwise."""
        for seed in range(60):
            draw = random.Random(seed)
            options = draw.choice(["cluster_size=64k", "compat=0.10", "extended_l2=on", "refcount_bits=2"])
            with self.subTest(seed=seed, options=options):
                path = self.build(options)
                image = Image(path)
                for _ in range(draw.randrange(1, 4)):
                    at = draw.choice([image.entry(draw.randrange(4)), image.entry(draw.randrange(4)), image.l1 + 8,
                                      image.entry(0) + image.step - 8])
                    image.put(at, draw.choice([image.word(at) ^ 1 << draw.randrange(64), draw.randrange(1 << 64),
                                               COPIED | draw.randrange(20) * CLUSTER]))
                code = run(BYRE, "check", "-q", "--decode", path, ok=(0, 2, 3)).code
                if code == 2:
                    run(BYRE, "repair", "--apply", "-q", "--accept-loss", "--decode", path, ok=(0, 3))
                    self.sound(path)

if __name__ == "__main__":
    main()
