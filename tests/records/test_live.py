"""The live view: numbers as people read them, what is read of a log that grows, what is drawn."""

from __future__ import annotations

import io
import json
import math
import os

import pytest
from rich.console import Console
from small_runs import update_row, write_run

from sf_fixpo.launcher.progress import read_progress
from sf_fixpo.records import live
from sf_fixpo.records.follow import ALIVE, DEAD, ELSEWHERE, NOBODY, Holder, RunFollower, UpdateTail, holder_of
from sf_fixpo.records.live import Usage, View
from sf_fixpo.records.live_view import draw


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.inf, "-"),
        (math.nan, "-"),
        (-3, "0 s"),
        (0.4, "0 s"),
        (45, "45 s"),
        (60, "1 min 0 s"),
        (599, "9 min 59 s"),
        (600, "10 min"),
        (3599, "1 h 0 min"),
        (3 * 3600 + 720, "3 h 12 min"),
        (7206.8 * 60, "5 d 0 h"),
        (400 * 86400, "400 d 0 h"),
    ],
)
def test_a_time_is_in_units_that_people_read(seconds, text):
    assert live.duration_text(seconds) == text


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ((50, 100, 10.0), 5.0),
        ((50, 100, 10.0, 2.0), 2.0),
        ((150, 100, 10.0), 0.0),
        ((50, 100, None), None),
        ((50, 100, 0.0, 7.0), 7.0),
        ((50, None, 10.0), None),
        ((0, 1e18, 1.0), None),
    ],
)
def test_the_time_left_is_by_steps_or_clock(arguments, left):
    assert live.time_left(*arguments) == left


@pytest.mark.parametrize(
    ("values", "bounds", "drawn"),
    [
        ([], {}, ""),
        ([5.0], {}, "▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], {}, "▁▂▃▄▅▆▇█"),
        ([0, 7, 0, 7, 7, 7, 7, 7], {"width": 4}, "▁▁██"),
        ([0.5, 2.0, -1.0], {"low": 0.0, "high": 1.0}, "▅█▁"),
        ([1.0, math.nan, 2.0], {}, "▁·█"),
        ([math.nan], {}, "·"),
    ],
)
def test_a_course_in_a_line(values, bounds, drawn):
    assert live.sparkline(values, **{"width": 10, **bounds}) == drawn


def test_a_plain_line_is_what_the_launcher_reads(tmp_path):
    view = View(
        "run", state="running", steps=2048, target=9000, fps=1234.5, seconds_left=720, returns=[-1.5], kl=[0.25], beta=[2]
    )
    line = live.plain_line(view)
    assert line == "2,048/9,000 steps | 1,234 FPS | return -1.50 | KL/eps 0.25 | beta 2 | 12 min left"
    (tmp_path / "log").write_text(line + "\n")
    read = read_progress(tmp_path, tmp_path / "log")
    assert (read.steps, read.mean_return) == (2048, -1.5)
    assert live.plain_line(View("x")) == "0 steps | - FPS | return - | - left"
    assert live.plain_line(View("x", state="killed", health=["collapse"])) == "0 steps | - FPS | return - | killed | collapse"


def test_figures_are_of_the_latest_updates():
    rows = [update_row(i, fixup_steps=40 if i <= 5 else 4, kl_max=0.1, kl_max_stale=0.3, beta=[1.0, 3.0]) for i in range(1, 31)]
    figures = live.figures_of(rows)
    assert figures["fixup"] == pytest.approx(0.1)
    assert figures["kl"] == [0.6] * 30
    assert figures["beta"][-1] == 2.0
    assert figures["phases"]["primary"] == pytest.approx(0.02)
    assert live.figures_of([]) == {}


def write(path, rows, end="\n"):
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows[:-1]) + json.dumps(rows[-1]) + end)


def test_a_log_is_read_on_from_where_it_was(tmp_path):
    path = tmp_path / "updates.jsonl"
    tail = UpdateTail(path)
    tail.look()
    assert not tail.rows
    whole = json.dumps(update_row(3)) + "\n"
    write(path, [update_row(1, kl_max=0.4), update_row(2)])
    with path.open("a") as file:
        file.write(whole[:30])
    tail.look()
    assert [row["policy_version"] for row in tail.rows] == [40, 80]
    with path.open("a") as file:
        file.write(whole[30:] + "not json\n{}\n")
    write(path, [update_row(9, policy_id=1), update_row(2, kl_max=0.1)])
    tail.look()
    assert [row["policy_version"] for row in tail.rows] == [40, 80], "resumed at the second, of the same policy"
    assert tail.worst == 0.8
    path.write_text(json.dumps(update_row(1, kl_max=0.05)) + "\n")
    tail.look()
    assert len(tail.rows) == 1, "begun anew"
    assert tail.worst == 0.1


def test_a_run_is_followed(tmp_path):
    folder = write_run(tmp_path / "run", [update_row(i) for i in range(1, 5)], train_for_seconds=100)
    follower = RunFollower(folder, "run")
    first = follower.look(ALIVE, started=960.0, now=1000.0)
    assert (first.steps, first.target, first.state, first.what) == (4000, 12_000, "running", "FIXPO on gym_CartPole-v1")
    assert first.fps == 500, "as sample-factory has logged it"
    assert first.seconds_left == 16
    assert first.returns[-1] == 120
    write(folder / "updates.jsonl", [update_row(5)])
    second = follower.look(ALIVE, started=910.0, now=1002.0)
    assert second.fps == 500
    assert second.seconds_left == 8, "by the clock"
    assert len(second.kl) == 5


@pytest.mark.parametrize(
    ("holder", "rows", "age", "state"),
    [
        (ALIVE, 0, 0, "starting"),
        (ALIVE, 12, 1000, "running"),
        (NOBODY, 12, 0, "finished"),
        (DEAD, 12, 0, "finished"),
        (NOBODY, 6, 0, "ended"),
        (DEAD, 6, 0, "killed"),
        (ELSEWHERE, 6, 10, "running"),
        (ELSEWHERE, 6, 1000, "silent"),
    ],
)
def test_the_state_is_by_who_holds_the_folder(tmp_path, holder, rows, age, state):
    folder = write_run(tmp_path / "run", [update_row(i) for i in range(1, rows + 1)], scalars=False)
    os.utime(folder / "updates.jsonl", (5000, 5000))
    view = RunFollower(folder, "run").look(holder, now=5000.0 + age)
    assert view.state == state
    assert view.is_over == (state not in ("running", "starting"))


def test_the_holder_is_who_the_lock_names(tmp_path):
    assert holder_of(tmp_path / "run") is None
    (tmp_path / ".run.lock").write_text("process 77 on a-host\n")
    assert holder_of(tmp_path / "run") == Holder(77, "a-host")
    (tmp_path / ".run.lock").write_text("")
    assert holder_of(tmp_path / "run") is None


def drawn(views, width: int = 130) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(draw(views, width, 10))
    return console.file.getvalue()


FULL = View(
    "run_a", "FIXPO on x", "running", 500, 1000, 1234.0, 3700.0, [1.0, 2.0], [0.5, 0.9], [1.0, 0.5], 0.97, 0.05, 3.25, 0.125,
    {"primary": 0.03, "check": 0.01}, {"north": {"return": 1.5, "kl_max": 0.1, "beta": 2.0, "sample_share": 0.5}}, ["collapse"],
    Usage(5, 1.5, 3 << 30, "40 %, 2.0 of 80 GiB"),
)  # fmt: skip


def test_a_panel_has_everything():
    text = drawn([FULL])
    for part in (
        "run_a  running", "500 / 1,000", "1 h 2 min left", "1,234", "2.00", "0.90", "worst 0.970", "5.0 % of the primary steps",
        "3.2 versions old, 12.5 % stale", "40 ms: primary 75 %, check 25 %", "north", "50.0 %", "collapse", "1.5 cores, 3.0 GiB",
        "GPU 40 %", "FIXPO on x",
    ):  # fmt: skip
        assert part in text.replace("\n", " "), part


def test_what_is_not_known_is_a_dash():
    assert "steps   0 steps" in drawn([View("new")])


def test_a_few_stand_side_by_side_and_many_in_a_table():
    beside = drawn([FULL, FULL])
    assert any(line.count("run_a") == 2 for line in beside.splitlines())
    assert all(len(line) <= 60 for line in drawn([FULL], width=60).splitlines())
    views = [View(f"run_{i}", state="finished" if i < 6 else "running", steps=i, target=10) for i in range(9)]
    table = drawn(views)
    assert "run_8" in table
    assert "run_5" not in table, "those that run come first where not all have room"
    assert "and 3 more" in table
