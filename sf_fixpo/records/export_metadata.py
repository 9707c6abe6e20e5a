"""What an exported policy says of itself: spaces, level, versions, the guarantee. Plain values, for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sf_fixpo import __version__
from sf_fixpo.records.update_log import kl_over_bound

FORMAT = 1  # of the metadata
KEY = "sf_fixpo"  # under which a file has them, as JSON


def describe_observations(space: spaces.Dict, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Shape, type and bounds of each observation, in the order of the policy's inputs."""
    return {key: {"shape": list(space[key].shape or ()), "dtype": str(space[key].dtype), **_bounds(space[key])} for key in keys}


def _bounds(space: spaces.Space) -> dict[str, Any]:
    """Lower and upper bound, one number where all entries have the same; null for none."""
    if not isinstance(space, spaces.Box):
        return {}

    def plain(values: np.ndarray) -> Any:
        numbers = [float(value) if np.isfinite(value) else None for value in values.reshape(-1)]
        return numbers[0] if len(set(numbers)) == 1 else numbers

    return {"low": plain(space.low), "high": plain(space.high)}


def describe_actions(space: spaces.Space) -> list[dict[str, Any]]:
    """The heads that actions are chosen in, in order: kind, size, bounds."""
    heads = list(space) if isinstance(space, spaces.Tuple) else [space]
    found = []
    for head in heads:
        if isinstance(head, spaces.Discrete):
            found.append({"kind": "categorical", "size": int(head.n)})
        else:
            found.append({"kind": "gaussian", "size": int((head.shape or (1,))[0]), **_bounds(head)})
    return found


def describe_guarantee(config: Mapping[str, Any], rows: Sequence[dict[str, Any]], version: int) -> dict[str, Any] | None:
    """The bound, and how the policy and its predecessors kept it; None for an algorithm that promises none.

    Args:
        config: of the run.
        rows: its update log.
        version: of the policy.
    """
    rows = [row for row in rows if row["policy_version"] <= version]
    if config.get("algo") != "FIXPO" or not rows:
        return None

    last = rows[-1]
    return {
        "enforced": config.get("fixup") != "off",
        "eps_kl": last["eps_kl"],
        **{name: config.get(name) for name in ("kl_stat", "kl_direction", "reference")},
        "updates": len(rows),
        "largest_kl_over_eps_kl": max(kl_over_bound(row) for row in rows),
        "of_this_version": kl_over_bound(last) if last["policy_version"] == version else None,
    }


def make_metadata(
    config: Mapping[str, Any],
    env: str,
    engine: str,
    checkpoint: Mapping[str, Any],
    observation_space: spaces.Dict,
    keys: Sequence[str],
    action_space: spaces.Space,
    state_size: int,
    rows: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Everything but what the check at export has found.

    Args:
        config: of the run.
        env: the environment that was played at export.
        engine: what plays it.
        checkpoint: `name`, `policy_version` and `env_steps`.
        observation_space: of the environment.
        keys: of the observations that are inputs, in order.
        action_space: of the environment.
        state_size: of the recurrent state.
        rows: the run's update log.
    """
    return {
        "format": FORMAT,
        "sf_fixpo": __version__,
        "env": env,
        "trained_on": config.get("env"),
        "engine": engine,
        "algo": config.get("algo"),
        "checkpoint": dict(checkpoint),
        "inputs": [*(f"obs.{key}" for key in keys), "state"],
        "outputs": ["action", "distribution", "action_parameters", "new_state"],
        "observations": describe_observations(observation_space, keys),
        "actions": describe_actions(action_space),
        "state": {"size": state_size, "at_the_start_of_an_episode": "zeros"},
        "guarantee": describe_guarantee(config, rows, checkpoint["policy_version"]),
    }
