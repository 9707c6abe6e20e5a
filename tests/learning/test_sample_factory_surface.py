"""What we override or call of sample-factory's private surface, so that an upgrade fails here and not in the middle of a run."""

import inspect
from importlib.metadata import version

import pytest
from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.learning.learner_worker import LearnerWorker
from sample_factory.algo.runners import runner as sf_runner
from sample_factory.algo.runners.runner import Runner
from sample_factory.algo.sampling.inference_worker import InferenceWorker
from sample_factory.algo.utils.context import SampleFactoryContext
from sample_factory.algo.utils.model_sharing import ParameterClientAsync, ParameterServer
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.algo.utils.shared_buffers import policy_device
from sample_factory.model.actor_critic import ActorCritic, ActorCriticSeparateWeights, ActorCriticSharedWeights

from sf_fixpo.learning.checkpointing import CheckpointingLearner
from sf_fixpo.learning.learner import FixPOLearner
from sf_fixpo.learning.networks import PackedSeparateWeights
from sf_fixpo.learning.worker import FixPOLearnerWorker
from sf_fixpo.running.runner import FixPOParallelRunner, FixPOSerialRunner

EXPECTED = {
    Learner: {
        "__init__": "self, cfg, env_info, policy_versions_tensor, policy_id, param_server",
        "init": "self",
        "train": "self, batch",
        "_prepare_batch": "self, batch",
        "_train": "self, gpu_buffer, batch_size, experience_size, num_invalids",
        "_after_optimizer_step": "self",
        "_should_save_summaries": "self",
        "_get_checkpoint_dict": "self",
        "_load_state": "self, checkpoint_dict, load_progress",
        "_save_impl": "self, name_prefix, name_suffix, keep_checkpoints, verbose",
        "save_milestone": "self",
        "load_from_checkpoint": "self, policy_id, load_progress",
        "_maybe_load_policy": "self",
        "_maybe_update_cfg": "self",
    },
    LearnerWorker: {
        "__init__": "self, evt_loop, cfg, env_info, buffer_mgr, batcher, policy_id",
        "init": "self",
        "on_new_training_batch": "self, batch_idx",
        "on_stop": "self, args",
        "save": "self",
        "save_best": "self, policy_id, metric, metric_value",
        "start_batcher_thread": "self",
    },
    Runner: {
        "__init__": "self, cfg, unique_name",
        "init": "self",
        "connect_components": "self",
        "run": "self",
        "_make_learner": "self, event_loop, policy_id, batcher",
        "_stop_training": "self, failed",
        "_should_end_training": "self",
        "_after_training_iteration": "self, training_iteration_since_resume",
        "_receive_heartbeat": "self, component_type, component_id, p_name, qsize",
        "_check_heartbeat": "self",
        "_on_everything_stopped": "self",
        "_on_start": "self",
    },
    ParameterServer: {"__init__": "self, policy_id, policy_versions, serial_mode"},
    ParameterClientAsync: {
        "__init__": "self, param_server, cfg, env_info, timing",
        "_init_local_copy": "self, device, cfg, obs_space, action_space",
        "on_weights_initialized": "self, state_dict, device, policy_version",
        "ensure_weights_updated": "self",
        "cleanup": "self",
    },
    ActorCriticSeparateWeights: {"_core_rnn": "self, head_output, rnn_states"},
}
OURS = {
    Learner: (CheckpointingLearner, FixPOLearner),
    LearnerWorker: (FixPOLearnerWorker,),
    Runner: (FixPOSerialRunner, FixPOParallelRunner),
    ActorCriticSeparateWeights: (PackedSeparateWeights,),
}


def parameters(function):
    return ", ".join(inspect.signature(function).parameters)


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, methods in EXPECTED.items() for name in methods])
def test_signature_is_as_expected(cls, name):
    assert parameters(getattr(cls, name)) == EXPECTED[cls][name]


@pytest.mark.parametrize("base", OURS, ids=lambda cls: cls.__name__)
def test_every_override_is_listed(base):
    """A method that we override and that is not in EXPECTED would change under us unseen."""
    for cls in OURS[base]:
        for parent in [c for c in cls.__mro__ if c.__module__.startswith("sf_fixpo")]:
            for name in vars(parent):
                if callable(vars(parent)[name]) or isinstance(vars(parent)[name], staticmethod):
                    inherited = getattr(base, name, None)
                    is_override = inherited is not None and not hasattr(object, name)
                    assert not is_override or name in EXPECTED[base], f"{parent.__name__}.{name}"


def test_functions_and_names_that_we_reach_for():
    assert parameters(policy_device) == "cfg, policy_id"
    assert parameters(prepare_and_normalize_obs) == "model, obs"
    assert [parameters(getattr(ActorCritic, name)) for name in ("forward_head", "forward_core", "forward_tail")] == [
        "self, normalized_obs_dict",
        "self, head_output, rnn_states",
        "self, core_output, values_only, sample_actions",
    ]
    # the value head that is replaced, and the calls after which values are put into units of returns, which are by position
    assert parameters(ActorCritic.initialize_weights) == "self, layer"
    for kind in (ActorCriticSharedWeights, ActorCriticSeparateWeights):
        assert parameters(kind.forward) == "self, normalized_obs_dict, rnn_states, values_only"
    assert "actor_critic(normalized_obs, rnn_states)" in inspect.getsource(InferenceWorker)
    assert parameters(sf_runner.obtain_env_info_in_a_separate_process) == "cfg"
    assert parameters(sf_runner.init_wandb) == "cfg"
    assert set(vars(SampleFactoryContext())) == {"env_registry", "model_factory"}


def test_the_version_is_the_pinned_one():
    assert version("sample-factory") == "2.1.1"
