"""The model card of a run: what was trained, on which engine, how the trust region held, what it scored. Pure functions.

The metadata at its top is what the Hugging Face Hub indexes; the text below is what a reader needs to judge and use the policy.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sf_fixpo import __version__

REPOSITORY_TAGS = ("deep-reinforcement-learning", "reinforcement-learning", "sample-factory", "fixpo")
STAND_IN = "vizdoom"  # the DMLab engine whose results are no DMLab-30 results
_STAND_IN_NOTE = (
    "**These are not DMLab-30 results.** The levels were simulated by the ViZDoom stand-in for DeepMind Lab: same names, "
    "actions, observation shapes and rewards, but not the same pixels or physics. Compare them only with runs on the stand-in."
)
# The flags that a reader looks for, in this order; what a run does not have is left out.
_SETTINGS = (
    "env", "dmlab_engine", "dmlab_levels", "algo", "seed", "train_for_env_steps", "num_policies", "async_rl", "max_policy_lag",
    "num_workers", "num_envs_per_worker", "rollout", "recurrence", "batch_size", "num_batches_per_epoch", "num_epochs",
    "learning_rate", "lr_schedule", "max_grad_norm", "gamma", "gae_lambda", "value_loss_coeff", "exploration_loss_coeff",
    "eps_kl", "c_beta", "beta_init", "beta_lr", "beta_max", "beta_scope", "kl_stat", "kl_direction", "reference", "fixup",
    "fixup_loss", "fixup_optimizer", "fixup_batch_size", "max_fixup_steps", "encoder_conv_architecture",
    "encoder_conv_mlp_layers", "encoder_mlp_layers", "use_rnn", "rnn_type", "rnn_size", "actor_critic_share_weights",
    "normalize_input", "normalize_returns", "value_normalization", "env_frameskip", "res_w", "res_h", "git_hash",
)  # fmt: skip


@dataclass(frozen=True)
class LevelScore:
    """What an evaluation found on one level or environment.

    Attributes:
        level: its name.
        engine: what simulated it.
        agent: `random`, or the checkpoint's file name.
        mean: of the episodes' returns.
        se: standard error of the mean; None for one episode.
        std: standard deviation of the returns; 0 for one episode.
        episodes: how many.
        deterministic: whether the likeliest action was taken.
    """

    level: str
    engine: str
    agent: str
    mean: float
    se: float | None
    std: float
    episodes: int
    deterministic: bool


def level_scores(record: Mapping[str, Any]) -> list[LevelScore]:
    """The levels in a file that `python -m sf_fixpo.evaluate --json` has written.

    Raises:
        KeyError: it is not such a file.
        TypeError: it is not such a file.
    """
    agent = "random" if record["agent"] == "random" else str(record["checkpoint"]).replace("\\", "/").rpartition("/")[2]
    scores = []
    levels = record["levels"] if "levels" in record else {record["env"]: record}
    for level, result in levels.items():
        returns = [float(value) for value in result["returns"]]
        scores.append(
            LevelScore(
                level=level,
                engine=result["engine"],
                agent=agent,
                mean=float(result["mean"]),
                se=result["se"],
                std=statistics.stdev(returns) if len(returns) > 1 else 0.0,
                episodes=len(returns),
                deterministic=bool(record["deterministic"]),
            )
        )
    return scores


@dataclass(frozen=True)
class Card:
    """What a model card is made from.

    Attributes:
        repo_id: `USER/NAME`.
        config: the run's configuration as it is published.
        rows: its update log; empty for APPO, which has none.
        evaluations: what `sf_fixpo.evaluate` has written, one for each file.
        checkpoints: published files, relative to the repository.
        pictures: published plots and videos, relative to the repository.
        dmlab: whether the environment is of DMLab.
    """

    repo_id: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    checkpoints: Sequence[str]
    pictures: Sequence[str]
    dmlab: bool

    @property
    def scores(self) -> list[LevelScore]:
        """Of all evaluations."""
        return [score for record in self.evaluations for score in level_scores(record)]

    @property
    def own_scores(self) -> list[LevelScore]:
        """Of the checkpoints that are published; the last evaluation of a level counts."""
        published = {path.rpartition("/")[2] for path in self.checkpoints}
        return list({score.level: score for score in self.scores if score.agent in published}.values())

    @property
    def on_stand_in(self) -> bool:
        """Whether anything here comes from the stand-in for DeepMind Lab."""
        return self.dmlab and (
            self.config.get("dmlab_engine") == STAND_IN or any(STAND_IN in score.engine for score in self.scores)
        )


def make_card(card: Card) -> str:
    """The whole README.md."""
    sections = (
        _introduction(card),
        _evaluation(card),
        _trust_region(card),
        _settings(card),
        _usage(card),
    )
    return f"---\n{metadata(card).to_yaml()}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def metadata(card: Card) -> ModelCardData:
    """What the Hub indexes; without an evaluation of a published checkpoint there is no `model-index`."""
    env = str(card.config["env"])
    tags = [*REPOSITORY_TAGS, env]
    if card.on_stand_in:
        tags.append("vizdoom-stand-in")
    results = [_eval_result(score, card.dmlab) for score in card.own_scores]
    named = {"model_name": card.repo_id.rpartition("/")[2], "eval_results": results} if results else {}
    return ModelCardData(library_name="sample-factory", pipeline_tag="reinforcement-learning", tags=tags, **named)


def _eval_result(score: LevelScore, dmlab: bool) -> EvalResult:
    stand_in = dmlab and STAND_IN in score.engine
    return EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=f"vizdoom-stand-in-{score.level}" if stand_in else score.level,
        dataset_name=f"{score.level} (ViZDoom stand-in, not DMLab-30)" if stand_in else score.level,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=f"{score.mean:.2f} +/- {score.std:.2f}",
    )


_ALGORITHMS = {
    "FIXPO": "FixPO (Zentner et al. 2023), whose trust region is enforced at every policy update",
    "TRPO": "TRPO (Schulman et al. 2015)",
    "PPO_KL": "PPO with an adaptive KL penalty (Schulman et al. 2017)",
    "KL_PROJECTION": "PPO with a KL projection layer (Otto et al. 2021)",
}


def _introduction(card: Card) -> str:
    config = card.config
    name = card.repo_id.rpartition("/")[2]
    algo = _ALGORITHMS.get(str(config["algo"]), f"{config['algo']} of sample-factory")
    text = f"# {name}\n\nA policy for `{config['env']}`, trained by {algo}, with sf_fixpo {__version__} on sample-factory."
    if card.dmlab:
        text += f"\n\nEngine: `{config.get('dmlab_engine', 'not recorded')}`."
        if card.on_stand_in:
            text += f"\n\n> {_STAND_IN_NOTE}"
    shown = [path for path in card.pictures if path.endswith((".png", ".gif"))]
    films = [path for path in card.pictures if path.endswith(".mp4")]
    return "\n\n".join([text, *(f"![{path}]({path})" for path in shown), *(f"Film: [{path}]({path})" for path in films)])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _evaluation(card: Card) -> str:
    if not card.scores:
        return "## Evaluation\n\nThis policy has not been evaluated."
    rows = []
    for score in card.scores:
        se = "n/a" if score.se is None else f"{score.se:.2f}"
        how = "random" if score.agent == "random" else "likeliest" if score.deterministic else "sampled"
        rows.append((score.level, score.engine, score.agent, how, f"{score.mean:.2f}", se, str(score.episodes)))
    heads = ("level", "engine", "agent", "actions", "mean return", "standard error", "episodes")
    text = "## Evaluation\n\nUndiscounted, unshaped returns, a fixed number of episodes for each environment.\n\n" + _table(
        heads, rows
    )
    for record in card.evaluations:
        if score := record.get("score"):
            text += f"\n\n{score['name']}: {score['capped']:.1f} (without the cap {score['normalised']:.1f})."
    return text


def _trust_region(card: Card) -> str:
    rows = card.rows
    if not rows:
        return "## Trust region\n\nThis run has no update log: its algorithm enforces no trust region."
    seconds = [sum(row["seconds"].values()) for row in rows]
    fixup = [row["seconds"].get("fixup", 0.0) + row["seconds"].get("check", 0.0) for row in rows]
    time_share = 100 * sum(fixup) / sum(seconds) if sum(seconds) else math.nan
    step_share = 100 * sum(row["fixup_steps"] for row in rows) / max(1, sum(row["primary_steps"] for row in rows))
    worst = max(row["kl_max"] / row["eps_kl"] for row in rows)
    beta = rows[-1]["beta"]
    last_beta = f"{min(beta):.3g} to {max(beta):.3g} over {len(beta)} tasks" if isinstance(beta, list) else f"{beta:.3g}"
    facts = (
        ("policy updates", f"{len(rows):,}"),
        ("environment steps", f"{rows[-1]['env_steps']:,}"),
        ("worst KL over its bound, of all published policies", f"{worst:.4f}"),
        ("fixup phase, share of the learner's time (checks included)", f"{time_share:.1f} %"),
        ("fixup steps beside primary steps", f"{step_share:.1f} %"),
        ("updates that went back towards the previous policy", f"{sum(row['backtracks'] for row in rows)}"),
        ("updates undone (a number was not finite)", f"{sum(bool(row['rolled_back']) for row in rows)}"),
        ("multiplier beta at the end", last_beta),
    )
    return "## Trust region\n\n" + _verdict(card.config, rows, worst) + "\n\n" + _table(("of the update log", ""), facts)


def _verdict(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], worst: float) -> str:
    if rows[-1].get("method"):  # which only an algorithm beside FixPO has
        algo = config["algo"]
        return f"`--algo={algo}` bounds no KL of a single state: `eps_kl` is a yardstick here, and nothing was enforced."
    if config.get("fixup") == "off":
        return "The fixup phase was off (`--fixup=off`): nothing was enforced."
    if config.get("kl_stat") == "mean":
        return "`--kl_stat=mean`: `eps_kl` bounds the mean KL of a batch; the worst KL below is of single states."
    held = "Every published policy kept" if worst <= 1 else "**Not every published policy kept**"
    text = f"{held} the KL at every state of its batch within `eps_kl`; `updates.jsonl` has the numbers of each update."
    if stale := max(row["stale_fraction"] for row in rows):
        text += f" States where the previous policy itself broke the bound are left out: at most {100 * stale:.2g} % of a batch."
    return text


def _settings(card: Card) -> str:
    rows = [(f"`{name}`", f"`{card.config[name]}`") for name in _SETTINGS if card.config.get(name) not in (None, "", [])]
    text = "## Settings\n\n" + _table(("flag", "value"), rows) + "\n\nAll of them are in `config.json`."
    if command := card.config.get("command_line"):
        text += f" The command was\n\n```bash\npython -m sf_fixpo.train {command}\n```"
    return text


def _usage(card: Card) -> str:
    folder = f"train_dir/{card.repo_id.rpartition('/')[2]}"
    commands = [f"fixpo-enjoy hub:{card.repo_id}", f"hf download {card.repo_id} --local-dir {folder}"]
    commands += [f"python -m sf_fixpo.evaluate {folder} --checkpoint={folder}/{path} --episodes=50" for path in card.checkpoints]
    lines = "\n".join(commands)
    return (
        f"## Use\n\nWith sf_fixpo installed:\n\n```bash\n{lines}\n```\n\n"
        "A checkpoint is read by `torch.load` with `weights_only=True`; its network is built by "
        "`sf_fixpo.learning.policy.make_actor_critic` from `config.json`."
    )
