# SPDX-License-Identifier: Apache-2.0
"""Long backing chains: how many images may lie one below the other, and chains that go in a circle."""
import os
import resource
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, GIB, KIB, MIB, run  # noqa: E402
import shutil  # noqa: E402
import struct  # noqa: E402
import tempfile  # noqa: E402

LIMIT = 1024


class Chains(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp(prefix="byre-chain-")
        self.addCleanup(shutil.rmtree, self.home)

    def byre(self, *words, code=0, **options):
        done = run(BYRE, *words, ok=None, cwd=self.home, **options)
        self.assertEqual(done.code == 0, code == 0, str(done))
        return done

    def chain(self, count, size="1M"):
        """Images 0 to count - 1, each on the one before; one header is made, the rest are copies with another name."""
        self.byre("create", "-q", "--force", "-f", "qcow2", "0", size)
        self.byre("create", "-q", "--force", "-u", "-f", "qcow2", "-b", "0000", "-F", "qcow2", "model", size)
        with open(os.path.join(self.home, "model"), "rb") as file:
            model = bytearray(file.read())
        at, length = struct.unpack_from(">QI", model, 8)
        self.assertEqual(model[at:at + length], b"0000")
        for n in range(1, count):
            name = str(n - 1).encode()
            struct.pack_into(">I", model, 16, len(name))
            model[at:at + 4] = name.ljust(4, b"\0")
            with open(os.path.join(self.home, str(n)), "wb") as file:
                file.write(model)

    def test_as_many_as_the_limit_allows(self):
        self.chain(LIMIT + 1)
        top = str(LIMIT)
        self.byre("io", "-c", "write -P 7 64k 64k", "0")
        self.byre("io", "-r", "-c", "read -P 7 64k 64k", "-c", "read -P 0 0 64k", top)
        self.byre("io", "-c", "write -P 9 70k 1k", top)
        self.byre("io", "-r", "-c", "read -P 7 64k 6k", "-c", "read -P 9 70k 1k", "-c", "read -P 7 71k 57k", top)
        self.byre("convert", "-O", "raw", top, "out.raw")
        with open(os.path.join(self.home, "out.raw"), "rb") as file:
            data = file.read()
        expected = bytearray(bytes(64 * KIB) + b"\7" * (64 * KIB) + bytes(1 * MIB - 128 * KIB))
        expected[70 * KIB:71 * KIB] = b"\t" * KIB
        self.assertEqual(data, bytes(expected))
        self.assertIn('"depth": 1024', self.byre("map", "--output=json", top).text)
        listed = self.byre("info", "--backing-chain", top).text
        self.assertEqual(listed.count("image: "), LIMIT + 1)
        self.byre("check", "--verify-backing", top)

    def test_what_the_limit_refuses_is_not_made(self):
        self.chain(LIMIT + 1)
        done = self.byre("create", "-f", "qcow2", "-b", str(LIMIT), "-F", "qcow2", "more", code=1)
        self.assertIn("longer than 1024 images", done.text)
        self.assertIn("BYRE_CHAIN_MAX", done.text)
        self.assertNotIn("Formatting", done.text)
        self.assertFalse(os.path.exists(os.path.join(self.home, "more")))
        self.byre("create", "-q", "-f", "qcow2", "-b", str(LIMIT - 1), "-F", "qcow2", "more")
        self.byre("map", "more")
        # Made all the same, it is refused by its length, not as a circle.
        self.byre("create", "-q", "-u", "-f", "qcow2", "-b", str(LIMIT), "-F", "qcow2", "more", "1M", "--force")
        for words in (("map",), ("info", "--backing-chain"), ("io", "-r", "-c", "read 0 1k"), ("resize", "--shrink")):
            done = self.byre(*words, "more", *(("512k",) if words[0] == "resize" else ()), code=1)
            self.assertIn("longer than 1024 images", done.text, str(done))
            self.assertNotIn("infinite", done.text)
            self.assertLess(len(done.text), 400, "one line, and not one for each image")

    def test_the_limit_can_be_set(self):
        self.chain(6)
        env = dict(os.environ, BYRE_CHAIN_MAX="4")
        self.byre("map", "4", env=env)
        done = self.byre("map", "5", env=env, code=1)
        self.assertIn("longer than 4 images", done.text)
        self.byre("create", "-q", "-f", "qcow2", "-b", "4", "-F", "qcow2", "more", env=env, code=1)
        self.byre("create", "-q", "-f", "qcow2", "-b", "3", "-F", "qcow2", "more", env=env)
        for wrong in ("x", "0", "-1", "1000000"):
            done = self.byre("info", "0", env=dict(os.environ, BYRE_CHAIN_MAX=wrong), code=1)
            self.assertIn("BYRE_CHAIN_MAX", done.text)

    def test_a_soft_limit_of_open_files_is_raised(self):
        self.chain(300)

        def few():
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

        self.byre("map", "299", preexec_fn=few)

        def hard():
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

        done = self.byre("map", "299", preexec_fn=hard, code=1)
        self.assertIn("ulimit -n", done.text)

    def test_a_circle_is_a_file_that_is_there_twice(self):
        self.chain(4)
        os.symlink("1", os.path.join(self.home, "link"))
        os.link(os.path.join(self.home, "1"), os.path.join(self.home, "hard"))
        for below in ("3", "1", "link", "./1", "hard", "2"):
            with self.subTest(below=below):
                self.chain(4)
                for name in ("link", "hard"):
                    os.unlink(os.path.join(self.home, name))
                os.symlink("1", os.path.join(self.home, "link"))
                os.link(os.path.join(self.home, "1"), os.path.join(self.home, "hard"))
                run("qemu-img", "rebase", "-u", "-b", below, "-F", "qcow2", "1", cwd=self.home)
                for words in (("io", "-r", "-c", "read 0 1k", "3"), ("io", "-c", "read 0 1k", "3"),
                              ("info", "--backing-chain", "3"), ("check", "--verify-backing", "3"),
                              ("create", "-f", "qcow2", "-b", "3", "-F", "qcow2", "new"), ("map", "3")):
                    done = self.byre(*words, code=1)
                    self.assertRegex(done.text, "circle|infinite loop", str(done))
                self.assertFalse(os.path.exists(os.path.join(self.home, "new")))

    def test_memory_does_not_grow_with_the_chain(self):
        """Each image has 4 MiB of L2 tables, and each of them is read; one budget is divided among all."""
        layers = 24
        self.byre("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "00", "2G")
        self.byre("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "00", "-F", "qcow2", "01")
        writes = "".join(f"write -q {at} 4k\n" for at in range(0, 2 * GIB, 2 * MIB))
        self.byre("io", "-t", "writeback", "01", data=writes.encode())
        with open(os.path.join(self.home, "01"), "rb") as file:
            model = bytearray(file.read())
        at, length = struct.unpack_from(">QI", model, 8)
        self.assertEqual(model[at:at + length], b"00")
        for n in range(2, layers):
            model[at:at + 2] = f"{n - 1:02}".encode()
            with open(os.path.join(self.home, f"{n:02}"), "wb") as file:
                file.write(model)
        for words in (("convert", "-O", "raw", "{}", "out.raw", "--force"), ("map", "{}")):
            one, many = (self.byre(*(word.format(top) for word in words)).memory for top in ("01", f"{layers - 1:02}"))
            self.assertLess(many - one, 45 * MIB, words)


if __name__ == "__main__":
    unittest.main()
