"""Near names: what a user may have meant by a name that nothing knows. Pure string work."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

# Below this likeness (0: nothing in common, 1: equal) a suggestion is more puzzling than none.
_LEAST_LIKENESS = 0.55
# Names of one suite all share its prefix, so they all look alike: only those about as near as the nearest are meant.
_LIKENESS_BEHIND_NEAREST = 0.15


def likeness(typed: str, known: str) -> float:
    """How much a typed name resembles a known one, whatever the case.

    The beginning of the known name counts as much as the whole: long names are often typed half (`dmlab_rooms_collect`).

    Args:
        typed: what the user wrote.
        known: a name that exists.

    Returns:
        A number in [0, 1].
    """
    typed, known = typed.lower(), known.lower()
    whole = SequenceMatcher(None, typed, known).ratio()
    beginning = SequenceMatcher(None, typed, known[: len(typed)]).ratio()
    return max(whole, beginning)


def near_names(typed: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known names that resemble a typed one, the most similar first.

    Args:
        typed: what the user wrote.
        known: the names that exist.
        most: how many to give at most.

    Returns:
        At most `most` names; empty where nothing comes close.
    """
    distances = sorted((1 - likeness(typed, name), name) for name in set(known))
    if not distances:
        return []
    farthest = min(1 - _LEAST_LIKENESS, distances[0][0] + _LIKENESS_BEHIND_NEAREST)
    return [name for distance, name in distances[:most] if distance <= farthest]


def unknown_name(env_name: str, what: str, known: Iterable[str]) -> str:
    """The message about a value of `--env` that is not known.

    Args:
        env_name: what the user wrote.
        what: what it is not, such as `not a task of the mujoco suite`.
        known: the names that exist.

    Returns:
        One line: the flag, the value, near names where there are any, and where the list is.
    """
    hint = did_you_mean(env_name, known)
    return f"--env={env_name}: {what}; {hint}{' ' if hint else ''}--list_envs shows all."


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """The half sentence that ends a message about an unknown name.

    Args:
        typed: what the user wrote.
        known: the names that exist.

    Returns:
        `did you mean a, b?`, or an empty string where nothing comes close.
    """
    near = near_names(typed, known)
    return f"did you mean {', '.join(near)}?" if near else ""
