"""One level of every family, played by the stand-in: does the laptop preset beat a random agent in a quarter of an hour?

The rooms family has its answer in `demo_claim`; it is here so that one command gives all seven.
"""

from __future__ import annotations

from benchmarks.studies import study

COMMON = "--preset=laptop --dmlab_engine=vizdoom --train_for_env_steps=4_000_000 --train_for_seconds=900"
COMMON += " --dmlab_extended_action_set=True --experiment_summaries_interval=2"
VARIANTS = {
    "natlab": "--env=dmlab_30_natlab_varying_map_randomized",
    "explore": "--env=dmlab_30_explore_object_rewards_few",
    "psychlab": "--env=dmlab_30_psychlab_continuous_recognition",
    "lasertag": "--env=dmlab_30_lasertag_one_opponent_small",
    "skymaze": "--env=dmlab_30_skymaze_irreversible_path_varied",
    "language": "--env=dmlab_30_language_select_described_object --dmlab_with_instructions=True",
    "rooms": "--env=dmlab_30_rooms_collect_good_objects",
}
RUN_DESCRIPTION = study("families", COMMON, VARIANTS, seeds=[10])
