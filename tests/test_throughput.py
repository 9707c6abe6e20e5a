"""What the benchmarks of whole runs and of several ranks make of their figures."""

from __future__ import annotations

import json

import pytest

from benchmarks import ranks, throughput

LOG = """[2026-11-28 22:23:09,000][1] Fps is (10 sec: nan, 60 sec: nan). Total num frames: 0. Throughput: 0: nan
[2026-11-28 22:23:14,000][1] Fps is (10 sec: nan, 60 sec: nan). Total num frames: 1000. Throughput: 0: nan
[2026-11-28 22:23:16,500][1] Saving something
[2026-11-28 22:23:24,000][1] Fps is (10 sec: 639.6, 60 sec: 639.6). Total num frames: 21000. Throughput: 0: 201.5
"""


def test_speed_is_the_slope_between_the_first_report_with_frames_and_the_last():
    assert throughput.reported_speed(LOG) == pytest.approx(2000.0)
    with pytest.raises(ValueError, match=r"1 report\(s\) with frames: the run was too short"):
        throughput.reported_speed("\n".join(LOG.split("\n")[:2]))


def test_shares_are_of_the_time_that_the_frames_after_the_first_update_took():
    rows = [
        {"env_steps": 100, "seconds": {"self_test": 9.0}},
        {"env_steps": 200, "seconds": {"primary": 0.2, "check": 0.1}},
        {"env_steps": 300, "seconds": {"primary": 0.3}},
    ]
    assert throughput.shares(rows, 100.0) == pytest.approx({"check": 0.05, "primary": 0.25})
    assert throughput.shares(rows[:1], 100.0) == {}


def test_what_is_measured_already_is_read_and_not_measured_again(tmp_path, capsys):
    known = tmp_path / "known.json"
    rows = [{"suite": "mujoco", "algo": algo, "pair": 0, "frames_per_s": speed, "learner_share": share, "phases": {}}
            for algo, speed, share in (("simulator", 4000.0, None), ("FIXPO", 980.0, 0.5), ("APPO", 1000.0, None))]  # fmt: skip
    known.write_text(json.dumps(rows))
    assert throughput.main(["--suites=mujoco", f"--json={known}"]) == 0
    printed = capsys.readouterr().out
    assert [text in printed for text in ("0.98", "24 %", "25 %", "50 %")] == [True] * 4


@pytest.mark.parametrize(("count", "expected"), [(1, 0.0), (2, 10 * 0.001 + 1e6 / 1e8), (4, 10 * 0.001 + 1.5 * 1e6 / 1e8)])
def test_predicted_seconds_are_those_of_a_ring(count, expected):
    assert ranks.predicted_seconds(10, 1e6, count, latency=0.001, bandwidth=1e8) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("program", "flag", "message"),
    [
        (throughput, "--suites=chess", "no chess; must be of stand_in"),
        (throughput, "--seconds=1", "must be integers >= 20"),
        (ranks, "--shapes=chess", "no chess; must be of"),
        (ranks, "--ranks=0", "must be integers >= 1"),
    ],
)
def test_bad_input_is_refused_by_name(program, flag, message, capsys):
    with pytest.raises(SystemExit) as end:
        program.main([flag])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
