# SPDX-License-Identifier: Apache-2.0
"""The intended differences: each has a number in docs/compatibility.md, with its reason, and a test of a difference here.

A rule says whether one difference of one command line is the one that it stands for.  Nothing else may differ.
"""
RULES = {}


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
