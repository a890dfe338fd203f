#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a persistent bitmap that records costs a steady writer: byre serve with none and with one, in one run.

4 KiB at random over NBD (fio's nbd engine, depth 32) to a written disk, past the page cache; turns alternate, and each
figure is the median of the rounds.  A writer is steady once it has been everywhere: the first writes to each 256 MiB, which
mark the bitmap on the disk, are in what runs first and is not measured.  Through the page cache (--cache writeback) what is
measured is ext4's walk over the buffers of a folio, so the size of the folios that a sync left: reread the file or sync it
once more, and either kind comes out ahead.  The engine alone, without a server and a disk: ./run bench engine
(bm_overwrite, bm_overwrite_recorded).
    ./run bench bitmaps [--rounds 21] [--seconds 3] [--size 1G] [--folder /dev/shm --cache writeback]
"""
import argparse
import os
import shutil
import statistics
import subprocess
import tempfile

from _nbd import byre_serves, cpu_seconds, end, fio, start
from _side_by_side import BYRE


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=2, help="seconds of the same writes first, not measured")
    parser.add_argument("--size", default="1G")
    parser.add_argument("--folder", default=None, help="where the images are made")
    parser.add_argument("--cache", default="none", help="byre serve's")
    options = parser.parse_args()
    kinds = ("none", "one")
    figures = {kind: {"iops": [], "cpu": []} for kind in kinds}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        masters = {kind: os.path.join(folder, f"{kind}.qcow2") for kind in kinds}
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", masters["none"], options.size], check=True)
        subprocess.run(["qemu-io", "-f", "qcow2", "-t", "writeback", "-c", f"write -q -P 1 0 {options.size}",
                        masters["none"]], check=True, stdout=subprocess.DEVNULL)
        shutil.copyfile(masters["none"], masters["one"])
        subprocess.run([BYRE, "bitmap", "--add", masters["one"], "daily"], check=True)
        for round_ in range(options.rounds):
            for kind in kinds if round_ % 2 == 0 else kinds[::-1]:
                image, socket = os.path.join(folder, "disk.qcow2"), os.path.join(folder, "s")
                shutil.copyfile(masters[kind], image)
                # The first mark syncs the file: pages that the copy left dirty would be cheap for the other kind alone.
                with open(image, "rb") as file:
                    os.fsync(file.fileno())
                server = start(byre_serves(image, socket, "--cache", options.cache), socket)
                try:
                    fio(socket, "randwrite", options.size, options.warm)
                    with open(image, "rb") as file:
                        os.fsync(file.fileno())
                    before = cpu_seconds(server.pid)
                    job = fio(socket, "randwrite", options.size, options.seconds)
                    figures[kind]["iops"].append(job["iops"])
                    figures[kind]["cpu"].append((cpu_seconds(server.pid) - before) / job["total_ios"] * 1e6)
                finally:
                    end(server)
    medians = {kind: {key: statistics.median(values) for key, values in each.items()} for kind, each in figures.items()}
    for kind in kinds:
        spread = figures[kind]["cpu"]
        print(f"{kind:<5} bitmap {medians[kind]['iops']:10.0f} IOPS {medians[kind]['cpu']:8.2f} us CPU/write "
              f"({min(spread):.2f} to {max(spread):.2f})")
    for key in ("iops", "cpu"):
        print(f"{key}: {medians['one'][key] / medians['none'][key] - 1:+.1%}")


if __name__ == "__main__":
    main()
