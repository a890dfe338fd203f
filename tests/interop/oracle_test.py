# SPDX-License-Identifier: Apache-2.0
"""A sample of the oracle (tests/interop/oracle): generated command lines, on the real tools and on byre under their names.

The seed is fixed; `./run nightly oracle` plays all lines.  One that differs is played again by
tests/interop/oracle/oracle.py --only NUMBER.
"""
import itertools
import os
import re
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
sys.path.insert(0, os.path.join(HERE, "oracle"))
from harness import ROOT, main  # noqa: E402
import generate  # noqa: E402
import oracle  # noqa: E402
import rules  # noqa: E402
import table  # noqa: E402

SEED = 1
# Always the same lines, however fast the machine is: of each command some.
TURNS = 12
INTENDED_MAX = 60


class Lines(unittest.TestCase):
    def test_cover_options_and_pairs(self):
        lines = generate.generate(SEED)
        for command, (count, least, missing) in generate.coverage(lines).items():
            self.assertGreaterEqual(least, generate.EACH_OPTION, f"{command}: {count} lines")
            self.assertEqual(missing, 0, command)
        self.assertGreater(sum(line.damaged for line in lines), len(lines) * 0.08)
        self.assertGreater(sum(line.damaged or line.odd for line in lines), len(lines) * 0.1)
        for command in table.COMMANDS:
            mine = [line for line in lines if line.command == (command.name or command.program)]
            hostile = sum(line.damaged or line.odd for line in mine)
            self.assertGreater(hostile, len(mine) * 0.08, f"{command.program} {command.name}: damaged images or odd values")
        self.assertEqual([str(line) for line in lines], [str(line) for line in generate.generate(SEED)])

    def test_intended_differences_are_documented(self):
        with open(os.path.join(ROOT, "docs", "compatibility.md"), encoding="utf-8") as file:
            documented = re.findall(r"^\| (D\d+) \|", file.read(), re.M)
        self.assertEqual(sorted(documented), sorted(rules.RULES))
        self.assertLessEqual(len(documented), INTENDED_MAX)


class Sample(unittest.TestCase):
    def test_the_same_as_the_real_tools(self):
        player = oracle.Oracle(SEED)
        self.addCleanup(player.close)
        lines = generate.generate(SEED)
        by_command = [[line for line in lines if line.command == (command.name or command.program)]
                      for command in table.COMMANDS if player.known(command)]
        in_turn = [line for turn in itertools.zip_longest(*by_command) for line in turn if line]
        faults = [oracle.text_of(outcome) for outcome in player.play_all(in_turn[:TURNS * len(by_command)])
                  if outcome.verdict == "unintended"]
        self.assertFalse(faults, "\n".join(faults))


if __name__ == "__main__":
    main()
