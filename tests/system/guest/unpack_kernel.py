# SPDX-License-Identifier: Apache-2.0
"""unpack_kernel.py VMLINUZ OUT: the ELF file inside a bzImage, which QEMU boots without unpacking."""
import subprocess
import sys

FORMATS = ((b"\x02\x21\x4c\x18", "lz4 -dc"), (b"\xfd7zXZ\0", "xz -dc --single-stream"), (b"\x1f\x8b\x08", "gzip -dc"),
           (b"\x28\xb5\x2f\xfd", "zstd -dc"))


def unpack(image):
    for magic, program in FORMATS:
        start = image.find(magic)
        while start >= 0:
            done = subprocess.run(program.split(), input=image[start:], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL)
            if done.stdout.startswith(b"\x7fELF"):
                return done.stdout
            start = image.find(magic, start + 1)
    sys.exit("no kernel found inside")


with open(sys.argv[1], "rb") as source:
    kernel = unpack(source.read())
with open(sys.argv[2], "wb") as target:
    target.write(kernel)
