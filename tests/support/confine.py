# SPDX-License-Identifier: Apache-2.0
"""What a process is denied before it becomes a program."""
import ctypes
import os
import struct

libc = ctypes.CDLL(None, use_errno=True)


def forbid_io_uring():
    """From here on io_uring_setup() fails in this process, so that byre takes threads."""
    load_number, is_setup, allow, refuse = 0x20, 0x15, 0x7FFF0000, 0x00050000 | 1  # BPF's codes; EPERM.
    lines = [(load_number, 0, 0, 0), (is_setup, 0, 1, 425), (0x06, 0, 0, refuse), (0x06, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code)))
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, program, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
