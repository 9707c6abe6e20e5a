"""The state of a policy - weights and buffers, the normaliser's statistics among them - as one flat tensor a dtype.

Copying a policy, going along the line between two of them, and sharing one with other processes are then single operations on
memory that lies together, whatever the network is made of.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

Key = tuple[torch.dtype, torch.device, int]

_ALIGNMENT = 256  # bytes: a tensor starts where it would start if it had been allocated alone


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the objects themselves; what is shared by reference stands under each of its names."""
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if torch.is_tensor(tensor)}


def _recurrent_storages(model: nn.Module) -> dict[int, int]:
    """Numbers from 1 for the storages that hold all weights of a recurrent layer, by address.

    On an accelerator torch lays a layer's weights out as cuDNN wants them. It takes them as they lie only where they begin their
    storage; otherwise every call copies them together first.
    """
    found: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            addresses = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
            if len(addresses) == 1:
                found.setdefault(addresses.pop(), len(found) + 1)
    return found


class FlatState:
    """Moves all tensors of a module's state into one buffer a dtype, of which they are views from then on.

    Tensors that share memory (weights shared by reference, a recurrent layer's cuDNN buffer) still share it, and every tensor
    keeps its strides (channels-last weights stay so). Parameters stay the objects they were: an optimizer made before is valid.
    A recurrent layer whose weights lie in one storage gets a buffer of its own.

    Attributes:
        buffers: by dtype, device and number (0, or a recurrent layer's), the flat tensors.
        layout: what two states must have in common to be copied from one to the other.
    """

    def __init__(self, model: nn.Module, *, shared: bool = False):
        """Takes over the module's state.

        Args:
            model: whose tensors all lie on one device.
            shared: whether other processes get to see it: host memory is put into shared memory.
        """
        self._tensors = state_tensors(model)
        memory: dict[tuple[torch.dtype, torch.device, int], list[Tensor]] = {}
        for tensor in self._tensors.values():
            # an empty tensor has no memory to share
            key = (tensor.dtype, tensor.device, tensor.untyped_storage().data_ptr() or -id(tensor))
            memory.setdefault(key, []).append(tensor)
        recurrent = _recurrent_storages(model)
        places: dict[Key, int] = {}
        plan = []
        for (dtype, device, storage), tensors in memory.items():
            first = min(t.storage_offset() for t in tensors)
            length = max(_end(t) for t in tensors) - first
            place = (dtype, device, recurrent.get(storage, 0))
            start = places.get(place, 0)
            step = max(1, _ALIGNMENT // dtype.itemsize)
            places[place] = start + -(-length // step) * step
            plan.append((place, start, first, tensors))
        self.buffers = {key: torch.zeros(size, dtype=key[0], device=key[1]) for key, size in places.items()}
        if shared:
            for buffer in self.buffers.values():
                if not buffer.is_cuda:
                    buffer.share_memory_()
        with torch.no_grad():
            for place, start, first, tensors in plan:
                for tensor in {id(t): t for t in tensors}.values():
                    offset = start + tensor.storage_offset() - first
                    view = self.buffers[place].as_strided(tensor.size(), tensor.stride(), offset)
                    view.copy_(tensor.detach())
                    tensor.data = view
        self.layout = {
            name: (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
            for name, tensor in self._tensors.items()
        }

    def _check_layout(self, other: FlatState) -> None:
        if other.layout != self.layout:
            names = sorted(
                name for name in self.layout.keys() | other.layout.keys() if self.layout.get(name) != other.layout.get(name)
            )
            raise ValueError(f"two networks of the same settings have states that differ: {', '.join(names[:5])}")

    def copy_(self, source: FlatState) -> None:
        """Takes over the whole state of `source`.

        Raises:
            ValueError: it is the state of another network.
        """
        self._check_layout(source)
        for key, buffer in self.buffers.items():
            buffer.copy_(source.buffers[key])

    def set_line_(self, start: FlatState, end: FlatState, alpha: float, at_end: Collection[str] = ()) -> None:
        """Becomes start + alpha * (end - start); alpha = 0 is exactly `start`. Tensors that are not floating point are start's.

        Args:
            start: at alpha = 0.
            end: at alpha = 1.
            alpha: in [0, 1].
            at_end: names of tensors that are `end`'s whatever alpha is.
        """
        for state in (start, end):
            self._check_layout(state)
        for place, buffer in self.buffers.items():
            here = start.buffers[place]
            if alpha > 0.0 and buffer.is_floating_point():
                torch.lerp(here, end.buffers[place], alpha, out=buffer)
            else:
                buffer.copy_(here)
        for name in at_end:
            self._tensors[name].data.copy_(end._tensors[name].data)

    def clone_tensors(self) -> dict[str, Tensor]:
        """Copies of all tensors on the host, by name, in plain layout: what files hold."""
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self._tensors.items()}

    def digest(self) -> Tensor:
        """[buffers] int64 on the device: sums of all bits, which two states that differ anywhere hardly have in common."""
        return torch.stack([buffer.view(torch.int32).sum(dtype=torch.int64) for buffer in self.buffers.values()])

    def equals(self, other: FlatState) -> bool:
        """Whether every number is the same, bit for bit but for the sign of zero; the host waits for the answer."""
        self._check_layout(other)
        return all(torch.equal(buffer, other.buffers[key]) for key, buffer in self.buffers.items())


def _end(tensor: Tensor) -> int:
    """One past the last element of its storage that a tensor uses."""
    if tensor.numel() == 0:
        return int(tensor.storage_offset())
    return int(tensor.storage_offset()) + 1 + sum((n - 1) * s for n, s in zip(tensor.size(), tensor.stride(), strict=True))
