"""Plain loops and plain multiprocessing: `python -m benchmarks.infer.loops KIND SETTINGS.json`.

Kinds: `pipeline` (fetch, predict, put in one loop), `images` (detector and classifier in one loop, the
classifier called with one image's objects, or with batches of them), `pool` (multiprocessing over parts of
files).
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.infer import stages
from benchmarks.infer.diary import Diary
from shoestring.infer.batch import Batch

Settings = dict[str, Any]


def batches(source: str, size: int) -> Iterator[pa.Table]:
    """The rows of all files in order."""
    for path in sorted(Path(source).glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(size):
            yield pa.Table.from_batches([batch])


def pipeline(settings: Settings) -> None:
    """One row after the other through all three stages, in batches as everywhere else."""
    from benchmarks.infer.model_stages import Predict

    port, diary = settings["port"], settings["diary"]
    parts: list[Any] = [stages.Fetch(port, diary), Predict(diary), stages.Put(port, diary)]
    for part in parts:
        part.setup(None)
    done = []
    for table in batches(settings["source"], settings["batch"]):
        row: dict[str, Any] = {"id": table.column("id").to_numpy()}
        for part in parts:
            row |= part(row)
        done.append(pa.table({"id": row["id"], "stored": row["stored"]}))
    write(pa.concat_tables(done), settings["sink"], 0)


def images(settings: Settings) -> None:
    """Detector and classifier in turns. `regroup` > 0: objects are gathered until they are so many."""
    import torch

    from benchmarks.infer.work import Classifier, Detector, classify, detect

    torch.set_num_threads(1)
    detector, classifier = Detector().eval(), Classifier().eval()
    diary = Diary(settings["diary"], "both")
    ids, counts, classes, held = [], [], [], []
    for table in batches(settings["source"], settings["batch"]):
        diary.begin()
        batch = Batch(table)
        objects = batch["objects"]
        crops = detect(detector, batch["pixels"], objects)
        if settings["regroup"]:
            held.append(crops)
            if sum(map(len, held)) >= settings["regroup"]:
                classes.append(classify(classifier, np.concatenate(held)))
                held = []
        else:
            classes += [classify(classifier, part) for part in np.split(crops, np.cumsum(objects)[:-1])]
        ids.append(batch["id"])
        counts.append(objects)
        diary.end(len(objects))
    if held:
        diary.begin()
        classes.append(classify(classifier, np.concatenate(held)))
        diary.end(0)
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    lists = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.concatenate(classes)))
    write(pa.table({"id": np.concatenate(ids), "class": lists}), settings["sink"], 0)


def write(table: pa.Table, sink: str, number: int) -> None:
    """A file of output."""
    Path(sink).mkdir(parents=True, exist_ok=True)
    pq.write_table(table, Path(sink) / f"out-{number:06d}.parquet")


# --- multiprocessing --------------------------------------------------------------------------


class _Held:
    """What a process of the pool has made once."""

    def __init__(self) -> None:
        self.settings: Settings = {}
        self.stage: Any = None


_HELD = _Held()


def _enter(settings: Settings) -> None:
    _HELD.settings = settings
    _HELD.stage = getattr(stages, settings["stage"])(**settings["options"])
    _HELD.stage.setup(None)


def _part(job: tuple[int, str, int, int]) -> int:
    number, path, first, rows = job
    table = pq.read_table(path).slice(first, rows)
    size, kept = _HELD.settings["batch"], []
    for at in range(0, len(table), size):
        kept.append(_HELD.stage(Batch(table.slice(at, size)))["value"])
    column = pa.array(np.concatenate(kept))
    write(table.append_column("value", column), _HELD.settings["sink"], number)
    return len(table)


def pool(settings: Settings) -> None:
    """Pool.imap_unordered over parts of files: `chunk` rows each, one file of output each."""
    jobs = []
    for path in sorted(Path(settings["source"]).glob("*.parquet")):
        rows = pq.ParquetFile(path).metadata.num_rows
        chunk = settings["chunk"] or rows
        jobs += [(0, str(path), first, chunk) for first in range(0, rows, chunk)]
    numbered = [(number, *job[1:]) for number, job in enumerate(jobs)]
    context = multiprocessing.get_context("fork")
    with context.Pool(settings["processes"], _enter, (settings,)) as workers:
        done = sum(workers.imap_unordered(_part, numbered))
    print(json.dumps({"rows": done}), flush=True)


KINDS: dict[str, Callable[[Settings], None]] = {"pipeline": pipeline, "images": images, "pool": pool}

if __name__ == "__main__":
    KINDS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
