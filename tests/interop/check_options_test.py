# SPDX-License-Identifier: Apache-2.0
"""What check looks at when it is asked to: backing chains, bitmaps and snapshots, made by QEMU and then broken."""
import json
import os
import re
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, Case, main, only_byre, qemu_img, qemu_io, run  # noqa: E402


def patch(path, at, form, *values):
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, *values))


def field(path, at, form):
    with open(path, "rb") as file:
        file.seek(at)
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]


@only_byre
class Options(Case):
    def check(self, path, *options, code=0):
        done = run(BYRE, "check", "--output=json", "--findings", *options, path, ok=(code,))
        return json.loads(done.out)["findings"], done.text

    def test_findings_are_for_json(self):
        done = run(BYRE, "check", "--findings", self.path("none"), ok=(64,))
        self.assertIn("--findings needs --output=json", done.text)
        self.assertIn("--help", done.text)

    def kinds(self, findings, severity="corruption"):
        return sorted(finding["kind"] for finding in findings if finding["severity"] == severity)

    # The backing chain.

    def chain(self):
        base, middle, top = (self.path(name) for name in ("base.qcow2", "middle.qcow2", "top.qcow2"))
        qemu_img("create", "-q", "-f", "qcow2", base, "8M")
        qemu_io(base, "write -q 0 4M")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", middle, "16M")
        qemu_io(middle, "write -q 1M 1M")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", top)
        return base, middle, top

    def test_a_sound_chain_has_notes_only(self):
        _, _, top = self.chain()
        findings, _ = self.check(top, "--verify-backing")
        self.assertEqual(self.kinds(findings), [])
        texts = " ".join(finding["text"] for finding in findings)
        self.assertIn("has a disk of 8388608 bytes under one of 16777216", texts)
        self.assertEqual(len([f for f in findings if "0 errors, 0 leaked" in f["text"]]), 2)

    def test_what_is_wrong_below_is_found_with_its_file(self):
        base, _, top = self.chain()
        l1 = field(base, 40, ">Q")
        table = field(base, l1, ">Q") & 0x00fffffffffffe00
        patch(base, table + 8, ">Q", field(base, table, ">Q"))
        findings, _ = self.check(top)
        self.assertEqual(self.kinds(findings), [])
        findings, text = self.check(top, "--verify-backing", code=2)
        self.assertIn("two-owners", self.kinds(findings))
        self.assertTrue(all(f["file"].endswith("base.qcow2") for f in findings if f["severity"] == "corruption"), text)

    def test_chains_that_do_not_hold(self):
        base, middle, top = self.chain()
        os.rename(base, base + ".away")
        findings, text = self.check(top, "--verify-backing", code=2)
        self.assertEqual(self.kinds(findings), ["backing"], text)
        self.assertIn("base.qcow2", text)
        with open(base, "wb") as file:
            file.write(b"no image" * 1000)
        findings, text = self.check(top, "--verify-backing", code=2)
        self.assertIn("it is not", text)
        os.unlink(base)
        os.rename(base + ".away", base)
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", base)
        findings, text = self.check(top, "--verify-backing", code=2)
        self.assertIn("circle", text)
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", "", base)
        folder = self.path("elsewhere")
        os.mkdir(folder)
        shutil.copy(base, folder)
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", os.path.join(folder, "base.qcow2"), "-F", "qcow2", middle)
        self.check(top, "--verify-backing")
        qemu_img("rebase", "-u", "-f", "qcow2", "-b", "/nowhere/base.qcow2", "-F", "qcow2", middle)
        findings, text = self.check(top, "--verify-backing", code=1)
        self.assertIn("--follow", text)
        findings, text = self.check(top, "--verify-backing", "--follow", "any", code=2)
        self.assertIn("No such file", text)

    def test_a_data_file_is_looked_at(self):
        path, data = self.path("disk.qcow2"), self.path("disk.data")
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", path, "4M")
        self.check(path, "--verify-backing")
        os.truncate(data, 65536)
        findings, text = self.check(path, "--verify-backing", code=2)
        self.assertIn("65536 bytes", text)
        os.unlink(data)
        findings, text = self.check(path, "--verify-backing", code=2)
        self.assertEqual([f["structure"] for f in findings if f["severity"] == "corruption"], ["data file"])

    # Bitmaps.

    def bitmap(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "100M")
        qemu_img("bitmap", "--add", "-g", "4k", path, "b0")
        qemu_io(path, "write -q 10M 10M")
        with open(path, "rb") as file:
            data = file.read()
        at = data.index(struct.pack(">I", 0x23852875))  # The bitmaps extension.
        directory = struct.unpack_from(">Q", data, at + 8 + 16)[0]
        return path, directory

    def test_sound_bitmaps_have_no_findings(self):
        path, _ = self.bitmap()
        findings, _ = self.check(path, "--bitmaps")
        self.assertEqual(findings, [])

    def test_a_table_that_does_not_fit_and_bits_behind_the_disk(self):
        path, directory = self.bitmap()
        table = field(path, directory, ">Q")
        data = field(path, table, ">Q") & 0x00fffffffffffe00
        patch(path, data + 100 * 256 // 8, ">B", 0x01)
        findings, text = self.check(path, "--bitmaps")
        self.assertEqual(self.kinds(findings, "note"), ["bitmap"])
        self.assertIn("behind the end of the disk", text)
        patch(path, directory + 8, ">I", 2)
        findings, text = self.check(path, "--bitmaps", code=2)
        self.assertIn("the disk needs 1", text)

    def test_what_keeps_qemu_from_opening_it_is_an_error_and_goes(self):
        for at, form, value, word in ((17, ">B", 47, "granularity"), (8, ">I", 0, "table of 0"), (8, ">I", 9, "table of 9")):
            path, directory = self.bitmap()
            patch(path, directory + at, form, value)
            qemu_img("check", path, ok=(1,))
            for options in ((), ("--bitmaps",)):
                findings, text = self.check(path, *options, code=2)
                self.assertEqual(self.kinds(findings), ["bitmap"])
                self.assertIn(word, text)
            run(BYRE, "check", "-r", "all", path)
            self.assert_sound(path)
            os.unlink(path)
        path, directory = self.bitmap()
        patch(path, directory + 16, ">B", 3)  # A type that a newer writer may have: not touched.
        findings, _ = self.check(path, code=2)
        with open(path, "rb") as file:
            before = file.read()
        run(BYRE, "check", "-r", "all", path, ok=(2,))
        with open(path, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_a_bitmap_in_use_is_told(self):
        path, directory = self.bitmap()
        patch(path, directory + 12, ">I", field(path, directory + 12, ">I") | 1)
        _, text = self.check(path, "--bitmaps")
        self.assertIn("in use", text)

    # Snapshots.

    def test_snapshots_that_cannot_be_told_apart_or_opened(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "1G")
        qemu_io(path, "write -q 0 1M")
        for name in ("one", "two"):
            qemu_img("snapshot", "-c", name, path)
        findings, _ = self.check(path, "--snapshots")
        self.assertEqual(findings, [])
        table = field(path, 64, ">Q")
        with open(path, "rb") as file:
            file.seek(table)
            raw = file.read(4096)
        second = raw.index(b"2two") - 40 - struct.unpack_from(">I", raw, 36)[0]
        patch(path, table + raw.index(b"2two"), ">c", b"1")
        findings, text = self.check(path, "--snapshots", code=2)
        self.assertEqual(self.kinds(findings), ["snapshot"])
        self.assertIn("2 snapshots have the id", text)
        patch(path, table + second + 40 + 8, ">Q", 1 << 40)  # Its disk size.
        _, text = self.check(path, "--snapshots", code=2)
        self.assertIn("needs 2048", text)
        patch(path, table + second + 40 + 8, ">Q", 1 << 30)
        patch(path, table + second + 40, ">Q", 1 << 30)  # The size of its VM state.
        _, text = self.check(path, "--snapshots", code=2)
        self.assertIn("VM state", text)

    def test_entries_that_are_only_counted_are_errors_as_in_qemu(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "64M")
        qemu_io(path, "write -q 0 1M")
        qemu_img("snapshot", "-c", "one", path)
        qemu_io(path, "write -q 0 1M")
        patch(path, 60, ">I", 5)
        self.assertIn("4 errors", qemu_img("check", path, ok=(2,)).text)
        findings, text = self.check(path, code=2)
        self.assertEqual(self.kinds(findings), ["snapshot"] * 4)
        self.assertEqual({f["repair"] for f in findings}, {"drop"})
        run(BYRE, "check", "-r", "leaks", path, ok=(2,))
        run(BYRE, "repair", "--apply", path)
        self.assert_sound(path)
        self.assertEqual(field(path, 60, ">I"), 1)
        run(BYRE, "repair", "--undo", path + ".undo", path)
        self.assertEqual(field(path, 60, ">I"), 5)
        run(BYRE, "check", "-r", "all", path)
        self.assert_sound(path)
        qemu_img("snapshot", "-a", "one", path)

    # The header.

    def test_raw_external_data_without_any_is_an_error_and_the_bit_goes(self):
        for repair in (("check", "-r", "all"), ("repair", "--apply")):
            path = self.path("disk.qcow2")
            qemu_img("create", "-q", "-f", "qcow2", path, "64M")
            patch(path, 88, ">Q", 2)
            qemu_img("check", path, ok=(1,))
            findings, _ = self.check(path, code=2)
            self.assertEqual(self.kinds(findings), ["stray-flag"])
            run(BYRE, *repair, path)
            self.assert_sound(path)

    # What cannot be repaired.

    def test_an_entry_that_is_not_aligned_costs_what_it_costs_with_qemu(self):
        path, theirs = self.path("disk.qcow2"), self.path("theirs.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "64M")
        qemu_io(path, "write -q 0 256k")
        qemu_img("snapshot", "-c", "one", path)
        l2 = field(path, field(path, 40, ">Q"), ">Q") & 0x00fffffffffffe00
        patch(path, l2 + 8, ">Q", field(path, l2 + 8, ">Q") + 0x200)
        shutil.copy(path, theirs)
        qemu_img("check", "-r", "all", theirs, ok=(2,))
        run(BYRE, "check", "-r", "all", path, ok=(2,))
        counts = [{key: json.loads(qemu_img("check", "--output=json", each, ok=(2,)).out).get(key, 0)
                   for key in ("corruptions", "leaks")} for each in (path, theirs)]
        self.assertEqual(counts[0], counts[1])
        self.assertEqual(counts[0]["leaks"], 0)

    def test_leaks_that_stay_are_told_with_r_leaks_too(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "64M")
        qemu_io(path, "write -q 0 512k")
        l2 = field(path, field(path, 40, ">Q"), ">Q") & 0x00fffffffffffe00
        patch(path, l2 + 8, ">Q", field(path, l2 + 8, ">Q") + 0x200)
        patch(path, l2 + 40, ">Q", 0)
        self.assertIn("1 leaked cluster was kept", run(BYRE, "check", "-r", "leaks", path, ok=(2,)).text)


@only_byre
class Sentences(Case):
    """What byre says under its own name: one damage once, offsets with their kind, and a next step that works."""

    def image(self):
        path = self.path("disk.qcow2")
        if os.path.exists(path):
            os.unlink(path)
        qemu_img("create", "-q", "-f", "qcow2", path, "64M")
        qemu_io(path, "write -q -P 1 0 64k", "write -q -P 2 64k 64k")
        return path

    def entries(self, path):
        with open(path, "rb") as file:
            data = file.read()
        l1, = struct.unpack_from(">Q", data, 40)
        l2 = struct.unpack_from(">Q", data, l1)[0] & 0x00fffffffffffe00
        return l2, struct.unpack_from(">QQ", data, l2)

    def poke(self, path, at, value):
        with open(path, "r+b") as file:
            file.seek(at)
            file.write(struct.pack(">Q", value))

    def step(self, text, ok):
        """Runs the command that is named as the next step."""
        line, = [line for line in text.splitlines() if line.startswith("Next: byre ")]
        words = re.match(r"Next: byre ((?:[a-z-]+ )+)'([^']*)' ", line)
        return run(BYRE, *words.group(1).split(), words.group(2), ok=ok)

    def test_one_damage_is_one_error_with_its_guest_ranges(self):
        path = self.image()
        l2, (first, _) = self.entries(path)
        self.poke(path, l2 + 8, first)
        done = run(BYRE, "check", path, ok=(2,)).text
        self.assertIn("1 error was found", done)
        self.assertIn("1 leaked cluster was found", done)
        self.assertEqual(len([line for line in done.splitlines() if line.startswith("ERROR")]), 1, done)
        self.assertIn("guest offset 0x0, 65536 bytes, seen by the disk; guest offset 0x10000, 65536 bytes", done)
        self.assertIn("ERROR host cluster at ", done)
        self.assertIn("What a repair would do", self.step(done, (2,)).text)

    def test_the_next_step_for_leaks_frees_them(self):
        path = self.image()
        l2, _ = self.entries(path)
        self.poke(path, l2 + 8, 0)
        done = run(BYRE, "check", path, ok=(3,)).text
        self.step(done, (0,))
        self.assertIn("No errors were found.", run(BYRE, "check", path).text)

    def test_a_repair_that_is_refused_names_one_that_is_not(self):
        path = self.image()
        l2, (first, _) = self.entries(path)
        self.poke(path, l2, first + 512)
        done = run(BYRE, "check", path, ok=(2,)).text
        self.assertIn("guest offset 0x0: host cluster at ", done)
        refused = self.step(done, (1,)).text
        words = re.search(r"byre (repair --accept-loss) '([^']*)' lists what", refused)
        self.assertIn("that are lost", run(BYRE, *words.group(1).split(), words.group(2), ok=(2,)).text)


if __name__ == "__main__":
    main()
