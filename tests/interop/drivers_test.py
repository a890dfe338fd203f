#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each driver by its name, through json:{...} and --image-opts, beside the real qemu-img and qemu-io.

The log of blklogwrites is read by a parser of its own here, after the kernel's description of dm-log-writes.
device_tree_test.py has the names themselves, and the options of qcow2, raw and file.

    BYRE=build/release/byre python3 tests/interop/drivers_test.py
"""
import json
import os
import re
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "support"))
from harness import BYRE, KIB, MIB, Case, main, only_byre, qemu_img, qemu_io, run  # noqa: E402

QEMU = {"qemu-img": "qemu-img", "qemu-io": "qemu-io"}


def name(driver, **options):
    return "json:" + json.dumps({"driver": driver, **{key.replace("_", "-"): value for key, value in options.items()}})


def file_node(filename):
    return {"driver": "file", "filename": filename}


def raw_node(filename):
    return {"driver": "raw", "file": file_node(filename)}


def qcow2_node(filename, **options):
    return {"driver": "qcow2", "file": file_node(filename), **options}


def comparable(text):
    text = re.sub(r"1 ops; .* \(.*/sec and .* ops/sec\)", "1 ops; TIME (SPEED)", text)
    # QEMU explains suffixes behind the message.
    return re.sub(r"\nOptional suffix k, M.*\nand exabytes, respectively\.", "", text)


class DriverCase(Case):
    """Two folders, in which the real programs and byre find the same files."""

    def setUp(self):
        super().setUp()
        self.byre_as = {}
        for program in QEMU:
            self.byre_as[program] = self.path(program)
            os.symlink(BYRE, self.byre_as[program])
        for who in ("qemu", "byre"):
            os.mkdir(self.path(who))
            with open(self.at(who, "disk.raw"), "wb") as file:
                file.truncate(MIB)
            for image, *base in (("disk.qcow2",), ("base.qcow2",), ("top.qcow2", "-b", "base.qcow2", "-F", "qcow2")):
                qemu_img("create", "-q", "-f", "qcow2", *base, image, *([] if base else ["1M"]), cwd=self.path(who))
            qemu_io("base.qcow2", "write -P 1 0 512k", cwd=self.path(who))

    def at(self, who, filename):
        return os.path.join(self.folder, who, filename)

    def play(self, who, program, *words):
        programs = QEMU if who == "qemu" else self.byre_as
        return run(programs[program], *words, ok=None, cwd=self.path(who))

    def same(self, program, *words, code=None, errors=True):
        """Output, exit code and, with `errors`, what is on stderr."""
        with self.subTest(program=program, words=words):
            told = []
            for who in ("qemu", "byre"):
                done = self.play(who, program, *words)
                told.append({"code": done.code, "out": comparable(done.out.decode()).splitlines(),
                             "err": comparable(done.err.decode()).splitlines() if errors else None})
            self.assertEqual(*told)
            if code is not None:
                self.assertEqual(told[0]["code"], code)

    def io_same(self, disk, *commands, code=0, errors=True):
        """Commands of qemu-io on a disk, which is a name or the words behind the commands."""
        flat = [word for command in commands for word in ("-c", command)]
        self.same("qemu-io", *flat, *([disk] if isinstance(disk, str) else disk), code=code, errors=errors)

    def byre(self, *words, code=0):
        """Under its own name."""
        return run(BYRE, *words, ok=(code,), cwd=self.path("byre"))

    def io(self, disk, *commands, code=0):
        flat = [word for command in commands for word in ("-c", command)]
        done = self.byre("io", *flat, *([disk] if isinstance(disk, str) else disk), code=code)
        if code == 0:
            self.assertNotIn("failed", done.text)
        return done

    def refused_by_both(self, opts, why):
        """Each refuses it with exit code 1, in words of its own; byre's have `why`."""
        with self.subTest(opts=opts):
            for who in ("qemu", "byre"):
                done = self.play(who, "qemu-io", "-c", "length", "--image-opts", opts)
                self.assertEqual(done.code, 1, done)
            self.assertRegex(done.err.decode(), why)

    def refused(self, opts, why):
        """By byre, where QEMU takes it, dies, or wants something else first."""
        with self.subTest(opts=opts):
            done = self.play("byre", "qemu-io", "-c", "length", "--image-opts", opts)
            self.assertEqual(done.code, 1, done)
            self.assertRegex(done.err.decode(), why)
            done = run(BYRE, "io", "-c", "length", "--image-opts", opts, ok=None, cwd=self.path("byre"))
            self.assertIn(done.code, (64, 69), done)

    def read(self, filename, who="byre"):
        with open(self.at(who, filename), "rb") as file:
            return file.read()

    def same_contents(self, image="disk.raw", form="raw"):
        """Both wrote the same."""
        qemu_img("compare", "-f", form, "-F", form, self.at("qemu", image), self.at("byre", image))

    def check(self, image, who="byre"):
        qemu_img("check", "-q", "-f", "qcow2", self.at(who, image))


WRITES = ("write -P 3 0 64k", "write -P 4 700 100", "write -z 100 20000", "write -P 5 100k 300k", "discard 128k 64k",
          "write -P 6 1023k 1k", "flush")
READS = ("read -P 0 100 20000", "read -P 3 20100 45436", "read -P 5 100k 28k", "read -P 5 192k 208k",
         "read -P 6 1023k 1k", "read 0 1M", "length")


@only_byre
class Blkverify(DriverCase):
    EQUAL = name("blkverify", test=raw_node("disk.raw"), raw=file_node("copy.raw"))

    def setUp(self):
        super().setUp()
        for who in ("qemu", "byre"):
            with open(self.at(who, "copy.raw"), "wb") as file:
                file.truncate(MIB)
            with open(self.at(who, "large.raw"), "wb") as file:
                file.truncate(2 * MIB)

    def spoil(self, filename, offset):
        for who in ("qemu", "byre"):
            with open(self.at(who, filename), "r+b") as file:
                file.seek(offset)
                file.write(b"\x77")

    def test_equal_disks_are_read_and_written_as_one(self):
        # QEMU 7.2 asserts at `write -z` and `discard` of this driver.
        self.io_same(self.EQUAL, "write -P 3 0 64k", "read -P 3 0 64k", "write -P 4 700 100", "read -P 4 700 100",
                     "write -P 5 100k 300k", "read 0 1M", "flush", "length")
        self.same_contents()
        self.io(self.EQUAL, *WRITES)
        self.io(self.EQUAL, *READS)
        self.assertEqual(self.read("disk.raw"), self.read("copy.raw"))

    def test_a_qcow2_image_is_verified_by_a_raw_file(self):
        disk = name("blkverify", test=qcow2_node("disk.qcow2"), raw=file_node("copy.raw"))
        self.io(disk, *WRITES)
        self.io(disk, *READS)
        self.check("disk.qcow2")
        qemu_img("compare", "-f", "qcow2", "-F", "raw", self.at("byre", "disk.qcow2"), self.at("byre", "copy.raw"))

    def test_a_difference_is_an_error_that_names_both_and_the_byte(self):
        self.spoil("copy.raw", 0x1234)
        for done in (self.io(self.EQUAL, "read 0 64k", code=1),
                     self.byre("convert", self.EQUAL, "-O", "raw", "out.raw", code=65)):
            for word in ("'disk.raw'", "'copy.raw'", "0x1234", "0x77"):
                self.assertIn(word, done.text)
        # What does not touch that byte goes on.
        self.io(self.EQUAL, "read 0 4660", "read 4661 64k")
        for words in (("qemu-io", "-r", "-c", "read 0 64k", self.EQUAL),
                      ("qemu-img", "convert", "-O", "raw", self.EQUAL, "out.raw")):
            self.assertEqual([self.play(who, *words).code for who in ("qemu", "byre")], [1, 1])

    def test_convert_and_map_go_through_it(self):
        self.io(self.EQUAL, *WRITES)
        self.byre("convert", self.EQUAL, "-O", "raw", "out.raw")
        self.assert_same(self.at("byre", "disk.raw"), self.at("byre", "out.raw"))
        told = json.loads(self.byre("map", "--output=json", self.EQUAL).out)
        self.assertEqual([(one["start"], one["length"], one["data"], one["zero"]) for one in told], [(0, MIB, True, False)])

    def test_sizes_that_differ_are_refused(self):
        opts = "driver=blkverify,test.driver=raw,test.file.filename=disk.raw,raw.filename=large.raw"
        self.refused(opts, "'disk.raw' has 1048576 bytes and its reference 'large.raw' has 2097152")

    def test_children_and_options(self):
        for tree in (name("blkverify"), name("blkverify", raw={"driver": "null-co"}),
                     name("blkverify", raw={"driver": "null-co"}, test={"driver": "null-co"}, foo=1)):
            for who in ("qemu", "byre"):
                self.assertEqual(self.play(who, "qemu-img", "info", tree).code, 1, tree)
        self.same("qemu-img", "info", name("blkverify", test={"driver": "null-co"}), code=1)
        self.same("qemu-img", "info", name("blkverify", raw={"driver": "null-co"}), code=1)
        self.same("qemu-img", "info", name("blkverify", raw={"driver": "null-co"}, test={"driver": "null-co"}, foo=1), code=1)

    def test_one_that_can_be_written_beside_one_that_cannot_is_refused(self):
        for child in ("test", "raw"):
            opts = f"driver=blkverify,test.driver=raw,test.file.filename=disk.raw,raw.filename=copy.raw,{child}.read-only=on"
            done = self.play("byre", "qemu-io", "-c", "length", "--image-opts", opts)
            self.assertEqual(done.code, 1, done)
            self.assertIn("read-only", done.text)

    def test_both_get_another_size_together(self):
        self.byre("resize", "-q", self.EQUAL, "2M")
        self.assertEqual((len(self.read("disk.raw")), len(self.read("copy.raw"))), (2 * MIB, 2 * MIB))
        self.byre("resize", "-q", "--shrink", self.EQUAL, "512k")
        self.assertEqual((len(self.read("disk.raw")), len(self.read("copy.raw"))), (512 * KIB, 512 * KIB))

    def test_a_qcow2_image_lies_over_two_files_that_have_room(self):
        for filename in ("one.img", "two.img"):
            qemu_img("create", "-q", "-f", "qcow2", self.at("byre", filename), "1M")
            os.truncate(self.at("byre", filename), 4 * MIB)
        disk = name("qcow2", file={"driver": "blkverify", "test": file_node("one.img"), "raw": file_node("two.img")})
        self.io(disk, *WRITES)
        self.io(disk, *READS)
        self.assertEqual(self.read("one.img"), self.read("two.img"))
        self.check("one.img")

    def test_a_qcow2_image_over_two_files_makes_them_grow(self):
        """As it does in QEMU."""
        disk = name("qcow2", file={"driver": "blkverify", "test": file_node("one.img"), "raw": file_node("two.img")})
        for who in ("qemu", "byre"):
            for filename in ("one.img", "two.img"):
                qemu_img("create", "-q", "-f", "qcow2", self.at(who, filename), "1M")
        self.io_same(disk, "write -P 3 0 64k", "read -P 3 0 64k")


class Log:
    """A log of dm-log-writes: little-endian, a superblock, then entries, each a sector and its data."""
    MAGIC, VERSION = 0x6a736677736872, 1
    FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16

    def __init__(self, data):
        magic, version, self.count, self.sector_size = struct.unpack_from("<QQQI", data)
        assert (magic, version) == (self.MAGIC, self.VERSION), (hex(magic), version)
        self.entries, at = [], self.sector_size
        for _ in range(self.count):
            sector, sectors, flags, length = struct.unpack_from("<QQQQ", data, at)
            assert flags < 32, flags
            assert (length > 0) == bool(flags & self.MARK), (flags, length)
            text = data[at + 32:at + 32 + length]
            at += self.sector_size
            size = 0 if flags & self.DISCARD else sectors * self.sector_size
            assert at + size <= len(data), (at, size, len(data))
            self.entries.append({"at": sector * self.sector_size, "size": sectors * self.sector_size, "flags": flags,
                                 "data": data[at:at + size], "text": text})
            at += size
        self.end = at

    def flags(self):
        return [one["flags"] for one in self.entries]

    def replay(self, disk):
        """What was discarded is left as it was."""
        disk = bytearray(disk)
        for one in self.entries:
            if one["data"]:
                assert one["at"] + one["size"] <= len(disk), one
                disk[one["at"]:one["at"] + one["size"]] = one["data"]
        return bytes(disk)


@only_byre
class Blklogwrites(DriverCase):
    OPTS = "driver=blklogwrites,file.driver=file,file.filename=disk.raw,log.driver=file,log.filename=log"
    CHANGES = ("write -P 3 0 64k", "write -P 4 700 10", "write -z 32k 4k", "discard 64k 64k", "flush",
               "write -f -P 5 128k 512", "write -P 6 200000 3000")

    def setUp(self):
        super().setUp()
        self.new_log()

    def new_log(self):
        for who in ("qemu", "byre"):
            with open(self.at(who, "log"), "wb"):
                pass

    def log(self, who="byre"):
        return Log(self.read("log", who))

    def opts(self, more="", disk="disk.raw"):
        return ["--image-opts", self.OPTS.replace("disk.raw", disk) + ("," + more if more else "")]

    def test_each_change_is_an_entry(self):
        before = self.read("disk.raw")
        self.io_same(self.opts(), *self.CHANGES)
        self.same_contents()
        log = self.log()
        self.assertEqual(log.sector_size, 512)
        changes = [one for one in log.entries if one["flags"] not in (Log.FLUSH, Log.MARK)]
        self.assertEqual([(one["at"], one["size"], one["flags"] & Log.DISCARD) for one in changes],
                         [(0, 64 * KIB, 0), (512, 512, 0), (32 * KIB, 4 * KIB, 0), (64 * KIB, 64 * KIB, Log.DISCARD),
                          (128 * KIB, 512, 0), (199680, 3584, 0)])
        self.assertTrue(changes[4]["flags"] & Log.FUA or Log.FLUSH in log.flags()[log.entries.index(changes[4]) + 1:])
        self.assertIn(Log.FLUSH, log.flags())
        self.assertEqual(changes[1]["data"][188:198], b"\x04" * 10)
        self.assertEqual(changes[1]["data"][:188], b"\x03" * 188)
        self.assertEqual(log.replay(before), self.read("disk.raw"))

    def test_both_logs_replay_to_the_same_disk(self):
        before = self.read("disk.raw")
        self.io_same(self.opts(), *self.CHANGES)
        disks = [self.log(who).replay(before) for who in ("qemu", "byre")]
        self.assertEqual(*disks)

    def test_sectors_of_another_size(self):
        for size in (512, 4096, 64 * KIB):
            with self.subTest(size=size):
                self.new_log()
                before = self.read("disk.raw")
                self.io(self.opts(f"log-sector-size={size}"), *self.CHANGES)
                log = self.log()
                self.assertEqual(log.sector_size, size)
                self.assertEqual(log.replay(before), self.read("disk.raw"))

    def test_the_superblock_counts_every_entry_at_any_interval(self):
        for interval in (1, 2, 3, 4096, 1 << 40):
            with self.subTest(interval=interval):
                self.new_log()
                before = self.read("disk.raw")
                writes = [f"write -P {n + 1} {n * 1000} 1000" for n in range(9)]
                self.io(self.opts(f"log-super-update-interval={interval}"), *writes)
                log = self.log()
                self.assertGreaterEqual(log.count, 9)
                self.assertEqual(log.replay(before), self.read("disk.raw"))

    def test_log_append_goes_on_behind_the_entries(self):
        before = self.read("disk.raw")
        self.io(self.opts("log-sector-size=4096"), "write -P 1 0 64k", "write -P 2 32k 64k")
        first = self.log()
        self.io(self.opts("log-append=on"), "write -P 3 48k 64k")
        second = self.log()
        self.assertEqual(second.sector_size, 4096)
        self.assertEqual(second.entries[:len(first.entries)], first.entries)
        self.assertGreater(second.count, first.count)
        self.assertEqual(second.replay(before), self.read("disk.raw"))

    def test_without_log_append_the_log_begins_again(self):
        for pattern in (1, 2):
            self.io(self.opts(), f"write -P {pattern} 0 64k")
        self.assertEqual(self.log().entries[0]["data"], b"\x02" * 64 * KIB)

    def test_byre_and_qemu_append_in_turns(self):
        before = self.read("disk.raw")
        for turn in range(6):
            program = ("qemu-io", self.byre_as["qemu-io"])[turn % 2]
            append = ["log-append=on"] if turn else []
            run(program, "-c", f"write -P {turn + 1} {turn * 10000} 40000", "-c", f"write -z {turn * 20000 + 512} 4k",
                "-c", "flush", *self.opts(*append), cwd=self.path("byre"))
            self.assertEqual(self.log().replay(before), self.read("disk.raw"), turn)
        # The other way round, too.
        self.new_log()
        before = self.read("disk.raw")
        for turn, program in enumerate((self.byre_as["qemu-io"], "qemu-io", self.byre_as["qemu-io"])):
            append = ["log-append=on"] if turn else []
            run(program, "-c", f"write -P {turn + 11} {turn * 10000} 40000", *self.opts(*append), cwd=self.path("byre"))
            self.assertEqual(self.log().replay(before), self.read("disk.raw"), turn)

    def test_a_qcow2_image_over_it_is_logged(self):
        before = self.read("disk.qcow2")
        disk = name("qcow2", file={"driver": "blklogwrites", "file": file_node("disk.qcow2"), "log": file_node("log")})
        self.io(disk, *WRITES)
        self.check("disk.qcow2")
        after = self.read("disk.qcow2")
        log = self.log()
        size = max([len(before), len(after)] + [one["at"] + one["size"] for one in log.entries])
        with open(self.at("byre", "replayed.qcow2"), "wb") as file:
            file.write(log.replay(before + bytes(size - len(before))))
        self.check("replayed.qcow2")
        qemu_img("compare", "-f", "qcow2", "-F", "qcow2", self.at("byre", "disk.qcow2"), self.at("byre", "replayed.qcow2"))

    def test_options_are_refused(self):
        for more in ("log-append=x", "log-append=on,log-sector-size=512", "log-super-update-interval=x", "foo=1",
                     "log-sector-size=8G"):
            self.same("qemu-io", "-c", "length", *self.opts(more), code=1)
        for more, why in (("log-sector-size=1000", "log-sector-size of 1000"),
                          ("log-sector-size=16M", "log-sector-size of 16777216"),
                          ("log-sector-size=0", "log-sector-size of 0"),
                          ("log-super-update-interval=0", "log-super-update-interval of 0")):
            self.refused_by_both(self.opts(more)[1], why)
        self.refused(self.opts("log-sector-size=256")[1], "log-sector-size of 256")
        self.same("qemu-io", "-c", "length", name("blklogwrites"), code=1)
        self.same("qemu-io", "-c", "length", name("blklogwrites", file={"driver": "null-co"}), code=1)

    def test_a_log_that_cannot_be_written_is_refused(self):
        done = self.byre("io", "-r", "-c", "length", *self.opts(), code=77)
        self.assertIn("'log' is read-only", done.text)

    def test_what_is_no_log_is_not_continued(self):
        with open(self.at("byre", "log"), "wb") as file:
            file.write(b"no log" * 1000)
        before = self.read("log")
        done = self.byre("io", "-c", "write 0 512", *self.opts("log-append=on"), code=65)
        self.assertIn("blklogwrites: it does not start", done.text)
        self.assertEqual(self.read("log"), before)
        # A log that ends before its last entry.
        self.new_log()
        self.io(self.opts(), "write 0 64k")
        os.truncate(self.at("byre", "log"), 1024)
        done = self.byre("io", "-c", "write 0 512", *self.opts("log-append=on"), code=65)
        self.assertIn("log", done.text)


@only_byre
class Throttle(DriverCase):
    """How fast it is, no test here says."""
    OPTS = "driver=throttle,file.driver=raw,file.file.filename=disk.raw,"
    NAMES = [f"limits.{unit}-{what}" for unit in ("bps", "iops") for what in ("total", "read", "write")]

    def test_contents_are_right_under_each_limit(self):
        for limit in self.NAMES:
            value = "1G" if "bps" in limit else "1000000"
            for more in (f"{limit}={value}", f"{limit}={value},{limit}-max={value},{limit}-max-length=2"):
                with self.subTest(more=more):
                    self.io(["--image-opts", self.OPTS + more], *WRITES)
                    self.io(["--image-opts", self.OPTS + more], *READS)

    def test_limits_are_parsed_in_json(self):
        disk = name("throttle", file=qcow2_node("disk.qcow2"), throttle_group="g",
                    **{"limits": {"iops-total": 1000000, "iops-total-max": 2000000, "iops-total-max-length": 3, "iops-size": "4k",
                                  "bps-read": "1G", "bps-write": 1 << 30}})
        self.io(disk, *WRITES)
        self.byre("convert", disk, "-O", "raw", "out.raw")
        qemu_img("compare", "-f", "raw", "-F", "qcow2", self.at("byre", "out.raw"), self.at("byre", "disk.qcow2"))
        self.check("disk.qcow2")

    def test_without_limits_it_limits_nothing(self):
        self.io(["--image-opts", self.OPTS.rstrip(",")], *WRITES)
        self.io(["--image-opts", self.OPTS.rstrip(",")], *READS)

    def test_a_map_goes_through_it(self):
        below = json.loads(self.byre("map", "--output=json", name("qcow2", file=file_node("base.qcow2"))).out)
        above = json.loads(self.byre("map", "--output=json", name("throttle", file=qcow2_node("base.qcow2"))).out)
        self.assertEqual(below, above)

    def test_bad_limits_are_refused(self):
        for limit in self.NAMES:
            short = limit.removeprefix("limits.")
            self.refused(f"{self.OPTS}{limit}-max=5", f"{short}-max needs {short}")
            self.refused(f"{self.OPTS}{limit}=1,{limit}-max-length=5", f"{short}-max-length needs {short}-max")
            self.refused(f"{self.OPTS}{limit}=10,{limit}-max=5", f"{short}-max=5 is less than {short}=10")
        limit = "limits.bps-total"
        for more, why in ((f"{limit}=1,{limit}-max=1,{limit}-max-length=0", "bps-total-max-length cannot be 0"),
                          (f"{limit}=2P", "bps-total and bps-total-max are at most"),
                          (f"{limit}=1P", "bps-total and bps-total-max are at most"),
                          (f"{limit}=1,{limit}-max=100T,{limit}-max-length=1000", "bps-total-max-length=1000 is too long"),
                          (f"{limit}=1,limits.bps-read=1", "bps-total goes with neither"),
                          (f"{limit}=1,limits.bps-write=1", "bps-total goes with neither"),
                          ("limits.iops-total=1,limits.iops-read=1", "iops-total goes with neither"),
                          ("limits.iops-total=1,limits.iops-write=1", "iops-total goes with neither"),
                          ("limits.iops-size=4096", "iops-size needs"), (f"{limit}=abc", "'limits.bps-total' expects"),
                          ("limits.iops-read=-1", "out of range for parameter 'limits.iops-read'"),
                          (f"{limit}=1,{limit}-max=1,{limit}-max-length=x", "'limits.bps-total-max-length' expects"),
                          ("limits.foo=1", "does not support the option 'limits.foo'"),
                          ("foo=1", "does not support the option 'foo'")):
            self.refused(self.OPTS + more, why)
        self.same("qemu-img", "info", name("throttle"), code=1)

    def test_a_group_without_limits_is_refused(self):
        self.refused_by_both(self.OPTS + "throttle-group=g", "Throttle group 'g' does not exist")

    def test_devices_of_one_tree_share_a_group(self):
        inner = {"driver": "throttle", "file": raw_node("disk.raw"), "throttle-group": "g"}
        limits = {"limits": {"iops-total": 1000000}}
        inner.update(limits)
        self.io(name("throttle", file=inner, throttle_group="g"), "read 0 512")
        done = self.io(name("throttle", file=inner, throttle_group="g", **limits), "read 0 512", code=64)
        self.assertIn("'g' has its limits already", done.text)


@only_byre
class Objects(DriverCase):
    """--object throttle-group"""
    OPTS = "driver=throttle,throttle-group=g,file.driver=file,file.filename=disk.raw"

    def test_a_group_has_the_limits_of_the_object(self):
        for limits in ("limits.iops-total=1000", "x-iops-total=1000,x-iops-total-max=2000,x-iops-total-max-length=2",
                       "limits.iops-read=100000,x-iops-size=4096", ""):
            self.io_same(["--object", f"throttle-group,id=g,{limits}".rstrip(","), "--image-opts", self.OPTS],
                         "write -P 1 0 64k", "read -P 1 0 64k")
        group = json.dumps({"qom-type": "throttle-group", "id": "g", "limits": {"iops-total": 1000}})
        self.io_same(["--object", group, "--image-opts", self.OPTS], "length")
        self.same("qemu-img", "convert", "-O", "raw", "--object", group, "--image-opts", self.OPTS, "out.raw", code=0)
        self.same_contents("out.raw")
        self.same("qemu-img", "info", "--object", group, "disk.qcow2", code=0)

    def test_it_limits(self):
        began = time.monotonic()
        # A tenth of a second's worth passes at once.
        self.io(["--object", "throttle-group,id=g,limits.iops-total=10", "--image-opts", self.OPTS], *["write 0 512"] * 12)
        self.assertGreater(time.monotonic() - began, 0.9)

    def test_source_and_target_share_one(self):
        began = time.monotonic()
        self.byre("convert", "-n", "--object", "throttle-group,id=g,limits.bps-total=1048576", "--image-opts",
                  "--target-image-opts", "driver=throttle,throttle-group=g,file.driver=null-co,file.size=1M",
                  "driver=throttle,throttle-group=g,file.driver=null-co,file.size=1M")
        self.assertGreater(time.monotonic() - began, 1.5)  # One and a half megabytes behind the first tenth.

    def test_what_is_wrong_is_said_before_anything_is_opened(self):
        for text in ("throttle-group", "throttle-group,id=g,foo=1", "throttle-group,id=g,limits.foo=1", "foo,id=g", "",
                     "throttle-group,id=g,limits.iops-total=x", "throttle-group,id=g,limits.iops-total=1k", "id=g", "throttle-group,id=1",
                     "throttle-group,id=g,limits.iops-total=1,limits.iops-read=1",
                     "throttle-group,id=g,limits.iops-total-max=1"):
            with self.subTest(text=text):
                done = [self.play(who, "qemu-io", "--object", text, "-c", "length", "--image-opts", self.OPTS)
                        for who in ("qemu", "byre")]
                self.assertEqual([one.code for one in done], [1, 1])
                self.byre("info", "--object", text, "nowhere.qcow2", code=64)
        self.same("qemu-io", "--object", "throttle-group,id=g", "--object", "throttle-group,id=g", "-c", "length",
                  "--image-opts", self.OPTS, code=1)
        for who in ("qemu", "byre"):
            done = self.play(who, "qemu-io", "--object", "throttle-group,id=h", "-c", "length", "--image-opts", self.OPTS)
            self.assertEqual(done.code, 1)
            self.assertIn("Throttle group 'g' does not exist", done.text)
        self.assertIn("--object tls-creds-x509 is not supported",
                      self.byre("info", "--object", "tls-creds-x509,id=s,dir=.", "disk.qcow2", code=64).text)
        done = self.byre("io", "--object", "throttle-group,id=g", "-c", "length", "--image-opts",
                         self.OPTS + ",limits.iops-total=5", code=64)
        self.assertIn("has its limits already, from --object", done.text)


@only_byre
class DeviceLists(DriverCase):
    """--blockdev, which qemu-storage-daemon has."""
    LIST = ("--blockdev", "driver=file,node-name=store,filename=disk.qcow2",
            "--blockdev", '{"driver": "qcow2", "node-name": "disk", "file": "store"}')

    def test_each_command_that_opens_an_image_takes_one(self):
        self.io([*self.LIST, "disk"], "write -P 1 0 64k", "read -P 1 0 64k")
        self.assertIn("virtual size: 1 MiB", self.byre("info", *self.LIST, "disk").text)
        self.assertEqual(json.loads(self.byre("map", "--output=json", *self.LIST, "disk").out)[0]["length"], 64 * KIB)
        self.assertIn("No errors", self.byre("check", *self.LIST, "disk").text)
        self.byre("snapshot", "-c", "first", *self.LIST, "disk")
        self.assertIn("first", self.byre("snapshot", *self.LIST, "disk").text)
        self.byre("bitmap", "--add", *self.LIST, "disk", "daily")
        self.byre("resize", *self.LIST, "disk", "2M")
        self.byre("amend", "-o", "lazy_refcounts=on", *self.LIST, "disk")
        self.byre("convert", "-O", "raw", *self.LIST, "disk", "out.raw")
        qemu_img("compare", "-f", "raw", "-F", "qcow2", self.at("byre", "out.raw"), self.at("byre", "disk.qcow2"))
        self.check("disk.qcow2")

    def test_filters_lie_over_nodes_by_name(self):
        nodes = (*self.LIST, "--blockdev", "driver=throttle,node-name=slow,file=disk,throttle-group=g",
                 "--object", "throttle-group,id=g,limits.iops-total=100000")
        self.io([*nodes, "slow"], *WRITES)
        self.io([*nodes, "slow"], *READS)
        self.check("disk.qcow2")

    def test_a_disk_below_by_name(self):
        nodes = ("--blockdev", "driver=qcow2,node-name=below,file.driver=file,file.filename=base.qcow2",
                 "--blockdev", "driver=qcow2,node-name=top,file.driver=file,file.filename=top.qcow2,backing=below")
        self.io([*nodes, "top"], "read -P 1 0 512k", "read -P 0 512k 512k", "write -P 2 0 1k")
        self.check("top.qcow2")

    def test_a_disk_is_written_while_an_overlay_keeps_what_it_was(self):
        nodes = ("--blockdev", "driver=qcow2,node-name=disk,file.driver=file,file.filename=base.qcow2",
                 "--blockdev", "driver=qcow2,node-name=kept,file.driver=file,file.filename=top.qcow2,backing=disk",
                 "--blockdev", "driver=copy-before-write,node-name=guest,file=disk,target=kept")
        qemu_img("convert", "-O", "raw", self.at("byre", "base.qcow2"), self.at("byre", "before.raw"))
        self.io([*nodes, "guest"], "write -P 7 100 70k", "write -z 300k 4k", "discard 448k 64k", "write -P 8 600k 64k")
        qemu_img("compare", "-f", "raw", "-F", "qcow2", self.at("byre", "before.raw"), self.at("byre", "top.qcow2"))
        for image in ("base.qcow2", "top.qcow2"):
            self.check(image)

    def test_two_writers_of_one_node_are_refused(self):
        nodes = ("--blockdev", "driver=file,node-name=f,filename=disk.raw", "--blockdev")
        for top, why in (("driver=blkverify,node-name=top,test=f,raw=f", "permissions 'resize'"),
                         ("driver=copy-before-write,node-name=top,file=f,target=f", "permissions 'write'")):
            done = self.byre("io", "-c", "length", *nodes, top, "top", code=75)
            self.assertIn("Permission conflict on node 'f': " + why, done.text)
            self.byre("io", "-r", "-c", "length", *nodes, top, "top")

    def test_what_is_wrong_is_named(self):
        for words, why in (((*self.LIST, "nothing"), "Cannot find device='nothing'"),
                           ((*self.LIST, "store"), "node-name='disk' is used by nobody"),
                           ((*self.LIST, "disk", "-f", "qcow2"), "--blockdev and --format"),
                           ((*self.LIST, "disk", "--image-opts"), "--blockdev and --image-opts"),
                           (("--blockdev", "node-name=x", "x"), "'driver' is missing"),
                           (("--blockdev", "driver=file,filename=disk.raw", "x"), "'node-name' must be specified"),
                           ((*self.LIST, *self.LIST[:2], "disk"), "Duplicate nodes")):
            with self.subTest(words=words):
                self.assertIn(why, self.byre("info", *words, code=64).text)
        self.byre("convert", "-O", "raw", *self.LIST, "disk", "disk", "out.raw", code=64)
        self.byre("io", *self.LIST, "-c", "length", code=64)


@only_byre
class CopyOnRead(DriverCase):
    DISK = name("copy-on-read", file=qcow2_node("top.qcow2"))

    def own(self, who):
        """What the overlay has itself, as the real qemu-img sees it."""
        told = json.loads(qemu_img("map", "--output=json", "-f", "qcow2", "top.qcow2", cwd=self.path(who)).out)
        return [(one["start"], one["length"]) for one in told if one["depth"] == 0 and one["present"]]

    def test_what_was_read_is_in_the_overlay(self):
        self.assertEqual(self.own("byre"), [])
        self.io_same(self.DISK, "read -P 1 0 64k", "read -P 1 200k 1k", "read -P 0 512k 64k")
        for who in ("qemu", "byre"):
            own = self.own(who)
            for cluster in (0, 192 * KIB):
                self.assertTrue(any(at <= cluster and cluster + 64 * KIB <= at + length for at, length in own), (who, own))
            self.assertFalse(any(at <= 64 * KIB < at + length for at, length in own), (who, own))
            self.check("top.qcow2", who)
        self.same_contents("top.qcow2", "qcow2")
        # Now the disk does not need its base for these.
        self.io(name("qcow2", file=file_node("top.qcow2"), backing=None), "read -P 1 0 64k", "read -P 1 192k 64k",
                "read -P 0 64k 64k")

    def test_a_read_of_all_copies_all(self):
        self.io(self.DISK, "read 0 1M")
        self.assertEqual(self.own("byre")[0][0], 0)
        self.assertGreaterEqual(sum(length for _, length in self.own("byre")), 512 * KIB)
        self.check("top.qcow2")

    def test_writes_pass_it(self):
        self.io_same(self.DISK, "write -P 9 1k 1k", "read -P 9 1k 1k", "read -P 1 0 1k", "write -z 64k 64k", "read -P 0 64k 64k",
                     "discard 128k 64k", "flush")
        self.check("top.qcow2")
        self.io(name("qcow2", file=file_node("top.qcow2")), "read -P 1 0 1k", "read -P 9 1k 1k", "read -P 1 2k 62k",
                "read -P 0 64k 64k")

    def test_it_is_refused_over_what_is_read_only(self):
        opts = "driver=copy-on-read,file.driver=qcow2,file.file.filename=top.qcow2"
        for words in (["io", "-r", "-c", "read 0 512", self.DISK], ["map", self.DISK], ["convert", self.DISK, "out.raw"],
                      ["info", self.DISK], ["convert", "--image-opts", opts, "out.raw"]):
            with self.subTest(words=words):
                self.assertIn("read-only", self.byre(*words, code=77).text)
        self.same("qemu-io", "-c", "read 0 512", "--image-opts", opts + ",file.read-only=on", code=1)
        for words in (["qemu-io", "-r", "-c", "read 0 512", self.DISK], ["qemu-img", "map", self.DISK],
                      ["qemu-img", "convert", "-O", "raw", self.DISK, "out.raw"]):
            self.assertEqual([self.play(who, *words).code for who in ("qemu", "byre")], [1, 1], words)
        self.assertEqual(self.own("byre"), [])

    def test_options_are_refused(self):
        opts = "driver=copy-on-read,file.driver=qcow2,file.file.driver=file,file.file.filename=top.qcow2,"
        self.same("qemu-io", "-c", "length", "--image-opts", opts + "bottom=x", code=1)
        # QEMU 7.2 dies of the one, and waits for ever with the other.
        self.refused(opts + "file.node-name=top,bottom=top", "'top' is the disk itself")
        self.refused(opts + "file.file.node-name=store,bottom=store", "Bottom node 'store' not found")
        self.same("qemu-io", "-c", "length", "--image-opts", opts + "foo=1", code=1)
        self.same("qemu-io", "-c", "length", name("copy-on-read"), code=1)

    def test_bottom_says_how_far_down_it_copies_from(self):
        for bottom, copied in (("base", [0, 256]), ("mid", [256])):
            for who in ("qemu", "byre"):
                for image, below in (("mid.qcow2", "base.qcow2"), ("over.qcow2", "mid.qcow2")):
                    qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", image, cwd=self.path(who))
                qemu_io("mid.qcow2", "write -P 2 256k 64k", cwd=self.path(who))
            base = {**qcow2_node("base.qcow2"), "node-name": "base"}
            mid = {**qcow2_node("mid.qcow2", backing=base), "node-name": "mid"}
            disk = name("copy-on-read", file=qcow2_node("over.qcow2", backing=mid), bottom=bottom)
            self.io_same(disk, "read -P 1 0 64k", "read -P 2 256k 64k", "read -P 0 768k 64k")
            self.same_contents("over.qcow2", "qcow2")
            for who in ("qemu", "byre"):
                told = json.loads(qemu_img("map", "--output=json", "over.qcow2", cwd=self.path(who)).out)
                own = [one["start"] // KIB for one in told if one["depth"] == 0 and one["present"] and one["data"]]
                self.assertEqual(own, copied, (who, bottom))
                self.check("over.qcow2", who)


@only_byre
class CopyBeforeWrite(DriverCase):
    CHANGES = ("write -P 3 100 512", "write -P 3 60k 8k", "write -z 300k 10k", "write -P 4 448k 70k", "discard 192k 64k",
               "write -P 5 1000k 24k", "write -P 6 0 1k", "flush")

    def setUp(self):
        super().setUp()
        for who in ("qemu", "byre"):
            with open(self.at(who, "target.raw"), "wb") as file:
                file.truncate(MIB)
            for cluster in ("4k", "256k"):
                qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", f"target-{cluster}.qcow2", "1M",
                         cwd=self.path(who))
            qemu_img("bitmap", "--add", "base.qcow2", "part", cwd=self.path(who))
            qemu_io("base.qcow2", "write -P 1 120k 16k", "write -P 1 448k 1k", cwd=self.path(who))

    @staticmethod
    def filter(target, **options):
        return {"driver": "copy-before-write", "file": {**qcow2_node("base.qcow2"), "node-name": "disk"}, "target": target, **options}

    def disk(self, target, **options):
        return "json:" + json.dumps(self.filter(target, **options))

    def snapshot(self, target, **options):
        return "json:" + json.dumps({"driver": "snapshot-access", "file": self.filter(target, **options)})

    def test_both_keep_the_same_old_contents(self):
        for target in (raw_node("target.raw"), qcow2_node("target-4k.qcow2"), qcow2_node("target-256k.qcow2")):
            filename = target["file"]["filename"]
            with self.subTest(target=filename):
                for who in ("qemu", "byre"):
                    qemu_io("base.qcow2", "write -P 1 0 512k", "write -z 512k 512k", cwd=self.path(who))
                before = self.contents("base.qcow2")
                self.io_same(self.disk(target), *self.CHANGES)
                self.same_contents("base.qcow2", "qcow2")
                self.same_contents(filename, target["driver"])
                for image in ("base.qcow2", *([filename] if target["driver"] == "qcow2" else [])):
                    self.check(image)
                # The target and what did not change are the disk as it was.
                after, kept = self.contents("base.qcow2"), self.contents(filename, target["driver"])
                step = 256 * KIB if "256k" in filename else 64 * KIB
                touched = {at // step for start, end in ((0, 1124), (60, 68), (300, 310), (448, 518), (192, 256), (1000, 1024))
                           for at in range(start * KIB if start else 0, end * KIB if start else end, 512)}
                for number in range(MIB // step):
                    part = slice(number * step, (number + 1) * step)
                    self.assertEqual(before[part], (kept if number in touched else after)[part], number)

    def contents(self, filename, form="qcow2", who="byre"):
        out = self.at(who, "contents.raw")
        qemu_img("convert", "-f", form, "-O", "raw", self.at(who, filename), out)
        with open(out, "rb") as file:
            return file.read()

    def test_a_snapshot_is_read_and_never_written(self):
        for target in (raw_node("target.raw"), qcow2_node("target-4k.qcow2")):
            disk = self.snapshot(target)
            self.io_same(disk, "length", "read -P 1 0 512k", "read -P 0 512k 512k")
            for who in ("qemu", "byre"):
                for change in ("write 0 512", "write -z 0 512"):
                    self.assertEqual(self.play(who, "qemu-io", "-c", change, disk).code, 1)
        # In QEMU a target that is read-only is an error, also where nothing will be written.
        self.byre("convert", "-O", "raw", disk, "out.raw")
        self.assertEqual(self.read("out.raw"), self.contents("base.qcow2"))
        told = json.loads(self.byre("map", "--output=json", disk).out)
        self.assertEqual([(one["start"], one["zero"]) for one in told], [(0, False), (512 * KIB, True)])

    def test_a_bitmap_says_what_is_kept(self):
        options = {"bitmap": {"node": "disk", "name": "part"}}
        target = raw_node("target.raw")
        for at in ("64k", "128k", "448k"):
            self.io_same(self.snapshot(target, **options), f"read -P 1 {at} 64k")
        for at in ("0", "512k"):
            self.io_same(self.snapshot(target, **options), f"read {at} 64k", code=1)
        self.io_same(self.disk(target, **options), "write -P 9 0 1M")
        self.same_contents("target.raw")
        kept = self.read("target.raw")
        self.assertEqual([at // KIB for at in range(0, MIB, 64 * KIB) if any(kept[at:at + 64 * KIB])], [64, 128, 448])
        self.check("base.qcow2")

    def test_a_target_that_fails(self):
        failing = {"driver": "blkdebug", "image": file_node("target.raw"),
                   "inject-error": [{"event": "none", "iotype": "write", "once": True}]}
        self.io_same(self.disk(failing), "write -P 9 0 512", "read -P 1 0 512", "write -P 9 0 512", code=1)
        self.same_contents("target.raw")
        self.same_contents("base.qcow2", "qcow2")
        self.io_same(self.disk(failing, **{"on-cbw-error": "break-snapshot"}), "write -P 8 128k 512", "write -P 8 64k 512",
                     "read -P 8 64k 512")
        self.same_contents("target.raw")  # Nothing is copied any more.
        self.assertFalse(any(self.read("target.raw")[64 * KIB:]))

    def test_larger_clusters(self):
        # Since QEMU 9.2.
        self.io(self.disk(raw_node("target.raw"), **{"min-cluster-size": "256k"}), "write -P 9 300k 512")
        kept = self.read("target.raw")
        self.assertEqual([at // KIB for at in range(0, MIB, 64 * KIB) if any(kept[at:at + 64 * KIB])], [256, 320, 384, 448])

    def test_a_time_limit(self):
        slow = {"driver": "null-co", "size": MIB, "latency-ns": 3000000000}
        for action, code in (("break-guest-write", 1), ("break-snapshot", 0)):
            disk = self.disk(slow, **{"on-cbw-error": action, "cbw-timeout": 1})
            self.io_same(disk, "write -P 7 0 512", code=code, errors=False)  # QEMU warns of its target.

    def test_options_are_refused(self):
        opts = ("driver=copy-before-write,file.driver=qcow2,file.file.driver=file,file.file.filename=base.qcow2,"
                "file.node-name=disk")
        full = opts + ",target.driver=file,target.filename=target.raw"
        self.refused_by_both(opts, "target")
        for more, why in (("on-cbw-error=x", "'on-cbw-error' does not accept value 'x'"), ("cbw-timeout=x", "cbw-timeout"),
                          ("cbw-timeout=4294967296", "cbw-timeout"), ("bitmap=x", "bitmap"),
                          ("bitmap.node=disk", "'bitmap.name' is missing"), ("bitmap.name=x", "'bitmap.node' is missing"),
                          ("bitmap.node=x,bitmap.name=part", "bitmap.node='x'|Node 'x'"),
                          ("bitmap.node=disk,bitmap.name=x", "Dirty bitmap 'x' not found"),
                          ("foo=1", "foo")):
            self.refused_by_both(f"{full},{more}", why)
        self.refused(f"{full},min-cluster-size=65535", "power of 2")
        with open(self.at("byre", "target.raw"), "r+b") as file:
            file.truncate(512 * KIB)
        self.refused(full, "make the target as large")
        for below in ("file.driver=file,file.filename=disk.raw", "file.driver=qcow2,file.file.filename=base.qcow2"):
            self.refused(f"driver=snapshot-access,{below}", "directly over a copy-before-write node")
        self.same("qemu-io", "-c", "length", name("snapshot-access"), code=1)


@only_byre
class Preallocate(DriverCase):
    OPTS = "driver=preallocate,file.driver=file,file.filename=disk.raw"

    def qcow2_over(self, filename, **options):
        return name("qcow2", file={"driver": "preallocate", "file": file_node(filename), **options})

    def test_the_file_has_the_size_that_was_written(self):
        for options in ({}, {"prealloc-size": 0}, {"prealloc-align": 512}, {"prealloc-size": "1M", "prealloc-align": "64k"}):
            with self.subTest(options=options):
                for who in ("qemu", "byre"):
                    qemu_img("create", "-q", "-f", "qcow2", self.at(who, "grow.qcow2"), "64M")
                self.io_same(self.qcow2_over("grow.qcow2", **options), "write -P 3 0 5M", "write -P 4 32M 1M", "read -P 3 0 5M")
                self.check("grow.qcow2")
                told = json.loads(qemu_img("check", "--output=json", self.at("byre", "grow.qcow2")).out)
                self.assertEqual(os.stat(self.at("byre", "grow.qcow2")).st_size, told["image-end-offset"])
                self.same_contents("grow.qcow2", "qcow2")

    def test_contents_are_right(self):
        self.io_same(["--image-opts", self.OPTS], *WRITES)
        self.io_same(["--image-opts", self.OPTS], *READS)
        self.same_contents()
        self.assertEqual(len(self.read("disk.raw")), MIB)

    def test_a_file_that_is_read_keeps_its_size(self):
        before = self.read("disk.raw")
        self.io(["--image-opts", self.OPTS, "-r"], "read 0 1M")
        self.io(["--image-opts", self.OPTS], "read 0 1M", "flush")
        self.assertEqual(self.read("disk.raw"), before)

    def test_convert_and_map_go_through_it(self):
        self.io(self.qcow2_over("disk.qcow2"), *WRITES)
        self.same_map()
        self.byre("convert", self.qcow2_over("disk.qcow2"), "-O", "raw", "out.raw")
        qemu_img("compare", "-f", "raw", "-F", "qcow2", self.at("byre", "out.raw"), self.at("byre", "disk.qcow2"))

    def same_map(self):
        told = [json.loads(self.byre("map", "--output=json", image).out)
                for image in (self.qcow2_over("disk.qcow2"), name("qcow2", file=file_node("disk.qcow2")))]
        self.assertEqual(*told)

    def test_options_are_refused(self):
        for more in ("prealloc-size=abc", "prealloc-align=x", "foo=1"):
            self.same("qemu-io", "-c", "length", "--image-opts", f"{self.OPTS},{more}", code=1)
        self.refused_by_both(f"{self.OPTS},prealloc-align=1000", "prealloc-align=1000")
        self.refused(f"{self.OPTS},prealloc-align=0", "prealloc-align=0")
        self.refused(f"{self.OPTS},prealloc-size=8E", "prealloc-size")
        self.refused(f"{self.OPTS},prealloc-align=8E", "prealloc-align")
        self.same("qemu-io", "-c", "length", name("preallocate"), code=1)


@only_byre
class CompressDriver(DriverCase):
    DISK = name("compress", file=qcow2_node("disk.qcow2"))

    def test_whole_clusters_are_compressed(self):
        self.io_same(self.DISK, "write -P 3 0 256k", "read -P 3 0 256k", "flush")
        for who in ("qemu", "byre"):
            self.check("disk.qcow2", who)
            told = json.loads(qemu_img("check", "--output=json", self.at(who, "disk.qcow2")).out)
            self.assertEqual(told["compressed-clusters"], 4, who)
        self.same_contents("disk.qcow2", "qcow2")

    def test_contents_are_right_whatever_is_written(self):
        self.io(self.DISK, *WRITES)
        self.io(self.DISK, *READS)
        self.check("disk.qcow2")
        self.byre("convert", self.DISK, "-O", "raw", "out.raw")
        qemu_img("compare", "-f", "raw", "-F", "qcow2", self.at("byre", "out.raw"), self.at("byre", "disk.qcow2"))

    def test_a_map_goes_through_it(self):
        self.io(self.DISK, "write -P 3 0 256k")
        told = [json.loads(self.byre("map", "--output=json", image).out)
                for image in (self.DISK, name("qcow2", file=file_node("disk.qcow2")))]
        self.assertEqual(*told)

    def test_what_cannot_compress_is_refused(self):
        self.same("qemu-io", "-c", "length", name("compress", file=raw_node("disk.raw")), code=1)
        self.same("qemu-io", "-c", "length", name("compress", file=file_node("disk.raw")), code=1)
        self.same("qemu-io", "-c", "length", name("compress", file=qcow2_node("disk.qcow2"), foo=1), code=1)
        self.same("qemu-io", "-c", "length", name("compress"), code=1)


@only_byre
class BlkdebugLimits(DriverCase):
    OPTS = "driver=blkdebug,image.driver=file,image.filename=disk.raw"
    GOOD = ("align=512", "align=4096", "align=64k", "align=0", "max-transfer=64k", "max-transfer=512", "opt-write-zero=4096",
            "max-write-zero=64k", "opt-discard=4096", "max-discard=64k", "align=4096,max-transfer=8192",
            "opt-write-zero=8192,max-write-zero=16384,opt-discard=4096,max-discard=8192,align=1024,max-transfer=2048")

    def test_contents_are_right_under_each_limit(self):
        for more in self.GOOD:
            opts = ["--image-opts", f"{self.OPTS},{more}"]
            # What a discard leaves there may differ.
            self.io_same(opts, *(command for command in WRITES if not command.startswith("discard")))
            self.io_same(opts, *READS)
            self.io(opts, "discard 128k 64k", "read -P 5 100k 28k", "read -P 5 192k 208k")
            qemu_io("disk.raw", "discard 128k 64k", options=("-f", "raw"), cwd=self.path("qemu"))
            self.same_contents()

    def test_a_qcow2_image_lies_over_each(self):
        for more in self.GOOD:
            with self.subTest(more=more):
                qemu_img("create", "-q", "-f", "qcow2", self.at("byre", "new.qcow2"), "1M")
                opts = "driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=new.qcow2"
                opts += "".join(f",file.{one}" for one in more.split(","))
                self.io(["--image-opts", opts], *WRITES)
                self.io(["--image-opts", opts], *READS)
                self.check("new.qcow2")
                self.byre("convert", "--image-opts", opts, "-O", "raw", "--force", "out.raw")
                qemu_img("compare", "-f", "raw", "-F", "qcow2", self.at("byre", "out.raw"), self.at("byre", "new.qcow2"))

    def test_bad_limits_are_refused_by_name(self):
        for more, why in (("align=1000", "align=1000"), ("align=2G", "align=2147483648"), ("align=4G", "align 4294967296"),
                          ("align=4096,max-transfer=6144", "max-transfer=6144"),
                          ("align=4096,opt-write-zero=6144", "opt-write-zero=6144"),
                          ("align=4096,max-write-zero=6144", "max-write-zero=6144"),
                          ("align=4096,opt-discard=6144", "opt-discard=6144"),
                          ("align=4096,max-discard=6144", "max-discard=6144"),
                          ("opt-write-zero=8192,max-write-zero=4096", "max-write-zero=4096"),
                          ("opt-discard=8192,max-discard=4096", "max-discard=4096"),
                          ("opt-discard=8192,max-discard=12288", "max-discard=12288"), ("max-transfer=8E", "max-transfer="),
                          ("opt-write-zero=8E", "opt-write-zero="), ("max-write-zero=8E", "max-write-zero="),
                          ("opt-discard=8E", "opt-discard="), ("max-discard=8E", "max-discard=")):
            self.refused_by_both(f"{self.OPTS},{more}", why)
        for option in ("align", "max-transfer", "opt-write-zero", "max-write-zero", "opt-discard", "max-discard"):
            self.same("qemu-io", "-c", "length", "--image-opts", f"{self.OPTS},{option}=x", code=1)
        self.same("qemu-io", "-c", "length", "--image-opts", f"{self.OPTS},foo=1", code=1)

    def test_permissions(self):
        for option in ("take-child-perms", "unshare-child-perms"):
            for word in ("consistent-read", "write", "resize"):
                self.io_same(["--image-opts", f"{self.OPTS},{option}.0={word}"], "write -P 1 0 512", "read -P 1 0 512")
                # Only who writes needs a disk that is written.
                taken = (option, word) == ("take-child-perms", "write")
                self.same("qemu-io", "-r", "-c", "read 0 512", "--image-opts", f"{self.OPTS},{option}.0={word}",
                          code=1 if taken else 0)
            self.same("qemu-io", "-c", "length", "--image-opts", f"{self.OPTS},{option}=write", code=1)
            self.refused_by_both(f"{self.OPTS},{option}.1=write", option + r"|indices")
            self.refused_by_both(f"{self.OPTS},{option}.0=foo", "does not accept value 'foo'")
            self.refused(f"{self.OPTS},{option}.0=write-unchanged", f"{option} has no write-unchanged")
        self.io_same(name("blkdebug", image=raw_node("disk.raw"),
                          **{"take-child-perms": ["write", "resize"], "unshare-child-perms": ["write"]}), "write 0 512")

    def test_rules_and_limits_go_together(self):
        disk = name("blkdebug", image=raw_node("disk.raw"), align=4096, max_transfer="8k",
                    **{"inject-error": [{"event": "pwritev", "once": True, "errno": 5}]})
        self.io_same(disk, "write -P 1 0 4k", "write -P 2 0 4k", "read -P 2 0 4k", code=1)


@only_byre
class Null(DriverCase):
    def test_a_disk_of_zeros(self):
        for driver in ("null-co", "null-aio"):
            disk = name(driver, size="1M", read_zeroes=True)
            self.io_same(disk, "length", "write -P 3 0 64k", "read -P 0 0 64k", "write -z 0 4k", "discard 0 4k", "flush")
            self.io_same(disk, "write 1M 512", code=1)
            self.same("qemu-img", "map", "--output=json", disk, code=0)
            self.same("qemu-img", "convert", "-O", "raw", disk, f"{driver}.raw", code=0)
            self.same_contents(f"{driver}.raw")
            self.assertEqual(self.read(f"{driver}.raw"), bytes(MIB))
            self.io_same(["--image-opts", f"driver={driver},size=64k,latency-ns=1000"], "length", "write 0 512")
            self.io_same(name(driver), "length")

    def test_options_are_refused(self):
        for driver in ("null-co", "null-aio"):
            for more in ("foo=1", "latency-ns=9223372036854775808"):
                self.same("qemu-io", "-c", "length", "--image-opts", f"driver={driver},{more}", code=1)
            # QEMU 7.2 aborts at the first four, and takes the last for a disk of 0 bytes.
            for more, why in (("size=-1", "out of range for parameter 'size'"), ("size=abc", "'size' expects"),
                              ("read-zeroes=x", "'read-zeroes' expects"), ("latency-ns=1k", "'latency-ns' expects"),
                              ("latency-ns=-1", "latency-ns"),
                              ("size=8E", "larger than a disk can be")):
                self.refused(f"driver={driver},{more}", why)

    def test_a_format_over_it_is_none(self):
        for driver in ("null-co", "null-aio"):
            for who in ("qemu", "byre"):
                opts = f"driver=qcow2,file.driver={driver},file.read-zeroes=on"
                done = self.play(who, "qemu-io", "-c", "length", "--image-opts", opts)
                self.assertEqual(done.code, 1, done)
                self.assertIn("Image is not in qcow2 format", done.text)


@only_byre
class Depth(DriverCase):
    def over(self, node):
        """Each filter that may lie over a node, over it."""
        return {"throttle": {"driver": "throttle", "file": node, "limits": {"iops-total": 1000000}},
                "copy-on-read": {"driver": "copy-on-read", "file": node},
                "blkdebug": {"driver": "blkdebug", "image": node, "align": 512, "max-transfer": "128k"},
                "blklogwrites": {"driver": "blklogwrites", "file": node, "log": file_node("log")},
                "preallocate": {"driver": "preallocate", "file": node},
                "copy-before-write": {"driver": "copy-before-write", "file": node, "target": {"driver": "null-co", "size": "1G"}},
                "raw": {"driver": "raw", "file": node}}

    def use(self, tree):
        disk = "json:" + json.dumps(tree)
        self.io(disk, *WRITES)
        self.io(disk, *READS)
        self.check("disk.qcow2")
        if "copy-on-read" not in disk and "blklogwrites" not in disk:
            self.byre("convert", disk, "-O", "raw", "--force", "out.raw")
            qemu_img("compare", "-f", "raw", "-F", "qcow2", self.at("byre", "out.raw"), self.at("byre", "disk.qcow2"))

    def setUp(self):
        super().setUp()
        with open(self.at("byre", "log"), "wb"):
            pass

    def test_qcow2_lies_over_each_filter(self):
        for driver, node in self.over(file_node("disk.qcow2")).items():
            with self.subTest(driver=driver):
                self.use({"driver": "qcow2", "file": node})

    def test_each_filter_lies_over_qcow2(self):
        for driver, node in self.over(qcow2_node("disk.qcow2")).items():
            # These two lie over files.
            if driver not in ("preallocate", "blklogwrites"):
                with self.subTest(driver=driver):
                    self.use(node)

    def test_all_filters_lie_over_one_another(self):
        node = file_node("disk.qcow2")
        for driver in ("preallocate", "blkdebug", "throttle", "blklogwrites"):
            node = self.over(node)[driver]
        node = {"driver": "qcow2", "file": node}
        for driver in ("blkdebug", "throttle", "raw", "copy-on-read"):
            node = self.over(node)[driver]
        self.use(node)

    def test_twenty_filters_lie_over_one_another(self):
        node = file_node("disk.qcow2")
        for _ in range(20):
            node = self.over(node)["blkdebug"]
        node = {"driver": "qcow2", "file": node}
        for _ in range(20):
            node = self.over(node)["throttle"]
        self.use(node)

    def test_the_base_of_an_image_may_lie_below_filters(self):
        base = self.over(qcow2_node("base.qcow2"))
        for driver in ("throttle", "blkdebug", "raw"):
            with self.subTest(driver=driver):
                disk = name("qcow2", file=file_node("top.qcow2"), backing=base[driver])
                self.io(disk, "read -P 1 0 512k", "read -P 0 512k 512k")

    def test_the_table_of_drivers_names_each_of_them(self):
        told = json.loads(self.byre("drivers", "--output=json").out)
        names = [driver["name"] for driver in told["drivers"]]
        for driver in ("blkdebug", "blklogwrites", "blkverify", "compress", "copy-before-write", "copy-on-read", "null-aio", "null-co",
                       "preallocate", "qcow", "snapshot-access", "throttle"):
            self.assertIn(driver, names)


if __name__ == "__main__":
    main()
