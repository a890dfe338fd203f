# SPDX-License-Identifier: Apache-2.0
"""Images made by hand, field by field, to be as wrong as wanted.

    image = Forged(cluster_bits=16, size=1 << 30)   # header, refcount table, one refcount block, L1: all sound
    l2 = image.cluster()                            # one more host cluster, with a refcount of 1
    image.put(image.l1, l2 | COPIED)                # an entry
    image.header(size=1 << 62)
    image.write(path)
"""
import struct

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
FIELDS = {"magic": (0, ">I"), "version": (4, ">I"), "backing_file_offset": (8, ">Q"), "backing_file_size": (16, ">I"),
          "cluster_bits": (20, ">I"), "size": (24, ">Q"), "crypt_method": (32, ">I"), "l1_size": (36, ">I"),
          "l1_table_offset": (40, ">Q"), "refcount_table_offset": (48, ">Q"), "refcount_table_clusters": (56, ">I"),
          "nb_snapshots": (60, ">I"), "snapshots_offset": (64, ">Q"), "incompatible": (72, ">Q"),
          "compatible": (80, ">Q"), "autoclear": (88, ">Q"), "refcount_order": (96, ">I"), "header_length": (100, ">I")}
EXT_BACKING_FORMAT, EXT_BITMAPS, EXT_DATA_FILE, EXT_CRYPTO = 0xE2792ACA, 0x23852875, 0x44415441, 0x0537BE77


class Forged:
    def __init__(self, cluster_bits=16, size=1 << 30, version=3, l1_entries=None, extensions=b""):
        self.cluster_size = 1 << cluster_bits
        self.next = 0
        self.bytes = bytearray()
        self.head = self.clusters(1)
        self.reftable = self.clusters(1)
        self.refblock = self.clusters(1)
        span = self.cluster_size * (self.cluster_size // 8)
        entries = max(1, -(-size // span)) if l1_entries is None else l1_entries
        self.l1 = self.clusters(max(1, -(-entries * 8 // self.cluster_size)))
        self.header(magic=0x514649FB, version=version, cluster_bits=cluster_bits, size=size, l1_size=entries,
                    l1_table_offset=self.l1, refcount_table_offset=self.reftable, refcount_table_clusters=1)
        if version == 3:
            self.header(refcount_order=4, header_length=104)
            self.splice(104, extensions)
        self.put(self.reftable, self.refblock)

    def clusters(self, count):
        at = self.next * self.cluster_size
        self.next += count
        self.bytes.extend(bytes(count * self.cluster_size))
        if self.next > 3:
            for index in range(self.next - count if self.next > 4 else 0, self.next):
                self.refcount(index, 1)
        return at

    def cluster(self):
        """The offset of a new host cluster."""
        return self.clusters(1)

    def refcount(self, index, value):
        self.splice(self.refblock + 2 * index, struct.pack(">H", value))

    def splice(self, offset, data):
        self.bytes[offset:offset + len(data)] = data

    def put(self, offset, *entries):
        self.splice(offset, struct.pack(f">{len(entries)}Q", *entries))

    def header(self, **fields):
        for name, value in fields.items():
            offset, kind = FIELDS[name]
            struct.pack_into(kind, self.bytes, offset, value)

    def l2(self, index=0):
        """A new L2 table at that place of the L1 table."""
        at = self.cluster()
        self.put(self.l1 + 8 * index, at | COPIED)
        return at

    def data(self, table, index, content):
        at = self.cluster()
        self.splice(at, content[:self.cluster_size])
        self.put(table + 8 * index, at | COPIED)
        return at

    def backing(self, name, form=None):
        name = name.encode() if isinstance(name, str) else name
        extension = b""
        if form is not None:
            extension = extension_bytes(EXT_BACKING_FORMAT, form.encode())
        self.splice(104, extension + bytes(8))
        at = 104 + len(extension) + 8
        self.splice(at, name)
        self.header(backing_file_offset=at, backing_file_size=len(name))
        return self

    def write(self, path):
        with open(path, "wb") as file:
            file.write(self.bytes)
        return path


def extension_bytes(kind, data):
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
