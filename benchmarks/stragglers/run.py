"""One run: `python -m benchmarks.stragglers.run ARM CASE SEED STEPS` (root only) prints a line of JSON.

Arms: `none`, `nd`, `dd`, `lb-bsp`, `backup` (ours by its policy), `edit` (ours, with
local steps by the clock), and `ddp`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.lab import Lab, LabConfig
from benchmarks.stragglers import ddp, ours
from benchmarks.stragglers.places import CASES, WORKERS, Script
from shoestring.control.controller import ControlConfig
from shoestring.train.config import EditConfig

BATCH, MICRO_BATCH = 768, 16
WORDS_BATCH, WORDS_MICRO_BATCH = 64, 4
"""Of the language model, in windows."""
RESTART_WINDOW_S = 30.0
"""Long window of the case in which a machine turns slow: how soon a new start is asked for."""


WINDOW_S = 6.0
"""Of local steps."""


def train_of(arm: str, local_batch: int) -> dict[str, Any]:
    """Settings of the loop that are the arm's own. A local step has a worker's part of a global batch."""
    return {"sync": "edit", "edit": EditConfig(local_batch=local_batch)} if arm == "edit" else {}


def pace_of(arm: str, steps: int) -> dict[str, Any]:
    """The bound of a run: steps, or the same samples where the length of a step is open."""
    return {"window_s": WINDOW_S} if arm == "edit" else {"steps": steps}


def control(arm: str, case: str) -> ControlConfig:
    """The defaults, but for what a method says itself: LB-BSP decides before each step."""
    changed: dict[str, Any] = {"policy": "nd" if arm == "edit" else arm}
    if arm == "lb-bsp":
        changed["interval_s"] = 0.0
    if arm in ("backup", "nd-backup"):
        changed["interval_s"] = 0.0  # from the first step on
    if case == "turns slow":
        changed["long_window_s"] = RESTART_WINDOW_S
    return ControlConfig(**changed)


def main(arm: str, case: str, seed: int, steps: int) -> dict[str, Any]:
    """Build the places, run the arm on them."""
    script = Script(CASES[case], seed)
    cores = tuple(script.cores(place) for place in range(len(CASES[case].shares)))
    with Lab(LabConfig(hosts=len(cores), cpu=cores, inter=CASES[case].link)) as lab:
        if arm == "ddp":
            found = ddp.run(lab, script, steps, BATCH, MICRO_BATCH, seed)
        else:
            linked = CASES[case].link is not None
            batch, micro_batch = (WORDS_BATCH, WORDS_MICRO_BATCH) if linked else (BATCH, MICRO_BATCH)
            how = ours.How(control(arm, case), pace_of(arm, steps), train_of(arm, batch // WORKERS))
            found = ours.run(lab, script, how, steps, batch, micro_batch, seed)
    return {"arm": arm, "case": case, "seed": seed, "steps": steps, **found}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))), flush=True)
