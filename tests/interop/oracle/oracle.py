#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The oracle: thousands of generated command lines, on the real tools and on byre under their names.

    oracle.py [--seed N] [--lines N] [--command NAME] [--only NUMBER,...] [--report FILE] [--show N]

Each line is played in two folders that start alike.  Standard output, standard error, exit code and every file that is left
are compared (compare.py); a difference that no rule of rules.py takes is a fault, and the exit code is then 1.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "support"))
import compare  # noqa: E402
import generate  # noqa: E402
import peers  # noqa: E402
import pool  # noqa: E402
import rules  # noqa: E402
import table  # noqa: E402

BYRE = os.path.abspath(os.environ.get("BYRE", os.path.join(peers.ROOT, "build", "release", "byre")))
HOLE_UNIT = 4096


@dataclass
class Outcome:
    line: generate.Line
    differences: list = field(default_factory=list)
    explained: dict = field(default_factory=dict)
    theirs: compare.Ran = None
    ours: compare.Ran = None

    @property
    def verdict(self):
        if not self.differences:
            return "equal"
        return "intended" if len(self.explained) == len(self.differences) else "unintended"


def copy_sparse(source, target):
    """With its holes: they are part of what is compared."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return
    with open(source, "rb") as left, open(target, "wb") as right:
        end, at = os.fstat(left.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(left.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            stop = os.lseek(left.fileno(), at, os.SEEK_HOLE)
            left.seek(at)
            right.seek(at)
            right.write(left.read(stop - at))
            at = stop
        right.truncate(end)
    os.chmod(target, stat.S_IMODE(os.stat(source).st_mode))


class Oracle:
    def __init__(self, seed):
        self.home = tempfile.mkdtemp(prefix="byre-oracle-")
        self.pool = os.path.join(self.home, "pool")
        self.names = os.path.join(self.home, "bin")
        os.mkdir(self.pool)
        os.mkdir(self.names)
        for name in ("qemu-img", "qemu-io", "qemu-nbd"):
            os.symlink(BYRE, os.path.join(self.names, name))
        pool.make_pool(self.pool, seed)

    def close(self):
        shutil.rmtree(self.home, ignore_errors=True)

    def known(self, command):
        """Does byre have it yet?"""
        if not command.name:
            return True
        return subprocess.run([BYRE, command.name, "--help"], capture_output=True, check=False).returncode == 0

    def folder(self, base, name, files):
        path = os.path.join(base, name)
        os.mkdir(path)
        os.mkdir(os.path.join(path, "folder"))
        os.mkdir(os.path.join(path, "sub"))
        for file in files:
            if file != "folder":
                copy_sparse(os.path.join(self.pool, file), os.path.join(path, file))
        return path

    def play(self, line):
        base = tempfile.mkdtemp(prefix="l", dir=self.home)
        try:
            # Names of one length, so that what is printed of them is.
            folders = [self.folder(base, name, line.files) for name in ("q", "b")]
            theirs = compare.play([line.program, *line.words], folders[0])
            ours = compare.play([os.path.join(self.names, line.program), *line.words], folders[1])
            outcome = Outcome(line, compare.compare(line, theirs, ours, folders, self.pool), theirs=theirs, ours=ours)
            outcome.explained = rules.explain(line, outcome.differences)
            return outcome
        finally:
            shutil.rmtree(base, ignore_errors=True)

    def play_all(self, lines, jobs=2):
        with concurrent.futures.ThreadPoolExecutor(jobs) as workers:
            yield from workers.map(self.play, lines)


def chosen_lines(oracle, arguments):
    """Those of the commands that byre has, and the names of the others."""
    absent = [command.name for command in table.COMMANDS if not oracle.known(command)]
    lines = [line for line in generate.generate(arguments.seed) if line.command not in absent]
    if arguments.command:
        lines = [line for line in lines if line.command in arguments.command.split(",")]
    lines = [line for line in lines if line.number >= arguments.first]
    if arguments.only:
        wanted = set(map(int, arguments.only.split(",")))
        lines = [line for line in lines if line.number in wanted]
    return lines[:arguments.lines], absent


def signature(outcome):
    """Which differences are of one kind: words without names and numbers."""
    index = next(i for i in range(len(outcome.differences)) if i not in outcome.explained)
    one = outcome.differences[index]
    def plain(text):
        text = re.sub(r"'[^']*'", "'X'", text)
        return re.sub(r"\d+", "N", text)[:160]
    def first(left, right):
        for a, b in zip((left + "\n").splitlines(), (right + "\n").splitlines()):
            if a != b:
                return plain(a), plain(b)
        return plain(left[-80:]), plain(right[-80:])
    aspect = one.aspect.split()[0]
    return outcome.line.command, aspect, *first(one.theirs, one.ours)


def report_of(outcome):
    return {"number": outcome.line.number, "line": str(outcome.line), "explained": sorted(set(outcome.explained.values())),
            "theirs": vars(outcome.theirs), "ours": vars(outcome.ours),
            "differences": [{**vars(one), "rule": outcome.explained.get(index)} for index, one in enumerate(outcome.differences)]}


def text_of(outcome):
    out = f"--- {outcome.line.number}: {outcome.line}"
    for index, one in enumerate(outcome.differences):
        note = f" ({outcome.explained[index]})" if index in outcome.explained else ""
        out += f"\n{one.aspect}{note}\n  qemu: {one.theirs[:600]!r}\n  byre: {one.ours[:600]!r}"
    return out


def parse(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lines", type=int, default=None)
    parser.add_argument("--command")
    parser.add_argument("--only", help="these lines, by number")
    parser.add_argument("--first", type=int, default=0, help="leave out lines of lower numbers")
    parser.add_argument("--report")
    parser.add_argument("--show", type=int, default=20, help="how many kinds of faults are shown, with a line each")
    parser.add_argument("--jobs", type=int, default=2)
    return parser.parse_args(words)


def run(words):
    """Plays; gives counts, unintended outcomes and the rules that were used."""
    arguments = parse(words)
    oracle = Oracle(arguments.seed)
    counts, used, faults = collections.Counter(), collections.Counter(), []
    try:
        lines, absent = chosen_lines(oracle, arguments)
        report = open(arguments.report, "w", encoding="utf-8", buffering=1) if arguments.report else None
        for outcome in oracle.play_all(lines, arguments.jobs):
            counts[outcome.verdict] += 1
            counts["lines"] += 1
            used.update(set(outcome.explained.values()))
            if outcome.verdict == "unintended":
                faults.append(outcome)
            if report and outcome.differences:
                report.write(json.dumps(report_of(outcome)) + "\n")
        if report:
            report.close()
    finally:
        oracle.close()
    print_summary(arguments, counts, used, faults, absent)
    return counts, faults, used


def print_summary(arguments, counts, used, faults, absent):
    kinds = collections.defaultdict(list)
    for outcome in faults:
        kinds[signature(outcome)].append(outcome)
    for kind, outcomes in sorted(kinds.items(), key=lambda item: -len(item[1]))[:arguments.show]:
        print(f"\n=== {len(outcomes)} lines: {kind[0]}, {kind[1]}")
        print(text_of(outcomes[0]))
    version = ".".join(map(str, peers.version()))
    print(f"\nQEMU {version}, seed {arguments.seed}: {counts['lines']} lines, {counts['equal']} equal, "
          f"{counts['intended']} with intended differences, {counts['unintended']} with others ({len(kinds)} kinds)")
    if used:
        print("rules: " + ", ".join(f"{number}: {count}" for number, count in sorted(used.items())))
    if absent:
        print(f"byre has no {', '.join(absent)} yet: their lines were not played")


if __name__ == "__main__":
    sys.exit(1 if run(sys.argv[1:])[1] else 0)
