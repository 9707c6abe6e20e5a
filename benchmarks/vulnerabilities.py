"""Known vulnerabilities of the pinned versions: `make audit`, which is pip-audit, and whether it could look anything up.

pip-audit ends with "no known vulnerabilities found" and status 0 also where its data base knows none of the packages, as behind a
mirror. Here that is no answer: it is said to be skipped.

Exit status: 0 nothing is known against what was looked up, or nothing could be looked up, which is said; 1 something is known.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PINS = "constraints.txt"


def judge(report: Mapping[str, Any] | None, why: str = "") -> tuple[int, list[str]]:
    """What follows from pip-audit's report.

    Args:
        report: as its `--format=json` writes it; None where it wrote none.
        why: what it said on the terminal, for that case.

    Returns:
        The exit status, and the lines to print.
    """
    packages = report["dependencies"] if report else []
    looked_up = [package for package in packages if "skip_reason" not in package]
    if not looked_up:
        reason = f"{len(packages)} packages, none known to the data base" if packages else why or "no answer"
        return 0, [f"SKIPPED: the data base of vulnerabilities cannot be reached from here ({reason}). Nothing was checked."]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for package in looked_up
        for flaw in package["vulns"]
    ]
    skipped = [f"not known to the data base: {package['name']}" for package in packages if "skip_reason" in package]
    total = f"{len(looked_up)} of {len(packages)} packages looked up, {len(found)} known vulnerabilities"
    return int(bool(found)), [*skipped, *found, total]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pip_audit", default="pip-audit", metavar="PROGRAM", help="where it is")
    args = parser.parse_args(argv)
    command = [args.pip_audit, f"--requirement={PINS}", "--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = None
    status, lines = judge(report, (done.stderr.strip().splitlines() or [""])[-1])
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
