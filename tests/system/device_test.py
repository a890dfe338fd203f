# SPDX-License-Identifier: Apache-2.0
"""qemu-nbd -c and -d, byre serve --connect: a real kernel is the client, in a guest that runs byre itself."""
import hashlib
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from guest import Guest, judge, with_programs  # noqa: E402
from harness import BYRE, MIB, PATIENCE, Case, img, inputs, main, qemu_img, run  # noqa: E402

IMAGES = {"files": 128 * MIB, "other": 16 * MIB, "parts": 16 * MIB}


class Device(Case):
    def make_outer(self):
        """A disk for the guest, whose file system holds the images."""
        folder, outer = self.path("images"), self.path("outer.raw")
        os.mkdir(folder)
        for name, size in IMAGES.items():
            img("create", "-q", "-f", "qcow2", os.path.join(folder, name + ".qcow2"), size)
        with open(outer, "wb") as disk:
            disk.truncate(256 * MIB)
        run("mke2fs", "-q", "-t", "ext4", "-F", "-d", folder, outer)
        return outer

    def image(self, outer, name):
        """The image that the guest has left."""
        out = self.path(name + ".qcow2")
        run("debugfs", "-R", f"dump /{name}.qcow2 {out}", outer)
        self.assertIn("No errors", qemu_img("check", out).text)
        raw = self.path(name + ".raw")
        qemu_img("convert", "-O", "raw", out, raw)
        return raw

    def sum_of(self, raw):
        with open(raw, "rb") as content:
            return hashlib.sha256(content.read()).hexdigest()

    def test_the_kernel_is_a_client(self):
        outer, initrd = self.make_outer(), self.path("initrd")
        with_programs(inputs("initrd.cpio"), initrd, {"byre": BYRE, "qemu-nbd": BYRE})
        with self.server(outer, form="raw") as server:
            guest = Guest("device", server.sock, initrd=initrd, memory=512)
            self.addCleanup(guest.kill)
            lines = list(guest.lines(4 * PATIENCE))
            sums = judge(self, lines, guest)
        said = [" ".join(words[1:]) for words in lines if words[0] == "said"]
        for number, words in enumerate((
                "Failed to blk_new_open '/images/none.qcow2': Could not open '/images/none.qcow2': No such file",
                "Failed to open /dev/nbd0: No such file or directory (if this kernel has NBD devices, `modprobe nbd`",
                "Failed to attach /dev/nbd0: it is in use by process ",
                "'/images/files.qcow2' is locked for writing by qemu-nbd (pid ",
                "/dev/vda: it is no NBD device")):
            self.assertIn(words, said[number])
        self.assertEqual([line for line in said if line.endswith("disconnected")], ["/dev/nbd0 disconnected"] * 2)
        self.assertIn("attached to /dev/nbd3", said)
        self.assertIn("disconnected /dev/nbd3", said)
        self.assertTrue(said[-1].startswith("ended: "), said)

        raw = self.image(outer, "files")
        run("e2fsck", "-fy", raw, ok=(0, 1))
        for file in ("f1", "f3", "f5"):
            out = self.path("out")
            run("debugfs", "-R", f"dump /{file} {out}", raw)
            self.assertEqual(self.sum_of(out), sums[file], file)
        # 24 MiB were written and half of them trimmed.
        self.assertLess(os.stat(self.path("files.qcow2")).st_size, 36 * MIB)
        for name in ("other", "new"):
            self.assertEqual(self.sum_of(self.image(outer, name)), sums[name], name)
        with open(self.image(outer, "parts"), "rb") as disk:
            table = disk.read(512)
            self.assertEqual(table[510:], b"\x55\xaa")
            self.assertEqual(disk.read().strip(b"\0"), b"", "what -s took is in the image")


if __name__ == "__main__":
    main()
