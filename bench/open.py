#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The first write to an image that was just opened: what counting all references first costs (docs/engine.md, V).

  100G, 2T     sparse, preallocated metadata for a disk of that size, and no data
  snapshots    the same of 512G, with four snapshots that share all of it

For each: byre io opens, writes 64 KiB and closes, with the scan and with --trust-refcounts (no scan), and qemu-io, which has none.
Turns alternate; each figure is the median of the rounds, with the file in the page cache.  Memory is the largest resident set.
    ./run bench open [--rounds 5] [--folder DIR]
"""
import argparse
import os
import statistics
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BYRE = os.environ.get("BYRE", os.path.join(HERE, "..", "build", "release", "byre"))
WRITE = "write -q -P 7 1M 64k"
WAYS = {
    "byre": lambda image: [BYRE, "io", "-f", "qcow2", "-c", WRITE, image],
    "byre, trusting": lambda image: [BYRE, "io", "-c", f"open -o trust-refcounts=on,driver=qcow2 {image}", "-c", WRITE],
    "qemu-io": lambda image: ["qemu-io", "-f", "qcow2", "-c", WRITE, image],
}


def timed(words):
    """Seconds, CPU seconds, MiB of memory."""
    start = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words} failed")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def make(image, size, snapshots):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, size], check=True)
    for number in range(snapshots):
        subprocess.run(["qemu-img", "snapshot", "-c", f"s{number}", image], check=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, size, snapshots in (("100G", "100G", 0), ("2T", "2T", 0), ("snapshots", "512G", 4)):
            image = os.path.join(folder, "disk.qcow2")
            make(image, size, snapshots)
            found = {way: [] for way in WAYS}
            for _ in range(args.rounds):
                for way, words in WAYS.items():
                    found[way].append(timed(words(image)))
            for way, rounds in found.items():
                seconds, cpu, memory = (statistics.median(column) for column in zip(*rounds))
                print(f"{name:10} {way:15} {seconds * 1000:8.0f} ms {cpu * 1000:8.0f} ms CPU {memory:6.0f} MiB", flush=True)
            os.unlink(image)


if __name__ == "__main__":
    main()
