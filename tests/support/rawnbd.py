# SPDX-License-Identifier: Apache-2.0
"""NBD by hand, for clients that do what no library would."""
import socket
import struct

OPTION_MAGIC = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
REPLY_MAGIC = 0x3E889045565A9
OPT_GO, OPT_STRUCTURED = 7, 8
REP_ACK, REP_ERROR = 1, 1 << 31
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZERO, STATUS = range(8)
EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108


class Closed(Exception):
    """The server hung up."""


class Raw:
    def __init__(self, sock_path, patience=60):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(patience)
        self.socket.connect(sock_path)

    def take(self, count):
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionError:
                raise Closed() from None
            if not more:
                raise Closed()
            data += more
        return data

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionError):
            raise Closed() from None

    def hear_greeting(self):
        magic, option, flags = struct.unpack(">8sQH", self.take(18))
        assert magic == b"NBDMAGIC" and option == OPTION_MAGIC
        return flags

    def send_option(self, option, data=b""):
        self.send(struct.pack(">QII", OPTION_MAGIC, option, len(data)) + data)

    def hear_option_reply(self):
        magic, option, reply, length = struct.unpack(">QIII", self.take(20))
        assert magic == REPLY_MAGIC
        return option, reply, self.take(length)

    def go(self, name=""):
        """The handshake, to the transmission phase, with simple replies."""
        self.hear_greeting()
        self.send(struct.pack(">I", 3))
        raw = name.encode()
        self.send_option(OPT_GO, struct.pack(">I", len(raw)) + raw + struct.pack(">H", 0))
        while True:
            _, reply, _ = self.hear_option_reply()
            if reply == REP_ACK:
                return self
            assert reply < REP_ERROR, hex(reply)

    def request(self, command, offset=0, length=0, payload=b"", flags=0, cookie=1, magic=REQUEST_MAGIC):
        self.send(struct.pack(">IHHQQI", magic, flags, command, cookie, offset & (1 << 64) - 1, length) + payload)

    def answer(self, length=0):
        """(error, data) of a simple reply; data come only without an error."""
        magic, error, _ = struct.unpack(">IIQ", self.take(16))
        assert magic == SIMPLE_REPLY_MAGIC, hex(magic)
        return error, b"" if error else self.take(length)

    def hear_end(self):
        """Waits for the server to hang up."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass

    def close(self):
        self.socket.close()
