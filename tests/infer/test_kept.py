"""A job is of its models, too: another one under the same name is another job; code may be mended."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoestring.data.row_index import RowIndex
from shoestring.fleet.rundirs import ABOUT
from shoestring.infer import kept
from shoestring.infer.config import InferConfig, StageConfig


def fingerprint(folder: Path, uses: str) -> str:
    (folder / "rows.csv").write_text("x\n1\n")
    os.utime(folder / "rows.csv", ns=(1, 1))
    config = InferConfig.model_validate(
        {"source": {"files": (str(folder / "rows.csv"),)}, "stages": (StageConfig(uses=uses),)}
    )
    return kept.job_fingerprint(config, RowIndex.build(config.source))


def put(path: Path, data: bytes, at_ns: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(at_ns, at_ns))


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "model.pt2"])
def test_another_model_in_the_same_file_is_another_job(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    uses = str(path).removesuffix(".data")
    put(Path(uses), b"model")
    put(path, b"model")
    before = fingerprint(tmp_path, uses)
    assert fingerprint(tmp_path, uses) == before
    put(path, b"larger")
    larger = fingerprint(tmp_path, uses)
    put(path, b"modem", at_ns=11)
    assert len({before, larger, fingerprint(tmp_path, uses)}) == 3
    put(path, b"model")
    assert fingerprint(tmp_path, uses) == before


def test_so_is_another_file_in_a_models_folder_but_for_code(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    put(folder / "config.json", b"{}")
    put(folder / "weights/a.safetensors", b"1")
    before = fingerprint(tmp_path, str(folder))
    put(folder / "modeling.py", b"code")
    put(folder / ".cache/lock", b"")
    assert fingerprint(tmp_path, str(folder)) == before
    put(folder / "weights/a.safetensors", b"2", at_ns=11)
    assert fingerprint(tmp_path, str(folder)) != before


def test_of_a_run_its_newest_checkpoint_counts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in (ABOUT, "events.jsonl", "checkpoints/step-00000001/a", "checkpoints/step-00000002/a"):
        put(run / name, b"1")
    before = fingerprint(tmp_path, str(run))
    put(run / "events.jsonl", b"1\n2")
    put(run / "checkpoints/step-00000003.tmp/a", b"half")
    (run / "checkpoints/step-00000001/a").unlink()
    assert fingerprint(tmp_path, str(run)) == before
    put(run / "checkpoints/step-00000003/a", b"3")
    assert fingerprint(tmp_path, str(run)) != before


def test_code_may_be_mended(tmp_path: Path) -> None:
    put(tmp_path / "model.py", b"class Model: pass")
    before = fingerprint(tmp_path, f"{tmp_path / 'model.py'}:Model")
    put(tmp_path / "model.py", b"class Model: mended = 1", at_ns=11)
    assert fingerprint(tmp_path, f"{tmp_path / 'model.py'}:Model") == before
