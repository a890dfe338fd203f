#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""4 KiB random reads and writes over NBD at depth 32: byre serve beside qemu-nbd, in one run.

The same prepared image, the same cache mode (writeback), the same client (fio's nbd engine) and turns
in alternation; each figure is the median of the rounds.  CPU is what the server process used, user and
system, divided by the requests it answered.
    ./run bench nbd [--rounds 5] [--seconds 5] [--size 1G]
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BYRE = os.environ.get("BYRE", os.path.join(HERE, "..", "build", "release", "byre"))


def wait_for(path, process):
    for _ in range(1000):
        if os.path.exists(path):
            return
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        time.sleep(0.01)
    raise SystemExit(f"{path} did not appear")


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve(kind, image, socket, *extra, stderr=None):
    if kind == "byre":
        command = [BYRE, "serve", image, "--socket", socket, "--format", "qcow2", "--quiet", *extra]
    else:
        command = ["qemu-nbd", "-f", "qcow2", "-k", socket, "-t", "-e", "16", "--cache=writeback",
                   "--discard=unmap", "--aio=io_uring", *extra, image]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    wait_for(socket, process)
    return process


def fio(socket, mode, options, seconds=None):
    command = ["fio", "--name=j", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}", f"--rw={mode}", "--bs=4k",
               "--iodepth=32", f"--size={options.size}", "--time_based", f"--runtime={seconds or options.seconds}",
               "--randrepeat=1", "--output-format=json"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    job = json.loads(printed[printed.index("{"):])["jobs"][0]  # Notes of the client library may come first.
    return job["read"] if mode == "randread" else job["write"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--size", default="1G")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        master = os.path.join(folder, "master.qcow2")
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", master, options.size], check=True)
        size = options.size
        subprocess.run(["qemu-io", "-f", "qcow2", "-t", "writeback", "-c", f"write -q -P 1 0 {size}", master],
                       check=True, stdout=subprocess.DEVNULL)
        for round_ in range(options.rounds):
            for kind in ("byre", "qemu-nbd") if round_ % 2 == 0 else ("qemu-nbd", "byre"):
                image = os.path.join(folder, "disk.qcow2")
                shutil.copyfile(master, image)
                socket = os.path.join(folder, "s")
                if os.path.exists(socket):
                    os.unlink(socket)
                server = serve(kind, image, socket)
                try:
                    for mode in ("randread", "randwrite"):
                        before = cpu_seconds(server.pid)
                        job = fio(socket, mode, options)
                        used = cpu_seconds(server.pid) - before
                        entry = figures.setdefault((mode, kind), {"iops": [], "cpu": []})
                        entry["iops"].append(job["iops"])
                        entry["cpu"].append(used / job["total_ios"] * 1e6)
                finally:
                    server.send_signal(signal.SIGTERM)
                    server.wait()
    print(f"{'':10} {'byre':>10} {'qemu-nbd':>10} {'ratio':>6}   {'byre':>10} {'qemu-nbd':>10}")
    print(f"{'':10} {'IOPS':>10} {'IOPS':>10} {'':>6}   {'us CPU/req':>10} {'us CPU/req':>10}")
    for mode in ("randread", "randwrite"):
        mine, peer = figures[(mode, "byre")], figures[(mode, "qemu-nbd")]
        iops = [statistics.median(side["iops"]) for side in (mine, peer)]
        cpu = [statistics.median(side["cpu"]) for side in (mine, peer)]
        print(f"{mode:10} {iops[0]:10.0f} {iops[1]:10.0f} {iops[0] / iops[1]:6.2f}   {cpu[0]:10.1f} {cpu[1]:10.1f}")


if __name__ == "__main__":
    main()
