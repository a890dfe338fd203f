#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the engine itself costs: CPU, heap allocations and instructions for a request to a mapped cluster, over a disk that
does nothing with guest data; and what the layers below it cost.  There is no peer to compare with: QEMU's block layer has no
such test.  Instructions are counted by valgrind, as the difference of two numbers of requests: unlike times they are the
same on every run, so a change of one per cent shows.
    ./run bench engine [--rounds 5] [--instructions-only]
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "support"))
from confine import forbid_io_uring  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, "..", "build", "release", "src")
REQUESTS = os.path.join(HERE, "..", "build", "release", "bench", "engine_requests")


def instructions(kind, few=1000, many=5000):
    """Of one request."""
    counts = []
    for count in (few, many):
        done = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", REQUESTS, kind, str(count)],
                              stderr=subprocess.PIPE, text=True, check=True)
        counts.append(int(re.search(r"Collected : (\d+)", done.stderr)[1]))
    return (counts[1] - counts[0]) / (many - few)


def instructions_through_an_export(kind, tool, few=500, many=2500):
    """Of one request that a client sends, with the answer: NBD, the graph, the engine, system calls left out."""
    counts = []
    plain = os.path.join(BUILD, "..", "byre-without-debug-info")  # Valgrind does not read that of every compiler.
    subprocess.run(["objcopy", "--strip-debug", tool, plain], check=True)
    for count in (few, many):
        with tempfile.TemporaryDirectory() as folder:
            image, sock = os.path.join(folder, "disk.qcow2"), os.path.join(folder, "nbd")
            subprocess.run([tool, "create", "-q", "-f", "qcow2", image, "64M"], check=True)
            subprocess.run([tool, "io", "-c", "write 0 16M", image], check=True, stdout=subprocess.DEVNULL)
            server = subprocess.Popen(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", plain, "serve", "-q", "-k",
                                       sock, image], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                      preexec_fn=forbid_io_uring)  # Valgrind hangs in it.
            while not os.path.exists(sock):
                if server.poll() is not None:
                    raise SystemExit(server.communicate()[1])
                time.sleep(0.05)
            call = "h.pread(4096, at)" if kind == "read" else "h.pwrite(bytes(4096), at)"
            requests = (f"import nbd\nh = nbd.NBD()\nh.connect_unix('{sock}')\nfor i in range({count}):\n"
                        f"  at = i * 7919 % 4096 * 4096\n  {call}\nh.shutdown()\n")
            subprocess.run(["/usr/bin/python3", "-I", "-c", requests], check=True)
            server.terminate()
            counts.append(int(re.search(r"Collected : (\d+)", server.communicate()[1])[1]))
    return (counts[1] - counts[0]) / (many - few)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--layers", default="qcow2", help="which benchmarks: qcow2,format,io,export")
    options.add_argument("--instructions-only", action="store_true")
    options.add_argument("--tool", default=os.path.join(HERE, "..", "build", "release", "byre"), help="the byre that serves")
    args = options.parse_args()
    for kind in ("read", "overwrite"):
        print(f"{'4 KiB ' + kind + ' of a mapped cluster':<48} {instructions(kind):>10.0f} instructions")
        print(f"{'the same through one NBD export':<48} {instructions_through_an_export(kind, args.tool):>10.0f} instructions")
    if args.instructions_only:
        return
    print(f"{'benchmark':<48} {'CPU, us':>10} {'heap allocations':>18}   (medians of {args.rounds})")
    for layer in args.layers.split(","):
        done = subprocess.run(
            [os.path.join(BUILD, f"{layer}_bench"), f"--benchmark_repetitions={args.rounds}",
             "--benchmark_report_aggregates_only=true", "--benchmark_format=json"],
            stdout=subprocess.PIPE, check=True)
        scale = {"ns": 1e-3, "us": 1, "ms": 1e3, "s": 1e6}
        for row in json.loads(done.stdout)["benchmarks"]:
            if row["aggregate_name"] != "median":
                continue
            heap = next((f"{value:.4f}" for key, value in row.items() if key.startswith("heap")), "")
            items = row.get("items_per_second")
            cpu = 1e6 / items if items else row["cpu_time"] * scale[row["time_unit"]]
            print(f"{row['run_name']:<48} {cpu:>10.3f} {heap:>18}")


if __name__ == "__main__":
    main()
