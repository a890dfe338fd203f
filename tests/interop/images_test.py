# SPDX-License-Identifier: Apache-2.0
"""Images both ways: what QEMU writes byre reads, and what byre writes QEMU reads, with every option of the format.

Each image is judged by qemu-img, by byre, and by tests/reference, which knows neither.
"""
import itertools
import json
import os
import random
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import nbd  # noqa: E402
from harness import (GIB, KIB, MIB, QEMU, TESTS, Case, byre_io, describe, examine, img, inputs,  # noqa: E402
                     leaked, main, only_byre, options_of, qcow2ref, qemu_img, qemu_io, run)

# Options of the format; qemu-img makes an image with each, and byre with those that it can.
OPTIONS = [
    {},
    {"compat": "0.10"},
    {"compat": "0.10", "cluster_size": 512},
    {"compat": "0.10", "cluster_size": "2M"},
    {"cluster_size": 512},
    {"cluster_size": 1024, "refcount_bits": 64},
    {"cluster_size": 4096, "refcount_bits": 8},
    {"cluster_size": "16k", "extended_l2": "on"},
    {"cluster_size": "32k", "refcount_bits": 32},
    {"cluster_size": "128k", "lazy_refcounts": "on"},
    {"cluster_size": "256k", "extended_l2": "on", "refcount_bits": 4},
    {"cluster_size": "1M"},
    {"cluster_size": "2M", "extended_l2": "on"},
    {"refcount_bits": 1},
    {"refcount_bits": 2, "compression_type": "zstd"},
    {"extended_l2": "on", "lazy_refcounts": "on", "compression_type": "zstd"},
]
PREALLOCATIONS = ("metadata", "falloc", "full")


def label(options):
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults"


def mixed(path, size, seed):
    """A raw disk of every kind of content: text, noise, zeros written and holes, at odd places."""
    draw = random.Random(seed)
    text = b"".join(b"line %d of a log that compresses well\n" % number for number in range(20000))
    with open(path, "wb") as file:
        file.truncate(size)
        for _ in range(24):
            at = draw.randrange(size)
            length = min(size - at, draw.choice((1, 511, 4096, 65536, 300000)))
            kind = draw.randrange(3)
            file.seek(at)
            file.write(draw.randbytes(length) if kind == 0 else text[:length] if kind == 1 else bytes(length))
        # The last bytes of the disk, too.
        file.seek(size - 100)
        file.write(draw.randbytes(100))
    return path


class Images(Case):
    def read_by_byre(self, image, raw, served=True):
        """byre reads from it what is in `raw`: converting, and over NBD."""
        out = self.path("out.raw")
        img("convert", "-f", "qcow2", "-O", "raw", image, out)
        self.assert_same(raw, out)
        os.unlink(out)
        if served:
            with self.server(image, read_only=True) as server:
                run("nbdcopy", server.uri, out)
                self.assert_same(raw, out)
                os.unlink(out)

    def read_by_qemu(self, image, raw):
        self.assert_compares(raw, image)
        out = self.path("out.raw")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", image, out)
        self.assert_same(raw, out)
        os.unlink(out)

    def read_by_reference(self, image, raw):
        with open(raw, "rb") as file:
            view = qcow2ref.Image(image)
            size = os.path.getsize(raw)
            self.assertEqual(view.size, size)
            for at in range(0, size, MIB):
                length = min(MIB, size - at)
                self.assertTrue(file.read(length) == view.read(at, length), f"differs from {at:#x} on")

    def agree_on_info(self, image):
        """info and map of both say the same where it matters."""
        theirs = describe(image)
        own = json.loads(img("info", "-f", "qcow2", "--output=json", image).out)
        for key in ("virtual-size", "cluster-size", "format", "backing-filename", "full-backing-filename",
                    "backing-filename-format", "dirty-flag", "snapshots", "format-specific"):
            self.assertEqual(own.get(key), theirs.get(key), key)
        own = json.loads(img("map", "-f", "qcow2", "--output=json", image).out)
        theirs = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", image).out)
        cuts = {extent["start"] for extent in own + theirs}
        ends = [max(extent["start"] + extent["length"] for extent in told) for told in (own, theirs)]
        self.assertEqual(ends[0], ends[1])
        for at in sorted(cuts):
            mine, other = (next(extent for extent in told if extent["start"] <= at < extent["start"] + extent["length"])
                           for told in (own, theirs))
            for key in ("present", "data"):
                self.assertEqual(mine[key], other[key], (key, mine, other))
            if mine["present"]:
                self.assertEqual(mine["depth"], other["depth"], (mine, other))
            # byre may know of more zeros: those which are holes in the file.  convert finds out if it is wrong.
            self.assertGreaterEqual(mine["zero"], other["zero"], (mine, other))
            if "offset" in mine and "offset" in other:
                self.assertEqual(mine["offset"] - mine["start"], other["offset"] - other["start"], (mine, other))

    def random_work(self, image, raw, seed, count=60):
        """The same requests on the image, through byre's server, and on the raw file."""
        draw = random.Random(seed)
        size = os.path.getsize(raw)
        with self.server(image) as server, open(raw, "r+b") as file:
            handle = nbd.NBD()
            handle.connect_uri(server.uri)
            for _ in range(count):
                at = draw.randrange(size // 512) * 512
                length = min(size - at, 512 * draw.choice((1, 3, 8, 64, 200, 1000)))
                kind = draw.choice("wwwzht")
                if kind == "t":
                    handle.trim(length, at)
                    data = handle.pread(length, at)  # As before or zeros: the server's choice.
                    file.seek(at)
                    before = file.read(length)
                    for part in range(0, length, 512):
                        now = data[part:part + 512]
                        self.assertTrue(now == before[part:part + 512] or not any(now), "trimmed to something else")
                else:
                    data = draw.randbytes(length) if kind == "w" else bytes(length)
                    if kind == "w":
                        handle.pwrite(data, at)
                    else:
                        handle.zero(length, at, flags=nbd.CMD_FLAG_NO_HOLE if kind == "h" else 0)
                file.seek(at)
                file.write(data)
            handle.flush()
            handle.shutdown()


class QemuWrites(Images):
    def test_every_option(self):
        size = 7 * MIB + 512 * 3
        raw = mixed(self.path("raw"), size, 1)
        for options in OPTIONS:
            with self.subTest(label(options)):
                image = self.path("image")
                qemu_img("convert", "-f", "raw", "-O", "qcow2", *options_of(**options), raw, image)
                self.agree_on_info(image)
                img("check", "-q", "-f", "qcow2", image)
                self.read_by_byre(image, raw, served=len(options) < 2)
                # byre goes on where QEMU stopped, and QEMU after it.
                copy = shutil.copy(raw, self.path("copy"))
                self.random_work(image, copy, label(options))
                self.assert_sound(image)
                self.read_by_qemu(image, copy)
                qemu_io(image, "write -P 0x5a 1M 700k", "write -z 3M 200k", "discard 4M 1M")
                qemu_img("convert", "-f", "qcow2", "-O", "raw", image, copy)
                self.read_by_byre(image, copy, served=False)
                self.assert_sound(image)

    def test_compressed(self):
        size = 5 * MIB + 512
        raw = mixed(self.path("raw"), size, 2)
        for kind, cluster, extended in itertools.chain(
                itertools.product(("zlib", "zstd"), (512, 4096, "64k", "2M"), ("off",)),
                (("zlib", "64k", "on"), ("zstd", "16k", "on"))):
            options = {"compression_type": kind, "cluster_size": cluster, "extended_l2": extended}
            with self.subTest(label(options)):
                image = self.path("image")
                qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", *options_of(**options), raw, image)
                self.agree_on_info(image)
                self.read_by_byre(image, raw)
                copy = shutil.copy(raw, self.path("copy"))
                self.random_work(image, copy, label(options), count=40)
                self.assert_sound(image)
                self.read_by_qemu(image, copy)

    def test_preallocated(self):
        for mode, options in itertools.product(PREALLOCATIONS, ({}, {"extended_l2": "on"}, {"cluster_size": 4096})):
            with self.subTest(mode, **options):
                image = self.path("image")
                raw = self.path("raw")
                qemu_img("create", "-q", "-f", "qcow2", *options_of(preallocation=mode, **options), image, "9M")
                with open(raw, "wb") as file:
                    file.truncate(9 * MIB)
                self.agree_on_info(image)
                self.read_by_byre(image, raw)
                self.random_work(image, raw, mode)
                self.assert_sound(image)
                self.read_by_qemu(image, raw)

    def test_zeros_of_every_kind(self):
        """Preallocated zeros, plain ones, discarded ones, and subclusters of them."""
        for options in ({}, {"extended_l2": "on"}, {"compat": "0.10"}):
            with self.subTest(label(options)):
                image, raw = self.path("image"), self.path("raw")
                qemu_img("create", "-q", "-f", "qcow2", *options_of(**options), image, "4M")
                qemu_io(image, "write -P 1 0 2M", "write -z 64k 128k", "write -z -u 256k 128k", "discard 512k 128k",
                        "write -z 700k 3k", "write -z -u 1000k 5k", "write -P 2 70k 1k", "write -P 3 300k 70k",
                        options=("-f", "qcow2", "-d", "unmap"))
                qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
                self.agree_on_info(image)
                self.read_by_byre(image, raw)
                self.random_work(image, raw, 3)
                self.assert_sound(image)
                self.read_by_qemu(image, raw)

    def test_backing_disks(self):
        """A chain whose layers differ in size: shorter ones read as zeros behind their end."""
        for form, below, above, options in (
                ("raw", 3 * MIB, 5 * MIB + 512, {}), ("raw", 5 * MIB, 3 * MIB, {}),
                ("qcow2", 3 * MIB + 512, 5 * MIB, {"cluster_size": 4096}),
                ("qcow2", 2 * MIB + 512, 5 * MIB, {"extended_l2": "on"}),
                ("qcow2", 5 * MIB, 2 * MIB + 1024, {"compat": "0.10"}), ("raw", 2 * MIB + 700, 4 * MIB, {})):
            with self.subTest(form, below=below, above=above, **options):
                for name in ("base", "middle", "image"):
                    if os.path.exists(self.path(name)):
                        os.unlink(self.path(name))
                mixed(self.path("base"), below, 4)
                if form == "qcow2":
                    os.rename(self.path("base"), self.path("plain"))
                    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", self.path("plain"), self.path("base"))
                qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", form, self.path("middle"), str(4 * MIB))
                qemu_io(self.path("middle"), "write -P 7 100k 200k", "write -z 1M 512k", "write -P 8 3900k 100k")
                image, raw = self.path("image"), self.path("expected")
                qemu_img("create", "-q", "-f", "qcow2", *options_of(**options), "-b", "middle", "-F", "qcow2", image,
                         str(above))
                qemu_io(image, "write -P 9 150k 10k", "write -z 1200k 3k")
                qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
                self.agree_on_info(image)
                self.read_by_byre(image, raw)
                with open(self.path("base"), "rb") as base, open(self.path("middle"), "rb") as middle:
                    before = base.read(), middle.read()
                self.random_work(image, raw, above)
                self.assert_sound(image)
                self.read_by_qemu(image, raw)
                with open(self.path("base"), "rb") as base, open(self.path("middle"), "rb") as middle:
                    self.assertTrue((base.read(), middle.read()) == before, "a layer below has changed")

    def test_external_data_files(self):
        """They are read; until byre writes to them it says that it cannot."""
        for raw_data in ("off", "on"):
            with self.subTest(raw_data):
                image, raw = self.path("image"), mixed(self.path("raw"), 3 * MIB, 5)
                for name in ("image", "data"):
                    if os.path.exists(self.path(name)):
                        os.unlink(self.path(name))
                qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={self.path('data')},data_file_raw={raw_data}",
                         image, str(3 * MIB))
                qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", raw, image)
                self.agree_on_info(image)
                self.read_by_byre(image, raw)
                done = byre_io(image, "write -P 3 1M 64k", "flush", ok=(0, 1))
                if done.code == 0:
                    with open(raw, "r+b") as file:
                        file.seek(MIB)
                        file.write(b"\3" * 65536)
                self.assert_sound(image)
                self.read_by_qemu(image, raw)

    def test_snapshots(self):
        """byre reads each, and leaves them as they are when it writes."""
        for options in ({}, {"extended_l2": "on"}, {"cluster_size": 512, "refcount_bits": 8}, {"compat": "0.10"}):
            with self.subTest(label(options)):
                image, raws = self.path("image"), []
                raw = mixed(self.path("raw"), 3 * MIB, 6)
                qemu_img("convert", "-f", "raw", "-O", "qcow2", *options_of(**options), raw, image)
                for number in range(3):
                    qemu_img("snapshot", "-c", f"snap {number}", image)
                    raws.append(shutil.copy(raw, self.path(f"raw{number}")))
                    with open(raw, "r+b") as file:
                        file.seek(number * MIB + 512)
                        file.write(bytes([65 + number]) * 65536)
                    qemu_io(image, f"write -P {65 + number} {number * MIB + 512} 64k")
                qemu_img("resize", "-q", "-f", "qcow2", image, "4M") if options.get("compat") != "0.10" else None
                with open(raw, "r+b") as file:
                    file.truncate(describe(image)["virtual-size"])
                self.agree_on_info(image)
                self.random_work(image, raw, 8)
                self.assert_sound(image)
                self.read_by_qemu(image, raw)
                for number, before in enumerate(raws):
                    out = self.path("out")
                    for convert in (qemu_img, img):
                        if os.path.exists(out):
                            os.unlink(out)
                        convert("convert", "-f", "qcow2", "-l", f"snapshot.name=snap {number}", "-O", "raw", image, out)
                        with open(out, "r+b") as file:  # QEMU gives the size of the active disk to all.
                            file.truncate(3 * MIB)
                        self.assert_same(before, out)

    def test_bitmaps_stay_true(self):
        """Trap 9: byre writes to an image with a bitmap only when the bitmap stays true; else it says no."""
        image, raw = self.path("image"), mixed(self.path("raw"), 3 * MIB, 7)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, image)
        qemu_img("bitmap", "--add", "-g", "64k", image, "backup")
        qemu_io(image, "write -P 1 1M 64k")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
        self.agree_on_info(image)
        self.read_by_byre(image, raw)
        done = byre_io(image, "write -P 2 2M 64k", "flush", ok=(0, 1))
        self.assert_sound(image)
        bitmaps = describe(image)["format-specific"]["data"].get("bitmaps", [])
        if done.code == 0:
            with open(raw, "r+b") as file:
                file.seek(2 * MIB)
                file.write(b"\2" * 65536)
            for bitmap in bitmaps:
                if "in-use" not in bitmap["flags"]:
                    self.assertTrue(any(start <= 2 * MIB < start + length for start, length in
                                        qcow2ref.Image(image).dirty("backup")), "a change is not in the bitmap")
        else:
            self.assertIn("bitmap", done.text)
            self.assertEqual(len(bitmaps), 1)
        self.read_by_qemu(image, raw)

    @only_byre
    def test_encrypted_images_are_refused(self):
        image = self.path("image")
        for attempt in range(40):  # It measures the processor, and gives up where others use that, too.
            done = qemu_img("create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=words", "-o",
                            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", image, "4M",
                            ok=(0,) if attempt == 39 else None)
            if done.code == 0:
                break
        with open(image, "rb") as file:
            before = file.read()
        own = json.loads(img("info", "--output=json", image).out)
        self.assertTrue(own["encrypted"])
        img("check", "-q", "-f", "qcow2", image)
        for done in (img("convert", "-f", "qcow2", "-O", "raw", image, self.path("out"), ok=(1,)),
                     byre_io(image, "read 0 64k", ok=(1,)), byre_io(image, "write 0 64k", ok=(1,))):
            self.assertIn("encrypted", done.text)
        with self.assertRaisesRegex(AssertionError, "encrypted"):
            self.server(image)
        self.assertFalse(os.path.exists(self.path("out")), "a failed convert has left a target")
        with open(image, "rb") as file:
            self.assertTrue(file.read() == before)


class ByreWrites(Images):
    def test_every_option(self):
        size = 6 * MIB + 512 * 5
        raw = mixed(self.path("raw"), size, 11)
        for options in OPTIONS:
            with self.subTest(label(options)):
                image = self.path("image")
                if os.path.exists(image):
                    os.unlink(image)
                img("convert", "-f", "raw", "-O", "qcow2", *options_of(**options), raw, image)
                self.assert_sound(image, strict=True)
                self.agree_on_info(image)
                self.read_by_qemu(image, raw)
                self.read_by_reference(image, raw)
                self.read_by_byre(image, raw, served=False)
                # What was asked for is what there is.
                told = describe(image)
                data = told["format-specific"]["data"]
                self.assertEqual(data["compat"], options.get("compat", "1.1"))
                self.assertEqual(data["refcount-bits"], options.get("refcount_bits", 16))
                self.assertEqual(data.get("extended-l2", False), options.get("extended_l2") == "on")
                self.assertEqual(data.get("lazy-refcounts", False), options.get("lazy_refcounts") == "on")
                self.assertEqual(data["compression-type"], options.get("compression_type", "zlib"))
                sizes = {"16k": 16 * KIB, "32k": 32 * KIB, "128k": 128 * KIB, "256k": 256 * KIB, "1M": MIB, "2M": 2 * MIB}
                wanted = options.get("cluster_size", 64 * KIB)
                self.assertEqual(told["cluster-size"], sizes.get(wanted, wanted))

    def test_created_and_written(self):
        for options in OPTIONS:
            with self.subTest(label(options)):
                image, raw = self.path("image"), self.path("raw")
                if os.path.exists(image):
                    os.unlink(image)
                img("create", "-q", "-f", "qcow2", *options_of(**options), image, 6 * MIB)
                self.assert_sound(image, strict=True)
                with open(raw, "wb") as file:
                    file.truncate(6 * MIB)
                for turn in range(2):
                    self.random_work(image, raw, (turn, label(options)).__repr__())
                    self.assert_sound(image)
                self.read_by_qemu(image, raw)
                self.read_by_reference(image, raw)
                # QEMU can go on.
                qemu_io(image, "write -P 0x77 100k 900k", "write -z 2M 100k", "discard 4M 1M")
                qemu_img("snapshot", "-c", "later", image) if options.get("refcount_bits") != 1 else None
                qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
                self.random_work(image, raw, "later", count=20)
                self.assert_sound(image)
                self.read_by_qemu(image, raw)

    def test_overlays(self):
        for form, below, above in (("raw", 3 * MIB, 5 * MIB), ("qcow2", 5 * MIB, 3 * MIB), ("qcow2", 2 * MIB + 512, 4 * MIB)):
            with self.subTest(form, below=below, above=above):
                for name in ("base", "image"):
                    if os.path.exists(self.path(name)):
                        os.unlink(self.path(name))
                mixed(self.path("base"), below, 12)
                if form == "qcow2":
                    os.rename(self.path("base"), self.path("plain"))
                    img("convert", "-f", "raw", "-O", "qcow2", self.path("plain"), self.path("base"))
                image, raw = self.path("image"), self.path("raw")
                img("create", "-q", "-f", "qcow2", "-b", "base", "-F", form, image, above)
                qemu_img("convert", "-f", "qcow2", "-O", "raw", image, raw)
                self.read_by_byre(image, raw, served=False)
                self.random_work(image, raw, 13)
                self.assert_sound(image)
                self.agree_on_info(image)
                self.read_by_qemu(image, raw)
                # With the size left out it is the backing disk's.
                img("create", "-q", "-f", "qcow2", "-b", "base", "-F", form, self.path("same"))
                self.assertEqual(describe(self.path("same"))["virtual-size"], -(-below // 512) * 512)
                os.unlink(self.path("same"))

    @only_byre
    def test_external_data_files(self):
        """Made beside the image, or taken as they are; relative names start at the image's folder."""
        raw = mixed(self.path("raw"), 3 * MIB, 15)
        os.mkdir(self.path("sub"))
        self.addCleanup(os.chdir, os.getcwd())
        for image, name, there in (
                ("image", "data", False), ("sub/image", "data", False), ("sub/image", "data", True),
                ("sub/image", self.path("sub/data"), False), ("image", self.path("data"), True)):
            with self.subTest(image=image, name=name, there=there):
                data = os.path.join(os.path.dirname(self.path(image)), os.path.basename(name))
                for old in (self.path(image), data):
                    if os.path.exists(old):
                        os.unlink(old)
                if there:
                    shutil.copy(raw, data)
                img("create", "-q", "-f", "qcow2", "-o", f"data_file={name},data_file_raw=on", image, 3 * MIB,
                    cwd=self.folder)
                self.assertEqual(os.path.getsize(data), 3 * MIB)
                if there:  # A raw data file is the disk, from the start.
                    self.assert_same(raw, data)
                    self.read_by_byre(self.path(image), raw)
                # To QEMU a relative name starts where the process is.
                os.chdir(os.path.dirname(data))
                qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", raw, self.path(image))
                self.assert_sound(self.path(image))
                self.read_by_byre(self.path(image), raw)
                self.assert_same(raw, data)

    def test_resized(self):
        for options in ({}, {"cluster_size": 512}, {"extended_l2": "on"}):
            with self.subTest(label(options)):
                image, raw = self.path("image"), mixed(self.path("raw"), 2 * MIB + 512, 14)
                if os.path.exists(image):
                    os.unlink(image)
                img("convert", "-f", "raw", "-O", "qcow2", *options_of(**options), raw, image)
                for size in (2 * MIB + 1024, 40 * MIB, 300 * MIB):
                    img("resize", "-q", "-f", "qcow2", image, size)
                    with open(raw, "r+b") as file:
                        file.truncate(size)
                    byre_io(image, f"write -P 3 {size - 5000} 5000")
                    with open(raw, "r+b") as file:
                        file.seek(size - 5000)
                        file.write(b"\3" * 5000)
                    self.assert_sound(image)
                self.read_by_qemu(image, raw)

    def test_refused_clearly(self):
        """What cannot be is said before anything is written, as qemu-img does."""
        image = self.path("image")
        for words in (["-o", "cluster_size=1000"], ["-o", "cluster_size=4M"], ["-o", "refcount_bits=3"],
                      ["-o", "refcount_bits=128"], ["-o", "compat=0.10,refcount_bits=8"],
                      ["-o", "compat=0.10,extended_l2=on"], ["-o", "extended_l2=on,cluster_size=8k"],
                      ["-o", "compat=0.10,compression_type=zstd"], ["-o", "compat=0.10,lazy_refcounts=on"],
                      ["-o", "data_file_raw=on"], ["-o", "nonsense=1"], ["-b", "base"], ["-b", "absent", "-F", "raw"],
                      ["-o", "cluster_size=512", "-u"]):
            with self.subTest(words):
                # (An L1 table of more than 32 MiB.)
                size = "200G" if "cluster_size=512" in words else "8M"
                self.assertNotEqual(qemu_img("create", "-f", "qcow2", *words, image, size, ok=None).code, 0)
                done = img("create", "-f", "qcow2", *words, image, size, ok=None)
                self.assertNotEqual(done.code, 0, done)
                self.assertTrue(done.err.strip(), done)
                self.assertFalse(os.path.exists(image), "something was written")


class RealDisks(Images):
    """A file system of this machine's files, and a rescue CD."""

    def both_ways(self, raw, name, compressed=False):
        theirs, own = self.path("theirs"), self.path("own")
        qemu_img("convert", *(["-c", "-o", "compression_type=zstd"] if compressed else []), "-f", "raw", "-O", "qcow2", raw,
                 theirs)
        self.read_by_byre(theirs, raw, served=not compressed)
        img("convert", "-f", "qcow2", "-O", "qcow2", theirs, own)
        self.assert_sound(own)
        self.assert_compares(raw, own)
        # Zeros are not stored.
        self.assertLess(os.stat(own).st_blocks, os.stat(raw).st_blocks * 1.1 + 4096)

    def test_file_system(self):
        raw = inputs("files.ext4")
        self.both_ways(raw, "files")
        for name in ("theirs", "own"):
            os.unlink(self.path(name))
        self.both_ways(raw, "files", compressed=True)

    def test_rescue_disk(self):
        self.both_ways(inputs("rescue.iso"), "rescue")

    def test_file_system_over_nbd(self):
        """Copied in and out by nbdcopy; the file system is sound, to the byte."""
        raw = inputs("files.ext4")
        image = self.path("image")
        img("create", "-q", "-f", "qcow2", image, os.path.getsize(raw))
        with self.server(image) as server:
            run("nbdcopy", "--flush", raw, server.uri)
            run("nbdcopy", server.uri, self.path("back"))
        self.assert_same(raw, self.path("back"))
        self.assert_sound(image)
        self.assert_compares(raw, image)
        run("e2fsck", "-fn", self.path("back"))


if __name__ == "__main__":
    main()
