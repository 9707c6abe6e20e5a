"""Engines that Gymnasium loads and whose version does not fit it: what to say in place of their own errors.

Tried with Gymnasium 0.29.1, which sample-factory needs: MuJoCo 3.3.7 reads no Swimmer-v4 (its XML has an attribute that MuJoCo 3
dropped), 2.3.7 reads all v4 tasks; ale-py 0.12.1 registers no game, also when its module is named, 0.10.1 does.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

MUJOCO, ALE = "2.3.7", "0.10.1"


def installed(package: str) -> str | None:
    """Its version; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def mujoco_hint(error: str, mujoco: str | None) -> str | None:
    """What is wrong where a model's XML was refused.

    Args:
        error: the message of what was raised when the environment was made.
        mujoco: version that is installed; None for none.

    Returns:
        What to do; None where the engine's version is not to blame.
    """
    if mujoco is None or "XML Error" not in error or int(mujoco.partition(".")[0]) < 3:
        return None
    return (
        f"mujoco {mujoco} does not read the models of this Gymnasium: pip install 'mujoco=={MUJOCO}' in a fresh environment, or "
        "take the mujoco suite (--env=mujoco_Swimmer), which needs none"
    )


def ale_hint(env_id: str, ale: str | None) -> str | None:
    """What is wrong where a game is not registered.

    Args:
        env_id: as Gymnasium was given it: `ALE/Pong-v5`, `ale_py:ALE/Pong-v5`, `PongNoFrameskip-v4`.
        ale: version of ale-py; None for none.

    Returns:
        What to do; None where it is no game's name.
    """
    module, _, name = env_id.rpartition(":")
    if module not in ("", "ale_py") or not (name.startswith("ALE/") or "NoFrameskip-v" in name):
        return None
    suite = "or take the atari suite (--env=atari_Pong), which needs none"
    if ale is None:
        return f"ale-py is not installed: pip install 'ale-py=={ALE}', and --env=gym_ale_py:{name}; {suite}"
    if ale == ALE and not module:
        return f"its module has to be named: --env=gym_ale_py:{name}"
    wrong = f"ale-py {ale} does not register its games with this Gymnasium"
    return f"{wrong}: pip install 'ale-py=={ALE}', and --env=gym_ale_py:{name}; {suite}"
