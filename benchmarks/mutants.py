"""Mutation testing of the algorithm and the guarantee: the code broken in one place at a time, under each file's own tests.

    python -m benchmarks.mutants [--only=verification,publication] [--jobs=2] [--results=FILE.json] [--report=docs/mutants.md]

The mutations are Cosmic Ray's, and a few that were made by hand after reviews. What is no change of the program - an
annotation, a docstring - is left out. A process that has imported the libraries, and nothing of this project, is forked for
each mutant, in a copy of the tree for each job. Survivors that are known to be equivalent are in `benchmarks/known_mutants.py`,
each with its reason. With `--results` what was found is kept file by file: a run that was cut off goes on where it was (delete
it to begin anew), and `--only` replaces what was known of those files.

Exit status: 0 at least 95 % of the mutants that are not known to be equivalent were killed; 1 fewer; 2 the tests fail unbroken.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from benchmarks.known_mutants import BY_HAND, EQUIVALENT

ROOT = Path(__file__).resolve().parents[1]
THRESHOLD = 0.95
_TREE = ("sf_fixpo", "envs", "launcher", "benchmarks", "tests", "examples", "pyproject.toml")

L, A = "tests/learning/test_", "tests/algorithm/test_"
_OF_THE_SELF_TEST = (
    "a_network_that_branches_on_training_is_refused_by_name",
    "noise_in_eval_mode_is_refused",
    "a_core_that_treats_sequences_otherwise_is_refused",
    "a_forward_of_its_own_is_refused",
    "the_self_test_leaves_nothing_behind",
    "it_is_made_once_and_again_after_a_resume",
    "the_parameters_of_the_policy_are_all_but_the_critics",
)
TESTS = {
    "algorithm/losses": [f"{A}losses.py", f"{L}improvement.py"],
    "algorithm/multiplier": [f"{A}multiplier.py", f"{A}parity.py"],
    "algorithm/trust_region": [f"{A}trust_region.py", f"{A}parity.py", f"{L}verification.py"],
    "algorithm/config": [f"{A}config.py", f"{L}verification.py"],
    "algorithm/flags": [f"{A}config.py"],
    "learning/verification": [f"{L}verification.py", f"{L}any_network.py", f"{L}learner.py"],
    "learning/publication": [f"{L}verification.py", f"{L}learner.py"],
    "learning/mailbox": [f"{L}mailbox.py"],
    "learning/state": [f"{L}state.py", f"{L}verification.py"],
    "learning/sequences": [f"{L}improvement.py", f"{L}batches.py"],
    "learning/policy": [f"{L}policy.py", f"{L}improvement.py", f"{L}batches.py", f"{L}any_network.py"],
    "learning/batch": [f"{L}batch.py", f"{L}improvement.py", f"{L}batches.py", f"{L}learner.py", f"{L}any_network.py"],
    "learning/improvement": [f"{L}improvement.py", f"{L}learner.py", f"{L}batches.py"],
    "learning/graphs": [f"{L}graphs.py"],
    "learning/statistics": [
        f"{L}statistics.py",
        f"{L}batches.py",
        f"{L}guarantee.py::test_statistics_of_the_normaliser_are_let_in_slowly",
        f"{L}guarantee.py::test_minibatches_without_valid_samples_are_skipped",
        f"{L}guarantee.py::test_60_percent_invalid_samples",
    ],
    "learning/self_test": [
        f"{L}self_test.py",
        *(f"{L}any_network.py::test_{name}" for name in _OF_THE_SELF_TEST),
        f"{L}any_network.py::test_every_version_of_any_network_is_inside_the_bound_and_a_resumed_one_too",
    ],
    "learning/ranks": [f"{L}ranks.py"],
    "learning/meeting": [f"{L}meeting.py"],
    "learning/beginning": [f"{L}learner.py", f"{L}improvement.py", f"{L}guarantee.py"],
    "learning/learner": [f"{L}statistics.py", f"{L}verification.py", f"{L}learner.py", f"{L}improvement.py", f"{L}guarantee.py"],
}
# Of these only the mutants made by hand: their mechanics are those of the parts above.
BY_HAND_ONLY = ("learning/learner", "learning/beginning")

# Minutes of updates on old data: what they would notice, others notice sooner.
_LEFT_OUT = "test_old_data"

# One replacement of each operator is enough to see whether a test looks at it.
_OPERATORS = re.compile(
    r"core/(ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|LShift_RShift|BitOr_BitAnd|BitAnd_BitOr)"
    r"|ReplaceComparisonOperator_(Lt_LtE|LtE_Lt|Gt_GtE|GtE_Gt|Lt_Gt|LtE_Gt|Gt_Lt|GtE_Lt|Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is)"
    r"|ReplaceUnaryOperator_(USub_UAdd|Invert_Not|Delete_(Not|USub|Invert))|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    r"|ReplaceAndWithOr|ReplaceOrWithAnd|AddNot|NumberReplacer|ZeroIterationForLoop|ReplaceBreakWithContinue"
    r"|ReplaceContinueWithBreak|RemoveDecorator|ExceptionReplacer)"
)


@dataclass(frozen=True)
class Mutant:
    """One broken version of one file.

    Attributes:
        module: such as `learning/verification`.
        operator: that made it.
        line: number of the first line that differs.
        before: that line.
        after: as mutated.
        source: the whole file.
    """

    module: str
    operator: str
    line: int
    before: str
    after: str
    source: str


def _program(source: str) -> str:
    """What of a source file runs: without docstrings and annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg):
                if argument is not None:
                    argument.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return ast.dump(tree)


def _mutant(module: str, operator: str, source: str, mutated: str) -> Mutant:
    old, new = source.splitlines(), mutated.splitlines()
    changes = [c for c in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if c[0] != "equal"]
    _, i, _, j, _ = changes[0]
    return Mutant(module, operator, i + 1, old[i].strip(), new[j].strip() if j < len(new) else "", mutated)


def mutants_of(module: str) -> Iterator[Mutant]:
    """Every mutant of a file, each once."""
    # by name, because only the extra `mutants` brings it
    mutate_code = importlib.import_module("cosmic_ray.mutating").mutate_code
    plugins = importlib.import_module("cosmic_ray.plugins")
    get_operator, operator_names = plugins.get_operator, plugins.operator_names

    source = (ROOT / "sf_fixpo" / f"{module}.py").read_text()
    seen = {_program(source)}
    broken = (
        [(name, mutate_code) for name in operator_names() if _OPERATORS.fullmatch(name)] if module not in BY_HAND_ONLY else []
    )
    for name, mutate in broken:
        occurrence = 0
        while (mutated := mutate(source, get_operator(name)(), occurrence)) is not None:
            occurrence += 2 if name.endswith("NumberReplacer") else 1  # it has one more and one less for every number
            try:
                program = _program(mutated)
            except SyntaxError:
                continue
            if program not in seen:
                seen.add(program)
                yield _mutant(module, name.partition("/")[2], source, mutated)
    for file, text, replacement in BY_HAND:
        if file == module:
            if text not in source:
                raise ValueError(f"{file}: the text of a mutant made by hand is gone: {text!r}")
            yield _mutant(module, "by hand", source, source.replace(text, replacement))


class Tree:
    """A copy of the project with a process beside it that runs tests in forks of itself."""

    def __init__(self, folder: Path):
        """Copies the tree and starts the process."""
        self.folder = folder
        for name in _TREE:
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "train_dir")
                shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
            elif source.exists():
                shutil.copy(source, folder / name)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def passes(self, tests: list[str], timeout: float) -> bool:
        """Whether the tests pass, within a time."""
        assert self._server.stdin is not None  # noqa: S101 - for the type checker
        assert self._server.stdout is not None  # noqa: S101
        print(json.dumps([tests, timeout]), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline()) == 0

    def survives(self, mutant: Mutant, timeout: float) -> bool:
        """Whether a file's tests pass with this version of it."""
        path = self.folder / "sf_fixpo" / f"{mutant.module}.py"
        before = path.read_text()
        path.write_text(mutant.source)
        try:
            return self.passes(TESTS[mutant.module], timeout)
        finally:
            path.write_text(before)

    def close(self) -> None:
        """Ends the process."""
        self._server.kill()
        self._server.wait()


class NoShrinking:
    """A plugin of pytest: one failing example is enough, nobody reads the smallest one."""

    @staticmethod
    def pytest_collection() -> None:
        """Before the tests are imported, after tests/conftest.py has chosen its settings."""
        from hypothesis import Phase, settings

        settings.register_profile("mutants", settings(), phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutants")


def serve() -> None:
    """The process beside a tree: imports what tests need of others, then runs each request in a fork."""
    import hypothesis.strategies  # noqa: F401
    import pytest
    import sample_factory.algo.learning.learner
    import sample_factory.algo.utils.action_distributions
    import sample_factory.model.actor_critic  # noqa: F401
    import torch._dynamo  # noqa: F401 - which the first optimizer would import

    out = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    for line in sys.stdin:
        tests, timeout = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            sys.path.insert(0, os.getcwd())
            flags = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
            # pytest would rather import hypothesis itself, and rewrite its 121 files each time
            flags += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
            flags += ["-m", "not slow", "-k", f"not {_LEFT_OUT}"]
            os._exit(int(pytest.main([*flags, *tests], plugins=[NoShrinking()])))
        deadline = time.monotonic() + timeout
        status: int | None = None
        while status is None:
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                status = -9
            else:
                time.sleep(0.02)
        os.write(out, f"{status}\n".encode())


Found = dict[str, tuple[int, list[Mutant]]]


def load_results(path: Path | None) -> Found:
    """What an earlier run has kept; nothing where there is no such file."""
    if path is None or not path.exists():
        return {}
    kept = json.loads(path.read_text())
    return {module: (count, [Mutant(**row, source="") for row in rows]) for module, (count, rows) in kept.items()}


def save_results(path: Path | None, found: Found) -> None:
    """Keeps what was found, without the sources."""
    if path is not None:
        rows = {m: (n, [{k: v for k, v in vars(x).items() if k != "source"} for x in alive]) for m, (n, alive) in found.items()}
        path.write_text(json.dumps(rows, indent=1) + "\n")


def hunt(modules: list[str], jobs: int, found: Found, keep: Callable[[Found], None]) -> None:
    """Runs all mutants of some files.

    Args:
        modules: the files.
        jobs: mutants at a time.
        found: by file, how many mutants there were and those that survived; added to.
        keep: called with it after every file.

    Raises:
        RuntimeError: a file's tests fail unbroken.
    """
    with tempfile.TemporaryDirectory() as folder:
        trees: Queue[Tree] = Queue()
        made = [Tree(Path(folder, str(i))) for i in range(jobs)]
        for tree in made:
            trees.put(tree)
        try:
            for module in modules:
                start = time.monotonic()
                if not made[0].passes(TESTS[module], 600):
                    raise RuntimeError(f"{module}: its tests fail as it is")
                timeout = 10 + 4 * (time.monotonic() - start)
                mutants = list(mutants_of(module))

                def survives(mutant: Mutant, timeout: float = timeout) -> bool:
                    tree = trees.get()
                    try:
                        return tree.survives(mutant, timeout)
                    finally:
                        trees.put(tree)

                with ThreadPoolExecutor(jobs) as pool:
                    alive = [m for m, lives in zip(mutants, pool.map(survives, mutants), strict=True) if lives]
                found[module] = (len(mutants), alive)
                keep(found)
                print(f"{module}: {len(mutants)} mutants, {len(alive)} survive, {time.monotonic() - start:.0f} s", flush=True)
                for mutant in alive:
                    print(f"  {mutant.line}: {mutant.before}  ->  {mutant.after}   [{mutant.operator}]", flush=True)
        finally:
            for tree in made:
                tree.close()


def split_survivors(found: Found) -> tuple[int, list[tuple[Mutant, str]], list[Mutant]]:
    """(mutants that are not known to be equivalent, the equivalent with their reasons, what survived beside them)."""
    total = sum(count for count, _ in found.values())
    equivalent, open_ = [], []
    for module, (_, alive) in found.items():
        for mutant in alive:
            reason = EQUIVALENT.get((module, mutant.after))
            if reason is None:
                open_.append(mutant)
            else:
                equivalent.append((mutant, reason))
    return total - len(equivalent), equivalent, open_


def report(found: Found) -> str:
    """The page of docs/."""
    counted, equivalent, open_ = split_survivors(found)
    killed = counted - len(open_)
    lines = [
        "# Mutants",
        "",
        "What `make mutants` found when it was last run: the code broken in one place at a time, each file under its own tests.",
        "",
        f"{killed} of {counted} mutants killed ({100 * killed / max(1, counted):.1f} %), {len(equivalent)} more are equivalent.",
        "",
        "| file | mutants | survive |",
        "|---|---|---|",
        *(f"| `{module}` | {found[module][0]} | {len(found[module][1])} |" for module in TESTS if module in found),
    ]

    def row(mutant: Mutant, *more: str) -> str:
        cells = (f"`{mutant.module}`:{mutant.line}", f"`{mutant.before}`", f"`{mutant.after}`", *more)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    if equivalent:
        lines += ["", "## Equivalent", "", "| where | line | as mutated | why nothing can notice |", "|---|---|---|---|"]
        lines += [row(mutant, reason) for mutant, reason in equivalent]
    if open_:
        lines += ["", "## Survivors", "", "| where | line | as mutated |", "|---|---|---|", *map(row, open_)]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="files by the end of their names, separated by commas; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that are tried at a time")
    parser.add_argument("--results", type=Path, help="JSON file that keeps what was found between runs")
    parser.add_argument("--report", type=Path, help="where the page for docs/ goes")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.serve:
        serve()
        return 0
    only = [name for name in args.only.split(",") if name]
    modules = [module for module in TESTS if not only or any(module.endswith(name) for name in only)]
    if importlib.util.find_spec("cosmic_ray") is None:
        parser.error("needs Cosmic Ray: pip install -e '.[mutants]'")
    found = load_results(args.results)
    todo = modules if only else [module for module in modules if module not in found]
    try:
        hunt(todo, args.jobs, found, lambda rows: save_results(args.results, rows))
    except RuntimeError as exc:
        print(f"benchmarks.mutants: {exc}", file=sys.stderr)
        return 2
    if args.report:
        args.report.write_text(report(found))
    counted, _, open_ = split_survivors(found)
    print(f"{counted - len(open_)} of {counted} killed")
    return 0 if len(open_) <= (1 - THRESHOLD) * counted else 1


if __name__ == "__main__":
    sys.exit(main())
