#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checking an image with all its metadata in place: byre check beside qemu-img check, in one run.

The image is sparse: preallocated metadata for a disk of --size, and no data.  Turns alternate; each figure is the
median of the rounds, with the file in the page cache.  Memory is the largest resident set.
    ./run bench check [--rounds 5] [--size 2T] [--folder DIR]
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BYRE = os.environ.get("BYRE", os.path.join(HERE, "..", "build", "release", "byre"))


def check(words, image):
    """Seconds, CPU seconds, and MiB of memory."""
    start = time.monotonic()
    process = subprocess.Popen([*words, "check", "-f", "qcow2", "--output=json", image], stdout=subprocess.PIPE)
    told = json.load(process.stdout)
    _, status, usage = os.wait4(process.pid, 0)
    if status or told.get("corruptions") or told.get("leaks"):
        raise SystemExit(f"{words}: {told}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="2T")
    parser.add_argument("--cluster-size", default="64k")
    parser.add_argument("--folder", default=None, help="where the image is made; it takes 160 MiB for each TiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        image = os.path.join(folder, "image.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o",
                        f"preallocation=metadata,cluster_size={options.cluster_size}", image, options.size], check=True)
        print(f"{options.size}, clusters of {options.cluster_size}: "
              f"{os.stat(image).st_blocks / 2048:.0f} MiB of metadata")
        programs = {"qemu-img": ["qemu-img"], "byre": [BYRE]}
        for words in programs.values():
            check(words, image)  # Into the page cache.
        runs = {name: [] for name in programs}
        for _ in range(options.rounds):
            for name, words in programs.items():
                runs[name].append(check(words, image))
        medians = {name: [statistics.median(column) for column in zip(*each)] for name, each in runs.items()}
        for name, (seconds, cpu, memory) in medians.items():
            print(f"{name:<10} {seconds:8.3f} s  {cpu:8.3f} s CPU  {memory:8.1f} MiB")
        print(f"qemu-img takes {medians['qemu-img'][0] / medians['byre'][0]:.2f} times as long")


if __name__ == "__main__":
    main()
