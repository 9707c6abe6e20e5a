"""What a CUDA graph is, on a CPU: operations are written down with the memory they read and write, and done again from that.

No line of Python that was run while the recording was made is run again. A step that puts a new tensor in the place of an old
one, or makes a number of the host part of what it computes, comes out of it wrong, as it would of a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.equal}


class Tape(TorchDispatchMode):
    """Writes down every operation, those of backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def play(self) -> None:
        """Does it all again, in the same memory."""
        for func, args, kwargs, before in self.operations:
            now = func(*args, **kwargs)
            for old, new in zip(tree_leaves(before), tree_leaves(now), strict=True):
                # what is changed in place, and a view, is where it was
                if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def record(step: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """In the place of `graphs.capture`."""
    tape = Tape()
    with tape:
        results = step()

    def replay() -> Any:
        tape.play()
        return results

    return replay
