#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Jobs of `byre daemon` beside those of QEMU's storage daemon, in one run and in turns; figures are medians.

1. How long commit, mirror, backup and stream of a disk take that nobody uses, from the command to the end of the job, and the tools'
   `convert` of the same disk: half of it random data, half holes, in the page cache.  convert makes its target durable, too.
2. What a guest keeps of its requests while a job copies its disk, which is full: 4 KiB at random by fio over NBD at depth 16, beside
   what it had just before, without a job; and how much the job copied in that time.
3. What many nodes, exports and jobs take, and what they cost while nothing happens (byre alone).

    ./run bench jobs [--rounds 5] [--size 512] [--seconds 5] [--only idle,guest,cost] [--folder DIR]
"""
import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "support"))
sys.path.append(HERE)
from harness import BYRE, MIB  # noqa: E402
from qmp import Daemon  # noqa: E402
from _disks import copy, make_disk  # noqa: E402

KINDS = ("qemu", "byre")
JOBS = ("commit", "mirror", "backup", "stream")


def create(path, size, *words):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, path, str(size * MIB)], check=True)


def turns(round_):
    return KINDS if round_ % 2 == 0 else KINDS[::-1]


class Side:
    """One daemon with the disk `top`, and below it `base` if there is such a file."""

    def __init__(self, kind, folder, *words):
        self.daemon = Daemon(folder, kind, *words)
        self.folder = folder
        self.monitor = self.daemon.monitor()
        self.made = 0

    def add(self, name, backing=None):
        self.monitor.do("blockdev-add", {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": f"{name}.qcow2"},
                                         "backing": backing})

    def target(self, size):
        """An empty image as a node; its name."""
        name = f"t{self.made}"
        self.made += 1
        create(os.path.join(self.folder, f"{name}.qcow2"), size)
        self.add(name)
        return name

    def begin(self, job, target):
        common = {"job-id": "j", "device": "top", "auto-dismiss": False}
        if job == "backup":
            self.monitor.do("blockdev-backup", {**common, "target": target, "sync": "full"})
        elif job == "mirror":
            self.monitor.do("blockdev-mirror", {**common, "target": target, "sync": "full"})
        else:
            self.monitor.do(f"block-{job}", common)

    def end(self, job):
        """Waits for the job; a mirror is left as a copy, a commit leads its users to the base."""
        if job in ("mirror", "commit"):
            self.monitor.event("BLOCK_JOB_READY")
            self.monitor.do(*(("block-job-cancel", {"device": "j"}) if job == "mirror" else ("job-complete", {"id": "j"})))
        self.concluded()

    def concluded(self):
        self.monitor.until_event("JOB_STATUS_CHANGE", {"status": "concluded", "id": "j"})
        info = self.monitor.do("query-jobs")[0]
        self.monitor.do("job-dismiss", id="j")
        if "error" in info and "ancel" not in info["error"]:
            raise SystemExit(f"{info}")

    def stop(self):
        self.monitor.do("quit")
        self.daemon.end(None)


@contextlib.contextmanager
def side(kind, folder, job, *words):
    """The disk `top.qcow2` is there, and for jobs of a chain `base.qcow2`."""
    one = Side(kind, folder, *words)
    try:
        if job in ("commit", "stream"):
            one.add("base")
        one.add("top", "base" if job in ("commit", "stream") else None)
        yield one
        one.stop()
    finally:
        one.daemon.kill()


# --- 1 --------------------------------------------------------------------------------------------

def prepare(job, full, size):
    """What the job copies is `full`; it lies in the folder at hand."""
    if not os.path.exists("empty0.qcow2"):
        create("empty0.qcow2", size)
    if job == "stream":
        copy({"base.qcow2": full, "top.qcow2": "empty0.qcow2"})
    else:
        copy({"top.qcow2": full, "base.qcow2": "empty0.qcow2"})
    if job in ("commit", "stream"):
        subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"], check=True)
    with open("top.qcow2", "rb") as file:  # In the page cache.
        while file.read(MIB):
            pass


def idle(options):
    make_disk("half.raw", options.size * MIB)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "half.raw", "half.qcow2"], check=True)
    times = {(job, kind): [] for job in (*JOBS, "convert") for kind in KINDS}
    for round_ in range(options.rounds):
        for job in (*JOBS, "convert"):
            for kind in turns(round_):
                times[job, kind].append(idle_once(job, kind, options))
    print(f"\n{options.size} MiB, half of it data\n{'seconds':20} {'qemu':>8} {'byre':>8} {'ratio':>7}   to its own convert: {'qemu':>6} {'byre':>6}")
    medians = {key: statistics.median(value) for key, value in times.items()}
    for job in (*JOBS, "convert"):
        theirs, ours = (medians[job, kind] for kind in KINDS)
        own = [medians[job, kind] / medians["convert", kind] for kind in KINDS]
        print(f"{job:20} {theirs:8.3f} {ours:8.3f} {ours / theirs:7.2f} {'':22} {own[0]:6.2f} {own[1]:6.2f}", flush=True)


def idle_once(job, kind, options):
    if job == "convert":
        with contextlib.suppress(FileNotFoundError):
            os.unlink("out.qcow2")
        os.sync()
        tool = "qemu-img" if kind == "qemu" else BYRE
        began = time.monotonic()
        subprocess.run([tool, "convert", "-t", "writeback", "-f", "qcow2", "-O", "qcow2", "half.qcow2", "out.qcow2"], check=True)
        return time.monotonic() - began
    prepare(job, "half.qcow2", options.size)
    with side(kind, os.getcwd(), job) as one:
        target = one.target(options.size) if job in ("mirror", "backup") else None
        began = time.monotonic()
        one.begin(job, target)
        one.end(job)
        return time.monotonic() - began


# --- 2 --------------------------------------------------------------------------------------------

def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Guest:
    """fio on the export, in the background; what the server uses meanwhile counts."""

    def __init__(self, server, mode, size, seconds):
        self.server, self.before = server, cpu_seconds(server)
        self.process = subprocess.Popen(
            ["fio", "--name=j", "--ioengine=nbd", f"--uri=nbd+unix:///top?socket={os.path.abspath('nbd')}", f"--rw={mode}", "--bs=4k",
             "--iodepth=16", f"--size={size}M", "--time_based", f"--runtime={seconds}", "--randrepeat=1", "--norandommap",
             "--output-format=json"], stdout=subprocess.PIPE, text=True)

    def result(self):
        """IOPS, and microseconds of the server for each request."""
        printed, _ = self.process.communicate()
        if self.process.returncode:
            raise SystemExit(printed)
        job = json.loads(printed[printed.index("{"):])["jobs"][0]
        used = cpu_seconds(self.server) - self.before
        count = job["read"]["total_ios"] + job["write"]["total_ios"]
        return job["read"]["iops"] + job["write"]["iops"], used / max(1, count) * 1e6


def busy_once(job, kind, mode, options):
    """IOPS without and with the job, CPU for each request without and with it, and MiB/s that the job copied."""
    prepare(job, "full.qcow2", options.size)
    with side(kind, os.getcwd(), job, "--nbd-server", "addr.type=unix,addr.path=nbd") as one:
        one.monitor.do("block-export-add", {"type": "nbd", "id": "e", "node-name": "top", "writable": True})
        pid = one.daemon.process.pid
        Guest(pid, mode, options.size, 1).result()
        alone = Guest(pid, mode, options.size, options.seconds).result()
        targets = [one.target(options.size) for _ in range(12 if job == "backup" else 1)] if job != "commit" else [None]
        guest = Guest(pid, mode, options.size, options.seconds)
        began, done = time.monotonic(), 0
        if job == "backup":
            for target in targets:  # One after the other, as long as the guest works.
                one.begin(job, target)
                while guest.process.poll() is None and not is_over(one):
                    time.sleep(0.05)
                done += progress(one)
                if guest.process.poll() is not None:
                    break
                one.concluded()
            beside = guest.result()
            seconds = time.monotonic() - began
            if one.monitor.do("query-jobs"):
                if not is_over(one):
                    one.monitor.do("block-job-cancel", {"device": "j", "force": True})
                one.concluded()
        else:
            one.begin(job, targets[0])
            beside = guest.result()
            seconds = time.monotonic() - began
            done = progress(one)
            one.monitor.do("block-job-cancel", {"device": "j", "force": True})
            one.concluded()
        one.monitor.do("block-export-del", {"id": "e", "mode": "hard"})
        one.monitor.event("BLOCK_EXPORT_DELETED")
    return alone[0], beside[0], alone[1], beside[1], done / MIB / seconds


def progress(one):
    return sum(job["current-progress"] for job in one.monitor.do("query-jobs"))


def is_over(one):
    return any(job["status"] == "concluded" for job in one.monitor.do("query-jobs"))


def busy(options):
    with open("full.raw", "wb") as disk:
        for _ in range(options.size):
            disk.write(os.urandom(MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "full.raw", "full.qcow2"], check=True)
    os.unlink("full.raw")
    modes, jobs = ("randread", "randwrite"), ("commit", "mirror", "backup")
    figures = {}
    for round_ in range(options.rounds):
        for job in jobs:
            for mode in modes:
                for kind in turns(round_):
                    figures.setdefault((job, mode, kind), []).append(busy_once(job, kind, mode, options))
    head = f" {'IOPS alone':>11} {'beside':>8} {'share':>6} {'by CPU':>6} {'MiB/s':>7}"
    print(f"\na guest beside a job, {options.size} MiB of data; by CPU: what the daemon uses for a request alone, to all that it uses for one "
          f"beside the job\n{'':20}{'qemu':>43}{'byre':>43}\n{'':20}{head}{head}")
    for job in jobs:
        for mode in modes:
            words = f"{job + ', ' + mode:20}"
            for kind in KINDS:
                rows = figures[job, mode, kind]
                alone, beside, _, _, speed = (statistics.median(row[place] for row in rows) for place in range(5))
                share, by_cpu = (statistics.median(row[one] / row[other] for row in rows) for one, other in ((1, 0), (2, 3)))
                words += f" {alone:11.0f} {beside:8.0f} {share:6.2f} {by_cpu:6.2f} {speed:7.0f}"
            print(words, flush=True)


# --- 3 --------------------------------------------------------------------------------------------

def memory(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return int(re.search(r"^Private_Dirty:\s+(\d+)", file.read(), re.M).group(1))


def wakes(pid):
    """How often its threads went to sleep."""
    count = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status", encoding="ascii") as file:
            count += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", file.read(), re.M).group(1))
    return count


def cost(options):
    """200 nodes that are images over files (so 400), 50 exports, 20 mirrors that are ready and 20 images more for those."""
    nodes, exports, jobs = 200, 50, 20
    for name in [f"n{i}" for i in range(nodes)] + [f"m{i}" for i in range(jobs)]:
        create(f"{name}.qcow2", 64)
    one = Side("byre", os.getcwd(), "--nbd-server", "addr.type=unix,addr.path=nbd")
    try:
        pid, before = one.daemon.process.pid, memory(one.daemon.process.pid)
        print(f"\n{'':34} {'KiB':>8} {'KiB each':>9}\n{'an empty daemon':34} {before:8}")

        def row(what, count):
            nonlocal before
            now = memory(pid)
            print(f"{f'{count} {what}':34} {now - before:8} {(now - before) / count:9.1f}", flush=True)
            before = now
        for i in range(nodes):
            one.add(f"n{i}")
        row("images, each over a file", nodes)
        for i in range(exports):
            one.monitor.do("block-export-add", {"type": "nbd", "id": f"e{i}", "node-name": f"n{i}", "writable": True})
        row("exports", exports)
        for i in range(jobs):
            one.add(f"m{i}")
        row("images for the jobs", jobs)
        for i in range(jobs):
            one.monitor.do("blockdev-mirror", {"job-id": f"j{i}", "device": f"n{i}", "target": f"m{i}", "sync": "full"})
            one.monitor.event("BLOCK_JOB_READY")
        row("mirrors that are ready", jobs)
        # An image has its tables when it is used for the first time.
        for i in range(exports):
            subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 64k", f"nbd+unix:///n{i}?socket={os.path.abspath('nbd')}"],
                           check=True, stdout=subprocess.DEVNULL)
        row("exports, by their first write", exports)
        time.sleep(3)
        slept, count = options.seconds, wakes(pid)
        time.sleep(slept)
        print(f"it woke up {wakes(pid) - count} times in {slept} s in which nothing happened", flush=True)
        for i in range(jobs):
            one.monitor.do("block-job-cancel", {"device": f"j{i}", "force": True})
        one.stop()
    finally:
        one.daemon.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512, help="MiB")
    parser.add_argument("--seconds", type=int, default=5, help="of each run of fio")
    parser.add_argument("--only", default="idle,guest,cost", help="which parts")
    parser.add_argument("--folder", help="where the disks lie")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, medians of {options.rounds} turns", flush=True)
    parts = {"idle": idle, "guest": busy, "cost": cost}
    for part in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix="byre-bench-", dir=options.folder) as folder:
            os.chdir(folder)
            parts[part](options)
            os.chdir("/")


if __name__ == "__main__":
    main()
