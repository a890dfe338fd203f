# SPDX-License-Identifier: Apache-2.0
"""The same command line for the real qemu-img and for byre under that name, on equal files.

    twins = Twins(case)
    twins.prepare("create", "-q", "-f", "qcow2", "base.qcow2", "1M")     # by the real one, in both folders
    twins.play("commit", "top.qcow2")                                    # by each in its own: output, exit code
    twins.compare_disks("base.qcow2", "top.qcow2")                       # contents, map, names, a clean check
"""
import json
import os
import re
import shutil

from harness import BYRE, qemu_img, qemu_io, run


def normal(text):
    """Output without what versions and hosts make of it."""
    return re.sub(r"^Try '.*$", "Try --help", text.decode(errors="replace"), flags=re.MULTILINE)


class Twins:
    def __init__(self, case):
        self.case = case
        self.real, self.ours = case.path("real"), case.path("ours")
        for folder in (self.real, self.ours):
            os.mkdir(folder)
        self.tool = case.path("qemu-img")
        os.symlink(BYRE, self.tool)
        self.qemu_img = shutil.which("qemu-img")
        self.said = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for folder in (self.real, self.ours):
            shutil.rmtree(folder)
        os.unlink(self.tool)

    def prepare(self, *words):
        """Files are made once, so that both have the same bytes."""
        self.said.append(words)
        qemu_img(*words, cwd=self.real)

    def write(self, name, *commands, options=("-f", "qcow2")):
        self.said.append((name, *commands))
        # A stream over a cluster that has data fails: then there is no stream.
        qemu_io(name, *commands, options=options, cwd=self.real, ok=(0, 1))

    def share(self):
        """What was prepared is there for both."""
        shutil.rmtree(self.ours)
        shutil.copytree(self.real, self.ours)

    def play(self, *words, same_words=True):
        """Gives the real one's end.  `same_words`: also what they print is the same, but for progress."""
        self.said.append(words)
        real = run(self.qemu_img, *words, cwd=self.real, ok=None)
        ours = run(self.tool, *words, cwd=self.ours, ok=None)
        told = f"{self.said}\n--- qemu-img\n{real}\n--- byre\n{ours}"
        self.case.assertEqual(real.code, ours.code, told)
        if same_words:
            self.case.assertEqual(normal(real.out), normal(ours.out), told)
            self.case.assertEqual(normal(real.err), normal(ours.err), told)
        return real

    def map_of(self, folder, name, kind, own=False):
        """Pieces that are alike and follow each other are one.  `own`: of what lies below only that it does."""
        pieces = []
        for part in json.loads(qemu_img("map", "--output=json", "-f", kind, name, cwd=folder).out):
            what = ["below"] if own and part["depth"] else [part[key] for key in ("depth", "zero", "data")]
            if pieces and pieces[-1][2] == what:
                pieces[-1][1] += part["length"]
            else:
                pieces.append([part["start"], part["length"], what])
        return pieces

    def info_of(self, folder, name, kind):
        info = json.loads(qemu_img("info", "--output=json", "-f", kind, name, cwd=folder).out)
        data = info.get("format-specific", {}).get("data", {})
        return {**{key: info.get(key) for key in ("virtual-size", "backing-filename", "backing-filename-format",
                                                 "dirty-flag", "cluster-size")},
                "snapshots": len(info.get("snapshots", [])), "bitmaps": data.get("bitmaps"), "compat": data.get("compat")}

    def compare_disks(self, *names, same_map=True):
        """Contents by the real qemu-img; what an image says of itself; its map; and that it is sound.  `same_map="own"`: of
        a raw file below the host's file system decides what is a hole."""
        for name in names:
            kind = "raw" if name.endswith(".raw") else "qcow2"
            told = f"{self.said}: {name}"
            if kind == "qcow2":
                done = qemu_img("check", "-f", "qcow2", name, cwd=self.ours, ok=None)
                self.case.assertEqual(done.code, 0, f"{told}: {done}")
                self.case.assertEqual(self.info_of(self.real, name, kind), self.info_of(self.ours, name, kind), told)
            self.compare_contents(name, kind, told)
            if same_map and kind == "qcow2":
                self.case.assertEqual(*(self.map_of(folder, name, kind, same_map == "own") for folder in (self.real, self.ours)), told)

    def compare_contents(self, name, kind, told):
        for folder in (self.real, self.ours):
            qemu_img("convert", "-q", "-f", kind, "-O", "raw", name, os.path.join(folder, "contents"), cwd=folder)
        done = run("cmp", os.path.join(self.real, "contents"), os.path.join(self.ours, "contents"), ok=None)
        self.case.assertEqual(done.code, 0, f"{told}: {done}")
