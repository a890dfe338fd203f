#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One table: byre beside each peer that is installed, in turns, with the bar that each row is to reach.

    ./run bench                            all groups but `more`: 15 minutes or more
    ./run bench convert nbd                some of them
    ./run bench table --rows 'check|map'   rows whose name matches
"""
import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time

import _nbd
import _rows
from _report import Result, table
from _side_by_side import BYRE, GIB, MEASURED, MIB, Place, end_in_order, fail, play, progress, sides

GROUPS = {**_rows.GROUPS, "nbd": _nbd.nbd_rows}
NEEDED = {"disk": 8 * GIB, "memory": 5 * GIB}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--rows", metavar="PATTERN", default="", help="only rows whose name this regular expression finds")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each row (9)")
    parser.add_argument("--quick", action="store_true", help="small disks: shows that it works, and measures little")
    parser.add_argument("--json", metavar="FILE", help="every run, for programs")
    parser.add_argument("--folder", default=os.path.join(_rows.HERE, "..", "build"), help="where the disks lie")
    parser.add_argument("--memory", default="/dev/shm", help="a folder on a file system in memory")
    parser.add_argument("--list", action="store_true", help="name the groups, and nothing more")
    args = parser.parse_args()
    if args.list:
        print("\n".join(GROUPS))
        raise SystemExit
    for group in args.groups:
        if group not in GROUPS:
            fail(f"no group named {group}; there are: {', '.join(GROUPS)}")
    return args


def chosen(args):
    rows = [row for name, make in GROUPS.items() if not args.groups or name in args.groups for row in make()]
    rows = [row for row in rows if re.search(args.rows, row.name)]
    if not args.groups and not args.rows:
        rows = [row for row in rows if row.main]
    return rows or fail(f"no row's name matches {args.rows}")


def main():
    args = arguments()
    end_in_order()
    for program in (BYRE, MEASURED):
        if not os.access(program, os.X_OK):
            fail(f"{program} is not there; ./run bench builds it")
    rows, players = chosen(args), sides()
    judge = next(side for side in players if side.kind == "peer")
    started, results = time.monotonic(), []
    print(f"byre beside {', '.join(side.name for side in players[1:])}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"{args.rounds} turns at most; the stripped binary: {stripped_size(BYRE) / MIB:.1f} MiB", flush=True)
    try:
        play_all(args, rows, players, judge, results)
    finally:  # Who ends it sooner gets what there is.
        progress("")
        results.sort(key=lambda result: list(GROUPS).index(result.row.group))
        if results:
            print(table(results))
        print(f"\n{len(results)} of {len(rows)} rows; {time.monotonic() - started:.0f} s; load {os.getloadavg()[0]:.1f} at the end", flush=True)
        if args.json:
            with open(args.json, "w") as file:
                json.dump([result.data() for result in results], file, indent=1)


def play_all(args, rows, players, judge, results):
    for where, base in (("disk", args.folder), ("memory", args.memory)):
        here = [row for row in rows if row.where == where]
        if not here:
            continue
        needed = NEEDED[where] if not args.quick else GIB // 4
        if not os.path.isdir(base) or shutil.disk_usage(base).free < needed:
            print(f"rows {where} are left out: {base} has less than {needed // MIB} MiB", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix="byre-bench-", dir=base) as folder:
            place, group = Place(folder, args.quick, judge), None
            for row in here:
                if row.group != group:
                    group = row.group
                    place.clear()
                found = play(row, place, players, args.rounds, progress)
                kinds = {name: "byre" if name == "byre" else "limit" if name in row.limits else "peer" for name in found}
                results.append(Result(row, place, found, kinds))


def stripped_size(binary):
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "stripped")
        os.system(f"strip -o {made} {binary} 2>/dev/null")
        return os.path.getsize(made if os.path.exists(made) else binary)


if __name__ == "__main__":
    main()
