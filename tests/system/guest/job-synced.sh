# SPDX-License-Identifier: Apache-2.0
# Writes files one by one, each synced, while the test kills the server of the disk: no step may fail.
synced() { dd if=/dev/urandom of=/mnt/f$1 bs=16k count=8 conv=fsync 2>/dev/null; }

step mkfs.ext4 -q -F /dev/vda
step mount -t ext4 /dev/vda /mnt
for i in $(seq 40); do
  synced $i || { say "step rc=1 file $i"; break; }
  (cd /mnt && sha256sum f$i) | sed 's/^/TEST sum /'
  say "synced $i"
done
step umount /mnt
