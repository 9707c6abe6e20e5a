"""The audit: what it finds in the files and the log of an experiment, and what it says.

Verdicts on made-up numbers are in records/test_verdict.py, networks and formulas in records/test_recomputation.py, what can be
wrong with a file in records/test_audit_files.py.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from audited import COUNT, LSTM, STEPS, VERSION, found, log_row, make_experiment, save, write_log
from sample_factory.algo.utils.context import reset_global_context

from sf_fixpo import audit


@pytest.fixture(autouse=True)
def _registries():
    """What a test registers is gone after it."""
    reset_global_context()
    yield
    reset_global_context()


def run(folder, *flags) -> int:
    return audit.main([str(folder), "--quiet", *flags])


def test_the_audit_needs_nothing_of_the_learner():
    code = "import sys, sf_fixpo.audit; print(*(name for name in sys.modules if name.startswith('sf_fixpo.')))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {name.split(".")[1] for name in loaded} == {"audit", "cli", "records"}


# What is found

WAYS = {
    "previous": {},
    "previous, lstm": LSTM,
    "previous, mean": {"stat": "mean"},
    "behaviour": {"lag_step": 0.02},
    "behaviour, lstm": {"lag_step": 0.02, **LSTM},
}


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_a_file_within_the_bound_passes_and_one_over_it_by_a_hair_does_not(tmp_path, capsys, how):
    contents, _, _, finding = make_experiment(tmp_path, **how)
    assert finding.stale == 0
    assert audit.main([str(tmp_path)]) == 0
    assert "The bound holds" in capsys.readouterr().out
    contents["eps_kl"] = finding.kl_bounded * (1 - 1e-9)
    save(tmp_path, contents)
    assert run(tmp_path) == 1
    message = capsys.readouterr().err
    assert f"version {VERSION}: state {finding.worst_state}: KL {finding.kl_worst!r}" in message
    assert repr(finding.kl_bounded) in message


def distances(contents, cfg) -> torch.Tensor:
    """KL(previous, behaviour) at every valid state, as the audit has it of an update that stays where it is."""
    still = {**contents, "state_dict": contents["previous_state_dict"], "eps_kl": 1e9}
    values = []
    for state in contents["valids"].nonzero().flatten():
        only = torch.zeros(COUNT, dtype=torch.bool)
        only[state] = True
        values.append(found({**still, "valids": only}, cfg).kl_max)
    return torch.tensor(values, dtype=torch.float64)


def test_states_where_the_previous_policy_is_too_far_are_found_without_the_learners_word(tmp_path, capsys):
    contents, _, cfg, _ = make_experiment(tmp_path, lag_step=0.1, step=1e-4)
    sizes = distances(contents, cfg).sort().values
    gap = int((sizes[1:] / sizes[:-1])[10:-10].argmax()) + 10  # between two sizes that are far apart
    contents["eps_kl"] = float((sizes[gap] * sizes[gap + 1]).sqrt())
    finding = found(contents, cfg)
    assert finding.stale == len(sizes) - gap - 1
    assert finding.kl_max == pytest.approx(float(sizes[gap]), rel=0.02)
    assert 0 < finding.kl_max_stale < 1e-3 * contents["eps_kl"]
    save(tmp_path, contents)
    assert audit.main([str(tmp_path)]) == 0
    assert f"{finding.stale} of them stale" in capsys.readouterr().out


def test_a_file_whose_states_are_all_stale_is_checked(tmp_path, capsys):
    contents, _, cfg, _ = make_experiment(tmp_path, lag_step=0.2, step=0.002)
    as_previous = found({**contents, "reference": "previous"}, cfg)
    smallest = float(distances(contents, cfg).min())
    contents["eps_kl"] = as_previous.kl_max * (1 + 1e-9)
    assert contents["eps_kl"] < smallest
    finding = found(contents, cfg)
    assert (finding.stale, finding.checked) == (int(contents["valids"].sum()),) * 2
    save(tmp_path, contents)
    assert run(tmp_path) == 0
    contents["eps_kl"] = as_previous.kl_max * (1 - 1e-9)
    save(tmp_path, contents)
    assert run(tmp_path) == 1
    assert f"state {as_previous.worst_state}: KL {as_previous.kl_max!r}" in capsys.readouterr().err


def doctored_weights(contents, network):
    contents["state_dict"]["action_parameterization.distribution_linear.bias"][0] += 3.0
    return "KL"


def doctored_statistics(contents, network):
    contents["state_dict"]["obs_normalizer.running_mean_std.running_mean_std.obs.running_mean"] += 2.0
    return "KL"


def doctored_previous_weights(contents, network):
    """As if nothing had moved."""
    contents["previous_state_dict"] = contents["state_dict"]
    return "somebody else's function acted"


def doctored_observations(contents, network):
    """As if the policy had seen nothing at which it differs."""
    contents["obs"]["obs"][contents["valids"]] = 0.0
    contents["eps_kl"] = 1e9
    return "somebody else's function acted"


def doctored_records(contents, network):
    state = int((contents["valids"] & (torch.arange(COUNT) % STEPS == 0)).nonzero()[1])  # its memory is what was recorded
    contents["action_logits"][state, 1] += 0.1
    return f"state {state}: somebody else's function acted"


@pytest.mark.parametrize("flags", [{}, LSTM], ids=["mlp", "lstm"])
@pytest.mark.parametrize(
    "doctor", [doctored_weights, doctored_statistics, doctored_previous_weights, doctored_observations, doctored_records]
)
def test_what_is_not_what_was_published_and_seen_is_found(tmp_path, capsys, doctor, flags):
    contents, network, *_ = make_experiment(tmp_path, **flags)
    message = doctor(contents, network)
    save(tmp_path, contents)
    assert run(tmp_path) == 1
    assert message in capsys.readouterr().err


def test_a_number_that_is_none_is_a_violation_at_a_valid_state_and_nothing_at_another(tmp_path, capsys):
    contents, *_ = make_experiment(tmp_path, **LSTM)
    contents["obs"]["obs"][~contents["valids"]] = torch.nan
    save(tmp_path, contents)
    assert run(tmp_path) == 0
    contents["obs"]["obs"][int(contents["valids"].nonzero()[3])] = torch.nan
    contents["eps_kl"] = 1e9
    save(tmp_path, contents)
    assert run(tmp_path) == 1
    assert "KL inf" in capsys.readouterr().err


def test_weights_that_are_no_number_are_a_violation(tmp_path):
    contents, *_ = make_experiment(tmp_path)
    contents["state_dict"]["action_parameterization.distribution_linear.bias"][0] = torch.nan
    contents["eps_kl"] = 1e9
    save(tmp_path, contents)
    assert run(tmp_path) == 1


def test_an_update_that_was_undone_is_inside_where_no_policy_gives_a_number_too(tmp_path, capsys):
    contents, *_ = make_experiment(tmp_path)
    state = int(contents["valids"].nonzero()[3])
    contents["obs"]["obs"][state] = torch.nan
    contents["state_dict"] = {name: x.clone() for name, x in contents["previous_state_dict"].items()}
    save(tmp_path, contents)
    assert audit.main([str(tmp_path)]) == 0
    assert "1 without a number in updates that were undone" in capsys.readouterr().out
    bias = contents["state_dict"]["critic_linear.bias"]  # one bit, and of the critic
    bias.view(torch.int32)[0] ^= 1
    save(tmp_path, contents)
    assert run(tmp_path) == 1
    assert f"state {state}: KL inf" in capsys.readouterr().err


def test_a_file_of_a_run_without_a_fixup_phase_gets_no_verdict(tmp_path, capsys):
    contents, _, _, finding = make_experiment(tmp_path)
    contents.update(fixup="off", eps_kl=finding.kl_max / 3)
    save(tmp_path, contents)
    write_log(tmp_path, [])
    assert audit.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "The bound holds" not in out
    assert "bounds nothing" in out
    assert f"KL max {finding.kl_max:.6f}" in out


# Files and folders


def test_files_are_taken_in_the_order_of_their_versions_for_each_policy(tmp_path):
    contents, *_ = make_experiment(tmp_path)
    for version, name in ((100, "p1_100.pt"), (11, "11.pt")):
        save(tmp_path, {**contents, "policy_version": version}, name)
    write_log(tmp_path, [])
    assert [(f.policy_id, f.version, f.name) for f in audit.audit(tmp_path)] == [
        (0, 10, "10.pt"),
        (0, 11, "11.pt"),
        (1, 100, "p1_100.pt"),
    ]


def test_a_file_under_another_versions_name_is_a_violation(tmp_path):
    contents, *_ = make_experiment(tmp_path)
    save(tmp_path, contents, "11.pt")
    assert run(tmp_path) == 1


def test_a_file_without_a_state_to_check_is_not_success(tmp_path, capsys):
    contents, *_ = make_experiment(tmp_path)
    contents["valids"][:] = False
    save(tmp_path, contents)
    assert run(tmp_path) == 1
    assert "not one state to check" in capsys.readouterr().err


def test_nothing_to_audit_is_not_success(tmp_path, capsys):
    assert run(tmp_path / "absent") == 2
    assert run(tmp_path) == 2
    contents, *_ = make_experiment(tmp_path)
    (tmp_path / "audit" / "10.pt").write_bytes(b"torn")
    assert run(tmp_path) == 2
    save(tmp_path, {key: x for key, x in contents.items() if key != "format"}, logged=False)
    assert run(tmp_path) == 2
    assert "written by an older version" in capsys.readouterr().err
    (tmp_path / "audit" / "10.pt").unlink()
    assert run(tmp_path) == 2
    assert "--audit_every" in capsys.readouterr().err


MODULE = """
import torch
from sample_factory.algo.utils.context import global_model_factory
from sample_factory.model.encoder import Encoder

class MyEncoder(Encoder):
    def __init__(self, cfg, obs_space):
        super().__init__(cfg)
        self.mine = torch.nn.Linear(8, 3)
    def get_out_size(self):
        return 3
    def forward(self, obs_dict):
        return self.mine(obs_dict["obs"]).relu()

global_model_factory().register_encoder_factory(MyEncoder)
"""


def test_a_network_of_the_users_own_needs_its_module(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_audited_networks.py").write_text(MODULE)
    (tmp_path / "broken_networks.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(MODULE, {"__name__": "my_audited_networks"})
    make_experiment(tmp_path)
    reset_global_context()
    assert run(tmp_path) == 2
    message = capsys.readouterr().err
    assert "does not fit the network of config.json" in message
    assert "--import=MODULE" in message
    for wrong in ("absent_networks", "broken_networks"):
        assert run(tmp_path, f"--import={wrong}") == 2
        assert f"--import={wrong}: cannot be imported" in capsys.readouterr().err
    assert run(tmp_path, "--import=json", "--import=my_audited_networks") == 0
    del sys.modules["my_audited_networks"]


# The update log


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([log_row(20, 640), log_row(21, 1280)], 0),
        ([log_row(20, kl_max=0.5)], 0),
        ([log_row(20, kl_max=0.5000001)], 1),
        ([log_row(20, kl_max=float("nan"))], 1),
        ([log_row(20, kl_max_stale=0.5)], 0),
        ([log_row(20, kl_max_stale=0.5000001)], 1),
        ([log_row(20, kl_max_stale=float("nan"))], 1),
        ([log_row(20, kl_max_stale=None)], 0),
        ([log_row(20, 640), log_row(20, 1280)], 1),
        ([log_row(21, 640), log_row(20, 1280)], 1),
        ([log_row(20, 640), log_row(21, 1280), log_row(21, 1280), log_row(22, 1920)], 0),
        ([log_row(20, 640), log_row(20, 640, policy_id=1)], 0),
    ],
    ids=[
        *(
            "grow",
            "at the bound",
            "over",
            "nan",
            "stale at the bound",
            "stale over",
            "stale nan",
            "none stale",
            "repeated",
            "back",
        ),
        *("resumed", "two policies"),
    ],
)
def test_the_log_is_checked(tmp_path, rows, code):
    make_experiment(tmp_path)
    write_log(tmp_path, rows)
    assert run(tmp_path) == code


def test_the_logs_bound_is_the_runs():
    rows = [log_row(kl_max=0.9, kl_max_stale=0.8)]
    with pytest.raises(audit.ViolationError, match=r"kl_max 0\.9 > eps_kl 0\.5"):
        audit.check_log(rows, {"fixup": "last_epoch"})
    assert "bounds nothing" in audit.check_log(rows, {"fixup": "off"})
    assert "1 updates" in audit.check_log(rows, {"kl_stat": "mean"})
    assert "0.9200" in audit.check_log([log_row(kl_max=0.4, kl_max_stale=0.46)], {})


def test_rows_of_another_algorithm_excuse_no_other_row():
    """An experiment may have gone on with another `--algo`; what FixPO has written in it is held to the bound."""
    free = log_row(0, kl_max=0.9, method={"accepted": 1.0})
    said = audit.check_log([free, log_row(1, 256, kl_max=0.4)], {"algo": "FIXPO"})
    assert "1 of 2 updates with an --algo other than FIXPO, which bounds nothing" in said
    for rows in ([free, log_row(1, 256, kl_max=0.9)], [log_row(0, kl_max=0.9), {**free, "policy_version": 1}]):
        with pytest.raises(audit.ViolationError, match=r"kl_max 0\.9 > eps_kl 0\.5"):
            audit.check_log(rows, {"algo": "TRPO"})


def test_the_log_has_to_say_what_was_published(tmp_path, capsys):
    _, _, _, finding = make_experiment(tmp_path)
    eps_kl = finding.eps_kl

    def logged(share, **changes):
        return log_row(VERSION, kl_max=share * eps_kl, **{"eps_kl": eps_kl, **changes})

    for rows, code in (
        ([logged(0.995)], 0),
        ([logged(0.98)], 1),
        ([logged(0.0)], 1),
        ([logged(0.5, policy_id=1), log_row(VERSION + 1, 1280)], 0),  # of other updates
        ([logged(0.5), logged(0.9999)], 0),  # a resumed run has written the file anew
        ([logged(0.5), logged(0.6)], 1),
        ([logged(0.9999, eps_kl=2 * eps_kl)], 1),
        ([logged(0.9999, kl_max_stale=None)], 0),
        ([logged(0.9999, kl_max_stale=0.5 * eps_kl)], 1),
    ):
        write_log(tmp_path, rows)
        assert run(tmp_path) == code, rows
        message = capsys.readouterr().err
        assert ("the log does not say what was published" in message) == bool(code)
    write_log(tmp_path, [logged(0.5)])
    assert run(tmp_path) == 1
    message = capsys.readouterr().err
    assert repr(0.5 * eps_kl) in message
    assert repr(finding.kl_max) in message


def test_without_a_log_that_is_said(tmp_path, capsys):
    make_experiment(tmp_path)
    (tmp_path / "updates.jsonl").unlink()
    assert run(tmp_path) == 0
    assert "none here, not checked" in capsys.readouterr().out
