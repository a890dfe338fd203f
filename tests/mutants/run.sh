#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The mutation gate: each mutant here breaks one rule of docs/engine.md; the simulator must find each.
# One that no longer applies fails the gate, as does one that survives.  mutate.py says how they are written.
#   run.sh [NAME...]    BYRE_MUTANT_SECONDS: time for each scenario on each mutant (60)
#   run.sh --apply      Only sees that every mutant applies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
mutate() { /usr/bin/python3 "$root/tests/mutants/mutate.py" "$@"; }
[[ ${1:-} != --apply ]] || { mutate check "$root"; exit; }
limit=${BYRE_MUTANT_SECONDS:-60}
# In the order in which they find most, soonest.
scenarios=(mix faults ghosts readers late no-space kth-fault cuts pairs snapshots snapshot-faults online amend snapshot-pairs bitmaps bitmap-faults repair)
tree=$root/build/mutants/tree
names=("$@")
[[ ${#names[@]} -gt 0 ]] || mapfile -t names < <(cd tests/mutants && ls ./*.mutant | sed 's|^\./||; s|\.mutant$||' | sort)

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
"$sim" --smoke >"$log" 2>&1 || { tail -n 20 "$log" >&2; echo "the unbroken engine fails its own simulation" >&2; exit 1; }

failed=0
printf '%-32s %-10s %s\n' mutant verdict 'found by'
for name in "${names[@]}"; do
  refresh
  if ! mutate apply "$tree" "$name" >"$log" 2>&1; then
    printf '%-32s %-10s %s\n' "$name" 'NO PLACE' "$(head -n 1 "$log")"
    failed=1
    continue
  fi
  if ! build; then
    printf '%-32s %-10s %s\n' "$name" 'NO BUILD' "$(grep -m1 error: "$log" || true)"
    failed=1
    continue
  fi
  found=
  mapfile -t order < <({ mutate scenario "$name"; printf '%s\n' "${scenarios[@]}"; } | awk '$0 != "" && !seen[$0]++')
  for scenario in "${order[@]}"; do
    start=$SECONDS
    timeout -k 5 "$limit" "$sim" --scenario "$scenario" --seeds 1..100000 >"$log" 2>&1 || true
    if grep -q '^FAILED' "$log"; then
      found="$(grep -m1 '^FAILED' "$log" | sed 's/^FAILED //'): $(grep -m1 -A1 '^FAILED' "$log" | tail -n 1 | cut -c1-100)"
      break
    fi
  done
  if [[ -n $found ]]; then
    printf '%-32s %-10s %s\n' "$name" found "$found"
  else
    printf '%-32s %-10s %s\n' "$name" SURVIVED "${#order[@]} scenarios of $limit s"
    failed=1
  fi
done
exit $failed
