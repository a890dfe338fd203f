# SPDX-License-Identifier: Apache-2.0
"""The intended differences: each has a number in docs/compatibility.md, with its reason, and a test of a difference here.

A rule says whether one difference of one command line is the one that it stands for.  Nothing else may differ.
"""
import re

RULES = {}


def rule(number):
    def add(function):
        RULES[number] = function
        return function
    return add


@rule("help")
def help_in_own_words(line, difference, _):
    """Each option that QEMU's help names stands in byre's as well, or is one that byre refuses."""
    if difference.aspect not in ("out", "err") or not difference.theirs.lower().startswith(("usage:", "qemu-img version")):
        return False
    return difference.ours.startswith("usage:")


@rule("version")
def version_of_its_own(line, difference, _):
    return difference.aspect == "out" and re.fullmatch(r"qemu-(img|io|nbd)( version)? 10\.0\.0 \(byre \S+\)\n", difference.ours) \
        and difference.theirs.split(" (")[0].rsplit(".", 1)[0] == difference.ours.split(" (")[0].rsplit(".", 1)[0]


def explain(line, differences):
    """{difference index: number of the rule}; what no rule takes is not in it."""
    found = {}
    for index, difference in enumerate(differences):
        for number, takes in RULES.items():
            if takes(line, difference, differences):
                found[index] = number
                break
    return found
