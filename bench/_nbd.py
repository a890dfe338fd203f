# SPDX-License-Identifier: Apache-2.0
"""Servers and clients over NBD for the scripts here, and the rows of the group nbd.

byre serve beside qemu-nbd on one full image, past the page cache, and fio's nbd engine as the client of both.  fio on the raw file
is the limit of the disk; nbdkit with its file plugin (on the raw file, through the page cache) is told beside.
"""
import json
import os
import shutil
import signal
import subprocess
import time

from _rows import disk_of, full_disk
from _side_by_side import BYRE, KIB, Row, Sample, fail


def wait_for(path, process):
    for _ in range(1000):
        if os.path.exists(path):
            return
        if process.poll() is not None:
            fail(f"the server ended with {process.returncode}")
        time.sleep(0.01)
    fail(f"{path} did not appear")


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * KIB for line in file if line.startswith("VmHWM:"))


def byre_serves(image, socket, *extra):
    return [BYRE, "serve", image, "--socket", socket, "--format", "qcow2", "--quiet", *extra]


def start(command, socket, **popen):
    if os.path.exists(socket):
        os.unlink(socket)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **popen)
    wait_for(socket, process)
    return process


def end(process):
    process.send_signal(signal.SIGTERM)
    process.wait()


def fio(socket, mode, size, seconds, *extra, block="4k", depth=32):
    """What fio counted, of all its jobs together."""
    command = ["fio", "--name=j", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}", f"--rw={mode}", f"--bs={block}",
               f"--iodepth={depth}", f"--size={size}", "--time_based", f"--runtime={round(seconds * 1000)}ms", "--randrepeat=1", "--group_reporting",
               "--output-format=json", *extra]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    job = json.loads(printed[printed.index("{"):])["jobs"][0]  # Notes of the client library may come first.
    return job["write"] if "write" in mode else job["read"]


def server_words(place, side, socket):
    if side.is_byre:
        return byre_serves(place.path("full.qcow2"), socket, "--cache", "none")
    if side.kind == "peer":
        return [*side.program("qemu-nbd"), "-f", "qcow2", "-k", socket, "-t", "-e", "16", "--cache=none", "--aio=io_uring", "--discard=unmap",
                place.path("full.qcow2")]
    return ["nbdkit", "-f", "-U", socket, "file", place.path("full.raw")]


def turn(mode, block, depth, jobs):
    def play(place, side):
        seconds = place.pick(0.6, 0.3)
        if side.name == "fio on raw":
            return place.fio("full.raw", f"--rw={mode}", f"--bs={block}", f"--iodepth={depth}", f"--numjobs={jobs}", "--group_reporting",
                             f"--size={disk_of(place)}", "--time_based", f"--runtime={round(seconds * 1000)}ms", "--buffer_pattern=0x07")
        socket = place.path("s")
        server = start(server_words(place, side, socket), socket, stderr=subprocess.DEVNULL)
        try:
            before = cpu_seconds(server.pid)
            counted = fio(socket, mode, disk_of(place), seconds, f"--numjobs={jobs}", "--buffer_pattern=0x07", block=block, depth=depth)
            used = cpu_seconds(server.pid) - before
            memory = peak_memory(server.pid)
        finally:
            end(server)
        if server.returncode not in (0, -signal.SIGTERM):
            fail(f"the server of {side.name} ended with {server.returncode}")
        return Sample(counted["runtime"] / 1000 / counted["total_ios"], used / counted["total_ios"], memory)
    return play


def nbd_rows():
    limits = {name: None for name, program in (("fio on raw", "fio"), ("nbdkit on raw", "nbdkit")) if shutil.which(program)}

    def sound(place, side):
        return [["check", "-q", "-f", "qcow2", "full.qcow2"]]

    for name, mode, block, depth, jobs, bar, cpu in (
            ("4 KiB random reads, depth 32", "randread", "4k", 32, 1, 0.2, 8), ("4 KiB random writes, depth 32", "randwrite", "4k", 32, 1, 0.25, 9),
            ("8 connections of depth 16, reads", "randread", "4k", 16, 8, 0.3, None),
            ("8 connections of depth 16, writes", "randwrite", "4k", 16, 8, 0.3, None),
            ("1 MiB sequential reads", "read", "1M", 8, 1, 0.8, None), ("1 MiB sequential writes", "write", "1M", 8, 1, 0.8, None)):
        yield Row("nbd", name, None, inputs=(full_disk,), turn=turn(mode, block, depth, jobs), unit="request", bar=bar, bar_cpu=cpu,
                  verify=sound, limits=limits, seconds=28)
