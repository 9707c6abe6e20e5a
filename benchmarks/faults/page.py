"""docs/faults.md from the outcomes."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.faults.plan import GOES_ON, HEARTBEAT_SECONDS, NOWHERE, SAVE_SECONDS, Fault, matrix, others
from benchmarks.faults.trial import Outcome

_HEAD = f"""# Faults

What a run does when something breaks, as tried one by one by `make test-faults`, which writes this page. CartPole, in one or five
processes, with `--heartbeat_reporting_interval={HEARTBEAT_SECONDS}` (default 180: a silence is noticed so much later)
and `--save_every_sec={SAVE_SECONDS}` (default 120). *Noticed*: seconds until the run said the cause, or ended; *lost*: seconds of
training that no checkpoint has at the end; *left*: processes, files in shared memory, temporary files.

- A rollout or policy worker that dies, is stopped or hangs: the learner saves, all processes end and are started anew
  (`--max_restarts`, 3); each time is said on the terminal.
- An environment that raises an error loses its episode and is made anew (`--max_env_crashes`, 10 each); an engine that takes its
  process with it costs a restart.
- The learner, its batcher, the one process of a serial run: the run ends with status 1, and the same command goes on from the
  last checkpoint. An evaluation: a warning.
- Time in which the whole run was stopped (a laptop's lid, a cluster that suspends) does not count, nor does a clock being set.
"""


def _row(fault: Fault, outcome: Outcome | None) -> str:
    what = f"| {fault.mode} | {fault.kind} | {fault.place} |"
    if outcome is None:
        return f"{what} not tried yet | | | | | |"
    noticed = "" if outcome.noticed is None else f"{max(0.0, outcome.noticed):.1f}"
    status = "trains on" if outcome.exit == GOES_ON and fault.exit == GOES_ON else str(outcome.exit)
    message = outcome.message.replace("|", "\\|").replace("<", "\\<")
    left = "0" if outcome.left == (0, 0, 0) else ", ".join(map(str, outcome.left))
    return f"{what} {noticed} | {status} | {message} | {outcome.lost:.1f} | {left} | {outcome.wrong or 'ok'} |"


def page(known: Mapping[str, Outcome]) -> str:
    """The whole page."""
    head = ["| mode | fault | where | noticed, s | exit | message | lost, s | left | |", "|---|---|---|---|---|---|---|---|---|"]
    tried = [known[f.name] for f in (*matrix(), *others()) if f.name in known]
    good = sum(not outcome.wrong for outcome in tried)
    count = f"{good} of {len(matrix()) + len(others())} are as they must be"
    parts = [_HEAD, f"{count}{f', {len(tried) - good} are not' if good < len(tried) else ''}.\n", "## The matrix\n"]
    parts += ["\n".join([*head, *(_row(fault, known.get(fault.name)) for fault in matrix())])]
    parts += ["\nCombinations that do not exist:\n"]
    parts += ["\n".join(f"- {mode}: {kind}, {place}: {why}" for (mode, kind, place), why in NOWHERE.items())]
    parts += ["\n## Machine, files, environments\n"]
    parts += ["\n".join([*head, *(_row(fault, known.get(fault.name)) for fault in others())])]
    return "\n".join(parts) + "\n"
