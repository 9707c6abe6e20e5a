"""FixPO in one file, on PyTorch and Gymnasium: `python examples/fixpo_minimal.py [--seed=N]` learns CartPole-v1 in seconds.

FixPO (Zentner et al. 2023, arXiv:2312.05405) is PPO without clipping. A KL penalty with a learned multiplier beta keeps an update
near the policy that collected the data, and the fixup phase, a few further gradient steps, brings it back where a state has moved
too far. So no policy ever acts whose KL is above eps_kl at any state of the batch that it was trained on. Read `FixPO.improve`
first: it is Algorithm 1 of the paper. A test holds it against the learner of `sf_fixpo`, update by update.

Shapes: E environments, T steps of a rollout, N = E * T samples of a batch, B of a minibatch, O observation values, A actions.
"""

import argparse
import copy
import itertools
import math
from dataclasses import dataclass, replace
from statistics import fmean

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

# "obs" [N, O]; of the policy that acted "logits" [N, A], "actions", "log_probs", "values" [N]; "advantages", "returns" [N]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Config:
    """Settings, divergences in nats. The first seven are FixPO's own, the paper's for MuJoCo where it has them."""

    eps_kl: float = 0.5  # the bound of the trust region
    c_beta: float = 3.0  # the primary phase aims at eps_kl / c_beta, so that little is left to fix
    beta_init: float = 1.0
    beta_lr: float = 0.01
    beta_max: float = 1000.0
    max_fixup_steps: int = 50  # then the update goes back along its line
    fixup_plateau_steps: int = 10  # without progress; then the learning rate is halved
    learning_rate: float = 1e-3
    max_grad_norm: float = 0.5
    value_loss_coeff: float = 0.5
    value_clip: float = 1.0
    gamma: float = 0.99
    gae_lambda: float = 0.95
    reward_scale: float = 0.1  # the value of a pole that never falls is 100: in steps of value_clip that would take long
    num_envs: int = 8
    rollout: int = 128
    minibatch: int = 128
    epochs: int = 4


class ActorCritic(nn.Module):
    """`policy` is an encoder and a linear layer, and all that L_KL reaches; `value` is a linear layer on the same encoder."""

    def __init__(self, obs_size: int, num_actions: int, width: int = 64):
        super().__init__()
        encoder = nn.Sequential(nn.Linear(obs_size, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.policy, self.value = nn.Sequential(encoder, nn.Linear(width, num_actions)), nn.Linear(width, 1)

    def forward(self, obs: Tensor) -> tuple[Categorical, Tensor]:
        """pi(.|s) and the values [B] of observations [B, O]."""
        features = self.policy[0](obs)
        return Categorical(logits=self.policy[1](features)), self.value(features).squeeze(-1)


def gae(rewards: Tensor, dones: Tensor, values: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns [E, T] (Schulman et al. 2015) of rewards [E, T], dones [E, T], values [E, T + 1] with the last."""
    advantages, following = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        discount = gamma * (1.0 - dones[:, t])
        following = advantages[:, t] = rewards[:, t] + discount * (values[:, t + 1] + gae_lambda * following) - values[:, t]
    return advantages, advantages + values[:, :-1]


class FixPO:
    """Trains `net`; only `published` acts, a copy that is written when the trust region holds, and never in between."""

    def __init__(self, net: ActorCritic, cfg: Config):
        self.cfg, self.net, self.published = cfg, net, copy.deepcopy(net)
        self.optimizer = torch.optim.Adam(net.parameters(), cfg.learning_rate)
        self.beta = torch.tensor(cfg.beta_init, requires_grad=True)
        self.beta_optimizer = torch.optim.Adam([self.beta], cfg.beta_lr)
        self.limit = cfg.eps_kl * (1 - 1e-3)  # the rest is kept free for float32's rounding

    def improve(self, batch: Batch) -> tuple[float, int]:
        """One policy improvement step, Algorithm 1; pi_theta', the reference, is the policy that collected the batch.

        Returns:
            Largest KL of the new policy at a state of the batch; fixup steps that it took.

        Raises:
            RuntimeError: a gradient is not finite, or the trust region does not hold after all: nothing is published.
        """
        parts = torch.arange(len(batch["obs"])).split(self.cfg.minibatch)
        minibatches = [{key: tensor[part] for key, tensor in batch.items()} for part in parts]
        fixup_steps, inside = 0, True
        for _ in range(self.cfg.epochs):
            for minibatch in minibatches:
                self.primary_step(minibatch)
            steps, inside = self.fixup_phase(minibatches)
            fixup_steps += steps
        if not inside:
            self.go_back(minibatches)
        kl_max = self.kl_max(minibatches)
        if not kl_max <= self.limit:  # what is not a number fails this as well
            raise RuntimeError(f"KL {kl_max} is above {self.limit} after the fixup phase")
        self.published.load_state_dict(self.net.state_dict())
        return kl_max, fixup_steps

    def primary_step(self, minibatch: Batch) -> None:
        """Lines 5 to 7: L_theta = L_pi + L_VF + beta * L_KL, and L_beta."""
        cfg, old_values, returns = self.cfg, minibatch["values"], minibatch["returns"]
        policy, values = self.net(minibatch["obs"])
        std, mean = torch.std_mean(minibatch["advantages"])
        advantages = (minibatch["advantages"] - mean) / std.clamp_min(1e-7)
        # these wide limits are no part of the paper: sample-factory has them against outliers
        ratio = (policy.log_prob(minibatch["actions"]) - minibatch["log_probs"]).exp().clamp(0.05, 20.0)
        policy_loss = -(ratio * advantages).mean()  # no clipping as in PPO: the penalty takes its place
        clipped = old_values + (values - old_values).clamp(-cfg.value_clip, cfg.value_clip)
        value_loss = cfg.value_loss_coeff * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).mean()
        kl = kl_divergence(policy, Categorical(logits=minibatch["logits"]))
        self.step(policy_loss + value_loss + self.beta.detach() * kl.mean(), kl, cfg.learning_rate)

    def fixup_phase(self, minibatches: list[Batch]) -> tuple[int, bool]:
        """Lines 8 to 15: L_KL alone, and L_beta, until each minibatch in turn is inside; returns (steps, whether all are)."""
        steps, inside, lowest, since_lowest, learning_rate = 0, 0, math.inf, 0, self.cfg.learning_rate
        in_turn = itertools.cycle(minibatches)
        while inside < len(minibatches):
            kl = self.kl(next(in_turn))
            kl_max = kl.max().item()
            if kl_max <= self.limit:
                inside += 1
                continue
            if steps == 0:
                self.drop_momentum()
            if steps == self.cfg.max_fixup_steps:
                return steps, False
            if kl_max < 0.99 * lowest:
                lowest, since_lowest = kl_max, 0
            elif since_lowest >= self.cfg.fixup_plateau_steps:
                lowest, since_lowest, learning_rate = kl_max, 0, learning_rate / 2
            self.step(kl.mean(), kl, learning_rate)
            steps, inside, since_lowest = steps + 1, 0, since_lowest + 1
        return steps, True

    def step(self, loss: Tensor, kl: Tensor, learning_rate: float) -> None:
        """One Adam step on theta, then one on L_beta = beta * sg[eps_kl - c_beta * max KL] with the `kl` [B] of before."""
        # None and not 0 where the loss does not reach, as L_KL does not reach the value: Adam skips that, its momentum included
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.cfg.max_grad_norm, error_if_nonfinite=True)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.beta.grad = (self.cfg.eps_kl - self.cfg.c_beta * kl.max()).detach()  # beta rises while c_beta * max KL > eps_kl
        self.beta_optimizer.step()
        self.beta.data.clamp_(0.0, self.cfg.beta_max)

    def kl(self, minibatch: Batch) -> Tensor:
        """D_KL[pi_theta, pi_theta'] at each state, [B]."""
        return kl_divergence(self.net(minibatch["obs"])[0], Categorical(logits=minibatch["logits"]))

    @torch.no_grad()
    def kl_max(self, minibatches: list[Batch]) -> float:
        """Largest divergence at a state of the batch; nan if there is one."""
        return torch.cat([self.kl(minibatch) for minibatch in minibatches]).max().item()

    def drop_momentum(self) -> None:
        """Zeroes Adam's first moments of the policy: they lead out of the trust region, and would have to be undone."""
        for parameter in self.net.policy.parameters():
            self.optimizer.state[parameter]["exp_avg"].zero_()

    @torch.no_grad()
    def go_back(self, minibatches: list[Batch]) -> None:
        """Takes the policy to theta' + alpha * (theta - theta'), alpha so small that the trust region holds: at 0 it does."""
        # not in the paper, whose fixup phase may never end; the KL grows about as alpha squared, hence the first guess
        guess, end = 0.95 * math.sqrt(self.limit / self.kl_max(minibatches)), copy.deepcopy(self.net.policy)
        for alpha in (*(guess / 2**i for i in range(11)), 0.0):
            for p, a, b in zip(*(x.parameters() for x in (self.net.policy, self.published.policy, end)), strict=True):
                p.copy_(a + alpha * (b - a))
            if self.kl_max(minibatches) <= self.limit:
                break
        self.drop_momentum()


class Actors:
    """Plays a policy in some environments; `finished` has the returns of all episodes so far."""

    def __init__(self, env: str, cfg: Config, seed: int):
        self.cfg, self.envs = cfg, [gym.make(env) for _ in range(cfg.num_envs)]
        self.obs = torch.stack([torch.as_tensor(e.reset(seed=seed + i)[0]) for i, e in enumerate(self.envs)])
        self.running, self.finished = [0.0] * cfg.num_envs, []

    @torch.no_grad()
    def collect(self, net: ActorCritic) -> Batch:
        """T steps in each environment, shuffled, so that each minibatch is of all."""
        cfg, steps, (rewards, dones) = self.cfg, [], torch.zeros(2, self.cfg.num_envs, self.cfg.rollout)
        for t in range(cfg.rollout):
            policy, values = net(self.obs)
            actions = policy.sample()
            steps.append((self.obs.clone(), policy.logits, actions, policy.log_prob(actions), values))
            for e, env in enumerate(self.envs):
                obs, reward, terminated, truncated, _ = env.step(actions[e].item())
                rewards[e, t], dones[e, t] = cfg.reward_scale * reward, terminated or truncated
                self.running[e] += reward
                if truncated and not terminated:  # a time limit says nothing about the state: what would follow counts
                    rewards[e, t] += cfg.gamma * net(torch.as_tensor(obs))[1]
                if terminated or truncated:
                    self.finished.append(self.running[e])
                    self.running[e], obs = 0.0, env.reset()[0]
                self.obs[e] = torch.as_tensor(obs)
        names = ("obs", "logits", "actions", "log_probs", "values")
        batch = {name: torch.stack(tensors, 1) for name, tensors in zip(names, zip(*steps, strict=True), strict=True)}
        values = torch.cat([batch["values"], net(self.obs)[1].unsqueeze(1)], 1)
        batch["advantages"], batch["returns"] = gae(rewards, dones, values, cfg.gamma, cfg.gae_lambda)
        order = torch.randperm(rewards.numel())
        return {name: tensor.flatten(0, 1)[order] for name, tensor in batch.items()}


def main() -> None:
    """Trains on CartPole-v1, then plays 20 episodes with the result."""
    parser = argparse.ArgumentParser(description="FixPO on CartPole-v1")
    parser.add_argument("--seed", type=int, default=0)
    seed, cfg, env = parser.parse_args().seed, Config(), "CartPole-v1"
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # tensors are so small that a second thread would cost more than it does,
    Categorical.set_default_validate_args(False)  # and that checking arguments would take longer than the network
    actors, learner = Actors(env, cfg, seed), FixPO(ActorCritic(4, 2), cfg)
    for update in range(1, 101):
        kl_max, fixups = learner.improve(actors.collect(learner.published))
        if update % 10 == 0:
            mean = fmean(actors.finished[-20:])
            print(f"update {update:3d}: return {mean:5.1f}, KL {kl_max:.3f}, beta {learner.beta:.2f}, {fixups} fixup steps")
    judge = Actors(env, replace(cfg, num_envs=1), seed + 1000)  # one, because of several the short episodes would end first
    while len(judge.finished) < 20:
        judge.collect(learner.published)
    print(f"evaluation return {fmean(judge.finished[:20]):.1f}")


if __name__ == "__main__":
    main()
