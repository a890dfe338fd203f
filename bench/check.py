#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checking an image: byre check beside qemu-img check, in one run, on three images.

  metadata     sparse, preallocated metadata for a disk of --size, and no data
  snapshots    the same of a quarter of that, with four snapshots that share all of it, and a fifth that does not
  compressed   a million compressed clusters of 4 KiB

Turns alternate; each figure is the median of the rounds, with the file in the page cache.  Memory is the largest
resident set.
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


def metadata(image, size):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", image, str(size)], check=True)


def snapshots(image, size):
    metadata(image, size // 4)
    for number in range(5):
        if number == 4:  # Every 16 MiB a cluster, so that each L2 table is copied.
            writes = [f"write -q {at}M 64k" for at in range(0, size // 4 >> 20, 512)]
            subprocess.run(["qemu-io", "-f", "qcow2", "-t", "unsafe", image], input="\n".join(writes + ["quit"]).encode(),
                           stdout=subprocess.DEVNULL, check=True)
        subprocess.run(["qemu-img", "snapshot", "-c", f"s{number}", image], check=True)


def compressed(image, size):
    raw = image + ".raw"
    subprocess.run(["truncate", "-s", str(size // 512), raw], check=True)
    writes = [f"write -q -P {at % 255 + 1} {at}M 1M" for at in range(size // 512 >> 20)]
    subprocess.run(["qemu-io", "-f", "raw", "-t", "unsafe", raw], input="\n".join(writes + ["quit"]).encode(),
                   stdout=subprocess.DEVNULL, check=True)
    subprocess.run([BYRE, "convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", raw, image], check=True)
    os.unlink(raw)


def size_of(text):
    return int(text[:-1]) << {"M": 20, "G": 30, "T": 40}[text[-1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="2T")
    parser.add_argument("--folder", default=None, help="where the images are made; they take 250 MiB for each TiB")
    options = parser.parse_args()
    programs = {"qemu-img": ["qemu-img"], "byre": [BYRE]}
    for make in (metadata, snapshots, compressed):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            image = os.path.join(folder, "image.qcow2")
            make(image, size_of(options.size))
            print(f"{make.__name__}: {os.stat(image).st_blocks / 2048:.0f} MiB")
            for words in programs.values():
                check(words, image)  # Into the page cache.
            runs = {name: [] for name in programs}
            for _ in range(options.rounds):
                for name, words in programs.items():
                    runs[name].append(check(words, image))
            medians = {name: [statistics.median(column) for column in zip(*each)] for name, each in runs.items()}
            for name, (seconds, cpu, memory) in medians.items():
                print(f"  {name:<10} {seconds:8.3f} s  {cpu:8.3f} s CPU  {memory:8.1f} MiB")
            ratio = [medians["qemu-img"][i] / medians["byre"][i] for i in range(2)]
            print(f"  qemu-img takes {ratio[0]:.2f} times as long, {ratio[1]:.2f} times the CPU")


if __name__ == "__main__":
    main()
