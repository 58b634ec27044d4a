"""`make bench-infer`: batch inference, ours against loops, Ray Data and multiprocessing, and under kills.

Takes root (CPU quotas, network namespaces for Ray). Parts run one after the other; arms of a part take turns.
The result is written after each part: one that fails costs itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.common import RESULTS, commit, end_in_order, finish, machine, other_machine
from benchmarks.infer import even, faults, peers, pipeline, ray_faults, regroup, rows
from benchmarks.lab import require
from benchmarks.network.arms import PartError

KEYS = (
    "pipeline_vs_naive", "regroup_vs_naive", "vs_ray_uniform", "vs_ray_skewed", "ledger_vs_even",
    "vs_best_uniform", "missing_ids", "duplicate_ids", "wrong_values", "fault_runs_failed", "redone_share",
    "generate_vs_static",
)  # fmt: skip
Found = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        measure: (quick, rounds, number of the first round, what is known from before) -> samples.
        figures: samples -> figures.
        rounds, quick_rounds: that it has by itself; 0: none unless asked for.
        broken: samples -> why the benchmark must not end well with them; empty: all is well.
    """

    measure: Callable[[bool, int, int, Found | None], Found]
    figures: Callable[[Found], dict[str, Any]]
    rounds: int
    quick_rounds: int
    broken: Callable[[Found], str] = lambda found: ""


def _generate(quick: bool, count: int, first: int, known: Found | None) -> Found:
    """It has no rounds to add to: measured anew each time. Its import takes seconds and memory."""
    measured: Found = importlib.import_module("benchmarks.infer.generate").measure(quick)
    return measured


def generate_figures(found: Found) -> Found:
    """Tokens a second of both, and what tells whether their texts are the same."""
    keys = ("generate_vs_static", "continuous_tokens_s", "static_tokens_s", "static_ends_known_tokens_s")
    return {key: found[key] for key in keys} | {"generate_texts_differing": found["texts_differing"]}


def _of_peers(name: str, rounds: int = 5, quick_rounds: int = 1) -> Part:
    return Part(
        lambda quick, count, first, known: peers.measure(name, quick, count, first, known),
        lambda found: peers.figures(name, found["runs"]),
        rounds,
        quick_rounds,
    )


PARTS: dict[str, Part] = {
    "pipeline": Part(
        lambda quick, count, first, known: pipeline.measure(quick, count, first),
        lambda found: pipeline.figures(found["runs"], found["rows"]), 5, 3,
    ),
    "regroup": Part(
        lambda quick, count, first, known: regroup.measure(quick, count, first),
        lambda found: regroup.figures(found["runs"]), 5, 2,
    ),
    "uniform": _of_peers("uniform"),
    "skewed": _of_peers("skewed"),
    **{f"skew{skew}": _of_peers(f"skew{skew}", 3, 0) for skew in (0, 1, 2, 4)},
    "even": Part(
        lambda quick, count, first, known: even.measure(quick, count, first),
        lambda found: even.figures(found["runs"]), 5, 1,
    ),
    "faults": Part(
        lambda quick, count, first, known: faults.measure(quick, count, first),
        lambda found: faults.figures(found["runs"]), faults.FULL, faults.QUICK,
        lambda found: faults.broken(found["runs"]),
    ),
    "ray-faults": Part(
        lambda quick, count, first, known: ray_faults.measure(quick, count, first),
        lambda found: ray_faults.figures(found["runs"]), ray_faults.FULL, ray_faults.QUICK,
    ),
    "rows": Part(
        lambda quick, count, first, known: rows.measure(quick, count, first),
        lambda found: rows.figures(found["runs"]), 3, 1,
    ),
    "rows-long": Part(
        lambda quick, count, first, known: rows.measure(quick, count, first, long=True),
        lambda found: rows.long_figures(found["runs"]), 1, 0,
    ),
    "generate": Part(_generate, generate_figures, 1, 1),
    "elastic": Part(
        lambda quick, count, first, known: pipeline.elastic(quick, count, first),
        pipeline.elastic_figures, 3, 1,
    ),
}  # fmt: skip


def main() -> None:
    """Measure, show, record."""
    options = _options()
    require("ip", "tc")
    end_in_order()
    chosen = options.only.split(",") if options.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        raise SystemExit(f"there is no part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    name = "infer_quick" if options.quick else "infer"
    samples: dict[str, Found] = _recorded(name) if options.add or options.more else {}
    lost = []
    for part in chosen:
        about = PARTS[part]
        count = options.rounds or (about.quick_rounds if options.quick else about.rounds)
        if not count:
            continue
        before = samples[part] if options.more and part in samples and "runs" in samples[part] else None
        try:
            samples[part] = _measured(about, options.quick, count, before)
        except Exception:  # noqa: BLE001 - it is said, and a failure must not cost the other parts
            traceback.print_exc()
            lost.append(part)
            continue
        with contextlib.redirect_stdout(None):  # the last line is for the end
            _write(samples, options.quick)
    for part, told in elsewhere(samples, machine()).items():
        print(f"{part} was measured elsewhere: {told}")
    _write(samples, options.quick)
    if why := wrong(samples, chosen, lost):
        raise SystemExit(f"failed: {why}")


def wrong(samples: dict[str, Found], chosen: list[str], lost: list[str]) -> str:
    """Why the benchmark must not end well; empty: all is well.

    Args:
        chosen: the parts that were to be measured; lost: those of them that could not be.
    """
    found = [*lost]
    for part in chosen:
        if part in samples and part not in lost and (why := PARTS[part].broken(samples[part])):
            found.append(f"{part} ({why})")
    return ", ".join(found)


def elsewhere(samples: dict[str, Found], here: dict[str, Any]) -> dict[str, str]:
    """Part -> when it was measured, and in what that machine differs from this one, or that it was not
    recorded; only parts with rounds that are not known to be of this machine."""
    told: dict[str, str] = {}
    for part, found in samples.items():
        lines = []
        for one in [*(found["earlier"] if "earlier" in found else []), found]:
            if why := other_machine(one["machine"], here) if "machine" in one else "not recorded":
                lines.append(f"{one['taken'] if 'taken' in one else 'no date'}: {why}")
        if lines:
            told[part] = "; and ".join(lines)
    return told


def _measured(about: Part, quick: bool, count: int, before: Found | None) -> Found:
    first = 1 + max((_number(run) for run in before["runs"]), default=-1) if before else 0
    here = machine()  # before the work: that is not load
    found = about.measure(quick, count, first, before)
    found["machine"] = here
    found["taken"] = f"{commit()[:8]}, {datetime.now(UTC):%Y-%m-%d %H:%M}"
    about.figures(found)  # here, not at the end, if it cannot
    return joined(before, found) if before else found


def _write(samples: dict[str, Found], quick: bool) -> None:
    figures: dict[str, Any] = dict.fromkeys(KEYS)
    for part, found in samples.items():
        figures |= PARTS[part].figures(found)
    figures["parts_measured_elsewhere"] = sorted(elsewhere(samples, machine()))
    finish("infer", {"quick": quick, "parts": sorted(samples)}, samples, figures)


def joined(before: Found, found: Found) -> Found:
    """The runs of both; all else as it was found now. `earlier`: when and on what the others were measured.

    Raises:
        PartError: the two were measured in another setting.
    """
    settings = [
        {key: value for key, value in one.items() if key in ("rows", "images", "batch", "workers", "skew")}
        for one in (before, found)
    ]
    if json.dumps(settings[0]) != json.dumps(settings[1]):
        raise PartError(f"recorded with {settings[0]}, now {settings[1]}", "measure the part anew")
    together = {**found, "runs": before["runs"] + found["runs"], "failed": before["failed"] | found["failed"]}
    earlier = before["earlier"] if "earlier" in before else []
    together["earlier"] = [*earlier, {key: before[key] for key in ("taken", "machine") if key in before}]
    if "fixed" in found:
        together["fixed"] = before["fixed"] + found["fixed"]
    return together


def _number(run: dict[str, Any]) -> int:
    return int(run["number"] if "number" in run else run["round"])


def _recorded(name: str) -> dict[str, Found]:
    path = RESULTS / f"{name}.json"
    samples: dict[str, Found] = json.loads(path.read_text())["samples"] if path.exists() else {}
    return {part: found for part, found in samples.items() if part in PARTS}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="less data, fewer rounds and kills; a minute a part"
    )
    parser.add_argument("--only", default="", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=0, help="of each part (kills of the fault parts)")
    parser.add_argument("--add", action="store_true", help="keep what is recorded of the other parts")
    parser.add_argument(
        "--more", action="store_true", help="add rounds to those that are recorded of these parts"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
