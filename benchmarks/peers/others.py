"""Trains by another system: `python -m benchmarks.peers.others PEER TASK --steps=N --seed=N`, in one process on the CPU.

Settings are those published for the task: of stable-baselines3 and sb3-contrib in rl-baselines3-zoo (`ppo.yml`, `trpo.yml`,
`ppo_lstm.yml`; HalfCheetah's are of v3 there), of Tianshou in its MuJoCo examples, which are for that one task alone.
"""

# pyright: reportMissingImports=false
# what it needs is an extra of its own

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.peers.tasks import TASKS, make

_DEEP = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": torch.nn.ReLU,
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}


def linear(start: float) -> Callable[[float], float]:
    """`start` at the beginning, 0 at the end, as the zoo's `lin_`."""
    return lambda left: left * start


# `n_envs` and `normalize` are of the environments, everything else of the algorithm.
_CARTPOLE = {
    "n_envs": 8, "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
    "learning_rate": linear(0.001), "clip_range": linear(0.2),
}  # fmt: skip
SB3_PPO: dict[str, dict[str, Any]] = {
    "CartPole": _CARTPOLE,
    "Pendulum": {
        "n_envs": 4, "n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0, "learning_rate": 1e-3,
        "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4,
    },
    "HalfCheetah": {
        "n_envs": 1, "normalize": True, "batch_size": 64, "n_steps": 512, "gamma": 0.98, "learning_rate": 2.0633e-05,
        "ent_coef": 0.000401762, "clip_range": 0.1, "n_epochs": 20, "gae_lambda": 0.92, "max_grad_norm": 0.8,
        "vf_coef": 0.58096, "policy_kwargs": _DEEP,
    },
}  # fmt: skip
SB3_TRPO: dict[str, dict[str, Any]] = {
    "CartPole": {
        "n_envs": 2, "n_steps": 512, "batch_size": 512, "cg_damping": 1e-3, "gae_lambda": 0.98, "gamma": 0.99,
        "learning_rate": 1e-3, "n_critic_updates": 20,
    },
    "Pendulum": {
        "n_envs": 2, "n_steps": 1024, "gamma": 0.9, "n_critic_updates": 15, "use_sde": True, "sde_sample_freq": 4,
    },
    "HalfCheetah": {
        "n_envs": 2, "normalize": True, "batch_size": 128, "n_steps": 1024, "gamma": 0.99, "gae_lambda": 0.95,
        "sub_sampling_factor": 1, "cg_max_steps": 25, "cg_damping": 0.1, "n_critic_updates": 20, "learning_rate": 1e-3,
        "target_kl": 0.04,
    },
}  # fmt: skip
SB3_RECURRENT: dict[str, dict[str, Any]] = {"Memory": _CARTPOLE}


def train_sb3(kind: str, settings: dict[str, dict[str, Any]], task: str, steps: int, seed: int) -> None:
    """By stable-baselines3 or sb3-contrib."""
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    flags = dict(settings[task])
    count, normalize = flags.pop("n_envs"), flags.pop("normalize", False)
    envs: Any = DummyVecEnv([partial(make, task) for _ in range(count)])
    envs = VecNormalize(envs, gamma=flags["gamma"]) if normalize else envs
    algorithm = {"PPO": stable_baselines3.PPO, "TRPO": sb3_contrib.TRPO, "RecurrentPPO": sb3_contrib.RecurrentPPO}[kind]
    policy = "MlpLstmPolicy" if kind == "RecurrentPPO" else "MlpPolicy"
    algorithm(policy, envs, seed=seed, device="cpu", **flags).learn(steps)
    envs.close()


def train_tianshou(task: str, steps: int, seed: int) -> None:
    """By Tianshou's PPO, as its examples/mujoco/mujoco_ppo.py."""
    import numpy as np
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv, VectorEnvNormObs
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from torch.distributions import Independent, Normal

    np.random.seed(seed)
    torch.manual_seed(seed)
    count, collected, epoch = 8, 2048, min(steps, 30_000)
    envs: Any = VectorEnvNormObs(DummyVectorEnv([partial(make, task) for _ in range(count)]))
    envs.seed(seed)
    example: Any = make(task)
    shape, space = example.observation_space.shape, example.action_space
    bodies = [Net(state_shape=shape, hidden_sizes=[64, 64], activation=torch.nn.Tanh) for _ in range(2)]
    actor = ContinuousActorProbabilistic(preprocess_net=bodies[0], action_shape=space.shape, unbounded=True)
    critic = ContinuousCritic(preprocess_net=bodies[1])
    torch.nn.init.constant_(actor.sigma_param, -0.5)
    for layer in (*actor.modules(), *critic.modules()):
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.orthogonal_(layer.weight, gain=np.sqrt(2))
            torch.nn.init.zeros_(layer.bias)
    for layer in actor.mu.modules():  # small in the beginning: Andrychowicz et al. 2020, section 3.2
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.zeros_(layer.bias)
            layer.weight.data.copy_(0.01 * layer.weight.data)

    def distribution(parameters: tuple[torch.Tensor, torch.Tensor]) -> Independent:
        return Independent(Normal(*parameters), 1)

    epochs = -(-steps // epoch)
    rate = AdamOptimizerFactory(lr=3e-4).with_lr_scheduler_factory(LRSchedulerFactoryLinear(epochs, epoch, collected))
    algorithm = PPO(
        policy=ProbabilisticActorPolicy(actor=actor, dist_fn=distribution, action_space=space, action_bound_method="clip"),
        critic=critic,
        optim=rate,
        gamma=0.99,
        gae_lambda=0.95,
        max_grad_norm=0.5,
        vf_coef=0.25,
        ent_coef=0.0,
        return_scaling=True,
        eps_clip=0.2,
        value_clip=False,
        advantage_normalization=False,
        recompute_advantage=True,
    )
    collector: Any = Collector(algorithm, envs, VectorReplayBuffer(4096, count))
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=epochs,
            epoch_num_steps=epoch,
            collection_step_num_env_steps=collected,
            update_step_num_repetitions=10,
            batch_size=64,
            test_in_training=False,
            verbose=False,
            show_progress=False,
        )
    )
    envs.close()


PEERS: dict[str, Callable[[str, int, int], None]] = {
    "sb3_ppo": partial(train_sb3, "PPO", SB3_PPO),
    "sb3_trpo": partial(train_sb3, "TRPO", SB3_TRPO),
    "sb3_recurrent_ppo": partial(train_sb3, "RecurrentPPO", SB3_RECURRENT),
    "tianshou_ppo": train_tianshou,
}
PUBLISHED = {
    "sb3_ppo": [*SB3_PPO],
    "sb3_trpo": [*SB3_TRPO],
    "sb3_recurrent_ppo": [*SB3_RECURRENT],
    "tianshou_ppo": ["HalfCheetah"],
}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.others", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    PEERS[args.peer](args.task, args.steps, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
