"""Several tasks in one run: what is known of each. T tasks, N samples of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from sf_fixpo.algorithm.trust_region import kl_statistic

TASK_ID = (
    "task_id"  # observation that says which task a sample is of: for the learner's books and the critic, never for the policy
)
# What `task_figures` gives of each task, in this order.
FIGURES = ("kl_max", "kl_mean", "sample_share", "explained_variance")
_COLUMNS = ("kl_max", "kl_mean", "beta", "sample_share", "return", "explained_variance")


def task_count(obs_space: spaces.Space) -> int:
    """T: how many tasks the observation `task_id` tells apart; 1 where there is none."""
    task_id = obs_space.spaces.get(TASK_ID) if isinstance(obs_space, spaces.Dict) else None
    return int(task_id.high.max()) + 1 if isinstance(task_id, spaces.Box) else 1


def task_figures(
    kl: Tensor,
    mask: Tensor,
    valids: Tensor,
    task_ids: Tensor,
    num_tasks: int,
    values: Tensor | None = None,
    returns: Tensor | None = None,
) -> Tensor:
    """What an update log says of each task.

    Args:
        kl: [N] divergence per state of the weights that are published, nats.
        mask: [N] bool, the states that the bound speaks of.
        valids: [N] bool, the samples that were trained on.
        task_ids: [N] int64.
        num_tasks: T.
        values: [N] of the critic that collected the samples, in whatever units each task has.
        returns: [N] its targets, in the same; None with V-trace.

    Returns:
        [4, T]: `FIGURES`; 0 for a task without a state, explained variance not a number where there are no targets.
    """
    largest = kl_statistic(kl, mask, "max", task_ids, num_tasks)[0]
    mean = kl_statistic(kl, mask, "mean", task_ids, num_tasks)[0]
    members = valids & (task_ids == torch.arange(num_tasks, device=kl.device).unsqueeze(1))
    explained = torch.full_like(largest, torch.nan)
    if values is not None and returns is not None:
        explained = _explained_variance(values, returns, members).to(largest.dtype)
    return torch.stack([largest, mean, members.sum(1) / valids.sum().clamp_min(1), explained])


def _explained_variance(values: Tensor, returns: Tensor, members: Tensor) -> Tensor:
    """[T] `losses.explained_variance` over the samples of each task, `members` [T, N]; without a kernel for each."""
    count = members.sum(1).clamp_min(1)

    def mean(x: Tensor) -> Tensor:
        return torch.where(members, x, 0.0).sum(1) / count

    def variance(x: Tensor) -> Tensor:
        return mean((x - mean(x).unsqueeze(1)).square())

    total = variance(returns)
    return torch.where(total > 0, 1 - variance(returns - values) / total, 0.0)


def task_rows(
    names: Sequence[str], figures: Sequence[float], beta: Sequence[float], returns: Sequence[float | None]
) -> dict[str, dict[str, float | None]]:
    """The figures of an update by task, as the update log has them.

    Args:
        names: of the tasks, in the order of their ids; numbers take their place where there are not T of them.
        figures: what `task_figures` gave, flattened.
        beta: one for each task, or one for all.
        returns: T recent mean returns.
    """
    tasks = len(returns)
    if len(names) != tasks:
        names = [f"task_{i}" for i in range(tasks)]
    columns: dict[str, Any] = dict(zip(FIGURES, (figures[i * tasks : (i + 1) * tasks] for i in range(len(FIGURES))), strict=True))
    columns |= {"beta": beta if len(beta) == tasks else [*beta] * tasks, "return": returns}
    columns["explained_variance"] = [None if math.isnan(x) else x for x in columns["explained_variance"]]
    rows = zip(*(columns[key] for key in _COLUMNS), strict=True)
    return {name: dict(zip(_COLUMNS, row, strict=True)) for name, row in zip(names, rows, strict=True)}
