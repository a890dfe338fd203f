#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/system/guest_jobs_test.py with a guest that works for half an hour below jobs of all kinds."""
import os
import sys

os.environ.setdefault("BYRE_SECONDS", "1800")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))
from guest_jobs_test import LinuxGuest  # noqa: E402, F401  (what unittest runs)
from harness import main  # noqa: E402

if __name__ == "__main__":
    main()
