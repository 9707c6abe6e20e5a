"""Checks the guarantee of a finished or running experiment, without the code that is supposed to keep it.

    python -m sf_fixpo.audit DIR [--import=MODULE]

A run with `--audit_every=N` leaves `audit/*.pt`: the observations as the environment gave them, what the actors recorded, and the
policy as published before and after the update. For each file sample-factory's network is built from `config.json`, both policies
are played at every state as actors play them, and the reference, which states are stale, and every divergence are recomputed
(`records.recomputation`); the learner's own divergence, networks and checks are not imported. The bound is compared without any
tolerance. The update log is held against what was found.

Exit codes: 0 everything holds; 1 the first violation, named; 2 there is nothing to audit, or it cannot be read.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.utils import log as sample_factory_log

from sf_fixpo.records import audit_files
from sf_fixpo.records.audit_files import UnreadableError
from sf_fixpo.records.recomputation import LAG_0_TOLERANCE, Finding, recompute
from sf_fixpo.records.update_log import UPDATE_LOG, read_rows

# A figure of the log may differ from the recomputed one by this share of the bound: the learner computes it in float32.
_LOG_TOLERANCE = 0.01


class ViolationError(Exception):
    """The guarantee is broken: the message names the version, the state and the number."""


def load_config(directory: Path) -> Any:
    """Reads sample-factory's config.json.

    Raises:
        UnreadableError: it is missing or not JSON.
    """
    path = directory / "config.json"
    try:
        return AttrDict(json.loads(path.read_text()))
    except (OSError, ValueError) as exc:
        raise UnreadableError(f"{path}: cannot be read: {exc}") from exc


def _largest(row: dict[str, Any], kl_stat: str) -> float:
    """What a row says is bounded; NaN stays NaN."""
    if kl_stat == "mean":
        return row["kl_mean"]
    stale = row.get("kl_max_stale")
    values = [row["kl_max"], *([] if stale is None else [stale])]
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def check_log(rows: Iterable[dict[str, Any]], cfg: Any) -> str:
    """Checks every row of the update log: the bound is kept, and versions only grow.

    A run that was killed and resumed goes back to its last checkpoint: versions may repeat where the count of environment steps
    went back with them.

    Args:
        rows: in the order they were written.
        cfg: the run's configuration.

    Returns:
        What was checked, in one line.

    Raises:
        ViolationError: naming the policy, the version and the number.
    """
    kl_stat = cfg.get("kl_stat", "max")
    is_bounded = cfg.get("fixup", "every_epoch") != "off"
    last: dict[int, dict[str, Any]] = {}
    count = resumes = 0
    worst = 0.0
    for row in rows:
        name = f"policy {row['policy_id']} version {row['policy_version']}"
        value, eps_kl = _largest(row, kl_stat), row["eps_kl"]
        if is_bounded and not value <= eps_kl:  # so written, NaN is a violation too
            raise ViolationError(f"{UPDATE_LOG}: {name}: {kl_stat} KL {value} > eps_kl {eps_kl}")
        before = last.get(row["policy_id"])
        if before is not None and row["policy_version"] <= before["policy_version"]:
            if row["env_steps"] > before["env_steps"]:
                raise ViolationError(f"{UPDATE_LOG}: {name} comes after version {before['policy_version']}, without a restart")
            resumes += 1
        last[row["policy_id"]] = row
        worst = max(worst, value / eps_kl)
        count += 1
    if not is_bounded:
        return f"{UPDATE_LOG}: {count} updates with --fixup=off, which bounds nothing: largest {kl_stat} KL/eps_kl {worst:.4f}"
    return f"{UPDATE_LOG}: {count} updates, {resumes} restarts, versions grow, largest {kl_stat} KL/eps_kl as logged {worst:.4f}"


def _agrees(logged: float | None, possible: tuple[float, ...], tolerance: float) -> bool:
    """Whether the log's figure is one that it can rightly say; None and 0 both stand for 'no such state'."""
    if any(math.isnan(value) for value in possible) and (logged is None or logged == 0.0):
        return True
    return logged is not None and any(abs(logged - value) <= tolerance for value in possible)


def check_against_log(finding: Finding, rows: dict[tuple[int, int], dict[str, Any]]) -> None:
    """Holds what was found against the log's row of the same version, where there is one.

    Args:
        finding: of one file.
        rows: the latest row of each (policy, version).

    Raises:
        ViolationError: the log says something else.
    """
    row = rows.get((finding.policy_id, finding.version))
    if row is None or finding.undone:  # after an update that was undone the log leaves out what is no number
        return
    figures = (
        ("kl_max", row["kl_max"], finding.loggable),
        ("kl_max_stale", row.get("kl_max_stale"), finding.loggable_stale),
    )
    for key, logged, possible in figures:
        if not _agrees(logged, possible, _LOG_TOLERANCE * finding.eps_kl):
            raise ViolationError(
                f"{UPDATE_LOG}: policy {finding.policy_id} version {finding.version}: {key} {logged}, recomputed {possible[0]}: "
                "the log does not say what was published"
            )


def _judge(finding: Finding, path: Path, kl_stat: str) -> None:
    name = f"{path}: policy {finding.policy_id} version {finding.version}"
    if not finding.checked:
        raise ViolationError(f"{name}: no valid state, nothing to check")
    if finding.acted_other is not None:
        raise ViolationError(
            f"{name}: state {finding.acted_other}: the action parameters that its actor recorded are not those of the previous "
            f"weights, by which it acted: they differ by {finding.acted:.3g} where rounding is below {LAG_0_TOLERANCE}"
        )
    if finding.enforced and not finding.holds:
        raise ViolationError(
            f"{name}: state {finding.worst_state}: KL {finding.kl_worst!r}; {kl_stat} over {finding.checked} states "
            f"{finding.kl_bounded!r} > eps_kl {finding.eps_kl!r}"
        )


def audit(directory: Path, quiet: bool = False) -> list[Finding]:
    """Audits every file and the log of one experiment, printing as it goes.

    Args:
        directory: the experiment's folder.
        quiet: leave out the line for each file.

    Raises:
        UnreadableError: nothing to audit.
        ViolationError: at the first broken bound.
    """
    if not directory.is_dir():
        raise UnreadableError(f"{directory}: no such folder")
    cfg = load_config(directory)
    log_path = directory / UPDATE_LOG
    rows = list(read_rows(log_path)) if log_path.is_file() else []
    latest = {(row["policy_id"], row["policy_version"]): row for row in rows}
    findings = []
    for policy_id, version, path in audit_files.list_files(directory / audit_files.FOLDER):
        record = audit_files.load(path)
        if record.policy_version != version:
            raise ViolationError(f"{path}: holds version {record.policy_version}, not the {version} of its name")
        finding = recompute(record, cfg, path.name, policy_id)
        _judge(finding, path, record.kl_stat)
        check_against_log(finding, latest)
        if not quiet:
            print(finding.describe(), flush=True)
        findings.append(finding)
    print(check_log(rows, cfg) if rows else f"{UPDATE_LOG}: none here, not checked")
    return findings


def summary(findings: list[Finding]) -> str:
    """The closing line: how much was checked, and the state nearest to its bound."""
    worst = max(findings, key=lambda f: f.kl_bounded / f.eps_kl)
    checked, stale = sum(f.checked for f in findings), sum(f.stale for f in findings)
    verdict = "The bound holds" if all(f.enforced for f in findings) else "No bound was asked for (--fixup=off)"
    return (
        f"{verdict}: {len(findings)} files, {checked} states checked, {stale} of them stale and held to the previous policy. "
        f"Nearest to the bound: {worst.describe()}."
    )


def _import_modules(names: list[str]) -> None:
    """Imports what registers a user's networks, also from the present folder.

    Raises:
        UnreadableError: it cannot be imported.
    """
    if names and "" not in sys.path:
        sys.path.insert(0, "")
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as exc:  # a user's module may raise anything
            raise UnreadableError(f"--import={name}: cannot be imported: {type(exc).__name__}: {exc}") from exc


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sf_fixpo.audit",
        description="Recomputes every KL of an experiment's audit files and compares it with the bound.",
        epilog="Exit code 0: everything holds. 1: a violation. 2: nothing to audit, or it cannot be read.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="experiment folder with config.json and audit/*.pt")
    parser.add_argument("--quiet", action="store_true", help="only the closing lines")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="registers networks of your own; repeatable",
    )
    args = parser.parse_args(argv)
    sample_factory_log.setLevel(logging.ERROR)  # it reports every layer it makes
    try:
        _import_modules(args.modules)
        findings = audit(args.dir, args.quiet)
    except UnreadableError as exc:
        print(f"Nothing audited: {exc}", file=sys.stderr)
        return 2
    except ViolationError as exc:
        print(f"BROKEN: {exc}", file=sys.stderr)
        return 1
    except (KeyError, TypeError, ValueError) as exc:
        print(f"Nothing audited: {args.dir} is not as expected: {type(exc).__name__}: {exc}", file=sys.stderr)
        return 2
    print(summary(findings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
