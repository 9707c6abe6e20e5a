"""FixPO in a CleanRL-like loop, by the functions of `sf_fixpo.algorithm`: `python examples/fixpo_in_cleanrl.py`, CartPole."""

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from sf_fixpo.algorithm import losses, multiplier, trust_region

EPS_KL, C_BETA, GAMMA, LAMBDA, ENVS, STEPS, MINIBATCH, EPOCHS = 0.5, 3.0, 0.99, 0.95, 8, 128, 128, 4
VALID = torch.ones(MINIBATCH, dtype=torch.bool)  # every sample counts


def train(updates: int = 100, seed: int = 0, learning_rate: float = 1e-3):
    """Yields, of each update, the largest KL at a state of its batch (nats) and the steps played for each episode that ended."""
    torch.manual_seed(seed)
    envs = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * ENVS)
    obs = torch.as_tensor(envs.reset(seed=seed)[0])
    actor, critic = (nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n)) for n in (2, 1))
    optimizer = torch.optim.Adam(both := [*actor.parameters(), *critic.parameters()], learning_rate)
    beta = multiplier.LagrangeMultiplier(beta_init=1.0, lr=0.01, beta_max=1000.0)
    distance = trust_region.Divergence([("categorical", 2)], direction="pi_ref", stat="max")

    def kl_of(b: dict[str, Tensor]) -> Tensor:  # to the policy that collected the batch, state by state
        return distance.per_state(actor(b["obs"]), b["logits"])

    def step(kl: Tensor, loss: Tensor) -> None:  # on the loss, then on beta's
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(both, 0.5)
        optimizer.step()
        beta.step(*distance.statistic(kl, VALID, None), EPS_KL, C_BETA)

    for _ in range(updates):
        rollout: list[dict[str, Tensor]] = []
        for _ in range(STEPS):
            policy, values = Categorical(logits=actor(obs).detach()), critic(obs).squeeze(-1).detach()
            rollout.append(b := {"obs": obs, "logits": policy.logits, "actions": policy.sample(), "values": values})
            obs, rewards, terminated, truncated = map(torch.as_tensor, envs.step(b["actions"].numpy())[:4])
            b |= {"log_probs": policy.log_prob(b["actions"]), "rewards": 0.1 * rewards.float(), "done": terminated | truncated}
        following, advantage = critic(obs).squeeze(-1).detach(), torch.zeros(ENVS)
        for b in reversed(rollout):
            advantage = b["rewards"] + GAMMA * ~b["done"] * (following + LAMBDA * advantage) - b["values"]
            following, b["advantages"], b["returns"] = b["values"], advantage, advantage + b["values"]
        batch, order = {key: torch.cat([b[key] for b in rollout]) for key in b}, torch.randperm(ENVS * STEPS)
        minibatches = [{key: tensor[part] for key, tensor in batch.items()} for part in order.split(MINIBATCH)]
        for b in minibatches * EPOCHS:  # the primary phase: instead of PPO's clipping, a penalty with a learned multiplier
            kl, ratio = kl_of(b), (Categorical(logits=actor(b["obs"])).log_prob(b["actions"]) - b["log_probs"]).exp()
            policy_loss = losses.policy_loss(ratio, losses.normalized(b["advantages"], VALID)[0], VALID)
            value_loss = losses.value_loss(critic(b["obs"]).squeeze(-1), b["returns"], VALID)
            step(kl, policy_loss + 0.5 * value_loss + losses.kl_penalty(kl, VALID, beta.beta))
        kls, fix = lambda bs: [kl_of(b).max().item() for b in bs], lambda b: step(kl := kl_of(b), kl.mean())
        trust_region.fixup_phase(minibatches, kls, fix, limit=EPS_KL)  # until no state has moved further
        yield kl_of(batch).max().item(), len(order) / max(1, batch["done"].sum().item())


if __name__ == "__main__":
    for number, (kl_max, length) in enumerate(train(), 1):
        print(f"update {number:3d}: {length:6.1f} steps an episode, largest KL {kl_max:.3f} <= {EPS_KL}")
