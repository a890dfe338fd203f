# SPDX-License-Identifier: Apache-2.0
"""A real Linux lives on a served disk: it makes a file system, writes, trims, remounts and compares."""
import hashlib
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from guest import Guest, judge  # noqa: E402
from harness import GIB, MIB, Case, img, main, qemu_img, run  # noqa: E402


class LinuxGuest(Case):
    def test_a_file_system_lives_on_the_disk(self):
        disk = self.path("disk.qcow2")
        img("create", "-q", "-f", "qcow2", disk, GIB)
        with self.server(disk) as server:
            guest = Guest("files", server.sock)
            self.addCleanup(guest.kill)
            lines = list(guest.lines())
            sums = judge(self, lines, guest)
        self.assertGreaterEqual(len(sums), 204)
        features = dict(word.split("=") for words in lines if words[0] == "disk" for word in words[1:])
        self.assertEqual(int(features["sectors"]), GIB // 512)
        self.assertEqual(features["cache"], "writeback")
        self.assertGreater(int(features["discard"]), 0)
        self.assertGreater(int(features["zeroes"]), 0)

        self.assert_sound(disk)
        # What was trimmed has been given back: 60 MiB were written, 18 of them deleted, 8 written after that.
        self.assertLess(os.stat(disk).st_blocks * 512, 90 * MIB)

        # Outside of the guest its files are what they were, to QEMU and to byre.
        for name, convert in (("qemu.raw", qemu_img), ("own.raw", img)):
            raw = self.path(name)
            convert("convert", "-f", "qcow2", "-O", "raw", disk, raw)
            run("e2fsck", "-fn", raw)
            for file in ("f1", "f5", "g1", "d/77"):
                out = self.path("out")
                run("debugfs", "-R", f"dump /{file} {out}", raw)
                with open(out, "rb") as content:
                    self.assertEqual(hashlib.sha256(content.read()).hexdigest(), sums[file], file)


if __name__ == "__main__":
    main()
