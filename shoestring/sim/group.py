"""Collectives between simulated workers: all arrive or none completes, but the end may tear (source: ours).

What makes this the hard part of the protocol: when a member dies in the last moments of an
all-reduce, some of the others have its result and apply the step, and others see a broken
connection and do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoestring.sim.workers import Worker
    from shoestring.sim.world import World

BREAK_S = (0.001, 0.02)
FINISH_S = (0.0005, 0.004)

OnDone = Callable[[dict[str, Any]], None]
OnLost = Callable[[str], None]


class Group:
    """The connections of one round.

    Args:
        world: the simulation.
        round_id: the round.
        members: names by rank.
    """

    def __init__(self, world: World, round_id: int, members: tuple[str, ...]) -> None:
        self._world = world
        self.round_id = round_id
        self._members = members
        self._gone = ""
        self._arrived: dict[str, dict[str, Any]] = {}
        self._waiting: dict[str, tuple[Worker, OnDone, OnLost]] = {}
        self._finishing: dict[str, tuple[Worker, OnDone, OnLost]] = {}

    def exchange(self, worker: Worker, what: str, payload: Any, done: OnDone, lost: OnLost) -> None:
        """Take part in the collective `what`; `done` gets the payloads of all members by name."""
        if self._gone:
            worker.later(self._world.rng.uniform(*BREAK_S), lost, self._gone)
            return
        here = self._arrived.setdefault(what, {})
        here[worker.name] = payload
        self._waiting[worker.name] = (worker, done, lost)
        if len(here) == len(self._members):
            self._complete(what)

    def leave(self, name: str, reason: str) -> None:
        """A member died or closed its connections: what is not complete breaks for the others."""
        self._waiting.pop(name, None)
        self._finishing.pop(name, None)
        if self._gone:
            return
        self._gone = f"connection to {name} broken: {reason}"
        rng = self._world.rng
        for worker, _, lost in self._waiting.values():
            worker.later(rng.uniform(*BREAK_S), lost, self._gone)
        self._waiting.clear()
        for other in list(self._finishing):
            if rng.random() < self._world.scenario.tear:
                worker, _, lost = self._finishing.pop(other)
                self._world.seen["torn_collectives"] += 1
                worker.later(rng.uniform(*BREAK_S), lost, self._gone)

    def _complete(self, what: str) -> None:
        payloads = {name: self._arrived[what][name] for name in self._members}
        self._finishing, self._waiting = self._waiting, {}
        for name, (worker, _, _) in list(self._finishing.items()):
            delay_s = 0.0 if len(self._members) == 1 else self._world.rng.uniform(*FINISH_S)
            worker.later(delay_s, self._finish, name, payloads)
        rng, world = self._world.rng, self._world
        if world.now < world.options.quiet_s and rng.random() < world.scenario.aimed:
            victim = self._finishing[rng.choice(self._members)][0]
            world.seen["fault_aimed_kill"] += 1
            world.after(rng.uniform(0.0, FINISH_S[1]), victim.kill, -9)

    def _finish(self, name: str, payloads: dict[str, Any]) -> None:
        if name in self._finishing:
            _, done, _ = self._finishing.pop(name)
            done(payloads)
