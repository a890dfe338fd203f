# SPDX-License-Identifier: Apache-2.0
"""The intended differences: each has a number in docs/compatibility.md ("Intended differences"), with its reason.

A rule says whether one difference of one command line is the one that it stands for.  What no rule takes is a fault, and so is
a rule that is not on that page, or stands there and is not here (oracle_test.py).
"""
import re

import pool
import table

RULES = {}
# An error of opening, making or changing something: who, what, and behind the colon why.
WHAT = re.compile(r"^qemu-\w+: (?:Failed to load snapshot: |.*?error while (?:converting \w+|creating output image): |"
                  r"(?:Could not open|can't open device|can't open|Failed to blk_new_open|Could not \w+ snapshot)(?: [^:']*)?(?: ?'[^']*')?: |"
                  r"Could not change the backing file to '[^']*': (?!backing format)|Cannot downgrade an image |Operation \w+ on bitmap .*? failed: |[^ ]*: Could not create '[^']*': )", re.M)
NOTE = re.compile(r"(?:qemu-\w+: warning: |NOTE ).*\n")


def rule(number):
    def add(function):
        RULES[number] = function
        return function
    return add


def explain(line, differences):
    """{difference index: number of the rule}; what no rule takes is not in it."""
    found = {}
    for index, difference in enumerate(differences):
        for number, takes in RULES.items():
            if takes(line, difference, differences):
                found[index] = number
                break
    return found


def of(differences, aspect):
    return next((one for one in differences if one.aspect == aspect), None)


def texts(differences, aspect="err"):
    one = of(differences, aspect)
    return (one.theirs, one.ours) if one else ("", "")


def fails_alike(differences):
    """Both fail, with the same exit code."""
    return of(differences, "code") is None and differences.code != 0


@rule("D1")
def help_in_own_words(line, one, __):
    usage = [re.match(r"(\w+) .*-- .*\n$", text) for text in (one.theirs, one.ours)]
    if all(usage) and usage[0][1] == usage[1][1]:
        return True  # How a command of qemu-io is used.
    if one.theirs.lower().startswith("usage:"):
        return one.aspect == "out" and one.ours.startswith("usage:")
    if line.program == "qemu-io" and one.aspect == "out" and any("help" in word for word in line.words):
        theirs, ours = (set(re.findall(r"^(\w+) .*-- ", text, re.M)) for text in (one.theirs, one.ours))
        return bool(ours) and not theirs - ours
    return one.aspect == "out" and one.ours.startswith("usage:") and one.theirs.lower().startswith(("usage:", "qemu-img version"))


@rule("D2")
def version_of_its_own(_, one, __):
    ours = re.fullmatch(r"(qemu-\w+(?: version)? \d+\.\d+)\.0 \(byre \S+\)\n", one.ours)
    return one.aspect == "out" and ours and one.theirs.startswith(ours[1] + ".")


@rule("D3")
def reason_in_own_words(_, one, all_of_them):
    """Why something cannot be opened or made: what was found, and where."""
    if one.aspect != "err" or not fails_alike(all_of_them):
        return False
    if ": data file: open '" in one.ours and "Could not create" in one.theirs:
        return True
    texts_of = one.theirs, NOTE.sub("", one.ours)
    theirs, ours = map(WHAT.search, texts_of)
    # As many messages, and of what the system said the same.
    causes = [re.findall(r"No such file or directory|Permission denied|No space left|Connection refused|File exists", text) for text in texts_of]
    messages = [len(re.findall(r"^qemu-\w+: ", text, re.M)) for text in texts_of]
    return theirs and ours and theirs[0] == ours[0] and messages[0] == messages[1] and set(causes[0]) <= set(causes[1])


@rule("D4")
def damage_is_told(_, one, __):
    """Lines on stderr about an image that is damaged, and nothing else."""
    told = re.compile(r"qemu-\w+: warning: .*(?:the image is damaged|was not closed cleanly|became right|refcount|"
                      r"begins like a qcow2 image; as raw its tables would be the disk).*\n|NOTE .*\n")
    theirs = one.theirs.replace("qcow2_free_clusters failed: Invalid argument\n", "")  # QEMU meets it later.
    return one.aspect == "err" and one.ours != theirs and told.sub("", one.ours) == theirs


@rule("D5")
def damaged_is_not_rebuilt(line, one, all_of_them):
    """amend and snapshot refuse a damaged image, which stays as it was."""
    return line.command in ("amend", "snapshot") and "the image is damaged" in texts(all_of_them)[1] \
        and "nothing was changed" in texts(all_of_them)[1]


@rule("D6")
def findings_in_own_words(line, one, _):
    """check: each finding; the counts are those of both (out and code are compared by themselves)."""
    finding = re.compile(r"^(?:ERROR|Leaked|WARNING|Repairing|NOTE|WARN|Rebuilding) ?.*\n", re.M)
    return line.command == "check" and one.aspect == "err" and (one.theirs or one.ours) and \
        finding.sub("", one.theirs) == finding.sub("", one.ours)


@rule("D7")
def no_encryption(line, one, all_of_them):
    """Refused; and the help of options does not list it."""
    if any("encrypt" in word for word in line.words) and "encryption is not supported" in texts(all_of_them)[1]:
        return True
    return one.aspect == "out" and "encrypt." in one.theirs and re.sub(r"  encrypt.*\n", "", one.theirs).rstrip() == one.ours.rstrip()


@rule("D8")
def bitmaps_follow_the_size(line, one, all_of_them):
    """A larger disk is dirty where it grew; a shrunken one keeps what is left."""
    if line.command in ("resize", "amend") and "is inconsistent and cannot be used" in texts(all_of_them)[0]:
        return True  # Nobody can use it; the disk is resized.
    if "a disk of 0 bytes has no room for its persistent bitmaps" in all_of_them.err:
        return True  # QEMU loses them.
    return line.command in ("resize", "amend") and one.aspect.startswith("bitmaps ")


@rule("D9")
def holes_below_data(line, one, _):
    """map: byre always looks for holes of the file under data; QEMU where it suspects that the image was preallocated."""
    if line.command != "map" or one.aspect != "out":
        return False
    if one.ours.startswith("Offset"):
        return ranges(one.ours) != ranges(one.theirs) and covered(ranges(one.ours), ranges(one.theirs))
    if not (one.ours[:1].isdigit() and one.theirs[:1].isdigit()):
        return False
    plain = re.compile(r'"zero": (?:true|false), (?="data": true)')
    return merged_json(plain.sub("", one.ours)) == merged_json(plain.sub("", one.theirs))


def ranges(table):
    return [(int(start), int(start) + int(length)) for start, length, _ in
            (row.split(maxsplit=2) for row in table.splitlines()[1:] if len(row.split(maxsplit=2)) == 3 and row[0].isdigit())]


def covered(inner, outer):
    return all(any(a <= start and end <= b for a, b in outer) for start, end in inner)


def merged_json(text):
    out = []
    for row in text.splitlines():
        start, length, rest = row.split(" ", 2)
        if out and out[-1][2] == rest and out[-1][0] + out[-1][1] == int(start):
            out[-1][1] += int(length)
        else:
            out.append([int(start), int(length), rest])
    return out


@rule("D10")
def long_options_of_help(line, one, all_of_them):
    """Long options that qemu-img's help names, and QEMU 10.0 does not take."""
    return "unrecognized option '--" in texts(all_of_them)[0] or "doesn't allow an argument" in texts(all_of_them)[0]


@rule("D11")
def kernel_devices(line, one, all_of_them):
    return line.program == "qemu-nbd" and re.search(r"modprobe nbd|it is no NBD device|'--selinux-label' is not supported",
                                                    texts(all_of_them)[1])


@rule("D12")
def special_files(line, one, all_of_them):
    """What is no regular file and no block device is refused before anything is written to it."""
    return "neither a regular file nor a block device" in texts(all_of_them)[1] or "/dev/full" in line.words


@rule("D13")
def other_formats(line, one, all_of_them):
    """Formats that byre does not have: by their names, where qemu-img goes on to say what is wrong next."""
    return re.search(r"(?:Unknown driver|Unknown file format|Driver) '(?:vmdk|luks|file)'|of qcow version 1|"
                     r"does not accept value '(?:vmdk|luks|file|qcow)'", texts(all_of_them)[1])


@rule("D14")
def no_images_on_servers(line, _, all_of_them):
    named = line.command in ("create", "convert", "dd") and line.words[-1].startswith("nbd://")
    lists = line.command == "create" and any("help" in word for word in line.words)
    return (named or "Unknown protocol 'nbd'" in texts(all_of_them)[1]) and (fails_alike(all_of_them) or lists)


@rule("D15")
def nothing_half_made_is_left(line, one, all_of_them):
    """When both fail, what byre began is gone, or is no disk; what cannot be is told before anything is written."""
    if one.aspect == "err" and "error while writing at byte" in one.theirs and "Compression not supported" in one.ours:
        return True
    if one.aspect == "err" and "error while converting" in one.theirs and "Could not create '" in one.theirs and \
            "does not support bitmaps" in one.ours:
        return True
    if one.aspect.startswith("contents ") and one.untouched and fails_alike(all_of_them):
        return True  # Nor was it emptied.
    # What byre has and QEMU removed was there before, and is as it was.
    return one.aspect == "files" and (not one.ours or not one.theirs and one.untouched) and fails_alike(all_of_them) and \
        line.command in ("create", "convert", "dd")


@rule("D16")
def no_leaks_behind(_, one, __):
    return one.aspect.startswith("check ") and one.ours.startswith("0 ") and one.theirs.startswith("3 ")


@rule("D17")
def whole_or_not_at_all(line, one, all_of_them):
    """amend: when one option cannot be, the others are not carried out."""
    # The one thing that byre has done is to close the image.
    only_closed = one.aspect.startswith("info ") and "was not closed cleanly; its refcounts were rebuilt (0 changed)" in all_of_them.err
    return line.command == "amend" and fails_alike(all_of_them) and (one.untouched or only_closed)


@rule("D18")
def short_forms(_, __, all_of_them):
    return "warning: short-form boolean option" in texts(all_of_them)[0] and of(all_of_them, "code") is None


@rule("D20")
def two_formats(line, _, all_of_them):
    return re.search(r"-f says \w+, and ", texts(all_of_them)[1])


@rule("D21")
def cut_off_header(line, _, all_of_them):
    """A file that ends inside its header is none that can be read."""
    return "only 104 bytes are there" in texts(all_of_them)[1]


@rule("D22")
def corruption_on_the_way(_, one, all_of_them):
    """A bad entry ends the request; the image is not marked."""
    theirs = texts(all_of_them)[0]
    return ("qcow2: Image is corrupt:" in theirs or "qcow2: Marking image as corrupt:" in theirs) and of(all_of_them, "code") is None


@rule("D23")
def no_tracing(_, __, all_of_them):
    """-T is refused by name; QEMU goes on, and may make a file."""
    return "option '--trace' is not supported: there is no tracing here" in texts(all_of_them)[1]


@rule("D24")
def a_snapshot_is_only_read(line, _, all_of_them):
    return line.program == "qemu-nbd" and "--snapshot and --load-snapshot exclude each other" in texts(all_of_them)[1] \
        and fails_alike(all_of_them)


@rule("D25")
def reopen(line, _, all_of_them):
    """Settings that have one value; the temporary file of -s, which QEMU looks for by name; -U and writing."""
    if line.program != "qemu-io" or not any("reopen" in word for word in line.words):
        return False
    theirs, ours = texts(all_of_them)
    return "Could not open '/var/tmp/vl." in theirs or "is not supported, only" in ours or \
        "force-share=on can only be used with read-only images" in ours


@rule("D26")
def nothing_changed(line, one, _):
    """Bitmaps: what read as zeros before and does so after a discard is not dirty."""
    return line.program == "qemu-io" and one.aspect.startswith("bitmaps ") and any("discard" in word or "write -z" in word for word in line.words)


@rule("D27")
def zeroes_in_version_2(line, one, all_of_them):
    """`write -z -n` of an image of version 2 without a backing file: its clusters are given back, which reads as zeros."""
    return line.program == "qemu-io" and any("write -n -z" in word for word in line.words) and "v2.qcow2" in " ".join(line.words)


@rule("D28")
def one_image_alone(line, _, all_of_them):
    return line.command in ("check", "snapshot", "amend") and "Could not open backing file" in texts(all_of_them)[0] and \
        (line.command == "amend" or not texts(all_of_them)[1])


@rule("D29")
def secrets_only(line, _, all_of_them):
    return "--object iothread is not supported" in texts(all_of_them)[1] and "invalid object type" in texts(all_of_them)[0]


@rule("D30")
def more_is_found(line, one, all_of_them):
    """check counts what QEMU does not see (docs: check)."""
    if line.command != "check" or not line.damaged or one.aspect not in ("out", "code"):
        return False
    found = [re.search(r'(\d+) errors were found|"corruptions": (\d+)', text) for text in texts(all_of_them, "out")]
    return all(found) and int(found[1][1] or found[1][2]) > int(found[0][1] or found[0][2])


@rule("D31")
def opening_repairs(line, one, all_of_them):
    """What opens an image for writing corrects what is certain, so that fewer errors are left, and no data are overwritten."""
    aspect, __, name = one.aspect.partition(" ")
    if aspect == "contents" and f"warning: {name}: the image is damaged" in all_of_them.err:
        one = of(all_of_them, f"check {name}") or one
    if not one.aspect.startswith("check ") or not line.damaged:
        return False
    counts = [sum(map(int, re.findall(r'"(?:corruptions|leaks)": (\d+)', text))) for text in (one.theirs, one.ours)]
    return counts[1] < counts[0]


@rule("D32")
def data_that_are_not_there(line, _, all_of_them):
    """An entry leads behind the end of the file: QEMU reads zeros there."""
    if line.command == "bench":
        return line.damaged and "Failed request: Input/output error" in texts(all_of_them)[1] and not texts(all_of_them)[0]
    if line.command == "compare":
        return line.damaged and "Sector allocation test failed for" in texts(all_of_them)[1] and not texts(all_of_them)[0]
    if line.command == "rebase":
        return line.damaged and re.search(r"leads to host offset \w+, behind the end that the file had", all_of_them.err) \
            and not texts(all_of_them)[0] and all_of_them.code != 0
    return line.command in ("map", "dd") and "lies behind the end of the file" in texts(all_of_them)[1]


@rule("D33")
def one_snapshot_of_several_sources(line, _, all_of_them):
    return line.command == "convert" and "No support for concatenating multiple snapshot" in texts(all_of_them)[1]


@rule("D34")
def backing_file_without_a_format(_, __, all_of_them):
    return "has no format in the image, and guessing it would let a guest choose" in texts(all_of_them)[1]


@rule("D35")
def from_the_next_cluster(line, one, _):
    """resize --preallocation: the cluster in which the old end lay stays as it was, and a data file is as long as the disk."""
    words = " ".join(line.words)
    if line.command != "resize" or not re.search("metadata|full|falloc", words):
        return False
    if one.aspect == "map oddsize.qcow2":
        return "oddsize.qcow2" in words
    return one.aspect.endswith(".bin") and re.search(r"\w+data\.qcow2", words)


@rule("D36")
def lost_ranges_are_told(line, one, _):
    return line.command == "convert" and "--salvage" in line.words and one.aspect == "err" and \
        re.sub(r"qemu-img: warning: (?:lost )?\d+ bytes .*\n", "", one.ours) == one.theirs


def value_of(line, *names):
    """Of an option, in whichever way it is written."""
    for index, word in enumerate(line.words):
        for name in names:
            if word == name and index + 1 < len(line.words):
                return line.words[index + 1]
            if word.startswith(name + "=") or (len(name) == 2 and word.startswith(name) and len(word) > 2):
                return word[len(name):].removeprefix("=")
    return None


def image_of(line):
    """The file of the pool that a line is about: the first one that is no option's value."""
    values = {value_of(line, "-b", "--backing", "--base")}
    found = [one for name, one in pool.POOL.items() if any(name in word for word in line.words if word not in values)]
    return max(found, key=lambda one: len(one.name), default=None)


@rule("D37")
def refused_before_it_copies(line, one, all_of_them):
    """rebase without -F: QEMU says so when it has copied; here the image is as it was."""
    return line.command == "rebase" and "backing format must be specified" in all_of_them.err and \
        one.untouched and one.aspect.startswith(("map ", "bitmaps ")) and fails_alike(all_of_them)


@rule("D38")
def same_file_in_another_format(line, _, all_of_them):
    """rebase on the backing file that is there already, as another format, which QEMU does not look at."""
    below, form, image = value_of(line, "-b", "--backing"), value_of(line, "-F", "--backing-format"), image_of(line)
    return line.command == "rebase" and image and below in image.needs and form in table.FORMATS and form != pool.POOL[below].form


@rule("D39")
def no_death(line, __, all_of_them):
    """An assertion of QEMU's failed; or it waits for ever for a breakpoint that there is none of."""
    waits = line.program == "qemu-io" and "no end after" in texts(all_of_them)[0] and "Could not wait for breakpoint" in texts(all_of_them, "out")[1]
    return waits or re.search(r"Assertion `.*' failed", texts(all_of_them)[0]) and of(all_of_them, "code").theirs == "-6"


@rule("D40")
def contents_stay_in_version_2(line, one, _):
    """rebase of an image of version 2: what lay behind the end of the old backing file shows the new one in QEMU's."""
    image = image_of(line)
    return line.command == "rebase" and image and image.name in ("v2.qcow2", "snapv2.qcow2") and \
        one.aspect in (f"map {image.name}", f"contents {image.name}")


@rule("D41")
def what_was_answered_stays(line, one, all_of_them):
    """bench -w: when a request fails QEMU ends without closing the image."""
    return line.command == "bench" and "Failed request: Input/output error" in all_of_them.err and \
        one.aspect.startswith(("map ", "contents ", "check ")) and fails_alike(all_of_them)


@rule("D42")
def this_machine_alone(line, one, all_of_them):
    """qemu-nbd listens on 127.0.0.1 unless -b says otherwise; and a port above 65535 is none."""
    if line.program != "qemu-nbd" or one.aspect != "err" or not fails_alike(all_of_them):
        return False
    port = value_of(line, "-p", "--port") or ""
    return one.theirs.replace("0.0.0.0", "127.0.0.1") == one.ours or \
        port.isdigit() and int(port) > 65535 and "Invalid port: " in one.ours


@rule("D44")
def raw_data_are_the_disk(line, one, _):
    """Zeroes and discards of a raw data file are zeros in it, and no entry changes."""
    return line.program == "qemu-io" and one.aspect == "map rawdata.qcow2" and \
        re.search(r"discard|write .*-z|truncate", " ".join(line.words))


@rule("D45")
def nothing_is_taken_for_free(line, _, all_of_them):
    """qemu-io: where a snapshot's tables cannot be read, nobody knows which clusters are free: none is taken."""
    return line.program == "qemu-io" and line.damaged and all_of_them.code != 0 and \
        re.search(r"the image is damaged: snapshot '[^']*': .* but changes that need metadata fail", all_of_them.err)


@rule("D43")
def compressed_over_what_is_there(line, _, all_of_them):
    """convert -n -c, write -c: QEMU ends half-way where a cluster has its place already."""
    if line.program == "qemu-io":
        theirs, ours = texts(all_of_them, "out")
        return any("write -c" in word for word in line.words) and "write failed: Input/output error" in theirs and \
            "failed" not in ours and all_of_them.code == 0
    words = set(line.words)
    return line.command == "convert" and words & {"-n", "--no-create"} and words & {"-c", "--compress"} and \
        re.search(r"error while writing at byte \d+: Input/output error", texts(all_of_them)[0]) and all_of_them.code == 0
