"""Policies played anew: the formulas against NumPy written from the definition, the networks against sample-factory's."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from audited import COUNT, LSTM, found, make_update
from sample_factory.algo.learning.rnn_utils import build_core_out_from_seq, build_rnn_inputs
from sample_factory.algo.utils.context import global_model_factory, reset_global_context
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.model.core import ModelCore
from sample_factory.model.encoder import Encoder

from benchmarks.synthetic import box_actions
from sf_fixpo.records import recomputation
from sf_fixpo.records.audit_files import UnreadableError, parse

MIXED = gym.spaces.Tuple((gym.spaces.Discrete(3), box_actions(2)))
BYTES = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (8,), np.uint8))


@pytest.fixture(autouse=True)
def _registries():
    """What a test registers is gone after it."""
    reset_global_context()
    yield
    reset_global_context()


# Formulas


def test_categorical_kl_is_the_definition():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    expected = 0.5 * math.log(0.5 / 0.2) + 0.3 * math.log(0.3 / 0.2) + 0.2 * math.log(0.2 / 0.6)
    shift = 3.0  # logits are log-probabilities up to a constant
    kl = recomputation.categorical_kl(torch.tensor(np.log(p) + shift)[None], torch.tensor(np.log(q))[None])
    assert kl.item() == pytest.approx(expected, rel=1e-14)


def test_gaussian_kl_is_the_integral_of_the_definition():
    m_p, s_p, m_q, s_q = 0.3, 0.7, -0.4, 1.3
    x = np.linspace(-12, 12, 400_001)
    log_density = lambda m, s: -0.5 * ((x - m) / s) ** 2 - np.log(s * math.sqrt(2 * math.pi))  # noqa: E731
    log_p, log_q = log_density(m_p, s_p), log_density(m_q, s_q)
    integral = np.sum(np.exp(log_p) * (log_p - log_q)) * (x[1] - x[0])
    params = lambda m, s: torch.tensor([[m, math.log(s)]], dtype=torch.float64)  # noqa: E731
    assert recomputation.gaussian_kl(params(m_p, s_p), params(m_q, s_q)).item() == pytest.approx(integral, rel=1e-9)


def test_standard_deviations_are_clamped_as_the_acting_distribution_clamps_them():
    tiny = torch.tensor([[0.0, -50.0]], dtype=torch.float64)
    least = torch.tensor([[0.0, math.log(1e-4)]], dtype=torch.float64)
    assert recomputation.gaussian_kl(tiny, least).item() == pytest.approx(0.0, abs=1e-12)


def test_heads_add_up_in_order_and_in_float64():
    p, q = torch.randn(5, 7), torch.randn(5, 7)
    total = recomputation.policy_kl(p, q, [("categorical", 3), ("gaussian", 2)])
    first = recomputation.categorical_kl(p[:, :3].double(), q[:, :3].double())
    assert torch.equal(total, first + recomputation.gaussian_kl(p[:, 3:].double(), q[:, 3:].double()))


@pytest.mark.parametrize("spec", [[("categorical", 3)], [("poisson", 7)]])
def test_a_spec_that_does_not_fit_is_refused(spec):
    with pytest.raises(UnreadableError):
        recomputation.policy_kl(torch.zeros(2, 7), torch.zeros(2, 7), spec)


# Networks

NETWORKS = {
    "mlp": {},
    "lstm": LSTM,
    "gru2": {"use_rnn": True, "rnn_type": "gru", "rnn_num_layers": 2},
    "separate": {"actor_critic_share_weights": False, "adaptive_stddev": False},
    "separate lstm": {"actor_critic_share_weights": False, **LSTM},
    "short pieces": {**LSTM, "recurrence": 4},
}


@torch.no_grad()
def trainers_parameters(network, cfg, contents) -> torch.Tensor:
    """Action parameters by the packed sequences that sample-factory's learner trains with; its separate weights cannot pack."""
    network.eval()
    obs = prepare_and_normalize_obs(network, {name: x.clone() for name, x in contents["obs"].items()})
    states, apart = contents["rnn_states"], not cfg.actor_critic_share_weights
    features = network.actor_encoder(obs) if apart else network.forward_head(obs)
    core = network.actor_core if apart else network.core
    if cfg.use_rnn:
        states = states.chunk(2, dim=1)[0] if apart else states
        done_or_invalid = (contents["dones"] | ~contents["valids"]).float()
        packed, state, order = build_rnn_inputs(features, done_or_invalid, states, cfg.recurrence)
        features = build_core_out_from_seq(core(packed, state)[0], order)
    if apart:
        return network.action_parameterization(network.actor_decoder(features))[0]
    return network.forward_tail(features, values_only=False, sample_actions=False)["action_logits"]


@pytest.mark.parametrize("flags", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("space", [gym.spaces.Discrete(4), box_actions(2), MIXED], ids=["discrete", "box", "mixed"])
def test_action_parameters_are_those_a_learner_trains_on_and_an_actor_acts_by(tmp_path, flags, space):
    contents, network, cfg = make_update(tmp_path, space, **flags)
    record = parse(contents, "x")
    rebuilt = recomputation.build_network(cfg, record)
    recomputation.load_weights(rebuilt, record.state_dict, "state_dict")
    recomputed = recomputation.action_parameters(rebuilt, cfg, record)
    assert recomputed.dtype == torch.float32
    torch.testing.assert_close(recomputed, trainers_parameters(network, cfg, contents), rtol=1e-5, atol=1e-6)
    recomputation.load_weights(rebuilt, record.previous_state_dict, "previous_state_dict")
    as_before = recomputation.action_parameters(rebuilt, cfg, record)
    torch.testing.assert_close(as_before, contents["action_logits"], rtol=1e-5, atol=1e-6)
    assert found(contents, cfg).acted < 1e-5


@pytest.mark.parametrize("chunk", [1, 3, 24])
@pytest.mark.parametrize("flags", [{}, LSTM], ids=["mlp", "lstm"])
def test_chunks_make_no_difference(tmp_path, monkeypatch, chunk, flags):
    contents, _, cfg = make_update(tmp_path, **flags)
    whole = found(contents, cfg)
    monkeypatch.setattr(recomputation, "_CHUNK", chunk)
    assert found(contents, cfg).kl_max == pytest.approx(whole.kl_max, rel=1e-4)


def test_raw_observations_are_normalised_by_the_statistics_of_each_policy_and_stay_as_they_are(tmp_path):
    contents, network, cfg = make_update(tmp_path, obs_space=BYTES, step=0.0, obs_scale=255.0)
    before = contents["obs"]["obs"].clone()
    assert found(contents, cfg).kl_max == 0.0
    network.obs_normalizer.running_mean_std.running_mean_std["obs"].running_mean += 0.3
    contents["state_dict"] = {name: x.clone() for name, x in network.state_dict().items()}
    assert found(contents, cfg).kl_max > 1e-4
    assert torch.equal(contents["obs"]["obs"], before)


def test_observations_of_several_types_make_their_own_space():
    kinds = (torch.uint8, torch.int64, torch.float32, torch.float64, torch.bool)
    obs = {str(kind): torch.zeros(3, 2, 2, dtype=kind) for kind in kinds}
    space = recomputation._obs_space(type("Record", (), {"obs": obs})())
    assert list(space.spaces) == list(obs)
    assert [str(part.dtype) for part in space.spaces.values()] == ["uint8", "int64", "float32", "float64", "bool"]
    assert {part.shape for part in space.spaces.values()} == {(2, 2)}


class InPlaceEncoder(Encoder):
    """Works on its input itself, as an actor's own copy allows."""

    def __init__(self, cfg, obs_space):
        super().__init__(cfg)
        self.layer = torch.nn.Linear(8, 3)

    def get_out_size(self):
        return 3

    def forward(self, obs_dict):
        return self.layer(obs_dict["obs"].mul_(0.5))


def test_a_network_that_works_in_place_sees_the_recorded_observations_each_time(tmp_path):
    global_model_factory().register_encoder_factory(InPlaceEncoder)
    contents, _, cfg = make_update(tmp_path, normalize_input=False, step=0.0)
    contents["state_dict"]["critic_linear.bias"] += 1.0  # another policy, of the same actions
    assert found(contents, cfg).kl_max == 0.0


class LeakyCore(ModelCore):
    """A memory of its own that sample-factory runs although `use_rnn` is off."""

    def __init__(self, cfg, input_size):
        super().__init__(cfg)
        self.core_output_size = 4
        self.layer = torch.nn.Linear(input_size + 1, 4)

    def forward(self, head_output, rnn_states):
        output = torch.tanh(self.layer(torch.cat([head_output, rnn_states[:, :1]], dim=1)))
        return output, 0.5 * rnn_states + output.mean(dim=1, keepdim=True)


def test_a_registered_core_is_run_although_the_policy_is_not_recurrent(tmp_path):
    global_model_factory().register_model_core_factory(LeakyCore)
    contents, _, cfg = make_update(tmp_path, step=0.0)
    assert contents["rnn_states"].unique().numel() > COUNT / 2
    assert found(contents, cfg).acted < 1e-5
    contents["state_dict"]["core.layer.weight"][:, -1] += 2.0  # the memory's alone
    assert found(contents, cfg).kl_max > 1e-3
    contents["rnn_states"] = torch.zeros_like(contents["rnn_states"])
    assert found(contents, cfg).acted_other is not None


def test_this_projects_own_actor_critic_is_not_believed(tmp_path):
    def make_actor_critic(cfg, obs_space, action_space):
        raise AssertionError("not to be called")

    make_actor_critic.__module__ = "sf_fixpo.learning.networks"
    contents, _, cfg = make_update(tmp_path)
    global_model_factory().register_actor_critic_factory(make_actor_critic)
    assert found(contents, cfg).acted < 1e-5


def test_a_users_own_actor_critic_is_built(tmp_path):
    built = []

    def make_mine(cfg, obs_space, action_space):
        built.append(1)
        return default(cfg, obs_space, action_space)

    contents, _, cfg = make_update(tmp_path)
    default = global_model_factory().make_actor_critic_func
    global_model_factory().register_actor_critic_factory(make_mine)
    found(contents, cfg)
    assert built


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"encoder_mlp_layers": None}, "no network can be built: TypeError"),
        ({"rnn_type": None, "use_rnn": True}, "no network can be built: RuntimeError: Unknown RNN type"),
        ({"use_rnn": True}, "previous_state_dict does not fit the network"),
        ({"encoder_mlp_layers": [16, 8]}, "previous_state_dict does not fit the network"),
    ],
    ids=["layers", "type", "recurrent", "smaller"],
)
def test_a_network_that_cannot_be_built_says_how_to_bring_ones_own(tmp_path, flags, message):
    contents, _, cfg = make_update(tmp_path)
    cfg.update(flags)
    with pytest.raises(UnreadableError, match=f"{message}.*--import=MODULE"):
        found(contents, cfg)


def test_states_that_are_none_of_the_network_are_refused(tmp_path):
    contents, _, cfg = make_update(tmp_path, **LSTM)
    with pytest.raises(UnreadableError, match=r"cannot be run: .*--import=MODULE"):
        found({**contents, "rnn_states": contents["rnn_states"][:, :3]}, cfg)
    cfg.recurrence = 7
    with pytest.raises(UnreadableError, match="64 states are no pieces of 7 steps"):
        found(contents, cfg)


def test_weights_are_loaded_bit_for_bit_or_not_at_all(tmp_path):
    contents, _, cfg = make_update(tmp_path)
    for key in ("previous_state_dict", "state_dict"):
        contents[key] = {name: x.double() for name, x in contents[key].items()}
    with pytest.raises(UnreadableError, match=r"previous_state_dict has other types.*critic_linear\.bias"):
        found(contents, cfg)
