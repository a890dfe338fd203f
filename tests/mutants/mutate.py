# SPDX-License-Identifier: Apache-2.0
"""Mutants: edits of the engine that break one of its rules.

A mutant (NAME.mutant) begins with the rule that it breaks, and perhaps `Scenario: NAME`, the scenario of byre-sim that
finds it soonest.  Edits follow, each after a line of `@@`.  In an edit, lines that begin with `-` go, lines that begin
with `+` come, and lines that begin with a space stay; they only say which place is meant.  An edit names no file and no
line: its old text must occur once in the sources (tests apart), and white space does not count.  So a mutant survives
that code is moved, indented or wrapped anew; it ends where the statement itself changes.

    mutate.py apply TREE NAME     edits the files of TREE
    mutate.py check TREE          sees that each mutant applies to TREE
    mutate.py combine TREE        gives TREE every mutant that combined() can, chosen when the program starts
    mutate.py scenario NAME       prints its scenario, if it names one

One program with all mutants is built in the time of one.  There each edit is guarded by a global number that the
environment variable BYRE_MUTANT sets: `if (byre_mutant == 7) { NEW } else { OLD }` where whole statements go or come,
`(byre_mutant == 7 ? NEW : OLD)` where an expression changes.  An edit that is neither, such as one that moves a
declaration, makes its mutant one that has to be built alone.  Often it can be written so that it is one of the two:
instead of taking `Lock lock(...);` away, let `lock.release();` follow it.
"""
import bisect
import dataclasses
import difflib
import functools
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


@functools.cache
def squeezed_source(text):
    """The text without white space, and where each of its characters was."""
    return squeeze(text), [at for at, char in enumerate(text) if not char.isspace()]


def find(old, files):
    """The one place of `old`, as (path, begin, end)."""
    wanted = squeeze(old)
    if not wanted:
        raise Wrong("has an edit without a place")
    places = []
    for path, text in files.items():
        squeezed, positions = squeezed_source(text)
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


@dataclasses.dataclass
class Change:
    """What one mutant puts in the place of text[begin:end] of a file."""
    begin: int
    end: int
    new: str
    mutant: int
    kind: str  # "statements" or "expression"


class Alone(Exception):
    """An edit that cannot be guarded; says why."""


def hunks(block):
    """The runs of lines of an edit that go and come, each as (nonspace characters of the old text before it, old, new)."""
    found, before, old, new = [], 0, [], []
    for line in [*block, " "]:
        if line[:1] == "-":
            old.append(line[1:])
        elif line[:1] == "+":
            new.append(line[1:])
        else:
            if (old or new) and line.strip():
                found.append((before, "\n".join(old), "\n".join(new)))
                before += len(squeeze("".join(old)))
                old, new = [], []
            before += len(squeeze(line[1:]))
    if old or new:
        found.append((before, "\n".join(old), "\n".join(new)))
    return found


TOKEN = re.compile(r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[A-Za-z_]\w*|\d[\w.']*
                       |::|->|<=>|<<=|>>=|[-+*/%&|^=!<>]=|&&|\|\||\+\+|--|\S""", re.DOTALL | re.VERBOSE)


@functools.cache
def tokens(text):
    """The tokens of C++ text without comments, each as (begin, end, token)."""
    return [(m.start(), m.end(), m.group()) for m in TOKEN.finditer(text) if not m.group().startswith(("//", "/*"))]


OPEN, CLOSE = ("(", "[", "{"), (")", "]", "}")
ENDS_EXPRESSION = (",", ";", "=", "return", "co_return", "?", ":", "+=", "-=", "|=", "&=")
NO_DECLARATION = ("if", "for", "while", "do", "switch", "return", "co_return", "co_await", "break", "continue",
                  "delete", "throw", "else")


def statements(words):
    """The statements that `words` consists of, each a list of tokens; None when it is not whole statements."""
    found, one, depth = [], [], 0
    for word in words:
        one.append(word)
        depth += (word in OPEN) - (word in CLOSE)
        if depth < 0:
            return None
        if depth == 0 and word in (";", "}"):
            found.append(one)
            one = []
    return None if one or depth else found


def is_declaration(statement):
    if statement[0] in NO_DECLARATION or not re.match(r"[A-Za-z_]", statement[0]):
        return False
    text = " ".join(statement).replace(" :: ", "::")
    return re.match(r"(const|static|constexpr|auto|struct|using|case|default)\b"
                    r"|[\w:]+( < [^;()]* >)?[ *&]+[A-Za-z_][\w:]* [=({;\[]", text) is not None


def statement_change(text, begin, end, new, at_end):
    """Whether text[begin:end] -> new can be an if.  `at_end`: the code behind the edit knows nothing it declares."""
    old_words = [word for _, _, word in tokens(text[begin:end])]
    new_words = [word for _, _, word in tokens(new)]
    old, comes = statements(old_words), statements(new_words)
    if old is None or comes is None or any(map(is_declaration, old)):
        return False
    if any(map(is_declaration, comes)) and not at_end:
        return False
    before = [word for _, _, word in tokens(text[max(0, begin - 4000):begin])]
    previous = before[-1] if before else ""
    return previous in (";", "{", "}") or (previous in (")", "else") and len(old) == 1)


def balanced(words):
    depth = 0
    for word in words:
        depth += (word in OPEN) - (word in CLOSE)
        if depth < 0:
            return False
    return depth == 0


def differences(old, new):
    """Where two lists of tokens differ, as (begin, end, new begin, new end), with balanced brackets in each."""
    found = [op[1:] for op in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if op[0] != "equal"]
    if all(balanced(old[i1:i2]) and balanced(new[j1:j2]) for i1, i2, j1, j2 in found):
        return found
    low = 0
    while low < min(len(old), len(new)) and old[low] == new[low]:
        low += 1
    tail = 0
    while tail < min(len(old), len(new)) - low and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    while True:  # Out from the middle until both are balanced.
        for first in range(low, -1, -1):
            if balanced(old[first:len(old) - tail]) and balanced(new[first:len(new) - tail]):
                return [(first, len(old) - tail, first, len(new) - tail)]
        if tail == 0:
            raise Alone("an edit that brackets do not enclose")
        tail -= 1


def widen(source, low, high):
    """The expression around source[low:high]: out to brackets, commas and the ends of the statement."""
    depth = 0
    while low > 0:
        word = source[low - 1][2]
        depth += (word in CLOSE) - (word in OPEN)
        if depth < 0 or depth == 0 and word in ENDS_EXPRESSION or depth == 1 and word == "}":
            break
        low -= 1
    depth = 0
    while high < len(source):
        word = source[high][2]
        depth += (word in OPEN) - (word in CLOSE)
        if depth < 0 or depth == 0 and word in ENDS_EXPRESSION or depth == 1 and word == "{":
            break
        high += 1
    return low, high


def expression_changes(text, begin, end, new, mutant):
    """text[begin:end] -> new as changes of expressions, line by line where as many come as go."""
    source = tokens(text)
    pieces, at = [], bisect.bisect_left(source, (begin,))
    old_lines = [line for line in text[begin:end].splitlines() if line.strip()]
    new_lines = [line for line in new.splitlines() if line.strip()]
    if len(old_lines) != len(new_lines):
        old_lines, new_lines = [text[begin:end]], [new]
    for old_line, new_line in zip(old_lines, new_lines):
        old = [word for _, _, word in tokens(old_line)]
        fresh = [word for _, _, word in tokens(new_line)]
        for i1, i2, j1, j2 in differences(old, fresh):
            pieces.append((*widen(source, at + i1, at + i2), at + i1, at + i2, " ".join(fresh[j1:j2])))
        at += len(old)
    for start, stop in sorted({piece[:2] for piece in pieces}):
        inside = [word for _, _, word in source[start:stop]]
        before, behind = source[start - 1][2], source[stop][2]
        whole = before in (";", "{", "}", "else") and behind == ";"
        if not inside or whole or before == "}" or behind == "{" or not balanced(inside):
            raise Alone("an edit that is neither statements nor an expression")
        come, at = "", source[start][0]
        for low, high, words in sorted(piece[2:] for piece in pieces if piece[:2] == (start, stop)):
            come += f"{text[at:source[low][0]]} {words} "
            at = source[high - 1][1] if high > low else source[low][0]
        come += text[at:source[stop - 1][1]]
        if not come.strip():
            raise Alone("an expression that goes away")
        yield Change(source[start][0], source[stop - 1][1], come, mutant, "expression")


def changes_of(name, number, files):
    """The changes of a mutant, as (path, Change); raises Alone when one of its edits cannot be guarded."""
    text_of = (FOLDER / f"{name}.mutant").read_text()
    _, *blocks = re.split(r"^@@\n", text_of, flags=re.MULTILINE)
    found = []
    for block in blocks:
        lines = block.splitlines()
        old = "\n".join(line[1:] for line in lines if line[:1] in (" ", "-"))
        path, begin, end = find(old, files)
        text = files[path]
        positions = [at for at in range(begin, end) if not text[at].isspace()]
        for before, gone, come in hunks(lines):
            count = len(squeeze(gone))
            if count:
                low, high = positions[before], positions[before + count - 1] + 1
            else:
                low = high = positions[before - 1] + 1 if before else positions[0]
            # What a hunk declares is known only there, so nothing else of the mutant may use it.
            names = set(re.findall(r"\b(\w+)\s*[=({;]", come))
            rest = [other for other_block in blocks for _, _, other in hunks(other_block.splitlines()) if other != come]
            used = any(re.search(rf"\b{word}\b", other) for other in rest for word in names
                       if is_declared(word, come))
            if statement_change(text, low, high, come, not used):
                found.append((path, Change(low, high, come, number, "statements")))
            elif not count:
                raise Alone("a declaration that comes")
            else:
                found += [(path, change) for change in expression_changes(text, low, high, come, number)]
    return found


def is_declared(word, text):
    return any(is_declaration(statement) and word in statement[1:]
               for statement in statements([token for _, _, token in tokens(text)]) or [])


def clash(one, other):
    """Whether two changes of a file can not both be in it: they overlap, and neither holds the other."""
    if one.end <= other.begin or other.end <= one.begin or (one.begin, one.end) == (other.begin, other.end):
        return (one.begin, one.end) == (other.begin, other.end) and one.kind != other.kind
    outer, inner = (one, other) if one.end - one.begin > other.end - other.begin else (other, one)
    return not (outer.begin <= inner.begin and inner.end <= outer.end)


def render(text, begin, end, changes):
    """text[begin:end] with the changes in it, each guarded."""
    out, at = "", begin
    changes = sorted(changes, key=lambda change: (change.begin, -change.end))
    while changes:
        top = changes[0]
        same = [c for c in changes if (c.begin, c.end) == (top.begin, top.end)]
        inner = [c for c in changes if c not in same and c.begin < top.end]
        changes = [c for c in changes if c not in same and c not in inner]
        old = render(text, top.begin, top.end, inner)
        out += text[at:top.begin]
        at = top.end
        if top.kind == "expression":
            for change in same:
                out += f"(::byre_mutant == {change.mutant} ? ({change.new}) : "
            out += f"({old}\n)" + ")" * len(same)
        else:
            guarded = " else ".join(f"if (::byre_mutant == {change.mutant}) {{\n{change.new}\n}}" for change in same)
            out += "{ " + guarded + (f" else {{\n{old}\n}}" if top.end > top.begin else "") + " }"
    return out + text[at:end]


def combined(files):
    """All mutants in one: the changed files by path, the names in order of their numbers (from 1), and those left out, each
    with the reason."""
    names, alone, taken = [], {}, {}
    for path in sorted(FOLDER.glob("*.mutant")):
        name = path.stem
        try:
            changes = changes_of(name, len(names) + 1, files)
            if any(clash(change, other) for file, change in changes for other in taken.get(file, [])):
                raise Alone("an edit that overlaps another mutant's")
        except Alone as error:
            alone[name] = str(error)
            continue
        names.append(name)
        for file, change in changes:
            taken.setdefault(file, []).append(change)
    # In front of everything, and without a line of its own.
    changed = {file: "extern int byre_mutant;  " + render(files[file], 0, len(files[file]), changes)
               for file, changes in taken.items()}
    return changed, names, alone


def chooser(names):
    """The source file that reads the choice."""
    table = "".join(f'    "{name}",\n' for name in names)
    return f"""// Made by tests/mutants/mutate.py.
#include <cstdio>
#include <cstdlib>
#include <cstring>

static const char* const names[] = {{
{table}}};

static int chosen() {{
  const char* name = std::getenv("BYRE_MUTANT");
  if (!name || !*name) return 0;
  for (int i = 0; i < static_cast<int>(sizeof names / sizeof *names); ++i) {{
    if (std::strcmp(names[i], name) == 0) return i + 1;
  }}
  std::fprintf(stderr, "no mutant is called %s\\n", name);
  std::_Exit(2);
}}

extern int byre_mutant;
int byre_mutant = chosen();
"""


def combine(tree):
    """Puts all mutants into TREE; the names of those in it, and of those left out with the reason."""
    changed, names, alone = combined(sources(tree))
    for path, text in changed.items():
        path.write_text(text)
    pathlib.Path(tree, "src/base/mutant_choice.cc").write_text(chooser(names))
    return names, alone


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
    if len(words) == 2 and words[0] == "combine":
        names, alone = combine(words[1])
        print(f"{len(names)} mutants in one")
        for name, why in alone.items():
            print(f"{name} has to be built alone: {why}")
        return 0
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
