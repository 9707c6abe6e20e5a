"""What a random agent and a scripted player get on each level, by blocks of episodes that are not played twice."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sf_examples.dmlab.dmlab30 import HUMAN_SCORES, RANDOM_SCORES

from benchmarks.levels import labs
from benchmarks.levels.players.episodes import Meter, ceiling, fixed_most, player_of
from sf_fixpo.envs.dmlab.names import score_name

AGENTS = ("random", "walker")
BLOCK = 5  # episodes
_COLUMNS = ("level", "agent", "first_seed", "returns", "most")
_WITHOUT_END = 1 << 30
_SIZE = (48, 36)  # a frame costs less; nobody looks at it


@dataclass
class Played:
    """Episodes of one agent on one level.

    Attributes:
        returns: of each.
        most: that each could have paid; none for the random agent, and where nothing says what is possible.
    """

    returns: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)

    def mean(self) -> float:
        """Of the returns."""
        return statistics.fmean(self.returns)

    def error(self) -> float:
        """Standard error of the mean."""
        return statistics.stdev(self.returns) / math.sqrt(len(self.returns)) if len(self.returns) > 1 else math.nan


def play_block(level: str, agent: str, first_seed: int, count: int = BLOCK) -> Played:
    """Plays episodes with the seeds from `first_seed` on."""
    played = Played()
    with labs.lab_of(level, *_SIZE, observations=labs.KNOWN) as lab:
        table = labs.actions()
        for seed in range(first_seed, first_seed + count):
            lab.reset(seed=seed)
            if agent == "random":
                played.returns.append(labs.step_at_random(lab, np.random.default_rng(seed), table, _WITHOUT_END)[0])
                continue
            most, meter = fixed_most(lab, level), Meter(lab)
            played.returns.append(sum(player_of(level)(lab)))
            meter.close()
            if not level.startswith("lasertag"):
                timed = min(meter.most(played.returns[-1]), ceiling(lab, level))
                played.most.append(timed if most is None else most)
    return played


def read(path: Path) -> dict[tuple[str, str], Played]:
    """What has been played, by level and agent."""
    found: dict[tuple[str, str], Played] = {}
    for row in _rows(path):
        played = found.setdefault((row["level"], row["agent"]), Played())
        played.returns += map(float, row["returns"].split())
        played.most += map(float, row["most"].split())
    return found


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(newline="") as file:
            yield from csv.DictReader(file)


def add_block(path: Path, level: str, agent: str, first_seed: int, played: Played) -> None:
    """Appends a block to the file, which is made where there is none."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(_COLUMNS)
        numbers = [" ".join(f"{value:g}" for value in values) for values in (played.returns, played.most)]
        writer.writerow([level, agent, first_seed, *numbers])


def missing_blocks(path: Path, levels: Sequence[str], agents: Sequence[str], episodes: int) -> Iterator[tuple[str, str, int]]:
    """The blocks that are not in the file, the first of every level before the second of any."""
    done = {(row["level"], row["agent"], int(row["first_seed"])) for row in _rows(path)}
    for first in range(0, episodes, BLOCK):
        for level in levels:
            for agent in agents:
                if (level, agent, first) not in done:
                    yield level, agent, first


def _plus_minus(played: Played | None) -> str:
    return f"{played.mean():.2f} ({played.error():.2f}, {len(played.returns)})" if played else ""


def table(found: dict[tuple[str, str], Played], levels: Sequence[str]) -> str:
    """The rows in Markdown: DeepMind Lab's figures beside the stand-in's."""
    head = ("level", "random here (s.e., episodes)", "published random", "walker here (s.e., episodes)", "most possible")
    lines = [f"| {' | '.join([*head, 'share', 'published human'])} |", "|---" * 7 + "|"]
    for level in levels:
        random, walker = (found.get((level, agent)) for agent in AGENTS)
        name = score_name(level)
        most = statistics.fmean(walker.most) if walker and walker.most else None
        cells = [level, _plus_minus(random), f"{RANDOM_SCORES[name]:g}", _plus_minus(walker)]
        share = f"{100 * walker.mean() / most:.0f} %" if walker and most else ""
        lines.append(f"| {' | '.join([*cells, f'{most:.1f}' if most else '', share, f'{HUMAN_SCORES[name]:g}'])} |")
    return "\n".join(lines)
