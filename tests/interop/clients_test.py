# SPDX-License-Identifier: Apache-2.0
"""The NBD clients that people have, each with its default options, against servers with theirs.

Each client meets `qemu-nbd -t` (byre under that name: one client at a time) and `byre serve`.  With BYRE_PEER=qemu the
former is QEMU's own.
"""
import contextlib
import json
import os
import re
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import (BYRE, MIB, QEMU, Case, free_port, main, only_byre, qemu_img, qemu_io, run,  # noqa: E402
                     until, wait)

SIZE = 48 * MIB


class Clients(Case):
    def setUp(self):
        super().setUp()
        self.disk, self.raw, self.sock = self.path("disk.qcow2"), self.path("raw"), self.path("nbd")
        os.symlink(shutil.which("qemu-nbd") if QEMU else BYRE, self.path("qemu-nbd"))
        draw = random.Random(4)
        with open(self.raw, "wb") as file:
            file.truncate(SIZE)
            for at in (0, 7 * MIB + 512, 30 * MIB, SIZE - 1000):
                file.seek(at)
                file.write(draw.randbytes(min(3 * MIB, SIZE - at)))
        self.uri = f"nbd+unix:///?socket={self.sock}"

    def servers(self, empty=False):
        """For each of them a context in which it serves the disk as it was."""
        kinds = {"qemu-nbd": [self.path("qemu-nbd"), "-t", "-f", "qcow2", "-k", self.sock, self.disk]}
        if not QEMU:
            kinds["byre serve"] = [BYRE, "serve", "-k", self.sock, self.disk]
        return [self.prepared(name, words, empty) for name, words in kinds.items()]

    @contextlib.contextmanager
    def prepared(self, name, words, empty):
        with self.subTest(name):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.disk)
            if empty:
                qemu_img("create", "-q", "-f", "qcow2", self.disk, str(SIZE))
            else:
                qemu_img("convert", "-f", "raw", "-O", "qcow2", self.raw, self.disk)
            with self.serving(words):
                yield
            self.assert_sound(self.disk)

    @contextlib.contextmanager
    def serving(self, words):
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        try:
            until(self.listens, "the server")
            yield process
            self.assertIsNone(process.poll())
            process.send_signal(signal.SIGTERM)
            wait(process, 60)
            self.assertEqual(process.returncode, 0)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()

    def listens(self):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.sock) == 0

    def test_nbdcopy(self):
        for served in self.servers():
            with served:
                run("nbdcopy", self.uri, self.path("copy"))
                self.assert_same(self.raw, self.path("copy"))
        for served in self.servers(empty=True):
            with served:
                run("nbdcopy", self.raw, self.uri)
                run("nbdcopy", "--allocated", self.raw, self.uri)
                run("nbdcopy", "--destination-is-zero", self.raw, self.uri)
                run("nbdcopy", self.uri, self.path("copy"))
                self.assert_same(self.raw, self.path("copy"))

    def test_from_one_server_to_another(self):
        for served in self.servers():
            with served:
                other, sock = self.path("other.qcow2"), self.path("other")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(other)
                qemu_img("create", "-q", "-f", "qcow2", other, str(SIZE))
                process = subprocess.Popen([self.path("qemu-nbd"), "-f", "qcow2", "-k", sock, other],
                                           stdin=subprocess.DEVNULL)
                try:
                    until(lambda: os.path.exists(sock), "the other server")
                    run("nbdcopy", self.uri, f"nbd+unix:///?socket={sock}")
                    self.assertEqual(process.wait(60), 0)  # Its last client has gone.
                finally:
                    process.kill()
                    process.wait()
                self.assert_compares(self.raw, other)

    def test_fio_with_trims(self):
        for served in self.servers(empty=True):
            with served:
                for rw in ("randwrite", "randtrimwrite", "trimwrite"):
                    run("fio", "--name=x", "--ioengine=nbd", f"--uri={self.uri}", f"--rw={rw}", "--bs=64k",
                        "--iodepth=16", f"--size={SIZE // MIB}M", "--verify=crc32c", "--verify_fatal=1", "--output=/dev/null",
                        cwd=self.folder)

    def test_nbdkit_in_between(self):
        for served in self.servers():
            with served:
                between = self.path("between")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(between)
                process = subprocess.Popen(["nbdkit", "-f", "-U", between, "nbd", f"socket={self.sock}"],
                                           stdin=subprocess.DEVNULL)
                try:
                    until(lambda: os.path.exists(between), "nbdkit")
                    uri = f"nbd+unix:///?socket={between}"
                    run("nbdcopy", "--connections=1", uri, self.path("copy"))
                    self.assert_same(self.raw, self.path("copy"))
                    run("nbdinfo", "--json", uri)
                    qemu_io(uri, "write -P 3 1M 1M", "write -z 2M 1M", "discard 3M 1M", "flush", "read -P 3 1M 1M",
                            options=("-f", "raw"))
                finally:
                    process.terminate()
                    process.wait(60)

    def test_qemus_tools(self):
        for served in self.servers():
            with served:
                qemu_img("compare", "-f", "raw", "-F", "raw", self.raw, self.uri)
                qemu_img("convert", "-f", "raw", "-O", "qcow2", self.uri, self.path("copy.qcow2"))
                self.assert_compares(self.raw, self.path("copy.qcow2"))
                info = json.loads(qemu_img("info", "--output=json", self.uri).out)
                self.assertEqual((info["format"], info["virtual-size"]), ("raw", SIZE))
                qemu_img("map", "-f", "raw", "--output=json", self.uri)
                for turn in range(1, 30):  # One right after another.
                    qemu_io(self.uri, f"write -P {turn} {turn}M 64k", f"read -P {turn} {turn}M 64k",
                            options=("-f", "raw"))
        for served in self.servers(empty=True):
            with served:
                qemu_img("convert", "-n", "-f", "raw", "-O", "raw", self.raw, self.uri)
                qemu_img("convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", self.raw, self.uri)
                qemu_img("compare", "-f", "raw", "-F", "raw", self.raw, self.uri)

    def test_an_overlay_on_a_served_disk(self):
        """What QEMU writes into an overlay, and commits into the export below."""
        for served in self.servers():
            with served:
                over = self.path("over.qcow2")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(over)
                qemu_img("create", "-q", "-f", "qcow2", "-b", self.uri, "-F", "raw", over)
                qemu_io(over, "write -P 7 1M 1M", "write -z 8M 1M")
                qemu_img("commit", "-q", over)
                qemu_io(self.uri, "read -P 7 1M 1M", "read -P 0 8M 1M", options=("-f", "raw"))

    def test_what_lists_exports(self):
        for served in self.servers():
            with served:
                self.assertIn("export=", run("nbdinfo", "--list", self.uri).text)
                run("nbd-client", "-l", "-unix", self.sock)
                real = shutil.which("qemu-nbd")
                self.assertIn("exports available: 1", run(real, "-L", "-k", self.sock).text)

    @only_byre
    def test_it_lists_what_others_export(self):
        """qemu-nbd --list, byte for byte what QEMU's prints."""
        real, own = shutil.which("qemu-nbd"), self.path("qemu-nbd")
        qemu_img("create", "-q", "-f", "qcow2", self.disk, "3M")
        qemu_img("bitmap", "--add", self.disk, "b")
        os.mkdir(self.path("many"))
        for name in ("one", "two", "three"):
            with open(self.path(f"many/{name}"), "wb") as file:
                file.write(bytes(4096))
        port = free_port()
        at = {"k": self.sock, "image": self.disk}
        for words in ([BYRE, "serve", "-x", "vol", "-D", "a disk", "-k", at["k"], at["image"]],
                      [BYRE, "serve", "-r", "-B", "b", "-k", at["k"], at["image"]],
                      [own, "-t", "-k", at["k"], at["image"]],
                      [own, "-t", "-p", str(port), "-f", "raw", at["image"]],
                      [real, "-t", "-r", "-e", "9", "-A", "-B", "b", "-x", "vol", "-D", "a disk", "-k", at["k"],
                       "-f", "qcow2", at["image"]],
                      ["nbdkit", "-f", "-U", at["k"], "file", f"dir={self.path('many')}"],
                      ["nbdkit", "-f", "-U", at["k"], "--no-sr", "memory", "1M"],
                      ["nbdkit", "-f", "-U", at["k"], "-r", "null", "1E"]):
            where = ["-p", str(port)] if "-p" in words else ["-k", self.sock]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            try:
                want = until(lambda: self.listed(real, *where), "the server")
                with self.subTest(words):
                    got = run(own, "-L", *where)
                    # Byre does not ask for extended headers, nor then gets what comes with them.
                    want = re.sub(r"flags: 0x1(\w{3}) (.*) block-status-payload", r"flags: 0x\1 \2", want)
                    want = want.replace("transaction size: 64-bit", "transaction size: 32-bit")
                    # A folder is listed in any order.
                    self.assertEqual(sorted(got.text.split(" export:")), sorted(want.split(" export:")))
                    self.assertEqual(run(own, "--list", *where).text, got.text)
            finally:
                process.terminate()
                process.wait(60)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.sock)
        for words in (["-L", "-k", self.sock], ["-L", "-p", str(port)], ["-L", self.disk], ["-L", "-t"], []):
            self.assertEqual(run(own, *words, ok=None).code, 1, words)

    def listed(self, *words):
        done = run(words[0], "-L", *words[1:], ok=None)
        return done.text if done.code == 0 else None

    @only_byre
    def test_a_list_of_nonsense_is_an_error(self):
        greeting = b"NBDMAGICIHAVEOPT\0\3"

        def reply(option, kind, payload=b"", magic=0x0003e889045565a9):
            return struct.pack(">QIII", magic, option, kind, len(payload)) + payload
        for said in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4, greeting[:10], greeting,
                     b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53" + bytes(136),  # An old one.
                     greeting + reply(8, 1, magic=7), greeting + reply(8, 1) + reply(3, 0x80000002, b"no"),
                     greeting + reply(8, 1) + reply(3, 2, b"\xff\xff\xff\xff"),
                     greeting + reply(8, 1) + struct.pack(">QIII", 0x0003e889045565a9, 3, 2, 0xFFFFFFFF),
                     greeting + reply(8, 1) + reply(3, 2, struct.pack(">I", 4) + b"name") + reply(3, 1) +
                     reply(6, 3, b"\0")):
            with self.subTest(said[:40]), socket.socket(socket.AF_UNIX) as listener:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.sock)
                listener.bind(self.sock)
                listener.listen(1)
                process = subprocess.Popen([self.path("qemu-nbd"), "-L", "-k", self.sock], stdin=subprocess.DEVNULL,
                                           stderr=subprocess.PIPE)
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.sendall(said)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(4096):
                        pass
                error = process.communicate(timeout=60)[1]
                self.assertEqual(process.returncode, 1, error)
                self.assertTrue(error)

    def test_nbdsh(self):
        """Python's libnbd, with what it can do beside reading and writing."""
        script = ("h.pwrite(b'a' * 65536, 0); h.flush(); assert h.pread(65536, 0) == b'a' * 65536\n"
                  "h.zero(65536, 65536); h.trim(65536, 131072); assert h.pread(65536, 65536) == bytes(65536)\n"
                  "assert h.can_fua() and h.can_trim() and h.can_zero() and h.can_df()\n"
                  "h.block_status(1 << 20, 0, lambda *a: 0)\n")
        environment = {**os.environ, "PATH": "/usr/bin:/bin"}
        for served in self.servers():
            with served:
                run("nbdsh", "--base-allocation", "-u", self.uri, "-c", script, env=environment)

    def test_a_job_of_the_storage_daemon(self):
        """As libvirt copies a disk to another host: a job of QEMU writes into the export."""
        for served in self.servers(empty=True):
            with served:
                qmp = self.path("qmp")
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(qmp)
                process = subprocess.Popen(
                    ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=f,filename={self.raw},read-only=on",
                     "--blockdev", "driver=raw,node-name=source,file=f,read-only=on",
                     "--blockdev", f"driver=nbd,node-name=target,server.type=unix,server.path={self.sock}",
                     "--chardev", f"socket,id=c,path={qmp},server=on,wait=off", "--monitor", "chardev=c"],
                    stdin=subprocess.DEVNULL)
                try:
                    until(lambda: os.path.exists(qmp), "the storage daemon")
                    with socket.socket(socket.AF_UNIX) as control:
                        control.settimeout(60)
                        control.connect(qmp)
                        stream = control.makefile("rw")

                        def call(command, **arguments):
                            stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                            stream.flush()
                            while True:
                                answer = json.loads(stream.readline())
                                if "error" in answer:
                                    self.fail(answer)
                                if "return" in answer:
                                    return answer["return"]

                        def ended(name):
                            jobs = {job["id"]: job for job in call("query-jobs")}
                            self.assertNotIn("error", jobs[name])
                            if jobs[name]["status"] == "ready":
                                call("job-complete", id=name)
                            return jobs[name]["status"] == "concluded"
                        stream.readline()
                        call("qmp_capabilities")
                        call("blockdev-backup", **{"job-id": "b", "device": "source", "target": "target", "sync": "full",
                                                   "auto-dismiss": False})
                        until(lambda: ended("b"), "the backup")
                        call("job-dismiss", id="b")
                        call("quit")
                    process.wait(60)
                finally:
                    process.kill()
                    process.wait()
                qemu_img("compare", "-f", "raw", "-F", "raw", self.raw, self.uri)


if __name__ == "__main__":
    main()
