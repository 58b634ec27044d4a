"""Arms of the comparison in turn: started on every rank, rank 0 prints a line of JSON for each.

Ranks find each other by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. The arms:

    single                                        the whole global batch in one process: the reference
    fsdp2, hsdp, hsdp_deferred                    FSDP2 on gloo's own collectives
    hsdp_kept                                     the last, its parameters whole for a whole step
    fsdp2_rings, hsdp_rings, hsdp_deferred_rings, hsdp_kept_rings
                                                  FSDP2 on our rings
    zero3, hpz                                    DeepSpeed on gloo's own collectives
    zero3_rings, hpz_rings                        DeepSpeed on our rings
    zero3_held, zero3_held_rings                  the same with DeepSpeed's thresholds as they come
    paro_NNN .. paro_IIG                          ours (see benchmarks.peers.ours)

Several arms run in the same processes, which saves the start and alternates them; the peak resident size is
then of all so far. `--set name=value` changes a setting of the arm (a field of FsdpChoice,
ZeroChoice or ParoChoice).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.peers import ours
from benchmarks.peers.common import (
    SHAPES,
    Arm,
    Plain,
    Setup,
    compute_only,
    join,
    measure,
    over_ranks,
    peak_rss_bytes,
)
from benchmarks.peers.fsdp import FsdpArm, FsdpChoice
from benchmarks.peers.ours import ParoArm, ParoChoice
from benchmarks.peers.zero import ZeroArm, ZeroChoice

PeerChoice = FsdpChoice | ZeroChoice | ParoChoice
CHOICES: dict[str, PeerChoice] = {
    "fsdp2": FsdpChoice(),
    "hsdp": FsdpChoice(hybrid=True),
    "hsdp_deferred": FsdpChoice(hybrid=True, deferred=True),
    "hsdp_kept": FsdpChoice(hybrid=True, deferred=True, reshard=False),
    "fsdp2_rings": FsdpChoice(rings=True),
    "hsdp_rings": FsdpChoice(hybrid=True, rings=True),
    "hsdp_deferred_rings": FsdpChoice(hybrid=True, deferred=True, rings=True),
    "hsdp_kept_rings": FsdpChoice(hybrid=True, deferred=True, reshard=False, rings=True),
    "zero3": ZeroChoice(),
    "hpz": ZeroChoice(hpz=True),
    "zero3_rings": ZeroChoice(rings=True),
    "hpz_rings": ZeroChoice(hpz=True, rings=True),
    "zero3_held": ZeroChoice(scaled=False),
    "zero3_held_rings": ZeroChoice(scaled=False, rings=True),
    **dict(ours.CHOICES),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the arms in turn and print what was measured, a line each."""
    args = _parser().parse_args(argv)
    setup = Setup(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Setup)})
    rank, world = join()
    compute_s: dict[int, float] = {}
    for number, name in enumerate(args.arm * args.rounds):
        if name == "single":
            result = _single(setup, args.ranks, args.check)
        else:
            choice = changed(CHOICES[name], args.set)
            states = states_of(choice, setup, world)
            if not args.check and states not in compute_s:
                compute_s[states] = compute_only(setup, states)
            result = _sharded(setup, choice, args.check, f"peers/{number}")
            result |= {} if args.check else {"compute_only_s": compute_s[states]}
        if rank == 0:
            print(
                json.dumps({"arm": name, "set": args.set, "setup": dataclasses.asdict(setup), **result}),
                flush=True,
            )
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def start(setup: Setup, choice: PeerChoice, name: str = "peers") -> Arm:
    """The arm of a choice, on the default group; `name` tells its rings from others'."""
    if isinstance(choice, ParoChoice):
        return ParoArm(setup, choice, name)
    if isinstance(choice, ZeroChoice):
        return ZeroArm(setup, choice, name)
    return FsdpArm(setup, choice, name)


def _single(setup: Setup, ranks: int, check: bool) -> dict[str, Any]:
    if dist.is_initialized():
        raise SystemExit("the single process is one process: start it with WORLD_SIZE=1 and --ranks n")
    return _summary(setup, ranks, measure(Plain(setup), setup, range(ranks), check))


def _sharded(setup: Setup, choice: PeerChoice, check: bool, name: str) -> dict[str, Any]:
    world = dist.get_world_size()
    result: dict[str, Any] = {"choice": dataclasses.asdict(choice)}
    arm = start(setup, choice, name)
    result |= measure(arm, setup, [dist.get_rank()], check)
    if isinstance(arm, ParoArm):
        result["units"] = arm.units()
    dist.barrier()
    arm.close()
    del arm
    gc.collect()
    return _summary(setup, world, result)


def _summary(setup: Setup, ranks: int, result: dict[str, Any]) -> dict[str, Any]:
    step_s = statistics.median(result["step_s"])
    return {
        **result,
        "ranks": ranks,
        "torch": torch.__version__,
        "step_s_median": step_s,
        "tokens_per_s": ranks * setup.accumulation * setup.micro_batch * setup.length / step_s,
        "peak_rss_bytes": int(over_ranks([float(peak_rss_bytes())], dist.ReduceOp.MAX)[0]),
    }


def states_of(choice: PeerChoice, setup: Setup, world: int) -> int:
    """Into how many parts the choice cuts masters and moments."""
    if isinstance(choice, ParoChoice):
        return ours.states_of(choice, setup, world)
    return setup.ranks_per_host if isinstance(choice, FsdpChoice) and choice.hybrid else world


def changed(choice: Any, settings: Sequence[str]) -> Any:
    """A choice with `name=value` settings put in.

    Raises:
        SystemExit: no such setting.
    """
    known = {field.name for field in dataclasses.fields(choice)}
    new: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in known:
            raise SystemExit(f"{type(choice).__name__} has no setting {name!r}: take one of {sorted(known)}")
        new[name] = json.loads(text)
    return dataclasses.replace(choice, **new)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arm", required=True, nargs="+", choices=["single", *CHOICES])
    parser.add_argument("--rounds", type=int, default=1, help="how often the arms are gone through")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the arm"
    )
    parser.add_argument("--check", action="store_true", help="look at the gradient in every step: no times")
    parser.add_argument(
        "--ranks", type=int, default=1, help="of the single process: whose samples it computes"
    )
    defaults = Setup()
    for field in dataclasses.fields(Setup):
        default = getattr(defaults, field.name)
        names = {"model": list(SHAPES), "dtype": ["bf16", "fp32"]}
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(default), default=default,
            choices=names[field.name] if field.name in names else None,
        )  # fmt: skip
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
