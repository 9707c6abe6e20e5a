"""The two pages of the site that are made of the code: every flag of every program, and every number that a run writes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import tomllib

ROOT = Path(__file__).resolve().parents[2]
# Programs without a name of their own, as they are called.
OTHERS = ("sf_fixpo.demo", "sf_fixpo.launcher.run", "sf_fixpo.launcher.status", "sf_fixpo.launcher.stop",
          "sf_fixpo.launcher.resume", "sf_fixpo.envs.dmlab.cache.populate_cache", "sf_fixpo.envs.dmlab.measure")  # fmt: skip
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>$|#~])")


def plain(text: str) -> str:
    """Text of a docstring or a flag's help as Markdown for a cell of a table; what is in backticks stays code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(p.replace("|", r"\|") if p.startswith("`") else _SPECIAL.sub(r"\\\1", p) for p in parts)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# -- flags -----------------------------------------------------------------------------------------------------------------------


class _Shown(BaseException):
    """Ends a program where it would print its help."""


def parser_of(main: Callable, argv: Sequence[str] = ()) -> argparse.ArgumentParser | None:
    """The parser that a program prints as its help, found by asking for that; None where it has none (`fixpo-run`).

    Args:
        main: of the program.
        argv: what its flags depend on, as `--env`.
    """
    found: list[argparse.ArgumentParser] = []

    def show(self: argparse.ArgumentParser, *unused: object) -> None:
        found.append(self)
        raise _Shown

    quiet = contextlib.redirect_stdout(io.StringIO())
    with mock.patch.object(argparse.ArgumentParser, "print_help", show), contextlib.suppress(_Shown), quiet:
        if inspect.signature(main).parameters:
            main([*argv, "--help"])
        else:
            with mock.patch.object(sys, "argv", ["program", *argv, "--help"]):
                main()
    return found[0] if found else None


def scripts() -> dict[str, str]:
    """The installed programs: name and module."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return {name: target.partition(":")[0] for name, target in sorted(found.items())}


def is_shown(action: argparse.Action) -> bool:
    """Whether a flag is one that a user may give."""
    return action.help is not argparse.SUPPRESS and not {"--help", "--version"} & set(action.option_strings)


def flag_row(action: argparse.Action) -> tuple[str, str, str]:
    """A flag's line: name, default, meaning."""
    name = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar or action.dest}`"
    default = action.default
    shown = "" if default in (None, argparse.SUPPRESS, "") else f"`{default}`".replace("|", r"\|")
    text = plain((action.help or "").replace("%%", "%").replace("%(default)s", str(default)))
    if action.choices:
        text += f" (one of {', '.join(f'`{choice}`' for choice in action.choices)})"
    return name, shown, text


def flag_table(actions: Iterable[argparse.Action]) -> str:
    """All of them."""
    return table(("flag", "default", "meaning"), [flag_row(action) for action in actions if is_shown(action)])


def actions_of(main: Callable, argv: Sequence[str] = ()) -> list[argparse.Action]:
    """The flags and arguments of a program that has a parser."""
    return [] if (parser := parser_of(main, argv)) is None else [a for a in parser._actions if is_shown(a)]


def suite_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of `fixpo-train` for each suite of environments, by the suite's name."""
    from sf_fixpo import train
    from sf_fixpo.envs import SUITES

    # not as it is shown, with the preset's defaults
    return {suite.name: train._make_parser([f"--env={suite.env_names()[0]}"])[0] for suite in SUITES}


def _train() -> Iterator[str]:
    """The flags of all suites by group, those of each suite, and what its presets set."""
    from sf_fixpo.envs import SUITES

    parsers = suite_parsers()
    names = [{action.dest for action in parser._actions} for parser in parsers.values()]
    common = set.intersection(*names)
    groups = {}
    for group in next(iter(parsers.values()))._action_groups:
        title = "sample-factory's" if group.title == "options" else str(group.title)
        groups[title] = [action for action in group._group_actions if action.dest in common]
    for title in sorted(groups, key="sample-factory's".__eq__):
        if groups[title]:
            yield f"### {title}\n\n{flag_table(groups[title])}"
    for suite in SUITES:
        own = [action for action in parsers[suite.name]._actions if action.dest not in common]
        yield f"### Suite {suite.name}\n\n{plain(suite.description)}."
        if own:
            yield flag_table(own)
        flags = dict.fromkeys(flag for preset in suite.presets.values() for flag in preset)
        rows = [[f"`--{f}`", *(f"`{p[f]}`" if f in p else "" for p in suite.presets.values())] for f in flags]
        if rows:
            yield f"What its presets set:\n\n{table(['flag', *suite.presets], rows)}"


def flags_page() -> str:
    """Markdown of every flag of every program."""
    text = ["# Every flag", "Made from the programs' own parsers when this site was built; `--help` shows the same."]
    text += ["## fixpo-train", *_train()]
    for name, module in [*scripts().items(), *((f"python -m {module}", module) for module in OTHERS)]:
        if name != "fixpo-train":
            program = importlib.import_module(module)
            actions = actions_of(program.main)
            description = inspect.cleandoc(program.__doc__ or "")
            text += [f"## {name}", f"```text\n{description}\n```", flag_table(actions) if actions else ""]
    text.append("## Backends of the launcher")
    run = importlib.import_module("sf_fixpo.launcher.run").main
    plain_flags = {action.dest for action in actions_of(run)}
    for backend in ("slurm", "ray", "kubernetes"):
        own = [action for action in actions_of(run, [f"--backend={backend}"]) if action.dest not in plain_flags]
        text += [f"### --backend={backend}", flag_table(own)]
    return "\n\n".join(filter(None, text)) + "\n"


# -- metrics ---------------------------------------------------------------------------------------------------------------------


def attributes(cls: type) -> dict[str, str]:
    """The section `Attributes` of a class's docstring: name and text."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2].split("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section, re.M | re.S)
    return {name: " ".join(text.split()) for name, text in found}


def _scalar(name: str) -> str:
    """Under which name TensorBoard and W&B have a column."""
    special = {
        "seconds": "`fixpo/seconds_<phase>`",
        "tasks": "`fixpo/<number>_<task>/<figure>`",
        "method": "`fixpo/method/<name>`",
        **dict.fromkeys(("policy_id", "policy_version", "env_steps", "health"), ""),
    }
    return special.get(name, f"`fixpo/{name}`")


def metrics_page() -> str:
    """Markdown of the update log's columns, the scalars, and the names of what can be wrong."""
    from sf_fixpo.records.health import RULES
    from sf_fixpo.records.update_log import UpdateRecord

    said = attributes(UpdateRecord)
    fields = dataclasses.fields(UpdateRecord)
    rows = [(f"`{f.name}`", f"`{f.type}`".replace("|", r"\|"), plain(said[f.name]), _scalar(f.name)) for f in fields]
    rows.append(("", "", plain(inspect.cleandoc(UpdateRecord.kl_max_rel.__doc__ or "")), "`fixpo/kl_max_rel`"))
    health = [(f"`{rule.name}`", plain(re.sub(r"\{w\.\w+[^}]*\}", "...", rule.advice))) for rule in RULES]
    return _METRICS.format(
        columns=table(("column", "type", "meaning", "scalar"), rows), health=table(("name", "what is said"), health)
    )


_METRICS = """# Every metric

Made from the code when this site was built.

## The update log

`updates.jsonl`, one JSON object a line, one line an update. KLs are in nats, of the weights that were published unless the name
says otherwise; times are in seconds. The last column is the scalar in TensorBoard and W&B.

{columns}

## Names in `health`

What the learner says on the terminal when a rule begins to hold; [From symptoms to flags](../tuning.md) has more.

{health}

## Scalars of sample-factory

`reward/reward` (mean return of the latest episodes; `_min`, `_max`), `len/len`, `policy_stats/...` (what an environment adds to
`episode_extra_stats`), `perf/_fps`, `perf/_sample_throughput`, `train/...` (of the last gradient step), `stats/...` (queues,
memory); and of ours `eval/<level>` and `eval/_mean_capped_human_normalised` with `--eval_every`.
"""


def write(folder: Path) -> None:
    """Writes both pages, where they are not as they should be already: Sphinx reads again what has changed."""
    folder.mkdir(exist_ok=True)
    for name, text in (("flags.md", flags_page()), ("metrics.md", metrics_page())):
        path = folder / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
