"""A stage that is a program of torch.export (`.pt2`) (source: ours).

torch.export.load is not safe by itself: it unpickles weights and constants that say so, unpickles sample
inputs that are more than tensors, loads compiled libraries that lie in the archive, evaluates the text of
symbolic sizes and resolves any function of torch's by name (found by reading torch 2.13). So the archive is
looked through before: only plain tensors, torch's operators and arithmetic pass. A filter, not a sandbox.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from shoestring.base.config import Config
from shoestring.base.errors import ConfigError, first_line
from shoestring.infer.batch import Answer, Batch, StageContext
from shoestring.infer.config import StageConfig
from shoestring.infer.stages.columns import Array, Feed, options_of, stacked
from shoestring.infer.stages.devices import device_of

_TARGETS = re.compile(
    r"torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+|torch\._sym_sqrt"
)
_EXPRESSION = re.compile(r"(?:[A-Za-z0-9_ +\-*/%(),<>=!&|~]|'\w+'|\d\.\d)*")
_CALLED = re.compile(r"\b(?!floor\b|ceiling\b)[a-z_]\w*\s*\(")
"""Symbolic sizes are evaluated as Python: no attributes, no text but names, and no call of a function that is
not SymPy's (these begin with a capital, Python's own do not)."""


class ExportOptions(Config):
    """Options of a stage of kind `export`.

    Attributes:
        inputs: the program's input -> the column that goes there; those left out: the column of that name.
        outputs: names of the outputs; empty: the keys of a dict that it returns, else `output`, or
            `output_0`, `output_1` and so on.
    """

    inputs: dict[str, str] = Field(default_factory=dict)
    outputs: tuple[str, ...] = ()


def make(config: StageConfig, context: StageContext) -> ExportStage:
    """The stage; see `shoestring.infer.stages.loading`."""
    return ExportStage(Path(config.uses), options_of(ExportOptions, config), context)


class ExportStage:
    """One program.

    Raises:
        ConfigError: the file is damaged, holds what could run code, or an option does not fit it.
    """

    def __init__(self, path: Path, options: ExportOptions, context: StageContext) -> None:
        refuse_code(path)
        self._device = device_of(context)
        program = _loaded(path)
        self._inputs = _inputs(program, path)
        rows = {name: _size(one.shape[0]) for name, one in self._inputs.items()}
        self._feed = Feed(path, options.inputs, rows, *_bounds(program, self._inputs.values()))
        self._names = options.outputs
        self._run = program.module().to(self._device)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Answer:
        """Outputs of all rows; those that do not fit get an error."""
        return self._feed.answer(batch, self._array, self._called)

    def _array(self, name: str, values: Any) -> tuple[Array, dict[int, str]]:
        return stacked(values, [_size(size) for size in self._inputs[name].shape[1:]], name)

    def _called(self, arrays: dict[str, Array]) -> dict[str, Array]:
        tensors = [
            # A copy, which may be written to.
            torch.from_numpy(np.array(array)).to(self._device, self._inputs[name].dtype)
            for name, array in arrays.items()
        ]
        out = self._run(*tensors)
        if isinstance(out, dict):
            pairs = list(out.items())
        else:
            several = list(out) if isinstance(out, list | tuple) else [out]
            plain = ["output"] if len(several) == 1 else [f"output_{place}" for place in range(len(several))]
            pairs = list(zip(plain, several, strict=True))
        if self._names:
            if len(self._names) != len(pairs):
                raise ConfigError(
                    f"options.outputs has {len(self._names)} names, and {len(pairs)} tensors come out",
                    "name each of them",
                )
            pairs = [(name, value) for name, (_, value) in zip(self._names, pairs, strict=True)]
        # Arrow has no bfloat16.
        return {
            str(name): (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
            for name, value in pairs
        }


def refuse_code(path: Path) -> None:
    """Look through the archive for what could run code when it is loaded or called.

    Raises:
        ConfigError: there is some, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = next(_suspects(archive), "")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}", "export the program again") from error
    if found:
        raise ConfigError(
            f"{path} is refused: {found}",
            "export it from the source with this version of torch, with tensors as its only constants",
        )


def _suspects(archive: zipfile.ZipFile) -> Iterator[str]:
    # torch's reader takes no heed of upper and lower case.
    names = [name.lower() for name in archive.namelist()]
    if len(set(names)) < len(names):
        yield "it holds two files of one name"
    for name in archive.namelist():
        _, _, inner = name.lower().partition("/")
        if inner.startswith("data/aotinductor/") or inner.endswith((".so", ".dll", ".dylib")):
            yield f"it holds a compiled library ({inner})"
        if re.fullmatch(r"data/(weights|constants)/.*\.pt", inner):
            yield f"it keeps tensors as a pickle, in the format of an older torch ({inner})"
        if re.fullmatch(r"data/(weights|constants)/.*_config\.json", inner):
            for key, entry in json.loads(archive.read(name))["config"].items():
                if entry["use_pickle"] or not re.match(r"(weight|tensor)_\d+$", entry["path_name"]):
                    yield f"{key} is kept as a pickle"
        if re.fullmatch(r"data/sample_inputs/.*\.pt", inner) and (why := _hidden(archive.read(name))):
            yield f"its sample inputs are a pickle of more than tensors ({why})"
        if inner.startswith("models/"):
            yield from _odd_words(json.loads(archive.read(name)))


def _odd_words(tree: Any) -> Iterator[str]:
    """Operators that are none, and expressions that could do more than count."""
    below = [tree]
    while below:
        one = below.pop()
        if isinstance(one, list):
            below += one
        elif isinstance(one, dict):
            for key, value in one.items():
                if key == "target" and isinstance(value, str) and "inputs" in one:
                    if not _TARGETS.fullmatch(value):
                        yield f"it calls {value!r}, which is no operator"
                elif key == "expr_str" and isinstance(value, str):
                    if not _EXPRESSION.fullmatch(value) or "__" in value or _CALLED.search(value):
                        yield f"a size is {value!r}"
                else:
                    below.append(value)


def _hidden(data: bytes) -> str:
    """Why torch cannot load this without running code; else torch.export.load would run it. Empty: it can."""
    if not data:
        return ""
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # noqa: BLE001  torch.export falls back to unpickling whichever it is
        return first_line(error)
    return ""


def _loaded(path: Path) -> Any:
    try:
        return torch.export.load(path)
    # Its errors have no common class.
    except Exception as error:
        raise ConfigError(
            f"torch cannot load {path}: {error}", f"export it again with torch {torch.__version__}"
        ) from error


def _inputs(program: Any, path: Path) -> dict[str, Any]:
    """Name -> the tensor (without data) that goes in there, in order."""
    wanted = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    inputs = {
        node.name: node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    }
    for name, one in inputs.items():
        if not isinstance(one, torch.Tensor) or not one.ndim:
            raise ConfigError(
                f"the input {name!r} of {path} is no tensor with a batch dimension",
                "export the program with tensors [batch, ...] as its inputs",
            )
    if not inputs:
        raise ConfigError(f"{path} takes no input", "export a program that takes a batch")
    return inputs


def _size(size: Any) -> int | None:
    """A dimension, or None where it may be any (it is a symbol then)."""
    return size if isinstance(size, int) else None


def _bounds(program: Any, inputs: Iterable[Any]) -> tuple[int, int | None]:
    """The smallest and the largest batch that a program takes; None: no bound."""
    least, most = 1, None
    symbols = [one.shape[0].node.expr for one in inputs if _size(one.shape[0]) is None]
    for symbol in symbols:
        if symbol not in program.range_constraints:
            continue
        bounds = program.range_constraints[symbol]
        least = max(least, int(bounds.lower))
        if bounds.upper.is_Integer and int(bounds.upper) < 2**31:
            most = min(most or int(bounds.upper), int(bounds.upper))
    return least, most
