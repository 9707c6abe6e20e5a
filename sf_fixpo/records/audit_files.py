"""What a file of `audit/` holds, and how it is read: everything that the guarantee of one policy update can be checked with.

A run with `--audit_every=N` writes `audit/<version>.pt` for every N-th update (`audit/p<policy>_<version>.pt` in a population), a
plain dict that `torch.load(weights_only=True)` reads. Its keys are the attributes of `AuditRecord`, and `format`. Nothing of what
the learner concluded is in it: which states are stale, what the reference was and every divergence follow from these.

Shape symbols: N states, the trajectories of the batch one after the other as the learner trains on them; A action parameters; S
size of the recurrent state.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sf_fixpo.records.archives import archive_fault

FORMAT = 2
FOLDER = "audit"  # in the experiment's folder
PARAMETERS_EACH = {"categorical": 1, "gaussian": 2}  # of a kind of action: numbers for each of its n

_TASK_ID = "task_id"


class UnreadableError(ValueError):
    """There is nothing to audit, or it cannot be understood: the message says what and where."""


@dataclass(frozen=True, eq=False)
class AuditRecord:
    """One policy update, as its audit file has it.

    Attributes:
        obs: by name, [N, ...] as the environment gave them, in the environment's own type, without the learner's `task_id`.
        rnn_states: [N, S] float, recorded before each step.
        dones: [N] bool, whether the episode ended with the step.
        valids: [N] bool, whether the sample was one to learn from.
        action_logits: [N, A] float, action parameters of the policy that acted, as the actors recorded them.
        policy_version_of: [N] integer, the version of that policy.
        task_id: [N] int64, which task; None where the run has one.
        previous_state_dict: weights, statistics included, as published before the update.
        state_dict: as published after it.
        policy_version: of `state_dict`.
        previous_policy_version: of `previous_state_dict`.
        eps_kl: the bound, nats.
        kl_direction: `pi_ref`: KL(policy, reference); `ref_pi`: the reverse.
        kl_stat: what is bounded, the `max` over states or their `mean`.
        reference: centre of the trust region: `previous`, or `behaviour` where the previous policy is not too far from it.
        action_spec: consecutive slices of the A parameters: `("categorical", n)` n logits, `("gaussian", n)` n means and then n
            log standard deviations.
        fixup: `every_epoch` or `last_epoch`; with `off` nothing is promised.
    """

    obs: dict[str, Tensor]
    rnn_states: Tensor
    dones: Tensor
    valids: Tensor
    action_logits: Tensor
    policy_version_of: Tensor
    task_id: Tensor | None
    previous_state_dict: dict[str, Tensor]
    state_dict: dict[str, Tensor]
    policy_version: int
    previous_policy_version: int
    eps_kl: float
    kl_direction: str
    kl_stat: str
    reference: str
    action_spec: tuple[tuple[str, int], ...]
    fixup: str


def file_name(policy_id: int, version: int, num_policies: int) -> str:
    """`<version>.pt`, or `p<policy>_<version>.pt` in a population."""
    return f"{version}.pt" if num_policies == 1 else f"p{policy_id}_{version}.pt"


def list_files(folder: Path) -> list[tuple[int, int, Path]]:
    """`(policy_id, version, path)` of every audit file in a folder, in that order.

    Raises:
        UnreadableError: there is none.
    """
    found = []
    for path in folder.glob("*.pt"):
        if match := re.fullmatch(r"(?:p(\d+)_)?(\d+)", path.stem):
            found.append((int(match[1] or 0), int(match[2]), path))
    if not found:
        raise UnreadableError(f"{folder}: no audit files; train with --audit_every=N, or wait for the N-th update")
    return sorted(found)


def load(path: Path) -> AuditRecord:
    """Reads an audit file without running code from it.

    Raises:
        UnreadableError: it is not an audit file of this format, or its parts do not fit together.
    """
    try:
        data = path.read_bytes()
        fault = archive_fault(data)
        contents = None if fault else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as exc:  # a torn or foreign file fails in many ways, and all of them mean the same here
        raise UnreadableError(f"{path}: cannot be read: {type(exc).__name__}: {exc}") from exc
    if fault:
        raise UnreadableError(f"{path}: cannot be read: {fault}")
    return parse(contents, str(path))


def parse(contents: Any, name: str) -> AuditRecord:
    """What a file holds, as a record.

    Args:
        contents: of the file.
        name: of the file, for messages.

    Raises:
        UnreadableError: as `load`; it names each key at fault.
    """
    if not isinstance(contents, dict):
        raise UnreadableError(f"{name}: not an audit file: {type(contents).__name__} instead of a dict")
    _refuse_other_formats(contents, name)
    missing = [key for key in _KEYS if key not in contents and key != _TASK_ID]
    if missing:
        raise UnreadableError(f"{name}: not an audit file, without {', '.join(missing)}")
    values: dict[str, Any] = {key: contents.get(key) for key in _KEYS}
    faults = [f"{key} is not {wanted}" for key, (wanted, is_right) in _KEYS.items() if not is_right(values[key])]
    faults = faults or _misfits(values)
    if faults:
        raise UnreadableError(f"{name}: {'; '.join(faults)}")
    values["action_spec"] = tuple((kind, size) for kind, size in values["action_spec"])
    values["eps_kl"] = float(values["eps_kl"])
    return AuditRecord(**values)


def _refuse_other_formats(contents: dict, name: str) -> None:
    found = contents.get("format")
    if type(found) is int and found == FORMAT and "normalized_obs" not in contents:
        return
    if type(found) is int and found > FORMAT:
        raise UnreadableError(f"{name}: written by a newer version of sf_fixpo: format {found}, this one reads format {FORMAT}")
    if "state_dict" not in contents:
        raise UnreadableError(f"{name}: not an audit file: without format")
    raise UnreadableError(
        f"{name}: written by an older version of sf_fixpo; format {FORMAT} is needed: train again, or use sf_fixpo 0.1.0 for it; "
        "move it away to audit what is newer"
    )


# -- what each key has to be --------------------------------------------------------------------------------------------------


def _is_real(dtype: torch.dtype) -> bool:
    """Whether it is a type that NumPy, and so an observation space, has."""
    return not (dtype.is_complex or dtype == torch.bfloat16)


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _tensor(dims: int, is_type: Callable[[torch.dtype], bool]) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, Tensor) and x.dim() == dims and is_type(x.dtype)


def _tensors(x: Any, is_right: Callable[[Tensor], bool]) -> bool:
    """Whether it is a dict of such tensors by name, and not empty."""
    return (
        isinstance(x, dict)
        and bool(x)
        and all(isinstance(k, str) and isinstance(v, Tensor) and is_right(v) for k, v in x.items())
    )


def _one_of(*allowed: str) -> tuple[str, Callable[[Any], bool]]:
    return f"one of {', '.join(allowed)}", lambda x: isinstance(x, str) and x in allowed


def _is_bound(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x) and x > 0


def _is_spec(x: Any) -> bool:
    return isinstance(x, list | tuple) and bool(x) and all(_is_part(part) for part in x)


def _is_part(x: Any) -> bool:
    if not (isinstance(x, list | tuple) and len(x) == 2):
        return False
    kind, size = x
    return isinstance(kind, str) and kind in PARAMETERS_EACH and type(size) is int and size > 0


_FLAGS = ("[N] bool", _tensor(1, lambda dtype: dtype == torch.bool))
_ROWS = ("two-dimensional, of floats", _tensor(2, lambda dtype: dtype.is_floating_point))
_WEIGHTS = ("a dict of tensors by name", lambda x: _tensors(x, lambda _: True))
_VERSION = ("an integer", lambda x: type(x) is int)

# in the order of AuditRecord's attributes: what it should be, in words and as a test
_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "obs": ("a dict of real tensors [N, ...] by name", lambda x: _tensors(x, lambda v: v.dim() > 0 and _is_real(v.dtype))),
    "rnn_states": _ROWS,
    "dones": _FLAGS,
    "valids": _FLAGS,
    "action_logits": _ROWS,
    "policy_version_of": ("[N] of integers", _tensor(1, _is_integer)),
    _TASK_ID: ("[N] int64", lambda x: x is None or _tensor(1, lambda dtype: dtype == torch.int64)(x)),
    "previous_state_dict": _WEIGHTS,
    "state_dict": _WEIGHTS,
    "policy_version": _VERSION,
    "previous_policy_version": _VERSION,
    "eps_kl": ("a positive number", _is_bound),
    "kl_direction": _one_of("pi_ref", "ref_pi"),
    "kl_stat": _one_of("max", "mean"),
    "reference": _one_of("previous", "behaviour"),
    "action_spec": (f"a list of [kind, n], kind one of {', '.join(PARAMETERS_EACH)}", _is_spec),
    "fixup": _one_of("every_epoch", "last_epoch", "off"),
}


def _misfits(values: dict[str, Any]) -> list[str]:
    """Where keys that are right on their own do not fit together."""
    found = []
    lengths = {key: len(x) for key, x in values.items() if isinstance(x, Tensor)}
    lengths |= {f"obs[{name}]": len(x) for name, x in values["obs"].items()}
    if len(set(lengths.values())) > 1:
        found.append(f"tensors of different lengths: {', '.join(f'{key} {length}' for key, length in lengths.items())}")
    if _TASK_ID in values["obs"]:
        found.append(f"obs has {_TASK_ID}, which no network sees")
    described = sum(PARAMETERS_EACH[kind] * size for kind, size in values["action_spec"])
    if described != values["action_logits"].shape[1]:
        found.append(f"action_spec describes {described} action parameters, action_logits has {values['action_logits'].shape[1]}")
    if values["previous_policy_version"] >= values["policy_version"]:
        found.append(
            f"policy_version {values['policy_version']} is not after {values['previous_policy_version']}, the previous one"
        )
    before, after = (
        {name: (x.shape, x.dtype) for name, x in values[key].items()} for key in ("previous_state_dict", "state_dict")
    )
    if before != after:
        names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        found.append(f"previous_state_dict and state_dict are of different networks: {', '.join(names)}")
    return found
