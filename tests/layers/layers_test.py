#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the layers and the determinism bans of docs/architecture.md, and nothing else of style."""
import pathlib
import re
import sys
import unittest

SRC = pathlib.Path(__file__).resolve().parents[2] / "src"

LAYERS = {
    "base": set(),
    "format": {"base"},
    "coro": {"base"},
    "io": {"base", "coro"},
    "block": {"base", "coro", "io"},
    "qcow2": {"base", "format", "coro", "io", "block"},
    "qcow1": {"base", "format", "coro", "io", "block"},
    "nbd": {"base", "coro", "io"},
    "remote": {"base", "coro", "io", "block", "nbd"},
    "job": {"base", "format", "coro", "io", "block", "qcow2", "qcow1", "nbd", "remote"},
    "export": {"base", "coro", "io", "block", "nbd"},
    "daemon": {"base", "format", "coro", "io", "block", "qcow2", "qcow1", "nbd", "remote", "job", "export"},
    "cli": {"base", "format", "coro", "io", "block", "qcow2", "qcow1", "nbd", "remote", "job", "export", "daemon"},
    "sim": {"base", "coro", "io"},
}
# The modules of qcow2: which others each may include.  A check validates the engine, so it does not know it: of the core it
# has only what reads a header.  What lies in qcow2/ itself (image.h, open.cc) is the face, and may include all.
MODULES = {
    "core": set(),
    "bitmap": {"core"},
    "guest": {"core", "bitmap"},
    "check": set(),
    "repair": {"check"},
    "ops": {"core", "bitmap", "guest", "check"},
}
ALL_MAY_INCLUDE = {"qcow2/image_options.h", "qcow2/core/image_header.h"}
FACE = "qcow2/image.h"
WHO_SEES_THE_FACE = {"job", "daemon", "cli"}
TEST_SUFFIXES = ("_test.cc", "_bench.cc", "_fuzz.cc")


def sources():
    for path in sorted(SRC.rglob("*")):
        if path.suffix in (".h", ".cc"):
            yield path, path.relative_to(SRC).parts[0]


def is_test(path):
    return path.name.endswith(TEST_SUFFIXES) or "testing" in path.name or path.name.startswith("test_")


def code(path):
    text = path.read_text()
    text = re.sub(r"//[^\n]*", "", text)
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)


class Layers(unittest.TestCase):
    def test_a_file_includes_only_its_own_layer_and_those_below(self):
        wrong = []
        for path, layer in sources():
            allowed = LAYERS[layer] | {layer}
            if is_test(path):
                allowed = allowed | set(LAYERS)  # Tests may use the simulator and what they like.
            for included in re.findall(r'#include "(\w+)/', path.read_text()):
                if included not in allowed:
                    wrong.append(f"{path.relative_to(SRC)} includes {included}/")
        self.assertEqual(wrong, [])

    def test_a_module_of_qcow2_includes_only_what_it_may(self):
        wrong = []
        for path, layer in sources():
            if layer != "qcow2" or is_test(path) or path.parent.name not in MODULES:
                continue
            module = path.parent.name
            for included in re.findall(r'#include "(qcow2/[\w/]+\.h)"', path.read_text()):
                other = included.split("/")[1]
                if included not in ALL_MAY_INCLUDE and other not in MODULES[module] | {module}:
                    wrong.append(f"{path.relative_to(SRC)} includes {included}")
        self.assertEqual(wrong, [])

    def test_every_folder_of_qcow2_is_a_module(self):
        self.assertEqual({p.name for p in (SRC / "qcow2").iterdir() if p.is_dir()}, set(MODULES))

    def test_only_jobs_and_commands_see_the_face_of_the_engine(self):
        users = [
            str(p.relative_to(SRC))
            for p, layer in sources()
            if layer not in WHO_SEES_THE_FACE and not is_test(p) and p.name != "precompiled.h" and f'#include "{FACE}"' in p.read_text()
        ]
        self.assertEqual(users, ["qcow2/image.cc", "qcow2/open.cc"])

    def test_only_the_header_state_changes_the_header_of_an_open_image(self):
        users = [
            str(p.relative_to(SRC))
            for p, layer in sources()
            if layer == "qcow2" and not is_test(p) and "IoTag::header_update" in code(p)
            and p.parent.name != "repair"  # At rest, under an undo journal.
        ]
        self.assertEqual(users, ["qcow2/core/header_state.cc", "qcow2/ops/create.cc"])

    def test_a_check_writes_nothing(self):
        """Neither to the image, nor, outside of check/, into what a scan has found: a result is handed out const."""
        wrong = []
        for path, layer in sources():
            if layer != "qcow2" or is_test(path):
                continue
            text = code(path)
            if path.parent.name == "check":
                if re.search(r"(\.|->)(write|zero|discard|flush|allocate)\(", text):
                    wrong.append(f"{path.relative_to(SRC)} writes")
            elif "ScanResult&" in re.sub(r"const ScanResult&", "", text):
                wrong.append(f"{path.relative_to(SRC)} takes a ScanResult that is not const")
            elif "ScanContext" in text and path.stem != "online_check":
                wrong.append(f"{path.relative_to(SRC)} takes part in a scan")
        self.assertEqual(wrong, [])

    def test_guest_bytes_leave_through_the_data_store_alone(self):
        """What guest/ and ops/ do with the image's file concerns metadata; they write no data file at all."""
        metadata = {"header_read", "l2_load", "l1_shrink_load", "l2_allocate", "l2_update", "l1_grow", "l1_shrink",
                    "l1_update", "snapshot_update", "refcount_allocate", "refcount_table_grow"}
        wrong = []
        for path, layer in sources():
            if layer != "qcow2" or path.parent.name not in ("guest", "ops") or is_test(path) or path.stem == "create":
                continue
            text = code(path)
            for call in re.finditer(r"\b(file|data)->(read|write|zero|discard|allocate)\(([^;]*);", text):
                marks = set(re.findall(r"IoTag::(\w+)", call[3]))
                if call[1] == "data" or call[2] not in ("read", "write") or not marks or not marks <= metadata:
                    wrong.append(f"{path.relative_to(SRC)}: {call[0][:60]}")
        self.assertEqual(wrong, [])

    def test_every_folder_is_a_layer(self):
        self.assertEqual({layer for _, layer in sources()} - set(LAYERS), set())

    def test_only_the_uring_reactor_includes_liburing(self):
        users = {p.name for p, _ in sources() if "<liburing.h>" in p.read_text()}
        self.assertLessEqual(users, {"uring_reactor.cc"})

    def test_only_bytes_h_casts_by_force(self):
        users = {str(p.relative_to(SRC)) for p, _ in sources() if "reinterpret_cast" in code(p) and not is_test(p)}
        self.assertLessEqual(users, {"base/bytes.h"})

    def test_only_io_knows_threads_clocks_and_chance(self):
        banned = re.compile(
            r"std::thread|std::jthread|std::async|steady_clock|system_clock|high_resolution_clock|clock_gettime"
            r"|random_device|mt19937|getrandom|\brand\(\)|\btime\(nullptr\)"
        )
        users = [
            str(p.relative_to(SRC))
            for p, layer in sources()
            if layer not in ("io",) and not is_test(p) and banned.search(code(p))
        ]
        self.assertEqual(users, [])

    def test_format_has_no_io_and_no_coroutines(self):
        users = [
            p.name
            for p, layer in sources()
            if layer == "format" and not is_test(p) and re.search(r"co_await|co_return|<fcntl.h>|<unistd.h>|<cstdio>", code(p))
        ]
        self.assertEqual(users, [])

    def test_nothing_includes_the_simulator_but_tests(self):
        users = [
            str(p.relative_to(SRC))
            for p, layer in sources()
            if layer != "sim" and not is_test(p) and '#include "sim/' in p.read_text()
        ]
        self.assertEqual(users, [])


if __name__ == "__main__":
    sys.exit(unittest.main())
