# SPDX-License-Identifier: Apache-2.0
"""Commands that change an image, killed at any moment: what was there is there, and the image opens and is sound.

Each command is run to its end first, for how long it takes and what it leaves; then, on copies of the same image, it is
killed at moments drawn from a seed.  Afterwards byre opens the image for writing (which recovers it), and:
    1. the disk holds what it held before or what the command leaves, every snapshot what it held when it was made;
    2. qemu-img and the reference find leaks at most, which byre then repairs.
"""
import os
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import (BYRE, Case, byre_io, describe, examine, img, leaked, main, only_byre, options_of,  # noqa: E402
                     qcow2ref, qemu_img, qemu_io, run)

KILLS_EACH = 5
SHAPES = [{"cluster_size": "4k"}, {"compat": "0.10", "cluster_size": "4k"}, {"cluster_size": "16k", "extended_l2": "on"},
          {"cluster_size": 512, "lazy_refcounts": "on", "refcount_bits": 8}]
COMMANDS = {
    "make a snapshot": ["snapshot", "-c", "third", "DISK"],
    "apply a snapshot": ["snapshot", "-a", "first", "DISK"],
    "delete a snapshot": ["snapshot", "-d", "first", "DISK"],
    "rename a snapshot": ["snapshot", "--rename", "first", "--to", "another", "DISK"],
    "shrink": ["resize", "-f", "qcow2", "--shrink", "DISK", "3M"],
    "grow": ["resize", "-f", "qcow2", "DISK", "1G"],
    "add a bitmap": ["bitmap", "--add", "--enable", "-f", "qcow2", "DISK", "fresh"],
    "remove a bitmap": ["bitmap", "--remove", "-f", "qcow2", "DISK", "daily"],
    "merge bitmaps": ["bitmap", "--merge", "daily", "-f", "qcow2", "DISK", "weekly"],
    "become version 2": ["amend", "-f", "qcow2", "-o", "compat=0.10", "DISK"],
    "become version 3": ["amend", "-f", "qcow2", "-o", "compat=1.1", "DISK"],
    "widen the refcounts": ["amend", "-f", "qcow2", "-o", "refcount_bits=64", "DISK"],
    "widen the refcounts beside bitmaps": ["amend", "-f", "qcow2", "-o", "refcount_bits=64,lazy_refcounts=on", "DISK"],
    "shrink beside bitmaps": ["resize", "-f", "qcow2", "--shrink", "DISK", "3M"],
    "apply a snapshot beside bitmaps": ["snapshot", "-a", "first", "DISK"],
    "write compressed": ["io", "-f", "qcow2", "-t", "writeback", "-c", "write -c -P 9 1M 2M", "DISK"],
    "write zeroes": ["io", "-f", "qcow2", "-t", "writeback", "-c", "write -z -u 1M 2M", "DISK"],
    "discard": ["io", "-f", "qcow2", "-t", "writeback", "-c", "discard 1M 2M", "DISK"],
}
# What writes piece by piece leaves a part of its pieces.
PIECEWISE = {"write compressed", "write zeroes", "discard"}
# Those which an image of some shape cannot do.
REFUSED = {"become version 2": ("extended_l2", "refcount_bits"), "widen the refcounts": ("compat",), "grow": ("compat",),
           "shrink": ("compat",)}


def sums(image):
    """The size of the disk, its sum, and the sum of each snapshot."""
    reader = qcow2ref.Image(image)
    found = {name: reader.sum(snapshot=name) for name in snapshots(image)}
    return describe(image)["virtual-size"], reader.sum(), found


def bitmaps(image):
    """Those that are there and can be used: after a cut as well."""
    listed = describe(image)["format-specific"]["data"].get("bitmaps", [])
    return {bitmap["name"] for bitmap in listed if "in-use" not in bitmap["flags"]}


def snapshots(image):
    return [snapshot["name"] for snapshot in describe(image).get("snapshots", [])]


class CutOff(Case):
    def build(self, name, options):
        image = self.path("start.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", *options_of(**options), image, "4M")
        qemu_io(image, "write -P 1 0 2M", "write -P 2 3M 512k")
        qemu_img("snapshot", "-c", "first", image)
        qemu_io(image, "write -P 3 512k 2M")
        byre_io(image, "write -c -P 4 3M 64k")
        qemu_img("snapshot", "-c", "second", image)
        qemu_io(image, "write -P 5 1M 1M", "discard 0 256k", "write -P 6 3584k 256k")
        if "bitmap" in name:
            for bitmap in ("daily", "weekly"):
                qemu_img("bitmap", "--add", image, bitmap)
            qemu_io(image, "write -P 7 1M 100k")
        return image

    def start(self, words, disk):
        return subprocess.Popen([BYRE] + [disk if word == "DISK" else word for word in words],
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def cut_off(self, name, words, image, draw):
        disk = self.path("disk.qcow2")
        shutil.copyfile(image, disk)
        before = sums(disk)
        begun = time.monotonic()
        whole = self.start(words, disk)
        _, said = whole.communicate()
        took = time.monotonic() - begun
        self.assertEqual(whole.returncode, 0, said)
        after = sums(disk)
        known = {**before[2], **after[2]}
        killed = 0
        for _ in range(KILLS_EACH):
            shutil.copyfile(image, disk)
            process = self.start(words, disk)
            time.sleep(draw.uniform(0.2, 1.0) * took)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            process.stderr.close()
            self.judge(name, disk, before, after, known)
        return killed

    @staticmethod
    def bitmaps_before(name):
        """Which must be there whatever the command has done."""
        if "bitmap" not in name:
            return set()
        return {"weekly"} if name == "remove a bitmap" else {"daily", "weekly"}

    def judge(self, name, disk, before, after, known):
        for _ in range(100):  # The kernel may hold a killed process's locks for a moment.
            if byre_io(disk, "length", options=("-f", "qcow2"), ok=None).code == 0:
                break
            time.sleep(0.05)
        report = examine(disk)
        self.assertEqual(report["errors"], [])
        self.assertFalse(report["dirty"])
        # Version 2 has no dirty bit: COPIED may be missing there (docs/engine.md, S1), which is repaired like the leaks.
        mismatch = bool(report["copied_mismatch"])
        version_2 = describe(disk)["format-specific"]["data"]["compat"] == "0.10"
        self.assertTrue(version_2 or not mismatch)
        qemu_img("check", "-q", "-f", "qcow2", disk, ok=(0, 2, 3) if mismatch else (0, 3))
        size, disk_sum, copies = sums(disk)
        if name not in PIECEWISE:
            self.assertIn((size, disk_sum), [before[:2], after[:2]])
        for copy, found in copies.items():
            self.assertEqual(found, known[copy], copy)
        self.assertLessEqual(self.bitmaps_before(name), bitmaps(disk))
        for copy in before[2]:
            self.assertTrue(copy in copies or copy not in after[2], f"{copy} is gone")
        if leaked(report) or mismatch:
            img("check", "-q", "-f", "qcow2", "-r", "leaks", disk)
        self.assert_sound(disk)
        self.assertEqual(sums(disk), (size, disk_sum, copies))

    def each(self, name):
        draw = random.Random(int(os.environ.get("BYRE_SEED", "1")) * 1000 + len(name))
        killed = 0
        for options in SHAPES:
            if any(key in options for key in REFUSED.get(name, ())) or ("bitmap" in name and "compat" in options):
                continue
            with self.subTest(command=name, **options):
                image = self.build(name, options)
                killed += self.cut_off(name, COMMANDS[name], image, draw)
                os.unlink(image)
        self.assertGreater(killed, 0, "no kill came in time")


def add(name):
    @only_byre
    def test(self):
        self.each(name)
    setattr(CutOff, "test_" + name.replace(" ", "_"), test)


for _name in COMMANDS:
    add(_name)

if __name__ == "__main__":
    main()
