"""The figures of an update over all ranks: each row says what it is of, and the rows are put together on the host.

Shapes: R ranks, F figures of an update, T tasks, K = F + betas + 4 T (in runs on several tasks) + 7 + T numbers of a rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sf_fixpo.learning.batch import Batch
from sf_fixpo.learning.tasks import FIGURES

# By what the mean over the ranks is weighed; the largest counts of all others.
_LARGEST = ("kl_max", "kl_max_stale", "kl_max_primary")
_OF_VALID = ("stale_fraction", "explained_variance")
_OF_BOUND = ("kl_mean",)

_SIZE, _VALID, _SHOWN, _BOUND, _STALE, _LAG, _WAITED = range(7)


def own_row(
    numbers: Tensor, shown: Tensor, valids: Tensor, batch: Batch, waited: float, returns: Sequence[float | None]
) -> Tensor:
    """[K] float64 of one rank, for `put_together`.

    Args:
        numbers: [F + ...] what the update log says, of this rank's samples.
        shown: [N] bool, the states that the figures are of.
        valids: [N] bool.
        batch: of the update.
        waited: seconds for the other ranks.
        returns: T recent mean returns.
    """
    counts = torch.stack([valids.sum(), shown.sum(), (shown & ~batch.stale).sum(), batch.stale.sum()])
    host = np.array([len(batch), batch.lag[0], waited, *(np.nan if x is None else x for x in returns)])
    own = torch.from_numpy(host).to(numbers.device)
    return torch.cat([numbers.double(), own[:1], counts.double(), own[1:]])


@dataclass(frozen=True)
class Together:
    """What the ranks say together.

    Attributes:
        numbers: as one learner's, of the samples of all.
        lag_mean: mean age of the valid samples.
        returns: T recent mean returns; None where no rank has seen one.
        ranks: of each rank, for the row.
    """

    numbers: list[float]
    lag_mean: float
    returns: Sequence[float | None]
    ranks: list[dict[str, float]]


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Over the ranks; what a rank without weight says may be no number."""
    counted = weights > 0
    return float((values[counted] * weights[counted]).sum() / weights[counted].sum()) if counted.any() else 0.0


def put_together(table: np.ndarray, names: Sequence[str], num_tasks: int) -> Together:
    """The figures of all samples.

    Args:
        table: [R, K] the rows of all ranks.
        names: of the F figures.
        num_tasks: T in a run on several tasks, whose figures the rows have; else 0.
    """
    returns_at = table.shape[1] - max(1, num_tasks)
    numbers, own, returns = table[:, : returns_at - 7], table[:, returns_at - 7 : returns_at], table[:, returns_at:]
    valid, shown, bound = own[:, _VALID], own[:, _SHOWN], own[:, _BOUND]
    figures = []
    for name, values in zip(names, numbers.T, strict=False):
        weights = valid if name in _OF_VALID else bound if name in _OF_BOUND else shown
        figures.append(float(values.max()) if name in _LARGEST else _mean(values, weights))
    tasks_at = numbers.shape[1] - len(FIGURES) * num_tasks
    figures += numbers[0, len(names) : tasks_at].tolist()  # the multipliers, which all ranks have alike
    if num_tasks:
        largest, mean, share, explained = np.split(numbers[:, tasks_at:], len(FIGURES), axis=1)
        of_task = share * valid[:, None]
        figures += largest.max(0).tolist()
        figures += [_mean(values, weights) for values, weights in zip(mean.T, of_task.T, strict=True)]
        figures += (of_task.sum(0) / max(1.0, valid.sum())).tolist()
        figures += [_mean(values, weights) for values, weights in zip(explained.T, of_task.T, strict=True)]
    seen = [column[~np.isnan(column)] for column in returns.T]
    ranks = [
        {
            "valid_fraction": float(row[_VALID] / row[_SIZE]),
            "lag_mean": float(row[_LAG]) if row[_VALID] else 0.0,
            "stale_fraction": float(row[_STALE] / max(1.0, row[_VALID])),
            "kl_max": float(figure["kl_max"]),
            "kl_mean": float(figure["kl_mean"]),
            "waited": round(float(row[_WAITED]), 6),
        }
        for row, figure in zip(own, (dict(zip(names, line, strict=False)) for line in numbers), strict=True)
    ]
    return Together(figures, _mean(own[:, _LAG], valid), [float(x.mean()) if len(x) else None for x in seen], ranks)


def merged(dumps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One audit file's content from those of all ranks: the states of all, one rank's after the other's."""
    first, everything = dumps[0], dict(dumps[0])
    for key in ("rnn_states", "dones", "valids", "action_logits", "task_id", "policy_version_of"):
        if key in first:
            everything[key] = torch.cat([dump[key] for dump in dumps])
    everything["obs"] = {key: torch.cat([dump["obs"][key] for dump in dumps]) for key in first["obs"]}
    return everything
