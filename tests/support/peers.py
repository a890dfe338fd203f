# SPDX-License-Identifier: Apache-2.0
"""The QEMU programs that byre is measured by: importing this puts them in front of PATH, under their own names.

BYRE_QEMU chooses them:
    10       QEMU 10.0, as `./run peers` brings it; this is the interface that byre has, and the default
    11       the newest one that `./run peers` knows, if it could be had
    system   those that are installed (Debian 12: QEMU 7.2)
    FOLDER   those in that folder
"""
import os
import re
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FOLDER = os.environ.get("BYRE_PEERS", os.path.join(ROOT, "build", "peers"))
CHOICE = os.environ.get("BYRE_QEMU", "10")


def folder(choice):
    """Where the programs of that choice lie; None: where PATH finds them."""
    if choice == "system":
        return None
    path = os.path.abspath(choice) if "/" in choice else os.path.join(FOLDER, choice)
    if not os.access(os.path.join(path, "qemu-img"), os.X_OK):
        raise SystemExit(f"{path} has no qemu-img; `./run peers` brings QEMU 10.0, BYRE_QEMU=system takes what is installed")
    return path


def version():
    """Of the chosen qemu-img: (10, 0, 13)."""
    text = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.search(r"version (\d+)\.(\d+)\.(\d+)", text).groups()))


_chosen = folder(CHOICE)
if _chosen and os.environ["PATH"].split(":")[0] != _chosen:
    os.environ["PATH"] = f"{_chosen}:{os.environ['PATH']}"
