# SPDX-License-Identifier: Apache-2.0
"""Two kinds of guests that hammer an export while something happens to its disk, and what the disk must hold then.

    load = Load(case, uri, seed)            # the export has LOAD_SIZE bytes at least
    load.start()
    with load.moment() as moment: ...       # what is asked here takes the disk as it is at some instant of the block
    seen = load.stop()                      # a file with the disk as its clients see it
    moment.check(read)                      # a copy of that instant

Fio writes and trims, round after round, and compares what it has written with checksums (the seed of a round is in the
header of each block, so an older one is found).  Beside it stamped sectors (stamps.py) are written, zeroed, trimmed and read;
for those all is known that a copy of an instant may hold, without anybody having to wait.
"""
import contextlib
import json
import os
import subprocess
import threading
import time

from harness import MIB, run
from stamps import SECTOR, History, Op, Writer, Wrong

# The stamped part, seven parts for fio, and a rest that nobody writes.
STAMPED = 16 * MIB
PART = 8 * MIB
PARTS = 7
LOAD_SIZE = STAMPED + PARTS * PART + 8 * MIB

# In one round: a part is written and read back, one trimmed and written, one trimmed; the next round has them changed about.
ROUND = (("write", "randwrite", 0, ("--bssplit=4k/70:16k/20:64k/10", "--verify=crc32c")),
         ("both", "randtrimwrite", 1, ("--bs=64k", "--verify=crc32c")),
         ("trim", "randtrim", 2, ("--bssplit=4k/30:64k/70",)),
         # These two meet on the same blocks, in whatever order: what comes of it is nobody's claim, but all must agree about it.
         ("meet", "randwrite", 6, ("--bssplit=4k/50:64k/50",)), ("meets", "randtrim", 6, ("--bssplit=4k/30:64k/70",)))


class Rounds:
    """One thread that runs fio again and again."""

    def __init__(self, uri, folder, seed, first_part):
        self.uri, self.folder, self.seed, self.first_part = uri, folder, seed, first_part
        self.rounds = self.requests = 0
        self.failure = None
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.stopped.is_set():
                self.round()
        except Exception as error:  # pylint: disable=broad-exception-caught
            self.failure = error

    def round(self):
        self.rounds += 1
        words = ["fio", "--thread", "--name=global", "--ioengine=nbd", f"--uri={self.uri}", "--iodepth=8", "--verify_fatal=1",
                 f"--randseed={self.seed + self.rounds}", "--output-format=json"]
        for name, kind, part, more in ROUND:
            part = part if part == 6 else self.first_part + (part + self.rounds) % 3
            words += [f"--name={name}", f"--rw={kind}", f"--offset={STAMPED + part * PART}", f"--size={PART}", *more]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=self.folder)
        if done.returncode:
            raise Wrong(f"fio, round {self.rounds}: {done.stderr[-2000:]}{done.stdout[:2000]}")
        told = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]  # Notes of the client library may come first.
        self.requests += sum(job[way]["total_ios"] for job in told for way in ("read", "write", "trim"))


class Timed(History):
    """Tells when each request began and ended, in steps; a Moment looks at that."""

    def __init__(self, sectors, disk):
        super().__init__(sectors, disk)
        self.clock = 1
        self.running = {}
        self.moments = []

    def begin(self, kind, first=0, count=0, fua=False):
        op = super().begin(kind, first, count, fua)
        self.clock += 1
        if kind in ("write", "zero", "trim"):
            self.running[op.id] = op
            for moment in self.moments:
                moment.begins(op, self.clock)
        return op

    def end(self, op):
        super().end(op)
        self.clock += 1
        if self.running.pop(op.id, None):
            for moment in self.moments:
                moment.ends(op, self.clock)


class Moment:
    """What a copy may hold of an instant between open and close.

    Each sector holds what was answered last before, or something later.  And there is one instant for all of them: a request
    whose contents are there began before it, and one whose contents are missing had not been answered by then.
    """

    def __init__(self, history):
        self.history = history
        # Of the requests that ran meanwhile: when each began, and when it was answered.
        self.began = {op.id: 0 for op in history.running.values()}
        self.answered = {}
        self.candidates = [self.reachable(held) for held in history.held]
        history.moments.append(self)

    def reachable(self, held):
        """What a sector may hold now: the last that was answered, and what may or may not have changed that."""
        found = []
        for entry in reversed(held):
            found.insert(0, entry)
            if entry not in self.history.trims and abs(entry) not in self.began:
                break
        return found

    def begins(self, op, now):
        self.began[op.id] = now
        for sector in range(op.first, op.first + op.count):
            self.candidates[sector].append(op.id if op.kind == "write" else -op.id)

    def ends(self, op, now):
        if op.id in self.began:
            self.answered[op.id] = now

    def close(self):
        self.history.moments.remove(self)

    def check(self, read):
        """read(offset, length) gives the copy's bytes.  Gives how many of those requests it has for certain, and how many it lacks."""
        there, missing = {}, {}
        for sector, value in self.values(read):
            candidates = self.candidates[sector]
            if not self.history.possible(sector, value, candidates):
                raise Wrong(f"sector {sector} of the copy holds write {value}, not one of {candidates}")
            self.sort(sector, value, candidates, there, missing)
        if there:
            newest = max(there, key=self.began.get)
            for number, sector in missing.items():
                if self.answered.get(number, self.began[newest]) < self.began[newest]:
                    raise Wrong(f"the copy is of no instant: it lacks request {number} (sector {sector}), which was answered before "
                                f"request {newest} began, and has that (sector {there[newest]})")
        return len(there), len(missing)

    def values(self, read):
        chunk = 2048
        for first in range(0, self.history.sectors, chunk):
            count = min(chunk, self.history.sectors - first)
            data = bytes(read(first * SECTOR, count * SECTOR))
            for i in range(count):
                yield first + i, self.history.value(first + i, data[i * SECTOR:(i + 1) * SECTOR])

    def sort(self, sector, value, candidates, there, missing):
        """Which requests this sector shows to be in the copy, or not.  A trim shows nothing, nor do zeros of two requests."""
        same = [entry for entry in candidates if (entry <= 0 if value == 0 else entry == value)]
        if len(same) != 1 or any(entry in self.history.trims for entry in candidates):
            return
        if abs(same[0]) in self.began:
            there[abs(same[0])] = sector
        for entry in candidates[candidates.index(same[0]) + 1:]:
            missing[abs(entry)] = sector


class Stamps:
    """One thread that keeps stamped requests of a Writer under way."""

    def __init__(self, uri, seed):
        self.history = Timed(STAMPED // SECTOR, seed)
        self.writer = Writer(self.history, uri, seed, connections=3, depth=12, big=128)
        self.failure = None
        self.stopped = False
        self.asked = []
        self.thread = threading.Thread(target=self.run)

    @property
    def requests(self):
        return self.writer.done

    def run(self):
        try:
            while not self.stopped:
                until = time.monotonic() + 10
                self.writer.work(lambda: self.stopped or self.asked or time.monotonic() > until)
                while self.asked:
                    self.asked.pop(0)()
            self.writer.finish()
            self.writer.close()
        except Exception as error:  # pylint: disable=broad-exception-caught
            self.failure = error

    def between(self, function):
        """Runs it in the thread, between two steps of the writer."""
        got, done = [], threading.Event()

        def step():
            got.append(function())
            done.set()
        self.asked.append(step)
        while not done.wait(0.1):
            if self.failure:
                raise self.failure
        return got[0]


class Load:
    def __init__(self, case, uri, seed=1, fio=2):
        self.case, self.uri = case, uri
        self.stamps = Stamps(uri, seed)
        self.fio = [Rounds(uri, case.folder, 1000 * seed + 100000 * number, 3 * number) for number in range(fio)]

    def start(self):
        self.case.addCleanup(self.end)
        for one in (self.stamps, *self.fio):
            one.thread.start()
        return self

    @property
    def requests(self):
        return self.stamps.requests + sum(one.requests for one in self.fio)

    def look(self):
        """Fails when a guest has seen something wrong."""
        for one in (self.stamps, *self.fio):
            if one.failure:
                raise one.failure

    def settle(self, requests=300, patience=120):
        """So many stamped requests more: the disk is in use all the time."""
        wanted = self.stamps.requests + requests
        deadline = time.monotonic() + patience
        while self.stamps.requests < wanted:
            self.look()
            if time.monotonic() > deadline:
                raise AssertionError(f"guests stand still: {self.stamps.writer.busy}")
            time.sleep(0.01)

    @contextlib.contextmanager
    def moment(self):
        moment = self.stamps.between(lambda: Moment(self.stamps.history))
        try:
            yield moment
        finally:
            self.stamps.between(moment.close)

    def end(self):
        self.stamps.stopped = True
        for one in self.fio:
            one.stopped.set()
        for one in (self.stamps, *self.fio):
            if one.thread.is_alive():
                one.thread.join()

    def stop(self, name="seen.raw"):
        """All guests stop, and what they see now is in a file of that name."""
        self.end()
        self.look()
        path = os.path.join(self.case.folder, name)
        run("nbdcopy", "--flush", self.uri, path)
        with open(path, "rb") as file:
            history = self.stamps.history
            whole = Op("read", 0, 0, history.sectors)
            history.check_read(whole, file.read(STAMPED))
        return path
