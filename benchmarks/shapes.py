"""What learners are measured on: observations, actions and settings of three kinds of environments, as their users train them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np


@dataclass(frozen=True)
class Shape:
    """What a learner trains on: spaces and settings.

    Attributes:
        name: for tables.
        obs_space: observations, a Dict of Box spaces.
        action_space: Discrete, Box, or a Tuple of these.
        cfg: sample-factory flags by name, for both algorithms.
        fixpo: further flags for all but APPO.
        appo: further flags for APPO alone.
    """

    name: str
    obs_space: gym.spaces.Dict
    action_space: gym.Space
    cfg: Mapping[str, Any] = field(default_factory=dict)
    fixpo: Mapping[str, Any] = field(default_factory=dict)
    appo: Mapping[str, Any] = field(default_factory=dict)

    def with_flags(self, **flags: Any) -> Shape:
        """The same shape with some sample-factory flags changed."""
        return replace(self, cfg={**self.cfg, **flags})


# One pass over trajectories of 32 steps, from images as bytes.
_PIXELS = MappingProxyType(
    {
        "encoder_conv_mlp_layers": [512],
        "use_rnn": True,
        "num_batches_per_epoch": 1,
        "num_epochs": 1,
        "rollout": 32,
        "recurrence": 32,
        "learning_rate": 1e-4,
        "obs_scale": 255.0,
        "obs_subtract_mean": 0.0,
    }
)

DMLAB = Shape(
    name="dmlab",
    obs_space=gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 72, 96), np.uint8)),
    action_space=gym.spaces.Discrete(15),
    cfg={
        **_PIXELS,
        "encoder_conv_architecture": "resnet_impala",
        "nonlinearity": "relu",
        "rnn_type": "lstm",
        "rnn_size": 256,
        "batch_size": 1024,
        "normalize_input": False,
        "normalize_returns": False,
        "max_policy_lag": 35,
        "value_loss_coeff": 0.5,
        "max_grad_norm": 0.0,
        "exploration_loss_coeff": 0.003,
    },
    fixpo={"eps_kl": 1.0, "c_beta": 2.0, "beta_lr": 0.1, "beta_init": 1.0, "reference": "behaviour"},
)

MUJOCO = Shape(
    name="mujoco",
    obs_space=gym.spaces.Dict(obs=gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)),
    action_space=gym.spaces.Box(-1.0, 1.0, (6,), np.float32),
    cfg={
        "encoder_mlp_layers": [64, 64],
        "nonlinearity": "tanh",
        "actor_critic_share_weights": False,
        "adaptive_stddev": False,
        "policy_initialization": "torch_default",
        "use_rnn": False,
        "rollout": 128,
        "recurrence": 1,
        "batch_size": 512,
        "num_batches_per_epoch": 16,
        "num_epochs": 10,
        "shuffle_minibatches": True,
        "learning_rate": 3e-4,
        "normalize_input": True,
        "normalize_returns": True,
        "value_loss_coeff": 0.1,
        "max_grad_norm": 0.5,
        "exploration_loss_coeff": 0.0,
        "max_policy_lag": 1000,
    },
    fixpo={"eps_kl": 0.5, "c_beta": 3.0, "beta_lr": 0.01, "beta_init": 1.0, "reference": "previous", "fixup_batch_size": 1024},
    appo={"kl_loss_coeff": 0.1, "ppo_clip_ratio": 0.2},
)

# doom_battle of sample-factory's examples by its own settings, without its measurements: images with running statistics, and five
# heads of actions
VIZDOOM = Shape(
    name="vizdoom",
    obs_space=gym.spaces.Dict(obs=gym.spaces.Box(0, 255, (3, 72, 128), np.uint8)),
    action_space=gym.spaces.Tuple([gym.spaces.Discrete(n) for n in (3, 3, 2, 2, 11)]),
    cfg={
        **_PIXELS,
        "encoder_conv_architecture": "convnet_simple",
        "rnn_type": "gru",
        "rnn_size": 512,
        "batch_size": 2048,
        "normalize_input": True,
        "normalize_returns": True,
        "exploration_loss": "symmetric_kl",
        "exploration_loss_coeff": 0.001,
    },
)

SHAPES = {shape.name: shape for shape in (DMLAB, MUJOCO, VIZDOOM)}
