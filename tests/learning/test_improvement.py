"""Losses and sequences against sample-factory's own: the same numbers by another way, and what each step may touch."""

from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import gymnasium as gym
import networks
import numpy as np
import pytest
import torch
from busy import BUSY
from hypothesis import given
from hypothesis import strategies as st
from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.learning.rnn_utils import build_core_out_from_seq, build_rnn_inputs
from sample_factory.algo.utils.tensor_dict import TensorDict
from sample_factory.model.actor_critic import ActorCriticSeparateWeights, ActorCriticSharedWeights
from sample_factory.utils.attr_dict import AttrDict
from sf_examples.vizdoom.doom.doom_model import VizdoomEncoder, make_vizdoom_encoder
from torch import nn

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape, take_snapshot
from sf_fixpo.learning.batch import GAE_KEYS, PRIMARY_KEYS, VTRACE_KEYS
from sf_fixpo.learning.masks import distribution_of
from sf_fixpo.learning.networks import channels_last, takes_channels_last
from sf_fixpo.learning.policy import action_parameters, forward
from sf_fixpo.learning.sequences import Sequences

LSTM = {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8}


# -- losses -------------------------------------------------------------------------------------------------------------------

CASES = {
    "mlp": {},
    "lstm": LSTM,
    "separate": {"actor_critic_share_weights": False},
    "v-trace": {"with_vtrace": True, "recurrence": 8},
    "v-trace lstm": {"with_vtrace": True, "recurrence": 8, **LSTM},
    "entropy": {"exploration_loss": "entropy", "exploration_loss_coeff": 0.05},
    "symmetric": {"exploration_loss": "symmetric_kl", "exploration_loss_coeff": 0.05},
    "clipped values": {"ppo_clip_value": 0.01},
}


@pytest.mark.parametrize("invalid_share", [0.0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_losses_are_sample_factorys_where_the_paper_keeps_them(case, invalid_share, tmp_path):
    """With a clip ratio that never binds its learner has the same policy loss; its KL loss is ours at beta 1."""
    flags = {**BUSY, "normalize_input": False, "kl_loss_coeff": 1.0, "ppo_clip_ratio": 1e3, **CASES[case], "learning_rate": 1e-3}
    del flags["eps_kl"]
    mixed = gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)])
    # sample-factory's Gaussian has no divergence from a uniform prior
    shape = small_shape(action_space=gym.spaces.Discrete(4) if case == "symmetric" else mixed, **flags)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path / "a", beta_lr=0.0, reference="behaviour", eps_kl=1e3)
    old = take_snapshot(learner)
    learner.train(make_batch(learner, seed=0))
    learner.train(make_batch(learner, seed=1, done_rate=0.2, invalid_share=invalid_share, snapshots=[old]))
    batch, _ = learner._update
    minibatch = batch.minibatch(slice(0, 32), PRIMARY_KEYS + (VTRACE_KEYS if flags.get("with_vtrace") else GAE_KEYS))
    num_invalids = int((~batch.valids).sum())
    loss, parts = learner.improvement.losses(minibatch)

    stock = make_learner("APPO", shape, train_dir=tmp_path / "b")
    stock.actor_critic.load_state_dict(learner.actor_critic.state_dict())
    theirs = AttrDict({key: value[:32] for key, value in batch.samples.items() if torch.is_tensor(value)})
    theirs.normalized_obs = batch.obs[:32]
    theirs.dones_cpu, theirs.rewards_cpu = theirs.dones.float(), theirs.rewards  # which ours needs no copies of
    distribution, policy, exploration, kl, kl_loss, value, more = Learner._calculate_losses(stock, theirs, num_invalids)
    expected = {"policy_loss": policy, "exploration_loss": exploration, "kl_loss": kl_loss, "value_loss": value}
    for name, number in expected.items():
        torch.testing.assert_close(torch.as_tensor(parts[name]).float(), torch.as_tensor(number).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["kl"][batch.valids[:32]], kl, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["adv_std"], more["adv_std"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss, sum(torch.as_tensor(x) for x in expected.values()), rtol=1e-4, atol=1e-5)
    found = distribution_of(learner.candidate.model, parts["parameters"])
    torch.testing.assert_close(found.entropy(), distribution.entropy(), rtol=1e-4, atol=1e-5)


# -- sequences ----------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31 - 1))
def test_sequences_are_sample_factorys(trajectories, steps, rate, seed):
    rng = np.random.default_rng(seed)
    ends = rng.random(trajectories * steps) < rate
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(ends), 5, generator=generator)
    states = torch.randn(len(ends), 6, generator=generator)
    core = nn.GRU(5, 6)
    packing = Sequences(ends, steps, "cpu").part(slice(0, len(ends)))
    packed, first = packing.pack(x, states)
    outputs = packing.unpack(core(packed, first.unsqueeze(0))[0])
    theirs, their_first, order = build_rnn_inputs(x, torch.from_numpy(ends).float(), states, steps)
    expected = build_core_out_from_seq(core(theirs, their_first.unsqueeze(0))[0], order)
    torch.testing.assert_close(outputs, expected, rtol=1e-6, atol=1e-6)


def test_a_packing_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Sequences(np.zeros(8, bool), 4, "cpu").part(slice(0, 8)).keep = None


def test_any_trajectories_in_any_order_are_taken():
    ends = np.random.default_rng(0).random(6 * 4) < 0.3
    x, states, core = torch.randn(24, 3), torch.randn(24, 5), nn.GRU(3, 5)
    sequences = Sequences(ends, 4, "cpu")

    def play(packing, samples):
        packed, first = packing.pack(x[samples], states[samples])
        return packing.unpack(core(packed, first.unsqueeze(0))[0])

    whole = play(sequences.part(slice(0, 24)), slice(0, 24))
    chosen = np.array([4, 0, 3])
    samples = torch.from_numpy((chosen[:, None] * 4 + np.arange(4)).reshape(-1))
    torch.testing.assert_close(play(sequences.of(chosen), samples), whole[samples], rtol=1e-6, atol=1e-6)
    assert sequences.part(slice(4, 12)) is sequences.part(slice(4, 12)), "packed once an update"


def test_a_state_that_is_no_number_does_not_get_past_the_end_of_its_episode():
    states = torch.zeros(4, 5)
    states[1:] = float("nan")  # only the first of a trajectory is looked at
    packed, first = Sequences(np.array([False, True, False, False]), 4, "cpu").part(slice(0, 4)).pack(torch.ones(4, 3), states)
    assert first.isfinite().all()
    assert packed.batch_sizes.tolist() == [2, 2]


# -- the forward pass ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", [{}, LSTM], ids=["mlp", "lstm"])
@pytest.mark.parametrize("share", [True, False])
def test_the_actor_without_its_critic_is_the_whole_networks_actor(share, core, tmp_path):
    learner = make_learner("FIXPO", small_shape(actor_critic_share_weights=share, **core, **BUSY), train_dir=tmp_path)
    learner.train(make_batch(learner, seed=0))
    batch, _ = learner._update
    part, model = slice(0, 32), learner.gate.published.model
    arguments = batch.obs[part], batch.samples["rnn_states"][part], batch.packing(part)
    assert torch.equal(action_parameters(model, *arguments), forward(model, *arguments)["action_logits"])


@pytest.mark.parametrize("share", [True, False])
def test_images_encoded_some_at_a_time_give_the_same(share, tmp_path, monkeypatch):
    """Values and gradients; only where the encoder is known to look at each image for itself."""
    space = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 36, 36), np.uint8))
    flags = {**BUSY, "encoder_conv_architecture": "convnet_impala", "encoder_conv_mlp_layers": [16], "normalize_input": False}
    shape = small_shape(space, actor_critic_share_weights=share, obs_scale=255.0, **flags)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path)
    learner.train(make_batch(learner, seed=0))
    batch, _ = learner._update
    minibatch = batch.minibatch(slice(0, 32), PRIMARY_KEYS + GAE_KEYS)
    found = []
    for at_once in (32, 5):
        monkeypatch.setattr("sf_fixpo.learning.policy._IMAGE_VALUES", at_once * 3 * 36 * 36)
        assert learner.candidate.samples_at_once(minibatch.obs) == at_once
        loss, _ = learner.improvement.losses(minibatch)
        parameters = [parameter for parameter in learner.actor_critic.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters)
        checked = learner.verifier.staged.action_parameters(minibatch.obs, minibatch.rnn_states, None)
        found.append((loss.detach(), checked, *gradients))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(learner.candidate, "fast_images", False)
    assert learner.candidate.samples_at_once(minibatch.obs) > 1 << 40


def test_the_encoder_of_sample_factorys_vizdoom_looks_at_each_image_for_itself(tmp_path):
    """It is no class of the core's, but what most of its users train: images in parts, channels-last."""
    space = {"obs": gym.spaces.Box(0, 255, (3, 36, 36), np.uint8), "measurements": gym.spaces.Box(-9, 9, (5,), np.float32)}
    flags = {**BUSY, "encoder_conv_architecture": "convnet_simple", "encoder_conv_mlp_layers": [16]}
    with networks.registered(make_vizdoom_encoder):
        model = make_learner("FIXPO", small_shape(gym.spaces.Dict(space), **flags), train_dir=tmp_path).candidate.model
    assert type(model.encoder) is VizdoomEncoder
    assert takes_channels_last(model)
    obs = TensorDict(obs=torch.rand(7, 3, 36, 36), measurements=torch.randn(7, 5))
    whole, parts = (forward(model, channels_last(obs), torch.zeros(7, 8), None, at_once) for at_once in (7, 3))
    for key in ("action_logits", "values"):
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", [ActorCriticSharedWeights, ActorCriticSeparateWeights])
def test_a_class_that_is_not_known_gets_the_full_pass(base, tmp_path):
    """A subclass may do anything with its parts."""

    class Unknown(base):
        def forward_tail(self, core_output, values_only, sample_actions):
            result = super().forward_tail(core_output, values_only, sample_actions)
            return {**result, "action_logits": result["action_logits"] + 1.0}

    share = base is ActorCriticSharedWeights
    learner = make_learner("FIXPO", small_shape(actor_critic_share_weights=share, **BUSY), train_dir=tmp_path)
    model = learner.gate.published.model
    obs, states = {"obs": torch.randn(4, 8)}, torch.zeros(4, 1)
    plain = action_parameters(model, obs, states, None)
    model.__class__ = Unknown
    torch.testing.assert_close(action_parameters(model, obs, states, None), plain + 1.0)


def test_a_core_that_is_registered_without_memory_gets_every_samples_own_state(tmp_path):
    learner = make_learner("FIXPO", small_shape(recurrence=8, **BUSY), train_dir=tmp_path)
    model, seen = learner.gate.published.model, []
    model.forward_core = lambda x, states: (seen.append(states), (x, states))[1]
    states = torch.arange(8.0).unsqueeze(1)
    action_parameters(model, {"obs": torch.randn(8, 8)}, states, None)
    assert torch.equal(seen[0], states)


# -- steps --------------------------------------------------------------------------------------------------------------------


def test_a_fixup_step_takes_the_share_of_valid_samples_into_account(tmp_path, monkeypatch):
    """As a primary step: a batch of which little is valid gives a noisy gradient."""
    learner = make_learner("FIXPO", small_shape(**{**BUSY, "learning_rate": 0.05}), train_dir=tmp_path)
    rates, phases = [], []
    descend, fixup_step = learner.improvement._descend, learner.improvement.fixup_step
    monkeypatch.setattr(
        learner.improvement, "_descend", lambda p, loss, rate, **_: (rates.append(rate), descend(p, loss, rate))[1]
    )
    monkeypatch.setattr(learner.improvement, "fixup_step", lambda *args: (phases.append(len(rates)), fixup_step(*args))[1])
    learner.train(make_batch(learner, seed=0, invalid_share=0.5))
    assert phases, "there was a fixup step"
    fraction = learner.last_record.valid_fraction
    assert 0.3 < fraction < 0.7
    assert all(rates[i] in [pytest.approx(0.05 * fraction / 2**k) for k in range(5)] for i in phases)


def test_states_that_are_not_valid_neither_pull_nor_count(tmp_path):
    """In the check, in the fixup loss and in beta's step."""
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    learner.train(make_batch(learner, seed=0))
    batch, progress = learner._update
    batch.all_valid = False
    batch.valids[:] = False
    batch.valids[3] = True
    batch.bound = batch.bound.clone()
    batch.bound[~batch.valids] += 50.0 * torch.randn(int((~batch.valids).sum()), batch.bound.shape[1])
    learner.verifier.stage(learner.candidate)
    values = learner.verifier.check(learner.verifier.slices)
    assert values[0] == pytest.approx(float(learner.verifier.kl_of[0][3]))
    assert values[1] == 0.0
    for moment in (learner.multiplier.exp_avg, learner.multiplier.exp_avg_sq):
        moment.zero_()
    before = learner.multiplier.beta.clone()
    learner.improvement.fixup_step(progress, batch, learner.verifier.slices[0], 1e-3)
    inside = values[0] * learner.fixpo.c_beta < learner.fixpo.eps_kl
    assert (learner.multiplier.beta < before) == inside
    gradients = [p.grad.norm() for p in learner.actor_critic.parameters() if p.grad is not None]
    assert max(gradients) < 1.0


def test_the_reference_is_that_of_the_published_statistics(tmp_path):
    """Not of the candidate's, which have counted the new batch already."""
    flags = {**BUSY, "learning_rate": 1e-6}
    learner = make_learner("FIXPO", small_shape(**flags), train_dir=tmp_path, reference="previous")
    old = take_snapshot(learner)
    for seed in range(2):
        learner.train(make_batch(learner, seed=seed))
    published = {name: tensor.clone() for name, tensor in learner.gate.published.model.state_dict().items()}
    batch = make_batch(learner, seed=5, snapshots=[old])
    batch["obs"]["obs"] *= 3.0
    raw = {"obs": batch["obs"]["obs"][:, :-1].flatten(0, 1).clone()}
    learner.train(batch)
    trained, _ = learner._update
    network = make_learner("FIXPO", small_shape(**flags), train_dir=tmp_path / "other").gate.published
    network.model.load_state_dict(published)
    expected = network.action_parameters(network.observe(raw), trained.samples["rnn_states"], None)
    torch.testing.assert_close(trained.previous, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(trained.bound, trained.previous)
    assert not trained.stale.any()


# -- one step -----------------------------------------------------------------------------------------------------------------


def begun(tmp_path, **flags):
    """A learner in the middle of an update: (its improvement, the batch, the progress)."""
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, **flags)
    learner.train(make_batch(learner, seed=1))
    return learner.improvement, *learner._update


@pytest.mark.parametrize(("limit", "clipped"), [(0.5, True), (1.5, True), (0.0, False), (1e9, False)])
def test_gradients_are_clipped_to_their_norm_or_left_alone(limit, clipped, tmp_path):
    improvement, _, progress = begun(tmp_path, max_grad_norm=limit)
    parameters = list(improvement.candidate.model.parameters())
    reached = parameters[:3]
    norm = improvement._descend(progress, sum(3.0 * parameter.sum() for parameter in reached), 0.125)
    expected = 3.0 * sum(parameter.numel() for parameter in reached) ** 0.5
    assert norm.item() == pytest.approx(expected, rel=1e-5)
    left = torch.cat([parameter.grad.flatten() for parameter in reached]).norm().item()
    assert left == pytest.approx(limit if clipped else expected, rel=1e-4)
    assert all(parameter.grad is None for parameter in parameters[3:])
    assert {group["lr"] for group in improvement.optimizer.param_groups} == {0.125}


@pytest.mark.parametrize(("before", "value", "after"), [(False, 1.0, False), (True, 1.0, True), (False, float("nan"), True)])
def test_a_loss_that_is_none_is_noted_and_not_forgotten(before, value, after, tmp_path):
    improvement, _, progress = begun(tmp_path)
    progress.bad = torch.tensor(before)
    improvement._descend(progress, value * next(iter(improvement.candidate.model.parameters())).sum(), 1e-3)
    assert bool(progress.bad) == after


def test_the_likelihood_ratio_is_clamped_as_sample_factory_does(tmp_path):
    improvement, batch, _ = begun(tmp_path)
    batch.samples["log_prob_actions"] = torch.linspace(-60.0, 60.0, len(batch))
    ratio = improvement.losses(batch.minibatch(slice(0, len(batch)), PRIMARY_KEYS + GAE_KEYS))[1]["ratio"]
    assert (ratio.min().item(), ratio.max().item()) == (pytest.approx(0.05), 20.0)


def test_the_learning_rate_of_the_fixup_phase_is_halved_on_a_plateau(tmp_path, monkeypatch):
    improvement, batch, progress = begun(tmp_path, max_fixup_steps=5, fixup_plateau_steps=2)
    rates, staged = [], []
    monkeypatch.setattr(improvement, "fixup_step", lambda progress, batch, part, rate: rates.append(rate))
    verifier = SimpleNamespace(slices=[slice(0, 8)], limit=0.1, stage=staged.append, check=lambda slices: [4.0])
    progress.learning_rate, progress.fixup_steps, progress.lr_halvings = 0.8, 0, 0
    result = improvement.fixup(progress, batch, verifier)
    assert rates == [0.8, 0.8, 0.4, 0.4, 0.2]
    assert (result.satisfied, progress.fixup_steps, progress.lr_halvings) == (False, 5, 2)
    assert staged == [improvement.candidate] * 6
