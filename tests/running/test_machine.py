"""The doctor's judgements, by figures of machines that are not this one; and what it measures here."""

from __future__ import annotations

import pytest

from sf_fixpo.running import machine
from sf_fixpo.running.machine import FAIL, GIB, MIB, OK, WARN


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (machine.judge_python((3, 10)), OK),
        (machine.judge_python((3, 9)), FAIL),
        (machine.judge_python((3, 13)), FAIL),
        (machine.judge_packages("2.1.1", "2.10.0+cu128"), OK),
        (machine.judge_packages("2.1.1", "2.9.1"), FAIL),
        (machine.judge_packages("2.1.0", "2.10.0"), FAIL),
        (machine.judge_packages(None, "2.10.0"), FAIL),
        (machine.judge_cuda(None, None, None), OK),
        (machine.judge_cuda("12.8", "1 x H100", "570.1"), OK),
        (machine.judge_cuda("12.8", "1 x H100", "570.1", "no kernel image"), FAIL),
        (machine.judge_cuda(None, None, "570.1"), WARN),
        (machine.judge_cuda("12.8", None, "570.1"), WARN),
        (machine.judge_shared_memory(64 * MIB, 60 * MIB), FAIL),
        (machine.judge_shared_memory(GIB, 500 * MIB), WARN),
        (machine.judge_shared_memory(8 * GIB, 7 * GIB), OK),
        (machine.judge_memory(3 * GIB), OK),
        (machine.judge_memory(GIB), WARN),
        (machine.judge_open_files(128), FAIL),
        (machine.judge_open_files(1024), WARN),
        (machine.judge_open_files(65536), OK),
        (machine.judge_open_files(-1), OK),
        (machine.judge_threads(1, None), OK),
        (machine.judge_threads(2, None), WARN),
        (machine.judge_threads(2, "1"), OK),
        (machine.judge_threads(2, "2"), WARN),
        (machine.judge_threads(2, "many"), WARN),
        (machine.judge_disk("runs", 50 * GIB, 500 * MIB, 0.01), OK),
        (machine.judge_disk("runs", 50 * MIB, 500 * MIB, 0.01), FAIL),
        (machine.judge_disk("runs", 500 * MIB, 500 * MIB, 0.01), WARN),
        (machine.judge_disk("runs", 50 * GIB, 5 * MIB, 0.01), WARN),
        (machine.judge_disk("runs", 50 * GIB, 500 * MIB, 2.0), WARN),
        (machine.judge_wandb(None, {}), WARN),
        (machine.judge_wandb("0.31", {"WANDB_MODE": "offline"}), OK),
        (machine.judge_wandb("0.31", {}), OK),
    ],
)
def test_a_judgement_says_what_to_do_where_it_is_not_good(check, status):
    assert check.status == status
    assert check.found
    assert check.status == OK or check.advice


def test_this_machine_is_measured(tmp_path):
    checks = {check.name: check for check in machine.machine_checks(str(tmp_path / "runs"))}
    names = ["Python", "packages", "CUDA", "cores", "memory", "shared memory", "open files", "train_dir", "W&B"]
    assert list(checks) == names
    assert checks["Python"].status == checks["packages"].status == OK
    assert "MiB/s" in checks["train_dir"].found
    assert not list(tmp_path.iterdir()), "nothing is left, and nothing is made"
    assert machine.usable_cores() >= 1


def test_a_train_dir_that_is_none_fails(tmp_path):
    (tmp_path / "notes").write_text("")
    check = machine.check_disk(str(tmp_path / "notes" / "runs"))
    assert check.status == FAIL
    assert "notes is not a folder" in check.found


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder)", "570.86.15"),
        ("GCC version:  gcc version 12.2.0", None),
        ("", None),
    ],
)
def test_the_driver_is_what_its_module_says(text, version):
    assert machine.driver_version(text) == version
