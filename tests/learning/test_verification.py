"""Only what was verified leaves the learner: the verifier's word, the gate, checkpoints, and what may not matter."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import networks
import pytest
import torch
from busy import BUSY
from updates import run, tensors

from benchmarks.synthetic import make_batch, make_learner, small_shape
from sf_fixpo.learning import worker
from sf_fixpo.learning.verification import GuaranteeError, Kind, Verified


@pytest.fixture
def learner(tmp_path):
    return make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# -- the verifier's word ------------------------------------------------------------------------------------------------------


def test_nobody_else_can_make_a_verified(learner):
    with pytest.raises(TypeError, match="by the verifier only"):
        Verified(learner.verifier, learner.verifier.generation, Kind.CHECKED, object())


def test_the_gate_takes_nothing_but_the_verifiers_word(learner):
    run(learner, 1)
    before = tensors(learner.gate.published.model)
    for word in (learner.candidate, learner.candidate.model, None, True):
        with pytest.raises(TypeError, match="only what was verified"):
            learner.gate.publish(word, 99)
    assert same(tensors(learner.gate.published.model), before)
    assert learner.gate.version != 99


def test_a_word_is_for_one_generation(learner):
    run(learner, 1)
    verifier, version = learner.verifier, learner.gate.version
    word = verifier.unchanged()
    verifier.stage(learner.candidate)
    with pytest.raises(GuaranteeError, match="not the one that was verified"):
        learner.gate.publish(word, version + 1)
    assert learner.gate.version == version == int(learner.policy_versions_tensor[0])


def test_another_verifiers_word_counts_for_nothing(learner, tmp_path):
    other = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path / "other")
    for each in (learner, other):
        run(each, 1)
    word = other.verifier.unchanged()
    other.verifier.generation = learner.verifier.generation
    with pytest.raises(GuaranteeError, match="not the one that was verified"):
        learner.gate.publish(word, 99)


def test_a_slice_that_was_not_evaluated_is_not_inside(learner):
    run(learner, 1)
    verifier = learner.verifier
    verifier.stage(learner.candidate)
    assert verifier.verify() is None
    first, second = verifier.slices
    verifier.check([first])
    assert verifier.verify() is None
    verifier.check([second])
    assert verifier.verify() is not None
    verifier.stage(learner.candidate)
    assert verifier.verify() is None, "what was evaluated before the state changed says nothing"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.1])
def test_what_is_no_number_or_over_the_limit_is_not_inside(learner, value):
    run(learner, 1)
    verifier = learner.verifier
    verifier.stage(learner.candidate)
    verifier.check(verifier.slices)
    verifier._values[0] = value
    assert verifier.verify() is None


def test_the_check_keeps_a_part_of_the_bound_free(learner):
    """0.1 %, for the rounding between the learner's float32 and whoever looks after it."""
    assert learner.fixpo.limit == pytest.approx(0.1 * 0.999, rel=1e-12)
    run(learner, 1)
    verifier = learner.verifier
    verifier.stage(learner.candidate)
    verifier.check(verifier.slices)
    verifier._values[0] = 0.1 * 0.9995
    assert verifier.verify() is None


def test_the_limit_itself_is_inside_and_nothing_above_it(learner):
    run(learner, 1)
    verifier = learner.verifier
    verifier.stage(learner.candidate)
    worst = max(verifier.check(verifier.slices))
    verifier.limit = worst
    assert verifier.verify() is not None
    verifier.limit = worst * (1 - 1e-9)
    assert verifier.verify() is None


def begin_again(learner):
    """An update's batch under the verifier once more, as if it were to begin; every state bound to the published policy."""
    batch, progress = learner._update
    batch.bind_to_previous(batch.parameters(learner.gate.published, learner.gate.published.observe(batch.raw_obs), 32))
    learner.verifier.begin(batch, progress, learner.divergence, learner.fixpo.limit, 32)
    return batch, progress, learner.verifier


def test_the_check_looks_at_valid_states_only_and_at_all_of_them(learner):
    run(learner, 2, invalid_share=0.3)
    batch, _, verifier = begin_again(learner)
    verifier.stage(learner.gate.published)
    batch.bound = batch.bound.clone()
    batch.bound[~batch.valids, 0] += 50.0
    assert max(verifier.check(verifier.slices)) < 1e-6
    for state in batch.valids.nonzero().squeeze(1)[:: len(batch) // 8].tolist():
        bound = batch.bound.clone()
        bound[state, 0] += 50.0
        whole, batch.bound = batch.bound, bound
        verifier.stage(learner.gate.published)
        assert max(verifier.check(verifier.slices)) > 1.0, state
        batch.bound = whole


def test_the_published_state_is_checked_with_its_own_statistics(learner):
    run(learner, 2)
    batch, _, verifier = begin_again(learner)
    normalizer = learner.candidate.model.obs_normalizer.running_mean_std.running_mean_std["obs"]
    normalizer.running_mean += 5.0
    batch.obs = learner.candidate.observe(batch.raw_obs)
    assert verifier.unchanged().kind is Kind.UNCHANGED
    assert verifier.kl().max() < 1e-6
    verifier.stage(learner.candidate)
    assert verifier.kl().max() > 1e-3, "and the candidate with those of the candidate"


@pytest.mark.parametrize("known", [True, False])
def test_observations_are_taken_over_from_a_known_normaliser_only(learner, known, monkeypatch):
    run(learner, 1)
    batch, _, verifier = begin_again(learner)
    monkeypatch.setattr(type(learner.candidate), "known_normalizer", known)
    verifier.stage(learner.candidate)
    assert (verifier.observations() is batch.obs) == known
    torch.testing.assert_close(verifier.observations()["obs"], batch.obs["obs"])


def test_where_no_point_of_the_line_is_inside_it_is_the_published_state(learner):
    run(learner, 2)
    _, progress, verifier = begin_again(learner)
    learner.candidate.state.copy_(learner.gate.published.state)
    for parameter in learner.candidate.model.parameters():
        parameter.data += torch.randn_like(parameter)
    verifier.limit = 1e-7
    verifier.stage(learner.candidate)
    assert verifier.go_back(learner.candidate).kind is Kind.UNCHANGED
    assert progress.backtrack_scale == 0.0
    assert same(tensors(verifier.staged.model), tensors(learner.gate.published.model))


def test_a_word_cannot_be_changed(learner):
    run(learner, 1)
    word = learner.verifier.unchanged()
    with pytest.raises(FrozenInstanceError):
        word.generation = 7


def test_the_staged_policy_is_built_as_actors_build_theirs_and_stays_in_eval_mode(tmp_path):
    with networks.registered(networks.Dropping):
        learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
        seen = []
        for policy in (learner.verifier.staged, learner.gate.published):
            model = policy.model
            model.encoder.register_forward_pre_hook(lambda module, *_: seen.append(module.training))
        run(learner, 2)
    assert seen
    assert not any(seen)
    assert learner.gate.published.model is not learner.verifier.staged.model is not learner.actor_critic


# -- the way back -------------------------------------------------------------------------------------------------------------


def pushed_out(learner):
    """The candidate far outside, staged."""
    with torch.no_grad():
        for parameter in learner.candidate.model.parameters():
            parameter += torch.randn_like(parameter)
    learner.verifier.stage(learner.candidate)


def test_it_starts_where_the_measured_divergence_says(learner):
    run(learner, 1)
    _, progress = learner._update
    pushed_out(learner)
    [*values] = learner.verifier.check(learner.verifier.slices)
    word = learner.verifier.go_back(learner.candidate)
    assert word.kind is Kind.CHECKED
    first = 0.95 * (learner.verifier.limit / max(values)) ** 0.5
    assert progress.backtrack_scale in [pytest.approx(first / 2**i) for i in range(11)]
    assert max(learner.verifier.check(learner.verifier.slices)) <= learner.verifier.limit


def test_tensors_that_are_no_part_of_the_policy_stay_the_candidates(learner):
    run(learner, 1)
    pushed_out(learner)
    assert learner._critics == ["critic_linear.weight", "critic_linear.bias"]
    learner.verifier.go_back(learner.candidate, learner._critics)
    staged, candidate = tensors(learner.verifier.staged.model), tensors(learner.candidate.model)
    kept = {name for name in staged if torch.equal(staged[name], candidate[name])}
    assert kept == {"critic_linear.weight", "critic_linear.bias"} | {n for n in staged if n.startswith("obs_normalizer")}


def test_a_violation_at_the_previous_policy_itself_stops_the_run(tmp_path):
    """It proves that the check evaluates another function than that which acted; an older learner excused it."""
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, reference="previous", max_fixup_steps=2)
    run(learner, 1)
    batch = make_batch(learner, seed=1)
    batch["action_logits"][0, 0] += torch.tensor([9.0, *[0.0] * (batch["action_logits"].shape[-1] - 1)])
    before, version = tensors(learner.gate.published.model), learner.gate.version
    with pytest.raises(GuaranteeError, match="published already is at a KL of"):
        learner.train(batch)
    assert same(tensors(learner.gate.published.model), before)
    assert int(learner.policy_versions_tensor[0]) == version


# -- the gate --------------------------------------------------------------------------------------------------------------


def test_both_places_and_the_version_change_by_turns(tmp_path):
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, serial_mode=False)
    run(learner, 2)
    gate, (first, second) = learner.gate, learner.gate._places
    for version, new, old in ((5, second, first), (6, first, second)):
        pushed_out(learner)
        learner.verifier._progress.bad = torch.zeros((), dtype=torch.bool)
        kept = tensors(old.model)
        assert not same(kept, tensors(learner.candidate.model))
        gate.publish(learner.verifier.without_bound(), version)
        assert same(tensors(new.model), tensors(learner.candidate.model))
        assert same(tensors(gate.published.model), tensors(learner.candidate.model))
        assert same(tensors(old.model), kept)
        assert gate.version == int(learner.policy_versions_tensor[0]) == version


def test_policies_have_their_own_settings(tmp_path):
    """A serial population shares no configuration."""
    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path, num_policies=2)
    cfg = learner.cfg
    versions = torch.zeros(2, dtype=torch.int32)
    (server, one), (_, other) = (worker.make_learner(cfg, learner.env_info, versions, policy_id) for policy_id in range(2))
    one.set_new_cfg({"learning_rate": 0.123})
    one.optimizer = SimpleNamespace(param_groups=[])
    one.cfg.lr_schedule = "none"
    one.fixpo, one.multiplier, one.mean_multiplier = learner.fixpo, learner.multiplier, learner.mean_multiplier
    one._maybe_update_cfg()
    assert one.cfg.learning_rate == 0.123 != other.cfg.learning_rate == cfg.learning_rate
    assert one.param_server is server


# -- what leaves by other doors -----------------------------------------------------------------------------------------------


def test_a_batch_with_nothing_valid_leaves_no_trace(learner, tmp_path):
    """Its observations must not move the statistics that a checkpoint, an exchange or the next update starts from."""
    run(learner, 3)
    published = tensors(learner.gate.published.model)
    batch = make_batch(learner, seed=9)
    batch["policy_id"][:] = -1
    batch["obs"]["obs"] += 100.0
    assert learner.train(batch) is None
    for state in (learner.candidate.model, learner.gate.published.model):
        assert same(tensors(state), published)
    assert same(learner._get_checkpoint_dict()["model"], published)


def test_checkpoints_hold_the_published_state(learner):
    run(learner, 2)
    with torch.no_grad():
        for parameter in learner.candidate.model.parameters():
            parameter.fill_(7.0)
    assert same(learner._get_checkpoint_dict()["model"], tensors(learner.gate.published.model))


def test_resuming_from_the_best_keeps_what_is_newer(tmp_path):
    shape = small_shape(**BUSY)
    learner = make_learner("FIXPO", shape, train_dir=tmp_path, keep_checkpoints=1)
    run(learner, 2)
    learner.save_best(0, "reward", 5.0)
    best = tensors(learner.gate.published.model)
    run(learner, 3, first_seed=2)
    learner.save()
    folder = Path(learner.folder, "checkpoint_p0")
    [newest] = folder.glob("checkpoint_*.pth")
    content = newest.read_bytes()

    other = make_learner("FIXPO", shape, train_dir=tmp_path, keep_checkpoints=1, load_checkpoint_kind="best")
    assert same(tensors(other.gate.published.model), best)
    run(other, 1, first_seed=9)
    other.save()
    [now] = folder.glob("checkpoint_*.pth")
    assert now.name < newest.name
    assert (folder / f"superseded_{newest.name}").read_bytes() == content
    third = make_learner("FIXPO", shape, train_dir=tmp_path)
    assert third.train_step == other.train_step


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path):
    from sf_fixpo.learning.checkpoints import CheckpointError

    learner = make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    run(learner, 1)
    learner.save()
    [path] = Path(learner.folder, "checkpoint_p0").glob("checkpoint_*.pth")
    state = torch.load(path, weights_only=True)
    state["model"]["critic_linear.bias"] = torch.zeros(3)
    state["model"]["surprise"] = torch.zeros(1)
    torch.save(state, path)
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"critic_linear\.bias.*surprise"):
        make_learner("FIXPO", small_shape(**BUSY), train_dir=tmp_path)
    assert path.read_bytes() == content
