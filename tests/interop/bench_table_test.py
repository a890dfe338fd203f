#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The table of `./run bench` is made: rows are played, verified and told; figures are not judged."""
import json
import os
import sys

import_from = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support")
sys.path.insert(0, import_from)
from harness import ROOT, Case, main, only_byre, run  # noqa: E402

TABLE = os.path.join(ROOT, "bench", "table.py")


@only_byre
class Table(Case):
    def play(self, *words, **options):
        return run("/usr/bin/python3", TABLE, "--quick", "--rounds", "1", "--folder", self.folder, *words, **{"patience": 600, **options})

    def test_rows_of_each_kind_are_played(self):
        told = self.path("told.json")
        done = self.play("--rows", "^raw to qcow2, -t unsafe|^map|^4 KiB writes in place, depth|^measure -O|^info", "--json", told)
        with open(told) as file:
            rows = json.load(file)
        self.assertLessEqual({"convert", "metadata", "requests", "tools", "start"}, {row["group"] for row in rows}, done.text)
        for row in rows:
            self.assertGreater(row["ratio"], 0, row)
            self.assertIn(row["row"], done.text)
            for name, runs in row["runs"].items():
                self.assertTrue(all(sample["seconds"] > 0 for sample in runs), (name, row))
            self.assertGreater(row["runs"]["byre"][0]["memory"], 0, row)

    def test_a_result_that_is_wrong_ends_it(self):
        # A byre whose conversion loses the last byte that matters: qemu-img's comparison must notice.
        liar = self.path("byre")
        with open(liar, "w") as file:
            file.write(f'#!/bin/sh\n"{os.environ.get("BYRE", os.path.join(ROOT, "build/release/byre"))}" "$@" || exit\n'
                       'for last; do :; done\n[ "$1" != convert ] || qemu-io -f qcow2 -c "write -P 99 0 4k" "$last" >/dev/null\n')
        os.chmod(liar, 0o755)
        os.mkdir(self.path("bench"))
        real = os.path.join(os.path.dirname(os.environ.get("BYRE", os.path.join(ROOT, "build/release/byre"))), "bench", "measured")
        os.symlink(real, self.path("bench/measured"))
        done = self.play("convert", "--rows", "^raw to qcow2, -t unsafe", ok=(1,), env={**os.environ, "BYRE": liar})
        self.assertIn("compare", done.text)

    def test_a_name_that_is_none_is_refused(self):
        self.assertIn("there are:", self.play("nothing", ok=(1,)).text)
        self.assertIn("matches", self.play("--rows", "no such row", ok=(1,)).text)


if __name__ == "__main__":
    main()
