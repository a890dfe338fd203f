#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The mutation gate: each patch here breaks one rule of docs/engine.md; the simulator must find each.
# A patch that no longer applies fails the gate, as does a mutant that survives.
#   run.sh [NAME...]    BYRE_MUTANT_SEEDS: seeds tried for each (2000)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
seeds=${BYRE_MUTANT_SEEDS:-2000}
tree=$root/build/mutants/tree
names=("$@")
[[ ${#names[@]} -gt 0 ]] || mapfile -t names < <(cd tests/mutants && ls ./*.patch | sed 's|^\./||; s|\.patch$||' | sort)

mkdir -p "$tree"
refresh() {  # Only what differs is touched, so that the build stays incremental.
  (cd "$root" && git ls-files -co --exclude-standard) | while read -r file; do
    [[ -f $root/$file ]] || continue
    cmp -s "$root/$file" "$tree/$file" || { mkdir -p "$(dirname "$tree/$file")"; cp "$root/$file" "$tree/$file"; }
  done
}
log=$root/build/mutants/log
build() {
  (cd "$tree" && cmake --preset release >"$log" 2>&1 && cmake --build --preset release --target byre-sim >>"$log" 2>&1)
}

refresh
build || { cat "$log" >&2; echo "the unbroken tree does not build" >&2; exit 1; }
sim=$(find "$tree/build/release" -type f -name byre-sim)
"$sim" --seeds 1..100 >"$log" 2>&1 || { tail -n 20 "$log" >&2; echo "the unbroken engine fails its own simulation" >&2; exit 1; }

failed=0
printf '%-32s %-10s %s\n' mutant verdict 'found by'
for name in "${names[@]}"; do
  refresh
  if ! (cd "$tree" && patch -p1 --forward --quiet -F0 <"$root/tests/mutants/$name.patch") >"$log" 2>&1; then
    printf '%-32s %-10s %s\n' "$name" 'NO PATCH' 'the patch does not apply'
    failed=1
    continue
  fi
  if ! build; then
    printf '%-32s %-10s %s\n' "$name" 'NO BUILD' "$(grep -m1 error: "$log" || true)"
    failed=1
    continue
  fi
  if timeout -k 5 900 "$sim" --seeds "1..$seeds" >"$log" 2>&1; then
    printf '%-32s %-10s %s\n' "$name" SURVIVED "$seeds seeds"
    failed=1
  else
    printf '%-32s %-10s %s\n' "$name" found "$(grep -m1 -iE 'FAIL|seed' "$log" | cut -c1-120)"
  fi
done
exit $failed
