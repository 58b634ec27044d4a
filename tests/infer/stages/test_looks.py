"""What a stage names, told by its look; what is wrong with it, before anything is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from shoestring.base.errors import ConfigError
from shoestring.infer.batch import StageContext
from shoestring.infer.config import StageConfig
from shoestring.infer.stages import check_stage, kind_of, load_stage

CODE = """
import math
class Model:
    def __init__(self, scale=1):
        self.scale = scale
    def setup(self, context):
        self.context = context
    def __call__(self, batch):
        return {"y": [value * self.scale for value in batch["x"]]}
class Silent:
    def __init__(self):
        self.ready = False
    def setup(self):
        self.ready = True
    def __call__(self, batch):
        return {}
class Uncallable:
    def run(self, batch):
        return {}
class Base(Uncallable):
    pass
class Stream:
    room = 3
    def take(self, ticket, batch): ...
    def work(self): return []
def double(batch, by=2):
    return {"y": [value * by for value in batch["x"]]}
NUMBER = 3
"""


def context() -> StageContext:
    return StageContext("it")


@pytest.fixture
def code(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return str(path)


def folder(path: Path, files: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (path / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_kinds_by_their_look(tmp_path: Path, code: str) -> None:
    hub = folder(tmp_path / "hub", {"config.json": {"model_type": "llama"}})
    ours = folder(tmp_path / "ours", {"config.json": {"model_type": "bailing_moe"}})
    run = folder(tmp_path / "run", {"run.json": {}})
    looks = {
        f"{code}:Model": "code",
        "package.module:Class": "code",
        "m.onnx": "onnx",
        "dir/M.PT2": "export",
        str(hub): "huggingface",
        str(ours): "checkpoint",
        str(run): "checkpoint",
    }
    assert {uses: kind_of(StageConfig(uses=uses)) for uses in looks} == looks
    assert kind_of(StageConfig(kind="images")) == "images"
    assert kind_of(StageConfig(kind="code", uses="x.onnx:F")) == "code"


@pytest.mark.parametrize(
    ("uses", "words"),
    [
        ("", "neither `uses` nor `kind`"),
        ("word", "cannot be told"),
        ("no/such", "there is no no/such"),
        ("no/such.py:A", "there is no file"),
        ("no_such_module.deep:A", "there is no module no_such_module"),
        ("shoestring.infer.nothing:A", "there is no module shoestring.infer.nothing"),
        ("shoestring.infer.batch:Batsch", "defines no Batsch"),
        ("m.onnx", "there is no m.onnx"),
    ],
)
def test_what_is_missing_is_said(uses: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_stage(StageConfig(uses=uses))
    assert caught.value.todo


def test_wrong_kinds_are_named(tmp_path: Path) -> None:
    text = tmp_path / "a.pt2"
    text.write_text("hello, this is no model")
    pickled = tmp_path / "b.pt2"
    with zipfile.ZipFile(pickled, "w") as archive:
        archive.writestr("b/data.pkl", b"\x80")
    scripted = tmp_path / "c.pt2"
    with zipfile.ZipFile(scripted, "w") as archive:
        archive.writestr("c/data.pkl", b"\x80")
        archive.writestr("c/code/m.py", "")
    empty = tmp_path / "d.onnx"
    empty.touch()
    words = tmp_path / "e.onnx"
    words.write_text("name,age\njane,3\n")
    pointer = tmp_path / "f.onnx"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    cut = tmp_path / "g.onnx"
    cut.write_bytes(b"\x08\x08\x3a\xff\xff\x03abc")
    bare = folder(tmp_path / "bare", {"readme": ""})
    bins = folder(tmp_path / "bins", {"config.json": {"model_type": "bert"}, "pytorch_model.bin": ""})
    half = folder(tmp_path / "half", {"config.json": {"model_type": "bert"}})
    unnamed = folder(tmp_path / "unnamed", {"config.json": "no json"})
    run = folder(tmp_path / "run", {"run.json": {}})
    for kind, path, words_of_it in [
        ("auto", text, "it is a text"),
        ("auto", pickled, "pickle of torch.save"),
        ("auto", scripted, "TorchScript"),
        ("auto", empty, "it is empty"),
        ("auto", words, "no ONNX model: it is a text"),
        ("auto", pointer, "Git LFS"),
        ("auto", cut, "no ONNX model"),
        ("onnx", bare, "is a folder"),
        ("auto", bare, "neither a config.json"),
        ("huggingface", bare, "no config.json"),
        ("huggingface", text, "is a file"),
        ("auto", bins, "pickle"),
        ("auto", half, "no \\*.safetensors"),
        ("huggingface", unnamed, "no model_type"),
        ("checkpoint", bare, "neither a run of ours"),
        ("checkpoint", text, "is a file"),
        ("auto", run, "lacks prepared.json, checkpoints"),
    ]:
        config = StageConfig(kind=kind, uses=str(path))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=words_of_it) as caught:
            check_stage(config)
        assert caught.value.todo
        with pytest.raises(ConfigError):
            load_stage(config, context())


def test_an_extra_package_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, extra in [("onnx", "onnx"), ("huggingface", "huggingface"), ("images", "images")]:
        with pytest.raises(ConfigError) as caught:
            check_stage(StageConfig(kind=kind, uses="x"))  # type: ignore[arg-type]
        assert caught.value.todo == f"pip install 'shoestring[{extra}]'"


def test_checking_loads_no_engine(tmp_path: Path, code: str) -> None:
    hub = folder(tmp_path / "hub", {"config.json": {"model_type": "llama"}, "model.safetensors": ""})
    program = (
        "import sys\n"
        "from shoestring.infer.config import StageConfig\n"
        "from shoestring.infer.stages import check_stage\n"
        f"for uses in ({f'{code}:Model'!r}, {str(hub)!r}):\n"
        "    check_stage(StageConfig(uses=uses))\n"
        "print(sorted({'torch', 'transformers', 'onnxruntime', 'PIL'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert out.stdout.strip() == "[]", out.stderr


def test_classes_and_functions_are_made_with_options(code: str) -> None:
    made: Any = load_stage(StageConfig(uses=f"{code}:Model", options={"scale": 3}), context())
    assert made({"x": [1, 2]}) == {"y": [3, 6]} and made.context == context()
    silent: Any = load_stage(StageConfig(uses=f"{code}:Silent"), context())
    assert silent.ready
    plain: Any = load_stage(StageConfig(uses=f"{code}:double"), context())
    by: Any = load_stage(StageConfig(uses=f"{code}:double", options={"by": 5}), context())
    assert plain({"x": [2]}) == {"y": [4]} and by({"x": [2]}) == {"y": [10]}
    stream: Any = load_stage(StageConfig(uses=f"{code}:Stream"), context())
    assert stream.room == 3


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Modell", {}, "defines no Modell"),
        ("Uncallable", {}, "no method `__call__`"),
        ("Base", {}, "cannot be called"),
        ("NUMBER", {}, "neither a class nor a function"),
        ("Model", {"size": 1}, "unexpected keyword argument 'size'"),
        ("double", {"times": 1}, "unexpected keyword argument 'times'"),
    ],
)
def test_code_that_is_no_stage(code: str, name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_stage(StageConfig(uses=f"{code}:{name}", options=options), context())


def test_a_syntax_error_is_found_before_the_job(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("class A:\n    def __call__(self batch): ...\n")
    with pytest.raises(ConfigError, match="line 2"):
        check_stage(StageConfig(uses=f"{path}:A"))


def test_what_users_code_raises_passes_through(tmp_path: Path) -> None:
    path = tmp_path / "raises.py"
    path.write_text(
        "class A:\n    def __init__(self): raise OSError('no weights')\n    def __call__(self, b): ...\n"
    )
    check_stage(StageConfig(uses=f"{path}:A"))
    with pytest.raises(OSError, match="no weights"):
        load_stage(StageConfig(uses=f"{path}:A"), context())


def test_files_beside_it_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("VALUE = 7\n")
    path = tmp_path / "uses_it.py"
    path.write_text("import beside_it\ndef stage(batch):\n    return {'v': beside_it.VALUE}\n")
    made: Any = load_stage(StageConfig(uses=f"{path}:stage"), context())
    assert made({}) == {"v": 7}
