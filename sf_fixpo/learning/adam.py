"""Adam as one kernel, which can leave a step out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import clip_grad_norm_, get_total_norm

# What torch's own optimizers and its clipping are made of; exported under no other name.
_kernels: Any = torch


def leave_out_the_compiler() -> None:
    """Keeps torch's optimizers from loading its compiler to tell it to leave them alone: a second of each process that trains.

    They do so where they are made, saved and loaded. A compiler that is there already is told, as torch does it.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None:
            method.__dynamo_disable = method  # what torch._compile would put there


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
    norm = _clip(parameters, max_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    # what torch's gradient scaler sets; exactly 1 leaves weights, moments and counts as they are
    found_inf = None if skip is None else skip.float()
    if not _kernel_step(optimizer, found_inf):
        optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.found_inf = None  # type: ignore[attr-defined]
    return norm


def _clip(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_`, which takes twice as long on small networks to find out that all are of one kind."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if len({(gradient.device, gradient.dtype) for gradient in gradients}) != 1:
        return clip_grad_norm_(parameters, max_norm) if max_norm > 0 else get_total_norm(gradients)
    norm = torch.linalg.vector_norm(torch.stack(_kernels._foreach_norm(gradients)))
    if max_norm > 0:
        _kernels._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of a parameter, which begins with its first step."""
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state.update({key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")})
    return state


@torch.no_grad()
def _kernel_step(optimizer: torch.optim.Optimizer, found_inf: Tensor | None) -> bool:
    """A step of torch's fused Adam on a CPU, without what the optimizer does around its kernel: two thirds of a small step.

    Args:
        optimizer: with gradients at its parameters.
        found_inf: 1.0 where the step is none, else 0.0; None: it is one.

    Returns:
        Whether the step was made. It is not where anything is out of the ordinary.
    """
    if type(optimizer) is not torch.optim.Adam:
        return False
    steps = []
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        plain = group["fused"] and not (group["amsgrad"] or group["differentiable"] or group["decoupled_weight_decay"])
        kinds = {(parameter.device.type, parameter.dtype) for parameter in parameters}
        if not plain or len(kinds) != 1 or kinds.pop()[0] != "cpu":
            return False
        steps.append((group, parameters))
    for group, parameters in steps:
        states = [_moments(optimizer, parameter) for parameter in parameters]
        counts = [state["step"] for state in states]
        _kernels._foreach_add_(counts, 1)
        _kernels._fused_adam_(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            counts,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
            found_inf=found_inf,
        )
        if found_inf is not None:
            _kernels._foreach_sub_(counts, [found_inf] * len(counts))
    return True


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
