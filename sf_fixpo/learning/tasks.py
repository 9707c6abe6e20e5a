"""Several tasks in one run: what is known of each. T tasks, N samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor

from sf_fixpo.algorithm.trust_region import kl_statistic
from sf_fixpo.learning.networks import TASK_ID


def task_count(obs_space: spaces.Space) -> int:
    """T: how many tasks the observation `task_id` tells apart; 1 where there is none."""
    task_id = obs_space.spaces.get(TASK_ID) if isinstance(obs_space, spaces.Dict) else None
    return int(task_id.high.max()) + 1 if isinstance(task_id, spaces.Box) else 1


def task_figures(kl: Tensor, mask: Tensor, valids: Tensor, task_ids: Tensor, num_tasks: int) -> Tensor:
    """What an update log says of each task.

    Args:
        kl: [N] divergence per state of the weights that are published, nats.
        mask: [N] bool, the states that the bound speaks of.
        valids: [N] bool, the samples that were trained on.
        task_ids: [N] int64.
        num_tasks: T.

    Returns:
        [3, T]: largest divergence, mean divergence, share of the valid samples; 0 for a task without a state.
    """
    largest = kl_statistic(kl, mask, "max", task_ids, num_tasks)[0]
    mean = kl_statistic(kl, mask, "mean", task_ids, num_tasks)[0]
    members = valids & (task_ids == torch.arange(num_tasks, device=kl.device).unsqueeze(1))
    return torch.stack([largest, mean, members.sum(1) / valids.sum().clamp_min(1)])


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
    kl_max, kl_mean, share = (figures[i * tasks : (i + 1) * tasks] for i in range(3))
    keys = ("kl_max", "kl_mean", "beta", "sample_share", "return")
    rows = zip(kl_max, kl_mean, beta if len(beta) == tasks else [*beta] * tasks, share, returns, strict=True)
    return {name: dict(zip(keys, row, strict=True)) for name, row in zip(names, rows, strict=True)}
