"""Where a run's scalars go besides TensorBoard's files: W&B (`--with_wandb`), and MLflow's store (`--with_mlflow`).

Both get every scalar that is written for TensorBoard, by sample-factory, by us or by a user's observer, as it is written; of a
population the ones of policy k under `policy_k/`. An id in config.json lets an experiment that goes on continue the same record.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from os.path import abspath, join
from pathlib import Path
from typing import Any, Protocol

from sample_factory.utils.typing import Config
from sample_factory.utils.utils import experiment_dir, log, str2bool

# Scalars that are kept back before they are written in one transaction, and for how long at most: an update has thirty.
_BATCH = 500
_BATCH_SECONDS = 10.0


class TrackerError(RuntimeError):
    """A tracker cannot be started; the message says which flag asked for it, and why."""


class Tracker(Protocol):
    """Something that keeps the scalars of a run."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """Takes a scalar, at this number of environment steps."""
        ...

    def finish(self, succeeded: bool) -> None:
        """Waits until everything is kept, and says how the run ended."""
        ...


def add_tracker_args(parser: argparse.ArgumentParser) -> None:
    """Adds what is not sample-factory's: its own flags of W&B stay as they are."""
    parser.add_argument_group("trackers").add_argument(
        "--with_mlflow",
        default=False,
        type=str2bool,
        help="Also write the scalars to MLflow: to <train_dir>/mlflow.db, or where MLFLOW_TRACKING_URI says",
    )


def tracker_faults(cfg: Config) -> list[str]:
    """Trackers that are asked for and cannot be had."""
    if cfg.with_mlflow and importlib.util.find_spec("mlflow") is None:
        return ["--with_mlflow=True: MLflow is not installed: pip install 'sf_fixpo[mlflow]'"]
    return []


class Wandb:
    """A run of Weights & Biases; without a network with `WANDB_MODE=offline`."""

    def __init__(self, cfg: Config):
        """Starts the run, or goes on with it.

        sample-factory 2.1.1 passes a setting that wandb no longer knows, and stops there.

        Raises:
            TrackerError: W&B refuses; the message is its own.
        """
        import wandb

        cfg.setdefault("wandb_unique_id", f"{cfg.experiment}_{time.strftime('%Y%m%d_%H%M%S')}_{os.getpid()}")
        try:
            self._run = wandb.init(
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
            )
        except wandb.Error as error:
            raise TrackerError(f"--with_wandb=True: {error} (without a network or an account: WANDB_MODE=offline)") from None
        # its own steps count calls
        self._run.define_metric("*", step_metric="global_step")

    def scalar(self, name: str, value: float, step: int) -> None:
        """See `Tracker`."""
        self._run.log({name: value, "global_step": step})

    def finish(self, succeeded: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(not succeeded))


class MLflow:
    """A run in an MLflow store: one SQLite file for all runs of a train_dir, unless `MLFLOW_TRACKING_URI` names another store."""

    def __init__(self, cfg: Config):
        """Starts the run, or goes on with it.

        Raises:
            TrackerError: the store cannot be used; the message is MLflow's own.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # what stays on this disk is nobody else's
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{join(abspath(cfg.train_dir), 'mlflow.db')}"
        try:
            self._client = MlflowClient(store)
            if not cfg.get("mlflow_run_id"):
                cfg.mlflow_run_id = self._client.create_run(self._experiment_id(cfg), run_name=cfg.experiment).info.run_id
                self._log_settings(cfg)
            else:
                self._client.update_run(cfg.mlflow_run_id, status="RUNNING")
        except MlflowException as error:
            raise TrackerError(f"--with_mlflow=True: {store}: {error}") from None
        self._run_id = cfg.mlflow_run_id
        self._kept: list[Any] = []
        self._written = time.monotonic()

    def _experiment_id(self, cfg: Config) -> str:
        """Of the environment's experiment, which several runs of a sweep may want to make at once."""
        from mlflow.exceptions import MlflowException

        if (found := self._client.get_experiment_by_name(cfg.env)) is not None:
            return found.experiment_id
        try:
            files = Path(abspath(cfg.train_dir), "mlflow_files").as_uri()
            return self._client.create_experiment(cfg.env, artifact_location=files)
        except MlflowException:
            if (found := self._client.get_experiment_by_name(cfg.env)) is None:
                raise
            return found.experiment_id

    def _log_settings(self, cfg: Config) -> None:
        from mlflow.entities import Param

        settings = [Param(key, str(value)[:6000]) for key, value in cfg.items() if value not in (None, "")]
        for start in range(0, len(settings), 100):  # MLflow takes no more at a time
            self._client.log_batch(cfg.mlflow_run_id, params=settings[start : start + 100])

    def scalar(self, name: str, value: float, step: int) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        self._kept.append(Metric(name, float(value), int(time.time() * 1000), int(step)))
        if len(self._kept) >= _BATCH or time.monotonic() - self._written > _BATCH_SECONDS:
            self._write()

    def _write(self) -> None:
        from mlflow.exceptions import MlflowException

        kept, self._kept, self._written = self._kept, [], time.monotonic()
        try:
            self._client.log_batch(self._run_id, metrics=kept)
        except MlflowException as error:  # the run is worth more than its copy: TensorBoard's files have them
            log.error("--with_mlflow: %d scalars are not kept there: %s", len(kept), error)

    def finish(self, succeeded: bool) -> None:
        """See `Tracker`."""
        self._write()
        self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")


class MirroredWriter:
    """TensorBoard's writer of a policy, whose scalars the trackers get too."""

    def __init__(self, writer: Any, trackers: Sequence[Tracker], prefix: str = ""):
        """Wraps `writer`; `prefix` goes before the names for the trackers."""
        self._writer, self._trackers, self._prefix = writer, trackers, prefix

    def add_scalar(self, tag: str, scalar_value: Any, global_step: int | None = None, *args: Any, **kwargs: Any) -> None:
        """As the writer's own."""
        self._writer.add_scalar(tag, scalar_value, global_step, *args, **kwargs)
        for tracker in self._trackers:
            tracker.scalar(self._prefix + tag, float(scalar_value), global_step or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def start_trackers(cfg: Config) -> list[Tracker]:
    """The trackers that a run's flags ask for, started; their ids are put into `cfg`."""
    return [make(cfg) for make, asked in ((Wandb, cfg.with_wandb), (MLflow, cfg.with_mlflow)) if asked]


@contextmanager
def tracked(writers: MutableMapping[int, Any], trackers: Sequence[Tracker]) -> Iterator[list[bool]]:
    """Lets the trackers have what goes to `writers` inside; who has had success says so by appending True to what is yielded.

    Args:
        writers: TensorBoard's, by policy; each is replaced.
        trackers: which have been started.
    """
    successes: list[bool] = []
    if trackers:
        for policy_id, writer in writers.items():
            writers[policy_id] = MirroredWriter(writer, trackers, f"policy_{policy_id}/" if len(writers) > 1 else "")
    try:
        yield successes
    finally:
        for tracker in trackers:
            tracker.finish(any(successes))
