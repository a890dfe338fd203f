#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Images of qcow version 1, which the real qemu-img makes, are read by byre and never written.

    BYRE=build/release/byre python3 tests/interop/qcow1_test.py
"""
import json
import os
import random
import re
import resource
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "support"))
from harness import BYRE, KIB, MIB, PATIENCE, Case, main, only_byre, qemu_img, qemu_io, run  # noqa: E402

LIMIT = 256 * MIB
TOO_MANY = (1 << 40, 1 << 55, 1 << 62, 1 << 63, (1 << 64) - 1)
# Places in the header, and how an integer there is packed.
BACKING_OFFSET, BACKING_SIZE, SIZE = (8, ">Q"), (16, ">I"), (24, ">Q")
CLUSTER_BITS, L2_BITS, CRYPT_METHOD, L1_OFFSET = (32, ">B"), (33, ">B"), (36, ">I"), (40, ">Q")
VERSION = (4, ">I")


def device(filename, **options):
    return "json:" + json.dumps({"driver": "qcow", "file": {"driver": "file", "filename": filename}, **options})


def comparable(text):
    """Without what a file system may change between two runs."""
    text = re.sub(r"^disk size: .*$", "disk size: SIZE", text, flags=re.M)
    return re.sub(r'"actual-size": \d+', '"actual-size": SIZE', text)


def limited():
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


class Qcow1Case(Case):
    """Real images, all in the test's folder, which is the working directory of every program."""

    def setUp(self):
        super().setUp()
        # Under this name byre has qemu-img's defaults, words and exit codes.
        self.as_qemu = {}
        os.mkdir(self.path("bin"))
        for program in ("qemu-img", "qemu-io"):
            self.as_qemu[program] = self.path(os.path.join("bin", program))
            os.symlink(BYRE, self.as_qemu[program])
        self.make_raw("base.raw", MIB, "write -P 1 0 300k", "write -P 2 512k 64k", "write -P 3 1000k 24k")

    def make_raw(self, name, size, *commands):
        qemu_img("create", "-q", "-f", "raw", name, size, cwd=self.folder)
        self.write_real(name, *commands, form="raw")

    def write_real(self, name, *commands, form="qcow"):
        qemu_io(name, *commands, options=("-f", form), cwd=self.folder)

    def create(self, name, size=None, base=None, base_format=None,
               commands=("write -P 5 64k 100k", "write -P 6 700000 100")):
        words = ["-b", base, "-F", base_format] if base else []
        words += [name] + ([str(size)] if size else [])
        qemu_img("create", "-q", "-f", "qcow", *words, cwd=self.folder)
        if commands:
            self.write_real(name, *commands)
        return name

    def convert_real(self, source, target, *options, form="raw", out="qcow"):
        qemu_img("convert", *options, "-f", form, "-O", out, source, target, cwd=self.folder)
        return target

    def packed(self, source="base.raw", target="packed.qcow"):
        """A compressed image.  The exit code of qemu-img 7.2 is 1 here although the image is good."""
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow", source, target, ok=(0, 1), cwd=self.folder)
        qemu_img("compare", "-f", "raw", "-F", "qcow", source, target, cwd=self.folder)
        return target

    def alone(self):
        """Images without a backing file."""
        return [self.create("empty.qcow", MIB, commands=()), self.create("written.qcow", MIB),
                self.create("odd.qcow", MIB + 512, commands=("write -P 9 1M 512", "write -P 8 100 1000")),
                self.convert_real("base.raw", "copied.qcow"), self.packed()]

    def over_others(self):
        """Images over a raw, a qcow2 and a qcow file, and larger and smaller than their backing file."""
        self.convert_real("base.raw", "base.qcow2", out="qcow2")
        self.convert_real("base.raw", "base.qcow")
        return [self.create("over-raw.qcow", base="base.raw", base_format="raw"),
                self.create("over-qcow2.qcow", base="base.qcow2", base_format="qcow2"),
                self.create("over-qcow.qcow", base="base.qcow", base_format="qcow"),
                self.create("over-packed.qcow", base=self.packed(), base_format="qcow"),
                self.create("third.qcow", base="over-qcow2.qcow", base_format="qcow", commands=("write -P 7 0 1k",)),
                self.create("larger.qcow", 3 * MIB, "base.raw", "raw", commands=("write -P 7 2M 1k",)),
                self.create("smaller.qcow", 512 * KIB, "base.raw", "raw", commands=("write -P 7 1k 1k",))]

    def byre(self, *words, code=0, **popen):
        """Under its own name."""
        return run(BYRE, *words, ok=(code,), cwd=self.folder, **popen)

    def same(self, *words, code=None):
        """The real qemu-img and byre under its name tell the same and end the same way."""
        with self.subTest(words=words):
            told = []
            for program in ("qemu-img", self.as_qemu["qemu-img"]):
                done = run(program, *words, ok=None, cwd=self.folder)
                told.append({"code": done.code, "out": comparable(done.out.decode()).splitlines(),
                             "err": comparable(done.err.decode()).splitlines()})
            self.assertEqual(*told)
            if code is not None:
                self.assertEqual(told[0]["code"], code)

    def same_json(self, *words):
        """As same(), whatever the order of the keys."""
        with self.subTest(words=words):
            told = []
            for program in ("qemu-img", self.as_qemu["qemu-img"]):
                done = run(program, *words, "--output=json", cwd=self.folder)
                told.append(json.loads(re.sub(r'"actual-size": \d+', '"actual-size": 0', done.out.decode())))
            self.assertEqual(*told)

    def reads_same(self, image, *options, form="qcow"):
        """byre converts to raw what the real qemu-img converts, bit for bit."""
        with self.subTest(image=image, options=options):
            qemu_img("convert", "-f", form, "-O", "raw", image, "real.raw", cwd=self.folder)
            self.byre("convert", *options, "-O", "raw", "--force", image, "ours.raw")
            self.assert_same(self.path("real.raw"), self.path("ours.raw"))
            self.assertEqual(os.stat(self.path("real.raw")).st_size, os.stat(self.path("ours.raw")).st_size)

    def bytes_of(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def write_bytes(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)
        return name

    def patched(self, image, *changes, name="damaged.qcow"):
        """A copy with other integers at some places: ((offset, format), value)."""
        data = bytearray(self.bytes_of(image))
        for (at, form), value in changes:
            struct.pack_into(form, data, at, value)
        return self.write_bytes(name, data)

    def header(self, image):
        size, cluster_bits, l2_bits, _, crypt, l1 = struct.unpack(">QBBHIQ", self.bytes_of(image)[24:48])
        self.assertEqual(crypt, 0)
        return {"size": size, "cluster_bits": cluster_bits, "l2_bits": l2_bits, "l1": l1}


@only_byre
class Reading(Qcow1Case):
    def test_an_image_alone_converts_to_the_same_bytes(self):
        for image in self.alone():
            self.reads_same(image)
            self.reads_same(image, "-f", "qcow")

    def test_an_image_over_any_base_converts_to_the_same_bytes(self):
        for image in self.over_others():
            self.reads_same(image)
            self.reads_same(image, "-f", "qcow")

    def test_info_is_what_the_real_one_says(self):
        for image in self.alone() + self.over_others():
            for form in ([], ["-f", "qcow"]):
                self.same("info", *form, image, code=0)
                self.same_json("info", *form, image)

    def test_info_follows_the_backing_chain(self):
        for image in self.over_others():
            self.same("info", "--backing-chain", image, code=0)
            self.same_json("info", "--backing-chain", image)

    def test_the_map_of_an_image_alone_is_the_same(self):
        for image in self.alone():
            self.same("map", "--output=json", image, code=0)
            self.same("map", "--output=json", "-f", "qcow", image, code=0)
            if image != "packed.qcow":
                self.same("map", image, code=0)

    def test_the_map_for_people_lists_compressed_ranges_under_the_name_byre_only(self):
        image = self.packed()
        done = self.byre("map", image)
        self.assertIn(b"compressed", done.out)
        for program in ("qemu-img", self.as_qemu["qemu-img"]):
            done = run(program, "map", image, ok=None, cwd=self.folder)
            self.assertEqual(done.code, 1)
            self.assertIn("File contains external, encrypted or compressed clusters.", done.text)

    def test_the_map_of_an_image_over_a_base_shows_the_base(self):
        for image in self.over_others():
            if image in ("over-qcow2.qcow", "third.qcow"):
                continue  # Holes in the file of a qcow2 base: byre tells them apart, QEMU 7.2 only where it is the top.
            self.same("map", "--output=json", image, code=0)

    def test_a_map_never_calls_data_of_the_base_zeros(self):
        image = self.create("over-raw.qcow", base="base.raw", base_format="raw")
        for entry in json.loads(self.byre("map", "--output=json", image).out):
            if entry["start"] < 300 * KIB:
                self.assertFalse(entry["zero"], entry)

    def test_reads_of_io_see_what_the_real_one_wrote(self):
        self.over_others()
        for image, commands in (("over-raw.qcow", ["read -P 1 0 64k", "read -P 5 64k 100k", "read -P 6 700000 100"]),
                                ("third.qcow", ["read -P 7 0 1k", "read -P 1 1k 1k", "read -P 3 1000k 24k"]),
                                ("larger.qcow", ["read -P 3 1000k 24k", "read -P 0 1M 1M", "read -P 7 2M 1k"])):
            flat = [word for command in commands for word in ("-c", command)]
            done = self.byre("io", "-r", *flat, image)
            self.assertNotIn("failed", done.text)

    def test_devices_name_an_image(self):
        image = self.create("over-raw.qcow", base="base.raw", base_format="raw")
        opts = f"driver=qcow,file.filename={image}"
        self.same("info", "--image-opts", opts, code=0)
        self.same("info", device(image), code=0)
        self.byre("convert", "--image-opts", opts, "-O", "raw", "opts.raw")
        self.byre("convert", device(image), "-O", "raw", "json.raw")
        self.convert_real(image, "real.raw", form="qcow", out="raw")
        self.assert_same(self.path("real.raw"), self.path("opts.raw"))
        self.assert_same(self.path("real.raw"), self.path("json.raw"))
        done = self.byre("io", "-r", "-c", "read -P 1 0 64k", "--image-opts", opts)
        self.assertNotIn("failed", done.text)

    def test_null_as_backing_leaves_the_base_out(self):
        image = self.create("over-raw.qcow", base="base.raw", base_format="raw")
        self.same("map", "--output=json", device(image, backing=None), code=0)
        done = self.byre("io", "-r", "-c", "read -P 0 0 64k", "-c", "read -P 5 64k 100k", device(image, backing=None))
        self.assertNotIn("failed", done.text)

    def test_another_device_may_be_the_backing_one(self):
        image = self.create("over-raw.qcow", base="base.raw", base_format="raw")
        self.make_raw("other.raw", MIB, "write -P 77 0 1M")
        other = {"driver": "raw", "file": {"driver": "file", "filename": "other.raw"}}
        done = self.byre("io", "-r", "-c", "read -P 77 0 64k", "-c", "read -P 5 64k 100k", device(image, backing=other))
        self.assertNotIn("failed", done.text)

    def test_wrong_options_of_the_device_are_refused(self):
        image = self.create("written.qcow", MIB)
        self.same("info", "--image-opts", f"driver=qcow,file.filename={image},foo=1", code=1)
        self.same("info", 'json:{"driver":"qcow"}', code=1)
        done = self.byre("info", device(image, **{"encrypt.format": "aes"}), code=64)
        self.assertIn("encrypt.format", done.text)

    def test_a_wrong_format_is_refused(self):
        image = self.create("written.qcow", MIB)
        qemu_img("create", "-q", "-f", "qcow2", "disk.qcow2", "1M", cwd=self.folder)
        for words, why in ((["-f", "qcow", "base.raw"], "not in qcow format"), (["-f", "qcow", "disk.qcow2"], "qcow"),
                           (["-f", "qcow2", image], "version 1")):
            self.assertEqual(qemu_img("info", *words, ok=None, cwd=self.folder).code, 1)
            done = run(BYRE, "info", *words, ok=None, cwd=self.folder)
            self.assertNotEqual(done.code, 0, words)
            self.assertIn(why, done.text)
        self.same("info", "-f", "raw", image, code=0)

    def test_check_says_that_the_format_has_no_check(self):
        self.same("check", self.create("written.qcow", MIB), code=63)

    def test_it_is_served_for_reading(self):
        image = self.create("over-raw.qcow", base="base.raw", base_format="raw")
        with self.server(self.path(image), form="qcow", read_only=True) as server:
            qemu_img("convert", "-f", "raw", "-O", "raw", server.uri, self.path("served.raw"))
        self.convert_real(image, "real.raw", form="qcow", out="raw")
        self.assert_same(self.path("real.raw"), self.path("served.raw"))


@only_byre
class Chains(Qcow1Case):
    def over(self):
        """A qcow2 image over a qcow image, by the real qemu-img."""
        self.create("below.qcow", MIB)
        qemu_img("create", "-q", "-f", "qcow2", "-b", "below.qcow", "-F", "qcow", "top.qcow2", cwd=self.folder)
        self.write_real("top.qcow2", "write -P 9 0 4k", form="qcow2")
        return "top.qcow2"

    def test_a_qcow2_image_over_a_qcow_image_tells_its_chain(self):
        top = self.over()
        self.same("info", "--backing-chain", top, code=0)
        self.same_json("info", "--backing-chain", top)

    def test_a_qcow2_image_over_a_qcow_image_is_refused(self):
        for words in (["map", self.over()], ["convert", "-O", "raw", self.over(), "out.raw"]):
            done = self.byre(*words, code=69)
            self.assertIn("format 'qcow' cannot lie below an image", done.text)
        self.assertFalse(os.path.exists(self.path("out.raw")))

    def test_a_new_qcow2_image_is_not_put_over_a_qcow_image(self):
        self.create("below.qcow", 3 * MIB)
        done = self.byre("create", "-q", "-f", "qcow2", "-b", "below.qcow", "-F", "qcow", "new.qcow2", code=69)
        self.assertIn("byre convert -O qcow2 'below.qcow' COPY", done.text)
        self.assertFalse(os.path.exists(self.path("new.qcow2")))

    def test_a_backing_file_outside_the_folder_of_the_image_is_refused_with_advice(self):
        os.mkdir(self.path("inner"))
        image = self.create(os.path.join("inner", "over.qcow"), base=self.path("base.raw"), base_format="raw")
        for words in (["convert", image, "out.raw"], ["io", "-r", "-c", "read 0 512", image],
                      ["info", "--backing-chain", image], ["serve", "-r", "-k", self.path("nbd"), image]):
            for policy in ([], ["--follow", "same-directory"], ["--follow", "nothing"]):
                with self.subTest(words=words, policy=policy):
                    done = self.byre(words[0], *policy, *words[1:], code=77)
                    self.assertIn("--follow any", done.text)
                    self.assertIn("base.raw", done.text)
        self.assertFalse(os.path.exists(self.path("out.raw")))
        self.byre("info", image)
        self.byre("info", "--follow", "any", "--backing-chain", image)
        self.reads_same(image, "--follow", "any")
        done = self.byre("io", "-r", "--follow", "any", "-c", "read -P 1 0 64k", image)
        self.assertNotIn("failed", done.text)
        self.byre("convert", image, "by-env.raw", env={**os.environ, "BYRE_FOLLOW": "any"})

    def test_a_missing_backing_file_is_named(self):
        qemu_img("create", "-q", "-u", "-f", "qcow", "-b", "missing.raw", "-F", "raw", "over.qcow", "1M", cwd=self.folder)
        self.byre("info", "over.qcow")
        for words in (["convert", "over.qcow", "out.raw"], ["io", "-r", "-c", "read 0 512", "over.qcow"],
                      ["info", "--backing-chain", "over.qcow"]):
            self.assertIn("missing.raw", self.byre(*words, code=66).text)

    def test_a_circle_ends(self):
        for image, base in (("one.qcow", "two.qcow"), ("two.qcow", "one.qcow")):
            qemu_img("create", "-q", "-u", "-f", "qcow", "-b", base, "-F", "qcow", image, "1M", cwd=self.folder)
        for words in (["convert", "one.qcow", "out.raw"], ["io", "-r", "-c", "read 0 512", "one.qcow"],
                      ["info", "--backing-chain", "one.qcow"]):
            with self.subTest(words=words):
                done = run(BYRE, *words, ok=None, cwd=self.folder, preexec_fn=limited)
                self.assertNotEqual(done.code, 0, done)
                self.assertNotEqual(done.err, b"")

    def test_a_chain_longer_than_allowed_is_refused(self):
        self.convert_real("base.raw", "0.qcow")
        for number in range(1, 5):
            self.create(f"{number}.qcow", base=f"{number - 1}.qcow", base_format="qcow", commands=())
        env = {**os.environ, "BYRE_CHAIN_MAX": "2"}
        done = run(BYRE, "convert", "4.qcow", "out.raw", ok=None, cwd=self.folder, env=env)
        self.assertNotEqual(done.code, 0)
        self.assertIn("chain", done.text)
        self.reads_same("4.qcow")


@only_byre
class Writing(Qcow1Case):
    def test_what_would_write_an_image_is_refused_and_changes_nothing(self):
        image = self.create("written.qcow", MIB)
        before = self.bytes_of(image)
        for words in (["resize", image, "2M"], ["resize", "-f", "qcow", image, "2M"],
                      ["resize", "--shrink", image, "512k"],
                      ["io", "-c", "write 0 512", image], ["io", "-f", "qcow", "-c", "write 0 512", image],
                      ["io", "-c", "write 0 512", device(image)], ["io", "-c", "discard 0 4k", image],
                      ["convert", "-n", "-f", "raw", "-O", "qcow2", "base.raw", image],
                      ["convert", "-n", "-O", "qcow", "base.raw", image],
                      ["convert", "-n", "--target-image-opts", "base.raw", f"driver=qcow,file.filename={image}"],
                      ["serve", "-k", self.path("nbd"), image], ["serve", "-f", "qcow", "-k", self.path("nbd"), image],
                      ["snapshot", "-c", "one", image], ["bitmap", "--add", image, "b0"],
                      ["amend", "-o", "size=2M", image],
                      ["repair", image], ["repair", "--apply", image]):
            with self.subTest(words=words):
                done = run(BYRE, *words, ok=None, cwd=self.folder, patience=min(PATIENCE, 30))
                self.assertIn(done.code, (64, 69, 77), done)
                self.assertRegex(done.text, "qcow version 1|format 'qcow'|not a qcow2 image|not .*writ")
                self.assertEqual(self.bytes_of(image), before)

    def test_writes_and_discards_of_a_reader_are_refused(self):
        image = self.create("written.qcow", MIB)
        before = self.bytes_of(image)
        for command in ("write 0 512", "write -z 0 4k", "discard 0 4k", "truncate 2M", "write -c 0 4k"):
            with self.subTest(command=command):
                done = run(BYRE, "io", "-r", "-c", command, image, ok=None, cwd=self.folder)
                self.assertNotEqual(done.code, 0, done)
                self.assertNotEqual(done.text, "")
                self.assertEqual(self.bytes_of(image), before)

    def test_no_image_is_made(self):
        for words in (["create", "-f", "qcow", "new.qcow", "1M"],
                      ["create", "-f", "qcow", "-b", "base.raw", "-F", "raw", "new.qcow"],
                      ["convert", "-O", "qcow", "base.raw", "new.qcow"],
                      ["convert", "-c", "-O", "qcow", "base.raw", "new.qcow"]):
            with self.subTest(words=words):
                self.assertIn("qcow", self.byre(*words, code=69).text)
                self.assertFalse(os.path.exists(self.path("new.qcow")))
                done = run(self.as_qemu["qemu-img"], *words[:1], "-q", *words[1:], ok=None, cwd=self.folder)
                self.assertEqual(done.code, 1, done)
                self.assertFalse(os.path.exists(self.path("new.qcow")))

    def test_an_image_that_is_there_survives_a_refused_create(self):
        image = self.create("written.qcow", MIB)
        before = self.bytes_of(image)
        for words in (["create", "-f", "qcow", "--force", image, "1M"],
                      ["convert", "-O", "qcow", "--force", "base.raw", image]):
            self.byre(*words, code=69)
            self.assertEqual(self.bytes_of(image), before)


@only_byre
class Damaged(Qcow1Case):
    def refused(self, image, why, *, commands=("info", "map", "convert", "io")):
        """Each command ends with an error that says why, in little memory."""
        for command, words in (("info", ["info", "-f", "qcow", image]), ("map", ["map", "-f", "qcow", image]),
                               ("convert", ["convert", "-f", "qcow", "-O", "raw", "--force", image, "out.raw"]),
                               ("io", ["io", "-r", "-f", "qcow", "-c", "read 0 1M", image])):
            if command in commands:
                done = run(BYRE, *words, ok=None, cwd=self.folder, preexec_fn=limited)
                self.assertNotEqual(done.code, 0, done)
                self.assertRegex(done.err.decode(errors="replace"), why)

    def test_a_header_that_is_cut_off(self):
        whole = self.bytes_of(self.create("written.qcow", MIB))
        for size in (0, 3, 4, 8, 20, 47):
            with self.subTest(size=size):
                self.refused(self.write_bytes("damaged.qcow", whole[:size]), "too few|not in qcow format")

    def test_a_file_that_ends_after_its_header(self):
        whole = self.bytes_of(self.create("written.qcow", MIB))
        for size in (48, 50):
            self.refused(self.write_bytes("damaged.qcow", whole[:size]), "L1 table .* passes the end of the file")

    def test_each_field_of_the_header(self):
        image = self.create("written.qcow", MIB)
        for field, values, why in ((CLUSTER_BITS, (0, 1, 8, 17, 63, 64, 255), "cluster_bits is"),
                                   (L2_BITS, (0, 5, 14, 63, 64, 255), "l2_bits is"),
                                   (SIZE, (0, 1), "a disk of [01] bytes"),
                                   (SIZE, TOO_MANY, "L1 table|a disk of"),
                                   (CRYPT_METHOD, (2, 3, 0xffffffff), "crypt_method is"),
                                   (L1_OFFSET, (0, 1, 47), "L1 table at"),
                                   (L1_OFFSET, TOO_MANY, "L1 table"),
                                   (VERSION, (0, 4, 0xffffffff), "version|not in qcow format")):
            for value in values:
                with self.subTest(field=field, value=value):
                    self.refused(self.patched(image, (field, value)), why)

    def test_the_real_one_refuses_most_of_them_too(self):
        image = self.create("written.qcow", MIB)
        for change in ((CLUSTER_BITS, 8), (CLUSTER_BITS, 17), (L2_BITS, 5), (L2_BITS, 14), (SIZE, 0), (SIZE, 1),
                       (SIZE, (1 << 64) - 1), (CRYPT_METHOD, 2)):
            damaged = self.patched(image, change)
            self.same_code("info", "-f", "qcow", damaged)

    def same_code(self, *words):
        programs = "qemu-img", self.as_qemu["qemu-img"]
        codes = [run(program, *words, ok=None, cwd=self.folder).code for program in programs]
        self.assertEqual(*codes, words)
        self.assertEqual(codes[0], 1)

    def test_the_name_of_the_backing_file(self):
        image = self.create("over-raw.qcow", base="base.raw", base_format="raw")
        for changes, why in (([(BACKING_SIZE, 1024)], "backing file name of 1024 bytes"),
                             ([(BACKING_SIZE, 0xffffffff)], "backing file name of"),
                             ([(BACKING_OFFSET, 1 << 40)], "backing file .* passes the end of the file"),
                             ([(BACKING_OFFSET, (1 << 64) - 1)], "backing file name at")):
            with self.subTest(why=why):
                self.refused(self.patched(image, *changes), why)

    def test_an_encrypted_image_is_refused(self):
        image = self.create("written.qcow", MIB)
        self.refused(self.patched(image, (CRYPT_METHOD, 1)), "encrypted", commands=("map", "convert", "io"))
        done = run(BYRE, "convert", "damaged.qcow", "out.raw", ok=None, cwd=self.folder)
        self.assertEqual(done.code, 69, done)

    def test_entries_that_lead_nowhere(self):
        image = self.convert_real("base.raw", "copied.qcow")
        header = self.header(image)
        l1 = (header["l1"], ">Q")
        l2_at, = struct.unpack_from(">Q", self.bytes_of(image), header["l1"])
        l2 = (l2_at, ">Q")
        stream = 1 << 63 | 100 << (63 - header["cluster_bits"])
        for change, why in (((l1, 1 << 40), "L2 table .* passes the end of the file"), ((l1, 1), "L1 entry"),
                            ((l1, (1 << 64) - 1), "L1 entry"), ((l2, 1 << 40), "cluster at .* ends at"),
                            ((l2, 513), "not sector aligned"), ((l2, 1 << 63), "a stream of 0 bytes"),
                            ((l2, stream), "a stream in the header"),
                            ((l2, stream | 1 << 40), "compressed stream of .* passes the end of the file")):
            with self.subTest(change=change):
                self.refused(self.patched(image, change), why, commands=("convert", "io"))
                # Other parts of the disk can be read still, unless the table is gone.
                if change[0] == l2:
                    done = self.byre("io", "-r", "-c", "read -P 1 64k 4k", "damaged.qcow")
                    self.assertNotIn("failed", done.text)

    def test_a_stream_that_does_not_inflate(self):
        image = self.packed()
        header = self.header(image)
        data = self.bytes_of(image)
        l2_at, = struct.unpack_from(">Q", data, header["l1"])
        entry, = struct.unpack_from(">Q", data, l2_at)
        self.assertTrue(entry >> 63, "the first cluster is compressed")
        at = entry & ((1 << 63 - header["cluster_bits"]) - 1)
        self.refused(self.patched(image, ((at, ">Q"), (1 << 64) - 1)), "stream|inflate|decompress",
                     commands=("convert", "io"))

    def test_a_file_that_is_cut_off_within_its_clusters(self):
        image = self.convert_real("base.raw", "copied.qcow")
        whole = self.bytes_of(image)
        self.write_bytes("damaged.qcow", whole[:len(whole) // 2])
        done = run(BYRE, "convert", "damaged.qcow", "out.raw", ok=None, cwd=self.folder, preexec_fn=limited)
        self.assertNotEqual(done.code, 0)
        self.assertRegex(done.text, "the file ends at")

    def cut_off(self):
        """An image whose clusters lie one behind the other, and whose file ends between two of them."""
        self.make_raw("full.raw", MIB, "write -P 1 0 1M")
        image = self.convert_real("full.raw", "full.qcow")
        os.truncate(self.path(image), 300 * KIB)
        return image

    def test_a_cluster_behind_the_end_of_the_file_is_an_error(self):
        done = self.byre("io", "-r", "-c", "read 600k 4k", self.cut_off(), code=1)
        self.assertIn("the file ends at", done.text)

    def test_clusters_behind_the_end_are_an_error_of_a_long_read_too(self):
        done = self.byre("io", "-r", "-c", "read 0 1M", self.cut_off(), code=1)
        self.assertIn("the file ends at", done.text)

    def test_salvage_tells_what_a_cut_off_file_has_lost(self):
        image = self.cut_off()
        done = self.byre("convert", "--salvage", "--output=json", image, "out.raw", code=4)
        told = json.loads(done.out)
        self.assertGreater(told["lost-bytes"], 700000)

    def test_dump_is_for_qcow2_images(self):
        self.assertIn("qcow version 1", self.byre("dump", self.create("written.qcow", MIB), "header", code=69).text)

    def test_info_of_an_encrypted_image(self):
        run("qemu-img", "create", "-q", "--object", "secret,id=s,data=words", "-f", "qcow", "-o",
            "encrypt.format=aes,encrypt.key-secret=s", "secret.qcow", "1M", cwd=self.folder)
        for words in ((), ("-f", "qcow")):
            self.same("info", *words, "secret.qcow", code=0)
            self.same_json("info", *words, "secret.qcow")
        self.assertIn("encrypted (AES)", self.byre("io", "-r", "-c", "length", "secret.qcow", code=69).text)

    def test_a_huge_disk_takes_little_memory(self):
        """The L1 table has 256 MiB here, and all of it is a hole."""
        header = struct.pack(">4sIQIIQBBHIQ", b"QFI\xfb", 1, 0, 0, 0, 1 << 40, 9, 6, 0, 0, 4096)
        with open(self.path("huge.qcow"), "wb") as file:
            file.write(header)
            file.truncate(4096 + (8 << 25))
        for words in (["info", "huge.qcow"], ["io", "-r", "-c", "read -P 0 0 1M", "-c", "read -P 0 1000G 1M", "huge.qcow"]):
            done = self.byre(*words, preexec_fn=limited)
            self.assertNotIn("failed", done.text)

    def test_headers_with_random_bytes_never_crash_it(self):
        image = self.bytes_of(self.create("over-raw.qcow", base="base.raw", base_format="raw"))
        for seed in range(60):
            with self.subTest(seed=seed):
                choose = random.Random(seed)
                data = bytearray(image)
                for _ in range(choose.randint(1, 4)):
                    data[choose.randrange(4, 48)] = choose.choice((0, 1, 127, 128, 255, choose.randrange(256)))
                self.write_bytes("damaged.qcow", data)
                # Died if a signal ends it.
                run(BYRE, "io", "-r", "-f", "qcow", "-c", "read 0 64k", "damaged.qcow", ok=None, cwd=self.folder,
                    preexec_fn=limited)


if __name__ == "__main__":
    main()
