#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""External data files, raw or not, against the real programs: each writes what the other reads.

A model of the disk in memory says what every byte must be; a raw data file must be that model, byte for byte.
"""
import json
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import (BYRE, KIB, MIB, Case, byre_io, describe, img, main, only_byre, options_of,  # noqa: E402
                     qcow2ref, qemu_img, qemu_io, run)

SHAPES = [
    {},
    {"cluster_size": 512},
    {"cluster_size": 4096, "refcount_bits": 1},
    {"cluster_size": "16k", "extended_l2": "on"},
    {"cluster_size": "2M"},
    {"lazy_refcounts": "on"},
]


def label(options):
    return ", ".join(f"{key}={value}" for key, value in options.items()) or "defaults"


def draw_commands(draw, model, count, cluster):
    """Random commands of qemu-io, and what they make of the model."""
    commands = []
    size = len(model)
    for _ in range(count):
        unit = draw.choice([512, 4096, cluster])
        at = draw.randrange(0, size // unit + 1) * unit
        length = draw.randrange(1, 4) * unit if draw.randrange(2) else draw.randrange(1, 64) * 512
        at = min(at, size - 512)
        length = min(length, size - at)
        kind = draw.choice(["write", "write", "write", "zero", "unmap", "discard", "flush"])
        if kind == "write":
            value = draw.randrange(1, 256)
            commands.append(f"write -q -P {value} {at} {length}")
            model[at:at + length] = bytes([value]) * length
        elif kind in ("zero", "unmap"):
            commands.append(f"write -q -z {'-u ' if kind == 'unmap' else ''}{at} {length}")
            model[at:at + length] = bytes(length)
        elif kind == "discard":
            commands.append(f"discard -q {at} {length}")
            start, end = -(-at // cluster) * cluster, (at + length) // cluster * cluster
            if at + length == size:
                end = size
            if start < end:
                model[start:end] = bytes(end - start)
        else:
            commands.append("flush")
    return commands


class DataFile(Case):
    def created(self, program, options, size, raw, name="image"):
        image, data = self.path(name), self.path(name + ".data")
        for path in (image, data):
            if os.path.exists(path):
                os.unlink(path)
        program("create", "-q", "-f", "qcow2", *options_of(**options, data_file=data, data_file_raw="on" if raw else "off"),
                image, size)
        return image, data

    def assert_holds(self, image, data, model, raw):
        with open(self.path("model"), "wb") as file:
            file.write(model)
        self.assert_sound(image)
        self.assert_compares(self.path("model"), image)
        out = self.path("out")
        img("convert", "--force", "-f", "qcow2", "-O", "raw", image, out)
        self.assert_same(self.path("model"), out)
        if raw:
            with open(data, "rb") as file:
                content = file.read()
            self.assertTrue(content[:len(model)] == model, "the raw data file differs from the disk")
            # QEMU fills the last cluster.
            self.assertEqual(content[len(model):].strip(b"\0"), b"")

    def bytes_of(self, options):
        return {"512": 512, "4096": 4096, "16k": 16 * KIB, "2M": 2 * MIB}.get(str(options.get("cluster_size")), 64 * KIB)


@only_byre
class Written(DataFile):
    def test_by_turns(self):
        """Both programs write one image by turns; extended entries and discards included."""
        for raw in (False, True):
            for number, options in enumerate(SHAPES):
                with self.subTest(options=label(options), raw=raw):
                    draw = random.Random(number * 2 + raw)
                    cluster = self.bytes_of(options)
                    size = 4 * MIB + 512 * draw.randrange(0, 8)
                    model = bytearray(size)
                    image, data = self.created(draw.choice([img, qemu_img]), options, size, raw)
                    for turn in range(6):
                        commands = draw_commands(draw, model, 12, cluster)
                        if turn % 2:
                            # Its discards may leave what is not whole clusters, as ours do.
                            qemu_io(image, *commands, options=("-f", "qcow2", "-d", "unmap"))
                        else:
                            byre_io(image, *commands, options=("-f", "qcow2", "-t", draw.choice(["writeback", "none"])))
                        self.assert_holds(image, data, model, raw)

    def test_trap_37_offset_0(self):
        """The first cluster lies at offset 0 of the data file, which is not nowhere."""
        for raw in (False, True):
            with self.subTest(raw=raw):
                image, data = self.created(img, {}, 1 * MIB, raw)
                byre_io(image, "write -q -P 7 0 64k")
                qemu_io(image, "read -q -P 7 0 64k")
                byre_io(image, "write -q -P 8 512 512", "read -q -P 7 1k 63k", "read -q -P 8 512 512")
                qemu_io(image, "read -q -P 8 512 512", "read -q -P 7 1k 63k")
                self.assert_sound(image)

    def test_trap_127_a_raw_data_file_has_an_entry_for_each_cluster(self):
        images = [self.created(program, {}, 3 * MIB + 512, True, name) for program, name in
                  ((img, "ours"), (qemu_img, "theirs"))]
        maps = []
        for image, data in images:
            text = qemu_img("map", "--output=json", image).out.decode()
            maps.append([(entry["start"], entry["length"], entry["data"], entry["offset"]) for entry in json.loads(text)])
        self.assertEqual(maps[0], maps[1])
        for image, data in images:
            img("resize", "-q", "-f", "qcow2", image, "5M")
            self.assertEqual(os.stat(data).st_size, 5 * MIB)
            self.assertEqual(json.loads(qemu_img("map", "--output=json", image).out)[-1]["length"], 5 * MIB)

    def test_map_names_the_data_file(self):
        image, data = self.created(img, {}, 4 * MIB, False)
        byre_io(image, "write -q -P 1 1M 128k", "write -q -z 1088k 64k", "write -q -P 2 3M 64k")
        for words in (["map"], ["map", "--output=json"]):
            self.assertEqual(img(*words, image).out, qemu_img(*words, image).out)

    def test_a_discard_gives_back_the_blocks(self):
        for raw in (False, True):
            with self.subTest(raw=raw):
                image, data = self.created(img, {}, 16 * MIB, raw)
                byre_io(image, "write -q -P 7 0 16M")
                self.assertGreater(os.stat(data).st_blocks * 512, 15 * MIB)
                byre_io(image, "discard -q 1M 14M")
                self.assertLess(os.stat(data).st_blocks * 512, 3 * MIB)
                qemu_io(image, "read -q -P 0 1M 14M", "read -q -P 7 15M 1M")

    def test_create_keeps_what_the_data_file_holds(self):
        data = self.path("data")
        content = random.Random(1).randbytes(1 * MIB)
        for raw in (False, True):
            with open(data, "wb") as file:
                file.write(content)
            image = self.path(f"image{raw}")
            img("create", "-q", "-f", "qcow2", *options_of(data_file=data, data_file_raw="on" if raw else "off"), image, "2M")
            with open(data, "rb") as file:
                self.assertEqual(file.read(1 * MIB), content)
            with open(self.path("model"), "wb") as file:
                file.write(content if raw else b"")
                file.truncate(2 * MIB)
            self.assert_compares(self.path("model"), image)
        done = img("create", "-q", "-f", "qcow2", *options_of(data_file=data, data_file_raw="on"), self.path("short"), "1M", ok=(1,))
        self.assertIn("larger than the disk", done.text)
        self.assertFalse(os.path.exists(self.path("short")))

    def test_sizes(self):
        for raw in (False, True):
            for number, options in enumerate(SHAPES[:4]):
                with self.subTest(options=label(options), raw=raw):
                    draw = random.Random(number)
                    cluster = self.bytes_of(options)
                    model = bytearray(2 * MIB)
                    image, data = self.created(img, options, len(model), raw)
                    for turn in range(6):
                        byre_io(image, *draw_commands(draw, model, 8, cluster))
                        size = draw.randrange(1, 8 * 1024) * 512
                        program = qemu_img if turn % 3 == 2 else img
                        if program is qemu_img and size < len(model):
                            size = size % cluster + -(-len(model) // cluster) * cluster  # It shows old bytes (E2).
                            size = size // 512 * 512 + 512
                        program("resize", "-q", "-f", "qcow2", *(["--shrink"] if size < len(model) else []), image, size)
                        model = (model + bytes(size))[:size]
                        self.assert_holds(image, data, model, raw)
                        if program is img and raw and size < len(model):
                            self.assertEqual(os.stat(data).st_size, size)

    def test_convert_and_serve(self):
        source = self.path("source")
        with open(source, "wb") as file:
            file.write(random.Random(3).randbytes(1 * MIB) + bytes(1 * MIB) + random.Random(4).randbytes(512 * KIB))
        for raw in (False, True):
            with self.subTest(raw=raw):
                image, data = self.path(f"image{raw}"), self.path(f"data{raw}")
                with open(data, "wb") as file:
                    file.write(b"\7" * 3 * MIB)
                words = ["convert", "-O", "qcow2", *options_of(data_file=data, data_file_raw="on" if raw else "off")]
                refused = img(*words, source, image, ok=(1,))
                self.assertIn("exists already", refused.text)
                self.assertEqual(os.stat(data).st_size, 3 * MIB)
                img(*words, "--force", source, image)
                self.assert_compares(source, image)
                if raw:
                    self.assert_same(source, data)
                with self.server(image) as server:
                    run("nbdcopy", server.uri, self.path("copy"))
                    self.assert_same(source, self.path("copy"))
                    os.unlink(self.path("copy"))

    def test_bitmaps_record_what_the_data_file_gets(self):
        for raw in (False, True):
            with self.subTest(raw=raw):
                image, data = self.created(img, {}, 4 * MIB, raw)
                byre_io(image, "write -q -P 1 0 4M")
                qemu_img("bitmap", "--add", image, "changes")
                byre_io(image, "write -q -P 2 64k 64k", "discard -q 1M 64k", "write -q -z 2M 64k", "write -q -z -u 3M 64k")
                self.assert_sound(image)
                self.assertEqual(qcow2ref.Image(image).dirty("changes"),
                                 [(at, at + 64 * KIB) for at in (64 * KIB, 1 * MIB, 2 * MIB, 3 * MIB)])

    def test_what_is_refused(self):
        image, data = self.created(img, {}, 1 * MIB, False)
        with open(image, "rb") as file:
            before = file.read()
        self.assertIn("data file", img("snapshot", "-c", "one", image, ok=(1,)).text)
        byre_io(image, "write -c -P 1 0 64k", ok=(1,))
        byre_io(image, "write -b -P 1 0 64k", ok=(1,))
        img("create", "-q", "-f", "qcow2", *options_of(data_file=self.path("x"), compat="0.10"), self.path("y"), "1M", ok=(1,))
        self.assertFalse(os.path.exists(self.path("x")))
        with open(image, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_the_gate_and_the_lock_hold_for_the_data_file(self):
        os.mkdir(self.path("folder"))
        image, data = self.path("folder/image"), self.path("outside")
        img("create", "-q", "-f", "qcow2", *options_of(data_file=data), image, "1M")
        self.assertIn("not in or below the folder of the image", byre_io(image, "write -q -P 1 0 512", ok=(1,)).text)
        run(BYRE, "resize", "--follow", "any", image, "2M")
        image, data = self.created(img, {}, 1 * MIB, True)
        with self.server(image):
            busy = qemu_io(data, "write -q -P 1 0 512", options=("-f", "raw"), ok=(1,))
            self.assertIn("lock", busy.text)

    def test_data_file_at_an_odd_end(self):
        """A data file that ends early reads as zeros behind its end, and grows when it is written."""
        image, data = self.created(qemu_img, {}, 1 * MIB, False)
        qemu_io(image, "write -q -P 5 0 1M")
        os.truncate(data, 100 * KIB + 512)
        byre_io(image, "read -q -P 5 0 100k", "read -q -P 0 101k 923k", "write -q -P 6 300k 1k")
        qemu_io(image, "read -q -P 5 0 100k", "read -q -P 0 101k 199k", "read -q -P 6 300k 1k")
        self.assertEqual(describe(image)["virtual-size"], 1 * MIB)


if __name__ == "__main__":
    main()
