"""The gate between the learner and the actors: what was verified goes out, and nothing else.

sample-factory shares the learner's own parameters with the policy workers, so that an actor may load weights from the middle of
an update. Here the learner trains a private policy; the shared one changes only through `PublicationGate.publish`, which takes
the verifier's word for the state that it publishes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from sample_factory.algo.utils.shared_buffers import policy_device
from torch import Tensor

from sf_fixpo.learning.policy import Policy
from sf_fixpo.learning.verification import GuaranteeError, Verified, Verifier


def settle_device(cfg: Any, policy_id: int) -> None:
    """Waits until this process's copies on the policy's accelerator have ended; on a CPU they have when the call returns."""
    if cfg.device == "gpu":
        torch.cuda.current_stream(policy_device(cfg, policy_id)).synchronize()


class SettledLock:
    """A lock whose holder's copies on the device have ended before the next one gets it.

    A policy worker holds the lock only while it *asks* for its copies of the shared weights; on an accelerator they run later,
    and would read what the learner's next update is writing. Releasing waits for them: one wait for every weight update.
    """

    def __init__(self, lock: AbstractContextManager[Any], settle: Callable[[], None]):
        """Wraps a lock; both arguments must be picklable for processes to share it."""
        self._lock = lock
        self._settle = settle

    def __enter__(self) -> SettledLock:
        """Waits for the lock."""
        self._lock.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Waits for the device, then gives the lock back."""
        try:
            self._settle()
        finally:
            self._lock.__exit__(*error)


class PublicationGate:
    """The only writer of the shared policy and of its version.

    Attributes:
        published: policy in shared memory whose state the policy workers load.
        version: of `published`.
    """

    def __init__(
        self,
        published: Policy,
        verifier: Verifier,
        versions: Tensor,
        policy_id: int,
        lock: AbstractContextManager[Any],
        settle: Callable[[], None] = lambda: None,
    ):
        """Takes over the shared policy.

        Args:
            published: a policy whose state is shared.
            verifier: whose word is taken.
            versions: [policies] int tensor in shared memory that the policy workers watch.
            policy_id: the entry of `versions` that is ours.
            lock: held by a policy worker while it loads.
            settle: waits until the device has finished this process's writes.
        """
        self.published = published
        self.version = int(versions[policy_id])
        self._verifier = verifier
        self._versions = versions
        self._policy_id = policy_id
        self._lock = lock
        self._settle = settle

    def publish(self, verified: Verified, version: int) -> None:
        """Copies the verified state to the shared policy and raises its version, both under the policy lock.

        The version follows the weights: a worker that reads the old version in between only labels newer weights as older, and
        no worker ever sees a new version on old weights.

        Raises:
            TypeError: not the verifier's word.
            GuaranteeError: it is for a state that has changed since, or another verifier's.
        """
        if not isinstance(verified, Verified):
            raise TypeError(f"only what was verified can be published, not a {type(verified).__name__}")
        if verified.verifier is not self._verifier or verified.generation != self._verifier.generation:
            raise GuaranteeError("the state to publish is not the one that was verified")
        with self._lock:
            self.published.state.copy_(self._verifier.staged.state)
            self._settle()
            self._versions[self._policy_id] = version
        self.version = version
