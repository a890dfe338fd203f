#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/interop/damaged_test.py, with guests that write for two minutes to each damaged image."""
import os
import sys

os.environ.setdefault("BYRE_SECONDS", "120")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))
from damaged_test import Served  # noqa: E402, F401  (what unittest runs)
from harness import main  # noqa: E402

if __name__ == "__main__":
    main()
