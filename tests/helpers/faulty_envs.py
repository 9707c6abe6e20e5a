"""Environments that go wrong, and a program that trains on one: `python faulty_envs.py FAULT [flags of sf_fixpo.train]`.

The factories stand at the level of a module that child processes can import, as a user's own do.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

import gymnasium

from sf_fixpo import train
from sf_fixpo.envs.gymnasium_envs import SUITE, make_env
from sf_fixpo.running import supervision

STEPS_BEFORE_FAULT = 150  # of one environment: by then some updates have been made
_FAULTY_WORKER = 1  # the others are well, and must end all the same


class WillRaise(gymnasium.Wrapper):
    """Raises in a step, after some."""

    taken = 0

    def step(self, action):
        self.taken += 1
        if self.taken > STEPS_BEFORE_FAULT:
            self.fail()
        return self.env.step(action)

    def fail(self):
        raise RuntimeError("the gearbox is broken")


class WillVanish(WillRaise):
    """Ends its process in a step, after some, as an engine that crashes does."""

    def fail(self):
        os._exit(3)


class WillHang(WillRaise):
    """Does not come back from a step, after some."""

    def fail(self):
        while True:
            time.sleep(1)


class WillRaiseAtTheEnd(gymnasium.Wrapper):
    """Raises when it is closed."""

    def close(self):
        raise RuntimeError("the door is stuck")


def raises_at_start(full_env_name, cfg, env_config=None, render_mode=None):
    raise RuntimeError("the engine does not start: no licence")


def raises_in_worker(full_env_name, cfg, env_config=None, render_mode=None):
    """Can be asked for its spaces, but not be made a second time: a port that is taken, a licence for one."""
    if env_config is not None and env_config.worker_index == _FAULTY_WORKER:
        raise RuntimeError("the port is taken")
    return make_env(full_env_name, cfg, env_config, render_mode)


def vanishes_at_start(full_env_name, cfg, env_config=None, render_mode=None):
    os._exit(4)


def hangs_at_start(full_env_name, cfg, env_config=None, render_mode=None):
    while True:
        time.sleep(1)


def _in_one_worker(wrapper):
    def factory(full_env_name, cfg, env_config=None, render_mode=None):
        env = make_env(full_env_name, cfg, env_config, render_mode)
        return wrapper(env) if env_config is not None and env_config.worker_index == _FAULTY_WORKER else env

    return factory


def raises_in_step(full_env_name, cfg, env_config=None, render_mode=None):
    return _in_one_worker(WillRaise)(full_env_name, cfg, env_config, render_mode)


def vanishes_in_step(full_env_name, cfg, env_config=None, render_mode=None):
    return _in_one_worker(WillVanish)(full_env_name, cfg, env_config, render_mode)


def hangs_in_step(full_env_name, cfg, env_config=None, render_mode=None):
    return _in_one_worker(WillHang)(full_env_name, cfg, env_config, render_mode)


def raises_at_the_end(full_env_name, cfg, env_config=None, render_mode=None):
    return _in_one_worker(WillRaiseAtTheEnd)(full_env_name, cfg, env_config, render_mode)


def main() -> int:
    import faulty_envs  # by this name children find the factory; here it would be __main__

    supervision._STOP_SECONDS = 5.0  # of patience with a process that hangs: the real one is most of a minute
    fault, *argv = sys.argv[1:]
    suite = replace(SUITE, make_env=getattr(faulty_envs, fault))
    train.find_suite = lambda name: suite
    return train.main(argv)


if __name__ == "__main__":
    sys.exit(main())
