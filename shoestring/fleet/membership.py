"""Who is in the fleet: a pure state machine (no I/O, no clock; `now` is an argument).

A worker is a name; each of its processes is an incarnation with a number that only grows.
Messages of an older incarnation are refused, so a process that was declared dead can never
bring back state of a timeline that the fleet has left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from shoestring.fleet.config import MemberConfig
from shoestring.fleet.holdings import newest_cut_state
from shoestring.fleet.messages import Held
from shoestring.fleet.names import is_server
from shoestring.fleet.restarts import Failure, decide, signature

State = Literal["absent", "starting", "waiting", "active", "given_up", "removed"]
GONE: tuple[State, ...] = ("absent", "given_up", "removed")
OWN_WORK = frozenset({"load", "compute", "save", "restore"})


@dataclass
class Member:
    """One worker as the coordinator sees it."""

    name: str
    incarnation: int = 0
    state: State = "absent"
    step: int = -1
    last_round: int = -1
    since_s: float = 0.0
    heard_s: float = 0.0
    phase: str = ""
    phase_s: float = 0.0
    start_at_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    failed_step: int = 0
    doomed: str = ""
    held: Held | None = None


@dataclass(frozen=True)
class Formed:
    """A round that can start: members by rank, the newest step among them and who holds it.

    `source_rank` is -1 when no member holds state that may be used. `held`: where state is cut, the shards
    that each member brings (by rank, None: none). `without_moments`: some optimizer moments have to come
    from elsewhere. `reason`: where the state comes from, in words; empty where one member holds all of it,
    or nobody does.
    """

    members: tuple[str, ...]
    step: int
    source_rank: int
    held: tuple[Held | None, ...] = ()
    without_moments: bool = False
    reason: str = ""

    def state_from(self, checkpoint: str) -> str:
        """Where the state comes from, in words, for the record."""
        if self.source_rank < 0:
            return checkpoint or "seed"
        if not self.held:
            return self.members[self.source_rank]
        if not self.without_moments:
            return self.reason
        return f"{self.reason}; these from {checkpoint or 'nowhere: they start at zero'}"


class Membership:
    """Tracks workers through start, round, loss and restart.

    Args:
        names: of the workers.
        servers: further processes that hold the state, where workers do not.
    """

    def __init__(self, config: MemberConfig, names: tuple[str, ...], servers: tuple[str, ...] = ()) -> None:
        self._config = config
        self._members = {name: Member(name) for name in (*names, *servers)}
        self.servers = servers

    # --- looking -----------------------------------------------------------------------

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    def current(self, name: str, incarnation: int) -> bool:
        """Whether this is the living incarnation of a known worker."""
        member = self._members[name] if name in self._members else None
        return member is not None and member.incarnation == incarnation and member.state not in GONE

    def named(self, *states: State) -> tuple[str, ...]:
        """Names of the members in one of these states, sorted."""
        return tuple(sorted(name for name, member in self._members.items() if member.state in states))

    def doomed(self) -> tuple[tuple[str, int], ...]:
        """Processes that must be killed, until their exit is reported."""
        return tuple((m.name, m.incarnation) for m in self._members.values() if m.doomed)

    def starting(self) -> tuple[tuple[str, int], ...]:
        """Processes that should run but were not heard of yet."""
        return tuple((m.name, m.incarnation) for m in self._members.values() if m.state == "starting")

    def hopeless(self) -> str:
        """The last error when every worker (or every server) was given up; else an empty string."""
        for servers in (False, True):
            members = [
                member
                for member in self._members.values()
                if member.state != "removed" and (member.name in self.servers) == servers
            ]
            if members and all(member.state == "given_up" for member in members):
                failures = [member.failures[-1] for member in members if member.failures]
                return max(failures, key=lambda failure: failure.at_s).error
        return ""

    # --- what happens --------------------------------------------------------------------

    def start_due(self, now: float) -> tuple[str, ...]:
        """Move absent workers whose pause is over to `starting`, each as a new incarnation."""
        started = []
        for member in self._members.values():
            if member.state == "absent" and member.start_at_s <= now:
                member.incarnation += 1
                member.state, member.since_s, member.heard_s = "starting", now, now
                member.step, member.last_round, member.doomed, member.phase = -1, -1, "", ""
                member.held = None
                started.append(member.name)
        return tuple(started)

    def heard(self, now: float, name: str, phase: str, phase_s: float) -> None:
        """A sign of life of the current incarnation."""
        member = self._members[name]
        member.heard_s, member.phase, member.phase_s = now, phase, phase_s

    def unplaced(self, now: float, processes: tuple[tuple[str, int], ...]) -> None:
        """These wait for a machine with room for them: they are not late in coming up."""
        for name, incarnation in processes:
            member = self._members[name] if name in self._members else None
            if member is not None and (member.incarnation, member.state) == (incarnation, "starting"):
                member.heard_s = now

    def excuse(self, stalled_s: float) -> None:
        """Nobody could be heard for `stalled_s`: count everyone's silence without it."""
        for member in self._members.values():
            member.heard_s += stalled_s

    def join(self, now: float, name: str, step: int, last_round: int, held: Held | None = None) -> None:
        """A worker waits for a round with state of `step` (-1: none), or with some shards of it."""
        member = self._members[name]
        member.held = held
        if member.state != "waiting":
            member.since_s = now
        member.state, member.step, member.last_round, member.heard_s = "waiting", step, last_round, now

    def acknowledged(self, name: str, round_id: int) -> None:
        """A worker has acted in this round: what it sent before the round can only be a late copy."""
        member = self._members[name]
        member.last_round = max(member.last_round, round_id)

    def is_echo(self, name: str, last_round: int) -> bool:
        """Whether a `Join` is a late copy from before a round in which this worker has acted since."""
        return last_round < self._members[name].last_round

    def advanced(self, name: str, step: int) -> None:
        """A worker has applied `step`; enough of them in a row and its failures are forgotten."""
        member = self._members[name]
        member.step = step
        if member.failures and step - member.failed_step >= self._config.healthy_steps:
            member.failures.clear()

    def lost(self, now: float, name: str, error: str, newest_step: int, borne: int = 0) -> str:
        """The current incarnation is gone; returns what is done about it, with the reason. `borne`: see
        `restarts.decide`."""
        member = self._members[name]
        member.failures.append(Failure(now, error, signature(error)))
        member.failed_step, member.doomed = newest_step, ""
        restart = decide(now, tuple(member.failures), self._config, borne)
        member.state = "absent" if restart.at_s is not None else "given_up"
        member.start_at_s = restart.at_s if restart.at_s is not None else 0.0
        return restart.reason

    def doom(self, name: str, reason: str) -> None:
        """Mark the current process for killing."""
        self._members[name].doomed = reason

    def retire(self, now: float, name: str, again: bool) -> None:
        """A worker leaves in good order: with `again` a new process takes its place at once. No failure."""
        member = self._members[name]
        member.state, member.start_at_s, member.doomed = ("absent" if again else "removed"), now, ""
        member.held, member.step = None, -1

    def add(self, now: float, count: int) -> tuple[str, ...]:
        """More workers: those that were removed first, then new names."""
        names = list(self.named("removed"))
        number = 0
        while len(names) < count:
            if (name := f"w{number}") not in self._members:
                names.append(name)
            number += 1
        for name in names[:count]:
            member = self._members.setdefault(name, Member(name))
            member.state, member.start_at_s = "absent", now
        return tuple(names[:count])

    @property
    def room(self) -> int:
        """How many workers may be added."""
        most = max(self._config.max_workers, self._config.workers)
        gone = self.named("removed", "given_up")
        return max(0, most - sum(name not in gone and name not in self.servers for name in self._members))

    def find_hung(self, now: float) -> dict[str, str]:
        """Name -> why it counts as hung; a doomed one is not named again."""
        config, found = self._config, {}
        for member in self._members.values():
            silent_s = now - member.heard_s
            if member.doomed or member.state in GONE:
                continue
            if member.state == "starting":
                if silent_s > config.start_timeout_s:
                    found[member.name] = f"did not come up within {config.start_timeout_s:.0f} s"
            elif silent_s > config.heartbeat_timeout_s:
                found[member.name] = f"silent for {silent_s:.1f} s"
            elif member.phase in OWN_WORK and member.phase_s + silent_s > config.hang_timeout_s:
                found[member.name] = f"in phase {member.phase!r} for {member.phase_s + silent_s:.0f} s"
        return found

    def find_stuck(self, now: float, round_ended_s: float) -> dict[str, str]:
        """Members of a round that is over who have not come back: name -> why they count as stuck."""
        waited_s = now - round_ended_s
        if waited_s <= self._config.regroup_timeout_s:
            return {}
        active = (self._members[name] for name in self.named("active"))
        return {
            member.name: f"has not left the round that ended {waited_s:.0f} s ago (phase {member.phase!r})"
            for member in active
            if not member.doomed and member.phase not in OWN_WORK
        }

    def try_form(self, now: float, confirmed_step: int) -> Formed | None:
        """Form a round when all who live are waiting.

        State older than `confirmed_step` is of no use: samples that count as done are not in it.
        """
        here: list[Member] = []
        for member in self._members.values():  # once: each of thousands who join asks
            if member.state == "active" or (member.state == "waiting" and member.doomed):
                return None
            if member.state == "waiting":
                here.append(member)
        if not here:
            return None
        usable = [member for member in here if member.step >= max(0, confirmed_step)]
        cut = any(member.held is not None for member in usable)
        # Cutting the state anew takes long; a worker that is back soon is worth waiting for.
        wait = cut or not usable
        grace_s = self._config.join_grace_s
        if wait and self._awaited(now) and now - min(member.since_s for member in here) < grace_s:
            return None
        for member in here:
            member.state, member.since_s = "active", now
        waiting = tuple(sorted(member.name for member in here))
        if cut:
            return self._from_shards(waiting, max(0, confirmed_step))
        step = max((member.step for member in usable), default=-1)
        source = next((r for r, n in enumerate(waiting) if step >= 0 and self._members[n].step == step), -1)
        return Formed(waiting, step, source)

    def form_servers(self, lineage: int, confirmed_step: int) -> Formed | None:
        """A round of all servers, once all wait; it goes on from their state if each still holds its part.

        Args:
            lineage: what was held before this round is of a past that the fleet has left.
        """
        servers = [self._members[name] for name in self.servers if self._members[name].state != "given_up"]
        if not servers or any(one.state != "waiting" or one.doomed for one in servers):
            return None
        for one in servers:
            one.state = "active"
        names, everybody = tuple(one.name for one in servers), (tuple(range(len(servers))),)
        whole = all(
            one.held is not None
            and (one.held.groups, one.held.rank) == (everybody, rank)
            and one.held.round_id >= lineage
            and 0 <= one.step <= confirmed_step
            for rank, one in enumerate(servers)
        )
        if whole:
            return Formed(names, confirmed_step, 0)
        return Formed(names, -1, -1, reason="not all servers hold their parts")

    def admit(self, name: str) -> None:
        """A worker takes part without being a member of the round."""
        self._members[name].state = "active"

    def _from_shards(self, waiting: tuple[str, ...], confirmed_step: int) -> Formed:
        members = [self._members[name] for name in waiting]
        found = newest_cut_state([(member.step, member.held) for member in members], confirmed_step)
        if not found.usable:
            return Formed(waiting, -1, -1, reason=found.reason)
        held = tuple(member.held if rank in found.sources else None for rank, member in enumerate(members))
        return Formed(waiting, found.step, min(found.sources), held, not found.complete, found.reason)

    def _awaited(self, now: float) -> bool:
        """Whether more workers will come soon enough to wait for them."""
        soon = now + self._config.join_grace_s
        return any(
            member.state == "starting" or (member.state == "absent" and member.start_at_s <= soon)
            for member in self._members.values()
        )

    # --- for a coordinator that comes back -----------------------------------------------

    def snapshot(self) -> bytes:
        """What must survive the coordinator: incarnations and who was alive."""
        rows = [
            (m.name, m.incarnation, m.state, m.start_at_s, m.failures, m.doomed, m.last_round)
            for m in self._members.values()
        ]
        return msgspec.msgpack.encode(rows)

    def restore(self, now: float, data: bytes, all_dead: bool = False) -> None:
        """Take over from a coordinator that died; whoever lived is expected to join again.

        With `all_dead` nobody lives and everybody gets a new chance. The numbers of incarnations go
        on even then, so that a message that is still under way from before can never be mistaken.
        """
        rows = msgspec.msgpack.decode(data, type=list[tuple[str, int, State, float, list[Failure], str, int]])
        for name, incarnation, state, start_at_s, failures, doomed, last_round in rows:
            if name not in self._members:
                if is_server(name):
                    continue
                # Also of who has no place now: when it is added again, its numbers go on.
                gone = state == "removed" or not self.room
                self._members[name] = Member(name, incarnation, "removed" if gone else "absent")
                if gone:
                    continue
            if all_dead:
                self._members[name].incarnation = incarnation
                continue
            alive = state in ("waiting", "active")
            self._members[name] = Member(
                name,
                incarnation,
                "active" if alive else state,
                since_s=now,
                heard_s=now,
                start_at_s=min(start_at_s, now + self._config.backoff_max_s),
                failures=failures,
                doomed=doomed,
                last_round=last_round,
            )
