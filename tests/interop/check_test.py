# SPDX-License-Identifier: Apache-2.0
"""Three judges: byre check, qemu-img check and the reference, on images of QEMU and byre that were damaged by a seed.

What they must agree on, and where they may differ (docs/compatibility.md has the reasons):
  * An image that the reference or QEMU finds unsound, byre finds unsound.
  * QEMU finds no corruption where byre and the reference find none.
  * byre's counts without those beyond QEMU are compared number by number in the unit tests; here the verdicts are.
After a repair that byre accepts all three find nothing; what it refuses is untouched, byte for byte.
"""
import filecmp
import itertools
import json
import os
import random
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, Case, main, only_byre, qcow2ref, qemu_img, qemu_io, run  # noqa: E402

OFFSET = 0x00fffffffffffe00
ROUNDS = int(os.environ.get("BYRE_CHECK_ROUNDS", "60"))
SHAPES = ("cluster_size=512", "cluster_size=4k", "cluster_size=4k,refcount_bits=64", "cluster_size=4k,refcount_bits=8",
          "compat=0.10,cluster_size=4k", "cluster_size=16k,extended_l2=on", "cluster_size=64k", "cluster_size=4k,bitmap",
          "cluster_size=4k,refcount_bits=1", "cluster_size=4k,refcount_bits=2", "cluster_size=4k,refcount_bits=4",
          "cluster_size=4k,refcount_bits=32", "cluster_size=4k,compression_type=zstd",
          "cluster_size=16k,extended_l2=on,refcount_bits=8,compression_type=zstd")


def word(data, at):
    return struct.unpack_from(">Q", data, at)[0] if at + 8 <= len(data) else 0


class Damage:
    """Words of metadata of an image, and what is done to one of them."""

    def __init__(self, path, draw):
        with open(path, "rb") as file:
            self.data = bytearray(file.read())
        self.path, self.draw, data = path, draw, self.data
        self.cluster = 1 << struct.unpack_from(">I", data, 20)[0]
        self.places = {"l1": [], "l2": [], "refcount block": []}
        l1, entries = word(data, 40), struct.unpack_from(">I", data, 36)[0]
        for index in range(entries):
            entry = word(data, l1 + 8 * index)
            table = entry & OFFSET
            if table:
                self.places["l1"].append(l1 + 8 * index)
                self.places["l2"] += [at for at in range(table, table + self.cluster, 8) if word(data, at)]
        table = word(data, 48)
        for index in range(self.cluster // 8):
            block = word(data, table + 8 * index)
            if block:
                self.places["refcount block"] += [at for at in range(block, block + self.cluster, 8) if word(data, at)]

    def one(self):
        kind = self.draw.choice([kind for kind, places in self.places.items() if places])
        at = self.draw.choice(self.places[kind])
        old = word(self.data, at)
        offset = self.draw.randrange(len(self.data) // self.cluster + 2) * self.cluster
        new = self.draw.choice((old ^ 1 << self.draw.randrange(64), 0, old & ~OFFSET | offset, old + self.cluster,
                                word(self.data, self.draw.choice(self.places[kind])))) & (1 << 64) - 1
        struct.pack_into(">Q", self.data, at, new)
        return f"{kind} at {at:#x}: {old:#x} -> {new:#x}"

    def write(self):
        with open(self.path, "wb") as file:
            file.write(self.data)


@only_byre
class Judges(Case):
    numbers = itertools.count()

    def sound_image(self, shape, draw):
        """By QEMU or by byre; a snapshot where the refcounts have room for it."""
        return self.byre_image(shape, draw) if draw.randrange(2) else self.qemu_image(shape, draw)

    def byre_image(self, shape, draw):
        path = self.path("sound.qcow2")
        run(BYRE, "create", "--force", "-q", "-f", "qcow2", "-o", shape.replace(",bitmap", ""), path, "4M")

        def write(*commands):
            run(BYRE, "io", *[word for command in commands for word in ("-c", command)], path)

        def some(count):
            return [f"write -q{draw.choice(('', '', ' -c'))} -P {draw.randrange(1, 256)} {draw.randrange(60) * 64}k "
                    f"{draw.randrange(1, 3) * 64}k" for _ in range(count)]
        write(*some(6), "write -q -z 256k 64k", "discard -q 0 16k", "write -q -P 3 4k 8k")
        for name in "ab"[:draw.randrange(3)]:
            if "refcount_bits=1" in shape.split(","):
                break
            run(BYRE, "snapshot", "-c", name, path, ok=(0, 1))
            write(*some(2))
        if shape.endswith(",bitmap"):
            qemu_img("bitmap", "--add", "-g", "4k", path, "b")
            qemu_io(path, "write -q 2M 64k")
        qemu_img("check", "-q", "-f", "qcow2", path)
        return path

    def qemu_image(self, shape, draw):
        path = self.path("sound.qcow2")
        bitmap = shape.endswith(",bitmap")
        qemu_img("create", "-q", "-f", "qcow2", "-o", shape.replace(",bitmap", ""), path, "4M")
        writes = [f"write -q -P {draw.randrange(1, 256)} {draw.randrange(1000) * 4}k {draw.randrange(1, 25) * 4}k"
                  for _ in range(6)]
        writes += ["write -q -z 256k 64k", "discard -q 0 16k"]
        if draw.randrange(2):
            writes.insert(0, "write -q -c -P 7 3M 64k")
        qemu_io(path, *writes)
        if bitmap:
            qemu_img("bitmap", "--add", "-g", "4k", path, "b")
            qemu_io(path, "write -q 2M 64k")
        elif draw.randrange(2) and "refcount_bits=1" not in shape.split(","):
            qemu_img("snapshot", "-c", "a", path, ok=(0, 1))  # Narrow refcounts may have no room.
            qemu_io(path, f"write -q -P 9 {draw.randrange(100) * 4}k 64k")
        return path

    def verdicts(self, path):
        """What each finds: byre and QEMU (corruptions, leaks, could look), the reference (errors and COPIED mismatches, leaks)."""
        done = run(BYRE, "check", "-f", "qcow2", "--output=json", "--findings", "--decode", path, ok=(0, 1, 2, 3))
        byre = json.loads(done.out) if done.out else None
        peer = qemu_img("check", "-f", "qcow2", "--output=json", path, ok=(0, 1, 2, 3))
        try:
            qemu = json.loads(peer.out[peer.out.index(b"{"):])
        except ValueError:
            qemu = None
        return byre, qemu, qcow2ref.check(path)

    def test_all_three_agree_on_damaged_images_and_on_repaired_ones(self):
        accepted = refused = compared = 0
        for seed in range(ROUNDS):
            draw = random.Random(seed)
            sound = self.sound_image(SHAPES[seed % len(SHAPES)], draw)
            path = self.path("disk.qcow2")
            shutil.copy(sound, path)
            damage = Damage(path, draw)
            what = f"seed {seed}: " + "; ".join(damage.one() for _ in range(draw.randrange(1, 4)))
            damage.write()
            with self.subTest(what):
                byre, qemu, reference = self.verdicts(path)
                self.assertIsNotNone(byre)
                # That a stream does not inflate only byre looks at.
                bad = sum(finding["kind"] == "bad-stream" for finding in byre["findings"])
                own = byre.get("corruptions", 0) + byre["check-errors"] - bad
                others = reference["counts"]["errors"]
                if qemu:
                    theirs = qemu.get("corruptions", 0) + qemu["check-errors"]
                    if theirs:
                        self.assertTrue(own, "QEMU finds damage, byre does not")
                    if not own and not reference["counts"]["copied_mismatch"]:
                        self.assertFalse(theirs)
                    compared += 1
                if others:
                    self.assertTrue(own, reference["errors"][:3])
                if own:
                    self.assertTrue(others or reference["counts"]["copied_mismatch"], byre["findings"][:3])
                accepted_it = self.repaired(path)
                accepted += accepted_it
                refused += not accepted_it
        self.assertGreater(compared, ROUNDS * 3 // 4)
        self.assertGreater(accepted, ROUNDS // 4)
        self.assertGreater(refused, ROUNDS // 20)

    def repaired(self, path):
        """Whether byre repairs it; then nobody finds anything any more, and undo restores it."""
        before, journal = self.path("before"), self.path(f"journal-{next(self.numbers)}")
        shutil.copy(path, before)
        done = run(BYRE, "repair", "--apply", "--free-orphans", "-f", "qcow2", "-q", "--journal", journal, path,
                   ok=(0, 1))
        if done.code:
            self.assertIn("was not touched", done.text)
            self.assertTrue(filecmp.cmp(path, before, shallow=False))
            self.assertFalse(os.path.exists(journal))
            return False
        qemu_img("check", "-q", "-f", "qcow2", path)
        run(BYRE, "check", "-q", "-f", "qcow2", path)
        reference, size = qcow2ref.check(path), os.path.getsize(path)
        self.assertEqual(reference["errors"], [])
        self.assertEqual(reference["copied_mismatch"], [])
        # Counts for clusters behind the end of the file: the reference alone calls them leaks.
        self.assertEqual([leak for leak in reference["leaks"] if leak["offset"] < size], [])
        if os.path.exists(journal):
            run(BYRE, "repair", "--undo", journal, "-f", "qcow2", path)
            os.unlink(journal)
        self.assertTrue(filecmp.cmp(path, before, shallow=False))
        return True

    def test_r_all_leaves_no_corruption_where_repair_accepts(self):
        judged = 0
        for seed in range(1000, 1000 + ROUNDS // 3):
            draw = random.Random(seed)
            sound = self.sound_image(SHAPES[seed % len(SHAPES)], draw)
            path = self.path("disk.qcow2")
            shutil.copy(sound, path)
            damage = Damage(path, draw)
            what = f"seed {seed}: " + damage.one()
            damage.write()
            plan = json.loads(run(BYRE, "repair", "-f", "qcow2", "--output=json", path, ok=(0, 1, 2)).out)
            with self.subTest(what):
                run(BYRE, "check", "-q", "-r", "all", "-f", "qcow2", path, ok=(0, 2, 3))
                if not plan["accepted"]:
                    continue
                judged += 1
                left = json.loads(qemu_img("check", "-f", "qcow2", "--output=json", path, ok=(0, 3)).out)
                self.assertEqual(left.get("corruptions", 0), 0)
                # Leaks only where they may be the only copy of something.
                self.assertLessEqual(left.get("leaks", 0), plan["orphan-clusters"])
        self.assertGreater(judged, ROUNDS // 12)


if __name__ == "__main__":
    main()
