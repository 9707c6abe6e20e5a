"""The paper's twenty claims that runs can be held against, each a pure function of the figures' rows.

A function answers agrees, disagrees or not enough data. An ordering is settled by a 95 % interval that does not hold 0, on five
seeds or more of one task, or three of several tasks pooled; what every run does is settled by three. No claim is answered from
runs shorter than it speaks of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.figures.evidence import (
    AGREES,
    DISAGREES,
    NOT_ENOUGH,
    Evidence,
    Finding,
    MissingError,
    Row,
    alike,
    at_seconds,
    at_share_of_steps,
    decided,
    drawdowns,
    larger,
    larger_over_tasks,
    settled,
)

WALKER, CHEETAH = "mujoco_Walker2d", "mujoco_HalfCheetah"
_UNBOUNDED = ("no_fixup", "mean_")  # variants of FixPO that do not promise the bound
_TEN_MILLION, _HUNDRED_MILLION = 9.9e6, 99e6


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper.

    Attributes:
        number: as in the table of claims.
        text: what is said.
        where: in the paper.
        judge: what the rows say of it; may raise MissingError.
    """

    number: int
    text: str
    where: str
    judge: Callable[[Evidence], Finding]


def bound_holds(data: Evidence) -> Finding:
    """1: over every deployed policy of every run of FixPO that promises the bound."""
    found = [
        row
        for rows in data.figures.values()
        for row in rows
        if row["algo"] == "FIXPO" and not row["variant"].startswith(_UNBOUNDED) and row["updates"]
    ]
    if not found:
        raise MissingError("no run of FixPO")
    worst = max(row["kl_max_rel"] for row in found)
    return decided(worst <= 1, f"worst {worst:.3f} of eps_kl in {sum(row['updates'] for row in found):,.0f} updates")


def few_extra_steps(data: Evidence) -> Finding:
    """2: fixup over primary steps, Walker2d, C_beta = 3."""
    share = data.total("1", "c_beta_3", "fixup_steps", WALKER) / max(1.0, data.total("1", "c_beta_3", "primary_steps", WALKER))
    return decided(share < 0.05, f"{100 * share:.2f} % of the primary steps")


def five_to_ten(data: Evidence) -> Finding:
    """3: where an update has the paper's 160 primary steps."""
    primary = data.per_update("1", "c_beta_3", "primary_steps", WALKER)
    if abs(primary - 160) > 1:
        raise MissingError(f"updates of {primary:.0f} primary steps, not 160")
    steps = data.per_update("1", "c_beta_3", env=WALKER)
    return decided(5 <= steps <= 10, f"{steps:.2f} fixup steps an update")


def falls_with_c_beta(data: Evidence) -> Finding:
    """4: means over the run."""
    steps = [data.per_update("1", f"c_beta_{c}", env=WALKER) for c in (1, 2, 3, 5, 10)]
    falling = all(a > b for a, b in pairwise(steps))
    text = ", ".join(f"{s:.1f}" for s in steps)
    return decided(falling and steps[0] > 100, f"{text} fixup steps an update at C_beta 1, 2, 3, 5, 10")


def hovers(data: Evidence) -> Finding:
    """5: median over the updates of the largest KL, beside eps / 3 and eps; one run shows the mechanism."""
    medians = {}
    for c in (1, 3):
        values = [r["kl_median_rel"] for r in data.rows("2", f"c_beta_{c}") if r["kl_median_rel"] is not None]
        if not values:
            raise MissingError(f"figure 2 c_beta_{c}: no updates")
        medians[c] = float(np.median(values))
    many = data.per_update("2", "c_beta_1", seeds=1) > data.per_update("2", "c_beta_3", seeds=1)
    text = f"median largest KL / eps_kl {medians[1]:.2f} at C_beta 1, {medians[3]:.2f} at 3"
    return decided(medians[1] > 0.8 and abs(medians[3] - 1 / 3) < 0.15 and many, text)


def best_on_three(data: Evidence) -> Finding:
    """6: at ten million steps only: the curves cross between two and four million."""
    wins = ("mujoco_Walker2d", "mujoco_Swimmer", "mujoco_InvertedDoublePendulum")
    others = ("mujoco_HalfCheetah", "mujoco_Hopper", "mujoco_Reacher")
    ours = data.scores("3", "fixpo", frames=_TEN_MILLION)
    rivals = [data.scores("3", name, frames=_TEN_MILLION) for name in ("appo", "trpo", "kl_projection")]
    if missing := [env for env in (*wins, *others) if env not in ours or any(env not in rival for rival in rivals)]:
        raise MissingError(f"figure 3, all four methods: {', '.join(missing)}")
    signs = {env: [larger(ours[env], rival[env])[0] for rival in rivals] for env in (*wins, *others)}
    text = "; ".join(f"{env.removeprefix('mujoco_')} {sum(s > 0 for s in signs[env])} of 3 rivals beaten" for env in signs)
    if any(min(signs[env]) < 0 for env in wins) or any(min(signs[env]) > 0 for env in others):
        return Finding(DISAGREES, text)
    return Finding(AGREES if all(min(signs[env]) > 0 for env in wins) else NOT_ENOUGH, text)


def no_large_falls(data: Evidence) -> Finding:
    """7: largest fall of each seed, beside those of APPO and TRPO."""
    texts, signs = [], []
    for rival in ("appo", "trpo"):
        mine, theirs = data.scores("3", "fixpo"), data.scores("3", rival)
        rows = data.rows("3")
        sign, text = larger_over_tasks(drawdowns(rows, "fixpo", mine), drawdowns(rows, rival, theirs))
        signs.append(sign)
        texts.append(f"FixPO's fall less {rival}'s {text}")
    if max(signs) <= 0 and min(signs) < 0 and 0 in signs:
        return Finding(NOT_ENOUGH, f"{'; '.join(texts)}: one interval holds 0")
    return settled(max(signs), -1, "; ".join(texts))


def flat(data: Evidence) -> Finding:
    """8: each setting alone, within a fifth of the default's return; minibatches up to 512 only."""
    names = [f"eps_kl_{v}" for v in ("0.1", "0.2", "0.3", "0.4")] + ["c_beta_2", "c_beta_5", "c_beta_10"]
    names += ["beta_lr_0.001", "beta_lr_0.1", "minibatch_256"]
    default = data.scores("robustness", "default", seeds=3)
    found = {name: alike(data.scores("robustness", name, seeds=3), default, 0.2) for name in names}
    bad = {name: finding.why for name, finding in found.items() if finding.verdict == DISAGREES}
    if bad:
        return Finding(DISAGREES, "; ".join(f"{name}: {why}" for name, why in bad.items()))
    open_ones = [name for name, finding in found.items() if finding.verdict == NOT_ENOUGH]
    text = f"{len(names)} settings beside the default's"
    return Finding(NOT_ENOUGH, f"wide intervals: {', '.join(open_ones)}") if open_ones else Finding(AGREES, text)


def wider_actions(data: Evidence) -> Finding:
    """9: at the end of training, without an entropy bonus."""
    sign, text = larger_over_tasks(data.scores("4", "fixpo", "action_std"), data.scores("4", "appo", "action_std"))
    return settled(sign, 1, f"FixPO's standard deviation less APPO's {text}")


def without_fixup(data: Evidence) -> Finding:
    """10: the bound is broken, and the return is higher on most tasks."""
    over = data.total("5", "no_fixup", "over_bound") / max(1.0, data.total("5", "no_fixup", "updates"))
    ours, without = data.scores("5", "fixpo"), data.scores("5", "no_fixup")
    common = [env for env in ours if env in without]
    signs = [larger(without[env], ours[env])[0] for env in common]
    text = f"{100 * over:.0f} % of updates over the bound; higher on {sum(s > 0 for s in signs)} of {len(signs)} tasks"
    if over == 0 or sum(s < 0 for s in signs) * 2 >= max(1, len(signs)):
        return Finding(DISAGREES, text)
    return Finding(AGREES if sum(s > 0 for s in signs) * 2 > len(signs) else NOT_ENOUGH, text)


def mean_is_sensitive(data: Evidence) -> Finding:
    """11: best of each kind alike, and a larger spread over eps_kl with the mean."""
    kinds: dict[str, dict[str, float]] = {"eps_kl_": {}, "mean_eps_kl_": {}}
    for prefix, found in kinds.items():
        for eps in ("0.1", "0.2", "0.5"):
            name = "default" if (prefix, eps) == ("eps_kl_", "0.5") else f"{prefix}{eps}"
            by_task = data.scores("robustness", name, seeds=3)
            found[eps] = float(np.mean([np.mean(values) for values in by_task.values()]))
    best = [max(found.values()) for found in kinds.values()]
    spread = [max(found.values()) - min(found.values()) for found in kinds.values()]
    similar = abs(best[1] - best[0]) <= 0.2 * abs(best[0])
    text = f"best {best[0]:.4g} and {best[1]:.4g}, spread over eps_kl {spread[0]:.4g} and {spread[1]:.4g} (max, mean)"
    return decided(similar and spread[1] > spread[0], text)


def _ablation(name: str, wanted: int) -> Callable[[Evidence], Finding]:
    def judge(data: Evidence) -> Finding:
        sign, text = larger_over_tasks(data.scores("5", name, seeds=3), data.scores("5", "fixpo", seeds=3))
        return settled(sign, wanted, f"{name} less FixPO {text}")

    return judge


def last_epoch_only(data: Evidence) -> Finding:
    """13: fewer fixup steps, a return no higher, the same time an update up to a tenth."""
    steps = [data.per_update("5", name) for name in ("last_epoch", "fixpo")]
    seconds = []
    for name in ("last_epoch", "fixpo"):
        logged = [(r["update_seconds"], r["updates"]) for r in data.rows("5", name, seeds=3) if r["updates"]]
        seconds.append(sum(s * n for s, n in logged) / sum(n for _, n in logged))
    sign, text = larger_over_tasks(data.scores("5", "last_epoch", seeds=3), data.scores("5", "fixpo", seeds=3))
    same_time = abs(seconds[0] / seconds[1] - 1) <= 0.1
    why = f"{steps[0]:.2f} and {steps[1]:.2f} fixup steps, {seconds[0]:.3f} and {seconds[1]:.3f} s an update; return {text}"
    return decided(steps[0] < steps[1] and same_time and sign <= 0, why)


def beta_in_range(data: Evidence) -> Finding:
    """14: constant beta 10 better on HalfCheetah; the learned one between 5 and 20."""
    quantiles = [(row["beta_q05"], row["beta_q95"]) for row in data.rows("5", "fixpo", seeds=3) if row["beta_q05"] is not None]
    low, high = min(q[0] for q in quantiles), max(q[1] for q in quantiles)
    text = f"learned beta {low:.2f} to {high:.2f} (5 % and 95 % of the updates)"
    if low < 5 or high > 20:
        return Finding(DISAGREES, text)
    ours, constant = data.scores("5", "fixpo"), data.scores("5", "beta_10")
    if CHEETAH not in ours or CHEETAH not in constant:
        raise MissingError(f"{text}; figure 5 on HalfCheetah: seeds")
    sign, more = larger(constant[CHEETAH], ours[CHEETAH])
    return settled(sign, 1, f"{text}; beta 10 on HalfCheetah {more}")


def metaworld(data: Evidence) -> Finding:
    """15: equal at the end up to 0.05, the projection ahead at a tenth of the steps, behind at equal time."""
    names = ("fixpo", "appo", "kl_projection")
    final = {n: data.scores("6", n, "success", seeds=3, frames=_TEN_MILLION) for n in names}
    tasks = [env for env in final["fixpo"] if all(env in final[n] for n in names)]
    if len(tasks) < 10:
        raise MissingError(f"figure 6: {len(tasks)} of at least 10 tasks with all three methods")
    ends = {n: float(np.mean([np.mean(final[n][env]) for env in tasks])) for n in names}
    if max(ends.values()) - min(ends.values()) > 0.05:
        return Finding(DISAGREES, f"at the end {', '.join(f'{n} {y:.2f}' for n, y in ends.items())}")
    rows = data.rows("6")
    seconds = min(max(r["seconds"] or 0.0 for r in rows if r["variant"] == n) for n in names)
    early = {n: data.scores("6", n, "success", 3, _TEN_MILLION, at_share_of_steps(0.1)) for n in ("fixpo", "kl_projection")}
    by_step, first = larger_over_tasks(early["kl_projection"], early["fixpo"])
    timed = [at_seconds(rows, n, "success", seconds / 4) for n in ("kl_projection", "fixpo")]
    by_time, second = larger_over_tasks(*timed)
    text = ", ".join(f"{n} {y:.2f}" for n, y in ends.items())
    text = f"at the end {text}; projection less FixPO: early {first}, timed {second}"
    if by_step < 0 or by_time > 0:
        return Finding(DISAGREES, text)
    return Finding(AGREES if by_step > 0 and by_time < 0 else NOT_ENOUGH, text)


def large_batch(data: Evidence) -> Finding:
    """16: PPO with 50,000 samples an update above PPO with 10,000."""
    sizes = [data.scores("batch", f"appo_{n}", "success", seeds=3) for n in (50_000, 10_000)]
    sign, text = larger_over_tasks(*sizes)
    return settled(sign, 1, f"success with 50,000 less with 10,000 {text}")


def transfer(data: Evidence) -> Finding:
    """17: towards MT10; the way back is in no sweep, so that agreement is about one half of the claim."""
    found = [data.scores("7", f"transfer_{n}", "success", seeds=3) for n in ("fixpo", "appo")]
    sign, text = larger_over_tasks(*found)
    return settled(sign, 1, f"pick-place to MT10, FixPO less APPO {text}; MT10 to pick-place has not been run")


def dmlab(data: Evidence) -> Finding:
    """18: more than a hundred million frames, within a fifth."""
    found = [data.scores("8", name, seeds=4, frames=_HUNDRED_MILLION) for name in ("fixpo", "appo")]
    return alike(found[0], found[1], 0.2)


def one_beta_blocks(data: Evidence) -> Finding:
    """19: one beta per task above one for all."""
    sign, text = larger_over_tasks(data.scores("multitask", "per_task"), data.scores("multitask", "shared"))
    return settled(sign, 1, f"one per task less one for all {text}")


def works_on_atari(data: Evidence) -> Finding:
    """20: Pong, whose random play is -20.7, won by three seeds."""
    (scores,) = data.scores("atari", "fixpo", seeds=3).values()
    return decided(min(scores) > 0, f"Pong {', '.join(f'{s:.1f}' for s in scores)}")


CLAIMS: tuple[Claim, ...] = (
    Claim(1, "the KL of every state stays within eps_kl after each update", "abstract, 3.2", bound_holds),
    Claim(2, "less than 5 % extra gradient steps", "abstract", few_extra_steps),
    Claim(3, "C_beta = 3: 5 to 10 fixup steps an update beside 160", "figure 1", five_to_ten),
    Claim(4, "fixup steps fall with C_beta, above 100 at 1", "figure 1, 4.2", falls_with_c_beta),
    Claim(5, "C_beta = 3 keeps the largest KL near eps / 3, 1 hovers at eps with many fixup steps", "figure 2", hovers),
    Claim(6, "best on Walker2d, Swimmer, IDP, and not on the other three", "figure 3", best_on_three),
    Claim(7, "avoids large drops in training", "figure 3", no_large_falls),
    Claim(8, "flat in eps_kl, C_beta, beta's rate and minibatches up to 512", "Hyper-Parameter Robustness", flat),
    Claim(9, "higher standard deviation of the actions than PPO, Walker2d", "figure 4", wider_actions),
    Claim(10, "no fixup: higher reward on most tasks, the bound broken", "figure 5", without_fixup),
    Claim(11, "limit on the mean KL: similar return, more sensitive", "4.2", mean_is_sensitive),
    Claim(12, "C_beta = 1: poor reward", "4.2, figure 5", _ablation("c_beta_1", -1)),
    Claim(13, "fixup in the last epoch: fewer steps, slightly lower reward, same time", "4.2", last_epoch_only),
    Claim(14, "beta = 10: very good on HalfCheetah; learned beta lies in 5 to 20", "4.2", beta_in_range),
    Claim(15, "Meta-World: equal at the end, projection faster by steps and slower by time", "figure 6", metaworld),
    Claim(16, "PPO needs a batch of 50,000 on Meta-World", "4.1, 4.3", large_batch),
    Claim(17, "transfer from pick-place to MT10 and back: FixPO above PPO", "figure 7", transfer),
    Claim(18, "DMLab: about equal to APPO", "figure 8", dmlab),
    Claim(19, "one beta over several tasks blocks progress", "Discussion", one_beta_blocks),
    Claim(20, "works on Atari", "Discussion", works_on_atari),
)


def judge_all(figures: Mapping[str, Sequence[Row]]) -> list[tuple[Claim, Finding]]:
    """Every claim with what the rows say of it.

    Args:
        figures: rows of each figure, of one scale, by its number.
    """
    data = Evidence(figures)
    found = []
    for claim in CLAIMS:
        try:
            finding = claim.judge(data)
        except MissingError as exc:
            finding = Finding(NOT_ENOUGH, str(exc))
        found.append((claim, finding))
    return found


def table(found: Sequence[tuple[Claim, Finding]]) -> str:
    """All of them in Markdown."""
    lines = ["| | claim | where | verdict | why |", "|---|---|---|---|---|"]
    lines += [f"| {c.number} | {c.text} | {c.where} | {f.verdict} | {f.why} |" for c, f in found]
    return "\n".join(lines) + "\n"
