"""Tiny batch inference jobs, run by the real command line: in this process, which saves its imports."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner, Result

from shoestring import cli

STAGE = """
import math, time
import numpy as np

class Scale:
    def __init__(self, factor=2, slow_s=0.0):
        self.factor, self.slow_s = factor, slow_s

    def setup(self, context):
        self.name = context.name

    def __call__(self, batch):
        time.sleep(self.slow_s * len(batch))
        return {"scaled": batch["x"] * self.factor}

class Root:
    def __call__(self, batch):
        x = batch["x"].astype(float)
        with np.errstate(invalid="ignore"):
            return {"root": np.sqrt(x)}

class Buggy:
    def __call__(self, batch):
        return {"scaled": batch["no_such_column"]}
"""


def write_stage(folder: Path, text: str = STAGE) -> Path:
    """`stages.py`."""
    path = folder / "stages.py"
    path.write_text(textwrap.dedent(text))
    return path


def write_csv(path: Path, numbers: Iterable[int]) -> Path:
    """Rows of `x` and a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x,text\n" + "".join(f"{x},row {x}\n" for x in numbers))
    return path


def here(*arguments: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(cli.build(), arguments, prog_name="shoestring")


def infer(folder: Path, *arguments: str, stage: str = "stages.py:Scale") -> tuple[int, dict[str, Any]]:
    """`shoestring infer --json` with `folder`'s data, stage, output and runs; exit code and answer."""
    done = here(*words(folder, *arguments, stage=stage))
    assert done.stdout.strip(), (done.stderr, done.exception)
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.exit_code, answer


def words(folder: Path, *arguments: str, stage: str = "stages.py:Scale") -> list[str]:
    """The command line of such a job."""
    where = ["--source", str(folder / "data"), "--output", str(folder / "out")]
    stages = ["--stage", str(folder / stage) if ".py" in stage else stage]
    return ["infer", *where, *stages, "--runs-dir", str(folder / "runs"), "--json", *arguments]


def output(folder: Path) -> pa.Table:
    """All rows of the output, as any reader of Parquet data sets sees them."""
    return pq.read_table(folder / "out")


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Identity -> the row; each identity stands there once."""
    found = output(folder).to_pylist()
    by_identity = {row["row"]: row for row in found}
    assert len(by_identity) == len(found), "a row is there twice"
    return by_identity
