"""Scalars reach W&B and MLflow as they reach TensorBoard, and an experiment that goes on continues its record."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from programs import REPO, SERIAL, train

RECORD = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
[experiment] = [found for found in client.search_experiments() if found.name != "Default"]
[run] = client.search_runs([experiment.experiment_id])
scalars = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
print(json.dumps([experiment.name, run.info.run_name, run.info.status, run.data.params["eps_kl"], scalars]))
"""


def mlflow_record(store):
    """Read by a process of its own: MLflow's libraries have warnings."""
    done = subprocess.run(
        [sys.executable, "-c", RECORD, store],
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def event_scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.slow
def test_mlflow_has_the_scalars_of_tensorboard_and_goes_on(tmp_path):
    quick = ("--with_mlflow=True", "--experiment_summaries_interval=1", "--eps_kl=0.4")
    for steps in (256, 512):
        run = train(tmp_path, "run", *SERIAL, *quick, f"--train_for_env_steps={steps}", timeout=120)
        assert run.popen.returncode == 0, run.report()
    name, run_name, status, eps_kl, scalars = mlflow_record(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert (name, run_name, status, eps_kl) == ("gym_CartPole-v1", "run", "FINISHED", "0.4")
    theirs = event_scalars(tmp_path / "run" / ".summary" / "0")
    ours = dict(scalars["fixpo/kl_max"])
    assert ours == pytest.approx(dict(theirs["fixpo/kl_max"]))
    assert min(ours) <= 256 < max(ours)
    assert set(scalars) == set(theirs)


def test_wandb_has_them_offline(tmp_path):
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    run = train(tmp_path, "run", *SERIAL, "--with_wandb=True", "--train_for_env_steps=256", timeout=120, env=offline)
    assert run.popen.returncode == 0, run.report()
    [record] = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"fixpo/kl_max" in record.read_bytes()


def test_a_store_that_cannot_be_used_is_named(tmp_path):
    run = train(tmp_path, "run", *SERIAL, "--with_mlflow=True", timeout=120, env={"MLFLOW_TRACKING_URI": "nowhere://x"})
    assert run.popen.returncode == 2, run.report()
    assert "--with_mlflow=True: nowhere://x: " in run.stderr
    assert "Traceback" not in run.stderr


def test_mlflow_is_asked_for_only_where_it_is(tmp_path):
    """A Python that has no mlflow: the module is hidden by one that cannot be found."""
    code = "import sys; sys.modules['mlflow'] = None; from sf_fixpo.train import main; sys.exit(main(sys.argv[1:]))"
    flags = [*SERIAL, "--with_mlflow=True", f"--train_dir={tmp_path}", "--experiment=x"]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, "--with_mlflow=True: MLflow is not installed: pip install" in done.stderr) == (2, True), done.stderr
