"""What an update makes of its batch: samples that do not count, minibatches on the device, precision and memory layout."""

from functools import partial

import gymnasium as gym
import networks
import numpy as np
import pytest
import torch
from busy import BUSY
from sample_factory.algo.utils.tensor_dict import TensorDict
from updates import run, tensors

from benchmarks.synthetic import fill_policy_outputs, make_batch, make_learner, small_shape
from sf_fixpo.learning.batch import FIXUP_KEYS, Batch
from sf_fixpo.learning.policy import full_precision
from sf_fixpo.learning.sequences import Sequences


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# -- samples that do not count ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", [{}, {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8}], ids=["mlp", "lstm"])
def test_what_an_invalid_sample_holds_never_matters(core, tmp_path):
    ends = []
    for name, rubbish in (("a", 0.0), ("b", float("nan")), ("c", 1e30)):
        shape = small_shape(normalize_returns=True, **core, **BUSY)
        learner = make_learner("FIXPO", shape, train_dir=tmp_path / name, audit_every=1)
        batch = make_batch(learner, seed=0)
        clean = batch["obs"]["obs"].clone()
        for seed in range(3):
            batch["obs"]["obs"].copy_(clean)
            invalid = torch.rand(batch["rewards"].shape, generator=torch.Generator().manual_seed(seed)) < 0.3
            batch["policy_id"].copy_(torch.where(invalid, -1, 0))
            fill_policy_outputs(learner, batch, seed=seed)
            whole = torch.cat([invalid, invalid[:, -1:]], dim=1)
            for key in ("rewards", "action_logits", "log_prob_actions", "actions"):
                if batch[key].is_floating_point():
                    batch[key][invalid] = rubbish
            for tensor in (batch["obs"]["obs"], batch["values"], batch["rnn_states"]):
                tensor[whole] = rubbish
            learner.train(batch)
            assert not learner.last_record.rolled_back
        ends.append(tensors(learner.gate.published.model))
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_minibatches_of_any_order_are_taken_on_the_device():
    """Indices of a device cannot index host tensors: a whole batch on the meta device stands for one on a GPU."""
    count, steps = 64, 8
    meta = partial(torch.zeros, device="meta")
    samples = TensorDict(
        {key: meta(count, 4) for key in ("rnn_states", "actions", "action_logits")},
        valids=meta(count, dtype=torch.bool),
        values=meta(count),
    )
    batch = Batch(
        samples=samples,
        raw_obs=TensorDict(obs=meta(count, 3)),
        obs=TensorDict(obs=meta(count, 3)),
        valids=samples["valids"],
        sequences=Sequences(np.zeros(count, dtype=bool), steps, "meta"),
        behaviour=samples["action_logits"],
        task_ids=meta(count, dtype=torch.int64),
        beta_ids=meta(count, dtype=torch.int64),
        value_ids=None,
        recurrence=steps,
        lag=(0.0, 0.0, 0.0),
    )
    for shuffled in (True, False):
        for part in batch.parts(16, shuffled):
            minibatch = batch.minibatch(part, (*FIXUP_KEYS, "actions", "values"))
            lengths = {len(x) for x in (minibatch.obs["obs"], minibatch.bound, minibatch.beta_ids, minibatch.actions)}
            assert lengths == {16}
            packed, first = minibatch.packing.pack(minibatch.obs["obs"], minibatch.rnn_states)
            assert (packed.data.device.type, first.device.type) == ("meta", "meta")


# -- precision ----------------------------------------------------------------------------------------------------------------


def precisions():
    backends = torch.backends
    leaves = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return [leaf.fp32_precision for leaf in (*leaves, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)]


@pytest.fixture
def _precision():
    leaves = [
        torch.backends,
        torch.backends.cudnn,
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,
        torch.backends.cudnn.rnn,
    ]
    leaves += [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn]
    before = [leaf.fp32_precision for leaf in leaves]
    yield
    for leaf, value in zip(leaves, before, strict=True):
        leaf.fp32_precision = value


SETTINGS = {
    "as torch starts": lambda: None,
    "the older call": lambda: torch.set_float32_matmul_precision("high"),
    "the newer for everything": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "convolutions exact already": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "products exact already": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    "bf16 on the cpu": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
}


@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize("setting", SETTINGS)
def test_check_and_reference_run_in_full_precision_whatever_the_user_has_set(setting, tmp_path):
    SETTINGS[setting]()
    before, seen = precisions(), []
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    for policy in (learner.verifier.staged, learner.gate.published):
        policy.model.encoder.register_forward_pre_hook(lambda *_: seen.append(precisions()))
    run(learner, 4, lag=2)
    # the snapshots of older policies play in `make_batch` with networks of their own; published plays there, too, as an actor
    exact = [all(kind in ("ieee", "none") for kind in kinds) for kinds in seen]
    assert sum(exact) >= 8
    assert precisions() == before
    with full_precision():
        assert all(kind in ("ieee", "none") for kind in precisions())
    assert precisions() == before


# -- images ---------------------------------------------------------------------------------------------------------------------


def test_only_known_encoders_get_images_channels_last(tmp_path):
    space = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 36, 36), np.uint8))
    flags = {**BUSY, "encoder_conv_architecture": "convnet_impala", "encoder_conv_mlp_layers": [16]}
    assert make_learner("FIXPO", small_shape(space, **flags), train_dir=tmp_path / "a").candidate.fast_images
    small = gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 16, 16), np.uint8))
    with networks.registered(networks.ViewingConv):
        learner = make_learner("FIXPO", small_shape(small, **BUSY), train_dir=tmp_path / "b")
        assert not learner.candidate.fast_images
        assert learner.actor_critic.encoder.conv.weight.is_contiguous()
        run(learner, 1)
