# SPDX-License-Identifier: Apache-2.0
"""All lines of the oracle: byre under QEMU's names against QEMU 10.0, for the seed in BYRE_SEED (1)."""
import os
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "interop", "oracle"))
import oracle  # noqa: E402


class Oracle(unittest.TestCase):
    def test_all_lines(self):
        counts, faults, _ = oracle.run(["--seed", os.environ.get("BYRE_SEED", "1"), "--show", "1000"])
        self.assertGreater(counts["lines"], 3000)
        self.assertEqual(len(faults), 0, f"{len(faults)} lines differ, see above")


if __name__ == "__main__":
    unittest.main(verbosity=2)
