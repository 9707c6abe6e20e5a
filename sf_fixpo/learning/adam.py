"""Adam as one kernel, which can leave a step out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd


def use_fused_adam(optimizer: torch.optim.Optimizer) -> None:
    """Adam as one kernel; numbers differ from the others' only by rounding."""
    if type(optimizer) is torch.optim.Adam:
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
    # the fused kernel walks parameter and moments side by side in memory: a loaded moment must have its parameter's layout
    for parameter, state in optimizer.state.items():
        state.update({key: torch.empty_like(parameter).copy_(state[key]) for key in ("exp_avg", "exp_avg_sq")})
        if torch.is_tensor(state["step"]):  # which other kernels keep on the host
            state["step"] = state["step"].to(parameter.device)


def _trains_differently(module: nn.Module) -> bool:
    """Whether one of torch's own modules is another function in training, or remembers what it has seen."""
    by_mode = isinstance(module, (_DropoutNd, _NormBase, nn.RReLU))
    return by_mode or (isinstance(module, nn.RNNBase) and module.dropout > 0)


def can_leave_out_steps(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Whether the device alone can decide that a step is none, bit for bit: nothing else is left behind by asking for it."""
    return type(optimizer) is torch.optim.Adam and not any(map(_trains_differently, model.modules()))
