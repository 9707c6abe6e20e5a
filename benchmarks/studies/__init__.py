"""The runs behind docs/lab_notes.md, one module a question: each is a sweep of the launcher.

    nice -n 19 python -m sf_fixpo.launcher.run --run=benchmarks.studies.<name> --train_dir=train_dir --max_parallel=1
    python -m benchmarks.curves train_dir/<name> --out=benchmarks/results/<name>.csv

Seeds from 100 on are for looking around; what is claimed is measured on seeds 0 to 9, which no setting was chosen on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sample_factory.launcher.run_description import Experiment, RunDescription


def study(name: str, common: str, variants: Mapping[str, str], seeds: Sequence[int]) -> RunDescription:
    """A sweep over variants and seeds, seeds outermost: the first seed of every variant is done before the second begins.

    Args:
        name: of the sweep's folder.
        common: flags of every run.
        variants: their flags by name.
        seeds: of each.
    """
    runs = [
        Experiment(variant, f"python -m sf_fixpo.train {common} {flags}", [{"seed": seed}])
        for seed in seeds
        for variant, flags in variants.items()
    ]
    return RunDescription(name, runs)
