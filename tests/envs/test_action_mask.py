"""The observation `action_mask`: of which spaces it may be, what is sent under it, and what is said where it is none."""

from __future__ import annotations

from argparse import Namespace

import gymnasium
import masked_env
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from programs import HELPERS, SERIAL, train
from saved_policies import save_policy

from benchmarks.synthetic import make_cfg, make_env_info, small_shape
from sf_fixpo import evaluate, export
from sf_fixpo.audit import audit
from sf_fixpo.envs import EnvError
from sf_fixpo.envs.action_mask import MaskGuard, allowed_actions, guarded
from sf_fixpo.envs.gymnasium_envs.adapter import GymAdapter, space_faults
from sf_fixpo.envs.gymnasium_envs.observations import Observations
from sf_fixpo.playing.evaluation_worker import RandomAgent, Slots
from sf_fixpo.running.fit import env_faults
from sf_fixpo.running.preparing import SeededFactory

SHOP = "gym_masked_env:Shop-v0"
CFG = Namespace(env=SHOP, seed=3, env_kwargs="{}", env_wrappers="")


def observed(mask: spaces.Space) -> spaces.Dict:
    return spaces.Dict({"observation": spaces.Box(0, 1, (2,)), "action_mask": mask})


MASKS = {
    "Box": (spaces.Box(0, 1, (3,), np.int8), spaces.Discrete(3)),
    "Discrete with a start": (spaces.Box(0, 1, (3,), np.uint8), spaces.Discrete(3, start=5)),
    "MultiBinary": (spaces.MultiBinary(5), spaces.MultiDiscrete([2, 3])),
    "a row for each part": (spaces.Box(0, 1, (2, 3), np.float32), spaces.MultiDiscrete([3, 3])),
    "bits": (spaces.MultiBinary(4), spaces.MultiBinary(2)),
    "Tuple": (
        spaces.Tuple([spaces.MultiBinary(2), spaces.MultiBinary(3)]),
        spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
    ),
    "Dict": (
        spaces.Dict(b=spaces.MultiBinary(2), a=spaces.MultiBinary(3)),
        spaces.Dict(b=spaces.Discrete(2), a=spaces.Discrete(3)),
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_these_spaces_become_one_vector(name):
    mask, action = MASKS[name]
    assert space_faults(observed(mask), action) == []
    seen = Observations(observed(mask), "x")
    given_mask = mask.sample()
    if name == "a row for each part":
        given_mask = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    found = seen.policy_observation({"observation": np.zeros(2, np.float32), "action_mask": given_mask}, 0)
    assert list(found) == list(seen.policy_space.spaces) == ["action_mask", "observation"]
    assert found["action_mask"].dtype == np.uint8
    parts = given_mask.values() if isinstance(given_mask, dict) else given_mask
    np.testing.assert_array_equal(found["action_mask"], np.concatenate([np.ravel(x) for x in parts]))


@pytest.mark.parametrize(
    ("mask", "action", "message"),
    [
        (spaces.MultiBinary(4), spaces.Discrete(3), "must have one number for each of 3 actions, shape (3,)"),
        # all pairs, as other libraries have it
        (spaces.MultiBinary((3, 3)), spaces.MultiDiscrete([3, 3]), "one number for each of 3 + 3 actions, shape (6,)"),
        (spaces.MultiBinary(2), spaces.Box(-1, 1, (2,)), "needs discrete actions, not Box(-1.0, 1.0, (2,), float32)"),
        (spaces.MultiBinary(3), spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))]), "needs discrete actions"),
        (spaces.Discrete(3), spaces.Discrete(3), "observation 'action_mask' space Discrete(3): must be a Box or MultiBinary"),
        (spaces.Tuple([spaces.Text(3)]), spaces.Discrete(3), "must be a Box or MultiBinary"),
    ],
)
def test_spaces_that_are_none_of_a_mask_are_refused(mask, action, message):
    [fault] = space_faults(observed(mask), action)
    assert message in fault
    assert "'action_mask'" in fault


def test_a_mask_alone_is_nothing_to_see_and_further_inside_it_is_an_observation():
    [fault] = space_faults(spaces.Dict(action_mask=spaces.MultiBinary(3)), spaces.Discrete(3))
    assert "has nothing beside 'action_mask' for a network to see" in fault
    inside = spaces.Dict(a=spaces.Dict(action_mask=spaces.MultiBinary(7)), action=spaces.Dict(mask=spaces.MultiBinary(7)))
    assert space_faults(inside, spaces.Discrete(3)) == []
    assert list(Observations(inside, "x").policy_space.spaces) == ["a_action_mask", "user_action_mask"]


class Given(gymnasium.Env):
    """Gives the masks it is told to."""

    def __init__(self, masks, space=None, action=None):
        self.observation_space, self.action_space = observed(space or spaces.MultiBinary(3)), action or spaces.Discrete(3)
        self.masks, self.chosen = list(masks), []

    def _observation(self):
        return {"observation": np.zeros(2, np.float32), "action_mask": self.masks.pop(0)}

    def reset(self, *, seed=None, options=None):
        return self._observation(), {}

    def step(self, action):
        self.chosen.append(action)
        return self._observation(), 0.0, False, False, {}


FINE = np.array([1, 0, 1], np.int8)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(3, np.int8), r"allows no action: \[0, 0, 0\]"),
        (np.array([1, 1], np.int8), r"the shape \(2,\)"),
        (np.array([1, 2, 0], np.int8), r"is \[1, 2, 0\], must be of 0 and 1"),
        (np.array([1, np.nan, 0]), r"is \[1.0, nan, 0.0\], must be of 0 and 1"),
        (np.array(["1", "0", "1"]), "is of <U1, must be of 0 and 1"),
        (None, r"the shape \(\)"),
    ],
)
@pytest.mark.parametrize("at", ["reset", "step"])
def test_a_mask_that_is_none_is_named_with_its_environment(mask, message, at):
    """Through the adapter for Gymnasium's, and where a script has registered its own environment."""
    for env in (guarded(GymAdapter(Given([mask]), CFG, None), SHOP), guarded(Given([mask]), SHOP)):
        plain = env.unwrapped
        if at == "step":
            plain.masks.insert(0, FINE)
            env.reset()
        with pytest.raises(EnvError, match=rf"^{SHOP}: observation 'action_mask' .*{message}"):
            env.step(0) if at == "step" else env.reset()


def test_nothing_allowed_of_one_part_is_named():
    with pytest.raises(ValueError, match=r"allows no action of part 1: \[True, False, False, False\]"):
        allowed_actions(np.array([True, False, False, False]), [2, 2])


def test_a_forbidden_action_never_reaches_the_environment():
    env = MaskGuard(Given([FINE, FINE]), "mine")
    env.reset()
    env.step(np.array([2]))
    with pytest.raises(EnvError, match=r"mine: the policy chose 1, which 'action_mask' forbids: \[1, 0, 1\]. An actor-critic"):
        env.step(1)
    assert len(env.unwrapped.chosen) == 1


class Pair(gymnasium.Env):
    """Two agents, of which the second stands still at first and has no mask then."""

    is_multiagent, num_agents = True, 2
    observation_space, action_space = observed(spaces.MultiBinary(3)), spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        seen = np.zeros(2, np.float32)
        one, other = ({"observation": seen, "action_mask": mask} for mask in (FINE, np.zeros(3, np.int8)))
        return [one, other], [{}, {"is_active": False}]

    def step(self, actions):
        (one, _), _ = self.reset()
        other = {**one, "action_mask": np.array([0, 1, 0], np.int8)}
        return [one, other], [0.0, 0.0], [False, False], [False, False], [{}, {}]


def test_each_agent_has_a_mask_of_its_own():
    env = MaskGuard(Pair(), "pair")
    env.reset()
    env.step([2, 0])
    with pytest.raises(EnvError, match=r"pair: the policy chose 0 \(agent 1\), which"):
        env.step([0, 0])
    drawn = [(env.action_space.sample(), env.action_space.sample()) for _ in range(20)]
    assert {one for one, _ in drawn} == {0, 2}
    assert {other for _, other in drawn} == {1}


@given(st.integers(0, 10_000), st.integers(1, 2))
def test_random_actions_are_allowed_ones_and_all_of_them(seed, hands):
    """Those of sample-factory before the first rollout, and the random agent's: the shop fails at others."""
    env = guarded(GymAdapter(masked_env.Shop(hands), Namespace(**{**vars(CFG), "seed": seed}), None), SHOP)
    agent, slots = RandomAgent(env.action_space, seed), Slots(env)
    env.action_space.seed(seed)
    obs = slots.reset()
    for _ in range(10):
        obs, _, done = slots.step(agent.act(obs, np.arange(1)))
        assert not done.all()
    obs, _ = env.reset()
    for _ in range(10):
        obs, *_ = env.step(env.action_space.sample())
    many = agent.act({"action_mask": np.repeat(obs["action_mask"][None], 400, axis=0)}, np.arange(400))
    for hand, allowed in enumerate(np.split(obs["action_mask"], hands)):
        assert set(many[:, hand]) == set(np.flatnonzero(allowed))


@pytest.mark.parametrize(
    "flags", [(), ("--actor_critic_share_weights=True", "--use_rnn=True", "--recurrence=-1", "--rnn_size=8")]
)
def test_the_policy_is_played_and_exported_under_its_mask(tmp_path, flags, capsys):
    """The shop fails at the first wrong choice, of the most likely ones too."""
    folder = save_policy(tmp_path / "run", SHOP, '--env_kwargs={"hands": 2}', *flags)
    assert evaluate.main([str(folder), "--episodes=4", "--workers=1", "--deterministic"]) == 0
    assert export.main([str(folder), "--format=torchscript", "--check_steps=100"]) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_run_sends_nothing_forbidden(tmp_path):
    flags = (f"--env={SHOP}", "--train_for_env_steps=200", "--audit_every=1", '--env_kwargs={"hands": 2}')
    run = train(tmp_path, "run", *SERIAL, *flags, env=HELPERS)
    assert run.popen.returncode == 0, run.report()
    assert len(audit(tmp_path / "run", quiet=True)) >= 3
    # with nothing but the random steps before the first rollout the shop would have thrown it out long ago
    assert "Decorrelating experience for 48 frames" in (tmp_path / "run" / "sf_log.txt").read_text()


def test_a_script_whose_mask_does_not_fit_is_refused_before_a_process_starts():
    spaces_of = observed(spaces.MultiBinary(4)), spaces.Discrete(3)
    cfg = make_cfg("FIXPO", small_shape())
    faults = env_faults(cfg, make_env_info(*spaces_of))
    assert faults[0].startswith("--env=synthetic: observation 'action_mask' space MultiBinary(4): must have one number for each")
    env = SeededFactory(lambda *args: Given([], spaces.MultiBinary(4)))("synthetic", cfg)
    assert env.observation_space == spaces_of[0], "nothing is raised while the spaces are looked up"
