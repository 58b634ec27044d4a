"""One run: `python -m benchmarks.stragglers.run ARM CASE SEED STEPS` (root only) prints a line of JSON.

Arms: `none`, `nd`, `dd`, `lb-bsp`, `backup`, `nd-backup` (ours by its policy), `edit` (ours, with local steps
by the clock), `asp`, `asp-apart` (ours, asynchronous on a parameter server, with the ledger's dynamic shards
and with a quarter of the samples fixed for each worker), and `ddp`,
`torchelastic`, `torchft` (see `ddp.py`).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from benchmarks.lab import Lab, LabConfig
from benchmarks.stragglers import ddp, ours
from benchmarks.stragglers.places import CASES, WORKERS, Script
from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import PolicyOptions
from shoestring.fleet.config import ServersConfig
from shoestring.fleet.persisted import Persisted
from shoestring.fleet.rounds import RoundState
from shoestring.fleet.serving import Serving
from shoestring.train.config import EditConfig

BATCH, MICRO_BATCH = 768, 16
WORDS_BATCH, WORDS_MICRO_BATCH = 64, 4
"""Of the language model, in windows."""
RESTART_WINDOW_S = 30.0
"""Long window of the case in which a machine turns slow: how soon a new start is asked for."""
RESTART_COST_S = 5.0
"""What that is taken to cost before one was measured: the default, 30 s, lets none pay in a run so short."""


ASYNCHRONOUS = ("asp", "asp-apart")
WINDOW_S = 6.0
"""Of local steps."""


def train_of(arm: str, local_batch: int) -> dict[str, Any]:
    """Settings of the loop that are the arm's own. A local step has a worker's part of a global batch."""
    if arm in ASYNCHRONOUS:
        return {"sync": "servers"}
    return {"sync": "edit", "edit": EditConfig(local_batch=local_batch)} if arm == "edit" else {}


def pace_of(arm: str, steps: int) -> dict[str, Any]:
    """The bound of a run: steps, or the same samples where these are nobody's steps."""
    if arm in ASYNCHRONOUS:
        return {}
    return {"window_s": WINDOW_S} if arm == "edit" else {"steps": steps}


def control(arm: str, case: str) -> ControlConfig:
    """The defaults, but for what a method says itself: LB-BSP decides before each step."""
    policies = {"edit": "nd"} | dict.fromkeys(ASYNCHRONOUS, "none")
    changed: dict[str, Any] = {"policy": policies[arm] if arm in policies else arm}
    if arm == "lb-bsp":
        changed["interval_s"] = 0.0
    if arm in ("backup", "nd-backup"):
        changed["interval_s"] = 0.0  # from the first step on
    if case == "turns slow":
        changed["long_window_s"] = RESTART_WINDOW_S
        changed["options"] = PolicyOptions(restart_cost_s=RESTART_COST_S)
    return ControlConfig(**changed)


def apart(most: int) -> None:
    """From here on each worker gets no more than so many samples: what asynchronous training does whose data
    were divided before it began. For the coordinator, which is forked from this process."""
    plain = Serving._plan_next
    had: Counter[str] = Counter()

    def plan(self: Serving, now: float, round_: RoundState, worker: str, kept: Persisted) -> None:
        if had[worker] < most:
            plain(self, now, round_, worker, kept)
            had[worker] += round_.guests[worker].samples if round_.guests[worker].order is not None else 0

    Serving._plan_next = plan  # type: ignore[method-assign]


def main(arm: str, case: str, seed: int, steps: int) -> dict[str, Any]:
    """Build the places, run the arm on them."""
    script = Script(CASES[case], seed)
    cores = tuple(script.cores(place) for place in range(len(CASES[case].shares)))
    with Lab(LabConfig(hosts=len(cores), cpu=cores, inter=CASES[case].link)) as lab:
        if arm in ddp.KINDS:
            found = ddp.run(lab, script, arm, steps, BATCH, MICRO_BATCH, seed)
        else:
            linked = CASES[case].link is not None
            batch, micro_batch = (WORDS_BATCH, WORDS_MICRO_BATCH) if linked else (BATCH, MICRO_BATCH)
            servers = ServersConfig(count=1, staleness=-1) if arm in ASYNCHRONOUS else ServersConfig()
            how = ours.How(control(arm, case), pace_of(arm, steps), train_of(arm, batch // WORKERS), servers)
            if arm == "asp-apart":
                apart(steps * batch // WORKERS)
            found = ours.run(lab, script, how, steps, batch, micro_batch, seed)
    return {"arm": arm, "case": case, "seed": seed, "steps": steps, **found}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))), flush=True)
