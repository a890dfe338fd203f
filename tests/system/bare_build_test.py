#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tool is built where GTest and Benchmark are not installed: CMake is told that it cannot find them."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import ROOT, Case, main, only_byre  # noqa: E402

HIDDEN = ("-DCMAKE_DISABLE_FIND_PACKAGE_GTest=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_benchmark=ON")


@only_byre
class BareBuild(Case):
    def configure(self, *options):
        return subprocess.run(["cmake", "--preset", "release", "-B", self.path("build"), *HIDDEN, *options], cwd=ROOT,
                              capture_output=True, text=True, timeout=120)

    def test_the_tool_without_tests(self):
        done = self.configure()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        targets = subprocess.run(["ninja", "-C", self.path("build"), "-t", "targets", "all"], capture_output=True, text=True,
                                 check=True).stdout
        self.assertIn("no unit tests", done.stdout)
        self.assertIn("\nbyre: ", "\n" + targets)
        self.assertNotIn("qcow2_test", targets)

    def test_tests_that_were_asked_for_are_not_left_out_in_silence(self):
        done = self.configure("-DBYRE_TESTS=ON")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("GTest", done.stdout + done.stderr)


if __name__ == "__main__":
    main()
