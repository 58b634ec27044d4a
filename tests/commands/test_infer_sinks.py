"""Every format of output, and a source and a sink behind a URL, through the real command line."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.commands.infer_jobs import infer, rows, write_csv, write_stage
from tests.commands.journeys import shoestring

ROWS, BAD = 100, 41

STAGE = """
import struct
import numpy as np
from shoestring.infer.batch import Answer

class Many:
    def __call__(self, batch):
        x = batch["x"]
        said = [f'{n} said "hm,\\n{chr(228 + n % 3)}"' for n in x]
        root = [float("nan") if n % 10 == 3 else n / 4 for n in x]
        columns = {
            "said": said, "root": root, "pair": [[n, n + 1] for n in x],
            "image": [None if n % 10 == 4 else struct.pack("<iq", n, n) for n in x],
        }
        return Answer(columns, errors={i: "forty-one" for i, n in enumerate(x) if n == 41})
"""


def said(x: int) -> str:
    return f'{x} said "hm,\n{chr(228 + x % 3)}"'


def picture(x: int) -> bytes | None:
    return None if x % 10 == 4 else x.to_bytes(4, "little") + x.to_bytes(8, "little")


def parts(out: Path, suffix: str) -> list[Path]:
    """Files of output, in the order of rows."""
    found = sorted(out.glob(f"part-*{suffix}"))
    assert len(found) == 3, "shards of forty rows"
    return found


def of_jsonl(out: Path) -> None:
    lines = [line for path in parts(out, ".jsonl") for line in path.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    assert [row["row"] for row in found] == [f"a.csv#{x}" for x in range(ROWS)]
    for x, row in enumerate(found):
        good = x != BAD
        assert (row["x"], row["text"]) == (x, f"row {x}") and (row["error"] is None) == good
        assert row["said"] == (said(x) if good else None) and row["pair"] == ([x, x + 1] if good else None)
        assert row["root"] == (x / 4 if good and x % 10 != 3 else None), "JSON has no NaN"
    assert "forty-one" in found[BAD]["error"]


def of_csv(out: Path) -> None:
    found = []
    for path in parts(out, ".csv"):
        with path.open(newline="", encoding="utf-8") as stream:
            found += list(csv.DictReader(stream))
    assert [row["row"] for row in found] == [f"a.csv#{x}" for x in range(ROWS)]
    for x, row in enumerate(found):
        assert (row["x"], row["text"]) == (str(x), f"row {x}")
        if x == BAD:
            assert (row["said"], row["root"], row["pair"]) == ("", "", "") and "forty-one" in row["error"]
            continue
        assert row["said"] == said(x) and json.loads(row["pair"]) == [x, x + 1] and not row["error"]
        assert math.isnan(float(row["root"])) if x % 10 == 3 else float(row["root"]) == x / 4


def of_text(out: Path) -> None:
    lines = [line for path in parts(out, ".txt") for line in path.read_text().split("\n")[:-1]]
    assert lines == [said(x).replace("\n", "\\n") if x != BAD else "" for x in range(ROWS)]


def of_images(out: Path) -> None:
    found = [row for path in parts(out, ".parquet") for row in pq.read_table(path).to_pylist()]
    assert [row["row"] for row in found] == [f"a.csv#{x}" for x in range(ROWS)]
    named = []
    for x, row in enumerate(found):
        wanted = picture(x) if x != BAD else None
        assert (row["image"] is None) == (wanted is None) and row["x"] == x
        if wanted is not None:
            assert row["image"].endswith(".bin") and (out / row["image"]).read_bytes() == wanted
            named.append(row["image"])
    there = [str(path.relative_to(out)) for path in (out / "_images").rglob("*") if path.is_file()]
    assert sorted(there) == sorted(named) and len(set(named)) == len(named) == ROWS - 1 - ROWS // 10
    assert "forty-one" in found[BAD]["error"]


FORMATS: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "jsonl": (of_jsonl, {"columns": '["x", "text", "said", "root", "pair"]'}),
    "csv": (of_csv, {"columns": '["x", "text", "said", "root", "pair"]'}),
    "text": (of_text, {"text": "said"}),
    "images": (of_images, {"image_suffix": ".bin"}),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_what_was_written_is_read_back(tmp_path: Path, kind: str) -> None:
    write_stage(tmp_path, STAGE)
    write_csv(tmp_path / "data" / "a.csv", range(ROWS))
    check, more = FORMATS[kind]
    settings = {"shards.rows": 40, "sink.format": kind, **{f"sink.{key}": of for key, of in more.items()}}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    code, answer = infer(tmp_path, *sets, stage="stages.py:Many")
    assert code == 0 and (answer["result"]["rows"], answer["result"]["failed"]) == (ROWS, 1), answer
    out = tmp_path / "out"
    check(out)
    manifest = json.loads((out / "_manifest.json").read_text())
    assert manifest["state"] == "finished" and manifest["facts"]["not_numbers"] == {"root": 10}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code, answer = infer(tmp_path, *sets, stage="stages.py:Many")
    assert code == 0 and {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("kind", ["file", "dir"])
def test_source_and_sink_behind_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """`dir` is no local folder to fsspec; its root stands in the environment, so all processes see it."""
    monkeypatch.setenv("FSSPEC_DIR_PATH", str(tmp_path))
    monkeypatch.setenv("FSSPEC_DIR_TARGET_PROTOCOL", "file")
    root = f"file://{tmp_path}" if kind == "file" else "dir:/"
    write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(60))
    write_csv(tmp_path / "data" / "deep" / "b.csv", range(60, ROWS))
    words = [
        "infer", "--source", f"{root}/data/**/*.csv", "--stage", f"{tmp_path}/stages.py:Scale", "--output",
        f"{root}/out", "--runs-dir", str(tmp_path / "runs"), "--set", "shards.rows=30", "--json",
    ]  # fmt: skip
    done = shoestring(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["result"]["rows"] == ROWS and answer["output"] == f"{root}/out"
    found = rows(tmp_path)
    names = [f"a.csv#{x}" for x in range(60)] + [f"deep/b.csv#{x}" for x in range(40)]
    assert list(found) == names, "in the order of rows"
    for x, row in enumerate(found.values()):
        assert (row["x"], row["scaled"], row["text"], row["error"]) == (x, 2 * x, f"row {x}", None)
    assert not [path for path in os.listdir(tmp_path / "out") if path.startswith(".staging")]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = shoestring(*words)
    assert again.returncode == 0 and json.loads(again.stdout)["run"] == answer["run"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
