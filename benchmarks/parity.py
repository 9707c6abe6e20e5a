"""Parity with the authors' code: replays what one call of their learner did to a small actor and critic, step by step.

`python -m benchmarks.parity DIR` runs every case file (`*.npz`) of a folder through the losses, the multiplier and the fixup
phase of sf_fixpo, prints the differences, and exits 1 where one is over its tolerance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sf_fixpo.algorithm.losses import kl_penalty, policy_loss, value_loss
from sf_fixpo.algorithm.multiplier import LagrangeMultiplier
from sf_fixpo.algorithm.trust_region import action_kl, fixup_phase, kl_statistic

WEIGHT_TOLERANCE = 5e-7
LOSS_TOLERANCE = 2e-6
BETA_TOLERANCE = 1e-5


@dataclass(frozen=True)
class CaseResult:
    """How far a replay is from the recording.

    Attributes:
        name: of the case file.
        fixup_steps: taken by the replay.
        expected_fixup_steps: taken by the authors' code.
        weight_error: largest absolute difference of a final weight.
        loss_error: largest absolute difference of a primary step's loss.
        beta_error: absolute difference of the final beta.
    """

    name: str
    fixup_steps: int
    expected_fixup_steps: int
    weight_error: float
    loss_error: float
    beta_error: float

    @property
    def passed(self) -> bool:
        """Whether every difference is within its tolerance; a number that is not finite is not."""
        return (
            self.fixup_steps == self.expected_fixup_steps
            and self.weight_error <= WEIGHT_TOLERANCE
            and self.loss_error <= LOSS_TOLERANCE
            and self.beta_error <= BETA_TOLERANCE
        )


class RecordedNetwork(nn.Module):
    """Gaussian actor and critic with the weights of a case, under the names that the case gives them.

    The last layers are found by name; every `*.preprocess.model.model.<i>` is a hidden layer followed by tanh.
    """

    def __init__(self, weights: dict[str, Tensor]):
        """Takes copies of the weights as parameters."""
        super().__init__()
        self.names = list(weights)
        self.weights = nn.ParameterList([nn.Parameter(w.clone()) for w in weights.values()])

    def by_name(self) -> dict[str, Tensor]:
        """The present weights under the recording's names."""
        return dict(zip(self.names, self.weights, strict=True))

    def _mlp(self, x: Tensor, side: str, last: str) -> Tensor:
        weights = self.by_name()
        prefix = f"{side}.preprocess.model.model."
        layers = sorted({int(name[len(prefix) :].split(".")[0]) for name in self.names if name.startswith(prefix)})
        for i in layers:
            x = torch.tanh(nn.functional.linear(x, weights[f"{prefix}{i}.weight"], weights[f"{prefix}{i}.bias"]))
        return nn.functional.linear(x, weights[f"{last}.weight"], weights[f"{last}.bias"])

    def action_parameters(self, obs: Tensor) -> Tensor:
        """[B, 2 d]: means, then log standard deviations."""
        mean = self._mlp(obs, "actor", "actor.mu.model.0")
        log_std = self.by_name()["actor.sigma_param"].view(1, -1).expand_as(mean)
        return torch.cat([mean, log_std], dim=-1)

    def value(self, obs: Tensor) -> Tensor:
        """[B] predicted returns."""
        return self._mlp(obs, "critic", "critic.last.model.0").flatten()


def split(size: int, samples: int) -> list[slice]:
    """Consecutive minibatches; a remainder is merged into the last whole one, as Tianshou's `Batch.split(merge_last=True)`."""
    starts = list(range(0, samples - size + 1, size)) or [0]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], samples], strict=True)]


def log_prob(parameters: Tensor, actions: Tensor) -> Tensor:
    """[B] log density of `actions` [B, d] under the Gaussian of `parameters` [B, 2 d]."""
    mean, log_std = parameters.chunk(2, dim=-1)
    return torch.distributions.Normal(mean, log_std.exp()).log_prob(actions).sum(-1)


class Replay:
    """One policy improvement step (Algorithm 1) with a case's settings, on a case's data."""

    def __init__(self, case: dict[str, np.ndarray]):
        """Reads settings, data, network and optimiser of a case."""
        self.config: dict[str, Any] = json.loads(str(case["config_json"]))
        adam = json.loads(str(case["adam_json"]))
        weights = {name[len("init/") :]: torch.from_numpy(w) for name, w in case.items() if name.startswith("init/")}
        self.network = RecordedNetwork(weights)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=adam["lr"], betas=tuple(adam["betas"]), eps=adam["eps"])
        self.multiplier = LagrangeMultiplier(self.config["init_beta"], self.config["beta_lr"], beta_max=float("inf"))
        self.data = {
            name: torch.from_numpy(case[name])
            for name in ("obs", "act", "adv", "returns", "logp_old", "v_old", "old_mean", "old_std")
        }
        self.reference = torch.cat([self.data["old_mean"], self.data["old_std"].log()], dim=-1)
        self.spec = [("gaussian", self.data["act"].shape[1])]
        self.valids = torch.ones(len(self.data["obs"]), dtype=torch.bool)
        self.losses: list[float] = []
        self.fixup_steps = 0

    def kl(self, part: slice, parameters: Tensor) -> Tensor:
        """[B] KL(old || new), the direction of the authors' MuJoCo code."""
        return action_kl(self.reference[part], parameters, self.spec)

    def statistic(self, kl: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """The bounded statistic of a minibatch and whether it has samples, [1] each."""
        return kl_statistic(kl, self.valids[part], self.config["kl_target_stat"])

    def _step(self, loss: Tensor, kl: Tensor, part: slice) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config["max_grad_norm"])
        self.optimizer.step()
        self.multiplier.step(*self.statistic(kl, part), self.config["eps_kl"], self.config["target_coeff"])

    def primary_step(self, part: slice) -> None:
        """One step on L_theta, then one on L_beta with the divergence of before."""
        config, data, valids = self.config, {k: v[part] for k, v in self.data.items()}, self.valids[part]
        parameters = self.network.action_parameters(data["obs"])
        kl = self.kl(part, parameters)
        advantages = data["adv"]
        if config["norm_adv"]:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = (log_prob(parameters, data["act"]) - data["logp_old"]).exp()
        old_values = data["v_old"] if config["value_clip"] else None
        critic = value_loss(self.network.value(data["obs"]), data["returns"], valids, old_values, config["eps_clip"])
        entropy = torch.distributions.Normal(0.0, parameters.chunk(2, dim=-1)[1].exp()).entropy().sum(-1).mean()
        penalty = kl_penalty(kl, valids, self.multiplier.beta)
        actor = policy_loss(ratio, advantages, valids)
        loss = actor + config["vf_coef"] * critic - config["ent_coef"] * entropy + penalty
        self.losses.append(loss.item())
        self._step(loss, kl, part)

    def fixup_step(self, part: slice) -> None:
        """One step on beta * L_KL alone, as the authors' code takes it."""
        kl = self.kl(part, self.network.action_parameters(self.data["obs"][part]))
        self._step(kl_penalty(kl, self.valids[part], self.multiplier.beta), kl, part)

    @torch.no_grad()
    def check(self, parts: Sequence[slice]) -> list[float]:
        """Statistic of each minibatch at the present weights."""
        kls = [self.kl(part, self.network.action_parameters(self.data["obs"][part])) for part in parts]
        return torch.cat([self.statistic(kl, part)[0] for kl, part in zip(kls, parts, strict=True)]).tolist()

    def run(self) -> None:
        """The whole improvement step."""
        config, samples = self.config, len(self.valids)
        for epoch in range(config["repeat"]):
            for part in split(config["minibatch"], samples):
                self.primary_step(part)
            last = epoch == config["repeat"] - 1
            if config["fixup_loop"] and (config["fixup_every_repeat"] or last):
                parts = split(config["fixup_batch"], samples)
                # the authors' loop has no limit; this one only keeps a broken replay from running for ever
                result = fixup_phase(parts, self.check, self.fixup_step, limit=config["eps_kl"], max_steps=1_000)
                self.fixup_steps += result.steps


def run_case(path: Path) -> CaseResult:
    """Replays one case file and compares it with the recording.

    Raises:
        KeyError: the file lacks an array.
        OSError, ValueError: the file cannot be read.
    """
    with np.load(path, allow_pickle=False) as arrays:
        case = {name: arrays[name] for name in arrays.files}
    replay = Replay(case)
    replay.run()
    final = replay.network.by_name()
    weight_errors = [np.abs(final[name].detach().numpy() - case[f"final/{name}"]).max() for name in final]
    return CaseResult(
        name=path.stem,
        fixup_steps=replay.fixup_steps,
        expected_fixup_steps=int(case["fixup_grad_steps"]),
        weight_error=float(np.max(weight_errors)),
        loss_error=float(np.abs(np.array(replay.losses) - case["loss"]).max()),
        beta_error=abs(replay.multiplier.beta.item() - float(case["final_beta"])),
    )


def main(argv: list[str] | None = None) -> int:
    """Runs every case of a folder; returns 0 when all pass, 1 when one does not, 2 when there is none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("dir", type=Path, help="folder with the case files (*.npz)")
    args = parser.parse_args(argv)
    paths = sorted(args.dir.glob("*.npz"))
    if not paths:
        print(f"benchmarks.parity: no case file (*.npz) in {args.dir}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # the recordings were made so; the order of additions is part of the result
    results = [run_case(path) for path in paths]
    table = Table("case", "fixup steps", "recorded", "weights", "losses", "beta", "result")
    for r in results:
        errors = (f"{error:.1e}" for error in (r.weight_error, r.loss_error, r.beta_error))
        table.add_row(r.name, str(r.fixup_steps), str(r.expected_fixup_steps), *errors, "pass" if r.passed else "FAIL")
    table.caption = f"largest absolute differences; allowed: {WEIGHT_TOLERANCE}, {LOSS_TOLERANCE}, {BETA_TOLERANCE}"
    Console().print(table)
    return 0 if all(r.passed for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
