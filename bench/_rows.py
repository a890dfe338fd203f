# SPDX-License-Identifier: Apache-2.0
"""The rows of `./run bench` that are one command each: convert, compress, metadata, tools, requests, start."""
import json
import os
import random
import shutil

from _side_by_side import BYRE, GIB, HERE, KIB, MIB, TIB, Row, Sample, fail

QCOW2 = ["-f", "qcow2"]
RAW = ["-f", "raw"]


# --- What is made once for a group.

def real_files(path, data, disk):
    """Programs, libraries and texts of this machine, `data` bytes of them, each at a multiple of 64 KiB, with holes between."""
    left, at = data, 0
    gap = max(0, disk - data)
    with open(path, "wb") as out:
        while left > 0:
            begun = left
            for folder in ("/usr/bin", "/usr/lib", "/usr/share"):
                for parent, _, names in os.walk(folder):
                    for name in sorted(names):
                        source = os.path.join(parent, name)
                        if left <= 0 or os.path.islink(source) or not os.path.isfile(source) or not os.access(source, os.R_OK):
                            continue
                        with open(source, "rb") as file:
                            bytes_ = file.read(min(left, 4 * MIB))
                        out.seek(at)
                        out.write(bytes_)
                        left -= len(bytes_)
                        step = (len(bytes_) + 65535) // 65536 * 65536
                        hole = min(gap, step * (disk - data) // max(1, data) // 65536 * 65536)
                        gap -= hole
                        at += step + hole
            if begun == left:
                fail("there are no files in /usr to make a disk of")
        out.truncate(max(disk, (at + MIB - 1) // MIB * MIB))


def data_of(place):
    return place.pick(1228 * MIB, 24 * MIB)


def plain_raw(place):
    real_files(place.path("a.raw"), data_of(place), place.pick(3 * GIB, 64 * MIB))


def plain_qcow2(place):
    place.qemu_img("convert", *RAW, "-O", "qcow2", "a.raw", "a.qcow2")


def small_of(place):
    return place.pick(160 * MIB, 6 * MIB)


def small_raw(place):
    real_files(place.path("c.raw"), small_of(place), place.pick(256 * MIB, 12 * MIB))


def compressed(kind):
    def make(place):
        place.qemu_img("convert", *RAW, "-O", "qcow2", "-c", "-o", f"compression_type={kind}", "c.raw", f"{kind}.qcow2")
    return make


ZLIB, ZSTD = compressed("zlib"), compressed("zstd")


def preallocated(name, full, quick):
    def make(place):
        place.qemu_img("create", "-q", *QCOW2, "-o", "preallocation=metadata", name, place.pick(full, quick))
    return make


BIG = preallocated("big.qcow2", 2 * TIB, 16 * GIB)
HALF = preallocated("half.qcow2", TIB, 8 * GIB)


def filled(place, name, alike):
    """A base that is full but for its end; where it is not to be alike, every 32nd MiB differs."""
    raw = name.replace("qcow2", "raw")
    with open(place.path(raw), "wb") as file:
        for at in range(0, place.pick(2048, 40) * MIB, MIB):
            same = random.Random(at if alike or at // MIB % 32 else -at - 1)
            file.write(same.randbytes(MIB // 16) * 16)
        file.truncate(overlay_size(place))
    place.qemu_img("convert", *RAW, "-O", "qcow2", raw, name)
    os.unlink(place.path(raw))


def overlay_size(place):
    return place.pick(2458, 48) * MIB


def overlay(place):
    """An overlay with half of the clusters, in runs of 1 to 32 by a fixed seed, on a base."""
    size, generator = overlay_size(place), random.Random(1)
    filled(place, "base.qcow2", True)
    place.qemu_img("create", "-q", *QCOW2, "-b", "base.qcow2", "-F", "qcow2", "over.qcow2")
    lines, at = [], 0
    while at < size:
        length = min(generator.randint(1, 32) * 64 * KIB, size - at)
        lines.append(f"write -q -P {generator.randint(1, 255)} {at} {length}")
        at += length + generator.randint(1, 32) * 64 * KIB
    place.qemu_io(*QCOW2, "-t", "unsafe", "over.qcow2", data="\n".join([*lines, "quit"]).encode())


def other_base(place):
    filled(place, "other.qcow2", False)


def without(*names):
    def after(place, side):
        for name in names:
            place.remove(name)
    return after


# --- convert and compress

def made_of(raw, form="qcow2"):
    def verify(place, side):
        check = [["check", "-q", *QCOW2, "out"]] if form == "qcow2" else []
        return [*check, ["compare", "-q", *RAW, "-F", form, raw, "out"]]
    return verify


def copy_of(source):
    return {"cp": lambda place: ["cp", "--sparse=auto", source, "out"]}


def convert_rows():
    for where in ("disk", "memory"):
        for cache, bar in (("unsafe", 0.7), ("writeback", 0.8)):
            decides = {"where": where, "decides": "cpu" if where == "memory" else "time", "result": "out", "work": data_of}
            if where == "memory" and cache == "writeback":
                continue
            for name, words, inputs, form in (
                    ("raw to qcow2", [*RAW, "-O", "qcow2", "a.raw", "out"], (plain_raw,), "qcow2"),
                    ("qcow2 to raw", [*QCOW2, "-O", "raw", "a.qcow2", "out"], (plain_raw, plain_qcow2), "raw")):
                yield Row("convert", f"{name}, -t {cache}", ["convert", "-t", cache, *words], inputs=inputs,
                          verify=made_of("a.raw", form), bar=bar if cache == "unsafe" or form == "qcow2" else None,
                          limits=copy_of("a.raw") if cache == "unsafe" else {}, seconds=25, **decides)
    for name, words, inputs, form in (("raw to qcow2", [*RAW, "-O", "qcow2", "a.raw", "out"], (plain_raw,), "qcow2"),
                                      ("qcow2 to raw", [*QCOW2, "-O", "raw", "a.qcow2", "out"], (plain_raw, plain_qcow2), "raw")):
        yield Row("convert", f"{name}, byre's default (it syncs), beside -t writeback",
                  by_side(["convert", *words], ["convert", "-t", "writeback", *words]),
                  inputs=inputs, verify=made_of("a.raw", form), result="out", work=data_of, seconds=25)


def by_side(byre, peer):
    """Words that differ."""
    def words(place, side=None):
        return byre if side is not None and side.is_byre else peer
    words.by_side = True
    return words


def compress_rows():
    def row(name, kind, bar, size, byre_words=()):
        return Row("compress", name, ["convert", "-t", "unsafe", "-c", *RAW, "-O", "qcow2", "-o", f"compression_type={kind}", "c.raw", "out"],
                   byre_words=byre_words, inputs=(small_raw,), verify=made_of("c.raw"), result="out", work=small_of, bar=bar, bar_size=size,
                   seconds=25)
    yield row("convert -c zlib, no larger", "zlib", 0.12, 1.0)
    yield row("convert -c zlib, fastest level", "zlib", 0.08, 1.06, ("--compression-level", "1"))
    yield row("convert -c zstd, no larger", "zstd", 0.40, 1.0)
    yield row("convert -c zstd, fastest level", "zstd", None, None, ("--compression-level", "1"))
    for kind, make, bar in (("zlib", ZLIB, 0.3), ("zstd", ZSTD, 0.4)):
        yield Row("compress", f"{kind} to raw", ["convert", "-t", "unsafe", *QCOW2, "-O", "raw", f"{kind}.qcow2", "out"],
                  inputs=(small_raw, make), verify=made_of("c.raw", "raw"), result="out", work=small_of, bar=bar, seconds=15)


# --- metadata

def fresh(source, *names):
    def before(place, side):
        for name in names:
            place.sh("cp", "--sparse=always", source, name)
    return before


def with_snapshot(place, side):
    fresh("half.qcow2", "out")(place, side)
    place.sh(BYRE, "snapshot", "-c", "one", "out")  # Any tool's would do; this is quick.


def out_is_sound(place, side):
    return [["check", "-q", *QCOW2, "out"]]


def metadata_rows():
    yield Row("metadata", "check, 2 TiB of metadata", ["check", *QCOW2, "big.qcow2"], inputs=(BIG,), bar=0.15)
    yield Row("metadata", "create -o preallocation=metadata, 2 TiB",
              lambda place: ["create", "-q", *QCOW2, "-o", "preallocation=metadata", "out", str(place.pick(2 * TIB, 16 * GIB))],
              result="out", verify=out_is_sound, bar=0.06, seconds=25)
    yield Row("metadata", "map --output=json, 2 TiB", ["map", "--output=json", *QCOW2, "big.qcow2"], inputs=(BIG,), bar=0.1)
    yield Row("metadata", "snapshot create, 1 TiB of metadata", ["snapshot", "-c", "one", "out"], inputs=(HALF,),
              before=fresh("half.qcow2", "out"), verify=out_is_sound, bar=0.1, seconds=35)
    yield Row("metadata", "snapshot delete, 1 TiB of metadata", ["snapshot", "-d", "one", "out"], inputs=(HALF,), before=with_snapshot,
              verify=out_is_sound, bar=0.15, seconds=35)
    # The same image all the time: each row undoes what it did, unmeasured, with the same tool.
    sound = {"inputs": (plain_raw, plain_qcow2), "bar": 0.6, "seconds": 15,
             "verify": lambda place, side: [["check", "-q", *QCOW2, "a.qcow2"], ["compare", "-q", *RAW, "-F", "qcow2", "a.raw", "a.qcow2"]]}

    def snapshot(option):
        def step(place, side):
            place.sh(*side.program("qemu-img"), "snapshot", option, "one", "a.qcow2")
        return step
    yield Row("metadata", "snapshot create, 1.2 GiB", ["snapshot", "-c", "one", "a.qcow2"], after=snapshot("-d"), **sound)
    yield Row("metadata", "snapshot delete, 1.2 GiB", ["snapshot", "-d", "one", "a.qcow2"], before=snapshot("-c"), **sound)


# --- tools

def fresh_chain(place, side):
    """An overlay and a base that no run has changed."""
    for made, source in (("b.qcow2", "base.qcow2"), ("o.qcow2", "over.qcow2")):
        place.sh("cp", "--sparse=always", source, made)
    place.qemu_img("rebase", "-u", *QCOW2, "-b", "b.qcow2", "-F", "qcow2", "o.qcow2")


def fresh_overlay(place, side):
    place.sh("cp", "--sparse=always", "over.qcow2", "out")


def holds_what_over_does(name, form="qcow2"):
    """The overlay itself is what results are compared with: no run changes it or its base."""
    def verify(place, side):
        check = [["check", "-q", *QCOW2, name]] if form == "qcow2" else []
        return [*check, ["compare", "-q", *QCOW2, "-F", form, "over.qcow2", name]]
    return verify


def of_overlay(group, name, words, **options):
    return Row(group, name, words, **{"inputs": (overlay,), "work": lambda place: place.pick(1228, 24) * MIB, **options})


def commit_row(group, name, *words, **options):
    return of_overlay(group, name, ["commit", "-q", "-t", "unsafe", *words, *QCOW2, "o.qcow2"], before=fresh_chain, seconds=45,
                      verify=lambda place, side: [["check", "-q", *QCOW2, "o.qcow2"], *holds_what_over_does("b.qcow2")(place, side)], after=without("b.qcow2", "o.qcow2"), **options)


def rebase_row(group, name, base, inputs, **options):
    return of_overlay(group, name, ["rebase", "-t", "unsafe", *QCOW2, "-b", base, *(["-F", "qcow2"] if base else []), "out"],
                      before=fresh_overlay, verify=holds_what_over_does("out"), after=without("out"), seconds=40, inputs=inputs, **options)


def dd_row(group, name, *words, **options):
    return of_overlay(group, name, ["dd", *QCOW2, "-O", "raw", *words, "if=over.qcow2", "of=out"], result="out", after=without("out"),
                      seconds=30, **options)


def tools_rows():
    yield of_overlay("tools", "compare with a copy of the overlay", ["compare", *QCOW2, "-F", "qcow2", "over.qcow2", "out"], bar=0.5,
                     before=fresh_overlay, after=without("out"), seconds=20)
    yield of_overlay("tools", "measure -O qcow2", ["measure", *QCOW2, "-O", "qcow2", "over.qcow2"], bar=0.3, seconds=10)
    yield commit_row("tools", "commit -t unsafe", bar=0.6)
    yield dd_row("tools", "dd bs=1M", "bs=1M", bar=0.7, verify=holds_what_over_does("out", "raw"))
    yield rebase_row("tools", "rebase -t unsafe, onto one that differs in part", "other.qcow2", (overlay, other_base), bar=0.4)


# --- more: without a bar, played when they are asked for

def empty_disks(place):
    for name in ("e.qcow2", "f.qcow2"):
        place.qemu_img("create", "-q", *QCOW2, name, TIB)


def more_rows():
    yield Row("more", "compare empty disks of 1 TiB", ["compare", *QCOW2, "-F", "qcow2", "e.qcow2", "f.qcow2"], inputs=(empty_disks,), main=False)
    yield Row("more", "measure an empty disk of 1 TiB", ["measure", *QCOW2, "-O", "qcow2", "e.qcow2"], inputs=(empty_disks,), main=False)
    yield dd_row("more", "dd bs=64k", "bs=64k", main=False, verify=holds_what_over_does("out", "raw"))
    yield dd_row("more", "dd bs=512, the first 4 MiB", "bs=512", "count=8192", main=False, work=lambda place: 4 * MIB)
    yield commit_row("more", "commit -d", "-d", main=False)
    yield rebase_row("more", "rebase onto none", "", (overlay,), main=False)


# --- requests: `bench`, past the page cache; the raw file by byre's own bench and by fio is the limit.

SIZE = 512 * MIB  # Of the disk whose clusters are all there.
WIDE = 8 * GIB    # Of one that has none yet.
STEP = 10 * 64 * KIB  # Each request meets a new cluster, and none passes the end: versions of QEMU go round differently.


def disk_of(place):
    return place.pick(SIZE, 16 * MIB)


def full_disk(place):
    with open(place.path("full.raw"), "wb") as file:
        for at in range(0, disk_of(place), MIB):
            file.write(random.Random(at).randbytes(MIB))
    place.qemu_img("convert", "-t", "none", *RAW, "-O", "qcow2", "full.raw", "full.qcow2")
    place.sh("cp", "full.raw", "want.raw")


def request_row(name, count, quick, words, *, allocating=False, fio=None, flush=None, size=4 * KIB, step=None, **options):
    """`bench` on a disk that is all there, or on an empty one; the same on a raw file is the limit."""
    writes = "-w" in words
    disk = "out" if allocating else "full.qcow2"
    raw_disk = "out.raw" if allocating else "full.raw"
    want = "want-out.raw" if allocating else "want.raw"
    words = [*words, "-t", "none", *(["-s", str(size)] if size != 4 * KIB else []), *(["--pattern", "7"] if writes else []),
             *(["-S", str(step)] if step else []), *([f"--flush-interval={flush}"] if flush else [])]

    def number(place):
        return place.pick(count, quick)

    def fresh_disk(place, side):
        if allocating:
            for file in ("out", "out.raw"):
                place.remove(file)
            place.qemu_img("create", "-q", *QCOW2, "out", str(WIDE))
            place.sh("truncate", "-s", str(WIDE), "out.raw")

    def expected(place):
        """What the disk holds afterwards, as a raw file."""
        if not writes:
            return
        with open(place.path(want), "r+b" if not allocating else "wb") as file:
            total = WIDE if allocating else disk_of(place)
            file.truncate(total)
            for i in range(number(place)):
                file.seek(i * (step or size) % total)
                file.write(bytes([7]) * size)

    def verify(place, side):
        return [["check", "-q", *QCOW2, disk], ["compare", "-q", *RAW, "-F", "qcow2", want, disk]]

    limits = {"byre on raw": lambda place: [BYRE, "bench", *RAW, *words, "-c", str(number(place)), raw_disk]}
    if fio and shutil.which("fio"):
        depth = words[words.index("-d") + 1] if "-d" in words else "64"
        limits["fio on raw"] = lambda place: place.fio(
            raw_disk, f"--bs={size}", f"--iodepth={depth}", f"--rw={fio}", f"--size={WIDE if allocating else disk_of(place)}",
            f"--number_ios={number(place)}", *([f"--fdatasync={flush}"] if flush else []))
    return Row("requests", name, lambda place: ["bench", *QCOW2, "-i", "io_uring", *words, "-c", str(number(place)), disk],
               inputs=(full_disk, expected), before=fresh_disk, verify=verify if writes else None, clock="bench", unit="request",
               count=number, limits=limits, **{"seconds": 18, **options})


def requests_rows():
    yield request_row("4 KiB reads, depth 64", 60000, 2000, ["-d", "64"], fio="read", bar=1.03, against="limit")
    yield request_row("4 KiB writes in place, depth 64", 40000, 2000, ["-w", "-d", "64"], fio="write", bar=1.05, against="limit")
    yield request_row("4 KiB writes, allocating, scattered", 12000, 500, ["-w", "-d", "64"], step=STEP, allocating=True, bar=0.4, seconds=18)
    yield request_row("64 KiB writes, allocating", 8000, 200, ["-w", "-d", "16"], size=64 * KIB, allocating=True, fio="write", bar=1.15,
                      against="limit", seconds=18)
    for flush in (1, 16):
        depth = ["-d", str(flush)]
        yield request_row(f"4 KiB writes in place, a flush every {flush}", 1000 * flush // (1 if flush == 1 else 4), 64, ["-w", *depth],
                          flush=flush, fio="write", bar=1.1, against="limit")
        yield request_row(f"4 KiB writes allocating, a flush every {flush}", 1000 * flush // (1 if flush == 1 else 4), 64, ["-w", *depth],
                          flush=flush, step=STEP, allocating=True, bar=0.8)


# --- start

def small_image(place):
    place.qemu_img("create", "-q", *QCOW2, "small.qcow2", "64M")


def start_rows():
    yield Row("start", "info of a small image", ["info", *QCOW2, "small.qcow2"], inputs=(small_image,), bar=1.0, seconds=10)


# --- the engine alone, over a device that does nothing with guest data

def engine_turn(benchmark):
    def turn(place, side):
        text = place.sh(os.path.join(os.path.dirname(BYRE), "src", "qcow2_bench"), f"--benchmark_filter=^{benchmark}$",
                        "--benchmark_format=json", f"--benchmark_min_time={place.pick(0.5, 0.02)}").decode()
        seconds = 1 / json.loads(text)["benchmarks"][0]["items_per_second"]
        return Sample(seconds, seconds)
    return turn


def engine_rows():
    for name, bar in (("overwrite", 0.12), ("read", 0.07)):
        yield Row("alone", f"{name} of 4 KiB over a null device", None, turn=engine_turn(f"bm_{name}"), unit="request", bar=bar, only_byre=True, seconds=12)


GROUPS = {"convert": convert_rows, "compress": compress_rows, "metadata": metadata_rows, "tools": tools_rows, "requests": requests_rows,
          "start": start_rows, "alone": engine_rows, "more": more_rows}
