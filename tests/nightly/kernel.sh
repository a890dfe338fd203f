#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A kernel with its modules for libguestfs, once: kernel.sh FOLDER puts vmlinuz, modules and version there.  Debian's usual
# kernel; it need not be that of this machine, which may have none.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$1"
cd "$1"
exec 9>.lock
flock 9
[[ ! -e version ]] || exit 0
work=$(mktemp -d "$PWD/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
[[ -n $(apt-cache depends linux-image-amd64 2>/dev/null) ]] || apt-get update -q >/dev/null
name=$(apt-cache depends linux-image-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
(cd "$work" && { apt-get download -q "$name" || { apt-get update -q && apt-get download -q "$name"; } } >log 2>&1) ||
  { cat "$work/log" >&2; exit 1; }
dpkg -x "$work"/linux-image-*.deb "$work/root"
version=${name#linux-image-}
depmod -b "$work/root" "$version"
rm -rf modules
mv "$work/root/lib/modules/$version" modules
mv "$work/root/boot/vmlinuz-$version" vmlinuz
echo "$version" >version
