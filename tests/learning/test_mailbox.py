"""Weights on their way to the policy workers: never half of two versions, and the learner waits for no reader."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch

from sf_fixpo.learning.mailbox import Mailbox

NUMBERS = 64  # of a policy's weights


class LateDevice:
    """Copies that are asked for now and made later, as on an accelerator's stream."""

    def __init__(self):
        self._asked = []

    def copy(self, target, source):
        self._asked.append((target, source))

    def settle(self):
        for target, source in self._asked:
            for i in range(len(target)):  # an element at a time: a writer may come in between
                target[i] = source[i]
                time.sleep(0)
        self._asked.clear()


def make_mailbox(settle=lambda: None):
    return Mailbox(threading.Lock(), torch.zeros(1, dtype=torch.int32), 0, settle)


def in_another_process(mailbox, settle):
    """The same mailbox with another device, as a child process has it."""
    other = copy.copy(mailbox)
    other._settle = settle
    return other


@pytest.mark.parametrize("settled", [True, False])
def test_a_reader_gets_no_half_of_two_versions(settled):
    """A stress test; where the reader does not wait for its copies before it looks again, torn copies are seen."""
    places, stop, torn, versions = [[0] * NUMBERS, [0] * NUMBERS], threading.Event(), [], []
    device, writers = LateDevice(), LateDevice()
    writing = make_mailbox(writers.settle)
    reading = in_another_process(writing, device.settle if settled else lambda: None)

    def write():
        version = 0
        while not stop.is_set():
            version += 1
            writing.put(lambda place, version=version: writers.copy(places[place], [version] * NUMBERS), version)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(300 if settled else 20_000):
            mine = [0] * NUMBERS
            version = reading.take(lambda place, mine=mine: device.copy(mine, places[place]))
            device.settle()
            versions.append(version)
            if len(set(mine)) > 1 or mine[0] != version:
                torn.append((version, mine))
                if not settled:
                    break
    finally:
        stop.set()
        thread.join()
    assert bool(torn) != settled
    assert versions == sorted(versions)


def test_the_learner_publishes_while_a_reader_is_still_copying_and_the_reader_notices():
    mailbox, places, seen = make_mailbox(), [[0], [0]], []

    def put(version):
        mailbox.put(lambda place: places[place].__setitem__(0, version), version)

    def read(place):
        seen.append(places[place][0])
        if len(seen) == 1:  # in the middle of the copy: neither waits, and the second writes where this one reads
            put(2)
            put(3)

    put(1)
    assert mailbox.take(read) == 3
    assert seen == [1, 3]


def test_one_turn_meanwhile_writes_the_other_place_and_takes_nothing_away():
    mailbox, places, seen = make_mailbox(), [[0], [0]], []

    def put(version):
        mailbox.put(lambda place: places[place].__setitem__(0, version), version)

    def read(place):
        put(2)
        seen.append(places[place][0])

    put(1)
    assert (mailbox.take(read), seen) == (1, [1])
    assert mailbox.take(lambda place: seen.append(places[place][0])) == 2


def test_a_reader_that_is_always_overtaken_makes_the_learner_wait_once():
    mailbox, places, reads = make_mailbox(), [[0], [0]], []

    def put(version):
        mailbox.put(lambda place: places[place].__setitem__(0, version), version)

    def read(place):
        if mailbox._lock.locked():
            return reads.append(places[place][0])
        put(mailbox.version + 1)
        put(mailbox.version + 1)
        return reads.append(None)

    put(1)
    assert mailbox.take(read) == 7
    assert reads == [None, None, None, 7]
    put(8)  # the lock was given back


def test_the_version_is_raised_when_the_weights_are_there_and_the_lock_is_free_while_they_are_written():
    order = []
    mailbox = make_mailbox(lambda: order.append(("settled", mailbox.version)))
    mailbox.put(lambda place: order.append((place, mailbox._lock.locked())), 5)
    assert order == [(1, False), ("settled", 0)]
    assert mailbox.version == 5


def test_a_write_that_fails_changes_nothing_for_readers():
    mailbox = make_mailbox()
    mailbox.put(lambda place: None, 1)

    def fail(place):
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="gone"):
        mailbox.put(fail, 2)
    assert mailbox.take(lambda place: None) == 1
    with pytest.raises(RuntimeError, match="gone"):
        mailbox.take(fail)
    mailbox.put(lambda place: None, 3)  # no lock is held
    assert mailbox.take(lambda place: None) == 3
