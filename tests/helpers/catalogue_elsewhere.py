# ruff: noqa: E501 - a row of a table is a line
"""What `test_error_catalogue` does not provoke, and why."""

from __future__ import annotations

# What no row provokes and no test quotes, by what it takes and the tests that go that way; `...` is what is filled in.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    # takes an audit file with something wrong in it
    "tests/test_audit.py tests/records/test_audit_files.py tests/records/test_recomputation.py tests/fuzz/test_files.py": (
        "...: not one state to check: no sample of the batch is valid",
        "...: state ...: KL ...; ... over ... states ... > eps_kl ...",
        "...: holds version ..., not the ... of its name",
        "...: ... comes after version ..., without a restart",
        "... in it is damaged",
        "...: not an audit file: ... instead of a dict",
        "...: not an audit file: without format",
        "action_spec describes ... action parameters, there are ...",
        "config.json: ... states are no pieces of ... steps (rollout, recurrence)",
        "unknown action distribution ...",
    ),
    # takes the Hub and its answers
    "tests/test_hub.py tests/test_hub_pull.py": (
        "the Hub's token",
        "...: ... ...: .... Move it away to publish without it",
        "...: is not an update log: ...",
        "... could not be uploaded: ...",
        "...: what came from ... cannot be used: ...: ...",
        "...: comes from the Hub, and its config.json names code of its own (...), which is not run. Read that code; to trust it, copy the folder without `.cache` and use the copy",
    ),
    # takes a checkpoint or a log with something wrong in it, or the spaces of a started environment
    "tests/learning/test_checkpoints.py tests/fuzz/test_files.py tests/test_cli.py": (
        "...: its checkpoint does not fit this run: ",
        "fixpo: must be a dict, is ...",
        "not a dict with a dict 'model'",
        "...; it may well be whole: nothing was changed, try again later",
        "...: its update log has rows without ...: another version wrote them, or they are damaged",
        "has ... as ..., which must be ...",
        "has an eps_kl that is not above 0",
        "--batched_sampling=True: ... trajectories of a worker must divide the ... of a batch, or the other way round",
    ),
    # takes several ranks
    "tests/learning/test_meeting.py tests/running/test_joining.py": (
        "the place where all ranks meet is gone: ...",
        "rank ...: no place to meet at ...:...: ...",
    ),
    # takes another machine, user or run beside it
    "tests/running/test_folders.py tests/running/test_crashes.py tests/running/test_trackers.py tests/running/test_machine.py": (
        "no window can be opened (...); --record writes a video instead",
        "...: environment ... crashed ... times (--max_env_crashes=...): ...",
        "--train_dir=...: ... cannot be written by this user",
        "......; wait for its end, or use another name",
        "the configuration is refused by sample-factory; see above",
        "...: ...; ...; or use --serial_mode=True",
        "--with_wandb=True: ... (without a network or an account: WANDB_MODE=offline)",
    ),
    # takes another engine or several ranks
    "tests/envs/dmlab/test_dmlab_levels.py tests/envs/dmlab/test_populate_cache.py": (
        "no ... in it, of ... to ...",
        " on each of ... ranks",
        "--levels=...: ... has no use for the cache; these have: ...",
        "--episodes=...: must be at least 2",
        "...: --dmlab_engine=... has no ...; it plays --env=... --dmlab_levels=...",
    ),
    # takes an episode of an environment that breaks its contract, or a missing package
    "tests/envs/test_gym_envs.py tests/envs/test_several.py tests/envs/test_action_mask.py tests/fuzz/test_environments.py": (
        "...: must have ...; if it is no mask of actions, call it otherwise",
        "...: must be of numbers or bool",
        "pip install 'gymnasium>=0.29,<1.0'",
        "pip install 'sf_fixpo[pettingzoo]'",
        "...: ..., at step ... of an episode",
        "...: ... at step ... of an episode",
        "...() returned ...: must return (...)...",
        "... is ..., must be True or False",
        "... are ..., must be a dict with an entry for each agent",
        "... is ..., must be a number",
        "observation '...' space ...: must be a Box or MultiBinary, or a Dict or Tuple of these",
        "... holds ... at step ... of an episode",
        "... at step ... of an episode: ...; its space is ...",
        "what it returned is not of ... environments",
        "has no possible_agents",
        "what it returned is not of ... environments: ...",
        "...; it is that of ...",
    ),
    # takes a cluster, or a missing package
    "tests/launcher/test_launcher_kubernetes.py tests/launcher/test_launcher_kubernetes_runs.py tests/launcher/test_launcher_ray.py": (
        "--backend=...: needs ...; pip install 'sf_fixpo[cluster]'",
        "--backend=kubernetes: ...: a path with a colon cannot be mounted",
        "--secrets_file=...: no container has this file; use --k8s_secret",
        "Kubernetes refused to ... ...: ...",
        "lower-case letters, digits and -, at most 63",
        "the name of a resource, such as nvidia.com/gpu",
        "--backend=ray: cannot connect to a cluster at ...: ...",
    ),
    # takes the folder of a damaged sweep, or another launcher
    "tests/launcher/test_launcher_sweep.py tests/launcher/test_launcher_search.py tests/fuzz/test_doors.py": (
        "...: not a JSON object...",
        "--search=optuna: needs a launcher that stays until the end, and these flags of the backend let it leave",
        "--search=optuna: needs ...; pip install 'sf_fixpo[search]'",
        "...: another launcher searches here: ...",
        "...: another launcher has taken over the search",
        "run ...: the value of ... looks like a secret; ...",
        "... is no name of a run",
        "run ...: its folder ... is not below the sweep's",
        "run ...: its command is no list of words",
        "run ...: its env is no dict of texts",
        "run ...: its command is empty",
        "...: has ... as status",
    ),
}
