#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the engine itself costs: CPU and heap allocations for a request to a mapped cluster, over a disk that does nothing
with guest data; and what the layers below it cost.  There is no peer to compare with: QEMU's block layer has no such test.
    ./run bench engine [--rounds 5]
"""
import argparse
import json
import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.path.join(HERE, "..", "build", "release", "src")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--layers", default="qcow2", help="which benchmarks: qcow2,format,io,export")
    args = options.parse_args()
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
