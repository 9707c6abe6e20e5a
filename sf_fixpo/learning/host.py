"""The one door by which numbers of the device reach the host.

Behind every call the host waits until the device has done all that was asked of it, and then the device waits for the host. So an
update has few of them, each is counted in its row (`host_reads`), and `tests/learning/test_host_reads.py` finds any other.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def read(tensor: Tensor) -> np.ndarray:
    """A copy of a tensor on the host."""
    return tensor.numpy(force=True).copy()
