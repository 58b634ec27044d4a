"""Faults on the virtual clock, at the rates of the scenario, until the quiet time (source: ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoestring.sim.host import CRASH_POINTS

if TYPE_CHECKING:
    from shoestring.sim.workers import Worker
    from shoestring.sim.world import World


class Faults:
    """Schedules each kind of fault the scenario has, with exponential pauses."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._actions = {
            "kill": self._kill,
            "hang": self._hang,
            "stall": self._stall,
            "slow": self._slow,
            "coordinator": self._coordinator,
            "blackout": self._blackout,
            "interrupt": self._interrupt,
            "damage": self._damage,
            "disk_full": self._disk_full,
            "ledger_full": self._ledger_full,
            "clock": self._clock,
            "notice": self._notice,
        }
        for kind in world.scenario.rates:
            self._schedule(kind)

    def _schedule(self, kind: str) -> None:
        pause_s = self._world.rng.expovariate(self._world.scenario.rates[kind])
        if self._world.now + pause_s < self._world.options.quiet_s:
            self._world.after(pause_s, self._strike, kind)

    def _strike(self, kind: str) -> None:
        self._world.note("fault", kind, "")
        self._world.seen[f"fault_{kind}"] += 1
        self._actions[kind]()
        self._schedule(kind)

    def _victim(self) -> Worker | None:
        living = [worker for worker in self._world.workers if worker.alive]
        return self._world.rng.choice(living) if living else None

    def _kill(self) -> None:
        if (worker := self._victim()) is None:
            return
        if self._world.rng.random() < 0.3:
            worker.crash(f"ValueError: made up, number {self._world.rng.randrange(3)}")
        else:
            worker.kill(-9)

    def _hang(self) -> None:
        if (worker := self._victim()) is not None:
            worker.hung = True
            if self._world.rng.random() < 0.5:
                self._world.after(self._world.rng.uniform(0.05, 3.0), worker.wake)

    def _stall(self) -> None:
        if (worker := self._victim()) is not None:
            worker.stalled = True
            self._world.after(self._world.rng.uniform(0.05, 4.0), worker.wake)

    def _slow(self) -> None:
        if (worker := self._victim()) is not None:
            worker.slowness = self._world.rng.uniform(1.5, 10.0)
            self._world.after(self._world.rng.uniform(0.5, 2.0), _fast_again, worker)

    def _coordinator(self) -> None:
        if self._world.rng.random() < 0.2:
            self._world.host.die()
        else:
            self._world.host.crash_soon(self._world.rng.choice(CRASH_POINTS))

    def _blackout(self) -> None:
        self._world.blackout("power cut")

    def _interrupt(self) -> None:
        self._world.supervisor.interrupt = True

    def _damage(self) -> None:
        if committed := self._world.disk.committed():
            self._world.disk.damage(committed[-1], self._world.rng.randrange(8))

    def _disk_full(self) -> None:
        self._world.disk.full = True
        self._world.after(self._world.rng.uniform(0.1, 1.0), self._disk_free)

    def _disk_free(self) -> None:
        self._world.disk.full = False

    def _notice(self) -> None:
        if (worker := self._victim()) is not None:
            worker.notice = "told to go"

    def _clock(self) -> None:
        rng = self._world.rng
        self._world.host.jump(rng.choice((0.05, 1.0, 60.0, -60.0)) * 60 ** rng.random())

    def _ledger_full(self) -> None:
        self._world.tables.full = True
        self._world.after(self._world.rng.uniform(0.01, 0.5), self._ledger_free)

    def _ledger_free(self) -> None:
        self._world.tables.full = False


def _fast_again(worker: Worker) -> None:
    worker.slowness = 1.0
