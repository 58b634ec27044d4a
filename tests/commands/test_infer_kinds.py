"""Every kind of stage through the real command line: each row once, with what the model itself says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from onnx import TensorProto, helper
from PIL import Image

from shoestring.base.config import toml_value
from shoestring.commands.infer import job_config
from shoestring.data.tokenizer import train_tokenizer
from shoestring.infer import Pipeline
from shoestring.models.moe_lm.model import MoeLM
from tests.commands.infer_jobs import infer, rows, write_stage
from tests.infer.stages import test_checkpoint as checkpoints
from tests.infer.stages import test_huggingface as folders
from tests.infer.stages import test_models as files
from tests.infer.tiny import tiny_moe
from tests.rules.source import ROOT

ROWS = 30
WORDS = [" ".join(folders.TEXTS[n % 4].split()[: 1 + n // 4]) for n in range(ROWS)]
"""Texts of one to eight words."""


def job(folder: Path, columns: Mapping[str, Any], uses: Path, **stage: Any) -> list[dict[str, Any]]:
    """Rows of the output, in the order of the source, of one stage over a parquet file."""
    (folder / "data").mkdir()
    table = pa.table(columns)
    pq.write_table(table, folder / "data" / "a.parquet")
    stages = toml_value([{"uses": str(uses), "device": "cpu", **stage}])
    code, answer = infer(folder, "--set", f"stages={stages}", "--set", "shards.rows=12")
    assert code == 0 and answer["status"] == "finished", answer
    assert answer["result"]["rows"] == table.num_rows and answer["result"]["failed"] == 0
    found = rows(folder)
    assert sorted(found) == sorted(f"a.parquet#{n}" for n in range(table.num_rows))
    return [found[f"a.parquet#{n}"] for n in range(table.num_rows)]


def test_an_onnx_file_over_numbers_and_texts(tmp_path: Path) -> None:
    path = files.onnx_file(tmp_path / "model.onnx", 4)
    x = np.random.default_rng(0).normal(size=(ROWS, 6)).astype(np.float32)
    inputs = {"x": "numbers", "t": "words"}
    columns = {"numbers": x.tolist(), "words": WORDS}
    found = job(tmp_path, columns, Path(path), batch=7, options={"inputs": inputs})
    session = onnxruntime.InferenceSession(path)
    for start in range(0, ROWS - 2, 4):  # the model insists on four rows
        given = {"x": x[start : start + 4].reshape(4, 2, 3), "t": np.array(WORDS[start : start + 4], object)}
        wanted, same = session.run(["y", "same"], given)
        assert np.array_equal([row["y"] for row in found[start : start + 4]], wanted)
        assert [row["same"] for row in found[start : start + 4]] == list(same)
    assert np.array_equal([row["y"] for row in found], 2 * x.reshape(ROWS, 2, 3) + 1)
    assert [row["same"] for row in found] == WORDS


def test_an_exported_program(tmp_path: Path) -> None:
    path, model = files.program(tmp_path / "model.pt2", dynamic=True)
    torch.manual_seed(1)
    x, y = torch.randn(ROWS, 4), torch.arange(ROWS * 2).view(ROWS, 2)
    found = job(tmp_path, {"x": x.tolist(), "y": y.tolist()}, Path(path), batch=11)  # it takes eight
    with torch.no_grad():
        wanted = model(x, y)
    assert np.allclose([row["a"] for row in found], wanted["a"].numpy(), atol=1e-6)
    assert [row["b"] for row in found] == wanted["b"].tolist()


def test_a_folder_that_classifies(tmp_path: Path) -> None:
    names = {0: "x", 1: "y", 2: "z"}
    kind = transformers.BertForSequenceClassification
    model = folders.bert(tmp_path / "model", kind, num_labels=3, id2label=names)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    found = job(tmp_path, {"text": WORDS}, tmp_path / "model", batch=8, options={"scores": True})
    with torch.no_grad():
        wanted = [model(**words(text, return_tensors="pt")).logits[0].softmax(-1).numpy() for text in WORDS]
    assert np.allclose([row["scores"] for row in found], wanted, atol=1e-4)
    assert [row["label"] for row in found] == [names[int(one.argmax())] for one in wanted]


def test_a_folder_that_writes_many_texts_at_a_time(tmp_path: Path) -> None:
    folders.causal(tmp_path / "model")
    # `ours` is refused where a model cannot be run as a stream, so this one was.
    options = {"engine": "ours", "tokens": 12, "sequences": 8}
    texts = [folders.TEXTS[n % 4] for n in range(ROWS)]
    found = job(tmp_path, {"text": texts}, tmp_path / "model", batch=4, options=options)
    wanted = folders.own_texts(tmp_path / "model", 12)
    assert len(set(wanted)) == 4
    assert [row["generated"] for row in found] == [wanted[n % 4] for n in range(ROWS)]


def test_a_run_of_ours_writes_texts(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([b"def main():\n    print('hello')\n" * 20], 300)
    model = MoeLM(tiny_moe(tokenizer.vocab_size, 128, rope_theta=10_000.0), seed=5).eval()
    trained = checkpoints.make_run(tmp_path, model, tokenizer)
    texts = [checkpoints.TEXTS[n % 4] for n in range(ROWS)]
    found = job(tmp_path, {"text": texts}, trained, options={"tokens": 30, "sequences": 3})
    wanted = checkpoints.wanted(model, tokenizer)
    assert len(set(wanted)) == 4
    assert [row["generated"] for row in found] == [wanted[n % 4] for n in range(ROWS)]


DETECTOR = """
import io
import numpy as np
from PIL import Image
from shoestring.infer.batch import Answer

class Detector:
    def __call__(self, batch):
        boxes, counts = [], []
        for data in batch["bytes"]:
            width, height = Image.open(io.BytesIO(data)).size
            counts.append(width - 8)
            boxes += [[width, height, place] for place in range(width - 8)]
        return Answer({"box": np.array(boxes, np.float32).reshape(-1, 3)}, counts=counts)
"""


def classifier(path: Path) -> Path:
    """[n, 3] -> `label`, which of three sums is the largest, and `together`, the n of the call."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["box", "weights"], ["sums"]),
            helper.make_node("ArgMax", ["sums"], ["label"], axis=1, keepdims=0),
            helper.make_node("Shape", ["label"], ["n"]),
            helper.make_node("Expand", ["n", "n"], ["together"]),
        ],
        "g",
        [helper.make_tensor_value_info("box", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows"]) for name in ("label", "together")],
        [helper.make_tensor("weights", TensorProto.FLOAT, [3, 3], WEIGHTS.ravel().tolist())],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


WEIGHTS = np.diag([1.0, 1.1, 4.0]).astype(np.float32)


def test_the_graph_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_stage(tmp_path, DETECTOR).rename(tmp_path / "detect.py")
    classifier(tmp_path / "classify.onnx")
    sizes = {f"{n // 60}/{n}.jpg": (8 + n % 7, 8 + n % 5) for n in range(120)}
    for name, size in sizes.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "photos" / name)
    result = (
        Pipeline("photos/**/*.jpg", "labels", settings={"shards.rows": 15})
        .stage("detect.py:Detector")
        .stage("classify.onnx", batch=64, max_wait_s=20.0)  # a slow machine shall not send out less
        .run()
    )
    assert (result.rows, result.failed) == (120, 0)
    found = pq.read_table("labels").to_pylist()
    assert sorted(row["row"] for row in found) == sorted(f"{name}#0" for name in sizes)
    session = onnxruntime.InferenceSession("classify.onnx")
    together = []
    for row in found:
        width, height = sizes[row["row"].removesuffix("#0")]
        boxes = np.array([[width, height, place] for place in range(width - 8)], np.float32)
        assert row["label"] == session.run(["label"], {"box": boxes.reshape(-1, 3)})[0].tolist(), row
        together += row["together"]
    assert {label for row in found for label in row["label"]} == {0, 1, 2}
    assert len(together) == sum(width - 8 for width, _ in sizes.values())
    assert max(together) == 64, "objects of several shards, of 51 at the most, made full batches"


def test_the_job_of_the_design_page_is_one(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "design" / "batch-inference.md").read_text()
    (tmp_path / "job.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    found = job_config(tmp_path / "job.toml", (), (), "", (), ())
    assert found.source.files == ("photos/**/*.jpg",) and found.sink.columns == ("name", "label")
    assert [(one.uses, one.after, one.batch) for one in found.stages] == [
        ("detect.py:Detector", "", 0),
        ("classify.onnx", "detector", 64),
    ]
