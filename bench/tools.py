#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""compare, measure, dd, commit, rebase and bench of byre beside those of qemu-img, in one run.

Disks: random data with holes between (half of it), as raw and as qcow2, in the page cache.  Each row is run in turns;
the figures are medians, and the ratio is byre's time to qemu-img's.  `bench` is measured by itself: the seconds that it
prints.
    ./run bench tools [--rounds 7] [--size 1024] [--folder DIR]
"""
import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "support"))
import peers  # noqa: E402,F401  (QEMU 10.0 comes first in PATH)

BYRE = os.path.abspath(os.environ.get("BYRE", os.path.join(HERE, "..", "build", "release", "byre")))
MIB = 1 << 20


def make_disk(path, size):
    """Every other MiB is random data, the rest are holes."""
    with open(path, "wb") as disk:
        for at in range(0, size, 2 * MIB):
            disk.seek(at)
            disk.write(os.urandom(min(MIB, size - at)))
        disk.truncate(size)


def by_clock(words, codes):
    start = time.monotonic()
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}")
    return time.monotonic() - start


def by_itself(words, codes):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(words)}: {done.stderr}")
    return float(re.search(r"completed in (\S+) seconds", done.stdout).group(1))


def copy(names):
    """Each name becomes a copy of the file that it stands for, and what is written is on the disk."""
    for made, source in names.items():
        subprocess.run(["cp", "--sparse=always", source, made], check=True)
    os.sync()


def row(title, words, rounds, measure=by_clock, codes=(0,), clean=None, fresh=None, peer="qemu-img"):
    times = {"qemu-img": [], "byre": []}
    for turn in range(rounds):
        for name in sorted(times, reverse=turn % 2 == 1):
            if clean and os.path.exists(clean):
                os.unlink(clean)
            copy(fresh or {})
            times[name].append(measure([peer if name == "qemu-img" else BYRE, *words], codes))
    theirs, ours = (statistics.median(times[name]) for name in ("qemu-img", "byre"))
    print(f"{title:44} {theirs * 1000:9.1f} {ours * 1000:9.1f} {ours / theirs:7.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=1024, help="MiB")
    parser.add_argument("--count", type=int, default=75000, help="requests of bench")
    parser.add_argument("--folder", help="where the disks lie")
    options = parser.parse_args()
    rounds = options.rounds
    with tempfile.TemporaryDirectory(prefix="byre-bench-", dir=options.folder) as folder:
        os.chdir(folder)
        make_disk("a.raw", options.size * MIB)
        subprocess.run(["cp", "--sparse=always", "a.raw", "b.raw"], check=True)
        for made in ("a.qcow2", "b.qcow2"):
            subprocess.run(["qemu-img", "convert", "-O", "qcow2", "a.raw", made], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "empty.qcow2", "1T"], check=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "other.qcow2", "1T"], check=True)
        raw, image = ["-f", "raw"], ["-f", "qcow2"]
        print(f"{options.size} MiB, half of it data, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
              f"median of {rounds}\n{'':44} {'qemu/ms':>9} {'byre/ms':>9} {'ratio':>7}")
        installed = "/usr/bin/qemu-img"  # The other one is started by a script.
        if os.path.exists(installed):
            row("info of a small image: start-up", ["info", *image, "empty.qcow2"], 4 * rounds, peer=installed)
        row("compare raw, raw: alike", ["compare", *raw, "-F", "raw", "a.raw", "b.raw"], rounds)
        row("compare qcow2, qcow2: alike", ["compare", *image, "-F", "qcow2", "a.qcow2", "b.qcow2"], rounds)
        row("compare qcow2, raw: alike", ["compare", *image, "-F", "raw", "a.qcow2", "b.raw"], rounds)
        row("compare empty disks of 1 TiB", ["compare", *image, "-F", "qcow2", "empty.qcow2", "other.qcow2"], rounds)
        row("measure qcow2 to qcow2", ["measure", *image, "-O", "qcow2", "a.qcow2"], rounds)
        row("measure raw to qcow2", ["measure", *raw, "-O", "qcow2", "a.raw"], rounds)
        row("measure an empty disk of 1 TiB", ["measure", *image, "-O", "qcow2", "empty.qcow2"], rounds)
        for size in ("64k", "1M"):
            row(f"dd raw to raw, bs={size}", ["dd", *raw, "-O", "raw", f"bs={size}", "if=a.raw", "of=out"], rounds, clean="out")
            row(f"dd qcow2 to qcow2, bs={size}", ["dd", *image, "-O", "qcow2", f"bs={size}", "if=a.qcow2", "of=out"], rounds,
                clean="out")
        row("dd raw to raw, bs=512, 64 MiB", ["dd", *raw, "-O", "raw", "bs=512", "count=131072", "if=a.raw", "of=out"], rounds,
            clean="out")
        # An overlay with every fourth MiB, over a.qcow2; b.raw is alike below.
        subprocess.run(["qemu-img", "create", "-q", *image, "-b", "base.qcow2", "-F", "qcow2", "-u", "over0.qcow2",
                        f"{options.size}M"], check=True)
        copy({"base.qcow2": "a.qcow2"})
        writes = [word for at in range(0, options.size, 4) for word in ("-c", f"write -q -P {at % 255 + 1} {at}M 1M")]
        subprocess.run(["qemu-io", *image, *writes, "over0.qcow2"], check=True, stdout=subprocess.DEVNULL)
        chain = {"base.qcow2": "a.qcow2", "over.qcow2": "over0.qcow2"}
        for title, words in (("emptied", []), ("-d", ["-d"])):
            row(f"commit qcow2 into qcow2, {title}", ["commit", "-q", *image, *words, "over.qcow2"], rounds, fresh=chain)
        for title, words in (("another, alike", ["-b", "b.raw", "-F", "raw"]), ("none", ["-b", ""])):
            row(f"rebase onto {title}", ["rebase", *image, *words, "over.qcow2"], rounds, fresh=chain)
        count = ["-c", str(options.count)]
        for title, words in (("4 KiB, depth 64", []), ("4 KiB, depth 1", ["-d", "1"]), ("64 KiB, depth 16", ["-s", "64k", "-d", "16"])):
            row(f"bench: read raw, {title}", ["bench", *raw, *count, *words, "a.raw"], rounds, by_itself)
            row(f"bench: read qcow2, {title}", ["bench", *image, *count, *words, "a.qcow2"], rounds, by_itself)
            row(f"bench: write qcow2, {title}", ["bench", "-w", *image, *count, *words, "b.qcow2"], rounds, by_itself)
        os.chdir("/")


if __name__ == "__main__":
    main()
