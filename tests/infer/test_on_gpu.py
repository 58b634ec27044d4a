"""Batch inference on a real GPU: who computes there, with how much of it, and what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.infer.generate import continuous, model_of, rows_of
from shoestring.infer.batch import Batch, StageContext
from shoestring.infer.config import StageConfig
from shoestring.infer.stages import load_stage
from tests.commands.journeys import shoestring
from tests.needs_gpu import needs_gpu

pytestmark = needs_gpu
ROWS = 4000
STAGES = '''
import os, signal
import numpy as np
import torch

class Square:
    """On the device that it is given; `where` tells which, and which process."""
    def setup(self, context):
        self.device = torch.device(context.device)
        self.share = context.device_share
        self.weight = torch.full((64, 64), 0.5, device=self.device)
    def __call__(self, batch):
        x = torch.as_tensor(batch["x"], dtype=torch.float32, device=self.device)
        y = x * x + self.weight.sum() * 0
        where = [str(x.device)] * len(batch)
        part = torch.cuda.get_per_process_memory_fraction(self.device)
        pids, parts = [os.getpid()] * len(batch), [part] * len(batch)
        return {"y": y.cpu().numpy(), "where": where, "pid": pids, "part": parts}

class Dies(Square):
    """Its first process is killed at a row in the middle."""
    def __init__(self, mark):
        self.mark = mark
    def __call__(self, batch):
        if 2000 in batch["x"] and not os.path.exists(self.mark):
            open(self.mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)

class Hungry(Square):
    """Its memory grows with the batch: about 40 rows fit."""
    def setup(self, context):
        super().setup(context)
        whole = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction((2 << 30) / whole, self.device)
    def __call__(self, batch):
        torch.empty(len(batch) * (48 << 20), dtype=torch.uint8, device=self.device)
        return super().__call__(batch)

class Plain:
    """Uses no GPU, whatever it is given."""
    def __call__(self, batch):
        return {"y": np.sqrt(batch["x"].astype(float)), "pid": [os.getpid()] * len(batch)}
'''


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "stages.py").write_text(STAGES)
    pq.write_table(pa.table({"x": np.arange(ROWS)}), tmp_path / "rows.parquet")
    return tmp_path


def infer(folder: Path, stage: str, *words: str) -> tuple[pa.Table, dict[str, Any]]:
    """Run a job to its end; its rows and what the command said."""
    stages = ["--stage", f"{folder / 'stages.py'}:{stage}"] if stage else []
    done = shoestring(
        "infer", *words, *stages, "--source", str(folder / "rows.parquet"), "--output", str(folder / "out"),
        "--runs-dir", str(folder / "runs"), "--name", "it", "--json", timeout_s=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    table = ds.dataset(folder / "out", format="parquet").to_table().sort_by("x")
    assert table["x"].to_pylist() == list(range(ROWS))
    assert table["error"].null_count == ROWS
    return table, json.loads(done.stdout)


def events(folder: Path) -> str:
    return (folder / "runs" / "it" / "events.jsonl").read_text()


def test_a_stage_gets_the_gpu_that_there_is(rows: Path) -> None:
    table, _ = infer(rows, "Square")
    assert table["y"].to_pylist() == [float(x * x) for x in range(ROWS)]
    assert set(table["where"].to_pylist()) == {"cuda:0"}


def test_processes_share_a_gpu_and_one_of_them_is_killed(rows: Path) -> None:
    (rows / "job.toml").write_text(
        f'''[[stages]]
uses = "{rows / "stages.py"}:Dies"
options = {{ mark = "{rows / "mark"}" }}
device_share = 0.5
processes = 2
batch = 50
'''
    )
    table, _ = infer(rows, "", str(rows / "job.toml"))
    assert set(table["where"].to_pylist()) == {"cuda:0"}
    assert set(table["part"].to_pylist()) == {0.5}, "each is held to its part"
    assert (rows / "mark").exists() and len(set(table["pid"].to_pylist())) >= 2


def test_a_batch_that_finds_no_memory_on_the_gpu_gets_smaller(rows: Path) -> None:
    stage = f'[[stages]]\nuses = "{rows / "stages.py"}:Hungry"\nbatch = 80\n'
    (rows / "job.toml").write_text(stage)  # left free, it may stay small: growth goes by the clock
    table, _ = infer(rows, "", str(rows / "job.toml"))
    assert table["y"].to_pylist() == [float(x * x) for x in range(ROWS)]
    assert "80 items did not fit into memory" in events(rows), "no batch was refused: it proves nothing"


def test_a_stage_that_uses_no_gpu_is_not_bounded_by_gpus(rows: Path) -> None:
    _, told = infer(rows, "Plain")
    assert '"off_gpu":["plain"]' in events(rows).replace(" ", ""), told


def test_an_exported_program_computes_on_the_gpu(tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 + 1

    dynamic = {"x": {0: torch.export.Dim("rows", min=1, max=1024)}}
    program = torch.export.export(Twice(), (torch.ones(4, 3),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "twice.pt2")
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    batch = Batch(pa.table({"x": [row.tolist() for row in x]}))
    made = load_stage(StageConfig(uses=str(tmp_path / "twice.pt2")), StageContext("it", device="cuda:0"))
    answer = made(batch)  # type: ignore[operator]
    columns = answer.columns if hasattr(answer, "columns") else answer
    (values,) = columns.values()
    assert np.allclose(np.asarray(values).reshape(50, 3), x * 2 + 1)


def test_texts_on_the_gpu_are_those_of_the_model_itself() -> None:
    rows = rows_of(24, seed=3)
    model = model_of("small").to("cuda")
    texts, counts = continuous(model, rows, sequences=16, cache_tokens=16 * 256)
    assert counts
    model.set_attn_implementation("sdpa")
    for row, text in zip(rows, texts, strict=True):
        ids = torch.tensor([row.prompt], device="cuda")
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=row.tokens, do_sample=False
        )
        assert text == out[0, len(row.prompt) :].tolist()
