#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What internal snapshots cost, beside qemu-img: on a disk whose metadata are all there and whose data are holes.

    bench/snapshot.py [--size GIB] [--rounds N] [--cluster BYTES]

Each round makes the image anew for each tool (preallocation=metadata), then times, in milliseconds: the first
snapshot, a second one of the unchanged disk, applying the first, deleting both.  The last column is for each TiB of
disk.  The page cache is warm, as it is after the image was made; every step is durable when its tool returns.
"""
import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BYRE = os.environ.get("BYRE", os.path.join(ROOT, "build", "release", "byre"))
STEPS = [("create", ["-c", "one"]), ("create again", ["-c", "two"]), ("apply", ["-a", "one"]),
         ("delete", ["-d", "one"]), ("delete the last", ["-d", "two"])]


def timed(*words):
    start = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return (time.monotonic() - start) * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="GiB of disk (1024)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cluster", type=int, default=65536)
    parser.add_argument("--folder", help="where the images lie")
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="byre-bench-", dir=args.folder)
    image = os.path.join(folder, "disk.qcow2")
    results = {}
    try:
        for _ in range(args.rounds):
            for tool, program in (("qemu-img", "qemu-img"), ("byre", BYRE)):
                subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o",
                                f"preallocation=metadata,cluster_size={args.cluster}", image, f"{args.size}G"],
                               check=True)
                os.sync()
                for name, words in STEPS:
                    results.setdefault((name, tool), []).append(timed(program, "snapshot", *words, image))
                subprocess.run(["qemu-img", "check", "-q", image], check=True)
                os.unlink(image)
    finally:
        shutil.rmtree(folder)
    print(f"{args.size} GiB, clusters of {args.cluster} bytes, median of {args.rounds}, milliseconds")
    print(f"{'':<18}{'qemu-img':>12}{'byre':>12}{'byre per TiB':>15}")
    for name, _ in STEPS:
        theirs, ours = (statistics.median(results[name, tool]) for tool in ("qemu-img", "byre"))
        print(f"{name:<18}{theirs:>12.0f}{ours:>12.0f}{ours * 1024 / args.size:>15.0f}")


if __name__ == "__main__":
    main()
