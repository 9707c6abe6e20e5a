"""Where the ranks of a run meet: who they are, who has not come, who has failed and why, who wants to end."""

from __future__ import annotations

import pickle
import time

import pytest
from rank_threads import make_meetings, none_failed, on_each

from sf_fixpo.learning.meeting import DONE, INTERRUPTED, ON, PREEMPTED, Rank, RanksError

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1234",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "id", "TORCHELASTIC_RESTART_COUNT": "2",
}  # fmt: skip


def test_a_rank_is_what_torchrun_says():
    assert Rank.from_environment(TORCHRUN) == Rank(3, 4, "host", 1234, "id/2", hosts=False, local=1, local_count=2)
    assert Rank.from_environment({}) is None
    assert Rank.from_environment({**TORCHRUN, "WORLD_SIZE": "1"}) is None


def test_without_an_agent_rank_0_offers_the_place():
    plain = {key: TORCHRUN[key] for key in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert Rank.from_environment({**plain, "RANK": "0"}) == Rank(0, 4, "host", 1234, "0/0", hosts=True)
    other = Rank.from_environment({**plain, "RANK": "1"})
    assert other is not None
    assert not other.hosts


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": ""}, "RANK: must be set where WORLD_SIZE=4 is"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR: must be set where WORLD_SIZE=4 is.*\nMASTER_PORT: must be set"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT=x: must be a whole number >= 0"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a whole number"),
        ({"RANK": "4"}, "RANK=4: must be below WORLD_SIZE=4"),
    ],
)
def test_half_an_environment_is_refused_by_name(changed, message):
    with pytest.raises(ValueError, match=message):
        Rank.from_environment({**TORCHRUN, **changed})


def test_nobody_to_meet_is_said_with_the_place(monkeypatch):
    monkeypatch.setattr("sf_fixpo.learning.meeting.JOIN_SECONDS", 0.2)
    with pytest.raises(RanksError, match=r"rank 1: no place to meet at 127.0.0.1:9"):
        Rank(1, 2, "127.0.0.1", 9).store(hosts=False)


def test_all_come_to_every_update_and_what_was_said_before_is_taken_away():
    meetings = make_meetings(3)
    assert none_failed(on_each(lambda rank: [meetings[rank].meet() for _ in range(5)], 3)) == [[ON] * 5] * 3
    store = meetings[0].store
    assert [store.check([f"update {number}/0"]) for number in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize(("wishes", "reason"), [((ON, DONE, ON), DONE), ((PREEMPTED, DONE, INTERRUPTED), PREEMPTED)])
def test_one_that_wants_to_end_ends_all_and_the_weightiest_reason_counts(wishes, reason):
    meetings = make_meetings(3)
    for meeting, wish in zip(meetings, wishes, strict=True):
        meeting.wish(wish)
        meeting.wish(ON)  # a wish is not taken back
    assert on_each(lambda rank: meetings[rank].meet(), 3) == [reason] * 3


def test_a_wish_is_seen_in_another_process_of_the_rank():
    meeting = make_meetings(1)[0]
    meeting.wish(DONE)
    # what `multiprocessing` does shares the memory; a plain copy has at least the same state and no connection
    other = pickle.loads(pickle.dumps(meeting))
    assert other._connected is None
    assert int(other._wish[0]) == DONE


def test_a_rank_that_does_not_come_is_named():
    meetings = make_meetings(3, timeout=0.3)
    meetings[2].say("host", "elsewhere, process 7")
    results = on_each(lambda rank: meetings[rank].meet() if rank < 2 else None, 3)
    for result in results[:2]:
        assert isinstance(result, RanksError)
        assert str(result) == "rank 2 on elsewhere, process 7: nothing came within 0 s (update 0)"


def test_the_first_update_may_take_longer():
    meetings = make_meetings(2, timeout=0.2)
    for meeting in meetings:
        meeting.patience = 20.0

    def late(rank):
        time.sleep(1.0 * rank)
        first = meetings[rank].meet()
        time.sleep(0.5 * rank)
        return first, meetings[rank].meet()

    results = on_each(late)
    assert isinstance(results[0], RanksError)
    assert "(update 1)" in str(results[0])


def test_whoever_waits_hears_of_a_failure_elsewhere_at_once_and_the_first_cause_counts():
    meetings = make_meetings(3)

    def act(rank):
        if rank == 2:
            time.sleep(0.3)
            meetings[2].fail("GuaranteeError: broken")
            meetings[1].fail("because of the other")
            return None
        return meetings[rank].meet()

    since = time.monotonic()
    results = on_each(act, 3)
    assert time.monotonic() - since < 10
    for result in results[:2]:
        assert isinstance(result, RanksError)
        assert str(result).startswith("rank 2 on ")
        assert str(result).endswith(": GuaranteeError: broken")
    assert meetings[0].failure() == str(results[0])


def test_after_an_exchange_has_failed_the_rank_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("sf_fixpo.learning.meeting._ANSWER_SECONDS", 1.0)
    meetings = make_meetings(3)
    error = RuntimeError("Timed out waiting for recv\nin some file")
    results = on_each(lambda rank: meetings[rank].blame(error) if rank != 1 else None, 3)
    for text in (str(results[0]), str(results[2]), meetings[1].failure()):
        assert text.endswith("rank 1 does not answer; an exchange with the other ranks failed: Timed out waiting for recv")


def test_where_all_answer_the_error_itself_is_the_cause():
    meetings = make_meetings(2)
    results = on_each(lambda rank: meetings[rank].blame(RuntimeError("Connection closed by peer")))
    assert all(str(result).endswith("failed: Connection closed by peer") for result in results)
