#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each option of each of QEMU's tools, and the test that shows what it does under byre, or that it is refused by name.

The list of options is the tools' own help, so one that is new there fails here. A test that is named must be there and use the option.
What had no test is tested below.
"""
import ast
import functools
import os
import pathlib
import re
import socket
import subprocess
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
from harness import BYRE, Case, img, main, run, until  # noqa: E402

REFUSED = "is refused by name: test_refusals"
TABLE = {
    "qemu-img amend": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--quiet": "amend_test.py::test_any_to_any",
        "--progres": "amend_test.py::test_usage_and_progress",
        "--format": "amend_test.py::test_a_format_that_is_missing",
        "--image-opts": "device_tree_test.py::test_each_command_takes_such_names",
        "--cache": "amend_test.py::test_bitmaps_stay_with_whatever_else_changes",
        "--force": "amend_test.py::test_backing_file",
    },
    "qemu-img bench": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--quiet --format --image-opts --cache --count --buffer-size --depth --offset --step-size --aio --native --pattern --no-drain --force-share": "bench_test.py::test_reads",
        "--write": "bench_test.py::test_writes",
        "--flush-interval": "bench_test.py::test_under_its_own_name",
    },
    "qemu-img bitmap": {
        "--enable --disable": "bitmap_test.py::test_a_snapshot_applied_makes_everything_dirty",
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--format --add --clear": "bitmap_test.py::test_a_killed_writer_leaves_a_bitmap_that_qemu_takes",
        "--image-opts": "device_tree_test.py::test_each_command_takes_such_names",
        "--granularity": "bitmap_test.py::test_clients_see_what_is_recorded",
        "--remove --merge --source-file --source-format": "bitmap_test.py::test_each_does_what_qemu_img_does",
    },
    "qemu-img check": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--quiet --format": "check_options_test.py::test_a_data_file_is_looked_at",
        "--image-opts": "drivers_test.py::test_a_qcow2_image_lies_over_each",
        "--cache --force-share": "tool_test.py::test_reports",
        "--output": "check_options_test.py::test_an_entry_that_is_not_aligned_costs_what_it_costs_with_qemu",
        "--repair": "check_test.py::test_r_all_leaves_no_corruption_where_repair_accepts",
        "--object": "drivers_test.py::test_filters_lie_over_nodes_by_name",
    },
    "qemu-img commit": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--quiet": "commit_test.py::test_damage_is_an_error",
        "--progress": "commit_test.py::test_progress",
        "--format --image-opts --cache --rate": "commit_test.py::test_errors",
        "--drop --base": "commit_test.py::test_deep",
        "--object": "options_test.py::test_objects",
    },
    "qemu-img compare": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--quiet --progress": "compare_test.py::test_progress",
        "--a-format --cache": "compare_test.py::test_under_its_own_name",
        "--b-format --image-opts --force-share": "compare_test.py::test_words",
        "--strict": "compare_test.py::test_every_pair",
        "--object": "compare_test.py::test_wrong_words",
    },
    "qemu-img convert": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--copy-range-offloading --salvage": "tool_test.py::test_copies_are_left_to_the_kernel",
        "--quiet --source-cache --parallel --oob-writes": "tool_test.py::test_ways_to_run",
        "--progress": "tool_test.py::test_progress",
        "--source-format --target-format --compress": "tool_test.py::test_a_failing_target_leaves_an_exit_code",
        "--image-opts": "drivers_test.py::test_a_qcow2_image_lies_over_each",
        "--source-snapshot": "tool_test.py::test_snapshots",
        "--target-image-opts": "drivers_test.py::test_source_and_target_share_one",
        "--target-options --no-create": "tool_test.py::test_a_source_is_no_target",
        "--target-cache": "tool_test.py::test_block_devices",
        "--backing --backing-format": "tool_test.py::test_an_image_is_no_raw_backing_file",
        "--target-is-zero": "tool_test.py::test_copies_are_left_to_the_kernel",
        "--sparse-size": "tool_test.py::test_sparse_sizes",
        "--bitmaps --skip-broken-bitmaps": "bitmap_test.py::test_convert",
        "--force-share": "tool_test.py::test_ways_to_run",
        "--rate": "tool_test.py::test_a_rate_is_kept",
        "--object": "drivers_test.py::test_a_group_has_the_limits_of_the_object",
    },
    "qemu-img create": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--quiet": "tool_test.py::test_copies_are_left_to_the_kernel",
        "--format --backing": "tool_test.py::test_a_backing_file_needs_its_format",
        "--options": "tool_test.py::test_a_data_file_is_made",
        "--backing-format": "tool_test.py::test_an_image_is_no_raw_backing_file",
        "--backing-unsafe": "tool_test.py::test_an_empty_value_is_a_value",
        "--object": "images_test.py::test_encrypted_images_are_refused",
    },
    "qemu-img dd": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--format --image-opts --force-share": "dd_test.py::test_operands",
        "--output-format": "dd_test.py::test_to_qcow2",
    },
    "qemu-img info": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--format": "tool_test.py::test_foreign_formats_are_not_taken_for_raw",
        "--image-opts": "device_tree_test.py::test_image_opts",
        "--backing-chain --output": "tool_test.py::test_chains",
        "--force-share": "tool_test.py::test_an_image_has_one_writer",
        "--object": "tool_test.py::test_unsupported_options_are_refused_by_name",
    },
    "qemu-img map": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--format --output --force-share": "tool_test.py::test_given_format",
        "--image-opts": "device_tree_test.py::test_each_command_takes_such_names",
        "--start-offset --max-length": "tool_test.py::test_parts",
        "--object": "options_test.py::test_objects",
    },
    "qemu-img measure": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--target-format": "measure_test.py::test_sources_and_targets",
        "--size": "measure_test.py::test_empty_disks",
        "--format": "measure_test.py::test_empty_disks_are_what_create_makes",
        "--image-opts --snapshot --output --force-share": "measure_test.py::test_words",
    },
    "qemu-img rebase": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--quiet --format --backing": "rebase_test.py::test_a_header_without_room_is_found_first",
        "--progress": "rebase_test.py::test_progress",
        "--image-opts --force-share": "rebase_test.py::test_what_is_said",
        "--cache --backing-cache --backing-unsafe": "rebase_test.py::test_errors",
        "--backing-format": "rebase_test.py::test_same_file_in_another_format",
        "--compress": "rebase_test.py::test_data_file",
        "--object": "options_test.py::test_objects",
    },
    "qemu-img resize": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--quiet": "tool_test.py::test_words_are_split_alike",
        "--format": "tool_test.py::test_an_empty_value_is_a_value",
        "--image-opts": "device_tree_test.py::test_each_command_takes_such_names",
        "--shrink": "tool_test.py::test_shrinking",
        "--preallocation": "tool_test.py::test_raw",
        "--object": "options_test.py::test_objects",
    },
    "qemu-img snapshot": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--quiet --format": "snapshot_test.py::test_a_raw_disk_has_no_vm_state",
        "--image-opts": "device_tree_test.py::test_each_command_takes_such_names",
        "--force-share --list": "snapshot_test.py::test_lists",
        "--object": "snapshot_test.py::test_wrong_words",
        "--create --apply": "snapshot_test.py::test_a_snapshot_of_another_size",
        "--delete": "snapshot_test.py::test_a_vm_state_is_kept",
    },
    "qemu-img": {
        "--help": "errors_test.py::test_what_qemu_img_can_do",
        "--version": "errors_test.py::test_versions",
        "--trace": REFUSED,
    },
    "qemu-io": {
        "--object": "drivers_test.py::test_what_is_wrong_is_said_before_anything_is_opened",
        "--image-opts": "io_compat_test.py::test_image_opts",
        "--cmd --format": "io_compat_test.py::test_opening_and_closing",
        "--read-only --force-share": "io_compat_test.py::test_read_only",
        "--snapshot --copy-on-read": "io_compat_test.py::test_a_temporary_overlay",
        "--nocache": "io_compat_test.py::test_reopen_goes_past_the_page_cache_and_back",
        "--misalign --native-aio --aio --cache --discard": "options_test.py::test_qemu_io",
        "--trace": REFUSED,
        "--help": "errors_test.py::test_no_option_is_listed_that_is_refused",
        "--version": "errors_test.py::test_help_and_version_are_commands",
    },
    "qemu-nbd": {
        "--help": "errors_test.py::test_no_option_is_listed_that_is_refused",
        "--version": "errors_test.py::test_versions",
        "--port --bind": "nbd_test.py::test_an_address_needs_a_port",
        "--socket --shared --persistent --export-name --fork --pid-file --format": "nbd_test.py::test_fork_returns_when_it_listens",
        "--verbose --object --nocache --cache --aio": "options_test.py::test_qemu_nbd",
        "--description --list": "clients_test.py::test_it_lists_what_others_export",
        "--handshake-limit": "nbd_test.py::test_the_handshake_limit_is_kept",
        "--offset --read-only --snapshot --image-opts": "nbd_test.py::test_a_temporary_overlay_takes_what_is_written",
        "--allocation-depth": "nbd_test.py::test_depth_is_offered_with_its_option_only",
        "--bitmap": "backup_test.py::test_a_bitmap_that_is_not_there",
        "--tls-creds --tls-authz --tls-hostname --trace --selinux-label": REFUSED,
        "--connect --disconnect": "nbd_test.py::test_a_device_that_is_not_there",
        "--load-snapshot": "nbd_test.py::test_it_ends_with_its_last_client",
        "--discard --detect-zeroes": "nbd_test.py::test_detect_zeroes",
    },
}
# A value for those that are refused.
VALUES = {"--trace": "x", "--tls-creds": "x", "--tls-authz": "x", "--tls-hostname": "x", "--selinux-label": "x"}


@functools.cache
def helped(tool):
    """{an option's last spelling: all of them}, from the real tool's help."""
    text = run(*tool.split(), "--help").out.decode()
    found = [re.findall(r"--?[\w-]+", match[1]) for match in
             re.finditer(r"(?m)^\s+((?:-\w|--[\w-]+)(?:,\s*(?:-\w|--[\w-]+))*)", text)]
    options = {}
    for names in found:
        # Two long names in one line are two options.
        for name in [name for name in names if name.startswith("--")] or names[:1]:
            options.setdefault(name, set()).update(names)
    return options


@functools.cache
def tests_of(file):
    with open(os.path.join(HERE, file)) as opened:
        text = opened.read()
    lines = text.splitlines()
    return {node.name: "\n".join(lines[node.lineno - 1:node.end_lineno]) for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef)}


def table():
    for tool, rows in TABLE.items():
        for options, where in rows.items():
            for option in options.split():
                yield tool, option, where


class Options(Case):
    def setUp(self):
        super().setUp()
        self.disk = self.path("disk.qcow2")
        img("create", "-q", "-f", "qcow2", self.disk, "4M")
        for name in ("qemu-img", "qemu-io", "qemu-nbd"):
            os.symlink(BYRE, self.path(name))

    def ask(self, tool, *words, ok=None):
        first, *rest = tool.split()
        return run(self.path(first), *rest, *words, ok=ok)

    def test_each_option_has_a_row(self):
        for tool in TABLE:
            self.assertEqual(set(helped(tool)), {option for one, option, _ in table() if one == tool}, tool)

    def test_each_row_names_a_test_that_uses_the_option(self):
        for tool, option, where in table():
            if where is REFUSED or option == "--help":
                continue
            file, name = where.split("::")
            with self.subTest(tool=tool, option=option):
                self.assertIn(name, tests_of(file))
                spellings = [re.escape(one) for one in helped(tool)[option] | {option}]
                letters = "".join(one[1] for one in helped(tool)[option] if re.fullmatch(r"-\w", one))
                grouped = rf"|(?<![\w-])-\w*[{letters}]\w*(?![\w-])" if letters else ""
                self.assertRegex(tests_of(file)[name], rf"(?<![\w-])(?:{'|'.join(spellings)})(?![\w-]){grouped}")

    def test_refusals(self):
        for tool, option, where in table():
            if where is not REFUSED:
                continue
            with self.subTest(tool=tool, option=option):
                words = [option, VALUES[option]] if option in VALUES else [option]
                done = self.ask(tool, *words, self.disk)
                self.assertEqual((done.code, done.out), (1, b""), done)
                self.assertRegex(done.err, rb"is not supported|is not permitted without|Failed to get TLS creds", done)

    def test_objects(self):
        """--object: what it defines can be used, and what is wrong with it is said before anything is done."""
        over = self.path("over.qcow2")
        img("create", "-q", "-f", "qcow2", "-b", self.disk, "-F", "qcow2", over)
        limited = f"driver=throttle,throttle-group=g,file.driver=qcow2,file.file.filename={self.disk}"
        for words in (["map", "--image-opts", limited], ["resize", "--image-opts", limited, "8M"]):
            self.assertEqual(self.ask("qemu-img", *words).code, 1)
            self.ask("qemu-img", words[0], "--object", "throttle-group,id=g,limits.iops-total=1000", *words[1:], ok=(0,))
        for words in (["commit", over], ["rebase", "-u", "-b", "", over], ["map", over], ["resize", over, "8M"]):
            done = self.ask("qemu-img", words[0], "--object", "iothread,id=i", *words[1:])
            self.assertEqual(done.code, 1, done)
            self.assertIn(b"iothread", done.err)
            self.ask("qemu-img", words[0], "--object", "secret,id=s,data=abc", *words[1:], ok=(0,))

    def test_qemu_io(self):
        def lines(*words):
            return self.ask("qemu-io", *words, "-f", "qcow2", self.disk)
        # Past the page cache only, as by qemu-io.
        for option in (["-k"], ["-i", "native"], ["--aio=native"]):
            self.assertIn(b"aio=native was specified", lines(*option).err)
            self.assertEqual(lines(*option, "-t", "none", "-c", "write -q 0 64k").code, 0)
        self.assertIn(b"Invalid aio option: x", lines("--aio=x").err)
        # -m: buffers are aligned whatever it says (docs/compatibility-io.md), so requests of any length go past the cache.
        self.assertEqual(lines("-m", "-n", "-c", "write -q -P 1 1 511", "-c", "read -q -P 1 1 511").code, 0)
        # -d: a discarded cluster goes, or stays.
        for policy, kept in (("ignore", True), ("unmap", False)):
            lines("-c", "write -q -P 3 0 64k")
            lines("-d", policy, "-c", "discard -q 0 64k")
            self.assertEqual(lines("-c", "read -q -P 3 0 64k").code == 0, kept)
        # -t: writeback leaves durability to a flush.
        if subprocess.run(["which", "strace"], capture_output=True).returncode == 0:
            syncs = [run("strace", "-f", "-c", "-e", "trace=fdatasync", self.path("qemu-io"), "-t", mode, "-f", "qcow2",
                         *["-c", "write -q 0 512"] * 9, self.disk).err.count(b"fdatasync") for mode in ("writeback", "writethrough")]
            self.assertLessEqual(*syncs)

    def test_qemu_nbd(self):
        def serve(*words):
            sock = self.path("sock")
            process = subprocess.Popen([self.path("qemu-nbd"), "-k", sock, *words], stderr=subprocess.PIPE)
            self.addCleanup(process.kill)
            until(lambda: os.path.exists(sock), "the server")
            return process, sock
        # -v: what a client does wrong is said.
        for words, said in (((), False), (("-v",), True)):
            process, sock = serve("-t", *words, self.disk)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(sock)
                client.recv(64)
                client.sendall(b"\xff" * 64)
                while client.recv(64):
                    pass
            process.terminate()
            self.assertEqual(bool(process.communicate(timeout=60)[1]), said)
        # -n, --cache=none: the file is opened past the page cache.
        for words, direct in ((("-n",), True), (("--cache=none",), True), (("--cache=writeback", "--aio=threads"), False)):
            process, sock = serve(*words, "--object", "secret,id=s,data=abc", self.disk)
            flags = [int(re.search(r"flags:\s*(\d+)", pathlib.Path(f"/proc/{process.pid}/fdinfo/{fd}").read_text())[1], 8)
                     for fd in os.listdir(f"/proc/{process.pid}/fd") if os.readlink(f"/proc/{process.pid}/fd/{fd}") == self.disk]
            self.assertEqual([bool(flag & os.O_DIRECT) for flag in flags], [direct])
            run("nbdinfo", "--size", f"nbd+unix:///?socket={sock}")
            self.assertEqual(process.wait(60), 0)
        self.assertIn(b"only be specified once", self.ask("qemu-nbd", "-n", "--cache=none", self.disk).err)
        self.assertIn(b"Invalid aio mode", self.ask("qemu-nbd", "--aio=x", self.disk).err)


if __name__ == "__main__":
    main()
