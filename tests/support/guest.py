# SPDX-License-Identifier: Apache-2.0
"""A Linux guest whose disk is an NBD export: QEMU's own emulation, Debian's kernel, the jobs in system/guest."""
import os
import re
import shutil
import subprocess
import time

from harness import PATIENCE, Died, inputs, readable, run, wait

# Reading from a killed server's socket fails at once; QEMU then tries again for this many seconds.
RECONNECT = 60


def with_programs(initrd, out, programs):
    """`initrd` with more programs and their libraries, as `out`: {name in /bin: path here}."""
    root = out + ".d"
    for name, path in programs.items():
        os.makedirs(os.path.join(root, "bin"), exist_ok=True)
        run("strip", "-o", os.path.join(root, "bin", name), path)
        for library in re.findall(r"/\S+", run("ldd", path).out.decode()):
            copy = root + library
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            shutil.copyfile(library, copy)
            shutil.copymode(library, copy)
    with open(out, "wb") as together:
        with open(initrd, "rb") as first:
            shutil.copyfileobj(first, together)
        together.write(bytes(-together.tell() % 512))
        together.flush()
        subprocess.run("find . | LC_ALL=C sort | cpio --quiet -o -H newc", shell=True, cwd=root, stdout=together, check=True)


class Guest:
    def __init__(self, job, sock, name="", initrd=None, memory=320):
        disk = f"driver=nbd,node-name=d0,server.type=unix,server.path={sock},discard=unmap,reconnect-delay={RECONNECT}"
        if name:
            disk += f",export={name}"
        self.seen = []
        self.rest = b""
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-machine", "q35", "-m", str(memory), "-smp", "2",
             "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-kernel", inputs("vmlinux"),
             "-initrd", initrd or inputs("initrd.cpio"), "-append", f"console=ttyS0 panic=-1 quiet job={job}", "-serial", "stdio",
             "-blockdev", disk, "-device", "virtio-blk-pci,drive=d0"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def lines(self, patience=2 * PATIENCE):
        """What the job says, word lists without the leading TEST, until the guest is off."""
        deadline = time.monotonic() + patience
        fd = self.process.stdout.fileno()
        while True:
            while b"\n" in self.rest:
                line, _, self.rest = self.rest.partition(b"\n")
                line = line.decode(errors="replace").strip()
                self.seen.append(line)
                words = line.split()
                if "TEST" in words:
                    yield words[words.index("TEST") + 1:]
            if not readable(fd, deadline - time.monotonic()):
                raise Died(f"the guest hangs: {self.console()}")
            more = os.read(fd, 65536)
            if not more:
                break
            self.rest += more
        wait(self.process, PATIENCE)
        if self.process.returncode != 0:
            raise Died(f"QEMU ended with {self.process.returncode}: {self.console()}")

    def say(self, word):
        """To what reads the console in the guest."""
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def console(self):
        return "\n".join(self.seen[-60:])

    def kill(self):
        if self.process.returncode is None:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def judge(test, lines, guest):
    """Every step succeeded and the job came to its end; gives {file: sha256} as the guest computed them."""
    sums, ended = {}, False
    for words in lines:
        if words[0] == "step":
            test.assertEqual(words[1], "rc=0", f"{words}\n{guest.console()}")
        elif words[0] == "sum":
            sums[words[2]] = words[1]
        ended = ended or words[0] == "end"
    test.assertTrue(ended, guest.console())
    return sums
