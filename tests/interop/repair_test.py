# SPDX-License-Identifier: Apache-2.0
"""check --findings, repair, undo: on images of QEMU that were damaged, judged by qemu-img and the reference."""
import contextlib
import filecmp
import json
import os
import random
import shutil
import struct
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, KIB, Case, byre_io, img, main, only_byre, qcow2ref, qemu_img, qemu_io, run  # noqa: E402

OFFSET = 0x00fffffffffffe00


def content(path):
    with open(path, "rb") as file:
        return file.read()


class Words:
    """The 8-byte words of a file."""

    def __init__(self, path):
        self.path = path

    def __getitem__(self, at):
        with open(self.path, "rb") as file:
            file.seek(at)
            return struct.unpack(">Q", file.read(8))[0]

    def __setitem__(self, at, value):
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(struct.pack(">Q", value))


@only_byre
class Repair(Case):
    def image(self, name="disk.qcow2", options="cluster_size=64k", *commands):
        path = self.path(name)
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "64M")
        qemu_io(path, *(commands or ("write -q -P 1 0 64k", "write -q -P 2 64k 64k", "write -q -P 3 128k 64k")))
        return path

    def l2(self, path, index=0):
        words = Words(path)
        return words[words[40] + 8 * index] & OFFSET

    def cross_link(self, path):
        """The second guest cluster's entry leads to the first one's: peer defect j."""
        words, l2 = Words(path), self.l2(path)
        step = 16 if words[72] & 16 and words[4] >> 32 == 3 else 8
        victim = words[l2 + step] & OFFSET
        words[l2 + step] = words[l2]
        return victim

    def report(self, *words, ok=(0, 1, 2, 3)):
        done = run(BYRE, *words, ok=ok)
        return done.code, json.loads(done.out)

    def test_defect_j_no_orphan_is_freed_before_it_was_saved(self):
        path = self.image()
        victim = self.cross_link(path)
        before = self.path("before")
        shutil.copy(path, before)

        code, plan = self.report("repair", "--output=json", path)
        self.assertEqual(code, 2)
        self.assertTrue(plan["needed"] and plan["accepted"] and not plan["applied"], plan)
        self.assertTrue(filecmp.cmp(path, before, shallow=False), "a plan wrote")

        code, done = self.report("repair", "--apply", "--output=json", path)
        self.assertEqual(code, 3)
        self.assertEqual([(each["offset"], each["length"]) for each in done["in-doubt"]], [(0, 128 * KIB)])
        self.assertEqual([(each["host-offset"], each["length"]) for each in done["orphans"]], [(victim, 64 * KIB)])
        self.assertFalse(done["orphans-freed"])
        self.assertEqual([each["text"] for each in plan["actions"]], [each["text"] for each in done["actions"]])
        with open(path, "rb") as file:
            file.seek(victim)
            self.assertEqual(file.read(64 * KIB), b"\2" * 64 * KIB, "the only copy is gone")
        left = json.loads(qemu_img("check", "--output=json", path, ok=(3,)).out)
        self.assertEqual((left.get("corruptions", 0), left["leaks"]), (0, 1))
        # Neither harms the other any more.
        qemu_io(path, "write -q -P 9 0 64k", "read -q -P 1 64k 64k", "read -q -P 3 128k 64k")

    def test_saved_orphans_are_freed_and_lie_where_they_lay(self):
        path, saved = self.image(), self.path("saved")
        victim = self.cross_link(path)
        code, done = self.report("repair", "--apply", "--save-orphans", saved, "--output=json", path)
        self.assertEqual((code, done["orphans-saved"], done["orphans-freed"]), (0, 1, True))
        with open(saved, "rb") as file:
            file.seek(victim)
            self.assertEqual(file.read(), b"\2" * 64 * KIB)
        self.assert_sound(path)
        # A file that is there is not overwritten.
        self.cross_link(path)
        os.unlink(path + ".undo")
        before = content(path)
        run(BYRE, "repair", "--apply", "--save-orphans", saved, path, ok=(1,))
        self.assertEqual(content(path), before)

    def kept(self, path, victim, filling=b"\2"):
        """Still counted, and as it was."""
        with open(path, "rb") as file:
            file.seek(victim)
            self.assertEqual(file.read(64 * KIB), filling * 64 * KIB, "the only copy is gone")
        return json.loads(qemu_img("check", "--output=json", path, ok=(0, 3)).out).get("leaks", 0)

    def test_what_the_first_repair_kept_the_next_ones_keep(self):
        """Whatever their name and mode, with the journal or without it, and with writes in between."""
        for again in (["repair", "--apply"], ["repair", "--apply", "--journal", "other"], ["check", "-r", "leaks"],
                      ["check", "-r", "all"]):
            with self.subTest(again=again):
                path = self.image()
                victim = self.cross_link(path)
                run(BYRE, "repair", "--apply", "-q", path, ok=(3,))
                plan = run(BYRE, "repair", path, ok=(3,)).text
                self.assertIn("kept by an earlier repair", plan)
                self.assertIn("repair --apply --save-orphans FILE", plan)
                qemu_io(path, "write -q -P 9 8M 1M", "discard -q 8M 64k")
                os.unlink(path + ".undo")
                self.leak(path)
                words = [self.path(word) if word == "other" else word for word in again]
                for _ in range(2):
                    done = run(BYRE, *words, path, ok=(3,))
                    self.assertIn("--save-orphans FILE", done.text)
                    self.assertEqual(self.kept(path, victim), 1, "another leak is freed, this one is not")
                qemu_img("amend", "-f", "qcow2", "-o", "lazy_refcounts=on", path)
                img("amend", "-f", "qcow2", "-o", "refcount_bits=64", path)
                run(BYRE, "check", "-r", "leaks", path, ok=(3,))
                byre_io(path, "check -r leaks", options=("-f", "qcow2"), ok=(0, 1))
                self.assertEqual(self.kept(path, victim), 1)
                saved = self.path("saved")
                run(BYRE, "repair", "--apply", "--save-orphans", saved, "--journal", self.path("third"), path)
                with open(saved, "rb") as file:
                    file.seek(victim)
                    self.assertEqual(file.read(), b"\2" * 64 * KIB)
                self.assert_sound(path)
                self.assertNotIn(b"kept", content(path)[:4096], "nothing is left to remember")
                for name in os.listdir(self.folder):
                    os.unlink(self.path(name))

    def leak(self, path):
        words = Words(path)
        length = os.path.getsize(path)
        os.truncate(path, -(-length // (64 * KIB)) * 64 * KIB + 64 * KIB)
        block = words[words[48]]
        with open(path, "r+b") as file:
            file.seek(block + 2 * (os.path.getsize(path) // (64 * KIB) - 1))
            file.write(b"\0\1")

    def test_a_killed_processs_image_is_rebuilt_and_keeps_what_was_kept(self):
        path = self.image()
        victim = self.cross_link(path)
        run(BYRE, "repair", "--apply", "-q", path, ok=(3,))
        with open(path, "r+b") as file:
            file.seek(79)
            file.write(b"\1")
        self.leak(path)
        byre_io(path, "write -q -P 9 8M 64k", options=("-f", "qcow2"))
        self.assertEqual(self.kept(path, victim), 1)

    def test_what_was_kept_is_freed_when_the_user_says_so_and_comes_back_with_undo(self):
        path = self.image()
        victim = self.cross_link(path)
        before = content(path)
        run(BYRE, "repair", "--apply", "-q", path, ok=(3,))
        run(BYRE, "repair", "--apply", "-q", "--free-orphans", path)
        self.assert_sound(path)
        run(BYRE, "repair", "--undo", path + ".undo", path)
        self.assertEqual(content(path), before)

    def test_many_kept_clusters_are_a_few_ranges(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", path, "64M")
        qemu_io(path, "write -q -P 1 0 2M")
        words, l2 = Words(path), self.l2(path)
        for index in range(1, 500, 5):
            words[l2 + 8 * index] = words[l2 + 8 * index - 8]
        run(BYRE, "repair", "--apply", "-q", path, ok=(3,))
        leaks = json.loads(qemu_img("check", "--output=json", path, ok=(3,)).out)["leaks"]
        self.assertEqual(leaks, 100)
        run(BYRE, "check", "-q", "-r", "leaks", path, ok=(3,))
        self.assertEqual(json.loads(qemu_img("check", "--output=json", path, ok=(3,)).out)["leaks"], 100)

    def test_a_header_without_room_for_the_promise_refuses_the_repair(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512,compat=0.10", path, "1M")
        qemu_io(path, "write -q -P 1 0 1k")
        self.cross_link(path)
        with open(path, "r+b") as file:  # A name that fills the first cluster.
            file.seek(8)
            file.write(struct.pack(">QI", 88, 420))
            file.seek(72)
            file.write(bytes(16) + b"b" * 420)
        before = content(path)
        for words in (("repair", "--apply"), ("check", "-r", "all")):
            done = run(BYRE, *words, path, ok=(1,)).text
            self.assertIn("--save-orphans FILE", done)
            self.assertEqual(content(path), before)
        run(BYRE, "repair", "--apply", "-q", "--save-orphans", self.path("saved"), path)
        self.assertEqual(os.path.getsize(self.path("saved")) > 0, True)

    def test_undo_restores_every_byte(self):
        path = self.image()
        self.cross_link(path)
        before = self.path("before")
        shutil.copy(path, before)
        run(BYRE, "repair", "--apply", "--free-orphans", "--journal", self.path("journal"), path)
        self.assert_sound(path)
        self.assertFalse(filecmp.cmp(path, before, shallow=False))
        run(BYRE, "repair", "--undo", self.path("journal"), path)
        self.assertTrue(filecmp.cmp(path, before, shallow=False))
        # Undone, it can be repaired and undone again, with the same journal.
        run(BYRE, "repair", "--apply", "--free-orphans", "--journal", self.path("journal"), path)
        self.assert_sound(path)
        run(BYRE, "repair", "--undo", self.path("journal"), path)
        self.assertTrue(filecmp.cmp(path, before, shallow=False))

    def test_undo_refuses_what_was_written_to_since_and_other_images(self):
        path = self.image()
        self.cross_link(path)
        run(BYRE, "repair", "--apply", "--free-orphans", path)
        other = self.image("other.qcow2")
        qemu_io(path, "write -q -P 7 1M 64k")
        for image in (path, other):
            before = content(image)
            done = run(BYRE, "repair", "--undo", path + ".undo", image, ok=(1,))
            self.assertIn("nothing was changed", done.text)
            self.assertEqual(content(image), before)

    def test_undo_answers_for_data_that_two_things_shared(self):
        """Written in place after the repair, to what was shared or to its copy: an undo would mix the two up again."""
        for options in ("cluster_size=64k", "cluster_size=2M", "cluster_size=4k,compat=0.10"):
            for at, kept in ((0, False), (64 * KIB, False), (128 * KIB, True)):
                with self.subTest(options=options, at=at):
                    path = self.path("disk.qcow2")
                    cluster = {"cluster_size=64k": 64 * KIB, "cluster_size=2M": 2048 * KIB}.get(options, 4 * KIB)
                    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "64M")
                    qemu_io(path, *(f"write -q -P {i + 1} {i * cluster} {cluster}" for i in range(3)))
                    self.cross_link(path)
                    before = content(path)
                    run(BYRE, "repair", "--apply", "--free-orphans", "-q", path)
                    qemu_io(path, f"write -q -P 9 {at // (64 * KIB) * cluster + cluster // 2} 512")
                    now = content(path)
                    if kept:  # Nobody else's: it is neither looked at nor touched.
                        done = run(BYRE, "repair", "--undo", path + ".undo", path).text
                        self.assertIn("Data that were written in place since stay", done)
                        after = content(path)
                        self.assertEqual(len(after), len(before))
                        self.assertEqual(sum(x != y for x, y in zip(before, after)), 512)
                    else:
                        done = run(BYRE, "repair", "--undo", path + ".undo", path, ok=(1,)).text
                        guests = f"0x0 ({2 * cluster} bytes)" if at == 0 else f"{cluster:#x} ({cluster} bytes)"
                        self.assertIn(guests, done)
                        self.assertIn("nothing was changed", done)
                        self.assertEqual(content(path), now)
                    os.unlink(path)
                    os.unlink(path + ".undo")

    def test_undo_answers_for_shared_streams(self):
        path = self.image("disk.qcow2", "cluster_size=64k", "write -q -c -P 1 0 64k", "write -q -c -P 2 64k 64k",
                          "write -q -P 3 128k 64k")
        words, l2 = Words(path), self.l2(path)
        words[l2 + 16] = words[l2] & ~(1 << 62) & OFFSET & ~0xffff | 1 << 63  # Data in the cluster of the streams.
        run(BYRE, "repair", "--apply", "--free-orphans", "-q", path)
        self.assert_sound(path)
        qemu_io(path, "write -q -P 9 128k 64k")
        done = run(BYRE, "repair", "--undo", path + ".undo", path, ok=(1,)).text
        self.assertIn("guest offset 0x20000 (65536 bytes)", done)

    def test_what_cannot_be_made_whole_is_refused_and_untouched(self):
        path = self.image()
        os.truncate(path, os.path.getsize(path) - 64 * KIB)
        words = Words(path)
        words[words[words[48]] + 8] = 0  # Refcounts that could be repaired.
        before = content(path)
        code, done = self.report("repair", "--apply", "--output=json", path)
        self.assertEqual(code, 1)
        self.assertFalse(done["accepted"])
        self.assertIn("the file ends before", done["refused"])
        self.assertEqual(content(path), before)
        self.assertFalse(os.path.exists(path + ".undo"))
        self.assertTrue(done["in-doubt"])

    def test_a_sound_image_needs_nothing(self):
        path = self.image()
        code, done = self.report("repair", "--apply", "--output=json", path)
        self.assertEqual((code, done["needed"], done["actions"]), (0, False, []))
        self.assertFalse(os.path.exists(path + ".undo"))

    def test_marks_alone_are_told(self):
        for marks, told in ((1, "marked as dirty"), (2, "marked as corrupt"), (3, "and corrupt")):
            with self.subTest(marks=marks):
                path = self.image(f"marks{marks}")
                with open(path, "r+b") as file:
                    file.seek(79)
                    file.write(bytes([marks]))
                before = content(path)
                plan = run(BYRE, "repair", path, ok=(2,)).text
                self.assertIn(told, plan)
                self.assertIn("--apply takes the mark", plan)
                self.assertEqual(content(path), before)
                done = run(BYRE, "repair", "--apply", path).text
                self.assertRegex(done, "marks? (was|were) taken away")
                self.assertEqual(content(path)[79], 0)
                run(BYRE, "repair", "--undo", path + ".undo", path)
                self.assertEqual(content(path), before)

    def test_what_cannot_be_repaired_is_not_called_nothing(self):
        path = self.image()
        os.truncate(path, os.path.getsize(path) - 64 * KIB)
        done = run(BYRE, "repair", path, ok=(1,)).text
        self.assertIn("None of it can be repaired.", done)
        self.assertNotIn("There is nothing to repair", done)

    def test_an_old_journal_is_in_the_way_and_that_is_said(self):
        path = self.image()
        self.cross_link(path)
        run(BYRE, "repair", "--apply", "--free-orphans", path)
        qemu_io(path, "write -q -P 9 1M 1M")
        self.cross_link(path)
        before = content(path)
        done = run(BYRE, "repair", "--apply", "--free-orphans", path, ok=(1,)).text
        self.assertIn("move the journal away or delete it, or name a new one with --journal", done)
        self.assertEqual(content(path), before)
        run(BYRE, "repair", "--apply", "--free-orphans", "--journal", self.path("new"), path)
        self.assert_sound(path)

    def test_an_image_is_no_journal(self):
        path = self.image()
        os.symlink(path, self.path("link"))
        self.cross_link(path)
        before = content(path)
        for words in (("--undo", path), ("--undo", self.path("link")), ("--apply", "--journal", path)):
            self.assertIn("is the image itself", run(BYRE, "repair", *words, path, ok=(1,)).text)
        self.assertEqual(content(path), before)

    def test_findings_are_a_superset_of_qemus_json(self):
        path = self.image()
        self.cross_link(path)
        plain = img("check", "--output=json", path, ok=(2,)).out
        code, full = self.report("check", "--output=json", "--findings", path)
        self.assertEqual(code, 2)
        findings = full.pop("findings")
        self.assertEqual(json.loads(plain), full)
        alias = [each for each in findings if each["kind"] == "two-owners"]
        self.assertEqual([guest["offset"] for guest in alias[0]["guests"]], [0, 64 * KIB])
        self.assertEqual((alias[0]["cause"], alias[0]["repair"]), ("reuse-race", "copy-for-each-owner"))
        self.assertEqual(run(BYRE, "check", "--findings", path, ok=(1,)).out, b"")

    def test_check_r_all_separates_and_keeps_orphans(self):
        path = self.image()
        victim = self.cross_link(path)
        done = img("check", "-r", "all", path, ok=(3,))
        self.assertIn("may be the only copy", done.text)
        self.assertIn("guest range at 0x0, 131072 bytes", done.text)
        with open(path, "rb") as file:
            file.seek(victim)
            self.assertEqual(file.read(64 * KIB), b"\2" * 64 * KIB)
        self.assertEqual(json.loads(qemu_img("check", "--output=json", path, ok=(3,)).out).get("corruptions", 0), 0)

    def test_a_shared_l2_table_becomes_two(self):
        path = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", path, "2G")
        qemu_io(path, "write -q -P 1 0 256k")
        words = Words(path)
        words[words[40] + 8] = words[words[40]]
        code, full = self.report("check", "--output=json", "--findings", path)
        shared = [each for each in full["findings"] if each["kind"] == "shared-table"]
        self.assertEqual(shared[0]["cause"], "failed-l1-update")
        run(BYRE, "repair", "--apply", path)
        self.assert_sound(path)
        qemu_io(path, "read -q -P 1 0 256k", "read -q -P 1 512M 256k", "write -q -P 5 512M 256k", "read -q -P 1 0 256k")

    def test_snapshots_that_see_damage_are_named(self):
        path = self.image()
        qemu_img("snapshot", "-c", "monday", path)
        qemu_img("snapshot", "-c", "tuesday", path)
        self.cross_link(path)
        _, full = self.report("check", "--output=json", "--findings", path)
        alias = [each for each in full["findings"] if each["kind"] == "two-owners"][0]
        self.assertEqual(alias["guests"][0]["snapshots"], ["monday", "tuesday"])
        self.assertTrue(alias["guests"][0]["active"])
        run(BYRE, "repair", "--apply", "--free-orphans", path)
        self.assert_sound(path)
        qemu_img("snapshot", "-d", "monday", path)
        qemu_img("snapshot", "-d", "tuesday", path)
        self.assert_sound(path)

    def test_options_that_do_not_go_together(self):
        path = self.image()
        for words in (("--undo", path, "--apply"), ("--journal", path), ("-U", "--apply"), ("--undo", path, "-U")):
            self.assertEqual(run(BYRE, "repair", *words, path, ok=(1,)).out, b"")
        run(BYRE, "repair", "-f", "raw", path, ok=(1,))
        raw = self.path("raw")
        run("truncate", "-s", "1M", raw)
        self.assertIn("is not a qcow2 image", run(BYRE, "repair", raw, ok=(1,)).text)

    def test_a_killed_repair_is_undone_or_run_again(self):
        """Many clusters to copy; killed at random moments."""
        draw = random.Random(5)
        base = self.path("base.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", base, "64M")
        qemu_io(base, "write -q -P 1 0 4M")
        words, l2 = Words(base), self.l2(base)
        for index in range(1, 256, 2):
            words[l2 + 8 * index] = words[l2 + 8 * index - 8]
        path, journal = self.path("disk.qcow2"), self.path("journal")
        for _ in range(5):
            shutil.copy(base, path)
            if os.path.exists(journal):
                os.unlink(journal)
            patience = draw.uniform(0.01, 0.3)
            with subprocess.Popen([BYRE, "repair", "--apply", "--free-orphans", "-q", "--journal", journal, path]) as it:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    it.wait(patience)
                it.kill()
            if os.path.exists(journal) and os.path.getsize(journal):
                copy = self.path("copy.qcow2")
                shutil.copy(path, copy)
                run(BYRE, "repair", "--undo", journal, copy)
                self.assertTrue(filecmp.cmp(copy, base, shallow=False))
            run(BYRE, "repair", "--apply", "--free-orphans", "-q", "--journal", journal, path, ok=(0,))
            self.assert_sound(path)
            if os.path.exists(journal):
                run(BYRE, "repair", "--undo", journal, path)
                self.assertTrue(filecmp.cmp(path, base, shallow=False))

    def test_the_reference_agrees_that_repaired_images_are_sound(self):
        for options in ("cluster_size=512", "cluster_size=4k,refcount_bits=64", "extended_l2=on", "compat=0.10"):
            with self.subTest(options):
                path = self.image("disk.qcow2", options)
                self.cross_link(path)
                self.assertTrue(qcow2ref.check(path)["errors"])
                run(BYRE, "repair", "--apply", "--free-orphans", "-q", "--journal", self.path("j"), path)
                self.assert_sound(path)
                os.unlink(self.path("j"))


if __name__ == "__main__":
    main()
