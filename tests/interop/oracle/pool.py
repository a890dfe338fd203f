# SPDX-License-Identifier: Apache-2.0
"""The images that the oracle's command lines are about: made by a seed with the real tools, a few of them damaged by hand.

POOL tells what there is, so that lines can be made without the images; make_pool() makes them.  All are small.
"""
import os
import random
import struct
import subprocess
from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Entry:
    """A file of the pool."""
    name: str
    form: str = "qcow2"
    needs: tuple = ()     # The other files that it names.
    kind: str = "sound"   # sound, damaged, or hostile: a name or a thing that nobody expects.
    size: int = 4 * MIB
    tags: frozenset = frozenset()


def entry(name, form="qcow2", *needs, kind="sound", size=4 * MIB, tags=""):
    return Entry(name, form, needs, kind, size, frozenset(tags.split()))


POOL = {one.name: one for one in [
    entry("plain.raw", "raw"),
    entry("odd.raw", "raw", size=100_000),
    entry("short.raw", "raw", size=300),
    entry("v2.qcow2"),
    entry("v3.qcow2", tags="usual"),
    entry("c512.qcow2", size=256 * KIB),
    entry("c4k.qcow2", size=2 * MIB),
    entry("c2m.qcow2", size=16 * MIB),
    entry("ext.qcow2", tags="extended"),
    entry("comp.qcow2", tags="compressed"),
    entry("zstd.qcow2", tags="compressed"),
    entry("zero.qcow2"),
    entry("snap.qcow2", tags="snapshots"),
    entry("snapv2.qcow2", tags="snapshots"),
    entry("bits.qcow2", tags="bitmaps"),
    entry("manybits.qcow2", tags="bitmaps"),
    entry("data.qcow2", "qcow2", "data.bin"),
    entry("rawdata.qcow2", "qcow2", "rawdata.bin"),
    entry("lazy.qcow2"),
    entry("rc1.qcow2"),
    entry("rc64.qcow2"),
    entry("prealloc.qcow2"),
    entry("oddsize.qcow2", size=1_000_448),
    entry("base.qcow2", tags="backing"),
    entry("mid.qcow2", "qcow2", "base.qcow2"),
    entry("top.qcow2", "qcow2", "mid.qcow2", "base.qcow2", tags="chain"),
    entry("overraw.qcow2", "qcow2", "plain.raw", tags="chain"),
    entry("longer.qcow2", "qcow2", "c512.qcow2", tags="chain", size=1 * MIB),
    entry("extover.qcow2", "qcow2", "base.qcow2", tags="chain extended"),
    entry("sub/inner.qcow2", "qcow2", "base.qcow2", tags="chain"),
    # Damaged.
    entry("leak.qcow2", kind="damaged"),
    entry("refzero.qcow2", kind="damaged"),
    entry("refhigh.qcow2", kind="damaged"),
    entry("copied.qcow2", kind="damaged"),
    entry("truncated.qcow2", kind="damaged"),
    entry("badl2.qcow2", kind="damaged"),
    entry("beyond.qcow2", kind="damaged"),
    entry("dirty.qcow2", kind="damaged"),
    entry("corrupt.qcow2", kind="damaged"),
    entry("unknown.qcow2", kind="damaged"),
    entry("version9.qcow2", kind="damaged"),
    entry("bigclusters.qcow2", kind="damaged"),
    entry("badl1.qcow2", kind="damaged"),
    entry("badsnap.qcow2", kind="damaged", tags="snapshots"),
    entry("badbits.qcow2", kind="damaged", tags="bitmaps"),
    entry("noformat.qcow2", "qcow2", "base.qcow2", kind="damaged"),
    entry("nobacking.qcow2", kind="damaged"),
    entry("headonly.qcow2", kind="damaged"),
    # Hostile.
    entry("nothing.qcow2", kind="hostile"),  # There is none.
    entry("nodir/x.qcow2", kind="hostile"),
    entry("folder", kind="hostile"),
    entry("empty.img", "raw", kind="hostile", size=0),
    entry("text.txt", "raw", kind="hostile", size=20),
    entry("we ird,name.qcow2", kind="hostile"),
    entry("co:lon.qcow2", kind="hostile"),
    entry("link.qcow2", "qcow2", "v3.qcow2", kind="hostile"),
    entry("readonly.qcow2", kind="hostile"),
]}
ABSENT = {"nothing.qcow2", "nodir/x.qcow2"}


class Maker:
    def __init__(self, folder, seed):
        self.folder, self.draw = folder, random.Random(seed)

    def path(self, name):
        return os.path.join(self.folder, name)

    def run(self, *words):
        done = subprocess.run(list(map(str, words)), cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, check=False)
        if done.returncode != 0:
            raise AssertionError(f"{words}: {done.stdout}{done.stderr}")

    def create(self, name, *words):
        entry = POOL[name]
        self.run("qemu-img", "create", "-q", "-f", entry.form, *words, name, entry.size)

    def io(self, name, *commands, form=None):
        flat = [word for command in commands for word in ("-c", command)]
        self.run("qemu-io", "-t", "unsafe", "-f", form or POOL[name].form, *flat, name)

    def fill(self, name, count=5, unit=4 * KIB, verbs=("write -P {}", "write -P {}", "write -z", "discard")):
        """Some requests, drawn."""
        size = POOL[name].size
        commands = []
        for _ in range(count):
            verb = self.draw.choice(verbs).format(self.draw.randrange(1, 256))
            length = unit * self.draw.randrange(1, max(2, size // unit // 8))
            at = self.draw.randrange(0, max(1, (size - length) // unit)) * unit
            commands.append(f"{verb} {at} {min(length, size - at)}")
        self.io(name, *commands)

    def patch(self, name, offset, fmt, *values):
        with open(self.path(name), "r+b") as file:
            file.seek(offset)
            file.write(struct.pack(fmt, *values))

    def read(self, name, offset, fmt):
        with open(self.path(name), "rb") as file:
            file.seek(offset)
            return struct.unpack(fmt, file.read(struct.calcsize(fmt)))

    def l2_of(self, name):
        """The offset of the first L2 table."""
        l1, = self.read(name, 40, ">Q")
        entry, = self.read(name, l1, ">Q")
        return entry & ~(1 << 63)

    def refblock_of(self, name):
        table, = self.read(name, 48, ">Q")
        return self.read(name, table, ">Q")[0]


def make_sound(m):
    for name in ("plain.raw", "odd.raw", "short.raw"):
        m.create(name)
    m.fill("plain.raw", 6)
    m.fill("odd.raw", 3, unit=512)
    m.io("short.raw", "write -P 7 0 300")
    for name in ("odd.raw", "short.raw"):
        os.truncate(m.path(name), POOL[name].size)
    plain = {
        "v2.qcow2": ["-o", "compat=0.10"], "v3.qcow2": [], "c512.qcow2": ["-o", "cluster_size=512"],
        "c4k.qcow2": ["-o", "cluster_size=4k"], "c2m.qcow2": ["-o", "cluster_size=2M"],
        "ext.qcow2": ["-o", "extended_l2=on"], "zero.qcow2": [], "snap.qcow2": [], "snapv2.qcow2": ["-o", "compat=0.10"],
        "bits.qcow2": [], "manybits.qcow2": [], "data.qcow2": ["-o", "data_file=data.bin"],
        "rawdata.qcow2": ["-o", "data_file=rawdata.bin,data_file_raw=on"], "lazy.qcow2": ["-o", "lazy_refcounts=on"],
        "rc1.qcow2": ["-o", "refcount_bits=1"], "rc64.qcow2": ["-o", "refcount_bits=64"],
        "prealloc.qcow2": ["-o", "preallocation=metadata"], "oddsize.qcow2": [], "base.qcow2": [],
    }
    for name, words in plain.items():
        m.create(name, *words)
        m.fill(name)
    # Compressed clusters beside others.
    for name, kind in (("comp.qcow2", "zlib"), ("zstd.qcow2", "zstd")):
        m.create(name, "-o", f"compression_type={kind}")
        m.io(name, "write -c -P 5 0 64k", "write -c -P 6 64k 64k", "write -P 7 1M 64k", "write -c -P 8 2M 64k")
    m.io("zero.qcow2", "write -P 3 0 256k", "write -z 0 64k", "write -z -u 64k 64k", "write -z 1M 128k", "discard 192k 64k")
    os.mkdir(m.path("sub"))
    for name, below, form in (("mid.qcow2", "base.qcow2", "qcow2"), ("top.qcow2", "mid.qcow2", "qcow2"),
                              ("overraw.qcow2", "plain.raw", "raw"), ("longer.qcow2", "c512.qcow2", "qcow2"),
                              ("sub/inner.qcow2", "../base.qcow2", "qcow2")):
        m.create(name, "-b", below, "-F", form)
        m.fill(name, 3)
    m.create("extover.qcow2", "-b", "base.qcow2", "-F", "qcow2", "-o", "extended_l2=on")
    m.fill("extover.qcow2", 4, unit=2 * KIB)
    for name in ("snap.qcow2", "snapv2.qcow2"):
        m.run("qemu-img", "snapshot", "-c", "first", name)
        m.fill(name, 3)
        m.run("qemu-img", "snapshot", "-c", "second", name)
        m.fill(name, 2)
    for name, bitmaps in (("bits.qcow2", [("b0", []), ("b1", ["-g", "4k"])]),
                          ("manybits.qcow2", [(f"n{i}", ["-g", str(512 << i)]) for i in range(8)])):
        for bitmap, words in bitmaps:
            m.run("qemu-img", "bitmap", "--add", *words, name, bitmap)
            m.fill(name, 2)
    m.run("qemu-img", "bitmap", "--disable", "bits.qcow2", "b1")
    m.fill("bits.qcow2", 1)


def make_damaged(m):
    damaged = [one.name for one in POOL.values() if one.kind == "damaged"]
    for name in damaged:
        if name in ("badsnap.qcow2", "badbits.qcow2", "noformat.qcow2", "nobacking.qcow2", "dirty.qcow2"):
            continue
        m.create(name)
        m.io(name, f"write -P {m.draw.randrange(1, 256)} 0 256k", "write -P 9 1M 64k")
    block = m.refblock_of("leak.qcow2")
    m.patch("leak.qcow2", block + 2 * 12, ">HH", 1, 1)
    # The first data cluster: not counted, counted too often, without its flag, elsewhere, nowhere.
    data, = m.read("refzero.qcow2", m.l2_of("refzero.qcow2"), ">Q")
    cluster = (data & ~(1 << 63)) >> 16
    m.patch("refzero.qcow2", m.refblock_of("refzero.qcow2") + 2 * cluster, ">H", 0)
    m.patch("refhigh.qcow2", m.refblock_of("refhigh.qcow2") + 2 * cluster, ">H", 2)
    m.patch("copied.qcow2", m.l2_of("copied.qcow2"), ">Q", data & ~(1 << 63))
    m.patch("badl2.qcow2", m.l2_of("badl2.qcow2"), ">Q", data | 0x200)
    m.patch("beyond.qcow2", m.l2_of("beyond.qcow2") + 8, ">Q", 1 << 63 | 1 << 40)
    os.truncate(m.path("truncated.qcow2"), os.path.getsize(m.path("truncated.qcow2")) - 100_000)
    os.truncate(m.path("headonly.qcow2"), 104)
    m.create("dirty.qcow2", "-o", "lazy_refcounts=on")
    m.fill("dirty.qcow2", 2)
    m.patch("dirty.qcow2", 72, ">Q", 1)
    m.patch("corrupt.qcow2", 72, ">Q", 2)
    m.patch("unknown.qcow2", 72, ">Q", 1 << 40)
    m.patch("version9.qcow2", 4, ">I", 9)
    m.patch("bigclusters.qcow2", 20, ">I", 40)
    m.patch("badl1.qcow2", 40, ">Q", 0x30200)
    m.create("badsnap.qcow2")
    m.run("qemu-img", "snapshot", "-c", "lost", "badsnap.qcow2")
    table, = m.read("badsnap.qcow2", 64, ">Q")
    m.patch("badsnap.qcow2", table, ">Q", 0x12345)
    m.create("badbits.qcow2")
    m.run("qemu-img", "bitmap", "--add", "badbits.qcow2", "b0")
    # In use, as a program leaves it that was killed.
    with open(m.path("badbits.qcow2"), "rb") as file:
        at = file.read().rindex(b"b0") - 24
    m.patch("badbits.qcow2", at + 12, ">I", 3)
    m.create("noformat.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    with open(m.path("noformat.qcow2"), "rb") as file:
        at = file.read(4096).index(struct.pack(">I", 0xE2792ACA))
    m.patch("noformat.qcow2", at, ">I", 0x12345678)
    m.create("nobacking.qcow2", "-u", "-b", "gone.qcow2", "-F", "qcow2")


def make_hostile(m):
    os.mkdir(m.path("folder"))
    for name, content in (("empty.img", ""), ("text.txt", "twenty bytes of text")):
        with open(m.path(name), "w", encoding="ascii") as file:
            file.write(content)
    m.create("we ird,name.qcow2")
    m.run("qemu-img", "create", "-q", "-f", "qcow2", "./co:lon.qcow2", "4M")
    os.symlink("v3.qcow2", m.path("link.qcow2"))
    m.create("readonly.qcow2")
    os.chmod(m.path("readonly.qcow2"), 0o444)


def make_pool(folder, seed):
    m = Maker(folder, seed)
    make_sound(m)
    make_damaged(m)
    make_hostile(m)


def files_for(words):
    """The files of the pool that a command line names, with all that those name."""
    wanted = []
    for name, one in POOL.items():
        if any(name in word for word in words):
            wanted += [name, *one.needs]
    return sorted({name for name in wanted if name not in ABSENT} | {
        "data.bin" if name == "data.qcow2" else "rawdata.bin" for name in wanted
        if name in ("data.qcow2", "rawdata.qcow2")})
