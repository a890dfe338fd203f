#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Instructions of the hot pieces beside those in baseline.json: a rise of more than 10 % is flagged, and nothing fails on it.

Counted by valgrind (engine.py says how), so they are the same on every run with one compiler; another one may differ by a few per cent.
    ./run bench instructions [PIECE...] [--store]      --store makes what is counted the baseline

read and overwrite: a request of 4 KiB to a mapped cluster.  extents: what 64 MiB of full clusters are.  zeros: 64 KiB of zeros found to be
such.  entries: an L2 table of 8192 entries, decoded one by one.  parse: an NBD request read and checked (bench/engine_requests.cc).
"""
import argparse
import json
import os

from engine import instructions

BASELINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "baseline.json")
PIECES = {  # Name: how often, twice; the difference is what counts.
    "read": (1000, 5000), "overwrite": (1000, 5000), "extents": (100, 500), "zeros": (100, 500), "entries": (10, 50), "parse": (1000, 5000)}
RISE = 1.10


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="make what is counted the baseline")
    parser.add_argument("--baseline", default=BASELINE)
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"all, when there is none: {', '.join(PIECES)}")
    args = parser.parse_args()
    pieces = args.pieces or list(PIECES)
    for piece in pieces:
        if piece not in PIECES:
            parser.error(f"no piece named {piece}; there are: {', '.join(PIECES)}")
    found = {piece: round(instructions(piece, *PIECES[piece])) for piece in pieces}
    baseline = {}
    if os.path.exists(args.baseline):
        with open(args.baseline) as file:
            baseline = json.load(file)
    if args.store:
        baseline.update(found)
        with open(args.baseline, "w") as file:
            json.dump(baseline, file, indent=2)
            file.write("\n")
    print(f"{'instructions of':24} {'stored':>10} {'now':>10} {'':>8}")
    for piece, now in found.items():
        if piece not in baseline:
            print(f"{piece:24} {'none':>10} {now:>10}")
            continue
        ratio = now / baseline[piece]
        print(f"{piece:24} {baseline[piece]:>10} {now:>10} {ratio - 1:>+8.1%}{'   MORE THAN 10 % MORE' if ratio > RISE else ''}")


if __name__ == "__main__":
    main()
