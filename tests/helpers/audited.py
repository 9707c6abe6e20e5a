"""Experiment folders with one audit file, for tests: what a learner would have written, made without it."""

from __future__ import annotations

import json
import math

import gymnasium as gym
import numpy as np
import torch
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.model.actor_critic import create_actor_critic
from sample_factory.model.model_utils import get_rnn_size

from benchmarks.synthetic import make_cfg, small_shape
from sf_fixpo.records.audit_files import FORMAT, parse
from sf_fixpo.records.verdict import recompute

COUNT = 64
VERSION, PREVIOUS, OLDER = 10, 9, 8
STEPS = 8  # of a trajectory
LSTM = {"use_rnn": True, "rnn_type": "lstm"}


def spec_of(space: gym.Space) -> list:
    if isinstance(space, gym.spaces.Tuple):
        return [part for each in space for part in spec_of(each)]
    return [["categorical", int(space.n)]] if isinstance(space, gym.spaces.Discrete) else [["gaussian", space.shape[0]]]


@torch.no_grad()
def move(network, step: float) -> None:
    """A random step of the weights, and of the normaliser's statistics where there are any."""
    for weight in network.parameters():
        weight += step * torch.randn_like(weight)
    for name, statistic in network.obs_normalizer.named_buffers():
        statistic += step * (torch.rand_like(statistic) if name.endswith("var") else torch.randn_like(statistic))


def weights(network) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@torch.no_grad()
def act(network, obs, dones, valids, first_state):
    """An actor's records `(rnn_states, action_logits)` of trajectories of STEPS steps: one whole forward pass a step."""
    network.eval()
    ends = (dones | ~valids).view(-1, STEPS, 1)
    states, logits = [first_state], []
    for t in range(STEPS):
        now = {name: x.view(-1, STEPS, *x.shape[1:])[:, t].clone() for name, x in obs.items()}
        output = network(prepare_and_normalize_obs(network, now), states[-1])
        logits.append(output["action_logits"])
        states.append(output["new_rnn_states"] * ~ends[:, t])
    return torch.stack(states[:-1], 1).flatten(0, 1), torch.stack(logits, 1).flatten(0, 1)


def draw_obs(space: gym.spaces.Box) -> torch.Tensor:
    if np.issubdtype(space.dtype, np.integer):
        return torch.randint(0, 256, (COUNT, *space.shape), dtype=torch.uint8)
    return 3 * torch.randn(COUNT, *space.shape) + 1


def make_update(folder, action_space=None, obs_space=None, step=0.05, lag_step=None, **flags):
    """An update of random steps, with nothing broken; the bound is far away.

    Args:
        folder: the experiment's.
        action_space: four actions by default.
        obs_space: 8 floats by default.
        step: from the previous weights to those published.
        lag_step: from the behaviour policy, one version older, to the previous weights; None: the previous ones have acted.
        **flags: of sample-factory.

    Returns:
        `(contents, network, cfg)`: what the audit file holds, the network with the weights published, the configuration.
    """
    shape = small_shape(obs_space, action_space or gym.spaces.Discrete(4), **{"normalize_input": True, **flags})
    cfg = make_cfg("APPO", shape, train_dir=folder)
    cfg.update(reference="behaviour", fixup="every_epoch", kl_stat="max")
    torch.manual_seed(0)
    network = create_actor_critic(cfg, shape.obs_space, shape.action_space)
    move(network, 0.1)
    obs = {name: draw_obs(space) for name, space in shape.obs_space.spaces.items()}
    dones, valids = torch.rand(COUNT) < 0.2, torch.rand(COUNT) < 0.8
    first_state = torch.randn(COUNT // STEPS, get_rnn_size(cfg)) * 0.3
    rnn_states, action_logits = act(network, obs, dones, valids, first_state)
    if lag_step is not None:
        move(network, lag_step)
    previous = weights(network)
    move(network, step)
    contents = {
        "format": FORMAT,
        "obs": obs,
        "rnn_states": rnn_states,
        "dones": dones,
        "valids": valids,
        "action_logits": action_logits,
        "policy_version_of": torch.full((COUNT,), PREVIOUS if lag_step is None else OLDER),
        "previous_state_dict": previous,
        "state_dict": weights(network),
        "policy_version": VERSION,
        "previous_policy_version": PREVIOUS,
        "eps_kl": 1e9,
        "kl_direction": "pi_ref",
        "kl_stat": "max",
        "reference": "previous" if lag_step is None else "behaviour",
        "action_spec": spec_of(shape.action_space),
        "fixup": "every_epoch",
    }
    return contents, network, cfg


def found(contents, cfg):
    """What the audit finds in a file of these contents."""
    return recompute(parse(contents, "file"), cfg, "file", 0)


def make_experiment(folder, stat="max", **how):
    """A whole experiment folder, whose bound is a hair above the divergence.

    Args:
        folder: where it lies.
        stat: what is bounded.
        **how: as `make_update` takes them.

    Returns:
        `(contents, network, cfg, finding)`, the first three as `make_update` has them.
    """
    contents, network, cfg = make_update(folder, **how)
    contents["kl_stat"] = cfg["kl_stat"] = stat
    contents["eps_kl"] = found(contents, cfg).kl_bounded * (1 + 1e-9)
    finding = found(contents, cfg)
    (folder / "audit").mkdir()
    (folder / "config.json").write_text(json.dumps(cfg))
    save(folder, contents)
    return contents, network, cfg, finding


def save(folder, contents, name: str | None = None, *, logged: bool = True) -> None:
    """Writes the audit file, and a log of its one update that says what it is."""
    torch.save(contents, folder / "audit" / (name or f"{contents['policy_version']}.pt"))
    if logged:
        finding = found(contents, json_cfg(folder))
        kl_max = 0.0 if math.isnan(finding.kl_max) else finding.kl_max
        figures = {"eps_kl": finding.eps_kl, "kl_max": kl_max, "kl_max_stale": finding.kl_max_stale}
        if contents["kl_stat"] == "mean":
            figures["kl_mean"] = finding.kl_bounded
        write_log(folder, [log_row(finding.version, **figures)])


def json_cfg(folder):
    from sf_fixpo.audit import load_config

    return load_config(folder)


def log_row(version: int = VERSION, env_steps: int = 640, kl_max: float = 0.4, **changes) -> dict:
    row = {"policy_id": 0, "policy_version": version, "env_steps": env_steps, "eps_kl": 0.5, "kl_max": kl_max, "kl_mean": 0.1}
    return {**row, **changes}


def write_log(folder, rows) -> None:
    (folder / "updates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
