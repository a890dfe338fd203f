# SPDX-License-Identifier: Apache-2.0
"""The commands of QEMU's tools with their options, and values for each: what the oracle draws its command lines from.

An option has values that are usual, and some that nobody should give.  Words in braces are filled in by generate.py:
{image} an image of the pool, {format} that image's format, {new} a name for a new file, {size} a size.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    names: tuple          # Its spellings.
    usual: tuple = ()     # Values; none for a flag.
    odd: tuple = ()       # Values that are wrong, or at the border.
    weight: float = 1.0   # How often it joins other options by itself.


@dataclass(frozen=True)
class Command:
    name: str
    options: tuple
    operands: tuple        # Lists of words, one of which is drawn; the first half of the draws take the first.
    lines: int = 150       # At least so many.
    program: str = "qemu-img"
    prefer: tuple = ()     # Tags of images that it is most about.


def option(names, *usual, odd=(), weight=1.0):
    return Option(tuple(names.split()), tuple(usual), tuple(odd), weight)


SIZES = ("1M", "4M", "65536", "10k", "3M", "1.5M")
ODD_SIZES = ("0", "-1", "9E", "1.5.2G", "", "1x", "12345", "0x100000", "16E", "8192P", " 1M", "1M ", "+1M", "1e3", "nan",
             "99999999999999999999", "512", "1b", "1K", "0x", "1Mb")
FORMATS = ("raw", "qcow2")
ODD_FORMATS = ("", "qcow", "vmdk", "nonsense", "QCOW2", "file", "luks")
CACHES = ("writeback", "none", "writethrough", "directsync", "unsafe")
ODD_CACHES = ("", "off", "write-back", "nonsense")
OBJECTS = ("secret,id=s0,data=abc", "secret,id=s0,data=YWJj,format=base64")
ODD_OBJECTS = ("secret,id=s0", "secret,data=abc", "nonsense,id=x", "", "secret,id=s0,file=nothing.here", "iothread,id=i0")

QUIET = option("-q --quiet")
TRACE = option("-T --trace", "nothing", "enable=nothing", "file=trace.log", odd=("", "events=nothing"), weight=0.1)
PROGRESS = option("-p --progress", weight=0.5)
FORMAT = option("-f --format", "{format}", "{format}", "{format}", "raw", "qcow2", odd=ODD_FORMATS)
IMAGE_OPTS = option("--image-opts", weight=0.4)
SHARE = option("-U --force-share")
OBJECT = option("--object", *OBJECTS, odd=ODD_OBJECTS, weight=0.1)
OUTPUT = option("--output", "human", "json", "json", odd=("", "xml", "JSON"))
HELP = option("-h --help", weight=0.02)

# Options of the format, behind -o.
CREATION = tuple(option("-o --options", *[f"{name}={value}" for value in usual], odd=tuple(f"{name}={v}" for v in odd))
                 for name, usual, odd in (
    ("cluster_size", ("64k", "512", "4k", "2M", "4096"), ("0", "100", "4M", "3k", "-1", "x", "")),
    ("compat", ("0.10", "1.1", "v2", "v3"), ("", "2", "1.0", "v4")),
    ("lazy_refcounts", ("on", "off"), ("", "yes", "1", "maybe")),
    ("refcount_bits", ("1", "16", "64", "8"), ("0", "3", "128", "x", "-1")),
    ("preallocation", ("off", "metadata", "falloc", "full"), ("", "on", "none")),
    ("extended_l2", ("on", "off"), ("", "x")),
    ("compression_type", ("zlib", "zstd"), ("", "lzo")),
    ("size", SIZES, ODD_SIZES),
    ("backing_file", ("base.qcow2", "plain.raw"), ("", "nothing.qcow2", "nbd://127.0.0.1:1/x")),
    ("backing_fmt", ("qcow2", "raw"), ("", "nonsense", "vmdk")),
    ("data_file", ("fresh.bin",), ("", "nodir/fresh.bin", "plain.raw")),
    ("data_file_raw", ("on", "off"), ("", "x")),
    ("encryption", ("off",), ("on",)),
    ("encrypt.format", (), ("luks", "aes", "x")),
    ("nocow", ("on", "off"), ("x",)),
    ("extent_size_hint", ("0", "1M"), ("x", "-1")),
))
CREATION_OTHER = option("-o --options", "cluster_size=4k,compat=1.1", "help", "?",
                        odd=("", ",", "nonsense=1", "cluster_size", "=", "size", "compat=1.1,compat=0.10", "help=1"))

AMENDMENT = tuple(option("-o --options", *[f"{name}={value}" for value in usual], odd=tuple(f"{name}={v}" for v in odd))
                  for name, usual, odd in (
    ("compat", ("0.10", "1.1", "v2", "v3"), ("", "2", "v4")),
    ("lazy_refcounts", ("on", "off"), ("", "maybe")),
    ("refcount_bits", ("1", "16", "64", "8", "32"), ("0", "3", "x")),
    ("size", ("8M", "4M", "6M"), ODD_SIZES),
    ("backing_file", ("base.qcow2",), ("", "nothing.qcow2")),
    ("backing_fmt", ("qcow2", "raw"), ("", "nonsense")),
    ("data_file", ("data.bin",), ("", "nothing.bin")),
    ("data_file_raw", ("on", "off"), ("x",)),
    ("cluster_size", ("64k",), ("4k",)),
    ("preallocation", ("off",), ("full",)),
    ("encrypt.format", (), ("luks",)),
))
AMENDMENT_OTHER = option("-o --options", "compat=1.1,lazy_refcounts=on", "help", odd=("", "nonsense=1", "lazy_refcounts"))

SNAPSHOTS = ("first", "second", "1", "2")
ODD_SNAPSHOTS = ("", "third", "snapshot.id=1", "snapshot.name=first", "snapshot.id=1,snapshot.name=second", "snapshot.x=1",
                 "a b", "ü", "x" * 300, "0")
BITMAPS = ("b0", "b1", "n3", "fresh")
ODD_BITMAPS = ("", "x" * 1100, "a b", "b0,b1")
IMAGE = ("{image}",)
ODD_IMAGES = ((), ("{image}", "{image}"), ("--", "{image}"), ("",))

CREATE = Command("create", (
    QUIET, option("-f --format", "qcow2", "qcow2", "qcow2", "raw", odd=ODD_FORMATS, weight=6.0), *CREATION, CREATION_OTHER,
    option("-b --backing", "base.qcow2", "mid.qcow2", "plain.raw", "v2.qcow2", odd=("", "nothing.qcow2", "folder",
           "refzero.qcow2", "noformat.qcow2", "nobacking.qcow2", "json:{}", "nbd://127.0.0.1:1/x")),
    option("-F --backing-format", "qcow2", "raw", odd=ODD_FORMATS), option("-u --backing-unsafe"), OBJECT, HELP),
    (("{new}", "{size}"), ("{new}",), (), ("{new}", "{size}", "more"), ("{size}", "{new}"), ("{image}", "{size}")), 500)

INFO = Command("info", (FORMAT, IMAGE_OPTS, option("-b --backing-chain"), SHARE, OBJECT, OUTPUT, HELP),
               (IMAGE, *ODD_IMAGES), 250, prefer=("chain", "snapshots", "bitmaps"))

CHECK = Command("check", (
    QUIET, FORMAT, IMAGE_OPTS, option("-T --cache", *CACHES, odd=ODD_CACHES), SHARE, OUTPUT,
    option("-r --repair", "leaks", "all", odd=("", "none", "ALL")), OBJECT, HELP),
    (IMAGE, *ODD_IMAGES), 250)

MAP = Command("map", (
    FORMAT, IMAGE_OPTS, option("--start-offset -s", "0", "64k", "1M", "100000", odd=ODD_SIZES),
    option("--max-length -l", "64k", "1M", "4M", "1000", odd=ODD_SIZES), OUTPUT, SHARE, OBJECT, HELP),
    (IMAGE, *ODD_IMAGES), 250, prefer=("chain",))

RESIZE = Command("resize", (
    QUIET, FORMAT, IMAGE_OPTS, option("--shrink"),
    option("--preallocation", "off", "metadata", "falloc", "full", odd=("", "on")), OBJECT, HELP),
    (("{image}", "{resize}"), ("{image}",), (), ("{image}", "{resize}", "1M"), ("{image}", "--shrink", "{resize}")), 200)

SNAPSHOT = Command("snapshot", (
    QUIET, FORMAT, IMAGE_OPTS, SHARE, OBJECT, option("-l --list"),
    option("-c", "new", "third", odd=ODD_SNAPSHOTS), option("-a", *SNAPSHOTS, odd=ODD_SNAPSHOTS),
    option("-d", *SNAPSHOTS, odd=ODD_SNAPSHOTS), HELP),
    (IMAGE, *ODD_IMAGES), 250, prefer=("snapshots",))

BITMAP = Command("bitmap", (
    option("-f", "{format}", "{format}", "raw", "qcow2", odd=ODD_FORMATS), IMAGE_OPTS, option("--add"), option("--remove"), option("--clear"), option("--enable"), option("--disable"),
    option("-g --granularity", "64k", "4k", "512", "2M", odd=ODD_SIZES), option("--merge", "b0", "b1", "n3", odd=ODD_BITMAPS),
    option("-b --source-file", "bits.qcow2", "manybits.qcow2", odd=("", "nothing.qcow2", "plain.raw"), weight=0.3),
    option("-F --source-format", "qcow2", odd=ODD_FORMATS, weight=0.3), OBJECT, HELP),
    (("{image}", "{bitmap}"), ("{image}",), (), ("{image}", "{bitmap}", "b1")), 250, prefer=("bitmaps",))

AMEND = Command("amend", (
    QUIET, PROGRESS, FORMAT, IMAGE_OPTS, option("-t --cache", *CACHES, odd=ODD_CACHES), option("--force"), *AMENDMENT,
    AMENDMENT_OTHER, OBJECT, HELP),
    (IMAGE, *ODD_IMAGES), 300, prefer=("chain",))

CONVERT = Command("convert", (
    QUIET, option("-p", weight=0.5), option("-f --source-format", "{format}", "{format}", "raw", "qcow2", odd=ODD_FORMATS), option("--image-opts --source-image-opts", weight=0.4),
    option("-l --snapshot", *SNAPSHOTS, "snapshot.name=first", odd=ODD_SNAPSHOTS, weight=0.4),
    option("-T --source-cache", *CACHES, odd=ODD_CACHES),
    option("-O --output-format", "qcow2", "qcow2", "raw", odd=ODD_FORMATS, weight=3.0),
    option("--target-image-opts", weight=0.2), *[Option(("-o", "--options"), one.usual, one.odd, 0.4) for one in CREATION],
    option("-c"), option("-t --output-cache", *CACHES, odd=ODD_CACHES),
    option("-B --backing", "base.qcow2", "plain.raw", odd=("", "nothing.qcow2"), weight=0.4),
    option("-F --backing-format", "qcow2", "raw", odd=ODD_FORMATS, weight=0.4), option("-n", weight=0.4),
    option("--target-is-zero", weight=0.4), option("-S --sparse-size", "0", "4k", "64k", "512", odd=ODD_SIZES),
    option("--bitmaps"), option("--skip-broken-bitmaps", weight=0.4), SHARE, option("-r --rate", "1G", odd=ODD_SIZES, weight=0.3),
    option("-m --parallel", "1", "8", "16", odd=("0", "17", "-1", "x", "")), option("-C --copy-range-offloading", weight=0.3),
    option("--salvage"), option("-W --oob-writes"), OBJECT, HELP),
    (("{image}", "{new}"), ("{image}",), (), ("{image}", "{image}", "{new}"), ("{image}", "{image}")), 700,
    prefer=("snapshots", "bitmaps", "chain", "compressed"))

COMPARE = Command("compare", (
    QUIET, PROGRESS, option("-f --a-format", "{format}", "raw", "qcow2", odd=ODD_FORMATS),
    option("-F --b-format", "qcow2", "raw", odd=ODD_FORMATS), IMAGE_OPTS, option("-s --strict"),
    option("-T --cache", *CACHES, odd=ODD_CACHES), SHARE, OBJECT, HELP),
    (("{image}", "{image}"), ("{image}",), (), ("{image}", "{image}", "{image}")), 250, prefer=("chain",))

MEASURE = Command("measure", (
    option("-O --target-format", "qcow2", "raw", odd=ODD_FORMATS), option("-s --size", *SIZES, odd=ODD_SIZES, weight=0.3), FORMAT,
    IMAGE_OPTS, option("-l --snapshot", *SNAPSHOTS, odd=ODD_SNAPSHOTS, weight=0.3), *[Option(o.names[:1], o.usual, o.odd, 0.4) for o in
    CREATION], OUTPUT, SHARE, OBJECT, HELP),
    (IMAGE, (), ("{image}", "{image}")), 250, prefer=("chain", "snapshots"))

DD = Command("dd", (
    FORMAT, IMAGE_OPTS, option("-O --output-format", "qcow2", "raw", odd=ODD_FORMATS), SHARE, OBJECT, HELP),
    (("if={image}", "of={new}"), ("if={image}", "of={new}", "bs=64k", "count=3"), ("if={image}", "of={new}", "skip=1", "bs=4k"),
     ("if={image}", "of={new}", "bs=1M", "skip=2", "count=10"), ("if={image}", "of={new}", "bs=0"), ("if={image}",),
     ("if={image}", "of={new}", "count=x"), ("bs=1k", "bs=2k", "if={image}", "of={new}"), ("{image}", "{new}"), ()), 200)

BENCH = Command("bench", (
    QUIET, FORMAT, IMAGE_OPTS, option("-t --cache", *CACHES, odd=ODD_CACHES), option("-c --count", "4", "16", odd=("0", "-1", "x")),
    option("-s --buffer-size", "4k", "64k", odd=ODD_SIZES), option("-d --depth", "1", "8", odd=("0", "x")),
    option("-o --offset", "0", "64k", odd=ODD_SIZES), option("-S --step-size", "4k", "128k", odd=ODD_SIZES),
    option("-i --aio", "threads", "native", "io_uring", odd=("x",)), option("-n --native"), option("-w --write"),
    option("--pattern", "7", odd=("256", "x")), option("--flush-interval", "2", odd=("0", "x")), option("--no-drain"), SHARE, HELP),
    (IMAGE, *ODD_IMAGES), 250)

COMMIT = Command("commit", (
    QUIET, PROGRESS, FORMAT, IMAGE_OPTS, option("-t --cache", *CACHES, odd=ODD_CACHES), option("-d --drop"),
    option("-b --base", "base.qcow2", "mid.qcow2", odd=("", "v3.qcow2")), option("-r --rate", "1G", odd=ODD_SIZES), OBJECT, HELP),
    (IMAGE, *ODD_IMAGES), 200, prefer=("chain",))

REBASE = Command("rebase", (
    QUIET, PROGRESS, FORMAT, IMAGE_OPTS, option("-t --cache", *CACHES, odd=ODD_CACHES),
    option("-b --backing", "base.qcow2", "mid.qcow2", "", "v3.qcow2", "plain.raw", odd=("nothing.qcow2", "top.qcow2"), weight=4.0),
    option("-F --backing-format", "qcow2", "raw", odd=ODD_FORMATS, weight=2.0), option("-T --backing-cache", *CACHES, odd=ODD_CACHES),
    option("-u --backing-unsafe"), option("-c --compress"), SHARE, OBJECT, HELP),
    (IMAGE, *ODD_IMAGES), 250, prefer=("chain",))

IO_LINES = ("read 0 64k", "read -P 0 1M 64k", "read -v 0 512", "read -q 0 4k", "read -C 0 4k", "read -p 0 4k", "read -b 0 512",
            "write 0 64k", "write -P 5 64k 64k", "write -z 0 128k", "write -z -u 0 128k", "write -c 0 64k", "write -q 0 512",
            "write -f 0 4k", "write -n -z 64k 64k", "write -s text.txt 0 512", "readv 0 512 512", "readv -q 0 4k", "writev 0 512 512",
            "writev -P 3 0 4k 4k", "aio_read 0 4k", "aio_write 0 4k", "aio_write -P 4 0 4k", "aio_write -z 0 64k", "aio_flush",
            "discard 0 64k", "discard -q 64k 64k", "discard -C 0 4k", "flush", "length", "info", "map", "alloc 0 64k", "alloc 1M",
            "truncate 8M", "truncate -m off 2M", "truncate 0", "sleep 1", "help", "quit", "close", "zone_report 0 1", "zone_open 0 64k",
            "zone_close 0 64k", "zone_finish 0 64k", "zone_reset 0 64k", "zone_append 0 512 512", "reopen", "reopen -r", "reopen -w",
            "reopen -c none", "reopen -c writeback", "reopen -o discard=ignore", "reopen -o lazy-refcounts=on", "reopen -o read-only=off",
            "read -r 0 4k", "write -r 0 4k", "readv -r 0 512 512", "writev -r 0 512", "help read", "help reopen", "help zone_open",
            "open -s {image}", "open -s -r {image}", "open -C {image}", "open -k -n {image}")
ODD_IO_LINES = ("", "read", "read 0", "read -P 0 0", "read x y", "read 0 -1", "read 100M 1k", "read 9E 1k", "read 1 1", "write 1 511",
                "write -z", "write -P 256 0 4k", "write -P x 0 4k", "write -u 0 4k", "write -zc 0 4k", "nonsense", "discard", "discard 0",
                "alloc x", "truncate", "truncate x", "open", "open nothing.qcow2", "close now", "help nonsense", "sleep x", "reopen x",
                "reopen -r -w", "reopen -c bad", "reopen -r -o read-only=on", "reopen -c none -o cache.direct=on", "reopen -o driver=raw",
                "reopen -o nonsense=1", "reopen -o file.filename=x", "reopen -o discard=x", "reopen -o", "reopen -o read-only=on",
                "reopen -o lazy-refcounts=x", "zone_report 0", "zone_report 0 4294967296", "zone_open 9E 1", "zone_reset 100M 512",
                "zone_append 0 512", "zone_append 0 3G 1", "zone_close -r 1", "write -rz 0 4k", "read -rb 0 512", "open -s nothing.qcow2",
                "open -k {image}", "map x", "abort now", "break x y", "resume x", "wait_break x",
                "sigraise x", "readv 0", "writev 0", "aio_read 0", "aio_write", "read -Z 0 4k", "quit now", "length 1", "flush 1")
QEMU_IO = Command("", (
    option("-c --cmd", *IO_LINES, odd=ODD_IO_LINES, weight=12.0), option("-f --format", "{format}", odd=ODD_FORMATS),
    option("-r --read-only"), option("-s --snapshot"), option("-n --nocache", weight=0.3), option("-C --copy-on-read", weight=0.2),
    option("-m --misalign"), option("-k --native-aio", weight=0.2), option("-i --aio", "threads", "native", "io_uring", odd=("x",), weight=0.3),
    option("-t --cache", *CACHES, odd=ODD_CACHES), option("-d --discard", "unmap", "ignore", "on", odd=("x", "")),
    SHARE, IMAGE_OPTS, OBJECT, TRACE, option("-V --version", weight=0.05), HELP),
    (IMAGE, IMAGE, (), ("{image}", "{image}")), 500, "qemu-io")

QEMU_IMG = Command("", (TRACE, option("-V --version"), HELP),
                   (("info", "{image}"), ("info",), (), ("nonsense",), ("create", "-q", "{new}", "1M")), 60)

QEMU_NBD = Command("", (
    option("-s --snapshot"), option("--handshake-limit", "0", "5", odd=("x", "-1", "", "4294967295", "1.5")), option("-t --persistent"),
    option("-v --verbose"), option("-n --nocache"), option("--fork", weight=0.3), TRACE, option("--selinux-label", "x", weight=0.3),
    option("-L --list", weight=0.2), option("-V --version", weight=0.1), HELP, option("-c --connect", "/dev/nbd99", odd=("", "x"), weight=0.2),
    option("-d --disconnect"), option("-p --port", "1", "10809", odd=("0", "65536", "-1", "x", "")),
    option("-b --bind", "127.0.0.1", odd=("",)), option("-k --socket", "sock", odd=("relative", "")),
    option("-e --shared", "2", odd=("-1", "x", "")), option("-f --format", odd=ODD_FORMATS[1:]), option("-r --read-only"),
    option("-l --load-snapshot", odd=("nonsense",)), option("-o --offset", odd=("-1", "x", "9E")), option("-x --export-name", "x"),
    option("-B --bitmap", odd=("nonsense",)), option("-A --allocation-depth"), option("-D --description", "words"),
    option("--cache", odd=ODD_CACHES[2:]), option("--aio", odd=("x",)), option("--discard", odd=("x",)),
    option("--detect-zeroes", odd=("x", "unmap")), option("--image-opts"), option("--pid-file", "/nodir/pid"), option("--tls-creds", odd=("tls0",)),
    option("--tls-hostname", "x"), option("--tls-authz", odd=("x",)), option("--object", odd=ODD_OBJECTS, weight=0.2)),
    (("nothing.qcow2",), (), ("nothing.qcow2", "more"), ("folder",), ("/dev/nbd99",)), 300, "qemu-nbd")

COMMANDS = (CREATE, INFO, CHECK, MAP, RESIZE, SNAPSHOT, BITMAP, AMEND, CONVERT, COMPARE, MEASURE, DD, BENCH, COMMIT, REBASE, QEMU_IMG,
            QEMU_IO, QEMU_NBD)
