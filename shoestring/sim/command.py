"""`shoestring sim`: simulate seeds, print what they covered, or the promise that one of them broke."""

from __future__ import annotations

import json
import sys

from shoestring.sim.policies import sim_policy
from shoestring.sim.run import Coverage, run_sims
from shoestring.sim.scenario import SimOptions

POLICY_SEEDS = 20
SHOWN = (
    ("events on the virtual clock", ("events",)),
    ("messages handled", ("messages",)),
    ("messages lost / doubled / late", ("messages_lost", "messages_doubled", "messages_late")),
    ("late answers recognised", ("stale_replies",)),
    ("samples used", ("samples",)),
    ("steps settled", ("logged_step",)),
    ("rounds formed", ("logged_round",)),
    ("roll-backs to a checkpoint", ("rollbacks",)),
    ("checkpoints committed and compared", ("checkpoints",)),
    ("models compared with the ledger", ("models_compared",)),
    ("workers started", ("spawns",)),
    (
        "restarted / added / removed by a policy",
        tuple(f"action_{a}" for a in ("kill_restart", "add_workers", "remove_worker")),
    ),
    (
        "splits / passes / rates changed by a policy",
        tuple(f"action_{a}" for a in ("adjust_batch", "adjust_accumulation", "adjust_lr")),
    ),
    ("passes that did not fit into memory", ("out_of_memory",)),
    ("workers whose step went on without them", ("late",)),
    ("workers killed: at random / in the end of an all-reduce", ("fault_kill", "fault_aimed_kill")),
    ("all-reduces torn: some applied, some did not", ("torn_collectives",)),
    ("workers hung / stalled / slowed", ("fault_hang", "fault_stall", "fault_slow")),
    ("deaths of the coordinator", ("coordinator_deaths",)),
    ("power cuts, then resumed", ("fault_blackout",)),
    ("interrupts, then resumed", ("outcome_interrupted",)),
    ("runs given up, then resumed", ("outcome_failed",)),
    ("checkpoints damaged", ("fault_damage",)),
    ("workers told that their machine will be taken away", ("fault_notice",)),
    ("jumps of the coordinator's clock", ("fault_clock",)),
    ("disks full: checkpoints / ledger", ("fault_disk_full", "fault_ledger_full")),
)


def sim(seeds: int, seed: int | None, policy: str, as_json: bool) -> int:
    """Simulate.

    Args:
        seeds: how many, from 0 on.
        seed: replay this one only, with its last events.
        policy: hold this one to its contract instead, over at most `POLICY_SEEDS` seeds.
        as_json: print one JSON object.

    Returns:
        Exit code: 0, or 1 when a promise was broken.
    """
    if policy:
        return sim_policy(policy, min(seeds, POLICY_SEEDS), as_json)
    chosen = range(seeds) if seed is None else range(seed, seed + 1)
    live = sys.stderr.isatty() and not as_json and seed is None
    coverage = run_sims(chosen, SimOptions(), on_seed=_Progress(len(chosen)) if live else None)
    print(_as_json(coverage) if as_json else _as_text(coverage, replayed=seed is not None))
    return 0 if coverage.violation is None else 1


class _Progress:
    """A line that counts up on a terminal."""

    def __init__(self, seeds: int) -> None:
        self._seeds = seeds

    def __call__(self, coverage: Coverage) -> None:
        end = "\n" if coverage.seeds == self._seeds or coverage.violation else ""
        print(f"\r{coverage.seeds} of {self._seeds} seeds", end=end, file=sys.stderr, flush=True)


def _as_text(coverage: Coverage, replayed: bool) -> str:
    lines = []
    if coverage.violation is not None:
        broken = coverage.violation
        lines += ["last events (virtual seconds, kind, who, what):", *broken.tail, ""]
        lines += [f"seed {broken.seed} breaks a promise after {broken.virtual_s:.3f} virtual seconds:"]
        lines += [f"  {broken.violation}", f"replay it with: shoestring sim --seed {broken.seed}", ""]
    width = max(len(label) for label, _ in SHOWN)
    for label, names in SHOWN:
        lines.append(f"{label:{width}}  " + " / ".join(f"{coverage.seen[name]:,}" for name in names))
    lines.append(f"{'virtual time':{width}}  {coverage.virtual_s:,.1f} s")
    if replayed:
        lines.append(f"{'trace':{width}}  {coverage.trace:08x}")
    if coverage.violation is None:
        lines.append(
            f"{coverage.seeds:,} seeds kept every promise: "
            "each sample counted exactly once in every model that survived"
        )
    return "\n".join(lines)


def _as_json(coverage: Coverage) -> str:
    broken = coverage.violation
    fields = {
        "seeds": coverage.seeds,
        "virtual_s": round(coverage.virtual_s, 3),
        "trace": f"{coverage.trace:08x}",
        "seen": dict(sorted(coverage.seen.items())),
        "violation": None,
    }
    if broken is not None:
        fields["violation"] = {
            "seed": broken.seed,
            "what": broken.violation,
            "at_s": broken.virtual_s,
            "tail": list(broken.tail),
        }
    return json.dumps(fields)
