# SPDX-License-Identifier: Apache-2.0
# A file system's life: make, write, delete, trim, write again, remount, compare sums.
write_some() {
  for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/mnt/f$i bs=1M count=6 2>/dev/null || return; done
  mkdir -p /mnt/d && for i in $(seq 200); do echo "file $i" >/mnt/d/$i || return; done
}
remember() { (cd /mnt && sha256sum f1 f3 f5 g1 d/* >/tmp/sums); }
more() { dd if=/dev/urandom of=/mnt/g1 bs=1M count=8 2>/dev/null; }
compare() { (cd /mnt && sha256sum -c /tmp/sums >/dev/null); }

step mkfs.ext4 -q -F /dev/vda
step mount -t ext4 /dev/vda /mnt
step write_some
step sync
step rm /mnt/f2 /mnt/f4 /mnt/f6
step fstrim /mnt
step more
step remember
step umount /mnt
step mount -t ext4 /dev/vda /mnt
echo 3 >/proc/sys/vm/drop_caches
step compare
sed 's/^/TEST sum /' /tmp/sums
step umount /mnt
