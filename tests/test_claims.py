"""The twenty claims on made-up rows: data that agree, data that disagree, and too little of either."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import claims as program
from benchmarks import results_page
from benchmarks.figures import evidence, plan, rows
from benchmarks.figures.claims import judge_all
from benchmarks.figures.evidence import AGREES, DISAGREES, NOT_ENOUGH

MUJOCO, TEN = plan.MUJOCO, plan.MT10


def run(figure, variant, env, seed, value, frames=1e6, column="return", **more):
    """Ten rows of a run that rises to `value`, with 12 updates of 160 primary steps in each."""
    algo = {"appo": "APPO", "trpo": "TRPO", "kl_projection": "KL_PROJECTION"}.get(variant.split("_")[-1], "FIXPO")
    algo = "KL_PROJECTION" if variant == "kl_projection" else "APPO" if variant.startswith("appo") else algo
    common = dict.fromkeys(rows.COLUMNS) | {"version": rows.VERSION, "figure": figure, "scale": "laptop", "variant": variant}
    common |= {"env": env, "algo": algo, "seed": seed, "commit": "c", "machine": "m"}
    common |= {"updates": 12, "primary_steps": 1920, "fixup_steps": 12, "fixup_max": 2, "kl_max_rel": 0.9, "kl_median_rel": 0.33}
    common |= {"over_bound": 0, "beta_q05": 6.0, "beta_q50": 9.0, "beta_q95": 12.0, "update_seconds": 0.5}
    noisy = value + 0.01 * (seed % 5 - 2) * (abs(value) or 1.0)
    return [
        common | {"steps": frames * i / 10, "frames": frames * i / 10, "seconds": 10.0 * i, column: noisy * i / 10} | more
        for i in range(1, 11)
    ]


def many(figure, variant, envs, value, seeds=5, **more):
    return [r for env in envs for seed in range(seeds) for r in run(figure, variant, env, seed, value, **more)]


WALKER = ("mujoco_Walker2d",)
WINS = ("mujoco_Walker2d", "mujoco_Swimmer", "mujoco_InvertedDoublePendulum")
OTHERS = ("mujoco_HalfCheetah", "mujoco_Hopper", "mujoco_Reacher")


def figure_1(steps_by_c):
    return [r for c, s in steps_by_c.items() for r in many("1", f"c_beta_{c}", WALKER, 9.0, seeds=3, fixup_steps=12 * s)]


def figure_2(one, three):
    found = many("2", "c_beta_1", WALKER, 1.0, seeds=1, kl_median_rel=one, fixup_steps=99)
    return found + many("2", "c_beta_3", WALKER, 1.0, seeds=1, kl_median_rel=three)


def figure_3(ours_on_wins, dip):
    found = many("3", "fixpo", WINS, ours_on_wins, frames=1e7) + many("3", "fixpo", OTHERS, 80.0, frames=1e7)
    for name in ("appo", "trpo", "kl_projection"):
        found += many("3", name, MUJOCO, 90.0, frames=1e7)
    # who falls in the middle of training
    return [r | {"return": -50.0 + r["seed"]} if r["steps"] == 6e6 and r["variant"] in dip else r for r in found]


def figure_4(std):
    # Walker2d has six actions of a Gaussian
    found = many("4", "fixpo", WALKER, 8.5 + std, column="entropy") + many("4", "appo", WALKER, 8.5, column="entropy")
    return [r | {"return": 1.0} for r in found]


def figure_5(no_fixup, c_beta_1, last, last_steps, constant, low, over):
    envs = MUJOCO[:3]
    beta = {"beta_q05": low}
    return [
        *many("5", "fixpo", envs, 50.0, **beta),
        *many("5", "no_fixup", envs, no_fixup, over_bound=over, **beta),
        *many("5", "c_beta_1", envs, c_beta_1, **beta),
        *many("5", "last_epoch", envs, last, fixup_steps=last_steps, **beta),
        *many("5", "beta_10", envs, constant),
    ]


def figure_6(projection_end, early, fixpo_timed):
    found = many("6", "fixpo", TEN, 0.8, seeds=3, frames=1e7, column="success")
    found += many("6", "appo", TEN, 0.8, seeds=3, frames=1e7, column="success")
    slow = many("6", "kl_projection", TEN, projection_end, seeds=3, frames=1e7, column="success")
    slow = [r | {"success": early + 0.001 * r["seed"]} if r["steps"] <= 1e6 else r for r in slow]
    slow = [r | {"seconds": 2 * r["seconds"] if fixpo_timed else r["seconds"] / 4} for r in slow]
    return found + slow


def robustness(bad, mean_spread):
    names = [name for name in plan.FIGURES["robustness"].variants if not name.startswith("mean")]
    found = [r for name in names for r in many("robustness", name, WALKER, bad if name == "c_beta_2" else 50.0, seeds=3)]
    for i, eps in enumerate((0.1, 0.2, 0.5)):
        found += many("robustness", f"mean_eps_kl_{eps}", WALKER, 50.0 - mean_spread * i, seeds=3)
    return found


def two(figure, names, values, envs, column="return", **more):
    return [r for n, v in zip(names, values, strict=True) for r in many(figure, n, envs, v, column=column, **more)]


def agreeing():
    return {
        "1": figure_1({1: 120, 2: 9.9, 3: 6, 5: 2, 10: 0.5}),
        "2": figure_2(0.95, 0.33),
        "3": figure_3(100.0, ("appo", "trpo")),
        "4": figure_4(1.0),
        "5": figure_5(no_fixup=60.0, c_beta_1=10.0, last=48.0, last_steps=3, constant=70.0, low=6.0, over=3),
        "6": figure_6(0.8, early=0.1, fixpo_timed=True),
        "robustness": robustness(50.0, 20.0),
        "batch": two("batch", ("appo_50000", "appo_10000"), (0.8, 0.3), TEN[:5], "success", seeds=3),
        "7": two("7", ("transfer_fixpo", "transfer_appo"), (0.8, 0.3), TEN[:5], "success", seeds=3),
        "8": two("8", ("fixpo", "appo"), (9.0, 9.1), plan.LEVELS, frames=1e8),
        "multitask": two("multitask", ("per_task", "shared"), (9.0, 3.0), ("dmlab_30",)),
        "atari": many("atari", "fixpo", ("atari_Pong",), 17.0, seeds=3),
    }


def disagreeing():
    figures = {
        "1": figure_1({1: 12, 2: 9.9, 3: 12, 5: 2, 10: 0.5}),
        "2": figure_2(0.4, 0.33),
        "3": figure_3(50.0, ("fixpo",)),
        "4": figure_4(-1.0),
        "5": figure_5(no_fixup=30.0, c_beta_1=70.0, last=80.0, last_steps=30, constant=30.0, low=0.0, over=0),
        "6": figure_6(0.5, early=0.0, fixpo_timed=False),
        "robustness": robustness(10.0, 0.0),
        "batch": two("batch", ("appo_50000", "appo_10000"), (0.3, 0.8), TEN[:5], "success", seeds=3),
        "7": two("7", ("transfer_fixpo", "transfer_appo"), (0.3, 0.8), TEN[:5], "success", seeds=3),
        "8": two("8", ("fixpo", "appo"), (3.0, 9.1), plan.LEVELS, frames=1e8),
        "multitask": two("multitask", ("per_task", "shared"), (3.0, 9.0), ("dmlab_30",)),
        "atari": many("atari", "fixpo", ("atari_Pong",), -20.0, seeds=3),
    }
    figures["1"] = [r | {"kl_max_rel": 1.2, "primary_steps": 1920} for r in figures["1"]]
    return figures


def verdicts(figures):
    return {claim.number: (finding.verdict, finding.why) for claim, finding in judge_all(figures)}


@pytest.fixture(scope="module")
def on_agreeing():
    return verdicts(agreeing())


@pytest.fixture(scope="module")
def on_disagreeing():
    return verdicts(disagreeing())


@pytest.mark.parametrize("number", range(1, 21))
def test_a_claim_is_held_against_rows_that_agree_and_rows_that_do_not(number, on_agreeing, on_disagreeing):
    assert on_agreeing[number][0] == AGREES, on_agreeing[number]
    assert on_disagreeing[number][0] == DISAGREES, on_disagreeing[number]


def test_nothing_is_said_of_nothing():
    found = judge_all({})
    assert [claim.number for claim, _ in found] == list(range(1, 21))
    assert {finding.verdict for _, finding in found} == {NOT_ENOUGH}
    assert all(finding.why for _, finding in found)


def test_one_seed_says_only_whether_the_bound_held_and_how_an_update_went():
    """The other claims are about averages over seeds."""
    one = {number: [r for r in rows_ if r["seed"] == 0] for number, rows_ in agreeing().items()}
    said = {number for number, (verdict, _) in verdicts(one).items() if verdict != NOT_ENOUGH}
    assert said == {1, 5}


def test_short_runs_say_nothing_of_long_ones():
    figures = agreeing()
    for number in ("3", "6", "8"):
        figures[number] = [r | {"frames": r["frames"] / 10} for r in figures[number]]
    found = verdicts(figures)
    assert {number for number in (6, 15, 18) if found[number][0] == NOT_ENOUGH} == {6, 15, 18}
    assert found[7][0] == AGREES


def test_an_interval_that_holds_zero_settles_nothing():
    assert evidence.settled(*evidence.larger([1, 9, 5, 3, 7], [2, 8, 6, 3, 7])[:1], 1, "x").verdict == NOT_ENOUGH
    assert evidence.larger([5, 5.1, 4.9], [1, 1.1, 0.9])[0] == 1
    wide = evidence.alike({"a": [1.0, 9.0, 5.0]}, {"a": [5.0, 5.0, 5.0]}, 0.2)
    assert wide.verdict == NOT_ENOUGH


def test_a_projection_that_is_slower_by_steps_disagrees():
    figures = {"6": figure_6(0.8, early=0.01, fixpo_timed=True)}
    assert verdicts(figures)[15][0] == DISAGREES


def test_one_task_takes_five_seeds():
    with pytest.raises(evidence.MissingError, match="fewer than 5"):
        evidence.larger_over_tasks({"a": [1, 2, 3]}, {"a": [7, 8, 9]})


def test_the_program_reads_the_csvs_and_refuses_those_of_another_scale(tmp_path, capsys):
    rows.write(tmp_path / rows.csv_name("1", "laptop"), agreeing()["1"])
    assert program.main([f"--results={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| 2 | less than 5 % extra gradient steps | abstract | agrees | 3.75 % of the primary steps |" in lines
    assert sum(NOT_ENOUGH in line for line in lines) == 16
    (tmp_path / rows.csv_name("1", "laptop")).rename(tmp_path / rows.csv_name("1", "paper"))
    assert program.main([f"--results={tmp_path}", "--scale=paper"]) == 2
    assert "holds figure 1 at scale laptop" in capsys.readouterr().err
    assert program.main(["--scale=tiny"]) == 2
    assert "smoke, laptop, paper" in capsys.readouterr().err


def test_the_page_says_what_has_not_been_run(tmp_path):
    page = tmp_path / "results.md"
    where = [f"--results={tmp_path}", f"--page={page}"]
    assert results_page.main(where) == 0
    assert "Nothing has been run: 1 (15 runs of 1M frames)" in page.read_text()
    rows.write(tmp_path / rows.csv_name("3", "laptop"), two("3", ("fixpo", "appo"), (9.0, 3.0), WINS, seeds=2))
    assert results_page.main([*where, "--check"]) == 1
    assert results_page.main(where) == 0
    assert results_page.main([*where, "--check"]) == 0
    text = page.read_text()
    assert "12 runs, seeds 0, 1, commit c, m; 108 of 120 planned runs have not been made." in text
    assert "Probability that a run of fixpo is above one of: appo 1.00." in text
    assert "| mujoco_Swimmer | fixpo | 2 |" in text
    assert "### Not run\n\n1 (15 runs" in text
    (tmp_path / rows.csv_name("3", "laptop")).write_text("sweep\n1\n")
    assert results_page.main(where) == 2


def test_the_committed_page_is_what_the_committed_rows_make():
    root = Path(__file__).parents[1]
    assert results_page.main([f"--results={root / 'benchmarks/results'}", f"--page={root / 'docs/results.md'}", "--check"]) == 0
