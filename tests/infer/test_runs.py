"""Who a job is: fingerprints, tokens, and finding it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.base.errors import RunError
from shoestring.data.row_index import RowIndex
from shoestring.fleet.rundirs import About
from shoestring.infer import kept
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.rehearsal import Rehearsal, StageCost
from shoestring.infer.settle import settled


@pytest.fixture
def config(tmp_path: Path) -> InferConfig:
    (tmp_path / "rows.csv").write_text("x\n1\n2\n3\n")
    return configured(tmp_path)


def configured(folder: Path, **stage: object) -> InferConfig:
    fields = {"uses": "model.py:Model", **stage}
    return InferConfig.model_validate(
        {
            "source": {"files": (str(folder / "rows.csv"),)},
            "stages": (StageConfig.model_validate(fields),),
            "sink": {"path": str(folder / "out")},
        }
    )


def test_a_job_is_its_rows_stages_and_sink_not_how_fast_it_works(config: InferConfig, tmp_path: Path) -> None:
    index = RowIndex.build(config.source)
    same = kept.job_fingerprint(config, index)
    faster = configured(tmp_path, batch=64, processes=3, max_wait_s=1.0, hang_s=5.0)
    assert kept.job_fingerprint(faster, index) == same
    other = configured(tmp_path, options={"threshold": 0.5})
    assert kept.job_fingerprint(other, index) != same
    assert kept.source_fingerprint(other, index) == kept.source_fingerprint(config, index)
    sink = config.sink.model_copy(update={"format": "csv"})
    assert kept.source_fingerprint(
        config.model_copy(update={"sink": sink}), index
    ) != kept.source_fingerprint(config, index)


def test_other_rows_are_another_job(config: InferConfig, tmp_path: Path) -> None:
    before = kept.job_fingerprint(config, RowIndex.build(config.source))
    (tmp_path / "rows.csv").write_text("x\n1\n2\n3\n4\n")
    assert kept.job_fingerprint(config, RowIndex.build(config.source)) != before


def test_a_run_is_found_by_its_token_and_a_token_tells_its_job(tmp_path: Path) -> None:
    about = About("infer-2", "infer", "infer", 12.5)
    token = kept.token_of(about, "f" * 64)
    assert token == kept.token_of(about, "f" * 64) and token != kept.token_of(
        About("infer-3", "infer", "infer", 12.5), "f" * 64
    )
    assert kept.same_job(token, "f" * 64) and not kept.same_job(token, "e" * 64)
    for name, one in (("infer-1", "a-b"), ("infer-2", token)):
        (tmp_path / name).mkdir()
        kept.write_identity(tmp_path / name, kept.Identity(one, "s", "j", {"model.y": "int64"}))
    assert kept.find_by_token(tmp_path, token) == tmp_path / "infer-2"
    assert kept.find_by_token(tmp_path, "0-0") is None
    found = kept.read_identity(tmp_path / "infer-2")
    assert found is not None and found.columns == {"model.y": "int64"}


def test_a_trial_is_kept_whole(tmp_path: Path) -> None:
    assert kept.read_rehearsal(tmp_path) is None
    cost = StageCost("model", 0.1, 0.2, 0.2, 1.0, 0.9, b"schema", 8, 10)
    trial = Rehearsal(9, {"model": cost}, 0.1, 0.2, 0.3, 0.4, 10.0, 5.0, 64, {"bad": 1}, 2.0)
    kept.write_rehearsal(tmp_path, trial)
    assert kept.read_rehearsal(tmp_path) == trial


def test_damage_is_told(tmp_path: Path) -> None:
    (tmp_path / kept.JOB).write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        kept.read_identity(tmp_path)


def test_local_paths_do_not_depend_on_where_a_job_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    config = InferConfig.model_validate(
        {
            "source": {"files": ("data/*.csv", "s3://bucket/*.csv")},
            "sink": {"path": "out"},
            "stages": tuple(
                StageConfig(uses=one) for one in ("model.py:Model", "model.onnx", "package.models:Model", "")
            ),
        }
    )
    found = settled(config)
    assert found.source.files == (f"{tmp_path}/data/*.csv", "s3://bucket/*.csv")
    assert found.sink.path == f"{tmp_path}/out"
    assert [stage.uses for stage in found.stages] == [
        f"{tmp_path}/model.py:Model",
        f"{tmp_path}/model.onnx",
        "package.models:Model",
        "",
    ]
    assert settled(found) == found
