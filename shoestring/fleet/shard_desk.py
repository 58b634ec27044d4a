"""Hands out shards and counts each once; its state is the ledger's, and durable with its commit (source:
AntBatchInfer, todo -> doing -> done after commit; suspects alone and verdicts are ours)."""

from __future__ import annotations

from pathlib import PurePath

import msgspec

from shoestring.base.errors import FleetError
from shoestring.data.ledger import Outcome
from shoestring.data.output_state import Output, Ranges, Staged, file_name
from shoestring.data.ranges import Range, size
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet.verdicts import Verdicts, is_verdict

VERDICTS = "verdicts"


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """The last request of a worker that was given a shard."""

    incarnation: int
    request: int
    lease_id: int


class ShardDesk:
    """See the module.

    Args:
        ledger: also has the committed outputs.
        rows: the usual number of a shard's rows.
        now: the time.
        all_dead: whether no holder of a lease can be alive.

    Attributes:
        lost_rows: that were in the hands of workers that were lost, all losses together.

    Raises (every call):
        LedgerError: the store has failed.
    """

    def __init__(self, ledger: DurableLedger, rows: int, now: float, all_dead: bool) -> None:
        self._ledger = ledger
        self._rows = rows
        outputs = ledger.outputs()
        self._committed = {output.lease_id for output in outputs}
        written = [part for one in outputs if is_verdict(one.lease_id) for part in one.ranges]
        self._verdicts = Verdicts(ledger.get_meta(VERDICTS), written)
        self._held: dict[str, dict[int, Ranges]] = {}
        self._dead = 0
        self._texts: dict[int, str] = {}
        self._new_dead: list[Range] = []
        self.lost_rows = 0
        for lease in ledger.leases():
            self._hold(lease.holder, lease.lease_id, tuple(lease.ranges))
        for one in self._verdicts.opened():
            self._hold(one.holder, one.lease_id, one.ranges)
        if all_dead:
            for holder in list(self._held):
                self.left(holder)
        ledger.renew_all(now)
        self._note_dead()
        self._new_dead.clear()  # told by an earlier coordinator

    # --- looking -----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """All rows are in committed output, also those given up."""
        return self._ledger.finished and not self._verdicts.pending

    @property
    def pending(self) -> int:
        """Rows that are given up and not in committed output yet."""
        return self._verdicts.pending

    @property
    def todo(self) -> int:
        """Rows that nobody has."""
        return self._ledger.counts().todo

    def held(self, holder: str) -> int:
        """Shards that it has."""
        return len(self._held[holder]) if holder in self._held else 0

    # --- work --------------------------------------------------------------------------------

    def repeated(self, worker: str, incarnation: int, request: int) -> m.Reply | None:
        """The answer to a request that is not new: the same shard again, where it is open. A late copy of an
        older one is told to wait, which nobody hears. None: it is new."""
        data = self._ledger.get_meta(f"asked.{worker}")
        last = msgspec.msgpack.decode(data, type=Asked) if data is not None else None
        if last is None or last.incarnation != incarnation or request > last.request:
            return None
        holder = holder_name(worker, incarnation)
        if request < last.request or holder not in self._held or last.lease_id not in self._held[holder]:
            return m.Wait(1.0)
        return self._message(last.lease_id, self._held[holder][last.lease_id])

    def lease(self, now: float, worker: str, incarnation: int, request: int, count: int) -> m.Shard | None:
        """A new shard of up to `count` rows, durable with the next commit; None: there is none for it now.

        What was lost too often with its holder goes to who has nothing else, and gets nothing else beside
        it: another loss must not be blamed on innocent rows.
        """
        holder = holder_name(worker, incarnation)
        if self.held(holder) and (self._ledger.is_alone() or self._has_suspect(holder)):
            return None
        lease = self._ledger.lease(now, holder, count)
        if lease is not None:
            lease_id, ranges = lease.lease_id, tuple(lease.ranges)
        elif self._ledger.finished and (verdict := self._verdicts.lease(holder, self._rows)) is not None:
            lease_id, ranges = verdict.lease_id, verdict.ranges
            self._ledger.put_meta(VERDICTS, self._verdicts.snapshot())
        else:
            return None
        self._hold(holder, lease_id, ranges)
        asked = msgspec.msgpack.encode(Asked(incarnation, request, lease_id))
        self._ledger.put_meta(f"asked.{worker}", asked)
        return self._message(lease_id, ranges)

    def done(self, now: float, holder: str, lease_id: int, staged: Staged) -> tuple[Outcome, Output | None]:
        """A shard's rows are staged: done and its output are in the next commit together, or nothing is.

        Raises:
            FleetError: the file does not have the shard's rows.
        """
        if lease_id in self._committed:
            return Outcome.DUPLICATE, None
        held = self._held[holder] if holder in self._held else {}
        if lease_id not in held:
            return Outcome.LATE, None
        ranges = held[lease_id]
        if staged.rows != size(ranges):
            raise FleetError(
                f"shard {lease_id} has {size(ranges)} rows, {holder} has staged {staged.rows} for it",
                "report this as a bug",
            )
        if is_verdict(lease_id):
            counted = self._verdicts.complete(lease_id, holder)
            self._ledger.put_meta(VERDICTS, self._verdicts.snapshot())
        else:
            counted = self._ledger.complete(now, lease_id, holder) is Outcome.COUNTED
        self._drop(holder, lease_id)
        if not counted:
            self._note_dead()
            return Outcome.LATE, None
        name = file_name(lease_id, ranges, PurePath(staged.name).suffix)
        output = Output(lease_id, name, ranges, staged)
        self._ledger.add_output(output)
        self._committed.add(lease_id)
        return Outcome.COUNTED, output

    def back(self, holder: str, lease_id: int) -> int:
        """A shard comes back unfinished, nobody is to blame; returns how many rows (0: it is not its)."""
        if holder not in self._held or lease_id not in self._held[holder]:
            return 0
        ranges = self._held[holder][lease_id]
        self._release(holder, lease_id)
        return size(ranges)

    def renew(self, now: float, holder: str) -> None:
        """The holder lives."""
        self._ledger.renew(now, holder)

    def left(self, holder: str) -> int:
        """A holder has gone in good order; returns how many shards it had left."""
        leases = list(self._held[holder]) if holder in self._held else []
        for lease_id in leases:
            self._release(holder, lease_id)
        return len(leases)

    def lost(self, holder: str) -> int:
        """A holder is gone: what it had is to blame for it, perhaps; returns how many shards it had."""
        lost = self._ledger.release_holder(holder)
        self.lost_rows += sum(size(lease.ranges) for lease in lost)
        for lease in lost:
            self._drop(holder, lease.lease_id)
        verdicts = self.left(holder)  # nothing is to blame in these
        self._note_dead()
        return len(lost) + verdicts

    def expire(self, now: float) -> int:
        """Take back what nobody has given a sign of life for; returns how many shards."""
        lost = self._ledger.expire(now)
        for lease in lost:
            self.lost_rows += size(lease.ranges)
            self._drop(lease.holder, lease.lease_id)
        if lost:
            self._note_dead()
        return len(lost)

    def take_new_dead(self) -> list[Range]:
        """Rows that were given up since this was last asked."""
        new, self._new_dead = self._new_dead, []
        return new

    # --- inside --------------------------------------------------------------------------------

    def _note_dead(self) -> None:
        """Look for positions that the ledger has given up."""
        dead = self._ledger.counts().dead
        if dead == self._dead:
            return
        self._dead = dead
        letters = self._ledger.dead_letters()
        self._new_dead += list(self._verdicts.note(letter.position for letter in letters))
        self._texts = {letter.position: letter.error for letter in letters}

    def _message(self, lease_id: int, ranges: Ranges) -> m.Shard:
        if not is_verdict(lease_id):
            return m.Shard(lease_id, ranges)
        positions = [at for start, stop in ranges for at in range(start, stop)]
        return m.Shard(lease_id, ranges, {at: self._texts[at] for at in positions})

    def _has_suspect(self, holder: str) -> bool:
        held = self._held[holder].items()
        return any(not is_verdict(one) and self._ledger.is_alone(ranges[0][0]) for one, ranges in held)

    def _hold(self, holder: str, lease_id: int, ranges: Ranges) -> None:
        self._held.setdefault(holder, {})[lease_id] = ranges

    def _drop(self, holder: str, lease_id: int) -> None:
        del self._held[holder][lease_id]
        if not self._held[holder]:
            del self._held[holder]

    def _release(self, holder: str, lease_id: int) -> None:
        self._drop(holder, lease_id)
        if is_verdict(lease_id):
            self._verdicts.release(lease_id)
            self._ledger.put_meta(VERDICTS, self._verdicts.snapshot())
        else:
            self._ledger.release(lease_id)


def holder_name(worker: str, incarnation: int) -> str:
    """Of leases: one process of a worker."""
    return f"{worker}.{incarnation}"
