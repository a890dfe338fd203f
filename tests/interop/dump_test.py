# SPDX-License-Identifier: Apache-2.0
"""byre dump: what it shows of an image is what is in its bytes, and what the reference says."""
import json
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from forge import Forged  # noqa: E402
from harness import BYRE, KIB, MIB, Case, main, only_byre, qemu_img, qemu_io, run  # noqa: E402


@only_byre
class Dump(Case):
    def rows(self, *words):
        return json.loads(run(BYRE, "dump", "--output=json", *words).out)["rows"]

    def image(self, options="cluster_size=64k"):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "1G")
        qemu_io(path, "write -q -c -P 3 1M 64k", "write -q -P 1 0 128k", "write -q -z 256k 64k", "write -q -P 2 600M 64k")
        return path

    def word(self, path, at):
        with open(path, "rb") as file:
            file.seek(at)
            return struct.unpack(">Q", file.read(8))[0]

    def test_the_header_field_by_field(self):
        path = self.image()
        fields = {row["name"]: row for row in self.rows(path)}
        self.assertEqual(fields["size"]["value"], 1 << 30)
        self.assertEqual(fields["l1_table_offset"]["value"], self.word(path, 40))
        self.assertEqual(fields["refcount_order"]["meaning"], "refcounts of 16 bits")
        qemu_img("amend", "-f", "qcow2", "-o", "lazy_refcounts=on", path)
        fields = {row["name"]: row for row in self.rows(path)}
        self.assertIn("lazy refcounts", fields["compatible_features"]["meaning"])
        names = {row["name"] for row in self.rows(path, "extensions")}
        self.assertIn("feature name table", names)

    def test_the_way_from_a_guest_offset_and_back(self):
        path = self.image()
        rows = self.rows(path, "guest", "600M")
        upper, _, lower, count = rows
        self.assertEqual(self.word(path, upper["file-offset"]), upper["entry"])
        self.assertEqual(self.word(path, lower["file-offset"]), lower["entry"])
        self.assertEqual((upper["index"], lower["kind"], count["refcount"]), (1, "data", 1))
        with open(path, "rb") as file:
            file.seek(lower["host-offset"])
            self.assertEqual(file.read(64 * KIB), b"\2" * 64 * KIB)
        back = self.rows(path, "host", str(lower["host-offset"]))
        self.assertEqual(back[1]["owner"], "data")
        self.assertEqual(back[2]["guest-offset"], 600 * MIB)

    def test_every_kind_of_entry(self):
        rows = self.rows(self.image(), "l2", "0")
        self.assertEqual([(row["guest-offset"] // (64 * KIB), row["kind"]) for row in rows],
                         [(0, "data"), (1, "data"), (4, "zero"), (16, "compressed")])

    def test_refcounts_add_up_to_the_file(self):
        path = self.image()
        rows = self.rows(path, "refcounts")
        counted = sum(run_["clusters"] for row in rows for run_ in row["runs"])
        self.assertEqual(counted, -(-os.path.getsize(path) // (64 * KIB)))

    def test_snapshots_and_their_tables(self):
        path = self.image()
        qemu_img("snapshot", "-c", "monday", path)
        qemu_io(path, "write -q -P 9 0 64k")
        shot = self.rows(path, "snapshots")
        self.assertEqual([row["name"] for row in shot], ["monday"])
        now, then = self.rows(path, "guest", "0"), self.rows(path, "guest", "0", "--snapshot", "monday")
        self.assertNotEqual(now[2]["host-offset"], then[2]["host-offset"])
        self.assertEqual(self.rows(path, "l1", "--snapshot", "monday")[0]["file-offset"], shot[0]["l1-table"])
        who = self.rows(path, "host", str(self.rows(path, "guest", "64k")[2]["host-offset"]))
        seen = [row for row in who if "snapshots" in row]
        self.assertEqual(sorted((row["active"], tuple(row["snapshots"])) for row in seen),
                         [(False, ("monday",)), (True, ())])
        run(BYRE, "dump", "--snapshot", "tuesday", path, "l1", ok=(1,))

    def test_what_lies_behind_the_disk_is_said_to(self):
        path = self.image()
        qemu_img("snapshot", "-c", "large", path)
        run(BYRE, "resize", "--shrink", path, "2M")
        for where, behind in (("2M", True), ("2097151", False), ("400M", True)):
            rows = self.rows(path, "guest", where)
            self.assertEqual(rows[0].get("behind-the-disk", False), behind)
            self.assertEqual(b"behind the end of the disk" in run(BYRE, "dump", path, "guest", where).out, behind)
        self.assertIn("behind the end of the disk", run(BYRE, "dump", path, "guest", "600M", ok=(1,)).text)
        self.assertNotIn("behind-the-disk", self.rows(path, "guest", "600M", "--snapshot", "large")[0])

    def test_bitmaps(self):
        path = self.image()
        qemu_img("bitmap", "--add", "-g", "64k", path, "daily")
        qemu_io(path, "write -q -P 9 0 64k")
        rows = self.rows(path, "bitmaps")
        self.assertEqual([(row["name"], row["granularity"], row["in-use"]) for row in rows], [("daily", 64 * KIB, False)])

    def test_damage_is_shown_as_it_is(self):
        image = Forged(size=1 << 30)
        table = image.l2()
        image.put(table, 1 << 40 | 1 << 63, 1 << 58, 0x200 | 1 << 63)
        image.put(image.l1 + 8, 0x123)
        path = image.write(self.path("bad.qcow2"))
        self.assertEqual(["error" in row for row in self.rows(path, "l2", "0")], [True] * 3)
        self.assertIn("error", self.rows(path, "l1")[1])
        image.header(cluster_bits=77)
        image.write(path)
        self.assertIn("error", self.rows(path)[-1])
        self.assertEqual(self.rows(path)[4]["value"], 77)
        run(BYRE, "dump", path, "l1", ok=(1,))

    def test_what_does_not_go_together(self):
        path = self.image()
        for words in (("nonsense",), ("l2",), ("header", "5"), ("l1", "5"), ("guest", "x"), ("guest", "5T"),
                      ("host",), ("snapshots", "--snapshot", "a")):
            self.assertEqual(run(BYRE, "dump", path, *words, ok=(1,)).out, b"", words)
        self.assertIn("'foo' is not the index of an L1 entry", run(BYRE, "dump", path, "l2", "foo", ok=(1,)).text)
        for structure in ("guest", "host"):
            self.assertIn("'foo' is not an offset", run(BYRE, "dump", path, structure, "foo", ok=(1,)).text)


if __name__ == "__main__":
    main()
