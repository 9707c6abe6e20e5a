"""What a training shows: a panel on a terminal, plain lines elsewhere, scalars for every policy."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from small_runs import update_row

from sf_fixpo.records.update_log import FIXPO_STATS, UpdateRecord
from sf_fixpo.running import progress
from sf_fixpo.running.progress import TrainingDisplay


class Writer:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, name, value, step):
        self.scalars[name] = (value, step)


@pytest.fixture
def runner():
    cfg = SimpleNamespace(experiment="run", algo="FIXPO", env="x", train_for_env_steps=10**15, train_for_seconds=432_410)
    stats = {"reward": [[10.0, 20.0], []]}
    return SimpleNamespace(
        cfg=cfg, policy_msg_handlers={}, env_steps={0: 5000}, total_env_steps_since_resume=1000, policy_avg_stats=stats,
        writers={0: Writer(), 1: Writer()},
    )  # fmt: skip


def record(kl_max: float) -> UpdateRecord:
    rest = {"check_passes": 3, "backtrack_scale": 1.0, "statistics_scale": 1.0, "lr_halvings": 0, "valid_fraction": 1.0}
    return UpdateRecord(**update_row(1, kl_max=kl_max), **rest, host_reads=4)


def show(runner, terminal: bool, monkeypatch, records=()) -> str:
    monkeypatch.setattr(progress, "_PANEL_SECONDS", 0.0)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    display = TrainingDisplay(console)
    display.on_init(runner)
    display.on_start(runner)
    for policy_id, one in records:
        [handler] = runner.policy_msg_handlers[FIXPO_STATS]
        handler(runner, {FIXPO_STATS: one}, policy_id)
    for _ in range(2):
        display.on_training_step(runner, 1)
    display.on_stop(runner)
    display.on_stop(runner)
    return console.file.getvalue()


def test_where_the_output_is_no_terminal_there_is_a_line(runner, monkeypatch):
    [line] = show(runner, False, monkeypatch).splitlines()
    assert line.startswith("5,000/1,000,000,000,000,000 steps | ")
    assert "return 15.00" in line
    assert line.endswith("| 5 d 0 h left"), "and not 7206.8 min"


def test_before_the_first_step_nothing_is_foretold(runner, monkeypatch):
    runner.total_env_steps_since_resume, runner.env_steps, runner.policy_avg_stats = None, {}, {}
    assert show(runner, False, monkeypatch).strip() == "0/1,000,000,000,000,000 steps | 0 FPS | return - | - left"


def test_a_terminal_gets_a_panel_of_the_policy_nearest_to_its_bound(runner, monkeypatch):
    records = [(0, record(kl_max=0.1)), (1, record(kl_max=0.45)), (0, record(kl_max=0.2))]
    text = show(runner, True, monkeypatch, records)
    assert "╭─ run  running" in text
    assert "KL/eps_kl 0.90" in text
    assert "worst 0.900" in text
    assert runner.writers[1].scalars["fixpo/kl_max_rel"][0] == pytest.approx(0.9)
