# SPDX-License-Identifier: Apache-2.0
"""Edits find their place wherever it has moved, and nothing else."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import mutate  # noqa: E402

RULE = "O1: counts come first.\nScenario: mix\n"


class Folder(unittest.TestCase):
    """A tree that is also the folder of the mutants."""

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


class Mutate(Folder):
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


class Combined(Folder):
    def one(self, name, *edits):
        (self.tree / f"{name}.mutant").write_text(RULE + "".join(f"@@\n{edit}" for edit in edits))

    def combine(self):
        changed, names, alone = mutate.combined(mutate.sources(self.tree))
        return {path.name: " ".join(text.split()).removeprefix("extern int byre_mutant; ")
                for path, text in changed.items()}, names, alone

    def test_statements_that_go_and_come_are_an_if(self):
        self.source("a.cc", "void f() {\n  first();\n  sync();  // why\n}\n")
        self.one("a", "-  sync();  // why\n+  later();\n+  much_later();\n")
        self.one("b", " first();\n+int more = 1;\n+use(more);\n")
        self.one("c", "-  first();\n")
        changed, names, alone = self.combine()
        self.assertEqual((["a", "b", "c"], {}), (names, alone))
        self.assertEqual(
            "void f() { { if (::byre_mutant == 3) { } else { first(); } }"
            "{ if (::byre_mutant == 2) { int more = 1; use(more); } } "
            "{ if (::byre_mutant == 1) { later(); much_later(); } else { sync(); // why } } }", changed["a.cc"])

    def test_an_expression_is_conditional(self):
        self.source("a.cc", "void f() {\n  Lock lock(locks, at, at + 1, Mode::exclusive);\n  if (a || (b && !c)) {\n    g();\n  }\n}\n")
        self.one("a", "-  Lock lock(locks, at, at + 1, Mode::exclusive);\n+  Lock lock(locks, at, at + 1, Mode::shared);\n")
        self.one("b", "-  if (a || (b && !c)) {\n+  if (false && (a || (b && !c))) {\n")
        changed, _, alone = self.combine()
        self.assertEqual({}, alone)
        text = changed["a.cc"].replace(" ", "")
        self.assertIn("(::byre_mutant==1?(Mode::shared):(Mode::exclusive))", text)
        self.assertIn("if((::byre_mutant==2?(false&&(a||(b&&!c))):(a||(b&&!c)))){", text)

    def test_two_mutants_of_one_statement_are_a_chain_and_one_inside_another_nests(self):
        self.source("a.cc", "void f() {\n  x = 1;\n  y = 2;\n}\n")
        self.one("a", "-  x = 1;\n+  x = 5;\n")
        self.one("b", "-  x = 1;\n+  x = 6;\n")
        self.one("c", "-  x = 1;\n-  y = 2;\n")
        changed, _, alone = self.combine()
        self.assertEqual({}, alone)
        self.assertEqual(
            "void f() { { if (::byre_mutant == 3) { } else { { if (::byre_mutant == 1) { x = 5; } else if "
            "(::byre_mutant == 2) { x = 6; } else { x = 1; } } y = 2; } } }", changed["a.cc"])

    def test_the_body_of_an_if_stays_one_statement(self):
        self.source("a.cc", "void f() {\n  if (x)\n    sync();\n  else\n    later();\n}\n")
        self.one("a", "-    sync();\n")
        self.assertEqual("void f() { if (x) { if (::byre_mutant == 1) { } else { sync(); } } else later(); }",
                         self.combine()[0]["a.cc"])

    def test_a_declaration_cannot_be_guarded(self):
        self.source("a.cc", "void f() {\n  const Pin pin = pins.pin();\n  read(pin);\n  sync();\n}\n")
        self.one("goes", "-  const Pin pin = pins.pin();\n")
        self.one("comes", " read(pin);\n+const auto kept = pins;\n", "-sync();\n+sync(kept);\n")
        self.one("overlaps", "-  read(pin);\n-  sync();\n")
        self.one("overlaps_it", "-  sync();\n+  read(pin);\n")
        changed, names, alone = self.combine()
        self.assertEqual({"goes", "comes"}, set(alone))
        self.assertEqual(["overlaps", "overlaps_it"], names)

    def test_changes_that_overlap_by_halves_are_built_apart(self):
        self.source("a.cc", "void f() {\n  one();\n  two();\n  three();\n}\n")
        self.one("a", "-  one();\n-  two();\n")
        self.one("b", "-  two();\n-  three();\n")
        _, names, alone = self.combine()
        self.assertEqual((["a"], ["b"]), (names, list(alone)))

    def test_the_choice_is_by_name(self):
        self.assertIn('"first",\n    "second",\n', mutate.chooser(["first", "second"]))


if __name__ == "__main__":
    unittest.main()
