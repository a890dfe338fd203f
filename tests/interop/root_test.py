#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`byre daemon --root`: nothing is opened that does not lie beneath it, by whatever name, through whatever link, and
whoever names it: a command, an image, the command line.  strace is the witness that it was not even tried."""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from harness import BYRE, MIB, Case, main, only_byre, qemu_img, run, until  # noqa: E402
from jobs_test import qcow2  # noqa: E402
from qmp import Daemon, command  # noqa: E402


@only_byre
class Root(Case):
    def setUp(self):
        super().setUp()
        self.root, self.outside = self.path("root"), self.path("outside")
        for folder in (self.root, self.outside, os.path.join(self.root, "deep")):
            os.makedirs(folder)
        for path in (self.inside("a.qcow2"), self.inside("deep/b.qcow2"), os.path.join(self.outside, "x.qcow2")):
            qemu_img("create", "-q", "-f", "qcow2", path, "1M")
        with open(os.path.join(self.outside, "secret"), "w") as file:
            file.write("hidden")

    def inside(self, name):
        return os.path.join(self.root, name)

    def start(self, *words, root=None, **more):
        self.daemon = Daemon(self.folder, "byre", "--root", root or self.root, *words, **more)
        self.addCleanup(self.daemon.kill)
        self.monitor = self.daemon.monitor()

    def open(self, filename, driver="qcow2"):
        file = {"driver": "file", "filename": filename}
        node = {"driver": driver, "node-name": "n", "file": file} if driver != "file" else {**file, "node-name": "n"}
        answer = self.monitor.ask(command("blockdev-add", node))
        if "return" in answer:
            self.monitor.do("blockdev-del", {"node-name": "n"})
        return answer

    def denied(self, answer, name=None):
        self.assertIn("error", answer)
        self.assertIn("it does not lie beneath", answer["error"]["desc"])
        self.assertIn("--root", answer["error"]["desc"])
        if name:
            self.assertIn(name, answer["error"]["desc"])

    def test_names_that_end_beneath_it(self):
        os.symlink("deep/b.qcow2", self.inside("relative"))
        os.symlink(self.inside("deep/b.qcow2"), self.inside("absolute"))
        os.symlink(self.root, self.path("way"))
        self.start()
        for name in (self.inside("a.qcow2"), self.inside("deep/b.qcow2"), self.inside("deep/../a.qcow2"), "root/a.qcow2",
                     os.path.join(self.outside, "../root/a.qcow2"), self.inside("relative"), self.inside("absolute"),
                     os.path.join(self.path("way"), "a.qcow2")):
            with self.subTest(name):
                self.assertIn("return", self.open(name))

    def test_names_that_end_elsewhere(self):
        target = os.path.join(self.outside, "x.qcow2")
        os.symlink(target, self.inside("link.qcow2"))
        os.symlink("../outside/x.qcow2", self.inside("relative.qcow2"))
        os.symlink(self.outside, self.inside("folder"))
        os.symlink("link.qcow2", self.inside("twice.qcow2"))
        os.symlink("/proc/self/root" + target, self.inside("magic.qcow2"))
        self.start()
        for name in (target, "outside/x.qcow2", self.inside("../outside/x.qcow2"), self.inside("deep/../../outside/x.qcow2"),
                     self.inside("link.qcow2"), self.inside("relative.qcow2"), self.inside("folder/x.qcow2"),
                     self.inside("twice.qcow2"), self.inside("magic.qcow2"), self.root + "/../root2/a.qcow2", self.root,
                     "/etc/passwd", "/dev/null", "/proc/self/mem", "/proc/self/fd/0", ".", "..", "/",
                     f"/proc/self/cwd/root/../outside/x.qcow2"):
            for driver in ("qcow2", "raw", "file"):
                with self.subTest(name=name, driver=driver):
                    self.denied(self.open(name, driver))
        # What is there and what is not are refused alike.
        def words(name):
            return self.open(name)["error"]["desc"].replace(name, "")
        self.assertEqual(words(target), words(os.path.join(self.outside, "nosuch")))
        self.assertEqual(words(target), words("/nosuch/nosuch"))
        self.assertIn("No such file", self.open(self.inside("nosuch"))["error"]["desc"])
        self.assertIn("No such file", self.open(self.inside("nosuch/nosuch"))["error"]["desc"])

    def test_what_an_image_names(self):
        for name, backing in (("absolute", os.path.join(self.outside, "x.qcow2")), ("up", "../outside/x.qcow2"),
                              ("link", "link-out.qcow2"), ("tree", 'json:{"driver":"qcow2","file":{"driver":"file","filename":"%s"}}' %
                                                           os.path.join(self.outside, "x.qcow2"))):
            if name == "link":
                os.symlink(os.path.join(self.outside, "x.qcow2"), self.inside("link-out.qcow2"))
            qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", self.inside(f"{name}.qcow2"), "1M")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", self.inside("good.qcow2"))
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={self.outside}/data,data_file_raw=on", self.inside("data.qcow2"), "1M")
        self.start()
        for name in ("absolute", "up", "link", "tree", "data"):
            with self.subTest(name):
                self.denied(self.open(self.inside(f"{name}.qcow2")))
        self.assertIn("return", self.open(self.inside("good.qcow2")))

    def test_secrets_sockets_and_overlays(self):
        self.start()
        with open(self.inside("key"), "w") as file:
            file.write("secret")
        secret = os.path.join(self.outside, "secret")
        self.denied(self.monitor.ask(command("object-add", {"qom-type": "secret", "id": "s", "file": secret})), secret)
        self.monitor.do("object-add", {"qom-type": "secret", "id": "s", "file": self.inside("key")})
        self.monitor.do("object-add", {"qom-type": "secret", "id": "t", "data": "x"})
        place = {"type": "unix", "data": {"path": os.path.join(self.outside, "nbd")}}
        self.denied(self.monitor.ask(command("nbd-server-start", addr=place)), place["data"]["path"])
        self.assertFalse(os.path.exists(place["data"]["path"]))
        place["data"]["path"] = self.inside("nbd")
        self.monitor.do("nbd-server-start", addr=place)
        self.assertTrue(os.path.exists(self.inside("nbd")))
        self.denied(self.monitor.ask(command("blockdev-add", qcow2("top", self.inside("a.qcow2"), None) |
                                             {"backing": {"driver": "qcow2", "file": {"driver": "file", "filename": "outside/x.qcow2"}}})))
        log = {"driver": "blklogwrites", "node-name": "l", "file": {"driver": "file", "filename": self.inside("a.qcow2")},
               "log": {"driver": "file", "filename": os.path.join(self.outside, "log")}}
        self.assertIn("error", self.monitor.ask(command("blockdev-add", log)))
        self.monitor.do("blockdev-add", qcow2("top", self.inside("a.qcow2")))
        said = self.monitor.ask(command("human-monitor-command", {"command-line": f'qemu-io top "write -s {secret} 0 512"'}))
        self.assertIn("Permission denied", said["return"])

    def test_files_that_are_made(self):
        secret = os.path.join(self.outside, "secret")
        os.symlink(secret, self.inside("link"))
        os.symlink(os.path.join(self.outside, "new"), self.inside("dangling"))
        self.start()

        def create(filename):
            self.monitor.do("blockdev-create", {"job-id": "j"}, options={"driver": "file", "filename": filename, "size": 512})
            until(lambda: self.monitor.do("query-jobs")[0]["status"] == "concluded", "the end of the job")
            job = self.monitor.do("query-jobs")[0]
            self.monitor.do("job-dismiss", id="j")
            return job.get("error", "")
        for name in (secret, os.path.join(self.outside, "new"), self.inside("../outside/secret"), self.inside("link"), self.inside("dangling")):
            with self.subTest(name):
                self.denied({"error": {"desc": create(name)}}, name)
        self.assertEqual(sorted(os.listdir(self.outside)), ["secret", "x.qcow2"])
        with open(secret) as file:
            self.assertEqual(file.read(), "hidden")
        for name in (self.inside("new"), self.inside("deep/new"), "root/other"):
            self.assertEqual(create(name), "")
            self.assertEqual(os.path.getsize(self.path(name)), 512)

    def test_the_command_line(self):
        words = [BYRE, "daemon", "--root", self.root]
        done = run(*words, "--blockdev", f"driver=file,node-name=n,filename={self.outside}/x.qcow2", ok=None)
        self.assertEqual(done.code, 77, done)
        self.assertIn("does not lie beneath", done.text)
        done = run(*words, "--object", f"secret,id=s,file={self.outside}/secret", ok=None)
        self.assertEqual(done.code, 77, done)
        for root in (self.path("nosuch"), self.inside("a.qcow2")):
            done = run(BYRE, "daemon", "--root", root, ok=None)
            self.assertNotEqual(done.code, 0)
            self.assertIn("--root: open folder", done.text)

    def test_descriptors_that_a_client_passes(self):
        """It could have opened them itself, so they are no way out."""
        self.start()
        with open(os.path.join(self.outside, "x.qcow2"), "r+b") as file:
            got = self.monitor.ask(command("add-fd", {"fdset-id": 1}), [file.fileno()])
            self.assertIn("return", got)
        self.assertIn("return", self.open("/dev/fdset/1"))

    def test_jobs_and_guests_work_beneath_it(self):
        qemu_img("create", "-q", "-f", "qcow2", self.inside("copy.qcow2"), "1M")
        run("qemu-io", "-c", "write -P 5 0 1M", self.inside("a.qcow2"))
        self.start()
        self.monitor.do("blockdev-add", qcow2("a", self.inside("a.qcow2")))
        self.monitor.do("blockdev-add", qcow2("copy", self.inside("copy.qcow2")))
        self.monitor.do("blockdev-backup", {"device": "a", "target": "copy", "sync": "full", "job-id": "j"})
        self.monitor.event("BLOCK_JOB_COMPLETED")
        self.monitor.do("quit")
        self.assertEqual(self.daemon.end(None), 0)
        self.assertIn("identical", qemu_img("compare", self.inside("a.qcow2"), self.inside("copy.qcow2")).text)

    def test_a_link_that_changes_meanwhile(self):
        """It leads out every other moment: what is opened is always what lies beneath."""
        good, bad, link = self.inside("a.qcow2"), os.path.join(self.outside, "x.qcow2"), self.inside("flip.qcow2")
        with open(bad, "wb") as file:
            file.truncate(3 * MIB)  # Told apart by its size.
        self.start()
        script = ("import os, sys, itertools\n"
                  "for way in itertools.cycle(sys.argv[2:]):\n"
                  "    os.symlink(way, sys.argv[1] + '.new'); os.rename(sys.argv[1] + '.new', sys.argv[1])\n")
        os.symlink(good, link)
        flipper = subprocess.Popen([sys.executable, "-c", script, link, good, bad])
        self.addCleanup(flipper.wait)
        self.addCleanup(flipper.kill)
        opened = refused = 0
        for _ in range(400):
            answer = self.monitor.ask(command("blockdev-add", {"driver": "file", "node-name": "n", "filename": link, "read-only": True}))
            if "error" in answer:
                self.denied(answer)
                refused += 1
                continue
            opened += 1
            nodes = self.monitor.do("query-named-block-nodes")
            self.assertNotEqual(nodes[0]["image"]["virtual-size"], 3 * MIB)
            self.monitor.do("blockdev-del", {"node-name": "n"})
        self.assertTrue(opened and refused, (opened, refused))

    def test_nothing_outside_is_opened_for_more_than_its_place(self):
        trace = self.path("trace")
        words = ["strace", "-f", "-o", trace, "-e", "trace=open,openat,openat2", BYRE, "daemon", "--follow", "any", "--root", self.root,
                 "--chardev", f"socket,id=qmp,path={self.path('qmp')},server=on,wait=off", "--monitor", "chardev=qmp"]
        os.symlink(os.path.join(self.outside, "x.qcow2"), self.inside("link.qcow2"))
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        until(lambda: os.path.exists(self.path("qmp")), "the monitor")
        for name in (os.path.join(self.outside, "x.qcow2"), self.inside("link.qcow2"), self.inside("a.qcow2")):
            run(BYRE, "ctl", "-s", self.path("qmp"), "qmp", json.dumps(command("blockdev-add", {"driver": "file", "filename": name, "node-name": "n"})),
                ok=None)
        run(BYRE, "ctl", "-s", self.path("qmp"), "qmp", '{"execute": "quit"}')
        process.wait(60)
        with open(trace) as file:
            calls = [line for line in file if "x.qcow2" in line or "link.qcow2" in line or "a.qcow2" in line]
        self.assertTrue(any("link.qcow2" in line for line in calls))
        for line in calls:
            if "x.qcow2" in line or "link.qcow2" in line:
                self.assertIn("O_PATH", line)
        self.assertTrue([line for line in calls if "a.qcow2" in line and "O_PATH" not in line and "RESOLVE_BENEATH" in line], calls)


if __name__ == "__main__":
    main()
