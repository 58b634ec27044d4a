"""Part `regroup`: a detector, then a classifier over what it found; objects regrouped over images or not."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table
from benchmarks.infer import data, ours
from benchmarks.infer.arms import folder
from benchmarks.infer.check import compare, tables
from benchmarks.infer.diary import calls
from benchmarks.infer.samples import Arm, Row, best, median, ratio, rounds, spread
from benchmarks.infer.tree import run_child
from benchmarks.infer.work import IMAGE, MOST
from benchmarks.network.arms import PartError

IMAGES, OBJECTS = 32, 256
"""Target batch sizes of the two stages."""
FILES, QUICK_FILES, OF_FILE = 8, 2, 625
"""Files, and images of each: a row group, which is what a loader decodes, is as large in a quick run."""
TIMEOUT_S = 170.0
SEED = 9
ALIKE = 0.999
"""Classes that must be the same: sums in another order may turn a tie."""
SINGLE = {"pools": {"load": 1, "write": 1}}


def measure(quick: bool, count: int, first: int) -> dict[str, Any]:
    """Samples of the arms; see `arms_of`."""
    files = QUICK_FILES if quick else FILES
    images = files * OF_FILE
    with folder() as place:
        objects = data.write_images(place / "in", images, files, MOST, IMAGE, SEED)
        print(f"regroup: {images} images, {objects.sum()} objects", flush=True)
        checked = _Checked(images, objects)
        runs, failed = rounds(arms_of(place / "in", checked), count, first, "regroup")
    _show(runs)
    if quick:
        print(f"regroup: {files} of {FILES} files: what does not grow with them weighs more")
    return {
        "images": images, "objects": int(objects.sum()), "batch_images": IMAGES, "batch_objects": OBJECTS,
        "runs": runs, "failed": failed,
    }  # fmt: skip


def arms_of(source: Path, checked: _Checked) -> dict[str, Arm]:
    """Both in one (a plain loop, and ours with one stage of one or of two processes); regrouping alone;
    overlap alone; both (one process each, and as it comes)."""
    return {
        "loop": partial(_loop, source, checked, 0),
        "one stage": partial(_one_stage, source, checked, 1),
        "loop, regrouped": partial(_loop, source, checked, OBJECTS),
        "two stages, by image": partial(_two_stages, source, checked, 1, True),
        "ours": partial(_two_stages, source, checked, 0, False),
        "one stage, two processes": partial(_one_stage, source, checked, 2),
        "ours, one of each": partial(_two_stages, source, checked, 1, False),
    }


def figures(runs: list[Row]) -> dict[str, Any]:
    """Ratios of times at work."""
    found = {
        "regroup_vs_naive": ratio(runs, "loop", "ours"),
        "regroup_vs_one_stage": ratio(runs, "one stage", "ours"),
        "regroup_vs_two_processes": ratio(runs, "one stage, two processes", "ours"),
        "regroup_alone": ratio(runs, "loop", "loop, regrouped"),
        "overlap_alone": ratio(runs, "one stage", "two stages, by image"),
        "regroup_one_of_each_vs_naive": ratio(runs, "loop", "ours, one of each"),
    }
    return {key: value for key, value in found.items() if value is not None}


class _Checked:
    """Holds every arm's classes to those of the first: the same objects, the same answers."""

    def __init__(self, images: int, objects: Any) -> None:
        self._images, self._objects = images, objects
        self._first: Any = None

    def check(self, output: Path) -> None:
        """Raises PartError: the arms have not done equal work."""
        found: list[Any] = [None] * self._images
        ids = []
        for part in tables(output):
            numbers = part.column("id").to_pylist()
            ids += numbers
            for number, classes in zip(numbers, part.column("class").to_pylist(), strict=True):
                found[number] = classes or []
        whole = compare(np.array(ids, np.int64), self._images)
        if not whole.whole or any(len(found[n]) != self._objects[n] for n in range(self._images)):
            raise PartError(
                f"{output} has {whole}, or other numbers of objects", "the arms must do equal work"
            )
        flat = np.concatenate([np.array(one, np.int64) for one in found])
        if self._first is None:
            self._first = flat
        if (alike := float((self._first == flat).mean())) < ALIKE:
            raise PartError(f"{1 - alike:.2%} of the classes are others", "the arms must do equal work")


def _one_stage(source: Path, checked: _Checked, processes: int) -> tuple[Any, dict[str, Any]]:
    with folder() as place:
        options = {"diary": str(place / "diary")}
        stages = [ours.stage("Both", options=options, batch=IMAGES, processes=processes)]
        return _run(source, place, stages, SINGLE, checked)


def _two_stages(
    source: Path, checked: _Checked, processes: int, by_image: bool
) -> tuple[Any, dict[str, Any]]:
    with folder() as place:
        options = {"diary": str(place / "diary")}
        batch = IMAGES * MOST // 2 if by_image else OBJECTS
        stages = [
            ours.stage(
                "Detect", options=options, batch=IMAGES, processes=processes, columns=["objects", "pixels"]
            ),
            ours.stage(
                "Classify", options={**options, "by_image": by_image}, batch=batch, processes=processes,
                columns=["crop", "id"] if by_image else ["crop"],
            ),
        ]  # fmt: skip
        return _run(source, place, stages, SINGLE if processes else {}, checked)


def _run(
    source: Path, place: Path, stages: list[dict[str, Any]], more: dict[str, Any], checked: _Checked
) -> tuple[Any, dict[str, Any]]:
    settings = ours.config(source, place / "out", stages, **more)
    settings["sink"]["columns"] = ["id", "class"]
    found = ours.run(settings, place, place / "diary", TIMEOUT_S)
    checked.check(place / "out")
    return found, _calls(found.calls)


def _loop(source: Path, checked: _Checked, regroup: int) -> tuple[Any, dict[str, Any]]:
    with folder() as place:
        settings = {
            "source": str(source), "sink": str(place / "out"), "batch": IMAGES, "diary": str(place / "diary"),
            "regroup": regroup,
        }  # fmt: skip
        (place / "loop.json").write_text(json.dumps(settings))
        words = [sys.executable, "-m", "benchmarks.infer.loops", "images", str(place / "loop.json")]
        found = ours.ran(run_child(words, TIMEOUT_S), calls(place / "diary"), place / "out")
        checked.check(place / "out")
        return found, _calls(found.calls)


def _calls(noted: Any) -> dict[str, Any]:
    """Items of a call and processes, by stage."""
    found: dict[str, Any] = {}
    for stage in sorted({call.stage for call in noted}):
        mine = [call for call in noted if call.stage == stage]
        found[f"{stage}_items"] = round(sum(call.items for call in mine) / len(mine), 1)
        found[f"{stage}_processes"] = len({call.pid for call in mine})
        found[f"{stage}_busy_s"] = round(sum(call.took_s for call in mine), 3)
    return found


def _show(runs: list[Row]) -> None:
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    print(f"quickest: {best(runs, arms)}")
    table(
        ["regroup", "s at work (from, to)", "start s", "MB"],
        [
            [arm, str(spread(runs, arm)), f"{median(runs, arm, 'start_s'):.2f}",
             f"{median(runs, arm, 'peak_mb'):.0f}"]
            for arm in arms
        ],
    )  # fmt: skip
