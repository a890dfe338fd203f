#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/peers/fetch.sh FOLDER: brings the QEMU programs that byre is measured by into FOLDER, without installing them.
#
#   FOLDER/10/qemu-img, qemu-io, ...   Debian 13's: the interface that byre has.  Required.
#   FOLDER/11/qemu-img, qemu-io, ...   the newest, from sid: one version, known by its hash.  Used where it can be had.
#
# Each is unpacked with all shared libraries of its own release; the programs are small scripts that run it through
# that release's loader.  Packages come by apt-get, with a state of its own, from the mirror that this machine uses for
# Debian, and are verified by Debian's signature as any other.  Nothing is done when they are there already.
set -euo pipefail
umask 022

readonly programs=(qemu-img qemu-io qemu-nbd qemu-storage-daemon)
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg
readonly newest_version=1:11.1.3+ds-1
readonly newest_sha256=840596e841b8960e58568cefe80a8c7e928aeaebaee8478f7341f7482285d44e
# How long one that could not be had is not looked for again, in minutes.
readonly patience=720

[[ $# -ge 1 ]] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)

say() { printf 'peers: %s\n' "$*" >&2; }

# The mirror that this machine takes its own release from.
mirror() {
  local release
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$release" '$2 == "main" && ($1 == release || $1 == "stable" || $1 == "oldstable") { print $3; exit }'
}

# own_apt STATE COMMAND...: apt with sources and state in the folder STATE, as if nothing were installed.
own_apt() {
  local state=$1 command=$2
  shift 2
  "$command" -q -o Dir::State="$state" -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" \
    -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=- -o APT::Update::Post-Invoke= \
    -o APT::Install-Recommends=false -o Acquire::Languages=none "$@"
}

# bring NAME SUITE [VERSION SHA256]: FOLDER/NAME from Debian's SUITE.  Any command that fails ends it (see fetch).
bring() {
  local name=$1 suite=$2 version=${3:-} sha256=${4:-} uri state=$folder/$1.new/apt root=$folder/$1.new/root
  uri=$(mirror)
  [[ -n $uri ]] || { echo "apt knows no mirror of Debian's main here"; return 1; }
  rm -rf "$folder/$name.new"
  mkdir -p "$state/lists/partial" "$state/cache/archives/partial" "$root"
  : >"$state/status"
  local signed=
  [[ ! -r $keyring ]] || signed="[signed-by=$keyring] "
  echo "deb $signed$uri $suite main" >"$state/sources.list"
  own_apt "$state" apt-get -o APT::Update::Error-Mode=any update
  own_apt "$state" apt-get install --download-only --yes "qemu-utils${version:+=$version}"
  local package
  for package in "$state"/cache/archives/qemu-utils_*.deb; do
    [[ -z $sha256 ]] || echo "$sha256  $package" | sha256sum --check --quiet
  done
  for package in "$state"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
  done
  write_programs "$folder/$name.new"
  rm -rf "$state" "$root/usr/share" "$folder/$name"
  mv "$folder/$name.new" "$folder/$name"
}

# write_programs HOME: the scripts beside HOME/root, which find it from wherever they are called or linked.  Each starts the
# loader under the program's own name, by which others know the process.
write_programs() {
  local home=$1 loader modules program
  loader=$(cd "$home" && find root -name 'ld-linux*.so.*' -path '*/lib/*-linux-gnu/*' | head -n 1)
  modules=${loader%/*}/qemu
  [[ -n $loader && -x $home/$loader ]] || { echo "no loader among the packages"; return 1; }
  mkdir -p "$home/loader"
  for program in "${programs[@]}"; do
    ln -f "$home/$loader" "$home/loader/$program"
    cat >"$home/$program.new" <<SCRIPT
#!/bin/sh
self=\$0
[ ! -L "\$self" ] || self=\$(readlink -f "\$self")
home=\${self%/*}
QEMU_MODULE_DIR=\$home/$modules exec "\$home/loader/$program" --library-path "\$home/${loader%/*}" \\
  --argv0 $program "\$home/root/usr/bin/$program" "\$@"
SCRIPT
    chmod 755 "$home/$program.new"
    mv "$home/$program.new" "$home/$program"
  done
  "$home/qemu-img" --version | head -n 1 >"$home/version"
}

# have NAME: it is there, and runs.
have() { [[ -s $folder/$1/version && -d $folder/$1/loader ]] && "$folder/$1/qemu-img" --version >/dev/null 2>&1; }

# fetch NAME SUITE [VERSION SHA256]: brings it unless it is there; its log is kept when that fails.
fetch() {
  if have "$1"; then return; fi
  say "fetching QEMU $1 from Debian's $2"
  # In a process of its own: where a function is a condition, as this one is, a command that fails does not end it.
  if "$BASH" "${BASH_SOURCE[0]}" "$folder" bring "$@" >"$folder/$1.log" 2>&1 && have "$1"; then
    rm -f "$folder/$1.log"
    say "$(cat "$folder/$1/version")"
    return
  fi
  return 1
}

if [[ ${2:-} == bring ]]; then
  shift 2
  bring "$@"
  exit
fi

exec 9>"$folder/.lock"
flock 9
if ! fetch 10 trixie; then
  cat "$folder/10.log" >&2
  say "QEMU 10 of Debian 13 could not be had; it is what byre's interface is measured by"
  exit 1
fi
grep -q 'version 10\.0\.' "$folder/10/version" || { say "not the 10.0 expected: $(cat "$folder/10/version")"; exit 1; }

wanted="$newest_version $newest_sha256"
if [[ -d $folder/11 && $(cat "$folder/11/pinned" 2>/dev/null) != "$wanted" ]]; then rm -rf "$folder/11"; fi
if [[ ! -d $folder/11 && -n $(find "$folder/11.log" -mmin "-$patience" 2>/dev/null) ]]; then
  say "QEMU 11 ($newest_version) could not be had (see $folder/11.log); the tests go on without it"
elif fetch 11 sid "$newest_version" "$newest_sha256"; then
  echo "$wanted" >"$folder/11/pinned"
else
  say "QEMU 11 ($newest_version) could not be had (see $folder/11.log); the tests go on without it"
fi
