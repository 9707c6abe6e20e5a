"""The multipliers, one for all tasks or one per task: the paper's beta of the largest divergence, and one of the mean.

T tasks. Every method is made of tensor operations only, so that on an accelerator no step waits for the host; steps change their
state in place, so that they can be recorded and replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor


class LagrangeMultiplier:
    """beta >= beta_min with its Adam state (paper section 3.1, Algorithm 1 lines 7 and 13).

    torch's own Adam keeps one step count per tensor and lets momentum move an entry whose gradient is zero; a task without a
    sample in the minibatch must keep its beta, so the state here is per task and masked. With T = 1 and a sample in every
    minibatch the numbers are those of `torch.optim.Adam` followed by a clamp.

    Attributes:
        beta: [T] float32, the multiplier.
        lr: gamma_beta; 0 keeps beta constant (the ablation of section 4.2).
        beta_max: upper clamp.
        beta_min: lower clamp; the paper has 0.
    """

    BETAS = (0.9, 0.999)
    EPS = 1e-8
    _STATE = ("beta", "exp_avg", "exp_avg_sq", "steps")

    def __init__(self, beta_init: float, lr: float, beta_max: float, num_tasks: int = 1, beta_min: float = 0.0):
        """Starts every task at `beta_init`, on the CPU."""
        self.lr = lr
        self.beta_max = beta_max
        self.beta_min = beta_min
        self.beta = torch.full((num_tasks,), beta_init, dtype=torch.float32)
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
        beta = (self.beta - self.lr * (exp_avg / (1 - beta1**steps)) / denominator).clamp(self.beta_min, self.beta_max)
        new = zip(self._STATE, (beta, exp_avg, exp_avg_sq, steps), strict=True)
        for own, value in ((getattr(self, name), value) for name, value in new):
            torch.where(present, value, own, out=own)

    def tensors(self) -> list[Tensor]:
        """Beta and its Adam state, [T] each, which `step` changes in place."""
        return [getattr(self, name) for name in self._STATE]

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


class MeanMultiplier:
    """A penalty that holds the mean divergence of an update at a target: no part of the paper.

    The paper's beta looks at the largest divergence alone. As long as no single state comes near the bound it falls to 0, and
    then nothing holds back how far the policy moves on average. This one is added to it. It is moved once an update, in log
    space, so that it can take any scale within a few updates and never switches off:

        log beta <- log beta + GAIN * clamp(log(mean KL / target), -1, 1)

    The divergence falls with a power of beta between 1 and 2, so the loop's gain stays below 1: it does not swing.

    Attributes:
        target: mean divergence of an update, nats; 0: there is no such penalty, and beta is 0.
        beta: [T] float32.
        beta_max: upper clamp.
    """

    GAIN = 0.3
    BETA_MIN = 1e-3

    def __init__(self, target: float, beta_init: float, beta_max: float, num_tasks: int = 1):
        """Starts every task at `beta_init`, on the CPU."""
        self.target = target
        self.beta_max = beta_max
        start = min(max(beta_init, self.BETA_MIN), beta_max) if target > 0.0 else 0.0
        self.beta = torch.full((num_tasks,), start, dtype=torch.float32)

    def step(self, kl_mean: Tensor, present: Tensor) -> None:
        """Takes in what an update has done.

        Args:
            kl_mean: [T] mean divergence per task, nats. A task whose entry is not finite is left alone.
            present: [T] bool, tasks with a sample in the batch.
        """
        if self.target == 0.0:
            return
        # a policy that did not move at all gives log 0: the clamp makes it the largest step down
        moved = self.GAIN * (kl_mean / self.target).log().clamp(-1.0, 1.0)
        beta = (self.beta * moved.exp()).clamp(self.BETA_MIN, self.beta_max)
        torch.where(present & kl_mean.isfinite(), beta, self.beta, out=self.beta)

    def to(self, device: torch.device | str) -> MeanMultiplier:
        """Moves the state to a device, in place; returns itself."""
        self.beta = self.beta.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of beta, [T]."""
        return {"beta": self.beta.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over a state; a run without this penalty keeps its 0, one that has it from now on starts where it would.

        Raises:
            ValueError: the state is for another number of tasks.
        """
        if state["beta"].shape != self.beta.shape:
            raise ValueError(f"the saved beta of the mean has {state['beta'].numel()} task(s), this run has {self.beta.numel()}")
        if self.target > 0.0 and (state["beta"] > 0.0).all():
            self.beta = state["beta"].to(self.beta.device, torch.float32).clamp(self.BETA_MIN, self.beta_max).clone()
