"""The audit: its formulas against NumPy written from the definition, its networks against sample-factory's, its verdicts."""

from __future__ import annotations

import json
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from sample_factory.algo.learning.rnn_utils import build_core_out_from_seq, build_rnn_inputs
from sample_factory.model.model_utils import get_rnn_size

from benchmarks.synthetic import box_actions, make_cfg, small_shape
from sf_fixpo import audit
from sf_fixpo.learning.networks import make_actor_critic

MIXED = gym.spaces.Tuple((gym.spaces.Discrete(3), box_actions(2)))
COUNT = 64


def spec_of(space: gym.Space) -> list:
    if isinstance(space, gym.spaces.Tuple):
        return [part for each in space for part in spec_of(each)]
    return [["categorical", int(space.n)]] if isinstance(space, gym.spaces.Discrete) else [["gaussian", space.shape[0]]]


def trainers_parameters(network, cfg, record) -> torch.Tensor:
    """Action parameters by the packed sequences a learner trains with, in float32."""
    features = network.forward_head(record["normalized_obs"])
    if cfg.use_rnn:
        done_or_invalid = (record["dones"] | ~record["valids"]).float()
        packed, state, order = build_rnn_inputs(features, done_or_invalid, record["rnn_states"], cfg.recurrence)
        features = build_core_out_from_seq(network.forward_core(packed, state)[0], order)
    return network.forward_tail(features, values_only=False, sample_actions=False)["action_logits"]


def make_experiment(folder, action_space=None, version: int = 10, step: float = 0.05, **flags):
    """An experiment folder with one audit file: weights a random step away from the reference, bound just above its KL."""
    shape = small_shape(action_space=action_space or gym.spaces.Discrete(4), **flags)
    cfg = make_cfg("APPO", shape, train_dir=folder)
    cfg.update(reference="behaviour", fixup="every_epoch", kl_stat="max")
    torch.manual_seed(0)
    network = make_actor_critic(cfg, shape.obs_space, shape.action_space)
    record = {
        "normalized_obs": {"obs": torch.randn(COUNT, 8)},
        "rnn_states": torch.randn(COUNT, get_rnn_size(cfg)) * 0.3,
        "dones": torch.rand(COUNT) < 0.2,
        "valids": torch.rand(COUNT) < 0.8,
        "stale": torch.zeros(COUNT, dtype=torch.bool),
        "kl_direction": "pi_ref",
        "kl_stat": "max",
        "action_spec": spec_of(shape.action_space),
        "policy_version": version,
    }
    with torch.no_grad():
        record["ref_logits"] = audit.action_parameters(network.double(), cfg, record).float()
        for weight in network.parameters():
            weight += step * torch.randn_like(weight)
    network.float()
    record["action_logits"] = record["ref_logits"].clone()
    record["state_dict"] = {name: value.clone() for name, value in network.state_dict().items()}
    record["eps_kl"] = 1e9
    finding = audit.audit_record(record, cfg, "draft", 0)
    record["eps_kl"] = finding.kl_max * (1 + 1e-9)
    (folder / "audit").mkdir()
    (folder / "config.json").write_text(json.dumps(cfg))
    save(folder, record)
    write_log(folder, [log_row()])
    return record, network, cfg, finding


def save(folder, record, name: str | None = None) -> None:
    torch.save(record, folder / "audit" / (name or f"{record['policy_version']}.pt"))


def log_row(version: int = 10, env_steps: int = 640, kl_max: float = 0.4, **changes) -> dict:
    row = {"policy_id": 0, "policy_version": version, "env_steps": env_steps, "eps_kl": 0.5, "kl_max": kl_max, "kl_mean": 0.1}
    return {**row, **changes}


def write_log(folder, rows) -> None:
    (folder / "updates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# Formulas


def test_categorical_kl_is_the_definition():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    expected = 0.5 * math.log(0.5 / 0.2) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.6)
    shift = 3.0  # logits are log-probabilities up to a constant
    kl = audit.categorical_kl(torch.tensor(np.log(p) + shift)[None], torch.tensor(np.log(q))[None])
    assert kl.item() == pytest.approx(expected, rel=1e-14)


def test_gaussian_kl_is_the_integral_of_the_definition():
    m_p, s_p, m_q, s_q = 0.3, 0.7, -0.4, 1.3
    x = np.linspace(-12, 12, 400_001)
    log_density = lambda m, s: -0.5 * ((x - m) / s) ** 2 - np.log(s * math.sqrt(2 * math.pi))  # noqa: E731
    log_p, log_q = log_density(m_p, s_p), log_density(m_q, s_q)
    integral = np.sum(np.exp(log_p) * (log_p - log_q)) * (x[1] - x[0])
    params = lambda m, s: torch.tensor([[m, math.log(s)]], dtype=torch.float64)  # noqa: E731
    assert audit.gaussian_kl(params(m_p, s_p), params(m_q, s_q)).item() == pytest.approx(integral, rel=1e-9)


def test_standard_deviations_are_clamped_as_the_acting_distribution_clamps_them():
    tiny = torch.tensor([[0.0, -50.0]], dtype=torch.float64)
    least = torch.tensor([[0.0, math.log(1e-4)]], dtype=torch.float64)
    assert audit.gaussian_kl(tiny, least).item() == pytest.approx(0.0, abs=1e-12)


def test_heads_add_up_in_order():
    p, q = torch.randn(5, 7), torch.randn(5, 7)
    total = audit.policy_kl(p, q, [["categorical", 3], ["gaussian", 2]])
    parts = audit.categorical_kl(p[:, :3].double(), q[:, :3].double()) + audit.gaussian_kl(p[:, 3:].double(), q[:, 3:].double())
    assert torch.equal(total, parts)


@pytest.mark.parametrize("spec", [[["categorical", 3]], [["poisson", 7]]])
def test_a_spec_that_does_not_fit_is_refused(spec):
    with pytest.raises(audit.UnreadableError):
        audit.policy_kl(torch.zeros(2, 7), torch.zeros(2, 7), spec)


# Networks

NETWORKS = [
    {},
    {"use_rnn": True, "rnn_type": "lstm"},
    {"use_rnn": True, "rnn_type": "gru", "rnn_num_layers": 2},
    {"actor_critic_share_weights": False, "adaptive_stddev": False},
    {"actor_critic_share_weights": False, "use_rnn": True, "rnn_type": "lstm"},
]


@pytest.mark.parametrize("flags", NETWORKS, ids=["mlp", "lstm", "gru2", "separate", "separate lstm"])
@pytest.mark.parametrize("space", [gym.spaces.Discrete(4), box_actions(2), MIXED], ids=["discrete", "box", "mixed"])
def test_action_parameters_are_those_a_learner_trains_on(tmp_path, flags, space):
    record, network, cfg, _ = make_experiment(tmp_path, space, **flags)
    exact = audit.action_parameters(audit.build_policy(cfg, record), cfg, record)
    assert exact.dtype == torch.float64
    with torch.no_grad():
        trained = trainers_parameters(network, cfg, record)
    torch.testing.assert_close(trained, exact.float(), rtol=1e-4, atol=1e-5)


# Verdicts


@pytest.mark.parametrize("flags", NETWORKS[:2], ids=["mlp", "lstm"])
def test_a_file_within_the_bound_passes_and_one_over_it_by_a_hair_does_not(tmp_path, capsys, flags):
    record, _, _, finding = make_experiment(tmp_path, **flags)
    assert audit.main([str(tmp_path)]) == 0
    assert "The bound holds" in capsys.readouterr().out
    record["eps_kl"] = finding.kl_max * (1 - 1e-9)
    save(tmp_path, record)
    assert audit.main([str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "version 10" in message
    assert f"state {finding.worst_state}" in message
    assert repr(finding.kl_max) in message


def test_doctored_weights_are_found(tmp_path):
    record, *_ = make_experiment(tmp_path)
    name = "action_parameterization.distribution_linear.bias"
    record["state_dict"][name] = record["state_dict"][name] + torch.tensor([3.0, 0.0, 0.0, 0.0])
    save(tmp_path, record)
    assert audit.main([str(tmp_path)]) == 1


def test_the_direction_is_the_files(tmp_path):
    record, _, cfg, forward = make_experiment(tmp_path, step=0.5)
    backward = audit.audit_record({**record, "kl_direction": "ref_pi"}, cfg, "x", 0)
    assert backward.kl_max != pytest.approx(forward.kl_max, rel=1e-3)


def test_the_mean_is_bounded_where_the_run_bounds_the_mean(tmp_path):
    record, _, cfg, finding = make_experiment(tmp_path)
    mean = audit.audit_record({**record, "kl_stat": "mean"}, cfg, "x", 0)
    assert mean.kl_max == finding.kl_max
    assert mean.kl_bounded < finding.kl_bounded


def test_invalid_and_stale_states_are_left_out_and_counted(tmp_path, capsys):
    record, _, cfg, finding = make_experiment(tmp_path)
    record["eps_kl"] = finding.kl_max * 0.999
    record["stale"][finding.worst_state] = True
    again = audit.audit_record(record, cfg, "x", 0)
    assert (again.holds, again.stale, again.checked) == (True, 1, finding.checked - 1)
    record["valids"][finding.worst_state] = False
    assert audit.audit_record(record, cfg, "x", 0).stale == 0


def test_with_the_previous_policy_as_reference_nothing_can_be_stale(tmp_path):
    record, *_ = make_experiment(tmp_path)
    record["valids"][3] = record["stale"][3] = True
    save(tmp_path, record)
    assert audit.main([str(tmp_path)]) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "reference": "previous"}))
    assert audit.main([str(tmp_path)]) == 1


def test_a_number_that_is_not_finite_is_a_violation(tmp_path):
    record, *_ = make_experiment(tmp_path)
    record["eps_kl"] = 1e9
    record["ref_logits"][int(record["valids"].nonzero()[0])] = float("nan")
    save(tmp_path, record)
    assert audit.main([str(tmp_path)]) == 1


def test_files_are_taken_in_the_order_of_their_versions_for_each_policy(tmp_path):
    record, *_ = make_experiment(tmp_path)
    save(tmp_path, {**record, "policy_version": 9})
    save(tmp_path, {**record, "policy_version": 100}, "p1_100.pt")
    assert [(policy, version) for policy, version, _ in audit.audit_files(tmp_path)] == [(0, 9), (0, 10), (1, 100)]
    assert [finding.version for finding in audit.audit(tmp_path)] == [9, 10, 100]


def test_a_file_under_another_versions_name_is_a_violation(tmp_path):
    record, *_ = make_experiment(tmp_path)
    save(tmp_path, record, "11.pt")
    assert audit.main([str(tmp_path)]) == 1


def test_nothing_to_audit_is_not_success(tmp_path, capsys):
    assert audit.main([str(tmp_path / "absent")]) == 2
    assert audit.main([str(tmp_path)]) == 2
    record, *_ = make_experiment(tmp_path)
    (tmp_path / "audit" / "10.pt").write_bytes(b"torn")
    assert audit.main([str(tmp_path)]) == 2
    record["stale"][:] = True
    save(tmp_path, record)
    assert audit.main([str(tmp_path)]) == 2
    (tmp_path / "audit" / "10.pt").unlink()
    assert audit.main([str(tmp_path)]) == 2
    assert "--audit_every" in capsys.readouterr().err


def test_a_file_without_a_part_or_of_another_network_is_not_audited(tmp_path):
    record, *_ = make_experiment(tmp_path)
    save(tmp_path, {key: value for key, value in record.items() if key != "stale"})
    assert audit.main([str(tmp_path)]) == 2
    save(tmp_path, {**record, "dones": record["dones"][:-1]})
    assert audit.main([str(tmp_path)]) == 2
    save(tmp_path, {**record, "state_dict": dict(list(record["state_dict"].items())[1:])})
    assert audit.main([str(tmp_path)]) == 2


# The update log


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([log_row(10, 640), log_row(11, 1280)], 0),
        ([log_row(10, kl_max=0.5)], 0),
        ([log_row(10, kl_max=0.5000001)], 1),
        ([log_row(10, kl_max=float("nan"))], 1),
        ([log_row(10, 640), log_row(10, 1280)], 1),
        ([log_row(11, 640), log_row(10, 1280)], 1),
        ([log_row(10, 640), log_row(11, 1280), log_row(11, 1280), log_row(12, 1920)], 0),
        ([log_row(10, 640), log_row(10, 640, policy_id=1)], 0),
    ],
    ids=["grow", "at the bound", "over", "nan", "repeated", "back", "resumed", "two policies"],
)
def test_the_log_is_checked(tmp_path, rows, code):
    make_experiment(tmp_path)
    write_log(tmp_path, rows)
    assert audit.main([str(tmp_path), "--quiet"]) == code


def test_the_logs_bound_is_the_runs():
    rows = [log_row(kl_max=0.9)]
    with pytest.raises(audit.ViolationError):
        audit.check_log(rows, {"fixup": "last_epoch"})
    assert "bounds nothing" in audit.check_log(rows, {"fixup": "off"})
    assert "1 updates" in audit.check_log(rows, {"kl_stat": "mean"})
