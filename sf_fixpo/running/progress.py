"""What a user sees of a run: the live line, the `fixpo/` scalars, the closing summary."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from os.path import join

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.utils.utils import experiment_dir

from sf_fixpo.records.update_log import FIXPO_STATS, UPDATE_LOG, UpdateRecord, latest_rows

_PLAIN_LINE_SECONDS = 10.0
_SCALAR_SECONDS = 2.0


def _beta_text(beta: float | Sequence[float]) -> str:
    return f"{min(beta):.3g}..{max(beta):.3g}" if isinstance(beta, Sequence) else f"{beta:.3g}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


class TrainingDisplay(AlgoObserver):
    """Live progress line on a terminal, a plain line every ten seconds elsewhere; writes the `fixpo/` scalars."""

    def __init__(self, console: Console):
        """Shows nothing yet."""
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._last_plain = 0.0
        self._last_scalars: dict[int, float] = {}
        self._records: dict[int, UpdateRecord] = {}
        self._started = time.monotonic()

    def on_init(self, runner: Runner) -> None:
        """Listens for the learners' records."""
        runner.policy_msg_handlers[FIXPO_STATS] = [self._on_record]

    def on_start(self, runner: Runner) -> None:
        """Opens the live line."""
        self._started = time.monotonic()
        if self._console.is_terminal:
            columns = [TextColumn("{task.fields[text]}"), BarColumn(), TimeRemainingColumn(compact=True)]
            self._progress = Progress(*columns, console=self._console, refresh_per_second=2)
            self._task = self._progress.add_task("train", total=runner.cfg.train_for_env_steps, text="starting")
            self._progress.start()

    def _on_record(self, runner: Runner, message: dict, policy_id: int) -> None:
        record = message[FIXPO_STATS]
        self._records[policy_id] = record
        now = time.monotonic()
        # the update log has every update; scalars are for looking at
        if now - self._last_scalars.get(policy_id, -math.inf) >= _SCALAR_SECONDS:
            self._last_scalars[policy_id] = now
            for key, value in record.to_scalars().items():
                runner.writers[policy_id].add_scalar(f"fixpo/{key}", value, record.env_steps)

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        """Moves the live line on."""
        steps = max(runner.env_steps.values(), default=0)
        if self._progress is not None:
            self._progress.update(self._task, completed=steps, text=self._text(runner, steps))
        elif time.monotonic() - self._last_plain > _PLAIN_LINE_SECONDS:
            self._last_plain = time.monotonic()
            self._console.print(
                f"{self._text(runner, steps)} | {self._time_left(runner, steps)}", highlight=False, soft_wrap=True
            )

    def on_stop(self, runner: Runner) -> None:
        """Closes the live line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _fps(self, runner: Runner) -> float:
        return (runner.total_env_steps_since_resume or 0) / max(time.monotonic() - self._started, 1e-9)

    def _time_left(self, runner: Runner, steps: int) -> str:
        fps = self._fps(runner)
        if fps <= 0:
            return "- min left"
        by_steps = (runner.cfg.train_for_env_steps - steps) / fps
        by_clock = runner.cfg.train_for_seconds - (time.monotonic() - self._started)
        return f"{max(0.0, min(by_steps, by_clock)) / 60:.1f} min left"

    def _text(self, runner: Runner, steps: int) -> str:
        returns = [np.mean(r) for r in runner.policy_avg_stats.get("reward", []) if len(r) > 0]
        parts = [
            f"{steps:,}/{runner.cfg.train_for_env_steps:,} steps",
            f"{self._fps(runner):,.0f} FPS",
            f"return {_number(float(np.mean(returns)) if returns else math.nan, '.2f')}",
        ]
        if self._records:
            worst = max(self._records.values(), key=lambda record: record.kl_max_rel)
            parts += [f"KL/eps {worst.kl_max_rel:.2f}", f"beta {_beta_text(worst.beta)}"]
        return " | ".join(parts)


def start_wandb(cfg) -> None:
    """Starts the W&B run that mirrors the TensorBoard scalars, where `--with_wandb` asks for it.

    sample-factory 2.1.1 passes a setting that wandb no longer knows, and stops there. The id is saved in the config, so that a
    resumed experiment goes on in the same W&B run.
    """
    if not cfg.with_wandb:
        return
    import wandb

    cfg.setdefault("wandb_unique_id", f"{cfg.experiment}_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}")
    wandb.init(
        project=cfg.wandb_project,
        entity=cfg.wandb_user,
        group=cfg.wandb_group or cfg.env,
        job_type=cfg.wandb_job_type,
        tags=cfg.wandb_tags,
        id=cfg.wandb_unique_id,
        name=cfg.wandb_unique_id,
        config=dict(cfg),
        dir=experiment_dir(cfg),
        resume="allow",
        sync_tensorboard=True,
    )


def finish_wandb(cfg) -> None:
    """Waits until W&B has everything."""
    if cfg.with_wandb:
        import wandb

        wandb.finish()


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
