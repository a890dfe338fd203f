# SPDX-License-Identifier: Apache-2.0
"""convert --salvage: what cannot be read becomes zeros, is listed, and everything else is there.

The images are made by QEMU and damaged; a copy must hold the disk as it was but for the ranges that are listed.
"""
import json
import os
import random
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, KIB, MIB, Case, main, only_byre, options_of, qemu_img, qemu_io, run  # noqa: E402

SIZE = 4 * MIB
CLUSTER = 64 * KIB


@only_byre
class Salvage(Case):
    def setUp(self):
        super().setUp()
        self.image, self.target = self.path("disk.qcow2"), self.path("target.raw")
        self.raw = self.path("source.raw")
        self.model = random.Random(1).randbytes(SIZE)
        with open(self.raw, "wb") as file:
            file.write(self.model)
        self.make()

    def make(self, *words):
        qemu_img("convert", "-f", "raw", "-O", "qcow2", *words, self.raw, self.image)
        with open(self.image, "rb") as file:
            self.bytes = bytearray(file.read())
        self.l1 = self.word(40)
        self.l2 = self.word(self.l1) & 0x00fffffffffffe00

    def word(self, at):
        return struct.unpack_from(">Q", self.bytes, at)[0]

    def put(self, at, value):
        struct.pack_into(">Q", self.bytes, at, value)

    def save(self):
        with open(self.image, "wb") as file:
            file.write(self.bytes)

    def salvage(self, expected, *words, image=None, code=4):
        """Exactly the ranges in `expected` are lost, and the rest is right."""
        source = image or self.image
        form = "raw" if source.endswith(".raw") else "qcow2"
        done = run(BYRE, "convert", "--force", "--salvage", "--output=json", *words, "-f", form, "-O", "raw", source, self.target,
                   ok=(code,))
        report = json.loads(done.out)
        self.assertEqual([(e["offset"], e["length"]) for e in report["lost"]], expected, done.text)
        self.assertEqual(report["lost-bytes"], sum(length for _, length in expected))
        want = bytearray(self.model)
        for offset, length in expected:
            want[offset:offset + length] = bytes(length)
        with open(self.target, "rb") as file:
            self.assertTrue(file.read() == want)
        return report

    def test_nothing_is_wrong(self):
        report = self.salvage([], code=0)
        self.assertEqual(report, {"lost": [], "lost-bytes": 0})

    def test_damaged_entries(self):
        good = [self.word(self.l2 + 8 * i) for i in range(SIZE // CLUSTER)]
        self.put(self.l2 + 8 * 3, good[3] + 512)  # Not aligned.
        self.put(self.l2 + 8 * 10, good[10] | 1 << 60)  # A reserved bit.
        self.put(self.l2 + 8 * 11, good[11] | 1 << 60)
        self.put(self.l2 + 8 * 20, 1 << 63 | 1 << 40)  # Far behind the end.
        self.save()
        report = self.salvage([(3 * CLUSTER, CLUSTER), (10 * CLUSTER, 2 * CLUSTER), (20 * CLUSTER, CLUSTER)])
        self.assertIn("behind the end of the file", report["lost"][2]["reason"])
        # Without it the error says where, and what helps; there is no target.
        os.unlink(self.target)
        done = run(BYRE, "convert", "-f", "qcow2", "-O", "raw", self.image, self.target, ok=(1,))
        self.assertIn("0x30000", done.text)
        self.assertIn("--salvage copies what can be read", done.text)
        self.assertFalse(os.path.exists(self.target))

    def test_for_people_and_for_qemu_img(self):
        self.put(self.l2 + 8 * 3, self.word(self.l2 + 8 * 3) + 512)
        self.save()
        done = run(BYRE, "convert", "--salvage", "-f", "qcow2", "-O", "raw", self.image, self.target, ok=(4,))
        self.assertEqual(done.out, b"")
        self.assertIn("lost 65536 bytes at 0x30000", done.text)
        self.assertIn("65536 bytes in 1 range could not be read, and are zeros", done.text)
        name = self.path("qemu-img")
        os.symlink(BYRE, name)
        done = run(name, "convert", "--salvage", "-f", "qcow2", "-O", "raw", self.image, self.target, ok=(0,))
        self.assertIn("lost 65536 bytes at 0x30000", done.text)
        done = run(BYRE, "convert", "--output=json", "-f", "qcow2", "-O", "raw", self.image, self.path("x.raw"), ok=(1,))
        self.assertIn("--salvage copies what can be read", json.loads(done.err)["error"]["message"])

    def test_a_damaged_l1_table(self):
        self.make(*options_of(cluster_size=4096))  # Each table maps 2 MiB.
        l1 = self.word(40)
        self.put(l1 + 8, self.word(l1 + 8) + 512)
        self.save()
        self.salvage([(2 * MIB, 2 * MIB)])
        # The table leads behind the end of the file.
        self.put(l1 + 8, 1 << 63 | 1 << 40)
        self.save()
        self.salvage([(2 * MIB, 2 * MIB)])

    def test_an_l1_table_that_is_not_there(self):
        """Only its first sector is: a disk of 512-byte clusters has an entry for each 32 KiB."""
        self.make(*options_of(cluster_size=512))
        l1 = self.word(40)
        entries = struct.unpack_from(">I", self.bytes, 36)[0]
        table = self.bytes[l1:l1 + 512]
        at = len(self.bytes)
        self.bytes += table  # The file ends behind it.
        self.put(40, at)
        self.save()
        self.assertEqual(entries, SIZE // (32 * KIB))
        self.salvage([(64 * 32 * KIB, SIZE - 64 * 32 * KIB)])
        done = run(BYRE, "convert", "--force", "-f", "qcow2", "-O", "raw", self.image, self.target, ok=(1,))
        self.assertIn("--salvage", done.text)

    def test_a_truncated_image(self):
        clusters = [self.word(self.l2 + 8 * i) & 0x00fffffffffffe00 for i in range(SIZE // CLUSTER)]
        end = sorted(clusters)[40]
        del self.bytes[end:]
        self.save()
        lost = [i for i, at in enumerate(clusters) if at >= end]
        self.assertEqual(lost, list(range(40, 64)))
        self.salvage([(40 * CLUSTER, 24 * CLUSTER)])

    def test_a_stream_that_does_not_inflate(self):
        with open(self.raw, "r+b") as file:
            file.write(b"".join(bytes([i]) * CLUSTER for i in range(1, 9)))
        with open(self.raw, "rb") as file:
            self.model = file.read()
        self.make("-c")
        entry = self.word(self.l2 + 8 * 5)
        self.assertTrue(entry >> 62 & 1)
        at = entry & ((1 << 54) - 1)
        self.bytes[at:at + 8] = b"\xff" * 8
        self.save()
        report = self.salvage([(5 * CLUSTER, CLUSTER)])
        self.assertIn("compressed stream", report["lost"][0]["reason"])

    def test_metadata_that_reading_does_not_need(self):
        qemu_img("snapshot", "-c", "first", self.image)
        with open(self.image, "rb") as file:
            self.bytes = bytearray(file.read())
        for at, value, size in ((48, 1 << 50, 8), (64, 1 << 40, 8), (79, 3, 1)):  # Refcounts, snapshots, dirty and corrupt.
            with self.subTest(at=at):
                before = bytes(self.bytes)
                self.bytes[at:at + size] = value.to_bytes(size, "big")
                self.save()
                self.salvage([], code=0)
                self.bytes = bytearray(before)

    def test_a_damaged_backing_file(self):
        overlay = self.path("overlay.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", self.image, "-F", "qcow2", overlay)
        qemu_io(overlay, "write -P 9 192k 64k")
        model = bytearray(self.model)
        model[192 * KIB:256 * KIB] = b"\x09" * 64 * KIB
        self.model = bytes(model)
        for cluster in (3, 8):  # The first of them is hidden.
            self.put(self.l2 + 8 * cluster, self.word(self.l2 + 8 * cluster) + 512)
        self.save()
        self.salvage([(8 * CLUSTER, CLUSTER)], image=overlay)

    def test_a_snapshot(self):
        qemu_img("snapshot", "-c", "first", self.image)
        qemu_io(self.image, "write -P 1 0 4M")
        with open(self.image, "rb") as file:
            self.bytes = bytearray(file.read())
        self.put(self.l2 + 8 * 3, self.word(self.l2 + 8 * 3) + 512)
        self.save()
        self.salvage([(3 * CLUSTER, CLUSTER)], "-l", "first")

    def test_to_an_image_and_onto_a_backing_file(self):
        self.put(self.l2 + 8 * 3, self.word(self.l2 + 8 * 3) + 512)
        self.save()
        target = self.path("new.qcow2")
        run(BYRE, "convert", "--salvage", "-f", "qcow2", "-O", "qcow2", "-c", self.image, target, ok=(4,))
        self.assert_sound(target)
        qemu_io(target, "read -P 0 192k 64k")


if __name__ == "__main__":
    main()
