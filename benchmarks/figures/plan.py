"""What is run for each of the paper's figures, at three scales: a sweep of the launcher each.

A figure is a list of variants by tasks by seeds. `smoke` shows that everything works and says nothing else; `laptop` is what two
cores do in hours or days; `paper` has the paper's steps and seeds. Beside the eight figures stand the sweeps that claims of the
text need: `robustness` (Hyper-Parameter Robustness), `batch` (section 4.3), `multitask` and `atari` (Discussion).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from sample_factory.launcher.run_description import Experiment, RunDescription

from sf_fixpo.envs.pool.metaworld import TASKS

SCALES = ("smoke", "laptop", "paper")
FROM = "{from}"  # in a variant's flags: the folder of the run, of the same seed, that it goes on from

MUJOCO = tuple(f"mujoco_{n}" for n in ("Walker2d", "HalfCheetah", "Hopper", "Swimmer", "InvertedDoublePendulum", "Reacher"))
METAWORLD = tuple(f"metaworld_{n}-v3" for n in ("reach", "push", "drawer-open", "window-open", "button-press-topdown"))
# with these the ten of MT10, to which figure 7 transfers
_MORE = ("door-open", "drawer-close", "peg-insert-side", "pick-place", "window-close")
MT10 = (*METAWORLD, *(f"metaworld_{n}-v3" for n in _MORE))
LEVELS = tuple(f"dmlab_30_rooms_{n}" for n in ("collect_good_objects", "select_nonmatching_object", "exploit_deferred_effects"))

RIVALS = MappingProxyType(
    {"fixpo": "--algo=FIXPO", "appo": "--algo=APPO", "trpo": "--algo=TRPO", "kl_projection": "--algo=KL_PROJECTION"}
)
# Section 4.2; by the authors' plot filters the rows of the mean KL and of beta = 10 have C_beta = 2, the others 3.
ABLATIONS = MappingProxyType(
    {
        "fixpo": "",
        "no_fixup": "--fixup=off",
        "mean_kl": "--kl_stat=mean --c_beta=2",
        "c_beta_1": "--c_beta=1",
        "last_epoch": "--fixup=last_epoch",
        "beta_10": "--beta_lr=0 --beta_init=10 --c_beta=2",
    }
)
_MULTITASK_LEVELS = "--dmlab_levels=rooms_collect_good_objects,rooms_exploit_deferred_effects,rooms_select_nonmatching_object"


class UnknownError(ValueError):
    """An unknown figure, scale or method; the message has the list."""


@dataclass(frozen=True)
class Budget:
    """What one scale takes.

    Attributes:
        steps: of a run, in frames.
        seeds: how many of each variant and task.
        tasks: environments.
        flags: further ones.
        variants: those that are run at this scale; none named: all.
    """

    steps: int
    seeds: int
    tasks: tuple[str, ...]
    flags: str = ""
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One line of a figure.

    Attributes:
        flags: on top of the budget's.
        goes_on_from: variant whose finished run, of the same seed, is named by `{from}` in the flags; "" for none.
        tasks: environments, where they are not the budget's.
    """

    flags: str
    goes_on_from: str = ""
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """A figure, or a sweep of the text.

    Attributes:
        title: what it shows.
        variants: by name.
        budgets: by scale.
        draws: the column on the vertical axis.
        runs_of: another figure, whose runs these are; its sweep is used, and only what is selected here is run.
    """

    title: str
    variants: Mapping[str, Variant]
    budgets: Mapping[str, Budget]
    draws: str = "return"
    runs_of: str = ""


def _variants(flags: Mapping[str, str]) -> dict[str, Variant]:
    return {name: Variant(text) for name, text in flags.items()}


# Returns are logged from two episodes on, not from a hundred.
_LOGGED = "--experiment_summaries_interval=1 --stats_avg=2"
# 8 updates of 4 x 64 samples.
_TINY = f"--env_agents=4 --rollout=64 --batch_size=64 --num_batches_per_epoch=4 --num_epochs=2 {_LOGGED}"
_TINY_LAB = "--num_workers=1 --num_envs_per_worker=4 --worker_num_splits=1 --rollout=32 --batch_size=128"
_TINY_LAB += f" --num_batches_per_epoch=1 --async_rl=False --serial_mode=True {_LOGGED}"


def _mujoco(
    tasks: tuple[str, ...], laptop_seeds: int, paper_seeds: int = 10, flags: str = "", smoke: tuple[str, ...] = ()
) -> dict[str, Budget]:
    common = f"--preset=paper --device=cpu {flags}".strip()
    return {
        "smoke": Budget(2048, 1, tasks[:1], f"{common} {_TINY}", smoke),
        "laptop": Budget(1_000_000, laptop_seeds, tasks, f"{common} --experiment_summaries_interval=2"),
        "paper": Budget(10_000_000, paper_seeds, tasks, common),
    }


def _metaworld(tasks: tuple[str, ...], paper_tasks: tuple[str, ...], laptop_seeds: int = 3) -> dict[str, Budget]:
    return {
        "smoke": Budget(4096, 1, tasks[:1], f"--preset=paper --device=cpu {_TINY}"),  # two episodes of 500 steps
        "laptop": Budget(1_000_000, laptop_seeds, tasks, "--preset=paper --device=cpu --experiment_summaries_interval=2"),
        "paper": Budget(20_000_000, 3, paper_tasks, "--preset=paper --device=cpu"),
    }


def _lab(levels: tuple[str, ...], flags: str = "") -> dict[str, Budget]:
    return {
        "smoke": Budget(1024, 1, levels[:1], f"--preset=laptop --dmlab_engine=vizdoom --device=cpu {_TINY_LAB} {flags}".strip()),
        "laptop": Budget(3_500_000, 5, levels, f"--preset=laptop --dmlab_engine=vizdoom {flags}".strip()),
        "paper": Budget(100_000_000, 4, levels, f"--preset=paper {flags}".strip()),
    }


def _transfer() -> dict[str, Variant]:
    """Pick-place, then the ten of MT10 one by one from its weights, optimiser and beta new: 7a; back again is not run."""
    found = {}
    for name, algo in (("fixpo", "FIXPO"), ("appo", "APPO")):
        found[f"pretrain_{name}"] = Variant(f"--algo={algo}", tasks=("metaworld_pick-place-v3",))
        found[f"transfer_{name}"] = Variant(f"--algo={algo} --init_from={FROM}", goes_on_from=f"pretrain_{name}")
    return found


def _robustness() -> dict[str, Variant]:
    """One setting at a time; and eps_kl once more for the mean KL (claim 11)."""
    found = {"default": ""}
    found |= {f"eps_kl_{v:g}": f"--eps_kl={v:g}" for v in (0.1, 0.2, 0.3, 0.4)}
    found |= {f"c_beta_{v}": f"--c_beta={v}" for v in (2, 5, 10)}
    found |= {f"beta_lr_{v:g}": f"--beta_lr={v:g}" for v in (0.001, 0.1)}
    found |= {f"minibatch_{v}": f"--batch_size={v} --num_batches_per_epoch={8192 // v}" for v in (256, 1024)}
    found |= {f"mean_eps_kl_{v:g}": f"--kl_stat=mean --eps_kl={v:g}" for v in (0.02, 0.05, 0.1, 0.2, 0.5)}
    return _variants(found)


def _batches() -> dict[str, Variant]:
    """PPO's batch in samples: 20 simulators x 500 steps, or 100 x 500; minibatches of 500."""
    sizes = {10_000: (20, 20), 50_000: (100, 100)}
    return {
        f"{name}_{size}": Variant(f"--algo={algo} --env_agents={agents} --num_batches_per_epoch={parts}")
        for name, algo in (("appo", "APPO"), ("fixpo", "FIXPO"))
        for size, (agents, parts) in sizes.items()
    }


def _without_smoke(budgets: dict[str, Budget]) -> dict[str, Budget]:
    """Sweeps over batch sizes have no smoke scale: it has its own sizes."""
    return {scale: budget for scale, budget in budgets.items() if scale != "smoke"}


_C_BETA = {f"c_beta_{v}": f"--c_beta={v}" for v in (1, 2, 3, 5, 10)}
_TRACED = "--trace_updates=2-4,10,50,100"

FIGURES: Mapping[str, Figure] = MappingProxyType(
    {
        "1": Figure(
            "Fixup steps by C_beta",
            _variants(_C_BETA),
            _mujoco(MUJOCO[:1], 3, smoke=("c_beta_1", "c_beta_3")),
            draws="fixup_per_update",
        ),
        "2": Figure(
            "Largest KL and beta, step by step",
            _variants({"c_beta_1": "--c_beta=1", "c_beta_3": "--c_beta=3"}),
            _mujoco(MUJOCO[:1], 1, 1, _TRACED),
            draws="kl_max_rel",
        ),
        "3": Figure("MuJoCo", _variants(RIVALS), _mujoco(MUJOCO, 5)),
        "4": Figure(
            "Standard deviation of the actions",
            _variants({name: RIVALS[name] for name in ("fixpo", "appo")}),
            _mujoco(MUJOCO[:1], 5),
            draws="action_std",
            runs_of="3",
        ),
        "5": Figure("Ablations", _variants(ABLATIONS), _mujoco(MUJOCO[:3], 5, smoke=("fixpo", "no_fixup", "beta_10"))),
        "6": Figure(
            "Meta-World, one policy a task",
            _variants({name: RIVALS[name] for name in ("fixpo", "appo", "kl_projection")}),
            _metaworld(METAWORLD, tuple(TASKS)),
            draws="success",
        ),
        "7": Figure("Transfer from pick-place", _transfer(), _metaworld(METAWORLD, MT10), draws="success"),
        "8": Figure("DMLab", _variants({name: RIVALS[name] for name in ("fixpo", "appo")}), _lab(LEVELS)),
        "robustness": Figure("Robustness of FixPO's settings", _robustness(), _without_smoke(_mujoco(MUJOCO[:1], 3))),
        "batch": Figure("PPO's batch on Meta-World", _batches(), _without_smoke(_metaworld(METAWORLD, MT10)), "success"),
        "multitask": Figure(
            "One beta or one per task",
            _variants({"shared": "--beta_scope=shared", "per_task": "--beta_scope=per_task"}),
            _without_smoke(_lab(("dmlab_30",), _MULTITASK_LEVELS)),
        ),
        "atari": Figure(
            "Pong",
            _variants({name: RIVALS[name] for name in ("fixpo", "appo")}),
            {
                "laptop": Budget(4_000_000, 3, ("atari_Pong",), "--preset=laptop"),
                "paper": Budget(40_000_000, 3, ("atari_Pong",), "--preset=paper"),
            },
        ),
    }
)


@dataclass(frozen=True)
class Planned:
    """One run of a figure.

    Attributes:
        experiment: name of its folder's group in the sweep: variant, two hyphens, task.
        variant: its name.
        env: its task.
        seed: its seed.
        stage: 0, or 1 where it goes on from another run.
        command: of the launcher; `{from}` is not filled in.
        source: experiment that it goes on from; "" for none.
    """

    experiment: str
    variant: str
    env: str
    seed: int
    stage: int
    command: str = field(repr=False)
    source: str = ""


def find(number: str, scale: str) -> tuple[Figure, Budget]:
    """A figure and its budget.

    Raises:
        UnknownError: there is no such figure, or not at this scale.
    """
    if number not in FIGURES:
        raise UnknownError(f"figure {number}: must be one of {', '.join(FIGURES)}")
    if scale not in SCALES:
        raise UnknownError(f"--scale={scale}: must be one of {', '.join(SCALES)}")
    figure = FIGURES[number]
    if scale not in figure.budgets:
        raise UnknownError(f"--scale={scale}: figure {number} has {', '.join(figure.budgets)}")
    return figure, figure.budgets[scale]


def chosen_variants(number: str, scale: str, methods: str) -> list[str]:
    """The variants that are run: all, or those named; what one goes on from is run with it.

    Raises:
        UnknownError: the figure has no such variant.
    """
    figure, budget = find(number, scale)
    variants = {name: v for name, v in figure.variants.items() if name in (budget.variants or figure.variants)}
    names = [name for name in methods.split(",") if name] or list(variants)
    if unknown := [name for name in names if name not in variants]:
        raise UnknownError(f"--methods={','.join(unknown)}: figure {number} has {', '.join(variants)}")
    needed = {*names, *(variants[name].goes_on_from for name in names)}
    return [name for name in variants if name in needed]


def planned(number: str, scale: str) -> list[Planned]:
    """Every run of a figure, seeds outermost; of one that has another's runs, those.

    Raises:
        UnknownError: see `find`.
    """
    figure, budget = find(number, scale)
    found = []
    for seed in range(budget.seeds):
        for name in budget.variants or figure.variants:
            variant = figure.variants[name]
            for env in variant.tasks or budget.tasks:
                command = f"python -m sf_fixpo.train --env={env} {budget.flags} --train_for_env_steps={budget.steps}"
                source = variant.goes_on_from
                if source:
                    source = f"{source}--{figure.variants[source].tasks[0]}"
                experiment = f"{name}--{env}"
                command = f"{command} {variant.flags}".strip()
                found.append(Planned(experiment, name, env, seed, int(bool(source)), command, source))
    return found


def selected(number: str, scale: str, variants: Collection[str]) -> list[Planned]:
    """The runs of a figure's variants, in the order of the sweep."""
    return [run for run in planned(number, scale) if run.variant in variants]


def sweep_name(number: str, scale: str) -> str:
    """The folder of the runs of a figure, under the training folder."""
    return f"figure_{FIGURES[number].runs_of or number}_{scale}"


def run_name(run: Planned) -> str:
    """The experiment's name, as sample-factory's launcher forms it."""
    return f"00_{run.experiment}_see_{run.seed}"


def run_folder(sweep: Path, run: Planned) -> Path:
    """Where a run lies in its sweep's folder."""
    return sweep / f"{run.experiment}_" / run_name(run)


def description(number: str, scale: str, train_dir: Path) -> RunDescription:
    """The whole sweep that a figure's runs belong to, whatever of it is run.

    Args:
        number: of the figure.
        scale: its scale.
        train_dir: of all sweeps; what a run goes on from is named by its path.

    Raises:
        UnknownError: see `find`.
    """
    find(number, scale)
    name = sweep_name(number, scale)
    sweep = Path(os.path.abspath(train_dir)) / name
    experiments = []
    for run in planned(FIGURES[number].runs_of or number, scale):
        command = run.command
        if run.source:
            command = command.replace(FROM, str(run_folder(sweep, replace(run, experiment=run.source))))
        experiments.append(Experiment(run.experiment, command, [{"seed": run.seed}]))
    return RunDescription(name, experiments)
