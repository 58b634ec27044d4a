"""One run: `python -m benchmarks.stragglers.run ARM CASE SEED STEPS` (root only) prints a line of JSON.

Arms: `none`, `nd`, `dd`, `lb-bsp`, `backup` (ours by its policy), and `ddp`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.lab import Lab, LabConfig
from benchmarks.stragglers import ddp, ours
from benchmarks.stragglers.places import CASES, Script
from shoestring.control.controller import ControlConfig

BATCH, MICRO_BATCH = 768, 16
RESTART_WINDOW_S = 30.0
"""Long window of the case in which a machine turns slow: how soon a new start is asked for."""


def control(arm: str, case: str) -> ControlConfig:
    """The defaults, but for what a method says itself: LB-BSP decides before each step."""
    changed: dict[str, Any] = {"policy": arm}
    if arm == "lb-bsp":
        changed["interval_s"] = 0.0
    if arm == "backup":
        changed["interval_s"] = 0.0  # from the first step on
    if case == "turns slow":
        changed["long_window_s"] = RESTART_WINDOW_S
    return ControlConfig(**changed)


def main(arm: str, case: str, seed: int, steps: int) -> dict[str, Any]:
    """Build the places, run the arm on them."""
    script = Script(CASES[case], seed)
    cores = tuple(script.cores(place) for place in range(len(CASES[case].shares)))
    with Lab(LabConfig(hosts=len(cores), cpu=cores)) as lab:
        if arm == "ddp":
            found = ddp.run(lab, script, steps, BATCH, MICRO_BATCH, seed)
        else:
            found = ours.run(lab, script, control(arm, case), steps, BATCH, MICRO_BATCH, seed)
    return {"arm": arm, "case": case, "seed": seed, "steps": steps, **found}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))), flush=True)
