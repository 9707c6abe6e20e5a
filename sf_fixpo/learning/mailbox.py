"""How weights get from the learner to the policy workers: two places that are written in turn, and one short lock.

A worker on an accelerator only *asks* for its copy of the weights; the copy runs later, and would take half of one version and
half of the next if the learner wrote meanwhile. With one place a lock has to be held until the copy has ended, and the learner
waits for its readers. With two, the learner writes the place that nobody is told to read, and a reader notices when the place it
has read from has been begun anew. Nobody holds the lock longer than it takes to look at two numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from sample_factory.algo.utils.model_sharing import ParameterClient, ParameterClientAsync, ParameterServer
from sample_factory.algo.utils.shared_buffers import policy_device
from torch import Tensor

_BEGUN, _DONE = 0, 1
_TRIES = 3  # of a reader that the learner overtakes, before it makes the learner wait once


def settle_device(cfg: Any, policy_id: int) -> None:
    """Waits until this process's copies on the policy's accelerator have ended; on a CPU they have when the call returns."""
    if cfg.device == "gpu":
        torch.cuda.current_stream(policy_device(cfg, policy_id)).synchronize()


class Mailbox:
    """Which of two places holds what was published last, and whether it is being written anew.

    It knows nothing of what is copied, and is handed to other processes as it is. The learner's turn t writes place t % 2, so
    that what was copied from there while no turn above t + 1 had begun is whole.
    """

    def __init__(self, lock: AbstractContextManager[Any], versions: Tensor, policy_id: int, settle: Callable[[], object]):
        """Nothing has been written.

        Args:
            lock: of all processes.
            versions: [policies] int tensor in shared memory that the policy workers watch.
            policy_id: the entry of `versions` that is ours.
            settle: waits until the device has finished the copies that this process has asked for; picklable.
        """
        self._lock, self._policy_id, self._settle = lock, policy_id, settle
        self._shared = torch.zeros(2, dtype=torch.int64).share_memory_(), versions
        self._look()

    def _look(self) -> None:
        """At memory on the host, where no device is asked."""
        self._turns, self._versions = (tensor.numpy() for tensor in self._shared)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: an array would be copied, a tensor is shared."""
        return {name: value for name, value in vars(self).items() if name not in ("_turns", "_versions")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In the other process."""
        vars(self).update(state)
        self._look()

    @property
    def version(self) -> int:
        """That was published last."""
        return int(self._versions[self._policy_id])

    def put(self, write: Callable[[int], object], version: int) -> None:
        """Publishes.

        Args:
            write: copies the weights to the place with this number.
            version: of the weights; raised when they are there, so that nobody sees it with older ones.
        """
        with self._lock:
            turn = int(self._turns[_DONE]) + 1
            self._turns[_BEGUN] = turn
        write(turn % 2)
        self._settle()
        with self._lock:
            self._turns[_DONE] = turn
            self._versions[self._policy_id] = version

    def take(self, read: Callable[[int], object]) -> int:
        """Copies what was published last, whole.

        Args:
            read: copies the weights from the place with this number; called again where they may have been torn.

        Returns:
            Their version.
        """
        for _ in range(_TRIES):
            with self._lock:
                turn, version = int(self._turns[_DONE]), self.version
            read(turn % 2)
            self._settle()
            with self._lock:
                whole = int(self._turns[_BEGUN]) <= turn + 1
            if whole:
                return version
        with self._lock:  # no turn can begin: the learner waits for this one copy
            read(int(self._turns[_DONE]) % 2)
            self._settle()
            return self.version


class MailboxServer(ParameterServer):
    """sample-factory's, with a mailbox.

    Attributes:
        mailbox: of the policy.
    """

    def __init__(self, policy_id: int, policy_versions: Tensor, cfg: Any):
        """As sample-factory's, with the run's settings."""
        super().__init__(policy_id, policy_versions, cfg.serial_mode)
        self.mailbox = Mailbox(self.policy_lock, policy_versions, policy_id, partial(settle_device, cfg, policy_id))


class MailboxClient(ParameterClientAsync):
    """sample-factory's, of a learner that publishes through a mailbox."""

    server: MailboxServer

    def on_weights_initialized(self, state_dict: Any, device: torch.device, policy_version: int) -> None:
        """Makes the worker's own network.

        Args:
            state_dict: the states in the two places.
            device: of the policy.
            policy_version: of what is there.
        """
        ParameterClient.on_weights_initialized(self, state_dict, device, policy_version)
        self._init_local_copy(device, self.cfg, self.env_info.obs_space, self.env_info.action_space)
        self._shared_model_weights = state_dict
        self.latest_policy_version = self.server.mailbox.take(self._read)

    def ensure_weights_updated(self) -> None:
        """Takes over newer weights where there are any."""
        if self.latest_policy_version < self._get_server_policy_version() and self._shared_model_weights is not None:
            with self.timing.time_avg("weight_update"):
                self.latest_policy_version = self.server.mailbox.take(self._read)
            self.num_policy_updates += 1

    def _read(self, place: int) -> None:
        self._actor_critic.load_state_dict(self._shared_model_weights[place])
