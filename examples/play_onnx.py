"""Plays a policy of `fixpo-export` with onnxruntime and NumPy alone: no torch, no sample-factory, nothing of sf_fixpo.

    fixpo-export train_dir/cartpole --format=onnx
    python examples/play_onnx.py train_dir/cartpole/export/checkpoint_*.onnx --episodes=10

The environment is Gymnasium's own; what stands in for it on a robot gives observations and takes actions as `observe` and `act`
do.
"""

import argparse
import json

import gymnasium
import numpy as np
import onnxruntime


class Policy:
    """The exported function with its recurrent state."""

    def __init__(self, path, deterministic=False, seed=0):
        """Loads a file; `metadata` has its spaces, level, version and guarantee."""
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.metadata = json.loads(self._session.get_modelmeta().custom_metadata_map["sf_fixpo"])
        self._names = [given.name for given in self._session.get_inputs()]
        self._deterministic, self._random = deterministic, np.random.default_rng(seed)
        self.forget()

    def forget(self):
        """At the start of an episode."""
        self._state = np.zeros((1, self.metadata["state"]["size"]), np.float32)

    def __call__(self, observations):
        """Action columns [D] for raw observations by key."""
        given = {f"obs.{key}": x[None] for key, x in observations.items()} | {"state": self._state}
        action, distribution, _, self._state = self._session.run(None, {name: given[name] for name in self._names})
        return action[0] if self._deterministic else self._sample(distribution[0])

    def _sample(self, distribution):
        columns, start = [], 0
        for head in self.metadata["actions"]:
            size = head["size"]
            if head["kind"] == "categorical":
                p = distribution[start : start + size].astype(np.float64)
                columns.append([self._random.choice(size, p=p / p.sum())])
                start += size
            else:
                mean, stddev = distribution[start : start + size], distribution[start + size : start + 2 * size]
                columns.append(self._random.normal(mean, stddev))
                start += 2 * size
        return np.concatenate(columns)


def observe(obs, described):
    """An observation of Gymnasium as the policy takes it: flat for vectors."""
    return {"obs": np.asarray(obs, described["obs"]["dtype"]).reshape(described["obs"]["shape"])}


def act(space, columns):
    """An action of Gymnasium: a category, or a vector whose -1 and 1 are the ends of a bounded Box."""
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(columns[0]) + int(space.start)
    x = np.asarray(columns, np.float64).reshape(space.shape)
    if space.is_bounded():
        x = (space.low + space.high) / 2.0 + np.clip(x, -1, 1) * (space.high - space.low) / 2.0
    return np.clip(x, space.low, space.high).astype(space.dtype)


def play(policy, env, seed):
    """The return of one episode."""
    policy.forget()
    obs, _ = env.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        columns = policy(observe(obs, policy.metadata["observations"]))
        obs, reward, terminated, truncated, _ = env.step(act(env.action_space, columns))
        total, done = total + float(reward), terminated or truncated
    return total


def main():
    """Plays some episodes, and prints their returns."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("file", metavar="FILE.onnx")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deterministic", action="store_true", help="the likeliest action instead of a sample")
    args = parser.parse_args()
    policy = Policy(args.file, args.deterministic, args.seed)
    name, heads = policy.metadata["env"], policy.metadata["actions"]
    if not name.startswith("gym_") or list(policy.metadata["observations"]) != ["obs"] or len(heads) > 1:
        raise SystemExit(f"{name}: this example makes Gymnasium's environments with one observation and one head of actions")
    if guarantee := policy.metadata["guarantee"]:
        print(f"{guarantee['updates']} updates, largest KL / eps_kl {guarantee['largest_kl_over_eps_kl']:.4f}")
    env = gymnasium.make(name.removeprefix("gym_"))
    returns = [play(policy, env, args.seed + episode) for episode in range(args.episodes)]
    print(f"{name}: mean return {np.mean(returns):.2f} of {len(returns)} episodes")


if __name__ == "__main__":
    main()
