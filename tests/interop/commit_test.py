# SPDX-License-Identifier: Apache-2.0
"""byre commit beside the real qemu-img: the same words, output, exit codes, contents and maps; and what a run that is
interrupted leaves behind."""
import json
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))
from harness import BYRE, KIB, MIB, Case, main, only_byre, qemu_img, qemu_io, run  # noqa: E402
from twins import Twins  # noqa: E402

SHAPES = ["", "compat=0.10", "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "extended_l2=on",
          "refcount_bits=1", "lazy_refcounts=on"]


def chain(twins, *layers):
    """Images from the bottom up, each (name, options, size), with the one before below."""
    below = None
    for name, options, size in layers:
        kind = "raw" if name.endswith(".raw") else "qcow2"
        words = ["create", "-q", "-f", kind, *(["-o", options] if options else [])]
        if below:
            words += ["-b", below, "-F", "raw" if below.endswith(".raw") else "qcow2"]
        twins.prepare(*words, name, str(size))
        below = name


def unit(layer):
    """What can be allocated by itself in an image made with these options."""
    options = layer[1] or ""
    return options if "cluster_size" in options or "extended_l2" in options else ""


def scribble(rng, size, streams=True, zeros=True):
    """Commands for qemu-io."""
    commands = []
    for number in range(rng.randrange(2, 9)):
        length = rng.choice([512, 4 * KIB, 64 * KIB, 100 * KIB + 512])
        offset = rng.randrange(0, size - length, 512)
        kind = rng.choice(["write"] * 4 + ["zero"] * 2 + ["unmap", "discard", "stream"])
        if kind == "stream" and streams:
            offset = offset // (64 * KIB) * 64 * KIB
            commands.append(f"write -q -c -P {number + 1} {offset} 64k")
        elif kind in ("zero", "unmap") and zeros:
            commands.append(f"write -q -z {'-u ' if kind == 'unmap' else ''}{offset} {length}")
        elif kind == "discard" and zeros:
            commands.append(f"discard -q {offset} {length}")
        else:
            commands.append(f"write -q -P {number + 1 + rng.randrange(100)} {offset} {length}")
    return commands


class Words(Case):
    """What is wrong is said in the same words, and nothing changes."""

    def simple(self, twins):
        chain(twins, ("base.qcow2", "", "1M"), ("mid.qcow2", "", "1M"), ("top.qcow2", "", "2M"))
        twins.prepare("create", "-q", "-f", "raw", "disk.raw", "1M")
        for number, name in enumerate(["base.qcow2", "mid.qcow2", "top.qcow2"]):
            twins.write(name, f"write -q -P {number + 1} {64 * number}k 128k")
        twins.share()

    def test_errors(self):
        with Twins(self) as twins:
            self.simple(twins)
            for words in [[], ["a", "b"], ["nosuch.qcow2"], ["base.qcow2"], ["-b", "nosuch", "top.qcow2"],
                          ["-b", "", "top.qcow2"], ["-b", "top.qcow2", "top.qcow2"], ["-b", "x", "base.qcow2"],
                          ["-t", "foo", "top.qcow2"], ["-f", "raw", "top.qcow2"], ["-f", "foo", "top.qcow2"],
                          ["disk.raw"], ["-f", "raw", "disk.raw"], ["-r", "foo", "top.qcow2"],
                          ["-r", "-5", "top.qcow2"], ["--image-opts", "-f", "qcow2", "driver=qcow2"]]:
                done = twins.play("commit", *words, same_words="-r" not in words)
                self.assertEqual(done.code, 1)
            twins.compare_disks("base.qcow2", "mid.qcow2", "top.qcow2")

    def test_what_is_said(self):
        for words in [[], ["-d"], ["-q"], ["-d", "-q"], ["-r", "0"], ["-r", "100M"], ["-t", "writethrough"],
                      ["-t", "none"], ["-t", "unsafe"], ["-b", "base.qcow2"], ["-b", "./base.qcow2"],
                      ["-b", "mid.qcow2"], ["-b", "base.qcow2", "-d"], ["-f", "qcow2"]]:
            with Twins(self) as twins:
                self.simple(twins)
                twins.play("commit", *words, "top.qcow2")
                twins.compare_disks("base.qcow2", "mid.qcow2", "top.qcow2")
        with Twins(self) as twins:
            self.simple(twins)
            twins.play("commit", "--image-opts", "driver=qcow2,file.filename=top.qcow2")
            twins.compare_disks("base.qcow2", "mid.qcow2", "top.qcow2")
            twins.play("commit", "-b", os.path.join(twins.real, "nosuch"), "top.qcow2")

    def test_progress(self):
        with Twins(self) as twins:
            self.simple(twins)
            done = twins.play("commit", "-p", "top.qcow2", same_words=False)
            self.assertTrue(done.out.endswith(b"    (100.00/100%)\r\nImage committed.\n"), done)

    def test_progress_comes_before_what_is_wrong(self):
        with Twins(self) as twins:
            self.simple(twins)
            for words in (["base.qcow2"], ["-b", "nosuch", "top.qcow2"], ["-f", "raw", "disk.raw"]):
                done = twins.play("commit", "-p", *words)
                self.assertEqual(done.out, b"    (0.00/100%)\r\n", words)
            for words in (["nosuch.qcow2"], ["-t", "foo", "top.qcow2"], ["-q", "base.qcow2"]):
                self.assertEqual(twins.play("commit", "-p", *words).out, b"", words)

    def test_names_of_the_base_are_relative_to_the_image_above(self):
        with Twins(self) as twins:
            self.simple(twins)
            for folder in (twins.real, twins.ours):
                os.mkdir(os.path.join(folder, "sub"))
                qemu_img("create", "-q", "-f", "qcow2", "-b", "../base.qcow2", "-F", "qcow2", "sub/over.qcow2", cwd=folder)
            for name in ("base.qcow2", "./base.qcow2", "sub/../base.qcow2", "file:base.qcow2", "../base.qcow2"):
                done = twins.play("commit", "-b", name, "sub/over.qcow2")
                self.assertEqual(done.code, 0 if name == "../base.qcow2" else 1, name)
            twins.play("commit", "-b", "file:base.qcow2", "top.qcow2")
            twins.play("commit", "-b", "sub/../base.qcow2", "top.qcow2")
            twins.compare_disks("base.qcow2", "mid.qcow2", "top.qcow2")

    @only_byre
    def test_in_use(self):
        """Neither image is changed while somebody has the base."""
        with Twins(self) as twins:
            self.simple(twins)
            for options in ([], ["-r"]):
                for folder, tool in ((twins.real, twins.qemu_img), (twins.ours, twins.tool)):
                    holder = subprocess.Popen(["qemu-io", *options, "-f", "qcow2", "mid.qcow2"], cwd=folder,
                                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                    holder.stdout.read(1)  # The prompt: it is open.
                    before = open(os.path.join(folder, "mid.qcow2"), "rb").read()
                    done = run(tool, "commit", "top.qcow2", cwd=folder, ok=(1,))
                    self.assertIn("mid.qcow2", done.text)
                    self.assertEqual(before, open(os.path.join(folder, "mid.qcow2"), "rb").read())
                    holder.communicate(b"quit\n")
            twins.compare_disks("mid.qcow2", "top.qcow2")


class Disks(Case):
    """Chains of every shape."""

    def play(self, rng, layers, words, write=True):
        with Twins(self) as twins:
            chain(twins, *layers)
            for name, options, size in layers:
                raw = name.endswith(".raw")
                streams = not raw and "data_file" not in (options or "") and "cluster_size" not in (options or "")
                old = "compat=0.10" in (options or "")
                twins.write(name, *scribble(rng, size, streams, not old), options=("-f", "raw" if raw else "qcow2"))
            twins.share()
            twins.play("commit", *words, layers[-1][0])
            # Of raw files the host's file system decides what is a hole.
            comparable = not any(name.endswith(".raw") for name, _, _ in layers)
            twins.compare_disks(*(name for name, _, _ in layers), same_map=comparable)

    def test_two(self):
        rng = random.Random(1)
        for shape in SHAPES:
            for other in ["", shape, *rng.sample(SHAPES[1:], 2)]:
                sizes = rng.choice([(MIB, MIB), (MIB, 2 * MIB), (2 * MIB, MIB), (MIB + 512, 3 * MIB - 512)])
                self.play(rng, [("base.qcow2", shape, sizes[0]), ("top.qcow2", other, sizes[1])],
                          rng.choice([[], ["-d"]]))

    def test_raw_base(self):
        rng = random.Random(2)
        for shape in SHAPES:
            sizes = rng.choice([(MIB, MIB), (MIB, 2 * MIB), (2 * MIB, MIB)])
            self.play(rng, [("base.raw", None, sizes[0]), ("top.qcow2", shape, sizes[1])], [])

    def test_deep(self):
        rng = random.Random(3)
        for turn in range(10):
            count = rng.randrange(3, 6)
            layers = [(f"l{n}.qcow2", rng.choice(SHAPES), rng.choice([MIB, MIB + 64 * KIB, 2 * MIB, 3 * MIB]))
                      for n in range(count)]
            self.play(rng, layers, rng.choice([[], ["-b", f"l{rng.randrange(count - 1)}.qcow2"], ["-d"]]))

    def test_data_files(self):
        rng = random.Random(4)
        for turn in range(4):
            layers = [("base.qcow2", "data_file=base.data", MIB), ("top.qcow2", "data_file=top.data", 2 * MIB)]
            self.play(rng, layers, [])

    def test_snapshots_and_bitmaps_stay(self):
        with Twins(self) as twins:
            chain(twins, ("base.qcow2", "", MIB), ("top.qcow2", "", MIB))
            twins.prepare("bitmap", "--add", "base.qcow2", "b")
            twins.prepare("bitmap", "--add", "top.qcow2", "t")
            twins.write("top.qcow2", "write -q -P 1 0 256k")
            twins.prepare("snapshot", "-c", "one", "top.qcow2")
            twins.write("top.qcow2", "write -q -P 2 0 128k", "write -q -z 512k 64k")
            twins.share()
            twins.play("commit", "top.qcow2")
            twins.compare_disks("base.qcow2", "top.qcow2")
            done = qemu_img("convert", "-O", "raw", "-l", "one", "top.qcow2", "one.raw", cwd=twins.ours)
            qemu_io("one.raw", "read -q -P 1 0 256k", options=("-f", "raw"), cwd=twins.ours)
            self.assertEqual(done.code, 0)

    def test_damage_is_an_error(self):
        with Twins(self) as twins:
            chain(twins, ("base.qcow2", "", MIB), ("top.qcow2", "", MIB))
            twins.write("top.qcow2", "write -q -P 1 0 64k", "write -q -P 2 128k 64k")
            with open(os.path.join(twins.real, "top.qcow2"), "r+b") as file:
                file.truncate(os.path.getsize(file.name) - 64 * KIB)
            twins.share()
            top = open(os.path.join(twins.ours, "top.qcow2"), "rb").read()
            done = run(twins.tool, "commit", "top.qcow2", cwd=twins.ours, ok=None)
            self.assertEqual(done.code, 1, done)
            qemu_img("check", "-q", "base.qcow2", cwd=twins.ours)
            self.assertEqual(top[64 * KIB:], open(os.path.join(twins.ours, "top.qcow2"), "rb").read()[64 * KIB:])


@only_byre
class Own(Case):
    """Under its own name."""

    def make(self, size="64M"):
        for words in (("base.qcow2", size), ("-b", "base.qcow2", "-F", "qcow2", "mid.qcow2"),
                      ("-b", "mid.qcow2", "-F", "qcow2", "top.qcow2")):
            qemu_img("create", "-q", "-f", "qcow2", *words, cwd=self.folder)
        qemu_io("base.qcow2", f"write -q -P 1 0 {size}", cwd=self.folder)

    def test_json_and_warnings(self):
        self.make("1M")
        qemu_io("top.qcow2", "write -q -P 3 0 64k", cwd=self.folder)
        done = run(BYRE, "commit", "-b", "base.qcow2", "--output=json", "top.qcow2", cwd=self.folder)
        self.assertEqual(json.loads(done.out), {"filename": "top.qcow2", "base": "base.qcow2", "emptied": False})
        self.assertIn("mid.qcow2", json.loads(done.err)["warning"]["message"])
        done = run(BYRE, "commit", "--output=json", "top.qcow2", cwd=self.folder)
        self.assertEqual(json.loads(done.out), {"filename": "top.qcow2", "base": "mid.qcow2", "emptied": True})

    def test_snapshots_are_warned_of(self):
        self.make("1M")
        qemu_img("snapshot", "-c", "one", "top.qcow2", cwd=self.folder)
        done = run(BYRE, "commit", "--output=json", "top.qcow2", cwd=self.folder)
        self.assertIn("snapshots of 'top.qcow2'", json.loads(done.err)["warning"]["message"])

    def test_policy(self):
        self.make("1M")
        done = run(BYRE, "commit", "--follow", "nothing", "top.qcow2", cwd=self.folder, ok=(1,))
        self.assertIn("--follow", done.text)

    def contents(self, name):
        run(BYRE, "convert", "--force", "-q", "-O", "raw", name, "contents", cwd=self.folder)
        with open(self.path("contents"), "rb") as file:
            return file.read()

    def test_killed_anywhere(self):
        """What the top shows is the same at every moment, whatever ends the run, and a second run ends it."""
        self.make("64M")
        rng = random.Random(5)
        step = 256 * KIB
        commands = [f"write -q -P {n % 200 + 5} {n * step} {step}" for n in range(0, 256, 2)]
        qemu_io("top.qcow2", *commands, "write -q -z 1M 4M", cwd=self.folder)
        before = self.contents("top.qcow2")
        for turn in range(8):
            kind = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM][turn % 3]
            process = subprocess.Popen([BYRE, "commit", *(["-r", "100M"] if turn % 2 else []), "top.qcow2"],
                                       cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            time.sleep(rng.random() * 0.3)
            process.send_signal(kind)
            process.communicate()
            self.assertIn(process.returncode, (0, -kind, 128 + kind))
            for name in ("top.qcow2", "mid.qcow2"):
                done = qemu_img("check", "-f", "qcow2", name, cwd=self.folder, ok=None)
                self.assertIn(done.code, (0, 3), done)  # 3: leaks.
            self.assertEqual(before, self.contents("top.qcow2"))
        run(BYRE, "commit", "-q", "--free-leaks", "top.qcow2", cwd=self.folder)
        self.assertEqual(before, self.contents("top.qcow2"))
        self.assertEqual(before, self.contents("mid.qcow2"))
        for name in ("top.qcow2", "mid.qcow2"):
            qemu_img("check", "-q", name, cwd=self.folder)


if __name__ == "__main__":
    main()
