# SPDX-License-Identifier: Apache-2.0
"""byre rebase beside the real qemu-img: the same words, output, exit codes, contents and maps; and what a run that is
interrupted leaves behind."""
import json
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from commit_test import SHAPES, chain, scribble  # noqa: E402
from harness import BYRE, KIB, MIB, Case, main, only_byre, qemu_img, qemu_io, run  # noqa: E402
from twins import Twins  # noqa: E402


def simple(twins):
    chain(twins, ("base.qcow2", "", "1M"), ("mid.qcow2", "", "1M"), ("top.qcow2", "", "2M"))
    twins.prepare("create", "-q", "-f", "raw", "disk.raw", "1M")
    twins.write("base.qcow2", "write -q -P 1 0 1M")
    twins.write("mid.qcow2", "write -q -P 2 64k 64k")
    twins.write("top.qcow2", "write -q -P 3 128k 64k", "write -q -z 256k 64k", "write -q -P 4 1536k 4k")
    twins.share()


class Words(Case):
    def test_errors(self):
        with Twins(self) as twins:
            simple(twins)
            for words in [["top.qcow2"], [], ["-b", "base.qcow2", "-F", "qcow2"], ["-b", "base.qcow2", "top.qcow2"],
                          ["-b", "nosuch", "-F", "qcow2", "top.qcow2"], ["-b", "base.qcow2", "-F", "foo", "top.qcow2"],
                          ["-u", "-b", "nosuch", "top.qcow2"], ["-u", "-b", "x", "-F", "foo", "top.qcow2"],
                          ["-b", "base.qcow2", "-F", "qcow2", "-f", "raw", "disk.raw"],
                          ["-b", "base.qcow2", "-F", "qcow2", "disk.raw"], ["-b", "", "-f", "raw", "disk.raw"],
                          ["-u", "-b", "x", "-f", "raw", "disk.raw"],
                          ["-t", "foo", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"],
                          ["-T", "foo", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"],
                          ["-b", "base.qcow2", "-F", "qcow2", "nosuch.qcow2"], ["a", "b", "-b", ""]]:
                # 7.2 takes a backing file without a format in version 2 images only, and says other things.
                done = twins.play("rebase", *words)
                self.assertEqual(done.code, 1)
            # Below itself.
            for words in [["-b", "top.qcow2", "-F", "qcow2", "top.qcow2"], ["-b", "top.qcow2", "-F", "qcow2", "mid.qcow2"]]:
                self.assertEqual(twins.play("rebase", *words, same_words=False).code, 1)
            # The real one has copied before it finds out that the format is missing.
            twins.compare_disks("base.qcow2", "mid.qcow2")
            twins.compare_disks("top.qcow2", same_map=False)

    def test_what_is_said(self):
        for words in [["-b", "base.qcow2", "-F", "qcow2"], ["-b", ""], ["-b", "", "-F", "qcow2"], ["-q", "-b", ""],
                      ["-u", "-b", "base.qcow2", "-F", "qcow2"], ["-u"], ["-u", "-F", "qcow2"], ["-u", "-b", ""],
                      ["-U", "-b", "base.qcow2", "-F", "qcow2"], ["-u", "-U", "-b", "base.qcow2", "-F", "qcow2"],
                      ["-t", "none", "-T", "none", "-b", "base.qcow2", "-F", "qcow2"],
                      ["-t", "writethrough", "-b", "base.qcow2", "-F", "qcow2"],
                      ["-t", "unsafe", "-b", "base.qcow2", "-F", "qcow2"], ["-c", "-b", "base.qcow2", "-F", "qcow2"],
                      ["-u", "-c", "-q", "-b", "base.qcow2", "-F", "qcow2"], ["-b", "mid.qcow2", "-F", "qcow2"],
                      ["-b", "./base.qcow2", "-F", "qcow2"], ["-b", "disk.raw", "-F", "raw"], ["-c", "-b", ""]]:
            with Twins(self) as twins:
                simple(twins)
                twins.play("rebase", *words, "top.qcow2")
                twins.compare_disks("base.qcow2", "mid.qcow2", "top.qcow2", same_map="own")
        with Twins(self) as twins:
            simple(twins)
            twins.play("rebase", "--image-opts", "-b", "base.qcow2", "-F", "qcow2", "driver=qcow2,file.filename=top.qcow2")
            twins.compare_disks("top.qcow2")
            name = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"mid.qcow2"}}'
            twins.play("rebase", "-b", name, "-F", "qcow2", "top.qcow2")
            twins.compare_disks("top.qcow2")
            twins.play("rebase", "-u", "-b", "nosuch", "-F", "qcow2", "top.qcow2")
            self.assertEqual(run(twins.tool, "info", "top.qcow2", cwd=twins.ours).text.count("backing file: nosuch"), 1)

    def test_progress(self):
        with Twins(self) as twins:
            simple(twins)
            done = twins.play("rebase", "-p", "-b", "", "top.qcow2", same_words=False)
            self.assertTrue(done.out.endswith(b"    (100.00/100%)\r\n"), done)

    def test_what_is_wrong_is_said_in_order(self):
        """The line of -p comes first, then caches, the image, -c, the format, the new backing file, the header."""
        with Twins(self) as twins:
            simple(twins)
            for words in [["-t", "foo", "-T", "bar", "-b", "base.qcow2", "-F", "baz", "nosuch.qcow2"],
                          ["-b", "nosuch", "-F", "foo", "nosuch.qcow2"], ["-c", "-b", "nosuch", "-F", "foo", "disk.raw"],
                          ["-b", "nosuch", "-F", "foo", "top.qcow2"], ["-b", "nosuch", "top.qcow2"],
                          ["-b", "nosuch", "-F", "raw", "-f", "raw", "disk.raw"], ["-b", "base.qcow2", "-f", "raw", "disk.raw"],
                          ["-u", "-F", "qcow2", "-f", "raw", "disk.raw"], ["-u", "-f", "raw", "disk.raw"],
                          ["-b", "disk.raw", "-F", "qcow2", "top.qcow2"]]:
                for progress in ([], ["-p"]):
                    twins.play("rebase", *progress, *words, same_words=not progress)
                    out = run(twins.tool, "rebase", *progress, *words, cwd=twins.ours, ok=(1,)).out
                    self.assertEqual(out.startswith(b"    (0.00/100%)\r"), bool(progress), words)
            twins.compare_disks("base.qcow2", "mid.qcow2", "top.qcow2")

    def test_refused_before_it_copies(self):
        """Without -F: D37."""
        with Twins(self) as twins:
            simple(twins)
            before = open(os.path.join(twins.ours, "top.qcow2"), "rb").read()
            twins.play("rebase", "-b", "disk.raw", "top.qcow2")
            self.assertEqual(before, open(os.path.join(twins.ours, "top.qcow2"), "rb").read())

    def test_zeros_behind_the_old_end(self):
        """What differs becomes data, but for runs that begin behind the end of the old backing file."""
        for shape in ("cluster_size=64k", "extended_l2=on", "cluster_size=4k", "cluster_size=512"):
            for size in ("300k", "98816", "0"):
                for words in ([], ["-c"]) if shape != "extended_l2=on" else ([],):
                    with Twins(self) as twins:
                        chain(twins, ("old.raw", "", size), ("top.qcow2", shape, MIB))
                        twins.prepare("create", "-q", "-f", "raw", "new.raw", "1M")
                        twins.write("new.raw", "write -q -P 9 0 320k", "write -q -P 8 400k 300k", options=("-f", "raw"))
                        twins.share()
                        twins.play("rebase", *words, "-b", "new.raw", "-F", "raw", "top.qcow2")
                        twins.compare_disks("top.qcow2", same_map="own")

    def test_names_are_relative_to_the_image(self):
        with Twins(self) as twins:
            simple(twins)
            for folder in (twins.real, twins.ours):
                os.mkdir(os.path.join(folder, "sub"))
                os.rename(os.path.join(folder, "top.qcow2"), os.path.join(folder, "sub", "top.qcow2"))
                qemu_img("create", "-q", "-f", "qcow2", "sub/new.qcow2", "1M", cwd=folder)
            twins.play("rebase", "-u", "-b", "../mid.qcow2", "-F", "qcow2", "sub/top.qcow2")
            twins.play("rebase", "-b", "new.qcow2", "-F", "qcow2", "sub/top.qcow2")
            twins.play("rebase", "-b", "base.qcow2", "-F", "qcow2", "sub/top.qcow2")
            twins.compare_disks("sub/top.qcow2")
            twins.play("rebase", "-b", "../base.qcow2", "-F", "qcow2", "sub/top.qcow2")
            twins.compare_disks("sub/top.qcow2")


class Disks(Case):
    """Chains of every shape: contents stay."""

    def play(self, rng, old, new, top, words=()):
        """`old`, `new`: layers from the bottom up; `top`: the overlay's."""
        if top[1] == "extended_l2=on":
            words = ()  # qemu-img 10.0 -c dies of an assertion there (img_rebase).
        with Twins(self) as twins:
            for layers in (old, new):
                chain(twins, *layers)
            words_for_top = ["-b", old[-1][0], "-F", "raw" if old[-1][0].endswith(".raw") else "qcow2"] if old else []
            twins.prepare("create", "-q", "-f", "qcow2", *(["-o", top[1]] if top[1] else []), *words_for_top, top[0], str(top[2]))
            for name, options, size in [*old, *new, top]:
                raw = name.endswith(".raw")
                streams = not raw and "data_file" not in (options or "") and "cluster_size" not in (options or "")
                twins.write(name, *scribble(rng, size, streams, "compat=0.10" not in (options or "")),
                            options=("-f", "raw" if raw else "qcow2"))
            twins.share()
            target = ["-b", new[-1][0], "-F", "raw" if new[-1][0].endswith(".raw") else "qcow2"] if new else ["-b", ""]
            twins.play("rebase", *words, *target, top[0])
            raw = any(name.endswith(".raw") for name, _, _ in [*old, *new])
            # Of version 2 the real one loses what lay behind the end of the old disk where it had nothing there: D40.
            twins.compare_disks(*(name for name, _, _ in [*old, *new, top]), same_map="own" if raw else top[1] != "compat=0.10")
            before = os.path.join(twins.real, "contents")
            self.assertTrue(os.path.exists(before))

    def test_shapes(self):
        rng = random.Random(11)
        for shape in SHAPES:
            for other in rng.sample(SHAPES, 3):
                sizes = [rng.choice([MIB, 2 * MIB, MIB + 512, 3 * MIB - 512]) for _ in range(3)]
                compress = ["-c"] if rng.random() < 0.3 else []
                self.play(rng, [("old.qcow2", other, sizes[0])], [("new.qcow2", rng.choice(SHAPES), sizes[1])],
                          ("top.qcow2", shape, sizes[2]), compress)

    def test_raw_and_none(self):
        rng = random.Random(12)
        for turn in range(8):
            sizes = [rng.choice([MIB, 2 * MIB, 3 * MIB]) for _ in range(3)]
            old = [] if turn % 4 == 0 else [("old.raw", None, sizes[0])]
            new = [] if turn % 4 == 1 else [("new.raw", None, sizes[1])]
            self.play(rng, old, new, ("top.qcow2", rng.choice(SHAPES), sizes[2]), rng.choice([[], ["-c"]]))

    def test_deep(self):
        """Chains of several, with images that both have."""
        rng = random.Random(13)
        for turn in range(8):
            size = lambda: rng.choice([MIB, MIB + 64 * KIB, 2 * MIB, 3 * MIB])  # noqa: E731
            with Twins(self) as twins:
                chain(twins, ("root.qcow2", rng.choice(SHAPES), size()), ("a.qcow2", rng.choice(SHAPES), size()),
                      ("b.qcow2", rng.choice(SHAPES), size()), ("top.qcow2", rng.choice(SHAPES), size()))
                at = rng.choice(["root.qcow2", "a.qcow2"])
                twins.prepare("create", "-q", "-f", "qcow2", "-b", at, "-F", "qcow2", "c.qcow2", str(size()))
                twins.prepare("create", "-q", "-f", "qcow2", "-b", "c.qcow2", "-F", "qcow2", "d.qcow2", str(size()))
                for name in ("root", "a", "b", "c", "d", "top"):
                    twins.write(f"{name}.qcow2", *scribble(rng, MIB, False, False))
                twins.share()
                for target in ("d", "root", "c", "b"):
                    twins.play("rebase", "-b", f"{target}.qcow2", "-F", "qcow2", "top.qcow2")
                    twins.compare_disks("top.qcow2")
                twins.play("rebase", "-b", "", "top.qcow2")
                twins.compare_disks("top.qcow2")

    def test_maps(self):
        """Without zeros in the old disk what is allocated is the same, too."""
        rng = random.Random(14)
        for shape in ["", "cluster_size=4k", "extended_l2=on", "compat=0.10"]:
            with Twins(self) as twins:
                for name in ("old.qcow2", "new.qcow2"):
                    twins.prepare("create", "-q", "-f", "qcow2", name, "1M")
                    twins.write(name, "write -q -P 77 0 1M", *scribble(rng, MIB, zeros=False))
                twins.prepare("create", "-q", "-f", "qcow2", *(["-o", shape] if shape else []), "-b", "old.qcow2", "-F",
                              "qcow2", "top.qcow2")
                twins.write("top.qcow2", "write -q -P 5 300k 9k")
                twins.share()
                twins.play("rebase", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2")
                twins.compare_disks("top.qcow2")

    def test_same_file_in_another_format(self):
        """The bytes of an image are no disk that both chains have: qemu-img takes them for one, and contents change."""
        with Twins(self) as twins:
            chain(twins, ("base.qcow2", "", "1M"), ("top.qcow2", "", "1M"))
            twins.write("base.qcow2", "write -q -P 1 0 1M")
            twins.share()
            run(twins.tool, "rebase", "-b", "base.qcow2", "-F", "raw", "top.qcow2", cwd=twins.ours)
            qemu_io("top.qcow2", "read -q -P 1 0 1M", cwd=twins.ours)

    def test_data_file(self):
        rng = random.Random(15)
        self.play(rng, [("old.qcow2", "", MIB)], [("new.qcow2", "data_file=new.data", 2 * MIB)],
                  ("top.qcow2", "data_file=top.data", 2 * MIB))
        with Twins(self) as twins:
            chain(twins, ("old.qcow2", "", MIB), ("top.qcow2", "data_file=top.data", MIB))
            twins.share()
            twins.play("rebase", "-c", "-b", "", "top.qcow2")
            twins.compare_disks("top.qcow2")

    def test_snapshots_and_bitmaps_stay(self):
        with Twins(self) as twins:
            chain(twins, ("base.qcow2", "", MIB), ("top.qcow2", "", MIB))
            twins.prepare("create", "-q", "-f", "qcow2", "new.qcow2", "1M")
            twins.prepare("bitmap", "--add", "top.qcow2", "t")
            twins.write("base.qcow2", "write -q -P 9 300k 300k")
            twins.write("top.qcow2", "write -q -P 1 0 256k")
            twins.prepare("snapshot", "-c", "one", "top.qcow2")
            twins.write("top.qcow2", "write -q -P 2 0 128k", "write -q -z 512k 64k")
            twins.share()
            twins.play("rebase", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2")
            twins.compare_disks("top.qcow2")


@only_byre
class Own(Case):
    """Under its own name."""

    def make(self):
        for name, *words in (("old.qcow2", "64M"), ("new.qcow2", "32M")):
            qemu_img("create", "-q", "-f", "qcow2", name, *words, cwd=self.folder)
        qemu_img("create", "-q", "-f", "qcow2", "-b", "old.qcow2", "-F", "qcow2", "top.qcow2", cwd=self.folder)
        step = 256 * KIB
        qemu_io("old.qcow2", *(f"write -q -P {n % 200 + 5} {n * step} {step}" for n in range(0, 256, 2)), cwd=self.folder)
        qemu_io("new.qcow2", "write -q -P 1 0 32M", cwd=self.folder)
        qemu_io("top.qcow2", "write -q -P 2 1M 1M", cwd=self.folder)

    def contents(self, name):
        run(BYRE, "convert", "--force", "-q", "-O", "raw", name, "contents", cwd=self.folder)
        with open(self.path("contents"), "rb") as file:
            return file.read()

    def test_json_and_refusals(self):
        self.make()
        for words, text in [(["-b", "top.qcow2", "-F", "qcow2"], "cycle"), (["-u", "-b", "top.qcow2", "-F", "qcow2"], "cycle"),
                            (["-b", "new.qcow2"], "format"), (["-b", "new.qcow2", "-F", "raw"], "--force")]:
            done = run(BYRE, "rebase", *words, "top.qcow2", cwd=self.folder, ok=(1,))
            self.assertIn(text, done.text)
        done = run(BYRE, "rebase", "--output=json", "-b", "new.qcow2", "-B", "qcow2", "top.qcow2", cwd=self.folder)
        self.assertEqual(json.loads(done.out), {"filename": "top.qcow2", "backing-filename": "new.qcow2",
                                                "backing-filename-format": "qcow2"})
        done = run(BYRE, "rebase", "--output=json", "-u", "top.qcow2", cwd=self.folder)
        self.assertEqual(json.loads(done.out), {"filename": "top.qcow2"})

    def test_snapshots_are_warned_of(self):
        self.make()
        qemu_img("snapshot", "-c", "one", "top.qcow2", cwd=self.folder)
        done = run(BYRE, "rebase", "--output=json", "-b", "", "top.qcow2", cwd=self.folder)
        self.assertIn("snapshots of 'top.qcow2'", json.loads(done.err)["warning"]["message"])

    def test_a_header_without_room_is_found_first(self):
        self.make()
        qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "-b", "old.qcow2", "-F", "qcow2", "small.qcow2",
                 cwd=self.folder)
        os.rename(self.path("new.qcow2"), self.path("n" * 200 + ".qcow2"))
        os.makedirs(self.path("d" * 200))
        os.rename(self.path("n" * 200 + ".qcow2"), os.path.join(self.path("d" * 200), "n" * 200 + ".qcow2"))
        before = os.path.getsize(self.path("small.qcow2"))
        done = run(BYRE, "rebase", "-F", "qcow2", "-b", f"{'d' * 200}/{'n' * 200}.qcow2", "small.qcow2", cwd=self.folder, ok=(1,))
        self.assertIn("does not fit", done.text)
        self.assertEqual(before, os.path.getsize(self.path("small.qcow2")))

    def test_killed_anywhere(self):
        self.make()
        rng = random.Random(6)
        before = self.contents("top.qcow2")
        targets = ["new.qcow2", "old.qcow2"]
        for turn in range(10):
            kind = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM][turn % 3]
            process = subprocess.Popen([BYRE, "rebase", "-F", "qcow2", "-b", targets[turn // 4 % 2], "top.qcow2"],
                                       cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            time.sleep(rng.random() * 0.25)
            process.send_signal(kind)
            process.communicate()
            self.assertIn(process.returncode, (0, -kind, 128 + kind))
            done = qemu_img("check", "-f", "qcow2", "top.qcow2", cwd=self.folder, ok=None)
            self.assertIn(done.code, (0, 3), done)
            self.assertEqual(before, self.contents("top.qcow2"))
        run(BYRE, "rebase", "--free-leaks", "-b", "", "top.qcow2", cwd=self.folder)
        self.assertEqual(before, self.contents("top.qcow2"))
        qemu_img("check", "-q", "top.qcow2", cwd=self.folder)


if __name__ == "__main__":
    main()
