"""What every benchmark shares: where results go, what machine they are from, how they are shown."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


def arguments(description: str) -> argparse.Namespace:
    """The command line of a benchmark: `--quick` ends within 50 s."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measurements, below 50 s")
    return parser.parse_args()


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end this program as an exception does, so that what it started is ended too."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = [
        line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")
    ]
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "load": os.getloadavg(),
        **({"gpus": gpus} if (gpus := _gpus()) else {}),
    }


def other_machine(of: dict[str, Any], here: dict[str, Any]) -> str:
    """In what the machine of a measurement differs from this one; empty: in nothing that is recorded.

    Args:
        of, here: see `machine`. Load, Python and a little memory come and go on the same machine.
    """
    differs = []
    for key in ("system", "cpu", "cores", "memory_bytes", "gpus"):
        old, new = (one[key] if key in one else None for one in (of, here))
        if key == "memory_bytes" and None not in (old, new):
            if round(old / 2**30) != round(new / 2**30):
                differs.append(f"memory {old / 2**30:.0f} GiB, here {new / 2**30:.0f} GiB")
        elif old != new:
            differs.append(f"{key} {old}, here {new}")
    return "; ".join(differs)


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.split("\n")[:-1]


def commit() -> str:
    """The commit, with `+` where the tree has changes."""
    head = _git("rev-parse", "HEAD")
    return head + ("+" if _git("status", "--porcelain", "-uno") else "")


def table(headings: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns."""
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    for row in [headings, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def finish(
    name: str, configuration: dict[str, Any], samples: dict[str, Any], figures: dict[str, Any]
) -> None:
    """Write `benchmarks/results/NAME.json` and print the figures as one JSON object, the last line.

    A quick run goes to `NAME_quick.json`, which is not kept: it must not replace a full one.
    """
    RESULTS.mkdir(exist_ok=True)
    if configuration.get("quick"):
        name = f"{name}_quick"
    result = {
        "name": name,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "configuration": configuration,
        "figures": figures,
        "samples": samples,
    }
    # What failed may name files of ours: where they are on this machine is nobody's business.
    text = _short(json.dumps(result, indent=1)).replace(f"{ROOT}/", "")
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(json.dumps(figures))


def _short(text: str) -> str:
    """JSON with lists of plain values on one line each."""
    return re.sub(r"\[[^\[\]{}\"]*\]", lambda found: re.sub(r"\s+", " ", found.group()), text)


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
