#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The mutation gate: each mutant here breaks one rule of docs/engine.md; the simulator must find each.

    gate.py SIM [NAME...]    SIM is the byre-sim of the unbroken tree; BYRE_MUTANT_SECONDS: time for each scenario (60)

1. One byre-sim with all mutants is built in build/mutants (mutate.py: combined()), and one more for each that has to
   be built alone.
2. With no mutant chosen it must pass its own smoke test, with the same trace hashes as SIM.
3. Each mutant is played, one on each processor, in its own scenario first and then in all others.
A mutant that no longer applies fails the gate, as does one that survives.
"""
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import mutate  # noqa: E402

ROOT = mutate.FOLDER.parent.parent
LIMIT = float(os.environ.get("BYRE_MUTANT_SECONDS", "60"))
# In the order in which they find most, soonest.
SCENARIOS = ("mix faults late-landing readers late no-space kth-fault cuts pairs snapshots snapshot-faults online amend "
             "snapshot-pairs bitmaps bitmap-faults header-faults damaged graph copy-before-write repair commit rebase "
             "in-order live-mirror live-commit live-commit-below live-stream live-backup live-steps "
             "live-faults").split()


def say(text):
    print(text, file=sys.stderr, flush=True)


def fill(tree, changed):
    """Makes TREE a copy of the sources with `changed` in it.  Only what differs is touched, so that builds stay short."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    names = {name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file()}
    wanted = {tree / name: (ROOT / name).read_bytes() for name in names}
    for path, text in changed.items():
        wanted[tree / path.relative_to(ROOT)] = text.encode()
    for path, content in wanted.items():
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for folder in ("src", "tests"):
        for path in (tree / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc" and path not in wanted:
                path.unlink()


def build(tree, what):
    """The byre-sim of the tree, or None."""
    log = tree.parent / f"{tree.name}.log"
    with log.open("w") as out:
        # A mutant may leave a variable unused.
        subprocess.run(["cmake", "--preset", "release", "-DCMAKE_CXX_FLAGS=-w"], cwd=tree, stdout=out, stderr=out, check=False)
        command = ["cmake", "--build", "--preset", "release", "--target", "byre-sim"]
        began = time.monotonic()
        with subprocess.Popen(command, cwd=tree, stdout=out, stderr=out) as process:
            while True:
                try:
                    code = process.wait(10)
                    break
                except subprocess.TimeoutExpired:
                    steps = re.findall(r"^\[(\d+)/(\d+)\]", log.read_text(), re.MULTILINE)
                    say(f"building {what}: {' of '.join(steps[-1]) if steps else 'begun'}, {time.monotonic() - began:.0f} s")
    if code != 0:
        say("\n".join(re.findall(r"^.*error:.*$", log.read_text(), re.MULTILINE)[:10]) or log.read_text()[-2000:])
        say(f"{what} does not build ({log})")
        return None
    return tree / "build/release/tests/sim/byre-sim"


def smoke(sim):
    """What a smoke test with hashes prints, or None when it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "BYRE_MUTANT"}
    ran = subprocess.run([sim, "--smoke", "--hashes"], capture_output=True, text=True, env=environment, check=False)
    if ran.returncode != 0:
        say(ran.stdout[-2000:])
        return None
    return sorted(line for line in ran.stdout.splitlines() if re.fullmatch(r"\S+ \d+ [0-9a-f]{16}", line))


def hunt(sim, name, chosen):
    """Plays the mutant until it is found: (scenario and seed with what broke, or None; seconds)."""
    began = time.monotonic()
    own = mutate.parse(name)[0]
    for scenario in dict.fromkeys([*([own] if own else []), *SCENARIOS]):
        # timeout(1) ends its children, too, in which the seeds are played.
        command = ["timeout", "-k", "5", str(LIMIT), sim, "--scenario", scenario, "--seeds", "1..100000"]
        said = subprocess.run(command, env={**os.environ, "BYRE_MUTANT": chosen}, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False).stdout
        failure = re.search(r"^FAILED (.*)\n(.*)", said.decode(errors="replace"), re.MULTILINE)
        if failure:
            return f"{failure.group(1)}: {failure.group(2)[:100]}", time.monotonic() - began
    return None, time.monotonic() - began


def main(words):
    if not words:
        say(__doc__)
        return 2
    unbroken, names = words[0], words[1:]
    names = names or sorted(path.stem for path in mutate.FOLDER.glob("*.mutant"))
    folder = ROOT / "build/mutants"
    files = mutate.sources(ROOT)
    began = time.monotonic()
    failed = []

    changed, together, alone = mutate.combined(files)
    changed[ROOT / "src/base/mutant_choice.cc"] = mutate.chooser(together)
    sims = {}
    # One that is alone has its own text of the files that it changes; all others stay, so that few are built again.
    for name in ["", *(name for name in names if name in alone)]:
        fill(folder / "all", {**changed, **(mutate.mutated(name, files) if name else {})})
        built = build(folder / "all", name or f"{len(together)} mutants in one")
        if built:
            sims[name] = folder / f"byre-sim-{name or 'all'}"
            shutil.copy(built, sims[name])
        elif not name:
            return 1
        else:
            failed.append(name)
    say(f"built after {time.monotonic() - began:.0f} s: {len(together)} mutants in one, {len(sims) - 1} alone")

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes, plain = pool.map(smoke, [sims[""], unbroken])
        if hashes is None or plain is None:
            say("the unbroken engine fails its own simulation")
            return 1
        if hashes != plain or not plain:
            say(f"with no mutant chosen the traces differ: {next((pair for pair in zip(hashes, plain) if len(set(pair)) > 1), '')}")
            return 1
        say(f"with no mutant chosen all {len(plain)} trace hashes are those of the unbroken tree")
        print(f"{'mutant':<36} {'verdict':<9} {'s':>6}  found by")
        hunts = {}
        for name in names:
            if name in together:
                hunts[pool.submit(hunt, sims[""], name, name)] = name
            elif name in sims:
                hunts[pool.submit(hunt, sims[name], name, "")] = name
        for done in concurrent.futures.as_completed(hunts):
            found, seconds = done.result()
            print(f"{hunts[done]:<36} {'found' if found else 'SURVIVED':<9} {seconds:6.1f}  {found or ''}", flush=True)
            if not found:
                failed.append(hunts[done])
    print(f"{len(names) - len(failed)} of {len(names)} found, {time.monotonic() - began:.0f} s"
          + (f"; not found: {' '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except mutate.Wrong as wrong:
        sys.exit(str(wrong))
