# SPDX-License-Identifier: Apache-2.0
"""Disks that several scripts make."""
import os
import subprocess

MIB = 1 << 20


def make_disk(path, size):
    """Every other MiB is random data, the rest are holes."""
    with open(path, "wb") as disk:
        for at in range(0, size, 2 * MIB):
            disk.seek(at)
            disk.write(os.urandom(min(MIB, size - at)))
        disk.truncate(size)


def copy(names):
    """Each name becomes a copy of the file that it stands for, and what is written is on the disk."""
    for made, source in names.items():
        subprocess.run(["cp", "--sparse=always", source, made], check=True)
    os.sync()
