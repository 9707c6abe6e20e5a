"""Which states set the pace of a trust region on the largest KL: what the worst of each audited update have in common.

    python -m benchmarks.worst_states train_dir/demo [train_dir/other ...]

A run with `--audit_every=N` has all states of every N-th update. Every state's KL is recomputed from the files, as
`sf_fixpo.audit` does it, and those of the highest KL, a thousandth of each update and one at least, are put beside all states:
how far they lag, whether they are stale, where in their episode and in their piece of a recurrent trajectory they lie, how random
the policy was there, and whether the steps just before and after them moved as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sf_fixpo.audit import load_config
from sf_fixpo.records import audit_files, recomputation, verdict
from sf_fixpo.records.audit_files import FOLDER, AuditRecord

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
SHARE = 0.001  # of an update's states: the worst
NEAR = 10  # steps from the start or the end of an episode


@dataclass(frozen=True, eq=False)
class States:
    """The valid states of one update.

    Attributes:
        kl: [n] to what each is bound to, over eps_kl.
        facts: by name, [n] what is compared.
    """

    kl: Tensor
    facts: dict[str, Tensor]


def entropy(parameters: Tensor, spec: Sequence[tuple[str, int]]) -> Tensor:
    """[N] of the categorical heads, nats; of Gaussian ones the sum of log standard deviations stands for it."""
    total, start = torch.zeros(len(parameters), dtype=torch.float64), 0
    for kind, size in spec:
        stop = start + size * audit_files.PARAMETERS_EACH[kind]
        part = parameters[:, start:stop].double()
        if kind == "categorical":
            logs = part.log_softmax(1)
            total -= (logs.exp() * logs).sum(1)
        else:
            total += part[:, size:].sum(1)
        start = stop
    return total


def steps_since(ends: Tensor, steps: int) -> Tensor:
    """[N] steps since the last end within a trajectory of so many; `steps` where there is none to be seen."""
    found, since = torch.full_like(ends, steps, dtype=torch.int64).view(-1, steps), None
    table = ends.view(-1, steps)
    for t in range(1, steps):
        since = torch.where(table[:, t - 1], 0, steps if since is None else torch.where(since < steps, since + 1, steps))
        found[:, t] = since
    return found.view(-1)


def states_of(record: AuditRecord, cfg: Any, networks: recomputation.Networks) -> States:
    """Every valid state of an update, with what is asked about it.

    Args:
        record: the update.
        cfg: of the run.
        networks: those of the run's earlier files.
    """
    pi, previous, same = verdict.play(record, cfg, networks)
    measured = verdict.measure(record, pi, previous, same)
    bound_to = measured.kl
    steps, piece = cfg.rollout, recomputation.steps_of_piece(cfg)
    to_end = steps_since(record.dones.view(-1, steps).flip(1).roll(1, 1).reshape(-1), steps).view(-1, steps).flip(1).reshape(-1)
    table = bound_to.view(-1, steps)
    beside = torch.stack([table.roll(1, 1), table.roll(-1, 1)]).mean(0).view(-1)
    facts = {
        "lag, versions": (record.previous_policy_version - record.policy_version_of).double(),
        "stale": measured.stale.double(),
        f"within {NEAR} steps of a start": (steps_since(record.dones, steps) < NEAR).double(),
        f"within {NEAR} steps of an end": (to_end < NEAR).double(),
        "place in the piece of trajectory": torch.arange(len(bound_to)).remainder(piece).double() / max(1, piece - 1),
        "entropy of the policy that acted": entropy(record.action_logits, record.action_spec),
        "KL of both steps beside it / eps_kl": beside / record.eps_kl,
    }
    chosen = record.valids
    return States((bound_to / record.eps_kl)[chosen], {name: x[chosen] for name, x in facts.items()})


def summary(updates: Sequence[States]) -> str:
    """Both tables, in Markdown: quantiles of the KL, and the worst states beside all."""
    quantiles = torch.stack([x.kl.quantile(torch.tensor(QUANTILES, dtype=x.kl.dtype)) for x in updates])
    means = torch.stack([x.kl.mean() for x in updates])
    heads = ["KL / eps_kl over the states of an update", "mean", *(f"{100 * q:g} %" for q in QUANTILES[:-1]), "largest"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, take in (("median of the updates", torch.Tensor.median), ("highest of them", torch.Tensor.max)):
        values = [float(take(column)) for column in (means, *quantiles.T)]
        lines.append(f"| {name} | {' | '.join(f'{value:.4f}' for value in values)} |")
    lines += ["", f"| over {len(updates)} updates | all states | the worst {100 * SHARE:g} % |", "|---|---|---|"]
    worst = [x.kl.topk(max(1, round(SHARE * len(x.kl)))).indices for x in updates]
    for name in updates[0].facts:
        everywhere = torch.cat([x.facts[name] for x in updates]).mean()
        there = torch.cat([x.facts[name][i] for x, i in zip(updates, worst, strict=True)]).mean()
        lines.append(f"| {name} | {float(everywhere):.4f} | {float(there):.4f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 where a folder has no audit files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worst_states", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dirs", nargs="+", type=Path, metavar="DIR", help="experiments with --audit_every")
    args = parser.parse_args(argv)
    for folder in args.dirs:
        try:
            cfg = load_config(folder)
            files = [path for _, _, path in audit_files.list_files(folder / FOLDER)]
            networks: recomputation.Networks = {}
            updates = [states_of(audit_files.load(path), cfg, networks) for path in files]
        except (OSError, ValueError) as exc:
            parser.error(str(exc))
        print(f"{folder.name}\n\n{summary(updates)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
