# SPDX-License-Identifier: Apache-2.0
"""Backups of disks that no machine runs on, from end to end, with the command lines of those who make them.

ovirt-imageio, virtnbdbackup and KubeVirt find qemu-img and qemu-nbd by PATH: links that lead to byre lie first there.
Full and incremental backups are read through the server as its clients read, restored into new disks, and compared with
what was written.
"""
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import nbd  # noqa: E402
from harness import (BYRE, KIB, MIB, QEMU, Case, free_port, main, only_byre, qemu_img, qemu_io, readable,  # noqa: E402
                     run, until, wait)

SIZE = 64 * MIB


class Backup(Case):
    def setUp(self):
        super().setUp()
        self.environment = dict(os.environ)
        if not QEMU:
            os.mkdir(self.path("bin"))
            for name in ("qemu-img", "qemu-io", "qemu-nbd"):
                os.symlink(BYRE, self.path(f"bin/{name}"))
            self.environment["PATH"] = self.path("bin") + ":" + os.environ["PATH"]
        self.disk = self.path("disk.qcow2")
        self.truth = bytearray(SIZE)
        self.draw = random.Random(21)
        self.sock = self.path("nbd")

    def tool(self, *words, **options):
        """Found by PATH, as by those who call it."""
        return run("/usr/bin/env", *words, env=self.environment, **options)

    # --- The machine's own writes ---------------------------------------------------------------

    def change(self, disk, count, form="qcow2"):
        """As a machine does while it runs: writes, zeroes and discards."""
        words = []
        for _ in range(count):
            length = self.draw.choice([4 * KIB, 64 * KIB, 300 * KIB, MIB])
            at = self.draw.randrange((SIZE - length) // 512) * 512
            byte = self.draw.randrange(1, 256)
            if self.draw.random() < 0.2:
                words += [f"write -z {at} {length}"]
                byte = 0
            else:
                words += [f"write -P {byte} {at} {length}"]
            self.truth[at:at + length] = bytes([byte]) * length
        self.tool("qemu-io", "-f", form, *[word for command in words for word in ("-c", command)], disk)

    # --- Servers ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def forked(self, *words, last=None):
        """A server that goes to the background and says its number in a file."""
        pid_file = self.path("pid")
        self.tool("qemu-nbd", *words, "--fork", f"--pid-file={pid_file}", *[last] * bool(last))
        with open(pid_file) as file:
            pid = int(file.read())
        pidfd = os.pidfd_open(pid)
        try:
            yield pid
            os.kill(pid, signal.SIGTERM)
            self.assertTrue(readable(pidfd, 60), "it does not end")
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        until(lambda: not os.path.exists(pid_file) or QEMU, "the end of its file")

    def virtnbdbackup(self, disk, bitmap=None, form="qcow2"):
        """Word by word: "-e 2" is one, and without a bitmap the last says that no options follow."""
        return self.forked("-r", f"--format={form}", "-x", "vda", disk, "-k", self.sock, "-t", "-e 2",
                           "--detect-zeroes=on", last=f"--bitmap={bitmap}" if bitmap else "--")

    def imageio(self, disk, *words, form="qcow2", address=None, **more):
        """The image is named by its layers, so that each can be chosen."""
        where = address or [f"--socket={self.sock}"]
        image = "json:" + json.dumps({"driver": form, "file": {"driver": "file", "filename": disk}, **more})
        return self.started("--export-name=vol-1", "--persistent", "--shared=8", *where, "--cache=none", "--aio=native",
                            "--discard=unmap", *words, *["--allocation-depth"] * (form != "raw"), image)

    @contextlib.contextmanager
    def started(self, *words):
        """A server in the foreground."""
        process = subprocess.Popen(["/usr/bin/env", "qemu-nbd", *words], env=self.environment, stdin=subprocess.DEVNULL)
        try:
            until(lambda: self.listens(words) or process.poll() is not None, "the server")
            self.assertIsNone(process.poll(), words)
            yield process
            process.terminate()
            wait(process, 60)
            self.assertEqual(process.returncode, 0)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()

    def listens(self, words):
        port = [word.split("=")[1] for word in words if word.startswith("--port=")]
        family, address = (socket.AF_INET, ("127.0.0.1", int(port[0]))) if port else (socket.AF_UNIX, self.sock)
        with socket.socket(family) as probe:
            return probe.connect_ex(address) == 0

    def uri(self, name):
        return f"nbd+unix:///{name}?socket={self.sock}"

    # --- Clients ---------------------------------------------------------------------------------

    def dirty(self, uri, context):
        """What the map says has changed."""
        extents = json.loads(run("nbdinfo", "--json", f"--map={context}", uri).out)
        at = 0
        for extent in extents:
            self.assertEqual(extent["offset"], at)
            at += extent["length"]
        self.assertEqual(at, SIZE)
        return [(extent["offset"], extent["length"]) for extent in extents if extent["type"] & 1]

    def read_ranges(self, uri, ranges):
        handle = nbd.NBD()
        handle.connect_uri(uri)
        read = {}
        for at, length in ranges:
            for start in range(at, at + length, 4 * MIB):
                step = min(4 * MIB, at + length - start)
                read[start] = bytes(handle.pread(step, start))
        handle.shutdown()
        return read

    def assert_holds(self, image, form="qcow2"):
        """Read by the real qemu-img, it is what was written."""
        want = self.path("want")
        with open(want, "wb") as file:
            file.write(self.truth)
        qemu_img("compare", "-f", "raw", "-F", form, want, image)

    def check_increment(self, increment, before):
        """All that has changed is in it."""
        covered = bytearray(before)
        for at, data in increment.items():
            covered[at:at + len(data)] = data
        self.assertTrue(covered == self.truth, "a change is not in the increment")

    def restore(self, target, full, increments, form="qcow2"):
        """As imageio uploads: into a new disk, through a server that writes."""
        self.tool("qemu-img", "create", "-f", form, target, "-o", f"size={SIZE}")
        with self.imageio(target, "--detect-zeroes=unmap", form=form):
            run("nbdcopy", "--flush", full, self.uri("vol-1"))
            handle = nbd.NBD()
            handle.connect_uri(self.uri("vol-1"))
            for increment in increments:
                for at, data in increment.items():
                    if data.count(0) == len(data):
                        handle.zero(len(data), at)
                    else:
                        handle.pwrite(data, at)
            handle.flush()
            handle.shutdown()

    # --- What they do ----------------------------------------------------------------------------

    def test_virtnbdbackup(self):
        """Offline: a full backup, changes recorded by a bitmap, two increments, and the restore."""
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", self.disk, str(SIZE))
        self.change(self.disk, 30)
        full, increments = self.path("full"), []
        with self.virtnbdbackup(self.disk):
            told = json.loads(run("nbdinfo", "--json", self.uri("vda")).out)["exports"][0]
            self.assertTrue(told["is_read_only"])
            self.assertEqual(told["export-size"], SIZE)
            run("nbdinfo", "--json", "--map=base:allocation", self.uri("vda"))
            run("nbdcopy", self.uri("vda"), full)
        self.assert_holds(full, "raw")
        self.tool("qemu-img", "bitmap", "--add", self.disk, "backup-vda")
        for number in range(2):
            before = bytes(self.truth)
            self.change(self.disk, 10)
            with self.virtnbdbackup(self.disk, "backup-vda"):
                ranges = self.dirty(self.uri("vda"), "qemu:dirty-bitmap:backup-vda")
                increment = self.read_ranges(self.uri("vda"), ranges)
            self.check_increment(increment, before)
            self.assertLess(sum(length for _, length in ranges), SIZE // 2, "an increment is no full backup")
            increments.append(increment)
            # The next one is since this one.
            info = json.loads(self.tool("qemu-img", "info", self.disk, "--output", "json", "--force-share").out)
            self.assertEqual([bitmap["name"] for bitmap in info["format-specific"]["data"]["bitmaps"]], ["backup-vda"])
            self.tool("qemu-img", "bitmap", "--clear", self.disk, "backup-vda")
        # A server of the restore is there for one client.
        mine = self.path("mine.qcow2")
        self.tool("qemu-img", "create", "-f", "qcow2", mine, "-o", f"size={SIZE}")
        self.tool("qemu-nbd", "--discard=unmap", "--format=qcow2", "-x", "vda", mine, "-k", self.sock, "--fork")
        handle = nbd.NBD()
        handle.connect_uri(self.uri("vda"))
        with open(full, "rb") as file:
            for at in range(0, SIZE, 4 * MIB):
                handle.pwrite(file.read(4 * MIB), at)
        for increment in increments:
            for at, data in increment.items():
                handle.pwrite(data, at)
        handle.shutdown()
        until(lambda: qemu_img("info", mine, ok=None).code == 0, "its end")
        self.assert_holds(mine)
        self.assert_sound(mine)
        for form in ("qcow2", "raw"):
            target = self.path(f"restored.{form}")
            self.restore(target, full, increments, form)
            self.assert_holds(target, form)
        self.assert_sound(self.path("restored.qcow2"))
        self.assert_sound(self.disk)

    def test_imageio(self):
        """Upload, download with the depth of allocation, and the same over TCP; a chain of two."""
        base, top = self.path("base.qcow2"), self.path("top.qcow2")
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", base, str(SIZE))
        self.change(base, 20)
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        before = bytes(self.truth)
        self.change(top, 10)
        self.tool("qemu-img", "bitmap", "--add", top, "b1")
        for address in (None, ["--bind=127.0.0.1", f"--port={free_port()}"]):
            with self.imageio(top, "--read-only", "--detect-zeroes=unmap", "--bitmap=b1", address=address):
                uri = self.uri("vol-1") if not address else f"nbd://127.0.0.1:{address[1].split('=')[1]}/vol-1"
                told = json.loads(run("nbdinfo", "--json", uri).out)["exports"][0]
                self.assertEqual(sorted(told["contexts"]),
                                 ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b1"])
                depths = json.loads(run("nbdinfo", "--json", "--map=qemu:allocation-depth", uri).out)
                # What lies in the top image is what an incremental download takes.
                top_only = [(extent["offset"], extent["length"]) for extent in depths if extent["type"] == 1]
                self.check_increment(self.read_ranges(uri, top_only), before)
                self.assertEqual(self.dirty(uri, "qemu:dirty-bitmap:b1"), [])
                run("nbdcopy", uri, self.path("download"))
            self.assert_holds(self.path("download"), "raw")
            os.unlink(self.path("download"))
        # The top image alone: what it does not have are zeros, and allocated nowhere.
        with self.imageio(top, "--read-only", "--detect-zeroes=unmap", backing=None):
            depths = json.loads(run("nbdinfo", "--json", "--map=qemu:allocation-depth", self.uri("vol-1")).out)
            self.assertEqual([(extent["offset"], extent["length"]) for extent in depths if extent["type"]], top_only)
            alone = self.read_ranges(self.uri("vol-1"), [(0, SIZE)])
        self.check_increment({at: b"".join(alone.values())[at:at + length] for at, length in top_only}, before)
        with open(self.path("whole"), "wb") as file:
            file.write(self.truth)
        self.restore(self.path("upload.qcow2"), self.path("whole"), [])
        self.assert_holds(self.path("upload.qcow2"))
        # Zeros were not written, with --detect-zeroes=unmap and a client that sends them as zeros.
        self.assertLess(os.stat(self.path("upload.qcow2")).st_blocks * 512, 40 * MIB)

    def test_bitmaps_over_a_raw_data_file(self):
        """KubeVirt, Incus: the disk stays a raw file, and a small qcow2 beside it records what changes."""
        raw, over = self.path("disk.raw"), self.path("over.qcow2")
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={raw},data_file_raw=on", over, str(SIZE))
        self.change(over, 20)
        self.assert_holds(raw, "raw")
        full = self.path("full")
        with self.virtnbdbackup(over):
            run("nbdcopy", self.uri("vda"), full)
        self.assert_holds(full, "raw")
        self.tool("qemu-img", "bitmap", "--add", "-g", "64k", over, "since")
        before = bytes(self.truth)
        self.change(over, 8)
        self.assert_holds(raw, "raw")
        with self.virtnbdbackup(over, "since"):
            ranges = self.dirty(self.uri("vda"), "qemu:dirty-bitmap:since")
            increment = self.read_ranges(self.uri("vda"), ranges)
        self.check_increment(increment, before)
        self.assertLess(sum(length for _, length in ranges), SIZE // 2)
        self.restore(self.path("restored.raw"), full, [increment], "raw")
        self.assert_holds(self.path("restored.raw"), "raw")
        # Back into the disk that it came from: the bitmap records that, too.
        self.tool("qemu-img", "bitmap", "--clear", over, "since")
        with self.imageio(over):
            run("nbdcopy", "--flush", full, self.uri("vol-1"))
        self.truth[:] = before
        self.assert_holds(raw, "raw")
        self.assert_holds(over)
        self.assert_sound(over)

    @only_byre
    def test_a_raw_file_with_contents_gets_its_bitmaps(self):
        """A disk that was raw all along keeps what it holds.  (QEMU 7.2 empties it.)"""
        raw, over = self.path("disk.raw"), self.path("over.qcow2")
        self.tool("qemu-img", "create", "-q", "-f", "raw", raw, str(SIZE))
        self.change(raw, 20, form="raw")
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={raw},data_file_raw=on", over, str(SIZE))
        self.assert_holds(over)
        self.tool("qemu-img", "bitmap", "--add", over, "since")
        before = bytes(self.truth)
        self.change(over, 6)
        with self.virtnbdbackup(over, "since"):
            ranges = self.dirty(self.uri("vda"), "qemu:dirty-bitmap:since")
            self.check_increment(self.read_ranges(self.uri("vda"), ranges), before)
        self.assert_holds(raw, "raw")
        self.assert_sound(over)

    def test_a_backup_into_compressed_clusters(self):
        """What is written through the filter `compress` is compressed."""
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", self.disk, str(SIZE))
        data = (b"compressible " * (MIB // 13 + 1))[:MIB]
        for at in (0, 5 * MIB, 63 * MIB):
            self.truth[at:at + MIB] = data
        with open(self.path("full"), "wb") as file:
            file.write(self.truth)
        with self.started("-k", self.sock, "-t", "--image-opts",
                          f"driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename={self.disk}"):
            run("nbdcopy", self.path("full"), f"nbd+unix:///?socket={self.sock}")
        self.assert_holds(self.disk)
        self.assert_sound(self.disk)
        told = json.loads(qemu_img("check", "--output=json", self.disk).out)
        self.assertEqual(told["compressed-clusters"], 3 * MIB // (64 * KIB))
        self.assertLess(os.stat(self.disk).st_blocks * 512, MIB)
        if not QEMU:  # Its clients are told to keep to whole clusters.
            with self.started("-k", self.sock, "-t", "--image-opts",
                              f"driver=compress,file.driver=qcow2,file.file.filename={self.disk}"):
                handle = nbd.NBD()
                handle.connect_uri(f"nbd+unix:///?socket={self.sock}")
                for _ in range(60):
                    length = self.draw.choice([1, 1000, 64 * KIB, 200_000, MIB])
                    at = self.draw.randrange(SIZE - length)
                    byte = self.draw.randrange(256)
                    self.truth[at:at + length] = bytes([byte]) * length
                    handle.pwrite(bytes([byte]) * length, at)
                    if self.draw.random() < 0.2:
                        handle.zero(length, at)
                        self.truth[at:at + length] = bytes(length)
                handle.shutdown()
            self.assert_holds(self.disk)
            self.assert_sound(self.disk)
        done = self.tool("qemu-nbd", "--image-opts", "driver=compress,file.driver=raw,file.file.driver=file,"
                         f"file.file.filename={self.path('full')}", "-k", self.sock, ok=None)
        self.assertEqual(done.code, 1, done)

    def test_a_part_of_a_raw_file(self):
        """As imageio reads a disk inside of an archive."""
        raw = self.path("archive")
        with open(raw, "wb") as file:
            file.write(b"before" * 512 + b"disk" * 4096 + b"behind" * 1000)
        at, length = 6 * 512, 4 * 4096
        with self.imageio(raw, form="raw", offset=at, size=length):
            handle = nbd.NBD()
            handle.connect_uri(self.uri("vol-1"))
            self.assertEqual(handle.get_size(), length)
            self.assertEqual(bytes(handle.pread(length, 0)), b"disk" * 4096)
            handle.pwrite(b"DISK" * 128, length - 512)
            handle.zero(512, 0)
            handle.shutdown()
        with open(raw, "rb") as file:
            self.assertEqual(file.read(), b"before" * 512 + bytes(512) + b"disk" * (4096 - 256) + b"DISK" * 128 +
                             b"behind" * 1000)
        with self.started("-k", self.sock, "-t", "-f", "raw", "--offset", str(at), raw):
            handle = nbd.NBD()
            handle.connect_uri(f"nbd+unix:///?socket={self.sock}")
            self.assertGreaterEqual(handle.get_size(), length + 6000)
            self.assertEqual(bytes(handle.pread(512, 512)), b"disk" * 128)
            handle.shutdown()

    @only_byre
    def test_layers_that_are_not_known_are_refused(self):
        base, top = self.path("base.qcow2"), self.path("top.qcow2")
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", base, str(SIZE))
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        file = {"driver": "file", "filename": top}
        for image, why in (({"driver": "qcow2", "file": file, "backing": None}, "-r"),
                           ({"driver": "qcow2", "file": {"driver": "nbd", "path": top}}, "nbd"),
                           ({"driver": "qcow2", "file": file, "encrypt": {"format": "luks"}}, "encrypt.format"),
                           ({"driver": "qcow2", "file": file, "backing": {"driver": "raw"}}, '"file"'),
                           ({"driver": "raw", "file": file, "offset": SIZE}, "greater"),
                           ({"driver": "raw", "file": file, "size": SIZE}, "smaller or equal"),
                           ({"driver": "vmdk", "file": file}, "vmdk")):
            done = self.tool("qemu-nbd", "-k", self.sock, "json:" + json.dumps(image), ok=None)
            self.assertEqual(done.code, 1, done)
            self.assertIn(why, done.text)
        for words in (["-f", "raw", "json:" + json.dumps({"driver": "qcow2", "file": file})],
                      ["-f", "qcow2", "--image-opts", f"driver=qcow2,file.filename={top}"],
                      ["--image-opts", top], ["json:{"]):
            self.assertEqual(self.tool("qemu-nbd", "-k", self.sock, *words, ok=None).code, 1, words)
        self.assert_sound(top)

    def test_a_bitmap_that_is_not_there(self):
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", self.disk, str(SIZE))
        done = self.tool("qemu-nbd", "-r", "--format=qcow2", "-x", "vda", self.disk, "-k", self.sock, "-t", "-e", "2",
                         "--fork", "--detect-zeroes=on", f"--pid-file={self.path('pid')}", "--bitmap=none", ok=None)
        self.assertEqual(done.code, 1, done)
        self.assertIn("none", done.text)
        qemu_io(self.disk, "read -P 0 0 64k")  # And nobody holds the disk.


if __name__ == "__main__":
    main()
