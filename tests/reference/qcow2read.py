# SPDX-License-Identifier: Apache-2.0
"""The reader: header, mapping and contents of qcow2 images.  See qcow2ref.py."""
import ctypes
import errno
import hashlib
import os
import re
import struct
import sys
import zlib
from array import array

MAGIC = b"QFI\xfb"
COPIED = 1 << 63
COMPRESSED = 1 << 62
OFFSET = (1 << 56) - (1 << 9)  # bits 9 to 55, in L1, standard L2 and bitmap table entries

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << i for i in range(5))  # incompatible features
BITMAPS, RAW_DATA = 1, 2  # autoclear features

EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441

HOLE, ZERO, DATA, STREAM = range(4)  # what a piece of the guest disk maps to
PIECE = 1 << 20  # no buffer of the program's own choosing is larger


class FormatError(Exception):
    """The image cannot be read here, or not at all."""


def words(raw, kind="Q"):
    """The big-endian numbers in raw, as an array."""
    numbers = array(kind, raw)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers


def is_zero(raw):
    return raw.count(0) == len(raw)


def text(raw):
    return bytes(raw).decode("utf-8", "surrogateescape")


class Blob:
    """A file or a buffer of bytes.  Past the end there are zeros.  Also serves as a raw disk."""

    def __init__(self, source):
        self.fd = None
        if isinstance(source, (bytes, bytearray, memoryview)):
            self.source = bytes(source)
            self.size = len(self.source)
        elif hasattr(source, "pread"):
            self.source, self.size = source, source.size
        else:
            self.fd = os.open(source, os.O_RDONLY)
            self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def __del__(self):
        if getattr(self, "fd", None) is not None:
            os.close(self.fd)

    def pread(self, offset, length):
        out = bytearray()
        want = min(length, max(0, self.size - offset))
        while len(out) < want:
            at, left = offset + len(out), want - len(out)
            if self.fd is not None:
                got = os.pread(self.fd, left, at)
            elif isinstance(self.source, bytes):
                got = self.source[at:at + left]
            else:
                got = self.source.pread(at, left)
            if not got:
                break
            out += got
        return bytes(out) + bytes(length - len(out))

    def segments(self, start, end):
        """Pieces of [start, end): (start, end, source or None for zeros, position in the source)."""
        data_end = min(end, self.size)
        while start < data_end and self.fd is not None:
            try:
                data = min(data_end, os.lseek(self.fd, start, os.SEEK_DATA))
                hole = min(data_end, os.lseek(self.fd, data, os.SEEK_HOLE)) if data < data_end else data
            except OSError as error:
                if error.errno != errno.ENXIO:  # which says: no data up to the end
                    break
                data = hole = data_end
            if start < data:
                yield start, data, None, 0
            if data < hole:
                yield data, hole, self, data
            start = hole
        if start < data_end:
            yield start, data_end, self, start
            start = data_end
        if start < end:
            yield start, end, None, 0


class Table:
    """n words of 64 bits at an offset of a blob, fetched by pieces."""

    def __init__(self, blob, offset, n):
        self.blob, self.offset, self.n = blob, offset, n
        self.at, self.piece = -1, None

    def fetch(self, first):
        count = min(PIECE // 8, self.n - first)
        return self.blob.pread(self.offset + 8 * first, 8 * count)

    def __getitem__(self, index):
        if not 0 <= index < self.n:
            return 0
        piece, inside = divmod(index, PIECE // 8)
        if piece != self.at:
            self.at, self.piece = piece, words(self.fetch(index - inside))
        return self.piece[inside]

    def nonzero(self):
        for first in range(0, self.n, PIECE // 8):
            raw = self.fetch(first)
            if not is_zero(raw):
                for index, word in enumerate(words(raw), first):
                    if word:
                        yield index, word


class ZstdBuffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t)]


def load_zstd():
    for name in ("libzstd.so.1", "libzstd.so", "libzstd.dylib"):
        try:
            lib = ctypes.CDLL(name)
        except OSError:
            continue
        lib.ZSTD_createDStream.restype = ctypes.c_void_p
        lib.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
        buffer = ctypes.POINTER(ZstdBuffer)
        lib.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, buffer, buffer]
        lib.ZSTD_decompressStream.restype = ctypes.c_size_t
        lib.ZSTD_isError.argtypes = [ctypes.c_size_t]
        return lib
    raise FormatError("no libzstd on this machine")


def inflate_zstd(raw, want):
    """(data, bytes consumed, whether the last frame ended); raw may have anything behind the stream."""
    lib = load_zstd()
    target = ctypes.create_string_buffer(want)
    source = ZstdBuffer(ctypes.cast(ctypes.c_char_p(raw), ctypes.c_void_p), len(raw), 0)
    sink = ZstdBuffer(ctypes.cast(target, ctypes.c_void_p), want, 0)
    stream, left = lib.ZSTD_createDStream(), 1
    try:
        while sink.pos < want:
            before = source.pos, sink.pos
            left = lib.ZSTD_decompressStream(stream, ctypes.byref(sink), ctypes.byref(source))
            if lib.ZSTD_isError(left):
                raise FormatError("zstd stream is damaged")
            if before == (source.pos, sink.pos):
                break
    finally:
        lib.ZSTD_freeDStream(stream)
    return target.raw[:sink.pos], source.pos, left == 0


def inflate_zlib(raw, want):
    """The same for raw deflate, which has neither header nor checksum."""
    stream = zlib.decompressobj(-15)
    try:
        data = stream.decompress(raw, want)
        more = b""
        if len(data) == want and not stream.eof:  # the end of the last block may still have to be read
            more = stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise FormatError(f"deflate stream is damaged: {error}") from error
    consumed = len(raw) - len(stream.unused_data) - len(stream.unconsumed_tail)
    return data, consumed, stream.eof and not more


class Stream:
    """A compressed cluster as a source of bytes."""

    def __init__(self, image, entry):
        self.image, self.entry = image, entry

    def pread(self, offset, length):
        return self.image.inflate(self.entry)[0][offset:offset + length]


class View:
    """The guest disk as one L1 table shows it: the active one or a snapshot's."""

    def __init__(self, image, l1, size):
        self.image, self.l1, self.size = image, l1, size

    def segments(self, start, end):
        """As Blob.segments, neighbours joined."""
        last = None
        for piece in self._segments(start, end):
            if last and last[2] is piece[2] and (piece[2] is None or last[3] + last[1] - last[0] == piece[3]):
                last = last[0], piece[1], last[2], last[3]
                continue
            if last:
                yield last
            last = piece
        if last:
            yield last

    def _segments(self, start, end):
        image = self.image
        for first, stop, kind, where in image.pieces(self.l1, start, end):
            if kind == DATA:
                yield first, stop, image.data, where
            elif kind == STREAM:
                yield first, stop, Stream(image, where), first % image.cluster_size
            else:
                if kind == HOLE and first < self.size and image.has_backing:  # VM state has no backing
                    middle = max(first, min(stop, self.size, image.backing.size))
                    yield from image.backing.segments(first, middle)
                    first = middle
                if first < stop:
                    yield first, stop, None, 0

    def chunks(self, start, end):
        """(offset, length, bytes or None for zeros), in order, each at most PIECE long if it has bytes."""
        for first, stop, source, position in self.segments(start, end):
            if source is None:
                yield first, stop - first, None
                continue
            for at in range(first, stop, PIECE):
                length = min(PIECE, stop - at)
                yield at, length, source.pread(position + at - first, length)

    def read(self, offset, length):
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset}+{length} is not within the disk of {self.size} bytes")
        return b"".join(data or bytes(n) for _, n, data in self.chunks(offset, offset + length))

    def vm_state(self, offset, length):
        """VM state lies behind the disk, from the first L1 entry that describes none of it."""
        span = self.image.l2_span
        start = -(-self.size // span) * span + offset
        return b"".join(data or bytes(n) for _, n, data in self.chunks(start, start + length))

    def sum(self):
        digest, zeros = hashlib.sha256(), bytes(PIECE)
        for _, length, data in self.chunks(0, self.size):
            if data is not None:
                digest.update(data)
                continue
            while length:
                digest.update(zeros[:length])
                length -= min(length, PIECE)
        return digest.hexdigest()

    def block_sums(self, block):
        """(offset, sha256) of each block that is not all zeros."""
        done, step = 0, block * max(1, PIECE // block)
        for first, stop, source, _ in self.segments(0, self.size):
            first = max(done, first - first % block)
            if source is None or first >= stop:
                continue
            done = min(self.size, stop + -stop % block)
            for at in range(first, done, step):
                data = self.read(at, min(step, done - at))
                for inside in range(0, len(data), block):
                    piece = data[inside:inside + block]
                    if not is_zero(piece):
                        yield at + inside, hashlib.sha256(piece).hexdigest()

    def raw(self, path):
        with open(path, "wb") as out:
            out.truncate(self.size)
            for offset, _, data in self.chunks(0, self.size):
                if data is not None and not is_zero(data):
                    out.seek(offset)
                    out.write(data)


class Image:
    """A qcow2 image.  backing and data replace what the image names; base is where its names start from."""

    def __init__(self, source, base=None, backing=None, data=None, chain=()):
        self.blob = Blob(source)
        self.path = source if isinstance(source, (str, os.PathLike)) else None
        self.base = base if base is not None else os.path.dirname(self.path or "")
        self.chain = chain + ((os.fstat(self.blob.fd)[1:3],) if self.blob.fd is not None else ())
        self.notes = []  # (list to report in, kind, text): what was odd when the header was read
        self.l2_cache, self.inflated = {}, (None, None)
        self._backing = backing if hasattr(backing, "segments") or backing is None else Blob(backing)
        self._data = data
        self._read_header()
        self._read_extensions()
        self._read_snapshots()
        self._read_bitmaps()
        self.active = View(self, self.table(self.l1_table_offset, self.l1_size), self.size)

    # The header and what hangs on it.

    def note(self, kind, message, where="errors"):
        self.notes.append((where, kind, message))

    def _read_header(self):
        raw = self.blob.pread(0, 112)
        if raw[:4] != MAGIC or self.blob.size < 72:
            raise FormatError("not a qcow2 image")
        (self.version, self.backing_file_offset, self.backing_file_size, self.cluster_bits, self.size,
         self.crypt_method, self.l1_size, self.l1_table_offset, self.refcount_table_offset,
         self.refcount_table_clusters, self.nb_snapshots, self.snapshots_offset,
         ) = struct.unpack_from(">IQIIQIIQQIIQ", raw, 4)
        if self.version not in (2, 3):
            raise FormatError(f"version {self.version}")
        if not 9 <= self.cluster_bits <= 21:  # the upper bound is everybody's, not the specification's
            raise FormatError(f"cluster_bits {self.cluster_bits}")
        self.cluster_size = 1 << self.cluster_bits
        self.incompatible = self.compatible = self.autoclear = self.compression_type = 0
        self.refcount_order, self.header_length = 4, 72
        if self.version == 3:
            (self.incompatible, self.compatible, self.autoclear, self.refcount_order,
             self.header_length) = struct.unpack_from(">QQQII", raw, 72)
            if not 104 <= self.header_length <= self.cluster_size or self.blob.size < 104:
                raise FormatError(f"header_length {self.header_length}")
            if self.header_length % 8:
                self.note("header-length", f"{self.header_length} is not a multiple of 8", "warnings")
            if self.header_length > 104:
                self.compression_type = raw[104]
                if any(raw[105:min(112, self.header_length)]):
                    self.note("header-padding", "padding of the header is not zero", "warnings")
        if self.incompatible >> 5:
            raise FormatError(f"unknown incompatible features {self.incompatible:#x}")
        if self.refcount_order > 6:
            raise FormatError(f"refcount_order {self.refcount_order}")
        self.extended_l2 = bool(self.incompatible & EXTENDED_L2)
        self.has_data_file = bool(self.incompatible & DATA_FILE)
        if self.extended_l2 and self.cluster_bits < 14:
            raise FormatError("extended L2 entries need clusters of 16 KiB or more")
        if bool(self.incompatible & COMPRESSION) != bool(self.compression_type):
            self.note("compression-type", f"feature bit and type {self.compression_type} disagree")
        if self.compression_type > 1:
            self.note("compression-type", f"unknown type {self.compression_type}")
        if self.crypt_method > 2:
            self.note("crypt-method", f"unknown method {self.crypt_method}")
        if self.autoclear & RAW_DATA and not self.has_data_file:
            self.note("raw-data", "raw external data without external data file")
        self.l2_entries = self.cluster_size // (16 if self.extended_l2 else 8)
        self.l2_span = self.l2_entries * self.cluster_size
        self.compressed_shift = 62 - (self.cluster_bits - 8)
        self.refcount_bits = 1 << self.refcount_order
        if self.l1_size * self.l2_span < self.size:
            self.note("l1-size", f"{self.l1_size} entries do not cover {self.size} bytes")

    def _read_extensions(self):
        self.extensions, end = [], self.cluster_size
        self.backing_file = None
        if self.backing_file_offset:
            if (self.backing_file_size > 1023 or self.backing_file_offset < self.header_length
                    or self.backing_file_offset + self.backing_file_size > self.cluster_size):
                self.note("backing-name", "does not lie between the header and the end of its cluster")
            else:
                self.backing_file = text(self.blob.pread(self.backing_file_offset, self.backing_file_size))
                end = self.backing_file_offset
            if self.autoclear & RAW_DATA:
                self.note("raw-data", "raw external data together with a backing file")
        at = self.header_length
        while at + 8 <= end:
            kind, length = struct.unpack(">II", self.blob.pread(at, 8))
            if not kind:
                break
            if length > end - at - 8:
                self.note("extension", f"{kind:#x} of {length} bytes runs out of its area")
                break
            if any(kind == other for other, _ in self.extensions):
                self.note("extension", f"{kind:#x} appears more than once", "warnings")
            self.extensions.append((kind, self.blob.pread(at + 8, length)))
            at += 8 + -(-length // 8) * 8
        found = dict(self.extensions)
        self.backing_format = text(found.get(EXT_BACKING_FORMAT, b"")) or None
        self.data_file = text(found.get(EXT_DATA_FILE, b"")) or None
        self.crypto = None
        if EXT_CRYPTO in found and len(found[EXT_CRYPTO]) == 16:
            self.crypto = struct.unpack(">QQ", found[EXT_CRYPTO])
        if (EXT_CRYPTO in found) != (self.crypt_method == 2) or bool(self.crypto) != (EXT_CRYPTO in found):
            self.note("crypto", "encryption header pointer and crypt_method do not fit")
        self.bitmaps_extension = None
        if EXT_BITMAPS in found:
            if len(found[EXT_BITMAPS]) != 24:
                self.note("bitmaps", "extension has a wrong length")
            elif not self.autoclear & BITMAPS:
                self.note("bitmaps", "extension present, but its autoclear bit is clear", "warnings")
            else:
                self.bitmaps_extension = struct.unpack(">IIQQ", found[EXT_BITMAPS])
        elif self.autoclear & BITMAPS:
            self.note("bitmaps", "autoclear bit is set, but there is no extension")

    def _read_snapshots(self):
        self.snapshots, at, self.snapshots_size = [], self.snapshots_offset, 0
        if self.nb_snapshots > 65536:
            self.note("snapshot-table", f"{self.nb_snapshots} entries are more than anybody can have")
            return
        for index in range(self.nb_snapshots):
            (l1_offset, l1_size, id_len, name_len, sec, nsec, clock, vm_size,
             extra_len) = struct.unpack(">QIHHIIQII", self.blob.pread(at, 40))
            end = at + 40 + extra_len + id_len + name_len
            if end > self.blob.size:
                self.note("snapshot-table", f"entry {index} lies beyond the end of the file")
                break
            extra = self.blob.pread(at + 40, extra_len)
            names = self.blob.pread(at + 40 + extra_len, id_len + name_len)
            disk = None
            if extra_len >= 8:
                vm_size = struct.unpack_from(">Q", extra)[0]
            if extra_len >= 16:
                disk = struct.unpack_from(">Q", extra, 8)[0]
            elif self.version == 3:
                self.note("snapshot-table", f"entry {index} lacks the extra data of version 3")
            if extra_len > 1024:
                self.note("snapshot-table", f"entry {index} has {extra_len} bytes of extra data, more than readers take")
            self.snapshots.append({
                "id": text(names[:id_len]), "name": text(names[id_len:]), "l1_table_offset": l1_offset,
                "l1_size": l1_size, "date_sec": sec, "date_nsec": nsec, "vm_clock_nsec": clock,
                "vm_state_size": vm_size, "disk_size": self.size if disk is None else disk,
                "extra_data_size": extra_len})
            at, self.snapshots_size = end + -end % 8, end - self.snapshots_offset
        ids = [snapshot["id"] for snapshot in self.snapshots]
        if len(set(ids)) != len(ids):
            self.note("snapshot-table", "an id is used twice", "warnings")

    def _read_bitmaps(self):
        self.bitmaps = []
        if not self.bitmaps_extension:
            return
        count, reserved, size, offset = self.bitmaps_extension
        if reserved or not count:
            self.note("bitmaps", "reserved field is set, or no bitmap at all")
        if offset + size > self.blob.size:
            self.note("bitmaps", "directory lies beyond the end of the file")
            return
        raw, at, seen = self.blob.pread(offset, size), 0, set()
        while at + 24 <= size and len(self.bitmaps) < count:
            table, n, flags, kind, bits, name_len, extra_len = struct.unpack_from(">QIIBBHI", raw, at)
            end = at + 24 + extra_len + name_len
            if end > size:
                break
            name = text(raw[end - name_len:end])
            padded = end + -end % 8
            if kind != 1 or flags >> 3 or bits > 63 or not name or name in seen or any(raw[end:padded]):
                self.note("bitmaps", f"directory entry of {name!r} is invalid")
            elif not 9 <= bits <= 31:
                self.note("bitmaps", f"granularity of {name!r} is not generally supported")
            seen.add(name)
            self.bitmaps.append({"name": name, "table_offset": table, "table_size": n, "granularity_bits": bits,
                                 "in_use": bool(flags & 1), "auto": bool(flags & 2), "extra_data_size": extra_len})
            at = padded
        if at != size or len(self.bitmaps) != count:
            self.note("bitmaps", "number of bitmaps and size of the directory do not fit")

    # Other files.

    def _locate(self, name):
        if name.startswith("file:"):
            name = name[5:]
        elif re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", name):
            raise FormatError(f"{name!r} is not a local file")
        return os.path.join(self.base, name)

    @property
    def has_backing(self):
        return self._backing is not None or bool(self.backing_file_offset)

    @property
    def backing(self):
        """The disk behind this one: an object with .size and .segments()."""
        if self._backing is None:
            if not self.backing_file:
                raise FormatError("the name of the backing file cannot be read")
            path = self._locate(self.backing_file)
            if self.backing_format == "raw":
                self._backing = Blob(path)
            elif self.backing_format == "qcow2":
                if os.stat(path)[1:3] in self.chain or len(self.chain) > 200:
                    raise FormatError("the backing chain has a loop, or no end")
                self._backing = Image(path, chain=self.chain)
            else:
                raise FormatError(f"backing format {self.backing_format!r}")
        return self._backing

    @property
    def data(self):
        """The blob that holds the guest's clusters."""
        if not self.has_data_file:
            return self.blob
        if self._data is None:
            if not self.data_file:
                raise FormatError("the image does not name its data file")
            self._data = self._locate(self.data_file)
        if not isinstance(self._data, Blob):
            self._data = Blob(self._data)
        return self._data

    def segments(self, start, end):
        return self.active.segments(start, end)

    # Mapping.

    def table(self, offset, n):
        return Table(self.blob, offset, min(n, max(0, self.blob.size - offset) // 8))

    def l2_table(self, offset):
        if offset not in self.l2_cache:
            if offset % self.cluster_size:
                raise FormatError(f"L2 table at {offset:#x} is not aligned")
            if len(self.l2_cache) >= 16:
                self.l2_cache.pop(next(iter(self.l2_cache)))
            self.l2_cache[offset] = words(self.blob.pread(offset, self.cluster_size))
        return self.l2_cache[offset]

    def stream_range(self, entry):
        """(offset, length) of a compressed entry; the length is an upper bound of the stream's."""
        offset = entry & ((1 << self.compressed_shift) - 1)
        sectors = 1 + ((entry & (COMPRESSED - 1)) >> self.compressed_shift)
        return offset, sectors * 512 - offset % 512

    def inflate(self, entry):
        """(one cluster, bytes consumed, whether the stream ended there)."""
        if self.inflated[0] != entry:
            if self.crypt_method:
                raise FormatError("compressed cluster in an encrypted image")
            raw = self.blob.pread(*self.stream_range(entry))
            result = (inflate_zstd if self.compression_type else inflate_zlib)(raw, self.cluster_size)
            if len(result[0]) != self.cluster_size:
                raise FormatError(f"stream holds {len(result[0])} bytes instead of a cluster")
            self.inflated = entry, result
        return self.inflated[1]

    def pieces(self, l1, start, end):
        """What [start, end) of a guest disk maps to: (start, end, kind, host offset or compressed entry)."""
        size = self.cluster_size
        while start < end:
            inside = start % self.l2_span
            stop = min(end, start - inside + self.l2_span)
            l2_offset = l1[start // self.l2_span] & OFFSET
            if not l2_offset:
                yield start, stop, HOLE, 0
                start = stop
                continue
            table = self.l2_table(l2_offset)
            while start < stop:
                at = start % size
                index = start % self.l2_span // size
                cluster_end = min(stop, start - at + size)
                bitmap = table[2 * index + 1] if self.extended_l2 else 0
                entry = table[2 * index] if self.extended_l2 else table[index]
                for first, last, kind, where in self.entry_pieces(entry, bitmap, at, cluster_end - start + at):
                    yield start - at + first, start - at + last, kind, where
                start = cluster_end

    def entry_pieces(self, entry, bitmap, at, end):
        """The same within one cluster, given its L2 entry; at and end count from the cluster's start."""
        if entry & COMPRESSED:
            yield at, end, STREAM, entry
            return
        host = entry & OFFSET
        allocated = bool(host or self.has_data_file and entry & COPIED)
        if host % self.cluster_size:
            raise FormatError(f"host cluster {host:#x} is not aligned")
        if allocated and self.crypt_method and not (entry & 1 and not self.extended_l2):
            raise FormatError("contents are encrypted")
        if not self.extended_l2:
            if entry & 1 and self.version == 2:
                raise FormatError("zero flag in an image of version 2")
            kind = ZERO if entry & 1 else DATA if allocated else HOLE
            yield at, end, kind, host + at if kind == DATA else 0
            return
        part = self.cluster_size // 32
        while at < end:
            sub = at // part
            stop = min(end, (sub + 1) * part)
            data, zero = bitmap >> sub & 1, bitmap >> (32 + sub) & 1
            if data and (zero or not allocated):
                raise FormatError(f"subcluster {sub} is invalid")
            yield at, stop, (DATA if data else ZERO if zero else HOLE), host + at if data else 0
            at = stop

    # What callers want.

    def view(self, snapshot=None):
        """The active disk, or a snapshot's by name or, failing that, by id."""
        if snapshot is None:
            return self.active
        for key in ("name", "id"):
            for entry in self.snapshots:
                if entry[key] == snapshot:
                    return View(self, self.table(entry["l1_table_offset"], entry["l1_size"]), entry["disk_size"])
        raise FormatError(f"no snapshot {snapshot!r}")

    def read(self, offset, length, snapshot=None):
        return self.view(snapshot).read(offset, length)

    def sum(self, snapshot=None):
        return self.view(snapshot).sum()

    def dirty(self, name):
        """The dirty ranges of a bitmap: a list of (offset, end)."""
        bitmap = next((b for b in self.bitmaps if b["name"] == name), None)
        if bitmap is None:
            raise FormatError(f"no bitmap {name!r}")
        ranges, unit = [], 1 << bitmap["granularity_bits"]
        table, size = self.table(bitmap["table_offset"], bitmap["table_size"]), self.cluster_size
        per_byte, last = 8 * unit, -(-self.size // unit)
        for index in range(min(table.n, -(-last // (8 * size)))):
            entry = table[index]
            if not entry:
                continue
            raw = self.blob.pread(entry & OFFSET, size) if entry & OFFSET else b"\xff" * size
            for at, byte in enumerate(raw):
                for bit in range(8) if byte else ():
                    start = (index * size + at) * per_byte + bit * unit
                    if byte >> bit & 1 and start < self.size:
                        end = min(self.size, start + unit)
                        if ranges and ranges[-1][1] == start:
                            ranges[-1] = ranges[-1][0], end
                        else:
                            ranges.append((start, end))
        return ranges

    def info(self):
        names = ("version cluster_bits size crypt_method l1_size l1_table_offset refcount_table_offset "
                 "refcount_table_clusters nb_snapshots snapshots_offset refcount_bits header_length "
                 "compression_type backing_file backing_format data_file").split()
        result = {name: getattr(self, name) for name in names}
        result["incompatible"] = [name for bit, name in (
            (DIRTY, "dirty"), (CORRUPT, "corrupt"), (DATA_FILE, "data-file"), (COMPRESSION, "compression-type"),
            (EXTENDED_L2, "extended-l2")) if self.incompatible & bit]
        result["compatible"], result["autoclear"] = self.compatible, self.autoclear
        result["file_size"] = self.blob.size
        result["extensions"] = [{"type": f"{kind:#010x}", "length": len(data)} for kind, data in self.extensions]
        result["luks"] = self.crypto
        result["snapshots"], result["bitmaps"] = self.snapshots, self.bitmaps
        return result
