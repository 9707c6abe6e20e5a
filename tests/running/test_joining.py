"""How the programs of several ranks become one run."""

from __future__ import annotations

import pytest
from rank_threads import make_meetings, none_failed, on_each
from sample_factory.utils.attr_dict import AttrDict

from sf_fixpo.learning.meeting import Rank
from sf_fixpo.running import joining

CFG = {"algo": "FIXPO", "num_policies": 1, "with_pbt": False, "rank_timeout": 30.0, "env_start_timeout": 5.0, "experiment": "run"}
CFG |= {"restart_behavior": "overwrite", "with_wandb": True, "eval_every": 100, "learning_rate": 0.1, "train_dir": "a"}


def rank(number=0, count=2, **kwargs):
    return Rank(number, count, "127.0.0.1", 1, **kwargs)


@pytest.mark.parametrize(
    ("local", "gpus", "visible", "expected"),
    [(1, 2, None, "1"), (1, 2, "5,7", "7"), (0, 2, "GPU-a,GPU-b", "GPU-a"), (1, 0, None, None)],
)
def test_each_rank_takes_the_gpu_of_its_number(local, gpus, visible, expected):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert joining.take_gpu(rank(local, local=local, local_count=2), gpus, environment) == []
    assert environment.get("CUDA_VISIBLE_DEVICES") == expected


def test_more_ranks_than_gpus_are_refused_by_name():
    environment = {}
    [fault] = joining.take_gpu(rank(local_count=4), 2, environment)
    assert fault.startswith("--nproc_per_node=4: this machine has 2 GPU(s)")
    assert environment == {}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"algo": "APPO"}, ["--algo=APPO: trains with one learner"]),
        ({"num_policies": 2, "with_pbt": True}, ["--num_policies=2: must be 1 with", "--with_pbt=True: must be False with"]),
        ({"rank_timeout": 0.0}, ["--rank_timeout=0.0: must be a number > 0"]),
    ],
)
def test_what_several_ranks_cannot_do_is_refused(changed, expected, monkeypatch):
    cfg = AttrDict({**CFG, **changed})
    monkeypatch.setattr(joining, "this_rank", lambda: rank())
    found = joining.rank_faults(cfg)
    assert len(found) == len(expected)
    assert all(fault.startswith(start) for fault, start in zip(found, expected, strict=True))
    assert cfg.ranks == 2


def test_one_rank_alone_may_do_all_of_it():
    cfg = AttrDict({**CFG, "algo": "APPO", "num_policies": 2, "with_pbt": True})
    assert joining.rank_faults(cfg) == []
    assert cfg.ranks == 1
    with joining.joined(cfg) as (own, meeting):
        assert (own, meeting) == (cfg, None)


def join(monkeypatch, cfgs, action=lambda cfg, meeting: (cfg, meeting.rank.number)):
    """What each rank gets, or raises, when they join with these configurations."""
    meetings = make_meetings(len(cfgs))
    for meeting in meetings:
        meeting.open = lambda: None
    numbers = {id(cfg): number for number, cfg in enumerate(cfgs)}
    current = {}
    monkeypatch.setattr(joining, "this_rank", lambda: rank(numbers[id(current[joining_thread()])], len(cfgs)))
    monkeypatch.setattr(joining, "Meeting", lambda of, *_: meetings[of.number])

    def act(number):
        current[joining_thread()] = cfgs[number]
        with joining.joined(cfgs[number]) as (own, meeting):
            return action(own, meeting)

    return on_each(act, len(cfgs))


def joining_thread():
    import threading

    return threading.get_ident()


def test_ranks_of_one_run_join_and_each_has_a_folder_of_its_own(monkeypatch):
    cfgs = [AttrDict({**CFG, "train_dir": str(i), "cli_args": {"x": i}}) for i in range(2)]
    (first, zero), (second, one) = none_failed(join(monkeypatch, cfgs))
    assert (zero, one) == (0, 1)
    assert first is cfgs[0]
    assert second.experiment == "run/ranks/1"
    # rank 0 alone moves folders away, evaluates, and speaks to W&B
    assert (second.restart_behavior, second.with_wandb, second.eval_every) == ("resume", False, 0)
    assert cfgs[1].experiment == "run"


def test_another_configuration_or_version_is_refused_on_every_rank_by_name(monkeypatch):
    cfgs = [AttrDict({**CFG, "learning_rate": rate}) for rate in (0.1, 0.1, 0.2)]
    for result in join(monkeypatch, cfgs):
        assert isinstance(result, joining.DifferentRanksError)
        assert "--learning_rate=0.2 on rank 2, 0.1 on rank 0: must be the same on all ranks" in str(result)
        assert "rank 1" not in str(result)
    own = joining.fingerprint(cfgs[0])
    assert {"sf_fixpo", "torch", "sample-factory", "python"} < own.keys()
    [fault] = joining.differences(1, own, {**own, "torch": "1.0"})
    assert fault.startswith("torch=2.")
    assert "1.0 on rank 0" in fault


def test_what_goes_wrong_on_one_rank_before_it_starts_is_said_to_the_others(monkeypatch):
    def act(cfg, meeting):
        if meeting.rank.number == 0:
            raise ValueError("no such level")
        return joining.is_done(meeting)

    zero, one = join(monkeypatch, [AttrDict(CFG), AttrDict(CFG)], act)
    assert str(zero) == "no such level"
    assert "ValueError: no such level" in str(one)


@pytest.mark.parametrize("done", [True, False])
def test_rank_0_says_whether_anything_is_left_to_do(monkeypatch, done):
    def act(cfg, meeting):
        joining.start_together(meeting, done)
        return joining.is_done(meeting)

    assert join(monkeypatch, [AttrDict(CFG), AttrDict(CFG)], act) == [done, done]
