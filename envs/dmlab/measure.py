"""Measures an environment with a random agent: its mean score and its speed. The numbers in README.md come from here.

python -m sf_fixpo.envs.dmlab.measure --episodes=120 --res_w=96 --res_h=72
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from dataclasses import dataclass

import numpy as np

from sf_fixpo import cli
from sf_fixpo.envs.dmlab import SUITE


@dataclass(frozen=True)
class Measurement:
    """What a random agent found.

    Attributes:
        engine: which engine played.
        episodes: how many.
        mean: score of an episode.
        standard_error: of that mean.
        steps_per_second: agent steps, resets left out.
        reset_seconds: mean time of a reset.
    """

    engine: str
    episodes: int
    mean: float
    standard_error: float
    steps_per_second: float
    reset_seconds: float


def measure(cfg, episodes: int) -> Measurement:
    """Plays episodes with uniformly random actions.

    Args:
        cfg: the suite's flags and sample-factory's `env`, `seed`, `env_frameskip`, `pixel_format`.
        episodes: at least 2.
    """
    env = SUITE.make_env(cfg.env, cfg)
    rng = np.random.default_rng(cfg.seed)
    scores, steps, reset_time = [], 0, 0.0
    begin = time.perf_counter()
    for _ in range(episodes):
        before = time.perf_counter()
        env.reset()
        reset_time += time.perf_counter() - before
        score, done = 0.0, False
        while not done:
            _, reward, done, _, _ = env.step(rng.integers(env.action_space.n))
            score += reward
            steps += 1
        scores.append(score)
    elapsed = time.perf_counter() - begin
    env.close()
    return Measurement(
        engine=cfg.dmlab_engine,
        episodes=episodes,
        mean=float(np.mean(scores)),
        standard_error=float(np.std(scores, ddof=1) / np.sqrt(episodes)),
        steps_per_second=steps / (elapsed - reset_time),
        reset_seconds=reset_time / episodes,
    )


def main() -> None:
    """Parses the flags, plays, prints one line."""
    parser = ArgumentParser(description=__doc__)
    SUITE.add_args(parser)
    parser.add_argument("--env", default="dmlab_30_rooms_collect_good_objects", help="Environment name")
    parser.add_argument("--episodes", default=120, type=int, help="Episodes to play, at least 2")
    parser.add_argument("--seed", default=0, type=int, help="Of the episodes and of the agent")
    parser.add_argument("--env_frameskip", default=4, type=int, help="Frames a step")
    parser.set_defaults(pixel_format="CHW")
    cfg = cli.parse(parser, None)
    faults = SUITE.faults(cfg)
    if faults or cfg.episodes < 2:
        parser.error("\n".join(faults) or f"--episodes={cfg.episodes}: must be at least 2")
    found = measure(cfg, cfg.episodes)
    print(
        f"{cfg.env} on {found.engine}, {cfg.res_w} x {cfg.res_h}, skip {cfg.env_frameskip}: random agent "
        f"{found.mean:.2f} (s.e. {found.standard_error:.2f}, {found.episodes} episodes), "
        f"{found.steps_per_second:.0f} agent steps/s, reset {found.reset_seconds * 1000:.1f} ms"
    )


if __name__ == "__main__":
    main()
