"""Our own checkpoints as a stage: from a run and from an export, the texts that `generate` writes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import torch

from shoestring.base.errors import CheckpointError, ConfigError
from shoestring.data.tokenizer import TextTokenizer, train_tokenizer
from shoestring.fleet.checkpoints import DiskKeeper, Manifest
from shoestring.fleet.rundirs import ABOUT, About
from shoestring.infer.batch import Answer, Batch, StageContext, StreamStage
from shoestring.infer.config import StageConfig
from shoestring.infer.decode import generate
from shoestring.infer.prepared import PREPARED
from shoestring.infer.stages import kind_of, load_stage
from shoestring.models.moe_lm.export import save_pretrained
from shoestring.models.moe_lm.model import MoeLM
from shoestring.parallel import tensorfiles
from tests.infer.tiny import tiny_moe

TEXTS = ["def main(", "", "import sys\n", "x = 12 * (y + 3)\nprint(x)\n" * 3]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer([b"def main():\n    print('hello')\n" * 20], 300)


@pytest.fixture(scope="module")
def model(tokenizer: TextTokenizer) -> MoeLM:
    return MoeLM(tiny_moe(tokenizer.vocab_size, 128, rope_theta=10_000.0), seed=5).eval()


def make_run(folder: Path, model: MoeLM, tokenizer: TextTokenizer) -> Path:
    """The directory of a run that has this model as its checkpoint."""
    path = folder / "mine-1"
    path.mkdir()
    (path / ABOUT).write_bytes(msgspec.json.encode(About("mine-1", "mine", "pretrain", 0.0)))
    tokenizer.save(folder / "words.json")
    prepared = {
        "settings": {"job": "pretrain", "model": model.config.model_dump()},
        "train_dir": "",
        "heldout_dir": "",
        "tokenizer": str(folder / "words.json"),
    }
    (path / PREPARED).write_text(json.dumps(prepared))
    keeper = DiskKeeper(path / "checkpoints", keep=1)
    aside = Path(keeper.begin(3))
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    files = tensorfiles.write(state, aside, rank=0)
    sizes = {one.name: (one.stat().st_size, hashlib.sha256(one.read_bytes()).hexdigest()) for one in files}
    keeper.commit(Manifest(3, 0.0, b"", sizes))
    return path


@pytest.fixture
def run_dir(tmp_path: Path, model: MoeLM, tokenizer: TextTokenizer) -> Path:
    return make_run(tmp_path, model, tokenizer)


def stage(path: Path, **options: Any) -> Any:
    return load_stage(StageConfig(uses=str(path), options=options), StageContext("it", seed=1))


def written(made: Any) -> Answer:
    made.take(0, Batch(pa.table({"text": TEXTS})))
    for _ in range(1000):
        if through := made.work():
            return through[0][1]
    raise AssertionError("the batch never got through")


def wanted(model: MoeLM, tokenizer: TextTokenizer) -> list[str]:
    """One text after the other, in the way of `shoestring generate`."""
    cpu = torch.device("cpu")
    out = []
    with torch.no_grad():
        for text in TEXTS:
            start = [tokenizer.start_id, *tokenizer.encode(text.encode())]
            ids = list(generate(model, start, 30, 0.0, 1.0, 0, tokenizer.end_id, cpu))
            out.append(tokenizer.decode(ids).decode(errors="replace"))
    return out


def test_a_run_and_its_export_write_what_generate_writes(
    tmp_path: Path, run_dir: Path, model: MoeLM, tokenizer: TextTokenizer
) -> None:
    exported = tmp_path / "exported"
    save_pretrained(model, exported)
    tokenizer.save(exported / "tokenizer.json")
    for path in (run_dir, exported):
        assert kind_of(StageConfig(uses=str(path))) == "checkpoint"
        made = stage(path, tokens=30, sequences=3)
        assert isinstance(made, StreamStage)
        answer = written(made)
        assert answer.columns["generated"].to_pylist() == wanted(model, tokenizer)
        assert not answer.errors


def test_other_names_and_types(run_dir: Path) -> None:
    answer = written(stage(run_dir, tokens=4, output="more", dtype="bf16"))
    assert list(answer.columns) == ["more", "more_tokens"] and not answer.errors
    with pytest.raises(ConfigError, match="top_p"):
        stage(run_dir, top_p=0.0)


def test_what_is_gone_is_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the tokenizer"):
        (tmp_path / "words.json").rename(tmp_path / "away.json")
        stage(run_dir)
    part = next((run_dir / "checkpoints").glob("*/*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        stage(run_dir)
    (run_dir / PREPARED).write_text(json.dumps({"settings": {}, "tokenizer": ""}))
    with pytest.raises(ConfigError, match="no run of a language model"):
        stage(run_dir)
    (run_dir / PREPARED).write_text("{")
    with pytest.raises(ConfigError, match="has no model yet"):
        stage(run_dir)
