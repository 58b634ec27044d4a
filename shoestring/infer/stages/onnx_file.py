"""A stage that is an ONNX file, run by onnxruntime (source: ours).

Inputs are columns of the same name, or as `options.inputs` says; outputs become columns. A row's value is a
number, a list, or a flat list of the right length where the model wants a matrix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from pydantic import Field

from shoestring.base.config import Config
from shoestring.base.errors import ConfigError
from shoestring.infer.batch import Answer, Batch, StageContext
from shoestring.infer.config import StageConfig
from shoestring.infer.stages.columns import Array, Feed, check_known, options_of, stacked

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(bool)": np.bool_,
}
_TEXT = "tensor(string)"


class OnnxOptions(Config):
    """Options of a stage of kind `onnx`.

    Attributes:
        inputs: the model's input -> the column that goes there; those left out: the column of that name.
        outputs: that become columns; empty: all.
    """

    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: tuple[str, ...] = ()


def make(config: StageConfig, context: StageContext) -> OnnxStage:
    """The stage; see `shoestring.infer.stages.loading`."""
    return OnnxStage(Path(config.uses), options_of(OnnxOptions, config), context, bool(config.device))


class OnnxStage:
    """One session over one file.

    Args:
        wished: whether the user asked for the context's device.

    Raises:
        ConfigError: the file is damaged, an option names what the model has not, or an input is of a kind
            that no column can be.
    """

    def __init__(self, path: Path, options: OnnxOptions, context: StageContext, wished: bool = False) -> None:
        self._session = _session(path, context, wished)
        inputs = {one.name: one for one in self._session.get_inputs()}
        outputs = [one.name for one in self._session.get_outputs()]
        check_known("outputs", options.outputs, outputs, path)
        for name, one in inputs.items():
            if one.type not in _DTYPES and one.type != _TEXT:
                raise ConfigError(
                    f"the input {name!r} of {path} is a {one.type}, which no column can be",
                    "export the model with tensors of numbers or texts",
                )
        self._types = {name: one.type for name, one in inputs.items()}
        self._shapes = {name: [_size(size) for size in one.shape] for name, one in inputs.items()}
        scalar = [name for name, shape in self._shapes.items() if not shape]
        if scalar:
            raise ConfigError(
                f"the input {scalar[0]!r} of {path} has no batch dimension", "export the model with one"
            )
        self._feed = Feed(path, options.inputs, {name: shape[0] for name, shape in self._shapes.items()})
        self._outputs = list(options.outputs) or outputs

    def __call__(self, batch: Batch) -> Answer:
        """Outputs of all rows; those that do not fit get an error."""
        return self._feed.answer(batch, self._array, self._called)

    def _called(self, feed: dict[str, Array]) -> dict[str, Array]:
        found = self._session.run(self._outputs, feed)
        return {name: np.asarray(one) for name, one in zip(self._outputs, found, strict=True)}

    def _array(self, name: str, values: Any) -> tuple[Array, dict[int, str]]:
        if self._types[name] == _TEXT:
            wrong = {place: f"{name} is missing" for place, value in enumerate(values) if value is None}
            return np.array(["" if value is None else str(value) for value in values], dtype=object), wrong
        array, errors = stacked(values, self._shapes[name][1:], name)
        return array.astype(_DTYPES[self._types[name]], copy=False), errors

    def close(self) -> None:
        """Let the session go."""
        del self._session


def _session(path: Path, context: StageContext, wished: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = context.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=_providers(context, wished))
    # Its errors have no common class but RuntimeError's parent.
    except Exception as error:
        raise ConfigError(
            f"onnxruntime cannot load {path}: {error}", "check the file, and that its opset is supported"
        ) from error


def _providers(context: StageContext, wished: bool) -> list[Any]:
    """Where it computes: not on a GPU that nobody has asked for, where this onnxruntime cannot use it."""
    able = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if not context.device.startswith("cuda") or not (able or wished):
        return ["CPUExecutionProvider"]
    if not able:
        raise ConfigError(
            "this onnxruntime cannot use a GPU", "pip install onnxruntime-gpu, or set the stage's device=cpu"
        )
    _, _, number = context.device.partition(":")
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]


def _size(size: Any) -> int | None:
    """A dimension: a number, or a name or nothing where it may be any."""
    return size if isinstance(size, int) and size > 0 else None
