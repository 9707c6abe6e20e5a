"""Checks the guarantee of a finished or running experiment, without the code that is supposed to keep it.

    python -m sf_fixpo.audit DIR

A run with `--audit_every=N` leaves `audit/*.pt` (sf_fixpo/records/audit_files.py): the batch and the policy as published before
and after an update. For each file both policies are built anew from `config.json` and played over the raw observations; the
reference, which states are stale, and the divergence at every state follow from them, in float64. Nothing that the learner has
concluded is taken over, and none of its code is imported. The bound is compared without any tolerance.

It also looks at what the learner cannot have wrong without being found out here: the policy that acted has to be the one that is
audited, and the update log has to say what was published.

Exit codes: 0 everything holds; 1 the first violation, named, or a file without any state to check; 2 there is nothing to audit,
or it cannot be read.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.utils import log as sample_factory_log

from sf_fixpo import cli
from sf_fixpo.records.audit_files import FOLDER, AuditRecord, UnreadableError, list_files, load
from sf_fixpo.records.recomputation import Networks
from sf_fixpo.records.update_log import UPDATE_LOG, read_rows
from sf_fixpo.records.verdict import Finding, recompute

LOG_TOLERANCE = 0.01  # of the bound: how far a logged divergence, in float32, may be from the recomputed one


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


def check_finding(finding: Finding, record: AuditRecord, path: Path) -> None:
    """Passes where the file keeps the bound, and where the policy that it speaks of is the one that acted.

    Raises:
        ViolationError: naming the policy, the version, the state and the number.
    """
    name = f"{path}: policy {finding.policy_id} version {finding.version}"
    if not finding.checked:
        raise ViolationError(f"{name}: not one state to check: no sample of the batch is valid")
    if finding.enforced and not finding.holds:
        raise ViolationError(
            f"{name}: state {finding.worst_state}: KL {finding.kl_worst!r}; "
            f"{record.kl_stat} over {finding.checked} states {finding.kl_bounded!r} > eps_kl {finding.eps_kl!r}"
        )
    if (state := finding.acted_other) is not None:
        raise ViolationError(
            f"{name}: state {state}: somebody else's function acted: the recorded action parameters are not those of version "
            f"{record.previous_policy_version}, which collected the sample (largest difference {finding.acted:g}), or give an "
            "action that the environment forbids a probability"
        )


# -- the update log -----------------------------------------------------------------------------------------------------------


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
    bounded = ("kl_mean",) if cfg.get("kl_stat", "max") == "mean" else ("kl_max", "kl_max_stale")
    is_bounded = cfg.get("fixup", "every_epoch") != "off"
    unbounded = 0  # rows
    last: dict[int, dict[str, Any]] = {}
    count = resumes = 0
    worst = 0.0
    for row in rows:
        name = f"policy {row['policy_id']} version {row['policy_version']}"
        eps_kl = row["eps_kl"]
        # of an algorithm that promises nothing for single states; the rows before and after such a run are held to theirs
        free = not is_bounded or bool(row.get("method"))
        unbounded += free
        for key in bounded:
            # without stale states it is null, and rows of sf_fixpo 0.1.0 have none
            if key == "kl_max_stale" and row.get(key) is None:
                continue
            value = row[key]
            if not free and not value <= eps_kl:  # so written, NaN is a violation too
                raise ViolationError(f"{UPDATE_LOG}: {name}: {key} {value} > eps_kl {eps_kl}")
            worst = max(worst, value / eps_kl)
        before = last.get(row["policy_id"])
        if before is not None and row["policy_version"] <= before["policy_version"]:
            if row["env_steps"] > before["env_steps"]:
                raise ViolationError(f"{UPDATE_LOG}: {name} comes after version {before['policy_version']}, without a restart")
            resumes += 1
        last[row["policy_id"]] = row
        count += 1
    what = f"largest {' or '.join(bounded)} over eps_kl"
    if unbounded:
        reason = "an --algo other than FIXPO" if is_bounded else "--fixup=off"
        return f"{UPDATE_LOG}: {unbounded} of {count} updates with {reason}, which bounds nothing: {what} {worst:.4f}"
    return f"{UPDATE_LOG}: {count} updates, {resumes} restarts, versions grow, {what} as logged {worst:.4f}"


def check_row(finding: Finding, rows: Iterable[dict[str, Any]], path: Path) -> bool:
    """Compares a file with its row in the update log; a resumed run may have written several, of which one has to agree.

    Args:
        finding: what the file says.
        rows: the whole log.
        path: of the file.

    Returns:
        Whether there is a row.

    Raises:
        ViolationError: the log says something else than what was published.
    """
    own = [row for row in rows if (row["policy_id"], row["policy_version"]) == (finding.policy_id, finding.version)]
    if not own or any(not _disagreements(finding, row) for row in own):
        return bool(own)
    said = "; ".join(_disagreements(finding, own[-1]))
    raise ViolationError(
        f"{path}: policy {finding.policy_id} version {finding.version}: {said}: the log does not say what was published"
    )


def _disagreements(finding: Finding, row: dict[str, Any]) -> list[str]:
    found = []
    if row["eps_kl"] != finding.eps_kl:
        found.append(f"eps_kl {row['eps_kl']!r} in {UPDATE_LOG}, {finding.eps_kl!r} in the file")
    if not _says(row["kl_max"], finding.loggable, finding.eps_kl):
        found.append(f"kl_max {row['kl_max']!r} in {UPDATE_LOG}, {finding.kl_max!r} recomputed")
    if "kl_max_stale" in row and not _says(row["kl_max_stale"], finding.loggable_stale, finding.eps_kl):
        found.append(f"kl_max_stale {row['kl_max_stale']!r} in {UPDATE_LOG}, {finding.kl_max_stale!r} recomputed")
    return found


def _says(logged: float | None, possible: Iterable[float], eps_kl: float) -> bool:
    """Whether a logged maximum is one of those that are possible; NaN among them stands for no state at all."""
    for value in possible:
        if math.isnan(value) and (logged is None or logged == 0.0 or math.isnan(logged)):
            return True
        if logged is None:
            continue
        if math.isinf(value) and not math.isfinite(logged):
            return True
        # float32 errs in proportion: where nothing is enforced a divergence may be many times the bound
        if abs(logged - value) <= LOG_TOLERANCE * max(eps_kl, value) < math.inf:
            return True
    return False


# -- the program --------------------------------------------------------------------------------------------------------------


def audit(directory: Path, quiet: bool = False) -> list[Finding]:
    """Audits every file and the log of one experiment, printing as it goes.

    Networks are what is registered with sample-factory at the moment; in the place of this project's own parts, which are not to
    be believed here, those of sample-factory.

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
    rows = list(read_rows(directory / UPDATE_LOG)) if (directory / UPDATE_LOG).is_file() else None
    findings = []
    networks: Networks = {}
    compared = 0
    for policy_id, version, path in list_files(directory / FOLDER):
        record = load(path)
        if record.policy_version != version:
            raise ViolationError(f"{path}: holds version {record.policy_version}, not the {version} of its name")
        try:
            finding = recompute(record, cfg, path.name, policy_id, networks)
        except UnreadableError as exc:
            raise UnreadableError(f"{path}: {exc}") from exc
        check_finding(finding, record, path)
        compared += check_row(finding, rows or (), path)
        if not quiet:
            print(finding.describe(), flush=True)
        findings.append(finding)
    if rows is None:
        print(f"{UPDATE_LOG}: none here, not checked")
    else:
        print(f"{check_log(rows, cfg)}; {compared} rows agree with their files")
    return findings


def summary(findings: list[Finding]) -> str:
    """The closing line: how much was checked, and the state nearest to its bound."""
    enforced = [finding for finding in findings if finding.enforced]
    checked, stale = sum(f.checked for f in findings), sum(f.stale for f in findings)
    nearest = max(enforced or findings, key=lambda f: f.kl_bounded / f.eps_kl)
    counts = f"{len(findings)} files, {checked} states checked in float64, {stale} of them stale and bound to the previous policy"
    verdict = "The bound holds" if enforced else "No verdict, --fixup=off bounds nothing"
    if 0 < len(enforced) < len(findings):
        counts += f", {len(findings) - len(enforced)} files of --fixup=off, which bounds nothing"
    if undone := sum(f.undone for f in findings):
        counts += f", {undone} without a number in updates that were undone"
    return f"{verdict}: {counts}. Nearest to the bound: {nearest.describe()}."


def import_modules(names: Iterable[str]) -> None:
    """Imports modules that register a user's own networks, from the working directory too.

    Raises:
        UnreadableError: one cannot be imported.
    """
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(name)
        except Exception as exc:  # a module of a user may raise anything
            raise UnreadableError(f"--import={name}: cannot be imported: {type(exc).__name__}: {exc}") from exc


def _register_again(cfg: Any) -> None:
    """What a user's script has registered for the run; of any other run nothing but the records is imported.

    Raises:
        UnreadableError: the script cannot be run any more.
    """
    if not cfg.get("script"):
        return
    from sf_fixpo.running.scripts import ScriptError, adopt

    try:
        adopt(cfg)
    except ScriptError as exc:
        raise UnreadableError(str(exc)) from exc


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sf_fixpo.audit",
        description="Recomputes every KL of an experiment's audit files in float64 and compares it with the bound.",
        epilog="Exit code 0: everything holds. 1: a violation, or no state to check. 2: nothing to audit, or it cannot be read.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="experiment folder with config.json and audit/*.pt")
    parser.add_argument("--quiet", action="store_true", help="only the closing lines")
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module first, which registers encoders, cores or actor-critics with sample-factory; may be repeated",
    )
    args = cli.parse(parser, argv)
    sample_factory_log.setLevel(logging.ERROR)  # it reports every layer it makes
    try:
        import_modules(args.modules)
        _register_again(load_config(args.dir))
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
