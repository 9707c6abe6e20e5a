"""Parity with the authors' code, on two recordings of it and on cases made here by another implementation.

`data/parity` holds recordings A and D without the arrays that no comparison reads.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import parity

RECORDED = [Path(__file__).parents[1] / "data" / "parity" / f"{name}.npz" for name in "AD"]
SETTINGS = {
    "repeat": 2, "minibatch": 64, "fixup_batch": 80, "norm_adv": 1, "value_clip": 1, "eps_clip": 0.05, "vf_coef": 0.1,
    "ent_coef": 0.01, "max_grad_norm": 0.5, "lr": 1e-3, "eps_kl": 0.004, "kl_target_stat": "max", "init_beta": 1.0,
    "beta_lr": 0.01, "target_coeff": 3.0, "fixup_every_repeat": 1, "fixup_loop": 1,
}  # fmt: skip
N, OBS, ACT = 200, 5, 2


def plain_replay(settings, data, weights):  # noqa: C901 - one function, so that it reads like the authors' loop
    """The authors' step in plain torch and torch.distributions, one minibatch after the other; shares no code with sf_fixpo."""
    w = {k: torch.nn.Parameter(v.clone()) for k, v in weights.items()}
    adam, beta = torch.optim.Adam(list(w.values()), lr=settings["lr"]), torch.nn.Parameter(torch.tensor(settings["init_beta"]))
    beta_adam = torch.optim.Adam([beta], lr=settings["beta_lr"])

    def mlp(x, side, last):
        for i in (0, 2):
            x = torch.tanh(x @ w[f"{side}.preprocess.model.model.{i}.weight"].T + w[f"{side}.preprocess.model.model.{i}.bias"])
        return x @ w[f"{last}.weight"].T + w[f"{last}.bias"]

    def policy(d):
        mean = mlp(d["obs"], "actor", "actor.mu.model.0")
        return torch.distributions.Independent(torch.distributions.Normal(mean, w["actor.sigma_param"].view(-1).exp()), 1)

    def kl_of(d, pi):
        old = torch.distributions.Independent(torch.distributions.Normal(d["old_mean"], d["old_std"]), 1)
        return torch.distributions.kl_divergence(old, pi)

    def step(loss, kl):
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(w.values()), settings["max_grad_norm"])
        adam.step()
        beta_adam.zero_grad()
        statistic = kl.max() if settings["kl_target_stat"] == "max" else kl.mean()
        (beta * (settings["eps_kl"] - settings["target_coeff"] * statistic).detach()).backward()
        beta_adam.step()
        beta.data.clamp_(min=0)

    losses, fixup_steps = [], 0
    for epoch in range(settings["repeat"]):
        for part in parity.split(settings["minibatch"], N):
            d = {k: v[part] for k, v in data.items()}
            pi = policy(d)
            kl = kl_of(d, pi)
            adv = (d["adv"] - d["adv"].mean()) / (d["adv"].std() + 1e-8) if settings["norm_adv"] else d["adv"]
            ratio = (pi.log_prob(d["act"]) - d["logp_old"]).exp()
            value = mlp(d["obs"], "critic", "critic.last.model.0").flatten()
            vf = (d["returns"] - value) ** 2
            if settings["value_clip"]:
                clipped = d["v_old"] + (value - d["v_old"]).clamp(-settings["eps_clip"], settings["eps_clip"])
                vf = torch.max(vf, (d["returns"] - clipped) ** 2)
            loss = -(ratio * adv).mean() + settings["vf_coef"] * vf.mean() + beta.detach() * kl.mean()
            loss = loss - settings["ent_coef"] * pi.entropy().mean()
            losses.append(loss.item())
            step(loss, kl)
        violated = settings["fixup_every_repeat"] or epoch == settings["repeat"] - 1
        while violated:
            violated = False
            for part in parity.split(settings["fixup_batch"], N):
                d = {k: v[part] for k, v in data.items()}
                kl = kl_of(d, policy(d))
                if (kl.max() if settings["kl_target_stat"] == "max" else kl.mean()) > settings["eps_kl"]:
                    step(beta.detach() * kl.mean(), kl)
                    fixup_steps, violated = fixup_steps + 1, True
    return w, losses, fixup_steps, beta.item()


def make_case(path, **changes):
    settings = {**SETTINGS, **changes}
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    sizes = {
        "actor.preprocess.model.model.0": (16, OBS),
        "actor.preprocess.model.model.2": (16, 16),
        "actor.mu.model.0": (ACT, 16),
    }
    sizes |= {"critic.preprocess.model.model.0": (16, OBS), "critic.preprocess.model.model.2": (16, 16)}
    sizes |= {"critic.last.model.0": (1, 16)}
    weights = {"actor.sigma_param": 0.2 * draw(ACT, 1)}
    for name, shape in sizes.items():
        weights |= {f"{name}.weight": draw(*shape) / shape[1] ** 0.5, f"{name}.bias": 0.1 * draw(shape[0])}
    data = {"obs": draw(N, OBS), "adv": draw(N), "returns": draw(N), "v_old": draw(N)}
    replay = parity.RecordedNetwork(weights)
    with torch.no_grad():
        mean, log_std = replay.action_parameters(data["obs"]).chunk(2, dim=-1)
        data |= {"old_mean": mean, "old_std": log_std.exp(), "act": mean + log_std.exp() * draw(N, ACT)}
        data["logp_old"] = torch.distributions.Normal(mean, log_std.exp()).log_prob(data["act"]).sum(-1)
    final, losses, fixup_steps, beta = plain_replay(settings, data, weights)
    arrays = {k: v.numpy() for k, v in data.items()} | {f"init/{k}": v.numpy() for k, v in weights.items()}
    arrays |= {f"final/{k}": v.detach().numpy() for k, v in final.items()}
    adam = json.dumps({"lr": settings["lr"], "betas": [0.9, 0.999], "eps": 1e-8})
    np.savez(
        path, **arrays, loss=np.array(losses), fixup_grad_steps=fixup_steps, final_beta=beta,
        config_json=json.dumps(settings), adam_json=adam,
    )  # fmt: skip
    return fixup_steps


@pytest.mark.parametrize("path", RECORDED, ids=[p.stem for p in RECORDED])
def test_recorded_cases(path):
    result = parity.run_case(path)
    assert result.passed, result


@pytest.mark.parametrize(
    "changes",
    [{}, {"kl_target_stat": "mean", "fixup_every_repeat": 0, "eps_kl": 0.0005}, {"beta_lr": 0.0, "norm_adv": 0, "value_clip": 0}],
    ids=["max", "mean, last", "constant beta"],
)
def test_cases_of_another_implementation(tmp_path, changes, capsys):
    assert make_case(tmp_path / "case.npz", **changes) > 0
    assert parity.main([str(tmp_path)]) == 0
    assert "pass" in capsys.readouterr().out


def test_a_difference_is_found(tmp_path, capsys):
    make_case(tmp_path / "case.npz")
    case = dict(np.load(tmp_path / "case.npz"))
    case["final/actor.mu.model.0.bias"] = case["final/actor.mu.model.0.bias"] + 1e-6
    np.savez(tmp_path / "case.npz", **case)
    assert parity.main([str(tmp_path)]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_an_empty_folder_is_not_success(tmp_path, capsys):
    assert parity.main([str(tmp_path)]) == 2
    assert "no case file" in capsys.readouterr().err


def test_split_merges_the_rest_into_the_last():
    assert [p.stop - p.start for p in parity.split(100, 512)] == [100, 100, 100, 100, 112]
    assert [p.stop - p.start for p in parity.split(200, 512)] == [200, 312]
    assert [p.stop - p.start for p in parity.split(1000, 512)] == [512]
