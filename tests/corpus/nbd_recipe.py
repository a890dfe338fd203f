#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the first inputs of src/remote's fuzzer into tests/corpus/nbd_client_fuzz: what a server may say.

Behind a first byte of 1 come replies to a client that has attached; else the handshake as well.  Each piece has its
length in front, and is sent a while after the one before.  The client's first requests are, with cookies from 1: two reads of 4096 bytes at 0 and 65536, a block status at 4096, a write.
"""
import os
import struct

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nbd_client_fuzz")
SIMPLE, CHUNK, REPLY = 0x67446698, 0x668E33EF, 0x3E889045565A9


def put(name, *pieces, attached=True):
    data = b"".join(struct.pack(">H", len(piece)) + piece for piece in pieces)
    os.makedirs(FOLDER, exist_ok=True)
    with open(os.path.join(FOLDER, name), "wb") as file:
        file.write(bytes([attached]) + data)


def simple(cookie, error=0):
    return struct.pack(">IIQ", SIMPLE, error, cookie)


def chunk(cookie, kind, payload=b"", done=True, length=None):
    return struct.pack(">IHHQI", CHUNK, done, kind, cookie, len(payload) if length is None else length) + payload


def data(cookie, offset, size, done=True):
    return chunk(cookie, 1, struct.pack(">Q", offset) + bytes([cookie]) * size, done)


def hole(cookie, offset, size, done=True):
    return chunk(cookie, 2, struct.pack(">QI", offset, size), done)


def status(cookie, *extents, context=1, done=True):
    return chunk(cookie, 5, struct.pack(">I", context) + b"".join(struct.pack(">II", *one) for one in extents), done)


def error(cookie, number, text=b"no", kind=0x8001, more=b""):
    return chunk(cookie, kind, struct.pack(">IH", number, len(text)) + text + more)


def reply(option, kind, payload=b""):
    return struct.pack(">QIII", REPLY, option, kind, len(payload)) + payload


FIRST = data(1, 0, 4096) + hole(2, 65536, 4096) + status(3, (65536, 3)) + simple(4)
GOOD = FIRST, simple(5), simple(6), simple(7)
put("good", *GOOD)
put("other_order", simple(4) + status(3, (512, 0), (512, 3)) + data(2, 67584, 2048, False) + data(2, 65536, 2048) +
    chunk(1, 1, struct.pack(">Q", 0) + bytes(4096), False) + chunk(1, 0), simple(5), simple(6), simple(7))
put("errors", error(1, 5) + error(2, 28, kind=0x8002, more=bytes(8)) + simple(3, 95) + simple(4, 1), simple(5, 95), simple(6), simple(7, 108))
put("extent_longer_than_asked", status(3, (0xFFFFFFFF, 1)), *GOOD)
put("gap", data(1, 0, 100, False) + chunk(1, 0))
put("overlap", data(1, 0, 4096, False) + hole(1, 5, 10))
put("outside", data(1, 4000, 4096))
put("before", data(2, 0, 4096))
put("huge_chunk", chunk(1, 1, length=0xFFFFFFFF))
put("huge_error", chunk(1, 0x8001, length=0xFFFFFFFF))
put("unknown_cookie", simple(77))
put("simple_for_a_read", simple(1) + bytes(4096))
put("other_context", status(3, (4096, 0), context=9))
put("extent_of_nothing", status(3, (0, 0)))
put("unknown_chunk", chunk(1, 9, b"x"))
put("wrong_magic", b"\x42" * 64)
put("half_a_header", FIRST[:7])
put("nothing", b"")
GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)
EXPORT = struct.pack(">HQH", 0, 1 << 20, 0x65)
put("handshake", GREETING + reply(8, 1) + reply(10, 4, struct.pack(">I", 1) + b"base:allocation") + reply(10, 1) +
    reply(7, 3, EXPORT) + reply(7, 3, struct.pack(">HIII", 3, 512, 4096, 1 << 20)) + reply(7, 1), *GOOD, attached=False)
put("by_name", GREETING + reply(8, 0x80000001) + reply(7, 0x80000001) + struct.pack(">QH", 1 << 20, 0x65),
    simple(1) + bytes(4096) + simple(2) + bytes(4096) + simple(3), simple(4), attached=False)
put("no_size", GREETING + reply(8, 0x80000001) + reply(7, 1), attached=False)
put("refused", GREETING + reply(8, 0x80000001) + reply(7, 0x80000006, b"not here"), attached=False)
put("size_too_large", GREETING + reply(8, 1) + reply(10, 1) + reply(7, 3, struct.pack(">HQH", 0, 1 << 63, 1)) + reply(7, 1), attached=False)
put("huge_option_reply", GREETING + struct.pack(">QIII", REPLY, 8, 1, 0xFFFFFFFF), attached=False)
put("oldstyle", struct.pack(">8sQQI", b"NBDMAGIC", 0x420281861253, 1 << 20, 1) + bytes(124), attached=False)
