#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Images that other programs have damaged, changed and served: nothing that a guest can read is lost (docs/engine.md, V).

The damage is what the real qemu-io of this machine leaves when it plays the sessions of docs/peers.md, what OpenBSD's vmd leaves (a
refcount block in the second cluster of its region that nobody counted), and refcounts set to 0 by hand.

    BYRE_SECONDS=120 python3 tests/interop/damaged_test.py Served    # a guest that writes for two minutes
"""
import json
import os
import random
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from forge import COPIED, Forged  # noqa: E402
from harness import (BYRE, GIB, KIB, MIB, Case, Died, byre_io, img, main, only_byre, qemu_img, qemu_io,  # noqa: E402
                     run)

OFFSET = 0x00FFFFFFFFFFFE00
SECONDS = float(os.environ.get("BYRE_SECONDS", "2"))
DAMAGED = 76


class Bytes:
    """An image's fields, by place."""

    def __init__(self, path):
        self.path = path

    def get(self, at, form=">Q"):
        with open(self.path, "rb") as file:
            file.seek(at)
            return struct.unpack(form, file.read(struct.calcsize(form)))[0]

    def set(self, at, value, form=">Q"):
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(struct.pack(form, value))

    def table(self, index=0):
        return self.get(self.get(40) + 8 * index) & OFFSET

    def count(self, host, value):
        """Sets the refcount of the cluster at `host`; 16 bits, in the first block."""
        block = self.get(self.get(48))
        self.set(block + 2 * (host >> self.get(20, ">I")), value, ">H")


class Damaged(Case):
    def uncounted(self, name="disk.qcow2", clusters=4):
        """Data of the first clusters have refcount 0."""
        path = self.path(name)
        qemu_img("create", "-q", "-f", "qcow2", path, "8M")
        qemu_io(path, f"write -q -P 0xb3 0 {clusters * 64}k")
        image = Bytes(path)
        for i in range(clusters):
            image.count(image.get(image.table() + 8 * i) & OFFSET, 0)
        return path

    def assert_kept(self, path, clusters=4):
        qemu_io(path, f"read -q -P 0xb3 0 {clusters * 64}k")

    def played(self, *commands, size="1M", ok=(0, 1), blkdebug=None):
        """What the real qemu-io leaves."""
        path = self.path("played.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, size)
        if blkdebug is None:
            qemu_io(path, *commands, ok=ok)
        else:
            name = "driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=" + path + "," + blkdebug
            qemu_io(name, *commands, options=("--image-opts",), ok=ok)
        return path

    def vmd(self):
        """Small clusters; refcount blocks lie in the second cluster of their region, and are not counted."""
        path = self.path("vmd.qcow2")
        image = Forged(cluster_bits=9, size=1 * MIB)
        table = image.l2()
        for i in range(60):
            image.data(table, i, bytes([i + 1]) * 512)
        image.write(path)
        fields = Bytes(path)
        fields.set(fields.get(fields.get(48)) + 2 * (image.refblock // 512), 0, ">H")
        return path


@only_byre
class Commands(Damaged):
    def test_commands_that_add_to_an_image_keep_its_data(self):
        for words in (["bitmap", "--add", "disk.qcow2", "b"], ["resize", "-q", "disk.qcow2", "64G"],
                      ["io", "-f", "qcow2", "-c", "write -q -P 1 4M 64k", "disk.qcow2"]):
            with self.subTest(words=words):
                path = self.uncounted()
                done = img(*words, cwd=self.folder)
                self.assertIn("4 host clusters are used more often than counted", done.text)
                self.assertIn("byre repair", done.text)
                self.assert_kept(path)
                qemu_img("check", "-q", "-f", "qcow2", path)

    def test_commands_that_rebuild_metadata_change_nothing(self):
        for words in (["amend", "-o", "refcount_bits=32", "disk.qcow2"], ["snapshot", "-c", "s", "disk.qcow2"]):
            with self.subTest(words=words):
                path = self.uncounted()
                with open(path, "rb") as file:
                    before = file.read()
                done = img(*words, cwd=self.folder, ok=(DAMAGED,))
                self.assertIn("byre repair", done.text)
                with open(path, "rb") as file:
                    self.assertEqual(file.read(), before)

    def test_trusted_refcounts_are_believed(self):
        path = self.uncounted()
        done = run(BYRE, "io", "-c", "open -o trust-refcounts=on,driver=qcow2 " + path, "-c", "write -q -P 1 4M 256k", ok=None)
        self.assertNotIn("more often than counted", done.text)

    def test_health(self):
        path = self.uncounted()
        with open(path, "rb") as file:
            before = file.read()
        health = json.loads(img("info", "--health", "--output=json", path).out)["health"]
        self.assertEqual((health["sound"], health["undercounted-clusters"]), (False, 4))
        self.assertIn("byre repair", health["repair"])
        self.assertIn("health: damaged", img("info", "--health", path).text)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), before)
        img("repair", "--apply", path, ok=(0, 3))
        health = json.loads(img("info", "--health", "--output=json", path).out)["health"]
        self.assertEqual((health["sound"], health["undercounted-clusters"]), (True, 0))

    def test_a_sound_image_is_opened_without_a_word(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "8M")
        self.assertEqual(byre_io(path, "write -q 0 64k").text, "")
        self.assertIn("health: sound", img("info", "--health", path).text)

    def test_strict_serves_no_damaged_image(self):
        path = self.uncounted()
        done = run(BYRE, "serve", "--strict", "-f", "qcow2", "-k", self.path("nbd"), path, ok=(DAMAGED,))
        self.assertIn("more often than counted", done.text)
        qemu_img("create", "-q", "-f", "qcow2", self.path("sound.qcow2"), "8M")
        with self.server(self.path("sound.qcow2"), options=("--strict",)):
            pass

    def test_options_that_would_do_nothing_are_refused(self):
        path = self.uncounted()
        serve = ["serve", "-f", "qcow2", "-k", self.path("nbd")]
        for words in ([*serve, "--strict", "-r", path], [*serve, "--strict", "--trust-refcounts", path],
                      [*serve, "--free-leaks", "-r", path], ["resize", "--free-leaks", "--trust-refcounts", path, "9M"],
                      ["snapshot", "-l", "--free-leaks", path],
                      ["convert", "-O", "qcow2", "--free-leaks", path, self.path("new.qcow2")],
                      ["convert", "-O", "qcow2", "--trust-refcounts", path, self.path("new.qcow2")]):
            with self.subTest(words=words):
                img(*words, ok=(64,))
        self.assertFalse(os.path.exists(self.path("new.qcow2")))

    def test_leaks_are_freed_when_asked(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "8M")
        qemu_io(path, "write -q 0 256k")
        image = Bytes(path)
        image.set(image.table(), 0)  # What it led to is a leak.
        img("resize", "-q", path, "9M")
        self.assertIn("1 leaked", qemu_img("check", "-f", "qcow2", path, ok=(3,)).text)
        img("resize", "-q", "--free-leaks", path, "10M")
        qemu_img("check", "-q", "-f", "qcow2", path)
        qemu_io(path, "write -q 1M 64k")
        image.set(image.table() + 8 * 16, 0)
        img("amend", "--free-leaks", "-o", "lazy_refcounts=on", path)
        qemu_img("check", "-q", "-f", "qcow2", path)


@only_byre
class Served(Damaged):
    """A guest writes; what it does not write it finds as it was."""

    def serve(self, path, kept, writes, size, seconds=SECONDS):
        """`kept`: (offset, length) of what the guest only reads; it writes to `writes` = (offset, length)."""
        import nbd
        prng = random.Random(7)
        before = {}
        unit = 512
        server = self.server(path)
        try:
            handle = nbd.NBD()
            handle.connect_uri(server.uri)
            for offset, length in kept:
                before[offset] = handle.pread(length, offset)
            end = time.monotonic() + seconds
            written = {}
            start, room = writes
            while time.monotonic() < end:
                length = prng.randrange(1, 128) * unit
                at = start + prng.randrange(0, (room - length) // unit) * unit
                data = prng.randbytes(4) * (length // 4)
                way = prng.randrange(8)
                if way < 6:
                    handle.pwrite(data, at)
                elif way == 6:
                    handle.zero(length, at)
                    data = bytes(length)
                else:
                    handle.flush()
                    continue
                for i in range(0, length, unit):
                    written[at + i] = data[i:i + unit]
            for offset, data in before.items():
                self.assertEqual(handle.pread(len(data), offset), data, f"at {offset:#x}")
            for at, data in list(written.items())[:2000]:
                self.assertEqual(handle.pread(unit, at), data, f"at {at:#x}")
            handle.shutdown()
        finally:
            server.stop()
        return server.text

    def assert_counted(self, path):
        text = qemu_img("check", "-f", "qcow2", path, ok=(0, 2, 3)).text
        self.assertNotIn("refcount=0 reference=", text)
        report = json.loads(img("check", "--output=json", path, ok=(0, 2, 3)).out)
        health = json.loads(img("info", "--health", "--output=json", path).out)["health"]
        self.assertEqual(health["undercounted-clusters"], 0, text)
        return report

    def test_refcounts_of_0(self):
        path = self.uncounted()
        said = self.serve(path, [(0, 256 * KIB)], (2 * MIB, 6 * MIB), 8 * MIB)
        self.assertIn("4 host clusters", said)
        self.assert_kept(path)
        qemu_img("check", "-q", "-f", "qcow2", path)

    def test_a_refcount_block_that_vmd_did_not_count(self):
        path = self.vmd()
        self.assertIn("refcount=0 reference=1", qemu_img("check", "-f", "qcow2", path, ok=(2,)).text)
        self.serve(path, [(0, 60 * 512)], (64 * KIB, 900 * KIB), MIB)
        self.assert_counted(path)
        qemu_img("check", "-q", "-f", "qcow2", path)

    def test_the_packing_cursor(self):
        """R-C: a stream was packed into a cluster that had a new owner."""
        path = self.played("write -c -P 1 0 64k", "discard 0 64k", "write -P 3 128k 64k", "write -c -P 4 256k 64k")
        if qemu_img("check", "-f", "qcow2", path, ok=(0, 2)).code == 0:
            self.skipTest("this qemu-io does not show the defect")
        said = self.serve(path, [(128 * KIB, 64 * KIB), (256 * KIB, 64 * KIB)], (512 * KIB, 512 * KIB), MIB)
        self.assertIn("likely cause: compressed data packed into a cluster that had a new owner", said)
        self.assert_counted(path)

    def test_a_table_that_was_freed_although_an_l1_entry_led_to_it(self):
        """R-J: two L1 entries on one table."""
        path = self.played("write -P 1 0 64k", "write -P 2 512M 64k", size="2G",
                           blkdebug="file.inject-error.0.event=l1_update,file.inject-error.0.iotype=flush,file.inject-error.0.once=on")
        image = Bytes(path)
        if image.table(0) == 0 or image.table(0) != image.table(1):
            self.skipTest("this qemu-io does not show the defect")
        said = self.serve(path, [(0, 64 * KIB)], (512 * MIB, 4 * MIB), 2 * GIB)
        self.assertIn("likely cause: a failed update of the L1 table", said)
        self.assert_counted(path)

    def test_a_stream_that_was_linked_and_never_written(self):
        """R-K: nothing of the metadata is wrong; the range cannot be read, and everything else can."""
        path = self.played("write -c -P 1 0 64k", "write -P 2 64k 64k",
                           blkdebug="file.inject-error.0.event=write_compressed,file.inject-error.0.iotype=write,"
                                    "file.inject-error.0.once=on")
        self.serve(path, [(64 * KIB, 64 * KIB)], (512 * KIB, 512 * KIB), MIB)
        self.assert_counted(path)

    def test_an_allocating_write_against_a_discard(self):
        """R-H, which newer versions of QEMU have fixed: an entry leads to a cluster that was freed and given away."""
        path = self.path("played.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "1M")
        name = f"driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename={path}"
        script = "\n".join(["write -P 1 0 64k", "write -z 0 64k", "break write_aio A", "aio_write -P 2 0 64k", "wait_break A",
                            "discard 0 64k", "resume A", "length", "write -P 3 128k 64k", "quit"])
        try:
            run("qemu-io", "--image-opts", name, data=script.encode(), ok=None, patience=10)
        except Died:
            self.skipTest("this qemu-io waits for ever: it does not show the defect")
        if "refcount=" not in qemu_img("check", "-f", "qcow2", path, ok=(0, 2, 3)).text:
            self.skipTest("this qemu-io does not show the defect")
        self.serve(path, [(0, 64 * KIB), (128 * KIB, 64 * KIB)], (512 * KIB, 512 * KIB), MIB)
        self.assert_counted(path)

    def test_a_large_image_is_served_while_it_is_scanned(self):
        """More than 16 MiB of tables: reads and writes in place go on, what allocates waits for the scan."""
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "256G")
        qemu_io(path, "write -q -P 0xb3 0 64k")
        img("resize", "-q", path, "512G")
        image = Bytes(path)
        image.count(image.get(image.table()) & OFFSET, 0)
        said = self.serve(path, [(0, 64 * KIB)], (300 * GIB, 64 * MIB), 512 * GIB)
        self.assertIn("1 host cluster is used more often than counted", said)
        self.assert_kept(path, 1)
        qemu_img("check", "-q", "-f", "qcow2", path)

    def test_two_ranges_on_one_cluster(self):
        """R-A's end state, by hand."""
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "8M")
        qemu_io(path, "write -q -P 1 0 64k", "write -q -P 2 2M 64k")
        image = Bytes(path)
        image.set(image.table() + 8 * 32, image.get(image.table()))
        said = self.serve(path, [(0, 64 * KIB)], (2 * MIB, 4 * MIB), 8 * MIB)
        self.assertIn("likely cause: a write that was overtaken by a discard", said)
        self.assert_counted(path)

    def test_a_file_that_was_cut_off(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "8M")
        qemu_io(path, "write -q -P 1 0 1M")
        os.truncate(path, os.path.getsize(path) - 4 * 64 * KIB)
        said = self.serve(path, [(0, 512 * KIB)], (2 * MIB, 6 * MIB), 8 * MIB)
        self.assertIn("likely cause: a file that was cut off", said)
        for at in range(15 * 64 * KIB, 16 * 64 * KIB, 64 * KIB):
            done = byre_io(path, f"read -P 0 {at} 64k", ok=None)  # Zeros, or an error, but nobody's data.
            self.assertNotIn("verification failed", done.text)


if __name__ == "__main__":
    main()
