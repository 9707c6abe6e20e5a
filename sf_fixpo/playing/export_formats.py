"""Files that other programs run a policy from: ONNX, TorchScript, torch.export; each written, and read back as its user would."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sf_fixpo.playing.exported import ExportedPolicy, Function
from sf_fixpo.records.export_metadata import KEY

Example = tuple[Tensor, ...]
_METADATA_FILE = f"{KEY}.json"  # inside the two formats of torch


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        suffix: of its name.
        needs: modules that writing and reading take, beside torch.
        write: `(policy, example inputs, any number of samples, path, metadata)`.
        read: `path` to the function, and its metadata.
    """

    suffix: str
    needs: tuple[str, ...]
    write: Callable[[ExportedPolicy, Example, bool, Path, Mapping[str, Any]], None]
    read: Callable[[Path], tuple[Function, dict[str, Any]]]

    @property
    def missing(self) -> list[str]:
        """What is not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def example_inputs(observations: Sequence[np.ndarray], state_size: int, samples: int) -> Example:
    """So many samples for an exporter to look at.

    Args:
        observations: [1, ...] of each key.
        state_size: S.
        samples: N.
    """
    repeated = [torch.from_numpy(np.repeat(x, samples, axis=0)) for x in observations]
    return (*repeated, torch.zeros(samples, state_size))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Exporters say a great deal that the comparison with the actor says better."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _dynamic(example: Example, any_batch: bool) -> Any:
    return (tuple({0: torch.export.Dim.DYNAMIC} for _ in example),) if any_batch else None


def _write_onnx(policy: ExportedPolicy, example: Example, any_batch: bool, path: Path, metadata: Mapping[str, Any]) -> None:
    with _quietly():
        program = torch.onnx.export(
            policy,
            example,
            input_names=metadata["inputs"],
            output_names=metadata["outputs"],
            dynamic_shapes=_dynamic(example, any_batch),
            dynamo=True,
            verbose=False,
        )
        if program is None:  # only where it writes the file itself
            raise RuntimeError("torch.onnx gave no program")
        program.model.metadata_props[KEY] = json.dumps(metadata)
        program.save(str(path), external_data=False)


def _read_onnx(path: Path) -> tuple[Function, dict[str, Any]]:
    import onnxruntime  # pyright: ignore[reportMissingImports]  (the extra `onnx`)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map[KEY])

    def function(inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        given = dict(zip(metadata["inputs"], inputs, strict=True))
        return session.run(None, {name: given[name] for name in names})  # what a policy does not look at is no input

    return function, metadata


def _write_torchscript(
    policy: ExportedPolicy, example: Example, any_batch: bool, path: Path, metadata: Mapping[str, Any]
) -> None:
    with _quietly():
        traced = torch.jit.trace(policy, example, check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={_METADATA_FILE: json.dumps(metadata)})


def _read_torchscript(path: Path) -> tuple[Function, dict[str, Any]]:
    extra = {_METADATA_FILE: ""}
    with _quietly():
        module = torch.jit.load(str(path), _extra_files=extra)
    return _as_function(module), json.loads(extra[_METADATA_FILE])


def _write_torch_export(
    policy: ExportedPolicy, example: Example, any_batch: bool, path: Path, metadata: Mapping[str, Any]
) -> None:
    with _quietly():
        program = torch.export.export(policy, example, dynamic_shapes=_dynamic(example, any_batch))
        torch.export.save(program, str(path), extra_files={_METADATA_FILE: json.dumps(metadata)})


def _read_torch_export(path: Path) -> tuple[Function, dict[str, Any]]:
    extra = {_METADATA_FILE: ""}
    with _quietly():
        module = torch.export.load(str(path), extra_files=extra).module()
    return _as_function(module), json.loads(extra[_METADATA_FILE])


def _as_function(module: Any) -> Function:
    def function(inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in module(*(torch.from_numpy(np.ascontiguousarray(x)) for x in inputs))]

    return function


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
    "torchscript": Format(".ts", (), _write_torchscript, _read_torchscript),
    "torch_export": Format(".pt2", (), _write_torch_export, _read_torch_export),
}
