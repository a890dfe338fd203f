#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a power loss may leave of byre's own writes, from a log of them.

`byre io` works on an image whose file lies under blklogwrites, which logs every change in the format of Linux's
dm-log-writes.  Each state that a power loss could leave is then built from the log: all that a flush has made durable, and
of what came after it any part (a prefix of the log, single entries left out, single ones alone, and by chance).  The
reference checker, which shares nothing with the engine, must find no error in any of them (docs/engine.md, C1, C2).

    BYRE_SEED=7 BYRE_ROUNDS=20 python3 tests/interop/power_loss_log_test.py
"""
import os
import random
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import Case, KIB, MIB, byre_io, main, only_byre, qcow2ref, qemu_img  # noqa: E402

SEED = int(os.environ.get("BYRE_SEED", "1"))
ROUNDS = int(os.environ.get("BYRE_ROUNDS", "3"))
MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


def read_log(path):
    """The entries, in order: (flags, offset, length, data)."""
    with open(path, "rb") as file:
        raw = file.read()
    magic, version, count, sector = struct.unpack_from("<QQQI", raw, 0)
    assert magic == MAGIC and version == 1, (hex(magic), version)
    entries, at = [], sector
    for _ in range(count):
        start, sectors, flags, length = struct.unpack_from("<QQQQ", raw, at)
        at += sector
        size = 0 if flags & (DISCARD | MARK) else sectors * sector
        entries.append((flags, start * sector, sectors * sector, raw[at:at + size]))
        at += size
    return entries


class Disk:
    """The bytes of a file while entries are put onto it."""

    def __init__(self, raw):
        self.raw = bytearray(raw)

    def put(self, entry):
        flags, offset, length, data = entry
        if flags & MARK:
            return
        end = offset + length
        if len(self.raw) < end:
            self.raw.extend(bytes(end - len(self.raw)))
        self.raw[offset:end] = data if data else bytes(length)

    def copy(self):
        return Disk(self.raw)


def after_cuts(start, entries, rng):
    """Each state that a power loss may leave, with words for it."""
    durable = Disk(start)
    pending = []
    for number, entry in enumerate(entries):
        if entry[0] & FLUSH:
            # What lies before it in the log had ended when it began: durable from here on.
            for chosen in variants(pending, rng):
                disk = durable.copy()
                for i in chosen:
                    disk.put(pending[i])
                yield f"before flush {number}, with {chosen} of {len(pending)}", disk.raw
            for one in pending:
                durable.put(one)
            pending = []
        if entry[0] & FUA:
            # Itself alone is durable; what waits stays open.
            durable.put(entry)
        elif entry[3] or entry[0] & DISCARD:
            pending.append(entry)
    yield "at the end", durable.raw


def variants(pending, rng):
    count = len(pending)
    everything = range(count)
    if count <= 4:
        for bits in range(1 << count):
            yield [i for i in everything if bits >> i & 1]
        return
    for end in sorted({0, 1, count // 2, count - 1, count}):
        yield list(range(end))
    for i in rng.sample(everything, min(count, 6)):
        yield [j for j in everything if j != i]
        yield [i]
    for _ in range(4):
        yield [i for i in everything if rng.random() < 0.5]


def requests(rng, size, cluster):
    """Lines for byre io: several requests at a time, flushes among them."""
    lines = []
    for _ in range(60):
        offset = rng.randrange(0, size - 4 * cluster, 512)
        length = rng.randrange(512, 3 * cluster, 512)
        aligned = offset // cluster * cluster
        what = rng.randrange(12)
        if what < 5:
            lines.append(f"aio_write -q -P {rng.randrange(1, 255)} {offset} {length}")
        elif what < 6:
            lines.append(f"write -q -c -P {rng.randrange(1, 255)} {aligned} {cluster}")
        elif what < 7:
            lines.append(f"write -q -f -P {rng.randrange(1, 255)} {offset} {length}")
        elif what < 8:
            lines.append(f"aio_write -q -z -u {aligned} {2 * cluster}")
        elif what < 10:
            lines.append(f"discard -q {aligned} {3 * cluster}")
        else:
            lines.append("aio_flush" if what == 10 else "flush")
    return lines + ["aio_flush", "flush"]


@only_byre
class PowerLoss(Case):
    def play(self, seed, options):
        rng = random.Random(seed)
        size, cluster = 2 * MIB, 4 * KIB
        image, log = self.path("disk.qcow2"), self.path("log")
        for path in (image, log):
            if os.path.exists(path):
                os.unlink(path)
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster},{options}", image, size)
        with open(image, "rb") as file:
            start = self.start = file.read()
        with open(log, "wb"):
            pass
        tree = (f"driver=qcow2,file.driver=blklogwrites,file.file.driver=file,file.file.filename={image},"
                f"file.log.driver=file,file.log.filename={log}")
        byre_io(tree, *requests(rng, size, cluster), options=("--image-opts",))
        entries = read_log(log)
        self.assertGreater(sum(bool(entry[0] & FLUSH) for entry in entries), 3)
        states = 0
        for when, raw in after_cuts(start, entries, rng):
            states += 1
            result = qcow2ref.check(bytes(raw))
            self.assertEqual(result["errors"], [], f"seed {seed}, {options}: {when}")
        # The log leaves nothing out: replayed whole it is the image.
        whole = Disk(start)
        for entry in entries:
            whole.put(entry)
        with open(image, "rb") as file:
            now = file.read()
        self.assertEqual(bytes(whole.raw[:len(now)]), now)
        return states

    def test_no_power_loss_leaves_an_error(self):
        states = 0
        for round_ in range(ROUNDS):
            for options in ("compat=1.1", "compat=0.10", "compat=1.1,refcount_bits=1"):
                states += self.play(SEED * 1000 + round_, options)
        self.assertGreater(states, 100)

    def test_a_state_that_no_flush_separates_would_be_found(self):
        """The test can fail: without flushes any order is possible, and some of it leaves pointers to nothing."""
        rng = random.Random(SEED)
        found = 0
        for _ in range(4):
            self.play(rng.randrange(1 << 30), "compat=1.1")
            entries = read_log(self.path("log"))
            for _ in range(20):
                disk = Disk(self.start)
                for entry in entries:
                    if rng.random() < 0.5:
                        disk.put(entry)
                found += bool(qcow2ref.check(bytes(disk.raw))["errors"])
        self.assertGreater(found, 0)


if __name__ == "__main__":
    main()
