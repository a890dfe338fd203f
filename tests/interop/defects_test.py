#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What QEMU's tools get wrong, history by history, and that byre comes out right.

Each defect is a function of the tools: it plays its history with them and says what went wrong, or nothing.  The
test plays it with byre, which must come out right, and with the real qemu-img and qemu-io, to know that the history
shows what it is meant to show: where DEFECTS says that QEMU 7.2 comes out wrong and it does not, the history is of no use.
The races, sessions R-A to R-K, are in sessions_test.py.

    BYRE=build/release/byre python3 tests/interop/defects_test.py            # the tests
    BYRE=build/release/byre python3 tests/interop/defects_test.py --table    # the table of docs/peers.md
"""
import os
import re
import struct
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from forge import COPIED, Forged  # noqa: E402
from harness import BYRE, KIB, MIB, TIB, Case, examine, leaked, qemu_img, qemu_io, run  # noqa: E402


class Tools:
    """qemu-img and qemu-io, or byre under these names, in a folder of their own."""

    def __init__(self, folder, peer):
        self.folder, self.peer = folder, peer
        self.names = {}
        for name in ("qemu-img", "qemu-io"):
            self.names[name] = name if peer else os.path.join(folder, name)
            if not peer:
                os.symlink(BYRE, self.names[name])

    def path(self, name):
        return os.path.join(self.folder, name)

    def img(self, *words):
        return run(self.names["qemu-img"], *words, ok=None)

    def io(self, image, *commands, options=("-f", "qcow2")):
        flat = [word for command in commands for word in ("-c", command)]
        return run(self.names["qemu-io"], *options, *flat, image, ok=None)

    def reads(self, image, *commands):
        """Do all patterns hold?"""
        done = self.io(image, *commands)
        return done.code == 0 and not re.search("verification failed|rror", done.text)

    def new(self, size, *options, name="disk.qcow2"):
        """An image that QEMU made: both play on the same."""
        image = self.path(name)
        qemu_img("create", "-q", "-f", "qcow2", *options, image, size)
        return image


def errors(image):
    return examine(image)["errors"]


def patch(image, offset, form, *values):
    with open(image, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, *values))


def get(image, offset, form=">Q"):
    with open(image, "rb") as file:
        file.seek(offset)
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]


# --- The defects -------------------------------------------------------------------------------------------------

def f1_a_refcount_block_that_nobody_counted(t):
    """The image that OpenBSD's vmd makes, written to: the block must not be handed out."""
    image = t.new("4M", "-o", "cluster_size=512")
    qemu_io(image, "write -P 5 0 512k", "discard 300k 100k")
    # The blocks that are there, but for the first, as if nobody had counted them.
    table = get(image, 48)
    blocks = [get(image, table + 8 * i) for i in range(1, 64)]
    for block in filter(None, blocks):
        patch(image, get(image, table + block // 512 // 256 * 8) + block // 512 % 256 * 2, ">H", 0)
    before = len(errors(image))
    done = t.io(image, "write -P 6 1M 64k", "write -P 7 2M 512k")
    after = len(errors(image))
    if after > before:
        return f"{before} errors become {after}"
    if not t.reads(image, "read -P 5 0 256k"):
        return "data are destroyed"
    if done.code == 0 and not t.reads(image, "read -P 6 1M 64k", "read -P 7 2M 512k"):
        return "what was written is lost"


def e1_discard_of_what_a_snapshot_has(t):
    image = t.new("64M")
    qemu_io(image, "write -P 0x11 0 1M")
    t.img("snapshot", "-c", "s", image)
    # QEMU 7.2 has no discard-no-unref, with which later ones go wrong.
    keep = "" if t.peer else ",discard-no-unref=on"
    run(t.names["qemu-io"], "-c", f"open -o discard=unmap{keep} {image}", "-c", "discard 0 1M")
    t.img("snapshot", "-a", "s", image)
    if not t.reads(image, "read -P 0x11 0 1M"):
        return "the snapshot reads as zeros"


def e2_shrunk_and_grown_again(t):
    image = t.new("1M")
    qemu_io(image, "write -P 0x22 0 1M")
    t.img("resize", "--shrink", image, "98304")
    t.img("resize", image, "1M")
    if not t.reads(image, "read -P 0x22 0 96k", "read -P 0 96k 928k"):
        return "old bytes come back behind the cut"


def e4_streams_in_clusters_of_512_bytes(t):
    image = t.new("128k", "-o", "cluster_size=512")
    for at in range(0, 256):
        qemu_io(image, f"write -c -P {at % 251 + 1} {at * 512} 512") if at < 8 else None
    qemu_io(image, "write -s /proc/version 8k 512")
    if not t.reads(image, *[f"read -P {at % 251 + 1} {at * 512} 512" for at in range(8)]):
        return "streams are misread"
    if errors(image) or t.img("check", image).code:
        return "a sound image is found damaged"


def e5_snapshots_whose_refcounts_do_not_fit(t):
    image = t.new("4M", "-o", "refcount_bits=2")
    for at in range(16):
        qemu_io(image, f"write -c -P {at + 1} {at * 64}k 64k")
    for attempt in range(4):
        t.img("snapshot", "-c", f"s{attempt}", image)
    lost = leaked(examine(image))
    if lost:
        return f"{lost} clusters leak"


def e8_a_size_inside_a_sector(t):
    image = t.new("1M")
    qemu_io(image, "write -P 7 0 1M")
    patch(image, 24, ">Q", MIB - 412)
    # The last sector, whole (docs/compatibility.md): QEMU rounds down.
    if f"({MIB} bytes)" not in t.img("info", image).text:
        return "the last bytes are hidden"
    raw = t.path("out.raw")
    t.img("convert", "-f", "qcow2", "-O", "raw", image, raw)
    with open(raw, "rb") as file:
        if file.read() != b"\7" * (MIB - 412) + bytes(412):
            return "the last bytes are lost, or others shown"


def e10_a_header_length_that_is_no_multiple_of_8(t):
    image = t.new("1M")
    patch(image, 100, ">I", 116)
    if "116" not in t.img("check", image).text:
        return "check says nothing"


def e20_a_truncated_image(t):
    image, raw = t.new("64M"), t.path("out.raw")
    qemu_io(image, "write -P 1 0 8M")
    os.truncate(image, 2 * MIB)
    if t.img("convert", "-f", "qcow2", "-O", "raw", image, raw).code == 0:
        return "converted without an error, zeros for what is lost"


def e21_a_file_that_is_long_but_empty(t):
    image = t.new("1M", "-o", "refcount_bits=64")
    qemu_io(image, "write -P 1 0 64k")
    os.truncate(image, 8 * TIB)
    used = t.img("check", image).memory
    if used > 128 * MIB:
        return f"check takes {used // MIB} MiB of memory"


def e22_a_bitmap_in_an_image_that_becomes_version_2(t):
    """Refusing is right, or removing it whole; QEMU drops it without a word and leaves its clusters behind."""
    image = t.new("1M")
    qemu_img("bitmap", "--add", image, "daily")
    done = t.img("amend", "-f", "qcow2", "-o", "compat=0.10", image)
    lost = leaked(examine(image))
    if lost:
        return f"{lost} clusters leak"
    if done.code == 0 and "daily" not in t.img("info", image).text:
        return "the bitmap is gone without a word"


def e25_convert_into_a_larger_disk(t):
    source, target = t.path("source.raw"), t.new("2M")
    with open(source, "wb") as file:
        file.write(b"\x11" * MIB)
    qemu_io(target, "write -P 0x55 0 2M")
    t.img("convert", "-n", "-f", "raw", "-O", "qcow2", source, target)
    if not t.reads(target, "read -P 0x11 0 1M", "read -P 0 1M 1M"):
        return "what lies behind the source stays"


def e26_compressed_over_what_is_there(t):
    image = t.new("1M")
    qemu_io(image, "write -P 1 0 64k", "write -c -P 2 64k 64k")
    done = t.io(image, "write -c -P 3 0 64k", "write -c -P 4 64k 64k")
    if done.code or not t.reads(image, "read -P 3 0 64k", "read -P 4 64k 64k"):
        return "Input/output error"


def e27_compressed_into_an_encrypted_image(t):
    """Refusing is right: nothing of it may be in the file as it is."""
    image = t.path("luks.qcow2")
    secret = "secret,id=s,data=abcdefgh"
    for _ in range(20):  # It measures the processor, and gives up on a busy one.
        made = qemu_img("create", "-q", "--object", secret, "-f", "qcow2", "-o",
                        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=50", image, "1M", ok=None)
        if made.code == 0:
            break
    t.io(f"driver=qcow2,file.filename={image},encrypt.key-secret=s", "write -c -P 0x61 0 64k",
         options=("--object", secret, "--image-opts"))
    table = get(image, 40)
    l2 = get(image, table) & 0x00fffffffffffe00
    entry = get(image, l2) if l2 else 0
    if entry & 1 << 62:
        return "what was written lies in the file unencrypted"


def d_a_data_file_that_is_there(t):
    data = t.path("data.raw")
    with open(data, "wb") as file:
        file.write(b"precious" * KIB)
    t.img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", t.path("disk.qcow2"), "1M")
    with open(data, "rb") as file:
        if not file.read().startswith(b"precious" * KIB):
            return "its contents are gone"


def j_two_owners_of_one_cluster(t):
    """Each keeps its own cluster after a repair, and the only copy of the victim's data stays."""
    forged = Forged(size=1 << 20)
    l2 = forged.cluster()
    first, second, victim = (forged.cluster() for _ in range(3))
    forged.put(forged.l1, l2 | COPIED)
    forged.put(l2, first | COPIED, second | COPIED, first | COPIED)
    forged.splice(first, b"\x01" * 65536)
    forged.splice(second, b"\x02" * 65536)
    forged.splice(victim, b"\x03" * 65536)
    image = t.path("disk.qcow2")
    forged.write(image)
    t.img("check", "-f", "qcow2", "-r", "all", image)
    with open(image, "rb") as file:
        file.seek(victim)
        if file.read(65536) != b"\x03" * 65536:
            return "the only copy of the victim's data is freed"
    t.io(image, "write -P 9 0 64k")
    if not t.reads(image, "read -P 1 128k 64k"):
        return "the two still share a cluster"


def discards_among_writes(t):
    """Writes and zeroes that unmap, of the same clusters, all at once."""
    image = t.new("4M")
    commands = []
    for turn in range(200):
        at = turn * 7 % 64 * 64
        commands += [f"aio_write -P {turn % 250 + 1} {at}k 64k", f"aio_write -z {'-u ' if turn % 3 else ''}{at}k 64k"]
    t.io(image, *commands, "aio_flush", options=("-f", "qcow2", "-d", "unmap"))
    if errors(image):
        return "clusters with two owners"


# (what is played, does QEMU 7.2 come out wrong?)
DEFECTS = {
    "F1": (f1_a_refcount_block_that_nobody_counted, True),
    "E1": (e1_discard_of_what_a_snapshot_has, False),  # QEMU 8.1 and later, with discard-no-unref=on.
    "E2": (e2_shrunk_and_grown_again, True),
    "E4": (e4_streams_in_clusters_of_512_bytes, False),
    "E5": (e5_snapshots_whose_refcounts_do_not_fit, True),
    "E8": (e8_a_size_inside_a_sector, True),
    "E10": (e10_a_header_length_that_is_no_multiple_of_8, True),
    "E20": (e20_a_truncated_image, True),
    "E21": (e21_a_file_that_is_long_but_empty, True),
    "E22": (e22_a_bitmap_in_an_image_that_becomes_version_2, True),
    "E25": (e25_convert_into_a_larger_disk, True),
    "E26": (e26_compressed_over_what_is_there, True),
    "E27": (e27_compressed_into_an_encrypted_image, True),
    "d": (d_a_data_file_that_is_there, True),
    "j": (j_two_owners_of_one_cluster, True),
    "fuzz": (discards_among_writes, False),
}


def play(name, peer):
    with tempfile.TemporaryDirectory(prefix="byre-") as folder:
        return DEFECTS[name][0](Tools(folder, peer))


class Defects(Case):
    def both(self, name):
        self.assertIsNone(play(name, peer=False))
        if "7.2" in qemu_img("--version").text.splitlines()[0]:
            self.assertEqual(play(name, peer=True) is not None, DEFECTS[name][1], "the real QEMU")


def add(name, function):
    def test(self):
        self.both(name)
    test.__doc__ = function.__doc__
    setattr(Defects, f"test_{function.__name__}", test)


for _name, (_function, _) in DEFECTS.items():
    add(_name, _function)


def table():
    print("| | history | QEMU 7.2 | byre |\n|-|-|-|-|")
    for name, (function, _) in DEFECTS.items():
        words = re.sub("^(f1|e[0-9]+|d|j)_", "", function.__name__).replace("_", " ")
        print(f"| {name} | {words} | {play(name, peer=True) or 'right'} | {play(name, peer=False) or 'right'} |")


if __name__ == "__main__":
    if "--table" in sys.argv:
        table()
    else:
        unittest.main(verbosity=2)
