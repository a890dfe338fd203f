#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An independent reader and checker of qcow2 images.

Written from the format specification alone; it shares nothing with the engine, so that a misunderstanding
in one of the two shows up as a difference.  It only ever reads.  Names of fields follow the specification.

    image = Image("disk.qcow2")            # or bytes, or any object with .size and .pread(offset, length)
    image.read(0, 512)                     # guest bytes
    image.read(0, 512, snapshot="before")
    image.check()["errors"]                # [] if sound
"""
import argparse
import json
import sys

import qcow2read
from qcow2check import Checker
from qcow2read import FormatError


class Image(qcow2read.Image):
    def check(self, decode=False, limit=10000):
        """{errors, leaks, copied_mismatch, warnings: lists of findings; counts, dirty, corrupt}."""
        return Checker(self, limit).run(decode)


def check(source, decode=False, limit=10000, **options):
    """As Image(source).check(), but an image that cannot be opened is a finding, too."""
    try:
        return Image(source, **options).check(decode, limit)
    except FormatError as error:
        return {"dirty": False, "corrupt": False, "errors": [{"kind": "header", "text": str(error)}], "leaks": [],
                "copied_mismatch": [], "warnings": [],
                "counts": {"errors": 1, "leaks": 0, "copied_mismatch": 0, "warnings": 0}}


def verdict(result, strict=False):
    """The exit code: 0 sound, 2 errors, 3 leaks only."""
    counts = result["counts"]
    if counts["errors"] or strict and (counts["copied_mismatch"] or counts["warnings"]):
        return 2
    return 3 if counts["leaks"] else 0


def print_check(result, as_json):
    if as_json:
        print(json.dumps(result, indent=1))
        return
    for where in ("errors", "copied_mismatch", "leaks", "warnings"):
        for finding in result[where]:
            print(f"{where}: {finding['kind']}: {finding['text']}")
        if result["counts"][where] > len(result[where]):
            print(f"{where}: {result['counts'][where] - len(result[where])} more")
    print(", ".join(f"{count} {where}" for where, count in result["counts"].items())
          + (", dirty" if result["dirty"] else "") + (", marked corrupt" if result["corrupt"] else ""))


def number(argument):
    return int(argument, 0)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Reads and checks qcow2 images, independently of the engine.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, what, *positional):
        sub = commands.add_parser(name, help=what, description=what)
        sub.add_argument("file")
        for argument, kind in positional:
            sub.add_argument(argument, type=kind)
        return sub
    command("info", "header, extensions, snapshots and bitmaps as JSON")
    sub = command("check", "count all references; exit code 0 sound, 2 errors, 3 leaks only")
    sub.add_argument("--json", action="store_true")
    sub.add_argument("--strict", action="store_true", help="fail for COPIED drift and warnings as well")
    sub.add_argument("--decode", action="store_true", help="decode compressed clusters, compare a raw data file")
    command("read", "guest bytes to standard output", ("offset", number), ("length", number)
            ).add_argument("--snapshot")
    sub = command("sum", "sha256 of the guest's disk")
    sub.add_argument("--snapshot")
    sub.add_argument("--block", type=number, help="one line, offset and sum, for each block that is not zero")
    command("raw", "write the guest's disk to a sparse raw file", ("out", str)).add_argument("--snapshot")
    command("bitmap", "dirty ranges of a bitmap as JSON", ("name", str))
    options = parser.parse_args(argv)
    try:
        if options.command == "check":
            result = check(options.file, options.decode)
            print_check(result, options.json)
            return verdict(result, options.strict)
        image = Image(options.file)
        if options.command == "info":
            print(json.dumps(image.info(), indent=1))
        elif options.command == "read":
            sys.stdout.buffer.write(image.read(options.offset, options.length, options.snapshot))
        elif options.command == "raw":
            image.view(options.snapshot).raw(options.out)
        elif options.command == "bitmap":
            ranges = image.dirty(options.name)
            print(json.dumps([{"offset": start, "length": end - start} for start, end in ranges]))
        elif options.block:
            for offset, digest in image.view(options.snapshot).block_sums(options.block):
                print(offset, digest)
        else:
            print(image.sum(options.snapshot))
    except (FormatError, ValueError, OSError) as error:
        print(f"qcow2ref.py: {options.file}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
