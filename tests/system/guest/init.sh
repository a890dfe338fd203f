#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# First process of the guest: loads the disk's driver, runs the job that the kernel's command line names, powers off.
# What the test reads stands on lines that start with "TEST ".
export PATH=/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
say() { echo "TEST $*"; }
# step WORDS...: runs them; the test fails unless all steps say rc=0.
step() {
  "$@"
  code=$?
  say "step rc=$code $*"
  return $code
}
while read -r module; do insmod "/lib/modules/$module" || say "insmod $module failed"; done </lib/modules/order
tries=0
until [ -b /dev/vda ] || [ $tries -eq 100 ]; do
  usleep 100000
  tries=$((tries + 1))
done
queue=/sys/block/vda/queue
say "disk sectors=$(cat /sys/block/vda/size) cache=$(cat $queue/write_cache | tr -d ' ')" \
  "discard=$(cat $queue/discard_max_bytes) zeroes=$(cat $queue/write_zeroes_max_bytes)"
for word in $(cat /proc/cmdline); do
  case $word in job=*) . "/job-${word#job=}.sh" ;; esac
done
say end
sync
poweroff -f
