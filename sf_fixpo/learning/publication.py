"""The gate between the learner and the actors: private weights in, shared weights and their version out.

sample-factory shares the learner's own parameters with the policy workers, so that an actor may load weights from the middle of
an update. Here the learner trains a private copy; the shared one changes only through `PublicationGate.publish`, which the
learner calls after the final check of an update has passed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def shared_copy(make_model: Callable[[], nn.Module], model: nn.Module) -> nn.Module:
    """An inference copy of `model` whose CPU tensors lie in shared memory (accelerator tensors can be shared as they are).

    Args:
        make_model: makes another module of the same architecture (`copy.deepcopy` breaks scripted ones); the random numbers that
            its initialisation draws are given back.
        model: whose state and device the copy takes.
    """
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        published = make_model()
    published = published.to(next(model.parameters()).device).requires_grad_(False).eval()
    copy_state(model, published)
    for tensor in published.state_dict().values():
        if not tensor.is_cuda:
            tensor.share_memory_()
    return published


def copy_state(source: nn.Module, target: nn.Module) -> None:
    """Overwrites the parameters and buffers of `target` with those of `source`, in place."""
    with torch.no_grad():
        into, values = target.state_dict(), source.state_dict()
        for name, tensor in into.items():
            tensor.copy_(values[name])


def interpolate_state(start: dict[str, Tensor], end: dict[str, Tensor], alpha: float, target: nn.Module) -> None:
    """Sets `target` to start + alpha * (end - start), buffers (a normaliser's statistics) included; alpha = 0 is exactly start.

    Args:
        start: state at alpha = 0.
        end: state at alpha = 1.
        alpha: in [0, 1].
        target: module of the same architecture; tensors that are not floating point are taken from `start`.
    """
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            between = alpha > 0 and tensor.is_floating_point()
            tensor.copy_(torch.lerp(start[name], end[name], alpha) if between else start[name])


class PublicationGate:
    """The only writer of the shared weights and of their version.

    Attributes:
        published: module in shared memory whose state the policy workers load.
        version: of `published`.
    """

    def __init__(
        self,
        published: nn.Module,
        versions: Tensor,
        policy_id: int,
        lock: AbstractContextManager[Any],
        synchronize: Callable[[], None] = lambda: None,
    ):
        """Takes over the shared module.

        Args:
            published: as `shared_copy` makes it.
            versions: [policies] int tensor in shared memory that the policy workers watch.
            policy_id: the entry of `versions` that is ours.
            lock: held by a policy worker while it loads.
            synchronize: waits until the device has finished its writes.
        """
        self.published = published
        self.version = int(versions[policy_id])
        self._versions = versions
        self._policy_id = policy_id
        self._lock = lock
        self._synchronize = synchronize

    def publish(self, model: nn.Module, version: int) -> None:
        """Copies `model` to the shared module and raises its version, both under the policy lock.

        The version follows the weights: a worker that reads the old version in between only labels newer weights as older, and
        no worker ever sees a new version on old weights.
        """
        with self._lock:
            copy_state(model, self.published)
            self._synchronize()
            self._versions[self._policy_id] = version
        self.version = version
