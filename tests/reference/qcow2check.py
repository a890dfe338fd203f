# SPDX-License-Identifier: Apache-2.0
"""The checker: counts every reference in a qcow2 image and compares.  See qcow2ref.py."""
from array import array

from qcow2read import (COMPRESSED, COPIED, CORRUPT, DIRTY, OFFSET, PIECE, RAW_DATA, FormatError, is_zero,
                       words)

RESERVED_L1 = (0x7F << 56) | 0x1FF
RESERVED_L2 = (0x3F << 56) | 0x1FE  # without bit 0, the zero flag
STREAMS = ("compressed data",)  # the one owner that may have several entries in a host cluster


class Checker:
    """Counts every reference in the image without looking at the refcounts, then compares."""

    def __init__(self, image, limit):
        self.image, self.limit = image, limit
        self.size, self.cluster_size = image.blob.size, image.cluster_size
        self.found = {"errors": [], "leaks": [], "copied_mismatch": [], "warnings": []}
        self.counts = dict.fromkeys(self.found, 0)
        self.refs = {}  # host cluster -> references
        self.owner = {}  # host cluster -> guest cluster, or (kind, index) for metadata, or STREAMS
        self.blocks = {}  # refcount table index -> refcounts up to the last that is not 0
        self.entries = self.cluster_size * 8 // image.refcount_bits  # per refcount block
        self.copied = array("Q")  # host cluster * 2 + COPIED of each active standard entry, L2 tables too
        self.streams = {}  # (offset, length) -> (guest cluster, entry)

    def report(self, where, kind, message, **fields):
        self.counts[where] += 1
        if len(self.found[where]) < self.limit:
            self.found[where].append({"kind": kind, "text": message, **fields})

    def error(self, kind, message, **fields):
        self.report("errors", kind, message, **fields)

    def claim(self, cluster, owner, weight=1):
        """One more reference to a host cluster, which may have one owner only."""
        self.refs[cluster] = self.refs.get(cluster, 0) + weight
        other = self.owner.setdefault(cluster, owner)
        if other != owner:
            one, two = (f"guest cluster {who}" if isinstance(who, int) else " ".join(map(str, who))
                        for who in (other, owner))
            offset = cluster * self.cluster_size
            self.error("two-owners", f"host cluster {offset:#x} has {one} and {two}", offset=offset)

    def area(self, offset, length, *name):
        """Claims a run of metadata; says whether it can be read."""
        what = " ".join(map(str, name))
        if offset % self.cluster_size:
            self.error("misaligned", f"{what} at {offset:#x}", offset=offset)
        if offset + length > self.size:
            self.error("beyond-eof", f"{what} at {offset:#x}", offset=offset)
        end = min(offset + length, max(offset + 1, self.size))
        for cluster in range(offset // self.cluster_size, -(-end // self.cluster_size)):
            self.claim(cluster, name)
        return offset % self.cluster_size == 0

    def pointer(self, host, length, what):
        """Whether a pointer to a table of one cluster, or to a cluster of guest data, may be followed."""
        if host % self.cluster_size:
            self.error("misaligned", f"{what} at {host:#x}", offset=host)
            return False
        if host + length > self.size:
            self.error("beyond-eof", f"{what} at {host:#x}", offset=host)
        return True

    def run(self, decode):
        image = self.image
        for where, kind, message in image.notes:
            self.report(where, kind, message)
        self.area(0, min(self.cluster_size, self.size), "header")
        self.refcount_structures()
        if image.crypto:
            self.area(*image.crypto, "encryption header")
        if image.snapshots:
            self.area(image.snapshots_offset, image.snapshots_size, "snapshot table")
        tables = {}  # offset of an L2 table -> [L1 index, references, whether it is in the active L1]
        self.l1("active L1", image.l1_table_offset, image.l1_size, True, tables)
        for index, entry in enumerate(image.snapshots):
            name = f"L1 of snapshot {index}"
            self.l1(name, entry["l1_table_offset"], entry["l1_size"], False, tables)
            if entry["l1_size"] * image.l2_span < entry["disk_size"]:
                self.error("l1-size", f"{name} does not cover its disk of {entry['disk_size']} bytes")
        for offset, (index, weight, active) in tables.items():
            self.l2(offset, index * image.l2_entries, weight, active)
        self.check_streams(decode)
        self.check_bitmaps()
        if decode and image.autoclear & RAW_DATA:
            self.check_raw_data()
        self.compare()
        self.check_copied()
        return {"dirty": bool(image.incompatible & DIRTY), "corrupt": bool(image.incompatible & CORRUPT),
                **self.found, "counts": self.counts}

    def refcount_structures(self):
        image, size = self.image, self.cluster_size
        if not image.refcount_table_clusters:
            self.error("refcount-table", "has no clusters")
            return
        length = image.refcount_table_clusters * size
        if not self.area(image.refcount_table_offset, length, "refcount table"):
            return
        for index, entry in image.table(image.refcount_table_offset, length // 8).nonzero():
            host, what = entry & ~0x1FF, f"refcount block {index}"
            if entry & 0x1FF:
                self.error("reserved-bits", f"{what}: refcount table entry {entry:#x}")
            if self.pointer(host, size, what):
                self.claim(host // size, ("refcount block", index))
                if host < self.size:
                    self.blocks[index] = self.unpack(image.blob.pread(host, size))

    def unpack(self, raw):
        raw, bits = raw.rstrip(b"\0"), self.image.refcount_bits
        if bits >= 8:
            return words(raw + bytes(-len(raw) % 8), {8: "B", 16: "H", 32: "I", 64: "Q"}[bits])
        split = [bytes(byte >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)) for byte in range(256)]
        return b"".join(map(split.__getitem__, raw))

    def refcount(self, cluster):
        index, inside = divmod(cluster, self.entries)
        block = self.blocks.get(index, b"")
        return block[inside] if inside < len(block) else 0

    def l1(self, name, offset, n, active, tables):
        if not n or not self.area(offset, 8 * n, name):
            return
        for index, entry in self.image.table(offset, n).nonzero():
            host, what = entry & OFFSET, f"L2 table of {name}[{index}]"
            if entry & RESERVED_L1:
                self.error("reserved-bits", f"{name}[{index}] is {entry:#x}")
            if not host:
                if entry & COPIED:
                    self.error("copied-unallocated", f"{name}[{index}] is {entry:#x}")
                continue
            if not self.pointer(host, self.cluster_size, what):
                continue
            self.claim(host // self.cluster_size, ("L2 table", index))
            if active:
                self.copied.append(host // self.cluster_size * 2 + (entry >> 63))
            if host < self.size:
                table = tables.setdefault(host, [index, 0, False])
                table[1] += 1
                table[2] |= active

    def l2(self, offset, first_guest, weight, active):
        image, size = self.image, self.cluster_size
        raw = image.blob.pread(offset, size)
        if is_zero(raw):
            return
        entries, bitmaps, reserved = words(raw), None, RESERVED_L2
        if image.extended_l2:
            entries, bitmaps = entries[::2], entries[1::2]
        no_zero_flag = image.extended_l2 or image.version == 2
        refs, owner = self.refs, self.owner
        for guest, entry in enumerate(entries, first_guest):
            bitmap = bitmaps[guest - first_guest] if bitmaps else 0
            if not entry and not bitmap:
                continue
            if entry & COMPRESSED:
                self.compressed(guest, entry, bitmap, weight)
                continue
            host = entry & OFFSET
            if entry & reserved:
                self.error("reserved-bits", f"L2 entry of guest cluster {guest} is {entry:#x}", guest=guest)
            if entry & 1 and no_zero_flag:
                self.error("zero-flag", f"L2 entry of guest cluster {guest} is {entry:#x}", guest=guest)
            allocated = host or image.has_data_file and entry & COPIED
            if bitmap & bitmap >> 32 & 0xFFFFFFFF or bitmap & 0xFFFFFFFF and not allocated:
                self.error("subclusters", f"bitmap {bitmap:#018x} of guest cluster {guest}", guest=guest)
            if not allocated:
                if entry & COPIED:
                    self.error("copied-unallocated", f"L2 entry of guest cluster {guest}", guest=guest)
                continue
            if image.has_data_file:
                if host != guest * size:
                    self.error("data-file-offset", f"guest cluster {guest} is at {host:#x}", guest=guest)
                if active and not entry & COPIED:
                    self.report("copied_mismatch", "copied-clear", f"guest cluster {guest}", guest=guest)
                continue
            if host % size or host >= self.size:
                # A cluster that is only reserved may lie where the file has not grown yet.
                used = bitmap & 0xFFFFFFFF if bitmaps else not entry & 1
                if host % size == 0 and not used:
                    self.report("warnings", "beyond-eof", f"reserved for guest cluster {guest}", guest=guest)
                elif not self.pointer(host, 1, f"guest cluster {guest}"):
                    continue
            cluster = host // size
            refs[cluster] = refs.get(cluster, 0) + weight
            if owner.setdefault(cluster, guest) != guest:
                self.claim(cluster, guest, 0)  # which reports it
            if active:
                self.copied.append(cluster * 2 + (entry >> 63))

    def compressed(self, guest, entry, bitmap, weight):
        image, what = self.image, f"compressed guest cluster {guest}"
        offset, length = image.stream_range(entry)
        if entry & COPIED:  # also in a snapshot's table: no writer has a reason to set it
            self.error("copied-compressed", what, guest=guest)
        if bitmap:
            self.error("subclusters", f"{what} has the bitmap {bitmap:#x}", guest=guest)
        if image.has_data_file:
            self.error("compressed-data-file", what, guest=guest)
        if image.crypt_method:
            self.report("warnings", "compressed-encrypted", f"{what} is in the clear", guest=guest)
        if offset >> 56:
            self.error("reserved-bits", f"{what}: entry {entry:#x}", guest=guest)
            return
        if offset >= self.size:
            self.error("beyond-eof", f"{what} at {offset:#x}", guest=guest, offset=offset)
        for cluster in range(offset // self.cluster_size, (offset + length - 1) // self.cluster_size + 1):
            self.claim(cluster, STREAMS, weight)
        other = self.streams.setdefault((offset, length), (guest, entry))[0]
        if other != guest:
            self.error("two-owners", f"{what} has the stream of guest cluster {other}", guest=guest, offset=offset)

    def check_streams(self, decode):
        """A stream may begin in the last sector of the one before it, but not in the one before's bytes."""
        end = stream_end = 0
        for (offset, length), (guest, entry) in sorted(self.streams.items()):
            if offset < stream_end or offset < end and offset // 512 < (end - 1) // 512:
                self.error("streams-overlap", f"compressed guest cluster {guest} at {offset:#x}", guest=guest,
                           offset=offset)
            end = max(end, offset + length)
            if not decode:
                continue
            try:
                _, consumed, ended = self.image.inflate(entry)
            except FormatError as error:
                self.error("undecodable", f"compressed guest cluster {guest}: {error}", guest=guest, offset=offset)
                continue
            stream_end = max(stream_end, offset + consumed)
            if not ended:  # Readers of zstd refuse it; deflate stops when the cluster is full.
                self.report("errors" if self.image.compression_type else "warnings", "stream-not-ended",
                            f"compressed guest cluster {guest}", guest=guest, offset=offset)

    def check_bitmaps(self):
        image, size = self.image, self.cluster_size
        if image.bitmaps_extension:
            _, _, length, offset = image.bitmaps_extension
            self.area(offset, length, "bitmap directory")
        for bitmap in image.bitmaps:
            name, n = f"bitmap {bitmap['name']!r}", bitmap["table_size"]
            bits = -(-image.size // (1 << bitmap["granularity_bits"]))
            if n != -(-bits // (8 * size)):
                self.report("warnings" if bitmap["in_use"] else "errors", "bitmap-size",
                            f"{name} has {n} clusters for {bits} bits")
            if not self.area(bitmap["table_offset"], 8 * n, name, "table"):
                continue
            for index, entry in image.table(bitmap["table_offset"], n).nonzero():
                host = entry & OFFSET
                if entry & ~OFFSET & ~1 or host and entry & 1:
                    self.error("reserved-bits", f"{name}: table entry {index} is {entry:#x}")
                if not host or not self.pointer(host, 1, f"{name}, data {index}"):
                    continue
                self.claim(host // size, (name, "data", index))
                used = bits - index * 8 * size
                if 0 <= used < 8 * size and not bitmap["in_use"]:
                    raw = image.blob.pread(host, size)
                    if raw[used // 8] >> used % 8 or not is_zero(raw[used // 8 + 1:]):
                        self.error("bitmap-tail", f"{name} has bits set behind the end of the disk")

    def check_raw_data(self):
        """A raw data file must read, by itself, as the guest disk does."""
        image = self.image
        for first, stop, source, _ in image.segments(0, image.size):
            for start, end, other, position in image.data.segments(first, stop) if source is None else ():
                for at in range(start, end, PIECE) if other else ():
                    if not is_zero(other.pread(position + at - start, min(PIECE, end - at))):
                        self.error("raw-data-differs", f"data file is not zero from {at:#x} on", offset=at)
                        return

    def compare(self):
        size, runs = self.cluster_size, []
        for cluster in sorted(self.refs):
            have, want = self.refcount(cluster), self.refs[cluster]
            if have < want:
                self.error("refcount-low", f"cluster {cluster * size:#x}: refcount {have}, references {want}",
                           offset=cluster * size, refcount=have, references=want)
            elif have > want:
                self.report("leaks", "refcount-high",
                            f"cluster {cluster * size:#x}: refcount {have}, references {want}",
                            offset=cluster * size, clusters=1)
        for index in sorted(self.blocks):
            for cluster, count in enumerate(self.blocks[index], index * self.entries):
                if count and cluster not in self.refs:
                    if runs and runs[-1][1] == cluster:
                        runs[-1][1] += 1
                    else:
                        runs.append([cluster, cluster + 1])
        for first, end in runs:
            self.report("leaks", "unreferenced", f"{end - first} clusters from {first * size:#x} on",
                        offset=first * size, clusters=end - first)

    def check_copied(self):
        for word in self.copied:
            cluster, copied = word >> 1, word & 1
            refcount, refs = self.refcount(cluster), self.refs[cluster]
            offset, owner = cluster * self.cluster_size, self.owner[cluster]
            what = f"cluster {offset:#x} ({owner}): refcount {refcount}, references {refs}"
            if copied and refs > 1:
                self.error("copied-shared", what, offset=offset)
            elif copied and refcount != 1:
                self.error("copied-refcount", what, offset=offset)
            elif not copied and refcount == refs == 1:
                self.report("copied_mismatch", "copied-clear", what, offset=offset)
