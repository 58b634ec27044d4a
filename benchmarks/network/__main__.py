"""Training over slow links, measured on test hosts (root only; see docs/design/lab.md).

`python -m benchmarks.network [--quick] [--only ring,strategies,...]`. Each part is written to the result as
soon as it is there, with its own date, commit and load; `--only` measures some anew and keeps the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import perf_counter
from types import MappingProxyType
from typing import Any

from benchmarks.common import RESULTS, ROOT, commit, end_in_order, finish
from benchmarks.lab import require
from benchmarks.network import parity, planning, recovery, ring, strategies, versus
from benchmarks.network.arms import INTRA, Place

PARTS: Mapping[str, Callable[[bool], dict[str, Any]]] = MappingProxyType(
    {
        "ring": ring.measure,
        "strategies": strategies.measure,
        "peers": versus.measure,
        "planner": planning.measure,
        "parity": parity.measure,
        "recovery": recovery.measure,
    }
)
QUICK_PARTS = ("ring", "peers")
"""The peers' quick part has the strategies' figures, too: it is the start of processes that takes time."""
KEYS = (
    "iig_vs_zero3", "iig_vs_hsdp_time", "iig_vs_hsdp_state", "ring_vs_flat_4x2", "ring_vs_flat_8x4",
    "overlap_vs_sequential", "planner_regret_median", "planner_regret_max", "wire_error_max",
    "state_error_max", "parity_max",
)  # fmt: skip
"""What the last line has, whatever was measured; null: it was not."""


def main() -> None:
    """Measure the parts and write the result after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measurements")
    parser.add_argument("--only", help=f"some of {','.join(PARTS)}")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else (QUICK_PARTS if options.quick else tuple(PARTS))
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        raise SystemExit(f"there is no part {unknown[0]!r}: take some of {', '.join(PARTS)}")
    require("ip", "tc")
    end_in_order()
    parts = _kept(options.quick) if options.only else {}
    for name in names:
        parts[name] = _measured(name, options.quick)
        last = name == names[-1]
        _write(parts, options.quick, last)


def _measured(name: str, quick: bool) -> dict[str, Any]:
    """One part, or why there is none: a failure must not cost the other parts."""
    began_s = perf_counter()
    head = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "load_before": os.getloadavg(),
    }
    try:
        found = PARTS[name](quick)
    except Exception as error:  # noqa: BLE001 - it is said, and stands in the result
        traceback.print_exc()
        found = {"samples": {}, "figures": {}, "flags": {}, "failed": f"{type(error).__name__}: {error}"}
    took_s = perf_counter() - began_s
    print(f"{name}: {took_s:.0f} s", flush=True)
    return head | {"took_s": took_s} | found


def _write(parts: dict[str, Any], quick: bool, last: bool) -> None:
    measured: dict[str, Any] = {}
    for part in parts.values():
        measured |= part["figures"]
    figures = {key: measured[key] if key in measured else None for key in KEYS}
    place = Place()
    configuration = {
        "quick": quick,
        "inter": place.inter,
        "intra": INTRA,
        "link_ratio": 20,
        "threads_per_rank": 1,
        "parts": {name: {key: part[key] for key in part if key != "samples"} for name, part in parts.items()},
    }
    samples = {name: part["samples"] for name, part in parts.items()}
    shown = figures | measured
    if not last:
        # The last line is for the end.
        with contextlib.redirect_stdout(None):
            finish("network", _plain(configuration), _plain(samples), shown)
        return
    finish("network", _plain(configuration), _plain(samples), shown)


def _plain(value: Any) -> Any:
    """The same without this machine's folders, which errors and the run record name."""
    if isinstance(value, str):
        return value.replace(str(ROOT), ".").replace(f"{tempfile.gettempdir()}/", "TMP/")
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _kept(quick: bool) -> dict[str, Any]:
    """The parts of the last result of this kind."""
    path = RESULTS / ("network_quick.json" if quick else "network.json")
    if not path.exists():
        return {}
    result = json.loads(path.read_text())
    parts = result["configuration"]["parts"]
    return {name: {**part, "samples": result["samples"][name]} for name, part in parts.items()}


if __name__ == "__main__":
    main()
