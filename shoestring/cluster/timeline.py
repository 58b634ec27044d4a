"""When a step's collectives and computes begin and end, unit by unit (source: ours).

Follows the order in which the sharded engine issues things, so that overlap is worked out and not assumed:
the next unit is gathered while this one computes, gradients leave while backward goes on and hold it up once
too many are under way, shards updated by the last step arrive while the first forward pass runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from shoestring.cluster.wires import Scope

FORWARD_SHARE = 1 / 3  # of a micro-step's compute; backward is twice as much (6 = 2 + 4 flops a parameter)
OUTSTANDING = 2  # units whose gradients may be under way before backward waits


@dataclass(frozen=True)
class Move:
    """One collective.

    Attributes:
        scope: collectives of one scope queue for its wires.
        time_s: on the wires, start included.
        busy_s: what it adds to the compute that runs beside it.
    """

    scope: Scope
    time_s: float
    busy_s: float


@dataclass(frozen=True)
class UnitMoves:
    """What is moved for one unit, each a chain of collectives; empty where nothing is.

    Attributes:
        compute_s: of one micro-step, forward and backward.
        gather: its parameters.
        scatter: its gradients, after each micro-step.
        sync_gradients: its gradients, once a step, after `scatter` of the last micro-step.
        sync_parameters: its updated parameters, once a step.
    """

    compute_s: float
    gather: tuple[Move, ...]
    scatter: tuple[Move, ...]
    sync_gradients: tuple[Move, ...]
    sync_parameters: tuple[Move, ...]


@dataclass
class _Line:
    """Where a simulated step stands.

    Attributes:
        now: of the computing thread, s.
        free: scope -> when its wires are idle again.
        busy_s: core time of what was issued, not yet charged to compute.
        leaving: when the whole gradients that are under way have been cut, oldest first.
        arrived: when all gradients sent so far are where they belong.
    """

    now: float = 0.0
    free: dict[Scope, float] = field(default_factory=dict)
    busy_s: float = 0.0
    leaving: deque[float] = field(default_factory=deque)
    arrived: float = 0.0

    def issue(self, moves: Sequence[Move], after_s: float = 0.0) -> float:
        """Issue a chain now; when it has arrived."""
        arrives = self.now if after_s < self.now else after_s
        for move in moves:
            begins = max(arrives, self.free[move.scope]) if move.scope in self.free else arrives
            arrives = self.free[move.scope] = begins + move.time_s
            self.busy_s += move.busy_s
        return arrives

    def compute(self, duration_s: float, ready_s: float) -> None:
        """Compute for so long, once what is needed is there; core time of what travels comes on top."""
        self.now = max(self.now, ready_s) + duration_s
        if duration_s:
            self.now += self.busy_s
        self.busy_s = 0.0

    def send(self, moves: Sequence[Move]) -> None:
        """Let a unit's gradients leave; wait while too many are under way."""
        if moves:
            cut_s = self.issue(moves[:1])
            self.leaving.append(cut_s)
            self.arrived = max(self.arrived, self.issue(moves[1:], cut_s))
            while len(self.leaving) > OUTSTANDING:
                self.now = max(self.now, self.leaving.popleft())

    def settle(self) -> None:
        """Wait for all gradients."""
        self.now = max(self.now, self.arrived)
        self.leaving.clear()


def step_time_s(
    root: UnitMoves, layer: UnitMoves, layers: int, micro_steps: int, prefetch: bool = True
) -> float:
    """From the first micro-step, with updated parameters on their way, to all gradients summed.

    Args:
        layers: units like `layer` beside the root.
        prefetch: the next unit is gathered while this one computes; otherwise once it is needed.
    """
    line = _Line()
    synced = [line.issue(unit.sync_parameters) for unit in (root, *[layer] * layers)]
    ends = []
    simulated = min(micro_steps, 3)
    for number in range(simulated):
        _forward(line, root, layer, layers, synced if number == 0 else [0.0] * (layers + 1), prefetch)
        _backward(line, root, layer, layers, number + 1 == simulated, prefetch)
        ends.append(line.now)
    line.settle()
    # What the first and the last do besides shows in the three; all between are like the second.
    between_s = (micro_steps - simulated) * (ends[1] - ends[0]) if simulated > 2 else 0.0
    return line.now + between_s


def _forward(
    line: _Line, root: UnitMoves, layer: UnitMoves, layers: int, synced: Sequence[float], prefetch: bool
) -> None:
    line.now = line.issue(root.gather, synced[0])
    coming = line.issue(layer.gather, synced[1]) if layers else line.now
    for number in range(1, layers + 1):
        ready = max(coming, synced[number])
        late = False
        if number < layers and layer.gather and not prefetch:
            line.now = ready
        elif number < layers:
            late = bool(layer.gather) and synced[number + 1] > line.now
            coming = coming if late else line.issue(layer.gather)
        line.compute(FORWARD_SHARE * layer.compute_s, ready)
        if number < layers and layer.gather and not prefetch:
            coming = line.issue(layer.gather, synced[number + 1])
        if late:  # its update was still on its way: it is gathered when it is used
            line.now = max(line.now, synced[number + 1])
            coming = line.issue(layer.gather)
    line.compute(FORWARD_SHARE * root.compute_s, line.now)


def _backward(
    line: _Line, root: UnitMoves, layer: UnitMoves, layers: int, last: bool, prefetch: bool
) -> None:
    """The last layer is still gathered from forward."""
    share = 1 - FORWARD_SHARE
    line.compute(share * root.compute_s, line.now)
    ready = line.now
    for number in range(layers):
        coming = line.now
        more = number + 1 < layers
        if more and prefetch:
            coming = line.issue(layer.gather)
        line.compute(share * layer.compute_s, ready)
        if more and not prefetch:
            coming = line.issue(layer.gather)
        line.send((*layer.scatter, *layer.sync_gradients) if last else layer.scatter)
        ready = coming
    line.send((*root.scatter, *root.sync_gradients) if last else root.scatter)
