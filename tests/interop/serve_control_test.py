#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`byre serve --control`: jobs on a disk that is served, begun by `byre ctl` or over QMP, while a client writes, zeroes and discards.
The real qemu-img judges the images."""
import json
import os
import re
import signal
import stat
import sys
import unittest
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BYRE, MIB, Case, main, only_byre, qemu_img, run, until  # noqa: E402
from ctl_test import Writer  # noqa: E402
from jobs_test import SIZE  # noqa: E402
from qmp import Monitor  # noqa: E402


@only_byre
class Controlled(Case):
    """A chain base <- mid <- top that qemu-img has made, whose top is served."""

    def chain(self, names=("base", "mid", "top")):
        below = None
        for number, name in enumerate(names):
            over = ("-b", f"{below}.qcow2", "-F", "qcow2") if below else ()
            qemu_img("create", "-q", "-f", "qcow2", *over, self.path(f"{name}.qcow2"), str(SIZE))
            run("qemu-io", "-c", f"write -P {number + 1} {number}M 2M", self.path(f"{name}.qcow2"))
            below = name
        return self.path(f"{below}.qcow2")

    def start(self, image=None, *options, name="", **more):
        self.socket = self.path("qmp")
        self.served = self.server(image or self.chain(), name=name, options=("--control", self.socket, *options), **more)
        return self.served

    def client(self, **more):
        client = Writer(self.served.uri, **more).start()
        self.addCleanup(client.stopped.set)
        self.settle(client, 100)
        return client

    @staticmethod
    def settle(client, requests):
        wanted = client.requests + requests
        until(lambda: client.requests >= wanted or client.failure, "requests")

    def ctl(self, *words, ok=(0,), **more):
        return run(BYRE, "ctl", "--socket", self.socket, *words, ok=ok, **more)

    def json(self, *words):
        return json.loads(self.ctl(*words, "--output", "json").out)

    def names(self):
        return {node["node-name"]: node for node in self.json("nodes") if not node["node-name"].startswith("#")}

    def expect(self, name, model, backing=...):
        self.assertIn("No errors were found", qemu_img("check", self.path(name)).text)
        with open(self.path("model"), "wb") as file:
            file.write(model)
        self.assertIn("Images are identical.", qemu_img("compare", "-f", "raw", self.path("model"), self.path(name)).text)
        if backing is not ...:
            info = json.loads(qemu_img("info", "--output", "json", self.path(name)).out)
            self.assertEqual(info.get("backing-filename"), backing)

    def finish(self, client):
        model = client.stop()
        self.served.stop()
        self.assertFalse(os.path.exists(self.socket))
        return model


class Jobs(Controlled):
    def test_what_there_is(self):
        self.start()
        until(lambda: "ready: " in self.served.said(), "what it says")
        self.assertIn(f"steer it   byre ctl nodes --socket {self.socket}\n", self.served.said())
        self.assertEqual(stat.S_IMODE(os.stat(self.socket).st_mode), 0o600)
        nodes = self.names()
        self.assertEqual({name: (os.path.basename(node["file"]), node["drv"], node["ro"]) for name, node in nodes.items()},
                         {"disk": ("top.qcow2", "qcow2", False), "disk-1": ("mid.qcow2", "qcow2", True), "disk-2": ("base.qcow2", "qcow2", True)})
        self.assertEqual(self.json("exports"), [{"id": "disk", "type": "nbd", "node-name": "disk", "shutting-down": False}])
        self.assertEqual(self.json("jobs"), [])
        for words, says in ((("export", "remove", "disk"), "ends with the server"), (("close", "disk"), "in use"),
                            (("close", "disk-1"), "not owned")):
            self.assertIn(says, self.ctl(*words, ok=(64, 75)).text)
        self.served.stop()

    def test_the_name_of_the_export_names_the_node(self):
        for name, node in (("vda", "vda"), ("no name", "disk"), ("x" * 40, "disk")):
            with self.subTest(name):
                self.start(name=urllib.parse.quote(name) if name == "vda" else name)
                self.assertEqual(set(self.names()), {node, f"{node}-1", f"{node}-2"})
                self.served.stop()
                for file in os.listdir(self.folder):
                    os.unlink(self.path(file))

    def test_a_commit_leads_clients_to_the_base(self):
        self.start()
        client = self.client()
        self.assertIn("job 'commit-disk' is done", self.ctl("commit", "disk", "--wait").text)
        self.assertEqual(self.json("exports")[0]["node-name"], "disk-2")
        self.settle(client, 200)
        self.ctl("close", "disk")
        self.assertEqual(set(self.names()), {"disk-2"})
        self.settle(client, 100)
        self.expect("base.qcow2", self.finish(client), backing=None)

    def test_a_commit_to_the_middle_and_one_below_the_disk(self):
        self.start()
        client = self.client()
        self.ctl("commit", "disk", "--top", "disk-1", "--base", "disk-2", "--wait")
        self.assertEqual(set(self.names()), {"disk", "disk-2"})
        self.settle(client, 100)
        self.ctl("commit", "disk", "--base", "disk-2", "--wait")
        self.settle(client, 100)
        self.expect("base.qcow2", self.finish(client), backing=None)

    def test_names_in_headers_are_found_from_elsewhere(self):
        """The image was named from the folder above, its header names what lies beside it."""
        for job in (("stream", "disk", "--base", "disk-2"), ("commit", "disk", "--top", "disk-1", "--base", "disk-2")):
            with self.subTest(job[0]):
                self.chain()
                image = os.path.join(os.path.basename(self.folder), "top.qcow2")
                self.start(image, cwd=os.path.dirname(self.folder))
                client = self.client()
                self.ctl(*job, "--wait")
                self.expect("top.qcow2", self.finish(client), backing="base.qcow2")

    def test_a_stream(self):
        self.start()
        client = self.client()
        self.ctl("stream", "disk", "--wait")
        self.assertEqual(set(self.names()), {"disk"})
        self.settle(client, 100)
        self.expect("top.qcow2", self.finish(client), backing=None)

    def test_a_mirror_and_its_pivot(self):
        # Layers of the server lie over the disk: clients go on through them.
        self.start(None, "--cache", "writethrough", "--detect-zeroes", "unmap", "--metrics", "0", "--check-every", "1")
        client = self.client()
        self.ctl("mirror", "disk", self.path("copy.qcow2"), "--wait", "--pivot")
        self.settle(client, 100)
        self.assertEqual(self.json("exports")[0]["node-name"], "mirror-disk-target")
        self.ctl("close", "disk")  # Nobody uses it any more.
        self.assertEqual(set(self.names()), {"mirror-disk-target"})
        self.settle(client, 100)
        place = re.search(r"watch it +curl (\S+)", self.served.said()).group(1)
        page = run("curl", "-s", place).text
        self.assertIn("byre_image_commits_total", page)
        self.served.process.send_signal(signal.SIGUSR1)
        until(lambda: self.served.said().count("checked ") > 2, "checks")
        self.assertNotIn("check failed", self.served.said())
        self.expect("copy.qcow2", self.finish(client), backing=None)

    def test_a_backup_of_one_moment_and_what_changed_since(self):
        self.start(self.chain(("base", "top")))
        self.ctl("bitmap", "add", "disk", "daily")
        client = self.client()
        held = client.pause()
        self.ctl("bitmap", "clear", "disk", "daily")
        self.ctl("backup", "disk", self.path("full.qcow2"))
        client.resume()
        self.settle(client, 100)
        self.assertIn("is done", self.ctl("wait", "backup-disk").text)
        held_again = client.pause()
        self.ctl("backup", "disk", self.path("more.qcow2"), "--bitmap", "daily", "--wait")
        client.resume()
        self.settle(client, 20)
        self.assertEqual(set(self.names()), {"disk", "disk-1"})
        model = self.finish(client)
        self.expect("full.qcow2", held, backing=None)
        run("qemu-img", "rebase", "-u", "-b", self.path("full.qcow2"), "-F", "qcow2", self.path("more.qcow2"))
        self.expect("more.qcow2", held_again)
        self.expect("top.qcow2", model)

    def test_a_raw_disk(self):
        raw = self.path("disk.raw")
        with open(raw, "wb") as file:
            file.truncate(SIZE)
        self.start(raw, form="raw")
        client = self.client()
        held = client.pause()
        self.ctl("backup", "disk", self.path("copy.qcow2"))
        client.resume()
        self.ctl("wait", "backup-disk")
        self.ctl("mirror", "disk", self.path("other.qcow2"), "--wait", "--pivot")
        self.settle(client, 100)
        model = self.finish(client)
        self.expect("copy.qcow2", held)
        self.expect("other.qcow2", model)

    def test_a_bitmap_that_clients_see_keeps_its_node(self):
        image = self.chain(("top",))
        qemu_img("bitmap", "--add", image, "daily")
        self.start(image, "--bitmap", "daily")
        client = self.client()
        self.assertIn("in use", self.ctl("bitmap", "remove", "disk", "daily", ok=(64, 75)).text)
        self.ctl("mirror", "disk", self.path("copy.qcow2"), "--wait", "--pivot")
        self.assertIn("bitmap 'daily' is in use", self.ctl("close", "disk", ok=(64, 75)).text)
        self.settle(client, 100)
        self.assertIn("qemu:dirty-bitmap:daily", run("nbdinfo", self.served.uri).text)
        self.expect("copy.qcow2", self.finish(client))


class Ends(Controlled):
    def slow(self):
        self.start()
        client = self.client()
        self.ctl("mirror", "disk", self.path("copy.qcow2"), "--speed", "64k", "--job", "slow")
        return client

    def test_the_end_cancels_jobs_and_says_so(self):
        client = self.slow()
        model = self.finish(client)
        self.assertIn("job 'slow' is cancelled, because this server ends", self.served.said())
        self.assertIn("ended: ", self.served.said())
        self.expect("top.qcow2", model, backing="mid.qcow2")
        qemu_img("check", "-q", self.path("copy.qcow2"))

    def test_clients_that_have_all_gone_do_not_end_a_job(self):
        client = self.slow()
        client.stop()
        self.ctl("speed", "slow", "0")
        self.ctl("wait", "slow")  # Until it is ready.
        self.ctl("complete", "slow")
        self.ctl("wait", "slow")
        self.served.stop()
        self.assertNotIn("is cancelled", self.served.said())
        self.expect("copy.qcow2", client.model, backing=None)

    def test_quit_ends_the_server(self):
        client = self.slow()
        model = client.stop()
        monitor = Monitor(self.socket)
        monitor.do("qmp_capabilities")
        monitor.do("quit")
        monitor.event("BLOCK_EXPORT_DELETED")
        monitor.close()
        self.assertEqual(self.served.process.wait(60), 0, self.served.said())
        self.expect("top.qcow2", model)

    def test_a_killed_server_leaves_sound_images_and_its_socket_is_taken_over(self):
        client = self.slow()
        client.pause()
        self.served.process.kill()
        self.served.process.wait()
        client.resume()
        self.assertTrue(os.path.exists(self.socket))
        self.served = self.server(self.path("top.qcow2"), options=("--control", self.socket))
        self.assertEqual(set(self.names()), {"disk", "disk-1", "disk-2"})
        self.served.stop()
        for name in ("base", "mid", "top", "copy"):
            self.assertNotIn("ERROR", qemu_img("check", self.path(f"{name}.qcow2"), ok=(0, 3)).text)

    def test_a_place_that_is_taken(self):
        self.start()
        self.chain(("other",))
        done = run(BYRE, "serve", "-k", self.path("nbd2"), "--control", self.socket, self.path("other.qcow2"), ok=(75,))
        self.assertIn(f"--control: listen on '{self.socket}': another server listens there", done.text)
        self.assertEqual(self.json("exports")[0]["id"], "disk")
        self.served.stop()

    def test_what_does_not_go_with_it(self):
        image = self.chain(("top",))
        for words, says in ((("-r",), "--read-only"), (("-l", "snap"), "--snapshot"), (("-r", "-U"), "--")):
            done = run(BYRE, "serve", *words, "--control", self.path("qmp"), "--create", self.path("new.qcow2"), ok=(64, 69))
            self.assertIn("--control", done.text)
            self.assertIn(says, done.text)
            self.assertFalse(os.path.exists(self.path("new.qcow2")))
            self.assertFalse(os.path.exists(self.path("qmp")))
        os.symlink(BYRE, self.path("qemu-nbd"))
        done = run(self.path("qemu-nbd"), "--control", self.path("qmp"), image, ok=(1,))
        self.assertIn("--control", done.text)
        self.assertFalse(os.path.exists(self.path("qmp")))


if __name__ == "__main__":
    main()
