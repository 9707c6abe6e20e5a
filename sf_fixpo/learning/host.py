"""The one door by which numbers of the device reach the host, and the way from the host to the device.

Behind every call the host waits until the device has done all that was asked of it, and then the device waits for the host. So an
update has few of them, each is counted in its row (`host_reads`), and `tests/learning/test_host_reads.py` finds any other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def read(tensor: Tensor) -> np.ndarray:
    """A copy of a tensor on the host."""
    return tensor.numpy(force=True).copy()


def send(array: np.ndarray, device: torch.device | str) -> Tensor:
    """A copy of an array on the device; the host does not wait until it is there.

    torch keeps the pinned memory in between until the device has read it.
    """
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
