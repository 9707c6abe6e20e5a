"""MuJoCo tasks of OpenAI Gym, through EnvPool: the paper's first benchmark (section 4.1).

One environment of sample-factory is a whole EnvPool here (`--batched_sampling=True`, `--env_agents` simulators), because a
64 x 64 network is small: what costs is a call, not a state.
"""

from __future__ import annotations

import math
from types import MappingProxyType

from sf_fixpo.envs.pool.suites import pool_suite

PREFIX = "mujoco_"

# EnvPool's v4 tasks are Gym's, with the same observations, rewards and limits; v5 changed rewards and shapes.
TASKS = MappingProxyType(
    {
        f"{PREFIX}{name}": f"{name}-v4"
        # the paper's six, and two that are larger
        for name in ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "InvertedDoublePendulum", "Reacher", "Ant", "Humanoid")
    }
)

PAPER = MappingProxyType(
    {
        # Sampling: 64 simulators x 128 steps = 8192 samples an update, collected and learned in turn, in one process.
        "serial_mode": True,
        "async_rl": False,
        "batched_sampling": True,
        "num_workers": 1,
        "num_envs_per_worker": 1,
        "worker_num_splits": 1,
        "env_agents": 64,
        "rollout": 128,
        "recurrence": 1,
        "train_for_env_steps": 10_000_000,
        "device": "cpu",
        # One update: 10 epochs of 16 minibatches.
        "batch_size": 512,
        "num_batches_per_epoch": 16,
        "num_epochs": 10,
        "shuffle_minibatches": True,
        "learning_rate": 3e-4,
        "lr_schedule": "linear_decay",
        "adam_eps": 1e-8,
        "max_grad_norm": 0.5,
        # FixPO.
        "eps_kl": 0.5,
        "c_beta": 3.0,
        "beta_lr": 0.01,
        "beta_init": 1.0,
        "fixup_batch_size": 1024,
        # The rest of the loss; the clip ratio is APPO's. No limit on how far a value may move in one update.
        "ppo_clip_ratio": 0.2,
        "ppo_clip_value": 1e6,
        "kl_loss_coeff": 0.0,
        "value_loss_coeff": 0.1,
        "exploration_loss_coeff": 0.0,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "with_vtrace": False,
        "value_bootstrap": True,
        "normalize_input": True,
        "normalize_returns": True,
        "reward_scale": 1.0,
        # Two tanh networks that share nothing, and one learned standard deviation for each action.
        "actor_critic_share_weights": False,
        "encoder_mlp_layers": [64, 64],
        "nonlinearity": "tanh",
        "use_rnn": False,
        "policy_initialization": "orthogonal",
        "policy_init_gain": math.sqrt(2.0),
        "policy_head_init_scale": 0.01,
        "adaptive_stddev": False,
        "initial_stddev": math.exp(-0.5),
    }
)

# The same settings for two cores and some minutes: a quarter of the samples an update, so that a run a tenth as long still
# makes 488 updates, not 122.
LAPTOP = MappingProxyType({**PAPER, "env_agents": 16, "num_batches_per_epoch": 4, "train_for_env_steps": 1_000_000})

# For a million steps: updates of 2048 samples in minibatches of 64, as tuned PPOs have them. What it gains is not settled yet
# (docs/lab_notes.md).
TUNED = MappingProxyType(
    {
        **PAPER,
        "rollout": 32,
        "batch_size": 64,
        "num_batches_per_epoch": 32,
        "fixup_batch_size": 2048,
        "train_for_env_steps": 1_000_000,
    }
)

SUITE = pool_suite(
    "mujoco",
    "MuJoCo tasks of OpenAI Gym (v4), simulated by EnvPool",
    TASKS,
    MappingProxyType({"paper": PAPER, "laptop": LAPTOP, "tuned": TUNED}),
)
