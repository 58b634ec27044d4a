"""Stages that are files of models or images: right numbers, rows that do not fit, batches of any size."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from shoestring.base.errors import ConfigError, InferError
from shoestring.infer.answers import normalised
from shoestring.infer.batch import Answer, Batch, StageContext
from shoestring.infer.config import StageConfig
from shoestring.infer.stages import load_stage


def stage(kind: str, uses: str = "", **options: Any) -> Any:
    return load_stage(StageConfig(kind=kind, uses=uses, options=options), StageContext("it"))  # type: ignore[arg-type]


def batch(**columns: Any) -> Batch:
    return Batch(pa.table(columns))


def seen(answer: Answer, rows: int) -> Batch:
    """An answer as the next stage sees it."""
    return Batch(normalised(answer, rows, None, "it").table)


def onnx_file(path: Path, size: int | str) -> str:
    """y = 2 x + 1 of [size, 2, 3], and t, texts, as they are."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["d"]),
            helper.make_node("Add", ["d", "one"], ["y"]),
            helper.make_node("Identity", ["t"], ["same"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, 2, 3]),
            helper.make_tensor_value_info("t", TensorProto.STRING, [size]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, 2, 3]),
            helper.make_tensor_value_info("same", TensorProto.STRING, [size]),
        ],
        [
            helper.make_tensor("two", TensorProto.FLOAT, [], [2.0]),
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return str(path)


def matrices(rows: int) -> Any:
    return np.arange(rows * 6, dtype=np.float64).reshape(rows, 2, 3)


def test_a_gpu_that_this_onnxruntime_cannot_use_is_left_alone_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "m.onnx", "n")
    context = StageContext("it", device="cuda:0")
    given = batch(x=[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]], t=["a"])
    answer = load_stage(StageConfig(uses=path), context)(given)  # type: ignore[operator]
    assert answer.columns["y"].tolist() == [[[3.0, 5.0, 7.0], [9.0, 11.0, 13.0]]]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ConfigError, match="cannot use a GPU"):
            load_stage(StageConfig(uses=path, device="cuda"), context)


@pytest.mark.parametrize("size", ["n", 4])
def test_onnx_by_name_in_any_batch(tmp_path: Path, size: int | str) -> None:
    made = stage("onnx", onnx_file(tmp_path / "m.onnx", size), inputs={"t": "words"})
    for rows in (1, 4, 7):
        x = matrices(rows)
        words = [f"w{row}" for row in range(rows)]
        for column in (
            pa.FixedShapeTensorArray.from_numpy_ndarray(x),
            x.reshape(rows, 6).tolist(),
            x.tolist(),
        ):
            answer = made(batch(x=column, words=words))
            assert not answer.errors
            found = seen(answer, rows)
            assert np.array_equal(found["y"], 2 * x + 1)
            assert list(found["same"]) == words
    made.close()


def test_onnx_rows_that_do_not_fit_fail_alone(tmp_path: Path) -> None:
    made = stage("onnx", onnx_file(tmp_path / "m.onnx", "n"))
    rows = [[1.0] * 6, None, [1.0] * 5, [2.0] * 6]
    answer = made(batch(x=rows, t=["a", "b", "c", None]))
    assert set(answer.errors) == {1, 2, 3}
    assert "missing" in answer.errors[1] and "shape 5" in answer.errors[2] and "2x3" in answer.errors[2]
    assert seen(answer, 4)["y"][0] == [[3.0] * 3] * 2
    alone = made(batch(x=pa.nulls(2, pa.list_(pa.float32())), t=["a", "b"]))
    assert set(alone.errors) == {0, 1} and not alone.columns, "rows that do not fit reached the model"


def test_onnx_says_what_does_not_fit(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "m.onnx", "n")
    with pytest.raises(ConfigError, match="names 'z'"):
        stage("onnx", path, inputs={"z": "x"})
    with pytest.raises(ConfigError, match="outputs names 'z'"):
        stage("onnx", path, outputs=["z"])
    with pytest.raises(ConfigError, match="input"):
        stage("onnx", path, input={"z": "x"})
    with pytest.raises(InferError, match="no column 'x'"):
        stage("onnx", path)(batch(a=[1]))
    data = bytearray((tmp_path / "m.onnx").read_bytes())
    at = data.index(b"Identity")
    data[at : at + 8] = b"Nonesuch"
    (tmp_path / "odd.onnx").write_bytes(data)
    with pytest.raises(ConfigError, match="onnxruntime cannot load"):
        stage("onnx", str(tmp_path / "odd.onnx"))


class Sums(torch.nn.Module):
    """Two inputs, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": self.line(x), "b": y.sum(-1)}


def program(path: Path, dynamic: bool) -> tuple[str, Sums]:
    torch.manual_seed(0)
    model = Sums().eval()
    rows = torch.export.Dim("rows", min=1, max=8)
    dynamic_shapes = {"x": {0: rows}, "y": {0: rows}} if dynamic else None
    exported = torch.export.export(
        model, (torch.randn(4, 4), torch.zeros(4, 2, dtype=torch.int64)), dynamic_shapes=dynamic_shapes
    )
    torch.export.save(exported, path)
    return str(path), model


@pytest.mark.parametrize("dynamic", [True, False])
def test_exported_programs_in_any_batch(tmp_path: Path, dynamic: bool) -> None:
    path, model = program(tmp_path / "m.pt2", dynamic)
    made = stage("export", path, inputs={"y": "numbers"})
    for rows in (1, 4, 11):
        x = torch.randn(rows, 4)
        numbers = torch.arange(rows * 2).view(rows, 2)
        answer = made(batch(x=x.tolist(), numbers=numbers.tolist()))
        with torch.no_grad():
            wanted = model(x, numbers)
        table = seen(answer, rows)
        assert not answer.errors
        assert np.allclose(table["a"], wanted["a"].numpy(), atol=1e-6)
        assert table["b"].tolist() == wanted["b"].tolist()
    named = stage("export", path, inputs={"y": "numbers"}, outputs=["first", "second"])
    answer = named(batch(x=[[0.0] * 4, [1.0] * 3], numbers=[[1, 2], [3, 4]]))
    assert list(answer.columns) == ["first", "second"] and set(answer.errors) == {1}
    with pytest.raises(ConfigError, match="names 'z'"):
        stage("export", path, inputs={"z": "x"})


def rewritten(source: str, path: Path, change: Any, more: dict[str, bytes]) -> str:
    """A copy of an archive with `change` made to its files, and more of them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
        for name, data in more.items():
            new.writestr(f"{root}/{name}", data)
    return str(path)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def test_exported_programs_that_could_run_code_are_refused(tmp_path: Path) -> None:
    source, _ = program(tmp_path / "m.pt2", dynamic=True)
    trap = tmp_path / "trap"
    pickled = io.BytesIO()
    torch.save((Evil(trap),), pickled)

    def in_model(old: str, new: str) -> Any:
        def change(name: str, data: bytes) -> bytes:
            if not name.startswith("models/"):
                return data
            assert old.encode() in data
            return data.replace(old.encode(), new.encode())

        return change

    def as_pickle(name: str, data: bytes) -> bytes:
        if name == "data/weights/weight_0":
            return pickled.getvalue()
        return (
            data.replace(b'"use_pickle": false', b'"use_pickle": true')
            if name.endswith("config.json")
            else data
        )

    def samples(name: str, data: bytes) -> bytes:
        return pickled.getvalue() if name.startswith("data/sample_inputs/") else data

    def opaque(name: str, data: bytes) -> bytes:
        if name != "data/constants/model_constants_config.json":
            return data
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
        return json.dumps({"config": {"c": entry}}).encode()

    def same(name: str, data: bytes) -> bytes:
        return data

    for place, (words, change, more) in enumerate(
        [
            ("kept as a pickle", as_pickle, {}),
            ("sample inputs", samples, {}),
            ("kept as a pickle", opaque, {"data/constants/opaque_obj_0": b"x"}),
            ("compiled library", same, {"data/aotinductor/m/x.so": b"x"}),
            ("older torch", same, {"data/weights/model.pt": pickled.getvalue()}),
            ("older torch", same, {"data/Weights/model.PT": pickled.getvalue()}),
            ("two files of one name", same, {"Models/model.json": b"{}"}),
            ("no operator", in_model("torch.ops.aten.linear.default", "torch.os.system"), {}),
            ("a size is", in_model('"expr_str": "Symbol(', '"expr_str": "().__class__.f('), {}),
            ("a size is", in_model('"expr_str": "Symbol(', '"expr_str": "open('), {}),
        ]
    ):
        path = rewritten(source, tmp_path / f"{place}.pt2", change, more)
        with pytest.raises(ConfigError, match=f"is refused.*{words}"):
            stage("export", path)
    assert not trap.exists()
    assert stage("export", rewritten(source, tmp_path / "same.pt2", same, {})), "an untouched copy is let in"


def encoded(size: tuple[int, int], color: tuple[int, int, int] = (200, 100, 50), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, kind)
    return out.getvalue()


def test_images_become_pixels() -> None:
    made = stage("images", size=[4, 6])
    files = [encoded((20, 10)), encoded((3, 3), kind="JPEG"), encoded((4, 4), kind="WEBP")]
    answer = made(batch(bytes=files))
    pixels = seen(answer, 3)["pixels"]
    assert pixels.shape == (3, 4, 6, 3) and pixels.dtype == np.uint8 and not answer.errors
    assert np.abs(pixels.astype(int) - [200, 100, 50]).max() < 8
    ready = stage(
        "images",
        size=[4, 6],
        dtype="float32",
        mean=[0.5, 0.5, 0.5],
        std=[0.5, 0.5, 0.5],
        layout="chw",
        fit="crop",
    )
    pixels = seen(ready(batch(bytes=files[:1])), 1)["pixels"]
    assert pixels.shape == (1, 3, 4, 6)
    assert np.allclose(pixels[0, :, 0, 0], np.array([200, 100, 50]) / 127.5 - 1, atol=1e-5)


def test_a_crop_takes_the_middle() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    out = io.BytesIO()
    Image.fromarray(wide).save(out, "PNG")
    pixels = stage("images", size=[10, 10], fit="crop")(batch(bytes=[out.getvalue()])).columns["pixels"]
    assert pixels.min() == 255


def test_images_that_cannot_be_decoded_fail_alone() -> None:
    good = encoded((8, 8))
    huge = encoded((2000, 1000))
    files = [good, b"no image", good[:40], None, huge, b"", good]
    answer: Answer = stage("images", size=[2, 2], max_pixels=1_000_000)(
        batch(bytes=pa.array(files, pa.binary()))
    )
    assert set(answer.errors) == {1, 2, 3, 4, 5}
    assert "cannot be decoded" in answer.errors[1] and "max_pixels" in answer.errors[4]
    assert len(answer.columns["pixels"]) == 7
    with pytest.raises(InferError, match="no column 'bytes'"):
        stage("images")(batch(other=[1]))
