"""Where the ranks of a run meet: who they are, whether all have come to the next update, who has failed and why, who is done.

A rank is a run with actors and a learner of its own; all ranks train one policy. What is said here goes by torch's store, a table
of words that every process of every rank can look at; numbers of the update go by `ranks`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import DistError, PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

# Why a rank wants to end, the weightiest last.
ON, DONE, INTERRUPTED, PREEMPTED = range(4)

JOIN_SECONDS = 60.0  # for all ranks to have started their programs
_LOOK_SECONDS = 1.0  # between two looks at whether another rank has failed
_ANSWER_SECONDS = 4.0  # for the ranks to say that they are there, when an exchange has failed for all of them
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05  # seconds between two looks for a word
_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RanksError(RuntimeError):
    """Another rank is gone, or has failed; the message says which and why."""


@dataclass(frozen=True)
class Rank:
    """Which rank this process is of, and where all of them meet.

    Attributes:
        number: from 0; rank 0 writes what the run leaves behind.
        count: of all ranks.
        address: of the machine where they meet.
        port: there.
        run: tells apart the runs, and the starts of one run, that meet at one place.
        hosts: whether this rank's program has to offer the place; with torchrun an agent does.
        local: number among the ranks of this machine.
        local_count: ranks of this machine.
    """

    number: int
    count: int
    address: str
    port: int
    run: str = ""
    hosts: bool = False
    local: int = 0
    local_count: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Rank | None:
        """As torchrun, a PyTorchJob and this project's launcher say it; None for a run that is alone.

        Raises:
            ValueError: part of it is missing, or is no number; one line for each.
        """
        if environment.get("WORLD_SIZE", "1") == "1":
            return None
        found = [f"{name}: must be set where WORLD_SIZE={environment['WORLD_SIZE']} is, as torchrun sets it" for name in _NAMES
                 if not environment.get(name)]  # fmt: skip
        numbers = {}
        for name, default in {
            "RANK": "",
            "WORLD_SIZE": "",
            "MASTER_PORT": "",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
        }.items():
            text = environment.get(name) or default
            if text.isdigit():
                numbers[name] = int(text)
            elif text:
                found.append(f"{name}={text}: must be a whole number >= 0")
        if found:
            raise ValueError("\n".join(found))
        if not numbers["RANK"] < numbers["WORLD_SIZE"]:
            raise ValueError(f"RANK={numbers['RANK']}: must be below WORLD_SIZE={numbers['WORLD_SIZE']}")
        agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        run = "/".join(environment.get(name, "0") for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"))
        return cls(
            numbers["RANK"],
            numbers["WORLD_SIZE"],
            environment["MASTER_ADDR"],
            numbers["MASTER_PORT"],
            run,
            hosts=not agent and numbers["RANK"] == 0,
            local=numbers["LOCAL_RANK"],
            local_count=numbers["LOCAL_WORLD_SIZE"],
        )

    def store(self, hosts: bool) -> Store:
        """Connects this process.

        Args:
            hosts: whether it is the one that offers the place.

        Raises:
            RanksError: nobody answers there.
        """
        try:
            timeout = timedelta(seconds=JOIN_SECONDS)
            store = TCPStore(self.address, self.port, is_master=hosts, timeout=timeout, wait_for_workers=False)
        except (DistError, RuntimeError, ValueError) as exc:
            raise RanksError(f"rank {self.number}: no place to meet at {self.address}:{self.port}: {_first_line(exc)}") from exc
        return PrefixStore(f"fixpo/{self.run}", store)


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0]


class Meeting:
    """One rank's part in it, in whatever process of that rank; each process connects by itself.

    Attributes:
        rank: which it is.
        timeout: seconds that a rank may take to come to the next update; one that takes longer counts as hung.
        patience: the same of the first update, before which environments are started.
    """

    def __init__(self, rank: Rank, timeout: float, start_timeout: float = 0.0, store: Store | None = None):
        """Does not connect yet.

        Args:
            rank: this one.
            timeout: seconds that a rank may take to come to an update, and to each exchange of numbers within one.
            start_timeout: seconds more for the first update.
            store: that is connected already; for tests.
        """
        self.rank, self.timeout = rank, timeout
        self.patience = timeout + start_timeout
        self._wish = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._meetings = 0
        self._connected = store

    def __getstate__(self) -> dict[str, Any]:
        """For another process of this rank."""
        return {**vars(self), "_connected": None}

    @property
    def store(self) -> Store:
        """Connected, as one who does not offer the place."""
        if self._connected is None:
            self._connected = self.rank.store(hosts=False)
        return self._connected

    def open(self) -> None:
        """Connects the rank's program, which offers the place where it is asked to."""
        self._connected = self.rank.store(self.rank.hosts)

    # -- words ----------------------------------------------------------------------------------------------------------------

    def say(self, what: str, text: str) -> None:
        """Writes down a word of this rank."""
        with _place():
            self.store.set(f"{what}/{self.rank.number}", text)

    def hear(self, what: str, number: int, timeout: float) -> str:
        """What another rank has said, or will have within some seconds.

        Raises:
            RanksError: it has not, or some rank has failed meanwhile.
        """
        self._wait(what, [number], timeout)
        return self.store.get(f"{what}/{number}").decode()

    def hear_all(self, what: str, timeout: float) -> list[str]:
        """The same of all ranks, in order."""
        everyone = range(self.rank.count)
        self._wait(what, everyone, timeout)
        return [self.store.get(f"{what}/{number}").decode() for number in everyone]

    def _wait(self, what: str, numbers: Sequence[int], timeout: float) -> None:
        keys = [f"{what}/{number}" for number in numbers]
        deadline = time.monotonic() + timeout
        pause, looked = _FIRST_PAUSE, time.monotonic()
        with _place():
            # not the store's own `wait`: it cannot be told that somebody has failed
            while not self.store.check(keys):
                now = time.monotonic()
                if now - looked > _LOOK_SECONDS or now >= deadline:
                    looked = now
                    if cause := self.failure():
                        raise RanksError(cause)
                if now >= deadline:
                    missing = [number for number, key in zip(numbers, keys, strict=True) if not self.store.check([key])]
                    names = ", ".join(f"rank {number}{self._host_of(number)}" for number in missing)
                    raise RanksError(f"{names}: nothing came within {timeout:.0f} s ({what})")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _host_of(self, number: int) -> str:
        key = f"host/{number}"
        return f" on {self.store.get(key).decode()}" if self.store.check([key]) else ""

    # -- the end --------------------------------------------------------------------------------------------------------------

    def fail(self, cause: str) -> None:
        """Tells all ranks that this one has failed; the first cause counts. Where nobody can be told, nothing is done."""
        with suppress(DistError, RuntimeError):
            self.store.compare_set("failed", "", f"rank {self.rank.number} on {socket.gethostname()}: {cause}")

    def failure(self) -> str | None:
        """Why the run has failed, where some rank has said so."""
        with _place():
            return self.store.get("failed").decode() if self.store.check(["failed"]) else None

    def wish(self, reason: int) -> None:
        """This rank wants to end, or has to; its learner tells the others at the next meeting."""
        self._wish.numpy()[0] = max(reason, int(self._wish.numpy()[0]))

    def blame(self, error: Exception) -> RanksError:
        """After an exchange of numbers has failed: says what has failed, and which ranks are not there to say the same.

        Args:
            error: of the exchange, which does not tell.

        Returns:
            To be raised; all ranks have been told.
        """
        cause = self.failure()
        if cause is None:
            cause = f"an exchange with the other ranks failed: {_first_line(error)}"
            self.say("asked", "here")
            try:
                self.hear_all("asked", _ANSWER_SECONDS)
            except RanksError as exc:
                cause = self.failure() or f"{str(exc).partition(':')[0]} does not answer; {cause}"
            self.fail(cause)
        return RanksError(cause)

    def meet(self) -> int:
        """Comes to the next update and waits for all others.

        Returns:
            `ON`, or why the run ends now, the weightiest reason of all ranks: then nobody meets again.

        Raises:
            RanksError: a rank has not come in time, or has failed.
        """
        number, self._meetings = self._meetings, self._meetings + 1
        what = f"update {number}"
        self.say(what, str(int(self._wish.numpy()[0])))
        reasons = self.hear_all(what, self.patience if number == 0 else self.timeout)
        if number:  # all that came to this one have heard of the last
            with _place():
                self.store.delete_key(f"update {number - 1}/{self.rank.number}")
        return max(map(int, reasons))


@contextmanager
def _place() -> Iterator[None]:
    """That the store itself is gone, in words."""
    try:
        yield
    except DistError as exc:
        raise RanksError(f"the place where all ranks meet is gone: {_first_line(exc)}") from exc


def this_host() -> str:
    """Name of this machine and number of this process, for people."""
    return f"{socket.gethostname()}, process {os.getpid()}"
