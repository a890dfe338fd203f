# SPDX-License-Identifier: Apache-2.0
"""The same input gives the same bytes: commands that make an image, run several times, with io_uring and with threads.

Many requests are under way at a time, and which of them ends first is chance; the file shall not show it.
"""
import filecmp
import os
import random
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import confine  # noqa: E402
from harness import BYRE, KIB, MIB, Case, main, only_byre, qemu_img, run  # noqa: E402

ROUNDS = 3
SHAPES = ("cluster_size=64k", "cluster_size=4k", "cluster_size=512", "cluster_size=16k,extended_l2=on",
          "cluster_size=2M", "compat=0.10", "refcount_bits=1,cluster_size=4k")
COMPRESSED = ("cluster_size=64k", "cluster_size=4k", "cluster_size=512", "cluster_size=64k,compression_type=zstd",
              "cluster_size=16k,extended_l2=on")


def patchwork(path, size, seed):
    """Text that compresses, noise that does not, and holes, of lengths that fit nothing."""
    draw = random.Random(seed)
    with open(path, "wb") as file:
        at = 0
        while at < size:
            length = min(size - at, draw.randrange(512, 1 << draw.randrange(10, 21)))
            kind = draw.randrange(3)
            file.seek(at)
            if kind == 0:
                file.write((b"%d lines of text " % at * (length // 8 + 1))[:length])
            elif kind == 1:
                file.write(draw.randbytes(length))
            at += length
        file.truncate(size)


@only_byre
class SameBytes(Case):
    def setUp(self):
        super().setUp()
        self.source = self.path("source.raw")
        patchwork(self.source, 24 * MIB + 3 * KIB, 1)
        self.qemu = self.path("qemu-img")
        os.symlink(BYRE, self.qemu)

    def runs(self, target, *words):
        """Runs the command several times; `words` ends before the target's name."""
        first = self.path("first-" + target)
        for number in range(ROUNDS):
            for threads in (False, True):
                made = self.path(f"{number}{threads}-{target}")
                done = subprocess.run([*words, made], capture_output=True, check=False, timeout=120,
                                      preexec_fn=confine.forbid_io_uring if threads else None)
                self.assertEqual(done.returncode, 0, (words, done.stderr))
                if not os.path.exists(first):
                    os.rename(made, first)
                    continue
                self.assertTrue(filecmp.cmp(first, made, shallow=False), (words, "threads" if threads else "io_uring"))
                os.remove(made)
        return first

    def test_convert(self):
        for program in (BYRE, self.qemu):
            for number, shape in enumerate(SHAPES):
                made = self.runs(f"{number}{os.path.basename(program)}.qcow2", program, "convert", "-f", "raw", "-O",
                                 "qcow2", "-o", shape, "-m", "16", self.source)
                qemu_img("compare", "-f", "raw", "-F", "qcow2", self.source, made)

    def test_convert_compressed(self):
        for program in (BYRE, self.qemu):
            for number, shape in enumerate(COMPRESSED):
                made = self.runs(f"{number}c{os.path.basename(program)}.qcow2", program, "convert", "-c", "-f", "raw",
                                 "-O", "qcow2", "-o", shape, self.source)
                qemu_img("compare", "-f", "raw", "-F", "qcow2", self.source, made)
                qemu_img("check", made)

    def test_convert_past_the_page_cache(self):
        self.runs("direct.qcow2", BYRE, "convert", "-t", "none", "-T", "none", "-O", "qcow2", self.source)
        self.runs("direct-c.qcow2", BYRE, "convert", "-c", "-t", "none", "-O", "qcow2", self.source)

    def test_convert_from_compressed_over_a_backing_file(self):
        base, over = self.path("base.qcow2"), self.path("over.qcow2")
        run(BYRE, "convert", "-c", "-O", "qcow2", self.source, base)
        run(BYRE, "create", "-f", "qcow2", "-b", base, "-F", "qcow2", over)
        run(BYRE, "io", "-c", "write -P 7 1M 3M", "-c", "write -z 9M 2M", "-c", "write -P 8 20M 64k", over)
        self.runs("flat.qcow2", BYRE, "convert", "-O", "qcow2", over)
        self.runs("flat-c.qcow2", BYRE, "convert", "-c", "-O", "qcow2", over)
        self.runs("thin.qcow2", BYRE, "convert", "-O", "qcow2", "-B", base, "-F", "qcow2", over)

    def test_dd_and_create(self):
        for number in range(ROUNDS):
            for threads in (False, True):
                setup = confine.forbid_io_uring if threads else None
                for words, name in ((("dd", f"if={self.source}", "bs=64k", "skip=3", "-O", "qcow2"), "dd.qcow2"),
                                    (("create", "-f", "qcow2", "-o", "preallocation=full"), "full.qcow2"),
                                    (("create", "-f", "qcow2", "-o", "preallocation=metadata,cluster_size=512"),
                                     "metadata.qcow2")):
                    made = self.path(f"{number}{threads}-{name}")
                    command = [BYRE, *words, f"of={made}"] if words[0] == "dd" else [BYRE, *words, made, "9M"]
                    done = subprocess.run(command, capture_output=True, check=False, timeout=120, preexec_fn=setup)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    first = self.path("0False-" + name)
                    self.assertTrue(filecmp.cmp(first, made, shallow=False), command)

    def test_clusters_lie_in_guest_order(self):
        for options in ((), ("-c",)):
            noise = self.path("noise.raw")
            with open(noise, "wb") as file:
                file.write((random.Random(5).randbytes(40000) + bytes(25536)) * 200)
            made = self.path("ordered" + "".join(options) + ".qcow2")
            run(BYRE, "convert", *options, "-f", "raw", "-O", "qcow2", noise, made)
            entries = [int.from_bytes(raw, "big") for raw in self.l2_entries(made)]
            offsets = [entry & ((1 << 54) - 1 if options else 0x00fffffffffffe00) for entry in entries if entry]
            self.assertGreater(len(offsets), 150)
            self.assertEqual(offsets, sorted(offsets))

    @staticmethod
    def l2_entries(path):
        """Of the first table of an image with clusters of 64 KiB."""
        with open(path, "rb") as file:
            file.seek(40)
            file.seek(int.from_bytes(file.read(8), "big"))
            table = int.from_bytes(file.read(8), "big") & 0x00fffffffffffe00
            file.seek(table)
            data = file.read(64 * KIB)
        return [data[at:at + 8] for at in range(0, len(data), 8)]


if __name__ == "__main__":
    main()
