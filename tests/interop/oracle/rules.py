# SPDX-License-Identifier: Apache-2.0
"""The intended differences: each has a number in docs/compatibility.md ("Intended differences"), with its reason.

A rule says whether one difference of one command line is the one that it stands for.  What no rule takes is a fault, and so is
a rule that is not on that page, or stands there and is not here (oracle_test.py).
"""
import re

RULES = {}
# An error of opening or making something: who, what, and behind the colon why.
OPENING = re.compile(r"(?:\S+: )?(?:.*: )?(?:Could not open|can't open|can't open device|Failed to blk_new_open|Could not create|"
                     r"Could not \w+ snapshot|Operation \w+ on bitmap) ?[^:]*: ")
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
    return of(differences, "code") is None and of(differences, "err") is not None


@rule("D1")
def help_in_own_words(_, one, __):
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
    theirs, ours = OPENING.match(one.theirs), OPENING.match(NOTE.sub("", one.ours))
    return theirs and ours and theirs[0] == ours[0]


@rule("D4")
def damage_is_told(_, one, __):
    """Lines on stderr about an image that is damaged, and nothing else."""
    told = re.compile(r"qemu-\w+: warning: .*(?:the image is damaged|was not closed cleanly|became right|refcount).*\n|NOTE .*\n")
    return one.aspect == "err" and one.ours != one.theirs and told.sub("", one.ours) == one.theirs


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
    return one.aspect == "out" and "encrypt." in one.theirs and re.sub(r"  encrypt.*\n", "", one.theirs) == one.ours


@rule("D8")
def bitmaps_follow_the_size(line, one, _):
    """A larger disk is dirty where it grew; a shrunken one keeps what is left."""
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
def no_kernel_client(line, one, all_of_them):
    return line.program == "qemu-nbd" and "connect' is not supported: use nbd-client" in texts(all_of_them)[1]


@rule("D12")
def special_files(line, one, all_of_them):
    """What is no regular file and no block device is refused before anything is written to it."""
    return "neither a regular file nor a block device" in texts(all_of_them)[1]


@rule("D13")
def other_formats(line, one, all_of_them):
    """Formats that byre does not have: by their names, where qemu-img goes on to say what is wrong next."""
    theirs, ours = texts(all_of_them)
    return re.search(r"(?:Unknown driver|Unknown file format|Driver) '(?:vmdk|luks|qcow|file)'|of qcow version 1", ours) and theirs and \
        of(all_of_them, "code") is None
