#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Gets what the tests in interop/ and system/ read, once: into build/test-inputs, or the folder named.
#   files.ext4    256 MiB file system with some 180 MiB of this machine's files, made by mke2fs -d
#   rescue.iso    grub's rescue disk: a CD that is a hard disk, too
#   vmlinux       Debian's cloud kernel, unpacked (its own unpacking is slow under emulation)
#   initrd.cpio   busybox, virtio_blk, nbd, mkfs.ext4, and the jobs in system/guest
# Packages come from apt; nothing is installed.
set -euo pipefail
readonly here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
mkdir -p "${1:-$here/../build/test-inputs}"
cd "${1:-$here/../build/test-inputs}"
readonly inputs=$PWD
exec 9>"$inputs/.lock"
flock 9

work=$(mktemp -d "$inputs/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# package NAME FOLDER: its files, in that folder.
package() {
  (
    cd "$work"
    for attempt in 1 2 3; do
      apt-get download -q "$1" >apt.log 2>&1 && break
      if [[ $attempt -eq 3 ]]; then
        cat apt.log >&2
        exit 1
      fi
      # The lists may be missing or old.
      apt-get update -q >update.log 2>&1 || true
    done
    dpkg -x "$1"_*.deb "$2"
  )
}

make_ext4() {
  local files=$work/files
  mkdir "$files"
  # Whole files until there are enough; of every kind, so that parts of the disk compress and others do not.
  find /usr/share /usr/bin /usr/lib/x86_64-linux-gnu /usr/lib/gcc -xdev -type f -size -24M -readable -printf '%s %P %H\n' \
    2>/dev/null | LC_ALL=C sort -k2 | awk '{ n += 1 } n % 4 == 1 && (bytes += $1) < 180e6 { print $3 "/" $2 }' >"$work/list"
  cpio --quiet -pdm "$files" <"$work/list" 2>/dev/null || true
  truncate -s 256M "$work/ext4"
  mke2fs -q -t ext4 -F -d "$files" "$work/ext4"
  mv "$work/ext4" files.ext4
}

make_iso() {
  package grub-rescue-pc "$work/grub"
  cp "$(find "$work/grub" -name '*cdrom.iso' -print -quit)" "$work/iso"
  mv "$work/iso" rescue.iso
}

make_kernel() {
  local name version
  [[ -n $(apt-cache depends linux-image-cloud-amd64 2>/dev/null) ]] || apt-get update -q >/dev/null 2>&1 || true
  name=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
  version=${name#linux-image-}
  package "$name" "$work/kernel"
  depmod -b "$work/kernel" "$version"
  /usr/bin/python3 "$here/system/guest/unpack_kernel.py" "$work/kernel/boot/vmlinuz-$version" "$work/vmlinux"
  # The modules in the order in which they load.
  mkdir "$work/modules"
  local module
  : >"$work/modules/order"
  for module in virtio_pci virtio_blk; do
    modprobe -d "$work/kernel" -S "$version" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
  done | awk '!seen[$0]++' | while read -r module; do
    cp "$module" "$work/modules/"
    basename "$module" >>"$work/modules/order"
  done
  # A job that wants it loads it by itself.
  cp "$(modprobe -d "$work/kernel" -S "$version" --show-depends nbd | awk '$1 == "insmod" { print $2 }')" "$work/modules/"
  rm -rf modules
  mv "$work/modules" modules
  mv "$work/vmlinux" vmlinux
}

# Made anew when a job has changed, so the name says which jobs are in it.
make_initrd() {
  local root=$work/root tool library
  mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,mnt,lib/modules}
  cp "$(command -v busybox)" "$root/bin/busybox"
  for tool in $(busybox --list); do [[ -e $root/bin/$tool ]] || ln -s busybox "$root/bin/$tool"; done
  cp modules/* "$root/lib/modules/"
  cp -L "$(command -v mkfs.ext4)" "$root/sbin/mkfs.ext4"
  ldd "$root/sbin/mkfs.ext4" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
  done
  cp "$here"/system/guest/*.sh "$root/"
  chmod +x "$root"/*.sh
  ln -s init.sh "$root/init"
  (cd "$root" && find . | LC_ALL=C sort | cpio --quiet -o -H newc) >"$work/initrd"
  mv "$work/initrd" initrd.cpio
  printf '%s\n' "$jobs" >initrd.of
}

[[ -e files.ext4 ]] || make_ext4
[[ -e rescue.iso ]] || make_iso
[[ -e vmlinux && -e modules/order && -e modules/nbd.ko ]] || make_kernel
jobs=$(cat "$here"/system/guest/*.sh | sha256sum)
[[ -e initrd.cpio && $(cat initrd.of 2>/dev/null) == "$jobs" ]] || make_initrd
