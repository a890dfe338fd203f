#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How cost grows with the work: byre beside each QEMU, in turns; a table, and a plot of each series (SVG) in build/bench.

  open           reading 4 KiB of a sparse disk of 1 GiB to 64 TiB: time and memory of the whole program
  first-write    writing 64 KiB to a disk whose tables are all in place: byre counts all references first
  check, map, snapshot    by the size of such a disk
  cache          4 KiB at random over NBD from such a disk: beyond some size the tables are not all cached
  fragmentation  allocating writes of 64 KiB into an image whose free clusters lie in runs of so many, or at its end
  chain-open, chain-read  by the number of layers, each of which has its part of the clusters

Files are sparse and in the page cache; each figure is the median of the rounds, and turns rotate.
    ./run bench growth [--rounds 5] [--quick] [--only check,map] [--out build/bench] [--json FILE] [--folder DIR]
"""
import argparse
import dataclasses
import json
import os
import subprocess
import tempfile

from _nbd import byre_serves, cpu_seconds, end, fio, peak_memory, start
from _side_by_side import GIB, MIB, ROOT, TIB, Place, Sample, end_in_order, fail, median, sides

QCOW2 = ["-f", "qcow2"]


@dataclasses.dataclass
class Series:
    name: str
    title: str
    axis: str            # What grows.
    unit: str            # Of the time: "run" or "request".
    points: list         # (x, label)
    prepare: object      # prepare(place, x)
    turn: object         # turn(place, side, x) -> Sample
    verify: bool = False  # Whether qemu-img checks the image after each turn.
    straight: bool = False  # x is not logarithmic.


def size_label(size):
    return f"{size // TIB} TiB" if size >= TIB else f"{size // GIB} GiB"


def sizes(*values):
    return [(value, size_label(value)) for value in values]


def sparse(place, size):
    place.qemu_img("create", "-q", *QCOW2, "disk", size)


def with_tables(place, size):
    place.qemu_img("create", "-q", *QCOW2, "-o", "preallocation=metadata", "disk", size)


def io(command, *words):
    """A turn that opens the disk and does that."""
    return lambda place, side, x: place.run([*side.program("qemu-io"), *QCOW2, *words, "-c", command, "disk"])


def img(*words):
    return lambda place, side, x: place.run([*side.program("qemu-img"), *words, *QCOW2, "disk"])


def snapshot(place, side, x):
    """Of the disk as it was made: what the turn before left is taken away."""
    place.sh("cp", "--sparse=always", "disk", "copy")
    return place.run([*side.program("qemu-img"), "snapshot", "-c", "one", "copy"])


def random_reads(place, side, x):
    socket = place.path("s")
    words = byre_serves(place.path("disk"), socket) if side.is_byre else \
        [*side.program("qemu-nbd"), *QCOW2, "-k", socket, "-t", "-e", "16", "--cache=writeback", "--aio=io_uring", place.path("disk")]
    server = start(words, socket, stderr=subprocess.DEVNULL)
    try:
        before = cpu_seconds(server.pid)
        counted = fio(socket, "randread", x, place.pick(2, 0.3), "--norandommap")
        used, memory = cpu_seconds(server.pid) - before, peak_memory(server.pid)
    finally:
        end(server)
    return Sample(counted["runtime"] / 1000 / counted["total_ios"], used / counted["total_ios"], memory)


def holed(place, run):
    """Written to `half`; then every other run of so many clusters is given back.  With 0 nothing is free but the end."""
    half = place.pick(256, 16) * MIB
    place.qemu_img("create", "-q", *QCOW2, "full", 2 * half)
    lines = [f"write -q -P 1 0 {half}"]
    if run:
        length = run * 65536
        lines += [f"discard -q {at} {length}" for at in range(0, half, 2 * length)]
    place.qemu_io(*QCOW2, "-t", "unsafe", "-d", "unmap", "full", data="\n".join([*lines, "quit"]).encode())


def allocating_writes(place, side, x):
    half = place.pick(256, 16) * MIB
    place.sh("cp", "--sparse=always", "full", "disk")
    count = half // 2 // 65536  # As many clusters as are free.
    sample = place.run([*side.program("qemu-img"), "bench", *QCOW2, "-w", "--pattern", "7", "-t", "writeback", "-s", "65536", "-d", "16",
                        "-o", str(half), "-c", str(count), "disk"], "bench")
    place.qemu_io(*QCOW2, "-c", f"read -q -P 7 {half} {count * 65536}", "disk")
    return Sample(sample.seconds / count, sample.cpu / count, sample.memory)


CHAIN_CLUSTERS = 1024


def chain(place, layers):
    """Layer i has the clusters whose number leaves i when divided by the number of layers."""
    size = CHAIN_CLUSTERS * 65536
    for layer in range(layers):
        name = "disk" if layer == layers - 1 else f"layer{layer}"
        below = ["-b", f"layer{layer - 1}", "-F", "qcow2"] if layer else []
        place.qemu_img("create", "-q", *QCOW2, *below, name, size)
        lines = [f"write -q -P {layer + 1} {at * 65536} 64k" for at in range(layer, CHAIN_CLUSTERS, layers)]
        place.qemu_io(*QCOW2, "-t", "unsafe", name, data="\n".join([*lines, "quit"]).encode())


def chain_reads(place, side, x):
    """16 requests to each cluster, in order; they end with the disk."""
    count = CHAIN_CLUSTERS * place.pick(16, 1)
    sample = place.run([*side.program("qemu-img"), "bench", *QCOW2, "-d", "16", "-s", "4096", "-c", str(count), "disk"], "bench")
    return Sample(sample.seconds / count, sample.cpu / count, sample.memory)


def all_series(quick):
    large = sizes(GIB, 16 * GIB) if quick else sizes(GIB, 16 * GIB, 128 * GIB, 512 * GIB, 2 * TIB)
    disks = sizes(GIB, TIB) if quick else sizes(GIB, 16 * GIB, 256 * GIB, 4 * TIB, 64 * TIB)
    runs = [(run, f"runs of {run}" if run else "none free") for run in ((0, 4) if quick else (0, 1, 4, 16, 64, 256))]
    layers = [(count, str(count)) for count in ((1, 4) if quick else (1, 2, 4, 8, 16, 32, 64))]
    return [
        Series("open", "opening a sparse disk and reading 4 KiB", "size of the disk, GiB", "run", disks, sparse, io("read -q 0 4k", "-r")),
        Series("first-write", "opening a disk with all its tables and writing 64 KiB", "size of the disk, GiB", "run", large, with_tables,
               io("write -q -P 7 1M 64k"), verify=True),
        Series("check", "check of a disk with all its tables", "size of the disk, GiB", "run", large, with_tables, img("check", "-q")),
        Series("map", "map --output=json of a disk with all its tables", "size of the disk, GiB", "run", large, with_tables,
               img("map", "--output=json")),
        Series("snapshot", "snapshot of a disk with all its tables", "size of the disk, GiB", "run", large, with_tables, snapshot, verify=True),
        Series("cache", "4 KiB at random over NBD, depth 32, from a disk with all its tables", "size of the disk, GiB", "request",
               large, with_tables, random_reads),
        Series("fragmentation", "allocating writes of 64 KiB, depth 16", "free clusters in a run (0: none free, the file grows)", "request", runs,
               holed, allocating_writes, verify=True, straight=True),
        Series("chain-open", "opening a chain and reading 4 KiB", "layers", "run", layers, chain, io("read -q 0 4k", "-r")),
        Series("chain-read", "4 KiB reads through a chain, depth 16", "layers", "request", layers, chain, chain_reads),
    ]


def measure(series, place, players, rounds, x):
    """{side's name: [Sample, ...]} at one point; the first round is not counted."""
    place.clear()
    series.prepare(place, x)
    found = {side.name: [] for side in players}
    for round_ in range(rounds + 1):
        first = round_ % len(players)
        for side in players[first:] + players[:first]:
            sample = series.turn(place, side, x)
            if round_:
                found[side.name].append(sample)
            elif series.verify:
                place.qemu_img("check", "-q", *QCOW2, "copy" if series.name == "snapshot" else "disk")
    return found


def told(seconds, unit):
    return f"{seconds * 1e6:.1f} us" if unit == "request" else f"{seconds * 1e3:.1f} ms"


def tell(series, players, figures):
    print(f"\n### {series.name}: {series.title}\n")
    print(f"| {series.axis} | " + " | ".join(f"{side.name} | CPU | MiB" for side in players) + " | ratio to the better |")
    print("|-" * (3 * len(players) + 2) + "|")
    for (_, label), found in zip(series.points, figures):
        cells = [f"{told(median(found[side.name]), series.unit)} | {told(median(found[side.name], 'cpu'), series.unit)} | "
                 f"{median(found[side.name], 'memory') / MIB:.0f}" for side in players]
        better = min(median(found[side.name]) for side in players[1:])
        print(f"| {label} | " + " | ".join(cells) + f" | {median(found['byre']) / better:.2f} |", flush=True)


def plot(series, players, figures, path):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "byre"  # The same figures make the same file.
    from matplotlib import pyplot
    scale = 1e6 if series.unit == "request" else 1e3
    xs = range(len(series.points)) if series.straight else \
        [x / GIB if series.axis.endswith("GiB") else x for x, _ in series.points]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(6, 6), height_ratios=(3, 2))
    for side in players:
        style = {"marker": "o", "linewidth": 2.5 if side.is_byre else 1}
        above.plot(xs, [median(found[side.name]) * scale for found in figures], label=side.name, **style)
        below.plot(xs, [median(found[side.name], "memory") / MIB for found in figures], **style)
    above.set_title(series.title, fontsize=10)
    above.set_ylabel("us a request" if series.unit == "request" else "milliseconds")
    above.set_yscale("log")
    above.grid(True, alpha=0.3)
    above.legend()
    below.set_ylabel("memory, MiB")
    below.set_ylim(bottom=0)
    below.grid(True, alpha=0.3)
    below.set_xlabel(series.axis)
    if series.straight:
        below.set_xticks(list(xs), [str(x) for x, _ in series.points])
    else:
        below.set_xscale("log", base=2)
        below.set_xticks(list(xs), [f"{x:g}" for x in xs])
        below.minorticks_off()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def have_matplotlib():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few and small points: whether it works")
    parser.add_argument("--only", metavar="NAMES", help="some of the series, with commas")
    parser.add_argument("--out", default=os.path.join(ROOT, "build", "bench"), help="where the plots go")
    parser.add_argument("--json", metavar="FILE", help="every turn, for programs")
    parser.add_argument("--folder", default=os.path.join(ROOT, "build"), help="where the disks lie")
    args = parser.parse_args()
    series = all_series(args.quick)
    names = args.only.split(",") if args.only else [each.name for each in series]
    for name in names:
        if name not in [each.name for each in series]:
            fail(f"no series named {name}; there are: {', '.join(each.name for each in series)}")
    end_in_order()
    players = sides()
    judge = next(side for side in players if side.kind == "peer")
    plots = have_matplotlib()
    os.makedirs(args.out, exist_ok=True)
    print(f"byre beside {', '.join(side.name for side in players[1:])}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"medians of {args.rounds}")
    kept = []
    with tempfile.TemporaryDirectory(prefix="byre-bench-", dir=args.folder) as folder:
        place = Place(folder, args.quick, judge)
        for each in series:
            if each.name not in names:
                continue
            figures = [measure(each, place, players, args.rounds, x) for x, _ in each.points]
            tell(each, players, figures)
            kept.append({"series": each.name, "title": each.title, "unit": each.unit, "points": [
                {"x": x, "runs": {name: [dataclasses.asdict(sample) for sample in runs] for name, runs in found.items()}}
                for (x, _), found in zip(each.points, figures)]})
            if plots:
                plot(each, players, figures, os.path.join(args.out, f"{each.name}.svg"))
    print(f"\nplots: {args.out}/*.svg" if plots else "\nno plots: the package python3-matplotlib is not there")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(kept, file, indent=1)


if __name__ == "__main__":
    main()
