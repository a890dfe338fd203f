#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the first inputs of src/block's fuzzers into tests/corpus/*_fuzz, named for what they are.

Run it in any place; it replaces the files that it names and leaves the others alone.
"""
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16


def put(fuzzer, name, data):
    folder = os.path.join(HERE, fuzzer)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data)


def entry(sector=0, sectors=0, flags=0, text=b"", text_size=None, unit=512):
    size = len(text) if text_size is None else text_size
    data = bytes([sector % 251]) * (0 if flags & DISCARD else min(sectors, 8) * unit)
    return (struct.pack("<QQQQ", sector, sectors, flags, size) + text).ljust(unit, b"\0") + data


def log(entries, unit=512, count=None, magic=0x6A736677736872, version=1):
    super_ = struct.pack("<QQQI", magic, version, len(entries) if count is None else count, unit)
    return super_.ljust(unit, b"\0") + b"".join(entries)


WRITES = [entry(8, 2), entry(1, 1, FUA), entry(flags=FLUSH), entry(0, 3, DISCARD), entry(flags=MARK, text=b"here")]
put("write_log_fuzz", "empty", log([]))
put("write_log_fuzz", "one_of_each", log(WRITES))
put("write_log_fuzz", "data_with_a_flush", log([entry(3, 1, FLUSH | METADATA)]))
put("write_log_fuzz", "large_sectors", log([entry(1, 1, unit=4096), entry(0, 9, DISCARD, unit=4096)], unit=4096))
put("write_log_fuzz", "counts_more_than_there_is", log(WRITES, count=1 << 60))
put("write_log_fuzz", "counts_less", log(WRITES, count=2))
put("write_log_fuzz", "data_pass_the_end", log([entry(1, 1 << 40)]))
put("write_log_fuzz", "far_away", log([entry((1 << 54) - 8, 2)]))
put("write_log_fuzz", "sector_wraps", log([entry((1 << 64) - 1, 2, DISCARD)]))
put("write_log_fuzz", "text_too_long", log([entry(flags=MARK, text_size=481)]))
put("write_log_fuzz", "unknown_flag", log([entry(1, 1, 32)]))
put("write_log_fuzz", "odd_sector_size", log(WRITES)[:24] + struct.pack("<I", 1000) + log(WRITES)[28:])
put("write_log_fuzz", "other_version", log([], version=2))
