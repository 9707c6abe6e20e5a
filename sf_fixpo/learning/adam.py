"""Adam as one kernel, which can leave a step out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import clip_grad_norm_, get_total_norm


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


def clipped_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    learning_rate: float | Tensor,
    max_norm: float,
    skip: Tensor | None = None,
) -> Tensor:
    """One step along the gradients that lie at the parameters, those that have one; returns their norm before clipping.

    Args:
        optimizer: of the parameters.
        parameters: all of them.
        learning_rate: of this step.
        max_norm: to which the gradients together are clipped; 0: they are not.
        skip: bool, whether the step is none, bit for bit; the device knows. None: it is one. Fused Adam alone can do that.
    """
    if max_norm > 0:
        norm = clip_grad_norm_(parameters, max_norm)
    else:
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if skip is not None:
        # what torch's gradient scaler sets; exactly 1 leaves weights, moments and counts as they are
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.found_inf = None  # type: ignore[attr-defined]
    return norm


def _trains_differently(module: nn.Module) -> bool:
    """Whether one of torch's own modules is another function in training, or remembers what it has seen."""
    by_mode = isinstance(module, (_DropoutNd, _NormBase, nn.RReLU))
    return by_mode or (isinstance(module, nn.RNNBase) and module.dropout > 0)


def can_leave_out_steps(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Whether the device alone can decide that a step is none, bit for bit: nothing else is left behind by asking for it."""
    return type(optimizer) is torch.optim.Adam and not any(map(_trains_differently, model.modules()))


def drop_first_moments(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Of these parameters: where they are the policy's, the momentum that led out of the trust region. The critic's goes on."""
    for parameter in parameters:
        if "exp_avg" in (state := optimizer.state.get(parameter, {})):
            state["exp_avg"].zero_()
