# SPDX-License-Identifier: Apache-2.0
"""byre and its peers in turns: the sides, what a run took, and how rows are played.

A Row is data: what is made before, the command of each side, what is verified after each run.  Sides take turns, and the
order rotates.  Each run of byre is verified (qemu-img check and compare), the first one of every other side.  Rows are
played for `rounds` turns, with two rules for the slow ones:
  - after three turns only byre, the better peer and the better limit go on; sooner, when a third of the row's time is used up;
  - no row begins another turn once its time is used up (three turns are always played).
How many turns each row had stands in the table (_report.py).
"""
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BYRE = os.path.abspath(os.environ.get("BYRE", os.path.join(ROOT, "build", "release", "byre")))
PEERS = os.environ.get("BYRE_PEERS", os.path.join(ROOT, "build", "peers"))
MEASURED = os.path.join(os.path.dirname(BYRE), "bench", "measured")
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
TURNS_OF_ALL = 3  # After these only what can decide goes on.


def fail(text):
    raise SystemExit(f"bench: {text}")


@dataclasses.dataclass
class Sample:
    """What one run took.  `seconds` and `cpu` are of the whole run, or of one request where the row counts those."""
    seconds: float
    cpu: float
    memory: float = 0  # Bytes at most.
    size: int = 0      # Of the file that was made.


class Side:
    """Who plays: byre, one version of QEMU's tools, or a limit."""

    def __init__(self, name, kind, programs=None):
        self.name, self.kind, self.programs = name, kind, programs or {}

    def program(self, name):
        return self.programs[name]

    @property
    def is_byre(self):
        return self.kind == "byre"


def qemu_programs(folder):
    """The programs of one version, started without the shell script that `./run peers` puts in front of them."""
    found = {}
    for name in ("qemu-img", "qemu-io", "qemu-nbd"):
        path = os.path.join(folder, name)
        if not os.access(path, os.X_OK):
            return None
        loader = os.path.join(folder, "loader", "qemu-img")
        real = os.path.join(folder, "root", "usr", "bin", name)
        libraries = os.path.join(folder, "root", "usr", "lib", "x86_64-linux-gnu")
        found[name] = [path]
        if os.path.exists(loader) and os.path.exists(real):
            os.environ.setdefault("QEMU_MODULE_DIR", "/nonexistent")  # Else one version finds the modules of another.
            found[name] = [loader, "--library-path", libraries, "--argv0", name, real]
    return found


def end_in_order():
    """Ended by SIGTERM, a script still stops its servers and removes its disks."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def sides():
    """byre, and every version of QEMU's tools that is there."""
    all_sides = [Side("byre", "byre", {"qemu-img": [BYRE], "qemu-io": [BYRE, "io"]})]
    folders = [os.path.join(PEERS, name) for name in ("10", "11")] + ["/usr/bin"]
    for folder in folders:
        programs = qemu_programs(folder)
        if programs:
            text = subprocess.run([*programs["qemu-img"], "--version"], capture_output=True, text=True, check=True).stdout
            version = re.search(r"version (\d+\.\d+)", text)[1]
            all_sides.append(Side(f"QEMU {version}", "peer", programs))
    if len(all_sides) == 1:
        fail("no qemu-img is there to measure beside; `./run peers` brings QEMU 10.0, the package qemu-utils has another")
    return all_sides


@dataclasses.dataclass
class Row:
    """One line of the table.  Words may be a list, or a function of the side that gives one."""
    group: str
    name: str
    words: object                      # Of qemu-img, which are byre's too.
    byre_words: tuple = ()             # What byre alone gets, behind the command's name.
    inputs: tuple = ()                 # Functions that make files in the folder; each is called once for a group.
    before: object = None              # Called with (place, side) before each run, not measured.
    result: str = ""                   # The file that is made: removed before each run; its size is told.
    verify: object = None              # Gives [["check", ...], ["compare", ...]] for qemu-img.
    after: object = None               # Called with (place, side) when that is done.
    clock: str = "wall"                # Or "bench": the seconds that the program prints.
    unit: str = "run"                  # Or "request", with `count` of them.
    count: object = None
    work: object = None                # Bytes of guest data, for CPU seconds per GiB: a function of the place.
    limits: dict = dataclasses.field(default_factory=dict)  # Name: function of the place that gives words, or a Sample.
    bar: float = None
    against: str = "peer"              # Or "limit".
    bar_cpu: float = None              # Microseconds of CPU a request.
    bar_size: float = None             # The result's size beside the peer's.
    decides: str = "time"              # Or "cpu".
    where: str = "disk"                # Or "memory".
    main: bool = True                  # False: played only when it is asked for.
    seconds: float = 25                # How long its turns may take together.
    turn: object = None                # Called with (place, side) instead of a command; gives a Sample.
    only_byre: bool = False


class Place:
    """The folder in which rows are played, and how large they are."""

    def __init__(self, folder, quick, judge):
        self.folder, self.quick, self.judge, self.made = folder, quick, judge, set()

    def pick(self, full, quick):
        return quick if self.quick else full

    def path(self, name):
        return os.path.join(self.folder, name)

    def sh(self, *words, ok=(0,), data=None):
        done = subprocess.run([str(word) for word in words], cwd=self.folder, input=data, capture_output=True)
        if done.returncode not in ok:
            fail(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout

    def qemu_img(self, *words, **options):
        return self.sh(*self.judge.program("qemu-img"), *words, **options)

    def qemu_io(self, *words, **options):
        return self.sh(*self.judge.program("qemu-io"), *words, **options)

    def remove(self, name):
        if name and os.path.exists(self.path(name)):
            os.unlink(self.path(name))

    def make(self, inputs):
        for make in inputs:
            if make not in self.made:
                make(self)
                self.made.add(make)

    def clear(self):
        for name in os.listdir(self.folder):
            os.unlink(self.path(name))
        self.made.clear()

    def run(self, words, clock="wall"):
        """Runs a program and says what it took."""
        told = self.path(".measured")
        done = subprocess.run([MEASURED, told, *map(str, words)], cwd=self.folder, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, errors="replace")
        if done.returncode:
            fail(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{done.stderr[-2000:]}")
        with open(told) as file:
            seconds, cpu, memory, _ = file.read().split()
        if clock == "bench":
            seconds = re.search(r"completed in (\S+) seconds", done.stdout)[1]
        return Sample(float(seconds), float(cpu), int(memory) * KIB)

    def fio(self, path, *options):
        """fio on a raw file past the page cache: what the disk gives.  Seconds are of one request."""
        words = ["fio", "--name=j", f"--filename={path}", "--direct=1", "--ioengine=io_uring", "--output-format=json", *options]
        text = self.sh(*words).decode()
        job = json.loads(text[text.index("{"):])["jobs"][0]
        total = job["read"]["total_ios"] + job["write"]["total_ios"]
        seconds = max(job["read"]["runtime"], job["write"]["runtime"]) / 1000
        return Sample(seconds / total, seconds * (job["usr_cpu"] + job["sys_cpu"]) / 100 / total)


def command_of(row, place, side):
    words = row.words
    if callable(words):
        words = words(place, side) if getattr(words, "by_side", False) else words(place)
    words = list(words)
    if side.is_byre:
        words = [words[0], *row.byre_words, *words[1:]]
    return [*side.program("qemu-img"), *words]


def play_turn(row, place, side, verified):
    """One run of one side; verified when it is to be."""
    place.remove(row.result)
    if row.before:
        row.before(place, side)
    if row.turn:
        sample = row.turn(place, side)
    elif side.kind == "limit":
        made = row.limits[side.name](place)
        sample = made if isinstance(made, Sample) else place.run(made, row.clock)
    else:
        sample = place.run(command_of(row, place, side), row.clock)
    per = row.count(place) if row.unit == "request" and row.count else 1
    if not row.turn and not (side.kind == "limit" and sample.memory == 0):
        sample.seconds, sample.cpu = sample.seconds / per, sample.cpu / per
    if row.result and os.path.exists(place.path(row.result)):
        sample.size = os.path.getsize(place.path(row.result))
    if row.verify and verified and side.kind != "limit":
        for words in row.verify(place, side):
            place.qemu_img(*words)
    if row.after:
        row.after(place, side)
    return sample


def median(samples, key="seconds"):
    values = sorted(getattr(sample, key) for sample in samples)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def best(found, players, key="seconds"):
    """The side with the lowest median, or None."""
    return min(players, key=lambda side: median(found[side.name], key), default=None)


def play(row, place, players, rounds, say):
    """{side's name: [Sample, ...]} and, by name, who played."""
    if row.only_byre:
        players = [side for side in players if side.is_byre]
    players = [*players, *(Side(name, "limit") for name in row.limits)]
    place.make(row.inputs)
    os.sync()
    found = {side.name: [] for side in players}
    started = time.monotonic()
    for turn in range(rounds):
        used = time.monotonic() - started
        if turn >= TURNS_OF_ALL and used + used / turn > row.seconds:
            break
        if turn == TURNS_OF_ALL or (turn and used > row.seconds / 3):
            key = "cpu" if row.decides == "cpu" else "seconds"
            for kind in ("peer", "limit"):
                chosen = best(found, [side for side in players if side.kind == kind], key)
                players = [side for side in players if side.kind != kind or side is chosen]
        first = turn % len(players)
        for side in players[first:] + players[:first]:
            found[side.name].append(play_turn(row, place, side, side.is_byre or not found[side.name]))
        say(f"{row.group}: {row.name}: turn {turn + 1} of {rounds}")
    return found


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif os.environ.get("BYRE_BENCH_TRACE"):
        print(f"{time.monotonic():.1f} {text}", file=sys.stderr, flush=True)
