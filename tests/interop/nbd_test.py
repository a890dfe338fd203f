# SPDX-License-Identifier: Apache-2.0
"""byre's NBD server against the clients there are: libnbd and its tools, fio, QEMU, and clients that misbehave."""
import contextlib
import errno
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import nbd  # noqa: E402
import rawnbd  # noqa: E402
from harness import (BYRE, GIB, KIB, MIB, QEMU, Case, Server, byre_io, free_port, img, main,  # noqa: E402
                     only_byre, qemu_img, qemu_io, readable, run, until)
from rawnbd import Closed, Raw  # noqa: E402
from stamps import SECTOR, History, Writer  # noqa: E402

# What the server may use beside its cache of tables (32 MiB) and the payloads of requests.
MEMORY_MAX = (64 + 32) * MIB


def pattern(seed, length):
    return random.Random(seed).randbytes(length)


class Clients(Case):
    def setUp(self):
        super().setUp()
        self.disk = self.path("disk.qcow2")

    def create(self, size, *words):
        img("create", "-q", "-f", "qcow2", *words, self.disk, size)

    def connect(self, server, prepare=None):
        handle = nbd.NBD()
        if prepare:
            prepare(handle)
        handle.connect_uri(server.uri)

        def close():
            with contextlib.suppress(nbd.Error):
                handle.shutdown()
        self.addCleanup(close)
        return handle

    def raw_file(self, name, size, pieces):
        """A sparse file with pieces {offset: bytes}."""
        path = self.path(name)
        with open(path, "wb") as file:
            file.truncate(size)
            for offset, data in pieces.items():
                file.seek(offset)
                file.write(data)
        return path

    def assert_nbd_error(self, numbers, function, *arguments, **options):
        with self.assertRaises(nbd.Error) as caught:
            function(*arguments, **options)
        self.assertIn(caught.exception.errnum, numbers, caught.exception.string)


class Tools(Clients):
    def test_nbdcopy_goes_both_ways(self):
        size = 96 * MIB + 512
        raw = self.raw_file("raw", size, {0: pattern(1, 3 * MIB + 777), 40 * MIB - 5: pattern(2, 9 * MIB),
                                          size - 700: pattern(3, 700)})
        self.create(size)
        with self.server(self.disk) as server:
            run("nbdcopy", "--flush", raw, server.uri)
            back = self.path("back")
            run("nbdcopy", server.uri, back)
            self.assert_same(raw, back)
            # With one request at a time on one connection, and without structured replies.
            run("nbdcopy", "--connections=1", "--requests=1", "--synchronous", server.uri, self.path("slow"))
            self.assert_same(raw, self.path("slow"))
        self.assert_sound(self.disk)
        self.assert_compares(raw, self.disk)
        # nbdcopy sends zeros as zeros, so only what is data takes space.
        self.assertLess(os.stat(self.disk).st_blocks * 512, 16 * MIB)

    def test_nbdinfo_says_what_the_export_can(self):
        self.create(64 * MIB)
        with self.server(self.disk, name="vol one") as server:
            uri = f"nbd+unix:///vol%20one?socket={server.sock}"
            told = json.loads(run("nbdinfo", "--json", uri).out)["exports"][0]
            self.assertEqual(told["export-size"], 64 * MIB)
            for able in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_df"):
                if able == "can_multi_conn" and QEMU:
                    continue  # qemu-nbd says so only with --shared and read-only.
                self.assertTrue(told[able], able)
            self.assertFalse(told["is_read_only"])
            self.assertIn("base:allocation", told["contexts"])
            listed = json.loads(run("nbdinfo", "--json", "--list", f"nbd+unix:///?socket={server.sock}").out)
            self.assertIn("vol one", [export["export-name"] for export in listed["exports"]])

    def test_the_map_is_true(self):
        size = 32 * MIB
        pieces = {0: pattern(1, 64 * KIB), 5 * MIB: pattern(2, 192 * KIB), 20 * MIB + 100: pattern(3, MIB)}
        raw = self.raw_file("raw", size, pieces)
        img("convert", "-f", "raw", "-O", "qcow2", raw, self.disk)
        with self.server(self.disk) as server:
            extents = json.loads(run("nbdinfo", "--map", "--json", server.uri).out)
        self.assert_covers([(extent["offset"], extent["length"]) for extent in extents], size)
        with open(raw, "rb") as file:
            content = file.read()
        for extent in extents:
            start, end = extent["offset"], extent["offset"] + extent["length"]
            if extent["type"] & 2:  # Reads as zeros.
                self.assertEqual(content[start:end].count(0), end - start, extent)
        # And it is no finer than needed: what is nowhere near data is a hole.
        holes = sum(extent["length"] for extent in extents if extent["type"] & 3 == 3)
        self.assertGreater(holes, size - 4 * MIB)

    def assert_covers(self, ranges, size):
        at = 0
        for start, length in sorted(ranges):
            self.assertEqual(start, at)
            self.assertGreater(length, 0)
            at += length
        self.assertEqual(at, size)

    def test_fio_verifies_what_it_writes(self):
        self.create(128 * MIB)
        with self.server(self.disk) as server:
            for name, options in {
                "small": ["--rw=randwrite", "--bsrange=512-16k", "--iodepth=16", "--size=12M"],
                "large": ["--rw=randwrite", "--bsrange=4k-256k", "--iodepth=16", "--offset=16M", "--size=40M",
                          "--fsync=32"],
                "trims": ["--rw=randtrimwrite", "--bs=64k", "--iodepth=8", "--offset=64M", "--size=24M"],
            }.items():
                with self.subTest(name):
                    run("fio", f"--name={name}", "--ioengine=nbd", f"--uri={server.uri}", "--verify=crc32c",
                        "--do_verify=1", "--verify_fatal=1", "--randseed=7", "--output=/dev/null", *options,
                        cwd=self.folder)
        self.assert_sound(self.disk)

    def test_qemu_is_a_client(self):
        self.create(64 * MIB)
        with self.server(self.disk) as server:
            qemu_io(server.uri, "write -P 7 1M 2M", "write -z -u 2M 512k", "discard 2560k 256k", "flush",
                    "read -P 7 1M 1M", "read -P 0 2M 512k", options=("-f", "raw"))
            qemu_img("convert", "-f", "raw", "-O", "raw", server.uri, self.path("raw"))
            told = json.loads(qemu_img("map", "-f", "raw", "--output=json", server.uri).out)
            self.assertTrue(any(extent["data"] for extent in told))
        self.assert_sound(self.disk)
        self.assert_compares(self.path("raw"), self.disk)


class Protocol(Clients):
    def test_structured_replies_cover_each_read_once(self):
        size = 16 * MIB
        raw = self.raw_file("raw", size, {MIB: pattern(1, 64 * KIB), 4 * MIB + 4096: pattern(2, 2 * MIB),
                                          9 * MIB: bytes(64 * KIB)})
        img("convert", "-f", "raw", "-O", "qcow2", raw, self.disk)
        with open(raw, "rb") as file:
            content = file.read()
        with self.server(self.disk, read_only=True) as server:
            handle = self.connect(server)
            self.assertTrue(handle.get_structured_replies_negotiated())
            draw = random.Random(3)
            ranges = [(0, 8 * MIB), (8 * MIB, 8 * MIB), (MIB - 1, 64 * KIB + 2), (4 * MIB, 3 * MIB), (size - 1, 1)]
            ranges += [(at, draw.randint(1, min(6 * MIB, size - at))) for at in
                       (draw.randrange(size) for _ in range(30))]
            for flags in (0, nbd.CMD_FLAG_DF):
                for offset, length in ranges:
                    chunks = []

                    def hear(data, at, status, error):
                        chunks.append((at, len(data), status))
                    data = handle.pread_structured(length, offset, hear, flags=flags)
                    self.assertEqual(bytes(data), content[offset:offset + length], (offset, length))
                    at = offset
                    for start, count, status in sorted(chunks):
                        self.assertEqual(start, at)
                        at += count
                    self.assertEqual(at, offset + length)
                    if flags:
                        self.assertEqual(len(chunks), 1)
            simple = self.connect(server, lambda handle: handle.set_request_structured_replies(False))
            self.assertEqual(bytes(simple.pread(3 * MIB, 4 * MIB)), content[4 * MIB:7 * MIB])

    def test_block_status_of_every_part(self):
        self.create(GIB)
        with self.server(self.disk) as server:
            handle = self.connect(server, lambda handle: handle.add_meta_context("base:allocation"))
            handle.pwrite(pattern(1, 256 * KIB), 64 * MIB)
            handle.zero(256 * KIB, 128 * MIB, flags=nbd.CMD_FLAG_NO_HOLE)

            def status(length, offset, flags=0):
                heard = []

                def hear(context, at, entries, error):
                    if context == "base:allocation":
                        for length, state in zip(entries[::2], entries[1::2]):
                            heard.append((at, length, state))
                            at += length
                handle.block_status(length, offset, hear, flags=flags)
                return heard
            # A question about the whole disk may be answered in parts, but never by nothing.
            at, states = 0, []
            while at < GIB:
                for start, length, state in status(GIB - at, at):
                    self.assertEqual(start, at)
                    states.append((start, length, state))
                    at += length
            self.assertEqual(at, GIB)
            for start, length, state in states:
                if start <= 64 * MIB < start + length:
                    self.assertEqual(state & 2, 0, "data that are zero")
                if start <= 128 * MIB < start + length:
                    self.assertEqual(state & 2, 2, "zeros that are data")
            self.assertEqual(len(status(64 * MIB, 60 * MIB, nbd.CMD_FLAG_REQ_ONE)), 1)
            first = status(64 * KIB, 64 * MIB + 17 * SECTOR, nbd.CMD_FLAG_REQ_ONE)[0]
            self.assertEqual(first[2] & 3, 0)

    def test_zeroes_keep_or_give_back_their_space(self):
        self.create(64 * MIB)
        with self.server(self.disk) as server:
            handle = self.connect(server)
            handle.pwrite(pattern(1, 8 * MIB), 0)
            handle.flush()
            handle.zero(MIB, MIB, flags=nbd.CMD_FLAG_NO_HOLE)
            handle.zero(MIB, 3 * MIB)
            handle.zero(3000, 5 * MIB + 1000)
            handle.trim(MIB, 6 * MIB)
            with contextlib.suppress(nbd.Error):  # May be refused, but then quickly and without an effect.
                handle.zero(MIB, 7 * MIB, flags=nbd.CMD_FLAG_FAST_ZERO)
                self.assertEqual(bytes(handle.pread(MIB, 7 * MIB)), bytes(MIB))
            for offset in (MIB, 3 * MIB, 6 * MIB):
                self.assertEqual(bytes(handle.pread(MIB, offset)), bytes(MIB))
            expected = bytearray(pattern(1, 8 * MIB)[5 * MIB:6 * MIB])
            expected[1000:4000] = bytes(3000)
            self.assertEqual(handle.pread(MIB, 5 * MIB), expected)
        self.assert_sound(self.disk)
        told = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", self.disk).out)

        def extent_at(offset):
            return next(extent for extent in told if extent["start"] <= offset < extent["start"] + extent["length"])
        kept, given = extent_at(MIB + 65536), extent_at(3 * MIB + 65536)
        self.assertTrue(kept["zero"])
        self.assertTrue(given["zero"])
        if not QEMU:  # qemu-nbd with --discard=unmap frees in both cases unless the file can be punched.
            self.assertIn("offset", kept, "NO_HOLE must leave the cluster allocated")
        self.assertNotIn("offset", given)
        self.assertNotIn("offset", extent_at(6 * MIB + 65536))

    def test_a_read_only_export_stays_as_it_is(self):
        self.create(16 * MIB)
        qemu_io(self.disk, "write -P 5 1M 1M")
        with open(self.disk, "rb") as file:
            before = file.read()
        os.chmod(self.disk, 0o444)
        with self.server(self.disk, read_only=True) as one, \
                self.server(self.disk, read_only=True, sock=self.path("second")) as two:
            for server in (one, two):
                handle = self.connect(server)
                self.assertTrue(handle.is_read_only())
                handle.set_strict_mode(0)
                for request in (lambda h: h.pwrite(b"x" * 512, 0), lambda h: h.zero(65536, MIB),
                                lambda h: h.trim(65536, MIB)):
                    self.assert_nbd_error((errno.EPERM, errno.EINVAL) if QEMU else (errno.EPERM,), request, handle)
                self.assertEqual(bytes(handle.pread(512, MIB)), b"\5" * 512)
        with open(self.disk, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_only_the_right_name_opens_the_export(self):
        self.create(MIB)
        with self.server(self.disk, name="right") as server:
            self.assertEqual(self.connect(server).get_size(), MIB)
            for wrong in ("wrong", "right2", "righ", "../right", "x" * 4096):
                handle = nbd.NBD()
                handle.set_export_name(wrong)
                with self.assertRaises(nbd.Error):
                    handle.connect_unix(server.sock)
            self.assertEqual(self.connect(server).get_size(), MIB)
            if not QEMU:  # Who names none gets the only one.
                handle = nbd.NBD()
                handle.connect_unix(server.sock)
                self.assertEqual(handle.get_size(), MIB)
                self.assertEqual(stat.S_IMODE(os.stat(server.sock).st_mode), 0o600)

    def test_tcp(self):
        self.create(8 * MIB)
        with self.server(self.disk, port=free_port()) as server:
            handle = self.connect(server)
            handle.pwrite(pattern(1, MIB), 3 * MIB)
            self.assertEqual(bytes(handle.pread(MIB, 3 * MIB)), pattern(1, MIB))
        self.assert_sound(self.disk)

    @only_byre
    def test_an_address_needs_a_port(self):
        self.create(MIB)
        done = run(BYRE, "serve", "-b", "127.0.0.1", self.disk, ok=None)
        self.assertNotEqual(done.code, 0)
        self.assertIn("--port", done.text)

    @only_byre
    def test_byre_serve_detects_zeroes_and_offers_depth(self):
        self.create(8 * MIB)
        with self.server(self.disk, options=["--detect-zeroes=unmap"]) as server:
            handle = self.connect(server)
            handle.pwrite(bytes(MIB), 0)
            handle.shutdown()
            self.assertIn("qemu:allocation-depth",
                          json.loads(run("nbdinfo", "--json", server.uri).out)["exports"][0]["contexts"])
        told = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", self.disk).out)
        self.assertFalse(any("offset" in extent for extent in told), told)

    @only_byre
    def test_the_live_line_fits_the_terminal(self):
        """Of any width, and after it changed."""
        import fcntl
        import pty
        import struct
        import termios
        self.create(8 * MIB)
        for columns in (0, 20, 80, 132):
            near, far = pty.openpty()
            fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            process = subprocess.Popen([BYRE, "serve", "-k", self.path("nbd"), self.disk], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL, stderr=far)
            os.close(far)
            try:
                seen = b""
                while seen.count(b"\r") < 3:
                    seen += os.read(near, 4096)
            finally:
                process.terminate()
                process.wait(60)
                os.close(near)
            lines = [line.replace(b"\x1b[K", b"") for line in seen.split(b"\r")[1:-1]]
            for line in lines:
                self.assertLess(len(line), columns or 80, line)
                self.assertTrue(line.startswith(b"0 clients"), line)

    def test_socket_activation(self):
        self.create(8 * MIB)
        words = Server.words(self.disk)
        handle = nbd.NBD()
        handle.connect_systemd_socket_activation(["sh", "-c", 'exec "$@" >/dev/null', "sh", *words])
        handle.pwrite(pattern(1, MIB), MIB)
        handle.flush()
        handle.shutdown()
        pid = handle.get_subprocess_pid() if hasattr(handle, "get_subprocess_pid") else None
        del handle
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until(lambda: qemu_img("info", "-f", "qcow2", self.disk, ok=None).code == 0, "the server's end")
        self.assert_sound(self.disk)

        # A listening TCP socket, passed as systemd does it; clients may come before the server is up.
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(16)
            process = subprocess.Popen(
                ["sh", "-c", f'exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh", *words],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[listener.fileno()])
            port = listener.getsockname()[1]
        try:
            first, second = nbd.NBD(), nbd.NBD()
            for handle in (first, second):
                handle.connect_uri(f"nbd://127.0.0.1:{port}/")
            self.assertEqual(bytes(first.pread(MIB, MIB)), pattern(1, MIB))
            first.pwrite(b"y" * 4096, 0)
            self.assertEqual(bytes(second.pread(4096, 0)), b"y" * 4096)
            for handle in (first, second):
                handle.shutdown()
            process.terminate()
            self.assertEqual(process.wait(60), 0)
        finally:
            process.kill()
            process.wait()
        self.assert_sound(self.disk)


class StandIn(Clients):
    """byre under the name qemu-nbd; with BYRE_PEER=qemu the real one."""

    def setUp(self):
        super().setUp()
        self.program = self.path("qemu-nbd")
        os.symlink(BYRE if not QEMU else shutil.which("qemu-nbd"), self.program)
        self.sock = self.path("nbd")

    def connect_here(self, name=""):
        handle = nbd.NBD()
        handle.set_export_name(name)
        handle.connect_unix(self.sock)
        return handle

    def test_a_device_that_is_not_there(self):
        """-c and -d on machines without NBD devices, and on what is none (system/device_test.py has a kernel with some)."""
        self.create(8 * MIB)
        absent = self.path("nbd0")
        # QEMU's says it in the background when it goes there.
        for words, both in ((["-v", "-c", absent, self.disk], f"Failed to open {absent}: No such file or directory"),
                            (["-v", "-c", absent, self.path("none")], "Could not open '"),
                            (["-d"], "Invalid number of arguments"),
                            (["-c", absent], "Invalid number of arguments")):
            for program in (self.program, "qemu-nbd"):
                done = run(program, *words, ok=(1,))
                self.assertIn(both, done.err.decode(), (program, words))
                self.assertEqual(done.out, b"", (program, words))
        for words in (["-c", absent], ["--fork", "-c", absent], ["-s", "-r", "-k", self.sock, "-c", absent]):
            self.assertIn(b"modprobe nbd", run(self.program, *words, self.disk, ok=(1,)).err)
        self.assertIn(b"modprobe nbd", run(self.program, "-d", absent, ok=(1,)).err)
        before = pathlib.Path(self.disk).read_bytes()
        for other in (self.disk, "/dev/null", os.path.dirname(self.disk)):
            self.assertIn(b"it is no NBD device", run(self.program, "-c", other, self.disk, ok=(1,)).err)
            self.assertIn(b"it is no NBD device", run(self.program, "-d", other, ok=(1,)).err)
        for words, what in ((["--connect", absent, self.disk], b"modprobe nbd"), (["-d", absent], b"modprobe nbd"),
                            (["-d", "-c", absent, absent], b"exclude each other")):
            self.assertIn(what, run(BYRE, "serve", *words, ok=(1,)).err)
        self.assertEqual(pathlib.Path(self.disk).read_bytes(), before)
        self.assertFalse(os.path.exists(self.sock))

    def test_fork_returns_when_it_listens(self):
        self.create(8 * MIB)
        pid_file = self.path("pid")
        run(self.program, "--fork", "--pid-file", pid_file, "-t", "-e", "3", "-k", self.sock, "-f", "qcow2", "-x", "disk",
            "--discard=unmap", self.disk)
        with open(pid_file) as file:
            pid = int(file.read())
        pidfd = os.pidfd_open(pid)
        try:
            handles = [self.connect_here("disk") for _ in range(3)]
            handles[0].pwrite(pattern(1, MIB), MIB)
            self.assertEqual(bytes(handles[1].pread(MIB, MIB)), pattern(1, MIB))
            for handle in handles:
                handle.shutdown()
            # -t: it stays.
            self.connect_here("disk").shutdown()
            os.kill(pid, signal.SIGTERM)
            self.assertTrue(readable(pidfd, 60), "it does not end")
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self.assert_sound(self.disk)

    def test_fork_fails_when_it_cannot_serve(self):
        done = run(self.program, "--fork", "-k", self.sock, "-f", "qcow2", self.path("absent"), ok=None)
        self.assertNotEqual(done.code, 0, done)
        self.assertIn(b"absent", done.err)

    def test_it_ends_with_its_last_client(self):
        self.create(8 * MIB)
        qemu_img("snapshot", "-c", "empty", self.disk)
        process = subprocess.Popen([self.program, "-k", self.sock, "-f", "qcow2", self.disk], stdin=subprocess.DEVNULL)
        try:
            handle = until(self.connected, "the server")
            handle.pwrite(pattern(2, 65536), 0)
            handle.shutdown()
            self.assertEqual(process.wait(60), 0)
        finally:
            process.kill()
            process.wait()
        self.assert_sound(self.disk)
        # The snapshot does not know of that.
        process = subprocess.Popen([self.program, "-k", self.sock, "-f", "qcow2", "-l", "empty", self.disk],
                                   stdin=subprocess.DEVNULL)
        try:
            handle = until(self.connected, "the server")
            self.assertTrue(handle.is_read_only())
            self.assertEqual(bytes(handle.pread(65536, 0)), bytes(65536))
            handle.shutdown()
            self.assertEqual(process.wait(60), 0)
        finally:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def serving(self, *words, image=None):
        words = [self.program, "-t", "-k", self.sock, "-f", "qcow2", *words, image or self.disk]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        try:
            until(lambda: self.listens() or process.poll() is not None, "the server")
            self.assertIsNone(process.poll(), words)
            yield process
            process.terminate()
            self.assertEqual(process.wait(60), 0)
        finally:
            process.kill()
            process.wait()

    def listens(self):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.sock) == 0

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.sock}"

    def test_with_one_place_clients_come_one_after_another(self):
        """The default: who comes while the place is taken, or not yet given back, waits."""
        raw = self.raw_file("raw", 64 * MIB, {MIB: pattern(1, 5 * MIB)})
        img("convert", "-f", "raw", "-O", "qcow2", raw, self.disk)
        for words in ([], ["-r"], ["-e", "1"]):
            with self.serving(*words):
                # nbdcopy opens several connections to a server that says it may.
                self.assertEqual(run("nbdinfo", "--can", "multi-conn", self.uri, ok=(0, 2)).code, 2)
                run("nbdcopy", self.uri, self.path("copy"))
                self.assert_same(raw, self.path("copy"))
                for turn in range(300):
                    handle = self.connect_here()
                    self.assertEqual(handle.get_size(), 64 * MIB)
                    if turn % 3 == 0:
                        handle.shutdown()
                    del handle
                for _ in range(50):
                    run("nbdinfo", "--size", self.uri)
        # It opens up to four (with as many cores), and uses none before it has them all: of three places it would wait
        # for ever.  (QEMU says with two already that many are fine, and that is what happens.)
        for count, offered in ((2, False), (3, False), (4, False), (8, True), (0, True)):
            if QEMU and not offered:
                continue
            for words in ([], ["-r"]):
                with self.serving("-e", str(count), *words):
                    able = run("nbdinfo", "--can", "multi-conn", self.uri, ok=(0, 2)).code == 0
                    self.assertEqual(able, offered, count)
                    run("nbdcopy", "--connections=4", "--threads=4", self.uri, self.path("copy"), patience=60)
                    self.assert_same(raw, self.path("copy"))

    def test_a_crowd_finds_two_places(self):
        self.create(8 * MIB)
        with self.serving("-e", "2"):
            crowd = [subprocess.Popen(["nbdinfo", "--size", self.uri], stdout=subprocess.PIPE) for _ in range(40)]
            for process in crowd:
                self.assertEqual(process.communicate(timeout=60)[0], b"%d\n" % (8 * MIB))
                self.assertEqual(process.returncode, 0)

    def test_who_waits_is_let_in_when_another_goes(self):
        self.create(8 * MIB)
        with self.serving():
            first = self.connect_here()
            late = subprocess.Popen(["nbdinfo", "--size", self.uri], stdout=subprocess.PIPE)
            with self.assertRaises(subprocess.TimeoutExpired):
                late.wait(0.3)
            first.pwrite(b"1" * 512, 0)
            first.shutdown()
            self.assertEqual(late.communicate(timeout=60)[0], b"%d\n" % (8 * MIB))
            self.assertEqual(late.returncode, 0)

    def test_who_says_nothing_keeps_its_place_for_a_short_time_only(self):
        if QEMU:
            self.skipTest("qemu-nbd 7.2 waits for ever")
        self.create(8 * MIB)
        with self.serving(), socket.socket(socket.AF_UNIX) as silent:
            silent.connect(self.sock)
            run("nbdinfo", "--size", self.uri, patience=20)

    def test_the_handshake_limit_is_kept(self):
        """Also QEMU's, from version 10 on: a silent client is cut off, and with 0 none is."""
        self.create(8 * MIB)
        for limit, ends in (("1", True), ("0", False)):
            process = subprocess.Popen([self.program, f"--handshake-limit={limit}", "-t", "-k", self.sock, "-f", "qcow2", self.disk])
            try:
                until(lambda: os.path.exists(self.sock), "the server")
                with socket.socket(socket.AF_UNIX) as silent:
                    silent.connect(self.sock)
                    greeting = silent.recv(64)
                    self.assertTrue(greeting.startswith(b"NBDMAGIC"))
                    silent.settimeout(20 if ends else 2.5)
                    if ends:
                        self.assertEqual(silent.recv(64), b"")
                    else:
                        self.assertRaises(TimeoutError, silent.recv, 64)
            finally:
                process.terminate()
                process.wait()
        for words in ("x", "-1", "4294967295", "1.5", ""):
            done = run(self.program, f"--handshake-limit={words}", "nothing", ok=None)
            self.assertIn(b"Invalid handshake limit '%s'" % words.encode(), done.err)

    def test_a_temporary_overlay_takes_what_is_written(self):
        self.create(8 * MIB)
        qemu_io(self.disk, "write -q -P 1 0 1M")
        qemu_img("bitmap", "--add", self.disk, "b")
        qemu_img("snapshot", "-c", "one", self.disk)
        raw = self.raw_file("disk.raw", 8 * MIB, {0: b"\1" * MIB})
        for words in (["-f", "qcow2", self.disk], ["-f", "raw", raw], ["-f", "qcow2", "-B", "b", "-A", self.disk],
                      ["-f", "qcow2", "--cache=none", "--discard=unmap", "--detect-zeroes=unmap", self.disk],
                      ["--image-opts", f"driver=qcow2,file.filename={self.disk}"], ["-f", "raw", "-o", "4096", raw]):
            with self.subTest(words=words):
                before = [pathlib.Path(path).read_bytes() for path in (self.disk, raw)]
                process = subprocess.Popen([self.program, "-s", "-e", "2", "-k", self.sock, *words])
                until(lambda: os.path.exists(self.sock), "the server")
                handle, other = self.connect_here(), self.connect_here()
                self.assertFalse(handle.is_read_only())
                self.assertEqual(bytes(handle.pread(MIB - 4096, 0)), b"\1" * (MIB - 4096))
                handle.pwrite(pattern(2, MIB), 512)
                handle.zero(65536, 4 * MIB)
                handle.trim(65536, 2 * MIB)
                handle.flush()
                self.assertEqual(bytes(other.pread(MIB, 512)), pattern(2, MIB))
                self.assertEqual(bytes(other.pread(65536, 4 * MIB)), bytes(65536))
                for one in (handle, other):
                    one.shutdown()
                self.assertEqual(process.wait(60), 0)
                self.assertEqual([pathlib.Path(path).read_bytes() for path in (self.disk, raw)], before)
        read_only = subprocess.Popen([self.program, "-s", "-r", "-k", self.sock, "-f", "qcow2", self.disk])
        until(lambda: os.path.exists(self.sock), "the server")
        handle = self.connect_here()
        self.assertTrue(handle.is_read_only())
        handle.shutdown()
        self.assertEqual(read_only.wait(60), 0)
        self.assertEqual(run(self.program, "-s", "-l", "one", "-k", self.sock, self.disk, ok=None).code, 1)

    def test_detect_zeroes(self):
        """A write of zeros is one to zero, as QEMU has it: on keeps the cluster, unmap gives it back."""
        for words, kept, allocated in (
                ((), True, False), (("--discard=unmap", "--detect-zeroes=off"), True, False),
                (("--detect-zeroes=on",), True, True), (("--discard=unmap", "--detect-zeroes", "on"), True, True),
                (("--discard=unmap", "--detect-zeroes=unmap"), False, True)):
            with self.subTest(words):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.disk)
                self.create(8 * MIB)
                qemu_io(self.disk, "write -P 9 0 2M")
                with self.serving(*words):
                    handle = self.connect_here()
                    handle.pwrite(bytes(MIB), 0)
                    handle.pwrite(bytes(MIB - 1) + b"x", MIB)
                    handle.pwrite(bytes(MIB), 4 * MIB)
                    handle.pwrite(bytes(1000), 6 * MIB + 100)
                    self.assertEqual(bytes(handle.pread(8 * MIB, 0)),
                                     bytes(2 * MIB - 1) + b"x" + bytes(6 * MIB))
                    handle.shutdown()
                told = json.loads(qemu_img("map", "-f", "qcow2", "--output=json", self.disk).out)
                first, fresh = (next(extent for extent in told if extent["start"] <= offset <
                                     extent["start"] + extent["length"]) for offset in (0, 4 * MIB))
                self.assertEqual("offset" in first, kept, told)
                self.assertEqual(first["zero"], allocated, told)  # Without it, zeros are data as any other.
                self.assertEqual("offset" in fresh, not allocated, told)
                self.assert_sound(self.disk)
        for words in (("--detect-zeroes=unmap",), ("--detect-zeroes=unmap", "--discard=ignore"),
                      ("--detect-zeroes=sometimes",)):
            done = run(self.program, "-t", "-k", self.sock, "-f", "qcow2", *words, self.disk, ok=None)
            self.assertEqual(done.code, 1, done)
            self.assertRegex(done.text, "detect.zeroes")

    @only_byre
    def test_who_was_its_last_client_finds_the_disk_free(self):
        """Whoever waits for the end of the connection, as libnbd does, may use the image at once."""
        raw = self.raw_file("raw", 8 * MIB, {MIB: pattern(1, 5 * MIB)})
        self.create(8 * MIB)
        for turn in range(20):
            process = subprocess.Popen([self.program, "-k", self.sock, "-f", "qcow2", self.disk],
                                       stdin=subprocess.DEVNULL)
            until(self.listens, "the server")
            if turn % 2:
                run("nbdcopy", "--flush", raw, self.uri)
            else:
                handle = self.connect_here()
                handle.pwrite(b"x" * MIB, 7 * MIB)
                handle.shutdown()
            img("check", "-f", "qcow2", "-r", "leaks", self.disk)
            qemu_io(self.disk, "write -P 1 0 64k")
            self.assertEqual(process.wait(60), 0)
        self.assert_sound(self.disk)

    def test_dev_null_is_a_disk_of_nothing(self):
        info = json.loads(run(self.tool("qemu-img"), "info", "-f", "raw", "--output=json", "/dev/null").out)
        self.assertEqual((info["virtual-size"], info["format"]), (0, "raw"))
        run(self.tool("qemu-img"), "convert", "-f", "raw", "-O", "raw", "/dev/null", self.path("copy"))
        self.assertEqual(os.stat(self.path("copy")).st_size, 0)
        self.assertEqual(run(self.tool("qemu-img"), "check", "-f", "raw", "/dev/null", ok=None).code, 63)
        for words in (["create", "-f", "raw", "/dev/null", "1M"], ["resize", "-f", "raw", "/dev/null", "1M"],
                      ["create", "-f", "qcow2", "/dev/null", "1M"],
                      ["convert", "-f", "raw", "-O", "qcow2", "/dev/null", "/dev/null"]):
            if QEMU and words[0] == "convert":
                continue
            self.assertEqual(run(self.tool("qemu-img"), *words, ok=None).code, 1, words)
        process = subprocess.Popen([self.program, "-t", "-k", self.sock, "-f", "raw", "/dev/null"],
                                   stdin=subprocess.DEVNULL)
        try:
            until(self.listens, "the server")
            handle = self.connect_here()
            self.assertEqual(handle.get_size(), 0)
            if not QEMU:
                handle.flush()
            handle.shutdown()
            process.terminate()
            self.assertEqual(process.wait(60), 0)
        finally:
            process.kill()
            process.wait()
        self.assertTrue(stat.S_ISCHR(os.stat("/dev/null").st_mode))
        if not QEMU:
            for other in ("/dev/zero", "/dev/tty", "/dev/full"):
                self.assertEqual(run(self.tool("qemu-img"), "info", "-f", "raw", other, ok=None).code, 1, other)

    def tool(self, name):
        path = self.path(name)
        if not os.path.lexists(path):
            os.symlink(shutil.which(name) if QEMU else BYRE, path)
        return path

    def test_depth_is_offered_with_its_option_only(self):
        self.create(8 * MIB)
        for words, offered in (((), False), (("-A",), True), (("--allocation-depth",), True)):
            with self.serving(*words):
                told = json.loads(run("nbdinfo", "--json", self.uri).out)["exports"][0]["contexts"]
                self.assertEqual(sorted(told), ["base:allocation"] + ["qemu:allocation-depth"] * offered)
                done = run("nbdinfo", "--map=qemu:allocation-depth", self.uri, ok=(0, 1))
                self.assertEqual(done.code, 0 if offered else 1, done)

    def connected(self):
        try:
            return self.connect_here()
        except nbd.Error:
            return None


class Durability(Clients):
    def test_a_flush_covers_what_another_connection_wrote(self):
        self.create(64 * MIB)
        draw = random.Random(5)
        expected = {}
        for life in range(6):
            server = self.server(self.disk)
            writers = [self.connect(server) for _ in range(4)]
            if not QEMU:
                self.assertTrue(writers[0].can_multi_conn())
            for _ in range(5):
                for number, handle in enumerate(writers[:3]):
                    offset = draw.randrange(64 * MIB // 4096) * 4096
                    data = pattern((life, number, offset).__repr__(), 4096)
                    handle.pwrite(data, offset)
                    expected[offset] = data
            writers[3].flush()
            unsynced = self.connect(server)
            fua = draw.randrange(64 * MIB // 4096) * 4096
            unsynced.pwrite(b"F" * 4096, fua, flags=nbd.CMD_FLAG_FUA)
            expected[fua] = b"F" * 4096
            server.kill()
            until(lambda: qemu_img("info", "-f", "qcow2", self.disk, ok=None).code == 0, "the lock on the image")
            self.reference(self.disk, leaks=200)
            for offset, data in expected.items():
                with open(self.path("want"), "wb") as file:
                    file.write(data)
            with self.server(self.disk, read_only=True) as reader:
                handle = self.connect(reader)
                for offset, data in expected.items():
                    self.assertEqual(bytes(handle.pread(4096, offset)), data, hex(offset))

    def test_ended_in_order_everything_answered_is_there(self):
        """Without a flush, in the middle of requests."""
        self.create(32 * MIB)
        history = History(16 * MIB // SECTOR, 9)
        for turn in range(4):
            server = self.server(self.disk)
            writer = Writer(history, server.uri, turn, connections=2, depth=16)
            writer.work(lambda: writer.done >= 150)
            server.tell_to_end()
            writer.tolerated = (errno.ESHUTDOWN,)
            writer.finish()
            server.stop()
            # What was answered counts as flushed now; what was not may have been done or not.
            for op in list(history.answered):
                history.durable(op)
            qemu_img("check", "-q", "-f", "qcow2", self.disk)
            self.assert_sound(self.disk)
            with self.server(self.disk, read_only=True) as reader:
                handle = self.connect(reader)
                history.check_all(lambda offset, length: handle.pread(length, offset))

    @only_byre
    def test_told_twice_at_once_it_still_ends_in_order(self):
        """timeout(1) signals its child and then the child's group: nobody meant to lose anything by that."""
        self.create(32 * MIB)
        for turn in range(4):
            server = self.server(self.disk)
            handle = self.connect(server)
            for index in range(50):
                handle.pwrite(pattern((turn, index).__repr__(), 65536), (50 * turn + index) * 65536 * 2)
            server.process.terminate()
            server.process.terminate()
            server.told = True
            server.stop()
            with self.server(self.disk, read_only=True) as reader:
                handle = self.connect(reader)
                for index in range(50):
                    self.assertTrue(bytes(handle.pread(65536, (50 * turn + index) * 65536 * 2))
                                    == pattern((turn, index).__repr__(), 65536), (turn, index))
        self.assert_sound(self.disk)

    def test_nobody_else_writes_while_it_is_served(self):
        self.create(16 * MIB)
        with self.server(self.disk) as server:
            for done in (qemu_io(self.disk, "write 0 64k", ok=None), byre_io(self.disk, "write 0 64k", ok=None),
                         img("check", "-f", "qcow2", "-r", "all", self.disk, ok=None),
                         img("resize", "-f", "qcow2", self.disk, "32M", ok=None),
                         qemu_img("snapshot", "-c", "x", self.disk, ok=None),
                         run(*Server.words(self.disk, sock=self.path("two")), ok=None)):
                self.assertNotEqual(done.code, 0, done)
                self.assertRegex(done.text.lower(), "lock|in use|busy", done)
            handle = self.connect(server)
            handle.pwrite(b"z" * 65536, 0)
            img("info", "-U", self.disk)
        self.assert_sound(self.disk)


class BadClients(Clients):
    """Whatever a client does, the others get their answers."""

    def setUp(self):
        super().setUp()
        self.create(64 * MIB)
        self.history = History(16 * MIB // SECTOR, 11)

    def serve(self, **options):
        self.serving = self.server(self.disk, **options)
        self.writer = Writer(self.history, self.serving.uri, 1, connections=2, depth=8, big=128)
        # The last MiB is for the bad ones, and must stay as it is.
        self.kept = self.connect(self.serving)
        self.kept.pwrite(b"K" * MIB, 63 * MIB)
        return self.serving

    def go_on(self, requests=60):
        """The good client still gets its answers."""
        self.assertTrue(self.serving.alive(), self.serving.said())
        goal = self.writer.done + requests
        self.writer.work(lambda: self.writer.done >= goal, patience=40)

    def end(self):
        self.writer.finish()
        self.writer.close()
        self.assertEqual(bytes(self.kept.pread(MIB, 63 * MIB)), b"K" * MIB)
        self.serving.stop()
        self.assert_sound(self.disk)

    def raw(self):
        client = Raw(self.serving.sock)
        self.addCleanup(client.close)
        return client

    def test_nonsense_in_the_handshake(self):
        self.serve()
        draw = random.Random(2)
        for turn in range(60):
            client = self.raw()
            with contextlib.suppress(Closed):
                kind = turn % 6
                if kind == 0:
                    client.send(draw.randbytes(4096))
                elif kind == 1:
                    client.hear_greeting()
                    client.send(b"\xff\xff\xff\xff" + draw.randbytes(100))
                elif kind == 2:
                    client.hear_greeting()
                    client.send(b"\0\0\0\3" + draw.randbytes(16))
                elif kind == 3:  # An option of 4 GiB.
                    client.hear_greeting()
                    client.send(b"\0\0\0\3" + b"IHAVEOPT" + b"\0\0\0\7" + b"\xff\xff\xff\xff" + bytes(1000))
                elif kind == 4:  # A name longer than its option.
                    client.hear_greeting()
                    client.send(b"\0\0\0\3")
                    client.send_option(rawnbd.OPT_GO, b"\xff\xff\xff\xf0name")
                    _, reply, _ = client.hear_option_reply()
                    self.assertGreaterEqual(reply, rawnbd.REP_ERROR)
                else:  # Options that nobody knows, again and again.
                    client.hear_greeting()
                    client.send(b"\0\0\0\3")
                    for option in range(1000, 1050):
                        client.send_option(option, bytes(100))
                        self.assertGreaterEqual(client.hear_option_reply()[1], rawnbd.REP_ERROR)
            if turn % 2:
                client.close()
            if turn % 10 == 9:
                self.go_on(20)
        self.go_on()
        self.assertLess(self.serving.memory_peak(), MEMORY_MAX)
        self.end()

    def test_requests_that_are_none(self):
        self.serve()
        client = self.raw().go()
        size = 64 * MIB

        def refused(allowed, command, **what):
            client.request(command, **what)
            error, _ = client.answer()
            self.assertIn(error, allowed, what)
        inval, over = rawnbd.EINVAL, rawnbd.EOVERFLOW
        for command in (rawnbd.READ, rawnbd.TRIM, rawnbd.ZERO):
            refused((inval, over, rawnbd.ENOSPC), command, offset=size, length=512)
            refused((inval, over, rawnbd.ENOSPC), command, offset=size - 512, length=1024)
            refused((inval, over, rawnbd.ENOSPC), command, offset=(1 << 64) - 512, length=1024)
            refused((inval, over, rawnbd.ENOSPC), command, offset=(1 << 63) - 512, length=1024)
            refused((inval, over, rawnbd.ENOSPC), command, offset=0, length=0xFFFFFFFF)
        refused((inval, rawnbd.ENOTSUP), 77, length=512)
        refused((inval,), rawnbd.TRIM, flags=0x8000, length=65536)
        refused((inval, over, rawnbd.ENOSPC), rawnbd.WRITE, offset=size, length=512, payload=bytes(512))
        # The connection is as good as before.
        client.request(rawnbd.READ, offset=63 * MIB, length=4096)
        self.assertEqual(client.answer(4096), (0, b"K" * 4096))
        self.go_on()
        # A write of 4 GiB may be refused or end the connection, but it is not waited for.
        client.request(rawnbd.WRITE, offset=0, length=0xFFFFFFFF, payload=bytes(4096))
        with contextlib.suppress(Closed):
            self.assertNotEqual(client.answer()[0], 0)
        # Neither is what does not begin as a request.
        lost = self.raw().go()
        lost.request(rawnbd.READ, length=512, magic=0x12345678)
        lost.hear_end()
        self.go_on()
        self.end()

    def test_half_a_request(self):
        """A write that did not come in whole changes nothing."""
        self.serve(clients=100)
        for turn in range(30):
            client = self.raw().go()
            length = (512, 65536, MIB)[turn % 3]
            client.request(rawnbd.WRITE, offset=63 * MIB, length=length, payload=bytes(length * turn // 31))
            if turn % 2:
                client.close()
            partial = self.raw().go()
            partial.send(b"\x25\x60\x95\x13\0\0\0\1")
            partial.close()
            if turn % 10 == 9:
                self.go_on(20)
        self.end()

    def test_who_never_reads_the_answers(self):
        self.serve()
        sleepers = []
        for _ in range(8):
            client = self.raw().go()
            client.socket.setblocking(False)
            # A thousand reads of data; the server may take as few of them as it likes.
            with contextlib.suppress(BlockingIOError, Closed):
                for cookie in range(1000):
                    client.request(rawnbd.READ, offset=63 * MIB, length=256 * KIB, cookie=cookie)
            sleepers.append(client)
            self.go_on(10)
        self.go_on()
        fresh = self.connect(self.serving)
        fresh.pwrite(b"G" * (8 * MIB), 20 * MIB)
        self.assertTrue(fresh.pread(8 * MIB, 20 * MIB) == b"G" * (8 * MIB))
        if not QEMU:
            # 64 MiB of payloads per client, as nbd_session.h promises; nothing grows with what is asked for.
            self.assertLess(self.serving.memory_peak(), MEMORY_MAX + 8 * 64 * MIB)
        # Some hang up; the others do not keep the server from ending.  (They do keep qemu-nbd.)
        for client in sleepers[:8 if QEMU else 4]:
            client.close()
        self.go_on()
        self.end()

    def test_who_holds_back_the_rest_of_a_large_write(self):
        """Many of them, more than the server has memory for: the good client is not made to wait for them."""
        self.serve(clients=200)
        for _ in range(80):
            client = self.raw().go()
            client.request(rawnbd.WRITE, offset=32 * MIB, length=32 * MIB, payload=bytes(64 * KIB))
        self.go_on()
        fresh = self.connect(self.serving)
        fresh.pwrite(b"G" * MIB, 20 * MIB)
        self.assertEqual(bytes(fresh.pread(MIB, 20 * MIB)), b"G" * MIB)
        self.assertLess(self.serving.memory_peak(), 2 * MEMORY_MAX)
        self.end()

    def test_hundreds_of_connections(self):
        self.serve(clients=1000)
        crowd = []
        for turn in range(400):
            client = Raw(self.serving.sock)
            crowd.append(client)
            if turn % 4 != 3:  # A quarter never says a word.
                client.go()
            if turn % 100 == 99:
                self.go_on(20)
        for client in crowd[:400:4]:
            client.request(rawnbd.READ, offset=63 * MIB, length=4096)
        for client in crowd[:400:4]:
            self.assertEqual(client.answer(4096), (0, b"K" * 4096))
        self.go_on()
        if not QEMU:
            self.assertLess(self.serving.memory_peak(), MEMORY_MAX)
        for client in crowd:
            client.close()
        self.go_on()
        self.end()

    def test_more_connections_than_descriptors(self):
        def few():
            resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
        self.serve(clients=1000, preexec_fn=few)
        crowd = []
        for _ in range(150):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            self.addCleanup(client.close)
            with contextlib.suppress(BlockingIOError):  # Nobody takes it: good enough.
                client.connect(self.serving.sock)
            crowd.append(client)
        self.go_on()
        for client in crowd:
            client.close()
        # Who comes now is served again.
        fresh = self.connect(self.serving)
        self.assertEqual(bytes(fresh.pread(512, 63 * MIB)), b"K" * 512)
        self.end()


if __name__ == "__main__":
    main()
