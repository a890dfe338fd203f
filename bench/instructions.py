#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Instructions of the hot pieces beside those in baseline.json: a rise of more than 10 % is flagged, and nothing fails on it.

Counted by valgrind (engine.py says how), so they are the same on every run with one compiler; another one may differ by a few per cent.
    ./run bench instructions [--store]      --store makes what is counted the baseline
"""
import argparse
import json
import os

from engine import instructions

BASELINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "baseline.json")
PIECES = ("read", "overwrite")
RISE = 1.10


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="make what is counted the baseline")
    parser.add_argument("--baseline", default=BASELINE)
    args = parser.parse_args()
    found = {piece: round(instructions(piece)) for piece in PIECES}
    if args.store:
        with open(args.baseline, "w") as file:
            json.dump(found, file, indent=2)
            file.write("\n")
    with open(args.baseline) as file:
        baseline = json.load(file)
    print(f"{'instructions of':24} {'stored':>10} {'now':>10} {'':>8}")
    for piece, now in found.items():
        ratio = now / baseline[piece]
        print(f"{piece:24} {baseline[piece]:>10} {now:>10} {ratio - 1:>+8.1%}{'   MORE THAN 10 % MORE' if ratio > RISE else ''}")


if __name__ == "__main__":
    main()
