"""One typed record per policy improvement step: a row of the update log and the `fixpo/` scalars.

The update log (`updates.jsonl`) is the one source for plots, the closing summary and the audit. A row is written with a single
`write` to a file opened for appending, so that several learner processes may share it and a crash tears at most the last line.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

UPDATE_LOG = "updates.jsonl"
TRACE_LOG = "trace.jsonl"
NEAR_BOUND = 0.9  # of eps_kl: a state with more is counted in `near_bound_fraction`
FIXPO_STATS = "fixpo"  # key of the update record in the learner's messages to the runner


@dataclass(frozen=True)
class UpdateRecord:
    """What one policy improvement step did.

    KL values are in nats, of the weights that were published unless the name says otherwise; times are in seconds.

    Attributes:
        policy_id: which policy of a population.
        policy_version: version under which the result was published.
        env_steps: environment steps (frames) this policy had consumed when the update ended.
        eps_kl: the bound in force.
        kl_max: largest KL to the reference, over the valid states of the batch that are bound to it.
        kl_max_stale: largest KL to the previous policy, over the stale states, which are bound to that; None without any.
        kl_mean: mean KL over the states of `kl_max`.
        kl_max_primary: largest KL seen by a primary step.
        beta: the multiplier after the update, or one per task.
        primary_steps: gradient steps of the primary phase.
        fixup_steps: gradient steps of the fixup phase.
        check_passes: full evaluations of the constraint.
        backtracks: 1 where the update ended on the line back to the previous policy, else 0.
        backtrack_scale: the alpha that was published: 1 without backtracking, 0 for the previous policy itself.
        rolled_back: whether a value that is not finite sent the update back to the previous policy.
        statistics_scale: how far towards the batch's statistics the observation normaliser was let go before the update: 1 all
            the way, less where that alone would have moved the policy too far.
        lr_halvings: how often the fixup phase halved its learning rate on a plateau.
        stale_fraction: share of the valid states at which the previous policy itself was further than eps_kl from the behaviour
            policy (`--reference=behaviour`); they are bound to the previous policy.
        valid_fraction: share of the batch that could be trained on.
        skipped_minibatches: minibatches without enough valid samples to take a step on.
        lag_mean: mean age of the valid samples, in policy versions.
        beta_of_mean: the multiplier of the mean KL after the update (`--kl_mean_target`), or one per task; 0 without it.
        near_bound_fraction: share of the valid states whose KL is above 0.9 eps_kl.
        beta_zero_fraction: share of the gradient steps after which beta was 0.
        entropy: mean over the valid states of the published policy's entropy, nats; None in rows of older versions.
        explained_variance: of the critic that collected the batch, 1 - Var(returns - values) / Var(returns); None with V-trace,
            and in rows of older versions.
        health: what is wrong with the run by the last updates, by name (`records.health`); mostly empty.
        host_reads: times the host waited for a number of the device.
        seconds: time per phase: `prepare`, `self_test` (first update), `reference`, `statistics`,
            `policy` (TRPO), `primary`, `check`, `fixup`, `back`, `publish`.
        tasks: in runs on several tasks, by name: `kl_max`, `kl_mean`, `beta`, `sample_share` (of the valid samples of the batch),
            `return` (mean unshaped return of the latest episodes, as old as a few seconds; None before the first has ended),
            `explained_variance` (as above, of this task; None with V-trace).
        ranks: in runs of several learners, one for each: `valid_fraction`, `lag_mean`, `stale_fraction`, `kl_max`, `kl_mean`, and
            `waited`, the seconds it waited for the others to come to the update. All other figures are of the samples of all.
        method: what an algorithm other than FixPO says of its update, numbers by name (`baselines`); such a run may pass eps_kl.
    """

    policy_id: int
    policy_version: int
    env_steps: int
    eps_kl: float
    kl_max: float
    kl_mean: float
    kl_max_primary: float
    beta: float | list[float]
    primary_steps: int
    fixup_steps: int
    check_passes: int
    backtracks: int
    backtrack_scale: float
    rolled_back: bool
    statistics_scale: float
    lr_halvings: int
    stale_fraction: float
    valid_fraction: float
    skipped_minibatches: int
    lag_mean: float
    host_reads: int
    kl_max_stale: float | None = None
    beta_of_mean: float | list[float] = 0.0
    near_bound_fraction: float = 0.0
    beta_zero_fraction: float = 0.0
    entropy: float | None = None
    explained_variance: float | None = None
    health: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, dict[str, float | None]] = field(default_factory=dict)
    method: dict[str, float] = field(default_factory=dict)
    ranks: list[dict[str, float]] = field(default_factory=list)

    @property
    def kl_max_rel(self) -> float:
        """The larger of kl_max and kl_max_stale over eps_kl: above 1 would be a broken guarantee."""
        return max(self.kl_max, self.kl_max_stale or 0.0) / self.eps_kl

    def to_row(self) -> dict:
        """The row of the update log; `tasks`, `ranks` and `method` are there only where a run has any."""
        row = asdict(self)
        for key in ("tasks", "method", "ranks"):
            if not row[key]:
                del row[key]
        return row

    def to_scalars(self) -> dict[str, float]:
        """Scalars for TensorBoard and W&B, without the `fixpo/` prefix."""
        row = self.to_row()
        for key in ("policy_id", "policy_version", "env_steps", "health"):
            del row[key]
        seconds = row.pop("seconds")
        betas = {key: row.pop(key) for key in ("beta", "beta_of_mean")}
        tasks, method, ranks = row.pop("tasks", {}), row.pop("method", {}), row.pop("ranks", [])
        scalars = {key: float(value) for key, value in row.items() if value is not None}
        scalars["kl_max_rel"] = self.kl_max_rel
        scalars.update({f"method/{key}": value for key, value in method.items()})
        scalars.update({key: beta for key, beta in betas.items() if not isinstance(beta, list)})
        for number, (name, figures) in enumerate(tasks.items()):
            scalars.update({f"{number:02d}_{name}/{key}": value for key, value in figures.items() if value is not None})
        for number, figures in enumerate(ranks):
            scalars.update({f"rank_{number:02d}/{key}": value for key, value in figures.items()})
        scalars.update({f"seconds_{phase}": value for phase, value in seconds.items()})
        return scalars


def append_row(path: str | os.PathLike, row: dict) -> None:
    """Appends one JSON line with one `write`, creating the file where there is none.

    Raises:
        OSError: the disk is full, for one; of the line nothing is left.
    """
    data = (json.dumps(row) + "\n").encode()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(fd, data)
        if written < len(data):  # as much as the disk still had room for: half a line would spoil the next one too
            os.ftruncate(fd, os.fstat(fd).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
    finally:
        os.close(fd)


def read_rows(path: str | os.PathLike) -> Iterator[dict]:
    """Yields the rows of a JSON-lines log; a torn last line (a crash in mid-write) is left out.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: a line before the last one is not JSON.
    """
    lines = Path(path).read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as exc:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number} is not JSON: {exc}") from exc


def latest_rows(path: str | os.PathLike, policy_id: int = 0) -> list[dict]:
    """Rows of one policy in the order of its versions, the last written of each version.

    A run that was killed and resumed repeats the versions after its last checkpoint: the later row is the one that lived on.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: a row is none of an update log.
    """
    rows: list[dict] = []
    for number, row in enumerate(read_rows(path), start=1):
        if fault := row_fault(row):
            raise ValueError(f"row {number} {fault}")
        if row["policy_id"] == policy_id:
            while rows and rows[-1]["policy_version"] >= row["policy_version"]:
                rows.pop()
            rows.append(row)
    return rows


# What every reader of a row relies on; other columns may be missing in rows of older versions.
_ALWAYS = ("policy_id", "policy_version", "env_steps", "eps_kl", "kl_max", "beta", "primary_steps", "fixup_steps")
_LARGEST = 2**63  # of whole numbers, which become NumPy's
_LARGEST_FLOAT = 1e100  # of numbers that are added up


def _is_whole(x: Any) -> bool:
    return type(x) is int and -_LARGEST <= x < _LARGEST


def is_number(x: Any) -> bool:
    """Whether something read from JSON is a number that NumPy can have; NaN is one."""
    return (type(x) is float and not _LARGEST_FLOAT < abs(x) < math.inf) or _is_whole(x)


def is_number_or_none(x: Any) -> bool:
    """As `is_number`, or None."""
    return x is None or is_number(x)


# By a column's type as it is written in `UpdateRecord`.
_FITS: dict[str, Callable[[Any], bool]] = {
    "int": _is_whole,
    "float": is_number,
    "bool": lambda x: isinstance(x, bool) or x in (0, 1),
    "float | None": is_number_or_none,
    "float | list[float]": lambda x: is_number(x) or (isinstance(x, list) and bool(x) and all(map(is_number, x))),
    "list[str]": lambda x: isinstance(x, list) and all(isinstance(item, str) for item in x),
    "dict[str, float]": lambda x: isinstance(x, dict) and all(map(is_number, x.values())),
    "list[dict[str, float]]": lambda x: (
        isinstance(x, list) and all(isinstance(rank, dict) and all(map(is_number, rank.values())) for rank in x)
    ),
    "dict[str, dict[str, float | None]]": lambda x: (
        isinstance(x, dict) and all(isinstance(task, dict) and all(map(is_number_or_none, task.values())) for task in x.values())
    ),
}


def row_fault(row: Any) -> str | None:
    """Why something is no row of an update log, as the end of a sentence; None where it is one."""
    if not isinstance(row, dict):
        return "is no JSON object"
    for column in fields(UpdateRecord):
        if column.name in row and not _FITS[str(column.type)](row[column.name]):
            return f"has {str(row[column.name])[:40]!r} as {column.name}, which must be {column.type}"
    missing = [name for name in _ALWAYS if name not in row]
    if missing:
        return f"has no number as {missing[0]}"
    return None if row["eps_kl"] > 0 else "has an eps_kl that is not above 0"


def kl_over_bound(row: dict[str, Any]) -> float:
    """The KL that the guarantee is about, over its bound: the larger of `kl_max` and `kl_max_stale`; NaN where one is NaN."""
    kls = [row["kl_max"], row.get("kl_max_stale") or 0.0]
    return math.nan if any(math.isnan(kl) for kl in kls) else max(kls) / row["eps_kl"]


def drop_torn_line(path: str | os.PathLike) -> None:
    """Cuts a half-written last line off a log that a crash left behind, so that a resumed run may append to it."""
    path = Path(path)
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as log_file:
            log_file.truncate(data.rfind(b"\n") + 1)
