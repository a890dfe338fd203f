# SPDX-License-Identifier: Apache-2.0
"""What two runs of one command line have left, made comparable, and where it differs.

Left out is what must differ between two programs or two moments: host offsets, disk sizes, where an image file ends, times, dates.
"""
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path.insert(0, os.path.join(ROOT, "tests", "reference"))
import qcow2ref  # noqa: E402

MAGIC = b"QFI\xfb"
PATIENCE = 30
NO_END = -1   # The code of what had not ended by then.
REPLACED = [
    (r"disk size: \S+( \S+)?", "disk size: SIZE"),
    (r"file length: .*", "file length: LENGTH"),
    (r'"actual-size": \d+', '"actual-size": SIZE'),
    (r'"virtual-size": \d+(,\s+"filename": "[^"]*",\s+"format": "file")', r'"virtual-size": LENGTH\1'),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE"),
    (r'"date-n?sec": \d+', '"date": DATE'),
    (r"( *\(\d+\.\d\d/100%\)\r?\n?)+", "PROGRESS\n"),
    (r"Image end offset: \d+", "Image end offset: END"),
    (r'"image-end-offset": \d+', '"image-end-offset": END'),
    (r"1 ops; .* \(.*/sec and .* ops/sec\)", "1 ops; TIME (SPEED)"),
    (r"(\d+,1),\d+:\d\d:\d\d\.\d\d,[\d.]+,[\d.]+", r"\1,TIME,SPEED"),
    (r"(WARNING: Image format was not specified(?:.*\n){3})\1", r"\1"),
    (r"possibilities:.*", lambda found: " ".join(sorted(found[0].split()))),
    (r"#block\d+", "#blockN"),
    (r"Run completed in \S+ seconds", "Run completed in TIME seconds"),
]


@dataclass
class Ran:
    """How a program ended."""
    code: int
    out: str
    err: str


@dataclass
class Difference:
    aspect: str   # out, err, code, files, or WHAT FILE: contents, map, info, check, snapshots, bitmaps.
    theirs: str
    ours: str
    untouched: bool = False   # Of a file: byre has left it as it was.


class Differences(list):
    """All of one line; `code` and `err` are byre's."""

    def __init__(self, found, code, err):
        super().__init__(found)
        self.code, self.err = code, err


def play(words, folder, patience=PATIENCE):
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    try:
        done = subprocess.run(words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False,
                              env=environment)
    except subprocess.TimeoutExpired:
        return Ran(NO_END, "", f"no end after {patience} s")
    read = [text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr)]
    return Ran(done.returncode, *read)


def comparable(text, folder):
    text = text.replace(folder, "FOLDER")
    for pattern, replacement in REPLACED:
        text = re.sub(pattern, replacement, text)
    return text


def merged(entries, key):
    """Neighbours that say the same, as one."""
    out = []
    for start, length, value in entries:
        if out and out[-1][2] == value and out[-1][0] + out[-1][1] == start:
            out[-1][1] += length
        else:
            out.append([start, length, value])
    return [f"{start} {length} {key(value)}" for start, length, value in out]


def map_json(text, holes=True):
    """qemu-img map --output=json without host offsets; None: it is none.  Without `holes` it does not matter whether the
    bytes of a data cluster are a hole of the file, which is the file system's: like the disk size."""
    try:
        entries = json.loads(text)
    except json.JSONDecodeError:
        return None
    rows = []
    for entry in entries:
        value = {**entry, "offset": "offset" in entry}
        if value["data"] and not holes:
            del value["zero"]
        start, length = value.pop("start"), value.pop("length")
        rows.append((start, length, value))
    return "\n".join(merged(rows, json.dumps))


def map_table(text):
    lines = text.splitlines()
    if not lines or not lines[0].startswith("Offset "):
        return None
    rows = []
    for line in lines[1:]:
        words = line.split(maxsplit=3)
        if len(words) != 4:
            return None
        rows.append((int(words[0], 16), int(words[1], 16), words[3]))
    return "\n".join([lines[0], *merged(rows, str)])


def same_form(line, theirs, ours, folders):
    """The two standard outputs, comparable."""
    texts = [comparable(ran.out, folder) for ran, folder in zip((theirs, ours), folders)]
    if line.command == "map" and texts[0] != texts[1]:
        for read in (map_json, map_table):
            both = [read(text) for text in texts]
            if None not in both:
                return both
    return texts


def compare(line, theirs, ours, folders, seed):
    """All differences of the two runs, and of the two folders after them; both began with files of the folder `seed`."""
    found = []
    out = same_form(line, theirs, ours, folders)
    err = [comparable(ran.err, folder) for ran, folder in zip((theirs, ours), folders)]
    for aspect, (left, right) in (("code", (str(theirs.code), str(ours.code))), ("out", out), ("err", err)):
        if left != right:
            found.append(Difference(aspect, left, right))
    if theirs.code == ours.code == NO_END:
        return Differences(found, ours.code, ours.err)  # How far each was then says nothing.
    return Differences(found + compare_folders(folders, seed), ours.code, ours.err)


def files_in(folder):
    out = set()
    for path, _, names in os.walk(folder):
        out |= {os.path.relpath(os.path.join(path, name), folder) for name in names}
    return out


def content(path):
    with open(path, "rb") as file:
        return file.read()


def as_before(name, folder, seed):
    before = os.path.join(seed, name)
    return os.path.isfile(before) and content(before) == content(os.path.join(folder, name))


def compare_folders(folders, seed):
    left, right = (files_in(folder) for folder in folders)
    found = []
    if left != right:
        kept = all(as_before(name, folders[1], seed) for name in right - left)
        found.append(Difference("files", " ".join(sorted(left - right)), " ".join(sorted(right - left)), untouched=kept))
    for name in sorted(left & right):
        paths = [os.path.join(folder, name) for folder in folders]
        contents = [content(path) for path in paths]
        if contents[0] == contents[1]:
            continue
        if all(one.startswith(MAGIC) for one in contents):
            differences = compare_images(name, folders)
        else:
            differences = [Difference(f"contents {name}", describe(contents[0]), describe(contents[1]))]
        for one in differences:
            one.untouched = as_before(name, folders[1], seed)
        found += differences
    return found


def describe(data):
    zeros = len(data) - len(data.rstrip(b"\0"))
    return f"{len(data)} bytes, the last {zeros} zeros, hash {hash(data.rstrip(bytes(1))):x}"


def state_of(name, folder):
    """What an image is, by aspects: the real qemu-img's words, and the reference's reading."""
    def ask(*words):
        ran = play(["qemu-img", *words, name], folder)
        return ran
    info, check = ask("info", "-f", "qcow2", "--output=json"), ask("check", "-f", "qcow2", "--output=json")
    state = {"info": comparable(info.out + info.err, folder), "check": comparable(f"{check.code} {check.out}", folder)}
    mapped = ask("map", "-f", "qcow2", "--output=json")
    state["map"] = map_json(mapped.out, holes=False) if mapped.code == 0 else comparable(mapped.err, folder)
    try:
        image = qcow2ref.Image(os.path.join(folder, name))
        state["contents"] = image.sum()
        state["snapshots"] = str([(one["id"], one["name"], image.sum(snapshot=one["name"] or one["id"])) for one in image.info()["snapshots"]])
        state["bitmaps"] = str([(one["name"], list(image.dirty(one["name"]))) for one in image.info()["bitmaps"]])
    except Exception as error:  # A damaged image: the reader says so, in its own words.
        state["contents"] = f"unreadable: {type(error).__name__}"
    return state


def check_counts(text):
    """Of `check --output=json` what must be equal: errors and leaks, not how much there is."""
    return " ".join(re.findall(r'^\d+|"(?:corruptions|leaks|check-errors|filename)": [^,\n]*', text))


def compare_images(name, folders):
    left, right = (state_of(name, folder) for folder in folders)
    left["check"], right["check"] = check_counts(left["check"]), check_counts(right["check"])
    return [Difference(f"{aspect} {name}", str(left.get(aspect)), str(right.get(aspect)))
            for aspect in ("info", "check", "map", "contents", "snapshots", "bitmaps") if left.get(aspect) != right.get(aspect)]
