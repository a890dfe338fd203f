# SPDX-License-Identifier: Apache-2.0
"""Mutants: edits of the engine that break one of its rules.

A mutant (NAME.mutant) begins with the rule that it breaks, and perhaps `Scenario: NAME`, the scenario of byre-sim that
finds it soonest.  Edits follow, each after a line of `@@`.  In an edit, lines that begin with `-` go, lines that begin
with `+` come, and lines that begin with a space stay; they only say which place is meant.  An edit names no file and no
line: its old text must occur once in the sources (tests apart), and white space does not count.  So a mutant survives
that code is moved, indented or wrapped anew; it ends where the statement itself changes.

    mutate.py apply TREE NAME     edits the files of TREE
    mutate.py check TREE          sees that each mutant applies to TREE
    mutate.py scenario NAME       prints its scenario, if it names one
"""
import pathlib
import re
import sys

FOLDER = pathlib.Path(__file__).resolve().parent


class Wrong(Exception):
    """A mutant that cannot be used; says why."""


def sources(tree):
    """The files that a mutant may change, by path."""
    files = {}
    for path in sorted(pathlib.Path(tree, "src").rglob("*")):
        if path.suffix in (".cc", ".h") and not re.search(r"_(test|fuzz|bench|testing)\.|/sim/", str(path)):
            files[path] = path.read_text()
    return files


def parse(name):
    """The scenario of the mutant, or None, and its edits, each as (old, new)."""
    text = (FOLDER / f"{name}.mutant").read_text()
    head, *blocks = re.split(r"^@@\n", text, flags=re.MULTILINE)
    if not head.strip() or not blocks:
        raise Wrong("has no rule or no edit")
    scenario = re.search(r"^Scenario: (\S+)$", head, re.MULTILINE)
    edits = []
    for block in blocks:
        lines = block.splitlines()
        if any(line and line[0] not in " -+" for line in lines):
            raise Wrong("has a line of an edit that begins with none of space, - and +")
        old = [line[1:] for line in lines if line[:1] in (" ", "-")]
        new = [line[1:] for line in lines if line[:1] in (" ", "+")]
        if squeeze("\n".join(old)) == squeeze("\n".join(new)):
            raise Wrong("has an edit that changes nothing")
        edits.append(("\n".join(old), "\n".join(new)))
    return scenario and scenario.group(1), edits


def squeeze(text):
    return re.sub(r"\s", "", text)


def find(old, files):
    """The one place of `old`, as (path, begin, end)."""
    wanted = squeeze(old)
    if not wanted:
        raise Wrong("has an edit without a place")
    places = []
    for path, text in files.items():
        positions = [at for at, char in enumerate(text) if not char.isspace()]
        squeezed = squeeze(text)
        at = squeezed.find(wanted)
        while at >= 0:
            places.append((path, positions[at], positions[at + len(wanted) - 1] + 1))
            at = squeezed.find(wanted, at + 1)
    if len(places) != 1:
        first = next(line.strip() for line in old.splitlines() if line.strip())
        where = "".join(f"\n    {path}" for path, _, _ in places[:5])
        raise Wrong(f"has an edit that fits {len(places)} places, at `{first}`{where}")
    return places[0]


def mutated(name, files):
    """The files that the mutant changes, with their new text."""
    places = sorted((*find(old, files), new.strip()) for old, new in parse(name)[1])
    for (path, _, end, _), (next_path, begin, _, _) in zip(places, places[1:]):
        if path == next_path and begin < end:
            raise Wrong(f"has edits that overlap, in {path}")
    changed = {path: files[path] for path, *_ in places}
    for path, begin, end, new in reversed(places):  # From the end, so that the places before stay right.
        changed[path] = changed[path][:begin] + new + changed[path][end:]
    return changed


def main(words):
    if len(words) == 3 and words[0] == "apply":
        for path, text in mutated(words[2], sources(words[1])).items():
            path.write_text(text)
        return 0
    if len(words) == 2 and words[0] == "check":
        files = sources(words[1])
        wrong = 0
        for path in sorted(FOLDER.glob("*.mutant")):
            try:
                mutated(path.stem, files)
            except Wrong as error:
                print(f"{path.name} {error}", file=sys.stderr)
                wrong = 1
        return wrong
    if len(words) == 2 and words[0] == "scenario":
        print(parse(words[1])[0] or "")
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Wrong as error:
        sys.exit(f"{sys.argv[-1]} {error}")
