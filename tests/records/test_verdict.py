"""Verdicts on made-up action parameters: one mean of unit variance, so that the KL is half the squared distance, and others."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from audited import OLDER, PREVIOUS, VERSION

from sf_fixpo.records.audit_files import AuditRecord
from sf_fixpo.records.verdict import _same_bits, judge

EPS_KL = 0.5  # a distance of 1
NO_MEMORY = type("Cfg", (), {"use_rnn": False})()
NAN, INF = math.nan, math.inf


def means(*values: float) -> torch.Tensor:
    """[N, 2] parameters of Gaussians of standard deviation 1."""
    return torch.tensor([[value, 0.0] for value in values], dtype=torch.float64)


def make_record(behaviour: torch.Tensor, **changes) -> AuditRecord:
    count = len(behaviour)
    record = AuditRecord(
        obs={"obs": torch.zeros(count, 1)},
        rnn_states=torch.zeros(count, 1),
        dones=torch.zeros(count, dtype=torch.bool),
        valids=torch.ones(count, dtype=torch.bool),
        action_logits=behaviour,
        policy_version_of=torch.full((count,), OLDER),
        task_id=None,
        previous_state_dict={},
        state_dict={},
        policy_version=VERSION,
        previous_policy_version=PREVIOUS,
        eps_kl=EPS_KL,
        kl_direction="pi_ref",
        kl_stat="max",
        reference="behaviour",
        action_spec=(("gaussian", behaviour.shape[1] // 2),),
        fixup="every_epoch",
    )
    return replace(record, **changes)


def verdict(behaviour, previous, pi, same=False, **changes):
    """On one-dimensional means, a list of them or one."""
    behaviour, previous, pi = (means(*np.atleast_1d(x)) for x in (behaviour, previous, pi))
    return judge(make_record(behaviour, **changes), NO_MEMORY, pi, previous, same, "file", 0)


def at(share: float) -> float:
    """The distance at which the KL is this share of the bound."""
    return math.sqrt(2 * EPS_KL * share)


# behaviour at 0; previous, pi, whether it holds, whether the state is stale
CASES = {
    "near the behaviour policy": (0.5, 0.9, True, False),
    "at the bound": (0.5, 1.0, True, False),
    "near the previous policy alone": (0.6, 1.1, False, False),
    "stale, near the previous policy": (1.2, 2.1, True, True),
    "stale, too far from the previous policy": (1.2, 2.3, False, True),
    "stale, where the behaviour policy is": (1.2, 0.0, False, True),
    "a previous policy that is no number": (NAN, 0.5, False, True),
    "a policy that is no number": (0.5, NAN, False, False),
    "a stale policy that is no number": (1.2, NAN, False, True),
    "a policy infinitely far": (0.5, INF, False, False),
    "undecided, by the behaviour policy": (at(0.999), -0.2, True, False),
    "undecided, by the previous policy": (at(0.999), 1.5, True, True),
    "undecided, by neither": (at(0.999), 2.5, False, True),
    "undecided from there on": (at(1 - 1.99e-3), 1.5, True, True),
    "not yet undecided": (at(1 - 2.01e-3), 1.5, False, False),
    "undecided up to the bound": (at(1 - 1e-12), -0.2, True, False),
    "no longer undecided": (at(1 + 1e-12), -0.2, False, True),
}


@pytest.mark.parametrize(("previous", "pi", "holds", "stale"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("others", [0, 3])
def test_each_state_has_the_bound_of_its_kind_and_no_other(previous, pi, holds, stale, others):
    """Beside states that are where they were."""
    zeros = [0.0] * others
    finding = verdict([*zeros, 0.0], [*zeros, previous], [*zeros, pi])
    assert (finding.holds, finding.stale, finding.checked) == (holds, int(stale), others + 1)
    assert finding.worst_state == others or finding.kl_worst == 0.0


def test_an_undecided_state_that_needs_the_previous_policy_is_no_state_of_the_region():
    finding = verdict([0.0, 0.0], [at(0.999), 0.0], [1.5, 0.3])
    assert finding.kl_max == pytest.approx(0.045)
    assert finding.kl_max_stale == pytest.approx(0.5 * (1.5 - at(0.999)) ** 2)


def test_verdicts_are_those_of_the_definition_written_out():
    rng = np.random.default_rng(0)
    for _ in range(200):
        behaviour, previous, pi = rng.normal(scale=[[0.1], [0.8], [0.9]], size=(3, 6))
        valids = rng.random(6) < 0.8
        shares = []
        for b, q, p in zip(behaviour[valids], previous[valids], pi[valids], strict=True):
            centre = b if 0.5 * (q - b) ** 2 <= EPS_KL else q
            shares.append(0.5 * (p - centre) ** 2 / EPS_KL)
        for stat, bounded in (("max", np.max), ("mean", np.mean)):
            finding = verdict(behaviour, previous, pi, valids=torch.tensor(valids), kl_stat=stat)
            assert finding.checked == valids.sum()
            if shares:
                assert finding.kl_bounded == pytest.approx(bounded(shares) * EPS_KL, rel=1e-12)
            assert finding.holds == (len(shares) > 0 and bounded(shares) <= 1)


def test_with_the_previous_policy_as_reference_no_state_is_stale():
    finding = verdict([0.0, 0.0], [1.2, 5.0], [2.1, 5.9], reference="previous")
    assert (finding.holds, finding.stale, finding.kl_max_stale) == (True, 0, None)
    assert not verdict(0.0, 1.2, 2.3, reference="previous").holds
    assert not verdict(0.0, 0.6, 1.7, reference="previous").holds


def test_a_behaviour_policy_that_is_no_number_makes_a_state_stale():
    assert verdict(NAN, 0.5, 1.4).holds
    assert not verdict(NAN, 0.5, 1.6).holds


def test_all_states_may_be_stale_and_are_checked():
    finding = verdict([0.0, 0.0], [1.2, 1.2], [1.3, 1.5])
    assert (finding.checked, finding.stale, finding.holds) == (2, 2, True)
    assert math.isnan(finding.kl_max)
    assert finding.kl_max_stale == finding.kl_bounded == pytest.approx(0.045)
    assert not verdict([0.0, 0.0], [1.2, 1.2], [1.3, 2.5]).holds


def test_invalid_states_are_bound_by_nothing():
    valids = torch.tensor([True, False])
    for wrong in (9.0, NAN):
        finding = verdict([0.0, wrong], [0.1, wrong], [0.2, wrong], valids=valids)
        assert (finding.holds, finding.checked, finding.worst_state) == (True, 1, 0)
    nothing = verdict([0.0, 0.0], [0.1, 0.1], [0.2, 0.2], valids=torch.zeros(2, dtype=torch.bool))
    assert (nothing.holds, nothing.checked, nothing.worst_state) == (False, 0, -1)
    assert "0 states checked" in nothing.describe()


def test_the_mean_is_over_all_states_each_to_its_own_reference():
    finding = verdict([0.0, 0.0], [0.0, 2.0], [1.2, 2.4], kl_stat="mean")
    assert finding.kl_bounded == pytest.approx((0.5 * 1.2**2 + 0.5 * 0.4**2) / 2)
    assert finding.holds
    assert finding.kl_max > EPS_KL
    assert finding.worst_state == 0
    assert not verdict([0.0, 0.0], [0.0, 2.0], [1.2, 2.9], kl_stat="mean").holds
    assert not verdict([0.0, 0.0], [0.0, 2.0], [0.0, NAN], kl_stat="mean").holds


def test_the_direction_is_the_files():
    wide, narrow = torch.tensor([[0.0, 0.3]], dtype=torch.float64), torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    ratio = math.exp(0.3)
    expected = {"pi_ref": -0.3 + ratio**2 / 2 - 0.5, "ref_pi": 0.3 + 1 / (2 * ratio**2) - 0.5}
    for direction, value in expected.items():
        record = make_record(narrow, kl_direction=direction)
        assert judge(record, NO_MEMORY, wide, narrow, False, "x", 0).kl_max == pytest.approx(value, rel=1e-12)
        assert judge(replace(record, reference="previous"), NO_MEMORY, wide, narrow, False, "x", 0).kl_max == pytest.approx(value)


def test_an_update_that_was_undone_is_where_it_was_also_where_that_is_no_number():
    for reference in ("previous", "behaviour"):
        finding = verdict([0.0, 0.0], [0.1, NAN], [0.1, NAN], same=True, reference=reference)
        assert (finding.holds, finding.undone) == (True, 1)
        assert "1 without a number" in finding.describe()
        finding = verdict([0.0, 0.0], [0.1, NAN], [0.1, NAN], same=False, reference=reference)
        assert (finding.holds, finding.undone) == (False, 0)


def test_weights_are_the_same_bit_by_bit_or_not():
    state = {"a": torch.tensor([[0.0, NAN]]), "count": torch.tensor(3), "b": torch.ones(2, 3).t()}
    assert _same_bits(state, {name: x.clone() for name, x in state.items()})
    for change in ({"a": torch.tensor([[-0.0, NAN]])}, {"a": torch.tensor([[0.0, 0.0]])}, {"count": torch.tensor(4)}):
        assert not _same_bits(state, {**state, **change})


# The policy that acted


@pytest.mark.parametrize(
    ("recorded", "changes", "broken"),
    [
        ([0.5, 1.0], {}, None),
        ([0.5 + 1e-6, 1.0], {}, None),
        ([0.5, 1.0 + 0.019], {}, None),
        ([0.5, 1.0 + 0.021], {}, 1),
        ([0.5, NAN], {}, 1),
        ([0.5, 9.0], {"policy_version_of": torch.tensor([PREVIOUS, OLDER])}, None),
        ([0.5, 9.0], {"valids": torch.tensor([True, False])}, None),
    ],
    ids=["the same", "rounding", "just small enough", "too large", "not a number", "of an older version", "invalid"],
)
def test_what_the_previous_version_collected_must_come_from_it(recorded, changes, broken):
    changes = {"policy_version_of": torch.tensor([PREVIOUS, PREVIOUS]), **changes}
    finding = verdict(recorded, [0.5, 1.0], [0.5, 1.0], reference="previous", **changes)
    assert finding.acted_other == broken
    compared = [abs(r - p) for r, p, v in zip(recorded, [0.5, 1.0], changes["policy_version_of"], strict=True) if v == PREVIOUS]
    if "valids" not in changes and not any(map(math.isnan, compared)):
        assert finding.acted == pytest.approx(max(compared), rel=1e-6)


def test_without_a_sample_of_the_previous_version_nothing_is_said_of_the_actors():
    finding = verdict([0.5], [9.0], [9.0], reference="previous")
    assert (finding.acted, finding.acted_other) == (None, None)
    assert "actors" not in finding.describe()


def test_where_the_previous_weights_give_no_number_nothing_is_compared():
    finding = verdict([0.5, 1.0], [0.5, NAN], [0.5, NAN], same=True, policy_version_of=torch.tensor([PREVIOUS, PREVIOUS]))
    assert (finding.acted, finding.acted_other) == (0.0, None)


def test_a_memory_of_another_versions_steps_is_not_compared():
    """Two pieces of three steps: what a state carries ends with an episode, and with a piece."""
    cfg = type("Cfg", (), {"use_rnn": True, "rollout": 3, "recurrence": -1})()
    other = [False, True, False, False, False, False]  # the last of its first piece carries what step 1 left
    for dones, valids, clean in (
        ([0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 3, 4, 5]),
        ([0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 2, 3, 4, 5]),
        ([0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 1, 1], [0]),
        ([0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 1, 1], [0, 5]),
    ):
        for state in range(6):
            behaviour = means(*(1.0 if i == state else 0.0 for i in range(6)))
            record = make_record(
                behaviour,
                reference="previous",
                dones=torch.tensor(dones).bool(),
                valids=torch.tensor(valids).bool(),
                policy_version_of=torch.tensor([OLDER if x else PREVIOUS for x in other]),
            )
            finding = judge(record, cfg, means(*[0.0] * 6), means(*[0.0] * 6), False, "x", 0)
            assert finding.acted_other == (state if state in clean else None)


# What a log can say


def test_a_float32_check_may_have_called_an_undecided_state_stale_or_not():
    finding = verdict([0.0] * 3, [0.0, at(0.999), at(0.999)], [0.2, 0.9, 0.1])
    assert finding.loggable == pytest.approx((0.02, 0.405))
    assert math.isnan(finding.loggable_stale[0])
    assert finding.loggable_stale[1:] == pytest.approx([0.5 * (0.9 - at(0.999)) ** 2, 0.5 * (0.1 - at(0.999)) ** 2])
    plain = verdict([0.0, 0.0], [0.1, 1.2], [0.2, 1.3])
    assert (plain.loggable, plain.loggable_stale) == ((plain.kl_max,), (plain.kl_max_stale,))
