#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/system/jobs_under_load_test.py for an hour: commits, mirrors, backups and streams of one disk in any order, while fio and
stamped guests write and trim it.  BYRE_SECONDS and BYRE_SEED change how long, and what is drawn."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "system"))
from jobs_under_load_test import Disk  # noqa: E402
from harness import main  # noqa: E402

SECONDS = int(os.environ.get("BYRE_SECONDS", "3600"))


class AnHour(Disk):
    def test_all_jobs_in_any_order(self):
        self.go_on(self.commit, self.mirror, self.copy, self.stream, self.backup, seconds=SECONDS)


if __name__ == "__main__":
    main()
