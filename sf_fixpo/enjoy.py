"""Shows or records episodes of a trained policy, with what it thinks beside: action distribution, value, reward.

    python -m sf_fixpo.enjoy DIR [--episodes=1] [--seed=0] [--checkpoint=best|latest|PATH] [--record=FILE.mp4|FOLDER]

Without a display, or with `--record`, each episode becomes an MP4 file. Episode k is played with seed `--seed` + k in an
environment of its own, so that any episode can be shown again alone. DMLab's seeds of a run are not used up, and its rewards
are the level's own.

Exit codes: 0 done; 1 the environment or the policy failed, its error is printed; 2 bad input; 130 Ctrl-C, the episodes that
were finished are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo import cli
from sf_fixpo.envs import find_suite
from sf_fixpo.learning import checkpoints
from sf_fixpo.learning.values import in_returns
from sf_fixpo.playing.downloads import DownloadError, local_folder
from sf_fixpo.playing.evaluation_worker import MAX_STEPS, PolicyAgent, Slots, one_action, set_log_level
from sf_fixpo.playing.experiment import BadInputError, find_checkpoint, load_configs, task_number
from sf_fixpo.playing.overlay import Categories, Gaussian, Moment, Overlay, dmlab_action_labels, upscale
from sf_fixpo.playing.video import Screen, ScreenError, VideoFile, Window, WindowClosed, has_display

DMLAB_FPS = 60  # frames of the engine a second
USUAL_FPS = 30.0  # of an environment that does not say
MAX_FPS = 1000
USUAL_HEIGHT = 360  # pixels: smaller frames are drawn larger, by a whole factor
_ENJOY_SALT = 0x656E6A6F79  # the episodes shown are none of those that a run of the same seed trains on


class VisiblePolicy(PolicyAgent):
    """The policy of an evaluation, whose last forward pass can be looked at: to watch it changes no action."""

    def __init__(self, cfg: Any, checkpoint: str, slots: Slots, deterministic: bool):
        super().__init__(cfg, checkpoint, slots, 1, deterministic)
        self._reward_scale = float(cfg.reward_scale)
        self._task: int | None = cfg.get("task_number")
        self._values = torch.zeros(1)
        self._network.register_forward_hook(self._keep)

    def _keep(self, network: torch.nn.Module, inputs: Any, result: Any) -> None:
        self._values = result["values"].reshape(-1)

    @property
    def value(self) -> float:
        """The critic's estimate at the last observation, in the unit of the environment's rewards.

        Not a number where it has one for each task, and what is played is none of them.
        """
        values = in_returns(self._network, self._values)
        if len(values) > 1:
            values = values[self._task] if self._task is not None else values.new_tensor(math.nan)
        return float(values) / self._reward_scale

    def heads(self, row: np.ndarray) -> tuple[Categories | Gaussian, ...]:
        """The last action distribution, head by head, with the action columns [D] that were chosen from it."""
        distribution = self._network.action_distribution()
        heads, start = [], 0
        for part in getattr(distribution, "distributions", [distribution]):
            if hasattr(part, "means"):
                means = part.means[0].numpy()
                heads.append(Gaussian(means, part.stddevs[0].numpy(), row[start : start + len(means)]))
                start += len(means)
            else:
                heads.append(Categories(part.probs[0].numpy(), int(row[start])))
                start += 1
        return tuple(heads)


@dataclass(frozen=True)
class Episode:
    """What became of an episode.

    Attributes:
        episode_return: sum of its rewards.
        length: its steps.
        is_whole: whether it ended by itself, before `--max_steps`.
    """

    episode_return: float
    length: int
    is_whole: bool


def make_slots(cfg: Any, seed: int) -> Slots:
    """One environment that draws pictures.

    Args:
        cfg: the run's configuration; it is not changed.
        seed: of the environment.

    Raises:
        BadInputError: it draws none, or what it draws with is not installed.
    """
    cfg = AttrDict(cfg)
    env_seed = int(np.random.SeedSequence([seed, _ENJOY_SALT]).generate_state(1)[0])
    cfg.update(seed=env_seed, device="cpu", num_workers=1, serial_mode=True)
    # The level's own rewards, and no seed of the run's is used up; a pool of simulators need not be larger.
    flags = {"dmlab_optimistic_rewards": False, "dmlab_remember_seeds": False, "env_agents": 1}
    cfg.update({flag: value for flag, value in flags.items() if flag in cfg})
    with _drawing(cfg.env):
        env = find_suite(cfg.env).make_env(cfg.env, cfg, AttrDict(worker_index=0, vector_index=0, env_id=0), "rgb_array")
    slots = Slots(env, cfg.env)
    if not slots.draws:
        env.close()
        raise BadInputError(_no_pictures(cfg.env))
    return slots


@contextlib.contextmanager
def _drawing(env_name: str) -> Iterator[None]:
    """Turns what environments raise when they cannot draw into a message about `--env`."""
    try:
        yield
    except gym.error.DependencyNotInstalled as exc:
        raise BadInputError(f"--env={env_name}: a package that it draws with is not installed: {exc}") from exc
    except (gym.error.Error, NotImplementedError) as exc:
        raise BadInputError(_no_pictures(env_name)) from exc
    except TypeError as exc:
        if "render_mode" not in str(exc):  # the constructor of an environment that has no such argument
            raise
        raise BadInputError(_no_pictures(env_name)) from exc


def _no_pictures(env_name: str) -> str:
    return (
        f"--env={env_name}: it draws no pictures; what can be shown: levels of DMLab-30 (dmlab_30_...) and Gymnasium's own "
        "environments (gym_...). fixpo-evaluate plays this one without pictures"
    )


def take_frame(slots: Slots, env_name: str) -> np.ndarray:
    """What the environment shows now, uint8 [height, width, 3].

    Raises:
        BadInputError: it shows nothing.
    """
    with _drawing(env_name):
        try:
            frame = slots.env.render()
        except (gym.error.Error, NotImplementedError, TypeError):
            raise
        except Exception as exc:  # an engine may raise anything where it finds no way to draw
            hint = "; without a display it needs MUJOCO_GL=egl or MUJOCO_GL=osmesa" if "mujoco" in type(exc).__module__ else ""
            raise BadInputError(f"--env={env_name}: cannot draw here: {type(exc).__name__}: {exc}{hint}") from exc
    if not (isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8):
        raise BadInputError(_no_pictures(env_name))
    return frame


def play_episode(slots: Slots, agent: VisiblePolicy, env_name: str, seed: int, max_steps: int | None = None) -> Iterator[Moment]:
    """Plays one episode from its start; yields each of its steps.

    Args:
        slots: an environment that draws pictures.
        agent: chooses the actions.
        env_name: for messages.
        seed: of the actions.
        max_steps: the episode is left after so many; None: played to its end.

    Raises:
        BadInputError: the environment shows nothing.
    """
    torch.manual_seed(seed)
    agent.forget(0)
    obs = slots.reset()
    slot, step, episode_return, done = np.zeros(1, int), 0, 0.0, False
    while not done and step != max_steps:
        frame = take_frame(slots, env_name)
        row = agent.act(obs, slot)[0]
        value, heads = agent.value, agent.heads(row)
        # not Slots.step, which starts the next episode at once: seconds, on some levels, for nothing
        single, reward, terminated, truncated, _ = slots.env.step(one_action(slots.action_space, row))
        obs = {name: np.asarray(x)[None] for name, x in (single if isinstance(single, dict) else {"obs": single}).items()}
        step, episode_return, done = step + 1, episode_return + float(reward), bool(terminated or truncated)
        yield Moment(frame, heads, value, float(reward), episode_return, step, done)


def real_time_fps(cfg: Any, env: Any) -> float:
    """Steps of an environment in a second of its own time, as far as it is known."""
    if find_suite(cfg.env).name == "dmlab":
        return DMLAB_FPS / cfg.env_frameskip
    return float(env.metadata.get("render_fps") or USUAL_FPS)


def action_names(cfg: Any, env: Any) -> Sequence[str] | None:
    """Names of the actions of a Discrete space, where they are known."""
    if find_suite(cfg.env).name == "dmlab":
        from sf_fixpo.envs.dmlab.engines import sample_factory_tables

        tables = sample_factory_tables()
        return dmlab_action_labels(tables.EXTENDED_ACTION_SET if cfg.dmlab_extended_action_set else tables.ACTION_SET)
    meanings = getattr(env.unwrapped, "get_action_meanings", None)  # Gymnasium's Atari has it
    return None if meanings is None else [name.lower() for name in meanings()]


def video_path(args: argparse.Namespace, cfg: Any, checkpoint: Path, seed: int) -> Path | None:
    """Where an episode is recorded; None where it is only shown."""
    if args.record is None and has_display():
        return None
    folder = Path(args.record) if args.record else args.dir / "videos"
    if folder.suffix.lower() != ".mp4":
        return folder / f"{cfg.env.replace('/', '_').replace(':', '_')}_{checkpoint.stem}_seed{seed}.mp4"
    return folder if args.episodes == 1 else folder.with_name(f"{folder.stem}_seed{seed}{folder.suffix}")


def load_agent(cfg: Any, checkpoint: Path, slots: Slots, deterministic: bool) -> VisiblePolicy:
    """The policy for an environment.

    Raises:
        BadInputError: the file is no checkpoint, or of a network that does not fit the environment.
    """
    try:
        checkpoints.load(checkpoint)["model"]
    except Exception as exc:  # a torn or foreign file fails in many ways
        raise BadInputError(f"{checkpoint}: is no checkpoint that can be read: {type(exc).__name__}: {exc}") from exc
    try:
        return VisiblePolicy(cfg, str(checkpoint), slots, deterministic)
    except RuntimeError as exc:  # torch names each weight that differs: the first ones will do
        differences = " ".join(line.strip() for line in str(exc).splitlines()[:3])
        raise BadInputError(f"{checkpoint}: does not fit --env={cfg.env}: {differences}") from exc


def show_episode(
    cfg: Any, slots: Slots, agent: VisiblePolicy, screen: Screen, args: argparse.Namespace, seed: int, on_step: Callable[[], None]
) -> Episode:
    """Plays one episode on a screen.

    Args:
        cfg: the run's configuration.
        slots: the environment.
        agent: the policy.
        screen: takes a picture for each step.
        args: the command line: `scale`, `no_overlay`, `max_steps`.
        seed: of the actions.
        on_step: called after each step.

    Raises:
        BadInputError: the environment shows nothing.
    """
    moment, overlay, scale = None, None, args.scale
    for moment in play_episode(slots, agent, cfg.env, seed, args.max_steps):
        if scale is None:
            scale = math.ceil(USUAL_HEIGHT / moment.frame.shape[0])
        if overlay is None and not args.no_overlay:
            overlay = Overlay(cfg.env, slots.action_space, action_names(cfg, slots.env), scale, f"seed {seed}")
        screen.show(upscale(moment.frame, scale) if overlay is None else overlay.draw(moment))
        on_step()
    if moment is None:
        raise ValueError("an episode has at least one step")
    return Episode(moment.episode_return, moment.step, moment.done)


def enjoy(console: Console, cfg: Any, checkpoint: Path, args: argparse.Namespace) -> None:
    """Plays the episodes one after the other; prints a line for each.

    Raises:
        BadInputError: something asked for cannot be had.
        ScreenError: nor can the window or the file.
        WindowClosed: the user closed the window.
    """
    agent: VisiblePolicy | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} steps"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for seed in range(args.seed, args.seed + args.episodes):
            number = f"episode {seed - args.seed + 1} of {args.episodes}"
            bar = progress.add_task(number, total=args.max_steps if args.max_steps < MAX_STEPS else None)
            slots = make_slots(cfg, seed)
            try:
                agent = agent or load_agent(cfg, checkpoint, slots, args.deterministic)
                path = video_path(args, cfg, checkpoint, seed)
                fps = args.fps or real_time_fps(cfg, slots.env)
                title = f"{cfg.env}, {checkpoint.name}"
                with Window(title, fps) if path is None else VideoFile(path, fps) as screen:
                    episode = show_episode(cfg, slots, agent, screen, args, seed, lambda bar=bar: progress.advance(bar))
            finally:
                slots.env.close()
            progress.remove_task(bar)
            engine = getattr(slots.env.unwrapped, "engine", None) or find_suite(cfg.env).name
            text = f"{cfg.env} ({engine}), {checkpoint.name}, seed {seed}: return {episode.episode_return:.3f}, "
            text += f"{episode.length} steps{'' if episode.is_whole else ' (--max_steps, not its end)'}"
            console.print(text + (f", {path}" if path else ""), highlight=False, soft_wrap=True, markup=False)


def choose_config(directory: Path, env: str | None) -> AttrDict:
    """The run's configuration, for one environment: `env`, or the first of those that the run is evaluated on.

    Its `task_number` says which of the run's tasks that is.

    Raises:
        BadInputError: it cannot be read or made here, or is several.
    """
    cfgs = load_configs(directory, "test", env)
    if env is not None and len(cfgs) > 1:
        raise BadInputError(f"--env={env}: {len(cfgs)} environments, one can be shown: {', '.join(cfg.env for cfg in cfgs)}")
    return AttrDict(cfgs[0], task_number=task_number(directory, cfgs[0].env))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Reads the command line; a bad value ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m sf_fixpo.enjoy", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "dir", type=Path, metavar="DIR", help="experiment folder, with config.json and checkpoint_p0/; or hub:USER/NAME"
    )
    parser.add_argument("--checkpoint", help="best, latest, or a path; default: best where there is one, else latest")
    parser.add_argument("--env", help="another environment or level; default: the first that the run is evaluated on")
    parser.add_argument("--policy_id", type=int, default=0, help="which policy of a population")
    parser.add_argument("--episodes", type=int, default=1, help="how many, one after the other")
    parser.add_argument("--deterministic", action="store_true", help="likeliest action instead of a sample")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode; the next one has the next seed")
    parser.add_argument(
        "--record",
        metavar="FILE.mp4|FOLDER",
        help="record instead of showing a window; several episodes put _seed<seed> after FILE; default without a display: "
        "DIR/videos/<env>_<checkpoint>_seed<seed>.mp4",
    )
    parser.add_argument("--fps", type=float, help="steps shown a second; default: the environment's own time")
    parser.add_argument("--scale", type=int, help=f"draw frames so many times larger; default: to {USUAL_HEIGHT} pixels or more")
    parser.add_argument("--max_steps", type=int, default=MAX_STEPS, help="leave an episode after so many steps")
    parser.add_argument("--no_overlay", action="store_true", help="the frames alone")
    args = cli.parse(parser, argv)
    for name, least in (("episodes", 1), ("seed", 0), ("policy_id", 0), ("scale", 1), ("max_steps", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name}={value}: must be an integer >= {least}")
    if args.fps is not None and not 0 < args.fps <= MAX_FPS:
        parser.error(f"--fps={args.fps}: must be a number > 0 and <= {MAX_FPS}")
    if args.record is not None and (fault := _record_fault(args.record)):
        parser.error(f"--record={args.record}: {fault}")
    return args


def _record_fault(text: str) -> str | None:
    path = Path(text)
    if path.suffix.lower() == ".mp4":
        return "is a folder; a name that ends in .mp4 is a file's" if path.is_dir() else None
    if path.exists():
        return None if path.is_dir() else "is no folder; a file's name must end in .mp4"
    is_folder = not path.suffix or text.endswith(os.sep)
    return None if is_folder else f"only .mp4 is written, not {path.suffix}; for a folder end its name with {os.sep}"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = parse_args(argv)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if not has_display():  # what draws with SDL then looks for none
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    set_log_level(logging.WARNING)
    try:
        args.dir = local_folder(args.dir, args.checkpoint, args.policy_id)
        cfg = choose_config(args.dir, args.env)
        enjoy(Console(), cfg, find_checkpoint(args.dir, args.checkpoint, args.policy_id), args)
    except (BadInputError, ScreenError) as exc:
        print(exc, file=sys.stderr)
        return 2
    except DownloadError as exc:
        print(exc, file=sys.stderr)
        return 1
    except WindowClosed:
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
