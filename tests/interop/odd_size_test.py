# SPDX-License-Identifier: Apache-2.0
"""Disks that end inside a sector: a raw file of 1000 bytes, an image whose header says 1000.

For everyone they have 1024 bytes, the last 24 of which are zeros until somebody writes them, as with QEMU and raw files.
(Of an image whose size is odd QEMU shows whole sectors too, but rounds down.)
"""
import json
import os
import random
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, Case, byre_io, img, main, only_byre, qemu_img, qemu_io, run  # noqa: E402


@only_byre
class OddSize(Case):
    def setUp(self):
        super().setUp()
        self.raw, self.image = self.path("odd.raw"), self.path("odd.qcow2")
        self.data = random.Random(1).randbytes(1000)
        with open(self.raw, "wb") as file:
            file.write(self.data)
        # Its cluster holds more than the header says, which is not the disk's.
        qemu_img("create", "-q", "-f", "qcow2", self.image, "1024")
        with open(self.path("whole"), "wb") as file:
            file.write(self.data + b"?" * 24)
        qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", self.path("whole"), self.image)
        with open(self.image, "r+b") as file:
            file.seek(24)
            file.write(struct.pack(">Q", 1000))
        self.expected = self.data + bytes(24)

    def each(self):
        for form, path in (("raw", self.raw), ("qcow2", self.image)):
            with self.subTest(form=form):
                yield form, path

    def content(self, form, path):
        img("convert", "--force", "-f", form, "-O", "raw", path, self.path("out.raw"))
        with open(self.path("out.raw"), "rb") as file:
            return file.read()

    def test_info_and_length(self):
        for form, path in self.each():
            self.assertEqual(json.loads(img("info", "-f", form, "--output=json", path).out)["virtual-size"], 1024)
            self.assertEqual(byre_io(path, "length", options=("-f", form, "-r")).text.strip(), "1 KiB")

    def test_reads_at_the_end(self):
        for form, path in self.each():
            byre_io(path, "read -P 0 1000 24", "read -v 990 34", "read 0 1024", options=("-f", form, "-r"))
            self.assertIn("failed", byre_io(path, "read 0 1025", options=("-f", form, "-r"), ok=None).text)
        self.assertEqual(os.stat(self.raw).st_size, 1000)

    def test_map(self):
        for form, path in self.each():
            entries = json.loads(img("map", "-f", form, "--output=json", path).out)
            self.assertEqual([(e["start"], e["length"], e["zero"], e["data"]) for e in entries],
                             [(0, 1000, False, True), (1000, 24, True, False)])
        self.assertEqual(img("map", "--output=json", self.raw).out, qemu_img("map", "--output=json", self.raw).out)

    def test_convert_both_ways(self):
        for form, path in self.each():
            self.assertEqual(self.content(form, path), self.expected)
            target = self.path("new.qcow2")
            img("convert", "-f", form, "-O", "qcow2", path, target)
            self.assert_sound(target)
            self.assertEqual(self.content("qcow2", target), self.expected)
            self.assert_compares(self.raw, target)
            os.unlink(target)
        qemu_img("compare", "-f", "raw", "-F", "raw", self.raw, self.path("out.raw"))
        # Several, one behind the other.
        img("convert", "--force", "-f", "raw", "-O", "raw", self.raw, self.raw, self.path("out.raw"))
        with open(self.path("out.raw"), "rb") as file:
            self.assertEqual(file.read(), self.expected * 2)
        # Into a disk that is there.
        with open(self.path("there"), "wb") as file:
            file.write(b"\xff" * 2048)
        img("convert", "-n", "-f", "raw", "-O", "raw", self.raw, self.path("there"))
        with open(self.path("there"), "rb") as file:
            self.assertEqual(file.read(), self.expected + bytes(1024))

    def test_overlays(self):
        for form, path in self.each():
            for size in ((), ("4096",)):
                overlay = self.path("overlay.qcow2")
                img("create", "-q", "-f", "qcow2", "-b", path, "-F", form, overlay, *size)
                length = int(size[0]) if size else 1024
                self.assertEqual(self.content("qcow2", overlay), self.expected + bytes(length - 1024))
                # What is copied up has no more than was there.
                byre_io(overlay, "write -P 7 0 1", options=("-f", "qcow2"))
                self.assertEqual(self.content("qcow2", overlay), b"\7" + self.expected[1:] + bytes(length - 1024))
                if form == "raw":
                    self.assert_compares(self.path("out.raw"), overlay)
                os.unlink(overlay)

    def test_a_write_at_the_end_makes_it_whole(self):
        for form, path in self.each():
            byre_io(path, "write -z 512 512", "read -P 0 512 512", "discard 512 512", options=("-f", form))
            byre_io(path, "write -P 7 512 512", "read -P 7 512 512", options=("-f", form))
            program = qemu_io if form == "raw" else byre_io
            program(path, "read -P 7 512 512", options=("-f", form))
            self.assertEqual(self.content(form, path)[512:], b"\7" * 512)
        self.assertEqual(os.stat(self.raw).st_size, 1024)
        qemu_img("check", "-f", "qcow2", self.image)
        self.assertEqual(json.loads(qemu_img("info", "--output=json", self.image).out)["virtual-size"], 1024)

    def test_served(self):
        for form, path in self.each():
            with self.server(path, form=form) as server:
                self.assertEqual(run("nbdinfo", "--size", server.uri).text.strip(), "1024")
                qemu_io(server.uri, "read -P 0 1000 24", "write -P 9 512 512", "read -P 9 512 512", options=("-f", "raw"))
            self.assertEqual(self.content(form, path), self.expected[:512] + b"\x09" * 512)

    def test_resize(self):
        for form, path in self.each():
            img("resize", "-q", "-f", form, path, "2048")
            self.assertEqual(self.content(form, path), self.expected + bytes(1024))
            img("resize", "-q", "-f", form, "--shrink", path, "1024")
            self.assertEqual(self.content(form, path), self.expected)
        with open(self.raw, "wb") as file:
            file.write(self.data)
        img("resize", "-q", "-f", "raw", self.raw, "+512")
        self.assertEqual(os.stat(self.raw).st_size, 1536)

    def test_snapshots_and_bitmaps(self):
        img("snapshot", "-c", "first", self.image)
        img("bitmap", "--add", "-g", "512", self.image, "changes")
        byre_io(self.image, "write -P 7 1000 24", options=("-f", "qcow2"))
        self.assertEqual(self.content("qcow2", self.image), self.data + b"\7" * 24)
        self.assert_sound(self.image)
        run(BYRE, "convert", "--force", "-l", "first", "-f", "qcow2", "-O", "raw", self.image, self.path("out.raw"))
        with open(self.path("out.raw"), "rb") as file:
            self.assertEqual(file.read(), self.expected)


if __name__ == "__main__":
    main()
