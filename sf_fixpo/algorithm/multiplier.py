"""The multiplier beta: one for all tasks or one per task, stepped by Adam on its own device.

T tasks. Every method is made of tensor operations only, so that on an accelerator no step waits for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LagrangeMultiplier:
    """beta >= 0 with its Adam state (paper section 3.1, Algorithm 1 lines 7 and 13).

    torch's own Adam keeps one step count per tensor and lets momentum move an entry whose gradient is zero; a task without a
    sample in the minibatch must keep its beta, so the state here is per task and masked. With T = 1 and a sample in every
    minibatch the numbers are those of `torch.optim.Adam` followed by a clamp.

    Attributes:
        beta: [T] float32, the multiplier.
        lr: gamma_beta; 0 keeps beta constant (the ablation of section 4.2).
        beta_max: upper clamp.
    """

    BETAS = (0.9, 0.999)
    EPS = 1e-8
    _STATE = ("beta", "exp_avg", "exp_avg_sq", "steps")

    def __init__(self, beta_init: float, lr: float, beta_max: float, num_tasks: int = 1, device: torch.device | str = "cpu"):
        """Starts every task at `beta_init`."""
        self.lr = lr
        self.beta_max = beta_max
        self.beta = torch.full((num_tasks,), beta_init, dtype=torch.float32, device=device)
        self.exp_avg = torch.zeros_like(self.beta)
        self.exp_avg_sq = torch.zeros_like(self.beta)
        self.steps = torch.zeros_like(self.beta)

    def step(self, kl_stat: Tensor, present: Tensor, eps_kl: float, c_beta: float) -> None:
        """One Adam step on L_beta (`losses.multiplier_loss`), whose gradient is `eps_kl - c_beta * kl_stat`; then the clamp.

        Args:
            kl_stat: [T] divergence per task measured before the policy's step, nats. A task whose entry is not finite is left
                alone: the update ends in a roll-back anyway, and one such number would stay in Adam's moments for good.
            present: [T] bool, tasks with a sample in the minibatch.
            eps_kl: the bound, nats.
            c_beta: how far inside the bound the primary phase aims.
        """
        if self.lr == 0.0:
            return
        beta1, beta2 = self.BETAS
        grad = eps_kl - c_beta * kl_stat
        present = present & grad.isfinite()
        grad = torch.where(present, grad, 0.0)
        steps = self.steps + 1
        exp_avg = torch.lerp(self.exp_avg, grad, 1 - beta1)
        exp_avg_sq = beta2 * self.exp_avg_sq + (1 - beta2) * grad * grad
        denominator = (exp_avg_sq / (1 - beta2**steps)).sqrt() + self.EPS
        beta = (self.beta - self.lr * (exp_avg / (1 - beta1**steps)) / denominator).clamp(0.0, self.beta_max)
        self.beta = torch.where(present, beta, self.beta)
        self.exp_avg = torch.where(present, exp_avg, self.exp_avg)
        self.exp_avg_sq = torch.where(present, exp_avg_sq, self.exp_avg_sq)
        self.steps = torch.where(present, steps, self.steps)

    def to(self, device: torch.device | str) -> LagrangeMultiplier:
        """Moves the state to a device, in place; returns itself."""
        for name in self._STATE:
            setattr(self, name, getattr(self, name).to(device))
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of beta and its Adam state, [T] each."""
        return {name: getattr(self, name).clone() for name in self._STATE}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state.

        Raises:
            ValueError: the state is for another number of tasks.
        """
        if state["beta"].shape != self.beta.shape:
            raise ValueError(f"the saved beta has {state['beta'].numel()} task(s), this run has {self.beta.numel()}")
        for name in self._STATE:
            setattr(self, name, state[name].to(self.beta.device, torch.float32).clone())
