#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`byre serve --metrics`: what Prometheus is told, over TCP and a unix socket, also while clients misbehave."""
import contextlib
import http.client
import os
import re
import socket
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
from forge import COPIED, Forged  # noqa: E402
from harness import BYRE, Case, MIB, main, only_byre, qemu_img, run, until  # noqa: E402

# A line of the text format (prometheus.io, "Exposition formats"): a name, labels, a value.
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)')


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


@only_byre
class Metrics(Case):
    def start(self, image, form="qcow2", place="0"):
        server = self.server(image, form=form, options=("--metrics", place))
        found = until(lambda: re.search(r"watch it +curl (?:--unix-socket \S+ )?http://(\S+)/metrics", server.said()),
                      "the place of the metrics")
        return server, found.group(1)

    def ask(self, place, verb="GET", path="/metrics"):
        connection = UnixConnection(place) if "/" in place else http.client.HTTPConnection(place, timeout=30)
        with contextlib.closing(connection):
            connection.request(verb, path)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def samples(self, place):
        status, headers, page = self.ask(place)
        self.assertEqual(status, 200)
        self.assertTrue(headers["Content-Type"].startswith("text/plain; version=0.0.4"))
        values = {}
        for line in page.splitlines():
            if line.startswith("#"):
                continue
            sample = SAMPLE.fullmatch(line)
            self.assertTrue(sample, line)
            name, labels, value = sample.groups()
            values[(name, *sorted(re.findall(r'="((?:[^"\\]|\\.)*)"', labels)))] = float(value)
        return values

    @staticmethod
    def value(samples, name, *labels):
        return samples[(name, *sorted(labels))]

    def test_what_clients_did_is_counted(self):
        image = self.path("disk.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", image, "64M")
        server, place = self.start(image)
        before = self.samples(place)
        self.assertEqual(self.value(before, "byre_export_requests_total", "", "write"), 0)
        self.assertEqual(self.value(before, "byre_image_references_known", image), 1)
        self.assertEqual(self.value(before, "byre_image_damage", image, "undercounted_clusters"), 0)
        run("qemu-io", "-f", "raw", "-c", "write -P 1 0 3M", "-c", "read 0 1M", "-c", "flush", server.uri)
        after = self.samples(place)
        self.assertEqual(self.value(after, "byre_export_bytes_total", "", "write"), 3 * MIB)
        self.assertGreaterEqual(self.value(after, "byre_export_bytes_total", "", "read"), 1 * MIB)
        self.assertGreaterEqual(self.value(after, "byre_export_requests_total", "", "flush"), 1)
        self.assertGreaterEqual(self.value(after, "byre_image_clusters_total", "allocated", image), 48)
        self.assertGreaterEqual(self.value(after, "byre_image_commits_total", image), 1)
        self.assertEqual(self.value(after, "byre_export_requests_failed_total", ""), 0)
        server.stop()

    def test_what_was_wrong_with_the_image_is_told(self):
        forged = Forged(size=64 * MIB)
        table = forged.cluster()
        shared = forged.cluster()
        forged.put(forged.l1, table | COPIED)
        # Two guest ranges on one cluster, and one that ends behind the file.
        forged.put(table, shared | COPIED, shared | COPIED, 0x7f0000 | COPIED)
        image = self.path("damaged.qcow2")
        forged.write(image)
        server, place = self.start(image)
        found = self.samples(place)
        self.assertEqual(self.value(found, "byre_image_references_known", image), 1)
        self.assertEqual(self.value(found, "byre_image_damage", image, "undercounted_clusters"), 1)
        self.assertEqual(self.value(found, "byre_image_damage", image, "lost_ranges"), 1)
        self.assertEqual(self.value(found, "byre_image_damage", image, "ranges_in_doubt"), 2)
        self.assertGreaterEqual(self.value(found, "byre_image_damage", image, "wrong_copied_flags"), 2)
        server.stop()

    def test_a_raw_disk_has_no_image(self):
        disk = self.path("disk.raw")
        with open(disk, "wb") as file:
            file.truncate(MIB)
        server, place = self.start(disk, form="raw", place=self.path("metrics.sock"))
        names = {name for name, *_ in self.samples(self.path("metrics.sock"))}
        self.assertIn("byre_export_requests_total", names)
        self.assertFalse([name for name in names if name.startswith("byre_image")])
        self.assertEqual(os.stat(self.path("metrics.sock")).st_mode & 0o777, 0o600)
        server.stop()
        self.assertFalse(os.path.exists(self.path("metrics.sock")))
        self.assertEqual(place, "localhost")

    def test_other_questions_get_an_answer_that_says_so(self):
        disk = self.path("disk.raw")
        with open(disk, "wb") as file:
            file.truncate(MIB)
        server, place = self.start(disk, form="raw")
        self.assertEqual(self.ask(place, path="/")[0], 404)
        self.assertIn("/metrics", self.ask(place, path="/")[2])
        status, headers, page = self.ask(place, verb="HEAD")
        self.assertEqual((status, page), (200, ""))
        status, headers, _ = self.ask(place, verb="POST")
        self.assertEqual((status, headers["Allow"]), (405, "GET, HEAD"))
        server.stop()

    def test_bad_clients_harm_nothing(self):
        disk = self.path("disk.raw")
        with open(disk, "wb") as file:
            file.truncate(MIB)
        server, place = self.start(disk, form="raw")
        host, port = place.split(":")
        with contextlib.ExitStack() as stack:
            # More than it takes, all silent, some in the middle of a request.
            for i in range(100):
                client = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
                with contextlib.suppress(OSError):
                    client.sendall((b"", b"GET /met", b"\0\xff\r\n\r\n", b"GET /" + b"x" * 100000)[i % 4])
            # The disk is served all the while, and so is a scraper once the silent ones were thrown out.
            run("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", server.uri)

            def answered():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    return self.ask(place)[0] == 200
            until(answered, "an answer", patience=60)
        self.assertLess(server.memory_peak(), 200 * MIB)
        server.stop()

    def test_a_place_that_is_none_is_refused_before_anything_is_served(self):
        disk = self.path("disk.raw")
        with open(disk, "wb") as file:
            file.truncate(MIB)
        for place in ("", "x", "127.0.0.1:", ":99999", "127.0.0.1:65536", "1:2:x"):
            done = run(BYRE, "serve", "-f", "raw", "-k", self.path("s"), "--metrics", place, disk, ok=(64,))
            self.assertIn("Invalid --metrics", done.text, place)
        taken = socket.create_server(("127.0.0.1", 0))
        with contextlib.closing(taken):
            port = taken.getsockname()[1]
            done = run(BYRE, "serve", "-f", "raw", "-k", self.path("s"), "--metrics", str(port), disk, ok=(1, 74, 75))
            self.assertIn("--metrics", done.text)
            self.assertNotIn("ready:", done.text)


if __name__ == "__main__":
    main()
