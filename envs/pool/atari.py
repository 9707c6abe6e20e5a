"""Atari 2600 through EnvPool: the 57 games of the literature, with the wrappers that everybody uses.

Up to 30 no-ops at a start, fire where a game waits for it, every action repeated for four frames of which the last two are
joined, 84 x 84 grey pixels, four stacked, rewards cut to their sign; a game ends after 108,000 frames. A life lost ends no
episode (Machado et al. 2018). What is reported as an episode's return is the game's own score; steps are counted in frames, as
sample-factory does.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from sf_fixpo.envs.pool import mujoco
from sf_fixpo.envs.pool.suites import pool_suite

PREFIX = "atari_"
FRAMESKIP = 4

# The 57 of Agent57 and the ALE literature.
# fmt: off
_NAMES = (
    "Alien", "Amidar", "Assault", "Asterix", "Asteroids", "Atlantis", "BankHeist", "BattleZone", "BeamRider", "Berzerk",
    "Bowling", "Boxing", "Breakout", "Centipede", "ChopperCommand", "CrazyClimber", "Defender", "DemonAttack", "DoubleDunk",
    "Enduro", "FishingDerby", "Freeway", "Frostbite", "Gopher", "Gravitar", "Hero", "IceHockey", "Jamesbond", "Kangaroo", "Krull",
    "KungFuMaster", "MontezumaRevenge", "MsPacman", "NameThisGame", "Phoenix", "Pitfall", "Pong", "PrivateEye", "Qbert",
    "Riverraid", "RoadRunner", "Robotank", "Seaquest", "Skiing", "Solaris", "SpaceInvaders", "StarGunner", "Surround", "Tennis",
    "TimePilot", "Tutankham", "UpNDown", "Venture", "VideoPinball", "WizardOfWor", "YarsRevenge", "Zaxxon",
)
# fmt: on

GAMES = MappingProxyType({f"{PREFIX}{name}": f"{name}-v5" for name in _NAMES})

# The paper has no settings for Atari (it says only that the algorithm works there): PPO's, with FixPO's for small networks.
PAPER = MappingProxyType(
    {
        **{key: mujoco.PAPER[key] for key in ("serial_mode", "async_rl", "batched_sampling", "num_workers", "device")},
        **{key: mujoco.PAPER[key] for key in ("num_envs_per_worker", "worker_num_splits", "with_vtrace", "value_bootstrap")},
        # 8 simulators x 128 steps = 1024 samples an update, in 4 minibatches, 4 epochs.
        "env_agents": 8,
        "env_frameskip": FRAMESKIP,
        "rollout": 128,
        "recurrence": 1,
        "train_for_env_steps": 10_000_000,
        "batch_size": 256,
        "num_batches_per_epoch": 4,
        "num_epochs": 4,
        "shuffle_minibatches": True,
        "learning_rate": 2.5e-4,
        "lr_schedule": "linear_decay",
        "max_grad_norm": 0.5,
        "eps_kl": 0.5,
        "c_beta": 3.0,
        "beta_lr": 0.01,
        "beta_init": 1.0,
        "fixup_batch_size": 1024,
        "ppo_clip_ratio": 0.1,
        "ppo_clip_value": 1e6,
        "kl_loss_coeff": 0.0,
        "value_loss_coeff": 0.5,
        "exploration_loss_coeff": 0.01,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "normalize_input": False,
        "obs_scale": 255.0,
        "normalize_returns": True,
        "encoder_conv_architecture": "convnet_atari",
        "encoder_conv_mlp_layers": [512],
        "actor_critic_share_weights": True,
        "nonlinearity": "relu",
        "use_rnn": False,
        "policy_initialization": "orthogonal",
    }
)

# The same with a floor for beta, as DMLab's pixels took it (docs/lab_notes.md), and a million decisions; not tried on a game yet.
LAPTOP = MappingProxyType({**PAPER, "beta_min": 1.0, "train_for_env_steps": 4_000_000})


def frameskip_faults(cfg: Any) -> list[str]:
    """Another number would count other frames than the console shows."""
    if cfg.env_frameskip == FRAMESKIP:
        return []
    return [f"--env_frameskip={cfg.env_frameskip}: must be {FRAMESKIP}, by which frames are counted"]


SUITE = pool_suite(
    "atari",
    "57 games of the Atari 2600, emulated by EnvPool",
    GAMES,
    MappingProxyType({"paper": PAPER, "laptop": LAPTOP}),
    options={"reward_clip": True, "episodic_life": False, "frame_skip": FRAMESKIP},
    own_faults=frameskip_faults,
)
