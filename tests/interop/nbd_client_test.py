# SPDX-License-Identifier: Apache-2.0
"""byre as a client: disks of qemu-nbd and nbdkit, named as QEMU's tools name them, through byre under their names.

What both print must be equal where the test does not say otherwise.
"""
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, KIB, MIB, Case, byre_io, free_port, img, main, only_byre, qemu_img, qemu_io, run, until  # noqa: E402


class Peer:
    """A real server, as a process of its own."""

    def __init__(self, *words, sock=None, port=None):
        self.words, self.sock, self.port = words, sock, port
        self.start()

    def start(self):
        if self.sock:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.sock)
        self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self.is_up, "the server")

    def is_up(self):
        assert self.process.poll() is None, "the server ended"
        family, address = (socket.AF_UNIX, self.sock) if self.sock else (socket.AF_INET, ("127.0.0.1", self.port))
        with socket.socket(family) as probe:
            return probe.connect_ex(address) == 0

    def kill(self):
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()


class Clients(Case):
    def setUp(self):
        super().setUp()
        self.sock = self.path("s")
        self.raw = self.path("disk.raw")
        qemu_img("create", "-q", "-f", "raw", self.raw, 8 * MIB)
        qemu_io(self.raw, "write -P 7 1M 64k", "write -P 9 3000k 100", options=("-f", "raw"))

    def peer(self, *words, **where):
        peer = Peer(*words, **where)
        self.addCleanup(peer.kill)
        return peer

    def qemu_nbd(self, *words, image=None, form="raw"):
        return self.peer("qemu-nbd", "-t", "-e", "8", "-f", form, "-k", self.sock, "-x", "disk", "--discard=unmap", *words,
                         image or self.raw, sock=self.sock)

    def nbdkit(self, *words):
        return self.peer("nbdkit", "-f", "-U", self.sock, *words, sock=self.sock)

    def uri(self, name="disk"):
        return f"nbd+unix:///{name}?socket={self.sock}"

    def copy(self, *words):
        """Into the file "copy", anew."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path("copy"))
        img("convert", "-O", "raw", *words, self.path("copy"))

    def same(self, *words):
        """qemu-img says the same."""
        self.assertEqual(img(*words).out, qemu_img(*words).out, words)


class Servers(Clients):
    def test_every_name_reads_the_same(self):
        self.qemu_nbd()
        tree = {"driver": "raw", "file": {"driver": "nbd", "server": {"type": "unix", "path": self.sock}, "export": "disk"}}
        legacy = {"driver": "raw", "file.driver": "nbd", "file.path": self.sock, "file.export": "disk"}
        for name in (self.uri(), f"nbd:unix:{self.sock}:exportname=disk", "json:" + json.dumps(tree), "json:" + json.dumps(legacy)):
            self.copy("-f", "raw", name)
            self.assert_same(self.raw, self.path("copy"))
        self.copy("--image-opts",
                  f"driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={self.sock},file.export=disk")
        self.assert_same(self.raw, self.path("copy"))

    def test_tcp(self):
        port = free_port()
        self.peer("qemu-nbd", "-t", "-f", "raw", "-b", "127.0.0.1", "-p", str(port), self.raw, port=port)
        for name in (f"nbd://127.0.0.1:{port}", f"nbd:127.0.0.1:{port}", f"nbd://localhost:{port}/"):
            self.copy("-f", "raw", name)
            self.assert_same(self.raw, self.path("copy"))

    def test_map_is_that_of_qemu(self):
        self.qemu_nbd()
        self.same("map", "-f", "raw", "--output=json", self.uri())
        self.same("map", "-f", "raw", self.uri())

    @only_byre
    def test_info(self):
        self.qemu_nbd()
        for name in (self.uri(), f"nbd:unix:{self.sock}:exportname=disk"):
            mine = json.loads(img("info", "-f", "raw", "--output=json", name).out)
            theirs = json.loads(qemu_img("info", "-f", "raw", "--output=json", name).out)
            self.assertEqual(mine["virtual-size"], theirs["virtual-size"])
            self.assertEqual(mine["format"], theirs["format"])

    def test_an_image_inside_an_export(self):
        image = self.path("disk.qcow2")
        qemu_img("convert", "-f", "raw", "-O", "qcow2", self.raw, image)
        os.truncate(image, 4 * MIB)  # An export does not grow.
        self.qemu_nbd(image=image)
        self.assertEqual(img("map", "-f", "qcow2", "--output=json", self.uri()).out,
                         img("map", "-U", "-f", "qcow2", "--output=json", image).out)
        self.copy("-f", "qcow2", self.uri())
        self.assert_same(self.raw, self.path("copy"))
        byre_io(self.uri(), "write -P 3 64k 64k", "read -P 7 1M 64k", options=("-f", "qcow2"))
        qemu_io(self.uri(), "read -P 3 64k 64k", "read -P 7 1M 64k")

    @only_byre
    def test_an_image_above_an_export(self):
        self.qemu_nbd()
        image, other = self.path("over.qcow2"), self.path("other.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", self.uri(), "-F", "raw", "--follow", "any", image)
        qemu_img("create", "-q", "-f", "qcow2", "-b", self.uri(), "-F", "raw", other)
        for name in ("virtual-size", "backing-filename", "backing-filename-format"):
            self.assertEqual(json.loads(qemu_img("info", "-U", "--output=json", image).out)[name],
                             json.loads(qemu_img("info", "-U", "--output=json", other).out)[name])
        byre_io(image, "write -P 9 64k 64k", "read -P 9 64k 64k", "read -P 7 1M 64k", options=("--follow", "any"))
        qemu_io(other, "write -P 9 64k 64k")
        qemu_img("compare", image, other)
        self.assertEqual(len(img("info", "--follow", "any", "--backing-chain", image).out.split(b"image:")), 3)
        img("convert", "--follow", "any", "-O", "raw", image, self.path("copy"))
        qemu_img("compare", "-f", "qcow2", "-F", "raw", other, self.path("copy"))
        mine = json.loads(img("map", "--follow", "any", "--output=json", image).out)
        theirs = json.loads(qemu_img("map", "--output=json", other).out)
        keys = ("start", "length", "depth", "zero", "data")
        self.assertEqual([[e[k] for k in keys] for e in mine], [[e[k] for k in keys] for e in theirs])
        for words in (("info", "--backing-chain"), ("map",), ("io", "-c", "read 0 512")):
            done = img(*words, image, ok=(77,))
            self.assertIn("--follow any", done.text)

    @only_byre
    def test_an_image_that_names_the_server_it_comes_from_is_a_circle(self):
        image = self.path("loop.qcow2")
        for name in (self.uri(), "json:" + json.dumps({"driver": "qcow2", "file": {
                "driver": "nbd", "server": {"type": "unix", "path": self.sock}, "export": "disk"}})):
            qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", image, "1M")
            server = self.qemu_nbd("-r", image=image)
            for words in (("info", "--backing-chain"), ("map",), ("io", "-r", "-c", "read 0 512")):
                done = img(*words, "--follow", "any", image, ok=(65,))
                self.assertRegex(done.text, "circle|infinite loop", words)
            server.kill()

    def test_writes_zeros_and_discards_arrive(self):
        server = self.qemu_nbd()
        byre_io(self.uri(), "write -P 5 4M 1M", "write -z 1M 4k", "discard 4M 64k", "write -f -P 6 6M 512", "aio_write -P 8 7M 64k",
                "aio_flush", "flush", "read -P 5 5056k 64k", "read -P 0 1M 4k", "read -P 8 7M 64k", "read -P 0 4M 64k",
                options=("-f", "raw"))
        server.kill()
        qemu_io(self.raw, "read -P 5 5056k 64k", "read -P 0 1M 4k", "read -P 8 7M 64k", "read -P 0 4M 64k", "read -P 6 6M 512",
                "read -P 7 1028k 60k", options=("-f", "raw"))

    def test_convert_into_an_export(self):
        self.qemu_nbd()
        source = self.path("source")
        with open(source, "wb") as file:
            file.truncate(8 * MIB)
            file.write(os.urandom(3 * MIB))
        img("convert", "-n", "-f", "raw", "-O", "raw", source, self.uri())
        qemu_img("compare", "-f", "raw", "-F", "raw", source, self.uri())

    @only_byre
    def test_what_is_refused(self):
        self.qemu_nbd("-r")
        failed = byre_io(self.uri(), "write 0 512", options=("-f", "raw"), ok=None)
        self.assertNotEqual(failed.code, 0)
        self.assertIn("read-only", failed.text)
        for name, words in ((self.uri("other"), "there is no export"), ("nbd:unix:/nothing", "No such file"), ("nbds://h/", "TLS"),
                            ("nbd:foo", "port"),
                            ("json:" + json.dumps({"driver": "nbd", "path": self.sock, "tls-creds": "x"}), "tls-creds"),
                            ("json:" + json.dumps({"driver": "nbd", "path": self.sock, "x-dirty-bitmap": "x"}), "x-dirty-bitmap"),
                            ("json:" + json.dumps({"driver": "nbd", "path": self.sock, "host": "x"}), "path and host")):
            failed = img("info", name, ok=None)
            self.assertNotEqual(failed.code, 0, name)
            self.assertIn(words, failed.text)

    @only_byre
    def test_an_image_names_a_server_only_under_policy_any(self):
        self.qemu_nbd()
        top = self.path("top.qcow2")
        tree = {"driver": "raw", "file": {"driver": "nbd", "server": {"type": "unix", "path": self.sock}, "export": "disk"}}
        qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "json:" + json.dumps(tree), top)
        failed = byre_io(top, "read -P 7 1M 64k", options=("-f", "qcow2"), ok=None)
        self.assertNotEqual(failed.code, 0)
        byre_io(top, "read -P 7 1M 64k", "write -P 1 1M 4k", "read -P 7 1028k 4k", options=("-f", "qcow2", "--follow", "any"))


class Kit(Clients):
    def test_servers_that_offer_less(self):
        for filters in ((), ("--no-sr",), ("--filter=nozero",), ("--filter=fua", "fuamode=emulate"), ("--filter=noextents",),
                        ("--filter=nozero", "--filter=fua", "--no-sr"), ("--filter=blocksize-policy", "blocksize-minimum=4096"),
                        ("--filter=blocksize-policy", "blocksize-minimum=512", "blocksize-maximum=64k",
                         "blocksize-error-policy=error"), ("--filter=exitlast",)):
            with self.subTest(filters=filters):
                names = [word for word in filters if word.startswith("-")]
                rest = [word for word in filters if not word.startswith("-")]
                peer = self.nbdkit(*names, "memory", "8M", *rest)
                if "--filter=exitlast" not in names:
                    img("convert", "-n", "-f", "raw", "-O", "raw", self.raw, self.uri(""))
                    qemu_img("compare", "-f", "raw", "-F", "raw", self.raw, self.uri(""))
                    byre_io(self.uri(""), "write -P 1 1000 3000", "write -z 2000 1000", "write -f -P 2 5000 1", "discard 0 512",
                            "read -P 1 1000 1000", "read -P 0 2000 1000", "read -P 1 3000 1000", "read -P 2 5000 1",
                            options=("-f", "raw"))
                    self.copy("-f", "raw", self.uri(""))
                    qemu_img("compare", "-f", "raw", "-F", "raw", self.path("copy"), self.uri(""))
                peer.kill()

    def test_an_error_has_its_errno(self):
        self.nbdkit("--filter=error", "memory", "8M", "error-pread=ENOSPC", "error-pread-rate=100%")
        failed = byre_io(self.uri(""), "read 0 512", options=("-f", "raw"), ok=None)
        self.assertIn("No space left on device", failed.text)

    @only_byre
    def test_a_server_that_is_killed_comes_back(self):
        """In the middle of a copy, several times; what reaches the disk is whole."""
        source = self.path("source")
        with open(source, "wb") as file:
            file.write(os.urandom(24 * MIB))
        target = self.path("target")
        qemu_img("create", "-q", "-f", "raw", target, 24 * MIB)
        words = ("--filter=delay", "--filter=log", "file", target, "wdelay=20ms", f"logfile={self.path('log')}", "logappend=true")
        server = self.nbdkit(*words)
        name = "json:" + json.dumps({"driver": "raw", "file": {"driver": "nbd", "path": self.sock, "reconnect-delay": 60,
                                                               "open-timeout": 5}})
        copy = subprocess.Popen([BYRE, "convert", "-n", "-f", "raw", "-O", "raw", source, name],
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.addCleanup(copy.kill)

        def writes():
            with open(self.path("log")) as log:
                return log.read().count(" Write id=")
        for more in (2, 4, 6):
            until(lambda count=more: writes() >= count or copy.poll() is not None, "writes")
            self.assertIsNone(copy.poll(), "the copy is too short for this test")
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            server.start()
        out, _ = copy.communicate(timeout=100)
        self.assertEqual(copy.returncode, 0, out)
        self.assert_same(source, target)

    @only_byre
    def test_without_a_delay_a_killed_server_is_an_error(self):
        server = self.nbdkit("--filter=delay", "memory", "8M", "rdelay=1000")
        reader = subprocess.Popen([BYRE, "io", "-f", "raw", "-c", "read 0 512", self.uri("")], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
        self.addCleanup(reader.kill)
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(1)  # It waits for its reply.
        server.kill()
        out, _ = reader.communicate(timeout=60)
        self.assertNotEqual(reader.returncode, 0)
        self.assertIn(self.sock, out)


if __name__ == "__main__":
    main()
