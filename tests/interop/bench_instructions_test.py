#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`./run bench instructions` counts, compares with what is stored, flags a rise and fails on none."""
import json
import os
import shutil
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import ROOT, Case, main, only_byre, run  # noqa: E402

SCRIPT = os.path.join(ROOT, "bench", "instructions.py")
RISE = "MORE THAN 10 % MORE"


@only_byre
@unittest.skipUnless(shutil.which("valgrind"), "valgrind counts")
class Instructions(Case):
    def count(self, *words, **options):
        return run("/usr/bin/python3", SCRIPT, "--baseline", self.path("baseline.json"), *words, **options).text

    def stored(self):
        with open(self.path("baseline.json")) as file:
            return json.load(file)

    def test_a_rise_is_flagged_and_nothing_else(self):
        self.count("parse", "--store")
        once = self.stored()["parse"]
        self.assertGreater(once, 0)
        for part, flagged in ((0.85, True), (0.95, False)):
            with open(self.path("baseline.json"), "w") as file:
                json.dump({"parse": round(once * part)}, file)
            self.assertEqual(flagged, RISE in self.count("parse"), part)

    def test_what_is_stored_has_each_piece(self):
        with open(os.path.join(ROOT, "bench", "baseline.json")) as file:
            self.assertEqual({"read", "overwrite", "extents", "zeros", "entries", "parse"}, set(json.load(file)))

    def test_a_name_that_is_none_is_refused(self):
        self.assertIn("there are:", self.count("nothing", ok=(2,)))


if __name__ == "__main__":
    main()
