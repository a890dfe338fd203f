#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Conversion: byre convert beside qemu-img convert, plain and compressed (both types), in one run.

Plain: random data, every other MiB a hole, raw to qcow2 and back, with -t unsafe (qemu-img's default: nothing is synced)
and -t writeback (it is durable at the end), in the page cache or, with --folder /dev/shm, in memory.
Compressed: the source is a raw disk of this machine's own files (programs, libraries, texts) with holes between them, in the page
cache.  byre makes what it wrote durable before it returns; qemu-img does that with -t writeback only, so it is shown with
both.  Turns alternate; each figure is the median of the rounds, with the size of what was made and the ratio to
qemu-img's time.  Reading back is measured the same way.
    ./run bench convert [--rounds 5] [--size 256] [--levels 1,6] [--plain 1024] [--folder DIR]
"""
import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BYRE = os.environ.get("BYRE", os.path.join(HERE, "..", "build", "release", "byre"))
MIB = 1 << 20


def make_source(path, size):
    """Files, each at a multiple of 64 KiB, one part in four left out."""
    at = number = 0
    with open(path, "wb") as disk:
        for folder in ("/usr/bin", "/usr/lib", "/usr/share"):
            for parent, _, names in os.walk(folder):
                for name in names:
                    source = os.path.join(parent, name)
                    if os.path.islink(source) or not os.path.isfile(source):
                        continue
                    with open(source, "rb") as file:
                        data = file.read(4 * MIB)
                    number += 1
                    if number % 4:
                        disk.seek(at)
                        disk.write(data[:size - at])
                    at += (len(data) + 65535) // 65536 * 65536
                    if at >= size:
                        disk.truncate(size)
                        return
        disk.truncate(size)


def make_halves(path, size):
    """Every other MiB is random data, the rest are holes."""
    with open(path, "wb") as disk:
        for at in range(0, size, 2 * MIB):
            disk.seek(at)
            disk.write(os.urandom(min(MIB, size - at)))
        disk.truncate(size)


def timed(words):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    elapsed = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256, help="MiB")
    parser.add_argument("--levels", default="1,6", help="of byre, beside its default")
    parser.add_argument("--plain", type=int, default=1024, help="MiB of the plain copies; 0: none")
    parser.add_argument("--folder", help="where the disks lie")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="byre-bench-", dir=options.folder) as folder:
        raw, out, image = (os.path.join(folder, name) for name in ("raw", "out", "image"))
        plain(options, raw, out, image)
        make_source(raw, options.size * MIB)
        print(f"{options.size} MiB, {os.stat(raw).st_blocks * 512 // MIB} MiB of data, {os.cpu_count()} cores, "
              f"median of {options.rounds}")
        print(f"{'':32} {'seconds':>8} {'cpu':>7} {'MiB':>7} {'time/qemu':>9} {'cpu/qemu':>8}")
        for kind in ("zlib", "zstd"):
            made = ["-f", "raw", "-O", "qcow2", "-c", "-o", f"compression_type={kind}"]
            ways = {"qemu-img": ["qemu-img", "convert", *made, raw, out],
                    "qemu-img, durable": ["qemu-img", "convert", "-t", "writeback", *made, raw, out],
                    "byre": [BYRE, "convert", "--force", *made, raw, out]}
            for level in filter(None, options.levels.split(",")):
                ways[f"byre, level {level}"] = [BYRE, "convert", "--force", "--compression-level", level, *made, raw, out]
            report(f"-c {kind}", ways, out, options.rounds)
            shutil.copy(out, image)
            back = ["-f", "qcow2", "-O", "raw", image, out]
            report(f"{kind} to raw", {"qemu-img": ["qemu-img", "convert", *back],
                                      "byre": [BYRE, "convert", "--force", *back]}, out, options.rounds)


def plain(options, raw, out, image):
    if not options.plain:
        return
    make_halves(raw, options.plain * MIB)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image], check=True)
    print(f"{options.plain} MiB, half of it data, {os.cpu_count()} cores, median of {options.rounds}")
    print(f"{'':32} {'seconds':>8} {'cpu':>7} {'MiB':>7} {'time/qemu':>9} {'cpu/qemu':>8}")
    for cache in ("unsafe", "writeback"):
        for title, words in (("raw to qcow2", ["-f", "raw", "-O", "qcow2", raw, out]),
                             ("qcow2 to raw", ["-f", "qcow2", "-O", "raw", image, out])):
            report(f"{title}, {cache}", {"qemu-img": ["qemu-img", "convert", "-t", cache, *words],
                                         "byre": [BYRE, "convert", "--force", "-t", cache, *words]}, out, options.rounds)
    os.unlink(raw)


def report(title, ways, out, rounds):
    times = {name: [] for name in ways}
    sizes = {}
    for _ in range(rounds):
        for name, words in ways.items():
            if os.path.exists(out):
                os.unlink(out)
            times[name].append(timed(words))
            sizes[name] = os.path.getsize(out) / MIB
    base, base_cpu = (statistics.median(run[which] for run in times["qemu-img"]) for which in (0, 1))
    for name, runs in times.items():
        elapsed = statistics.median(run[0] for run in runs)
        cpu = statistics.median(run[1] for run in runs)
        print(f"{title + ': ' + name:32} {elapsed:8.2f} {cpu:7.2f} {sizes[name]:7.1f} {elapsed / base:9.2f} "
              f"{cpu / base_cpu:8.2f}", flush=True)


if __name__ == "__main__":
    main()
