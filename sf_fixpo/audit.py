"""Checks the guarantee of a finished or running experiment, without the code that is supposed to keep it.

    python -m sf_fixpo.audit DIR

A run with `--audit_every=N` leaves `audit/*.pt`: the batch, the weights as published, and the reference policy's action
parameters. For each file the network is built anew from `config.json` by sample-factory, the published weights are loaded, and
the divergence from the reference is computed at every state in float64, by the formulas in this file. The learner's own
divergence, networks and checks are not imported. The bound is compared without any tolerance.

What a file cannot prove: that a state marked stale (the previous policy itself already broke the bound there, possible only
with `--reference=behaviour`) was rightly left out. Such states are counted and shown.

Exit codes: 0 everything holds; 1 the first violation, named; 2 there is nothing to audit, or it cannot be read.

Shape symbols: N states, A action parameters, S size of the recurrent state. Divergences are in nats. Trajectories of `recurrence`
states lie one after the other.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.model.actor_critic import (
    ActorCritic,
    ActorCriticSeparateWeights,
    ActorCriticSharedWeights,
    create_actor_critic,
)
from sample_factory.utils.attr_dict import AttrDict
from sample_factory.utils.utils import log as sample_factory_log
from sf_examples.dmlab.dmlab30 import DMLAB_INSTRUCTIONS
from sf_examples.dmlab.dmlab_model import make_dmlab_encoder
from torch import Tensor

from sf_fixpo.records.update_log import UPDATE_LOG, read_rows

STDDEV_MIN, STDDEV_MAX = 1e-4, 1e4  # sample-factory's ContinuousActionDistribution
_CHUNK = 256  # observations per forward pass of the encoder: images in float64 need much memory

_TENSORS = ("rnn_states", "dones", "valids", "stale", "action_logits", "ref_logits")
_KEYS = ("normalized_obs", *_TENSORS, "state_dict", "eps_kl", "kl_direction", "kl_stat", "action_spec", "policy_version")


class UnreadableError(ValueError):
    """There is nothing to audit, or it cannot be understood: the message says what and where."""


class ViolationError(Exception):
    """The guarantee is broken: the message names the version, the state and the number."""


@dataclass(frozen=True)
class Finding:
    """What one audit file says.

    Attributes:
        name: the file's name.
        policy_id: which policy of a population.
        version: the version published.
        checked: states the bound was checked at.
        valid: valid states of the batch, stale ones included.
        stale: valid states left out of the bound.
        worst_state: index in the batch of the state with the largest KL; -1 where none was checked.
        kl_max: the largest KL, nats.
        kl_bounded: the number that is compared with eps_kl: the largest KL, or the mean with `--kl_stat=mean`.
        eps_kl: the bound.
    """

    name: str
    policy_id: int
    version: int
    checked: int
    valid: int
    stale: int
    worst_state: int
    kl_max: float
    kl_bounded: float
    eps_kl: float

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; a number that is not finite does not keep it."""
        return self.checked == 0 or self.kl_bounded <= self.eps_kl

    def describe(self) -> str:
        """One line for the report."""
        stale = 100 * self.stale / max(1, self.valid)
        text = f"policy {self.policy_id} version {self.version}: {self.checked} states checked, {stale:.1f} % stale"
        if not self.checked:
            return f"{text}, nothing to compare"
        return f"{text}, KL max {self.kl_max:.6f} at state {self.worst_state}, bounded/eps_kl {self.kl_bounded / self.eps_kl:.4f}"


def categorical_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL[p, q] = sum_a p(a) (log p(a) - log q(a)) for p, q = softmax of [N, n] logits. Returns [N]."""
    log_p = p_logits - torch.logsumexp(p_logits, dim=1, keepdim=True)
    log_q = q_logits - torch.logsumexp(q_logits, dim=1, keepdim=True)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def gaussian_kl(p_params: Tensor, q_params: Tensor) -> Tensor:
    """KL[p, q] of diagonal Gaussians, given as [N, 2 d]: d means, then d log standard deviations. Returns [N].

    For each dimension log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2, with s = exp(log s) clamped as the
    distribution that acts clamps it.
    """
    p_mean, p_log_std = p_params.chunk(2, dim=1)
    q_mean, q_log_std = q_params.chunk(2, dim=1)
    p_std = p_log_std.exp().clamp(STDDEV_MIN, STDDEV_MAX)
    q_std = q_log_std.exp().clamp(STDDEV_MIN, STDDEV_MAX)
    each = torch.log(q_std / p_std) + (p_std**2 + (p_mean - q_mean) ** 2) / (2 * q_std**2) - 0.5
    return each.sum(dim=1)


def policy_kl(p_params: Tensor, q_params: Tensor, action_spec: Iterable[tuple[str, int]]) -> Tensor:
    """KL[p, q] of independent action heads: the sum over the heads. Parameters are [N, A], converted to float64. Returns [N].

    Args:
        p_params: the policy the expectation is over.
        q_params: the other policy.
        action_spec: `("categorical", n)` takes n parameters, `("gaussian", d)` takes 2 d, in order.

    Raises:
        UnreadableError: the spec does not add up to A, or has an unknown kind.
    """
    p_params, q_params = p_params.double(), q_params.double()
    formulas = {"categorical": (categorical_kl, 1), "gaussian": (gaussian_kl, 2)}
    total = torch.zeros(len(p_params), dtype=torch.float64)
    start = 0
    for kind, size in action_spec:
        if kind not in formulas:
            raise UnreadableError(f"unknown action distribution {kind!r}")
        formula, parameters_each = formulas[kind]
        stop = start + size * parameters_each
        total += formula(p_params[:, start:stop], q_params[:, start:stop])
        start = stop
    if start != p_params.shape[1]:
        raise UnreadableError(f"action_spec describes {start} action parameters, the file has {p_params.shape[1]}")
    return total


def build_policy(cfg: Any, record: dict[str, Any]) -> ActorCritic:
    """The published policy in float64: sample-factory's network for this configuration, with the file's weights.

    Raises:
        UnreadableError: the weights are not those of the network that config.json describes.
    """
    shapes = {name: obs.shape[1:] for name, obs in record["normalized_obs"].items()}
    obs_space = gym.spaces.Dict({name: gym.spaces.Box(-np.inf, np.inf, shape, np.float32) for name, shape in shapes.items()})
    network = _make_network(cfg, obs_space, _action_space(record["action_spec"]))
    try:
        network.load_state_dict(record["state_dict"], strict=True)
    except RuntimeError as exc:
        raise UnreadableError(f"state_dict does not fit the network of config.json: {exc}") from exc
    return network.double().eval()


def _make_network(cfg: Any, obs_space: gym.spaces.Dict, action_space: gym.Space) -> ActorCritic:
    """sample-factory's network, for DMLab's instructions with the encoder of sample-factory's own example."""
    if DMLAB_INSTRUCTIONS not in obs_space.spaces:
        return create_actor_critic(cfg, obs_space, action_space)
    factory = copy(global_model_factory())
    factory.make_model_encoder_func = make_dmlab_encoder
    kind = ActorCriticSharedWeights if cfg.actor_critic_share_weights else ActorCriticSeparateWeights
    return kind(factory, obs_space, action_space, cfg)


def _action_space(action_spec: Iterable[tuple[str, int]]) -> gym.Space:
    spaces = [
        gym.spaces.Discrete(size) if kind == "categorical" else gym.spaces.Box(-1.0, 1.0, (size,), np.float32)
        for kind, size in action_spec
    ]
    return spaces[0] if len(spaces) == 1 else gym.spaces.Tuple(spaces)


@torch.no_grad()
def action_parameters(network: ActorCritic, cfg: Any, record: dict[str, Any]) -> Tensor:
    """Action parameters [N, A] of `network` at every state, in float64.

    A recurrent policy is played one step after the other, as an actor plays it, from the recorded state at the start of each
    piece of `recurrence` steps. Its state is zero after the end of an episode and after a step of another policy.
    """
    obs = {name: x if name == DMLAB_INSTRUCTIONS else x.double() for name, x in record["normalized_obs"].items()}
    count = len(record["valids"])
    heads = [network.forward_head({k: v[i : i + _CHUNK] for k, v in obs.items()}) for i in range(0, count, _CHUNK)]
    features = torch.cat(heads)
    if cfg.use_rnn:
        steps = cfg.rollout if cfg.recurrence == -1 else cfg.recurrence
        features = features.view(-1, steps, features.shape[1])
        state = record["rnn_states"].double().view(-1, steps, record["rnn_states"].shape[1])[:, 0]
        goes_on = ~(record["dones"].bool() | ~record["valids"]).view(-1, steps, 1)
        outputs = []
        for t in range(steps):
            output, state = network.forward_core(features[:, t], state)
            state = state * goes_on[:, t]
            outputs.append(output)
        features = torch.stack(outputs, dim=1).flatten(0, 1)
    return network.forward_tail(features, values_only=False, sample_actions=False)["action_logits"]


def load_record(path: Path) -> dict[str, Any]:
    """Reads an audit file without running code from it.

    Raises:
        UnreadableError: it is not an audit file, or its parts do not fit together.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # a torn or foreign file fails in many ways, and all of them mean the same here
        raise UnreadableError(f"{path}: cannot be read: {type(exc).__name__}: {exc}") from exc
    missing = [key for key in _KEYS if key not in record] if isinstance(record, dict) else _KEYS
    if missing:
        raise UnreadableError(f"{path}: not an audit file, without {', '.join(missing)}")
    lengths = {name: len(record[name]) for name in _TENSORS}
    lengths.update({f"normalized_obs[{name}]": len(obs) for name, obs in record["normalized_obs"].items()})
    if len(set(lengths.values())) != 1:
        raise UnreadableError(f"{path}: tensors of different lengths: {lengths}")
    for key, allowed in (("kl_direction", ("pi_ref", "ref_pi")), ("kl_stat", ("max", "mean"))):
        if record[key] not in allowed:
            raise UnreadableError(f"{path}: {key} is {record[key]!r}, not one of {', '.join(allowed)}")
    record["valids"], record["stale"] = record["valids"].bool(), record["stale"].bool()
    return record


def audit_record(record: dict[str, Any], cfg: Any, name: str, policy_id: int) -> Finding:
    """Recomputes every KL of one file.

    Raises:
        UnreadableError: the file does not fit the configuration.
        ViolationError: a state is stale that cannot be.
    """
    checked = record["valids"] & ~record["stale"]
    stale = int((record["valids"] & record["stale"]).sum())
    pi = action_parameters(build_policy(cfg, record), cfg, record)
    ref = record["ref_logits"]
    p, q = (pi, ref) if record["kl_direction"] == "pi_ref" else (ref, pi)
    kl = policy_kl(p, q, record["action_spec"])
    # the previous policy cannot break its own bound; only a state that is no number for it either can be left out
    if _reference(cfg) == "previous" and (unexcused := int((record["valids"] & record["stale"] & kl.isfinite()).sum())):
        raise ViolationError(f"{name}: {unexcused} states are marked stale, which --reference=previous cannot have")
    # NaN compares as nothing: it is made infinite so that it is found as the largest, and over every bound
    kl = torch.where(torch.isfinite(kl), kl, torch.inf)
    worst = int(kl.masked_fill(~checked, -torch.inf).argmax()) if checked.any() else -1
    kl_max = float(kl[worst]) if checked.any() else float("nan")
    return Finding(
        name=name,
        policy_id=policy_id,
        version=int(record["policy_version"]),
        checked=int(checked.sum()),
        valid=int(record["valids"].sum()),
        stale=stale,
        worst_state=worst,
        kl_max=kl_max,
        kl_bounded=kl_max if record["kl_stat"] == "max" or not checked.any() else float(kl[checked].mean()),
        eps_kl=float(record["eps_kl"]),
    )


def _reference(cfg: Any) -> str:
    """Centre of the trust region in words; `auto` may have become either one in asynchronous training."""
    reference = cfg.get("reference", "auto")
    return "previous" if reference == "auto" and not cfg.get("async_rl", False) else reference


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


def audit_files(directory: Path) -> list[tuple[int, int, Path]]:
    """`(policy_id, version, path)` of every audit file, in that order: `<version>.pt` or `p<policy>_<version>.pt`.

    Raises:
        UnreadableError: there is none.
    """
    found = []
    for path in (directory / "audit").glob("*.pt"):
        match = re.fullmatch(r"(?:p(\d+)_)?(\d+)", path.stem)
        if match:
            found.append((int(match[1] or 0), int(match[2]), path))
    if not found:
        raise UnreadableError(f"{directory / 'audit'}: no audit files; train with --audit_every=N")
    return sorted(found)


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
    bounded = "kl_mean" if cfg.get("kl_stat", "max") == "mean" else "kl_max"
    is_bounded = cfg.get("fixup", "every_epoch") != "off"
    last: dict[int, dict[str, Any]] = {}
    count = resumes = 0
    worst = 0.0
    for row in rows:
        name = f"policy {row['policy_id']} version {row['policy_version']}"
        value, eps_kl = row[bounded], row["eps_kl"]
        if is_bounded and not value <= eps_kl:  # so written, NaN is a violation too
            raise ViolationError(f"{UPDATE_LOG}: {name}: {bounded} {value} > eps_kl {eps_kl}")
        before = last.get(row["policy_id"])
        if before is not None and row["policy_version"] <= before["policy_version"]:
            if row["env_steps"] > before["env_steps"]:
                raise ViolationError(f"{UPDATE_LOG}: {name} comes after version {before['policy_version']}, without a restart")
            resumes += 1
        last[row["policy_id"]] = row
        worst = max(worst, value / eps_kl)
        count += 1
    if not is_bounded:
        return f"{UPDATE_LOG}: {count} updates with --fixup=off, which bounds nothing: largest {bounded}/eps_kl {worst:.4f}"
    return f"{UPDATE_LOG}: {count} updates, {resumes} restarts, versions grow, largest {bounded}/eps_kl as logged {worst:.4f}"


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
    findings = []
    for policy_id, version, path in audit_files(directory):
        record = load_record(path)
        if int(record["policy_version"]) != version:
            raise ViolationError(f"{path}: holds version {int(record['policy_version'])}, not the {version} of its name")
        finding = audit_record(record, cfg, path.name, policy_id)
        if not finding.holds:
            raise ViolationError(
                f"{path}: policy {policy_id} version {version}: state {finding.worst_state}: KL {finding.kl_max!r}; "
                f"{record['kl_stat']} over {finding.checked} states {finding.kl_bounded!r} > eps_kl {finding.eps_kl!r}"
            )
        if not quiet:
            print(finding.describe(), flush=True)
        findings.append(finding)
    if not any(finding.checked for finding in findings):
        raise UnreadableError(f"{directory / 'audit'}: not one state to check in {len(findings)} files")
    if (directory / UPDATE_LOG).is_file():
        print(check_log(read_rows(directory / UPDATE_LOG), cfg))
    else:
        print(f"{UPDATE_LOG}: none here, not checked")
    return findings


def summary(findings: list[Finding]) -> str:
    """The closing line: how much was checked, and the state nearest to its bound."""
    worst = max((f for f in findings if f.checked), key=lambda f: f.kl_bounded / f.eps_kl)
    checked, stale = sum(f.checked for f in findings), sum(f.stale for f in findings)
    return (
        f"The bound holds: {len(findings)} files, {checked} states checked in float64, {stale} stale states not checked. "
        f"Nearest to the bound: {worst.describe()}."
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sf_fixpo.audit",
        description="Recomputes every KL of an experiment's audit files in float64 and compares it with the bound.",
        epilog="Exit code 0: everything holds. 1: a violation. 2: nothing to audit, or it cannot be read.",
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="experiment folder with config.json and audit/*.pt")
    parser.add_argument("--quiet", action="store_true", help="only the closing lines")
    args = parser.parse_args(argv)
    sample_factory_log.setLevel(logging.ERROR)  # it reports every layer it makes
    try:
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
