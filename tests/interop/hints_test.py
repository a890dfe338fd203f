# SPDX-License-Identifier: Apache-2.0
"""A command line that a message names exists, under the name it is spoken under, and does what is said."""
import glob
import os
import re
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, ROOT, Case, main, only_byre, qemu_img, qemu_io, run  # noqa: E402

# The words of QEMU's programs and of byre's own that could follow a program's name.
COMMANDS = ("amend bench bitmap check commit compare convert create ctl daemon dd dump info io map measure rebase repair resize "
            "serve snapshot").split()
# Those of `byre ctl`, which have a help each.
CONTROL = [f"ctl {name}" for name in "nodes exports jobs commit stream mirror backup wait pause resume cancel complete finalize dismiss "
           "speed close qmp".split()] + [f"ctl {what} {verb}" for what, verbs in (("bitmap", "list add remove clear"), ("export", "add remove"))
                                         for verb in verbs.split()]
LITERAL = r'"(?:[^"\\\n]|\\.)*"'
# A command with options behind it, or one that is quoted or follows a program's name in quotes.
WITH_OPTIONS = re.compile(
    r"\b(?:(byre|qemu-img|qemu-io|qemu-nbd) )?\b(%s)((?: --?[a-z][a-z-]*(?:[ =](?:all\b|leaks\b|json\b|[A-Z]{2,}|[a-z_]+=[\w.]+))?"
    r"| [A-Z]{2,})*(?: --?[a-z][a-z-]*)(?:[ =](?:all\b|leaks\b|json\b|[a-z_]+=[\w.]+))?(?: [A-Z]{2,})*)" % "|".join(CONTROL + COMMANDS))
NAMED = re.compile(r"[`'](byre|qemu-img|qemu-io|qemu-nbd) ([a-z]+)\b")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
STAND_FOR = {"IMAGE": "absent", "FILE": "absent", "FORMAT": "qcow2", "NAME": "b", "SIZE": "1M", "SNAPSHOT": "s"}
WRONG = re.compile(r"unrecognized option|Command not found|missing argument|is not supported:|Try '")


def sources():
    for path in sorted(found for ending in ("cc", "h") for found in glob.glob(os.path.join(ROOT, "src", "**", f"*.{ending}"), recursive=True)):
        name = os.path.relpath(path, ROOT)
        if not re.search(r"_test\.cc|_testing\.h|_bench\.cc|_fuzz\.cc|^src/sim/|/test_", name):
            yield name


def texts(name):
    """The string literals of a source, neighbours joined as the compiler does it."""
    with open(os.path.join(ROOT, name)) as file:
        text = re.sub(r"(?m)^\s*//.*$", "", file.read())
    text = re.sub(rf"\brefused\(\s*{LITERAL}", "refused(", text)  # The name of an option that is refused is no message.
    for found in re.finditer(rf"{LITERAL}(?:\s*{LITERAL})*", text):
        joined = "".join(part[1:-1] for part in re.findall(LITERAL, found.group()))
        yield joined.replace("\\n", "\n").replace('\\"', '"')


def refused_options():
    """Those that a command knows and refuses, which no help lists."""
    found = set()
    for name in sources():
        with open(os.path.join(ROOT, name)) as file:
            for names in re.findall(rf"\brefused(?:_later)?\(\s*(?:\w+\(\s*)?({LITERAL})", file.read()):
                found |= set(OPTION.findall(names))
    return found


class Hints(Case):
    def setUp(self):
        super().setUp()
        for name in ("byre", "qemu-img", "qemu-io", "qemu-nbd"):
            os.symlink(BYRE, self.path(name))
        self.helps = {}

    def help(self, program, command=None):
        """What --help says, or None where there is no such command."""
        key = program, command
        if key not in self.helps:
            words = [self.path(program), *(command or "").split(), "--help"]
            done = run(*words, ok=None)
            self.helps[key] = done.text if done.code == 0 else None
        return self.helps[key]

    def programs(self, program, command):
        """Where a command line is spoken that names no program: wherever the command is."""
        if program:
            return [program]
        return [name for name in ("byre", "qemu-img") if self.help(name, command)]

    @only_byre
    def test_each_command_line_in_a_message_parses(self):
        seen = set()
        for name in sources():
            if name == "src/cli/io_help.cc":
                continue  # Commands of the shell of `byre io`, which has its own check.
            for text in texts(name):
                for program, command, rest in WITH_OPTIONS.findall(text):
                    seen.add((name, program, command, rest.strip()))
        self.assertGreater(len(seen), 15, seen)
        for name, program, command, rest in sorted(seen):
            with self.subTest(f"{name}: {program} {command} {rest}"):
                spoken = self.programs(program, command)
                self.assertTrue(spoken, "there is no such command")
                words = [STAND_FOR.get(word, word) for word in rest.split()]
                for where in spoken:
                    # What follows in the message may be the option's value, the image, or both.
                    tries = [run(self.path(where), *command.split(), *words, *["absent"] * more, ok=None, cwd=self.folder)
                             for more in range(3)]
                    self.assertTrue(any(not WRONG.search(done.text) for done in tries), tries[1])

    @only_byre
    def test_each_command_in_a_message_exists(self):
        seen = set()
        for name in sources():
            for text in texts(name):
                seen.update((name, program, command) for program, command in NAMED.findall(text))
        self.assertTrue(seen)
        for name, program, command in sorted(seen):
            with self.subTest(f"{name}: {program} {command}"):
                # Or one of QEMU's that byre says it does not have yet.
                absent = program == "qemu-img" and "qemu-img has it" in run(self.path("byre"), command, ok=None).text
                self.assertTrue(absent or self.help(program, command) is not None)

    @only_byre
    def test_each_option_in_a_message_exists(self):
        """In the command whose source it is, else in any."""
        refused = refused_options()
        every = "--help --version " + self.help("qemu-nbd") + self.help("qemu-io")  # Those two are everywhere.
        for command in COMMANDS + CONTROL:
            every += self.help("byre", command) or ""
        for command in CONTROL:
            self.assertIn(command.split(" ", 1)[1], self.help("byre", "ctl"))
            self.assertTrue(self.help("byre", command), command)
        others = {"nbdinfo", "nbd-client", "nbdcopy", "curl"}
        seen = 0
        for name in sources():
            command = os.path.splitext(os.path.basename(name))[0]
            own = self.help("byre", command) if name.startswith("src/cli/") and command in COMMANDS else None
            known = every if own is None else "--help --version " + own
            for text in texts(name):
                if any(other in text for other in others):
                    continue
                for option in OPTION.findall(text):
                    seen += 1
                    if option in refused:
                        continue
                    with self.subTest(f"{name}: {option}"):
                        # Another command's option is named together with that command.
                        elsewhere = any(option in (self.help("byre", word) or "")
                                        for _, word, rest in WITH_OPTIONS.findall(text) if option in rest)
                        self.assertTrue(elsewhere or re.search(rf"{option}\b", known), text)
        self.assertGreater(seen, 50)

    def test_other_peoples_programs_that_are_named_exist(self):
        for program in ("nbdcopy", "nbd-client", "qemu-system-x86_64"):
            found = any(program in text for name in sources() for text in texts(name))
            self.assertTrue(found, program)
            self.assertTrue(shutil.which(program), program)

    # --- What is said helps ------------------------------------------------------------------------

    def hint(self, done, pattern):
        self.assertNotEqual(done.code, 0, done)
        found = re.search(pattern, done.text)
        self.assertTrue(found, done)
        return found.group(1).split()

    @only_byre
    def test_a_backing_format_is_set_as_it_says(self):
        base, top = self.path("base"), self.path("top")
        qemu_img("create", "-q", "-f", "qcow2", base, "1M")
        qemu_io(base, "write -P 5 0 1M")
        for program in ("byre",):  # qemu-img's amend changes no backing file.
            qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "base", "-F", "qcow2", top, "1M")
            with open(top, "r+b") as file:
                content = file.read()
                at = struct.unpack(">I", content[100:104])[0]
                while struct.unpack(">I", content[at:at + 4])[0] != 0xE2792ACA:
                    at += 8 + (struct.unpack(">I", content[at + 4:at + 8])[0] + 7) // 8 * 8
                file.seek(at)
                file.write(struct.pack(">I", 0x0BADCAFE))  # An extension that nobody knows.
            done = run(self.path(program), "convert", "-O", "raw", top, self.path("raw"), ok=None)
            words = self.hint(done, r"set it with: ((?:byre )?amend -o \S+ IMAGE)")
            words = [word for word in words if word != "byre"]
            run(self.path(program), *[{"IMAGE": top}.get(word, word.replace("FORMAT", "qcow2")) for word in words])
            run(self.path(program), "convert", "-O", "raw", top, self.path("raw"))
            with open(self.path("raw"), "rb") as file:
                self.assertEqual(file.read(), b"\5" * (1 << 20))
            os.unlink(self.path("raw"))

    @only_byre
    def test_a_corrupt_image_is_checked_as_it_says(self):
        for program in ("byre", "qemu-img"):
            disk = self.path(f"{program}.qcow2")
            qemu_img("create", "-q", "-f", "qcow2", disk, "1M")
            with open(disk, "r+b") as file:
                file.seek(79)
                file.write(b"\2")  # The mark "corrupt".
            done = run(self.path(program), "resize", disk, "2M", ok=None)
            words = self.hint(done, r"run (check -r all)")
            run(self.path(program), *words, disk)
            run(self.path(program), "resize", disk, "2M")

    # --- Exit codes that mean something else -------------------------------------------------------

    @only_byre
    def test_what_does_not_exist_is_no_answer(self):
        """compare's 1 says that the disks differ, check's 2 and 3 that the image is bad."""
        disk = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", disk, "1M")
        for program in ("byre", "qemu-img"):
            for words in (["compare", disk, self.path("absent")], ["compare", "-f", "nix", disk, disk]):
                self.assertGreaterEqual(run(self.path(program), *words, ok=None).code, 2, words)
            for words in (["check", "--nonsense", disk], ["check", "--image-opts", disk], ["check"],
                          ["check", "-r", "some", disk], ["check", self.path("absent")]):
                self.assertNotIn(run(self.path(program), *words, ok=None).code, (0, 2, 3, 63), words)


if __name__ == "__main__":
    main()
