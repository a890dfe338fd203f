# SPDX-License-Identifier: Apache-2.0
# Works until "stop" comes over the console: each round has files with random contents, trims what older rounds have left, and
# compares all that is there with its sums, past the cache.  Each fifth round begins with a new file system.
# Files of a round are there, unchanged, for two rounds more, or until the new file system.
fresh() {
  [ $1 = 0 ] || umount /mnt || return
  mkfs.ext4 -q -F /dev/vda && mount -t ext4 $2 /dev/vda /mnt
}
fill() {
  mkdir /mnt/r$1 || return
  for i in 1 2 3; do dd if=/dev/urandom of=/mnt/r$1/f$i bs=256k count=$((i * 4)) 2>/dev/null || return; done
  for i in $(seq 20); do echo "round $1 file $i" >/mnt/r$1/s$i || return; done
  # Holes, and zeros in place of data.
  dd if=/dev/urandom of=/mnt/r$1/h bs=64k count=4 seek=8 2>/dev/null &&
    dd if=/dev/zero of=/mnt/r$1/f3 bs=64k count=3 seek=5 conv=notrunc 2>/dev/null
}
remember() { (cd /mnt && sha256sum r$1/* >/tmp/sums.$1) && sync; }
tell() { sed 's/^/TEST sum /' /tmp/sums.$1; }
compare() {
  echo 3 >/proc/sys/vm/drop_caches
  for i in $(seq $first $1); do (cd /mnt && sha256sum -c /tmp/sums.$i >/dev/null) || return; done
}

round=0
first=0
word=
until [ "$word" = stop ]; do
  if [ $((round % 5)) = 0 ]; then
    options=
    [ $((round % 2)) = 0 ] || options="-o discard"
    step fresh $round "$options" || break
    first=$round
  fi
  if [ $((round - 3)) -ge $first ]; then
    step rm -r /mnt/r$((round - 3)) || break
    first=$((round - 2))
  fi
  step fill $round && step remember $round && step fstrim /mnt && step compare $round || break
  tell $round
  say "round $round"
  round=$((round + 1))
  read -r -t 1 word
done
say "left $first $((round - 1))"
step umount /mnt
