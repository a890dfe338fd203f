# SPDX-License-Identifier: Apache-2.0
"""Edits find their place wherever it has moved, and nothing else."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import mutate  # noqa: E402

RULE = "O1: counts come first.\nScenario: mix\n"


class Mutate(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tree = pathlib.Path(folder.name)
        self.folder, mutate.FOLDER = mutate.FOLDER, self.tree
        self.addCleanup(lambda: setattr(mutate, "FOLDER", self.folder))

    def source(self, name, text):
        path = self.tree / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def mutant(self, *edits):
        (self.tree / "m.mutant").write_text(RULE + "".join(f"@@\n{edit}" for edit in edits))

    def refused(self, why):
        with self.assertRaisesRegex(mutate.Wrong, why):
            mutate.mutated("m", mutate.sources(self.tree))

    def test_code_that_was_moved_indented_and_wrapped_is_found(self):
        self.source("other.cc", "int unrelated;\n")
        path = self.source("new/place.cc", "void f() {\n    co_await write(counts,\n                   flags);\n    sync();\n}\n")
        self.mutant(" co_await write(counts, flags);\n-sync();\n+later();\n")
        changed = mutate.mutated("m", mutate.sources(self.tree))
        self.assertEqual({path: "void f() {\n    co_await write(counts, flags);\nlater();\n}\n"}, changed)

    def test_a_statement_that_stands_twice_is_no_place(self):
        self.source("a.cc", "sync();\n")
        self.source("b.cc", "sync();\n")
        self.mutant("-sync();\n+later();\n")
        self.refused("fits 2 places")

    def test_a_statement_that_changed_is_no_place(self):
        self.source("a.cc", "sync(all);\n")
        self.mutant("-sync();\n+later();\n")
        self.refused("fits 0 places")

    def test_tests_are_not_mutated(self):
        self.source("a_test.cc", "sync();\n")
        self.mutant("-sync();\n+later();\n")
        self.refused("fits 0 places")

    def test_every_edit_is_found_in_the_code_as_it_was(self):
        path = self.source("a.cc", "first();\nsync();\n")
        self.mutant("+sync();\n first();\n", "-sync();\n")
        self.assertEqual({path: "sync();\nfirst();\n\n"}, mutate.mutated("m", mutate.sources(self.tree)))

    def test_edits_that_overlap_are_refused(self):
        self.source("a.cc", "first();\nsync();\n")
        self.mutant(" first();\n-sync();\n", "-first();\n")
        self.refused("overlap")

    def test_an_edit_that_changes_nothing_is_refused(self):
        self.source("a.cc", "sync();\n")
        self.mutant("-sync();\n+sync( );\n")
        self.refused("changes nothing")

    def test_a_mutant_without_an_edit_is_refused(self):
        (self.tree / "m.mutant").write_text(RULE)
        self.refused("no edit")

    def test_its_scenario_is_the_one_that_it_names(self):
        self.mutant("-a;\n")
        self.assertEqual(mutate.parse("m")[0], "mix")


if __name__ == "__main__":
    unittest.main()
