"""Which step's state the shards of several workers make up together: a pure decision (source: ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoestring.cluster.strategies import Layout, leftover, parse_strategy
from shoestring.fleet.messages import Held


@dataclass(frozen=True)
class Found:
    """The newest state that can be had from living workers.

    Attributes:
        step: applied steps of it; -1 where it cannot be had.
        sources: numbers of the workers that bring shards of it.
        complete: masters and moments are all there. If not, some masters come from (rounded) parameters, and
            their moments from a checkpoint.
    """

    step: int
    sources: frozenset[int]
    complete: bool
    reason: str

    @property
    def usable(self) -> bool:
        """Whether it can be gone on from."""
        return self.step >= 0


def newest_cut_state(workers: Sequence[tuple[int, Held | None]], confirmed_step: int) -> Found:
    """The newest step, from `confirmed_step` on, whose state is all there.

    A worker brings its shards of the step that it has applied, or of the next one if it is ready to apply
    that by itself. Shards of different rounds were cut differently and do not go together.

    Args:
        workers: (applied step, shards held) of each; None where a worker holds no shards.
    """
    steps = {step for step, held in workers if held is not None and step >= confirmed_step}
    why = "no worker holds shards that may be used"
    for step in sorted(steps, reverse=True):
        for round_id in sorted({held.round_id for _, held in workers if held is not None}, reverse=True):
            able = {
                number: held
                for number, (applied, held) in enumerate(workers)
                if held is not None and held.round_id == round_id and step in (applied, held.ready)
            }
            if not any(workers[number][0] == step for number in able):
                continue
            found = _weigh(step, able)
            if found.usable:
                return found
            why = found.reason
    return Found(-1, frozenset(), False, why)


def _weigh(step: int, able: dict[int, Held]) -> Found:
    first = next(iter(able.values()))
    strategy, layout = parse_strategy(first.strategy), Layout(first.groups)
    synced = [held.rank for held in able.values() if held.synced == step]
    left = leftover(strategy, layout, [held.rank for held in able.values()], synced)
    held_by = f"{len(able)} of {layout.size} workers, {strategy.name}"
    if left.complete:
        return Found(step, frozenset(able), True, f"all masters and moments from peers ({held_by})")
    if left.usable:
        return Found(
            step,
            frozenset(able),
            False,
            f"parameters from peers; {left.masters_from_parameters:.0%} of the masters made from them, "
            f"their moments are not with peers ({held_by})",
        )
    missing = 1.0 - max(left.states, left.parameters)
    return Found(-1, frozenset(), False, f"at least {missing:.0%} of step {step} is with nobody ({held_by})")
