"""Records of jobs over rows that never were, written with the real RunRecord."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shoestring.base.clock import FakeClock
from shoestring.base.record import RunRecord
from tests.report.records import WALL_S

PARTS: tuple[dict[str, Any], ...] = (
    {"name": "load", "kind": "load", "row_s": 0.0004, "cpu_share": 0.2, "processes": 1, "busy": 0.2},
    {"name": "model", "kind": "stage", "row_s": 0.002, "cpu_share": 1.0, "processes": 2, "busy": 0.98},
    {"name": "write", "kind": "write", "row_s": 0.0001, "cpu_share": 0.5, "processes": 1, "busy": 0.05},
)
ERRORS = {"the file has changed since the job began": 7, "model.py:12 ValueError <b>": 3}


def pools(model: int, row_s: float = 0.0025) -> list[dict[str, Any]]:
    """As a worker tells them."""
    told = []
    for part in PARTS:
        own = part["name"] == "model"
        told.append(
            {
                "name": part["name"], "kind": part["kind"], "processes": model if own else 1,
                "busy": 0.9 if own else 0.1, "waiting": 64 if own else 0, "rows_per_s": 400.0,
                "row_s": row_s if own else part["row_s"], "cpu_share": part["cpu_share"],
                "batch": 32 if own else 0, "restarts": 0, "memory_bytes": 10**8,
            }
        )  # fmt: skip
    return told


def whole_job(run_dir: Path, end: bool = True) -> Path:
    """A finished job of 10,000 rows on two workers: a resize, a lost worker, ten rows with an error."""
    clock = FakeClock(WALL_S)
    record = RunRecord(run_dir / "events.jsonl", "coordinator", clock)
    record.append(
        "run", name="infer-1", recipe="infer", job="infer", resumed=False, seed=0,
        settings={"source": {"files": ["/data/*.csv"]}, "sink": {"path": "/out"}},
        versions={"shoestring": "0.1.0"}, machine={"cores": 2},
    )  # fmt: skip
    record.append("data", rows=10_000, files=3, source_bytes=10**6, columns={"text": "string"}, skipped=[])
    record.append(
        "trial", rows=100, took_s=0.8, parts=list(PARTS), columns={"model.label": "int64"},
        errors={}, expected_rows_per_s=800.0, expected_s=12.5, slowest="model", reason="model is the slowest",
    )  # fmt: skip
    record.append("plan", workers=2, shard_rows=500, shards=20, reason="shards of 500 rows: 10 s of work")
    done = 0
    for second in range(1, 21):
        clock.advance(1.0)
        done = 500 * second
        errors = {key: count * second // 20 for key, count in ERRORS.items()}
        record.append(
            "rows", done=done, failed=sum(errors.values()), begun=200, rows_per_s=500.0, errors=errors
        )
        for worker in ("w0", "w1"):
            record.append("pools", worker=worker, pools=pools(1 if second < 6 else 2))
        if second == 5:
            record.append(
                "decision", action="resize", pool="model", worker="w0", fields={"processes": 2.0}, step=5,
                reason="model is the slowest (400 rows/s), 640 items wait for it: +80% rows/s is expected",
            )  # fmt: skip
        if second == 10:
            record.append("fault", worker="w1", reason="w1 is gone (signal 9): restart in 0.1 s", step=10)
    if end:
        record.append(
            "summary", step=20, rows=done, failed=10, shards=20, errors=ERRORS,
            not_numbers={"model.score": 4}, elapsed_s=20.0, lost_rows=500,
        )  # fmt: skip
        record.append("result", rows=done, failed=10, files=20, rows_per_s=500.0, took_s=20.0, output="/out")
        record.append("end", status="finished", error="", todo="")
    record.close()
    return run_dir
