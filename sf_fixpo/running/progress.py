"""What a user sees of a run: the live panel, the `fixpo/` scalars, the closing summary."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Sequence
from os.path import join
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.utils.utils import experiment_dir

from sf_fixpo.records.live import HISTORY, View, figures_of, plain_line, time_left
from sf_fixpo.records.live_view import draw_panel
from sf_fixpo.records.update_log import FIXPO_STATS, UPDATE_LOG, kl_over_bound, latest_rows
from sf_fixpo.running.usage import UsageMeter

_PLAIN_LINE_SECONDS = 10.0
_PANEL_SECONDS = 0.5
_SCALAR_SECONDS = 2.0


def _beta_text(beta: float | Sequence[float]) -> str:
    return f"{min(beta):.3g}..{max(beta):.3g}" if isinstance(beta, Sequence) else f"{beta:.3g}"


class TrainingDisplay(AlgoObserver):
    """A live panel on a terminal, a plain line every ten seconds elsewhere; writes the `fixpo/` scalars."""

    def __init__(self, console: Console):
        """Shows nothing yet."""
        self._console = console
        self._live: Live | None = None
        self._meter: UsageMeter | None = None
        self._last_shown = -math.inf
        self._last_scalars: dict[int, float] = {}
        self._rows: dict[int, deque[dict[str, Any]]] = {}
        self._worst: dict[int, float] = {}
        self._returns: deque[float] = deque(maxlen=HISTORY)
        self._started = time.monotonic()

    def on_init(self, runner: Runner) -> None:
        """Listens for the learners' records."""
        runner.policy_msg_handlers[FIXPO_STATS] = [self._on_record]

    def on_start(self, runner: Runner) -> None:
        """Opens the live panel."""
        self._started = time.monotonic()
        if self._console.is_terminal:
            self._meter = UsageMeter(os.getpid())
            self._live = Live(draw_panel(self._view(runner), self._console.width), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)

    def _on_record(self, runner: Runner, message: dict, policy_id: int) -> None:
        record = message[FIXPO_STATS]
        self._rows.setdefault(policy_id, deque(maxlen=HISTORY)).append(record.to_row())
        self._worst[policy_id] = max(record.kl_max_rel, self._worst.get(policy_id, 0.0))
        now = time.monotonic()
        # the update log has every update; scalars are for looking at
        if now - self._last_scalars.get(policy_id, -math.inf) >= _SCALAR_SECONDS:
            self._last_scalars[policy_id] = now
            for key, value in record.to_scalars().items():
                runner.writers[policy_id].add_scalar(f"fixpo/{key}", value, record.env_steps)

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        """Shows how far the run is, as often as somebody may look."""
        if time.monotonic() - self._last_shown < (_PLAIN_LINE_SECONDS if self._live is None else _PANEL_SECONDS):
            return
        self._last_shown = time.monotonic()
        view = self._view(runner)
        if self._live is None:
            self._console.print(plain_line(view), highlight=False, soft_wrap=True, markup=False)
        else:
            self._live.update(draw_panel(view, self._console.width), refresh=True)

    def on_stop(self, runner: Runner) -> None:
        """Closes the live panel."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._meter is not None:
            self._meter.close()

    def _view(self, runner: Runner) -> View:
        """The run now; of a population the policy whose KL came nearest to its bound."""
        cfg, steps = runner.cfg, max(runner.env_steps.values(), default=0)
        seconds = max(time.monotonic() - self._started, 1e-9)
        fps = (runner.total_env_steps_since_resume or 0) / seconds
        returns = [float(np.mean(r)) for r in runner.policy_avg_stats.get("reward", []) if len(r) > 0]
        if returns:
            self._returns.append(float(np.mean(returns)))
        policy_id = max(self._rows, key=lambda i: kl_over_bound(self._rows[i][-1]), default=None)
        rows = () if policy_id is None else tuple(self._rows[policy_id])
        return View(
            name=cfg.experiment,
            what=f"{cfg.algo} on {cfg.env}",
            state="running",
            steps=steps,
            target=cfg.train_for_env_steps,
            fps=fps,
            seconds_left=time_left(steps, cfg.train_for_env_steps, fps, cfg.train_for_seconds - seconds) if fps else None,
            returns=tuple(self._returns),
            worst=max(self._worst.values(), default=None),
            usage=self._meter.latest if self._meter is not None else None,
            **figures_of(rows),
        )


def print_summary(runner: Runner, console: Console) -> None:
    """The closing table: what the run reached, and what the guarantee cost. Covers the whole experiment, resumed parts too."""
    table = Table(title=f"{runner.cfg.experiment}: {runner.cfg.algo} on {runner.cfg.env}", show_header=False)
    returns = runner.policy_avg_stats.get("reward", [])
    for policy_id, episodes in enumerate(returns):
        if len(episodes) > 0:
            table.add_row(
                _label("return", policy_id, runner), f"{np.mean(episodes):.2f} (mean of the last {len(episodes)} episodes)"
            )
    seconds = runner.timing.get("main_loop", math.nan)
    steps = runner.total_env_steps_since_resume or 0
    table.add_row("steps", f"{sum(runner.env_steps.values()):,}")
    table.add_row("FPS", f"{steps / seconds:,.0f} ({seconds:,.0f} s)")
    for policy_id in range(runner.cfg.num_policies if runner.cfg.algo != "APPO" else 0):
        try:
            rows = latest_rows(join(experiment_dir(runner.cfg, mkdir=False), UPDATE_LOG), policy_id)
        except FileNotFoundError:
            rows = []
        except ValueError as exc:  # damaged before the run was resumed
            table.add_row(_label(UPDATE_LOG, policy_id, runner), f"cannot be read: {exc}")
            rows = []
        if not rows:
            continue
        primary, fixup = (sum(row[key] for row in rows) for key in ("primary_steps", "fixup_steps"))
        table.add_row(_label("worst KL max / eps_kl", policy_id, runner), f"{max(r['kl_max'] / r['eps_kl'] for r in rows):.4f}")
        table.add_row(
            _label("fixup steps", policy_id, runner), f"{fixup:,} ({fixup / max(primary, 1):.2%} of {primary:,} primary steps)"
        )
        table.add_row(_label("backtracks", policy_id, runner), str(sum(row["backtracks"] for row in rows)))
        table.add_row(_label("undone updates", policy_id, runner), str(sum(row["rolled_back"] for row in rows)))
        table.add_row(_label("beta", policy_id, runner), _beta_text(rows[-1]["beta"]))
    console.print(table)


def _label(name: str, policy_id: int, runner: Runner) -> str:
    return name if runner.cfg.num_policies == 1 else f"{name}, policy {policy_id}"
