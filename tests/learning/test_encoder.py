"""DMLab's instruction encoder: equal to sample-factory's in outputs and gradients, and without a wait for the device."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.model.encoder import MultiInputEncoder, default_make_encoder_func
from sample_factory.model.model_utils import get_rnn_size
from sf_examples.dmlab.dmlab_model import DmlabEncoder as ExampleDmlabEncoder
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import encoder as encoder_benchmark
from benchmarks.synthetic import fill_policy_outputs, make_batch, make_cfg, make_learner, small_shape, vector_space
from sf_fixpo.audit import audit
from sf_fixpo.learning import encoder
from sf_fixpo.learning.encoder import DmlabEncoder, encode_instructions
from sf_fixpo.learning.networks import TASK_ID, make_actor_critic, network_obs_space
from sf_fixpo.learning.policy import action_parameters
from sf_fixpo.learning.sequences import Sequences

WORDS = 16
PIXELS = gym.spaces.Box(0, 255, (3, 36, 48), np.uint8)
INSTRUCTION = gym.spaces.Box(0, 999, (WORDS,), np.int32)
OBS_SPACE = gym.spaces.Dict(obs=PIXELS, INSTR=INSTRUCTION)
TASK = gym.spaces.Box(0, 29, (1,), np.float32)
WITH_TASK = gym.spaces.Dict(obs=PIXELS, INSTR=INSTRUCTION, task_id=TASK)
IMAGE_FLAGS = {
    "encoder_conv_architecture": "convnet_simple",
    "encoder_conv_mlp_layers": [8],
    "nonlinearity": "relu",
    "obs_scale": 255.0,
    "normalize_input_keys": ["obs"],
}
# operators that end in a number or a shape that the host has to wait for
WAITING = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal", "is_nonzero")


def cfg_of(tmp_path, obs_space=OBS_SPACE, **flags):
    return make_cfg("FIXPO", small_shape(obs_space, **{**IMAGE_FLAGS, **flags}), train_dir=tmp_path)


@pytest.fixture
def cfg(tmp_path):
    return cfg_of(tmp_path)


def instructions(*lengths: int) -> torch.Tensor:
    """Random words, 0 behind each row's length."""
    words = torch.randint(1, 1000, (len(lengths), WORDS), generator=torch.Generator().manual_seed(0))
    return words * (torch.arange(WORDS) < torch.tensor(lengths)[:, None])


BATCHES = {
    "empty": instructions(*[0] * 6),
    "one word": instructions(*[1] * 6),
    "longest": instructions(*[WORDS] * 6),
    "every length": instructions(*range(WORDS + 1)),
    "all equal": instructions(3).expand(6, -1).contiguous(),
    "few kinds": instructions(0, 3, 7, WORDS)[torch.tensor([0, 1, 1, 3, 2, 0, 3, 3, 1])],
    "one row": instructions(5),
    "prefixes of each other": instructions(WORDS).expand(5, -1)
    * (torch.arange(WORDS) < torch.tensor([[1], [4], [4], [16], [0]])),
    "a 0 between words": torch.tensor([[5, 0, 7, 9] + [0] * 12, [5, 7, 9, 0] + [0] * 12, [5, 7, 0, 9] + [0] * 12]),
}


class Waits(TorchDispatchMode):
    """Collects the operators after which the host would know something that only the device knew."""

    def __init__(self, device: str):
        super().__init__()
        self.found, self.count, self.device = [], 0, device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        self.count += 1
        if any(word in name for word in WAITING):
            self.found.append(name)
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != self.device:
            self.found.append(f"{name} to {result.device}")
        return result


def images(count: int) -> torch.Tensor:
    return torch.rand(count, *PIXELS.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("words", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("path", [encode_instructions, encoder._encode_all], ids=["cpu", "accelerator"])
def test_output_and_gradients_are_those_of_sample_factory(cfg, words, path, monkeypatch):
    example, ours = ExampleDmlabEncoder(cfg, OBS_SPACE), DmlabEncoder(cfg, OBS_SPACE)
    ours.load_state_dict(example.state_dict())
    monkeypatch.setattr(encoder, "encode_instructions", path)
    weight = torch.randn(len(words), ours.get_out_size(), generator=torch.Generator().manual_seed(2))
    outputs = []
    for module in (example, ours):
        outputs.append(module({"obs": images(len(words)), "INSTR": words}))
        (outputs[-1] * weight).sum().backward()
    assert outputs[1].shape == (len(words), ours.get_out_size())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    gradients = {name: p.grad for name, p in example.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    assert gradients["instructions_lstm.weight_ih_l0"].abs().sum() > 0 or not words.any()


def test_same_parameters_by_name_order_and_first_values(cfg):
    made = []
    for kind in (ExampleDmlabEncoder, DmlabEncoder):
        torch.manual_seed(3)
        made.append(list(kind(cfg, OBS_SPACE).named_parameters()))
    assert [name for name, _ in made[0]] == [name for name, _ in made[1]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*made, strict=True))


def test_different_instructions_give_different_features(cfg):
    ours = DmlabEncoder(cfg, OBS_SPACE)
    features = ours({"obs": images(1).expand(17, -1, -1, -1), "INSTR": BATCHES["every length"]})
    assert len(torch.unique(features, dim=0)) == 17


@pytest.mark.parametrize("share", [True, False])
def test_no_wait_for_an_accelerator_forward_and_backward(tmp_path, share):
    """On meta tensors, which have no values to read: what works here can have waited for nothing."""
    cfg = cfg_of(tmp_path, actor_critic_share_weights=share)
    network = make_actor_critic(cfg, WITH_TASK, gym.spaces.Discrete(4))
    network.model_to_device("meta")
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert network.device_for_input_tensor("INSTR").type == "meta"
    obs = {"obs": images(5).to("meta"), "INSTR": BATCHES["every length"][:5].to("meta")}
    with Waits("meta") as waits:
        head = network.forward_head(obs)
        head.sum().backward()
    assert waits.found == []
    assert waits.count > 20  # the operators were seen
    assert len(head) == 5


def test_the_proof_can_fail(cfg):
    """sample-factory's encoder waits; and so does ours on the CPU, where it may."""
    obs = {"obs": images(5), "INSTR": BATCHES["every length"][:5]}
    for kind in (ExampleDmlabEncoder, DmlabEncoder):
        with Waits("cpu") as waits:
            kind(cfg, OBS_SPACE)(obs)
        assert "_local_scalar_dense" in waits.found
    example = ExampleDmlabEncoder(cfg, OBS_SPACE).to("meta")
    with pytest.raises(RuntimeError, match=r"meta|item"):
        example({key: x.to("meta") for key, x in obs.items()})


def test_on_the_cpu_each_distinct_instruction_is_read_once_and_no_further_than_the_longest(cfg):
    ours, seen = DmlabEncoder(cfg, OBS_SPACE), []
    ours.instructions_lstm.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    ours({"obs": images(6), "INSTR": BATCHES["all equal"]})
    ours({"obs": images(6), "INSTR": BATCHES["empty"]})
    ours({"obs": images(17), "INSTR": BATCHES["every length"]})
    assert seen == [(1, 3, 20), (1, 1, 20), (17, WORDS, 20)]


# -- the network ----------------------------------------------------------------------------------------------------------------


def encoders_of(network) -> list[type]:
    return [type(module) for module in network.encoders]


@pytest.mark.parametrize("share", [True, False])
def test_networks_with_instructions_use_it_and_others_do_not(tmp_path, share):
    count = 1 if share else 2
    cfg = cfg_of(tmp_path, actor_critic_share_weights=share)
    assert encoders_of(make_actor_critic(cfg, OBS_SPACE, gym.spaces.Discrete(4))) == [DmlabEncoder] * count
    assert encoders_of(make_actor_critic(cfg, vector_space(), gym.spaces.Discrete(4))) == [MultiInputEncoder] * count
    assert global_model_factory().make_model_encoder_func is default_make_encoder_func


def test_a_registered_encoder_is_taken(cfg):
    factory = global_model_factory()
    factory.register_encoder_factory(ExampleDmlabEncoder)
    try:
        network = make_actor_critic(cfg, OBS_SPACE, gym.spaces.Discrete(4))
    finally:
        factory.register_encoder_factory(default_make_encoder_func)
    assert encoders_of(network) == [ExampleDmlabEncoder]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("use_rnn", [True, False])
def test_actor_alone_agrees_with_the_whole_network(tmp_path, share, use_rnn):
    """Through packed sequences, as the learner trains."""
    cfg = cfg_of(tmp_path, actor_critic_share_weights=share, use_rnn=use_rnn, recurrence=4 if use_rnn else 1)
    network = make_actor_critic(cfg, OBS_SPACE, gym.spaces.Discrete(4)).eval()
    words = BATCHES["every length"][:16]
    obs, states = {"obs": images(16), "INSTR": words}, torch.zeros(16, get_rnn_size(cfg))
    packing = Sequences(np.ones(16, dtype=bool), cfg.recurrence, "cpu").part(slice(0, 16)) if use_rnn else None
    parameters = action_parameters(network, obs, states, packing)
    expected = network(obs, states)["action_logits"]  # every step from a state of zeros
    torch.testing.assert_close(parameters, expected)
    assert not torch.allclose(parameters, action_parameters(network, {**obs, "INSTR": words * 0}, states, packing))


@pytest.mark.parametrize("kind", ["dmlab", "vector"])
@pytest.mark.parametrize("share", [True, False])
def test_task_id_has_no_weights_and_no_effect(tmp_path, kind, share):
    plain = OBS_SPACE if kind == "dmlab" else vector_space()
    with_task = gym.spaces.Dict({**plain.spaces, TASK_ID: TASK})
    keys = ["obs"] if kind == "dmlab" else None  # None: statistics of every observation
    flags = {"actor_critic_share_weights": share, "normalize_input": True, "normalize_input_keys": keys, "obs_scale": 1.0}
    networks = []
    for space in (plain, with_task):
        torch.manual_seed(0)
        networks.append(make_actor_critic(cfg_of(tmp_path, space, **flags), space, gym.spaces.Discrete(4)).eval())
    states = [network.state_dict() for network in networks]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(TASK_ID in name for name in states[1])

    first = {"obs": images(5) if kind == "dmlab" else torch.randn(5, 8)}
    if kind == "dmlab":
        first["INSTR"] = BATCHES["every length"][:5].int()
    task = torch.arange(5.0)[:, None] * 6
    normalized = prepare_and_normalize_obs(networks[1], {**copy.deepcopy(first), TASK_ID: task.clone()})
    assert torch.equal(normalized[TASK_ID], task)
    if kind == "dmlab":
        assert normalized["INSTR"].dtype == torch.int64
        assert torch.equal(normalized["INSTR"], first["INSTR"].long())
    without = prepare_and_normalize_obs(networks[0], first)
    zeros = torch.zeros(5, 4)
    torch.testing.assert_close(
        networks[1](normalized, zeros, values_only=True)["values"], networks[0](without, zeros, values_only=True)["values"]
    )
    assert torch.equal(networks[1].forward_head(normalized), networks[0].forward_head(without))


def test_statistics_in_training_mode_leave_the_task_alone(tmp_path):
    space = gym.spaces.Dict({**vector_space().spaces, TASK_ID: TASK})
    network = make_actor_critic(cfg_of(tmp_path, space, normalize_input=True, normalize_input_keys=None, obs_scale=1.0), space,
                                gym.spaces.Discrete(4)).train()  # fmt: skip
    task = torch.full((64, 1), 7.0)
    normalized = prepare_and_normalize_obs(network, {"obs": 3 + torch.randn(64, 8), TASK_ID: task.clone()})
    assert torch.equal(normalized[TASK_ID], task)
    assert list(network.obs_normalizer.running_mean_std.running_mean_std.keys()) == ["obs"]
    assert network.summaries()["obs_running_mean"] > 0


def test_observations_without_a_task_are_passed_on_as_they_are():
    assert network_obs_space(OBS_SPACE) is OBS_SPACE
    assert network_obs_space(WITH_TASK) == OBS_SPACE


def test_learner_trains_on_instructions_inside_the_bound(tmp_path):
    shape = small_shape(WITH_TASK, **IMAGE_FLAGS, use_rnn=True, learning_rate=1e-2, num_epochs=2)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, eps_kl=0.05)
    before = learner.actor_critic.encoder.instructions_lstm.weight_hh_l0.detach().clone()
    batch = make_batch(learner, seed=0)
    fill_policy_outputs(learner, batch, seed=0)
    learner.train(batch)
    record = learner.last_record
    assert record is not None
    assert record.kl_max <= record.eps_kl
    assert isinstance(learner.actor_critic.encoder, DmlabEncoder)
    assert not torch.equal(learner.actor_critic.encoder.instructions_lstm.weight_hh_l0, before)


def test_checkpoints_load_in_sample_factorys_network_and_back(cfg):
    factory = global_model_factory()
    ours = make_actor_critic(cfg, OBS_SPACE, gym.spaces.Discrete(4))
    factory.register_encoder_factory(ExampleDmlabEncoder)
    try:
        theirs = make_actor_critic(cfg, OBS_SPACE, gym.spaces.Discrete(4))
    finally:
        factory.register_encoder_factory(default_make_encoder_func)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    obs = {"obs": images(4), "INSTR": BATCHES["every length"][3:7]}
    torch.testing.assert_close(ours.forward_head(obs), theirs.forward_head(obs), rtol=1e-5, atol=1e-6)


# -- its benchmark ---------------------------------------------------------------------------------------------------------------


def test_benchmark_times_both_on_every_kind_of_instruction(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(encoder_benchmark, "quiet", lambda: None)  # other tests look at the log
    threads, out = torch.get_num_threads(), tmp_path / "rows.json"
    try:
        assert encoder_benchmark.main(["--batch=8", "--repetitions=2", "--warmup=0", f"--json={out}"]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(out.read_text())
    assert [(r["kind"], r["what"], r["encoder"]) for r in rows] == [
        (kind, what, name)
        for kind in encoder_benchmark.KINDS
        for what in encoder_benchmark.PASSES
        for name in encoder_benchmark.ENCODERS
    ]
    assert all(r["milliseconds"] > 0 and r["repetitions"] == 2 and r["batch"] == 8 for r in rows)
    assert [r["speed_up"] for r in rows if r["encoder"] == "sample-factory"] == [1.0] * 6
    assert "sf_fixpo" in capsys.readouterr().out


def test_benchmark_ratios_are_of_neighbouring_passes():
    where = {"kind": "short", "what": "forward", "device": "cpu", "device_name": "1", "batch": 1, "image": False}
    _, row = encoder_benchmark.make_rows({"theirs": [1.0, 4.0, 6.0], "ours": [1.0, 2.0, 2.0]}, **where)
    assert (row.milliseconds, row.speed_up, row.speed_up_spread) == (2000.0, 2.0, (1.0, 3.0))


def test_benchmark_instructions_are_what_their_kind_says():
    empty, short, mixed = (encoder_benchmark.make_instructions(kind, 512) for kind in encoder_benchmark.KINDS)
    assert not empty.any()
    assert ((short != 0).sum(1) == 3).all()
    assert len(torch.unique(short, dim=0)) == 1
    assert len(torch.unique(mixed, dim=0)) > 20
    assert {tuple(x.shape) for x in (empty, short, mixed)} == {(512, WORDS)}


def test_benchmark_refuses_a_batch_of_nothing(capsys):
    with pytest.raises(SystemExit, match="2"):
        encoder_benchmark.main(["--batch=0"])
    assert "--batch=0: at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("share", [True, False])
def test_audit_rebuilds_the_policy_with_sample_factorys_own_encoder(tmp_path, share):
    shape = small_shape(OBS_SPACE, **IMAGE_FLAGS, use_rnn=True, learning_rate=1e-2, actor_critic_share_weights=share)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, eps_kl=0.05, audit_every=1)
    (Path(learner.folder) / "config.json").write_text(json.dumps(learner.cfg))
    batch = make_batch(learner, seed=0)
    fill_policy_outputs(learner, batch, seed=0)
    learner.train(batch)
    [finding] = audit(Path(learner.folder), quiet=True)
    assert finding.kl_max == pytest.approx(learner.last_record.kl_max, rel=1e-3, abs=1e-7)
    assert finding.kl_max > 0
