"""Which lines of an update make the host wait for the device, told on a machine without one.

A read is told by the call that asks for it: as a method of a tensor, which for `.tolist()` or `.cpu()` is no operation at all on
a CPU tensor, and as an operation, which C++ and backward functions ask for too. Both are looked at. What stays unseen is a read
inside a C++ kernel that is not in the list, and `.to(device)` of a device that is a variable.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
# operations whose result, or its shape, the host has to know
OPERATIONS = frozenset(
    {
        _aten._local_scalar_dense,
        _aten.nonzero,
        _aten.masked_select,
        _aten._unique2,
        _aten.unique_dim,
        _aten.equal,
        _aten.allclose,
        _aten.multinomial,
    }
)
CALLS = frozenset(
    {
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.cpu,
        Tensor.__bool__,
        Tensor.__float__,
        Tensor.__int__,
        Tensor.__index__,
    }
)
# host to device: a copy from memory that is not pinned waits for the device too
SENDS = frozenset({torch.tensor, torch.as_tensor})
_OURS = ("sf_fixpo.", "sample_factory.")
DOOR = "sf_fixpo.learning.host.read"


def _place() -> str:
    """The innermost function of this package, or of sample-factory, that is being executed."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_OURS):
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


class HostReads:
    """While it is entered, counts the reads by the place in the code that asks for them.

    Adam keeps its step counts on the CPU wherever the weights are, unless it is fused: reading them waits for nothing.

    Attributes:
        places: number of reads by the function that asked, `module.function`.
    """

    def __init__(self, ignored: Callable[[Tensor], bool] = lambda tensor: False):
        """Starts at none.

        Args:
            ignored: tells tensors whose reads are none.
        """
        self.places: Counter[str] = Counter()
        self._ignored = ignored
        self._inside = False
        self._stack = ExitStack()

    @property
    def count(self) -> int:
        """Of all places."""
        return sum(self.places.values())

    @property
    def hidden(self) -> dict[str, int]:
        """Reads that did not go by the one function that is made for it, by place."""
        return {place: count for place, count in self.places.items() if place != DOOR}

    def __enter__(self) -> HostReads:
        self._stack.enter_context(_Operations(self))
        self._stack.enter_context(_Calls(self))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def note(self, function: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        """Counts a read, and calls the function, of which no further read is counted."""
        if not self._inside and not (args and isinstance(args[0], Tensor) and self._ignored(args[0])):
            self.places[_place()] += 1
        before, self._inside = self._inside, True
        try:
            return function()
        finally:
            self._inside = before


class _Calls(TorchFunctionMode):
    """What Python asks a tensor for."""

    def __init__(self, reads: HostReads):
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_cpu = func is Tensor.to and "cpu" in [x for x in (*args[1:], *kwargs.values()) if isinstance(x, str)]
        if to_cpu or func in CALLS or func in SENDS:
            return self._reads.note(lambda: func(*args, **kwargs), args)
        return func(*args, **kwargs)


def _by_mask(args: tuple[Any, ...]) -> bool:
    """Whether an indexing operation has a mask among its indices: the result's shape is data."""
    return any(index is not None and index.dtype == torch.bool for index in args[1])


class _Operations(TorchDispatchMode):
    """What C++ and backward functions ask for."""

    def __init__(self, reads: HostReads):
        super().__init__()
        self._reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operation = func.overloadpacket
        if operation in OPERATIONS or (operation in (_aten.index, _aten.index_put, _aten.index_put_) and _by_mask(args)):
            return self._reads.note(lambda: func(*args, **kwargs), args)
        return func(*args, **kwargs)
