"""Runs of several ranks, by torchrun as a user starts them: they learn together, and end together whatever happens to one."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import ExitStack
from itertools import groupby

import pytest
from programs import LONG, PARALLEL, SERIAL, checkpoints_of, json_lines, rows_of, started, train, train_command

from sf_fixpo import audit

pytestmark = pytest.mark.slow
WITHIN = 60  # seconds in which all ranks must have ended


def torchrun(tmp_path, experiment, *flags, ranks=2, torchrun_flags=()):
    """`torchrun -m sf_fixpo.train`, started; its output goes to `tmp_path`."""
    argv = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", *torchrun_flags]
    return started(tmp_path / f"{experiment}_output", *argv, *train_command(tmp_path, experiment, *flags))


def finished(tmp_path, experiment, *flags, **kwargs):
    with torchrun(tmp_path, experiment, *flags, **kwargs) as run:
        assert run.wait(180) == 0, run.report()
        run.assert_nothing_left()
        return run


def processes_of(run, name, rank):
    """Those of a rank whose command line or parents say so: learners are children of a rank's program."""
    found = []
    for process in run.processes():
        environment = process.environ()
        if environment.get("RANK") == str(rank) and name in " ".join(process.cmdline()):
            found.append(process)
    return sorted(found, key=lambda process: process.create_time())


def test_two_ranks_train_one_policy_and_another_number_of_them_goes_on(tmp_path):
    experiment = tmp_path / "run"
    finished(tmp_path, "run", *SERIAL, "--train_for_env_steps=2560", "--audit_every=3")
    rows = json_lines(experiment / "updates.jsonl")
    assert len(rows) >= 20
    assert [row["env_steps"] for row in rows] == [128 * i for i in range(1, len(rows) + 1)], "of both ranks"
    assert all(len(row["ranks"]) == 2 for row in rows)
    assert rows[0]["ranks"][0]["kl_mean"] != rows[0]["ranks"][1]["kl_mean"], "other samples on each rank"
    assert len(checkpoints_of(experiment)) >= 1
    assert not list((experiment / "ranks" / "1").rglob("*.pth")), "rank 0 alone writes what the run leaves behind"
    assert audit.main([str(experiment)]) == 0

    # the same command again has nothing to do; with more steps one rank goes on, and then two
    again = finished(tmp_path, "run", *SERIAL, "--train_for_env_steps=2560")
    assert "is finished" in again.stdout
    alone = train(tmp_path, "run", *SERIAL, "--train_for_env_steps=3200")
    assert alone.popen.returncode == 0, alone.report()
    finished(tmp_path, "run", *SERIAL, "--train_for_env_steps=3840")
    rows = json_lines(experiment / "updates.jsonl")
    assert [ranks for ranks, _ in groupby(len(row.get("ranks", [])) for row in rows)] == [2, 0, 2]
    versions = [row["policy_version"] for row in rows]
    assert versions == sorted(set(versions))


def end_of_a_lost_rank(tmp_path, harm, rank=1):
    """The whole run's status and output after something was done to a rank in the middle of it, and the seconds it took."""
    with torchrun(tmp_path, "run", *PARALLEL, LONG) as run:
        run.wait_until(lambda: len(rows_of(tmp_path / "run")) >= 5, 120)
        harm(run, rank)
        since = time.monotonic()
        status = run.wait(WITHIN + 30)
        seconds = time.monotonic() - since
        run.assert_nothing_left()
        return status, run.stderr, seconds


def learners(run, rank):
    """A rank's processes that have a learner: those that look at the ranks' store and are not its program."""
    return [p for p in processes_of(run, "spawn_main", rank) if p.num_threads() and p.parent() is not None]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_learner_that_is_lost_or_hangs_ends_all_within_a_minute(number, tmp_path):
    def harm(run, rank):
        # the run's first child process of its own is the learner's: it is started before the actors
        learners(run, rank)[0].send_signal(number)

    status, output, seconds = end_of_a_lost_rank(tmp_path, harm)
    assert status != 0
    assert seconds < WITHIN
    assert "rank 1 on " in output
    assert any(words in output for words in ("died", "does not answer", "nothing came within 30 s"))


def test_a_program_that_is_killed_ends_all_within_a_minute(tmp_path):
    def harm(run, rank):
        processes_of(run, "sf_fixpo.train", rank)[0].kill()

    status, _, seconds = end_of_a_lost_rank(tmp_path, harm)
    assert status != 0
    assert seconds < WITHIN


def test_a_signal_to_one_rank_ends_all_with_what_was_learned(tmp_path):
    with torchrun(tmp_path, "run", *PARALLEL, LONG) as run:
        run.wait_until(lambda: len(rows_of(tmp_path / "run")) >= 5, 120)
        processes_of(run, "sf_fixpo.train", 1)[0].send_signal(signal.SIGTERM)
        assert run.wait(WITHIN) != 0
        run.assert_nothing_left()
        assert "Traceback" not in run.stderr.split("torch.distributed.elastic")[0].split("E1")[0]
    newest = checkpoints_of(tmp_path / "run")[-1]
    assert int(newest.stem.split("_")[1]) == json_lines(tmp_path / "run" / "updates.jsonl")[-1]["policy_version"]


def test_torchrun_starts_all_ranks_again_and_they_go_on(tmp_path):
    with torchrun(tmp_path, "run", *SERIAL, "--train_for_env_steps=25600", torchrun_flags=["--max-restarts=1"]) as run:
        run.wait_until(lambda: len(rows_of(tmp_path / "run")) >= 30, 120)
        processes_of(run, "sf_fixpo.train", 1)[0].kill()
        assert run.wait(240) == 0, run.report()
        run.assert_nothing_left()
    rows = json_lines(tmp_path / "run" / "updates.jsonl")
    assert rows[-1]["env_steps"] >= 25600
    assert all(len(row["ranks"]) == 2 for row in rows)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_hand(tmp_path, *flags_of_each):
    """Statuses and outputs of ranks that were started one by one, without torchrun, as Slurm starts tasks."""
    port = free_port()
    with ExitStack() as stack:
        runs = []
        for rank, flags in enumerate(flags_of_each):
            env = {"RANK": str(rank), "WORLD_SIZE": str(len(flags_of_each)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            command = train_command(tmp_path, "run", *flags)
            runs.append(stack.enter_context(started(tmp_path / f"output_{rank}", *command, env=env)))
        ends = [(run.wait(120), run) for run in runs]
        for run in runs:
            run.assert_nothing_left()
        return [(status, run.stdout, run.stderr) for status, run in ends]


def test_ranks_that_are_started_by_hand_find_each_other(tmp_path):
    flags = [*SERIAL, "--train_for_env_steps=640"]
    (first, stdout, _), (second, quiet, _) = by_hand(tmp_path, flags, flags)
    assert (first, second) == (0, 0)
    assert "worst KL max" in stdout
    assert quiet == ""
    assert len(json_lines(tmp_path / "run" / "updates.jsonl")) < 10


def test_a_rank_with_another_configuration_is_refused_by_name(tmp_path):
    flags = [*SERIAL, "--train_for_env_steps=640"]
    for status, _, stderr in by_hand(tmp_path, flags, [*flags, "--learning_rate=0.125"]):
        assert status == 2
        assert "--learning_rate=0.125 on rank 1" in stderr
        assert "must be the same on all ranks" in stderr
    assert not (tmp_path / "run" / "updates.jsonl").exists()


def test_what_several_ranks_cannot_do_is_refused_before_they_meet(tmp_path):
    flags = [*SERIAL, "--algo=APPO"]
    for status, _, stderr in by_hand(tmp_path, flags, flags):
        assert status == 2
        assert "--algo=APPO: trains with one learner" in stderr


def test_a_folder_that_is_restarted_is_put_in_order_by_rank_0_alone(tmp_path):
    finished(tmp_path, "run", *SERIAL, "--train_for_env_steps=640")
    finished(tmp_path, "run", *SERIAL, "--train_for_env_steps=640", "--restart_behavior=overwrite")
    assert len(json_lines(tmp_path / "run" / "updates.jsonl")) < 10
    assert json.loads((tmp_path / "run" / "config.json").read_text())["ranks"] == 2
    assert sorted(os.listdir(tmp_path / "run" / "ranks")) == ["1"]
