# SPDX-License-Identifier: Apache-2.0
"""A writer of stamped sectors over NBD, and what each sector may hold after the server was killed.

Every sector that is written says which disk, which sector and which write it belongs to.  History knows all writes to
a sector in their order, and which one was the last that a flush (or FUA) has made durable.  A sector read back must
be that one or a later one: never older, never another sector's, never part of two writes, never anything else.
    1. A flush covers what was answered, on any connection, before it was sent.
    2. Requests in flight at the same time never overlap, so the order of writes to a sector is known.
    3. A trimmed sector may read as before or as zeros.
"""
import random
import select
import struct
import time

import nbd

SECTOR = 512
MAGIC = b"stamped\n"
# Which disk, which sector, which write.
STAMP = struct.Struct("<8sQQQ")
REPEAT = SECTOR // STAMP.size
ZEROS = bytes(SECTOR)


class Wrong(AssertionError):
    """A sector holds what it must not."""


class Op:
    __slots__ = ("kind", "id", "first", "count", "fua", "covers", "client", "turn", "buffer")

    def __init__(self, kind, number, first=0, count=0, fua=False):
        self.kind, self.id, self.first, self.count, self.fua = kind, number, first, count, fua
        self.covers, self.client, self.turn, self.buffer = (), 0, 0, None

    def __repr__(self):
        return f"{self.kind} {self.id} of sectors {self.first}+{self.count}{' fua' if self.fua else ''}"


class History:
    """Per sector the writes that may be found there; the first is the durable one.

    A write is its number; zeros and trims are their number, negative; 0 is what a new disk holds.
    """

    def __init__(self, sectors, disk):
        self.sectors, self.disk = sectors, disk
        self.held = [[0] for _ in range(sectors)]
        self.numbers = 0
        self.trims = set()  # Entries that may have changed nothing.
        self.answered = []  # Changes that no flush has covered yet.

    def begin(self, kind, first=0, count=0, fua=False):
        self.numbers += 1
        op = Op(kind, self.numbers, first, count, fua)
        if kind in ("write", "zero", "trim"):
            entry = op.id if kind == "write" else -op.id
            if kind == "trim":
                self.trims.add(entry)
            for sector in range(first, first + count):
                self.held[sector].append(entry)
        elif kind == "flush":
            op.covers = tuple(self.answered)
        return op

    def end(self, op):
        """The server answered, without an error."""
        if op.kind == "flush":
            for covered in op.covers:
                self.durable(covered)
            covers = set(map(id, op.covers))
            self.answered = [other for other in self.answered if id(other) not in covers]
        elif op.kind != "read":
            if op.fua:
                self.durable(op)
            else:
                self.answered.append(op)

    def durable(self, op):
        if op.kind == "trim":  # It may have changed nothing, so what was there stays possible.
            return
        entry = op.id if op.kind == "write" else -op.id
        for sector in range(op.first, op.first + op.count):
            held = self.held[sector]
            if held[0] != entry and entry in held:
                del held[:held.index(entry)]

    def payload(self, op):
        return b"".join(STAMP.pack(MAGIC, self.disk, sector, op.id) * REPEAT
                        for sector in range(op.first, op.first + op.count))

    def value(self, sector, raw):
        """Which write a sector's bytes are; 0 for zeros."""
        if raw == ZEROS:
            return 0
        stamp = raw[:STAMP.size]
        magic, disk, owner, number = STAMP.unpack(stamp)
        if magic != MAGIC:
            raise Wrong(f"sector {sector} holds garbage: {raw[:32].hex()}")
        if disk != self.disk or owner != sector:
            raise Wrong(f"sector {sector} holds sector {owner} of disk {disk}, write {number}")
        if stamp * REPEAT != raw:
            raise Wrong(f"sector {sector} is torn: begins as write {number}")
        return number

    def possible(self, sector, value, held):
        return value in held if value else any(entry <= 0 for entry in held)

    def check_read(self, op, data):
        """A read while nothing else runs on these sectors: it gives the last write that was answered."""
        for i in range(op.count):
            sector = op.first + i
            held = self.held[sector]
            last = [held[-1]]
            for entry in reversed(held[:-1]):
                if last[-1] not in self.trims:
                    break
                last.append(entry)
            value = self.value(sector, bytes(data[i * SECTOR:(i + 1) * SECTOR]))
            if not self.possible(sector, value, last):
                raise Wrong(f"{op}: sector {sector} holds write {value}, not one of {last}")

    def check_all(self, read):
        """After a kill: read(offset, length) gives the disk's bytes.  What it holds now is the new beginning."""
        chunk = 2048
        for first in range(0, self.sectors, chunk):
            count = min(chunk, self.sectors - first)
            data = bytes(read(first * SECTOR, count * SECTOR))
            for i in range(count):
                held = self.held[first + i]
                value = self.value(first + i, data[i * SECTOR:(i + 1) * SECTOR])
                if not self.possible(first + i, value, held):
                    raise Wrong(f"sector {first + i} holds write {value}; durable is {held[0]}, after it {held[1:]}")
                self.held[first + i] = [value]
        self.answered = []


class Writer:
    """Random requests on several connections, some in flight at a time."""

    def __init__(self, history, uri, seed, *, connections=2, depth=8, big=256):
        self.history, self.depth, self.big = history, depth, big
        self.random = random.Random(seed)
        self.handles = []
        for _ in range(connections):
            handle = nbd.NBD()
            handle.connect_uri(uri)
            self.handles.append(handle)
        self.running = {}  # (connection, cookie): op
        self.busy = []
        self.done = 0
        self.tolerated = ()  # Errors that are no surprise; who got one was perhaps carried out, perhaps not.
        self.changed_since = [0, 0, 0, 0]  # Sectors: since the last flush was answered, the one before it, ...
        self.requests_since = [0, 0, 0, 0]
        self.turns = 0

    def pick(self):
        draw = self.random.random()
        if draw < 0.10:
            return self.history.begin("flush")
        kind = "write" if draw < 0.72 else "zero" if draw < 0.80 else "trim" if draw < 0.88 else "read"
        for _ in range(20):
            limit = self.random.choice((1, 2, 8, 16, 128, self.big))
            count = self.random.randint(1, limit)
            if kind == "trim" or self.random.random() < 0.3:  # Whole clusters, too.
                count = max(1, count // 128) * 128
            first = self.random.randrange(0, self.history.sectors - count)
            if count % 128 == 0:
                first = first // 128 * 128
            if all(first + count <= op.first or op.first + op.count <= first for op in self.busy):
                return self.history.begin(kind, first, count, kind != "read" and self.random.random() < 0.06)
        return self.history.begin("flush")

    def submit(self, op):
        op.client = self.random.randrange(len(self.handles))
        op.turn = self.turns
        handle = self.handles[op.client]
        flags = nbd.CMD_FLAG_FUA if op.fua else 0
        offset, length = op.first * SECTOR, op.count * SECTOR
        if op.kind == "write":
            op.buffer = nbd.Buffer.from_bytearray(bytearray(self.history.payload(op)))
            cookie = handle.aio_pwrite(op.buffer, offset, flags=flags)
        elif op.kind == "zero":
            flags |= nbd.CMD_FLAG_NO_HOLE if self.random.random() < 0.5 else 0
            cookie = handle.aio_zero(length, offset, flags=flags)
        elif op.kind == "trim":
            cookie = handle.aio_trim(length, offset, flags=flags)
        elif op.kind == "flush":
            cookie = handle.aio_flush()
        else:
            op.buffer = nbd.Buffer(length)
            cookie = handle.aio_pread(op.buffer, offset)
        self.running[op.client, cookie] = op
        self.busy.append(op)

    def count(self, op):
        """For recently_changed()."""
        if op.kind in ("write", "zero", "trim"):
            self.changed_since = [sectors + op.count for sectors in self.changed_since]
            self.requests_since = [count + 1 for count in self.requests_since]
        elif op.kind == "flush" and op.turn == self.turns:  # Sent after the one before it was answered.
            self.turns += 1
            self.changed_since = [0] + self.changed_since[:-1]
            self.requests_since = [0] + self.requests_since[:-1]

    def recently_changed(self, cluster_size):
        """How many clusters may have been touched since the last few flushes were answered, at the most."""
        return self.changed_since[-1] * SECTOR // cluster_size + 2 * self.requests_since[-1]

    def retire(self, client, cookie):
        op = self.running.pop((client, cookie))
        self.busy.remove(op)
        self.history.end(op)
        if op.kind == "read":
            self.history.check_read(op, op.buffer.to_bytearray())
        self.count(op)
        op.buffer = None
        self.done += 1

    def collect(self, patience):
        """Takes the answers that are there; False when none will come any more."""
        poll = select.poll()
        alive = 0
        for handle in self.handles:
            if handle.aio_is_dead() or handle.aio_is_closed():
                continue
            direction = handle.aio_get_direction()
            events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | (
                select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0)
            poll.register(handle.aio_get_fd(), events)
            alive += 1
        if not alive:
            return False
        ready = dict(poll.poll(patience * 1000))
        if not ready:
            raise AssertionError(f"no answer for {patience} s to {self.busy}")
        for handle in self.handles:
            if handle.aio_is_dead() or handle.aio_is_closed() or handle.aio_get_fd() not in ready:
                continue
            events = ready[handle.aio_get_fd()]
            direction = handle.aio_get_direction()
            try:
                if direction & nbd.AIO_DIRECTION_READ and events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    handle.aio_notify_read()
                elif events & select.POLLOUT:
                    handle.aio_notify_write()
                elif events & (select.POLLHUP | select.POLLERR):
                    handle.aio_notify_read()
            except nbd.Error:
                pass  # The connection is dead now.
        for client, handle in enumerate(self.handles):
            self.collect_from(client, handle)
        return True

    def collect_from(self, client, handle):
        for mine, cookie in list(self.running):
            if mine != client:
                continue
            try:
                if handle.aio_command_completed(cookie):
                    self.retire(client, cookie)
            except nbd.Error as error:
                if not (handle.aio_is_dead() or handle.aio_is_closed() or error.errnum in self.tolerated):
                    raise Wrong(f"{self.running[client, cookie]}: {error.string}") from None
                lost = self.running.pop((client, cookie))
                self.busy.remove(lost)
                if lost.kind != "flush":
                    self.count(lost)

    def work(self, enough, patience=120):
        """Keeps requests in flight until enough() is true; they stay in flight then."""
        deadline = time.monotonic() + patience
        while not enough():
            while len(self.running) < self.depth:
                self.submit(self.pick())
            if not self.collect(patience):
                raise Wrong("the server hung up")
            if time.monotonic() > deadline:
                raise AssertionError(f"only {self.done} requests done after {patience} s")

    def finish(self, patience=120):
        """Waits for what is in flight, or for the end of a server that was killed."""
        while self.running and self.collect(patience):
            pass

    def close(self):
        for handle in self.handles:
            try:
                handle.shutdown()
            except nbd.Error:
                pass
        self.handles = []
