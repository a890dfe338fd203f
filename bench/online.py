#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long a check of a disk in use holds its writers up: byre serve with checks asked for and without, in one run.

4 KiB at random over NBD (fio's nbd engine, depth 32) to a disk whose tables are all in place; meanwhile a signal asks for
a check twice a second, or for none.  What counts are the slowest writes: the begin of a check waits for the writes under
way and for one commit, and holds new ones up until it has read the L1 table and counted.  Turns alternate; medians.
    ./run bench online [--rounds 5] [--seconds 5] [--size 64G]
"""
import argparse
import os
import re
import signal
import statistics
import subprocess
import tempfile
import threading

from _nbd import byre_serves, end, fio, start


class Asking(threading.Thread):
    """Asks for a check twice a second."""

    def __init__(self, pid):
        super().__init__()
        self.pid, self.over, self.asked = pid, threading.Event(), 0

    def run(self):
        while not self.over.wait(0.5):
            os.kill(self.pid, signal.SIGUSR1)
            self.asked += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--size", default="64G", help="of the disk; its tables are all in place")
    parser.add_argument("--folder", default=None, help="where the image is made")
    options = parser.parse_args()
    disk_size, options.size = options.size, "512M"  # fio writes to the start of the disk.
    figures = {kind: {"iops": [], "99": [], "99.9": [], "max": []} for kind in ("none", "checked")}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        master, image = os.path.join(folder, "master.qcow2"), os.path.join(folder, "disk.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", master, disk_size],
                       check=True)
        done = 0
        for round_ in range(options.rounds):
            for kind in ("none", "checked") if round_ % 2 == 0 else ("checked", "none"):
                subprocess.run(["cp", "--sparse=always", master, image], check=True)
                socket = os.path.join(folder, "s")
                with open(os.path.join(folder, "said"), "w+") as said:
                    server = start(byre_serves(image, socket), socket, stderr=said)
                    asking = Asking(server.pid)
                    try:
                        fio(socket, "randwrite", options.size, 2)  # Allocation, and the page cache.
                        if kind == "checked":
                            asking.start()
                        job = fio(socket, "randwrite", options.size, options.seconds)
                    finally:
                        asking.over.set()
                        if kind == "checked":
                            asking.join()
                        end(server)
                    said.seek(0)
                    found = re.findall(r"^checked \S+ in ([0-9.]+) s: (\d+) errors?, (\d+) leaked", said.read(), re.M)
                if any(errors != "0" or leaks != "0" for _, errors, leaks in found):
                    raise SystemExit(f"a check found something: {found}")
                done += len(found)
                latency = job["clat_ns"]
                figures[kind]["iops"].append(job["iops"])
                figures[kind]["99"].append(latency["percentile"]["99.000000"] / 1e6)
                figures[kind]["99.9"].append(latency["percentile"]["99.900000"] / 1e6)
                figures[kind]["max"].append(latency["max"] / 1e6)
    if done == 0:
        raise SystemExit("no check ended")
    print(f"{done} checks of {disk_size}; milliseconds, medians of {options.rounds}")
    print(f"{'':10} {'IOPS':>10} {'99 %':>8} {'99.9 %':>8} {'slowest':>8}")
    for kind, each in figures.items():
        medians = {key: statistics.median(values) for key, values in each.items()}
        print(f"{kind:10} {medians['iops']:10.0f} {medians['99']:8.2f} {medians['99.9']:8.2f} {medians['max']:8.2f}")


if __name__ == "__main__":
    main()
