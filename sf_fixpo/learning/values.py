"""Critics of runs on several tasks, each with returns of its own scale: `--value_normalization`.

The critic learns the returns of task t in units of that task, (return - mu_t) / sigma_t, by the first two moments of its value
targets; advantages come in units of sigma_t, so that no task's gradient drowns another's (Hessel et al. 2018, "Multi-task Deep
Reinforcement Learning with PopArt"). What actors record are values in units of returns: they denormalise by the
statistics that were published with their weights, so that a value that has waited means what it meant when it was said, however
far the statistics have moved since. sample-factory's own normaliser, which `shared` is, reads old values by new statistics.

`per_task` is that alone. `popart` gives the critic an output for each task, and carries its last layer along whenever the moments
move, so that what it says in units of returns stays (van Hasselt et al. 2016, "Learning values across many orders of magnitude",
Algorithm 1). One output that serves all tasks cannot be carried along for each of them. What the head says of a task that it has
never seen is not kept: carried from the units it began with into those of rewards that are rare, its weights would grow until the
critic's gradient is all that the shared layers get.

Shapes: N samples, T tasks, H features that the critic's last layer gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from sample_factory.algo.utils.tensor_dict import TensorDict
from torch import Tensor, nn

from sf_fixpo.learning.ranks import ALONE, Alone
from sf_fixpo.learning.tasks import TASK_ID

# Samples of a task over which its moments are averaged: the step size of 1e-4 a sample of van Hasselt et al., until then all
# alike. The returns of a policy that learns do not stay where they were, as a mean over the whole run would have it.
HORIZON = 10_000
_EPS = 1e-5  # sample-factory's, added to a variance: a task that has paid nothing yet has no scale to blow up


class Units(NamedTuple):
    """In what each task's values are: mu and sigma [T] float64, and whether they are of any samples [T] bool."""

    mean: Tensor
    deviation: Tensor
    seen: Tensor


class TaskReturns(nn.Module):
    """The moments of the value targets of each task, in the place of sample-factory's normaliser of returns; its names.

    Attributes:
        running_mean: [T] float64.
        running_var: [T] float64.
        count: [T] float64, samples that they are of; at most `HORIZON`.
    """

    running_mean: Tensor
    running_var: Tensor
    count: Tensor

    def __init__(self, tasks: int):
        """Mean 0, deviation 1 until a task has been seen.

        Args:
            tasks: T.
        """
        super().__init__()
        for name, value in (("running_mean", 0.0), ("running_var", 1.0), ("count", 0.0)):
            self.register_buffer(name, torch.full((tasks,), value, dtype=torch.float64))

    @property
    def deviation(self) -> Tensor:
        """sigma, [T] float64."""
        return (self.running_var + _EPS).sqrt()

    @property
    def units(self) -> Units:
        """As they are now, in memory of their own."""
        return Units(self.running_mean.clone(), self.deviation, self.count > 0)

    def in_returns(self, outputs: Tensor) -> Tensor:
        """[N, T] values in units of returns, as each task would have them.

        Args:
            outputs: [N, T] of the critic, or [N, 1] where one output serves all.
        """
        return outputs * self.deviation.float() + self.running_mean.float()

    def recorded(self, outputs: Tensor, obs: Any) -> Tensor:
        """What an actor records as values.

        Args:
            outputs: of the critic for N samples.
            obs: [N, ...] each. Those of a level that is evaluated alone do not say which task it is.

        Returns:
            In units of returns: [N], of each sample's task; [N, T] where the observations do not say which.
        """
        values = self.in_returns(outputs.reshape(len(next(iter(obs.values()))), -1))
        return of_task(values, obs[TASK_ID].reshape(-1).long()) if TASK_ID in obs else values

    def normalized(self, returns: Tensor, ids: Tensor) -> Tensor:
        """[N] returns of tasks `ids` [N] in units of theirs."""
        return (returns - self.running_mean.float()[ids]) / self.deviation.float()[ids]

    @torch.no_grad()
    def count_in(self, returns: Tensor, valids: Tensor, ids: Tensor, ranks: Alone = ALONE) -> None:
        """Moves the moments of every task that has a sample, in place; nothing is read on the host.

        Args:
            returns: [N] value targets. A task with one that is not a number is left as it was.
            valids: [N] bool, the samples that count.
            ids: [N] int64.
            ranks: whose samples count.
        """
        members = valids & (ids == torch.arange(len(self.count), device=ids.device).unsqueeze(1))
        own = torch.where(members, returns.double(), 0.0)
        number, first, second = ranks.total(torch.stack([members.sum(1).double(), own.sum(1), own.square().sum(1)]))
        number = torch.where((first + second).isfinite(), number, 0.0)
        mean = torch.where(number > 0, first / number.clamp_min(1), self.running_mean)
        variance = torch.where(number > 0, (second / number.clamp_min(1) - mean.square()).clamp_min(0), self.running_var)
        total = self.count + number
        share, apart = number / total.clamp_min(1), mean - self.running_mean
        # the moments of both sets together: E[x^2] moves as E[x] does, here about the means, where nothing cancels
        self.running_var.copy_(torch.lerp(self.running_var, variance, share) + share * (1 - share) * apart.square())
        self.running_mean.add_(share * apart)
        self.count.copy_(total.clamp_max(HORIZON))


def value_each_task(network: Any, tasks: int, *, preserving: bool) -> None:
    """Gives one of sample-factory's actor-critics values of several tasks; what it acts by is untouched.

    Args:
        network: with a `critic_linear`, whose `forward` is what actors call.
        tasks: T.
        preserving: whether each task gets an output of its own.
    """
    network.returns_normalizer = TaskReturns(tasks)
    if preserving:
        network.critic_linear = nn.Linear(network.critic_linear.in_features, tasks)
        network.critic_linear.apply(network.initialize_weights)
    network.register_forward_hook(_record_in_returns)


def _record_in_returns(network: Any, args: tuple[Any, ...], outputs: TensorDict) -> None:
    """After `forward`: `values` are those of each sample's task, in units of returns."""
    outputs["values"] = network.returns_normalizer.recorded(outputs["values"], args[0])


def of_task(outputs: Tensor, ids: Tensor | None) -> Tensor:
    """[N] the output of each sample's task; `outputs` [N, T] with ids [N] int64, or [N] or [N, 1] without."""
    if ids is None:
        return outputs.reshape(-1)
    return outputs.reshape(len(ids), -1).gather(1, ids.unsqueeze(1)).squeeze(1)


def in_returns(model: Any, values: Tensor) -> Tensor:
    """Values as actors record them, in units of returns.

    Args:
        model: the network; its normaliser of returns, where it has one, says what they are in.
        values: of any shape; they stay as they are.
    """
    if model.returns_normalizer is None or isinstance(model.returns_normalizer, TaskReturns):
        return values
    values = values.clone()
    model.returns_normalizer(values, denormalize=True)  # in place
    return values


def has_an_output_each(model: Any) -> bool:
    """Whether the critic has an output for each task."""
    return isinstance(model.returns_normalizer, TaskReturns) and model.critic_linear.out_features > 1


@torch.no_grad()
def preserve_outputs(layer: nn.Linear, before: Units, after: Units) -> None:
    """W <- sigma / sigma' W,  b <- (sigma b + mu - mu') / sigma': in units of returns the outputs stay (Algorithm 1).

    Args:
        layer: H to T outputs, in place.
        before: mu and sigma; of a task that had not been seen, the weights stay.
        after: mu' and sigma'.
    """
    scale = torch.where(before.seen, before.deviation / after.deviation, 1.0)
    shift = torch.where(before.seen, (before.mean - after.mean) / after.deviation, 0.0)
    layer.weight.mul_(scale.unsqueeze(1))
    layer.bias.copy_(scale * layer.bias + shift)


@contextmanager
def adam_follows(model: Any, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, units of returns may change, by new statistics or by a state that is taken up again; Adam's moments go along.

    The gradient of an output's weights is in units of 1 / sigma, as its error is: without this, a task whose sigma grows a
    hundredfold would be given steps a hundred times too small until Adam has forgotten.
    """
    before = model.returns_normalizer.deviation if has_an_output_each(model) else None
    yield
    if before is None:
        return
    scale = (before / model.returns_normalizer.deviation).float()
    for parameter in model.critic_linear.parameters():
        state = optimizer.state.get(parameter, {})
        along = scale.view(-1, *[1] * (parameter.dim() - 1))
        if "exp_avg" in state:
            state["exp_avg"].mul_(along)
            state["exp_avg_sq"].mul_(along.square())


def scope_of(state: dict[str, Any]) -> str:
    """By which `--value_normalization` the weights of a checkpoint were made, as far as they tell."""
    count, bias = (state.get(name) for name in ("returns_normalizer.count", "critic_linear.bias"))
    if not isinstance(count, Tensor) or count.numel() <= 1:
        return "shared"
    return "popart" if isinstance(bias, Tensor) and bias.numel() > 1 else "per_task"
