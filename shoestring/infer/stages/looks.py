"""What a stage's settings name, told by its look: nothing is loaded, and no model is run (source: ours)."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shoestring.base.errors import ConfigError
from shoestring.fleet.rundirs import ABOUT
from shoestring.infer.config import StageConfig
from shoestring.infer.prepared import PREPARED
from shoestring.models.moe_lm.config import MODEL_TYPE

EXTRAS = {
    "onnx": ("onnxruntime", "onnx"),
    "huggingface": ("transformers", "huggingface"),
    "images": ("PIL", "images"),
}
_KINDS = "kind=code, huggingface, onnx, export, checkpoint or images"


def kind_of(config: StageConfig) -> str:
    """The kind of a stage: as it says, else by the look of `uses`.

    Raises:
        ConfigError: `uses` looks like none of them.
    """
    if config.kind != "auto":
        return config.kind
    uses = config.uses
    if not uses:
        raise ConfigError(
            "a stage says neither `uses` nor `kind`", "set uses to `module:Class`, `file.py:Class` or a path"
        )
    path = Path(uses)
    if path.is_dir():
        if (path / ABOUT).is_file() or _model_type(path) == MODEL_TYPE:
            return "checkpoint"
        if (path / "config.json").is_file():
            return "huggingface"
        raise ConfigError(
            f"{uses} is a folder with neither a config.json (of Hugging Face) nor a {ABOUT} (of a run)",
            f"check the path; files there: {_names(path)}",
        )
    for ending, kind in ((".onnx", "onnx"), (".pt2", "export")):
        if path.suffix.lower() == ending:
            return kind
    if ":" in uses:
        return "code"
    if not path.exists() and "/" in uses:
        raise ConfigError(f"there is no {uses}", "check the path")
    raise ConfigError(
        f"it cannot be told what {uses} is", f"write `module:Class` or `file.py:Class`, or set {_KINDS}"
    )


def check_stage(config: StageConfig) -> None:
    """Look whether the stage can be loaded, in a moment: nothing is imported, no weights are read.

    Raises:
        ConfigError: `uses` is missing or no such thing, or an extra package is not installed.
    """
    kind = kind_of(config)
    if kind in EXTRAS:
        package, extra = EXTRAS[kind]
        if importlib.util.find_spec(package) is None:
            name = config.name or config.uses or kind
            raise ConfigError(
                f"stage {name} needs the package {package}, which is not installed",
                f"pip install 'shoestring[{extra}]'",
            )
    if kind == "images":
        return
    if not config.uses:
        raise ConfigError(f"a stage of kind {kind} does not say what it uses", "set uses")
    if kind == "code":
        _check_code(config.uses)
    elif kind == "onnx":
        _check_onnx(_existing(config.uses))
    elif kind == "export":
        _check_export(_existing(config.uses))
    elif kind == "huggingface":
        _check_huggingface(_existing(config.uses))
    else:
        _check_checkpoint(_existing(config.uses))


def split_code(uses: str) -> tuple[str, str]:
    """`module:Class` or `file.py:Class` in its halves.

    Raises:
        ConfigError: one of them is missing.
    """
    where, _, name = uses.rpartition(":")
    if not where or not name.isidentifier():
        raise ConfigError(f"{uses!r} names no class", "write `package.module:Class` or `path/file.py:Class`")
    return where, name


def is_file(where: str) -> bool:
    """Whether the first half of `uses` is a path, not a module."""
    return where.endswith(".py") or "/" in where


def _check_code(uses: str) -> None:
    where, name = split_code(uses)
    source = Path(where) if is_file(where) else _module_file(where)
    if source is None:
        return  # built in, or made by something other than a source file
    if not source.is_file():
        raise ConfigError(f"there is no file {where}", "check the path")
    try:
        tree = ast.parse(source.read_bytes(), str(source))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{source} is not valid Python: {error}", "mend it") from error
    names, open_ended = _top_names(tree)
    if name not in names and not open_ended:
        there = ", ".join(sorted(n for n in names if not n.startswith("_"))) or "nothing"
        raise ConfigError(f"{where} defines no {name}", f"it defines {there}")
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            _check_class(uses, node)


def _check_class(uses: str, node: ast.ClassDef) -> None:
    """A class without bases says all that it can do."""
    methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
    if node.bases or node.decorator_list or node.keywords or "__call__" in methods:
        return
    if {"take", "work"} <= methods or any(isinstance(one, ast.Assign) for one in node.body):
        return
    raise ConfigError(
        f"{uses} has no method `__call__`", "add `def __call__(self, batch)` that returns columns by name"
    )


def _top_names(tree: ast.Module) -> tuple[set[str], bool]:
    """Names that a module defines at its top, and whether there may be more of them."""
    names: set[str] = set()
    open_ended = False
    below: list[ast.AST] = [*tree.body]
    while below:
        node = below.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
            open_ended |= node.name == "__getattr__"
            continue  # what is inside is not at the top
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(one.asname or one.name).split(".")[0] for one in node.names}
            open_ended |= any(one.name == "*" for one in node.names)
        below += ast.iter_child_nodes(node)
    return names, open_ended


def _module_file(module: str) -> Path | None:
    """The source of a module, found without importing its packages; None where it has none.

    Raises:
        ConfigError: there is no such module.
    """
    parts = module.split(".")
    locations: Any = [*sys.path, str(Path.cwd())]
    spec = None
    for number in range(len(parts)):
        name = ".".join(parts[: number + 1])
        if not number and parts[0] in sys.builtin_module_names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, locations)
        if spec is None:
            if not number and importlib.util.find_spec(name) is not None:
                return None  # an editable install's own finder knows it
            raise ConfigError(
                f"there is no module {name}", "check its spelling; it must be installed or in this folder"
            )
        locations = spec.submodule_search_locations or []
    origin = spec.origin if spec is not None else None
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def _check_onnx(path: Path) -> None:
    """An ONNX file is one protobuf message whose field 7 is the graph."""
    _no_folder(path)
    fields: set[int] = set()
    size = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() < size:
            tag = _varint(file.read)
            if tag is None or not 1 <= tag >> 3 <= 50 or tag & 7 not in (0, 2):
                fields.clear()
                break
            length = _varint(file.read)
            if length is None:
                fields.clear()
                break
            if tag & 7 == 2:
                file.seek(length, 1)
            fields.add(tag >> 3)
        if file.tell() != size or 7 not in fields:
            raise ConfigError(f"{path} is no ONNX model{_look(path)}", "give a whole ONNX file")


def _varint(read: Callable[[int], bytes]) -> int | None:
    value = shift = 0
    while shift < 64:
        byte = read(1)
        if not byte:
            return None
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7
    return None


def _check_export(path: Path) -> None:
    """A `.pt2` is a zip with the program as JSON."""
    _no_folder(path)
    names = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    if any(name.endswith(".json") and "/models/" in f"/{name}" for name in names):
        return
    what = _look(path)
    if any(name.endswith("data.pkl") for name in names):
        code = any("/code/" in name for name in names)
        what = ": it is a TorchScript file" if code else ": it is a pickle of torch.save"
    raise ConfigError(
        f"{path} is not a program of torch.export{what}",
        "write it with torch.export.save(torch.export.export(model, arguments), 'model.pt2')",
    )


def _check_huggingface(path: Path) -> None:
    if not path.is_dir():
        raise ConfigError(f"{path} is a file, not a Hugging Face model's folder", "give the folder around it")
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{path} holds no config.json, so it is no Hugging Face model",
            f"give the folder that save_pretrained wrote; files there: {_names(path)}",
        )
    if _model_type(path) is None:
        raise ConfigError(
            f"{path / 'config.json'} says no model_type", "give the folder that save_pretrained wrote"
        )
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(one.name for one in path.glob("*.bin"))
    if pickled:
        raise ConfigError(
            f"{path} holds its weights as a pickle ({pickled[0]}), which could run any code",
            "load it once where you trust it, and save_pretrained writes safetensors",
        )
    raise ConfigError(f"{path} holds no *.safetensors", f"check the folder; files there: {_names(path)}")


def _check_checkpoint(path: Path) -> None:
    if not path.is_dir():
        raise ConfigError(
            f"{path} is a file, not a run's folder", "give the folder of a run, or of an export"
        )
    if (path / ABOUT).is_file():
        wanted = [PREPARED, "checkpoints"]
    elif _model_type(path) == MODEL_TYPE:
        wanted = ["model.safetensors", "tokenizer.json"]
    else:
        raise ConfigError(
            f"{path} is neither a run of ours (no {ABOUT}) nor an exported one (no config.json of model_type "
            f"{MODEL_TYPE})",
            f"check the path; files there: {_names(path)}",
        )
    missing = [name for name in wanted if not (path / name).exists()]
    if missing:
        raise ConfigError(
            f"{path} lacks {', '.join(missing)}",
            "give a run that trained a language model, with a checkpoint",
        )


def _existing(uses: str) -> Path:
    path = Path(uses)
    if not path.exists():
        raise ConfigError(f"there is no {uses}", "check the path")
    return path


def _no_folder(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder", f"name the file; files there: {_names(path)}")


def _model_type(path: Path) -> str | None:
    try:
        found = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    kind = found.get("model_type") if isinstance(found, dict) else None
    return kind if isinstance(kind, str) else None


def _look(path: Path) -> str:
    """What a file may be instead, as words."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return ": it is empty"
    if start.startswith(b"PK"):
        return ": it is a zip archive"
    if start.startswith(b"version https://git-lfs"):
        return ": it is a pointer of Git LFS, whose file was never fetched"
    try:
        start[:500].decode()
    except UnicodeDecodeError as error:
        if error.start < len(start[:500]) - 4:
            return ""
    return ": it is a text" if b"\0" not in start else ""


def _names(path: Path) -> str:
    return ", ".join(sorted(one.name for one in path.iterdir())[:8]) or "none"
