"""The batch as it is prepared against sample-factory's own preparation, and what the host knows of it against NumPy."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.utils.tensor_dict import TensorDict

from benchmarks.synthetic import box_actions, make_batch, make_learner, small_shape
from sf_fixpo.learning.batch import fill_invalid
from sf_fixpo.learning.preparation import Opening, chosen, open_batch, prepare

CASES = {
    "plain": {},
    "returns": {"normalize_returns": True},
    "bootstrap": {"value_bootstrap": True, "normalize_returns": True},
    "v-trace": {"with_vtrace": True, "recurrence": 8},
    "lstm": {"use_rnn": True, "rnn_type": "lstm", "rnn_size": 8},
    "separate": {"actor_critic_share_weights": False},
}


@pytest.mark.parametrize("invalid_share", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_prepared_as_sample_factory_does_bit_for_bit(case, invalid_share, tmp_path):
    space = gym.spaces.Tuple([gym.spaces.Discrete(3), box_actions(2)])
    stock = make_learner("APPO", small_shape(action_space=space, **CASES[case]), train_dir=tmp_path)
    batch = make_batch(stock, seed=3, done_rate=0.1, invalid_share=invalid_share)
    opening, valids = open_batch(batch, 0, 0, 0, 100)
    assert (opening.num_invalids > 0) == (invalid_share > 0)
    batch = fill_invalid(batch, valids)
    model = stock.actor_critic.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    untouched = {key: batch[key].clone() for key in ("rewards", "values", "actions", "log_prob_actions", "rnn_states", "valids")}
    ours = prepare(batch, batch["obs"], valids, model, stock.cfg, opening.num_invalids == 0)
    assert all(torch.equal(batch[key], before) for key, before in untouched.items()), "the batch is as it was"
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    model.load_state_dict(state)
    theirs, size, num_invalids = Learner._prepare_batch(stock, batch)
    assert (size, num_invalids) == (len(opening.valids), opening.num_invalids)
    assert set(theirs) == set(ours) | {"dones_cpu", "rewards_cpu"}
    for key in ours:
        if key != "normalized_obs":
            assert torch.equal(ours[key], theirs[key]), key
    assert torch.equal(ours["normalized_obs"]["obs"], theirs["normalized_obs"]["obs"])
    assert all(torch.equal(after[name], tensor) for name, tensor in model.state_dict().items()), "statistics of returns"


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_what_the_host_knows_of_a_batch(trajectories, steps, seed):
    rng = np.random.default_rng(seed)
    shape = (trajectories, steps)
    policy, versions, dones = rng.integers(-1, 2, shape), rng.integers(0, 9, shape), rng.random(shape) < 0.3
    batch = TensorDict(
        policy_id=torch.from_numpy(policy), policy_version=torch.from_numpy(versions), dones=torch.from_numpy(dones)
    )
    opening, valids = open_batch(batch, 1, 10, 9, 6)
    expected = (policy == 1) & (versions > 4)
    np.testing.assert_array_equal(valids.numpy(), expected)
    np.testing.assert_array_equal(opening.valids, expected.ravel())
    np.testing.assert_array_equal(opening.ends, (dones | ~expected).ravel())
    assert opening.num_invalids == (~expected).sum()
    longer = np.concatenate([expected, expected[:, -1:]], axis=1)
    assert opening.num_observed(steps + 1) == longer.sum()
    counted = chosen(torch.from_numpy(longer.ravel()), int(longer.sum()))
    np.testing.assert_array_equal(counted.numpy(), np.flatnonzero(longer))
    age = np.where(expected, 9 - versions, 0)
    assert opening.lag[1:] == (age.min(), age.max())
    if expected.any():
        assert opening.lag[0] == pytest.approx(age.sum() / expected.sum())
        # as the device would divide: the row of an update must not depend on who does
        assert opening.lag[0] == float(torch.tensor(age).float().sum() / torch.tensor(expected).sum())


def test_a_batch_without_a_valid_sample_has_no_lag_to_speak_of():
    nothing = Opening(np.zeros(4, bool), np.zeros(4, bool), np.ones(4, int))
    assert np.isnan(nothing.lag[0])
    assert nothing.num_invalids == 4
