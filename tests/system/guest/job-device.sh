# SPDX-License-Identifier: Apache-2.0
# byre is in the guest, with images on /dev/vda, and serves them to the guest's own kernel: /dev/nbd0 and so on.
# said RC WORDS...: a command that must end with RC; what it says is told.
said() {
  want=$1
  shift
  "$@" >/tmp/said 2>&1
  code=$?
  sed 's/^/TEST said /' /tmp/said
  [ $code -eq "$want" ]
  say "step rc=$? $*"
}
unused() { [ ! -e "/sys/block/$1/pid" ] && [ "$(cat "/sys/block/$1/size")" -eq 0 ]; }
# The image that a server had is closed when its device is free: the next server finds it so at once.
write_some() {
  for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/mnt/f$i bs=1M count=4 2>/dev/null || return; done
}
remember() { (cd /mnt && sha256sum f1 f3 f5 >/tmp/sums); }
compare() { (cd /mnt && sha256sum -c /tmp/sums >/dev/null); }
sum_of() { sha256sum "$2" | sed "s/^\([0-9a-f]*\).*/TEST sum \1 $1/"; }
write_part() { dd if=/dev/urandom of="$1" bs=1M seek=1 count=3 2>/dev/null; }
# not WORDS...: succeeds when the command fails.
not() { ! "$@"; }
gone() {
  tries=0
  while [ -e "/proc/$1" ] && [ $tries -lt 100 ]; do
    usleep 100000
    tries=$((tries + 1))
  done
  [ ! -e "/proc/$1" ]
}

said 1 qemu-nbd -c /dev/nbd0 /images/none.qcow2
mkdir /images
step mount -t ext4 /dev/vda /images
said 1 qemu-nbd -c /dev/nbd0 /images/files.qcow2
step insmod /lib/modules/nbd.ko max_part=4

# A file system's life on the device.
step qemu-nbd -c /dev/nbd0 /images/files.qcow2
step mkfs.ext4 -q -F /dev/nbd0
step mount -t ext4 /dev/nbd0 /mnt
step write_some
step sync
step rm /mnt/f2 /mnt/f4 /mnt/f6
step fstrim /mnt
step remember
said 1 qemu-nbd -c /dev/nbd0 /images/other.qcow2
said 1 qemu-nbd -c /dev/nbd1 /images/files.qcow2
said 1 qemu-nbd -c /dev/vda /images/other.qcow2
step umount /mnt
said 0 qemu-nbd -d /dev/nbd0
step unused nbd0
said 0 qemu-nbd -d /dev/nbd0

# Read only.
step qemu-nbd -r -c /dev/nbd1 /images/files.qcow2
step not dd if=/dev/zero of=/dev/nbd1 count=1
step mount -t ext4 -o ro /dev/nbd1 /mnt
step compare
sed 's/^/TEST sum /' /tmp/sums
step umount /mnt
step qemu-nbd -d /dev/nbd1

# A mounted file system's writes are written back before its device goes.
step qemu-nbd -c /dev/nbd0 /images/files.qcow2
step mount -t ext4 /dev/nbd0 /mnt
echo late >/mnt/late
step qemu-nbd -d /dev/nbd0
umount /mnt
step qemu-nbd -r -c /dev/nbd2 /images/files.qcow2
step mount -t ext4 -o ro,noload /dev/nbd2 /mnt
step grep -q late /mnt/late
step umount /mnt
step qemu-nbd -d /dev/nbd2

# SIGTERM: what the kernel had not written back is in the image.
step qemu-nbd --pid-file /tmp/pid -c /dev/nbd3 /images/other.qcow2
step write_part /dev/nbd3
sum_of other /dev/nbd3
server=$(cat /tmp/pid)
step kill "$server"
step gone "$server"
step unused nbd3

# A partition is there when the device is; SIGKILL leaves a device that can be had again.
step qemu-nbd --pid-file /tmp/pid -c /dev/nbd3 /images/parts.qcow2
printf 'o\nn\np\n1\n2048\n\nw\n' | fdisk /dev/nbd3 >/dev/null 2>&1
step qemu-nbd -d /dev/nbd3
step qemu-nbd --pid-file /tmp/pid -c /dev/nbd4 /images/parts.qcow2
step test -b /dev/nbd4p1
step not qemu-nbd -d /dev/nbd4p1
server=$(cat /tmp/pid)
step kill -9 "$server"
step gone "$server"
step unused nbd4

# A snapshot of the disk's writes is gone afterwards; a listener beside the kernel; in the foreground.
export TMPDIR=/tmp
step qemu-nbd -s -c /dev/nbd4 /images/parts.qcow2
step write_part /dev/nbd4p1
step sync
step qemu-nbd -d /dev/nbd4
byre serve --connect /dev/nbd3 --create --size 20M /images/new.qcow2 >/tmp/serve 2>&1 &
until grep -q ready /tmp/serve; do usleep 100000; done
step write_part /dev/nbd3
sum_of new /dev/nbd3
said 0 byre serve --disconnect /dev/nbd3
step wait $!
sed 's/^/TEST said /' /tmp/serve
step umount /images
