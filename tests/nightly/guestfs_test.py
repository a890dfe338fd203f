# SPDX-License-Identifier: Apache-2.0
"""libguestfs: guestfish and virt-sparsify, which find qemu-img by PATH, and a guest of theirs on a served disk.

Its small machine runs under QEMU's own emulation; each start takes half a minute or so.
"""
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, GIB, MIB, ROOT, Case, main, qemu_img, run, until, wait  # noqa: E402

PATIENCE = 1200


class Guestfs(Case):
    def setUp(self):
        super().setUp()
        inputs = os.environ.get("BYRE_TEST_INPUTS", os.path.join(ROOT, "build", "test-inputs"))
        kernel = os.path.join(inputs, "guestfs")
        run(os.path.join(ROOT, "tests", "nightly", "kernel.sh"), kernel, patience=PATIENCE)
        with open(os.path.join(kernel, "version")) as file:
            version = file.read().strip()
        os.makedirs("/lib/modules", exist_ok=True)  # supermin wants to see it.
        os.makedirs(os.path.join(kernel, "cache"), exist_ok=True)
        os.mkdir(self.path("bin"))
        for name in ("qemu-img", "qemu-io", "qemu-nbd"):
            os.symlink(BYRE, self.path(f"bin/{name}"))
        self.environment = {
            **os.environ, "PATH": self.path("bin") + ":" + os.environ["PATH"], "TMPDIR": self.folder,
            "LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg",
            "LIBGUESTFS_CACHEDIR": os.path.join(kernel, "cache"), "SUPERMIN_KERNEL": os.path.join(kernel, "vmlinuz"),
            "SUPERMIN_KERNEL_VERSION": version, "SUPERMIN_MODULES": os.path.join(kernel, "modules")}
        self.disk, self.files = self.path("disk.qcow2"), self.path("files")
        os.mkdir(self.files)
        draw = random.Random(8)
        self.sums = {}
        for number in range(8):
            data = draw.randbytes(draw.randrange(1, 4 * MIB))
            with open(os.path.join(self.files, f"f{number}"), "wb") as file:
                file.write(data)
            self.sums[f"f{number}"] = hashlib.sha256(data).hexdigest()
        run("tar", "-C", self.files, "-cf", self.path("files.tar"), ".")

    def tool(self, *words):
        return run("/usr/bin/env", *words, env=self.environment, patience=PATIENCE, cwd=self.folder)

    def fish(self, source, *commands):
        words = []
        for command in ("run", *commands):
            words += [":"] * bool(words) + command.split()
        return self.tool("guestfish", *source, *words)

    def make(self):
        """A disk with files, and with deleted ones that take space."""
        self.fish(["--version"])
        self.tool("guestfish", "disk-create", self.disk, "qcow2", str(GIB))
        self.fish(["-a", self.disk], "part-disk /dev/sda mbr", "mkfs ext4 /dev/sda1", "mount /dev/sda1 /",
                  f"tar-in {self.path('files.tar')} /", "fill 65 83886080 /deleted", "sync", "rm /deleted")

    def assert_files(self, *source, overlay=True):
        """Its own overlay keeps guestfish --ro from writing; byre makes none over what is no file."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path("back.tar"))
        self.fish(["--ro"] * overlay + [*source], "mount-ro /dev/sda1 /", f"tar-out / {self.path('back.tar')}")
        names = ["./" + name for name in self.sums]
        back = self.path("back")
        os.makedirs(back, exist_ok=True)
        run("tar", "-C", back, "-xf", self.path("back.tar"), *names)
        for name, digest in self.sums.items():
            with open(os.path.join(back, name), "rb") as file:
                self.assertEqual(hashlib.sha256(file.read()).hexdigest(), digest, name)

    def size(self, path):
        return os.stat(path).st_blocks * 512

    def test_guestfish_and_virt_sparsify(self):
        self.make()
        self.assert_sound(self.disk)
        self.assert_files("-a", self.disk)
        # Through overlays of its own: what is deleted is not copied.
        sparse = self.path("sparse.qcow2")
        self.tool("virt-sparsify", self.disk, "--convert", "qcow2", sparse)
        self.assert_sound(sparse)
        self.assertLess(self.size(sparse), self.size(self.disk) - 60 * MIB)
        self.assert_files("-a", sparse)
        self.tool("virt-sparsify", self.disk, "--convert", "qcow2", "--compress", self.path("small.qcow2"))
        self.assert_sound(self.path("small.qcow2"))
        self.assert_files("-a", self.path("small.qcow2"))
        told = json.loads(qemu_img("info", "--output=json", sparse).out)
        self.assertEqual(told["virtual-size"], GIB)

    def test_on_a_served_disk(self):
        """A guest's file system over NBD, trims included, by both names of the server."""
        self.make()
        sock = self.path("nbd")
        for words in (["qemu-nbd", "-t", "-f", "qcow2", "--discard=unmap", "-k", sock, self.disk],
                      [BYRE, "serve", "-k", sock, self.disk]):
            process = subprocess.Popen(["/usr/bin/env", *words], env=self.environment, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.DEVNULL)
            try:
                until(lambda: os.path.exists(sock), "the server")
                source = ["add", "", "protocol:nbd", f"server:unix:{sock}", "discard:enable", "format:raw", ":"]
                self.assert_files(*source, overlay=False)
                before = self.size(self.disk)
                self.fish(source, "mount-options discard /dev/sda1 /", "fill 66 41943040 /more", "sync", "rm /more",
                          "fstrim /", "write /said hello")
                self.assertLess(self.size(self.disk), before + 8 * MIB)
                self.assertIn(b"hello", self.fish(source, "mount-ro /dev/sda1 /", "cat /said").out)
                process.send_signal(signal.SIGTERM)
                wait(process, 60)
                self.assertEqual(process.returncode, 0)
            finally:
                if process.returncode is None:
                    process.kill()
                    process.wait()
            self.assert_sound(self.disk)
        self.assert_files("-a", self.disk)


if __name__ == "__main__":
    main()
